//! The disk of one shard: segments that are bytes in memory, answers that take their time, and what a crash leaves of it all.
//!
//! A segment's bytes are what the page cache holds. What stood under each write is kept until a sync covers that write, so that a power
//! cut can leave either in every sector.

use super::random::Random;
use crate::io::{BELOW_RESERVE, Event, PurgeStep};
use crate::limits::CHUNK_BYTES;
use crate::log::{HEADER_BYTES, purge, read_entries};
use crate::shard::recovery::open::{ReadError, Segment, index_of};
use crate::shard::recovery::purge_files::{Found, find_purges};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::ops::Range;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: written bytes stay.
    Kill,
    /// The power goes: bytes that were not synced may be lost, sector by sector.
    PowerCut,
}

/// The disk's faults, as percentages of its requests; each after a time of up to `delay_us`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    pub delay_us: u64,
    /// Segments that can't be made and writes that find no room.
    pub full: u64,
    /// Segments whose making would use what is kept free.
    pub reserve: u64,
    /// Writes that fail for good, with a part of them done.
    pub write_errors: u64,
    pub sync_errors: u64,
    /// Syncs that are said to be done, and are not.
    pub lies: u64,
    pub read_errors: u64,
    /// Reads that bring less than was asked for.
    pub short_reads: u64,
    /// Reads with one bit flipped.
    pub flips: u64,
    /// Reads of an index before which a bit of its file flips, to stay so until the file is made anew.
    pub index_flips: u64,
}

/// An answer to the shard.
#[derive(Debug)]
pub enum Answer {
    Written(u64, Result<(), i32>),
    Synced(u64, Result<(), i32>),
    ReadBack(u64, Result<Vec<u8>, i32>),
    SegmentReady(u64, Result<(), i32>),
    SegmentGone(u64, Result<(), i32>),
    Purged(PurgeStep, Result<u64, i32>),
    SegmentIndexed(u64, Result<Vec<u8>, i32>, Option<i32>),
}

impl Answer {
    /// The answer without its bytes.
    pub fn about(&self) -> String {
        match self {
            Self::ReadBack(tag, Ok(bytes)) => format!("read {tag}: {} bytes", bytes.len()),
            Self::SegmentIndexed(number, Ok(bytes), unsaved) => {
                format!("segment {number} indexed: {} bytes, unsaved {unsaved:?}", bytes.len())
            }
            other => format!("{other:?}"),
        }
    }

    pub fn event(&self) -> Event<'_> {
        match *self {
            Self::Written(tag, result) => Event::Written { tag, result },
            Self::Synced(tag, result) => Event::Synced { tag, result },
            Self::ReadBack(tag, ref result) => Event::ReadBack { tag, result: result.as_deref().map_err(|errno| *errno) },
            Self::SegmentReady(number, result) => Event::SegmentReady { number, result },
            Self::SegmentGone(number, result) => Event::SegmentGone { number, result },
            Self::Purged(step, result) => Event::Purged { step, result },
            Self::SegmentIndexed(number, ref result, unsaved) => {
                Event::SegmentIndexed { number, result: result.clone(), unsaved }
            }
        }
    }
}

#[derive(Debug)]
enum Work {
    Write {
        segment: u64,
        at: usize,
        bytes: Vec<u8>,
        tag: u64,
    },
    /// Covers so many of the segment's writes that were not synced before.
    Sync {
        segment: u64,
        covers: usize,
        tag: u64,
    },
    Read {
        segment: u64,
        of_index: bool,
        at: usize,
        len: usize,
        tag: u64,
    },
    Index(u64),
    Prepare(u64),
    Delete(u64),
    Purge {
        session: u64,
        step: PurgeStep,
    },
}

#[derive(Debug)]
struct Pending {
    due_ns: u64,
    work: Work,
}

/// Bytes that stood at a place before they were written over.
type Before = (usize, Vec<u8>);

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    unsynced: Vec<Before>,
    /// A sync failed: what it covered never becomes durable, whatever later syncs say.
    forsaken: bool,
}

