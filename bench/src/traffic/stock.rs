//! Pages and entries of one connection's own, for operations that use them up.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use maru_proto::{KeyDigest, Opcode, RecordStatus, RegisterRecord};

use super::keys::KeySpace;
use super::wire_client::{WireClient, in_batches, reclaim, register_record, request_region, return_region};
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::mix::mix;

/// A region of the connection's instance, and what is in it.
#[derive(Debug)]
pub(crate) struct Stock {
    region: u32,
    pages: u32,
    /// Pages that can be registered.
    free: Vec<u32>,
    /// Entries that can be deleted, the oldest first.
    registered: VecDeque<KeyDigest>,
    /// Numbers the keys, so that none comes twice.
    next: u64,
    most: usize,
}

impl Stock {
    /// A region of so many pages, all of them free.
    ///
    /// # Errors
    /// [`BenchError`] where the server has none.
    pub(crate) fn new(client: &mut WireClient, seed: u64, pages: u32) -> Result<Stock, BenchError> {
        let region = request_region(&mut client.channel, u64::from(pages))?;
        let most = client.max_records();
        let free = (0..pages).rev().collect();
        Ok(Stock { region, pages, free, registered: VecDeque::new(), next: mix(seed), most })
    }

    /// Whether so many pages can be registered.
    pub(crate) fn can_register(&self, count: usize) -> bool {
        self.free.len() >= count
    }

    /// Whether so many entries can be deleted.
    pub(crate) fn can_delete(&self, count: usize) -> bool {
        self.registered.len() >= count
    }

    /// Records that make so many free pages entries under new keys.
    pub(crate) fn register(&mut self, count: usize, records: &mut Vec<RegisterRecord>) {
        for page in self.free.drain(self.free.len() - count..) {
            self.next += 1;
            let halves = [mix(self.next), mix(!self.next)];
            let digest = KeyDigest::from_bytes(zerocopy::transmute!(halves));
            self.registered.push_back(digest);
            records.push(register_record(digest, self.region, page));
        }
    }

    /// The digests of so many entries, which are deleted by them.
    pub(crate) fn delete(&mut self, count: usize, digests: &mut Vec<KeyDigest>) {
        digests.extend(self.registered.drain(..count));
    }

    /// Deletes all entries and takes the pages back.
    ///
    /// # Errors
    /// [`BenchError`] where the server refuses that.
    pub(crate) fn empty(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        let digests = self.registered.drain(..).collect::<Vec<_>>();
        in_batches(channel, Opcode::BatchDeleteKv, &digests, self.most, |status| status == RecordStatus::Ok)?;
        self.take_back(channel)
    }

    /// Takes freed pages back and makes all pages entries.
    ///
    /// # Errors
    /// [`BenchError`] where the server refuses that.
    pub(crate) fn fill(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        self.take_back(channel)?;
        let mut records = Vec::with_capacity(self.free.len());
        self.register(self.free.len(), &mut records);
        in_batches(channel, Opcode::BatchRegisterKv, &records, self.most, |status| status == RecordStatus::Ok)
    }

    /// Deletes all entries and gives the region back.
    ///
    /// # Errors
    /// [`BenchError`] where the server refuses that.
    pub(crate) fn give_back(mut self, channel: &mut Channel) -> Result<(), BenchError> {
        self.empty(channel)?;
        return_region(channel, self.region)
    }

    fn take_back(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        loop {
            let pages = reclaim(channel, self.region, self.pages)?;
            if pages.is_empty() {
                return Ok(());
            }
            self.free.extend(pages.into_iter().rev());
        }
    }
}

/// Entries that all connections ask for.
#[derive(Debug)]
pub(crate) struct Population {
    client: WireClient,
    region: u32,
    keys: Arc<KeySpace>,
}

impl Population {
    /// Fills a region with the entries of so many keys.
    ///
    /// # Errors
    /// [`BenchError`] where the server has no room for them.
    pub(crate) fn new(socket: &Path, count: u32) -> Result<Population, BenchError> {
        let mut client = WireClient::connect(socket)?;
        let keys = KeySpace::new(&client.hello.digest_key, u64::from(count));
        let region = request_region(&mut client.channel, u64::from(count))?;
        let records = keys.digests().iter().zip(0..);
        let records = records.map(|(&digest, page)| register_record(digest, region, page));
        let most = client.max_records();
        in_batches(
            &mut client.channel,
            Opcode::BatchRegisterKv,
            &records.collect::<Vec<_>>(),
            most,
            |status| {
                // On a server that others use as well, an earlier run may have left its keys.
                matches!(status, RecordStatus::Ok | RecordStatus::Exists)
            },
        )?;
        Ok(Population { client, region, keys: Arc::new(keys) })
    }

    /// The keys of the entries.
    pub(crate) fn keys(&self) -> &Arc<KeySpace> {
        &self.keys
    }

    /// Leaves the server as it was.
    ///
    /// # Errors
    /// [`BenchError`] where the server fails.
    pub(crate) fn remove(mut self) -> Result<(), BenchError> {
        let most = self.client.max_records();
        let channel = &mut self.client.channel;
        // Whatever became of the single keys: with the region everything that nobody uses goes.
        in_batches(channel, Opcode::BatchDeleteKv, self.keys.digests(), most, |_| true)?;
        return_region(channel, self.region)
    }
}
