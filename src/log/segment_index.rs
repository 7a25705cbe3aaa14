//! A segment's index file: where each session's messages stand in a segment that is not written any more. All integers are
//! little-endian.
//!
//! ```text
//!  0  8 bytes  magic "RWIDX\0\0\1"        32  u32  runs
//!  8  u16      version (1)                36  u32  entries
//! 10  u16      shard                      40  u32  CRC32C of the segment's header: bytes 60 to 64 of that file
//! 12  u32      generation                 44  u32  CRC32C of the runs
//! 16  u64      number of the segment      48  12 bytes, 0
//! 24  u64      segment bytes              60  u32  CRC32C of bytes 0 to 60
//! 64  the runs, by session and seq        then the entries, in the order of the runs
//!
//! A run: messages of one session that follow each other without a hole, 32 bytes
//!  0  u64  session                        20  u32  where its entries begin in this file
//!  8  u64  first seq                      24  u32  bytes of its records together
//! 16  u32  count                          28  u32  the offset of its last record in the segment's file
//!
//! An entry: one message, 12 bytes
//!  0  u32  the record's offset in the segment's file
//!  4  u32  the record's length
//!  8  u32  CRC32C of bytes 0 to 8 and then of the record's header and addresses
//! ```
//!
//! All of it follows from the segment: it may be deleted and is made again. An entry's checksum covers the record's head, which has the
//! session, the seq and the body's checksum in it: what is read by an entry is that record, whole, or it does not match.

use super::record::{HEADER_BYTES, Kind, Record, behind_damaged, get, put, read_record};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::limits::CHUNK_BYTES;

/// The version that this code writes.
pub const INDEX_VERSION: u16 = 1;
/// Bytes of an index file's header.
pub const INDEX_HEADER_BYTES: usize = 64;
/// Bytes of a run.
pub const RUN_BYTES: usize = 32;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 12;

const MAGIC: [u8; 8] = *b"RWIDX\0\0\x01";

/// Messages of one session in one segment, without a hole in their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first_seq: u64,
    /// The segment's number. Segments from 2^32 on are not indexed.
    pub segment: u32,
    pub count: u32,
    /// Offset of its first entry in the index file.
    pub entries_at: u32,
    /// Bytes of its records; of a part of a run, in proportion.
    pub bytes: u32,
    /// Offset of its last record in the segment's file; a part of a run keeps the value.
    pub last_offset: u32,
}

impl Run {
    /// The number after the last.
    #[must_use]
    pub const fn end_seq(&self) -> u64 {
        self.first_seq + self.count as u64
    }

    /// The part of the run from `first` to before `end`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a part is not more than the whole, whose fields are of 32 bits")]
    pub fn part(&self, first: u64, end: u64) -> Self {
        let first = first.clamp(self.first_seq, self.end_seq());
        let count = end.min(self.end_seq()).saturating_sub(first);
        let bytes = u64::from(self.bytes) * count / u64::from(self.count).max(1);
        let entries_at = u64::from(self.entries_at) + ENTRY_BYTES as u64 * (first - self.first_seq);
        Self {
            first_seq: first,
            segment: self.segment,
            count: count as u32,
            entries_at: entries_at as u32,
            bytes: bytes as u32,
            last_offset: self.last_offset,
        }
    }

    /// Splits the run where the offsets of two neighbours are not `together`. `entries` are the run's own, from its index file.
    pub fn split(self, entries: &[u8], together: impl Fn(u32, u32) -> bool) -> impl Iterator<Item = Self> {
        let located: Vec<Located> = read_entries(entries).flatten().take(self.count as usize).collect();
        let (mut from, mut parts) = (self.first_seq, Vec::new());
        for part in located.chunk_by(|one, other| together(one.offset, other.offset)) {
            let end = from + part.len() as u64;
            let bytes = part.iter().fold(0, |sum: u32, one| sum.saturating_add(one.bytes));
            parts.push(Self { bytes, last_offset: part[part.len() - 1].offset, ..self.part(from, end) });
            from = end;
        }
        parts.into_iter()
    }

    /// Average bytes of a record.
    #[must_use]
    pub fn bytes_each(&self) -> u32 {
        self.bytes.checked_div(self.count).unwrap_or(0)
    }
}

/// A run and its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRun {
    /// Keyed hash of the session's id.
    pub session: u64,
    pub run: Run,
}

/// A record's place in its segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    pub offset: u32,
    pub bytes: u32,
    check: u32,
}

impl Located {
    fn new(offset: u32, record: &Record<'_>) -> Option<Self> {
        let bytes = u32::try_from(record.length).ok()?;
        Some(Self { offset, bytes, check: check(offset, bytes, record.head) })
    }

