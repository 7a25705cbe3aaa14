//! The places of a session's sequence numbers in a log.
//!
//! The newest numbers have entries, with all that a reader needs to skip a record without touching it. Numbers in segments that
//! have an index file (`segment_index.rs`) are one [`Run`] a segment, so that a session's memory does not grow with its history.
//! A message that was copied to the log's tail (compaction) keeps its number: so positions need not follow the order of the
//! numbers, and there may be holes.

use super::chunks::{Appended, Position, Retained};
use super::segment_index::{ENTRY_BYTES, Run};
use crate::few::Few;
use std::collections::VecDeque;

/// The readers that a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everyone attached.
    All,
    /// A single address, by its keyed hash.
    One(u64),
    /// Several: the record's own list, and the CRC32C of that. A list that is read from disk is compared with it.
    Many(u32),
}

impl Audience {
    /// Of a message to these addresses, by their keyed hashes.
    #[must_use]
    pub fn of(addresses: &[u64]) -> Self {
        match addresses {
            [] => Self::All,
            [one] => Self::One(*one),
            many => Self::Many(many.iter().fold(0, |crc, address| crc32c::crc32c_append(crc, &address.to_le_bytes()))),
        }
    }

    /// Of a record whose addresses these are, 8 bytes each, little-endian.
    #[must_use]
    pub fn of_record(addresses: &[u8]) -> Self {
        match (addresses.first_chunk(), addresses.len()) {
            (None, _) => Self::All,
            (Some(one), 8) => Self::One(u64::from_le_bytes(*one)),
            _ => Self::Many(crc32c::crc32c(addresses)),
        }
    }
}

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Position,
    pub frame_at: u32,
    pub frame_bytes: u32,
    pub audience: Audience,
    /// Keyed hash of the sender's client id.
    pub sender: u64,
}

impl Entry {
    /// The entry of a record, from where it was put.
    #[must_use]
    pub const fn new(put: Appended, audience: Audience, sender: u64) -> Self {
        Self { at: put.at, frame_at: put.frame_at, frame_bytes: put.frame_bytes, audience, sender }
    }

    /// The whole record's bytes: header, addresses, frame.
    #[must_use]
    pub const fn record_bytes(&self) -> u32 {
        self.frame_at + self.frame_bytes
    }
}

/// The result of looking up a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// The place of its record.
    Entry(&'a Entry),
    /// The number is held, and its place is in the index file of this run's segment.
    Cold(Run),
    /// The number is not held. `before` and `next` are the nearest numbers that are: 0 if there is none before it, `head + 1` if
    /// there is none behind.
    Nothing { before: u64, next: u64 },
}

/// The numbers from `first` to `head`; see the module's text.
#[derive(Debug)]
pub struct Index {
    /// The oldest number held.
    first: u64,
    /// Where the oldest record of `scattered` and `dense` is, and the lowest segment of `runs`, here so that most calls of
    /// [`Index::trim`] touch nothing else.
    oldest: Position,
    oldest_run: u32,
    /// By their numbers; none overlaps another.
    runs: Vec<Run>,
    /// Entries below `dense_first`, by their numbers: copies whose segment has no index file yet.
    scattered: Few<(u64, Entry)>,
    dense_first: u64,
    /// From `dense_first` to the head without a hole, in the order of their positions.
    dense: VecDeque<Entry>,
    /// Bytes of all records held; of a run's part, in proportion.
    bytes: u64,
}

/// The structure that the oldest number is in.
#[derive(Clone, Copy)]
enum Oldest {
    Run(Run),
    Scattered(u64, Entry),
    Dense(Entry),
}

const NONE: Position = Position(u64::MAX);

impl Index {
    /// An index whose next entry will have the sequence number `next` (a session's first is 1).
    #[must_use]
    pub const fn starting_at(next: u64) -> Self {
        Self {
            first: next,
            oldest: NONE,
            oldest_run: u32::MAX,
            runs: Vec::new(),
            scattered: Few::new(),
            dense_first: next,
            dense: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The oldest sequence number held; `head + 1` if none is.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The newest sequence number so far, held or not.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.dense_first + self.dense.len() as u64 - 1
    }

    /// The number from which on all have entries in the order of their positions.
    #[must_use]
    pub const fn dense_first(&self) -> u64 {
        self.dense_first
    }

    /// Returns `true` if no number is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dense.is_empty() && self.runs.is_empty() && self.scattered.is_empty()
    }

    /// Returns `true` if a record before `end` is held.
    #[must_use]
    pub const fn holds_before(&self, end: Retained) -> bool {
        self.oldest.0 < end.at.0 || self.oldest_run < end.segment
    }

    /// Returns `true` if a record before `end` may be held: a run does not tell which part of `end`'s own segment it covers.
    #[must_use]
    pub const fn may_hold_before(&self, end: Retained) -> bool {
        self.oldest.0 < end.at.0 || self.oldest_run <= end.segment
    }

