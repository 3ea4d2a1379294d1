//! A server that can't be followed onto its Unix socket is served by on TCP, and no secret is told to anybody else.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{answer, found, greet, request};
use maru_client::{Address, Config, MaruHandler};
use maru_proto::{DigestKey, FrameStatus, KeyDigest, Opcode, SocketRecord};

/// The instance of the session.
const INSTANCE: u32 = 7;

/// What the kernel of this host shows, in the answer of a server whose digest key is all zero.
fn this_host() -> KeyDigest {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    DigestKey::from([0; 16]).digest(boot_id.trim_end().as_bytes())
}

/// Connects to a server that says this when it is asked for its socket. The session is on TCP, and goes on there.
fn stays_on_tcp(status: FrameStatus, told: Vec<SocketRecord>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        greet(&mut stream, INSTANCE);
        let mut input = Vec::new();
        let asked = request(&mut stream, &mut input);
        assert_eq!(asked.opcode, Opcode::GetSocket as u8);
        answer(&mut stream, &asked, status, &told);
        let exists = request(&mut stream, &mut input);
        stream.write_all(&found(&exists)).unwrap();
        stream
    });
    let config = Config::new().address(Address::Tcp(address.clone()));
    let handler = MaruHandler::connect(config).unwrap();
    assert_eq!(handler.server_address(), Address::Tcp(address));
    assert!(handler.exists("chunk").unwrap());
    drop(server.join().unwrap());
}

fn socket_at(path: &Path, host: KeyDigest) -> SocketRecord {
    SocketRecord::new(path.as_os_str().as_encoded_bytes(), host).unwrap()
}

#[test]
fn of_a_server_that_does_not_know_the_operation() {
    stays_on_tcp(FrameStatus::UnsupportedOpcode, Vec::new());
}

#[test]
fn of_a_server_without_a_socket_that_it_could_tell_of() {
    stays_on_tcp(FrameStatus::Ok, Vec::new());
    stays_on_tcp(FrameStatus::Ok, vec![socket_at(Path::new(""), this_host())]);
    stays_on_tcp(FrameStatus::Ok, vec![socket_at(Path::new("relative.sock"), this_host())]);
    stays_on_tcp(FrameStatus::Ok, vec![socket_at(Path::new("/nowhere/maru.sock"), this_host())]);
}

/// Here the path may be anybody's.
#[test]
fn of_a_server_on_another_host_whose_path_is_not_even_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.sock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    stays_on_tcp(FrameStatus::Ok, vec![socket_at(&path, KeyDigest::from_bytes([1; 16]))]);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn of_a_server_on_whose_path_somebody_lets_everybody_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || greet(&mut listener.accept().unwrap().0, INSTANCE + 1));
    stays_on_tcp(FrameStatus::Ok, vec![socket_at(&path, this_host())]);
    other.join().unwrap();
}
