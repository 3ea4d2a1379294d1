//! What the state promises, one promise per test.

use std::time::Duration;

use super::*;

mod entries;
mod evicting;
mod inspection;
mod instances;
mod regions;

const PAGE: u64 = 4096;
const GRACE: Duration = Duration::from_secs(10);
const PIN_TTL: Duration = Duration::from_secs(600);

const LIMITS: Limits = Limits {
    max_entries: 32,
    max_pins_per_entry: 3,
    max_instances: 3,
    max_connections_per_instance: 2,
    max_regions_per_instance: 3,
    min_page_size: PAGE,
    max_page_size: 4 * PAGE,
    grace: GRACE,
    pin_ttl: PIN_TTL,
};

/// A state with one pool of 16 pages in granules of 2.
fn state() -> State {
    State::new(LIMITS, &[PoolSpec { size: 16 * PAGE, granularity: 2 * PAGE }])
}

/// An instance with one connection, and a region of so many pages.
fn owner(state: &mut State, token: u128, pages: u64) -> (InstanceNumber, RegionId) {
    let instance = reader(state, token);
    (instance, region(state, instance, pages))
}

/// An instance with one connection.
fn reader(state: &mut State, token: u128) -> InstanceNumber {
    let instance = state.open_instance("reader", Token(token)).unwrap();
    state.connect(instance).unwrap();
    instance
}

fn region(state: &mut State, owner: InstanceNumber, pages: u64) -> RegionId {
    let begun = state.begin_region(owner, pages * PAGE, PAGE, None).unwrap();
    state.commit_region(begun.id).unwrap().id
}

/// Stores one byte under a digest.
fn store(state: &mut State, owner: InstanceNumber, digest: Digest, region: RegionId, page: u32) {
    assert_eq!(register(state, owner, digest, region, page, 1), Registered::Done);
}

/// A request of one key, as soon as the server runs.
fn at_start(caller: InstanceNumber) -> Request {
    Request::new(caller, Duration::ZERO, 1)
}

fn register(
    state: &mut State,
    caller: InstanceNumber,
    digest: Digest,
    region: RegionId,
    page: u32,
    length: u32,
) -> Registered {
    state.register(&mut at_start(caller), digest, region, page, length, 0)
}

/// Pins for a reader.
fn pin(state: &mut State, caller: InstanceNumber, digest: Digest) -> Result<Location, PinError> {
    state.pin(&mut at_start(caller), digest, PinKind::Guard)
}

fn unpin(state: &mut State, caller: InstanceNumber, digest: Digest) -> Result<(), UnpinError> {
    state.unpin(&at_start(caller), digest, PinKind::Guard)
}

fn reclaimed(state: &mut State, owner: InstanceNumber) -> Vec<(RegionId, u32)> {
    let mut pages = Vec::new();
    state.reclaim(owner, None, usize::MAX, |region, page| pages.push((region, page))).unwrap();
    pages
}

/// Ends an instance as if it was killed: its only connection breaks, and the grace period passes.
fn kill(state: &mut State, instance: InstanceNumber) {
    state.disconnect(instance, Duration::ZERO);
    assert_eq!(state.expire(GRACE), 1);
}

const A: Digest = Digest(0xA);
const B: Digest = Digest(0xB);
