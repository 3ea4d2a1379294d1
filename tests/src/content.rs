//! What the bytes of a chunk are, given its key.

/// Fills a chunk with the bytes that belong to its key.
pub fn fill(key: &str, bytes: &mut [u8]) {
    for (byte, expected) in bytes.iter_mut().zip(content(key)) {
        *byte = expected;
    }
}

/// Whether a chunk has the bytes that belong to its key, all of them.
pub fn is_intact(key: &str, bytes: &[u8]) -> bool {
    bytes.iter().zip(content(key)).all(|(&byte, expected)| byte == expected)
}

/// An endless stream of bytes that two keys do not share.
fn content(key: &str) -> impl Iterator<Item = u8> {
    let seed = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (1u64..).flat_map(move |word| {
        let mixed = (seed ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).to_le_bytes()
    })
}
