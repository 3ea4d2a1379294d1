//! One instance: its pages, its keys, and what it reads.

mod aio;
mod announcements;
mod inspection;
mod keys;
mod operations;
mod pages;
mod timing;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use maru_proto::{
    KeyDigest, LatencyRecord, LatencyRequest, PoolRecord, RegionRecord, ReportRecord, ReportsRequest,
    UsageRecord, UsageRequest,
};

use crate::config::{Address, Config};
use crate::error::{Error, Result};
use crate::key::AsKey;
use crate::lists::whole_list;
use crate::maintenance;
use crate::rpc::request::{GetLatencies, GetStats, GetUsage, ListPools, ListReports};
use crate::shared::Shared;
use crate::stats::{ClientStats, ReportedLatencies, ServerLatencies, ServerStats};

pub use aio::Pending;
pub(crate) use announcements::Announcements;
pub use announcements::RegionAdded;
pub use inspection::{PinQuery, Released};
pub use keys::{Deleted, Pinned, Stored, Unpinned};
pub use operations::StoredEach;

/// A connection of one instance to a server. Clones are the same instance; any thread may use any of them.
#[derive(Clone)]
pub struct MaruHandler {
    shared: Arc<Shared>,
}

impl MaruHandler {
    /// Connects, and opens an instance. It gets memory of its own when it first allocates, or now where the
    /// configuration says `eager`.
    ///
    /// # Errors
    /// [`Error::ServerNotRunning`], [`Error::InvalidConfig`], [`Error::UnsupportedVersion`],
    /// [`Error::Refused`] with the server's reason; with `eager` also those of [`MaruHandler::alloc`].
    ///
    /// ```no_run
    /// use maru_client::{Config, MaruHandler};
    ///
    /// let maru = MaruHandler::connect(Config::new().address("/run/maru/maru.sock".parse()?))?;
    /// # Ok::<(), maru_client::Error>(())
    /// ```
    pub fn connect(config: Config) -> Result<MaruHandler> {
        let shared = Arc::new(Shared::connect(config)?);
        maintenance::start(&shared)
            .map_err(|source| Error::Io { what: "start the handler's thread", source })?;
        let handler = MaruHandler { shared };
        if handler.shared.config.eager {
            handler.expand()?;
        }
        Ok(handler)
    }

    /// Refuses new operations, gives regions without entries back, and leaves those with entries to be read as orphans.
    /// Guards stay valid, and their chunks pinned, until they are dropped. Closing twice is fine.
    pub fn close(&self) {
        self.shared.close();
    }

    /// The instance's name.
    pub fn instance_id(&self) -> &str {
        &self.shared.instance_id
    }

    /// The instance's number, by which the server names it as an owner.
    pub fn instance_number(&self) -> u32 {
        self.shared.instance
    }

    /// Where the server is reached at the moment: at the configured address, or at the Unix socket that the handler has moved
    /// onto from TCP. It changes only when the session goes on after a lost connection.
    pub fn server_address(&self) -> Address {
        self.shared.link().address().clone()
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> usize {
        self.shared.config.page_size
    }

    /// The server's figures.
    ///
    /// # Errors
    /// Those of any request: [`Error::Timeout`], [`Error::ConnectionLost`], [`Error::Closed`].
    pub fn stats(&self) -> Result<ServerStats> {
        self.shared.check_open()?;
        self.shared.ask(&GetStats([])).map(ServerStats::new)
    }

    /// How long the server worked on the requests of each operation, those of all instances, since its start.
    ///
    /// # Errors
    /// Those of any request; a server of before there were latencies refuses it.
    pub fn latencies(&self) -> Result<ServerLatencies> {
        self.shared.check_open()?;
        let place = |bucket: &LatencyRecord| (bucket.opcode.get(), bucket.upper_ns.get());
        let buckets = whole_list(place, |(opcode, upper_ns)| {
            let request =
                LatencyRequest { opcode: opcode.into(), reserved: [0; 6], upper_ns: upper_ns.into() };
            self.shared.ask(&GetLatencies(request))
        });
        buckets.map(ServerLatencies::new)
    }

    /// How long the calls of those handlers take that [report it](Config::report_stats), by instance and operation.
    ///
    /// # Errors
    /// Those of any request; a server of before there were reports refuses it.
    pub fn reports(&self) -> Result<ReportedLatencies> {
        self.shared.check_open()?;
        let place =
            |bucket: &ReportRecord| (bucket.instance.get(), bucket.operation.get(), bucket.upper_ns.get());
        let buckets = whole_list(place, |(instance, operation, upper_ns)| {
            let request = ReportsRequest {
                instance: instance.into(),
                operation: operation.into(),
                reserved: 0.into(),
                upper_ns: upper_ns.into(),
            };
            self.shared.ask(&ListReports(request))
        });
        buckets.map(ReportedLatencies::new)
    }

    /// What each instance uses.
    ///
    /// # Errors
    /// Those of any request.
    pub fn usage(&self) -> Result<Vec<UsageRecord>> {
        self.shared.check_open()?;
        let number = |usage: &UsageRecord| usage.instance.get();
        whole_list(number, |after| {
            let request = UsageRequest { after: after.into(), reserved: 0.into() };
            self.shared.ask(&GetUsage(request))
        })
    }

    /// All regions, in the order of their ids.
    ///
    /// # Errors
    /// Those of any request.
    pub fn regions(&self) -> Result<Vec<RegionRecord>> {
        self.shared.check_open()?;
        self.shared.regions_listed()
    }

    /// The pools.
    ///
    /// # Errors
    /// Those of any request.
    pub fn pools(&self) -> Result<Vec<PoolRecord>> {
        self.shared.check_open()?;
        self.shared.ask(&ListPools([]))
    }

    /// The handler's own figures.
    pub fn client_stats(&self) -> ClientStats {
        let (counts, outages) = (self.shared.own.counts(), self.shared.outages());
        ClientStats {
            rpcs: self.shared.rpcs(),
            async_writes: self.shared.async_writes(),
            own_regions: counts.regions,
            pages: counts.pages,
            free_pages: counts.free,
            mapped_regions: self.shared.regions.len(),
            pages_written_back: self.shared.pages_written_back.load(Ordering::Relaxed),
            pages_invalidated: self.shared.pages_invalidated.load(Ordering::Relaxed),
            stale_chunks: self.shared.stale_chunks.load(Ordering::Relaxed),
            resumes: outages.count,
            revoked_chunks: self.shared.revoked.load(Ordering::Relaxed),
            last_outage: outages.last,
        }
    }

    /// The digest of a key in this deployment.
    ///
    /// # Errors
    /// [`Error::InvalidKey`].
    pub fn digest(&self, key: impl AsKey) -> Result<KeyDigest> {
        key.digest(&self.shared.digest_key)
    }

    fn digests(&self, keys: &[impl AsKey]) -> Result<Vec<KeyDigest>> {
        keys.iter().map(|key| key.digest(&self.shared.digest_key)).collect()
    }
}

impl fmt::Debug for MaruHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaruHandler").field("instance_id", &self.instance_id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkRef, PageMut, Prefix};

    #[test]
    fn what_threads_share_can_be_shared() {
        fn send<T: Send>() {}
        fn sync<T: Sync>() {}
        send::<MaruHandler>();
        sync::<MaruHandler>();
        send::<PageMut>();
        send::<ChunkRef>();
        sync::<ChunkRef>();
        send::<Prefix>();
        sync::<Prefix>();
    }
}
