//! A server without sockets: the real service, and what the tasks of its connections do around it, checked after every frame.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::mem;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use maru_client::fuzzing::records_taken;
use maru_proto::{
    AuthToken, BodyError, DigestKey, FEATURE_NO_GRACE, Flags, Frame, FrameStatus, Header, HeldPinsRecord,
    HelloRequest, HelloResponse, LatencyRecord, LatencyRequest, ListAllocationsRequest, ListPinsRequest,
    Opcode, RegionRecord, ReportRecord, ReportsRequest, SessionToken, Step, UsageRecord, UsageRequest,
    VersionRange, decode, max_response_body,
};
use maru_server::Output;
use maru_server::service::{Next, ServedPool, ServedSocket, Service, ServiceConfig, Session, Transport};
use maru_server::state::{InstanceNumber, Limits, Location, PoolSpec, RegionId, RegionInfo, State};
use rustix::io::Errno;

use crate::request::{Known, SECRET, shutdown};
use crate::{Ask, Damage, Folder, Key, Which, Who, frames, open_journal};

/// So low that inputs of some dozen bytes come to each.
pub const LIMITS: Limits = Limits {
    max_entries: 20,
    max_pins_per_entry: 4,
    max_instances: 4,
    max_connections_per_instance: 3,
    max_regions_per_instance: 3,
    min_page_size: 4096,
    max_page_size: 8192,
    grace: Duration::from_secs(2),
    pin_ttl: Duration::from_secs(5),
};
/// Two pools, in one of which extents are larger than the smallest pages.
pub const POOLS: [PoolSpec; 2] =
    [PoolSpec { size: 14 * 4096, granularity: 4096 }, PoolSpec { size: 12 * 4096, granularity: 8192 }];
/// As few as clients accept.
const MAX_BODY: u32 = 1024;
/// Where connections begin: by which way, and one of them as the operator's.
const CONNECTIONS: [Session; 6] = {
    let (unix, tcp) = (Session::new(Transport::Unix), Session::new(Transport::Tcp));
    [unix, unix, unix, unix.of_operator(), tcp, tcp]
};
/// The operator's.
const OPERATOR: usize = 3;

/// What becomes of the memory of a region.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there.
    Yes,
    /// There is no room.
    NoSpace,
    /// Something else is wrong.
    Broken,
}

/// What happens next.
#[derive(Arbitrary, Clone, Debug)]
pub enum Turn {
    /// A connection's client asks for something.
    Ask(u8, Ask),
    /// Anything else.
    Event(Event),
}

/// As many turns as there is input for, up to `most`. A list by itself would end after two on average.
///
/// # Errors
/// What the input says.
pub fn turns(input: &mut Unstructured<'_>, most: usize) -> arbitrary::Result<Vec<Turn>> {
    let mut turns = Vec::new();
    while !input.is_empty() && turns.len() < most {
        turns.push(input.arbitrary()?);
    }
    Ok(turns)
}

/// What is no request that makes sense.
#[derive(Arbitrary, Clone, Debug)]
pub enum Event {
    /// The memory of a region is made, or not.
    Made(u8, Made),
    /// The memory of a region is released.
    Released,
    /// Milliseconds pass.
    Pass(u16),
    /// A connection ends.
    Closed(u8),
    /// The process ends, and another goes on from what it left.
    Restarted,
    /// The same, in good order, with a request that comes too late.
    Stopped(u8, Ask),
    /// A request with something wrong about its frame.
    Spoilt(u8, Ask, Damage),
    /// Bytes that may be no frame.
    Bytes(u8, Vec<u8>),
}

/// What the server's end of a connection is doing.
#[derive(Clone, Copy, Debug)]
enum Task {
    Serving,
    /// It waits for the memory of a region, which this request asked for.
    Making(RegionInfo, Header),
    /// It waits until memory is released, and then serves the same frame again.
    AwaitingRelease,
}

#[derive(Debug)]
struct Connection {
    session: Session,
    input: Vec<u8>,
    task: Task,
}

