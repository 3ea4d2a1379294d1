//! What a connection may say to the server, and what becomes of it when it says something else.

use std::io::Write;

use crate::common::Peer;
use maru_proto::{
    Flags, FrameStatus, HeartbeatRecord, KeyDigest, LatencyRecord, LatencyRequest, LocationRecord, Opcode,
    RecordStatus, RegisterRecord, ReportRecord, RequestAllocRequest, SessionToken, SocketRecord, StatKind,
    VersionRange, statuses,
};
use maru_tests::{PATIENCE, ServerProcess};
use zerocopy::{FromBytes, FromZeros};

fn start(options: &[&str]) -> ServerProcess {
    ServerProcess::start(&[&["--driver", crate::DRIVER], options].concat())
}

const NOTHING: &[KeyDigest] = &[];

fn digest(n: u8) -> KeyDigest {
    KeyDigest::from_bytes([n; 16])
}

fn record(n: u8, region: u32, page: u32, length: u32) -> RegisterRecord {
    RegisterRecord {
        digest: digest(n),
        region_id: region.into(),
        length: length.into(),
        page_index: page.into(),
        checksum: 0.into(),
    }
}

#[test]
fn frames_sent_together_are_answered_in_order() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let burst = (100..600).flat_map(|id| Peer::frame(Opcode::ExistsKv, Flags::NONE, id, &[digest(1)]));
    peer.send(&burst.collect::<Vec<_>>());
    for id in 100..600 {
        assert_eq!(peer.response().id, id);
    }
}

/// Batches are served in parts, so that others have their turn in between.
#[test]
fn a_large_batch_is_answered_as_a_whole() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let region = peer.region(700).region_id.get();
    let key = |n: u64| KeyDigest::from_bytes((u128::from(n) * 0x9E37_79B9_7F4A_7C15_F39C).to_le_bytes());
    let records = (0..700u32).map(|n| RegisterRecord {
        digest: key(n.into()),
        region_id: region.into(),
        length: 4096.into(),
        page_index: n.into(),
        checksum: (n % 2).into(),
    });
    let records = records.collect::<Vec<_>>();
    let all = |body: &[u8], count| statuses(body, count).unwrap().collect::<Vec<_>>();
    let registered = peer.call(Opcode::BatchRegisterKv, Flags::NONE, &records);
    assert_eq!(all(&registered.body, 700), [RecordStatus::Ok; 700]);
    let again = peer.call(Opcode::BatchRegisterKv, Flags::NONE, &records);
    assert_eq!(all(&again.body, 700), [RecordStatus::Exists; 700]);

    // The 600th is missing.
    let keys = (0..800).map(|n| key(if n == 600 { 1000 } else { n })).collect::<Vec<_>>();
    let acquired = peer.call(Opcode::BatchLookupKv, Flags::PIN | Flags::PREFIX_STOP, &keys);
    let locations = <[LocationRecord]>::ref_from_bytes(&acquired.body).unwrap();
    for (n, location) in (0..).zip(locations) {
        let expected = match n {
            0..600 => RecordStatus::Ok,
            600 => RecordStatus::NotFound,
            _ => RecordStatus::Skipped,
        };
        assert_eq!(location.status, expected as u8, "{n}");
        let found = (location.offset.get(), location.checksum.get());
        assert_eq!(found, if n < 600 { (u64::from(n) * 4096, n % 2) } else { (0, 0) });
    }
    assert_eq!(peer.stat(StatKind::Pins), 600);
    let exist = peer.call(Opcode::BatchExistsKv, Flags::PREFIX_STOP, &keys);
    let exist = all(&exist.body, 800);
    assert_eq!(
        (exist[599], exist[600], exist[601]),
        (RecordStatus::Ok, RecordStatus::NotFound, RecordStatus::Skipped)
    );

    // Answers that are larger than all that a connection may have waiting, one behind the other.
    let many = (0..16_384).map(|n| key(n % 500)).collect::<Vec<_>>();
    let frames = [7, 8, 9].map(|id| Peer::frame(Opcode::BatchLookupKv, Flags::NONE, id, &many)).concat();
    let mut writer = peer.unix().try_clone().unwrap();
    let sent = std::thread::spawn(move || writer.write_all(&frames).unwrap());
    for id in [7, 8, 9] {
        let answer = peer.response();
        let locations = <[LocationRecord]>::ref_from_bytes(&answer.body).unwrap();
        assert_eq!((answer.id, locations.len()), (id, 16_384));
        assert!(locations.iter().zip(0..).all(|(location, n)| location.offset.get() == n % 500 * 4096));
    }
    sent.join().unwrap();

    // Nobody waits for an answer, and what follows is served behind it.
    peer.send(&Peer::frame(Opcode::BatchUnpinKv, Flags::PIN | Flags::NO_REPLY, 7, &keys[..500]));
    let deleted = peer.call(Opcode::BatchDeleteKv, Flags::NONE, &keys);
    let deleted = all(&deleted.body, 800);
    assert!(deleted[..500].iter().all(|status| *status == RecordStatus::Ok));
    assert!(deleted[500..600].iter().all(|status| *status == RecordStatus::Pinned));
    assert_eq!(deleted[600], RecordStatus::NotFound);
}

