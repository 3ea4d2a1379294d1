//! The index from a digest to its entry's slot: open addressing that never grows, never rehashes, and can be asked to
//! have its memory brought near ahead of a batch.
//!
//! A bucket holds a slot and 32 bits of the hash, so that a look-up of an absent digest reads entries only when those
//! bits agree by chance. Removal shifts the buckets behind it back: there are no tombstones, and a table under churn for
//! ever is as good as a fresh one. Memory is touched only as entries come, 8 bytes a bucket, at most three quarters of
//! the buckets used.

use super::Digest;

/// A bucket: the slot plus one in the low half, the tag in the high half; 0 when empty.
type Bucket = u64;

/// The buckets, a power of two of them.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Box<[Bucket]>,
    len: usize,
}

/// Where a digest belongs.
#[derive(Clone, Copy)]
struct Home {
    position: usize,
    tag: u32,
}

impl Index {
    /// An index with room for `max_entries`, all that it is ever given.
    pub(super) fn new(max_entries: u32) -> Index {
        let buckets = (max_entries as usize * 4 / 3 + 1).next_power_of_two();
        // Zeroed memory comes from the kernel page by page, as it is touched.
        Index { buckets: vec![0; buckets].into_boxed_slice(), len: 0 }
    }

    /// Digests in the index.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot of a digest, among those with its tag the one that `is_it` says is the one.
    pub(super) fn find(&self, digest: Digest, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.position(digest, is_it).map(|position| slot(self.buckets[position]))
    }

    /// The first slot whose tag is that of the digest: nearly always its own, if it has one.
    pub(super) fn candidate(&self, digest: Digest) -> Option<u32> {
        self.find(digest, |_| true)
    }

    /// Has the first bucket that a look-up reads brought near.
    pub(super) fn prefetch(&self, digest: Digest) {
        prefetch(&self.buckets[self.home(digest).position]);
    }

    /// Adds a digest that is not in the index.
    pub(super) fn insert(&mut self, digest: Digest, slot: u32) {
        assert!(self.len < self.buckets.len(), "there are never more entries than the index was made for");
        let home = self.home(digest);
        let mut position = home.position;
        while self.buckets[position] != 0 {
            position = self.next(position);
        }
        self.buckets[position] = u64::from(home.tag) << 32 | (u64::from(slot) + 1);
        self.len += 1;
    }

    /// Takes a digest out, if `is_it` knows its slot; `digest_of` tells the digest in a slot.
    pub(super) fn remove(
        &mut self,
        digest: Digest,
        is_it: impl Fn(u32) -> bool,
        digest_of: impl Fn(u32) -> Digest,
    ) -> Option<u32> {
        let mut hole = self.position(digest, is_it)?;
        let removed = slot(self.buckets[hole]);
        // Whatever stands behind the hole and could not be found across it moves into it.
        let mut position = self.next(hole);
        while self.buckets[position] != 0 {
            let home = self.home(digest_of(slot(self.buckets[position]))).position;
            if self.distance(home, position) >= self.distance(hole, position) {
                self.buckets[hole] = self.buckets[position];
                hole = position;
            }
            position = self.next(position);
        }
        self.buckets[hole] = 0;
        self.len -= 1;
        Some(removed)
    }

    fn position(&self, digest: Digest, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let home = self.home(digest);
        let mut position = home.position;
        // Ends: a quarter of the buckets is always empty.
        while self.buckets[position] != 0 {
            let bucket = self.buckets[position];
            if tag(bucket) == home.tag && is_it(slot(bucket)) {
                return Some(position);
            }
            position = self.next(position);
        }
        None
    }

    #[expect(clippy::cast_possible_truncation, reason = "the parts of the hash are cut out on purpose")]
    fn home(&self, digest: Digest) -> Home {
        let hash = mix(digest);
        // The buckets are at most 2^33, so position and tag share a bit at worst.
        Home { position: (hash as usize) & (self.buckets.len() - 1), tag: (hash >> 32) as u32 }
    }

    fn next(&self, position: usize) -> usize {
        (position + 1) & (self.buckets.len() - 1)
    }

    /// Steps from one position on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.buckets.len() - 1)
    }
}

/// Both halves of a digest, multiplied into each other: a caller may bring digests of its own, and those need not be
/// even in every bit.
fn mix(digest: Digest) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are cut out on purpose")]
    let (low, high) = (digest.0 as u64, (digest.0 >> 64) as u64);
    let product = u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ 0xD1B5_4A32_D192_ED03);
    #[expect(clippy::cast_possible_truncation, reason = "the halves are cut out on purpose")]
    let folded = product as u64 ^ (product >> 64) as u64;
    folded.wrapping_add(low)
}

fn tag(bucket: Bucket) -> u32 {
    (bucket >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn slot(bucket: Bucket) -> u32 {
    (bucket as u32) - 1
}

/// Has the processor bring a value near, without waiting for it.
pub(super) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing into the program and never faults; the address is a valid one besides.
        unsafe { _mm_prefetch::<_MM_HINT_T0>((&raw const *value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_index_under_churn_keeps_its_size_and_finds_everything() {
        let max = 12_000u32;
        let mut index = Index::new(max);
        let buckets = index.buckets.len();
        // The slot of a digest is its number, here and below.
        let digest = |n: u32| Digest(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
        (0..max).for_each(|n| index.insert(digest(n), n));
        for n in 0..200_000 {
            assert_eq!(index.remove(digest(n), |slot| slot == n, digest), Some(n));
            index.insert(digest(n + max), n + max);
        }
        assert_eq!((index.buckets.len(), index.len()), (buckets, max as usize));
        assert!((200_000..200_000 + max).all(|n| index.find(digest(n), |slot| slot == n) == Some(n)));
        assert!((0..200_000).all(|n| index.find(digest(n), |slot| slot == n).is_none()));
    }

    #[test]
    fn digests_that_differ_in_few_bits_do_not_crowd() {
        let mut index = Index::new(4096);
        // Counters in the low half, and in the high half only: what a careless caller might bring.
        (0..2048).for_each(|n| index.insert(Digest(u128::from(n)), n));
        (2048..4096).for_each(|n| index.insert(Digest(u128::from(n) << 64), n));
        let digest = |n: u32| if n < 2048 { Digest(u128::from(n)) } else { Digest(u128::from(n) << 64) };
        let far = (0..4096).map(|n| {
            let position = index.position(digest(n), |slot| slot == n).unwrap();
            index.distance(index.home(digest(n)).position, position)
        });
        assert!(far.max().unwrap() < 64);
    }

    proptest! {
        /// Against a plain map, with few homes so that runs of buckets are long and wrap around.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), 0u32..24), 1..300)) {
            let digest = |n: u32| Digest(u128::from(n) << 100);
            let mut index = Index::new(24);
            let mut map = HashMap::new();
            for (insert, n) in steps {
                if insert && !map.contains_key(&n) {
                    index.insert(digest(n), n);
                    map.insert(n, ());
                } else {
                    let removed = index.remove(digest(n), |slot| slot == n, digest);
                    prop_assert_eq!(removed.is_some(), map.remove(&n).is_some());
                }
                prop_assert_eq!(index.len(), map.len());
                for n in 0..24 {
                    let found = index.find(digest(n), |slot| slot == n);
                    prop_assert_eq!(found, map.get(&n).map(|()| n));
                }
            }
        }
    }
}
