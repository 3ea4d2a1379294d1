//! What every kind of pool promises, tried on each: the same tests run over memory of all kinds.
//!
//! A file stands in for a device, and any folder for one that hosts share. Huge pages are the system's to give: without them
//! the tests of that kind say so and pass over.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use maru_proto::{PoolCoherence, PoolHeader, PoolHeaderError, PoolKind};
use memmap2::{MmapMut, MmapOptions};
use tempfile::TempDir;

use super::header::{HeaderArea, map};
use super::memory::Memory;
use super::{IdlePool, PoolFacts, PoolPlan, Prefault, PreparationError};
use crate::error::ServerError;
use crate::examination::{self, PoolPlace};
use crate::journal::JournalError;
use crate::state::{InstanceNumber, PoolId, RegionId, RegionInfo, RetiredRegion, SavedRegion};

const MIB: u64 = 1 << 20;
/// Bytes of each pool, without what its header takes.
const SIZE: u64 = 8 * MIB;

/// Memory of one kind, and whatever it lies on.
struct Place {
    kind: PoolKind,
    path: PathBuf,
    /// The journal's.
    state: TempDir,
    /// Gives back what was taken for it.
    _ground: Ground,
}

enum Ground {
    Folder(TempDir),
    HugePages { mount: TempDir, pages_before: String, _turn: MutexGuard<'static, ()> },
}

/// The system's huge pages, which one test at a time has.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
static HUGE_PAGES_TURN: Mutex<()> = Mutex::new(());

impl Drop for Ground {
    fn drop(&mut self) {
        if let Ground::HugePages { mount, pages_before, .. } = self {
            let _ = rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::DETACH);
            let _ = std::fs::write(HUGE_PAGES, pages_before);
        }
    }
}

impl Place {
    /// A place for each kind that there can be here.
    fn all() -> Vec<Place> {
        PoolKind::ALL.iter().filter_map(|kind| Place::of(*kind)).collect()
    }

    fn of(kind: PoolKind) -> Option<Place> {
        let ground = match kind {
            PoolKind::Tmpfs => Ground::Folder(tempfile::tempdir_in("/dev/shm").unwrap()),
            PoolKind::Hugetlbfs => huge_pages()?,
            _ => Ground::Folder(tempfile::tempdir_in("/var/tmp").unwrap()),
        };
        let (Ground::Folder(folder) | Ground::HugePages { mount: folder, .. }) = &ground;
        let path = folder.path().join("pool");
        if kind == PoolKind::DevDax {
            let device = File::create_new(&path).unwrap();
            device.set_len(PoolHeader::AREA_LEN + SIZE).unwrap();
            HeaderArea::create(map_header(&path));
        }
        let state = tempfile::tempdir_in("/dev/shm").unwrap();
        Some(Place { kind, path, state, _ground: ground })
    }

    fn plan(&self) -> PoolPlan {
        let (kind, path) = (Some(self.kind), self.path.clone());
        PoolPlan { kind, path, size: Some(ByteSize(SIZE)), ..PoolPlan::default() }
    }

    fn try_open(&self) -> Result<Memory, ServerError> {
        Memory::open(&[self.plan()], self.state.path().to_owned())
    }

    fn open(&self) -> Memory {
        let mut memory = self.try_open().unwrap();
        memory.adopt([7; 16], Duration::ZERO).unwrap();
        memory
    }
}

fn huge_pages() -> Option<Ground> {
    let turn = HUGE_PAGES_TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let pages_before = std::fs::read_to_string(HUGE_PAGES).ok()?;
    let mount = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::NOSUID;
    let wanted = pages_before.trim().parse::<u32>().unwrap_or(0) + 16;
    let mounted = std::fs::write(HUGE_PAGES, wanted.to_string())
        .and_then(|()| Ok(rustix::mount::mount("none", mount.path(), "hugetlbfs", flags, None)?));
    if let Err(error) = mounted {
        println!("skipped: no huge pages to be had here ({error}), so hugetlbfs was not tried");
        return None;
    }
    Some(Ground::HugePages { mount, pages_before, _turn: turn })
}

fn map_header(path: &std::path::Path) -> MmapMut {
    let file = File::options().read(true).write(true).open(path).unwrap();
    map(&file, PoolHeader::AREA_LEN).unwrap()
}

fn facts(memory: &Memory) -> PoolFacts {
    memory.facts().next().unwrap()
}

