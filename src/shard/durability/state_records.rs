//! State that the log holds besides messages: sessions, members, and each fact about them, in a small record of its own. Before a
//! file of the log is deleted, the state that only it holds is rewritten at the tail, whole, in bounded records.

use super::compaction::{PENDING_BYTES, SESSIONS_MAX};
use super::disk::libc_errno::ENOENT;
use crate::config::cap;
use crate::io::Io;
use crate::limits::{STATE_RECORD_BYTES_MAX, STAYS_PER_RECORD_MAX};
use crate::log::{
    EpochState, HEADER_BYTES, Header, Kind, MemberState, NextEpoch, Position, SessionState, StateError, StayState, Stays,
};
use crate::session::{Member, MemberKey, SessionKey, Stay, StreamKey, Target};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::DropReason;
use crate::shard::durability::Storage;
use crate::shard::home::Home;
use crate::time::Tick;

/// Sessions and members that one turn examines for data in the oldest file, and bytes of state that it rewrites.
const SURVEYED_PER_TURN: usize = 1024;
const REWRITTEN_BYTES_PER_TURN: u64 = 256 * 1024;
/// Approximate size of the state of a session, and of a member.
const STATE_BYTES: u64 = 256;
/// Interval between examinations of the oldest file.
const LOOK_EVERY_MS: u64 = 1000;

/// Keyed hash of a session's id, and its epoch's number.
type Epoch = (u64, u32);

/// A segment file that has not been deleted.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Kept {
    pub(in crate::shard) number: u64,
    /// When it was made, Unix ms.
    pub(in crate::shard) begun_ms: u64,
}

/// A survey of all sessions for data in the oldest file, some in each turn. A session that was examined can only have less there
/// later.
#[derive(Debug, Default)]
pub(in crate::shard) struct Survey {
    /// The index in the sessions' table at which it continues, and then in the members'.
    at: usize,
    member_at: usize,
    /// Bytes of all retained records, wherever they are.
    retained_bytes: u64,
    /// Streams with messages in the file.
    holders: Vec<StreamKey>,
    /// At least one session's latest state record is in this segment, so it must be rewritten first.
    is_stale: bool,
}

/// Since when a member is away, Unix ms; 0 while it is attached.
pub(in crate::shard) fn away_since_ms(member: &Member, now: Tick) -> u64 {
    if member.away_since_ms == 0 { 0 } else { now.wall_ms.saturating_sub(member.away_ms(now.mono_ms()).max(1)).max(1) }
}

impl Core {
    /// Logs a session's own state. If it has members, their state must follow before older files are deleted.
    pub(in crate::shard) fn keep_session(&mut self, key: SessionKey, now: Tick) {
        if self.storage.disk.is_none() {
            return;
        }
        let Some(session) = self.home.sessions.sessions.get(key) else { return };
        let Some(stream) = self.home.streams.get(session.stream) else { return };
        let (epoch, head) = ((session.hash, session.epoch_number), stream.index.head());
        let past = session.past_epochs.iter().map(|(name, last_seq)| EpochState { name: *name, last_seq: Some(*last_seq) });
        let current = EpochState { name: session.epoch, last_seq: None };
        let epochs: Vec<EpochState> = past.chain([current]).collect();
        let state = SessionState { session_id: &stream.session_id, head, oldest: stream.index.first(), epochs };
        let mut body = self.cx.buffers.take();
        let encoded = state.encode(&mut body);
        let at = self.storage.keep_encoded(&mut self.cx, encoded, Kind::Session, epoch, head, 0, now.wall_ms, body);
        if let Some(at) = at
            && let Some(session) = self.home.sessions.sessions.get_mut(key)
        {
            session.kept_at = at;
        }
    }

    /// Logs a session that the log does not know: it was made while the log took nothing.
    pub(in crate::shard) fn keep_session_first(&mut self, key: SessionKey, now: Tick) {
        if self.storage.disk.is_some()
            && self.home.sessions.sessions.get(key).is_some_and(|session| session.kept_at == Position(0))
        {
            self.keep_session(key, now);
        }
    }

