//! What client processes share, and what they can't do to each other.

use maru_tests::{ClientConfig, ClientProcess, Command, Reply, ServerProcess, binary, wait_until};

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

fn key(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

fn all(word: &str, count: usize) -> Vec<String> {
    vec![word.to_owned(); count]
}

#[test]
fn a_chunk_stored_by_one_process_is_read_by_another() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(writer.each(Command::Store(keys("chunk", 20), 4000)), all("stored", 20));
    assert_eq!(reader.count(Command::Acquire(keys("chunk", 20))), 20);
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
    assert_eq!(reader.count(Command::Acquire(keys("other", 3))), 0);
}

#[test]
fn acquire_ends_at_the_first_miss() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    let all_keys = keys("chunk", 10);
    let mut stored = all_keys.clone();
    stored.remove(6);
    writer.each(Command::Store(stored, 100));
    assert_eq!(reader.count(Command::Acquire(all_keys)), 6);
    assert_eq!(reader.stats().pins, 6, "nothing after the miss is pinned");
}

#[test]
fn queries_agree_on_what_exists() {
    let server = ServerProcess::start(&[]);
    let mut client = ClientProcess::connect(&server, "a");
    client.each(Command::Store(keys("chunk", 3), 100));
    let asked = ["chunk-0", "nothing", "chunk-2"].map(str::to_owned).to_vec();
    assert_eq!(client.each(Command::Exists(asked.clone())), ["yes", "no", "yes"]);
    assert_eq!(client.count(Command::Read(asked)), 1);
}

#[test]
fn a_reader_needs_no_memory_of_its_own_and_connects_to_a_full_pool() {
    let server = ServerProcess::start(&["--pool-size", "4MiB"]);
    let mut writer = ClientProcess::connect_with(ClientConfig {
        region_size: 4 << 20,
        eager: true,
        ..ClientConfig::new(&server.socket(), "writer")
    });
    writer.each(Command::Store(keys("chunk", 2), 100));
    assert_eq!(writer.stats().pool_free_bytes, 0);
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(reader.count(Command::Read(keys("chunk", 2))), 2);
    let refused = reader.refused(Command::HoldPage);
    assert!(refused.contains("pool"), "{refused}");
}

#[test]
fn a_reader_can_not_map_another_instances_region_for_writing() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(key("chunk"), 4096));
    reader.count(Command::Acquire(key("chunk")));
    let Reply::Each(mapped) = reader.call(Command::Mappings(server.pool())) else { panic!("no mappings") };
    assert_eq!(mapped, ["r--s"], "shared, and only to be read");
    let refused = reader.refused(Command::MakeForeignWritable("chunk".to_owned()));
    assert!(refused.contains("Permission denied"), "{refused}");
}

/// The original let a reader write into the owner's memory.
#[test]
fn a_reader_that_writes_into_anothers_chunk_dies_and_the_bytes_stay() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut vandal = ClientProcess::connect(&server, "vandal");
    writer.each(Command::Store(key("chunk"), 4096));
    vandal.send(&Command::ScribbleOn("chunk".to_owned()));
    assert_eq!(vandal.reply(), None);
    assert_eq!(vandal.signal(), Some(11), "SIGSEGV");
    assert_eq!(writer.count(Command::Read(key("chunk"))), 1);
}

#[test]
fn delete_tells_deleted_missing_and_pinned_apart() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(keys("chunk", 2), 100));
    reader.count(Command::Acquire(key("chunk-0")));
    let asked = ["chunk-0", "chunk-1", "nothing"].map(str::to_owned).to_vec();
    assert_eq!(writer.each(Command::BatchDelete(asked.clone())), ["pinned", "deleted", "not found"]);
    assert_eq!(writer.each(Command::Delete(asked.clone())), ["pinned", "not found", "not found"]);
    assert_eq!(reader.call(Command::ReleaseHeld), Reply::Done);
    wait_until("the reader's pin is released", || writer.stats().pins == 0);
    assert_eq!(writer.each(Command::Delete(asked)), ["deleted", "not found", "not found"]);
}

/// The original let the owner reuse the page under the reader.
#[test]
fn bytes_under_a_guard_do_not_change_whatever_the_owner_does() {
    let server = ServerProcess::start(&["--pool-size", "4MiB"]);
    let mut writer = ClientProcess::connect_with(ClientConfig {
        auto_expand: false,
        ..ClientConfig::new(&server.socket(), "writer")
    });
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(key("kept"), 4096));
    reader.count(Command::Acquire(key("kept")));
    assert_eq!(writer.each(Command::Delete(key("kept"))), ["pinned"]);
    // Every page of the region but the reader's is stored and deleted again.
    for round in 0..3 {
        let others = keys(&format!("round-{round}"), 200);
        assert_eq!(writer.each(Command::BatchStore(others.clone(), 4096)), all("stored", 200));
        assert_eq!(writer.each(Command::BatchDelete(others)), all("deleted", 200));
    }
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
}

