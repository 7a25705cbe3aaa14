//! Gauges of a member, of which only the latest value counts: presence data, receipt, roles; and, while the log takes no more,
//! whether it is connected. The log gets at most one record a second for each member, and none while it is behind. Members with
//! values to be logged wait in one queue, each at most once.

use super::facts::HeldCommand;
use crate::io::Io;
use crate::limits::{ANSWERS_WAITING_MAX, STATE_RECORD_BYTES_MAX};
use crate::log::{Kind, Level, Position, Receipt, Roles, Went};
use crate::protocol::{Envelope, ErrorCode, Failure, Head, error};
use crate::session::{Answer, Fact, MemberKey, Place, PresenceChange, SessionKey};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::durability::Storage;
use crate::shard::durability::disk::{RECORD_BYTES_MORE_MAX, STATE_FAILED};
use crate::shard::durability::state_records::away_since_ms;
use crate::shard::home::Home;
use crate::shard::inbound::backpressure::HOLDS_AT_BYTES;
use crate::shard::inbound::frames::RETRY_AFTER_MS;
use crate::shard::inbound::publish::TOO_MUCH;
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;
use std::collections::VecDeque;

/// Values to be logged, a bit each in a member's `owed`.
pub(in crate::shard) const PRESENCE: u8 = 1;
pub(in crate::shard) const RECEIPT: u8 = 2;
pub(in crate::shard) const ROLES: u8 = 4;
pub(in crate::shard) const PLACE: u8 = 8;
/// The member's whole state, and its session's: nothing of it is in the log, or not its rooms.
pub(in crate::shard) const WHOLE: u8 = 16;
/// The member is in the queue.
const QUEUED: u8 = 128;

/// Smallest time between two records of one member.
const EVERY_MS: u64 = 1000;
/// Members that one turn handles.
const PER_TURN: usize = 256;

/// Members with a value to be logged, or with a record less than a second ago.
#[derive(Debug, Default)]
pub(in crate::shard) struct Owed {
    /// The members with the time at which each is due, in this order.
    queue: VecDeque<(u64, MemberKey)>,
    /// Commands that wait for a record that is not appended yet, and their bytes.
    answers: usize,
    answers_bytes: u64,
    /// Nothing is handled before this time, because the log was behind.
    rests_until_ms: u64,
}

impl Owed {
    /// Memory of the waiting commands, and of the queue.
    pub(in crate::shard) fn bytes(&self) -> u64 {
        self.answers_bytes + (self.queue.len() * size_of::<(u64, MemberKey)>()) as u64
    }

    /// When the first member is due; `None` if there is none.
    pub(in crate::shard) fn due_ms(&self) -> Option<u64> {
        self.queue.front().map(|(due_ms, _)| (*due_ms).max(self.rests_until_ms))
    }
}

/// Largest size of a message in the log.
const fn record_bytes(envelope: &Envelope<'_>) -> usize {
    envelope.object.len() + RECORD_BYTES_MORE_MAX
}

fn memory_of(answer: &Answer) -> u64 {
    (size_of::<Answer>() + answer.id.len()) as u64
}

