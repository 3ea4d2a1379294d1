//! A server on one host, and other hosts that have its pool's memory as well.

use std::fs;
use std::path::{Path, PathBuf};

use maru_hosts::{Host, HostPlan, Network};
use maru_proto::PoolUuid;

use crate::{Authority, ClientConfig, ClientProcess, Command, Reply, ServerProcess, make_device};

/// What clients of other hosts have to present.
const TOKEN: &str = "the secret of all hosts";

/// Where the server listens: on a host of its own, every port is free.
const PORT: u16 = 5555;

/// The file that stands in for the device of memory.
const DEVICE: &str = "dax0.0";
/// The folder in which other hosts have it.
const DEVICES_ELSEWHERE: &str = "/dev/shm/devices-of-all-hosts";
/// How much memory it has.
const DEVICE_BYTES: u64 = 16 << 20;

/// What the server's pool is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// A device that all hosts have, each under a name of its own, and whose caches follow each other.
    #[default]
    Coherent,
    /// The same, where they do not.
    NotCoherent,
    /// The server's host's own, which others do not have.
    OfItsHost,
}

/// What a cluster is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterPlan {
    /// What the server's pool is made of.
    pub memory: Memory,
    /// Whether what goes over the network is encrypted.
    pub tls: bool,
}

/// The server and its host. It sees all of the server's folder; other hosts see the device at most, and no socket.
#[derive(Debug)]
pub struct Cluster {
    /// The server.
    pub server: ServerProcess,
    /// The server's host.
    pub host: Host,
    network: Network,
    options: Vec<String>,
    /// The folder of the device on the server's host.
    devices: PathBuf,
    uuid: PoolUuid,
    authority: Option<Authority>,
}

impl Cluster {
    /// Starts a server with further options on a host of its own, with a device for a pool, or says why there can be none.
    ///
    /// # Panics
    /// When the server does not serve, or the host does not start though there can be one.
    pub fn start(options: &[&str]) -> Option<Cluster> {
        Cluster::start_as(ClusterPlan::default(), options)
    }

    /// The same according to a plan.
    ///
    /// # Panics
    /// When the server does not serve, or the host does not start though there can be one.
    pub fn start_as(plan: ClusterPlan, options: &[&str]) -> Option<Cluster> {
        let network = Network::new().inspect_err(|error| eprintln!("skipped: {error}")).ok()?;
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder can be made");
        let host = network.host("server").shares(folder.path()).start().expect("a host can be started");
        let token = folder.path().join("token");
        fs::write(&token, TOKEN).expect("a file can be written");
        let devices = folder.path().join("devices");
        fs::create_dir(&devices).expect("a folder can be made");
        let uuid = make_device(&devices.join(DEVICE), DEVICE_BYTES);
        let pool = match plan.memory {
            Memory::Coherent => format!("devdax:{}", devices.join(DEVICE).display()),
            Memory::NotCoherent => format!("devdax:{},coherence=writeback", devices.join(DEVICE).display()),
            Memory::OfItsHost => folder.path().join("pool").display().to_string(),
        };
        let mut own = vec![
            "--listen".to_owned(),
            format!("{}:{PORT}", host.address()),
            "--auth-token-file".to_owned(),
            token.display().to_string(),
            "--pool".to_owned(),
            pool,
            "--state-dir".to_owned(),
            folder.path().join("state").display().to_string(),
        ];
        let authority = plan.tls.then(Authority::new);
        if let Some(authority) = &authority {
            let signed = authority.sign(&host.address().to_string());
            let path = |path: &Path| path.display().to_string();
            own.extend(["--tls-cert".to_owned(), path(&signed.certificate)]);
            own.extend(["--tls-key".to_owned(), path(&signed.key)]);
        }
        let options =
            own.into_iter().chain(options.iter().map(|option| (*option).to_owned())).collect::<Vec<_>>();
        let borrowed = options.iter().map(String::as_str).collect::<Vec<_>>();
        let server = ServerProcess::start_on(&host, folder, &borrowed);
        Some(Cluster { server, host, network, options, devices, uuid, authority })
    }

    /// Starts a host that has the device.
    ///
    /// # Panics
    /// When it does not start.
    pub fn host(&self, name: &str) -> Host {
        self.host_with(name, &self.devices)
    }

    /// Starts a host that has a folder of the machine in the place of the one with the device.
    ///
    /// # Panics
    /// When it does not start.
    pub fn host_with(&self, name: &str, devices: &Path) -> Host {
        self.plan(name).shares_as(devices, DEVICES_ELSEWHERE).start().expect("a host can be started")
    }

    /// Plans a host that has nothing of the server's.
    pub fn plan(&self, name: &str) -> HostPlan<'_> {
        self.network.host(name)
    }

    /// What identifies the device.
    pub fn uuid(&self) -> PoolUuid {
        self.uuid
    }

    /// The device on the server's host, and in the tests' process.
    pub fn device(&self) -> PathBuf {
        self.devices.join(DEVICE)
    }

    /// The device on other hosts.
    pub fn device_elsewhere() -> PathBuf {
        Path::new(DEVICES_ELSEWHERE).join(DEVICE)
    }

    /// A client with small pages that reaches the server over the network, presents the token, and knows where the device lies on
    /// other hosts.
    pub fn config(&self, instance_id: &str) -> ClientConfig {
        let scheme = if self.authority.is_some() { "tls" } else { "tcp" };
        ClientConfig {
            address: format!("{scheme}://{}:{PORT}", self.host.address()),
            tls_ca: self.authority.as_ref().map(Authority::certificate),
            auth_token: TOKEN.to_owned(),
            device_map: format!("{}={}", self.uuid, Cluster::device_elsewhere().display()),
            ..ClientConfig::new(&self.server.socket(), instance_id)
        }
    }

    /// Starts a client like that on a host, and connects it.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect(&self, host: &Host, instance_id: &str) -> ClientProcess {
        let mut client = ClientProcess::start_on(host);
        assert_eq!(client.call(Command::Connect(self.config(instance_id))), Reply::Done);
        client
    }

    /// Kills the server and starts another on the same pool and address.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn kill_and_restart_server(&mut self) {
        self.server.kill();
        self.restart_server(&[]);
    }

    /// Starts another server in the place of one that ended, with options that the first did not have.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn restart_server(&mut self, more: &[&str]) {
        let options = self.options.iter().map(String::as_str).chain(more.iter().copied());
        self.server.restart(&options.collect::<Vec<_>>());
    }
}
