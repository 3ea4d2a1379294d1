//! Starting and stopping the server, and what a person sees who gets it wrong.

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use common::Peer;
use maru_proto::{Flags, KeyDigest, Opcode, SessionToken, SocketRecord};
use maru_tests::{ServerProcess, binary, wait_until};
use zerocopy::FromBytes;

/// Runs a server that can't start, with a folder of its own; what it said.
fn refused(options: &[&str]) -> String {
    refused_in(tempfile::tempdir().unwrap().path(), options)
}

/// The sentence is the last line, alone and without a backtrace.
fn assert_says(said: &str, expected: &str) {
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("maru-server: ") && last.contains(expected), "{said}");
    assert!(!said.contains("backtrace") && !said.contains("panicked"), "{said}");
}

/// Runs a server that can't start; what it said.
fn refused_in(folder: &Path, options: &[&str]) -> String {
    let output = ServerProcess::command(folder, options).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn sigterm_removes_the_socket_and_leaves_the_pool() {
    let mut server = ServerProcess::start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let request = maru_proto::RequestAllocRequest {
        size: (1 << 20).into(),
        page_size: 4096.into(),
        pool_id: maru_proto::RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let response = peer.call(Opcode::RequestAlloc, Flags::NONE, &[request]);
    assert_eq!(response.status, maru_proto::FrameStatus::Ok);
    let region = server.pool().join("region-1");
    assert!(region.exists() && server.socket().exists());

    assert!(server.terminate(), "the server ends with success");
    assert!(region.exists() && !server.socket().exists());
    assert!(peer.next().is_none(), "the connection is closed");

    server.restart(&["--fresh"]);
    assert!(!region.exists(), "what it holds is discarded on request");
}

#[test]
fn a_second_server_on_the_same_pool_or_socket_is_refused() {
    let server = ServerProcess::start(&[]);
    assert_says(&refused_in(server.folder(), &[]), "another server keeps its directory in");
    let elsewhere = server.folder().join("state");
    let said = refused_in(server.folder(), &["--state-dir", elsewhere.to_str().unwrap()]);
    assert_says(&said, "another server uses the pool");
    let other = server.folder().join("other-pool");
    let said = refused_in(server.folder(), &["--pool", &format!("tmpfs:{}", other.display())]);
    assert_says(&said, "another server listens on");
    Peer::greeted(&server, "the first goes on");
}

#[test]
fn a_socket_that_nobody_listens_on_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("maru.sock")).unwrap());
    let server = ServerProcess::start_in(folder, &[]);
    Peer::greeted(&server, "a");
}

/// Clients have other working directories than the server.
#[test]
fn a_socket_by_a_relative_path_is_told_of_by_an_absolute_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ServerProcess::command(folder.path(), &["--socket", "relative.sock"]);
    let mut server = command.current_dir(folder.path()).stderr(Stdio::null()).spawn().unwrap();
    let socket = folder.path().join("relative.sock");
    wait_until("it serves", || UnixStream::connect(&socket).is_ok());
    let mut peer = Peer::over(UnixStream::connect(&socket).unwrap());
    peer.hello("a", SessionToken::NONE);
    let told = peer.call::<KeyDigest>(Opcode::GetSocket, Flags::NONE, &[]);
    server.kill().unwrap();
    server.wait().unwrap();
    let told = SocketRecord::read_from_bytes(&told.body).unwrap();
    assert_eq!(told.path(), Some(socket.as_os_str().as_encoded_bytes()));
}

#[test]
fn what_can_not_work_is_one_clear_sentence() {
    assert_says(&refused(&["--pool-size", "1KiB"]), "is too small");
    assert_says(&refused(&["--pool-size", "1PiB"]), "does not fit");
    assert_says(&refused(&["--pool", "tmpfs:/proc/maru"]), "can't keep the directory in /proc/maru");
    assert_says(&refused(&["--socket", "/proc/maru.sock"]), "can't listen on /proc/maru.sock");
    assert_says(&refused(&["--listen", "0.0.0.0:0"]), "needs --auth-token-file");
    assert_says(&refused(&["--auth-token-file", "/nowhere"]), "the token in /nowhere can't be used");
    assert_says(&refused(&["--log", "maru=loud"]), "--log maru=loud");
}

