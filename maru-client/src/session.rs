//! The session with the server: the connections that it runs on, and how it goes on on others when one is lost.
//!
//! All connections of a session stand and fall together. When one is lost, the others are given up, and a new one tells
//! the server to drop what was still under way on them. Then nothing is in doubt that can't be asked for: the server is
//! told which pins are in use, and tells which pages it sees with this instance.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use maru_proto::{
    AllocationFilter, ConnectionKind, FEATURE_NO_GRACE, FrameStatus, HelloRequest, HelloResponse, Opcode,
    PagesRequest, PinsRecord, RegionRecord, SessionToken,
};

use crate::config::{Address, Config};
use crate::error::{Error, ProtocolError, Result};
use crate::lists::whole_list;
use crate::page::PageLocation;
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
}

impl Terms {
    /// Opens the session on a first connection.
    pub(crate) fn open(config: Config) -> Result<(Terms, Stream, HelloResponse)> {
        let (name, auth) = config.identity()?;
        let stream = Stream::connect(&config.address)?;
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
        let terms = Terms { max_body: greeting.max_body.get(), hello: request, address, config };
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
        let stream = Stream::connect(address)?;
        let request = HelloRequest { resume: 1, ..self.hello };
        let timeout = self.config.timeout.min(HELLO_TIMEOUT);
        let greeting = hello(&stream, request, timeout)?;
        Terms { address: address.clone(), ..self.clone() }.relocate(stream, &greeting, timeout)
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
        matches!(self.address, Address::Tcp(_))
    }
}

/// The connections that the session runs on.
pub(crate) struct Link {
    /// Their number: it grows whenever the session goes on on new ones.
    pub(crate) number: u32,
    pub(crate) connection: Connection,
    /// The connection of those who await, opened when the first does.
    pipelined: OnceLock<Pipelined>,
    opening: Mutex<()>,
    control: Option<Control>,
    terms: Terms,
    backlog: Arc<dyn Backlog>,
}

impl Link {
    /// Takes over a connection on which HELLO was said.
    pub(crate) fn new(terms: &Terms, number: u32, stream: Stream, backlog: Arc<dyn Backlog>) -> Result<Link> {
        let (timeout, max_body) = (terms.config.timeout, terms.max_body);
        let connection = Connection::new(stream, timeout, max_body, Arc::clone(&backlog))?;
        let control = match &terms.address {
            Address::Unix(path) => Some(Control::new(path.clone(), terms.hello, timeout)),
            Address::Tcp(_) => None,
        };
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
        let Terms { config, address, hello: request, max_body } = &self.terms;
        let stream = Stream::connect(address)?;
        hello(&stream, *request, config.timeout)?;
        Pipelined::new(stream, config.timeout, *max_body, Arc::clone(&self.backlog))
    }

    /// Asks on the connection for regions, where there is one: not on TCP. What it can't do ends the other connections as
    /// well: whether there is a region that nobody knows of is found out as the session goes on.
    pub(crate) fn by_control<T>(&self, ask: impl FnOnce(&Control) -> Result<T>) -> Option<Result<T>> {
        let asked = ask(self.control.as_ref()?);
        Some(asked.map_err(|error| {
            let nothing_was_asked = matches!(error, Error::Connect { .. }) && error.is_of_this_process();
            if matches!(error, Error::Refused { .. }) || nothing_was_asked {
                return error;
            }
            self.shut();
            match error {
                Error::Timeout { .. } | Error::Protocol(_) => error,
                error if error.is_of_this_process() => error,
                _ => Error::ConnectionLost,
            }
        }))
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
        if let Some(control) = &self.control {
            control.shut();
        }
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
        self.assert_pins(&link, &assertion.records)?;
        self.compare_pages(&link)?;
        self.publish(link);
        Ok(())
    }

    /// Tells the server which pins are in use.
    fn assert_pins(&self, link: &Link, records: &[PinsRecord]) -> Result<()> {
        let per_frame = self.records_per_frame::<PinsRecord>();
        // Also without any, so that the server releases what is left.
        let frames = records.len().div_ceil(per_frame).max(1);
        for n in 0..frames {
            let records = &records[n * per_frame..records.len().min((n + 1) * per_frame)];
            let kept = link.connection.answer_to(&AssertPins { records, last: n + 1 == frames })?;
            let lost = kept.iter().zip(records).filter(|(kept, record)| !**kept && record.guards.get() > 0);
            for (_, record) in lost {
                tracing::error!(digest = %record.digest, "a chunk that is being read here has lost its pin");
            }
        }
        Ok(())
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
