//! Presence: what watchers are told of a member, and how often it may tell of itself.
//!
//! Comings and goings wait for a watcher in their order, all of them. Of what a member tells of itself the newest waits: what was there
//! of it before goes, and the new is behind all that came meanwhile.

use super::conn::Waiting;
use super::core::Core;
use super::counters::{DropReason, LimitReached};
use super::lanes::LaneMessage;
use super::rate::{Bucket, Rate};
use crate::protocol::{ErrorCode, Head, PresenceEvent, Refusal};
use crate::session::{MemberKey, Place, PresenceChange};
use crate::time::Tick;
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;

impl Core {
    /// Takes one of the times that a member may tell of itself, or says how long it is to wait, in milliseconds.
    pub(super) fn may_tell(&mut self, key: MemberKey, now: Tick) -> Result<(), u64> {
        let limits = &self.snapshot.settings.limits;
        let rate = Rate { per_second: limits.presence_per_second, burst: limits.presence_burst };
        let Some(member) = self.sessions.members.get_mut(key) else { return Ok(()) };
        let mut bucket = Bucket(member.presence_empty_ns);
        bucket.take(rate, 1, now.mono_ns)?;
        member.presence_empty_ns = bucket.0;
        Ok(())
    }

    /// Tells a member that it tells of itself too often.
    pub(super) fn refuse_telling(&mut self, place: Place, head: Head<'_>, wait_ms: u64) {
        self.counters.limit_reached(LimitReached::PresenceRate);
        let limits = &self.snapshot.settings.limits;
        let message = format!(
            "rw.presence.set comes too often: a member may send {} a second (limits.presence_per_second), {} at once: send the newest \
             after retry_after_ms",
            limits.presence_per_second, limits.presence_burst
        );
        let refusal = Refusal {
            id: head.id.into(),
            session_id: head.session_id.into(),
            code: ErrorCode::LimitRate,
            message: message.into(),
            pointer: "".into(),
            retry_after_ms: Some(wait_ms),
        };
        self.refuse_at(place, &refusal);
    }

    /// Tells the watchers of a session, or of a room of it.
    pub(super) fn tell_presence(&mut self, key: MemberKey, change: PresenceChange, room: Option<&str>) {
        let Some(member) = self.sessions.members.get(key) else { return };
        let Some(session) = self.sessions.sessions.get(member.session) else { return };
        if session.watchers.is_empty() || session.channel {
            return;
        }
        let stream = session.stream;
        let told: Vec<Place> = session
            .watchers
            .iter()
            .filter(|watcher| watcher.member != key && watcher.is_told(room))
            .filter_map(|watcher| self.sessions.members.get(watcher.member)?.place)
            .collect();
        let (client_id, data) = (member.client_id.clone(), member.presence.clone());
        let Some((session_id, after)) = self.streams.get(stream).map(|stream| (stream.session_id.clone(), stream.head())) else {
            return;
        };
        let event = match change {
            PresenceChange::Join => PresenceEvent::Join,
            PresenceChange::Leave => PresenceEvent::Leave,
            PresenceChange::Lost => PresenceEvent::Lost,
            PresenceChange::Data => PresenceEvent::Data(data.as_deref().unwrap_or("null").as_bytes()),
        };
        for place in told {
            let id = self.event_id();
            let head = Head { id: &id, session_id: &session_id };
            let write = |out: &mut Vec<u8>| crate::protocol::presence(out, head, &client_id, event, room);
            if change == PresenceChange::Data {
                self.tell_data(place, after, key, write);
            } else {
                self.reply_to(place, after, write);
            }
        }
    }

    /// Tells a watcher, wherever it is, what a member tells of itself.
    fn tell_data(&mut self, to: Place, after: u64, of: MemberKey, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = self.buffer_for(to);
        let open = OpenFrame::begin(&mut frame);
        write(&mut frame);
        open.finish(Opcode::Text, &mut frame);
        if to.shard == self.shard_number() {
            self.put_data(to, after, of, frame);
        } else {
            self.send_reply(to, LaneMessage::Data { to, after, of, frame });
        }
    }

    /// Puts what a member tells of itself behind all that waits for a watcher. What it told before and still waits there goes.
    pub(super) fn put_data(&mut self, to: Place, after: u64, of: MemberKey, frame: Vec<u8>) {
        self.forget_data(to, of);
        self.put_ordered(to, after, Waiting::Data { of, frame });
    }

    fn forget_data(&mut self, to: Place, of: MemberKey) {
        let Some(attachment) = self.attachment_at(to) else { return };
        let is_of = |what: &Waiting| matches!(what, Waiting::Data { of: other, .. } if *other == of);
        let Some(at) = attachment.ordered.iter().rposition(|ordered| is_of(&ordered.what)) else { return };
        let (stream, Some(gone)) = (attachment.stream, attachment.ordered.remove(at)) else { return };
        self.counters.dropped(DropReason::PresenceOutdated, 1);
        self.counters.buffer_bytes.subtract(gone.memory_bytes() as u64);
        if let Some(conn) = self.conn_mut(to.conn) {
            conn.ordered_bytes = conn.ordered_bytes.saturating_sub(u32::try_from(gone.what.bytes()).unwrap_or(u32::MAX));
            conn.queued_frames = conn.queued_frames.saturating_sub(1);
        }
        match self.streams.get(stream).and_then(|stream| stream.home) {
            Some(home) => self.give_back(home, gone.what.into_buffer()),
            None => self.buffers.give(gone.what.into_buffer()),
        }
    }
}