    /// Bytes of all records held; of a part of a run, in proportion.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The runs, by their numbers.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Appends the entry of `head + 1`.
    pub fn push(&mut self, entry: Entry) {
        if self.dense.capacity() == 0 {
            // Many sessions have one message, and then none for long.
            self.dense.reserve_exact(1);
        }
        self.oldest = self.oldest.min(entry.at);
        self.bytes += u64::from(entry.record_bytes());
        self.dense.push_back(entry);
    }

    /// The entry of a sequence number; `None` if it has none.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&Entry> {
        match seq.checked_sub(self.dense_first) {
            Some(place) => usize::try_from(place).ok().and_then(|place| self.dense.get(place)),
            None => {
                let place = self.scattered.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
                self.scattered.get(place).map(|(_, entry)| entry)
            }
        }
    }

    /// Looks up a sequence number.
    #[must_use]
    pub fn find(&self, seq: u64) -> Held<'_> {
        if let Some(entry) = self.get(seq) {
            return Held::Entry(entry);
        }
        let behind = self.runs.partition_point(|run| run.first_seq <= seq);
        let run = behind.checked_sub(1).and_then(|before| self.runs.get(before));
        if let Some(run) = run.filter(|run| seq < run.end_seq()) {
            return Held::Cold(*run);
        }
        let apart = self.scattered.partition_point(|(other, _)| *other < seq);
        let before = run.map_or(0, |run| run.end_seq() - 1);
        let before = apart.checked_sub(1).and_then(|place| self.scattered.get(place)).map_or(before, |(seq, _)| before.max(*seq));
        let before = if seq >= self.dense_first && !self.dense.is_empty() { self.head() } else { before };
        let next = self.runs.get(behind).map_or(u64::MAX, |run| run.first_seq);
        let next = self.scattered.get(apart).map_or(next, |(seq, _)| next.min(*seq));
        let dense = if seq < self.dense_first { self.dense_first } else { self.head() + 1 };
        Held::Nothing { before, next: next.min(dense) }
    }

    /// Forgets records before `from`, and all numbers but the newest `messages_max` (0: no limit). Returns how many were
    /// forgotten.
    pub fn trim(&mut self, from: Retained, messages_max: usize) -> u64 {
        let newest = if messages_max > 0 { (self.head() + 1).saturating_sub(messages_max as u64) } else { 0 };
        if !self.holds_before(from) && (self.first >= newest || self.is_empty()) {
            return 0;
        }
        let mut gone = self.trim_cold(from, newest);
        while let Some(entry) = self.dense.front().copied()
            && (entry.at < from.at || self.dense_first < newest)
        {
            gone += self.drop_oldest(Oldest::Dense(entry), 1);
        }
        self.settle();
        gone
    }

    /// Forgets the oldest numbers as long as `is_gone` returns `true` for their positions, but never the newest `kept`. The
    /// numbers of a run go together, by the position of its last. Returns how many were forgotten.
    pub fn trim_while(&mut self, segment_bytes: u64, kept: usize, is_gone: impl Fn(Position) -> bool) -> u64 {
        let (mut gone, end) = (0, (self.head() + 1).saturating_sub(kept as u64));
        while let Some(oldest) = self.oldest()
            && self.first_seq(&oldest) < end
            && match &oldest {
                Oldest::Run(run) => is_gone(Position(u64::from(run.segment) * segment_bytes + u64::from(run.last_offset))),
                Oldest::Scattered(_, entry) | Oldest::Dense(entry) => is_gone(entry.at),
            }
        {
            gone += self.drop_oldest(oldest, u64::MAX);
        }
        if gone > 0 {
            self.settle();
        }
        gone
    }

    /// Forgets the oldest numbers until the remaining records have at most `bytes_max` together, but never the newest `kept`.
    /// Returns how many were forgotten.
    pub fn trim_bytes(&mut self, bytes_max: u64, kept: usize) -> u64 {
        let (mut gone, end) = (0, (self.head() + 1).saturating_sub(kept as u64));
        while let Some(excess) = self.bytes.checked_sub(bytes_max).filter(|excess| *excess > 0)
            && let Some(oldest) = self.oldest()
        {
            let seq = self.first_seq(&oldest);
            let numbers = match &oldest {
                Oldest::Run(run) => excess.div_ceil(u64::from(run.bytes_each().max(1))),
                Oldest::Scattered(..) | Oldest::Dense(_) => 1,
            };
            if seq >= end {
                break;
            }
            gone += self.drop_oldest(oldest, numbers.min(end - seq));
        }
        if gone > 0 {
            self.settle();
        }
        gone
    }

    fn oldest(&self) -> Option<Oldest> {
        let (run, apart) = (self.runs.first(), self.scattered.first());
        match (run, apart) {
            (Some(run), Some((seq, _))) if run.first_seq < *seq => Some(Oldest::Run(*run)),
            (_, Some((seq, entry))) => Some(Oldest::Scattered(*seq, *entry)),
            (Some(run), None) => Some(Oldest::Run(*run)),
            (None, None) => self.dense.front().copied().map(Oldest::Dense),
        }
    }

    const fn first_seq(&self, oldest: &Oldest) -> u64 {
        match oldest {
            Oldest::Run(run) => run.first_seq,
            Oldest::Scattered(seq, _) => *seq,
            Oldest::Dense(_) => self.dense_first,
        }
    }

    /// Removes the oldest number, or up to `numbers` if they are in one run. The caller must call [`Index::settle`] afterwards.
    fn drop_oldest(&mut self, oldest: Oldest, numbers: u64) -> u64 {
        match oldest {
            Oldest::Run(run) => {
                let numbers = numbers.min(run.count.into());
                let left = run.part(run.first_seq + numbers, run.end_seq());
                if left.count == 0 {
                    self.runs.remove(0);
                } else {
                    self.runs[0] = left;
                }
                self.bytes -= u64::from(run.bytes - left.bytes);
                return numbers;
            }
            Oldest::Scattered(oldest, entry) => {
                self.scattered.retain(|(seq, _)| *seq != oldest);
                self.bytes -= u64::from(entry.record_bytes());
            }
            Oldest::Dense(entry) => {
                self.dense.pop_front();
                self.dense_first += 1;
                self.bytes -= u64::from(entry.record_bytes());
            }
        }
        1
    }

    fn trim_cold(&mut self, from: Retained, newest: u64) -> u64 {
        let (mut gone, cold_bytes) = (0, self.cold_bytes());
        if self.oldest_run < from.segment || self.runs.first().is_some_and(|run| run.first_seq < newest) {
            self.runs.retain_mut(|run| {
                let dead = if run.segment < from.segment { run.end_seq() } else { newest.min(run.end_seq()) };
                gone += dead.saturating_sub(run.first_seq);
                *run = run.part(dead.max(run.first_seq), run.end_seq());
                run.count > 0
            });
        }
        let before = self.scattered.len();
        self.scattered.retain(|(seq, entry)| entry.at >= from.at && *seq >= newest);
        self.bytes -= cold_bytes - self.cold_bytes();
        gone + (before - self.scattered.len()) as u64
    }

    /// Bytes of the records in runs and scattered.
    fn cold_bytes(&self) -> u64 {
        let runs = self.runs.iter().map(|run| u64::from(run.bytes));
        runs.chain(self.scattered.iter().map(|(_, entry)| u64::from(entry.record_bytes()))).sum()
    }

    /// Recomputes the cached bounds and frees memory that is no longer needed.
    fn settle(&mut self) {
        if self.dense.is_empty() {
            // A session that became quiet frees its memory.
            self.dense.shrink_to(0);
        }
        if self.runs.is_empty() {
            self.runs.shrink_to(0);
        }
        let first = self.runs.first().map_or(self.dense_first, |run| run.first_seq.min(self.dense_first));
        self.first = self.scattered.first().map_or(first, |(seq, _)| first.min(*seq));
        let oldest = self.dense.front().map_or(NONE, |entry| entry.at);
        self.oldest = self.scattered.iter().map(|(_, entry)| entry.at).fold(oldest, Position::min);
        self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
    }

    /// Replaces the entries of the messages between `begin` and `end` of the log, which is segment `segment`, by these runs from
    /// its index file. Messages that the file does not name cannot be read, and are no longer held. A run is split where the
    /// places of two neighbours are not `together`. Earlier segments must be passed first.
    pub fn sink(
        &mut self,
        segment: u32,
        (begin, end): (Position, Position),
        runs: &[Run],
        together: impl Fn(Position, Position) -> bool,
    ) {
        let offset = |at: Position| u32::try_from(at.0.saturating_sub(begin.0)).unwrap_or(u32::MAX);
        let mut sunk: Vec<Run> = Vec::new();
        for run in runs {
            let mut last = None;
            for seq in run.first_seq.max(self.first)..run.end_seq().min(self.head() + 1) {
                let found = match self.find(seq) {
                    Held::Entry(entry) if begin <= entry.at && entry.at < end => Some((entry.record_bytes(), entry.at)),
                    // The file was made again.
                    Held::Cold(old) if old.segment == segment => {
                        Some((old.bytes_each(), Position(begin.0 + u64::from(old.last_offset))))
                    }
                    _ => None,
                };
                match (found, last) {
                    (Some((bytes, at)), Some(before))
                        if together(before, at)
                            && let Some(part) = sunk.last_mut() =>
                    {
                        (part.count, part.bytes) = (part.count + 1, part.bytes.saturating_add(bytes));
                        part.last_offset = offset(at);
                    }
                    (Some((bytes, at)), _) => sunk.push(Run { bytes, last_offset: offset(at), ..run.part(seq, seq + 1) }),
                    (None, _) => {}
                }
                last = found.map(|(_, at)| at);
            }
        }
        self.bytes -= self.cold_bytes();
        while let Some(entry) = self.dense.front().copied().filter(|entry| entry.at < end) {
            self.drop_oldest(Oldest::Dense(entry), 1);
        }
        // Memory from a busy time is freed.
        if self.dense.is_empty() || self.dense.len() < self.dense.capacity() / 4 {
            self.dense.shrink_to(self.dense.len() * 2);
        }
        self.scattered.retain(|(_, entry)| !(begin <= entry.at && entry.at < end));
        self.runs.retain(|run| run.segment != segment);
        self.runs.reserve_exact(sunk.len());
        self.runs.extend(sunk);
        self.runs.sort_unstable_by_key(|run| run.first_seq);
        self.bytes += self.cold_bytes();
        self.settle();
    }

    /// Adds runs that were found on disk, before there is any entry. If a number is held already, the later copy counts.
    pub fn put_runs(&mut self, runs: &[Run]) {
        if !self.dense.is_empty() {
            return;
        }
        self.runs.reserve_exact(runs.len());
        self.bytes -= self.cold_bytes();
        for run in runs.iter().filter(|run| run.count > 0) {
            self.cut_runs(run.first_seq, run.end_seq());
            let place = self.runs.partition_point(|other| other.first_seq < run.first_seq);
            self.runs.insert(place, *run);
            self.dense_first = self.dense_first.max(run.end_seq());
        }
        self.bytes += self.cold_bytes();
        self.settle();
    }

    /// Notes that a message of a run was copied to the place of `entry`. Returns `false` if its place was not that run's.
    pub fn relocate(&mut self, seq: u64, entry: Entry) -> bool {
        if !matches!(self.find(seq), Held::Cold(_)) {
            return false;
        }
        self.cut_cold(seq);
        let place = self.scattered.partition_point(|(other, _)| *other < seq);
        self.scattered.insert(place, (seq, entry));
        self.bytes += u64::from(entry.record_bytes());
        self.oldest = self.oldest.min(entry.at);
        true
    }

    /// Forgets a message of a run that cannot be read.
    pub fn forget(&mut self, seq: u64) {
        self.cut_cold(seq);
        self.settle();
    }

    /// Removes one number from its run. Of the values that [`Index::settle`] recomputes, only the runs' oldest segment is
    /// updated.
    fn cut_cold(&mut self, seq: u64) {
        let Held::Cold(run) = self.find(seq) else { return };
        let (before, after) = (run.part(run.first_seq, seq), run.part(seq + 1, run.end_seq()));
        self.cut_runs(seq, seq + 1);
        self.bytes -= u64::from(run.bytes - before.bytes - after.bytes);
        if run.count == 1 && run.segment == self.oldest_run {
            self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
        }
    }

    /// Removes the numbers from `first` to before `end` from the runs.
    fn cut_runs(&mut self, first: u64, end: u64) {
        let from = self.runs.partition_point(|run| run.end_seq() <= first);
        let to = self.runs.partition_point(|run| run.first_seq < end);
        if from >= to {
            return;
        }
        let (lowest, highest) = (self.runs[from], self.runs[to - 1]);
        let left = [lowest.part(lowest.first_seq, first), highest.part(end, highest.end_seq())];
        self.runs.splice(from..to, left.into_iter().filter(|part| part.count > 0));
    }

    /// Moves the head forward, so that the next number is `next` at least.
    pub fn go_on_at(&mut self, next: u64) {
        if self.dense.is_empty() {
            self.dense_first = self.dense_first.max(next);
            self.settle();
        }
    }

    /// Forgets all numbers up to `seq`. Returns how many were forgotten.
    pub fn forget_to(&mut self, seq: u64) -> u64 {
        match self.head().checked_sub(seq).and_then(|left| usize::try_from(left).ok()).filter(|left| *left > 0) {
            Some(left) => self.trim(Retained { at: Position(0), segment: 0 }, left),
            None => {
                let cold: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
                let gone = cold + (self.scattered.len() + self.dense.len()) as u64;
                self.restart(self.head() + 1);
                gone
            }
        }
    }

    /// Forgets everything and starts again at `next` (a mirror that lost its place).
    pub fn restart(&mut self, next: u64) {
        self.dense.clear();
        *self = Self { dense: std::mem::take(&mut self.dense), ..Self::starting_at(next) };
    }
}

const _: () = assert!(size_of::<Run>() == 32 && ENTRY_BYTES == 12);

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
