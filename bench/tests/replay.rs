//! `maru-bench replay` as people run it: a real server, real client processes, what they print and leave behind.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::Folders;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const CHUNK: u64 = 64 << 10;

impl Folders {
    fn replay(&self) -> Command {
        self.command("replay")
    }

    /// The JSON and the table of a run that must succeed.
    fn result(&self, arguments: &[&str]) -> (Value, String) {
        let output = self.replay().args(arguments).args(["--json", "result.json"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}: {stderr}", output.status);
        let json = fs::read_to_string(self.files.path().join("result.json")).unwrap();
        assert!(self.pool_is_empty(), "a run removes its pool");
        (serde_json::from_str(&json).unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// What a run that must fail says.
    fn error(&self, arguments: &[&str]) -> String {
        let message = error_of(&self.replay().args(arguments).output().unwrap());
        assert!(self.pool_is_empty(), "{arguments:?}: a run that fails removes its pool");
        message
    }

    fn write_trace(&self, requests: &[Vec<u64>]) {
        let lines = requests.iter().enumerate().map(|(index, ids)| {
            let tokens = ids.len() * 512;
            format!(
                r#"{{"timestamp": {index}, "input_length": {tokens}, "output_length": 1, "hash_ids": {ids:?}}}"#
            )
        });
        fs::write(self.files.path().join("trace.jsonl"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    }
}

fn error_of(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(output.stdout, b"", "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one sentence: {stderr}");
    stderr.trim_end().strip_prefix("maru-bench: ").unwrap_or_else(|| panic!("{stderr}")).to_owned()
}

fn keys(object: &Value) -> HashSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Three conversations that share a beginning, and a fourth that does not, turn by turn.
fn conversations() -> Vec<Vec<u64>> {
    let mut requests = Vec::new();
    for turn in 1..=6 {
        for conversation in 0..4 {
            let shared = if conversation < 3 { 0..5 } else { 5..8 };
            let own = conversation * 100 + 100;
            requests.push(shared.chain(own..own + turn * 3).collect());
        }
    }
    requests
}

#[test]
fn a_replayed_trace_hits_what_an_unbounded_cache_would() {
    let requests = conversations();
    let (mut seen, mut hits, mut chunks) = (HashSet::<u64>::new(), 0, 0);
    for request in &requests {
        hits += request.iter().take_while(|chunk| seen.contains(chunk)).count() as u64;
        chunks += request.len() as u64;
        seen.extend(request);
    }

    let folders = Folders::new();
    folders.write_trace(&requests);
    let (json, table) =
        folders.result(&["--trace", "trace.jsonl", "--chunk-size", "64KiB", "--processes", "3"]);

    let expected_keys = "requests chunks prefix_hit_chunks prefix_hit_ratio wrong_bytes bytes_stored bytes_read rpcs \
                         elapsed_s latency_us chunks_not_stored";
    assert_eq!(keys(&json), expected_keys.split_whitespace().collect());
    for (key, expected) in [
        ("requests", requests.len() as u64),
        ("chunks", chunks),
        ("prefix_hit_chunks", hits),
        ("wrong_bytes", 0),
        ("bytes_stored", seen.len() as u64 * CHUNK),
        ("bytes_read", hits * CHUNK),
        ("chunks_not_stored", 0),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
    assert_eq!(json["prefix_hit_ratio"], hits as f64 / chunks as f64);
    assert!(json["rpcs"].as_u64().unwrap() >= requests.len() as u64, "{json}");
    assert!(json["elapsed_s"].as_f64().unwrap() > 0.0, "{json}");

    assert_eq!(keys(&json["latency_us"]), HashSet::from(["acquire", "store"]));
    for latency in json["latency_us"].as_object().unwrap().values() {
        assert_eq!(keys(latency), HashSet::from(["p50", "p90", "p99", "p999", "max"]));
        let rising = ["p50", "p90", "p99", "p999", "max"].map(|name| latency[name].as_f64().unwrap());
        assert!(rising[0] > 0.0 && rising.is_sorted(), "{latency}");
    }

    assert!(table.starts_with("replay of trace.jsonl by 3 processes"), "{table}");
    assert!(table.contains(&format!("prefix hit chunks   {hits} (")), "{table}");
}

#[test]
fn made_up_conversations_come_out_alike_whole_and_sparse() {
    let folders = Folders::new();
    let run = |more: &[&str]| {
        let (json, _) = folders.result(&[&["--requests", "60", "--chunk-size", "64KiB"], more].concat());
        assert_eq!((&json["wrong_bytes"], &json["chunks_not_stored"]), (&0.into(), &0.into()));
        ["requests", "chunks", "prefix_hit_chunks", "bytes_stored", "bytes_read"]
            .map(|key| json[key].as_u64())
    };
    let whole = run(&[]);
    assert_eq!(whole[0], Some(60));
    assert!(whole[2] > Some(100), "{whole:?}");
    assert_eq!(run(&["--sparse", "--processes", "1"]), whole);
    assert_ne!(run(&["--seed", "2"]), whole);
}

#[test]
fn a_full_pool_gives_up_what_is_cold_and_the_run_goes_on() {
    let folders = Folders::new();
    folders
        .write_trace(&(0..10).map(|request| (request * 10..request * 10 + 10).collect()).collect::<Vec<_>>());
    let arguments = ["--trace", "trace.jsonl", "--chunk-size", "64KiB", "--pool-size", "4MiB"];
    let (json, _) = folders.result(&arguments);
    assert_eq!((json["requests"].as_u64(), json["wrong_bytes"].as_u64()), (Some(10), Some(0)));
    assert_eq!(json["bytes_stored"].as_u64().unwrap() / CHUNK, 100, "into room for 64");
    assert_eq!(json["chunks_not_stored"], 0);
}

/// Turns of many conversations in no order, some asked for much more often than others, and each as long as it has become.
fn busy_conversations() -> Vec<Vec<u64>> {
    let mut random = 1_u64;
    let mut turns = [0; 200];
    let request = |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (one, two) = (random >> 33 & 0x7fff, random >> 48 & 0x7fff);
        let conversation = (one * two * 200) >> 30;
        let turn = &mut turns[conversation as usize];
        *turn = (*turn + 1) % 20;
        let own = 1000 + conversation * 1000;
        (conversation % 7 * 10..conversation % 7 * 10 + 5).chain(own..own + *turn * 3 + 1).collect()
    };
    (0..1500).map(request).collect()
}

#[test]
fn a_real_system_finds_what_its_eviction_policy_finds_in_simulation() {
    const CAPACITY: u64 = 512;
    let folders = Folders::new();
    folders.write_trace(&busy_conversations());
    let mut policy = Command::new(env!("CARGO_BIN_EXE_maru-bench"));
    policy.args(["policy", "--trace", "trace.jsonl", "--json", "policy.json"]).current_dir(&folders.files);
    let output = policy.args(["--capacity", &CAPACITY.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = fs::read_to_string(folders.files.path().join("policy.json")).unwrap();
    let json = serde_json::from_str::<Value>(&json).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let ratio = |name| rows.iter().find(|row| row["policy"] == name).unwrap()["prefix_hit_ratio"].as_f64();
    let (simulated, bound) = (ratio("maru").unwrap(), ratio("farthest next use").unwrap());
    assert!(simulated > 0.1 && simulated + 0.1 < bound, "the pool is too small: {simulated} of {bound}");

    let pool = (CAPACITY * CHUNK).to_string();
    let arguments = ["--chunk-size", "64KiB", "--sparse", "--processes", "1", "--pool-size", &pool];
    let (json, _) = folders.result(&[&["--trace", "trace.jsonl"], &arguments[..]].concat());
    assert_eq!((&json["wrong_bytes"], &json["chunks_not_stored"]), (&0.into(), &0.into()));
    let real = json["prefix_hit_ratio"].as_f64().unwrap();
    // Pages come sixteen at a time, and what was evicted for one that turned out to be there already is free for the next.
    assert!((real - simulated).abs() < 0.01, "{real} in reality, {simulated} simulated");
}

#[test]
fn what_people_get_wrong_is_one_clear_sentence() {
    let folders = Folders::new();
    folders.write_trace(&conversations());
    fs::write(folders.files.path().join("bad.jsonl"), "{}\n").unwrap();
    for (arguments, expected) in [
        (&["--trace", "missing.jsonl"][..], "can't read the trace missing.jsonl: No such file"),
        (&["--trace", "bad.jsonl"], "bad.jsonl, line 1: missing field `timestamp`"),
        (&["--trace", "trace.jsonl", "--pool-size", "1000TiB"], "the pool needs 1000.0 TiB in /dev/shm/"),
        (
            &["--trace", "trace.jsonl", "--json", "missing/result.json"],
            "can't write missing/result.json: No such",
        ),
    ] {
        let message = folders.error(arguments);
        assert!(message.starts_with(expected), "{arguments:?}: {message}");
    }

    let mut no_folder = Command::new(env!("CARGO_BIN_EXE_maru-bench"));
    let output = no_folder.args(["replay", "--pool-dir", "/dev/shm/no/such"]).output().unwrap();
    let message = error_of(&output);
    assert!(message.starts_with("can't use /dev/shm/no/such for a pool: No such file"), "{message}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let folders = Folders::new();
    let alone = folders.files.path().join("maru-bench");
    fs::copy(env!("CARGO_BIN_EXE_maru-bench"), &alone).unwrap();
    let run = Command::new(alone).arg("replay").env_remove("CARGO").output().unwrap();
    let expected = format!("{}/maru-server does not exist; build it with", folders.files.path().display());
    assert!(error_of(&run).starts_with(&expected), "{}", error_of(&run));
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let message = Folders::new().error(&["--chunk-size", "64KiB", "--pool-size", "1MiB"]);
    assert!(message.starts_with("maru-server ended by itself (exit status: 1): "), "{message}");
    assert!(message.contains("too small"), "{message}");
}

#[test]
fn an_interrupted_run_leaves_no_memory_behind() {
    let folders = Folders::new();
    let arguments = ["--requests", "200000", "--chunk-size", "4KiB", "--pool-size", "64MiB", "--sparse"];
    let mut run =
        folders.replay().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !has_a_region(folders.pool.path()) {
        assert_eq!(run.try_wait().unwrap(), None, "the run ended before it stored anything");
        thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    assert_eq!(error_of(&run.wait_with_output().unwrap()), "interrupted");
    assert!(folders.pool_is_empty());
}

/// Whether a server below `folder` has made the memory of a region.
fn has_a_region(folder: &Path) -> bool {
    let runs = fs::read_dir(folder).unwrap().flatten();
    let mut files = runs.filter_map(|run| fs::read_dir(run.path()).ok()).flatten().flatten();
    files.any(|file| file.file_name().to_string_lossy().starts_with("region-"))
}