impl File {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        assert!(end <= self.bytes.len(), "a write to {at}..{end} of a segment of {}", self.bytes.len());
        self.unsynced.push((at, self.bytes[at..end].to_vec()));
        self.bytes[at..end].copy_from_slice(bytes);
    }

    /// Leaves of the unsynced writes what a power cut does; whether that is less than there was.
    fn cut_power(&mut self, random: &mut Random) -> bool {
        // All of it is lost, all of it is there, each sector or page is one or the other, or writeback got so far.
        let (kind, sector) = (random.below(5), random.pick(&[512, 4096]));
        let first = self.unsynced.iter().map(|(at, _)| *at).min().unwrap_or(0) / sector;
        let last = self.unsynced.iter().map(|(at, before)| at + before.len()).max().unwrap_or(0).div_ceil(sector);
        let until = first + random.index(last - first + 1);
        // The part that was written to, as it was before, and as it is.
        let part = first * sector..(last * sector).min(self.bytes.len());
        let whole = self.bytes[part.clone()].to_vec();
        let mut old = whole.clone();
        for (at, before) in self.unsynced.iter().rev() {
            old[at - part.start..at - part.start + before.len()].copy_from_slice(before);
        }
        for number in first..last {
            let lost = match kind {
                0 => true,
                1 => false,
                2 => number >= until,
                _ => random.percent(50),
            };
            if lost {
                let sector = number * sector..(number * sector + sector).min(part.end);
                self.bytes[sector.clone()].copy_from_slice(&old[sector.start - part.start..sector.end - part.start]);
            }
        }
        self.bytes[part] != whole
    }
}

/// A segment's index file.
#[derive(Debug)]
struct Index {
    bytes: Vec<u8>,
    /// `true` if the index is in memory only, since it could not be written.
    unsaved: bool,
}

/// A place in every record of a message.
const SPOILT_AT: usize = HEADER_BYTES + 12;

#[derive(Debug, Default)]
pub struct Disk {
    segment_bytes: usize,
    files: BTreeMap<u64, File>,
    /// Sessions whose purge has begun.
    purges: BTreeSet<u64>,
    indexes: BTreeMap<u64, Index>,
    /// Bits of index files that are not as they were written, by their bytes' places.
    index_damage: BTreeMap<u64, Vec<(usize, u8)>>,
    pending: Vec<Pending>,
    pub faults: DiskFaults,
    /// Parts of segments that are never read back.
    pub bad: Vec<(u64, Range<usize>)>,
    /// Something was answered that no retry mends: its shard waits for a restart.
    pub failed: bool,
    /// Bits that were flipped in what was read.
    pub flipped: u64,
}

impl Disk {
    pub fn new(segment_bytes: u64, faults: DiskFaults) -> Self {
        Self { segment_bytes: usize::try_from(segment_bytes).unwrap(), faults, ..Self::default() }
    }

    pub fn ask_write(&mut self, random: &mut Random, now_ns: u64, (segment, at): (u64, u64), bytes: &[u8], tag: u64) {
        let at = usize::try_from(at).unwrap();
        self.ask(random, now_ns, Work::Write { segment, at, bytes: bytes.to_vec(), tag });
    }

    pub fn ask_sync(&mut self, random: &mut Random, now_ns: u64, segment: u64, tag: u64) {
        let covers = self.files.get(&segment).map_or(0, |file| file.unsynced.len());
        self.ask(random, now_ns, Work::Sync { segment, covers, tag });
    }

    pub fn ask_read(&mut self, random: &mut Random, now_ns: u64, (segment, at): (u64, u64), len: usize, tag: u64) {
        let at = usize::try_from(at).unwrap();
        self.ask(random, now_ns, Work::Read { segment, of_index: false, at, len, tag });
    }

    pub fn ask_read_index(&mut self, random: &mut Random, now_ns: u64, (segment, at): (u64, u64), len: usize, tag: u64) {
        let at = usize::try_from(at).unwrap();
        self.ask(random, now_ns, Work::Read { segment, of_index: true, at, len, tag });
    }

    pub fn ask_index(&mut self, random: &mut Random, now_ns: u64, number: u64) {
        self.ask(random, now_ns, Work::Index(number));
    }

    pub fn ask_prepare(&mut self, random: &mut Random, now_ns: u64, number: u64) {
        self.ask(random, now_ns, Work::Prepare(number));
    }

    pub fn ask_delete(&mut self, random: &mut Random, now_ns: u64, number: u64) {
        self.ask(random, now_ns, Work::Delete(number));
    }

    pub fn ask_purge(&mut self, random: &mut Random, now_ns: u64, session: u64, step: PurgeStep) {
        self.ask(random, now_ns, Work::Purge { session, step });
    }