    /// Logs a member's state and its stays in rooms, in as many records as these need.
    pub(in crate::shard) fn keep_member(&mut self, key: MemberKey, now: Tick) {
        if self.storage.disk.is_none() {
            return;
        }
        let Some(member) = self.home.sessions.members.get(key) else { return };
        let Some(session) = self.home.sessions.sessions.get(member.session) else { return };
        let head = self.home.streams.get(session.stream).map_or(0, |stream| stream.index.head());
        let (stays, names) = self.home.stays_of(member);
        let roles: Vec<&str> = member.roles.iter().map(|role| &**role).collect();
        let state = MemberState {
            client_id: &member.client_id,
            subject_bytes: member.subject_bytes,
            user: member.entitlements.user,
            present: member.place.is_some(),
            told_lost: member.told_lost,
            stays_follow: !stays.is_empty(),
            since_ms: member.since_ms,
            received_seq: member.received_seq,
            hidden_to: member.entitlements.hidden_to,
            away_since_ms: away_since_ms(member, now),
            roles,
            stays: Vec::new(),
            presence: None,
        };
        let (epoch, client) = ((session.hash, session.epoch_number), member.entitlements.client);
        let mut body = self.cx.buffers.take();
        let encoded = state.encode(&mut body);
        let Some(at) = self.storage.keep_encoded(&mut self.cx, encoded, Kind::Member, epoch, head, client, now.wall_ms, body)
        else {
            return;
        };
        let parts = stays.chunks(STAYS_PER_RECORD_MAX);
        let mut left = parts.len();
        for part in parts {
            left -= 1;
            let name = |hash: u64| names.iter().find(|(of, _)| *of == hash).map_or("", |(_, name)| &**name);
            let stay = |stay: &Stay| StayState {
                room: if stay.to == u64::MAX { name(stay.room) } else { "" },
                hash: stay.room,
                from: stay.from,
                to: stay.to,
            };
            let part = Stays { left: u16::try_from(left).unwrap_or(u16::MAX), stays: part.iter().map(stay).collect() };
            let mut body = self.cx.buffers.take();
            let encoded = part.encode(&mut body);
            if self.storage.keep_encoded(&mut self.cx, encoded, Kind::Stays, epoch, head, client, now.wall_ms, body).is_none() {
                return;
            }
        }
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        member.kept_at = at;
        // A purge removes this record, and leaves the rest.
        if member.presence.is_some() {
            self.keep_presence(key, now);
        }
    }

    /// Logs a member's presence data.
    pub(in crate::shard) fn keep_presence(&mut self, key: MemberKey, now: Tick) -> Position {
        self.keep_fact(key, Kind::Presence, now, |member, out| {
            out.extend_from_slice(member.presence.as_deref().unwrap_or("null").as_bytes());
            Ok(())
        })
    }

    /// Logs a fact about a member. Returns where its record ends.
    pub(in crate::shard) fn keep_fact(
        &mut self,
        key: MemberKey,
        kind: Kind,
        now: Tick,
        encode: impl FnOnce(&Member, &mut Vec<u8>) -> Result<(), StateError>,
    ) -> Position {
        self.write_whole(key, now);
        let (Some(member), true) = (self.home.sessions.members.get(key), self.storage.disk.is_some()) else {
            return self.storage.log.end();
        };
        let Some(session) = self.home.sessions.sessions.get(member.session) else { return self.storage.log.end() };
        let head = self.home.streams.get(session.stream).map_or(0, |stream| stream.index.head());
        let (epoch, client) = ((session.hash, session.epoch_number), member.entitlements.client);
        let mut body = self.cx.buffers.take();
        let encoded = encode(member, &mut body);
        self.storage.keep_encoded(&mut self.cx, encoded, kind, epoch, head, client, now.wall_ms, body);
        self.storage.log.end()
    }

    /// Logs a session's next epoch; the rest of its state is unchanged.
    pub(in crate::shard) fn keep_epoch(&mut self, key: SessionKey, last_seq: u64, now: Tick) {
        let Some(session) = self.home.sessions.sessions.get(key).filter(|_| self.storage.disk.is_some()) else { return };
        let (epoch, name) = ((session.hash, session.epoch_number), session.epoch);
        let mut body = self.cx.buffers.take();
        NextEpoch { name, last_seq }.encode(&mut body);
        self.storage.keep_encoded(&mut self.cx, Ok(()), Kind::Epoch, epoch, last_seq, 0, now.wall_ms, body);
    }

