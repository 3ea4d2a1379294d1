//! What `docs/protocol.md` says is what the code does: its frames in hexadecimal, and its tables of opcodes, statuses, sizes
//! and offsets.

use std::collections::BTreeMap;
use std::mem::offset_of;

use maru_proto::*;
use zerocopy::{FromZeros, Immutable, IntoBytes};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// The rows of every table whose head begins with these columns, each as trimmed cells without backquotes.
fn rows(columns: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let inside = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'))?;
        Some(inside.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>())
    };
    let mut rows = Vec::new();
    let mut is_wanted = None;
    for line in DOCUMENT.lines() {
        match (cells(line), is_wanted) {
            (None, _) => is_wanted = None,
            (Some(head), None) => is_wanted = Some(head.iter().zip(columns).all(|(a, b)| a == b)),
            (Some(row), Some(true)) if !row[0].starts_with("---") => rows.push(row),
            _ => {}
        }
    }
    assert!(!rows.is_empty(), "no table has the columns {columns:?}");
    rows
}

/// The part of the document under a heading.
fn section(heading: &str) -> &'static str {
    let start = DOCUMENT.find(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let rest = &DOCUMENT[start + heading.len()..];
    &rest[..rest.find("\n#").unwrap_or(rest.len())]
}

/// `HelloRequired` as the wire's names are written.
fn upper_snake(variant: &str) -> String {
    let mut name = String::new();
    for character in variant.chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

#[test]
fn constants() {
    let documented = rows(&["constant", "value"]).into_iter().map(|row| (row[0].clone(), row[1].clone()));
    let actual = [
        ("MAGIC", String::from_utf8(MAGIC.to_vec()).unwrap()),
        ("VERSION", VERSION.to_string()),
        ("BODY_ALIGN", BODY_ALIGN.to_string()),
        ("DEFAULT_MAX_BODY", DEFAULT_MAX_BODY.to_string()),
        ("INSTANCE_ID_MAX", INSTANCE_ID_MAX.to_string()),
        ("AUTH_TOKEN_MAX", AUTH_TOKEN_MAX.to_string()),
        ("POOL_PATH_MAX", POOL_PATH_MAX.to_string()),
        ("SOCKET_PATH_MAX", SOCKET_PATH_MAX.to_string()),
    ];
    let actual = actual.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(documented.collect::<Vec<_>>(), actual);
}

#[test]
fn opcodes() {
    let documented = rows(&["opcode", "name"]).into_iter().map(|row| (row[0].clone(), row[1].clone()));
    let actual =
        Opcode::ALL.iter().map(|opcode| (format!("0x{:02X}", *opcode as u8), opcode.name().to_owned()));
    assert_eq!(documented.collect::<Vec<_>>(), actual.collect::<Vec<_>>());
}

#[test]
fn flags() {
    let flags = [
        ("RESPONSE", Flags::RESPONSE),
        ("PIN", Flags::PIN),
        ("PREFIX_STOP", Flags::PREFIX_STOP),
        ("NO_REPLY", Flags::NO_REPLY),
        ("EVICT", Flags::EVICT),
        ("LAST", Flags::LAST),
    ];
    let actual =
        flags.map(|(name, flag)| (name.to_owned(), flag.bits().trailing_zeros().to_string())).to_vec();
    let documented = rows(&["flag", "bit"]).into_iter().filter(|row| !row[0].is_empty());
    assert_eq!(documented.map(|row| (row[0].clone(), row[1].clone())).collect::<Vec<_>>(), actual);
}

#[test]
fn statuses_of_frames_and_records() {
    let documented =
        rows(&["value", "name", "meaning"]).into_iter().map(|row| (row[0].clone(), row[1].clone()));
    let of_frames = FrameStatus::ALL
        .iter()
        .map(|status| ((*status as u16).to_string(), upper_snake(&format!("{status:?}"))));
    let of_records = RecordStatus::ALL
        .iter()
        .map(|status| ((*status as u8).to_string(), upper_snake(&format!("{status:?}"))));
    assert_eq!(documented.collect::<Vec<_>>(), of_frames.chain(of_records).collect::<Vec<_>>());
}

#[test]
fn numbers() {
    let mut actual = Vec::new();
    let mut add =
        |set: &str, value: u32, name: &str| actual.push([set, &value.to_string(), name].map(str::to_owned));
    for value in AllocationFilter::ALL {
        add("AllocationFilter", *value as u32, value.name());
    }
    for value in RegionState::ALL {
        add("RegionState", *value as u32, value.name());
    }
    for value in PoolKind::ALL {
        add("PoolKind", *value as u32, value.name());
    }
    for value in PoolCoherence::ALL {
        add("PoolCoherence", *value as u32, value.name());
    }
    for value in EvictionReason::ALL {
        add("EvictionReason", (*value as u16).into(), value.name());
    }
    for value in ClientOperation::ALL {
        add("ClientOperation", (*value as u16).into(), value.name());
    }
    let documented = rows(&["set", "value", "name"]).into_iter().map(|row| [0, 1, 2].map(|n| row[n].clone()));
    assert_eq!(documented.collect::<Vec<_>>(), actual);
}

#[test]
fn figures() {
    let documented =
        rows(&["kind", "name", "figure"]).into_iter().map(|row| (row[0].clone(), row[1].clone()));
    let actual = StatKind::ALL.iter().map(|kind| ((*kind as u16).to_string(), kind.name().to_owned()));
    assert_eq!(documented.collect::<Vec<_>>(), actual.collect::<Vec<_>>());
}

/// Offset, size and name of every field, and the size of the record.
type Layout = (Vec<(usize, usize, &'static str)>, usize);

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The layouts of records. A field that is not listed does not compile.
macro_rules! layouts {
    ($($record:ident { $($field:ident),* $(,)? })*) => {{
        let mut layouts = BTreeMap::<&str, Layout>::new();
        $(
            let _ = |$record { $($field: _),* }: $record| ();
            let fields = vec![$((
                offset_of!($record, $field),
                size_of_field(|record: &$record| &record.$field),
                stringify!($field),
            )),*];
            layouts.insert(stringify!($record), (fields, size_of::<$record>()));
        )*
        layouts
    }};
}

#[test]
fn records() {
    let mut actual = layouts! {
        Header { magic, version, opcode, flags, status, request_id, body_len }
        RequestAllocRequest { size, page_size, pool_id, reserved }
        ReturnAllocRequest { region_id, reserved }
        GetRegionRequest { region_id, reserved }
        ListAllocationsRequest { filter, after }
        RegionRecord {
            region_id, pool_id, pool_offset, size, page_size, owner, state, pages, entries, freed_pages, coherence,
            entry_bytes, file_offset, extent,
        }
        PoolRecord {
            pool_id, kind, size, free, largest_free, granularity, uuid, incarnation, coherence, path_len, reserved, path,
        }
        ReclaimRequest { want, region_id }
        PageRecord { region_id, page_index }
        PagesRequest { region_id, first_page }
        PinsRecord { digest, generation, guards, named, reserved }
        RegisterRecord { digest, region_id, length, page_index, checksum }
        LocationRecord { status, reserved, region_id, offset, length, generation, checksum }
        HeartbeatRecord { epoch, uptime_ms }
        StatRecord { kind, detail, reserved, value }
        UsageRequest { after, reserved }
        UsageRecord {
            instance, connections, regions, entries, region_bytes, entry_bytes, pinned_entries, pins, named_pins,
            oldest_pin_s, grace_left_ms, instance_id,
        }
        LatencyRequest { opcode, reserved, upper_ns }
        LatencyRecord { opcode, reserved, upper_ns, count }
        ReportRecord { instance, operation, reserved, upper_ns, calls, total_ns }
        ReportsRequest { instance, operation, reserved, upper_ns }
        SocketRecord { host, path_len, reserved, path }
        ServerRecord {
            release, process, is_operator, grace_ms, pin_ttl_ms, max_instances, max_pins_per_entry,
            max_regions_per_instance, reserved,
        }
        EntryRequest { digest }
        EntryRecord {
            digest, region_id, page_index, offset, length, generation, owner, pins, checksum, reserved,
        }
        ListPinsRequest { digest, after, instance, held_s, of_digest, reserved }
        HeldPinsRecord { digest, cursor, instance, generation, guards, named, held_s, length, reserved }
        ReleasePinsRecord { digest, generation, instance, held_s }
        HelloRequest { versions, features, kind, resume, reserved, instance_id, session, auth }
        HelloResponse {
            epoch, session, digest_key, features, instance, max_body, max_pins_per_entry, grace_ms, resumed, version,
            reserved,
        }
        VersionRange { oldest, newest, reserved }
    };
    // Its fields are private: the frame `hello-by-tcp` shows them.
    let auth_token = (vec![(0, 2, "length"), (2, 6, "reserved"), (8, 64, "bytes")], size_of::<AuthToken>());
    actual.insert("AuthToken", auth_token);
    let pool_header = vec![
        (0, 8, "magic"),
        (8, 4, "version"),
        (12, 4, "crc"),
        (16, 16, "uuid"),
        (32, 8, "incarnation"),
        (40, 16, "deployment"),
        (56, 72, "reserved"),
    ];
    actual.insert("PoolHeader", (pool_header, PoolHeader::LEN));

    let mut documented = BTreeMap::new();
    let headings = DOCUMENT.lines().filter_map(|line| {
        let (name, size) = line.strip_prefix("### ")?.split_once(", ")?;
        Some((line, name, size.strip_suffix(" bytes")?.parse::<usize>().ok()?))
    });
    for (heading, name, size) in headings {
        let fields = section(heading).lines().filter_map(|line| {
            let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`'));
            let offset = cells.nth(1)?.parse::<usize>().ok()?;
            Some((offset, cells.next()?.parse::<usize>().ok()?, cells.next()?))
        });
        documented.insert(name, (fields.collect::<Vec<_>>(), size));
    }
    for (name, layout) in &actual {
        assert_eq!(documented.get(name), Some(layout), "{name}");
    }
    assert_eq!(documented.len(), actual.len(), "{:?}", documented.keys());

    // What an operation asks for or answers has a table.
    for row in rows(&["opcode", "name"]) {
        let words = row[2..4].iter().flat_map(|cell| cell.split(|c: char| !c.is_alphanumeric()));
        for record in words.filter(|word| {
            word.ends_with("Record") || word.ends_with("Request") || word.ends_with("Response")
        }) {
            assert!(actual.contains_key(record), "{record}");
        }
    }
}

#[test]
fn digests() {
    let key = DigestKey::from(std::array::from_fn(|n| u8::try_from(n).unwrap()));
    for row in rows(&["message", "digest"]) {
        let message = if row[0] == "empty" { "" } else { &row[0] };
        assert_eq!(row[1], key.digest(message.as_bytes()).to_string(), "{message}");
    }
}

#[test]
fn checksums() {
    for row in rows(&["bytes", "checksum"]) {
        let bytes = row[0].split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>();
        assert_eq!(row[1], format!("0x{:08x}", checksum(&bytes)), "{}", row[0]);
    }
}

fn frame<T: IntoBytes + Immutable>(head: Head, records: &[T]) -> Vec<u8> {
    let mut out = vec![0; 1024];
    let length = encode(&mut out, head, records).unwrap();
    out.truncate(length);
    out
}

fn response(opcode: Opcode, request_id: u32, status: FrameStatus) -> Head {
    let mut request = Header::new_zeroed();
    request.opcode = opcode as u8;
    request.request_id = request_id.into();
    Head::response(&request, status)
}

/// The frames of the document, by their names.
fn examples() -> Vec<(&'static str, Vec<u8>)> {
    use Opcode::*;
    let ok = |opcode, request_id| response(opcode, request_id, FrameStatus::Ok);
    let request = Head::request;
    let none: &[KeyDigest] = &[];

    let key = DigestKey::from(std::array::from_fn(|n| u8::try_from(n).unwrap()));
    let (first, second) = (key.digest(b"llama@layer0@chunk17"), key.digest(b"llama@layer0@chunk18"));
    let session = SessionToken([0xA5; 16]);
    let name = InstanceId::new("engine-0").unwrap();

    let hello = HelloRequest::new(name, ConnectionKind::Data, SessionToken::NONE);
    let mut by_tcp = HelloRequest::new(name, ConnectionKind::Data, session);
    by_tcp.resume = 1;
    by_tcp.auth = AuthToken::new(b"secret").unwrap();
    let welcome = HelloResponse {
        epoch: 1.into(),
        session,
        digest_key: key,
        features: 0.into(),
        instance: 7.into(),
        max_body: DEFAULT_MAX_BODY.into(),
        max_pins_per_entry: 65_535.into(),
        grace_ms: 10_000.into(),
        resumed: 0,
        version: VERSION,
        reserved: [0; 6],
    };
    let alloc = RequestAllocRequest {
        size: (2 << 20).into(),
        page_size: (1 << 20).into(),
        pool_id: RequestAllocRequest::ANY_POOL.into(),
        reserved: 0.into(),
    };
    let region = RegionRecord {
        region_id: 3.into(),
        pool_id: 0.into(),
        pool_offset: (4 << 20).into(),
        size: (2 << 20).into(),
        page_size: (1 << 20).into(),
        owner: 7.into(),
        state: (RegionState::Owned as u32).into(),
        pages: 2.into(),
        entries: 0.into(),
        freed_pages: 0.into(),
        coherence: (PoolCoherence::Coherent as u32).into(),
        entry_bytes: 0.into(),
        file_offset: 0.into(),
        extent: (2 << 20).into(),
    };
    let register = RegisterRecord {
        digest: first,
        region_id: 3.into(),
        length: 1_000_000.into(),
        page_index: 1.into(),
        checksum: checksum(&[7; 1_000_000]).into(),
    };
    let mut location = LocationRecord::without(RecordStatus::Ok);
    location.region_id = 3.into();
    location.offset = (1 << 20).into();
    location.length = 1_000_000.into();
    location.generation = 12.into();
    location.checksum = register.checksum;
    let pins = PinsRecord {
        digest: first,
        generation: 12.into(),
        guards: 1.into(),
        named: 0.into(),
        reserved: 0.into(),
    };
    let mut statuses = vec![0; 64];
    let (records, length) = encode_statuses(&mut statuses, ok(BatchDeleteKv, 6), 2).unwrap();
    records.copy_from_slice(&[RecordStatus::Pinned as u8, RecordStatus::NotFound as u8]);
    statuses.truncate(length);
    let reported = |instance: u32, upper_ns: u64, calls: u64, total_ns: u64| ReportRecord {
        instance: instance.into(),
        operation: (ClientOperation::Retrieve as u16).into(),
        reserved: 0.into(),
        upper_ns: upper_ns.into(),
        calls: calls.into(),
        total_ns: total_ns.into(),
    };
    let from_the_first =
        ReportsRequest { instance: 0.into(), operation: 0.into(), reserved: 0.into(), upper_ns: 0.into() };
    let mut asserted = vec![0; 64];
    let (records, length) = encode_statuses(&mut asserted, ok(AssertPins, 10), 1).unwrap();
    records.copy_from_slice(&[RecordStatus::Ok as u8]);
    asserted.truncate(length);

    vec![
        ("hello", frame(request(Hello, Flags::NONE, 1), &[hello])),
        ("hello-by-tcp", frame(request(Hello, Flags::NONE, 1), &[by_tcp])),
        ("welcome", frame(ok(Hello, 1), &[welcome])),
        ("alloc", frame(request(RequestAlloc, Flags::NONE, 2), &[alloc])),
        ("region", frame(ok(RequestAlloc, 2), &[region])),
        ("register", frame(request(RegisterKv, Flags::NONE, 3), &[register])),
        ("acquire", frame(request(BatchLookupKv, Flags::PIN | Flags::PREFIX_STOP, 4), &[first, second])),
        (
            "acquired",
            frame(ok(BatchLookupKv, 4), &[location, LocationRecord::without(RecordStatus::NotFound)]),
        ),
        ("release", frame(request(UnpinKv, Flags::PIN | Flags::NO_REPLY, 5), &[first])),
        ("delete", frame(request(BatchDeleteKv, Flags::NONE, 6), &[first, second])),
        ("deleted", statuses),
        ("heartbeat", frame(request(Heartbeat, Flags::NONE, 7), none)),
        ("heartbeat-answer", {
            frame(ok(Heartbeat, 7), &[HeartbeatRecord { epoch: 1.into(), uptime_ms: 90_000.into() }])
        }),
        ("refused", frame(response(ReturnAlloc, 8, FrameStatus::RegionNotFound), none)),
        (
            "other-version",
            frame(response(Hello, 1, FrameStatus::UnsupportedVersion), &[VersionRange::SPOKEN]),
        ),
        ("assert-pins", frame(request(AssertPins, Flags::LAST, 10), &[pins])),
        ("asserted", asserted),
        (
            "report",
            frame(
                request(ReportStats, Flags::NONE, 11),
                &[reported(0, 9216, 40, 350_000), reported(0, 10_240, 2, 19_000)],
            ),
        ),
        ("reported", frame(ok(ReportStats, 11), none)),
        ("list-reports", frame(request(ListReports, Flags::NONE, 12), &[from_the_first])),
        (
            "reports",
            frame(ok(ListReports, 12), &[reported(7, 9216, 40, 350_000), reported(7, 10_240, 2, 19_000)]),
        ),
    ]
}

/// Lines of 16 bytes, the header by itself, zeros at the end by their number.
fn dump(bytes: &[u8]) -> String {
    let mut lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>();
    let zeros = lines.iter().rev().take_while(|line| line.split(' ').all(|byte| byte == "00")).count();
    if zeros > 1 {
        let length = bytes.len() - (lines.len() - zeros) * 16;
        lines.truncate(lines.len() - zeros);
        lines.push(format!("00 * {length}"));
    }
    lines.join("\n")
}

/// The bytes that the lines of a block stand for, without their comments.
fn bytes(block: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in block.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(count) = line.strip_prefix("00 * ") {
            bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), 0);
        } else {
            bytes.extend(line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
    }
    bytes
}

#[test]
fn whole_frames() {
    let mut documented = BTreeMap::new();
    for block in DOCUMENT.split("\n```hex name=").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (body, _) = rest.split_once("\n```").unwrap();
        assert!(documented.insert(name, bytes(body)).is_none(), "{name} stands there twice");
    }
    for (name, actual) in examples() {
        let found = documented.remove(name);
        assert_eq!(found.as_ref(), Some(&actual), "{name} is\n```hex name={name}\n{}\n```", dump(&actual));
        // And a reader of the bytes finds a frame in them.
        assert!(
            matches!(decode(&actual, DEFAULT_MAX_BODY), Ok(Step::Frame { consumed, .. }) if consumed == actual.len())
        );
    }
    assert!(documented.is_empty(), "no frame of the test: {:?}", documented.keys());
}

/// Prints every block: `cargo test -p maru-proto --test documented -- --ignored --nocapture`.
#[test]
#[ignore = "prints what is to be written into the document"]
fn print_frames() {
    for (name, bytes) in examples() {
        println!("```hex name={name}\n{}\n```\n", dump(&bytes));
    }
}