#[test]
fn a_frame_may_arrive_byte_by_byte() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    for byte in Peer::frame(Opcode::Heartbeat, Flags::NONE, 5, NOTHING) {
        peer.send(&[byte]);
    }
    let response = peer.response();
    assert_eq!((response.status, response.id), (FrameStatus::Ok, 5));
    assert_eq!(HeartbeatRecord::read_from_bytes(&response.body).unwrap().epoch.get(), 1);
}

#[test]
fn random_bytes_get_a_status_and_touch_nobody_else() {
    let server = start(&[]);
    let (mut healthy, _) = Peer::greeted(&server, "healthy");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 4096], &[0; 17], b"MX"] {
        let mut peer = Peer::connect(&server);
        peer.send(garbage);
        assert_eq!(peer.response().status, FrameStatus::Malformed);
        assert!(peer.next().is_none(), "the connection is closed");
        assert_eq!(healthy.call(Opcode::ExistsKv, Flags::NONE, &[digest(1)]).status, FrameStatus::Ok);
    }
}

#[test]
fn a_connection_begins_with_hello_once() {
    let server = start(&[]);
    let mut peer = Peer::connect(&server);
    assert_eq!(peer.call(Opcode::ExistsKv, Flags::NONE, &[digest(1)]).status, FrameStatus::HelloRequired);
    assert!(peer.next().is_none());

    let (mut peer, _) = Peer::greeted(&server, "twice");
    assert_eq!(peer.call(Opcode::Hello, Flags::NONE, NOTHING).status, FrameStatus::HelloRequired);
    assert!(peer.next().is_none());
}

#[test]
fn a_connection_that_says_nothing_is_closed_in_time() {
    let server = start(&["--hello-deadline", "100ms"]);
    let (mut greeted, _) = Peer::greeted(&server, "greeted");
    let mut silent = Peer::connect(&server);
    assert!(silent.next().is_none());
    assert_eq!(greeted.call(Opcode::Heartbeat, Flags::NONE, NOTHING).status, FrameStatus::Ok);
}

#[test]
fn a_future_version_is_told_what_is_spoken() {
    let server = start(&[]);
    let mut peer = Peer::connect(&server);
    let mut frame = Peer::frame(Opcode::Hello, Flags::NONE, 9, NOTHING);
    frame[2] = 2;
    peer.send(&frame);
    let response = peer.response();
    assert_eq!((response.status, response.id), (FrameStatus::UnsupportedVersion, 9));
    assert_eq!(VersionRange::read_from_bytes(&response.body).unwrap(), VersionRange::SPOKEN);
    assert!(peer.next().is_none());
}

