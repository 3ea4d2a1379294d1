//! The operations of the wire, from one list.

use std::fmt;

macro_rules! opcodes {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)*) => {
        /// What a frame asks for. Single and batch opcodes of one verb mean the same and run the same code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Opcode {
            $($(#[$doc])* $variant = $value,)*
        }

        impl Opcode {
            /// Every opcode, in the order of the wire values' table.
            pub const ALL: &[Opcode] = &[$(Opcode::$variant,)*];

            /// The opcode with this wire value, if there is one.
            pub const fn from_u8(value: u8) -> Option<Opcode> {
                match value {
                    $($value => Some(Opcode::$variant),)*
                    _ => None,
                }
            }

            /// Where it stands in [`Opcode::ALL`]: for tables by operation.
            pub const fn index(self) -> usize {
                const INDEXES: [u8; 256] = {
                    let mut indexes = [0; 256];
                    let mut index = 0;
                    while index < Opcode::ALL.len() {
                        #[expect(clippy::cast_possible_truncation, reason = "there are at most 256 opcodes")]
                        let narrow = index as u8;
                        indexes[Opcode::ALL[index] as usize] = narrow;
                        index += 1;
                    }
                    indexes
                };
                INDEXES[self as usize] as usize
            }

            /// The name that the protocol's documentation uses.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Opcode::$variant => $name,)*
                }
            }
        }
    };
}

opcodes! {
    /// Ask for a region; answered by a `RegionRecord`, and by the region's descriptor on a control connection.
    RequestAlloc = 0x01, "REQUEST_ALLOC";
    /// Give a region back; one with entries stays readable as an orphan.
    ReturnAlloc = 0x03, "RETURN_ALLOC";
    /// List regions, in the order of their ids, a bounded number at a time.
    ListAllocations = 0x04, "LIST_ALLOCATIONS";
    /// Describe one region, with its descriptor on a control connection: read-only unless the caller owns it.
    GetRegion = 0x05, "GET_REGION";
    /// List the pools.
    ListPools = 0x06, "LIST_POOLS";
    /// Take back pages of the caller's own regions that others have freed.
    ReclaimPages = 0x07, "RECLAIM_PAGES";
    /// Ask which pages of an own region the server sees with the caller.
    GetPages = 0x08, "GET_PAGES";
    /// Make one chunk visible under a digest.
    RegisterKv = 0x10, "REGISTER_KV";
    /// Find, and with the flag PIN protect, one chunk.
    LookupKv = 0x11, "LOOKUP_KV";
    /// Ask whether one digest has an entry.
    ExistsKv = 0x12, "EXISTS_KV";
    /// Remove one entry that nobody has pinned.
    DeleteKv = 0x13, "DELETE_KV";
    /// Protect one entry until the same instance unpins it.
    PinKv = 0x14, "PIN_KV";
    /// Give one pin back.
    UnpinKv = 0x15, "UNPIN_KV";
    /// REGISTER_KV for many records.
    BatchRegisterKv = 0x20, "BATCH_REGISTER_KV";
    /// LOOKUP_KV for many digests.
    BatchLookupKv = 0x21, "BATCH_LOOKUP_KV";
    /// EXISTS_KV for many digests.
    BatchExistsKv = 0x22, "BATCH_EXISTS_KV";
    /// PIN_KV for many digests, up to the first that has no entry.
    BatchPinKv = 0x23, "BATCH_PIN_KV";
    /// UNPIN_KV for many digests.
    BatchUnpinKv = 0x24, "BATCH_UNPIN_KV";
    /// DELETE_KV for many digests.
    BatchDeleteKv = 0x25, "BATCH_DELETE_KV";
    /// Say, after a lost connection, which pins the instance still has a use for; all others are released.
    AssertPins = 0x26, "ASSERT_PINS";
    /// The server's figures.
    GetStats = 0xF0, "GET_STATS";
    /// Say that the instance lives; answered by the epoch and the server's monotonic time.
    Heartbeat = 0xF1, "HEARTBEAT";
    /// Tell how long the handler's calls take, as their callers see it.
    ReportStats = 0xF2, "REPORT_STATS";
    /// Regions, pages, entries and pins of each instance.
    GetUsage = 0xF3, "GET_USAGE";
    /// Where the server's Unix socket lies, for a client of the same host that connected by TCP; answered by one
    /// `SocketRecord`, or none.
    GetSocket = 0xF4, "GET_SOCKET";
    /// How long the server worked on the frames of each operation; answered by `LatencyRecord`s, a bounded number at a time.
    GetLatencies = 0xF5, "GET_LATENCIES";
    /// What the server is, for whoever operates it; answered by one `ServerRecord`.
    GetServer = 0xF6, "GET_SERVER";
    /// Where the entry of one digest is, without a trace of the question; answered by one `EntryRecord`, or none.
    GetEntry = 0xF7, "GET_ENTRY";
    /// List the pins of all instances, by entry, a bounded number at a time.
    ListPins = 0xF8, "LIST_PINS";
    /// Release pins by name of any instance, for the operator over the Unix socket only.
    ReleasePins = 0xF9, "RELEASE_PINS";
    /// How long the calls of handlers take that report it, by instance, a bounded number of `ReportRecord`s at a time.
    ListReports = 0xFA, "LIST_REPORTS";
    /// Open a connection: name the instance, agree on a version, learn limits and the digest key.
    Hello = 0xFE, "HELLO";
    /// Stop the server, where its operator allowed that.
    Shutdown = 0xFF, "SHUTDOWN";
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Opcode;

    #[test]
    fn every_byte_is_one_opcode_or_none() {
        let known = (0..=u8::MAX).filter_map(Opcode::from_u8).collect::<Vec<_>>();
        assert_eq!(known.len(), Opcode::ALL.len());
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::from_u8(opcode as u8), Some(opcode));
        }
    }

    #[test]
    fn an_opcode_stands_at_its_index() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::ALL[opcode.index()], opcode);
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names = Opcode::ALL.iter().map(|opcode| opcode.name()).collect::<Vec<_>>();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Opcode::ALL.len());
        assert_eq!(Opcode::BatchPinKv.to_string(), "BATCH_PIN_KV");
    }
}
