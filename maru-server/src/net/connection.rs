//! One connection: read what is there, serve every whole frame of it, write once.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use maru_proto::{DecodeError, Header, Step, decode};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::buf::BoundedBuf;
use tracing::{debug, warn};

use super::Shared;
use super::stream::Stream;
use crate::output::Output;
use crate::service::{Next, Session};
use crate::state::{RegionId, RegionInfo};

/// Bytes of input buffer that a connection starts with.
const FIRST_INPUT: usize = 4 * 1024;
/// Bytes that the input buffer grows to by itself, while reads fill it.
const USUAL_INPUT: usize = 64 * 1024;
/// Responses are written once they have this many bytes, before further frames of the same input are served.
const OUTPUT_TURN: usize = 256 * 1024;

/// A connection as other tasks see it: they can end it, nothing else.
pub(super) struct Link {
    stream: Stream,
    greeted: Cell<bool>,
}

impl Link {
    /// Whether HELLO was accepted.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// Ends reading: what was read is still served and answered.
    pub(super) fn stop_reading(&self) {
        self.stream.shutdown(Shutdown::Read);
    }

    /// Ends the connection, also for a read or write under way.
    pub(super) fn close(&self) {
        self.stream.shutdown(Shutdown::Both);
    }
}

/// Starts the task of a connection that was accepted, or turns it away.
pub(super) fn start(shared: &Rc<Shared>, stream: Stream) {
    let link = Rc::new(Link { stream, greeted: Cell::new(false) });
    let shared = Rc::clone(shared);
    shared.service.borrow_mut().connection_accepted();
    shared.open.set(shared.open.get() + 1);
    if shared.open.get() > shared.limits.max_connections {
        warn!(limit = shared.limits.max_connections, "too many connections: turned one away");
        tokio_uring::spawn(async move {
            let mut output = Output::default();
            shared.service.borrow_mut().refuse_connection(&mut output);
            let _ = link.stream.write_all(output.into_bytes()).await;
            closed(&shared);
        });
        return;
    }
    remember(&shared, &link);
    tokio_uring::spawn(async move {
        let session = Session::new(link.stream.transport());
        let mut connection = Connection { shared: Rc::clone(&shared), link, session };
        if let Err(error) = connection.run().await {
            debug!(%error, "a connection broke");
        }
        shared.service.borrow_mut().close(&connection.session, shared.now());
        shared.release_retired();
        shared.grace_began.notify_one();
        drop(connection);
        closed(&shared);
    });
}

fn remember(shared: &Shared, link: &Rc<Link>) {
    let mut connections = shared.connections.borrow_mut();
    if connections.len() == connections.capacity() {
        connections.retain(|link| link.strong_count() > 0);
    }
    connections.push(Rc::downgrade(link));
    let deadline = Instant::now() + shared.limits.hello_deadline;
    shared.greetings.borrow_mut().push_back((deadline, Rc::downgrade(link)));
    shared.greeting_began.notify_one();
}

fn closed(shared: &Shared) {
    shared.open.set(shared.open.get() - 1);
    shared.closed.notify_one();
}

struct Connection {
    shared: Rc<Shared>,
    link: Rc<Link>,
    session: Session,
}

/// Why serving an input paused.
enum Pause {
    /// All whole frames are served; this many more bytes make the next one whole.
    Need(usize),
    /// There is enough to write for one turn.
    Turn,
    /// The connection ends once the output is written.
    Close,
    /// The server stops.
    Shutdown,
    /// The frame with this header waits for its region's memory.
    MakeRegion(RegionInfo, Header),
    /// The next frame waits until memory is released.
    AwaitRelease,
    /// The response from this byte of the output on goes out with a descriptor.
    Attach { at: usize, region: RegionId, writable: bool },
}

impl Connection {
    /// Serves until the peer closes, breaks the protocol, or the server stops.
    async fn run(&mut self) -> io::Result<()> {
        let mut input = Vec::with_capacity(FIRST_INPUT);
        let mut output = Output::default();
        loop {
            let filled = input.len();
            let (read, slice) = self.link.stream.read(input.slice(filled..)).await;
            input = slice.into_inner();
            if read? == 0 {
                return Ok(());
            }
            let was_full = input.len() == input.capacity();
            let mut served = 0;
            let need = loop {
                // Learnt before serving, so that a release in between is not missed.
                let shared = Rc::clone(&self.shared);
                let released = shared.released.notified();
                let (consumed, pause) = self.serve(&input[served..], &mut output);
                served += consumed;
                let next = match pause {
                    Pause::MakeRegion(region, request) => {
                        self.make_region(region, &request, &mut output).await
                    }
                    pause => pause,
                };
                if let Pause::Attach { at, region, writable } = next {
                    output = self.write_with_region(output, at, region, writable).await?;
                    continue;
                }
                output = self.write(output).await?;
                match next {
                    Pause::Need(need) => break need,
                    Pause::Close => return Ok(()),
                    Pause::Shutdown => {
                        self.shared.stop.notify_one();
                        return Ok(());
                    }
                    Pause::AwaitRelease => released.await,
                    // Others have their turn before this connection goes on.
                    _ => tokio::task::yield_now().await,
                }
            };
            // Only the part of a frame that is left is ever moved.
            input.drain(..served);
            make_room(&mut input, need, was_full);
        }
    }