/// Runs `--check-config` with a file of options; whether it is content, and what it said on which output.
fn checked(file: &str, options: &[&str]) -> (bool, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.toml");
    std::fs::write(&path, file).unwrap();
    let mut command = ServerProcess::command(folder.path(), &["--check-config"]);
    let output = command.arg("--config").arg(&path).args(options).stdin(Stdio::null()).output().unwrap();
    assert!(!folder.path().join("maru.sock").exists() && !folder.path().join("pool").exists());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_configuration_is_checked_without_serving() {
    let (is_content, shown, said) = checked("grace = \"20s\"", &["--spin", "1ms"]);
    assert!(is_content && said.is_empty(), "{said}");
    let has = |option: &str, source: &str| {
        shown.lines().any(|line| line.starts_with(option) && line.ends_with(source))
    };
    assert!(has("grace = \"20s\"", "maru.toml:1") && has("spin = \"1ms\"", "# the command line"), "{shown}");

    for (file, says) in [
        ("graze = \"20s\"", "maru.toml:1: there is no option graze"),
        ("listen = \"0.0.0.0:5555\"", "needs --auth-token-file"),
        ("auth-token-file = \"/nowhere\"", "the token in /nowhere can't be used"),
        ("log = \"maru=loud\"", "--log maru=loud"),
    ] {
        let (is_content, shown, said) = checked(file, &[]);
        assert!(!is_content && shown.is_empty(), "{file}");
        assert_says(&said, says);
    }
}

#[test]
fn a_server_takes_its_options_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.toml");
    std::fs::write(&path, "max-body = \"1KiB\"\ngrace = \"7s\"\n").unwrap();
    let server = ServerProcess::start_in(folder, &["--config", path.to_str().unwrap()]);
    let (_peer, greeting) = Peer::greeted(&server, "a");
    assert_eq!((greeting.max_body.get(), greeting.grace_ms.get()), (1024, 7000));
}

#[test]
fn a_pool_without_huge_pages_names_the_mount_that_would_have_them() {
    let server = ServerProcess::start(&[]);
    assert!(server.said_at_start("huge=within_size"));
}

/// Needs root, as mounting does.
#[test]
fn root_can_have_the_server_mount_a_pool_with_huge_pages() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("mounted");
    let socket = folder.path().join("maru.sock");
    let mut command = std::process::Command::new(binary("maru-server"));
    command
        .arg("--socket")
        .arg(&socket)
        .arg("--pool")
        .arg(format!("tmpfs:{},size=16MiB,mount", mount.display()));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map_while(Result::ok);
    let log = lines.by_ref().take_while(|line| !line.contains("serving")).collect::<Vec<_>>();
    if log.iter().any(|line| line.contains("can't mount")) {
        child.wait().unwrap();
        eprintln!("skipped: this root may not mount: {log:#?}");
        return;
    }
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(mount.to_str().unwrap())).expect("it is mounted");
    assert!(line.contains("huge=within_size"), "{line}");

    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let count = || {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mountinfo.lines().filter(|line| line.contains(mount.to_str().unwrap())).count()
    };
    assert_eq!(count(), 1, "the pool outlives the server");

    let mut child = command.spawn().unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("serving")));
    assert_eq!(count(), 1, "it is not mounted a second time");
    child.kill().unwrap();
    child.wait().unwrap();
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// The lines of a log of JSON that have this message.
fn events(log: &[String], message: &str) -> Vec<serde_json::Value> {
    let lines = log.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    lines.filter(|event| event["message"] == message).collect()
}

