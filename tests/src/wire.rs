//! An instance that says what a test tells it to, on the wire itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use maru_proto::{
    ConnectionKind, DEFAULT_MAX_BODY, DigestKey, Flags, FrameStatus, Head, HelloRequest, HelloResponse,
    InstanceId, Opcode, RecordStatus, RegionRecord, RegisterRecord, RequestAllocRequest, SessionToken, Step,
    decode, encode, statuses,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{PAGE, ServerProcess};

/// One connection, one request at a time.
#[derive(Debug)]
pub struct WireClient {
    stream: UnixStream,
    hello: HelloResponse,
}

impl WireClient {
    /// Opens an instance.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub fn connect(server: &ServerProcess) -> WireClient {
        let mut stream = UnixStream::connect(server.socket()).expect("the server accepts");
        let name = InstanceId::new("on the wire").expect("a valid name");
        let hello = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
        let hello = call(&mut stream, Opcode::Hello, &[hello]);
        let hello = HelloResponse::read_from_bytes(&hello).expect("HELLO is answered by its record");
        WireClient { stream, hello }
    }

    /// The key of the digests.
    pub fn digest_key(&self) -> DigestKey {
        self.hello.digest_key
    }

    /// Takes a region of so many pages of [`PAGE`] bytes; its id.
    ///
    /// # Panics
    /// When there is none.
    pub fn region(&mut self, pages: u32) -> u32 {
        let request = RequestAllocRequest {
            size: (u64::from(pages) * PAGE as u64).into(),
            page_size: (PAGE as u64).into(),
            pool_id: RequestAllocRequest::ANY_POOL.into(),
            reserved: 0.into(),
        };
        let region = call(&mut self.stream, Opcode::RequestAlloc, &[request]);
        RegionRecord::read_from_bytes(&region).expect("a region is one record").region_id.get()
    }

    /// Registers chunks.
    ///
    /// # Panics
    /// When the answer is none.
    pub fn register(&mut self, records: &[RegisterRecord]) -> Vec<RecordStatus> {
        let answer = call(&mut self.stream, Opcode::BatchRegisterKv, records);
        statuses(&answer, records.len()).expect("one status for each").collect()
    }
}

/// Sends a request; the body of its answer.
fn call<T: IntoBytes + Immutable>(stream: &mut UnixStream, opcode: Opcode, records: &[T]) -> Vec<u8> {
    let mut request = vec![0; 16 + size_of_val(records)];
    encode(&mut request, Head::request(opcode, Flags::NONE, 7), records).expect("the room is made");
    stream.write_all(&request).expect("the server reads");
    let mut input = Vec::new();
    loop {
        match decode(&input, DEFAULT_MAX_BODY).expect("the server sends frames") {
            Step::Frame { frame, .. } => {
                assert_eq!(frame.status(), FrameStatus::Ok, "{opcode}");
                return frame.body().to_vec();
            }
            Step::Need(need) => {
                let filled = input.len();
                input.resize(filled + need, 0);
                stream.read_exact(&mut input[filled..]).expect("the server answers");
            }
        }
    }
}
