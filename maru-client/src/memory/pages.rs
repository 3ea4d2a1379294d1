//! The pages of one own region: which are free, and who has each of the others.

use super::bitmap::Bitmap;
use crate::error::PageState;

/// What a page is. Unlike [`PageState`] it knows the one case in which two answers of the server cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Held,
    Detached,
    InDoubt,
    Stored,
    /// In doubt, and already handed back by the server: it was stored, and deleted by somebody, before the thread
    /// that stored it looked at its own answer.
    ReclaimedInDoubt,
}

impl From<State> for PageState {
    fn from(state: State) -> PageState {
        match state {
            State::Free => PageState::Free,
            State::Held => PageState::Held,
            State::Detached => PageState::Detached,
            State::InDoubt | State::ReclaimedInDoubt => PageState::InDoubt,
            State::Stored => PageState::Stored,
        }
    }
}

/// The page table of a region: gives the lowest free page first, and lets each page change hands only in the ways that
/// make sense. Every operation takes the same few steps however many pages there are.
#[derive(Debug)]
pub(super) struct PageAllocator {
    states: Box<[State]>,
    free: Bitmap,
    free_count: u32,
    stored_count: u32,
}

impl PageAllocator {
    /// A region whose pages are all free.
    pub(super) fn new(pages: u32) -> PageAllocator {
        PageAllocator {
            states: vec![State::Free; pages as usize].into_boxed_slice(),
            free: Bitmap::full(pages),
            free_count: pages,
            stored_count: 0,
        }
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// Pages that are neither free nor the server's: somebody may write into them.
    pub(super) fn outstanding(&self) -> usize {
        self.states.len() - self.free_count as usize - self.stored_count as usize
    }

    /// Pages that are known by their location only.
    pub(super) fn detached(&self) -> impl Iterator<Item = u32> {
        let is_detached = |(page, state): (u32, &State)| (*state == State::Detached).then_some(page);
        (0..).zip(&self.states).filter_map(is_detached)
    }

    /// Takes the lowest free page, held from now on.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.free.first()?;
        self.set(page, State::Held);
        Some(page)
    }

    /// A held page goes back.
    pub(super) fn release(&mut self, page: u32) -> Result<(), PageState> {
        self.change(page, State::Held, State::Free)
    }

    /// A held page is known by its location only, from now on.
    pub(super) fn detach(&mut self, page: u32) -> Result<(), PageState> {
        self.change(page, State::Held, State::Detached)
    }

    /// A detached page is held again.
    pub(super) fn attach(&mut self, page: u32) -> Result<(), PageState> {
        self.change(page, State::Detached, State::Held)
    }

    /// A detached page goes back.
    pub(super) fn release_detached(&mut self, page: u32) -> Result<(), PageState> {
        self.change(page, State::Detached, State::Free)
    }

    /// A held page is about to be registered.
    pub(super) fn submit(&mut self, page: u32) -> Result<(), PageState> {
        self.change(page, State::Held, State::InDoubt)
    }

    /// What became of the registration is known.
    pub(super) fn settle(&mut self, page: u32, stored: bool) -> Result<(), PageState> {
        match self.state(page)? {
            State::InDoubt if stored => self.set(page, State::Stored),
            State::InDoubt | State::ReclaimedInDoubt => self.set(page, State::Free),
            other => return Err(other.into()),
        }
        Ok(())
    }

    /// The server hands a stored page back, since its entry is gone.
    pub(super) fn reclaim(&mut self, page: u32) -> Result<(), PageState> {
        match self.state(page)? {
            State::Stored => self.set(page, State::Free),
            State::InDoubt => self.set(page, State::ReclaimedInDoubt),
            other => return Err(other.into()),
        }
        Ok(())
    }

    /// A page in doubt whose store came to nothing is about to be registered once more.
    pub(super) fn resubmit(&mut self, page: u32) -> Result<(), PageState> {
        match self.state(page)? {
            State::InDoubt | State::ReclaimedInDoubt => self.set(page, State::InDoubt),
            other => return Err(other.into()),
        }
        Ok(())
    }

    /// Takes over what the server says of a page, with nothing under way between the two: whether it sees it with this
    /// instance. A page in doubt is left to who waits to learn, if anybody does.
    pub(super) fn compare(&mut self, page: u32, held: bool, nobody_waits: bool) {
        match self.state(page) {
            Ok(State::Stored) if held => self.set(page, State::Free),
            Ok(State::InDoubt | State::ReclaimedInDoubt) if nobody_waits => {
                self.set(page, if held { State::Free } else { State::Stored });
            }
            _ => {}
        }
    }

    fn state(&self, page: u32) -> Result<State, PageState> {
        self.states.get(page as usize).copied().ok_or(PageState::Missing)
    }

    fn change(&mut self, page: u32, from: State, to: State) -> Result<(), PageState> {
        let state = self.state(page)?;
        if state != from {
            return Err(state.into());
        }
        self.set(page, to);
        Ok(())
    }

