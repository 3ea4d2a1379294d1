//! Keys: storing chunks, reading them, pinning and deleting them.

use std::sync::Arc;

use maru_proto::{KeyDigest, LocationRecord, RecordStatus, RegisterRecord};

use super::MaruHandler;
use crate::error::{Error, ProtocolError, Result};
use crate::explicit::Unpin;
use crate::guard::{ChunkRef, FoundChunk, Prefix};
use crate::key::AsKey;
use crate::page::{PageLocation, PageMut};
use crate::rpc::request::{Lookup, LookupKind, OnEach, Register, Verb};

/// What became of a chunk that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is there for everybody.
    Stored,
    /// The key had a chunk already, which stays; the page went back.
    AlreadyExists,
}

/// What became of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// The chunk is pinned, once more.
    Pinned,
    /// There is no such chunk.
    NotFound,
    /// The chunk has as many pins as the server allows.
    PinLimit,
    /// Not tried: an earlier key of the batch was not pinned.
    Skipped,
}

/// What became of an unpin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpinned {
    /// One pin less.
    Unpinned,
    /// This handler has no pin on the key.
    NotPinned,
    /// There is no such chunk.
    NotFound,
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// The chunk is gone; its page returns to its owner.
    Deleted,
    /// There is no such chunk.
    NotFound,
    /// Somebody reads it, so it stays.
    Pinned,
}

impl MaruHandler {
    /// Makes a chunk visible under a key: the first bytes of a page, as many as the page shows. The first writer of a key
    /// wins. On any outcome but [`Stored::Stored`] the page goes back; after a timeout once it is known what the server
    /// did with it.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::NotStored`], and those of any request.
    pub fn store(&self, key: impl AsKey, page: PageMut) -> Result<Stored> {
        let outcome = self.batch_store(&[key], vec![page])?.pop();
        outcome.ok_or(ProtocolError::Records { expected: 1 })?.map_err(Error::NotStored)
    }

    /// [`MaruHandler::store`] for many chunks; the pages of those that are not stored go back, also when a key comes twice.
    ///
    /// # Errors
    /// [`Error::BatchMismatch`] unless there is one page for each key; else those of [`MaruHandler::store`]. After an
    /// error the first chunks may be stored.
    pub fn batch_store(
        &self,
        keys: &[impl AsKey],
        pages: Vec<PageMut>,
    ) -> Result<Vec<Result<Stored, RecordStatus>>> {
        self.shared.check_open()?;
        if keys.len() != pages.len() {
            return Err(Error::BatchMismatch { keys: keys.len(), pages: pages.len() });
        }
        if let Some(foreign) = pages.iter().find(|page| !page.is_of(&self.shared)) {
            return Err(Error::RegionNotFound { region_id: foreign.region_id() });
        }
        let digests = self.digests(keys)?;
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut pages = pages.into_iter();
        for digests in digests.chunks(self.shared.connection.records_per_frame::<RegisterRecord>()) {
            let pages = pages.by_ref().take(digests.len()).collect::<Vec<_>>();
            outcomes.extend(self.register(digests, pages)?);
        }
        Ok(outcomes)
    }

