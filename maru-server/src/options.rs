//! The command line: every option of the server, its default and its check.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;

use crate::pool::{PoolPlan, Prefault};

/// The metadata server of maru: instances share KV-cache chunks through a pool of memory that it hands out.
///
/// The first paragraph of an option's text is also its row in the README, where `[default: …]` becomes the default.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    about = "The metadata server of maru: instances share KV-cache chunks through a pool of memory that it hands out",
    long_about = None,
    after_help = crate::configuration::HELP,
    max_term_width = 110,
    args_override_self = true
)]
pub struct Options {
    /// File with options, in TOML [default: none].
    ///
    /// Keys are the names of options without the dashes, such as pool-size = "64GiB".
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the options, print all of them with where each comes from, and end.
    ///
    /// What is printed is such a file itself. Nothing is opened that a server that runs would use.
    #[arg(long)]
    pub check_config: bool,

    /// Unix socket; its folder is made with mode 0700 [default: $XDG_RUNTIME_DIR/maru/maru.sock, else
    /// maru-UID/maru.sock under the temporary folder].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// TCP as well; beyond loopback only with a token. Clients of the same host move onto the Unix socket by themselves
    /// [default: off].
    ///
    /// Such as 127.0.0.1:5555.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,

    /// What TCP clients must present [default: none].
    ///
    /// The first line of the file, of 16 to 64 characters.
    #[arg(long, value_name = "FILE")]
    pub auth_token_file: Option<PathBuf>,

    /// The server's certificate in PEM, and those that lead from it to an authority: TLS 1.3 is spoken on --listen then, and
    /// nothing else [default: none].
    ///
    /// SIGHUP has it read again, with the other files of TLS.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "listen"])]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key in PEM, which is nobody else's to read [default: none].
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Authorities in PEM, one of which has to have signed the certificate that a TLS client presents then [default: none, and
    /// clients need no certificate].
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// A pool: a folder of memory, or a device; several are filled in their order [default: /dev/shm/maru-UID].
    ///
    /// A kind and a colon may stand before the path, which has to be of that kind then: tmpfs or hugetlbfs, folders of this
    /// host's memory; fsdax, a folder that hosts may share; devdax, a device that hosts may share, once `maru pool init` has
    /// made it a pool. Behind the path, with commas: size=64GiB; coherence=writeback, where hosts do not see what is in each
    /// other's caches; mount, for root: a tmpfs with huge pages is mounted there and stays; node=0, the NUMA node whose memory a
    /// tmpfs or hugetlbfs takes. Repeat the option for several, or separate them by semicolons.
    #[arg(long, value_name = "POOL", value_delimiter = ';')]
    pub pool: Vec<PoolPlan>,

    /// Bytes of each folder that is a pool and says no size of its own, such as 64GiB [default: a quarter of what is free
    /// there].
    ///
    /// A device that says none is used as a whole.
    #[arg(long, value_name = "SIZE")]
    pub pool_size: Option<ByteSize>,

    /// When the regions of a folder get their memory: all of it before they are given, or lazily, as it is touched.
    ///
    /// Lazily, a region of any size is there at once. Whoever touches memory that the folder's file system does not have is
    /// killed then (SIGBUS): have nothing else fill it. The size of a pool is held against what is free at start.
    #[arg(long, value_enum, default_value_t = Prefault::Eager)]
    pub prefault: Prefault,

    /// Where the server keeps what outlives its process besides the chunks [default: the folder of the first pool that is
    /// tmpfs or fsdax, else /dev/shm/maru-UID].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Discard what an earlier run left in the pool instead of going on from it.
    ///
    /// Otherwise the server goes on from it: the same keys, the same regions, the same sessions.
    #[arg(long)]
    pub fresh: bool,

    /// How long an instance without a connection keeps its pins and regions.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub grace: Duration,

    /// How long a pin by name lasts after the last one of its instance; 0s for ever, guards last as long as they live.
    ///
    /// It lasts at most a tenth longer.
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = humantime::parse_duration)]
    pub pin_ttl: Duration,

    /// Other users that may connect to the Unix socket, by number; several with commas, or repeated [default: nobody but
    /// the server's own user and root].
    ///
    /// The socket is open to all then, and who connects is told by the kernel.
    #[arg(long, value_name = "UID", value_delimiter = ',')]
    pub allow_uid: Vec<u32>,

    /// The same for all users whose primary group this is [default: nobody].
    #[arg(long, value_name = "GID", value_delimiter = ',')]
    pub allow_gid: Vec<u32>,

    /// How long a new connection may take to say HELLO.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub hello_deadline: Duration,

    /// How long a peer may take for the rest of a frame that it has begun, and to take its answers; 0s for ever.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub stall_timeout: Duration,

    /// How long a connection may be silent; 0s for ever.
    ///
    /// Hosts that are gone are noticed without it.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,

    /// Entries, and so pages of all regions [default: one for each 4 KiB of pool, at most 16,777,216].
    ///
    /// Each takes about 80 bytes once used. Pools that are taken later do not raise it.
    #[arg(long, value_name = "N")]
    pub max_entries: Option<u32>,

    /// Pins of one entry.
    #[arg(long, value_name = "N", default_value_t = 65_535)]
    pub max_pins_per_entry: u32,

    /// Connections in all.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_connections: usize,

    /// Connections of one instance.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_connections_per_instance: u32,

    /// Instances, those within their grace period included.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_instances: u32,

    /// Regions of one instance.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_regions_per_instance: u32,

    /// Bytes of a request's body; clients split larger batches.
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = body_size)]
    pub max_body: u32,

    /// Bytes of answers that a connection gathers before it has to take them.
    ///
    /// One more frame's at most come on top.
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = unanswered_size)]
    pub max_unanswered: usize,

    /// Metrics for Prometheus, at /metrics [default: off].
    ///
    /// Such as 127.0.0.1:9464. Whoever reaches it learns all figures and the names of instances. An address that is taken is
    /// tried again; the server serves without.
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_addr: Option<SocketAddr>,

    /// A ring of the server's own, or tokio-uring alone, which is slower and needs less of the kernel.
    ///
    /// Auto takes the first where the kernel can.
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub driver: Driver,

    /// How long the ring driver looks for the next request before it sleeps.
    ///
    /// It looks while requests follow each other within this time. A longer time answers sooner and uses more of a core; an
    /// idle server uses none either way.
    #[arg(long, value_name = "TIME", default_value = "100us", value_parser = humantime::parse_duration)]
    pub spin: Duration,

    /// Let instances stop the server, by the operation SHUTDOWN.
    #[arg(long)]
    pub allow_shutdown: bool,

    /// Warn of each request that took the server at least this long [default: off].
    ///
    /// Such as 10ms: its operation, records, instance and time. Every request is measured by itself then, also where small
    /// ones arrive together.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub slow_request: Option<Duration>,

    /// Lines of the log for people, or an object each for programs.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What to log, to stderr.
    ///
    /// error, warn, info, debug, trace, or a filter such as info,maru_server::net=debug.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

