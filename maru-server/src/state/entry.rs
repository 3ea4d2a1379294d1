//! The directory's record for one digest: one cache line.

use std::num::NonZeroU32;

use super::Digest;

/// One entry, exactly a cache line.
///
/// The fields take 36 bytes; the other 28 are kept free for what an eviction policy has to know of an entry (two links
/// and a word of its own), so that a touch costs no second line.
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
}

const _: () = assert!(size_of::<KvEntry>() == 64);
const _: () = assert!(size_of::<Option<KvEntry>>() == 64);
