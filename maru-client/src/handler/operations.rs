//! What the operations on keys do, once for callers that block and callers that await.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use maru_proto::{KeyDigest, LocationRecord, RecordStatus, RegisterRecord};

use super::{Deleted, Pinned, Stored, Unpinned};
use crate::error::{Error, Result};
use crate::guard::{ChunkRef, Found, Prefix};
use crate::page::{PageLocation, PageMut};
use crate::pins::PinKind;
use crate::rpc::request::{Lookup, LookupKind, OnEach, Register, Verb};
use crate::rpc::{Connection, Pipelined, Transport};
use crate::session::Link;
use crate::shared::{Shared, retry};
use crate::sync::lock;

/// What became of each chunk of a batch.
pub type StoredEach = Vec<Result<Stored, RecordStatus>>;

/// How a caller waits.
pub(super) trait Way {
    /// The connection that it uses.
    type Transport: Transport;

    /// Its connection.
    fn transport(link: &Link) -> Result<&Self::Transport>;

    /// Waits until the session has gone on after these connections were lost.
    fn next_link(shared: &Shared, lost: u32) -> impl Future<Output = Result<()>> + Send;
}

/// For callers that block: nothing is ever pending.
pub(super) struct Blocking;

impl Way for Blocking {
    type Transport = Connection;

    fn transport(link: &Link) -> Result<&Connection> {
        Ok(&link.connection)
    }

    fn next_link(shared: &Shared, lost: u32) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(shared.wait_for_next(lost))
    }
}

/// For callers that await.
pub(super) struct Awaiting;

impl Way for Awaiting {
    type Transport = Pipelined;

    fn transport(link: &Link) -> Result<&Pipelined> {
        link.pipelined()
    }

    fn next_link(shared: &Shared, lost: u32) -> impl Future<Output = Result<()>> + Send {
        shared.next_link(lost)
    }
}

/// The operations of a handler, for one kind of callers.
pub(super) struct Operations<'a, W> {
    shared: &'a Arc<Shared>,
    way: PhantomData<W>,
}

/// Does something on the session's connections as often as the session goes on under it.
macro_rules! on_link {
    ($self:ident, $link:ident => $attempt:expr) => {
        retry!($self.shared, $link => $attempt.await, lost => W::next_link($self.shared, lost).await)
    };
}

