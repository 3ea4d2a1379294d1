//! The rows of the table: how each floor is measured, and how ours is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use maru_client::{Address, Config, KeyDigest, MaruHandler, PageMut};
use maru_proto::Header;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::directory::{Directory, grow};
use super::echo::{EchoClient, EchoServer};
use super::report::{Goal, Pair, median};
use crate::cli::{RoundsArgs, ServerArgs};
use crate::data::checksum;
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::measure::connection::Connection;
use crate::measure::pace::Pace;
use crate::measure::run::{End, Outcome, Plan, Protocol, run};
use crate::mix::mix;
use crate::target::{Needs, Target};
use crate::traffic::distribution::Distribution;
use crate::traffic::figures::Figures;
use crate::traffic::maru::{Shape, Traffic};
use crate::traffic::stock::Population;

/// Keys of a batch.
const BATCH: usize = 512;
/// Bytes of a digest, of a location, of a registration.
const DIGEST: usize = 16;
const LOCATION: usize = 32;
const REGISTRATION: usize = 32;
/// Bytes of a chunk.
const CHUNK: usize = 1 << 20;

/// One measurement, of as many pairs as the path has rows.
pub(super) type Measure = Box<dyn FnMut() -> Result<Vec<Pair>, BenchError>>;

/// Why a path is not measured.
pub(super) enum Skip {
    /// This machine does not allow it.
    Because(String),
    /// Something failed.
    Failed(BenchError),
}

impl From<BenchError> for Skip {
    fn from(error: BenchError) -> Skip {
        Skip::Failed(error)
    }
}

impl From<maru_client::Error> for Skip {
    fn from(error: maru_client::Error) -> Skip {
        Skip::Failed(error.into())
    }
}

/// Rows that are measured together.
pub(super) struct Path {
    pub(super) names: &'static [&'static str],
    pub(super) unit: &'static str,
    pub(super) goals: &'static [Goal],
    /// Whether one round says it all.
    once: bool,
    pub(super) prepare: fn(&RoundsArgs) -> Result<Measure, Skip>,
}

impl Path {
    /// Rounds to measure where `rounds` are asked for.
    pub(super) fn rounds(&self, rounds: usize) -> usize {
        if self.once { 1 } else { rounds }
    }
}

/// All rows.
pub(super) fn paths() -> [Path; 10] {
    let path = |names, unit, goals, prepare| Path { names, unit, goals, once: false, prepare };
    [
        path(
            &["exists, 1 key, blocking: p50", "exists, 1 key, blocking: p99"],
            "µs",
            &[Goal::AtMost(1.0), Goal::AtMost(1.2)],
            exists_blocking,
        ),
        path(&["exists, 1 key, 64 in flight"], "k/s", &[Goal::AtLeast(0.8)], exists_pipelined),
        path(
            &["exists, 1 key, 32 connections (floor: heartbeat)"],
            "k/s",
            &[Goal::AtLeast(0.9)],
            exists_many,
        ),
        path(&["acquire of 512 digests and release, blocking"], "µs", &[Goal::AtMost(1.3)], acquire),
        path(&["register of 512 digests, blocking"], "µs", &[Goal::AtMost(1.3)], register),
        path(&["store of 1 MiB"], "µs", &[Goal::AtMost(1.1)], store),
        path(
            &["map and prefault 1 GiB, plain tmpfs", "its first page (floor: all of it)"],
            "ms",
            &[Goal::AtMost(1.1), Goal::AtMost(1.0)],
            map_plain,
        ),
        path(
            &["map and prefault 1 GiB, huge pages", "its first page (floor: all of it)"],
            "ms",
            &[Goal::AtMost(1.1), Goal::AtMost(1.0)],
            map_huge,
        ),
        path(&["read of 1 MiB by guard"], "µs", &[Goal::AtMost(1.1)], read),
        Path {
            names: &[
                "directory: bytes an entry (floor: the goal)",
                "directory: longest insert of 3 tries (floor: the goal, µs)",
            ],
            unit: "",
            goals: &[Goal::AtMost(1.0), Goal::AtMost(1.0)],
            once: true,
            prepare: directory,
        },
    ]
}

