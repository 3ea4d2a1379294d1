//! The measuring commands in their shortest form: what they print and write has the right shape. What they measure is
//! nobody's promise, so no time and no rate is asserted.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maru-bench")).args(arguments).output().unwrap()
}

/// Runs a command with `--json`; what it wrote.
fn measured(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("result.json");
    let output = bench(&[arguments, &["--json", json.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

fn assert_percentiles(value: &Value) {
    let percentiles = ["p50", "p90", "p99", "p999", "p9999", "max"].map(|name| value[name].as_f64().unwrap());
    assert!(percentiles.is_sorted() && percentiles[0] > 0.0, "{value}");
}

#[test]
fn latency_of_every_operation() {
    for op in
        ["exists", "lookup", "pin", "acquire", "register", "delete", "heartbeat", "mix:exists=80,acquire=20"]
    {
        let result = measured(&[
            "latency",
            "--op",
            op,
            "--batch",
            "8",
            "--keys",
            "100",
            "--requests",
            "50",
            "--warm-up",
            "1ms",
        ]);
        assert!(result["requests"].as_u64().unwrap() >= 50, "{result}");
        assert_percentiles(&result["latency_us"]);
        assert_eq!(result["setting"]["operation"], op);
        assert!(result["setting"]["machine"]["kernel"].is_string());
    }
}

#[test]
fn latency_with_many_in_flight_over_many_connections_by_either_driver() {
    for driver in ["ring", "plain"] {
        let result = measured(&[
            "latency",
            "--driver",
            driver,
            "--connections",
            "4",
            "--pipeline",
            "16",
            "--distribution",
            "zipf",
            "--keys",
            "1000",
            "--duration",
            "50ms",
            "--warm-up",
            "1ms",
        ]);
        assert!(result["per_second"].as_f64().unwrap() > 0.0);
        assert!(!result["intervals"].as_array().unwrap().is_empty());
    }
}

#[test]
fn several_processes_share_the_connections() {
    let folder = tempfile::tempdir().unwrap();
    let hgrm = folder.path().join("run.hgrm");
    let result = measured(&[
        "latency",
        "--connections",
        "4",
        "--processes",
        "2",
        "--threads",
        "1",
        "--keys",
        "100",
        "--requests",
        "4000",
        "--warm-up",
        "1ms",
        "--hgrm",
        hgrm.to_str().unwrap(),
    ]);
    // Each connection makes its part; what is in flight when the warm-up ends comes on top.
    let requests = result["requests"].as_u64().unwrap();
    assert!(requests >= 4000, "{result}");
    assert_percentiles(&result["latency_us"]);
    assert_eq!((&result["setting"]["processes"], &result["setting"]["threads"]), (&2.into(), &1.into()));
    let rows = result["intervals"].as_array().unwrap();
    assert!(!rows.is_empty() && rows[0]["per_second"].as_f64().unwrap() > 0.0, "{result}");
    let hgrm = std::fs::read_to_string(hgrm).unwrap();
    assert!(hgrm.ends_with("driven by 2 processes with 1 thread each\n"), "{hgrm}");
    let total = hgrm.lines().find_map(|line| line.split_once("Total count    =")).unwrap().1;
    assert_eq!(
        total.trim_end_matches(']').trim().parse::<u64>().unwrap(),
        requests,
        "every histogram is in it"
    );
}

#[test]
fn load_is_shared_by_processes_and_threads() {
    for op in ["exists", "mix:exists=1,register=1,delete=1"] {
        let result = measured(&[
            "load",
            "--op",
            op,
            "--rate",
            "2000",
            "--connections",
            "6",
            "--processes",
            "2",
            "--threads",
            "2",
            "--keys",
            "100",
            "--duration",
            "300ms",
            "--warm-up",
            "10ms",
        ]);
        assert_percentiles(&result["rates"][0]["latency_us"]);
        assert_percentiles(&result["rates"][0]["service_us"]);
    }
}

/// A measurement of a server by two client processes that would take a minute; and the client processes.
fn long_run_by_two_processes(server: &maru_tests::ServerProcess) -> (Child, Vec<Pid>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maru-bench"));
    command.args(["latency", "--connections", "4", "--processes", "2", "--duration", "60s", "--keys", "100"]);
    command.arg("--connect").arg(server.socket());
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let mut clients = Vec::new();
    maru_tests::wait_until("both client processes run", || {
        let children = std::fs::read_to_string(&children).unwrap();
        let is_client = |pid: &&str| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0).nth(1) == Some(b"client")
        };
        let pids = children.split_whitespace().filter(is_client);
        clients = pids.map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect();
        clients.len() == 2
    });
    // Long enough that they are measuring.
    std::thread::sleep(Duration::from_secs(1));
    (run, clients)
}

/// Whether a process runs.
fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

#[test]
fn a_client_process_that_dies_ends_the_run_by_an_error() {
    let server = maru_tests::ServerProcess::start(&[]);
    let (run, clients) = long_run_by_two_processes(&server);
    kill_process(clients[1], Signal::KILL).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said, "maru-bench: client process 1 ended by itself (signal: 9 (SIGKILL))\n");
    assert!(!clients.into_iter().any(runs), "the other one is ended");
}

#[test]
fn no_client_process_outlives_a_run_that_is_interrupted_or_killed() {
    let server = maru_tests::ServerProcess::start(&[]);
    for signal in [Signal::INT, Signal::KILL] {
        let (run, clients) = long_run_by_two_processes(&server);
        kill_process(Pid::from_child(&run), signal).unwrap();
        let output = run.wait_with_output().unwrap();
        if signal == Signal::INT {
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "maru-bench: interrupted\n");
        }
        maru_tests::wait_until("the client processes are gone", || !clients.iter().copied().any(runs));
    }
}