    fn ask(&mut self, random: &mut Random, now_ns: u64, work: Work) {
        let mut due_ns = now_ns + random.below(self.faults.delay_us * 1000 + 1);
        if matches!(work, Work::Delete(_)) {
            // A single thread does all of these.
            let others = self.pending.iter().filter(|pending| matches!(pending.work, Work::Delete(_)));
            due_ns = others.map(|pending| pending.due_ns).fold(due_ns, u64::max);
        }
        self.pending.push(Pending { due_ns, work });
    }

    /// When the next answer comes.
    pub fn due_ns(&self) -> Option<u64> {
        self.pending.iter().map(|pending| pending.due_ns).min()
    }

    /// Does one thing that is due.
    pub fn next_answer(&mut self, random: &mut Random, now_ns: u64) -> Option<Answer> {
        let at = self.pending.iter().position(|pending| pending.due_ns <= now_ns)?;
        let work = self.pending.remove(at).work;
        Some(self.answer(random, work))
    }

    fn answer(&mut self, random: &mut Random, work: Work) -> Answer {
        let faults = self.faults;
        match work {
            Work::Write { segment, at, bytes, tag } => {
                let errno = match self.files.get_mut(&segment) {
                    None => Some(libc::ENOENT),
                    Some(_) if random.percent(faults.full) => Some(libc::ENOSPC),
                    Some(_) => random.percent(faults.write_errors).then_some(libc::EIO),
                };
                let done = if errno.is_some() { random.index(bytes.len() + 1) } else { bytes.len() };
                if let Some(file) = self.files.get_mut(&segment) {
                    file.write(at, &bytes[..done]);
                }
                self.failed |= errno == Some(libc::EIO);
                Answer::Written(tag, errno.map_or(Ok(()), Err))
            }
            Work::Sync { segment, covers, tag } => {
                let Some(file) = self.files.get_mut(&segment) else { return Answer::Synced(tag, Err(libc::ENOENT)) };
                if random.percent(faults.sync_errors) {
                    (file.forsaken, self.failed) = (true, true);
                    return Answer::Synced(tag, Err(libc::EIO));
                }
                if !file.forsaken && (faults.lies == 0 || !random.percent(faults.lies)) {
                    file.unsynced.drain(..covers);
                }
                Answer::Synced(tag, Ok(()))
            }
            Work::Read { segment, of_index, at, len, tag } => {
                let index = self.indexes.get(&segment).map(|index| &index.bytes);
                let file = if of_index { index } else { self.files.get(&segment).map(|file| &file.bytes) };
                let Some(file) = file else { return Answer::ReadBack(tag, Err(libc::ENOENT)) };
                let is_bad = |(number, part): &(u64, Range<usize>)| *number == segment && part.start < at + len && at < part.end;
                if random.percent(faults.read_errors) || !of_index && self.bad.iter().any(is_bad) {
                    return Answer::ReadBack(tag, Err(libc::EIO));
                }
                let file_bytes = file.len();
                let mut bytes = file[at.min(file.len())..(at + len).min(file.len())].to_vec();
                if of_index {
                    let damage = self.index_damage.entry(segment).or_default();
                    if faults.index_flips > 0 && random.percent(faults.index_flips) {
                        self.flipped += 1;
                        // Mostly in what is read, or it would be seen by few.
                        let place = if random.percent(70) { at + random.index(len) } else { random.index(file_bytes) };
                        damage.push((place, 1 << random.below(8)));
                    }
                    for (place, bit) in damage {
                        place.checked_sub(at).and_then(|place| bytes.get_mut(place)).into_iter().for_each(|byte| *byte ^= *bit);
                    }
                }
                if random.percent(faults.short_reads) {
                    bytes.truncate(random.index(bytes.len() + 1));
                }
                if random.percent(faults.flips) && !bytes.is_empty() {
                    self.flipped += 1;
                    let place = random.index(bytes.len());
                    bytes[place] ^= 1 << random.below(8);
                }
                Answer::ReadBack(tag, Ok(bytes))
            }
            Work::Prepare(number) => {
                let errno = if self.files.contains_key(&number) {
                    Some(libc::EEXIST)
                } else if faults.reserve > 0 && random.percent(faults.reserve) {
                    Some(BELOW_RESERVE)
                } else {
                    random.percent(faults.full).then_some(libc::ENOSPC)
                };
                if errno.is_none() {
                    self.files.insert(number, File { bytes: vec![0; self.segment_bytes], ..File::default() });
                }
                Answer::SegmentReady(number, errno.map_or(Ok(()), Err))
            }
            Work::Purge { session, step } => {
                let result = match step {
                    PurgeStep::Begin => {
                        self.purges.insert(session);
                        Ok(0)
                    }
                    PurgeStep::End => {
                        self.purges.remove(&session);
                        Ok(0)
                    }
                    PurgeStep::Segment { number, end } => self.purge(session, number, end, &BTreeSet::new()),
                };
                Answer::Purged(step, result)
            }
            Work::Index(number) => self.index(random, number),
            Work::Delete(number) => {
                self.indexes.remove(&number);
                Answer::SegmentGone(number, self.files.remove(&number).ok_or(libc::ENOENT).map(drop))
            }
        }
    }

