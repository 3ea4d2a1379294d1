//! Servers of the peers, started with a Unix socket of their own and filled.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::ServerArgs;
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::placement::start_on;
use crate::target::fresh_folder;
use crate::traffic::keys;

/// How long a server may take until it accepts.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a value: what a location takes with us.
const VALUE: &str = "12345678901234567890123456789012";

/// A server to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Redis,
    Memcached,
}

impl Peer {
    /// All of them.
    pub(super) const ALL: [Peer; 2] = [Peer::Redis, Peer::Memcached];

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Peer::Redis => "Redis",
            Peer::Memcached => "memcached",
        }
    }

    const fn binary(self) -> &'static str {
        match self {
            Peer::Redis => "redis-server",
            Peer::Memcached => "memcached",
        }
    }

    /// What it is started with: in memory only, one thread, as ours.
    fn command(self, socket: &Path) -> Command {
        let mut command = Command::new(self.binary());
        match self {
            Peer::Redis => {
                command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(socket)
            }
            Peer::Memcached => command.args(["-t", "1", "-m", "256", "-u", "root", "-s"]).arg(socket),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A request that stores a key.
    fn set(self, out: &mut Vec<u8>, key: &str) {
        let length = VALUE.len();
        let _ = match self {
            Peer::Redis => {
                write!(out, "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n{VALUE}\r\n", key.len())
            }
            Peer::Memcached => write!(out, "set {key} 0 0 {length}\r\n{VALUE}\r\n"),
        };
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(super) struct PeerServer {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl PeerServer {
    /// Starts and fills a server; `None` where it is not installed.
    pub(super) fn start(peer: Peer, args: &ServerArgs, count: u32) -> Result<Option<PeerServer>, BenchError> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let socket = folder.path().join("peer.sock");
        let started = start_on(args.pin_server.as_ref(), || Ok(peer.command(&socket).spawn()))?;
        let child = match started {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BenchError::system(format!("start {}", peer.name()))(error)),
        };
        let server = PeerServer { child, socket, _folder: folder };
        let failed = || BenchError::system(format!("fill {}", peer.name()));
        let deadline = Instant::now() + START_LIMIT;
        let mut stream = loop {
            match UnixStream::connect(&server.socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(BenchError::system(format!("reach {}", peer.name()))(error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut answers = BufReader::new(stream.try_clone().map_err(failed())?);
        for first in (0..count).step_by(1000) {
            let numbers = first..count.min(first + 1000);
            let mut out = Vec::new();
            numbers.clone().for_each(|number| peer.set(&mut out, &keys::text(number.into())));
            stream.write_all(&out).map_err(failed())?;
            for _ in numbers {
                let mut line = String::new();
                answers.read_line(&mut line).map_err(failed())?;
                if !matches!(line.trim(), "+OK" | "STORED") {
                    return Err(BenchError::answer(
                        peer.name(),
                        format!("{:?} to a key to store", line.trim()),
                    ));
                }
            }
        }
        Ok(Some(server))
    }

    /// A connection.
    pub(super) fn connect(&self) -> Result<Channel, BenchError> {
        Channel::connect(&self.socket).map_err(BenchError::system("reach a peer"))
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
