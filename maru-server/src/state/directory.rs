//! The directory: from a digest to its entry, and what may be done to entries.

use std::num::NonZeroU32;

use slab::Slab;

use super::changes::Change;
use super::entry::KvEntry;
use super::eviction::EvictionPolicy;
use super::index::{Index, prefetch};
use super::pages::Page;
use super::{Digest, Location, PinKind, RegionId, Request, State};

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Registered {
    /// The entry is there, for everybody.
    Done,
    /// The digest has an entry already, and nothing was changed: the page is still the caller's.
    Exists,
    /// There is no such region.
    RegionNotFound,
    /// The region belongs to another instance, or to none any more.
    NotOwner,
    /// The region has no such page, or the length is 0 or more than a page.
    OutOfBounds,
    /// The page holds an entry, or was freed and not yet taken back.
    PageInUse,
}

/// An entry was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The digest has no entry.
    #[error("there is no entry under this key; store it first")]
    NotFound,
    /// The entry has all the pins it may have.
    #[error("the entry has as many pins as the server allows; release some")]
    Limit,
}

/// A pin was not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpinError {
    /// The digest has no entry.
    #[error("there is no entry under this key, so there is no pin to release")]
    NotFound,
    /// The entry has no pin of this instance.
    #[error("this instance has no pin on the entry; release each pin once")]
    NotPinned,
}

/// An entry was not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// The digest has no entry.
    #[error("there is no entry under this key")]
    NotFound,
    /// Somebody reads the entry.
    #[error("the entry is pinned; try again when its readers are done")]
    Pinned,
}

/// Counters of the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DirectoryCounts {
    pub(super) entry_bytes: u64,
    pub(super) pinned_entries: u64,
    pub(super) pins: u64,
}

/// All entries and the index over them.
#[derive(Debug)]
pub(super) struct Directory {
    entries: Slab<KvEntry>,
    /// Slots of `entries`, by digest.
    index: Index,
    counts: DirectoryCounts,
    /// Slots that were ever taken: those behind them are vacant, and their memory untouched.
    slots: u32,
    /// The number of the last registration.
    generation: u32,
}

impl Directory {
    /// A directory that never grows, as long as it is never given more than `max_entries`.
    pub(super) fn new(max_entries: u32) -> Directory {
        Directory {
            entries: Slab::with_capacity(max_entries as usize),
            index: Index::new(max_entries),
            counts: DirectoryCounts::default(),
            slots: 0,
            generation: 0,
        }
    }

    pub(super) fn find(&self, digest: Digest) -> Option<u32> {
        self.index.find(digest, |slot| self.entries[slot as usize].digest == digest)
    }

    /// Has what look-ups of these digests will read brought near: first all buckets, then all entries.
    pub(super) fn prefetch(&self, digests: impl Iterator<Item = Digest> + Clone) {
        digests.clone().for_each(|digest| self.index.prefetch(digest));
        let candidates = digests.filter_map(|digest| self.index.candidate(digest));
        candidates.filter_map(|slot| self.entries.get(slot as usize)).for_each(prefetch);
    }

    /// The entry in a slot that is known to hold one.
    pub(super) fn at(&self, slot: u32) -> &KvEntry {
        &self.entries[slot as usize]
    }

    /// The same, to be changed.
    pub(super) fn at_mut(&mut self, slot: u32) -> &mut KvEntry {
        &mut self.entries[slot as usize]
    }

    /// The entry in a slot, if it holds one.
    pub(super) fn get(&self, slot: u32) -> Option<&KvEntry> {
        self.entries.get(slot as usize)
    }

