//! The server of a run: the real service, driven as its tasks drive it, and held against what has to come of connections,
//! sessions and time.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use maru_proto::{
    ConnectionKind, DigestKey, Flags, Frame, FrameStatus, Header, HelloRequest, HelloResponse, Opcode,
    PinsRecord, RecordStatus, SessionToken, Step, decode, statuses,
};
use maru_server::Output;
use maru_server::service::{Next, ServedPool, Service, ServiceConfig};
use maru_server::state::{Digest, InstanceNumber, Limits, PoolSpec, RegionId, RegionInfo, State, Usage};
use rustix::io::Errno;

use super::connection::{Connection, End, Greeted, Task};
use super::memory::Memory;
use super::trace::{Event, Trace};

/// Bytes of the largest request body, as few as clients accept.
pub(crate) const MAX_BODY: u32 = 1024;
/// The number of the server's run.
pub(crate) const EPOCH: u64 = 7;

/// An instance, as far as connections and time decide about it.
#[derive(Clone, Copy, Debug)]
struct Watched {
    connections: u32,
    grace_end: Option<Duration>,
    incarnation: u32,
}

/// How the memory of a region could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    Yes,
    NoSpace,
    Broken,
}

/// The service and all that goes on around it.
pub(crate) struct Server {
    service: Service,
    limits: Limits,
    pub(crate) now: Duration,
    /// By number.
    instances: BTreeMap<u32, Watched>,
    /// Tokens are random and differ from run to run: they are never counted through.
    tokens: BTreeMap<[u8; 16], u32>,
    /// Regions whose memory is being released.
    pub(crate) releasing: Vec<RegionId>,
}

/// What came of looking for a frame.
enum Served {
    Yes,
    /// A part of it: others have their turn.
    Part,
    /// There is none yet.
    Nothing,
    /// There is none to come, or the service ends the connection.
    Over,
}

