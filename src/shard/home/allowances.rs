//! Bounds on the table entries that one user may create on a shard. Each is checked before anything is created for a command, so
//! that a refused one leaves nothing behind; and entries are created in one place, whatever the command was.

use crate::protocol::ErrorCode;
use crate::session::{MemberKey, SessionKey, Stream};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::home::Home;
use crate::time::Tick;

/// A refusal for lack of room: the code and the text.
pub(in crate::shard) type NoRoom = (ErrorCode, String);

/// Members of one session that may belong to one user: at most a quarter of all, but at least two, for a phone and a laptop.
pub(in crate::shard) fn own_members_max(own_max: usize, members_max: usize) -> usize {
    own_max.min((members_max / 4).max(2))
}

impl Core {
    /// Creates a session for which there is room; it counts to its maker as long as it exists.
    pub(in crate::shard) fn make_session(&mut self, session_id: &str, hash: u64, maker: u64, now: Tick) -> SessionKey {
        let stream = self.home.streams.insert(Stream::new(session_id, hash, None, 1));
        let epoch = self.cx.next_random().max(1);
        let key = self.home.sessions.create(hash, stream, epoch, session_id.starts_with("channel:"), maker);
        self.set_level(key);
        self.cx.counters.sessions.set(self.home.sessions.sessions.len() as u64);
        if !self.storage.log_is_behind(&self.cx) {
            self.keep_session(key, now);
        }
        key
    }
}

impl Home {
    /// Checks that the shard may take another session, created by this user ([`crate::session::Target::User`]).
    pub(in crate::shard) fn room_for_session(&self, cx: &Context, maker: u64) -> Result<(), NoRoom> {
        let limits = &cx.snapshot.settings.limits;
        let (sessions_max, made_max) = (limits.sessions_per_shard, limits.sessions_per_user);
        if self.sessions.sessions.len() >= sessions_max {
            cx.counters.limit_reached(LimitReached::SessionsPerShard);
            let message = format!("this shard holds {sessions_max} sessions already (limits.sessions_per_shard)");
            return Err((ErrorCode::LimitSessions, message));
        }
        if made_max > 0 && self.sessions.made_by(maker) >= made_max {
            cx.counters.limit_reached(LimitReached::SessionsPerUser);
            let message = format!("this user made {made_max} sessions of this shard already (limits.sessions_per_user)");
            return Err((ErrorCode::LimitSessions, message));
        }
        Ok(())
    }

    /// Checks that a session may take another member of this user ([`crate::session::Target::User`]). Returns which of the user's
    /// own members gives way, if one must: the one that has been away longest.
    pub(in crate::shard) fn room_for_member(
        &self,
        cx: &Context,
        session: SessionKey,
        user: u64,
        now: Tick,
    ) -> Result<Option<MemberKey>, NoRoom> {
        let limits = &cx.snapshot.settings.limits;
        let Some(entry) = self.sessions.sessions.get(session) else { return Ok(None) };
        let (members_max, own) = (limits.members_per_session, self.sessions.group(session, user));
        let own_max = own_members_max(limits.members_per_user, members_max);
        if own.len() >= own_max {
            let now_ms = now.mono_ms();
            let away = |key: &MemberKey| self.sessions.members.get(*key).filter(|member| member.place.is_none());
            // All of the user's members in a session are examined, about as many as there may be. A channel may have any number,
            // and soon forgets those away.
            let looked_at = if entry.channel { own.get(..own_max).unwrap_or(own) } else { own };
            let longest = looked_at.iter().filter_map(|key| Some((away(key)?.away_ms(now_ms), *key))).max_by_key(|(ms, _)| *ms);
            if longest.is_some() || entry.channel {
                return Ok(longest.map(|(_, key)| key));
            }
            cx.counters.limit_reached(LimitReached::MembersPerUser);
            let message = format!(
                "the user has {own_max} members in the session already, all of them connected (limits.members_per_user, and a quarter of \
                 limits.members_per_session): let one leave first"
            );
            return Err((ErrorCode::LimitMembers, message));
        }
        // More readers than a session takes belong in a channel.
        if !entry.channel && entry.members.len() >= members_max {
            cx.counters.limit_reached(LimitReached::MembersPerSession);
            let message =
                format!("the session has {members_max} members already (limits.members_per_session): use a channel for more");
            return Err((ErrorCode::LimitMembers, message));
        }
        Ok(None)
    }

    /// Checks that a client, a member or not yet, may enter all these rooms as well.
    pub(in crate::shard) fn room_for_rooms(
        &self,
        cx: &Context,
        member: Option<MemberKey>,
        rooms: &[impl AsRef<str>],
    ) -> Result<(), NoRoom> {
        let rooms_max = cx.snapshot.settings.limits.rooms_per_client;
        // Rooms that it has asked for, and that wait for the disk, count too.
        let is_in = |name: &str| member.is_some_and(|member| self.sessions.stay(member, name).is_some());
        let mut names: Vec<&str> = rooms.iter().map(AsRef::as_ref).filter(|name| !is_in(name)).collect();
        names.sort_unstable();
        names.dedup();
        let there = member.map_or(0, |member| self.sessions.rooms_of(member));
        if names.is_empty() || there + names.len() <= rooms_max {
            return Ok(());
        }
        cx.counters.limit_reached(LimitReached::RoomsPerClient);
        Err((ErrorCode::LimitRooms, format!("a client may be in {rooms_max} rooms (limits.rooms_per_client): leave one first")))
    }
}
