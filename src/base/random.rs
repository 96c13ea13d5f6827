//! Random bytes from a seed: SHA-256 of the seed and a counter. Who knows the bytes given out so
//! far can't tell the next ones; the same seed gives the same bytes, which is what tests need.

use sha2::{Digest, Sha256};

/// A source of random bytes.
pub struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: [u8; 32]) -> Random {
        Random { seed, counter: 0 }
    }

    /// `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        for chunk in out.chunks_mut(32) {
            let mut hash = Sha256::new();
            hash.update(self.seed);
            hash.update(self.counter.to_be_bytes());
            self.counter = self.counter.wrapping_add(1);
            chunk.copy_from_slice(hash.finalize().get(..chunk.len()).unwrap_or_default());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_bytes() {
        let mut a = Random::new([1; 32]);
        let mut b = Random::new([1; 32]);
        let first: [u8; 40] = a.bytes();
        assert_eq!(first, b.bytes::<40>());
        assert_ne!(first, a.bytes::<40>());
        assert_ne!(first[..32], first[8..]);
    }
}
