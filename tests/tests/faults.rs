//! Faults at every input and output: what the user sees is an answer that is right, or an error that says what to do.

use std::process::{Command, Stdio};
use std::time::Duration;

use maru_client::{Config, Deleted, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{
    Authority, ClientConfig, ClientProcess, Command as Step, Direction, PAGE, Proxy, Reply, ServerProcess,
    binary, connect, is_intact, stat, store, wait_until,
};
use pollster::block_on;

fn through(proxy: &Proxy) -> MaruHandler {
    MaruHandler::connect(config_through(proxy, "tcp")).unwrap()
}

fn config_through(proxy: &Proxy, scheme: &str) -> Config {
    let address = format!("{scheme}://{}", proxy.address()).parse().unwrap();
    // The network is what fails here.
    Config::new().address(address).stay_on_tcp(true).page_size(PAGE).region_size(1 << 20)
}

/// A server behind a network, and a client on the other side of it: once as they are, once with TLS between them.
fn both_in_the_clear_and_by_tls(options: &[&str], test: impl Fn(&Proxy, &MaruHandler)) {
    let server = ServerProcess::start(&[&["--listen", "127.0.0.1:0"], options].concat());
    let proxy = Proxy::start(&server.tcp_address());
    test(&proxy, &through(&proxy));
    drop(server);

    let authority = Authority::new();
    let of_tls = Authority::options(&authority.sign("127.0.0.1"));
    let of_tls = of_tls.iter().map(String::as_str).collect::<Vec<_>>();
    let server = ServerProcess::start(&[&of_tls, options].concat());
    let proxy = Proxy::start(&server.tcp_address());
    let config = config_through(&proxy, "tls").tls_ca(authority.certificate());
    test(&proxy, &MaruHandler::connect(config).unwrap());
}

#[test]
fn frames_that_come_in_pieces_of_any_size_are_whole_frames() {
    both_in_the_clear_and_by_tls(&[], |proxy, handler| {
        proxy.chop();
        let keys = (0..40).map(|n| format!("chunk-{n}")).collect::<Vec<_>>();
        for key in &keys {
            assert_eq!(store(handler, key).unwrap(), Stored::Stored);
        }
        let prefix = handler.acquire(&keys).unwrap();
        assert_eq!(prefix.len(), 40);
        assert!(keys.iter().zip(prefix.iter()).all(|(key, chunk)| is_intact(key, chunk)));
        let found = block_on(handler.batch_exists_async(&keys)).unwrap();
        assert!(found.into_iter().all(|found| found));
        let chunks = block_on(handler.batch_retrieve_async(&keys)).unwrap();
        assert!(keys.iter().zip(&chunks).all(|(key, chunk)| is_intact(key, chunk.as_ref().unwrap())));
        drop((prefix, chunks));
        wait_until("nothing is pinned", || stat(handler, StatKind::Pins) == 0);
        assert_eq!(handler.batch_delete(&keys).unwrap(), vec![Deleted::Deleted; 40]);
    });
}

/// Between header and body, in the middle of either, before the first byte and behind the last.
#[test]
fn a_connection_that_breaks_at_any_byte_loses_nothing() {
    both_in_the_clear_and_by_tls(&["--grace", "30s"], |proxy, handler| {
        // A region before the first cut, so that requests are those of chunks.
        store(handler, "first").unwrap();
        for direction in [Direction::ToServer, Direction::ToClient] {
            for bytes in (0..240).step_by(5) {
                let key = format!("{direction:?}-{bytes}");
                proxy.cut_after(direction, bytes);
                assert_eq!(store(handler, &key).unwrap(), Stored::Stored, "{key}");
                let chunk = handler.retrieve(&key).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
                assert!(is_intact(&key, &chunk), "{key}");
                drop(chunk);
                assert_eq!(handler.pin_kv(&key).unwrap(), Pinned::Pinned, "{key}");
                // One whose answer was lost is asked for a second time.
                let unpinned = handler.unpin_kv(&key).unwrap();
                assert!(matches!(unpinned, Unpinned::Unpinned | Unpinned::NotPinned), "{key}: {unpinned:?}");
                wait_until("the guard's pin is released", || {
                    handler.delete(&key).unwrap() != Deleted::Pinned
                });
                assert!(!handler.exists(&key).unwrap(), "{key}");
                wait_until("it has broken", || {
                    proxy.has_cut() || handler.exists("first").is_ok_and(|_| proxy.has_cut())
                });
            }
        }
        assert!(handler.client_stats().resumes >= 90, "{:?}", handler.client_stats());
        wait_until("no pin is left", || stat(handler, StatKind::Pins) == 0);
        let stats = handler.client_stats();
        let freed = stat(handler, StatKind::FreedPages);
        assert_eq!(stats.pages - stats.free_pages, 1 + freed, "no page is lost: {stats:?}");
    });
}

/// The server may have been told that a pin is in use when it is given back, or be told later that it is not.
#[test]
fn a_pin_that_is_given_back_at_any_moment_of_going_on_is_released() {
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0", "--grace", "30s"]);
    let proxy = Proxy::start(&server.tcp_address());
    let (handler, other) = (through(&proxy), connect(&server));
    store(&handler, "chunk").unwrap();
    for bytes in (0..400).step_by(8) {
        assert_eq!(handler.pin_kv("chunk").unwrap(), Pinned::Pinned);
        let guard = handler.retrieve("chunk").unwrap().unwrap();
        proxy.hold_after(Direction::ToClient, bytes);
        proxy.cut_after(Direction::ToServer, 0);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| handler.exists("chunk"));
            wait_until("the session is going on", || {
                proxy.is_holding(Direction::ToClient) || call.is_finished()
            });
            let unpin = scope.spawn(|| handler.unpin_kv("chunk"));
            drop(guard);
            std::thread::sleep(Duration::from_millis(10));
            proxy.let_pass();
            assert!(call.join().unwrap().unwrap());
            assert_eq!(unpin.join().unwrap().unwrap(), Unpinned::Unpinned);
        });
        wait_until("no pin is left", || stat(&other, StatKind::Pins) == 0);
    }
}

