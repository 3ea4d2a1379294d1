//! What each operation does: the one place that knows both the wire and the state.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use maru_proto::{
    AllocationFilter, AuthToken, ConnectionKind, DecodeError, DigestKey, EntryRecord, EntryRequest,
    EvictionReason, FEATURE_NO_GRACE, Flags, Frame, FrameStatus, GetRegionRequest, Head, Header,
    HeartbeatRecord, HeldPinsRecord, HelloRequest, HelloResponse, InstanceId, KeyDigest, LatencyRecord,
    LatencyRequest, ListAllocationsRequest, ListPinsRequest, LocationRecord, Opcode, PageRecord,
    PagesRequest, PinsRecord, PoolCoherence, PoolKind, PoolRecord, PoolUuid, ReclaimRequest, RecordStatus,
    RegionRecord, RegionState, RegisterRecord, ReleasePinsRecord, ReportRecord, ReportsRequest,
    RequestAllocRequest, ReturnAllocRequest, ServerRecord, SessionToken, SocketRecord, StatKind, StatRecord,
    UsageRecord, UsageRequest, VERSION, VersionRange, max_response_body,
};
use rustix::io::Errno;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, KnownLayout, Unaligned};

use crate::counters::{Counters, SystemCalls};
use crate::journal::{Journal, PageTable};
use crate::output::Output;
use crate::reports::{InvalidReport, Reports};
use crate::state::{
    AllocError, Change, DeleteError, Digest, EntryInfo, Figures, HeldPins, InstanceNumber, Limits, Location,
    PinError, PinFilter, PinKind, PinsAfter, PoolId, PoolSpec, RegionId, RegionInfo, Registered, Request,
    RestoreError, RetiredRegion, ReturnError, Saved, State, Token, UnpinError,
};

/// Records whose memory is brought near together: enough to hide how long memory takes, few enough to stay near.
pub(crate) const LOOK_AHEAD: usize = 32;

/// What the service has to know of its server.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Limits of the state.
    pub limits: Limits,
    /// Bytes of the largest request body.
    pub max_body: u32,
    /// Records of one frame that are worked on before other connections have a turn; at least 1.
    pub part: usize,
    /// The number of the server's run.
    pub epoch: u64,
    /// The secret that keys digests.
    pub digest_key: DigestKey,
    /// What clients on TCP must present, if anything.
    pub auth: Option<AuthToken>,
    /// Whether SHUTDOWN is served.
    pub allow_shutdown: bool,
    /// The pools, in the order of their ids.
    pub pools: Vec<ServedPool>,
    /// The Unix socket, where clients can be told of one.
    pub socket: Option<ServedSocket>,
}

/// A pool as the service describes it to clients.
#[derive(Clone, Debug)]
pub struct ServedPool {
    /// Size and granularity.
    pub spec: PoolSpec,
    /// What it is made of.
    pub kind: PoolKind,
    /// What the memory says that it is.
    pub uuid: PoolUuid,
    /// How often what was in it has been discarded.
    pub incarnation: u64,
    /// What it takes that hosts see each other's writes.
    pub coherence: PoolCoherence,
    /// Where the server finds it.
    pub path: String,
    /// Where the pool's extents begin in the device; `None` where each region is a file of its own.
    pub extents_at: Option<u64>,
}

impl ServedPool {
    /// A folder of memory of this host.
    pub fn tmpfs(spec: PoolSpec, path: impl Into<String>) -> ServedPool {
        ServedPool {
            spec,
            kind: PoolKind::Tmpfs,
            uuid: PoolUuid::from_bytes([0; 16]),
            incarnation: 1,
            coherence: PoolCoherence::Coherent,
            path: path.into(),
            extents_at: None,
        }
    }

    /// Where a region begins in the file that it is mapped from.
    fn file_offset(&self, region: &RegionInfo) -> u64 {
        self.extents_at.map_or(0, |start| start + region.pool_offset)
    }
}

/// The Unix socket as the service describes it to clients on TCP.
#[derive(Clone, Debug)]
pub struct ServedSocket {
    /// Where it lies: an absolute path. One that the wire has no room for is told to nobody.
    pub path: PathBuf,
    /// The boot id of the host, as its kernel shows it, without the end of the line.
    pub boot_id: String,
}

/// How a connection reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A Unix socket: the kernel names the peer, and descriptors can be passed.
    Unix,
    /// TCP: the peer shows a token where one is asked for.
    Tcp,
}

/// What one connection has agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    transport: Transport,
    /// Whether the peer operates the server.
    is_operator: bool,
    hello: Option<Greeted>,
    /// Of the frame that is being served.
    progress: Option<Progress>,
}

/// How far a batch is served.
#[derive(Clone, Copy, Debug)]
struct Progress {
    request: Request,
    /// Where in the output its response is.
    at: usize,
    /// Records that are done with.
    done: usize,
    /// Records that were found.
    hits: usize,
    /// Records that were looked for, up to the first miss of a prefix.
    tried: usize,
    /// The rest of the records are passed over.
    stopped: bool,
}

impl Progress {
    fn new(request: Request, at: usize) -> Progress {
        Progress { request, at, done: 0, hits: 0, tried: 0, stopped: false }
    }

    /// The records that are next: at most `part` of them.
    fn next(&self, records: usize, part: usize) -> std::ops::Range<usize> {
        self.done..records.min(self.done + part)
    }
}

/// A batch that is being served.
struct Batch<'a> {
    caller: InstanceNumber,
    opcode: Opcode,
    frame: &'a Frame<'a>,
    now: Duration,
    /// Whether an answer is wanted.
    is_answered: bool,
    /// Whether the first record that fails ends it.
    prefix_stop: bool,
    progress: &'a mut Option<Progress>,
}

/// What a batch reads that is brought near ahead of it.
#[derive(Clone, Copy)]
enum Near {
    /// The entries.
    Entries,
    /// What adding or removing an entry reads, or not finding one, besides.
    All,
}

