//! The session with the server: the connections that it runs on, and how it goes on on others when one is lost.
//!
//! All connections of a session stand and fall together. When one is lost, the others are given up, and a new one tells
//! the server to drop what was still under way on them. Then nothing is in doubt that can't be asked for: the server is
//! told which pins are in use, and tells which pages it sees with this instance. Guards of pins that it has released are
//! revoked.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use maru_proto::{
    AllocationFilter, ConnectionKind, FEATURE_NO_GRACE, FrameStatus, HelloRequest, HelloResponse, Opcode,
    PagesRequest, PinsRecord, RegionRecord, SessionToken,
};

use crate::config::{Address, Config};
use crate::error::{Error, ProtocolError, Result};
use crate::lease::{self, Term};
use crate::lists::whole_list;
use crate::page::PageLocation;
use crate::pins::Assertion;
use crate::relocation::join_on_socket;
use crate::rpc::request::{AssertPins, GetPages, ListAllocations, ReturnAlloc};
use crate::rpc::{Backlog, Connection, Control, Pipelined, Stream, hello};
use crate::shared::Shared;
use crate::sync::lock;

/// For how long a caller waits for the session to go on before it is told that the connection is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// How long a new connection may take to say HELLO where callers wait for it.
const HELLO_TIMEOUT: Duration = Duration::from_millis(500);

/// What the server granted at the beginning, and how further connections join.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) config: Config,
    /// Where connections are opened: the configured address, or the Unix socket that was found by it.
    address: Address,
    pub(crate) hello: HelloRequest,
    pub(crate) max_body: u32,
    /// The number of the server's run.
    epoch: u64,
    /// How long an answer makes pins certain.
    pub(crate) lease_term: Term,
}

impl Terms {
    /// Opens the session on a first connection.
    pub(crate) fn open(config: Config) -> Result<(Terms, Stream, HelloResponse)> {
        let (name, auth) = config.identity()?;
        let stream = Stream::connect(&config.address, &config.tls)?;
        let mut request = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
        request.auth = auth;
        if config.no_grace {
            request.features = FEATURE_NO_GRACE.into();
        }
        let greeting = hello(&stream, request, config.timeout)?;
        if greeting.max_body.get() < 1024 || greeting.instance.get() == 0 {
            return Err(ProtocolError::Hello.into());
        }
        request.session = greeting.session;
        let address = config.address.clone();
        let terms = Terms {
            max_body: greeting.max_body.get(),
            hello: request,
            address,
            epoch: greeting.epoch.get(),
            lease_term: lease_term(&config, &greeting),
            config,
        };
        let timeout = terms.config.timeout;
        let (terms, stream) = terms.relocate(stream, &greeting, timeout)?;
        Ok((terms, stream, greeting))
    }

    /// A first connection on which the session goes on, and the terms with its address.
    fn resume(&self) -> Result<(Terms, Stream)> {
        let resumed = self.resume_at(&self.address);
        match resumed {
            // The socket may lie elsewhere by now, or be another server's, so the configured address has the last word.
            Err(error) if self.address != self.config.address => {
                tracing::debug!(%error, socket = %self.address, "the session can't go on there; trying TCP");
                self.resume_at(&self.config.address)
            }
            resumed => resumed,
        }
    }

    fn resume_at(&self, address: &Address) -> Result<(Terms, Stream)> {
        let stream = Stream::connect(address, &self.config.tls)?;
        let request = HelloRequest { resume: 1, ..self.hello };
        let timeout = self.config.timeout.min(HELLO_TIMEOUT);
        let greeting = hello(&stream, request, timeout)?;
        // The server may have been restarted since, with other options.
        let terms = Terms {
            address: address.clone(),
            epoch: greeting.epoch.get(),
            lease_term: lease_term(&self.config, &greeting),
            ..self.clone()
        };
        terms.relocate(stream, &greeting, timeout)
    }

    /// Goes on on the server's Unix socket where the server was reached by TCP and is on this host. The TCP connection ends
    /// after that, so that the session always has one.
    fn relocate(
        self,
        stream: Stream,
        greeting: &HelloResponse,
        timeout: Duration,
    ) -> Result<(Terms, Stream)> {
        if self.config.stay_on_tcp || !self.is_on_tcp() {
            return Ok((self, stream));
        }
        let Some((path, joined)) = join_on_socket(&stream, &self.hello, greeting, timeout)? else {
            return Ok((self, stream));
        };
        tracing::info!("moved from {} onto the Unix socket {}", self.address, path.display());
        Ok((Terms { address: Address::Unix(path), ..self }, joined))
    }

    fn is_on_tcp(&self) -> bool {
        matches!(self.address, Address::Tcp(_) | Address::Tls(_))
    }
}

/// How long an answer of a server that says so makes pins certain.
fn lease_term(config: &Config, greeting: &HelloResponse) -> Term {
    // A session without a grace period ends with its last connection.
    let grace_ms = if config.no_grace { 0 } else { greeting.grace_ms.get() };
    Term::new(Duration::from_millis(grace_ms.into()))
}

