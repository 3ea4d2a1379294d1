//! Whoever operates the server sees every pin once, and releases those by name alone.

use std::collections::BTreeMap;

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pin_at(state: &mut State, who: InstanceNumber, digest: Digest, kind: PinKind, seconds: u64) {
    state.pin(&mut Request::new(who, at(seconds), 1), digest, kind).unwrap();
}

/// The whole list, so many pins at a time.
fn list(state: &State, filter: &PinFilter, limit: usize, now: Duration) -> Vec<HeldPins> {
    let (mut all, mut after) = (Vec::new(), PinsAfter::default());
    while let Some(come_to) = state.pins_after(after, filter, limit, now, |place, pins| {
        assert!(place > after, "the list goes on");
        all.push(pins);
    }) {
        assert!(come_to > after, "the list goes on");
        after = PinsAfter::from(u64::from(come_to));
    }
    all
}

/// Alice stores A and B; she has a guard on A, Bob has pins by name on both and a guard on B.
fn pinned() -> (State, InstanceNumber, InstanceNumber) {
    let mut state = state();
    let (alice, region) = owner(&mut state, 1, 4);
    let bob = reader(&mut state, 2);
    store(&mut state, alice, A, region, 0);
    store(&mut state, alice, B, region, 3);
    pin_at(&mut state, alice, A, PinKind::Guard, 10);
    pin_at(&mut state, bob, A, PinKind::Named, 20);
    pin_at(&mut state, bob, A, PinKind::Named, 90);
    pin_at(&mut state, bob, B, PinKind::Named, 30);
    pin_at(&mut state, bob, B, PinKind::Guard, 40);
    (state, alice, bob)
}

#[test]
fn an_entry_is_told_with_its_page_its_owner_and_its_pins() {
    let (mut state, alice, _) = pinned();
    let entry = state.entry(B).unwrap();
    assert_eq!((entry.page, entry.owner, entry.pins), (3, Some(alice), 2));
    assert_eq!(Some(entry.location), state.find(B));
    assert_eq!(state.entry(Digest(0xC)), None);
    kill(&mut state, alice);
    assert_eq!(state.entry(B).unwrap().owner, None, "an orphan");
}

#[test]
fn every_pin_is_listed_once_however_few_at_a_time() {
    let (state, alice, bob) = pinned();
    for limit in 1..=4 {
        let pins = list(&state, &PinFilter::default(), limit, at(100));
        let told = pins.iter().map(|pins| ((pins.digest.0, pins.instance), (pins.guards, pins.named)));
        let expected = [((0xA, alice), (1, 0)), ((0xA, bob), (0, 2)), ((0xB, bob), (1, 1))];
        assert_eq!(told.collect::<BTreeMap<_, _>>(), BTreeMap::from(expected), "{limit} at a time");
        assert_eq!(pins.len(), 3, "{limit} at a time");
    }
}

#[test]
fn a_list_is_of_one_entry_or_one_instance_or_of_old_pins() {
    let (state, alice, bob) = pinned();
    let told = |filter: PinFilter| {
        let pins = list(&state, &filter, 1, at(100));
        pins.iter().map(|pins| (pins.digest.0, pins.instance, pins.held_seconds)).collect::<Vec<_>>()
    };
    let all = PinFilter::default();
    assert_eq!(told(PinFilter { digest: Some(B), ..all }), [(0xB, bob, 70)]);
    assert_eq!(told(PinFilter { digest: Some(Digest(0xC)), ..all }), []);
    assert_eq!(told(PinFilter { instance: Some(alice), ..all }), [(0xA, alice, 90)]);
    assert_eq!(told(PinFilter { instance: Some(InstanceNumber(77)), ..all }), []);
    // Since the first pin on the entry, whatever came later.
    assert_eq!(told(PinFilter { held_seconds: 80, ..all }), [(0xA, alice, 90), (0xA, bob, 80)]);
    assert_eq!(told(PinFilter { held_seconds: 91, ..all }), []);
}

#[test]
fn a_list_ends_where_nothing_is_pinned_any_more() {
    let (mut state, alice, bob) = pinned();
    let mut place = PinsAfter::default();
    let filter = PinFilter::default();
    let come_to = state.pins_after(place, &filter, 1, at(100), |after, _| place = after);
    assert_eq!(come_to, Some(place));
    kill(&mut state, alice);
    kill(&mut state, bob);
    assert_eq!(state.pins_after(place, &filter, 1, at(100), |_, _| panic!("nothing is pinned")), None);
}

