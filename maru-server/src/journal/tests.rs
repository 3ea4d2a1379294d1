//! What is written down is read back, whatever happened before; what is not as it was written is refused.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::state::{Digest, InstanceNumber, Limits, PinKind, PoolId, PoolSpec, Registered, Request, Token};

const LIMITS: Limits = Limits {
    max_entries: 64,
    max_pins_per_entry: 8,
    max_instances: 6,
    max_connections_per_instance: 2,
    max_regions_per_instance: 4,
    min_page_size: 4096,
    max_page_size: 4096,
    grace: Duration::from_secs(10),
    pin_ttl: Duration::ZERO,
};
const POOLS: [PoolSpec; 1] = [PoolSpec { size: 64 * 4096, granularity: 4096 }];
const POOL: PoolIdentity = PoolIdentity { uuid: PoolUuid::from_bytes([7; 16]), incarnation: 3 };
const KEYS: u128 = 24;

/// The journal in a folder, whose pool is there.
fn open(folder: &Path, max_instances: u32, fresh: bool) -> Result<(Journal, Saved), JournalError> {
    let (mut journal, mut saved) = Journal::open(folder, max_instances, fresh)?;
    journal.read_regions(&[POOL], &mut saved)?;
    Ok((journal, saved))
}

/// A server without anything around it: its folder, its journal, its state.
struct Server {
    folder: TempDir,
    journal: Journal,
    state: State,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (journal, saved) = open(folder.path(), LIMITS.max_instances, false).unwrap();
        assert_eq!(saved, Saved::default());
        Server { state: restored(&saved), folder, journal }
    }

    /// The process ends here, and another goes on.
    fn restart(&mut self) {
        let (journal, saved) = open(self.folder.path(), LIMITS.max_instances, false).unwrap();
        self.state = restored(&saved);
        self.journal = journal;
    }

    fn keep(&mut self) {
        let mut changes = Vec::new();
        self.state.take_changes(&mut changes);
        changes.iter().for_each(|change| self.journal.note(change, &self.state));
        while let Some(region) = self.state.next_retired() {
            fs::remove_file(table_path(self.folder.path(), region.id)).unwrap();
            self.state.released(region.id);
        }
    }

    fn open_instance(&mut self, name: &str) -> InstanceNumber {
        let token =
            Token(u128::from(self.state.usage_after(InstanceNumber(0), Duration::ZERO).count() as u64));
        let token = Token(token.0 << 64 | u128::from(rand_word()));
        let instance = self.state.open_instance(name, token).unwrap();
        self.keep();
        instance
    }

    fn add_region(&mut self, owner: InstanceNumber, pages: u32) -> Option<RegionId> {
        let region = self.state.begin_region(owner, u64::from(pages) * 4096, 4096, None).ok()?;
        let table = make_table(self.folder.path(), &region, POOL).unwrap();
        self.journal.adopt(region.id, table);
        self.state.commit_region(region.id);
        self.keep();
        Some(region.id)
    }

    fn register(&mut self, owner: InstanceNumber, key: u128, region: RegionId, page: u32) -> Registered {
        let mut request = Request::new(owner, Duration::ZERO, 1);
        let length = 1 + u32::try_from(key).unwrap();
        // Some have a checksum, and some have none.
        let checksum = length % 3 * 0x0123_4567;
        let registered = self.state.register(&mut request, digest(key), region, page, length, checksum);
        self.keep();
        registered
    }

    /// Everything that has to outlive the process.
    fn seen(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let entries = (0..KEYS).map(|key| self.state.find(digest(key))).collect::<Vec<_>>();
        let regions = self.state.regions_after(RegionId(0)).collect::<Vec<_>>();
        let held = regions.iter().filter_map(|region| {
            Some(self.state.held_pages(region.owner?, region.id, 0).unwrap().collect::<Vec<_>>())
        });
        let instances = self.state.usage_after(InstanceNumber(0), Duration::ZERO);
        let instances = instances.map(|usage| (usage.number, self.state.identity(usage.number).unwrap().1));
        (entries, held.collect::<Vec<_>>(), instances.collect::<Vec<_>>(), regions)
    }
}

