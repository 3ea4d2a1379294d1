//! The world of one run: the server, its clients, their connections and memory, and who has a turn next. The seed decides.

use std::collections::BTreeMap;
use std::time::Duration;

use maru_proto::{ConnectionKind, SessionToken};
use maru_server::state::{Limits, PoolSpec};

use super::client::{Client, Phase};
use super::comparison::Registration;
use super::connection::{Connection, Task};
use super::faults::Faults;
use super::memory::Memory;
use super::random::Random;
use super::server::{Made, Server};
use super::trace::{Event, Trace};

const PAGE_SIZES: [u64; 2] = [4096, 8192];
const POOLS: [PoolSpec; 2] =
    [PoolSpec { size: 14 * 4096, granularity: 4096 }, PoolSpec { size: 12 * 4096, granularity: 8192 }];
const MAX_CLIENTS: usize = 5;
/// Requests that a connection carries at a time.
const MAX_IN_FLIGHT: usize = 5;
const GRACE: Duration = Duration::from_secs(2);
const PIN_TTL: Duration = Duration::from_secs(5);

/// Who has a turn.
#[derive(Clone, Copy)]
enum Turn {
    Act,
    Serve,
    Take,
    Make,
    Release,
    Notice,
    Time,
}

const TURNS: &[(usize, Turn)] = &[
    (20, Turn::Act),
    (30, Turn::Serve),
    (30, Turn::Take),
    (8, Turn::Make),
    (4, Turn::Release),
    (2, Turn::Notice),
    (2, Turn::Time),
];

