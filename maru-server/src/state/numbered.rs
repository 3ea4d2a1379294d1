//! Things numbered from 1 up, no number twice: found by number in constant time, walked in order of number.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashMap;
use slab::Slab;

/// Holds things in slots that stay where they are for as long as the thing lives.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    slots: Slab<T>,
    /// From a number to its slot.
    index: HashMap<u32, u32, Scatter>,
    /// The numbers, ascending. New ones come last, so that only a removal moves any.
    order: Vec<u32>,
    last: u32,
    max: u32,
}

impl<T> Numbered<T> {
    /// Hands out numbers up to `max`.
    pub(super) fn new(max: u32) -> Numbered<T> {
        Numbered { slots: Slab::new(), index: HashMap::with_hasher(Scatter), order: Vec::new(), last: 0, max }
    }

    /// The number of the next thing, or `None` when all are used up.
    pub(super) fn next(&self) -> Option<u32> {
        (self.last < self.max).then(|| self.last + 1)
    }

    /// Adds what goes by the number that [`Numbered::next`] told.
    pub(super) fn insert(&mut self, thing: T) {
        self.last = self.next().expect("the caller has seen the next number");
        let slot = u32::try_from(self.slots.insert(thing)).expect("there are no more slots than numbers");
        self.index.insert(self.last, slot);
        self.order.push(self.last);
    }

    /// Goes on with this number, or a later one where it was handed out.
    pub(super) fn skip_to(&mut self, next: u32) {
        self.last = self.last.max(next.saturating_sub(1));
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let slot = self.index.remove(&number)?;
        let place = self.order.binary_search(&number).expect("every number of the index is in the order");
        self.order.remove(place);
        Some(self.slots.remove(slot as usize))
    }

    pub(super) fn slot(&self, number: u32) -> Option<u32> {
        self.index.get(&number).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.slot(number).map(|slot| self.at(slot))
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.slot(number).map(|slot| self.at_mut(slot))
    }

    /// What is in a slot that is known to be taken.
    pub(super) fn at(&self, slot: u32) -> &T {
        &self.slots[slot as usize]
    }

    /// What is in a slot that is known to be taken.
    pub(super) fn at_mut(&mut self, slot: u32) -> &mut T {
        &mut self.slots[slot as usize]
    }

    /// What has a number greater than `after`, in order of number.
    pub(super) fn after(&self, after: u32) -> impl Iterator<Item = &T> {
        let start = self.order.partition_point(|&number| number <= after);
        self.order[start..]
            .iter()
            .map(|number| self.get(*number).expect("every number of the order is indexed"))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// Hashes numbers that the server itself gives out, so nobody can aim a collision: one multiplication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter;

impl BuildHasher for Scatter {
    type Hasher = ScatterHasher;

    fn build_hasher(&self) -> ScatterHasher {
        ScatterHasher(0)
    }
}

/// The hasher of [`Scatter`].
#[derive(Debug)]
pub(crate) struct ScatterHasher(u64);

impl Hasher for ScatterHasher {
    fn write_u32(&mut self, number: u32) {
        // The product's high half depends on every bit of the number; folded onto the low half, both ends of the hash
        // are spread, as the table needs them.
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_number_is_never_given_twice() {
        let mut things = Numbered::new(3);
        things.insert('a');
        things.insert('b');
        assert_eq!(things.remove(2), Some('b'));
        assert_eq!(things.next(), Some(3));
        things.insert('c');
        assert_eq!(things.next(), None);
        assert_eq!((things.get(1), things.get(2), things.get(3)), (Some(&'a'), None, Some(&'c')));
    }

    #[test]
    fn things_are_walked_in_order_whatever_slots_they_have() {
        let mut things = Numbered::new(u32::MAX);
        for thing in 1..=6 {
            things.insert(thing);
        }
        // The slots of these two are taken again, the last first.
        things.remove(2);
        things.remove(5);
        things.insert(7);
        things.insert(8);
        assert!(things.after(0).eq(&[1, 3, 4, 6, 7, 8]));
        assert!(things.after(4).eq(&[6, 7, 8]));
        assert!(things.after(5).eq(&[6, 7, 8]));
        assert_eq!(things.after(8).count(), 0);
        assert_eq!(things.len(), 6);
    }

    #[test]
    fn strided_numbers_do_not_share_a_group_of_the_table() {
        for stride in [1, 2, 1 << 8, 1 << 16, 1 << 20] {
            let hashes = (0..1024u32).map(|i| Scatter.hash_one(i * stride));
            let low = hashes.map(|hash| hash & 1023).collect::<HashSet<_>>();
            assert!(low.len() > 400, "stride {stride} meets {} of 1024 places", low.len());
        }
    }
}
