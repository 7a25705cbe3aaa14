//! The log in memory: a queue of chunks, appended at the tail, dropped at the head.

use super::record::{HEADER_BYTES, Header};
use crate::limits::CHUNK_BYTES;
use std::collections::VecDeque;

/// A place in a log: bytes since its beginning. A chunk's records keep theirs as long as they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(pub u64);

/// Where a record was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The record's start.
    pub at: Position,
    /// Bytes from there to the frame.
    pub frame_at: u32,
    /// The frame's length.
    pub frame_bytes: u32,
}

/// An append-only sequence of records, of which the newest `bytes_max` stay.
#[derive(Debug)]
pub struct Log {
    chunks: VecDeque<Vec<u8>>,
    /// The number of the first chunk in `chunks`.
    first: u64,
    chunks_max: usize,
    spare: Option<Vec<u8>>,
    chain: u32,
    dropped: u64,
}

impl Log {
    /// A log that keeps up to `bytes_max` (rounded up to whole chunks, at least two).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let chunks_max = bytes_max.div_ceil(CHUNK_BYTES).max(2);
        Self { chunks: VecDeque::new(), first: 0, chunks_max, spare: None, chain: 0, dropped: 0 }
    }

    /// The oldest position that is still held; what lies before is gone.
    #[must_use]
    pub fn oldest(&self) -> Position {
        Position(self.first * CHUNK_BYTES as u64)
    }

    /// Bytes of memory that chunks take now.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES
    }

    /// Chunks dropped to stay below the cap.
    #[must_use]
    pub fn dropped_chunks(&self) -> u64 {
        self.dropped
    }

    /// Appends one record whose frame is the concatenation of `frame`. The only copy of a message that the gateway makes.
    pub fn append(&mut self, header: &Header, addresses: &[u64], frame: &[&[u8]]) -> Appended {
        let frame_bytes: usize = frame.iter().map(|part| part.len()).sum();
        let frame_at = HEADER_BYTES + 8 * addresses.len();
        let previous = self.chain;
        let (at, chunk) = self.tail(frame_at + frame_bytes);
        let start = chunk.len();
        chunk.resize(start + frame_at, 0);
        for part in frame {
            chunk.extend_from_slice(part);
        }
        self.chain = header.seal(&mut chunk[start..], addresses, previous);
        appended(at, frame_at, frame_bytes)
    }

    /// Appends a record as another log wrote it (a mirror's copy).
    ///
    pub fn append_copy(&mut self, record: &[u8], frame_at: usize) -> Appended {
        let (at, chunk) = self.tail(record.len());
        chunk.extend_from_slice(record);
        appended(at, frame_at, record.len() - frame_at)
    }

    /// The tail chunk with room for `len` bytes more, so that nothing moves, and the position they will have.
    fn tail(&mut self, len: usize) -> (Position, &mut Vec<u8>) {
        assert!(len <= CHUNK_BYTES, "a record of {len} bytes is longer than a chunk");
        if self.chunks.back().is_none_or(|chunk| chunk.len() + len > CHUNK_BYTES) {
            self.roll();
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let Some(chunk) = self.chunks.back_mut() else { unreachable!("roll pushed a chunk") };
        (Position(number * CHUNK_BYTES as u64 + chunk.len() as u64), chunk)
    }

    fn roll(&mut self) {
        if self.chunks.len() >= self.chunks_max {
            self.spare = self.chunks.pop_front();
            self.first += 1;
            self.dropped += 1;
        }
        let mut chunk = self.spare.take().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
        chunk.clear();
        self.chunks.push_back(chunk);
    }

    #[expect(clippy::cast_possible_truncation, reason = "a chunk's number among those held, an offset in it")]
    fn place(&self, at: Position) -> (usize, usize) {
        ((at.0 / CHUNK_BYTES as u64 - self.first) as usize, (at.0 % CHUNK_BYTES as u64) as usize)
    }

    /// `len` bytes from `skip` bytes behind `at`; empty where they are no longer held.
    #[must_use]
    pub fn bytes(&self, at: Position, skip: u32, len: u32) -> &[u8] {
        if at < self.oldest() {
            return &[];
        }
        let (chunk, offset) = self.place(at);
        let start = offset + skip as usize;
        self.chunks.get(chunk).and_then(|chunk| chunk.get(start..start + len as usize)).unwrap_or_default()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a record is smaller than a chunk")]
fn appended(at: Position, frame_at: usize, frame_bytes: usize) -> Appended {
    Appended { at, frame_at: frame_at as u32, frame_bytes: frame_bytes as u32 }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Kind, RecordError, read_record};
    use super::*;
    use proptest::prelude::*;

    fn header(seq: u64) -> Header {
        Header { kind: Kind::Message, session: 11, seq, epoch: 0, ts_ms: 5, sender: 7, id: 9, content: 13 }
    }

    #[test]
    fn a_record_reads_back() {
        let mut log = Log::new(0);
        let put = log.append(&header(1), &[21, 22], &[b"ab", b"cde"]);
        assert_eq!(log.bytes(put.at, put.frame_at, put.frame_bytes), b"abcde");
        let record = read_record(log.bytes(put.at, 0, put.frame_at + put.frame_bytes), Some(0)).unwrap();
        assert_eq!(record.header, header(1));
        assert_eq!(record.body, b"abcde");
        assert_eq!(record.addresses, [21u64.to_le_bytes(), 22u64.to_le_bytes()].concat());
    }

    #[test]
    fn the_oldest_chunk_goes_first_and_takes_whole_records() {
        let mut log = Log::new(0);
        let frame = vec![7; CHUNK_BYTES / 2];
        let puts: Vec<_> = (0..4).map(|seq| log.append(&header(seq), &[], &[&frame])).collect();
        assert_eq!(log.dropped_chunks(), 2, "two chunks stay, each holds one record");
        for (index, put) in puts.iter().enumerate() {
            let bytes = log.bytes(put.at, put.frame_at, put.frame_bytes);
            assert_eq!(bytes.is_empty(), index < 2);
            assert_eq!(put.at < log.oldest(), index < 2);
        }
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_found(frame in proptest::collection::vec(any::<u8>(), 1..200), bit in any::<prop::sample::Index>()) {
            let mut log = Log::new(0);
            log.append(&header(1), &[], &[b"first"]);
            let chain = log.chain;
            let put = log.append(&header(2), &[3], &[&frame]);
            let mut bytes = log.bytes(put.at, 0, put.frame_at + put.frame_bytes).to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = read_record(&bytes, Some(chain));
            prop_assert!(read.is_err(), "{:?}", read);
        }

        #[test]
        fn a_cut_record_is_short(cut in 0usize..100) {
            let mut log = Log::new(0);
            let put = log.append(&header(2), &[], &[&[1; 12]]);
            let bytes = log.bytes(put.at, 0, put.frame_at + put.frame_bytes);
            let read = read_record(&bytes[..cut], None);
            prop_assert!(matches!(read, Err(RecordError::Short { .. })), "{:?}", read);
        }
    }
}
