//! The records that bodies are made of.
//!
//! Sizes, offsets and lengths are in bytes. Every record is a multiple of eight bytes long.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{KeyDigest, RecordStatus};

macro_rules! records {
    ($($(#[$doc:meta])* $name:ident: $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
            )]
            #[repr(C)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $size && $size % crate::BODY_ALIGN == 0);
        )*

        /// Name and size of every record, for the tests.
        #[cfg(test)]
        const SIZES: &[(&str, usize)] = &[$((stringify!($name), $size)),*];
    };
}

records! {
    /// REQUEST_ALLOC: a region of `size` bytes in pages of `page_size`.
    RequestAllocRequest: 24 {
        /// Bytes of the region; rounded up to whole pages and to the pool's granularity.
        size: U64,
        /// Bytes of a page: the chunk size of the instance.
        page_size: U64,
        /// The pool, or [`RequestAllocRequest::ANY_POOL`].
        pool_id: U32,
        /// 0.
        reserved: U32,
    }

    /// RETURN_ALLOC: the region to give back.
    ReturnAllocRequest: 8 {
        /// The region, owned by the caller.
        region_id: U32,
        /// 0.
        reserved: U32,
    }

    /// GET_REGION: the region to describe.
    GetRegionRequest: 8 {
        /// The region.
        region_id: U32,
        /// 0.
        reserved: U32,
    }

    /// LIST_ALLOCATIONS: whose regions, from where on.
    ListAllocationsRequest: 8 {
        /// The wire value of an [`AllocationFilter`].
        filter: U32,
        /// Only regions with a greater id: 0 at first, then the last id seen, until the answer is empty.
        after: U32,
    }

    /// One region.
    RegionRecord: 80 {
        /// Its id: never 0, below 2^31, given once in a deployment.
        region_id: U32,
        /// The pool that it lies in.
        pool_id: U32,
        /// Where it begins in the pool.
        pool_offset: U64,
        /// Its bytes.
        size: U64,
        /// Bytes of one of its pages.
        page_size: U64,
        /// The owner's instance number; 0 for an orphan.
        owner: U32,
        /// The wire value of a [`RegionState`].
        state: U32,
        /// Its pages.
        pages: U32,
        /// Entries in it.
        entries: U32,
        /// Pages that others freed and the owner has not taken back.
        freed_pages: U32,
        /// The wire value of a [`PoolCoherence`]: that of its pool.
        coherence: U32,
        /// Bytes of the entries in it.
        entry_bytes: U64,
        /// Where it begins in the file that it is mapped from: 0 where that is a file of its own, else an offset in the device.
        file_offset: U64,
        /// Bytes that it takes of the pool, and that may be mapped: at least `size`.
        extent: U64,
    }

    /// One pool.
    PoolRecord: 328 {
        /// Its id.
        pool_id: U32,
        /// The wire value of a [`PoolKind`].
        kind: U32,
        /// Its bytes.
        size: U64,
        /// Bytes not in any region.
        free: U64,
        /// Bytes of the longest free extent: the largest region it could give.
        largest_free: U64,
        /// Regions begin and end at multiples of this.
        granularity: U64,
        /// The UUID that the memory itself carries, in its [`PoolHeader`](crate::PoolHeader).
        uuid: [u8; 16],
        /// How often what was in it has been discarded; in the header too.
        incarnation: U64,
        /// The wire value of a [`PoolCoherence`].
        coherence: U32,
        /// Bytes of the path.
        path_len: U16,
        /// 0.
        reserved: [u8; 2],
        /// Where hosts of this server find the memory: UTF-8.
        path: [u8; POOL_PATH_MAX],
    }

    /// RECLAIM_PAGES: how many pages are wanted back.
    ReclaimRequest: 8 {
        /// Pages wanted at most.
        want: U32,
        /// One of the caller's regions, or 0 for any.
        region_id: U32,
    }

    /// A page that its owner has back.
    PageRecord: 8 {
        /// The region.
        region_id: U32,
        /// The page's index in the region.
        page_index: U32,
    }

    /// GET_PAGES: of which region, and from which page on. Answered by 64-bit words, the first page in the lowest bit of the
    /// first, a bit set where the page is with the owner: neither an entry's nor freed. Words that would not fit are left
    /// out; ask on.
    PagesRequest: 8 {
        /// The region, owned by the caller.
        region_id: U32,
        /// The first page, a multiple of 64.
        first_page: U32,
    }

    /// ASSERT_PINS: the pins that the instance has on one entry.
    PinsRecord: 32 {
        /// The entry's digest.
        digest: KeyDigest,
        /// The registration that was pinned.
        generation: U32,
        /// Pins of guards.
        guards: U32,
        /// Pins by name.
        named: U32,
        /// 0.
        reserved: U32,
    }

    /// REGISTER_KV: a chunk to make visible.
    RegisterRecord: 32 {
        /// Its key's digest.
        digest: KeyDigest,
        /// The region, owned by the caller.
        region_id: U32,
        /// Bytes of the chunk; at least 1, at most a page.
        length: U32,
        /// The index of its page in the region.
        page_index: U32,
        /// The [checksum](crate::checksum) of its bytes, or 0 for none.
        checksum: U32,
    }

    /// Where a chunk is.
    LocationRecord: 32 {
        /// The wire value of a [`RecordStatus`]; without OK the rest is 0.
        status: u8,
        /// 0.
        reserved: [u8; 3],
        /// The region.
        region_id: U32,
        /// Where the chunk begins in the region.
        offset: U64,
        /// Bytes of the chunk.
        length: U64,
        /// The registration's number: a page holds other bytes under another generation.
        generation: U32,
        /// The checksum that it was registered with; 0 for none.
        checksum: U32,
    }

    /// HEARTBEAT, answered: the server's run and its clock.
    HeartbeatRecord: 16 {
        /// The number of the server's run.
        epoch: U64,
        /// Milliseconds since the server started, monotonic.
        uptime_ms: U64,
    }

    /// One figure of GET_STATS. A reader skips kinds it does not know.
    StatRecord: 16 {
        /// The wire value of a [`StatKind`].
        kind: U16,
        /// What the kind's documentation says, or 0.
        detail: U16,
        /// 0.
        reserved: U32,
        /// The figure.
        value: U64,
    }

    /// GET_USAGE: from which instance on.
    UsageRequest: 8 {
        /// Only instances with a greater number: 0 at first, then the last number seen, until the answer is empty.
        after: U32,
        /// 0.
        reserved: U32,
    }

    /// What one instance uses.
    UsageRecord: 200 {
        /// The instance's number.
        instance: U32,
        /// Open connections.
        connections: U32,
        /// Regions owned.
        regions: U32,
        /// Entries in them.
        entries: U32,
        /// Bytes of the regions.
        region_bytes: U64,
        /// Bytes of the entries.
        entry_bytes: U64,
        /// Entries that the instance has pinned, anybody's.
        pinned_entries: U64,
        /// Pins that it holds.
        pins: U64,
        /// Those of them that were taken by name.
        named_pins: U64,
        /// Seconds for which it has held the oldest of them; 0 without any.
        oldest_pin_s: U64,
        /// Milliseconds of its grace period that are left, 0 while it has connections.
        grace_left_ms: U64,
        /// Its name.
        instance_id: crate::InstanceId,
    }

    /// GET_LATENCIES: from which bucket on.
    LatencyRequest: 16 {
        /// Only buckets behind this one: zeros at first, then opcode and bound of the last that was seen, until the answer
        /// is empty.
        opcode: U16,
        /// 0.
        reserved: [u8; 6],
        /// The bound of that bucket.
        upper_ns: U64,
    }

    /// How many frames of one operation took about equally long: a bucket that is not empty. Buckets are in the order of
    /// their opcodes, and for each in that of their bounds; a bound is at most an eighth above what it counts, or 1 ns.
    LatencyRecord: 24 {
        /// The operation. Frames of operations that the server does not know are not measured.
        opcode: U16,
        /// 0.
        reserved: [u8; 6],
        /// Nanoseconds that each of the frames took at most; `u64::MAX` in the bucket of all that took longer than any other
        /// can say.
        upper_ns: U64,
        /// Frames since the server's start.
        count: U64,
    }

    /// REPORT_STATS, and LIST_REPORTS answered: how many calls of one operation of a handler took about equally long. Reports
    /// tell of all calls since the handler connected, so that one that is told twice counts once.
    ReportRecord: 32 {
        /// The instance whose calls they were; 0 in a report, which is of the instance that sends it.
        instance: U32,
        /// The wire value of a [`ClientOperation`].
        operation: U16,
        /// 0.
        reserved: U16,
        /// Nanoseconds that each of the calls took at most: the bound of a [`LatencyBucket`](crate::LatencyBucket).
        upper_ns: U64,
        /// Calls since the handler connected.
        calls: U64,
        /// Nanoseconds that they took together: at most `upper_ns` each.
        total_ns: U64,
    }

    /// LIST_REPORTS: from which bucket on.
    ReportsRequest: 16 {
        /// Only buckets behind this one: zeros at first, then instance, operation and bound of the last that was seen, until
        /// the answer is empty.
        instance: U32,
        /// The operation of that bucket.
        operation: U16,
        /// 0.
        reserved: U16,
        /// The bound of that bucket.
        upper_ns: U64,
    }

    /// GET_SOCKET, answered: where the server's Unix socket lies, and on which host.
    SocketRecord: 128 {
        /// The digest of the boot id that the kernel of the server's host shows, as text without the end of the line: the
        /// path leads a client to the server only where it sees the same.
        host: KeyDigest,
        /// Bytes of the path.
        path_len: U16,
        /// 0.
        reserved: [u8; 2],
        /// The absolute path, in the bytes of the file system.
        path: [u8; SOCKET_PATH_MAX],
    }

    /// GET_SERVER, answered: what the server is, and what it allows.
    ServerRecord: 72 {
        /// Its release, such as `0.1.0`, as UTF-8 that zeros fill up.
        release: [u8; SERVER_RELEASE_MAX],
        /// The number of its process, in its own namespace.
        process: U32,
        /// 1 where the caller may release pins of others, else 0.
        is_operator: U32,
        /// Milliseconds that a session outlives its last connection.
        grace_ms: U64,
        /// Milliseconds that pins by name last after the last of their instance on the entry; 0 for ever.
        pin_ttl_ms: U64,
        /// Instances that there may be.
        max_instances: U32,
        /// Pins that one entry may have.
        max_pins_per_entry: U32,
        /// Regions that one instance may have.
        max_regions_per_instance: U32,
        /// 0.
        reserved: U32,
    }

    /// GET_ENTRY: of which digest.
    EntryRequest: 16 {
        /// The digest.
        digest: KeyDigest,
    }

    /// GET_ENTRY, answered: where an entry is.
    EntryRecord: 64 {
        /// Its digest.
        digest: KeyDigest,
        /// Its region.
        region_id: U32,
        /// The page's index in the region.
        page_index: U32,
        /// Where it begins in the region.
        offset: U64,
        /// Its bytes.
        length: U64,
        /// The registration's number.
        generation: U32,
        /// The instance that owns the region; 0 for an orphan.
        owner: U32,
        /// Pins of all instances.
        pins: U32,
        /// The checksum that it was registered with; 0 for none.
        checksum: U32,
        /// 0.
        reserved: [U32; 2],
    }

    /// LIST_PINS: which pins, from where on.
    ListPinsRequest: 40 {
        /// Only pins on the entry of this digest, where `of_digest` is 1.
        digest: KeyDigest,
        /// Only what follows in the list: 0 at first, then the cursor of the last record seen, until the answer is empty.
        after: U64,
        /// Only pins of this instance; 0 for all.
        instance: U32,
        /// Only pins that were taken so many seconds ago or more.
        held_s: U32,
        /// 1 for the pins of one entry, else 0.
        of_digest: U32,
        /// 0.
        reserved: U32,
    }

    /// LIST_PINS, answered: the pins of one instance on one entry. Entries come and go while a list is read: what was pinned
    /// all the while is in it once.
    HeldPinsRecord: 64 {
        /// The entry's digest.
        digest: KeyDigest,
        /// What goes on after this record.
        cursor: U64,
        /// The instance; 0 where the record says nothing but how far the server has looked.
        instance: U32,
        /// The registration that is pinned.
        generation: U32,
        /// Pins of guards.
        guards: U32,
        /// Pins by name.
        named: U32,
        /// Seconds since the instance took the first of them.
        held_s: U64,
        /// Bytes of the entry.
        length: U64,
        /// 0.
        reserved: U64,
    }

    /// RELEASE_PINS: whose pins by name, on what. Answered by a status each: OK, NOT_FOUND where there is no such registration
    /// or instance, NOT_PINNED where it has no pin by name, or only such as were taken later than `held_s` says.
    ReleasePinsRecord: 32 {
        /// The entry's digest.
        digest: KeyDigest,
        /// The registration that is pinned.
        generation: U32,
        /// The instance that has the pins.
        instance: U32,
        /// Seconds for which it has had them at least, as LIST_PINS told: what it took since is not released.
        held_s: U64,
    }
}

