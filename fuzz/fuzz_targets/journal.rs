//! Whatever becomes of a journal's files, they are refused or gone on from, in a state whose every invariant holds.
#![no_main]

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use maru_fuzz::{Folder, LIMITS, POOLS, Server, Turn, open_journal, turns};
use maru_server::state::State;

/// Turns before the damage, and after it.
const TURNS: usize = 32;
/// Damage that one journal takes.
const DAMAGE: usize = 8;
/// Bytes of what stands before the slots of instances.
const HEAD: usize = 64;
/// Bytes of what stands before the records of pages, and of that what its checksum is of.
const TABLE_HEAD: usize = 96;
const TABLE_FIXED: usize = 72;
/// Bytes of the slot of an instance.
const SLOT: usize = 160;
/// Bytes of the record of a page.
const RECORD: usize = 32;

#[derive(Debug)]
struct Run {
    /// What the journal is made by.
    before: Vec<Turn>,
    damage: Vec<Damage>,
    /// What a server does that goes on all the same.
    after: Vec<Turn>,
}

impl<'a> Arbitrary<'a> for Run {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Run> {
        let (before, damage) = (input.int_in_range(0..=TURNS)?, input.int_in_range(0..=DAMAGE)?);
        let damage = (0..damage).map(|_| input.arbitrary()).collect::<arbitrary::Result<_>>()?;
        Ok(Run { damage, before: turns(input, before)?, after: turns(input, TURNS)? })
    }
}

/// What happens to the files, which are counted by name.
#[derive(Arbitrary, Debug)]
enum Damage {
    /// Bits of a byte change.
    Flip { file: u8, at: u16, bits: u8 },
    /// A word of the head, or of the slot or record behind it, gets another value.
    Word { file: u8, word: u8, value: u32 },
    /// The same, with a value that is small.
    SmallWord { file: u8, word: u8, value: u8 },
    /// The file's end is cut off.
    Truncate { file: u8, length: u16 },
    /// Bytes follow its end.
    Extend { file: u8, bytes: Vec<u8> },
    /// It has so many blocks, without memory behind them.
    Stretch { file: u8, blocks: u16 },
    /// Two files have each other's names.
    Swap { one: u8, other: u8 },
    /// A file has the name of another region's memory, or page table.
    Rename { file: u8, region: u32, is_table: bool },
    /// A file is there twice.
    Copy { file: u8, region: u8, is_table: bool },
    /// A slot or record is there twice.
    Repeat { file: u8, from: u8, to: u8 },
    /// It is gone.
    Remove { file: u8 },
    /// All its checksums are right again: what it says was written so.
    Vouch { file: u8 },
}

fuzz_target!(|run: Run| {
    let mut server = Server::of(Folder::new()).expect("an empty folder is a journal's beginning");
    server.greet();
    server.furnish();
    run.before.iter().for_each(|turn| server.turn(turn));
    let folder = server.into_folder().expect("it keeps a journal");
    run.damage.iter().for_each(|damage| damage.befall(&folder));

    let Ok((journal, saved)) = open_journal(&folder) else { return };
    drop(journal);
    let state = State::restore(LIMITS, &POOLS, &saved, Duration::ZERO);
    let Ok(mut state) = state else { return };
    state.check();

    let mut server = Server::of(folder).expect("what was taken once is taken again");
    server.greet();
    run.after.iter().for_each(|turn| server.turn(turn));
    server.restart();
});

