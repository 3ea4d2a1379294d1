//! Frames: the header, and the way from bytes to borrowed frames and back.

use std::fmt;
use std::ops::BitOr;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{BODY_ALIGN, FrameStatus, MAGIC, Opcode, RecordStatus, STATUS_PADDING, VERSION};

/// The first 16 bytes of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 2],
    /// The version of the wire that the sender uses.
    pub version: u8,
    /// The wire value of an [`Opcode`].
    pub opcode: u8,
    /// The bits of [`Flags`].
    pub flags: U16,
    /// A [`FrameStatus`] in responses, 0 in requests.
    pub status: U16,
    /// Chosen by the client, echoed by the server.
    pub request_id: U32,
    /// Bytes that follow.
    pub body_len: U32,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = size_of::<Header>();
}

const _: () = assert!(Header::SIZE == 16);

/// The flags of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);
    /// The frame answers the request with the same id.
    pub const RESPONSE: Flags = Flags(1);
    /// On LOOKUP_KV: pin what is found, for a reader. The two together are an acquire. On UNPIN_KV: release a pin that was
    /// taken so, instead of one that PIN_KV took.
    pub const PIN: Flags = Flags(1 << 1);
    /// Stop at the first record that fails; the rest is SKIPPED.
    pub const PREFIX_STOP: Flags = Flags(1 << 2);
    /// On UNPIN_KV: no response is wanted.
    pub const NO_REPLY: Flags = Flags(1 << 3);
    /// On RECLAIM_PAGES, of any region: evict cold entries of the caller where no page waits that was freed.
    pub const EVICT: Flags = Flags(1 << 4);

    /// On ASSERT_PINS: no further records follow, and every pin that was not listed is released.
    pub const LAST: Flags = Flags(1 << 5);

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits as they travel.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Flags from the bits that travel; bits without a meaning are kept.
    pub const fn from_bits(bits: u16) -> Flags {
        Flags(bits)
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// What an encoder needs to know of a frame besides its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    opcode: u8,
    flags: Flags,
    status: FrameStatus,
    request_id: u32,
}

impl Head {
    /// The head of a request.
    pub const fn request(opcode: Opcode, flags: Flags, request_id: u32) -> Head {
        Head { opcode: opcode as u8, flags, status: FrameStatus::Ok, request_id }
    }

    /// The head of the response to the request with this header.
    pub const fn response(request: &Header, status: FrameStatus) -> Head {
        Head { opcode: request.opcode, flags: Flags::RESPONSE, status, request_id: request.request_id.get() }
    }
}

/// The caller's buffer has no room for the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame takes {needed} bytes and the buffer has {available}")]
pub struct BufferTooSmall {
    /// Bytes of the frame.
    pub needed: usize,
    /// Bytes of the buffer.
    pub available: usize,
}

/// Writes a frame at the start of `out` and returns its length in bytes.
///
/// # Errors
/// [`BufferTooSmall`]; nothing is written then.
pub fn encode<T>(out: &mut [u8], head: Head, records: &[T]) -> Result<usize, BufferTooSmall>
where
    T: IntoBytes + Immutable,
{
    let records = records.as_bytes();
    let (body, length) = begin(out, head, records.len())?;
    let (copied, padding) = body.split_at_mut(records.len());
    copied.copy_from_slice(records);
    padding.fill(0);
    Ok(length)
}

/// Writes the header of a frame of `count` records and lends its body, zeroed, to be filled in place; also the length
/// of the whole frame in bytes.
///
/// # Errors
/// [`BufferTooSmall`]; nothing is written then.
pub fn encode_with<T>(out: &mut [u8], head: Head, count: usize) -> Result<(&mut [T], usize), BufferTooSmall>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
{
    let (body, length) = begin(out, head, count.saturating_mul(size_of::<T>()))?;
    body.fill(0);
    let records = <[T]>::mut_from_bytes_with_elems(&mut body[..count * size_of::<T>()], count)
        .expect("the slice is count records long and T has no alignment");
    Ok((records, length))
}

