//! `torture`: a real server with a pool that is far too small, real client processes that do everything at random, and
//! `kill -9`; on one host, or on several whose cables are pulled.
//!
//! What lies under a key follows from the key, so whoever holds a guard knows every byte that it must read. Clients check
//! what they were promised as they go; what they were told and nobody took back passes to their successors, and at the end
//! to an inspector, who also sees to it that no pin and no page is lost.

mod client;
mod counts;
mod holdings;
mod inspector;
mod key;
mod look;
mod operations;
mod protocol;
mod report;
mod site;
mod supervisor;
mod watcher;
mod worker;

pub(crate) use key::PRIVATE;
pub(crate) use supervisor::run;
pub(crate) use worker::run as work;
