//! The invariants, checked by walking everything: for tests, not for service.

use std::collections::HashMap;

use super::State;
use super::eviction::EvictionPolicy;
use super::pages::Page;

impl State {
    /// Walks the whole state and panics where an invariant does not hold. Takes a time that grows with everything in
    /// it.
    ///
    /// # Panics
    /// When the state is broken, saying how.
    pub fn check(&mut self) {
        self.directory.check(self.limits.max_entries);
        self.instances.check();
        let mut taken = Vec::new();
        self.regions.check(self.limits.max_entries, &mut taken);
        self.pools.check(&taken);
        self.check_pages();
        self.check_pins();
        self.check_owners();
        self.check_eviction();
    }

    /// A page holds at most one entry, an entry lies inside one page of one region, and the two name each other.
    fn check_pages(&self) {
        for (slot, entry) in self.directory.iter() {
            let region = self.regions.at(entry.region);
            assert_eq!(region.pages.get(entry.page), Page::Entry(slot), "the page of {entry:?} names it");
            assert!(u64::from(entry.length.get()) <= region.page_size, "{entry:?} fits into a page");
        }
        for region in self.regions.iter() {
            let info = region.info();
            let (mut entries, mut bytes) = (0, 0);
            for (page, state) in region.pages.iter() {
                if let Page::Entry(slot) = state {
                    let entry = self.directory.at(slot);
                    let same = self.regions.at(entry.region).id == region.id && entry.page == page;
                    assert!(same, "page {page} of {info:?} names {entry:?}, which is elsewhere");
                    entries += 1;
                    bytes += u64::from(entry.length.get());
                }
            }
            assert_eq!((info.entries, info.entry_bytes), (entries, bytes), "{info:?} is counted right");
        }
    }

    /// The pins of an entry are those of all instances.
    fn check_pins(&self) {
        let mut pins = HashMap::<u32, u32>::new();
        for (_, instance) in self.instances.iter() {
            for (entry, count) in instance.ledger.iter() {
                *pins.entry(entry).or_default() += count;
            }
        }
        for (slot, entry) in self.directory.iter() {
            let pins = pins.remove(&slot).unwrap_or(0);
            assert_eq!(entry.pin_count, pins, "the pins of {entry:?} are those of the instances");
            assert!(pins <= self.limits.max_pins_per_entry, "{entry:?} has no more pins than allowed");
        }
        assert!(pins.is_empty(), "nobody has pins on what is no entry, as on {pins:?}");
    }

    /// Owner and region name each other.
    fn check_owners(&self) {
        let owned = self.instances.iter().flat_map(|(number, instance)| {
            instance.regions.iter().map(move |region| (*region, Some(number)))
        });
        let mut owned = owned.collect::<Vec<_>>();
        owned.sort_unstable();
        let regions = self.regions.iter().map(|region| (region.id, region.owner));
        let regions = regions.filter(|(_, owner)| owner.is_some()).collect::<Vec<_>>();
        assert_eq!(owned, regions, "regions and owners name each other");
    }

    /// Every entry that may be evicted is known to the policy.
    fn check_eviction(&mut self) {
        for (number, instance) in self.instances.iter() {
            for region in instance.regions.iter().filter_map(|id| self.regions.find(*id)) {
                assert_eq!(region.group, Some(instance.group), "the entries of {number:?} are in its group");
            }
        }
        for region in self.regions.iter() {
            let pinned = self.regions.entries_of(region.id).into_iter();
            let pinned = pinned.filter(|slot| self.directory.at(*slot).pin_count > 0).count();
            assert_eq!(
                region.pinned as usize, pinned,
                "the pinned entries of {:?} are counted right",
                region.id
            );
            assert_eq!(region.group.is_some(), region.owner.is_some(), "an orphan is in no group");
        }
        let slots = self.directory.iter().map(|(slot, _)| slot).collect::<Vec<_>>();
        let (policy, entries) = self.eviction();
        policy.check(&entries, slots.into_iter());
    }
}
