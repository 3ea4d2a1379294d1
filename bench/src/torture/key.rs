//! The keys, and what lies under them.

use std::fmt;

use crate::content::Content;
use crate::mix::mix;

/// Keys of a chain, which is asked for from its beginning on.
pub(super) const CHAIN: u64 = 16;
/// Keys that each client has for itself.
pub(crate) const PRIVATE: u16 = 16;
/// Marks a key that one client has for itself.
const PRIVATE_MARK: u64 = 1 << 63;
/// Lengths are multiples of this: content is made of whole words.
const WORD: usize = 8;

/// A key. Its bytes, its chunk and the length of its chunk all follow from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    /// One of the keys that everybody stores and deletes.
    pub(super) fn shared(number: u64) -> Key {
        debug_assert!(number < PRIVATE_MARK, "shared keys are counted from 0");
        Key(number)
    }

    /// One of the keys that only the clients of one number, one after the other, store and delete.
    pub(super) fn private(client: u16, index: u16) -> Key {
        Key(PRIVATE_MARK | u64::from(client) << 16 | u64::from(index))
    }

    /// The key as it is given to maru.
    pub(super) fn bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// Bytes of the chunk, at most a page: a whole page for every other key, else anything.
    pub(super) fn length(self, page: usize) -> usize {
        let random = mix(!self.0);
        if random.is_multiple_of(2) {
            return page;
        }
        let words = usize::try_from(random >> 32).expect("32 bits fit") % (page / WORD);
        (words + 1) * WORD
    }

    /// Writes the part of the chunk that begins at byte `offset`, a multiple of 8.
    pub(super) fn fill(self, offset: usize, bytes: &mut [u8]) {
        Content::of(self.0).fill(offset, bytes);
    }

    /// How many of these bytes are not the chunk's; all of them where their number is wrong.
    pub(super) fn wrong_bytes(self, page: usize, bytes: &[u8]) -> u64 {
        if bytes.len() == self.length(page) {
            Content::of(self.0).wrong_bytes(0, bytes)
        } else {
            bytes.len().max(1) as u64
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & PRIVATE_MARK {
            0 => write!(f, "key {}", self.0),
            _ => write!(f, "private key {} of client {}", self.0 & 0xffff, (self.0 ^ PRIVATE_MARK) >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 64 << 10;

    #[test]
    fn chunks_have_all_lengths_up_to_a_page() {
        let lengths = (0..1000).map(|number| Key::shared(number).length(PAGE)).collect::<Vec<_>>();
        assert!(lengths.iter().all(|length| (WORD..=PAGE).contains(length) && length.is_multiple_of(WORD)));
        assert!(lengths.iter().filter(|length| **length == PAGE).count() > 400);
        assert!(lengths.iter().any(|length| *length < PAGE / 50));
    }

    #[test]
    fn the_chunk_of_another_key_and_a_part_of_the_chunk_are_wrong() {
        let key = (0..).map(Key::shared).find(|key| key.length(PAGE) == PAGE).unwrap();
        let mut bytes = vec![0; PAGE];
        key.fill(0, &mut bytes[..4096]);
        key.fill(4096, &mut bytes[4096..]);
        assert_eq!(key.wrong_bytes(PAGE, &bytes), 0);
        assert_ne!(Key::private(0, 0).wrong_bytes(PAGE, &bytes), 0);
        assert_eq!(key.wrong_bytes(PAGE, &bytes[8..]), PAGE as u64 - 8);
        assert_eq!(key.wrong_bytes(PAGE, &[]), 1, "no bytes at all are wrong too");
    }

    #[test]
    fn private_keys_are_nobody_elses() {
        assert_ne!(Key::private(1, 0), Key::private(0, 1));
        assert_eq!(Key::private(3, 7).to_string(), "private key 7 of client 3");
        assert_eq!(Key::shared(12).to_string(), "key 12");
    }
}
