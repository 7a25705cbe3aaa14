//! The gateway's own commands (protocol.md sections 1, 4 and 6). Some concern the connection, the others are for the session's
//! home.

use super::frames::RETRY_AFTER_MS;
use crate::auth::AuthError;
use crate::ids::ConnId;
use crate::io::Io;
use crate::protocol::{
    Command, CommandKind, Envelope, ErrorCode, Head, HistoryFrom, Kind, MemberState, Members, Refusal, Watch, command_kind,
};
use crate::session::{MemberKey, Place, Target, Watcher};
use crate::shard::across::mesh::LaneMessage;
use crate::shard::connections::conn::{Paging, Slot, Waiting};
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::durability::history::HistoryPage;
use crate::shard::home::Home;
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;

impl Core {
    /// An `rw.` message of an open connection.
    pub(in crate::shard) fn on_command<I: Io>(
        &mut self,
        io: &mut I,
        id: ConnId,
        envelope: &Envelope<'_>,
        text: &[u8],
        now: Tick,
    ) {
        match command_kind(envelope.kind) {
            Kind::Known(CommandKind::Hello) => {
                let head = Head { id: envelope.id, session_id: envelope.session_id };
                let message = "this connection has had its hello: use rw.attach for more sessions, rw.refresh for a new token";
                self.connections.refuse_with(&mut self.cx, id, head, ErrorCode::SessionSecondHello, message, Some("/type"));
            }
            Kind::Known(CommandKind::Attach) => self.on_attach_command(io, id, envelope, now),
            Kind::Known(CommandKind::Refresh) => self.on_refresh(io, id, envelope, now),
            Kind::Known(kind) => {
                let Some((number, home, member)) = self.attachment_of(id, envelope.session_id) else {
                    return self.connections.not_attached(&mut self.cx, id, envelope);
                };
                let place = self.place_here(id, number);
                // Both change the attachment here, so mistakes in them must be found here.
                if matches!(kind, CommandKind::History | CommandKind::Detach) && !self.well_formed(id, envelope) {
                    return;
                }
                if kind == CommandKind::History && !self.connections.may_page(&mut self.cx, place, envelope) {
                    return;
                }
                let taken = match home {
                    None => {
                        self.command_at_home(io, place, member, envelope, now);
                        true
                    }
                    Some(home) => self.forward(io, home, member, place, envelope, text),
                };
                if kind == CommandKind::Detach
                    && taken
                    && let Some(attachment) = self.connections.attachment_at(place)
                {
                    attachment.detaching = true;
                    let stream = attachment.stream;
                    // The member is away: records for it alone no longer wake it, and its reader must not go past them.
                    let head = self.home.streams.get(stream).map_or(0, |stream| stream.head());
                    self.wake_reader(place, stream, head + 1);
                }
            }
            Kind::Reserved | Kind::Unknown | Kind::Application => {
                let Some(mut commands) = self.codec.commands.take() else { return };
                if let Err(refusal) = commands.parse(envelope) {
                    self.connections.refuse(&mut self.cx, id, &refusal);
                }
                self.codec.commands = Some(commands);
            }
        }
    }

    fn on_attach_command<I: Io>(&mut self, io: &mut I, id: ConnId, envelope: &Envelope<'_>, now: Tick) {
        let Some(mut commands) = self.codec.commands.take() else { return };
        match commands.parse(envelope) {
            Ok(Command::Attach(attach)) => {
                let request = self.connections.get(id).and_then(|conn| {
                    let grant = conn.grant.as_deref()?;
                    grant.require_session(envelope.session_id).ok()?;
                    let place = self.place_here(id, 0);
                    Some(self.cx.attach_request(envelope, &attach, place, &conn.client_id, grant, false))
                });
                match request {
                    Some(request) => self.ask_to_attach(io, id, request, now),
                    None => {
                        let head = Head { id: envelope.id, session_id: envelope.session_id };
                        let message = AuthError::ForbiddenSession.to_string();
                        self.connections.refuse_with(
                            &mut self.cx,
                            id,
                            head,
                            ErrorCode::AuthForbiddenSession,
                            &message,
                            Some("/session_id"),
                        );
                    }
                }
            }
            Ok(_) => {}
            Err(refusal) => self.connections.refuse(&mut self.cx, id, &refusal),
        }
        self.codec.commands = Some(commands);
    }

