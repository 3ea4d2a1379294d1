//! The file of what belongs to no region: the digest key, the numbers that are never given twice, the grace period, and the
//! instances.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use maru_proto::{DigestKey, INSTANCE_ID_MAX, InstanceId};
use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FORMAT, JournalError, damaged, failed, map};
use crate::files::rounded;
use crate::state::{InstanceNumber, RegionId, Saved, SavedInstance, Token};

const MAGIC: [u8; 8] = *b"MARUSTAT";
/// Registrations for which the number is written down once.
const GENERATIONS: u32 = 1 << 20;

/// What stays for as long as the file does, and the numbers, which alone change.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Head {
    fixed: Fixed,
    /// The number of the last instance that there was.
    last_instance: AtomicU32,
    /// The id of the last region that there was.
    last_region: AtomicU32,
    /// No registration has a greater number, wrapping around.
    generation: AtomicU32,
    /// No instance relies on a longer grace period, in milliseconds; 0 in files of before that was written down.
    grace_ms: AtomicU32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    format: u32,
    /// Of the two fields that follow.
    crc: u32,
    boot: [u8; 16],
    digest_key: [u8; 16],
}

/// One instance. The number is written last; 0 where there is none.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct Slot {
    token: [u8; 16],
    name: [u8; INSTANCE_ID_MAX],
    reserved: [u8; 8],
    /// Of all fields before it, and the number.
    crc: u32,
    number: AtomicU32,
}

const HEAD: usize = size_of::<Head>();
const SLOT: usize = size_of::<Slot>();
const _: () = assert!(HEAD == 64 && SLOT == 160);

/// What there is under a path.
pub(super) enum Found {
    /// No such file.
    Nothing,
    /// The host was down since it was written.
    OfEarlierBoot,
    /// The file, and what is in it, the regions left out.
    Kept(StateFile, Saved),
}

/// The file, mapped.
#[derive(Debug)]
pub(super) struct StateFile {
    map: MmapMut,
    /// Which slot an instance has.
    slots: HashMap<InstanceNumber, usize>,
    /// Slots that no instance has, the lowest last.
    free: Vec<usize>,
}

