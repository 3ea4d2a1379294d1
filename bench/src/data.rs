//! `store` and `read`: how fast whole chunks go into the pool, and are read in place.

use std::time::Instant;

use bytesize::ByteSize;
use maru_client::{Config, MaruHandler};
use serde::Serialize;

use crate::cli::{ChunkArgs, Coherence, ReadArgs, StoreArgs, Switch};
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
use crate::upkeep::Costs;

/// Chunks that are stored one way before it is the other's turn.
const TURN: usize = 16;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    server: String,
    chunk_size: usize,
    chunks: u64,
    bytes: u64,
    prefaulted: bool,
    #[serde(flatten)]
    rate: Rate,
    #[serde(flatten)]
    compared: Option<Compared>,
}

/// How fast chunks went.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    elapsed_s: f64,
    chunks_per_s: f64,
    gb_per_s: f64,
    latency_us: Percentiles,
}

/// Stores with something beside such without.
#[derive(Debug, Serialize)]
struct Compared {
    coherence: Coherence,
    checksum: bool,
    /// The stores without, in turn with the others.
    plain: Rate,
    costs: Costs,
}

/// Stores chunks one after the other.
pub(crate) fn store(args: &StoreArgs) -> Result<(), BenchError> {
    let pool = Pool::open(&args.chunks, if args.is_compared() { 2 } else { 1 })?;
    let source = chunk(&args.chunks);
    let writes_back = args.coherence == Coherence::Writeback;
    let handler = pool.connect(|config| config.write_back(writes_back).checksum(args.checksum))?;
    // The region is made and mapped before the clock starts, as a serving engine does at start-up.
    drop(handler.alloc(1)?);
    if !args.is_compared() {
        let [sample] = pool.measure("storing", [&mut |n| store_one(&handler, key(n), &source)])?;
        return pool.finish("store", &sample, None);
    }
    let plain = pool.connect(|config| config)?;
    drop(plain.alloc(1)?);
    let [of_plain, sample] = pool.measure(
        "storing",
        [&mut |n| store_one(&plain, format!("plain/{}", key(n)), &source), &mut |n| {
            store_one(&handler, key(n), &source)
        }],
    )?;
    let compared = Compared {
        coherence: args.coherence,
        checksum: args.checksum,
        plain: Rate::of(&of_plain, args.chunks.chunk_size),
        costs: Costs::measure(&source, args.chunks.count)?,
    };
    pool.finish("store", &sample, Some(compared))
}

fn store_one(handler: &MaruHandler, key: String, source: &[u8]) -> Result<(), BenchError> {
    let mut page = handler.alloc(source.len())?;
    page.copy_from_slice(source);
    handler.store(key, page)?;
    Ok(())
}

/// Reads chunks of another instance one after the other, every byte.
pub(crate) fn read(args: &ReadArgs) -> Result<(), BenchError> {
    let pool = Pool::open(&args.chunks, 1)?;
    let (writer, reader) = (pool.connect(|config| config)?, pool.connect(|config| config)?);
    let source = chunk(&args.chunks);
    for n in 0..args.chunks.count {
        store_one(&writer, key(n), &source)?;
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
    let [sample] = pool.measure("reading", [&mut read])?;
    std::hint::black_box(sum);
    pool.finish("read", &sample, None)
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
    /// With room for all chunks of so many instances.
    fn open(args: &'a ChunkArgs, instances: u64) -> Result<Pool<'a>, BenchError> {
        if let Some(cpus) = &args.server.pin_clients {
            cpus.pin_this_thread()?;
        }
        let needs = Needs {
            pool_size: instances * args.bytes().as_u64() + (8 << 20),
            max_entries: instances * u64::from(args.count) + 1024,
            mount: args.pool_mount,
        };
        Ok(Pool { args, target: Target::open(&args.server, &needs)? })
    }

    fn connect(&self, options: impl FnOnce(Config) -> Config) -> Result<MaruHandler, BenchError> {
        let config = Config::new()
            .address(maru_client::Address::Unix(self.target.socket().to_owned()))
            .page_size(self.args.chunk_size)
            .region_size(self.args.bytes().as_u64())
            .prefault(self.args.prefault == Switch::On);
        Ok(MaruHandler::connect(options(config))?)
    }

    /// Measures things to do with each chunk, in turns of [`TURN`] chunks, so that each finds the cache as it leaves it itself.
    fn measure<const N: usize>(
        &self,
        what: &str,
        mut things: [&mut dyn FnMut(u32) -> Result<(), BenchError>; N],
    ) -> Result<[Sample; N], BenchError> {
        let interrupted = interrupt::flag()?;
        let bar = progress::bar(u64::from(self.args.count), "chunks").with_message(what.to_owned());
        let mut samples = [(); N].map(|()| Sample::new());
        for first in (0..self.args.count).step_by(TURN) {
            let turn = (first..self.args.count).take(TURN);
            for (thing, sample) in things.iter_mut().zip(&mut samples) {
                for n in turn.clone() {
                    let began = Instant::now();
                    thing(n)?;
                    sample.latency += nanoseconds(began.elapsed());
                    if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                        return Err(BenchError::Interrupted);
                    }
                }
            }
            bar.inc(turn.count() as u64);
        }
        bar.finish_and_clear();
        Ok(samples)
    }

    fn finish(self, what: &str, sample: &Sample, compared: Option<Compared>) -> Result<(), BenchError> {
        self.target.stop()?;
        let report = Report {
            machine: Machine::this(),
            server: self.args.server.describe(),
            chunk_size: self.args.chunk_size,
            chunks: self.args.count.into(),
            bytes: self.args.bytes().as_u64(),
            prefaulted: self.args.prefault == Switch::On,
            rate: Rate::of(sample, self.args.chunk_size),
            compared,
        };
        let chunks = format!("{} chunks of {}", report.chunks, ByteSize(report.chunk_size as u64));
        println!("{what}: {chunks}, prefault {}\n{}\n{}\n", report.prefaulted, report.server, report.machine);
        println!("{:>24}{:>12}{:>10}{}", "", "chunks/s", "GB/s", Percentiles::HEAD);
        match &report.compared {
            None => report.rate.print(what),
            Some(compared) => {
                compared.plain.print("plain");
                report.rate.print(&compared.name());
            }
        }
        println!("latency of a chunk in µs");
        if let Some(compared) = &report.compared {
            compared.costs.print();
        }
        write_files(&self.args.output, &format!("{what} of {chunks}"), &report, sample, None)
    }
}

impl Rate {
    fn of(sample: &Sample, chunk_size: usize) -> Rate {
        let chunks = sample.latency.len() as f64;
        let elapsed_s = sample.latency.mean() * chunks / 1e9;
        let chunks_per_s = chunks / elapsed_s.max(1e-9);
        Rate {
            elapsed_s,
            chunks_per_s,
            gb_per_s: chunks_per_s * chunk_size as f64 / 1e9,
            latency_us: Percentiles::of(&sample.latency),
        }
    }

    fn print(&self, what: &str) {
        println!("{what:>24}{:>12.0}{:>10.2}{}", self.chunks_per_s, self.gb_per_s, self.latency_us);
    }
}

impl Compared {
    fn name(&self) -> String {
        let parts = [
            (self.coherence == Coherence::Writeback).then_some("write-back"),
            self.checksum.then_some("checksum"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
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
