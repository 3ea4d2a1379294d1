//! Regions and their memory: given, orphaned, retired, released.

use super::*;

#[test]
fn a_region_is_rounded_up_to_pages_and_its_extent_to_granules() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    let begun = state.begin_region(alice, 2 * PAGE + 1, PAGE, Some(PoolId(0))).unwrap();
    assert_eq!((begun.pages, begun.size, begun.extent), (3, 3 * PAGE, 4 * PAGE));
    assert_eq!(state.figures(Duration::ZERO).pool_free_bytes, 12 * PAGE);
}

#[test]
fn what_cannot_be_a_region_is_refused() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    for (size, page_size) in
        [(0, PAGE), (PAGE - 1, PAGE), (PAGE, 0), (PAGE, 2048), (9000, 5000), (8 * PAGE, 8 * PAGE)]
    {
        let refused = state.begin_region(alice, size, page_size, None);
        assert_eq!(refused, Err(AllocError::InvalidSize), "{size} in pages of {page_size}");
    }
    assert_eq!(state.begin_region(alice, PAGE, PAGE, Some(PoolId(1))), Err(AllocError::UnknownPool));
    // What no pool could hold is called that, also where there would be too many pages.
    assert_eq!(state.begin_region(alice, 33 * PAGE, PAGE, None), Err(AllocError::NoSpace { pending: false }));
    assert_eq!(state.begin_region(alice, u64::MAX, PAGE, None), Err(AllocError::TooManyPages));
    assert_eq!(state.begin_region(alice, 17 * PAGE, PAGE, None), Err(AllocError::NoSpace { pending: false }));
    (0..3).for_each(|_| {
        region(&mut state, alice, 2);
    });
    assert_eq!(state.begin_region(alice, PAGE, PAGE, None), Err(AllocError::TooManyRegions));
    state.check();
}

#[test]
fn entries_cannot_outnumber_the_capacity() {
    let limits = Limits { max_entries: 4, ..LIMITS };
    let mut state = State::new(limits, &[PoolSpec { size: 64 * PAGE, granularity: PAGE }]);
    let alice = reader(&mut state, 1);
    let prepared = state.begin_region(alice, 3 * PAGE, PAGE, None).unwrap();
    assert_eq!(state.begin_region(alice, 2 * PAGE, PAGE, None), Err(AllocError::TooManyPages));
    assert_eq!(state.figures(Duration::ZERO).pool_free_bytes, 61 * PAGE, "a refused region takes nothing");
    state.abort_region(prepared.id);
    assert!(state.begin_region(alice, 4 * PAGE, PAGE, None).is_ok());
}

#[test]
fn a_region_being_prepared_is_invisible() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    let RegionInfo { id, .. } = state.begin_region(alice, 4 * PAGE, PAGE, None).unwrap();
    assert_eq!(state.region(id), None);
    assert_eq!(state.regions_after(RegionId(0)).count(), 0);
    assert_eq!(register(&mut state, alice, A, id, 0, 1), Registered::RegionNotFound);
    assert_eq!(state.return_region(alice, id), Err(ReturnError::NotFound));
    assert_eq!(state.figures(Duration::ZERO).regions, 0);
    assert_eq!(state.commit_region(id), state.region(id));
    assert_eq!(register(&mut state, alice, A, id, 0, 1), Registered::Done);
}

#[test]
fn an_aborted_region_leaves_nothing_but_its_number() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    let figures = state.figures(Duration::ZERO);
    let aborted = state.begin_region(alice, 16 * PAGE, PAGE, None).unwrap();
    state.abort_region(aborted.id);
    assert_eq!(state.figures(Duration::ZERO), figures);
    let next = state.begin_region(alice, 16 * PAGE, PAGE, None).unwrap();
    assert_eq!(next, RegionInfo { id: RegionId(aborted.id.0 + 1), ..aborted });
}