fn rand_word() -> u64 {
    u64::from_le_bytes(crate::random::secret()[..8].try_into().unwrap())
}

fn restored(saved: &Saved) -> State {
    let mut state = State::restore(LIMITS, &POOLS, saved, Duration::ZERO).unwrap();
    state.keep_changes();
    state.check();
    state
}

fn digest(key: u128) -> Digest {
    Digest(key << 64 | key.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    End { who: usize },
    AddRegion { who: usize, pages: u32 },
    Return { region: usize },
    Register { key: u128, region: usize, page: u32 },
    Delete { key: u128 },
    Reclaim { who: usize, want: usize },
    Evict { who: usize, want: usize },
    Restart,
}

fn ops() -> impl Strategy<Value = Op> {
    let index = 0..8usize;
    prop_oneof![
        2 => Just(Op::Open),
        1 => index.clone().prop_map(|who| Op::End { who }),
        4 => (index.clone(), 1..12u32).prop_map(|(who, pages)| Op::AddRegion { who, pages }),
        1 => index.clone().prop_map(|region| Op::Return { region }),
        30 => (0..KEYS, index.clone(), 0..12u32)
            .prop_map(|(key, region, page)| Op::Register { key, region, page }),
        10 => (0..KEYS).prop_map(|key| Op::Delete { key }),
        4 => (index.clone(), 0..3usize).prop_map(|(who, want)| Op::Reclaim { who, want }),
        4 => (index, 0..3usize).prop_map(|(who, want)| Op::Evict { who, want }),
        3 => Just(Op::Restart),
    ]
}

fn step(server: &mut Server, op: &Op) -> Option<()> {
    let instances = server.state.usage_after(InstanceNumber(0), Duration::ZERO);
    let instances = instances.map(|usage| usage.number).collect::<Vec<_>>();
    let who = |who: usize| instances.get(who % instances.len().max(1)).copied();
    let regions = server.state.regions_after(RegionId(0)).collect::<Vec<_>>();
    let region = |region: usize| regions.get(region % regions.len().max(1)).copied();
    match *op {
        Op::Open if instances.len() < LIMITS.max_instances as usize => {
            server.open_instance("an instance");
        }
        Op::Open => {}
        Op::End { who: index } => server.state.forget(who(index)?),
        Op::AddRegion { who: index, pages } => drop(server.add_region(who(index)?, pages)),
        Op::Return { region: index } => {
            let region = region(index)?;
            server.state.return_region(region.owner?, region.id).unwrap();
        }
        Op::Register { key, region: index, page } => {
            let region = region(index)?;
            let _ = server.register(region.owner?, key, region.id, page);
        }
        Op::Delete { key } => drop(server.state.delete(digest(key))),
        Op::Reclaim { who: index, want } => server.state.reclaim(who(index)?, None, want, |_, _| {}).unwrap(),
        Op::Evict { who: index, want } => server.state.evict(who(index)?, want, |_, _| {}),
        Op::Restart => {
            let (before, restarts) = (server.seen(), server.state.is_recovering());
            server.restart();
            assert_eq!(server.seen(), before, "after another restart, {restarts}");
            // All say at once what they have pinned: nothing.
            for instance in instances {
                server.state.release_unasserted(&Request::new(instance, Duration::ZERO, 0));
            }
        }
    }
    server.keep();
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restart_changes_nothing(ops in prop::collection::vec(ops(), 1..200)) {
        let mut server = Server::start();
        for op in ops {
            step(&mut server, &op);
        }
        step(&mut server, &Op::Restart);
    }
}

/// A server with one instance, one region, and an entry in its first page.
fn one_entry() -> (Server, InstanceNumber, RegionId) {
    let mut server = Server::start();
    let owner = server.open_instance("the owner");
    let region = server.add_region(owner, 8).unwrap();
    assert_eq!(server.register(owner, 1, region, 0), Registered::Done);
    (server, owner, region)
}

#[test]
fn numbers_are_never_given_twice() {
    let (mut server, owner, region) = one_entry();
    let generation = server.state.find(digest(1)).unwrap().generation;
    server.state.delete(digest(1)).unwrap();
    server.state.forget(owner);
    server.keep();
    server.restart();
    let other = server.open_instance("another");
    assert_eq!(other, InstanceNumber(owner.0 + 1));
    assert_eq!(server.add_region(other, 8), Some(RegionId(region.0 + 1)));
    assert_eq!(server.register(other, 1, RegionId(region.0 + 1), 0), Registered::Done);
    assert!(server.state.find(digest(1)).unwrap().generation > generation);
}

#[test]
fn digests_keep_their_key() {
    let mut server = Server::start();
    let key = server.journal.digest_key();
    server.restart();
    assert_eq!(server.journal.digest_key(), key);
}

#[test]
fn nothing_goes_until_every_instance_has_said_what_it_reads() {
    let (mut server, owner, _) = one_entry();
    let reader = server.open_instance("a reader");
    server.restart();
    let generation = server.state.find(digest(1)).unwrap().generation;
    let evicted = |server: &mut Server| {
        let mut pages = 0;
        server.state.evict(owner, 1, |_, _| pages += 1);
        pages
    };
    let owners = Request::new(owner, Duration::ZERO, 0);
    server.state.release_unasserted(&owners);
    assert_eq!(server.state.delete(digest(1)), Err(crate::state::DeleteError::Pinned));
    assert_eq!(evicted(&mut server), 0);

    let readers = Request::new(reader, Duration::ZERO, 1);
    assert!(server.state.assert_pins(&readers, digest(1), generation, 1, 2));
    server.state.release_unasserted(&readers);
    assert!(!server.state.is_recovering());
    assert_eq!(evicted(&mut server), 0, "it is pinned now");
    for kind in [PinKind::Guard, PinKind::Named, PinKind::Named] {
        assert_eq!(server.state.unpin(&readers, digest(1), kind), Ok(()));
    }
    assert_eq!(evicted(&mut server), 1);
}

#[test]
fn who_says_nothing_is_waited_for_as_long_as_the_grace_period() {
    let (mut server, owner, _) = one_entry();
    server.restart();
    // It is back, and so will not end, and says nothing.
    server.state.connect(owner).unwrap();
    assert_eq!(server.state.next_expiry(), Some(LIMITS.grace));
    server.state.expire(LIMITS.grace - Duration::from_millis(1));
    assert!(server.state.delete(digest(1)).is_err());
    server.state.expire(LIMITS.grace);
    assert_eq!(server.state.delete(digest(1)), Ok(()));
    assert_eq!(server.state.next_expiry(), None);
}

/// Readers who can't be reached rely on what they were told.
#[test]
fn a_restart_with_a_shorter_grace_period_waits_as_long_as_those_of_before_rely_on() {
    const SHORT: Limits = Limits { grace: Duration::from_secs(2), ..LIMITS };
    let (mut server, owner, _) = one_entry();
    server.journal.settle(&server.state);
    let restart = |server: &mut Server| {
        let (journal, saved) = open(server.folder.path(), LIMITS.max_instances, false).unwrap();
        server.journal = journal;
        server.state = State::restore(SHORT, &POOLS, &saved, Duration::ZERO).unwrap();
        server.state.keep_changes();
        server.journal.settle(&server.state);
        saved.grace
    };
    // Also if that is not over when it is restarted again.
    for _ in 0..2 {
        assert_eq!(restart(&mut server), LIMITS.grace);
        // One that is back for a moment, and gone again before it has said what it reads.
        server.state.resume(owner).unwrap();
        server.state.disconnect(owner, Duration::ZERO);
        server.state.expire(LIMITS.grace - Duration::from_millis(1));
        assert!(server.state.delete(digest(1)).is_err());
    }
    server.state.connect(owner).unwrap();
    server.state.expire(LIMITS.grace);
    assert_eq!(server.state.promised_grace(), SHORT.grace);
    server.keep();
    assert_eq!(restart(&mut server), SHORT.grace);
    server.state.expire(SHORT.grace);
    assert_eq!(server.state.delete(digest(1)), Ok(()));
}

/// Opens what a server has left, which must be refused.
fn refused(folder: &Path) -> String {
    open(folder, LIMITS.max_instances, false).map(|_| ()).unwrap_err().to_string()
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_journal_that_is_not_as_it_was_written_is_refused() {
    let cases: &[(&str, u64, &str)] = &[
        ("maru.state", 0, "is damaged (it does not begin as a journal does)"),
        ("maru.state", 8, "was written by another version of maru-server (format 238, not 2)"),
        ("maru.state", 40, "is damaged (its head is not what was written)"),
        ("maru.state", 64 + 20, "is damaged (the record of instance 1 is not what was written)"),
        ("region-1.pages", 0, "is damaged (it does not begin as a page table does)"),
        ("region-1.pages", 8, "was written by another version"),
        ("region-1.pages", 20, "is damaged (its head is not what was written)"),
        ("region-1.pages", 77, "is damaged (its head is not what was written)"),
        ("region-1.pages", 96, "is damaged (the record of page 0 is not what was written)"),
        ("region-1.pages", 96 + 28, "is damaged (the record of page 0 is not what was written)"),
        ("region-1.pages", 96 + 32 + 28, "is damaged (the record of page 1 is not what was written)"),
    ];
    for (file, at, expected) in cases {
        let (server, ..) = one_entry();
        let path = server.folder.path().join(file);
        write_at(&path, *at, &[0xee]);
        let before = fs::read(&path).unwrap();
        let said = refused(server.folder.path());
        assert!(said.contains(expected) && said.contains("--fresh"), "{file} at {at}: {said}");
        assert_eq!(fs::read(&path).unwrap(), before, "it is left as it is");

        let (_, saved) = open(server.folder.path(), LIMITS.max_instances, true).unwrap();
        assert_eq!(saved, Saved::default());
        assert_eq!(table_files(server.folder.path()).unwrap(), []);
    }
}

#[test]
fn a_region_of_a_pool_that_is_not_there_is_refused() {
    let (server, ..) = one_entry();
    let other = PoolIdentity { uuid: PoolUuid::from_bytes([8; 16]), ..POOL };
    let (mut journal, mut saved) = Journal::open(server.folder.path(), LIMITS.max_instances, false).unwrap();
    let said = journal.read_regions(&[other], &mut saved).unwrap_err().to_string();
    assert!(said.contains("of the pool 07070707-0707-0707-0707-070707070707, which is not there"), "{said}");
    // In whichever order the pools are given.
    journal.read_regions(&[other, POOL], &mut saved).unwrap();
    assert_eq!(saved.regions[0].pool, PoolId(1));
}

#[test]
fn a_region_of_a_pool_that_was_emptied_since_is_gone() {
    let (server, ..) = one_entry();
    let emptied = PoolIdentity { incarnation: POOL.incarnation + 1, ..POOL };
    for _ in 0..2 {
        let (mut journal, mut saved) =
            Journal::open(server.folder.path(), LIMITS.max_instances, false).unwrap();
        journal.read_regions(&[emptied], &mut saved).unwrap();
        assert_eq!((saved.regions.len(), saved.instances.len()), (0, 1));
    }
    assert_eq!(table_files(server.folder.path()).unwrap(), []);
}

#[test]
fn what_was_half_done_is_as_if_never_begun() {
    let (mut server, owner, region) = one_entry();
    // The process ended as it wrote a record, made a region, released another, made the journal anew.
    let folder = server.folder.path().to_owned();
    write_at(&table_path(&folder, region), 96 + 32, &[0xee; 28]);
    let making = server.state.begin_region(owner, 4096, 4096, Some(PoolId(0))).unwrap();
    make_table(&folder, &making, POOL).unwrap();
    fs::write(folder.join("region-78.pages"), b"a table").unwrap();
    fs::write(folder.join("maru.new"), b"half a journal").unwrap();
    fs::write(folder.join("region-x.pages"), b"nothing of ours").unwrap();

    server.restart();
    assert_eq!(table_files(&folder).unwrap(), [region]);
    assert!(folder.join("region-x.pages").exists());
    assert_eq!(server.state.regions_after(RegionId(0)).count(), 1);
    assert_eq!(server.register(owner, 2, region, 1), Registered::Done);
    server.restart();
    assert!(server.state.find(digest(1)).is_some() && server.state.find(digest(2)).is_some());
}

#[test]
fn a_page_table_takes_no_more_memory_than_its_pages_need() {
    for damaged in [false, true] {
        let (mut server, _, region) = one_entry();
        let path = table_path(server.folder.path(), region);
        let memory = || fs::metadata(&path).unwrap().blocks();
        let before = memory();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 28).unwrap();
        if damaged {
            write_at(&path, 20, &[0xee]);
            assert!(refused(server.folder.path()).contains("its head is not what was written"));
        } else {
            server.restart();
            assert!(server.state.find(digest(1)).is_some());
        }
        assert_eq!(memory(), before, "damaged: {damaged}");
    }
}

#[test]
fn a_state_file_takes_no_more_memory_than_its_instances_need() {
    let (mut server, owner, _) = one_entry();
    let path = server.folder.path().join("maru.state");
    let memory = || fs::metadata(&path).unwrap().blocks();
    let before = memory();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 28).unwrap();
    server.restart();
    assert!(server.state.identity(owner).is_some());
    assert_eq!(memory(), before);
}

