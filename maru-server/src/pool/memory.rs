//! The pools of a server, in the order of their ids, together with the folder of what is kept of them.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use maru_proto::PoolKind;
use tracing::info;

use super::device::DevicePool;
use super::folder::FolderPool;
use super::{Pool, PoolFacts, PoolIdentity, PoolPlan, resolve};
use crate::error::ServerError;
use crate::journal::{PageTable, make_table, table_path};
use crate::state::{PoolId, RegionId, RegionInfo, RetiredRegion, SavedRegion};

fn open(plan: &PoolPlan) -> Result<Box<dyn Pool>, ServerError> {
    Ok(match plan.kind {
        Some(PoolKind::DevDax) => Box::new(DevicePool::open(plan)?),
        _ => Box::new(FolderPool::open(plan)?),
    })
}

/// Waits until nobody takes what was discarded for what it was: whoever is out of reach of the server that knew of it, gives
/// it up within the grace period.
fn wait_for_readers(grace: Duration) {
    info!(?grace, "what was in a device is discarded; waiting until those who may be reading it know");
    std::thread::sleep(grace);
}

/// All memory that the server hands out.
#[derive(Debug)]
pub(crate) struct Memory {
    pools: Vec<Box<dyn Pool>>,
    /// Where the page tables lie.
    folder: PathBuf,
    /// Whose directory says what is in the pools.
    deployment: [u8; 16],
}

impl Memory {
    /// Takes these pools, the first of which is filled first. What an earlier run left in them stays for now.
    ///
    /// # Errors
    /// [`ServerError`] where one can't be used, is used by another server, or can't hold its size.
    pub(crate) fn open(plans: &[PoolPlan], folder: PathBuf) -> Result<Memory, ServerError> {
        let mut memory = Memory { pools: Vec::new(), folder, deployment: [0; 16] };
        for plan in plans {
            memory.push(open(plan)?)?;
        }
        Ok(memory)
    }

    /// Takes the pools for a directory: what another one left in them is discarded, once its readers know.
    pub(crate) fn adopt(&mut self, deployment: [u8; 16], grace: Duration) -> Result<(), ServerError> {
        self.deployment = deployment;
        let mut has_readers = false;
        for pool in &mut self.pools {
            has_readers |= pool.adopt(deployment)?;
        }
        if has_readers {
            wait_for_readers(grace);
        }
        Ok(())
    }

    /// Takes one more pool, behind the others.
    pub(crate) fn push(&mut self, pool: Box<dyn Pool>) -> Result<PoolFacts, ServerError> {
        let facts = pool.facts();
        let uuid = facts.identity.uuid;
        if self.pools.iter().any(|other| other.facts().identity.uuid == uuid) {
            return Err(ServerError::PoolTwice { path: facts.path.into(), uuid });
        }
        self.pools.push(pool);
        Ok(facts)
    }

    /// What it takes to open a further pool for this directory, to be run where it may block. Nothing is in it then.
    pub(crate) fn opener(
        &self,
        plan: PoolPlan,
        folder_size: Option<ByteSize>,
        grace: Duration,
    ) -> impl FnOnce() -> Result<Box<dyn Pool>, ServerError> + Send + use<> {
        let deployment = self.deployment;
        move || {
            let mut pool = open(&resolve(&plan, folder_size)?)?;
            if pool.adopt(deployment)? {
                wait_for_readers(grace);
            }
            pool.keep_only(&[])?;
            Ok(pool)
        }
    }

    /// Goes on with these regions: checks that their memory is there, and gives back what there is besides.
    pub(crate) fn settle(&self, regions: &[SavedRegion]) -> Result<(), ServerError> {
        for (id, pool) in (0..).map(PoolId).zip(&self.pools) {
            let mut kept = Vec::new();
            for region in regions.iter().filter(|region| region.pool == id) {
                pool.check(region)?;
                kept.push(region.id);
            }
            pool.keep_only(&kept)?;
        }
        Ok(())
    }

    /// A pool that a server of another host has taken, if there is one.
    pub(crate) fn taken(&self) -> Option<PoolFacts> {
        self.pools.iter().find(|pool| !pool.is_ours()).map(|pool| pool.facts())
    }

    /// What there is to know of each pool.
    pub(crate) fn facts(&self) -> impl Iterator<Item = PoolFacts> {
        self.pools.iter().map(|pool| pool.facts())
    }

    /// What the pools are known by.
    pub(crate) fn identities(&self) -> Vec<PoolIdentity> {
        self.facts().map(|facts| facts.identity).collect()
    }

    /// What it takes to make the memory of a region and its page table, to be run where it may block.
    pub(crate) fn maker(&self, region: &RegionInfo) -> impl FnOnce() -> io::Result<PageTable> + Send + use<> {
        let pool = self.pool(region.pool);
        let (make, identity) = (pool.make(region), pool.facts().identity);
        let undo = pool.release(&RetiredRegion {
            id: region.id,
            pool: region.pool,
            pool_offset: region.pool_offset,
            extent: region.extent,
        });
        let (folder, region) = (self.folder.clone(), *region);
        move || {
            make()?;
            make_table(&folder, &region, identity).inspect_err(|_| {
                let _ = undo();
            })
        }
    }

    /// What it takes to give the memory of a region back, to be run where it may block.
    pub(crate) fn releaser(&self, region: &RetiredRegion) -> impl FnOnce() -> io::Result<()> + Send + use<> {
        let release = self.pool(region.pool).release(region);
        let table = table_path(&self.folder, region.id);
        move || {
            release()?;
            std::fs::remove_file(table)
        }
    }

    /// What a client maps a region of this pool from; for writing too where it is the owner.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open_region(&self, pool: PoolId, region: RegionId, writable: bool) -> io::Result<File> {
        self.pool(pool).open(region, writable)
    }

    fn pool(&self, id: PoolId) -> &dyn Pool {
        &*self.pools[id.0 as usize]
    }
}
