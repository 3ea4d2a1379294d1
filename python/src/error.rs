//! Errors of the client as Python exceptions.

use maru_client::Error;
use pyo3::create_exception;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

create_exception!(
    maru,
    MaruError,
    PyRuntimeError,
    "The server could not be asked, or said no: the connection is lost, the time is over, the session has ended, a chunk that \
     was retrieved is not certain to be what it was."
);

/// The exception for an error: what the caller got wrong is a `ValueError` or `KeyError`, and so is a pool without room,
/// as callers of the original expect; everything else is a [`MaruError`].
pub(crate) fn exception(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::InvalidKey { .. }
        | Error::BatchMismatch { .. }
        | Error::PageTooLarge { .. }
        | Error::PoolExhausted
        | Error::InvalidConfig(_)
        | Error::WrongPageState { .. } => PyValueError::new_err(text),
        Error::RegionNotFound { .. } => PyKeyError::new_err(text),
        _ => MaruError::new_err(text),
    }
}
