//! The policy on entries that are nothing but slots: who goes first.

use super::expected_reuse::Mark;
use super::*;

/// Entries of two groups, by slot.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Option<Slot>>,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    key: u32,
    digest: Digest,
    mark: Mark,
    group: Group,
    is_pinned: bool,
    generation: u32,
}

impl Table {
    fn at(&self, slot: u32) -> &Slot {
        self.slots[slot as usize].as_ref().unwrap()
    }

    fn at_mut(&mut self, slot: u32) -> &mut Slot {
        self.slots[slot as usize].as_mut().unwrap()
    }
}

impl Entries<Mark> for Table {
    fn mark(&self, slot: u32) -> &Mark {
        &self.at(slot).mark
    }

    fn mark_mut(&mut self, slot: u32) -> &mut Mark {
        &mut self.at_mut(slot).mark
    }

    fn digest(&self, slot: u32) -> Digest {
        self.at(slot).digest
    }

    fn generation(&self, slot: u32) -> u32 {
        self.at(slot).generation
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.at(slot).is_pinned
    }

    fn group(&self, slot: u32) -> Option<Group> {
        Some(self.at(slot).group)
    }

    fn find(&self, digest: Digest) -> Option<u32> {
        let found =
            self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.digest == digest))?;
        Some(u32::try_from(found).unwrap())
    }

    fn holds(&self, slot: u32, generation: u32) -> bool {
        let slot = self.slots.get(slot as usize).and_then(Option::as_ref);
        slot.is_some_and(|slot| slot.generation == generation)
    }
}

/// A cache with two groups.
struct Cache {
    policy: ExpectedReuse,
    table: Table,
    groups: [Group; 2],
}

fn digest(key: u32) -> Digest {
    Digest(u128::from(key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
}

impl Cache {
    fn new(max_entries: u32) -> Cache {
        let mut policy = ExpectedReuse::new(max_entries);
        let groups = [policy.open_group(), policy.open_group()];
        Cache { policy, table: Table::default(), groups }
    }

    /// Asks for keys that continue each other, and stores those that are missing.
    fn request(&mut self, keys: &[u32]) {
        self.ask(keys);
        self.store(keys, 0);
    }

    fn ask(&mut self, keys: &[u32]) {
        let mut chain = Chain::of(keys.len());
        for key in keys.iter().copied().map(digest) {
            match self.table.find(key) {
                Some(slot) => self.policy.touch(&mut self.table, slot, &chain),
                None => self.policy.miss(&mut self.table, key, &chain),
            }
            chain.advance(key);
        }
    }

    fn store(&mut self, keys: &[u32], group: usize) {
        let mut chain = Chain::of(keys.len());
        for &key in keys {
            let digest = digest(key);
            if self.table.find(digest).is_none() {
                self.table.generation += 1;
                let generation = self.table.generation;
                let (mark, group) = (Mark::default(), self.groups[group]);
                let slot = Slot { key, digest, mark, group, is_pinned: false, generation };
                let vacant = self.table.slots.iter().position(Option::is_none);
                let place = vacant.unwrap_or_else(|| {
                    self.table.slots.push(None);
                    self.table.slots.len() - 1
                });
                self.table.slots[place] = Some(slot);
                self.policy.insert(&mut self.table, u32::try_from(place).unwrap(), &chain);
            }
            chain.advance(digest);
        }
    }

    fn set_pinned(&mut self, key: u32, is_pinned: bool) {
        let slot = self.table.find(digest(key)).unwrap();
        self.table.at_mut(slot).is_pinned = is_pinned;
        if !is_pinned {
            self.policy.unpin(&mut self.table, slot);
        }
    }

    fn remove(&mut self, key: u32) {
        let slot = self.table.find(digest(key)).unwrap();
        self.policy.remove(&mut self.table, slot);
        self.table.slots[slot as usize] = None;
    }

    /// Evicts from the first group; the key that goes.
    fn evict(&mut self) -> Option<u32> {
        let slot = self.policy.victim(&mut self.table, self.groups[0])?;
        let key = self.table.at(slot).key;
        self.remove(key);
        self.check();
        Some(key)
    }

    fn check(&self) {
        let slots = (0..).zip(&self.table.slots).filter(|(_, slot)| slot.is_some());
        self.policy.check(&self.table, slots.map(|(slot, _)| slot));
    }
}

#[test]
fn a_chain_goes_from_its_end() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2, 3, 4]);
    let gone = std::iter::from_fn(|| cache.evict()).collect::<Vec<_>>();
    assert_eq!(gone, [4, 3, 2, 1]);
}

