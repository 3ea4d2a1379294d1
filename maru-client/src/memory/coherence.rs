//! Whether what one host writes into a region is what others read there, or has to be seen to.

use maru_proto::{PoolCoherence, RegionRecord};

use crate::config::Config;

/// What the memory of a region needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coherence {
    /// Nothing: all who map it see the same, as the processes of one host do.
    Coherent,
    /// Lines are written back by who writes, and dropped by who reads.
    Writeback,
}

impl Coherence {
    /// That of a region that the server describes.
    pub(crate) fn of(region: &RegionRecord, config: &Config) -> Coherence {
        // What a newer server may call otherwise is not coherent.
        let is_coherent = region.coherence.get() == PoolCoherence::Coherent as u32;
        if is_coherent && !config.write_back { Coherence::Coherent } else { Coherence::Writeback }
    }
}