impl<'a> Batch<'a> {
    fn of(
        caller: InstanceNumber,
        opcode: Opcode,
        frame: &'a Frame<'a>,
        now: Duration,
        progress: &'a mut Option<Progress>,
    ) -> Batch<'a> {
        let is_set = |flag| frame.flags().contains(flag);
        let is_answered = match opcode {
            Opcode::UnpinKv | Opcode::BatchUnpinKv => !is_set(Flags::NO_REPLY),
            _ => true,
        };
        let prefix_stop = match opcode {
            Opcode::ExistsKv | Opcode::BatchExistsKv | Opcode::LookupKv | Opcode::BatchLookupKv => {
                is_set(Flags::PREFIX_STOP)
            }
            _ => opcode == Opcode::BatchPinKv,
        };
        Batch { caller, opcode, frame, now, is_answered, prefix_stop, progress }
    }

    /// How far it is. At its beginning, `begin` makes room for its response.
    fn progress(&mut self, records: usize, out: &mut Output, begin: impl FnOnce(&mut Output)) -> Progress {
        self.progress.take().unwrap_or_else(|| {
            let at = out.len();
            begin(out);
            Progress::new(Request::new(self.caller, self.now, records), at)
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Greeted {
    instance: InstanceNumber,
    /// Of the instance, when HELLO was said.
    incarnation: u32,
    kind: ConnectionKind,
}

impl Session {
    /// A connection that has not said HELLO.
    pub const fn new(transport: Transport) -> Session {
        Session { transport, is_operator: false, hello: None, progress: None }
    }

    /// The same, of whoever operates the server: the kernel has named the peer as the server's own user, or root.
    pub const fn of_operator(self) -> Session {
        Session { is_operator: true, ..self }
    }

    /// Whether HELLO was accepted.
    pub const fn is_open(&self) -> bool {
        self.hello.is_some()
    }

    /// Whether a frame was served in part, and has to be served again before anything else.
    pub const fn is_in_part(&self) -> bool {
        self.progress.is_some()
    }
}

/// What the connection has to do once a frame is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on with the next frame.
    Continue,
    /// The frame is served in part: serve it again, to the same output, when others have had their turn.
    Again,
    /// Write what there is and close.
    Close,
    /// Nothing was answered yet: make the region's memory, then say so by [`Service::region_made`].
    MakeRegion(RegionInfo),
    /// Nothing was answered yet: memory that is being released may serve this frame, so serve it again then.
    AwaitRelease,
    /// The last response goes out together with a descriptor of the region.
    Attach {
        /// The region.
        region: RegionId,
        /// Whether the descriptor may be written through.
        writable: bool,
    },
    /// Write what there is and stop the server.
    Shutdown,
}

/// The state and what the wire asks of it.
#[derive(Debug)]
pub struct Service {
    state: State,
    config: ServiceConfig,
    counters: Counters,
    /// What handlers tell of their calls.
    reports: Reports,
    journal: Option<Journal>,
    /// What is being written down; kept for its memory.
    changes: Vec<Change>,
    stopping: bool,
}

/// What ended because its time was over.
#[derive(Clone, Copy, Debug)]
pub struct Expired {
    /// Instances.
    pub instances: usize,
    /// Pins by name.
    pub pins: u64,
}

/// A frame is refused as a whole.
#[derive(Clone, Copy, Debug)]
struct Refused(FrameStatus);

impl From<FrameStatus> for Refused {
    fn from(status: FrameStatus) -> Refused {
        Refused(status)
    }
}

impl From<maru_proto::BodyError> for Refused {
    fn from(_: maru_proto::BodyError) -> Refused {
        Refused(FrameStatus::Malformed)
    }
}

impl From<InvalidReport> for Refused {
    fn from(_: InvalidReport) -> Refused {
        Refused(FrameStatus::InvalidArgument)
    }
}

impl From<ReturnError> for Refused {
    fn from(error: ReturnError) -> Refused {
        Refused(match error {
            ReturnError::NotFound => FrameStatus::RegionNotFound,
            ReturnError::NotOwner => FrameStatus::Unauthorized,
        })
    }
}

impl Service {
    /// A service with an empty directory, of which nothing is kept.
    pub fn new(config: ServiceConfig) -> Service {
        let pools = config.pools.iter().map(|pool| pool.spec).collect::<Vec<_>>();
        let state = State::new(config.limits, &pools);
        Service::of(state, config, None)
    }

    /// A service that goes on from what was saved, and keeps what changes. The journal's digest key takes the place of the
    /// configured one.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(
        mut config: ServiceConfig,
        mut journal: Journal,
        saved: &Saved,
        now: Duration,
    ) -> Result<Service, RestoreError> {
        let pools = config.pools.iter().map(|pool| pool.spec).collect::<Vec<_>>();
        let mut state = State::restore(config.limits, &pools, saved, now)?;
        state.keep_changes();
        journal.settle(&state);
        config.digest_key = journal.digest_key();
        Ok(Service::of(state, config, Some(journal)))
    }

    fn of(state: State, config: ServiceConfig, journal: Option<Journal>) -> Service {
        let (counters, reports, changes) = (Counters::default(), Reports::default(), Vec::new());
        Service { state, config, counters, reports, journal, changes, stopping: false }
    }

    /// Writes down what has changed; to be called before anybody learns of it.
    fn keep(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        self.state.take_changes(&mut self.changes);
        for change in &self.changes {
            journal.note(change, &self.state);
            log(change, &self.state);
        }
    }

    /// The state, to be looked at.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Walks the whole state, as [`State::check`] does: for tests, not for service.
    ///
    /// # Panics
    /// When an invariant does not hold, saying which.
    pub fn check(&mut self) {
        self.state.check();
        for instance in self.reports.instances() {
            assert!(self.state.identity(instance).is_some(), "{instance:?} ended, and its report stays");
        }
    }

    /// What the service was told of its server.
    pub(crate) fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// Bytes of the largest request body.
    pub fn max_body(&self) -> u32 {
        self.config.max_body
    }

    /// Counts a connection that was accepted.
    pub fn connection_accepted(&mut self) {
        self.counters.connections_accepted += 1;
    }

    /// One more pool, from which regions come when the others are full. How many entries there can be stays as it is.
    pub fn add_pool(&mut self, pool: ServedPool) {
        self.state.add_pool(pool.spec);
        self.config.pools.push(pool);
    }

    /// Reports the system calls that what drives the connections counts.
    pub(crate) fn count_system_calls(&mut self, calls: SystemCalls) {
        self.counters.system_calls = Some(calls);
    }

    /// Frames of an operation took this long to serve, each.
    pub fn took(&mut self, opcode: Opcode, each: Duration, frames: u32) {
        self.counters.latencies.record(opcode, each, frames.into());
    }

    /// Warns of a frame that took long.
    pub(crate) fn warn_of_slow(&self, session: &Session, frame: &Frame<'_>, took: Duration) {
        let Some(opcode) = frame.opcode() else { return };
        let (instance, name) = self.named(session);
        let record = match opcode {
            Opcode::RegisterKv | Opcode::BatchRegisterKv => size_of::<RegisterRecord>(),
            Opcode::AssertPins => size_of::<PinsRecord>(),
            Opcode::ReportStats => size_of::<ReportRecord>(),
            _ if is_of_digests(opcode) => size_of::<KeyDigest>(),
            _ => frame.body().len().max(1),
        };
        let records = frame.body().len() / record;
        let (operation, seconds) = (opcode.name(), took.as_secs_f64());
        tracing::warn!(operation, records, instance, name, seconds, "a request was slow");
    }

    /// Warns of a region that took long to be made.
    pub(crate) fn warn_of_slow_region(&self, session: &Session, region: &RegionInfo, took: Duration) {
        let (instance, name) = self.named(session);
        let (operation, seconds) = (Opcode::RequestAlloc.name(), took.as_secs_f64());
        let size = region.size;
        tracing::warn!(operation, records = 1, size, instance, name, seconds, "a request was slow");
    }

    /// Number and name of a connection's instance, for the log.
    fn named(&self, session: &Session) -> (Option<u32>, Option<&str>) {
        let instance = session.hello.map(|greeted| greeted.instance);
        let name = instance.and_then(|instance| self.state.identity(instance)).map(|(name, _)| name);
        (instance.map(|instance| instance.0), name)
    }

    /// What was counted, to be looked at.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What handlers have reported, to be looked at.
    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Takes no new work from here on; what is asked for is answered SHUTTING_DOWN.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Ends a connection.
    pub fn close(&mut self, session: &Session, now: Duration) {
        if let Some(greeted) = session.hello {
            self.state.disconnect(greeted.instance, now);
        }
    }

    /// Ends the instances and the pins by name whose time is over.
    pub fn expire(&mut self, now: Duration) -> Expired {
        for (instance, name) in self.state.expiring(now) {
            let reason = "the grace period without a connection is over";
            tracing::info!(instance = instance.0, name, reason, "an instance ended");
            self.reports.end(instance);
        }
        let expired = Expired { instances: self.state.expire(now), pins: self.state.expire_pins(now) };
        self.keep();
        expired
    }

    /// When the next instance or pin ends.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.state.next_expiry()
    }

    /// A region whose memory has to be released, each once.
    pub fn next_retired(&mut self) -> Option<RetiredRegion> {
        self.state.next_retired()
    }

    /// The memory of a retired region is released.
    pub fn released(&mut self, id: RegionId) {
        self.state.released(id);
    }

    /// Answers bytes that are no frame.
    pub fn refuse(&mut self, error: &DecodeError, out: &mut Output) {
        let (status, header) = error.status();
        let unknown = Header::new_zeroed();
        let header = header.unwrap_or(&unknown);
        match status {
            FrameStatus::UnsupportedVersion => self.answer_version(header, out),
            _ => self.answer_status(header, status, out),
        }
    }

    /// Answers a connection that is not served at all.
    pub fn refuse_connection(&mut self, status: FrameStatus, out: &mut Output) {
        self.answer_status(&Header::new_zeroed(), status, out);
    }

    /// Serves one frame: its response, if it wants one, is appended to `out`. A frame of at most
    /// [`part`](ServiceConfig::part) records takes effect as a whole before any other; of a larger one the parts do, in order,
    /// and the connection's next frame after the last.
    pub fn serve(
        &mut self,
        session: &mut Session,
        frame: &Frame<'_>,
        now: Duration,
        out: &mut Output,
    ) -> Next {
        let served = self.dispatch(session, frame, now, out);
        self.keep();
        match served {
            Ok(next) => next,
            Err(Refused(status)) => {
                if let Some(progress) = session.progress.take() {
                    // The connection is given up in the middle of a batch.
                    out.truncate(progress.at);
                }
                self.answer_status(frame.header(), status, out);
                if session.hello.is_none() {
                    let hello =
                        frame.record::<HelloRequest>().ok().filter(|_| frame.opcode() == Some(Opcode::Hello));
                    let name = hello.and_then(|hello| hello.instance_id.text().ok());
                    tracing::info!(name, status = status.name(), reason = %status, "refused a connection");
                }
                match status {
                    FrameStatus::Malformed | FrameStatus::HelloRequired => Next::Close,
                    // Until HELLO is accepted there is nothing else to say on a connection.
                    _ if session.hello.is_none() => Next::Close,
                    _ => Next::Continue,
                }
            }
        }
    }

    /// The memory of a region is made, and its page table where there is a journal, or not: answers the REQUEST_ALLOC that
    /// asked for it.
    pub fn region_made(
        &mut self,
        session: &Session,
        request: &Header,
        id: RegionId,
        made: std::io::Result<Option<PageTable>>,
        out: &mut Output,
    ) -> Next {
        let table = match made {
            Ok(table) => table,
            Err(error) => {
                self.state.abort_region(id);
                let full = Errno::from_io_error(&error)
                    .is_some_and(|errno| [Errno::NOSPC, Errno::NOMEM].contains(&errno));
                tracing::warn!(region = id.0, %error, "could not make the memory of a region");
                let status = if full { FrameStatus::NoSpace } else { FrameStatus::Internal };
                self.answer_status(request, status, out);
                return Next::Continue;
            }
        };
        if let Some((journal, table)) = self.journal.as_mut().zip(table) {
            journal.adopt(id, table);
        }
        let committed = self.state.commit_region(id);
        self.keep();
        match committed {
            Some(info) if self.is_stale(session) => {
                // Nobody will learn of the region.
                if let Some(owner) = info.owner
                    && let Err(error) = self.state.return_region(owner, id)
                {
                    tracing::error!(region = id.0, %error, "could not take a region back");
                }
                self.keep();
                self.answer_status(request, FrameStatus::HelloRequired, out);
                Next::Close
            }
            Some(info) => {
                self.count(request, 1);
                self.answer_region(session, request, &info, out)
            }
            None => {
                self.answer_status(request, FrameStatus::RegionNotFound, out);
                Next::Continue
            }
        }
    }

    /// Whether the connection is of an earlier incarnation of its instance.
    fn is_stale(&self, session: &Session) -> bool {
        session.hello.is_some_and(|greeted| self.state.incarnation(greeted.instance) != greeted.incarnation)
    }

    fn dispatch(
        &mut self,
        session: &mut Session,
        frame: &Frame<'_>,
        now: Duration,
        out: &mut Output,
    ) -> Result<Next, Refused> {
        if frame.flags().contains(Flags::RESPONSE) {
            return Err(FrameStatus::Malformed.into());
        }
        let Some(opcode) = frame.opcode() else {
            return Err(FrameStatus::UnsupportedOpcode.into());
        };
        // What has begun is finished: nobody would know how far it came.
        if self.stopping && session.progress.is_none() {
            return Err(FrameStatus::ShuttingDown.into());
        }
        let Some(greeted) = session.hello else {
            return match opcode {
                Opcode::Hello => self.hello(session, frame, out),
                _ => Err(FrameStatus::HelloRequired.into()),
            };
        };
        if self.is_stale(session) {
            // The client has given this connection up, and goes by what it finds on the next.
            return Err(FrameStatus::HelloRequired.into());
        }
        let caller = greeted.instance;
        match opcode {
            Opcode::Hello => return Err(FrameStatus::HelloRequired.into()),
            Opcode::RequestAlloc => return self.request_alloc(caller, frame),
            Opcode::ReturnAlloc => self.return_alloc(caller, frame, out)?,
            Opcode::ListAllocations => self.list_allocations(caller, frame, out)?,
            Opcode::GetRegion => return self.get_region(session, frame, out),
            Opcode::ListPools => self.list_pools(frame, out)?,
            Opcode::ReclaimPages => self.reclaim_pages(caller, frame, out)?,
            Opcode::GetPages => self.get_pages(caller, frame, out)?,
            Opcode::GetStats => self.get_stats(frame, now, out)?,
            Opcode::Heartbeat => self.heartbeat(frame, now, out)?,
            Opcode::ReportStats => self.report_stats(caller, frame, out)?,
            Opcode::GetUsage => self.get_usage(frame, now, out)?,
            Opcode::GetSocket => self.get_socket(frame, out)?,
            Opcode::GetLatencies => self.get_latencies(frame, out)?,
            Opcode::GetServer => self.get_server(session, frame, out)?,
            Opcode::GetEntry => self.get_entry(frame, out)?,
            Opcode::ListPins => self.list_pins(frame, now, out)?,
            Opcode::ListReports => self.list_reports(frame, out)?,
            // Everybody may look; what others hold on to is the operator's to release.
            Opcode::ReleasePins if !session.is_operator => return Err(FrameStatus::Unauthorized.into()),
            Opcode::Shutdown if self.config.allow_shutdown => {
                self.one_frame(frame, 0);
                self.answer_status(frame.header(), FrameStatus::Ok, out);
                return Ok(Next::Shutdown);
            }
            Opcode::Shutdown => return Err(FrameStatus::Unauthorized.into()),
            _ => {
                let batch = Batch::of(caller, opcode, frame, now, &mut session.progress);
                return self.serve_part(opcode, batch, out);
            }
        }
        Ok(Next::Continue)
    }

    /// Serves the next part of a batch of entries.
    fn serve_part(
        &mut self,
        opcode: Opcode,
        mut batch: Batch<'_>,
        out: &mut Output,
    ) -> Result<Next, Refused> {
        let (records, progress) = match opcode {
            Opcode::RegisterKv | Opcode::BatchRegisterKv => self.register(&mut batch, out)?,
            Opcode::LookupKv | Opcode::BatchLookupKv => {
                let pin = batch.frame.flags().contains(Flags::PIN).then_some(PinKind::Guard);
                self.lookup(&mut batch, pin, out)?
            }
            Opcode::PinKv | Opcode::BatchPinKv => self.lookup(&mut batch, Some(PinKind::Named), out)?,
            Opcode::ExistsKv | Opcode::BatchExistsKv => self.exists(&mut batch, out)?,
            Opcode::DeleteKv | Opcode::BatchDeleteKv => self.delete(&mut batch, out)?,
            Opcode::UnpinKv | Opcode::BatchUnpinKv => self.unpin(&mut batch, out)?,
            Opcode::AssertPins => self.assert_pins(&mut batch, out)?,
            Opcode::ReleasePins => self.release_pins(&mut batch, out)?,
            _ => return Err(FrameStatus::UnsupportedOpcode.into()),
        };
        if progress.done < records {
            *batch.progress = Some(progress);
            return Ok(Next::Again);
        }
        self.counters.served(opcode);
        Ok(Next::Continue)
    }

    fn hello(&mut self, session: &mut Session, frame: &Frame<'_>, out: &mut Output) -> Result<Next, Refused> {
        let hello = frame.record::<HelloRequest>()?;
        if !hello.versions.contains(VERSION) {
            self.answer_version(frame.header(), out);
            return Ok(Next::Close);
        }
        let token = self.config.auth.as_ref().filter(|_| session.transport == Transport::Tcp);
        if token.is_some_and(|token| !token.matches(&hello.auth)) {
            return Err(FrameStatus::Unauthorized.into());
        }
        let name = hello.instance_id.text().map_err(|_| FrameStatus::InvalidArgument)?;
        let kind = hello.connection_kind().ok_or(FrameStatus::InvalidArgument)?;
        if kind == ConnectionKind::Control && session.transport == Transport::Tcp {
            return Err(FrameStatus::InvalidArgument.into());
        }

        let resumed = hello.session != SessionToken::NONE;
        let resume = match (hello.resume, kind) {
            (0, _) => false,
            (1, ConnectionKind::Data) if resumed => true,
            _ => return Err(FrameStatus::InvalidArgument.into()),
        };
        let features = hello.features.get() & FEATURE_NO_GRACE;
        let (instance, session_token) = if resumed {
            let instance = self.state.find_instance(token_of(hello.session));
            (instance.ok_or(FrameStatus::Unauthorized)?, hello.session)
        } else {
            let session_token = SessionToken(crate::random::secret());
            let opened = self.state.open_instance(name, token_of(session_token));
            let opened = opened.map_err(|_| FrameStatus::Limit)?;
            if features & FEATURE_NO_GRACE != 0 {
                self.state.end_without_grace(opened);
            }
            (opened, session_token)
        };
        // A session that goes on has given its other connections up, of which the server may not know yet.
        let connected = if resume { self.state.resume(instance) } else { self.state.connect(instance) };
        if connected.is_err() {
            if !resumed {
                self.state.forget(instance);
            }
            return Err(FrameStatus::Limit.into());
        }
        session.hello = Some(Greeted { instance, incarnation: self.state.incarnation(instance), kind });
        self.one_frame(frame, 1);
        tracing::debug!(instance = instance.0, name, ?kind, resumed, "a connection is open");
        if resume {
            tracing::info!(instance = instance.0, name, "an instance resumed its session");
        }

        let grace_ms = u32::try_from(self.config.limits.grace.as_millis()).unwrap_or(u32::MAX);
        let response = HelloResponse {
            epoch: self.config.epoch.into(),
            session: session_token,
            digest_key: self.config.digest_key,
            features: features.into(),
            instance: instance.0.into(),
            max_body: self.config.max_body.into(),
            max_pins_per_entry: self.config.limits.max_pins_per_entry.into(),
            grace_ms: grace_ms.into(),
            resumed: resumed.into(),
            version: VERSION,
            reserved: [0; 6],
        };
        out.push(ok(frame), &[response]);
        Ok(Next::Continue)
    }

    fn request_alloc(&mut self, caller: InstanceNumber, frame: &Frame<'_>) -> Result<Next, Refused> {
        let request = frame.record::<RequestAllocRequest>()?;
        let pool = match request.pool_id.get() {
            RequestAllocRequest::ANY_POOL => None,
            id => Some(PoolId(id)),
        };
        match self.state.begin_region(caller, request.size.get(), request.page_size.get(), pool) {
            Ok(region) => Ok(Next::MakeRegion(region)),
            Err(AllocError::NoSpace { pending: true }) => Ok(Next::AwaitRelease),
            Err(AllocError::NoSpace { pending: false }) => Err(FrameStatus::NoSpace.into()),
            Err(AllocError::TooManyRegions | AllocError::TooManyPages) => Err(FrameStatus::Limit.into()),
            Err(AllocError::InvalidSize | AllocError::UnknownPool) => {
                Err(FrameStatus::InvalidArgument.into())
            }
        }
    }

    fn return_alloc(
        &mut self,
        caller: InstanceNumber,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<(), Refused> {
        let request = frame.record::<ReturnAllocRequest>()?;
        self.state.return_region(caller, RegionId(request.region_id.get()))?;
        self.one_frame(frame, 1);
        self.answer_status(frame.header(), FrameStatus::Ok, out);
        Ok(())
    }

    fn list_allocations(
        &mut self,
        caller: InstanceNumber,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<(), Refused> {
        let request = frame.record::<ListAllocationsRequest>()?;
        let filter = AllocationFilter::from_u32(request.filter.get()).ok_or(FrameStatus::InvalidArgument)?;
        let wanted = |region: &RegionInfo| match filter {
            AllocationFilter::Mine => region.owner == Some(caller),
            AllocationFilter::Others => region.owner != Some(caller),
            _ => true,
        };
        let regions = self.state.regions_after(RegionId(request.after.get())).filter(wanted);
        let records = regions.map(|region| region_record(&region, &self.config.pools));
        let count = out.push_all(ok(frame), records, self.records_that_fit::<RegionRecord>());
        self.one_frame(frame, count);
        Ok(())
    }

    fn get_region(
        &mut self,
        session: &Session,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<Next, Refused> {
        let request = frame.record::<GetRegionRequest>()?;
        let region = self.state.region(RegionId(request.region_id.get()));
        let region = region.ok_or(FrameStatus::RegionNotFound)?;
        self.one_frame(frame, 1);
        Ok(self.answer_region(session, frame.header(), &region, out))
    }

    fn list_pools(&mut self, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        empty(frame)?;
        let records = self.state.pools().zip(&self.config.pools).map(|(pool, served)| {
            let mut record = PoolRecord::new_zeroed();
            record.pool_id = pool.id.0.into();
            record.kind = (served.kind as u32).into();
            record.uuid = served.uuid.to_bytes();
            record.incarnation = served.incarnation.into();
            record.coherence = (served.coherence as u32).into();
            record.size = pool.size.into();
            record.free = pool.free.into();
            record.largest_free = pool.largest_free.into();
            record.granularity = pool.granularity.into();
            record.path[..served.path.len()].copy_from_slice(served.path.as_bytes());
            record.path_len = u16::try_from(served.path.len()).unwrap_or(0).into();
            record
        });
        let count = out.push_all(ok(frame), records, self.records_that_fit::<PoolRecord>());
        self.one_frame(frame, count);
        Ok(())
    }

    fn reclaim_pages(
        &mut self,
        caller: InstanceNumber,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<(), Refused> {
        let request = frame.record::<ReclaimRequest>()?;
        let region = Some(RegionId(request.region_id.get())).filter(|region| region.0 != 0);
        let want = (request.want.get() as usize).min(self.records_that_fit::<PageRecord>());
        let evict = frame.flags().contains(Flags::EVICT);
        if evict && region.is_some() {
            return Err(FrameStatus::InvalidArgument.into());
        }
        let page =
            |region: RegionId, page: u32| PageRecord { region_id: region.0.into(), page_index: page.into() };
        let mut pages = Vec::new();
        self.state.reclaim(caller, region, want, |region, index| pages.push(page(region, index)))?;
        // What was freed is had for nothing, and the caller can ask again.
        if evict && pages.is_empty() {
            self.state.evict(caller, want, |region, index| pages.push(page(region, index)));
        }
        out.push(ok(frame), &pages);
        self.one_frame(frame, pages.len());
        Ok(())
    }

    fn get_pages(
        &mut self,
        caller: InstanceNumber,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<(), Refused> {
        let request = frame.record::<PagesRequest>()?;
        let (region, first) = (RegionId(request.region_id.get()), request.first_page.get());
        if !first.is_multiple_of(u64::BITS) {
            return Err(FrameStatus::InvalidArgument.into());
        }
        let words = self.state.held_pages(caller, region, first)?.map(U64::from);
        let count = out.push_all(ok(frame), words, self.records_that_fit::<U64>());
        self.one_frame(frame, count);
        Ok(())
    }

    /// Serves the next part of a batch whose answer is a status for each record, the one that `serve` says.
    fn serve_each<R>(
        &mut self,
        batch: &mut Batch<'_>,
        near: Near,
        digest: fn(&R) -> Digest,
        out: &mut Output,
        mut serve: impl FnMut(&mut State, &mut Request, &R) -> RecordStatus,
    ) -> Result<(usize, Progress), Refused>
    where
        R: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (frame, records) = (batch.frame, batch.frame.records::<R>()?);
        let mut progress =
            batch.progress(records.len(), out, |out| out.push_statuses(ok(frame), records.len()));
        let statuses = out.statuses(progress.at, records.len());
        for n in progress.next(records.len(), self.config.part) {
            self.look_ahead(near, records, n, digest);
            let status = serve(&mut self.state, &mut progress.request, &records[n]);
            statuses[n] = status as u8;
            progress.done += 1;
            self.counters.records(batch.opcode, status, 1);
            if batch.prefix_stop && status != RecordStatus::Ok {
                // The rest of the statuses are SKIPPED.
                self.counters.records(batch.opcode, RecordStatus::Skipped, records.len() - progress.done);
                progress.done = records.len();
                break;
            }
        }
        if progress.done == records.len() && !batch.is_answered {
            out.truncate(progress.at);
        }
        Ok((records.len(), progress))
    }

    fn assert_pins(&mut self, batch: &mut Batch<'_>, out: &mut Output) -> Result<(usize, Progress), Refused> {
        let digest_of = |record: &PinsRecord| digest(&record.digest);
        let (count, progress) =
            self.serve_each(batch, Near::Entries, digest_of, out, |state, request, record| {
                let (guards, named) = (record.guards.get(), record.named.get());
                let generation = record.generation.get();
                match state.assert_pins(request, digest_of(record), generation, guards, named) {
                    true => RecordStatus::Ok,
                    false => RecordStatus::NotFound,
                }
            })?;
        if progress.done == count && batch.frame.flags().contains(Flags::LAST) {
            self.state.release_unasserted(&progress.request);
        }
        Ok((count, progress))
    }

    fn register(&mut self, batch: &mut Batch<'_>, out: &mut Output) -> Result<(usize, Progress), Refused> {
        let digest_of = |record: &RegisterRecord| digest(&record.digest);
        self.serve_each(batch, Near::All, digest_of, out, |state, request, record| {
            let region = RegionId(record.region_id.get());
            let (page, length) = (record.page_index.get(), record.length.get());
            match state.register(request, digest_of(record), region, page, length, record.checksum.get()) {
                Registered::Done => RecordStatus::Ok,
                Registered::Exists => RecordStatus::Exists,
                Registered::RegionNotFound => RecordStatus::RegionNotFound,
                Registered::NotOwner => RecordStatus::NotOwner,
                Registered::OutOfBounds => RecordStatus::OutOfBounds,
                Registered::PageInUse => RecordStatus::PageInUse,
            }
        })
    }

    /// LOOKUP_KV, PIN_KV and what both together are, an acquire: they differ in whether they pin, and how.
    fn lookup(
        &mut self,
        batch: &mut Batch<'_>,
        pin: Option<PinKind>,
        out: &mut Output,
    ) -> Result<(usize, Progress), Refused> {
        let (frame, digests) = (batch.frame, batch.frame.records::<KeyDigest>()?);
        let begin = |out: &mut Output| out.push_records::<LocationRecord>(ok(frame), digests.len());
        let mut progress = batch.progress(digests.len(), out, begin);
        let locations = out.records::<LocationRecord>(progress.at, digests.len());
        for n in progress.next(digests.len(), self.config.part) {
            let key = &digests[n];
            progress.done += 1;
            if progress.stopped {
                // What is asked for and not there is likely to be stored next, and continues what stands before it.
                self.look_ahead(Near::All, digests, n, digest);
                self.state.pass_over(&mut progress.request, digest(key));
                locations[n] = LocationRecord::without(RecordStatus::Skipped);
                self.counters.records(batch.opcode, RecordStatus::Skipped, 1);
                continue;
            }
            self.look_ahead(Near::Entries, digests, n, digest);
            let found = match pin {
                Some(kind) => self.state.pin(&mut progress.request, digest(key), kind),
                None => self.state.lookup(&mut progress.request, digest(key)).ok_or(PinError::NotFound),
            };
            progress.tried += 1;
            let status = match found {
                Ok(location) => {
                    locations[n] = location_record(&location);
                    progress.hits += 1;
                    RecordStatus::Ok
                }
                Err(error) => {
                    let status = match error {
                        PinError::NotFound => RecordStatus::NotFound,
                        PinError::Limit => RecordStatus::PinLimit,
                    };
                    locations[n] = LocationRecord::without(status);
                    progress.stopped = batch.prefix_stop;
                    status
                }
            };
            self.counters.records(batch.opcode, status, 1);
        }
        if progress.done == digests.len() {
            self.counters.looked_up(progress.hits, progress.tried - progress.hits);
        }
        Ok((digests.len(), progress))
    }

    fn exists(&mut self, batch: &mut Batch<'_>, out: &mut Output) -> Result<(usize, Progress), Refused> {
        self.serve_each(batch, Near::Entries, digest, out, |state, _, key| match state.find(digest(key)) {
            Some(_) => RecordStatus::Ok,
            None => RecordStatus::NotFound,
        })
    }

    fn delete(&mut self, batch: &mut Batch<'_>, out: &mut Output) -> Result<(usize, Progress), Refused> {
        self.serve_each(batch, Near::All, digest, out, |state, _, key| match state.delete(digest(key)) {
            Ok(()) => RecordStatus::Ok,
            Err(DeleteError::NotFound) => RecordStatus::NotFound,
            Err(DeleteError::Pinned) => {
                tracing::trace!(%key, "not deleted: the key is pinned");
                RecordStatus::Pinned
            }
        })
    }

    fn unpin(&mut self, batch: &mut Batch<'_>, out: &mut Output) -> Result<(usize, Progress), Refused> {
        let kind = if batch.frame.flags().contains(Flags::PIN) { PinKind::Guard } else { PinKind::Named };
        let caller = batch.caller;
        self.serve_each(batch, Near::Entries, digest, out, |state, request, key| {
            let status = match state.unpin(request, digest(key), kind) {
                Ok(()) => return RecordStatus::Ok,
                Err(UnpinError::NotFound) => RecordStatus::NotFound,
                Err(UnpinError::NotPinned) => RecordStatus::NotPinned,
            };
            tracing::trace!(%key, instance = caller.0, %status, "nothing to unpin");
            status
        })
    }

    fn release_pins(
        &mut self,
        batch: &mut Batch<'_>,
        out: &mut Output,
    ) -> Result<(usize, Progress), Refused> {
        let (caller, now) = (batch.caller, batch.now);
        let digest_of = |record: &ReleasePinsRecord| digest(&record.digest);
        self.serve_each(batch, Near::Entries, digest_of, out, |state, _, record| {
            let instance = InstanceNumber(record.instance.get());
            let (generation, held_s) = (record.generation.get(), record.held_s.get());
            match state.release_named(digest_of(record), generation, instance, held_s, now) {
                Ok(pins) => {
                    let key = record.digest;
                    tracing::info!(%key, instance = instance.0, pins, operator = caller.0, "released pins by name");
                    RecordStatus::Ok
                }
                Err(UnpinError::NotFound) => RecordStatus::NotFound,
                Err(UnpinError::NotPinned) => RecordStatus::NotPinned,
            }
        })
    }

    fn get_stats(&mut self, frame: &Frame<'_>, now: Duration, out: &mut Output) -> Result<(), Refused> {
        empty(frame)?;
        self.one_frame(frame, 0);
        let figures = self.state.figures(now);
        let mut records = figure_stats(&figures).to_vec();
        records.push(stat(StatKind::Evictions, EvictionReason::Owner as u16, figures.evicted_for_owner));
        records.push(stat(StatKind::Evictions, EvictionReason::Orphan as u16, figures.evicted_with_orphan));
        records.push(stat(StatKind::UptimeMs, 0, milliseconds(now)));
        records.push(stat(StatKind::Epoch, 0, self.config.epoch));
        records.extend(self.counters.stats());
        // The last have the most details, and are the first to do without.
        records.truncate(self.records_that_fit::<StatRecord>());
        out.push(ok(frame), &records);
        Ok(())
    }

    fn heartbeat(&mut self, frame: &Frame<'_>, now: Duration, out: &mut Output) -> Result<(), Refused> {
        empty(frame)?;
        self.one_frame(frame, 0);
        let record = HeartbeatRecord { epoch: self.config.epoch.into(), uptime_ms: milliseconds(now).into() };
        out.push(ok(frame), &[record]);
        Ok(())
    }

    fn report_stats(
        &mut self,
        caller: InstanceNumber,
        frame: &Frame<'_>,
        out: &mut Output,
    ) -> Result<(), Refused> {
        let records = frame.records::<ReportRecord>()?;
        self.reports.take(caller, records)?;
        self.one_frame(frame, records.len());
        self.answer_status(frame.header(), FrameStatus::Ok, out);
        Ok(())
    }

    fn list_reports(&mut self, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        let request = frame.record::<ReportsRequest>()?;
        let after = InstanceNumber(request.instance.get());
        let records = self.reports.after(after, request.operation.get(), request.upper_ns.get());
        let count = out.push_all(ok(frame), records, self.records_that_fit::<ReportRecord>());
        self.one_frame(frame, count);
        Ok(())
    }

    fn get_usage(&mut self, frame: &Frame<'_>, now: Duration, out: &mut Output) -> Result<(), Refused> {
        let request = frame.record::<UsageRequest>()?;
        let records =
            self.state.usage_after(InstanceNumber(request.after.get()), now).map(|usage| UsageRecord {
                instance: usage.number.0.into(),
                connections: usage.connections.into(),
                regions: usage.regions.into(),
                entries: usage.entries.into(),
                region_bytes: usage.region_bytes.into(),
                entry_bytes: usage.entry_bytes.into(),
                pinned_entries: usage.pinned_entries.into(),
                pins: usage.pins.into(),
                named_pins: usage.named_pins.into(),
                oldest_pin_s: usage.oldest_pin_seconds.into(),
                grace_left_ms: milliseconds(usage.grace_left).into(),
                instance_id: InstanceId::new(usage.name).expect("the name was checked at HELLO"),
            });
        let count = out.push_all(ok(frame), records, self.records_that_fit::<UsageRecord>());
        self.one_frame(frame, count);
        Ok(())
    }

    fn get_latencies(&mut self, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        let request = frame.record::<LatencyRequest>()?;
        let after = (request.opcode.get(), request.upper_ns.get());
        let buckets = self.counters.latencies.iter().flat_map(|(opcode, histogram)| {
            let opcode = u16::from(opcode as u8);
            histogram.buckets().map(move |(upper_ns, count)| (opcode, upper_ns, count))
        });
        let records = buckets.filter(|&(opcode, upper_ns, _)| (opcode, upper_ns) > after).map(
            |(opcode, upper_ns, count)| LatencyRecord {
                opcode: opcode.into(),
                reserved: [0; 6],
                upper_ns: upper_ns.into(),
                count: count.into(),
            },
        );
        let count = out.push_all(ok(frame), records, self.records_that_fit::<LatencyRecord>());
        self.one_frame(frame, count);
        Ok(())
    }

    fn get_socket(&mut self, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        empty(frame)?;
        let record = self.config.socket.as_ref().and_then(|socket| {
            // Keyed, since a boot id names the host to whoever has seen it elsewhere.
            let host = self.config.digest_key.digest(socket.boot_id.as_bytes());
            SocketRecord::new(socket.path.as_os_str().as_bytes(), host)
        });
        out.push(ok(frame), record.as_slice());
        self.one_frame(frame, record.as_slice().len());
        Ok(())
    }

    fn get_server(&mut self, session: &Session, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        empty(frame)?;
        self.one_frame(frame, 0);
        let limits = &self.config.limits;
        let record = ServerRecord {
            release: ServerRecord::release_bytes(env!("CARGO_PKG_VERSION")),
            process: std::process::id().into(),
            is_operator: u32::from(session.is_operator).into(),
            grace_ms: milliseconds(limits.grace).into(),
            pin_ttl_ms: milliseconds(limits.pin_ttl).into(),
            max_instances: limits.max_instances.into(),
            max_pins_per_entry: limits.max_pins_per_entry.into(),
            max_regions_per_instance: limits.max_regions_per_instance.into(),
            reserved: 0.into(),
        };
        out.push(ok(frame), &[record]);
        Ok(())
    }

    fn get_entry(&mut self, frame: &Frame<'_>, out: &mut Output) -> Result<(), Refused> {
        let request = frame.record::<EntryRequest>()?;
        let entry = self.state.entry(digest(&request.digest));
        let record = entry.map(|entry| entry_record(request.digest, &entry));
        out.push(ok(frame), record.as_slice());
        self.one_frame(frame, record.as_slice().len());
        Ok(())
    }

    fn list_pins(&mut self, frame: &Frame<'_>, now: Duration, out: &mut Output) -> Result<(), Refused> {
        let request = frame.record::<ListPinsRequest>()?;
        let filter = PinFilter {
            digest: match request.of_digest.get() {
                0 => None,
                1 => Some(digest(&request.digest)),
                _ => return Err(FrameStatus::InvalidArgument.into()),
            },
            instance: Some(request.instance.get()).filter(|number| *number != 0).map(InstanceNumber),
            held_seconds: request.held_s.get().into(),
        };
        // One place is for how far the server has looked.
        let limit = self.records_that_fit::<HeldPinsRecord>().saturating_sub(1).max(1);
        let mut records = Vec::new();
        let after = PinsAfter::from(request.after.get());
        let come_to = self.state.pins_after(after, &filter, limit, now, |place, pins| {
            records.push(held_pins_record(place, &pins));
        });
        self.one_frame(frame, records.len());
        if let Some(place) = come_to.map(u64::from)
            && records.last().is_none_or(|last| last.cursor.get() != place)
        {
            records.push(HeldPinsRecord { cursor: place.into(), ..HeldPinsRecord::new_zeroed() });
        }
        out.push(ok(frame), &records);
        Ok(())
    }

    /// Has the memory brought near that the next frames of one key each will read. Batches look ahead by
    /// themselves.
    pub fn look_ahead_of<'a>(&self, frames: impl Iterator<Item = Frame<'a>>) {
        let mut digests = [Digest(0); LOOK_AHEAD];
        let mut count = 0;
        for (place, digest) in digests.iter_mut().zip(frames.filter_map(|frame| only_digest(&frame))) {
            *place = digest;
            count += 1;
        }
        if count > 1 {
            self.state.prefetch(digests[..count].iter().copied());
        }
    }

    /// Has the next records' memory brought near, every so many of them.
    fn look_ahead<R>(&self, near: Near, records: &[R], n: usize, digest: impl Fn(&R) -> Digest + Clone) {
        if n.is_multiple_of(LOOK_AHEAD) && records.len() > 1 {
            let digests = records[n..].iter().take(LOOK_AHEAD).map(digest);
            match near {
                Near::Entries => self.state.prefetch(digests),
                Near::All => self.state.prefetch_all(digests),
            }
        }
    }

    fn answer_region(
        &mut self,
        session: &Session,
        request: &Header,
        region: &RegionInfo,
        out: &mut Output,
    ) -> Next {
        out.push(Head::response(request, FrameStatus::Ok), &[region_record(region, &self.config.pools)]);
        match session.hello {
            Some(Greeted { kind: ConnectionKind::Control, instance, .. }) => {
                Next::Attach { region: region.id, writable: region.owner == Some(instance) }
            }
            _ => Next::Continue,
        }
    }

    /// Answers a peer that speaks another version with those that are spoken here.
    fn answer_version(&mut self, request: &Header, out: &mut Output) {
        self.counters.refused(Opcode::from_u8(request.opcode), FrameStatus::UnsupportedVersion);
        out.push(Head::response(request, FrameStatus::UnsupportedVersion), &[VersionRange::SPOKEN]);
    }

    fn answer_status(&mut self, request: &Header, status: FrameStatus, out: &mut Output) {
        if status != FrameStatus::Ok {
            self.counters.refused(Opcode::from_u8(request.opcode), status);
        }
        out.push::<KeyDigest>(Head::response(request, status), &[]);
    }

    /// Counts a frame that was served, and its records.
    fn one_frame(&mut self, frame: &Frame<'_>, records: usize) {
        self.count(frame.header(), records);
    }

    fn count(&mut self, request: &Header, records: usize) {
        if let Some(opcode) = Opcode::from_u8(request.opcode) {
            self.counters.served(opcode);
            self.counters.records(opcode, RecordStatus::Ok, records);
        }
    }

    /// Records that fit the largest response body.
    fn records_that_fit<T>(&self) -> usize {
        max_response_body(self.config.max_body) as usize / size_of::<T>()
    }
}

fn ok(frame: &Frame<'_>) -> Head {
    Head::response(frame.header(), FrameStatus::Ok)
}

fn empty(frame: &Frame<'_>) -> Result<(), Refused> {
    if frame.body().is_empty() { Ok(()) } else { Err(FrameStatus::Malformed.into()) }
}

fn digest(key: &KeyDigest) -> Digest {
    Digest::from(key.to_bytes())
}

/// The digest that a request of one key is about: its body begins with it, whatever is asked.
fn only_digest(frame: &Frame<'_>) -> Option<Digest> {
    let is_of_one_key = matches!(
        frame.opcode()?,
        Opcode::RegisterKv
            | Opcode::LookupKv
            | Opcode::ExistsKv
            | Opcode::DeleteKv
            | Opcode::PinKv
            | Opcode::UnpinKv
    );
    let digest = frame.body().first_chunk::<16>().filter(|_| is_of_one_key)?;
    Some(Digest::from(*digest))
}

/// Whether the body of a request is digests.
fn is_of_digests(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::LookupKv
            | Opcode::BatchLookupKv
            | Opcode::ExistsKv
            | Opcode::BatchExistsKv
            | Opcode::DeleteKv
            | Opcode::BatchDeleteKv
            | Opcode::PinKv
            | Opcode::BatchPinKv
            | Opcode::UnpinKv
            | Opcode::BatchUnpinKv
    )
}

/// A line for what begins, ends or changes hands; what happens to single entries is too much for one.
fn log(change: &Change, state: &State) {
    match *change {
        Change::Opened(instance) => {
            if let Some((name, _)) = state.identity(instance) {
                tracing::info!(instance = instance.0, name, "an instance opened");
            }
        }
        Change::Committed(region) => {
            let info = state.region(region);
            if let Some((info, owner)) = info.and_then(|info| Some((info, info.owner?))) {
                let name = state.identity(owner).map(|(name, _)| name);
                tracing::info!(
                    region = region.0,
                    instance = owner.0,
                    name,
                    size = info.size,
                    "a region was given"
                );
            }
        }
        Change::Disowned(region) => {
            if let Some(info) = state.region(region) {
                tracing::info!(region = region.0, chunks = info.entries, "a region is an orphan");
            }
        }
        Change::Retired(region) => tracing::info!(region = region.0, "a region was freed"),
        Change::Recovered => tracing::info!("nobody of before the restart is waited for any more"),
        Change::Ended(_) | Change::Stored { .. } | Change::Freed { .. } | Change::Held { .. } => {}
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn token_of(session: SessionToken) -> Token {
    Token(u128::from_le_bytes(session.0))
}

fn location_record(location: &Location) -> LocationRecord {
    LocationRecord {
        region_id: location.region.0.into(),
        offset: location.offset.into(),
        length: u64::from(location.length).into(),
        generation: location.generation.into(),
        checksum: location.checksum.into(),
        ..LocationRecord::without(RecordStatus::Ok)
    }
}

fn entry_record(digest: KeyDigest, entry: &EntryInfo) -> EntryRecord {
    EntryRecord {
        digest,
        region_id: entry.location.region.0.into(),
        page_index: entry.page.into(),
        offset: entry.location.offset.into(),
        length: u64::from(entry.location.length).into(),
        generation: entry.location.generation.into(),
        owner: entry.owner.map_or(0, |owner| owner.0).into(),
        pins: entry.pins.into(),
        checksum: entry.location.checksum.into(),
        reserved: [0.into(); 2],
    }
}

fn held_pins_record(place: PinsAfter, pins: &HeldPins) -> HeldPinsRecord {
    HeldPinsRecord {
        digest: KeyDigest::from_bytes(pins.digest.0.to_le_bytes()),
        cursor: u64::from(place).into(),
        instance: pins.instance.0.into(),
        generation: pins.generation.into(),
        guards: pins.guards.into(),
        named: pins.named.into(),
        held_s: pins.held_seconds.into(),
        length: u64::from(pins.length).into(),
        reserved: 0.into(),
    }
}

fn region_record(region: &RegionInfo, pools: &[ServedPool]) -> RegionRecord {
    let pool = &pools[region.pool.0 as usize];
    let state = if region.owner.is_some() { RegionState::Owned } else { RegionState::Orphan };
    RegionRecord {
        region_id: region.id.0.into(),
        pool_id: region.pool.0.into(),
        pool_offset: region.pool_offset.into(),
        size: region.size.into(),
        page_size: region.page_size.into(),
        owner: region.owner.map_or(0, |owner| owner.0).into(),
        state: (state as u32).into(),
        pages: region.pages.into(),
        entries: region.entries.into(),
        freed_pages: region.freed_pages.into(),
        coherence: (pool.coherence as u32).into(),
        entry_bytes: region.entry_bytes.into(),
        file_offset: pool.file_offset(region).into(),
        extent: region.extent.into(),
    }
}

/// One figure of GET_STATS.
pub(crate) fn stat(kind: StatKind, detail: u16, value: u64) -> StatRecord {
    StatRecord { kind: (kind as u16).into(), detail: detail.into(), reserved: 0.into(), value: value.into() }
}

fn figure_stats(figures: &Figures) -> [StatRecord; 17] {
    [
        (StatKind::Entries, figures.entries),
        (StatKind::EntryBytes, figures.entry_bytes),
        (StatKind::Regions, figures.regions),
        (StatKind::RegionBytes, figures.region_bytes),
        (StatKind::Orphans, figures.orphans),
        (StatKind::PinnedEntries, figures.pinned_entries),
        (StatKind::Pins, figures.pins),
        (StatKind::Instances, figures.instances),
        (StatKind::Connections, figures.connections),
        (StatKind::FreedPages, figures.freed_pages),
        (StatKind::PoolBytes, figures.pool_bytes),
        (StatKind::PoolFreeBytes, figures.pool_free_bytes),
        (StatKind::EntryCapacity, figures.entry_capacity),
        (StatKind::InstancesExpired, figures.instances_expired),
        (StatKind::ReclaimedPages, figures.reclaimed_pages),
        (StatKind::PinsExpired, figures.pins_expired),
        (StatKind::OldestPinS, figures.oldest_pin_seconds),
    ]
    .map(|(kind, value)| stat(kind, 0, value))
}
