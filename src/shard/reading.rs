//! Reading the log back: pages for readers behind what is in memory, here or behind a mirror elsewhere, and pages of history.
//!
//! A read takes a stretch of a segment into a buffer of the engine's, lent for one call; nobody's chunks leave memory for it.

use super::conn::Waiting;
use super::core::Core;
use super::counters::{DropReason, LimitReached};
use super::durable::READ_TAGS;
use super::lanes::{LaneMessage, Page};
use crate::io::Io;
use crate::limits::{HISTORY_PAGE_BYTES_MAX, SEND_BYTES_MAX};
use crate::log::{Entry, HEADER_BYTES, Position, read_record};
use crate::protocol::Head;
use crate::session::{MemberKey, Place, StreamKey};
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;

/// What one read fetches at least, where the segment has it.
const READ_BYTES: u64 = 512 * 1024;
/// Reads that may be under way or wait, for all readers of a shard.
const READS_MAX: usize = 4096;

/// A page of history that is being put together.
#[derive(Debug)]
pub(super) struct HistoryPage {
    pub(super) place: Place,
    pub(super) member: MemberKey,
    pub(super) stream: StreamKey,
    pub(super) id: Box<str>,
    pub(super) room: Option<u64>,
    pub(super) more: bool,
    pub(super) oldest: u64,
    /// Its place in the order.
    pub(super) after: u64,
    /// The records that are still to be looked at, the next one last.
    pub(super) left: Vec<u64>,
    pub(super) frames: Vec<u8>,
    pub(super) count: u64,
    /// What ends the attachment, and its place in the order: asked for while the page was read.
    pub(super) detached: Option<(u64, Vec<u8>)>,
}

/// What a read is for.
#[derive(Debug)]
pub(super) enum Job {
    Page { place: Place, member: MemberKey, after: u64, page: Box<Page> },
    History(Box<HistoryPage>),
}

/// A stretch of the log in hand.
#[derive(Clone, Copy)]
struct Window<'a> {
    at: Position,
    bytes: &'a [u8],
}

const NOTHING: Window<'static> = Window { at: Position(0), bytes: &[] };

impl Core {
    /// A record's bytes, from memory or from what was read; `None` where it must be read first, an error where it is damaged.
    fn record_bytes<'a>(&'a self, entry: &Entry, window: Window<'a>) -> Option<Result<&'a [u8], ()>> {
        if entry.at >= self.log.resident() {
            return Some(Ok(self.log.bytes(entry.at, 0, entry.record_bytes())));
        }
        let start = usize::try_from(entry.at.0.checked_sub(window.at.0)?).ok()?;
        let bytes = window.bytes.get(start..start + entry.record_bytes() as usize)?;
        Some(read_record(bytes, None).map(|_| bytes).map_err(|_| ()))
    }

    /// Has a record's surroundings read for a job.
    fn read_for<I: Io>(&mut self, io: &mut I, entry: &Entry, job: Job) {
        let Some(geometry) = self.log.geometry() else { return };
        if self.jobs.len() >= READS_MAX {
            // The reader asks again when it is next looked at.
            self.counters.limit_reached(LimitReached::LogReads);
            return self.abandon(job);
        }
        let (segment, at) = (entry.at.0 / geometry.segment_bytes, entry.at.0 % geometry.segment_bytes);
        let bytes = READ_BYTES.max(u64::from(entry.record_bytes())).min(geometry.segment_bytes - at);
        let tag = self.next_read;
        self.next_read = self.next_read.wrapping_add(1).max(READ_TAGS);
        self.jobs.insert(tag, (entry.at, job));
        self.counters.log_reads.increment();
        io.read_back(segment, at, usize::try_from(bytes).unwrap_or(usize::MAX), tag);
    }

