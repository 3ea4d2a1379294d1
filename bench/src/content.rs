//! What the bytes of a chunk must be, given its id: so that a reader needs no second copy to tell right from wrong.

use std::ops::Range;

use crate::mix::mix;

/// Bytes of a word, the unit that content is made of.
const WORD: usize = size_of::<u64>();

/// Words that are compared before anybody looks which of them differ: one page of memory.
const BLOCK: usize = 4096 / WORD;

/// Bytes of a probe of a sparse chunk.
const PROBE: usize = 64;

/// Probes of a sparse chunk between its head and its tail.
const INNER_PROBES: u64 = 8;

/// How much of each chunk is written and verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// Every byte.
    Whole,
    /// The head, the tail and a few probes, at places that differ from chunk to chunk.
    Sparse,
}

/// The content of one chunk.
///
/// A word is a bijection of the sum of the chunk's seed and the word's index. So a word from another place of the
/// same chunk always differs, and a run of words from another chunk matches only if the two seeds, 64 mixed bits
/// each, differ by exactly the shift. Within a wrong word a byte is right by chance once in 256 times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    seed: u64,
}

impl Content {
    /// The content of the chunk with this id.
    pub(crate) const fn of(chunk: u64) -> Content {
        Content { seed: mix(chunk) }
    }

    /// Writes the content from byte `offset` of the chunk on into `bytes`; both are whole words.
    pub(crate) fn fill(self, offset: usize, bytes: &mut [u8]) {
        let words = whole_words_mut(bytes);
        for (word, expected) in words.iter_mut().zip(self.words(offset)) {
            *word = expected.to_le_bytes();
        }
    }

    /// How many of `bytes` are not what the chunk has from byte `offset` on; both are whole words.
    pub(crate) fn wrong_bytes(self, offset: usize, bytes: &[u8]) -> u64 {
        let mut wrong = 0;
        for (block, at) in whole_words(bytes).chunks(BLOCK).zip((offset..).step_by(BLOCK * WORD)) {
            let differing = |(word, expected): (&[u8; WORD], u64)| u64::from_le_bytes(*word) ^ expected;
            let any = block.iter().zip(self.words(at)).map(differing).fold(0, |any, bits| any | bits);
            if any != 0 {
                wrong += block.iter().zip(self.words(at)).map(differing).map(nonzero_bytes).sum::<u64>();
            }
        }
        wrong
    }

    /// The ranges of a chunk of `length` bytes, which is at least one probe, that this coverage writes and verifies.
    /// Sparse ones may name the same bytes twice.
    pub(crate) fn ranges(
        self,
        coverage: Coverage,
        length: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let places = length / PROBE;
        let probe = |place: usize| place * PROBE..(place + 1) * PROBE;
        let (whole, sparse) = match coverage {
            Coverage::Whole => (Some(0..length), None),
            Coverage::Sparse => {
                let inner = (0..INNER_PROBES).map(move |n| self.seed.wrapping_add(n));
                let inner = inner.map(move |seed| usize::try_from(mix(seed)).unwrap_or(usize::MAX) % places);
                (None, Some([0, places - 1].into_iter().chain(inner).map(probe)))
            }
        };
        whole.into_iter().chain(sparse.into_iter().flatten())
    }

    /// The words from byte `offset` of the chunk on, without end.
    fn words(self, offset: usize) -> impl Iterator<Item = u64> + use<> {
        debug_assert!(offset.is_multiple_of(WORD), "content begins at whole words");
        let first = u64::try_from(offset / WORD).expect("a usize fits 64 bits");
        let first = self.seed.wrapping_add(first);
        (0u64..).map(move |index| {
            let word = first.wrapping_add(index).wrapping_mul(0xd6e8_feb8_6659_fd93);
            word ^ (word >> 32)
        })
    }
}

fn whole_words(bytes: &[u8]) -> &[[u8; WORD]] {
    let (words, rest) = bytes.as_chunks();
    debug_assert!(rest.is_empty(), "content is whole words");
    words
}

fn whole_words_mut(bytes: &mut [u8]) -> &mut [[u8; WORD]] {
    let (words, rest) = bytes.as_chunks_mut();
    debug_assert!(rest.is_empty(), "content is whole words");
    words
}

fn nonzero_bytes(word: u64) -> u64 {
    word.to_le_bytes().into_iter().map(|byte| u64::from(byte != 0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 3 * 4096 + 512;

    fn chunk(id: u64) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        Content::of(id).fill(0, &mut bytes);
        bytes
    }

    #[test]
    fn what_was_filled_is_right_from_any_offset() {
        let bytes = chunk(7);
        for offset in [0, 8, 4096, 4104, LENGTH - 8, LENGTH] {
            assert_eq!(Content::of(7).wrong_bytes(offset, &bytes[offset..]), 0, "from {offset}");
        }
        let mut tail = vec![0; LENGTH - 4104];
        Content::of(7).fill(4104, &mut tail);
        assert_eq!(tail, bytes[4104..]);
    }

    #[test]
    fn every_single_flipped_byte_is_counted() {
        let mut bytes = chunk(7);
        for at in 0..LENGTH {
            bytes[at] ^= 0x10;
            assert_eq!(Content::of(7).wrong_bytes(0, &bytes), 1, "byte {at}");
            bytes[at] ^= 0x10;
        }
    }

    #[test]
    fn the_bytes_of_another_chunk_are_wrong_in_every_word() {
        let bytes = chunk(8);
        for (index, word) in bytes.chunks(WORD).enumerate() {
            assert_ne!(Content::of(7).wrong_bytes(index * WORD, word), 0, "word {index}");
        }
    }

    #[test]
    fn shifted_bytes_are_wrong_in_every_word() {
        let bytes = chunk(7);
        for shift in [WORD, PROBE, 4096] {
            for (index, word) in bytes[shift..].chunks(WORD).enumerate() {
                assert_ne!(
                    Content::of(7).wrong_bytes(index * WORD, word),
                    0,
                    "word {index} shifted by {shift}"
                );
            }
        }
    }

    #[test]
    fn zeroes_are_wrong() {
        let right_by_chance = LENGTH / 64;
        let wrong = usize::try_from(Content::of(7).wrong_bytes(0, &[0; LENGTH])).unwrap();
        assert!((LENGTH - right_by_chance..=LENGTH).contains(&wrong), "{wrong} of {LENGTH}");
    }

    #[test]
    fn sparse_ranges_are_head_tail_and_probes_that_differ_by_chunk() {
        let ranges = |id| Content::of(id).ranges(Coverage::Sparse, 1 << 20).collect::<Vec<_>>();
        assert_eq!(ranges(7).len(), 10);
        assert_eq!(ranges(7)[0], 0..64);
        assert_eq!(ranges(7)[1], (1 << 20) - 64..1 << 20);
        assert!(ranges(7).iter().all(|range| range.len() == 64 && range.end <= 1 << 20));
        assert_eq!(ranges(7), ranges(7));
        assert_ne!(ranges(7)[2..], ranges(8)[2..]);
    }

    #[test]
    fn the_whole_range_is_every_byte() {
        assert!(Content::of(7).ranges(Coverage::Whole, 4096).eq(std::iter::once(0..4096)));
    }
}
