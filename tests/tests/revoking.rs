//! A client that was out of its server's reach reads what it has acquired, or is told that it can't: never another chunk.
//!
//! Everything is read here that a page held before and after, so that a read that is believed and should not be shows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use maru_client::{
    ChunkRef, Config, Deleted, Error, MaruHandler, Opcode, Revocation, StatKind, Stored, Unpinned,
};
use maru_tests::{
    ClientProcess, Command, Direction, PAGE, Proxy, ServerProcess, config, connect, is_intact, stat, store,
    wait_until,
};
use pollster::block_on;
use rustix::process::{Pid, Signal, kill_process};

/// A server, the network between it and clients on other hosts, and a client on its own.
fn across_a_network(options: &[&str]) -> (ServerProcess, Proxy, MaruHandler) {
    let server = ServerProcess::start(&[&["--listen", "127.0.0.1:0"], options].concat());
    let proxy = Proxy::start(&server.tcp_address());
    let owner = owner_of_one_page(&server);
    (server, proxy, owner)
}

/// Whatever it stores next lies where the chunk before lay.
fn owner_of_one_page(server: &ServerProcess) -> MaruHandler {
    MaruHandler::connect(config(server).region_size(PAGE as u64).auto_expand(false)).unwrap()
}

/// A client on another host.
fn across(server: &ServerProcess, proxy: &Proxy) -> MaruHandler {
    let address = format!("tcp://{}", proxy.address()).parse().unwrap();
    MaruHandler::connect(config(server).address(address).stay_on_tcp(true)).unwrap()
}

/// A guard of a chunk that was just stored, and can be read.
fn acquired(owner: &MaruHandler, reader: &MaruHandler, key: &str) -> ChunkRef {
    assert_eq!(store(owner, key).unwrap(), Stored::Stored);
    let guard = reader.retrieve(key).unwrap().unwrap();
    wait_until("it can be read", || is_read(key, &guard));
    guard
}

/// Writes another chunk over one as soon as the server lets that happen.
fn overwrite(owner: &MaruHandler, old: &str, new: &str) {
    wait_until("nobody has it pinned", || owner.delete(old).unwrap() == Deleted::Deleted);
    assert_eq!(store(owner, new).unwrap(), Stored::Stored);
}

/// Whether the chunk can be read, in all ways that check; its bytes are the right ones if so.
fn is_read(key: &str, guard: &ChunkRef) -> bool {
    let copied = copy(guard);
    assert!(copied.as_ref().is_ok_and(|copy| is_intact(key, copy)) || copied.is_err(), "wrong bytes copied");
    let intact = guard.read(|bytes| is_intact(key, bytes));
    assert!(*intact.as_ref().unwrap_or(&true), "wrong bytes read");
    copied.is_ok() && intact.is_ok() && guard.check().is_ok()
}

fn copy(guard: &ChunkRef) -> Result<Vec<u8>, Error> {
    let mut copy = vec![0; guard.len()];
    guard.copy_to(&mut copy).map(|()| copy)
}

/// What lies where the chunk lay, whatever that is.
fn whatever_is_there(guard: &ChunkRef) -> Vec<u8> {
    // SAFETY: the mapping has as many bytes there, and nobody writes them while a test looks.
    unsafe { std::slice::from_raw_parts(guard.as_ptr(), guard.len()) }.to_vec()
}

fn why<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Revocation {
    match outcome {
        Err(Error::Revoked(why)) => why,
        other => panic!("expected a revoked guard, got {other:?}"),
    }
}

