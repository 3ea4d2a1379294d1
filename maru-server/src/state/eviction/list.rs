//! Lists that are threaded through the entries: no memory of their own but two ends.

use super::Entries;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;
/// Entries that are passed at most to find the place of another.
const MAX_STEPS: u32 = 16;

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
    fn links(&self) -> Links;

    fn links_mut(&mut self) -> &mut Links;
}

/// One end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
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
    /// The slot at an end.
    pub(super) fn at(&self, end: End) -> Option<u32> {
        let slot = match end {
            End::Front => self.first,
            End::Back => self.last,
        };
        (slot != NONE).then_some(slot)
    }

    pub(super) fn push_back<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32) {
        self.link(entries, slot, Links { before: self.last, after: NONE });
    }

    /// Puts a slot behind those that are as old or older, as the list is in the order of age; where that is more than a
    /// few steps from both ends, as far as these steps go.
    pub(super) fn insert<M: Linked>(
        &mut self,
        entries: &mut impl Entries<M>,
        slot: u32,
        age: impl Fn(&M) -> u32,
    ) {
        let own = age(entries.mark(slot));
        let mut links = Links { before: self.last, after: NONE };
        if self.first != NONE {
            let from_front = age(entries.mark(self.first)).saturating_sub(own);
            let from_back = own.saturating_sub(age(entries.mark(self.last)));
            if from_front < from_back {
                links = Links { before: NONE, after: self.first };
                for _ in 0..MAX_STEPS {
                    if links.after == NONE || age(entries.mark(links.after)) < own {
                        break;
                    }
                    links = Links { before: links.after, after: entries.mark(links.after).links().after };
                }
            } else {
                for _ in 0..MAX_STEPS {
                    if links.before == NONE || age(entries.mark(links.before)) >= own {
                        break;
                    }
                    links = Links { before: entries.mark(links.before).links().before, after: links.before };
                }
            }
        }
        self.link(entries, slot, links);
    }

    /// Takes out a slot that is in this list.
    pub(super) fn unlink<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32) {
        let Links { before, after } = entries.mark(slot).links();
        match before {
            NONE => self.first = after,
            before => entries.mark_mut(before).links_mut().after = after,
        }
        match after {
            NONE => self.last = before,
            after => entries.mark_mut(after).links_mut().before = before,
        }
    }

    fn link<M: Linked>(&mut self, entries: &mut impl Entries<M>, slot: u32, links: Links) {
        *entries.mark_mut(slot).links_mut() = links;
        match links.before {
            NONE => self.first = slot,
            before => entries.mark_mut(before).links_mut().after = slot,
        }
        match links.after {
            NONE => self.last = slot,
            after => entries.mark_mut(after).links_mut().before = slot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Digest, Group};
    use super::*;

    struct Node {
        links: Links,
        age: u32,
    }

    impl Linked for Node {
        fn links(&self) -> Links {
            self.links
        }

        fn links_mut(&mut self) -> &mut Links {
            &mut self.links
        }
    }

    struct Nodes(Vec<Node>);

    impl Entries<Node> for Nodes {
        fn mark(&self, slot: u32) -> &Node {
            &self.0[slot as usize]
        }

        fn mark_mut(&mut self, slot: u32) -> &mut Node {
            &mut self.0[slot as usize]
        }

        fn digest(&self, slot: u32) -> Digest {
            Digest(u128::from(slot))
        }

        fn generation(&self, _slot: u32) -> u32 {
            0
        }

        fn is_pinned(&self, _slot: u32) -> bool {
            false
        }

        fn group(&self, _slot: u32) -> Option<Group> {
            None
        }

        fn find(&self, _digest: Digest) -> Option<u32> {
            None
        }

        fn holds(&self, _slot: u32, _generation: u32) -> bool {
            false
        }
    }

    /// The ages in a list into which entries of these ages were put one by one.
    fn put(ages: &[u32]) -> Vec<u32> {
        let mut nodes = Nodes(ages.iter().map(|&age| Node { links: Links::default(), age }).collect());
        let mut list = List::default();
        (0..).zip(ages).for_each(|(slot, _)| list.insert(&mut nodes, slot, |node| node.age));
        let ages = |from: End, next: fn(Links) -> u32| {
            let slots = std::iter::successors(list.at(from), |slot| {
                let next = next(nodes.mark(*slot).links());
                (next != NONE).then_some(next)
            });
            slots.map(|slot| nodes.mark(slot).age).collect::<Vec<_>>()
        };
        let forwards = ages(End::Front, |links| links.after);
        let mut backwards = ages(End::Back, |links| links.before);
        backwards.reverse();
        assert_eq!(forwards, backwards);
        forwards
    }

    #[test]
    fn a_list_is_in_the_order_of_age() {
        assert_eq!(put(&[5, 3, 9, 4, 4, 1, 8, 0, 10]), [10, 9, 8, 5, 4, 4, 3, 1, 0]);
    }

    #[test]
    fn far_from_both_ends_the_order_is_nearly_so() {
        let ages = (0..100).rev().map(|age| 2 * age).chain([101, 41, 159]).collect::<Vec<_>>();
        let list = put(&ages);
        let place = |age| list.iter().position(|other| *other == age).unwrap();
        assert_eq!([place(159), place(101), place(41)], [16, 17, 86]);
    }
}
