//! What clients and readers rely on, looked at from outside: it holds at any time, for whoever the server knows.

use std::collections::BTreeMap;

use super::client::Client;
use super::memory::Place;
use super::request::{KEYS, state_digest};
use super::world::World;

/// A registration, as it was seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    key: usize,
    place: Place,
    write: u64,
}

impl World {
    /// Looks at everything that the server says is an entry, that somebody reads, and that somebody may write into.
    pub(crate) fn look(&mut self) {
        let entries = self.look_at_entries();
        for client in self.clients.values().filter(|client| self.server.knows(client.instance)) {
            for guard in &client.guards {
                assert_eq!(
                    (entries.get(&guard.place), self.memory.read(guard.place)),
                    (Some(&guard.generation), Some(guard.content)),
                    "client {} reads {guard:?}",
                    client.number,
                );
            }
            for (place, page) in client.own_pages() {
                let taken = entries.get(&place);
                assert!(taken.is_none(), "client {} has {page:?} at {place:?}, an entry", client.number);
            }
        }
    }

    /// Every entry is where its key was written, and a generation stands for one content. The generations, by place.
    fn look_at_entries(&mut self) -> BTreeMap<Place, u32> {
        let mut entries = BTreeMap::new();
        for key in 0..KEYS {
            let Some(location) = self.server.state().find(state_digest(key)) else { continue };
            let place = self.memory.place(location.region.0, location.offset);
            let content = place.and_then(|place| self.memory.read(place));
            let Some((place, content)) = place.zip(content) else {
                panic!("key {key} is in memory that is not there: {location:?}");
            };
            assert_eq!(content.key, Some(key), "at {location:?}");
            let registration = Registration { key, place, write: content.write };
            let first = self.registrations.entry(location.generation).or_insert(registration);
            assert_eq!(*first, registration, "the chunk of generation {} changed", location.generation);
            entries.insert(place, location.generation);
        }
        entries
    }

    /// What a client knows and what the server knows of it is the same, while nothing is under way between the two.
    pub(crate) fn compare_with(&self, client: &Client) {
        let usage = self.server.usage(client.instance);
        let guards = client.guards.len() + client.to_release.len();
        assert_eq!(usage.pins - usage.named_pins, guards as u64, "the guards of {client:#?}");
        let named = client.named.values().map(|named| u64::from(named.pins)).sum::<u64>();
        if self.pins_run_out {
            assert!(usage.named_pins <= named, "the pins by name become no more of {client:#?}");
        } else {
            assert_eq!(usage.named_pins, named, "the pins by name of {client:#?}");
        }
        let owned = self.server.regions_of(client.instance);
        let ids = owned.iter().map(|region| region.id.0);
        assert!(ids.eq(client.regions.keys().copied()), "{client:#?} has {owned:#?}");
        for region in owned {
            let own = client.own_pages().filter(|(place, _)| place.region == region.id.0).count();
            let others = (region.entries + region.freed_pages) as usize;
            assert_eq!(own + others, region.pages as usize, "no page of {region:?} is lost");
        }
    }
}
