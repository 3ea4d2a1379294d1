//! The last client: everybody else is gone, so what is left must add up, and nothing may remain once it is deleted.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use maru_client::{Address, Config, Deleted, MaruHandler, ServerStats, StatKind};

use super::counts::{Counts, Operation, Outcome};
use super::key::Key;
use super::protocol::Private;
use crate::cli::TortureArgs;
use crate::error::BenchError;

/// How long the server may take beyond the grace period to end the instances.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to release the memory of regions.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
/// Keys that are looked for or deleted in one request.
const BATCH: usize = 256;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) counts: Counts,
    pub(super) evictions: u64,
    pub(super) failures: Vec<String>,
}

/// Looks at a server whose clients are all gone. `private` is what is known of the private keys of each.
///
/// # Errors
/// [`BenchError`] where the server can't be asked.
pub(super) fn inspect(
    args: &TortureArgs,
    socket: &Path,
    private: &[Vec<Private>],
) -> Result<Findings, BenchError> {
    let config = Config::new()
        .address(Address::Unix(socket.to_owned()))
        .instance_id("torture-inspector")
        .page_size(args.chunk_size);
    let handler = MaruHandler::connect(config)?;
    let (page, may_evict) = (args.chunk_size, args.may_evict());
    let mut inspector = Inspector { handler, page, may_evict, findings: Findings::default() };
    inspector.wait_for_the_grace(args.grace)?;
    inspector.look_at_figures()?;
    inspector.look_at_chunks(args.keys, private)?;
    inspector.delete_everything(args.keys, private)?;
    inspector.look_at_memory()?;
    Ok(inspector.findings)
}

struct Inspector {
    handler: MaruHandler,
    page: usize,
    may_evict: bool,
    findings: Findings,
}

impl Inspector {
    /// Waits until nobody else is left.
    fn wait_for_the_grace(&mut self, grace: Duration) -> Result<(), BenchError> {
        let others = |stats: &ServerStats| stats.get(StatKind::Instances).saturating_sub(1);
        let stats = self.wait_until(grace + END_LIMIT, |stats| others(stats) == 0)?;
        if others(&stats) > 0 {
            self.fail(format!("{} instances outlive their grace period", others(&stats)));
        }
        self.findings.evictions = stats.get(StatKind::Evictions);
        Ok(())
    }

    /// The server's own figures add up.
    fn look_at_figures(&mut self) -> Result<(), BenchError> {
        let (stats, regions) = (self.handler.stats()?, self.handler.regions()?);
        let pins = stats.get(StatKind::Pins);
        self.findings.counts.leaked_pins += pins;
        if pins > 0 {
            let entries = stats.get(StatKind::PinnedEntries);
            self.fail(format!("{pins} pins on {entries} entries remain though nobody is left"));
        }
        for region in &regions {
            let (id, owner, entries) = (region.region_id.get(), region.owner.get(), region.entries.get());
            if owner != 0 || entries == 0 {
                self.fail(format!("region {id} remains with the owner {owner} and {entries} entries"));
            }
        }
        let in_regions = regions.iter().map(|region| u64::from(region.entries.get())).sum::<u64>();
        let sums = [
            ("entries", in_regions, stats.get(StatKind::Entries)),
            ("regions", regions.len() as u64, stats.get(StatKind::Regions)),
            ("orphans", regions.len() as u64, stats.get(StatKind::Orphans)),
            ("pages that wait for an owner", 0, stats.get(StatKind::FreedPages)),
        ];
        for (what, counted, told) in sums {
            if counted != told {
                self.fail(format!("the server tells of {told} {what}, and there are {counted}"));
            }
        }
        Ok(())
    }

