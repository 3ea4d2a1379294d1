//! The memory behind the pools: folders, the region files in them, and the mounts that they lie on.

mod folder;
mod mount;

pub use folder::{FolderPool, PoolPlan};
pub(crate) use mount::mount_tmpfs;