#[test]
fn a_killed_clients_pins_are_released() {
    let server = ServerProcess::start(&["--grace", "50ms"]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(keys("chunk", 5), 100));
    reader.count(Command::Acquire(keys("chunk", 5)));
    reader.each(Command::Pin(keys("chunk", 5)));
    assert_eq!(writer.stats().pinned_entries, 5);
    reader.kill();
    wait_until("the pins are released", || writer.stats().pins == 0);
    assert_eq!(writer.each(Command::BatchDelete(keys("chunk", 5))), all("deleted", 5));
}

#[test]
fn pins_of_one_client_are_not_dropped_by_another() {
    let server = ServerProcess::start(&[]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(key("chunk"), 100));
    assert_eq!(reader.each(Command::Pin(key("chunk"))), ["pinned"]);
    assert_eq!(writer.each(Command::Unpin(key("chunk"))), ["not pinned"]);
    assert_eq!(writer.each(Command::Delete(key("chunk"))), ["pinned"]);
    assert_eq!(reader.each(Command::Unpin(key("chunk"))), ["unpinned"]);
    assert_eq!(reader.each(Command::Unpin(key("chunk"))), ["not pinned"], "once a pin");
    assert_eq!(writer.each(Command::Delete(key("chunk"))), ["deleted"]);
}

#[test]
fn a_batch_pin_stops_at_the_first_miss() {
    let server = ServerProcess::start(&[]);
    let mut client = ClientProcess::connect(&server, "a");
    client.each(Command::Store(keys("chunk", 2), 100));
    let asked = ["chunk-0", "nothing", "chunk-1"].map(str::to_owned).to_vec();
    assert_eq!(client.each(Command::Pin(asked)), ["pinned", "not found", "skipped"]);
    assert_eq!(client.stats().pins, 1);
}

#[test]
fn pins_of_an_entry_are_bounded() {
    let server = ServerProcess::start(&["--max-pins-per-entry", "2"]);
    let mut client = ClientProcess::connect(&server, "a");
    client.each(Command::Store(key("chunk"), 100));
    let words = (0..3).flat_map(|_| client.each(Command::Pin(key("chunk")))).collect::<Vec<_>>();
    assert_eq!(words, ["pinned", "pinned", "pin limit"]);
}

#[test]
fn of_two_processes_that_store_one_key_one_wins_and_the_other_has_its_page_back() {
    let server = ServerProcess::start(&[]);
    let mut clients = ["a", "b"].map(|name| {
        ClientProcess::connect_with(ClientConfig { eager: true, ..ClientConfig::new(&server.socket(), name) })
    });
    let pages_before = clients.each_mut().map(|client| client.count(Command::FreePages));
    // Both are told before either is asked, so they race.
    for client in &mut clients {
        client.send(&Command::Store(keys("raced", 100), 4096));
    }
    let outcomes = clients.each_mut().map(|client| match client.reply() {
        Some(Reply::Each(words)) => words,
        other => panic!("{other:?}"),
    });
    for (first, second) in outcomes[0].iter().zip(&outcomes[1]) {
        let mut pair = [first.as_str(), second.as_str()];
        pair.sort_unstable();
        assert_eq!(pair, ["exists", "stored"]);
    }
    for ((client, words), before) in clients.iter_mut().zip(&outcomes).zip(pages_before) {
        let stored = words.iter().filter(|word| *word == "stored").count();
        assert_eq!(client.count(Command::FreePages), before - stored, "a refused page is free again");
        assert_eq!(client.count(Command::Read(keys("raced", 100))), 100);
    }
}

/// The original leaked the pages of keys that a batch did not store.
#[test]
fn a_batch_store_gives_back_the_page_of_every_refused_key() {
    let server = ServerProcess::start(&[]);
    let mut client =
        ClientProcess::connect_with(ClientConfig { eager: true, ..ClientConfig::new(&server.socket(), "a") });
    let before = client.count(Command::FreePages);
    let batch = ["one", "two", "one", "three", "two"].map(str::to_owned).to_vec();
    let words = client.each(Command::BatchStore(batch, 4096));
    assert_eq!(words, ["stored", "stored", "exists", "stored", "exists"]);
    assert_eq!(client.count(Command::FreePages), before - 3);
}

