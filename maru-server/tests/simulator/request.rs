//! What simulated clients ask for, and how it goes over the wire.

use maru_proto::{
    AllocationFilter, Flags, Head, HelloRequest, KeyDigest, ListAllocationsRequest, Opcode, PagesRequest,
    PinsRecord, ReclaimRequest, RegisterRecord, RequestAllocRequest, ReturnAllocRequest, UsageRequest,
    encode,
};
use maru_server::state::Digest;
use zerocopy::{Immutable, IntoBytes};

use super::memory::Place;
use super::server::MAX_BODY;

/// Keys that are used. Those of a chain follow each other.
pub(crate) const KEYS: usize = 14;

/// The digest of a key. Some share the half on which the index works.
pub(crate) fn digest(key: usize) -> KeyDigest {
    KeyDigest::from_bytes(((key as u128) << 64 | (key % 7) as u128).to_le_bytes())
}

/// The same, as the state knows it.
pub(crate) fn state_digest(key: usize) -> Digest {
    Digest::from(digest(key).to_bytes())
}

/// The checksum that chunks of a key are registered with: some have none.
pub(crate) fn checksum(key: usize) -> u32 {
    u32::try_from(key % 3).expect("a rest of three is small") * 0x0123_4567
}

/// A request that is under way, with what its sender has to know when it is answered.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// The first of a connection.
    Hello(Box<HelloRequest>),
    /// Asks for a region of so many pages.
    Alloc {
        pages: u64,
        page_size: u64,
    },
    /// Gives a region back.
    Return(u32),
    /// Takes pages back. `grow` is what to do where there are none: go on to ask for a region, and then to evict.
    Reclaim {
        want: u32,
        evict: bool,
        grow: bool,
    },
    /// Makes chunks visible. `is_repeated` where the same request is sent twice.
    Register {
        chunks: Vec<(usize, Place)>,
        is_repeated: bool,
    },
    /// Looks a prefix up and pins it for guards.
    Acquire(Vec<usize>),
    /// Looks keys up.
    Lookup(Vec<usize>),
    /// Pins a prefix by name.
    Pin(Vec<usize>),
    /// Releases pins by name. `is_held` where the client has them, as far as it knows.
    Unpin {
        keys: Vec<usize>,
        is_held: bool,
    },
    /// Releases pins of guards.
    Release(Vec<usize>),
    /// The same, without an answer.
    ReleaseSilently(Vec<usize>),
    Delete(Vec<usize>),
    Exists(Vec<usize>),
    /// Says which pins are in use.
    Assert {
        records: Vec<PinsRecord>,
        is_last: bool,
    },
    /// Asks which pages of a region the client has.
    Pages(u32),
    /// Asks for the client's regions.
    Regions,
    Usage,
    Heartbeat,
    Stats,
}

impl Request {
    pub(crate) fn opcode(&self) -> Opcode {
        let choose = |count: usize, single, batch| if count == 1 { single } else { batch };
        match self {
            Request::Hello(_) => Opcode::Hello,
            Request::Alloc { .. } => Opcode::RequestAlloc,
            Request::Return(_) => Opcode::ReturnAlloc,
            Request::Reclaim { .. } => Opcode::ReclaimPages,
            Request::Register { chunks, .. } => {
                choose(chunks.len(), Opcode::RegisterKv, Opcode::BatchRegisterKv)
            }
            Request::Acquire(keys) | Request::Lookup(keys) => {
                choose(keys.len(), Opcode::LookupKv, Opcode::BatchLookupKv)
            }
            Request::Pin(keys) => choose(keys.len(), Opcode::PinKv, Opcode::BatchPinKv),
            Request::Unpin { keys, .. } | Request::Release(keys) | Request::ReleaseSilently(keys) => {
                choose(keys.len(), Opcode::UnpinKv, Opcode::BatchUnpinKv)
            }
            Request::Delete(keys) => choose(keys.len(), Opcode::DeleteKv, Opcode::BatchDeleteKv),
            Request::Exists(keys) => choose(keys.len(), Opcode::ExistsKv, Opcode::BatchExistsKv),
            Request::Assert { .. } => Opcode::AssertPins,
            Request::Pages(_) => Opcode::GetPages,
            Request::Regions => Opcode::ListAllocations,
            Request::Usage => Opcode::GetUsage,
            Request::Heartbeat => Opcode::Heartbeat,
            Request::Stats => Opcode::GetStats,
        }
    }

