//! Recorded requests: one JSON object a line, in the order of time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::error::BenchError;

/// Tokens of a block, which the ids of a trace stand for.
const BLOCK_TOKENS: u64 = 512;

/// One request as it is recorded. Lines may have further fields.
#[derive(Debug, Deserialize)]
struct Line {
    /// When it came, in ms since the trace began.
    timestamp: u64,
    /// Tokens of its input.
    input_length: u64,
    /// Tokens of the answer: recorded, and so required, but nothing of it is cached before the next turn sends it.
    #[serde(rename = "output_length")]
    _output_length: u64,
    /// The blocks of its input, the last of which may be partial. Equal ids are equal prefixes.
    hash_ids: Vec<u64>,
}

/// The chunks of the first `limit` requests in the trace; blank lines are no requests.
///
/// # Errors
/// [`BenchError`] that names the file, and the line if one is bad.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<Vec<u64>>, BenchError> {
    let unreadable = |source| BenchError::Trace { path: path.to_owned(), source };
    let reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut requests = Vec::new();
    let mut previous = 0;
    for (index, text) in reader.lines().enumerate() {
        if requests.len() == limit {
            break;
        }
        let text = text.map_err(unreadable)?;
        if text.trim().is_empty() {
            continue;
        }
        let line = parse(&text, previous).map_err(|reason| BenchError::TraceLine {
            path: path.to_owned(),
            line: index + 1,
            reason,
        })?;
        previous = line.timestamp;
        requests.push(line.hash_ids);
    }
    if requests.is_empty() { Err(BenchError::EmptyTrace(path.to_owned())) } else { Ok(requests) }
}

/// The request of one line that comes after one with the timestamp `previous`; else what is wrong with it.
fn parse(text: &str, previous: u64) -> Result<Line, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if line.timestamp < previous {
        return Err(format!(
            "timestamp {} after {previous}; lines must be in the order of time",
            line.timestamp
        ));
    }
    let (ids, blocks) = (super::count(line.hash_ids.len()), line.input_length.div_ceil(BLOCK_TOKENS));
    if ids != blocks {
        let tokens = line.input_length;
        return Err(format!(
            "{ids} hash_ids, but an input of {tokens} tokens has {blocks} blocks of {BLOCK_TOKENS}"
        ));
    }
    if ids == 0 { Err("a request without input".to_owned()) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = r#"{"timestamp": 5, "input_length": 1025, "output_length": 9, "hash_ids": [4, 5, 6]}"#;

    /// What reading a trace of this text gives, the folder's name left out of errors.
    fn read_text(text: &str, limit: usize) -> Result<Vec<Vec<u64>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        fs::write(&path, text).unwrap();
        read(&path, limit)
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn requests_come_in_order_up_to_the_limit() {
        let second = r#"{"timestamp":5,"input_length":1,"output_length":1,"hash_ids":[4],"model":"any"}"#;
        let text = format!("{GOOD}\n\n{second}\n");
        assert_eq!(read_text(&text, usize::MAX).unwrap(), [vec![4, 5, 6], vec![4]]);
        assert_eq!(read_text(&text, 1).unwrap(), [vec![4, 5, 6]]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_file() {
        for (bad, reason) in [
            ("{", "EOF while parsing"),
            (r#"{"timestamp": 5}"#, "missing field `input_length`"),
            (r#"{"timestamp":6,"input_length":1,"hash_ids":[4]}"#, "missing field `output_length`"),
            (r#"{"timestamp":6,"input_length":1,"output_length":1,"hash_ids":[-4]}"#, "invalid value"),
            (r#"{"timestamp":6,"input_length":1,"output_length":1,"hash_ids":["a"]}"#, "invalid type"),
            (r#"{"timestamp":4,"input_length":1,"output_length":1,"hash_ids":[4]}"#, "timestamp 4 after 5"),
            (
                r#"{"timestamp":6,"input_length":513,"output_length":1,"hash_ids":[4]}"#,
                "1 hash_ids, but an input of 513 tokens has 2 blocks of 512",
            ),
            (
                r#"{"timestamp":6,"input_length":0,"output_length":1,"hash_ids":[]}"#,
                "a request without input",
            ),
        ] {
            let error = read_text(&format!("{GOOD}\n\n{bad}\n{GOOD}\n"), usize::MAX).unwrap_err();
            assert!(error.starts_with("t.jsonl, line 3: ") && error.contains(reason), "{bad}: {error}");
        }
    }

    #[test]
    fn lines_past_the_limit_are_not_looked_at() {
        assert!(read_text(&format!("{GOOD}\nnonsense\n"), 1).is_ok());
    }

    #[test]
    fn a_trace_without_requests_is_an_error() {
        assert_eq!(read_text("\n\n", usize::MAX).unwrap_err(), "the trace t.jsonl has no requests");
    }

    #[test]
    fn a_missing_trace_is_named() {
        let error = read(Path::new("no/such/trace.jsonl"), 1).unwrap_err().to_string();
        assert!(error.starts_with("can't read the trace no/such/trace.jsonl: "), "{error}");
    }
}
