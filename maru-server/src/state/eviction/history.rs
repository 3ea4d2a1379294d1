//! What was asked for and is not there: when, and of which class it was.
//!
//! A table of fixed size that forgets what was asked for longest ago. A digest is known by 27 bits of it and its place, so
//! that once in some ten million times one is taken for another, which costs a poor choice and nothing else.

use super::super::Digest;
use super::super::index::prefetch;
use super::class::CLASSES;
use super::place_of;

/// Records that share a place: a cache line of them.
const WAYS: usize = 8;
/// Records at most.
const MAX_RECORDS: u32 = 1 << 20;

/// What is known of a digest; all 0 where there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    last: u32,
    /// The class in the lowest 5 bits, and above it bits of the digest that are never all 0.
    tag: u32,
}

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Line([Record; WAYS]);

/// The table.
#[derive(Debug)]
pub(super) struct History {
    lines: Box<[Line]>,
}

impl History {
    /// A table for so many records, or a few less or more.
    pub(super) fn new(records: u32) -> History {
        let records = records.clamp(1024, MAX_RECORDS).next_power_of_two();
        History { lines: vec![Line::default(); records as usize / WAYS].into_boxed_slice() }
    }

    /// Takes out what is known of a digest: its class, and when it was last asked for.
    pub(super) fn take(&mut self, digest: Digest) -> Option<(u8, u32)> {
        let (line, tag) = self.find(digest);
        let record = line.0.iter_mut().find(|record| record.tag & TAG == tag)?;
        let Record { last, tag } = std::mem::take(record);
        Some(((tag & CLASS) as u8, last))
    }

    /// Remembers a digest that is not in the table, in the place of whatever is oldest.
    pub(super) fn put(&mut self, digest: Digest, class: u8, last: u32, now: u32) {
        let (line, tag) = self.find(digest);
        let age = |record: &Record| if record.tag == 0 { u32::MAX } else { now.wrapping_sub(record.last) };
        let oldest = line.0.iter_mut().max_by_key(|record| age(record)).expect("a line has records");
        *oldest = Record { last, tag: tag | u32::from(class) };
    }

    /// Has what is known of a digest brought near.
    pub(super) fn prefetch(&self, digest: Digest) {
        prefetch(&self.lines[self.place_of(digest)]);
    }

    fn place_of(&self, digest: Digest) -> usize {
        place_of(digest) & (self.lines.len() - 1)
    }

    fn find(&mut self, digest: Digest) -> (&mut Line, u32) {
        let place = self.place_of(digest);
        let tag = (digest.0 >> 96) as u32 & TAG;
        (&mut self.lines[place], tag.max(CLASS + 1))
    }
}

const CLASS: u32 = 31;
const TAG: u32 = !CLASS;
const _: () = assert!(CLASSES <= CLASS as usize + 1);

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u128) -> Digest {
        Digest(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn what_was_put_is_taken_once() {
        let mut history = History::new(64);
        history.put(digest(1), 31, 7, 10);
        history.put(digest(2), 0, 8, 10);
        assert_eq!(history.take(digest(1)), Some((31, 7)));
        assert_eq!(history.take(digest(1)), None);
        assert_eq!(history.take(digest(2)), Some((0, 8)));
        assert_eq!(history.take(digest(3)), None);
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut history = History::new(1);
        let records = history.lines.len() * WAYS;
        let many = u32::try_from(records * 4).unwrap();
        for n in 0..many {
            history.put(digest(n.into()), 1, n, n);
        }
        let is_known = |n: u32, history: &mut History| history.take(digest(n.into())) == Some((1, n));
        let young = (many - 256..many).filter(|n| is_known(*n, &mut history)).count();
        let old = (0..256).filter(|n| is_known(*n, &mut history)).count();
        assert!(young > 250 && old < 6, "{young} of the youngest, {old} of the oldest");
    }
}