    /// Returns `true` if a record may be there: it lies within a chunk.
    const fn may_be(&self) -> bool {
        self.bytes as usize >= HEADER_BYTES && self.offset as usize % CHUNK_BYTES + self.bytes as usize <= CHUNK_BYTES
    }

    /// The message of that session and seq, if it is the record at this place.
    #[must_use]
    pub fn read<'a>(&self, bytes: &'a [u8], session: u64, seq: u64) -> Option<Record<'a>> {
        let record = read_record(bytes, None).ok()?;
        let header = &record.header;
        let right =
            (header.kind, header.session, header.seq, record.length) == (Kind::Message, session, seq, self.bytes as usize);
        (right && check(self.offset, self.bytes, record.head) == self.check).then_some(record)
    }
}

fn check(offset: u32, bytes: u32, head: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), &bytes.to_le_bytes());
    crc32c::crc32c_append(crc, head)
}

/// A file's name: the segment's number as 16 hexadecimal digits, and `.idx`.
#[must_use]
pub fn index_name(number: u64) -> String {
    format!("{number:016x}.idx")
}

/// The number in an index file's name; `None` if the name is no index file's.
#[must_use]
pub fn index_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(".idx")?, 16).ok()?;
    (index_name(number) == name).then_some(number)
}

/// An index file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    pub bytes: Vec<u8>,
    /// Length of header and runs, the part that a shard keeps in memory.
    pub directory_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    session: u64,
    seq: u64,
    at: Located,
}

/// Gathers a segment's messages.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    noted: Vec<Noted>,
    /// Sessions that were forgotten, and where: messages before are an earlier session's of the same id.
    gone: Vec<(u64, u32)>,
}

impl IndexBuilder {
    /// Notes a good record of the segment, at an offset of its file. Records must come in the order of the file.
    pub fn note(&mut self, offset: u32, record: &Record<'_>) {
        let (session, seq) = (record.header.session, record.header.seq);
        match record.header.kind {
            Kind::Message if record.purged => {}
            Kind::Message => self.noted.extend(Located::new(offset, record).map(|at| Noted { session, seq, at })),
            Kind::SessionGone => self.gone.push((session, offset)),
            _ => {}
        }
    }

    /// The file of the records noted since the last one; `None` if a number does not fit (see [`Run::segment`]).
    pub fn finish(&mut self, header: &SegmentHeader) -> Option<IndexFile> {
        let segment = u32::try_from(header.number).ok();
        self.gone.sort_unstable();
        let gone = std::mem::take(&mut self.gone);
        self.noted.retain(|noted| {
            let behind = gone.partition_point(|gone| *gone <= (noted.session, noted.at.offset));
            gone.get(behind).is_none_or(|(session, _)| *session != noted.session)
        });
        // Of two copies the later one counts.
        self.noted.sort_unstable_by_key(|noted| (noted.session, noted.seq, std::cmp::Reverse(noted.at.offset)));
        self.noted.dedup_by_key(|noted| (noted.session, noted.seq));
        let follows = |pair: &[Noted; 2]| pair[0].session == pair[1].session && pair[0].seq.checked_add(1) == Some(pair[1].seq);
        let noted = std::mem::take(&mut self.noted);
        let breaks = noted.array_windows().filter(|pair| !follows(pair)).count();
        let runs = breaks + usize::from(!noted.is_empty());
        let directory_bytes = INDEX_HEADER_BYTES + runs * RUN_BYTES;
        let mut bytes = vec![0; directory_bytes + noted.len() * ENTRY_BYTES];
        u32::try_from(bytes.len()).ok()?;
        let (mut run_at, mut entry_at) = (INDEX_HEADER_BYTES, directory_bytes);
        for run in noted.chunk_by(|one, other| follows(&[*one, *other])) {
            let sum = run.iter().map(|noted| u64::from(noted.at.bytes)).sum::<u64>();
            put(&mut bytes, run_at, run[0].session.to_le_bytes());
            put(&mut bytes, run_at + 8, run[0].seq.to_le_bytes());
            put(&mut bytes, run_at + 16, u32::try_from(run.len()).ok()?.to_le_bytes());
            put(&mut bytes, run_at + 20, u32::try_from(entry_at).ok()?.to_le_bytes());
            put(&mut bytes, run_at + 24, u32::try_from(sum).unwrap_or(u32::MAX).to_le_bytes());
            put(&mut bytes, run_at + 28, run[run.len() - 1].at.offset.to_le_bytes());
            run_at += RUN_BYTES;
            for noted in run {
                put(&mut bytes, entry_at, noted.at.offset.to_le_bytes());
                put(&mut bytes, entry_at + 4, noted.at.bytes.to_le_bytes());
                put(&mut bytes, entry_at + 8, noted.at.check.to_le_bytes());
                entry_at += ENTRY_BYTES;
            }
        }
        let runs_crc = crc32c::crc32c(&bytes[INDEX_HEADER_BYTES..directory_bytes]);
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, INDEX_VERSION.to_le_bytes());
        put(&mut bytes, 10, header.shard.to_le_bytes());
        put(&mut bytes, 12, header.generation.to_le_bytes());
        put(&mut bytes, 16, header.number.to_le_bytes());
        put(&mut bytes, 24, header.segment_bytes.to_le_bytes());
        put(&mut bytes, 32, u32::try_from(runs).ok()?.to_le_bytes());
        put(&mut bytes, 36, u32::try_from(noted.len()).ok()?.to_le_bytes());
        put(&mut bytes, 40, header.chain_start().to_le_bytes());
        put(&mut bytes, 44, runs_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        put(&mut bytes, 60, crc.to_le_bytes());
        // Kept for the next segment.
        self.noted = noted;
        self.noted.clear();
        segment.map(|_| IndexFile { bytes, directory_bytes })
    }
}

