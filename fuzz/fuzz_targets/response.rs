//! Whatever a server answers, the client takes one record for each that it asked for, or says that the answer is none.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use maru_client::Error;
use maru_client::fuzzing::records_taken;
use maru_fuzz::{frame_of, frames};
use maru_proto::{
    EntryRecord, EntryRequest, Flags, Frame, FrameStatus, GetRegionRequest, HeartbeatRecord, HeldPinsRecord,
    HelloRequest, HelloResponse, KeyDigest, LatencyRecord, LatencyRequest, ListAllocationsRequest,
    ListPinsRequest, LocationRecord, Opcode, PageRecord, PagesRequest, PinsRecord, PoolRecord,
    ReclaimRequest, RegionRecord, RegisterRecord, ReleasePinsRecord, ReportRecord, ReportsRequest,
    RequestAllocRequest, ReturnAllocRequest, ServerRecord, SocketRecord, StatRecord, UsageRecord,
    UsageRequest,
};

/// A request, of which only the number of records matters, and what a server makes of it.
#[derive(Arbitrary, Debug)]
struct Exchange {
    opcode: u8,
    records: u8,
    /// Of the frame; OK where there is none.
    status: Option<u16>,
    body: Body,
    /// What the request's body repeats.
    request: u32,
}

#[derive(Arbitrary, Debug)]
enum Body {
    /// As it comes.
    Any(Vec<u8>),
    /// So many records, all the same and as long as they should be.
    Records { count: u8, bytes: [u8; 16] },
    /// A status for each record of the request and so many more, padded as it should be.
    Statuses { more: i8, status: u8 },
}

/// What an answer has to have.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Nothing,
    One(usize),
    /// A status each.
    Statuses,
    Locations,
    /// As many as the server likes.
    Any(usize),
    /// As many as the server likes, but no more than were wanted.
    UpTo(usize),
}

fuzz_target!(|exchange: Exchange| {
    let opcode = Opcode::ALL[usize::from(exchange.opcode) % Opcode::ALL.len()];
    let Some((record, expected)) = shape(opcode) else { return };
    let records = if matches!(expected, Answer::Statuses | Answer::Locations) {
        usize::from(exchange.records)
    } else {
        usize::from(record > 0)
    };
    let asked = exchange.request.to_le_bytes().into_iter().cycle().take(record * records).collect::<Vec<_>>();
    let request = frame_of(opcode as u8, Flags::NONE, FrameStatus::Ok as u16, 1, &asked);
    let body = body(&exchange.body, records, expected);
    let status = exchange.status.unwrap_or(FrameStatus::Ok as u16);
    let answer = frame_of(opcode as u8, Flags::RESPONSE, status, 1, &body);
    let (Some(request), Some(answer)) = (frames(&request).next(), frames(&answer).next()) else { return };
    check(&request, &answer, records, expected);
});

fn check(request: &Frame<'_>, answer: &Frame<'_>, records: usize, expected: Answer) {
    let taken = records_taken(request, answer).expect("the client has this request");
    let length = answer.body().len();
    match taken {
        Ok(taken) => {
            assert_eq!(answer.status(), FrameStatus::Ok, "a request that was refused is not answered");
            match expected {
                Answer::Nothing => assert_eq!((taken, length), (0, 0)),
                Answer::One(size) => assert_eq!((taken, length), (1, size)),
                Answer::Statuses => {
                    assert_eq!((taken, length), (records, records.next_multiple_of(8)));
                }
                Answer::Locations => {
                    assert_eq!((taken, length), (records, records * size_of::<LocationRecord>()));
                }
                Answer::Any(size) => assert_eq!(taken * size, length),
                Answer::UpTo(size) => {
                    let wanted = request.record::<ReclaimRequest>().expect("it was made so").want.get();
                    assert!(taken * size == length && taken <= wanted as usize, "{taken} of {wanted} pages");
                }
            }
        }
        Err(Error::Refused { status, .. }) => assert_eq!(status, answer.status()),
        Err(Error::UnsupportedVersion { .. }) => {
            assert_eq!(answer.status(), FrameStatus::UnsupportedVersion);
        }
        Err(Error::ConnectionLost) => assert_eq!(answer.status(), FrameStatus::HelloRequired),
        Err(Error::Protocol(_)) => {}
        Err(error) => panic!("an answer can't lead to this: {error}"),
    }
}

