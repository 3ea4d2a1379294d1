//! The same operations for callers that await, under any executor.
//!
//! Each future is `Send` and owns what it needs, so it can be spawned. Many may be under way: they share one connection.
//! Dropping a future gives up on its answer and nothing else: pages, pins and answers that nobody waits for are given back.

use std::future::Future;
use std::pin::Pin;

use maru_proto::ClientOperation;

use super::MaruHandler;
use super::keys::only;
use super::operations::{Awaiting, Operations, StoredEach};
use super::{Deleted, Pinned, Stored, Unpinned};
use crate::error::{Error, Result};
use crate::guard::{ChunkRef, Prefix};
use crate::key::AsKey;
use crate::page::PageMut;
use crate::rpc::Transport;
use crate::rpc::request::GetStats;
use crate::shared::retry;
use crate::stats::ServerStats;

/// An operation under way.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl MaruHandler {
    /// [`MaruHandler::alloc`], without blocking the caller's thread while memory is got from the server: that is left to
    /// a thread of its own.
    pub fn alloc_async(&self, length: usize) -> Pending<PageMut> {
        let handler = self.clone();
        self.timed_async(ClientOperation::Alloc, async move {
            if let Some(page) = handler.alloc_free(length)? {
                return Ok(page);
            }
            let (sender, receiver) = tokio::sync::oneshot::channel();
            std::thread::Builder::new()
                .name("maru-alloc".to_owned())
                // A page that nobody waits for any more goes back as it is dropped.
                .spawn(move || drop(sender.send(handler.get_page(length))))
                .map_err(|source| Error::Io { what: "start a thread for an allocation", source })?;
            receiver.await.unwrap_or(Err(Error::Closed))
        })
    }

    /// [`MaruHandler::store`] for who awaits.
    pub fn store_async(&self, key: impl AsKey, page: PageMut) -> Pending<Stored> {
        let stored = self.batch_store_async(&[key], vec![page]);
        Box::pin(async move { only(stored.await?)?.map_err(Error::NotStored) })
    }

    /// [`MaruHandler::batch_store`] for who awaits.
    pub fn batch_store_async(&self, keys: &[impl AsKey], pages: Vec<PageMut>) -> Pending<StoredEach> {
        let (handler, digests) = (self.clone(), self.check_store(keys, &pages));
        self.timed_async(
            ClientOperation::Store,
            async move { handler.awaiting().store(&digests?, pages).await },
        )
    }

    /// [`MaruHandler::acquire`] for who awaits.
    pub fn acquire_async(&self, keys: &[impl AsKey]) -> Pending<Prefix> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(ClientOperation::Acquire, async move { handler.awaiting().acquire(&digests?).await })
    }

    /// [`MaruHandler::exists`] for who awaits.
    pub fn exists_async(&self, key: impl AsKey) -> Pending<bool> {
        let outcomes = self.batch_exists_async(&[key]);
        Box::pin(async move { only(outcomes.await?) })
    }

    /// [`MaruHandler::batch_exists`] for who awaits.
    pub fn batch_exists_async(&self, keys: &[impl AsKey]) -> Pending<Vec<bool>> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(ClientOperation::Exists, async move { handler.awaiting().exists(&digests?).await })
    }

    /// [`MaruHandler::retrieve`] for who awaits.
    pub fn retrieve_async(&self, key: impl AsKey) -> Pending<Option<ChunkRef>> {
        let outcomes = self.batch_retrieve_async(&[key]);
        Box::pin(async move { only(outcomes.await?) })
    }

    /// [`MaruHandler::batch_retrieve`] for who awaits.
    pub fn batch_retrieve_async(&self, keys: &[impl AsKey]) -> Pending<Vec<Option<ChunkRef>>> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(
            ClientOperation::Retrieve,
            async move { handler.awaiting().retrieve(&digests?).await },
        )
    }

    /// [`MaruHandler::pin_kv`] for who awaits.
    pub fn pin_kv_async(&self, key: impl AsKey) -> Pending<Pinned> {
        let outcomes = self.batch_pin_kv_async(&[key]);
        Box::pin(async move { only(outcomes.await?) })
    }

    /// [`MaruHandler::batch_pin_kv`] for who awaits.
    pub fn batch_pin_kv_async(&self, keys: &[impl AsKey]) -> Pending<Vec<Pinned>> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(ClientOperation::Pin, async move { handler.awaiting().pin(&digests?).await })
    }

    /// [`MaruHandler::unpin_kv`] for who awaits.
    pub fn unpin_kv_async(&self, key: impl AsKey) -> Pending<Unpinned> {
        let outcomes = self.batch_unpin_kv_async(&[key]);
        Box::pin(async move { only(outcomes.await?) })
    }

    /// [`MaruHandler::batch_unpin_kv`] for who awaits.
    pub fn batch_unpin_kv_async(&self, keys: &[impl AsKey]) -> Pending<Vec<Unpinned>> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(ClientOperation::Unpin, async move { handler.awaiting().unpin(&digests?).await })
    }

    /// [`MaruHandler::delete`] for who awaits.
    pub fn delete_async(&self, key: impl AsKey) -> Pending<Deleted> {
        let outcomes = self.batch_delete_async(&[key]);
        Box::pin(async move { only(outcomes.await?) })
    }

    /// [`MaruHandler::batch_delete`] for who awaits.
    pub fn batch_delete_async(&self, keys: &[impl AsKey]) -> Pending<Vec<Deleted>> {
        let (handler, digests) = (self.clone(), self.open_digests(keys));
        self.timed_async(ClientOperation::Delete, async move { handler.awaiting().delete(&digests?).await })
    }

    /// [`MaruHandler::stats`] for who awaits.
    pub fn stats_async(&self) -> Pending<ServerStats> {
        let handler = self.clone();
        Box::pin(async move {
            let shared = &handler.shared;
            shared.check_open()?;
            let stats = retry!(
                shared,
                link => match link.pipelined() {
                    Ok(pipelined) => pipelined.call(&GetStats([])).await,
                    Err(error) => Err(error),
                },
                lost => shared.next_link(lost).await
            );
            stats.map(ServerStats::new)
        })
    }

    fn awaiting(&self) -> Operations<'_, Awaiting> {
        Operations::new(&self.shared)
    }
}
