//! Guards: chunks that are read in place, and stay in place while they are.

use std::fmt;
use std::ops::{Deref, Index};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};

use maru_proto::{KeyDigest, LocationRecord};

use crate::error::{Error, Result, Revocation};
use crate::lease;
use crate::memory::{Region, Stale};
use crate::shared::Shared;

/// The chunks of one acquire: a few allocations however many there are.
pub(crate) struct PinGroup {
    shared: Arc<Shared>,
    /// Where [`Pins`](crate::pins::Pins) knows it.
    place: OnceLock<usize>,
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
    /// The registration that is pinned.
    generation: u32,
    /// Guards of this chunk.
    guards: AtomicU32,
    /// The number of the session's connections that its pin belongs to.
    link: AtomicU32,
    /// The server does not have the pin any more.
    is_revoked: AtomicBool,
}

impl Chunk {
    /// Counts one guard more, unless there is none left and the pin is being released.
    fn add_guard(&self) -> bool {
        let one_more = |guards: u32| (guards > 0).then(|| guards + 1);
        self.guards.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
}

// SAFETY: a chunk's bytes are in a mapping that whoever has the chunk keeps (a group, or what becomes one), and nobody writes
// into them while the pin lasts, which is until the last guard is dropped; so any thread may read them, and any may be the
// one that drops the guard.
unsafe impl Send for Chunk {}
// SAFETY: as above; what changes is atomic, and everything else is never changed.
unsafe impl Sync for Chunk {}

/// Chunks that were found and pinned, on their way into a group; their pins are released if they do not get there.
pub(crate) struct Found<'a> {
    shared: &'a Arc<Shared>,
    /// The number of the connections that the pins came by.
    link: u32,
    chunks: Vec<Chunk>,
    regions: Vec<Arc<Region>>,
}

