//! What the operations that are awaited promise: under any executor, with many under way, however they end.

use std::future::Future;
use std::pin::pin;

use std::task::{Context, Poll, Waker};

use std::time::Duration;

use maru_client::{Config, Deleted, Error, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{PAGE, ServerProcess, fill, is_intact, wait_until};
use pollster::block_on;

fn config(server: &ServerProcess) -> Config {
    maru_tests::config(server).region_size(4 << 20)
}

fn connect(server: &ServerProcess) -> MaruHandler {
    MaruHandler::connect(config(server)).unwrap()
}

async fn store(handler: &MaruHandler, key: &str) -> Result<Stored, Error> {
    let mut page = handler.alloc_async(PAGE).await?;
    fill(key, &mut page);
    handler.store_async(key, page).await
}

/// Polls a future so often, then drops it.
fn poll_and_drop<T>(future: impl Future<Output = T>, polls: usize) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
    }
}

#[test]
fn every_operation_works_without_a_runtime() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    block_on(async {
        assert_eq!(store(&handler, "a").await.unwrap(), Stored::Stored);
        assert_eq!(store(&handler, "a").await.unwrap(), Stored::AlreadyExists);
        assert!(handler.exists_async("a").await.unwrap());
        assert_eq!(handler.batch_exists_async(&["a", "b"]).await.unwrap(), [true, false]);
        let chunk = handler.retrieve_async("a").await.unwrap().unwrap();
        assert!(is_intact("a", &chunk));
        let prefix = handler.acquire_async(&["a", "b"]).await.unwrap();
        assert_eq!(prefix.len(), 1);
        assert_eq!(handler.delete_async("a").await.unwrap(), Deleted::Pinned);
        drop((chunk, prefix));
        assert_eq!(handler.pin_kv_async("a").await.unwrap(), Pinned::Pinned);
        assert_eq!(
            handler.batch_pin_kv_async(&["b", "a"]).await.unwrap(),
            [Pinned::NotFound, Pinned::Skipped]
        );
        assert_eq!(handler.unpin_kv_async("a").await.unwrap(), Unpinned::Unpinned);
        assert_eq!(handler.unpin_kv_async("a").await.unwrap(), Unpinned::NotPinned);
        assert_eq!(
            handler.batch_delete_async(&["a", "b"]).await.unwrap(),
            [Deleted::Deleted, Deleted::NotFound]
        );
        assert_eq!(handler.stats_async().await.unwrap().get(StatKind::Entries), 0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_under_way_on_one_connection_and_none_gets_anothers_answer() {
    let server = ServerProcess::start(&["--max-connections-per-instance", "3"]);
    let handler = connect(&server);
    for n in 0..100 {
        store(&handler, &format!("key-{n}")).await.unwrap();
    }
    let tasks = (0..10_000).map(|n| {
        let handler = handler.clone();
        tokio::spawn(async move {
            let key = format!("key-{}", n % 200);
            let chunk = handler.retrieve_async(&key).await.unwrap();
            match chunk {
                Some(chunk) => assert!(n % 200 < 100 && is_intact(&key, &chunk)),
                None => assert!(n % 200 >= 100),
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    wait_until("all guards are released", || handler.stats().unwrap().get(StatKind::Pins) == 0);
}

#[test]
fn small_requests_that_are_made_together_leave_in_one_write() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    block_on(handler.exists_async("a")).unwrap();
    let before = handler.client_stats();
    block_on(async {
        let mut all = (0..64).map(|n| handler.exists_async(format!("key-{n}"))).collect::<Vec<_>>();
        // Each is polled once before any is polled again, as joins do.
        std::future::poll_fn(|context| {
            all.retain_mut(|future| future.as_mut().poll(context).is_pending());
            if all.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    let after = handler.client_stats();
    assert_eq!((after.rpcs - before.rpcs, after.async_writes - before.async_writes), (64, 1));
}

#[test]
fn a_dropped_acquire_leaves_no_pin() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    block_on(store(&handler, "chunk")).unwrap();
    for polls in [0, 1, 2, 3, 50] {
        for _ in 0..200 {
            poll_and_drop(handler.acquire_async(&["chunk"]), polls);
        }
    }
    wait_until("nothing stays pinned", || handler.stats().unwrap().get(StatKind::Pins) == 0);
    assert_eq!(block_on(handler.delete_async("chunk")).unwrap(), Deleted::Deleted);
}

#[test]
fn a_dropped_request_keeps_no_release_back() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    block_on(store(&handler, "chunk")).unwrap();
    for polls in 0..4 {
        drop(handler.acquire(&["chunk"]).unwrap());
        // Takes the release along, and nothing that comes later sends what is left behind.
        poll_and_drop(handler.exists_async("chunk"), polls);
        wait_until("nothing stays pinned", || handler.stats().unwrap().get(StatKind::Pins) == 0);
    }
}

#[test]
fn a_dropped_store_loses_no_page() {
    let server = ServerProcess::start(&[]);
    let handler =
        MaruHandler::connect(config(&server).auto_expand(false).region_size(64 * PAGE as u64)).unwrap();
    for polls in [0, 1, 2, 3, 50] {
        for n in 0..10 {
            let key = format!("{polls}-{n}");
            let mut page = block_on(handler.alloc_async(PAGE)).unwrap();
            fill(&key, &mut page);
            poll_and_drop(handler.store_async(&key, page), polls);
        }
    }
    block_on(handler.exists_async("the answers to all before have come")).unwrap();
    let stored = usize::try_from(handler.stats().unwrap().get(StatKind::Entries)).unwrap();
    wait_until("every page is free or stored", || {
        usize::try_from(handler.client_stats().free_pages).unwrap() + stored == 64
    });
    for polls in [0, 1, 2, 3, 50] {
        for n in 0..10 {
            let key = format!("{polls}-{n}");
            if let Some(chunk) = handler.retrieve(&key).unwrap() {
                assert!(is_intact(&key, &chunk));
            }
        }
    }
}

#[tokio::test]
async fn requests_given_up_in_flight_never_answer_others() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    store(&handler, "yes").await.unwrap();
    for n in 0..10_000u32 {
        let (given_up, kept) = if n % 2 == 0 { ("yes", "no") } else { ("no", "yes") };
        poll_and_drop(handler.exists_async(given_up), 2);
        if n % 10 == 0 {
            assert_eq!(handler.exists_async(kept).await.unwrap(), kept == "yes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timed_out_request_says_so_and_the_connection_goes_on() {
    let server = ServerProcess::start(&[]);
    let handler = MaruHandler::connect(config(&server).timeout(Duration::from_millis(200))).unwrap();
    store(&handler, "chunk").await.unwrap();
    server.pause();
    let refused = handler.acquire_async(&["chunk"]).await.unwrap_err();
    assert!(matches!(refused, Error::Timeout { .. }), "{refused}");
    server.resume();
    assert!(handler.exists_async("chunk").await.unwrap());
    let watcher = connect(&server);
    wait_until("the late pin is released", || watcher.stats().unwrap().get(StatKind::Pins) == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_fails_everybody_who_waits() {
    let mut server = ServerProcess::start(&[]);
    let handler = connect(&server);
    handler.exists_async("a").await.unwrap();
    server.pause();
    let waiting = (0..100).map(|_| tokio::spawn(handler.exists_async("a"))).collect::<Vec<_>>();
    tokio::task::yield_now().await;
    server.kill();
    for task in waiting {
        assert!(matches!(task.await.unwrap(), Err(Error::ConnectionLost)));
    }
    assert!(matches!(handler.exists_async("a").await, Err(Error::ConnectionLost)));
}

#[test]
fn a_batch_larger_than_the_sockets_buffers_goes_through() {
    let server = ServerProcess::start(&[]);
    let handler = connect(&server);
    let keys = (0..60_000).map(|n| format!("key-{n}")).collect::<Vec<_>>();
    let found = block_on(handler.batch_exists_async(&keys)).unwrap();
    assert_eq!(found.len(), 60_000);
    block_on(async {
        let all = (0..20).map(|_| handler.batch_exists_async(&keys[..16_000])).collect::<Vec<_>>();
        for one in all {
            assert!(one.await.unwrap().iter().all(|found| !found));
        }
    });
}
