//! How clients talk to the server: connections that they open and lose, requests that they send, answers that they take.

use maru_proto::{
    ConnectionKind, Frame, FrameStatus, HelloRequest, HelloResponse, InstanceId, SessionToken, Step, decode,
};

use super::client::{Context, Link, Phase};
use super::connection::{Connection, End};
use super::request::Request;
use super::server::MAX_BODY;
use super::world::World;

impl World {
    /// A client opens a connection and says HELLO on it.
    pub(crate) fn connect(
        &mut self,
        number: usize,
        kind: ConnectionKind,
        session: SessionToken,
        resume: bool,
    ) {
        self.last_connection += 1;
        let connection = self.last_connection;
        self.connections.insert(connection, Connection::new(connection, kind));
        let client = self.clients.get_mut(&number).expect("it is there");
        client.links.push(Link { connection, in_flight: Default::default(), is_open: false });
        let link = client.links.len() - 1;
        let name = InstanceId::new(&format!("client-{number}")).expect("it is a name");
        let mut hello = HelloRequest::new(name, kind, session);
        hello.resume = u8::from(resume);
        self.send(number, link, Request::Hello(Box::new(hello)));
    }

    /// A client sends a request, or the same twice.
    pub(crate) fn send(&mut self, number: usize, link: usize, mut request: Request) {
        if request.may_be_repeated() && self.random.one_in(self.faults.repetitions) {
            self.note("a request was sent twice", number);
            if let Request::Register { chunks, is_repeated, .. } = &mut request {
                *is_repeated = true;
                let client = self.clients.get_mut(&number).expect("it is there");
                for (_, place) in chunks {
                    client.page(*place).expect("it has the page").pending += 1;
                }
            }
            let open = self.open_links(number);
            let other = self.random.pick(&open).unwrap_or(link);
            self.send_once(number, other, request.clone());
        }
        self.send_once(number, link, request);
    }

    fn send_once(&mut self, number: usize, link: usize, request: Request) {
        let client = self.clients.get_mut(&number).expect("it is there");
        client.last_request += 1;
        let link = &mut client.links[link];
        let connection = self.connections.get_mut(&link.connection).expect("both ends are there");
        // Where the connection is lost already, its client will learn of it.
        connection.requests.write(&request.encode(client.last_request));
        if request.is_answered() {
            link.in_flight.push_back((client.last_request, request));
        }
    }

    /// The connections of a client that it can ask on.
    pub(crate) fn open_links(&self, number: usize) -> Vec<usize> {
        let links = &self.clients[&number].links;
        (0..links.len()).filter(|at| links[*at].is_open).collect()
    }

    /// A client takes the next answer on one of its connections, or learns that it has ended.
    pub(crate) fn take(&mut self, number: usize, link: usize) {
        let client = self.clients.get_mut(&number).expect("it is there");
        let connection =
            self.connections.get_mut(&client.links[link].connection).expect("both ends are there");
        let answers = &mut connection.answers;
        let on_the_way = answers.on_the_way();
        let is_torn = on_the_way > 0 && self.random.one_in(self.faults.torn_frames);
        answers.arrive(if is_torn { self.random.below(on_the_way) } else { on_the_way });
        let bytes = match decode(answers.arrived(), 2 * MAX_BODY) {
            Ok(Step::Frame { consumed, .. }) => {
                let bytes = answers.arrived()[..consumed].to_vec();
                answers.consume(consumed);
                bytes
            }
            Ok(Step::Need(_)) if answers.is_over() => {
                self.note("a client learned that a connection is lost", number);
                self.lose_all(number);
                return;
            }
            Ok(Step::Need(_)) => return,
            Err(error) => panic!("the server sends nothing but frames: {error}"),
        };
        let Ok(Step::Frame { frame, .. }) = decode(&bytes, 2 * MAX_BODY) else {
            unreachable!("it was decoded before");
        };
        self.take_frame(number, link, &frame);
    }