    /// Serves whole frames from the start of the input; how many bytes they took, and why that was all.
    fn serve(&mut self, input: &[u8], output: &mut Output) -> (usize, Pause) {
        let now = self.shared.now();
        let service = &mut *self.shared.service.borrow_mut();
        let max_body = service.max_body();
        let mut consumed = 0;
        let pause = loop {
            if output.len() >= OUTPUT_TURN {
                break Pause::Turn;
            }
            let (frame, length) = match decode(&input[consumed..], max_body) {
                Ok(Step::Frame { frame, consumed }) => (frame, consumed),
                Ok(Step::Need(need)) => break Pause::Need(need),
                Err(error) => {
                    refuse(service, &error, output);
                    break Pause::Close;
                }
            };
            let at = output.len();
            let next = service.serve(&mut self.session, &frame, now, output);
            if next == Next::AwaitRelease {
                break Pause::AwaitRelease;
            }
            consumed += length;
            match next {
                Next::Continue => {}
                Next::Close => break Pause::Close,
                Next::Shutdown => break Pause::Shutdown,
                Next::MakeRegion(region) => break Pause::MakeRegion(region, *frame.header()),
                Next::Attach { region, writable } => break Pause::Attach { at, region, writable },
                Next::AwaitRelease => unreachable!("handled above"),
            }
        };
        self.link.greeted.set(self.session.is_open());
        (consumed, pause)
    }

    async fn make_region(&mut self, region: RegionInfo, request: &Header, output: &mut Output) -> Pause {
        let make = self.shared.pool.maker(region.id, region.extent);
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let at = output.len();
        let mut service = self.shared.service.borrow_mut();
        match service.region_made(&self.session, request, region.id, made, output) {
            Next::Attach { region, writable } => Pause::Attach { at, region, writable },
            _ => Pause::Turn,
        }
    }

    /// Writes what there is; the output is empty afterwards.
    async fn write(&self, output: Output) -> io::Result<Output> {
        self.shared.release_retired();
        if output.is_empty() {
            return Ok(output);
        }
        let (written, bytes) = self.link.stream.write_all(output.into_bytes()).await;
        written.map(|()| Output::reuse(bytes))
    }

    /// Writes what there is; the response from byte `at` on carries a descriptor of the region.
    async fn write_with_region(
        &self,
        mut output: Output,
        at: usize,
        region: RegionId,
        writable: bool,
    ) -> io::Result<Output> {
        let response = output.split_off(at);
        let output = self.write(output).await?;
        let file = self.shared.pool.open_region(region, writable)?;
        let sent = loop {
            match send_with_descriptor(&self.link.stream, &response, &file) {
                Ok(sent) => break sent,
                Err(Errno::AGAIN) => self.writable().await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if sent < response.len() {
            let (written, _) = self.link.stream.write_all(response.slice(sent..)).await;
            written?;
        }
        Ok(output)
    }

    /// Waits until the socket takes bytes again: a peer does not read its responses.
    async fn writable(&self) -> io::Result<()> {
        let fd = self.link.stream.fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` is open until it is dropped, which the `AsyncFd` that takes it does.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?;
        fd.writable().await.map(drop)
    }
}

fn refuse(service: &mut crate::service::Service, error: &DecodeError, output: &mut Output) {
    debug!(%error, "refused bytes that are no frame");
    service.refuse(error, output);
}

/// Sends bytes together with a file's descriptor, without waiting; how many bytes went.
fn send_with_descriptor(stream: &Stream, bytes: &[u8], file: &impl AsFd) -> Result<usize, Errno> {
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream.fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// Room for the rest of a frame, or for a longer read where the last one filled the buffer.
fn make_room(input: &mut Vec<u8>, need: usize, was_full: bool) {
    if input.is_empty() && input.capacity() > USUAL_INPUT {
        *input = Vec::with_capacity(USUAL_INPUT);
    }
    if was_full && input.capacity() < USUAL_INPUT {
        input.reserve(2 * input.capacity() - input.len());
    }
    if input.capacity() - input.len() < need {
        input.reserve_exact(need);
    }
}