    fn index(&mut self, random: &mut Random, number: u64) -> Answer {
        let Some(file) = self.files.get(&number) else { return Answer::SegmentIndexed(number, Err(libc::ENOENT), None) };
        if random.percent(self.faults.read_errors) {
            return Answer::SegmentIndexed(number, Err(libc::EIO), None);
        }
        // A record in it is damaged.
        let Ok(indexed) = index_of(&mut &file.bytes[..]) else { return Answer::SegmentIndexed(number, Err(libc::EINVAL), None) };
        let unsaved = random.percent(self.faults.full);
        let directory = indexed.bytes[..indexed.directory_bytes].to_vec();
        self.put_index(number, Index { bytes: indexed.bytes, unsaved });
        Answer::SegmentIndexed(number, Ok(directory), unsaved.then_some(libc::ENOSPC))
    }

    fn put_index(&mut self, number: u64, index: Index) {
        self.index_damage.remove(&number);
        self.indexes.insert(number, index);
    }

    /// Flips bits of a byte of a segment's index, to stay so until the file is made anew.
    pub fn damage_index(&mut self, segment: u64, place: u64, bits: u8) {
        self.index_damage.entry(segment).or_default().push((usize::try_from(place).unwrap(), bits));
    }

    /// Indexes that are damaged and were not made anew.
    pub fn damaged_indexes(&self) -> usize {
        self.index_damage.values().filter(|damage| !damage.is_empty()).count()
    }

    /// Where the message is whose entry stands there in a segment's index.
    pub fn located(&self, segment: u64, entry_at: u64) -> Option<u64> {
        let index = &self.indexes.get(&segment)?.bytes;
        let offset = read_entries(index.get(usize::try_from(entry_at).ok()?..)?).next()??.offset;
        Some(segment * self.segment_bytes as u64 + u64::from(offset))
    }

    fn purge(&mut self, session: u64, number: u64, end: u64, keeps: &BTreeSet<u64>) -> Result<u64, i32> {
        let file = self.files.get_mut(&number).ok_or(libc::ENOENT)?;
        let (mut messages, end) = (0, usize::try_from(end).unwrap().min(file.bytes.len()));
        for (index, chunk) in file.bytes[..end].chunks_mut(CHUNK_BYTES).enumerate() {
            let len = chunk.len();
            purge(chunk, len, session, index == 0, &|member| keeps.contains(&member), &mut |_, is_message| {
                messages += u64::from(is_message);
            })
            .unwrap();
        }
        Ok(messages)
    }

    /// The purges that were begun, and where their messages end; each is finished.
    pub fn finish_purges(&mut self, shard: u16) -> Result<(), ReadError> {
        let sessions: Vec<u64> = std::mem::take(&mut self.purges).into_iter().collect();
        if sessions.is_empty() {
            return Ok(());
        }
        let (size, found) = find_purges(&mut self.segments(), (shard, 1), &sessions)?;
        for (session, Found { at, keeps }) in found {
            for number in self.files.keys().copied().collect::<Vec<_>>() {
                self.purge(session, number, at.0.saturating_sub(number * size).min(size), &keeps).unwrap();
            }
        }
        Ok(())
    }

