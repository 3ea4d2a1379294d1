//! What was asked for and not found a moment ago, with what it continues: most of it is stored next.

use super::super::Digest;
use super::super::index::prefetch;
use super::place_of;

/// Records that share a place. Places fill unevenly, and one record that is lost takes a chain apart.
const WAYS: usize = 3;
/// Places at most: a frame has twice as many keys, and hardly any has as many.
const MAX_PLACES: u32 = 1 << 13;

/// A cache line of records, the youngest first.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Place {
    /// By what each digest is known besides its place; 0 where there is nothing.
    tags: [u32; WAYS],
    /// What stood before it; 0 where it was the first.
    previous: [Digest; WAYS],
}

const _: () = assert!(size_of::<Place>() == 64);

/// A table that forgets whatever others take the place of, what was asked for longest ago first.
#[derive(Debug)]
pub(super) struct Asked {
    places: Box<[Place]>,
}

impl Asked {
    /// A table that suits so many entries.
    pub(super) fn new(max_entries: u32) -> Asked {
        let places = max_entries.clamp(512, MAX_PLACES).next_power_of_two() as usize;
        Asked {
            places: vec![Place { tags: [0; WAYS], previous: [Digest(0); WAYS] }; places].into_boxed_slice(),
        }
    }

    pub(super) fn put(&mut self, digest: Digest, previous: Option<Digest>) {
        let place = self.place_of(digest);
        let (tag, place) = (tag(digest), &mut self.places[place]);
        // What is asked for again is known once.
        let old = place.tags.iter().position(|asked| *asked == tag).unwrap_or(WAYS - 1);
        place.tags[..=old].rotate_right(1);
        place.previous[..=old].rotate_right(1);
        place.tags[0] = tag;
        place.previous[0] = previous.unwrap_or(Digest(0));
    }

    /// Takes out what a digest continues; the outer `None` where it was not asked for.
    pub(super) fn take(&mut self, digest: Digest) -> Option<Option<Digest>> {
        let place = self.place_of(digest);
        let (tag, place) = (tag(digest), &mut self.places[place]);
        let way = place.tags.iter().position(|asked| *asked == tag)?;
        place.tags[way] = 0;
        Some(Some(place.previous[way]).filter(|previous| *previous != Digest(0)))
    }

    /// Has what is kept of a digest brought near.
    pub(super) fn prefetch(&self, digest: Digest) {
        prefetch(&self.places[self.place_of(digest)]);
    }

    fn place_of(&self, digest: Digest) -> usize {
        place_of(digest) & (self.places.len() - 1)
    }
}

/// Other bits of a digest than those of its place, never all 0.
fn tag(digest: Digest) -> u32 {
    ((digest.0 >> 96) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u128) -> Digest {
        Digest(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn a_request_of_a_part_of_the_table_is_remembered_as_a_whole() {
        let mut asked = Asked::new(MAX_PLACES);
        for request in 0..100 {
            let digests = (request << 32..).map(digest).take(1 << 10).collect::<Vec<_>>();
            let mut previous = None;
            for &digest in &digests {
                asked.put(digest, previous);
                previous = Some(digest);
            }
            assert_eq!(asked.take(digests[0]), Some(None));
            let lost = digests.windows(2).filter(|pair| asked.take(pair[1]) != Some(Some(pair[0]))).count();
            assert!(lost <= 2, "{lost} of {} are lost", digests.len());
            assert_eq!(asked.take(digests[1]), None, "each is taken once");
        }
    }

    #[test]
    fn what_is_asked_for_again_takes_no_second_record() {
        let mut asked = Asked::new(1024);
        let digests = (1..=3).map(|n| Digest(n << 96)).collect::<Vec<_>>();
        for round in 0..3 {
            digests.iter().for_each(|digest| asked.put(*digest, Some(Digest(round))));
        }
        digests.iter().for_each(|digest| assert_eq!(asked.take(*digest), Some(Some(Digest(2)))));
    }
}
