//! Reading the log back: pages for readers behind the records in memory, here or behind a mirror elsewhere, and pages of history.
//!
//! A record's place is in memory, or in its segment's index file, of which a part is read first ([`Places`]). A read takes a
//! stretch of a file into a buffer of the engine's, lent for one call; it pushes no chunks out of memory.

use super::compaction::STEP_BYTES;
use super::disk::READ_TAGS;
use super::history::HistoryPage;
use super::read_errors::Place as Unread;
use crate::io::Io;
use crate::limits::{READ_BACK_BYTES_MAX, READ_BACKS_MAX, SEND_BYTES_MAX};
use crate::log::{Audience, ENTRY_BYTES, Entry, HEADER_BYTES, Held, Located, Position, Run, read_entries, read_record};
use crate::session::{MemberKey, Place, Stream, StreamKey};
use crate::shard::across::mesh::{LaneMessage, Page};
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::durability::Storage;
use crate::time::Tick;
use std::rc::Rc;

/// Largest gap between two wanted records that one read spans; reading the gap is cheaper than a second read.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Places that one read of an index file brings.
const PLACES_PER_READ: u64 = 1024;
/// Such reads that are kept for later pages.
const PLACES_MAX: usize = 64;
/// Reads that may be under way or wait, for all readers of a shard.
pub(in crate::shard) const READS_MAX: usize = 4096;
/// Times a read is repeated that brought less than the file has.
const SHORT_READS_MAX: u8 = 8;
/// Numbers that one page for a reader examines, of which few may be for it; the next page continues there.
const LOOKS_PER_PAGE_MAX: usize = 4096;
/// Reads under way above which a page that waits for another read frees its memory until then.
const PAGES_WARM_MAX: usize = 4 * READ_BACKS_MAX;

/// The places of some of a session's messages, from its segment's index file.
#[derive(Debug)]
pub(in crate::shard) struct Places {
    stream: StreamKey,
    pub(in crate::shard) segment: u32,
    first_seq: u64,
    /// `None` if the file is damaged.
    at: Box<[Option<Located>]>,
}

/// The purpose of a read.
#[derive(Debug)]
pub(in crate::shard) enum Job {
    Page {
        place: Place,
        member: MemberKey,
        after: u64,
        page: Box<Page>,
    },
    History(Box<HistoryPage>),
    /// Copying a stream's messages in the oldest file to the tail.
    Copy(StreamKey),
}

/// The data that a read brings.
#[derive(Debug)]
enum Asked {
    /// Places of the messages of a part of a run, in the index file that is there after so many have been replaced.
    Places { stream: StreamKey, part: Run, replaced: u64 },
    Records {
        at: Position,
        bytes: usize,
        places: Option<Rc<Places>>,
        /// `true` if the read covers only the wanted record.
        is_one: bool,
    },
    /// Nothing yet: a failed read is repeated in a while.
    Later,
}

/// A read under way.
#[derive(Debug)]
pub(in crate::shard) struct Reading {
    asked: Asked,
    pub(in crate::shard) job: Job,
    /// Times that it brought less than was asked for, although the file has it.
    tries: u8,
}

impl Asked {
    const fn bytes(&self) -> usize {
        match self {
            Self::Places { part, .. } => part.count as usize * ENTRY_BYTES,
            Self::Records { bytes, .. } => *bytes,
            Self::Later => 0,
        }
    }
}

/// The result of the read that just completed, lent for this call.
#[derive(Clone, Copy, Default)]
pub(in crate::shard) struct Hand<'a> {
    at: Position,
    /// The bytes asked for, or fewer if the file ends.
    pub(in crate::shard) bytes: &'a [u8],
    asked_bytes: usize,
    places: Option<&'a Rc<Places>>,
}

/// A record's place on disk.
#[derive(Clone, Copy)]
struct Spot {
    at: Position,
    bytes: u32,
    /// The entry of an index file that names this place, and that file's segment.
    located: Option<(Located, u32)>,
}

/// The read that is needed before a record can be examined.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) enum Want {
    Places(Run),
    Records,
    /// The segment's index file must be remade.
    Index(u32),
}