impl Options {
    /// The pools, in the order in which they are filled.
    pub(crate) fn pools(&self) -> Vec<PoolPlan> {
        let default = [PoolPlan::default()];
        let plans = if self.pool.is_empty() { &default[..] } else { &self.pool };
        plans.iter().map(|plan| PoolPlan { prefault: self.prefault, ..plan.clone() }).collect()
    }
}

/// How lines of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object each, for programs: `timestamp`, `level`, `target`, `message`, and the fields of the event beside them.
    Json,
}

/// How connections are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// The ring driver where the kernel can run it, else the plain one.
    Auto,
    /// A ring of the server's own (Linux 6.1 or later).
    Ring,
    /// Tasks of tokio-uring.
    Plain,
}

fn body_size(text: &str) -> Result<u32, String> {
    let size: ByteSize = text.parse()?;
    u32::try_from(size.as_u64())
        .ok()
        .filter(|size| (1024..=64 * 1024 * 1024).contains(size) && size.is_multiple_of(8))
        .ok_or_else(|| "a body has 1 KiB to 64 MiB, a multiple of 8 bytes".to_owned())
}

fn unanswered_size(text: &str) -> Result<usize, String> {
    let size: ByteSize = text.parse()?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|size| (4096..=1 << 30).contains(size))
        .ok_or_else(|| "answers take 4 KiB to 1 GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["maru-server"], arguments].concat())
    }

    #[test]
    fn sizes_and_times_have_units() {
        let options = parse(&["--pool-size", "3GiB", "--grace", "250ms", "--max-body", "1MiB"]).unwrap();
        assert_eq!(options.pool_size.unwrap().as_u64(), 3 << 30);
        assert_eq!(options.grace, Duration::from_millis(250));
        assert_eq!(options.max_body, 1 << 20);
    }

    #[test]
    fn pools_are_filled_in_their_order() {
        let options = parse(&["--pool", "devdax:/dev/dax0.0;fsdax:/mnt/a,size=1GiB", "--pool", "tmpfs:/b"]);
        let pools = options.unwrap().pools().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(pools, ["devdax:/dev/dax0.0", "fsdax:/mnt/a", "tmpfs:/b"]);
        assert!(parse(&["--pool", "ramfs:/x"]).unwrap_err().to_string().contains("kinds are tmpfs"));
    }

    #[test]
    fn a_body_has_a_sane_size() {
        for bad in ["0", "1023", "65MiB", "1025", "8EiB", "many"] {
            assert!(parse(&["--max-body", bad]).is_err(), "{bad}");
        }
    }
}
