//! The directory without any server: what its operations cost in process, and what it takes in memory and pauses.

use std::time::{Duration, Instant};

use maru_proto::KeyDigest;
use maru_server::state::{
    Digest, InstanceNumber, Limits, PinKind, PoolSpec, RegionId, Registered, Request, State, Token,
};

use crate::error::BenchError;
use crate::mix::mix;

const PAGE: u64 = 4096;
/// Digests whose memory is brought near together, as the server does.
const AHEAD: usize = 32;

/// A directory in this process.
pub(crate) struct Directory {
    state: State,
    caller: InstanceNumber,
    region: RegionId,
}

impl Directory {
    /// An empty directory with room for some entries.
    pub(crate) fn new(entries: u32) -> Directory {
        let size = u64::from(entries) * PAGE;
        let limits = Limits {
            max_entries: entries,
            max_pins_per_entry: 65_535,
            max_instances: 1,
            max_connections_per_instance: 1,
            max_regions_per_instance: 1,
            min_page_size: PAGE,
            max_page_size: PAGE,
            grace: Duration::ZERO,
            pin_ttl: Duration::ZERO,
        };
        let mut state = State::new(limits, &[PoolSpec { size, granularity: PAGE }]);
        let caller = state.open_instance("bench", Token(1)).expect("the first instance has room");
        state.connect(caller).expect("the first connection has room");
        let region = state.begin_region(caller, size, PAGE, None).expect("the pool holds one region");
        state.commit_region(region.id).expect("the owner is there");
        Directory { state, caller, region: region.id }
    }

    /// Registers entries from a page on.
    pub(crate) fn register(&mut self, digests: &[KeyDigest], page: u32) {
        let mut request = self.request(digests.len());
        for (chunk, first) in digests.chunks(AHEAD).zip((page..).step_by(AHEAD)) {
            self.state.prefetch(chunk.iter().map(digest));
            for (key, page) in chunk.iter().zip(first..) {
                self.insert(&mut request, digest(key), page);
            }
        }
    }

    fn request(&self, keys: usize) -> Request {
        Request::new(self.caller, Duration::ZERO, keys)
    }

    fn insert(&mut self, request: &mut Request, digest: Digest, page: u32) {
        let registered = self.state.register(request, digest, self.region, page, 64, 0);
        assert_eq!(registered, Registered::Done);
    }

    /// Deletes entries and takes their pages back.
    pub(crate) fn delete(&mut self, digests: &[KeyDigest]) {
        digests.iter().for_each(|key| self.state.delete(digest(key)).expect("it was registered"));
        self.state.reclaim(self.caller, None, digests.len(), |_, _| {}).expect("the region is the caller's");
    }

    /// Pins and unpins entries.
    pub(crate) fn pin_and_unpin(&mut self, digests: &[KeyDigest]) {
        let mut request = self.request(digests.len());
        for chunk in digests.chunks(AHEAD) {
            self.state.prefetch(chunk.iter().map(digest));
            for key in chunk {
                self.state.pin(&mut request, digest(key), PinKind::Guard).expect("it was registered");
            }
        }
        for chunk in digests.chunks(AHEAD) {
            self.state.prefetch(chunk.iter().map(digest));
            for key in chunk {
                self.state.unpin(&request, digest(key), PinKind::Guard).expect("it was pinned");
            }
        }
    }
}

fn digest(key: &KeyDigest) -> Digest {
    Digest::from(key.to_bytes())
}

/// What growing a directory to so many entries takes: bytes of memory an entry, and the longest single insert.
pub(crate) fn grow(entries: u32) -> Result<(f64, Duration), BenchError> {
    let mut directory = Directory::new(entries);
    // The region's page table, 4 bytes a page, is there by now; entries and index are not touched yet.
    let before = resident_bytes()?;
    let mut worst = Duration::ZERO;
    for page in 0..entries {
        let n = u64::from(page);
        let digest = Digest(u128::from(mix(n)) << 64 | u128::from(mix(!n)));
        let began = Instant::now();
        directory.insert(&mut directory.request(1), digest, page);
        worst = worst.max(began.elapsed());
    }
    let grown = resident_bytes()?.saturating_sub(before);
    drop(directory);
    Ok((grown as f64 / f64::from(entries), worst))
}

fn resident_bytes() -> Result<u64, BenchError> {
    let statm = std::fs::read_to_string("/proc/self/statm")
        .map_err(BenchError::system("read how much memory this process uses"))?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    Ok(pages * rustix::param::page_size() as u64)
}
