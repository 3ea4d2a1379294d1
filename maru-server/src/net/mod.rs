//! The only code that knows io_uring: the runtime, the listeners, and the two drivers of connections.

mod admission;
mod connection;
mod doorbell;
mod listener;
mod reactor;
mod rescan;
mod ring;
mod scrape;
mod stopwatch;
mod stream;
mod task;
mod tls;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use maru_proto::{AuthToken, DigestKey};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, error, info, warn};

use crate::configuration::ConfigurationError;
use crate::error::ServerError;
use crate::journal::{Journal, StateFolder};
use crate::metrics::{self, Restored};
use crate::options::{Driver, Options};
use crate::pool::{self, Memory, PoolFacts};
use crate::service::{ServedPool, ServedSocket, Service, ServiceConfig};
use crate::state::{Limits, PoolSpec, RetiredRegion};
use admission::Admission;
use connection::Link;
use listener::{Listener, SocketFile};
use reactor::{Arrivals, Reactor};
use tls::HandshakeLimits;
pub(crate) use tls::files as certificate_files;

/// Entries that the directory has room for at most, unless the operator says otherwise; for a smaller pool one for each
/// of the smallest pages. Room costs address space; memory is used as entries come.
const DEFAULT_MAX_ENTRIES: u64 = 1 << 24;
const MIN_PAGE_SIZE: u64 = 4096;
const MAX_PAGE_SIZE: u64 = 1 << 30;

/// Records of one frame that are worked on before other connections have a turn: some 10 µs of work. Twice as many
/// keep small requests beside large batches from answers within twice their usual time; half as many help no further.
const PART: usize = 128;

/// How often pins by name are looked at that may have run out: at most and at least.
const PIN_TICKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30));
/// How often connections are looked at that may have stalled, at most.
const STALL_TICK: Duration = Duration::from_millis(20);
/// Handshakes of TLS that may be under way.
const MAX_HANDSHAKES: usize = 512;
/// How often it is looked whether a server of another host has taken a pool. Its grace period has to be longer.
const TAKEN_TICK: Duration = Duration::from_millis(500);
/// How long connections may take to finish their frames once the server stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Runs the server until it is told to stop by SIGTERM, SIGINT or an allowed SHUTDOWN. On SIGHUP it reads its options again
/// and takes the pools that are new.
///
/// # Errors
/// [`ServerError`] where it can't start; once it serves, it goes on.
pub fn run(options: &Options, reread: Reread) -> Result<(), ServerError> {
    raise_descriptor_limit();
    let auth = read_token(options)?;
    let runtime = ring::runtime()?;
    let plans = options.pools();
    let plans = plans.iter().map(|plan| pool::resolve(plan, options.pool_size));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let folder = options.state_dir.clone().unwrap_or_else(|| pool::state_folder(&plans));
    let folder = StateFolder::open(&folder)?;
    let memory = Memory::open(&plans, folder.path().to_owned())?;
    runtime.block_on(serve(options, reread, folder, memory, auth))
}

/// Whether the kernel gives this process a ring.
pub(crate) fn try_ring() -> Result<(), ServerError> {
    ring::runtime().map(drop)
}

/// Reads the options once more, as they are now.
pub type Reread = fn() -> Result<Options, ConfigurationError>;

/// What all tasks share. One thread runs them, so nothing here is locked; no borrow is held over an await.
struct Shared {
    service: RefCell<Service>,
    memory: RefCell<Memory>,
    started: Instant,
    limits: NetLimits,
    admission: Admission,
    /// Where new connections go; each becomes a task of its own where there is no reactor.
    reactor: Option<Rc<Arrivals>>,
    connections: RefCell<Vec<Weak<Link>>>,
    open: Cell<usize>,
    greetings: RefCell<VecDeque<(Instant, Weak<Link>)>>,
    /// A region's memory was released.
    released: Notify,
    /// A grace period began.
    grace_began: Notify,
    /// A connection waits for its HELLO.
    greeting_began: Notify,
    /// A connection closed.
    closed: Notify,
    /// The server shall stop.
    stop: Notify,
}

struct NetLimits {
    max_connections: usize,
    max_unanswered: usize,
    hello_deadline: Duration,
    stall_timeout: Duration,
    idle_timeout: Duration,
    slow_request: Option<Duration>,
}

