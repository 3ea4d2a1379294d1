//! One client process: connects, does something at random until it is told to end, and tells what came of it.

use std::io::{self, StdoutLock};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use maru_client::{Config, MaruHandler};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::counts::{Counts, Operation, Outcome};
use super::holdings::Holdings;
use super::key::CHAIN;
use super::look::Expected;
use super::protocol::{Message, Orders, Private};
use super::site::TOKEN;
use super::watcher::Watcher;
use crate::cli::TortureClientArgs;
use crate::error::BenchError;
use crate::lines::{receive, send};
use crate::traffic::distribution::{Distribution, Random, Sampler};

/// How long a request may take: longer than a process may be stopped or have to wait for a processor.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of each region, where a page is not larger: few, so that regions come and go.
const REGION: u64 = 2 << 20;
/// How long the server may be out of reach.
pub(super) const OUTAGE_LIMIT: Duration = Duration::from_secs(20);
/// How unevenly chains are asked for: some by everybody, most now and then.
const SKEW: f64 = 0.7;
/// How often the supervisor is told the counts.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// How long the server may take to notice that a process was killed.
const EOF_LIMIT: Duration = Duration::from_secs(30);

/// The life of a client process. Failures go to the supervisor, which shows them.
pub(crate) fn run(args: &TortureClientArgs) -> ExitCode {
    let mut log = Log::new();
    // A supervisor that was gone before is noticed by the orders that do not come.
    let outcome = set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(BenchError::system("ask to end with the supervisor"))
        .and_then(|()| work(args, &mut log));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a supervisor there is nobody left to tell.
            let _ = log.flush().and_then(|()| log.tell(&Message::Failed(error.to_string())));
            ExitCode::FAILURE
        }
    }
}

fn work(args: &TortureClientArgs, log: &mut Log) -> Result<(), BenchError> {
    let orders = receive::<Orders>(&mut io::stdin().lock()).map_err(BenchError::system("hear the orders"))?;
    let Some(orders) = orders else { return Ok(()) };
    let told_to_end = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&told_to_end);
    thread::spawn(move || {
        // Whatever ends it, nobody gives orders any more.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        flag.store(true, Ordering::Relaxed);
    });

    let mut worker = Worker::connect(args, orders.private, log)?;
    if let Some(predecessor) = &orders.predecessor {
        worker.outlast(predecessor)?;
    }
    while !told_to_end.load(Ordering::Relaxed) {
        worker.step()?;
        worker.note_outages();
        worker.note_what_was_watched()?;
        worker.log.flush_if_due()?;
    }
    worker.finish()
}

/// A client at work.
pub(super) struct Worker<'a> {
    pub(super) args: &'a TortureClientArgs,
    pub(super) handler: MaruHandler,
    /// How the server is reached.
    config: Config,
    /// Sessions before this one, which the server has ended.
    pub(super) session: u64,
    pub(super) expected: Expected,
    /// Reads on while this waits for a server that may never come back to the session.
    pub(super) watcher: Option<Watcher>,
    /// How often the session went on, as far as was told.
    resumes: u64,
    pub(super) random: Random,
    pub(super) chains: Sampler,
    pub(super) holdings: Holdings,
    pub(super) private: Vec<Private>,
    pub(super) log: &'a mut Log,
}

