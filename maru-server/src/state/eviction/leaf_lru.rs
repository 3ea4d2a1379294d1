//! The least recently used goes first, of those that nothing cached continues.

use slab::Slab;

use super::list::{Linked, Links, List, NONE};
use super::{Chain, Digest, Entries, EvictionPolicy, Group, Removal};

/// Where an entry is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nowhere: it is pinned, or has no owner.
    #[default]
    Unlisted,
    /// Among those that may go at once.
    Leaves,
    /// Among those that a cached entry continues.
    Inner,
}

/// What is kept with each entry.
#[derive(Clone, Debug)]
pub struct Mark {
    links: Links,
    /// The slot of the entry that this one continues, and its generation.
    predecessor: u32,
    predecessor_generation: u32,
    /// Entries that continue this one.
    successors: u32,
    place: Place,
    /// Asked for since it was listed.
    touched: bool,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark {
            links: Links::default(),
            predecessor: NONE,
            predecessor_generation: 0,
            successors: 0,
            place: Place::Unlisted,
            touched: false,
        }
    }
}

impl Linked for Mark {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The lists of one group, the coldest first.
#[derive(Debug, Default)]
struct Lists {
    leaves: List,
    inner: List,
}

/// See the module.
#[derive(Debug)]
pub struct LeafLru {
    groups: Slab<Lists>,
}

impl LeafLru {
    fn lists(&mut self, group: Group) -> &mut Lists {
        &mut self.groups[group.0 as usize]
    }

    fn list(&mut self, entries: &mut impl Entries<Mark>, slot: u32, group: Group, place: Place) {
        let lists = self.lists(group);
        match place {
            Place::Leaves => lists.leaves.push_back(entries, slot),
            Place::Inner => lists.inner.push_back(entries, slot),
            Place::Unlisted => {}
        }
        let mark = entries.mark_mut(slot);
        mark.place = place;
        mark.touched = false;
    }

    fn unlist(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        let Some(group) = entries.group(slot) else { return };
        let lists = self.lists(group);
        match entries.mark(slot).place {
            Place::Leaves => lists.leaves.unlink(entries, slot),
            Place::Inner => lists.inner.unlink(entries, slot),
            Place::Unlisted => {}
        }
        entries.mark_mut(slot).place = Place::Unlisted;
    }
}

impl EvictionPolicy for LeafLru {
    type Mark = Mark;

    fn new(_max_entries: u32) -> LeafLru {
        LeafLru { groups: Slab::new() }
    }

    fn open_group(&mut self) -> Group {
        Group(u32::try_from(self.groups.insert(Lists::default())).expect("there are fewer owners than that"))
    }

    fn close_group(&mut self, group: Group) {
        let lists = self.groups.remove(group.0 as usize);
        debug_assert!(lists.leaves.first().is_none() && lists.inner.first().is_none(), "all were disowned");
    }

    fn insert(&mut self, entries: &mut impl Entries<Mark>, slot: u32, chain: &Chain) {
        if let Some(predecessor) = chain.previous().and_then(|digest| entries.find(digest)) {
            let generation = entries.generation(predecessor);
            entries.mark_mut(predecessor).successors += 1;
            let mark = entries.mark_mut(slot);
            (mark.predecessor, mark.predecessor_generation) = (predecessor, generation);
        }
        if let Some(group) = entries.group(slot) {
            self.list(entries, slot, group, Place::Leaves);
        }
    }

    fn touch(&mut self, entries: &mut impl Entries<Mark>, slot: u32, _chain: &Chain) {
        entries.mark_mut(slot).touched = true;
    }

    fn miss(&mut self, _entries: &mut impl Entries<Mark>, _digest: Digest, _chain: &Chain) {}

    fn unpin(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        if entries.mark(slot).place == Place::Unlisted
            && let Some(group) = entries.group(slot)
        {
            self.list(entries, slot, group, Place::Leaves);
        }
    }

    fn disown(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        self.unlist(entries, slot);
    }

    fn remove(&mut self, entries: &mut impl Entries<Mark>, slot: u32, _removal: Removal) {
        self.unlist(entries, slot);
        let Mark { predecessor, predecessor_generation, .. } = *entries.mark(slot);
        if !entries.holds(predecessor, predecessor_generation) {
            return;
        }
        let mark = entries.mark_mut(predecessor);
        mark.successors -= 1;
        // It was used when its last successor was, if not later, and that one was the coldest.
        if mark.successors == 0
            && mark.place == Place::Inner
            && let Some(group) = entries.group(predecessor)
        {
            self.unlist(entries, predecessor);
            self.lists(group).leaves.push_front(entries, predecessor);
            entries.mark_mut(predecessor).place = Place::Leaves;
        }
    }

    fn victim(&mut self, entries: &mut impl Entries<Mark>, group: Group) -> Option<u32> {
        // Each round either ends this, or pays for a touch, a pin or a successor that came since the entry was listed.
        loop {
            let lists = self.lists(group);
            let (slot, place) = match (lists.leaves.first(), lists.inner.first()) {
                (Some(leaf), _) => (leaf, Place::Leaves),
                (None, Some(inner)) => (inner, Place::Inner),
                (None, None) => return None,
            };
            let mark = entries.mark(slot);
            let (touched, successors) = (mark.touched, mark.successors);
            if entries.is_pinned(slot) {
                self.unlist(entries, slot);
            } else if place == Place::Leaves && successors > 0 {
                self.unlist(entries, slot);
                self.list(entries, slot, group, Place::Inner);
                entries.mark_mut(slot).touched = touched;
            } else if touched {
                self.unlist(entries, slot);
                self.list(entries, slot, group, place);
            } else {
                return Some(slot);
            }
        }
    }

    fn check(&self, entries: &impl Entries<Mark>, slots: impl Iterator<Item = u32>) {
        for slot in slots {
            let listed = entries.mark(slot).place != Place::Unlisted;
            let is_owned = entries.group(slot).is_some();
            assert!(!listed || is_owned, "the entry in slot {slot} is listed and has no owner");
            assert!(listed || !is_owned || entries.is_pinned(slot), "the entry in slot {slot} is nowhere");
        }
    }
}
