//! The metadata server of maru, as a library: [`run`] is the whole server, [`service::Service`] the part without I/O.

mod configuration;
mod counters;
mod error;
pub mod examination;
mod files;
pub mod journal;
mod latency;
mod metrics;
mod net;
mod options;
mod output;
pub mod pool;
mod random;
mod reports;
pub mod service;
pub mod state;

pub use configuration::{Configuration, ConfigurationError};
pub use error::ServerError;
pub use net::{Reread, run};
pub use options::{LogFormat, Options};
pub use output::Output;