/// The original lost the owner's page, and its next store of the key said true without storing.
#[test]
fn a_page_deleted_by_a_non_owner_returns_to_its_owner() {
    let server = ServerProcess::start(&[]);
    let mut owner = ClientProcess::connect_with(ClientConfig {
        auto_expand: false,
        ..ClientConfig::new(&server.socket(), "owner")
    });
    let mut other = ClientProcess::connect(&server, "other");
    // A region of 256 pages, filled three times over.
    for round in 0..3 {
        let chunks = keys(&format!("round-{round}"), 256);
        assert_eq!(owner.each(Command::Store(chunks.clone(), 4096)), all("stored", 256));
        assert_eq!(owner.count(Command::FreePages), 0);
        assert_eq!(other.each(Command::BatchDelete(chunks)), all("deleted", 256));
    }
    assert_eq!(owner.each(Command::Store(key("round-0-0"), 4096)), ["stored"]);
    assert_eq!(other.count(Command::Read(key("round-0-0"))), 1);
}

#[test]
fn a_handler_expands_where_it_may_and_says_so_where_it_may_not() {
    let server = ServerProcess::start(&[]);
    let config = ClientConfig {
        region_size: 64 << 10,
        expand_size: Some(128 << 10),
        ..ClientConfig::new(&server.socket(), "expanding")
    };
    let mut expanding = ClientProcess::connect_with(config.clone());
    assert_eq!(expanding.each(Command::Store(keys("e", 100), 4096)), all("stored", 100));
    assert_eq!(expanding.stats().regions, 4, "16 pages, then 32 at a time");

    let mut fixed = ClientProcess::connect_with(ClientConfig { auto_expand: false, ..config });
    assert_eq!(fixed.each(Command::Store(keys("f", 16), 4096)), all("stored", 16));
    assert_eq!(fixed.each(Command::Pin(keys("f", 16))), all("pinned", 16));
    let words = fixed.each(Command::Store(key("g"), 4096));
    assert!(words[0].contains("no page is free"), "{}", words[0]);
    assert_eq!(fixed.each(Command::Unpin(key("f-7"))), ["unpinned"]);
    assert_eq!(
        fixed.each(Command::Store(key("g"), 4096)),
        ["stored"],
        "in the place of the one without a pin"
    );
    assert_eq!(fixed.each(Command::Exists(keys("f", 16))).iter().filter(|word| *word == "no").count(), 1);
}

#[test]
fn regions_of_a_killed_client_are_orphans_that_stay_readable() {
    let server = ServerProcess::start(&["--grace", "50ms"]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(keys("chunk", 3), 4096));
    writer.kill();
    wait_until("the region is an orphan", || reader.stats().orphans == 1);
    assert_eq!(reader.count(Command::Acquire(keys("chunk", 3))), 3);
    assert_eq!(reader.call(Command::ReleaseHeld), Reply::Done);
    let deleted = reader.each(Command::BatchDelete(keys("chunk", 3)));
    assert_eq!(deleted, all("deleted", 3));
    let stats = reader.stats();
    assert_eq!((stats.regions, stats.entries), (0, 0), "an orphan without entries is freed");
}

/// The original's pool stayed full for ever.
#[test]
fn the_memory_of_killed_clients_that_stored_nothing_comes_back() {
    let server = ServerProcess::start(&["--grace", "50ms", "--pool-size", "14MiB"]);
    for round in 0..2 {
        let owners = (0..7).map(|n| {
            ClientProcess::connect_with(ClientConfig {
                region_size: 2 << 20,
                eager: true,
                ..ClientConfig::new(&server.socket(), &format!("owner-{round}-{n}"))
            })
        });
        owners.collect::<Vec<_>>().into_iter().for_each(ClientProcess::kill);
        let mut watcher = ClientProcess::connect(&server, "watcher");
        wait_until("the pool is free", || watcher.stats().pool_free_bytes == 14 << 20);
    }
}

#[test]
fn a_closed_handler_leaves_its_chunks_and_takes_the_rest_along() {
    let server = ServerProcess::start(&["--grace", "50ms"]);
    let mut writer = ClientProcess::connect(&server, "writer");
    let mut reader = ClientProcess::connect(&server, "reader");
    writer.each(Command::Store(key("chunk"), 4096));
    assert_eq!(writer.call(Command::Close), Reply::Done);
    assert_eq!(writer.call(Command::Close), Reply::Done, "closing twice is fine");
    let refused = writer.refused(Command::HoldPage);
    assert!(refused.contains("closed"), "{refused}");
    assert_eq!(reader.count(Command::Read(key("chunk"))), 1);
}

