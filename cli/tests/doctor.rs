//! The host of a real server is examined, before, while and after it runs.

mod common;

use common::{Said, maru, maru_at};
use maru_tests::{ClientProcess, Command, ServerProcess};
use serde_json::Value;

fn check<'a>(checks: &'a Value, name: &str) -> &'a Value {
    let all = checks["checks"].as_array().unwrap();
    all.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no check of {name}: {checks}"))
}

fn verdict(said: &Said, name: &str) -> Value {
    check(&said.json(), name)["verdict"].clone()
}

#[test]
fn a_server_that_answers_is_well() {
    let server = ServerProcess::start(&[]);
    let said = maru(&server, &["doctor"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{}", said.stdout);
    for check in ["kernel", "io_uring", "memlock", "pool", "huge pages", "pool lock", "socket", "server"] {
        assert!(said.stdout.contains(&format!("  {check}  ")), "{check} in {}", said.stdout);
    }
    let json = maru(&server, &["doctor", "--json"]);
    assert!(
        check(&json.json(), "pool")["found"].as_str().unwrap().starts_with(server.pool().to_str().unwrap())
    );
    assert_eq!((verdict(&json, "pool lock"), verdict(&json, "server")), ("ok".into(), "ok".into()));
}

#[test]
fn before_the_first_start_the_host_can_be_looked_at_alone() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let pool = folder.path().join("pool");
    let arguments = ["doctor", "--json", "--pool", pool.to_str().unwrap()];
    let socket = folder.path().join("maru.sock");
    let said = maru_at(&socket, &[&arguments[..], &["--host"]].concat());
    assert_eq!((said.code, verdict(&said, "pool lock")), (0, "ok".into()));
    let said = maru_at(&socket, &arguments);
    assert_eq!(
        (said.code, verdict(&said, "socket"), verdict(&said, "server")),
        (1, "wrong".into(), "wrong".into())
    );
}

#[test]
fn what_a_killed_server_left_is_found_with_what_to_do() {
    let mut server = ServerProcess::start(&[]);
    let mut client = ClientProcess::connect(&server, "engine");
    client.each(Command::Store(vec!["a".to_owned()], 100));
    server.kill();
    let pool = server.pool();
    let said = maru(&server, &["doctor", "--pool", pool.to_str().unwrap(), "--json"]);
    assert_eq!(said.code, 1);
    let json = said.json();
    assert!(check(&json, "socket")["fix"].as_str().unwrap().contains("takes the socket over"), "{json}");
    assert!(
        check(&json, "pool lock")["found"].as_str().unwrap().contains("regions of 2.0 MiB are left"),
        "{json}"
    );
    assert_eq!(check(&json, "pool lock")["verdict"], "warn");
}
