//! A directory without regions or instances, on which a policy of the server's runs as it does in the server.

use std::collections::HashMap;

use maru_server::state::Digest;
use maru_server::state::eviction::{Chain, Entries, EvictionPolicy, Group};

use super::Cache;
use crate::mix::mix;

/// One entry.
struct Slot<M> {
    chunk: u64,
    mark: M,
    /// The last request that had to do with it.
    request: u32,
}

/// What a policy sees.
struct Directory<M> {
    group: Group,
    slots: Vec<Slot<M>>,
    by_digest: HashMap<u128, u32>,
    generations: Vec<u32>,
    /// The request that is being served: its chunks stay.
    request: u32,
}

/// A cache with one owner.
pub(super) struct Simulated<P: EvictionPolicy> {
    policy: P,
    directory: Directory<P::Mark>,
    capacity: usize,
    generation: u32,
}

fn digest(chunk: u64) -> Digest {
    Digest(u128::from(mix(chunk)) << 64 | u128::from(mix(!chunk)))
}

impl<P: EvictionPolicy> Simulated<P> {
    pub(super) fn new(capacity: usize) -> Simulated<P> {
        let mut policy = P::new(u32::try_from(capacity).unwrap_or(u32::MAX));
        let group = policy.open_group();
        let (slots, by_digest, generations) = (Vec::new(), HashMap::new(), Vec::new());
        let directory = Directory { group, slots, by_digest, generations, request: 0 };
        Simulated { policy, directory, capacity, generation: 0 }
    }

    /// A slot for a new entry, made free where none is; `None` where every entry is of this request.
    fn make_room(&mut self) -> Option<u32> {
        if self.directory.slots.len() < self.capacity {
            return Some(u32::try_from(self.directory.slots.len()).expect("the capacity is a u32"));
        }
        let group = self.directory.group;
        let slot = self.policy.victim(&mut self.directory, group)?;
        self.policy.remove(&mut self.directory, slot);
        let gone = digest(self.directory.slots[slot as usize].chunk);
        self.directory.by_digest.remove(&gone.0);
        self.directory.generations[slot as usize] = 0;
        Some(slot)
    }

    fn store(&mut self, chunk: u64, chain: &Chain) {
        let Some(slot) = self.make_room() else { return };
        self.generation += 1;
        let entry = Slot { chunk, mark: P::Mark::default(), request: self.directory.request };
        if slot as usize == self.directory.slots.len() {
            self.directory.slots.push(entry);
            self.directory.generations.push(self.generation);
        } else {
            self.directory.slots[slot as usize] = entry;
            self.directory.generations[slot as usize] = self.generation;
        }
        self.directory.by_digest.insert(digest(chunk).0, slot);
        self.policy.insert(&mut self.directory, slot, chain);
    }
}

impl<P: EvictionPolicy> Cache for Simulated<P> {
    fn request(&mut self, chunks: &[u64]) -> usize {
        self.directory.request += 1;
        let mut chain = Chain::of(chunks.len());
        let mut hits = 0;
        // As an acquire: everything that is asked for is told, also behind the first miss.
        for (n, &chunk) in chunks.iter().enumerate() {
            match self.directory.find(digest(chunk)) {
                Some(slot) => {
                    hits += usize::from(hits == n);
                    self.directory.slots[slot as usize].request = self.directory.request;
                    self.policy.touch(&mut self.directory, slot, &chain);
                }
                None => self.policy.miss(&mut self.directory, digest(chunk), &chain),
            }
            chain.advance(digest(chunk));
        }
        let mut chain = Chain::of(chunks.len());
        for &chunk in chunks {
            if self.directory.find(digest(chunk)).is_none() {
                self.store(chunk, &chain);
            }
            chain.advance(digest(chunk));
        }
        // What was set aside because it was in use may go again.
        self.directory.request += 1;
        for &chunk in chunks {
            if let Some(slot) = self.directory.find(digest(chunk)) {
                self.policy.unpin(&mut self.directory, slot);
            }
        }
        hits
    }
}

impl<M> Entries<M> for Directory<M> {
    fn mark(&self, slot: u32) -> &M {
        &self.slots[slot as usize].mark
    }

    fn mark_mut(&mut self, slot: u32) -> &mut M {
        &mut self.slots[slot as usize].mark
    }

    fn digest(&self, slot: u32) -> Digest {
        digest(self.slots[slot as usize].chunk)
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generations[slot as usize]
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.slots[slot as usize].request == self.request
    }

    fn group(&self, _slot: u32) -> Option<Group> {
        Some(self.group)
    }

    fn find(&self, digest: Digest) -> Option<u32> {
        self.by_digest.get(&digest.0).copied()
    }

    fn holds(&self, slot: u32, generation: u32) -> bool {
        self.generations.get(slot as usize) == Some(&generation)
    }
}