fn region(id: u32, pool_offset: u64, extent: u64) -> RegionInfo {
    RegionInfo {
        id: RegionId(id),
        pool: PoolId(0),
        pool_offset,
        size: extent,
        extent,
        page_size: MIB,
        owner: Some(InstanceNumber(1)),
        pages: u32::try_from(extent / MIB).unwrap(),
        entries: 0,
        freed_pages: 0,
        entry_bytes: 0,
    }
}

fn retired(region: &RegionInfo) -> RetiredRegion {
    RetiredRegion { id: region.id, pool: region.pool, pool_offset: region.pool_offset, extent: region.extent }
}

fn saved(region: &RegionInfo) -> SavedRegion {
    SavedRegion {
        id: region.id,
        owner: region.owner,
        page_size: region.page_size,
        pages: region.pages,
        pool: region.pool,
        pool_offset: region.pool_offset,
        extent: region.extent,
        freed: Vec::new(),
        entries: Vec::new(),
    }
}

/// Maps a region as a client does.
fn map_region(memory: &Memory, region: &RegionInfo, writable: bool) -> std::io::Result<MmapMut> {
    let file = memory.open_region(region.pool, region.id, writable)?;
    let offset = facts(memory).extents_at.map_or(0, |start| start + region.pool_offset);
    let length = usize::try_from(region.extent).unwrap();
    // SAFETY: the file is the test's own, and is not made shorter while it is mapped.
    unsafe { MmapOptions::new().offset(offset).len(length).map_mut(&file) }
}

#[test]
fn a_pool_says_what_it_is() {
    for place in Place::all() {
        let memory = place.open();
        let facts = facts(&memory);
        assert_eq!((facts.kind, facts.size, facts.coherence), (place.kind, SIZE, PoolCoherence::Coherent));
        assert_eq!(facts.path, place.path.canonicalize().unwrap().to_str().unwrap());
        assert_eq!(facts.extents_at.is_some(), place.kind == PoolKind::DevDax);
        assert!(facts.granularity.is_multiple_of(2 * MIB) && facts.identity.incarnation > 0, "{facts:?}");
    }
}

#[test]
fn what_an_owner_writes_is_what_others_read_and_they_can_not_write() {
    for place in Place::all() {
        let memory = place.open();
        let (first, second) = (region(1, 0, 2 * MIB), region(2, 4 * MIB, 4 * MIB));
        for (region, byte) in [(&first, 0xA1), (&second, 0xB2)] {
            memory.maker(region)().unwrap();
            map_region(&memory, region, true).unwrap().fill(byte);
        }
        for (region, byte) in [(&first, 0xA1), (&second, 0xB2)] {
            let file = memory.open_region(region.pool, region.id, false).unwrap();
            let offset = facts(&memory).extents_at.map_or(0, |start| start + region.pool_offset);
            let length = usize::try_from(region.extent).unwrap();
            // SAFETY: nobody writes while the test reads.
            let read = unsafe { MmapOptions::new().offset(offset).len(length).map(&file) }.unwrap();
            assert!(read.iter().all(|read| *read == byte), "{:?}", place.kind);
            let refused = map_region(&memory, region, false).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{:?}", place.kind);
        }
    }
}