impl Damage {
    fn befall(&self, folder: &Folder) {
        let files = folder.files();
        let Some(last) = files.len().checked_sub(1) else { return };
        let file = |file: u8| &files[usize::from(file).min(last)];
        let named = |region: u32, is_table: bool| {
            let end = if is_table { ".pages" } else { "" };
            folder.path().join(format!("region-{region}{end}"))
        };
        match *self {
            Damage::Flip { file: which, at, bits } => change(file(which), |bytes| {
                if let Some(byte) = bytes.get_mut(usize::from(at)) {
                    *byte ^= bits;
                }
            }),
            Damage::Word { file: which, word, value } => set_word(file(which), word, value),
            Damage::SmallWord { file: which, word, value } => set_word(file(which), word, u32::from(value)),
            Damage::Truncate { file: which, length } => {
                let length = u64::from(length);
                if fs::metadata(file(which)).is_ok_and(|file| file.len() > length) {
                    set_length(file(which), length);
                }
            }
            Damage::Extend { file: which, ref bytes } => {
                let file = OpenOptions::new().write(true).open(file(which)).expect("it is there");
                let end = file.metadata().expect("it is a file").len();
                file.write_all_at(bytes, end).expect("there is room for some bytes");
            }
            Damage::Stretch { file: which, blocks } => set_length(file(which), u64::from(blocks) * 4096),
            Damage::Swap { one, other } => {
                let aside = folder.path().join("aside");
                rename(file(one), &aside);
                if one != other && file(one) != file(other) {
                    rename(file(other), file(one));
                }
                rename(&aside, file(other));
            }
            Damage::Rename { file: which, region, is_table } => rename(file(which), &named(region, is_table)),
            Damage::Copy { file: which, region, is_table } => {
                let to = named(u32::from(region), is_table);
                if to != *file(which) {
                    fs::write(to, beginning(file(which))).expect("there is room for a copy");
                }
            }
            Damage::Repeat { file: which, from, to } => {
                let (head, size) = if is_table(file(which)) { (TABLE_HEAD, RECORD) } else { (HEAD, SLOT) };
                change(file(which), |bytes| {
                    let at = |n: u8| head + usize::from(n) * size;
                    if bytes.len() >= at(from.max(to)) + size {
                        bytes.copy_within(at(from)..at(from) + size, at(to));
                    }
                });
            }
            Damage::Remove { file: which } => fs::remove_file(file(which)).expect("it is there"),
            Damage::Vouch { file: which } => vouch(file(which)),
        }
    }
}

fn set_word(file: &Path, word: u8, value: u32) {
    change(file, |bytes| {
        let at = usize::from(word) * 4;
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    });
}

/// Changes what is not memory of a region, which nobody reads here.
fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    if !is_table(file) && !is_state(file) {
        return;
    }
    let mut bytes = beginning(file);
    change(&mut bytes);
    // In its place: a file that is written anew would have other memory.
    let file = OpenOptions::new().write(true).open(file).expect("it is there");
    file.write_all_at(&bytes, 0).expect("it was as long before");
}

/// As much of a file as means something: one that was stretched is long.
fn beginning(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|file| file.take(1 << 16).read_to_end(&mut bytes));
    read.expect("it is there");
    bytes
}

fn set_length(file: &Path, length: u64) {
    let file = OpenOptions::new().write(true).open(file).expect("it is there");
    file.set_len(length).expect("a file may have any length");
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).expect("both are in one folder");
}

fn is_table(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "pages")
}

fn is_state(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "maru.state")
}

/// Makes all checksums of a file right, as whoever wrote it would have.
fn vouch(file: &Path) {
    change(file, |bytes| {
        if bytes.len() < TABLE_HEAD {
            return;
        }
        if is_state(file) {
            let sum = crc32fast::hash(&bytes[16..48]);
            put(bytes, 12, sum);
            for slot in (HEAD..bytes.len().saturating_sub(SLOT - 1)).step_by(SLOT) {
                let number = &bytes[slot + SLOT - 4..slot + SLOT];
                if number != [0; 4] {
                    let sum = crc32fast::hash(&[&bytes[slot..slot + 144], number].concat());
                    put(bytes, slot + SLOT - 8, sum);
                }
            }
        } else {
            let region = region_of(file).to_le_bytes();
            bytes[12..16].copy_from_slice(&region);
            vouch_for_table(bytes, region);
        }
    });
}

fn vouch_for_table(bytes: &mut [u8], region: [u8; 4]) {
    let sum = crc32fast::hash(&bytes[..TABLE_FIXED]);
    put(bytes, TABLE_FIXED, sum);
    for (page, record) in (0u32..).zip(bytes[TABLE_HEAD..].chunks_exact_mut(RECORD)) {
        let summed = [&record[..24], &region, &page.to_le_bytes()].concat();
        put(record, 24, crc32fast::hash(&summed));
    }
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

/// The region whose table this is, by its name.
fn region_of(file: &Path) -> u32 {
    let name = file.file_stem().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("region-"));
    name.and_then(|id| id.parse().ok()).unwrap_or(0)
}
