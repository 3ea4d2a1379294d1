//! Pins that are to be released and that nobody waits for, gathered so that many are unpinned by one frame.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use maru_proto::{Flags, KeyDigest};

use crate::sync::lock;

/// How a pin was taken, and so how it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PinKind {
    /// For a guard.
    Guard,
    /// By name.
    Named,
}

impl PinKind {
    /// What tells the server which kind of pin to release.
    pub(crate) fn flags(self) -> Flags {
        match self {
            PinKind::Guard => Flags::PIN,
            PinKind::Named => Flags::NONE,
        }
    }
}

/// Digests of which one pin each is to be released.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    gathered: Mutex<Gathered>,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Gathered {
    guards: Vec<KeyDigest>,
    named: Vec<KeyDigest>,
}

impl Releases {
    /// Adds digests; how many there are now.
    pub(crate) fn add(&self, kind: PinKind, digests: impl IntoIterator<Item = KeyDigest>) -> usize {
        let mut gathered = lock(&self.gathered);
        match kind {
            PinKind::Guard => gathered.guards.extend(digests),
            PinKind::Named => gathered.named.extend(digests),
        }
        let count = gathered.guards.len() + gathered.named.len();
        self.count.store(count, Ordering::Release);
        count
    }

    /// Whether there are none, which costs no lock.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Hands all of them to `send`, kind by kind, and forgets them.
    pub(crate) fn drain(&self, mut send: impl FnMut(PinKind, &[KeyDigest])) {
        if self.is_empty() {
            return;
        }
        let Gathered { guards, named } = &mut *lock(&self.gathered);
        for (kind, digests) in [(PinKind::Guard, guards), (PinKind::Named, named)] {
            send(kind, digests);
            digests.clear();
        }
        self.count.store(0, Ordering::Release);
    }
}
