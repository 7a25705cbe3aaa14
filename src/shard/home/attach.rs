//! Attaching to a session and detaching: the home's side (members), and the connection's side (attachments).

use crate::close::CloseReason;
use crate::config::HistoryView;
use crate::ids::ConnId;
use crate::io::Io;
use crate::log::{Joined, Kind, Position};
use crate::protocol::{ErrorCode, Head, Refusal, SessionStart, Welcome};
use crate::session::{
    Fact, Member, MemberKey, MirrorOut, Place, PresenceChange, Reader, SessionKey, StartRequest, Stream, StreamKey, Target, start,
};
use crate::shard::across::mesh::{AttachAnswer, AttachRequest, LaneMessage, RefusalFrame};
use crate::shard::connections::conn::{Attachment, Paging, Phase, Slot, Slots};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::home::Home;
use crate::shard::inbound::frames::RETRY_AFTER_MS;
use crate::shard::inbound::publish::TOO_MUCH;
use crate::time::Tick;
use std::collections::VecDeque;

/// Batches that a mirror may be sent before it has appended the first.
pub(in crate::shard) const MIRROR_CREDITS: u8 = 4;

/// The text of an epoch on the wire.
pub(in crate::shard) fn epoch_name(epoch: u64) -> String {
    format!("{epoch:016x}")
}

impl Core {
    /// Attaches a client to a session at home here. The client's connection may be on any shard.
    pub(in crate::shard) fn attach_home<I: Io>(
        &mut self,
        io: &mut I,
        request: &AttachRequest,
        now: Tick,
    ) -> Result<AttachAnswer, Refusal> {
        let user = self.home.sessions.target(Target::User, subject_of(request));
        let client = self.home.sessions.target(Target::Client, &request.client_id);
        // All checks that may refuse come before anything is created.
        let there = self.home.session_for(&self.cx, request, user)?;
        let known = there.and_then(|session| self.home.sessions.member(session, client));
        let no_room = |(code, message), pointer| refusal_of(request, code, message, pointer);
        let gives_way = match there.filter(|_| known.is_none()) {
            Some(session) => {
                self.home.room_for_member(&self.cx, session, user, now).map_err(|why| no_room(why, "/session_id"))?
            }
            None => None,
        };
        self.home.room_for_rooms(&self.cx, known, &request.rooms).map_err(|why| no_room(why, "/payload/rooms"))?;
        // The removal of that member must be in the log before the client comes again as another.
        if gives_way.is_some_and(|other| self.home.is_kept(other)) && self.storage.log_is_behind(&self.cx) {
            return Err(refusal_of(request, ErrorCode::LimitBackpressure, TOO_MUCH.to_owned(), "/session_id"));
        }
        let session = there.unwrap_or_else(|| self.make_session(&request.session_id, request.session, user, now));
        if let Some(other) = gives_way {
            self.forget_member(other, now);
        }
        let (stream, epoch) =
            self.home.sessions.sessions.get(session).map_or((StreamKey::unpack(0), 0), |entry| (entry.stream, entry.epoch));
        self.trim(stream);
        let (oldest, head) = self.home.streams.get(stream).map_or((1, 0), |stream| (stream.index.first(), stream.head()));
        let member = known.unwrap_or_else(|| self.home.add_member(&self.cx, session, request, head, now));
        // Actions on an earlier connection are in the log before those on this one.
        if self.settle_early(member) {
            self.publish_entitlements(io, member);
        }
        let receipt = known
            .and_then(|member| self.home.sessions.members.get(member))
            .map(|member| member.received_seq)
            .filter(|seq| *seq > 0);
        let resume = request.resume.as_ref().map(|(epoch, seq)| (&**epoch, *seq));
        let wanted = StartRequest { resume, wanted: request.wanted };
        let past = self.home.sessions.sessions.get(session).map_or(&[][..], |session| &session.past_epochs);
        let begin = start(&wanted, receipt, oldest, head, |name| {
            let past = past.iter().find(|(epoch, _)| name == epoch_name(*epoch)).map(|(_, last)| *last);
            if name == epoch_name(epoch) { Some(head) } else { past }
        });
        self.enter_rooms(request, member, begin.cursor, known.is_some(), now);
        self.give_roles(member, &request.roles, now);
        self.take_place(io, member, request.place, now);
        if known.is_some() {
            self.keep_place(member, now);
        } else {
            self.keep_new(member, now);
        }
        let mirror_from = self.mirror_for(session, request.place.shard, head);
        let Some(entry) = self.home.sessions.members.get_mut(member) else { return Err(gone(request)) };
        entry.entitlements.echo = request.echo;
        entry.entitlements.prune(oldest);
        let is_whole = entry.entitlements.forgotten_to() <= begin.cursor;
        Ok(AttachAnswer {
            member,
            created: there.is_none(),
            epoch,
            head,
            cursor: begin.cursor,
            recovered: begin.recovered && is_whole,
            rewound_to: begin.rewound_to,
            oldest_seq: oldest,
            rooms: entry.rooms.to_vec(),
            entitlements: entry.entitlements.clone(),
            mirror_from,
        })
    }

