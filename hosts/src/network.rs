//! What is between hosts: a router, to which each has a cable of its own.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::HostsError;
use crate::host::{Host, HostPlan};
use crate::ip::ip;
use crate::namespaces::Namespaces;

/// Has a kernel pass on packets.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Hosts that reach each other, and nobody else. Others of this machine may have the same names and addresses.
#[derive(Debug)]
pub struct Network {
    router: Arc<Namespaces>,
    hosts: AtomicU8,
}

impl Network {
    /// A network without hosts.
    ///
    /// # Errors
    /// [`HostsError`], where this machine or this user can't have any.
    pub fn new() -> Result<Network, HostsError> {
        let router = Namespaces::make(|| {
            fs::write(FORWARD, "1").map_err(HostsError::file("write", FORWARD.as_ref()))
        })?;
        let router = Arc::new(router);
        // What is sent to a host whose cable is pulled is lost without a word. Cables are tried out: the kernel may have none.
        let commands =
            "route add blackhole default\nlink add trial type veth peer name end\nlink del trial\n";
        ip(&router, commands)?;
        Ok(Network { router, hosts: AtomicU8::new(0) })
    }

    /// Plans a host with a name of at most 11 letters that no other has.
    pub fn host(&self, name: &str) -> HostPlan<'_> {
        HostPlan::new(self, name)
    }

    /// Connects a host.
    pub(crate) fn connect(&self, name: &str, namespaces: Namespaces) -> Result<Host, HostsError> {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        Host::connect(name, number, namespaces, Arc::clone(&self.router))
    }
}
