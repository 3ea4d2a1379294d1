//! The measuring commands in their shortest form: what they print and write has the right shape. What they measure is
//! nobody's promise, so no figure is asserted.

use std::path::Path;
use std::process::{Command, Output};

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
fn floor_has_a_row_for_every_path() {
    let result = measured(&["floor", "--quick", "--only", "exists"]);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "{result}");
    for row in rows {
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
