//! The memory of regions: mapping it, copying into it, and knowing whose each page is.

mod bitmap;
mod coherence;
mod copy;
mod first_read;
mod mapping;
mod own;
mod pages;
mod pools;
mod prefault;
mod regions;

pub(crate) use coherence::Coherence;
pub use copy::copy_nontemporal;
pub(crate) use first_read::Stale;
pub(crate) use mapping::{Access, Extent, Mapping};
pub(crate) use own::{Claim, OwnPages};
pub use pools::DeviceMap;
pub(crate) use pools::LocalPool;
pub(crate) use prefault::prefault;
pub use regions::RegionMemory;
pub(crate) use regions::{Region, Regions};
