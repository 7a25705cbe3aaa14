//! Presence: what watchers are told of a member, and how often a member may set its data.
//!
//! Joins and leaves wait for a watcher in their order, all of them. Of a member's presence data only the newest waits: newer data
//! replaces it, and is behind everything that came meanwhile.
//!
//! Presence data is a frame for each watcher, to be made and sent: many of them in one turn would keep all other connections
//! waiting. So a turn tells few watchers, and the others are told in the next turns, with the data that is newest then.

use crate::protocol::{ErrorCode, Head, PresenceEvent, Refusal};
use crate::session::{MemberKey, Place, PresenceChange, Telling};
use crate::shard::across::links::Links;
use crate::shard::across::mesh::{Class, LaneMessage};
use crate::shard::connections::conn::Waiting;
use crate::shard::connections::rate::{Bucket, Rate};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::home::Home;
use crate::shard::outbound::replies::framed;
use crate::time::Tick;
use std::collections::VecDeque;

/// Watchers that are told of presence data in one turn. Few in tests, where few watch.
const TOLD_PER_TURN_MAX: usize = if cfg!(test) { 4 } else { 16 };
/// Watches that are examined for that: some are of a room, of the member itself, or of one that is away.
const LOOKS_PER_TURN_MAX: usize = if cfg!(test) { 8 } else { 1024 };

/// The rest of a turn's budget.
#[derive(Clone, Copy, Debug)]
struct Budget {
    told: usize,
    looks: usize,
    /// `true` if watchers on a shard whose lane is full are not told: data that waits there could not be replaced.
    spares_full_lanes: bool,
    is_lane_full: bool,
}

impl Budget {
    const TURN: Self = Self { told: TOLD_PER_TURN_MAX, looks: LOOKS_PER_TURN_MAX, spares_full_lanes: true, is_lane_full: false };
    const ALL: Self = Self { told: usize::MAX, looks: usize::MAX, spares_full_lanes: false, is_lane_full: false };

    /// Returns `true` if this turn has told or examined anybody.
    const fn is_used(&self) -> bool {
        self.looks < LOOKS_PER_TURN_MAX
    }
}

/// A member whose watchers are being told its newest data.
#[derive(Clone, Copy, Debug)]
struct Told {
    of: MemberKey,
    /// The number of the session's watches, from the first on, that are still to be examined. They are examined from the last one
    /// down, so that nobody is left out when others end their watches meanwhile.
    left: usize,
}

/// Members whose watchers are told in this turn and the next ones; each member is here once.
#[derive(Debug)]
pub(in crate::shard) struct Tellings {
    waiting: VecDeque<Told>,
    budget: Budget,
}

impl Default for Tellings {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), budget: Budget::TURN }
    }
}

