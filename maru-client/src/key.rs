//! Keys: what a caller may use as one, and how it becomes a digest.

use maru_proto::{DigestKey, KeyDigest};

use crate::error::{Error, MAX_KEY_LEN, Result};

/// Something that names a chunk: bytes or text of 1 to [`MAX_KEY_LEN`] bytes, or a [`KeyDigest`] that the caller has already.
///
/// Text and the same bytes are the same key. A `[u8; 16]` is a key like any other and is hashed; a `KeyDigest` is not.
pub trait AsKey {
    /// The digest of the key under the deployment's secret.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] when the key is empty or too long.
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest>;
}

impl AsKey for [u8] {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        if self.is_empty() || self.len() > MAX_KEY_LEN {
            return Err(Error::InvalidKey { len: self.len() });
        }
        Ok(secret.digest(self))
    }
}

impl AsKey for str {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        self.as_bytes().digest(secret)
    }
}

impl AsKey for String {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        self.as_bytes().digest(secret)
    }
}

impl AsKey for Vec<u8> {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        self.as_slice().digest(secret)
    }
}

impl<const N: usize> AsKey for [u8; N] {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        self.as_slice().digest(secret)
    }
}

impl AsKey for KeyDigest {
    fn digest(&self, _: &DigestKey) -> Result<KeyDigest> {
        Ok(*self)
    }
}

impl<K: AsKey + ?Sized> AsKey for &K {
    fn digest(&self, secret: &DigestKey) -> Result<KeyDigest> {
        (**self).digest(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 16] = [7; 16];

    fn digest(key: impl AsKey) -> Result<KeyDigest> {
        key.digest(&DigestKey::from(SECRET))
    }

    #[test]
    fn text_and_the_same_bytes_are_one_key() {
        let expected = DigestKey::from(SECRET).digest(b"chunk");
        assert_eq!(digest("chunk").unwrap(), expected);
        assert_eq!(digest("chunk".to_owned()).unwrap(), expected);
        assert_eq!(digest(b"chunk").unwrap(), expected);
        assert_eq!(digest(b"chunk".to_vec()).unwrap(), expected);
    }

    #[test]
    fn a_digest_is_taken_as_it_is_and_sixteen_bytes_are_not() {
        let bytes = [3; 16];
        assert_eq!(digest(KeyDigest::from_bytes(bytes)).unwrap().to_bytes(), bytes);
        assert_ne!(digest(bytes).unwrap().to_bytes(), bytes);
    }

    #[test]
    fn keys_have_one_to_65536_bytes() {
        assert!(digest(vec![0; MAX_KEY_LEN]).is_ok());
        for len in [0, MAX_KEY_LEN + 1] {
            assert!(matches!(digest(vec![0; len]), Err(Error::InvalidKey { len: named }) if named == len));
        }
    }
}
