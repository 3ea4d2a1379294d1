//! The memory of the regions: what stands in each page, for its owner to write and for readers to look at.

use std::collections::BTreeMap;

/// A page of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) region: u32,
    pub(crate) page: u32,
}

/// What was written into a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// The key whose chunk it is; none while the chunk is half written.
    pub(crate) key: Option<usize>,
    /// The number of the write: no two are the same.
    pub(crate) write: u64,
}

/// The memory that there is: of every region from when it is made until it is released.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    regions: BTreeMap<u32, Region>,
    writes: u64,
}

#[derive(Debug)]
struct Region {
    page_size: u64,
    pages: Vec<Content>,
}

impl Memory {
    pub(crate) fn make(&mut self, region: u32, page_size: u64, pages: u32) {
        let pages = vec![Content { key: None, write: 0 }; pages as usize];
        let before = self.regions.insert(region, Region { page_size, pages });
        assert!(before.is_none(), "region {region} is made once");
    }

    pub(crate) fn release(&mut self, region: u32) {
        self.regions.remove(&region).expect("memory is released once, after it was made");
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The page at an offset of a region, if there is one.
    pub(crate) fn place(&self, region: u32, offset: u64) -> Option<Place> {
        let Region { page_size, pages } = self.regions.get(&region)?;
        let page = u32::try_from(offset / page_size).ok().filter(|_| offset.is_multiple_of(*page_size))?;
        ((page as usize) < pages.len()).then_some(Place { region, page })
    }

    /// Writes the chunk of a key, or half a chunk. `false` where the region is gone for everybody but the writer.
    pub(crate) fn write(&mut self, at: Place, key: Option<usize>) -> bool {
        self.writes += 1;
        let Some(region) = self.regions.get_mut(&at.region) else { return false };
        region.pages[at.page as usize] = Content { key, write: self.writes };
        true
    }

    /// What stands in a page, if its region is there.
    pub(crate) fn read(&self, at: Place) -> Option<Content> {
        self.regions.get(&at.region)?.pages.get(at.page as usize).copied()
    }
}
