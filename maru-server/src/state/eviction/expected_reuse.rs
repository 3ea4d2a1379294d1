//! The policy: what is worth the least goes first, of those that nothing cached continues.
//!
//! What an entry is worth is learnt ([`Reuse`]), for the classes of [`class`](super::class). Within a class it rises and
//! falls with the time since the entry was last asked for: what comes back after a while is worth the most shortly before.
//! So each class has a list of its leaves in the order in which they were last asked for, and what is worth the least is at
//! one of the two ends of some list.
//!
//! A touch changes the entry alone. That a leaf stands in the wrong place since, or has a pin, is found out when it comes to
//! an end of its list; so each touch and each pin costs at most one move. An entry that gets a successor leaves its list,
//! and comes back to it when it has lost the last one.

use slab::Slab;

use super::asked::Asked;
use super::class::{CLASSES, class, class_again};
use super::history::History;
use super::list::{End, Linked, Links, List, NONE};
use super::reuse::Reuse;
use super::{Chain, Digest, Entries, EvictionPolicy, Group};

/// Where an entry is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nowhere: it is pinned, or has no owner.
    #[default]
    Unlisted,
    /// In the list of this class.
    Class(u8),
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
    /// When it was last asked for.
    last: u32,
    /// What it was then.
    class: u8,
    place: Place,
    /// Asked for since it was listed.
    touched: bool,
}

const _: () = assert!(size_of::<Mark>() <= 28);

impl Default for Mark {
    fn default() -> Mark {
        Mark {
            links: Links::default(),
            predecessor: NONE,
            predecessor_generation: 0,
            successors: 0,
            last: 0,
            class: 0,
            place: Place::Unlisted,
            touched: false,
        }
    }
}

