//! The log's way to the disk: one write in flight, syncs shared by all that wait, and the release of acks and records when they
//! are done.
//!
//! A message is acknowledged, and delivered, once it is as durable as its session asks. Until then its ack waits here, rendered,
//! and its stream hides it from readers. Both follow the order of the log, so that two queues are enough, one for each level.

use super::awaiting::{Queue, Waiting};
use super::compaction::Compaction;
use super::indexing::Indexing;
use super::space::Room;
use super::state_records::{Kept, Survey};
use crate::io::Io;
use crate::limits::{ADDRESSES_MAX, ENVELOPE_ADDED_BYTES_MAX};
use crate::log::{Audience, HEADER_BYTES, Header, Kind, Level, Mark, Position};
use crate::protocol::{Envelope, ErrorCode, Failure, Head, ack, error};
use crate::session::{Place, SessionKey, StreamKey};
use crate::shard::core::Core;
use crate::shard::counters::{LimitReached, RECORD};
use crate::shard::home::gauges::Owed;
use crate::shard::inbound::frames::RETRY_AFTER_MS;
use crate::shard::inbound::publish::{Origin, refusal_of};
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;
use std::collections::VecDeque;

/// Bytes waiting for the disk above which messages are refused with limit.backpressure.
pub(in crate::shard) const PENDING_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Largest overhead of a record: header, addresses, frame head and the fields that the gateway adds.
pub(in crate::shard) const RECORD_BYTES_MORE_MAX: usize = HEADER_BYTES + 8 * ADDRESSES_MAX + 10 + ENVELOPE_ADDED_BYTES_MAX;
/// Interval at which records that nobody waits for are synced: it bounds what a power cut takes, and marks it for recovery.
const SYNC_EVERY_MS: u64 = 1000;
/// Time before the disk is tried again after it was full, or a segment could not be made.
pub(in crate::shard) const RETRY_MS: u64 = 1000;
/// The error text for a client whose message, or command, a disk has failed.
const FAILED: &str =
    "the log's disk failed before this message was durable: send it again, with its id, when the gateway was restarted";
pub(in crate::shard) const STATE_FAILED: &str =
    "the log's disk failed before this was durable: ask again when the gateway was restarted";
/// Completion tags: write, sync, and the first tag used for reads.
pub(in crate::shard) const WRITE_TAG: u64 = 0;
pub(in crate::shard) const SYNC_TAG: u64 = 1;
pub(in crate::shard) const READ_TAGS: u64 = 16;

/// Positions that must have been released for everything that waits now to be answered.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Fence {
    pub(super) written: Position,
    pub(super) synced: Position,
}

/// The shard's view of a log's disk.
#[derive(Debug)]
pub(in crate::shard) struct Disk {
    pub(super) written: Queue,
    pub(super) synced: Queue,
    /// The end of the write in flight.
    pub(super) writing: Option<Position>,
    /// When the write, and the sync, in flight began, on the monotonic clock.
    write_began_ns: u64,
    sync_began_ns: u64,
    /// The position up to which the sync in flight covers the log.
    pub(super) syncing: Option<Position>,
    /// Everything before this position has been synced.
    pub(in crate::shard) synced_to: Position,
    /// No connection is accepted before this position is durable: the epochs that recovery began, which a welcome names.
    pub(in crate::shard) opens_at: Option<Position>,
    /// The end of the last record that has been synced: the position for the next mark.
    proven_to: Position,
    /// Sync at least up to this position; somebody waits for it.
    pub(in crate::shard) sync_for: Position,
    /// The synced position in the last mark of the log.
    marked_to: Position,
    pub(super) sync_due_ms: u64,
    /// The newest segment that can be written, and the one that is being made.
    pub(in crate::shard) ready: Option<u64>,
    pub(in crate::shard) preparing: Option<u64>,
    /// The existing files; the last is the one being written.
    pub(in crate::shard) kept: VecDeque<Kept>,
    pub(in crate::shard) indexing: Indexing,
    /// The end of the state that was last rewritten so that the oldest file can be deleted.
    pub(in crate::shard) rewritten_to: Position,
    /// When the oldest file is examined again.
    pub(in crate::shard) look_due_ms: u64,
    /// The examination under way.
    pub(in crate::shard) survey: Option<Survey>,
    /// `true` if the next examination rewrites state: the previous one found nothing else in the file.
    pub(in crate::shard) rewrites_state: bool,
    pub(in crate::shard) compaction: Compaction,
    /// Members' values that are still to be logged.
    pub(in crate::shard) owed: Owed,
    /// The disk is not used until then.
    pub(super) rests_until_ms: u64,
    /// No segment is requested until then, because there was no room for one.
    pub(in crate::shard) segment_due_ms: u64,
    /// The errno of a write that failed in a way that no retry mends.
    pub(in crate::shard) failed: Option<i32>,
    /// `true` if that was because somebody deleted the file: data under way to it is lost when the process ends.
    pub(in crate::shard) lost: bool,
    /// The errno of a failed sync: what it covered may be lost, and no later sync says otherwise (Rebello et al., ATC 2020).
    pub(in crate::shard) sync_failed: Option<i32>,
    /// `true` if the next segment could not be made. Writes to the current one may still succeed.
    pub(in crate::shard) starved: bool,
    /// The errno if no segment could be made: the disk is full, or must not be written.
    pub(in crate::shard) full: Option<i32>,
    /// How far clients may fill the log.
    pub(in crate::shard) room: Room,
}

