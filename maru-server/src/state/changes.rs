//! What changes for good: everything that has to outlive the server's process, as values in the order in which it happened.

use super::{Digest, InstanceNumber, RegionId};

/// One change. Each says what is so from now on, whatever was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is an instance, unless it ended again: [`State::identity`](super::State::identity) knows more of it.
    Opened(InstanceNumber),
    /// An instance ended. Its regions are orphans.
    Ended(InstanceNumber),
    /// There is a region, all of whose pages are its owner's.
    Committed(RegionId),
    /// A region is an orphan.
    Disowned(RegionId),
    /// A region is no more.
    Retired(RegionId),
    /// A page holds an entry.
    Stored {
        /// The region.
        region: RegionId,
        /// The page.
        page: u32,
        /// The entry's digest.
        digest: Digest,
        /// The entry's bytes.
        length: u32,
        /// The number of the registration.
        generation: u32,
        /// The checksum that it was registered with; 0 for none.
        checksum: u32,
    },
    /// A page holds nothing, and waits for its owner.
    Freed {
        /// The region.
        region: RegionId,
        /// The page.
        page: u32,
    },
    /// A page is with whoever owns the region.
    Held {
        /// The region.
        region: RegionId,
        /// The page.
        page: u32,
    },
    /// Nobody of before a restart is waited for any more.
    Recovered,
}

/// The changes that nobody has taken yet, where somebody wants them.
#[derive(Debug, Default)]
pub(super) struct Changes(Option<Vec<Change>>);

impl Changes {
    /// Notes changes from now on.
    pub(super) fn keep(&mut self) {
        self.0.get_or_insert_default();
    }

    pub(super) fn note(&mut self, change: Change) {
        if let Some(changes) = &mut self.0 {
            changes.push(change);
        }
    }

    /// Exchanges them for an empty list.
    pub(super) fn take(&mut self, into: &mut Vec<Change>) {
        into.clear();
        if let Some(changes) = &mut self.0 {
            std::mem::swap(changes, into);
        }
    }
}
