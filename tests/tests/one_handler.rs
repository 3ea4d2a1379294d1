//! What one handler promises to the threads that share it, also while the server is slow or dies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maru_client::{
    Config, Deleted, Error, MaruHandler, PageMut, PageState, Pinned, StatKind, Stored, Unpinned,
};
use maru_tests::{PAGE, ServerProcess, config, connect, is_intact, stat, store, wait_until};

fn pins(handler: &MaruHandler) -> u64 {
    stat(handler, StatKind::Pins)
}

#[test]
fn many_threads_use_one_connection_and_get_their_own_answers() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let handler = handler.clone();
            scope.spawn(move || {
                for n in 0..25 {
                    let key = format!("{thread}-{n}");
                    assert!(!handler.exists(&key).unwrap());
                    assert_eq!(store(&handler, &key).unwrap(), Stored::Stored);
                    let chunk = handler.retrieve(&key).unwrap().expect("it was stored just now");
                    assert!(is_intact(&key, &chunk));
                    assert_eq!(handler.delete(&key).unwrap(), Deleted::Pinned);
                    drop(chunk);
                    assert_eq!(handler.delete(&key).unwrap(), Deleted::Deleted);
                }
            });
        }
    });
    let stats = handler.stats().unwrap();
    assert_eq!((stats.get(StatKind::Entries), stats.get(StatKind::Pins)), (0, 0));
    assert_eq!(handler.client_stats().own_regions, 1, "deleted pages were taken back");
}

#[test]
fn pages_come_lowest_first_and_go_back_when_dropped() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let pages = [(); 3].map(|()| handler.alloc(10).unwrap());
    assert_eq!(pages.each_ref().map(PageMut::page_index), [0, 1, 2]);
    let [first, second, third] = pages;
    drop(second);
    assert_eq!(handler.alloc(10).unwrap().page_index(), 1);
    drop((first, third));
    assert_eq!(handler.alloc(10).unwrap().page_index(), 0);
}

/// The original needed dummy handles for this, and searched all keys.
#[test]
fn free_by_location_takes_detached_pages_only() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let location = handler.alloc(10).unwrap().detach();
    let held = handler.alloc(10).unwrap().location();
    let free = |location: maru_client::PageLocation| {
        handler.free_by_location(location.region_id, location.page_index)
    };
    let refused = |result: Result<(), Error>| match result {
        Err(Error::WrongPageState { state, .. }) => state,
        other => panic!("{other:?}"),
    };
    free(location).unwrap();
    assert_eq!(refused(free(location)), PageState::Free, "a double free");
    let _ = held;

    store(&handler, "chunk").unwrap();
    let stored = handler.retrieve("chunk").unwrap().unwrap();
    let page = maru_client::PageLocation { region_id: stored.region_id(), page_index: stored.page_index() };
    assert_eq!(refused(free(page)), PageState::Stored, "a stored page can't be freed");
    assert!(matches!(handler.free_by_location(999, 0), Err(Error::RegionNotFound { region_id: 999 })));

    let again = handler.alloc(10).unwrap();
    let location = again.detach();
    let mut page = handler.attach(location, 20).unwrap();
    page.fill(7);
    assert!(handler.attach(location, 20).is_err(), "it is held");
}

#[test]
fn a_guard_of_a_chunk_pinned_by_name_has_a_pin_of_its_own() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let other = connect(&server);
    store(&handler, "chunk").unwrap();
    assert_eq!(handler.pin_kv("chunk").unwrap(), Pinned::Pinned);
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    assert_eq!(handler.unpin_kv("chunk").unwrap(), Unpinned::Unpinned);
    assert_eq!(handler.unpin_kv("chunk").unwrap(), Unpinned::NotPinned);
    assert_eq!(other.delete("chunk").unwrap(), Deleted::Pinned, "the guard keeps the pin");
    assert!(is_intact("chunk", &guard));
    drop(guard);
    wait_until("the pin is released", || pins(&other) == 0);
    assert_eq!(other.delete("chunk").unwrap(), Deleted::Deleted);
}