impl<'a> Found<'a> {
    /// Room for some chunks whose pins come by these connections.
    pub(crate) fn new(shared: &'a Arc<Shared>, link: u32, chunks: usize) -> Found<'a> {
        Found { shared, link, chunks: Vec::with_capacity(chunks.min(1024)), regions: Vec::new() }
    }

    /// Adds a chunk that the server has pinned. `false` when its region is gone, or its bytes are not what was stored.
    ///
    /// # Errors
    /// [`Error::Map`](crate::Error::Map) and those of any request. Nothing is added then, and the pin is the caller's to
    /// release.
    pub(crate) fn add(&mut self, digest: KeyDigest, location: &LocationRecord) -> Result<bool> {
        let region_id = location.region_id.get();
        // Chunks of one prefix lie in few regions, mostly in the one seen last.
        if self.regions.last().is_none_or(|region| region.id() != region_id) {
            let Some(region) = self.shared.readable_region(region_id)? else {
                return Ok(false);
            };
            self.regions.push(region);
        }
        let region = self.regions.last().expect("a region was pushed if there was none");
        let (offset, length) = region.range(location.offset.get(), location.length.get())?;
        let looked = region.before_read(location, offset, length);
        if looked == Ok(true) {
            self.shared.pages_invalidated.fetch_add(1, Ordering::Relaxed);
        }
        if looked == Err(Stale) {
            let (page_index, generation) = (region.page_of(offset), location.generation.get());
            tracing::error!(
                %digest, region_id, page_index, generation,
                "the bytes of a chunk are not those that were stored, so it is taken for missing; is the pool coherent?"
            );
            self.shared.stale_chunks.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        self.chunks.push(Chunk {
            digest,
            start: NonNull::new(region.at(offset)).expect("a mapping is not at address 0"),
            length,
            region_id,
            page_index: region.page_of(offset),
            generation: location.generation.get(),
            guards: AtomicU32::new(1),
            link: AtomicU32::new(self.link),
            is_revoked: AtomicBool::new(false),
        });
        Ok(true)
    }

    /// The guards of what was found.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] when the session has gone on on other connections: the pins are released then.
    pub(crate) fn into_prefix(mut self) -> Result<Prefix> {
        let group = PinGroup {
            shared: Arc::clone(self.shared),
            place: OnceLock::new(),
            chunks: std::mem::take(&mut self.chunks).into(),
            _regions: std::mem::take(&mut self.regions).into(),
        };
        let prefix = Prefix { group: Arc::new(group), taken: 0 };
        let is_current = self.shared.pins.adopt(self.link, &prefix.group);
        if is_current { Ok(prefix) } else { Err(Error::ConnectionLost) }
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        release(self.shared, &self.chunks);
    }
}

/// Lets go of one guard of each chunk, and of the pins of those that have none left.
fn release(shared: &Shared, chunks: &[Chunk]) {
    let released = chunks.iter().filter(|chunk| {
        let last = chunk.guards.fetch_sub(1, Ordering::Release) == 1;
        if last {
            // Whatever other threads read through their guards, they read before the page can be written again.
            fence(Ordering::Acquire);
        }
        // What the server does not have can't be released, and may be another guard's of the same key.
        last && !chunk.is_revoked.load(Ordering::Relaxed)
    });
    shared.release(released.map(|chunk| (chunk.link.load(Ordering::Relaxed), chunk.digest)));
}

impl PinGroup {
    /// The bytes of a chunk.
    ///
    /// # Panics
    /// When the chunk is known to be revoked.
    fn bytes(&self, index: usize) -> &[u8] {
        let chunk = &self.chunks[index];
        assert!(!chunk.is_revoked.load(Ordering::Relaxed), "{}", Error::Revoked(Revocation::Released));
        // SAFETY: the bytes lie in a mapping that the group keeps. They were complete before the chunk became visible, and
        // are not written while it is pinned, which the caller's guard sees to.
        unsafe { std::slice::from_raw_parts(chunk.start.as_ptr(), chunk.length) }
    }

    /// Whether the pins of chunks were there until now.
    fn check(&self, chunks: &[Chunk]) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        // What was read of them was read before the clock is. A processor that reads it early is no matter: the lease ends a
        // good while before the server may release a pin.
        fence(Ordering::Acquire);
        let is_certain = self.shared.held_pins_at(lease::now());
        // In this order: what is revoked is, before the lease goes on.
        if chunks.iter().any(|chunk| chunk.is_revoked.load(Ordering::Acquire)) {
            return Err(Error::Revoked(Revocation::Released));
        }
        if is_certain { Ok(()) } else { Err(Error::Revoked(Revocation::InDoubt)) }
    }

    /// Where the group is known from now on.
    pub(crate) fn adopted_as(&self, place: usize) {
        self.place.set(place).expect("a group is adopted once");
    }

    /// One guard more of each chunk that has any and is not revoked; their pins belong to these connections from now on.
    pub(crate) fn guards(group: &Arc<PinGroup>, link: u32) -> impl Iterator<Item = ChunkRef> {
        let held = group.chunks.iter().enumerate();
        let held = held.filter(|(_, chunk)| !chunk.is_revoked.load(Ordering::Relaxed));
        let in_use = held.filter(move |(_, chunk)| {
            let is_in_use = chunk.add_guard();
            if is_in_use {
                chunk.link.store(link, Ordering::Relaxed);
            }
            is_in_use
        });
        in_use.map(|(index, _)| ChunkRef { group: Arc::clone(group), index })
    }
}

impl Drop for PinGroup {
    fn drop(&mut self) {
        if let Some(place) = self.place.get() {
            self.shared.pins.forget(*place);
        }
    }
}

/// One chunk, readable as a slice; nobody can delete, evict or overwrite it while this or a clone of it lives, and the server
/// knows that it does.
///
/// The server releases the pins of an instance that it has heard nothing of for its grace period: its host was cut off, or it was
/// stopped for so long. Where that can't happen, or may be overlooked, the slice is all that is needed. That is so on the host of
/// the server as long as nothing is stopped there, neither this process nor the machine. Elsewhere read by
/// [`ChunkRef::copy_to`] or [`ChunkRef::read`], or call [`ChunkRef::check`] *after* the bytes were used, and before anything is
/// made of them that others see. What was checked was right; what can't be checked is [`Error::Revoked`], and is like a miss.
///
/// To deref a guard of which it is known that the server has released its pin panics, since its bytes may be of another chunk by
/// now. A slice that was taken before is not protected by that.
pub struct ChunkRef {
    group: Arc<PinGroup>,
    index: usize,
}

impl ChunkRef {
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

    /// Bytes of the chunk, also of one that is revoked.
    #[expect(clippy::len_without_is_empty, reason = "a chunk has at least a byte")]
    pub fn len(&self) -> usize {
        self.chunk().length
    }

    /// Where the chunk's first byte is, also of one that is revoked.
    pub fn as_ptr(&self) -> *const u8 {
        self.chunk().start.as_ptr()
    }

    /// Whether everything that was read of the chunk so far is what was stored. Costs a look at the clock; the server is asked
    /// only where it keeps no pins for as long as 100 ms after a lost connection (`--grace`, [`Config::no_grace`]), and waited
    /// for then.
    ///
    /// [`Config::no_grace`]: crate::Config::no_grace
    ///
    /// # Errors
    /// [`Error::Revoked`]: the server has released the pin, or may have.
    pub fn check(&self) -> Result<()> {
        self.group.check(std::slice::from_ref(self.chunk()))
    }

