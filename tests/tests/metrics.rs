//! What an operator sees of a server: its metrics move as what they stand for does, and to look costs nobody anything.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use maru_client::{Deleted, MaruHandler, Opcode, Pinned, StatKind};
use maru_tests::{
    ClientProcess, Command, PAGE, Reply, Scrape, ServerProcess, config, connect, get, stat, store, wait_until,
};

const METRICS: &[&str] = &["--metrics-addr", "127.0.0.1:0"];

fn start(options: &[&str]) -> ServerProcess {
    ServerProcess::start(&[METRICS, options].concat())
}

#[test]
fn what_requests_do_is_counted_by_operation_and_status() {
    let server = start(&[]);
    let handler = connect(&server);
    store(&handler, "here").unwrap();
    store(&handler, "here").unwrap();
    assert!(!handler.exists("nowhere").unwrap());
    assert_eq!(handler.acquire(&["here", "nowhere", "nowhere else"]).unwrap().len(), 1);
    assert_eq!(handler.pin_kv("here").unwrap(), Pinned::Pinned);
    assert_eq!(handler.delete("here").unwrap(), Deleted::Pinned);

    let seen = server.metrics();
    for (name, labels, expected) in [
        ("maru_frames_total", [("operation", "REGISTER_KV"), ("status", "ok")], 2.0),
        ("maru_records_total", [("operation", "REGISTER_KV"), ("status", "exists")], 1.0),
        ("maru_records_total", [("operation", "EXISTS_KV"), ("status", "not_found")], 1.0),
        ("maru_records_total", [("operation", "BATCH_LOOKUP_KV"), ("status", "ok")], 1.0),
        ("maru_records_total", [("operation", "BATCH_LOOKUP_KV"), ("status", "skipped")], 1.0),
        ("maru_records_total", [("operation", "DELETE_KV"), ("status", "pinned")], 1.0),
    ] {
        assert_eq!(seen.sum(name, &labels), expected, "{name} {labels:?}");
    }
    assert_eq!(seen.sum("maru_lookups_total", &[("result", "hit")]), 2.0);
    assert_eq!(seen.sum("maru_lookups_total", &[("result", "miss")]), 1.0);
    assert_eq!(seen.sum("maru_entries", &[]), 1.0);
    assert_eq!(seen.sum("maru_entry_bytes", &[]), PAGE as f64);
    assert_eq!(seen.sum("maru_region_bytes", &[]), f64::from(1 << 20));
    assert_eq!(seen.sum("maru_pool_size_bytes", &[]), f64::from(16 << 20));
    let pool = server.pool().canonicalize().unwrap();
    let of_pool = [("pool", pool.to_str().unwrap())];
    assert_eq!(seen.sum("maru_pool_entries", &of_pool), 1.0);
    assert_eq!(seen.sum("maru_pool_entry_bytes", &of_pool), PAGE as f64);
    assert_eq!(seen.sum("maru_pool_free_bytes", &[]), f64::from(14 << 20));
    assert_eq!(
        seen.sum("maru_instance_pins", &[("instance_id", handler.instance_id()), ("kind", "name")]),
        1.0
    );
    assert_eq!(seen.sum("maru_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(seen.sum("maru_epoch", &[]), 1.0);
    assert!(seen.sum("maru_uptime_seconds", &[]) > 0.0);
}

/// What a scraper takes for granted of the format, over everything that is there.
#[test]
fn every_series_has_a_type_a_name_by_the_rules_and_is_there_once() {
    let server = start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let seen = server.metrics();
    assert!(seen.types.len() > 35, "{:?}", seen.types);
    for (name, kind) in &seen.types {
        assert!(name.starts_with("maru_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(!name.contains("_ms") && !name.contains("_ns"), "{name} is in base units");
    }
    let mut series = Vec::new();
    for sample in &seen.samples {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.name.strip_suffix(suffix));
        let is_known = seen.types.contains_key(&sample.name)
            || base.is_some_and(|base| seen.types.get(base).is_some_and(|kind| kind == "histogram"));
        assert!(is_known, "{sample:?} has a type");
        series.push((&sample.name, &sample.labels));
    }
    let all = series.len();
    series.sort();
    series.dedup();
    assert_eq!(series.len(), all);
}

#[test]
fn durations_are_of_every_request_and_agree_with_what_clients_are_told() {
    let server = start(&[]);
    let handler = connect(&server);
    for _ in 0..100 {
        handler.exists("chunk").unwrap();
    }
    let (seen, told) = (server.metrics(), handler.latencies().unwrap().of(Opcode::ExistsKv));
    let labels = [("operation", "EXISTS_KV")];
    assert_eq!(seen.sum("maru_request_duration_seconds_count", &labels), 100.0);
    assert_eq!(told.count(), 100);
    let sum = seen.sum("maru_request_duration_seconds_sum", &labels);
    assert!(sum > 0.0 && sum < 1.0, "{sum}");
    let buckets = seen.samples.iter().filter(|sample| {
        sample.name == "maru_request_duration_seconds_bucket" && sample.labels["operation"] == "EXISTS_KV"
    });
    let counts = buckets.map(|sample| sample.value).collect::<Vec<_>>();
    assert!(counts.is_sorted() && counts.last() == Some(&100.0), "{counts:?}");
    let (median, all) = (told.percentile(50.0).unwrap(), told.percentile(100.0).unwrap());
    assert!(median <= all && all < Duration::from_secs(1), "{median:?} {all:?}");
}

/// The pins of a reader that is killed go once its grace period is over, the regions of a writer become orphans.
#[test]
fn a_client_that_is_killed_is_seen_to_go() {
    let server = start(&["--grace", "300ms"]);
    let watcher = connect(&server);
    store(&watcher, "pinned").unwrap();
    let mut victim = ClientProcess::connect(&server, "victim \"0\"");
    assert_eq!(victim.each(Command::Store(vec!["left".to_owned()], PAGE)), ["stored"]);
    assert_eq!(victim.call(Command::Acquire(vec!["pinned".to_owned()])), Reply::Count(1));
    let of_victim = [("instance_id", "victim \"0\"")];
    let before = server.metrics();
    assert_eq!(before.sum("maru_pins", &[]), 1.0);
    assert_eq!(before.sum("maru_instance_pins", &of_victim), 1.0);
    assert_eq!(before.sum("maru_instance_regions", &of_victim), 1.0);
    assert_eq!((before.sum("maru_orphan_regions", &[]), before.sum("maru_instances", &[])), (0.0, 2.0));

    victim.kill();
    let within = server.metrics();
    assert_eq!(within.sum("maru_pins", &[]), 1.0, "it may come back");
    wait_until("its grace period is over", || {
        server.metrics().sum("maru_instances_expired_total", &[]) == 1.0
    });
    let after = server.metrics();
    assert_eq!((after.sum("maru_pins", &[]), after.sum("maru_orphan_regions", &[])), (0.0, 1.0));
    assert_eq!(after.sum("maru_instances", &[]), 1.0);
    assert!(!after.samples.iter().any(|sample| sample.labels.values().any(|it| it == "victim \"0\"")));
    assert_eq!(after.sum("maru_entries", &[]), 2.0, "its chunk stays");
}

#[test]
fn what_is_evicted_and_what_runs_out_is_told_with_its_reason() {
    let server = start(&["--pin-ttl", "200ms", "--pool-size", "4MiB"]);
    let handler =
        MaruHandler::connect(config(&server).region_size(8 * PAGE as u64).auto_expand(false)).unwrap();
    for n in 0..20 {
        store(&handler, &format!("chunk-{n}")).unwrap();
    }
    assert_eq!(handler.pin_kv("chunk-19").unwrap(), Pinned::Pinned);
    let (seen, told) = (server.metrics(), stat(&handler, StatKind::Evictions));
    assert!(told >= 12, "8 of 20 chunks have room: {told}");
    assert_eq!(seen.sum("maru_evictions_total", &[("reason", "owner")]), told as f64);
    assert_eq!(seen.sum("maru_evictions_total", &[("reason", "orphan")]), 0.0);
    assert_eq!(seen.sum("maru_reclaimed_pages_total", &[]), told as f64);
    wait_until("the pin runs out", || server.metrics().sum("maru_pins_expired_total", &[]) == 1.0);
}

#[test]
fn a_restart_is_seen() {
    let mut server = start(&[]);
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    server.kill();
    server.restart(METRICS);
    let seen = server.metrics();
    assert_eq!((seen.sum("maru_epoch", &[]), seen.sum("maru_restored_entries", &[])), (2.0, 1.0));
}

/// Scrapers that send nothing, or half a request, or read nothing, and one that asks without end: none of them holds up a
/// client, or another scraper.
#[test]
fn a_scraper_that_hangs_delays_nobody() {
    let server = start(&[]);
    let address = server.metrics_address();
    let handler = connect(&server);
    store(&handler, "chunk").unwrap();
    let mut hanging = Vec::new();
    for n in 0..20 {
        let mut stream = TcpStream::connect(&address).unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"GET /metrics HTT").unwrap(),
            _ => write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap(),
        }
        hanging.push(stream);
    }
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        assert!(handler.exists("chunk").unwrap());
        slowest = slowest.max(asked.elapsed());
        assert_eq!(server.metrics().sum("maru_entries", &[]), 1.0);
    }
    // Far above what a busy machine adds, far below the time after which those that hang are closed.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // And they are.
    let closed = hanging.first_mut().unwrap().read(&mut [0; 1]);
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

#[test]
fn a_scraper_that_comes_while_the_server_works_sees_all_of_it() {
    let server = start(&[]);
    let workers = (0..4).map(|n| {
        let handler = connect(&server);
        std::thread::spawn(move || {
            for round in 0..200 {
                store(&handler, &format!("{n}-{round}")).unwrap();
                assert!(handler.exists(format!("{n}-{round}").as_str()).unwrap());
            }
        })
    });
    let workers = workers.collect::<Vec<_>>();
    let mut last = 0.0;
    while !workers.iter().all(std::thread::JoinHandle::is_finished) {
        let frames = server.metrics().sum("maru_frames_total", &[]);
        assert!(frames >= last, "a counter never goes back");
        last = frames;
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let seen = server.metrics();
    assert_eq!(seen.sum("maru_frames_total", &[("operation", "EXISTS_KV"), ("status", "ok")]), 800.0);
    assert_eq!(seen.sum("maru_request_duration_seconds_count", &[("operation", "REGISTER_KV")]), 800.0);
}

#[test]
fn an_address_that_is_taken_is_said_and_tried_again_while_the_server_serves() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = ServerProcess::start(&["--metrics-addr", &address]);
    assert!(server.said_at_start("no metrics"));
    let handler = connect(&server);
    assert_eq!(stat(&handler, StatKind::Instances), 1);
    drop(taken);
    server.wait_for_log("metrics are to be had at last");
    assert_eq!(Scrape::of(&address).sum("maru_instances", &[]), 1.0);
}

#[test]
fn there_is_nothing_else_to_be_had() {
    let server = start(&[]);
    let address = server.metrics_address();
    assert!(get(&address, "/").starts_with("HTTP/1.1 404"));
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[test]
fn without_the_option_nothing_is_listened_on() {
    let server = ServerProcess::start(&[]);
    assert!(!server.said_at_start("metrics"));
}
