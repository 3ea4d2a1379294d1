//! TLS on `--listen`: the same promises, who is believed, and what is said to those who are not.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use maru_client::{Address, Config, Error, MaruHandler, PinQuery, StatKind, Stored};
use maru_proto::{
    ConnectionKind, Flags, Head, HelloRequest, InstanceId, KeyDigest, Opcode, SessionToken, Step, decode,
    encode,
};
use maru_tests::{
    Authority, Certificate, ClientConfig, ClientProcess, Command, PAGE, PATIENCE, Reply, ServerProcess,
    config, connect, is_intact, stat, store, wait_until,
};
use pollster::block_on;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const HOST: &str = "127.0.0.1";

/// A server that presents a certificate.
fn start(certificate: &Certificate, options: &[&str]) -> ServerProcess {
    let of_tls = Authority::options(certificate);
    let of_tls = of_tls.iter().map(String::as_str).collect::<Vec<_>>();
    ServerProcess::start(&[&of_tls, options].concat())
}

fn address(server: &ServerProcess) -> Address {
    Address::Tls(server.tcp_address())
}

/// A handler that stays on TLS.
fn by_tls(server: &ServerProcess, authority: &Authority) -> Config {
    config(server).address(address(server)).tls_ca(authority.certificate()).stay_on_tcp(true)
}

/// What a user reads who can't connect.
fn refused(config: Config) -> String {
    MaruHandler::connect(config).unwrap_err().to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "{text:?} does not say {parts:?}");
}

/// A peer that shakes hands and then says whatever it is told to.
fn peer(
    server: &ServerProcess,
    authority: &Authority,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.certificate()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), HOST.try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(server.tcp_address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream
}

fn hello(name: &str) -> Vec<u8> {
    let name = InstanceId::new(name).unwrap();
    let request = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
    let mut frame = vec![0; 16 + size_of_val(&request)];
    encode(&mut frame, Head::request(Opcode::Hello, Flags::NONE, 1), &[request]).unwrap();
    frame
}

fn lookup_of_1024() -> Vec<u8> {
    let digests = vec![KeyDigest::from_bytes([7; 16]); 1024];
    let mut frame = vec![0; 16 + 1024 * 16];
    encode(&mut frame, Head::request(Opcode::BatchLookupKv, Flags::NONE, 2), &digests).unwrap();
    frame
}

#[test]
fn clients_share_chunks_over_tls() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let client = |name: &str| {
        ClientProcess::connect_with(ClientConfig {
            address: address(&server).to_string(),
            stay_on_tcp: true,
            tls_ca: Some(authority.certificate()),
            ..ClientConfig::new(&server.socket(), name)
        })
    };
    let keys = (0..600).map(|n| format!("chunk-{n}")).collect::<Vec<_>>();
    let (mut writer, mut reader) = (client("writer"), client("reader"));
    assert_eq!(writer.each(Command::ServerAddress), [address(&server).to_string()]);
    assert_eq!(writer.each(Command::BatchStore(keys.clone(), PAGE)), vec!["stored"; 600]);
    assert_eq!(reader.count(Command::Acquire(keys.clone())), 600);
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
    assert_eq!(reader.stats().pins, 600);
    assert_eq!(ClientProcess::connect(&server, "on the socket").count(Command::Read(keys)), 600);
}

#[test]
fn calls_that_block_and_calls_that_are_awaited_share_a_session_over_tls() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let handler = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    let keys = (0..200).map(|n| format!("chunk-{n}")).collect::<Vec<_>>();
    for key in &keys {
        assert_eq!(store(&handler, key).unwrap(), Stored::Stored);
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for key in &keys {
                    assert!(handler.exists(key).unwrap());
                    assert!(is_intact(key, &handler.retrieve(key).unwrap().unwrap()));
                    assert!(block_on(handler.exists_async(key)).unwrap());
                }
            });
        }
    });
    // More than the sockets between them hold, in both directions.
    let many = (0..100_000).map(|n| format!("missing-{n}")).collect::<Vec<_>>();
    assert!(handler.batch_exists(&many).unwrap().iter().all(|found| !found));
    assert!(block_on(handler.batch_exists_async(&many)).unwrap().iter().all(|found| !found));
    wait_until("nothing is pinned", || stat(&handler, StatKind::Pins) == 0);
}

#[test]
fn a_client_of_the_same_host_moves_onto_the_socket() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let handler = MaruHandler::connect(by_tls(&server, &authority).stay_on_tcp(false)).unwrap();
    assert_eq!(handler.server_address(), Address::Unix(server.socket()));
    store(&handler, "chunk").unwrap();
}

