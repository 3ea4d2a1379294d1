//! The command line: every subcommand and option, its default and its check.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use maru_client::{Address, KeyDigest};

/// Shows what a maru-server does, finds what is pinned, and releases it.
///
/// Ends with 0 when all is well, 1 when the answer is no (no such key, a check that failed, a pin that stayed), 2 when the
/// command line makes no sense, 3 when no server answers, 4 when the server refuses, and 5 for everything else.
#[derive(Debug, Parser)]
#[command(name = "maru", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// Which server is asked.
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(ReportArgs),
    Pools(ReportArgs),
    #[command(subcommand)]
    Pool(PoolCommand),
    Usage(ReportArgs),
    Calls(ReportArgs),
    Keys(KeysArgs),
    Pins(PinsArgs),
    Top(TopArgs),
    Doctor(DoctorArgs),
    /// Print a hint how to measure this machine: that is what `maru-bench` is for.
    Bench,
    Completions(CompletionsArgs),
}

/// Which server is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server: the path of its socket, unix:///path, tcp://host:port, maru://host:port or tls://host:port [default: the socket
    /// of this user's server, $XDG_RUNTIME_DIR/maru/maru.sock, else maru-UID/maru.sock in the folder for temporary files].
    #[arg(long, global = true, value_name = "PATH|URL", value_parser = address)]
    pub(crate) socket: Option<Address>,

    /// File whose first line is the token that a server on TCP asks for.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) auth_token_file: Option<PathBuf>,

    /// File in PEM with the authorities that a server on tls:// is believed by [default: those of this host].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// The certificate, in PEM, that is presented on tls:// to a server that asks for one.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of that certificate, in PEM.
    #[arg(long, global = true, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// How long the server may take for one answer.
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = interval)]
    pub(crate) timeout: Duration,
}

/// How a report is shown.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FormatArgs {
    /// As JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,

    /// As comma-separated values under one line of names.
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
}

/// Show the server's figures, its pools, what each instance uses, or how long the calls of those take that report it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ReportArgs {
    /// Again and again, every so often.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = interval)]
    pub(crate) watch: Option<Duration>,

    /// How it is shown.
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

/// Make a device a pool, show which pool memory is, or wipe one: on this host, and without a server.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PoolCommand {
    Init(InitArgs),
    Show(ShowArgs),
    Wipe(WipeArgs),
}

/// Make a device a pool, under a new UUID. What is on it is lost. Asks before.
///
/// A device is a DAX device, such as /dev/dax0.0; a block device or a regular file stands in for one. Folders need no such
/// preparation. One that is a pool is left as it is, and so is one that a server of this host uses; servers of other hosts
/// can't be seen from here.
#[derive(Clone, Debug, Args)]
pub(crate) struct InitArgs {
    /// The device.
    pub(crate) path: PathBuf,

    /// Don't ask.
    #[arg(long)]
    pub(crate) yes: bool,

    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show which pools devices and folders are, and whether a server uses them. Ends with 1 where one is none.
#[derive(Clone, Debug, Args)]
pub(crate) struct ShowArgs {
    /// Devices and folders [default: every /dev/dax*].
    pub(crate) path: Vec<PathBuf>,

    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a device or a folder no pool any more. All that is in it is lost. Asks before, for the UUID of the pool.
///
/// Of a device the header goes, of a folder the regions as well. A pool that a server of this host uses is left as it is;
/// servers of other hosts can't be seen from here.
#[derive(Clone, Debug, Args)]
pub(crate) struct WipeArgs {
    /// The device or the folder.
    pub(crate) path: PathBuf,

    /// Don't ask: this is the UUID of the pool that is meant, or the word unreadable where its header can't be read.
    #[arg(long, value_name = "UUID")]
    pub(crate) yes: Option<String>,

    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show where the entries of keys are, and who keeps them there. Ends with 1 where one is not there.
#[derive(Clone, Debug, Args)]
#[group(id = "which", required = true, multiple = true)]
pub(crate) struct KeysArgs {
    /// A key, as its writer spells it; may be repeated.
    #[arg(long, value_name = "KEY", group = "which")]
    pub(crate) key: Vec<String>,

    /// The digest of a key, 32 hexadecimal digits; may be repeated.
    #[arg(long, value_name = "HEX", value_parser = digest, group = "which")]
    pub(crate) digest: Vec<KeyDigest>,

    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List what is pinned, by whom and for how long; and release pins by name that somebody forgot.
///
/// A pin by name was asked for by `pin_kv`, and lasts until `unpin_kv`, the server's --pin-ttl or the end of its instance.
/// A guard is a reader that lives: its pin is never released from outside, since the bytes under it would change. End its
/// process, and its pins go with the grace period.
#[derive(Clone, Debug, Args)]
pub(crate) struct PinsArgs {
    /// Only pins of which the first on the entry is at least so old, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Option<Duration>,

