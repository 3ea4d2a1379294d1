//! How everything here is measured: one loop, one recorder, one way to report.

mod alone;
pub(crate) mod channel;
pub(crate) mod connection;
mod exact;
pub(crate) mod hgrm;
mod multiplex;
pub(crate) mod pace;
pub(crate) mod percentiles;
pub(crate) mod plot;
pub(crate) mod progress;
pub(crate) mod recorder;
pub(crate) mod run;