    /// Entries are in slots below this one.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &KvEntry)> {
        self.entries.iter().map(|(slot, entry)| (narrow(slot), entry))
    }

    /// Adds an entry for a digest that has none.
    pub(super) fn insert(&mut self, digest: Digest, region: u32, page: u32, length: NonZeroU32) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.insert_again(digest, region, page, length, self.generation)
    }

    /// The same for one that was registered before the server was restarted.
    pub(super) fn insert_again(
        &mut self,
        digest: Digest,
        region: u32,
        page: u32,
        length: NonZeroU32,
        generation: u32,
    ) -> u32 {
        let mark = Default::default();
        let slot =
            self.entries.insert(KvEntry { digest, region, page, length, pin_count: 0, generation, mark });
        let slot = narrow(slot);
        self.slots = self.slots.max(slot.saturating_add(1));
        self.index.insert(digest, slot);
        self.counts.entry_bytes += u64::from(length.get());
        slot
    }

    /// Goes on from this number of a registration.
    pub(super) fn set_generation(&mut self, last: u32) {
        self.generation = last;
    }

    /// Takes out the entry in a slot, which has no pin.
    pub(super) fn remove(&mut self, slot: u32) -> KvEntry {
        let entries = &self.entries;
        let digest = entries[slot as usize].digest;
        self.index.remove(digest, |other| other == slot, |other| entries[other as usize].digest);
        let entry = self.entries.remove(slot as usize);
        debug_assert_eq!(entry.pin_count, 0, "a pinned entry stays");
        self.counts.entry_bytes -= u64::from(entry.length.get());
        entry
    }

    /// Adds a pin, and says whether it is the entry's first.
    pub(super) fn pin(&mut self, slot: u32, limit: u32) -> Result<bool, PinError> {
        let entry = &mut self.entries[slot as usize];
        if entry.pin_count >= limit {
            return Err(PinError::Limit);
        }
        entry.pin_count += 1;
        self.counts.pins += 1;
        let is_first = entry.pin_count == 1;
        self.counts.pinned_entries += u64::from(is_first);
        Ok(is_first)
    }

    /// Takes off `pins` pins, at least 1, that a ledger says the entry has, and says whether none is left.
    pub(super) fn unpin(&mut self, slot: u32, pins: u32) -> bool {
        let entry = &mut self.entries[slot as usize];
        entry.pin_count -= pins;
        self.counts.pins -= u64::from(pins);
        let was_last = entry.pin_count == 0;
        self.counts.pinned_entries -= u64::from(was_last);
        was_last
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn counts(&self) -> DirectoryCounts {
        self.counts
    }

    /// Panics where index, entries and counters disagree.
    pub(super) fn check(&self, max_entries: u32) {
        let mut counts = DirectoryCounts::default();
        for (slot, entry) in self.iter() {
            assert_eq!(self.find(entry.digest), Some(slot), "the index leads to {entry:?}");
            assert!(slot < self.slots, "no entry is behind the last slot");
            counts.entry_bytes += u64::from(entry.length.get());
            counts.pinned_entries += u64::from(entry.pin_count > 0);
            counts.pins += u64::from(entry.pin_count);
        }
        assert_eq!(self.index.len(), self.entries.len(), "the index leads to nothing else");
        assert_eq!(self.counts, counts, "the directory's counters are those of a recount");
        assert!(
            self.entries.len() <= max_entries as usize,
            "there are no more entries than there is room for"
        );
    }
}

fn narrow(slot: usize) -> u32 {
    u32::try_from(slot).expect("there are at most max_entries slots, which is a u32")
}

impl State {
    /// Makes the bytes at the start of a page of a region of the caller's visible under a digest, with the checksum that
    /// the caller says they have; 0 for none. The checks come in this order: the region, its owner, the bounds, the digest,
    /// the page.
    pub fn register(
        &mut self,
        request: &mut Request,
        digest: Digest,
        region: RegionId,
        page: u32,
        length: u32,
        checksum: u32,
    ) -> Registered {
        let registered = self.register_in(request, digest, region, page, length, checksum);
        request.chain.advance(digest);
        registered
    }

    fn register_in(
        &mut self,
        request: &Request,
        digest: Digest,
        region: RegionId,
        page: u32,
        length: u32,
        checksum: u32,
    ) -> Registered {
        let Some((slot, region)) = self.regions.find_mut(region) else {
            return Registered::RegionNotFound;
        };
        if region.owner != Some(request.caller) {
            return Registered::NotOwner;
        }
        let length = region.length_in_page(length).filter(|_| page < region.pages.count());
        let Some(length) = length else {
            return Registered::OutOfBounds;
        };
        if self.directory.find(digest).is_some() {
            return Registered::Exists;
        }
        if region.pages.get(page) != Page::Held {
            return Registered::PageInUse;
        }
        let entry = self.directory.insert(digest, slot, page, length);
        region.add_entry(page, entry, length, checksum);
        let (region, generation) = (region.id, self.directory.at(entry).generation);
        let length = length.get();
        self.changes.note(Change::Stored { region, page, digest, length, generation, checksum });
        let (policy, mut entries) = self.eviction();
        policy.insert(&mut entries, entry, &request.chain);
        Registered::Done
    }

    /// Has what operations on these digests will read brought near. A batch that calls this for some dozens of digests
    /// ahead of working on them waits for memory once instead of once a digest.
    pub fn prefetch(&self, digests: impl Iterator<Item = Digest> + Clone) {
        self.directory.prefetch(digests);
    }

