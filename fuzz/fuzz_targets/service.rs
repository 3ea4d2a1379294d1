//! Whatever connections send, in whatever order, every invariant of the state holds after each frame, each is answered as the
//! protocol says, and a restart changes nothing.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use maru_fuzz::{Folder, Server, Turn, turns};

/// Turns of one input, so that none takes long.
const TURNS: usize = 256;

#[derive(Debug)]
struct Run {
    /// Whether there is a journal, to go on from after a restart.
    keeps: bool,
    turns: Vec<Turn>,
}

impl<'a> Arbitrary<'a> for Run {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Run> {
        Ok(Run { keeps: input.arbitrary()?, turns: turns(input, TURNS)? })
    }
}

fuzz_target!(|run: Run| {
    let mut server = if run.keeps {
        Server::of(Folder::new()).expect("an empty folder is a journal's beginning")
    } else {
        Server::forgetful()
    };
    server.greet();
    server.furnish();
    run.turns.iter().for_each(|turn| server.turn(turn));
    server.restart();
});
