//! Facts that clients decide in a session, and the commands that wait for them. An entry into a room, or a departure, is one
//! small record and follows the path of a message (rate, backpressure, disk). It takes effect, and is answered, once its record
//! is as durable as the session asks.

use super::gauges::WHOLE;
use crate::io::Io;
use crate::limits::STATE_RECORD_BYTES_MAX;
use crate::log::{Joined, Kind, Left, Level, Position};
use crate::protocol::{Envelope, ErrorCode, Failure, Head, error};
use crate::session::{Applied, MemberKey, Move, Place, PresenceChange, StreamKey};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::durability::disk::STATE_FAILED;
use crate::shard::home::Home;
use crate::shard::inbound::publish::TOO_MUCH;
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;

/// The action, and its answer, that wait for a record to be durable.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct HeldCommand {
    pub(in crate::shard) member: MemberKey,
    /// The answer's place in the order.
    pub(in crate::shard) after: u64,
    /// `true` if the member is detached with it.
    pub(in crate::shard) detaches: bool,
}

impl Core {
    /// The level of a member's session, and the newest seq appended there.
    pub(in crate::shard) fn place_in_order(&self, member: MemberKey) -> (Level, u64) {
        let session = self.home.sessions.members.get(member).map(|member| member.session);
        let Some(session) = session else { return (Level::Memory, 0) };
        let stream = self.home.stream_of(member).and_then(|stream| self.home.streams.get(stream));
        (self.level_of(session), stream.map_or(0, |stream| stream.index.head()))
    }

    /// Checks that a member's command may have a record. Returns the refusal if not.
    fn takes_fact<I: Io>(&mut self, io: &mut I, place: Place, level: Level, now: Tick) -> Result<(), (ErrorCode, &'static str)> {
        if let Some(refused) = self.storage.log_refuses_record(&self.cx, level, STATE_RECORD_BYTES_MAX) {
            return Err(refused);
        }
        if self.storage.disk.is_some() && !self.takes(io, place, now) {
            return Err((ErrorCode::LimitBackpressure, TOO_MUCH));
        }
        if self.storage.held_bytes(&self.cx) > self.cx.snapshot.settings.limits.shard_memory_bytes as u64 {
            self.cx.counters.limit_reached(LimitReached::ShardMemory);
            return Err((ErrorCode::LimitBackpressure, TOO_MUCH));
        }
        Ok(())
    }

