//! What a host sees of the file system.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::boot::boot;
use crate::error::HostsError;

/// The memory of a host, which no other sees.
const MEMORY: &str = "/dev/shm";

/// What differs from what the machine sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Folders that are empty there, and the host's own.
    pub(crate) hidden: Vec<PathBuf>,
    /// Folders of the machine, and where they lie there.
    pub(crate) shared: Vec<(PathBuf, PathBuf)>,
}

impl View {
    /// Has the mount namespace that this runs in look like this.
    ///
    /// # Errors
    /// [`HostsError`] where the system refuses.
    pub(crate) fn mount(&self) -> Result<(), HostsError> {
        // Whatever is shared may lie in what is about to be hidden.
        let shared = self.shared.iter().map(|(source, at)| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, source, flags | OpenTreeFlags::AT_RECURSIVE);
            Ok((tree.map_err(HostsError::file("share", source))?, at))
        });
        let shared = shared.collect::<Result<Vec<_>, HostsError>>()?;
        let own = [Path::new(MEMORY)].into_iter().chain(self.hidden.iter().map(PathBuf::as_path));
        for folder in own.clone() {
            mount("maru-hosts", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
                .map_err(HostsError::file("mount a tmpfs on", folder))?;
        }
        boot(MEMORY.as_ref())?;
        for (tree, at) in shared {
            // Anywhere else it would be made for all.
            if own.clone().any(|folder| at.starts_with(folder)) {
                fs::create_dir_all(at).map_err(HostsError::file("make", at))?;
            }
            move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(HostsError::file("mount something shared on", at))?;
        }
        Ok(())
    }
}
