//! Where the memory of a pool lies on this host, which may know it by another name than the server's host does.
//!
//! A path proves nothing: the same one may lead to another pool here. What counts is the header that the memory carries.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use maru_proto::{CacheLines, PoolHeader, PoolKind, PoolRecord, PoolUuid, RegionRecord};
use memmap2::MmapOptions;

use crate::error::{Error, Result};

/// How much of a device is mapped to read its header: devices map in steps of their own, of which there are these.
const DEVICE_STEPS: [usize; 3] = [PoolHeader::SLOTS_LEN, 2 << 20, 1 << 30];
/// Where the system shows devices of memory.
const DEVICES: &str = "/dev";

/// Which pool lies where on this host, for pools that are not found under the server's path.
///
/// ```
/// use maru_client::DeviceMap;
///
/// let map: DeviceMap = "67e55044-10b1-426f-9247-bb680e5fe0c8=/dev/dax1.0".parse()?;
/// assert_eq!(map.len(), 1);
/// # Ok::<(), maru_client::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMap(HashMap<PoolUuid, PathBuf>);

impl DeviceMap {
    /// Pools named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no pool is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says where a pool lies: a device, or the folder.
    pub fn insert(&mut self, pool: PoolUuid, path: impl Into<PathBuf>) {
        self.0.insert(pool, path.into());
    }
}

impl FromStr for DeviceMap {
    type Err = Error;

    /// Reads `UUID=PATH,UUID=PATH…`.
    fn from_str(text: &str) -> Result<DeviceMap> {
        let mut map = DeviceMap::default();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let invalid = |what: &dyn fmt::Display| {
                Error::InvalidConfig(format!("the device map's {entry:?} is not UUID=PATH: {what}"))
            };
            let (uuid, path) = entry.split_once('=').ok_or_else(|| invalid(&"there is no ="))?;
            if path.is_empty() {
                return Err(invalid(&"the path is empty"));
            }
            map.insert(uuid.parse().map_err(|error| invalid(&error))?, path);
        }
        Ok(map)
    }
}

/// A pool whose memory is on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalPool {
    path: PathBuf,
    is_device: bool,
}

impl LocalPool {
    /// Finds the memory of a pool.
    ///
    /// # Errors
    /// [`Error::PoolNotHere`].
    pub(crate) fn find(pool: &PoolRecord, map: &DeviceMap) -> Result<LocalPool> {
        LocalPool::find_among(pool, map, Path::new(DEVICES))
    }

    fn find_among(pool: &PoolRecord, map: &DeviceMap, devices: &Path) -> Result<LocalPool> {
        let kind = PoolKind::from_u32(pool.kind.get());
        let is_device = kind == Some(PoolKind::DevDax);
        let uuid = PoolUuid::from_bytes(pool.uuid);
        let at_server = PathBuf::from(pool.path().unwrap_or_default());
        let mut tried = Vec::new();
        let mut look = |path: PathBuf| {
            let why = match read_header(&path, is_device) {
                Ok(header) if header.uuid() != uuid => format!("is the pool {}", header.uuid()),
                Ok(header) if header.incarnation() != pool.incarnation.get() => format!(
                    "is that pool under incarnation {} and not {}, so one of the two was emptied and the other not",
                    header.incarnation(),
                    pool.incarnation
                ),
                Ok(_) => return Some(LocalPool { path, is_device }),
                Err(error) => error.to_string(),
            };
            tried.push(format!("{} {why}", path.display()));
            None
        };
        let found = match map.0.get(&uuid) {
            // What is named is what is meant.
            Some(path) => look(path.clone()),
            None => look(at_server.clone()).or_else(|| {
                let others = if is_device { dax_devices(devices) } else { Vec::new() };
                others.into_iter().filter(|path| *path != at_server).find_map(&mut look)
            }),
        };
        found.ok_or_else(|| Error::PoolNotHere {
            uuid,
            kind: kind.map_or("unknown", PoolKind::name),
            path: at_server,
            reason: match kind {
                Some(PoolKind::Tmpfs | PoolKind::Hugetlbfs) => {
                    format!(
                        "{}; it is memory of the server's host, and hosts share fsdax and devdax pools",
                        tried.join(", ")
                    )
                }
                _ => format!("{}; name it in the device map, UUID=PATH", tried.join(", ")),
            },
        })
    }

    /// Opens what a region is mapped from.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub(crate) fn open(&self, region: &RegionRecord, writable: bool) -> Result<File> {
        let region_id = region.region_id.get();
        let file = if self.is_device { None } else { Some(format!("region-{region_id}")) };
        let path = file.map_or_else(|| self.path.clone(), |file| self.path.join(file));
        let file = OpenOptions::new().read(true).write(writable).open(path);
        file.map_err(|source| Error::Map { region_id, source })
    }
}

/// The devices of memory of this host.
fn dax_devices(folder: &Path) -> Vec<PathBuf> {
    let Ok(files) = folder.read_dir() else { return Vec::new() };
    let is_dax = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix("dax"))
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut devices = files.flatten().map(|file| file.path()).filter(is_dax).collect::<Vec<_>>();
    devices.sort_unstable();
    devices
}