impl Shared {
    /// Time since the start, the only clock that the state knows.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Releases the memory of regions that the state has retired, beside the serving thread.
    fn release_retired(self: &Rc<Shared>) {
        // The borrow must end before the loop's body runs.
        let next = || -> Option<RetiredRegion> { self.service.borrow_mut().next_retired() };
        while let Some(region) = next() {
            let shared = Rc::clone(self);
            tokio_uring::spawn(async move {
                let release = shared.memory.borrow().releaser(&region);
                let released = tokio::task::spawn_blocking(release).await;
                if let Err(error) = released.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
                    error!(region = region.id.0, %error, "could not release the memory of a region");
                }
                debug!(region = region.id.0, "a region is free again");
                shared.service.borrow_mut().released(region.id);
                shared.released.notify_waiters();
            });
        }
    }
}

async fn serve(
    options: &Options,
    reread: Reread,
    folder: StateFolder,
    mut memory: Memory,
    auth: Option<AuthToken>,
) -> Result<(), ServerError> {
    let system = |what| move |source| ServerError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("can't catch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("can't catch SIGINT"))?;
    let hangup = signal(SignalKind::hangup()).map_err(system("can't catch SIGHUP"))?;

    let admission = Admission::new(&options.allow_uid, &options.allow_gid);
    let (socket, unix) = SocketFile::listen(options.socket.as_deref(), &admission)?;
    let (tcp, tls_threads) = options.listen.map(|address| listen(address, options)).transpose()?.unzip();

    let (mut service, restored) = restore(options, &folder, &mut memory, auth, socket.path())?;
    let reactor = reactor(options, &mut service)?;
    let arrivals = reactor.is_some().then(Rc::<Arrivals>::default);
    let shared = Rc::new(Shared {
        service: RefCell::new(service),
        memory: RefCell::new(memory),
        started: Instant::now(),
        limits: NetLimits {
            max_connections: options.max_connections,
            max_unanswered: options.max_unanswered,
            stall_timeout: options.stall_timeout,
            idle_timeout: options.idle_timeout,
            hello_deadline: options.hello_deadline,
            slow_request: options.slow_request,
        },
        admission,
        reactor: arrivals.clone(),
        connections: RefCell::default(),
        open: Cell::new(0),
        greetings: RefCell::default(),
        released: Notify::new(),
        grace_began: Notify::new(),
        greeting_began: Notify::new(),
        closed: Notify::new(),
        stop: Notify::new(),
    });
    if let Some(address) = options.metrics_addr {
        // One at a time: those who ring meanwhile wait for their turn.
        let (bell, bells) = mpsc::channel(1);
        tokio_uring::spawn(scrape::answer(Rc::clone(&shared), bells, restored));
        metrics::start(address, bell).map_err(system("can't serve metrics"))?;
    }
    let address = |is_encrypted| {
        let listener = tcp.as_ref().filter(|listener| listener.is_encrypted() == is_encrypted);
        listener.and_then(Listener::address).map(tracing::field::display)
    };
    info!(socket = %socket.path().display(), tcp = address(false), tls = address(true), "serving");
    if let Some((reactor, arrivals)) = reactor.zip(arrivals) {
        let shared = Rc::clone(&shared);
        tokio_uring::spawn(async move {
            reactor.run(arrivals).await;
            // It ends only when its ring fails: better no server than one that answers nobody.
            shared.stop.notify_one();
        });
    }
    let acceptors = [Some(unix), tcp].into_iter().flatten();
    let acceptors = acceptors
        .map(|listener| tokio_uring::spawn(listener::accept(Rc::clone(&shared), listener)))
        .collect::<Vec<_>>();
    tokio_uring::spawn(rescan::rescan(Rc::clone(&shared), hangup, reread));
    tokio_uring::spawn(give_way(Rc::clone(&shared)));
    tokio_uring::spawn(expire(Rc::clone(&shared), options.pin_ttl));
    tokio_uring::spawn(enforce_greetings(Rc::clone(&shared)));
    tokio_uring::spawn(end_stalled(Rc::clone(&shared)));

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        () = shared.stop.notified() => info!("SHUTDOWN: stopping"),
    }
    drop(socket);
    acceptors.iter().for_each(tokio::task::JoinHandle::abort);
    shared.service.borrow_mut().stop();
    drain(&shared).await;
    if let Some(threads) = tls_threads.flatten() {
        // What they carry they close on their own time, while this thread closes its ends.
        let _ = tokio::task::spawn_blocking(|| threads.join()).await;
    }
    let chunks = shared.service.borrow().state().figures(shared.now()).entries;
    let journal = folder.path().display();
    info!(%journal, chunks, "stopped; the pools keep their chunks for the next start, and folders their memory until they are removed");
    Ok(())
}