#[test]
fn the_system_calls_of_a_request_are_few_and_counted_by_the_ring_alone() {
    let run = |driver: &str| {
        measured(&[
            "latency",
            "--driver",
            driver,
            "--pipeline",
            "16",
            "--keys",
            "100",
            "--requests",
            "20000",
            "--warm-up",
            "1ms",
        ])
    };
    let calls = run("ring")["system_calls_per_request"].as_f64().unwrap();
    assert!(calls > 0.0 && calls <= 2.0, "{calls}");
    assert!(run("plain")["system_calls_per_request"].is_null());
    let output = bench(&["latency", "--driver", "plain", "--keys", "100", "--requests", "50"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("not counted by this driver"));
}

#[test]
fn a_run_is_written_as_percentile_text_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (hgrm, plot) = (path("run.hgrm"), path("run.svg"));
    measured(&["latency", "--keys", "100", "--requests", "200", "--hgrm", &hgrm, "--plot", &plot]);
    let text = std::fs::read_to_string(hgrm).unwrap();
    assert!(text.contains("Percentile") && text.contains("#[Max"), "{text}");
    let drawing = std::fs::read_to_string(plot).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.contains("polyline"), "{drawing}");
}

#[test]
fn load_at_a_rate_and_up_a_ramp() {
    let result =
        measured(&["load", "--rate", "500", "--keys", "100", "--duration", "100ms", "--warm-up", "1ms"]);
    let rate = &result["rates"][0];
    assert_eq!(rate["rate"], 500.0);
    assert_percentiles(&rate["latency_us"]);
    assert_percentiles(&rate["service_us"]);

    let result = measured(&[
        "load",
        "--ramp",
        "100:300:100",
        "--limit",
        "10s",
        "--keys",
        "100",
        "--duration",
        "100ms",
        "--warm-up",
        "1ms",
    ]);
    assert!(!result["rates"].as_array().unwrap().is_empty());
}

#[test]
fn chunks_are_stored_and_read() {
    for command in ["store", "read"] {
        let result = measured(&[command, "--chunk-size", "64KiB", "--count", "20"]);
        assert_eq!((result["chunks"].as_u64(), result["bytes"].as_u64()), (Some(20), Some(20 << 16)));
        assert!(result["gb_per_s"].as_f64().unwrap() > 0.0);
        assert_percentiles(&result["latency_us"]);
    }
}

#[test]
fn what_stores_cost_for_other_hosts_is_held_against_plain_ones() {
    let run = |options: &[&str]| {
        let store = ["store", "--chunk-size", "64KiB", "--count", "20"];
        measured(&[&store, options].concat())
    };
    for (options, coherence, checksum) in [
        (&["--coherence", "writeback"][..], "writeback", false),
        (&["--checksum"], "coherent", true),
        (&["--coherence", "writeback", "--checksum"], "writeback", true),
    ] {
        let result = run(options);
        assert_eq!((&result["coherence"], &result["checksum"]), (&coherence.into(), &checksum.into()));
        assert!(result["chunks_per_s"].as_f64().unwrap() > 0.0 && result["plain"]["gb_per_s"].is_f64());
        assert_percentiles(&result["latency_us"]);
        assert_percentiles(&result["plain"]["latency_us"]);
        assert!(result["costs"]["checksum_us_per_mib"].as_f64().unwrap() > 0.0);
        let lines = &result["costs"]["lines"];
        for cost in ["write_back_dirty", "write_back_copied", "invalidate"] {
            assert!(lines[format!("{cost}_us_per_mib")].as_f64().unwrap() > 0.0, "{lines}");
        }
        assert!(lines["write_back"].is_string() && lines["invalidate"].is_string());
    }
    let plain = run(&["--coherence", "coherent"]);
    assert!(plain["plain"].is_null() && plain["costs"].is_null(), "{plain}");
}

#[test]
fn floor_has_a_row_for_every_path() {
    let result = measured(&["floor", "--quick", "--only", "exists"]);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "{result}");
    for row in rows {
        assert!(row["system_calls_per_request"].as_f64().unwrap() > 0.0, "{row}");
        for key in ["ours", "floor", "ratio", "ratio_min", "ratio_max"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{row}");
        }
        assert!(
            row["path"].is_string()
                && row["unit"].is_string()
                && row["goal"].is_string()
                && row["holds"].is_boolean()
        );
    }
}

#[test]
fn a_server_that_runs_already_is_measured_and_left_as_it_was() {
    let server = maru_tests::ServerProcess::start(&[]);
    let socket = server.socket();
    measured(&["latency", "--connect", socket.to_str().unwrap(), "--keys", "100", "--requests", "50"]);
    let mut client = maru_tests::ClientProcess::connect(&server, "watcher");
    maru_tests::wait_until("the keys are gone", || client.stats().entries == 0);
}

#[test]
fn what_makes_no_sense_is_one_clear_sentence() {
    let missing = Path::new("/nowhere/maru.sock");
    let output = bench(&["latency", "--connect", missing.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("maru-bench: ") && said.lines().count() == 1, "{said}");
    for bad in [&["load"][..], &["latency", "--op", "fly"], &["load", "--ramp", "3:2:1"]] {
        assert_eq!(bench(bad).status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn peers_are_compared_or_said_not_to_be_installed() {
    let result = measured(&["peers", "--quick"]);
    let missing = result["not_installed"].as_array().unwrap().len();
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6 * (2 - missing), "{result}");
    assert!(rows.iter().all(|row| row["ratio"].as_f64().unwrap() > 0.0));
}