/// The connections that the session runs on.
pub(crate) struct Link {
    /// Their number: it grows whenever the session goes on on new ones.
    pub(crate) number: u32,
    pub(crate) connection: Connection,
    /// The connection of those who await, opened when the first does.
    pipelined: OnceLock<Pipelined>,
    opening: Mutex<()>,
    control: Control,
    terms: Terms,
    backlog: Arc<dyn Backlog>,
}

impl Link {
    /// Takes over a connection on which HELLO was said.
    pub(crate) fn new(terms: &Terms, number: u32, stream: Stream, backlog: Arc<dyn Backlog>) -> Result<Link> {
        let (timeout, max_body) = (terms.config.timeout, terms.max_body);
        let connection = Connection::new(stream, timeout, max_body, Arc::clone(&backlog))?;
        let control = Control::new(terms.address.clone(), terms.config.tls.clone(), terms.hello, timeout);
        Ok(Link {
            number,
            connection,
            pipelined: OnceLock::new(),
            opening: Mutex::default(),
            control,
            terms: terms.clone(),
            backlog,
        })
    }

    /// The connection of those who await.
    pub(crate) fn pipelined(&self) -> Result<&Pipelined> {
        if let Some(pipelined) = self.pipelined.get() {
            return Ok(pipelined);
        }
        let _opening = lock(&self.opening);
        if let Some(pipelined) = self.pipelined.get() {
            return Ok(pipelined);
        }
        if self.connection.is_broken() {
            return Err(Error::ConnectionLost);
        }
        let pipelined = self.open_pipelined().map_err(|error| {
            // The other connection is not worth more, only nobody has noticed.
            self.connection.shut();
            tracing::warn!(%error, "could not open another connection");
            Error::ConnectionLost
        })?;
        Ok(self.pipelined.get_or_init(|| pipelined))
    }

    fn open_pipelined(&self) -> Result<Pipelined> {
        let Terms { config, address, hello: request, max_body, epoch, .. } = &self.terms;
        let stream = Stream::connect(address, &config.tls)?;
        let greeting = hello(&stream, *request, config.timeout)?;
        if greeting.epoch.get() != *epoch {
            // It was restarted, and does not know what is pinned: the session has to go on on other connections first.
            return Err(Error::ConnectionLost);
        }
        Pipelined::new(stream, config.timeout, *max_body, Arc::clone(&self.backlog))
    }

    /// Asks on the connection for regions. What it can't do ends the other connections as well: whether there is a region that
    /// nobody knows of is found out as the session goes on.
    pub(crate) fn by_control<T>(&self, ask: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
        ask(&self.control).map_err(|error| {
            let nothing_was_asked = matches!(error, Error::Connect { .. }) && error.is_of_this_process();
            // That the session has ended is told as it tries to go on.
            let is_unknown = matches!(
                error,
                Error::Refused { operation: Opcode::Hello, status: FrameStatus::Unauthorized }
            );
            if matches!(error, Error::Refused { .. }) && !is_unknown || nothing_was_asked {
                return error;
            }
            self.shut();
            match error {
                Error::Timeout { .. } | Error::Protocol(_) => error,
                error if error.is_of_this_process() => error,
                _ => Error::ConnectionLost,
            }
        })
    }

    /// Whether a connection is lost, and the session has to go on on others.
    pub(crate) fn is_broken(&self) -> bool {
        self.connection.is_broken() || self.pipelined.get().is_some_and(Pipelined::is_broken)
    }

    /// Gives all connections up.
    pub(crate) fn shut(&self) {
        let _opening = lock(&self.opening);
        self.connection.shut();
        if let Some(pipelined) = self.pipelined.get() {
            pipelined.shut();
        }
        self.control.shut();
    }

    /// Whether the server may be on another host.
    pub(crate) fn is_remote(&self) -> bool {
        self.terms.is_on_tcp()
    }

    /// Where the connections go.
    pub(crate) fn address(&self) -> &Address {
        &self.terms.address
    }

    /// The socket that tells by its hang-up that the server is gone.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.fd()
    }

    /// Requests that were sent and wanted an answer.
    pub(crate) fn rpcs(&self) -> u64 {
        self.connection.rpcs() + self.pipelined.get().map_or(0, Pipelined::rpcs)
    }

    /// Writes that requests of those who await took.
    pub(crate) fn async_writes(&self) -> u64 {
        self.pipelined.get().map_or(0, Pipelined::writes)
    }

    /// Pages of stores whose callers gave up, and whose answers will not come any more.
    fn take_unsettled(&self) -> Vec<PageLocation> {
        let mut pages = self.connection.take_unsettled();
        pages.extend(self.pipelined.get().map(Pipelined::take_unsettled).unwrap_or_default());
        pages
    }
}

/// Whether the session can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its connections are open, as far as is known.
    Up,
    /// A connection was lost then.
    Down(Instant),
    /// The server does not know it any more.
    Ended,
}

