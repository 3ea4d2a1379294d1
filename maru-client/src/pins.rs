//! What this instance has pinned, as it and the server both should know it.
//!
//! A guard is in here as long as it lives, a pin by name until it is given back; pins that nobody has a use for any more
//! are gathered, so that many are released by one frame. When the session goes on on new connections, the server is told
//! what is in here, and releases everything else. So whatever belongs to the connections before must not count from then
//! on: each guard, and each answer that brings one, carries the number of the session's connections that it came by.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use maru_proto::{Flags, KeyDigest, PinsRecord};
use slab::Slab;

use crate::guard::{ChunkRef, PinGroup};
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

/// All pins of the instance.
#[derive(Default)]
pub(crate) struct Pins {
    table: Mutex<Table>,
    /// Pins to be released: without any, nobody locks.
    to_release: AtomicUsize,
}

#[derive(Default)]
struct Table {
    /// The number of the session's connections.
    link: u32,
    groups: Slab<Weak<PinGroup>>,
    named: HashMap<KeyDigest, Named>,
    guards_to_release: Vec<KeyDigest>,
    named_to_release: Vec<KeyDigest>,
}

/// Pins by name on one chunk.
struct Named {
    generation: u32,
    pins: u32,
}

/// What the server is told when the session goes on.
pub(crate) struct Assertion {
    /// The number of the connections that it goes on on.
    pub(crate) link: u32,
    /// The pins that are in use.
    pub(crate) records: Vec<PinsRecord>,
    /// Guards of all chunks in it, so that none is released before the server has been told of it.
    guards: Vec<ChunkRef>,
}

impl Assertion {
    /// The server does not have these pins: revokes the guards of their chunks, and says how many chunks these are.
    pub(crate) fn revoke<'a>(&self, lost: impl Iterator<Item = &'a PinsRecord>) -> u64 {
        let lost = lost.map(|record| (record.digest, record.generation.get())).collect::<HashSet<_>>();
        if lost.is_empty() {
            return 0;
        }
        let is_lost = |guard: &&ChunkRef| lost.contains(&(guard.digest(), guard.generation()));
        self.guards.iter().filter(is_lost).map(ChunkRef::revoke).sum()
    }
}

impl Pins {
    /// Takes up a group whose pins came by these connections. `false` when the session has gone on since, and so the
    /// server has released them.
    pub(crate) fn adopt(&self, link: u32, group: &Arc<PinGroup>) -> bool {
        let table = &mut *lock(&self.table);
        let is_current = table.link == link;
        if is_current {
            group.adopted_as(table.groups.insert(Arc::downgrade(group)));
        }
        is_current
    }

    /// The last guard of a group is gone.
    pub(crate) fn forget(&self, group: usize) {
        lock(&self.table).groups.try_remove(group);
    }

    /// Gathers pins to be released, with the connections that they came by; how many are gathered now.
    pub(crate) fn release(&self, kind: PinKind, pins: impl Iterator<Item = (u32, KeyDigest)>) -> usize {
        let mut table = lock(&self.table);
        let Table { link, guards_to_release, named_to_release, .. } = &mut *table;
        let gathered = match kind {
            PinKind::Guard => guards_to_release,
            PinKind::Named => named_to_release,
        };
        gathered.extend(pins.filter(|(came_by, _)| came_by == link).map(|(_, digest)| digest));
        self.count(&table)
    }

    /// Whether no pins are to be released, which costs no lock.
    pub(crate) fn none_to_release(&self) -> bool {
        self.to_release.load(Ordering::Acquire) == 0
    }

    /// Hands the pins to be released to `send`, kind by kind, and forgets them.
    pub(crate) fn drain(&self, mut send: impl FnMut(PinKind, &[KeyDigest])) {
        if self.none_to_release() {
            return;
        }
        let mut table = lock(&self.table);
        send(PinKind::Guard, &table.guards_to_release);
        send(PinKind::Named, &table.named_to_release);
        table.guards_to_release.clear();
        table.named_to_release.clear();
        self.count(&table);
    }

    /// Takes note of pins by name, as digests with the generations pinned. `false` as in [`Pins::adopt`].
    pub(crate) fn add_named(&self, link: u32, pinned: impl Iterator<Item = (KeyDigest, u32)>) -> bool {
        let table = &mut *lock(&self.table);
        if table.link != link {
            return false;
        }
        for (digest, generation) in pinned {
            let named = table.named.entry(digest).or_insert(Named { generation, pins: 0 });
            // Another generation means that the pins on the one before have run out.
            if named.generation != generation {
                *named = Named { generation, pins: 0 };
            }
            named.pins += 1;
        }
        true
    }

    /// Strikes out a pin by name on each chunk that has one, and tells on which; and the number of the last connections
    /// that the server may have been told of these pins on.
    pub(crate) fn take_named(&self, digests: &[KeyDigest]) -> (u32, Vec<bool>) {
        let mut table = lock(&self.table);
        let mut take = |digest: &KeyDigest| {
            let Entry::Occupied(mut named) = table.named.entry(*digest) else {
                return false;
            };
            named.get_mut().pins -= 1;
            if named.get().pins == 0 {
                named.remove();
            }
            true
        };
        let taken = digests.iter().map(&mut take).collect();
        (table.link, taken)
    }

    /// The server says that pins by name on a chunk have run out.
    pub(crate) fn expired(&self, digest: KeyDigest) {
        lock(&self.table).named.remove(&digest);
    }

    /// The session has ended: revokes all guards, and says of how many chunks. No more are taken up.
    pub(crate) fn end(&self) -> u64 {
        self.go_on().guards.iter().map(ChunkRef::revoke).sum()
    }

    /// Whether there are guards.
    pub(crate) fn has_guards(&self) -> bool {
        !lock(&self.table).groups.is_empty()
    }

    /// The session is about to go on on new connections.
    pub(crate) fn go_on(&self) -> Assertion {
        let mut table = lock(&self.table);
        table.link = table.link.wrapping_add(1);
        let link = table.link;
        table.guards_to_release.clear();
        table.named_to_release.clear();
        self.count(&table);
        let groups = table.groups.iter().filter_map(|(_, group)| group.upgrade()).collect::<Vec<_>>();
        let mut pins = HashMap::<(KeyDigest, u32), PinsRecord>::new();
        let record = |digest: KeyDigest, generation: u32| PinsRecord {
            digest,
            generation: generation.into(),
            guards: 0.into(),
            named: 0.into(),
            reserved: 0.into(),
        };
        let guards = groups.iter().flat_map(|group| PinGroup::guards(group, link)).collect::<Vec<_>>();
        for guard in &guards {
            let of = (guard.digest(), guard.generation());
            pins.entry(of).or_insert_with(|| record(of.0, of.1)).guards += 1;
        }
        for (&digest, named) in &table.named {
            let of = (digest, named.generation);
            pins.entry(of).or_insert_with(|| record(of.0, of.1)).named = named.pins.into();
        }
        // A group that only this one kept ends here, and is forgotten through the table.
        drop(table);
        drop(groups);
        Assertion { link, records: pins.into_values().collect(), guards }
    }

    fn count(&self, table: &Table) -> usize {
        let count = table.guards_to_release.len() + table.named_to_release.len();
        self.to_release.store(count, Ordering::Release);
        count
    }
}
