//! Whatever a server sends, in whatever pieces, each request that a client waits for is answered by its own frame, once, or the
//! client says what is wrong with the connection.
#![no_main]

use std::collections::BTreeMap;
use std::mem;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use maru_client::ProtocolError;
use maru_client::fuzzing::Conversation;
use maru_fuzz::frame_of;
use maru_proto::{Flags, FrameStatus, Opcode, Step, decode, max_response_body};

/// As few as clients accept.
const MAX_BODY: u32 = 1024;
/// Turns of one input, so that none takes long.
const TURNS: usize = 256;

#[derive(Arbitrary, Debug)]
enum Turn {
    /// A request is sent.
    Ask(u8),
    /// The server answers one that there is or was, or another, in pieces of so many bytes.
    Answer { which: u8, other: Option<u8>, is_request: bool, body: Vec<u8>, pieces: u8 },
    /// It sends anything.
    Bytes(Vec<u8>),
    /// Whoever waits for an answer waits no longer.
    GiveUp(u8),
    /// Whoever waits for an answer looks for it.
    Take(u8),
}

#[derive(Debug)]
struct Run(Vec<Turn>);

impl<'a> Arbitrary<'a> for Run {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Run> {
        let mut turns = Vec::new();
        while !input.is_empty() && turns.len() < TURNS {
            turns.push(input.arbitrary()?);
        }
        Ok(Run(turns))
    }
}

/// What has become of a request.
#[derive(Debug)]
enum Asked {
    Waiting(Opcode),
    Abandoned(Opcode),
    Answered(Vec<u8>),
}

/// The connection as it is to be: all bytes in one buffer, all requests in one map.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    asked: BTreeMap<u32, Asked>,
    /// All ids that there were, with their operations.
    ids: Vec<(u32, Opcode)>,
}

fuzz_target!(|run: Run| {
    let mut client = Conversation::new(MAX_BODY);
    let mut model = Model::default();
    for turn in &run.0 {
        if play(turn, &mut client, &mut model).is_err() {
            return;
        }
        assert_eq!(client.in_use(), model.asked.len());
        let abandoned = model.asked.values().filter(|asked| matches!(asked, Asked::Abandoned(_)));
        assert_eq!(client.abandoned(), abandoned.count());
    }
});

/// Lets both do the same; the error that ends the connection.
fn play(turn: &Turn, client: &mut Conversation, model: &mut Model) -> Result<(), ProtocolError> {
    match turn {
        Turn::Ask(opcode) => {
            let opcode = nth(*opcode);
            let id = client.ask(opcode).expect("there are fewer than can wait");
            assert!(model.ids.iter().all(|(earlier, _)| *earlier != id), "an id is used once");
            model.asked.insert(id, Asked::Waiting(opcode));
            model.ids.push((id, opcode));
        }
        Turn::Answer { which, other, is_request, body, pieces } => {
            let (id, opcode) = model.id(*which);
            let opcode = other.map_or(opcode, nth);
            let flags = if *is_request { Flags::NONE } else { Flags::RESPONSE };
            let frame = frame_of(opcode as u8, flags, FrameStatus::Ok as u16, id, body);
            for piece in frame.chunks(usize::from(*pieces).max(1)) {
                receive(piece, client, model)?;
            }
        }
        Turn::Bytes(bytes) => receive(bytes, client, model)?,
        Turn::GiveUp(which) => {
            let (id, _) = model.id(*which);
            if let Some(asked) = model.asked.get_mut(&id) {
                let waits = match *asked {
                    Asked::Waiting(opcode) => {
                        *asked = Asked::Abandoned(opcode);
                        true
                    }
                    Asked::Abandoned(_) | Asked::Answered(_) => false,
                };
                assert_eq!(client.give_up(id), waits);
            }
        }
        Turn::Take(which) => {
            let (id, _) = model.id(*which);
            if let Some(asked) = model.asked.remove(&id) {
                match asked {
                    Asked::Answered(frame) => assert_eq!(client.take(id), Some(frame)),
                    asked => {
                        assert_eq!(client.take(id), None);
                        model.asked.insert(id, asked);
                    }
                }
            }
        }
    }
    Ok(())
}

fn receive(bytes: &[u8], client: &mut Conversation, model: &mut Model) -> Result<(), ProtocolError> {
    let expected = model.receive(bytes);
    assert_eq!(client.receive(bytes), expected);
    expected
}

impl Model {
    /// One of the requests that there were, or none of them.
    fn id(&self, which: u8) -> (u32, Opcode) {
        let place = usize::from(which) % (self.ids.len() + 1);
        self.ids.get(place).copied().unwrap_or((u32::from(which), nth(which)))
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        self.bytes.extend_from_slice(bytes);
        let bytes = mem::take(&mut self.bytes);
        let mut rest = &bytes[..];
        while let Step::Frame { frame, consumed } = decode(rest, max_response_body(MAX_BODY))? {
            if !frame.flags().contains(Flags::RESPONSE) {
                return Err(ProtocolError::NotAResponse);
            }
            let id = frame.request_id();
            let (opcode, is_awaited) = match self.asked.get(&id) {
                Some(Asked::Waiting(opcode)) => (*opcode, true),
                Some(Asked::Abandoned(opcode)) => (*opcode, false),
                Some(Asked::Answered(_)) | None => return Err(ProtocolError::UnknownRequest(id)),
            };
            if frame.opcode() != Some(opcode) {
                return Err(ProtocolError::WrongOperation(opcode));
            }
            if is_awaited {
                self.asked.insert(id, Asked::Answered(rest[..consumed].to_vec()));
            } else {
                self.asked.remove(&id);
            }
            rest = &rest[consumed..];
        }
        self.bytes = rest.to_vec();
        Ok(())
    }
}

fn nth(opcode: u8) -> Opcode {
    Opcode::ALL[usize::from(opcode) % Opcode::ALL.len()]
}
