//! What a simulated client does of its own accord, at random.

use maru_proto::PinsRecord;

use super::client::{Client, Phase};
use super::memory::{Memory, Place};
use super::random::Random;
use super::request::{KEYS, Request, digest};

/// Records of one ASSERT_PINS frame: as few as can be, so that there are several frames.
const ASSERTED_AT_ONCE: usize = 1;
/// Guards that a client holds at most.
const MAX_GUARDS: usize = 12;
/// Pins by name that a client holds on one key at most.
const MAX_NAMED: u32 = 3;

#[derive(Clone, Copy)]
enum Operation {
    Write,
    Register,
    GetPages,
    Acquire,
    Lookup,
    DropGuards,
    Release,
    Pin,
    Unpin,
    UnpinUnheld,
    Delete,
    Exists,
    Heartbeat,
    Stats,
    Usage,
    ReturnRegion,
}

const OPERATIONS: &[(usize, Operation)] = &[
    (24, Operation::Write),
    (28, Operation::Register),
    (8, Operation::GetPages),
    (18, Operation::Acquire),
    (3, Operation::Lookup),
    (7, Operation::DropGuards),
    (12, Operation::Release),
    (6, Operation::Pin),
    (6, Operation::Unpin),
    (2, Operation::UnpinUnheld),
    (5, Operation::Delete),
    (2, Operation::Exists),
    (1, Operation::Heartbeat),
    (1, Operation::Stats),
    (1, Operation::Usage),
    (1, Operation::ReturnRegion),
];

/// What it does without a connection, and while it finds out what is in doubt.
const ALONE: &[(usize, Operation)] = &[(1, Operation::Write), (1, Operation::DropGuards)];

impl Client {
    /// Does something, which may be to ask for something. `is_alive` as long as the server knows the session.
    pub(crate) fn act(
        &mut self,
        random: &mut Random,
        memory: &mut Memory,
        is_alive: bool,
    ) -> Option<Request> {
        let operation = random.weighted(if self.phase == Phase::Up { OPERATIONS } else { ALONE });
        match operation {
            Operation::Write => {
                self.write(random, memory, is_alive);
                None
            }
            Operation::Register => self.register(random),
            Operation::GetPages => {
                let has_free = self.own_pages().any(|(_, page)| page.written.is_none());
                let want = 1 + u32::from(random.one_in(2));
                (!has_free || random.one_in(8)).then_some(Request::Reclaim {
                    want,
                    evict: random.one_in(8),
                    grow: true,
                })
            }
            Operation::Acquire if self.guards.len() > MAX_GUARDS => None,
            Operation::Acquire => Some(Request::Acquire(chain(random))),
            Operation::Lookup => Some(Request::Lookup(chain(random))),
            Operation::DropGuards => {
                for _ in 0..=random.below(4) {
                    if !self.guards.is_empty() {
                        let guard = self.guards.swap_remove(random.below(self.guards.len()));
                        self.to_release.push(guard.key);
                    }
                }
                None
            }
            Operation::Release => self.release(random),
            Operation::Pin => {
                let keys = chain(random);
                let may_pin = |key: &usize| {
                    let pins = self.named.get(key).map_or(0, |named| named.pins);
                    pins < MAX_NAMED && !self.is_unpinning(*key)
                };
                keys.iter().all(may_pin).then_some(Request::Pin(keys))
            }
            Operation::Unpin => self.unpin(random),
            Operation::UnpinUnheld => {
                let key = random.below(KEYS);
                let is_held = self.named.contains_key(&key) || self.is_pinning(key);
                (!is_held).then_some(Request::Unpin { keys: vec![key], is_held: false })
            }
            Operation::Delete => Some(Request::Delete(self.keys_to_delete(random))),
            Operation::Exists => Some(Request::Exists(chain(random))),
            Operation::Heartbeat => Some(Request::Heartbeat),
            Operation::Stats => Some(Request::Stats),
            Operation::Usage => Some(Request::Usage),
            Operation::ReturnRegion => self.return_region(random),
        }
    }

    /// Writes the chunk of a key into a page that it has, or half of one.
    fn write(&mut self, random: &mut Random, memory: &mut Memory, is_alive: bool) {
        let own = self.own_pages().map(|(place, _)| place).collect::<Vec<_>>();
        let Some(place) = random.pick(&own) else { return };
        let key = (!random.one_in(4)).then(|| random.below(KEYS));
        let is_there = memory.write(place, key);
        assert!(is_there || !is_alive, "the memory of an own region is there");
        self.page(place).expect("it has the page").written = key;
    }

