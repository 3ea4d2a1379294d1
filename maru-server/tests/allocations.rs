//! A request costs the serving thread no heap allocation.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use common::Peer;
use maru_proto::{
    Flags, FrameStatus, KeyDigest, Opcode, RegionRecord, RegisterRecord, RequestAllocRequest, SessionToken,
};
use maru_server::{Configuration, Options};
use zerocopy::FromBytes;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting what the serving thread asks it for.
struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_hundred_thousand_requests_allocate_nothing() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let arguments = ["maru-server", "--driver", "ring", "--pool-size", "16MiB", "--allow-shutdown"];
    let mut options = Options::parse_from(arguments);
    options.socket = Some(path("maru.sock").into());
    options.pool = vec![format!("tmpfs:{}", path("pool")).parse().unwrap()];
    let server = std::thread::spawn(move || {
        COUNTED.set(true);
        maru_server::run(&options, || Configuration::load().map(|again| again.options))
    });
    let connect = || {
        let mut socket = None;
        maru_tests::wait_until("the server listens", || {
            socket = UnixStream::connect(folder.path().join("maru.sock")).ok();
            socket.is_some()
        });
        Peer::over(socket.unwrap())
    };
    // A connection that asks for memory leaves the reactor, so it is not the one that is measured.
    let mut control = connect();
    let session = control.hello("a", SessionToken::NONE).session;
    let mut peer = connect();
    peer.hello("a", session);
    let request = RequestAllocRequest {
        size: (1 << 20).into(),
        page_size: 4096.into(),
        pool_id: RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let region = control.call(Opcode::RequestAlloc, Flags::NONE, &[request]);
    let region = RegionRecord::read_from_bytes(&region.body).unwrap().region_id;

    let digests = (0..64).map(|n| KeyDigest::from_bytes([n; 16])).collect::<Vec<_>>();
    let records = (0u32..).zip(&digests).map(|(page, &digest)| RegisterRecord {
        digest,
        region_id: region,
        length: 4096.into(),
        page_index: page.into(),
        checksum: 0.into(),
    });
    let records = records.collect::<Vec<_>>();
    let one = &digests[..1];
    // More than are served in one go.
    let many = digests.iter().copied().cycle().take(600).collect::<Vec<_>>();
    let registered = peer.call(Opcode::BatchRegisterKv, Flags::NONE, &records);
    assert_eq!(registered.status, FrameStatus::Ok);
    let acquire = Flags::PIN | Flags::PREFIX_STOP;
    let mut round = || {
        for (opcode, flags, digests) in [
            (Opcode::ExistsKv, Flags::NONE, one),
            (Opcode::LookupKv, Flags::NONE, one),
            (Opcode::BatchLookupKv, acquire, &digests),
            (Opcode::BatchUnpinKv, Flags::PIN, &digests),
            (Opcode::PinKv, Flags::NONE, one),
            (Opcode::DeleteKv, Flags::NONE, one),
            (Opcode::UnpinKv, Flags::NONE, one),
            (Opcode::BatchExistsKv, Flags::PREFIX_STOP, &digests),
            (Opcode::BatchExistsKv, Flags::NONE, &many),
        ] {
            assert_eq!(peer.call(opcode, flags, digests).status, FrameStatus::Ok);
        }
        // The first writer won, so nothing changes.
        assert_eq!(peer.call(Opcode::RegisterKv, Flags::NONE, &records[..1]).status, FrameStatus::Ok);
        assert_eq!(peer.call::<KeyDigest>(Opcode::Heartbeat, Flags::NONE, &[]).status, FrameStatus::Ok);
    };
    (0..100).for_each(|_| round());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..10_000).for_each(|_| round());
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;

    assert_eq!(peer.call::<KeyDigest>(Opcode::Shutdown, Flags::NONE, &[]).status, FrameStatus::Ok);
    server.join().unwrap().unwrap();
    assert_eq!(allocations, 0, "over 100,000 requests");
}
