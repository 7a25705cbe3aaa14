//! The log in memory: a queue of chunks, appended at the tail, dropped at the head.

use super::record::{HEADER_BYTES, Header, purge, stated_length};
use super::segment::{SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader};
use crate::io::chunk::Chunk;
use crate::limits::CHUNK_BYTES;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// A place in a log: bytes since its beginning. A record keeps its position for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(pub u64);

/// The beginning of the retained log: a position, and the first segment that is not wholly before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    pub at: Position,
    pub segment: u32,
}

/// The place of an appended record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The record's start.
    pub at: Position,
    /// Bytes from the record's start to the frame.
    pub frame_at: u32,
    /// The frame's length.
    pub frame_bytes: u32,
}

/// A log's layout on disk.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes of a segment, a multiple of [`CHUNK_BYTES`].
    pub segment_bytes: u64,
    /// Shard and generation, as in its segments' headers.
    pub shard: u16,
    pub generation: u32,
}

/// The part of the log to be written next.
#[derive(Clone, Debug)]
pub struct Unwritten {
    /// The number of the segment.
    pub segment: u64,
    /// Offset in the segment's file, in bytes.
    pub at: u64,
    pub chunk: Rc<Chunk>,
    /// The bytes within the chunk.
    pub part: Range<usize>,
    /// The position behind it.
    pub end: Position,
}

impl Unwritten {
    /// The records in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        let mut left = self.chunk.bytes().get(self.part.clone()).unwrap_or_default();
        if self.at == 0 {
            left = left.get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
        }
        let mut records = 0;
        while let Some(rest) = stated_length(left).filter(|length| *length > 0).and_then(|length| left.get(length..)) {
            (left, records) = (rest, records + 1);
        }
        records
    }
}

#[derive(Debug)]
struct OnDisk {
    geometry: Geometry,
    /// Bytes before this position are in their file.
    written: Position,
    /// Bytes before this position are no longer retained.
    retained: Position,
    now_ms: u64,
}

/// An append-only sequence of records. A log in memory keeps the newest `bytes_max`; of a log on disk these stay in memory, and
/// older ones are read back.
#[derive(Debug)]
pub struct Log {
    chunks: VecDeque<Rc<Chunk>>,
    /// The number of the first chunk in `chunks`.
    first: u64,
    chunks_max: usize,
    spare: Option<Rc<Chunk>>,
    /// Chunks that were still shared when purged messages were removed from their copies; wiped when they are released.
    retired: Vec<Rc<Chunk>>,
    chain: u32,
    dropped: u64,
    disk: Option<OnDisk>,
}