    /// What is left has its bytes, and what was acknowledged is left.
    fn look_at_chunks(&mut self, keys: u32, private: &[Vec<Private>]) -> Result<(), BenchError> {
        let shared = shared(keys).map(|key| (key, Private::InDoubt));
        for batch in shared.chain(with_knowledge(private)).collect::<Vec<_>>().chunks(BATCH) {
            let names = batch.iter().map(|(key, _)| key.bytes()).collect::<Vec<_>>();
            let chunks = self.handler.batch_retrieve(&names)?;
            self.findings.counts.operations += 1;
            for ((key, known), chunk) in batch.iter().zip(chunks) {
                match (chunk, known) {
                    (Some(_), Private::Absent) => self.fail(format!("{key} was deleted, and is there")),
                    (Some(chunk), _) => self.verify(*key, &chunk),
                    (None, Private::Stored) if !self.may_evict && self.findings.evictions == 0 => {
                        self.findings.counts.lost_acknowledged += 1;
                        self.fail(format!("{key} was acknowledged, nobody deleted it, and it is gone"));
                    }
                    (None, Private::Stored) => self.count(Operation::Retrieve, Outcome::Evicted),
                    (None, _) => self.count(Operation::Retrieve, Outcome::NotFound),
                }
            }
        }
        Ok(())
    }

    fn verify(&mut self, key: Key, bytes: &[u8]) {
        self.count(Operation::Retrieve, Outcome::Found);
        let wrong = key.wrong_bytes(self.page, bytes);
        self.findings.counts.verified_bytes += bytes.len() as u64;
        self.findings.counts.wrong_bytes += wrong;
        if wrong > 0 {
            self.fail(format!("{wrong} of {} bytes of {key} were wrong at the end", bytes.len()));
        }
    }

    fn delete_everything(&mut self, keys: u32, private: &[Vec<Private>]) -> Result<(), BenchError> {
        let all = shared(keys).chain(with_knowledge(private).map(|(key, _)| key)).collect::<Vec<_>>();
        for batch in all.chunks(BATCH) {
            let names = batch.iter().map(|key| key.bytes()).collect::<Vec<_>>();
            let outcomes = self.handler.batch_delete(&names)?;
            self.findings.counts.operations += 1;
            for (key, outcome) in batch.iter().zip(outcomes) {
                match outcome {
                    Deleted::Deleted => self.count(Operation::Delete, Outcome::Deleted),
                    Deleted::NotFound => self.count(Operation::Delete, Outcome::NotFound),
                    Deleted::Pinned => {
                        self.count(Operation::Delete, Outcome::Pinned);
                        self.fail(format!("{key} can't be deleted though nobody is left to read it"));
                    }
                }
            }
        }
        Ok(())
    }

    /// All memory is the pool's again.
    fn look_at_memory(&mut self) -> Result<(), BenchError> {
        let missing =
            |stats: &ServerStats| stats.get(StatKind::PoolBytes) - stats.get(StatKind::PoolFreeBytes);
        let stats = self.wait_until(RELEASE_LIMIT, |stats| missing(stats) == 0)?;
        if missing(&stats) > 0 {
            self.findings.counts.leaked_pages += missing(&stats).div_ceil(self.page as u64);
            let entries = stats.get(StatKind::Entries);
            let text = format!("{} bytes of the pool do not come back, {entries} entries", missing(&stats));
            self.fail(format!("{text}, in {} regions", stats.get(StatKind::Regions)));
        }
        Ok(())
    }

    /// The figures once something holds, or when it took too long.
    fn wait_until(
        &self,
        limit: Duration,
        holds: impl Fn(&ServerStats) -> bool,
    ) -> Result<ServerStats, BenchError> {
        let began = Instant::now();
        loop {
            let stats = self.handler.stats()?;
            if holds(&stats) || began.elapsed() > limit {
                return Ok(stats);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn count(&mut self, operation: Operation, outcome: Outcome) {
        self.findings.counts.add(operation, outcome, 1);
    }

    fn fail(&mut self, failure: String) {
        self.findings.failures.push(failure);
    }
}

fn shared(keys: u32) -> impl Iterator<Item = Key> {
    (0..u64::from(keys)).map(Key::shared)
}

/// The private keys of all clients, each with what is known of it.
fn with_knowledge(private: &[Vec<Private>]) -> impl Iterator<Item = (Key, Private)> {
    (0..).zip(private).flat_map(|(client, private)| {
        (0..).zip(private).map(move |(index, known)| (Key::private(client, index), *known))
    })
}
