//! A server that is killed and started again loses nothing that it has acknowledged, and nobody reads a wrong byte.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maru_client::{Deleted, Error, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{
    ClientConfig, ClientProcess, Command, PAGE, Reply, ServerProcess, config, connect, is_intact, stat,
    store, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n}")).collect()
}

/// Kills the server and starts another on the same pool.
fn kill_and_restart(server: &mut ServerProcess) {
    server.kill();
    server.restart(&[]);
}

#[test]
fn what_was_stored_is_found_and_read_again() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let keys = keys("chunk", 100);
    keys.iter().for_each(|key| assert_eq!(store(&handler, key).unwrap(), Stored::Stored));
    let epoch = stat(&handler, StatKind::Epoch);

    kill_and_restart(&mut server);
    let prefix = handler.acquire(&keys).unwrap();
    assert_eq!(prefix.len(), 100);
    assert!(keys.iter().zip(prefix.iter()).all(|(key, chunk)| is_intact(key, chunk)));
    // A newcomer hashes with the same digest key.
    let newcomer = connect(&server);
    assert!(is_intact("chunk-7", &newcomer.retrieve("chunk-7").unwrap().unwrap()));
    assert!(stat(&handler, StatKind::Epoch) > epoch);
    assert_eq!(stat(&newcomer, StatKind::Entries), 100);
}

#[test]
fn a_session_goes_on_with_its_pages_and_its_pins() {
    let mut server = ServerProcess::start(&[]);
    let (handler, other) = (connect(&server), connect(&server));
    store(&handler, "chunk").unwrap();
    store(&handler, "named").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    assert_eq!(handler.batch_pin_kv(&["named", "named"]).unwrap(), [Pinned::Pinned; 2]);
    let pages = handler.client_stats();

    kill_and_restart(&mut server);
    wait_until("both go on", || handler.exists("chunk").is_ok() && other.exists("chunk").is_ok());
    wait_until("both have said what they read", || stat(&other, StatKind::Pins) == 3);
    assert_eq!(other.batch_delete(&["chunk", "named"]).unwrap(), [Deleted::Pinned; 2]);
    assert!(is_intact("chunk", &guard));
    drop(guard);
    wait_until("the guard's pin is released", || other.delete("chunk").unwrap() == Deleted::Deleted);
    assert_eq!(
        handler.batch_unpin_kv(&["named", "named", "named"]).unwrap(),
        [Unpinned::Unpinned, Unpinned::Unpinned, Unpinned::NotPinned]
    );
    assert_eq!(other.delete("named").unwrap(), Deleted::Deleted);
    // It has all its pages, each once: the regions are filled without another one.
    assert_eq!(handler.client_stats().own_regions, pages.own_regions);
    let again = keys("again", usize::try_from(pages.pages).unwrap());
    again.iter().for_each(|key| assert_eq!(store(&handler, key).unwrap(), Stored::Stored));
    assert_eq!(handler.client_stats().own_regions, pages.own_regions);
}

#[test]
fn a_page_that_others_freed_before_comes_back_to_its_owner_once() {
    let mut server = ServerProcess::start(&[]);
    let owner =
        MaruHandler::connect(config(&server).region_size(4 * PAGE as u64).auto_expand(false)).unwrap();
    let other = connect(&server);
    let first = keys("first", 4);
    first.iter().for_each(|key| assert_eq!(store(&owner, key).unwrap(), Stored::Stored));
    assert_eq!(other.batch_delete(&first[..2]).unwrap(), [Deleted::Deleted; 2]);

    kill_and_restart(&mut server);
    wait_until("it goes on", || owner.stats().is_ok());
    assert_eq!(stat(&owner, StatKind::FreedPages), 2);
    for key in ["second", "third"] {
        assert_eq!(store(&owner, key).unwrap(), Stored::Stored);
    }
    for key in [&first[2], &first[3], "second", "third"] {
        assert!(is_intact(key, &other.retrieve(key).unwrap().unwrap()), "{key}");
    }
    assert_eq!(stat(&owner, StatKind::FreedPages), 0);
}