fn read_header(path: &Path, is_device: bool) -> io::Result<PoolHeader> {
    let file = File::open(if is_device { path.to_owned() } else { path.join(PoolHeader::FILE) })?;
    let mut area = [0; PoolHeader::SLOTS_LEN];
    if file.metadata()?.file_type().is_char_device() {
        let beginning = map_beginning(&file)?;
        // As it is in memory, and not as this host has seen it earlier.
        if let Some(lines) = CacheLines::of_this_processor() {
            lines.invalidate(&beginning[..PoolHeader::SLOTS_LEN]);
        }
        area.copy_from_slice(&beginning[..PoolHeader::SLOTS_LEN]);
    } else {
        file.read_exact_at(&mut area, 0)?;
    }
    PoolHeader::read(&area).map(|(header, _)| header).map_err(io::Error::other)
}

/// The beginning of a device, which can't be read in any other way.
fn map_beginning(device: &File) -> io::Result<memmap2::Mmap> {
    let mut refused = io::Error::from(io::ErrorKind::InvalidInput);
    for step in DEVICE_STEPS {
        // SAFETY: the header is changed by a server that starts, and by nobody else; what is copied out of it meanwhile has not
        // the right checksum.
        match unsafe { MmapOptions::new().len(step).map(device) } {
            Ok(mapped) => return Ok(mapped),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn header(byte: u8) -> PoolHeader {
        PoolHeader::new(PoolUuid::from_random([byte; 16]))
    }

    fn record(kind: PoolKind, path: &Path, header: &PoolHeader) -> PoolRecord {
        let mut record = PoolRecord::new_zeroed();
        record.kind = (kind as u32).into();
        record.uuid = header.uuid().to_bytes();
        record.incarnation = header.incarnation().into();
        let path = path.to_str().unwrap().as_bytes();
        record.path[..path.len()].copy_from_slice(path);
        record.path_len = u16::try_from(path.len()).unwrap().into();
        record
    }

    fn write(path: &Path, header: &PoolHeader) {
        let mut area = vec![0; PoolHeader::SLOTS_LEN];
        header.write(&mut area, 0);
        std::fs::write(path, area).unwrap();
    }

    fn refused(pool: &PoolRecord, map: &DeviceMap, devices: &Path) -> String {
        LocalPool::find_among(pool, map, devices).unwrap_err().to_string()
    }

    #[test]
    fn a_device_is_found_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let (there, here) = (folder.path().join("dax0.0"), folder.path().join("dax7.1"));
        write(&there, &header(1));
        write(&here, &header(2));
        std::fs::write(folder.path().join("daxctl"), "no device").unwrap();
        let pool = record(PoolKind::DevDax, &there, &header(2));
        let found = LocalPool::find_among(&pool, &DeviceMap::default(), folder.path()).unwrap();
        assert_eq!(found, LocalPool { path: here, is_device: true });
    }

    #[test]
    fn a_device_that_is_named_is_the_only_one_that_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let (there, here) = (folder.path().join("dax0.0"), folder.path().join("elsewhere"));
        write(&there, &header(1));
        write(&here, &header(1));
        let pool = record(PoolKind::DevDax, &there, &header(1));
        let mut map = DeviceMap::default();
        map.insert(header(1).uuid(), &here);
        let found = LocalPool::find_among(&pool, &map, folder.path()).unwrap();
        assert_eq!(found, LocalPool { path: here.clone(), is_device: true });
        std::fs::remove_file(here).unwrap();
        assert!(refused(&pool, &map, folder.path()).contains("elsewhere No such file"));
    }

    #[test]
    fn another_pool_under_the_same_path_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(PoolHeader::FILE), &header(1));
        let of_other_host = record(PoolKind::Tmpfs, folder.path(), &header(2));
        let said = refused(&of_other_host, &DeviceMap::default(), folder.path());
        assert!(said.contains("memory of the server's host, and hosts share fsdax and devdax"), "{said}");
        let of_other_mount = record(PoolKind::FsDax, folder.path(), &header(2));
        let said = refused(&of_other_mount, &DeviceMap::default(), folder.path());
        assert!(said.contains("is the pool 01010101-") && said.contains("UUID=PATH"), "{said}");
    }

    #[test]
    fn the_same_pool_before_it_was_emptied_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("dax0.0");
        write(&device, &header(1));
        let emptied = record(PoolKind::DevDax, &device, &header(1).discarded([0; 16]));
        let said = refused(&emptied, &DeviceMap::default(), folder.path());
        assert!(said.contains("is that pool under incarnation 1 and not 2"), "{said}");
        write(&device, &header(1).discarded([0; 16]));
        LocalPool::find_among(&emptied, &DeviceMap::default(), folder.path()).unwrap();
    }

    #[test]
    fn a_folder_of_this_host_is_found_where_the_server_has_it() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(PoolHeader::FILE), &header(1));
        let pool = record(PoolKind::Tmpfs, folder.path(), &header(1));
        let found = LocalPool::find_among(&pool, &DeviceMap::default(), folder.path()).unwrap();
        assert_eq!(found, LocalPool { path: folder.path().to_owned(), is_device: false });
    }

    #[test]
    fn a_device_map_names_pools() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let map = format!("{uuid}=/dev/dax1.0,01010101-0101-4101-8101-010101010101=/mnt/x=y")
            .parse::<DeviceMap>()
            .unwrap();
        assert_eq!(map.0[&uuid.parse().unwrap()], Path::new("/dev/dax1.0"));
        assert_eq!(map.0[&header(1).uuid()], Path::new("/mnt/x=y"));
        for bad in ["/dev/dax1.0", "67e55044=/dev/dax1.0", &format!("{uuid}=")] {
            let error = bad.parse::<DeviceMap>().unwrap_err().to_string();
            assert!(error.contains("is not UUID=PATH"), "{error}");
        }
    }
}
