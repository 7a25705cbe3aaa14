//! Where a session's sequence numbers stand in a log.
//!
//! The newest are entries, with what a reader needs to skip a record without touching it. What lies in segments that have an index file
//! (`segment_index.rs`) is one [`Run`] a segment, so that a session's memory does not grow with its history. A message that was copied
//! to the log's tail (compaction) keeps its number: what is held need not stand in the order of its numbers, and may have holes.

use super::chunks::{Appended, Position, Retained};
use super::segment_index::{ENTRY_BYTES, Run};
use std::collections::VecDeque;

/// Whom a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everyone attached.
    All,
    /// One address, by its keyed hash.
    One(u64),
    /// Several: the record's own list.
    Many,
}

/// One record's place.
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
    /// From where the record was put.
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

/// What is known of a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// Where its record is.
    Entry(&'a Entry),
    /// Its place is in the index file of this run's segment.
    Cold(Run),
    /// It is not held. The nearest numbers that are: 0 where none is before it, `head + 1` where none is behind.
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
    scattered: Vec<(u64, Entry)>,
    dense_first: u64,
    /// From `dense_first` to the head without a hole, in the order of their positions.
    dense: VecDeque<Entry>,
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
            scattered: Vec::new(),
            dense_first: next,
            dense: VecDeque::new(),
        }
    }

    /// The oldest sequence number held; `head + 1` where none is.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The newest sequence number there was, held or not.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.dense_first + self.dense.len() as u64 - 1
    }

    /// The oldest number from which on all have entries in the order of their positions.
    #[must_use]
    pub const fn dense_first(&self) -> u64 {
        self.dense_first
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dense.is_empty() && self.runs.is_empty() && self.scattered.is_empty()
    }

    /// Whether a record is held that stands before `end`.
    #[must_use]
    pub const fn holds_before(&self, end: Retained) -> bool {
        self.oldest.0 < end.at.0 || self.oldest_run < end.segment
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
        self.dense.push_back(entry);
    }

    /// The entry of a sequence number, where it has one.
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

    /// What is known of a sequence number.
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

    /// Forgets what stands before `from`, and all numbers but the newest `messages_max` (0: no limit). Returns how many went.
    pub fn trim(&mut self, from: Retained, messages_max: usize) -> u64 {
        let newest = if messages_max > 0 { (self.head() + 1).saturating_sub(messages_max as u64) } else { 0 };
        if !self.holds_before(from) && (self.first >= newest || self.is_empty()) {
            return 0;
        }
        let mut gone = self.trim_cold(from, newest);
        while let Some(entry) = self.dense.front()
            && (entry.at < from.at || self.dense_first < newest)
        {
            self.dense.pop_front();
            self.dense_first += 1;
            gone += 1;
        }
        if self.dense.is_empty() {
            // A session that fell quiet gives its memory back.
            self.dense.shrink_to(0);
        }
        self.refresh();
        gone
    }

    fn trim_cold(&mut self, from: Retained, newest: u64) -> u64 {
        let mut gone = 0;
        if self.oldest_run < from.segment || self.runs.first().is_some_and(|run| run.first_seq < newest) {
            self.runs.retain_mut(|run| {
                let dead = if run.segment < from.segment { run.end_seq() } else { newest.min(run.end_seq()) };
                gone += dead.saturating_sub(run.first_seq);
                *run = run.part(dead.max(run.first_seq), run.end_seq());
                run.count > 0
            });
            self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
            if self.runs.is_empty() {
                self.runs.shrink_to(0);
            }
        }
        let before = self.scattered.len();
        self.scattered.retain(|(seq, entry)| entry.at >= from.at && *seq >= newest);
        gone + (before - self.scattered.len()) as u64
    }

    fn refresh(&mut self) {
        let first = self.runs.first().map_or(self.dense_first, |run| run.first_seq.min(self.dense_first));
        self.first = self.scattered.first().map_or(first, |(seq, _)| first.min(*seq));
        let oldest = self.dense.front().map_or(NONE, |entry| entry.at);
        self.oldest = self.scattered.iter().map(|(_, entry)| entry.at).fold(oldest, Position::min);
    }

    /// The messages between `begin` and `end` of the log, which is segment `segment`, have an index file with these runs of the session:
    /// their entries go. What the file does not name does not read, and is held no longer. Earlier segments come first.
    pub fn sink(&mut self, segment: u32, begin: Position, end: Position, runs: &[Run]) {
        let mut sunk = Vec::new();
        for run in runs {
            let mut part = None::<(u64, u32)>;
            for seq in run.first_seq.max(self.first)..run.end_seq().min(self.head() + 1) {
                let bytes = match self.find(seq) {
                    Held::Entry(entry) if begin <= entry.at && entry.at < end => Some(entry.record_bytes()),
                    // The file is made anew.
                    Held::Cold(old) if old.segment == segment => Some(old.bytes_each()),
                    _ => None,
                };
                match (bytes, &mut part) {
                    (Some(more), Some((_, bytes))) => *bytes = bytes.saturating_add(more),
                    (Some(bytes), None) => part = Some((seq, bytes)),
                    (None, Some((from, bytes))) => {
                        sunk.push(Run { bytes: *bytes, ..run.part(*from, seq) });
                        part = None;
                    }
                    (None, None) => {}
                }
            }
            if let Some((from, bytes)) = part {
                sunk.push(Run { bytes, ..run.part(from, run.end_seq().min(self.head() + 1)) });
            }
        }
        while self.dense.front().is_some_and(|entry| entry.at < end) {
            self.dense.pop_front();
            self.dense_first += 1;
        }
        // What a busy time took is given back.
        if self.dense.is_empty() || self.dense.len() < self.dense.capacity() / 4 {
            self.dense.shrink_to(self.dense.len() * 2);
        }
        self.scattered.retain(|(_, entry)| !(begin <= entry.at && entry.at < end));
        self.runs.retain(|run| run.segment != segment);
        self.runs.reserve_exact(sunk.len());
        self.runs.extend(sunk);
        self.runs.sort_unstable_by_key(|run| run.first_seq);
        self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
        self.refresh();
    }

    /// Takes runs that were found on disk, before there is any entry. Of numbers that are held already the later copy counts.
    pub fn put_runs(&mut self, runs: &[Run]) {
        self.runs.reserve_exact(runs.len());
        if !self.dense.is_empty() {
            return;
        }
        for run in runs.iter().filter(|run| run.count > 0) {
            self.cut_runs(run.first_seq, run.end_seq());
            let place = self.runs.partition_point(|other| other.first_seq < run.first_seq);
            self.runs.insert(place, *run);
            self.dense_first = self.dense_first.max(run.end_seq());
        }
        self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
        self.refresh();
    }

    /// A message of a run has been copied to where `entry` says. False where its place was not that run's.
    pub fn relocate(&mut self, seq: u64, entry: Entry) -> bool {
        if !matches!(self.find(seq), Held::Cold(_)) {
            return false;
        }
        self.cut_runs(seq, seq + 1);
        let place = self.scattered.partition_point(|(other, _)| *other < seq);
        self.scattered.insert(place, (seq, entry));
        self.oldest_run = self.runs.iter().map(|run| run.segment).min().unwrap_or(u32::MAX);
        self.refresh();
        true
    }

    /// Takes the numbers from `first` to before `end` out of the runs.
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

    /// The order goes on at `next` at least, whatever is held.
    pub fn go_on_at(&mut self, next: u64) {
        if self.dense.is_empty() {
            self.dense_first = self.dense_first.max(next);
            self.refresh();
        }
    }

    /// Forgets everything and starts again at `next` (a mirror that lost its place).
    pub fn restart(&mut self, next: u64) {
        self.dense.clear();
        *self = Self { dense: std::mem::take(&mut self.dense), ..Self::starting_at(next) };
    }
}

const _: () = assert!(size_of::<Run>() == 24 && ENTRY_BYTES == 12);

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
