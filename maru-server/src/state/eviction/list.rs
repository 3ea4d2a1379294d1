//! Lists that are threaded through the entries: no memory of their own but two ends.

use super::Entries;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// The place of an entry in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    before: u32,
    after: u32,
}

impl Default for Links {
    fn default() -> Links {
        Links { before: NONE, after: NONE }
    }
}

/// A mark that has links in it.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// The two ends of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> List {
        List { first: NONE, last: NONE }
    }
}

impl List {
    /// The slot at the front.
    pub(super) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    pub(super) fn push_back<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32) {
        *entries.mark_mut(slot).links() = Links { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = slot,
            last => entries.mark_mut(last).links().after = slot,
        }
        self.last = slot;
    }

    pub(super) fn push_front<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32) {
        *entries.mark_mut(slot).links() = Links { before: NONE, after: self.first };
        match self.first {
            NONE => self.last = slot,
            first => entries.mark_mut(first).links().before = slot,
        }
        self.first = slot;
    }

    /// Takes out a slot that is in this list.
    pub(super) fn unlink<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32) {
        let Links { before, after } = *entries.mark_mut(slot).links();
        match before {
            NONE => self.first = after,
            before => entries.mark_mut(before).links().after = after,
        }
        match after {
            NONE => self.last = before,
            after => entries.mark_mut(after).links().before = before,
        }
    }
}