#[test]
fn the_token_is_asked_for_over_tls_as_well() {
    let authority = Authority::new();
    let token = authority.certificate().with_file_name("token");
    fs::write(&token, "correct horse battery\n").unwrap();
    let server = start(&authority.sign(HOST), &["--auth-token-file", token.to_str().unwrap()]);
    assert_says(&refused(by_tls(&server, &authority)), &["not authorized"]);
    MaruHandler::connect(by_tls(&server, &authority).auth_token("correct horse battery")).unwrap();
}

#[test]
fn a_server_that_is_not_believed_is_told_of_with_what_to_do() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let stranger = Authority::new();
    assert_says(
        &refused(by_tls(&server, &stranger)),
        &["tls://127.0.0.1:", "no authority that is believed", "tls_ca"],
    );
    let nothing = by_tls(&server, &authority).tls_ca("/nowhere/ca.pem");
    assert_says(&refused(nothing), &["/nowhere/ca.pem can't be used for TLS", "No such file"]);
    let no_certificate = by_tls(&server, &authority).tls_ca(server.pool().join("maru.journal"));
    assert_says(&refused(no_certificate), &["can't be used for TLS"]);

    let other_name = start(&authority.sign("node-7.example"), &[]);
    assert_says(
        &refused(by_tls(&other_name, &authority)),
        &["127.0.0.1", "only valid for", "node-7.example", "address"],
    );
    let expired = start(&authority.sign_expired(HOST), &[]);
    assert_says(&refused(by_tls(&expired, &authority)), &["certificate expired", "give it a new one"]);
}

#[test]
fn with_an_authority_for_clients_only_those_get_in_that_it_has_signed() {
    let authority = Authority::new();
    let ca = authority.certificate();
    let server = start(&authority.sign(HOST), &["--tls-client-ca", ca.to_str().unwrap()]);
    let with = |certificate: &Certificate| {
        by_tls(&server, &authority).tls_identity(&certificate.certificate, &certificate.key)
    };
    let good = authority.sign("engine-0");
    let handler = MaruHandler::connect(with(&good)).unwrap();
    assert_eq!(store(&handler, "chunk").unwrap(), Stored::Stored);

    assert_says(
        &refused(by_tls(&server, &authority)),
        &["asks for a certificate of this client", "tls_identity"],
    );
    assert_says(&refused(with(&Authority::new().sign("engine-0"))), &["does not believe", "--tls-client-ca"]);
    assert_says(&refused(with(&authority.sign_expired("engine-0"))), &["does not believe", "in time"]);
    let mismatched = Certificate { key: authority.sign("engine-1").key, ..good };
    assert_says(&refused(with(&mismatched)), &["it is not the key of the certificate in"]);
    server.wait_for_log("a peer did not shake hands");
}

#[test]
fn a_client_without_tls_is_told_that_it_is_spoken() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let plain = config(&server).address(Address::Tcp(server.tcp_address()));
    assert_says(&refused(plain), &["speaks TLS", "tls://"]);
}

#[test]
fn a_client_with_tls_is_told_that_none_is_spoken() {
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0"]);
    let authority = Authority::new();
    assert_says(&refused(by_tls(&server, &authority)), &["no TLS is spoken there", "tcp://", "--tls-cert"]);
    assert!(!server.said_at_start("in the clear"), "nobody else hears what is said on loopback");
}

#[test]
fn a_token_that_travels_in_the_clear_is_warned_of() {
    let authority = Authority::new();
    let token = authority.certificate().with_file_name("token");
    fs::write(&token, "correct horse battery\n").unwrap();
    let open = ["--listen", "0.0.0.0:0", "--auth-token-file", token.to_str().unwrap()];
    assert!(ServerProcess::start(&open).said_at_start("travel in the clear"));
    let server = start(&authority.sign(HOST), &open);
    assert!(!server.said_at_start("travel in the clear"));
}