    /// Whether [`ChunkRef::check`] fails at the moment.
    pub fn is_revoked(&self) -> bool {
        self.check().is_err()
    }

    /// Copies the chunk, and checks that these were its bytes all the while.
    ///
    /// # Errors
    /// [`Error::Revoked`]; what was copied means nothing then.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_to(&self, target: &mut [u8]) -> Result<()> {
        assert_eq!(target.len(), self.len(), "the target has the length of the chunk");
        // SAFETY: as many bytes lie in a mapping that the group keeps, and nothing that is written to lies in it. Should they be
        // written meanwhile, which takes a revoked pin, the check below has nobody look at the copy.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), target.as_mut_ptr(), target.len()) };
        self.check()
    }

    /// Hands out what `read` makes of the bytes, and checks that these were the chunk's all the while.
    ///
    /// `read` is not called where they are not to begin with. They can change under it where it takes longer than a quarter of
    /// the grace period, or there is none, and the server is out of reach for that time: what it does has to be of a kind that can
    /// be thrown away, whatever the bytes.
    ///
    /// # Errors
    /// [`Error::Revoked`]; what was made of the bytes is dropped then.
    pub fn read<R>(&self, read: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.check()?;
        let chunk = self.chunk();
        // SAFETY: the bytes lie in a mapping that the group keeps, and are not written while the pin lasts, which it did a moment
        // ago: where there is a lease, the server releases no pin sooner than a quarter of the grace period after it. A reader
        // that takes longer is told that the bytes may change under it, as those of any shared memory.
        let made = read(unsafe { std::slice::from_raw_parts(chunk.start.as_ptr(), chunk.length) });
        self.check()?;
        Ok(made)
    }

    /// The server does not have the pin any more; the number of chunks that were not revoked before.
    pub(crate) fn revoke(&self) -> u64 {
        u64::from(!self.chunk().is_revoked.swap(true, Ordering::Release))
    }

    /// The registration that is pinned.
    pub(crate) fn generation(&self) -> u32 {
        self.chunk().generation
    }

    /// What leads to the chunk and does not hold it.
    pub fn downgrade(&self) -> WeakChunkRef {
        WeakChunkRef { group: Arc::downgrade(&self.group), index: self.index }
    }

    fn chunk(&self) -> &Chunk {
        &self.group.chunks[self.index]
    }
}

/// Leads to a chunk as long as somebody else has a guard of it.
#[derive(Clone)]
pub struct WeakChunkRef {
    group: Weak<PinGroup>,
    index: usize,
}

impl WeakChunkRef {
    /// A guard of the chunk, if there is one already, and not a revoked one; one more does not cost a request.
    pub fn upgrade(&self) -> Option<ChunkRef> {
        let group = self.group.upgrade()?;
        let chunk = &group.chunks[self.index];
        let is_held = !chunk.is_revoked.load(Ordering::Acquire) && chunk.add_guard();
        is_held.then_some(ChunkRef { group, index: self.index })
    }

    /// Whether there is a guard of the chunk at this moment.
    pub fn is_held(&self) -> bool {
        let group = self.group.upgrade();
        group.is_some_and(|group| group.chunks[self.index].guards.load(Ordering::Relaxed) > 0)
    }
}

impl fmt::Debug for WeakChunkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakChunkRef")
    }
}

impl Deref for ChunkRef {
    type Target = [u8];

    /// The chunk's bytes.
    ///
    /// # Panics
    /// When the guard is known to be revoked: see [`ChunkRef`].
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
        release(&self.group.shared, &self.group.chunks[self.index..=self.index]);
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
///
/// Where the server may be out of reach for a while, [`Prefix::check`] says after the bytes were used whether they were right.
pub struct Prefix {
    group: Arc<PinGroup>,
    /// Chunks before this one were moved out.
    taken: usize,
}

impl Prefix {
    /// Chunks found.
    pub fn len(&self) -> usize {
        self.group.chunks.len()
    }

    /// Whether not even the first key was found.
    pub fn is_empty(&self) -> bool {
        self.group.chunks.is_empty()
    }

    /// Whether everything that was read of the chunks so far is what was stored, as [`ChunkRef::check`] says it of one.
    ///
    /// # Errors
    /// [`Error::Revoked`] where that is not certain of all of them; [`Prefix::get`] and [`ChunkRef::check`] tell which.
    pub fn check(&self) -> Result<()> {
        self.group.check(&self.group.chunks)
    }

    /// The chunks' bytes, in the order of the keys. Like [`Prefix::index`] and the deref of a [`ChunkRef`], it panics over a
    /// chunk that is known to be revoked, and lets a slice go on that was taken before.
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
        release(&self.group.shared, &self.group.chunks[self.taken..]);
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
