//! Requests of the wire, one at a time, without a handler: what a measurement needs before and between what it measures.

use std::path::Path;
use std::time::{Duration, Instant};

use maru_proto::{
    ConnectionKind, DEFAULT_MAX_BODY, Flags, Frame, FrameStatus, Head, Header, HelloRequest, HelloResponse,
    InstanceId, KeyDigest, LocationRecord, Opcode, PageRecord, ReclaimRequest, RecordStatus, RegionRecord,
    RegisterRecord, RequestAllocRequest, ReturnAllocRequest, SessionToken, Step, decode, encode,
    max_response_body, statuses,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::BenchError;
use crate::measure::channel::{Channel, Wait, lost};

/// Who answers, for messages.
pub(crate) const PEER: &str = "maru-server";

/// Bytes of a page of regions that hold nothing but entries: the smallest there are.
pub(crate) const PAGE: u64 = 4096;

/// How long the server may take to clear the memory of a region.
const ALLOC_LIMIT: Duration = Duration::from_secs(60);

/// An open connection.
#[derive(Debug)]
pub(crate) struct WireClient {
    pub(crate) channel: Channel,
    pub(crate) hello: HelloResponse,
}

/// Appends a request.
pub(crate) fn push<T: IntoBytes + Immutable>(
    out: &mut Vec<u8>,
    opcode: Opcode,
    flags: Flags,
    id: u32,
    records: &[T],
) {
    let at = out.len();
    // Every record is a multiple of eight bytes long, so nothing is padded.
    out.resize(at + Header::SIZE + size_of_val(records), 0);
    encode(&mut out[at..], Head::request(opcode, flags, id), records).expect("the room was just made");
}

/// The frame at the start of `input`, if it is whole, and its bytes.
///
/// # Errors
/// [`BenchError`] where it is no answer, or refuses the request.
pub(crate) fn answer(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, BenchError> {
    match decode(input, max_response_body(DEFAULT_MAX_BODY)) {
        Ok(Step::Need(_)) => Ok(None),
        Ok(Step::Frame { frame, consumed }) => match frame.status() {
            FrameStatus::Ok if frame.flags().contains(Flags::RESPONSE) => Ok(Some((frame, consumed))),
            FrameStatus::Ok => Err(BenchError::answer(PEER, "a request")),
            status => Err(BenchError::answer(PEER, status.to_string())),
        },
        Err(error) => Err(BenchError::answer(PEER, error.to_string())),
    }
}

/// The statuses of an answer that must have one for each of `count` records.
///
/// # Errors
/// [`BenchError`] where it has not.
pub(crate) fn record_statuses<'a>(
    frame: &Frame<'a>,
    count: usize,
) -> Result<impl Iterator<Item = RecordStatus> + use<'a>, BenchError> {
    statuses(frame.body(), count).ok_or_else(|| short(count))
}

/// The statuses of the locations of an answer that must have one for each of `count` records.
///
/// # Errors
/// [`BenchError`] where it has not.
pub(crate) fn location_statuses<'a>(
    frame: &Frame<'a>,
    count: usize,
) -> Result<impl Iterator<Item = RecordStatus> + use<'a>, BenchError> {
    let records =
        frame.records::<LocationRecord>().map_err(|error| BenchError::answer(PEER, error.to_string()))?;
    if records.len() != count {
        return Err(short(count));
    }
    Ok(records.iter().map(|record| record.record_status().unwrap_or(RecordStatus::Skipped)))
}

fn short(count: usize) -> BenchError {
    BenchError::answer(PEER, format!("other than one valid record for each of {count}"))
}

impl WireClient {
    /// Opens a connection as an instance of its own.
    ///
    /// # Errors
    /// [`BenchError`] where the server is not there or does not want it.
    pub(crate) fn connect(socket: &Path) -> Result<WireClient, BenchError> {
        let channel = Channel::connect(socket)
            .map_err(BenchError::system(format!("connect to {}", socket.display())))?;
        let name = InstanceId::new("maru-bench").expect("the name is short text");
        let request = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
        let mut channel = channel;
        let hello = one::<HelloResponse>(&call(&mut channel, Opcode::Hello, &[request])?)?;
        Ok(WireClient { channel, hello })
    }

