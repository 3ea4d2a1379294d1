//! The files that results are written to.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::BenchError;

/// Writes a file.
///
/// # Errors
/// [`BenchError`], naming the file.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text).map_err(BenchError::system(format!("write {}", path.display())))
}

/// Writes figures as JSON.
///
/// # Errors
/// Those of [`write()`].
pub(crate) fn write_json(path: &Path, figures: &impl Serialize) -> Result<(), BenchError> {
    let mut text = serde_json::to_string_pretty(figures).expect("plain figures are always JSON");
    text.push('\n');
    write(path, &text)
}
