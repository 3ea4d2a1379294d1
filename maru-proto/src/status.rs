//! The two closed sets of statuses: one for a whole frame, one for a record of a batch.

use std::fmt;

macro_rules! statuses_enum {
    ($(#[$enum_doc:meta])* $enum:ident: $repr:ident, $from:ident, {
        $($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $text:literal;)*
    }) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($repr)]
        pub enum $enum {
            $($(#[$doc])* $variant = $value,)*
        }

        impl $enum {
            /// Every status of this kind.
            pub const ALL: &[$enum] = &[$($enum::$variant,)*];

            /// The status with this wire value, if there is one.
            pub const fn $from(value: $repr) -> Option<$enum> {
                match value {
                    $($value => Some($enum::$variant),)*
                    _ => None,
                }
            }

            /// One word that stands for it, where there is no room for the text.
            pub const fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)*
                }
            }
        }

        impl fmt::Display for $enum {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($enum::$variant => $text,)*
                })
            }
        }
    };
}

statuses_enum! {
    /// What became of a frame as a whole.
    FrameStatus: u16, from_u16, {
        /// The frame was served; records have statuses of their own.
        Ok = 0, "ok", "ok";
        /// The bytes are no frame of this protocol; the connection is closed.
        Malformed = 1, "malformed", "the frame is malformed; check that both sides speak the maru protocol";
        /// The server does not know the operation.
        UnsupportedOpcode = 2, "unsupported_opcode", "the server does not know this operation; it may be older than the client";
        /// The server does not speak the version; the body is a `VersionRange`.
        UnsupportedVersion = 3, "unsupported_version", "the server does not speak this version of the protocol";
        /// The body is longer than the server takes.
        TooLarge = 4, "too_large", "the frame is larger than the server allows; send smaller batches";
        /// The first frame of a connection must be HELLO, and only the first.
        HelloRequired = 5, "hello_required", "the connection has to begin with HELLO, once";
        /// The token is wrong, or the operation is not for this instance.
        Unauthorized = 6, "unauthorized", "not authorized; check the token, and that the instance owns what it names";
        /// No pool has room for the region.
        NoSpace = 7, "no_space", "no pool has room for the region; enlarge the pool or free memory";
        /// A limit of the server is reached.
        Limit = 8, "limit", "a limit of the server is reached";
        /// The server is stopping and takes no new work.
        ShuttingDown = 9, "shutting_down", "the server is shutting down";
        /// The server failed; its log says how.
        Internal = 10, "internal", "the server failed; its log has the cause";
        /// The region does not exist (any more).
        RegionNotFound = 11, "region_not_found", "the region does not exist";
        /// A size or an id in the request makes no sense.
        InvalidArgument = 12, "invalid_argument", "a size or an id in the request is not valid";
    }
}

statuses_enum! {
    /// What became of one record of a frame.
    RecordStatus: u8, from_u8, {
        /// Done, or found.
        Ok = 0, "ok", "ok";
        /// The digest has no entry.
        NotFound = 1, "not_found", "no such key";
        /// The digest has an entry already: the first writer won, nothing changed.
        Exists = 2, "exists", "the key exists already";
        /// Somebody reads the entry, so it stays.
        Pinned = 3, "pinned", "the key is pinned by a reader";
        /// The instance holds no pin on the entry.
        NotPinned = 4, "not_pinned", "this instance holds no pin on the key";
        /// The entry has as many pins as the server allows.
        PinLimit = 5, "pin_limit", "the key has as many pins as the server allows";
        /// The region does not exist (any more).
        RegionNotFound = 6, "region_not_found", "the region does not exist";
        /// Offset and length are not one page of the region.
        OutOfBounds = 7, "out_of_bounds", "the region has no such page, or the chunk is longer than a page or empty";
        /// The region belongs to another instance, or to nobody.
        NotOwner = 8, "not_owner", "the region belongs to another instance";
        /// Not tried: a prefix-stop batch ended before it.
        Skipped = 9, "skipped", "not tried: the batch stopped at an earlier key";
        /// The page holds another entry, or waits to be reclaimed.
        PageInUse = 10, "page_in_use", "the page holds another entry or was not handed out";
    }
}

/// What fills a body of record statuses up to a multiple of eight: no status has this value, so the count of
/// statuses can be told from the bytes.
pub const STATUS_PADDING: u8 = 0xFF;

/// The statuses of a response body to `count` records; `None` unless the body has exactly that many, all known.
///
/// ```
/// use maru_proto::{RecordStatus, statuses};
///
/// let body = [0, 1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
/// let three = statuses(&body, 3).unwrap().collect::<Vec<_>>();
/// assert_eq!(three, [RecordStatus::Ok, RecordStatus::NotFound, RecordStatus::Ok]);
/// assert!(statuses(&body, 2).is_none());
/// ```
pub fn statuses(
    body: &[u8],
    count: usize,
) -> Option<impl ExactSizeIterator<Item = RecordStatus> + Clone + use<'_>> {
    let (values, padding) = body.split_at_checked(count)?;
    let whole = body.len() == count.next_multiple_of(crate::BODY_ALIGN)
        && padding.iter().all(|&byte| byte == STATUS_PADDING)
        && values.iter().all(|&byte| RecordStatus::from_u8(byte).is_some());
    whole.then(|| {
        values.iter().map(|&byte| RecordStatus::from_u8(byte).expect("every byte was checked to be a status"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{FrameStatus, RecordStatus, STATUS_PADDING, statuses};

    #[test]
    fn statuses_are_closed_and_round_trip() {
        for &status in RecordStatus::ALL {
            assert_eq!(RecordStatus::from_u8(status as u8), Some(status));
        }
        for &status in FrameStatus::ALL {
            assert_eq!(FrameStatus::from_u16(status as u16), Some(status));
        }
        assert_eq!(RecordStatus::from_u8(STATUS_PADDING), None);
        assert_eq!(FrameStatus::from_u16(u16::MAX), None);
    }

    #[test]
    fn names_are_distinct() {
        let frame = FrameStatus::ALL.iter().map(|status| status.name()).collect::<HashSet<_>>();
        assert_eq!(frame.len(), FrameStatus::ALL.len());
        let record = RecordStatus::ALL.iter().map(|status| status.name()).collect::<HashSet<_>>();
        assert_eq!(record.len(), RecordStatus::ALL.len());
    }

    #[test]
    fn short_batch_responses_are_not_accepted() {
        let body = [0u8, 0, 0, 0, 0, 0, 0, 0];
        assert!(statuses(&body, 8).is_some());
        assert!(statuses(&body, 9).is_none(), "one short");
        assert!(statuses(&body, 7).is_none(), "one too many");
        assert!(statuses(&[], 0).is_some());
        assert!(statuses(&[200; 8], 8).is_none(), "an unknown status");
    }
}
