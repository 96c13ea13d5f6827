//! A 32-byte key that shows itself to nobody and wipes itself.

use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A SCRAM-SHA-256 key (ClientKey, StoredKey, ServerKey): 32 bytes, wiped when dropped, compared in
/// constant time, never printed.
#[derive(Clone, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Wraps the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Copies the bytes; `None` if there are not exactly 32 of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Byte by byte exclusive or.
    pub(super) fn xor(&self, other: &Self) -> Self {
        let mut sum = [0; 32];
        for ((out, a), b) in sum.iter_mut().zip(self.0).zip(other.0) {
            *out = a ^ b;
        }
        Self(sum)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// True if both texts are equal. The time taken depends on the lengths only.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_compares_whole_texts() {
        for (a, b, want) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "ab", false),
            ("", "a", false),
        ] {
            assert_eq!(same(a.as_bytes(), b.as_bytes()), want, "{a} {b}");
        }
    }

    #[test]
    fn keys_take_32_bytes_and_hide_them() {
        assert!(Key::from_slice(&[7; 31]).is_none());
        assert!(Key::from_slice(&[7; 33]).is_none());
        let key = Key::from_slice(&[7; 32]).unwrap();
        assert_eq!(key.as_bytes(), &[7; 32]);
        assert_ne!(key, Key::new([8; 32]));
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
