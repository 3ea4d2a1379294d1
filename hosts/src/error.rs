//! Why there are no hosts, as one sentence each.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why hosts can't be made or handled.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The system does not let this user make namespaces.
    #[error("namespaces are not permitted ({0}); run it as root, or under `unshare --map-root-user`")]
    NotPermitted(Errno),
    /// There is no `ip`.
    #[error("there is no `ip`; install iproute2")]
    NoIp,
    /// `ip` refused what it was told.
    #[error("`ip` can't do {commands:?}: {reason}")]
    Ip {
        /// All that it was told.
        commands: String,
        /// Its own words.
        reason: String,
    },
    /// A file of the system can't be used.
    #[error("can't {what} {}: {source}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A host has processes that nothing ends.
    #[error("{0} does not end when it is killed")]
    Alive(String),
    /// Anything the system refuses that has no text of its own.
    #[error("can't {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl HostsError {
    /// For `map_err`: what was tried with a file.
    pub(crate) fn file<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> HostsError {
        move |source| HostsError::File { what, path: path.to_owned(), source: source.into() }
    }

    /// For `map_err`: what was tried.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> HostsError {
        move |source| HostsError::System { what, source: source.into() }
    }
}
