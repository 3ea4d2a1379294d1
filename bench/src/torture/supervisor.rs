//! The supervisor: starts everything, kills and pauses clients, hears what they say, and has the end inspected.

use std::env;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::client::Client;
use super::counts::Counts;
use super::inspector::inspect;
use super::key::PRIVATE;
use super::protocol::{Message, Orders, Private};
use super::report::{Report, Resume, Table};
use super::site::Site;
use crate::cli::TortureArgs;
use crate::error::BenchError;
use crate::files::{write, write_json};
use crate::interrupt;
use crate::measure::progress;
use crate::server_process::{ServerOptions, ServerProcess};
use crate::target::fresh_folder;
use crate::traffic::distribution::Random;

/// How often it is looked whether a process has ended.
const TICK: Duration = Duration::from_millis(10);
/// The longest pause of a client.
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// Failures that are told; a run that has as many ends early.
const FAILURES_MAX: usize = 50;

/// Tortures a server of its own and prints the result.
///
/// # Errors
/// [`BenchError`] where anything fails, or a promise was broken.
pub(crate) fn run(args: &TortureArgs) -> Result<(), BenchError> {
    if let Some(path) = &args.json {
        // Before the work, so that a file that can't be written does not cost a run.
        write(path, "")?;
    }
    let pool_size = args.pool_bytes();
    let report = torture(args, pool_size, interrupt::flag()?)?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let hosts = args.hosts.map_or_else(String::new, |hosts| format!(" on {hosts} hosts"));
    let title = format!(
        "torture by {} client processes{hosts}, {} keys, pages of {}, a pool of {}, a kill every {}, seed {}",
        args.processes,
        args.keys,
        ByteSize(args.chunk_size as u64),
        ByteSize(pool_size),
        humantime::format_duration(args.kill_every),
        args.seed,
    );
    let table = Table { title: &title, report: &report };
    io::stdout().write_all(table.to_string().as_bytes()).map_err(BenchError::system("write the result"))?;
    report.verdict()
}

/// Everything between the start of the server and its end.
fn torture(args: &TortureArgs, pool_size: u64, interrupted: &AtomicBool) -> Result<Report, BenchError> {
    // Dropped in reverse, whatever happens: first the clients, then the server, then the memory.
    let pool = fresh_folder(&args.pool_dir)?;
    let run = fresh_folder(&env::temp_dir())?;
    let site = Site::prepare(args, run.path(), pool.path())?;
    let socket = site.socket().to_owned();
    let host = site.server_host().cloned();
    let memory = site.pool();
    let arguments = [args.server_options(), site.server_options()].concat();
    let options = ServerOptions {
        socket: &socket,
        pool: &memory,
        mount: false,
        pool_size,
        max_entries: (pool_size / args.chunk_size as u64).max(1),
        arguments: &arguments,
        host: host.as_ref(),
    };
    let mut server = ServerProcess::start(&options)?;
    let report = Supervisor::start(args, site, &options, interrupted)
        .and_then(|supervisor| supervisor.run(&mut server))
        .map_err(|error| match error {
            _ if interrupted.load(Ordering::Relaxed) => BenchError::Interrupted,
            error => server.explain(error),
        })?;
    server.stop()?;
    Ok(report)
}

/// The clients of one number, one after the other.
struct Line {
    client: Client,
    life: u64,
    /// When the present one goes on, if it is stopped.
    paused_until: Option<Instant>,
    /// What all of them know of their private keys.
    private: Vec<Private>,
}

/// Bytes of memory that servers had.
#[derive(Default)]
struct Memory {
    /// After a third of the run, when whatever has to be there is.
    before: Option<u64>,
    last: Option<u64>,
}

impl Memory {
    fn see(&mut self, bytes: u64) {
        self.last = Some(bytes);
    }

    fn growth(&self) -> i64 {
        let [before, last] = [self.before, self.last].map(|bytes| bytes.unwrap_or(0).cast_signed());
        if self.before.is_some() { last - before } else { 0 }
    }
}

struct Supervisor<'a> {
    args: &'a TortureArgs,
    site: Site,
    options: &'a ServerOptions<'a>,
    interrupted: &'a AtomicBool,
    random: Random,
    lines: Vec<Line>,
    heard: Receiver<(u16, Message)>,
    ears: Sender<(u16, Message)>,
    counts: Counts,
    client_kills: u64,
    client_pauses: u64,
    server_kills: u64,
    link_flaps: u64,
    failures: Vec<String>,
}

