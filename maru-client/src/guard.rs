//! Guards: chunks that are read in place, and stay in place while they are.

use std::fmt;
use std::ops::{Deref, Index};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use maru_proto::KeyDigest;

use crate::memory::Region;
use crate::shared::Shared;

/// The chunks of one acquire, in one allocation however many there are.
struct PinGroup {
    shared: Arc<Shared>,
    chunks: Box<[Chunk]>,
    /// The mappings that the chunks lie in.
    _regions: Box<[Arc<Region>]>,
}

struct Chunk {
    digest: KeyDigest,
    start: NonNull<u8>,
    length: usize,
    region_id: u32,
    page_index: u32,
    /// Whether the chunk leans on an explicit pin instead of having its own.
    leans: bool,
    /// Guards of this chunk.
    guards: AtomicU32,
}

// SAFETY: a chunk's bytes are in a mapping that the group keeps, and nobody writes into them while the pin lasts, which is
// until the last guard is dropped; so any thread may read them, and any may be the one that drops the guard.
unsafe impl Send for PinGroup {}
// SAFETY: as above; everything else in the group is shared between threads by its own type.
unsafe impl Sync for PinGroup {}

/// A chunk that was found and pinned, on its way into a group.
pub(crate) struct FoundChunk {
    pub(crate) digest: KeyDigest,
    pub(crate) region: Arc<Region>,
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) leans: bool,
}

impl PinGroup {
    fn new(shared: Arc<Shared>, found: Vec<FoundChunk>) -> Arc<PinGroup> {
        let mut regions: Vec<Arc<Region>> = Vec::new();
        let chunks = found
            .into_iter()
            .map(|found| {
                let start =
                    NonNull::new(found.region.at(found.offset)).expect("a mapping is not at address 0");
                let chunk = Chunk {
                    digest: found.digest,
                    start,
                    length: found.length,
                    region_id: found.region.id(),
                    page_index: found.region.page_of(found.offset),
                    leans: found.leans,
                    guards: AtomicU32::new(1),
                };
                // Chunks of one prefix lie in few regions, mostly in the one seen last.
                if !regions.iter().rev().any(|region| Arc::ptr_eq(region, &found.region)) {
                    regions.push(found.region);
                }
                chunk
            })
            .collect();
        Arc::new(PinGroup { shared, chunks, _regions: regions.into() })
    }

    fn bytes(&self, index: usize) -> &[u8] {
        let chunk = &self.chunks[index];
        // SAFETY: the bytes lie in a mapping that the group keeps. They were complete before the chunk became visible, and
        // are not written while it is pinned, which the caller's guard sees to.
        unsafe { std::slice::from_raw_parts(chunk.start.as_ptr(), chunk.length) }
    }

    /// Lets go of one guard of each chunk in the range.
    fn release(&self, range: std::ops::Range<usize>) {
        let mut leaning = Vec::new();
        let released = self.chunks[range].iter().filter(|chunk| {
            let last = chunk.guards.fetch_sub(1, Ordering::Release) == 1;
            if last {
                // Whatever other threads read through their guards, they read before the page can be written again.
                fence(Ordering::Acquire);
                if chunk.leans {
                    leaning.push(chunk.digest);
                }
            }
            last && !chunk.leans
        });
        self.shared.release(released.map(|chunk| chunk.digest));
        for digest in leaning {
            let pins = self.shared.explicit.straighten(digest);
            self.shared.release((0..pins).map(|_| digest));
        }
    }
}

/// One chunk, readable as a slice; nobody can delete, evict or overwrite it while this or a clone of it lives.
pub struct ChunkRef {
    group: Arc<PinGroup>,
    index: usize,
}

impl ChunkRef {
    /// The guard of a single chunk.
    pub(crate) fn single(shared: Arc<Shared>, found: FoundChunk) -> ChunkRef {
        ChunkRef { group: PinGroup::new(shared, vec![found]), index: 0 }
    }

    /// The region that the chunk lies in.
    pub fn region_id(&self) -> u32 {
        self.chunk().region_id
    }