    fn set(&mut self, page: u32, to: State) {
        let state = &mut self.states[page as usize];
        match *state {
            State::Free => {
                self.free.remove(page);
                self.free_count -= 1;
            }
            State::Stored => self.stored_count -= 1,
            _ => {}
        }
        *state = to;
        match to {
            State::Free => {
                self.free.insert(page);
                self.free_count += 1;
            }
            State::Stored => self.stored_count += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What may be done to a page that somebody has.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take,
        Release,
        Detach,
        Attach,
        ReleaseDetached,
        Submit,
        Settle(bool),
        Reclaim,
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            1 => Just(Step::Release),
            1 => Just(Step::Detach),
            1 => Just(Step::Attach),
            1 => Just(Step::ReleaseDetached),
            2 => Just(Step::Submit),
            2 => any::<bool>().prop_map(Step::Settle),
            1 => Just(Step::Reclaim),
        ]
    }

    /// The rules once more, as a table.
    fn allowed(step: Step, from: PageState) -> Option<PageState> {
        match (step, from) {
            (Step::Release, PageState::Held) => Some(PageState::Free),
            (Step::Detach, PageState::Held) => Some(PageState::Detached),
            (Step::Attach, PageState::Detached) => Some(PageState::Held),
            (Step::ReleaseDetached, PageState::Detached) => Some(PageState::Free),
            (Step::Submit, PageState::Held) => Some(PageState::InDoubt),
            (Step::Settle(true), PageState::InDoubt) => Some(PageState::Stored),
            (Step::Settle(false), PageState::InDoubt) => Some(PageState::Free),
            (Step::Reclaim, PageState::Stored) => Some(PageState::Free),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn hands_pages_out_like_a_sorted_set_of_free_ones(
            pages in 1u32..200, plan in prop::collection::vec((steps(), any::<prop::sample::Index>()), 0..400),
        ) {
            let mut allocator = PageAllocator::new(pages);
            let mut free = (0..pages).collect::<BTreeSet<_>>();
            let mut others = BTreeMap::new();
            for (step, index) in plan {
                if let Step::Take = step {
                    let taken = free.pop_first();
                    prop_assert_eq!(allocator.take(), taken);
                    others.extend(taken.map(|page| (page, PageState::Held)));
                    continue;
                }
                let page = u32::try_from(index.index(pages as usize)).unwrap();
                let from = others.get(&page).copied().unwrap_or(PageState::Free);
                if matches!((step, from), (Step::Reclaim, PageState::InDoubt)) {
                    continue; // Has a test of its own.
                }
                let done = match step {
                    Step::Take => unreachable!("taken care of"),
                    Step::Release => allocator.release(page),
                    Step::Detach => allocator.detach(page),
                    Step::Attach => allocator.attach(page),
                    Step::ReleaseDetached => allocator.release_detached(page),
                    Step::Submit => allocator.submit(page),
                    Step::Settle(stored) => allocator.settle(page, stored),
                    Step::Reclaim => allocator.reclaim(page),
                };
                let to = allowed(step, from);
                prop_assert_eq!(done, to.map(|_| ()).ok_or(from), "{:?} of a page that is {:?}", step, from);
                match to {
                    Some(PageState::Free) => {
                        others.remove(&page);
                        free.insert(page);
                    }
                    Some(to) => {
                        others.insert(page, to);
                    }
                    None => {}
                }
                let outstanding = others.values().filter(|state| **state != PageState::Stored).count();
                prop_assert_eq!(allocator.outstanding(), outstanding);
                prop_assert_eq!(allocator.free_count() as usize, free.len());
            }
        }
    }

    #[test]
    fn double_free_is_refused() {
        let mut allocator = PageAllocator::new(2);
        let page = allocator.take().unwrap();
        allocator.release(page).unwrap();
        assert_eq!(allocator.release(page), Err(PageState::Free));
        assert_eq!(allocator.free_count(), 2, "the page is free once");
    }

    #[test]
    fn a_stored_page_can_not_be_freed() {
        let mut allocator = PageAllocator::new(1);
        let page = allocator.take().unwrap();
        allocator.submit(page).unwrap();
        allocator.settle(page, true).unwrap();
        assert_eq!(allocator.release(page), Err(PageState::Stored));
        assert_eq!(allocator.release_detached(page), Err(PageState::Stored));
    }

    #[test]
    fn a_page_that_does_not_exist_is_named_so() {
        let mut allocator = PageAllocator::new(1);
        assert_eq!(allocator.release(1), Err(PageState::Missing));
        assert_eq!(allocator.reclaim(u32::MAX), Err(PageState::Missing));
    }

    #[test]
    fn a_page_reclaimed_before_its_registration_is_settled_is_free_after_it() {
        let mut allocator = PageAllocator::new(1);
        let page = allocator.take().unwrap();
        allocator.submit(page).unwrap();
        allocator.reclaim(page).unwrap();
        assert_eq!(allocator.take(), None, "the thread that stored it has not looked yet");
        allocator.settle(page, true).unwrap();
        assert_eq!(allocator.take(), Some(page));
    }
}
