//! Reading one shard's segments back, chunk by chunk: which records are good, where they end, and whether the end is torn or the
//! middle damaged.
//!
//! A machine that stopped may leave a torn end: the last record or records, if no mark says that they were synced. Everything
//! else that does not read is damage. To tell them apart the scan goes on behind the first bad record and looks for marks.

use super::chunks::Position;
use super::record::{Kind, Record, RecordError, header_in_chain, read_half_purged, read_record, stated_length};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentError, SegmentHeader, segment_name};
use super::state::{Mark, StateError};
use crate::limits::CHUNK_BYTES;
use std::collections::BTreeMap;

/// Sessions whose next good record behind a damage is reported.
pub const SESSIONS_AFTER_MAX: usize = 64;

/// The reason why a place of the log does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReason {
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Header(#[from] SegmentError),
    #[error("the rest of the chunk must be 0 behind its last record, and is not")]
    NotZero,
    #[error("a mark's body does not read: {0}")]
    MarkBody(#[from] StateError),
    #[error("a mark says that the log was synced to position {synced_to}, behind its own")]
    MarkAhead { synced_to: u64 },
    #[error("records are missing at the segment's end: the next segment's header does not continue its chain")]
    CutShort,
}

/// The proof that a bad place is damage and not a torn end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Proof {
    #[error("it was synced to position {0}, as a mark says")]
    Synced(u64),
    #[error("segment {0} was written after it")]
    Followed(u64),
}

/// Seqs of one session between which a record is damaged or missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRange {
    /// Keyed hash of the session's id.
    pub session: u64,
    /// The last good seq before; `None` if none was seen.
    pub last_good: Option<u64>,
    /// The first good seq behind; `None` if none was seen.
    pub next_good: Option<u64>,
}

/// A place in the log's middle that does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: offset {offset}: {reason}; {proof}", segment_name(*.segment))]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// Offset in the file at which it does not read.
    pub offset: u64,
    /// Bytes of the file up to the end of its last good record before.
    pub valid_bytes: u64,
    pub reason: BadReason,
    pub proof: Proof,
    /// Session and seq of the bad record, if its header is good and only its body is not.
    pub record: Option<(u64, u64)>,
    /// Session and seq of the first good message of each session behind the damage, at most [`SESSIONS_AFTER_MAX`].
    pub after: Vec<(u64, u64)>,
}

impl Damage {
    /// The sessions that may have lost messages. `last_good` returns the last message of a session that the caller was shown.
    pub fn ranges(&self, last_good: impl Fn(u64) -> Option<u64>) -> Vec<SeqRange> {
        let range = |session: u64, next_good: Option<u64>| SeqRange { session, last_good: last_good(session), next_good };
        let mut ranges: Vec<SeqRange> = self.after.iter().map(|(session, seq)| range(*session, Some(*seq))).collect();
        // A session that continues without a hole lost nothing. A session's first seq is 1.
        ranges.retain(|range| range.next_good > range.last_good.unwrap_or(0).checked_add(1));
        if let Some((session, _)) = self.record
            && !ranges.iter().any(|range| range.session == session)
        {
            ranges.insert(0, range(session, None));
        }
        ranges
    }
}

/// A torn end, which is cut: the file to `offset` bytes (0: the whole file is deleted), and later files are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment's number.
    pub segment: u64,
    /// Bytes of the file that stay.
    pub offset: u64,
    pub reason: BadReason,
    /// Bytes from there to the last one that is not 0, in all files.
    pub bytes: u64,
    /// Session and seq of the first torn record, if its header is good.
    pub record: Option<(u64, u64)>,
}

/// The last segment with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSegment {
    pub number: u64,
    /// Bytes of the file up to the end of its last good record.
    pub valid_bytes: u64,
}

/// The content of a log that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The first segment's number; `None` if there is none.
    pub first: Option<u64>,
    pub last: Option<LastSegment>,
    /// Bytes of a segment; `None` if there is none.
    pub segment_bytes: Option<u64>,
    /// The end of the last good record (of the last segment's header, if it has no record).
    pub end: Position,
    /// The chain value of the last good record, for `chain_before` of the next segment's header.
    pub chain: u32,
    /// Everything below this position was synced, by the marks.
    pub synced_to: u64,
    /// Good records.
    pub records: u64,
    /// The torn end; `None` if the log is whole.
    pub torn: Option<Torn>,
    /// The first of the segments at the end that hold only zeros (preallocated, never begun).
    pub unwritten: Option<u64>,
}