/// Bytes that a pool's path may have.
pub const POOL_PATH_MAX: usize = 256;

/// Bytes that the path of a Unix socket may have: as many as the kernel takes.
pub const SOCKET_PATH_MAX: usize = 108;

/// Bytes that the release of a server may have.
pub const SERVER_RELEASE_MAX: usize = 32;

impl RequestAllocRequest {
    /// Any pool will do.
    pub const ANY_POOL: u32 = u32::MAX;
}

impl LocationRecord {
    /// The status; `None` where the value is unknown.
    pub const fn record_status(&self) -> Option<RecordStatus> {
        RecordStatus::from_u8(self.status)
    }

    /// A record without a location.
    pub const fn without(status: RecordStatus) -> LocationRecord {
        LocationRecord {
            status: status as u8,
            reserved: [0; 3],
            region_id: U32::ZERO,
            offset: U64::ZERO,
            length: U64::ZERO,
            generation: U32::ZERO,
            checksum: U32::ZERO,
        }
    }
}

impl PoolRecord {
    /// The path, or `None` where the record, which came from a peer, has none.
    pub fn path(&self) -> Option<&str> {
        str::from_utf8(self.path.get(..usize::from(self.path_len.get()))?).ok()
    }
}

impl ServerRecord {
    /// A release as it stands in a record; what does not fit is cut off.
    pub fn release_bytes(release: &str) -> [u8; SERVER_RELEASE_MAX] {
        let mut bytes = [0; SERVER_RELEASE_MAX];
        for (place, byte) in bytes.iter_mut().zip(release.bytes()) {
            *place = byte;
        }
        bytes
    }

