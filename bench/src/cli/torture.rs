//! The options of `torture` and of its client processes.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use maru_client::{Address, DeviceMap};

use super::chunk_size;
use super::measure::Driver;
use crate::torture::PRIVATE;

/// Pools are at least so large: a region for each of a few clients.
const POOL_MIN: u64 = 16 << 20;
/// How many times as large as all chunks a pool is in which nothing has to go.
const ROOMY: u64 = 4;
/// The longest time for which a cable is out where nothing else is said.
const FLAP_MAX: Duration = Duration::from_millis(500);
/// Half of the time for which a client lets the server be out of reach.
const FLAP_LIMIT: Duration = Duration::from_secs(10);

/// Torture a server: client processes do everything at random in a pool that is far too small, and get killed.
///
/// Starts a server and client processes of its own. What lies under a key follows from the key, so every byte that is
/// read is checked. At the end everything that was promised is checked: no pin and no page is lost, and what was
/// acknowledged is there. Ends with an error when a promise was broken.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct TortureArgs {
    /// How long.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,

    /// Client processes.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) processes: u16,

    /// Keys that all of them store, read and delete.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub(crate) keys: u32,

    /// Bytes of a page, such as 64KiB: a multiple of 4 KiB, at most 1 GiB. Chunks are up to as long.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = chunk_size)]
    pub(crate) chunk_size: usize,

    /// Bytes of the pool, such as 64MiB [default: a page for every fourth key].
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool_size: Option<ByteSize>,

    /// Folder, on tmpfs or hugetlbfs, in which a fresh folder for the pool is made, and removed at the end.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) pool_dir: PathBuf,

    /// How often a client process, any of them, is killed and another one started.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) kill_every: Duration,

    /// How often the server is killed as well, at random moments, and started again on its pool [default: never].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) kill_server: Option<Duration>,

    /// What the pool is made of.
    #[arg(long, value_name = "MEMORY", default_value = "folder")]
    pub(crate) memory: Memory,

    /// Run the server and the client processes on so many hosts of their own, which takes root [default: all on this one].
    ///
    /// A host is a network namespace. The server and every Nth client are on the first; the clients of others reach it over the
    /// network, and have the pool's folder as if it were a file system of all hosts, or the device under another name.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=16))]
    pub(crate) hosts: Option<u8>,

    /// How often the cable of a host, any of them, is pulled for a moment [default: never].
    ///
    /// The server closes connections that are silent for a quarter of a second, or a sixteenth of the grace period, so that some are
    /// lost and others are not.
    #[arg(long, value_name = "TIME", requires = "hosts", value_parser = humantime::parse_duration)]
    pub(crate) flap_link: Option<Duration>,

    /// The longest time for which a cable is out [default: half a second, or an eighth of the grace period].
    ///
    /// Where that is longer, sessions may end: what was held is gone then, and must not have been read as if it were not.
    #[arg(long, value_name = "TIME", requires = "flap_link", value_parser = flap_max)]
    pub(crate) flap_max: Option<Duration>,

    /// How long the server lets an instance without a connection keep its pins and its regions.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,

    /// How the server drives its connections [default: the server's].
    #[arg(long, value_name = "DRIVER")]
    pub(crate) driver: Option<Driver>,

    /// Makes other choices; the same seed makes the same ones, as far as the scheduling of processes allows.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl TortureArgs {
    /// Bytes of the pool.
    pub(crate) fn pool_bytes(&self) -> u64 {
        let default = (u64::from(self.keys) * self.chunk_size as u64 / 4).max(POOL_MIN);
        self.pool_size.map_or(default, |size| size.as_u64())
    }

    /// Whether clients may be without the server for a while.
    pub(crate) fn has_outages(&self) -> bool {
        self.kill_server.is_some() || self.flap_link.is_some()
    }

    /// The longest time for which a cable is out.
    pub(crate) fn flap_max(&self) -> Duration {
        self.flap_max.unwrap_or_else(|| self.harmless_flap())
    }

    /// How long a cable can be out that ends no session: what it takes to go on comes on top, and has to fit into the grace period.
    fn harmless_flap(&self) -> Duration {
        FLAP_MAX.min(self.grace / 8)
    }

    /// Whether the server may end sessions of clients that live.
    pub(crate) fn may_end_sessions(&self) -> bool {
        self.flap_max() > self.harmless_flap()
    }

    /// Whether the pool is so small that entries may have to go. Regions are emptied in no order, so that much of a pool may
    /// be in regions of the dead.
    pub(crate) fn may_evict(&self) -> bool {
        let chunks = u64::from(self.keys) + u64::from(self.processes) * u64::from(PRIVATE);
        self.pool_bytes() < ROOMY * chunks * self.chunk_size as u64
    }

    /// Further options of the server.
    pub(crate) fn server_options(&self) -> Vec<String> {
        let mut options = vec!["--grace".to_owned(), humantime::format_duration(self.grace).to_string()];
        if self.flap_link.is_some() {
            let patience = humantime::format_duration(self.harmless_flap() / 2);
            options.extend(["--idle-timeout".to_owned(), patience.to_string()]);
        }
        if let Some(driver) = self.driver {
            let name = driver.to_possible_value().expect("no driver is hidden").get_name().to_owned();
            options.extend(["--driver".to_owned(), name]);
        }
        options
    }
}