#[test]
fn a_region_whose_owner_ended_in_its_preparation_is_retired_at_once() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    let begun = state.begin_region(alice, 4 * PAGE, PAGE, None).unwrap();
    kill(&mut state, alice);
    // Its memory is still being made, so there is nothing to release yet.
    assert_eq!(state.next_retired(), None);
    assert_eq!(state.commit_region(begun.id), None);
    assert_eq!(state.region(begun.id), None);
    assert_eq!(state.next_retired().unwrap().id, begun.id);
}

#[test]
fn an_extent_is_free_only_when_its_memory_is_released() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 16);
    assert_eq!(state.begin_region(alice, PAGE, PAGE, None), Err(AllocError::NoSpace { pending: false }));
    state.return_region(alice, region).unwrap();
    assert_eq!(state.begin_region(alice, PAGE, PAGE, None), Err(AllocError::NoSpace { pending: true }));
    let retired = state.next_retired().unwrap();
    assert_eq!(
        (retired.id, retired.pool, retired.pool_offset, retired.extent),
        (region, PoolId(0), 0, 16 * PAGE)
    );
    assert_eq!(state.next_retired(), None);
    assert_eq!(state.begin_region(alice, PAGE, PAGE, None), Err(AllocError::NoSpace { pending: true }));
    assert_eq!(state.figures(Duration::ZERO).pool_free_bytes, 0);
    state.released(region);
    assert_eq!(state.figures(Duration::ZERO).pool_free_bytes, 16 * PAGE);
    assert!(state.begin_region(alice, PAGE, PAGE, None).is_ok());
}

#[test]
fn a_region_is_returned_by_its_owner_only() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    assert_eq!(state.return_region(bob, region), Err(ReturnError::NotOwner));
    assert_eq!(state.region(region).unwrap().owner, Some(alice));
    assert_eq!(state.return_region(alice, region), Ok(()));
    assert_eq!(state.return_region(alice, region), Err(ReturnError::NotFound));
}

#[test]
fn regions_of_dead_clients_are_readable_until_their_last_entry_is_gone_and_then_freed() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    store(&mut state, alice, B, region, 1);
    store(&mut state, alice, Digest(0xC), region, 2);
    state.delete(Digest(0xC)).unwrap();
    kill(&mut state, alice);
    assert!(pin(&mut state, bob, A).is_ok());
    let orphan = state.region(region).unwrap();
    // The page that waited for its owner waits no more.
    assert_eq!((orphan.owner, orphan.entries, orphan.freed_pages), (None, 2, 0));
    assert_eq!(register(&mut state, bob, Digest(0xD), region, 3, 1), Registered::NotOwner);
    state.delete(B).unwrap();
    assert_eq!(state.next_retired(), None);
    unpin(&mut state, bob, A).unwrap();
    state.delete(A).unwrap();
    assert_eq!(state.next_retired().unwrap().id, region);
    assert_eq!((state.region(region), state.figures(Duration::ZERO).orphans), (None, 0));
}

#[test]
fn a_pool_filled_by_clients_that_were_killed_is_free_again_after_the_grace() {
    let mut state = state();
    for (token, pages) in [(1, 6), (2, 4), (3, 6)] {
        owner(&mut state, token, pages);
    }
    assert_eq!(state.figures(Duration::ZERO).pool_free_bytes, 0);
    for instance in (1..=3).map(InstanceNumber) {
        state.disconnect(instance, Duration::ZERO);
    }
    assert_eq!(state.expire(GRACE), 3);
    while let Some(retired) = state.next_retired() {
        state.released(retired.id);
    }
    let (pool, figures) = (state.pools().next().unwrap(), state.figures(Duration::ZERO));
    assert_eq!((pool.free, pool.largest_free), (16 * PAGE, 16 * PAGE));
    assert_eq!((figures.instances, figures.regions, figures.connections), (0, 0, 0));
    state.check();
}

#[test]
fn a_reader_needs_no_memory_of_the_pool() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 16);
    store(&mut state, alice, A, region, 0);
    let bob = reader(&mut state, 2);
    assert!(pin(&mut state, bob, A).is_ok());
}
