//! Copying a chunk past the caches of a core that does not read it again.

/// Copies `src` over `dst`, which has the same length, so that the bytes go to memory without being read or cached
/// first; on architectures without such stores, plainly. The bytes are in place for every other core when this returns.
///
/// # Panics
/// When the lengths differ.
pub fn copy_nontemporal(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "source and destination have the same length");
    #[cfg(target_arch = "x86_64")]
    x86_64::copy(dst, src);
    #[cfg(not(target_arch = "x86_64"))]
    dst.copy_from_slice(src);
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// Bytes of a vector.
    const VECTOR: usize = size_of::<__m128i>();
    /// Bytes of a cache line: four stores fill one, and it leaves the core as a whole.
    const LINE: usize = 64;

    pub(super) fn copy(dst: &mut [u8], src: &[u8]) {
        // The stores need aligned addresses; what is before the first and after the last line is copied plainly.
        let head = dst.as_ptr().align_offset(LINE).min(dst.len());
        let (dst_head, dst) = dst.split_at_mut(head);
        let (src_head, src) = src.split_at(head);
        dst_head.copy_from_slice(src_head);

        let mut dst_lines = dst.chunks_exact_mut(LINE);
        let mut src_lines = src.chunks_exact(LINE);
        for (dst, src) in (&mut dst_lines).zip(&mut src_lines) {
            for (dst, src) in dst.chunks_exact_mut(VECTOR).zip(src.chunks_exact(VECTOR)) {
                // SAFETY: the chunk has the bytes of a vector, and the load needs no alignment.
                let vector = unsafe { _mm_loadu_si128(src.as_ptr().cast()) };
                // SAFETY: the chunk has the bytes of a vector and begins at a multiple of its size, since the lines
                // begin at multiples of theirs; the fence below orders the store before all that follows.
                unsafe { _mm_stream_si128(dst.as_mut_ptr().cast(), vector) };
            }
        }
        dst_lines.into_remainder().copy_from_slice(src_lines.remainder());
        // SAFETY: a fence touches no memory, and every x86-64 processor has it.
        unsafe { _mm_sfence() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::copy_nontemporal;

    proptest! {
        #[test]
        fn every_byte_and_no_other_is_copied(length in 0usize..1000, dst_at in 0usize..130, src_at in 0usize..130) {
            let source = (0..length + src_at).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<_>>();
            let mut target = vec![0xEE; dst_at + length + 70];
            copy_nontemporal(&mut target[dst_at..dst_at + length], &source[src_at..]);
            prop_assert_eq!(&target[dst_at..dst_at + length], &source[src_at..]);
            prop_assert!(target[..dst_at].iter().chain(&target[dst_at + length..]).all(|byte| *byte == 0xEE));
        }
    }

    #[test]
    fn a_chunk_of_a_mebibyte_arrives_whole() {
        let source =
            (0..(1 << 20) + 7).map(|n: u32| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect::<Vec<_>>();
        let mut target = vec![0; source.len()];
        copy_nontemporal(&mut target, &source);
        assert_eq!(target, source);
    }

    #[test]
    #[should_panic(expected = "same length")]
    fn different_lengths_are_the_callers_mistake() {
        copy_nontemporal(&mut [0; 2], &[0; 3]);
    }
}
