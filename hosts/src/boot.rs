//! The boot of a host: what the kernel calls it, by which programs know one host from another.

use std::fs;
use std::path::Path;

use rustix::mount::mount_bind;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::HostsError;

/// Where the kernel shows it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Has the mount namespace that this runs in show a boot that nobody else had. `folder` is the host's own.
///
/// # Errors
/// [`HostsError`] where the system refuses.
pub(crate) fn boot(folder: &Path) -> Result<(), HostsError> {
    let mut random = [0; 16];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(HostsError::system("get random bytes"))?;
    let path = folder.join("boot_id");
    fs::write(&path, uuid(random)).map_err(HostsError::file("write", &path))?;
    mount_bind(&path, BOOT_ID).map_err(HostsError::file("mount another boot id on", BOOT_ID.as_ref()))?;
    // What is mounted keeps it.
    fs::remove_file(&path).map_err(HostsError::file("remove", &path))
}

/// As the kernel writes it.
fn uuid(bytes: [u8; 16]) -> String {
    let digits = format!("{:032x}\n", u128::from_be_bytes(bytes));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_the_kernels() {
        let kernels = fs::read_to_string(BOOT_ID).unwrap();
        let own = uuid([0xab; 16]);
        assert_eq!(own, "abababab-abab-abab-abab-abababababab\n");
        assert_eq!(own.len(), kernels.len());
    }
}
