//! What whoever operates the server may look at and release: where an entry is, and who keeps it there.

use std::time::Duration;

use super::ledger::PinKind;
use super::{Digest, InstanceNumber, Location, State, UnpinError};

/// Entries and ledgers that one call of [`State::pins_after`] looks at: a millisecond of work.
const LOOKS: usize = 16_384;

/// Where an entry is, and how often it is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// Where it is.
    pub location: Location,
    /// The page that it is in.
    pub page: u32,
    /// The owner of the region; `None` for an orphan.
    pub owner: Option<InstanceNumber>,
    /// Pins of all instances.
    pub pins: u32,
}

/// Which pins are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinFilter {
    /// Those on the entry of this digest alone.
    pub digest: Option<Digest>,
    /// Those of this instance alone.
    pub instance: Option<InstanceNumber>,
    /// Those that were taken so many whole seconds ago or more.
    pub held_seconds: u64,
}

/// The pins of one instance on one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPins {
    /// The entry.
    pub digest: Digest,
    /// Its registration.
    pub generation: u32,
    /// Bytes of the entry.
    pub length: u32,
    /// The instance.
    pub instance: InstanceNumber,
    /// Pins of guards.
    pub guards: u32,
    /// Pins by name.
    pub named: u32,
    /// Whole seconds since the instance took the first of them.
    pub held_seconds: u64,
}

/// How far along the list of all pins somebody is. It stays right while entries and instances come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinsAfter {
    /// Slots before this one are done with.
    slot: u32,
    /// So are the instances up to this one, on the entry in the slot.
    instance: u32,
}

impl From<u64> for PinsAfter {
    /// The place with this number; 0 is the beginning.
    fn from(number: u64) -> PinsAfter {
        let [s0, s1, s2, s3, i0, i1, i2, i3] = number.to_be_bytes();
        let (slot, instance) = ([s0, s1, s2, s3], [i0, i1, i2, i3]);
        PinsAfter { slot: u32::from_be_bytes(slot), instance: u32::from_be_bytes(instance) }
    }
}

impl From<PinsAfter> for u64 {
    /// The number of the place, greater for what comes later.
    fn from(place: PinsAfter) -> u64 {
        u64::from(place.slot) << 32 | u64::from(place.instance)
    }
}

impl State {
    /// Where the entry of a digest is and how often it is pinned. That somebody asked changes nothing.
    pub fn entry(&self, digest: Digest) -> Option<EntryInfo> {
        let slot = self.directory.find(digest)?;
        let entry = self.directory.at(slot);
        let owner = self.regions.at(entry.region).owner;
        Some(EntryInfo { location: self.location(slot), page: entry.page, owner, pins: entry.pin_count })
    }

    /// The next pins of the list: hands at most `limit` to `tell`, each with the place after it, and returns the place that it
    /// has come to, or `None` at the end of the list. It looks at a bounded number of entries, so it may come to a place
    /// without having told of a pin.
    pub fn pins_after(
        &self,
        after: PinsAfter,
        filter: &PinFilter,
        limit: usize,
        now: Duration,
        mut tell: impl FnMut(PinsAfter, HeldPins),
    ) -> Option<PinsAfter> {
        let slots = match filter.digest {
            Some(digest) => self.directory.find(digest).map(|slot| slot..slot.saturating_add(1))?,
            None if self.directory.counts().pinned_entries == 0 => return None,
            None => 0..self.directory.slots(),
        };
        let mut place = after.max(PinsAfter { slot: slots.start, instance: 0 });
        let (mut looks, mut told) = (0, 0);
        while place.slot < slots.end {
            let entry = self.directory.get(place.slot).filter(|entry| entry.pin_count > 0);
            if let Some(entry) = entry {
                for (instance, ledger) in self.instances.ledgers_after(place.instance, filter.instance) {
                    if looks >= LOOKS || told >= limit {
                        return Some(place);
                    }
                    looks += 1;
                    place.instance = instance.0;
                    let held = ledger.held(place.slot, now);
                    if let Some(held_seconds) = held.filter(|held| *held >= filter.held_seconds) {
                        told += 1;
                        tell(
                            place,
                            HeldPins {
                                digest: entry.digest,
                                generation: entry.generation,
                                length: entry.length.get(),
                                instance,
                                guards: ledger.guards(place.slot),
                                named: ledger.named(place.slot),
                                held_seconds,
                            },
                        );
                    }
                }
            }
            looks += 1;
            place = PinsAfter { slot: place.slot + 1, instance: 0 };
            if looks >= LOOKS || told >= limit {
                return Some(place);
            }
        }
        None
    }

    /// Releases the pins by name of an instance on a registration, whoever asks, and says how many there were. Such pins stay
    /// where the instance has had pins on the entry for less than `held_seconds`: they are not those that somebody saw.
    /// Pins of guards always stay, since somebody may be reading.
    ///
    /// To the instance it is as if they had run out: its next release finds none, and when its session goes on it can't
    /// bring them back. Only after a restart, when the server knows of no pin at all, it is believed what it says.
    ///
    /// # Errors
    /// [`UnpinError`]; nothing is changed then.
    pub fn release_named(
        &mut self,
        digest: Digest,
        generation: u32,
        instance: InstanceNumber,
        held_seconds: u64,
        now: Duration,
    ) -> Result<u32, UnpinError> {
        let slot = self.directory.find(digest).ok_or(UnpinError::NotFound)?;
        if self.directory.at(slot).generation != generation || !self.instances.contains(instance) {
            return Err(UnpinError::NotFound);
        }
        let held = self.instances.get(instance).ledger.held(slot, now);
        if held.is_none_or(|held| held < held_seconds) {
            return Err(UnpinError::NotPinned);
        }
        let mut released = 0;
        while self.instances.unpin(instance, slot, PinKind::Named) {
            released += 1;
        }
        if released == 0 {
            return Err(UnpinError::NotPinned);
        }
        self.unpin_slot(slot, released);
        Ok(released)
    }
}
