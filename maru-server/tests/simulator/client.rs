//! A simulated client: what it knows of its pages and pins, and what it makes of the server's answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use maru_proto::{
    Frame, FrameStatus, HeartbeatRecord, HelloResponse, LocationRecord, PageRecord, RecordStatus,
    RegionRecord, SessionToken, StatKind, StatRecord, UsageRecord, statuses,
};
use zerocopy::little_endian::U64;

use super::memory::{Content, Memory, Place};
use super::request::{Request, checksum};
use super::server::EPOCH;
use super::trace::{Event, Trace};

/// A page of an own region.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Page {
    /// The key whose chunk was written into it.
    pub(crate) written: Option<usize>,
    /// Registrations of it that are not answered.
    pub(crate) pending: u32,
    /// How often it was registered, less how often the server handed it back: the answers may come in any order.
    balance: i32,
    /// Answers on it are lost.
    in_doubt: bool,
}

impl Page {
    /// Whether the client has it, to write into.
    pub(crate) fn is_own(&self) -> bool {
        self.pending == 0 && !self.in_doubt && self.balance == 0
    }

    fn settle(&mut self, registered: bool) {
        self.pending -= 1;
        self.change(i32::from(registered));
    }

    fn hand_back(&mut self) {
        self.change(-1);
    }

    fn change(&mut self, by: i32) {
        self.balance += by;
        if self.pending == 0 {
            // More than one where it was stored twice, and the answer that hands it back in between is still to come.
            assert!((0..=2).contains(&self.balance), "a page is stored, or it is not: {self:?}");
        }
        if self.is_own() {
            self.written = None;
        }
    }

    /// Nobody will answer any more.
    fn doubt(&mut self) {
        self.in_doubt |= self.pending > 0;
        self.pending = 0;
    }

    /// Takes over what the server says, with nothing under way: whether it sees the page with this client.
    fn compare(&mut self, held: bool) {
        assert!(held || !self.is_own(), "the server does not take a page from who has it");
        if !self.is_own() {
            *self = Page { balance: i32::from(!held), ..Page::default() };
        }
    }
}

/// What protects a chunk while it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) key: usize,
    pub(crate) generation: u32,
    pub(crate) place: Place,
    pub(crate) content: Content,
}

/// Pins by name on one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) generation: u32,
    pub(crate) pins: u32,
}

/// How far the client is with its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has sent its first HELLO.
    Greeting,
    /// All is well, as far as it knows.
    Up,
    /// It has lost its connections.
    Down,
    /// It has opened another one, and finds out what is in doubt.
    Resuming,
    /// It is over.
    Ended,
}

/// A connection of a client, as it sees it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: usize,
    pub(crate) in_flight: VecDeque<(u32, Request)>,
    /// Whether HELLO was answered.
    pub(crate) is_open: bool,
}

/// What a client needs to make sense of an answer.
pub(crate) struct Context<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) trace: &'a mut Trace,
    pub(crate) now: Duration,
    /// Whether the server knows the session still: pins and pages are worth nothing otherwise.
    pub(crate) is_alive: bool,
    /// Whether pins by name run out.
    pub(crate) pins_run_out: bool,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) page_size: u64,
    pub(crate) phase: Phase,
    pub(crate) session: SessionToken,
    pub(crate) instance: u32,
    pub(crate) links: Vec<Link>,
    /// Own regions.
    pub(crate) regions: BTreeMap<u32, Vec<Page>>,
    /// Regions that were given back.
    pub(crate) returned: BTreeSet<u32>,
    pub(crate) guards: Vec<Guard>,
    pub(crate) named: BTreeMap<usize, Named>,
    /// Pins of guards that are gone, to be released.
    pub(crate) to_release: Vec<usize>,
    /// What the server said last that it uses.
    pub(crate) usage: Option<UsageRecord>,
    pub(crate) last_request: u32,
}

impl Client {
    pub(crate) fn new(number: usize, page_size: u64) -> Client {
        Client {
            number,
            page_size,
            phase: Phase::Greeting,
            session: SessionToken::NONE,
            instance: 0,
            links: Vec::new(),
            regions: BTreeMap::new(),
            returned: BTreeSet::new(),
            guards: Vec::new(),
            named: BTreeMap::new(),
            to_release: Vec::new(),
            usage: None,
            last_request: 0,
        }
    }

    /// The pages that it has, to write into.
    pub(crate) fn own_pages(&self) -> impl Iterator<Item = (Place, Page)> {
        let pages = self.regions.iter().flat_map(|(&region, pages)| {
            (0..).zip(pages).map(move |(page, state)| (Place { region, page }, *state))
        });
        pages.filter(|(_, page)| page.is_own())
    }

    pub(crate) fn page(&mut self, at: Place) -> Option<&mut Page> {
        self.regions.get_mut(&at.region).map(|pages| &mut pages[at.page as usize])
    }