    /// The same for operations that add or remove entries, or don't find them.
    pub fn prefetch_all(&self, digests: impl Iterator<Item = Digest> + Clone) {
        digests.clone().for_each(|digest| self.policy.prefetch(digest));
        self.directory.prefetch(digests);
    }

    /// Where the entry of a digest is. That somebody asked changes nothing.
    pub fn find(&self, digest: Digest) -> Option<Location> {
        self.directory.find(digest).map(|slot| self.location(slot))
    }

    /// Where the entry of a digest is, for somebody who has a use for it. Nothing keeps it there: whoever wants to read
    /// pins.
    pub fn lookup(&mut self, request: &mut Request, digest: Digest) -> Option<Location> {
        let slot = self.directory.find(digest);
        match slot {
            Some(slot) => self.touch(request, slot),
            None => self.note_miss(request, digest),
        }
        request.chain.advance(digest);
        slot.map(|slot| self.location(slot))
    }

    /// Protects the entry of a digest from deletion and eviction on behalf of the caller, once more.
    ///
    /// # Errors
    /// [`PinError`]; nothing is pinned then.
    pub fn pin(
        &mut self,
        request: &mut Request,
        digest: Digest,
        kind: PinKind,
    ) -> Result<Location, PinError> {
        let pinned = match self.directory.find(digest) {
            Some(slot) => {
                self.touch(request, slot);
                self.pin_slot(request, slot, kind).map(|()| self.location(slot))
            }
            None => {
                self.note_miss(request, digest);
                Err(PinError::NotFound)
            }
        };
        request.chain.advance(digest);
        pinned
    }

    /// Takes note that a request asked for a digest behind its first miss, of which it learns nothing.
    pub fn pass_over(&mut self, request: &mut Request, digest: Digest) {
        match self.directory.find(digest) {
            Some(slot) => self.touch(request, slot),
            None => self.note_miss(request, digest),
        }
        request.chain.advance(digest);
    }

    /// Releases one pin of the caller's.
    ///
    /// # Errors
    /// [`UnpinError`]; nothing is changed then.
    pub fn unpin(&mut self, request: &Request, digest: Digest, kind: PinKind) -> Result<(), UnpinError> {
        let slot = self.directory.find(digest).ok_or(UnpinError::NotFound)?;
        if self.release_pin(request, slot, kind) { Ok(()) } else { Err(UnpinError::NotPinned) }
    }

    /// Makes the caller's pins on one registration of a digest so many, as it was resumed and has a use for them. Pins by
    /// name become no more, since some may have run out, unless the server was restarted and knows of none. `false`, and
    /// nothing is changed, where the registration is gone or may not have as many.
    pub fn assert_pins(
        &mut self,
        request: &Request,
        digest: Digest,
        generation: u32,
        guards: u32,
        named: u32,
    ) -> bool {
        let Some(slot) = self.directory.find(digest) else { return false };
        let entry = self.directory.at(slot);
        let ledger = &self.instances.get(request.caller).ledger;
        let (guards_now, named_now) = (ledger.guards(slot), ledger.named(slot));
        let more_guards = guards.saturating_sub(guards_now);
        // After a restart the server knows of no pins, and has to believe what it is told.
        let is_believed = self.recovery.waits_for(request.caller);
        let more_named = if is_believed { named.saturating_sub(named_now) } else { 0 };
        let more = u64::from(more_guards) + u64::from(more_named);
        if entry.generation != generation
            || more > u64::from(self.limits.max_pins_per_entry - entry.pin_count)
        {
            return false;
        }
        for _ in 0..more_guards {
            self.pin_slot(request, slot, PinKind::Guard).expect("there is room for as many");
        }
        for _ in 0..more_named {
            self.pin_slot(request, slot, PinKind::Named).expect("there is room for as many");
        }
        for _ in guards..guards_now {
            self.release_pin(request, slot, PinKind::Guard);
        }
        for _ in named..named_now {
            self.release_pin(request, slot, PinKind::Named);
        }
        self.instances.get_mut(request.caller).asserted.insert(slot);
        true
    }

