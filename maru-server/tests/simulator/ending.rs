//! How a run ends: everybody comes to rest and compares what they know, then all go, and nothing is left.

use std::time::Duration;

use maru_server::state::RegionId;

use super::client::{Client, Phase};
use super::connection::Task;
use super::request::{KEYS, Request};
use super::server::Made;
use super::world::World;

/// Rounds in which everybody comes to rest.
const MAX_ROUNDS: usize = 200;
/// Longer than any grace period, and than any pin by name lasts.
const LONG: Duration = Duration::from_secs(60);

impl World {
    /// Ends the run.
    pub(crate) fn end(&mut self) {
        self.calm_down();
        self.come_to_rest();
        // Once more for those who have pins by name that ran out: they are told so as they go on.
        let clients = self.clients.keys().copied().collect::<Vec<_>>();
        for number in clients {
            self.lose_all(number);
        }
        self.come_to_rest();
        self.compare();
        self.all_go();
        self.nothing_is_left();
    }

    /// Lets everything happen that is under way, until nothing is. Clients without a connection go on.
    fn come_to_rest(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.notice_lost();
            let down = self.clients.values().filter(|client| client.phase == Phase::Down);
            let down = down.map(|client| client.number).collect::<Vec<_>>();
            down.into_iter().for_each(|number| self.resume(number));
            for number in self.connections.keys().copied().collect::<Vec<_>>() {
                if let Task::Making(..) = self.connections[&number].task {
                    self.make(number, Made::Yes);
                }
                if self.connections[&number].can_be_served() {
                    self.serve(number, 1);
                }
            }
            self.release_one();
            for number in self.clients.keys().copied().collect::<Vec<_>>() {
                self.take_all(number);
            }
            self.forget_ended();
            self.look();
            let is_served = |number| !self.connections[number].can_be_served();
            if self.clients.values().all(Client::is_idle)
                && self.connections.keys().all(is_served)
                && self.server.releasing.is_empty()
            {
                return;
            }
        }
        panic!("not everybody comes to rest: {:#?}", self.clients);
    }

    /// The server notices at last which connections are lost.
    fn notice_lost(&mut self) {
        self.lost_connections().into_iter().for_each(|number| self.notice(number));
    }

    /// A client takes all that was answered.
    fn take_all(&mut self, number: usize) {
        let mut link = 0;
        while let Some(client) = self.clients.get(&number)
            && let Some(at) = client.links.get(link)
        {
            if self.connections[&at.connection].answers.is_ready() {
                self.take(number, link);
            } else {
                link += 1;
            }
        }
    }

    /// What clients know and what the server knows is the same.
    fn compare(&mut self) {
        for number in self.clients.keys().copied().collect::<Vec<_>>() {
            let client = self.clients.get_mut(&number).expect("it is there");
            if let Some(release) = client.release(&mut self.random) {
                self.send(number, 0, release);
            }
            self.send(number, 0, Request::Usage);
        }
        self.come_to_rest();
        for client in self.clients.values() {
            let said = client.usage.expect("it was asked for");
            let seen = self.server.usage(client.instance);
            let figures = (said.regions.get(), said.pins.get(), said.named_pins.get());
            assert_eq!(figures, (seen.regions, seen.pins, seen.named_pins), "{client:#?}");
            self.compare_with(client);
        }
        self.note("all clients were compared", self.clients.len());
        let figures = self.server.state().figures(self.server.now);
        self.trace.add("an entry was evicted for its owner", figures.evicted_for_owner);
        self.trace.add("an entry was evicted with an orphan", figures.evicted_with_orphan);
        self.trace.add("a page was taken back", figures.reclaimed_pages);
    }

    /// Everybody goes, and their time runs out.
    fn all_go(&mut self) {
        for number in self.clients.keys().copied().collect::<Vec<_>>() {
            self.end_client(number);
        }
        self.notice_lost();
        self.come_to_rest();
        self.server.now += LONG;
        self.server.expire(&mut self.trace);
        self.come_to_rest();
        let figures = self.server.state().figures(self.server.now);
        assert_eq!((figures.instances, figures.connections, figures.pins), (0, 0, 0), "all are gone");
        assert_eq!(figures.regions, figures.orphans, "nobody owns a region");
        assert_eq!(figures.freed_pages, 0, "no page waits for somebody who is gone");
        let orphans = self.server.state().regions_after(RegionId(0));
        let entries = orphans.map(|region| u64::from(region.entries)).sum::<u64>();
        assert_eq!(figures.entries, entries, "entries are in orphans");
    }

    /// Somebody deletes every key, and gets the whole pool back by that.
    fn nothing_is_left(&mut self) {
        let number = self.start_client();
        self.come_to_rest();
        self.send(number, 0, Request::Delete((0..KEYS).collect()));
        self.come_to_rest();
        self.end_client(number);
        self.all_go();
        let figures = self.server.state().figures(self.server.now);
        assert_eq!((figures.entries, figures.regions), (0, 0), "everything was deleted");
        assert_eq!(figures.pool_free_bytes, figures.pool_bytes, "the pool is as it was");
        assert!(self.memory.is_empty(), "no memory is kept");
        assert!(self.connections.is_empty(), "no connection is kept");
    }
}