impl Server {
    pub(crate) fn new(limits: Limits, pools: &[PoolSpec]) -> Server {
        let service = Service::new(ServiceConfig {
            limits,
            max_body: MAX_BODY,
            // So few that most batches are served in parts.
            part: 2,
            epoch: EPOCH,
            digest_key: DigestKey::from([7; 16]),
            auth: None,
            allow_shutdown: false,
            pools: pools.iter().map(|spec| ServedPool::tmpfs(*spec, "/pool")).collect(),
            socket: None,
        });
        Server {
            service,
            limits,
            now: Duration::ZERO,
            instances: BTreeMap::new(),
            tokens: BTreeMap::new(),
            releasing: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> &State {
        self.service.state()
    }

    /// Whether the instance has not ended.
    pub(crate) fn knows(&self, instance: u32) -> bool {
        self.instances.contains_key(&instance)
    }

    /// What an instance uses.
    pub(crate) fn usage(&self, instance: u32) -> Usage<'_> {
        let usage = self.state().usage_after(InstanceNumber(instance - 1), self.now).next();
        usage.filter(|usage| usage.number.0 == instance).expect("the instance has not ended")
    }

    /// The regions of an instance.
    pub(crate) fn regions_of(&self, instance: u32) -> Vec<RegionInfo> {
        let regions = self.state().regions_after(RegionId(0));
        regions.filter(|region| region.owner == Some(InstanceNumber(instance))).collect()
    }

    /// Checks the invariants, and what can be seen of instances and connections.
    fn check(&mut self) {
        self.service.check();
        let figures = self.service.state().figures(self.now);
        let connections = self.instances.values().map(|instance| u64::from(instance.connections)).sum();
        assert_eq!((figures.instances, figures.connections), (self.instances.len() as u64, connections));
    }

    /// One turn of a connection's task: serves up to so many frames, then writes once.
    pub(crate) fn turn(&mut self, connection: &mut Connection, frames: usize, trace: &mut Trace) {
        let mut output = std::mem::take(&mut connection.output);
        let mut is_over = false;
        for _ in 0..frames {
            match self.serve(connection, &mut output, trace) {
                Served::Part => {
                    connection.output = output;
                    return;
                }
                Served::Yes if matches!(connection.task, Task::Serving) => {}
                Served::Yes | Served::Nothing => break,
                Served::Over => {
                    is_over = true;
                    break;
                }
            }
        }
        self.write(connection, &output, is_over, trace);
    }

    /// Ends a turn: what is retired is released, the answers go out, and a connection ends whose peer is gone.
    fn write(&mut self, connection: &mut Connection, output: &Output, is_over: bool, trace: &mut Trace) {
        self.begin_releases();
        if let Task::AwaitingRelease = connection.task {
            assert!(!self.releasing.is_empty(), "a frame waits for something that will come");
        }
        let is_written = output.is_empty() || connection.answers.write(output.bytes());
        let is_free = matches!(connection.task, Task::Serving);
        if is_over || is_free && !is_written {
            self.close(connection, trace);
        }
    }

    /// Serves one frame, if one has arrived.
    fn serve(&mut self, connection: &mut Connection, output: &mut Output, trace: &mut Trace) -> Served {
        let number = connection.number;
        let Connection { requests, session, greeted, kind, .. } = connection;
        let (frame, consumed) = match decode(requests.arrived(), MAX_BODY) {
            Ok(Step::Frame { frame, consumed }) => (frame, consumed),
            Ok(Step::Need(_)) if requests.is_over() => return Served::Over,
            Ok(Step::Need(_)) => return Served::Nothing,
            Err(error) => panic!("clients send nothing but frames: {error}"),
        };
        let opcode = frame.opcode().expect("clients send operations that there are");
        let expected = self.expected(*greeted, &frame);
        let before = self.state().figures(self.now);
        let at = connection.part_at.take().unwrap_or(output.len());
        let next = self.service.serve(session, &frame, self.now, output);
        if next == Next::Again {
            assert!(!matches!(expected, Some(FrameStatus::HelloRequired)), "it has no say any more");
            trace.note(self.now, Event::Step("a batch was served in part", number));
            connection.part_at = Some(at);
            self.check();
            return Served::Part;
        }
        let answer = &output.bytes()[at..];
        let status = status_of(answer);
        if opcode != Opcode::Hello {
            // A HELLO has a secret that is another in each run.
            trace.absorb(&requests.arrived()[..consumed]);
            trace.absorb(answer);
        }
        trace.note(self.now, Event::Frame(opcode, status.unwrap_or(FrameStatus::Ok), number));
        if expected.is_some() {
            assert_eq!(status, expected, "{frame:?} on connection {number}");
        }
        if expected == Some(FrameStatus::HelloRequired) {
            assert_eq!(next, Next::Close, "a connection of before a resumption ends");
            assert_eq!(self.state().figures(self.now), before, "and has no say");
            trace.note(self.now, Event::Step("a stale request was refused", number));
        }
        if opcode == Opcode::Hello && status == Some(FrameStatus::Ok) {
            let hello = *frame.record::<HelloRequest>().expect("it was served");
            *greeted = Some(self.greeted(&hello, answer));
        }
        if opcode == Opcode::AssertPins && status == Some(FrameStatus::Ok) {
            self.check_asserted(&frame, answer);
        }
        let attaches = matches!(opcode, Opcode::RequestAlloc | Opcode::GetRegion);
        assert!(*kind == ConnectionKind::Control && attaches || !matches!(next, Next::Attach { .. }));
        let header = *frame.header();
        connection.task = match next {
            Next::MakeRegion(region) => Task::Making(region, header),
            Next::AwaitRelease => {
                trace.note(self.now, Event::Step("a request waits for memory to be released", number));
                Task::AwaitingRelease
            }
            Next::Continue | Next::Attach { .. } | Next::Close => Task::Serving,
            Next::Again => unreachable!("it was dealt with"),
            Next::Shutdown => panic!("nobody may stop the server"),
        };
        if !matches!(connection.task, Task::AwaitingRelease) {
            connection.requests.consume(consumed);
        }
        self.check();
        if next == Next::Close { Served::Over } else { Served::Yes }
    }

    /// Pins that were said to be in use are on the registration that they were said of.
    fn check_asserted(&self, frame: &Frame<'_>, answer: &[u8]) {
        let records = frame.records::<PinsRecord>().expect("it was served");
        let statuses = statuses(&answer[Header::SIZE..], records.len()).expect("each record has a status");
        for (record, _) in records.iter().zip(statuses).filter(|(_, status)| *status == RecordStatus::Ok) {
            let entry = self.state().find(Digest::from(record.digest.to_bytes()));
            assert_eq!(entry.map(|entry| entry.generation), Some(record.generation.get()), "{record:?}");
        }
    }

    /// With which status a frame has to be answered, where that follows from sessions alone.
    fn expected(&self, greeted: Option<Greeted>, frame: &Frame<'_>) -> Option<FrameStatus> {
        if let Some(Greeted { instance, incarnation }) = greeted {
            let is_stale = self.instances[&instance].incarnation != incarnation;
            return is_stale.then_some(FrameStatus::HelloRequired);
        }
        let hello = frame.record::<HelloRequest>().expect("clients begin with HELLO");
        if hello.session == SessionToken::NONE {
            let is_full = self.instances.len() >= self.limits.max_instances as usize;
            return Some(if is_full { FrameStatus::Limit } else { FrameStatus::Ok });
        }
        Some(match self.tokens.get(&hello.session.0) {
            None => FrameStatus::Unauthorized,
            Some(instance) => {
                // One that goes on may have as many that the server does not know to be lost.
                let limit = self.limits.max_connections_per_instance * (1 + u32::from(hello.resume));
                let is_full = self.instances[instance].connections >= limit;
                if is_full { FrameStatus::Limit } else { FrameStatus::Ok }
            }
        })
    }

    /// Takes note of a HELLO that was accepted.
    fn greeted(&mut self, hello: &HelloRequest, answer: &[u8]) -> Greeted {
        let Ok(Step::Frame { frame, .. }) = decode(answer, 2 * MAX_BODY) else {
            panic!("HELLO is answered at once");
        };
        let response = frame.record::<HelloResponse>().expect("it was accepted");
        let instance = response.instance.get();
        let is_new = hello.session == SessionToken::NONE;
        assert_eq!(self.tokens.insert(response.session.0, instance), (!is_new).then_some(instance));
        let new = Watched { connections: 0, grace_end: None, incarnation: 0 };
        let watched = self.instances.entry(instance).or_insert(new);
        watched.connections += 1;
        watched.grace_end = None;
        watched.incarnation += u32::from(hello.resume);
        Greeted { instance, incarnation: watched.incarnation }
    }

    /// The memory of a region is there, or can't be had.
    pub(crate) fn region_made(
        &mut self,
        connection: &mut Connection,
        made: Made,
        memory: &mut Memory,
        trace: &mut Trace,
    ) {
        let Task::Making(region, request) = connection.task else { panic!("the connection waits for it") };
        let result = match made {
            Made::Yes => {
                memory.make(region.id.0, region.page_size, region.pages);
                Ok(None)
            }
            Made::NoSpace => Err(io::Error::from(Errno::NOSPC)),
            Made::Broken => Err(io::Error::other("broken")),
        };
        let mut output = Output::default();
        let next = self.service.region_made(&connection.session, &request, region.id, result, &mut output);
        let status = status_of(output.bytes()).expect("it is answered");
        trace.note(self.now, Event::Step("a region was made, or not", connection.number));
        trace.note(self.now, Event::Frame(Opcode::RequestAlloc, status, connection.number));
        let greeted = connection.greeted.expect("it has asked for a region");
        let is_stale = self.instances[&greeted.instance].incarnation != greeted.incarnation;
        let expected = match made {
            Made::NoSpace => FrameStatus::NoSpace,
            Made::Broken => FrameStatus::Internal,
            Made::Yes if is_stale => {
                trace.note(self.now, Event::Step("a region came too late", connection.number));
                FrameStatus::HelloRequired
            }
            Made::Yes => FrameStatus::Ok,
        };
        assert_eq!(status, expected, "of a region that was made: {made:?}");
        self.check();
        if let Next::Attach { writable, .. } = next {
            assert!(writable && connection.kind == ConnectionKind::Control, "its owner gets a descriptor");
        }
        connection.task = Task::Serving;
        self.write(connection, &output, next == Next::Close, trace);
    }

    /// The server's end is told that its peer is gone. It notices only while it reads.
    pub(crate) fn hang_up(&mut self, connection: &mut Connection, trace: &mut Trace) {
        connection.requests.cut(0, End::Told);
        connection.answers.cut(connection.answers.on_the_way(), End::Told);
        if matches!(connection.task, Task::Serving) {
            self.close(connection, trace);
        }
    }

    fn close(&mut self, connection: &mut Connection, trace: &mut Trace) {
        connection.task = Task::Closed;
        connection.requests.cut(0, End::Told);
        connection.answers.cut(connection.answers.on_the_way(), End::Told);
        self.service.close(&connection.session, self.now);
        if let Some(Greeted { instance, .. }) = connection.greeted {
            let watched = self.instances.get_mut(&instance).expect("it had a connection");
            watched.connections -= 1;
            if watched.connections == 0 {
                watched.grace_end = Some(self.now + self.limits.grace);
            }
        }
        self.begin_releases();
        self.check();
        trace.note(self.now, Event::Step("the server closed a connection", connection.number));
    }

    /// Has come to a time at which everything ends that is over by then.
    pub(crate) fn expire(&mut self, trace: &mut Trace) {
        let now = self.now;
        let is_over = |watched: &Watched| watched.grace_end.is_some_and(|end| end <= now);
        let before = self.instances.len();
        self.instances.retain(|_, watched| !is_over(watched));
        let instances = &self.instances;
        self.tokens.retain(|_, instance| instances.contains_key(instance));
        let expired = self.service.expire(now);
        assert_eq!(expired.instances, before - self.instances.len(), "who has no connection ends in time");
        assert!(self.service.next_expiry().is_none_or(|next| next > now), "nothing is overdue");
        if expired.instances > 0 {
            trace.note(now, Event::Step("an instance ended", expired.instances));
        }
        if expired.pins > 0 {
            trace.note(now, Event::Step("a pin by name ran out", 0));
        }
        self.begin_releases();
        self.check();
    }

    fn begin_releases(&mut self) {
        while let Some(region) = self.service.next_retired() {
            self.releasing.push(region.id);
        }
    }

    /// The memory of one region is released.
    pub(crate) fn released(&mut self, index: usize, memory: &mut Memory, trace: &mut Trace) {
        let region = self.releasing.swap_remove(index);
        memory.release(region.0);
        self.service.released(region);
        self.check();
        trace.note(self.now, Event::Step("the memory of a region was released", index));
    }
}

/// The status of an answer, if there is one.
fn status_of(answer: &[u8]) -> Option<FrameStatus> {
    match decode(answer, 2 * MAX_BODY) {
        Ok(Step::Frame { frame, consumed }) => {
            assert_eq!(consumed, answer.len(), "one frame is answered by one");
            assert!(frame.flags().contains(Flags::RESPONSE), "an answer says so");
            Some(frame.status())
        }
        Ok(Step::Need(_)) if answer.is_empty() => None,
        other => panic!("the server sends nothing but frames: {other:?}"),
    }
}
