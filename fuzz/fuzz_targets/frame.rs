//! Whatever bytes a peer sends, decoding them ends in a frame, an error or a wait, and a frame says again what it was told by.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maru_proto::{
    DEFAULT_MAX_BODY, EntryRecord, EntryRequest, Frame, GetRegionRequest, Header, HeartbeatRecord,
    HeldPinsRecord, HelloRequest, HelloResponse, KeyDigest, LatencyRecord, LatencyRequest,
    ListAllocationsRequest, ListPinsRequest, LocationRecord, Opcode, PageRecord, PagesRequest, PinsRecord,
    PoolRecord, ReclaimRequest, RegionRecord, RegisterRecord, ReleasePinsRecord, ReportRecord,
    ReportsRequest, RequestAllocRequest, ReturnAllocRequest, ServerRecord, SocketRecord, StatRecord, Step,
    UsageRecord, UsageRequest, VersionRange, decode, max_response_body, statuses,
};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

fuzz_target!(|input: &[u8]| {
    for limit in [DEFAULT_MAX_BODY, max_response_body(DEFAULT_MAX_BODY), 64, 0] {
        read_all(input, limit);
    }
});

/// Takes frame after frame, as either side does.
fn read_all(mut input: &[u8], limit: u32) {
    loop {
        match decode(input, limit) {
            Ok(Step::Frame { frame, consumed }) => {
                check(&frame, &input[..consumed], limit);
                input = &input[consumed..];
            }
            Ok(Step::Need(need)) => {
                let whole = Header::SIZE + limit as usize;
                assert!(need > 0 && input.len() + need <= whole, "{need} bytes more make a longer frame");
                return;
            }
            Err(error) => {
                let (_, header) = error.status();
                assert!(header.is_none_or(|header| input.starts_with(header.as_bytes())), "{error}");
                return;
            }
        }
    }
}

fn check(frame: &Frame<'_>, bytes: &[u8], limit: u32) {
    let header = frame.header();
    assert_eq!(bytes.len(), Header::SIZE + frame.body().len());
    assert_eq!(frame.body().len(), header.body_len.get() as usize);
    assert!(header.body_len.get() <= limit);
    assert_eq!(
        [header.as_bytes(), frame.body()].concat(),
        bytes,
        "what was decoded is encoded to the same bytes"
    );
    let _ = format!("{frame:?}");

    let Some(opcode) = frame.opcode() else { return };
    match opcode {
        Opcode::Hello => {
            check_hello(frame);
            check_records::<HelloResponse>(frame);
            check_records::<VersionRange>(frame);
        }
        Opcode::RequestAlloc => {
            check_records::<RequestAllocRequest>(frame);
            check_records::<RegionRecord>(frame);
        }
        Opcode::ReturnAlloc => check_records::<ReturnAllocRequest>(frame),
        Opcode::ListAllocations => {
            check_records::<ListAllocationsRequest>(frame);
            check_records::<RegionRecord>(frame);
        }
        Opcode::GetRegion => {
            check_records::<GetRegionRequest>(frame);
            check_records::<RegionRecord>(frame);
        }
        Opcode::ListPools => check_pools(frame),
        Opcode::ReclaimPages => {
            check_records::<ReclaimRequest>(frame);
            check_records::<PageRecord>(frame);
        }
        Opcode::GetPages => {
            check_records::<PagesRequest>(frame);
            check_records::<U64>(frame);
        }
        Opcode::RegisterKv | Opcode::BatchRegisterKv => {
            check_records::<RegisterRecord>(frame);
            check_statuses(frame);
        }
        Opcode::AssertPins => {
            check_records::<PinsRecord>(frame);
            check_statuses(frame);
        }
        Opcode::LookupKv | Opcode::BatchLookupKv | Opcode::PinKv | Opcode::BatchPinKv => {
            check_records::<KeyDigest>(frame);
            check_locations(frame);
        }
        Opcode::Heartbeat => check_records::<HeartbeatRecord>(frame),
        Opcode::GetStats => check_records::<StatRecord>(frame),
        Opcode::GetUsage => {
            check_records::<UsageRequest>(frame);
            check_usage(frame);
        }
        Opcode::GetLatencies => {
            check_records::<LatencyRequest>(frame);
            check_records::<LatencyRecord>(frame);
        }
        Opcode::ReportStats => check_records::<ReportRecord>(frame),
        Opcode::ListReports => {
            check_records::<ReportsRequest>(frame);
            check_records::<ReportRecord>(frame);
        }
        Opcode::GetSocket => check_sockets(frame),
        Opcode::GetServer => check_server(frame),
        Opcode::GetEntry => {
            check_records::<EntryRequest>(frame);
            check_records::<EntryRecord>(frame);
        }
        Opcode::ListPins => {
            check_records::<ListPinsRequest>(frame);
            check_records::<HeldPinsRecord>(frame);
        }
        Opcode::ReleasePins => {
            check_records::<ReleasePinsRecord>(frame);
            check_statuses(frame);
        }
        _ => {
            check_records::<KeyDigest>(frame);
            check_statuses(frame);
        }
    }
}