/// Listens for clients of other hosts, by TLS where there is a certificate.
fn listen(address: SocketAddr, options: &Options) -> Result<(Listener, Option<tls::Threads>), ServerError> {
    let Some(files) = tls::files(options) else {
        if !address.ip().is_loopback() {
            warn!(
                %address,
                "the token and all else travel in the clear; --tls-cert and --tls-key have TLS spoken instead"
            );
        }
        return Ok((Listener::tcp(address)?, None));
    };
    let limits = HandshakeLimits {
        deadline: options.hello_deadline,
        at_once: options.max_connections.clamp(1, MAX_HANDSHAKES),
    };
    let (address, arrivals, threads) = tls::start(address, files, limits)?;
    Ok((Listener::Tls(address, arrivals), Some(threads)))
}

/// The fast driver, unless the plain one is asked for or all that this kernel can do.
fn reactor(options: &Options, service: &mut Service) -> Result<Option<Reactor>, ServerError> {
    if options.driver == Driver::Plain {
        return Ok(None);
    }
    match Reactor::new(options.spin) {
        Ok(reactor) => {
            service.count_system_calls(reactor.system_calls());
            Ok(Some(reactor))
        }
        Err(error) if options.driver == Driver::Auto => {
            let reason = ring::explain(&error);
            warn!(reason, "the fast driver can't run (Linux 6.1 or later can run it); using the plain one");
            Ok(None)
        }
        Err(error) => Err(ServerError::Ring(ring::explain(&error))),
    }
}

/// Stops the server once one of another host has taken a pool: it gives the same memory to others, after its grace period.
async fn give_way(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(TAKEN_TICK).await;
        let taken = shared.memory.borrow().taken();
        if let Some(PoolFacts { path, identity, .. }) = taken {
            error!(pool = path, uuid = %identity.uuid, "another server, of another host, has taken a pool: stopping");
            shared.stop.notify_one();
            return;
        }
    }
}

/// Lets connections finish the frames that they have read, then closes them.
async fn drain(shared: &Shared) {
    let links = shared.connections.borrow().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
    links.iter().for_each(|link| link.stop_reading());
    let deadline = Instant::now() + DRAIN_TIME;
    while shared.open.get() > 0 {
        let closed = shared.closed.notified();
        if tokio::time::timeout_at(deadline.into(), closed).await.is_err() {
            warn!(connections = shared.open.get(), "closing connections that do not take their answers");
            links.iter().for_each(|link| link.close());
            break;
        }
    }
}

/// Ends instances as their grace periods run out, and pins by name as they do.
async fn expire(shared: Rc<Shared>, pin_ttl: Duration) {
    // That a grace period began is told. Pins are too many for that, so a look now and then has to do.
    let tick = if pin_ttl.is_zero() { PIN_TICKS.1 } else { (pin_ttl / 10).clamp(PIN_TICKS.0, PIN_TICKS.1) };
    loop {
        let next = shared.service.borrow().next_expiry();
        let soon = shared.now() + tick;
        let wake = shared.started + next.map_or(soon, |next| next.min(soon));
        tokio::select! {
            () = tokio::time::sleep_until(wake.into()) => {}
            () = shared.grace_began.notified() => {}
        }
        let expired = shared.service.borrow_mut().expire(shared.now());
        if expired.pins > 0 {
            info!(pins = expired.pins, "pins by name have run out");
        }
        if expired.instances > 0 {
            shared.release_retired();
        }
    }
}

/// Closes connections that do not say HELLO in time; sleeps while all have.
async fn enforce_greetings(shared: Rc<Shared>) {
    loop {
        let next = shared.greetings.borrow_mut().pop_front();
        let Some((deadline, link)) = next else {
            shared.greeting_began.notified().await;
            continue;
        };
        // All have the same time, so the oldest ends first. One that is open or gone needs no waiting.
        if link.upgrade().is_some_and(|link| !link.is_greeted()) {
            tokio::time::sleep_until(deadline.into()).await;
        }
        if let Some(link) = link.upgrade().filter(|link| !link.is_greeted()) {
            debug!("closing a connection that did not say HELLO in time");
            link.close();
        }
    }
}