/// Which side of a comparison by the driving loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    /// Connections.
    pub(crate) connections: usize,
    /// Requests of each that are in flight.
    pub(crate) in_flight: usize,
    /// Threads that share the connections.
    pub(crate) threads: usize,
    /// How long to measure.
    pub(crate) duration: Duration,
}

/// Requests a second, and their latencies, by the loops that drive all peers. Many connections share few threads: with one
/// for each it would be the client's scheduling that is measured.
pub(crate) fn requests_per_second<P: Protocol>(
    side: Side,
    mut connect: impl FnMut(usize) -> Result<(Channel, P), BenchError>,
) -> Result<Outcome, BenchError> {
    let connections = (0..side.connections).map(|number| {
        let (channel, protocol) = connect(number)?;
        Ok(Connection::new(channel, protocol, Pace::Closed))
    });
    let connections = connections.collect::<Result<Vec<_>, BenchError>>()?;
    let plan = Plan {
        start: Instant::now(),
        warm_up: side.duration / 5,
        end: End::After(side.duration),
        in_flight: side.in_flight,
        threads: side.threads,
        interval: Duration::from_secs(1),
    };
    run(connections, &plan, |_| Ok(()))
}

fn target(args: &ServerArgs, pool: u64, mount: bool) -> Result<Target, BenchError> {
    Target::start(args, &Needs { pool_size: pool, max_entries: 1 << 20, mount })
}

fn handler(target: &Target, page_size: usize, region_size: u64) -> Result<MaruHandler, BenchError> {
    let address = Address::Unix(target.socket().to_owned());
    Ok(MaruHandler::connect(Config::new().address(address).page_size(page_size).region_size(region_size))?)
}

/// How long something takes, in µs, each of so many times; sorted.
fn times(count: usize, mut one: impl FnMut() -> Result<(), BenchError>) -> Result<Vec<f64>, BenchError> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        one()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn digests(count: usize) -> Vec<KeyDigest> {
    let halves = (0..count as u64).map(|n| [mix(n), mix(!n)]);
    halves.map(|halves| KeyDigest::from_bytes(zerocopy::transmute!(halves))).collect()
}

fn exists_blocking(args: &RoundsArgs) -> Result<Measure, Skip> {
    let (target, echo) = (target(&args.server, 16 << 20, false)?, EchoServer::start(&args.server)?);
    let (handler, mut figures) = (handler(&target, 4096, 8 << 20)?, Figures::connect(target.socket())?);
    let keys = digests(1000);
    let mut floor = echo.connect(Header::SIZE + DIGEST, Header::SIZE + 8)?;
    let count = args.scale(20_000, 2_000);
    Ok(Box::new(move || {
        let floor = times(count, || floor.exchange())?;
        let mut keys = keys.iter().cycle();
        let (ours, system_calls) = figures.during(|| {
            times(count, || {
                handler.exists(keys.next().expect("a cycle has no end"))?;
                Ok(())
            })
        })?;
        let p99 = count * 99 / 100;
        let pair = |floor, ours| Pair { floor, ours, system_calls };
        // Mentioned last, so dropped last: clients end before their servers.
        let _ = (&target, &echo);
        Ok(vec![pair(median(&floor), median(&ours)), pair(floor[p99], ours[p99])])
    }))
}

fn shape(mix: &str, in_flight: usize) -> Shape {
    let mix = mix.parse().expect("the operation exists");
    Shape { mix, batch: 1, distribution: Distribution::Uniform, in_flight }
}

fn exists_pipelined(args: &RoundsArgs) -> Result<Measure, Skip> {
    let (target, echo) = (target(&args.server, 512 << 20, false)?, EchoServer::start(&args.server)?);
    let population = Population::new(target.socket(), 100_000)?;
    let mut figures = Figures::connect(target.socket())?;
    let side = Side { connections: 1, in_flight: 64, threads: 1, duration: duration(args) };
    Ok(Box::new(move || {
        let floor = requests_per_second(side, |_| echo.traffic(Header::SIZE + DIGEST, Header::SIZE + 8))?;
        let shape = shape("exists", side.in_flight);
        let (ours, system_calls) = figures.during(|| {
            requests_per_second(side, |n| Traffic::connect(target.socket(), population.keys(), &shape, n))
        })?;
        Ok(vec![Pair { floor: floor.per_second() / 1e3, ours: ours.per_second() / 1e3, system_calls }])
    }))
}

