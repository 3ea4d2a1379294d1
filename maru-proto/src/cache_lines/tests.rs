//! What can be seen of lines on one host: which they are, and that no byte changes. That the instructions reach memory is what
//! the processor's manual says.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Every way that this processor has, and one whose lines are larger, as on some of other makers.
fn all_ways() -> Vec<CacheLines> {
    let Some(best) = CacheLines::of_this_processor() else { return Vec::new() };
    let ways = Instructions::all().into_iter().map(|instructions| CacheLines { instructions, ..best });
    ways.chain([CacheLines { line: 2 * best.line, ..best }]).collect()
}

#[test]
fn this_processor_has_lines_of_a_known_length() {
    let lines =
        CacheLines::of_this_processor().expect("tests run on processors whose lines can be written back");
    assert!([32, 64, 128, 256].contains(&lines.line()), "{lines:?}");
    assert!(!lines.names().0.is_empty() && !lines.names().1.is_empty());
}

proptest! {
    #[test]
    fn the_lines_of_a_range_are_those_that_have_a_byte_of_it(start in 4096usize..9000, length in 0usize..1000) {
        for way in all_ways() {
            let found = way.lines(std::ptr::without_provenance(start), length).map(<*const u8>::addr);
            let expected = (start..start + length).map(|byte| byte - byte % way.line).collect::<BTreeSet<_>>();
            prop_assert_eq!(found.collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_byte_changes_in_a_range_or_beside_it(start in 0usize..300, length in 0usize..1000) {
        for way in all_ways() {
            let mut memory = vec![0; 2000];
            // Written at once before, so that the lines are dirty.
            (0..).zip(&mut memory).for_each(|(n, byte): (u32, &mut u8)| *byte = n.wrapping_mul(7).to_le_bytes()[0]);
            let expected = memory.clone();
            way.write_back(&memory[start..start + length]);
            prop_assert_eq!(&memory, &expected);
            memory[start..].fill(0x5A);
            way.invalidate(&memory[start..start + length]);
            prop_assert_eq!(&memory[..start], &expected[..start]);
            prop_assert!(memory[start..].iter().all(|byte| *byte == 0x5A), "a dirty line is not lost");
        }
    }
}

/// The ends of a mapping are the ends of what may be touched: a fault would kill the test.
#[test]
fn a_whole_mapping_and_nothing_beside_it_is_touched() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * 4096).unwrap();
    let written = memmap2::MmapOptions::new().len(2 * 4096).map_raw(&file).unwrap();
    let read = memmap2::MmapOptions::new().len(2 * 4096).map_raw_read_only(&file).unwrap();
    for way in all_ways() {
        for (start, length) in [(0, 2 * 4096), (0, 1), (2 * 4096 - 1, 1), (2 * 4096, 0)] {
            // SAFETY: the range is inside the mapping.
            unsafe { way.write_back_at(written.as_ptr().wrapping_add(start), length) };
            // SAFETY: as above, and memory that can only be read is readable.
            unsafe { way.invalidate_at(read.as_ptr().wrapping_add(start), length) };
        }
    }
}