impl Connection {
    fn new(session: Session) -> Connection {
        Connection { session, input: Vec::new(), task: Task::Serving }
    }
}

/// A server, its connections and its clock.
#[derive(Debug)]
pub struct Server {
    service: Service,
    /// Where the journal is; without one nothing is kept.
    folder: Option<Folder>,
    connections: Vec<Connection>,
    /// Of all instances that there were.
    sessions: Vec<SessionToken>,
    /// Instances of this run that asked for no grace.
    graceless: HashSet<u32>,
    /// Regions whose memory is being released.
    releasing: VecDeque<RegionId>,
    now: Duration,
    last_request: u32,
}

impl Server {
    /// A server of which nothing is kept.
    pub fn forgetful() -> Server {
        Server::around(Service::new(config()), None)
    }

    /// A server that goes on from what a folder holds; `None` where that is refused.
    pub fn of(folder: Folder) -> Option<Server> {
        let service = restored(&folder)?;
        Some(Server::around(service, Some(folder)))
    }

    fn around(service: Service, folder: Option<Folder>) -> Server {
        Server {
            service,
            folder,
            connections: CONNECTIONS.map(Connection::new).into(),
            sessions: Vec::new(),
            graceless: HashSet::new(),
            releasing: VecDeque::new(),
            now: Duration::ZERO,
            last_request: 0,
        }
    }

    /// Opens the first connections, two of one instance and one of another.
    pub fn greet(&mut self) {
        for (connection, who) in [(0, Who::New), (1, Who::New), (2, Who::Of(0))] {
            self.turn(&Turn::Ask(connection, hello(who)));
        }
    }

    /// Gives either instance a region, with some entries in it, so that inputs need not come to that by themselves.
    pub fn furnish(&mut self) {
        for (connection, first) in [(0, 0), (1, 3)] {
            self.turn(&Turn::Ask(connection, Ask::Alloc { pages: 5, page_units: connection, pool: None }));
            let chunk = |n: u8| (Key::number(first + n), Which::place(connection), n, 4096);
            self.turn(&Turn::Ask(connection, Ask::Register((0..3).map(chunk).collect())));
        }
    }

    /// Its folder, where the process ends here.
    pub fn into_folder(self) -> Option<Folder> {
        self.folder
    }

