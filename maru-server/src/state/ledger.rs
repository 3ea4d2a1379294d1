//! The pins of an instance: by entry, by kind, and since when.

use std::cell::Cell;
use std::time::Duration;

use hashlink::LinkedHashMap;

use super::InstanceNumber;
use super::numbered::Scatter;

/// How a pin came to be, and by that how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinKind {
    /// A look-up took it for a reader. It lasts until the reader releases it, or the instance ends.
    Guard,
    /// It was asked for by name. It lasts until it is released, runs out, or the instance ends.
    Named,
}

/// The pins of one instance on one entry.
#[derive(Clone, Copy, Debug, Default)]
struct Pins {
    guards: u32,
    named: u32,
    /// Seconds, on the server's clock, when the first of them was taken.
    since: u32,
}

/// The pins of one instance, by entry.
#[derive(Debug)]
pub(super) struct Ledger {
    /// By the slot of the entry; at least one pin each. A pinned entry is never removed, so the slot is its.
    pins: hashbrown::HashMap<u32, Pins, Scatter>,
    guards: u64,
    named: u64,
    /// The entry that was pinned longest ago, where that was found out and still holds.
    oldest: Cell<Option<u32>>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            pins: hashbrown::HashMap::with_hasher(Scatter),
            guards: 0,
            named: 0,
            oldest: Cell::new(None),
        }
    }
}

impl Ledger {
    pub(super) fn add(&mut self, entry: u32, kind: PinKind, now: Duration) {
        let since = || u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let pins = self.pins.entry(entry).or_insert_with(|| Pins { since: since(), ..Pins::default() });
        match kind {
            PinKind::Guard => {
                pins.guards += 1;
                self.guards += 1;
            }
            PinKind::Named => {
                pins.named += 1;
                self.named += 1;
            }
        }
    }

    /// Takes off one pin, if there is one of this kind.
    pub(super) fn take(&mut self, entry: u32, kind: PinKind) -> bool {
        let hashbrown::hash_map::Entry::Occupied(mut pins) = self.pins.entry(entry) else {
            return false;
        };
        let (count, total) = match kind {
            PinKind::Guard => (&mut pins.get_mut().guards, &mut self.guards),
            PinKind::Named => (&mut pins.get_mut().named, &mut self.named),
        };
        if *count == 0 {
            return false;
        }
        *count -= 1;
        *total -= 1;
        if pins.get().guards + pins.get().named == 0 {
            pins.remove();
            self.forget_oldest(entry);
        }
        true
    }

    /// Takes off all pins by name, and says how many there were.
    pub(super) fn take_named(&mut self, entry: u32) -> u32 {
        let named = self.named(entry);
        for _ in 0..named {
            self.take(entry, PinKind::Named);
        }
        named
    }

    /// Pins by name on an entry.
    pub(super) fn named(&self, entry: u32) -> u32 {
        self.pins.get(&entry).map_or(0, |pins| pins.named)
    }

    /// Pins of guards on an entry.
    pub(super) fn guards(&self, entry: u32) -> u32 {
        self.pins.get(&entry).map_or(0, |pins| pins.guards)
    }

    /// For how many whole seconds an entry has been pinned; `None` where it is not.
    pub(super) fn held(&self, entry: u32, now: Duration) -> Option<u64> {
        let since = self.pins.get(&entry)?.since;
        Some(now.as_secs().saturating_sub(u64::from(since)))
    }

    /// Pinned entries.
    pub(super) fn entries(&self) -> u64 {
        self.pins.len() as u64
    }

    /// All pins.
    pub(super) fn pins(&self) -> u64 {
        self.guards + self.named
    }

    /// All pins by name.
    pub(super) fn named_pins(&self) -> u64 {
        self.named
    }

    /// For how many whole seconds the entry that was pinned longest ago has been so. What a search found is kept for as
    /// long as that entry is pinned: a ledger that is searched often holds pins that go often, and is small.
    pub(super) fn oldest(&self, now: Duration) -> Option<u64> {
        if self.oldest.get().is_none() {
            let oldest = self.pins.iter().min_by_key(|(_, pins)| pins.since).map(|(entry, _)| *entry);
            self.oldest.set(oldest);
        }
        let since = self.pins[&self.oldest.get()?].since;
        Some(now.as_secs().saturating_sub(u64::from(since)))
    }

    fn forget_oldest(&mut self, entry: u32) {
        if self.oldest.get() == Some(entry) {
            self.oldest.set(None);
        }
    }

    /// The slots of the pinned entries with the number of pins.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.pins.iter().map(|(&entry, pins)| (entry, pins.guards + pins.named))
    }

    /// Bytes of memory that the ledger takes.
    #[cfg(test)]
    pub(super) fn allocation_size(&self) -> usize {
        self.pins.allocation_size()
    }

    /// Panics where pins are counted wrong.
    pub(super) fn check(&self) {
        let (mut guards, mut named) = (0, 0);
        for (entry, pins) in &self.pins {
            assert!(pins.guards + pins.named > 0, "an entry without pins, {entry}, is not listed");
            guards += u64::from(pins.guards);
            named += u64::from(pins.named);
        }
        assert_eq!((self.guards, self.named), (guards, named), "pins are counted right");
    }
}

/// When pins by name run out, the next ones first.
#[derive(Debug, Default)]
pub(super) struct PinExpiries {
    /// Every pin lasts equally long, so that the order in which they were set is the order in which they end.
    ends: LinkedHashMap<(InstanceNumber, u32), Duration>,
}

impl PinExpiries {
    /// The pins by name of an instance on an entry end then, and no earlier.
    pub(super) fn set(&mut self, instance: InstanceNumber, slot: u32, end: Duration) {
        self.ends.insert((instance, slot), end);
    }

    /// They are released.
    pub(super) fn cancel(&mut self, instance: InstanceNumber, slot: u32) {
        self.ends.remove(&(instance, slot));
    }

    /// When the next ones end.
    pub(super) fn next(&self) -> Option<Duration> {
        self.ends.front().map(|(_, end)| *end)
    }

    /// The next ones, if they have ended by now.
    pub(super) fn pop(&mut self, now: Duration) -> Option<(InstanceNumber, u32)> {
        self.next().filter(|end| *end <= now)?;
        self.ends.pop_front().map(|(of, _)| of)
    }
}