    /// The release, or `None` where the record, which came from a peer, has none that can be shown.
    pub fn release(&self) -> Option<&str> {
        let length = self.release.iter().position(|&byte| byte == 0).unwrap_or(SERVER_RELEASE_MAX);
        let release = str::from_utf8(&self.release[..length]).ok()?;
        (!release.is_empty() && !release.chars().any(char::is_control)).then_some(release)
    }
}

impl SocketRecord {
    /// The socket under this path of a host; `None` where the path has more than [`SOCKET_PATH_MAX`] bytes.
    pub fn new(path: &[u8], host: KeyDigest) -> Option<SocketRecord> {
        let mut record =
            SocketRecord { host, path_len: U16::ZERO, reserved: [0; 2], path: [0; SOCKET_PATH_MAX] };
        record.path.get_mut(..path.len())?.copy_from_slice(path);
        record.path_len = u16::try_from(path.len()).ok()?.into();
        Some(record)
    }

    /// The path, or `None` where the record, which came from a peer, has none.
    pub fn path(&self) -> Option<&[u8]> {
        self.path.get(..usize::from(self.path_len.get())).filter(|path| !path.is_empty())
    }
}

macro_rules! wire_enum {
    ($(#[$enum_doc:meta])* $enum:ident: $repr:ident, $from:ident, {
        $($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)*
    }) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr($repr)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $enum {
            /// Every value.
            pub const ALL: &[$enum] = &[$($enum::$variant,)*];

            /// The value with this number on the wire, if there is one.
            pub const fn $from(value: $repr) -> Option<$enum> {
                match value {
                    $($value => Some($enum::$variant),)*
                    _ => None,
                }
            }

            /// The name that the documentation uses.
            pub const fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)*
                }
            }
        }
    };
}