impl StateFile {
    /// Makes a file without instances, in the place of whatever is there.
    pub(super) fn create(path: &Path, max_instances: u32) -> Result<StateFile, JournalError> {
        let new = path.with_extension("new");
        let made = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            let map = allocate(&file, max_instances, 0, 0)?;
            let mut state = StateFile { map, slots: HashMap::new(), free: Vec::new() };
            let (boot, digest_key) = (boot_id()?, crate::random::secret());
            let crc = sum(&[&boot, &digest_key]);
            state.head().fixed = Fixed { magic: MAGIC, format: FORMAT, crc, boot, digest_key };
            state.free = (0..state.capacity()).rev().collect();
            fs::rename(&new, path)?;
            Ok(state)
        };
        made().map_err(failed(path))
    }

    /// Opens the file that is there.
    pub(super) fn open(path: &Path, max_instances: u32) -> Result<Found, JournalError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(failed(path)(error)),
        };
        let bytes = file.metadata().map_err(failed(path))?.len();
        if bytes < HEAD as u64 {
            return damaged(path, "it is too short");
        }
        // Looked at before it is mapped: what it says decides how much memory is brought in.
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).map_err(failed(path))?;
        let head = Head::read_from_bytes(&head).expect("as many bytes were read");
        let Fixed { magic, format, crc, boot, digest_key } = head.fixed;
        if magic != MAGIC {
            return damaged(path, "it does not begin as a journal does");
        }
        if format != FORMAT {
            return Err(JournalError::Version { path: path.to_owned(), found: format });
        }
        if crc != sum(&[&boot, &digest_key]) {
            return damaged(path, "its head is not what was written");
        }
        if boot != boot_id().map_err(failed(path))? {
            return Ok(Found::OfEarlierBoot);
        }
        // The lowest slot that is free is used first, so none behind these ever was.
        let used = head.last_instance.load(Ordering::Acquire);
        let map = allocate(&file, max_instances, used, bytes).map_err(failed(path))?;
        let mut state = StateFile { map, slots: HashMap::new(), free: Vec::new() };
        let saved = state.read(path)?;
        Ok(Found::Kept(state, saved))
    }

    /// The key of the deployment's digests.
    pub(super) fn digest_key(&self) -> DigestKey {
        let (fixed, _) = Fixed::read_from_prefix(&self.map).expect("the file is longer than its head");
        DigestKey::from(fixed.digest_key)
    }

    /// There is a region, or was.
    pub(super) fn region_begun(&mut self, id: RegionId) {
        // They may be committed in another order than that of their ids.
        self.head().last_region.fetch_max(id.0, Ordering::Release);
    }

    /// A registration has this number.
    pub(super) fn registered(&mut self, generation: u32) {
        let known = &self.head().generation;
        let ahead = known.load(Ordering::Relaxed).wrapping_sub(generation);
        if ahead >= 2 * GENERATIONS || ahead == 0 {
            known.store(generation.wrapping_add(GENERATIONS), Ordering::Release);
        }
    }

    /// Instances are told of no longer grace period than this from now on, and rely on none.
    pub(super) fn promise(&mut self, grace: Duration) {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.head().grace_ms.store(grace_ms, Ordering::Release);
    }

    /// There is an instance.
    pub(super) fn open_instance(&mut self, number: InstanceNumber, name: &str, token: Token) {
        let index = self.free.pop().expect("there is a slot for each instance that the limits allow");
        self.slots.insert(number, index);
        self.head().last_instance.store(number.0, Ordering::Release);
        let slot = self.slot(index);
        slot.token = token.0.to_le_bytes();
        slot.name = InstanceId::new(name).map_or([0; INSTANCE_ID_MAX], |name| zerocopy::transmute!(name));
        slot.crc = slot.sum(number.0);
        slot.number.store(number.0, Ordering::Release);
    }

    /// An instance ended.
    pub(super) fn end_instance(&mut self, number: InstanceNumber) {
        // One that nobody learned of was never written down.
        if let Some(index) = self.slots.remove(&number) {
            self.slot(index).number.store(0, Ordering::Release);
            self.free.push(index);
        }
    }

    /// Everything that is in the file.
    fn read(&mut self, path: &Path) -> Result<Saved, JournalError> {
        let head = self.head();
        let mut saved = Saved {
            last_instance: head.last_instance.load(Ordering::Acquire),
            last_region: head.last_region.load(Ordering::Acquire),
            generation: head.generation.load(Ordering::Acquire),
            grace: Duration::from_millis(head.grace_ms.load(Ordering::Acquire).into()),
            ..Saved::default()
        };
        for index in (0..self.capacity()).rev() {
            let slot = self.slot(index);
            let number = slot.number.load(Ordering::Acquire);
            if number == 0 {
                self.free.push(index);
                continue;
            }
            let name = InstanceId::read_from_bytes(&slot.name).ok();
            let name = name.as_ref().and_then(|name| name.text().ok()).map(str::to_owned);
            let (Some(name), true) = (name, slot.crc == slot.sum(number)) else {
                return damaged(path, format!("the record of instance {number} is not what was written"));
            };
            let token = Token(u128::from_le_bytes(slot.token));
            self.slots.insert(InstanceNumber(number), index);
            saved.instances.push(SavedInstance { number: InstanceNumber(number), name, token });
        }
        Ok(saved)
    }

    fn capacity(&self) -> usize {
        (self.map.len() - HEAD) / SLOT
    }

    fn head(&mut self) -> &mut Head {
        Head::mut_from_bytes(&mut self.map[..HEAD]).expect("a mapping is aligned, and longer than a head")
    }

    fn slot(&mut self, index: usize) -> &mut Slot {
        let at = HEAD + index * SLOT;
        Slot::mut_from_bytes(&mut self.map[at..at + SLOT]).expect("slots are aligned behind the head")
    }
}

impl Slot {
    fn sum(&self, number: u32) -> u32 {
        sum(&[&self.token, &self.name, &number.to_le_bytes()])
    }
}

fn sum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Maps a file of so many bytes up to its first `used` slots, made longer where more instances are allowed.
fn allocate(file: &File, max_instances: u32, used: u32, bytes: u64) -> io::Result<MmapMut> {
    let bytes_of = |slots: u32| rounded(file, HEAD as u64 + u64::from(slots) * SLOT as u64);
    let wanted = bytes_of(max_instances)?;
    if wanted > bytes {
        ftruncate(file, wanted)?;
        fallocate(file, FallocateFlags::empty(), 0, wanted)?;
    }
    map(file, bytes_of(used)?.min(bytes).max(wanted))
}

/// What tells one boot of the host from another.
fn boot_id() -> io::Result<[u8; 16]> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path)?;
    let digits = text.chars().filter(char::is_ascii_hexdigit).collect::<String>();
    let id = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok(id.to_be_bytes())
}
