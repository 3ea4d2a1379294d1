//! A server of the run's own: found or built, started, watched and stopped.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use maru_hosts::Host;
use rustix::process::{Pid, Signal, kill_process};

use crate::error::BenchError;

/// The server's binary, which Cargo puts beside this one.
const BINARY: &str = "maru-server";
/// Lines of the server's stderr that are kept to explain a failure.
const STDERR_LINES: usize = 20;
/// How long a server may take until it accepts.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to end, the release of its pool's memory included.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often a server is looked at while it starts or ends.
const TICK: Duration = Duration::from_millis(2);

/// How a server is started.
#[derive(Debug)]
pub(crate) struct ServerOptions<'a> {
    /// The socket that it makes.
    pub(crate) socket: &'a Path,
    /// Its pool: a folder, or a device.
    pub(crate) pool: &'a Path,
    /// Whether it mounts huge pages there, which takes root.
    pub(crate) mount: bool,
    /// Bytes of its pool.
    pub(crate) pool_size: u64,
    /// Pages that it can have in all regions together.
    pub(crate) max_entries: u64,
    /// Further options, as on its command line.
    pub(crate) arguments: &'a [String],
    /// Where it runs, if that is not this host.
    pub(crate) host: Option<&'a Host>,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    /// Collects the last lines that the server writes to stderr; ends with the server.
    stderr: Option<JoinHandle<VecDeque<String>>>,
    /// Where the server has mounted memory, which stays when it ends.
    mounted: Option<PathBuf>,
}

impl ServerProcess {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Errors
    /// [`BenchError`] where there is no binary, or the server ends or does not accept in time.
    pub(crate) fn start(options: &ServerOptions<'_>) -> Result<ServerProcess, BenchError> {
        let binary = find_or_build()?;
        let mut pool = options.pool.as_os_str().to_owned();
        pool.push(if options.mount { ",mount" } else { "" });
        let mut command = Command::new(&binary);
        if let Some(host) = options.host {
            host.place(&mut command);
        }
        let mut child = command
            .arg("--socket")
            .arg(options.socket)
            .arg("--pool")
            .arg(pool)
            .args(["--pool-size", &options.pool_size.to_string()])
            .args(["--max-entries", &options.max_entries.to_string()])
            .args(options.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the run and its workers; the run stops the server after them.
            .process_group(0)
            .spawn()
            .map_err(BenchError::system(format!("start {}", binary.display())))?;
        let stderr = child.stderr.take().expect("stderr is piped");
        let mounted = options.mount.then(|| options.pool.to_owned());
        let mut server = ServerProcess { child, stderr: Some(thread::spawn(|| last_lines(stderr))), mounted };

        let began = Instant::now();
        while UnixStream::connect(options.socket).is_err() {
            server.check()?;
            if began.elapsed() > START_LIMIT {
                return Err(server.slow("start to accept", START_LIMIT));
            }
            thread::sleep(TICK);
        }
        Ok(server)
    }

    /// Kills the server, as `kill -9` does, and starts another in its place.
    ///
    /// # Errors
    /// Those of [`ServerProcess::start`].
    pub(crate) fn restart(&mut self, options: &ServerOptions<'_>) -> Result<(), BenchError> {
        self.check()?;
        self.kill();
        *self = ServerProcess::start(options)?;
        Ok(())
    }

    /// Makes sure that the server still runs.
    ///
    /// # Errors
    /// [`BenchError::ServerEnded`], with the server's own words, if it does not.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        match self.poll()? {
            Some(status) => Err(BenchError::ServerEnded { status, stderr: self.take_stderr() }),
            None => Ok(()),
        }
    }

    /// An error as it is to be told: where the server ended, its own words say more than the complaint of a client.
    pub(crate) fn explain(&mut self, error: BenchError) -> BenchError {
        match error {
            BenchError::Interrupted => error,
            _ => self.check().err().unwrap_or(error),
        }
    }

    /// Bytes of memory that the server has at the moment, the pool's left out: it does not map that.
    ///
    /// # Errors
    /// [`BenchError`] where the system does not tell.
    pub(crate) fn resident_bytes(&self) -> Result<u64, BenchError> {
        let path = format!("/proc/{}/status", self.child.id());
        let failed = |source: io::Error| BenchError::system(format!("read {path}"))(source);
        let status = fs::read_to_string(&path).map_err(failed)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    /// Asks the server to end, and waits for it.
    ///
    /// # Errors
    /// [`BenchError`] where it fails on the way, or does not end in time.
    pub(crate) fn stop(mut self) -> Result<(), BenchError> {
        self.check()?;
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .map_err(BenchError::system("stop maru-server"))?;
        let began = Instant::now();
        loop {
            match self.poll()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(BenchError::ServerEnded { status, stderr: self.take_stderr() }),
                None if began.elapsed() > STOP_LIMIT => return Err(self.slow("end", STOP_LIMIT)),
                None => thread::sleep(TICK),
            }
        }
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>, BenchError> {
        self.child.try_wait().map_err(BenchError::system("wait for maru-server"))
    }

    fn slow(&mut self, what: &'static str, limit: Duration) -> BenchError {
        self.kill();
        BenchError::ServerSlow { what, seconds: limit.as_secs(), stderr: self.take_stderr() }
    }

    fn kill(&mut self) {
        // An error means that it has ended already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of stderr of a server that has ended.
    fn take_stderr(&mut self) -> String {
        let lines = self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        if lines.is_empty() { "it wrote nothing to stderr".to_owned() } else { Vec::from(lines).join("\n") }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
        if let Some(point) = &self.mounted {
            // An error means that the server did not come to mount it.
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Reads until the server ends, and keeps the last lines.
fn last_lines(stderr: ChildStderr) -> VecDeque<String> {
    let mut lines = VecDeque::with_capacity(STDERR_LINES);
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        if lines.len() == STDERR_LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    lines
}

/// The server's binary beside this one; built if this one was started by Cargo, which builds only what it runs.
fn find_or_build() -> Result<PathBuf, BenchError> {
    let own = env::current_exe().map_err(BenchError::system("find the path of maru-bench"))?;
    let folder = own.parent().expect("an executable lies in a folder");
    let server = folder.join(BINARY);
    if server.exists() {
        return Ok(server);
    }
    let (Some(cargo), Some(manifest)) = (env::var_os("CARGO"), env::var_os("CARGO_MANIFEST_DIR")) else {
        return Err(BenchError::NoServer(server));
    };
    // The folder has the profile's name, but for the profile `dev`.
    let profile = folder.file_name().filter(|name| *name != "debug").unwrap_or("dev".as_ref());
    let status = Command::new(cargo)
        .args(["build", "-p", BINARY, "--profile"])
        .arg(profile)
        .arg("--manifest-path")
        .arg(Path::new(&manifest).join("Cargo.toml"))
        .status()
        .map_err(BenchError::system("run cargo to build maru-server"))?;
    match status.success() {
        true if server.exists() => Ok(server),
        true => Err(BenchError::NoServer(server)),
        false => Err(BenchError::ServerBuild(status)),
    }
}
