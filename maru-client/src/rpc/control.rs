//! Where the memory of regions comes from: descriptors on a connection of their own, or files by path.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use maru_proto::{
    ConnectionKind, Flags, Frame, Head, Header, HelloRequest, HelloResponse, Opcode, RegionRecord, Step,
    decode, encode,
};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::request::{GetRegion, Hello, Request, RequestAlloc, decode_answer};
use super::stream::Stream;
use crate::config::Address;
use crate::error::{Error, ProtocolError, Result};
use crate::sync::lock;

/// Making the memory of a large region takes its time.
const LEAST_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection whose answers about regions carry descriptors, opened when it is first needed.
pub(crate) struct Control {
    path: PathBuf,
    hello: HelloRequest,
    timeout: Duration,
    stream: Mutex<Option<UnixStream>>,
}

impl Control {
    /// A control connection of a session to a Unix socket.
    pub(crate) fn new(path: PathBuf, mut hello: HelloRequest, timeout: Duration) -> Control {
        hello.kind = ConnectionKind::Control as u8;
        Control { path, hello, timeout: timeout.max(LEAST_TIMEOUT), stream: Mutex::new(None) }
    }

    /// Asks for a region.
    pub(crate) fn request_alloc(&self, request: &RequestAlloc) -> Result<(RegionRecord, File)> {
        self.region(request)
    }

    /// Asks for a region that somebody has.
    pub(crate) fn get_region(&self, request: &GetRegion) -> Result<(RegionRecord, File)> {
        self.region(request)
    }

    fn region<R: Request<Response = RegionRecord>>(&self, request: &R) -> Result<(RegionRecord, File)> {
        let mut slot = lock(&self.stream);
        let stream = match slot.take() {
            Some(stream) => stream,
            None => self.open()?,
        };
        // After an error that leaves an answer under way the connection is of no use: the next request opens another.
        let (region, descriptor) = match exchange(&stream, request, self.timeout) {
            Err(error @ Error::Refused { .. }) => {
                *slot = Some(stream);
                return Err(error);
            }
            exchanged => exchanged?,
        };
        *slot = Some(stream);
        let descriptor = descriptor.ok_or(ProtocolError::MissingDescriptor(region.region_id.get()))?;
        Ok((region, File::from(descriptor)))
    }

    fn open(&self) -> Result<UnixStream> {
        let Stream::Unix(stream) = Stream::connect(&Address::Unix(self.path.clone()))? else {
            unreachable!("a path is connected to as a Unix socket");
        };
        exchange(&stream, &Hello(self.hello), self.timeout)?;
        Ok(stream)
    }
}

/// Says HELLO on a fresh connection, before it is anybody else's.
pub(crate) fn hello(stream: &Stream, hello: HelloRequest, timeout: Duration) -> Result<HelloResponse> {
    stream.set_timeouts(timeout, timeout)?;
    let request = Hello(hello);
    let lost = |source| Error::Io { what: "say HELLO to the server", source };
    stream.write_all(&frame(&request)).map_err(lost)?;
    let mut input = Vec::new();
    loop {
        match decode(&input, 4096).map_err(ProtocolError::from)? {
            Step::Frame { frame, .. } => return answer(&request, &frame),
            Step::Need(need) => {
                let filled = input.len();
                input.resize(filled + need, 0);
                let read = match stream.read(&mut input[filled..]) {
                    Ok(0) => return Err(Error::ConnectionLost),
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                    Err(error) if is_timeout(&error) => {
                        return Err(Error::Timeout { operation: Opcode::Hello, timeout });
                    }
                    Err(error) => return Err(lost(error)),
                };
                input.truncate(filled + read);
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// One request and its answer, with the descriptor that came along.
fn exchange<R: Request>(
    stream: &UnixStream,
    request: &R,
    timeout: Duration,
) -> Result<(R::Response, Option<OwnedFd>)> {
    let failed = |source| Error::Io { what: "ask the server for a region", source };
    let deadline = Instant::now() + timeout;
    stream.set_write_timeout(Some(timeout)).map_err(failed)?;
    io::Write::write_all(&mut &*stream, &frame(request)).map_err(|_| Error::ConnectionLost)?;
    let (mut input, mut descriptor) = (Vec::new(), None);
    loop {
        match decode(&input, 4096).map_err(ProtocolError::from)? {
            Step::Frame { frame, .. } => return answer(request, &frame).map(|answer| (answer, descriptor)),
            Step::Need(need) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Timeout { operation: request.opcode(), timeout });
                }
                stream.set_read_timeout(Some(left)).map_err(failed)?;
                let filled = input.len();
                input.resize(filled + need, 0);
                let (read, received) = match receive(stream, &mut input[filled..]) {
                    Ok((0, _)) => return Err(Error::ConnectionLost),
                    Ok(received) => received,
                    Err(Errno::INTR | Errno::AGAIN) => (0, None),
                    Err(error) => return Err(failed(error.into())),
                };
                input.truncate(filled + read);
                descriptor = received.or(descriptor);
            }
        }
    }
}

/// Receives bytes, and a descriptor where one comes with them.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // More than one would be the server's mistake; dropped ones are closed.
    Ok((received.bytes, descriptors.flatten().last()))
}

fn frame<R: Request>(request: &R) -> Vec<u8> {
    let mut bytes = vec![0; Header::SIZE + request.body().len().next_multiple_of(maru_proto::BODY_ALIGN)];
    let head = Head::request(request.opcode(), request.flags(), 1);
    encode(&mut bytes, head, request.body()).expect("the room was made for the body");
    bytes
}

fn answer<R: Request>(request: &R, frame: &Frame<'_>) -> Result<R::Response> {
    if !frame.flags().contains(Flags::RESPONSE) {
        return Err(ProtocolError::NotAResponse.into());
    }
    decode_answer(request, frame)
}
