//! Where regions come from: a connection of its own, on which a request may take long and keeps nobody waiting. On a Unix socket
//! descriptors of their memory come along.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use maru_proto::{ConnectionKind, Flags, HelloRequest, HelloResponse, RegionRecord, Step, decode};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::output::push_request;
use super::request::{GetRegion, Hello, Request, RequestAlloc, decode_answer};
use super::slots::RequestId;
use super::stream::Stream;
use super::tls::is_alert;
use crate::config::{Address, TlsFiles};
use crate::error::{Error, ProtocolError, Result};
use crate::sync::lock;

/// Making the memory of a large region takes its time.
const LEAST_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that the body of an answer about a session or a region may have.
const LONGEST_ANSWER: u32 = 4096;

/// A connection to ask for regions on, opened when it is first needed. On TCP it is opened for each: a network may forget one that
/// nothing is said on.
pub(crate) struct Control {
    address: Address,
    tls: TlsFiles,
    hello: HelloRequest,
    timeout: Duration,
    /// Held by the one who asks.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stream: Option<Arc<Stream>>,
    /// The session goes on without this connection, and must not learn of regions by it.
    is_shut: bool,
}

impl Control {
    /// A connection of a session, which it joins.
    pub(crate) fn new(
        address: Address,
        tls: TlsFiles,
        mut hello: HelloRequest,
        timeout: Duration,
    ) -> Control {
        if matches!(address, Address::Unix(_)) {
            hello.kind = ConnectionKind::Control as u8;
        }
        Control {
            address,
            tls,
            hello,
            timeout: timeout.max(LEAST_TIMEOUT),
            turn: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Ends the connection, also for an answer that is waited for, and opens none any more.
    pub(crate) fn shut(&self) {
        let mut state = lock(&self.state);
        state.is_shut = true;
        if let Some(stream) = state.stream.take() {
            stream.shutdown();
        }
    }

    /// Asks for a region, the memory of which is then to be found on this host.
    pub(crate) fn request_alloc(&self, request: &RequestAlloc) -> Result<RegionRecord> {
        self.ask(request).map(|(region, _)| region)
    }

    /// Asks for a region and a descriptor of its memory, on a Unix socket.
    pub(crate) fn request_memory(&self, request: &RequestAlloc) -> Result<(RegionRecord, File)> {
        self.memory(request)
    }

    /// Asks for a region that somebody has and a descriptor of its memory, on a Unix socket.
    pub(crate) fn get_memory(&self, request: &GetRegion) -> Result<(RegionRecord, File)> {
        self.memory(request)
    }

    fn memory<R: Request<Response = RegionRecord>>(&self, request: &R) -> Result<(RegionRecord, File)> {
        let (region, descriptor) = self.ask(request)?;
        let descriptor = descriptor.ok_or(ProtocolError::MissingDescriptor(region.region_id.get()))?;
        Ok((region, File::from(descriptor)))
    }

    fn ask<R: Request>(&self, request: &R) -> Result<(R::Response, Option<OwnedFd>)> {
        let _turn = lock(&self.turn);
        let known = lock(&self.state).stream.clone();
        let stream = match known {
            Some(stream) => stream,
            None => self.open()?,
        };
        let exchanged = exchange_control(&stream, request, self.timeout);
        let is_answered = matches!(exchanged, Ok(_) | Err(Error::Refused { .. }));
        if !is_answered || !matches!(*stream, Stream::Unix(_)) {
            // With an answer under way the connection is of no use: the next request opens another.
            lock(&self.state).stream = None;
        }
        exchanged
    }

    fn open(&self) -> Result<Arc<Stream>> {
        let stream = Arc::new(Stream::connect(&self.address, &self.tls)?);
        {
            let mut state = lock(&self.state);
            if state.is_shut {
                return Err(Error::ConnectionLost);
            }
            state.stream = Some(Arc::clone(&stream));
        }
        let greeted = exchange_control(&stream, &Hello(self.hello), self.timeout);
        if greeted.is_err() {
            lock(&self.state).stream = None;
        }
        greeted.map(|_| stream)
    }
}

/// Says HELLO on a fresh connection, before it is anybody else's.
pub(crate) fn hello(stream: &Stream, hello: HelloRequest, timeout: Duration) -> Result<HelloResponse> {
    exchange_first(stream, &Hello(hello), timeout)
}

/// One request and its answer on a connection that is nobody else's yet.
pub(crate) fn exchange_first<R: Request>(
    stream: &Stream,
    request: &R,
    timeout: Duration,
) -> Result<R::Response> {
    stream.set_timeouts(timeout, timeout)?;
    let lost = |source| Error::Io { what: "speak with the server", source };
    exchange(
        request,
        |bytes| stream.write_all(bytes).map_err(lost),
        |buffer| match stream.read(buffer) {
            Ok(0) => Err(Error::ConnectionLost),
            Ok(read) => Ok(read),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => Ok(0),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    Err(Error::Timeout { operation: request.opcode(), timeout })
                }
                _ => Err(lost(error)),
            },
        },
    )
}

/// One request and its answer on a control connection, with the descriptor that came along.
fn exchange_control<R: Request>(
    stream: &Stream,
    request: &R,
    timeout: Duration,
) -> Result<(R::Response, Option<OwnedFd>)> {
    let failed = |source| Error::Io { what: "ask the server for a region", source };
    let deadline = Instant::now() + timeout;
    stream.set_timeouts(timeout, timeout)?;
    let mut descriptor = None;
    let answer = exchange(
        request,
        |bytes| stream.write_all(bytes).map_err(|_| Error::ConnectionLost),
        |buffer| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { operation: request.opcode(), timeout });
            }
            stream.set_timeouts(left, timeout)?;
            let received = match stream {
                Stream::Unix(stream) => receive(stream, buffer).map_err(io::Error::from),
                Stream::Tcp(_) | Stream::Tls(_) => stream.read(buffer).map(|read| (read, None)),
            };
            match received {
                Ok((0, _)) => Err(Error::ConnectionLost),
                Ok((read, received)) => {
                    descriptor = received.or(descriptor.take());
                    Ok(read)
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(0),
                    _ => Err(failed(error)),
                },
            }
        },
    )?;
    Ok((answer, descriptor))
}

/// One request and its answer on a connection that carries nothing else meanwhile. `read` says how many bytes came, 0
/// when it is to be called again.
fn exchange<R: Request>(
    request: &R,
    write: impl FnOnce(&[u8]) -> Result<()>,
    mut read: impl FnMut(&mut [u8]) -> Result<usize>,
) -> Result<R::Response> {
    let mut output = Vec::new();
    push_request(&mut output, request, RequestId(1));
    write(&output)?;
    let mut input = Vec::new();
    loop {
        match decode(&input, LONGEST_ANSWER).map_err(ProtocolError::from)? {
            Step::Frame { frame, .. } if !frame.flags().contains(Flags::RESPONSE) => {
                return Err(ProtocolError::NotAResponse.into());
            }
            Step::Frame { frame, .. } => return decode_answer(request, &frame),
            Step::Need(need) => {
                let filled = input.len();
                input.resize(filled + need, 0);
                let read = read(&mut input[filled..])?;
                input.truncate(filled + read);
                if is_alert(&input) {
                    return Err(Error::TlsWanted);
                }
            }
        }
    }
}

/// Receives bytes, and a descriptor where one comes with them.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The descriptor had no place in this process.
        return Err(Errno::MFILE);
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // More than one would be the server's mistake; dropped ones are closed.
    Ok((received.bytes, descriptors.flatten().last()))
}
