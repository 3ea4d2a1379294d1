//! The memory behind the pools: folders, the region files in them, and the mounts that they lie on.

mod folder;
mod mount;

pub use folder::{FolderPool, PoolPlan};
pub(crate) use folder::{LOCK_FILE, free_bytes, region_bytes};
pub(crate) use mount::{HugePages, Mount, mount_tmpfs};
