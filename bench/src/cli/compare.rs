//! The options of what is measured side by side: floors and peers.

use std::path::PathBuf;

use clap::Args;

use super::ServerArgs;

/// Measure each path of the system against the least that it could take on this machine.
///
/// Each row is measured in rounds, the floor and then ours, and the ratios of the rounds are what counts: they hold on
/// a noisy machine on which absolute times do not.
#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    #[command(flatten)]
    pub(crate) rounds: RoundsArgs,
}

/// Measure the server against Redis and memcached, as far as they are installed, by the same driver.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    pub(crate) rounds: RoundsArgs,
}

/// How often and how long is measured.
#[derive(Clone, Debug, Args)]
pub(crate) struct RoundsArgs {
    /// Rounds, each of one measurement of either side.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,

    /// Fewer rounds, fewer entries, shorter measurements: shows that everything works, not what it takes.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Measure only the rows whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,

    /// Client threads that share the connections of the rows with many.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) threads: u16,

    /// The server that is started, and where both sides run.
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl RoundsArgs {
    /// Who drives the connections, for a title.
    pub(crate) fn describe_threads(&self) -> String {
        let (count, s) = (self.threads, if self.threads == 1 { "" } else { "s" });
        format!("many connections driven by {count} thread{s}")
    }

    /// Rounds of each row.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 2 } else { self.rounds.into() }
    }

    /// `quick` in a quick run, else `full`.
    pub(crate) fn scale<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// A server that echoes; started by measurements, not by people.
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// The socket that it makes.
    #[arg(long)]
    pub(crate) socket: PathBuf,
}
