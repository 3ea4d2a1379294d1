//! Requests that wait for their answers, by the id that the answer will carry.

use maru_proto::{Frame, Header, Opcode, Step, decode};
use zerocopy::IntoBytes;

use super::request::Undo;
use crate::page::PageLocation;

/// Requests that may wait at a time: what 16 bits of an id can tell apart.
const SLOTS: usize = 1 << 16;

/// What a slot is for.
#[derive(Debug)]
enum Slot<W> {
    Free,
    /// Somebody waits.
    Waiting {
        opcode: Opcode,
        waiter: W,
    },
    /// The answer is here, a whole frame, and its waiter has not taken it yet.
    Answered(Vec<u8>),
    /// The waiter gave up.
    Abandoned {
        opcode: Opcode,
        undo: Undo,
    },
}

/// A slot's index in the low half, in the high half how often it was used before: an answer that comes after all never
/// reaches whoever has the slot next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestId(pub(super) u32);

impl RequestId {
    fn index(self) -> usize {
        (self.0 & 0xFFFF) as usize
    }
}

/// Whom an answer is for.
#[derive(Debug)]
pub(super) enum Recipient<W> {
    /// Somebody who waits, and finds the answer in the slot.
    Waiting(W),
    /// Nobody any more, but something is to be undone.
    Abandoned(Undo),
    /// The frame answers nothing that was asked.
    Unknown,
    /// The frame answers another operation than was asked.
    WrongOperation(Opcode),
}

/// All slots of a connection. `W` is how a waiter is told that it has to look.
#[derive(Debug)]
pub(super) struct Slots<W> {
    slots: Vec<(u16, Slot<W>)>,
    free: Vec<u16>,
    abandoned: usize,
}

impl<W> Default for Slots<W> {
    fn default() -> Slots<W> {
        Slots { slots: Vec::new(), free: Vec::new(), abandoned: 0 }
    }
}

impl<W: Clone> Slots<W> {
    /// A slot for a request; `None` when all are taken.
    pub(super) fn enlist(&mut self, opcode: Opcode, waiter: W) -> Option<RequestId> {
        let index = match self.free.pop() {
            Some(index) => usize::from(index),
            None if self.slots.len() < SLOTS => {
                self.slots.push((0, Slot::Free));
                self.slots.len() - 1
            }
            None => return None,
        };
        let (generation, slot) = &mut self.slots[index];
        *slot = Slot::Waiting { opcode, waiter };
        let index = u32::try_from(index).expect("there are at most 2^16 slots");
        Some(RequestId(u32::from(*generation) << 16 | index))
    }

    /// Takes the answer out, if it is here, and frees the slot.
    pub(super) fn take_answer(&mut self, id: RequestId) -> Option<Vec<u8>> {
        match self.free_if(id, |slot| matches!(slot, Slot::Answered(_))) {
            Some(Slot::Answered(frame)) => Some(frame),
            _ => None,
        }
    }

    /// The answer to a request has come and is being looked at by its waiter.
    pub(super) fn finish(&mut self, id: RequestId) {
        self.free_if(id, |_| true);
    }

    /// The waiter waits no longer. `false` when the answer has come meanwhile.
    pub(super) fn abandon(&mut self, id: RequestId, undo: Undo) -> bool {
        let (_, slot) = &mut self.slots[id.index()];
        let Slot::Waiting { opcode, .. } = slot else {
            return false;
        };
        *slot = Slot::Abandoned { opcode: *opcode, undo };
        self.abandoned += 1;
        true
    }

    /// Whom a frame that came is for; it is kept for a waiter.
    pub(super) fn deliver(&mut self, id: RequestId, frame: &Frame<'_>) -> Recipient<W> {
        let Some((generation, slot)) = self.slots.get_mut(id.index()) else {
            return Recipient::Unknown;
        };
        if u32::from(*generation) != id.0 >> 16 {
            return Recipient::Unknown;
        }
        match slot {
            Slot::Waiting { opcode: asked, .. } | Slot::Abandoned { opcode: asked, .. }
                if *asked as u8 != frame.header().opcode =>
            {
                Recipient::WrongOperation(*asked)
            }
            Slot::Waiting { waiter, .. } => {
                let waiter = waiter.clone();
                let mut whole = Vec::with_capacity(Header::SIZE + frame.body().len());
                whole.extend_from_slice(frame.header().as_bytes());
                whole.extend_from_slice(frame.body());
                *slot = Slot::Answered(whole);
                Recipient::Waiting(waiter)
            }
            Slot::Abandoned { .. } => {
                self.abandoned -= 1;
                match self.free_if(id, |_| true) {
                    Some(Slot::Abandoned { undo, .. }) => Recipient::Abandoned(undo),
                    _ => Recipient::Unknown,
                }
            }
            Slot::Free | Slot::Answered(_) => Recipient::Unknown,
        }
    }

