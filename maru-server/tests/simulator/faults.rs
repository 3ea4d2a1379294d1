//! What goes wrong in a run, and how often: connections that are lost or given up, and clients that die.

use super::client::Phase;
use super::connection::End;
use super::random::Random;
use super::world::World;

/// How often faults come in a run: each once in so many steps, never for 0. Runs differ in it, so that each fault is met by
/// what only happens without others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) losses: usize,
    pub(crate) give_ups: usize,
    /// Connections lost while a session goes on.
    pub(crate) interruptions: usize,
    pub(crate) deaths: usize,
    pub(crate) repetitions: usize,
    /// Longer than a grace period.
    pub(crate) pauses: usize,
    pub(crate) failed_regions: usize,
    pub(crate) torn_frames: usize,
}

impl Faults {
    pub(crate) fn new(random: &mut Random) -> Faults {
        let mut rate = |often: usize| random.pick(&[0, often, often, 10 * often]).expect("there are some");
        Faults {
            losses: rate(80),
            give_ups: rate(100),
            interruptions: rate(4),
            deaths: rate(400),
            repetitions: rate(4),
            pauses: rate(150),
            failed_regions: rate(3),
            torn_frames: rate(3),
        }
    }
}

impl World {
    /// A connection is lost, with any part of what is on its way. The server learns of it at once, by reading on, or only
    /// when it writes; its client by reading on.
    pub(crate) fn lose_one(&mut self) {
        let used = self.used_connections();
        let Some(number) = self.random.pick(&used) else { return };
        let connection = self.connections.get_mut(&number).expect("both ends are there");
        let requests = self.random.below(connection.requests.on_the_way() + 1);
        let answers = self.random.below(connection.answers.on_the_way() + 1);
        connection.answers.cut(answers, End::Told);
        let (how, end) = self.random.weighted(&[
            (1, ("lost: the server knows at once", None)),
            (1, ("lost: the server will be told", Some(End::Told))),
            (1, ("lost: nobody tells the server", Some(End::Silent))),
        ]);
        if !connection.is_closed() {
            match end {
                Some(end) => connection.requests.cut(requests, end),
                None => self.server.hang_up(connection, &mut self.trace),
            }
        }
        self.note(how, number);
    }

    /// A client gives its connections up, with all that it has asked for still under way: often when it has just said that
    /// it goes on, so that the server may read that only after it was said once more.
    pub(crate) fn give_one_up(&mut self) {
        let resuming =
            self.one_of(|client| client.phase == Phase::Resuming).filter(|_| self.random.one_in(2));
        let Some(number) = resuming.or_else(|| self.one_of(|client| client.phase != Phase::Down)) else {
            return;
        };
        self.note("a client gave its connections up", number);
        self.lose_all(number);
    }

    /// A client is killed, and its connections with it.
    pub(crate) fn kill_one(&mut self) {
        let Some(number) = self.one_of(|_| true) else { return };
        self.note("a client was killed", number);
        self.end_client(number);
    }

    /// Faults come no more.
    pub(crate) fn calm_down(&mut self) {
        self.faults = Faults::default();
    }
}
