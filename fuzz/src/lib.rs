//! What the targets have in common: frames as raw as they are needed, and a server without sockets to send them to.

mod folder;
mod request;
mod server;

use maru_proto::{Flags, Frame, Header, MAGIC, Step, VERSION, decode, max_response_body};
use zerocopy::IntoBytes;

pub use folder::{Folder, open_journal};
pub use request::{Ask, Damage, Key, Which, Who, Whose};
pub use server::{Event, LIMITS, Made, POOLS, Server, Turn, turns};

/// The bytes of a frame, which may be one that no encoder makes.
pub fn frame_of(opcode: u8, flags: Flags, status: u16, request_id: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        opcode,
        flags: flags.bits().into(),
        status: status.into(),
        request_id: request_id.into(),
        body_len: u32::try_from(body.len()).expect("bodies are small").into(),
    };
    [header.as_bytes(), body].concat()
}

/// The whole frames that bytes begin with.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || match decode(bytes, max_response_body(maru_proto::DEFAULT_MAX_BODY)) {
        Ok(Step::Frame { frame, consumed }) => {
            bytes = &bytes[consumed..];
            Some(frame)
        }
        _ => None,
    })
}