    /// Lets something happen.
    pub fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Ask(connection, ask) => {
                self.settle(place(*connection));
                let is_open = self.connections[place(*connection)].session.is_open();
                if !is_open && !matches!(ask, Ask::Hello { .. }) {
                    self.ask(*connection, &hello(Who::Of(*connection)), None);
                }
                self.ask(*connection, ask, None);
            }
            Turn::Event(Event::Spoilt(connection, ask, damage)) => self.ask(*connection, ask, Some(damage)),
            Turn::Event(Event::Bytes(connection, bytes)) => self.receive(place(*connection), bytes),
            Turn::Event(Event::Made(connection, made)) => self.made(place(*connection), *made),
            Turn::Event(Event::Released) => self.release(),
            Turn::Event(Event::Pass(milliseconds)) => self.pass(*milliseconds),
            Turn::Event(Event::Closed(connection)) => {
                let connection = place(*connection);
                self.settle(connection);
                self.close(connection);
            }
            Turn::Event(Event::Restarted) => self.restart(),
            Turn::Event(Event::Stopped(connection, ask)) => {
                self.last_request = self.last_request.wrapping_add(1);
                self.receive(0, &shutdown(self.last_request));
                self.ask(*connection, ask, None);
                self.restart();
            }
        }
    }

    fn ask(&mut self, connection: u8, ask: &Ask, damage: Option<&Damage>) {
        self.last_request = self.last_request.wrapping_add(1);
        let known = Known { state: self.service.state(), sessions: &self.sessions };
        let mut frame = ask.frame(&known, self.last_request);
        if let Some(damage) = damage {
            damage.apply(&mut frame);
        }
        self.receive(place(connection), &frame);
    }

    /// Bytes arrive on a connection. Whatever it waits for has come by then.
    fn receive(&mut self, connection: usize, bytes: &[u8]) {
        self.settle(connection);
        self.connections[connection].input.extend_from_slice(bytes);
        self.serve(connection);
    }

    fn settle(&mut self, connection: usize) {
        loop {
            match self.connections[connection].task {
                Task::Serving => return,
                Task::Making(..) => self.made(connection, Made::Yes),
                Task::AwaitingRelease => self.release(),
            }
        }
    }

    /// Serves all whole frames that have arrived.
    fn serve(&mut self, connection: usize) {
        let input = mem::take(&mut self.connections[connection].input);
        self.service.look_ahead_of(frames(&input).take(8));
        let mut served = 0;
        let mut output = Output::default();
        while let Task::Serving = self.connections[connection].task {
            match decode(&input[served..], MAX_BODY) {
                Ok(Step::Need(_)) => break,
                Ok(Step::Frame { frame, consumed }) => {
                    let next = self.serve_one(connection, &frame, &mut output);
                    if next == Next::Close {
                        self.close(connection);
                        return;
                    }
                    if !matches!(next, Next::AwaitRelease | Next::Again) {
                        served += consumed;
                    }
                }
                Err(error) => {
                    let mut output = Output::default();
                    self.service.refuse(&error, &mut output);
                    let (status, header) = error.status();
                    check_refusal(header, status, output.bytes());
                    self.close(connection);
                    return;
                }
            }
        }
        self.connections[connection].input = input[served..].to_vec();
    }

    /// Serves a frame, or the next part of one, of which `output` holds the answer until it is whole.
    fn serve_one(&mut self, connection: usize, frame: &Frame<'_>, whole: &mut Output) -> Next {
        let task = &mut self.connections[connection];
        let next = self.service.serve(&mut task.session, frame, self.now, whole);
        self.after();
        if next == Next::Again {
            return next;
        }
        let output = mem::take(whole);
        let task = &mut self.connections[connection];
        match next {
            Next::MakeRegion(region) => task.task = Task::Making(region, *frame.header()),
            Next::AwaitRelease => {
                assert!(!self.releasing.is_empty(), "a frame waits for something that will come");
                task.task = Task::AwaitingRelease;
            }
            Next::Shutdown => self.service.stop(),
            _ => {}
        }
        if matches!(next, Next::MakeRegion(_) | Next::AwaitRelease) {
            assert!(output.is_empty(), "{frame:?} is answered later");
            return next;
        }
        let is_silent = frame.flags().contains(Flags::NO_REPLY)
            && matches!(frame.opcode(), Some(Opcode::UnpinKv | Opcode::BatchUnpinKv));
        if !(is_silent && output.is_empty()) {
            let answer = check_answer(frame.header(), output.bytes());
            if answer.status() == FrameStatus::Ok {
                let taken = records_taken(frame, &answer);
                assert!(taken.is_none_or(|taken| taken.is_ok()), "a client takes {answer:?} to {frame:?}");
                self.accepted(connection, frame, &answer);
            }
        }
        next
    }

    /// What is to be said of a frame that was not refused.
    fn accepted(&mut self, connection: usize, frame: &Frame<'_>, answer: &Frame<'_>) {
        let opcode = frame.opcode().expect("no other is accepted");
        // As long as it may be: one number is as good as another for the figures.
        self.service.took(opcode, Duration::from_nanos(1 << (frame.request_id() % 64)), 1);
        match opcode {
            Opcode::Hello => {
                let hello = frame.record::<HelloRequest>().expect("HELLO was accepted");
                let response = answer.record::<HelloResponse>().expect("HELLO was accepted");
                let granted = response.features.get();
                assert_eq!(granted, hello.features.get() & FEATURE_NO_GRACE, "what it knows is granted");
                self.sessions.push(response.session);
                if granted != 0 && response.resumed == 0 {
                    self.graceless.insert(response.instance.get());
                }
            }
            Opcode::ReleasePins => assert_eq!(connection, OPERATOR, "nobody else releases others' pins"),
            _ => check_list(frame, answer),
        }
    }

    /// The memory of a region is there, or can't be had.
    fn made(&mut self, connection: usize, made: Made) {
        let Task::Making(region, request) = self.connections[connection].task else { return };
        let made = match made {
            Made::Yes => self.folder.as_ref().map(|folder| folder.make(&region)).transpose(),
            Made::NoSpace => Err(Errno::NOSPC.into()),
            Made::Broken => Err(io::Error::other("broken")),
        };
        let mut output = Output::default();
        let task = &mut self.connections[connection];
        task.task = Task::Serving;
        let next = self.service.region_made(&task.session, &request, region.id, made, &mut output);
        self.after();
        check_answer(&request, output.bytes());
        if next == Next::Close {
            self.close(connection);
        } else {
            self.serve(connection);
        }
    }

    /// The memory of the region that was retired first is released, and whoever waited for it tries again.
    fn release(&mut self) {
        let Some(region) = self.releasing.pop_front() else { return };
        if let Some(folder) = &self.folder {
            folder.remove(region);
        }
        self.service.released(region);
        self.service.check();
        for connection in 0..self.connections.len() {
            if let Task::AwaitingRelease = self.connections[connection].task {
                self.connections[connection].task = Task::Serving;
                self.serve(connection);
            }
        }
    }

    fn pass(&mut self, milliseconds: u16) {
        self.now += Duration::from_millis(u64::from(milliseconds));
        self.service.expire(self.now);
        assert!(self.service.next_expiry().is_none_or(|next| next > self.now), "nothing is overdue");
        for usage in self.service.state().usage_after(InstanceNumber(0), self.now) {
            let is_graceless = self.graceless.contains(&usage.number.0);
            assert!(!is_graceless || usage.connections > 0, "{usage:?} ended with its last connection");
        }
        self.after();
    }

    fn close(&mut self, connection: usize) {
        let fresh = Connection::new(CONNECTIONS[connection]);
        let closed = mem::replace(&mut self.connections[connection], fresh);
        self.service.close(&closed.session, self.now);
        self.after();
    }

    /// What holds after each step, and what its task does then.
    fn after(&mut self) {
        self.service.check();
        while let Some(region) = self.service.next_retired() {
            self.releasing.push_back(region.id);
        }
    }

    /// The process ends, wherever it is, and the next one knows all that it knew, or nothing where nothing is kept.
    pub fn restart(&mut self) {
        if let Some(folder) = &self.folder {
            let before = seen(self.service.state());
            self.service = restored(folder).expect("what was written is read");
            assert_eq!(seen(self.service.state()), before, "a restart changes nothing");
        } else {
            self.service = Service::new(config());
            self.sessions.clear();
        }
        self.connections = CONNECTIONS.map(Connection::new).into();
        self.graceless.clear();
        self.releasing.clear();
        self.now = Duration::ZERO;
        self.after();
    }
}