    /// Joins the rooms named on attaching, before the replay, which includes their messages. Like the attach itself, this does
    /// not wait for the disk.
    fn enter_rooms(&mut self, request: &AttachRequest, member: MemberKey, cursor: u64, is_known: bool, now: Tick) {
        let is_behind = self.storage.log_is_behind(&self.cx);
        let mut is_owed = false;
        for room in &request.rooms {
            let from = cursor + 1;
            if !self.home.sessions.apply(member, Fact::Joined { room, from }).changed {
                continue;
            }
            is_owed |= is_behind;
            if is_known && !is_behind {
                self.keep_fact(member, Kind::Joined, now, |_, out| Joined { room, from }.encode(out));
            }
            self.tell_presence(member, PresenceChange::Join, Some(room));
        }
        if is_known && is_owed {
            self.keep_new(member, now);
        }
    }

    /// Moves a member's connection to `place`; an earlier connection is replaced.
    fn take_place<I: Io>(&mut self, io: &mut I, key: MemberKey, place: Place, now: Tick) {
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        let before = member.place.replace(place);
        let returns = member.told_lost;
        member.told_lost = false;
        (member.away_since_ms, member.away_before_ms) = (0, 0);
        match before {
            Some(before) if before != place => {
                self.storage.forget_history(&mut self.cx, before);
                if before.shard == self.cx.shard_number() {
                    self.close(io, before.conn, CloseReason::Replaced, now);
                } else {
                    self.links.send_control(&self.cx, io, before.shard, LaneMessage::Replaced { to: before });
                }
            }
            Some(_) => {}
            None => self.cx.counters.members_present.add(1),
        }
        if returns {
            self.tell_presence(key, PresenceChange::Join, None);
        }
    }

    /// Subscribes `shard` to the session's new records. Returns the first `seq` that it will receive.
    fn mirror_for(&mut self, session: SessionKey, shard: u16, head: u64) -> u64 {
        if shard == self.cx.shard_number() {
            return 0;
        }
        let Some(entry) = self.home.sessions.sessions.get_mut(session) else { return 0 };
        if let Some(mirror) = entry.mirrors.iter().find(|mirror| mirror.shard == shard) {
            return mirror.next_seq;
        }
        entry.mirrors.push(MirrorOut { shard, next_seq: head + 1, credits: MIRROR_CREDITS });
        head + 1
    }

    /// The connection's side of an attachment: adds the reader to the stream, and sends the welcome.
    pub(in crate::shard) fn install(&mut self, request: &AttachRequest, answer: AttachAnswer, now: Tick) {
        let place = request.place;
        let home = self.cx.key.home_shard(&request.session_id, self.links.mesh.shards());
        let stream = if home == self.cx.shard {
            self.home
                .sessions
                .find(request.session)
                .and_then(|key| self.home.sessions.sessions.get(key))
                .map(|session| session.stream)
        } else {
            self.links.mirrors.get(&request.session).copied()
        };
        let Some(stream) = stream else { return };
        let Some(entry) = self.home.streams.get_mut(stream) else { return };
        if entry.opening {
            entry.opening = false;
            entry.index.restart(answer.mirror_from);
        }
        let reader = u32::try_from(entry.readers.len()).unwrap_or(u32::MAX);
        if entry.readers.capacity() == 0 {
            // Most sessions have one or two readers.
            entry.readers.reserve_exact(1);
        }
        entry.readers.push(Reader { conn: place.conn, attachment: place.attachment });
        let attachment = Attachment {
            stream,
            member: answer.member,
            cursor: answer.cursor,
            delivered_seq: answer.cursor,
            idle: false,
            pulling: false,
            paging: Paging::None,
            detaching: false,
            ticket: place.ticket,
            reader,
            entitlements: answer.entitlements.clone(),
            ordered: VecDeque::new(),
        };
        if let Some(slot) =
            self.connections.get_mut(place.conn).and_then(|conn| conn.slots.get_mut(usize::from(place.attachment)))
        {
            *slot = Slot::Attached(attachment);
        }
        self.greet(request, &answer, now);
        let head_id = self.cx.event_id();
        let head = Head { id: &head_id, session_id: &request.session_id };
        self.connections.event_after(&mut self.cx, place, answer.head, |out| crate::protocol::caught_up(out, head, answer.head));
        self.cx.counters.replayed.add(answer.head.saturating_sub(answer.cursor));
        self.connections.mark(place.conn);
    }

