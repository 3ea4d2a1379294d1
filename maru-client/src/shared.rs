//! What all handles, pages and guards of one handler share.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use maru_proto::{
    AllocationFilter, ConnectionKind, DigestKey, FrameStatus, GetRegionRequest, HelloRequest, KeyDigest,
    RegionRecord, RequestAllocRequest, ReturnAllocRequest, SessionToken,
};

use crate::config::{Address, Config};
use crate::error::{Error, ProtocolError, Result};
use crate::handler::Announcements;
use crate::maintenance::Bell;
use crate::memory::{Access, OwnPages, Region, Regions};
use crate::page::PageLocation;
use crate::releases::{PinKind, Releases};
use crate::rpc::request::{GetRegion, ListAllocations, ListPools, RequestAlloc, ReturnAlloc};
use crate::rpc::{Backlog, Connection, Control, Pipelined, Stream, hello};
use crate::sync::lock;

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
    pub(crate) connection: Connection,
    /// The connection of those who await, opened when the first does.
    pipelined: OnceLock<Pipelined>,
    opening: Mutex<()>,
    backlog: Arc<dyn Backlog>,
    /// How further connections join the session.
    hello: HelloRequest,
    max_body: u32,
    control: Option<Control>,
    /// Where pools lie, for those who get no descriptors.
    pool_paths: Mutex<HashMap<u32, PathBuf>>,
    pub(crate) own: Arc<OwnPages>,
    pub(crate) regions: Regions,
    releases: Arc<Releases>,
    pub(crate) announcements: Announcements,
    /// Held by the thread that gets more pages, so that others wait for these instead of asking for more: when the server
    /// last said that it has no room for a region.
    pub(crate) expanding: Mutex<Option<Instant>>,
    closed: AtomicBool,
    /// Own regions that were given back.
    returned: Mutex<HashSet<u32>>,
    pub(crate) bell: Arc<Bell>,
}

/// The part of the handler that the connection reaches back into.
struct Late {
    own: Arc<OwnPages>,
    releases: Arc<Releases>,
    bell: Arc<Bell>,
}

impl Backlog for Late {
    fn releases(&self, send: &mut dyn FnMut(PinKind, &[KeyDigest])) {
        self.releases.drain(send);
    }

    fn unpin(&self, kind: PinKind, digests: Vec<KeyDigest>) {
        self.releases.add(kind, digests);
        self.bell.ring();
    }

    fn reclaim(&self, pages: Vec<PageLocation>) {
        pages.into_iter().for_each(|page| self.own.reclaim(page));
    }

    fn settle(&self, pages: Vec<(PageLocation, bool)>) {
        self.own.settle(pages);
    }
}

impl Shared {
    /// Connects and opens an instance.
    pub(crate) fn connect(config: Config) -> Result<Shared> {
        config.validate()?;
        let (name, auth) = config.identity()?;
        let stream = Stream::connect(&config.address)?;
        let mut request = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
        request.auth = auth;
        let greeting = hello(&stream, request, config.timeout)?;
        if greeting.max_body.get() < 1024 || greeting.instance.get() == 0 {
            return Err(ProtocolError::Hello.into());
        }
        request.session = greeting.session;
        let (own, releases) = (Arc::<OwnPages>::default(), Arc::<Releases>::default());
        let bell = Arc::<Bell>::default();
        let backlog: Arc<dyn Backlog> = Arc::new(Late {
            own: Arc::clone(&own),
            releases: Arc::clone(&releases),
            bell: Arc::clone(&bell),
        });
        let max_body = greeting.max_body.get();
        let connection = Connection::new(stream, config.timeout, max_body, Arc::clone(&backlog))?;
        let control = match &config.address {
            Address::Unix(path) => Some(Control::new(path.clone(), request, config.timeout)),
            Address::Tcp(_) => None,
        };
        Ok(Shared {
            instance_id: name.text().unwrap_or_default().to_owned(),
            instance: greeting.instance.get(),
            digest_key: greeting.digest_key,
            connection,
            pipelined: OnceLock::new(),
            opening: Mutex::default(),
            backlog,
            hello: request,
            max_body,
            control,
            pool_paths: Mutex::default(),
            own,
            regions: Regions::default(),
            releases,
            announcements: Announcements::default(),
            expanding: Mutex::default(),
            closed: AtomicBool::new(false),
            returned: Mutex::default(),
            bell,
            config,
        })
    }

    /// The connection of those who await.
    pub(crate) fn pipelined(&self) -> Result<&Pipelined> {
        if let Some(pipelined) = self.pipelined.get() {
            return Ok(pipelined);
        }
        let _opening = lock(&self.opening);
        if let Some(pipelined) = self.pipelined.get() {
            return Ok(pipelined);
        }
        let stream = Stream::connect(&self.config.address)?;
        hello(&stream, self.hello, self.config.timeout)?;
        let backlog = Arc::clone(&self.backlog);
        let pipelined = Pipelined::new(stream, self.config.timeout, self.max_body, backlog)?;
        Ok(self.pipelined.get_or_init(|| pipelined))
    }

    /// Requests that were sent and wanted an answer.
    pub(crate) fn rpcs(&self) -> u64 {
        self.connection.rpcs() + self.pipelined.get().map_or(0, Pipelined::rpcs)
    }

    /// Writes that requests of those who await took.
    pub(crate) fn async_writes(&self) -> u64 {
        self.pipelined.get().map_or(0, Pipelined::writes)
    }

