//! What a client holds for a while: guards, and pins by name.

use std::collections::BTreeMap;

use maru_client::{ChunkRef, Prefix};

use super::key::Key;

/// Guards held at once, at most: enough that others run into them, few enough that most of the pool moves.
const GUARDS: usize = 6;
/// Keys pinned by name at once, at most.
const PINNED: usize = 12;

/// Guards of one call.
pub(super) enum Guard {
    /// Of the first chunks of a chain.
    Prefix(Vec<Key>, Prefix),
    /// Of one chunk.
    Chunk(Key, ChunkRef),
}

impl Guard {
    /// The keys, each with a guard of its chunk.
    pub(super) fn chunks(&self) -> Vec<(Key, ChunkRef)> {
        match self {
            Guard::Prefix(keys, prefix) => {
                (0..).zip(keys).filter_map(|(index, key)| Some((*key, prefix.get(index)?))).collect()
            }
            Guard::Chunk(key, chunk) => vec![(*key, chunk.clone())],
        }
    }

    /// Whether it has no chunk at all.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Guard::Prefix(_, prefix) if prefix.is_empty())
    }

    fn holds(&self, key: Key) -> bool {
        match self {
            Guard::Prefix(keys, _) => keys.contains(&key),
            Guard::Chunk(held, _) => *held == key,
        }
    }
}

/// Everything that a client holds.
#[derive(Default)]
pub(super) struct Holdings {
    guards: Vec<Guard>,
    pins: BTreeMap<Key, u32>,
}

impl Holdings {
    /// Keeps a guard. One of those that were held may have to go for it.
    pub(super) fn keep(&mut self, guard: Guard, random: u64) {
        if self.guards.len() == GUARDS {
            drop(self.take_guard(random));
        }
        self.guards.push(guard);
    }

    /// Any of the guards, out of what is held.
    pub(super) fn take_guard(&mut self, random: u64) -> Option<Guard> {
        let index = choose(random, self.guards.len())?;
        Some(self.guards.swap_remove(index))
    }

    /// All guards, out of what is held.
    pub(super) fn take_guards(&mut self) -> Vec<Guard> {
        std::mem::take(&mut self.guards)
    }

    /// Whether further keys may be pinned by name.
    pub(super) fn may_pin(&self) -> bool {
        self.pins.len() < PINNED
    }

    /// A key was pinned by name.
    pub(super) fn pinned(&mut self, key: Key) {
        *self.pins.entry(key).or_default() += 1;
    }

    /// A pin by name is given back.
    pub(super) fn unpinned(&mut self, key: Key) {
        if let Some(pins) = self.pins.get_mut(&key) {
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(&key);
            }
        }
    }

    /// Any of the keys that are pinned by name.
    pub(super) fn any_pinned(&self, random: u64) -> Option<Key> {
        let index = choose(random, self.pins.len())?;
        self.pins.keys().nth(index).copied()
    }

    /// Whether the chunk of a key has to stay: it is pinned by name, or held by a guard.
    pub(super) fn holds(&self, key: Key) -> bool {
        self.is_pinned(key) || self.guards.iter().any(|guard| guard.holds(key))
    }

    /// Whether a key is pinned by name.
    pub(super) fn is_pinned(&self, key: Key) -> bool {
        self.pins.contains_key(&key)
    }

    /// Pins by name, several of one key each for itself.
    pub(super) fn pins(&self) -> u64 {
        self.pins.values().map(|pins| u64::from(*pins)).sum()
    }
}

/// An index below `count`, if there is one.
fn choose(random: u64, count: usize) -> Option<usize> {
    let index = random.checked_rem(count as u64)?;
    usize::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_counted_by_key() {
        let (one, two) = (Key::shared(1), Key::shared(2));
        let mut holdings = Holdings::default();
        assert_eq!(holdings.any_pinned(7), None);
        for key in [one, two, one] {
            holdings.pinned(key);
        }
        assert_eq!((holdings.pins(), holdings.any_pinned(3)), (3, Some(two)));
        holdings.unpinned(one);
        assert!(holdings.is_pinned(one));
        holdings.unpinned(one);
        assert!(!holdings.is_pinned(one));
        holdings.unpinned(one);
        assert_eq!(holdings.pins(), 1, "what is not pinned can't be unpinned");
    }
}