    fn flags(&self) -> Flags {
        match self {
            Request::Acquire(_) => Flags::PIN | Flags::PREFIX_STOP,
            Request::Release(_) => Flags::PIN,
            Request::ReleaseSilently(_) => Flags::PIN | Flags::NO_REPLY,
            Request::Reclaim { evict: true, .. } => Flags::EVICT,
            Request::Assert { is_last: true, .. } => Flags::LAST,
            _ => Flags::NONE,
        }
    }

    /// Whether it is answered.
    pub(crate) fn is_answered(&self) -> bool {
        !matches!(self, Request::ReleaseSilently(_))
    }

    /// Whether its sender may send it twice and make sense of both answers. Pins are not released twice: the second
    /// time might release another's. For the same reason no list of pins is ended twice.
    pub(crate) fn may_be_repeated(&self) -> bool {
        !matches!(
            self,
            Request::Hello(_)
                | Request::Unpin { is_held: true, .. }
                | Request::Release(_)
                | Request::ReleaseSilently(_)
                | Request::Register { is_repeated: true, .. }
                | Request::Assert { .. }
        )
    }

    /// The frame.
    pub(crate) fn encode(&self, request_id: u32) -> Vec<u8> {
        let head = Head::request(self.opcode(), self.flags(), request_id);
        match self {
            Request::Hello(hello) => frame(head, &[**hello]),
            Request::Alloc { pages, page_size } => {
                let request = RequestAllocRequest {
                    size: (pages * page_size).into(),
                    page_size: (*page_size).into(),
                    pool_id: RequestAllocRequest::ANY_POOL.into(),
                    reserved: 0.into(),
                };
                frame(head, &[request])
            }
            Request::Return(region) => {
                frame(head, &[ReturnAllocRequest { region_id: (*region).into(), reserved: 0.into() }])
            }
            Request::Reclaim { want, .. } => {
                frame(head, &[ReclaimRequest { want: (*want).into(), region_id: 0.into() }])
            }
            Request::Register { chunks, .. } => {
                let record = |&(key, place): &(usize, Place)| RegisterRecord {
                    digest: digest(key),
                    region_id: place.region.into(),
                    length: 100.into(),
                    page_index: place.page.into(),
                    checksum: checksum(key).into(),
                };
                frame(head, &chunks.iter().map(record).collect::<Vec<_>>())
            }
            Request::Acquire(keys)
            | Request::Lookup(keys)
            | Request::Pin(keys)
            | Request::Unpin { keys, .. }
            | Request::Release(keys)
            | Request::ReleaseSilently(keys)
            | Request::Delete(keys)
            | Request::Exists(keys) => frame(head, &keys.iter().map(|key| digest(*key)).collect::<Vec<_>>()),
            Request::Assert { records, .. } => frame(head, records),
            Request::Pages(region) => {
                frame(head, &[PagesRequest { region_id: (*region).into(), first_page: 0.into() }])
            }
            Request::Regions => {
                let filter = AllocationFilter::Mine as u32;
                frame(head, &[ListAllocationsRequest { filter: filter.into(), after: 0.into() }])
            }
            Request::Usage => frame(head, &[UsageRequest { after: 0.into(), reserved: 0.into() }]),
            Request::Heartbeat | Request::Stats => frame::<KeyDigest>(head, &[]),
        }
    }
}

fn frame<T: IntoBytes + Immutable>(head: Head, records: &[T]) -> Vec<u8> {
    let mut bytes = vec![0; 16 + MAX_BODY as usize];
    let length = encode(&mut bytes, head, records).expect("requests fit into the largest body");
    bytes.truncate(length);
    bytes
}