/// A plain HELLO, which is good for either transport.
fn hello(who: Who) -> Ask {
    Ask::Hello { who, is_control: false, resumes: false, knows_secret: true, no_grace: false }
}

/// Everything that has to outlive the process.
type Seen = (Vec<Option<Location>>, Vec<(RegionInfo, Vec<u64>)>, Vec<(InstanceNumber, String)>);

fn seen(state: &State) -> Seen {
    let entries = Key::all().map(|key| state.find(key.digest())).collect();
    let held = |region: RegionInfo| {
        let pages = region.owner.map(|owner| state.held_pages(owner, region.id, 0));
        let pages = pages.map(|pages| pages.expect("it is the owner's").collect());
        (region, pages.unwrap_or_default())
    };
    let regions = state.regions_after(RegionId(0)).map(held).collect();
    let instances = state.usage_after(InstanceNumber(0), Duration::ZERO);
    (entries, regions, instances.map(|usage| (usage.number, usage.name.to_owned())).collect())
}

fn restored(folder: &Folder) -> Option<Service> {
    let (journal, saved) = open_journal(folder).ok()?;
    let mut service = Service::restore(config(), journal, &saved, Duration::ZERO).ok()?;
    service.check();
    Some(service)
}

fn config() -> ServiceConfig {
    ServiceConfig {
        limits: LIMITS,
        max_body: MAX_BODY,
        part: 3,
        epoch: 1,
        digest_key: DigestKey::from([7; 16]),
        auth: Some(AuthToken::new(SECRET).expect("it is short")),
        allow_shutdown: true,
        pools: POOLS.iter().map(|spec| ServedPool::tmpfs(*spec, "/pool")).collect(),
        socket: Some(ServedSocket { path: "/maru.sock".into(), boot_id: "a boot".to_owned() }),
    }
}

