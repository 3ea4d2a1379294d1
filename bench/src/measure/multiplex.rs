//! Many connections driven by one thread: what a server can answer, where a thread a connection would be what is measured.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::channel::{ANSWER_LIMIT, Wait, lost};
use super::connection::{Connection, Until};
use super::recorder::{Recorder, Sample};
use super::run::{Orders, Protocol};
use crate::error::BenchError;

/// Drives the connections until they are told to stop or have made their requests.
pub(super) fn drive<P: Protocol>(
    connections: Vec<Connection<P>>,
    orders: &Orders,
    recorder: &Recorder,
) -> Result<(), BenchError> {
    let watch = Watch::new(&connections).map_err(BenchError::system("watch many connections"))?;
    let short = connections.iter().any(|connection| connection.protocol.is_short());
    Group { connections, watch, in_flight: 0, short, orders, recorder }.drive()
}

/// The connections of a thread.
struct Group<'a, P> {
    connections: Vec<Connection<P>>,
    watch: Watch,
    /// Requests of all of them that are in flight.
    in_flight: usize,
    /// One of them can't go on before it is restocked; until then none does, for it would wait for that.
    short: bool,
    orders: &'a Orders,
    recorder: &'a Recorder,
}

impl<P: Protocol> Group<'_, P> {
    fn drive(mut self) -> Result<(), BenchError> {
        let all = 0..self.connections.len();
        let open = self.connections.iter().any(Connection::is_open);
        let mut fresh = true;
        loop {
            // A closed loop goes on where an answer came, an open one by the clock.
            if fresh || open {
                all.clone().try_for_each(|number| self.request(number, Instant::now()))?;
            }
            fresh = false;
            if self.in_flight == 0 {
                if self.orders.stop() || self.connections.iter().all(Connection::is_spent) {
                    return self.leave();
                }
                if self.short {
                    self.restock()?;
                    fresh = true;
                    continue;
                }
            }
            let wait = if open { self.wait() } else { ANSWER_LIMIT };
            let events = self.watch.wait(wait).map_err(lost(P::PEER))?;
            // One lock for all of them.
            self.recorder.record(|sample| {
                (0..events).try_for_each(|event| {
                    let number = self.watch.number(event);
                    let now = self.receive(number, sample)?;
                    if open { Ok(()) } else { self.request(number, now) }
                })
            })?;
        }
    }

    /// Sends what is due on a connection, as far as its socket takes it.
    fn request(&mut self, number: usize, now: Instant) -> Result<(), BenchError> {
        let connection = &mut self.connections[number];
        if !self.short && !self.orders.stop() {
            self.in_flight += connection.request(now, self.orders.counting());
            self.short = connection.protocol.is_short();
        }
        let all_sent = connection.channel.send().map_err(lost(P::PEER))?;
        self.watch.room(number, !all_sent, connection).map_err(lost(P::PEER))
    }

    /// Takes the answers of a connection; when they came.
    fn receive(&mut self, number: usize, sample: &mut Sample) -> Result<Instant, BenchError> {
        let connection = &mut self.connections[number];
        connection.channel.exchange(Wait::No).map_err(lost(P::PEER))?;
        let now = Instant::now();
        self.in_flight -= connection.take_answers(now, sample)?;
        Ok(now)
    }

    /// How long nothing is to be done in an open loop unless an answer comes.
    fn wait(&self) -> Duration {
        let (now, stop) = (Instant::now(), self.orders.stop() || self.short);
        let waits = self.connections.iter().map(|connection| match connection.wait(now, stop) {
            Until::Due(left) => left,
            Until::Answer => ANSWER_LIMIT,
        });
        waits.min().unwrap_or(ANSWER_LIMIT)
    }

    fn restock(&mut self) -> Result<(), BenchError> {
        let began = Instant::now();
        for connection in &mut self.connections {
            connection.protocol.restock(&mut connection.channel)?;
        }
        self.short = self.connections.iter().any(|connection| connection.protocol.is_short());
        self.recorder.record(|sample| sample.paused += began.elapsed());
        Ok(())
    }

    fn leave(mut self) -> Result<(), BenchError> {
        let connections = &mut self.connections;
        self.recorder.record(|sample| connections.iter_mut().for_each(|connection| connection.leave(sample)));
        connections.iter_mut().try_for_each(|connection| connection.protocol.finish(&mut connection.channel))
    }
}

/// Tells which connections have something to read, or room where something is left to send.
struct Watch {
    epoll: OwnedFd,
    events: Vec<Event>,
    /// Connections that are watched for room as well.
    full: Vec<bool>,
}

impl Watch {
    fn new<P>(connections: &[Connection<P>]) -> io::Result<Watch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, connection) in connections.iter().enumerate() {
            let data = EventData::new_u64(number as u64);
            epoll::add(&epoll, connection.channel.fd(), data, EventFlags::IN)?;
        }
        let count = connections.len();
        Ok(Watch { epoll, events: Vec::with_capacity(count), full: vec![false; count] })
    }

    /// Begins or ends to watch for room.
    fn room<P>(&mut self, number: usize, wanted: bool, connection: &Connection<P>) -> io::Result<()> {
        if self.full[number] == wanted {
            return Ok(());
        }
        self.full[number] = wanted;
        let flags = if wanted { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let data = EventData::new_u64(number as u64);
        Ok(epoll::modify(&self.epoll, connection.channel.fd(), data, flags)?)
    }

    /// How many connections have something to do, after at most this long. None after [`ANSWER_LIMIT`] is an error.
    fn wait(&mut self, limit: Duration) -> io::Result<usize> {
        let timespec = |limit: Duration| Timespec::try_from(limit).map_err(io::Error::other);
        // epoll sleeps for whole milliseconds, poll for nanoseconds.
        let patient = limit >= ANSWER_LIMIT;
        if !patient && !limit.is_zero() {
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timespec(limit)?)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.events.clear();
        let limit = timespec(if patient { limit } else { Duration::ZERO })?;
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&limit)) {
            Ok(0) if patient => {
                let text = format!("no answer came within {} s", ANSWER_LIMIT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Ok(_) | Err(Errno::INTR) => Ok(self.events.len()),
            Err(error) => Err(error.into()),
        }
    }

    /// The connection of one of these.
    fn number(&self, event: usize) -> usize {
        usize::try_from(self.events[event].data.u64()).expect("numbers of connections are usize")
    }
}
