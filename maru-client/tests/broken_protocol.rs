//! A server that breaks the protocol fails everybody who waits for it, and nobody waits for ever.

mod common;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use common::{found, greet, request};
use maru_client::{Config, Error, MaruHandler};
use pollster::block_on;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Accepts a connection and says HELLO.
fn accept(listener: &UnixListener) -> UnixStream {
    let (mut stream, _) = listener.accept().unwrap();
    greet(&mut stream, 1);
    stream
}

/// An answer that came whole is taken, also when what follows it in the same bytes ends the connection.
#[test]
fn who_was_answered_before_the_protocol_broke_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maru.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let _blocking = accept(&listener);
        let mut awaited = accept(&listener);
        let mut input = Vec::new();
        let requests = [(); 2].map(|()| request(&mut awaited, &mut input));
        // One right answer, and in the same write something that is no frame.
        awaited.write_all(&[found(&requests[0]), b"garbage that goes on".to_vec()].concat()).unwrap();
        let _ = std::io::copy(&mut awaited, &mut std::io::sink());
    });

    let address = path.to_str().unwrap().parse().unwrap();
    let handler = MaruHandler::connect(Config::new().address(address)).unwrap();
    let (done, outcomes) = mpsc::channel();
    for key in ["first", "second"] {
        let (future, done) = (handler.exists_async(key), done.clone());
        std::thread::spawn(move || done.send(block_on(future)));
    }
    let mut outcomes = [(); 2].map(|()| outcomes.recv_timeout(PATIENCE).expect("nobody waits for ever"));
    outcomes.sort_by_key(Result::is_err);
    assert!(matches!(outcomes[0], Ok(true)), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(Error::ConnectionLost)), "{outcomes:?}");
    drop(handler);
    server.join().unwrap();
}