wire_enum! {
    /// Whose regions LIST_ALLOCATIONS lists.
    AllocationFilter: u32, from_u32, {
        /// Everybody's.
        All = 0, "all";
        /// The caller's.
        Mine = 1, "mine";
        /// Everybody's but the caller's.
        Others = 2, "others";
    }
}

wire_enum! {
    /// What becomes of a region.
    RegionState: u32, from_u32, {
        /// Its owner writes into it.
        Owned = 0, "owned";
        /// Its owner is gone; it is read until its last entry goes.
        Orphan = 1, "orphan";
    }
}

wire_enum! {
    /// What a pool is made of. In a folder each region is a file `region-ID`, and the header the file `maru.pool`.
    PoolKind: u32, from_u32, {
        /// A folder of a tmpfs: memory of the server's host, which no other host can map.
        Tmpfs = 0, "tmpfs";
        /// A folder of a hugetlbfs: the same of huge pages.
        Hugetlbfs = 1, "hugetlbfs";
        /// A folder of a file system with direct access to persistent or shared memory, or any other: hosts that mount it
        /// share it.
        FsDax = 2, "fsdax";
        /// A device whose memory hosts share: the header is at its beginning, and regions are extents of it.
        DevDax = 3, "devdax";
    }
}

wire_enum! {
    /// What it takes that one host reads from a pool what another has written.
    PoolCoherence: u32, from_u32, {
        /// Nothing: the hosts' caches know of each other, or there is one host.
        Coherent = 0, "coherent";
        /// The writer writes its cache lines back, and the reader discards its own.
        Writeback = 1, "writeback";
    }
}

