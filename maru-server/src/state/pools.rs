//! The pools: which extents of each are free, and how a new one is found.

use std::collections::BTreeMap;

use super::PoolId;

/// A pool to hand out.
#[derive(Clone, Copy, Debug)]
pub struct PoolSpec {
    /// Bytes; what exceeds a multiple of the granularity is left alone.
    pub size: u64,
    /// Every extent begins and ends at a multiple of this many bytes; at least 1.
    pub granularity: u64,
}

/// What a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// The pool.
    pub id: PoolId,
    /// Bytes.
    pub size: u64,
    /// Bytes in no extent.
    pub free: u64,
    /// Bytes of the largest extent that could be given out.
    pub largest_free: u64,
    /// Extents are multiples of this many bytes.
    pub granularity: u64,
}

/// One pool: first fit, lowest address first, neighbours joined as they become free.
#[derive(Debug)]
pub(super) struct Pool {
    size: u64,
    granularity: u64,
    free: u64,
    /// Free extents: from where they begin to their length. No two of them touch.
    extents: BTreeMap<u64, u64>,
}

impl Pool {
    pub(super) fn new(spec: PoolSpec) -> Pool {
        let size = spec.size - spec.size % spec.granularity;
        let extents = (size > 0).then_some((0, size)).into_iter().collect();
        Pool { size, granularity: spec.granularity, free: size, extents }
    }

    /// Takes an extent for `bytes`, at least 1: where it begins and its length.
    pub(super) fn take(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let length = bytes.checked_next_multiple_of(self.granularity)?;
        let (&offset, &free) = self.extents.iter().find(|(_, free)| **free >= length)?;
        self.extents.remove(&offset);
        if free > length {
            self.extents.insert(offset + length, free - length);
        }
        self.free -= length;
        Some((offset, length))
    }

    /// Takes this extent, if it is free.
    fn take_at(&mut self, offset: u64, length: u64) -> bool {
        let aligned = offset.is_multiple_of(self.granularity) && length.is_multiple_of(self.granularity);
        let Some((&start, &free)) = self.extents.range(..=offset).next_back() else { return false };
        let (Some(end), free_end) = (offset.checked_add(length), start + free) else { return false };
        if !aligned || length == 0 || end > free_end {
            return false;
        }
        self.extents.remove(&start);
        if start < offset {
            self.extents.insert(start, offset - start);
        }
        if end < free_end {
            self.extents.insert(end, free_end - end);
        }
        self.free -= length;
        true
    }

    /// Gives back an extent that was taken.
    pub(super) fn give_back(&mut self, offset: u64, length: u64) {
        self.free += length;
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &free)) = self.extents.range(..offset).next_back()
            && before + free == offset
        {
            start = before;
        }
        if let Some(free) = self.extents.remove(&end) {
            end += free;
        }
        self.extents.insert(start, end - start);
    }

    /// Whether there would be an extent for `bytes` if those `freed`, as (offset, length), were free too.
    fn would_fit(&self, bytes: u64, freed: impl Iterator<Item = (u64, u64)>) -> bool {
        let mut free =
            self.extents.iter().map(|(&offset, &length)| (offset, length)).chain(freed).collect::<Vec<_>>();
        free.sort_unstable();
        let (mut start, mut end) = (0, 0);
        free.into_iter().any(|(offset, length)| {
            if offset != end {
                start = offset;
            }
            end = offset + length;
            end - start >= bytes
        })
    }

    fn info(&self, id: PoolId) -> PoolInfo {
        PoolInfo {
            id,
            size: self.size,
            free: self.free,
            largest_free: self.extents.values().copied().max().unwrap_or(0),
            granularity: self.granularity,
        }
    }

    /// Panics unless the free extents and those `taken`, as (offset, length), are the pool, each byte once.
    pub(super) fn check(&self, taken: impl Iterator<Item = (u64, u64)>) {
        let free = self.extents.iter().map(|(&offset, &length)| (offset, length));
        let mut all = free.clone().chain(taken).collect::<Vec<_>>();
        all.sort_unstable();
        let mut end = 0;
        for (offset, length) in all {
            assert_eq!(offset, end, "extents follow each other without gap or overlap");
            assert!(length > 0 && length.is_multiple_of(self.granularity), "{length} bytes are an extent");
            end = offset + length;
        }
        assert_eq!(end, self.size, "free and taken extents make up the pool");
        let apart = free.clone().zip(free.clone().skip(1)).all(|((a, length), (b, _))| a + length < b);
        assert!(apart, "free neighbours are joined");
        assert_eq!(self.free, free.map(|(_, length)| length).sum::<u64>(), "free bytes are counted right");
    }
}

/// All pools, by id.
#[derive(Debug)]
pub(super) struct Pools(Vec<Pool>);

impl Pools {
    pub(super) fn new(specs: &[PoolSpec]) -> Pools {
        Pools(specs.iter().map(|spec| Pool::new(*spec)).collect())
    }

    /// One more pool, behind the others.
    pub(super) fn add(&mut self, spec: PoolSpec) {
        self.0.push(Pool::new(spec));
    }

    pub(super) fn contains(&self, id: PoolId) -> bool {
        self.0.len() > id.0 as usize
    }

