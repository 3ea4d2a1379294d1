//! What all handles, pages and guards of one handler share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use maru_proto::{
    AllocationFilter, DigestKey, FrameStatus, GetRegionRequest, KeyDigest, PoolRecord, RegionRecord,
    RequestAllocRequest,
};

use tokio::sync::Notify;

use crate::calls::CallTimes;
use crate::config::Config;
use crate::error::{Error, ProtocolError, Result};
use crate::handler::Announcements;
use crate::lease::Lease;
use crate::lists::whole_list;
use crate::maintenance::Bell;
use crate::memory::{Access, Coherence, LocalPool, OwnPages, Region, Regions};
use crate::page::PageLocation;
use crate::pins::{PinKind, Pins};
use crate::rpc::request::{GetRegion, Heartbeat, ListAllocations, ListPools, RequestAlloc, ReturnAlloc};
use crate::rpc::{Backlog, Request};
use crate::session::{Link, PATIENCE, Phase, Terms};
use crate::sync::lock;

/// How often an operation is tried on connections that are lost under it.
pub(crate) const ATTEMPTS: usize = 3;

/// Does something on the session's connections, and again where they were lost under it and the session has gone on.
macro_rules! retry {
    ($shared:expr, $link:ident => $attempt:expr, $lost:ident => $next:expr) => {{
        let mut attempts = 1..$crate::shared::ATTEMPTS;
        loop {
            let $link = $shared.link();
            let outcome = $attempt;
            if !matches!(outcome, Err($crate::error::Error::ConnectionLost)) || attempts.next().is_none() {
                break outcome;
            }
            let $lost = $link.number;
            drop($link);
            if let Err(error) = $next {
                break Err(error);
            }
        }
    }};
}
pub(crate) use retry;

/// Released pins that are sent at once, by the thread that drops the guard.
const FLUSH_AT: usize = 512;
/// Foreign regions that are mapped before it is looked whether some are gone.
const PRUNE_EVERY: usize = 64;

/// One instance, as long as anything of it is in use.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) instance_id: String,
    pub(crate) instance: u32,
    pub(crate) digest_key: DigestKey,
    pub(crate) terms: Terms,
    link: RwLock<Arc<Link>>,
    /// Whether the link is of use.
    phase: Mutex<Phase>,
    outages: Mutex<Outages>,
    /// Tells those who block, and those who await, that the phase may have changed.
    phase_changed: (Condvar, Notify),
    /// Requests and writes of the links before.
    before: (AtomicU64, AtomicU64),
    /// Where pools lie, for those who get no descriptors.
    pools: Mutex<KnownPools>,
    pub(crate) own: Arc<OwnPages>,
    pub(crate) regions: Regions,
    pub(crate) pins: Arc<Pins>,
    /// Until when the pins are certain.
    pub(crate) lease: Arc<Lease>,
    /// Chunks whose guards were revoked.
    pub(crate) revoked: AtomicU64,
    /// Pages of which nobody knows whether they are stored, and nobody waits to learn.
    pub(crate) unsettled: Arc<Mutex<Vec<PageLocation>>>,
    pub(crate) announcements: Announcements,
    /// Held by the thread that gets more pages, so that others wait for these instead of asking for more: when the server
    /// last said that it has no room for a region.
    pub(crate) expanding: Mutex<Option<Instant>>,
    closed: AtomicBool,
    /// Own regions that were given back.
    pub(crate) returned: Mutex<HashSet<u32>>,
    /// Pages that were written back from the cache, or dropped from it.
    pub(crate) pages_written_back: AtomicU64,
    pub(crate) pages_invalidated: AtomicU64,
    /// Chunks that were found, and were not what was stored.
    pub(crate) stale_chunks: AtomicU64,
    pub(crate) bell: Arc<Bell>,
    /// How long calls take, where that is wanted.
    pub(crate) call_times: Option<CallTimes>,
}

/// The times that the session was without connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outages {
    pub(crate) count: u64,
    /// How long the last one took.
    pub(crate) last: Duration,
}

