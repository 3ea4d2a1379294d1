//! No fault of a client costs a byte: what instances leave behind comes back, and nothing that is read goes away.

use std::time::{Duration, Instant};

use maru_client::{Deleted, Error, MaruHandler, Pinned, StatKind, Stored, Unpinned};
use maru_tests::{
    ClientConfig, ClientProcess, Command, PAGE, Reply, ServerProcess, config, connect, fill, is_intact, stat,
    store, wait_until,
};

fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n}")).collect()
}

#[test]
fn a_pin_by_name_runs_out_is_counted_and_never_takes_a_guards_pin_along() {
    let server = ServerProcess::start(&["--pin-ttl", "300ms"]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    assert_eq!(handler.batch_pin_kv(&["chunk", "chunk"]).unwrap(), [Pinned::Pinned; 2]);
    let guard = handler.retrieve("chunk").unwrap().unwrap();
    let began = Instant::now();
    wait_until("they run out", || stat(&handler, StatKind::PinsExpired) == 2);
    assert!(began.elapsed() >= Duration::from_millis(250), "not before their time");
    assert_eq!(stat(&handler, StatKind::Pins), 1);
    assert_eq!(handler.unpin_kv("chunk").unwrap(), Unpinned::NotPinned);
    assert_eq!(handler.delete("chunk").unwrap(), Deleted::Pinned);
    assert!(is_intact("chunk", &guard));
    drop(guard);
    wait_until("the guard's pin is released", || handler.delete("chunk").unwrap() == Deleted::Deleted);
}

#[test]
fn pins_are_told_per_instance_with_the_age_of_the_oldest() {
    let server = ServerProcess::start(&[]);
    let (reader, other) = (connect(&server), connect(&server));
    store(&other, "chunk").unwrap();
    assert_eq!(reader.pin_kv("chunk").unwrap(), Pinned::Pinned);
    let _guard = reader.retrieve("chunk").unwrap().unwrap();
    wait_until("the pin is a second old", || stat(&other, StatKind::OldestPinS) >= 1);
    let usage = other.usage().unwrap();
    let of = |handler: &MaruHandler| {
        let record = usage.iter().find(|usage| usage.instance.get() == handler.instance_number()).unwrap();
        (record.pins.get(), record.named_pins.get(), record.oldest_pin_s.get() >= 1)
    };
    assert_eq!((of(&reader), of(&other)), ((2, 1, true), (0, 0, false)));
}

/// The original's pool stayed full for ever, and nobody could connect.
#[test]
fn a_full_pool_gives_a_newcomer_the_memory_of_the_dead_and_keeps_what_is_read() {
    let server = ServerProcess::start(&["--grace", "50ms", "--pool-size", "8MiB"]);
    let config = |name: &str, size: u64| ClientConfig {
        region_size: size,
        auto_expand: false,
        eager: true,
        ..ClientConfig::new(&server.socket(), name)
    };
    let mut reader = ClientProcess::connect(&server, "reader");
    for (name, held) in [("held", true), ("cold", false)] {
        let mut writer = ClientProcess::connect_with(config(name, 4 << 20));
        writer.each(Command::Store(keys(name, 5), PAGE));
        if held {
            assert_eq!(reader.count(Command::Acquire(keys(name, 5))), 5);
        }
        writer.kill();
    }
    wait_until("both are orphans", || reader.stats().orphans == 2);
    let mut newcomer = ClientProcess::connect_with(config("newcomer", 4 << 20));
    assert_eq!(newcomer.each(Command::Store(keys("new", 5), PAGE)), ["stored"; 5]);
    assert_eq!(newcomer.count(Command::Read(keys("cold", 5))), 0, "the cold ones made room");
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done, "what is held did not");

    let mut late = ClientProcess::connect(&server, "late");
    let refused = late.each(Command::Store(keys("late", 1), PAGE));
    assert!(refused[0].contains("no") && refused[0] != "stored", "all that is left is read: {}", refused[0]);
    assert_eq!(reader.call(Command::ReleaseHeld), Reply::Done);
    wait_until("what was held makes room as well", || {
        late.each(Command::Store(keys("late", 1), PAGE)) == ["stored"]
    });
}

#[test]
fn with_everything_pinned_an_allocation_says_so_at_once() {
    let server = ServerProcess::start(&["--pool-size", "2MiB"]);
    // One region takes the whole pool.
    let handler = MaruHandler::connect(config(&server).region_size(2 << 20)).unwrap();
    let chunks = keys("chunk", 512);
    for key in &chunks {
        assert_eq!(store(&handler, key).unwrap(), Stored::Stored);
    }
    let prefix = handler.acquire(&chunks).unwrap();
    assert_eq!(prefix.len(), 512);
    let (began, rpcs) = (Instant::now(), handler.client_stats().rpcs);
    for _ in 0..100 {
        assert!(matches!(handler.alloc(PAGE), Err(Error::PoolExhausted)));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "it never waits");
    assert!(handler.client_stats().rpcs - rpcs <= 400, "nor asks again and again");
    drop(prefix);
    wait_until("there is room again", || handler.alloc(PAGE).is_ok());
}

/// What one thread is handed back is not taken by another before it has it.
#[test]
fn threads_that_share_few_pages_do_not_find_the_pool_exhausted() {
    let server = ServerProcess::start(&[]);
    let handler =
        MaruHandler::connect(config(&server).region_size(8 * PAGE as u64).auto_expand(false)).unwrap();
    let other = connect(&server);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (handler, other) = (&handler, &other);
            scope.spawn(move || {
                for n in 0..1000 {
                    let key = format!("{thread}-{n}");
                    store(handler, &key).unwrap();
                    if n % 2 == 0 {
                        other.delete(&key).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn chains_are_evicted_from_their_tails_and_what_is_used_stays() {
    let server = ServerProcess::start(&[]);
    let handler =
        MaruHandler::connect(config(&server).region_size(64 * PAGE as u64).auto_expand(false)).unwrap();
    let store_chain = |name: &str| {
        let keys = keys(name, 8);
        let found = handler.acquire(&keys).unwrap().len();
        let page = |key: &String| {
            let mut page = handler.alloc(PAGE).unwrap();
            fill(key, &mut page);
            page
        };
        let missing = &keys[found..];
        handler.batch_store(missing, missing.iter().map(page).collect()).unwrap();
        found
    };
    // Room for eight chains; one of them is used again and again.
    for n in 0..40 {
        store_chain(&format!("once-{n}"));
        assert_eq!(store_chain("often"), if n == 0 { 0 } else { 8 }, "{n}");
    }
    let stats = handler.stats().unwrap();
    assert!(stats.get(StatKind::Evictions) >= 8 * 33, "{}", stats.get(StatKind::Evictions));
    // What is left of a chain is always its head.
    for n in 0..40 {
        let there = handler.batch_exists(&keys(&format!("once-{n}"), 8)).unwrap();
        let head = there.iter().take_while(|exists| **exists).count();
        assert_eq!(there.iter().filter(|exists| **exists).count(), head, "once-{n}: {there:?}");
    }
}