    /// Deletes the oldest file of the log once nothing in it is retained, and has it compacted if that pays. State of sessions
    /// and members that only it holds is rewritten. Returns `true` while there is more to examine.
    pub(in crate::shard) fn let_files_go<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        let pending_bytes = self.storage.pending_bytes(&self.cx);
        let Some(geometry) = self.storage.log.geometry() else { return false };
        let Some(disk) = &mut self.storage.disk else { return false };
        let [oldest, _, ..] = *disk.kept.make_contiguous() else { return false };
        if disk.failed.is_some() || self.life.stopping {
            return false;
        }
        let end = Position((oldest.number + 1) * geometry.segment_bytes);
        let mut survey = match disk.survey.take() {
            Some(survey) => survey,
            None if now.mono_ms() < disk.look_due_ms || disk.compaction.is_under_way() => return false,
            // Neither the file's records nor their rewritten copies may be lost in a power cut.
            None if disk.synced_to < end.max(disk.rewritten_to) => {
                disk.look_due_ms = now.mono_ms() + LOOK_EVERY_MS;
                return false;
            }
            None => Survey::default(),
        };
        let rewrites = disk.rewrites_state;
        // The disk's answer brings the next turn.
        let rests = rewrites && pending_bytes >= PENDING_BYTES;
        let is_over = !rests && self.survey(&mut survey, end, rewrites, now);
        let rewritten_to = self.storage.log.end();
        let Some(disk) = &mut self.storage.disk else { return false };
        if !is_over {
            disk.survey = Some(survey);
            return !rests;
        }
        let is_held = !survey.holders.is_empty();
        disk.look_due_ms = now.mono_ms() + if is_held { LOOK_EVERY_MS } else { 0 };
        disk.rewrites_state = survey.is_stale && !is_held && !rewrites;
        if is_held {
            self.begin_compaction(oldest.number, survey.holders, survey.retained_bytes, now);
        } else if survey.is_stale {
            disk.rewritten_to = rewritten_to;
        } else {
            disk.kept.pop_front();
            self.storage.log.retain_from(end);
            self.note_room();
            io.delete_segment(oldest.number);
        }
        false
    }

    /// Makes the next step of a survey of the oldest file, which ends at `end`. Returns `true` if it is over.
    fn survey(&mut self, survey: &mut Survey, end: Position, rewrites: bool, now: Tick) -> bool {
        let until = self.storage.log.end().0.saturating_add(REWRITTEN_BYTES_PER_TURN);
        let mut looks = SURVEYED_PER_TURN;
        while survey.at < self.home.sessions.sessions.places() {
            if looks == 0 || self.storage.log.end().0 >= until {
                return false;
            }
            looks -= 1;
            survey.at += 1;
            self.survey_session(survey, survey.at - 1, end, rewrites, now);
        }
        // A single session found is enough to know that state must be rewritten.
        while survey.member_at < self.home.sessions.members.places() && (rewrites || !survey.is_stale) {
            if looks == 0 || self.storage.log.end().0 >= until {
                return false;
            }
            looks -= 1;
            survey.member_at += 1;
            let Some((key, member)) = self.home.sessions.members.at(survey.member_at - 1) else { continue };
            // A member's records count only behind its session's: earlier ones are outdated, and may be deleted.
            let named_at = self.home.sessions.sessions.get(member.session).map_or(end, |session| session.kept_at);
            if member.kept_at < end.max(named_at) {
                survey.is_stale = true;
                if rewrites {
                    self.keep_member(key, now);
                }
            }
        }
        true
    }

    fn survey_session(&mut self, survey: &mut Survey, place: usize, end: Position, rewrites: bool, now: Tick) {
        let (segment_bytes, gone) =
            (self.storage.log.geometry().map_or(0, |geometry| geometry.segment_bytes), self.storage.log.bound(end));
        let Some((key, session)) = self.home.sessions.sessions.at(place) else { return };
        let (is_stale, members) = (session.kept_at < end, session.members.len() as u64);
        let Some(stream) = self.home.streams.get_mut(session.stream) else { return };
        let cut = stream.index.trim_while(segment_bytes, stream.hidden(), |at| self.storage.ages.is_aged(at));
        self.cx.counters.dropped(DropReason::LogAge, cut);
        survey.retained_bytes += stream.index.bytes() + STATE_BYTES * (1 + members);
        if stream.index.holds_before(gone) && survey.holders.len() < SESSIONS_MAX {
            survey.holders.push(session.stream);
        }
        survey.is_stale |= is_stale;
        if is_stale && rewrites {
            self.keep_session(key, now);
        }
    }

    /// Forgets records that left the log's memory, or exceed the session's own bounds.
    pub(in crate::shard) fn trim(&mut self, key: StreamKey) {
        let settings = &self.cx.snapshot.settings;
        let messages_max = match settings.log.retention_messages {
            0 => settings.session.history_messages,
            messages_max => messages_max,
        };
        let Some(stream) = self.home.streams.get_mut(key) else { return };
        if stream.home.is_some() {
            // The home decides what is retained; this is only the part at hand here.
            stream.index.trim(self.links.mirror_log.retained(), messages_max);
            return;
        }
        // Records that nobody has seen yet do not count, and are not dropped: a reader at rest would be woken behind them.
        let hidden = stream.hidden();
        let messages_max = if messages_max == 0 { 0 } else { messages_max.saturating_add(hidden) };
        let bytes_max = cap(settings.log.retention_bytes);
        let index = &mut stream.index;
        // Each bound is checked first in a few instructions: most calls find nothing to do.
        let by_memory = index.trim(self.storage.log.retained(), 0);
        let mut by_age = 0;
        if index.may_hold_before(self.storage.log.bound(self.storage.ages.end())) {
            let segment_bytes = self.storage.log.geometry().map_or(0, |geometry| geometry.segment_bytes);
            by_age = index.trim_while(segment_bytes, hidden, |at| self.storage.ages.is_aged(at));
        }
        let by_count = index.trim(self.storage.log.bound(Position(0)), messages_max);
        let by_bytes = if index.bytes() > bytes_max { index.trim_bytes(bytes_max, hidden.max(1)) } else { 0 };
        if by_memory + by_age + by_count + by_bytes > 0 {
            self.cx.counters.dropped(DropReason::LogMemory, by_memory);
            self.cx.counters.dropped(DropReason::LogAge, by_age);
            self.cx.counters.dropped(DropReason::HistoryMessages, by_count);
            self.cx.counters.dropped(DropReason::LogBytes, by_bytes);
        }
    }

    /// Handles the deletion of a file of the log by somebody else. Its records can be read as long as this process runs; messages
    /// that would be lost with it are no longer acknowledged.
    pub(in crate::shard) fn on_segment_lost(&mut self, number: u64, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        (disk.failed, disk.lost) = (Some(ENOENT), true);
        self.cx.counters.log_failed.set(1);
        tracing::error!(
            shard = self.cx.shard,
            segment = crate::log::segment_name(number),
            "a file of the log was deleted while it is in use: no more messages are taken; its content is lost when this process ends, so \
             copy it from /proc first, as docs/OPERATING.md says"
        );
        self.give_up(now);
    }

    /// Returns `true` if everything to be kept is on disk, synced: the messages, and the members' values.
    #[must_use]
    pub fn log_is_whole(&self) -> bool {
        let (end, is_owed) = (self.storage.log.end(), self.is_anything_owed());
        self.storage
            .disk
            .as_ref()
            .is_some_and(|disk| disk.failed.is_none() && disk.sync_failed.is_none() && disk.synced_to >= end)
            && !is_owed
    }

    /// Returns `true` if the log is settled: everything is appended and synced, or cannot be.
    pub(in crate::shard) fn log_settled(&self) -> bool {
        let may_append = || self.is_anything_owed() && !self.storage.log_is_behind(&self.cx);
        self.storage.disk.as_ref().is_none_or(|disk| disk.full.is_some() || disk.settled(self.storage.log.end()) && !may_append())
    }
}

