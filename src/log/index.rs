//! Where a session's sequence numbers stand in a log, with what a reader needs to skip a record without touching it.

use super::chunks::{Appended, Position};
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

/// The entries of `first` to `head`, without a hole.
#[derive(Debug)]
pub struct Index {
    first: u64,
    /// Where the oldest entry's record is, here so that most calls of [`Index::trim`] touch nothing else.
    oldest: Position,
    entries: VecDeque<Entry>,
    /// Of the entries' records together.
    bytes: u64,
}

impl Index {
    /// An index whose next entry will have the sequence number `next` (a session's first is 1).
    #[must_use]
    pub const fn starting_at(next: u64) -> Self {
        Self { first: next, oldest: Position(0), entries: VecDeque::new(), bytes: 0 }
    }

    /// The oldest sequence number held; `head + 1` where none is.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The newest sequence number; `first - 1` where none is held.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// Where the oldest entry's record is.
    #[must_use]
    pub fn oldest_at(&self) -> Option<Position> {
        (!self.entries.is_empty()).then_some(self.oldest)
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends the entry of `head + 1`.
    pub fn push(&mut self, entry: Entry) {
        if self.entries.is_empty() {
            self.oldest = entry.at;
        }
        self.bytes += u64::from(entry.record_bytes());
        self.entries.push_back(entry);
    }

    /// The entry of a sequence number.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&Entry> {
        usize::try_from(seq.checked_sub(self.first)?).ok().and_then(|index| self.entries.get(index))
    }

    /// Forgets entries before `oldest` in the log, and all but the newest `messages_max` (0: no limit). Returns how many went.
    pub fn trim(&mut self, oldest: Position, messages_max: usize) -> usize {
        let before = self.entries.len();
        while !self.entries.is_empty() && (self.oldest < oldest || (messages_max > 0 && self.entries.len() > messages_max)) {
            self.drop_first();
        }
        before - self.entries.len()
    }

    /// Forgets the oldest entries as long as they stand where `is_gone` says. Returns how many went.
    pub fn trim_while(&mut self, is_gone: impl Fn(Position) -> bool) -> usize {
        let before = self.entries.len();
        while self.oldest_at().is_some_and(&is_gone) {
            self.drop_first();
        }
        before - self.entries.len()
    }

    /// Forgets the oldest entries until the records of those left have no more than `bytes_max` together, but never the newest
    /// `kept`. Returns how many went.
    pub fn trim_bytes(&mut self, bytes_max: u64, kept: usize) -> usize {
        let before = self.entries.len();
        while self.bytes > bytes_max && self.entries.len() > kept {
            self.drop_first();
        }
        before - self.entries.len()
    }

    fn drop_first(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.bytes -= u64::from(entry.record_bytes());
        self.first += 1;
        match self.entries.front() {
            Some(entry) => self.oldest = entry.at,
            // A session that fell quiet gives its memory back.
            None => self.entries.shrink_to(0),
        }
    }

    /// Forgets all up to `seq`. Returns how many went.
    pub fn forget_to(&mut self, seq: u64) -> usize {
        let before = self.entries.len();
        while self.first <= seq && !self.entries.is_empty() {
            self.drop_first();
        }
        before - self.entries.len()
    }

    /// Forgets everything and starts again at `next` (a mirror that lost its place).
    pub fn restart(&mut self, next: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.first = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64) -> Entry {
        Entry { at: Position(at), frame_at: 1, frame_bytes: 2, audience: Audience::All, sender: 0 }
    }

    #[test]
    fn numbers_go_on_when_the_front_is_trimmed() {
        let mut index = Index::starting_at(1);
        (0..5).for_each(|at| index.push(entry(at * 10)));
        assert_eq!((index.first(), index.head()), (1, 5));
        assert_eq!(index.trim(Position(20), 0), 2);
        assert_eq!((index.first(), index.head()), (3, 5));
        assert_eq!(index.get(2), None);
        assert_eq!(index.get(3), Some(&entry(20)));
        assert_eq!(index.trim(Position(0), 1), 2);
        assert_eq!((index.first(), index.head(), index.len()), (5, 5, 1));
        assert_eq!(index.trim_bytes(1, 1), 0, "the newest stays");
        assert_eq!((index.forget_to(4), index.forget_to(5), index.first(), index.head()), (0, 1, 6, 5));
        index.push(entry(50));
        assert_eq!(index.forget_to(5), 0);
        index.trim(Position(100), 0);
        assert_eq!((index.first(), index.head()), (7, 6), "an empty index still knows its head");
    }

    #[test]
    fn the_oldest_go_by_their_bytes() {
        let mut index = Index::starting_at(1);
        (0..5).for_each(|at| index.push(entry(at * 10)));
        assert_eq!(index.trim_bytes(15, 1), 0);
        assert_eq!(index.trim_bytes(14, 1), 1);
        assert_eq!((index.first(), index.trim_bytes(6, 1), index.first()), (2, 2, 4));
        index.restart(9);
        index.push(entry(70));
        index.push(entry(80));
        assert_eq!((index.trim_bytes(6, 1), index.first()), (0, 9), "bytes count from the restart on");
    }
}
