//! What whoever operates the server asks it, and what only they may.

use maru_proto::{
    ClientOperation, ConnectionKind, EntryRecord, EntryRequest, FEATURE_NO_GRACE, Flags, FrameStatus,
    HeldPinsRecord, HelloRequest, HelloResponse, InstanceId, KeyDigest, LatencyBucket, ListPinsRequest,
    Opcode, RecordStatus, RegisterRecord, ReleasePinsRecord, ReportRecord, ReportsRequest, ServerRecord,
    SessionToken, StatKind, statuses,
};
use maru_tests::{ServerProcess, wait_until};
use zerocopy::{FromBytes, FromZeros};

use crate::common::Peer;

fn start(options: &[&str]) -> ServerProcess {
    ServerProcess::start(&[&["--driver", crate::DRIVER], options].concat())
}

fn digest(n: u8) -> KeyDigest {
    KeyDigest::from_bytes([n; 16])
}

/// Stores these chunks, 100 bytes each, in pages of one region.
fn store(peer: &mut Peer, chunks: std::ops::RangeInclusive<u8>) -> u32 {
    let region = peer.region(chunks.len() as u64).region_id;
    let record = |(n, page): (u8, u32)| RegisterRecord {
        digest: digest(n),
        region_id: region,
        length: 100.into(),
        page_index: page.into(),
        checksum: 0xC5.into(),
    };
    let records = chunks.zip(0..).map(record).collect::<Vec<_>>();
    let stored = peer.call(Opcode::BatchRegisterKv, Flags::NONE, &records);
    assert!(statuses(&stored.body, records.len()).unwrap().all(|status| status == RecordStatus::Ok));
    region.get()
}

fn pin(peer: &mut Peer, n: u8) {
    assert_eq!(peer.call(Opcode::PinKv, Flags::NONE, &[digest(n)]).body[0], RecordStatus::Ok as u8);
}

fn entry(peer: &mut Peer, n: u8) -> Option<EntryRecord> {
    let answer = peer.call(Opcode::GetEntry, Flags::NONE, &[EntryRequest { digest: digest(n) }]);
    assert_eq!(answer.status, FrameStatus::Ok);
    <[EntryRecord]>::ref_from_bytes(&answer.body).unwrap().first().copied()
}

/// All pins.
fn pins(peer: &mut Peer) -> Vec<HeldPinsRecord> {
    let mut all = Vec::new();
    let mut request = ListPinsRequest::new_zeroed();
    loop {
        let answer = peer.call(Opcode::ListPins, Flags::NONE, &[request]);
        assert_eq!(answer.status, FrameStatus::Ok);
        let records = <[HeldPinsRecord]>::ref_from_bytes(&answer.body).unwrap();
        let Some(last) = records.last() else { return all };
        request.after = last.cursor;
        all.extend(records.iter().filter(|record| record.instance.get() != 0));
    }
}

fn report(operation: ClientOperation, upper_ns: u64, calls: u64) -> ReportRecord {
    ReportRecord {
        instance: 0.into(),
        operation: (operation as u16).into(),
        reserved: 0.into(),
        upper_ns: upper_ns.into(),
        calls: calls.into(),
        total_ns: calls.into(),
    }
}

/// All that is reported: instance, operation, bound, calls.
fn reports(peer: &mut Peer) -> Vec<(u32, u16, u64, u64)> {
    let mut all = Vec::new();
    let mut request = ReportsRequest::new_zeroed();
    loop {
        let answer = peer.call(Opcode::ListReports, Flags::NONE, &[request]);
        assert_eq!(answer.status, FrameStatus::Ok);
        let records = <[ReportRecord]>::ref_from_bytes(&answer.body).unwrap();
        let Some(last) = records.last() else { return all };
        (request.instance, request.operation, request.upper_ns) =
            (last.instance, last.operation, last.upper_ns);
        all.extend(records.iter().map(|record| {
            (record.instance.get(), record.operation.get(), record.upper_ns.get(), record.calls.get())
        }));
    }
}

fn release(pins: &HeldPinsRecord) -> ReleasePinsRecord {
    ReleasePinsRecord {
        digest: pins.digest,
        generation: pins.generation,
        instance: pins.instance,
        held_s: pins.held_s,
    }
}