    /// Makes chunks visible that were written.
    fn register(&mut self, random: &mut Random) -> Option<Request> {
        let written = self.own_pages().filter_map(|(place, page)| Some((page.written?, place)));
        let mut chunks = written.collect::<Vec<(usize, Place)>>();
        while chunks.len() > 1 + random.below(3) {
            chunks.swap_remove(random.below(chunks.len()));
        }
        if random.one_in(2) {
            chunks.sort_unstable();
        }
        for (_, place) in &chunks {
            self.page(*place).expect("it has the page").pending += 1;
        }
        (!chunks.is_empty()).then_some(Request::Register { chunks, is_repeated: false })
    }

    /// Releases the pins of guards that are gone.
    pub(crate) fn release(&mut self, random: &mut Random) -> Option<Request> {
        if self.to_release.is_empty() {
            return None;
        }
        let keys = std::mem::take(&mut self.to_release);
        Some(if random.one_in(3) { Request::Release(keys) } else { Request::ReleaseSilently(keys) })
    }

    fn unpin(&mut self, random: &mut Random) -> Option<Request> {
        let held = self.named.keys().copied().collect::<Vec<_>>();
        let key = random.pick(&held)?;
        let named = self.named.get_mut(&key).expect("it was picked from these");
        named.pins -= 1;
        if named.pins == 0 {
            self.named.remove(&key);
        }
        Some(Request::Unpin { keys: vec![key], is_held: true })
    }

    /// Keys to delete: some in a row, any one, or one whose registration is not answered yet.
    fn keys_to_delete(&self, random: &mut Random) -> Vec<usize> {
        let in_flight = self.links.iter().flat_map(|link| &link.in_flight);
        let chunks = in_flight.filter_map(|(_, request)| match request {
            Request::Register { chunks, .. } => Some(chunks),
            _ => None,
        });
        let keys = chunks.flatten().map(|(key, _)| *key).collect::<Vec<_>>();
        match random.pick(&keys).filter(|_| random.one_in(2)) {
            Some(key) => vec![key],
            None if random.one_in(4) => chain(random),
            None => vec![random.below(KEYS)],
        }
    }

    /// Whether the server may have a pin by name that is on its way to the client, or back.
    fn is_pinning(&self, key: usize) -> bool {
        self.has_in_flight(|request| match request {
            Request::Pin(keys) | Request::Unpin { keys, is_held: true } => keys.contains(&key),
            _ => false,
        })
    }

    /// Whether a pin by name may be released on the way that it does not have yet.
    fn is_unpinning(&self, key: usize) -> bool {
        self.has_in_flight(
            |request| matches!(request, Request::Unpin { keys, is_held: false } if keys.contains(&key)),
        )
    }

    fn has_in_flight(&self, wanted: impl Fn(&Request) -> bool) -> bool {
        self.links.iter().flat_map(|link| &link.in_flight).any(|(_, request)| wanted(request))
    }

    fn return_region(&mut self, random: &mut Random) -> Option<Request> {
        let regions = self.regions.keys().copied().collect::<Vec<_>>();
        let region = random.pick(&regions)?;
        self.regions.remove(&region);
        self.returned.insert(region);
        Some(Request::Return(region))
    }

    /// What has to be asked once the session goes on on a new connection. What is released from here on is released by
    /// the server once it was told what is in use.
    pub(crate) fn go_on(&mut self) -> Vec<Request> {
        self.to_release.clear();
        let mut records = Vec::<PinsRecord>::new();
        let mut record = |key: usize, generation: u32, guards: u32, named: u32| {
            let same = |record: &&mut PinsRecord| {
                record.digest == digest(key) && record.generation.get() == generation
            };
            match records.iter_mut().find(same) {
                Some(record) => {
                    record.guards += guards;
                    record.named += named;
                }
                None => records.push(PinsRecord {
                    digest: digest(key),
                    generation: generation.into(),
                    guards: guards.into(),
                    named: named.into(),
                    reserved: 0.into(),
                }),
            }
        };
        self.guards.iter().for_each(|guard| record(guard.key, guard.generation, 1, 0));
        self.named.iter().for_each(|(key, named)| record(*key, named.generation, 0, named.pins));
        let mut requests = records
            .chunks(ASSERTED_AT_ONCE)
            .map(|records| Request::Assert { records: records.to_vec(), is_last: false })
            .collect::<Vec<_>>();
        match requests.last_mut() {
            Some(Request::Assert { is_last, .. }) => *is_last = true,
            // Also without any, so that the server releases what is left.
            _ => requests.push(Request::Assert { records, is_last: true }),
        }
        requests.extend(self.regions.keys().map(|region| Request::Pages(*region)));
        requests.push(Request::Regions);
        requests
    }
}

/// Some keys in a row.
fn chain(random: &mut Random) -> Vec<usize> {
    let first = if random.one_in(2) { 0 } else { random.below(KEYS) };
    (first..=first + random.below(4)).filter(|key| *key < KEYS).collect()
}