    /// Some waiter, to be told that it may read.
    pub(super) fn any_waiting(&self) -> Option<&W> {
        self.all_waiting().next()
    }

    /// All waiters, to be told that the connection is gone.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &W> {
        self.slots.iter().filter_map(|(_, slot)| match slot {
            Slot::Waiting { waiter, .. } => Some(waiter),
            _ => None,
        })
    }

    /// How the waiter of a request is told, to be changed; `None` when its answer is here.
    pub(super) fn waiter(&mut self, id: RequestId) -> Option<&mut W> {
        match &mut self.slots[id.index()].1 {
            Slot::Waiting { waiter, .. } => Some(waiter),
            _ => None,
        }
    }

    /// Slots that are in use.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests whose answers nobody waits for.
    pub(super) fn abandoned(&self) -> usize {
        self.abandoned
    }

    /// Pages that are to be settled by answers that nobody waits for; the answers settle nothing any more.
    pub(super) fn take_unsettled(&mut self) -> Vec<PageLocation> {
        let abandoned = self.slots.iter_mut().filter_map(|(_, slot)| match slot {
            Slot::Abandoned { undo: Undo::Settle(pages), .. } => Some(std::mem::take(pages)),
            _ => None,
        });
        abandoned.flatten().collect()
    }

    fn free_if(&mut self, id: RequestId, condition: impl FnOnce(&Slot<W>) -> bool) -> Option<Slot<W>> {
        let (generation, slot) = &mut self.slots[id.index()];
        if !condition(slot) {
            return None;
        }
        *generation = generation.wrapping_add(1);
        self.free.push(u16::try_from(id.index()).expect("there are at most 2^16 slots"));
        Some(std::mem::replace(slot, Slot::Free))
    }
}

/// The frame of an answer that was kept for its waiter.
pub(super) fn whole_frame(answer: &[u8]) -> Frame<'_> {
    match decode(answer, u32::MAX) {
        Ok(Step::Frame { frame, .. }) => frame,
        _ => unreachable!("answers are kept as whole frames"),
    }
}

#[cfg(test)]
mod tests {
    use maru_proto::{Flags, Head, encode};

    use super::*;

    /// Answers some operation as the server would, and hands it to the slots.
    fn deliver(slots: &mut Slots<()>, id: RequestId, opcode: Opcode) -> Recipient<()> {
        let mut bytes = [0; Header::SIZE];
        encode(&mut bytes, Head::request(opcode, Flags::RESPONSE, id.0), &[0u8; 0]).unwrap();
        match decode(&bytes, 0) {
            Ok(Step::Frame { frame, .. }) => slots.deliver(id, &frame),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_after_the_slot_was_used_again_reaches_nobody() {
        let mut slots = Slots::<()>::default();
        let first = slots.enlist(Opcode::ExistsKv, ()).unwrap();
        slots.finish(first);
        let second = slots.enlist(Opcode::ExistsKv, ()).unwrap();
        assert_ne!(first, second);
        assert!(matches!(deliver(&mut slots, first, Opcode::ExistsKv), Recipient::Unknown));
        assert!(matches!(deliver(&mut slots, second, Opcode::ExistsKv), Recipient::Waiting(_)));
        assert!(slots.take_answer(second).is_some());
    }

    #[test]
    fn an_abandoned_request_is_undone_once() {
        let mut slots = Slots::<()>::default();
        let id = slots.enlist(Opcode::ExistsKv, ()).unwrap();
        assert!(slots.abandon(id, Undo::TakeBack));
        assert_eq!(slots.abandoned(), 1);
        assert!(matches!(deliver(&mut slots, id, Opcode::ExistsKv), Recipient::Abandoned(Undo::TakeBack)));
        assert!(matches!(deliver(&mut slots, id, Opcode::ExistsKv), Recipient::Unknown));
        assert_eq!(slots.abandoned(), 0);
    }

    #[test]
    fn an_answer_that_came_first_is_not_abandoned() {
        let mut slots = Slots::<()>::default();
        let id = slots.enlist(Opcode::ExistsKv, ()).unwrap();
        deliver(&mut slots, id, Opcode::ExistsKv);
        assert!(!slots.abandon(id, Undo::Nothing));
        assert!(slots.take_answer(id).is_some());
    }

    #[test]
    fn an_answer_to_another_operation_is_noticed() {
        let mut slots = Slots::<()>::default();
        let id = slots.enlist(Opcode::PinKv, ()).unwrap();
        assert!(matches!(
            deliver(&mut slots, id, Opcode::ExistsKv),
            Recipient::WrongOperation(Opcode::PinKv)
        ));
    }

    #[test]
    fn slots_are_bounded() {
        let mut slots = Slots::<()>::default();
        assert!((0..SLOTS).all(|_| slots.enlist(Opcode::ExistsKv, ()).is_some()));
        assert!(slots.enlist(Opcode::ExistsKv, ()).is_none());
    }
}