/// The result of examining a number.
pub(in crate::shard) enum Look<'a> {
    Record(Entry, &'a [u8]),
    Damaged(Position),
    /// The disk cannot read the numbers from `first` to `last`.
    Unreadable {
        first: u64,
        last: u64,
    },
    Nothing {
        before: u64,
        next: u64,
    },
    Want(Want),
}

impl Core {
    /// A number's record, from memory or from the completed read.
    pub(in crate::shard) fn look<'a>(&'a self, key: StreamKey, stream: &Stream, seq: u64, hand: &Hand<'a>) -> Look<'a> {
        let held = stream.index.find(seq);
        let entry = match held {
            Held::Nothing { before, next } => return Look::Nothing { before, next },
            Held::Entry(entry) if entry.at >= self.storage.log.resident() => {
                return Look::Record(*entry, self.storage.log.bytes(entry.at, 0, entry.record_bytes()));
            }
            Held::Entry(entry) => Some(*entry),
            Held::Cold(_) => None,
        };
        let spot = match self.storage.spot(key, seq, held, hand) {
            Ok(spot) => spot,
            Err(want) => {
                return match (held, want) {
                    (Held::Cold(run), _) if self.storage.unreadable.has_index(run.segment) => {
                        Look::Unreadable { first: run.first_seq, last: run.end_seq() - 1 }
                    }
                    (_, Want::Index(segment)) => self.storage.not_as_indexed(segment),
                    _ => Look::Want(want),
                };
            }
        };
        let end = spot.at.0 + u64::from(spot.bytes);
        if hand.asked_bytes == 0 || spot.at < hand.at || end > hand.at.0 + hand.asked_bytes as u64 {
            if self.storage.unreadable.has_record(spot.at, spot.bytes) {
                return Look::Unreadable { first: seq, last: seq };
            }
            return Look::Want(Want::Records);
        }
        // Empty if the file ends before.
        let start = usize::try_from(spot.at.0 - hand.at.0).unwrap_or(usize::MAX);
        let bytes = hand.bytes.get(start..).and_then(|rest| rest.get(..spot.bytes as usize)).unwrap_or_default();
        match (entry, spot.located) {
            (Some(entry), _) => match read_record(bytes, None) {
                Ok(record)
                    if record.length == bytes.len()
                        && (record.header.session, record.header.seq) == (stream.hash, seq)
                        && Audience::of_record(record.addresses) == entry.audience =>
                {
                    Look::Record(entry, bytes)
                }
                _ => Look::Damaged(spot.at),
            },
            (None, Some((located, segment))) => match located.read(bytes, stream.hash, seq) {
                Some(record) => {
                    let narrow = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
                    let entry = Entry {
                        at: spot.at,
                        frame_at: narrow(record.head.len()),
                        frame_bytes: narrow(record.body.len()),
                        audience: Audience::of_record(record.addresses),
                        sender: record.header.sender,
                    };
                    Look::Record(entry, bytes)
                }
                None => self.storage.not_as_indexed(segment),
            },
            (None, None) => Look::Damaged(spot.at),
        }
    }

    /// The stretch of a segment with a record and near ones behind it (or before it), up to `wanted_bytes`; the record alone if
    /// reads failed near it. Returns whether it is that record alone.
    fn stretch(
        &self,
        key: StreamKey,
        seq: u64,
        hand: &Hand<'_>,
        ascending: bool,
        wanted_bytes: usize,
    ) -> Option<(Position, usize, bool)> {
        let (stream, geometry) = (self.home.streams.get(key)?, self.storage.log.geometry()?);
        let spot = |seq: u64| {
            self.storage.spot(key, seq, stream.index.find(seq), hand).ok().filter(|spot| spot.at < self.storage.log.resident())
        };
        let first = spot(seq)?;
        let (mut from, mut to) = (first.at.0, first.at.0 + u64::from(first.bytes));
        let (segment, mut sum, mut next) = (from / geometry.segment_bytes, first.bytes as usize, seq);
        while sum < wanted_bytes {
            next = if ascending { next + 1 } else { next - 1 };
            let Some(Spot { at, bytes, .. }) = spot(next) else { break };
            let end = at.0 + u64::from(bytes);
            let near = if ascending {
                at.0 >= to && at.0 - to <= GAP_BYTES_MAX && end - from <= READ_BACK_BYTES_MAX as u64
            } else {
                end <= from && from - end <= GAP_BYTES_MAX && to - at.0 <= READ_BACK_BYTES_MAX as u64
            };
            if !near || at.0 / geometry.segment_bytes != segment || self.storage.unreadable.is_near(from.min(at.0), to.max(end)) {
                break;
            }
            (from, to) = (from.min(at.0), to.max(end));
            sum += bytes as usize;
        }
        let is_one = sum == first.bytes as usize;
        Some((Position(from), usize::try_from(to - from).unwrap_or(READ_BACK_BYTES_MAX), is_one))
    }

