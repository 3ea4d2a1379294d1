//! A real server process, and a peer that speaks raw frames to it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use maru_proto::{
    ConnectionKind, DEFAULT_MAX_BODY, Flags, Frame, FrameStatus, Head, HelloRequest, HelloResponse,
    InstanceId, Opcode, SessionToken, Step, decode, encode, max_response_body,
};
use zerocopy::{Immutable, IntoBytes};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server process with a socket and a pool of its own; killed at the end.
pub struct Server {
    child: Child,
    log: mpsc::Receiver<String>,
    at_start: Vec<String>,
    pub folder: tempfile::TempDir,
}

impl Server {
    /// Starts a server with further options, and waits until it serves.
    pub fn start(options: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().expect("a temporary folder can be made"), options)
    }

    /// The same in a folder that may hold something already.
    pub fn start_in(folder: tempfile::TempDir, options: &[&str]) -> Server {
        let mut command = Server::command(&folder, options);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the server starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut server = Server { child, log, at_start: Vec::new(), folder };
        server.at_start = server.wait_for_log("serving");
        server
    }

    /// The command that starts a server in a folder.
    pub fn command(folder: &tempfile::TempDir, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maru-server"));
        command.arg("--socket").arg(folder.path().join("maru.sock"));
        command
            .arg("--pool-dir")
            .arg(folder.path().join("pool"))
            .args(["--pool-size", "16MiB"])
            .args(options);
        command
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("maru.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log that contains a text; the log up to it.
    pub fn wait_for_log(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while seen.last().is_none_or(|line: &String| !line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => seen.push(line),
                Err(_) => panic!("the server did not log {text:?}, only {seen:#?}"),
            }
        }
        seen
    }

    /// Where it listens by TCP, from its log.
    pub fn tcp_address(&self) -> String {
        let serving = self.at_start.last().expect("there is a line that says it serves");
        serving.split_once("tcp=").expect("started with --listen").1.trim().to_owned()
    }

    /// Whether its log said this before it served.
    pub fn said_at_start(&self, text: &str) -> bool {
        self.at_start.iter().any(|line| line.contains(text))
    }

    /// Connects without saying anything.
    pub fn connect(&self) -> Peer {
        let stream = UnixStream::connect(self.socket()).expect("the server accepts");
        Peer::new(Box::new(stream.try_clone().expect("a socket can be cloned")), Some(stream))
    }

    /// Connects and says HELLO as a new instance.
    pub fn hello(&self, name: &str) -> (Peer, HelloResponse) {
        let mut peer = self.connect();
        let hello = peer.hello(name, SessionToken::NONE);
        (peer, hello)
    }

    /// Sends SIGTERM and waits for the end; whether the server called it a success.
    pub fn terminate(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server lives");
        self.wait_for_end()
    }

    /// Waits until the process ends by itself; whether it called that a success.
    pub fn wait_for_end(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server did not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// One connection that says what it is told to.
pub struct Peer {
    stream: Box<dyn ReadWrite>,
    unix: Option<UnixStream>,
    input: Vec<u8>,
    next_id: u32,
}

/// An owned response.
#[derive(Debug)]
pub struct Response {
    pub status: FrameStatus,
    pub opcode: Option<Opcode>,
    pub id: u32,
    pub body: Vec<u8>,
}

impl Peer {
    fn new(stream: Box<dyn ReadWrite>, unix: Option<UnixStream>) -> Peer {
        if let Some(unix) = &unix {
            unix.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        }
        Peer { stream, unix, input: Vec::new(), next_id: 1 }
    }

    pub fn tcp(address: &str) -> Peer {
        let stream = std::net::TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Peer::new(Box::new(stream), None)
    }

    /// The socket itself.
    pub fn unix(&self) -> &UnixStream {
        self.unix.as_ref().expect("a Unix connection")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// A request as bytes.
    pub fn frame<T: IntoBytes + Immutable>(opcode: Opcode, flags: Flags, id: u32, records: &[T]) -> Vec<u8> {
        let mut bytes = vec![0; 16 + size_of_val(records).next_multiple_of(8)];
        encode(&mut bytes, Head::request(opcode, flags, id), records).expect("the room is made");
        bytes
    }

    /// Sends a request and waits for its response.
    pub fn call<T: IntoBytes + Immutable>(
        &mut self,
        opcode: Opcode,
        flags: Flags,
        records: &[T],
    ) -> Response {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&Peer::frame(opcode, flags, id, records));
        let response = self.response();
        assert_eq!((response.opcode, response.id), (Some(opcode), id));
        response
    }

    pub fn hello(&mut self, name: &str, session: SessionToken) -> HelloResponse {
        let id = InstanceId::new(name).expect("a valid name");
        let response =
            self.call(Opcode::Hello, Flags::NONE, &[HelloRequest::new(id, ConnectionKind::Data, session)]);
        assert_eq!(response.status, FrameStatus::Ok);
        zerocopy::FromBytes::read_from_bytes(&response.body).expect("a HELLO response")
    }

    /// The next response.
    pub fn response(&mut self) -> Response {
        self.next().expect("the server answers, it did not close")
    }

    /// The next response; `None` when the server closed the connection instead.
    pub fn next(&mut self) -> Option<Response> {
        loop {
            match decode(&self.input, max_response_body(DEFAULT_MAX_BODY)).expect("the server sends frames") {
                Step::Frame { frame, consumed } => {
                    let response = owned(&frame);
                    self.input.drain(..consumed);
                    return Some(response);
                }
                Step::Need(_) => {}
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.input.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("waiting for the server: {error}"),
            }
        }
    }
}

fn owned(frame: &Frame<'_>) -> Response {
    assert!(frame.flags().contains(Flags::RESPONSE));
    Response {
        status: frame.status(),
        opcode: frame.opcode(),
        id: frame.request_id(),
        body: frame.body().to_vec(),
    }
}
