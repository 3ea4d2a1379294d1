//! Files that are mapped.

use std::fs::File;
use std::io;

use rustix::fs::fstatfs;

/// As many bytes as whole blocks of the file system have: huge pages, where it has no others.
pub(crate) fn rounded(file: &File, bytes: u64) -> io::Result<u64> {
    let block = u64::try_from(fstatfs(file)?.f_bsize).unwrap_or(4096).max(4096);
    Ok(bytes.next_multiple_of(block))
}