/// Makes a segment's index from its bytes alone. Records that do not read, or do not continue the chain, are skipped.
#[derive(Debug, Default)]
pub struct IndexScan {
    builder: IndexBuilder,
    header: Option<SegmentHeader>,
    /// The chain values that the next record may continue: two if the record before it is damaged. `None` if no record ends here.
    running: Option<[u32; 2]>,
    offset: usize,
}

impl IndexScan {
    /// Reads the next [`CHUNK_BYTES`] of the segment's file; only the last may be shorter.
    pub fn chunk(&mut self, bytes: &[u8]) {
        let start = self.offset;
        self.offset += bytes.len();
        let mut at = 0;
        if start == 0 {
            self.header = SegmentHeader::decode(bytes).ok();
            self.running = self.header.as_ref().map(|header| [header.chain_start(); 2]);
            at = SEGMENT_HEADER_BYTES;
        }
        while at < bytes.len() {
            let rest = &bytes[at..];
            // The unused end of the chunk.
            if rest[..rest.len().min(2)].iter().all(|byte| *byte == 0) && rest.iter().all(|byte| *byte == 0) {
                break;
            }
            let read = match self.running {
                Some([one, other]) if one != other => read_record(rest, Some(one)).or_else(|_| read_record(rest, Some(other))),
                Some([one, _]) => read_record(rest, Some(one)),
                None => read_record(rest, None),
            };
            if let Ok(record) = read {
                self.builder.note(u32::try_from(start + at).unwrap_or(u32::MAX), &record);
                self.running = Some([record.chain; 2]);
                at += record.length;
            } else if let Some((length, chains)) = self.running.and_then(|[one, _]| behind_damaged(rest, one)) {
                self.running = Some(chains);
                at += length;
            } else {
                // On to the next byte that may begin a record.
                self.running = None;
                at += 1 + rest[1..].iter().take_while(|byte| **byte == 0).count();
            }
        }
    }

    /// The index; `None` if the segment has no readable header.
    #[must_use]
    pub fn finish(mut self) -> Option<IndexFile> {
        self.builder.finish(&self.header?)
    }
}

fn run_of(bytes: &[u8; RUN_BYTES], segment: u32) -> SessionRun {
    let word = |at: usize| u32::from_le_bytes(get(bytes, at));
    let (session, first_seq) = (u64::from_le_bytes(get(bytes, 0)), u64::from_le_bytes(get(bytes, 8)));
    let run = Run { first_seq, segment, count: word(16), entries_at: word(20), bytes: word(24), last_offset: word(28) };
    SessionRun { session, run }
}

/// The runs of a directory from the `from`th on. Nothing is checked again, since this process has just made it.
pub fn directory_runs(directory: &[u8], from: usize) -> impl Iterator<Item = SessionRun> {
    let segment = directory.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let runs = directory.get(INDEX_HEADER_BYTES + from * RUN_BYTES..).unwrap_or_default();
    runs.as_chunks().0.iter().map(move |bytes| run_of(bytes, segment))
}

/// Reads entries; `None` for one that can be no record's place. [`Located::read`] checks whether the right record is there.
pub fn read_entries(bytes: &[u8]) -> impl Iterator<Item = Option<Located>> {
    bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(|entry| {
        let word = |at: usize| u32::from_le_bytes(get(entry, at));
        Some(Located { offset: word(0), bytes: word(4), check: word(8) }).filter(Located::may_be)
    })
}

#[cfg(test)]
#[path = "segment_index_tests.rs"]
mod tests;
