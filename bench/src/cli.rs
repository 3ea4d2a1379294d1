//! The command line: every option, its default and its check.

mod compare;
mod measure;
mod torture;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

use crate::content::Coverage;

pub(crate) use compare::{EchoArgs, FloorArgs, PeersArgs, RoundsArgs};
pub(crate) use measure::{
    ChunkArgs, ClientArgs, Coherence, LatencyArgs, LoadArgs, OutputArgs, ReadArgs, ServerArgs, StoreArgs,
    Switch, TrafficArgs,
};
pub(crate) use torture::{Memory, TortureArgs, TortureClientArgs};

/// Measures maru: a real server, real client processes, every byte checked.
#[derive(Debug, Parser)]
#[command(name = "maru-bench", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Replay(ReplayArgs),
    Latency(LatencyArgs),
    Load(LoadArgs),
    Store(StoreArgs),
    Read(ReadArgs),
    Floor(FloorArgs),
    Peers(PeersArgs),
    Policy(PolicyArgs),
    Torture(TortureArgs),
    #[command(hide = true)]
    Echo(EchoArgs),
    #[command(hide = true)]
    Client(ClientArgs),
    #[command(hide = true)]
    TortureClient(TortureClientArgs),
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// Replay the requests of a serving engine: acquire the known prefix, verify it, store what is missing.
///
/// Starts a server and client processes of its own. The requests go to the processes in turn, one after the other, so
/// that the hit ratio is exact. Ends with an error when a single byte is wrong.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Where the requests come from.
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,

    /// Client processes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) processes: u16,

    /// Bytes of a chunk, such as 64KiB: a multiple of 4 KiB, at most 1 GiB.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = chunk_size)]
    pub(crate) chunk_size: usize,

    /// Bytes of the pool, such as 8GiB [default: what the chunks of all requests need]. When it is full, cold
    /// chunks are evicted; a chunk for which nothing can go is counted as not stored.
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool_size: Option<ByteSize>,

    /// Folder, on tmpfs or hugetlbfs, in which a fresh folder for the pool is made, and removed at the end.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) pool_dir: PathBuf,

    /// Write and verify only the head, the tail and eight probes of each chunk.
    #[arg(long)]
    pub(crate) sparse: bool,

    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Replay traces against eviction policies, without a server: what share of the chunks each finds again.
///
/// A chunk counts as found where everything before it in its request is found as well.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// JSON lines, as for replay.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) trace: Vec<PathBuf>,

    /// Chunks that there is room for.
    #[arg(long, value_name = "N", num_args = 1.., default_values = ["1000", "5000", "20000", "50000"])]
    pub(crate) capacity: Vec<NonZeroUsize>,

    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Where the requests come from.
#[derive(Debug, Args)]
pub(crate) struct WorkloadArgs {
    /// JSON lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, the ids of the input's blocks of
    /// 512 tokens: equal ids are equal prefixes [default: conversations of several turns are made up].
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Requests: the first N of the trace [default: all], or how many are made up [default: 300].
    #[arg(long, value_name = "N")]
    pub(crate) requests: Option<NonZeroUsize>,

    /// Makes up other conversations; the same seed makes up the same ones.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "trace")]
    pub(crate) seed: u64,
}

/// One client process of a replay; started by it, not by people.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The server's socket.
    #[arg(long)]
    pub(crate) socket: PathBuf,

    /// The name of the instance.
    #[arg(long)]
    pub(crate) instance: String,

    /// Bytes of a chunk.
    #[arg(long, value_parser = chunk_size)]
    pub(crate) chunk_size: usize,

    /// Bytes of each region that is asked for.
    #[arg(long)]
    pub(crate) region_size: u64,

    /// Write and verify only parts of each chunk.
    #[arg(long)]
    pub(crate) sparse: bool,
}

/// The coverage that `--sparse` chooses.
pub(crate) fn coverage(sparse: bool) -> Coverage {
    if sparse { Coverage::Sparse } else { Coverage::Whole }
}

fn chunk_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse()?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|size| (4096..=1 << 30).contains(size) && size.is_multiple_of(4096))
        .ok_or_else(|| "a chunk has 4 KiB to 1 GiB, a multiple of 4 KiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(arguments: &[&str]) -> Result<ReplayArgs, clap::Error> {
        match Cli::try_parse_from([&["maru-bench", "replay"], arguments].concat())?.command {
            Command::Replay(args) => Ok(args),
            _ => unreachable!("the command is replay"),
        }
    }

    #[test]
    fn sizes_have_units() {
        let args = replay(&["--chunk-size", "64KiB", "--pool-size", "3GiB"]).unwrap();
        assert_eq!((args.chunk_size, args.pool_size), (65_536, Some(ByteSize::gib(3))));
        assert_eq!(replay(&[]).unwrap().chunk_size, 1 << 20);
        assert_eq!(replay(&["--chunk-size", "8192"]).unwrap().chunk_size, 8192);
    }

    #[test]
    fn a_chunk_is_whole_pages_of_memory_and_of_sane_size() {
        for bad in ["0", "4095", "4KB", "5000", "2GiB", "100EiB", "-1", "many", ""] {
            assert!(replay(&["--chunk-size", bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn counts_are_at_least_one() {
        assert!(replay(&["--requests", "0"]).is_err());
        assert!(replay(&["--processes", "0"]).is_err());
    }

    #[test]
    fn a_seed_makes_no_sense_with_a_trace() {
        assert!(replay(&["--trace", "t.jsonl", "--seed", "2"]).is_err());
    }

    #[test]
    fn workers_are_not_offered_to_people() {
        let help = Cli::try_parse_from(["maru-bench", "--help"]).unwrap_err().to_string();
        assert!(
            help.contains("replay") && !help.contains("worker") && !help.contains("\n  client"),
            "{help}"
        );
    }
}