wire_enum! {
    /// What a figure of GET_STATS counts.
    StatKind: u16, from_u16, {
        /// Entries in the directory.
        Entries = 1, "entries";
        /// Bytes of all entries.
        EntryBytes = 2, "entry_bytes";
        /// Regions.
        Regions = 3, "regions";
        /// Bytes of all regions.
        RegionBytes = 4, "region_bytes";
        /// Regions whose owner is gone.
        Orphans = 5, "orphans";
        /// Entries with at least one pin.
        PinnedEntries = 6, "pinned_entries";
        /// Pins of all instances.
        Pins = 7, "pins";
        /// Instances with a connection or within their grace period.
        Instances = 8, "instances";
        /// Open connections.
        Connections = 9, "connections";
        /// Pages that wait for their owner to take them back.
        FreedPages = 10, "freed_pages";
        /// Bytes of all pools.
        PoolBytes = 11, "pool_bytes";
        /// Bytes of all pools in no region.
        PoolFreeBytes = 12, "pool_free_bytes";
        /// Entries that the directory can hold.
        EntryCapacity = 13, "entry_capacity";
        /// Milliseconds since the server started.
        UptimeMs = 14, "uptime_ms";
        /// The number of the server's run.
        Epoch = 15, "epoch";
        /// Frames served; detail is the opcode.
        Frames = 16, "frames";
        /// Records that were served; detail is the opcode.
        Records = 17, "records";
        /// Digests looked up or pinned that had an entry.
        Hits = 18, "hits";
        /// Digests looked up or pinned that had none.
        Misses = 19, "misses";
        /// Frames refused; detail is the frame status.
        FramesRefused = 20, "frames_refused";
        /// Connections ever accepted.
        ConnectionsAccepted = 21, "connections_accepted";
        /// Instances whose grace period ran out.
        InstancesExpired = 22, "instances_expired";
        /// Pages that owners took back.
        ReclaimedPages = 23, "reclaimed_pages";
        /// System calls of the thread that drives connections; absent where the driver does not count them.
        SystemCalls = 24, "system_calls";
        /// Entries evicted; detail is the wire value of an [`EvictionReason`].
        Evictions = 25, "evictions";
        /// Pins by name that ran out.
        PinsExpired = 26, "pins_expired";
        /// Seconds for which the oldest pin has been held.
        OldestPinS = 27, "oldest_pin_s";
        /// Frames refused, by operation; detail is the opcode, and in the high byte the frame status. What was refused before
        /// its operation was known, or is of none that the server knows, is only in [`StatKind::FramesRefused`].
        OperationsRefused = 28, "operations_refused";
        /// Records that were served; detail is the opcode, and in the high byte the record status.
        RecordsByStatus = 29, "records_by_status";
    }
}

