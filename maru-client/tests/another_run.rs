//! A server that was started anew does not know what is pinned, and is told that before anything else is asked of it.

mod common;

use std::io::Read;
use std::os::unix::net::UnixListener;

use common::{greet_in_run, request};
use maru_client::{Config, MaruHandler};
use maru_proto::Opcode;
use pollster::block_on;

#[test]
fn a_connection_to_another_run_of_the_server_is_not_the_sessions_until_that_has_gone_on_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let accept = |epoch| {
            let (mut stream, _) = listener.accept().unwrap();
            greet_in_run(&mut stream, 1, epoch);
            stream
        };
        let _first = accept(1);
        // The first connection of those who await is already one to the next run, and the other is not known to be lost.
        let mut second = accept(2);
        assert_eq!(second.read(&mut [0]).unwrap(), 0, "nothing is asked on it");
        let mut third = accept(2);
        request(&mut third, &mut Vec::new()).opcode
    });
    let address = path.to_str().unwrap().parse().unwrap();
    let handler = MaruHandler::connect(Config::new().address(address)).unwrap();
    let call = std::thread::spawn({
        let handler = handler.clone();
        move || drop(block_on(handler.exists_async("chunk")))
    });
    assert_eq!(server.join().unwrap(), Opcode::AssertPins as u8);
    call.join().unwrap();
}