/// Writes the header of a frame of `count` record statuses and lends them, each [`RecordStatus::Skipped`], to be set in place;
/// also the length of the whole frame in bytes.
///
/// # Errors
/// [`BufferTooSmall`]; nothing is written then.
pub fn encode_statuses(
    out: &mut [u8],
    head: Head,
    count: usize,
) -> Result<(&mut [u8], usize), BufferTooSmall> {
    let (body, length) = begin(out, head, count)?;
    let (statuses, padding) = body.split_at_mut(count);
    statuses.fill(RecordStatus::Skipped as u8);
    padding.fill(STATUS_PADDING);
    Ok((statuses, length))
}

fn begin(out: &mut [u8], head: Head, records_len: usize) -> Result<(&mut [u8], usize), BufferTooSmall> {
    let available = out.len();
    let body_len = records_len.checked_next_multiple_of(BODY_ALIGN).unwrap_or(usize::MAX);
    let needed = body_len.saturating_add(Header::SIZE);
    let wire_len = u32::try_from(body_len).ok().filter(|_| needed <= available);
    let Some(wire_len) = wire_len else {
        return Err(BufferTooSmall { needed, available });
    };
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        opcode: head.opcode,
        flags: head.flags.bits().into(),
        status: (head.status as u16).into(),
        request_id: head.request_id.into(),
        body_len: wire_len.into(),
    };
    let (header_out, rest) = out.split_at_mut(Header::SIZE);
    header_out.copy_from_slice(header.as_bytes());
    Ok((&mut rest[..body_len], needed))
}

/// One step of decoding.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A whole frame, which took `consumed` bytes of the input.
    Frame {
        /// The frame, borrowed from the input.
        frame: Frame<'a>,
        /// Bytes of the input that it took.
        consumed: usize,
    },
    /// At least this many more bytes are needed, never 0.
    Need(usize),
}

/// The bytes at the head of the input are no frame.
///
/// Everything but the version is beyond repair: the frame's end is not known, so the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are not [`MAGIC`].
    #[error("the bytes do not begin a maru frame")]
    Magic,
    /// The peer speaks another version.
    #[error("the peer speaks version {} of the protocol, this side version {VERSION}", .0.version)]
    Version(Header),
    /// The body is longer than allowed.
    #[error("a body of {} bytes is longer than the {limit} allowed", .header.body_len)]
    TooLarge {
        /// The header that says so.
        header: Header,
        /// Bytes allowed.
        limit: u32,
    },
    /// The body is not a multiple of eight bytes long, or a status is unknown.
    #[error("the header is not valid")]
    Malformed(Header),
}

impl DecodeError {
    /// The status to answer with, and the header to answer to, as far as there is one.
    pub const fn status(&self) -> (FrameStatus, Option<&Header>) {
        match self {
            DecodeError::Magic => (FrameStatus::Malformed, None),
            DecodeError::Version(header) => (FrameStatus::UnsupportedVersion, Some(header)),
            DecodeError::TooLarge { header, .. } => (FrameStatus::TooLarge, Some(header)),
            DecodeError::Malformed(header) => (FrameStatus::Malformed, Some(header)),
        }
    }
}

/// Reads one frame from the start of `input`, whose body may have up to `max_body` bytes.
///
/// # Errors
/// [`DecodeError`] as soon as the bytes can't become a frame, at the latest when the header is complete.
pub fn decode(input: &[u8], max_body: u32) -> Result<Step<'_>, DecodeError> {
    if !MAGIC.starts_with(&input[..input.len().min(MAGIC.len())]) {
        return Err(DecodeError::Magic);
    }
    let Ok((header, rest)) = Header::ref_from_prefix(input) else {
        return Ok(Step::Need(Header::SIZE - input.len()));
    };
    if header.version != VERSION {
        return Err(DecodeError::Version(*header));
    }
    let body_len = header.body_len.get();
    if body_len > max_body {
        return Err(DecodeError::TooLarge { header: *header, limit: max_body });
    }
    let body_len = body_len as usize;
    let Some(status) = FrameStatus::from_u16(header.status.get()) else {
        return Err(DecodeError::Malformed(*header));
    };
    if !body_len.is_multiple_of(BODY_ALIGN) {
        return Err(DecodeError::Malformed(*header));
    }
    match rest.get(..body_len) {
        Some(body) => {
            Ok(Step::Frame { frame: Frame { header, status, body }, consumed: Header::SIZE + body_len })
        }
        None => Ok(Step::Need(body_len - rest.len())),
    }
}