    fn on_refresh<I: Io>(&mut self, io: &mut I, id: ConnId, envelope: &Envelope<'_>, now: Tick) {
        let Some(mut commands) = self.codec.commands.take() else { return };
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        match commands.parse(envelope) {
            Ok(Command::Refresh(refresh)) => {
                let client_id = self.connections.get(id).map_or("", |conn| &*conn.client_id);
                let outcome = self.cx.verify_token(refresh.auth_token, client_id, now);
                let subject =
                    self.connections.get(id).and_then(|conn| conn.grant.as_ref()).map(|grant| grant.subject().to_owned());
                match outcome {
                    Ok(grant) if subject.as_deref() == Some(grant.subject()) => self.take_grant(io, id, grant, head, now),
                    Ok(_) => {
                        let message = "the new token is another user's: its sub must be the connection's";
                        self.connections.refuse_with(
                            &mut self.cx,
                            id,
                            head,
                            ErrorCode::AuthClientId,
                            message,
                            Some("/payload/auth_token"),
                        );
                    }
                    Err(error) => self.connections.refuse_token(&mut self.cx, id, head, &error),
                }
            }
            Ok(_) => {}
            Err(refusal) => self.connections.refuse(&mut self.cx, id, &refusal),
        }
        self.codec.commands = Some(commands);
    }

    /// Applies a new token at once: its roles, and the sessions that it no longer covers.
    fn take_grant<I: Io>(&mut self, io: &mut I, id: ConnId, grant: crate::auth::Grant, head: Head<'_>, now: Tick) {
        let expires_in_ms = (grant.expires_at_s() * 1000).saturating_sub(now.wall_ms);
        let roles: Box<[Box<str>]> = grant.roles().map(Into::into).collect();
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.flags.expiry_told = false;
        // A connection that is detaching gets its answers first, and is detached then.
        let attached = conn.attachments().filter(|(_, attachment)| !attachment.detaching);
        let attached: Vec<(u16, MemberKey, crate::session::StreamKey)> =
            attached.map(|(number, attachment)| (number, attachment.member, attachment.stream)).collect();
        let covers_one_asked =
            conn.slots.iter().any(|slot| matches!(slot, Slot::Asked(asked) if grant.covers(&asked.session_id)));
        let count = attached.len();
        let mut lost = Vec::new();
        for (number, member, stream) in attached {
            let Some(stream) = self.home.streams.get(stream) else { continue };
            if !grant.covers(&stream.session_id) {
                lost.push(number);
                continue;
            }
            let home = stream.home;
            let place = self.place_here(id, number);
            match home {
                None => {
                    self.give_roles(member, &roles, now);
                    self.publish_entitlements(io, member);
                }
                Some(home) => {
                    self.links.send_control(&self.cx, io, home, LaneMessage::Roles { member, place, roles: roles.clone() });
                }
            }
        }
        if let Some(conn) = self.connections.get_mut(id) {
            conn.grant = Some(Box::new(grant));
        }
        self.connections.reply_now(&mut self.cx, id, |out| crate::protocol::refreshed(out, head, expires_in_ms));
        let none_left = count > 0 && lost.len() == count && !covers_one_asked;
        if none_left {
            self.connections.doom(id, crate::close::CloseReason::Forbidden);
        } else {
            for number in lost {
                self.lose_session(io, id, number, now);
            }
        }
        self.set_timer(id, now);
    }

    /// Detaches the connection from a session that the token no longer covers, and tells the client.
    pub(in crate::shard) fn lose_session<I: Io>(&mut self, io: &mut I, id: ConnId, number: u16, now: Tick) {
        let Some(attachment) = self.connections.get_mut(id).and_then(|conn| conn.take_attachment(number)) else { return };
        let session_id = self.home.streams.get(attachment.stream).map_or_else(Box::default, |stream| stream.session_id.clone());
        self.leave_one(io, id, number, attachment, true, false, now);
        let event = self.cx.event_id();
        let head = Head { id: &event, session_id: &session_id };
        self.connections.reply_now(&mut self.cx, id, |out| crate::protocol::detached(out, head));
        // The reason not to read from the connection may have been that session.
        self.read_again(io, id);
    }

