//! Random bytes from a seed: SHA-256 of the seed and a counter. Who knows the bytes given out so
//! far can't tell the next ones; the same seed gives the same bytes, which is what tests need.

use sha2::{Digest, Sha256};

/// A source of random bytes.
pub struct Random {
    seed: [u8; 32],
    counter: u64,
    /// Bytes that were made and not given out: from `used` on.
    block: [u8; 32],
    used: usize,
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: [u8; 32]) -> Random {
        Random { seed, counter: 0, block: [0; 32], used: 32 }
    }

    /// `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        for byte in &mut out {
            if self.used >= self.block.len() {
                self.refill();
            }
            // What has been given out is not kept.
            *byte = self.block.get_mut(self.used).map_or(0, std::mem::take);
            self.used += 1;
        }
        out
    }

    fn refill(&mut self) {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
        self.block = hash.finalize().into();
        self.used = 0;
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
        let mut c = Random::new([1; 32]);
        let pieces: Vec<u8> = (0..5).flat_map(|_| c.bytes::<8>()).collect();
        assert_eq!(pieces, first);
    }
}