/// Closes connections whose peer stops in the middle of a frame, does not take its answers, or says nothing for too long.
async fn end_stalled(shared: Rc<Shared>) {
    let NetLimits { stall_timeout, idle_timeout, .. } = shared.limits;
    let shortest = [stall_timeout, idle_timeout].into_iter().filter(|time| !time.is_zero()).min();
    let Some(shortest) = shortest else { return };
    loop {
        tokio::time::sleep((shortest / 4).max(STALL_TICK)).await;
        let now = shared.now();
        for link in shared.connections.borrow().iter().filter_map(Weak::upgrade) {
            let is_over = |since: Option<Duration>, limit: Duration| {
                !limit.is_zero() && since.is_some_and(|since| now.saturating_sub(since) > limit)
            };
            if is_over(link.stalled_since(), stall_timeout) {
                debug!("closing a connection whose peer stopped in the middle");
                link.close();
            } else if is_over(Some(link.served_at()), idle_timeout) {
                debug!("closing a connection on which nothing was said");
                link.close();
            }
        }
    }
}

/// The service, with everything that an earlier run left.
fn restore(
    options: &Options,
    folder: &StateFolder,
    memory: &mut Memory,
    auth: Option<AuthToken>,
    socket: &Path,
) -> Result<(Service, Restored), ServerError> {
    let began = Instant::now();
    let (mut journal, mut saved) = Journal::open(folder.path(), options.max_instances, options.fresh)?;
    memory.adopt(journal.deployment(), options.grace)?;
    journal.read_regions(&memory.identities(), &mut saved)?;
    memory.settle(&saved.regions)?;
    let config = service_config(options, memory, auth);
    let config = ServiceConfig { epoch: folder.epoch(), socket: served_socket(socket), ..config };
    let service = Service::restore(config, journal, &saved, Duration::ZERO)
        .map_err(|source| ServerError::Restore { path: folder.path().to_owned(), source })?;
    let figures = service.state().figures(Duration::ZERO);
    let took = began.elapsed();
    if figures.regions + figures.instances > 0 {
        info!(
            chunks = figures.entries,
            regions = figures.regions,
            instances = figures.instances,
            ?took,
            "restored"
        );
    }
    Ok((service, Restored { entries: figures.entries, took }))
}

fn service_config(options: &Options, memory: &Memory, auth: Option<AuthToken>) -> ServiceConfig {
    let bytes = memory.facts().map(|facts| facts.size).sum::<u64>();
    let by_size = (bytes / MIN_PAGE_SIZE).min(DEFAULT_MAX_ENTRIES);
    ServiceConfig {
        limits: Limits {
            max_entries: options.max_entries.unwrap_or_else(|| u32::try_from(by_size).unwrap_or(u32::MAX)),
            max_pins_per_entry: options.max_pins_per_entry,
            max_instances: options.max_instances,
            max_connections_per_instance: options.max_connections_per_instance,
            max_regions_per_instance: options.max_regions_per_instance,
            min_page_size: MIN_PAGE_SIZE,
            max_page_size: MAX_PAGE_SIZE,
            grace: options.grace,
            pin_ttl: options.pin_ttl,
        },
        max_body: options.max_body,
        part: PART,
        epoch: 0,
        digest_key: DigestKey::from(crate::random::secret()),
        auth,
        allow_shutdown: options.allow_shutdown,
        pools: memory.facts().map(served_pool).collect(),
        socket: None,
    }
}

/// A pool as clients are told of it.
fn served_pool(facts: PoolFacts) -> ServedPool {
    ServedPool {
        spec: PoolSpec { size: facts.size, granularity: facts.granularity },
        kind: facts.kind,
        uuid: facts.identity.uuid,
        incarnation: facts.identity.incarnation,
        coherence: facts.coherence,
        path: facts.path,
        extents_at: facts.extents_at,
    }
}

/// The Unix socket as clients on TCP may find it; without what that takes they stay on TCP.
fn served_socket(path: &Path) -> Option<ServedSocket> {
    let described = || {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned();
        // Clients have other working directories.
        Ok(ServedSocket { path: std::path::absolute(path)?, boot_id })
    };
    let described: std::io::Result<ServedSocket> = described();
    described.inspect_err(|error| debug!(%error, "clients on TCP are not told of the Unix socket")).ok()
}

pub(crate) fn read_token(options: &Options) -> Result<Option<AuthToken>, ServerError> {
    let Some(path) = &options.auth_token_file else {
        return match options.listen {
            Some(address) if !address.ip().is_loopback() => Err(ServerError::TokenNeeded(address)),
            _ => Ok(None),
        };
    };
    let unusable = |reason: String| ServerError::Token { path: path.clone(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.len() < 16 {
        return Err(unusable("a token has at least 16 characters".to_owned()));
    }
    AuthToken::new(token.as_bytes()).map(Some).map_err(|error| unusable(error.to_string()))
}

/// Connections and region files are descriptors, and the usual soft limit of 1,024 is soon reached.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        debug!(%error, "the limit of open files stays as it is");
    }
}