fn exists_many(args: &RoundsArgs) -> Result<Measure, Skip> {
    let target = target(&args.server, 512 << 20, false)?;
    let population = Population::new(target.socket(), 100_000)?;
    let mut figures = Figures::connect(target.socket())?;
    let side = Side { connections: 32, in_flight: 1, threads: args.threads.into(), duration: duration(args) };
    Ok(Box::new(move || {
        let rate = |mix| {
            let shape = shape(mix, 1);
            requests_per_second(side, |n| Traffic::connect(target.socket(), population.keys(), &shape, n))
        };
        let floor = rate("heartbeat")?;
        let (ours, system_calls) = figures.during(|| rate("exists"))?;
        Ok(vec![Pair { floor: floor.per_second() / 1e3, ours: ours.per_second() / 1e3, system_calls }])
    }))
}

fn duration(args: &RoundsArgs) -> Duration {
    args.scale(Duration::from_secs(1), Duration::from_millis(100))
}

/// Stores so many tiny chunks under digests.
fn fill(handler: &MaruHandler, digests: &[KeyDigest]) -> Result<(), BenchError> {
    let pages = pages(handler, digests.len())?;
    handler.batch_store(digests, pages)?;
    Ok(())
}

fn pages(handler: &MaruHandler, count: usize) -> Result<Vec<PageMut>, BenchError> {
    Ok((0..count).map(|_| handler.alloc(64)).collect::<Result<_, _>>()?)
}

fn acquire(args: &RoundsArgs) -> Result<Measure, Skip> {
    let (target, echo) = (target(&args.server, 512 << 20, false)?, EchoServer::start(&args.server)?);
    let (handler, mut figures) = (handler(&target, 4096, 500 << 20)?, Figures::connect(target.socket())?);
    let keys = digests(100_000);
    let mut directory = Directory::new(100_000);
    fill(&handler, &keys)?;
    directory.register(&keys, 0);
    // The release goes out with the request behind it: one frame of the same size more.
    let request = 2 * (Header::SIZE + BATCH * DIGEST);
    let mut floor = echo.connect(request, Header::SIZE + BATCH * LOCATION)?;
    let count = args.scale(2_000, 200);
    Ok(Box::new(move || {
        let round_trip = times(count, || floor.exchange())?;
        let mut batches = keys.chunks_exact(BATCH).cycle();
        let in_process = times(count, || {
            directory.pin_and_unpin(batches.next().expect("a cycle has no end"));
            Ok(())
        })?;
        let (ours, system_calls) = figures.during(|| {
            times(count, || {
                let prefix = handler.acquire(batches.next().expect("a cycle has no end"))?;
                assert_eq!(prefix.len(), BATCH);
                Ok(())
            })
        })?;
        // Mentioned last, so dropped last: clients end before their servers.
        let _ = (&target, &echo);
        let floor = median(&round_trip) + median(&in_process);
        Ok(vec![Pair { floor, ours: median(&ours), system_calls }])
    }))
}

fn register(args: &RoundsArgs) -> Result<Measure, Skip> {
    let (target, echo) = (target(&args.server, 512 << 20, false)?, EchoServer::start(&args.server)?);
    let (handler, mut figures) = (handler(&target, 4096, 500 << 20)?, Figures::connect(target.socket())?);
    let keys = digests(100_000);
    let mut directory = Directory::new(100_000);
    let mut floor = echo.connect(Header::SIZE + BATCH * REGISTRATION, Header::SIZE + BATCH)?;
    Ok(Box::new(move || {
        let batches = || keys.chunks_exact(BATCH);
        let round_trip = times(batches().len(), || floor.exchange())?;
        let mut in_process = batches().zip((0..).step_by(BATCH));
        let in_process = times(batches().len(), || {
            let (batch, page) = in_process.next().expect("there are as many batches as times");
            directory.register(batch, page);
            Ok(())
        })?;
        batches().for_each(|batch| directory.delete(batch));

        let (mut ours, system_calls) = figures.during(|| {
            let mut ours = Vec::new();
            for batch in batches() {
                let pages = pages(&handler, BATCH)?;
                let began = Instant::now();
                handler.batch_store(batch, pages)?;
                ours.push(began.elapsed().as_secs_f64() * 1e6);
            }
            Ok(ours)
        })?;
        ours.sort_by(f64::total_cmp);
        handler.batch_delete(&keys)?;
        // Mentioned last, so dropped last: clients end before their servers.
        let _ = (&target, &echo);
        let floor = median(&round_trip) + median(&in_process);
        Ok(vec![Pair { floor, ours: median(&ours), system_calls }])
    }))
}

