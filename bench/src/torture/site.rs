//! Where a torture takes place: on this host, or on hosts of its own, whose cables are pulled; and what memory they have.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use maru_hosts::{Host, Network};
use maru_proto::PoolHeader;
use maru_server::pool::{BareDevice, PoolIdentity};

use crate::cli::{Memory, TortureArgs};
use crate::error::BenchError;
use crate::files::write;

/// What clients of other hosts present to the server. Nobody else can reach it.
pub(super) const TOKEN: &str = "torture over the network";

/// Where the server listens on a host of its own, where every port is free.
const PORT: u16 = 5555;

/// The file in the pool's folder that stands in for a device.
const DEVICE: &str = "dax0.0";
/// The folder in which other hosts than the server's have it.
const DEVICES_ELSEWHERE: &str = "/dev/shm/devices-of-all-hosts";

/// The hosts; without any all runs on this one. The server runs on the first. Others have the pool, and not the socket.
pub(super) struct Site {
    socket: PathBuf,
    token: PathBuf,
    state: PathBuf,
    folder: PathBuf,
    /// The device, if that is what the pool is.
    device: Option<PoolIdentity>,
    memory: Memory,
    hosts: Vec<Host>,
    /// Until when the cable of each is out, if it is.
    unplugged: Vec<Option<Instant>>,
}

impl Site {
    /// Starts the hosts. `run` is a folder for what the server needs beside its pool.
    ///
    /// # Errors
    /// [`BenchError::Hosts`] where there can be none, [`BenchError::System`] where there is no room for a device.
    pub(super) fn prepare(args: &TortureArgs, run: &Path, pool: &Path) -> Result<Site, BenchError> {
        let token = run.join("token");
        let device = match args.memory {
            Memory::Folder => None,
            Memory::Device | Memory::NotCoherent => Some(make_device(&pool.join(DEVICE), args.pool_bytes())?),
        };
        let mut hosts = Vec::new();
        if let Some(count) = args.hosts {
            write(&token, TOKEN)?;
            let network = Network::new()?;
            for number in 0..count {
                let plan = network.host(&format!("host-{number}"));
                let plan = match number {
                    0 => plan.shares(run).shares(pool),
                    _ if device.is_some() => plan.hides(run).shares_as(pool, DEVICES_ELSEWHERE),
                    _ => plan.hides(run).shares(pool),
                };
                hosts.push(plan.start()?);
            }
        }
        Ok(Site {
            socket: run.join("maru.sock"),
            token,
            state: run.join("state"),
            folder: pool.to_owned(),
            device,
            memory: args.memory,
            unplugged: vec![None; hosts.len()],
            hosts,
        })
    }

    /// The server's socket, which this process reaches.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The server's pool.
    pub(super) fn pool(&self) -> PathBuf {
        let device = self.folder.join(DEVICE);
        match self.memory {
            Memory::Folder => self.folder.clone(),
            Memory::Device => device,
            Memory::NotCoherent => format!("{},coherence=writeback", device.display()).into(),
        }
    }

    /// Where the server runs, if that is not this host.
    pub(super) fn server_host(&self) -> Option<&Host> {
        self.hosts.first()
    }

    /// What the server has to be told besides: where its state lies if not beside the regions, and how it is reached from other
    /// hosts.
    pub(super) fn server_options(&self) -> Vec<String> {
        let option = |name: &str, value: String| [name.to_owned(), value];
        let mut options = Vec::new();
        if self.device.is_some() {
            options.extend(option("--state-dir", self.state.display().to_string()));
        }
        if let Some(host) = self.server_host() {
            options.extend(option("--listen", format!("{}:{PORT}", host.address())));
            options.extend(option("--auth-token-file", self.token.display().to_string()));
        }
        options
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
        if let Some(device) = self.device.as_ref().filter(|_| index > 0) {
            command.args(["--device-map", &format!("{}={DEVICES_ELSEWHERE}/{DEVICE}", device.uuid)]);
        }
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

/// Makes a file that stands in for a device with room for so many bytes, and makes it a pool.
fn make_device(path: &Path, bytes: u64) -> Result<PoolIdentity, BenchError> {
    File::create_new(path)
        .and_then(|device| device.set_len(PoolHeader::AREA_LEN + bytes))
        .map_err(BenchError::system(format!("make {}", path.display())))?;
    let device = BareDevice::take(path).map_err(std::io::Error::other);
    Ok(device.map_err(BenchError::system(format!("make {} a pool", path.display())))?.init())
}
