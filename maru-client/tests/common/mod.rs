//! A server that says what a test tells it to.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{Read, Write};

use maru_proto::{FrameStatus, Head, Header, HelloResponse, Step, decode, encode, encode_statuses};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// The header of the next request.
pub fn request(stream: &mut impl Read, input: &mut Vec<u8>) -> Header {
    loop {
        match decode(input, 4096).unwrap() {
            Step::Frame { frame, consumed } => {
                let header = *frame.header();
                input.drain(..consumed);
                return header;
            }
            Step::Need(need) => {
                let filled = input.len();
                input.resize(filled + need, 0);
                stream.read_exact(&mut input[filled..]).unwrap();
            }
        }
    }
}

/// Answers a request.
pub fn answer<T: IntoBytes + Immutable>(
    stream: &mut impl Write,
    request: &Header,
    status: FrameStatus,
    records: &[T],
) {
    let mut bytes = [0; 512];
    let length = encode(&mut bytes, Head::response(request, status), records).unwrap();
    stream.write_all(&bytes[..length]).unwrap();
}

/// Says HELLO to whoever has connected.
pub fn greet(stream: &mut (impl Read + Write), instance: u32) {
    greet_in_run(stream, instance, 1);
}

/// Does the same as a server that was started so often.
pub fn greet_in_run(stream: &mut (impl Read + Write), instance: u32, epoch: u64) {
    let hello = request(stream, &mut Vec::new());
    let mut response = HelloResponse::new_zeroed();
    response.epoch = epoch.into();
    response.instance = instance.into();
    response.max_body = 4096.into();
    answer(stream, &hello, FrameStatus::Ok, &[response]);
}

/// An answer to one EXISTS_KV.
pub fn found(request: &Header) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    let (statuses, _) = encode_statuses(&mut bytes, Head::response(request, FrameStatus::Ok), 1).unwrap();
    statuses[0] = 0;
    bytes
}