/// Purged records of a session without a later record of its purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncovered {
    /// Keyed hash of the session's id.
    pub session: u64,
    /// The segment of the first one.
    pub segment: u64,
    pub offset: u64,
    /// The last one's seq.
    pub last_seq: u64,
}

/// The reason why a scan stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("{}: {error}", segment_name(*.segment))]
    Header { segment: u64, error: SegmentError },
    #[error("{}: its header says {field} {found}, {expected} is right", segment_name(*.segment))]
    Foreign { segment: u64, field: &'static str, found: u64, expected: u64 },
    #[error("{} is missing: {} is followed by {}", segment_name(*.after + 1), segment_name(*.after), segment_name(*.found))]
    Missing { after: u64, found: u64 },
    #[error("{} comes after {}: each segment must come once, in the order of the numbers", segment_name(*.found), segment_name(*.after))]
    Order { after: u64, found: u64 },
    #[error("{}: longer than its {segment_bytes} bytes", segment_name(*.segment))]
    TooLong { segment: u64, segment_bytes: u64 },
    #[error("{}: a part of {bytes} bytes at offset {offset}: all but a file's last must have {CHUNK_BYTES}", segment_name(*.segment))]
    Part { segment: u64, offset: u64, bytes: usize },
    #[error(transparent)]
    Damaged(Box<Damage>),
    /// Everything else is good, as in `scanned`.
    #[error("{}: a message was purged, and no record of its session's purge follows", place(uncovered))]
    Purged { uncovered: Vec<Uncovered>, scanned: Box<Scanned> },
}

fn place(uncovered: &[Uncovered]) -> String {
    let first = uncovered.iter().map(|each| (each.segment, each.offset)).min().unwrap_or_default();
    format!("{}: offset {}", segment_name(first.0), first.1)
}

/// The first bad place.
#[derive(Debug)]
struct Bad {
    segment: u64,
    offset: u64,
    /// Bytes of the file before, to the end of its last good record.
    valid_bytes: u64,
    reason: BadReason,
    record: Option<(u64, u64)>,
    after: Vec<(u64, u64)>,
    /// Bytes of the earlier files since the bad place.
    earlier_bytes: u64,
    /// Bytes of this file up to the last that is not 0, from the bad place or the file's beginning.
    here_bytes: u64,
    /// A later segment that was written.
    followed: Option<u64>,
}

/// The scanner's state within the current segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The segment's header comes next.
    Fresh,
    /// The segment begins with zeros, and only zeros may follow.
    Unwritten,
    /// Records may follow.
    Records,
    /// A whole chunk was unused: only zeros may follow.
    Ended,
    /// Behind the first bad place: looking for marks.
    Searching,
}

/// Reads one shard's segments of one generation: call [`Scanner::segment`] for each file, in the order of their numbers,
/// [`Scanner::chunk`] for each [`CHUNK_BYTES`] of it, and [`Scanner::finish`] for the result.
#[derive(Debug)]
pub struct Scanner {
    shard: u16,
    generation: u32,
    segment_bytes: Option<u64>,
    first: Option<u64>,
    /// The current segment, and how many of its bytes were fed.
    number: Option<u64>,
    offset: u64,
    state: State,
    /// The value from which the next record's chain continues, and the last record's chain.
    running: u32,
    chain: u32,
    last: Option<LastSegment>,
    end: u64,
    records: u64,
    synced_to: u64,
    unwritten: Option<u64>,
    bad: Option<Bad>,
    /// By session: purged records that no record of their purge has followed yet.
    uncovered: BTreeMap<u64, Uncovered>,
    /// Sessions whose purged records may have any body.
    half_purged: Vec<u64>,
}

static ZEROS: [u8; 4096] = [0; 4096];

/// Bytes of zeros at the beginning, in whole blocks except for the last: fast if there are many.
fn zeros(bytes: &[u8]) -> usize {
    let blocks = bytes.chunks(ZEROS.len()).take_while(|block| **block == ZEROS[..block.len()]);
    blocks.map(<[u8]>::len).sum()
}

fn all_zero(bytes: &[u8]) -> bool {
    zeros(bytes) == bytes.len()
}

impl Scanner {
    /// A scan of the log of that shard.
    #[must_use]
    pub const fn new(shard: u16, generation: u32) -> Self {
        Self {
            shard,
            generation,
            segment_bytes: None,
            first: None,
            number: None,
            offset: 0,
            state: State::Fresh,
            running: 0,
            chain: 0,
            last: None,
            end: 0,
            records: 0,
            synced_to: 0,
            unwritten: None,
            bad: None,
            uncovered: BTreeMap::new(),
            half_purged: Vec::new(),
        }
    }