    /// Records that one request may have, whatever they are.
    pub(crate) fn max_records(&self) -> usize {
        self.hello.max_body.get() as usize / size_of::<RegisterRecord>()
    }
}

/// Sends one request and waits for its answer; the body of that.
///
/// # Errors
/// [`BenchError`] where the server fails, or refuses it.
pub(crate) fn call<T: IntoBytes + Immutable>(
    channel: &mut Channel,
    opcode: Opcode,
    records: &[T],
) -> Result<Vec<u8>, BenchError> {
    push(channel.out(), opcode, Flags::NONE, 0, records);
    let began = Instant::now();
    loop {
        // A server that clears memory for a region may be silent for longer than one that answers requests.
        channel.exchange(Wait::UpTo(ALLOC_LIMIT)).map_err(lost(PEER))?;
        if let Some((frame, consumed)) = answer(channel.input())? {
            let body = frame.body().to_vec();
            channel.consume(consumed);
            return Ok(body);
        }
        if began.elapsed() > ALLOC_LIMIT {
            return Err(BenchError::answer(PEER, "nothing for a minute"));
        }
    }
}

/// Takes a region of so many pages of [`PAGE`] bytes; its id.
///
/// # Errors
/// [`BenchError`] where the server has none.
pub(crate) fn request_region(channel: &mut Channel, pages: u64) -> Result<u32, BenchError> {
    let request = RequestAllocRequest {
        size: (pages * PAGE).into(),
        page_size: PAGE.into(),
        pool_id: RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let body = call(channel, Opcode::RequestAlloc, &[request])?;
    Ok(one::<RegionRecord>(&body)?.region_id.get())
}

/// Gives a region back.
///
/// # Errors
/// [`BenchError`] where the server refuses that.
pub(crate) fn return_region(channel: &mut Channel, region: u32) -> Result<(), BenchError> {
    let request = ReturnAllocRequest { region_id: region.into(), reserved: 0.into() };
    call(channel, Opcode::ReturnAlloc, &[request]).map(drop)
}

/// The record that makes a page of [`PAGE`] bytes an entry.
pub(crate) fn register_record(digest: KeyDigest, region: u32, page: u32) -> RegisterRecord {
    RegisterRecord {
        digest,
        region_id: region.into(),
        length: 4096.into(),
        page_index: page.into(),
        checksum: 0.into(),
    }
}

/// Sends all records in batches of `most`, and has each status looked at.
///
/// # Errors
/// [`BenchError`] where the server fails, or a status is not right.
pub(crate) fn in_batches<T: IntoBytes + Immutable>(
    channel: &mut Channel,
    opcode: Opcode,
    records: &[T],
    most: usize,
    is_right: impl Fn(RecordStatus) -> bool,
) -> Result<(), BenchError> {
    for batch in records.chunks(most.max(1)) {
        let body = call(channel, opcode, batch)?;
        let mut statuses = statuses(&body, batch.len()).ok_or_else(|| short(batch.len()))?;
        if let Some(wrong) = statuses.find(|status| !is_right(*status)) {
            return Err(BenchError::answer(PEER, format!("{wrong} to {opcode}")));
        }
    }
    Ok(())
}

/// Takes back up to `want` pages of an own region.
///
/// # Errors
/// [`BenchError`] where the server refuses that.
pub(crate) fn reclaim(channel: &mut Channel, region: u32, want: u32) -> Result<Vec<u32>, BenchError> {
    let request = ReclaimRequest { want: want.into(), region_id: region.into() };
    let body = call(channel, Opcode::ReclaimPages, &[request])?;
    let records = <[PageRecord]>::ref_from_bytes(&body).map_err(|_| BenchError::answer(PEER, "no pages"))?;
    Ok(records.iter().map(|record| record.page_index.get()).collect())
}

fn one<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<T, BenchError> {
    T::read_from_bytes(body).map_err(|_| BenchError::answer(PEER, "a record of the wrong length"))
}
