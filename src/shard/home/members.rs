//! A member's life at its session's home after it has attached: away, removed, and what others are told of it.

use crate::io::Io;
use crate::log::Position;
use crate::session::{Entitlements, MemberKey, Place, PresenceChange};
use crate::shard::across::mesh::LaneMessage;
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::home::Home;
use crate::shard::timers::Timer;
use crate::time::Tick;

/// Time until the removal of a member is tried again, if the log takes no record of it.
pub(in crate::shard) const GONE_RETRY_MS: u64 = 10_000;

impl Core {
    /// Handles that a member's connection is gone, or (`leave`) the member itself.
    pub(in crate::shard) fn member_left(&mut self, key: MemberKey, place: Place, clean: bool, leave: bool, now: Tick) {
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        if member.place != Some(place) {
            return;
        }
        member.place = None;
        member.away_since_ms = now.mono_ms().max(1);
        self.cx.counters.members_present.subtract(1);
        if leave || clean {
            member.told_lost = true;
            self.tell_presence(key, PresenceChange::Leave, None);
        }
        self.keep_place(key, now);
        self.set_member_timer(key);
    }

    /// Handles a member's timer: the grace, or the time unseen, may be over.
    pub(in crate::shard) fn on_member_timer(&mut self, key: MemberKey, now: Tick) {
        let now_ms = now.mono_ms();
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        let [first, second] = member.timers_ms;
        if first > now_ms {
            // The deadline that this timer was set for has moved.
            return;
        }
        member.timers_ms = [second, u64::MAX];
        let is_due = |core: &Self| core.home.member_due_ms(&core.cx, key).is_some_and(|due_ms| due_ms <= now_ms);
        if is_due(self) && self.home.sessions.members.get(key).is_some_and(|member| !member.told_lost) {
            self.tell_presence(key, PresenceChange::Lost, None);
            if let Some(member) = self.home.sessions.members.get_mut(key) {
                member.told_lost = true;
            }
            if !is_due(self) {
                self.keep_place(key, now);
            }
        }
        if !is_due(self) {
            return self.set_member_timer(key);
        }
        if self.home.is_kept(key) && self.storage.log_is_behind(&self.cx) {
            // The removal must be in the log before the client comes again as another member.
            if let Some(member) = self.home.sessions.members.get_mut(key) {
                let [first, _] = member.timers_ms;
                member.timers_ms = [now_ms + GONE_RETRY_MS, first];
            }
            self.timers.wheel.schedule(now_ms + GONE_RETRY_MS, Timer::Member(key));
            return;
        }
        self.forget_member(key, now);
    }

    /// Removes a member that is away. When its client comes back it is a newcomer.
    pub(in crate::shard) fn forget_member(&mut self, key: MemberKey, now: Tick) {
        if self.home.sessions.members.get(key).is_some_and(|member| !member.told_lost) {
            self.tell_presence(key, PresenceChange::Lost, None);
        }
        let is_kept = self.home.is_kept(key);
        self.forget_answers(key);
        let gone = self.home.sessions.remove_member(key);
        let session = gone.as_ref().and_then(|gone| self.home.sessions.sessions.get(gone.session));
        let session = session.map(|session| (session.hash, session.epoch_number));
        if let (Some(gone), Some(session), true) = (gone, session, is_kept) {
            self.storage.keep_member_gone(&self.cx, session, gone.entitlements.client, now);
        }
    }

    /// Sends an attachment, wherever it is, its member's current entitlements.
    pub(in crate::shard) fn publish_entitlements<I: Io>(&mut self, io: &mut I, key: MemberKey) {
        let Some(member) = self.home.sessions.members.get(key) else { return };
        let Some(place) = member.place else { return };
        let entitlements = member.entitlements.clone();
        self.storage.look_again(place);
        if place.shard == self.cx.shard_number() {
            self.connections.entitle(place, entitlements);
        } else {
            self.links.send_control(
                &self.cx,
                io,
                place.shard,
                LaneMessage::Entitle { to: place, entitlements: Box::new(entitlements) },
            );
        }
    }
}

impl Home {
    /// When the next timeout of a member is due, in monotonic milliseconds: others are told that it is lost, or it is removed.
    /// `None` while it is attached.
    pub(in crate::shard) fn member_due_ms(&self, cx: &Context, key: MemberKey) -> Option<u64> {
        let settings = cx.snapshot.settings.session;
        let member = self.sessions.members.get(key).filter(|member| member.away_since_ms > 0)?;
        let channel = self.sessions.sessions.get(member.session).is_some_and(|session| session.channel);
        let wait_ms = match member.told_lost {
            false => settings.presence_grace_ms,
            // A channel keeps no presence and addresses no member: a reader that is away for the grace is removed.
            true if channel => settings.presence_grace_ms,
            true => settings.member_unseen_ms.max(settings.presence_grace_ms),
        };
        Some((member.away_since_ms + wait_ms).saturating_sub(member.away_before_ms))
    }

    /// Returns `true` if the log has a member's state.
    pub(in crate::shard) fn is_kept(&self, key: MemberKey) -> bool {
        self.sessions.members.get(key).is_some_and(|member| member.kept_at > Position(0))
    }
}

impl Connections {
    pub(in crate::shard) fn entitle(&mut self, place: Place, entitlements: Entitlements) {
        if let Some(attachment) = self.attachment_at(place) {
            attachment.entitlements = entitlements;
        }
    }
}