    fn greet(&mut self, request: &AttachRequest, answer: &AttachAnswer, now: Tick) {
        let id = request.place.conn;
        let snapshot = std::sync::Arc::clone(&self.cx.snapshot);
        let settings = &snapshot.settings;
        let connection_id = self.connection_id(id);
        let epoch = epoch_name(answer.epoch);
        let rooms: Vec<&str> = answer.rooms.iter().map(|room| &**room).collect();
        let Some(grant) = self.connections.get(id).and_then(|conn| conn.grant.as_deref()) else { return };
        let expires_in_ms = (grant.expires_at_s() * 1000).saturating_sub(now.wall_ms);
        let roles: Vec<String> = grant.roles().map(Into::into).collect();
        let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
        let session = SessionStart {
            created: answer.created,
            epoch: &epoch,
            seq: answer.head,
            start_seq: answer.cursor + 1,
            recovered: answer.recovered,
            rewound_to: answer.rewound_to,
            oldest_seq: answer.oldest_seq,
            rooms: &rooms,
            roles: &roles,
        };
        let head = Head { id: &request.command_id, session_id: &request.session_id };
        if !request.hello {
            return self.connections.reply_now(&mut self.cx, id, |out| crate::protocol::attached(out, head, &session));
        }
        let limits = crate::protocol::Limits {
            max_message_bytes: settings.limits.max_message_bytes as u64,
            messages_per_second: settings.limits.messages_per_second,
            dedupe_ids: settings.session.dedupe_ids as u64,
            max_attached_sessions: settings.limits.max_attached_sessions as u64,
        };
        let welcome = Welcome {
            client_id: &request.client_id,
            connection_id: &connection_id,
            node: &settings.server.node.0,
            session,
            now_ms: now.wall_ms,
            token_expires_in_ms: expires_in_ms,
            heartbeat_ms: settings.session.heartbeat_ms,
            features: &[],
            version: env!("CARGO_PKG_VERSION"),
            limits,
        };
        self.connections.reply_now(&mut self.cx, id, |out| crate::protocol::welcome(out, head, &welcome));
    }

    /// Handles `rw.attach` on this connection's side: reserves an attachment and asks the home.
    pub(in crate::shard) fn ask_to_attach<I: Io>(&mut self, io: &mut I, id: ConnId, mut request: AttachRequest, now: Tick) {
        let attached_max = self.cx.snapshot.settings.limits.max_attached_sessions;
        let head = Head { id: &request.command_id.clone(), session_id: &request.session_id.clone() };
        let Some(conn) = self.connections.get(id) else { return };
        let sessions = conn.slots.iter().filter_map(|slot| match slot {
            Slot::Free => None,
            Slot::Asked(asked) => Some(asked.session),
            Slot::Attached(attachment) => self.home.streams.get(attachment.stream).map(|stream| stream.hash),
        });
        let (mut used, mut again) = (0, false);
        for session in sessions {
            used += 1;
            again |= session == request.session;
        }
        if again {
            let message = "this connection is attached to the session already: detach first to start anew";
            return self.connections.refuse_with(
                &mut self.cx,
                id,
                head,
                ErrorCode::SessionAlreadyAttached,
                message,
                Some("/session_id"),
            );
        }
        if used >= attached_max {
            self.cx.counters.limit_reached(LimitReached::AttachedSessions);
            let message = format!("a connection may be in {attached_max} sessions (limits.max_attached_sessions)");
            return self.connections.refuse_with(&mut self.cx, id, head, ErrorCode::LimitAttached, &message, Some("/session_id"));
        }
        let Some(conn) = self.connections.get_mut(id) else { return };
        let number = conn.slots.free();
        request.place.attachment = u16::try_from(number).unwrap_or(u16::MAX);
        request.place.ticket = conn.next_ticket;
        conn.next_ticket = conn.next_ticket.wrapping_add(1);
        let home = self.cx.key.home_shard(&request.session_id, self.links.mesh.shards());
        if home == self.cx.shard {
            return match self.attach_home(io, &request, now) {
                Ok(answer) => self.install(&request, answer, now),
                Err(refusal) => self.connections.refuse(&mut self.cx, id, &refusal),
            };
        }
        if !self.links.mirrors.contains_key(&request.session) {
            let home = u16::try_from(home).unwrap_or(u16::MAX);
            let stream = self.home.streams.insert(Stream::new(&request.session_id, request.session, Some(home), 1));
            self.links.mirrors.insert(request.session, stream);
        }
        if let Some(stream) = self.links.mirrors.get(&request.session).and_then(|key| self.home.streams.get_mut(*key)) {
            stream.asked += 1;
        }
        let asked = AttachRequest { roles: request.roles.clone(), ..copy_of(&request) };
        if let Some(slot) = self.connections.get_mut(id).and_then(|conn| conn.slots.get_mut(number)) {
            *slot = Slot::Asked(Box::new(asked));
        }
        self.links.send_control(&self.cx, io, u16::try_from(home).unwrap_or(u16::MAX), LaneMessage::Attach(Box::new(request)));
    }

