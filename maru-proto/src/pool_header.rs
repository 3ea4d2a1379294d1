//! The header by which memory says which pool it is, whatever its name is on the host that looks at it.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"MARUPOOL";
const VERSION: u32 = 1;

/// What a pool is called for as long as it exists: on all hosts, and after it was emptied.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct PoolUuid([u8; 16]);

impl PoolUuid {
    /// A new one, from random bytes.
    pub fn from_random(bytes: [u8; 16]) -> PoolUuid {
        PoolUuid(uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes())
    }

    /// As it travels in a [`PoolRecord`](crate::PoolRecord).
    pub const fn from_bytes(bytes: [u8; 16]) -> PoolUuid {
        PoolUuid(bytes)
    }

    /// The bytes as they travel.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for PoolUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for PoolUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8")]
pub struct InvalidPoolUuid(String);

impl FromStr for PoolUuid {
    type Err = InvalidPoolUuid;

    fn from_str(text: &str) -> Result<PoolUuid, InvalidPoolUuid> {
        let uuid = Uuid::try_parse(text).map_err(|_| InvalidPoolUuid(text.to_owned()))?;
        Ok(PoolUuid(uuid.into_bytes()))
    }
}

/// What memory says of itself: in the file `maru.pool` of a folder, or at the beginning of a device.
///
/// It stands in one of two slots, each with a checksum. A change goes into the other slot, so that one of the two is whole
/// whenever the writer is interrupted.
///
/// ```
/// use maru_proto::{PoolHeader, PoolUuid};
///
/// let header = PoolHeader::new(PoolUuid::from_random([7; 16]));
/// let mut area = vec![0; PoolHeader::SLOTS_LEN];
/// header.write(&mut area, 0);
/// assert_eq!(PoolHeader::read(&area).unwrap(), (header, 0));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PoolHeader {
    magic: [u8; 8],
    version: U32,
    /// Of all bytes, with this as 0.
    crc: U32,
    uuid: PoolUuid,
    incarnation: U64,
    deployment: [u8; 16],
    reserved: [u8; 72],
}

const _: () = assert!(size_of::<PoolHeader>() == PoolHeader::LEN);

/// Memory does not say which pool it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolHeaderError {
    /// There is no header.
    #[error("there is no pool header")]
    Missing,
    /// Another version wrote it.
    #[error("the pool header has format {0}, not {VERSION}: another version of maru wrote it")]
    Version(u32),
    /// What is there is not what was written.
    #[error("the pool header is damaged")]
    Damaged,
}

impl PoolHeader {
    /// The file that holds the header of a folder.
    pub const FILE: &str = "maru.pool";
    /// Bytes of a header.
    pub const LEN: usize = 128;
    /// Bytes from one slot to the other.
    pub const SLOT_LEN: usize = 4096;
    /// Bytes of both slots.
    pub const SLOTS_LEN: usize = 2 * PoolHeader::SLOT_LEN;
    /// Bytes at the beginning of a device that no region lies in, at least.
    pub const AREA_LEN: u64 = 2 << 20;

    /// The header of a new pool.
    pub fn new(uuid: PoolUuid) -> PoolHeader {
        let header = PoolHeader {
            magic: MAGIC,
            version: VERSION.into(),
            crc: U32::ZERO,
            uuid,
            incarnation: 1.into(),
            deployment: [0; 16],
            reserved: [0; 72],
        };
        header.sealed()
    }

    /// The pool's name.
    pub const fn uuid(&self) -> PoolUuid {
        self.uuid
    }

    /// How often what was in it has been discarded, and once more. Who knows of a chunk under another number knows nothing of
    /// what is there.
    pub const fn incarnation(&self) -> u64 {
        self.incarnation.get()
    }

    /// Whose directory says what is in it; zeros where nobody's does yet.
    pub const fn deployment(&self) -> [u8; 16] {
        self.deployment
    }

    /// Whether no directory has said yet what is in it.
    pub fn is_new(&self) -> bool {
        self.deployment == [0; 16]
    }

    /// The header once what is in the pool is discarded, and another directory says what is in it.
    pub fn discarded(&self, deployment: [u8; 16]) -> PoolHeader {
        let incarnation = self.incarnation().saturating_add(1);
        PoolHeader { incarnation: incarnation.into(), deployment, ..*self }.sealed()
    }

    /// The header that counts, and the slot that it stands in.
    ///
    /// # Errors
    /// [`PoolHeaderError`].
    ///
    /// # Panics
    /// Where `area` has fewer than [`PoolHeader::SLOTS_LEN`] bytes.
    pub fn read(area: &[u8]) -> Result<(PoolHeader, usize), PoolHeaderError> {
        let [first, second] = PoolHeader::slots(area);
        let slots = [(first, 0), (second, 1)];
        let whole = slots.iter().filter_map(|(header, slot)| Some((header.as_ref().ok()?, slot)));
        match whole.max_by_key(|(header, _)| header.incarnation()) {
            Some((header, slot)) => Ok((*header, *slot)),
            None => {
                let [first, second] = slots.map(|(header, _)| header.err());
                // Nothing in one slot says nothing of the other.
                Err(first.filter(|error| *error != PoolHeaderError::Missing).or(second))
                    .map_err(|error| error.unwrap_or(PoolHeaderError::Missing))
            }
        }
    }