impl Storage {
    /// Appends a record of the gateway's own. Nobody waits for it: it is written with the next write.
    #[expect(clippy::too_many_arguments, reason = "the fields of a record")]
    fn keep(
        &mut self,
        cx: &Context,
        kind: Kind,
        (session, epoch): Epoch,
        seq: u64,
        sender: u64,
        ts_ms: u64,
        body: &[u8],
    ) -> Position {
        let header = Header { kind, session, seq, epoch, ts_ms, sender, id: 0, content: 0 };
        cx.counters.log_state_records.increment();
        self.log.append(&header, &[], &[body]).at
    }

    /// Appends an encoded state. One that cannot be encoded violates the limits: it is logged as a bug and left out.
    #[expect(clippy::too_many_arguments, reason = "the fields of a record")]
    fn keep_encoded(
        &mut self,
        cx: &mut Context,
        encoded: Result<(), StateError>,
        kind: Kind,
        session: Epoch,
        seq: u64,
        sender: u64,
        ts_ms: u64,
        body: Vec<u8>,
    ) -> Option<Position> {
        let at = match encoded {
            // Guaranteed by the const assertions of `log/facts.rs`.
            Ok(()) => {
                debug_assert!(HEADER_BYTES + body.len() <= STATE_RECORD_BYTES_MAX, "a record of {} bytes", body.len());
                Some(self.keep(cx, kind, session, seq, sender, ts_ms, &body))
            }
            Err(error) => {
                debug_assert!(false, "{kind:?}: {error}");
                tracing::error!(shard = cx.shard, ?kind, %error, "a state record could not be written to the log");
                None
            }
        };
        cx.buffers.give(body);
        at
    }

