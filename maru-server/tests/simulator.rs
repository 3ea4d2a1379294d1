//! Many clients, a clock and every fault between any two frames, all decided by a seed: the same seed, the same run.
//!
//! A run that fails prints its seed; `MARU_SIMULATOR_SEED` runs that one alone, `MARU_SIMULATOR_SEEDS` and
//! `MARU_SIMULATOR_STEPS` make runs more and longer.

#[path = "simulator/mod.rs"]
mod simulator;

use std::collections::BTreeMap;
use std::env;
use std::str::FromStr;

use simulator::{Trace, World};

const SEEDS: u64 = 200;
const STEPS: usize = 1500;

/// What has to happen at all in so many runs: whatever never does is not tested.
#[rustfmt::skip]
const KINDS: &[&str] = &[
    "HELLO answered Ok", "HELLO answered Limit", "HELLO answered Unauthorized",
    "REQUEST_ALLOC answered Ok", "REQUEST_ALLOC answered NoSpace", "REQUEST_ALLOC answered Limit",
    "REQUEST_ALLOC answered Internal", "REQUEST_ALLOC answered HelloRequired",
    "RETURN_ALLOC answered Ok", "RETURN_ALLOC answered RegionNotFound", "RETURN_ALLOC answered Unauthorized",
    "RECLAIM_PAGES answered Ok", "RECLAIM_PAGES answered HelloRequired",
    "REGISTER_KV of a key: Ok", "REGISTER_KV of a key: Exists", "REGISTER_KV of a key: PageInUse",
    "BATCH_REGISTER_KV of a key: Ok", "BATCH_REGISTER_KV of a key: Exists",
    "LOOKUP_KV of a key: Ok", "BATCH_LOOKUP_KV of a key: Ok", "BATCH_LOOKUP_KV of a key: NotFound",
    "BATCH_LOOKUP_KV of a key: PinLimit", "BATCH_LOOKUP_KV of a key: Skipped",
    "BATCH_LOOKUP_KV answered HelloRequired",
    "PIN_KV of a key: Ok", "BATCH_PIN_KV of a key: Ok", "BATCH_PIN_KV of a key: PinLimit",
    "UNPIN_KV of a key: Ok", "UNPIN_KV of a key: NotFound", "UNPIN_KV of a key: NotPinned",
    "BATCH_UNPIN_KV of a key: Ok",
    "DELETE_KV of a key: Ok", "DELETE_KV of a key: NotFound", "DELETE_KV of a key: Pinned",
    "BATCH_DELETE_KV of a key: Ok", "EXISTS_KV of a key: Ok", "BATCH_EXISTS_KV of a key: NotFound",
    "ASSERT_PINS of a key: Ok", "ASSERT_PINS of a key: NotFound", "ASSERT_PINS answered HelloRequired",
    "GET_PAGES answered Ok", "LIST_ALLOCATIONS answered Ok", "GET_STATS answered Ok", "GET_USAGE answered Ok",
    "HEARTBEAT answered Ok",
    "a client started", "a client was killed", "a client gave its connections up",
    "a client learned that a connection is lost", "a client tries to go on",
    "a client was interrupted as its session went on", "a session goes on", "a client came back too late",
    "a client found itself on a stale connection", "a stale request was refused",
    "a further connection joined", "a connection was one too many",
    "a batch was served in part", "a frame may have been torn", "a request was sent twice",
    "lost: the server knows at once", "lost: the server will be told", "lost: nobody tells the server",
    "a region was made, or not", "a region came too late", "a request waits for memory to be released",
    "the memory of a region was released",
    "an instance ended", "a pin by name ran out",
    "a page was taken back", "an entry was evicted for its owner", "an entry was evicted with an orphan",
    "all clients were compared",
];

/// A run under way; says how to repeat it where it fails.
struct Run {
    seed: u64,
    steps: usize,
    world: Option<World>,
}

impl Run {
    fn new(seed: u64, steps: usize) -> Run {
        Run { seed, steps, world: Some(World::new(seed)) }
    }

    fn through(mut self) -> Trace {
        let world = self.world.as_mut().expect("it has not ended");
        (0..self.steps).for_each(|_| world.step());
        world.end();
        self.world.take().expect("it is there").trace
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(world) = self.world.as_ref().filter(|_| std::thread::panicking()) {
            world.trace.print();
            eprintln!(
                "run this again: MARU_SIMULATOR_SEED={} MARU_SIMULATOR_STEPS={}",
                self.seed, self.steps
            );
        }
    }
}

/// A number from the environment.
fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

#[test]
fn whatever_is_lost_and_whoever_dies_the_promises_hold() {
    let steps = from_environment("MARU_SIMULATOR_STEPS").unwrap_or(STEPS);
    if let Some(seed) = from_environment("MARU_SIMULATOR_SEED") {
        let trace = Run::new(seed, steps).through();
        println!("seed {seed} comes to {:016x}: {:#?}", trace.hash(), trace.counts());
        return;
    }
    let seeds = from_environment("MARU_SIMULATOR_SEEDS").unwrap_or(SEEDS);
    let mut seen = BTreeMap::<String, u64>::new();
    for seed in 0..seeds {
        for (what, count) in Run::new(seed, steps).through().counts() {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:#?}");
    if seeds >= SEEDS && steps >= STEPS {
        for kind in KINDS {
            assert!(seen.get(*kind).is_some_and(|count| *count > 0), "no run came to \"{kind}\": {seen:#?}");
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    let hash = |seed| Run::new(seed, STEPS).through().hash();
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
}