    /// Handles the request of a connection elsewhere to attach to a session at home here.
    pub(in crate::shard) fn on_attach<I: Io>(&mut self, io: &mut I, request: &AttachRequest, now: Tick) {
        let outcome = self.attach_home(io, request, now).map_err(|refusal| self.cx.error_frame(&refusal));
        let message = LaneMessage::Attached { place: request.place, session: request.session, outcome: Box::new(outcome) };
        self.links.send_control(&self.cx, io, request.place.shard, message);
    }

    /// Handles the home's answer to an attach of a connection here.
    pub(in crate::shard) fn on_attached<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        session: u64,
        outcome: Result<AttachAnswer, RefusalFrame>,
        now: Tick,
    ) {
        if let Some(stream) = self.links.mirrors.get(&session).and_then(|key| self.home.streams.get_mut(*key)) {
            stream.asked = stream.asked.saturating_sub(1);
        }
        let slot = self.connections.get_mut(place.conn).and_then(|conn| conn.slots.get_mut(usize::from(place.attachment)));
        let asked = match slot {
            Some(slot @ Slot::Asked(_)) => match std::mem::replace(slot, Slot::Free) {
                Slot::Asked(asked) => Some(asked),
                Slot::Free | Slot::Attached(_) => None,
            },
            _ => None,
        };
        match (asked, outcome) {
            (Some(asked), Ok(answer)) => {
                let member = answer.member;
                self.install(&asked, answer, now);
                self.catch_up_with_token(io, &asked, member, now);
            }
            (Some(asked), Err(frame)) => {
                self.connections.queue_frame(&mut self.cx, place.conn, &frame);
                self.cx.buffers.give(frame);
                drop(asked);
            }
            // The connection is gone. Its Detach is on the way, or was sent without a member to name: tell the home now.
            (None, Ok(answer)) => {
                if let Some(home) = self.links.reading_from {
                    self.links.send_control(
                        &self.cx,
                        io,
                        home,
                        LaneMessage::Detach { member: answer.member, place, clean: false, leave: false },
                    );
                }
            }
            (None, Err(frame)) => self.cx.buffers.give(frame),
        }
        self.release_mirror(io, session);
    }

    /// Sends the home the roles of a token that was replaced while the attach was under way: the home knows only the old one's.
    fn catch_up_with_token<I: Io>(&mut self, io: &mut I, asked: &AttachRequest, member: MemberKey, now: Tick) {
        let Some(grant) = self.connections.get(asked.place.conn).and_then(|conn| conn.grant.as_deref()) else { return };
        if !grant.covers(&asked.session_id) {
            return self.lose_session(io, asked.place.conn, asked.place.attachment, now);
        }
        let roles: Box<[Box<str>]> = grant.roles().map(Into::into).collect();
        if roles == asked.roles {
            return;
        }
        let home = self.cx.key.home_shard(&asked.session_id, self.links.mesh.shards());
        let home = u16::try_from(home).unwrap_or(u16::MAX);
        self.links.send_control(&self.cx, io, home, LaneMessage::Roles { member, place: asked.place, roles });
    }

    /// Detaches a connection from all its sessions.
    pub(in crate::shard) fn leave_all<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        let (clean, count) = (conn.clean, conn.slots.len());
        for number in (0..count).filter_map(|number| u16::try_from(number).ok()) {
            if let Some(attachment) = self.connections.get_mut(id).and_then(|conn| conn.take_attachment(number)) {
                self.leave_one(io, id, number, attachment, clean, false, now);
            }
        }
        if let Some(conn) = self.connections.get_mut(id) {
            // The home's answer to a pending attach still arrives, and releases the mirror.
            conn.slots = Slots::default();
        }
    }

    /// Removes an attachment: from the stream's readers, and from the member at home.
    #[expect(clippy::too_many_arguments, reason = "what left, how, and when")]
    pub(in crate::shard) fn leave_one<I: Io>(
        &mut self,
        io: &mut I,
        id: ConnId,
        number: u16,
        attachment: Attachment,
        clean: bool,
        leave: bool,
        now: Tick,
    ) {
        let place = Place { shard: self.cx.shard_number(), attachment: number, ticket: attachment.ticket, conn: id };
        let home = self.remove_reader(attachment.stream, attachment.reader);
        match home {
            None => {
                self.storage.forget_history(&mut self.cx, place);
                self.member_left(attachment.member, place, clean, leave, now);
            }
            Some(home) => {
                let session = self.home.streams.get(attachment.stream).map_or(0, |stream| stream.hash);
                self.links.send_control(
                    &self.cx,
                    io,
                    home,
                    LaneMessage::Detach { member: attachment.member, place, clean, leave },
                );
                self.connections.note_spoke_elsewhere(id);
                self.release_mirror(io, session);
            }
        }
        self.cx.forget_ordered(attachment.ordered);
    }

    /// Frees the attachments whose last reply was sent; their homes have released them before.
    pub(in crate::shard) fn free_left<I: Io>(&mut self, io: &mut I) {
        while let Some(place) = self.connections.left.pop() {
            if self.connections.attachment_at(place).is_none() {
                continue;
            }
            let Some(attachment) = self.connections.get_mut(place.conn).and_then(|conn| conn.take_attachment(place.attachment))
            else {
                continue;
            };
            let session = self.home.streams.get(attachment.stream).map_or(0, |stream| stream.hash);
            if self.remove_reader(attachment.stream, attachment.reader).is_some() {
                self.connections.note_spoke_elsewhere(place.conn);
                self.release_mirror(io, session);
            }
            self.cx.forget_ordered(attachment.ordered);
        }
    }

    /// Removes a reader from a stream; the last reader moves to its place. Returns the stream's home, if that is another shard.
    fn remove_reader(&mut self, stream: StreamKey, reader: u32) -> Option<u16> {
        let entry = self.home.streams.get_mut(stream)?;
        let home = entry.home;
        let place = reader as usize;
        if place < entry.readers.len() {
            entry.readers.swap_remove(place);
            if entry.readers.is_empty() {
                entry.readers.shrink_to(0);
            }
            let (moved, waking_from) = (entry.readers.get(place).copied(), entry.waking_from);
            if let Some(moved) = moved
                && waking_from > 0
            {
                // The moved reader may now be behind the point that the waking has reached.
                self.connections.wake(moved, waking_from);
            }
            if let Some(moved) = moved
                && let Some(attachment) =
                    self.connections.get_mut(moved.conn).and_then(|conn| conn.attachment_mut(moved.attachment))
            {
                attachment.reader = reader;
            }
        }
        home
    }

    /// Drops a mirror that has no readers and no pending attach.
    pub(in crate::shard) fn release_mirror<I: Io>(&mut self, io: &mut I, session: u64) {
        let Some(key) = self.links.mirrors.get(&session).copied() else { return };
        let Some(stream) = self.home.streams.get(key) else { return };
        if !stream.readers.is_empty() || stream.asked > 0 {
            return;
        }
        let home = stream.home;
        self.links.mirrors.remove(&session);
        self.home.streams.remove(key);
        if let Some(home) = home {
            self.links.send_control(&self.cx, io, home, LaneMessage::Unmirror { session, shard: self.cx.shard_number() });
        }
    }

    /// The first session of a connection, which events about the connection as a whole name.
    pub(in crate::shard) fn first_session(&self, id: ConnId) -> Box<str> {
        let stream = self.connections.get(id).and_then(|conn| conn.attachments().next()).map(|(_, attachment)| attachment.stream);
        stream.and_then(|stream| self.home.streams.get(stream)).map_or_else(Box::default, |stream| stream.session_id.clone())
    }

    /// The name of a connection in logs, metrics and the welcome.
    pub(in crate::shard) fn connection_id(&self, id: ConnId) -> String {
        match self.connections.get(id) {
            Some(conn) => self.cx.name_of(conn),
            None => "c-?".to_owned(),
        }
    }

    /// Handles that another connection has taken over the member of a place.
    pub(in crate::shard) fn on_replaced<I: Io>(&mut self, io: &mut I, place: Place, now: Tick) {
        let open = self.connections.get(place.conn).is_some_and(|conn| matches!(conn.phase, Phase::Open));
        if open && self.connections.attachment_at(place).is_some() {
            self.close(io, place.conn, CloseReason::Replaced, now);
        }
    }
}

