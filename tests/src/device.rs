//! Files that stand in for devices of memory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use maru_proto::{DigestKey, PoolHeader, PoolUuid};

/// Makes a file that is a pool as `maru pool init` makes a device one, with room for regions of so many bytes.
///
/// # Panics
/// When there is something under the path, or no room.
pub fn make_device(path: &Path, bytes: u64) -> PoolUuid {
    // Another for every path.
    let digest = DigestKey::from([0; 16]).digest(path.as_os_str().as_encoded_bytes());
    let uuid = PoolUuid::from_random(digest.to_bytes());
    let mut area = vec![0; PoolHeader::SLOTS_LEN];
    PoolHeader::new(uuid).write(&mut area, 0);
    let mut device = File::create_new(path).expect("there is no such device yet");
    device.write_all(&area).expect("there is room for a header");
    device.set_len(PoolHeader::AREA_LEN + bytes).expect("a file can have any length");
    uuid
}
