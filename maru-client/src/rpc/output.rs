//! What is about to be written to a socket: frames, one after the other.

use maru_proto::{Flags, Head, Header, KeyDigest, Opcode, encode};
use zerocopy::IntoBytes;

use super::request::Request;
use super::slots::RequestId;
use crate::pins::PinKind;

/// Appends the frame of a request.
pub(super) fn push_request<R: Request>(output: &mut Vec<u8>, request: &R, id: RequestId) {
    push(output, Head::request(request.opcode(), request.flags(), id.0), request.body());
}

/// Appends a frame.
fn push(output: &mut Vec<u8>, head: Head, body: &[u8]) {
    let start = output.len();
    output.resize(start + Header::SIZE + body.len().next_multiple_of(maru_proto::BODY_ALIGN), 0);
    encode(&mut output[start..], head, body).expect("the room was made for the body");
}

/// Appends frames that release one pin of each digest and want no answer.
pub(super) fn push_releases(output: &mut Vec<u8>, kind: PinKind, digests: &[KeyDigest], max_body: usize) {
    for digests in digests.chunks((max_body / size_of::<KeyDigest>()).max(1)) {
        let opcode = if digests.len() == 1 { Opcode::UnpinKv } else { Opcode::BatchUnpinKv };
        push(output, Head::request(opcode, kind.flags() | Flags::NO_REPLY, 0), digests.as_bytes());
    }
}
