//! The shard's pool of byte buffers: for unfinished messages, queues of replies, data for other shards, ciphertext.
//!
//! May import nothing of the crate. Pure.

/// Zeros all memory of a buffer, and empties it.
pub fn wipe(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(buffer.capacity(), 0);
    // Otherwise the compiler drops the zeroing if the buffer is freed next.
    std::hint::black_box(&mut *buffer);
    buffer.clear();
}

/// Returned buffers, kept for reuse. Bounded in number, in the size of each and in bytes together.
#[derive(Debug)]
pub struct Buffers {
    free: Vec<Vec<u8>>,
    held_bytes: usize,
    count_max: usize,
    buffer_bytes_max: usize,
    held_bytes_max: usize,
    /// `true` if returned buffers are wiped, because they may hold purged data.
    wipes: bool,
}

impl Buffers {
    /// Keeps at most `count_max` buffers of at most `buffer_bytes_max` bytes each and of `held_bytes_max` together.
    #[must_use]
    pub const fn new(count_max: usize, buffer_bytes_max: usize, held_bytes_max: usize) -> Self {
        Self { free: Vec::new(), held_bytes: 0, count_max, buffer_bytes_max, held_bytes_max, wipes: false }
    }

    /// An empty buffer. Its capacity is 0 if the pool is empty, so that memory is allocated only as bytes arrive.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let mut buffer = self.free.pop().unwrap_or_default();
        self.held_bytes -= buffer.capacity();
        buffer.clear();
        buffer
    }

    /// Wipes the kept buffers. `wipes` says whether returned ones are wiped from now on.
    pub fn wipe(&mut self, wipes: bool) {
        self.wipes = wipes;
        self.free.iter_mut().for_each(wipe);
    }

    /// The last contents of the pooled buffers.
    #[cfg(test)]
    pub fn memory(&self) -> impl Iterator<Item = &[u8]> {
        self.free.iter().map(|buffer| &**buffer)
    }

    /// Gives a vector without memory a buffer of the pool.
    pub fn lend(&mut self, to: &mut Vec<u8>) {
        if to.capacity() == 0 {
            *to = self.take();
        }
    }

    /// Returns a buffer to the pool; one that is too large, or one too many, is freed.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if self.wipes {
            wipe(&mut buffer);
        }
        let fits = self.free.len() < self.count_max && self.held_bytes + bytes <= self.held_bytes_max;
        if bytes > 0 && bytes <= self.buffer_bytes_max && fits {
            // Emptied when it is taken.
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

    fn hold(buffers: &Buffers) -> bool {
        buffers.memory().any(|buffer| buffer.windows(6).any(|bytes| bytes == b"secret"))
    }

    #[test]
    fn nothing_is_left_of_what_is_wiped() {
        let mut buffers = Buffers::new(4, 100, 1_000);
        let given = |buffers: &mut Buffers| {
            let mut buffer = Vec::with_capacity(50);
            buffer.extend_from_slice(b"a secret");
            buffers.give(buffer);
        };
        given(&mut buffers);
        assert!(hold(&buffers));
        buffers.wipe(true);
        assert!(!hold(&buffers));
        given(&mut buffers);
        assert!(!hold(&buffers), "nor of what comes back");
        buffers.wipe(false);
        given(&mut buffers);
        assert!(hold(&buffers));
        let mut buffer = b"a secret".to_vec();
        buffer.truncate(2);
        wipe(&mut buffer);
        buffer.resize(8, b'x');
        buffer.clear();
        buffer.extend_from_slice(b"");
        assert!(buffer.is_empty() && buffer.capacity() >= 8);
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