#[test]
fn unpinning_by_name_never_takes_a_guards_pin() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    assert_eq!(handler.unpin_kv("chunk").unwrap(), Unpinned::NotPinned);
    assert_eq!(handler.delete("chunk").unwrap(), Deleted::Pinned);
    assert!(is_intact("chunk", &guard));
}

#[test]
fn a_guard_taken_out_of_a_prefix_and_its_clones_keep_their_chunk_alone() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    for key in ["a", "b", "c"] {
        store(&handler, key).unwrap();
    }
    let prefix = handler.acquire(&["a", "b", "c"]).unwrap();
    let b = prefix.get(1).unwrap();
    let clone = b.clone();
    drop((prefix, b));
    wait_until("the others are released", || pins(&handler) == 1);
    assert!(is_intact("b", &clone));
    assert_eq!(
        handler.batch_delete(&["a", "b", "c"]).unwrap(),
        [Deleted::Deleted, Deleted::Pinned, Deleted::Deleted]
    );
    drop(clone);
    assert_eq!(handler.delete("b").unwrap(), Deleted::Deleted, "the release goes ahead of the delete");
}

#[test]
fn guards_outlive_the_handler_that_gave_them() {
    let server = ServerProcess::start(&[]);
    let (writer, reader) = (connect(&server), connect(&server));
    store(&writer, "chunk").unwrap();
    let guard = reader.retrieve("chunk").unwrap().unwrap();
    reader.close();
    drop(reader);
    assert!(is_intact("chunk", &guard));
    assert_eq!(writer.delete("chunk").unwrap(), Deleted::Pinned);
    drop(guard);
    wait_until("the last guard ends the instance", || writer.stats().unwrap().get(StatKind::Pins) == 0);
}

#[test]
fn region_callback_fires_exactly_once_per_region() {
    let server = ServerProcess::start(&["--pool-size", "64MiB"]);
    let handler = MaruHandler::connect(config(&server).region_size(PAGE as u64).eager(true)).unwrap();
    let seen = Arc::<Mutex<Vec<u32>>>::default();
    let log = Arc::clone(&seen);
    handler.on_region_added(move |added| log.lock().unwrap().push(added.region_id));
    let pages = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let page = handler.alloc(10).unwrap();
                    pages.lock().unwrap().push(page);
                }
            });
        }
    });
    let mut ids = seen.lock().unwrap().clone();
    ids.sort_unstable();
    assert_eq!(ids, handler.owned_regions());
    assert_eq!(ids.len(), 16);
}

/// Two threads that run out of pages at once share the region that one of them gets.
#[test]
fn threads_that_run_out_together_expand_once() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let pages = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| pages.lock().unwrap().push(handler.alloc(10).unwrap()));
        }
    });
    assert_eq!(handler.client_stats().own_regions, 1);
}

/// The original called it a miss, and left the pins.
#[test]
fn pins_of_a_timed_out_acquire_are_released_and_the_connection_goes_on() {
    let server = ServerProcess::start(&[]);
    let handler = MaruHandler::connect(config(&server).timeout(Duration::from_millis(200))).unwrap();
    let watcher = connect(&server);
    store(&handler, "chunk").unwrap();
    server.pause();
    let refused = handler.acquire(&["chunk"]).unwrap_err();
    assert!(matches!(refused, Error::Timeout { .. }), "{refused}");
    assert!(matches!(handler.exists("chunk"), Err(Error::Timeout { .. })), "never a miss");
    server.resume();
    assert!(handler.exists("chunk").unwrap(), "the connection goes on");
    wait_until("what was pinned for nobody is released", || pins(&watcher) == 0);
    assert_eq!(handler.delete("chunk").unwrap(), Deleted::Deleted);
}

