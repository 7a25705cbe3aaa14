//! What the log keeps besides messages: sessions, members, receipts. Each record is the whole state of one of them, so that the newest
//! one is enough; before a file of the log goes, what only it holds is written again at the tail.

use super::compacting::{PENDING_BYTES, SESSIONS_MAX};
use super::core::Core;
use super::counters::DropReason;
use super::durable::libc_errno::ENOENT;
use crate::config::cap;
use crate::io::Io;
use crate::log::{EpochState, Header, Kind, MemberState, Position, Receipt, SessionState, StateError, StayState};
use crate::session::{MemberKey, SessionKey, StreamKey};
use crate::time::Tick;

/// Sessions that one turn looks at for what the oldest file holds of them, and those whose state it writes again.
const SURVEYED_PER_TURN: usize = 1024;
const REWRITTEN_PER_TURN: usize = 64;
/// About what the state of a session takes, and that of a member.
const STATE_BYTES: u64 = 256;
/// How often the oldest file is looked at.
const LOOK_EVERY_MS: u64 = 1000;

/// Keyed hash of a session's id, and its epoch's number.
type Epoch = (u64, u32);

/// One file of the log that is still there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) number: u64,
    /// When it was made, Unix ms.
    pub(super) begun_ms: u64,
}

/// A survey of all sessions for what the oldest file still holds of them, some in each turn. What it holds of one that was looked at
/// only becomes less.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The place in the sessions' table where it goes on.
    at: usize,
    /// Bytes of all that is retained, wherever it is.
    retained_bytes: u64,
    /// Streams of which the file has messages.
    holders: Vec<StreamKey>,
    /// The state of some is nowhere else.
    is_stale: bool,
}

impl Core {
    /// Appends a record of the gateway's own. Nobody waits for it: it goes with the next write.
    fn keep(&mut self, kind: Kind, (session, epoch): Epoch, seq: u64, sender: u64, ts_ms: u64, body: &[u8]) -> Position {
        let header = Header { kind, session, seq, epoch, ts_ms, sender, id: 0, content: 0 };
        self.counters.log_state_records.increment();
        self.log.append(&header, &[], &[body]).at
    }

    /// Appends a state that was encoded; one that cannot be is a bug of the limits, told and not kept.
    #[expect(clippy::too_many_arguments, reason = "the fields of a record")]
    fn keep_encoded(
        &mut self,
        encoded: Result<(), StateError>,
        kind: Kind,
        session: Epoch,
        seq: u64,
        sender: u64,
        ts_ms: u64,
        body: Vec<u8>,
    ) -> Option<Position> {
        let at = match encoded {
            Ok(()) => Some(self.keep(kind, session, seq, sender, ts_ms, &body)),
            Err(error) => {
                tracing::error!(shard = self.shard, ?kind, %error, "a state could not be kept in the log");
                None
            }
        };
        self.buffers.give(body);
        at
    }

    /// Keeps a session's own state. Its members' follow, where it has any: older records of them may go with their files.
    pub(super) fn keep_session(&mut self, key: SessionKey, now: Tick) {
        if self.disk.is_none() {
            return;
        }
        let Some(session) = self.sessions.sessions.get(key) else { return };
        let Some(stream) = self.streams.get(session.stream) else { return };
        let (epoch, head) = ((session.hash, session.epoch_number), stream.index.head());
        let past = session.past_epochs.iter().map(|(name, last_seq)| EpochState { name: *name, last_seq: Some(*last_seq) });
        let current = EpochState { name: session.epoch, last_seq: None };
        let epochs: Vec<EpochState> = past.chain([current]).collect();
        let state = SessionState { session_id: &stream.session_id, head, oldest: stream.index.first(), epochs };
        let mut body = self.buffers.take();
        let encoded = state.encode(&mut body);
        let at = self.keep_encoded(encoded, Kind::Session, epoch, head, 0, now.wall_ms, body);
        if let Some(at) = at
            && let Some(session) = self.sessions.sessions.get_mut(key)
        {
            session.kept_at = at;
        }
    }

    /// Keeps a member's state.
    pub(super) fn keep_member(&mut self, key: MemberKey, now: Tick) {
        if self.disk.is_none() {
            return;
        }
        let Some(member) = self.sessions.members.get(key) else { return };
        let Some(session) = self.sessions.sessions.get(member.session) else { return };
        let head = self.streams.get(session.stream).map_or(0, |stream| stream.index.head());
        let roles: Vec<&str> = member.roles.iter().map(|role| &**role).collect();
        let names: Vec<(u64, &str)> =
            member.rooms.iter().map(|room| (self.sessions.target(crate::session::Target::Room, room), &**room)).collect();
        let name_of = |room: u64| names.iter().find(|(hash, _)| *hash == room).map_or("", |(_, name)| *name);
        let stays: Vec<StayState<'_>> = member
            .entitlements
            .stays
            .iter()
            .map(|stay| StayState {
                room: if stay.to == u64::MAX { name_of(stay.room) } else { "" },
                hash: stay.room,
                from: stay.from,
                to: stay.to,
            })
            .collect();
        let away_ms = if member.away_since_ms == 0 { 0 } else { member.away_ms(now.mono_ms()).max(1) };
        let state = MemberState {
            client_id: &member.client_id,
            subject_bytes: member.subject_bytes,
            user: member.entitlements.user,
            present: member.place.is_some(),
            told_lost: member.told_lost,
            since_ms: member.since_ms,
            received_seq: member.received_seq,
            hidden_to: member.entitlements.hidden_to,
            away_since_ms: if away_ms == 0 { 0 } else { now.wall_ms.saturating_sub(away_ms).max(1) },
            roles,
            stays,
            presence: member.presence.as_deref(),
        };
        let (epoch, client) = ((session.hash, session.epoch_number), member.entitlements.client);
        let mut body = self.buffers.take();
        let encoded = state.encode(&mut body);
        self.keep_encoded(encoded, Kind::Member, epoch, head, client, now.wall_ms, body);
    }