/// Somebody who is slow to come back may be reading anything.
#[test]
fn nothing_goes_before_every_reader_is_back_or_its_grace_period_over() {
    let mut server = ServerProcess::start(&["--grace", "2s"]);
    let owner = connect(&server);
    store(&owner, "read").unwrap();
    store(&owner, "unread").unwrap();
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(reader.count(Command::Acquire(vec!["read".to_owned()])), 1);
    let reader_pid = Pid::from_raw(i32::try_from(reader.pid()).unwrap()).unwrap();

    server.kill();
    kill_process(reader_pid, Signal::STOP).unwrap();
    server.restart(&["--grace", "2s"]);
    wait_until("the owner is back", || owner.stats().is_ok());
    assert_eq!(owner.batch_delete(&["read", "unread"]).unwrap(), [Deleted::Pinned; 2]);

    kill_process(reader_pid, Signal::CONT).unwrap();
    wait_until("the reader is back", || owner.delete("unread").unwrap() == Deleted::Deleted);
    assert_eq!(owner.delete("read").unwrap(), Deleted::Pinned);
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);

    // One that never comes back.
    store(&owner, "unread").unwrap();
    server.kill();
    reader.kill();
    server.restart(&["--grace", "2s"]);
    wait_until("the owner is back", || owner.stats().is_ok());
    let began = Instant::now();
    assert_eq!(owner.delete("unread").unwrap(), Deleted::Pinned);
    wait_until("the grace period is over", || owner.delete("unread").unwrap() == Deleted::Deleted);
    assert!(began.elapsed() > Duration::from_secs(1));
    assert_eq!(owner.delete("read").unwrap(), Deleted::Deleted);
}

#[test]
fn chunks_of_a_client_that_died_with_the_server_outlive_both() {
    let mut server = ServerProcess::start(&["--grace", "50ms"]);
    let mut writer = ClientProcess::connect(&server, "writer");
    writer.each(Command::Store(keys("chunk", 3), PAGE));
    server.kill();
    writer.kill();
    server.restart(&["--grace", "50ms"]);
    let reader = connect(&server);
    wait_until("the writer's regions are orphans", || stat(&reader, StatKind::Orphans) == 1);
    kill_and_restart(&mut server);
    wait_until("the reader goes on", || reader.stats().is_ok());
    assert_eq!(stat(&reader, StatKind::Orphans), 1);
    for key in keys("chunk", 3) {
        assert!(is_intact(&key, &reader.retrieve(&key).unwrap().unwrap()));
        wait_until("nobody reads it", || reader.delete(&key).unwrap() == Deleted::Deleted);
    }
    wait_until("their memory is free", || {
        stat(&reader, StatKind::PoolFreeBytes) == stat(&reader, StatKind::PoolBytes)
    });
}

#[test]
fn a_server_that_was_told_to_stop_goes_on_as_well() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    assert!(server.terminate());
    server.restart(&[]);
    wait_until("the session goes on", || handler.exists("chunk").is_ok_and(|exists| exists));
    assert!(is_intact("chunk", &guard));
    assert_eq!(connect(&server).delete("chunk").unwrap(), Deleted::Pinned);
}

#[test]
fn a_server_started_fresh_knows_nothing_and_sessions_end() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    server.kill();
    server.restart(&["--fresh"]);
    wait_until("the session has ended", || matches!(handler.exists("chunk"), Err(Error::SessionEnded)));
    assert!(!connect(&server).exists("chunk").unwrap());
    assert!(!server.pool().join("region-1").exists());
}

