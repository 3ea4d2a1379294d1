//! What an operator sees of a real server, as text, JSON and CSV.

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{command, maru, maru_at, only};
use maru_tests::{Authority, ClientConfig, ClientProcess, Command, ServerProcess, wait_until};
use serde_json::Value;

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An engine that has stored three chunks of 1000 bytes, and looked for four.
fn engine(server: &ServerProcess) -> ClientProcess {
    let mut engine = ClientProcess::connect(server, "engine-0");
    engine.each(Command::Store(keys(&["a", "b", "c"]), 1000));
    assert_eq!(engine.count(Command::Acquire(keys(&["a", "b", "c", "d"]))), 3);
    engine
}

#[test]
fn status_sums_up_the_server() {
    let server = ServerProcess::start(&["--max-instances", "12"]);
    let _engine = engine(&server);
    let said = maru(&server, &["status"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    assert_eq!(said.line("release"), env!("CARGO_PKG_VERSION"));
    assert_eq!((said.line("epoch"), said.line("instances"), said.line("max instances")), ("1", "1", "12"));
    assert_eq!((said.line("entries"), said.line("stored"), said.line("pins")), ("3", "2.9 KiB", "3"));
    assert_eq!((said.line("hit ratio"), said.line("pool")), ("75.0 %", "16.0 MiB"));

    let json = maru(&server, &["status", "--json"]).json();
    for (name, value) in
        [("entries", 3), ("stored_bytes", 3000), ("pins", 3), ("hits", 3), ("misses", 1), ("orphans", 0)]
    {
        assert_eq!(json[name], value, "{name}");
    }
    assert_eq!((&json["hit_ratio"], &json["pool_bytes"]), (&Value::from(0.75), &Value::from(16 << 20)));
    // Not that of the program that asks.
    assert_eq!(json["connections"], 2, "one for requests, one for regions");
}

#[test]
fn pools_are_told_with_what_is_free_in_them() {
    let server = ServerProcess::start(&[]);
    let _engine = engine(&server);
    let json = maru(&server, &["pools", "--json"]).json();
    let pool = only(&json, "pools");
    assert_eq!((&pool["kind"], &pool["size_bytes"]), (&Value::from("tmpfs"), &Value::from(16 << 20)));
    // Its first server made it, and found that nobody's directory says what is in it.
    assert_eq!((&pool["coherence"], &pool["incarnation"]), (&"coherent".into(), &2.into()));
    assert_eq!(pool["uuid"].as_str().map(str::len), Some(36));
    assert_eq!((&pool["used_bytes"], &pool["free_bytes"]), (&Value::from(2 << 20), &Value::from(14 << 20)));
    assert_eq!(pool["path"], server.pool().canonicalize().unwrap().to_str().unwrap());
    let text = maru(&server, &["pools"]).stdout;
    assert!(text.contains("largest free") && text.contains("14.0 MiB") && text.contains("12.5 %"), "{text}");
}

#[test]
fn who_reports_how_long_calls_take_is_shown_with_it() {
    let server = ServerProcess::start(&[]);
    let _silent = engine(&server);
    let config = ClientConfig { report_stats: true, ..ClientConfig::new(&server.socket(), "reporter") };
    let mut reporter = ClientProcess::connect_with(config);
    reporter.each(Command::Exists(keys(&["a", "d"])));
    reporter.count(Command::Read(keys(&["a", "b"])));
    let usage = |name: &str| {
        let json = maru(&server, &["usage", "--json"]).json();
        let instances = json["instances"].as_array().unwrap();
        instances.iter().find(|usage| usage["name"] == name).unwrap().clone()
    };
    wait_until("it reports", || usage("reporter")["calls"] == 2);
    let (reporter, silent) = (usage("reporter"), usage("engine-0"));
    let (p50, p99) = (reporter["p50_ns"].as_u64().unwrap(), reporter["p99_ns"].as_u64().unwrap());
    assert!(0 < p50 && p50 <= p99, "{reporter}");
    assert_eq!(
        (&silent["calls"], &silent["p50_ns"], &silent["p99_ns"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );

    let json = maru(&server, &["calls", "--json"]).json();
    let rows = json["calls"].as_array().unwrap();
    let told = rows.iter().map(|row| (row["name"].as_str().unwrap(), row["operation"].as_str().unwrap()));
    assert_eq!(told.collect::<Vec<_>>(), [("reporter", "acquire"), ("reporter", "exists")]);
    assert!(rows.iter().all(|row| row["calls"] == 1 && row["p999_ns"].as_u64() > Some(0)), "{json}");
    let csv = maru(&server, &["calls", "--csv"]).stdout;
    assert!(csv.starts_with("time,instance,name,operation,calls,p50_ns,p99_ns,p999_ns\n"), "{csv}");
    assert!(maru(&server, &["calls"]).stdout.contains("acquire"));
}

#[test]
fn a_client_that_was_killed_is_seen_until_its_grace_is_over_and_then_as_orphans() {
    let server = ServerProcess::start(&["--grace", "3s"]);
    let client = engine(&server);
    let json = maru(&server, &["usage", "--json"]).json();
    let usage = only(&json, "instances");
    assert_eq!(
        (&usage["name"], &usage["entries"], &usage["pins"]),
        (&"engine-0".into(), &3.into(), &3.into())
    );
    assert_eq!(usage["allocated_bytes"], 1 << 20);
    assert_eq!((&usage["used_bytes"], &usage["slack_bytes"]), (&3000.into(), &((1 << 20) - 3000).into()));
    assert_eq!(usage["grace_left_ms"], Value::Null, "it is connected");

    client.kill();
    let mut usage = Value::Null;
    wait_until("it is seen without a connection", || {
        usage = only(&maru(&server, &["usage", "--json"]).json(), "instances").clone();
        usage["connections"] == 0
    });
    let grace_left = usage["grace_left_ms"].as_u64().unwrap();
    assert!((1..=3000).contains(&grace_left), "{usage}");
    assert_eq!(
        (&usage["pins"], &usage["name"]),
        (&3.into(), &"engine-0".into()),
        "its pins are kept for so long"
    );

    wait_until("its regions are orphans", || {
        usage = only(&maru(&server, &["usage", "--json"]).json(), "instances").clone();
        usage["name"] == "(orphans)"
    });
    assert_eq!((&usage["entries"], &usage["instance"]), (&3.into(), &Value::Null));
    assert!(maru(&server, &["usage"]).stdout.contains("(orphans)"));
}

#[test]
fn looking_leaves_no_instance_behind() {
    let server = ServerProcess::start(&["--grace", "1h"]);
    for _ in 0..3 {
        assert_eq!(maru(&server, &["usage"]).stdout, "no instances\n");
    }
    // The connection of the one before may still be ending.
    wait_until("nobody is there", || maru(&server, &["status"]).line("instances") == "0");
}

#[test]
fn keys_are_found_with_who_keeps_them_there() {
    let server = ServerProcess::start(&[]);
    let mut engine = engine(&server);
    let mut reader = ClientProcess::connect(&server, "reader");
    reader.each(Command::Pin(keys(&["b"])));
    reader.each(Command::Pin(keys(&["b"])));

    let said = maru(&server, &["keys", "--key", "b"]);
    assert_eq!(said.code, 0);
    assert_eq!((said.line("there"), said.line("length"), said.line("pins")), ("yes", "1000 B", "3"));
    assert_eq!(said.line("owner name"), "engine-0");

    let json = maru(&server, &["keys", "--key", "b", "--json"]).json();
    let key = only(&json, "keys");
    assert_eq!((&key["region"], &key["page"], &key["offset_bytes"]), (&1.into(), &1.into(), &4096.into()));
    assert!(key["checksum"].is_null(), "it was stored without");
    let holders = key["holders"].as_array().unwrap();
    let holders =
        holders.iter().map(|held| (held["name"].as_str().unwrap(), &held["guards"], &held["by_name"]));
    let expected = [("engine-0", &1.into(), &0.into()), ("reader", &0.into(), &2.into())];
    assert_eq!(holders.collect::<Vec<(&str, &Value, &Value)>>(), expected);

    // By its digest it is the same; what is not there ends with 1, whatever else is.
    let digest = key["digest"].as_str().unwrap();
    let same = maru(&server, &["keys", "--digest", digest, "--json"]).json();
    assert_eq!(only(&same, "keys")["holders"], key["holders"]);
    let said = maru(&server, &["keys", "--digest", digest, "--key", "nobody's"]);
    assert_eq!(said.code, 1);
    assert!(said.stdout.contains("there   no"), "{}", said.stdout);
    // Asking was no use of the entry.
    assert_eq!(maru(&server, &["status"]).line("misses"), "1");
    engine.call(Command::ReleaseHeld);
}

#[test]
fn watching_goes_on_while_the_server_is_restarted() {
    let mut server = ServerProcess::start(&[]);
    let mut watch = command(&server.socket(), &["status", "--watch", "50ms", "--csv"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let names = lines.next().unwrap().unwrap();
    let epoch = names.split(',').position(|name| name == "epoch").unwrap();
    assert!(names.starts_with("time,release,"), "{names}");
    assert_eq!(lines.next().unwrap().unwrap().split(',').nth(epoch), Some("1"));
    server.kill();
    server.restart(&[]);
    let is_of_the_next = |line: std::io::Result<String>| line.unwrap().split(',').nth(epoch) == Some("2");
    assert!(lines.any(is_of_the_next), "it goes on with the next run");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn scripts_tell_by_the_exit_code_what_went_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let said = maru_at(&folder.path().join("maru.sock"), &["status"]);
    assert_eq!((said.code, said.stdout.as_str()), (3, ""));
    assert!(said.stderr.starts_with("maru: no maru-server listens on "), "{}", said.stderr);
    assert_eq!(maru_at(folder.path(), &["status", "--watch", "soon"]).code, 2);

    let token = folder.path().join("token");
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0", "--auth-token-file", {
        std::fs::write(&token, "sixteen or more characters\n").unwrap();
        token.to_str().unwrap()
    }]);
    let tcp = format!("tcp://{}", server.tcp_address());
    let asked = |arguments: &[&str]| maru_at(tcp.as_ref(), arguments);
    assert_eq!(asked(&["status"]).code, 4, "without the token");
    assert_eq!(asked(&["status", "--auth-token-file", "/nowhere"]).code, 5);
    assert_eq!(asked(&["status", "--auth-token-file", token.to_str().unwrap()]).code, 0);
}

#[test]
fn a_server_on_tls_is_asked_where_both_sides_believe_each_other() {
    let authority = Authority::new();
    let ca = authority.certificate();
    let ca = ca.to_str().unwrap();
    let options = Authority::options(&authority.sign("127.0.0.1"));
    let options = options.iter().map(String::as_str).chain(["--tls-client-ca", ca]);
    let server = ServerProcess::start(&options.collect::<Vec<_>>());
    let tls = format!("tls://{}", server.tcp_address());
    let asked = |arguments: &[&str]| maru_at(tls.as_ref(), &[&["status"], arguments].concat());

    let stranger = asked(&[]);
    assert_eq!(stranger.code, 3, "its authority is none of this host's: {}", stranger.stderr);
    let own = authority.sign("operator");
    let (certificate, key) = (own.certificate.to_str().unwrap(), own.key.to_str().unwrap());
    let identity = ["--tls-cert", certificate, "--tls-key", key];
    assert_eq!(asked(&[&["--tls-ca", ca], &identity[..]].concat()).code, 0);
    let nobody = asked(&["--tls-ca", ca]);
    assert!(nobody.stderr.contains("asks for a certificate of this client"), "{}", nobody.stderr);
    assert_eq!(asked(&[&["--tls-ca", ca], &identity[..2]].concat()).code, 2, "a certificate has a key");
}

#[test]
fn output_that_nobody_reads_to_its_end_is_no_error() {
    let server = ServerProcess::start(&[]);
    let mut watch = command(&server.socket(), &["status", "--watch", "10ms"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(watch.stdout.take());
    let said = watch.wait_with_output().unwrap();
    assert_eq!((said.status.code(), said.stderr), (Some(0), Vec::new()));
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = maru_at("/nowhere".as_ref(), &["completions", shell]);
        assert!(said.code == 0 && said.stdout.contains("older-than"), "{shell}");
    }
    assert!(maru_at("/nowhere".as_ref(), &["bench"]).stdout.contains("maru-bench latency"));
}
