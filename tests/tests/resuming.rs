//! A lost connection costs nobody anything: the session goes on, and pins and pages are the same on both sides.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maru_client::{Deleted, Error, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{PAGE, ServerProcess, config, connect, fill, is_intact, sever, stat, store, wait_until};

/// Every page of the handler's regions is free, an entry's, or on its way back to it.
fn assert_all_pages_are_there(handler: &MaruHandler) {
    wait_until("what was under way is settled", || {
        let (client, server) = (handler.client_stats(), handler.stats().unwrap());
        client.free_pages + server.get(StatKind::Entries) + server.get(StatKind::FreedPages) == client.pages
    });
}

/// Stops the server, has `during` run while requests pile up, breaks all connections, and lets the server go on.
fn lose_answers(server: &ServerProcess, during: impl FnOnce()) {
    server.pause();
    during();
    // Long enough for what other threads are about to send.
    std::thread::sleep(Duration::from_millis(50));
    assert!(sever(&server.socket()) > 0);
    server.resume();
}

#[test]
fn calls_go_on_after_a_lost_connection() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    for _ in 0..20 {
        sever(&server.socket());
        assert!(handler.exists("chunk").unwrap());
        sever(&server.socket());
        assert!(is_intact("chunk", &handler.retrieve("chunk").unwrap().unwrap()));
        sever(&server.socket());
        assert_eq!(store(&handler, "chunk").unwrap(), Stored::AlreadyExists);
    }
    assert_eq!(stat(&handler, StatKind::Instances), 1, "it is the same instance all the time");
    assert_all_pages_are_there(&handler);
}

#[test]
fn an_idle_handler_notices_that_its_connection_is_lost() {
    let server = ServerProcess::start(&["--grace", "1s"]);
    let (idle, other) = (connect(&server), connect(&server));
    store(&idle, "chunk").unwrap();
    let guard = idle.retrieve("chunk").unwrap().unwrap();
    let held = Instant::now();
    sever(&server.socket());
    // Nobody calls the idle one.
    while held.elapsed() < Duration::from_secs(2) {
        assert_eq!(other.delete("chunk").unwrap(), Deleted::Pinned);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_intact("chunk", &guard));
    drop(guard);
    wait_until("the pin is released", || stat(&other, StatKind::Pins) == 0);
}

#[test]
fn guards_and_pins_by_name_outlive_a_lost_connection_and_are_released_once() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    for key in ["a", "b", "c"] {
        store(&handler, key).unwrap();
    }
    let prefix = handler.acquire(&["a", "b"]).unwrap();
    let again = prefix.get(1).unwrap();
    let second = handler.retrieve("b").unwrap().unwrap();
    assert_eq!(handler.pin_kv("c").unwrap(), Pinned::Pinned);
    sever(&server.socket());
    wait_until("the session went on", || handler.exists("a").unwrap() && stat(&handler, StatKind::Pins) == 4);
    assert_eq!(handler.batch_delete(&["a", "b", "c"]).unwrap(), [Deleted::Pinned; 3]);
    drop(prefix);
    drop(again);
    assert_eq!(handler.unpin_kv("c").unwrap(), Unpinned::Unpinned);
    assert_eq!(handler.unpin_kv("c").unwrap(), Unpinned::NotPinned);
    wait_until("all but one are released", || stat(&handler, StatKind::Pins) == 1);
    assert_eq!(handler.delete("b").unwrap(), Deleted::Pinned);
    drop(second);
    wait_until("all are released", || stat(&handler, StatKind::Pins) == 0);
}

#[test]
fn a_closed_handler_goes_on_for_its_guards() {
    let server = ServerProcess::start(&["--grace", "500ms"]);
    let (closed, other) = (MaruHandler::connect(config(&server).eager(true)).unwrap(), connect(&server));
    store(&other, "chunk").unwrap();
    let guard = closed.retrieve("chunk").unwrap().unwrap();
    // Its own region, in which nothing is stored, is given back here.
    closed.close();
    sever(&server.socket());
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(1500) {
        assert_eq!(other.delete("chunk").unwrap(), Deleted::Pinned);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_intact("chunk", &guard));
    let accepted = stat(&other, StatKind::ConnectionsAccepted);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        stat(&other, StatKind::ConnectionsAccepted),
        accepted,
        "it went on once, and not again and again"
    );
    drop(guard);
    wait_until("the pin is released", || other.delete("chunk").unwrap() == Deleted::Deleted);
}