    /// Logs that a member was removed.
    pub(in crate::shard) fn keep_member_gone(&mut self, cx: &Context, session: Epoch, client: u64, now: Tick) {
        if self.disk.is_some() {
            self.keep(cx, Kind::MemberGone, session, 0, client, now.wall_ms, &[]);
        }
    }

    /// Logs that a session was forgotten.
    pub(in crate::shard) fn keep_session_gone(&mut self, cx: &Context, session: Epoch, now: Tick) {
        if self.disk.is_some() {
            self.keep(cx, Kind::SessionGone, session, 0, 0, now.wall_ms, &[]);
        }
    }

    /// Logs that a session's messages before this are purged. Returns where the record is.
    pub(in crate::shard) fn keep_purge(&mut self, cx: &Context, session: Epoch, seq: u64, now: Tick) -> Position {
        self.keep(cx, Kind::Purge, session, seq, 0, now.wall_ms, &[])
    }

    /// Returns `true` if the messages at these positions may be dropped by age together; without an age limit all may.
    pub(in crate::shard) fn age_together(&self, cx: &Context, one: Position, other: Position) -> bool {
        cx.snapshot.settings.log.retention_age_s == 0 || self.ages.together(one, other)
    }

    /// Determines, once a second, which messages are too old; each session's [`Core::trim`] removes them.
    pub(in crate::shard) fn age_log(&mut self, cx: &Context, now: Tick) {
        if now.mono_ms() < self.age_due_ms {
            return;
        }
        self.age_due_ms = now.mono_ms() + LOOK_EVERY_MS;
        let age_ms = cx.snapshot.settings.log.retention_age_s * 1000;
        let (wall_ms, set_forward_ms) = self.age_clock.at(now.mono_ms(), now.wall_ms, self.ages.newest_ms());
        if let Some(ahead_ms) = set_forward_ms {
            tracing::warn!(
                shard = cx.shard,
                ahead_ms,
                "the wall clock was set forward: if it stays there, messages age by it in an hour"
            );
        }
        self.ages.age(if age_ms == 0 { 0 } else { wall_ms.saturating_sub(age_ms) });
    }

    /// The chain value of the last record.
    #[must_use]
    pub fn log_chain(&self) -> u32 {
        self.log.chain()
    }
}

impl Home {
    /// A member's stays by all records in the log, those that wait to be durable included, and the names of the rooms.
    fn stays_of(&self, member: &Member) -> (Vec<Stay>, Vec<(u64, Box<str>)>) {
        let hash = |room: &str| self.sessions.target(Target::Room, room);
        let mut names: Vec<(u64, Box<str>)> = member.rooms.iter().map(|room| (hash(room), room.clone())).collect();
        let Some(underway) = &member.underway else { return (member.entitlements.stays.to_vec(), names) };
        let mut entitlements = member.entitlements.clone();
        for each in &underway.moves {
            let room = hash(&each.room);
            if each.joins {
                entitlements.enter(room, each.seq);
                names.push((room, each.room.clone()));
            } else {
                entitlements.leave(room, each.seq);
            }
        }
        (entitlements.stays.to_vec(), names)
    }
}

impl Context {
    /// The delay, in milliseconds, with which a message may be dropped by its age.
    pub(in crate::shard) fn age_step_ms(&self) -> u64 {
        let age_ms = self.snapshot.settings.log.retention_age_s * 1000;
        // Messages appended without an age limit may get one later: to the minute.
        if age_ms == 0 { 60_000 } else { (age_ms / 256).max(1000) }
    }
}

/// Counts a file of the log that was deleted, or tells why it was not.
pub(in crate::shard) fn on_segment_gone(cx: &Context, number: u64, result: Result<(), i32>) {
    match result {
        Ok(()) => cx.counters.log_segments.subtract(1),
        Err(errno) => {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(shard = cx.shard, segment = number, %error, "a file of the log that is no longer needed could not be deleted");
        }
    }
}
