//! A network that misbehaves: it stands between clients and a server on TCP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    /// Whether clients and server are cut off from each other.
    parted: AtomicBool,
    /// The server's ends of the connections, as long as these last.
    servers: Mutex<Vec<Weak<TcpStream>>>,
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
            parted: AtomicBool::new(false),
            servers: Mutex::default(),
        });
        let proxy = Proxy { address, faults: Arc::clone(&faults) };
        let server = server.to_owned();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if faults.is_parted() {
                    // Whoever knocks meanwhile is not heard, also not later.
                    faults.wait_for_heal();
                    continue;
                }
                let Ok(server) = TcpStream::connect(&server) else { continue };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                }
                let ends = [client, server].map(Arc::new);
                faults.servers().push(Arc::downgrade(&ends[1]));
                if faults.is_parted() {
                    let _ = ends[1].shutdown(Shutdown::Both);
                }
                for direction in [Direction::ToServer, Direction::ToClient] {
                    let (ends, faults) = (ends.clone(), Arc::clone(&faults));
                    thread::spawn(move || pass_on(&ends, direction, &faults));
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

    /// Cuts clients and server off from each other, until [`Proxy::heal`]. The server finds that its connections are lost, as it
    /// does when nobody acknowledges what it sends; clients hear nothing at all.
    pub fn part(&self) {
        self.faults.parted.store(true, Ordering::SeqCst);
        for server in self.faults.servers().drain(..).filter_map(|server| server.upgrade()) {
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// Clients find that their connections of before are lost, and can connect anew.
    pub fn heal(&self) {
        self.faults.parted.store(false, Ordering::SeqCst);
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

impl Faults {
    fn is_parted(&self) -> bool {
        self.parted.load(Ordering::SeqCst)
    }

    fn wait_for_heal(&self) {
        while self.is_parted() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn servers(&self) -> MutexGuard<'_, Vec<Weak<TcpStream>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pass_on([client, server]: &[Arc<TcpStream>; 2], direction: Direction, faults: &Faults) {
    let (mut from, mut to) = match direction {
        Direction::ToServer => (&**client, &**server),
        Direction::ToClient => (&**server, &**client),
    };
    let mut buffer = [0; 65536];
    let mut pieces = PIECES.iter().cycle();
    loop {
        let most = match faults.chop.load(Ordering::SeqCst) {
            true => *pieces.next().expect("it never ends"),
            false => buffer.len(),
        };
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        if faults.is_parted() {
            break;
        }
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
    faults.wait_for_heal();
    for end in [client, server] {
        let _ = end.shutdown(Shutdown::Both);
    }
}