/// The original kept the pins of a batch that timed out for ever.
#[test]
fn pins_that_were_taken_for_a_lost_answer_are_released() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        lose_answers(&server, || {
            for _ in 0..4 {
                readers.push(scope.spawn(|| handler.acquire(&["chunk"])));
            }
        });
        let prefixes = readers.into_iter().map(|reader| reader.join().unwrap().unwrap()).collect::<Vec<_>>();
        assert!(prefixes.iter().all(|prefix| is_intact("chunk", &prefix[0])));
        wait_until("each guard has its pin", || stat(&handler, StatKind::Pins) == 4);
    });
    wait_until("no pin is left", || stat(&handler, StatKind::Pins) == 0);
}

#[test]
fn pins_that_were_released_while_the_connection_was_lost_stay_released() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let kept = handler.retrieve("chunk").unwrap().unwrap();
    let dropped = handler.retrieve("chunk").unwrap().unwrap();
    lose_answers(&server, || drop(dropped));
    wait_until("one is left", || stat(&handler, StatKind::Pins) == 1);
    assert_eq!(handler.delete("chunk").unwrap(), Deleted::Pinned);
    drop(kept);
    wait_until("none is left", || stat(&handler, StatKind::Pins) == 0);
}

/// The original used the page of a store that had timed out again, while the server registered it.
#[test]
fn a_store_whose_answer_was_lost_is_asked_for_and_its_page_is_used_once() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "first").unwrap();
    let keys = (0..64).map(|n| format!("chunk-{n}")).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let mut writers = Vec::new();
        lose_answers(&server, || {
            let (single, batch) = keys.split_at(8);
            for key in single {
                writers.push(scope.spawn(|| store(&handler, key).unwrap() == Stored::Stored));
            }
            writers.push(scope.spawn(|| {
                let page = |key: &String| {
                    let mut page = handler.alloc(PAGE).unwrap();
                    fill(key, &mut page);
                    page
                };
                let outcomes = handler.batch_store(batch, batch.iter().map(page).collect()).unwrap();
                outcomes.into_iter().all(|outcome| outcome == Ok(Stored::Stored))
            }));
        });
        assert!(writers.into_iter().all(|writer| writer.join().unwrap()));
    });
    let chunks = handler.batch_retrieve(&keys).unwrap();
    let chunks = chunks.into_iter().map(Option::unwrap).collect::<Vec<_>>();
    assert!(chunks.iter().zip(&keys).all(|(chunk, key)| is_intact(key, chunk)));
    let places = chunks.iter().map(|chunk| (chunk.region_id(), chunk.page_index())).collect::<HashSet<_>>();
    assert_eq!(places.len(), keys.len());
    assert_all_pages_are_there(&handler);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_around_a_lost_connection_lose_no_page_and_no_pin() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    assert!(handler.exists_async("chunk").await.unwrap());
    for wait in [0, 1, 5, 60, 120] {
        let futures = (0..16).map(|n| {
            let (handler, key) = (handler.clone(), format!("{wait}-{n}"));
            tokio::spawn(async move {
                let mut page = handler.alloc(PAGE)?;
                fill(&key, &mut page);
                handler.store_async(&key, page).await?;
                handler.acquire_async(&["chunk", &key]).await.map(|prefix| prefix.len())
            })
        });
        let futures = futures.collect::<Vec<_>>();
        lose_answers(&server, || std::thread::sleep(Duration::from_millis(5)));
        tokio::time::sleep(Duration::from_millis(wait)).await;
        for (n, future) in futures.into_iter().enumerate() {
            if n % 2 == 0 {
                future.abort();
            } else {
                assert_eq!(future.await.unwrap().unwrap(), 2);
            }
        }
    }
    wait_until("no pin is left", || stat(&handler, StatKind::Pins) == 0);
    assert_all_pages_are_there(&handler);
}