/// A body is either whole records, which are its bytes, or none.
fn check_records<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned>(frame: &Frame<'_>) {
    let length = frame.body().len();
    match frame.records::<T>() {
        Ok(records) => assert_eq!(records.as_bytes(), frame.body()),
        Err(error) => assert!(!length.is_multiple_of(size_of::<T>()), "{error}"),
    }
    assert_eq!(frame.record::<T>().is_ok(), length == size_of::<T>());
}

/// The body fits at most eight counts of statuses, and no two of them.
fn check_statuses(frame: &Frame<'_>) {
    let length = frame.body().len();
    let counts = length.saturating_sub(8)..=length + 1;
    let fitting = counts.filter_map(|count| Some((count, statuses(frame.body(), count)?)));
    let fitting = fitting.map(|(count, statuses)| (count, statuses.count())).collect::<Vec<_>>();
    assert!(fitting.len() <= 1 && fitting.iter().all(|(asked, told)| asked == told), "{fitting:?}");
}

fn check_locations(frame: &Frame<'_>) {
    check_records::<LocationRecord>(frame);
    for location in frame.records::<LocationRecord>().unwrap_or_default() {
        assert!(location.record_status().is_none_or(|status| status as u8 == location.status));
    }
}

fn check_hello(frame: &Frame<'_>) {
    check_records::<HelloRequest>(frame);
    let Ok(hello) = frame.record::<HelloRequest>() else { return };
    let _ = hello.connection_kind();
    assert!(hello.auth.matches(&hello.auth));
    if let Ok(name) = hello.instance_id.text() {
        assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?}");
    }
    let _ = format!("{hello:?}");
}

fn check_pools(frame: &Frame<'_>) {
    check_records::<PoolRecord>(frame);
    for pool in frame.records::<PoolRecord>().unwrap_or_default() {
        assert!(pool.path().is_none_or(|path| path.len() == usize::from(pool.path_len.get())));
    }
}

fn check_usage(frame: &Frame<'_>) {
    check_records::<UsageRecord>(frame);
    for usage in frame.records::<UsageRecord>().unwrap_or_default() {
        let _ = usage.instance_id.text();
    }
}

fn check_sockets(frame: &Frame<'_>) {
    check_records::<SocketRecord>(frame);
    for socket in frame.records::<SocketRecord>().unwrap_or_default() {
        assert!(socket.path().is_none_or(|path| path.len() == usize::from(socket.path_len.get())));
    }
}

fn check_server(frame: &Frame<'_>) {
    check_records::<ServerRecord>(frame);
    let Ok(server) = frame.record::<ServerRecord>() else { return };
    if let Some(release) = server.release() {
        assert!(!release.is_empty() && !release.contains(char::is_control), "{release:?}");
    }
}
