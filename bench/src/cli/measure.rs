//! The options of what measures requests and bytes.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::chunk_size;
use crate::error::BenchError;
use crate::placement::Cpus;
use crate::traffic::distribution::Distribution;
use crate::traffic::mix::Mix;

/// Which server is measured, and where both sides run.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// Measure the server that listens on this Unix socket [default: one that is started, and stopped at the end].
    #[arg(long, value_name = "SOCKET")]
    pub(crate) connect: Option<PathBuf>,

    /// How the server that is started drives its connections.
    #[arg(long, value_name = "DRIVER", conflicts_with = "connect")]
    pub(crate) driver: Option<Driver>,

    /// How long the server that is started looks for the next request before it sleeps [default: the server's].
    #[arg(long, value_name = "TIME", conflicts_with = "connect", value_parser = humantime::parse_duration)]
    pub(crate) spin: Option<Duration>,

    /// Folder, on tmpfs or hugetlbfs, in which a fresh folder for the pool is made, and removed at the end.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) pool_dir: PathBuf,

    /// Processors that the server may run on, such as 1 or 2-3.
    #[arg(long, value_name = "CPUS", conflicts_with = "connect")]
    pub(crate) pin_server: Option<Cpus>,

    /// Processors that the clients may run on.
    #[arg(long, value_name = "CPUS")]
    pub(crate) pin_clients: Option<Cpus>,
}

impl ServerArgs {
    /// What a server is to be started with.
    pub(crate) fn server_options(&self) -> Vec<String> {
        let mut options = Vec::new();
        if let Some(driver) = self.driver {
            let name = driver.to_possible_value().expect("no driver is hidden").get_name().to_owned();
            options.extend(["--driver".to_owned(), name]);
        }
        if let Some(spin) = self.spin {
            options.extend(["--spin".to_owned(), humantime::format_duration(spin).to_string()]);
        }
        options
    }

    /// What was chosen, for a title.
    pub(crate) fn describe(&self) -> String {
        let mut parts = match &self.connect {
            Some(socket) => vec![format!("the server on {}", socket.display())],
            None => vec!["a server of its own".to_owned()],
        };
        let options = self.server_options();
        parts.extend((!options.is_empty()).then(|| options.join(" ")));
        for (what, cpus) in [("server", &self.pin_server), ("clients", &self.pin_clients)] {
            parts.extend(cpus.as_ref().map(|cpus| format!("{what} on processor {cpus}")));
        }
        parts.join(", ")
    }
}

/// How a server drives its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// By the ring of its own where the kernel can.
    Auto,
    /// By a ring of its own.
    Ring,
    /// By tasks of tokio-uring.
    Plain,
}

/// What is asked of the server.
#[derive(Clone, Debug, Args)]
pub(crate) struct TrafficArgs {
    /// exists, lookup, pin, acquire, register, delete, heartbeat, or shares of several, such as
    /// mix:exists=80,acquire=20.
    #[arg(long, value_name = "OPERATION", default_value = "exists")]
    pub(crate) op: Mix,

    /// Keys that each request names.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub(crate) batch: u32,

    /// Keys that there are; each takes 4 KiB of the pool.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys: u32,

    /// How often each key is asked for: uniform, zipf or zipf:THETA.
    #[arg(long, value_name = "DISTRIBUTION", default_value = "uniform")]
    pub(crate) distribution: Distribution,

    /// Connections, each an instance of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) connections: u16,

    /// Client processes that share the connections and measure over the same time; 1 is this process itself.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) processes: u16,

    /// Threads of each process that share its connections [default: one for each connection].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) threads: Option<u16>,

    /// How long requests are made before they count.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
}

impl TrafficArgs {
    /// Makes sure that every thread has a connection.
    ///
    /// # Errors
    /// [`BenchError`] where one has none.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let threads = u32::from(self.processes) * u32::from(self.threads.unwrap_or(1));
        if threads <= u32::from(self.connections) {
            return Ok(());
        }
        Err(BenchError::TooFewConnections { threads, connections: self.connections })
    }

    /// Threads of each process, at most.
    pub(crate) fn threads(&self) -> u16 {
        self.threads.unwrap_or_else(|| self.connections.div_ceil(self.processes))
    }

    /// The options as on a command line.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let options = [
            ("--op", self.op.to_string()),
            ("--batch", self.batch.to_string()),
            ("--keys", self.keys.to_string()),
            ("--distribution", self.distribution.to_string()),
            ("--connections", self.connections.to_string()),
            ("--processes", self.processes.to_string()),
            ("--threads", self.threads().to_string()),
            ("--warm-up", humantime::format_duration(self.warm_up).to_string()),
        ];
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

/// One client process of a measurement; started by it, not by people.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The server's socket.
    #[arg(long)]
    pub(crate) socket: PathBuf,

    /// Its number, from 0 up.
    #[arg(long)]
    pub(crate) process: u16,

    /// Requests of each connection that may be in flight.
    #[arg(long)]
    pub(crate) pipeline: u16,

    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,
}

/// Where results go besides the table.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OutputArgs {
    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write the percentile distribution to this file, as text that plotters of HdrHistogram read.
    #[arg(long, value_name = "FILE")]
    pub(crate) hgrm: Option<PathBuf>,

    /// Draw the latency curve into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

