//! A member's life at its session's home after it came in: away, gone, and what others are told of it.

use super::core::{Core, Timer};
use super::lanes::LaneMessage;
use crate::io::Io;
use crate::protocol::Head;
use crate::session::{Entitlements, MemberKey, Place, PresenceChange};
use crate::time::Tick;

impl Core {
    /// A member's connection is gone, or (`leave`) the member itself.
    pub(super) fn member_left(&mut self, key: MemberKey, place: Place, clean: bool, leave: bool, now: Tick) {
        let grace_ms = self.snapshot.settings.session.presence_grace_ms;
        let Some(member) = self.sessions.members.get_mut(key) else { return };
        if member.place != Some(place) {
            return;
        }
        member.place = None;
        member.away_since_ms = now.mono_ms().max(1);
        self.counters.members_present.subtract(1);
        if leave || clean {
            member.told_lost = true;
            self.tell_presence(key, PresenceChange::Leave, None);
        }
        self.keep_member(key, now);
        self.wheel.schedule(now.mono_ms() + grace_ms, Timer::Member(key));
    }

    /// The grace, or the time unseen, of a member is over.
    pub(super) fn on_member_timer(&mut self, key: MemberKey, now: Tick) {
        let settings = self.snapshot.settings.session;
        let now_ms = now.mono_ms();
        let Some(member) = self.sessions.members.get_mut(key) else { return };
        if member.unseen_due_ms <= now_ms {
            member.unseen_due_ms = 0;
        }
        if member.away_since_ms == 0 {
            return;
        }
        let away_ms = member.away_ms(now_ms);
        let channel = self.sessions.sessions.get(member.session).is_some_and(|session| session.channel);
        // A channel keeps no presence and addresses no member: a reader that is away for the grace is none.
        let unseen_ms = if channel { settings.presence_grace_ms } else { settings.member_unseen_ms };
        if away_ms < settings.presence_grace_ms {
            return;
        }
        if !std::mem::replace(&mut member.told_lost, true) {
            self.tell_presence(key, PresenceChange::Lost, None);
            self.keep_member(key, now);
        }
        if away_ms >= unseen_ms {
            let gone = self.sessions.remove_member(key);
            let session = gone.as_ref().and_then(|gone| self.sessions.sessions.get(gone.session));
            let session = session.map(|session| (session.hash, session.epoch_number));
            if let (Some(gone), Some(session)) = (gone, session) {
                self.keep_member_gone(session, gone.entitlements.client, now);
            }
            return;
        }
        // One of an earlier absence comes sooner, and looks again.
        if let Some(member) = self.sessions.members.get_mut(key).filter(|member| member.unseen_due_ms == 0) {
            member.unseen_due_ms = now_ms + unseen_ms - away_ms;
            self.wheel.schedule(member.unseen_due_ms, Timer::Member(key));
        }
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
            PresenceChange::Join => crate::protocol::PresenceEvent::Join,
            PresenceChange::Leave => crate::protocol::PresenceEvent::Leave,
            PresenceChange::Lost => crate::protocol::PresenceEvent::Lost,
            PresenceChange::Data => crate::protocol::PresenceEvent::Data(data.as_deref().unwrap_or("null").as_bytes()),
        };
        for place in told {
            let id = self.event_id();
            let head = Head { id: &id, session_id: &session_id };
            self.reply_to(place, after, |out| crate::protocol::presence(out, head, &client_id, event, room));
        }
    }

    /// Gives an attachment the entitlements its member has now, wherever it is.
    pub(super) fn publish_entitlements<I: Io>(&mut self, io: &mut I, key: MemberKey) {
        let Some(member) = self.sessions.members.get(key) else { return };
        let Some(place) = member.place else { return };
        let entitlements = member.entitlements.clone();
        if place.shard == self.shard_number() {
            self.entitle(place, entitlements);
        } else {
            self.send_control(io, place.shard, LaneMessage::Entitle { to: place, entitlements: Box::new(entitlements) });
        }
    }

    pub(super) fn entitle(&mut self, place: Place, entitlements: Entitlements) {
        if let Some(attachment) = self.attachment_at(place) {
            attachment.entitlements = entitlements;
        }
    }
}
