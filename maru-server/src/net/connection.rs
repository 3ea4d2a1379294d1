//! One connection without its I/O: input gathers, whole frames are served, output gathers.

use std::cell::Cell;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use maru_proto::{Frame, FrameStatus, Header, Step, decode};
use tracing::{debug, warn};

use super::admission::Role;
use super::stream::Stream;
use super::{Shared, task};
use crate::output::Output;
use crate::service::{LOOK_AHEAD, Next, Session, Transport};
use crate::state::{RegionId, RegionInfo};

/// Bytes of input buffer that a connection starts with.
const FIRST_INPUT: usize = 4 * 1024;
/// Bytes that the input buffer grows to by itself, while reads fill it.
const USUAL_INPUT: usize = 64 * 1024;

/// Records, about, that are worked on before other connections have a turn.
const WORK_TURN: usize = 512;

/// A connection as other tasks see it: they can end it, nothing else.
pub(super) struct Link {
    pub(super) stream: Stream,
    greeted: Cell<bool>,
    /// When the peer was last served.
    served_at: Cell<Duration>,
    /// Since when a frame is there in part.
    partial_since: Cell<Option<Duration>>,
    /// Since when answers wait to be taken.
    unsent_since: Cell<Option<Duration>>,
}

impl Link {
    /// Whether HELLO was accepted.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// When the peer was last served: on a connection that is silent, shortly after it said anything.
    pub(super) fn served_at(&self) -> Duration {
        self.served_at.get()
    }

    /// Since when the peer owes the rest of a frame, or does not take its answers.
    pub(super) fn stalled_since(&self) -> Option<Duration> {
        self.partial_since.get().into_iter().chain(self.unsent_since.get()).min()
    }

