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

#[test]
fn a_device_is_looked_at_before_and_after_it_is_made_a_pool() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (device, socket) = (folder.path().join("device"), folder.path().join("maru.sock"));
    std::fs::File::create_new(&device).unwrap().set_len(18 << 20).unwrap();
    let device = device.to_str().unwrap();
    let examine = || maru_at(&socket, &["doctor", "--host", "--pool", device, "--json"]);
    let said = examine();
    assert_eq!(
        (said.code, verdict(&said, "header"), verdict(&said, "access")),
        (1, "wrong".into(), "ok".into())
    );
    let fix = check(&said.json(), "header")["fix"].clone();
    assert!(fix.as_str().unwrap().contains(&format!("maru pool init {device}")), "{fix}");
    assert_eq!(maru_at(&socket, &["pool", "init", device, "--yes"]).code, 0);
    let said = examine();
    assert_eq!(
        (said.code, verdict(&said, "header"), verdict(&said, "pool lock")),
        (0, "ok".into(), "ok".into())
    );
}

#[test]
fn all_pools_of_a_server_are_looked_at() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let pools = ["first", "second"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let server = ServerProcess::start(&["--pool", &pools[0], "--pool", &pools[1]]);
    let json = maru(&server, &["doctor", "--json"]).json();
    let checks = json["checks"].as_array().unwrap().iter().filter(|check| check["check"] == "pool");
    let found = checks.map(|check| check["found"].as_str().unwrap().split(' ').next().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), pools);
}