    /// Records of a type that fit one request.
    pub(crate) fn records_per_frame<T>(&self) -> usize {
        (self.max_body as usize / size_of::<T>()).max(1)
    }

    /// Refuses what a closed handler can't do.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Gathers pins of guards to be released.
    pub(crate) fn release(&self, digests: impl Iterator<Item = KeyDigest>) {
        let mut digests = digests.peekable();
        if digests.peek().is_none() {
            return;
        }
        if self.releases.add(PinKind::Guard, digests) >= FLUSH_AT {
            // A connection that is lost has lost its pins as well.
            let _ = self.connection.flush_releases();
        } else {
            self.bell.ring();
        }
    }

    /// Whether pins wait to be released.
    pub(crate) fn has_releases(&self) -> bool {
        !self.releases.is_empty()
    }

    /// Asks for a region and maps it for writing.
    pub(crate) fn new_region(&self, size: u64) -> Result<Arc<Region>> {
        let request = RequestAlloc(RequestAllocRequest {
            size: size.into(),
            page_size: (self.config.page_size as u64).into(),
            pool_id: RequestAllocRequest::ANY_POOL.into(),
            reserved: 0.into(),
        });
        let (record, file) = match &self.control {
            Some(control) => control.request_alloc(&request)?,
            None => {
                let record = self.connection.answer_to(&request)?;
                let file = self.open_by_path(&record, true)?;
                (record, file)
            }
        };
        let region_id = record.region_id.get();
        let access = Access::ReadWrite { prefault: self.config.prefault };
        match Region::map(&record, &file, access) {
            Ok(region) if region.page_size() == self.config.page_size => Ok(Arc::new(region)),
            mapped => {
                self.return_region(region_id);
                Err(mapped.err().unwrap_or_else(|| ProtocolError::Region(region_id).into()))
            }
        }
    }

    /// Gives a region back, as far as the server can be reached.
    pub(crate) fn return_region(&self, region_id: u32) {
        let request = ReturnAlloc(ReturnAllocRequest { region_id: region_id.into(), reserved: 0.into() });
        if let Err(error) = self.connection.answer_to(&request) {
            tracing::debug!(region_id, %error, "could not give a region back");
        }
    }

    /// A region that chunks lie in, mapped; `None` when it is gone.
    pub(crate) fn region(&self, region_id: u32) -> Result<Option<Arc<Region>>> {
        self.regions.get_or_map(region_id, || self.map_foreign(region_id))
    }

    fn map_foreign(&self, region_id: u32) -> Result<Option<Region>> {
        if self.regions.len() % PRUNE_EVERY == PRUNE_EVERY - 1 {
            self.prune()?;
        }
        let request = GetRegion(GetRegionRequest { region_id: region_id.into(), reserved: 0.into() });
        let described = match &self.control {
            Some(control) => control.get_region(&request),
            None => self.connection.answer_to(&request).and_then(|record| {
                let file = self.open_by_path(&record, false)?;
                Ok((record, file))
            }),
        };
        match described {
            Ok((record, file)) => Region::map(&record, &file, Access::ReadOnly).map(Some),
            Err(Error::Refused { status: FrameStatus::RegionNotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets foreign regions that the server has freed and nobody here reads.
    fn prune(&self) -> Result<()> {
        let unused = self.regions.unused_foreign();
        let mut known = HashSet::new();
        let mut after = 0;
        loop {
            let regions = self.connection.answer_to(&ListAllocations::after(AllocationFilter::All, after))?;
            let Some(last) = regions.last() else { break };
            after = last.region_id.get();
            known.extend(regions.iter().map(|region| region.region_id.get()));
        }
        unused.into_iter().filter(|id| !known.contains(id)).for_each(|id| self.regions.remove(id));
        Ok(())
    }

    /// Opens the file of a region, which this host has to have under the path that the server names.
    fn open_by_path(&self, record: &RegionRecord, writable: bool) -> Result<File> {
        let (region_id, pool_id) = (record.region_id.get(), record.pool_id.get());
        let known = lock(&self.pool_paths).get(&pool_id).cloned();
        let folder = match known {
            Some(folder) => folder,
            None => {
                let pools = self.connection.answer_to(&ListPools([]))?;
                let paths = pools
                    .iter()
                    .filter_map(|pool| pool.path().map(|path| (pool.pool_id.get(), PathBuf::from(path))));
                let mut pool_paths = lock(&self.pool_paths);
                pool_paths.extend(paths);
                pool_paths.get(&pool_id).cloned().ok_or(ProtocolError::Region(region_id))?
            }
        };
        OpenOptions::new()
            .read(true)
            .write(writable)
            .open(folder.join(format!("region-{region_id}")))
            .map_err(|source| Error::Map { region_id, source })
    }

    /// Refuses new work, and gives back the regions that nobody can write into any more.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.give_back(&self.own.close());
    }

    /// Gives regions back that were not yet, and sends the pins that guards gave up.
    fn give_back(&self, regions: &[u32]) {
        if self.connection.is_broken() {
            return;
        }
        for &region in regions {
            if lock(&self.returned).insert(region) {
                self.return_region(region);
            }
        }
        let _ = self.connection.flush_releases();
    }
}

impl Drop for Shared {
    /// Nothing of the handler is in use any more: not even guards.
    fn drop(&mut self) {
        self.close();
        // A region with pages that were held when the handler was closed is given back only now.
        let regions = self.own.regions().iter().map(|region| region.id()).collect::<Vec<_>>();
        self.give_back(&regions);
        self.connection.shut();
        self.bell.stop();
    }
}
