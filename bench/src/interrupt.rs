//! Ctrl-C: noticed, so that memory in /dev/shm does not outlive a sudden death.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::BenchError;

/// Set once somebody presses Ctrl-C or asks the process to end.
///
/// # Errors
/// [`BenchError`] where signals can't be watched for.
pub(crate) fn flag() -> Result<&'static AtomicBool, BenchError> {
    static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = INTERRUPTED.get() {
        return Ok(flag);
    }
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(BenchError::system("watch for signals"))?;
    }
    Ok(INTERRUPTED.get_or_init(|| flag))
}
