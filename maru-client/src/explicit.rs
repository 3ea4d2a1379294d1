//! Pins that the caller asked for by name, and the guards that lean on them.
//!
//! A chunk that is pinned explicitly can be read without asking the server where it is. A guard that does so has no pin
//! of its own: while it lives, the explicit pin that it leans on is not given back, even when the caller unpins.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use maru_proto::{KeyDigest, LocationRecord};

use crate::sync::lock;

/// All explicit pins of the handler.
#[derive(Debug, Default)]
pub(crate) struct ExplicitPins {
    pins: Mutex<HashMap<KeyDigest, Explicit>>,
    /// Entries of `pins`: without any, nobody locks.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Explicit {
    location: LocationRecord,
    /// Pins that the caller has and has not given back.
    pins: u32,
    /// Pins that the caller gave back while guards leaned on them.
    deferred: u32,
    /// Guards without a pin of their own.
    leaning: u32,
}

/// What the caller's unpin comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unpin {
    /// The caller has no such pin.
    NotPinned,
    /// The pin is the server's to release.
    Release,
    /// The pin is released when the guards that lean on it are gone.
    Deferred,
}

impl ExplicitPins {
    /// The caller got a pin.
    pub(crate) fn add(&self, digest: KeyDigest, location: LocationRecord) {
        let mut pins = lock(&self.pins);
        pins.entry(digest).or_insert(Explicit { location, pins: 0, deferred: 0, leaning: 0 }).pins += 1;
        self.count.store(pins.len(), Ordering::Release);
    }

    /// The caller gives a pin back.
    pub(crate) fn unpin(&self, digest: KeyDigest) -> Unpin {
        self.change(digest, |explicit| {
            if explicit.pins == 0 {
                return Unpin::NotPinned;
            }
            explicit.pins -= 1;
            if explicit.leaning > 0 && explicit.pins + explicit.deferred == 0 {
                explicit.deferred += 1;
                return Unpin::Deferred;
            }
            Unpin::Release
        })
        .unwrap_or(Unpin::NotPinned)
    }

    /// Where a chunk is that the caller has pinned, for a guard that leans on the pin.
    pub(crate) fn lean(&self, digest: KeyDigest) -> Option<LocationRecord> {
        self.change(digest, |explicit| {
            (explicit.pins > 0).then(|| {
                explicit.leaning += 1;
                explicit.location
            })
        })?
    }

    /// A guard that leaned is gone; pins to be released now.
    pub(crate) fn straighten(&self, digest: KeyDigest) -> u32 {
        self.change(digest, |explicit| {
            explicit.leaning -= 1;
            if explicit.leaning == 0 { std::mem::take(&mut explicit.deferred) } else { 0 }
        })
        .unwrap_or(0)
    }

    fn change<T>(&self, digest: KeyDigest, change: impl FnOnce(&mut Explicit) -> T) -> Option<T> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut pins = lock(&self.pins);
        let Entry::Occupied(mut explicit) = pins.entry(digest) else {
            return None;
        };
        let changed = change(explicit.get_mut());
        let Explicit { pins: held, deferred, leaning, .. } = *explicit.get();
        if held == 0 && deferred == 0 && leaning == 0 {
            explicit.remove();
            self.count.store(pins.len(), Ordering::Release);
        }
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use maru_proto::RecordStatus;

    use super::*;

    const KEY: KeyDigest = KeyDigest::from_bytes([1; 16]);

    fn pinned(times: u32) -> ExplicitPins {
        let pins = ExplicitPins::default();
        (0..times).for_each(|_| pins.add(KEY, LocationRecord::without(RecordStatus::Ok)));
        pins
    }

    #[test]
    fn each_pin_is_given_back_once() {
        let pins = pinned(2);
        assert_eq!([(); 3].map(|()| pins.unpin(KEY)), [Unpin::Release, Unpin::Release, Unpin::NotPinned]);
        assert!(pins.lean(KEY).is_none());
    }

    #[test]
    fn a_guard_that_leans_keeps_the_last_pin() {
        let pins = pinned(2);
        assert!(pins.lean(KEY).is_some() && pins.lean(KEY).is_some());
        assert_eq!(pins.unpin(KEY), Unpin::Release, "another pin is left to lean on");
        assert_eq!(pins.unpin(KEY), Unpin::Deferred);
        assert_eq!(pins.unpin(KEY), Unpin::NotPinned);
        assert!(pins.lean(KEY).is_none(), "the caller has unpinned");
        assert_eq!(pins.straighten(KEY), 0);
        assert_eq!(pins.straighten(KEY), 1);
        assert_eq!(pins.count.load(Ordering::Relaxed), 0);
    }
}
