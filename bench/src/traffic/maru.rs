//! The requests of a measurement of maru, as a [`Protocol`].

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use maru_proto::{Flags, KeyDigest, Opcode, RecordStatus, RegisterRecord};

use super::distribution::{Distribution, Random, Sampler};
use super::keys::KeySpace;
use super::mix::{Mix, Operation};
use super::stock::Stock;
use super::wire_client::{PEER, WireClient, answer, location_statuses, push, record_statuses};
use crate::cli::TrafficArgs;
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::measure::run::Protocol;

/// Pages of a connection that registers and deletes, at least: few enough for many connections.
const STOCK_PAGES: usize = 4096;

/// What a connection asks for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) mix: Mix,
    /// Keys that one request names.
    pub(crate) batch: usize,
    pub(crate) distribution: Distribution,
    /// Requests that may be in flight.
    pub(crate) in_flight: usize,
}

impl Shape {
    /// What the options ask for.
    pub(crate) fn of(traffic: &TrafficArgs, in_flight: u16) -> Shape {
        Shape {
            mix: traffic.op.clone(),
            batch: traffic.batch as usize,
            distribution: traffic.distribution,
            in_flight: in_flight.into(),
        }
    }

    /// Pages that each connection needs for itself.
    pub(crate) fn stock_pages(&self) -> u64 {
        let pages = STOCK_PAGES.max(2 * self.batch * self.in_flight);
        if self.mix.any(Operation::uses_stock) { pages as u64 } else { 0 }
    }

