//! A network and a view of the file system, kept by descriptors.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::HostsError;

/// A network namespace and a mount namespace, which end with the last process and the last descriptor in or of them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    network: File,
    mounts: File,
}

impl Namespaces {
    /// Makes them, and prepares what is in them: `prepare` runs inside. What is mounted there is seen nowhere else.
    ///
    /// # Errors
    /// [`HostsError::NotPermitted`], and those of `prepare`.
    pub(crate) fn make(
        prepare: impl FnOnce() -> Result<(), HostsError> + Send,
    ) -> Result<Namespaces, HostsError> {
        // A thread moves into new ones and ends; nobody else of this process is moved.
        let made = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let flags = UnshareFlags::FS | UnshareFlags::NEWNS | UnshareFlags::NEWNET;
                // SAFETY: descriptors stay shared with the other threads; all that is not is the working directory and what
                // the namespaces show, of this thread alone.
                unsafe { unshare_unsafe(flags) }.map_err(|errno| match errno {
                    Errno::PERM | Errno::NOSPC | Errno::INVAL => HostsError::NotPermitted(errno),
                    errno => HostsError::system("make namespaces")(errno),
                })?;
                let privately = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", privately).map_err(HostsError::system("keep mounts to a namespace"))?;
                prepare()?;
                let open = |name: &str| {
                    let path = PathBuf::from("/proc/thread-self/ns").join(name);
                    File::open(&path).map_err(HostsError::file("open", &path))
                };
                Ok(Namespaces { network: open("net")?, mounts: open("mnt")? })
            });
            inside.join()
        });
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling process, which has to have one thread, into them. Makes system calls, and nothing else.
    pub(crate) fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
        move_into_link_name_space(self.mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(())
    }

    /// A path at which another process finds the network, as long as this one keeps it.
    pub(crate) fn network_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }

    /// The processes in the network that have not ended.
    ///
    /// # Errors
    /// [`HostsError`] where the system does not tell.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>, HostsError> {
        let own = fstat(&self.network).map_err(HostsError::system("look at a namespace"))?;
        let listed = fs::read_dir("/proc").map_err(HostsError::system("list processes"))?;
        let numbers = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let inside = numbers.filter(|number| {
            // Of a process that has ended there is none.
            fs::metadata(format!("/proc/{number}/ns/net"))
                .is_ok_and(|network| (network.dev(), network.ino()) == (own.st_dev, own.st_ino))
        });
        Ok(inside.filter_map(Pid::from_raw).collect())
    }
}
