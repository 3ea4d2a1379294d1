//! The one vocabulary of requests: what each sends, what it expects, and what has to be undone when nobody waits for its
//! answer any more. Whoever adds an operation adds it here, and every kind of connection can carry it.

use maru_proto::{
    AllocationFilter, EntryRecord, EntryRequest, Flags, Frame, FrameStatus, GetRegionRequest,
    HeartbeatRecord, HeldPinsRecord, HelloRequest, HelloResponse, KeyDigest, LatencyRecord, LatencyRequest,
    ListAllocationsRequest, ListPinsRequest, LocationRecord, Opcode, PageRecord, PagesRequest, PinsRecord,
    PoolRecord, ReclaimRequest, RecordStatus, RegionRecord, RegisterRecord, ReleasePinsRecord, ReportRecord,
    ReportsRequest, RequestAllocRequest, ReturnAllocRequest, ServerRecord, SocketRecord, StatRecord,
    UsageRecord, UsageRequest, VersionRange, statuses,
};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Backlog;
use crate::error::{Error, ProtocolError, Result};
use crate::page::PageLocation;
use crate::pins::PinKind;

/// What came of decoding a body.
pub(crate) type Decoded<T> = std::result::Result<T, ProtocolError>;

/// A request and its answer.
pub(crate) trait Request {
    /// What the answer is decoded to.
    type Response: Send;

    /// The operation.
    fn opcode(&self) -> Opcode;

    /// The flags of the frame.
    fn flags(&self) -> Flags {
        Flags::NONE
    }

    /// The body: an array of records as bytes.
    fn body(&self) -> &[u8];

    /// The answer, from a frame whose status is OK.
    fn decode(&self, frame: &Frame<'_>) -> Decoded<Self::Response>;

    /// What an answer that nobody waits for leaves to be undone.
    fn undo(&self) -> Undo {
        Undo::Nothing
    }
}

/// What to do with an answer that comes too late for whoever asked.
#[derive(Debug)]
pub(crate) enum Undo {
    /// The answer changes nothing that matters.
    Nothing,
    /// Release the pins of the digests that were found.
    Unpin(PinKind, Vec<KeyDigest>),
    /// The pages in it are this instance's again.
    TakeBack,
    /// Take note which of the pages are stored; the others are free again.
    Settle(Vec<PageLocation>),
}

impl Undo {
    /// The answer has come, and nobody waits for it.
    pub(super) fn after(self, frame: &Frame<'_>, backlog: &dyn Backlog) {
        match self {
            Undo::Nothing => {}
            Undo::Unpin(kind, digests) => {
                let locations = frame.records::<LocationRecord>().unwrap_or_default();
                let pinned = digests.into_iter().zip(locations);
                let pinned =
                    pinned.filter(|(_, location)| location.record_status() == Some(RecordStatus::Ok));
                backlog.unpin(kind, pinned.map(|(digest, _)| digest).collect());
            }
            Undo::TakeBack => {
                let pages = frame.records::<PageRecord>().unwrap_or_default();
                backlog.reclaim(pages.iter().map(location).collect());
            }
            Undo::Settle(pages) => {
                let stored = if frame.status() == FrameStatus::Ok {
                    statuses(frame.body(), pages.len())
                        .map(|statuses| statuses.map(|status| status == RecordStatus::Ok).collect::<Vec<_>>())
                } else {
                    Some(vec![false; pages.len()])
                };
                // Pages of an answer that makes no sense stay in doubt, and are never used again.
                if let Some(stored) = stored {
                    backlog.settle(pages.into_iter().zip(stored).collect());
                }
            }
        }
    }

    /// The connection was lost before the answer came, and nobody waits for it.
    pub(super) fn unanswered(self, backlog: &dyn Backlog) {
        if let Undo::Settle(pages) = self {
            backlog.doubt(pages);
        }
    }