#[test]
fn pages_that_were_handed_back_in_a_lost_answer_are_not_lost() {
    let server = ServerProcess::start(&[]);
    let handler =
        MaruHandler::connect(config(&server).region_size(8 * PAGE as u64).auto_expand(false)).unwrap();
    for n in 0..8 {
        store(&handler, &format!("old-{n}")).unwrap();
    }
    std::thread::scope(|scope| {
        let mut writer = None;
        lose_answers(&server, || {
            // No page is free, so the server has to hand some back.
            writer = Some(scope.spawn(|| store(&handler, "new")));
        });
        assert_eq!(writer.unwrap().join().unwrap().unwrap(), Stored::Stored);
    });
    assert_all_pages_are_there(&handler);
}

#[test]
fn a_region_that_was_given_in_a_lost_answer_is_given_back() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    std::thread::scope(|scope| {
        let mut writer = None;
        lose_answers(&server, || writer = Some(scope.spawn(|| store(&handler, "first"))));
        assert_eq!(writer.unwrap().join().unwrap().unwrap(), Stored::Stored);
    });
    wait_until("only the region that is used is left", || stat(&handler, StatKind::Regions) == 1);
    assert_eq!(handler.client_stats().own_regions, 1);
}

#[test]
fn a_session_that_the_server_does_not_know_has_ended() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    server.kill();
    assert!(matches!(handler.exists("chunk"), Err(Error::ConnectionLost)));
    let began = Instant::now();
    assert!(
        matches!(handler.exists("chunk"), Err(Error::ConnectionLost)),
        "at once, from the second time on"
    );
    assert!(began.elapsed() < Duration::from_millis(500));
    server.restart(&["--fresh"]);
    wait_until("the handler has asked", || matches!(handler.exists("chunk"), Err(Error::SessionEnded)));
    assert!(matches!(handler.alloc(PAGE).map(drop), Ok(()) | Err(Error::SessionEnded)));
    assert!(!connect(&server).exists("chunk").unwrap());
}

#[test]
fn connections_that_break_all_the_time_leave_nothing_behind() {
    let server = ServerProcess::start(&[]);
    let handler =
        MaruHandler::connect(config(&server).region_size(64 * PAGE as u64).auto_expand(false)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (handler, over) = (&handler, &over);
            scope.spawn(move || {
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{}", (n * 7 + thread * 31) % 150);
                    // Three losses in one call are more than it puts up with.
                    let lost = |error: Error| assert!(matches!(error, Error::ConnectionLost), "{error}");
                    match handler.acquire(&[&key]) {
                        Ok(prefix) => assert!(prefix.iter().all(|chunk| is_intact(&key, chunk)), "{key}"),
                        Err(error) => lost(error),
                    }
                    store(handler, &key).map_or_else(lost, drop);
                    handler.pin_kv(&key).map_or_else(lost, drop);
                    handler.unpin_kv(&key).map_or_else(lost, drop);
                    if n % 5 == 0 {
                        handler.delete(&key).map_or_else(lost, drop);
                    }
                }
            });
        }
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            sever(&server.socket());
        }
        over.store(true, Ordering::Relaxed);
    });
    wait_until("the session went on", || handler.stats().is_ok());
    // A pin by name whose unpin met a lost connection may still be known here, and is given back.
    for n in 0..150 {
        while handler.unpin_kv(n.to_string()).unwrap() == Unpinned::Unpinned {}
    }
    wait_until("no pin is left", || stat(&handler, StatKind::Pins) == 0);
    assert_all_pages_are_there(&handler);
}

/// Over TCP it is asked for on the connection of everybody, who wait no longer than they would for anything else.
#[test]
fn a_region_that_came_too_late_over_tcp_is_given_back() {
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0"]);
    let address = format!("tcp://{}", server.tcp_address()).parse().unwrap();
    let config = config(&server).address(address).stay_on_tcp(true).timeout(Duration::from_millis(200));
    let (handler, observer) = (MaruHandler::connect(config).unwrap(), connect(&server));
    server.pause();
    let error = store(&handler, "chunk").unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    server.resume();
    wait_until("it goes on", || store(&handler, "chunk").is_ok());
    wait_until("there is no region that the handler does not know", || {
        stat(&observer, StatKind::Regions) == 1 && handler.client_stats().own_regions == 1
    });
}
