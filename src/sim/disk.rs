//! The disk of one shard: segments that are vectors of bytes. What it is asked is done at once and answered at the shard's next run.

use crate::io::Event;
use std::collections::{BTreeMap, VecDeque};

/// What the shard is told.
#[derive(Debug)]
pub enum Answer {
    Written(u64, Result<(), i32>),
    Synced(u64, Result<(), i32>),
    ReadBack(u64, Result<Vec<u8>, i32>),
    SegmentReady(u64, Result<(), i32>),
    SegmentGone(u64, Result<(), i32>),
    SegmentIndexed(u64, Result<Vec<u8>, i32>),
}

impl Answer {
    pub fn event(&self) -> Event<'_> {
        match *self {
            Self::Written(tag, result) => Event::Written { tag, result },
            Self::Synced(tag, result) => Event::Synced { tag, result },
            Self::ReadBack(tag, ref result) => Event::ReadBack { tag, result: result.as_deref().map_err(|errno| *errno) },
            Self::SegmentReady(number, result) => Event::SegmentReady { number, result },
            Self::SegmentGone(number, result) => Event::SegmentGone { number, result },
            Self::SegmentIndexed(number, ref result) => Event::SegmentIndexed { number, result: result.clone(), unsaved: None },
        }
    }
}

#[derive(Debug, Default)]
pub struct Disk {
    segments: BTreeMap<u64, Vec<u8>>,
    indexes: BTreeMap<u64, Vec<u8>>,
    pub answers: VecDeque<Answer>,
}

impl Disk {
    pub const fn new() -> Self {
        Self { segments: BTreeMap::new(), indexes: BTreeMap::new(), answers: VecDeque::new() }
    }

    pub fn write(&mut self, segment: u64, at: u64, bytes: &[u8], tag: u64) {
        let at = usize::try_from(at).unwrap();
        let result = self.segments.get_mut(&segment).ok_or(libc::ENOENT).map(|file| {
            file.resize(file.len().max(at + bytes.len()), 0);
            file[at..at + bytes.len()].copy_from_slice(bytes);
        });
        self.answers.push_back(Answer::Written(tag, result));
    }

    pub fn sync(&mut self, segment: u64, tag: u64) {
        let result = if self.segments.contains_key(&segment) { Ok(()) } else { Err(libc::ENOENT) };
        self.answers.push_back(Answer::Synced(tag, result));
    }

    pub fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        let at = usize::try_from(at).unwrap();
        let result = self.segments.get(&segment).ok_or(libc::ENOENT);
        let result = result.map(|file| file[at.min(file.len())..(at + len).min(file.len())].to_vec());
        self.answers.push_back(Answer::ReadBack(tag, result));
    }

    pub fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        let at = usize::try_from(at).unwrap();
        let result = self.indexes.get(&segment).ok_or(libc::ENOENT);
        let result = result.map(|file| file[at.min(file.len())..(at + len).min(file.len())].to_vec());
        self.answers.push_back(Answer::ReadBack(tag, result));
    }

    pub fn index(&mut self, number: u64) {
        let result = self.segments.get(&number).ok_or(libc::ENOENT).and_then(|bytes| {
            let indexed = crate::shard::store::index_of(&mut &bytes[..]).map_err(|_| libc::EIO)?;
            let directory = indexed.bytes[..indexed.directory_bytes].to_vec();
            self.indexes.insert(number, indexed.bytes);
            Ok(directory)
        });
        self.answers.push_back(Answer::SegmentIndexed(number, result));
    }

    pub fn prepare(&mut self, number: u64) {
        let known = self.segments.contains_key(&number);
        self.segments.entry(number).or_default();
        self.answers.push_back(Answer::SegmentReady(number, if known { Err(libc::EEXIST) } else { Ok(()) }));
    }

    pub fn delete(&mut self, number: u64) {
        self.indexes.remove(&number);
        let result = self.segments.remove(&number).ok_or(libc::ENOENT).map(drop);
        self.answers.push_back(Answer::SegmentGone(number, result));
    }
}