#[test]
fn a_damaged_pool_is_refused_with_what_to_do_and_left_alone() {
    let mut server = ServerProcess::start(&[]);
    store(&connect(&server), "chunk").unwrap();
    server.kill();
    let journal = server.pool().join("maru.state");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let output = ServerProcess::command(server.folder(), &[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("maru.state is damaged") && last.contains("discard what the pool holds with --fresh"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(&journal).unwrap(), bytes);
    assert!(server.pool().join("region-1").exists());

    bytes[40] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    server.restart(&[]);
    assert!(is_intact("chunk", &connect(&server).retrieve("chunk").unwrap().unwrap()));
    let too_low = ServerProcess::command(server.folder(), &["--max-entries", "1"]);
    server.kill();
    let output = { too_low }.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("more than --max-entries 1; raise that limit; or discard"), "{said}");
}

/// Threads that store, read, pin and delete while the server is killed under them, again and again.
#[test]
fn a_server_that_is_killed_all_the_time_loses_nothing_that_was_acknowledged() {
    const KILLS: usize = 25;
    let mut server = ServerProcess::start(&["--pool-size", "64MiB"]);
    let handlers = (0..2).map(|_| connect(&server)).collect::<Vec<_>>();
    let (over, lost) = (AtomicBool::new(false), AtomicU64::new(0));
    let stored = std::thread::scope(|scope| {
        let threads = (0..4).map(|thread| {
            let (handler, over, lost) = (&handlers[thread % 2], &over, &lost);
            scope.spawn(move || {
                let mut acknowledged = BTreeSet::new();
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{thread}-{n}");
                    let fails = |error: Error| {
                        assert!(matches!(error, Error::ConnectionLost), "{error}");
                        lost.fetch_add(1, Ordering::Relaxed);
                    };
                    match store(handler, &key) {
                        // Told by an answer that was lost: the same chunk.
                        Ok(Stored::Stored | Stored::AlreadyExists) => drop(acknowledged.insert(key.clone())),
                        Err(error) => fails(error),
                    }
                    match handler.retrieve(&key) {
                        Ok(Some(chunk)) => assert!(is_intact(&key, &chunk), "{key}"),
                        Ok(None) => assert!(!acknowledged.contains(&key), "{key} is lost"),
                        Err(error) => fails(error),
                    }
                    if n >= 100 {
                        // Few stay, so that pages come and go.
                        let old = format!("{thread}-{}", n - 100);
                        match handler.delete(&old) {
                            Ok(Deleted::Deleted | Deleted::NotFound) => drop(acknowledged.remove(&old)),
                            Ok(Deleted::Pinned) => {}
                            Err(error) => {
                                acknowledged.remove(&old);
                                fails(error);
                            }
                        }
                    }
                }
                acknowledged
            })
        });
        let threads = threads.collect::<Vec<_>>();
        for n in 0..KILLS {
            std::thread::sleep(Duration::from_millis(20 + 13 * (n as u64 % 5)));
            server.kill();
            server.restart(&["--pool-size", "64MiB"]);
            wait_until("all go on", || handlers.iter().all(|handler| handler.stats().is_ok()));
        }
        over.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(stored.len() > 100, "{} chunks", stored.len());
    let reader = connect(&server);
    for key in &stored {
        let chunk = reader.retrieve(key).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
        assert!(is_intact(key, &chunk), "{key}");
    }
    wait_until("no pin is left", || stat(&reader, StatKind::Pins) == 0);
    // Each page is free, an entry's, or waits to be taken back.
    for handler in &handlers {
        let regions = handler.regions().unwrap();
        let own = regions.iter().filter(|region| region.owner.get() == handler.instance_number());
        let with_server =
            own.map(|own| u64::from(own.entries.get()) + u64::from(own.freed_pages.get())).sum::<u64>();
        wait_until("no page is lost", || {
            let stats = handler.client_stats();
            stats.pages - stats.free_pages == with_server
        });
    }
}

#[test]
fn a_client_may_be_configured_before_a_restart_and_connect_after_it() {
    let mut server = ServerProcess::start(&[]);
    let mut early = ClientProcess::connect_with(ClientConfig::new(&server.socket(), "early"));
    early.call(Command::Store(keys("chunk", 2), PAGE));
    kill_and_restart(&mut server);
    let mut late = ClientProcess::connect(&server, "late");
    assert_eq!(late.count(Command::Read(keys("chunk", 2))), 2);
    assert_eq!(early.count(Command::Read(keys("chunk", 2))), 2);
}