impl Core {
    /// Refuses a presence update over the member's rate.
    pub(in crate::shard) fn refuse_telling(&mut self, place: Place, head: Head<'_>, wait_ms: u64) {
        self.cx.counters.limit_reached(LimitReached::PresenceRate);
        let limits = &self.cx.snapshot.settings.limits;
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

    /// Tells the watchers of a session, or of a room of it, about a change.
    pub(in crate::shard) fn tell_presence(&mut self, key: MemberKey, change: PresenceChange, room: Option<&str>) {
        if change == PresenceChange::Data {
            return self.tell_data(key);
        }
        self.finish_telling(key);
        let Some(member) = self.home.sessions.members.get(key) else { return };
        let Some(session) = self.home.sessions.sessions.get(member.session) else { return };
        if session.watchers.is_empty() || session.channel {
            return;
        }
        let stream = session.stream;
        let told: Vec<Place> = session
            .watchers
            .iter()
            .filter(|watcher| watcher.member != key && watcher.is_told(room))
            .filter_map(|watcher| self.home.sessions.members.get(watcher.member)?.place)
            .collect();
        let client_id = member.client_id.clone();
        let Some((session_id, after)) = self.home.streams.get(stream).map(|stream| (stream.session_id.clone(), stream.head()))
        else {
            return;
        };
        let event = match change {
            PresenceChange::Join => PresenceEvent::Join,
            PresenceChange::Leave => PresenceEvent::Leave,
            PresenceChange::Lost | PresenceChange::Data => PresenceEvent::Lost,
        };
        for place in told {
            let id = self.cx.event_id();
            let head = Head { id: &id, session_id: &session_id };
            self.reply_to(place, after, |out| crate::protocol::presence(out, head, &client_id, event, room));
        }
    }

    /// Begins to tell watchers a member's presence data: in this turn, as far as it may, then in the next ones.
    fn tell_data(&mut self, key: MemberKey) {
        let Some(left) = self.home.watches_of(key) else { return };
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        match member.telling {
            Telling::Done if left == 0 => {}
            Telling::Done => {
                member.telling = Telling::Waits;
                self.home.tellings.waiting.push_back(Told { of: key, left });
                self.tell_on();
            }
            Telling::Begun => member.telling = Telling::Again,
            // Waiting watchers will be told the newest data.
            Telling::Waits | Telling::Again => {}
        }
    }

    /// Continues to tell presence data, as far as a turn may. Returns whether there is more to do, and whether a full lane is the
    /// reason.
    pub(in crate::shard) fn serve_tellings(&mut self) -> (bool, bool) {
        if self.home.tellings.waiting.is_empty() && !self.home.tellings.budget.is_used() {
            return (false, false);
        }
        self.tell_on();
        let is_lane_full = std::mem::replace(&mut self.home.tellings.budget, Budget::TURN).is_lane_full;
        (!is_lane_full && !self.home.tellings.waiting.is_empty(), is_lane_full)
    }

    fn tell_on(&mut self) {
        let mut budget = self.home.tellings.budget;
        while budget.told > 0
            && budget.looks > 0
            && !budget.is_lane_full
            && let Some(mut telling) = self.home.tellings.waiting.pop_front()
        {
            self.tell_some(&mut telling, &mut budget);
            let again = self.home.watches_of(telling.of).unwrap_or(0);
            let Some(member) = self.home.sessions.members.get_mut(telling.of) else { continue };
            member.telling = match (telling.left, member.telling) {
                (0, Telling::Again) if again > 0 => {
                    telling.left = again;
                    Telling::Waits
                }
                (0, _) => Telling::Done,
                (_, Telling::Again) => Telling::Again,
                _ => Telling::Begun,
            };
            if telling.left > 0 {
                // Behind the others: if there are many watchers each turn tells some.
                self.home.tellings.waiting.push_back(telling);
            }
        }
        self.home.tellings.budget = budget;
    }

    /// Tells all watchers that are still to be told of a member's data: before they are told that it has gone, and before its
    /// data is purged.
    pub(in crate::shard) fn finish_telling(&mut self, key: MemberKey) {
        let telling = self.home.sessions.members.get(key).map_or(Telling::Done, |member| member.telling);
        if telling == Telling::Done {
            return;
        }
        let all = self.home.watches_of(key).unwrap_or(0);
        let place = self.home.tellings.waiting.iter().position(|told| told.of == key);
        if let Some(mut told) = place.and_then(|place| self.home.tellings.waiting.remove(place)) {
            if telling == Telling::Again {
                told.left = all;
            }
            self.tell_some(&mut told, &mut { Budget::ALL });
        }
        if let Some(member) = self.home.sessions.members.get_mut(key) {
            member.telling = Telling::Done;
        }
    }

    /// Tells watchers a member's newest data, as many as the budget allows.
    fn tell_some(&mut self, telling: &mut Told, budget: &mut Budget) {
        let key = telling.of;
        let member = self.home.sessions.members.get(key);
        let found = member.and_then(|member| Some((member, self.home.sessions.sessions.get(member.session)?)));
        let Some((member, session, stream)) =
            found.and_then(|(member, session)| Some((member, session, self.home.streams.get(session.stream)?)))
        else {
            telling.left = 0;
            return;
        };
        let mut told: Vec<Place> = Vec::new();
        telling.left = telling.left.min(session.watchers.len());
        while telling.left > 0 && budget.told > 0 && budget.looks > 0 {
            budget.looks -= 1;
            let watcher = &session.watchers[telling.left - 1];
            if watcher.member != key
                && watcher.is_told(None)
                && let Some(place) = self.home.sessions.members.get(watcher.member).and_then(|watcher| watcher.place)
            {
                if budget.spares_full_lanes && !self.links.has_lane_room(&self.cx, usize::from(place.shard)) {
                    budget.is_lane_full = true;
                    break;
                }
                told.push(place);
                budget.told -= 1;
            }
            telling.left -= 1;
        }
        if told.is_empty() {
            return;
        }
        let (client_id, data, after) = (member.client_id.clone(), member.presence.clone(), stream.head());
        let (session_id, id) = (stream.session_id.clone(), self.cx.event_id());
        let event = PresenceEvent::Data(data.as_deref().unwrap_or("null").as_bytes());
        let mut written = self.cx.buffers.take();
        framed(&mut written, |out| {
            crate::protocol::presence(out, Head { id: &id, session_id: &session_id }, &client_id, event, None);
        });
        for to in told {
            let mut frame = self.buffer_for(to);
            frame.extend_from_slice(&written);
            if to.shard == self.cx.shard_number() {
                self.put_data(to, after, key, frame);
            } else {
                self.send_reply(to, LaneMessage::Data { to, after, of: key, frame });
            }
        }
        self.cx.buffers.give(written);
    }

    /// Checks that each member whose watchers are still to be told is in the queue once.
    #[cfg(test)]
    pub(in crate::shard) fn inspect_tellings(&self, resting: bool) -> Result<(), String> {
        let waiting = &self.home.tellings.waiting;
        for (key, member) in self.home.sessions.members.iter() {
            let stands = waiting.iter().filter(|told| told.of == key).count();
            if stands != usize::from(member.telling != Telling::Done) {
                return Err(format!("{} waits {stands} times to be told of: {:?}", member.client_id, member.telling));
            }
        }
        if resting && !waiting.is_empty() && (0..self.links.mesh.shards()).all(|shard| self.links.has_lane_room(&self.cx, shard))
        {
            return Err(format!("{} members wait to be told of, and no turn comes", waiting.len()));
        }
        Ok(())
    }

    /// Queues a member's presence data behind everything that waits for a watcher. Older data of it that still waits there is
    /// dropped.
    pub(in crate::shard) fn put_data(&mut self, to: Place, after: u64, of: MemberKey, frame: Vec<u8>) {
        self.forget_data(to, of);
        self.connections.put_ordered(&mut self.cx, to, after, Waiting::Data { of, frame });
    }

    fn forget_data(&mut self, to: Place, of: MemberKey) {
        let Some(attachment) = self.connections.attachment_at(to) else { return };
        let is_of = |what: &Waiting| matches!(what, Waiting::Data { of: other, .. } if *other == of);
        let Some(at) = attachment.ordered.iter().rposition(|ordered| is_of(&ordered.what)) else { return };
        let (stream, Some(gone)) = (attachment.stream, attachment.ordered.remove(at)) else { return };
        self.cx.counters.dropped(DropReason::PresenceOutdated, 1);
        self.cx.counters.buffer_bytes.subtract(gone.memory_bytes() as u64);
        if let Some(conn) = self.connections.get_mut(to.conn) {
            conn.ordered_bytes = conn.ordered_bytes.saturating_sub(u32::try_from(gone.what.bytes()).unwrap_or(u32::MAX));
            conn.queued_frames = conn.queued_frames.saturating_sub(1);
        }
        match self.home.streams.get(stream).and_then(|stream| stream.home) {
            Some(home) => self.links.give_back(&mut self.cx, home, gone.what.into_buffer()),
            None => self.cx.buffers.give(gone.what.into_buffer()),
        }
    }
}

impl Home {
    /// Takes from a member's rate of presence updates. Returns the milliseconds that it must wait if there is no room.
    pub(in crate::shard) fn may_tell(&mut self, cx: &Context, key: MemberKey, now: Tick) -> Result<(), u64> {
        let limits = &cx.snapshot.settings.limits;
        let rate = Rate { per_second: limits.presence_per_second, burst: limits.presence_burst };
        let Some(member) = self.sessions.members.get_mut(key) else { return Ok(()) };
        let mut bucket = Bucket(member.presence_empty_ns);
        bucket.take(rate, 1, now.mono_ns)?;
        member.presence_empty_ns = bucket.0;
        Ok(())
    }

    /// The number of watches of a member's session.
    fn watches_of(&self, key: MemberKey) -> Option<usize> {
        let session = self.sessions.sessions.get(self.sessions.members.get(key)?.session)?;
        (!session.channel).then_some(session.watchers.len())
    }
}

impl Links {
    fn has_lane_room(&self, cx: &Context, to: usize) -> bool {
        to == cx.shard || self.mesh.has_room(cx.shard, to, Class::Control)
    }
}
