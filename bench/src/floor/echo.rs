//! The least that answering over a socket takes: a plain blocking server that sends so many bytes for so many.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::{EchoArgs, ServerArgs};
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::measure::run::Protocol;
use crate::placement::start_on;
use crate::target::fresh_folder;

/// How long the server may take until it accepts.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Runs the server: a thread a connection. Each begins by telling the bytes of its requests and of its answers.
pub(crate) fn serve(args: &EchoArgs) -> Result<(), BenchError> {
    let listener = UnixListener::bind(&args.socket).map_err(BenchError::system("listen"))?;
    for stream in listener.incoming() {
        let mut stream = stream.map_err(BenchError::system("accept"))?;
        std::thread::spawn(move || answer(&mut stream));
    }
    Ok(())
}

fn answer(stream: &mut UnixStream) -> io::Result<()> {
    let mut sizes = [0; 16];
    stream.read_exact(&mut sizes)?;
    let size = |half: &[u8]| usize::from_le_bytes(half.try_into().expect("half of 16 bytes"));
    let (request, reply) = (size(&sizes[..8]), size(&sizes[8..]));
    let mut input = vec![0; request.max(64 * 1024)];
    let mut output = Vec::new();
    let mut waiting = 0;
    loop {
        let read = stream.read(&mut input)?;
        if read == 0 {
            return Ok(());
        }
        waiting += read;
        output.resize(waiting / request * reply, 0);
        waiting %= request;
        // One write for all requests that were read at once.
        stream.write_all(&output)?;
    }
}

/// The server as a process of its own, like the one that it is compared with.
#[derive(Debug)]
pub(crate) struct EchoServer {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl EchoServer {
    /// Starts the server and waits until it accepts.
    pub(crate) fn start(args: &ServerArgs) -> Result<EchoServer, BenchError> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let socket = folder.path().join("echo.sock");
        let this = std::env::current_exe().map_err(BenchError::system("find this program"))?;
        let child = start_on(args.pin_server.as_ref(), || {
            let mut command = Command::new(this);
            command.args(["echo", "--socket"]).arg(&socket).stdin(Stdio::null());
            command.spawn().map_err(BenchError::system("start the echo server"))
        })?;
        let server = EchoServer { child, socket, _folder: folder };
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = UnixStream::connect(&server.socket) {
            if Instant::now() >= deadline {
                return Err(BenchError::system("reach the echo server")(error));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    /// A connection for exchanges of these sizes.
    pub(crate) fn connect(&self, request: usize, reply: usize) -> Result<EchoClient, BenchError> {
        let failed = || BenchError::system("talk to the echo server");
        let mut stream = UnixStream::connect(&self.socket).map_err(failed())?;
        stream.write_all(&sizes(request, reply)).map_err(failed())?;
        Ok(EchoClient { stream, request: vec![1; request], reply: vec![0; reply] })
    }

    /// The same for the loop that drives peers.
    pub(crate) fn traffic(&self, request: usize, reply: usize) -> Result<(Channel, Echoes), BenchError> {
        let mut channel =
            Channel::connect(&self.socket).map_err(BenchError::system("reach the echo server"))?;
        channel.out().extend_from_slice(&sizes(request, reply));
        Ok((channel, Echoes { request, reply }))
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sizes(request: usize, reply: usize) -> [u8; 16] {
    let mut sizes = [0; 16];
    sizes[..8].copy_from_slice(&request.to_le_bytes());
    sizes[8..].copy_from_slice(&reply.to_le_bytes());
    sizes
}

/// A plain blocking client.
#[derive(Debug)]
pub(crate) struct EchoClient {
    stream: UnixStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl EchoClient {
    /// One request and its answer.
    pub(crate) fn exchange(&mut self) -> Result<(), BenchError> {
        let exchanged =
            self.stream.write_all(&self.request).and_then(|()| self.stream.read_exact(&mut self.reply));
        exchanged.map_err(BenchError::system("talk to the echo server"))
    }
}

/// Requests of one size, answered by answers of another.
#[derive(Debug)]
pub(crate) struct Echoes {
    request: usize,
    reply: usize,
}

impl Protocol for Echoes {
    const PEER: &'static str = "the echo server";

    fn request(&mut self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.request, 1);
    }

    fn response(&mut self, input: &[u8]) -> Result<Option<usize>, BenchError> {
        Ok((input.len() >= self.reply).then_some(self.reply))
    }
}
