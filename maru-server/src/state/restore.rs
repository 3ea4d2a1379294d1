//! A restart: the state as it was saved, and the time until its instances have said what they have pinned.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::changes::Change;
use super::checksums::Checksums;
use super::eviction::{Chain, EvictionPolicy};
use super::instances::Instance;
use super::pages::{Page, Pages};
use super::regions::{Region, Regions};
use super::{Digest, InstanceNumber, Limits, PoolId, PoolSpec, RegionId, State, Token};

/// What outlives the server's process: as much of it as the [changes](super::Change) tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The number of the last instance that there was.
    pub last_instance: u32,
    /// The id of the last region that there was.
    pub last_region: u32,
    /// No registration had a greater number, wrapping around.
    pub generation: u32,
    /// No instance relies on a longer grace period.
    pub grace: Duration,
    /// The instances.
    pub instances: Vec<SavedInstance>,
    /// The regions.
    pub regions: Vec<SavedRegion>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedInstance {
    /// Its number.
    pub number: InstanceNumber,
    /// The name that it gave itself.
    pub name: String,
    /// The secret by which it is found again.
    pub token: Token,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRegion {
    /// Its id.
    pub id: RegionId,
    /// Its owner; an orphan where there is none, or no such instance.
    pub owner: Option<InstanceNumber>,
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages.
    pub pages: u32,
    /// Its pool.
    pub pool: PoolId,
    /// Bytes from the start of the pool.
    pub pool_offset: u64,
    /// Bytes that it takes of the pool.
    pub extent: u64,
    /// Pages that wait for the owner.
    pub freed: Vec<u32>,
    /// Entries.
    pub entries: Vec<SavedEntry>,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedEntry {
    /// Its page.
    pub page: u32,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub length: u32,
    /// The number of its registration.
    pub generation: u32,
    /// The checksum that it was registered with; 0 for none.
    pub checksum: u32,
}

/// What was saved can't be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The limit on entries is lower than it was.
    #[error("its regions have {pages} pages, more than --max-entries {limit}; raise that limit")]
    TooManyPages {
        /// Pages of all regions.
        pages: u64,
        /// The limit.
        limit: u32,
    },
    /// The pool is smaller than it was.
    #[error("its region {} does not fit into the pool any more; give the pool the size of before", .0.0)]
    PoolTooSmall(RegionId),
    /// It contradicts itself.
    #[error("it contradicts itself: {0}")]
    Contradiction(String),
}

/// Until when nothing that was there before a restart may go, since somebody may be reading it.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Instances that have not said yet what they have pinned.
    waits_for: HashSet<InstanceNumber>,
    end: Duration,
    /// How long it waits, which is no less than anybody relies on.
    grace: Duration,
}

impl Recovery {
    /// Whether this instance has not said yet what it has pinned.
    pub(super) fn waits_for(&self, instance: InstanceNumber) -> bool {
        self.waits_for.contains(&instance)
    }

    /// This instance has said all, or ended; whether it was the last one waited for.
    fn done(&mut self, instance: InstanceNumber) -> bool {
        !self.waits_for.is_empty() && self.waits_for.remove(&instance) && self.waits_for.is_empty()
    }

    /// Waits no longer than the grace period; whether that is over now, with somebody missing.
    fn expire(&mut self, now: Duration) -> bool {
        let is_over = now >= self.end && !self.waits_for.is_empty();
        if is_over {
            self.waits_for.clear();
        }
        is_over
    }

    /// When it waits no longer, if it still does.
    pub(super) fn end(&self) -> Option<Duration> {
        (!self.waits_for.is_empty()).then_some(self.end)
    }
}

