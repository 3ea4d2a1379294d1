//! Eviction: which entry goes when its owner needs a page.
//!
//! The state tells a policy what happens to entries, and asks it for a victim. What a policy has to know of an entry it
//! keeps in the entry itself, so that a touch reads and writes no cache line that the look-up did not have already.

use std::fmt::Debug;

use super::Digest;

mod asked;
mod class;
mod expected_reuse;
mod history;
mod list;
mod reuse;
#[cfg(test)]
mod tests;

pub use expected_reuse::ExpectedReuse;

/// The policy of the server.
pub type Policy = ExpectedReuse;

/// Bits of a digest that choose a place in a table: others than choose a bucket of the index.
fn place_of(digest: Digest) -> usize {
    (digest.0 >> 64 & 0xFFFF_FFFF) as usize
}

/// Entries that compete with each other: those of one owner. Given by the policy, and free for another owner after
/// [`EvictionPolicy::close_group`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub u32);

/// Where a request is in the chain of its keys: each key is the continuation of the one before.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    previous: Option<Digest>,
    position: u32,
    length: u32,
}

impl Chain {
    /// The chain of a request for so many keys, before its first.
    pub fn of(length: usize) -> Chain {
        Chain { previous: None, position: 0, length: u32::try_from(length).unwrap_or(u32::MAX) }
    }

    /// The key before, none at the first.
    pub fn previous(&self) -> Option<Digest> {
        self.previous
    }

    /// Keys of the request before this one.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Keys of the request.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Goes on to the key behind this one.
    pub fn advance(&mut self, digest: Digest) {
        self.previous = Some(digest);
        self.position += 1;
    }
}

/// The entries as a policy sees them, by slot.
pub trait Entries<Mark> {
    /// What the policy keeps with an entry.
    fn mark(&self, slot: u32) -> &Mark;

    /// The same, to be changed.
    fn mark_mut(&mut self, slot: u32) -> &mut Mark;

    /// The entry's digest.
    fn digest(&self, slot: u32) -> Digest;

    /// The number of the entry's registration, by which a slot that was given to another entry is told.
    fn generation(&self, slot: u32) -> u32;

    /// Whether the entry has a pin, and so can't be a victim.
    fn is_pinned(&self, slot: u32) -> bool;

    /// With whom the entry competes; `None` in an orphan, whose entries go together.
    fn group(&self, slot: u32) -> Option<Group>;

    /// The slot of a digest's entry.
    fn find(&self, digest: Digest) -> Option<u32>;

    /// Whether this slot holds an entry, and the one of this generation.
    fn holds(&self, slot: u32, generation: u32) -> bool;
}

/// Chooses victims. Every operation takes constant time, spread over the operations before it, and no memory.
///
/// Requests are told key by key in the order of their keys: a hit by [`touch`](EvictionPolicy::touch), what was asked for
/// and is not there by [`miss`](EvictionPolicy::miss), also behind the first miss.
pub trait EvictionPolicy: Debug {
    /// What is kept with each entry: at most 28 bytes, so that an entry stays one cache line.
    type Mark: Clone + Debug + Default;

    /// A policy for so many entries at most.
    fn new(max_entries: u32) -> Self;

    /// An owner without entries.
    fn open_group(&mut self) -> Group;

    /// The owner is gone; every entry was disowned before.
    fn close_group(&mut self, group: Group);

    /// An entry is new. It is in a group, and its mark is the default.
    fn insert(&mut self, entries: &mut impl Entries<Self::Mark>, slot: u32, chain: &Chain);

    /// An entry was asked for and found.
    fn touch(&mut self, entries: &mut impl Entries<Self::Mark>, slot: u32, chain: &Chain);

    /// A digest was asked for and has no entry.
    fn miss(&mut self, entries: &mut impl Entries<Self::Mark>, digest: Digest, chain: &Chain);

    /// Has what an insert, a miss or a removal will read besides the entry brought near.
    fn prefetch(&self, digest: Digest);

    /// The last pin of an entry was released.
    fn unpin(&mut self, entries: &mut impl Entries<Self::Mark>, slot: u32);

    /// An entry is about to lose its owner: it is no victim any more.
    fn disown(&mut self, entries: &mut impl Entries<Self::Mark>, slot: u32);

    /// An entry is about to be removed.
    fn remove(&mut self, entries: &mut impl Entries<Self::Mark>, slot: u32);

    /// The entry of a group to go first, of those without a pin. It stays until [`remove`](EvictionPolicy::remove).
    fn victim(&mut self, entries: &mut impl Entries<Self::Mark>, group: Group) -> Option<u32>;

    /// Panics where what the policy keeps disagrees with the entries, whose slots these are.
    fn check(&self, entries: &impl Entries<Self::Mark>, slots: impl Iterator<Item = u32>);
}