impl Linked for Mark {
    fn links(&self) -> Links {
        self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[cfg(test)]
impl Mark {
    pub(super) fn class(&self) -> u8 {
        self.class
    }
}

/// The lists of one group.
#[derive(Debug, Default)]
struct Lists {
    /// Leaves, what was asked for longest ago at the front.
    classes: [List; CLASSES],
    /// Those that a cached entry continues, in the order in which it came to that.
    inner: List,
}

impl Lists {
    fn of(&mut self, place: Place) -> Option<&mut List> {
        match place {
            Place::Class(class) => Some(&mut self.classes[usize::from(class)]),
            Place::Inner => Some(&mut self.inner),
            Place::Unlisted => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct ExpectedReuse {
    groups: Slab<Lists>,
    reuse: Reuse,
    history: History,
    asked: Asked,
    entries: u32,
}

impl ExpectedReuse {
    /// Lists an entry where it belongs.
    fn list(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        let Some(group) = entries.group(slot) else { return };
        let mark = entries.mark_mut(slot);
        mark.touched = false;
        mark.place = if mark.successors > 0 { Place::Inner } else { Place::Class(mark.class) };
        let place = mark.place;
        let list = self.groups[group.0 as usize].of(place).expect("this place has a list");
        match place {
            Place::Inner => list.push_back(entries, slot),
            _ => list.insert(entries, slot, |mark| self.reuse.age(mark.last)),
        }
    }

    fn unlist(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        let place = std::mem::take(&mut entries.mark_mut(slot).place);
        let Some(group) = entries.group(slot) else { return };
        if let Some(list) = self.groups[group.0 as usize].of(place) {
            list.unlink(entries, slot);
        }
    }

    /// Lists an entry anew that became a leaf, or is one no more.
    fn move_listed(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        if entries.mark(slot).place != Place::Unlisted {
            self.unlist(entries, slot);
            self.list(entries, slot);
        }
    }

    /// The entry at an end of a list that may go first, once those that may not, or were touched, are put where they
    /// belong.
    fn end(&mut self, entries: &mut impl Entries<Mark>, group: Group, place: Place, end: End) -> Option<u32> {
        loop {
            let slot = self.groups[group.0 as usize].of(place)?.at(end)?;
            let is_pinned = entries.is_pinned(slot);
            if !is_pinned && !entries.mark(slot).touched {
                return Some(slot);
            }
            self.unlist(entries, slot);
            if !is_pinned {
                self.list(entries, slot);
            }
        }
    }

    /// Something is asked for that has no entry, and was of this class when it was last asked for.
    fn ask_again(&mut self, before: Option<(u8, u32)>, chain: &Chain) -> (u8, u32) {
        let before = before.filter(|(class, last)| self.reuse.again(*class, *last));
        let class = before.map_or_else(|| class(false, chain), |(before, _)| class_again(before, chain));
        (class, self.reuse.asked(class))
    }

    /// The leaf that is worth the least.
    fn least_leaf(&mut self, entries: &mut impl Entries<Mark>, group: Group) -> Option<u32> {
        let mut least = None;
        for class in 0..CLASSES {
            let place = Place::Class(u8::try_from(class).expect("there are fewer classes"));
            for end in [End::Front, End::Back] {
                let Some(slot) = self.end(entries, group, place, end) else { break };
                let mark = entries.mark(slot);
                // Of two that are worth the same, as without any evidence, the one goes that was asked for longer ago.
                let worth = (self.reuse.worth(mark.class, mark.last), u32::MAX - self.reuse.age(mark.last));
                if least.is_none_or(|(least, _)| worth < least) {
                    least = Some((worth, slot));
                }
            }
        }
        least.map(|(_, slot)| slot)
    }
}

impl EvictionPolicy for ExpectedReuse {
    type Mark = Mark;

    fn new(max_entries: u32) -> ExpectedReuse {
        let reuse = Reuse::new(max_entries);
        ExpectedReuse {
            groups: Slab::new(),
            history: History::new(reuse.span()),
            reuse,
            asked: Asked::new(max_entries),
            entries: 0,
        }
    }

    fn open_group(&mut self) -> Group {
        Group(u32::try_from(self.groups.insert(Lists::default())).expect("there are fewer owners than that"))
    }

    fn close_group(&mut self, group: Group) {
        self.groups.remove(group.0 as usize);
    }

    fn insert(&mut self, entries: &mut impl Entries<Mark>, slot: u32, chain: &Chain) {
        self.entries += 1;
        let digest = entries.digest(slot);
        let previous = self.asked.take(digest).unwrap_or(chain.previous());
        // A store is no ask: most come after one. What nobody asked for is asked for now.
        let (class, last) = self.history.take(digest).unwrap_or_else(|| self.ask_again(None, chain));
        let mark = entries.mark_mut(slot);
        (mark.class, mark.last) = (class, last);
        if let Some(predecessor) = previous.and_then(|digest| entries.find(digest)) {
            let generation = entries.generation(predecessor);
            let mark = entries.mark_mut(slot);
            (mark.predecessor, mark.predecessor_generation) = (predecessor, generation);
            let mark = entries.mark_mut(predecessor);
            mark.successors += 1;
            if mark.successors == 1 {
                self.move_listed(entries, predecessor);
            }
        }
        self.list(entries, slot);
    }

    fn touch(&mut self, entries: &mut impl Entries<Mark>, slot: u32, chain: &Chain) {
        let mark = entries.mark_mut(slot);
        mark.touched = true;
        let came_back = self.reuse.again(mark.class, mark.last);
        mark.class = if came_back { class_again(mark.class, chain) } else { class(false, chain) };
        mark.last = self.reuse.asked(mark.class);
    }

    fn miss(&mut self, _entries: &mut impl Entries<Mark>, digest: Digest, chain: &Chain) {
        let before = self.history.take(digest);
        let (class, last) = self.ask_again(before, chain);
        self.history.put(digest, class, last, last);
        self.asked.put(digest, chain.previous());
    }

    fn prefetch(&self, digest: Digest) {
        self.history.prefetch(digest);
        self.asked.prefetch(digest);
    }

    fn unpin(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        if entries.mark(slot).place == Place::Unlisted {
            self.list(entries, slot);
        }
    }

    fn disown(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        self.unlist(entries, slot);
    }

    fn remove(&mut self, entries: &mut impl Entries<Mark>, slot: u32) {
        self.entries -= 1;
        self.unlist(entries, slot);
        let digest = entries.digest(slot);
        let Mark { predecessor, predecessor_generation, class, last, .. } = *entries.mark(slot);
        self.history.put(digest, class, last, self.reuse.now());
        if entries.holds(predecessor, predecessor_generation) {
            let mark = entries.mark_mut(predecessor);
            mark.successors -= 1;
            if mark.successors == 0 {
                self.move_listed(entries, predecessor);
            }
        }
    }

    fn victim(&mut self, entries: &mut impl Entries<Mark>, group: Group) -> Option<u32> {
        self.reuse.refresh();
        self.least_leaf(entries, group)
            // What was touched may have gone to the list of a class that was looked at before, and is there now.
            .or_else(|| self.least_leaf(entries, group))
            .or_else(|| self.end(entries, group, Place::Inner, End::Front))
    }

    fn check(&self, entries: &impl Entries<Mark>, slots: impl Iterator<Item = u32>) {
        let mut count = 0;
        for slot in slots {
            count += 1;
            let mark = entries.mark(slot);
            let is_owned = entries.group(slot).is_some();
            match mark.place {
                Place::Unlisted => {
                    assert!(!is_owned || entries.is_pinned(slot), "the entry in slot {slot} is nowhere");
                }
                Place::Class(_) => assert_eq!(mark.successors, 0, "the entry in slot {slot} is no leaf"),
                Place::Inner => assert!(mark.successors > 0, "the entry in slot {slot} is a leaf"),
            }
            let is_listed = mark.place != Place::Unlisted;
            assert!(!is_listed || is_owned, "the entry in slot {slot} is listed and has no owner");
        }
        assert_eq!(self.entries, count, "entries are counted right");
    }
}