    /// Only pins of the instances with this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) instance: Option<String>,

    /// Only pins on the entry of this digest.
    #[arg(long, value_name = "HEX", value_parser = digest)]
    pub(crate) digest: Option<KeyDigest>,

    /// Release those pins that are listed and were taken by name, for the server's own user and root over its Unix socket.
    /// Asks before.
    #[arg(long)]
    pub(crate) release: bool,

    /// Don't ask.
    #[arg(long, requires = "release")]
    pub(crate) yes: bool,

    /// How it is shown.
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

/// Watch a server in a terminal: rates, operations, instances and pools.
///
/// 1, 2, 3 and Tab switch between views, p stops the screen and lets it go on, o orders the instances, c chooses whose latency of
/// their calls is shown, q ends it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct TopArgs {
    /// How often the server is looked at.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
}

/// Check what a server needs of this host, and whether it answers; each fault with what to do about it.
///
/// Ends with 1 where something is wrong. What merely could be better is said, and changes nothing.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    /// A pool, a folder or a device; may be repeated [default: those of the server that answers, else /dev/shm/maru-UID].
    #[arg(long, value_name = "PATH")]
    pub(crate) pool: Vec<PathBuf>,

    /// Look at the host alone, as before a server is first started.
    #[arg(long)]
    pub(crate) host: bool,

    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the completions of a shell, for its folder of completions.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: Shell,
}

/// A relative path is one as well.
fn address(text: &str) -> Result<Address, String> {
    if text.is_empty() || text.contains("://") {
        return text.parse().map_err(|error: maru_client::Error| error.to_string());
    }
    std::path::absolute(text).map(Address::Unix).map_err(|error| error.to_string())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval.is_zero() { Err("has to be longer than nothing".to_owned()) } else { Ok(interval) }
}

/// The digest that [`KeyDigest`] is shown as.
fn digest(text: &str) -> Result<KeyDigest, String> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
    let number = number.ok_or_else(|| "a digest has 32 hexadecimal digits".to_owned())?;
    Ok(KeyDigest::from_bytes(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["maru"], arguments].concat())
    }

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_server_is_a_path_or_a_url_before_or_behind_the_command() {
        let socket = |arguments: &[&str]| parse(arguments).unwrap().server.socket;
        assert_eq!(socket(&["status"]), None);
        let unix = Some(Address::Unix("/run/maru.sock".into()));
        for arguments in
            [["--socket", "/run/maru.sock", "status"], ["status", "--socket", "unix:///run/maru.sock"]]
        {
            assert_eq!(socket(&arguments), unix);
        }
        assert_eq!(socket(&["--socket", "maru://h:1", "status"]), Some(Address::Tcp("h:1".to_owned())));
        assert_eq!(socket(&["--socket", "tls://h:1", "status"]), Some(Address::Tls("h:1".to_owned())));
        let relative = std::env::current_dir().unwrap().join("maru.sock");
        assert_eq!(socket(&["--socket", "maru.sock", "status"]), Some(Address::Unix(relative)));
        assert!(parse(&["--socket", "http://h:1", "status"]).is_err());
    }

    #[test]
    fn watching_has_an_interval_of_its_own() {
        let watch = |arguments: &[&str]| match parse(arguments).map(|cli| cli.command) {
            Ok(Command::Usage(args)) => args.watch,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(watch(&["usage"]), None);
        assert_eq!(watch(&["usage", "--watch"]), Some(Duration::from_secs(2)));
        assert_eq!(watch(&["usage", "--watch", "500ms", "--json"]), Some(Duration::from_millis(500)));
        assert!(parse(&["usage", "--watch", "0s"]).is_err());
        assert!(parse(&["usage", "--csv", "--json"]).is_err());
    }

    #[test]
    fn a_digest_is_read_as_it_is_shown() {
        let shown = "083c37de637c4fa8492fd75d37ae8a67";
        assert_eq!(digest(shown).unwrap().to_string(), shown);
        for bad in ["", "083c", "+83c37de637c4fa8492fd75d37ae8a67", "083c37de637c4fa8492fd75d37ae8a6g"] {
            assert!(digest(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_has_to_be_named() {
        assert!(parse(&["keys"]).is_err());
        assert!(parse(&["keys", "--key", "a", "--key", "b", "--digest", &"0".repeat(32)]).is_ok());
    }

    #[test]
    fn nothing_is_confirmed_that_is_not_asked() {
        assert!(parse(&["pins", "--yes"]).is_err());
        assert!(parse(&["pins", "--release", "--yes"]).is_ok());
        assert!(
            parse(&["pool", "wipe", "/dev/dax0.0", "--yes"]).is_err(),
            "which pool is meant is part of the answer"
        );
        assert!(parse(&["pool", "init", "--yes"]).is_err());
    }
}