fn subject_of(request: &AttachRequest) -> &str {
    request.client_id.get(..usize::from(request.subject_bytes)).unwrap_or(&request.client_id)
}

fn copy_of(request: &AttachRequest) -> AttachRequest {
    AttachRequest {
        place: request.place,
        command_id: request.command_id.clone(),
        session_id: request.session_id.clone(),
        session: request.session,
        client_id: request.client_id.clone(),
        subject_bytes: request.subject_bytes,
        roles: Box::default(),
        resume: None,
        wanted: request.wanted,
        rooms: Vec::new(),
        create: request.create,
        echo: request.echo,
        hello: request.hello,
    }
}

fn refusal_of(request: &AttachRequest, code: ErrorCode, message: String, pointer: &'static str) -> Refusal {
    Refusal {
        id: request.command_id.clone(),
        session_id: request.session_id.clone(),
        code,
        message: message.into(),
        pointer: pointer.into(),
        retry_after_ms: code.retryable().then_some(RETRY_AFTER_MS),
    }
}

fn gone(request: &AttachRequest) -> Refusal {
    refusal_of(request, ErrorCode::InternalUnavailable, "the member has been removed: try again".to_owned(), "")
}

impl Home {
    /// The session of a request at home here; `None` if it is new and may be created.
    fn session_for(&self, cx: &Context, request: &AttachRequest, user: u64) -> Result<Option<SessionKey>, Refusal> {
        let refusal = |code, message: String, pointer: &'static str| refusal_of(request, code, message, pointer);
        if let Some(key) = self.sessions.find(request.session) {
            let stream = self.sessions.sessions.get(key).and_then(|session| self.streams.get(session.stream));
            if stream.is_none_or(|stream| stream.session_id != request.session_id) {
                return Err(refusal(
                    ErrorCode::InternalUnavailable,
                    "two session ids share a hash: use another".to_owned(),
                    "/session_id",
                ));
            }
            return Ok(Some(key));
        }
        if !request.create {
            let message = "there is no such session, and create is false: leave create out to make it".to_owned();
            return Err(refusal(ErrorCode::SessionUnknown, message, "/session_id"));
        }
        self.room_for_session(cx, user).map_err(|(code, message)| refusal(code, message, "/session_id"))?;
        Ok(None)
    }

    fn add_member(&mut self, cx: &Context, session: SessionKey, request: &AttachRequest, head: u64, now: Tick) -> MemberKey {
        let hidden_to = if cx.snapshot.settings.session.history == HistoryView::FromJoin { head } else { 0 };
        let subject = subject_of(request);
        let entitlements = self.sessions.entitle(&request.client_id, subject, &request.roles, hidden_to);
        let (roles, _) = self.sessions.share_roles(&request.roles);
        self.sessions.add_member(Member {
            session,
            client_id: request.client_id.clone(),
            subject_bytes: request.subject_bytes,
            roles,
            rooms: crate::few::Few::default(),
            entitlements,
            place: None,
            received_seq: 0,
            used: None,
            presence: None,
            presence_empty_ns: 0,
            telling: crate::session::Telling::default(),
            since_ms: now.wall_ms,
            away_since_ms: 0,
            away_before_ms: 0,
            told_lost: true,
            owed: 0,
            underway: None,
            kept_at: Position::default(),
            timers_ms: [u64::MAX; 2],
        })
    }
}