    /// Returns `true` if a member's command may not have a record; its client was told.
    pub(in crate::shard) fn refuses_fact<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        level: Level,
        envelope: &Envelope<'_>,
        now: Tick,
    ) -> bool {
        let refused = self.takes_fact(io, place, level, now);
        if let Err((code, message)) = refused {
            self.refuse_command(place, envelope, (code, message), "");
        }
        refused.is_err()
    }

    /// Handles `rw.join`: `rw.joined` names the place in the order from which on the room's messages are the client's.
    pub(in crate::shard) fn join<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        room: &str,
        now: Tick,
    ) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        // A repeat is answered like the first one.
        if let Some(from) = self.home.sessions.stay(member, room) {
            let seq = from.saturating_sub(1);
            return self.repeat(io, place, member, envelope, now, |out| crate::protocol::joined(out, head, room, seq));
        }
        if let Err(no_room) = self.home.room_for_rooms(&self.cx, Some(member), &[room]) {
            return self.refuse_command(place, envelope, no_room, "/payload/room");
        }
        let (level, seq) = self.place_in_order(member);
        if self.refuses_fact(io, place, level, envelope, now) {
            return;
        }
        let end = self.keep_fact(member, Kind::Joined, now, |_, out| Joined { room, from: seq + 1 }.encode(out));
        self.home.promise(member, Move { room: room.into(), seq: seq + 1, joins: true, end });
        let held = HeldCommand { member, after: seq, detaches: false };
        self.answer_when_durable(io, held, level, place, end, now, |out| crate::protocol::joined(out, head, room, seq));
    }

    /// Handles `rw.leave`: earlier messages of the room are still the client's.
    pub(in crate::shard) fn leave<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        room: &str,
        now: Tick,
    ) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        if self.home.sessions.stay(member, room).is_none() {
            return self.repeat(io, place, member, envelope, now, |out| crate::protocol::left(out, head, room));
        }
        let (level, seq) = self.place_in_order(member);
        if self.refuses_fact(io, place, level, envelope, now) {
            return;
        }
        let end = self.keep_fact(member, Kind::Left, now, |_, out| Left { room, to: seq }.encode(out));
        self.home.promise(member, Move { room: room.into(), seq, joins: false, end });
        let held = HeldCommand { member, after: seq, detaches: false };
        self.answer_when_durable(io, held, level, place, end, now, |out| crate::protocol::left(out, head, room));
    }

    /// Answers a command that changes nothing, not before the client's earlier actions are durable: commands, or rooms of a
    /// hello, whose welcome does not wait for the disk.
    fn repeat<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        now: Tick,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let (level, seq) = self.place_in_order(member);
        if self.is_all_durable(member, level) {
            let after = self.home.head_of(member);
            return self.reply_to(place, after, write);
        }
        // The same rules as for a new command: the queue is bounded, and a failed disk answers nothing.
        if self.refuses_fact(io, place, level, envelope, now) {
            return;
        }
        self.write_whole(member, now);
        let held = HeldCommand { member, after: seq, detaches: false };
        self.answer_when_durable(io, held, level, place, self.storage.log.end(), now, write);
    }

    /// Returns `true` if all of a member's actions are as durable as they should be.
    fn is_all_durable(&self, member: MemberKey, level: Level) -> bool {
        let Some(member) = self.home.sessions.members.get(member) else { return true };
        // With early delivery a fact takes effect before it is durable.
        let waits = member.underway.as_ref().is_some_and(|underway| !underway.moves.is_empty() || underway.held > 0);
        !waits && (level == Level::Memory || member.owed & WHOLE == 0 && self.storage.pending_to(level) == 0)
    }

    /// Handles `rw.detach`: the member is away once its earlier commands are answered.
    pub(in crate::shard) fn detach<I: Io>(&mut self, io: &mut I, place: Place, member: MemberKey, head: Head<'_>, now: Tick) {
        // Values that wait for the end of their second are written now.
        self.write_owed(member, now);
        self.refuse_answers(member);
        let write = |out: &mut Vec<u8>| crate::protocol::detached(out, head);
        let (level, seq) = self.place_in_order(member);
        let waits = self.home.sessions.members.get(member).and_then(|member| member.underway.as_ref());
        let is_held = waits.is_some_and(|underway| underway.held > 0);
        let (level, after) = if is_held { (level, seq) } else { (Level::Memory, self.home.head_of(member)) };
        let held = HeldCommand { member, after, detaches: true };
        let end = self.storage.last_held(level);
        self.answer_when_durable(io, held, level, place, end, now, write);
    }

    /// Completes and answers a command whose record ends at `end`: at once, or when that is durable at its level.
    #[expect(clippy::too_many_arguments, reason = "whose answer waits for what, where it goes, and what it is")]
    pub(in crate::shard) fn answer_when_durable<I: Io>(
        &mut self,
        io: &mut I,
        held: HeldCommand,
        level: Level,
        place: Place,
        end: Position,
        now: Tick,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if level == Level::Memory {
            let mut frame = self.buffer_for(place);
            crate::shard::outbound::replies::framed(&mut frame, write);
            return self.conclude_command(io, held, place, Position(u64::MAX), frame, now);
        }
        // With early delivery, the fact takes effect early, too.
        if self.cx.snapshot.settings.log.early_delivery && self.settle_early(held.member) {
            self.publish_entitlements(io, held.member);
        }
        if let Some(member) = self.home.sessions.members.get_mut(held.member) {
            member.underway_mut().held += 1;
        }
        self.storage.hold_command(held, level, place, end, write);
    }

    /// Completes a command whose record, and everything before `limit`, is durable.
    pub(in crate::shard) fn command_is_durable<I: Io>(
        &mut self,
        io: &mut I,
        held: HeldCommand,
        place: Place,
        limit: Position,
        frame: &[u8],
        now: Tick,
    ) {
        if let Some(underway) = self.home.sessions.members.get_mut(held.member).and_then(|member| member.underway.as_mut()) {
            underway.held = underway.held.saturating_sub(1);
        }
        let mut bytes = self.buffer_for(place);
        bytes.extend_from_slice(frame);
        self.conclude_command(io, held, place, limit, bytes, now);
    }

    fn conclude_command<I: Io>(
        &mut self,
        io: &mut I,
        held: HeldCommand,
        place: Place,
        limit: Position,
        frame: Vec<u8>,
        now: Tick,
    ) {
        let changed = self.settle_moves(held.member, limit);
        if let Some(member) = self.home.sessions.members.get_mut(held.member) {
            member.tidy();
        }
        if changed {
            self.publish_entitlements(io, held.member);
        }
        if held.detaches {
            self.member_left(held.member, place, true, true, now);
            self.storage.look_again(place);
            return self.detach_behind_history(place, held.after, frame);
        }
        self.send_frame(place, held.after, frame);
    }

    /// Applies a member's moves whose records end at `limit` at the latest, and tells others. Returns `true` if any of them
    /// changed the member.
    pub(in crate::shard) fn settle_moves(&mut self, member: MemberKey, limit: Position) -> bool {
        let mut changed = false;
        while let Some((each, applied)) = self.home.sessions.settle_move(member, limit) {
            self.cx.note_forgotten(applied);
            if applied.changed {
                let change = if each.joins { PresenceChange::Join } else { PresenceChange::Leave };
                self.tell_presence(member, change, Some(&each.room));
            }
            changed |= applied.changed;
        }
        changed
    }

    /// Applies all moves of a member before their records are durable. Returns `true` if any of them changed it.
    pub(in crate::shard) fn settle_early(&mut self, member: MemberKey) -> bool {
        let changed = self.settle_moves(member, Position(u64::MAX));
        if changed && let Some(stream) = self.home.stream_of(member).and_then(|stream| self.home.streams.get_mut(stream)) {
            // Messages before a departure that are hidden still are for it, too.
            stream.everyone_to = stream.index.head();
        }
        changed
    }

    /// Refuses a command that waited for a failed disk: nothing of it takes effect, and its client is told. A departure has taken
    /// place all the same.
    pub(in crate::shard) fn give_up_command(
        &mut self,
        held: HeldCommand,
        place: Place,
        frame: &[u8],
        head: Option<Head<'_>>,
        now: Tick,
    ) {
        if let Some(member) = self.home.sessions.members.get_mut(held.member)
            && let Some(underway) = &mut member.underway
        {
            underway.held = underway.held.saturating_sub(1);
            underway.moves.clear();
            member.tidy();
        }
        if held.detaches {
            // Records that the failed disk hides are never shown: the answer does not wait for their places.
            let stream = self.home.stream_of(held.member).and_then(|stream| self.home.streams.get(stream));
            let after = stream.map_or(held.after, |stream| held.after.min(stream.head()));
            self.member_left(held.member, place, true, true, now);
            self.storage.look_again(place);
            let mut bytes = self.buffer_for(place);
            bytes.extend_from_slice(frame);
            return self.detach_behind_history(place, after, bytes);
        }
        let Some(head) = head else { return };
        let (code, retry_after_ms) = (ErrorCode::LimitDisk, Some(crate::shard::inbound::frames::RETRY_AFTER_MS));
        self.cx.counters.refused.increment();
        self.reply_to(place, AT_ONCE, |out| {
            error(out, &Failure { head, code, message: STATE_FAILED, retry_after_ms, pointer: None, frame: None });
        });
    }
}

impl Home {
    /// The stream of a member's session; `None` if the member has been removed.
    fn stream_of(&self, member: MemberKey) -> Option<StreamKey> {
        let session = self.sessions.members.get(member)?.session;
        Some(self.sessions.sessions.get(session)?.stream)
    }

    fn promise(&mut self, member: MemberKey, each: Move) {
        if let Some(member) = self.sessions.members.get_mut(member) {
            member.underway_mut().moves.push_back(each);
        }
    }
}

impl Context {
    pub(in crate::shard) fn note_forgotten(&self, applied: Applied) {
        if applied.forgotten > 0 {
            self.counters.limit_reached(LimitReached::EndedStays);
            self.counters.dropped(DropReason::StayForgotten, applied.forgotten);
        }
    }
}
