//! Requests as the fuzzer thinks of them: what some client could send, about what there is, and ways to spoil its bytes.

use std::time::Duration;

use arbitrary::Arbitrary;
use maru_proto::{
    AuthToken, ConnectionKind, EntryRequest, FEATURE_NO_GRACE, Flags, FrameStatus, GetRegionRequest,
    HelloRequest, InstanceId, KeyDigest, LatencyBucket, LatencyRequest, ListAllocationsRequest,
    ListPinsRequest, Opcode, PagesRequest, PinsRecord, ReclaimRequest, RegisterRecord, ReleasePinsRecord,
    ReportRecord, ReportsRequest, RequestAllocRequest, ReturnAllocRequest, SessionToken, UsageRequest,
};
use maru_server::state::{Digest, InstanceNumber, RegionId, State};
use zerocopy::{Immutable, IntoBytes};

use crate::frame_of;

/// Keys that are used: more than there is room for entries.
pub(crate) const KEYS: u8 = 24;
/// Records of a batch at most; some more than a body may have.
const BATCH: usize = 40;
/// What clients on TCP have to show.
pub(crate) const SECRET: &[u8] = b"secret";

/// A key out of few, so that requests meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Key(u8);

impl Key {
    pub(crate) fn number(key: u8) -> Key {
        Key(key)
    }

    /// Every key.
    pub(crate) fn all() -> impl Iterator<Item = Key> {
        (0..KEYS).map(Key)
    }

    /// Some keys share the half on which the index works.
    fn bytes(self) -> [u8; 16] {
        let key = u128::from(self.0 % KEYS);
        ((key << 64) | (key % 7)).to_le_bytes()
    }

    pub(crate) fn digest(self) -> Digest {
        Digest::from(self.bytes())
    }

    fn on_the_wire(self) -> KeyDigest {
        KeyDigest::from_bytes(self.bytes())
    }
}

/// One of the regions that there are, or another number.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Which(u8);

impl Which {
    /// The one that is so far down the list.
    pub(crate) fn place(place: u8) -> Which {
        Which(place)
    }

    fn region(self, state: &State) -> u32 {
        let regions = state.regions_after(RegionId(0)).map(|region| region.id.0).collect::<Vec<_>>();
        let place = usize::from(self.0) % (regions.len() + 1);
        regions.get(place).copied().unwrap_or(u32::from(self.0))
    }
}

/// One of the instances that there are, or another number.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Whose(u8);

impl Whose {
    fn instance(self, state: &State) -> u32 {
        let instances = state.usage_after(InstanceNumber(0), Duration::ZERO);
        let instances = instances.map(|usage| usage.number.0).collect::<Vec<_>>();
        let place = usize::from(self.0) % (instances.len() + 1);
        instances.get(place).copied().unwrap_or(u32::from(self.0))
    }
}

/// Whose connection HELLO opens.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Who {
    /// A new instance's.
    New,
    /// That of an instance which there is, or was; a new one's where there was none.
    Of(u8),
    /// That of whoever has this token.
    Token([u8; 16]),
}

/// What is asked for.
#[derive(Arbitrary, Clone, Debug)]
#[expect(missing_docs, reason = "they are the operations of the wire, with their fields")]
pub enum Ask {
    Hello { who: Who, is_control: bool, resumes: bool, knows_secret: bool, no_grace: bool },
    Alloc { pages: u8, page_units: u8, pool: Option<u8> },
    Return(Which),
    List { filter: u8, after: u8 },
    GetRegion(Which),
    ListPools,
    Reclaim { want: u8, of: Option<Which>, evicts: bool },
    GetPages { of: Which, first: u8 },
    Register(Vec<(Key, Which, u8, u16)>),
    Lookup { keys: Vec<Key>, pins: bool, prefix_stop: bool },
    Exists { keys: Vec<Key>, prefix_stop: bool },
    Delete(Vec<Key>),
    Pin(Vec<Key>),
    Unpin { keys: Vec<Key>, guards: bool, no_reply: bool },
    AssertPins { pins: Vec<(Key, u8, u8)>, is_right: bool, is_last: bool },
    Stats,
    Usage { after: u8 },
    Heartbeat,
    GetSocket,
    Latencies { opcode: u8, upper_ns: u32 },
    GetServer,
    GetEntry(Key),
    ListPins { of: Option<Key>, whose: Option<Whose>, slot: u8, instance: u8, held: u8 },
    ReleasePins { pins: Vec<(Key, Whose, u8)>, is_right: bool },
    Report { buckets: Vec<(u8, u8, u8)>, is_right: bool },
    ListReports { instance: u8, operation: u8, upper_ns: u32 },
}

