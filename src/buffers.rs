//! The shard's pool of byte buffers: unfinished messages, queues of replies, what crosses to other shards, ciphertext.
//!
//! May import nothing of the crate. Pure.

/// Buffers that were given back, kept for who needs one next. Bounded in number, in the size of each and in bytes together.
#[derive(Debug)]
pub struct Buffers {
    free: Vec<Vec<u8>>,
    held_bytes: usize,
    count_max: usize,
    buffer_bytes_max: usize,
    held_bytes_max: usize,
}

impl Buffers {
    /// Keeps at most `count_max` buffers of at most `buffer_bytes_max` bytes each and of `held_bytes_max` together.
    #[must_use]
    pub const fn new(count_max: usize, buffer_bytes_max: usize, held_bytes_max: usize) -> Self {
        Self { free: Vec::new(), held_bytes: 0, count_max, buffer_bytes_max, held_bytes_max }
    }

    /// An empty buffer. It has no capacity where the pool is empty, so that memory is taken only as bytes arrive.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let buffer = self.free.pop().unwrap_or_default();
        self.held_bytes -= buffer.capacity();
        buffer
    }

    /// Gives a vector without memory a buffer of the pool.
    pub fn lend(&mut self, to: &mut Vec<u8>) {
        if to.capacity() == 0 {
            *to = self.take();
        }
    }

    /// Gives a buffer back; one that is too large, or one too many, is freed.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        let fits = self.free.len() < self.count_max && self.held_bytes + bytes <= self.held_bytes_max;
        if bytes > 0 && bytes <= self.buffer_bytes_max && fits {
            buffer.clear();
            self.held_bytes += bytes;
            self.free.push(buffer);
        }
    }

    /// Memory the pool holds, in bytes.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_in_number_and_size() {
        let mut buffers = Buffers::new(2, 100, 1_000);
        for _ in 0..3 {
            buffers.give(Vec::with_capacity(50));
        }
        buffers.give(Vec::with_capacity(101));
        assert_eq!(buffers.held_bytes(), 100);
        let mut first = buffers.take();
        assert_eq!(first.capacity(), 50);
        first.push(1);
        buffers.give(first);
        assert!(buffers.take().is_empty(), "a reused buffer bears nothing of its last message");
        let _ = buffers.take();
        assert_eq!((buffers.take().capacity(), buffers.held_bytes()), (0, 0));
    }

    #[test]
    fn the_pool_is_bounded_in_bytes() {
        let mut buffers = Buffers::new(100, 100, 250);
        for _ in 0..3 {
            buffers.give(Vec::with_capacity(100));
        }
        assert_eq!(buffers.held_bytes(), 200, "the third is one too many");
        buffers.give(Vec::with_capacity(50));
        assert_eq!(buffers.held_bytes(), 250);
    }

    #[test]
    fn only_what_has_no_memory_is_lent_some() {
        let mut buffers = Buffers::new(2, 100, 1_000);
        buffers.give(Vec::with_capacity(50));
        let mut own = vec![7];
        buffers.lend(&mut own);
        assert_eq!((&own[..], buffers.held_bytes()), (&[7][..], 50));
        let mut none = Vec::new();
        buffers.lend(&mut none);
        assert_eq!((none.capacity(), buffers.held_bytes()), (50, 0));
    }
}
