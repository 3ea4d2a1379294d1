//! The machine that figures are of.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What a reader of figures has to know of the machine they were measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    /// The kernel's release.
    kernel: String,
    /// The processor's model.
    processor: String,
    /// Processors that this process may use.
    cpus: usize,
}

impl Machine {
    /// The machine that this process runs on.
    pub(crate) fn this() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split(':').nth(1));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or("unknown processor", str::trim).to_owned(),
            cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, {}, {} CPUs", self.kernel, self.processor, self.cpus)
    }
}
