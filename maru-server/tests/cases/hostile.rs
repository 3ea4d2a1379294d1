//! One bad peer is that peer's problem: it is told, or closed, and nobody else notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use maru_proto::{
    ConnectionKind, Flags, FrameStatus, HelloRequest, InstanceId, KeyDigest, Opcode, SessionToken, StatKind,
};
use maru_tests::{PATIENCE, ServerProcess, wait_until};
use zerocopy::IntoBytes;

use crate::common::Peer;

fn start(options: &[&str]) -> ServerProcess {
    ServerProcess::start(&[&["--driver", crate::DRIVER], options].concat())
}

/// That a peer is served, and soon.
fn is_served(peer: &mut Peer) {
    let response = peer.call(Opcode::ExistsKv, Flags::NONE, &[KeyDigest::from_bytes([1; 16])]);
    assert_eq!(response.status, FrameStatus::Ok);
}

fn exists(id: u32) -> Vec<u8> {
    Peer::frame(Opcode::ExistsKv, Flags::NONE, id, &[KeyDigest::from_bytes([7; 16])])
}

/// Whether the server closes the connection; what it says before is taken.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn bytes_that_are_no_frame_are_answered_and_the_connection_is_closed() {
    let server = start(&[]);
    let (mut good, _) = Peer::greeted(&server, "good");
    let with = |place: usize, value: u8| {
        let mut frame = exists(9);
        frame[place] = value;
        frame
    };
    let huge = [&exists(9)[..12], &u32::MAX.to_le_bytes()].concat();
    let response = with(4, 1);
    for (what, bytes, status) in [
        ("a wrong magic", with(0, b'X'), FrameStatus::Malformed),
        ("a future version", with(2, 9), FrameStatus::UnsupportedVersion),
        ("4 GiB of body", huge, FrameStatus::TooLarge),
        ("a response", response, FrameStatus::Malformed),
        (
            "random bytes",
            (0..64u8).map(|n| n.wrapping_mul(37).wrapping_add(11)).collect(),
            FrameStatus::Malformed,
        ),
    ] {
        for greeted in [false, true] {
            let mut bad = if greeted { Peer::greeted(&server, "bad").0 } else { Peer::connect(&server) };
            bad.send(&bytes);
            let said = bad.next().unwrap_or_else(|| panic!("{what} is answered"));
            assert_eq!(said.status, status, "{what}");
            assert!(bad.next().is_none(), "{what} ends the connection");
        }
        is_served(&mut good);
    }
}

#[test]
fn a_peer_that_stops_in_the_middle_of_a_frame_is_closed() {
    let server = start(&["--stall-timeout", "200ms"]);
    let (mut good, _) = Peer::greeted(&server, "good");
    let mut header_only = Peer::greeted(&server, "header without body").0;
    header_only.send(&exists(3)[..16]);
    let mut half = Peer::greeted(&server, "half a header").0;
    half.send(&exists(3)[..5]);
    // One that goes on, byte by byte, is no better.
    let trickle = Peer::greeted(&server, "trickle").0;
    let body = vec![KeyDigest::from_bytes([0; 16]); 4096];
    let frame = Peer::frame(Opcode::BatchExistsKv, Flags::NONE, 1, &body);
    let began = Instant::now();
    let trickled = frame.iter().take_while(|byte| {
        std::thread::sleep(Duration::from_millis(5));
        trickle.unix().write_all(&[**byte]).is_ok() && began.elapsed() < PATIENCE
    });
    assert!(trickled.count() < frame.len());
    assert!(header_only.next().is_none() && half.next().is_none());
    assert!(began.elapsed() < PATIENCE);
    // One that says whole frames is never closed, however slowly.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        is_served(&mut good);
    }
}

#[test]
fn a_peer_that_does_not_take_its_answers_is_closed_and_takes_bounded_memory() {
    let server = start(&["--stall-timeout", "500ms", "--max-unanswered", "64KiB"]);
    let (mut good, _) = Peer::greeted(&server, "good");
    let before = server.resident_bytes();
    let bad = (0..20).map(|n| {
        let (bad, _) = Peer::greeted(&server, &format!("bad-{n}"));
        bad.unix().set_nonblocking(true).unwrap();
        // Small requests with large answers, as many as the server takes.
        let body = vec![KeyDigest::from_bytes([0; 16]); 1024];
        let frame = Peer::frame(Opcode::BatchLookupKv, Flags::NONE, 1, &body);
        for _ in 0..200 {
            if bad.unix().write(&frame).is_err() {
                break;
            }
        }
        bad.unix().set_nonblocking(false).unwrap();
        bad
    });
    let bad = bad.collect::<Vec<_>>();
    is_served(&mut good);
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes for 20 peers");
    // To look whether it is closed takes the answers.
    std::thread::sleep(Duration::from_millis(1500));
    for peer in &bad {
        assert!(is_closed(&mut peer.unix().try_clone().unwrap()));
    }
    is_served(&mut good);
}