/// What is known of the pools since the session has gone on on these connections.
#[derive(Default)]
struct KnownPools {
    link: u32,
    pools: Vec<PoolRecord>,
    here: HashMap<u32, LocalPool>,
    /// Regions whose memory is on other hosts alone.
    elsewhere: HashSet<u32>,
}

/// The part of the handler that a connection reaches back into.
#[derive(Clone)]
struct Late {
    link: u32,
    own: Arc<OwnPages>,
    pins: Arc<Pins>,
    lease: Arc<Lease>,
    unsettled: Arc<Mutex<Vec<PageLocation>>>,
    bell: Arc<Bell>,
}

impl Backlog for Late {
    fn releases(&self, send: &mut dyn FnMut(PinKind, &[KeyDigest])) {
        self.pins.drain(send);
    }

    fn unpin(&self, kind: PinKind, digests: Vec<KeyDigest>) {
        self.pins.release(kind, digests.into_iter().map(|digest| (self.link, digest)));
        self.bell.ring();
    }

    fn reclaim(&self, pages: Vec<PageLocation>) {
        self.own.reclaim(self.link, &pages);
    }

    fn doubt(&self, pages: Vec<PageLocation>) {
        lock(&self.unsettled).extend(pages);
        self.bell.ring();
    }

    fn lost(&self) {
        self.bell.ring();
    }

    fn settle(&self, pages: Vec<(PageLocation, bool)>) {
        self.own.settle(pages);
    }

    fn answered(&self, sent: Duration) {
        self.lease.answered(self.link, sent);
    }
}

impl Shared {
    /// Connects and opens an instance.
    pub(crate) fn connect(config: Config) -> Result<Shared> {
        config.validate()?;
        let (terms, stream, greeting) = Terms::open(config.clone())?;
        let late = Late {
            link: 0,
            own: Arc::default(),
            pins: Arc::default(),
            lease: Arc::new(Lease::new(terms.lease_term)),
            unsettled: Arc::default(),
            bell: Arc::new(Bell::new()?),
        };
        let link = Link::new(&terms, 0, stream, Arc::new(late.clone()))?;
        let Late { own, pins, lease, unsettled, bell, .. } = late;
        Ok(Shared {
            instance_id: terms.hello.instance_id.text().unwrap_or_default().to_owned(),
            instance: greeting.instance.get(),
            digest_key: greeting.digest_key,
            terms,
            link: RwLock::new(Arc::new(link)),
            phase: Mutex::new(Phase::Up),
            outages: Mutex::default(),
            phase_changed: (Condvar::new(), Notify::new()),
            before: (AtomicU64::new(0), AtomicU64::new(0)),
            pools: Mutex::default(),
            own,
            regions: Regions::default(),
            pins,
            lease,
            revoked: AtomicU64::new(0),
            unsettled,
            announcements: Announcements::default(),
            expanding: Mutex::default(),
            closed: AtomicBool::new(false),
            returned: Mutex::default(),
            pages_written_back: AtomicU64::new(0),
            pages_invalidated: AtomicU64::new(0),
            stale_chunks: AtomicU64::new(0),
            bell,
            call_times: config.report_stats.then(CallTimes::default),
            config,
        })
    }

    /// The connections of the session.
    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What connections of this number reach back into.
    pub(crate) fn backlog(&self, link: u32) -> Arc<dyn Backlog> {
        Arc::new(Late {
            link,
            own: Arc::clone(&self.own),
            pins: Arc::clone(&self.pins),
            lease: Arc::clone(&self.lease),
            unsettled: Arc::clone(&self.unsettled),
            bell: Arc::clone(&self.bell),
        })
    }

    /// The session goes on on these connections.
    pub(crate) fn publish(&self, link: Link) {
        let before = std::mem::replace(
            &mut *self.link.write().unwrap_or_else(PoisonError::into_inner),
            Arc::new(link),
        );
        self.before.0.fetch_add(before.rpcs(), Ordering::Relaxed);
        self.before.1.fetch_add(before.async_writes(), Ordering::Relaxed);
        if let Phase::Down(since) = self.phase() {
            let mut outages = lock(&self.outages);
            outages.count += 1;
            outages.last = since.elapsed();
        }
        self.set_phase(Phase::Up);
    }