    fn take_frame(&mut self, number: usize, link: usize, frame: &Frame<'_>) {
        let client = self.clients.get_mut(&number).expect("it is there");
        let (id, request) = match client.links[link].in_flight.pop_front() {
            Some(next) => next,
            // The one answer to a request that wants none says that the session has gone on elsewhere.
            None => {
                assert_eq!(frame.status(), FrameStatus::HelloRequired, "{frame:?} answers nothing");
                self.lose_all(number);
                return;
            }
        };
        if frame.status() == FrameStatus::HelloRequired {
            // The server has served a HELLO by which the session went on, of a connection that was given up before.
            self.note("a client found itself on a stale connection", number);
            self.lose_all(number);
            return;
        }
        assert_eq!(
            (frame.request_id(), frame.opcode()),
            (id, Some(request.opcode())),
            "answers keep the order"
        );
        if let Request::Hello(hello) = &request {
            self.take_hello(number, link, hello, frame);
            return;
        }
        let mut context = Context {
            memory: &self.memory,
            trace: &mut self.trace,
            now: self.server.now,
            is_alive: self.server.knows(client.instance),
            pins_run_out: self.pins_run_out,
        };
        let next = client.take(&request, frame, &mut context);
        next.into_iter().for_each(|next| self.send(number, link, next));
        let client = self.clients.get_mut(&number).expect("it is there");
        if client.phase == Phase::Resuming && self.random.one_in(self.faults.interruptions) {
            self.note("a client was interrupted as its session went on", number);
            self.lose_all(number);
        } else if client.phase == Phase::Resuming && client.links[link].in_flight.is_empty() {
            client.phase = Phase::Up;
            self.note("a session goes on", number);
            let client = &self.clients[&number];
            if self.server.knows(client.instance) {
                self.compare_with(client);
            }
        }
    }

    fn take_hello(&mut self, number: usize, link: usize, hello: &HelloRequest, frame: &Frame<'_>) {
        let client = self.clients.get_mut(&number).expect("it is there");
        match frame.status() {
            FrameStatus::Ok => {
                let response = frame.record::<HelloResponse>().expect("HELLO is answered");
                client.take_session(response);
                client.links[link].is_open = true;
                match client.phase {
                    Phase::Greeting => client.phase = Phase::Up,
                    Phase::Resuming => {
                        let requests = client.go_on();
                        requests.into_iter().for_each(|request| self.send(number, link, request));
                    }
                    _ => self.note("a further connection joined", number),
                }
            }
            FrameStatus::Unauthorized => {
                assert!(!self.server.knows(client.instance), "a session goes on as long as it lasts");
                self.note("a client came back too late", number);
                self.lose_all(number);
                self.clients.get_mut(&number).expect("it is there").phase = Phase::Ended;
            }
            FrameStatus::Limit => {
                // The server has not noticed yet how many connections are lost, or other clients are too many.
                let is_further = hello.session != SessionToken::NONE && hello.resume == 0;
                if is_further {
                    let link = client.links.remove(link);
                    self.give_up(&link, End::Told);
                } else {
                    self.lose_all(number);
                }
                self.note("a connection was one too many", number);
            }
            other => panic!("HELLO is not answered so: {other:?}"),
        }
    }

    /// Connections that the server has, and no client any more.
    pub(crate) fn lost_connections(&self) -> Vec<usize> {
        let used = self.used_connections();
        let open = self.connections.values().filter(|connection| !connection.is_closed());
        open.map(|connection| connection.number).filter(|number| !used.contains(number)).collect()
    }

    /// Connections that clients use.
    pub(crate) fn used_connections(&self) -> Vec<usize> {
        self.clients.values().flat_map(|client| &client.links).map(|link| link.connection).collect()
    }

    /// A client is no more.
    pub(crate) fn end_client(&mut self, number: usize) {
        self.lose_all(number);
        self.clients.remove(&number);
    }

    /// A client has no use for its connections any more.
    pub(crate) fn lose_all(&mut self, number: usize) {
        let client = self.clients.get_mut(&number).expect("it is there");
        for link in client.lose_all() {
            let end = self.random.weighted(&[(3, End::Told), (1, End::Silent)]);
            self.give_up(&link, end);
        }
    }

    fn give_up(&mut self, link: &Link, end: End) {
        let connection = self.connections.get_mut(&link.connection).expect("both ends are there");
        connection.give_up(if connection.is_closed() { End::Told } else { end });
    }

    /// Takes away what nobody has a use for any more.
    pub(crate) fn forget_ended(&mut self) {
        self.clients.retain(|_, client| client.phase != Phase::Ended);
        let used = self.used_connections();
        self.connections.retain(|number, connection| !connection.is_closed() || used.contains(number));
    }
}
