//! Memory that is taken before it is used, and memory that is taken as it is used.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use maru_tests::{ClientConfig, ClientProcess, Command, Reply, ServerProcess, wait_until};
use rustix::fs::statvfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A tmpfs that others take no memory of, larger than what the machine has; where one may be mounted.
struct OwnTmpfs(TempDir);

impl OwnTmpfs {
    fn mount() -> Option<OwnTmpfs> {
        let folder = tempfile::tempdir().unwrap();
        match mount("none", folder.path(), "tmpfs", MountFlags::NOSUID, Some(c"size=80g")) {
            Ok(()) => Some(OwnTmpfs(folder)),
            Err(error) => {
                println!("no tmpfs can be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Bytes of memory that are taken.
    fn taken(&self) -> u64 {
        let stat = statvfs(self.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for OwnTmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// A server with a pool of this size, of which regions are taken lazily.
fn lazy_server(pool: &Path, size: u64) -> ServerProcess {
    let (pool, size) = (pool.join("pool").display().to_string(), format!("{size}B"));
    ServerProcess::start(&["--prefault", "lazy", "--pool", &pool, "--pool-size", &size])
}

fn client_with_one_region(server: &ServerProcess, region_size: u64, prefault: bool) -> ClientProcess {
    ClientProcess::connect_with(ClientConfig {
        page_size: 1 << 20,
        region_size,
        prefault,
        eager: true,
        ..ClientConfig::new(&server.socket(), "writer")
    })
}

/// The file of the first region.
fn region(folder: &Path) -> PathBuf {
    folder.join("pool/region-1")
}

/// Its length, and the bytes of memory that it takes.
fn length_and_taken(folder: &Path) -> (u64, u64) {
    let file = region(folder).metadata().unwrap();
    (file.size(), file.blocks() * 512)
}

#[test]
fn a_large_lazy_region_takes_the_memory_of_its_first_chunk() {
    let own = OwnTmpfs::mount();
    let shared = tempfile::tempdir_in("/dev/shm").unwrap();
    let (folder, size) = match &own {
        Some(own) => (own.path(), 64 * GIB),
        None => {
            let stat = statvfs(shared.path()).unwrap();
            (shared.path(), stat.f_bavail * stat.f_frsize / 2 / GIB * GIB)
        }
    };
    let server = lazy_server(folder, size);
    let mut client = client_with_one_region(&server, size, false);
    assert_eq!(client.each(Command::Store(vec!["chunk".to_owned()], 1 << 20)), ["stored"]);
    assert_eq!(client.count(Command::Read(vec!["chunk".to_owned()])), 1);
    let (length, taken) = length_and_taken(folder);
    assert_eq!(length, size);
    assert!((MIB..=8 * MIB).contains(&taken), "{taken} bytes are taken for a chunk of 1 MiB");
}

#[test]
fn an_eager_region_is_all_there_before_it_is_used() {
    let server = ServerProcess::start(&["--pool-size", "256MiB"]);
    let _client = client_with_one_region(&server, 256 * MIB, false);
    assert_eq!(length_and_taken(server.folder()), (256 * MIB, 256 * MIB));
}

#[test]
fn what_is_mapped_ahead_of_a_writer_is_all_mapped_in_the_end() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let server = lazy_server(folder.path(), 256 * MIB);
    let mut client = client_with_one_region(&server, 256 * MIB, true);
    assert_eq!(client.each(Command::Store(vec!["chunk".to_owned()], 1 << 20)), ["stored"]);
    wait_until("all memory is there", || length_and_taken(folder.path()).1 == 256 * MIB);
    assert_eq!(client.count(Command::Read(vec!["chunk".to_owned()])), 1);
}

#[test]
fn memory_that_is_given_back_is_not_taken_again() {
    let Some(own) = OwnTmpfs::mount() else {
        println!("skipped: what is taken can't be told from what others take");
        return;
    };
    let server = lazy_server(own.path(), 2 * GIB);
    let taken_before = own.taken();
    let mut client = client_with_one_region(&server, 2 * GIB, true);
    assert_eq!(client.call(Command::Close), Reply::Done);
    wait_until("the region is gone", || !region(own.path()).exists());
    let taken = || own.taken().saturating_sub(taken_before);
    wait_until("its memory is free", || taken() < 8 * MIB);
    // The client maps the file still. A thread that went on would be seen here, soon or a little later.
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(taken() < 8 * MIB, "{} bytes were taken again", taken());
    }
}