impl<'a, W: Way> Operations<'a, W> {
    pub(super) fn new(shared: &'a Arc<Shared>) -> Operations<'a, W> {
        Operations { shared, way: PhantomData }
    }

    pub(super) async fn store(&self, digests: &[KeyDigest], pages: Vec<PageMut>) -> Result<StoredEach> {
        let mut outcomes = Vec::with_capacity(digests.len());
        let mut pages = pages.into_iter();
        for digests in digests.chunks(self.shared.records_per_frame::<RegisterRecord>()) {
            let pages = pages.by_ref().take(digests.len()).collect::<Vec<_>>();
            self.register(digests, pages, &mut outcomes).await?;
        }
        Ok(outcomes)
    }

    async fn register(
        &self,
        digests: &[KeyDigest],
        pages: Vec<PageMut>,
        outcomes: &mut StoredEach,
    ) -> Result<()> {
        let record = |(digest, page): (&KeyDigest, &PageMut)| {
            let checksum = if self.shared.config.checksum { maru_proto::checksum(page) } else { 0 };
            page.write_back();
            RegisterRecord {
                digest: *digest,
                region_id: page.region_id().into(),
                length: u32::try_from(page.len()).expect("a page has less than 4 GiB").into(),
                page_index: page.page_index().into(),
                checksum: checksum.into(),
            }
        };
        let records = digests.iter().zip(&pages).map(record).collect::<Vec<_>>();
        let locations: Vec<PageLocation> =
            pages.into_iter().map(|page| page.into_location().location).collect();
        self.shared.own.submit(&locations)?;
        let mut unsettled = Unsettled { shared: self.shared, pages: &[] };
        let outcome = on_link!(self, link => self.register_on(&link, &records, &locations, &mut unsettled));
        let statuses = match outcome {
            Ok(statuses) => statuses,
            Err(error) => {
                // The server said no to all of it; otherwise it is not known, and the pages stay in doubt.
                if matches!(error, Error::Refused { .. }) {
                    unsettled.pages = &[];
                    self.shared.own.settle(locations.iter().map(|page| (*page, false)));
                } else if matches!(error, Error::SessionEnded) {
                    // Nobody can tell any more.
                    unsettled.pages = &[];
                }
                return Err(error);
            }
        };
        unsettled.pages = &[];
        let stored = statuses.iter().map(|status| *status == RecordStatus::Ok);
        self.shared.own.settle(locations.iter().copied().zip(stored));
        outcomes.extend(statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Ok(Stored::Stored),
            RecordStatus::Exists => Ok(Stored::AlreadyExists),
            other => Err(other),
        }));
        Ok(())
    }

    /// Registers pages. Where the answer was lost on earlier connections, asks first which of them are stored.
    async fn register_on<'p>(
        &self,
        link: &Link,
        records: &[RegisterRecord],
        pages: &'p [PageLocation],
        unsettled: &mut Unsettled<'_, 'p>,
    ) -> Result<Vec<RecordStatus>> {
        if unsettled.pages.is_empty() {
            return self.send_register(link, &Register { records, pages }, pages, unsettled).await;
        }
        let mut statuses = vec![RecordStatus::Ok; pages.len()];
        let mut left = Vec::new();
        for (n, page) in pages.iter().enumerate() {
            // This is rare and short, so that callers who await block for it as well.
            if self.shared.holds_page(link, *page)? {
                left.push(n);
            }
        }
        let records_left = left.iter().map(|n| records[*n]).collect::<Vec<_>>();
        let pages_left = left.iter().map(|n| pages[*n]).collect::<Vec<_>>();
        self.shared.own.resubmit(&pages_left)?;
        unsettled.pages = &[];
        if !left.is_empty() {
            let request = Register { records: &records_left, pages: &pages_left };
            let answer = self.send_register(link, &request, pages, unsettled).await?;
            left.into_iter().zip(answer).for_each(|(n, status)| statuses[n] = status);
        }
        Ok(statuses)
    }

    async fn send_register<'p>(
        &self,
        link: &Link,
        request: &Register<'_>,
        pages: &'p [PageLocation],
        unsettled: &mut Unsettled<'_, 'p>,
    ) -> Result<Vec<RecordStatus>> {
        let answer = match W::transport(link) {
            Ok(transport) => transport.call(request).await,
            Err(error) => Err(error),
        };
        if matches!(answer, Err(Error::ConnectionLost)) {
            unsettled.pages = pages;
        }
        answer
    }

    pub(super) async fn acquire(&self, digests: &[KeyDigest]) -> Result<Prefix> {
        on_link!(self, link => self.acquire_on(&link, digests))
    }

    async fn acquire_on(&self, link: &Link, digests: &[KeyDigest]) -> Result<Prefix> {
        // What was found so far is released where an error or a dropped future ends this.
        let mut found = Found::new(self.shared, link.number, digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::AcquirePrefix };
            let locations = W::transport(link)?.call(&request).await?;
            let pinned = locations.iter().take_while(|location| is_ok(location)).count();
            for (n, (digest, location)) in digests.iter().zip(&locations).take(pinned).enumerate() {
                match found.add(*digest, location) {
                    Ok(true) => {}
                    missing => {
                        // Neither this chunk nor what lies behind it can be read.
                        self.release(link, &digests[n..pinned], &locations[n..pinned]);
                        missing?;
                        return found.into_prefix();
                    }
                }
            }
            if pinned < digests.len() {
                break;
            }
        }
        found.into_prefix()
    }

    pub(super) async fn retrieve(&self, digests: &[KeyDigest]) -> Result<Vec<Option<ChunkRef>>> {
        on_link!(self, link => self.retrieve_on(&link, digests))
    }

    async fn retrieve_on(&self, link: &Link, digests: &[KeyDigest]) -> Result<Vec<Option<ChunkRef>>> {
        // As in `acquire_on`; all chunks are one group, so that many cost few allocations.
        let mut found = Found::new(self.shared, link.number, digests.len());
        let mut is_found = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::AcquireEach };
            let locations = W::transport(link)?.call(&request).await?;
            for (n, (digest, location)) in digests.iter().zip(&locations).enumerate() {
                let added = if is_ok(location) { found.add(*digest, location) } else { Ok(false) };
                match added {
                    // Its region is gone.
                    Ok(false) if is_ok(location) => self.release(link, &digests[n..=n], &locations[n..=n]),
                    Ok(_) => {}
                    Err(error) => {
                        self.release(link, &digests[n..], &locations[n..]);
                        return Err(error);
                    }
                }
                is_found.push(matches!(added, Ok(true)));
            }
        }
        let mut guards = found.into_prefix()?.into_iter();
        Ok(is_found.into_iter().map(|is_found| if is_found { guards.next() } else { None }).collect())
    }

    /// Gives the pins of a part of an answer back.
    fn release(&self, link: &Link, digests: &[KeyDigest], locations: &[LocationRecord]) {
        let pinned = digests.iter().zip(locations).filter(|(_, location)| is_ok(location));
        self.shared.release(pinned.map(|(digest, _)| (link.number, *digest)));
    }

    pub(super) async fn exists(&self, digests: &[KeyDigest]) -> Result<Vec<bool>> {
        let statuses = on_link!(self, link => self.on_each(&link, digests, Verb::Exists))?;
        Ok(statuses.into_iter().map(|status| status == RecordStatus::Ok).collect())
    }

    pub(super) async fn pin(&self, digests: &[KeyDigest]) -> Result<Vec<Pinned>> {
        let mut outcomes = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            outcomes.extend(on_link!(self, link => self.pin_on(&link, digests))?);
            if outcomes.last() != Some(&Pinned::Pinned) {
                break;
            }
        }
        outcomes.resize(digests.len(), Pinned::Skipped);
        Ok(outcomes)
    }

    async fn pin_on(&self, link: &Link, digests: &[KeyDigest]) -> Result<Vec<Pinned>> {
        let request = Lookup { digests, kind: LookupKind::Pin };
        let locations = W::transport(link)?.call(&request).await?;
        let pinned = digests.iter().zip(&locations).filter(|(_, location)| is_ok(location));
        let pinned = pinned.map(|(digest, location)| (*digest, location.generation.get()));
        if !self.shared.pins.add_named(link.number, pinned) {
            return Err(Error::ConnectionLost);
        }
        let outcome = |location: &LocationRecord| match location.record_status() {
            Some(RecordStatus::Ok) => Pinned::Pinned,
            Some(RecordStatus::PinLimit) => Pinned::PinLimit,
            Some(RecordStatus::Skipped) => Pinned::Skipped,
            _ => Pinned::NotFound,
        };
        Ok(locations.iter().map(outcome).collect())
    }

    pub(super) async fn unpin(&self, digests: &[KeyDigest]) -> Result<Vec<Unpinned>> {
        let (told_on, taken) = self.shared.pins.take_named(digests);
        let released = digests.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(digest, _)| *digest);
        let released = released.collect::<Vec<_>>();
        let link = self.shared.link();
        // Where the session is going on, the connections before would take a pin that the next were told of.
        let answer = match link.number == told_on {
            true => self.on_each(&link, &released, Verb::Unpin).await,
            false => Err(Error::ConnectionLost),
        };
        let statuses = match answer {
            Err(Error::ConnectionLost) => {
                // What the server is told of on these connections is released on them, what it is not as the session goes on.
                self.shared.pins.release(PinKind::Named, released.iter().map(|digest| (told_on, *digest)));
                W::next_link(self.shared, told_on).await?;
                vec![RecordStatus::Ok; released.len()]
            }
            answered => answered?,
        };
        let mut statuses = released.into_iter().zip(statuses);
        let outcomes = taken.into_iter().map(|taken| match taken.then(|| statuses.next()).flatten() {
            None => Unpinned::NotPinned,
            Some((_, RecordStatus::Ok)) => Unpinned::Unpinned,
            Some((digest, status)) => {
                // Its time was over.
                self.shared.pins.expired(digest);
                if status == RecordStatus::NotPinned { Unpinned::NotPinned } else { Unpinned::NotFound }
            }
        });
        Ok(outcomes.collect())
    }

    pub(super) async fn delete(&self, digests: &[KeyDigest]) -> Result<Vec<Deleted>> {
        let statuses = on_link!(self, link => self.on_each(&link, digests, Verb::Delete))?;
        let outcomes = statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Deleted::Deleted,
            RecordStatus::Pinned => Deleted::Pinned,
            _ => Deleted::NotFound,
        });
        Ok(outcomes.collect())
    }

    async fn on_each(&self, link: &Link, digests: &[KeyDigest], verb: Verb) -> Result<Vec<RecordStatus>> {
        let mut statuses = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            statuses.extend(W::transport(link)?.call(&OnEach { digests, verb }).await?);
        }
        Ok(statuses)
    }
}

/// Pages of a store whose answer was lost; where its caller gives up, the handler's thread finds out what became of them.
struct Unsettled<'a, 'p> {
    shared: &'a Shared,
    pages: &'p [PageLocation],
}

impl Drop for Unsettled<'_, '_> {
    fn drop(&mut self) {
        if !self.pages.is_empty() {
            lock(&self.shared.unsettled).extend(self.pages);
            self.shared.bell.ring();
        }
    }
}

fn is_ok(location: &LocationRecord) -> bool {
    location.record_status() == Some(RecordStatus::Ok)
}