    /// Keys that an answered request has dealt with.
    pub(crate) fn keys_per_request(&self) -> usize {
        if self.mix.any(|operation| operation != Operation::Heartbeat) { self.batch } else { 0 }
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Traffic {
    keys: Arc<KeySpace>,
    sampler: Sampler,
    random: Random,
    shape: Shape,
    stock: Option<Stock>,
    /// What the next request will be, known beforehand so that it can be made possible.
    next: Operation,
    waiting: VecDeque<(u32, Operation)>,
    next_id: u32,
    digests: Vec<KeyDigest>,
    records: Vec<RegisterRecord>,
}

impl Traffic {
    /// Opens connection number `number` for requests of this shape.
    ///
    /// # Errors
    /// [`BenchError`] where the server is not there or lacks pages.
    pub(crate) fn connect(
        socket: &Path,
        keys: &Arc<KeySpace>,
        shape: &Shape,
        number: usize,
    ) -> Result<(Channel, Traffic), BenchError> {
        let seed = number as u64;
        let mut client = WireClient::connect(socket)?;
        if shape.batch > client.max_records() {
            let text = format!("that it takes at most {} records in one request", client.max_records());
            return Err(BenchError::answer(PEER, text));
        }
        let stock = match u32::try_from(shape.stock_pages()).unwrap_or(u32::MAX) {
            0 => None,
            pages => Some(Stock::new(&mut client, seed, pages)?),
        };
        let mut random = Random::new(!seed);
        let traffic = Traffic {
            keys: Arc::clone(keys),
            sampler: Sampler::new(shape.distribution, keys.digests().len() as u64, seed),
            next: shape.mix.choose(random.next()),
            random,
            shape: shape.clone(),
            stock,
            waiting: VecDeque::with_capacity(shape.in_flight),
            next_id: 1,
            digests: Vec::with_capacity(shape.batch),
            records: Vec::with_capacity(shape.batch),
        };
        Ok((client.channel, traffic))
    }

    fn choose_digests(&mut self) {
        let keys = self.keys.digests();
        for _ in 0..self.shape.batch {
            self.digests.push(keys[self.sampler.next()]);
        }
    }

    /// Releases what the request before it pinned; nobody answers.
    fn push_release(&self, out: &mut Vec<u8>) {
        let opcode = self.opcode(Opcode::UnpinKv, Opcode::BatchUnpinKv);
        push(out, opcode, Flags::NO_REPLY, 0, &self.digests);
    }

    fn opcode(&self, single: Opcode, batch: Opcode) -> Opcode {
        if self.shape.batch == 1 { single } else { batch }
    }
}

impl Protocol for Traffic {
    const PEER: &'static str = PEER;

    fn request(&mut self, out: &mut Vec<u8>) {
        let (operation, id) = (self.next, self.next_id);
        self.next = self.shape.mix.choose(self.random.next());
        self.next_id = self.next_id.wrapping_add(1);
        self.waiting.push_back((id, operation));
        self.digests.clear();
        match operation {
            Operation::Heartbeat => push::<u8>(out, Opcode::Heartbeat, Flags::NONE, id, &[]),
            Operation::Exists => {
                self.choose_digests();
                let opcode = self.opcode(Opcode::ExistsKv, Opcode::BatchExistsKv);
                push(out, opcode, Flags::NONE, id, &self.digests);
            }
            Operation::Lookup => {
                self.choose_digests();
                let opcode = self.opcode(Opcode::LookupKv, Opcode::BatchLookupKv);
                push(out, opcode, Flags::NONE, id, &self.digests);
            }
            Operation::Acquire => {
                self.choose_digests();
                let opcode = self.opcode(Opcode::LookupKv, Opcode::BatchLookupKv);
                push(out, opcode, Flags::PIN | Flags::PREFIX_STOP, id, &self.digests);
                self.push_release(out);
            }
            Operation::Pin => {
                self.choose_digests();
                let opcode = self.opcode(Opcode::PinKv, Opcode::BatchPinKv);
                push(out, opcode, Flags::NONE, id, &self.digests);
                self.push_release(out);
            }
            Operation::Register => {
                self.records.clear();
                let stock = self.stock.as_mut().expect("a mix with registrations has a stock");
                stock.register(self.shape.batch, &mut self.records);
                let opcode = self.opcode(Opcode::RegisterKv, Opcode::BatchRegisterKv);
                push(out, opcode, Flags::NONE, id, &self.records);
            }
            Operation::Delete => {
                let stock = self.stock.as_mut().expect("a mix with deletions has a stock");
                stock.delete(self.shape.batch, &mut self.digests);
                let opcode = self.opcode(Opcode::DeleteKv, Opcode::BatchDeleteKv);
                push(out, opcode, Flags::NONE, id, &self.digests);
            }
        }
    }

    fn response(&mut self, input: &[u8]) -> Result<Option<usize>, BenchError> {
        let Some((frame, consumed)) = answer(input)? else {
            return Ok(None);
        };
        let Some((id, operation)) = self.waiting.pop_front() else {
            return Err(BenchError::answer(PEER, "more answers than there were requests"));
        };
        if frame.request_id() != id {
            return Err(BenchError::answer(PEER, "out of order"));
        }
        let wrong = match operation {
            Operation::Heartbeat => None,
            Operation::Lookup | Operation::Acquire | Operation::Pin => {
                first_wrong(location_statuses(&frame, self.shape.batch)?)
            }
            Operation::Exists | Operation::Register | Operation::Delete => {
                first_wrong(record_statuses(&frame, self.shape.batch)?)
            }
        };
        match wrong {
            None => Ok(Some(consumed)),
            Some(status) => Err(BenchError::answer(PEER, format!("{status} to {operation}"))),
        }
    }

    fn is_short(&self) -> bool {
        match (self.next, &self.stock) {
            (Operation::Register, Some(stock)) => !stock.can_register(self.shape.batch),
            (Operation::Delete, Some(stock)) => !stock.can_delete(self.shape.batch),
            _ => false,
        }
    }

    fn restock(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        match (self.next, &mut self.stock) {
            (Operation::Register, Some(stock)) => stock.empty(channel),
            (Operation::Delete, Some(stock)) => stock.fill(channel),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        self.stock.take().map_or(Ok(()), |stock| stock.give_back(channel))
    }
}

/// All keys that are asked for are there, so a measurement of anything else would be wrong.
fn first_wrong(mut statuses: impl Iterator<Item = RecordStatus>) -> Option<RecordStatus> {
    statuses.find(|status| *status != RecordStatus::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(mix: &str) -> Shape {
        Shape { mix: mix.parse().unwrap(), batch: 512, distribution: Distribution::Uniform, in_flight: 64 }
    }

    #[test]
    fn only_what_uses_pages_up_needs_some() {
        assert_eq!(shape("mix:exists=1,acquire=1").stock_pages(), 0);
        assert_eq!(shape("mix:exists=1,delete=1").stock_pages(), 65_536);
        assert_eq!(Shape { batch: 1, ..shape("register") }.stock_pages(), 4096);
    }

    #[test]
    fn a_heartbeat_deals_with_no_key() {
        assert_eq!(shape("heartbeat").keys_per_request(), 0);
        assert_eq!(shape("acquire").keys_per_request(), 512);
    }
}
