//! A client that is told of a TCP address moves onto the Unix socket of a server on the same host, and stays where it can't.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use maru_client::{Address, ChunkRef, Config, Deleted, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{
    ClientConfig, ClientProcess, Command, PAGE, Reply, ServerProcess, binary, config, connect, is_intact,
    sever, stat, store, wait_until,
};
use pollster::block_on;

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

/// A handler that is told of the server's TCP address alone.
fn by_tcp(server: &ServerProcess) -> Config {
    config(server).address(format!("maru://{}", server.tcp_address()).parse().unwrap())
}

fn on_socket(server: &ServerProcess) -> Address {
    Address::Unix(server.socket())
}

fn on_tcp(server: &ServerProcess) -> Address {
    Address::Tcp(server.tcp_address())
}

/// A handler that has moved, and holds a guard and a pin by name.
fn moved_with_pins(server: &ServerProcess) -> (MaruHandler, ChunkRef) {
    let handler = MaruHandler::connect(by_tcp(server)).unwrap();
    assert_eq!(handler.server_address(), on_socket(server));
    store(&handler, "read").unwrap();
    store(&handler, "named").unwrap();
    assert_eq!(handler.pin_kv("named").unwrap(), Pinned::Pinned);
    let guard = handler.retrieve("read").unwrap().unwrap();
    (handler, guard)
}

/// It is the same session as before, with all that it had.
fn assert_went_on(handler: &MaruHandler, guard: &ChunkRef) {
    wait_until("the session goes on", || handler.exists("read").is_ok_and(|exists| exists));
    assert!(is_intact("read", guard));
    assert_eq!(handler.batch_delete(&["read", "named"]).unwrap(), [Deleted::Pinned; 2]);
    assert_eq!(handler.unpin_kv("named").unwrap(), Unpinned::Unpinned);
    assert_eq!(store(handler, "later").unwrap(), Stored::Stored);
    assert!(is_intact("later", &handler.retrieve("later").unwrap().unwrap()));
    assert!(block_on(handler.exists_async("later")).unwrap());
}

#[test]
fn every_connection_of_a_client_of_the_same_host_is_one_to_the_socket() {
    for scheme in ["maru", "tcp"] {
        let server = ServerProcess::start(&LISTEN);
        let address = format!("{scheme}://{}", server.tcp_address()).parse().unwrap();
        let handler = MaruHandler::connect(config(&server).address(address)).unwrap();
        assert_eq!(handler.server_address(), on_socket(&server));
        wait_until("TCP is left", || stat(&handler, StatKind::Connections) == 1);
        assert_eq!(stat(&handler, StatKind::Instances), 1, "it is one instance all the time");

        // A region's memory and what is awaited have connections of their own.
        store(&handler, scheme).unwrap();
        assert!(is_intact(scheme, &handler.retrieve(scheme).unwrap().unwrap()));
        assert!(block_on(handler.exists_async(scheme)).unwrap());
        assert_eq!(stat(&handler, StatKind::Connections), 3);
        assert_eq!(handler.client_stats().resumes, 0);
        assert_eq!(sever(&server.socket()), 3, "all of them are to the socket");
    }
}

#[test]
fn who_is_told_to_stay_on_tcp_does() {
    let server = ServerProcess::start(&LISTEN);
    let handler = MaruHandler::connect(by_tcp(&server).stay_on_tcp(true)).unwrap();
    store(&handler, "chunk").unwrap();
    assert!(is_intact("chunk", &handler.retrieve("chunk").unwrap().unwrap()));
    assert_eq!(handler.server_address(), on_tcp(&server));
    assert_eq!(sever(&server.socket()), 0);
}

#[test]
fn without_a_socket_on_the_path_a_client_stays_on_tcp_and_finds_memory_by_path() {
    let server = ServerProcess::start(&LISTEN);
    fs::remove_file(server.socket()).unwrap();
    let [writer, reader] = [(); 2].map(|()| MaruHandler::connect(by_tcp(&server)).unwrap());
    assert_eq!([&writer, &reader].map(MaruHandler::server_address), [(); 2].map(|()| on_tcp(&server)));
    assert_eq!(store(&writer, "chunk").unwrap(), Stored::Stored);
    assert!(is_intact("chunk", &reader.retrieve("chunk").unwrap().unwrap()));
    assert_eq!(stat(&reader, StatKind::Instances), 2);
}

#[test]
fn another_server_on_the_path_is_not_mistaken_for_the_one_that_was_asked() {
    let server = ServerProcess::start(&LISTEN);
    fs::remove_file(server.socket()).unwrap();
    let _other = takes_over(&server.socket());
    let handler = MaruHandler::connect(by_tcp(&server)).unwrap();
    assert_eq!(handler.server_address(), on_tcp(&server));
    store(&handler, "chunk").unwrap();
    let of_other = connect(&server);
    assert!(!of_other.exists("chunk").unwrap());
    assert_eq!(stat(&of_other, StatKind::Instances), 1, "no other was opened there");
}

/// Another server, with a pool of its own, on a path where none listens.
fn takes_over(socket: &Path) -> ServerProcess {
    ServerProcess::start(&["--socket", socket.to_str().unwrap()])
}

#[test]
fn a_session_that_moved_goes_on_on_the_socket_after_a_lost_connection() {
    let server = ServerProcess::start(&LISTEN);
    let (handler, guard) = moved_with_pins(&server);
    assert!(sever(&server.socket()) > 0);
    assert_went_on(&handler, &guard);
    assert_eq!(handler.server_address(), on_socket(&server));
}