/// The original reused the page, and the key then had another chunk's bytes.
#[test]
fn a_page_whose_store_timed_out_is_not_used_until_the_server_has_answered() {
    let server = ServerProcess::start(&[]);
    let handler = MaruHandler::connect(
        config(&server)
            .region_size(2 * PAGE as u64)
            .auto_expand(false)
            .eager(true)
            .timeout(Duration::from_millis(200)),
    )
    .unwrap();
    server.pause();
    assert!(matches!(store(&handler, "late"), Err(Error::Timeout { .. })));
    let next = handler.alloc(PAGE).unwrap();
    assert_eq!(next.page_index(), 1, "the page in doubt is not handed out");
    server.resume();
    wait_until("the late store is there", || handler.exists("late").is_ok_and(|exists| exists));
    let chunk = handler.retrieve("late").unwrap().unwrap();
    assert!(is_intact("late", &chunk));
    assert_eq!(chunk.page_index(), 0);
}

/// The original answered "miss", and stores said true.
#[test]
fn a_dead_server_is_an_error_and_never_a_miss() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    server.kill();
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert!(matches!(handler.exists("chunk"), Err(Error::ConnectionLost)));
                assert!(matches!(handler.batch_exists(&["chunk"; 3]), Err(Error::ConnectionLost)));
                failed.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(failed.into_inner(), 4);
    assert!(matches!(store(&handler, "other"), Err(Error::ConnectionLost)));
    assert!(is_intact("chunk", &guard), "what is mapped stays readable");
}

/// Garbage in, typed error out: the peer here is no maru server at all.
#[test]
fn a_peer_that_is_no_maru_server_is_a_protocol_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the client hangs up, however it does.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let address = path.to_str().unwrap().parse().unwrap();
    let refused = MaruHandler::connect(Config::new().address(address)).unwrap_err();
    assert!(matches!(refused, Error::Protocol(_)), "{refused}");
    peer.join().unwrap();
}

/// Held pages of a handler that is gone go back with its region.
#[test]
fn the_last_handle_gives_everything_back() {
    let server = ServerProcess::start(&[]);
    let watcher = connect(&server);
    let handler = connect(&server);
    let page = handler.alloc(10).unwrap();
    drop(handler);
    assert_eq!(watcher.stats().unwrap().get(StatKind::Regions), 1, "the page is still written into");
    drop(page);
    wait_until("the region is given back", || watcher.stats().unwrap().get(StatKind::Regions) == 0);
}

/// For consumers that refuse memory which they can't write.
#[test]
fn regions_of_others_can_be_mapped_copy_on_write_and_then_a_write_stays_here() {
    let server = ServerProcess::start(&[]);
    let owner = connect(&server);
    let reader = MaruHandler::connect(config(&server).copy_on_write(true)).unwrap();
    store(&owner, "chunk").unwrap();
    let chunk = reader.retrieve("chunk").unwrap().unwrap();
    let memory = reader.region_memory(chunk.region_id()).unwrap();
    assert!(memory.is_writable() && !memory.is_own());
    assert_eq!(memory.len(), memory.pages() as usize * memory.page_size());
    let last = memory.as_ptr().wrapping_add(memory.len() - 1);
    // SAFETY: the byte is inside the mapping, and nobody reads it through a reference.
    unsafe { last.write_volatile(7) };
    let own = owner.map_region(chunk.region_id()).unwrap().unwrap();
    assert!(own.is_own());
    let last = own.as_ptr().wrapping_add(own.len() - 1);
    // SAFETY: the byte is inside the mapping.
    assert_eq!(unsafe { last.read_volatile() }, 0);
    assert!(is_intact("chunk", &chunk));

    let other = connect(&server);
    assert!(other.region_memory(chunk.region_id()).is_none());
    assert!(!other.map_region(chunk.region_id()).unwrap().unwrap().is_writable());
    assert!(other.map_region(4711).unwrap().is_none());
}

#[test]
fn a_weak_reference_leads_to_a_chunk_as_long_as_a_guard_holds_it() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    let weak = guard.downgrade();
    let second = weak.upgrade().unwrap();
    assert_eq!(pins(&handler), 1, "a guard more is no request");
    drop(guard);
    assert!(weak.is_held());
    assert_eq!(handler.delete("chunk").unwrap(), Deleted::Pinned);
    assert!(is_intact("chunk", &second));
    drop(second);
    assert!(!weak.is_held() && weak.upgrade().is_none());
    wait_until("the pin is released", || pins(&handler) == 0);
}