#[test]
fn without_evidence_the_chain_goes_that_was_asked_for_longest_ago() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2]);
    cache.request(&[3, 4]);
    cache.ask(&[1, 2]);
    assert_eq!([cache.evict(), cache.evict()], [Some(4), Some(3)]);
    assert_eq!([cache.evict(), cache.evict()], [Some(2), Some(1)]);
}

#[test]
fn what_is_pinned_stays_until_it_is_not() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2]);
    cache.request(&[3, 4]);
    cache.set_pinned(2, true);
    assert_eq!([cache.evict(), cache.evict()], [Some(4), Some(3)]);
    cache.check();
    cache.set_pinned(2, false);
    assert_eq!([cache.evict(), cache.evict(), cache.evict()], [Some(2), Some(1), None]);
}

#[test]
fn a_pinned_leaf_that_gets_a_successor_is_found_again() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2]);
    cache.set_pinned(2, true);
    assert_eq!(cache.evict(), Some(1), "it is all that may go");
    cache.request(&[1, 2, 3]);
    cache.set_pinned(2, false);
    cache.check();
    assert!([cache.evict(), cache.evict(), cache.evict()].iter().all(Option::is_some));
}

#[test]
fn an_inner_entry_goes_where_its_group_has_no_leaf() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2]);
    cache.ask(&[1, 2, 3]);
    cache.store(&[1, 2, 3], 1);
    // The first was touched since it got its successor.
    assert_eq!([cache.evict(), cache.evict(), cache.evict()], [Some(2), Some(1), None]);
}

#[test]
fn what_somebody_deletes_leaves_no_trace_in_the_lists() {
    let mut cache = Cache::new(64);
    cache.request(&[1, 2, 3, 4]);
    cache.remove(2);
    cache.check();
    assert_eq!(
        [cache.evict(), cache.evict(), cache.evict(), cache.evict()],
        [Some(1), Some(4), Some(3), None]
    );
}

/// Chains of four keys, every other of which is continued by the next request but nine.
fn learnt() -> Cache {
    let mut cache = Cache::new(64);
    for n in 0..4000u32 {
        let first = 10 * n;
        cache.request(&[first, first + 1, first + 2, first + 3]);
        if let Some(before) = n.checked_sub(10).filter(|before| before % 2 == 0) {
            let first = 10 * before;
            cache.request(&[first, first + 1, first + 2, first + 4, first + 5]);
        }
        while cache.table.slots.iter().flatten().count() > 64 {
            cache.evict().unwrap();
        }
    }
    cache
}

#[test]
fn what_never_comes_back_is_not_kept() {
    let cache = learnt();
    let ends = cache.table.slots.iter().flatten().filter(|slot| matches!(slot.key % 10, 3 | 5)).count();
    assert!(ends <= 4, "{ends} ends of requests, of which none came back");
}

#[test]
fn what_is_stored_long_after_it_was_asked_for_is_as_new_as_it_was_then() {
    let mut cache = Cache::new(64);
    let keys = [1, 2, 3];
    cache.ask(&keys);
    // So much is asked for in between that the table of what was asked for knows none of it.
    (0..100).for_each(|n| cache.ask(&[1000 + 3 * n, 1001 + 3 * n, 1002 + 3 * n]));
    cache.store(&keys, 0);
    cache.request(&[4, 5, 6]);
    let classes =
        |keys: [u32; 3]| keys.map(|key| cache.table.mark(cache.table.find(digest(key)).unwrap()).class());
    assert_eq!(classes(keys), classes([4, 5, 6]));
}