/// The next server listens on no port.
#[test]
fn a_session_that_moved_goes_on_on_the_socket_after_the_server_was_killed() {
    let mut server = ServerProcess::start(&LISTEN);
    let (handler, guard) = moved_with_pins(&server);
    server.kill();
    server.restart(&[]);
    assert_went_on(&handler, &guard);
    assert_eq!(handler.server_address(), on_socket(&server));
}

#[test]
fn a_socket_that_lies_elsewhere_after_a_restart_is_found_by_tcp_again() {
    let mut server = ServerProcess::start(&LISTEN);
    let (handler, guard) = moved_with_pins(&server);
    let (address, elsewhere) = (server.tcp_address(), server.folder().join("elsewhere.sock"));
    server.kill();
    server.restart(&["--listen", &address, "--socket", elsewhere.to_str().unwrap()]);
    assert_went_on(&handler, &guard);
    assert_eq!(handler.server_address(), Address::Unix(elsewhere));
}

#[test]
fn a_session_goes_on_on_tcp_where_its_socket_is_gone_and_moves_again_once_there_is_one() {
    let mut server = ServerProcess::start(&LISTEN);
    let (handler, guard) = moved_with_pins(&server);
    let address = server.tcp_address();
    fs::remove_file(server.socket()).unwrap();
    assert!(sever(&server.socket()) > 0);
    assert_went_on(&handler, &guard);
    assert_eq!(handler.server_address(), on_tcp(&server));

    server.kill();
    server.restart(&["--listen", &address]);
    wait_until("the session goes on", || handler.exists("read").is_ok_and(|exists| exists));
    assert_eq!(handler.server_address(), on_socket(&server));
    assert_eq!(handler.delete("read").unwrap(), Deleted::Pinned);
    assert!(is_intact("read", &guard));
}

/// That one does not know the session, which has not ended for that.
#[test]
fn a_session_goes_on_by_tcp_where_another_server_has_taken_its_socket() {
    let server = ServerProcess::start(&LISTEN);
    let (handler, guard) = moved_with_pins(&server);
    fs::remove_file(server.socket()).unwrap();
    let _other = takes_over(&server.socket());
    assert!(sever(&server.socket()) > 0);
    assert_went_on(&handler, &guard);
    assert_eq!(handler.server_address(), on_tcp(&server));
    assert!(!connect(&server).exists("read").unwrap(), "whoever asks at the socket asks the other");
}

#[test]
fn the_way_onto_the_socket_leads_past_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "correct horse battery\n").unwrap();
    let server =
        ServerProcess::start(&[&LISTEN[..], &["--auth-token-file", token.to_str().unwrap()]].concat());
    for without in [by_tcp(&server), by_tcp(&server).auth_token("correct horse batterx")] {
        let refused = MaruHandler::connect(without).unwrap_err();
        assert!(refused.to_string().contains("not authorized"), "{refused}");
    }
    let handler = MaruHandler::connect(by_tcp(&server).auth_token("correct horse battery")).unwrap();
    assert_eq!(handler.server_address(), on_socket(&server));
    store(&handler, "chunk").unwrap();
}

/// A client process of another user, with the means to reach the server's socket.
fn client_of(user: u32, server: &ServerProcess) -> (ClientProcess, tempfile::TempDir) {
    let open_up = |folder: &Path| {
        fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    };
    open_up(server.folder());
    // The folder of this build may be nobody else's to look into.
    let folder = tempfile::tempdir().unwrap();
    open_up(folder.path());
    let program = folder.path().join("maru-test-client");
    // By another process: one that this one starts at the same time would inherit a descriptor that writes the program, and
    // nobody could run it then.
    let copied = std::process::Command::new("cp").arg(binary("maru-test-client")).arg(&program).status();
    assert!(copied.unwrap().success());
    let mut command = std::process::Command::new(program);
    command.uid(user).gid(user).current_dir("/");
    let mut client = ClientProcess::start_by(command);
    let address = format!("maru://{}", server.tcp_address());
    let config = ClientConfig { address, ..ClientConfig::new(&server.socket(), "another user's") };
    assert_eq!(client.call(Command::Connect(config)), Reply::Done);
    (client, folder)
}

/// Needs root, to start a process of another user.
#[test]
fn a_client_of_another_user_moves_only_where_the_operator_lets_it_in() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: another user's process takes root to start");
        return;
    }
    let chunk = || vec!["chunk".to_owned()];
    let server = ServerProcess::start(&[&LISTEN[..], &["--allow-uid", "65534"]].concat());
    let (mut allowed, _folder) = client_of(65534, &server);
    let address = allowed.each(Command::ServerAddress);
    assert_eq!(address, [server.socket().display().to_string()]);
    // The pool's folder is not for this user, so the memory came as a descriptor.
    assert_eq!(allowed.each(Command::Store(chunk(), PAGE)), ["stored"]);
    assert_eq!(allowed.each(Command::Mappings(server.pool())), ["rw-s"]);
    let mut reader = client_of(65534, &server);
    assert_eq!(reader.0.count(Command::Read(chunk())), 1);
    assert_eq!(reader.0.each(Command::Mappings(server.pool())), ["r--s"]);

    let (mut turned_away, _folder) = client_of(65532, &server);
    let address = turned_away.each(Command::ServerAddress);
    assert_eq!(address, [format!("tcp://{}", server.tcp_address())]);
    assert_eq!(turned_away.each(Command::Exists(chunk())), ["yes"]);
    let stored = turned_away.each(Command::Store(vec!["other".to_owned()], PAGE));
    assert!(stored[0].contains("Permission denied"), "{stored:?}");
}