    /// The request was never sent.
    pub(super) fn unsent(self, backlog: &dyn Backlog) {
        if let Undo::Settle(pages) = self {
            backlog.settle(pages.into_iter().map(|page| (page, false)).collect());
        }
    }
}

/// The answer to a request, or what the server refused it with.
pub(super) fn decode_answer<R: Request>(request: &R, frame: &Frame<'_>) -> Result<R::Response> {
    match frame.status() {
        FrameStatus::Ok => Ok(request.decode(frame)?),
        FrameStatus::UnsupportedVersion => {
            let server = frame.record::<VersionRange>().map_err(ProtocolError::from)?;
            Err(Error::UnsupportedVersion { server: *server })
        }
        // The session went on elsewhere, by a HELLO that was given up and came after all: this connection is none any more.
        FrameStatus::HelloRequired if request.opcode() != Opcode::Hello => Err(Error::ConnectionLost),
        status => Err(Error::Refused { operation: request.opcode(), status }),
    }
}

macro_rules! plain_requests {
    ($($(#[$doc:meta])* $name:ident($record:ty): $opcode:ident -> $response:ty = $decode:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name(pub(crate) $record);

            impl Request for $name {
                type Response = $response;

                fn opcode(&self) -> Opcode {
                    Opcode::$opcode
                }

                fn body(&self) -> &[u8] {
                    self.0.as_bytes()
                }

                fn decode(&self, frame: &Frame<'_>) -> Decoded<$response> {
                    let decode: fn(&Frame<'_>) -> Decoded<$response> = $decode;
                    decode(frame)
                }
            }
        )*
    };
}

plain_requests! {
    /// Open a connection.
    Hello(HelloRequest): Hello -> HelloResponse = one;
    /// Ask for a region.
    RequestAlloc(RequestAllocRequest): RequestAlloc -> RegionRecord = one;
    /// Give a region back.
    ReturnAlloc(ReturnAllocRequest): ReturnAlloc -> () = none;
    /// Describe a region.
    GetRegion(GetRegionRequest): GetRegion -> RegionRecord = one;
    /// Which pages of an own region the server sees with this instance.
    GetPages(PagesRequest): GetPages -> Vec<U64> = many;
    /// The next regions of a list.
    ListAllocations(ListAllocationsRequest): ListAllocations -> Vec<RegionRecord> = many;
    /// The pools.
    ListPools([u8; 0]): ListPools -> Vec<PoolRecord> = many;
    /// The server's figures.
    GetStats([u8; 0]): GetStats -> Vec<StatRecord> = many;
    /// The next instances of a list.
    GetUsage(UsageRequest): GetUsage -> Vec<UsageRecord> = many;
    /// The next buckets of the server's latencies.
    GetLatencies(LatencyRequest): GetLatencies -> Vec<LatencyRecord> = many;
    /// Where the server's Unix socket lies.
    GetSocket([u8; 0]): GetSocket -> Vec<SocketRecord> = many;
    /// What the server is.
    GetServer([u8; 0]): GetServer -> ServerRecord = one;
    /// Where an entry is.
    GetEntry(EntryRequest): GetEntry -> Vec<EntryRecord> = many;
    /// The next buckets of what handlers report.
    ListReports(ReportsRequest): ListReports -> Vec<ReportRecord> = many;
    /// The next pins of a list.
    ListPins(ListPinsRequest): ListPins -> Vec<HeldPinsRecord> = many;
    /// Say that the instance lives.
    Heartbeat([u8; 0]): Heartbeat -> HeartbeatRecord = one;
}

impl ReturnAlloc {
    /// The region with this id.
    pub(crate) fn of(region_id: u32) -> ReturnAlloc {
        ReturnAlloc(ReturnAllocRequest { region_id: region_id.into(), reserved: 0.into() })
    }
}

impl ListAllocations {
    /// The regions after an id.
    pub(crate) fn after(filter: AllocationFilter, after: u32) -> ListAllocations {
        ListAllocations(ListAllocationsRequest { filter: (filter as u32).into(), after: after.into() })
    }
}

/// Say which pins are in use.
pub(crate) struct AssertPins<'a> {
    pub(crate) records: &'a [PinsRecord],
    /// Whether these are the last.
    pub(crate) last: bool,
}

impl Request for AssertPins<'_> {
    /// Whether each of them is as it was said.
    type Response = Vec<bool>;

    fn opcode(&self) -> Opcode {
        Opcode::AssertPins
    }

    fn flags(&self) -> Flags {
        if self.last { Flags::LAST } else { Flags::NONE }
    }

    fn body(&self) -> &[u8] {
        self.records.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<bool>> {
        let statuses = status_each(frame, self.records.len())?;
        Ok(statuses.into_iter().map(|status| status == RecordStatus::Ok).collect())
    }
}

/// Release pins by name of any instance.
pub(crate) struct ReleasePins<'a>(pub(crate) &'a [ReleasePinsRecord]);

impl Request for ReleasePins<'_> {
    type Response = Vec<RecordStatus>;

    fn opcode(&self) -> Opcode {
        Opcode::ReleasePins
    }

    fn body(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<RecordStatus>> {
        status_each(frame, self.0.len())
    }
}

/// Tell how long calls took.
pub(crate) struct ReportStats<'a>(pub(crate) &'a [ReportRecord]);

impl Request for ReportStats<'_> {
    type Response = ();

    fn opcode(&self) -> Opcode {
        Opcode::ReportStats
    }

    fn body(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<()> {
        none(frame)
    }
}

/// Take pages back.
pub(crate) struct Reclaim {
    pub(crate) request: ReclaimRequest,
    /// Whether cold entries may be evicted for it.
    pub(crate) evict: bool,
}

impl Request for Reclaim {
    type Response = Vec<PageLocation>;

    fn opcode(&self) -> Opcode {
        Opcode::ReclaimPages
    }

    fn flags(&self) -> Flags {
        if self.evict { Flags::EVICT } else { Flags::NONE }
    }