#[test]
fn a_state_file_that_is_refused_is_left_as_long_as_it_is() {
    let (server, ..) = one_entry();
    let path = server.folder.path().join("maru.state");
    write_at(&path, 40, &[0xee]);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert!(refused(server.folder.path()).contains("its head is not what was written"));
    assert_eq!(fs::metadata(&path).unwrap().len(), 100);
}

#[test]
fn a_journal_of_an_earlier_boot_is_discarded() {
    let (server, ..) = one_entry();
    let path = server.folder.path().join("maru.state");
    let mut file = fs::read(&path).unwrap();
    file[16] ^= 1;
    let crc = crc32fast::hash(&file[16..48]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, file).unwrap();
    let (_, saved) = open(server.folder.path(), LIMITS.max_instances, false).unwrap();
    assert_eq!(saved, Saved::default());
    assert_eq!(table_files(server.folder.path()).unwrap(), []);
}

#[test]
fn a_region_with_a_number_that_is_never_given_is_refused() {
    let (server, ..) = one_entry();
    let (_, mut saved) = open(server.folder.path(), LIMITS.max_instances, false).unwrap();
    saved.last_region = 1 << 31;
    let refused = |saved: &Saved| {
        State::restore(LIMITS, &POOLS, saved, Duration::ZERO).map(|_| ()).unwrap_err().to_string()
    };
    let expected = "it contradicts itself: its last region is 2147483648, and there can't be one";
    assert_eq!(refused(&saved), expected);
    saved.regions[0].id = RegionId(1 << 31);
    assert_eq!(refused(&saved), expected);
}

