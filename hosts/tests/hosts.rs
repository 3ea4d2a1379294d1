//! What a host has of its own, what it shares, and that nothing of it outlasts whoever made it.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use maru_hosts::{Host, Network};

/// A network, or a word on why there is none.
fn network() -> Option<Network> {
    Network::new().inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

fn output(host: &Host, program: &str, arguments: &[&str]) -> Output {
    host.place(Command::new(program).args(arguments)).output().unwrap()
}

fn text(host: &Host, program: &str, arguments: &[&str]) -> String {
    let output = output(host, program, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn waits(host: &Host) -> Child {
    host.place(Command::new("cat").stdin(Stdio::piped())).spawn().unwrap()
}

#[test]
fn each_host_has_a_boot_and_an_address_of_its_own() {
    let Some(network) = network() else { return };
    let hosts = ["a", "b", "c"].map(|name| network.host(name).start().unwrap());
    let machine = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boots = hosts.each_ref().map(|host| text(host, "cat", &["/proc/sys/kernel/random/boot_id"]));
    assert_eq!(boots.iter().chain([&machine]).collect::<HashSet<_>>().len(), 4, "{boots:?}");
    assert_eq!(hosts.each_ref().map(Host::address).into_iter().collect::<HashSet<_>>().len(), 3);
    for host in &hosts {
        let addresses = text(host, "ip", &["-oneline", "address"]);
        assert!(addresses.contains(&format!(" {}/24 ", host.address())), "{addresses}");
    }
}

#[test]
fn networks_have_nothing_in_common() {
    let (Some(one), Some(other)) = (network(), network()) else { return };
    let [one, other] = [&one, &other].map(|network| network.host("a").start().unwrap());
    assert_eq!(one.address(), other.address());
}

#[test]
fn a_host_sees_of_memory_only_what_it_shares_and_where() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let [shared, kept] = ["shared", "kept"].map(|name| folder.path().join(name));
    for folder in [&shared, &kept] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "machine").unwrap();
    }
    let same = network.host("same").shares(&shared).start().unwrap();
    let other = network.host("other").shares_as(&shared, "/dev/shm/another/name").start().unwrap();
    let path = |folder: &Path| folder.join("file").to_str().unwrap().to_owned();
    assert_eq!(text(&same, "cat", &[&path(&shared)]), "machine");
    assert_eq!(text(&other, "cat", &["/dev/shm/another/name/file"]), "machine");
    for (host, unseen) in [(&same, &kept), (&other, &kept), (&other, &shared)] {
        assert!(!output(host, "cat", &[&path(unseen)]).status.success());
    }
    text(&other, "cp", &["/etc/hostname", "/dev/shm/another/name/file"]);
    assert_ne!(fs::read_to_string(path(&shared)).unwrap(), "machine");
    assert!(!Path::new("/dev/shm/another").exists(), "nothing is made outside");
}

#[test]
fn what_is_hidden_is_empty_and_may_hold_what_is_shared() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [pool, socket] = ["pool", "socket"].map(|name| folder.path().join(name));
    fs::create_dir(&pool).unwrap();
    fs::write(&socket, "").unwrap();
    let host = network.host("host").hides(folder.path()).shares(&pool).start().unwrap();
    assert_eq!(text(&host, "ls", &[folder.path().to_str().unwrap()]), "pool\n");
}

#[test]
fn a_place_that_would_be_made_on_the_machine_is_refused() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("nowhere");
    let refused = network.host("host").shares_as(folder.path(), &place).start().unwrap_err();
    assert!(refused.to_string().contains(place.to_str().unwrap()), "{refused}");
    assert!(!place.exists());
}

/// Whether a host has a way out, as it sees it.
fn is_plugged_in(host: &Host) -> bool {
    !text(host, "ip", &["-oneline", "link", "show", "eth0"]).contains("NO-CARRIER")
}

#[test]
fn a_cable_is_pulled_and_plugged_in_again_and_others_keep_theirs() {
    let Some(network) = network() else { return };
    let [one, other] = ["one", "other"].map(|name| network.host(name).start().unwrap());
    for _ in 0..3 {
        one.unplug().unwrap();
        assert_eq!([&one, &other].map(is_plugged_in), [false, true]);
        one.plug_in().unwrap();
        assert_eq!([&one, &other].map(is_plugged_in), [true, true]);
    }
}

#[test]
fn whatever_runs_on_a_host_that_is_powered_off_is_gone() {
    let Some(network) = network() else { return };
    let [one, other] = ["one", "other"].map(|name| network.host(name).start().unwrap());
    let mut children = [&one, &one, &other].map(waits);
    one.power_off().unwrap();
    assert!(!is_plugged_in(&one));
    let ended = children.each_mut().map(|child| child.try_wait().unwrap().is_some());
    assert_eq!(ended, [true, true, false]);
    children[2].kill().unwrap();
    children[2].wait().unwrap();
}

#[test]
fn a_process_ends_with_the_thread_that_placed_it() {
    let Some(network) = network() else { return };
    let host = network.host("host").start().unwrap();
    let mut child = std::thread::scope(|scope| scope.spawn(|| waits(&host)).join().unwrap());
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_program_that_is_not_there_is_told_of_as_usual() {
    let Some(network) = network() else { return };
    let host = network.host("host").start().unwrap();
    let missing = host.place(&mut Command::new("/nowhere/program")).spawn().unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}
