//! How processes of the bench talk: a line of JSON each, over pipes.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes one line, at once.
pub(crate) fn send<T: Serialize + ?Sized>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// The next line; `None` where the other side has ended.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_as_they_were_sent() {
        let messages = ["", "two\nlines", "ünï"];
        let mut pipe = Vec::new();
        messages.iter().for_each(|message| send(&mut pipe, message).unwrap());
        let mut pipe = pipe.as_slice();
        for message in messages {
            assert_eq!(receive::<String>(&mut pipe).unwrap().as_deref(), Some(message));
        }
        assert_eq!(receive::<String>(&mut pipe).unwrap(), None, "the other side has ended");
    }

    #[test]
    fn half_a_line_is_an_error() {
        assert!(receive::<String>(&mut &b"\"half"[..]).is_err());
    }
}
