//! Several hosts on one machine: each has a network stack, a boot and a `/dev/shm` of its own, and a cable that can be
//! pulled.
//!
//! A [`Network`] is a router in a network namespace of its own. Each [`Host`] is a network namespace with a cable to it, and
//! a mount namespace with a view of the file system that is not the machine's: what it shares with others it says.
//!
//! Namespaces have no names. Descriptors of this process keep them, and what runs in them dies with it, so nothing is left
//! when it ends, however it ends. It takes root, or what `unshare --map-root-user` makes of a user, and iproute2.

mod boot;
mod error;
mod host;
mod ip;
mod namespaces;
mod network;
mod view;

pub use error::HostsError;
pub use host::{Host, HostPlan};
pub use network::Network;