impl<'a> Supervisor<'a> {
    fn start(
        args: &'a TortureArgs,
        site: Site,
        options: &'a ServerOptions<'a>,
        interrupted: &'a AtomicBool,
    ) -> Result<Supervisor<'a>, BenchError> {
        let (ears, heard) = mpsc::channel();
        let start = |number| {
            let private = vec![Private::default(); PRIVATE.into()];
            let orders = Orders { predecessor: None, private: private.clone() };
            let client = Client::start(args, &site, (number, 0), &orders, &ears)?;
            Ok(Line { client, life: 0, paused_until: None, private })
        };
        let lines = (0..args.processes).map(start).collect::<Result<_, BenchError>>()?;
        Ok(Supervisor {
            args,
            site,
            options,
            interrupted,
            random: Random::new(args.seed),
            lines,
            heard,
            ears,
            counts: Counts::default(),
            client_kills: 0,
            client_pauses: 0,
            server_kills: 0,
            link_flaps: 0,
            failures: Vec::new(),
        })
    }

    fn run(mut self, server: &mut ServerProcess) -> Result<Report, BenchError> {
        let progress = progress::bar(self.args.duration.as_secs().max(1), "s");
        let began = Instant::now();
        let mut next_kill = began + self.args.kill_every;
        let mut next_server_kill = self.args.kill_server.map(|every| began + every);
        let mut next_flap = self.args.flap_link.map(|every| began + every);
        let mut memory = Memory::default();
        while began.elapsed() < self.args.duration && self.failures.len() < FAILURES_MAX {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(BenchError::Interrupted);
            }
            server.check()?;
            self.look_after()?;
            if Instant::now() >= next_kill {
                self.strike()?;
                next_kill += self.args.kill_every;
            }
            if let Some((at, every)) = next_server_kill.zip(self.args.kill_server)
                && Instant::now() >= at
            {
                // Servers are compared that have lived about as long.
                memory.see(server.resident_bytes()?);
                server.restart(self.options)?;
                self.server_kills += 1;
                next_server_kill = Some(Instant::now() + self.about(every));
            }
            self.site.plug_in(|until| until <= Instant::now())?;
            if let Some((at, every)) = next_flap.zip(self.args.flap_link)
                && Instant::now() >= at
            {
                self.cut()?;
                next_flap = Some(Instant::now() + self.about(every));
            }
            if memory.before.is_none() && began.elapsed() >= self.args.duration / 3 {
                if self.args.kill_server.is_none() {
                    memory.see(server.resident_bytes()?);
                }
                memory.before = memory.last;
            }
            self.listen();
            progress.set_position(began.elapsed().as_secs());
        }
        let seconds = began.elapsed().as_secs_f64();
        progress.finish_and_clear();
        if self.args.kill_server.is_none() {
            memory.see(server.resident_bytes()?);
        }
        self.site.plug_in(|_| true)?;
        self.stop()?;
        let private = self.lines.iter().map(|line| line.private.clone()).collect::<Vec<_>>();
        let findings = inspect(self.args, self.options.socket, &private)?;
        self.counts.merge(&findings.counts);
        self.failures.extend(findings.failures.into_iter().map(|failure| format!("inspector: {failure}")));
        self.failures.truncate(FAILURES_MAX);
        Ok(Report {
            seed: self.args.seed,
            seconds,
            client_kills: self.client_kills,
            client_pauses: self.client_pauses,
            server_kills: self.server_kills,
            link_flaps: self.link_flaps,
            resume: Resume::of(std::mem::take(&mut self.counts.outages_us)),
            evictions: findings.evictions,
            server_rss_growth_bytes: memory.growth(),
            counts: self.counts,
            failures: self.failures,
        })
    }

    /// Kills a client and starts another; sometimes stops one for a while, or lets one end by itself.
    fn strike(&mut self) -> Result<(), BenchError> {
        let victim = self.any_line();
        if self.one_in(3) {
            // Another one, or the victim itself, which then dies where it was stopped.
            let index = self.any_line();
            let mut limit = PAUSE_MAX.min(self.args.kill_every);
            if self.args.has_outages() {
                // Without a server for as long as it is paused, its session must not end.
                limit = limit.min(self.args.grace / 4);
            }
            let limit = limit.as_millis().max(1);
            let pause = u128::from(self.random.next()) % limit;
            let pause = Duration::from_millis(u64::try_from(pause).expect("pauses are short"));
            let line = &mut self.lines[index];
            line.client.pause()?;
            line.paused_until = Some(Instant::now() + pause);
            self.client_pauses += 1;
        }
        if self.one_in(8) {
            let index = self.any_line();
            self.finish(index)?;
            self.replace(index)?;
        }
        self.lines[victim].client.kill();
        self.client_kills += 1;
        self.replace(victim)
    }

    /// Pulls a cable, any that is in, for a moment.
    fn cut(&mut self) -> Result<(), BenchError> {
        let host = usize::try_from(self.random.next() % self.site.cables()).expect("hosts are few");
        let limit = self.args.flap_max().as_millis().max(1);
        let length = u128::from(self.random.next()) % limit + 1;
        let length = Duration::from_millis(u64::try_from(length).expect("flaps are short"));
        if self.site.unplug(host, Instant::now() + length)? {
            self.link_flaps += 1;
        }
        Ok(())
    }

    /// Lets clients go on whose pause is over, and replaces those that ended though nobody told them to.
    fn look_after(&mut self) -> Result<(), BenchError> {
        for index in 0..self.lines.len() {
            let line = &mut self.lines[index];
            if let Some(status) = line.client.ended()? {
                let name = line.client.name();
                self.failures.push(format!("{name} ended by itself ({status})"));
                self.replace(index)?;
            } else if line.paused_until.is_some_and(|until| Instant::now() >= until) {
                line.client.resume()?;
                line.paused_until = None;
            }
        }
        Ok(())
    }

    /// Starts the successor of a client that has ended.
    fn replace(&mut self, index: usize) -> Result<(), BenchError> {
        self.hear_all();
        let line = &mut self.lines[index];
        line.life += 1;
        line.paused_until = None;
        let orders =
            Orders { predecessor: Some(line.client.name().to_owned()), private: line.private.clone() };
        let number = u16::try_from(index).expect("there are as many lines as a u16 counts");
        line.client = Client::start(self.args, &self.site, (number, line.life), &orders, &self.ears)?;
        Ok(())
    }

    /// Ends all clients: some by force.
    fn stop(&mut self) -> Result<(), BenchError> {
        for index in 0..self.lines.len() {
            if self.one_in(2) {
                self.lines[index].client.kill();
                self.client_kills += 1;
            } else {
                self.finish(index)?;
            }
        }
        self.hear_all();
        Ok(())
    }

    /// Lets a client end by itself.
    fn finish(&mut self, index: usize) -> Result<(), BenchError> {
        let (client, site) = (&mut self.lines[index].client, &mut self.site);
        // Its last words may have to wait for a cable.
        let failure = match client.finish(|| site.plug_in(|until| until <= Instant::now()))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("{} failed when it was to end ({status})", client.name()),
            None => format!("{} did not end when it was told to", client.name()),
        };
        self.failures.push(failure);
        Ok(())
    }

    /// Hears what is said next, or waits for a moment.
    fn listen(&mut self) {
        if let Ok((number, message)) = self.heard.recv_timeout(TICK) {
            self.note(number, message);
            self.hear_all();
        }
    }

    fn hear_all(&mut self) {
        while let Ok((number, message)) = self.heard.try_recv() {
            self.note(number, message);
        }
    }

    fn note(&mut self, number: u16, message: Message) {
        let line = &mut self.lines[usize::from(number)];
        match message {
            Message::Counted(counts) => self.counts.merge(&counts),
            Message::Knows(index, known) => line.private[usize::from(index)] = known,
            Message::Broken(what) | Message::Failed(what) => {
                self.failures.push(format!("{}: {what}", line.client.name()));
            }
        }
    }

    fn any_line(&mut self) -> usize {
        let index = self.random.next() % self.lines.len() as u64;
        usize::try_from(index).expect("it is less than a usize")
    }

    /// A time between half as long and half as long again.
    fn about(&mut self, time: Duration) -> Duration {
        let percent = 50 + u32::try_from(self.random.next() % 101).expect("a percentage is small");
        time * percent / 100
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.random.next().is_multiple_of(times)
    }
}