    /// Reads what a job needs for `seq`.
    pub(in crate::shard) fn read_for<I: Io>(
        &mut self,
        io: &mut I,
        (key, seq): (StreamKey, u64),
        want: Want,
        hand: &Hand<'_>,
        mut job: Job,
    ) {
        if self.storage.jobs.len() + self.storage.disk.as_ref().map_or(0, |disk| disk.indexing.waiting()) >= READS_MAX {
            // The reader asks again when it is next planned.
            self.cx.counters.limit_reached(LimitReached::LogReads);
            return self.abandon(job);
        }
        let (ascending, wanted_bytes) = match &mut job {
            Job::Page { page, .. } => {
                if self.storage.jobs.len() >= PAGES_WARM_MAX {
                    (page.frames, page.ends) = (Vec::new(), Vec::new());
                }
                (true, SEND_BYTES_MAX)
            }
            Job::History(page) => (page.ascending, SEND_BYTES_MAX),
            Job::Copy(_) => (true, STEP_BYTES),
        };
        let asked = match want {
            Want::Index(segment) => return self.storage.wait_for_index(&self.cx, segment, job),
            Want::Places(run) => {
                let first = if ascending { seq } else { (seq + 1).saturating_sub(PLACES_PER_READ) };
                let replaced = self.storage.replaced_indexes();
                Asked::Places { stream: key, part: run.part(first, first + PLACES_PER_READ), replaced }
            }
            Want::Records => match self.stretch(key, seq, hand, ascending, wanted_bytes) {
                Some((at, bytes, is_one)) => Asked::Records { at, bytes, places: hand.places.cloned(), is_one },
                None => return self.abandon(job),
            },
        };
        if let Job::History(page) = &mut job {
            page.read_bytes += asked.bytes();
        }
        self.ask(io, Reading { asked, job, tries: 0 });
    }

    fn ask<I: Io>(&mut self, io: &mut I, reading: Reading) {
        let Some(geometry) = self.storage.log.geometry() else { return self.abandon(reading.job) };
        let tag = self.storage.next_tag();
        self.cx.counters.log_reads.increment();
        let bytes = reading.asked.bytes();
        match &reading.asked {
            Asked::Places { part, .. } => io.read_index(part.segment.into(), part.entries_at.into(), bytes, tag),
            Asked::Records { at, .. } => {
                io.read_back(at.0 / geometry.segment_bytes, at.0 % geometry.segment_bytes, bytes, tag);
            }
            Asked::Later => {}
        }
        if matches!(reading.job, Job::History(_)) {
            self.storage.histories.note_read(true);
        }
        self.storage.jobs.insert(tag, reading);
    }