    /// Accepts records of these sessions with unreadable bodies as purged: their purge may have stopped half way.
    #[must_use]
    pub fn with_half_purged(self, sessions: Vec<u64>) -> Self {
        Self { half_purged: sessions, ..self }
    }

    /// The end of the last good record so far.
    #[must_use]
    pub const fn end(&self) -> Position {
        Position(self.end)
    }

    /// The last segment that was begun, and how much of it is good so far.
    #[must_use]
    pub const fn last(&self) -> Option<LastSegment> {
        self.last
    }

    /// Begins the segment of that number (its file's name).
    ///
    /// # Errors
    /// If the number is not the next one.
    pub fn segment(&mut self, number: u64) -> Result<(), ScanError> {
        self.close_segment();
        if let Some(after) = self.number {
            if number <= after {
                return Err(ScanError::Order { after, found: number });
            }
            if number != after + 1 && self.bad.is_none() {
                return Err(ScanError::Missing { after, found: number });
            }
        }
        self.first.get_or_insert(number);
        self.number = Some(number);
        self.offset = 0;
        self.state = if self.bad.is_some() { State::Searching } else { State::Fresh };
        Ok(())
    }

    /// Reads the next [`CHUNK_BYTES`] of the segment's file; only the last may be shorter. Shows each good record with its
    /// position.
    ///
    /// # Errors
    /// A header of another shard, generation or version, or no header. Bad records are reported by [`Scanner::finish`].
    pub fn chunk(&mut self, bytes: &[u8], mut each: impl FnMut(Position, &Record<'_>)) -> Result<(), ScanError> {
        let (segment, offset) = (self.number.unwrap_or(0), self.offset);
        if self.number.is_none() || bytes.len() > CHUNK_BYTES || !offset.is_multiple_of(CHUNK_BYTES as u64) {
            return Err(ScanError::Part { segment, offset, bytes: bytes.len() });
        }
        self.offset += bytes.len() as u64;
        let start = match self.state {
            _ if bytes.is_empty() => return Ok(()),
            State::Fresh => match self.header(segment, bytes)? {
                Some(start) => start,
                None => return Ok(()),
            },
            State::Searching if offset == 0 => {
                self.header_behind(segment, bytes);
                0
            }
            _ => 0,
        };
        if let Some(segment_bytes) = self.segment_bytes
            && self.offset > segment_bytes
            && self.bad.is_none()
        {
            return Err(ScanError::TooLong { segment, segment_bytes });
        }
        match self.state {
            State::Records => self.read(bytes, start, &mut each),
            State::Ended if !all_zero(bytes) => self.go_bad(segment, offset, BadReason::NotZero, bytes, 0),
            State::Unwritten if !all_zero(bytes) => {
                // If earlier segments were not written either, the log stops at the first of them.
                let first = *self.unwritten.get_or_insert(segment);
                self.follow_unwritten(None);
                self.go_bad(first, 0, SegmentError::Unwritten.into(), bytes, 0);
            }
            State::Searching => self.search(bytes, offset, 0),
            State::Fresh | State::Ended | State::Unwritten => {}
        }
        Ok(())
    }

    /// The content of the log.
    ///
    /// # Errors
    /// [`ScanError::Damaged`] if its middle does not read, [`ScanError::Purged`] if messages are gone that nobody has purged.
    pub fn finish(mut self) -> Result<Scanned, ScanError> {
        self.close_segment();
        let torn = match self.bad.take() {
            None => None,
            Some(bad) => {
                let proof = match bad.followed {
                    _ if self.synced_to > self.end => Some(Proof::Synced(self.synced_to)),
                    followed => followed.map(Proof::Followed),
                };
                let Bad { segment, offset, valid_bytes, reason, record, after, .. } = bad;
                if let Some(proof) = proof {
                    let damage = Damage { segment, offset, valid_bytes, reason, proof, record, after };
                    return Err(ScanError::Damaged(Box::new(damage)));
                }
                Some(Torn { segment, offset: valid_bytes, reason, bytes: bad.earlier_bytes + bad.here_bytes, record })
            }
        };
        let scanned = Scanned {
            first: self.first,
            last: self.last,
            segment_bytes: self.segment_bytes,
            end: Position(self.end),
            chain: self.chain,
            synced_to: self.synced_to,
            records: self.records,
            torn,
            unwritten: self.unwritten,
        };
        if self.uncovered.is_empty() {
            return Ok(scanned);
        }
        Err(ScanError::Purged { uncovered: self.uncovered.into_values().collect(), scanned: Box::new(scanned) })
    }

    /// Reads the segment's first chunk. Returns where to go on in it, `None` if nothing is left to do.
    fn header(&mut self, segment: u64, bytes: &[u8]) -> Result<Option<usize>, ScanError> {
        let header = match SegmentHeader::decode(bytes) {
            Ok(header) => header,
            Err(_) if all_zero(bytes) => {
                self.state = State::Unwritten;
                return Ok(None);
            }
            Err(error) if error.may_be_torn() => {
                if self.unwritten.is_some() {
                    self.follow_unwritten(None);
                    self.state = State::Searching;
                    return Ok(Some(0));
                }
                self.go_bad(segment, 0, error.into(), bytes, 0);
                return Ok(None);
            }
            Err(error) => return Err(ScanError::Header { segment, error }),
        };
        let segment_bytes = self.segment_bytes.unwrap_or(header.segment_bytes);
        for (field, found, expected) in [
            ("shard", u64::from(header.shard), u64::from(self.shard)),
            ("generation", header.generation.into(), self.generation.into()),
            ("number", header.number, segment),
            ("segment bytes", header.segment_bytes, segment_bytes),
        ] {
            if found != expected {
                return Err(ScanError::Foreign { segment, field, found, expected });
            }
        }
        self.follow_unwritten(Some(segment));
        // The chain before the first segment is unknown; before segment 0 there was nothing.
        let known = self.last.is_some() || segment == 0;
        if self.bad.is_none() && known && header.chain_before != self.chain {
            let (number, offset) = self.last.map_or((segment, 0), |last| (last.number, last.valid_bytes));
            self.bad = Some(Bad::new(number, offset, BadReason::CutShort, None));
        }
        if let Some(bad) = &mut self.bad {
            bad.followed.get_or_insert(segment);
            self.state = State::Searching;
            return Ok(Some(0));
        }
        self.segment_bytes = Some(segment_bytes);
        (self.running, self.chain) = (header.chain_start(), header.chain_before);
        self.end = header.start().0 + SEGMENT_HEADER_BYTES as u64;
        self.last = Some(LastSegment { number: segment, valid_bytes: SEGMENT_HEADER_BYTES as u64 });
        self.state = State::Records;
        Ok(Some(SEGMENT_HEADER_BYTES))
    }

    /// Notes that something was written after segments of zeros: then the log stops reading at the first of them. `by` is a whole
    /// segment.
    fn follow_unwritten(&mut self, by: Option<u64>) {
        if let Some(number) = self.unwritten.take() {
            self.bad = Some(Bad { followed: by, ..Bad::new(number, 0, SegmentError::Unwritten.into(), None) });
        }
    }

    /// Reads the first chunk of a segment behind a bad place, to see whether it was written at all.
    fn header_behind(&mut self, segment: u64, bytes: &[u8]) {
        if let (Ok(header), Some(bad)) = (SegmentHeader::decode(bytes), &mut self.bad)
            && header.number == segment
        {
            bad.followed.get_or_insert(segment);
            self.segment_bytes.get_or_insert(header.segment_bytes);
        }
    }

    fn read(&mut self, bytes: &[u8], start: usize, each: &mut impl FnMut(Position, &Record<'_>)) {
        let (Some(segment), Some(segment_bytes)) = (self.number, self.segment_bytes) else { return };
        let chunk_offset = self.offset - bytes.len() as u64;
        let mut at = start;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let offset = chunk_offset + at as u64;
            if rest.iter().take(2).all(|byte| *byte == 0) {
                if !all_zero(rest) {
                    self.go_bad(segment, offset, BadReason::NotZero, bytes, at);
                } else if at == start {
                    self.state = State::Ended;
                }
                return;
            }
            let position = segment * segment_bytes + offset;
            let read = read_record(rest, Some(self.running)).or_else(|error| self.read_half_purged(rest).ok_or(error));
            let read = read.map_err(BadReason::from).and_then(|record| {
                let synced_to = if record.header.kind == Kind::Mark { Mark::decode(record.body)?.synced_to } else { 0 };
                if synced_to > position { Err(BadReason::MarkAhead { synced_to }) } else { Ok((record, synced_to)) }
            });
            match read {
                Ok((record, synced_to)) => {
                    self.synced_to = self.synced_to.max(synced_to);
                    (self.running, self.chain) = (record.chain, record.chain);
                    self.records += 1;
                    at += record.length;
                    self.end = position + record.length as u64;
                    self.last = Some(LastSegment { number: segment, valid_bytes: chunk_offset + at as u64 });
                    self.note_purge(&record, segment, offset);
                    each(Position(position), &record);
                }
                Err(reason) => return self.go_bad(segment, offset, reason, bytes, at),
            }
        }
    }

    fn read_half_purged<'a>(&self, bytes: &'a [u8]) -> Option<Record<'a>> {
        let record = read_half_purged(bytes, self.running).filter(|_| !self.half_purged.is_empty())?;
        self.half_purged.contains(&record.header.session).then_some(record)
    }

    fn note_purge(&mut self, record: &Record<'_>, segment: u64, offset: u64) {
        let (session, seq) = (record.header.session, record.header.seq);
        if record.header.kind == Kind::Purge {
            self.uncovered.remove(&session);
        } else if record.purged {
            let uncovered = self.uncovered.entry(session).or_insert(Uncovered { session, segment, offset, last_seq: seq });
            uncovered.last_seq = seq.max(uncovered.last_seq);
        }
    }

    /// Notes the first bad place, at `offset` of the file, in or before this chunk; the bytes behind `at` in the chunk are
    /// searched.
    fn go_bad(&mut self, segment: u64, offset: u64, reason: BadReason, bytes: &[u8], at: usize) {
        let record = header_in_chain(&bytes[at..], self.running).map(|header| (header.session, header.seq));
        let record = record.filter(|_| matches!(reason, BadReason::Record(_)));
        let valid = self.last.filter(|last| last.number == segment).map_or(0, |last| last.valid_bytes);
        // The unused end of the previous chunk is cut too.
        let valid_bytes = if offset == 0 { 0 } else { valid };
        self.bad = Some(Bad { valid_bytes, ..Bad::new(segment, offset, reason, record) });
        let from = at + stated_length(&bytes[at..]).filter(|len| *len > 0 && at + len < bytes.len()).unwrap_or(1);
        let resumes = read_record(bytes.get(from..).unwrap_or_default(), None).is_ok();
        self.state = State::Searching;
        let chunk_offset = self.offset - bytes.len() as u64;
        self.search(bytes, chunk_offset, if resumes { from } else { at + 1 });
    }

    /// Looks for records without the chain, which tell more about the bad place before them.
    fn search(&mut self, bytes: &[u8], chunk_offset: u64, from: usize) {
        let (Some(segment), Some(bad)) = (self.number, &mut self.bad) else { return };
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if used > 0 {
            let begin = if bad.segment == segment { bad.valid_bytes } else { 0 };
            bad.here_bytes = (chunk_offset + used as u64).saturating_sub(begin);
        }
        let mut at = from;
        while at < used {
            match read_record(&bytes[at..], None) {
                Ok(record) => {
                    let (session, seq) = (record.header.session, record.header.seq);
                    match record.header.kind {
                        Kind::Mark => {
                            let position = self.segment_bytes.map(|bytes| segment * bytes + chunk_offset + at as u64);
                            let synced_to = Mark::decode(record.body).map_or(0, |mark| mark.synced_to);
                            if position.is_none_or(|position| synced_to <= position) {
                                self.synced_to = self.synced_to.max(synced_to);
                            }
                        }
                        Kind::Message
                            if bad.after.len() < SESSIONS_AFTER_MAX && !bad.after.iter().any(|(known, _)| *known == session) =>
                        {
                            bad.after.push((session, seq));
                        }
                        _ => {}
                    }
                    at += record.length;
                }
                Err(_) => at += 1 + zeros(&bytes[at + 1..used]),
            }
        }
    }

    fn close_segment(&mut self) {
        let Some(segment) = self.number else { return };
        if matches!(self.state, State::Fresh | State::Unwritten) && self.bad.is_none() {
            self.unwritten.get_or_insert(segment);
        }
        if let Some(bad) = &mut self.bad {
            bad.earlier_bytes += std::mem::take(&mut bad.here_bytes);
        }
        self.state = State::Ended;
    }
}

impl Bad {
    const fn new(segment: u64, offset: u64, reason: BadReason, record: Option<(u64, u64)>) -> Self {
        Self {
            segment,
            offset,
            valid_bytes: offset,
            reason,
            record,
            after: Vec::new(),
            earlier_bytes: 0,
            here_bytes: 0,
            followed: None,
        }
    }
}