/// What `--check-config` says of files, and a start as well.
#[test]
fn files_that_can_not_be_used_are_told_of_before_anything_is_served() {
    use std::os::unix::fs::PermissionsExt;
    let authority = Authority::new();
    let (good, other) = (authority.sign(HOST), authority.sign(HOST));
    let folder = tempfile::tempdir().unwrap();
    let says = |options: &[String], parts: &[&str]| {
        for more in [&["--check-config"][..], &[]] {
            let mut command = ServerProcess::command(folder.path(), more);
            let output = command.args(options).output().unwrap();
            assert!(!output.status.success(), "{options:?}");
            assert_says(&String::from_utf8_lossy(&output.stderr), parts);
        }
    };
    let with = |certificate: &Certificate| Authority::options(certificate);
    says(&with(&other)[..4], &["--tls-key"]);
    says(&with(&other)[2..], &["--listen"]);
    says(&[&with(&good)[..2], &with(&good)[4..]].concat(), &["--tls-cert"]);
    let crossed = Certificate { key: other.key.clone(), ..good.clone() };
    says(&with(&crossed), &["it is not the key of the certificate in", ".pem"]);
    let swapped = Certificate { certificate: good.key.clone(), key: good.certificate.clone() };
    says(&with(&swapped), &["it has no certificate in PEM"]);
    let no_key = Certificate { key: good.certificate.clone(), ..good.clone() };
    says(&with(&no_key), &["it has no private key in PEM"]);
    let missing = Certificate { certificate: "/nowhere/cert.pem".into(), ..good.clone() };
    says(&with(&missing), &["/nowhere/cert.pem can't be used for TLS", "No such file"]);
    fs::set_permissions(&other.key, fs::Permissions::from_mode(0o644)).unwrap();
    says(&with(&other), &["every user can read it", "chmod"]);
    let no_authority =
        [with(&good), vec!["--tls-client-ca".into(), good.key.to_str().unwrap().into()]].concat();
    says(&no_authority, &["it has no certificate in PEM"]);

    let mut checked = ServerProcess::command(folder.path(), &["--check-config"]);
    assert!(checked.args(with(&good)).output().unwrap().status.success());
}

#[test]
fn a_thousand_peers_that_shake_no_hands_keep_nobody_out_and_leave_nothing_behind() {
    let authority = Authority::new();
    let limits = ["--max-connections", "64", "--hello-deadline", "1h"];
    let server = start(&authority.sign(HOST), &limits);
    let good = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    store(&good, "chunk").unwrap();
    let before = server.descriptors();
    let mut peers = Vec::new();
    for n in 0..1000u32 {
        let mut peer = TcpStream::connect(server.tcp_address()).unwrap();
        // Nothing, garbage, half a hello of TLS, or a whole record without sense; the server may be done with it already.
        let words: [&[u8]; 4] =
            [&[], b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 1, 1, 0, 1], &[22, 3, 1, 0, 4, 1, 0, 0, 0]];
        let _ = peer.write_all(words[n as usize % 4]);
        peers.push(peer);
        if n % 100 == 99 {
            assert!(good.exists("chunk").unwrap());
            let newcomer = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
            assert!(newcomer.exists("chunk").unwrap());
            assert!(server.descriptors() < before + 100, "{} of {before}", server.descriptors());
        }
    }
    drop(peers);
    wait_until("they are forgotten", || server.descriptors() <= before);
    assert_eq!(stat(&good, StatKind::Connections), 1);
    assert_eq!(good.client_stats().resumes, 0, "the good one was not disturbed");
}

#[test]
fn peers_that_are_silent_are_closed_before_and_after_the_handshake() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &["--hello-deadline", "200ms"]);
    let before = server.descriptors();
    let mut silent = TcpStream::connect(server.tcp_address()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
    // One that has shaken hands is told so in the words of TLS.
    assert_eq!(peer(&server, &authority).read(&mut [0; 16]).unwrap(), 0);
    wait_until("they are forgotten", || server.descriptors() == before);
}

#[test]
fn connections_over_tls_count_as_all_others_do() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &["--max-connections", "2"]);
    let _first = connect(&server);
    let second = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    let third = MaruHandler::connect(by_tls(&server, &authority)).unwrap_err();
    assert!(matches!(third, Error::Refused { .. }), "{third}");
    assert_eq!(stat(&second, StatKind::Connections), 2);
    drop(second);
    wait_until("there is a place again", || MaruHandler::connect(by_tls(&server, &authority)).is_ok());
}

#[test]
fn a_peer_over_tls_is_a_guest_without_descriptors() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let (guest, operator) = (MaruHandler::connect(by_tls(&server, &authority)).unwrap(), connect(&server));
    store(&operator, "chunk").unwrap();
    operator.pin_kv("chunk").unwrap();
    let pins = guest.pins(&PinQuery::default()).unwrap();
    assert_eq!(pins.len(), 1);
    let refused = guest.release_pins(&pins).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    // Memory came by path, as to any client of TCP.
    assert!(is_intact("chunk", &guest.retrieve("chunk").unwrap().unwrap()));
}

#[test]
fn a_peer_that_does_not_take_its_answers_is_closed_and_takes_bounded_memory() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &["--stall-timeout", "500ms", "--max-unanswered", "64KiB"]);
    let good = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    let (before, resident) = (server.descriptors(), server.resident_bytes());
    let mut hungry = peer(&server, &authority);
    hungry.sock.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    // A frame that is refused without HELLO ends the connection, so this one says HELLO, and then asks without end.
    hungry.write_all(&hello("hungry")).unwrap();
    let frame = lookup_of_1024();
    while hungry.write_all(&frame).is_ok() {
        assert!(server.resident_bytes() < resident + (8 << 20));
    }
    assert!(!good.exists("chunk").unwrap());
    wait_until("it is closed", || server.descriptors() <= before);
    drop(hungry);
}