    /// Takes an extent for `bytes` from this pool, or from the first that has one.
    pub(super) fn take(&mut self, bytes: u64, pool: Option<PoolId>) -> Option<(PoolId, u64, u64)> {
        self.ids().filter(|id| pool.is_none_or(|pool| pool == *id)).find_map(|id| {
            let (offset, length) = self.0[id.0 as usize].take(bytes)?;
            Some((id, offset, length))
        })
    }

    /// Whether this pool, or any, would have an extent for `bytes` if those `freed`, as (pool, offset, length), were
    /// free too.
    pub(super) fn would_fit(
        &self,
        bytes: u64,
        pool: Option<PoolId>,
        freed: &(impl Iterator<Item = (PoolId, u64, u64)> + Clone),
    ) -> bool {
        let mut asked = self.ids().zip(&self.0).filter(|(id, _)| pool.is_none_or(|pool| pool == *id));
        asked.any(|(id, pool)| {
            let of_pool = freed.clone().filter(|(pool, ..)| *pool == id);
            pool.would_fit(bytes, of_pool.map(|(_, offset, length)| (offset, length)))
        })
    }

    /// Takes this extent, if it is free.
    pub(super) fn take_at(&mut self, pool: PoolId, offset: u64, length: u64) -> bool {
        self.0.get_mut(pool.0 as usize).is_some_and(|pool| pool.take_at(offset, length))
    }

    pub(super) fn give_back(&mut self, pool: PoolId, offset: u64, length: u64) {
        self.0[pool.0 as usize].give_back(offset, length);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PoolInfo> {
        self.ids().zip(&self.0).map(|(id, pool)| pool.info(id))
    }

    /// Panics unless free extents and those `taken` make up the pools.
    pub(super) fn check(&self, taken: &[(PoolId, u64, u64)]) {
        for (id, pool) in self.ids().zip(&self.0) {
            let of_pool = taken.iter().filter(|(pool, ..)| *pool == id);
            pool.check(of_pool.map(|(_, offset, length)| (*offset, *length)));
        }
    }

    fn ids(&self) -> impl Iterator<Item = PoolId> + use<> {
        (0..u32::try_from(self.0.len()).expect("pools are named by a u32")).map(PoolId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(size: u64, granularity: u64) -> Pool {
        Pool::new(PoolSpec { size, granularity })
    }

    #[test]
    fn the_size_is_cut_to_whole_granules_and_extents_are_rounded_up() {
        let mut pool = pool(1050, 100);
        assert_eq!(pool.info(PoolId(0)).size, 1000);
        assert_eq!(pool.take(1), Some((0, 100)));
        assert_eq!(pool.take(101), Some((100, 200)));
        assert_eq!(pool.info(PoolId(0)).free, 700);
        assert_eq!(pool.take(701), None);
        assert_eq!(pool.take(u64::MAX), None);
    }

    #[test]
    fn the_lowest_extent_that_fits_is_taken() {
        let mut pool = pool(1000, 10);
        let [a, _, c, _] = [100, 100, 50, 100].map(|bytes| pool.take(bytes).unwrap());
        pool.give_back(c.0, c.1);
        pool.give_back(a.0, a.1);
        assert_eq!(pool.take(40), Some((0, 40)));
        assert_eq!(pool.take(60), Some((40, 60)));
        assert_eq!(pool.take(60), Some((350, 60)));
        assert_eq!(pool.take(50), Some((200, 50)));
    }

    #[test]
    fn an_extent_is_taken_where_it_was() {
        let mut pool = pool(1000, 10);
        assert!(pool.take_at(300, 100));
        for (offset, length) in
            [(300, 100), (390, 20), (290, 20), (305, 10), (600, 5), (0, 0), (990, 20), (10, u64::MAX)]
        {
            assert!(!pool.take_at(offset, length), "{length} bytes at {offset}");
        }
        assert!(pool.take_at(0, 300) && pool.take_at(900, 100));
        assert_eq!(pool.take(500), Some((400, 500)));
        assert_eq!(pool.info(PoolId(0)).free, 0);
        pool.give_back(300, 100);
        pool.check([(0, 300), (400, 500), (900, 100)].into_iter());
    }

    #[test]
    fn free_neighbours_become_one_extent() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut pool = pool(300, 100);
            let taken = [(); 3].map(|()| pool.take(100).unwrap());
            assert_eq!(pool.info(PoolId(0)).largest_free, 0);
            for index in order {
                pool.give_back(taken[index].0, taken[index].1);
            }
            assert_eq!(pool.info(PoolId(0)).largest_free, 300, "{order:?}");
        }
    }

    proptest! {
        #[test]
        fn free_and_taken_extents_always_make_up_the_pool(
            steps in prop::collection::vec((any::<bool>(), 1u64..400, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut pool = pool(2000, 16);
            let mut taken = Vec::new();
            for (take, bytes, which) in steps {
                if take {
                    taken.extend(pool.take(bytes));
                } else if !taken.is_empty() {
                    let (offset, length) = taken.swap_remove(which.index(taken.len()));
                    pool.give_back(offset, length);
                }
                pool.check(taken.iter().copied());
            }
        }
    }
}