/// What a request may be about.
pub(crate) struct Known<'a> {
    pub(crate) state: &'a State,
    /// Of all instances that there were.
    pub(crate) sessions: &'a [SessionToken],
}

impl Known<'_> {
    /// Of the entry of a key.
    fn generation(&self, key: Key) -> Option<u32> {
        self.state.find(key.digest()).map(|entry| entry.generation)
    }
}

impl Ask {
    /// The frame that asks so.
    pub(crate) fn frame(&self, known: &Known<'_>, id: u32) -> Vec<u8> {
        let region = |which: Which| which.region(known.state).into();
        let flags = |flags: &[(bool, Flags)]| {
            flags.iter().filter(|(is_set, _)| *is_set).fold(Flags::NONE, |all, (_, flag)| all | *flag)
        };
        match self {
            Ask::Hello { who, is_control, resumes, knows_secret, no_grace } => {
                let session = match *who {
                    Who::New => SessionToken::NONE,
                    Who::Of(_) if known.sessions.is_empty() => SessionToken::NONE,
                    Who::Of(n) => known.sessions[usize::from(n) % known.sessions.len()],
                    Who::Token(token) => SessionToken(token),
                };
                let kind = if *is_control { ConnectionKind::Control } else { ConnectionKind::Data };
                let name = InstanceId::new("an instance").expect("it is a name");
                let mut hello = HelloRequest::new(name, kind, session);
                hello.resume = u8::from(*resumes);
                hello.features = if *no_grace { FEATURE_NO_GRACE } else { 0 }.into();
                if *knows_secret {
                    hello.auth = AuthToken::new(SECRET).expect("it is short");
                }
                frame(Opcode::Hello, Flags::NONE, id, &[hello])
            }
            Ask::Alloc { pages, page_units, pool } => {
                // Some that are not allowed among them.
                let page_size = [4096, 8192, 4096, 8192, 4096, 12288, 4096, 0][usize::from(page_units % 8)];
                let request = RequestAllocRequest {
                    size: (u64::from(pages % 16) * page_size).into(),
                    page_size: page_size.into(),
                    pool_id: pool.map_or(RequestAllocRequest::ANY_POOL, |pool| u32::from(pool % 3)).into(),
                    reserved: 0.into(),
                };
                frame(Opcode::RequestAlloc, Flags::NONE, id, &[request])
            }
            Ask::Return(which) => {
                let request = ReturnAllocRequest { region_id: region(*which), reserved: 0.into() };
                frame(Opcode::ReturnAlloc, Flags::NONE, id, &[request])
            }
            Ask::List { filter, after } => {
                let request = ListAllocationsRequest {
                    filter: u32::from(filter % 4).into(),
                    after: u32::from(*after).into(),
                };
                frame(Opcode::ListAllocations, Flags::NONE, id, &[request])
            }
            Ask::GetRegion(which) => {
                let request = GetRegionRequest { region_id: region(*which), reserved: 0.into() };
                frame(Opcode::GetRegion, Flags::NONE, id, &[request])
            }
            Ask::ListPools => empty(Opcode::ListPools, id),
            Ask::Reclaim { want, of, evicts } => {
                let region_id = of.map_or(0.into(), region);
                let request = ReclaimRequest { want: u32::from(*want).into(), region_id };
                frame(Opcode::ReclaimPages, flags(&[(*evicts, Flags::EVICT)]), id, &[request])
            }
            Ask::GetPages { of, first } => {
                let first_page = u32::from(first % 4) * 32;
                let request = PagesRequest { region_id: region(*of), first_page: first_page.into() };
                frame(Opcode::GetPages, Flags::NONE, id, &[request])
            }
            Ask::Register(chunks) => {
                let record = |(key, which, page, length): &(Key, Which, u8, u16)| RegisterRecord {
                    digest: key.on_the_wire(),
                    region_id: which.region(known.state).into(),
                    length: u32::from(length % 4100).into(),
                    page_index: u32::from(page % 8).into(),
                    checksum: u32::from(page / 8).into(),
                };
                let records = chunks.iter().take(BATCH).map(record).collect::<Vec<_>>();
                batch(Opcode::RegisterKv, Opcode::BatchRegisterKv, Flags::NONE, id, &records)
            }
            Ask::Lookup { keys, pins, prefix_stop } => {
                let flags = flags(&[(*pins, Flags::PIN), (*prefix_stop, Flags::PREFIX_STOP)]);
                batch(Opcode::LookupKv, Opcode::BatchLookupKv, flags, id, &digests(keys))
            }
            Ask::Exists { keys, prefix_stop } => {
                let flags = flags(&[(*prefix_stop, Flags::PREFIX_STOP)]);
                batch(Opcode::ExistsKv, Opcode::BatchExistsKv, flags, id, &digests(keys))
            }
            Ask::Delete(keys) => {
                batch(Opcode::DeleteKv, Opcode::BatchDeleteKv, Flags::NONE, id, &digests(keys))
            }
            Ask::Pin(keys) => batch(Opcode::PinKv, Opcode::BatchPinKv, Flags::NONE, id, &digests(keys)),
            Ask::Unpin { keys, guards, no_reply } => {
                let flags = flags(&[(*guards, Flags::PIN), (*no_reply, Flags::NO_REPLY)]);
                batch(Opcode::UnpinKv, Opcode::BatchUnpinKv, flags, id, &digests(keys))
            }
            Ask::AssertPins { pins, is_right, is_last } => {
                let record = |(key, guards, named): &(Key, u8, u8)| {
                    let generation = known.generation(*key).filter(|_| *is_right);
                    PinsRecord {
                        digest: key.on_the_wire(),
                        generation: generation.unwrap_or(0).into(),
                        guards: u32::from(guards % 4).into(),
                        named: u32::from(named % 4).into(),
                        reserved: 0.into(),
                    }
                };
                let records = pins.iter().take(BATCH).map(record).collect::<Vec<_>>();
                frame(Opcode::AssertPins, flags(&[(*is_last, Flags::LAST)]), id, &records)
            }
            Ask::Stats => empty(Opcode::GetStats, id),
            Ask::Usage { after } => {
                let request = UsageRequest { after: u32::from(*after).into(), reserved: 0.into() };
                frame(Opcode::GetUsage, Flags::NONE, id, &[request])
            }
            Ask::Heartbeat => empty(Opcode::Heartbeat, id),
            Ask::GetSocket => empty(Opcode::GetSocket, id),
            Ask::Latencies { opcode, upper_ns } => {
                let request = LatencyRequest {
                    opcode: u16::from(*opcode).into(),
                    reserved: [0; 6],
                    upper_ns: u64::from(*upper_ns).into(),
                };
                frame(Opcode::GetLatencies, Flags::NONE, id, &[request])
            }
            Ask::GetServer => empty(Opcode::GetServer, id),
            Ask::GetEntry(key) => {
                frame(Opcode::GetEntry, Flags::NONE, id, &[EntryRequest { digest: key.on_the_wire() }])
            }
            Ask::ListPins { of, whose, slot, instance, held } => {
                let request = ListPinsRequest {
                    digest: of.map_or(KeyDigest::from_bytes([0; 16]), Key::on_the_wire),
                    after: (u64::from(slot % 32) << 32 | u64::from(instance % 8)).into(),
                    instance: whose.map_or(0, |whose| whose.instance(known.state)).into(),
                    held_s: u32::from(held % 8).into(),
                    of_digest: u32::from(of.is_some()).into(),
                    reserved: 0.into(),
                };
                frame(Opcode::ListPins, Flags::NONE, id, &[request])
            }
            Ask::ReleasePins { pins, is_right } => {
                let record = |(key, whose, held): &(Key, Whose, u8)| {
                    let generation = known.generation(*key).filter(|_| *is_right);
                    ReleasePinsRecord {
                        digest: key.on_the_wire(),
                        generation: generation.unwrap_or(0).into(),
                        instance: whose.instance(known.state).into(),
                        held_s: u64::from(held % 4).into(),
                    }
                };
                let records = pins.iter().take(BATCH).map(record).collect::<Vec<_>>();
                frame(Opcode::ReleasePins, Flags::NONE, id, &records)
            }
            Ask::Report { buckets, is_right } => {
                let record = |&(operation, bucket, calls): &(u8, u8, u8)| {
                    let upper_ns =
                        LatencyBucket::of(1 << (bucket % 40)).upper_ns().wrapping_add(u64::from(!is_right));
                    let calls = u64::from(calls);
                    ReportRecord {
                        instance: 0.into(),
                        operation: u16::from(operation % 10).into(),
                        reserved: 0.into(),
                        upper_ns: upper_ns.into(),
                        calls: calls.into(),
                        total_ns: calls.saturating_mul(upper_ns).into(),
                    }
                };
                let records = buckets.iter().take(BATCH).map(record).collect::<Vec<_>>();
                frame(Opcode::ReportStats, Flags::NONE, id, &records)
            }
            Ask::ListReports { instance, operation, upper_ns } => {
                let request = ReportsRequest {
                    instance: u32::from(instance % 8).into(),
                    operation: u16::from(*operation).into(),
                    reserved: 0.into(),
                    upper_ns: u64::from(*upper_ns).into(),
                };
                frame(Opcode::ListReports, Flags::NONE, id, &[request])
            }
        }
    }
}

