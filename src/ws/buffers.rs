//! The shard's pool of assembly buffers: what a partial frame or a fragmented message is gathered in.

/// Buffers that were given back, kept for the next unfinished message. Bounded in number and in the size of each.
#[derive(Debug)]
pub struct Buffers {
    free: Vec<Vec<u8>>,
    count_max: usize,
    buffer_bytes_max: usize,
}

impl Buffers {
    /// Keeps at most `count_max` buffers of at most `buffer_bytes_max` bytes each.
    #[must_use]
    pub fn new(count_max: usize, buffer_bytes_max: usize) -> Self {
        Self { free: Vec::with_capacity(count_max), count_max, buffer_bytes_max }
    }

    /// An empty buffer. It has no capacity where the pool is empty, so that memory is taken only as bytes arrive.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// Gives a buffer back; one that is too large, or one too many, is freed.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= self.buffer_bytes_max && self.free.len() < self.count_max {
            buffer.clear();
            self.free.push(buffer);
        }
    }

    /// Memory the pool holds, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.free.iter().map(Vec::capacity).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_in_number_and_size() {
        let mut buffers = Buffers::new(2, 100);
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
        assert_eq!(buffers.take().capacity(), 0);
    }
}
