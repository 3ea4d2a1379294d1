//! What a client does, and what it may expect: whatever it has a pin on is there, with the right bytes, and stays.

use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use maru_client::{Deleted, Error, MaruHandler, PageMut, Pending, Pinned, StatKind, Stored, Unpinned};
use maru_proto::{FrameStatus, Opcode};
use pollster::block_on;

use super::counts::{Operation, Outcome};
use super::holdings::Guard;
use super::key::{CHAIN, Key, PRIVATE};
use super::protocol::{Message, Private};
use super::watcher::Watcher;
use super::worker::{OUTAGE_LIMIT, Worker};
use crate::error::BenchError;

/// How long the client's own figures and the server's may differ: released pins and late answers are on their way.
const AUDIT_LIMIT: Duration = Duration::from_secs(20);
/// Chains that are deleted where there was no page.
const RELIEF: usize = 4;

impl Worker<'_> {
    /// One operation, or a few that belong together.
    pub(super) fn step(&mut self) -> Result<(), BenchError> {
        match self.below(100) {
            0..30 => self.request(),
            30..42 => self.retrieve(),
            42..57 => self.look_again(),
            57..67 => self.delete(),
            67..72 => self.exists(),
            72..78 => self.pin(),
            78..84 => self.unpin(),
            84..91 => self.private_key(),
            91..94 => self.scribble(),
            94..96 => self.give_up(),
            96..98 => {
                thread::sleep(Duration::from_micros(self.random.next() % 3000));
                Ok(())
            }
            _ => self.audit(),
        }
    }

    /// What an engine does: reads the prefix that is there, and stores the rest.
    fn request(&mut self) -> Result<(), BenchError> {
        let mut keys = self.chain_prefix();
        let names = names(&keys);
        let prefix = if self.one_in(4) {
            self.call(Operation::Acquire, |maru| block_on(maru.acquire_async(&names)))?
        } else {
            self.call(Operation::Acquire, |maru| maru.acquire(&names))?
        };
        let session = self.session;
        let missing = keys.split_off(prefix.len());
        self.log.add(Operation::Acquire, Outcome::Found, keys.len());
        self.log.add(Operation::Acquire, Outcome::NotFound, missing.len());
        if let Some(key) = missing.first() {
            self.expect_no_pin(*key, "was not acquired")?;
        }
        let guard = Guard::Prefix(keys, prefix);
        self.verify(&guard, "when acquired")?;
        if self.one_in(2) {
            self.store(&missing)?;
            self.verify(&guard, "after a store")?;
        }
        self.hold(guard, session);
        Ok(())
    }

    /// Keeps a guard of a session for later, or a part of it, or lets go of it.
    fn hold(&mut self, guard: Guard, session: u64) {
        let random = self.random.next();
        if let Some(watcher) = &self.watcher
            && let Some((key, chunk)) = guard.chunks().pop()
        {
            watcher.watch(key, chunk);
        }
        match guard {
            _ if session != self.session => {}
            Guard::Prefix(keys, prefix) if !keys.is_empty() && self.one_in(3) => {
                let index = usize::try_from(random % keys.len() as u64).expect("an index");
                if let Some(chunk) = prefix.get(index) {
                    drop(prefix);
                    self.holdings.keep(Guard::Chunk(keys[index], chunk), random);
                }
            }
            guard if !guard.is_empty() && self.one_in(2) => self.holdings.keep(guard, random),
            _ => {}
        }
    }

    /// A guard of the first chunks of any chain; `None` where there are none.
    pub(super) fn acquire_any(&mut self) -> Result<Option<Guard>, BenchError> {
        let mut keys = self.chain_prefix();
        let names = names(&keys);
        let prefix = self.call(Operation::Acquire, |maru| maru.acquire(&names))?;
        keys.truncate(prefix.len());
        self.log.add(Operation::Acquire, Outcome::Found, keys.len());
        Ok((!keys.is_empty()).then_some(Guard::Prefix(keys, prefix)))
    }

    fn retrieve(&mut self) -> Result<(), BenchError> {
        let keys = if self.one_in(3) {
            self.chain_prefix()
        } else {
            let pinned = self.holdings.any_pinned(self.random.next());
            vec![pinned.unwrap_or_else(|| self.any_key())]
        };
        let names = names(&keys);
        let chunks = match self.below(4) {
            0 => self.call(Operation::Retrieve, |maru| block_on(maru.batch_retrieve_async(&names)))?,
            1 if keys.len() == 1 => vec![self.call(Operation::Retrieve, |maru| maru.retrieve(names[0]))?],
            _ => self.call(Operation::Retrieve, |maru| maru.batch_retrieve(&names))?,
        };
        let session = self.session;
        for (key, chunk) in keys.into_iter().zip(chunks) {
            let Some(chunk) = chunk else {
                self.log.add(Operation::Retrieve, Outcome::NotFound, 1);
                self.expect_no_pin(key, "was not retrieved")?;
                continue;
            };
            self.log.add(Operation::Retrieve, Outcome::Found, 1);
            let guard = Guard::Chunk(key, chunk.clone());
            drop(chunk);
            self.verify(&guard, "when retrieved")?;
            self.hold(guard, session);
        }
        Ok(())
    }

    /// What was held for a while still has its bytes, and nobody can delete it.
    fn look_again(&mut self) -> Result<(), BenchError> {
        let Some(guard) = self.holdings.take_guard(self.random.next()) else {
            return Ok(());
        };
        let session = self.session;
        self.verify(&guard, "under a guard that was held for a while")?;
        if self.one_in(4) {
            let keys = guard.chunks().iter().map(|(key, _)| *key).collect::<Vec<_>>();
            let names = names(&keys);
            let outcomes = self.call(Operation::Delete, |maru| maru.batch_delete(&names))?;
            for (key, outcome) in keys.iter().zip(outcomes) {
                if self.count_deleted(outcome) != Outcome::Pinned && self.session == session {
                    self.log.lost(format!("{key} was {outcome:?} though a guard of the caller held it"))?;
                }
            }
            self.verify(&guard, "under a guard, after a delete")?;
        }
        self.hold(guard, session);
        Ok(())
    }

    fn store(&mut self, keys: &[Key]) -> Result<(), BenchError> {
        let session = self.session;
        let mut pages = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(page) = self.write(*key)? else {
                self.relieve()?;
                break;
            };
            pages.push(page);
        }
        if self.session != session {
            // What was written went with the session that it was written for.
            return Ok(());
        }
        let keys = &keys[..pages.len()];
        let names = names(keys);
        let outcomes = match self.below(16) {
            // The pages go back.
            _ if keys.is_empty() => return Ok(()),
            0 => return Ok(()),
            1..6 => {
                let mut outcomes = Vec::with_capacity(keys.len());
                for (name, page) in names.into_iter().zip(pages) {
                    let stored = self.attempt(Operation::Store, |maru| maru.store(name, page))?;
                    if self.session != session {
                        return Ok(());
                    }
                    outcomes.push(Ok(stored.unwrap_or(Stored::AlreadyExists)));
                }
                Some(outcomes)
            }
            6..9 => self.attempt(Operation::Store, |maru| block_on(maru.batch_store_async(&names, pages)))?,
            _ => self.attempt(Operation::Store, |maru| maru.batch_store(&names, pages))?,
        };
        // What became of them is not known where the server was lost.
        let Some(outcomes) = outcomes else { return Ok(()) };
        for (key, outcome) in keys.iter().zip(outcomes) {
            match outcome {
                Ok(Stored::Stored) => {
                    self.log.add(Operation::Store, Outcome::Stored, 1);
                    self.expect_no_pin(*key, "could be stored anew")?;
                }
                Ok(Stored::AlreadyExists) => self.log.add(Operation::Store, Outcome::AlreadyExists, 1),
                Err(status) => return Err(failed(Operation::Store)(Error::NotStored(status))),
            }
        }
        Ok(())
    }

    /// A page with the chunk of a key, or `None` where there is none to be had.
    fn write(&mut self, key: Key) -> Result<Option<PageMut>, BenchError> {
        let length = key.length(self.args.chunk_size);
        let Some(mut page) = self.alloc(length)? else {
            return Ok(None);
        };
        let half = length / 16 * 8;
        key.fill(0, &mut page[..half]);
        if self.one_in(16) {
            thread::sleep(Duration::from_micros(self.random.next() % 1000));
        }
        if self.one_in(16) {
            let location = page.detach();
            let Some(attached) = self.attempt(Operation::Alloc, |maru| maru.attach(location, length))? else {
                return Ok(None);
            };
            page = attached;
        }
        key.fill(half, &mut page[half..]);
        Ok(Some(page))
    }

    fn alloc(&mut self, length: usize) -> Result<Option<PageMut>, BenchError> {
        let awaited = self.one_in(8);
        let page = self.attempt(Operation::Alloc, |maru| {
            match if awaited { block_on(maru.alloc_async(length)) } else { maru.alloc(length) } {
                Ok(page) => Ok(Some(page)),
                Err(
                    Error::PoolExhausted
                    | Error::Refused {
                        operation: Opcode::RequestAlloc,
                        status: FrameStatus::NoSpace | FrameStatus::Limit,
                    },
                ) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        match &page {
            Some(Some(_)) => self.log.add(Operation::Alloc, Outcome::Done, 1),
            Some(None) => self.log.add(Operation::Alloc, Outcome::PoolExhausted, 1),
            None => {}
        }
        Ok(page.flatten())
    }

    /// There was no page: some chains go, so that regions without an owner become free.
    fn relieve(&mut self) -> Result<(), BenchError> {
        for _ in 0..RELIEF {
            let keys = self.chain(CHAIN);
            self.delete_keys(&keys)?;
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<(), BenchError> {
        let keys = if self.one_in(4) { self.chain_prefix() } else { vec![self.any_key()] };
        self.delete_keys(&keys)
    }

    fn delete_keys(&mut self, keys: &[Key]) -> Result<(), BenchError> {
        let names = names(keys);
        let outcomes = if self.one_in(4) {
            self.call(Operation::Delete, |maru| block_on(maru.batch_delete_async(&names)))?
        } else {
            self.call(Operation::Delete, |maru| maru.batch_delete(&names))?
        };
        for (key, outcome) in keys.iter().zip(outcomes) {
            if self.count_deleted(outcome) != Outcome::Pinned {
                self.expect_no_pin(*key, "was deleted, or gone before")?;
            }
        }
        Ok(())
    }

    fn count_deleted(&mut self, outcome: Deleted) -> Outcome {
        let outcome = match outcome {
            Deleted::Deleted => Outcome::Deleted,
            Deleted::NotFound => Outcome::NotFound,
            Deleted::Pinned => Outcome::Pinned,
        };
        self.log.add(Operation::Delete, outcome, 1);
        outcome
    }

    fn exists(&mut self) -> Result<(), BenchError> {
        let keys = self.chain_prefix();
        let names = names(&keys);
        let found = if self.one_in(4) {
            self.call(Operation::Exists, |maru| block_on(maru.batch_exists_async(&names)))?
        } else {
            self.call(Operation::Exists, |maru| maru.batch_exists(&names))?
        };
        for (key, found) in keys.iter().zip(found) {
            self.log.add(Operation::Exists, if found { Outcome::Found } else { Outcome::NotFound }, 1);
            if !found {
                self.expect_no_pin(*key, "does not exist")?;
            }
        }
        Ok(())
    }

    fn pin(&mut self) -> Result<(), BenchError> {
        if !self.holdings.may_pin() {
            return Ok(());
        }
        let length = 1 + self.below(4);
        let keys = self.chain(length);
        // An unpin that is done twice must not take the pin of another.
        if self.args.outages && keys.iter().any(|key| self.holdings.is_pinned(*key)) {
            return Ok(());
        }
        let names = names(&keys);
        let outcomes = if self.one_in(4) {
            self.call(Operation::PinKv, |maru| block_on(maru.batch_pin_kv_async(&names)))?
        } else {
            self.call(Operation::PinKv, |maru| maru.batch_pin_kv(&names))?
        };
        for (key, outcome) in keys.iter().zip(outcomes) {
            let outcome = match outcome {
                Pinned::Pinned => {
                    self.holdings.pinned(*key);
                    Outcome::Pinned
                }
                Pinned::NotFound => {
                    self.expect_no_pin(*key, "could not be pinned again")?;
                    Outcome::NotFound
                }
                Pinned::Skipped => Outcome::Skipped,
                Pinned::PinLimit => {
                    return Err(BenchError::Torture(format!("{key} has as many pins as it can have")));
                }
            };
            self.log.add(Operation::PinKv, outcome, 1);
        }
        Ok(())
    }

    fn unpin(&mut self) -> Result<(), BenchError> {
        let pinned = if self.one_in(8) { None } else { self.holdings.any_pinned(self.random.next()) };
        let key = pinned.unwrap_or_else(|| self.any_key());
        let (was_pinned, session) = (self.holdings.is_pinned(key), self.session);
        let outcome = if self.one_in(4) {
            self.call(Operation::UnpinKv, |maru| block_on(maru.unpin_kv_async(key.bytes())))?
        } else {
            self.call(Operation::UnpinKv, |maru| maru.unpin_kv(key.bytes()))?
        };
        self.holdings.unpinned(key);
        let counted = match outcome {
            Unpinned::Unpinned => Outcome::Unpinned,
            Unpinned::NotPinned => Outcome::NotPinned,
            Unpinned::NotFound => Outcome::NotFound,
        };
        self.log.add(Operation::UnpinKv, counted, 1);
        match (was_pinned, outcome) {
            // It went with its session.
            (true, _) if self.session != session => Ok(()),
            (true, Unpinned::Unpinned) | (false, Unpinned::NotPinned | Unpinned::NotFound) => Ok(()),
            // Where the answer was lost, it is asked again.
            (true, Unpinned::NotPinned) if self.args.outages => Ok(()),
            (true, _) => self.log.lost(format!("{key} was pinned by name, and its unpin said {outcome:?}")),
            (false, _) => self.log.broken(format!("{key} was unpinned though it was not pinned by name")),
        }
    }

    /// A key that nobody else stores or deletes.
    fn private_key(&mut self) -> Result<(), BenchError> {
        let index = u16::try_from(self.below(u64::from(PRIVATE))).expect("few keys are private");
        let key = Key::private(self.args.number, index);
        let known = self.private[usize::from(index)];
        match known {
            Private::Absent | Private::InDoubt => self.store_private(index, key, known),
            Private::Stored if self.one_in(4) => self.delete_private(index, key),
            Private::Stored => match self.call(Operation::Retrieve, |maru| maru.retrieve(key.bytes()))? {
                Some(chunk) => {
                    self.log.add(Operation::Retrieve, Outcome::Found, 1);
                    self.verify(&Guard::Chunk(key, chunk), "when retrieved")
                }
                None => {
                    self.missing(Operation::Retrieve, key)?;
                    self.know(index, Private::Absent)
                }
            },
        }
    }

    fn store_private(&mut self, index: u16, key: Key, known: Private) -> Result<(), BenchError> {
        let Some(page) = self.write(key)? else {
            return self.relieve();
        };
        self.know(index, Private::InDoubt)?;
        match self.attempt(Operation::Store, |maru| maru.store(key.bytes(), page))? {
            // It stays in doubt.
            None => return Ok(()),
            Some(Stored::Stored) => self.log.add(Operation::Store, Outcome::Stored, 1),
            Some(Stored::AlreadyExists) => {
                self.log.add(Operation::Store, Outcome::AlreadyExists, 1);
                if known == Private::Absent {
                    self.log
                        .broken(format!("{key} came back though only this client could have stored it"))?;
                }
            }
        }
        self.know(index, Private::Stored)
    }

    fn delete_private(&mut self, index: u16, key: Key) -> Result<(), BenchError> {
        if self.args.outages && self.call(Operation::Retrieve, |maru| maru.retrieve(key.bytes()))?.is_none() {
            self.missing(Operation::Retrieve, key)?;
            return self.know(index, Private::Absent);
        }
        self.know(index, Private::InDoubt)?;
        let outcome = self.call(Operation::Delete, |maru| maru.delete(key.bytes()))?;
        let known = match self.count_deleted(outcome) {
            // A predecessor was killed with a guard in its hand.
            Outcome::Pinned => Private::Stored,
            // Deleted, by a request whose answer was lost and that was sent again.
            Outcome::NotFound if self.args.outages => Private::Absent,
            Outcome::NotFound => {
                self.missing(Operation::Delete, key)?;
                Private::Absent
            }
            _ => Private::Absent,
        };
        self.know(index, known)
    }

    /// A key that was acknowledged is not there: lost, unless the server evicts.
    fn missing(&mut self, operation: Operation, key: Key) -> Result<(), BenchError> {
        if self.args.may_evict || self.call(operation, MaruHandler::stats)?.get(StatKind::Evictions) > 0 {
            self.log.add(operation, Outcome::Evicted, 1);
            return Ok(());
        }
        self.log
            .lost(format!("{key} was acknowledged, nobody deleted it, nothing was evicted, and it is gone"))
    }

    fn know(&mut self, index: u16, known: Private) -> Result<(), BenchError> {
        self.private[usize::from(index)] = known;
        self.log.tell(&Message::Knows(index, known))
    }

    /// Writes into a page that is never stored.
    fn scribble(&mut self) -> Result<(), BenchError> {
        let Some(mut page) = self.alloc(self.args.chunk_size)? else {
            return self.relieve();
        };
        page.fill(0xa5);
        if self.one_in(2) {
            let location = page.detach();
            self.attempt(Operation::Alloc, |maru| {
                maru.free_by_location(location.region_id, location.page_index)
            })?;
        }
        Ok(())
    }

    /// Does not wait for an answer, which loses neither a page nor a pin.
    fn give_up(&mut self) -> Result<(), BenchError> {
        let keys = self.chain_prefix();
        let names = names(&keys);
        let operation = match self.below(4) {
            0 => {
                give_up(self.handler.acquire_async(&names));
                Operation::Acquire
            }
            1 => {
                give_up(self.handler.batch_retrieve_async(&names));
                Operation::Retrieve
            }
            2 => {
                give_up(self.handler.batch_pin_kv_async(&names));
                Operation::PinKv
            }
            _ => {
                let Some(page) = self.write(keys[0])? else {
                    return self.relieve();
                };
                give_up(self.handler.store_async(names[0], page));
                Operation::Store
            }
        };
        self.log.counts().operations += 1;
        self.log.add(operation, Outcome::GivenUp, 1);
        Ok(())
    }

    /// Compares what this client has with what the server says that it has: nothing may be lost between them.
    pub(super) fn audit(&mut self) -> Result<(), BenchError> {
        for guard in self.holdings.take_guards() {
            self.verify(&guard, "under a guard, before an audit")?;
        }
        self.watcher.iter().for_each(Watcher::forget);
        let (mut session, mut began) = (self.session, Instant::now());
        loop {
            if self.session != session {
                (session, began) = (self.session, Instant::now());
            }
            let number = self.handler.instance_number();
            let pins = self.holdings.pins();
            let regions = self.call(Operation::Audit, MaruHandler::regions)?;
            let own = regions.iter().filter(|region| region.owner.get() == number);
            let with_server = own.map(|own| u64::from(own.entries.get()) + u64::from(own.freed_pages.get()));
            let with_server = with_server.sum::<u64>();
            let usage = self.call(Operation::Audit, MaruHandler::usage)?;
            let usage = usage.iter().find(|usage| usage.instance.get() == number);
            let pins_seen = usage.map_or(0, |usage| usage.pins.get());
            let named_seen = usage.map_or(0, |usage| usage.named_pins.get());
            if self.session != session {
                continue;
            }
            let stats = self.handler.client_stats();
            let not_free = stats.pages - stats.free_pages;
            if (not_free, pins) == (with_server, pins_seen) {
                self.log.add(Operation::Audit, Outcome::Done, 1);
                return Ok(());
            }
            if began.elapsed() > AUDIT_LIMIT {
                self.log.counts().leaked_pages += not_free.abs_diff(with_server);
                self.log.counts().leaked_pins += pins.abs_diff(pins_seen);
                let text = format!(
                    "{not_free} pages are in use, {with_server} of them are entries' or freed; \
                     {pins} pins by name are held, and the server sees {pins_seen} pins, {named_seen} of them by name"
                );
                self.log.broken(text)?;
                // With other figures than the server's nothing that follows would say anything.
                return Err(BenchError::Torture("the client and the server disagree".to_owned()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Reads every byte that a guard holds, in any of the ways that say whether it was good all the while.
    pub(super) fn verify(&mut self, guard: &Guard, when: &str) -> Result<(), BenchError> {
        for (key, chunk) in guard.chunks() {
            let copied = self.one_in(2);
            if let Some(broken) = self.expected.look(key, &chunk, copied, self.log.counts()) {
                self.log.broken(format!("{broken} {when}"))?;
            }
        }
        Ok(())
    }

    /// A key turned out not to be there, which must not be where this client has a pin on it.
    fn expect_no_pin(&mut self, key: Key, what: &str) -> Result<(), BenchError> {
        if self.holdings.holds(key) {
            self.log.lost(format!("{key} {what} though this client has a pin on it"))?;
        }
        Ok(())
    }

    /// Calls something that may be done twice: it is, where the server is lost over it, until there is an answer.
    fn call<T>(
        &mut self,
        operation: Operation,
        call: impl Fn(&MaruHandler) -> Result<T, Error>,
    ) -> Result<T, BenchError> {
        let (mut session, mut began) = (self.session, Instant::now());
        loop {
            if let Some(answer) = self.attempt(operation, &call)? {
                return Ok(answer);
            }
            if self.session != session {
                // It was reached just now.
                (session, began) = (self.session, Instant::now());
            }
            if began.elapsed() > OUTAGE_LIMIT {
                return Err(failed(operation)(Error::ConnectionLost));
            }
        }
    }

    /// Calls something; `None` where the server is lost over it, be it that the session has ended and there is another now.
    pub(super) fn attempt<T>(
        &mut self,
        operation: Operation,
        call: impl FnOnce(&MaruHandler) -> Result<T, Error>,
    ) -> Result<Option<T>, BenchError> {
        self.log.counts().operations += 1;
        match call(&self.handler) {
            Err(Error::ConnectionLost) if self.args.outages => {
                self.log.add(operation, Outcome::Died, 1);
                // A server that is not there says so at once.
                thread::sleep(Duration::from_millis(1));
                Ok(None)
            }
            Err(Error::SessionEnded) if self.args.sessions_end => {
                self.log.add(operation, Outcome::SessionEnded, 1);
                self.begin_anew()?;
                Ok(None)
            }
            answer => answer.map(Some).map_err(failed(operation)),
        }
    }

    fn any_key(&mut self) -> Key {
        let chain = self.chain(CHAIN);
        chain[usize::try_from(self.below(CHAIN)).expect("chains are short")]
    }

    fn chain_prefix(&mut self) -> Vec<Key> {
        let length = 1 + self.below(CHAIN);
        self.chain(length)
    }

    /// The first keys of any chain.
    fn chain(&mut self, length: u64) -> Vec<Key> {
        let first = self.chains.next() as u64 * CHAIN;
        (first..first + length).map(Key::shared).collect()
    }
}

/// Lets a request be sent, and does not wait for the answer.
fn give_up<T>(mut pending: Pending<T>) {
    let _ = pending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

fn names(keys: &[Key]) -> Vec<[u8; 8]> {
    keys.iter().map(|key| key.bytes()).collect()
}

fn failed(operation: Operation) -> impl FnOnce(Error) -> BenchError {
    move |source| BenchError::Operation { operation: operation.to_string(), source }
}