    /// When the session was without connections.
    pub(crate) fn outages(&self) -> Outages {
        *lock(&self.outages)
    }

    /// Whether the session can be used.
    pub(crate) fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// Sets the phase and tells everybody who waits for it, also where it is the same as before.
    pub(crate) fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        self.phase_changed.0.notify_all();
        self.phase_changed.1.notify_waiters();
    }

    /// Waits until the session has gone on after these connections were lost.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] when that takes too long, [`Error::SessionEnded`] when it never will.
    pub(crate) fn wait_for_next(&self, lost: u32) -> Result<()> {
        self.bell.ring();
        let deadline = Instant::now() + PATIENCE;
        let mut phase = lock(&self.phase);
        loop {
            if let Some(outcome) = self.has_gone_on(lost, *phase) {
                return outcome;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::ConnectionLost);
            }
            let waited = self.phase_changed.0.wait_timeout(phase, left);
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The same for those who await.
    pub(crate) async fn next_link(&self, lost: u32) -> Result<()> {
        self.bell.ring();
        loop {
            let changed = self.phase_changed.1.notified();
            let phase = self.phase();
            if let Some(outcome) = self.has_gone_on(lost, phase) {
                return outcome;
            }
            // The handler's thread tells of every try, so that nobody needs a timer here.
            changed.await;
        }
    }

    fn has_gone_on(&self, lost: u32, phase: Phase) -> Option<Result<()>> {
        match phase {
            Phase::Ended => Some(Err(Error::SessionEnded)),
            Phase::Down(since) if since.elapsed() >= PATIENCE => Some(Err(Error::ConnectionLost)),
            _ => (self.link().number != lost).then_some(Ok(())),
        }
    }

    /// Sends a request that may be served twice without harm, and waits for its answer.
    ///
    /// # Errors
    /// Those of any request.
    pub(crate) fn ask<R: Request>(&self, request: &R) -> Result<R::Response> {
        retry!(self, link => link.connection.answer_to(request), lost => self.wait_for_next(lost))
    }

    /// Whether all pins that are not revoked were there at a time that was looked up before. Where no lease can tell, the
    /// server is asked.
    pub(crate) fn held_pins_at(&self, then: Duration) -> bool {
        if self.lease.holds(then) {
            return true;
        }
        if self.lease.is_momentary() {
            // Its answer counts from now on, which is later.
            return self.ask(&Heartbeat([])).is_ok() && self.lease.holds(then);
        }
        // After a sleep of the host the thread does not know how late it is.
        self.bell.ring();
        false
    }

    /// Whether the memory of this instance is certain to be its own. A page is written to without a word to the server, which gives
    /// the memory of a session that has ended to others. On its own host it sees that whoever is connected is alive.
    pub(crate) fn has_its_memory(&self) -> bool {
        let is_remote = self.link.read().unwrap_or_else(PoisonError::into_inner).is_remote();
        !is_remote || self.lease.holds(crate::lease::now())
    }

    /// Requests that were sent and wanted an answer.
    pub(crate) fn rpcs(&self) -> u64 {
        self.before.0.load(Ordering::Relaxed) + self.link().rpcs()
    }

    /// Writes that requests of those who await took.
    pub(crate) fn async_writes(&self) -> u64 {
        self.before.1.load(Ordering::Relaxed) + self.link().async_writes()
    }

    /// Records of a type that fit one request.
    pub(crate) fn records_per_frame<T>(&self) -> usize {
        (self.terms.max_body as usize / size_of::<T>()).max(1)
    }

    /// Refuses what a closed handler can't do.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Gathers pins of guards to be released, each with the number of the connections that it came by.
    pub(crate) fn release(&self, pins: impl Iterator<Item = (u32, KeyDigest)>) {
        let mut pins = pins.peekable();
        if pins.peek().is_none() {
            return;
        }
        if self.pins.release(PinKind::Guard, pins) >= FLUSH_AT {
            // On a lost connection they are left for the next.
            let _ = self.link().connection.flush_releases();
        } else {
            self.bell.ring();
        }
    }

    /// Asks for a region and maps it for writing.
    pub(crate) fn new_region(&self, link: &Link, size: u64) -> Result<Arc<Region>> {
        let request = |pool_id: u32| {
            RequestAlloc(RequestAllocRequest {
                size: size.into(),
                page_size: (self.config.page_size as u64).into(),
                pool_id: pool_id.into(),
                reserved: 0.into(),
            })
        };
        let (record, file) = if link.is_remote() {
            let record = self.alloc_where_pools_are(link, request)?;
            // Of no use without its memory.
            let file = self.local_pool(&record).and_then(|pool| pool.open(&record, true));
            let file = file.inspect_err(|_| self.return_region(record.region_id.get()))?;
            (record, file)
        } else {
            let any_pool = request(RequestAllocRequest::ANY_POOL);
            link.by_control(|control| control.request_memory(&any_pool))?
        };
        let region_id = record.region_id.get();
        let access = Access::ReadWrite { prefault: self.config.prefault };
        match Region::map(&record, &file, access, Coherence::of(&record, &self.config)) {
            Ok(region) if region.page_size() == self.config.page_size => Ok(Arc::new(region)),
            mapped => {
                self.return_region(region_id);
                Err(mapped.err().unwrap_or_else(|| ProtocolError::Region(region_id).into()))
            }
        }
    }

    /// Asks for a region in one of the pools whose memory is on this host, in their order.
    fn alloc_where_pools_are(
        &self,
        link: &Link,
        request: impl Fn(u32) -> RequestAlloc,
    ) -> Result<RegionRecord> {
        let ask = |pool_id| link.by_control(|control| control.request_alloc(&request(pool_id)));
        let found = self.known_pools()?.into_iter().map(|pool| (self.find_pool(&pool), pool.pool_id.get()));
        let (here, elsewhere): (Vec<_>, Vec<_>) = found.partition(|(found, _)| found.is_ok());
        if elsewhere.is_empty() {
            return ask(RequestAllocRequest::ANY_POOL);
        }
        let mut refused =
            elsewhere.into_iter().find_map(|(found, _)| found.err()).unwrap_or(Error::PoolExhausted);
        for (_, pool_id) in here {
            match ask(pool_id) {
                Err(error @ Error::Refused { status: FrameStatus::NoSpace, .. }) => refused = error,
                answered => return answered,
            }
        }
        Err(refused)
    }

    /// Gives a region back, as far as the server can be reached.
    pub(crate) fn return_region(&self, region_id: u32) {
        if let Err(error) = self.link().connection.answer_to(&ReturnAlloc::of(region_id)) {
            tracing::debug!(region_id, %error, "could not give a region back");
        }
    }

    /// A region that chunks lie in, mapped; `None` when it is gone.
    pub(crate) fn region(&self, region_id: u32) -> Result<Option<Arc<Region>>> {
        self.regions.get_or_map(region_id, || self.map_foreign(region_id))
    }

    /// The same, to be read: `None` too where its memory is on other hosts alone, since what is there can't be read here.
    pub(crate) fn readable_region(&self, region_id: u32) -> Result<Option<Arc<Region>>> {
        if lock(&self.pools).elsewhere.contains(&region_id) {
            return Ok(None);
        }
        match self.region(region_id) {
            Err(error @ Error::PoolNotHere { .. }) => {
                if lock(&self.pools).elsewhere.insert(region_id) {
                    tracing::warn!(region_id, %error, "chunks of this region count as not stored");
                }
                Ok(None)
            }
            region => region,
        }
    }

    fn map_foreign(&self, region_id: u32) -> Result<Option<Region>> {
        if self.regions.len() % PRUNE_EVERY == PRUNE_EVERY - 1 {
            self.prune()?;
        }
        let request = GetRegion(GetRegionRequest { region_id: region_id.into(), reserved: 0.into() });
        let link = self.link();
        let described = if link.is_remote() {
            self.ask(&request).and_then(|record| {
                let file = self.local_pool(&record)?.open(&record, false)?;
                Ok((record, file))
            })
        } else {
            link.by_control(|control| control.get_memory(&request))
        };
        match described {
            Ok((record, file)) => {
                let coherence = Coherence::of(&record, &self.config);
                Region::map(&record, &file, self.foreign_access(), coherence).map(Some)
            }
            Err(Error::Refused { status: FrameStatus::RegionNotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn foreign_access(&self) -> Access {
        if self.config.copy_on_write { Access::CopyOnWrite } else { Access::ReadOnly }
    }

    /// All regions that there are, in the order of their ids.
    pub(crate) fn regions_listed(&self) -> Result<Vec<RegionRecord>> {
        let id = |region: &RegionRecord| region.region_id.get();
        whole_list(id, |after| self.ask(&ListAllocations::after(AllocationFilter::All, after)))
    }

    /// Forgets foreign regions that the server has freed and nobody here reads.
    fn prune(&self) -> Result<()> {
        let unused = self.regions.unused_foreign();
        let known =
            self.regions_listed()?.iter().map(|region| region.region_id.get()).collect::<HashSet<_>>();
        unused.into_iter().filter(|id| !known.contains(id)).for_each(|id| self.regions.remove(id));
        Ok(())
    }

    /// Where the memory of a region's pool lies on this host.
    fn local_pool(&self, region: &RegionRecord) -> Result<LocalPool> {
        let pool_id = region.pool_id.get();
        let pools = self.known_pools()?;
        let pool = pools.iter().find(|pool| pool.pool_id.get() == pool_id);
        self.find_pool(pool.ok_or(ProtocolError::Region(region.region_id.get()))?)
    }

    /// The server's pools. They may be others after it was started anew, so they are asked for on each link.
    fn known_pools(&self) -> Result<Vec<PoolRecord>> {
        let link = self.link().number;
        {
            let known = lock(&self.pools);
            if known.link == link && !known.pools.is_empty() {
                return Ok(known.pools.clone());
            }
        }
        let pools = self.ask(&ListPools([]))?;
        *lock(&self.pools) = KnownPools { link, pools: pools.clone(), ..KnownPools::default() };
        Ok(pools)
    }

    fn find_pool(&self, pool: &PoolRecord) -> Result<LocalPool> {
        let pool_id = pool.pool_id.get();
        if let Some(known) = lock(&self.pools).here.get(&pool_id) {
            return Ok(known.clone());
        }
        let found = LocalPool::find(pool, &self.config.device_map)?;
        lock(&self.pools).here.insert(pool_id, found.clone());
        Ok(found)
    }

    /// Refuses new work, and gives back the regions that nobody can write into any more.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let idle = self.own.close();
        self.stop_prefault();
        self.give_back(&idle);
    }

    /// Maps no more memory of own regions ahead of those who touch it.
    pub(crate) fn stop_prefault(&self) {
        self.own.regions().iter().for_each(|region| region.stop_prefault());
    }

    /// Gives regions back that were not yet, and sends the pins that guards gave up.
    fn give_back(&self, regions: &[u32]) {
        let link = self.link();
        if link.is_broken() {
            return;
        }
        for &region in regions {
            if lock(&self.returned).insert(region) {
                self.return_region(region);
            }
        }
        let _ = link.connection.flush_releases();
    }
}

impl Drop for Shared {
    /// Nothing of the handler is in use any more: not even guards.
    fn drop(&mut self) {
        self.close();
        // A region with pages that were held when the handler was closed is given back only now.
        let detached = self.own.write_back_detached();
        self.pages_written_back.fetch_add(detached, Ordering::Relaxed);
        let regions = self.own.regions().iter().map(|region| region.id()).collect::<Vec<_>>();
        self.give_back(&regions);
        self.bell.stop();
        self.link().shut();
    }
}
