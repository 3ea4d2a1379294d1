//! The responses of one connection, gathered for one write.

use maru_proto::{Head, Header, encode, encode_statuses, encode_with};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Kept between writes; more than this is given back.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Frames, one after the other, in a buffer that is reused.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
}

impl Output {
    /// An empty output on top of a used buffer.
    pub(crate) fn reuse(mut bytes: Vec<u8>) -> Output {
        bytes.clear();
        bytes.shrink_to(KEPT_CAPACITY);
        Output { bytes }
    }

    /// The frames so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the frames so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Keeps the first `length` bytes and returns the rest.
    pub(crate) fn split_off(&mut self, length: usize) -> Vec<u8> {
        self.bytes.split_off(length)
    }

    /// Drops what is behind the first `length` bytes.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// The buffer, to be written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends a frame with these records.
    pub fn push<T: IntoBytes + Immutable>(&mut self, head: Head, records: &[T]) {
        let room = self.room(size_of_val(records));
        encode(room, head, records).expect("the room was made for the records");
    }

    /// Appends a frame of at most `limit` records; how many there were.
    pub fn push_all<T: IntoBytes + Immutable>(
        &mut self,
        head: Head,
        records: impl Iterator<Item = T>,
        limit: usize,
    ) -> usize {
        let records = records.take(limit).collect::<Vec<_>>();
        self.push(head, &records);
        records.len()
    }

    /// Appends a frame of `count` records, zeroed, to be filled by [`Output::records`].
    pub fn push_records<T>(&mut self, head: Head, count: usize)
    where
        T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
    {
        let room = self.room(count * size_of::<T>());
        encode_with::<T>(room, head, count).expect("the room was made for the records");
    }

    /// Appends a frame of `count` record statuses, each SKIPPED, to be set by [`Output::statuses`].
    pub fn push_statuses(&mut self, head: Head, count: usize) {
        let room = self.room(count);
        encode_statuses(room, head, count).expect("the room was made for the statuses");
    }

    /// The records of the frame that begins at byte `at`.
    ///
    /// # Panics
    /// Where there is no such frame.
    pub fn records<T>(&mut self, at: usize, count: usize) -> &mut [T]
    where
        T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
    {
        let body = &mut self.bytes[at + Header::SIZE..][..count * size_of::<T>()];
        <[T]>::mut_from_bytes(body).expect("unaligned records fill their bytes")
    }

    /// The record statuses of the frame that begins at byte `at`.
    ///
    /// # Panics
    /// Where there is no such frame.
    pub fn statuses(&mut self, at: usize, count: usize) -> &mut [u8] {
        self.records(at, count)
    }

    /// Room for a frame with a body of this many bytes, before it is padded.
    fn room(&mut self, body_len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        let frame_len = Header::SIZE + body_len.next_multiple_of(maru_proto::BODY_ALIGN);
        self.bytes.resize(start + frame_len, 0);
        &mut self.bytes[start..]
    }
}