    /// Releases the pins of the caller's on entries that it asserted none on since it was resumed.
    pub fn release_unasserted(&mut self, request: &Request) {
        self.has_recovered(request.caller);
        let instance = self.instances.get_mut(request.caller);
        let asserted = std::mem::take(&mut instance.asserted);
        let unasserted = instance.ledger.iter().map(|(slot, _)| slot).filter(|slot| !asserted.contains(slot));
        for slot in unasserted.collect::<Vec<_>>() {
            while self.release_pin(request, slot, PinKind::Guard) {}
            while self.release_pin(request, slot, PinKind::Named) {}
        }
    }

    /// Deletes an entry, whoever asks. Its page waits for its owner to take it back; in an orphan it is gone, and with
    /// the last entry the orphan is retired.
    ///
    /// # Errors
    /// [`DeleteError`]; nothing is changed then.
    pub fn delete(&mut self, digest: Digest) -> Result<(), DeleteError> {
        let slot = self.directory.find(digest).ok_or(DeleteError::NotFound)?;
        if self.directory.at(slot).pin_count > 0 || self.is_recovering() {
            return Err(DeleteError::Pinned);
        }
        let entry = self.remove(slot);
        self.regions.remove_entry(entry.region, entry.page, entry.length, &mut self.changes);
        Ok(())
    }

    /// Takes an entry without pins out of the directory; its page still names it.
    pub(super) fn remove(&mut self, slot: u32) -> KvEntry {
        let (policy, mut entries) = self.eviction();
        policy.remove(&mut entries, slot);
        self.directory.remove(slot)
    }

    /// Takes pins off an entry that a ledger had, and has lost.
    pub(super) fn unpin_slot(&mut self, slot: u32, pins: u32) {
        if self.directory.unpin(slot, pins) {
            self.regions.at_mut(self.directory.at(slot).region).pinned -= 1;
            let (policy, mut entries) = self.eviction();
            policy.unpin(&mut entries, slot);
        }
    }

    fn release_pin(&mut self, request: &Request, slot: u32, kind: PinKind) -> bool {
        let released = self.instances.unpin(request.caller, slot, kind);
        if released {
            self.unpin_slot(slot, 1);
        }
        released
    }

    fn pin_slot(&mut self, request: &Request, slot: u32, kind: PinKind) -> Result<(), PinError> {
        if self.directory.pin(slot, self.limits.max_pins_per_entry)? {
            self.regions.at_mut(self.directory.at(slot).region).pinned += 1;
        }
        self.instances.pin(request, slot, kind, self.limits.pin_ttl);
        Ok(())
    }

    fn touch(&mut self, request: &Request, slot: u32) {
        self.touches += 1;
        self.regions.at_mut(self.directory.at(slot).region).last_touch = self.touches;
        let (policy, mut entries) = self.eviction();
        policy.touch(&mut entries, slot, &request.chain);
    }

    fn note_miss(&mut self, request: &Request, digest: Digest) {
        let (policy, mut entries) = self.eviction();
        policy.miss(&mut entries, digest, &request.chain);
    }

    pub(super) fn location(&self, slot: u32) -> Location {
        let entry = self.directory.at(slot);
        let region = self.regions.at(entry.region);
        Location {
            region: region.id,
            offset: u64::from(entry.page) * region.page_size,
            length: entry.length.get(),
            generation: entry.generation,
            checksum: region.checksums.get(entry.page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Digest {
        // Scattered like a real digest's: the steps of a Weyl sequence, mixed.
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Digest(u128::from(mixed ^ (mixed >> 32)))
    }

    #[test]
    fn a_full_directory_under_churn_does_not_grow() {
        let max = 14_336;
        let mut directory = Directory::new(max);
        let capacity = directory.entries.capacity();
        (0..u64::from(max)).for_each(|number| {
            directory.insert(key(number), 0, 0, NonZeroU32::MIN);
        });
        for number in 0..300_000 {
            directory.remove(directory.find(key(number)).unwrap());
            directory.insert(key(number + u64::from(max)), 0, 0, NonZeroU32::MIN);
        }
        assert_eq!(directory.entries.capacity(), capacity);
        directory.check(max);
    }

    #[test]
    fn digests_that_share_the_low_half_are_told_apart() {
        let mut directory = Directory::new(4);
        let slots = [1, 2, 3].map(|high| directory.insert(Digest(high << 64 | 5), 0, 0, NonZeroU32::MIN));
        assert_eq!(directory.find(Digest(2 << 64 | 5)), Some(slots[1]));
        assert_eq!(directory.find(Digest(5)), None);
        directory.remove(slots[1]);
        assert_eq!(directory.find(Digest(3 << 64 | 5)), Some(slots[2]));
        directory.check(4);
    }
}