#[test]
fn a_connection_that_says_nothing_is_closed_where_the_operator_wants_that() {
    let server = start(&["--idle-timeout", "200ms"]);
    let mut silent = Peer::greeted(&server, "silent").0;
    assert!(silent.next().is_none());
    let server = start(&["--hello-deadline", "100ms"]);
    let mut silent = Peer::connect(&server);
    assert!(silent.next().is_none());
}

/// The original let nobody in once 33 connections were half open.
#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    let server = start(&["--max-connections", "256", "--hello-deadline", "1h"]);
    let (mut good, _) = Peer::greeted(&server, "good");
    let mut idle = Vec::new();
    for n in 0..10_000 {
        match UnixStream::connect(server.socket()) {
            Ok(stream) => idle.push(stream),
            Err(error) => panic!("connection {n}: {error}"),
        }
        // Descriptors of this process are not what is tested.
        if idle.len() == 400 {
            idle.drain(..200);
        }
        if n % 1000 == 0 {
            is_served(&mut good);
            let (mut newcomer, _) = Peer::greeted(&server, "newcomer");
            is_served(&mut newcomer);
        }
    }
    is_served(&mut good);
    drop(idle);
    wait_until("they are forgotten", || good.stat(StatKind::Connections) == 1);
}

#[test]
fn a_session_token_that_is_replayed_or_guessed_opens_nothing_more_than_it_should() {
    let server = start(&[]);
    let (mut victim, hello) = Peer::greeted(&server, "victim");
    let mut token = hello.session;
    token.0[3] ^= 1;
    let id = InstanceId::new("thief").unwrap();
    let mut thief = Peer::connect(&server);
    let guessed =
        thief.call(Opcode::Hello, Flags::NONE, &[HelloRequest::new(id, ConnectionKind::Data, token)]);
    assert_eq!(guessed.status, FrameStatus::Unauthorized);
    assert!(thief.next().is_none(), "one try a connection");
    // The right one twice on a connection is one time too many.
    let again = victim.call(
        Opcode::Hello,
        Flags::NONE,
        &[HelloRequest::new(id, ConnectionKind::Data, hello.session)],
    );
    assert_eq!(again.status, FrameStatus::HelloRequired);
    assert!(victim.next().is_none());
    // And it says nothing once the instance is gone.
    let server = start(&["--grace", "10ms"]);
    let (peer, hello) = Peer::greeted(&server, "gone");
    drop(peer);
    let (mut other, _) = Peer::greeted(&server, "other");
    wait_until("the instance has ended", || other.stat(StatKind::Instances) == 1);
    let mut late = Peer::connect(&server);
    let replayed =
        late.call(Opcode::Hello, Flags::NONE, &[HelloRequest::new(id, ConnectionKind::Data, hello.session)]);
    assert_eq!(replayed.status, FrameStatus::Unauthorized);
}

/// A process of another user, which takes root to start, that connects and reports what it is told.
fn as_user(user: u32, group: u32, server: &ServerProcess) -> String {
    let script = "import socket,sys\n\
                  s=socket.socket(socket.AF_UNIX)\n\
                  try: s.connect(sys.argv[1])\n\
                  except OSError as e: print('refused by the file'); sys.exit()\n\
                  s.sendall(bytes.fromhex(sys.argv[2]))\n\
                  b=s.recv(16)\n\
                  print('status', b[6] if len(b)==16 else 'none')\n";
    let id = InstanceId::new("stranger").unwrap();
    let hello = HelloRequest::new(id, ConnectionKind::Data, SessionToken::NONE);
    let frame = Peer::frame(Opcode::Hello, Flags::NONE, 1, &[hello]);
    let hex = frame.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let output = std::process::Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(server.socket())
        .arg(hex)
        .uid(user)
        .gid(group)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn another_users_process_is_let_in_only_where_the_operator_said_so() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: another user's process takes root, and python3, to start");
        return;
    }
    let open_up = |server: &ServerProcess| {
        std::fs::set_permissions(server.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    };
    let alone = start(&[]);
    open_up(&alone);
    assert_eq!(as_user(65534, 65534, &alone), "refused by the file");
    std::fs::set_permissions(alone.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let unauthorized = format!("status {}", FrameStatus::Unauthorized as u16);
    assert_eq!(as_user(65534, 65534, &alone), unauthorized);
    let (mut good, _) = Peer::greeted(&alone, "good");
    is_served(&mut good);

    for option in [["--allow-uid", "65534"], ["--allow-gid", "65533"]] {
        let shared = start(&option);
        open_up(&shared);
        assert_eq!(as_user(65534, 65533, &shared), "status 0", "{option:?}");
        assert_eq!(as_user(65532, 65532, &shared), unauthorized, "{option:?}");
    }
}