#[test]
fn an_unknown_operation_is_refused_and_the_connection_goes_on() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let mut frame = Peer::frame(Opcode::Heartbeat, Flags::NONE, 3, NOTHING);
    frame[3] = 0x77;
    peer.send(&frame);
    let response = peer.response();
    assert_eq!((response.status, response.id), (FrameStatus::UnsupportedOpcode, 3));
    assert_eq!(peer.call(Opcode::Heartbeat, Flags::NONE, NOTHING).status, FrameStatus::Ok);
}

#[test]
fn bodies_beyond_the_limit_are_refused_by_their_header() {
    let server = start(&["--max-body", "1KiB"]);
    let (mut peer, hello) = Peer::greeted(&server, "a");
    assert_eq!(hello.max_body.get(), 1024);
    assert_eq!(peer.call(Opcode::BatchExistsKv, Flags::NONE, &[digest(1); 64]).status, FrameStatus::Ok);
    let mut header = Peer::frame(Opcode::BatchExistsKv, Flags::NONE, 8, NOTHING);
    header[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    peer.send(&header);
    let response = peer.response();
    assert_eq!((response.status, response.id), (FrameStatus::TooLarge, 8));
    assert!(peer.next().is_none());
}

#[test]
fn a_body_of_another_record_type_is_malformed() {
    let server = start(&[]);
    for opcode in [Opcode::ExistsKv, Opcode::BatchRegisterKv, Opcode::RequestAlloc, Opcode::GetStats] {
        let (mut peer, _) = Peer::greeted(&server, "a");
        assert_eq!(peer.call(opcode, Flags::NONE, &[7u64]).status, FrameStatus::Malformed, "{opcode}");
        assert!(peer.next().is_none());
    }
    let (mut peer, _) = Peer::greeted(&server, "a");
    let answer = peer.call(Opcode::ExistsKv, Flags::RESPONSE, &[digest(1)]);
    assert_eq!(answer.status, FrameStatus::Malformed, "a response sent as a request");
}

#[test]
fn an_unpin_without_reply_is_served_silently() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let region = peer.region(4);
    peer.call(Opcode::RegisterKv, Flags::NONE, &[record(1, region.region_id.get(), 0, 100)]);
    peer.call(Opcode::PinKv, Flags::NONE, &[digest(1)]);
    assert_eq!(peer.stat(StatKind::Pins), 1);
    peer.send(&Peer::frame(Opcode::UnpinKv, Flags::NO_REPLY, 0, &[digest(1)]));
    assert_eq!(peer.stat(StatKind::Pins), 0);
}

/// Named after what the original accepted.
#[test]
fn a_register_outside_the_callers_regions_is_refused_record_by_record() {
    let server = start(&[]);
    let (mut owner, _) = Peer::greeted(&server, "owner");
    let (mut other, _) = Peer::greeted(&server, "other");
    let (own, foreign) = (owner.region(4).region_id.get(), other.region(4).region_id.get());
    let batch = [
        record(1, own, 0, 4096),
        record(2, 999, 0, 10),
        record(3, foreign, 0, 10),
        record(4, own, 4, 10),
        record(5, own, u32::MAX, 10),
        record(6, own, 1, 4097),
        record(7, own, 1, 0),
        record(8, own, 1, u32::MAX),
        record(1, own, 1, 10),
        record(9, own, 0, 10),
        record(10, own, 1, 10),
    ];
    let response = owner.call(Opcode::BatchRegisterKv, Flags::NONE, &batch);
    use maru_proto::RecordStatus::*;
    let expected = [
        Ok,
        RegionNotFound,
        NotOwner,
        OutOfBounds,
        OutOfBounds,
        OutOfBounds,
        OutOfBounds,
        OutOfBounds,
        Exists,
        PageInUse,
        Ok,
    ];
    assert_eq!(statuses(&response.body, batch.len()).unwrap().collect::<Vec<_>>(), expected);
    let found = owner.call(Opcode::BatchExistsKv, Flags::NONE, &(1..=10).map(digest).collect::<Vec<_>>());
    let found = statuses(&found.body, 10).unwrap().map(|status| status == Ok).collect::<Vec<_>>();
    assert_eq!(found, [true, false, false, false, false, false, false, false, false, true]);
}