    fn body(&self) -> &[u8] {
        self.request.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<PageLocation>> {
        let pages = frame.records::<PageRecord>()?;
        if pages.len() > self.request.want.get() as usize {
            return Err(ProtocolError::Records { expected: self.request.want.get() as usize });
        }
        Ok(pages.iter().map(location).collect())
    }

    fn undo(&self) -> Undo {
        Undo::TakeBack
    }
}

/// Make chunks visible.
pub(crate) struct Register<'a> {
    pub(crate) records: &'a [RegisterRecord],
    pub(crate) pages: &'a [PageLocation],
}

impl Request for Register<'_> {
    type Response = Vec<RecordStatus>;

    fn opcode(&self) -> Opcode {
        single_or_batch(self.records.len(), Opcode::RegisterKv, Opcode::BatchRegisterKv)
    }

    fn body(&self) -> &[u8] {
        self.records.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<RecordStatus>> {
        status_each(frame, self.records.len())
    }

    fn undo(&self) -> Undo {
        Undo::Settle(self.pages.to_vec())
    }
}

/// Look chunks up, or pin them.
pub(crate) struct Lookup<'a> {
    pub(crate) digests: &'a [KeyDigest],
    pub(crate) kind: LookupKind,
}

/// What a look-up does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookupKind {
    /// Pin each chunk that is there, up to the first that is not: an acquire.
    AcquirePrefix,
    /// Pin each chunk that is there.
    AcquireEach,
    /// Pin explicitly, up to the first that is not there.
    Pin,
}

impl Request for Lookup<'_> {
    type Response = Vec<LocationRecord>;

    fn opcode(&self) -> Opcode {
        match self.kind {
            LookupKind::Pin => single_or_batch(self.digests.len(), Opcode::PinKv, Opcode::BatchPinKv),
            _ => single_or_batch(self.digests.len(), Opcode::LookupKv, Opcode::BatchLookupKv),
        }
    }

    fn flags(&self) -> Flags {
        match self.kind {
            LookupKind::AcquirePrefix => Flags::PIN | Flags::PREFIX_STOP,
            LookupKind::AcquireEach => Flags::PIN,
            LookupKind::Pin => Flags::NONE,
        }
    }

    fn body(&self) -> &[u8] {
        self.digests.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<LocationRecord>> {
        let locations = frame.records::<LocationRecord>()?;
        let expected = self.digests.len();
        if locations.len() != expected || locations.iter().any(|location| location.record_status().is_none())
        {
            return Err(ProtocolError::Records { expected });
        }
        Ok(locations.to_vec())
    }

    fn undo(&self) -> Undo {
        let kind = match self.kind {
            LookupKind::Pin => PinKind::Named,
            LookupKind::AcquirePrefix | LookupKind::AcquireEach => PinKind::Guard,
        };
        Undo::Unpin(kind, self.digests.to_vec())
    }
}

/// Ask which chunks exist, delete them, or unpin them.
pub(crate) struct OnEach<'a> {
    pub(crate) digests: &'a [KeyDigest],
    pub(crate) verb: Verb,
}

/// What is done to each digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Exists,
    Delete,
    Unpin,
}

impl Request for OnEach<'_> {
    type Response = Vec<RecordStatus>;

    fn opcode(&self) -> Opcode {
        let (single, batch) = match self.verb {
            Verb::Exists => (Opcode::ExistsKv, Opcode::BatchExistsKv),
            Verb::Delete => (Opcode::DeleteKv, Opcode::BatchDeleteKv),
            Verb::Unpin => (Opcode::UnpinKv, Opcode::BatchUnpinKv),
        };
        single_or_batch(self.digests.len(), single, batch)
    }

    fn body(&self) -> &[u8] {
        self.digests.as_bytes()
    }

    fn decode(&self, frame: &Frame<'_>) -> Decoded<Vec<RecordStatus>> {
        status_each(frame, self.digests.len())
    }
}

fn location(page: &PageRecord) -> PageLocation {
    PageLocation { region_id: page.region_id.get(), page_index: page.page_index.get() }
}

fn single_or_batch(records: usize, single: Opcode, batch: Opcode) -> Opcode {
    if records == 1 { single } else { batch }
}

fn one<T: FromBytes + KnownLayout + Immutable + Unaligned + Copy>(frame: &Frame<'_>) -> Decoded<T> {
    Ok(*frame.record::<T>()?)
}

fn many<T: FromBytes + KnownLayout + Immutable + Unaligned + Copy>(frame: &Frame<'_>) -> Decoded<Vec<T>> {
    Ok(frame.records::<T>()?.to_vec())
}

fn none(frame: &Frame<'_>) -> Decoded<()> {
    if frame.body().is_empty() { Ok(()) } else { Err(ProtocolError::Records { expected: 0 }) }
}

fn status_each(frame: &Frame<'_>, expected: usize) -> Decoded<Vec<RecordStatus>> {
    let statuses = statuses(frame.body(), expected).ok_or(ProtocolError::Records { expected })?;
    Ok(statuses.collect())
}
