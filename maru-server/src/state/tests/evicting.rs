//! What is evicted, when, and what never is.

use super::*;

/// Registers a chain of entries in one request, on the pages from `first` on.
fn store_chain(state: &mut State, owner: InstanceNumber, region: RegionId, first: u32, chain: &[u128]) {
    let mut request = Request::new(owner, Duration::ZERO, chain.len());
    for (page, key) in (first..).zip(chain) {
        assert_eq!(state.register(&mut request, Digest(*key), region, page, 1, 0), Registered::Done);
    }
}

fn evicted(state: &mut State, owner: InstanceNumber, want: usize) -> Vec<u32> {
    let mut pages = Vec::new();
    state.evict(owner, want, |_, page| pages.push(page));
    state.check();
    pages
}

#[test]
fn the_tail_of_a_chain_goes_before_its_head() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 8);
    store_chain(&mut state, alice, region, 0, &[1, 2, 3]);
    store_chain(&mut state, alice, region, 3, &[4, 5]);
    assert_eq!(evicted(&mut state, alice, 4), [2, 1, 0, 4]);
    assert!(state.find(Digest(4)).is_some());
    assert_eq!(state.figures(Duration::ZERO).evicted_for_owner, 4);
}

#[test]
fn a_pinned_entry_is_never_evicted_and_its_page_never_handed_back() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 8);
    let bob = reader(&mut state, 2);
    store_chain(&mut state, alice, region, 0, &[1, 2, 3]);
    pin(&mut state, bob, Digest(3)).unwrap();
    pin(&mut state, alice, Digest(1)).unwrap();
    assert_eq!(evicted(&mut state, alice, 8), [1], "the middle one, though it has a successor");
    assert_eq!(evicted(&mut state, alice, 8), []);
    unpin(&mut state, bob, Digest(3)).unwrap();
    assert_eq!(evicted(&mut state, alice, 8), [2]);
    unpin(&mut state, alice, Digest(1)).unwrap();
    assert_eq!(evicted(&mut state, alice, 8), [0]);
}

#[test]
fn an_owner_evicts_its_own_entries_only() {
    let mut state = state();
    let (alice, of_alice) = owner(&mut state, 1, 2);
    let (bob, of_bob) = owner(&mut state, 2, 2);
    store(&mut state, alice, A, of_alice, 0);
    store(&mut state, bob, B, of_bob, 1);
    assert_eq!(evicted(&mut state, bob, 8), [1]);
    assert!(state.find(A).is_some());
    let (carol, _) = owner(&mut state, 3, 2);
    assert_eq!(evicted(&mut state, carol, 8), []);
}

#[test]
fn a_page_is_handed_back_once_whether_evicted_or_deleted() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    store(&mut state, alice, B, region, 1);
    state.delete(A).unwrap();
    assert_eq!(evicted(&mut state, alice, 8), [1]);
    assert_eq!(reclaimed(&mut state, alice), [(region, 0)]);
    assert_eq!(reclaimed(&mut state, alice), []);
    // The page is the owner's to write into again.
    store(&mut state, alice, B, region, 1);
}

#[test]
fn a_full_pool_gives_up_orphans_coldest_first() {
    let mut state = state();
    let mut dead = Vec::new();
    for token in 1..=2 {
        let (instance, region) = owner(&mut state, token, 8);
        store(&mut state, instance, Digest(token), region, 0);
        dead.push((instance, region));
    }
    let (carol, cold) = (reader(&mut state, 3), dead[1].1);
    for (instance, _) in &dead {
        kill(&mut state, *instance);
    }
    // The first is the older one, and was used since.
    pin(&mut state, carol, Digest(1)).unwrap();
    unpin(&mut state, carol, Digest(1)).unwrap();
    let ask =
        |state: &mut State| state.begin_region(carol, 8 * PAGE, PAGE, None).map(|region| region.pool_offset);
    assert_eq!(ask(&mut state), Err(AllocError::NoSpace { pending: true }));
    assert_eq!((state.find(Digest(2)), state.find(Digest(1)).is_some()), (None, true));
    // Nothing more goes while that memory is being released.
    assert_eq!(ask(&mut state), Err(AllocError::NoSpace { pending: true }));
    let retired = state.next_retired().unwrap();
    assert_eq!(retired.id, cold);
    state.released(retired.id);
    assert_eq!(ask(&mut state), Ok(retired.pool_offset));
    assert!(state.find(Digest(1)).is_some());
    assert_eq!(state.figures(Duration::ZERO).evicted_with_orphan, 1);
    state.check();
}