/// A round trip of the smallest request.
fn round_trip(echo: &mut EchoClient) -> Result<f64, BenchError> {
    Ok(median(&times(500, || echo.exchange())?))
}

/// Memory of the same kind as a region's, mapped and prefaulted.
fn own_memory(target: &Target, bytes: usize) -> Result<MmapRaw, BenchError> {
    let failed = || BenchError::system("map memory beside the pool");
    let folder = target.pool().expect("the server is the measurement's own");
    let file = tempfile::tempfile_in(folder).map_err(failed())?;
    file.set_len(bytes as u64).map_err(failed())?;
    let memory = MmapOptions::new().len(bytes).map_raw(&file).map_err(failed())?;
    let _ = memory.advise(Advice::HugePage);
    memory.advise(Advice::PopulateWrite).map_err(failed())?;
    Ok(memory)
}

fn store(args: &RoundsArgs) -> Result<Measure, Skip> {
    let chunks = args.scale(200, 20);
    let bytes = chunks * CHUNK;
    let (target, echo) =
        (target(&args.server, (bytes + bytes) as u64, false)?, EchoServer::start(&args.server)?);
    let (handler, mut figures) = (handler(&target, CHUNK, bytes as u64)?, Figures::connect(target.socket())?);
    let memory = own_memory(&target, bytes)?;
    let mut echo_client = echo.connect(Header::SIZE + REGISTRATION, Header::SIZE + 8)?;
    let source = vec![7; CHUNK];
    let keys = digests(chunks);
    drop(handler.alloc(1)?);
    Ok(Box::new(move || {
        let round_trip = round_trip(&mut echo_client)?;
        let copy = |copy: fn(&mut [u8], &[u8])| {
            let mut offset = 0;
            times(chunks, || {
                // SAFETY: the chunk lies inside the mapping, and nothing else refers into it.
                let at = unsafe { memory.as_mut_ptr().add(offset) };
                // SAFETY: as above, and any bytes are valid.
                let chunk = unsafe { std::slice::from_raw_parts_mut(at, CHUNK) };
                copy(chunk, &source);
                offset += CHUNK;
                Ok(())
            })
        };
        let plain = median(&copy(<[u8]>::copy_from_slice)?);
        let nontemporal = median(&copy(maru_client::copy_nontemporal)?);
        let mut keys_left = keys.iter();
        let (ours, system_calls) = figures.during(|| {
            times(chunks, || {
                let mut page = handler.alloc(CHUNK)?;
                page.copy_from_slice(&source);
                handler.store(keys_left.next().expect("there are as many keys as times"), page)?;
                Ok(())
            })
        })?;
        handler.batch_delete(&keys)?;
        // Mentioned last, so dropped last: clients end before their servers.
        let _ = (&target, &echo);
        Ok(vec![Pair { floor: plain.min(nontemporal) + round_trip, ours: median(&ours), system_calls }])
    }))
}