    /// Keeps a receipt.
    pub(super) fn keep_receipt(&mut self, key: MemberKey, now: Tick) {
        let Some(member) = self.sessions.members.get(key).filter(|_| self.disk.is_some()) else { return };
        let Some(epoch) = self.sessions.sessions.get(member.session).map(|session| (session.hash, session.epoch_number)) else {
            return;
        };
        let (client, received_seq) = (member.entitlements.client, member.received_seq);
        let mut body = self.buffers.take();
        Receipt { received_seq }.encode(&mut body);
        self.keep(Kind::Receipt, epoch, received_seq, client, now.wall_ms, &body);
        self.buffers.give(body);
    }

    /// Keeps that a member is no more.
    pub(super) fn keep_member_gone(&mut self, session: Epoch, client: u64, now: Tick) {
        if self.disk.is_some() {
            self.keep(Kind::MemberGone, session, 0, client, now.wall_ms, &[]);
        }
    }

    /// Keeps that a session is no more.
    pub(super) fn keep_session_gone(&mut self, session: Epoch, now: Tick) {
        if self.disk.is_some() {
            self.keep(Kind::SessionGone, session, 0, 0, now.wall_ms, &[]);
        }
    }

    /// Keeps that a session's messages before this are purged; where the record stands.
    pub(super) fn keep_purge(&mut self, session: Epoch, seq: u64, now: Tick) -> Position {
        self.keep(Kind::Purge, session, seq, 0, now.wall_ms, &[])
    }

