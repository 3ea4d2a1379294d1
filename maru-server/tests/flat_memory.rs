//! Whatever comes and goes, the server's memory stays what it is.

mod common;

use common::Peer;
use maru_proto::{
    Flags, FrameStatus, KeyDigest, Opcode, ReclaimRequest, RegionRecord, RegisterRecord, RequestAllocRequest,
};
use maru_tests::ServerProcess;
use zerocopy::FromBytes;

/// What the allocator may keep for later, and no more.
const SLACK: u64 = 1 << 20;

#[test]
fn ten_thousand_instances_come_and_go() {
    let server = ServerProcess::start(&["--grace", "1ms"]);
    let cycles = |count: u32| {
        for n in 0..count {
            Peer::greeted(&server, &format!("instance-{n}"));
        }
        server.resident_bytes()
    };
    let before = cycles(1000);
    let after = cycles(10_000);
    assert!(after < before + SLACK, "{before} bytes, then {after}");
}

#[test]
fn ten_million_entries_come_and_go() {
    let server = ServerProcess::start(&[]);
    let (mut peer, _) = Peer::greeted(&server, "a");
    let request = RequestAllocRequest {
        size: (4 << 20).into(),
        page_size: 4096.into(),
        pool_id: RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let region = peer.call(Opcode::RequestAlloc, Flags::NONE, &[request]);
    let region_id = RegionRecord::read_from_bytes(&region.body).unwrap().region_id;
    let mut next = 0u128;
    // A thousand chunks at a time, half of them deleted, half of them evicted.
    let mut cycles = |count: u32| {
        for _ in 0..count {
            let digests = [(); 1000].map(|()| {
                next = next.wrapping_add(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
                KeyDigest::from_bytes(next.to_le_bytes())
            });
            let records = (0u32..).zip(&digests).map(|(page, digest)| RegisterRecord {
                digest: *digest,
                region_id,
                length: 4096.into(),
                page_index: page.into(),
                checksum: 0.into(),
            });
            let records = records.collect::<Vec<_>>();
            let registered = peer.call(Opcode::BatchRegisterKv, Flags::NONE, &records);
            assert!(registered.body.iter().all(|status| *status == 0), "all are stored");
            peer.call(Opcode::BatchDeleteKv, Flags::NONE, &digests[..500]);
            let want = ReclaimRequest { want: 1000.into(), region_id: 0.into() };
            // First what was freed, then what has to be evicted.
            for _ in 0..2 {
                let pages = peer.call(Opcode::ReclaimPages, Flags::EVICT, &[want]);
                assert_eq!((pages.status, pages.body.len()), (FrameStatus::Ok, 8 * 500));
            }
        }
        server.resident_bytes()
    };
    let before = cycles(1000);
    let after = cycles(10_000);
    assert!(after < before + SLACK, "{before} bytes, then {after}");
}