impl Shared {
    /// Goes on on new connections. What this instance has pinned and which pages it has is the same on both sides then.
    ///
    /// # Errors
    /// [`Error::SessionEnded`] when the server knows the session no more. Those of connecting and of any request: it can be
    /// tried again.
    pub(crate) fn resume(&self) -> Result<()> {
        let lost = self.link();
        lost.shut();
        lock(&self.unsettled).extend(lost.take_unsettled());
        let (terms, stream) = lost.terms.resume().map_err(|error| match error {
            Error::Refused { operation: Opcode::Hello, status: FrameStatus::Unauthorized } => {
                Error::SessionEnded
            }
            error => error,
        })?;
        let assertion = self.pins.go_on();
        self.own.go_on(assertion.link);
        let link = Link::new(&terms, assertion.link, stream, self.backlog(assertion.link))?;
        self.assert_pins(&link, &assertion)?;
        self.compare_pages(&link)?;
        self.publish(link);
        Ok(())
    }

    /// Tells the server which pins are in use. Guards of those that it does not have are revoked.
    fn assert_pins(&self, link: &Link, assertion: &Assertion) -> Result<()> {
        let (records, per_frame) = (&assertion.records, self.records_per_frame::<PinsRecord>());
        let mut sent = Duration::ZERO;
        // Also without any, so that the server releases what is left.
        let frames = records.len().div_ceil(per_frame).max(1);
        for n in 0..frames {
            let records = &records[n * per_frame..records.len().min((n + 1) * per_frame)];
            sent = lease::now();
            let kept = link.connection.answer_to(&AssertPins { records, last: n + 1 == frames })?;
            let lost = kept.iter().zip(records).filter(|(kept, _)| !**kept);
            self.note_revoked(assertion.revoke(lost.map(|(_, record)| record)));
        }
        self.lease.go_on(link.number, link.terms.lease_term, sent);
        Ok(())
    }

    /// The server has forgotten the session: what it had pinned may be gone.
    pub(crate) fn end_session(&self) {
        self.note_revoked(self.pins.end());
        self.lease.end();
        self.set_phase(Phase::Ended);
    }

    fn note_revoked(&self, chunks: u64) {
        if chunks > 0 {
            tracing::error!(chunks, "chunks that are being read here have lost their pins");
            self.revoked.fetch_add(chunks, Ordering::Relaxed);
        }
    }

    /// Compares every page of every own region, and gives back what the server gave and nobody knows of.
    fn compare_pages(&self, link: &Link) -> Result<()> {
        let unsettled = std::mem::take(&mut *lock(&self.unsettled)).into_iter().collect::<HashSet<_>>();
        // A closed handler has regions that it gave back, or tried to.
        let returned = lock(&self.returned).clone();
        let is_own = |region_id: u32| self.own.has(region_id) && !returned.contains(&region_id);
        let regions = self.own.regions();
        let compared = regions.iter().filter(|region| is_own(region.id())).try_for_each(|region| {
            self.each_held_word(link, region.id(), 0, region.pages(), |first, word| {
                self.own.compare(region.id(), first, word, &unsettled);
            })
        });
        if compared.is_err() {
            lock(&self.unsettled).extend(unsettled);
        }
        compared?;
        let id = |region: &RegionRecord| region.region_id.get();
        let listed = whole_list(id, |after| {
            link.connection.answer_to(&ListAllocations::after(AllocationFilter::Mine, after))
        })?;
        for region in listed.iter().map(id).filter(|region| !is_own(*region)) {
            link.connection.answer_to(&ReturnAlloc::of(region))?;
        }
        Ok(())
    }

    /// Finds out what became of stores whose callers gave up when a connection was lost.
    pub(crate) fn settle_abandoned(&self, link: &Link) -> Result<()> {
        let pages = std::mem::take(&mut *lock(&self.unsettled));
        for (n, page) in pages.iter().enumerate() {
            match self.holds_page(link, *page) {
                Ok(held) => self.own.settle([(*page, !held)]),
                Err(error) => {
                    lock(&self.unsettled).extend(&pages[n..]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the server sees a page of an own region with this instance: what was registered in it was not stored.
    pub(crate) fn holds_page(&self, link: &Link, page: PageLocation) -> Result<bool> {
        let mut held = false;
        let first = page.page_index - page.page_index % u64::BITS;
        self.each_held_word(link, page.region_id, first, first + 1, |_, word| {
            held = word >> (page.page_index % u64::BITS) & 1 == 1;
        })?;
        Ok(held)
    }

    /// Hands out words of 64 pages each, and the first page of each, for the pages from `first` to `end`.
    fn each_held_word(
        &self,
        link: &Link,
        region_id: u32,
        mut first: u32,
        end: u32,
        mut each: impl FnMut(u32, u64),
    ) -> Result<()> {
        while first < end {
            let request = PagesRequest { region_id: region_id.into(), first_page: first.into() };
            let words = link.connection.answer_to(&GetPages(request))?;
            if words.is_empty() {
                return Err(ProtocolError::Region(region_id).into());
            }
            for word in words.into_iter().take((end - first).div_ceil(u64::BITS) as usize) {
                each(first, word.get());
                first += u64::BITS;
            }
        }
        Ok(())
    }
}