impl<'a> Worker<'a> {
    fn connect(
        args: &'a TortureClientArgs,
        private: Vec<Private>,
        log: &'a mut Log,
    ) -> Result<Worker<'a>, BenchError> {
        let config = Config::new()
            .address(args.address.clone())
            .auth_token(TOKEN)
            .instance_id(&args.instance)
            .page_size(args.chunk_size)
            .region_size(REGION.max(args.chunk_size as u64))
            .device_map(args.device_map.clone())
            .checksum(args.checksum)
            .timeout(TIMEOUT)
            // So that this, too, goes on whatever is killed.
            .report_stats(true);
        let chains = u64::from(args.keys) / CHAIN;
        let expected = Expected { page: args.chunk_size, sessions_end: args.sessions_end };
        Ok(Worker {
            args,
            handler: connect(&config, args.outages)?,
            config,
            session: 0,
            expected,
            watcher: args.sessions_end.then(|| Watcher::start(expected)),
            resumes: 0,
            random: Random::new(args.seed),
            chains: Sampler::new(Distribution::Zipf(SKEW), chains, !args.seed),
            holdings: Holdings::default(),
            private,
            log,
        })
    }

    /// Waits until the server has served what a killed process sent last: it may delete and store the private keys.
    fn outlast(&mut self, predecessor: &str) -> Result<(), BenchError> {
        let began = Instant::now();
        loop {
            let usage = self.attempt(Operation::Audit, MaruHandler::usage)?.unwrap_or_default();
            let is_known = !usage.is_empty();
            let connected = usage.iter().filter(|usage| usage.connections.get() > 0);
            if is_known
                && !connected.into_iter().any(|usage| usage.instance_id.text().ok() == Some(predecessor))
            {
                return Ok(());
            }
            if began.elapsed() > EOF_LIMIT {
                let text = format!("the server does not notice that {predecessor} is dead");
                return Err(BenchError::Torture(text));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Begins another session, where the server has ended this one: what was held is gone.
    pub(super) fn begin_anew(&mut self) -> Result<(), BenchError> {
        self.note_outages();
        for guard in self.holdings.take_guards() {
            self.verify(&guard, "under a guard of a session that has ended")?;
        }
        self.holdings = Holdings::default();
        self.handler = connect(&self.config, self.args.outages)?;
        self.resumes = 0;
        self.session += 1;
        self.log.counts().sessions_ended += 1;
        Ok(())
    }

    /// Takes note of a time without the server.
    fn note_outages(&mut self) {
        if self.args.outages {
            let stats = self.handler.client_stats();
            if stats.resumes > self.resumes {
                self.resumes = stats.resumes;
                let took = u64::try_from(stats.last_outage.as_micros()).unwrap_or(u64::MAX);
                self.log.counts().outages_us.push(took);
            }
        }
    }

    fn note_what_was_watched(&mut self) -> Result<(), BenchError> {
        let seen = self.watcher.as_ref().map(Watcher::seen).unwrap_or_default();
        self.log.counts().merge(&seen.counts);
        seen.broken.into_iter().try_for_each(|broken| {
            self.log.broken(format!("{broken} while the client may have been out of the server's reach"))
        })
    }

    /// Ends in one of the ways in which clients end that are not killed.
    fn finish(mut self) -> Result<(), BenchError> {
        self.audit()?;
        let guards = (0..2).filter_map(|_| self.acquire_any().transpose()).collect::<Result<Vec<_>, _>>()?;
        if self.one_in(2) {
            self.handler.close();
        }
        for guard in &guards {
            self.verify(guard, "at the end")?;
        }
        self.note_what_was_watched()?;
        self.log.flush()
    }

    /// A random number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    /// Whether something is to be done that is done once in so many times.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Connects, as soon as a server can be reached where there are outages.
fn connect(config: &Config, outages: bool) -> Result<MaruHandler, BenchError> {
    let began = Instant::now();
    loop {
        match MaruHandler::connect(config.clone()) {
            Err(_) if outages && began.elapsed() < OUTAGE_LIMIT => {
                thread::sleep(Duration::from_millis(5));
            }
            connected => return Ok(connected?),
        }
    }
}

/// What the supervisor is told.
pub(super) struct Log {
    supervisor: StdoutLock<'static>,
    counts: Counts,
    told: Instant,
}

impl Log {
    fn new() -> Log {
        Log { supervisor: io::stdout().lock(), counts: Counts::default(), told: Instant::now() }
    }

    /// What is told next, to be added to.
    pub(super) fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// Counts keys or pages with the same outcome.
    pub(super) fn add(&mut self, operation: Operation, outcome: Outcome, count: usize) {
        self.counts.add(operation, outcome, count as u64);
    }

    /// A chunk that had to be there is not.
    pub(super) fn lost(&mut self, what: String) -> Result<(), BenchError> {
        self.counts.lost_acknowledged += 1;
        self.broken(what)
    }

    /// A promise was broken. It is told at once, with the figures: the process may be killed at any time.
    pub(super) fn broken(&mut self, what: String) -> Result<(), BenchError> {
        self.flush()?;
        self.tell(&Message::Broken(what))
    }

    /// Says something.
    pub(super) fn tell(&mut self, message: &Message) -> Result<(), BenchError> {
        send(&mut self.supervisor, message).map_err(BenchError::system("talk to the supervisor"))
    }

    fn flush_if_due(&mut self) -> Result<(), BenchError> {
        if self.told.elapsed() < TELL_EVERY { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        self.told = Instant::now();
        let counts = std::mem::take(&mut self.counts);
        self.tell(&Message::Counted(counts))
    }
}