/// What a pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Memory {
    /// Files in a folder.
    Folder,
    /// A file that stands in for a device.
    Device,
    /// The same, taken for memory that is not coherent: caches are written back, and chunks have checksums.
    NotCoherent,
}

/// How long a cable may be out: clients that can do nothing for longer than this call it a failure.
fn flap_max(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text).map_err(|error| error.to_string())? {
        time if time <= FLAP_LIMIT => Ok(time),
        _ => Err(format!("at most {}", humantime::format_duration(FLAP_LIMIT))),
    }
}

/// One client process of a torture; started by it, not by people.
#[derive(Debug, Args)]
pub(crate) struct TortureClientArgs {
    /// Where the server is.
    #[arg(long)]
    pub(crate) address: Address,

    /// The name of the instance.
    #[arg(long)]
    pub(crate) instance: String,

    /// Its number, from 0 up; its successors have the same.
    #[arg(long)]
    pub(crate) number: u16,

    /// Keys that all client processes share.
    #[arg(long)]
    pub(crate) keys: u32,

    /// Bytes of a page.
    #[arg(long, value_parser = chunk_size)]
    pub(crate) chunk_size: usize,

    /// What its choices follow from.
    #[arg(long)]
    pub(crate) seed: u64,

    /// Whether the server may be killed, or be out of reach, at any time.
    #[arg(long)]
    pub(crate) outages: bool,

    /// Whether the server may be out of reach for so long that it ends the session.
    #[arg(long)]
    pub(crate) sessions_end: bool,

    /// Whether the pool is so small that entries may have to go.
    #[arg(long)]
    pub(crate) may_evict: bool,

    /// Whether chunks are stored with a checksum.
    #[arg(long)]
    pub(crate) checksum: bool,

    /// Where pools lie on the client's host.
    #[arg(long, default_value = "")]
    pub(crate) device_map: DeviceMap,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn torture(arguments: &[&str]) -> Result<TortureArgs, clap::Error> {
        match Cli::try_parse_from([&["maru-bench", "torture"], arguments].concat())?.command {
            Command::Torture(args) => Ok(args),
            _ => unreachable!("the command is torture"),
        }
    }

    #[test]
    fn the_server_is_told_the_grace_and_the_driver() {
        assert_eq!(torture(&[]).unwrap().server_options(), ["--grace", "2s"]);
        let args = torture(&["--grace", "500ms", "--driver", "plain"]).unwrap();
        assert_eq!(args.server_options(), ["--grace", "500ms", "--driver", "plain"]);
    }

    #[test]
    fn a_link_flaps_only_between_hosts_and_for_less_than_the_grace() {
        assert!(torture(&["--flap-link", "1s"]).is_err());
        assert!(torture(&["--hosts", "1"]).is_err());
        assert!(!torture(&["--hosts", "2"]).unwrap().has_outages());
        let args = torture(&["--hosts", "2", "--flap-link", "1s", "--grace", "800ms"]).unwrap();
        assert_eq!((args.has_outages(), args.flap_max()), (true, Duration::from_millis(100)));
        assert_eq!(args.server_options(), ["--grace", "800ms", "--idle-timeout", "50ms"]);
        assert!(!args.may_end_sessions());
    }

    #[test]
    fn a_link_that_is_cut_for_longer_may_end_sessions() {
        let flaps = ["--hosts", "2", "--flap-link", "1s", "--grace", "800ms"];
        let args = torture(&[&flaps[..], &["--flap-max", "3s"]].concat()).unwrap();
        assert_eq!((args.may_end_sessions(), args.flap_max()), (true, Duration::from_secs(3)));
        assert_eq!(args.server_options(), ["--grace", "800ms", "--idle-timeout", "50ms"]);
        assert!(torture(&[&flaps[..], &["--flap-max", "11s"]].concat()).is_err());
        assert!(torture(&["--hosts", "2", "--flap-max", "3s"]).is_err());
    }

    #[test]
    fn there_is_at_least_one_client_and_one_chain_of_keys() {
        assert!(torture(&["--processes", "0"]).is_err());
        assert!(torture(&["--keys", "15"]).is_err());
    }
}