    /// Handles a command for a session at home here, of a member wherever its connection is.
    pub(in crate::shard) fn command_at_home<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        now: Tick,
    ) {
        if self.home.sessions.members.get(member).is_none_or(|member| member.place != Some(place)) {
            return;
        }
        let Some(mut commands) = self.codec.commands.take() else { return };
        match commands.parse(envelope) {
            Ok(command) => self.run(io, place, member, envelope, &command, now),
            Err(refusal) => self.refuse_at(place, &refusal),
        }
        self.codec.commands = Some(commands);
    }

    pub(in crate::shard) fn refuse_at(&mut self, place: Place, refusal: &Refusal) {
        self.cx.counters.refused.increment();
        let number = if place.shard == self.cx.shard_number() {
            self.connections.get(place.conn).map_or(0, |conn| conn.messages_in)
        } else {
            self.links.forwarded.0
        };
        self.reply_to(place, AT_ONCE, |out| crate::protocol::error(out, &crate::protocol::Failure::of(refusal, Some(number))));
    }

    /// Refuses a command; `pointer` names the part that is wrong.
    pub(in crate::shard) fn refuse_command(
        &mut self,
        place: Place,
        envelope: &Envelope<'_>,
        (code, message): (ErrorCode, impl Into<std::borrow::Cow<'static, str>>),
        pointer: &'static str,
    ) {
        self.refuse_at(place, &super::publish::refusal_of(envelope, code, message, pointer));
    }

    fn run<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        command: &Command<'_>,
        now: Tick,
    ) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        let after = self.home.head_of(member);
        match command {
            Command::Ping => {
                // An emptied buffer is valid text.
                let mut id = String::from_utf8(self.buffer_for(place)).unwrap_or_default();
                id.push_str(envelope.id);
                if place.shard == self.cx.shard_number() {
                    self.connections.put_ordered(&mut self.cx, place, after, Waiting::Pong(id));
                } else {
                    self.send_reply(place, LaneMessage::Pong { to: place, after, id });
                }
            }
            Command::Join { room } => self.join(io, place, member, envelope, room, now),
            Command::Leave { room } => self.leave(io, place, member, envelope, room, now),
            Command::Members(members) => self.list_members(place, member, head, members, after),
            Command::Watch(watch) => self.watch(place, member, head, watch, after),
            Command::PresenceSet { data } => self.set_presence(io, place, member, envelope, data, now),
            Command::History(history) => self.history(place, member, envelope, history, after),
            Command::Received { seq } => {
                if *seq <= after {
                    self.receive(member, *seq, now);
                } else {
                    self.cx.counters.dropped(DropReason::ReceiptStale, 1);
                }
            }
            Command::Detach => self.detach(io, place, member, head, now),
            Command::Hello(_) | Command::Attach(_) | Command::Refresh(_) => {}
        }
    }

    fn list_members(&mut self, place: Place, member: MemberKey, head: Head<'_>, wanted: &Members<'_>, after: u64) {
        let (page, more) = self.home.page_of(member, wanted.room, wanted.after, wanted.limit);
        let frame =
            self.members_frame(|out, members, next| crate::protocol::members(out, head, members, next), place, &page, more);
        self.send_frame(place, after, frame);
    }

    fn watch(&mut self, place: Place, member: MemberKey, head: Head<'_>, watch: &Watch<'_>, after: u64) {
        let watcher = Watcher { member, room: watch.room.map(Into::into) };
        let rooms_max = self.cx.snapshot.settings.limits.rooms_per_client;
        let session = self.home.sessions.members.get(member).map(|member| member.session);
        if let Some(session) = session.and_then(|session| self.home.sessions.sessions.get_mut(session)) {
            let is_watching = session.watchers.contains(&watcher);
            let rooms = session.watchers.iter().filter(|other| other.member == member && other.room.is_some()).count();
            if watch.presence && !is_watching && watch.room.is_some() && rooms >= rooms_max {
                self.cx.counters.limit_reached(LimitReached::RoomsPerClient);
                let message = format!("a client may watch {rooms_max} rooms (limits.rooms_per_client): end another watch first");
                return self.refuse_at(place, &refusal(head, ErrorCode::LimitRooms, message, "/payload/room"));
            }
            if !watch.presence {
                session.watchers.retain(|other| *other != watcher);
            } else if !is_watching {
                session.watchers.push(watcher);
            }
        }
        let (page, more) = self.home.page_of(member, watch.room, None, crate::limits::MEMBERS_PAGE_MAX);
        let frame = self.members_frame(
            |out, members, next| crate::protocol::watching(out, head, members, after, next),
            place,
            &page,
            more,
        );
        self.send_frame(place, after, frame);
    }

    fn members_frame(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>, &mut dyn Iterator<Item = crate::protocol::Member<'_, Box<str>>>, Option<&str>),
        place: Place,
        page: &[MemberKey],
        more: bool,
    ) -> Vec<u8> {
        let mut bytes = self.buffer_for(place);
        let open = OpenFrame::begin(&mut bytes);
        let sessions = &self.home.sessions;
        let mut members = page.iter().filter_map(|key| sessions.members.get(*key)).map(|member| crate::protocol::Member {
            client_id: &member.client_id,
            roles: &member.roles,
            since_at: member.since_ms,
            state: match (member.place, member.told_lost) {
                (Some(_), _) => MemberState::Online,
                (None, false) => MemberState::Lost,
                (None, true) => MemberState::Away,
            },
            data: member.presence.as_deref().map(str::as_bytes),
        });
        let last =
            if more { page.last().and_then(|key| sessions.members.get(*key)).map(|member| &*member.client_id) } else { None };
        write(&mut bytes, &mut members, last);
        open.finish(Opcode::Text, &mut bytes);
        bytes
    }

    /// Queues a finished frame at its place in the order, wherever the client is.
    pub(in crate::shard) fn send_frame(&mut self, place: Place, after: u64, frame: Vec<u8>) {
        if place.shard == self.cx.shard_number() {
            self.connections.put_ordered(&mut self.cx, place, after, Waiting::Frame(frame));
        } else {
            self.send_reply(place, LaneMessage::Reply { to: place, after, frame });
        }
    }

    fn history(
        &mut self,
        place: Place,
        key: MemberKey,
        envelope: &Envelope<'_>,
        wanted: &crate::protocol::History<'_>,
        after: u64,
    ) {
        let Some(member) = self.home.sessions.members.get(key) else { return };
        let user = member.entitlements.user;
        let Some(stream) = self.home.sessions.sessions.get(member.session).map(|session| session.stream) else { return };
        self.trim(stream);
        let room = wanted.room.map(|room| self.home.sessions.target(Target::Room, room));
        let Some((first, head)) = self.home.streams.get(stream).map(|stream| (stream.index.first(), stream.head())) else {
            return;
        };
        let ascending = matches!(wanted.from, HistoryFrom::After(_));
        let (low, high) = match wanted.from {
            HistoryFrom::Newest => (first, head),
            HistoryFrom::Before(seq) => (first, head.min(seq.saturating_sub(1))),
            HistoryFrom::After(seq) => (first.max(seq.saturating_add(1)), head),
        };
        let page = HistoryPage {
            place,
            member: key,
            stream,
            user,
            id: envelope.id.into(),
            room,
            limit: wanted.limit,
            after,
            low,
            high,
            ascending,
            at: if ascending { low } else { high },
            more: false,
            frames: Vec::new(),
            ends: Vec::new(),
            looks: 0,
            read_bytes: 0,
        };
        self.ask_history(page);
    }

    fn well_formed(&mut self, id: ConnId, envelope: &Envelope<'_>) -> bool {
        let Some(mut commands) = self.codec.commands.take() else { return false };
        let refused = commands.parse(envelope).err();
        self.codec.commands = Some(commands);
        if let Some(refused) = &refused {
            self.connections.refuse(&mut self.cx, id, refused);
        }
        refused.is_none()
    }
}