/// The original freed a victim's memory for anybody who gave the victim's name.
#[test]
fn a_region_is_returned_by_its_owners_session_only() {
    let server = start(&[]);
    let (mut owner, _) = Peer::greeted(&server, "same name");
    let (mut thief, _) = Peer::greeted(&server, "same name");
    let region = owner.region(4).region_id;
    let request = maru_proto::ReturnAllocRequest { region_id: region, reserved: 0.into() };
    assert_eq!(thief.call(Opcode::ReturnAlloc, Flags::NONE, &[request]).status, FrameStatus::Unauthorized);
    assert_eq!(owner.call(Opcode::ReturnAlloc, Flags::NONE, &[request]).status, FrameStatus::Ok);
    assert_eq!(owner.call(Opcode::ReturnAlloc, Flags::NONE, &[request]).status, FrameStatus::RegionNotFound);
}

#[test]
fn a_session_is_joined_by_its_token_only() {
    let server = start(&[]);
    let (mut first, hello) = Peer::greeted(&server, "a");
    let region = first.region(4).region_id;
    let mut second = Peer::connect(&server);
    let joined = second.hello("a", hello.session);
    assert_eq!((joined.resumed, joined.instance), (1, hello.instance));
    let request = maru_proto::ReturnAllocRequest { region_id: region, reserved: 0.into() };
    assert_eq!(second.call(Opcode::ReturnAlloc, Flags::NONE, &[request]).status, FrameStatus::Ok);

    let mut stranger = Peer::connect(&server);
    let id = maru_proto::InstanceId::new("a").unwrap();
    let guess = maru_proto::HelloRequest::new(id, maru_proto::ConnectionKind::Data, SessionToken([3; 16]));
    assert_eq!(stranger.call(Opcode::Hello, Flags::NONE, &[guess]).status, FrameStatus::Unauthorized);
    assert!(stranger.next().is_none());
}