    fn register(
        &self,
        digests: &[KeyDigest],
        pages: Vec<PageMut>,
    ) -> Result<impl Iterator<Item = Result<Stored, RecordStatus>> + use<>> {
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
        let statuses = match self.shared.connection.call(&Register { records: &records, pages: &locations }) {
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
        Ok(statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Ok(Stored::Stored),
            RecordStatus::Exists => Ok(Stored::AlreadyExists),
            other => Err(other),
        }))
    }

    /// Finds and pins the chunks of the longest prefix of the keys that is there, in one step, to be read in place. This
    /// is the way to read: what a guard holds can't be deleted, evicted or overwritten.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Map`], and those of any request; nothing stays pinned then.
    pub fn acquire(&self, keys: &[impl AsKey]) -> Result<Prefix> {
        self.shared.check_open()?;
        let digests = self.digests(keys)?;
        // What was found so far is released with it where an error ends the function.
        let mut found = Found::new(self, digests.len());
        for digests in digests.chunks(self.shared.connection.records_per_frame::<KeyDigest>()) {
            let request = Lookup { digests, kind: LookupKind::AcquirePrefix };
            let locations = self.shared.connection.call(&request)?;
            let pinned = locations.iter().take_while(|location| is_ok(location)).count();
            for (n, (digest, location)) in digests.iter().zip(&locations).take(pinned).enumerate() {
                match self.shared.find(*digest, location, false) {
                    Ok(Some(chunk)) => found.chunks.push(chunk),
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

    /// Finds and pins one chunk. A chunk that this handler has pinned by name is found without asking the server.
    ///
    /// # Errors
    /// Those of [`MaruHandler::acquire`].
    pub fn retrieve(&self, key: impl AsKey) -> Result<Option<ChunkRef>> {
        Ok(self.batch_retrieve(&[key])?.pop().flatten())
    }

    /// [`MaruHandler::retrieve`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::acquire`].
    pub fn batch_retrieve(&self, keys: &[impl AsKey]) -> Result<Vec<Option<ChunkRef>>> {
        self.shared.check_open()?;
        let digests = self.digests(keys)?;
        let mut chunks = Vec::with_capacity(digests.len());
        let mut asked = Vec::new();
        for (n, digest) in digests.iter().enumerate() {
            let leaning = self.shared.explicit.lean(*digest);
            chunks.push(match leaning {
                Some(location) => self.guard(*digest, &location, true)?,
                None => None,
            });
            if leaning.is_none() {
                asked.push((n, *digest));
            }
        }
        for asked in asked.chunks(self.shared.connection.records_per_frame::<KeyDigest>()) {
            let digests = asked.iter().map(|(_, digest)| *digest).collect::<Vec<_>>();
            let request = Lookup { digests: &digests, kind: LookupKind::AcquireEach };
            let locations = self.shared.connection.call(&request)?;
            let mut pinned = asked.iter().zip(&locations).filter(|(_, location)| is_ok(location));
            while let Some(((n, digest), location)) = pinned.next() {
                match self.guard(*digest, location, false) {
                    Ok(guard) => chunks[*n] = guard,
                    Err(error) => {
                        self.shared.release(pinned.map(|((_, digest), _)| *digest));
                        return Err(error);
                    }
                }
            }
        }
        Ok(chunks)
    }

    /// A guard of a chunk that is pinned; where it can't be mapped the pin is released.
    fn guard(&self, digest: KeyDigest, location: &LocationRecord, leans: bool) -> Result<Option<ChunkRef>> {
        match self.shared.find(digest, location, leans) {
            Ok(Some(chunk)) => Ok(Some(ChunkRef::single(Arc::clone(&self.shared), chunk))),
            missing => {
                if leans {
                    let pins = self.shared.explicit.straighten(digest);
                    self.shared.release((0..pins).map(|_| digest));
                } else {
                    self.shared.release(std::iter::once(digest));
                }
                missing.map(|_| None)
            }
        }
    }

    /// Whether a key has a chunk at this moment.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request: what is not known is never an answer.
    pub fn exists(&self, key: impl AsKey) -> Result<bool> {
        Ok(self.on_each(&[key], Verb::Exists)?.contains(&RecordStatus::Ok))
    }

    /// [`MaruHandler::exists`] for many keys.
    ///
    /// # Errors
    /// Those of [`MaruHandler::exists`].
    pub fn batch_exists(&self, keys: &[impl AsKey]) -> Result<Vec<bool>> {
        let statuses = self.on_each(keys, Verb::Exists)?;
        Ok(statuses.into_iter().map(|status| status == RecordStatus::Ok).collect())
    }

    /// Pins a chunk by name, once more, until [`MaruHandler::unpin_kv`] or the end of the instance. For reading,
    /// [`MaruHandler::acquire`] is safer: its guards can't be forgotten.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn pin_kv(&self, key: impl AsKey) -> Result<Pinned> {
        let outcome = self.batch_pin_kv(&[key])?.pop();
        Ok(outcome.ok_or(ProtocolError::Records { expected: 1 })?)
    }

    /// [`MaruHandler::pin_kv`] for many keys, up to the first that is not pinned.
    ///
    /// # Errors
    /// Those of [`MaruHandler::pin_kv`]; what was pinned before an error stays so.
    pub fn batch_pin_kv(&self, keys: &[impl AsKey]) -> Result<Vec<Pinned>> {
        self.shared.check_open()?;
        let digests = self.digests(keys)?;
        let mut outcomes = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.connection.records_per_frame::<KeyDigest>()) {
            let locations = self.shared.connection.call(&Lookup { digests, kind: LookupKind::Pin })?;
            for (digest, location) in digests.iter().zip(&locations) {
                outcomes.push(match location.record_status() {
                    Some(RecordStatus::Ok) => {
                        self.shared.explicit.add(*digest, *location);
                        Pinned::Pinned
                    }
                    Some(RecordStatus::PinLimit) => Pinned::PinLimit,
                    Some(RecordStatus::Skipped) => Pinned::Skipped,
                    _ => Pinned::NotFound,
                });
            }
            if outcomes.last() != Some(&Pinned::Pinned) {
                break;
            }
        }
        outcomes.resize(digests.len(), Pinned::Skipped);
        Ok(outcomes)
    }

    /// Gives back one pin that was taken by name. Guards keep their own pins, and one that leans on this pin keeps it
    /// until it is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn unpin_kv(&self, key: impl AsKey) -> Result<Unpinned> {
        let outcome = self.batch_unpin_kv(&[key])?.pop();
        Ok(outcome.ok_or(ProtocolError::Records { expected: 1 })?)
    }

    /// [`MaruHandler::unpin_kv`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::unpin_kv`].
    pub fn batch_unpin_kv(&self, keys: &[impl AsKey]) -> Result<Vec<Unpinned>> {
        self.shared.check_open()?;
        let digests = self.digests(keys)?;
        let plans = digests.iter().map(|digest| self.shared.explicit.unpin(*digest)).collect::<Vec<_>>();
        let released = digests.iter().zip(&plans).filter(|(_, plan)| **plan == Unpin::Release);
        let released = released.map(|(digest, _)| *digest).collect::<Vec<_>>();
        let mut statuses = self.statuses(&released, Verb::Unpin)?.into_iter();
        let outcomes = plans.into_iter().map(|plan| match plan {
            Unpin::NotPinned => Unpinned::NotPinned,
            Unpin::Deferred => Unpinned::Unpinned,
            Unpin::Release => match statuses.next() {
                Some(RecordStatus::Ok) => Unpinned::Unpinned,
                Some(RecordStatus::NotPinned) => Unpinned::NotPinned,
                _ => Unpinned::NotFound,
            },
        });
        Ok(outcomes.collect())
    }

    /// Deletes a chunk, whoever stored it, unless somebody reads it.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn delete(&self, key: impl AsKey) -> Result<Deleted> {
        let outcome = self.batch_delete(&[key])?.pop();
        Ok(outcome.ok_or(ProtocolError::Records { expected: 1 })?)
    }

    /// [`MaruHandler::delete`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::delete`].
    pub fn batch_delete(&self, keys: &[impl AsKey]) -> Result<Vec<Deleted>> {
        let statuses = self.on_each(keys, Verb::Delete)?;
        let outcomes = statuses.into_iter().map(|status| match status {
            RecordStatus::Ok => Deleted::Deleted,
            RecordStatus::Pinned => Deleted::Pinned,
            _ => Deleted::NotFound,
        });
        Ok(outcomes.collect())
    }

    fn on_each(&self, keys: &[impl AsKey], verb: Verb) -> Result<Vec<RecordStatus>> {
        self.shared.check_open()?;
        self.statuses(&self.digests(keys)?, verb)
    }

    fn statuses(&self, digests: &[KeyDigest], verb: Verb) -> Result<Vec<RecordStatus>> {
        let mut statuses = Vec::with_capacity(digests.len());
        for digests in digests.chunks(self.shared.connection.records_per_frame::<KeyDigest>()) {
            statuses.extend(self.shared.connection.call(&OnEach { digests, verb })?);
        }
        Ok(statuses)
    }
}

fn is_ok(location: &LocationRecord) -> bool {
    location.record_status() == Some(RecordStatus::Ok)
}

/// Chunks on their way into a prefix, released if they do not get there.
struct Found<'a> {
    handler: &'a MaruHandler,
    chunks: Vec<FoundChunk>,
}

impl<'a> Found<'a> {
    fn new(handler: &'a MaruHandler, most: usize) -> Found<'a> {
        Found { handler, chunks: Vec::with_capacity(most.min(1024)) }
    }

    fn into_prefix(mut self) -> Prefix {
        Prefix::new(Arc::clone(&self.handler.shared), std::mem::take(&mut self.chunks))
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        self.handler.shared.release(self.chunks.iter().map(|chunk| chunk.digest));
    }
}
