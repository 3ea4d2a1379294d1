//! Pins belong to instances, and end with them.

use super::*;

#[test]
fn delete_says_not_found_or_pinned_or_ok() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    pin(&mut state, bob, A).unwrap();
    assert_eq!(state.delete(B), Err(DeleteError::NotFound));
    assert_eq!(state.delete(A), Err(DeleteError::Pinned));
    assert!(state.find(A).is_some());
    unpin(&mut state, bob, A).unwrap();
    assert_eq!(state.delete(A), Ok(()));
    assert_eq!(state.delete(A), Err(DeleteError::NotFound));
}

#[test]
fn pins_of_one_client_cannot_be_dropped_by_another() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    pin(&mut state, bob, A).unwrap();
    assert_eq!(unpin(&mut state, alice, A), Err(UnpinError::NotPinned));
    assert_eq!(state.delete(A), Err(DeleteError::Pinned));
    assert_eq!(unpin(&mut state, bob, A), Ok(()));
    assert_eq!(unpin(&mut state, bob, A), Err(UnpinError::NotPinned));
}

#[test]
fn pin_count_is_bounded() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    for who in [alice, bob, bob] {
        pin(&mut state, who, A).unwrap();
    }
    for who in [alice, bob] {
        assert_eq!(pin(&mut state, who, A), Err(PinError::Limit));
    }
    assert_eq!(state.figures(Duration::ZERO).pins, 3);
    unpin(&mut state, alice, A).unwrap();
    assert!(pin(&mut state, bob, A).is_ok());
}

#[test]
fn pin_and_unpin_of_nothing_change_nothing() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    let figures = state.figures(Duration::ZERO);
    assert_eq!(pin(&mut state, alice, A), Err(PinError::NotFound));
    assert_eq!(unpin(&mut state, alice, A), Err(UnpinError::NotFound));
    assert_eq!(state.figures(Duration::ZERO), figures);
}

#[test]
fn pins_of_dead_clients_are_released_after_the_grace() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    pin(&mut state, bob, A).unwrap();
    pin(&mut state, bob, A).unwrap();
    state.disconnect(bob, Duration::from_secs(100));
    assert_eq!(state.next_expiry(), Some(Duration::from_secs(110)));
    assert_eq!(state.expire(Duration::from_millis(109_999)), 0);
    assert_eq!(state.delete(A), Err(DeleteError::Pinned));
    assert_eq!(state.expire(Duration::from_secs(110)), 1);
    assert_eq!((state.figures(Duration::ZERO).pins, state.figures(Duration::ZERO).instances_expired), (0, 1));
    assert_eq!(state.delete(A), Ok(()));
    assert_eq!(state.next_expiry(), None);
}

#[test]
fn pins_are_told_in_figures_and_per_instance() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    store(&mut state, alice, B, region, 1);
    for (who, digest) in [(alice, A), (bob, A), (bob, A), (bob, B)] {
        pin(&mut state, who, digest).unwrap();
    }
    let figures = state.figures(Duration::ZERO);
    assert_eq!((figures.pinned_entries, figures.pins), (2, 4));
    let usage = state.usage_after(InstanceNumber(0), Duration::ZERO);
    let pins = usage.map(|usage| (usage.number, usage.pinned_entries, usage.pins)).collect::<Vec<_>>();
    assert_eq!(pins, [(alice, 1, 1), (bob, 2, 3)]);
    assert_eq!(state.usage_after(alice, Duration::ZERO).map(|usage| usage.number).collect::<Vec<_>>(), [bob]);
}

#[test]
fn pinning_again_and_again_takes_no_more_memory() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 8);
    let round = |state: &mut State| {
        for number in 0..8 {
            store(state, alice, Digest(number), region, u32::try_from(number).unwrap());
            pin(state, alice, Digest(number)).unwrap();
        }
        for number in 0..8 {
            unpin(state, alice, Digest(number)).unwrap();
            state.delete(Digest(number)).unwrap();
        }
        state.reclaim(alice, None, 8, |_, _| {}).unwrap();
        state.instances.get_mut(alice).ledger.allocation_size()
    };
    let memory = round(&mut state);
    for _ in 0..1000 {
        assert_eq!(round(&mut state), memory);
    }
}

#[test]
fn a_resumed_session_keeps_its_pins_and_regions() {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    store(&mut state, alice, A, region, 0);
    pin(&mut state, alice, A).unwrap();
    state.disconnect(alice, Duration::ZERO);
    assert_eq!(state.find_instance(Token(1)), Some(alice));
    state.connect(alice).unwrap();
    assert_eq!(state.next_expiry(), None);
    assert_eq!(state.expire(Duration::MAX), 0);
    assert_eq!(unpin(&mut state, alice, A), Ok(()));
    assert_eq!(state.return_region(alice, region), Ok(()));
}

#[test]
fn the_grace_period_starts_with_the_last_connection() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    state.connect(alice).unwrap();
    state.disconnect(alice, Duration::ZERO);
    assert_eq!(state.next_expiry(), None);
    state.disconnect(alice, Duration::from_secs(5));
    assert_eq!(state.next_expiry(), Some(Duration::from_secs(15)));
    let left = state.usage_after(InstanceNumber(0), Duration::from_secs(7)).next().unwrap().grace_left;
    assert_eq!(left, Duration::from_secs(8));
    assert_eq!(state.expire(Duration::from_secs(15)), 1);
    assert_eq!(state.find_instance(Token(1)), None);
}

#[test]
fn instances_and_connections_are_limited() {
    let mut state = state();
    let alice = reader(&mut state, 1);
    state.connect(alice).unwrap();
    assert_eq!(state.connect(alice), Err(LimitReached::Connections(2)));
    let bob = reader(&mut state, 2);
    reader(&mut state, 3);
    assert_eq!(state.open_instance("fourth", Token(4)), Err(LimitReached::Instances(3)));
    assert_eq!((state.figures(Duration::ZERO).instances, state.figures(Duration::ZERO).connections), (3, 4));
    // An end makes room, and its number is not given again.
    state.forget(bob);
    assert_eq!(state.open_instance("fourth", Token(4)), Ok(InstanceNumber(4)));
    assert_eq!(state.find_instance(Token(2)), None);
}

#[test]
fn two_instances_may_bear_the_same_name() {
    let mut state = state();
    let (alice, bob) = (reader(&mut state, 1), reader(&mut state, 2));
    assert_ne!(alice, bob);
    let names = state.usage_after(InstanceNumber(0), Duration::ZERO).map(|usage| usage.name.to_owned());
    assert_eq!(names.collect::<Vec<_>>(), ["reader", "reader"]);
}
