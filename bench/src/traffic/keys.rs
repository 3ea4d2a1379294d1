//! The keys that all connections ask for.

use maru_proto::{DigestKey, KeyDigest};

/// The text of a key, as long as those of serving engines are.
pub(crate) fn text(number: u64) -> String {
    format!("meta-llama/Llama-3.1-8B-Instruct@1@0@{:024x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Bytes of the text of a key.
#[cfg(test)]
pub(crate) const TEXT_LEN: usize = 61;

/// Numbered keys by their digests.
#[derive(Debug)]
pub(crate) struct KeySpace(Vec<KeyDigest>);

impl KeySpace {
    /// The digests of the keys 0 to `count` under the secret of a deployment.
    pub(crate) fn new(secret: &DigestKey, count: u64) -> KeySpace {
        KeySpace((0..count).map(|number| secret.digest(text(number).as_bytes())).collect())
    }

    pub(crate) fn digests(&self) -> &[KeyDigest] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_differ_and_have_one_length() {
        let texts = (0..10_000).map(text).collect::<HashSet<_>>();
        assert_eq!(texts.len(), 10_000);
        assert!(texts.iter().all(|text| text.len() == TEXT_LEN));
    }
}
