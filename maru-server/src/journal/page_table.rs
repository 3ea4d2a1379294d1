//! The page table of one region in a file: who has each page, and which entry is in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use maru_proto::PoolUuid;
use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FORMAT, JournalError, damaged, failed, map};
use crate::files::rounded;
use crate::pool::PoolIdentity;
use crate::state::{Digest, InstanceNumber, PoolId, RegionId, RegionInfo, SavedEntry, SavedRegion};

const MAGIC: [u8; 8] = *b"MARUPAGE";

/// The region is being made: nobody knows of it. What a file begins as.
const MAKING: u32 = 0;
const OWNED: u32 = 1;
const ORPHAN: u32 = 2;
const RETIRED: u32 = 3;

/// The page is with whoever owns the region. What a page begins as.
const HELD: u32 = 0;
const FREED: u32 = 1;
/// The page holds an entry: the low bits, under those of the sum over its fields.
const ENTRY: u32 = 2;
const SUM: u32 = !3;

/// What is known of the region. The state is written last, and alone changes.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Head {
    fixed: Fixed,
    /// Of what is fixed.
    crc: u32,
    state: AtomicU32,
    reserved: [u8; 16],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    format: u32,
    region: u32,
    page_size: u64,
    pool_offset: u64,
    extent: u64,
    /// The pool that the region lies in, and what it was then.
    uuid: [u8; 16],
    incarnation: u64,
    pages: u32,
    owner: u32,
}

/// What is known of one page, in half a cache line. The state is written last.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Record {
    digest: [u8; 16],
    length: u32,
    generation: u32,
    /// The checksum of the entry's bytes; 0 for none.
    checksum: u32,
    /// [`HELD`], [`FREED`], or [`ENTRY`] with 30 bits of the sum of the fields before it, the region and the page.
    state: AtomicU32,
}

const HEAD: usize = size_of::<Head>();
const RECORD: usize = size_of::<Record>();
const _: () = assert!(HEAD == 96 && RECORD == 32);

/// The page table of a region, mapped.
#[derive(Debug)]
pub struct PageTable {
    map: MmapMut,
    region: u32,
}

impl PageTable {
    /// Makes the table of a region that is being made. All pages are held.
    pub(super) fn create(path: &Path, region: &RegionInfo, pool: PoolIdentity) -> io::Result<PageTable> {
        let file = open(OpenOptions::new().create_new(true), path)?;
        let bytes = rounded(&file, bytes_of(region.pages))?;
        ftruncate(&file, bytes)?;
        // A full file system is an error here, and never a signal later.
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        let mut table = PageTable { map: map(&file, bytes)?, region: region.id.0 };
        let fixed = Fixed {
            magic: MAGIC,
            format: FORMAT,
            region: region.id.0,
            page_size: region.page_size,
            pool_offset: region.pool_offset,
            extent: region.extent,
            uuid: pool.uuid.to_bytes(),
            incarnation: pool.incarnation,
            pages: region.pages,
            owner: region.owner.map_or(0, |owner| owner.0),
        };
        let head = table.head();
        (head.fixed, head.crc) = (fixed, fixed.sum());
        Ok(table)
    }