/// Everything.
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) server: Server,
    pub(crate) memory: Memory,
    pub(crate) connections: BTreeMap<usize, Connection>,
    pub(crate) clients: BTreeMap<usize, Client>,
    pub(crate) pins_run_out: bool,
    pub(crate) faults: Faults,
    /// By generation.
    pub(crate) registrations: BTreeMap<u32, Registration>,
    pub(crate) last_connection: usize,
    last_client: usize,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let pins_run_out = random.one_in(2);
        let limits = Limits {
            max_entries: 20,
            max_pins_per_entry: 6,
            max_instances: 7,
            max_connections_per_instance: 4,
            max_regions_per_instance: 3,
            min_page_size: 4096,
            max_page_size: 8192,
            grace: GRACE,
            pin_ttl: if pins_run_out { PIN_TTL } else { Duration::ZERO },
        };
        let faults = Faults::new(&mut random);
        World {
            random,
            trace: Trace::default(),
            server: Server::new(limits, &POOLS),
            memory: Memory::default(),
            connections: BTreeMap::new(),
            clients: BTreeMap::new(),
            pins_run_out,
            faults,
            registrations: BTreeMap::new(),
            last_connection: 0,
            last_client: 0,
        }
    }

    /// Lets somebody have a turn.
    pub(crate) fn step(&mut self) {
        let Faults { losses, give_ups, deaths, pauses, .. } = self.faults;
        if self.random.one_in(losses) {
            self.lose_one();
        } else if self.random.one_in(give_ups) {
            self.give_one_up();
        } else if self.random.one_in(deaths) {
            self.kill_one();
        } else if self.random.one_in(pauses) {
            let of = if self.random.one_in(3) { PIN_TTL } else { GRACE };
            self.pass(3 * of / 2);
        } else {
            let turn = self.random.weighted(TURNS);
            if !self.turn(turn) {
                self.act();
            }
        }
        self.forget_ended();
        self.look();
    }

    /// `false` where there is nothing to do for who has a turn.
    fn turn(&mut self, turn: Turn) -> bool {
        match turn {
            Turn::Act => false,
            Turn::Serve => self.serve_one(),
            Turn::Take => self.take_one(),
            Turn::Make => self.make_one(),
            Turn::Release => self.release_one(),
            Turn::Notice => self.notice_one(),
            Turn::Time => {
                let milliseconds = 1 + u64::try_from(self.random.below(300)).expect("it is small");
                self.pass(Duration::from_millis(milliseconds));
                true
            }
        }
    }

    /// Some client does something.
    fn act(&mut self) {
        if self.clients.len() < MAX_CLIENTS && self.random.one_in(8) {
            self.start_client();
            return;
        }
        let Some(number) = self.one_of(|_| true) else { return };
        let client = self.clients.get_mut(&number).expect("it was found");
        if client.phase == Phase::Down && self.random.one_in(3) {
            self.resume(number);
            return;
        }
        if client.phase == Phase::Up && client.links.len() < 2 && self.random.one_in(10) {
            let kind = if self.random.one_in(2) { ConnectionKind::Data } else { ConnectionKind::Control };
            let session = client.session;
            self.connect(number, kind, session, false);
            return;
        }
        let is_alive = self.server.knows(client.instance);
        let Some(request) = client.act(&mut self.random, &mut self.memory, is_alive) else { return };
        let open = self.open_links(number);
        let link = self.random.pick(&open).expect("a client that is up has a connection");
        self.send(number, link, request);
        while self.random.one_in(2) && self.clients[&number].links[link].in_flight.len() < MAX_IN_FLIGHT {
            let client = self.clients.get_mut(&number).expect("it is there");
            let request = client.act(&mut self.random, &mut self.memory, is_alive);
            request.into_iter().for_each(|request| self.send(number, link, request));
        }
    }

    /// A client that has room for requests, and is as it is asked for.
    pub(crate) fn one_of(&mut self, wanted: impl Fn(&Client) -> bool) -> Option<usize> {
        let has_room = |client: &Client| client.links.iter().all(|link| link.in_flight.len() < MAX_IN_FLIGHT);
        let clients = self.clients.values().filter(|client| has_room(client) && wanted(client));
        let clients = clients.map(|client| client.number).collect::<Vec<_>>();
        self.random.pick(&clients)
    }

    pub(crate) fn start_client(&mut self) -> usize {
        self.last_client += 1;
        let number = self.last_client;
        let page_size = self.random.pick(&PAGE_SIZES).expect("there are some");
        self.clients.insert(number, Client::new(number, page_size));
        self.note("a client started", number);
        self.connect(number, ConnectionKind::Data, SessionToken::NONE, false);
        number
    }

    /// A client that has lost its connections opens another one, to go on on it.
    pub(crate) fn resume(&mut self, number: usize) {
        let client = self.clients.get_mut(&number).expect("it is there");
        client.phase = Phase::Resuming;
        let session = client.session;
        self.note("a client tries to go on", number);
        self.connect(number, ConnectionKind::Data, session, true);
    }

    /// The server serves some connection.
    fn serve_one(&mut self) -> bool {
        let ready = self.connections.values().filter(|connection| connection.can_be_served());
        let ready = ready.map(|connection| connection.number).collect::<Vec<_>>();
        let Some(number) = self.random.pick(&ready) else { return false };
        let frames = 1 + self.random.below(3);
        self.serve(number, frames);
        true
    }

    pub(crate) fn serve(&mut self, number: usize, frames: usize) {
        let connection = self.connections.get_mut(&number).expect("it is there");
        let on_the_way = connection.requests.on_the_way();
        let is_torn = on_the_way > 0 && self.random.one_in(self.faults.torn_frames);
        connection.requests.arrive(if is_torn { self.random.below(on_the_way) } else { on_the_way });
        self.server.turn(connection, frames, &mut self.trace);
        if is_torn {
            self.note("a frame may have been torn", number);
        }
    }

    /// Some client takes its next answer.
    fn take_one(&mut self) -> bool {
        let links = self.clients.values().flat_map(|client| {
            (0..client.links.len()).map(|link| (client.number, link, client.links[link].connection))
        });
        let ready = links.filter(|(_, _, connection)| self.connections[connection].answers.is_ready());
        let ready = ready.map(|(client, link, _)| (client, link)).collect::<Vec<_>>();
        let Some((client, link)) = self.random.pick(&ready) else { return false };
        self.take(client, link);
        true
    }

    /// Memory of some region is made, or can't be.
    fn make_one(&mut self) -> bool {
        let waiting = self.connections.values().filter(|it| matches!(it.task, Task::Making(..)));
        let waiting = waiting.map(|connection| connection.number).collect::<Vec<_>>();
        let Some(number) = self.random.pick(&waiting) else { return false };
        let made = if !self.random.one_in(self.faults.failed_regions) {
            Made::Yes
        } else if self.random.one_in(2) {
            Made::NoSpace
        } else {
            Made::Broken
        };
        self.make(number, made);
        true
    }

    pub(crate) fn make(&mut self, number: usize, made: Made) {
        let connection = self.connections.get_mut(&number).expect("it is there");
        self.server.region_made(connection, made, &mut self.memory, &mut self.trace);
    }

    /// The memory of some region is released.
    pub(crate) fn release_one(&mut self) -> bool {
        if self.server.releasing.is_empty() {
            return false;
        }
        let index = self.random.below(self.server.releasing.len());
        self.server.released(index, &mut self.memory, &mut self.trace);
        for connection in self.connections.values_mut() {
            if let Task::AwaitingRelease = connection.task {
                connection.task = Task::Serving;
            }
        }
        true
    }

    /// The server notices a connection that its client does not use any more.
    fn notice_one(&mut self) -> bool {
        let lost = self.lost_connections();
        let Some(number) = self.random.pick(&lost) else { return false };
        self.notice(number);
        true
    }

    /// The server notices that a connection is lost, as soon as it reads again.
    pub(crate) fn notice(&mut self, number: usize) {
        let connection = self.connections.get_mut(&number).expect("it is there");
        self.server.hang_up(connection, &mut self.trace);
    }

    /// Time passes. The server looks at the clock a little later now and then.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.server.now += time;
        if !self.random.one_in(8) {
            self.server.expire(&mut self.trace);
        }
    }

    pub(crate) fn note(&mut self, what: &'static str, who: usize) {
        self.trace.note(self.server.now, Event::Step(what, who));
    }
}
