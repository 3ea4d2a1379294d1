//! Memory that is not coherent between hosts: what has to be written back and dropped, and that a chunk whose bytes are not
//! those that were stored is never handed out.
//!
//! The caches of one machine follow each other, so that a stale line can't be had here. A file of the pool that is written behind
//! everybody's back stands in for it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use maru_client::{AsKey, Config, Deleted, MaruHandler, StatKind, Stored};
use maru_proto::{DigestKey, RecordStatus, RegisterRecord, checksum};
use maru_tests::{
    ClientConfig, ClientProcess, Command, PAGE, ServerProcess, WireClient, config, connect, fill, is_intact,
    stat, store, wait_until,
};
use pollster::block_on;

fn with(config: Config) -> MaruHandler {
    MaruHandler::connect(config).unwrap()
}

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// The bytes that belong to a key.
fn chunk(key: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(key, &mut bytes);
    bytes
}

/// Writes into the memory of a region, of which nobody is told.
fn overwrite(server: &ServerProcess, region: u32, at: usize, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(server.pool().join(format!("region-{region}"))).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

fn record(secret: &DigestKey, key: &str, region: u32, page: u32, checksum: u32) -> RegisterRecord {
    RegisterRecord {
        digest: key.digest(secret).unwrap(),
        region_id: region.into(),
        length: u32::try_from(PAGE).unwrap().into(),
        page_index: page.into(),
        checksum: checksum.into(),
    }
}

/// Where a stored chunk lies.
fn place(handler: &MaruHandler, key: &str) -> (u32, usize) {
    let entry = handler.entry(key).unwrap().unwrap();
    (entry.region_id.get(), usize::try_from(entry.offset.get()).unwrap())
}

/// What is logged by this thread meanwhile.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

/// Three chunks of an instance that lies about the second.
fn three_chunks_with_a_wrong_sum(server: &ServerProcess) -> (WireClient, [&'static str; 3]) {
    let mut liar = WireClient::connect(server);
    let (region, names) = (liar.region(3), ["right", "wrong", "without"]);
    for (name, page) in names.iter().zip(0..) {
        overwrite(server, region, page * PAGE, &chunk(name, PAGE));
    }
    let sum = checksum(&chunk("right", PAGE));
    let secret = liar.digest_key();
    let records = [sum, sum, 0].into_iter().zip(0..).zip(names);
    let records = records.map(|((sum, page), name)| record(&secret, name, region, page, sum));
    assert_eq!(liar.register(&records.collect::<Vec<_>>()), [RecordStatus::Ok; 3]);
    (liar, names)
}

#[test]
fn a_chunk_whose_checksum_is_wrong_is_never_handed_out() {
    let server = ServerProcess::start(&[]);
    let (_liar, names) = three_chunks_with_a_wrong_sum(&server);
    let reader = connect(&server);
    let said = logged(|| {
        let prefix = reader.acquire(&names).unwrap();
        assert_eq!(prefix.len(), 1, "the prefix ends before it");
        assert!(is_intact("right", &prefix[0]));
    });
    assert_eq!(said.matches("ERROR").count(), 1, "{said}");
    assert!(said.contains("are not those that were stored"), "{said}");
    assert_eq!(reader.client_stats().stale_chunks, 1);

    let each = reader.batch_retrieve(&names).unwrap();
    let found =
        names.iter().zip(&each).map(|(name, chunk)| chunk.as_ref().map(|chunk| is_intact(name, chunk)));
    assert_eq!(found.collect::<Vec<_>>(), [Some(true), None, Some(true)]);
    assert!(reader.retrieve("wrong").unwrap().is_none());
    assert_eq!(block_on(reader.acquire_async(&names)).unwrap().len(), 1);
    assert!(block_on(reader.retrieve_async("wrong")).unwrap().is_none());
    assert_eq!(reader.client_stats().stale_chunks, 5, "it is looked at whenever it is asked for");

    drop(each);
    wait_until("what was pinned for it is released", || stat(&reader, StatKind::Pins) == 0);
    assert_eq!(reader.delete("wrong").unwrap(), Deleted::Deleted);
}

#[test]
fn bytes_that_change_behind_the_directorys_back_are_found_under_the_next_registration() {
    let server = ServerProcess::start(&[]);
    let one_page = |config: Config| config.region_size(PAGE as u64).auto_expand(false).checksum(true);
    for write_back in [false, true] {
        let writer = with(one_page(config(&server)).write_back(write_back));
        let reader = with(config(&server).write_back(write_back));
        store(&writer, "first").unwrap();
        let (region, offset) = place(&writer, "first");
        assert!(is_intact("first", &reader.retrieve("first").unwrap().unwrap()));
        wait_until("it is not read any more", || writer.delete("first").unwrap() == Deleted::Deleted);

        store(&writer, "second").unwrap();
        assert_eq!(place(&writer, "second"), (region, offset), "it is the same page");
        overwrite(&server, region, offset, &chunk("first", PAGE));
        assert!(reader.retrieve("second").unwrap().is_none(), "it is still what was there before");
        // Its line comes to memory after all.
        overwrite(&server, region, offset, &chunk("second", PAGE));
        assert!(is_intact("second", &reader.retrieve("second").unwrap().unwrap()));
        assert_eq!(reader.client_stats().stale_chunks, 1);
        wait_until("it is not read any more", || writer.delete("second").unwrap() == Deleted::Deleted);
    }
}

#[test]
fn a_torn_chunk_is_not_handed_out() {
    let server = ServerProcess::start(&[]);
    let writer = with(config(&server).checksum(true));
    let mut page = writer.alloc(PAGE).unwrap();
    fill("torn", &mut page);
    writer.store("torn", page).unwrap();
    let (region, offset) = place(&writer, "torn");
    let whole = chunk("torn", PAGE);
    for line in (0..PAGE).step_by(64) {
        overwrite(&server, region, offset + line, &[0; 64]);
        assert!(connect(&server).retrieve("torn").unwrap().is_none(), "the line at {line} is missing");
        overwrite(&server, region, offset + line, &whole[line..line + 64]);
    }
    assert!(is_intact("torn", &connect(&server).retrieve("torn").unwrap().unwrap()));
}

#[test]
fn checksums_outlive_the_server() {
    let mut server = ServerProcess::start(&[]);
    let keys = keys("chunk", 5);
    let mut writer = ClientProcess::connect_with(ClientConfig {
        checksum: true,
        ..ClientConfig::new(&server.socket(), "writer")
    });
    assert_eq!(writer.each(Command::BatchStore(keys.clone(), 1000)), ["stored"; 5]);
    let sums = |server: &ServerProcess| {
        let handler = connect(server);
        let entry = |key: &String| handler.entry(key).unwrap().unwrap().checksum.get();
        keys.iter().map(entry).collect::<Vec<_>>()
    };
    let before = sums(&server);
    assert_eq!(before, keys.iter().map(|key| checksum(&chunk(key, 1000))).collect::<Vec<_>>());

    server.kill();
    let (region, offset) = (1, 2 * PAGE);
    server.restart(&[]);
    assert_eq!(sums(&server), before);
    let reader = connect(&server);
    assert_eq!(place(&reader, "chunk-2"), (region, offset));
    overwrite(&server, region, offset + 999, &[!chunk("chunk-2", 1000)[999]]);
    let each = reader.batch_retrieve(&keys).unwrap();
    let intact = keys.iter().zip(&each).map(|(key, chunk)| chunk.as_ref().map(|chunk| is_intact(key, chunk)));
    assert_eq!(intact.collect::<Vec<_>>(), [Some(true), Some(true), None, Some(true), Some(true)]);
}

/// Processes with each option read what those with others store, and each looks at what has a checksum.
#[test]
fn clients_with_and_without_the_options_read_each_others_chunks() {
    let server = ServerProcess::start(&[]);
    let options = [(false, false), (true, false), (false, true), (true, true)];
    let mut clients = options.map(|(checksum, write_back)| {
        ClientProcess::connect_with(ClientConfig {
            checksum,
            write_back,
            ..ClientConfig::new(&server.socket(), "client")
        })
    });
    for (client, n) in clients.iter_mut().zip(0..) {
        assert_eq!(client.each(Command::Store(keys(&format!("one-{n}"), 3), PAGE)), ["stored"; 3]);
        assert_eq!(client.each(Command::BatchStore(keys(&format!("many-{n}"), 3), 77)), ["stored"; 3]);
    }
    for client in &mut clients {
        for n in 0..options.len() {
            assert_eq!(client.count(Command::Read(keys(&format!("one-{n}"), 3))), 3);
            assert_eq!(client.count(Command::Read(keys(&format!("many-{n}"), 3))), 3);
        }
    }
    let looker = connect(&server);
    for ((checksum, _), n) in options.into_iter().zip(0..) {
        let entry = looker.entry(format!("one-{n}-0")).unwrap().unwrap();
        assert_eq!(entry.checksum.get() != 0, checksum, "client {n}");
    }
}

#[test]
fn a_page_is_written_back_when_it_is_stored_and_when_it_is_given_up() {
    let server = ServerProcess::start(&[]);
    let owner = with(config(&server).write_back(true));
    let written_back = |owner: &MaruHandler| owner.client_stats().pages_written_back;
    store(&owner, "blocking").unwrap();
    assert_eq!(written_back(&owner), 1);
    let pages = |count: usize| (0..count).map(|_| owner.alloc(PAGE).unwrap()).collect::<Vec<_>>();
    assert!(owner.batch_store(&keys("batch", 3), pages(3)).unwrap().iter().all(Result::is_ok));
    assert_eq!(written_back(&owner), 4);
    block_on(owner.store_async("awaited", owner.alloc(PAGE).unwrap())).unwrap();
    assert_eq!(written_back(&owner), 5);
    assert_eq!(store(&owner, "blocking").unwrap(), Stored::AlreadyExists);
    assert_eq!(
        written_back(&owner),
        6,
        "a page that goes back was written back before it was known that it does"
    );

    drop(owner.alloc(PAGE).unwrap());
    assert_eq!(written_back(&owner), 7, "whoever gets it next may be on another host");
    let page = owner.alloc(PAGE).unwrap().detach();
    assert_eq!(written_back(&owner), 7, "a detached page is still written into");
    owner.free_by_location(page.region_id, page.page_index).unwrap();
    assert_eq!(written_back(&owner), 8);
    let coherent = connect(&server);
    store(&coherent, "coherent").unwrap();
    assert_eq!(written_back(&coherent), 0);
}

#[test]
fn a_chunk_is_dropped_from_the_cache_once_for_each_registration() {
    let server = ServerProcess::start(&[]);
    let one_page = config(&server).region_size(PAGE as u64).auto_expand(false).write_back(true);
    let (owner, reader) = (with(one_page), with(config(&server).write_back(true)));
    let dropped = |reader: &MaruHandler| reader.client_stats().pages_invalidated;
    for registrations in 1..=3 {
        store(&owner, "chunk").unwrap();
        for _ in 0..2 {
            assert!(is_intact("chunk", &reader.retrieve("chunk").unwrap().unwrap()));
            assert_eq!(reader.acquire(&["chunk"]).unwrap().len(), 1);
            assert!(is_intact("chunk", &block_on(reader.retrieve_async("chunk")).unwrap().unwrap()));
        }
        assert_eq!(dropped(&reader), registrations);
        wait_until("nobody reads it", || owner.delete("chunk").unwrap() == Deleted::Deleted);
    }
    store(&owner, "chunk").unwrap();
    assert!(is_intact("chunk", &owner.retrieve("chunk").unwrap().unwrap()));
    assert_eq!(dropped(&owner), 0, "an owner's cache is as its memory is");
    let coherent = connect(&server);
    assert!(is_intact("chunk", &coherent.retrieve("chunk").unwrap().unwrap()));
    assert_eq!(dropped(&coherent), 0);
}
