//! What a person sees who gets it wrong: one clear sentence.

use maru_tests::{ClientConfig, ClientProcess, Command, ServerProcess};

#[test]
fn a_server_that_does_not_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("maru.sock");
    let refused = ClientProcess::start().refused(Command::Connect(ClientConfig::new(&socket, "a")));
    assert!(refused.contains("no maru-server listens on"), "{refused}");
    assert!(refused.contains(socket.to_str().unwrap()), "{refused}");
}

#[test]
fn keys_have_a_sensible_length() {
    let server = ServerProcess::start(&[]);
    let mut client = ClientProcess::connect(&server, "a");
    for key in [String::new(), "x".repeat(1 << 20)] {
        let refused = client.each(Command::Store(vec![key.clone()], 100));
        assert!(refused[0].contains("a key has"), "{refused:?}");
        let refused = client.refused(Command::Acquire(vec![key.clone()]));
        assert!(refused.contains("a key has"), "{refused}");
    }
}

#[test]
fn a_page_larger_than_its_region_is_refused() {
    let server = ServerProcess::start(&[]);
    let config = ClientConfig { page_size: 2 << 20, ..ClientConfig::new(&server.socket(), "a") };
    let refused = ClientProcess::start().refused(Command::Connect(config));
    assert!(refused.contains("page"), "{refused}");
}

#[test]
fn a_chunk_larger_than_a_page_is_refused() {
    let server = ServerProcess::start(&[]);
    let mut client = ClientProcess::connect(&server, "a");
    let refused = client.each(Command::Store(vec!["chunk".to_owned()], 4097));
    assert!(refused[0].contains("4097") && refused[0].contains("4096"), "{refused:?}");
}

#[test]
fn a_pool_that_is_too_small_for_a_region_is_an_error_that_says_so() {
    let server = ServerProcess::start(&["--pool-size", "2MiB"]);
    let config =
        ClientConfig { region_size: 64 << 20, eager: true, ..ClientConfig::new(&server.socket(), "a") };
    let refused = ClientProcess::start().refused(Command::Connect(config));
    assert!(refused.contains("no pool has room"), "{refused}");
}

/// A full file system is an error when a region is asked for, never a SIGBUS later.
#[test]
fn a_full_tmpfs_is_an_error_at_the_request() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "maru-test"])
        .arg(&mount)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: this root may not mount");
        return;
    }
    {
        let server = ServerProcess::start(&["--pool", &format!("tmpfs:{},size=6MiB", mount.display())]);
        // Somebody else fills the file system behind the server's back.
        std::fs::write(mount.join("ballast"), vec![1; 5 << 20]).unwrap();
        let config = ClientConfig { region_size: 6 << 20, ..ClientConfig::new(&server.socket(), "a") };
        let mut client = ClientProcess::connect_with(config);
        let refused = client.each(Command::Store(vec!["chunk".to_owned()], 100));
        assert!(
            refused[0].contains("no pool has room") || refused[0].contains("no page is free"),
            "{refused:?}"
        );
        std::fs::remove_file(mount.join("ballast")).unwrap();
        assert_eq!(client.each(Command::Store(vec!["chunk".to_owned()], 100)), ["stored"]);
    }
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&mount).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
}
