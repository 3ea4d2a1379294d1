//! Where a torture takes place: on this host, or on hosts of its own, whose cables are pulled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use maru_hosts::{Host, Network};

use crate::cli::TortureArgs;
use crate::error::BenchError;
use crate::files::write;

/// What clients of other hosts present to the server. Nobody else can reach it.
pub(super) const TOKEN: &str = "torture over the network";

/// Where the server listens on a host of its own, where every port is free.
const PORT: u16 = 5555;

/// The hosts; without any all runs on this one. The server runs on the first. Others have the pool, and not the socket.
pub(super) struct Site {
    socket: PathBuf,
    token: PathBuf,
    hosts: Vec<Host>,
    /// Until when the cable of each is out, if it is.
    unplugged: Vec<Option<Instant>>,
}

impl Site {
    /// Starts the hosts. `run` is a folder for what the server needs beside its pool.
    ///
    /// # Errors
    /// [`BenchError::Hosts`] where there can be none.
    pub(super) fn prepare(args: &TortureArgs, run: &Path, pool: &Path) -> Result<Site, BenchError> {
        let token = run.join("token");
        let mut hosts = Vec::new();
        if let Some(count) = args.hosts {
            write(&token, TOKEN)?;
            let network = Network::new()?;
            for number in 0..count {
                let plan = network.host(&format!("host-{number}"));
                let plan = if number == 0 { plan.shares(run) } else { plan.hides(run) };
                hosts.push(plan.shares(pool).start()?);
            }
        }
        Ok(Site { socket: run.join("maru.sock"), token, unplugged: vec![None; hosts.len()], hosts })
    }

    /// The server's socket, which this process reaches.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the server runs, if that is not this host.
    pub(super) fn server_host(&self) -> Option<&Host> {
        self.hosts.first()
    }

    /// What the server has to be told to be reached from other hosts.
    pub(super) fn server_options(&self) -> Vec<String> {
        let Some(host) = self.server_host() else { return Vec::new() };
        let listen = format!("{}:{PORT}", host.address());
        vec!["--listen".to_owned(), listen, "--auth-token-file".to_owned(), self.token.display().to_string()]
    }

    /// Puts the client of a number on its host, and tells it where the server is.
    pub(super) fn place(&self, number: u16, command: &mut Command) {
        let Some(server) = self.server_host() else {
            command.arg("--address").arg(&self.socket);
            return;
        };
        let index = usize::from(number) % self.hosts.len();
        self.hosts[index].place(command);
        match index {
            0 => command.arg("--address").arg(&self.socket),
            _ => command.args(["--address", &format!("tcp://{}:{PORT}", server.address())]),
        };
    }

    /// Hosts with a cable.
    pub(super) fn cables(&self) -> u64 {
        self.hosts.len() as u64
    }

    /// Pulls the cable of a host until some time; `false` where it is out already.
    ///
    /// # Errors
    /// [`BenchError::Hosts`] where the system refuses.
    pub(super) fn unplug(&mut self, host: usize, until: Instant) -> Result<bool, BenchError> {
        if self.unplugged[host].is_some() {
            return Ok(false);
        }
        self.hosts[host].unplug()?;
        self.unplugged[host] = Some(until);
        Ok(true)
    }

    /// Plugs cables in that are out, by when they were to be.
    ///
    /// # Errors
    /// [`BenchError::Hosts`] where the system refuses.
    pub(super) fn plug_in(&mut self, is_due: impl Fn(Instant) -> bool) -> Result<(), BenchError> {
        for (host, unplugged) in self.hosts.iter().zip(&mut self.unplugged) {
            if unplugged.take_if(|until| is_due(*until)).is_some() {
                host.plug_in()?;
            }
        }
        Ok(())
    }
}
