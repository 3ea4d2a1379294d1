//! What may be done to entries and pages, and by whom.

use super::*;

#[test]
fn an_entry_is_found_where_it_was_registered() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    assert_eq!(state.register(&mut at_start(alice), A, region, 2, 77, 0xC5), Registered::Done);
    let location = Location { region, offset: 2 * PAGE, length: 77, generation: 1, checksum: 0xC5 };
    assert_eq!(state.find(A), Some(location));
    assert_eq!(state.find(B), None);
    let bob = reader(&mut state, 2);
    assert_eq!(pin(&mut state, bob, A), Ok(location));
}

#[test]
fn register_into_unknown_region_is_refused() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    for unknown in [RegionId(0), RegionId(region.0 + 1), RegionId(u32::MAX)] {
        assert_eq!(register(&mut state, alice, A, unknown, 0, 1), Registered::RegionNotFound);
    }
    assert_eq!(state.find(A), None);
}

#[test]
fn register_out_of_bounds_is_refused() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    for (page, length) in [(4, 1), (u32::MAX, 1), (0, 0), (0, 4097), (0, u32::MAX)] {
        let registered = register(&mut state, alice, A, region, page, length);
        assert_eq!(registered, Registered::OutOfBounds, "{page} {length}");
    }
    assert_eq!(register(&mut state, alice, A, region, 3, 4096), Registered::Done);
}

#[test]
fn register_into_a_region_of_another_is_refused() {
    let mut state = state();
    let (_, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    assert_eq!(register(&mut state, bob, A, region, 0, 1), Registered::NotOwner);
    assert_eq!(state.find(A), None);
}

#[test]
fn a_duplicate_register_says_exists_and_changes_nothing() {
    let mut state = state();
    let (alice, of_alice) = owner(&mut state, 1, 4);
    let (bob, of_bob) = owner(&mut state, 2, 4);
    store(&mut state, alice, A, of_alice, 0);
    let (location, figures) = (state.find(A), state.figures(Duration::ZERO));
    assert_eq!(register(&mut state, bob, A, of_bob, 0, 9), Registered::Exists);
    assert_eq!(register(&mut state, alice, A, of_alice, 0, 1), Registered::Exists);
    assert_eq!((state.find(A), state.figures(Duration::ZERO)), (location, figures));
    // The page of the refused one is still its owner's.
    store(&mut state, bob, B, of_bob, 0);
}

#[test]
fn a_page_holds_at_most_one_entry() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    assert_eq!(register(&mut state, alice, B, region, 0, 1), Registered::PageInUse);
    assert_eq!(state.find(B), None);
}

#[test]
fn a_stale_page_is_refused_until_its_owner_has_taken_it_back() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    state.delete(A).unwrap();
    assert_eq!(register(&mut state, alice, B, region, 0, 1), Registered::PageInUse);
    assert_eq!(reclaimed(&mut state, alice), [(region, 0)]);
    store(&mut state, alice, B, region, 0);
}

#[test]
fn the_same_place_under_another_generation_is_another_entry() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    let before = state.find(A).unwrap();
    state.delete(A).unwrap();
    reclaimed(&mut state, alice);
    store(&mut state, alice, A, region, 0);
    let after = state.find(A).unwrap();
    assert_ne!(before.generation, after.generation);
    assert_eq!(before, Location { generation: before.generation, ..after });
}

#[test]
fn a_page_freed_by_a_non_owner_returns_to_its_owner_exactly_once() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 3);
    state.delete(A).unwrap();
    assert_eq!(state.region(region).unwrap().freed_pages, 1);
    assert_eq!(reclaimed(&mut state, bob), []);
    assert_eq!(state.reclaim(bob, Some(region), 1, |_, _| panic!()), Err(ReturnError::NotOwner));
    assert_eq!(reclaimed(&mut state, alice), [(region, 3)]);
    assert_eq!(reclaimed(&mut state, alice), []);
    assert_eq!(
        (state.figures(Duration::ZERO).freed_pages, state.figures(Duration::ZERO).reclaimed_pages),
        (0, 1)
    );
}

#[test]
fn pages_are_reclaimed_as_many_as_wanted_in_order() {
    let mut state = state();
    let (alice, first) = owner(&mut state, 1, 4);
    let second = region(&mut state, alice, 4);
    for (number, (region, page)) in [(second, 0), (first, 3), (first, 1), (second, 2)].into_iter().enumerate()
    {
        let digest = Digest(number as u128);
        store(&mut state, alice, digest, region, page);
        state.delete(digest).unwrap();
    }
    let mut pages = Vec::new();
    state.reclaim(alice, Some(second), 1, |region, page| pages.push((region, page))).unwrap();
    state.reclaim(alice, None, 0, |_, _| panic!()).unwrap();
    state.reclaim(alice, None, 2, |region, page| pages.push((region, page))).unwrap();
    assert_eq!(pages, [(second, 0), (first, 1), (first, 3)]);
    assert_eq!(state.reclaim(alice, Some(RegionId(99)), 1, |_, _| panic!()), Err(ReturnError::NotFound));
    assert_eq!(reclaimed(&mut state, alice), [(second, 2)]);
}
