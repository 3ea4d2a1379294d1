//! What was asked for and not found a moment ago, with what it continues: most of it is stored next.

use super::super::Digest;
use super::place_of;

/// Places at most, as a frame has no more keys.
const MAX_PLACES: u32 = 1 << 14;

/// A table that forgets whatever another takes the place of.
#[derive(Debug)]
pub(super) struct Asked {
    /// What was asked for, and what stood before it.
    places: Box<[(Digest, Option<Digest>)]>,
}

impl Asked {
    /// A table that suits so many entries.
    pub(super) fn new(max_entries: u32) -> Asked {
        let places = max_entries.clamp(64, MAX_PLACES).next_power_of_two();
        Asked { places: vec![(Digest(0), None); places as usize].into_boxed_slice() }
    }

    pub(super) fn put(&mut self, digest: Digest, previous: Option<Digest>) {
        let place = self.place(digest);
        self.places[place] = (digest, previous);
    }

    /// Takes out what a digest continues; the outer `None` where it was not asked for.
    pub(super) fn take(&mut self, digest: Digest) -> Option<Option<Digest>> {
        let place = self.place(digest);
        let (asked, previous) = self.places[place];
        (asked == digest).then(|| {
            self.places[place] = (Digest(0), None);
            previous
        })
    }

    fn place(&self, digest: Digest) -> usize {
        place_of(digest) & (self.places.len() - 1)
    }
}