#[test]
fn shutdown_is_for_where_the_operator_allowed_it() {
    let server = start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    assert_eq!(peer.call(Opcode::Shutdown, Flags::NONE, NOTHING).status, FrameStatus::Unauthorized);
    assert_eq!(peer.call(Opcode::Heartbeat, Flags::NONE, NOTHING).status, FrameStatus::Ok);

    let mut server = start(&["--allow-shutdown"]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    assert_eq!(peer.call(Opcode::Shutdown, Flags::NONE, NOTHING).status, FrameStatus::Ok);
    assert!(server.wait_for_end());
}

#[test]
fn one_connection_too_many_is_told_so() {
    let server = start(&["--max-connections", "2"]);
    let (mut first, _) = Peer::greeted(&server, "a");
    let (second, _) = Peer::greeted(&server, "b");
    let mut third = Peer::connect(&server);
    assert_eq!(third.response().status, FrameStatus::Limit);
    assert!(third.next().is_none());
    assert_eq!(first.call(Opcode::Heartbeat, Flags::NONE, NOTHING).status, FrameStatus::Ok);
    drop(second);
    // The place is free once the server has seen the end of the second.
    let deadline = std::time::Instant::now() + PATIENCE;
    while first.stat(StatKind::Connections) > 1 {
        assert!(std::time::Instant::now() < deadline);
    }
    Peer::greeted(&server, "c");
}

/// Each has a status of its own, and costs nobody else anything.
#[test]
fn what_is_over_a_limit_is_told_so() {
    let server = start(&[
        "--max-instances",
        "2",
        "--max-connections-per-instance",
        "2",
        "--max-regions-per-instance",
        "1",
        "--max-entries",
        "600",
        "--max-pins-per-entry",
        "2",
    ]);
    let hello = |name: &str, session| {
        let mut peer = Peer::connect(&server);
        let id = maru_proto::InstanceId::new(name).unwrap();
        let request = maru_proto::HelloRequest::new(id, maru_proto::ConnectionKind::Data, session);
        let status = peer.call(Opcode::Hello, Flags::NONE, &[request]).status;
        (peer, status)
    };
    let (mut first, greeting) = Peer::greeted(&server, "first");
    let (mut second, _) = Peer::greeted(&server, "second");
    assert_eq!(hello("third", SessionToken::NONE).1, FrameStatus::Limit, "instances");
    let (_another, status) = hello("first", greeting.session);
    assert_eq!(status, FrameStatus::Ok);
    assert_eq!(hello("first", greeting.session).1, FrameStatus::Limit, "connections of an instance");

    let pages = |pages: u64| RequestAllocRequest {
        size: (pages * 4096).into(),
        page_size: 4096.into(),
        pool_id: RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let region = first.region(512).region_id.get();
    let more = first.call(Opcode::RequestAlloc, Flags::NONE, &[pages(1)]);
    assert_eq!(more.status, FrameStatus::Limit, "regions of an instance");
    let too_many = second.call(Opcode::RequestAlloc, Flags::NONE, &[pages(100)]);
    assert_eq!(too_many.status, FrameStatus::Limit, "pages, and so entries");
    assert_eq!(second.call(Opcode::RequestAlloc, Flags::NONE, &[pages(88)]).status, FrameStatus::Ok);

    first.call(Opcode::RegisterKv, Flags::NONE, &[record(1, region, 0, 4096)]);
    let mut pin = || {
        let pinned = second.call(Opcode::PinKv, Flags::NONE, &[digest(1)]);
        <[LocationRecord]>::ref_from_bytes(&pinned.body).unwrap()[0].status
    };
    assert_eq!(
        [pin(), pin(), pin()],
        [RecordStatus::Ok, RecordStatus::Ok, RecordStatus::PinLimit].map(|s| s as u8)
    );
    assert_eq!(first.stat(StatKind::Pins), 2);
}

#[test]
fn a_peer_that_does_not_read_holds_up_nobody() {
    let server = start(&[]);
    let (deaf, _) = Peer::greeted(&server, "deaf");
    let (mut healthy, _) = Peer::greeted(&server, "healthy");
    let frame = Peer::frame(Opcode::BatchLookupKv, Flags::NONE, 1, &[digest(1); 1024]);
    deaf.unix().set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    // Asks until the server stops reading, since its own responses are not taken.
    let mut stream = deaf.unix();
    let mut sent = 0usize;
    while let Ok(written) = stream.write(&frame) {
        sent += written;
        assert!(sent < 64 << 20, "the server reads without end from a peer that takes no response");
    }
    assert_eq!(healthy.call(Opcode::ExistsKv, Flags::NONE, &[digest(1)]).status, FrameStatus::Ok);
}

#[test]
fn tcp_needs_the_token_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "correct horse battery\n").unwrap();
    let server = start(&["--listen", "127.0.0.1:0", "--auth-token-file", token.to_str().unwrap()]);
    let address = server.tcp_address();
    let id = maru_proto::InstanceId::new("remote").unwrap();
    let hello = |auth: &[u8]| {
        let mut hello =
            maru_proto::HelloRequest::new(id, maru_proto::ConnectionKind::Data, SessionToken::NONE);
        hello.auth = maru_proto::AuthToken::new(auth).unwrap();
        let mut peer = Peer::tcp(&address);
        peer.call(Opcode::Hello, Flags::NONE, &[hello]).status
    };
    assert_eq!(hello(b""), FrameStatus::Unauthorized);
    assert_eq!(hello(b"correct horse batterx"), FrameStatus::Unauthorized);
    assert_eq!(hello(b"correct horse battery"), FrameStatus::Ok);
}