impl Disk {
    /// A disk whose log continues at `begin`, the start of a segment that does not exist yet.
    pub(in crate::shard) fn new(begin: Position) -> Self {
        Self {
            written: Queue::default(),
            synced: Queue::default(),
            writing: None,
            write_began_ns: 0,
            sync_began_ns: 0,
            syncing: None,
            synced_to: begin,
            proven_to: begin,
            opens_at: None,
            sync_for: begin,
            marked_to: begin,
            sync_due_ms: 0,
            ready: None,
            preparing: None,
            kept: VecDeque::new(),
            indexing: Indexing::default(),
            rewritten_to: begin,
            look_due_ms: 0,
            survey: None,
            rewrites_state: false,
            compaction: Compaction::default(),
            owed: Owed::default(),
            rests_until_ms: 0,
            segment_due_ms: 0,
            starved: false,
            failed: None,
            lost: false,
            sync_failed: None,
            full: None,
            room: Room::ENDLESS,
        }
    }

    /// Whether something is written again, or copied, for the oldest file to go.
    pub(in crate::shard) fn makes_room(&self) -> bool {
        self.rewrites_state || self.rewritten_to > self.synced_to || self.compaction.is_under_way()
    }

    /// Whether everything that was appended before `end` is as safe as it can be made, or never will be.
    pub(in crate::shard) fn settled(&self, end: Position) -> bool {
        self.failed.is_some() || self.sync_failed.is_some() || self.synced_to >= end
    }
}

impl Core {
    /// The durability at which a session's messages are acknowledged.
    pub(in crate::shard) fn level_of(&self, session: SessionKey) -> Level {
        if self.storage.disk.is_none() {
            return Level::Memory;
        }
        self.home.sessions.sessions.get(session).map_or(Level::Memory, |session| session.level)
    }

    /// Gives a session that is new, here or to this process, its level.
    pub(in crate::shard) fn set_level(&mut self, key: SessionKey) {
        let level = self.storage.default_level(&self.cx);
        if let Some(session) = self.home.sessions.sessions.get_mut(key) {
            session.level = level;
        }
    }

    /// Shows a new record to its audience and acknowledges it: at once, or when it is as durable as its session asks.
    pub(in crate::shard) fn conclude(
        &mut self,
        origin: &Origin<'_>,
        (session, stream): (SessionKey, StreamKey),
        envelope: &Envelope<'_>,
        seq: u64,
        targets: &[u64],
    ) {
        if self.level_of(session) == Level::Memory {
            self.note_appended(session, stream, seq, targets);
            return self.acknowledge(origin, envelope, seq, false);
        }
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        self.hold_until_durable((session, stream, seq), origin.place, origin.acks.then_some((head, false)), seq);
    }

    /// Acknowledges a repeat, not before the first message is durable.
    pub(in crate::shard) fn acknowledge_again(
        &mut self,
        origin: &Origin<'_>,
        (session, stream): (SessionKey, StreamKey),
        envelope: &Envelope<'_>,
        seq: u64,
    ) {
        if !self.is_pending((session, stream), seq) {
            return self.acknowledge(origin, envelope, seq, true);
        }
        // The same rules as for a new message: the queue is bounded, and a failed disk answers nothing.
        if let Some((code, message)) = self.storage.log_refuses(&self.cx, self.level_of(session), envelope) {
            return self.refuse_place(origin, &refusal_of(envelope, code, message, ""));
        }
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        if origin.acks {
            self.hold_until_durable((session, stream, 0), origin.place, Some((head, true)), seq);
        }
    }