#[test]
fn the_end_of_one_direction_leaves_the_other_its_answers() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &[]);
    let mut peer = peer(&server, &authority);
    peer.write_all(&hello("half closed")).unwrap();
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    assert_eq!(&answer[..2], b"MR", "{answer:?}");
}

#[test]
fn a_session_goes_on_over_tls_after_the_server_was_killed() {
    let authority = Authority::new();
    let certificate = authority.sign(HOST);
    let mut server = start(&certificate, &["--grace", "60s"]);
    let handler = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    store(&handler, "chunk").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    let mut options = Authority::options(&certificate);
    options[1] = server.tcp_address();
    for _ in 0..3 {
        server.kill();
        server.restart(&options.iter().map(String::as_str).collect::<Vec<_>>());
        wait_until("the session goes on", || handler.exists("chunk").is_ok_and(|exists| exists));
        assert!(is_intact("chunk", &guard));
        assert_eq!(stat(&handler, StatKind::Pins), 1);
        assert!(block_on(handler.exists_async("chunk")).unwrap());
    }
    assert!(handler.client_stats().resumes >= 3);
    assert_eq!(handler.server_address(), address(&server));
    assert!(server.terminate(), "a server with clients on TLS ends as any other");
}

#[test]
fn pins_of_a_client_on_tls_that_is_killed_go_after_the_grace_period() {
    let authority = Authority::new();
    let server = start(&authority.sign(HOST), &["--grace", "100ms"]);
    let other = connect(&server);
    store(&other, "chunk").unwrap();
    let mut client = ClientProcess::connect_with(ClientConfig {
        address: address(&server).to_string(),
        stay_on_tcp: true,
        tls_ca: Some(authority.certificate()),
        ..ClientConfig::new(&server.socket(), "to be killed")
    });
    assert_eq!(client.count(Command::Acquire(vec!["chunk".to_owned()])), 1);
    assert_eq!(stat(&other, StatKind::Pins), 1);
    client.kill();
    wait_until("its pins are gone", || stat(&other, StatKind::Pins) == 0);
    assert_eq!(stat(&other, StatKind::Instances), 1);
}

#[test]
fn certificates_are_read_again_by_sighup() {
    let authority = Authority::new();
    let (first, second) = (authority.sign_expired(HOST), authority.sign(HOST));
    let server = start(&first, &[]);
    assert_says(&refused(by_tls(&server, &authority)), &["certificate expired"]);
    fs::copy(&second.key, &first.key).unwrap();
    server.hang_up();
    server.wait_for_log("going on with the certificates as they were");
    fs::copy(&second.certificate, &first.certificate).unwrap();
    server.hang_up();
    server.wait_for_log("certificates are read again");
    let handler = MaruHandler::connect(by_tls(&server, &authority)).unwrap();
    fs::write(&first.certificate, "no certificate").unwrap();
    server.hang_up();
    server.wait_for_log("going on with the certificates as they were");
    store(&handler, "chunk").unwrap();
    MaruHandler::connect(by_tls(&server, &authority)).unwrap();
}

/// Frames that the server has read when it is told to stop are answered, and then the peer is told the end.
#[test]
fn a_server_that_stops_gives_its_answers_and_says_goodbye() {
    let authority = Authority::new();
    let mut server = start(&authority.sign(HOST), &[]);
    let mut peer = peer(&server, &authority);
    peer.write_all(&hello("asks without end")).unwrap();
    peer.sock.set_nonblocking(true).unwrap();
    let (mut answers, mut stopped) = (Vec::new(), None);
    let ended = loop {
        // More requests come than the server answers, also while it stops.
        let _ = peer.write_all(&lookup_of_1024());
        let mut bytes = [0; 65536];
        match peer.read(&mut bytes) {
            Ok(0) => break Ok(()),
            Ok(read) => answers.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => break Err(error),
        }
        if answers.len() > 1 << 20 && stopped.is_none() {
            stopped = Some(());
            server.signal_to_stop();
        }
    };
    ended.unwrap();
    let mut rest = &answers[..];
    while let Step::Frame { consumed, .. } = decode(rest, 1 << 20).unwrap() {
        rest = &rest[consumed..];
    }
    assert!(rest.is_empty(), "the last answer is whole");
    assert!(server.wait_for_end());
}