#[test]
fn a_thousand_regions() {
    let server = ServerProcess::start(&["--pool-size", "2GiB"]);
    let mut writer = ClientProcess::connect_with(ClientConfig {
        region_size: 4096,
        ..ClientConfig::new(&server.socket(), "writer")
    });
    let mut reader = ClientProcess::connect(&server, "reader");
    assert_eq!(writer.each(Command::Store(keys("chunk", 1000), 4096)), all("stored", 1000));
    assert_eq!(writer.stats().regions, 1000);
    assert_eq!(reader.count(Command::Acquire(keys("chunk", 1000))), 1000);
    assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
}

#[test]
fn batches_of_512_and_of_60_000_keys() {
    let server = ServerProcess::start(&["--pool-size", "260MiB"]);
    let config = ClientConfig { region_size: 250 << 20, ..ClientConfig::new(&server.socket(), "writer") };
    let mut writer = ClientProcess::connect_with(config);
    let mut reader = ClientProcess::connect(&server, "reader");
    for count in [512, 60_000] {
        let chunks = keys(&format!("of-{count}"), count);
        let words = writer.each(Command::BatchStore(chunks.clone(), 64));
        assert_eq!(words, all("stored", count));
        assert_eq!(reader.each(Command::Exists(chunks.clone())), all("yes", count));
        assert_eq!(reader.count(Command::Acquire(chunks.clone())), count);
        assert_eq!(reader.stats().pins, count as u64);
        assert_eq!(reader.call(Command::CheckHeld), Reply::Done);
        assert_eq!(reader.call(Command::ReleaseHeld), Reply::Done);
        wait_until("all pins are released", || writer.stats().pins == 0);
        assert_eq!(writer.each(Command::BatchDelete(chunks)), all("deleted", count));
    }
}

#[test]
fn a_prefix_longer_than_a_frame_goes_on_only_while_everything_hits() {
    let server = ServerProcess::start(&["--pool-size", "260MiB"]);
    let config = ClientConfig { region_size: 250 << 20, ..ClientConfig::new(&server.socket(), "writer") };
    let mut writer = ClientProcess::connect_with(config);
    let chunks = keys("chunk", 40_000);
    let mut stored = chunks.clone();
    stored.remove(20_000);
    writer.each(Command::BatchStore(stored, 64));
    assert_eq!(writer.count(Command::Acquire(chunks)), 20_000);
    assert_eq!(writer.stats().pins, 20_000);
}

#[test]
fn tcp_clients_on_the_same_host_find_the_memory_by_path() {
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0"]);
    let address = format!("tcp://{}", server.tcp_address());
    let tcp = |name: &str| ClientConfig {
        address: address.clone(),
        stay_on_tcp: true,
        ..ClientConfig::new(&server.socket(), name)
    };
    let mut writer = ClientProcess::connect_with(tcp("writer"));
    let mut reader = ClientProcess::connect_with(tcp("reader"));
    assert_eq!(writer.each(Command::Store(keys("chunk", 5), 4096)), all("stored", 5));
    assert_eq!(reader.count(Command::Read(keys("chunk", 5))), 5);
    let mut unix = ClientProcess::connect(&server, "unix");
    assert_eq!(unix.count(Command::Read(keys("chunk", 5))), 5);
}

/// What the README says of the default, and both sides go by without being told.
#[test]
fn a_client_finds_the_server_at_the_default_socket() {
    let folder = tempfile::tempdir().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let path = folder.path();
    let with_runtime_dir = [("XDG_RUNTIME_DIR", path), ("TMPDIR", std::path::Path::new("/nowhere"))];
    let without = [("XDG_RUNTIME_DIR", std::path::Path::new("")), ("TMPDIR", path)];
    for (environment, socket) in
        [(with_runtime_dir, "maru/maru.sock".to_owned()), (without, format!("maru-{uid}/maru.sock"))]
    {
        let mut command = std::process::Command::new(binary("maru-server"));
        command.envs(environment).arg("--pool").arg(path.join("pool")).args(["--pool-size", "2MiB"]);
        let mut server = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_until("the server listens", || {
            std::os::unix::net::UnixStream::connect(path.join(&socket)).is_ok()
        });
        let mut command = std::process::Command::new(binary("maru-test-client"));
        command.envs(environment);
        let mut client = ClientProcess::start_by(command);
        let config = ClientConfig { address: String::new(), ..ClientConfig::new(path, "a") };
        let connected = client.call(Command::Connect(config));
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(connected, Reply::Done, "{socket}");
    }
}
