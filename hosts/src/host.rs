//! One host: what it sees, what runs on it, and its cable.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, kill_process, set_parent_process_death_signal};

use crate::error::HostsError;
use crate::ip::ip;
use crate::namespaces::Namespaces;
use crate::network::Network;
use crate::view::View;

/// How long processes may take to end once they are killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A host before it starts.
#[derive(Debug)]
pub struct HostPlan<'a> {
    network: &'a Network,
    name: String,
    view: View,
}

impl<'a> HostPlan<'a> {
    pub(crate) fn new(network: &'a Network, name: &str) -> HostPlan<'a> {
        HostPlan { network, name: name.to_owned(), view: View::default() }
    }

    /// A folder of the machine that the host has as well, under the same path.
    pub fn shares(self, folder: impl Into<PathBuf>) -> HostPlan<'a> {
        let folder = folder.into();
        self.shares_as(folder.clone(), folder)
    }

    /// A folder of the machine that the host has under another path, which either exists or lies in `/dev/shm` or in what is
    /// hidden.
    pub fn shares_as(mut self, folder: impl Into<PathBuf>, at: impl Into<PathBuf>) -> HostPlan<'a> {
        self.view.shared.push((folder.into(), at.into()));
        self
    }

    /// A folder of the machine in the place of which the host has an empty one of its own, as it has of `/dev/shm`.
    pub fn hides(mut self, folder: impl Into<PathBuf>) -> HostPlan<'a> {
        self.view.hidden.push(folder.into());
        self
    }

    /// Starts the host.
    ///
    /// # Errors
    /// [`HostsError`] where the system refuses, or there is no such folder.
    pub fn start(self) -> Result<Host, HostsError> {
        let namespaces = Namespaces::make(|| self.view.mount())?;
        self.network.connect(&self.name, namespaces)
    }
}

/// A host that runs. All clones are the same host; it ends with the last, and with the last process on it.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    address: Ipv4Addr,
    namespaces: Arc<Namespaces>,
    router: Arc<Namespaces>,
}

impl Host {
    /// Plugs the cable in for the first time.
    pub(crate) fn connect(
        name: &str,
        number: u8,
        namespaces: Namespaces,
        router: Arc<Namespaces>,
    ) -> Result<Host, HostsError> {
        let namespaces = Arc::new(namespaces);
        let (router_address, address) = (Ipv4Addr::new(10, 0, number, 1), Ipv4Addr::new(10, 0, number, 2));
        let network = namespaces.network_path();
        let commands = format!(
            "link add to-{name} type veth peer name eth0 netns {network}\n\
             address add {router_address}/24 dev to-{name}\nlink set to-{name} up\n"
        );
        ip(&router, &commands)?;
        let commands = format!(
            "link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up\n\
             route add default via {router_address}\n"
        );
        ip(&namespaces, &commands)?;
        Ok(Host { inner: Arc::new(Inner { name: name.to_owned(), address, namespaces, router }) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where other hosts of the network find it.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// Has what a command starts run on this host. The process finds its program there, has `/` as its working directory,
    /// and is killed when the thread that starts it ends.
    pub fn place<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespaces = Arc::clone(&self.inner.namespaces);
        let move_in = move || {
            namespaces.enter()?;
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        };
        // SAFETY: the closure makes system calls, as a child of a process with threads may, and nothing else.
        unsafe { command.pre_exec(move_in) }
    }

    /// Pulls the cable out of the router. The host notices; whoever sends to it does not.
    ///
    /// # Errors
    /// [`HostsError`] where the system refuses.
    pub fn unplug(&self) -> Result<(), HostsError> {
        ip(&self.inner.router, &format!("link set to-{} down\n", self.inner.name))
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// [`HostsError`] where the system refuses.
    pub fn plug_in(&self) -> Result<(), HostsError> {
        ip(&self.inner.router, &format!("link set to-{} up\n", self.inner.name))
    }

    /// Pulls the cable and kills everything that runs here, so that nobody hears of it.
    ///
    /// # Errors
    /// [`HostsError::Alive`] where something does not end, and those of the system.
    pub fn power_off(&self) -> Result<(), HostsError> {
        self.unplug()?;
        let began = Instant::now();
        loop {
            let processes = self.inner.namespaces.processes()?;
            for process in &processes {
                match kill_process(*process, Signal::KILL) {
                    // It has ended since.
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => return Err(HostsError::system("kill a process")(errno)),
                }
            }
            match processes.first() {
                None => return Ok(()),
                Some(process) if began.elapsed() > END_LIMIT => {
                    let process = format!("process {} on the host {}", process.as_raw_pid(), self.name());
                    return Err(HostsError::Alive(process));
                }
                Some(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}