    /// What each slot holds.
    ///
    /// # Panics
    /// Where `area` has fewer than [`PoolHeader::SLOTS_LEN`] bytes.
    pub fn slots(area: &[u8]) -> [Result<PoolHeader, PoolHeaderError>; 2] {
        [0, 1].map(|slot| PoolHeader::in_slot(area, slot))
    }

    /// Writes the header into a slot.
    ///
    /// # Panics
    /// Where `area` has fewer than [`PoolHeader::SLOTS_LEN`] bytes, or there is no such slot.
    pub fn write(&self, area: &mut [u8], slot: usize) {
        let at = slot * PoolHeader::SLOT_LEN;
        area[at..at + PoolHeader::LEN].copy_from_slice(self.as_bytes());
    }

    fn in_slot(area: &[u8], slot: usize) -> Result<PoolHeader, PoolHeaderError> {
        let at = slot * PoolHeader::SLOT_LEN;
        let header = PoolHeader::read_from_bytes(&area[at..at + PoolHeader::LEN])
            .expect("as many bytes as a header has");
        if header.magic != MAGIC {
            return Err(PoolHeaderError::Missing);
        }
        if header.version.get() != VERSION {
            return Err(PoolHeaderError::Version(header.version.get()));
        }
        if header != header.sealed() {
            return Err(PoolHeaderError::Damaged);
        }
        Ok(header)
    }

    fn sealed(&self) -> PoolHeader {
        let open = PoolHeader { crc: U32::ZERO, ..*self };
        PoolHeader { crc: crc32fast::hash(open.as_bytes()).into(), ..open }
    }
}

impl fmt::Debug for PoolHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHeader")
            .field("uuid", &self.uuid())
            .field("incarnation", &self.incarnation())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> PoolHeader {
        PoolHeader::new(PoolUuid::from_random([0xA5; 16]))
    }

    fn area() -> Vec<u8> {
        vec![0; PoolHeader::SLOTS_LEN]
    }

    #[test]
    fn uuids_are_shown_as_they_are_written() {
        let text = "a5a5a5a5-a5a5-45a5-a5a5-a5a5a5a5a5a5";
        assert_eq!(header().uuid().to_string(), text);
        assert_eq!(text.parse(), Ok(header().uuid()));
        assert!("67e55044".parse::<PoolUuid>().unwrap_err().to_string().contains("not a UUID"));
    }

    #[test]
    fn the_later_of_two_headers_counts() {
        let (first, second) = (header(), header().discarded([9; 16]));
        assert_eq!((second.incarnation(), second.deployment(), second.uuid()), (2, [9; 16], first.uuid()));
        for (old, new) in [(0, 1), (1, 0)] {
            let mut area = area();
            first.write(&mut area, old);
            second.write(&mut area, new);
            assert_eq!(PoolHeader::read(&area), Ok((second, new)));
        }
    }

    #[test]
    fn a_write_that_was_interrupted_leaves_the_header_before_it() {
        let (first, second) = (header(), header().discarded([9; 16]));
        let (mut before, mut after) = (area(), area());
        first.write(&mut before, 0);
        after.copy_from_slice(&before);
        second.write(&mut after, 1);
        for written in 0..PoolHeader::LEN {
            let mut torn = before.clone();
            let end = PoolHeader::SLOT_LEN + written;
            torn[..end].copy_from_slice(&after[..end]);
            let read = PoolHeader::read(&torn);
            // The bytes that are still to come may be zeros, as what was there before.
            assert!(read == Ok((first, 0)) || torn == after, "{written} bytes: {read:?}");
        }
    }

    #[test]
    fn every_byte_that_is_changed_is_noticed() {
        let mut area = area();
        assert_eq!(PoolHeader::read(&area), Err(PoolHeaderError::Missing));
        header().write(&mut area, 1);
        for at in 0..PoolHeader::LEN {
            let mut damaged = area.clone();
            damaged[PoolHeader::SLOT_LEN + at] ^= 0x40;
            let error = PoolHeader::read(&damaged).unwrap_err();
            let expected = match at {
                0..8 => PoolHeaderError::Missing,
                8..12 => PoolHeaderError::Version(VERSION ^ (0x40 << (8 * (at - 8)))),
                _ => PoolHeaderError::Damaged,
            };
            assert_eq!(error, expected, "byte {at}");
        }
    }
}
