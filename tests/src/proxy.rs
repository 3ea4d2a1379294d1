//! A network that misbehaves: it stands between clients and a server on TCP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

/// Bytes that travel together where streams are chopped, one after the other: no frame has such a size.
const PIECES: [usize; 6] = [1, 3, 2, 7, 5, 13];

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer,
    /// Answers.
    ToClient,
}

#[derive(Debug)]
struct Faults {
    chop: AtomicBool,
    /// Bytes that still pass each way before the connection breaks or stands still; negative for all.
    left: [AtomicI64; 2],
    /// Whether it stands still that way instead of breaking.
    stand_still: [AtomicBool; 2],
}

/// A proxy that passes everything on as long as nobody tells it otherwise. It ends with the process.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: String,
    faults: Arc<Faults>,
}

impl Proxy {
    /// Stands before a server.
    ///
    /// # Panics
    /// When it can't listen.
    pub fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it listens").to_string();
        let faults = Arc::new(Faults {
            chop: AtomicBool::new(false),
            left: [AtomicI64::new(-1), AtomicI64::new(-1)],
            stand_still: Default::default(),
        });
        let proxy = Proxy { address, faults: Arc::clone(&faults) };
        let server = server.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                }
                for direction in [Direction::ToServer, Direction::ToClient] {
                    let ends = [&client, &server].map(|end| end.try_clone().expect("a socket can be cloned"));
                    let faults = Arc::clone(&faults);
                    thread::spawn(move || pass_on(ends, direction, &faults));
                }
            }
        });
        proxy
    }

    /// Where clients connect.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has every stream arrive in pieces of a few bytes.
    pub fn chop(&self) {
        self.faults.chop.store(true, Ordering::SeqCst);
    }

    /// Breaks the connection that carries the byte behind this many from now on, once.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        self.pass_only(direction, bytes, false);
    }

    /// Lets only so many further bytes pass until [`Proxy::let_pass`]; the rest waits.
    pub fn hold_after(&self, direction: Direction, bytes: usize) {
        self.pass_only(direction, bytes, true);
    }

    /// Lets everything pass.
    pub fn let_pass(&self) {
        self.faults.left.iter().for_each(|left| left.store(-1, Ordering::SeqCst));
    }

    /// Whether no further bytes pass that way.
    pub fn is_holding(&self, direction: Direction) -> bool {
        self.faults.left[direction as usize].load(Ordering::SeqCst) == 0
    }

    fn pass_only(&self, direction: Direction, bytes: usize, stand_still: bool) {
        self.faults.stand_still[direction as usize].store(stand_still, Ordering::SeqCst);
        let bytes = i64::try_from(bytes).expect("few bytes are counted");
        self.faults.left[direction as usize].store(bytes, Ordering::SeqCst);
    }

    /// Whether the connection that was to break has broken.
    pub fn has_cut(&self) -> bool {
        self.faults.left.iter().all(|left| left.load(Ordering::SeqCst) < 0)
    }
}

fn pass_on([client, server]: [TcpStream; 2], direction: Direction, faults: &Faults) {
    let (mut from, mut to) = match direction {
        Direction::ToServer => (&client, &server),
        Direction::ToClient => (&server, &client),
    };
    let mut buffer = [0; 65536];
    let mut pieces = PIECES.iter().cycle();
    loop {
        let most = match faults.chop.load(Ordering::SeqCst) {
            true => *pieces.next().expect("it never ends"),
            false => buffer.len(),
        };
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        let left = &faults.left[direction as usize];
        let passes = match left.load(Ordering::SeqCst) {
            left if left < 0 => read,
            left => read.min(usize::try_from(left).expect("it is not negative")),
        };
        if to.write_all(&buffer[..passes]).is_err() {
            break;
        }
        if left.load(Ordering::SeqCst) >= 0 {
            if passes < read {
                if !faults.stand_still[direction as usize].load(Ordering::SeqCst) {
                    left.store(-1, Ordering::SeqCst);
                    break;
                }
                left.store(0, Ordering::SeqCst);
                while left.load(Ordering::SeqCst) >= 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                if to.write_all(&buffer[passes..read]).is_err() {
                    break;
                }
                continue;
            }
            left.fetch_sub(i64::try_from(read).expect("a buffer is small"), Ordering::SeqCst);
        }
    }
    for end in [&client, &server] {
        let _ = end.shutdown(Shutdown::Both);
    }
}
