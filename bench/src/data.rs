//! `store` and `read`: how fast whole chunks go into the pool, and are read in place.

use std::time::Instant;

use bytesize::ByteSize;
use maru_client::{Config, MaruHandler};
use serde::Serialize;

use crate::cli::{ChunkArgs, ReadArgs, StoreArgs, Switch};
use crate::content::Content;
use crate::drive::write_files;
use crate::error::BenchError;
use crate::interrupt;
use crate::machine::Machine;
use crate::measure::percentiles::Percentiles;
use crate::measure::progress;
use crate::measure::recorder::{Sample, nanoseconds};
use crate::target::{Needs, Target};
use crate::traffic::wire_client::PEER;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    server: String,
    chunk_size: usize,
    chunks: u64,
    bytes: u64,
    prefaulted: bool,
    elapsed_s: f64,
    gb_per_s: f64,
    latency_us: Percentiles,
}

/// Stores chunks one after the other.
pub(crate) fn store(args: &StoreArgs) -> Result<(), BenchError> {
    let pool = Pool::open(&args.chunks)?;
    let handler = pool.connect()?;
    let source = chunk(&args.chunks);
    // The region is made and mapped before the clock starts, as a serving engine does at start-up.
    drop(handler.alloc(1)?);
    let sample = pool.measure("storing", |n| {
        let mut page = handler.alloc(source.len())?;
        page.copy_from_slice(&source);
        handler.store(key(n), page)?;
        Ok(())
    })?;
    pool.finish("store", &sample)
}

/// Reads chunks of another instance one after the other, every byte.
pub(crate) fn read(args: &ReadArgs) -> Result<(), BenchError> {
    let pool = Pool::open(&args.chunks)?;
    let (writer, reader) = (pool.connect()?, pool.connect()?);
    let source = chunk(&args.chunks);
    for n in 0..args.chunks.count {
        let mut page = writer.alloc(source.len())?;
        page.copy_from_slice(&source);
        writer.store(key(n), page)?;
    }
    let mut sum = 0u64;
    let mut read = |n| {
        let chunk = reader.retrieve(key(n))?;
        let chunk = chunk.ok_or_else(|| BenchError::answer(PEER, "that a stored chunk is missing"))?;
        sum = sum.wrapping_add(checksum(&chunk));
        Ok(())
    };
    if !args.cold {
        (0..args.chunks.count).try_for_each(&mut read)?;
    }
    let sample = pool.measure("reading", read)?;
    std::hint::black_box(sum);
    pool.finish("read", &sample)
}

/// Touches every byte, as fast as memory gives them.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).fold(0, u64::wrapping_add)
}

struct Pool<'a> {
    args: &'a ChunkArgs,
    target: Target,
}

impl<'a> Pool<'a> {
    fn open(args: &'a ChunkArgs) -> Result<Pool<'a>, BenchError> {
        if let Some(cpus) = &args.server.pin_clients {
            cpus.pin_this_thread()?;
        }
        let needs = Needs {
            pool_size: args.bytes().as_u64() + (8 << 20),
            max_entries: u64::from(args.count) + 1024,
            mount: args.pool_mount,
        };
        Ok(Pool { args, target: Target::open(&args.server, &needs)? })
    }

    fn connect(&self) -> Result<MaruHandler, BenchError> {
        let config = Config::new()
            .address(maru_client::Address::Unix(self.target.socket().to_owned()))
            .page_size(self.args.chunk_size)
            .region_size(self.args.bytes().as_u64())
            .prefault(self.args.prefault == Switch::On);
        Ok(MaruHandler::connect(config)?)
    }

    fn measure(
        &self,
        what: &str,
        mut one: impl FnMut(u32) -> Result<(), BenchError>,
    ) -> Result<Sample, BenchError> {
        let interrupted = interrupt::flag()?;
        let bar = progress::bar(u64::from(self.args.count), "chunks").with_message(what.to_owned());
        let mut sample = Sample::new();
        for n in 0..self.args.count {
            let began = Instant::now();
            one(n)?;
            sample.latency += nanoseconds(began.elapsed());
            bar.inc(1);
            if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(BenchError::Interrupted);
            }
        }
        bar.finish_and_clear();
        Ok(sample)
    }

    fn finish(self, what: &str, sample: &Sample) -> Result<(), BenchError> {
        self.target.stop()?;
        let elapsed_s = sample.latency.mean() * sample.latency.len() as f64 / 1e9;
        let bytes = self.args.bytes().as_u64();
        let report = Report {
            machine: Machine::this(),
            server: self.args.server.describe(),
            chunk_size: self.args.chunk_size,
            chunks: self.args.count.into(),
            bytes,
            prefaulted: self.args.prefault == Switch::On,
            elapsed_s,
            gb_per_s: bytes as f64 / elapsed_s.max(1e-9) / 1e9,
            latency_us: Percentiles::of(&sample.latency),
        };
        let chunks = format!("{} chunks of {}", report.chunks, ByteSize(report.chunk_size as u64));
        println!("{what}: {chunks}, prefault {}\n{}\n{}\n", report.prefaulted, report.server, report.machine);
        println!("{:>14}{}", "GB/s", Percentiles::HEAD);
        println!("{:>14.2}{}", report.gb_per_s, report.latency_us);
        println!("latency of a chunk in µs");
        write_files(&self.args.output, &format!("{what} of {chunks}"), &report, sample, None)
    }
}

fn key(n: u32) -> String {
    format!("maru-bench/chunk/{n}")
}

fn chunk(args: &ChunkArgs) -> Vec<u8> {
    let mut bytes = vec![0; args.chunk_size];
    Content::of(7).fill(0, &mut bytes);
    bytes
}