/// Bytes of a record of the request, 0 where it has none, and what the answer has to have.
fn shape(opcode: Opcode) -> Option<(usize, Answer)> {
    Some(match opcode {
        Opcode::Hello => (size_of::<HelloRequest>(), Answer::One(size_of::<HelloResponse>())),
        Opcode::RequestAlloc => (size_of::<RequestAllocRequest>(), Answer::One(size_of::<RegionRecord>())),
        Opcode::ReturnAlloc => (size_of::<ReturnAllocRequest>(), Answer::Nothing),
        Opcode::ListAllocations => {
            (size_of::<ListAllocationsRequest>(), Answer::Any(size_of::<RegionRecord>()))
        }
        Opcode::GetRegion => (size_of::<GetRegionRequest>(), Answer::One(size_of::<RegionRecord>())),
        Opcode::ListPools => (0, Answer::Any(size_of::<PoolRecord>())),
        Opcode::ReclaimPages => (size_of::<ReclaimRequest>(), Answer::UpTo(size_of::<PageRecord>())),
        Opcode::GetPages => (size_of::<PagesRequest>(), Answer::Any(size_of::<u64>())),
        Opcode::RegisterKv | Opcode::BatchRegisterKv => (size_of::<RegisterRecord>(), Answer::Statuses),
        Opcode::AssertPins => (size_of::<PinsRecord>(), Answer::Statuses),
        Opcode::LookupKv | Opcode::BatchLookupKv | Opcode::PinKv | Opcode::BatchPinKv => {
            (size_of::<KeyDigest>(), Answer::Locations)
        }
        Opcode::ExistsKv
        | Opcode::BatchExistsKv
        | Opcode::DeleteKv
        | Opcode::BatchDeleteKv
        | Opcode::UnpinKv
        | Opcode::BatchUnpinKv => (size_of::<KeyDigest>(), Answer::Statuses),
        Opcode::GetStats => (0, Answer::Any(size_of::<StatRecord>())),
        Opcode::Heartbeat => (0, Answer::One(size_of::<HeartbeatRecord>())),
        Opcode::GetUsage => (size_of::<UsageRequest>(), Answer::Any(size_of::<UsageRecord>())),
        Opcode::GetLatencies => (size_of::<LatencyRequest>(), Answer::Any(size_of::<LatencyRecord>())),
        Opcode::ListReports => (size_of::<ReportsRequest>(), Answer::Any(size_of::<ReportRecord>())),
        Opcode::GetSocket => (0, Answer::Any(size_of::<SocketRecord>())),
        Opcode::GetServer => (0, Answer::One(size_of::<ServerRecord>())),
        Opcode::GetEntry => (size_of::<EntryRequest>(), Answer::Any(size_of::<EntryRecord>())),
        Opcode::ListPins => (size_of::<ListPinsRequest>(), Answer::Any(size_of::<HeldPinsRecord>())),
        Opcode::ReleasePins => (size_of::<ReleasePinsRecord>(), Answer::Statuses),
        _ => return None,
    })
}

fn body(body: &Body, records: usize, expected: Answer) -> Vec<u8> {
    match body {
        Body::Any(bytes) => bytes.clone(),
        Body::Records { count, bytes } => {
            let size = match expected {
                Answer::Nothing => 8,
                Answer::One(size) | Answer::Any(size) | Answer::UpTo(size) => size,
                Answer::Statuses | Answer::Locations => size_of::<LocationRecord>(),
            };
            bytes.iter().copied().cycle().take(size * usize::from(*count)).collect()
        }
        Body::Statuses { more, status } => {
            let mut body = vec![*status; records.saturating_add_signed(isize::from(*more))];
            body.resize(body.len().next_multiple_of(8), maru_proto::STATUS_PADDING);
            body
        }
    }
}
