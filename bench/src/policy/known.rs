//! Policies from the literature to compare with, and the bound that no policy can know.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Cache;

/// Asks chunk by chunk, as caches that know nothing of chains do.
fn each(chunks: &[u64], mut ask: impl FnMut(usize, u64) -> bool) -> usize {
    let mut hits = 0;
    for (n, &chunk) in chunks.iter().enumerate() {
        hits += usize::from(ask(n, chunk) && hits == n);
    }
    hits
}

/// The least recently used goes.
pub(super) struct Lru {
    capacity: usize,
    now: u64,
    last: HashMap<u64, u64>,
    by_last: BTreeSet<(u64, u64)>,
}

impl Lru {
    pub(super) fn new(capacity: usize) -> Lru {
        Lru { capacity, now: 0, last: HashMap::new(), by_last: BTreeSet::new() }
    }
}

impl Cache for Lru {
    fn request(&mut self, chunks: &[u64]) -> usize {
        each(chunks, |_, chunk| {
            self.now += 1;
            let before = self.last.insert(chunk, self.now);
            if let Some(before) = before {
                self.by_last.remove(&(before, chunk));
            }
            self.by_last.insert((self.now, chunk));
            if self.last.len() > self.capacity {
                let (_, oldest) = self.by_last.pop_first().expect("the cache is full");
                self.last.remove(&oldest);
            }
            before.is_some()
        })
    }
}

/// A hand goes from the oldest to the newest, and takes the first that was not visited since it came by (Zhang et al.,
/// "SIEVE is simpler than LRU", NSDI 2024).
pub(super) struct Sieve {
    capacity: usize,
    now: u64,
    /// When a chunk came.
    came: HashMap<u64, u64>,
    /// By when it came: the chunk, and whether it was visited.
    queue: BTreeMap<u64, (u64, bool)>,
    hand: u64,
}

impl Sieve {
    pub(super) fn new(capacity: usize) -> Sieve {
        Sieve { capacity, now: 0, came: HashMap::new(), queue: BTreeMap::new(), hand: 0 }
    }

    fn evict(&mut self) {
        loop {
            let next = self.queue.range(self.hand..).next().map(|(came, _)| *came);
            let Some(came) = next else {
                self.hand = 0;
                continue;
            };
            let (chunk, visited) = self.queue.get_mut(&came).expect("it was found just now");
            self.hand = came + 1;
            if !std::mem::take(visited) {
                self.came.remove(chunk);
                self.queue.remove(&came);
                return;
            }
        }
    }
}

impl Cache for Sieve {
    fn request(&mut self, chunks: &[u64]) -> usize {
        each(chunks, |_, chunk| {
            if let Some(came) = self.came.get(&chunk) {
                self.queue.get_mut(came).expect("what is there is in the queue").1 = true;
                return true;
            }
            if self.came.len() >= self.capacity {
                self.evict();
            }
            self.now += 1;
            self.came.insert(chunk, self.now);
            self.queue.insert(self.now, (chunk, false));
            false
        })
    }
}

/// A small queue that lets only what is asked for again into the main one, and remembers what it dropped (Yang et al.,
/// "FIFO queues are all you need for cache eviction", SOSP 2023).
pub(super) struct S3Fifo {
    capacity: usize,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghosts: VecDeque<u64>,
    ghost_counts: HashMap<u64, u32>,
    /// What is there, and how often it was asked for again, up to 3.
    visits: HashMap<u64, u8>,
}

impl S3Fifo {
    pub(super) fn new(capacity: usize) -> S3Fifo {
        S3Fifo {
            capacity,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            ghost_counts: HashMap::new(),
            visits: HashMap::new(),
        }
    }

    /// A tenth of the cache.
    fn small_capacity(&self) -> usize {
        (self.capacity / 10).max(1)
    }

    fn evict(&mut self) {
        if self.small.len() >= self.small_capacity() || self.main.is_empty() {
            while let Some(chunk) = self.small.pop_front() {
                if self.visits.get(&chunk).is_some_and(|visits| *visits > 0) {
                    self.visits.insert(chunk, 0);
                    self.main.push_back(chunk);
                } else {
                    self.visits.remove(&chunk);
                    self.remember(chunk);
                    return;
                }
            }
        }
        while let Some(chunk) = self.main.pop_front() {
            let visits = self.visits.get_mut(&chunk).expect("what is in a queue is there");
            if *visits == 0 {
                self.visits.remove(&chunk);
                return;
            }
            *visits -= 1;
            self.main.push_back(chunk);
        }
    }

    fn remember(&mut self, chunk: u64) {
        self.ghosts.push_back(chunk);
        *self.ghost_counts.entry(chunk).or_default() += 1;
        if self.ghosts.len() > self.capacity {
            let oldest = self.ghosts.pop_front().expect("there are many");
            let count = self.ghost_counts.get_mut(&oldest).expect("every ghost is counted");
            *count -= 1;
            if *count == 0 {
                self.ghost_counts.remove(&oldest);
            }
        }
    }
}

impl Cache for S3Fifo {
    fn request(&mut self, chunks: &[u64]) -> usize {
        each(chunks, |_, chunk| {
            if let Some(visits) = self.visits.get_mut(&chunk) {
                *visits = (*visits + 1).min(3);
                return true;
            }
            while self.visits.len() >= self.capacity {
                self.evict();
            }
            let queue = if self.ghost_counts.contains_key(&chunk) { &mut self.main } else { &mut self.small };
            queue.push_back(chunk);
            self.visits.insert(chunk, 0);
            false
        })
    }
}

/// What is asked for again last goes first, or does not come in at all: it takes knowing the future.
pub(super) struct Bound {
    capacity: usize,
    /// By request and place in it: the request that asks for the chunk next.
    next: Vec<Vec<usize>>,
    request: usize,
    there: HashMap<u64, usize>,
    by_next: BTreeSet<(usize, u64)>,
}

impl Bound {
    pub(super) fn new(requests: &[Vec<u64>], capacity: usize) -> Bound {
        let mut upcoming = HashMap::new();
        let mut next = requests.iter().map(|chunks| vec![usize::MAX; chunks.len()]).collect::<Vec<_>>();
        for (n, chunks) in requests.iter().enumerate().rev() {
            for (next, chunk) in next[n].iter_mut().zip(chunks) {
                *next = upcoming.get(chunk).copied().unwrap_or(usize::MAX);
            }
            upcoming.extend(chunks.iter().map(|chunk| (*chunk, n)));
        }
        Bound { capacity, next, request: 0, there: HashMap::new(), by_next: BTreeSet::new() }
    }
}

impl Cache for Bound {
    fn request(&mut self, chunks: &[u64]) -> usize {
        let next = std::mem::take(&mut self.next[self.request]);
        self.request += 1;
        each(chunks, |n, chunk| {
            let before = self.there.insert(chunk, next[n]);
            if let Some(before) = before {
                self.by_next.remove(&(before, chunk));
            }
            self.by_next.insert((next[n], chunk));
            if self.there.len() > self.capacity {
                let (_, farthest) = self.by_next.pop_last().expect("the cache is full");
                self.there.remove(&farthest);
            }
            before.is_some()
        })
    }
}