wire_enum! {
    /// Why an entry was evicted.
    EvictionReason: u16, from_u16, {
        /// Its owner needed a page.
        Owner = 0, "owner";
        /// It was in an orphan, and somebody needed a region.
        Orphan = 1, "orphan";
    }
}

wire_enum! {
    /// What a handler is called for, by one key or many, blocking or awaited.
    ClientOperation: u16, from_u16, {
        /// Get a page to write into.
        Alloc = 1, "alloc";
        /// Make chunks visible under keys.
        Store = 2, "store";
        /// Find and pin the longest prefix of keys that has chunks.
        Acquire = 3, "acquire";
        /// Find and pin chunks, each for itself.
        Retrieve = 4, "retrieve";
        /// Ask whether keys have chunks.
        Exists = 5, "exists";
        /// Pin chunks by name.
        Pin = 6, "pin";
        /// Give pins by name back.
        Unpin = 7, "unpin";
        /// Delete chunks.
        Delete = 8, "delete";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_names_are_distinct_and_sizes_are_multiples_of_eight() {
        let mut names = SIZES.iter().map(|(name, _)| name).collect::<Vec<_>>();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SIZES.len());
        assert!(SIZES.iter().all(|(_, size)| size % 8 == 0));
    }

    #[test]
    fn wire_enums_round_trip() {
        for &filter in AllocationFilter::ALL {
            assert_eq!(AllocationFilter::from_u32(filter as u32), Some(filter));
        }
        for &kind in StatKind::ALL {
            assert_eq!(StatKind::from_u16(kind as u16), Some(kind));
        }
        assert_eq!(StatKind::from_u16(0), None);
        for &operation in ClientOperation::ALL {
            assert_eq!(ClientOperation::from_u16(operation as u16), Some(operation));
        }
        // Where a list of reports begins.
        assert_eq!(ClientOperation::from_u16(0), None);
    }

    #[test]
    fn the_path_of_a_socket_is_what_the_kernel_takes() {
        let host = KeyDigest::from_bytes([1; 16]);
        let longest = [b'x'; SOCKET_PATH_MAX];
        for path in [&b"/run/maru.sock"[..], b"/not/utf-8/\xFF", &longest] {
            assert_eq!(SocketRecord::new(path, host).unwrap().path(), Some(path));
        }
        assert_eq!(SocketRecord::new(&[b'x'; SOCKET_PATH_MAX + 1], host), None);
    }

    #[test]
    fn the_path_of_a_socket_from_a_peer_is_checked() {
        let mut record = SocketRecord::new(b"/run/maru.sock", KeyDigest::from_bytes([1; 16])).unwrap();
        record.path_len = 109.into();
        assert_eq!(record.path(), None);
        record.path_len = 0.into();
        assert_eq!(record.path(), None);
    }

    #[test]
    fn the_release_of_a_server_from_a_peer_is_checked() {
        let mut server = ServerRecord::read_from_bytes(&[0; size_of::<ServerRecord>()]).unwrap();
        assert_eq!(server.release(), None);
        let longest = "1.2.3-".to_owned() + &"x".repeat(SERVER_RELEASE_MAX - 6);
        for release in ["0.1.0", &longest] {
            server.release = ServerRecord::release_bytes(release);
            assert_eq!(server.release(), Some(release));
        }
        server.release = ServerRecord::release_bytes("\u{1b}[2J");
        assert_eq!(server.release(), None, "what would move a terminal's cursor");
        server.release[0] = 0xFF;
        assert_eq!(server.release(), None);
    }

    #[test]
    fn a_pool_path_from_a_peer_is_checked() {
        let mut pool = PoolRecord::read_from_bytes(&[0; size_of::<PoolRecord>()]).unwrap();
        pool.path[..4].copy_from_slice(b"/dev");
        pool.path_len = 4.into();
        assert_eq!(pool.path(), Some("/dev"));
        pool.path_len = 257.into();
        assert_eq!(pool.path(), None);
        pool.path[0] = 0xFF;
        pool.path_len = 4.into();
        assert_eq!(pool.path(), None);
    }
}
