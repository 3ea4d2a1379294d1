//! Pools of every kind, several of them, and memory that hosts know by other names. A file stands in for a device, a folder on
//! disk for a file system that hosts share, and a client that stays on TCP for one on another host.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use maru_client::{Config, DeviceMap, Error, MaruHandler, Stored};
use maru_proto::{PoolHeader, PoolKind, PoolUuid};
use maru_tests::{PAGE, ServerProcess, config, connect, is_intact, make_device, store};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A folder on disk, for devices and what stands in for file systems.
fn disk() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// The system's huge pages, some of them mounted, until this is gone.
struct HugePages {
    mount: TempDir,
    pages_before: String,
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn mount(pages: u32) -> Option<HugePages> {
        let pages_before = std::fs::read_to_string(HUGE_PAGES).ok()?;
        let wanted = pages_before.trim().parse::<u32>().unwrap_or(0) + pages;
        let mount = tempfile::tempdir().unwrap();
        let mounted = std::fs::write(HUGE_PAGES, wanted.to_string()).and_then(|()| {
            Ok(rustix::mount::mount("none", mount.path(), "hugetlbfs", MountFlags::NOSUID, None)?)
        });
        if let Err(error) = mounted {
            eprintln!("skipped: no huge pages to be had here ({error}), so hugetlbfs was not tried");
            return None;
        }
        Some(HugePages { mount, pages_before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.mount.path(), UnmountFlags::DETACH);
        let _ = std::fs::write(HUGE_PAGES, &self.pages_before);
    }
}

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

fn store_all(handler: &MaruHandler, keys: &[String]) {
    keys.iter().for_each(|key| assert_eq!(store(handler, key).unwrap(), Stored::Stored));
}

/// How many of the keys are found, each with its bytes.
fn found(handler: &MaruHandler, keys: &[String]) -> usize {
    let prefix = handler.acquire(keys).unwrap();
    assert!(prefix.iter().zip(keys).all(|(bytes, key)| is_intact(key, bytes)));
    prefix.len()
}

/// How a client of another host is told to connect.
fn remote(server: &ServerProcess) -> Config {
    let address = format!("tcp://{}", server.tcp_address()).parse().unwrap();
    Config::new().address(address).page_size(PAGE).region_size(MIB).stay_on_tcp(true)
}

fn map(pool: PoolUuid, path: &Path) -> DeviceMap {
    format!("{pool}={}", path.display()).parse().unwrap()
}

/// The pools that a server says it has: kind and path.
fn pools(handler: &MaruHandler) -> Vec<(String, String)> {
    let pools = handler.pools().unwrap();
    let kind = |kind: u32| PoolKind::from_u32(kind).unwrap().name().to_owned();
    pools.iter().map(|pool| (kind(pool.kind.get()), pool.path().unwrap().to_owned())).collect()
}

#[test]
fn chunks_are_shared_in_pools_of_every_kind_and_are_there_after_a_restart() {
    let disk = disk();
    let device = disk.path().join("dax0.0");
    make_device(&device, 16 * MIB);
    let state = tempfile::tempdir_in("/dev/shm").unwrap();
    let on_disk = disk.path().join("pool");
    let in_memory = state.path().join("pool");
    let huge_pages = HugePages::mount(20);
    let mut kinds = vec![("devdax", device), ("fsdax", on_disk), ("tmpfs", in_memory)];
    kinds.extend(huge_pages.as_ref().map(|huge_pages| ("hugetlbfs", huge_pages.mount.path().join("pool"))));
    for (kind, path) in &kinds {
        let pool = format!("{kind}:{},size=16MiB", path.display());
        let options = [
            "--pool",
            &pool,
            "--state-dir",
            state.path().to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--fresh",
        ];
        let mut server = ServerProcess::start(&options);
        let (writer, reader) = (connect(&server), connect(&server));
        let far_reader = MaruHandler::connect(remote(&server)).unwrap();
        let far_writer = MaruHandler::connect(remote(&server)).unwrap();
        assert_eq!(pools(&writer), [((*kind).to_owned(), path.to_str().unwrap().to_owned())]);
        let (near, far) = (keys("near", 40), keys("far", 40));
        store_all(&writer, &near);
        store_all(&far_writer, &far);
        for handler in [&reader, &far_reader, &writer, &far_writer] {
            assert_eq!((found(handler, &near), found(handler, &far)), (40, 40), "{kind}");
        }
        drop((writer, reader, far_reader, far_writer));
        server.kill();
        server.restart(&options[..options.len() - 1]);
        let reader = connect(&server);
        assert_eq!((found(&reader, &near), found(&reader, &far)), (40, 40), "{kind} after a restart");
    }
}

#[test]
fn pools_are_filled_in_their_order() {
    let disk = disk();
    let (first, second) = (disk.path().join("dax0.0"), disk.path().join("dax1.0"));
    make_device(&first, 2 * MIB);
    make_device(&second, 4 * MIB);
    let pools = format!("devdax:{};devdax:{},size=2MiB", first.display(), second.display());
    let state = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = ["--pool", &pools, "--state-dir", state.path().to_str().unwrap()];
    let server = ServerProcess::start(&options);
    let free = |handler: &MaruHandler| {
        handler.pools().unwrap().iter().map(|pool| pool.free.get() / MIB).collect::<Vec<_>>()
    };
    let writer = connect(&server);
    assert_eq!(free(&writer), [2, 2]);
    store_all(&writer, &keys("first", 256));
    assert_eq!(free(&writer), [0, 2]);
    store_all(&writer, &keys("second", 256));
    assert_eq!(free(&writer), [0, 0]);
    assert!(matches!(store(&connect(&server), "third"), Err(Error::Refused { .. })));
    assert_eq!(found(&connect(&server), &keys("second", 256)), 256);
}

#[test]
fn a_pool_that_holds_chunks_may_move_and_may_not_be_missing() {
    let disk = disk();
    let (first, second) = (disk.path().join("dax0.0"), disk.path().join("dax1.0"));
    let (first_uuid, _) = (make_device(&first, 2 * MIB), make_device(&second, 2 * MIB));
    let state = tempfile::tempdir_in("/dev/shm").unwrap();
    let state = state.path().to_str().unwrap();
    let both = |one: &Path, other: &Path| format!("devdax:{};devdax:{}", one.display(), other.display());
    let mut server = ServerProcess::start(&["--pool", &both(&first, &second), "--state-dir", state]);
    let writer = connect(&server);
    store_all(&writer, &keys("chunk", 10));
    drop(writer);
    server.kill();

    let moved = disk.path().join("dax9.0");
    std::fs::rename(&first, &moved).unwrap();
    let alone = ["--pool", &format!("devdax:{}", second.display()), "--state-dir", state];
    let refused = ServerProcess::command(server.folder(), &alone).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(said.contains(&format!("a region of the pool {first_uuid}, which is not there")), "{said}");

    server.restart(&["--pool", &both(&second, &moved), "--state-dir", state]);
    assert_eq!(found(&connect(&server), &keys("chunk", 10)), 10);
}

/// A server with a device, of which `other_name` is the name on another host.
struct TwoNames {
    server: ServerProcess,
    uuid: PoolUuid,
    device: PathBuf,
    other_name: PathBuf,
    _folders: [TempDir; 2],
}

impl TwoNames {
    fn start(more: &[&str]) -> TwoNames {
        let (disk, state) = (disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (device, other_name) = (disk.path().join("dax0.0"), disk.path().join("on-the-other-host"));
        let uuid = make_device(&device, 4 * MIB);
        std::fs::hard_link(&device, &other_name).unwrap();
        let pool = format!("devdax:{}", device.display());
        let options =
            ["--pool", &pool, "--state-dir", state.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let server = ServerProcess::start(&[&options, more].concat());
        TwoNames { server, uuid, device, other_name, _folders: [disk, state] }
    }
}

#[test]
fn a_device_is_found_by_its_uuid_under_the_name_that_a_host_has_for_it() {
    let TwoNames { server, uuid, other_name, .. } = &TwoNames::start(&[]);
    let there = connect(server);
    let here = MaruHandler::connect(remote(server).device_map(map(*uuid, other_name))).unwrap();
    store_all(&there, &keys("there", 20));
    store_all(&here, &keys("here", 20));
    assert_eq!((found(&here, &keys("there", 20)), found(&there, &keys("here", 20))), (20, 20));
}

#[test]
fn another_device_under_the_same_name_is_never_mapped() {
    let TwoNames { server, uuid, other_name, .. } = &TwoNames::start(&[]);
    store_all(&connect(server), &keys("chunk", 5));
    // On that host the name is another device's.
    std::fs::remove_file(other_name).unwrap();
    let wrong = make_device(other_name, 4 * MIB);
    let here = MaruHandler::connect(remote(server).device_map(map(*uuid, other_name))).unwrap();
    let error = here.alloc(PAGE).unwrap_err();
    assert!(matches!(error, Error::PoolNotHere { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains(&format!("is the pool {wrong}")) && said.contains(&uuid.to_string()), "{said}");
    assert_eq!(found(&here, &keys("chunk", 5)), 0, "what can't be read here counts as not stored");
    assert!(matches!(here.map_region(1), Err(Error::PoolNotHere { .. })));
}

#[test]
fn the_device_as_it_was_before_it_was_emptied_is_never_mapped() {
    let TwoNames { mut server, uuid, device, other_name, _folders: folders } = TwoNames::start(&[]);
    let pool = format!("devdax:{}", device.display());
    server.kill();
    // What another host sees of a device that it has lost touch with.
    std::fs::remove_file(&other_name).unwrap();
    std::fs::copy(&device, &other_name).unwrap();
    let state = folders[1].path().to_str().unwrap();
    let fresh = ["--fresh", "--grace", "200ms"];
    server
        .restart(&[&["--pool", &pool, "--state-dir", state, "--listen", "127.0.0.1:0"], &fresh[..]].concat());
    assert!(server.said_at_start("waiting until those who may be reading it know"));
    let here = MaruHandler::connect(remote(&server).device_map(map(uuid, &other_name))).unwrap();
    let said = here.alloc(PAGE).unwrap_err().to_string();
    assert!(said.contains("is that pool under incarnation 2 and not 3"), "{said}");
    let right = MaruHandler::connect(remote(&server).device_map(map(uuid, &device))).unwrap();
    right.alloc(PAGE).unwrap();
}

#[test]
fn a_server_gives_way_to_one_of_another_host() {
    let TwoNames { mut server, other_name, _folders, .. } = TwoNames::start(&[]);
    // A lock is one host's, so the other server is its change of the header.
    let mut area = std::fs::read(&other_name).unwrap();
    let (header, slot) = PoolHeader::read(&area).unwrap();
    header.discarded([9; 16]).write(&mut area, 1 - slot);
    File::options().write(true).open(&other_name).unwrap().write_all(&area[..PoolHeader::SLOTS_LEN]).unwrap();
    server.wait_for_log("another server, of another host, has taken a pool: stopping");
    assert!(server.wait_for_end());
}

#[test]
fn memory_of_the_servers_host_is_refused_to_other_hosts() {
    let server = ServerProcess::start(&["--listen", "127.0.0.1:0"]);
    let there = connect(&server);
    store_all(&there, &keys("chunk", 5));
    let uuid = PoolUuid::from_bytes(there.pools().unwrap()[0].uuid);
    let elsewhere = server.folder().join("no-such-folder");
    let here = MaruHandler::connect(remote(&server).device_map(map(uuid, &elsewhere))).unwrap();
    let said = here.alloc(PAGE).unwrap_err().to_string();
    assert!(
        said.contains("it is memory of the server's host, and hosts share fsdax and devdax pools"),
        "{said}"
    );
    assert_eq!(found(&here, &keys("chunk", 5)), 0);
}

#[test]
fn another_host_gets_regions_of_the_pools_that_it_can_reach() {
    let folders = [disk(), tempfile::tempdir_in("/dev/shm").unwrap()];
    let (device, folder) = (folders[0].path().join("dax0.0"), folders[1].path().join("pool"));
    make_device(&device, 4 * MIB);
    let pools = format!("tmpfs:{},size=4MiB;devdax:{}", folder.display(), device.display());
    let server = ServerProcess::start(&["--pool", &pools, "--listen", "127.0.0.1:0"]);
    let there = connect(&server);
    let uuid = PoolUuid::from_bytes(there.pools().unwrap()[0].uuid);
    let here =
        MaruHandler::connect(remote(&server).device_map(map(uuid, &folders[0].path().join("nothing"))))
            .unwrap();
    store_all(&there, &keys("there", 3));
    store_all(&here, &keys("here", 3));
    let pool_of = |handler: &MaruHandler| {
        let own = handler.owned_regions()[0];
        let regions = handler.regions().unwrap();
        regions.iter().find(|region| region.region_id.get() == own).unwrap().pool_id.get()
    };
    assert_eq!((pool_of(&there), pool_of(&here)), (0, 1));
    assert_eq!((found(&there, &keys("here", 3)), found(&here, &keys("there", 3))), (3, 0));
}

#[test]
fn a_pool_that_is_plugged_in_later_is_taken_on_sighup() {
    let disk = disk();
    let (first, second) = (disk.path().join("dax0.0"), disk.path().join("dax1.0"));
    make_device(&first, 2 * MIB);
    let file = disk.path().join("maru.toml");
    let list = |pools: &[&PathBuf]| {
        let pools = pools.iter().map(|path| format!("\"devdax:{}\"", path.display())).collect::<Vec<_>>();
        std::fs::write(&file, format!("pool = [{}]", pools.join(", "))).unwrap();
    };
    list(&[&first]);
    let state = tempfile::tempdir_in("/dev/shm").unwrap();
    let state = state.path().to_str().unwrap();
    let file_name = file.to_str().unwrap();
    let server =
        ServerProcess::start(&["--config", file_name, "--state-dir", state, "--max-entries", "1024"]);
    let writer = MaruHandler::connect(config(&server).region_size(2 * MIB)).unwrap();
    store_all(&writer, &keys("first", 512));
    let other = connect(&server);
    assert!(matches!(other.alloc(PAGE), Err(Error::Refused { .. })));

    // What can't be taken changes nothing.
    list(&[&first, &second]);
    server.hang_up();
    server.wait_for_log("a pool can't be taken");
    assert_eq!(writer.pools().unwrap().len(), 1);

    make_device(&second, 2 * MIB);
    server.hang_up();
    server.wait_for_log("new=1");
    assert_eq!(writer.pools().unwrap().len(), 2);
    store_all(&other, &keys("second", 100));
    assert_eq!((found(&other, &keys("first", 512)), found(&writer, &keys("second", 100))), (512, 100));
}
