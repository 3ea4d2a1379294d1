//! The real `maru`, and what it says.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod terminal;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use maru_tests::ServerProcess;
use serde_json::Value;

/// What one run of `maru` said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    fn of(output: Output) -> Said {
        let text = |bytes| String::from_utf8(bytes).expect("it speaks UTF-8");
        Said {
            code: output.status.code().expect("it ends by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The one object that it said.
    pub fn json(&self) -> Value {
        assert_eq!(self.stderr, "");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The value of a line `name  value`.
    pub fn line(&self, name: &str) -> &str {
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
        line.unwrap_or_else(|| panic!("no {name:?} in {}", self.stdout)).trim()
    }
}

/// A command that asks a socket.
pub fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maru"));
    command.arg("--socket").arg(socket).args(arguments).stdin(Stdio::null());
    command
}

/// Runs `maru` at a socket.
pub fn maru_at(socket: &Path, arguments: &[&str]) -> Said {
    Said::of(command(socket, arguments).output().expect("maru starts"))
}

/// Runs `maru` on a server.
pub fn maru(server: &ServerProcess, arguments: &[&str]) -> Said {
    maru_at(&server.socket(), arguments)
}

/// Runs a command that is made by [`command`].
pub fn run(command: &mut Command) -> Said {
    Said::of(command.output().expect("maru starts"))
}

/// The only element of a list in an object.
pub fn only<'a>(object: &'a Value, list: &str) -> &'a Value {
    match object[list].as_array().map(Vec::as_slice) {
        Some([one]) => one,
        other => panic!("expected one of {list}, got {other:?}"),
    }
}