/// A command that runs a program with a limit of the shell's.
fn limited(limit: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit {limit}; exec {} \"$@\"", program.display())).arg("sh");
    command
}

#[test]
fn a_client_without_descriptors_left_is_told_so_and_leaves_no_region_behind() {
    let server = ServerProcess::start(&["--grace", "50ms"]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    // Standard streams, the connection, the bell, the connection for regions, and one for a region until it is mapped.
    for descriptors in 4..=7 {
        let mut client =
            ClientProcess::start_by(limited(&format!("-n {descriptors}"), &binary("maru-test-client")));
        let config = ClientConfig::new(&server.socket(), "poor");
        let mut said = client.call(Step::Connect(config)).failed();
        if said.is_none() {
            let stored = client.each(Step::Store(vec![format!("by {descriptors}")], PAGE));
            said = Some(stored[0].clone()).filter(|word| word != "stored");
        }
        match said {
            Some(said) => {
                assert!(descriptors < 7, "{said}");
                assert!(said.contains("Too many open files"), "with {descriptors}: {said}");
            }
            None => assert_eq!(descriptors, 7),
        }
        drop(client);
        wait_until("no region is left but those with chunks", || {
            stat(&handler, StatKind::Regions) == stat(&handler, StatKind::Entries)
        });
    }
}

#[test]
fn a_client_without_address_space_is_told_so_and_goes_on() {
    let server = ServerProcess::start(&["--pool-size", "320MiB"]);
    let mut client = ClientProcess::start_by(limited("-v 262144", &binary("maru-test-client")));
    let config = ClientConfig { region_size: 256 << 20, ..ClientConfig::new(&server.socket(), "poor") };
    assert_eq!(client.call(Step::Connect(config)), Reply::Done);
    let said = client.each(Step::Store(vec!["chunk".to_owned()], PAGE));
    assert!(said[0].contains("Cannot allocate memory"), "{said:?}");
    // The region that it could not map is the pool's again, and whatever needs no memory goes on.
    let handler = connect(&server);
    wait_until("the region is given back", || {
        stat(&handler, StatKind::PoolFreeBytes) == stat(&handler, StatKind::PoolBytes)
    });
    store(&handler, "other").unwrap();
    assert_eq!(client.count(Step::Read(vec!["other".to_owned()])), 1);
}

#[test]
fn a_server_without_descriptors_left_serves_those_it_has_and_others_later() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = ServerProcess::command(folder.path(), &[]);
    let mut command = limited("-n 48", &binary("maru-server"));
    let mut server = command.args(server.get_args()).stderr(Stdio::null()).spawn().unwrap();
    let socket = folder.path().join("maru.sock");
    wait_until("it serves", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let config = || Config::new().address(socket.to_str().unwrap().parse().unwrap()).page_size(PAGE);
    let first = MaruHandler::connect(config()).unwrap();
    // More than it has descriptors for: those that it can't accept wait in the queue of the kernel.
    let waiting =
        (0..64).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect::<Vec<_>>();
    for n in 0..100 {
        assert!(!first.exists(format!("{n}")).unwrap());
    }
    drop(waiting);
    let later = MaruHandler::connect(config()).unwrap();
    assert!(!later.exists("chunk").unwrap());
    server.kill().unwrap();
    server.wait().unwrap();
}