fn refusal(head: Head<'_>, code: ErrorCode, message: String, pointer: &'static str) -> Refusal {
    Refusal {
        id: head.id.into(),
        session_id: head.session_id.into(),
        code,
        message: message.into(),
        pointer: pointer.into(),
        retry_after_ms: code.retryable().then_some(RETRY_AFTER_MS),
    }
}

impl Home {
    /// The head of a member's session: the place of an answer that is in order.
    pub(in crate::shard) fn head_of(&self, member: MemberKey) -> u64 {
        let session = self.sessions.members.get(member).and_then(|member| self.sessions.sessions.get(member.session));
        session.and_then(|session| self.streams.get(session.stream)).map_or(0, |stream| stream.head())
    }

    fn page_of(&self, member: MemberKey, room: Option<&str>, after: Option<&str>, limit: usize) -> (Vec<MemberKey>, bool) {
        let session = self.sessions.members.get(member).map(|member| member.session);
        session.map_or((Vec::new(), false), |session| self.sessions.page(session, room, after, limit))
    }
}

impl Connections {
    /// Returns `true` if an attachment may ask for a page of history: no earlier one is on its way. Checked on the connection's
    /// shard, since only there it is known when a page has been sent.
    fn may_page(&mut self, cx: &mut Context, place: Place, envelope: &Envelope<'_>) -> bool {
        let Some(attachment) = self.attachment_at(place) else { return false };
        if attachment.paging == Paging::None {
            attachment.paging = Paging::Asked;
            return true;
        }
        cx.counters.limit_reached(LimitReached::HistoryBusy);
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        let message = "the answer to an earlier request is still on its way: wait for its rw.history_end";
        self.refuse_with(cx, place.conn, head, ErrorCode::LimitHistoryBusy, message, None);
        false
    }
}
