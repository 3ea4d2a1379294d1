//! The native part of maru's Python packages: the client crate, and memory as Python buffers. It hands out plain values;
//! what users see is written in Python around it.

mod answers;
mod client;
mod error;
mod held;
mod keys;
mod log;
mod memory;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::answers::MemoryInfo;
    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::error::MaruError;
    #[pymodule_export]
    use super::log::{next_log_event, start_log, stop_log};
    #[pymodule_export]
    use super::memory::{Memory, address, forked};

    use super::{Bound, PyModule, PyResult};
    use pyo3::types::PyModuleMethods;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::client::init_runtime();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