impl Log {
    /// A log in memory that keeps up to `bytes_max` (rounded up to whole chunks, at least two).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let chunks_max = bytes_max.div_ceil(CHUNK_BYTES).max(2);
        Self { chunks: VecDeque::new(), first: 0, chunks_max, spare: None, retired: Vec::new(), chain: 0, dropped: 0, disk: None }
    }

    /// The chain value of the last record.
    #[must_use]
    pub const fn chain(&self) -> u32 {
        self.chain
    }

    /// A log on disk. It begins with the segment `next`, after the `chain` of the recovered log; records from `oldest` on are in
    /// segments before it.
    #[must_use]
    pub fn on_disk(bytes_max: usize, geometry: Geometry, next: u64, chain: u32, oldest: Position) -> Self {
        let begin = Position(next * geometry.segment_bytes);
        let retained = oldest.min(begin);
        Self {
            first: begin.0 / CHUNK_BYTES as u64,
            chain,
            disk: Some(OnDisk { geometry, written: begin, retained, now_ms: 0 }),
            ..Self::new(bytes_max)
        }
    }

    /// The oldest position that is held, in memory or on disk; earlier bytes are gone.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.disk.as_ref().map_or_else(|| self.resident(), |disk| disk.retained)
    }

    /// [`Log::oldest`], and its segment.
    #[must_use]
    pub fn retained(&self) -> Retained {
        self.bound(self.oldest())
    }

    /// A position and its segment; 0 if there are no segments.
    #[must_use]
    pub fn bound(&self, at: Position) -> Retained {
        let segment = self.disk.as_ref().map_or(0, |disk| at.0 / disk.geometry.segment_bytes);
        Retained { at, segment: u32::try_from(segment).unwrap_or(u32::MAX) }
    }

    /// The oldest position that is in memory.
    #[must_use]
    pub fn resident(&self) -> Position {
        Position(self.first * CHUNK_BYTES as u64)
    }

    /// The position behind the newest record.
    #[must_use]
    pub fn end(&self) -> Position {
        let last = self.chunks.len() as u64;
        match self.chunks.back() {
            Some(chunk) => Position((self.first + last - 1) * CHUNK_BYTES as u64 + chunk.len() as u64),
            None => self.resident(),
        }
    }

    /// Bytes of memory in chunks.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES
    }

    /// Bytes of memory that chunks take above the cap, because they are not written yet.
    #[must_use]
    pub fn excess_bytes(&self) -> usize {
        self.chunks.len().saturating_sub(self.chunks_max) * CHUNK_BYTES
    }

    /// Chunks dropped to stay below the cap.
    #[must_use]
    pub fn dropped_chunks(&self) -> u64 {
        self.dropped
    }

    /// The layout on disk; `None` for a log in memory.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.disk.as_ref().map(|disk| disk.geometry)
    }

    /// Bytes before this position are in their file.
    #[must_use]
    pub fn written(&self) -> Position {
        self.disk.as_ref().map_or(Position(u64::MAX), |disk| disk.written)
    }

    /// Sets the time, for the headers of segments that begin.
    pub fn tick(&mut self, now_ms: u64) {
        if let Some(disk) = &mut self.disk {
            disk.now_ms = now_ms;
        }
    }

    /// The part to be written next: the oldest bytes that are in no file yet, within one chunk.
    #[must_use]
    pub fn unwritten(&self) -> Option<Unwritten> {
        let disk = self.disk.as_ref()?;
        let (mut number, mut offset) = self.place(disk.written);
        if self.chunks.get(number).is_some_and(|chunk| offset >= chunk.len()) && number + 1 < self.chunks.len() {
            (number, offset) = (number + 1, 0);
        }
        let chunk = self.chunks.get(number).filter(|chunk| offset < chunk.len())?;
        let start = (self.first + number as u64) * CHUNK_BYTES as u64;
        let at = start + offset as u64;
        Some(Unwritten {
            segment: at / disk.geometry.segment_bytes,
            at: at % disk.geometry.segment_bytes,
            chunk: Rc::clone(chunk),
            part: offset..chunk.len(),
            end: Position(start + chunk.len() as u64),
        })
    }

    /// Notes that all bytes before `end` are in their file.
    pub fn wrote(&mut self, end: Position) {
        if let Some(disk) = &mut self.disk {
            disk.written = disk.written.max(end);
        }
        self.shrink();
        self.wipe_retired();
    }

    /// Removes a session's messages before `end` from the chunk at `from`. Returns where to go on, if there are more chunks.
    pub fn purge(&mut self, session: u64, end: Position, from: Position) -> Option<Position> {
        let from = from.max(self.resident());
        if from >= end.min(self.end()) {
            // Earlier contents of the chunk are still in its memory, and in that of reused chunks.
            self.retired.extend(self.spare.take());
            self.chunks.iter().for_each(|chunk| chunk.wipe_rest());
            self.wipe_retired();
            return None;
        }
        let (number, _) = self.place(from);
        let start = (self.first + number as u64) * CHUNK_BYTES as u64;
        let is_first = self.disk.as_ref().is_some_and(|disk| start.is_multiple_of(disk.geometry.segment_bytes));
        let (next, before) = (Position(start + CHUNK_BYTES as u64), usize::try_from(end.0 - start).unwrap_or(usize::MAX));
        let chunk = self.chunks.get_mut(number)?;
        if Rc::get_mut(chunk).is_none() {
            let copy = Chunk::new(CHUNK_BYTES);
            copy.append(chunk.bytes());
            self.retired.push(std::mem::replace(chunk, copy));
        }
        if let Some(chunk) = Rc::get_mut(chunk) {
            // Records that the log wrote itself can be read.
            let _ = purge(chunk.bytes_mut(), before, session, is_first, &|_| false, &mut |_, _| {});
        }
        Some(next)
    }

    fn wipe_retired(&mut self) {
        self.retired.retain_mut(|chunk| match Rc::get_mut(chunk) {
            Some(chunk) => {
                chunk.wipe();
                false
            }
            None => true,
        });
    }

    /// Notes that bytes before `oldest` are no longer retained.
    pub fn retain_from(&mut self, oldest: Position) {
        if let Some(disk) = &mut self.disk {
            disk.retained = disk.retained.max(oldest);
        }
    }

    /// Appends a record whose frame is the concatenation of `frame`: the only copy of a message that the gateway makes.
    pub fn append(&mut self, header: &Header, addresses: &[u64], frame: &[&[u8]]) -> Appended {
        let frame_bytes: usize = frame.iter().map(|part| part.len()).sum();
        let frame_at = HEADER_BYTES + 8 * addresses.len();
        let (at, chunk) = self.tail(frame_at + frame_bytes);
        let chunk = Rc::clone(chunk);
        let previous = self.chain;
        self.chain = chunk.extend_with(frame_at + frame_bytes, |record| {
            let mut place = frame_at;
            for part in frame {
                record[place..place + part.len()].copy_from_slice(part);
                place += part.len();
            }
            header.seal(record, addresses, previous)
        });
        self.warm_next(frame_at + frame_bytes);
        appended(at, frame_at, frame_bytes)
    }

    /// Appends a message that was purged: its header, whose id still counts, and no body. A record of its session's purge must
    /// follow.
    pub fn append_purged(&mut self, header: &Header, addresses: &[u64]) {
        let bytes = HEADER_BYTES + 8 * addresses.len();
        let (_, chunk) = self.tail(bytes);
        let chunk = Rc::clone(chunk);
        let previous = self.chain;
        self.chain = chunk.extend_with(bytes, |record| {
            let chain = header.seal(record, addresses, previous);
            // The record was just written, and can be read.
            let _ = purge(record, bytes, header.session, false, &|_| false, &mut |_, _| {});
            chain
        });
    }

    /// Appends a record exactly as another log wrote it (a mirror's copy).
    pub fn append_copy(&mut self, record: &[u8], frame_at: usize) -> Appended {
        let (at, chunk) = self.tail(record.len());
        chunk.append(record);
        self.warm_next(record.len());
        appended(at, frame_at, record.len() - frame_at)
    }

    /// While the log still grows, has the kernel provide as much of the next chunk's memory as was just appended, so that no turn
    /// pays for a whole chunk.
    fn warm_next(&mut self, bytes: usize) {
        if self.chunks.len() < self.chunks_max {
            self.spare.get_or_insert_with(|| Chunk::new(CHUNK_BYTES)).warm(bytes);
        }
    }

    /// The tail chunk with room for `len` bytes more, so that nothing moves, and the position that they will have.
    fn tail(&mut self, len: usize) -> (Position, &Rc<Chunk>) {
        // Guaranteed by the limits on client data (the const assertions of `facts.rs`); and records read from a log were in a
        // chunk before.
        assert!(len <= CHUNK_BYTES - SEGMENT_HEADER_BYTES, "a record of {len} bytes is longer than a chunk");
        if self.chunks.back().is_none_or(|chunk| chunk.len() + len > CHUNK_BYTES) {
            self.roll();
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let Some(chunk) = self.chunks.back() else { unreachable!("roll pushed a chunk") };
        (Position(number * CHUNK_BYTES as u64 + chunk.len() as u64), chunk)
    }

    fn roll(&mut self) {
        self.shrink_to(self.chunks_max - 1);
        let spare = self.spare.take().and_then(|mut chunk| {
            // If the chunk is still read or written, it is freed when that is over.
            Rc::get_mut(&mut chunk)?.clear();
            Some(chunk)
        });
        self.chunks.push_back(spare.unwrap_or_else(|| Chunk::new(CHUNK_BYTES)));
        let start = (self.first + self.chunks.len() as u64 - 1) * CHUNK_BYTES as u64;
        let Some(disk) = &self.disk else { return };
        if start.is_multiple_of(disk.geometry.segment_bytes) {
            let header = SegmentHeader {
                version: SEGMENT_VERSION,
                shard: disk.geometry.shard,
                generation: disk.geometry.generation,
                number: start / disk.geometry.segment_bytes,
                segment_bytes: disk.geometry.segment_bytes,
                created_ms: disk.now_ms,
                chain_before: self.chain,
            };
            self.chain = header.chain_start();
            if let Some(chunk) = self.chunks.back() {
                chunk.append(&header.encode());
            }
        }
    }

    fn shrink(&mut self) {
        self.shrink_to(self.chunks_max);
    }

    /// Drops the oldest chunks until `count` are left, but none that is not in its file yet.
    fn shrink_to(&mut self, count: usize) {
        while self.chunks.len() > count
            && self.disk.as_ref().is_none_or(|disk| disk.written.0 >= (self.first + 1) * CHUNK_BYTES as u64)
        {
            self.spare = self.chunks.pop_front();
            self.first += 1;
            self.dropped += 1;
        }
    }

    /// All of its memory, used or not.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().chain(&self.spare).chain(&self.retired).map(|chunk| chunk.memory())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a chunk's number among those held, an offset in it")]
    fn place(&self, at: Position) -> (usize, usize) {
        ((at.0 / CHUNK_BYTES as u64 - self.first) as usize, (at.0 % CHUNK_BYTES as u64) as usize)
    }

    /// `len` bytes from `skip` bytes behind `at`; empty if they are not in memory.
    #[must_use]
    pub fn bytes(&self, at: Position, skip: u32, len: u32) -> &[u8] {
        if at < self.resident() {
            return &[];
        }
        let (chunk, offset) = self.place(at);
        let start = offset + skip as usize;
        self.chunks.get(chunk).and_then(|chunk| chunk.bytes().get(start..start + len as usize)).unwrap_or_default()
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

    fn holds(log: &Log, text: &[u8]) -> bool {
        log.memory().any(|memory| memchr::memmem::find(memory, text).is_some())
    }

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

    #[test]
    fn what_is_written_next_knows_its_records() {
        let geometry = Geometry { segment_bytes: 2 * CHUNK_BYTES as u64, shard: 0, generation: 1 };
        let mut log = Log::on_disk(0, geometry, 0, 0, Position(0));
        for seq in 0..3 {
            log.append(&header(seq), &[21], &[b"ab"]);
        }
        let part = log.unwritten().unwrap();
        assert_eq!((part.at, part.records()), (0, 3), "behind the segment's header");
        log.wrote(part.end);
        log.append(&header(3), &[], &[&[7; CHUNK_BYTES / 2]]);
        log.append(&header(4), &[], &[&[7; CHUNK_BYTES / 2]]);
        for _ in 0..2 {
            let part = log.unwritten().unwrap();
            assert_eq!(part.records(), 1, "of its own chunk");
            log.wrote(part.end);
        }
        assert!(log.unwritten().is_none());
    }

    #[test]
    fn a_purge_leaves_nothing_in_memory_and_all_of_the_others() {
        let geometry = Geometry { segment_bytes: 2 * CHUNK_BYTES as u64, shard: 0, generation: 1 };
        for mut log in [Log::new(8 << 20), Log::on_disk(8 << 20, geometry, 0, 0, Position(0))] {
            let frame = |of: &str| of.repeat(100_000 / of.len()).into_bytes();
            let mut puts = Vec::new();
            for seq in 1..=30 {
                puts.push(log.append(
                    &Header { session: 11 + seq % 2, ..header(seq) },
                    &[21],
                    &[&frame(["even", "odd!"][seq as usize % 2])],
                ));
            }
            // The second chunk is held, as by the kernel.
            let held = Rc::clone(&log.chunks[1]);
            let end = puts[27].at;
            let mut from = Some(Position(0));
            while let Some(at) = from {
                from = log.purge(12, end, at);
            }
            let bodies = |log: &Log, parity: usize| {
                let of = puts.iter().skip(1 - parity).step_by(2);
                of.map(|put| log.bytes(put.at, put.frame_at, put.frame_bytes)[0]).collect::<Vec<u8>>()
            };
            assert_eq!(bodies(&log, 0), vec![b'e'; 15]);
            assert_eq!(bodies(&log, 1), [vec![0; 14], vec![b'o']].concat(), "the last one came after the purge");
            assert!(log.retired.iter().any(|chunk| Rc::ptr_eq(chunk, &held)) && holds(&log, b"odd!"));
            drop(held);
            log.wrote(Position(0));
            assert!(log.retired.is_empty());
            while log.purge(12, log.end(), Position(end.0 - end.0 % CHUNK_BYTES as u64)).is_some_and(|at| at < log.end()) {}
            log.purge(12, log.end(), log.end());
            assert!(!holds(&log, b"odd!") && holds(&log, b"even"));
        }
    }

    #[test]
    fn a_purge_leaves_nothing_behind_what_a_chunk_holds_that_is_used_again() {
        let mut log = Log::new(0);
        // In memory are the newest two chunks; the third was the first, whose end nothing is written over.
        for (seq, bytes) in [(1, 600_000), (2, 400_000), (3, 1_040_000), (4, 10_000)] {
            log.append(&header(seq), &[], &[&b"gone".repeat(bytes / 4)]);
        }
        log.append(&Header { session: 12, ..header(1) }, &[], &[b"kept"]);
        let mut from = Some(Position(0));
        while let Some(at) = from {
            from = log.purge(11, log.end(), at);
        }
        assert!(!holds(&log, b"gone") && holds(&log, b"kept"));
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
