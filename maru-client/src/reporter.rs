//! Tells the server now and then how long the handler's calls took.
//!
//! What is told is the number of all calls so far, so that it does not matter how often: a report whose answer was lost is sent
//! again, and counts once. On new connections everything is told anew, since the server may be another run that knows of none.

use std::time::{Duration, Instant};

use maru_proto::ReportRecord;

use crate::calls::CallTimes;
use crate::error::Error;
use crate::rpc::request::ReportStats;
use crate::session::Link;
use crate::shared::Shared;

/// How often what has changed is told.
const EVERY: Duration = Duration::from_secs(2);

/// What was told, and when.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// When there is to be told next.
    next: Instant,
    /// The connections that it was told on.
    link: u32,
    /// Whether the server refused to be told.
    is_refused: bool,
    /// What the server knows: a record for each bucket.
    told: Vec<ReportRecord>,
}

impl Reporter {
    /// One that has told nothing.
    pub(crate) fn new() -> Reporter {
        Reporter { next: Instant::now() + EVERY, link: 0, is_refused: false, told: nothing() }
    }

    /// How long it is until there is to be told next.
    pub(crate) fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Tells what has changed, if it is time; whether there was anything to tell.
    pub(crate) fn report_if_due(&mut self, shared: &Shared, times: &CallTimes) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        self.next = now + EVERY;
        let link = shared.link();
        if self.link != link.number {
            (self.link, self.is_refused, self.told) = (link.number, false, nothing());
        }
        !self.is_refused && self.report(&link, shared.records_per_frame::<ReportRecord>(), times)
    }

    fn report(&mut self, link: &Link, per_frame: usize, times: &CallTimes) -> bool {
        let told_and_now = self.told.iter_mut().zip(times.records());
        let mut changed = told_and_now.filter(|(told, now)| *told != now).collect::<Vec<_>>();
        for part in changed.chunks_mut(per_frame) {
            let records = part.iter().map(|(_, now)| *now).collect::<Vec<_>>();
            match link.connection.answer_to(&ReportStats(&records)) {
                Ok(()) => part.iter_mut().for_each(|(told, now)| **told = *now),
                Err(error) => {
                    tracing::debug!(%error, "could not tell the server how long calls took");
                    self.is_refused = matches!(error, Error::Refused { .. });
                    return true;
                }
            }
        }
        !changed.is_empty()
    }
}

/// What a server knows that was told nothing.
fn nothing() -> Vec<ReportRecord> {
    CallTimes::default().records().collect()
}