#[test]
fn a_client_on_tcp_is_told_where_the_socket_lies_and_on_which_host() {
    let server = start(&["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::tcp(&server.tcp_address());
    let greeting = peer.hello("a", SessionToken::NONE);
    let told = peer.call(Opcode::GetSocket, Flags::NONE, NOTHING);
    let socket = SocketRecord::read_from_bytes(&told.body).unwrap();
    assert_eq!(socket.path(), Some(server.socket().as_os_str().as_encoded_bytes()));
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(socket.host, greeting.digest_key.digest(boot_id.trim_end().as_bytes()));
    // Whoever is on the socket may ask as well.
    let (mut on_socket, _) = Peer::greeted(&server, "b");
    assert_eq!(on_socket.call(Opcode::GetSocket, Flags::NONE, NOTHING).body, told.body);
}

#[test]
fn nobody_is_told_where_the_socket_lies_before_hello() {
    let server = start(&["--listen", "127.0.0.1:0"]);
    let told = Peer::tcp(&server.tcp_address()).call(Opcode::GetSocket, Flags::NONE, NOTHING);
    assert_eq!((told.status, told.body.len()), (FrameStatus::HelloRequired, 0));
}

/// All buckets, asked for as often as it takes: opcode, bound, frames.
fn latencies(peer: &mut Peer) -> Vec<(u16, u64, u64)> {
    let mut all: Vec<(u16, u64, u64)> = Vec::new();
    loop {
        let (opcode, upper_ns) = all.last().map_or((0, 0), |last| (last.0, last.1));
        let request = LatencyRequest { opcode: opcode.into(), reserved: [0; 6], upper_ns: upper_ns.into() };
        let answer = peer.call(Opcode::GetLatencies, Flags::NONE, &[request]);
        assert_eq!(answer.status, FrameStatus::Ok);
        let buckets = <[LatencyRecord]>::ref_from_bytes(&answer.body).unwrap();
        if buckets.is_empty() {
            return all;
        }
        all.extend(buckets.iter().map(|it| (it.opcode.get(), it.upper_ns.get(), it.count.get())));
    }
}

fn frames_of(latencies: &[(u16, u64, u64)], opcode: Opcode) -> u64 {
    latencies.iter().filter(|it| it.0 == u16::from(opcode as u8)).map(|it| it.2).sum()
}

#[test]
fn every_frame_is_in_the_latencies_of_its_operation_once() {
    let server = start(&[]);
    let (mut peer, greeting) = Peer::greeted(&server, "a");
    let digests = (0..16_000_u32).map(|n| greeting.digest_key.digest(&n.to_le_bytes())).collect::<Vec<_>>();
    // Many of one operation that come together, one in many parts, and some of no operation.
    let together = (0..500).flat_map(|id| Peer::frame(Opcode::ExistsKv, Flags::NONE, id, &digests[..1]));
    peer.send(&together.collect::<Vec<_>>());
    for _ in 0..500 {
        assert_eq!(peer.response().opcode, Some(Opcode::ExistsKv));
    }
    for _ in 0..3 {
        peer.call(Opcode::BatchExistsKv, Flags::NONE, &digests);
    }
    peer.call(Opcode::Heartbeat, Flags::NONE, NOTHING);
    let seen = latencies(&mut peer);
    let frames = [Opcode::Hello, Opcode::ExistsKv, Opcode::BatchExistsKv, Opcode::Heartbeat, Opcode::PinKv];
    assert_eq!(frames.map(|opcode| frames_of(&seen, opcode)), [1, 500, 3, 1, 0]);
    assert!(seen.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)), "{seen:?}");
    // Sixteen thousand look-ups in microseconds would be those of one part.
    let batch = seen.iter().find(|it| it.0 == u16::from(Opcode::BatchExistsKv as u8)).unwrap();
    assert!(batch.1 > 50_000, "{batch:?}");
    // To ask is an operation, too.
    assert!(frames_of(&latencies(&mut peer), Opcode::GetLatencies) >= 2);
}

