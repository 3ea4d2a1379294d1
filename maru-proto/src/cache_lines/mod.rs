//! Cache lines: written back to memory, and dropped, where the caches of one host don't follow what another writes.
//!
//! In memory that is not coherent between hosts, such as a CXL device without back-invalidation, a line that was written lies
//! in the writer's cache until it is evicted, and a line that was read lies in the reader's cache as it was then. So three
//! things are done by hand:
//!
//! * An owner **writes a page back** before the server is told of it: what others learn of is in memory.
//! * An owner also writes a page back that it gives up unstored, before the page can be anybody else's. A dirty line is
//!   evicted some time, and then overwrites what a later owner on another host wrote into the same memory.
//! * A reader **drops the lines** of a page before it first reads it under a new registration, after the server named the
//!   registration: the lines that it fetches from then on are those that the owner wrote back.
//!
//! An owner reads its own pages as they are: nobody else writes into them, so its cache has no line of them that is older than
//! memory.
//!
//! What this can't do: the lines that a process leaves dirty when it is killed, or when its session ended before its pages came
//! back, stay in the cache of its host, and are evicted whenever they are. Chunks that were stored are safe from that, and a
//! chunk that is hit later, in memory that was given on, is found out by its checksum.
//!
//! The instructions work on whole lines, and never lose a byte that this host wrote: those that drop a line write it back
//! first. So lines that a range shares with its neighbours, at an unaligned head or tail, do no harm to these.

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), path = "none.rs")]
mod instructions;

use std::sync::LazyLock;

use instructions::Instructions;

/// How this processor writes the lines of its caches back to memory, and drops them.
#[derive(Clone, Copy, Debug)]
pub struct CacheLines {
    instructions: Instructions,
    line: usize,
}

impl CacheLines {
    /// Those of this processor; `None` where there is no known way to write them back from a process.
    pub fn of_this_processor() -> Option<CacheLines> {
        static DETECTED: LazyLock<Option<CacheLines>> = LazyLock::new(|| {
            let (instructions, line) = Instructions::detect()?;
            line.is_power_of_two().then_some(CacheLines { instructions, line })
        });
        *DETECTED
    }

    /// Bytes of a line.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The instructions that write lines back and that drop them, for people.
    pub fn names(&self) -> (&'static str, &'static str) {
        self.instructions.names()
    }

    /// Has what this host wrote into these bytes in memory before whatever the caller does next.
    pub fn write_back(&self, bytes: &[u8]) {
        // SAFETY: a slice is readable memory.
        unsafe { self.write_back_at(bytes.as_ptr(), bytes.len()) };
    }

    /// Has the bytes come from memory when they are read next.
    pub fn invalidate(&self, bytes: &[u8]) {
        // SAFETY: a slice is readable memory.
        unsafe { self.invalidate_at(bytes.as_ptr(), bytes.len()) };
    }

    /// [`CacheLines::write_back`] for bytes that nobody may have a reference to.
    ///
    /// # Safety
    /// The bytes lie in memory that is mapped and readable.
    pub unsafe fn write_back_at(&self, start: *const u8, length: usize) {
        // SAFETY: a line that has a byte of the range lies on one page of memory with it, since lines are smaller than pages
        // and aligned; so it is mapped and readable as that byte is.
        unsafe { self.instructions.write_back(self.lines(start, length)) };
    }

    /// [`CacheLines::invalidate`] for bytes that nobody may have a reference to.
    ///
    /// # Safety
    /// The bytes lie in memory that is mapped and readable.
    pub unsafe fn invalidate_at(&self, start: *const u8, length: usize) {
        // SAFETY: as above.
        unsafe { self.instructions.invalidate(self.lines(start, length)) };
    }

    /// The beginnings of the lines that have bytes of a range.
    fn lines(&self, start: *const u8, length: usize) -> impl Iterator<Item = *const u8> + use<> {
        let before = start.addr() % self.line;
        let bytes = if length == 0 { 0 } else { before + length };
        let first = start.wrapping_sub(before);
        (0..bytes).step_by(self.line).map(move |offset| first.wrapping_add(offset))
    }
}

#[cfg(test)]
mod tests;