#[test]
fn the_server_says_what_it_is() {
    let server =
        start(&["--grace", "7s", "--pin-ttl", "90s", "--max-instances", "12", "--listen", "127.0.0.1:0"]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let told = peer.call::<KeyDigest>(Opcode::GetServer, Flags::NONE, &[]);
    let told = ServerRecord::read_from_bytes(&told.body).unwrap();
    assert_eq!(told.release(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!((told.grace_ms.get(), told.pin_ttl_ms.get(), told.max_instances.get()), (7000, 90_000, 12));
    assert_eq!(told.is_operator.get(), 1, "it is of the server's own user");
    assert!(std::path::Path::new(&format!("/proc/{}", told.process.get())).exists());

    let mut by_tcp = Peer::tcp(&server.tcp_address());
    by_tcp.hello("b", SessionToken::NONE);
    let told = by_tcp.call::<KeyDigest>(Opcode::GetServer, Flags::NONE, &[]);
    assert_eq!(ServerRecord::read_from_bytes(&told.body).unwrap().is_operator.get(), 0);
}

#[test]
fn asking_where_an_entry_is_leaves_no_trace() {
    let server = start(&[]);
    let (mut owner, hello) = Peer::greeted(&server, "owner");
    let region = store(&mut owner, 1..=3);
    pin(&mut owner, 3);
    let hits = owner.stat(StatKind::Hits);
    let found = entry(&mut owner, 3).unwrap();
    assert_eq!((found.region_id.get(), found.page_index.get(), found.offset.get()), (region, 2, 8192));
    assert_eq!((found.length.get(), found.owner, found.pins.get()), (100, hello.instance, 1));
    assert_eq!(found.checksum.get(), 0xC5);
    assert_eq!(entry(&mut owner, 9), None);
    assert_eq!((owner.stat(StatKind::Hits), owner.stat(StatKind::Misses)), (hits, 0));
}

#[test]
fn a_long_list_of_pins_comes_in_pieces() {
    // A body of 1 KiB has room for 32 records in its answer.
    let server = start(&["--max-body", "1KiB"]);
    let (mut owner, hello) = Peer::greeted(&server, "owner");
    let (mut guest, _) = Peer::greeted(&server, "guest");
    for first in [1, 21, 41, 61] {
        store(&mut owner, first..=first + 19);
        let digests = (first..first + 20).map(digest).collect::<Vec<_>>();
        owner.call(Opcode::BatchPinKv, Flags::NONE, &digests);
        guest.call(Opcode::BatchLookupKv, Flags::PIN, &digests);
    }
    let mut all = pins(&mut guest);
    all.sort_by_key(|pins| (pins.digest, pins.instance.get()));
    assert_eq!(all.len(), 160);
    for (pair, n) in all.chunks(2).zip(1..) {
        assert_eq!((pair[0].digest, pair[0].instance), (digest(n), hello.instance));
        assert_eq!((pair[0].named.get(), pair[0].guards.get()), (1, 0));
        assert_eq!((pair[1].named.get(), pair[1].guards.get(), pair[1].length.get()), (0, 1, 100));
    }
}

#[test]
fn the_operator_releases_pins_by_name_of_others_and_no_guards() {
    let server = start(&[]);
    let (mut owner, _) = Peer::greeted(&server, "owner");
    store(&mut owner, 1..=2);
    pin(&mut owner, 1);
    pin(&mut owner, 1);
    owner.call(Opcode::LookupKv, Flags::PIN, &[digest(2)]);

    let (mut operator, _) = Peer::greeted(&server, "operator");
    let seen = pins(&mut operator);
    let answer =
        operator.call(Opcode::ReleasePins, Flags::NONE, &seen.iter().map(release).collect::<Vec<_>>());
    let outcomes = statuses(&answer.body, 2).unwrap().collect::<Vec<_>>();
    assert_eq!(outcomes, [RecordStatus::Ok, RecordStatus::NotPinned]);
    assert_eq!(owner.stat(StatKind::Pins), 1, "the guard stays");
    // Its owner finds out by the answer that it gets to a pin that ran out.
    let unpinned = owner.call(Opcode::UnpinKv, Flags::NONE, &[digest(1)]);
    assert_eq!(unpinned.body[0], RecordStatus::NotPinned as u8);
}

#[test]
fn nobody_releases_pins_by_tcp() {
    let server = start(&["--listen", "127.0.0.1:0"]);
    let (mut owner, _) = Peer::greeted(&server, "owner");
    store(&mut owner, 1..=1);
    pin(&mut owner, 1);
    let mut guest = Peer::tcp(&server.tcp_address());
    guest.hello("guest", SessionToken::NONE);
    let seen = pins(&mut guest);
    assert_eq!(seen.len(), 1, "everybody may look");
    let answer = guest.call(Opcode::ReleasePins, Flags::NONE, &[release(&seen[0])]);
    assert_eq!(answer.status, FrameStatus::Unauthorized);
    assert_eq!(owner.stat(StatKind::Pins), 1);
}

#[test]
fn a_session_without_grace_ends_with_its_last_connection() {
    let server = start(&["--grace", "1h"]);
    let (mut other, _) = Peer::greeted(&server, "other");
    let mut looker = Peer::connect(&server);
    let id = InstanceId::new("looker").unwrap();
    let mut hello = HelloRequest::new(id, ConnectionKind::Data, SessionToken::NONE);
    // Features that nobody knows yet are passed over.
    hello.features = (FEATURE_NO_GRACE | 1 << 40).into();
    let granted = looker.call(Opcode::Hello, Flags::NONE, &[hello]);
    let granted = HelloResponse::read_from_bytes(&granted.body).unwrap();
    assert_eq!(granted.features.get(), FEATURE_NO_GRACE);
    assert_eq!(other.stat(StatKind::Instances), 2);
    drop(looker);
    wait_until("it is gone", || other.stat(StatKind::Instances) == 1);
}

#[test]
fn a_report_stands_for_the_session_that_sent_it_until_the_next_and_to_its_end() {
    let server = start(&["--grace", "200ms", "--listen", "127.0.0.1:0"]);
    let (mut first, one) = Peer::greeted(&server, "engine");
    let mut second = Peer::tcp(&server.tcp_address());
    let two = second.hello("engine", SessionToken::NONE);
    let (one, two) = (one.instance.get(), two.instance.get());
    let sent = first.call(Opcode::ReportStats, Flags::NONE, &[report(ClientOperation::Exists, 1024, 3)]);
    assert_eq!((sent.status, sent.body.len()), (FrameStatus::Ok, 0));
    second.call(Opcode::ReportStats, Flags::NONE, &[report(ClientOperation::Store, 16, 1)]);
    let more = [report(ClientOperation::Exists, 512, 1), report(ClientOperation::Exists, 1024, 5)];
    // Told twice, as after an answer that was lost.
    for _ in 0..2 {
        first.call(Opcode::ReportStats, Flags::NONE, &more);
    }
    let all = [(one, 5, 512, 1), (one, 5, 1024, 5), (two, 2, 16, 1)];
    assert_eq!(reports(&mut second), all);

    drop(first);
    wait_until("its grace period is over", || reports(&mut second) == all[2..]);
}

#[test]
fn who_reports_nonsense_is_refused_and_goes_on_and_nobody_else_notices() {
    let server = start(&[]);
    let (mut honest, number) = Peer::greeted(&server, "honest");
    let (mut liar, _) = Peer::greeted(&server, "liar");
    let good = report(ClientOperation::Pin, 1024, 3);
    honest.call(Opcode::ReportStats, Flags::NONE, &[good]);
    let told = [(number.instance.get(), ClientOperation::Pin as u16, 1024, 3)];
    let nonsense = [
        ReportRecord { instance: number.instance, ..good },
        ReportRecord { operation: 77.into(), ..good },
        ReportRecord { upper_ns: 1025.into(), ..good },
        ReportRecord { calls: 0.into(), ..good },
        ReportRecord { total_ns: u64::MAX.into(), ..good },
    ];
    for record in nonsense {
        let answer =
            liar.call(Opcode::ReportStats, Flags::NONE, &[report(ClientOperation::Alloc, 8, 1), record]);
        assert_eq!(answer.status, FrameStatus::InvalidArgument, "{record:?}");
    }
    // As many as a frame has room for: more than there are buckets, so some come twice.
    let too_many = vec![good; 8192];
    assert_eq!(liar.call(Opcode::ReportStats, Flags::NONE, &too_many).status, FrameStatus::InvalidArgument);
    assert_eq!(reports(&mut honest), told);
    assert_eq!(reports(&mut liar), told, "its connection goes on");
    // What is no record at all ends the connection, as everywhere.
    let torn = liar.call(Opcode::ReportStats, Flags::NONE, &[digest(1)]);
    assert_eq!(torn.status, FrameStatus::Malformed);
    assert!(liar.next().is_none());
    assert_eq!(reports(&mut honest), told);
}

#[test]
fn a_long_list_of_reports_comes_in_pieces() {
    let server = start(&["--max-body", "1KiB"]);
    let (mut peer, number) = Peer::greeted(&server, "a");
    let bounds = LatencyBucket::all().map(LatencyBucket::upper_ns).collect::<Vec<_>>();
    for operation in ClientOperation::ALL {
        for bounds in bounds.chunks(32) {
            let records = bounds.iter().map(|bound| report(*operation, *bound, 1)).collect::<Vec<_>>();
            let answer = peer.call(Opcode::ReportStats, Flags::NONE, &records);
            assert_eq!(answer.status, FrameStatus::Ok);
        }
    }
    let all = reports(&mut peer);
    let expected = ClientOperation::ALL.iter().flat_map(|operation| {
        bounds.iter().map(|bound| (number.instance.get(), *operation as u16, *bound, 1))
    });
    assert_eq!(all, expected.collect::<Vec<_>>());
}
