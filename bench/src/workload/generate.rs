//! Made-up conversations: shared system prompts, then turns that each repeat all that was said and add to it.

use crate::mix::mix;

/// System prompts that conversations begin with.
const SYSTEM_PROMPTS: u64 = 4;
/// Chunks of a system prompt.
const SYSTEM_PROMPT_CHUNKS: (u64, u64) = (2, 6);
/// Chunks that a turn adds: the answer to the last one and the next question.
const TURN_CHUNKS: (u64, u64) = (2, 6);
/// Conversations that go on at the same time.
const OPEN_CONVERSATIONS: usize = 12;
/// Turns of a conversation.
const TURNS: (u64, u64) = (2, 12);

/// The requests of endless conversations, the same ones for the same seed.
pub(super) fn conversations(seed: u64) -> impl Iterator<Item = Vec<u64>> {
    let mut random = Random { state: seed };
    let mut ids = 0u64..;
    let mut new_chunks = move |count: u64| (0..count).filter_map(|_| ids.next()).collect::<Vec<_>>();

    let prompts = (0..SYSTEM_PROMPTS).map(|_| new_chunks(random.between(SYSTEM_PROMPT_CHUNKS)));
    let prompts = prompts.collect::<Vec<_>>();
    let mut open = Vec::<Conversation>::with_capacity(OPEN_CONVERSATIONS);

    std::iter::repeat_with(move || {
        let turn = random.below(OPEN_CONVERSATIONS);
        let index = if turn < open.len() {
            turn
        } else {
            let history = prompts[random.below(prompts.len())].clone();
            open.push(Conversation { history, turns_left: random.between(TURNS) });
            open.len() - 1
        };
        let conversation = &mut open[index];
        conversation.history.extend(new_chunks(random.between(TURN_CHUNKS)));
        conversation.turns_left -= 1;
        if conversation.turns_left == 0 {
            open.swap_remove(index).history
        } else {
            conversation.history.clone()
        }
    })
}

/// A conversation that goes on.
struct Conversation {
    /// The chunks of all that was said.
    history: Vec<u64>,
    /// At least one.
    turns_left: u64,
}

/// SplitMix64: small, and the same everywhere.
struct Random {
    state: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number from the first to the last, both included.
    fn between(&mut self, (first, last): (u64, u64)) -> u64 {
        first + self.next() % (last - first + 1)
    }

    /// An index into something of this length, which is not 0.
    fn below(&mut self, length: usize) -> usize {
        usize::try_from(self.next() % super::count(length)).expect("less than a usize")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn first(seed: u64, count: usize) -> Vec<Vec<u64>> {
        conversations(seed).take(count).collect()
    }

    #[test]
    fn the_same_seed_makes_up_the_same_requests() {
        assert_eq!(first(1, 500), first(1, 500));
        assert_eq!(first(1, 500)[..100], first(1, 100), "the number of requests changes none of them");
        assert_ne!(first(1, 500), first(2, 500));
    }

    #[test]
    fn equal_chunks_are_equal_prefixes() {
        let mut prefixes = HashMap::new();
        for request in first(3, 500) {
            for (index, chunk) in request.iter().enumerate() {
                let prefix = request[..index].to_vec();
                assert_eq!(
                    prefixes.entry(*chunk).or_insert_with(|| prefix.clone()),
                    &prefix,
                    "chunk {chunk}"
                );
            }
        }
    }

    #[test]
    fn every_request_asks_for_something_new() {
        let mut known = 0;
        let requests = first(4, 500);
        for request in &requests {
            let last = *request.last().unwrap();
            assert!(last >= known, "{request:?}");
            known = last + 1;
        }
    }
}