#[test]
fn all_of_a_pool_can_be_given_out_and_again_once_it_is_back() {
    for place in Place::all() {
        let memory = place.open();
        for round in 0..3 {
            let regions = [region(1 + 2 * round, 0, 4 * MIB), region(2 + 2 * round, 4 * MIB, 4 * MIB)];
            for region in &regions {
                memory.maker(region)().unwrap();
                map_region(&memory, region, true).unwrap().fill(0xEE);
            }
            for region in &regions {
                memory.releaser(&retired(region))().unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(place.state.path()).unwrap().count(), 0, "no page table is left");
    }
}

#[test]
fn regions_are_there_after_a_restart_and_nothing_besides() {
    for place in Place::all() {
        let (kept, other) = (region(1, 0, 2 * MIB), region(2, 2 * MIB, 2 * MIB));
        let memory = place.open();
        for region in [&kept, &other] {
            memory.maker(region)().unwrap();
        }
        map_region(&memory, &kept, true).unwrap().fill(0x5A);
        let before = facts(&memory);
        drop(memory);

        let memory = place.open();
        memory.settle(&[saved(&kept)]).unwrap();
        assert_eq!(facts(&memory).identity, before.identity);
        assert!(map_region(&memory, &kept, true).unwrap().iter().all(|byte| *byte == 0x5A));
        if place.kind != PoolKind::DevDax {
            assert!(memory.open_region(PoolId(0), other.id, false).is_err(), "{:?}", place.kind);
        }
    }
}

#[test]
fn what_clients_still_map_keeps_no_server_out() {
    for place in Place::all() {
        let memory = place.open();
        let region = region(1, 0, 2 * MIB);
        memory.maker(&region)().unwrap();
        let mut written = map_region(&memory, &region, true).unwrap();
        let read = memory.open_region(region.pool, region.id, false).unwrap();
        drop(memory);
        let memory = place.open();
        written.fill(0x5A);
        assert!(map_region(&memory, &region, true).unwrap().iter().all(|byte| *byte == 0x5A));
        drop(read);
    }
}

#[test]
fn a_region_whose_memory_is_not_as_it_was_is_refused() {
    for place in Place::all().into_iter().filter(|place| place.kind != PoolKind::DevDax) {
        let memory = place.open();
        let kept = region(1, 0, 4 * MIB);
        memory.maker(&kept)().unwrap();
        let file = place.path.join("region-1");
        File::options().write(true).open(&file).unwrap().set_len(2 * MIB).unwrap();
        let said = memory.settle(&[saved(&kept)]).unwrap_err();
        assert!(matches!(&said, ServerError::Journal(JournalError::Damaged { .. })), "{said}");
        assert!(said.to_string().contains("it has to have 4194304 bytes, and has 2097152"), "{said}");
        std::fs::remove_file(&file).unwrap();
        let said = memory.settle(&[saved(&kept)]).unwrap_err().to_string();
        assert!(said.contains("it has to have 4194304 bytes, and can't be looked at"), "{said}");
    }
}

#[test]
fn a_second_server_is_refused() {
    for place in Place::all() {
        let first = place.open();
        let second = place.try_open().unwrap_err();
        assert!(matches!(second, ServerError::PoolInUse(_)), "{second}");
        drop(first);
        place.try_open().unwrap();
    }
}

#[test]
fn a_pool_given_twice_is_refused() {
    for place in Place::all() {
        let other_name = place.state.path().join("other-name");
        std::os::unix::fs::symlink(&place.path, &other_name).unwrap();
        let other = PoolPlan { path: other_name, ..place.plan() };
        let refused = Memory::open(&[place.plan(), other], place.state.path().to_owned()).unwrap_err();
        assert!(matches!(refused, ServerError::PoolInUse(_) | ServerError::PoolTwice { .. }), "{refused}");
    }
}

#[test]
fn a_pool_keeps_its_name_and_what_another_directory_said_of_it_is_void() {
    for place in Place::all() {
        let mut memory = place.open();
        let before = facts(&memory).identity;
        memory.maker(&region(1, 0, 2 * MIB))().unwrap();
        memory.adopt([7; 16], Duration::ZERO).unwrap();
        assert_eq!(facts(&memory).identity, before, "the same directory");
        memory.adopt([8; 16], Duration::ZERO).unwrap();
        let after = facts(&memory).identity;
        assert_eq!((after.uuid, after.incarnation), (before.uuid, before.incarnation + 1));
        if place.kind != PoolKind::DevDax {
            assert!(memory.open_region(PoolId(0), RegionId(1), false).is_err());
        }
        drop(memory);
        assert_eq!(facts(&place.try_open().unwrap()).identity, after, "it is what the memory says");
    }
}

#[test]
fn a_pool_has_a_sensible_size() {
    for place in Place::all() {
        let open = |size| {
            let plan = PoolPlan { size: Some(ByteSize(size)), ..place.plan() };
            Memory::open(&[plan], place.state.path().to_owned()).unwrap_err()
        };
        let small = open(4096);
        assert!(matches!(small, ServerError::PoolTooSmall { .. }), "{small}");
        let large = open(1 << 60);
        assert!(matches!(large, ServerError::PoolTooLarge { .. }), "{large}");
    }
}

#[test]
fn a_region_that_does_not_fit_leaves_nothing_behind() {
    for place in Place::all().into_iter().filter(|place| place.kind != PoolKind::DevDax) {
        let memory = place.open();
        memory.maker(&region(3, 0, 1 << 50))().unwrap_err();
        let left = std::fs::read_dir(&place.path).unwrap().map(|file| file.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["maru.pool"], "{:?}", place.kind);
    }
}

#[test]
fn the_memory_of_a_folder_is_all_there_before_a_region_is_given() {
    for place in Place::all().into_iter().filter(|place| place.kind != PoolKind::DevDax) {
        let memory = place.open();
        memory.maker(&region(1, 0, 4 * MIB))().unwrap();
        let file = std::fs::metadata(place.path.join("region-1")).unwrap();
        assert_eq!(file.size(), 4 * MIB);
        // Some file systems count blocks of their own besides.
        assert!(file.blocks() * 512 >= 4 * MIB, "{:?}: {} blocks", place.kind, file.blocks());
        memory.maker(&region(1, 0, 4 * MIB))().unwrap_err();
    }
}

#[test]
fn lazy_memory_is_there_once_it_is_touched() {
    for place in Place::all().into_iter().filter(|place| place.kind != PoolKind::DevDax) {
        let plan = PoolPlan { prefault: Prefault::Lazy, ..place.plan() };
        let memory = Memory::open(&[plan], place.state.path().to_owned()).unwrap();
        let made = region(1, 0, 4 * MIB);
        memory.maker(&made)().unwrap();
        let taken = || std::fs::metadata(place.path.join("region-1")).unwrap().blocks() * 512;
        assert!(taken() < MIB, "{:?}: {} bytes", place.kind, taken());
        map_region(&memory, &made, true).unwrap()[0] = 7;
        assert!((4096..4 * MIB).contains(&taken()), "{:?}: {} bytes", place.kind, taken());
    }
}

#[test]
fn the_memory_of_a_folder_lies_on_its_node() {
    for (kind, prefault) in [
        (PoolKind::Tmpfs, Prefault::Eager),
        (PoolKind::Tmpfs, Prefault::Lazy),
        (PoolKind::Hugetlbfs, Prefault::Eager),
    ] {
        let Some(place) = Place::of(kind) else { continue };
        let plan = PoolPlan { node: Some(0), prefault, ..place.plan() };
        let memory = match Memory::open(&[plan], place.state.path().to_owned()) {
            Ok(memory) => memory,
            Err(ServerError::PoolNode { source, .. }) => {
                println!("skipped: no node to be had here ({source}), so none was chosen");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let made = region(1, 0, 4 * MIB);
        memory.maker(&made)().unwrap();
        let mapped = map_region(&memory, &made, true).unwrap();
        let policies = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let address = format!("{:x} ", mapped.as_ptr().addr());
        let policy = policies.lines().find_map(|line| line.strip_prefix(&address)).unwrap();
        // A hugetlbfs keeps no policy with a file: its pages were taken from the node when they were made.
        if kind == PoolKind::Tmpfs {
            assert!(policy.starts_with("bind:0 "), "{prefault:?}: {policy}");
        }
    }
}

#[test]
fn a_node_that_can_not_be_had_is_refused() {
    for place in Place::all() {
        let refused = |node, prefault| {
            let plan = PoolPlan { node: Some(node), prefault, ..place.plan() };
            Memory::open(&[plan], place.state.path().to_owned()).unwrap_err().to_string()
        };
        let unknown = refused(100_000, Prefault::Eager);
        match place.kind {
            PoolKind::Tmpfs | PoolKind::Hugetlbfs => {
                assert!(
                    unknown.contains("on node 100000: ") && unknown.contains("there are: 0"),
                    "{unknown}"
                );
            }
            _ => assert!(unknown.contains("lies where its device is; leave node= out"), "{unknown}"),
        }
        if place.kind == PoolKind::Tmpfs {
            let plan = PoolPlan { size: Some(ByteSize(1 << 60)), node: Some(0), ..place.plan() };
            let large = Memory::open(&[plan], place.state.path().to_owned()).unwrap_err().to_string();
            assert!(large.contains("give it a smaller size"), "{large}");
        }
        if place.kind == PoolKind::Hugetlbfs {
            let lazy = refused(0, Prefault::Lazy);
            assert!(lazy.contains("use --prefault eager"), "{lazy}");
        }
    }
}

#[test]
fn memory_that_was_released_goes_even_while_a_client_maps_it() {
    let place = Place::of(PoolKind::Tmpfs).unwrap();
    let memory = place.open();
    let gone = region(2, 0, 4 * MIB);
    memory.maker(&gone)().unwrap();
    let mapped = memory.open_region(PoolId(0), RegionId(2), true).unwrap();
    memory.releaser(&retired(&gone))().unwrap();
    assert_eq!(mapped.metadata().unwrap().blocks(), 0);
}

#[test]
fn a_folder_is_of_the_kind_that_it_is_taken_for() {
    let place = Place::of(PoolKind::Tmpfs).unwrap();
    let open = |kind, coherence| {
        let plan = PoolPlan { kind: Some(kind), coherence, ..place.plan() };
        Memory::open(&[plan], place.state.path().to_owned())
    };
    let wrong = open(PoolKind::Hugetlbfs, PoolCoherence::Coherent).unwrap_err().to_string();
    assert!(wrong.contains("is on tmpfs, so no hugetlbfs; write tmpfs:"), "{wrong}");
    let of_one_host = open(PoolKind::Tmpfs, PoolCoherence::Writeback).unwrap_err().to_string();
    assert!(of_one_host.contains("is for what hosts share, fsdax or devdax"), "{of_one_host}");
    let memory = open(PoolKind::FsDax, PoolCoherence::Writeback).unwrap();
    assert_eq!(facts(&memory).coherence, PoolCoherence::Writeback);
}

#[test]
fn a_device_without_a_header_is_left_as_it_is() {
    let place = Place::of(PoolKind::DevDax).unwrap();
    for (bytes, says) in
        [(&[0; 128][..], "there is no pool header"), (b"somebody's file system", "there is no")]
    {
        let mut contents = vec![0; usize::try_from(PoolHeader::AREA_LEN + SIZE).unwrap()];
        contents[..bytes.len()].copy_from_slice(bytes);
        std::fs::write(&place.path, &contents).unwrap();
        let refused = place.try_open().unwrap_err().to_string();
        assert!(refused.contains(says) && refused.contains("`maru pool init "), "{refused}");
        assert!(std::fs::read(&place.path).unwrap() == contents, "not a byte has changed");
    }
}

#[test]
fn a_damaged_header_is_refused_and_half_a_change_is_none() {
    for place in Place::all() {
        let before = facts(&place.open()).identity;
        let header = match place.kind {
            PoolKind::DevDax => place.path.clone(),
            _ => place.path.join("maru.pool"),
        };
        let mut area = map_header(&header);
        let (_, slot) = PoolHeader::read(&area).unwrap();
        // The other slot holds what the pool was before, or what would have become of it.
        let other = (1 - slot) * PoolHeader::SLOT_LEN;
        area[other + 20] ^= 0xFF;
        assert_eq!(facts(&place.try_open().unwrap()).identity, before);
        area[slot * PoolHeader::SLOT_LEN + 20] ^= 0xFF;
        let refused = place.try_open().unwrap_err().to_string();
        assert!(
            refused.contains("the pool header is damaged") && refused.contains("maru pool show"),
            "{refused}"
        );
    }
}

/// What the place says of itself to whoever looks at it from outside.
fn seen(place: &Place) -> Result<PoolHeader, PoolHeaderError> {
    let facts = match examination::pool(&place.path).unwrap() {
        PoolPlace::Folder(folder) => folder.header,
        PoolPlace::Device(device) => device.header,
    };
    facts.unwrap().header
}

#[test]
fn a_pool_is_wiped_while_nobody_uses_it_and_is_none_any_more() {
    for place in Place::all() {
        let memory = place.open();
        memory.maker(&region(1, 0, 2 * MIB))().unwrap();
        let before = facts(&memory).identity;
        assert_eq!(seen(&place).unwrap().uuid(), before.uuid);
        let refused = IdlePool::take(&place.path).unwrap_err();
        assert!(matches!(refused, PreparationError::InUse(_)), "{refused}");
        drop(memory);

        let idle = IdlePool::take(&place.path).unwrap();
        assert_eq!(idle.header().unwrap().uuid(), before.uuid);
        assert!(matches!(place.try_open().unwrap_err(), ServerError::PoolInUse(_)));
        idle.wipe().unwrap();
        assert_eq!(seen(&place), Err(PoolHeaderError::Missing), "{:?}", place.kind);
        let nothing = IdlePool::take(&place.path).unwrap_err();
        assert!(matches!(nothing, PreparationError::NoPool(_)), "{nothing}");
        if place.kind == PoolKind::DevDax {
            assert!(matches!(place.try_open().unwrap_err(), ServerError::PoolHeader { .. }));
        } else {
            assert_eq!(std::fs::read_dir(&place.path).unwrap().count(), 0, "{:?}", place.kind);
            assert_ne!(facts(&place.open()).identity.uuid, before.uuid);
        }
    }
}

#[test]
fn a_pool_that_a_server_of_another_host_has_taken_is_no_longer_ours() {
    for place in Place::all() {
        let memory = place.open();
        assert!(memory.taken().is_none());
        let header = match place.kind {
            PoolKind::DevDax => place.path.clone(),
            _ => place.path.join("maru.pool"),
        };
        let mut area = map_header(&header);
        let (header, slot) = PoolHeader::read(&area).unwrap();
        header.discarded([9; 16]).write(&mut area, 1 - slot);
        assert_eq!(memory.taken().map(|facts| facts.kind), Some(place.kind));
    }
}
