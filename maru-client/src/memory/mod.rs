//! The memory of regions: mapping it, copying into it, and knowing whose each page is.

mod bitmap;
mod copy;
mod mapping;
mod own;
mod pages;
mod prefault;
mod regions;

pub use copy::copy_nontemporal;
pub(crate) use mapping::{Access, Extent, Mapping};
pub(crate) use own::{Claim, OwnPages};
pub(crate) use prefault::prefault;
pub use regions::RegionMemory;
pub(crate) use regions::{Region, Regions};
