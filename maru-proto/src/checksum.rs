//! The checksum of a chunk's bytes, by which a reader knows that it sees what the owner wrote.

/// The CRC-32 of zlib and Ethernet over the bytes; where that comes to 0 it is 1, since 0 on the wire says that there is no
/// checksum.
///
/// It is the one that every language has at hand. By the carry-less multiplication of x86-64 and aarch64 it is about as fast
/// as memory gives the bytes; the CRC-32C for which processors have an instruction of its own finds no more of what is looked
/// for here, whole cache lines that are not those which were written, and is slower.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn a_checksum_that_comes_to_zero_is_one() {
        assert_eq!(crc32fast::hash(&[0xFF; 4]), 0xFFFF_FFFF);
        // Four bytes can bring a CRC-32 to any value; these bring it to 0.
        let bytes = [0x9D, 0x0A, 0xD9, 0x6D];
        assert_eq!(crc32fast::hash(&bytes), 0);
        assert_eq!(checksum(&bytes), 1);
    }

    #[test]
    fn every_line_that_is_not_what_was_written_changes_it() {
        let written = (0..4096u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>();
        let sum = checksum(&written);
        for line in (0..written.len()).step_by(64) {
            let mut stale = written.clone();
            stale[line..line + 64].fill(0xA5);
            assert_ne!(checksum(&stale), sum, "the line at {line}");
        }
    }
}