    pub(in crate::shard) fn on_read_back<I: Io>(&mut self, io: &mut I, tag: u64, result: Result<&[u8], i32>, now: Tick) {
        let Some(mut reading) = self.storage.jobs.remove(&tag) else { return };
        if matches!(reading.job, Job::History(_)) {
            self.storage.histories.note_read(false);
        }
        if result.is_ok_and(|bytes| bytes.len() < reading.asked.bytes()) && reading.tries < SHORT_READS_MAX {
            reading.tries += 1;
            return self.ask(io, reading);
        }
        let Reading { asked, job, .. } = reading;
        if let Asked::Places { part, replaced, .. } = &asked
            && self.storage.is_replaced(part.segment, *replaced)
        {
            return self.read_replaced(io, part.segment, job);
        }
        match (asked, result) {
            (Asked::Places { stream, part, .. }, read) if read.is_ok() || !self.storage.was_remade(part.segment) => {
                if read.is_ok() {
                    self.storage.unreadable.index_worked(part.segment);
                }
                // An index file that can't be read counts as damaged: it is remade.
                let found = read_entries(read.unwrap_or_default()).chain(std::iter::repeat(None));
                let at = found.take(part.count as usize).collect();
                let places = Rc::new(Places { stream, segment: part.segment, first_seq: part.first_seq, at });
                self.storage.places.truncate(PLACES_MAX - 1);
                self.storage.places.push_front(Rc::clone(&places));
                self.serve(io, job, &Hand { places: Some(&places), ..Hand::default() });
            }
            (Asked::Places { part, .. }, Err(errno)) => {
                self.on_unread(io, Unread::Index(part.segment), errno, vec![job], now);
            }
            (Asked::Records { at, bytes, is_one, .. }, Err(errno)) => {
                let place = if is_one { Unread::Record { at, bytes } } else { Unread::Stretch { at, bytes } };
                self.on_unread(io, place, errno, vec![job], now);
            }
            (Asked::Records { at, bytes: asked_bytes, places, .. }, Ok(bytes)) => {
                self.storage.unreadable.worked(at, bytes.len(), now);
                self.serve(io, job, &Hand { at, bytes, asked_bytes, places: places.as_ref() });
            }
            (Asked::Places { .. } | Asked::Later, _) => {}
        }
    }

    /// Continues a job that may have been waiting for this read.
    pub(in crate::shard) fn go_on_with<I: Io>(&mut self, io: &mut I, job: Job) {
        self.serve(io, job, &Hand::default());
    }

    fn serve<I: Io>(&mut self, io: &mut I, job: Job, hand: &Hand<'_>) {
        match job {
            Job::Page { place, member, after, page } => self.serve_page(io, (place, member, after), page, hand),
            Job::History(page) => self.serve_history(io, page, hand),
            Job::Copy(stream) => self.copy(io, stream, hand),
        }
    }

    /// Closes a reader that cannot be served now; it can resume.
    pub(in crate::shard) fn abandon(&mut self, job: Job) {
        let place = match job {
            Job::Page { place, .. } => place,
            Job::History(page) => return self.give_up_history(*page),
            Job::Copy(_) => return self.storage.abandon_compaction(),
        };
        if place.shard == self.cx.shard_number() {
            if self.connections.attachment_at(place).is_some() {
                self.connections.doom(place.conn, crate::close::CloseReason::TooSlow);
            }
        } else {
            self.send_reply(place, LaneMessage::Evict { to: place });
        }
    }

    /// Gives a reader behind the records in memory, here or at its mirror, a page of what it may see.
    pub(in crate::shard) fn page_for<I: Io>(&mut self, io: &mut I, place: Place, member: MemberKey, after: u64, page: Box<Page>) {
        self.serve_page(io, (place, member, after), page, &Hand::default());
    }

    fn serve_page<I: Io>(
        &mut self,
        io: &mut I,
        (place, key, after): (Place, MemberKey, u64),
        mut page: Box<Page>,
        hand: &Hand<'_>,
    ) {
        if place.shard == self.cx.shard_number() && self.connections.attachment_at(place).is_none() {
            return self.links.keep_page(page);
        }
        // Also for a member that was detached meanwhile: it reads up to the place of its last reply.
        let Some(member) = self.home.sessions.members.get(key) else {
            return self.abandon(Job::Page { place, member: key, after, page });
        };
        let Some(stream_key) = self.home.sessions.sessions.get(member.session).map(|session| session.stream) else { return };
        self.trim(stream_key);
        let (Some(member), Some(stream)) = (self.home.sessions.members.get(key), self.home.streams.get(stream_key)) else {
            return;
        };
        page.frames.clear();
        page.ends.clear();
        (page.after, page.cursor, page.gap) = (after, after, None);
        let (mut wanted, mut looks) = (None, 0);
        while page.cursor < stream.head() && page.frames.len() < SEND_BYTES_MAX && looks < LOOKS_PER_PAGE_MAX {
            let seq = page.cursor + 1;
            looks += 1;
            let lost_to = match self.look(stream_key, stream, seq, hand) {
                Look::Record(entry, record) => {
                    let frame_at = entry.frame_at as usize;
                    if member.entitlements.delivers(&entry, seq, || &record[HEADER_BYTES..frame_at]) {
                        page.frames.extend_from_slice(&record[frame_at..]);
                        page.ends.push((seq, u32::try_from(page.frames.len()).unwrap_or(u32::MAX)));
                    }
                    page.cursor = seq;
                    continue;
                }
                Look::Want(want) => {
                    wanted = Some(want);
                    break;
                }
                // Frames before a gap are sent first.
                _ if page.cursor > page.gap.map_or(after, |(_, to)| to) => break,
                Look::Damaged(at) => {
                    self.cx.counters.dropped(DropReason::LogDamaged, 1);
                    tracing::error!(shard = self.cx.shard, position = at.0, seq, "a record of the log is damaged on disk");
                    seq
                }
                Look::Unreadable { last, .. } => {
                    let last = last.min(stream.head());
                    self.cx.counters.dropped(DropReason::LogUnreadable, last - page.cursor);
                    last
                }
                Look::Nothing { next, .. } => stream.head().min(next - 1),
            };
            page.gap = Some((page.gap.map_or(seq, |(from, _)| from), lost_to));
            page.cursor = lost_to;
        }
        if page.cursor == after
            && let Some(want) = wanted
        {
            return self.read_for(io, (stream_key, after + 1), want, hand, Job::Page { place, member: key, after, page });
        }
        if place.shard == self.cx.shard_number() {
            self.on_page(place, &page);
            self.links.keep_page(page);
        } else {
            self.send_reply(place, LaneMessage::Page { to: place, page });
        }
    }
}