    /// Opens the table of a region, if the region was committed and not retired. Which of the pools it lies in, is the
    /// caller's to find out.
    pub(super) fn open(
        path: &Path,
        id: RegionId,
    ) -> Result<Option<(PageTable, SavedRegion, PoolIdentity)>, JournalError> {
        let file = match open(&mut OpenOptions::new(), path) {
            Ok(file) => file,
            // The memory is made first, and removed last.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path)(error)),
        };
        let bytes = file.metadata().map_err(failed(path))?.len();
        if bytes < HEAD as u64 {
            // It was being made.
            return Ok(None);
        }
        // Looked at before it is mapped: what it says decides how much memory is brought in.
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).map_err(failed(path))?;
        let head = Head::read_from_bytes(&head).expect("as many bytes were read");
        let state = head.state.load(Ordering::Acquire);
        let is_sound = head.crc == head.fixed.sum() && head.fixed.region == id.0;
        let head = head.fixed;
        if matches!(state, MAKING | RETIRED) {
            return Ok(None);
        }
        if head.magic != MAGIC {
            return damaged(path, "it does not begin as a page table does");
        }
        if head.format != FORMAT {
            return Err(JournalError::Version { path: path.to_owned(), found: head.format });
        }
        if !is_sound || !matches!(state, OWNED | ORPHAN) {
            return damaged(path, "its head is not what was written");
        }
        let needed = bytes_of(head.pages);
        if needed > bytes {
            return damaged(path, "it is too short");
        }
        // A file that is longer, as whoever damages one can make it at no cost, is not mapped to its end.
        let mapped = rounded(&file, needed).map_err(failed(path))?.min(bytes);
        let mut table = PageTable { map: map(&file, mapped).map_err(failed(path))?, region: id.0 };
        let mut region = SavedRegion {
            id,
            owner: (state == OWNED).then_some(InstanceNumber(head.owner)),
            page_size: head.page_size,
            pages: head.pages,
            pool: PoolId(0),
            pool_offset: head.pool_offset,
            extent: head.extent,
            freed: Vec::new(),
            entries: Vec::new(),
        };
        for (page, record) in (0..region.pages).zip(table.records()) {
            match record.state.load(Ordering::Acquire) {
                HELD => {}
                FREED => region.freed.push(page),
                state if state == record.entry_state(id.0, page) => region.entries.push(SavedEntry {
                    page,
                    digest: Digest::from(record.digest),
                    length: record.length,
                    generation: record.generation,
                    checksum: record.checksum,
                }),
                _ => return damaged(path, format!("the record of page {page} is not what was written")),
            }
        }
        let uuid = PoolUuid::from_bytes(head.uuid);
        Ok(Some((table, region, PoolIdentity { uuid, incarnation: head.incarnation })))
    }

    /// The region is there, and its owner's.
    pub(super) fn commit(&mut self) {
        self.head().state.store(OWNED, Ordering::Release);
    }

    /// The region's owner is gone.
    pub(super) fn disown(&mut self) {
        self.head().state.store(ORPHAN, Ordering::Release);
    }

    /// The region is no more.
    pub(super) fn retire(&mut self) {
        self.head().state.store(RETIRED, Ordering::Release);
    }

    /// A page that was held holds an entry.
    pub(super) fn store(&mut self, entry: &SavedEntry) {
        let region = self.region;
        let record = self.record(entry.page);
        record.digest = entry.digest.0.to_le_bytes();
        record.length = entry.length;
        record.generation = entry.generation;
        record.checksum = entry.checksum;
        record.state.store(record.entry_state(region, entry.page), Ordering::Release);
    }

    /// A page waits for its owner.
    pub(super) fn free(&mut self, page: u32) {
        self.record(page).state.store(FREED, Ordering::Release);
    }

    /// A page is with whoever owns the region.
    pub(super) fn hold(&mut self, page: u32) {
        self.record(page).state.store(HELD, Ordering::Release);
    }

    fn head(&mut self) -> &mut Head {
        Head::mut_from_bytes(&mut self.map[..HEAD]).expect("a mapping is aligned, and longer than a head")
    }

    fn records(&mut self) -> &mut [Record] {
        let whole = (self.map.len() - HEAD) / RECORD * RECORD;
        let records = &mut self.map[HEAD..HEAD + whole];
        <[Record]>::mut_from_bytes(records).expect("records are aligned behind the head")
    }

    fn record(&mut self, page: u32) -> &mut Record {
        let at = HEAD + page as usize * RECORD;
        Record::mut_from_bytes(&mut self.map[at..at + RECORD]).expect("records are aligned behind the head")
    }
}

impl Fixed {
    fn sum(&self) -> u32 {
        crc32fast::hash(self.as_bytes())
    }
}

impl Record {
    /// The state of a page that holds the entry that is written here.
    fn entry_state(&self, region: u32, page: u32) -> u32 {
        let mut bytes = [0; 36];
        bytes[..16].copy_from_slice(&self.digest);
        let words = [self.length, self.generation, self.checksum, region, page];
        for (place, word) in bytes[16..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        crc32fast::hash(&bytes) & SUM | ENTRY
    }
}

/// Bytes of the table of a region with so many pages.
fn bytes_of(pages: u32) -> u64 {
    HEAD as u64 + u64::from(pages) * RECORD as u64
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.read(true).write(true).mode(0o600).open(path)
}
