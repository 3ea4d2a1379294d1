//! A server on one host, and other hosts that have its pool's memory as well.

use std::fs;

use maru_hosts::{Host, HostPlan, Network};

use crate::{ClientConfig, ClientProcess, Command, Reply, ServerProcess};

/// What clients of other hosts have to present.
const TOKEN: &str = "the secret of all hosts";

/// Where the server listens: on a host of its own, every port is free.
const PORT: u16 = 5555;

/// The server and its host. It sees all of the server's folder; other hosts see the pool at most, and no socket.
#[derive(Debug)]
pub struct Cluster {
    /// The server.
    pub server: ServerProcess,
    /// The server's host.
    pub host: Host,
    network: Network,
    options: Vec<String>,
}

impl Cluster {
    /// Starts a server with further options on a host of its own, or says why there can be none.
    ///
    /// # Panics
    /// When the server does not serve, or the host does not start though there can be one.
    pub fn start(options: &[&str]) -> Option<Cluster> {
        let network = Network::new().inspect_err(|error| eprintln!("skipped: {error}")).ok()?;
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder can be made");
        let host = network.host("server").shares(folder.path()).start().expect("a host can be started");
        let token = folder.path().join("token");
        fs::write(&token, TOKEN).expect("a file can be written");
        let own = [
            "--listen".to_owned(),
            format!("{}:{PORT}", host.address()),
            "--auth-token-file".to_owned(),
            token.display().to_string(),
        ];
        let options =
            own.into_iter().chain(options.iter().map(|option| (*option).to_owned())).collect::<Vec<_>>();
        let borrowed = options.iter().map(String::as_str).collect::<Vec<_>>();
        let server = ServerProcess::start_on(&host, folder, &borrowed);
        Some(Cluster { server, host, network, options })
    }

    /// Starts a host that has the pool under the path that the server has it under.
    ///
    /// # Panics
    /// When it does not start.
    pub fn host(&self, name: &str) -> Host {
        self.plan(name).shares(self.server.pool()).start().expect("a host can be started")
    }

    /// Plans a host that has nothing of the server's.
    pub fn plan(&self, name: &str) -> HostPlan<'_> {
        self.network.host(name)
    }

    /// A client with small pages that reaches the server over the network and presents the token.
    pub fn config(&self, instance_id: &str) -> ClientConfig {
        ClientConfig {
            address: format!("tcp://{}:{PORT}", self.host.address()),
            auth_token: TOKEN.to_owned(),
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
        self.restart_server();
    }

    /// Starts another server in the place of one that ended.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn restart_server(&mut self) {
        self.server.restart(&self.options.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
