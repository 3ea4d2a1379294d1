//! Operations on keys for callers that block: each is one request on the caller's own thread.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use maru_proto::{ClientOperation, KeyDigest};

use super::MaruHandler;
use super::operations::{Blocking, Operations, StoredEach};
use crate::error::{Error, ProtocolError, Result};
use crate::guard::{ChunkRef, Prefix};
use crate::key::AsKey;
use crate::page::PageMut;

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
        let stored = self.batch_store(&[key], vec![page])?;
        only(stored)?.map_err(Error::NotStored)
    }

    /// [`MaruHandler::store`] for many chunks; the pages of those that are not stored go back, also when a key comes twice.
    ///
    /// # Errors
    /// [`Error::BatchMismatch`] unless there is one page for each key; else those of [`MaruHandler::store`]. After an
    /// error the first chunks may be stored.
    pub fn batch_store(&self, keys: &[impl AsKey], pages: Vec<PageMut>) -> Result<StoredEach> {
        self.timed(ClientOperation::Store, || {
            let digests = self.check_store(keys, &pages)?;
            now(self.blocking().store(&digests, pages))
        })
    }

    /// The digests of a batch whose keys and pages fit each other.
    pub(super) fn check_store(&self, keys: &[impl AsKey], pages: &[PageMut]) -> Result<Vec<KeyDigest>> {
        if keys.len() != pages.len() {
            return Err(Error::BatchMismatch { keys: keys.len(), pages: pages.len() });
        }
        if let Some(foreign) = pages.iter().find(|page| !page.is_of(&self.shared)) {
            return Err(Error::RegionNotFound { region_id: foreign.region_id() });
        }
        self.open_digests(keys)
    }

    /// Finds and pins the chunks of the longest prefix of the keys that is there, in one step, to be read in place. This
    /// is the way to read: what a guard holds can't be deleted, evicted or overwritten.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Map`], and those of any request; nothing stays pinned then.
    pub fn acquire(&self, keys: &[impl AsKey]) -> Result<Prefix> {
        self.timed(ClientOperation::Acquire, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().acquire(&digests))
        })
    }

    /// Whether a key has a chunk at this moment.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request: what is not known is never an answer.
    pub fn exists(&self, key: impl AsKey) -> Result<bool> {
        only(self.batch_exists(&[key])?)
    }

    /// [`MaruHandler::exists`] for many keys.
    ///
    /// # Errors
    /// Those of [`MaruHandler::exists`].
    pub fn batch_exists(&self, keys: &[impl AsKey]) -> Result<Vec<bool>> {
        self.timed(ClientOperation::Exists, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().exists(&digests))
        })
    }

    /// Finds and pins one chunk.
    ///
    /// # Errors
    /// Those of [`MaruHandler::acquire`].
    pub fn retrieve(&self, key: impl AsKey) -> Result<Option<ChunkRef>> {
        only(self.batch_retrieve(&[key])?)
    }

    /// [`MaruHandler::retrieve`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::acquire`].
    pub fn batch_retrieve(&self, keys: &[impl AsKey]) -> Result<Vec<Option<ChunkRef>>> {
        self.timed(ClientOperation::Retrieve, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().retrieve(&digests))
        })
    }

    /// Pins a chunk by name, once more, until [`MaruHandler::unpin_kv`], the end of the instance, or the end of the time
    /// that the server gives such pins, 10 minutes by default, after the last of this instance's on the chunk. For
    /// reading, [`MaruHandler::acquire`] is safer: its guards can't be forgotten, and last as long as they live.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn pin_kv(&self, key: impl AsKey) -> Result<Pinned> {
        only(self.batch_pin_kv(&[key])?)
    }

    /// [`MaruHandler::pin_kv`] for many keys, up to the first that is not pinned.
    ///
    /// # Errors
    /// Those of [`MaruHandler::pin_kv`]; what was pinned before an error stays so.
    pub fn batch_pin_kv(&self, keys: &[impl AsKey]) -> Result<Vec<Pinned>> {
        self.timed(ClientOperation::Pin, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().pin(&digests))
        })
    }

    /// Gives back one pin that was taken by name. Guards keep their own pins.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn unpin_kv(&self, key: impl AsKey) -> Result<Unpinned> {
        only(self.batch_unpin_kv(&[key])?)
    }

    /// [`MaruHandler::unpin_kv`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::unpin_kv`].
    pub fn batch_unpin_kv(&self, keys: &[impl AsKey]) -> Result<Vec<Unpinned>> {
        self.timed(ClientOperation::Unpin, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().unpin(&digests))
        })
    }

    /// Deletes a chunk, whoever stored it, unless somebody reads it.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of any request.
    pub fn delete(&self, key: impl AsKey) -> Result<Deleted> {
        only(self.batch_delete(&[key])?)
    }

    /// [`MaruHandler::delete`] for many keys, each for itself.
    ///
    /// # Errors
    /// Those of [`MaruHandler::delete`].
    pub fn batch_delete(&self, keys: &[impl AsKey]) -> Result<Vec<Deleted>> {
        self.timed(ClientOperation::Delete, || {
            let digests = self.open_digests(keys)?;
            now(self.blocking().delete(&digests))
        })
    }

    fn blocking(&self) -> Operations<'_, Blocking> {
        Operations::new(&self.shared)
    }

    /// The digests of keys, for a handler that is open.
    pub(super) fn open_digests(&self, keys: &[impl AsKey]) -> Result<Vec<KeyDigest>> {
        self.shared.check_open()?;
        self.digests(keys)
    }
}

/// The outcome of a batch of one.
pub(super) fn only<T>(mut outcomes: Vec<T>) -> Result<T> {
    outcomes.pop().ok_or(Error::Protocol(ProtocolError::Records { expected: 1 }))
}

/// The outcome of an operation over the blocking connection, which never has to be polled twice.
fn now<T>(operation: impl Future<Output = T>) -> T {
    match pin!(operation).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => unreachable!("the blocking connection answers at the first poll"),
    }
}
