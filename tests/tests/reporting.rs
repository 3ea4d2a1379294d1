//! How long calls take as their callers see it: shown of who reports it, of nobody else, and each call once whatever happens.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use maru_client::{ClientOperation, Latencies, MaruHandler, Opcode};
use maru_tests::{
    ClientConfig, ClientProcess, Command, PAGE, ServerProcess, config, connect, sever, wait_until,
};
use pollster::block_on;

const METRICS: &[&str] = &["--metrics-addr", "127.0.0.1:0"];

fn reporting(server: &ServerProcess) -> MaruHandler {
    MaruHandler::connect(config(server).report_stats(true)).unwrap()
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("chunk-{n}")).collect()
}

/// What the server knows of the calls of an instance.
fn known(watcher: &MaruHandler, instance: u32, operation: ClientOperation) -> Latencies {
    watcher.reports().unwrap().of(instance, operation)
}

/// The number of the instance of a name.
fn number(watcher: &MaruHandler, name: &str) -> u32 {
    let usage = watcher.usage().unwrap();
    let usage = usage.iter().find(|usage| usage.instance_id.text() == Ok(name));
    usage.expect("it is connected").instance.get()
}

#[test]
fn who_reports_is_shown_with_every_call_and_who_does_not_is_not() {
    let server = ServerProcess::start(METRICS);
    let watcher = connect(&server);
    let client = |report_stats, name| {
        ClientProcess::connect_with(ClientConfig {
            report_stats,
            ..ClientConfig::new(&server.socket(), name)
        })
    };
    let (mut reporter, mut silent) = (client(true, "reporter"), client(false, "silent"));
    for client in [&mut reporter, &mut silent] {
        client.each(Command::Store(keys(3), PAGE));
        client.each(Command::Exists(keys(20)));
        client.count(Command::Acquire(keys(3)));
        client.count(Command::Acquire(keys(3)));
        client.each(Command::Pin(keys(1)));
        client.each(Command::Unpin(keys(1)));
        client.each(Command::BatchDelete(keys(3)));
    }
    let instance = number(&watcher, "reporter");
    wait_until("it reports", || known(&watcher, instance, ClientOperation::Delete).count() > 0);

    // A batch is one call.
    let expected = [
        (ClientOperation::Alloc, 3),
        (ClientOperation::Store, 3),
        (ClientOperation::Acquire, 2),
        (ClientOperation::Retrieve, 0),
        (ClientOperation::Exists, 1),
        (ClientOperation::Pin, 1),
        (ClientOperation::Unpin, 1),
        (ClientOperation::Delete, 1),
    ];
    let (reports, metrics) = (watcher.reports().unwrap(), server.metrics());
    for (operation, calls) in expected {
        assert_eq!(reports.of(instance, operation).count(), calls, "{operation:?}");
        let labels = [("instance_id", "reporter"), ("operation", operation.name())];
        let counted = metrics.sum("maru_client_call_duration_seconds_count", &labels);
        assert_eq!(counted, calls as f64, "{operation:?}");
        let sum = metrics.sum("maru_client_call_duration_seconds_sum", &labels);
        assert_eq!(sum > 0.0, calls > 0, "{operation:?} took {sum} s");
    }
    assert_eq!(reports.all_of(instance).count(), 12);
    let (half, all) = (reports.all_of(instance).percentile(50.0), reports.all_of(instance).percentile(100.0));
    assert!(half.is_some() && half <= all, "{half:?} {all:?}");
    // What the server measures itself is less than what its callers do.
    let (called, served) = (reports.of(instance, ClientOperation::Exists), watcher.latencies().unwrap());
    assert!(called.percentile(100.0) >= served.of(Opcode::BatchExistsKv).percentile(0.0));

    assert_eq!(reports.instances(), [instance]);
    assert_eq!(metrics.sum("maru_client_call_duration_seconds_count", &[("instance_id", "silent")]), 0.0);
    assert_eq!(
        metrics.sum("maru_frames_total", &[("operation", "REPORT_STATS"), ("status", "ok")]),
        watcher.stats().unwrap().frames(Opcode::ReportStats) as f64
    );
}

#[test]
fn awaited_calls_count_and_those_that_were_given_up_do_not() {
    let server = ServerProcess::start(&[]);
    let (handler, watcher) = (reporting(&server), connect(&server));
    block_on(async {
        let mut page = handler.alloc_async(PAGE).await.unwrap();
        page.fill(7);
        handler.store_async("chunk", page).await.unwrap();
        assert!(handler.retrieve_async("chunk").await.unwrap().is_some());
        for _ in 0..4 {
            assert!(handler.exists_async("chunk").await.unwrap());
        }
        handler.delete_async("chunk").await.unwrap();
    });
    let mut given_up = pin!(handler.exists_async("chunk"));
    assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    given_up.set(handler.exists_async("chunk"));

    let instance = handler.instance_number();
    wait_until("it reports", || known(&watcher, instance, ClientOperation::Delete).count() > 0);
    let reports = watcher.reports().unwrap();
    let counts = ClientOperation::ALL.iter().map(|operation| reports.of(instance, *operation).count());
    assert_eq!(counts.collect::<Vec<_>>(), [1, 1, 0, 1, 4, 0, 0, 1]);
}

#[test]
fn figures_go_with_their_instance() {
    let server = ServerProcess::start(&[METRICS, &["--grace", "300ms"]].concat());
    let watcher = connect(&server);
    let config = ClientConfig { report_stats: true, ..ClientConfig::new(&server.socket(), "victim") };
    let mut victim = ClientProcess::connect_with(config);
    victim.each(Command::Exists(keys(1)));
    let is_in_metrics = || {
        let metrics = server.metrics();
        metrics.sum("maru_client_call_duration_seconds_count", &[("instance_id", "victim")]) > 0.0
    };
    wait_until("it reports", is_in_metrics);
    victim.kill();
    wait_until("its grace period is over", || watcher.reports().unwrap().instances().is_empty());
    assert!(!is_in_metrics());
}

#[test]
fn after_a_restart_of_the_server_the_figures_go_on_and_after_a_lost_connection_nothing_counts_twice() {
    let mut server = ServerProcess::start(&[]);
    let handler = reporting(&server);
    let instance = handler.instance_number();
    let exists = |times: u64| {
        for _ in 0..times {
            handler.exists("chunk").unwrap();
        }
    };
    let is_known = |watcher: &MaruHandler, calls: u64| {
        wait_until("the server knows of all calls", || {
            let known = known(watcher, instance, ClientOperation::Exists).count();
            assert!(known <= calls, "{known} of {calls} calls are known");
            known == calls
        });
    };
    exists(10);
    is_known(&connect(&server), 10);

    // The server that comes knows of nothing, and is told without another call.
    server.kill();
    server.restart(&[]);
    let watcher = connect(&server);
    is_known(&watcher, 10);
    exists(5);
    is_known(&watcher, 15);

    assert!(sever(&server.socket()) > 0);
    wait_until("the session goes on", || handler.client_stats().resumes >= 2);
    exists(1);
    is_known(&connect(&server), 16);
}