#[test]
fn an_orphan_that_is_read_stays_and_nothing_goes_in_vain() {
    let mut state = state();
    let carol = reader(&mut state, 3);
    for token in 1..=2 {
        let (instance, region) = owner(&mut state, token, 8);
        store(&mut state, instance, Digest(token), region, 0);
        if token == 1 {
            pin(&mut state, carol, Digest(1)).unwrap();
        }
        kill(&mut state, instance);
    }
    let ask = |state: &mut State, pages| state.begin_region(carol, pages * PAGE, PAGE, None).map(|_| ());
    assert_eq!(ask(&mut state, 10), Err(AllocError::NoSpace { pending: false }));
    assert!(state.find(Digest(2)).is_some(), "it would not have made room for 10 pages");
    assert_eq!(ask(&mut state, 8), Err(AllocError::NoSpace { pending: true }));
    assert_eq!((state.find(Digest(2)), state.find(Digest(1)).is_some()), (None, true));
}

#[test]
fn the_entries_of_an_orphan_are_nobodys_to_evict() {
    let mut state = state();
    let (alice, first) = owner(&mut state, 1, 2);
    let second = region(&mut state, alice, 2);
    store_chain(&mut state, alice, first, 0, &[1, 2]);
    store_chain(&mut state, alice, second, 0, &[3, 4]);
    state.return_region(alice, first).unwrap();
    assert_eq!(evicted(&mut state, alice, 8), [1, 0]);
    assert!(state.find(Digest(1)).is_some() && state.find(Digest(2)).is_some());
    // A chain may run from an orphan into an owned region.
    let mut request = Request::new(alice, Duration::ZERO, 2);
    state.lookup(&mut request, Digest(2)).unwrap();
    assert_eq!(state.register(&mut request, Digest(5), second, 0, 1, 0), Registered::Done);
    assert_eq!(evicted(&mut state, alice, 8), [0]);
    state.delete(Digest(2)).unwrap();
    state.check();
}

#[test]
fn a_pin_by_name_runs_out_and_a_guard_does_not() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    store(&mut state, alice, B, region, 1);
    let at = |seconds| Request::new(alice, Duration::from_secs(seconds), 1);
    for _ in 0..2 {
        state.pin(&mut at(0), A, PinKind::Named).unwrap();
    }
    state.pin(&mut at(0), A, PinKind::Guard).unwrap();
    state.pin(&mut at(0), B, PinKind::Named).unwrap();
    assert_eq!(state.next_expiry(), Some(PIN_TTL));
    // Pinning again begins anew.
    state.pin(&mut at(100), B, PinKind::Named).unwrap();
    assert_eq!(state.expire_pins(PIN_TTL - Duration::from_nanos(1)), 0);
    assert_eq!(state.expire_pins(PIN_TTL), 2);
    let unpin_named = |state: &mut State, digest| state.unpin(&at(600), digest, PinKind::Named);
    assert_eq!(
        unpin_named(&mut state, A),
        Err(UnpinError::NotPinned),
        "the guard's pin is not its to release"
    );
    assert_eq!(state.delete(A), Err(DeleteError::Pinned));
    assert_eq!(unpin(&mut state, alice, A), Ok(()));
    assert_eq!(state.delete(A), Ok(()));

    assert_eq!(state.next_expiry(), Some(PIN_TTL + Duration::from_secs(100)));
    let usage = state.usage_after(InstanceNumber(0), Duration::from_secs(650)).next().unwrap();
    assert_eq!((usage.pins, usage.named_pins, usage.oldest_pin_seconds), (2, 2, 650));
    unpin_named(&mut state, B).unwrap();
    unpin_named(&mut state, B).unwrap();
    assert_eq!(state.next_expiry(), None);
    let figures = state.figures(Duration::from_secs(650));
    assert_eq!((figures.pins_expired, figures.oldest_pin_seconds), (2, 0));
}

#[test]
fn pins_by_name_end_with_their_instance() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    state.pin(&mut at_start(bob), A, PinKind::Named).unwrap();
    kill(&mut state, bob);
    assert_eq!(state.next_expiry(), None);
    assert_eq!(state.delete(A), Ok(()));
    state.check();
}
