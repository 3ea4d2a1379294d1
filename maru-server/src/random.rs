//! Secrets from the kernel's generator.

use rustix::rand::{GetRandomFlags, getrandom};

/// Sixteen bytes that nobody can guess, never all zero.
///
/// # Panics
/// When the kernel has no randomness to give, which Linux since 5.6 rules out once it has booted.
pub(crate) fn secret() -> [u8; 16] {
    loop {
        let mut bytes = [0; 16];
        let length = getrandom(&mut bytes, GetRandomFlags::empty()).expect("the kernel gives random bytes");
        if length == bytes.len() && bytes != [0; 16] {
            return bytes;
        }
    }
}