    /// Whether every request is answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Up && self.links.iter().all(|link| link.is_open && link.in_flight.is_empty())
    }

    /// Has lost its connections. What was asked for on them is in doubt.
    pub(crate) fn lose_all(&mut self) -> Vec<Link> {
        self.regions.values_mut().flatten().for_each(Page::doubt);
        self.phase = if self.phase == Phase::Greeting { Phase::Ended } else { Phase::Down };
        std::mem::take(&mut self.links)
    }

    /// Takes an answer, and says what to ask for next.
    pub(crate) fn take(
        &mut self,
        request: &Request,
        frame: &Frame<'_>,
        context: &mut Context<'_>,
    ) -> Vec<Request> {
        match request {
            Request::Alloc { .. } => return self.take_region(frame),
            Request::Return(region) => {
                // Where it was sent twice, the second finds it gone.
                let is_fine = matches!(
                    frame.status(),
                    FrameStatus::Ok | FrameStatus::RegionNotFound | FrameStatus::Unauthorized
                );
                assert!(is_fine, "region {region} was given back: {frame:?}");
                return Vec::new();
            }
            _ => assert_eq!(frame.status(), FrameStatus::Ok, "{request:?} is served"),
        }
        match request {
            Request::Reclaim { want, evict, grow } => {
                return self.take_pages(frame, *want, *evict, *grow);
            }
            Request::Register { chunks, is_repeated, .. } => {
                let statuses = self.statuses(request, frame, chunks.len(), context);
                for ((_, place), status) in chunks.iter().zip(statuses) {
                    self.take_registered(*place, status, *is_repeated);
                }
            }
            Request::Acquire(keys) => self.take_guards(request, keys, frame, context),
            Request::Lookup(keys) | Request::Pin(keys) => self.take_named(request, keys, frame, context),
            Request::Unpin { keys, is_held } => {
                let statuses = self.statuses(request, frame, keys.len(), context);
                for (key, status) in keys.iter().zip(statuses) {
                    let is_ok = status == RecordStatus::Ok;
                    // A pin that ran out while another was taken on a further connection is mistaken for that other.
                    assert!(
                        is_ok == *is_held || context.pins_run_out,
                        "key {key}, pinned by name: {is_held}, released: {status:?}"
                    );
                    if *is_held && !is_ok {
                        self.named.remove(key);
                    }
                }
            }
            Request::Release(keys) => {
                let statuses = self.statuses(request, frame, keys.len(), context);
                assert!(statuses.iter().all(|status| *status == RecordStatus::Ok), "{keys:?}: {statuses:?}");
            }
            Request::Delete(keys) | Request::Exists(keys) => {
                self.statuses(request, frame, keys.len(), context);
            }
            Request::Assert { records, .. } => {
                let statuses = self.statuses(request, frame, records.len(), context);
                for (record, status) in records.iter().zip(statuses) {
                    let may_be_gone = context.pins_run_out && record.guards.get() == 0;
                    assert!(status == RecordStatus::Ok || may_be_gone, "{record:?} is not as it was said");
                }
            }
            Request::Pages(region) => {
                let words = frame.records::<U64>().expect("words are answered");
                let pages = self.regions.get_mut(region).expect("it is an own region");
                for (page, at) in pages.iter_mut().zip(0..) {
                    page.compare(words[at / 64].get() >> (at % 64) & 1 == 1);
                }
            }
            Request::Regions => return self.take_regions(frame),
            Request::Usage => {
                let records = frame.records::<UsageRecord>().expect("figures are answered");
                self.usage = records.iter().find(|record| record.instance.get() == self.instance).copied();
                assert!(self.usage.is_some(), "who asks is among the instances");
            }
            Request::Heartbeat => {
                let record = frame.record::<HeartbeatRecord>().expect("the server's clock is answered");
                let uptime = Duration::from_millis(record.uptime_ms.get());
                assert!(record.epoch.get() == EPOCH && uptime <= context.now, "{record:?}");
            }
            Request::Stats => {
                let records = frame.records::<StatRecord>().expect("figures are answered");
                let instances = records.iter().find(|it| it.kind.get() == StatKind::Instances as u16);
                assert!(instances.is_some_and(|it| it.value.get() > 0), "who asks is counted: {records:?}");
            }
            _ => unreachable!("it is answered elsewhere, or not at all: {request:?}"),
        }
        Vec::new()
    }

    /// Takes the answer to the first HELLO of the session, or to one by which it goes on.
    pub(crate) fn take_session(&mut self, response: &HelloResponse) {
        if self.phase == Phase::Greeting {
            self.session = response.session;
            self.instance = response.instance.get();
        }
        assert_eq!((self.session, self.instance), (response.session, response.instance.get()));
    }

    fn statuses(
        &self,
        request: &Request,
        frame: &Frame<'_>,
        count: usize,
        context: &mut Context<'_>,
    ) -> Vec<RecordStatus> {
        let statuses = statuses(frame.body(), count).expect("each record has a status").collect::<Vec<_>>();
        for status in &statuses {
            context.trace.note(context.now, Event::Record(request.opcode(), *status, self.number));
        }
        statuses
    }

    fn take_registered(&mut self, place: Place, status: RecordStatus, is_repeated: bool) {
        let was_returned = self.returned.contains(&place.region);
        let Some(page) = self.page(place) else {
            assert!(was_returned, "pages are lost with their region only");
            return;
        };
        match status {
            RecordStatus::Ok => page.settle(true),
            RecordStatus::Exists => page.settle(false),
            RecordStatus::PageInUse if is_repeated => page.settle(false),
            other => panic!("{page:?} at {place:?} could be registered: {other:?}"),
        }
    }

    fn take_region(&mut self, frame: &Frame<'_>) -> Vec<Request> {
        match frame.status() {
            FrameStatus::Ok => {
                let region = frame.record::<RegionRecord>().expect("a region is answered");
                assert_eq!(region.owner.get(), self.instance, "who asked owns it");
                let pages = vec![Page::default(); region.pages.get() as usize];
                let before = self.regions.insert(region.region_id.get(), pages);
                assert!(before.is_none(), "a region is given once");
                Vec::new()
            }
            FrameStatus::NoSpace | FrameStatus::Limit => {
                vec![Request::Reclaim { want: 2, evict: true, grow: false }]
            }
            FrameStatus::Internal => Vec::new(),
            other => panic!("a region was asked for: {other:?}"),
        }
    }

    fn take_pages(&mut self, frame: &Frame<'_>, want: u32, evict: bool, grow: bool) -> Vec<Request> {
        let pages = frame.records::<PageRecord>().expect("pages are answered");
        assert!(pages.len() <= want as usize, "no more pages come than are wanted");
        for record in pages {
            let place = Place { region: record.region_id.get(), page: record.page_index.get() };
            let was_returned = self.returned.contains(&place.region);
            match self.page(place) {
                Some(page) => page.hand_back(),
                None => assert!(was_returned, "only what is the client's comes back: {place:?}"),
            }
        }
        if !pages.is_empty() || evict || !grow {
            return Vec::new();
        }
        vec![Request::Alloc { pages: 2 + u64::from(want), page_size: self.page_size }]
    }

    fn take_guards(
        &mut self,
        request: &Request,
        keys: &[usize],
        frame: &Frame<'_>,
        context: &mut Context<'_>,
    ) {
        for (key, location) in keys.iter().zip(self.locations(request, keys, frame, context)) {
            if location.record_status() != Some(RecordStatus::Ok) {
                continue;
            }
            let place = context.memory.place(location.region_id.get(), location.offset.get());
            let content = place.and_then(|place| context.memory.read(place));
            let Some((place, content)) = place.zip(content) else {
                assert!(!context.is_alive, "the memory of key {key} is there while it is pinned");
                continue;
            };
            assert!(
                content.key == Some(*key) || !context.is_alive,
                "client {} has pinned key {key} and finds {content:?} at {place:?}",
                self.number,
            );
            assert_eq!(location.checksum.get(), checksum(*key), "the checksum of key {key} comes back");
            self.guards.push(Guard { key: *key, generation: location.generation.get(), place, content });
        }
    }

    fn take_named(
        &mut self,
        request: &Request,
        keys: &[usize],
        frame: &Frame<'_>,
        context: &mut Context<'_>,
    ) {
        let locations = self.locations(request, keys, frame, context);
        if !matches!(request, Request::Pin(_)) {
            return;
        }
        for (key, location) in keys.iter().zip(locations) {
            if location.record_status() != Some(RecordStatus::Ok) {
                continue;
            }
            let generation = location.generation.get();
            let named = self.named.entry(*key).or_insert(Named { generation, pins: 0 });
            if named.generation != generation {
                assert!(context.pins_run_out || !context.is_alive, "a pinned key {key} was registered anew");
                *named = Named { generation, pins: 0 };
            }
            named.pins += 1;
        }
    }

    fn locations(
        &self,
        request: &Request,
        keys: &[usize],
        frame: &Frame<'_>,
        context: &mut Context<'_>,
    ) -> Vec<LocationRecord> {
        let locations = frame.records::<LocationRecord>().expect("locations are answered").to_vec();
        assert_eq!(locations.len(), keys.len(), "each key has a location, or a status that says why not");
        for location in &locations {
            let status = location.record_status().expect("the status is known");
            context.trace.note(context.now, Event::Record(request.opcode(), status, self.number));
        }
        locations
    }

    /// Compares its regions with those that the server says are its, and gives back what it knows nothing of.
    fn take_regions(&mut self, frame: &Frame<'_>) -> Vec<Request> {
        let regions = frame.records::<RegionRecord>().expect("regions are answered");
        let listed = regions.iter().map(|region| region.region_id.get()).collect::<BTreeSet<_>>();
        for region in self.regions.keys() {
            assert!(listed.contains(region), "client {} owns region {region}", self.number);
        }
        let unknown = listed.into_iter().filter(|region| !self.regions.contains_key(region));
        let unknown = unknown.collect::<Vec<_>>();
        self.returned.extend(&unknown);
        unknown.into_iter().map(Request::Return).collect()
    }
}