/// No look at the list takes longer than a millisecond, however large the directory is.
#[test]
fn a_look_is_bounded_where_few_of_many_entries_are_pinned() {
    const PAGES: u32 = 40_000;
    let limits = Limits { max_entries: PAGES, ..LIMITS };
    let pool = PoolSpec { size: u64::from(PAGES) * PAGE, granularity: 2 * PAGE };
    let mut state = State::new(limits, &[pool]);
    let (alice, region) = owner(&mut state, 1, PAGES.into());
    for page in 0..PAGES {
        store(&mut state, alice, Digest(page.into()), region, page);
    }
    pin_at(&mut state, alice, Digest((PAGES - 1).into()), PinKind::Guard, 0);
    let (mut looks, mut pins, mut after) = (0, 0, PinsAfter::default());
    while let Some(come_to) =
        state.pins_after(after, &PinFilter::default(), 100, Duration::ZERO, |_, _| pins += 1)
    {
        (looks, after) = (looks + 1, come_to);
    }
    assert_eq!((looks, pins), (2, 1));
}

#[test]
fn pins_by_name_are_released_and_guards_stay() {
    let (mut state, alice, bob) = pinned();
    let generation = |state: &State, digest| state.entry(digest).unwrap().location.generation;
    let (of_a, of_b) = (generation(&state, A), generation(&state, B));
    assert_eq!(state.release_named(A, of_a, bob, 80, at(100)), Ok(2));
    assert_eq!(state.release_named(B, of_b, bob, 0, at(100)), Ok(1));
    let left = list(&state, &PinFilter::default(), 9, at(100));
    let left = left.iter().map(|pins| (pins.digest.0, pins.instance, pins.guards, pins.named));
    assert_eq!(left.collect::<Vec<_>>(), [(0xA, alice, 1, 0), (0xB, bob, 1, 0)]);
    assert_eq!(state.delete(B), Err(DeleteError::Pinned), "somebody reads it");
    state.check();
}

#[test]
fn only_what_was_seen_is_released() {
    let (mut state, alice, bob) = pinned();
    let generation = state.entry(A).unwrap().location.generation;
    let figures = state.figures(at(100));
    let mut release = |digest, generation, instance, held| {
        state.release_named(digest, generation, instance, held, at(100)).unwrap_err()
    };
    assert_eq!(release(Digest(0xC), generation, bob, 0), UnpinError::NotFound, "no such entry");
    assert_eq!(release(A, generation + 7, bob, 0), UnpinError::NotFound, "another registration");
    assert_eq!(release(A, generation, InstanceNumber(77), 0), UnpinError::NotFound, "no such instance");
    assert_eq!(release(A, generation, bob, 81), UnpinError::NotPinned, "taken since");
    assert_eq!(release(A, generation, alice, 0), UnpinError::NotPinned, "a guard alone");
    assert_eq!(state.figures(at(100)), figures);
}

/// To its owner a pin that the operator released is one that ran out.
#[test]
fn a_released_pin_does_not_come_back_with_a_resumed_session() {
    let (mut state, _, bob) = pinned();
    let generation = state.entry(A).unwrap().location.generation;
    state.release_named(A, generation, bob, 0, at(100)).unwrap();
    assert_eq!(state.unpin(&at_start(bob), A, PinKind::Named), Err(UnpinError::NotPinned));
    state.disconnect(bob, at(101));
    state.resume(bob).unwrap();
    let request = Request::new(bob, at(102), 1);
    assert!(state.assert_pins(&request, A, generation, 0, 2));
    state.release_unasserted(&request);
    assert_eq!(state.entry(A).unwrap().pins, 1, "Alice's guard");
    state.check();
}

#[test]
fn a_released_pin_does_not_run_out_later() {
    let (mut state, _, bob) = pinned();
    let generation = state.entry(A).unwrap().location.generation;
    state.release_named(A, generation, bob, 0, at(100)).unwrap();
    assert_eq!(state.expire_pins(at(30) + PIN_TTL), 1, "the one on B");
    state.check();
}

#[test]
fn who_only_looks_is_gone_with_the_last_connection() {
    let mut state = state();
    let looker = reader(&mut state, 1);
    state.end_without_grace(looker);
    state.connect(looker).unwrap();
    state.disconnect(looker, at(5));
    assert_eq!(state.next_expiry(), None, "one connection is left");
    state.disconnect(looker, at(7));
    assert_eq!(state.next_expiry(), Some(at(7)));
    assert_eq!(state.expire(at(7)), 1);
    assert_eq!(state.find_instance(Token(1)), None);
    state.check();
}
