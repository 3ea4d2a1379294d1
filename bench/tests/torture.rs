//! `maru-bench torture` as people run it: clients are killed all the time, and no promise is broken.

mod common;

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Output, Stdio};

use common::Folders;
use maru_hosts::Network;
use maru_tests::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

impl Folders {
    fn torture(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("torture");
        // The folder of the socket outlives a run that is killed.
        command.env("TMPDIR", self.files.path());
        command.args(["--keys", "512", "--pool-size", "16MiB", "--grace", "500ms", "--kill-every", "300ms"]);
        command.args(["--processes", "3"]).args(arguments);
        command
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The processes that a run has started, those with this on their command line.
fn children_of(run: u32, what: &str) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap_or_default();
    let numbers = children.split_whitespace().map(|number| number.parse::<i32>().unwrap());
    let line = |number: i32| fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    let wanted = numbers.filter(|number| String::from_utf8_lossy(&line(*number)).contains(what));
    wanted.map(|number| Pid::from_raw(number).unwrap()).collect()
}

fn clients_of(run: u32) -> Vec<Pid> {
    children_of(run, "torture-client")
}

fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    // Whoever should wait for it may be slow to.
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn clients_that_are_killed_break_no_promise() {
    let folders = Folders::new();
    let output =
        folders.torture(&["--duration", "6s", "--seed", "5", "--json", "result.json"]).output().unwrap();
    let json = fs::read_to_string(folders.files.path().join("result.json")).unwrap();
    assert!(output.status.success(), "{}: {json}", stderr(&output));
    let json = serde_json::from_str::<Value>(&json).unwrap();

    for promise in
        ["wrong_bytes", "leaked_pins", "leaked_pages", "lost_acknowledged", "server_kills", "link_flaps"]
    {
        assert_eq!(json[promise], 0, "{promise}");
    }
    assert_eq!(json["seed"], 5);
    assert_eq!(json["failures"], Value::Array(Vec::new()));
    assert!(json["seconds"].as_f64().unwrap() >= 6.0, "{json}");
    assert!(json["client_kills"].as_u64().unwrap() >= 10, "{json}");
    assert!(json["operations"].as_u64().unwrap() > 1000, "{json}");
    assert!(json["verified_bytes"].as_u64().unwrap() > 1 << 20, "{json}");
    assert!(json["server_rss_growth_bytes"].is_i64(), "{json}");

    let outcomes = json["outcomes"].as_object().unwrap();
    let operations = outcomes.keys().map(String::as_str).collect::<HashSet<_>>();
    let all =
        ["acquire", "retrieve", "exists", "alloc", "store", "pin_kv", "unpin_kv", "delete", "audit", "read"];
    assert_eq!(operations, HashSet::from(all));
    for (operation, outcome) in [("acquire", "found"), ("store", "stored"), ("delete", "pinned")] {
        assert!(outcomes[operation][outcome].as_u64().unwrap() > 0, "{operation} {outcome} in {json}");
    }

    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.starts_with("torture by 3 client processes, 512 keys, "), "{table}");
    assert!(folders.pool_is_empty(), "a run removes its pool");
}

#[test]
fn a_server_that_is_killed_loses_nothing_that_it_acknowledged() {
    let folders = Folders::new();
    // A pool in which nothing has to go, so that whatever is gone is lost.
    let roomy = ["--keys", "256", "--pool-size", "128MiB"];
    let arguments = ["--duration", "6s", "--kill-server", "250ms", "--grace", "2s", "--json", "result.json"];
    let output = folders.torture(&[&roomy[..], &arguments].concat()).output().unwrap();
    let json = fs::read_to_string(folders.files.path().join("result.json")).unwrap();
    assert!(output.status.success(), "{}: {json}", stderr(&output));
    let json = serde_json::from_str::<Value>(&json).unwrap();
    for promise in ["wrong_bytes", "leaked_pins", "leaked_pages", "lost_acknowledged", "evictions"] {
        assert_eq!(json[promise], 0, "{promise}");
    }
    assert!(json["server_kills"].as_u64().unwrap() >= 10, "{json}");
    assert!(json["client_kills"].as_u64().unwrap() >= 10, "{json}");
    assert!(json["resume"]["count"].as_u64().unwrap() > json["server_kills"].as_u64().unwrap(), "{json}");
    assert!(json["outcomes"]["store"]["stored"].as_u64().unwrap() > 100, "{json}");
    assert!(folders.pool_is_empty());
}