    /// Answers are on their way, as of when they were made, or not any more.
    pub(super) fn set_unsent(&self, is_unsent: bool) {
        self.unsent_since.set(is_unsent.then(|| self.served_at.get()));
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

/// Takes in a connection that was accepted, or turns it away.
pub(super) fn start(shared: &Rc<Shared>, stream: Stream) {
    let link = Rc::new(Link {
        stream,
        greeted: Cell::new(false),
        served_at: Cell::new(shared.now()),
        partial_since: Cell::new(None),
        unsent_since: Cell::new(None),
    });
    let session = Session::new(link.stream.transport());
    let admitted = match link.stream.transport() {
        Transport::Unix => shared.admission.admit(&link.stream.fd()),
        // The token of HELLO says who may connect, and not who it is.
        Transport::Tcp => Ok(Role::Guest),
    };
    let session = match admitted {
        Ok(Role::Operator) => session.of_operator(),
        Ok(Role::Guest) => session,
        Err(peer) => {
            let (user, group) = peer.unzip();
            warn!(user, group, "turned a user away; --allow-uid or --allow-gid would let them in");
            tokio_uring::spawn(task::turn_away(Rc::clone(shared), link, FrameStatus::Unauthorized));
            return;
        }
    };
    if shared.open.get() >= shared.limits.max_connections && !make_place(shared) {
        warn!(limit = shared.limits.max_connections, "too many connections: turned one away");
        tokio_uring::spawn(task::turn_away(Rc::clone(shared), link, FrameStatus::Limit));
        return;
    }
    let connection = Connection::new(shared, &link, session);
    remember(shared, &link);
    match &shared.reactor {
        Some(arrivals) => arrivals.push(connection),
        None => drop(tokio_uring::spawn(task::run(connection, None))),
    }
}

/// Ends the oldest connection that has not said HELLO: however many say nothing, they keep nobody out.
fn make_place(shared: &Shared) -> bool {
    let mut greetings = shared.greetings.borrow_mut();
    while let Some((_, link)) = greetings.pop_front() {
        if let Some(link) = link.upgrade().filter(|link| !link.is_greeted()) {
            debug!("closing a connection that has not said HELLO, for another");
            link.close();
            return true;
        }
    }
    false
}

fn remember(shared: &Shared, link: &Rc<Link>) {
    let mut connections = shared.connections.borrow_mut();
    if connections.len() == connections.capacity() {
        connections.retain(|link| link.strong_count() > 0);
    }
    connections.push(Rc::downgrade(link));
    let deadline = Instant::now() + shared.limits.hello_deadline;
    let mut greetings = shared.greetings.borrow_mut();
    if greetings.len() == greetings.capacity() {
        // Whoever comes and goes while one is waited for leaves nothing behind.
        greetings.retain(|(_, link)| link.upgrade().is_some_and(|link| !link.is_greeted()));
    }
    greetings.push_back((deadline, Rc::downgrade(link)));
    shared.greeting_began.notify_one();
}

/// What was read and not served, what was answered and not written, and what the peer has agreed on.
pub(super) struct Connection {
    pub(super) shared: Rc<Shared>,
    pub(super) link: Rc<Link>,
    pub(super) session: Session,
    /// Bytes from the peer; those before `served` are done with.
    pub(super) input: Vec<u8>,
    served: usize,
    pub(super) output: Output,
}

/// Why serving an input paused.
pub(super) enum Pause {
    /// All whole frames are served: read more.
    Read,
    /// There is enough to write for one turn.
    Turn,
    /// A frame is served in part, and its answer is not to be written before the rest.
    Again,
    /// The connection ends once the output is written.
    Close,
    /// Something is left that only a task of its own can do.
    Wait(Wait),
}

/// What a connection waits for besides its peer.
pub(super) enum Wait {
    /// The server stops once the output is written.
    Shutdown,
    /// The frame with this header waits for its region's memory.
    MakeRegion(RegionInfo, Header),
    /// The next frame waits until memory is released.
    Release,
    /// The response from this byte of the output on goes out with a descriptor.
    Attach {
        /// Where in the output the response begins.
        at: usize,
        /// The region.
        region: RegionId,
        /// Whether the descriptor may be written through.
        writable: bool,
    },
}

impl Connection {
    fn new(shared: &Rc<Shared>, link: &Rc<Link>, session: Session) -> Connection {
        shared.service.borrow_mut().connection_accepted();
        shared.open.set(shared.open.get() + 1);
        Connection {
            shared: Rc::clone(shared),
            link: Rc::clone(link),
            session,
            input: Vec::with_capacity(FIRST_INPUT),
            served: 0,
            output: Output::default(),
        }
    }

    /// Serves the whole frames that were read, as far as one turn goes.
    pub(super) fn serve(&mut self) -> Pause {
        let now = self.shared.now();
        let service = &mut *self.shared.service.borrow_mut();
        let max_body = service.max_body();
        let (mut frames, mut work) = (0, 0);
        let pause = loop {
            // The answer to a frame that is served in part stays until it is whole.
            let is_enough = self.output.len() >= self.shared.limits.max_unanswered || work >= WORK_TURN;
            if is_enough && !self.session.is_in_part() {
                break Pause::Turn;
            }
            if frames % LOOK_AHEAD == 0 {
                service
                    .look_ahead_of(Frames { input: &self.input[self.served..], max_body }.take(LOOK_AHEAD));
            }
            frames += 1;
            work += 1;
            let (frame, length) = match decode(&self.input[self.served..], max_body) {
                Ok(Step::Frame { frame, consumed }) => (frame, consumed),
                Ok(Step::Need(need)) => {
                    make_room(&mut self.input, &mut self.served, need);
                    break Pause::Read;
                }
                Err(error) => {
                    debug!(%error, "refused bytes that are no frame");
                    service.refuse(&error, &mut self.output);
                    break Pause::Close;
                }
            };
            let at = self.output.len();
            let next = service.serve(&mut self.session, &frame, now, &mut self.output);
            let wait = match next {
                Next::Continue => None,
                Next::Close => break Pause::Close,
                // The frame is not done with: it is served again after the wait, or the turn of others.
                Next::AwaitRelease => break Pause::Wait(Wait::Release),
                Next::Again => break Pause::Again,
                Next::Shutdown => Some(Wait::Shutdown),
                Next::MakeRegion(region) => Some(Wait::MakeRegion(region, *frame.header())),
                Next::Attach { region, writable } => Some(Wait::Attach { at, region, writable }),
            };
            work += length / Header::SIZE;
            self.served += length;
            if let Some(wait) = wait {
                break Pause::Wait(wait);
            }
        };
        self.link.greeted.set(self.session.is_open());
        self.link.served_at.set(now);
        let has_moved = frames > 1;
        let is_partial = matches!(pause, Pause::Read) && !self.input.is_empty();
        let since = self.link.partial_since.get().filter(|_| !has_moved).unwrap_or(now);
        self.link.partial_since.set(is_partial.then_some(since));
        pause
    }
}

/// The whole frames at the start of an input.
struct Frames<'a> {
    input: &'a [u8],
    max_body: u32,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        match decode(self.input, self.max_body) {
            Ok(Step::Frame { frame, consumed }) => {
                self.input = &self.input[consumed..];
                Some(frame)
            }
            _ => None,
        }
    }
}

impl Drop for Connection {
    /// However a connection ends, its instance learns of it.
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.service.borrow_mut().close(&self.session, shared.now());
        shared.release_retired();
        shared.grace_began.notify_one();
        shared.open.set(shared.open.get() - 1);
        shared.closed.notify_one();
    }
}

/// Drops what was served and makes room for the rest of a frame, or for a longer read where the last one filled the
/// buffer. Only the part of a frame that is left is ever moved.
fn make_room(input: &mut Vec<u8>, served: &mut usize, need: usize) {
    let was_full = input.len() == input.capacity();
    input.drain(..std::mem::take(served));
    if input.is_empty() && input.capacity() > USUAL_INPUT {
        *input = Vec::with_capacity(USUAL_INPUT);
    } else if was_full && input.capacity() < USUAL_INPUT {
        input.reserve_exact(2 * input.capacity() - input.len());
    }
    if input.capacity() - input.len() < need {
        input.reserve_exact(need);
    }
}
