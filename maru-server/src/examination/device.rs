//! A device that is a pool, or could become one, from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use maru_proto::PoolHeaderError;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{HeaderFacts, PoolLock, lock};
use crate::pool::DeviceShape;

/// A device that is a pool, or could become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolDevice {
    /// Its bytes.
    pub size: u64,
    /// Mappings begin and end at multiples of this many bytes; `None` where it only stands in for a device.
    pub alignment: Option<u64>,
    /// Regions begin and end at multiples of this many bytes.
    pub granularity: u64,
    /// Bytes of the smallest such device that could be a pool.
    pub least_size: u64,
    /// Whether this user may read it.
    pub is_readable: bool,
    /// Whether this user may write to it.
    pub is_writable: bool,
    /// What it says of itself; `None` where this user may not read it.
    pub header: Option<HeaderFacts>,
    /// Who uses it.
    pub lock: PoolLock,
}

impl PoolDevice {
    /// Looks at a device without changing anything.
    pub(super) fn look(path: &Path) -> io::Result<PoolDevice> {
        let metadata = path.metadata()?;
        let shape = DeviceShape::of(&metadata)?;
        let may = |access| accessat(CWD, path, access, AtFlags::EACCESS).is_ok();
        let is_readable = may(Access::READ_OK);
        let file = if is_readable { Some(File::open(path)?) } else { None };
        let header = match &file {
            Some(file) if shape.size >= shape.least_size() => {
                Some(HeaderFacts::read(file, shape.first_extent())?)
            }
            Some(_) => Some(HeaderFacts::MISSING),
            None => None,
        };
        let was_used = header.is_some_and(|facts| match facts.header {
            Ok(header) => !header.is_new(),
            Err(error) => error != PoolHeaderError::Missing,
        });
        Ok(PoolDevice {
            size: shape.size,
            alignment: metadata.file_type().is_char_device().then_some(shape.alignment),
            granularity: shape.granularity(),
            least_size: shape.least_size(),
            is_readable,
            is_writable: may(Access::WRITE_OK),
            header,
            lock: file.map_or(PoolLock::Unknown, |file| lock(&file, was_used)),
        })
    }
}

/// What is called as DAX devices are.
pub(super) fn devices_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let name = file?.file_name();
        let numbers = name.to_str().and_then(|name| name.strip_prefix("dax")?.split_once('.'));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if numbers.is_some_and(|(region, device)| is_number(region) && is_number(device)) {
            devices.push(folder.join(name));
        }
    }
    devices.sort();
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use bytesize::ByteSize;
    use maru_proto::{PoolHeader, PoolKind};

    use super::super::{PoolPlace, pool};
    use super::*;
    use crate::pool::{BareDevice, Memory, PoolPlan};

    fn look(path: &Path) -> PoolDevice {
        match pool(path).unwrap() {
            PoolPlace::Device(device) => device,
            PoolPlace::Folder(folder) => unreachable!("{folder:?}"),
        }
    }

    #[test]
    fn a_device_is_seen_from_before_it_is_a_pool_until_a_server_has_left_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("device");
        File::create_new(&path).unwrap().set_len(6 << 20).unwrap();
        let bare = look(&path);
        assert_eq!((bare.size, bare.alignment, bare.granularity), (6 << 20, None, 2 << 20));
        assert_eq!((bare.header, bare.lock), (Some(HeaderFacts::MISSING), PoolLock::Unused));
        assert!(bare.is_readable && bare.is_writable && bare.least_size == 4 << 20);

        let taken = BareDevice::take(&path).unwrap();
        assert_eq!(look(&path).lock, PoolLock::Held);
        let identity = taken.init();
        let made = look(&path);
        let header = made.header.unwrap().header.unwrap();
        assert_eq!((header.uuid(), header.incarnation()), (identity.uuid, identity.incarnation));
        assert_eq!(made.lock, PoolLock::Unused, "no server did yet");

        let plan = PoolPlan { kind: Some(PoolKind::DevDax), path: path.clone(), ..PoolPlan::default() };
        let mut used = Memory::open(&[plan], folder.path().to_owned()).unwrap();
        used.adopt([7; 16], std::time::Duration::ZERO).unwrap();
        assert_eq!(look(&path).lock, PoolLock::Held);
        drop(used);
        let left = look(&path);
        assert_eq!((left.lock, left.header.unwrap().header.unwrap().incarnation()), (PoolLock::Left, 2));
    }

    #[test]
    fn each_place_of_a_header_is_told_by_itself() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("device");
        let file = File::create_new(&path).unwrap();
        file.set_len(ByteSize::mib(4).as_u64()).unwrap();
        BareDevice::take(&path).unwrap().init();
        file.write_all_at(b"MARUPOOL\x01\0\0\0damaged", PoolHeader::SLOT_LEN as u64).unwrap();
        let facts = look(&path).header.unwrap();
        assert_eq!(facts.slots, [facts.header, Err(PoolHeaderError::Damaged)]);
        assert!(facts.header.is_ok(), "half a change is none");
        file.write_all_at(&[9], 8).unwrap();
        let facts = look(&path).header.unwrap();
        assert_eq!(facts.slots, [Err(PoolHeaderError::Version(9)), Err(PoolHeaderError::Damaged)]);
        assert_eq!(facts.header, Err(PoolHeaderError::Version(9)));
    }

    #[test]
    fn a_file_without_room_for_a_header_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(look(file.path()).header, Some(HeaderFacts::MISSING));
    }

    #[test]
    fn devices_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["dax1.0", "dax0.1", "dax0.0", "dax", "dax0", "dax0.x", "daxctl.1", "null"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = devices_in(folder.path()).unwrap();
        let names = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(names, ["dax0.0", "dax0.1", "dax1.0"]);
    }
}
