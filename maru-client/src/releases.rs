//! Pins that guards have let go of, gathered so that many are unpinned by one frame.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use maru_proto::KeyDigest;

use crate::sync::lock;

/// Digests of which one pin each is to be released.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    gathered: Mutex<Vec<KeyDigest>>,
    count: AtomicUsize,
}

impl Releases {
    /// Adds digests; how many there are now.
    pub(crate) fn add(&self, digests: impl IntoIterator<Item = KeyDigest>) -> usize {
        let mut gathered = lock(&self.gathered);
        gathered.extend(digests);
        self.count.store(gathered.len(), Ordering::Release);
        gathered.len()
    }

    /// Whether there are none, which costs no lock.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Hands all of them to `send`, and forgets them.
    pub(crate) fn drain(&self, send: impl FnOnce(&[KeyDigest])) {
        if self.is_empty() {
            return;
        }
        let mut gathered = lock(&self.gathered);
        send(&gathered);
        gathered.clear();
        self.count.store(0, Ordering::Release);
    }
}
