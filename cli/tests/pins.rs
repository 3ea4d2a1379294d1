//! Pins that somebody forgot are found, named and released; those of readers are not.

mod common;

use std::os::unix::process::CommandExt;

use common::{command, maru, only, run};
use maru_client::{Pinned, Unpinned};
use maru_tests::{ClientProcess, Command, Reply, ServerProcess, sever};

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An engine with two chunks, and a reader that has one pinned by name, both held by a guard of its own.
fn readers(server: &ServerProcess) -> (ClientProcess, ClientProcess) {
    let mut engine = ClientProcess::connect(server, "engine");
    engine.each(Command::Store(keys(&["a", "b"]), 100));
    let mut reader = ClientProcess::connect(server, "reader");
    reader.each(Command::Pin(keys(&["a"])));
    reader.count(Command::Acquire(keys(&["a", "b"])));
    (engine, reader)
}

#[test]
fn pins_are_listed_with_who_has_them_and_of_which_kind() {
    let server = ServerProcess::start(&[]);
    let (_engine, _reader) = readers(&server);
    let said = maru(&server, &["pins"]);
    assert_eq!((said.code, said.stdout.lines().count()), (0, 3), "{}", said.stdout);
    assert!(said.stdout.starts_with("digest"), "{}", said.stdout);

    let json = maru(&server, &["pins", "--instance", "reader", "--json"]).json();
    let pins = json["pins"].as_array().unwrap();
    let mut kinds =
        pins.iter().map(|pins| (pins["guards"].as_u64(), pins["by_name"].as_u64())).collect::<Vec<_>>();
    kinds.sort_unstable();
    assert_eq!(kinds, [(Some(1), Some(0)), (Some(1), Some(1))]);
    assert!(pins.iter().all(|pins| pins["name"] == "reader" && pins["length_bytes"] == 100));

    assert_eq!(maru(&server, &["pins", "--instance", "nobody"]).stdout, "no pins\n");
    assert_eq!(maru(&server, &["pins", "--older-than", "1h"]).stdout, "no pins\n");
    let csv = maru(&server, &["pins", "--csv"]).stdout;
    assert!(csv.starts_with("time,digest,instance,name,guards,by_name,held_s,length_bytes\n"), "{csv}");
}

/// A pin by name that its client forgets, across a restart of the server, which it tells of the pin.
#[test]
fn a_leaked_pin_is_found_named_and_released_after_the_server_was_killed() {
    let mut server = ServerProcess::start(&["--pin-ttl", "0"]);
    let mut leaky = ClientProcess::connect(&server, "leaky-engine");
    leaky.each(Command::Store(keys(&["a"]), 100));
    leaky.each(Command::Pin(keys(&["a"])));
    server.kill();
    server.restart(&["--pin-ttl", "0"]);
    assert_eq!(leaky.each(Command::Exists(keys(&["a"]))), ["yes"], "its session goes on");
    assert_eq!(leaky.each(Command::Delete(keys(&["a"]))), ["pinned"]);

    let json = maru(&server, &["pins", "--json"]).json();
    let pins = only(&json, "pins");
    assert_eq!(
        (&pins["name"], &pins["by_name"], &pins["guards"]),
        (&"leaky-engine".into(), &1.into(), &0.into())
    );
    let digest = pins["digest"].as_str().unwrap();

    let said = maru(&server, &["pins", "--digest", digest, "--release"]);
    assert_eq!(said.code, 5, "nobody is there to be asked");
    assert!(said.stderr.contains("--yes"), "{}", said.stderr);
    assert_eq!(maru(&server, &["status"]).line("pins"), "1");

    let said = maru(&server, &["pins", "--digest", digest, "--release", "--yes"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    assert!(said.stdout.contains("released"), "{}", said.stdout);
    assert_eq!(maru(&server, &["pins"]).stdout, "no pins\n");

    // Its client learns of it when it gives the pin back after all.
    assert_eq!(leaky.each(Command::Unpin(keys(&["a"]))), ["not pinned"]);
    assert_eq!(leaky.each(Command::Delete(keys(&["a"]))), ["deleted"]);
}

#[test]
fn a_guard_is_never_released() {
    let server = ServerProcess::start(&[]);
    let (mut engine, mut reader) = readers(&server);
    let said = maru(&server, &["pins", "--release", "--yes"]);
    assert_eq!(said.code, 0, "all that may be released was");
    assert!(said.stdout.contains("released") && said.stdout.contains("stays: a guard"), "{}", said.stdout);
    assert!(said.stdout.contains("A reader that lives"), "{}", said.stdout);

    assert_eq!(engine.each(Command::Delete(keys(&["a", "b"]))), ["pinned", "pinned"]);
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
    let json = maru(&server, &["pins", "--json"]).json();
    assert!(json["pins"].as_array().unwrap().iter().all(|pins| pins["guards"] == 1 && pins["by_name"] == 0));
}

#[test]
fn a_released_pin_does_not_come_back_when_the_session_goes_on() {
    let server = ServerProcess::start(&[]);
    let handler = maru_tests::connect(&server);
    maru_tests::store(&handler, "a").unwrap();
    assert_eq!(handler.pin_kv("a").unwrap(), Pinned::Pinned);
    assert_eq!(maru(&server, &["pins", "--release", "--yes"]).code, 0);
    assert!(sever(&server.socket()) > 0);
    assert!(handler.exists("a").unwrap());
    assert_eq!(handler.client_stats().resumes, 1);
    assert_eq!(maru(&server, &["pins"]).stdout, "no pins\n");
    assert_eq!(handler.unpin_kv("a").unwrap(), Unpinned::NotPinned);
}

/// Needs root, to be another user.
#[test]
fn who_may_only_connect_may_look_and_not_release() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let nobody = 65534;
    let server = ServerProcess::start(&["--allow-uid", "65534"]);
    let (_engine, _reader) = readers(&server);
    // The folder with the socket is open to its maker alone.
    std::fs::set_permissions(server.folder(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |arguments: &[&str]| run(command(&server.socket(), arguments).uid(nobody).gid(nobody));
    let seen = as_nobody(&["pins", "--json"]);
    assert_eq!((seen.code, seen.json()["pins"].as_array().map(Vec::len)), (0, Some(2)));
    let said = as_nobody(&["pins", "--release", "--yes"]);
    assert_eq!(said.code, 4);
    assert!(said.stderr.contains("the server's own user, or root"), "{}", said.stderr);
    assert_eq!(maru(&server, &["status"]).line("pins"), "3");
}
