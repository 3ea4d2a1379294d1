//! What the operations on keys do, once for callers that block and callers that await.

use std::sync::Arc;

use maru_proto::{KeyDigest, LocationRecord, RecordStatus, RegisterRecord};

use super::{Deleted, Pinned, Stored, Unpinned};
use crate::error::{Error, Result};
use crate::guard::{ChunkRef, Found, Prefix};
use crate::page::{PageLocation, PageMut};
use crate::rpc::Transport;
use crate::rpc::request::{Lookup, LookupKind, OnEach, Register, Verb};
use crate::shared::Shared;

/// What became of each chunk of a batch.
pub type StoredEach = Vec<Result<Stored, RecordStatus>>;

/// The operations of a handler over one of its connections.
pub(super) struct Operations<'a, T> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) transport: &'a T,
}

impl<T: Transport> Operations<'_, T> {
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
        let record = |(digest, page): (&KeyDigest, &PageMut)| RegisterRecord {
            digest: *digest,
            region_id: page.region_id().into(),
            length: u32::try_from(page.len()).expect("a page has less than 4 GiB").into(),
            offset: page.offset().into(),
        };
        let records = digests.iter().zip(&pages).map(record).collect::<Vec<_>>();
        let locations: Vec<PageLocation> =
            pages.into_iter().map(|page| page.into_location().location).collect();
        self.shared.own.submit(&locations)?;
        let request = Register { records: &records, pages: &locations };
        let statuses = match self.transport.call(&request).await {
            Ok(statuses) => statuses,
            Err(error) => {
                // The server said no to all of it; otherwise it is not known, and the pages stay in doubt.
                if matches!(error, Error::Refused { .. }) {
                    self.shared.own.settle(locations.into_iter().map(|page| (page, false)));
                }
                return Err(error);
            }
        };
        let stored = statuses.iter().map(|status| *status == RecordStatus::Ok);
        self.shared.own.settle(locations.into_iter().zip(stored));
        outcomes.extend(statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Ok(Stored::Stored),
            RecordStatus::Exists => Ok(Stored::AlreadyExists),
            other => Err(other),
        }));
        Ok(())
    }

    pub(super) async fn acquire(&self, digests: &[KeyDigest]) -> Result<Prefix> {
        // What was found so far is released where an error or a dropped future ends this.
        let mut found = Found::new(self.shared, digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::AcquirePrefix };
            let locations = self.transport.call(&request).await?;
            let pinned = locations.iter().take_while(|location| is_ok(location)).count();
            for (n, (digest, location)) in digests.iter().zip(&locations).take(pinned).enumerate() {
                match found.add(*digest, location) {
                    Ok(true) => {}
                    missing => {
                        // Neither this chunk nor what lies behind it can be read.
                        self.shared.release(digests[n..pinned].iter().copied());
                        missing?;
                        return Ok(found.into_prefix());
                    }
                }
            }
            if pinned < digests.len() {
                break;
            }
        }
        Ok(found.into_prefix())
    }

    pub(super) async fn retrieve(&self, digests: &[KeyDigest]) -> Result<Vec<Option<ChunkRef>>> {
        let mut chunks = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::AcquireEach };
            let locations = self.transport.call(&request).await?;
            let mut found = digests.iter().zip(&locations);
            while let Some((digest, location)) = found.next() {
                let guard = if is_ok(location) { self.guard(*digest, location) } else { Ok(None) };
                chunks.push(guard.inspect_err(|_| {
                    let pinned = found.by_ref().filter(|(_, location)| is_ok(location));
                    self.shared.release(pinned.map(|(digest, _)| *digest));
                })?);
            }
        }
        Ok(chunks)
    }

    /// A guard of a chunk that is pinned; where it can't be mapped the pin is released.
    fn guard(&self, digest: KeyDigest, location: &LocationRecord) -> Result<Option<ChunkRef>> {
        let mut found = Found::new(self.shared, 1);
        match found.add(digest, location) {
            Ok(true) => Ok(found.into_prefix().into_iter().next()),
            missing => {
                self.shared.release(std::iter::once(digest));
                missing.map(|_| None)
            }
        }
    }

    pub(super) async fn exists(&self, digests: &[KeyDigest]) -> Result<Vec<bool>> {
        let statuses = self.on_each(digests, Verb::Exists).await?;
        Ok(statuses.into_iter().map(|status| status == RecordStatus::Ok).collect())
    }

    pub(super) async fn pin(&self, digests: &[KeyDigest]) -> Result<Vec<Pinned>> {
        let mut outcomes = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::Pin };
            let locations = self.transport.call(&request).await?;
            outcomes.extend(locations.iter().map(|location| match location.record_status() {
                Some(RecordStatus::Ok) => Pinned::Pinned,
                Some(RecordStatus::PinLimit) => Pinned::PinLimit,
                Some(RecordStatus::Skipped) => Pinned::Skipped,
                _ => Pinned::NotFound,
            }));
            if outcomes.last() != Some(&Pinned::Pinned) {
                break;
            }
        }
        outcomes.resize(digests.len(), Pinned::Skipped);
        Ok(outcomes)
    }

    pub(super) async fn unpin(&self, digests: &[KeyDigest]) -> Result<Vec<Unpinned>> {
        let statuses = self.on_each(digests, Verb::Unpin).await?;
        let outcomes = statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Unpinned::Unpinned,
            RecordStatus::NotPinned => Unpinned::NotPinned,
            _ => Unpinned::NotFound,
        });
        Ok(outcomes.collect())
    }

    pub(super) async fn delete(&self, digests: &[KeyDigest]) -> Result<Vec<Deleted>> {
        let statuses = self.on_each(digests, Verb::Delete).await?;
        let outcomes = statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Deleted::Deleted,
            RecordStatus::Pinned => Deleted::Pinned,
            _ => Deleted::NotFound,
        });
        Ok(outcomes.collect())
    }

    async fn on_each(&self, digests: &[KeyDigest], verb: Verb) -> Result<Vec<RecordStatus>> {
        let mut statuses = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.records_per_frame::<KeyDigest>()) {
            statuses.extend(self.transport.call(&OnEach { digests, verb }).await?);
        }
        Ok(statuses)
    }
}

fn is_ok(location: &LocationRecord) -> bool {
    location.record_status() == Some(RecordStatus::Ok)
}
