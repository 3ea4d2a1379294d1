//! The runtime with its ring, and what to say where the kernel refuses one.

use std::io;

use rustix::io::Errno;

use crate::error::ServerError;

/// Entries of a submission queue; a full one is submitted at once, so this bounds nothing else.
pub(super) const SUBMISSIONS: u32 = 1024;
/// Entries of a completion queue: each connection has at most one read and one write under way.
pub(super) const COMPLETIONS: u32 = 16 * 1024;

/// A runtime whose ring tells the kernel that one thread uses it.
pub(super) fn runtime() -> Result<tokio_uring::Runtime, ServerError> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_cqsize(COMPLETIONS).setup_coop_taskrun().setup_single_issuer();
    tokio_uring::Runtime::new(tokio_uring::builder().entries(SUBMISSIONS).uring_builder(&ring))
        .map_err(|error| ServerError::Ring(explain(&error)))
}

/// What stands between this process and io_uring, and what to do about it.
pub(super) fn explain(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (Errno::from_io_error(error), disabled.trim()) {
        (Some(Errno::PERM), "2") => {
            "it is switched off on this host; allow it with `sysctl kernel.io_uring_disabled=0`".to_owned()
        }
        (Some(Errno::PERM), "1") => {
            "on this host only a group may use it; see kernel.io_uring_group, or allow it \
             to all with `sysctl kernel.io_uring_disabled=0`"
                .to_owned()
        }
        (Some(Errno::PERM | Errno::ACCESS), _) => {
            "a seccomp filter or security module forbids it; in a container \
             allow the system calls io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(Errno::NOSYS), _) => {
            "the kernel has none, or a sandbox hides it; Linux 6.0 or later is needed".to_owned()
        }
        (Some(Errno::INVAL), _) => {
            "the kernel is too old; Linux 6.0 or later is needed, 6.1 for --driver ring".to_owned()
        }
        (Some(Errno::NOMEM), _) => {
            format!("its memory is not granted ({error}); raise the limit of locked memory (`ulimit -l`)")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        for (errno, expected) in [
            (Errno::PERM, "io_uring_setup"),
            (Errno::NOSYS, "Linux 6.0"),
            (Errno::INVAL, "Linux 6.0"),
            (Errno::NOMEM, "ulimit -l"),
        ] {
            let text = explain(&errno.into());
            assert!(text.contains(expected), "{errno:?}: {text}");
        }
    }
}
