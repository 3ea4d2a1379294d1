//! A server that takes long to make a region's memory keeps nobody else waiting, on TCP as on its Unix socket, and is given longer for
//! it than for anything else.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{answer, found, greet, request};
use maru_client::{Address, Config, Error, MaruHandler};
use maru_proto::{FrameStatus, Opcode, PoolRecord};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long any other request may take.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Accepts a connection and says HELLO.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    greet(&mut stream, 1);
    stream
}

/// Answers everything, without a pool, and with every chunk there, until the client goes.
fn serve(mut stream: TcpStream) {
    let mut input = Vec::new();
    while !matches!(stream.peek(&mut [0]), Ok(0) | Err(_)) {
        let asked = request(&mut stream, &mut input);
        match Opcode::from_u8(asked.opcode) {
            Some(Opcode::BatchExistsKv | Opcode::ExistsKv) => stream.write_all(&found(&asked)).unwrap(),
            Some(Opcode::ListPools) => answer::<PoolRecord>(&mut stream, &asked, FrameStatus::Ok, &[]),
            _ => answer::<PoolRecord>(&mut stream, &asked, FrameStatus::NoSpace, &[]),
        }
    }
}

/// What was cut off for longer than the session lasts may well begin with a page.
#[test]
fn of_a_server_that_has_ended_the_session_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    std::thread::spawn(move || {
        let data = accept(&listener);
        std::thread::spawn(|| serve(data));
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let hello = request(&mut stream, &mut Vec::new());
            assert_eq!(hello.opcode, Opcode::Hello as u8);
            answer::<PoolRecord>(&mut stream, &hello, FrameStatus::Unauthorized, &[]);
        }
    });
    let config = Config::new().address(address).stay_on_tcp(true).page_size(4096).region_size(4096);
    let handler = MaruHandler::connect(config).unwrap();
    let began = Instant::now();
    loop {
        match handler.alloc(4096).map(drop).unwrap_err() {
            Error::SessionEnded => break,
            error => assert!(matches!(error, Error::ConnectionLost), "{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "nobody says that the session has ended");
    }
}

#[test]
fn over_tcp_takes_its_time_and_nobody_elses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let (asked_for_a_region, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let data = accept(&listener);
        std::thread::spawn(|| serve(data));
        let mut regions = accept(&listener);
        let asked = request(&mut regions, &mut Vec::new());
        assert_eq!(asked.opcode, Opcode::RequestAlloc as u8);
        asked_for_a_region.send(()).unwrap();
        may_go_on.recv().unwrap();
        answer::<PoolRecord>(&mut regions, &asked, FrameStatus::NoSpace, &[]);
    });

    let config = Config::new().address(address).stay_on_tcp(true).timeout(TIMEOUT).page_size(4096);
    let handler = MaruHandler::connect(config.region_size(4096)).unwrap();
    let asking = handler.clone();
    let page = std::thread::spawn(move || asking.alloc(4096).map(drop));
    is_asked.recv_timeout(PATIENCE).expect("it is asked on a connection of its own");
    assert!(handler.exists("chunk").unwrap());
    std::thread::sleep(3 * TIMEOUT);
    assert!(handler.exists("chunk").unwrap());
    assert!(!page.is_finished(), "it is waited for as long as it may take");
    go_on.send(()).unwrap();
    let refused = page.join().unwrap().unwrap_err();
    assert!(matches!(refused, Error::Refused { status: FrameStatus::NoSpace, .. }), "{refused}");
    assert!(handler.exists("chunk").unwrap());
}