impl State {
    /// The state that was saved, from now on. The grace periods of all instances begin, and are as long as those of before
    /// where these were longer, since readers who can't be reached rely on that.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(
        limits: Limits,
        pools: &[PoolSpec],
        saved: &Saved,
        now: Duration,
    ) -> Result<State, RestoreError> {
        let mut state = State::new(limits, pools);
        let pages = saved.regions.iter().map(|region| u64::from(region.pages)).sum::<u64>();
        if pages > u64::from(limits.max_entries) {
            return Err(RestoreError::TooManyPages { pages, limit: limits.max_entries });
        }
        state.recovery.grace = limits.grace.max(saved.grace);
        state.restore_instances(saved, now + state.recovery.grace)?;
        state.restore_regions(saved)?;
        state.restore_entries(saved)?;
        let orphans = state.regions.iter().filter(|region| region.owner.is_none());
        for id in orphans.map(|region| region.id).collect::<Vec<_>>() {
            // Counted as one, or retired where its last entry went, and then the process.
            state.disown(id);
        }
        Ok(state)
    }

    /// Whether the server was restarted, and instances of before may hold pins that it does not know of: nothing is
    /// deleted or evicted until each has said what it has pinned, or the grace period is over.
    pub fn is_recovering(&self) -> bool {
        self.recovery.end().is_some()
    }

    /// The longest grace period that an instance may rely on: what the limits say, and after a restart, until all of before are
    /// back or were waited for in vain, what those of before said if that was more.
    pub fn promised_grace(&self) -> Duration {
        if self.is_recovering() { self.recovery.grace } else { self.limits.grace }
    }

    /// An instance is not waited for any more.
    pub(super) fn has_recovered(&mut self, instance: InstanceNumber) {
        if self.recovery.done(instance) {
            self.changes.note(Change::Recovered);
        }
    }

    /// Nobody is waited for any more if the time for that is over.
    pub(super) fn expire_recovery(&mut self, now: Duration) {
        if self.recovery.expire(now) {
            self.changes.note(Change::Recovered);
        }
    }

    /// Notes changes from now on, for [`State::take_changes`].
    pub fn keep_changes(&mut self) {
        self.changes.keep();
    }

    /// Makes a list what has changed since the last time; nothing where changes are not noted.
    pub fn take_changes(&mut self, into: &mut Vec<Change>) {
        self.changes.take(into);
    }

    fn restore_instances(&mut self, saved: &Saved, grace_end: Duration) -> Result<(), RestoreError> {
        let mut instances = saved.instances.iter().collect::<Vec<_>>();
        instances.sort_by_key(|instance| instance.number);
        for SavedInstance { number, name, token } in instances {
            let is_sound = number.0 > 0 && number.0 <= saved.last_instance;
            if !is_sound || self.instances.contains(*number) || self.instances.knows(*token) {
                return contradiction(format!("there is a second instance {}, or none such", number.0));
            }
            let group = self.policy.open_group();
            self.instances.restore(Instance::new(*number, name, *token, group), grace_end);
            self.recovery.waits_for.insert(*number);
        }
        self.instances.skip_to(InstanceNumber(saved.last_instance));
        self.recovery.end = grace_end;
        Ok(())
    }

    fn restore_regions(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        if saved.last_region > Regions::LAST_ID {
            let last = saved.last_region;
            return contradiction(format!("its last region is {last}, and there can't be one"));
        }
        let mut regions = saved.regions.iter().collect::<Vec<_>>();
        regions.sort_by_key(|region| region.id);
        for region in regions {
            let id = region.id;
            let size = u64::from(region.pages).checked_mul(region.page_size);
            let is_sound = id.0 > 0 && id.0 <= saved.last_region && size.is_some_and(|size| size > 0);
            if !is_sound || self.regions.find(id).is_some() {
                return contradiction(format!("there is a second region {}, or none such", id.0));
            }
            if size.is_some_and(|size| size > region.extent) {
                return contradiction(format!("region {} is larger than its extent", id.0));
            }
            if !self.pools.take_at(region.pool, region.pool_offset, region.extent) {
                return Err(RestoreError::PoolTooSmall(id));
            }
            let owner = region.owner.filter(|owner| self.instances.contains(*owner));
            let group = owner.map(|owner| {
                let owner = self.instances.get_mut(owner);
                owner.regions.push(id);
                owner.group
            });
            self.regions.restore(Region {
                id,
                owner,
                page_size: region.page_size,
                pages: Pages::new(region.pages),
                checksums: Checksums::default(),
                entries: 0,
                entry_bytes: 0,
                pool: region.pool,
                pool_offset: region.pool_offset,
                extent: region.extent,
                group,
                pinned: 0,
                last_touch: 0,
                committed: true,
            });
            // In an orphan nobody takes them back any more.
            for &page in region.freed.iter().filter(|_| owner.is_some()) {
                if !self.regions.restore_freed(id, page) {
                    return contradiction(format!("page {page} of region {} does not exist", id.0));
                }
            }
        }
        self.regions.skip_to(RegionId(saved.last_region));
        Ok(())
    }

    /// Adds the entries in the order of their registration, by which the policy takes them for asked for.
    fn restore_entries(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let all = saved.regions.iter();
        let all = all.flat_map(|region| region.entries.iter().map(|entry| (region.id, *entry)));
        let mut all = all.collect::<Vec<_>>();
        let age = |generation: u32| saved.generation.wrapping_sub(generation);
        all.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse(age(entry.generation)));
        self.directory.set_generation(saved.generation);
        for (id, entry) in all {
            let SavedEntry { page, digest, length, generation, checksum } = entry;
            let (slot, region) = self.regions.find_mut(id).expect("its regions were restored before");
            let length = NonZeroU32::new(length).filter(|length| u64::from(length.get()) <= region.page_size);
            let is_held = page < region.pages.count() && region.pages.get(page) == Page::Held;
            let (Some(length), true) = (length, is_held) else {
                return contradiction(format!("page {page} of region {} can't hold its entry", id.0));
            };
            if self.directory.find(digest).is_some() {
                return contradiction(format!("there is a second entry of {:032x}", digest.0));
            }
            let entry = self.directory.insert_again(digest, slot, page, length, generation);
            region.add_entry(page, entry, length, checksum);
            let (policy, mut entries) = self.eviction();
            policy.insert(&mut entries, entry, &Chain::of(1));
        }
        Ok(())
    }
}

fn contradiction<T>(what: String) -> Result<T, RestoreError> {
    Err(RestoreError::Contradiction(what))
}