#[test]
fn limits_that_are_too_low_for_what_was_saved_say_so() {
    let (server, ..) = one_entry();
    let (_, saved) = open(server.folder.path(), LIMITS.max_instances, false).unwrap();
    let restore = |limits, pools: &[PoolSpec]| {
        State::restore(limits, pools, &saved, Duration::ZERO).map(|_| ()).unwrap_err().to_string()
    };
    let said = restore(Limits { max_entries: 7, ..LIMITS }, &POOLS);
    assert_eq!(said, "its regions have 8 pages, more than --max-entries 7; raise that limit");
    let small = [PoolSpec { size: 4 * 4096, granularity: 4096 }];
    let said = restore(LIMITS, &small);
    assert_eq!(said, "its region 1 does not fit into the pool any more; give the pool the size of before");
}

#[test]
fn more_instances_may_be_allowed_than_before() {
    let (mut server, ..) = one_entry();
    let (journal, saved) = open(server.folder.path(), 200, false).unwrap();
    let limits = Limits { max_instances: 200, ..LIMITS };
    (server.journal, server.state) =
        (journal, State::restore(limits, &POOLS, &saved, Duration::ZERO).unwrap());
    server.state.keep_changes();
    for _ in 1..200 {
        server.open_instance("one of many");
    }
    let (_, saved) = open(server.folder.path(), 2, false).unwrap();
    assert_eq!(saved.instances.len(), 200);
}
