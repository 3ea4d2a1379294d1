//! A set of small numbers that gives its lowest in a few steps, however large it is.

const WORD: u32 = u64::BITS;

/// A hierarchical bitmap: a bit of each level says whether a word of the level below has one.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// The lowest level has one bit a number, the highest is one word.
    levels: Vec<Box<[u64]>>,
}

impl Bitmap {
    /// The set of all numbers below `count`.
    pub(super) fn full(count: u32) -> Bitmap {
        let mut levels = Vec::new();
        let mut bits = count;
        loop {
            let words = bits.div_ceil(WORD).max(1);
            let mut level = vec![u64::MAX; words as usize].into_boxed_slice();
            let unused = words * WORD - bits;
            level[words as usize - 1] = u64::MAX.checked_shr(unused).unwrap_or(0);
            levels.push(level);
            if words == 1 {
                return Bitmap { levels };
            }
            bits = words;
        }
    }

    /// The lowest number in the set.
    pub(super) fn first(&self) -> Option<u32> {
        let mut number = 0;
        for level in self.levels.iter().rev() {
            let word = level[number as usize];
            if word == 0 {
                return None;
            }
            number = number * WORD + word.trailing_zeros();
        }
        Some(number)
    }

    /// Adds a number below the count that the set was made with.
    pub(super) fn insert(&mut self, mut number: u32) {
        for level in &mut self.levels {
            let word = &mut level[(number / WORD) as usize];
            let was_empty = *word == 0;
            *word |= 1 << (number % WORD);
            if !was_empty {
                return;
            }
            number /= WORD;
        }
    }

    /// Takes a number out.
    pub(super) fn remove(&mut self, mut number: u32) {
        for level in &mut self.levels {
            let word = &mut level[(number / WORD) as usize];
            *word &= !(1 << (number % WORD));
            if *word != 0 {
                return;
            }
            number /= WORD;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Bitmap;

    proptest! {
        #[test]
        fn gives_the_lowest_like_a_sorted_set(
            count in 1u32..6000, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..300),
        ) {
            let mut bitmap = Bitmap::full(count);
            let mut model = (0..count).collect::<BTreeSet<_>>();
            for (insert, index) in steps {
                let number = u32::try_from(index.index(count as usize)).unwrap();
                if insert {
                    bitmap.insert(number);
                    model.insert(number);
                } else {
                    let lowest = model.pop_first();
                    prop_assert_eq!(bitmap.first(), lowest);
                    lowest.into_iter().for_each(|lowest| bitmap.remove(lowest));
                    bitmap.remove(number);
                    model.remove(&number);
                }
                prop_assert_eq!(bitmap.first(), model.first().copied());
            }
        }
    }

    #[test]
    fn every_level_can_empty_and_fill_again() {
        let count = 64 * 64 * 2 + 1;
        let mut bitmap = Bitmap::full(count);
        for number in 0..count {
            assert_eq!(bitmap.first(), Some(number));
            bitmap.remove(number);
        }
        assert_eq!(bitmap.first(), None);
        bitmap.insert(count - 1);
        assert_eq!(bitmap.first(), Some(count - 1));
        assert_eq!(Bitmap::full(0).first(), None);
    }
}
