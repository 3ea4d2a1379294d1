//! A peer that speaks raw frames to a real server process.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use maru_proto::{
    ConnectionKind, DEFAULT_MAX_BODY, Flags, Frame, FrameStatus, Head, HelloRequest, HelloResponse,
    InstanceId, KeyDigest, Opcode, RegionRecord, RequestAllocRequest, SessionToken, StatKind, StatRecord,
    Step, decode, encode, max_response_body,
};
use maru_tests::{PATIENCE, ServerProcess};
use zerocopy::{FromBytes, Immutable, IntoBytes};

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// One connection that says what it is told to.
pub struct Peer {
    stream: Box<dyn ReadWrite>,
    unix: Option<UnixStream>,
    input: Vec<u8>,
    next_id: u32,
}

/// An owned response.
#[derive(Debug)]
pub struct Response {
    pub status: FrameStatus,
    pub opcode: Option<Opcode>,
    pub id: u32,
    pub body: Vec<u8>,
}

impl Peer {
    /// Connects without saying anything.
    pub fn connect(server: &ServerProcess) -> Peer {
        Peer::over(UnixStream::connect(server.socket()).expect("the server accepts"))
    }

    /// Speaks over a socket that is connected.
    pub fn over(stream: UnixStream) -> Peer {
        Peer::new(Box::new(stream.try_clone().expect("a socket can be cloned")), Some(stream))
    }

    /// Connects and says HELLO as a new instance.
    pub fn greeted(server: &ServerProcess, name: &str) -> (Peer, HelloResponse) {
        let mut peer = Peer::connect(server);
        let hello = peer.hello(name, SessionToken::NONE);
        (peer, hello)
    }

    fn new(stream: Box<dyn ReadWrite>, unix: Option<UnixStream>) -> Peer {
        if let Some(unix) = &unix {
            unix.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        }
        Peer { stream, unix, input: Vec::new(), next_id: 1 }
    }

    pub fn tcp(address: &str) -> Peer {
        let stream = std::net::TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Peer::new(Box::new(stream), None)
    }

    /// The socket itself.
    pub fn unix(&self) -> &UnixStream {
        self.unix.as_ref().expect("a Unix connection")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// A request as bytes.
    pub fn frame<T: IntoBytes + Immutable>(opcode: Opcode, flags: Flags, id: u32, records: &[T]) -> Vec<u8> {
        let mut bytes = vec![0; 16 + size_of_val(records).next_multiple_of(8)];
        encode(&mut bytes, Head::request(opcode, flags, id), records).expect("the room is made");
        bytes
    }

    /// Sends a request and waits for its response.
    pub fn call<T: IntoBytes + Immutable>(
        &mut self,
        opcode: Opcode,
        flags: Flags,
        records: &[T],
    ) -> Response {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&Peer::frame(opcode, flags, id, records));
        let response = self.response();
        assert_eq!((response.opcode, response.id), (Some(opcode), id));
        response
    }

    pub fn hello(&mut self, name: &str, session: SessionToken) -> HelloResponse {
        let id = InstanceId::new(name).expect("a valid name");
        let response =
            self.call(Opcode::Hello, Flags::NONE, &[HelloRequest::new(id, ConnectionKind::Data, session)]);
        assert_eq!(response.status, FrameStatus::Ok);
        HelloResponse::read_from_bytes(&response.body).expect("a HELLO response")
    }

    /// A region of so many pages of 4 KiB.
    pub fn region(&mut self, pages: u64) -> RegionRecord {
        let request = RequestAllocRequest {
            size: (pages * 4096).into(),
            page_size: 4096.into(),
            pool_id: RequestAllocRequest::ANY_POOL.into(),
            reserved: 0.into(),
        };
        let response = self.call(Opcode::RequestAlloc, Flags::NONE, &[request]);
        assert_eq!(response.status, FrameStatus::Ok);
        RegionRecord::read_from_bytes(&response.body).expect("a region")
    }

    /// A figure of the server's; of those with a detail, the sum over all.
    pub fn stat(&mut self, kind: StatKind) -> u64 {
        let response = self.call::<KeyDigest>(Opcode::GetStats, Flags::NONE, &[]);
        let records = <[StatRecord]>::ref_from_bytes(&response.body).expect("figures are whole records");
        records
            .iter()
            .filter(|record| record.kind.get() == kind as u16)
            .map(|record| record.value.get())
            .sum()
    }

    /// The next response.
    pub fn response(&mut self) -> Response {
        self.next().expect("the server answers, it did not close")
    }

    /// The next response; `None` when the server closed the connection instead.
    pub fn next(&mut self) -> Option<Response> {
        loop {
            match decode(&self.input, max_response_body(DEFAULT_MAX_BODY)).expect("the server sends frames") {
                Step::Frame { frame, consumed } => {
                    let response = owned(&frame);
                    self.input.drain(..consumed);
                    return Some(response);
                }
                Step::Need(_) => {}
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.input.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("waiting for the server: {error}"),
            }
        }
    }
}

fn owned(frame: &Frame<'_>) -> Response {
    assert!(frame.flags().contains(Flags::RESPONSE));
    Response {
        status: frame.status(),
        opcode: frame.opcode(),
        id: frame.request_id(),
        body: frame.body().to_vec(),
    }
}
