//! How large the pool and its regions are.

use std::path::Path;

use bytesize::ByteSize;

use crate::error::BenchError;

/// Servers hand out memory in multiples of a huge page.
const GRANULARITY: u64 = 2 << 20;
/// Bytes of the largest region that a worker asks for at once.
const REGION_MAX: u64 = 256 << 20;
/// Regions that the pool has at least for each worker, so that any of them can use nearly all of it.
const REGIONS_EACH: u64 = 4;

/// Bytes of the pool and of each region that workers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes of the pool.
    pub(super) pool_size: u64,
    /// Bytes of a region: whole chunks.
    pub(super) region_size: u64,
}

impl Plan {
    /// A pool that holds `chunks` chunks of `chunk_size` bytes, whichever workers store them.
    pub(super) fn for_chunks(chunks: u64, chunk_size: u64, workers: u64) -> Plan {
        let region = Region::new(chunks.saturating_mul(chunk_size), chunk_size, workers);
        // Each worker's last region may be all but empty.
        let regions = chunks.div_ceil(region.chunks) + workers;
        Plan { pool_size: regions.saturating_mul(region.extent), region_size: region.chunks * chunk_size }
    }

    /// A pool of a given size.
    pub(super) fn for_pool(pool_size: u64, chunk_size: u64, workers: u64) -> Plan {
        let region = Region::new(pool_size, chunk_size, workers);
        Plan { pool_size, region_size: region.chunks * chunk_size }
    }

    /// Makes sure that the pool fits into the file system of `folder`.
    ///
    /// # Errors
    /// [`BenchError`] where it does not, or the folder can't be looked at.
    pub(super) fn check_fits(&self, folder: &Path) -> Result<(), BenchError> {
        let system = rustix::fs::statvfs(folder)
            .map_err(BenchError::system(format!("use {} for a pool", folder.display())))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if self.pool_size <= free {
            return Ok(());
        }
        Err(BenchError::PoolTooLarge {
            folder: folder.to_owned(),
            needed: ByteSize(self.pool_size),
            free: ByteSize(free),
        })
    }
}

/// The regions that a pool is used in.
struct Region {
    /// Chunks in each: as many as its extent holds.
    chunks: u64,
    /// Bytes that each takes of the pool.
    extent: u64,
}

impl Region {
    /// Regions that leave as little of the pool over as they can.
    fn new(pool: u64, chunk_size: u64, workers: u64) -> Region {
        let regions = pool.div_ceil(REGION_MAX).max(REGIONS_EACH * workers);
        let smallest = chunk_size.next_multiple_of(GRANULARITY);
        let extent = (pool / regions / GRANULARITY * GRANULARITY).max(smallest);
        Region { chunks: extent / chunk_size, extent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks that the workers can store in a pool when each gets a share of them, and regions while there is room.
    fn stored(plan: Plan, chunk_size: u64, shares: &[u64]) -> u64 {
        let extent = plan.region_size.next_multiple_of(GRANULARITY);
        let mut regions_left = plan.pool_size / extent;
        let mut stored = 0;
        for share in shares {
            let regions = share.div_ceil(plan.region_size / chunk_size).min(regions_left);
            regions_left -= regions;
            stored += (regions * (plan.region_size / chunk_size)).min(*share);
        }
        stored
    }

    #[test]
    fn the_default_pool_holds_every_chunk_whoever_stores_it() {
        for chunk_size in [4096, 64 << 10, 1 << 20, 3 << 19, 16 << 20, 1 << 30] {
            for chunks in [1, 7, 1000, 182_790] {
                let plan = Plan::for_chunks(chunks, chunk_size, 3);
                for first in [0, 1, chunks / 2, chunks] {
                    let second = (chunks - first) / 2;
                    let shares = [first, second, chunks - first - second];
                    let context = format!("{shares:?} of {chunk_size} in {plan:?}");
                    assert_eq!(stored(plan, chunk_size, &shares), chunks, "{context}");
                }
            }
        }
    }

    #[test]
    fn the_default_pool_is_not_much_larger_than_its_chunks() {
        let plan = Plan::for_chunks(182_790, 64 << 10, 2);
        assert!(plan.pool_size <= 182_790 * (64 << 10) + 3 * REGION_MAX, "{plan:?}");
        let plan = Plan::for_chunks(1450, 1 << 20, 2);
        assert!(plan.pool_size <= 2 << 30, "{plan:?}");
    }

    #[test]
    fn any_worker_can_use_most_of_a_given_pool() {
        for chunk_size in [4096, 64 << 10, 1 << 20, 3 << 19, 16 << 20] {
            let plan = Plan::for_pool(1 << 30, chunk_size, 2);
            let all = (1 << 30) / chunk_size;
            assert!(stored(plan, chunk_size, &[all]) * 10 >= all * 9, "{plan:?} in chunks of {chunk_size}");
        }
    }

    #[test]
    fn a_pool_beyond_the_file_system_is_refused_before_anything_starts() {
        let plan = Plan { pool_size: u64::MAX, region_size: 1 << 20 };
        let error = plan.check_fits(Path::new("/dev/shm")).unwrap_err().to_string();
        assert!(error.contains("in /dev/shm, which has ") && error.contains("--chunk-size"), "{error}");
    }
}
