//! Telling a callback of every own region, exactly once.

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// An own region that pages can be had from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAdded {
    /// The region.
    pub region_id: u32,
    /// Its pages.
    pub pages: u32,
    /// Bytes of a page.
    pub page_size: usize,
}

type Callback = Arc<dyn Fn(&RegionAdded) + Send + Sync>;

/// Regions, and how far they have been told of.
#[derive(Default)]
pub(crate) struct Announcements {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    regions: Vec<RegionAdded>,
    callback: Option<Callback>,
    /// Regions that the callback knows of.
    told: usize,
    /// Some thread is telling: it will tell of what is added meanwhile, too.
    telling: bool,
}

impl Announcements {
    /// Replaces the callback, and tells the new one of all regions.
    pub(crate) fn set_callback(&self, callback: Option<Callback>) {
        let mut state = lock(&self.state);
        state.callback = callback;
        state.told = 0;
        drop(state);
        self.tell();
    }

    /// Adds a region.
    pub(crate) fn add(&self, region: RegionAdded) {
        lock(&self.state).regions.push(region);
        self.tell();
    }

    /// Calls back without holding the lock, so that the callback may do whatever it likes.
    fn tell(&self) {
        if std::mem::replace(&mut lock(&self.state).telling, true) {
            return;
        }
        loop {
            let mut state = lock(&self.state);
            let next = state.regions.get(state.told).copied();
            let (Some(region), Some(callback)) = (next, state.callback.clone()) else {
                state.telling = false;
                return;
            };
            state.told += 1;
            drop(state);
            callback(&region);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    fn region(region_id: u32) -> RegionAdded {
        RegionAdded { region_id, pages: 1, page_size: 4096 }
    }

    fn recorder() -> (Arc<Mutex<Vec<u32>>>, Callback) {
        let seen = Arc::<Mutex<Vec<u32>>>::default();
        let log = Arc::clone(&seen);
        (seen, Arc::new(move |added: &RegionAdded| lock(&log).push(added.region_id)))
    }

    #[test]
    fn region_callback_fires_exactly_once_per_region() {
        let announcements = Announcements::default();
        announcements.add(region(1));
        let (seen, callback) = recorder();
        announcements.set_callback(Some(callback));
        std::thread::scope(|scope| {
            for id in 2..50 {
                let announcements = &announcements;
                scope.spawn(move || announcements.add(region(id)));
            }
        });
        // Whoever was last to add either told or left it to a thread that is done by now.
        let mut ids = lock(&seen).clone();
        ids.sort_unstable();
        assert_eq!(ids, (1..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_new_callback_is_told_of_everything() {
        let announcements = Announcements::default();
        announcements.add(region(1));
        announcements.add(region(2));
        for _ in 0..2 {
            let (seen, callback) = recorder();
            announcements.set_callback(Some(callback));
            assert_eq!(*lock(&seen), [1, 2]);
        }
    }

    #[test]
    fn a_callback_may_cause_further_regions() {
        let announcements = Arc::<Announcements>::default();
        let (seen, record) = recorder();
        let weak: Weak<Announcements> = Arc::downgrade(&announcements);
        announcements.set_callback(Some(Arc::new(move |added| {
            record(added);
            if added.region_id == 1 {
                weak.upgrade().unwrap().add(region(2));
            }
        })));
        announcements.add(region(1));
        assert_eq!(*lock(&seen), [1, 2]);
    }
}
