//! The pages of one region: who has each of them, and which wait to be taken back.

/// Who has a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// The owner, to write into. In an orphan: nobody.
    Held,
    /// Nobody until the owner takes it back.
    Freed,
    /// The entry in this slot of the directory.
    Entry(u32),
}

const HELD: u32 = u32::MAX;
const FREED: u32 = u32::MAX - 1;

/// The page table.
#[derive(Debug)]
pub(super) struct Pages {
    /// [`HELD`], [`FREED`] or an entry's slot.
    table: Box<[u32]>,
    /// One bit per page, set where the page is freed.
    freed: Box<[u64]>,
    freed_count: u32,
    /// No word of `freed` before this one has a bit.
    first: usize,
}

impl Pages {
    /// All of them are held by the owner.
    pub(super) fn new(count: u32) -> Pages {
        Pages {
            table: vec![HELD; count as usize].into_boxed_slice(),
            freed: vec![0; count.div_ceil(u64::BITS) as usize].into_boxed_slice(),
            freed_count: 0,
            first: 0,
        }
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.table.len()).expect("the table was made for a u32 of pages")
    }

    pub(super) fn freed_count(&self) -> u32 {
        self.freed_count
    }

    pub(super) fn get(&self, page: u32) -> Page {
        match self.table[page as usize] {
            HELD => Page::Held,
            FREED => Page::Freed,
            slot => Page::Entry(slot),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Page)> {
        (0..self.count()).map(|page| (page, self.get(page)))
    }

    /// From a page on that is a multiple of 64: words of 64 pages, the first in the lowest bit, set where a page is held.
    pub(super) fn held_from(&self, first: u32) -> impl Iterator<Item = u64> {
        let rest = self.table.get(first as usize..).unwrap_or_default();
        rest.chunks(64)
            .map(|pages| pages.iter().rev().fold(0, |word, page| word << 1 | u64::from(*page == HELD)))
    }

    /// Gives a held page to an entry.
    pub(super) fn occupy(&mut self, page: u32, slot: u32) {
        debug_assert!(
            slot < FREED,
            "a slot is less than max_entries, and two values are kept for other ends"
        );
        self.table[page as usize] = slot;
    }

    /// The page's entry is gone: the page waits for its owner.
    pub(super) fn free(&mut self, page: u32) {
        let word = (page / u64::BITS) as usize;
        self.table[page as usize] = FREED;
        self.freed[word] |= 1 << (page % u64::BITS);
        self.freed_count += 1;
        self.first = self.first.min(word);
    }

    /// The page's entry is gone, and the page is with whoever owns the region.
    pub(super) fn vacate(&mut self, page: u32) {
        self.table[page as usize] = HELD;
    }

    /// Takes back the lowest freed page.
    pub(super) fn take_lowest(&mut self) -> Option<u32> {
        if self.freed_count == 0 {
            return None;
        }
        while self.freed[self.first] == 0 {
            self.first += 1;
        }
        let word = &mut self.freed[self.first];
        let page = u32::try_from(self.first).expect("there are fewer words than pages") * u64::BITS
            + word.trailing_zeros();
        *word &= *word - 1;
        self.freed_count -= 1;
        self.table[page as usize] = HELD;
        Some(page)
    }

    /// Panics where table and bits disagree.
    pub(super) fn check(&self) {
        for (page, state) in self.iter() {
            let bit = self.freed[(page / u64::BITS) as usize] >> (page % u64::BITS) & 1;
            assert_eq!(bit == 1, state == Page::Freed, "page {page} is {state:?}");
        }
        let bits = self.freed.iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(bits, self.freed_count, "freed pages are counted right");
        assert!(self.freed[..self.first.min(self.freed.len())].iter().all(|word| *word == 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_pages_come_back_lowest_first_and_once() {
        let mut pages = Pages::new(200);
        for page in [130, 7, 199, 64] {
            pages.occupy(page, page + 1000);
            pages.free(page);
        }
        assert_eq!(pages.take_lowest(), Some(7));
        assert_eq!(pages.take_lowest(), Some(64));
        // A lower one turns up between two takes.
        pages.occupy(3, 5);
        pages.free(3);
        pages.check();
        assert_eq!(std::iter::from_fn(|| pages.take_lowest()).collect::<Vec<_>>(), [3, 130, 199]);
        assert!(pages.iter().all(|(_, page)| page == Page::Held));
        pages.check();
    }

    #[test]
    fn a_page_is_with_exactly_one_holder() {
        let mut pages = Pages::new(2);
        assert_eq!(pages.get(1), Page::Held);
        pages.occupy(1, 0);
        assert_eq!(pages.get(1), Page::Entry(0));
        pages.free(1);
        assert_eq!((pages.get(1), pages.freed_count()), (Page::Freed, 1));
        pages.take_lowest();
        pages.occupy(1, 9);
        pages.vacate(1);
        assert_eq!((pages.get(1), pages.freed_count(), pages.take_lowest()), (Page::Held, 0, None));
    }
}