#[test]
fn hosts_whose_cables_are_pulled_break_no_promise() {
    if let Err(error) = Network::new() {
        eprintln!("skipped: {error}");
        return;
    }
    let folders = Folders::new();
    let roomy = ["--keys", "256", "--pool-size", "128MiB"];
    let hosts = ["--hosts", "2", "--flap-link", "500ms", "--kill-server", "1s", "--grace", "10s"];
    let arguments = ["--duration", "6s", "--processes", "4", "--json", "result.json"];
    let output = folders.torture(&[&roomy[..], &hosts, &arguments].concat()).output().unwrap();
    let json = fs::read_to_string(folders.files.path().join("result.json")).unwrap();
    assert!(output.status.success(), "{}: {json}", stderr(&output));
    let json = serde_json::from_str::<Value>(&json).unwrap();
    for promise in ["wrong_bytes", "leaked_pins", "leaked_pages", "lost_acknowledged", "evictions"] {
        assert_eq!(json[promise], 0, "{promise}");
    }
    for happened in ["link_flaps", "server_kills", "client_kills"] {
        assert!(json[happened].as_u64().unwrap() > 2, "{happened} in {json}");
    }
    assert!(json["resume"]["count"].as_u64().unwrap() > json["server_kills"].as_u64().unwrap(), "{json}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.starts_with("torture by 4 client processes on 2 hosts, "), "{table}");
    assert!(folders.pool_is_empty());
}

#[test]
fn whoever_is_cut_off_for_longer_than_its_session_lasts_reads_no_wrong_byte() {
    if let Err(error) = Network::new() {
        eprintln!("skipped: {error}");
        return;
    }
    let folders = Folders::new();
    let flaps = ["--hosts", "2", "--flap-link", "1500ms", "--flap-max", "2s", "--kill-every", "2s"];
    for memory in ["folder", "not-coherent"] {
        let arguments = ["--duration", "8s", "--processes", "4", "--memory", memory, "--json", "result.json"];
        let output = folders.torture(&[&flaps[..], &arguments].concat()).output().unwrap();
        let json = fs::read_to_string(folders.files.path().join("result.json")).unwrap();
        assert!(output.status.success(), "{}: {json}", stderr(&output));
        let json = serde_json::from_str::<Value>(&json).unwrap();
        for promise in ["wrong_bytes", "leaked_pins", "leaked_pages", "lost_acknowledged"] {
            assert_eq!(json[promise], 0, "{promise}");
        }
        assert!(json["link_flaps"].as_u64().unwrap() > 2, "{json}");
        assert!(json["sessions_ended"].is_u64(), "how many it were is a matter of luck");
        assert!(folders.pool_is_empty());
    }
}

#[test]
fn clients_do_not_outlive_a_supervisor_that_is_killed() {
    let folders = Folders::new();
    let mut run =
        folders.torture(&["--duration", "1h"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("all clients are started", || clients_of(run.id()).len() == 3);
    let (clients, server) = (clients_of(run.id()), children_of(run.id(), "maru-server"));
    run.kill().unwrap();
    run.wait().unwrap();
    // It has lost nobody that it cares about.
    kill_process(server[0], Signal::KILL).unwrap();
    wait_until("all clients are gone", || !clients.iter().any(|client| is_alive(*client)));
}

#[test]
fn an_interrupted_run_leaves_no_memory_behind() {
    let folders = Folders::new();
    let mut run = folders.torture(&["--duration", "1h"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("all clients are started", || clients_of(run.id()).len() == 3);
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "maru-bench: interrupted\n");
    assert!(folders.pool_is_empty());
}
