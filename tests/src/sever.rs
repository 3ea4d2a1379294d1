//! Connections of this process that break, as those through a failing network do.

use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;

use rustix::net::{Shutdown, SocketAddrUnix, getpeername, shutdown};

/// Breaks every connection of this process to a Unix socket, and says how many there were. Nothing is lost that the
/// kernel has taken over: what was sent arrives, and the answers do not.
///
/// # Panics
/// When the descriptors of this process can't be listed.
pub fn sever(socket: &Path) -> usize {
    let listed = std::fs::read_dir("/proc/self/fd").expect("a process may list its descriptors");
    let descriptors = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    let mut severed = 0;
    for descriptor in descriptors.collect::<Vec<_>>() {
        // SAFETY: the descriptor was open a moment ago. Another thread may have closed it, or opened something else under
        // its number, since: then it is no socket, or none with this peer, and nothing is done to it; if it is a new
        // connection to this peer, breaking it is what is wanted.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let peer =
            getpeername(descriptor).ok().flatten().and_then(|peer| SocketAddrUnix::try_from(peer).ok());
        let is_it = peer.is_some_and(|peer| {
            let path = peer.path_bytes().map(<[u8]>::to_vec);
            path.is_some_and(|path| path == socket.as_os_str().as_encoded_bytes())
        });
        if is_it && shutdown(descriptor, Shutdown::Both).is_ok() {
            severed += 1;
        }
    }
    severed
}