impl Core {
    /// Handles `rw.presence.set`: others are told at once; the answer is sent when a record of this value, or of a later one, is
    /// durable.
    pub(in crate::shard) fn set_presence<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        data: &[u8],
        now: Tick,
    ) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        if let Err(wait_ms) = self.home.may_tell(&self.cx, member, now) {
            return self.refuse_telling(place, head, wait_ms);
        }
        let (level, _) = self.place_in_order(member);
        if self.refuses_fact(io, place, level, envelope, now) {
            return;
        }
        let answers = self.home.sessions.members.get(member).and_then(|member| member.underway.as_ref());
        if answers.is_some_and(|underway| underway.answers.len() >= ANSWERS_WAITING_MAX) {
            self.cx.counters.limit_reached(LimitReached::PresenceAnswers);
            let message = "too many presence updates of this member wait for the log, which records one a second: send fewer, or wait for the answers";
            return self.refuse_command(place, envelope, (ErrorCode::LimitBackpressure, message), "");
        }
        if let Ok(data) = std::str::from_utf8(data) {
            self.home.sessions.apply(member, Fact::Presence(data));
        }
        self.tell_presence(member, PresenceChange::Data, None);
        if level == Level::Memory {
            self.owe(member, PRESENCE, now);
            let after = self.home.head_of(member);
            return self.reply_to(place, after, |out| crate::protocol::presence_ok(out, head));
        }
        let number = self.number_of(place);
        let answer = Answer { to: place, id: envelope.id.into(), number };
        if let Some(disk) = &mut self.storage.disk {
            disk.owed.answers += 1;
            disk.owed.answers_bytes += memory_of(&answer);
        }
        if let Some(member) = self.home.sessions.members.get_mut(member) {
            member.underway_mut().answers.push(answer);
        }
        self.owe(member, PRESENCE, now);
    }

    /// Handles `rw.received`.
    pub(in crate::shard) fn receive(&mut self, member: MemberKey, seq: u64, now: Tick) {
        if self.home.sessions.apply(member, Fact::Received(seq)).changed {
            self.owe(member, RECEIPT, now);
        }
    }

    /// Gives a member the roles of a new token, at once.
    pub(in crate::shard) fn give_roles(&mut self, member: MemberKey, roles: &[Box<str>], now: Tick) {
        if self.home.sessions.apply(member, Fact::Roles(roles)).changed {
            self.owe(member, ROLES, now);
        }
    }

    /// Notes that a value of a member is newer than the log's. It is logged now, or when the member is due.
    fn owe(&mut self, key: MemberKey, what: u8, now: Tick) {
        if self.storage.disk.is_none() {
            return;
        }
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        let is_queued = member.owed & QUEUED != 0;
        member.owed |= what | QUEUED;
        if is_queued {
            return;
        }
        if !self.storage.log_is_behind(&self.cx) {
            self.write_owed(key, now);
        }
        if let Some(disk) = &mut self.storage.disk {
            disk.owed.queue.push_back((now.mono_ms() + EVERY_MS, key));
        }
    }

    /// Logs that a member came or went, as soon as the log takes it.
    pub(in crate::shard) fn keep_place(&mut self, key: MemberKey, now: Tick) {
        let session = self.home.sessions.members.get(key).and_then(|member| self.home.sessions.sessions.get(member.session));
        // A channel's reader is forgotten when it goes; one that the log still has was attached when the process ended.
        if self.storage.disk.is_none() || session.is_none_or(|session| session.channel) {
            return;
        }
        if self.storage.log_is_behind(&self.cx) {
            return self.owe(key, PLACE, now);
        }
        if let Some(member) = self.home.sessions.members.get_mut(key) {
            member.owed |= PLACE;
        }
        self.write(key, PLACE, now);
    }

    /// Appends the values of a member that are to be logged.
    pub(in crate::shard) fn write_owed(&mut self, key: MemberKey, now: Tick) {
        if self.storage.disk.is_none() || self.storage.log_is_behind(&self.cx) {
            return;
        }
        self.write_whole(key, now);
        for what in [ROLES, PRESENCE, RECEIPT, PLACE] {
            self.write(key, what, now);
        }
        self.hold_answers(key);
    }

    /// Ensures that the log knows the member before further records about it.
    pub(in crate::shard) fn write_whole(&mut self, key: MemberKey, now: Tick) {
        let Some(member) = self.home.sessions.members.get_mut(key).filter(|member| member.owed & WHOLE != 0) else { return };
        member.owed &= QUEUED;
        let session = member.session;
        self.keep_session_first(session, now);
        self.keep_member(key, now);
        // The presence data is part of the state just written.
        self.hold_answers(key);
    }

    /// Ensures that the log knows the sender of a member's first message, whose ids count from now on and must be attributed
    /// after a restart: missing state is written before the message, or the message is refused.
    #[cold]
    pub(in crate::shard) fn name_sender(
        &mut self,
        session: SessionKey,
        member: MemberKey,
        envelope: &Envelope<'_>,
        now: Tick,
    ) -> Option<(ErrorCode, &'static str)> {
        // Ids of messages to a channel belong to its shard, whoever reads it.
        self.home.sessions.sessions.get(session).filter(|session| !session.channel)?;
        let refused = self.storage.log_refuses_record(
            &self.cx,
            self.level_of(session),
            record_bytes(envelope) + 2 * STATE_RECORD_BYTES_MAX,
        );
        if refused.is_none() {
            self.write_whole(member, now);
        }
        refused
    }

    /// Does the same for a channel that was made while the log was behind: its messages are its own, whoever sends them.
    pub(in crate::shard) fn name_session(
        &mut self,
        session: SessionKey,
        envelope: &Envelope<'_>,
        now: Tick,
    ) -> Option<(ErrorCode, &'static str)> {
        let is_kept = self.home.sessions.sessions.get(session).is_none_or(|session| session.kept_at > Position(0));
        if is_kept || self.storage.disk.is_none() || envelope.ephemeral {
            return None;
        }
        let refused =
            self.storage.log_refuses_record(&self.cx, self.level_of(session), record_bytes(envelope) + STATE_RECORD_BYTES_MAX);
        if refused.is_none() {
            self.keep_session_first(session, now);
        }
        refused
    }

    /// Handles the purge of a member's presence data: the log has the member's state without it, and commands that wait for its
    /// record wait for that of the purge.
    pub(in crate::shard) fn keep_bare(&mut self, key: MemberKey, now: Tick) {
        let Some(member) = self.home.sessions.members.get_mut(key).filter(|_| self.storage.disk.is_some()) else { return };
        member.owed &= !PRESENCE;
        if member.owed & WHOLE == 0 {
            self.keep_member(key, now);
        }
        self.hold_answers(key);
    }

    /// Handles the end of a member's connection: commands that wait for the end of a second, or for the log, are answered before.
    pub(in crate::shard) fn flush_answers(&mut self, key: MemberKey, place: Place, now: Tick) {
        let member = self.home.sessions.members.get(key).filter(|member| member.place == Some(place));
        if member.and_then(|member| member.underway.as_ref()).is_some_and(|underway| !underway.answers.is_empty()) {
            self.write_owed(key, now);
            self.refuse_answers(key);
        }
    }

    /// Logs a new member, or one that is in rooms by its hello, now or as soon as the log takes it.
    pub(in crate::shard) fn keep_new(&mut self, key: MemberKey, now: Tick) {
        if self.storage.disk.is_none() {
            return;
        }
        if self.storage.log_is_behind(&self.cx) {
            return self.owe(key, WHOLE, now);
        }
        if let Some(member) = self.home.sessions.members.get_mut(key) {
            member.owed |= WHOLE;
        }
        self.write_whole(key, now);
    }

    fn write(&mut self, key: MemberKey, what: u8, now: Tick) {
        let Some(member) = self.home.sessions.members.get_mut(key).filter(|member| member.owed & what != 0) else { return };
        member.owed &= !what;
        match what {
            PRESENCE => self.keep_presence(key, now),
            RECEIPT => self.keep_fact(key, Kind::Receipt, now, |member, out| {
                Receipt { received_seq: member.received_seq }.encode(out);
                Ok(())
            }),
            ROLES => self.keep_fact(key, Kind::Roles, now, |member, out| {
                Roles { roles: member.roles.iter().map(|role| &**role).collect() }.encode(out)
            }),
            _ if member.place.is_some() => self.keep_fact(key, Kind::Came, now, |_, _| Ok(())),
            _ => self.keep_fact(key, Kind::Went, now, |member, out| {
                Went { told_lost: member.told_lost, since_ms: away_since_ms(member, now) }.encode(out);
                Ok(())
            }),
        };
    }

    fn take_answers(&mut self, key: MemberKey) -> Vec<Answer> {
        let Some(underway) = self.home.sessions.members.get_mut(key).and_then(|member| member.underway.as_mut()) else {
            return Vec::new();
        };
        let answers = std::mem::take(&mut underway.answers);
        if let Some(disk) = &mut self.storage.disk {
            disk.owed.answers -= answers.len();
            disk.owed.answers_bytes -= answers.iter().map(memory_of).sum::<u64>();
        }
        answers
    }

    /// Notes that a member's presence data was appended: the answers wait for that record.
    fn hold_answers(&mut self, key: MemberKey) {
        let (level, after) = self.place_in_order(key);
        if self.storage.log_has_failed(level) {
            return self.refuse_answers(key);
        }
        let answers = self.take_answers(key);
        if answers.is_empty() {
            return;
        }
        let (session_id, end) = (self.home.session_id_of(key), self.storage.log.end());
        for answer in answers {
            let head = Head { id: &answer.id, session_id: &session_id };
            if let Some(member) = self.home.sessions.members.get_mut(key) {
                member.underway_mut().held += 1;
            }
            let held = HeldCommand { member: key, after, detaches: false };
            self.storage.hold_command(held, level, answer.to, end, |out| crate::protocol::presence_ok(out, head));
        }
    }

    /// Refuses commands that wait for a record which the log does not take now.
    pub(in crate::shard) fn refuse_answers(&mut self, key: MemberKey) {
        let (level, _) = self.place_in_order(key);
        let answers = self.take_answers(key);
        if let Some(member) = self.home.sessions.members.get_mut(key) {
            member.tidy();
        }
        if answers.is_empty() {
            return;
        }
        let session_id = self.home.session_id_of(key);
        let (code, message) = if self.storage.log_has_failed(level) {
            (ErrorCode::LimitDisk, STATE_FAILED)
        } else {
            (ErrorCode::LimitBackpressure, TOO_MUCH)
        };
        for answer in answers {
            let head = Head { id: &answer.id, session_id: &session_id };
            let frame = Some(answer.number).filter(|number| *number > 0);
            let retry_after_ms = Some(RETRY_AFTER_MS);
            self.cx.counters.refused.increment();
            self.reply_to(answer.to, AT_ONCE, |out| {
                error(out, &Failure { head, code, message, retry_after_ms, pointer: None, frame });
            });
        }
    }

    /// Returns `true` if the log lacks a value of any member.
    pub(in crate::shard) fn is_anything_owed(&self) -> bool {
        let owes = |key: &MemberKey| self.home.sessions.members.get(*key).is_some_and(|member| member.owed & !QUEUED != 0);
        self.storage.disk.as_ref().is_some_and(|disk| disk.owed.queue.iter().any(|(_, key)| owes(key)))
    }

    /// Appends the values of the members that are due. Returns `true` if there is more to do at once.
    pub(in crate::shard) fn write_all_owed(&mut self, now: Tick) -> bool {
        let stopping = self.life.stopping;
        for _ in 0..PER_TURN {
            let Some(owed) = self.storage.disk.as_mut().map(|disk| &mut disk.owed) else { return false };
            let Some((due_ms, key)) = owed.queue.front().copied() else { return false };
            if !stopping && now.mono_ms() < due_ms.max(owed.rests_until_ms) {
                return false;
            }
            if self.storage.log_is_behind(&self.cx) {
                self.rest_owed(now);
                return false;
            }
            let Some(disk) = &mut self.storage.disk else { return false };
            disk.owed.queue.pop_front();
            let Some(member) = self.home.sessions.members.get_mut(key) else { continue };
            member.owed &= !QUEUED;
            if member.owed == 0 {
                continue;
            }
            member.owed |= QUEUED;
            self.write_owed(key, now);
            if let Some(disk) = &mut self.storage.disk {
                disk.owed.queue.push_back((now.mono_ms() + EVERY_MS, key));
            }
        }
        true
    }

    /// Pauses, because the log is behind: nothing more is appended for a while, and waiting commands are refused.
    fn rest_owed(&mut self, now: Tick) {
        let Some(disk) = &mut self.storage.disk else { return };
        disk.owed.rests_until_ms = now.mono_ms() + EVERY_MS;
        if disk.owed.answers == 0 {
            return;
        }
        let due: Vec<MemberKey> =
            disk.owed.queue.iter().take_while(|(due_ms, _)| *due_ms <= now.mono_ms()).map(|(_, key)| *key).collect();
        for key in due {
            self.refuse_answers(key);
        }
    }

    /// Checks the queue's state against the members'.
    #[cfg(test)]
    pub(in crate::shard) fn inspect_owed(&self) -> Result<(), String> {
        let Some(owed) = self.storage.disk.as_ref().map(|disk| &disk.owed) else { return Ok(()) };
        let mut queued = std::collections::BTreeMap::new();
        owed.queue.iter().for_each(|(_, key)| *queued.entry(key.pack()).or_insert(0) += 1);
        let (mut answers, mut bytes) = (0, 0);
        for (key, member) in self.home.sessions.members.iter() {
            let (client, places) = (&member.client_id, queued.get(&key.pack()).copied().unwrap_or(0));
            if places != usize::from(member.owed & QUEUED != 0) {
                return Err(format!("{client}: {places} places in the queue, owed {:#b}", member.owed));
            }
            let underway = member.underway.iter().flat_map(|underway| &underway.answers);
            let count = underway.clone().count();
            if count > ANSWERS_WAITING_MAX || count > 0 && member.owed & PRESENCE == 0 {
                return Err(format!("{client}: {count} answers wait, owed {:#b}", member.owed));
            }
            answers += count;
            bytes += underway.map(memory_of).sum::<u64>();
        }
        if (answers, bytes) != (owed.answers, owed.answers_bytes) {
            return Err(format!("{answers} answers of {bytes} bytes wait, counted {} of {}", owed.answers, owed.answers_bytes));
        }
        Ok(())
    }

    /// Forgets a member that was removed: nothing is to be logged of it.
    pub(in crate::shard) fn forget_answers(&mut self, key: MemberKey) {
        drop(self.take_answers(key));
    }
}

impl Storage {
    /// Returns `true` if the log is so far behind, or so full, that only urgent records are appended.
    pub(in crate::shard) fn log_is_behind(&self, cx: &Context) -> bool {
        let Some(disk) = &self.disk else { return false };
        disk.failed.is_some()
            || self.pending_bytes(cx) >= HOLDS_AT_BYTES
            || self.has_no_room(disk, Level::Written, STATE_RECORD_BYTES_MAX)
    }
}

impl Home {
    fn session_id_of(&self, key: MemberKey) -> Box<str> {
        let session = self.sessions.members.get(key).and_then(|member| self.sessions.sessions.get(member.session));
        session.and_then(|session| self.streams.get(session.stream)).map_or_else(Box::default, |stream| stream.session_id.clone())
    }
}
