//! A connection as a task of the runtime: what the plain driver runs for every connection, and the reactor for those
//! that have to wait for more than their peer.

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use maru_proto::{FrameStatus, Opcode};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::buf::BoundedBuf;
use tracing::debug;

use super::Shared;
use super::connection::{Connection, Link, Pause, Wait};
use super::stream::Stream;
use crate::output::Output;
use crate::service::Next;
use crate::state::{RegionId, RegionInfo};

/// How long a peer that is turned away may take to take its answer.
const TURN_AWAY_TIME: Duration = Duration::from_secs(1);

/// Tells a peer why it is not served.
pub(super) async fn turn_away(shared: Rc<Shared>, link: Rc<Link>, status: FrameStatus) {
    let mut output = Output::default();
    shared.service.borrow_mut().refuse_connection(status, &mut output);
    let farewell = async {
        let (written, mut input) = link.stream.write_all(output.into_bytes()).await;
        if written.is_err() {
            return;
        }
        // Closed with something unread, the connection would break before the peer has its answer.
        link.stream.shutdown(Shutdown::Write);
        loop {
            input.clear();
            let (read, buffer) = link.stream.read(input).await;
            input = buffer;
            if !matches!(read, Ok(1..)) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(TURN_AWAY_TIME, farewell).await;
}

/// Serves until the peer closes, breaks the protocol, or the server stops; begins with what a reactor left to do.
pub(super) async fn run(mut connection: Connection, left: Option<Wait>) {
    if let Err(error) = serve(&mut connection, left).await {
        debug!(%error, "a connection broke");
    }
}

async fn serve(connection: &mut Connection, mut left: Option<Wait>) -> io::Result<()> {
    loop {
        // Listened to before serving, so that a release in between is not missed.
        let shared = Rc::clone(&connection.shared);
        let released = shared.released.notified();
        let pause = left.take().map_or_else(|| connection.serve(), Pause::Wait);
        let pause = match pause {
            Pause::Wait(Wait::MakeRegion(region, request)) => make_region(connection, region, &request).await,
            pause => pause,
        };
        if let Pause::Wait(Wait::Attach { at, region, writable }) = pause {
            write_with_region(connection, at, region, writable).await?;
            continue;
        }
        if matches!(pause, Pause::Again) {
            tokio::task::yield_now().await;
            continue;
        }
        write(connection).await?;
        match pause {
            Pause::Read => {
                let input = mem::take(&mut connection.input);
                let filled = input.len();
                let (read, slice) = connection.link.stream.read(input.slice(filled..)).await;
                connection.input = slice.into_inner();
                if read? == 0 {
                    return Ok(());
                }
            }
            Pause::Close => return Ok(()),
            Pause::Wait(Wait::Shutdown) => {
                shared.stop.notify_one();
                return Ok(());
            }
            Pause::Wait(Wait::Release) => released.await,
            // Others have their turn before this connection goes on.
            _ => tokio::task::yield_now().await,
        }
    }
}

async fn make_region(connection: &mut Connection, region: RegionInfo, request: &maru_proto::Header) -> Pause {
    let shared = Rc::clone(&connection.shared);
    connection.watch.start(shared.now());
    let make = shared.memory.borrow().maker(&region);
    let made = tokio::task::spawn_blocking(make).await;
    let made = made.unwrap_or_else(|panic| Err(io::Error::other(panic))).map(Some);
    let at = connection.output.len();
    let mut service = shared.service.borrow_mut();
    let next = service.region_made(&connection.session, request, region.id, made, &mut connection.output);
    // That the memory is made is what takes time of a REQUEST_ALLOC.
    connection.watch.paused(shared.now());
    let took = connection.watch.take_spent();
    service.took(Opcode::RequestAlloc, took, 1);
    if shared.limits.slow_request.is_some_and(|slow| took >= slow) {
        service.warn_of_slow_region(&connection.session, &region, took);
    }
    match next {
        Next::Attach { region, writable } => Pause::Wait(Wait::Attach { at, region, writable }),
        _ => Pause::Turn,
    }
}

/// Writes what there is; the output is empty afterwards.
async fn write(connection: &mut Connection) -> io::Result<()> {
    connection.shared.release_retired();
    if !connection.output.is_empty() {
        let bytes = mem::take(&mut connection.output).into_bytes();
        connection.link.set_unsent(true);
        let (written, bytes) = connection.link.stream.write_all(bytes).await;
        connection.link.set_unsent(false);
        connection.output = Output::reuse(bytes);
        written?;
    }
    Ok(())
}

/// Writes what there is; the response from byte `at` on carries a descriptor of the region.
async fn write_with_region(
    connection: &mut Connection,
    at: usize,
    region: RegionId,
    writable: bool,
) -> io::Result<()> {
    let response = connection.output.split_off(at);
    write(connection).await?;
    let pool = connection.shared.service.borrow().state().region(region).map(|region| region.pool);
    let pool = pool.ok_or_else(|| io::Error::from(Errno::NOENT))?;
    let file = connection.shared.memory.borrow().open_region(pool, region, writable)?;
    let stream = &connection.link.stream;
    connection.link.set_unsent(true);
    let sent = loop {
        match send_with_descriptor(stream, &response, &file) {
            Ok(sent) => break sent,
            Err(Errno::AGAIN) => until_writable(stream).await?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if sent < response.len() {
        let (written, _) = stream.write_all(response.slice(sent..)).await;
        written?;
    }
    connection.link.set_unsent(false);
    Ok(())
}

/// Sends bytes together with a file's descriptor, without waiting; how many bytes went.
fn send_with_descriptor(stream: &Stream, bytes: &[u8], file: &impl AsFd) -> Result<usize, Errno> {
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream.fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// Waits until the socket takes bytes again: the peer has not read its responses.
async fn until_writable(stream: &Stream) -> io::Result<()> {
    let fd = stream.fd().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` is open until it is dropped, which the `AsyncFd` that takes it does.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }?;
    fd.writable().await.map(drop)
}