    /// A record goes bad: a bit of it flips, or the disk does not read it.
    pub fn spoil(&mut self, at: u64, is_damaged: bool) {
        let (segment, offset) = (at / self.segment_bytes as u64, usize::try_from(at).unwrap() % self.segment_bytes + SPOILT_AT);
        if !is_damaged {
            self.bad.push((segment, offset..offset + 1));
        } else if let Some(byte) = self.files.get_mut(&segment).and_then(|file| file.bytes.get_mut(offset)) {
            *byte ^= 1;
        }
    }

    /// The bytes of each segment.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.files.values().map(|file| &*file.bytes)
    }

    /// Whether a text stands in a segment.
    pub fn holds(&self, text: &[u8]) -> bool {
        self.contents().any(|bytes| memchr::memmem::find(bytes, text).is_some())
    }

    /// Leaves on the disk what an ending process does: operations under way are done in part, or not at all. Returns whether
    /// written data is gone.
    pub fn crash(&mut self, random: &mut Random, crash: Crash) -> bool {
        let mut deletes = true;
        for Pending { work, .. } in std::mem::take(&mut self.pending) {
            deletes &= !matches!(work, Work::Delete(_)) || random.percent(50);
            match work {
                Work::Write { segment, at, bytes, .. } => {
                    let done = random.index(bytes.len() + 1);
                    if let Some(file) = self.files.get_mut(&segment) {
                        file.write(at, &bytes[..done]);
                    }
                }
                // The name of the file was not synced, or its blocks not all allocated.
                Work::Prepare(number) if random.percent(50) && !self.files.contains_key(&number) => {
                    let len = random.pick(&[0, self.segment_bytes / 2, self.segment_bytes]);
                    self.files.insert(number, File { bytes: vec![0; len], ..File::default() });
                }
                // A segment goes before its index does.
                Work::Delete(number) if deletes => {
                    self.files.remove(&number);
                    if random.percent(50) {
                        self.indexes.remove(&number);
                    }
                }
                Work::Index(number) if random.percent(50) => drop(self.index(random, number)),
                Work::Purge { session, step: PurgeStep::Begin } if random.percent(50) => drop(self.purges.insert(session)),
                Work::Purge { session, step: PurgeStep::End } if random.percent(50) => drop(self.purges.remove(&session)),
                Work::Purge { session, step: PurgeStep::Segment { number, end } } => {
                    let Some(before) = self.files.get(&number).map(|file| file.bytes.clone()) else { continue };
                    self.purge(session, number, end, &BTreeSet::new()).unwrap();
                    let file = self.files.get_mut(&number).unwrap();
                    // Each sector of it is done or not.
                    for (now, before) in file.bytes.chunks_mut(512).zip(before.chunks(512)) {
                        if now != before && random.percent(50) {
                            now.copy_from_slice(before);
                        }
                    }
                }
                Work::Prepare(_)
                | Work::Delete(_)
                | Work::Purge { .. }
                | Work::Sync { .. }
                | Work::Read { .. }
                | Work::Index(_) => {}
            }
        }
        // Their names are not synced.
        self.indexes.retain(|_, index| !index.unsaved && (crash == Crash::Kill || random.percent(50)));
        self.failed = false;
        let mut lossy = false;
        if crash == Crash::PowerCut {
            for file in self.files.values_mut() {
                lossy |= file.cut_power(random);
                (file.unsynced, file.forsaken) = (Vec::new(), false);
            }
        }
        lossy
    }

    /// The segments as recovery reads them.
    pub fn segments(&self) -> Vec<Segment<Cursor<&[u8]>>> {
        self.files.iter().map(|(number, file)| Segment { number: *number, reader: Cursor::new(&file.bytes[..]) }).collect()
    }

    /// Makes a segment's index what recovery wants it to be.
    pub fn keep_index(&mut self, number: u64, bytes: &[u8]) {
        self.put_index(number, Index { bytes: bytes.to_vec(), unsaved: false });
    }

    /// Tidies the files as recovery does: the last one is cut to its good part and synced, those behind it are deleted.
    pub fn trim(&mut self, last: Option<(u64, u64)>) {
        self.files.retain(|number, _| last.is_some_and(|(last, _)| *number <= last));
        self.indexes.retain(|number, _| self.files.contains_key(number));
        if let Some((number, valid_bytes)) = last
            && let Some(file) = self.files.get_mut(&number)
        {
            file.bytes.truncate(usize::try_from(valid_bytes).unwrap());
            file.unsynced.clear();
        }
    }
}