    /// Lets the oldest file of the log go once nothing in it is retained, and has it compacted where it pays; what of sessions and members
    /// only it holds is written again. True while there is more to look at.
    pub(super) fn let_files_go<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        let pending_bytes = self.pending_bytes();
        let Some(geometry) = self.log.geometry() else { return false };
        let Some(disk) = &mut self.disk else { return false };
        let [oldest, _, ..] = *disk.kept.make_contiguous() else { return false };
        if disk.failed.is_some() || self.stopping {
            return false;
        }
        let end = Position((oldest.number + 1) * geometry.segment_bytes);
        let mut survey = match disk.survey.take() {
            Some(survey) => survey,
            None if now.mono_ms() < disk.look_due_ms || disk.compaction.is_under_way() => return false,
            // Neither what is in it nor what was written again of it may be lost with the power.
            None if disk.synced_to < end.max(disk.rewritten_to) => {
                disk.look_due_ms = now.mono_ms() + LOOK_EVERY_MS;
                return false;
            }
            None => Survey::default(),
        };
        let rewrites = disk.rewrites_state;
        // The answer of the disk is the next turn.
        let rests = rewrites && pending_bytes >= PENDING_BYTES;
        let is_over = !rests && self.survey(&mut survey, end, rewrites, now);
        let rewritten_to = self.log.end();
        let Some(disk) = &mut self.disk else { return false };
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
            self.log.retain_from(end);
            io.delete_segment(oldest.number);
        }
        false
    }

    /// The next step of a survey of the oldest file, which ends at `end`; whether it is over.
    fn survey(&mut self, survey: &mut Survey, end: Position, rewrites: bool, now: Tick) -> bool {
        let (segment_bytes, gone) = (self.log.geometry().map_or(0, |geometry| geometry.segment_bytes), self.log.bound(end));
        let places = self.sessions.sessions.places();
        let step_end = survey.at.saturating_add(SURVEYED_PER_TURN).min(places);
        let mut rewritten = 0;
        while survey.at < step_end && rewritten < REWRITTEN_PER_TURN {
            let place = survey.at;
            survey.at += 1;
            let Some((key, session)) = self.sessions.sessions.at(place) else { continue };
            let (is_stale, members) = (session.kept_at < end, session.members.len() as u64);
            let Some(stream) = self.streams.get_mut(session.stream) else { continue };
            let cut = stream.index.trim_while(segment_bytes, stream.hidden(), |at| self.ages.is_aged(at));
            self.counters.dropped(DropReason::LogAge, cut);
            survey.retained_bytes += stream.index.bytes() + STATE_BYTES * (1 + members);
            if stream.index.holds_before(gone) && survey.holders.len() < SESSIONS_MAX {
                survey.holders.push(session.stream);
            }
            survey.is_stale |= is_stale;
            if is_stale && rewrites {
                self.keep_whole(key, now);
                rewritten += 1;
            }
        }
        survey.at >= places
    }

    /// How late a message may go by its age.
    pub(super) fn age_step_ms(&self) -> u64 {
        let age_ms = self.snapshot.settings.log.retention_age_s * 1000;
        // What was appended while there was no limit gets one when there is: to the minute.
        if age_ms == 0 { 60_000 } else { (age_ms / 256).max(1000) }
    }

    /// Whether the messages at these positions may go by their age together; so they may all where there is no limit.
    pub(super) fn age_together(&self, one: Position, other: Position) -> bool {
        self.snapshot.settings.log.retention_age_s == 0 || self.ages.together(one, other)
    }

    /// What is too old is known once a second; each session's [`Core::trim`] takes it out.
    pub(super) fn age_log(&mut self, now: Tick) {
        if now.mono_ms() < self.age_due_ms {
            return;
        }
        self.age_due_ms = now.mono_ms() + LOOK_EVERY_MS;
        let age_ms = self.snapshot.settings.log.retention_age_s * 1000;
        let (wall_ms, set_forward_ms) = self.age_clock.at(now.mono_ms(), now.wall_ms, self.ages.newest_ms());
        if let Some(ahead_ms) = set_forward_ms {
            tracing::warn!(
                shard = self.shard,
                ahead_ms,
                "the wall clock is far ahead of where it was: if it stays there, messages age by it in an hour"
            );
        }
        self.ages.age(if age_ms == 0 { 0 } else { wall_ms.saturating_sub(age_ms) });
    }

    /// Forgets what left the log's memory, or a session's own bounds.
    pub(super) fn trim(&mut self, key: StreamKey) {
        let settings = &self.snapshot.settings;
        let messages_max = match settings.log.retention_messages {
            0 => settings.session.history_messages,
            messages_max => messages_max,
        };
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.home.is_some() {
            // Its home says what is retained; this is only what is at hand of it.
            stream.index.trim(self.mirror_log.retained(), messages_max);
            return;
        }
        let segment_bytes = self.log.geometry().map_or(0, |geometry| geometry.segment_bytes);
        // What nobody has seen yet does not count, and does not go: a reader at rest would be woken behind it.
        let hidden = stream.hidden();
        let messages_max = if messages_max == 0 { 0 } else { messages_max.saturating_add(hidden) };
        let by_memory = stream.index.trim(self.log.retained(), 0);
        let by_age = stream.index.trim_while(segment_bytes, hidden, |at| self.ages.is_aged(at));
        let by_count = stream.index.trim(self.log.bound(Position(0)), messages_max);
        let by_bytes = stream.index.trim_bytes(cap(settings.log.retention_bytes), hidden.max(1));
        if by_memory + by_age + by_count + by_bytes > 0 {
            self.counters.dropped(DropReason::LogMemory, by_memory);
            self.counters.dropped(DropReason::LogAge, by_age);
            self.counters.dropped(DropReason::HistoryMessages, by_count);
            self.counters.dropped(DropReason::LogBytes, by_bytes);
        }
    }

    /// Keeps a session and all its members once more.
    pub(super) fn keep_whole(&mut self, key: SessionKey, now: Tick) {
        self.keep_session(key, now);
        let members = self.sessions.sessions.get(key).map(|session| session.members.clone()).unwrap_or_default();
        for member in members {
            self.keep_member(member, now);
        }
    }

    /// The chain value of the last record.
    #[must_use]
    pub fn log_chain(&self) -> u32 {
        self.log.chain()
    }

    /// A file of the log was deleted under it. What is in there can be read as long as this process runs, and nothing more is
    /// acknowledged that would be gone with it.
    pub(super) fn on_segment_lost(&mut self, number: u64) {
        let Some(disk) = &mut self.disk else { return };
        (disk.failed, disk.lost) = (Some(ENOENT), true);
        self.counters.log_failed.set(1);
        tracing::error!(
            shard = self.shard,
            segment = crate::log::segment_name(number),
            "a file of the log was deleted while it is in use: no more messages are taken; its content is lost when this process ends, so \
             copy it from /proc first, as docs/OPERATING.md says"
        );
        self.give_up();
    }

    /// Whether all that was appended is on disk, synced.
    #[must_use]
    pub fn log_is_whole(&self) -> bool {
        let end = self.log.end();
        self.disk.as_ref().is_some_and(|disk| disk.failed.is_none() && disk.sync_failed.is_none() && disk.synced_to >= end)
    }

    /// Whether the log has come to rest: everything appended is synced, or cannot be.
    pub(super) fn log_settled(&self) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.full.is_some() || disk.settled(self.log.end()))
    }

    pub(super) fn on_segment_gone(&mut self, number: u64, result: Result<(), i32>) {
        match result {
            Ok(()) => self.counters.log_segments.subtract(1),
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::warn!(shard = self.shard, segment = number, %error, "a file of the log that is no longer needed could not be deleted");
            }
        }
    }
}