    /// The index of the chunk's page in its region.
    pub fn page_index(&self) -> u32 {
        self.chunk().page_index
    }

    /// The digest of the chunk's key.
    pub fn digest(&self) -> KeyDigest {
        self.chunk().digest
    }

    fn chunk(&self) -> &Chunk {
        &self.group.chunks[self.index]
    }
}

impl Deref for ChunkRef {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.group.bytes(self.index)
    }
}

impl AsRef<[u8]> for ChunkRef {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for ChunkRef {
    fn clone(&self) -> ChunkRef {
        self.chunk().guards.fetch_add(1, Ordering::Relaxed);
        ChunkRef { group: Arc::clone(&self.group), index: self.index }
    }
}

impl Drop for ChunkRef {
    fn drop(&mut self) {
        self.group.release(self.index..self.index + 1);
    }
}

impl fmt::Debug for ChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkRef")
            .field("digest", &self.digest())
            .field("region_id", &self.region_id())
            .field("page_index", &self.page_index())
            .field("length", &self.len())
            .finish()
    }
}

/// The chunks that an acquire found: those of the longest prefix of its keys. Dropping it releases all of them at once;
/// a [`ChunkRef`] taken out of it keeps its own.
pub struct Prefix {
    group: Arc<PinGroup>,
    /// Chunks before this one were moved out.
    taken: usize,
}

impl Prefix {
    pub(crate) fn new(shared: Arc<Shared>, found: Vec<FoundChunk>) -> Prefix {
        Prefix { group: PinGroup::new(shared, found), taken: 0 }
    }

    /// Chunks found.
    pub fn len(&self) -> usize {
        self.group.chunks.len()
    }

    /// Whether not even the first key was found.
    pub fn is_empty(&self) -> bool {
        self.group.chunks.is_empty()
    }

    /// The chunks' bytes, in the order of the keys.
    pub fn iter(&self) -> PrefixIter<'_> {
        PrefixIter { prefix: self, next: 0 }
    }

    /// A guard of one chunk, independent of the prefix.
    pub fn get(&self, index: usize) -> Option<ChunkRef> {
        let chunk = self.group.chunks.get(index)?;
        chunk.guards.fetch_add(1, Ordering::Relaxed);
        Some(ChunkRef { group: Arc::clone(&self.group), index })
    }
}

impl Index<usize> for Prefix {
    type Output = [u8];

    fn index(&self, index: usize) -> &[u8] {
        self.group.bytes(index)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({} chunks)", self.len())
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        self.group.release(self.taken..self.group.chunks.len());
    }
}

/// The bytes of a prefix's chunks.
#[derive(Debug)]
pub struct PrefixIter<'a> {
    prefix: &'a Prefix,
    next: usize,
}

impl<'a> Iterator for PrefixIter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let index = self.next;
        (index < self.prefix.len()).then(|| {
            self.next += 1;
            self.prefix.group.bytes(index)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.prefix.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for PrefixIter<'_> {}

impl<'a> IntoIterator for &'a Prefix {
    type Item = &'a [u8];
    type IntoIter = PrefixIter<'a>;

    fn into_iter(self) -> PrefixIter<'a> {
        self.iter()
    }
}

impl IntoIterator for Prefix {
    type Item = ChunkRef;
    type IntoIter = PrefixIntoIter;

    fn into_iter(self) -> PrefixIntoIter {
        PrefixIntoIter { prefix: self }
    }
}

/// The guards of a prefix, one by one; those not taken are released with it.
#[derive(Debug)]
pub struct PrefixIntoIter {
    prefix: Prefix,
}

impl Iterator for PrefixIntoIter {
    type Item = ChunkRef;

    fn next(&mut self) -> Option<ChunkRef> {
        let index = self.prefix.taken;
        (index < self.prefix.len()).then(|| {
            // The guard that the prefix had passes to the one that is handed out.
            self.prefix.taken += 1;
            ChunkRef { group: Arc::clone(&self.prefix.group), index }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.prefix.len() - self.prefix.taken;
        (left, Some(left))
    }
}

impl ExactSizeIterator for PrefixIntoIter {}