fn digests(keys: &[Key]) -> Vec<KeyDigest> {
    keys.iter().take(BATCH).map(|key| key.on_the_wire()).collect()
}

fn batch<T: IntoBytes + Immutable>(
    single: Opcode,
    batch: Opcode,
    flags: Flags,
    id: u32,
    records: &[T],
) -> Vec<u8> {
    frame(if records.len() == 1 { single } else { batch }, flags, id, records)
}

fn frame<T: IntoBytes + Immutable>(opcode: Opcode, flags: Flags, id: u32, records: &[T]) -> Vec<u8> {
    frame_of(opcode as u8, flags, FrameStatus::Ok as u16, id, records.as_bytes())
}

/// The frame that stops the server.
pub(crate) fn shutdown(id: u32) -> Vec<u8> {
    empty(Opcode::Shutdown, id)
}

fn empty(opcode: Opcode, id: u32) -> Vec<u8> {
    frame::<KeyDigest>(opcode, Flags::NONE, id, &[])
}

/// What is wrong with a frame.
#[derive(Arbitrary, Clone, Debug)]
pub enum Damage {
    /// Its magic.
    Magic(u8),
    /// Its version.
    Version(u8),
    /// Its opcode, which is this one.
    Opcode(u8),
    /// Some of its flags, RESPONSE perhaps among them.
    Flags(u16),
    /// It has a status.
    Status(u16),
    /// It says that its body is so long.
    Length(u32),
    /// Bytes are missing at its body's end, and it says so.
    Shorter(u8),
    /// So many bytes follow its body, and it says so.
    Longer(u8),
    /// A byte of its body.
    Body(u8, u8),
}

impl Damage {
    pub(crate) fn apply(&self, frame: &mut Vec<u8>) {
        match *self {
            Damage::Magic(byte) => frame[0] = byte,
            Damage::Version(version) => frame[2] = version,
            Damage::Opcode(opcode) => frame[3] = opcode,
            Damage::Flags(flags) => frame[4..6].copy_from_slice(&flags.to_le_bytes()),
            Damage::Status(status) => frame[6..8].copy_from_slice(&status.to_le_bytes()),
            Damage::Length(length) => frame[12..16].copy_from_slice(&length.to_le_bytes()),
            Damage::Shorter(bytes) => {
                let length = frame.len().saturating_sub(usize::from(bytes)).max(16);
                resize(frame, length);
            }
            Damage::Longer(bytes) => resize(frame, frame.len() + usize::from(bytes)),
            Damage::Body(at, byte) => {
                if let Some(place) = frame.get_mut(16 + usize::from(at)) {
                    *place = byte;
                }
            }
        }
    }
}

fn resize(frame: &mut Vec<u8>, length: usize) {
    frame.resize(length, 0);
    let body = u32::try_from(length - 16).expect("frames are small");
    frame[12..16].copy_from_slice(&body.to_le_bytes());
}
