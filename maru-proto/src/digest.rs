//! The digest of a key: what travels and is stored instead of the key.

use std::fmt;

use siphasher::sip128::SipHasher13;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 128 bits that stand for a key: SipHash-1-3 over its bytes, keyed per deployment.
///
/// With 10^10 keys the chance that any two collide is 1.5e-19, and the secret key keeps anybody from aiming a
/// collision. A caller that already holds a 128-bit hash of its chunk can pass it as it is.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct KeyDigest([u8; 16]);

impl KeyDigest {
    /// A digest from a 128-bit hash that the caller already has.
    pub const fn from_bytes(bytes: [u8; 16]) -> KeyDigest {
        KeyDigest(bytes)
    }

    /// The bytes as they travel.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({self})")
    }
}

/// The secret that keys the digests of one deployment. The server makes it once and hands it out in HELLO.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct DigestKey([u8; 16]);

impl DigestKey {
    /// The digest of a key's bytes.
    ///
    /// ```
    /// use maru_proto::DigestKey;
    ///
    /// let digest = DigestKey::from([0; 16]).digest(b"llama@0@1f3a");
    /// assert_ne!(digest, DigestKey::from([1; 16]).digest(b"llama@0@1f3a"));
    /// ```
    pub fn digest(&self, key: &[u8]) -> KeyDigest {
        KeyDigest(SipHasher13::new_with_key(&self.0).hash(key).as_bytes())
    }

    /// The secret bytes, to be sent in HELLO and written to nothing else.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl From<[u8; 16]> for DigestKey {
    fn from(bytes: [u8; 16]) -> DigestKey {
        DigestKey(bytes)
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::DigestKey;

    /// SipHash-1-3 with 128-bit output, written from its definition, to hold the library against.
    fn reference(key: [u8; 16], message: &[u8]) -> [u8; 16] {
        let half = |range: std::ops::Range<usize>| u64::from_le_bytes(key[range].try_into().unwrap());
        let (k0, k1) = (half(0..8), half(8..16));
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        fn round(v: &mut [u64; 4]) {
            v[0] = v[0].wrapping_add(v[1]);
            v[2] = v[2].wrapping_add(v[3]);
            v[1] = v[1].rotate_left(13) ^ v[0];
            v[3] = v[3].rotate_left(16) ^ v[2];
            v[0] = v[0].rotate_left(32);
            v[2] = v[2].wrapping_add(v[1]);
            v[0] = v[0].wrapping_add(v[3]);
            v[1] = v[1].rotate_left(17) ^ v[2];
            v[3] = v[3].rotate_left(21) ^ v[0];
            v[2] = v[2].rotate_left(32);
        }
        let mut padded = message.to_vec();
        padded.resize((message.len() + 1).next_multiple_of(8) - 1, 0);
        padded.push(message.len().to_le_bytes()[0]);
        for word in padded.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            v[3] ^= word;
            round(&mut v);
            v[0] ^= word;
        }
        let mut finish = |xor: usize, value: u64| {
            v[xor] ^= value;
            (0..3).for_each(|_| round(&mut v));
            (v[0] ^ v[1] ^ v[2] ^ v[3]).to_le_bytes()
        };
        let (low, high) = (finish(2, 0xee), finish(1, 0xdd));
        [low, high].concat().try_into().unwrap()
    }

    /// The deployments of the future have to find what those of today stored.
    #[test]
    fn golden_vectors() {
        let key = DigestKey::from(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let long = [0xA5; 1000];
        for (message, digest) in [
            (&b""[..], "e77ebcb22788a5befd62db6add303001"),
            (b"a", "083c37de637c4fa8492fd75d37ae8a67"),
            (b"vllm@meta-llama/Llama-3.1-8B-Instruct@1@0@00ff12", "f72461a228370664111ec5f74998f989"),
            (&long, "1c56cf0984ffa247274a8b0228d2320a"),
        ] {
            assert_eq!(key.digest(message).to_string(), digest);
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{:?}", DigestKey::from([0xAB; 16])), "DigestKey(secret)");
    }

    proptest! {
        #[test]
        fn equals_the_definition(key: [u8; 16], message in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(DigestKey::from(key).digest(&message).to_bytes(), reference(key, &message));
        }
    }
}