/// Measure how long requests take: each connection sends the next when an answer came.
///
/// A closed loop, which shows the least that requests take, and how many the server can answer. It does not show what
/// users wait when requests come whether or not the server is ready: see `load`.
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,

    /// Requests of each connection that are in flight.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) pipeline: u16,

    /// How long to measure.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,

    /// How many requests to measure, over all connections, instead of a time.
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub(crate) requests: Option<NonZeroU64>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Measure what requests take at a given rate: they are sent by the clock, whether or not answers came.
///
/// An open loop: each latency counts from the time at which the request was to be sent, so what it waited before it
/// could be sent is part of it.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,

    /// Requests a second, over all connections.
    #[arg(long, value_name = "RATE", value_parser = rate, required_unless_present = "ramp")]
    pub(crate) rate: Option<f64>,

    /// Try one rate after the other, up to the first that the server can't sustain.
    #[arg(long, value_name = "START:END:STEP", conflicts_with = "rate")]
    pub(crate) ramp: Option<Ramp>,

    /// The p99 from which on a rate of a ramp counts as too high.
    #[arg(long, value_name = "TIME", default_value = "1ms", value_parser = humantime::parse_duration)]
    pub(crate) limit: Duration,

    /// Requests of each connection that may be in flight; what is due beyond that waits, and its latency grows.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) pipeline: u16,

    /// How long to measure, at each rate of a ramp.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Rates to try, written as `START:END:STEP` in requests a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ramp {
    start: f64,
    end: f64,
    step: f64,
}

impl Ramp {
    /// The rates, ascending, the end included.
    pub(crate) fn rates(self) -> impl Iterator<Item = f64> {
        let rates = (0..).map(move |n| f64::from(n).mul_add(self.step, self.start));
        rates.take_while(move |rate| *rate <= self.end * (1.0 + 1e-9))
    }
}

impl std::str::FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Ramp, String> {
        let numbers = text.split(':').map(rate).collect::<Result<Vec<_>, _>>()?;
        match numbers[..] {
            [start, end, step] if start <= end => Ok(Ramp { start, end, step }),
            _ => Err("a ramp is written like 10000:200000:10000".to_owned()),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (1.0..=1e9).contains(rate));
    rate.ok_or_else(|| "a rate is a number of requests a second, from 1".to_owned())
}

/// Chunks that are stored or read whole.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChunkArgs {
    /// Bytes of a chunk, such as 64KiB: a multiple of 4 KiB, at most 1 GiB.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = chunk_size)]
    pub(crate) chunk_size: usize,

    /// Chunks.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// Whether the memory of regions is mapped at once, when they are made.
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) prefault: Switch,

    /// Whether the server is to mount huge pages for the pool, which takes root.
    #[arg(long)]
    pub(crate) pool_mount: bool,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl ChunkArgs {
    /// Bytes of all chunks.
    pub(crate) fn bytes(&self) -> ByteSize {
        ByteSize(u64::from(self.count) * self.chunk_size as u64)
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// Measure how fast chunks are stored: a page taken, written whole, and made visible, one after the other.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    pub(crate) chunks: ChunkArgs,

    /// What memory is taken for: coherent between hosts, or such that has cache lines written back and dropped. The latter is
    /// measured beside stores without, and so is what each of the steps costs.
    #[arg(long, value_enum, default_value = "coherent")]
    pub(crate) coherence: Coherence,

    /// Store with checksums, and measure that beside stores without.
    #[arg(long)]
    pub(crate) checksum: bool,
}

impl StoreArgs {
    /// Whether stores with something are held against stores without.
    pub(crate) fn is_compared(&self) -> bool {
        self.coherence == Coherence::Writeback || self.checksum
    }
}

/// What memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Coherence {
    /// What one host writes others read.
    Coherent,
    /// Lines have to be written back, and dropped.
    Writeback,
}

/// Measure how fast chunks of another instance are read: acquired, every byte read in place, released.
#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) chunks: ChunkArgs,

    /// Measure the first time that the reader sees the chunks, before their memory is mapped.
    #[arg(long)]
    pub(crate) cold: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Options {
        #[command(flatten)]
        traffic: TrafficArgs,
    }

    fn traffic(arguments: &[&str]) -> TrafficArgs {
        Options::parse_from([&["maru-bench"], arguments].concat()).traffic
    }

    #[test]
    fn a_client_process_is_told_all_that_was_asked_for() {
        let asked = traffic(&[
            "--op",
            "mix:exists=80,acquire=20",
            "--batch",
            "8",
            "--keys",
            "100",
            "--distribution",
            "zipf:0.8",
            "--connections",
            "5",
            "--processes",
            "2",
            "--warm-up",
            "1s 500ms",
        ]);
        let arguments = asked.arguments();
        let told = traffic(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(format!("{told:?}"), format!("{:?}", TrafficArgs { threads: Some(3), ..asked }));
    }

    #[test]
    fn every_thread_has_a_connection() {
        assert!(traffic(&["--connections", "4", "--processes", "2", "--threads", "2"]).check().is_ok());
        let error = traffic(&["--connections", "3", "--processes", "2", "--threads", "2"]).check();
        assert!(error.unwrap_err().to_string().contains("--connections"));
        assert_eq!(traffic(&["--connections", "3", "--processes", "2"]).threads(), 2);
    }

    #[test]
    fn a_ramp_ends_with_its_end() {
        let rates = |text: &str| text.parse::<Ramp>().map(|ramp| ramp.rates().collect::<Vec<_>>());
        assert_eq!(rates("1000:3000:1000").unwrap(), [1000.0, 2000.0, 3000.0]);
        assert_eq!(rates("1000:2999:1000").unwrap(), [1000.0, 2000.0]);
        assert_eq!(rates("5:5:1").unwrap(), [5.0]);
        for bad in ["", "1:2", "3:2:1", "1:2:0", "0:2:1", "a:b:c", "1:2:3:4", "1:inf:1"] {
            assert!(rates(bad).is_err(), "{bad:?}");
        }
    }
}