fn place(connection: u8) -> usize {
    usize::from(connection) % CONNECTIONS.len()
}

/// An answer is one whole frame, to this request.
fn check_answer<'a>(request: &Header, answer: &'a [u8]) -> Frame<'a> {
    let Ok(Step::Frame { frame, consumed }) = decode(answer, max_response_body(MAX_BODY)) else {
        panic!("{request:?} is answered by a frame, not {answer:?}");
    };
    assert_eq!(consumed, answer.len(), "one frame is answered by one");
    assert!(frame.flags().contains(Flags::RESPONSE), "{frame:?} says that it answers");
    assert_eq!(frame.request_id(), request.request_id.get());
    assert_eq!(frame.header().opcode, request.opcode);
    match frame.status() {
        FrameStatus::Ok => {}
        FrameStatus::UnsupportedVersion => assert!(frame.record::<VersionRange>().is_ok()),
        _ => assert!(frame.body().is_empty(), "{frame:?} says nothing else"),
    }
    frame
}

/// A list goes on behind what was asked for, in order, so that whoever reads it comes to its end.
fn check_list(request: &Frame<'_>, answer: &Frame<'_>) {
    match request.opcode() {
        Some(Opcode::ListAllocations) => ascends(
            request.record().map(|asked: &ListAllocationsRequest| asked.after.get()),
            answer
                .records()
                .map(|regions: &[RegionRecord]| regions.iter().map(|region| region.region_id.get())),
        ),
        Some(Opcode::GetUsage) => ascends(
            request.record().map(|asked: &UsageRequest| asked.after.get()),
            answer.records().map(|all: &[UsageRecord]| all.iter().map(|usage| usage.instance.get())),
        ),
        Some(Opcode::GetLatencies) => ascends(
            request.record().map(|asked: &LatencyRequest| (asked.opcode.get(), asked.upper_ns.get())),
            answer.records().map(|buckets: &[LatencyRecord]| {
                buckets.iter().map(|bucket| (bucket.opcode.get(), bucket.upper_ns.get()))
            }),
        ),
        Some(Opcode::ListReports) => ascends(
            request.record().map(|asked: &ReportsRequest| {
                (asked.instance.get(), asked.operation.get(), asked.upper_ns.get())
            }),
            answer.records().map(|buckets: &[ReportRecord]| {
                let place = |bucket: &ReportRecord| {
                    (bucket.instance.get(), bucket.operation.get(), bucket.upper_ns.get())
                };
                buckets.iter().map(place)
            }),
        ),
        Some(Opcode::ListPins) => ascends(
            request.record().map(|asked: &ListPinsRequest| asked.after.get()),
            answer.records().map(|all: &[HeldPinsRecord]| all.iter().map(|pins| pins.cursor.get())),
        ),
        _ => {}
    }
}

fn ascends<T: PartialOrd>(after: Result<T, BodyError>, places: Result<impl Iterator<Item = T>, BodyError>) {
    let mut last = after.expect("it was accepted");
    for place in places.expect("clients take them") {
        assert!(place > last, "a list goes on");
        last = place;
    }
}

/// Bytes that are no frame are answered by one that says why.
fn check_refusal(request: Option<&Header>, status: FrameStatus, answer: &[u8]) {
    let Ok(Step::Frame { frame, consumed }) = decode(answer, max_response_body(MAX_BODY)) else {
        panic!("a refusal is a frame, not {answer:?}");
    };
    assert_eq!((consumed, frame.status()), (answer.len(), status));
    if let Some(request) = request {
        check_answer(request, answer);
    }
}
