//! The header of a pool where it lies: mapped, since neither devices nor huge pages are written in any other way.

use std::fs::File;
use std::io;

use maru_proto::{CacheLines, PoolHeader, PoolHeaderError, PoolUuid};
use memmap2::{Mmap, MmapMut, MmapOptions};

/// What a pool is known by: two of the same name hold the same only under the same incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolIdentity {
    /// Its name on all hosts.
    pub uuid: PoolUuid,
    /// How often what was in it has been discarded, and once more.
    pub incarnation: u64,
}

/// Maps the beginning of a file that holds a header.
pub(crate) fn map(file: &File, length: u64) -> io::Result<MmapMut> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: only the server that holds the pool's lock writes here; whoever else looks copies what it sees and goes by its
    // checksum. Nobody shortens the file while it is a pool's.
    unsafe { MmapOptions::new().len(length).map_mut(file) }
}

/// Maps the beginning of a file that may hold a header, for looking alone.
pub(crate) fn map_read_only(file: &File, length: u64) -> io::Result<Mmap> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: as for `map`: what a server changes meanwhile is copied, and told by its checksum.
    unsafe { MmapOptions::new().len(length).map(file) }
}

/// Removes the header, whatever there is of it.
pub(super) fn erase(area: &mut MmapMut) {
    for slot in erasing_order(area) {
        let at = slot * PoolHeader::SLOT_LEN;
        area[at..at + PoolHeader::LEN].fill(0);
        flush(area);
    }
}

/// What counts goes last, so that nothing older counts in its place meanwhile.
fn erasing_order(area: &[u8]) -> [usize; 2] {
    let counts = PoolHeader::read(area).map_or(0, |(_, slot)| slot);
    [1 - counts, counts]
}

fn flush(map: &MmapMut) {
    // Memory that is a device of its own has nothing behind it, and says so by an error.
    let _ = map.flush();
    // Other hosts may not see what is in the caches of this one.
    if let Some(lines) = CacheLines::of_this_processor() {
        lines.write_back(&map[..PoolHeader::SLOTS_LEN]);
    }
}

/// Has the header come from memory when it is read next, and not from what this host has seen of it.
fn drop_lines(area: &[u8]) {
    if let Some(lines) = CacheLines::of_this_processor() {
        lines.invalidate(&area[..PoolHeader::SLOTS_LEN]);
    }
}

/// A header, and the memory that it stands in.
#[derive(Debug)]
pub(crate) struct HeaderArea {
    map: MmapMut,
    header: PoolHeader,
    slot: usize,
}

impl HeaderArea {
    /// The header that is there.
    pub(crate) fn read(map: MmapMut) -> Result<HeaderArea, PoolHeaderError> {
        drop_lines(&map);
        let (header, slot) = PoolHeader::read(&map)?;
        Ok(HeaderArea { map, header, slot })
    }

    /// Makes the header of a new pool, in place of whatever is there.
    pub(crate) fn create(map: MmapMut) -> HeaderArea {
        let header = PoolHeader::new(PoolUuid::from_random(crate::random::secret()));
        let mut area = HeaderArea { map, header, slot: 1 };
        area.put(header);
        // The other slot may hold something later.
        let other = area.other_slot() * PoolHeader::SLOT_LEN;
        area.map[other..other + PoolHeader::LEN].fill(0);
        flush(&area.map);
        area
    }

    /// What the pool is known by.
    pub(crate) fn identity(&self) -> PoolIdentity {
        PoolIdentity { uuid: self.header.uuid(), incarnation: self.header.incarnation() }
    }

    /// Whether the memory still says what this server has written there: no other one, on another host, has taken it since.
    pub(crate) fn is_current(&self) -> bool {
        drop_lines(&self.map);
        PoolHeader::read(&self.map).is_ok_and(|(header, _)| header == self.header)
    }

    /// Whether this directory is the one that says what is in the pool.
    pub(crate) fn is_of(&self, deployment: [u8; 16]) -> bool {
        self.header.deployment() == deployment
    }

    /// Whether no directory has said yet what is in the pool.
    pub(crate) fn is_new(&self) -> bool {
        self.header.is_new()
    }

    /// From now on this directory says what is in the pool; what another one said is void.
    pub(crate) fn discard(&mut self, deployment: [u8; 16]) {
        self.put(self.header.discarded(deployment));
    }

    fn put(&mut self, header: PoolHeader) {
        let slot = self.other_slot();
        header.write(&mut self.map, slot);
        flush(&self.map);
        (self.header, self.slot) = (header, slot);
    }

    fn other_slot(&self) -> usize {
        1 - self.slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_older_counts_while_a_header_is_erased() {
        let older = PoolHeader::new(PoolUuid::from_random([7; 16]));
        for slot in [0, 1] {
            let mut area = MmapMut::map_anon(PoolHeader::SLOTS_LEN).unwrap();
            older.write(&mut area, 1 - slot);
            older.discarded([8; 16]).write(&mut area, slot);
            let order = erasing_order(&area);
            assert_eq!(order, [1 - slot, slot]);
            erase(&mut area);
            assert_eq!(PoolHeader::read(&area), Err(PoolHeaderError::Missing));
        }
    }
}
