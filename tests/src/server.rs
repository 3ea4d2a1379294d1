//! A server process with a socket and a pool of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use maru_hosts::Host;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{PATIENCE, Scrape, binary};

/// A running server, killed at the end.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    log: mpsc::Receiver<String>,
    at_start: Vec<String>,
    /// Where it runs, if that is not the test's own host.
    host: Option<Host>,
    folder: TempDir,
}

impl ServerProcess {
    /// Starts a server with further options, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(options: &[&str]) -> ServerProcess {
        ServerProcess::start_in(tempfile::tempdir_in("/dev/shm").expect("a folder can be made"), options)
    }

    /// The same in a folder that may hold something already.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_in(folder: TempDir, options: &[&str]) -> ServerProcess {
        ServerProcess::start_with(None, folder, options)
    }

    /// The same on a host that has the folder.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_on(host: &Host, folder: TempDir, options: &[&str]) -> ServerProcess {
        ServerProcess::start_with(Some(host.clone()), folder, options)
    }

    fn start_with(host: Option<Host>, folder: TempDir, options: &[&str]) -> ServerProcess {
        let (child, log) = spawn(host.as_ref(), folder.path(), options);
        let mut server = ServerProcess { child, log, at_start: Vec::new(), host, folder };
        server.at_start = server.wait_for_log("serving");
        server
    }

    /// Starts another in the place of one that ended, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn restart(&mut self, options: &[&str]) {
        (self.child, self.log) = spawn(self.host.as_ref(), self.folder.path(), options);
        self.at_start = self.wait_for_log("serving");
    }

    /// The command that starts a server in a folder, with a pool in it unless the options or a file of them name others.
    pub fn command(folder: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(binary("maru-server"));
        command.arg("--socket").arg(folder.join("maru.sock"));
        if !options.iter().any(|option| ["--pool", "--config"].contains(option)) {
            command.arg("--pool").arg(folder.join("pool"));
        }
        command.args(["--pool-size", "16MiB"]).args(options);
        command
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("maru.sock")
    }

    /// Its pool.
    pub fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    /// Its folder, with the socket and the pool.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens by TCP, encrypted or not, from its log.
    ///
    /// # Panics
    /// When it was not started with `--listen`.
    pub fn tcp_address(&self) -> String {
        let serving = self.at_start.last().expect("there is a line that says it serves");
        let address = serving.split_once("tcp=").or_else(|| serving.split_once("tls="));
        address.expect("started with --listen").1.trim().to_owned()
    }

    /// Where its metrics are to be had, from its log.
    ///
    /// # Panics
    /// When it was not started with `--metrics-addr`.
    pub fn metrics_address(&self) -> String {
        let told = self.at_start.iter().find_map(|line| line.split_once("metrics="));
        told.expect("started with --metrics-addr").1.trim().to_owned()
    }

    /// Its metrics as they are now.
    ///
    /// # Panics
    /// When it was not started with `--metrics-addr`.
    pub fn metrics(&self) -> Scrape {
        Scrape::of(&self.metrics_address())
    }

    /// Whether its log said this before it served.
    pub fn said_at_start(&self, text: &str) -> bool {
        self.at_start.iter().any(|line| line.contains(text))
    }

    /// Waits for a line of the log that contains a text; the log up to it.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn wait_for_log(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen: Vec<String> = Vec::new();
        while seen.last().is_none_or(|line| !line.contains(text)) {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => seen.push(line),
                Err(_) => panic!("the server did not log {text:?}, only {seen:#?}"),
            }
        }
        seen
    }

    /// Descriptors that it has open.
    ///
    /// # Panics
    /// When it is dead.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the server lives").count()
    }

    /// Bytes of memory that it uses.
    ///
    /// # Panics
    /// When it is dead.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it uses memory");
        let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("the kernel counts in kB");
        kib * 1024
    }

    /// Stops the process where it is, as a machine under load may, until [`ServerProcess::resume`].
    ///
    /// # Panics
    /// When it is dead.
    pub fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("the server lives");
    }

    /// Lets a stopped process go on.
    ///
    /// # Panics
    /// When it is dead.
    pub fn resume(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("the server lives");
    }

    /// Has it read again what it was started with, by SIGHUP.
    ///
    /// # Panics
    /// When it is dead.
    pub fn hang_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).expect("the server lives");
    }

    /// Kills the process at once, as SIGKILL does.
    ///
    /// # Panics
    /// When it can't be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server can be waited for");
    }

    /// Sends SIGTERM, and does not wait.
    ///
    /// # Panics
    /// When it is dead.
    pub fn signal_to_stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("the server lives");
    }

    /// Sends SIGTERM and waits for the end; whether the server called it a success.
    ///
    /// # Panics
    /// When it does not end.
    pub fn terminate(&mut self) -> bool {
        self.signal_to_stop();
        self.wait_for_end()
    }

    /// Waits until the process ends by itself; whether it called that a success.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait_for_end(&mut self) -> bool {
        let mut status = None;
        crate::wait_until("the server ends", || {
            status = self.child.try_wait().expect("the child can be waited for");
            status.is_some()
        });
        status.is_some_and(|status| status.success())
    }
}

fn spawn(host: Option<&Host>, folder: &Path, options: &[&str]) -> (Child, mpsc::Receiver<String>) {
    let mut command = ServerProcess::command(folder, options);
    if let Some(host) = host {
        host.place(&mut command);
    }
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the server starts");
    let stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
    let (lines, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    (child, log)
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
