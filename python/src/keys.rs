//! Keys of Python as digests.

use maru_client::{KeyDigest, MaruHandler};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::error::exception;

/// The digest of a `str` or `bytes`, hashed where its bytes lie. Text and the same bytes in UTF-8 are one key.
///
/// # Errors
/// `TypeError` for anything else, above all numbers: `7` and `"7"` would be two keys that look like one.
pub(crate) fn digest(handler: &MaruHandler, key: &Bound<'_, PyAny>) -> PyResult<KeyDigest> {
    let digest = if let Ok(text) = key.cast::<PyString>() {
        handler.digest(text.to_str()?)
    } else if let Ok(bytes) = key.cast::<PyBytes>() {
        handler.digest(bytes.as_bytes())
    } else {
        let name = key.get_type().name()?;
        return Err(PyTypeError::new_err(format!("a key is a str or bytes, not {name}")));
    };
    digest.map_err(|error| exception(&error))
}

/// The digests of all keys of an iterable.
///
/// # Errors
/// Those of [`digest`], and `TypeError` for one `str`, whose letters would be keys.
pub(crate) fn digests(handler: &MaruHandler, keys: &Bound<'_, PyAny>) -> PyResult<Vec<KeyDigest>> {
    if keys.is_instance_of::<PyString>() || keys.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err("a batch takes a list of keys, not one key"));
    }
    let mut digests = Vec::with_capacity(keys.len().unwrap_or(0));
    for key in keys.try_iter()? {
        digests.push(digest(handler, &key?)?);
    }
    Ok(digests)
}