#[test]
fn latencies_come_in_answers_of_the_size_that_was_agreed_on() {
    let server = start(&["--max-body", "1KiB"]);
    let (mut peer, greeting) = Peer::greeted(&server, "a");
    let digests = [greeting.digest_key.digest(b"chunk"); 60];
    for round in 0..200 {
        for opcode in
            [Opcode::BatchExistsKv, Opcode::BatchLookupKv, Opcode::BatchPinKv, Opcode::BatchDeleteKv]
        {
            peer.call(opcode, Flags::NONE, &digests[..1 + round % 60]);
        }
    }
    let request = LatencyRequest { opcode: 0.into(), reserved: [0; 6], upper_ns: 0.into() };
    let first = peer.call(Opcode::GetLatencies, Flags::NONE, &[request]);
    assert!(first.body.len() <= 2048, "{}", first.body.len());
    let seen = latencies(&mut peer);
    for opcode in [Opcode::BatchExistsKv, Opcode::BatchLookupKv, Opcode::BatchPinKv, Opcode::BatchDeleteKv] {
        assert_eq!(frames_of(&seen, opcode), 200, "{opcode}");
    }
    assert_eq!(peer.call(Opcode::GetLatencies, Flags::NONE, NOTHING).status, FrameStatus::Malformed);
}

#[test]
fn what_is_refused_and_what_becomes_of_records_is_counted_by_operation() {
    let server = start(&[]);
    let (mut peer, greeting) = Peer::greeted(&server, "a");
    let digests = [greeting.digest_key.digest(b"one"), greeting.digest_key.digest(b"two")];
    let by = |opcode: Opcode, status: u16| u16::from(opcode as u8) | status << 8;
    peer.call(Opcode::BatchExistsKv, Flags::NONE, &digests);
    peer.call(Opcode::BatchExistsKv, Flags::PREFIX_STOP, &digests);
    peer.call(Opcode::BatchPinKv, Flags::NONE, &digests);
    peer.call(Opcode::UnpinKv, Flags::NONE, &digests[..1]);
    assert_eq!(peer.call(Opcode::Shutdown, Flags::NONE, NOTHING).status, FrameStatus::Unauthorized);
    let no_report = ReportRecord::new_zeroed();
    assert_eq!(
        peer.call(Opcode::ReportStats, Flags::NONE, &[no_report]).status,
        FrameStatus::InvalidArgument
    );
    for (kind, detail, expected) in [
        (StatKind::RecordsByStatus, by(Opcode::BatchExistsKv, RecordStatus::NotFound as u16), 3),
        (StatKind::RecordsByStatus, by(Opcode::BatchExistsKv, RecordStatus::Skipped as u16), 1),
        (StatKind::RecordsByStatus, by(Opcode::BatchPinKv, RecordStatus::NotFound as u16), 1),
        (StatKind::RecordsByStatus, by(Opcode::BatchPinKv, RecordStatus::Skipped as u16), 1),
        (StatKind::RecordsByStatus, by(Opcode::UnpinKv, RecordStatus::NotFound as u16), 1),
        (StatKind::Records, Opcode::BatchExistsKv as u16, 4),
        (StatKind::OperationsRefused, by(Opcode::Shutdown, FrameStatus::Unauthorized as u16), 1),
        (StatKind::OperationsRefused, by(Opcode::ReportStats, FrameStatus::InvalidArgument as u16), 1),
        (StatKind::FramesRefused, FrameStatus::Unauthorized as u16, 1),
    ] {
        assert_eq!(peer.stat_of(kind, detail), expected, "{} {detail:#x}", kind.name());
    }
}
