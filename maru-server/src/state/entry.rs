//! The directory's record for one digest: one cache line.

use std::num::NonZeroU32;

use super::Digest;
use super::eviction::{EvictionPolicy, Policy};

/// One entry, exactly a cache line.
///
/// The fields take 36 bytes; the other 28 are for what the eviction policy has to know of an entry, so that a touch costs
/// no second line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct KvEntry {
    pub(super) digest: Digest,
    /// The slot, not the id, of the region.
    pub(super) region: u32,
    pub(super) page: u32,
    /// Bytes. That it is never 0 is what tells a vacant slot of the slab from an entry without a word of its own.
    pub(super) length: NonZeroU32,
    /// Pins of all instances together.
    pub(super) pin_count: u32,
    /// The number of the registration.
    pub(super) generation: u32,
    /// What the eviction policy keeps.
    pub(super) mark: <Policy as EvictionPolicy>::Mark,
}

const _: () = assert!(size_of::<KvEntry>() == 64);
const _: () = assert!(size_of::<Option<KvEntry>>() == 64);

#[cfg(test)]
mod tests {
    use slab::Slab;

    use super::*;

    #[test]
    fn a_slot_of_the_slab_is_a_cache_line() {
        let mut slab = Slab::with_capacity(2);
        let slots = [7, 8].map(|key| {
            let length = NonZeroU32::MIN;
            slab.insert(KvEntry {
                digest: Digest(key),
                region: 0,
                page: 0,
                length,
                pin_count: 0,
                generation: 0,
                mark: Default::default(),
            })
        });
        let [first, second] = slots.map(|slot| &raw const slab[slot]);
        assert_eq!(second.addr() - first.addr(), 64);
        assert_eq!(first.addr() % 64, 0);
    }
}
