//! Requests that wait for their answers, by the id that the answer will carry.

use std::thread::Thread;

use maru_proto::Opcode;

use super::request::Undo;

/// Requests that may wait at a time: what 16 bits of an id can tell apart.
const SLOTS: usize = 1 << 16;

/// What a slot is for.
#[derive(Debug)]
enum Slot {
    Free,
    /// A thread waits.
    Waiting {
        opcode: Opcode,
        thread: Thread,
    },
    /// The answer is here, a whole frame, and its thread has not taken it yet.
    Answered(Vec<u8>),
    /// The thread gave up.
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
pub(super) enum Recipient {
    /// A thread that waits.
    Waiting(Thread),
    /// Nobody any more, but something is to be undone.
    Abandoned(Undo),
    /// The frame answers nothing that was asked.
    Unknown,
    /// The frame answers another operation than was asked.
    WrongOperation(Opcode),
}

/// All slots of a connection.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<(u16, Slot)>,
    free: Vec<u16>,
    abandoned: usize,
}

impl Slots {
    /// A slot for a request of the calling thread; `None` when all are taken.
    pub(super) fn enlist(&mut self, opcode: Opcode) -> Option<RequestId> {
        let index = match self.free.pop() {
            Some(index) => usize::from(index),
            None if self.slots.len() < SLOTS => {
                self.slots.push((0, Slot::Free));
                self.slots.len() - 1
            }
            None => return None,
        };
        let (generation, slot) = &mut self.slots[index];
        *slot = Slot::Waiting { opcode, thread: std::thread::current() };
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

    /// The answer to a request that the calling thread waits for has come and is being looked at.
    pub(super) fn finish(&mut self, id: RequestId) {
        self.free_if(id, |_| true);
    }

    /// The calling thread waits no longer. `false` when the answer has come meanwhile.
    pub(super) fn abandon(&mut self, id: RequestId, undo: Undo) -> bool {
        let (_, slot) = &mut self.slots[id.index()];
        let Slot::Waiting { opcode, .. } = slot else {
            return false;
        };
        *slot = Slot::Abandoned { opcode: *opcode, undo };
        self.abandoned += 1;
        true
    }

    /// Whom a frame that came is for; it is kept for a thread that waits.
    pub(super) fn deliver(&mut self, id: RequestId, opcode: u8, frame: &[u8]) -> Recipient {
        let Some((generation, slot)) = self.slots.get_mut(id.index()) else {
            return Recipient::Unknown;
        };
        if u32::from(*generation) != id.0 >> 16 {
            return Recipient::Unknown;
        }
        match slot {
            Slot::Waiting { opcode: asked, .. } | Slot::Abandoned { opcode: asked, .. }
                if *asked as u8 != opcode =>
            {
                Recipient::WrongOperation(*asked)
            }
            Slot::Waiting { thread, .. } => {
                let thread = thread.clone();
                *slot = Slot::Answered(frame.to_vec());
                Recipient::Waiting(thread)
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

    /// Some thread that waits, to be told that it may read.
    pub(super) fn any_waiting(&self) -> Option<&Thread> {
        self.slots.iter().find_map(|(_, slot)| match slot {
            Slot::Waiting { thread, .. } => Some(thread),
            _ => None,
        })
    }

    /// All threads that wait, to be told that the connection is gone.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &Thread> {
        self.slots.iter().filter_map(|(_, slot)| match slot {
            Slot::Waiting { thread, .. } => Some(thread),
            _ => None,
        })
    }

    /// Requests whose answers nobody waits for.
    pub(super) fn abandoned(&self) -> usize {
        self.abandoned
    }

    fn free_if(&mut self, id: RequestId, condition: impl FnOnce(&Slot) -> bool) -> Option<Slot> {
        let (generation, slot) = &mut self.slots[id.index()];
        if !condition(slot) {
            return None;
        }
        *generation = generation.wrapping_add(1);
        self.free.push(u16::try_from(id.index()).expect("there are at most 2^16 slots"));
        Some(std::mem::replace(slot, Slot::Free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXISTS: u8 = Opcode::ExistsKv as u8;

    #[test]
    fn an_answer_after_the_slot_was_used_again_reaches_nobody() {
        let mut slots = Slots::default();
        let first = slots.enlist(Opcode::ExistsKv).unwrap();
        slots.finish(first);
        let second = slots.enlist(Opcode::ExistsKv).unwrap();
        assert_ne!(first, second);
        assert!(matches!(slots.deliver(first, EXISTS, b"late"), Recipient::Unknown));
        assert!(matches!(slots.deliver(second, EXISTS, b"right"), Recipient::Waiting(_)));
        assert_eq!(slots.take_answer(second).as_deref(), Some(&b"right"[..]));
    }

    #[test]
    fn an_abandoned_request_is_undone_once() {
        let mut slots = Slots::default();
        let id = slots.enlist(Opcode::ExistsKv).unwrap();
        assert!(slots.abandon(id, Undo::Unpin(Vec::new())));
        assert_eq!(slots.abandoned(), 1);
        assert!(matches!(slots.deliver(id, EXISTS, b"late"), Recipient::Abandoned(Undo::Unpin(_))));
        assert!(matches!(slots.deliver(id, EXISTS, b"again"), Recipient::Unknown));
        assert_eq!(slots.abandoned(), 0);
    }

    #[test]
    fn an_answer_that_came_first_is_not_abandoned() {
        let mut slots = Slots::default();
        let id = slots.enlist(Opcode::ExistsKv).unwrap();
        slots.deliver(id, EXISTS, b"answer");
        assert!(!slots.abandon(id, Undo::Nothing));
        assert!(slots.take_answer(id).is_some());
    }

    #[test]
    fn an_answer_to_another_operation_is_noticed() {
        let mut slots = Slots::default();
        let id = slots.enlist(Opcode::PinKv).unwrap();
        assert!(matches!(slots.deliver(id, EXISTS, b""), Recipient::WrongOperation(Opcode::PinKv)));
    }

    #[test]
    fn slots_are_bounded() {
        let mut slots = Slots::default();
        assert!((0..SLOTS).all(|_| slots.enlist(Opcode::ExistsKv).is_some()));
        assert!(slots.enlist(Opcode::ExistsKv).is_none());
    }
}
