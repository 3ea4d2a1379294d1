//! The harness of the tests across processes: a real server, and real clients that do what they are told.
//!
//! [`ServerProcess`] starts the `maru-server` that was built into the same folder; [`ClientProcess`] starts a
//! `maru-test-client` and speaks [`Command`]s and [`Reply`]s to it, one line of JSON each. A [`Cluster`] has them on hosts of
//! their own.

mod certificates;
mod client;
mod cluster;
mod command;
mod content;
mod device;
mod handler;
mod proxy;
mod scrape;
mod server;
mod sever;
mod wire;

pub use certificates::{Authority, Certificate};
pub use client::ClientProcess;
pub use cluster::{Cluster, ClusterPlan, Memory};
pub use command::{ClientConfig, Command, Reply, Stat};
pub use content::{fill, is_intact};
pub use device::make_device;
pub use handler::{PAGE, config, connect, stat, store};
pub use proxy::{Direction, Proxy};
pub use scrape::{Sample, Scrape, get};
pub use server::ServerProcess;
pub use sever::sever;
pub use wire::WireClient;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A binary of this workspace, from the folder that this test was built into.
///
/// # Panics
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let mut folder = test.parent().expect("the test lies in a folder");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("deps lies in the profile's folder");
    }
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}
