//! The server's figures for Prometheus: what they are at one moment, how they are written, and where they are fetched.
//!
//! Whoever fetches them waits on a thread of its own. It rings for a [`Snapshot`] and the serving thread makes one between
//! frames, a bounded part at a time; how long anybody takes to read the text is nothing that it could notice.

mod endpoint;
mod exposition;
mod snapshot;

pub(crate) use endpoint::{Bell, start};
pub(crate) use snapshot::{Restored, Snapshot};