    pub(super) fn on_read_back<I: Io>(&mut self, io: &mut I, tag: u64, result: Result<&[u8], i32>) {
        let Some((at, job)) = self.jobs.remove(&tag) else { return };
        match result {
            Ok(bytes) => {
                let window = Window { at, bytes };
                match job {
                    Job::Page { place, member, after, page } => self.serve_page(io, (place, member, after), page, window),
                    Job::History(page) => self.serve_history(io, page, window),
                }
            }
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::error!(shard = self.shard, position = at.0, %error, "the log could not be read back");
                self.abandon(job);
            }
        }
    }

    /// A reader that cannot be served now is let go: it resumes.
    fn abandon(&mut self, job: Job) {
        let place = match job {
            Job::Page { place, .. } => place,
            Job::History(page) => page.place,
        };
        if place.shard == self.shard_number() {
            if self.attachment_at(place).is_some() {
                self.doom(place.conn, crate::close::CloseReason::TooSlow);
            }
        } else {
            self.send_reply(place, LaneMessage::Evict { to: place });
        }
    }

    /// A reader is behind what is in memory, here or at its mirror: it gets a page of what it may see.
    pub(super) fn page_for<I: Io>(&mut self, io: &mut I, place: Place, member: MemberKey, after: u64, page: Box<Page>) {
        self.serve_page(io, (place, member, after), page, NOTHING);
    }

    fn serve_page<I: Io>(
        &mut self,
        io: &mut I,
        (place, key, after): (Place, MemberKey, u64),
        mut page: Box<Page>,
        window: Window<'_>,
    ) {
        // Also for one that was detached meanwhile: it reads up to the place of its last reply.
        let Some(member) = self.sessions.members.get(key) else {
            return self.abandon(Job::Page { place, member: key, after, page });
        };
        let Some(stream_key) = self.sessions.sessions.get(member.session).map(|session| session.stream) else { return };
        self.trim(stream_key);
        let (Some(member), Some(stream)) = (self.sessions.members.get(key), self.streams.get(stream_key)) else { return };
        page.frames.clear();
        page.ends.clear();
        (page.after, page.cursor, page.gap) = (after, after, None);
        if page.cursor + 1 < stream.index.first() {
            page.gap = Some((page.cursor + 1, stream.index.first() - 1));
            page.cursor = stream.index.first() - 1;
        }
        let mut wanted = None;
        while page.cursor < stream.head() && page.frames.len() < SEND_BYTES_MAX {
            let seq = page.cursor + 1;
            let Some(entry) = stream.index.get(seq) else { break };
            let record = match self.record_bytes(entry, window) {
                Some(Ok(record)) => record,
                // What came before the damage goes first.
                Some(Err(())) if page.cursor > after => break,
                Some(Err(())) => {
                    page.gap = Some((page.gap.map_or(seq, |(from, _)| from), seq));
                    page.cursor = seq;
                    self.counters.dropped(DropReason::LogDamaged, 1);
                    tracing::error!(shard = self.shard, position = entry.at.0, seq, "a record of the log is damaged on disk");
                    break;
                }
                None => {
                    wanted = Some(*entry);
                    break;
                }
            };
            let frame_at = entry.frame_at as usize;
            if member.entitlements.delivers(entry, seq, || &record[HEADER_BYTES..frame_at]) {
                page.frames.extend_from_slice(&record[frame_at..]);
                page.ends.push((seq, u32::try_from(page.frames.len()).unwrap_or(u32::MAX)));
            }
            page.cursor = seq;
        }
        if page.cursor == after
            && let Some(entry) = wanted
        {
            return self.read_for(io, &entry, Job::Page { place, member: key, after, page });
        }
        if place.shard == self.shard_number() {
            self.on_page(place, &page);
            self.keep_page(page);
        } else {
            self.send_control(io, place.shard, LaneMessage::Page { to: place, page });
        }
    }

    /// Puts a page of history together as far as its records are at hand, and has the next ones read.
    pub(super) fn history_for<I: Io>(&mut self, io: &mut I, page: Box<HistoryPage>) {
        self.serve_history(io, page, NOTHING);
    }

    fn serve_history<I: Io>(&mut self, io: &mut I, mut page: Box<HistoryPage>, window: Window<'_>) {
        while let Some(seq) = page.left.last().copied() {
            let (Some(member), Some(stream)) = (self.sessions.members.get(page.member), self.streams.get(page.stream)) else {
                return self.abandon(Job::History(page));
            };
            // It may have left the retention meanwhile, and the page says so.
            let Some(entry) = stream.index.get(seq).copied() else {
                page.oldest = page.oldest.max(stream.index.first());
                page.left.pop();
                continue;
            };
            match self.record_bytes(&entry, window) {
                None => return self.read_for(io, &entry, Job::History(page)),
                Some(Err(())) => self.counters.dropped(DropReason::LogDamaged, 1),
                Some(Ok(record)) => {
                    let addresses = &record[HEADER_BYTES..entry.frame_at as usize];
                    let in_room =
                        page.room.is_none_or(|room| addresses.chunks_exact(8).any(|target| target == room.to_le_bytes()));
                    if in_room && member.entitlements.shows(&entry, seq, || addresses) {
                        page.frames.extend_from_slice(&record[entry.frame_at as usize..]);
                        page.count += 1;
                    }
                }
            }
            page.left.pop();
        }
        self.send_history(*page);
    }

    /// Sends what ends an attachment; a page of history that is still being read goes before it.
    pub(super) fn detach_behind_history(&mut self, place: Place, after: u64, frame: Vec<u8>) {
        let page = self.jobs.values_mut().find_map(|(_, job)| match job {
            Job::History(page) if page.place == place => Some(page),
            Job::History(_) | Job::Page { .. } => None,
        });
        if let Some(page) = page {
            page.detached = Some((after, frame));
        } else if place.shard == self.shard_number() {
            self.put_ordered(place, after, Waiting::Detached(frame));
        } else {
            self.send_reply(place, LaneMessage::Detached { to: place, after, frame });
        }
    }

    fn send_history(&mut self, page: HistoryPage) {
        debug_assert!(page.frames.len() <= HISTORY_PAGE_BYTES_MAX, "the page was chosen by its bytes");
        let Some(session_id) = self.streams.get(page.stream).map(|stream| stream.session_id.clone()) else { return };
        let head = Head { id: &page.id, session_id: &session_id };
        let mut bytes = self.buffer_for(page.place);
        let open = OpenFrame::begin(&mut bytes);
        crate::protocol::history_begin(&mut bytes, head, page.count);
        open.finish(Opcode::Text, &mut bytes);
        bytes.extend_from_slice(&page.frames);
        let open = OpenFrame::begin(&mut bytes);
        crate::protocol::history_end(&mut bytes, head, page.more, page.oldest);
        open.finish(Opcode::Text, &mut bytes);
        if page.place.shard == self.shard_number() {
            self.put_ordered(page.place, page.after, Waiting::History(bytes));
        } else {
            self.send_reply(page.place, LaneMessage::History { to: page.place, after: page.after, frame: bytes });
        }
        if let Some((after, frame)) = page.detached {
            self.detach_behind_history(page.place, after, frame);
        }
    }
}