    /// Hides a record from readers until it is durable, and keeps its ack until then.
    fn hold_until_durable(
        &mut self,
        (session, stream, seq): (SessionKey, StreamKey, u64),
        to: Place,
        ack_of: Option<(Head<'_>, bool)>,
        ack_seq: u64,
    ) {
        let level = self.level_of(session);
        let end = self.storage.log.end();
        // Nothing is shown before a hidden record: since that was appended, a reload may have turned on early delivery.
        let is_behind = self.home.streams.get(stream).is_some_and(|stream| stream.hidden_from < u64::MAX);
        let early = self.cx.snapshot.settings.log.early_delivery && !is_behind;
        let Some(disk) = &mut self.storage.disk else { return };
        let queue = if level == Level::Synced { &mut disk.synced } else { &mut disk.written };
        let before = queue.acks.len();
        if let Some((head, is_duplicate)) = ack_of {
            let open = OpenFrame::begin(&mut queue.acks);
            ack(&mut queue.acks, head, ack_seq, is_duplicate);
            open.finish(Opcode::Text, &mut queue.acks);
        }
        let ack_bytes = u32::try_from(queue.acks.len() - before).unwrap_or(u32::MAX);
        // The first message of a repeat may be anywhere among those that wait: behind the last of them is right in any case.
        let end = if seq > 0 { end } else { queue.last_end().unwrap_or(end) };
        queue.waiting.push_back(Waiting { end, session, stream, seq: if early { 0 } else { seq }, to, ack_bytes });
        if seq == 0 {
            return;
        }
        if early {
            self.note_durable(session, stream, seq);
        } else if let Some(stream) = self.home.streams.get_mut(stream) {
            stream.hidden_from = stream.hidden_from.min(seq);
        }
    }

    /// Computes, once a turn, how much of the shard's memory is left for connections besides data that waits for the disk: half
    /// of it at least.
    pub(in crate::shard) fn note_memory(&mut self) {
        let (held, most) = (self.storage.disk_held_bytes(), self.cx.snapshot.settings.limits.shard_memory_bytes as u64);
        self.cx.counters.disk_held_bytes.set(held);
        self.connections.buffers_bytes_max = most.saturating_sub(held).max(most / 2);
    }

    /// Returns `true` if a record is still waiting to be durable: its repeat is not acknowledged before.
    fn is_pending(&self, (session, stream): (SessionKey, StreamKey), seq: u64) -> bool {
        let Some(disk) = &self.storage.disk else { return false };
        let limit = match self.level_of(session) {
            Level::Memory => return false,
            Level::Written => self.storage.log.written(),
            Level::Synced => disk.synced_to,
        };
        match self.home.streams.get(stream).and_then(|stream| stream.index.get(seq)) {
            Some(entry) => entry.at >= limit,
            // Retention has dropped the record, which says nothing of the disk: wait for everything there is.
            None => limit < self.storage.log.end(),
        }
    }

    /// Wakes the readers that a record is for.
    fn note_durable(&mut self, session: SessionKey, stream: StreamKey, seq: u64) {
        let Some(found) = self.home.streams.get(stream) else { return };
        let (Some(entry), for_everyone) = (found.index.get(seq).copied(), seq <= found.everyone_to) else { return };
        let header = u32::try_from(HEADER_BYTES).unwrap_or(0);
        let mut targets = std::mem::take(&mut self.codec.targets);
        targets.clear();
        match entry.audience {
            _ if for_everyone => {}
            Audience::All => {}
            Audience::One(target) => targets.push(target),
            Audience::Many(_) => {
                let list = self.storage.log.bytes(entry.at, header, entry.frame_at - header).chunks_exact(8);
                targets.extend(list.filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes)));
            }
        }
        // A list that is no longer in memory: all readers check.
        self.note_appended(session, stream, seq, &targets);
        self.codec.targets = targets;
    }

    /// Releases everything that is durable up to `limit`.
    fn release<I: Io>(&mut self, io: &mut I, level: Level, limit: Position, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        let mut queue = std::mem::take(if level == Level::Synced { &mut disk.synced } else { &mut disk.written });
        while let Some((waiting, ack)) = queue.next(limit) {
            if waiting.seq > 0 {
                if let Some(stream) = self.home.streams.get_mut(waiting.stream) {
                    stream.hidden_from = if stream.index.head() > waiting.seq { waiting.seq + 1 } else { u64::MAX };
                }
                self.note_durable(waiting.session, waiting.stream, waiting.seq);
            } else if waiting.is_command() {
                if let Some(held) = queue.commands.pop_front() {
                    self.command_is_durable(io, held, waiting.to, waiting.end, &queue.acks[ack], now);
                }
                continue;
            }
            if !ack.is_empty() {
                self.cx.counters.acknowledged.increment();
                self.send_finished(waiting.to, &queue.acks[ack]);
            }
        }
        queue.tidy();
        if let Some(disk) = &mut self.storage.disk {
            *(if level == Level::Synced { &mut disk.synced } else { &mut disk.written }) = queue;
        }
    }

    /// Refuses every message still waiting on a failed disk. It may nevertheless be in the log: a client that resends it after
    /// the restart with the same id gets the right answer.
    pub(in crate::shard) fn give_up(&mut self, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        let never_written = disk.failed.is_some();
        // A sync under way may still make some of them durable.
        let never_synced = (never_written || disk.sync_failed.is_some()) && disk.syncing.is_none();
        for hopeless in [never_written.then_some(Level::Written), never_synced.then_some(Level::Synced)].into_iter().flatten() {
            let (Some(disk), Some(mut parser)) = (&mut self.storage.disk, self.codec.parser.take()) else { return };
            let mut queue = std::mem::take(if hopeless == Level::Synced { &mut disk.synced } else { &mut disk.written });
            while let Some((waiting, place)) = queue.next(Position(u64::MAX)) {
                let frame = &queue.acks[place.clone()];
                // The head of the gateway's own frame (RFC 6455 5.2): unmasked, and an ack is short.
                let head_bytes = if frame.get(1).is_some_and(|length| *length < 126) { 2 } else { 4 };
                let parsed = frame.get(head_bytes..).and_then(|text| parser.parse(text).ok());
                let head = parsed.map(|ack| Head { id: ack.id, session_id: ack.session_id });
                if waiting.is_command() {
                    if let Some(held) = queue.commands.pop_front() {
                        self.give_up_command(held, waiting.to, &queue.acks[place], head, now);
                    }
                    continue;
                }
                let Some(head) = head else { continue };
                let (code, retry_after_ms) = (ErrorCode::LimitDisk, Some(RETRY_AFTER_MS));
                self.cx.counters.refused.increment();
                self.reply_to(waiting.to, AT_ONCE, |out| {
                    error(out, &Failure { head, code, message: FAILED, retry_after_ms, pointer: None, frame: None });
                });
            }
            self.codec.parser = Some(parser);
        }
    }

    /// Starts the write of the appended records, and the sync that is due. Returns `true` if the disk must be checked again soon.
    pub(in crate::shard) fn write_log<I: Io>(&mut self, io: &mut I, now: Tick) {
        self.storage.log.tick(now.wall_ms);
        self.make_segment(io, now);
        self.open_door(io);
        let Some(disk) = &mut self.storage.disk else { return };
        if disk.failed.is_some() || now.mono_ms() < disk.rests_until_ms {
            return;
        }
        if disk.writing.is_none() {
            if disk.proven_to > disk.marked_to && self.storage.log.unwritten().is_some() {
                disk.marked_to = disk.proven_to;
                let header =
                    Header { kind: Kind::Mark, session: 0, seq: 0, epoch: 0, ts_ms: now.wall_ms, sender: 0, id: 0, content: 0 };
                let mut body = Vec::new();
                Mark { synced_to: disk.proven_to.0 }.encode(&mut body);
                self.storage.log.append(&header, &[], &[&body]);
            }
            // A segment begins when all of the previous one is safe: a torn record is always in the last segment.
            if let Some(part) = self.storage.log.unwritten()
                && disk.ready.is_some_and(|ready| part.segment <= ready)
                && (part.at > 0
                    || self
                        .storage
                        .log
                        .geometry()
                        .is_none_or(|geometry| disk.synced_to.0 >= part.segment * geometry.segment_bytes))
            {
                disk.writing = Some(part.end);
                disk.write_began_ns = now.mono_ns;
                self.cx.counters.log_writes.increment();
                self.cx.counters.log_batch_bytes.record(part.part.len() as u64);
                self.cx.counters.log_batch_records.record(part.records() * RECORD);
                self.cx.counters.log_written_bytes.add(part.part.len() as u64);
                io.write(part.segment, part.at, part.chunk, part.part, WRITE_TAG);
            }
        }
        self.sync_log(io, now);
    }

    fn open_door<I: Io>(&mut self, io: &mut I) {
        let (level, written) = (self.storage.default_level(&self.cx), self.storage.log.written());
        let Some(disk) = &mut self.storage.disk else { return };
        let Some(opens_at) = disk.opens_at else { return };
        let durable = if level == Level::Synced { disk.synced_to } else { written };
        // A disk that takes nothing is no reason to keep out clients that need no log.
        let in_vain = disk.full.is_some() || disk.failed.is_some() || disk.sync_failed.is_some();
        if durable >= opens_at || in_vain {
            disk.opens_at = None;
            if !self.life.draining && !self.life.stopping {
                io.accept(true);
            }
        }
    }

    fn sync_log<I: Io>(&mut self, io: &mut I, now: Tick) {
        let (written, Some(geometry)) = (self.storage.log.written(), self.storage.log.geometry()) else { return };
        let Some(disk) = &mut self.storage.disk else { return };
        if disk.syncing.is_some() || disk.sync_failed.is_some() {
            return;
        }
        let segment = disk.synced_to.0 / geometry.segment_bytes;
        let boundary = Position((segment + 1) * geometry.segment_bytes);
        let rolls = self.storage.log.unwritten().is_some_and(|part| part.at == 0 && part.segment > segment);
        if disk.synced_to >= written {
            if rolls {
                // The old segment is fully synced already.
                disk.synced_to = boundary;
                self.write_log(io, now);
            }
            return;
        }
        let wanted = rolls
            || disk.opens_at.is_some()
            || disk.sync_for > disk.synced_to
            || disk.synced.waiting.front().is_some_and(|first| first.end > disk.synced_to);
        if !wanted && now.mono_ms() < disk.sync_due_ms && !self.life.stopping {
            return;
        }
        disk.syncing = Some(if rolls { boundary } else { written });
        disk.sync_due_ms = now.mono_ms() + SYNC_EVERY_MS;
        disk.sync_began_ns = now.mono_ns;
        self.cx.counters.log_syncs.increment();
        io.sync(segment, SYNC_TAG);
    }

    pub(in crate::shard) fn on_written<I: Io>(&mut self, io: &mut I, result: Result<(), i32>, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        let Some(end) = disk.writing.take() else { return };
        self.cx.counters.log_write_ns.record(now.mono_ns.saturating_sub(disk.write_began_ns));
        if disk.lost {
            return;
        }
        match result {
            Ok(()) => {
                if !disk.starved {
                    disk.full = None;
                }
                self.storage.log.wrote(end);
                self.release(io, Level::Written, end, now);
                self.write_log(io, now);
            }
            Err(errno) if matches!(errno, libc_errno::ENOSPC | libc_errno::EDQUOT) => {
                // The same bytes are written again when there is room.
                if disk.full.replace(errno).is_none() {
                    tracing::error!(shard = self.cx.shard, errno, "the log's disk is full; trying again each second");
                }
                disk.rests_until_ms = now.mono_ms() + RETRY_MS;
                self.cx.counters.limit_reached(LimitReached::Disk);
            }
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                disk.failed = Some(errno);
                self.cx.counters.log_failed.set(1);
                tracing::error!(shard = self.cx.shard, %error, "the log could not be written: it takes no more messages; look at the disk, then restart");
                self.give_up(now);
            }
        }
    }

    pub(in crate::shard) fn on_synced<I: Io>(&mut self, io: &mut I, result: Result<(), i32>, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        let Some(end) = disk.syncing.take() else { return };
        self.cx.counters.log_sync_ns.record(now.mono_ns.saturating_sub(disk.sync_began_ns));
        if disk.lost {
            return self.give_up(now);
        }
        match result {
            Ok(()) => {
                disk.synced_to = end;
                // At a boundary nothing of the next segment has been written yet.
                let boundary = self.storage.log.geometry().is_some_and(|geometry| end.0.is_multiple_of(geometry.segment_bytes));
                disk.proven_to = if boundary { self.storage.log.written() } else { end };
                self.release(io, Level::Synced, end, now);
                self.write_log(io, now);
            }
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                disk.sync_failed = Some(errno);
                self.cx.counters.log_failed.set(1);
                tracing::error!(shard = self.cx.shard, %error, "the log could not be synced: nothing is acknowledged as synced any more; restart to recover");
            }
        }
        self.give_up(now);
    }
}

/// The errnos that are treated differently. Free space mends the last two.
pub(in crate::shard) mod libc_errno {
    pub(in super::super) const ENOENT: i32 = 2;
    pub(in crate::shard) const ENOSPC: i32 = 28;
    pub(in crate::shard) const EDQUOT: i32 = 122;
}
