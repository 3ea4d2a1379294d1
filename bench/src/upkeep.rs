//! What the single steps cost by which chunks stay right between hosts: lines of the cache written back and dropped, and
//! checksums. `store` prints it beside what whole stores take.

use std::hint::black_box;
use std::time::Instant;

use maru_client::{CacheLines, copy_nontemporal};
use serde::Serialize;

use crate::error::BenchError;

const MIB: f64 = (1 << 20) as f64;

/// Chunks that each step is measured on, at most.
const CHUNKS: u32 = 200;

/// Medians, in µs for each MiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Costs {
    /// Writing back and dropping; `null` on processors that can't.
    lines: Option<LineCosts>,
    /// The checksum of bytes that are in the cache.
    checksum_us_per_mib: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct LineCosts {
    /// The instructions.
    write_back: &'static str,
    invalidate: &'static str,
    /// Lines that were written and are in the cache.
    write_back_dirty_us_per_mib: f64,
    /// Lines of a copy that went past the cache, as that of a large chunk does.
    write_back_copied_us_per_mib: f64,
    /// Lines that were read and are in the cache.
    invalidate_us_per_mib: f64,
}

impl Costs {
    /// Measures them on chunks like this one.
    ///
    /// # Errors
    /// [`BenchError`] where memory for one chunk can't be had.
    pub(crate) fn measure(source: &[u8], chunks: u32) -> Result<Costs, BenchError> {
        let mut memory =
            memmap2::MmapMut::map_anon(source.len()).map_err(BenchError::system("map memory for a chunk"))?;
        let mut median = |prepare: fn(&mut [u8], &[u8]), step: &dyn Fn(&[u8])| {
            let once = |_| {
                prepare(&mut memory, source);
                let began = Instant::now();
                step(&memory);
                began.elapsed().as_secs_f64() * 1e6
            };
            let mut times = (0..chunks.clamp(1, CHUNKS)).map(once).collect::<Vec<_>>();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] / (source.len() as f64 / MIB)
        };
        let written: fn(&mut [u8], &[u8]) = <[u8]>::copy_from_slice;
        let checksum_us_per_mib = median(written, &|bytes| {
            black_box(maru_proto::checksum(bytes));
        });
        let lines = CacheLines::of_this_processor().map(|lines| {
            let (write_back, invalidate) = lines.names();
            LineCosts {
                write_back,
                invalidate,
                write_back_dirty_us_per_mib: median(written, &|bytes| lines.write_back(bytes)),
                write_back_copied_us_per_mib: median(copy_nontemporal, &|bytes| lines.write_back(bytes)),
                invalidate_us_per_mib: median(read, &|bytes| lines.invalidate(bytes)),
            }
        });
        Ok(Costs { lines, checksum_us_per_mib })
    }

    /// Prints them.
    pub(crate) fn print(&self) {
        println!("\n{:>38}{:>10}", "single steps, medians", "µs/MiB");
        let row = |what: &str, cost: f64| println!("{what:>38}{cost:>10.1}");
        if let Some(lines) = &self.lines {
            row(&format!("write-back, written ({})", lines.write_back), lines.write_back_dirty_us_per_mib);
            row("write-back, copied past the cache", lines.write_back_copied_us_per_mib);
            row(&format!("invalidation, read ({})", lines.invalidate), lines.invalidate_us_per_mib);
        }
        row("checksum", self.checksum_us_per_mib);
    }
}

/// Has the chunk in the cache, as it is in memory.
fn read(memory: &mut [u8], source: &[u8]) {
    copy_nontemporal(memory, source);
    black_box(crate::data::checksum(memory));
}