impl Storage {
    /// The place of a record on disk; the read that is needed first, if that is not known.
    fn spot(&self, key: StreamKey, seq: u64, held: Held<'_>, hand: &Hand<'_>) -> Result<Spot, Want> {
        let run = match held {
            Held::Entry(entry) => return Ok(Spot { at: entry.at, bytes: entry.record_bytes(), located: None }),
            Held::Cold(run) => run,
            Held::Nothing { .. } => return Err(Want::Records),
        };
        let has = |places: &Places| {
            places.stream == key
                && places.segment == run.segment
                && (places.first_seq..places.first_seq + places.at.len() as u64).contains(&seq)
        };
        let places = hand.places.into_iter().chain(&self.places).find(|places| has(places)).ok_or(Want::Places(run))?;
        let place = usize::try_from(seq - places.first_seq).unwrap_or(usize::MAX);
        let located = places.at.get(place).copied().flatten().ok_or(Want::Index(run.segment))?;
        let segment_bytes = self.log.geometry().map_or(0, |geometry| geometry.segment_bytes);
        // A place outside of its file means damage.
        if u64::from(located.offset) + u64::from(located.bytes) > segment_bytes {
            return Err(Want::Index(run.segment));
        }
        let at = Position(segment_bytes * u64::from(run.segment) + u64::from(located.offset));
        Ok(Spot { at, bytes: located.bytes, located: Some((located, run.segment)) })
    }

    /// Handles a record that is not what its segment's index says. One of the two is damaged; a remade index names no record that
    /// does not read.
    fn not_as_indexed(&self, segment: u32) -> Look<'static> {
        if self.was_remade(segment) {
            let begin = self.log.geometry().map_or(0, |geometry| geometry.segment_bytes * u64::from(segment));
            return Look::Damaged(Position(begin));
        }
        Look::Want(Want::Index(segment))
    }

    /// Reads of the disk that are under way for pages of history.
    #[cfg(test)]
    pub fn reads_for_histories(&self) -> usize {
        let is_one = |reading: &&Reading| matches!(reading.job, Job::History(_)) && !matches!(reading.asked, Asked::Later);
        self.jobs.values().filter(is_one).count()
    }

    fn next_tag(&mut self) -> u64 {
        let tag = self.next_read;
        self.next_read = self.next_read.wrapping_add(1).max(READ_TAGS);
        tag
    }

    /// Stores a job that asks for nothing yet. Returns the tag by which to take it.
    pub(in crate::shard) fn hold(&mut self, job: Job) -> u64 {
        let tag = self.next_tag();
        self.jobs.insert(tag, Reading { asked: Asked::Later, job, tries: 0 });
        tag
    }

    pub(in crate::shard) fn take_held(&mut self, tag: u64) -> Option<Job> {
        self.jobs.remove(&tag).map(|reading| reading.job)
    }
}

#[cfg(test)]
#[path = "read_back_tests.rs"]
mod tests;