fn read(args: &RoundsArgs) -> Result<Measure, Skip> {
    let chunks = args.scale(200, 20);
    let bytes = chunks * CHUNK;
    let (target, echo) =
        (target(&args.server, (bytes + bytes) as u64, false)?, EchoServer::start(&args.server)?);
    let (writer, reader) = (handler(&target, CHUNK, bytes as u64)?, handler(&target, CHUNK, bytes as u64)?);
    let mut figures = Figures::connect(target.socket())?;
    let memory = own_memory(&target, bytes)?;
    let mut echo_client = echo.connect(Header::SIZE + DIGEST, Header::SIZE + LOCATION)?;
    let source = vec![7; CHUNK];
    let keys = digests(chunks);
    for key in &keys {
        let mut page = writer.alloc(CHUNK)?;
        page.copy_from_slice(&source);
        writer.store(key, page)?;
    }
    let mut sum = 0u64;
    let mut read_all = move |count: usize| -> Result<Vec<f64>, BenchError> {
        let mut keys = keys.iter();
        times(count, || {
            let chunk = reader.retrieve(keys.next().expect("there are as many keys as times"))?;
            sum = sum.wrapping_add(checksum(&chunk.expect("it was stored")));
            std::hint::black_box(sum);
            Ok(())
        })
    };
    // The first reading maps the writer's region, which is another row's business.
    read_all(chunks)?;
    Ok(Box::new(move || {
        let round_trip = round_trip(&mut echo_client)?;
        let mut offset = 0;
        let own = times(chunks, || {
            // SAFETY: the chunk lies inside the mapping.
            let at = unsafe { memory.as_ptr().add(offset) };
            // SAFETY: as above, and nothing writes into it.
            let chunk = unsafe { std::slice::from_raw_parts(at, CHUNK) };
            std::hint::black_box(checksum(chunk));
            offset += CHUNK;
            Ok(())
        })?;
        let (ours, system_calls) = figures.during(|| read_all(chunks))?;
        // Mentioned last, so dropped last: clients end before their servers.
        let _ = (&writer, &target, &echo);
        Ok(vec![Pair { floor: median(&own) + round_trip, ours: median(&ours), system_calls }])
    }))
}

fn map_plain(args: &RoundsArgs) -> Result<Measure, Skip> {
    map(args, false)
}

fn map_huge(args: &RoundsArgs) -> Result<Measure, Skip> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skip::Because("mounting huge pages needs root".to_owned()));
    }
    map(args, true)
}

/// Ours is the first allocation, for which the server makes the region and the client maps its beginning, and the wait until all
/// of it is mapped.
fn map(args: &RoundsArgs, mount: bool) -> Result<Measure, Skip> {
    let bytes = args.scale(1 << 30, 64 << 20);
    let target = match target(&args.server, 2 * bytes as u64 + (64 << 20), mount) {
        Ok(target) => target,
        Err(error) if mount => return Err(Skip::Because(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    Ok(Box::new(move || {
        let began = Instant::now();
        let memory = own_memory(&target, bytes)?;
        let floor = began.elapsed().as_secs_f64() * 1e3;
        drop(memory);
        let handler = handler(&target, CHUNK, bytes as u64)?;
        let began = Instant::now();
        let page = handler.alloc(1)?;
        let first = began.elapsed().as_secs_f64() * 1e3;
        let region = handler.owned_regions().first().and_then(|region| handler.region_memory(*region));
        let region = region.expect("the page lies in a region");
        wait_until_mapped(region.as_ptr().addr() + region.len() - 1)?;
        let ours = began.elapsed().as_secs_f64() * 1e3;
        drop(page);
        handler.close();
        Ok(vec![Pair::new(floor, ours), Pair::new(floor, first)])
    }))
}

/// Waits until this process has memory at an address, which is mapped after all that lies before it.
fn wait_until_mapped(address: usize) -> Result<(), BenchError> {
    /// What the kernel says of a page that there is, proc_pid_pagemap(5).
    const PRESENT: u64 = 1 << 63;
    let failed = || BenchError::system("see what is mapped");
    let pages = File::open("/proc/self/pagemap").map_err(failed())?;
    let entry = (address / rustix::param::page_size() * size_of::<u64>()) as u64;
    let mut bytes = [0; size_of::<u64>()];
    loop {
        pages.read_exact_at(&mut bytes, entry).map_err(failed())?;
        if u64::from_ne_bytes(bytes) & PRESENT != 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn directory(args: &RoundsArgs) -> Result<Measure, Skip> {
    let entries = args.scale(10_000_000, 100_000);
    Ok(Box::new(move || {
        // A pause of the directory's own comes at the same insert each time; one that the host makes does not.
        let grown = [grow(entries)?, grow(entries)?, grow(entries)?];
        let bytes = grown[0].0;
        let worst = grown.map(|(_, worst)| worst).into_iter().min().unwrap_or_default().as_secs_f64() * 1e6;
        Ok(vec![Pair::new(80.0, bytes), Pair::new(1000.0, worst)])
    }))
}
