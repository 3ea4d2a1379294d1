//! What was asked for and not found a moment ago, with what it continues: most of it is stored next.

use super::super::Digest;
use super::place_of;

/// Records that share a place. Places fill unevenly, and one record that is lost takes a chain apart.
const WAYS: usize = 4;
/// Records at most, as a frame has no more keys.
const MAX_RECORDS: u32 = 1 << 14;

/// What was asked for, and what stood before it.
type Record = (Digest, Option<Digest>);

/// A table that forgets whatever others take the place of, what was asked for longest ago first.
#[derive(Debug)]
pub(super) struct Asked {
    /// The youngest record first.
    places: Box<[[Record; WAYS]]>,
}

impl Asked {
    /// A table that suits so many entries.
    pub(super) fn new(max_entries: u32) -> Asked {
        let records = max_entries.clamp(1024, MAX_RECORDS).next_power_of_two();
        Asked { places: vec![[(Digest(0), None); WAYS]; records as usize / WAYS].into_boxed_slice() }
    }

    pub(super) fn put(&mut self, digest: Digest, previous: Option<Digest>) {
        let place = self.place(digest);
        // What is asked for again is known once.
        let old = place.iter().position(|(asked, _)| *asked == digest).unwrap_or(WAYS - 1);
        place[..=old].rotate_right(1);
        place[0] = (digest, previous);
    }

    /// Takes out what a digest continues; the outer `None` where it was not asked for.
    pub(super) fn take(&mut self, digest: Digest) -> Option<Option<Digest>> {
        let record = self.place(digest).iter_mut().find(|(asked, _)| *asked == digest)?;
        Some(std::mem::replace(record, (Digest(0), None)).1)
    }

    fn place(&mut self, digest: Digest) -> &mut [Record; WAYS] {
        let place = place_of(digest) & (self.places.len() - 1);
        &mut self.places[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u128) -> Digest {
        Digest(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn a_request_of_a_part_of_the_table_is_remembered_as_a_whole() {
        let mut asked = Asked::new(1 << 14);
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
        let digests = (1..=4).map(|n| Digest(n << 96)).collect::<Vec<_>>();
        for round in 0..3 {
            digests.iter().for_each(|digest| asked.put(*digest, Some(Digest(round))));
        }
        digests.iter().for_each(|digest| assert_eq!(asked.take(*digest), Some(Some(Digest(2)))));
    }
}
