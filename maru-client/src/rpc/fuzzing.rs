//! A door for the fuzzer: how answers are read and decoded is private, and has to hold whatever a server sends.

use std::time::Duration;

use maru_proto::{Frame, KeyDigest, Opcode, RegisterRecord};

use super::Backlog;
use super::input::Input;
use super::request::{
    AssertPins, GetEntry, GetLatencies, GetPages, GetRegion, GetServer, GetSocket, GetStats, GetUsage,
    Heartbeat, Hello, ListAllocations, ListPins, ListPools, ListReports, Lookup, LookupKind, OnEach, Reclaim,
    Register, ReleasePins, Request, RequestAlloc, ReturnAlloc, Undo, Verb, decode_answer,
};
use super::slots::{Recipient, RequestId, Slots};
use crate::error::{ProtocolError, Result};
use crate::page::PageLocation;
use crate::pins::PinKind;

/// How many records the client takes from the answer to a request, which also is dealt with as one that nobody waits for.
/// `None` where the client has no such request.
pub fn records_taken(request: &Frame<'_>, answer: &Frame<'_>) -> Option<Result<usize>> {
    let digests = || request.records::<KeyDigest>().ok();
    Some(match request.opcode()? {
        Opcode::Hello => taken(&Hello(*request.record().ok()?), answer, |_| 1),
        Opcode::RequestAlloc => taken(&RequestAlloc(*request.record().ok()?), answer, |_| 1),
        Opcode::ReturnAlloc => taken(&ReturnAlloc(*request.record().ok()?), answer, |()| 0),
        Opcode::GetRegion => taken(&GetRegion(*request.record().ok()?), answer, |_| 1),
        Opcode::GetPages => taken(&GetPages(*request.record().ok()?), answer, Vec::len),
        Opcode::ListAllocations => taken(&ListAllocations(*request.record().ok()?), answer, Vec::len),
        Opcode::ListPools => taken(&ListPools([]), answer, Vec::len),
        Opcode::GetStats => taken(&GetStats([]), answer, Vec::len),
        Opcode::GetUsage => taken(&GetUsage(*request.record().ok()?), answer, Vec::len),
        Opcode::GetLatencies => taken(&GetLatencies(*request.record().ok()?), answer, Vec::len),
        Opcode::ListReports => taken(&ListReports(*request.record().ok()?), answer, Vec::len),
        Opcode::GetSocket => taken(&GetSocket([]), answer, Vec::len),
        Opcode::GetServer => taken(&GetServer([]), answer, |_| 1),
        Opcode::GetEntry => taken(&GetEntry(*request.record().ok()?), answer, Vec::len),
        Opcode::ListPins => taken(&ListPins(*request.record().ok()?), answer, Vec::len),
        Opcode::ReleasePins => taken(&ReleasePins(request.records().ok()?), answer, Vec::len),
        Opcode::Heartbeat => taken(&Heartbeat([]), answer, |_| 1),
        Opcode::ReclaimPages => {
            taken(&Reclaim { request: *request.record().ok()?, evict: false }, answer, Vec::len)
        }
        Opcode::AssertPins => {
            taken(&AssertPins { records: request.records().ok()?, last: false }, answer, Vec::len)
        }
        Opcode::RegisterKv | Opcode::BatchRegisterKv => {
            let records = request.records::<RegisterRecord>().ok()?;
            let page = |(n, record): (u32, &RegisterRecord)| PageLocation {
                region_id: record.region_id.get(),
                page_index: n,
            };
            let pages = (0..).zip(records).map(page).collect::<Vec<_>>();
            taken(&Register { records, pages: &pages }, answer, Vec::len)
        }
        Opcode::LookupKv | Opcode::BatchLookupKv => {
            taken(&Lookup { digests: digests()?, kind: LookupKind::AcquirePrefix }, answer, Vec::len)
        }
        Opcode::PinKv | Opcode::BatchPinKv => {
            taken(&Lookup { digests: digests()?, kind: LookupKind::Pin }, answer, Vec::len)
        }
        Opcode::ExistsKv | Opcode::BatchExistsKv => {
            taken(&OnEach { digests: digests()?, verb: Verb::Exists }, answer, Vec::len)
        }
        Opcode::DeleteKv | Opcode::BatchDeleteKv => {
            taken(&OnEach { digests: digests()?, verb: Verb::Delete }, answer, Vec::len)
        }
        Opcode::UnpinKv | Opcode::BatchUnpinKv => {
            taken(&OnEach { digests: digests()?, verb: Verb::Unpin }, answer, Vec::len)
        }
        _ => return None,
    })
}

fn taken<R: Request>(request: &R, answer: &Frame<'_>, count: fn(&R::Response) -> usize) -> Result<usize> {
    request.undo().after(answer, &Nobody);
    decode_answer(request, answer).map(|response| count(&response))
}

/// A connection without a socket: requests that wait, and what is read for them.
pub struct Conversation {
    input: Input,
    slots: Slots<()>,
}

impl Conversation {
    /// With a server that takes request bodies of this many bytes.
    pub fn new(max_body: u32) -> Conversation {
        Conversation { input: Input::new(max_body), slots: Slots::default() }
    }

    /// Has a request wait for its answer; the id that the answer is to have. `None` when too many wait.
    pub fn ask(&mut self, opcode: Opcode) -> Option<u32> {
        self.slots.enlist(opcode, ()).map(|id| id.0)
    }

    /// Has nobody wait for an answer any more; `false` when it has come.
    pub fn give_up(&mut self, id: u32) -> bool {
        self.slots.abandon(RequestId(id), Undo::Nothing)
    }

    /// The frame that answers a request, once.
    pub fn take(&mut self, id: u32) -> Option<Vec<u8>> {
        self.slots.take_answer(RequestId(id))
    }

    /// Requests that are not done with.
    pub fn in_use(&self) -> usize {
        self.slots.in_use()
    }

    /// Requests of those that nobody waits for.
    pub fn abandoned(&self) -> usize {
        self.slots.abandoned()
    }

    /// Reads what the server sent.
    ///
    /// # Errors
    /// Where it breaks the protocol: the connection ends then.
    pub fn receive(&mut self, mut bytes: &[u8]) -> std::result::Result<(), ProtocolError> {
        while !bytes.is_empty() {
            let room = self.input.room();
            let (read, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..read.len()].copy_from_slice(read);
            self.input.filled += read.len();
            bytes = rest;
            while let Some(frame) = self.input.next()? {
                let id = RequestId(frame.request_id());
                match self.slots.deliver(id, &frame) {
                    Recipient::Waiting(()) => {}
                    Recipient::Abandoned(undo) => undo.after(&frame, &Nobody),
                    Recipient::Unknown => return Err(ProtocolError::UnknownRequest(id.0)),
                    Recipient::WrongOperation(opcode) => return Err(ProtocolError::WrongOperation(opcode)),
                }
            }
        }
        Ok(())
    }
}

/// Takes what late answers bring, and does nothing with it.
struct Nobody;

impl Backlog for Nobody {
    fn releases(&self, _: &mut dyn FnMut(PinKind, &[KeyDigest])) {}
    fn unpin(&self, _: PinKind, _: Vec<KeyDigest>) {}
    fn reclaim(&self, _: Vec<PageLocation>) {}
    fn doubt(&self, _: Vec<PageLocation>) {}
    fn lost(&self) {}
    fn settle(&self, _: Vec<(PageLocation, bool)>) {}
    fn answered(&self, _: Duration) {}
}
