//! A client process that does what a test tells it to.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use maru_hosts::Host;

use crate::{ClientConfig, Command, Reply, ServerProcess, Stat, binary};

/// A running client, killed at the end.
#[derive(Debug)]
pub struct ClientProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl ClientProcess {
    /// Starts a client that is not connected.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> ClientProcess {
        ClientProcess::start_by(std::process::Command::new(binary("maru-test-client")))
    }

    /// Starts a client on a host; not connected.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_on(host: &Host) -> ClientProcess {
        let mut command = std::process::Command::new(binary("maru-test-client"));
        host.place(&mut command);
        ClientProcess::start_by(command)
    }

    /// Starts a client by a command that may have an environment of its own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_by(mut command: std::process::Command) -> ClientProcess {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client starts");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        ClientProcess { child, stdin, stdout }
    }

    /// Starts a client with small pages and connects it.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect(server: &ServerProcess, instance_id: &str) -> ClientProcess {
        ClientProcess::connect_with(ClientConfig::new(&server.socket(), instance_id))
    }

    /// Starts a client and connects it.
    ///
    /// # Panics
    /// When it can't connect.
    pub fn connect_with(config: ClientConfig) -> ClientProcess {
        let mut client = ClientProcess::start();
        assert_eq!(client.call(Command::Connect(config)), Reply::Done);
        client
    }

    /// Has the client do one step.
    ///
    /// # Panics
    /// When it dies over it.
    #[expect(clippy::needless_pass_by_value, reason = "a step is written where it is called")]
    pub fn call(&mut self, command: Command) -> Reply {
        self.send(&command);
        self.reply().unwrap_or_else(|| panic!("the client died over {command:?}"))
    }

    /// Tells the client to do one step, without waiting for it.
    ///
    /// # Panics
    /// When it is dead.
    pub fn send(&mut self, command: &Command) {
        let line = serde_json::to_string(command).expect("a command is JSON");
        writeln!(self.stdin, "{line}").expect("the client lives");
    }

    /// What came of the oldest step that was told and not answered; `None` when the client died.
    ///
    /// # Panics
    /// When the client answers anything but a reply.
    pub fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the client's answers can be read");
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect("the client answers in JSON"))
    }

    /// A step whose answer is one word a key.
    ///
    /// # Panics
    /// When it is not.
    pub fn each(&mut self, command: Command) -> Vec<String> {
        match self.call(command) {
            Reply::Each(words) => words,
            other => panic!("expected a word for each key, got {other:?}"),
        }
    }

    /// A step whose answer is a number.
    ///
    /// # Panics
    /// When it is not.
    pub fn count(&mut self, command: Command) -> usize {
        match self.call(command) {
            Reply::Count(count) => count,
            other => panic!("expected a number, got {other:?}"),
        }
    }

    /// A step that is refused; the text that a user would see.
    ///
    /// # Panics
    /// When it is not refused.
    pub fn refused(&mut self, command: Command) -> String {
        match self.call(command) {
            Reply::Failed(text) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// The server's figures.
    ///
    /// # Panics
    /// When the server does not give them.
    pub fn stats(&mut self) -> Stat {
        match self.call(Command::Stats) {
            Reply::Stats(stats) => stats,
            other => panic!("expected figures, got {other:?}"),
        }
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once, as SIGKILL does.
    ///
    /// # Panics
    /// When it can't be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the client can be killed");
        self.child.wait().expect("the client can be waited for");
    }

    /// Waits until the process ended by itself; the signal that ended it.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn signal(mut self) -> Option<i32> {
        let status = self.child.wait().expect("the client can be waited for");
        std::os::unix::process::ExitStatusExt::signal(&status)
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