#[test]
fn what_becomes_of_instances_and_regions_is_a_line_each_with_number_name_and_reason() {
    let server = ServerProcess::start(&["--log-format", "json", "--grace", "100ms"]);
    let (mut peer, greeting) = Peer::greeted(&server, "engine-0");
    let instance = greeting.instance.get();
    let request = maru_proto::RequestAllocRequest {
        size: (1 << 20).into(),
        page_size: 4096.into(),
        pool_id: maru_proto::RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    peer.call(Opcode::RequestAlloc, Flags::NONE, &[request]);
    let region = maru_proto::RegisterRecord {
        digest: KeyDigest::from_bytes([7; 16]),
        region_id: 1.into(),
        length: 5.into(),
        page_index: 0.into(),
        checksum: 0.into(),
    };
    peer.call(Opcode::RegisterKv, Flags::NONE, &[region]);
    // A second connection that goes on with the session, as after a loss.
    let mut again = Peer::connect(&server);
    let id = maru_proto::InstanceId::new("engine-0").unwrap();
    let mut hello = maru_proto::HelloRequest::new(id, maru_proto::ConnectionKind::Data, greeting.session);
    hello.resume = 1;
    again.call(Opcode::Hello, Flags::NONE, &[hello]);
    let mut stranger = Peer::connect(&server);
    stranger.call::<KeyDigest>(Opcode::Heartbeat, Flags::NONE, &[]);
    drop((peer, again));

    let log = server.wait_for_log("a region is an orphan");
    let only = |message: &str| match events(&log, message).as_slice() {
        [event] => event.clone(),
        events => panic!("{message}: {events:#?} of {log:#?}"),
    };
    for message in ["an instance opened", "an instance resumed its session", "an instance ended"] {
        let event = only(message);
        assert_eq!((&event["instance"], &event["name"]), (&instance.into(), &"engine-0".into()), "{message}");
        assert!(event["timestamp"].is_string() && event["level"] == "INFO", "{event}");
    }
    assert_eq!(only("an instance ended")["reason"], "the grace period without a connection is over");
    let given = only("a region was given");
    assert_eq!(
        (&given["region"], &given["instance"], &given["size"]),
        (&1.into(), &instance.into(), &(1 << 20).into())
    );
    let orphan = only("a region is an orphan");
    assert_eq!((&orphan["region"], &orphan["chunks"]), (&1.into(), &1.into()));
    assert_eq!(only("refused a connection")["status"], "hello_required");
    assert!(events(&log, "a region was freed").is_empty());
}

#[test]
fn a_slow_request_is_warned_of_with_what_it_was_and_whose() {
    let server = ServerProcess::start(&["--slow-request", "1ns", "--log-format", "json"]);
    let (mut peer, greeting) = Peer::greeted(&server, "engine-0");
    peer.call(Opcode::BatchExistsKv, Flags::NONE, &[KeyDigest::from_bytes([7; 16]); 1000]);
    let log = server.wait_for_log("BATCH_EXISTS_KV");
    let event = events(&log, "a request was slow").pop().unwrap();
    assert_eq!((&event["operation"], &event["records"]), (&"BATCH_EXISTS_KV".into(), &1000.into()));
    assert_eq!((&event["instance"], &event["name"]), (&greeting.instance.get().into(), &"engine-0".into()));
    let seconds = event["seconds"].as_f64().unwrap();
    assert!(seconds > 1e-9 && seconds < 1.0 && event["level"] == "WARN", "{event}");
}

#[test]
fn nothing_is_said_of_requests_that_nobody_asked_about() {
    let mut server = ServerProcess::start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "engine-0");
    for _ in 0..100 {
        peer.call(Opcode::BatchExistsKv, Flags::NONE, &[KeyDigest::from_bytes([7; 16]); 1000]);
    }
    peer.call(Opcode::UnpinKv, Flags::NONE, &[KeyDigest::from_bytes([7; 16])]);
    assert!(server.terminate());
    let said = server.wait_for_log("stopping");
    let messages = said.iter().filter(|line| !line.contains("an instance opened")).collect::<Vec<_>>();
    assert_eq!(messages.len(), 1, "{messages:#?}");
}
