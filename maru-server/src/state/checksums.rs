//! The checksums of one region's entries, beside the entries, whose cache line is full: by page, where there are any at all.

/// A checksum for each page that has an entry with one; 0 stands for none. As long as no entry of the region has one, it
/// takes no memory, and a look-up no second cache line.
#[derive(Debug, Default)]
pub(super) struct Checksums(Option<Box<[u32]>>);

impl Checksums {
    /// The checksum of a page's entry.
    pub(super) fn get(&self, page: u32) -> u32 {
        self.0.as_ref().map_or(0, |checksums| checksums[page as usize])
    }

    /// A page of a region with so many has a new entry.
    pub(super) fn set(&mut self, page: u32, checksum: u32, pages: u32) {
        if checksum == 0 && self.0.is_none() {
            return;
        }
        let checksums = self.0.get_or_insert_with(|| vec![0; pages as usize].into_boxed_slice());
        checksums[page as usize] = checksum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_checksums_there_is_no_array() {
        let mut checksums = Checksums::default();
        checksums.set(7, 0, 8);
        assert!(checksums.0.is_none() && checksums.get(7) == 0);
    }

    #[test]
    fn an_entry_without_a_checksum_does_not_inherit_that_of_the_one_before() {
        let mut checksums = Checksums::default();
        checksums.set(7, 0xABCD, 8);
        assert_eq!((checksums.get(7), checksums.get(6)), (0xABCD, 0));
        checksums.set(7, 0, 8);
        assert_eq!(checksums.get(7), 0);
    }
}
