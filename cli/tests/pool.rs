//! Memory is made a pool, shown and wiped, beside real servers. Regular files stand in for devices.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::terminal::InTerminal;
use common::{Said, command, maru, maru_at, only, run};
use maru_tests::{ClientProcess, Command, ServerProcess};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// From one place of a header to the other.
const SLOT: u64 = 4096;

/// A file of so many bytes in a folder of its own.
fn device(bytes: u64) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("device");
    File::create_new(&path).unwrap().set_len(bytes).unwrap();
    (folder, path)
}

/// Runs `maru pool`, which asks no server.
fn pool(arguments: &[&str]) -> Said {
    maru_at("/nowhere".as_ref(), &[&["pool"], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn init(path: &Path) -> String {
    let made = pool(&["init", text(path), "--yes", "--json"]).json();
    made["uuid"].as_str().unwrap().to_owned()
}

fn show(path: &Path) -> Value {
    only(&pool(&["show", text(path), "--json"]).json(), "pools").clone()
}

fn assert_refused(said: &Said, reasons: &[&str]) {
    assert_eq!((said.code, said.stdout.as_str()), (5, ""), "{}", said.stderr);
    for reason in reasons {
        assert!(said.stderr.contains(reason), "no {reason:?} in {}", said.stderr);
    }
}

/// The options of a server whose only pool is a device.
fn options<'a>(plan: &'a str, state: &'a str) -> [&'a str; 4] {
    ["--pool", plan, "--state-dir", state]
}

#[test]
fn a_device_is_made_a_pool_served_from_and_wiped() {
    let (folder, path) = device(18 * MIB);
    let said = pool(&["init", text(&path), "--yes"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    let (uuid, plan) = (said.line("uuid").to_owned(), format!("devdax:{}", text(&path)));
    assert_eq!(said.line("server option"), format!("--pool {plan}"));
    assert_eq!((said.line("incarnation"), said.line("size")), ("1", "18.0 MiB"));
    let shown = show(&path);
    assert_eq!(
        (&shown["kind"], &shown["uuid"], &shown["incarnation"]),
        (&"devdax".into(), &uuid.as_str().into(), &1.into())
    );
    assert_eq!((&shown["size_bytes"], &shown["in_use"]), (&(18 * MIB).into(), &false.into()));
    assert_eq!((&shown["slot_0"], &shown["slot_1"]), (&"incarnation 1".into(), &"empty".into()));
    assert_eq!(shown["to_do"], Value::Null);

    let state = folder.path().join("state");
    let mut server = ServerProcess::start_in(folder, &options(&plan, text(&state)));
    let mut engine = ClientProcess::connect(&server, "engine");
    let keys = vec!["a".to_owned(), "b".to_owned()];
    engine.each(Command::Store(keys.clone(), 1000));
    let told = maru(&server, &["pools", "--json"]).json();
    let told = only(&told, "pools");
    assert_eq!(
        (&told["kind"], &told["uuid"], &told["incarnation"]),
        (&"devdax".into(), &uuid.as_str().into(), &2.into())
    );
    assert_eq!((&told["path"], &told["coherence"]), (&text(&path).into(), &"coherent".into()));

    // While the server uses it, it is to be seen, and nothing else.
    assert_eq!(show(&path)["in_use"], true);
    for arguments in [&["init", text(&path), "--yes"][..], &["wipe", text(&path), "--yes", &uuid]] {
        assert_refused(&pool(arguments), &["a server uses ", "stop it first"]);
    }
    assert_eq!(engine.count(Command::Read(keys.clone())), 2);
    drop(engine);
    assert!(server.terminate());
    let left = show(&path);
    assert_eq!(
        (&left["incarnation"], &left["in_use"], &left["slot_1"]),
        (&2.into(), &false.into(), &"incarnation 2".into())
    );

    // It is still that pool, which no accident makes another of.
    assert_refused(&pool(&["init", text(&path), "--yes"]), &[&uuid, "incarnation 2", "maru pool wipe "]);
    server.restart(&options(&plan, text(&state)));
    assert_eq!(ClientProcess::connect(&server, "reader").count(Command::Read(keys)), 2);
    server.kill();

    let other = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    assert_refused(&pool(&["wipe", text(&path), "--yes", other]), &["nothing is wiped", &uuid, other]);
    assert_eq!(show(&path)["uuid"], uuid.as_str());
    let wiped = pool(&["wipe", text(&path), "--yes", &uuid, "--json"]).json();
    assert_eq!((&wiped["uuid"], &wiped["wiped"]), (&uuid.as_str().into(), &true.into()));
    let said = pool(&["show", text(&path)]);
    assert_eq!((said.code, said.line("slot 0"), said.line("slot 1")), (1, "empty", "empty"));
    assert!(said.line("to do").contains("maru pool init"), "{}", said.stdout);
    assert_refused(&pool(&["wipe", text(&path), "--yes", &uuid]), &["is no pool"]);

    // What was kept of the pool that is gone is not taken for the new one's.
    assert_ne!(init(&path), uuid);
    let refused = ServerProcess::command(server.folder(), &options(&plan, text(&state))).output().unwrap();
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains(&uuid) && refused.contains("--fresh"), "{refused}");
    server.restart(&[&options(&plan, text(&state))[..], &["--fresh"]].concat());
    assert_eq!(maru(&server, &["status"]).line("entries"), "0");
}

#[test]
fn what_can_not_be_a_device_is_refused() {
    let (folder, path) = device(3 * MIB);
    assert_refused(&pool(&["init", text(&path), "--yes"]), &["has 3.0 MiB", "takes at least 4.0 MiB"]);
    assert_refused(&pool(&["init", text(folder.path()), "--yes"]), &["is a folder", "maru-server --pool"]);
    assert_refused(&pool(&["init", "/dev/null", "--yes"]), &["is it a DAX device?"]);
    assert_refused(&pool(&["init", "/nowhere/dax0.0", "--yes"]), &["/nowhere/dax0.0: No such file"]);
    assert_refused(&pool(&["wipe", text(folder.path()), "--yes", "x"]), &["is no pool"]);
    assert_eq!(show(&path)["to_do"], "choose a larger device: it takes at least 4.0 MiB");

    // The server has the same rules.
    let plan = format!("devdax:{}", text(&path));
    let state = folder.path().join("state");
    let refused = ServerProcess::command(folder.path(), &options(&plan, text(&state))).output().unwrap();
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("takes at least 4.0 MiB"), "{refused}");
}

#[test]
fn nothing_is_done_to_memory_that_nobody_has_said_yes_to() {
    let (_folder, path) = device(4 * MIB);
    let contents = || std::fs::read(&path).unwrap();
    let bare = contents();
    assert_refused(&pool(&["init", text(&path)]), &["add --yes to go on", "nothing but zeros"]);
    assert!(contents() == bare);
    File::options().write(true).open(&path).unwrap().write_all_at(b"XFSB", MIB).unwrap();
    let written = contents();
    assert_refused(&pool(&["init", text(&path)]), &["somebody has written there"]);
    assert!(contents() == written);
    let uuid = init(&path);
    let made = contents();
    assert_refused(&pool(&["wipe", text(&path)]), &["add --yes UUID", &uuid]);
    assert!(contents() == made);
}

#[test]
fn somebody_at_a_terminal_is_asked_and_keeps_servers_out_meanwhile() {
    let (folder, path) = device(18 * MIB);
    let ask = |arguments: &[&str]| {
        let arguments = [&["pool"], arguments].concat();
        InTerminal::start(command("/nowhere".as_ref(), &arguments))
    };
    let mut asked = ask(&["init", text(&path)]);
    asked.wait_for(&[
        "has 18.0 MiB",
        "servers of other hosts",
        "Make it a pool? What is on it is lost. [y/N]",
    ]);
    let (plan, state) = (format!("devdax:{}", text(&path)), folder.path().join("state"));
    let refused = ServerProcess::command(folder.path(), &options(&plan, text(&state)))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(String::from_utf8(refused.stderr).unwrap().contains("uses the pool"));
    asked.press("n\r");
    assert!(!asked.ends_well());
    assert_eq!(show(&path)["uuid"], Value::Null);

    let mut asked = ask(&["init", text(&path)]);
    asked.wait_for(&["[y/N]"]);
    asked.press("y\r");
    assert!(asked.ends_well());
    let shown = show(&path);
    let uuid = shown["uuid"].as_str().unwrap();
    for (answer, is_right) in [("yes", false), (uuid, true)] {
        let mut asked = ask(&["wipe", text(&path)]);
        asked.wait_for(&[uuid, "All that is in it will be lost", "Type its UUID to wipe it:"]);
        asked.press(&format!("{answer}\r"));
        assert_eq!(asked.ends_well(), is_right, "{answer}");
        assert_eq!(show(&path)["uuid"].is_null(), is_right, "{answer}");
    }
}

#[test]
fn a_damaged_header_is_shown_with_what_is_wrong_and_wiped_by_that_word() {
    let (_folder, path) = device(4 * MIB);
    let uuid = init(&path);
    let file = File::options().write(true).open(&path).unwrap();
    // Half of a change in the other place harms nobody.
    file.write_all_at(b"MARUPOOL\x01\0\0\0half", SLOT).unwrap();
    let shown = show(&path);
    assert_eq!((&shown["uuid"], &shown["slot_1"]), (&uuid.as_str().into(), &"damaged".into()));
    file.write_all_at(&[0xFF], 40).unwrap();
    let said = pool(&["show", text(&path)]);
    assert_eq!((said.code, said.line("uuid")), (1, "-"));
    assert_eq!((said.line("slot 0"), said.line("slot 1")), ("damaged", "damaged"));
    assert!(said.line("to do").contains("maru pool wipe"), "{}", said.stdout);
    assert_refused(&pool(&["init", text(&path), "--yes"]), &["header is damaged", "maru pool wipe "]);
    assert_refused(&pool(&["wipe", text(&path), "--yes", &uuid]), &["nothing is wiped", "unreadable"]);
    assert_eq!(pool(&["wipe", text(&path), "--yes", "unreadable"]).code, 0);
    assert_ne!(init(&path), uuid);

    file.write_all_at(&[9], 8).unwrap();
    let of_another_version = show(&path);
    assert_eq!(of_another_version["slot_0"], "of another version, format 9");
    assert!(of_another_version["to_do"].as_str().unwrap().starts_with("run that version"));
    assert_refused(&pool(&["init", text(&path), "--yes"]), &["has format 9"]);
}

#[test]
fn a_folder_is_shown_and_wiped_with_its_regions() {
    let mut server = ServerProcess::start(&[]);
    ClientProcess::connect(&server, "engine").each(Command::Store(vec!["a".to_owned()], 1000));
    let folder = server.pool();
    let shown = show(&folder);
    assert_eq!(
        (&shown["kind"], &shown["in_use"], &shown["regions_bytes"]),
        (&"tmpfs".into(), &true.into(), &(2 * MIB).into())
    );
    assert_eq!((&shown["incarnation"], &shown["size_bytes"]), (&2.into(), &Value::Null));
    assert!(shown["free_bytes"].as_u64().unwrap() > 0);
    let uuid = shown["uuid"].as_str().unwrap();
    assert_refused(&pool(&["wipe", text(&folder), "--yes", uuid]), &["a server uses "]);
    server.kill();
    assert_eq!(show(&folder)["in_use"], false);
    assert_eq!(pool(&["wipe", text(&folder), "--yes", uuid]).code, 0);
    assert!(!folder.join("maru.pool").exists() && !folder.join("region-1").exists());
    let said = pool(&["show", text(&folder)]);
    assert_eq!(said.code, 1);
    assert!(said.line("to do").contains("by itself"), "{}", said.stdout);
    server.restart(&["--fresh"]);
    assert_ne!(show(&folder)["uuid"], uuid);
}

#[test]
fn several_are_shown_together_and_without_a_name_all_devices_are() {
    let (folder, path) = device(4 * MIB);
    let uuid = init(&path);
    let said = pool(&["show", text(&path), text(folder.path()), "--json"]);
    assert_eq!(said.code, 1, "the folder is none yet");
    let pools = said.json()["pools"].clone();
    assert_eq!((&pools[0]["uuid"], &pools[1]["uuid"]), (&uuid.as_str().into(), &Value::Null));
    assert_refused(&pool(&["show", "/dev/null"]), &["can't look at /dev/null", "is it a DAX device?"]);
    let said = pool(&["show", "--json"]);
    assert_eq!(said.code, 0);
    let has_devices = std::fs::read_dir("/dev").unwrap().flatten().any(|file| {
        file.file_name().to_str().is_some_and(|name| name.starts_with("dax") && name.contains('.'))
    });
    assert_eq!(said.json()["pools"] != Value::Array(Vec::new()), has_devices);
}

/// Needs root, to be another user.
#[test]
fn a_device_that_this_user_may_not_read_is_shown_as_far_as_that_goes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let (folder, path) = device(4 * MIB);
    init(&path);
    for (path, mode) in [(folder.path(), 0o755), (&path, 0o600)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let as_nobody = |arguments: &[&str]| run(command("/nowhere".as_ref(), arguments).uid(65534).gid(65534));
    let said = as_nobody(&["pool", "show", text(&path)]);
    assert_eq!(
        (said.code, said.line("size"), said.line("in use"), said.line("uuid")),
        (1, "4.0 MiB", "-", "-")
    );
    assert!(said.line("to do").contains("the server's user"), "{}", said.stdout);
    assert_refused(&as_nobody(&["pool", "init", text(&path), "--yes"]), &["Permission denied"]);
    let said = as_nobody(&["doctor", "--host", "--pool", text(&path)]);
    assert!(said.stdout.contains("may not read") && said.stdout.contains("udev"), "{}", said.stdout);
}

/// Needs root, to make a block device of a file.
#[test]
fn a_block_device_that_something_else_has_for_itself_is_left_alone() {
    let (_folder, file) = device(8 * MIB);
    let mut losetup = std::process::Command::new("losetup");
    let made = match losetup.args(["--find", "--show"]).arg(&file).output() {
        Ok(made) if made.status.success() => made,
        other => {
            eprintln!("skipped: no block device is to be had here: {other:?}");
            return;
        }
    };
    let name = String::from_utf8(made.stdout).unwrap();
    let path = Path::new(name.trim());
    let made = pool(&["init", text(path), "--yes"]);
    let shown = pool(&["show", text(path), "--json"]);
    let exclusively = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    let claim = rustix::fs::open(path, exclusively, Mode::empty());
    let refused = pool(&["wipe", text(path), "--yes", "whatever it is"]);
    std::process::Command::new("losetup").arg("--detach").arg(path).status().unwrap();
    claim.expect("nobody else has it");
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(only(&shown.json(), "pools")["size_bytes"], 8 * MIB);
    assert_refused(&refused, &["is mounted, or in use by something else"]);
    assert_eq!(show(&file)["uuid"], made.line("uuid"));
}