/// A frame, borrowed from the bytes it came in.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    header: &'a Header,
    status: FrameStatus,
    body: &'a [u8],
}

/// The body of a frame is not what its operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body of {length} bytes is not made of records of {record} bytes")]
pub struct BodyError {
    /// Bytes of the body.
    pub length: usize,
    /// Bytes of a record.
    pub record: usize,
}

impl<'a> Frame<'a> {
    /// The header as it came.
    pub const fn header(&self) -> &'a Header {
        self.header
    }

    /// The operation; `None` where this crate does not know it.
    pub const fn opcode(&self) -> Option<Opcode> {
        Opcode::from_u8(self.header.opcode)
    }

    /// The flags.
    pub fn flags(&self) -> Flags {
        Flags::from_bits(self.header.flags.get())
    }

    /// The frame's status; meaningful in responses.
    pub const fn status(&self) -> FrameStatus {
        self.status
    }

    /// The id of the request.
    pub fn request_id(&self) -> u32 {
        self.header.request_id.get()
    }

    /// The bytes after the header.
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The body as an array of records.
    ///
    /// # Errors
    /// [`BodyError`] when it is not a whole number of them.
    pub fn records<T>(&self) -> Result<&'a [T], BodyError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        <[T]>::ref_from_bytes(self.body)
            .map_err(|_| BodyError { length: self.body.len(), record: size_of::<T>() })
    }

    /// The body as one record.
    ///
    /// # Errors
    /// [`BodyError`] when it is not exactly one.
    pub fn record<T>(&self) -> Result<&'a T, BodyError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        T::ref_from_bytes(self.body)
            .map_err(|_| BodyError { length: self.body.len(), record: size_of::<T>() })
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frame = f.debug_struct("Frame");
        match self.opcode() {
            Some(opcode) => frame.field("opcode", &format_args!("{opcode}")),
            None => frame.field("opcode", &self.header.opcode),
        };
        frame
            .field("flags", &self.flags())
            .field("status", &self.status)
            .field("request_id", &self.request_id())
            .field("body_len", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{DEFAULT_MAX_BODY, KeyDigest, LocationRecord, statuses};

    fn opcodes() -> impl Strategy<Value = Opcode> {
        prop::sample::select(Opcode::ALL)
    }

    fn whole(input: &[u8]) -> (Frame<'_>, usize) {
        match decode(input, DEFAULT_MAX_BODY) {
            Ok(Step::Frame { frame, consumed }) => (frame, consumed),
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn decoding_what_was_encoded_gives_it_back(
            opcode in opcodes(), bits: u16, id: u32, digests in prop::collection::vec(any::<[u8; 16]>(), 0..40),
        ) {
            let digests = digests.into_iter().map(KeyDigest::from_bytes).collect::<Vec<_>>();
            let mut wire = vec![0xEE; 16 + 40 * 16];
            let length = encode(&mut wire, Head::request(opcode, Flags::from_bits(bits), id), &digests).unwrap();
            let (frame, consumed) = whole(&wire);
            prop_assert_eq!(consumed, length);
            prop_assert_eq!(frame.opcode(), Some(opcode));
            prop_assert_eq!(frame.flags().bits(), bits);
            prop_assert_eq!(frame.request_id(), id);
            prop_assert_eq!(frame.records::<KeyDigest>().unwrap(), &digests[..]);
        }

        #[test]
        fn a_part_of_a_frame_says_how_much_is_missing(count in 0usize..10, cut in 0.0f64..1.0) {
            let mut wire = [0; 16 + 10 * 16];
            let records = vec![KeyDigest::from_bytes([9; 16]); count];
            let length = encode(&mut wire, Head::request(Opcode::LookupKv, Flags::NONE, 1), &records).unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small, non-negative share")]
            let mut have = (length as f64 * cut) as usize;
            // Whoever reads exactly what is asked for gets there, and never reads past the frame.
            loop {
                match decode(&wire[..have], DEFAULT_MAX_BODY).unwrap() {
                    Step::Need(more) => {
                        prop_assert!(more > 0);
                        have += more;
                        prop_assert!(have <= length);
                    }
                    Step::Frame { consumed, .. } => {
                        prop_assert_eq!(consumed, length);
                        break;
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_a_frame_within_limits_or_a_typed_error(
            mut input in prop::collection::vec(any::<u8>(), 0..200), valid_start: bool, max_body in 0u32..128,
        ) {
            if valid_start && input.len() >= 3 {
                input[..3].copy_from_slice(&[MAGIC[0], MAGIC[1], VERSION]);
            }
            match decode(&input, max_body) {
                Ok(Step::Frame { frame, consumed }) => {
                    prop_assert!(consumed <= input.len());
                    prop_assert!(frame.body().len() <= max_body as usize);
                }
                Ok(Step::Need(more)) => {
                    prop_assert!(more > 0);
                    prop_assert!(input.len() + more <= Header::SIZE + max_body as usize);
                }
                Err(_) => prop_assert!(!input.is_empty()),
            }
        }

        #[test]
        fn statuses_in_place_are_padded_and_counted(count in 0usize..50) {
            let request = *whole_request();
            let mut wire = [0xEE; 16 + 56];
            let (body, length) = encode_statuses(&mut wire, Head::response(&request, FrameStatus::Ok), count).unwrap();
            body.fill(RecordStatus::Pinned as u8);
            let (frame, consumed) = whole(&wire);
            prop_assert_eq!(length, consumed);
            let seen = statuses(frame.body(), count).expect("exactly as many as were written");
            prop_assert!(seen.eq(std::iter::repeat_n(RecordStatus::Pinned, count)));
            prop_assert!(statuses(frame.body(), count + 1).is_none());
        }
    }

    fn whole_request() -> &'static Header {
        static REQUEST: Header = Header {
            magic: MAGIC,
            version: VERSION,
            opcode: Opcode::ExistsKv as u8,
            flags: U16::new(0),
            status: U16::new(0),
            request_id: U32::new(77),
            body_len: U32::new(16),
        };
        &REQUEST
    }

    #[test]
    fn records_are_filled_in_place() {
        let mut wire = [0xEE; 16 + 64];
        let head = Head::response(whole_request(), FrameStatus::Ok);
        let (records, length) = encode_with::<LocationRecord>(&mut wire, head, 2).unwrap();
        records[1].offset = 4096.into();
        assert_eq!(length, 80);
        let (frame, _) = whole(&wire);
        assert!(frame.flags().contains(Flags::RESPONSE));
        assert_eq!(frame.request_id(), 77);
        let records = frame.records::<LocationRecord>().unwrap();
        assert_eq!((records[0].offset.get(), records[1].offset.get()), (0, 4096));
    }

    #[test]
    fn a_buffer_that_is_too_small_is_left_alone() {
        let mut wire = [0xEE; 31];
        let digest = [KeyDigest::from_bytes([1; 16])];
        let full = encode(&mut wire, Head::request(Opcode::PinKv, Flags::NONE, 1), &digest);
        assert_eq!(full, Err(BufferTooSmall { needed: 32, available: 31 }));
        assert_eq!(wire, [0xEE; 31]);
    }

    #[test]
    fn a_length_of_four_gigabytes_is_refused_with_the_header_alone() {
        let mut header = *whole_request();
        header.body_len = u32::MAX.into();
        let refused = decode(header.as_bytes(), DEFAULT_MAX_BODY);
        assert!(matches!(refused, Err(DecodeError::TooLarge { limit: DEFAULT_MAX_BODY, .. })), "{refused:?}");
    }

    #[test]
    fn a_future_version_is_named() {
        let mut header = *whole_request();
        header.version = 9;
        let refused = decode(header.as_bytes(), DEFAULT_MAX_BODY).unwrap_err();
        assert_eq!(refused.to_string(), "the peer speaks version 9 of the protocol, this side version 1");
        assert_eq!(refused.status(), (FrameStatus::UnsupportedVersion, Some(&header)));
    }

    #[test]
    fn a_body_of_the_wrong_length_is_an_error() {
        let mut wire = [0; 40];
        let head = Head::request(Opcode::LookupKv, Flags::NONE, 1);
        let length = encode(&mut wire, head, &[0u64, 0, 0]).unwrap();
        let (frame, _) = whole(&wire[..length]);
        assert_eq!(frame.records::<KeyDigest>(), Err(BodyError { length: 24, record: 16 }));
        assert_eq!(frame.record::<KeyDigest>(), Err(BodyError { length: 24, record: 16 }));
    }
}
