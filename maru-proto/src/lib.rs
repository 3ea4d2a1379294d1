//! The wire of maru, version 1, without I/O: frames, records, statuses, the digest of a key and the checksum of a chunk.
//!
//! A conversation is a sequence of frames, each a 16-byte [`Header`] and a body: one record, or an array of
//! records of one type. Records are plain little-endian structs that are cast in place, so neither encoding nor
//! decoding copies or allocates. This crate has no sockets and no clock; [`decode`] borrows from the caller's
//! bytes, [`encode`] writes into them.
//!
//! ```
//! use maru_proto::{DigestKey, Flags, Head, Opcode, Step, decode, encode};
//!
//! let key = DigestKey::from([7; 16]);
//! let digests = [key.digest(b"first chunk"), key.digest(b"second chunk")];
//!
//! let mut wire = [0; 64];
//! let head = Head::request(Opcode::BatchLookupKv, Flags::PIN | Flags::PREFIX_STOP, 42);
//! let written = encode(&mut wire, head, &digests)?;
//!
//! let Step::Frame { frame, consumed } = decode(&wire[..written], maru_proto::DEFAULT_MAX_BODY)? else {
//!     panic!("the whole frame is there");
//! };
//! assert_eq!((consumed, frame.request_id()), (written, 42));
//! assert_eq!(frame.records::<maru_proto::KeyDigest>()?, digests);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache_lines;
mod checksum;
mod digest;
mod frame;
mod hello;
mod latency;
mod opcode;
mod pool_header;
mod records;
mod status;

pub use cache_lines::CacheLines;
pub use checksum::checksum;
pub use digest::{DigestKey, KeyDigest};
pub use frame::{
    BodyError, BufferTooSmall, DecodeError, Flags, Frame, Head, Header, Step, decode, encode,
    encode_statuses, encode_with,
};
pub use hello::{
    AUTH_TOKEN_MAX, AuthToken, AuthTokenTooLong, ConnectionKind, FEATURE_NO_GRACE, HelloRequest,
    HelloResponse, INSTANCE_ID_MAX, InstanceId, InvalidInstanceId, SessionToken, VersionRange,
};
pub use latency::LatencyBucket;
pub use opcode::Opcode;
pub use pool_header::{InvalidPoolUuid, PoolHeader, PoolHeaderError, PoolUuid};
pub use records::{
    AllocationFilter, ClientOperation, EntryRecord, EntryRequest, EvictionReason, GetRegionRequest,
    HeartbeatRecord, HeldPinsRecord, LatencyRecord, LatencyRequest, ListAllocationsRequest, ListPinsRequest,
    LocationRecord, POOL_PATH_MAX, PageRecord, PagesRequest, PinsRecord, PoolCoherence, PoolKind, PoolRecord,
    ReclaimRequest, RegionRecord, RegionState, RegisterRecord, ReleasePinsRecord, ReportRecord,
    ReportsRequest, RequestAllocRequest, ReturnAllocRequest, SERVER_RELEASE_MAX, SOCKET_PATH_MAX,
    ServerRecord, SocketRecord, StatKind, StatRecord, UsageRecord, UsageRequest,
};
pub use status::{FrameStatus, RecordStatus, STATUS_PADDING, statuses};

/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"MR";

/// The version of the wire that this crate speaks.
pub const VERSION: u8 = 1;

/// Bytes of the largest request body a server takes unless it says otherwise in HELLO: 16,384 digests, about a
/// millisecond of work, so that no single frame holds the server longer.
pub const DEFAULT_MAX_BODY: u32 = 256 * 1024;

/// Every body is a multiple of this many bytes.
pub const BODY_ALIGN: usize = 8;

/// The largest response body, in bytes, to a request whose body may have `max_body` bytes: a digest of 16 bytes is
/// answered by a location of 32.
pub const fn max_response_body(max_body: u32) -> u32 {
    max_body.saturating_mul(2)
}
