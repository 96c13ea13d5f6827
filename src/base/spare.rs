//! Buffers that are lent while data is pending and come back afterwards, so that a silent connection
//! owns none.

/// How many buffers are kept for the next borrower: queries of as many waiting clients.
const KEPT: usize = 1024;
/// How many bytes all kept buffers have together, so that a burst of large results leaves nothing.
const KEPT_BYTES: usize = 256 * 1024;
/// Buffers that grew beyond this many bytes go back to the system, not into the store.
const LARGEST: usize = 64 * 1024;

/// The store of buffers that nobody uses at the moment.
#[derive(Default)]
pub struct Spare {
    free: Vec<Vec<u8>>,
    bytes: usize,
    released: usize,
}

impl Spare {
    /// How many buffers lie here.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// True if no buffer lies here.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// How many bytes of memory these buffers own together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many bytes were given back to the allocator since the last call.
    pub fn take_released(&mut self) -> usize {
        std::mem::take(&mut self.released)
    }

    fn lend(&mut self) -> Vec<u8> {
        let bytes = self.free.pop().unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(bytes.capacity());
        bytes
    }

    fn give_back(&mut self, mut bytes: Vec<u8>) {
        let sum = self.bytes.saturating_add(bytes.capacity());
        let fits = bytes.capacity() <= LARGEST && sum <= KEPT_BYTES && self.free.len() < KEPT;
        if bytes.capacity() == 0 {
            return;
        }
        if fits {
            bytes.clear();
            self.bytes = sum;
            self.free.push(bytes);
        } else {
            self.released = self.released.saturating_add(bytes.capacity());
        }
    }
}

/// A queue of bytes. It owns memory only while it holds something; taking from the front moves an
/// offset, so that a long queue is not copied again and again.
#[derive(Default)]
pub struct Buf {
    bytes: Vec<u8>,
    at: usize,
}

impl Buf {
    /// The bytes, oldest first.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// How many bytes are queued.
    pub fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// True if nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a buffer is borrowed.
    pub fn owns_memory(&self) -> bool {
        self.capacity() > 0
    }

    /// How many bytes of memory it owns.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8], spare: &mut Spare) {
        if bytes.is_empty() {
            return;
        }
        if !self.owns_memory() {
            self.bytes = spare.lend();
        } else if self.at > self.len() {
            // More was taken than is left: moving the rest costs less than what was taken already.
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets the oldest `count` bytes (all, if there are fewer); the last one gives the buffer
    /// back.
    pub fn take(&mut self, count: usize, spare: &mut Spare) {
        if count < self.len() {
            self.at = self.at.saturating_add(count);
        } else {
            self.at = 0;
            spare.give_back(std::mem::take(&mut self.bytes));
        }
    }

    /// Forgets everything and gives the buffer back.
    pub fn clear(&mut self, spare: &mut Spare) {
        self.take(usize::MAX, spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_the_buffer_goes_back() {
        let mut spare = Spare::default();
        let mut buf = Buf::default();
        let mut wanted = Vec::new();
        let mut seen = Vec::new();
        for n in 0..200_u8 {
            buf.push(&[n, n, n], &mut spare);
            wanted.extend([n, n, n]);
            let count = usize::from(n % 5);
            let count = count.min(buf.len());
            seen.extend_from_slice(&buf.as_slice()[..count]);
            buf.take(count, &mut spare);
        }
        seen.extend_from_slice(buf.as_slice());
        assert_eq!(seen, wanted);
        assert!(buf.owns_memory());
        buf.clear(&mut spare);
        assert!(!buf.owns_memory());
        assert_eq!(spare.len(), 1);
        buf.push(b"x", &mut spare);
        assert!(spare.is_empty());
    }

    #[test]
    fn memory_comes_back_after_a_burst() {
        let mut spare = Spare::default();
        let mut large = Buf::default();
        large.push(&vec![0; LARGEST + 1], &mut spare);
        large.clear(&mut spare);
        assert!(spare.is_empty(), "a large buffer is not kept");
        let mut many: Vec<Buf> = (0..KEPT * 2).map(|_| Buf::default()).collect();
        for buf in &mut many {
            buf.push(b"x", &mut spare);
        }
        for buf in &mut many {
            buf.clear(&mut spare);
        }
        assert_eq!(spare.len(), KEPT);
        let mut many: Vec<Buf> = (0..KEPT).map(|_| Buf::default()).collect();
        for buf in &mut many {
            buf.push(&[0; LARGEST], &mut spare);
        }
        assert!(spare.is_empty());
        for buf in &mut many {
            buf.clear(&mut spare);
        }
        assert_eq!(spare.len(), KEPT_BYTES / LARGEST, "the bytes are limited, too");
        let released = spare.take_released();
        assert!(released >= (KEPT - spare.len()) * LARGEST, "{released}");
        assert_eq!(spare.take_released(), 0);
    }
}