fn signal(client: &ClientProcess, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(client.pid()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_cut_shorter_than_the_grace_period_costs_nothing() {
    let (server, proxy, owner) = across_a_network(&["--grace", "30s"]);
    let reader = across(&server, &proxy);
    let guard = acquired(&owner, &reader, "chunk");
    proxy.part();
    for _ in 0..30 {
        assert!(is_read("chunk", &guard));
        assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
        std::thread::sleep(Duration::from_millis(10));
    }
    proxy.heal();
    wait_until("the session goes on", || reader.exists("chunk").is_ok_and(|exists| exists));
    assert!(is_read("chunk", &guard));
    assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
    assert_eq!(reader.client_stats().revoked_chunks, 0);
    drop(guard);
    overwrite(&owner, "chunk", "other");
}

#[test]
fn a_guard_whose_page_was_given_to_another_chunk_is_revoked_before_anybody_is_told() {
    let (server, proxy, owner) = across_a_network(&["--grace", "500ms"]);
    let reader = across(&server, &proxy);
    let guard = acquired(&owner, &reader, "chunk");
    let prefix = reader.acquire(&["chunk"]).unwrap();
    proxy.part();
    overwrite(&owner, "chunk", "other");

    // The cut goes on: nobody has told the reader anything.
    assert_eq!(reader.client_stats().resumes, 0);
    assert_eq!(why(copy(&guard)), Revocation::InDoubt);
    assert_eq!(why(guard.read(|_| panic!("nobody is to see these bytes"))), Revocation::InDoubt);
    assert_eq!(why(prefix.check()), Revocation::InDoubt);
    assert!(guard.is_revoked());
    assert!(is_intact("other", &whatever_is_there(&guard)), "without a check it reads another chunk");
    let said = guard.check().unwrap_err().to_string();
    assert!(said.contains("may have released the pin") && said.contains("acquire it anew"), "{said}");

    proxy.heal();
    wait_until("it is told", || matches!(reader.exists("other"), Err(Error::SessionEnded)));
    assert_eq!(why(copy(&guard)), Revocation::Released);
    assert_eq!(why(prefix.check()), Revocation::Released);
    assert_eq!(why(prefix.get(0).unwrap().check()), Revocation::Released);
    assert_eq!(reader.client_stats().revoked_chunks, 2);
    for deref in
        [&|| guard[0], &|| prefix[0][0], &|| prefix.iter().next().unwrap()[0]] as [&dyn Fn() -> u8; 3]
    {
        assert!(catch_unwind(AssertUnwindSafe(deref)).is_err(), "wrong bytes are not handed out");
    }
    drop(guard);
    drop(prefix);

    let again = across(&server, &proxy);
    assert!(again.retrieve("chunk").unwrap().is_none());
    assert!(is_read("other", &again.retrieve("other").unwrap().unwrap()));
}

#[test]
fn who_reads_all_the_while_sees_no_byte_of_another_chunk() {
    const ROUNDS: usize = 4;
    let (server, proxy, owner) = across_a_network(&["--grace", "200ms"]);
    for round in 0..ROUNDS {
        let keys = (0..4).map(|n| format!("{round}-{n}")).collect::<Vec<_>>();
        let reader = across(&server, &proxy);
        let guard = acquired(&owner, &reader, &keys[0]);
        let (over, refused) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if !is_read(&keys[0], &guard) {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            proxy.part();
            keys.windows(2).for_each(|keys| overwrite(&owner, &keys[0], &keys[1]));
            wait_until("it is refused", || refused.load(Ordering::Relaxed) > 100);
            proxy.heal();
            wait_until("it is told", || matches!(reader.exists("any"), Err(Error::SessionEnded)));
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(why(guard.check()), Revocation::Released);
        wait_until("the page is free", || owner.delete(&keys[3]).unwrap() == Deleted::Deleted);
    }
}

#[test]
fn a_reader_that_was_stopped_while_its_server_was_restarted_is_refused_from_its_first_read_on() {
    let mut server = ServerProcess::start(&["--grace", "500ms"]);
    let owner = owner_of_one_page(&server);
    store(&owner, "chunk").unwrap();
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(reader.count(Command::Acquire(vec!["chunk".to_owned()])), 1);

    signal(&reader, Signal::STOP);
    server.kill();
    server.restart(&["--grace", "500ms"]);
    wait_until("the owner is back", || owner.stats().is_ok());
    overwrite(&owner, "chunk", "other");
    signal(&reader, Signal::CONT);

    let first = reader.each(Command::ReadHeld);
    assert!(["in doubt", "released"].contains(&first[0].as_str()), "{first:?}");
    wait_until("it is told", || reader.each(Command::ReadHeld) == ["released"]);
    let said = reader.refused(Command::Read(vec!["other".to_owned()]));
    assert!(said.contains("has ended this session"), "{said}");
    let mut again = ClientProcess::connect(&server, "reader");
    assert_eq!(again.count(Command::Read(vec!["other".to_owned()])), 1);
}

#[test]
fn a_pin_that_the_server_has_kept_makes_its_guard_as_good_as_before() {
    let (server, proxy, owner) = across_a_network(&["--grace", "1s"]);
    let reader = across(&server, &proxy);
    let guard = acquired(&owner, &reader, "chunk");
    // The network is so slow that neither side notices more than silence.
    proxy.hold_after(Direction::ToServer, 0);
    proxy.hold_after(Direction::ToClient, 0);
    wait_until("it is in doubt", || guard.is_revoked());
    assert_eq!(why(copy(&guard)), Revocation::InDoubt);
    assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
    proxy.let_pass();
    wait_until("it is good again", || is_read("chunk", &guard));
    assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
    assert_eq!(reader.client_stats().revoked_chunks, 0);

    // The reader is stopped, and its server sees that it is still connected.
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(reader.count(Command::Acquire(vec!["chunk".to_owned()])), 1);
    drop(guard);
    signal(&reader, Signal::STOP);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
    }
    signal(&reader, Signal::CONT);
    wait_until("it is good again", || reader.each(Command::ReadHeld) == ["intact"]);
    assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
}

/// Readers rely on the grace period that they were told of.
#[test]
fn a_server_that_is_restarted_with_a_shorter_grace_period_waits_for_the_readers_of_before() {
    let mut server = ServerProcess::start(&["--grace", "30s"]);
    let owner = owner_of_one_page(&server);
    store(&owner, "chunk").unwrap();
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(reader.count(Command::Acquire(vec!["chunk".to_owned()])), 1);
    signal(&reader, Signal::STOP);
    server.kill();
    server.restart(&["--grace", "50ms"]);
    wait_until("the owner is back", || owner.stats().is_ok());
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(owner.delete("chunk").unwrap(), Deleted::Pinned);
    }
    signal(&reader, Signal::CONT);
    wait_until("it has said what it reads", || stat(&owner, StatKind::Pins) == 1);
    wait_until("it goes on", || reader.each(Command::ReadHeld) == ["intact"]);
    reader.kill();
    overwrite(&owner, "chunk", "other");
}

/// Others may have its memory by now, and a page is written to without a word to the server.
#[test]
fn no_page_is_handed_out_that_may_be_somebody_elses_by_now() {
    let (server, proxy, owner) = across_a_network(&["--grace", "500ms"]);
    let address = format!("tcp://{}", proxy.address()).parse().unwrap();
    let impatient = config(&server).address(address).stay_on_tcp(true).timeout(Duration::from_millis(200));
    let writer = MaruHandler::connect(impatient).unwrap();
    assert_eq!(store(&writer, "chunk").unwrap(), Stored::Stored);
    assert!(writer.client_stats().free_pages > 0);
    drop(writer.alloc(PAGE).unwrap());
    proxy.part();
    wait_until("its session has ended", || stat(&owner, StatKind::Instances) == 1);
    assert!(writer.alloc(PAGE).is_err());
    assert!(block_on(writer.alloc_async(PAGE)).is_err());
    proxy.heal();
    wait_until("it is told", || matches!(writer.alloc(PAGE), Err(Error::SessionEnded)));
    assert_eq!(store(&across(&server, &proxy), "other").unwrap(), Stored::Stored);
}

#[test]
fn guards_that_nobody_uses_stay_good_as_long_as_the_server_is_there() {
    let (server, proxy, owner) = across_a_network(&["--grace", "1s"]);
    let (near, far) = (connect(&server), across(&server, &proxy));
    let guards = [acquired(&owner, &near, "chunk"), far.retrieve("chunk").unwrap().unwrap()];
    let heartbeats = || owner.stats().unwrap().frames(Opcode::Heartbeat);
    let before = heartbeats();
    // A beat is a quarter of the grace period: each of them has said something for longer than that.
    wait_until("they are heard of", || heartbeats() >= before + 20);
    wait_until("they can be read", || guards.iter().all(|guard| is_read("chunk", guard)));
    drop(guards);
    overwrite(&owner, "chunk", "other");
}

#[test]
fn what_was_acquired_after_a_long_silence_can_be_read() {
    let server = ServerProcess::start(&["--grace", "1s"]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    for _ in 0..2 {
        // Without guards nothing is said, and what was said is long ago.
        std::thread::sleep(Duration::from_millis(1100));
        let guard = block_on(handler.retrieve_async("chunk")).unwrap().unwrap();
        wait_until("it can be read", || is_read("chunk", &guard));
        drop(guard);
        std::thread::sleep(Duration::from_millis(1100));
        let prefix = handler.acquire(&["chunk"]).unwrap();
        assert!(is_intact("chunk", &prefix[0]));
        wait_until("it was right", || prefix.check().is_ok());
    }
}

/// Its pin is not another's, even of the same key.
#[test]
fn a_revoked_guard_takes_nothing_along_when_it_goes() {
    let mut server = ServerProcess::start(&["--grace", "30s"]);
    let (handler, other) = (connect(&server), connect(&server));
    store(&handler, "chunk").unwrap();
    let guards = [(); 3].map(|()| handler.retrieve("chunk").unwrap().unwrap());
    server.kill();
    // The restarted server does not take three pins.
    server.restart(&["--grace", "30s", "--max-pins-per-entry", "2"]);
    wait_until("the session goes on", || handler.stats().is_ok() && other.stats().is_ok());
    assert!(guards.iter().all(|guard| why(guard.check()) == Revocation::Released));
    assert_eq!(handler.client_stats().revoked_chunks, 3);
    assert_eq!(stat(&other, StatKind::Pins), 0);

    let good = handler.retrieve("chunk").unwrap().unwrap();
    let (clone, weak) = (guards[0].clone(), guards[1].downgrade());
    assert!(weak.upgrade().is_none(), "nobody gets a guard that is revoked");
    drop(guards);
    drop(clone);
    // What is released goes along with a request, or before it.
    assert_eq!(handler.unpin_kv("chunk").unwrap(), Unpinned::NotPinned);
    assert_eq!(other.delete("chunk").unwrap(), Deleted::Pinned);
    assert_eq!(stat(&other, StatKind::Pins), 1);
    assert!(is_read("chunk", &good));
    drop(good);
    wait_until("its own pin goes", || other.delete("chunk").unwrap() == Deleted::Deleted);
}

#[test]
fn where_pins_do_not_outlast_a_connection_each_check_asks_the_server() {
    let no_grace = |config: Config| config.no_grace(true);
    let as_it_is = |config: Config| config;
    for (options, configured) in
        [(["--grace", "0s"], as_it_is as fn(Config) -> Config), (["--grace", "30s"], no_grace)]
    {
        let mut server = ServerProcess::start(&options);
        let owner = owner_of_one_page(&server);
        store(&owner, "chunk").unwrap();
        let reader = MaruHandler::connect(configured(config(&server))).unwrap();
        let guard = reader.retrieve("chunk").unwrap().unwrap();
        let heartbeats = || owner.stats().unwrap().frames(Opcode::Heartbeat);
        let before = heartbeats();
        assert!(is_read("chunk", &guard));
        assert!(heartbeats() >= before + 3);
        server.kill();
        assert_eq!(why(copy(&guard)), Revocation::InDoubt);
    }
}
