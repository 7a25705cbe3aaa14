//! A message from its sender to the log: its audience, whether it is new, its place in the order, its acknowledgement.

use super::frames::RETRY_AFTER_MS;
use crate::ids::ConnId;
use crate::io::Io;
use crate::log::{Audience, Entry, Header, Kind};
use crate::protocol::{AddedBuf, Address, Envelope, ErrorCode, Failure, Head, Refusal, To, added, make_traceparent};
use crate::session::{DedupeLimits, MemberKey, Place, Seen, SessionKey, StreamKey, Target};
use crate::shard::across::mesh::{LaneMessage, Passing};
use crate::shard::connections::conn::{Paging, Waiting};
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::DropReason;
use crate::shard::home::Home;
use crate::shard::home::gauges::WHOLE;
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;
use crate::ws::Opcode;
use crate::ws::encoder::frame_head;

/// Ids of posts to channels at home here that are remembered to recognise repeats.
pub(in crate::shard) const POSTED_IDS_MAX: usize = 65_536;

/// The error text for a sender whose session cannot take more.
pub(in crate::shard) const TOO_MUCH: &str =
    "the session cannot accept more messages right now: send it again after retry_after_ms";

/// The half of a content hash that the window compares; the record holds all of it.
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
pub(in crate::shard) const fn low(content: u128) -> u64 {
    content as u64
}

/// A resolved list of addresses: hashes, and whether it is everyone.
#[derive(Default)]
pub(in crate::shard) struct Audiences {
    targets: [u64; crate::limits::ADDRESSES_MAX],
    len: usize,
    all: bool,
}

impl Audiences {
    fn push(&mut self, target: u64) {
        if self.len < self.targets.len() && !self.list().contains(&target) {
            self.targets[self.len] = target;
            self.len += 1;
        }
    }

    fn list(&self) -> &[u64] {
        &self.targets[..self.len]
    }

    /// Everybody in the session.
    pub(in crate::shard) fn everybody() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// The addresses in the record: none if it is for everyone.
    pub(in crate::shard) fn recorded(&self) -> &[u64] {
        if self.all { &[] } else { self.list() }
    }

    fn audience(&self) -> Audience {
        Audience::of(self.recorded())
    }
}

/// The sender's place, and the parameters of its answer.
#[derive(Clone, Copy)]
pub(in crate::shard) struct Origin<'a> {
    pub place: Place,
    pub client_id: &'a str,
    pub client: u64,
    pub acks: bool,
    /// The message's number on its connection.
    pub number: u64,
}

impl Core {
    /// Handles an application's message from a connection here.
    pub(in crate::shard) fn route<I: Io>(&mut self, io: &mut I, id: ConnId, envelope: &Envelope<'_>, text: &[u8], now: Tick) {
        if let To::One(Address::Channel(name)) = envelope.to {
            return self.post(io, id, name, envelope, text, now);
        }
        let Some((number, home, member)) = self.attachment_of(id, envelope.session_id) else {
            return self.connections.not_attached(&mut self.cx, id, envelope);
        };
        let place = self.place_here(id, number);
        match home {
            None => self.publish(io, place, member, envelope, now),
            Some(home) => {
                self.forward(io, home, member, place, envelope, text);
            }
        }
    }

    /// The attachment of a connection to a session: its number, the session's home if elsewhere, the member.
    pub(in crate::shard) fn attachment_of(&self, id: ConnId, session_id: &str) -> Option<(u16, Option<u16>, MemberKey)> {
        self.connections.get(id)?.attachments().filter(|(_, attachment)| !attachment.detaching).find_map(
            |(number, attachment)| {
                let stream = self.home.streams.get(attachment.stream)?;
                (&*stream.session_id == session_id).then_some((number, stream.home, attachment.member))
            },
        )
    }

    /// Forwards a message to the session's home. A full lane is answered at once.
    pub(in crate::shard) fn forward<I: Io>(
        &mut self,
        io: &mut I,
        home: u16,
        member: MemberKey,
        place: Place,
        envelope: &Envelope<'_>,
        text: &[u8],
    ) -> bool {
        let (number, acks) = self.connections.get(place.conn).map_or((0, true), |conn| (conn.messages_in, conn.flags.acks));
        let offered = self.offer(io, usize::from(home), |mut buffer| {
            buffer.extend_from_slice(text);
            LaneMessage::Forward { member, place, number, acks, text: buffer }
        });
        if !offered {
            if let Some(attachment) = self.connections.attachment_at(place)
                && attachment.paging == Paging::Asked
                && envelope.kind == "rw.history"
            {
                attachment.paging = Paging::None;
            }
            self.connections.busy(&mut self.cx, place.conn, envelope);
        }
        offered
    }

    /// Publishes a member's message in its session, at home here.
    pub(in crate::shard) fn publish<I: Io>(
        &mut self,
        io: &mut I,
        place: Place,
        member: MemberKey,
        envelope: &Envelope<'_>,
        now: Tick,
    ) {
        let Some(entry) = self.home.sessions.members.get_mut(member) else { return };
        if entry.place != Some(place) {
            return;
        }
        let session = entry.session;
        let client = entry.entitlements.client;
        if entry.used.is_none() && entry.owed & WHOLE != 0 && !envelope.ephemeral {
            let client_id = entry.client_id.clone();
            if let Some((code, message)) = self.name_sender(session, member, envelope, now) {
                let origin =
                    Origin { place, client_id: &client_id, client, acks: self.wants_acks(place), number: self.number_of(place) };
                return self.refuse_place(&origin, &refusal_of(envelope, code, message, ""));
            }
        }
        let Some(entry) = self.home.sessions.members.get_mut(member) else { return };
        let client_id = std::mem::take(&mut entry.client_id);
        let acks = self.wants_acks(place);
        let origin = Origin { place, client_id: &client_id, client, acks, number: self.number_of(place) };
        self.publish_as(io, &origin, session, Some(member), envelope, now);
        if let Some(entry) = self.home.sessions.members.get_mut(member) {
            entry.client_id = client_id;
        }
    }

    /// Returns `true` if the sender of the current message wants acks.
    fn wants_acks(&self, place: Place) -> bool {
        if place.shard == self.cx.shard_number() {
            self.connections.get(place.conn).is_none_or(|conn| conn.flags.acks)
        } else {
            self.links.forwarded.1
        }
    }

    pub(in crate::shard) fn number_of(&self, place: Place) -> u64 {
        if place.shard == self.cx.shard_number() {
            self.connections.get(place.conn).map_or(0, |conn| conn.messages_in)
        } else {
            self.links.forwarded.0
        }
    }

    fn publish_as<I: Io>(
        &mut self,
        io: &mut I,
        origin: &Origin<'_>,
        session: SessionKey,
        member: Option<MemberKey>,
        envelope: &Envelope<'_>,
        now: Tick,
    ) {
        let mut audiences = Audiences::default();
        if let Err(refusal) = self.home.resolve(session, envelope, &mut audiences) {
            return self.refuse_place(origin, &refusal);
        }
        let entry = self.home.sessions.sessions.get(session).map(|entry| (entry.hash, entry.epoch_number, entry.stream));
        let Some((hash, epoch, stream)) = entry else { return };
        if envelope.ephemeral {
            return self.pass(io, origin, stream, envelope, &audiences, now);
        }
        let id_hash = self.cx.key.hash64(&[&hash.to_le_bytes(), &origin.client.to_le_bytes(), envelope.id.as_bytes()]);
        let content = self.cx.content_hash(envelope, &audiences);
        // A channel's readers come and go as members, so its window is the shard's, which posts from outside share.
        let channel = self.home.sessions.sessions.get(session).is_some_and(|entry| entry.channel);
        let member = member.filter(|_| !channel);
        let own = self.cx.dedupe_limits();
        let limits = if channel {
            if let Some((code, message)) = self.name_session(session, envelope, now) {
                return self.refuse_place(origin, &refusal_of(envelope, code, message, ""));
            }
            DedupeLimits { ids_max: POSTED_IDS_MAX, ..own }
        } else {
            own
        };
        let used = match member {
            Some(member) => self.home.sessions.members.get(member).and_then(|member| member.used.as_deref()),
            None => Some(&self.home.posted),
        };
        match used.map_or(Seen::New, |used| used.look_up(id_hash, low(content), now.mono_ms(), limits)) {
            Seen::New => {}
            Seen::Same { seq } => {
                self.cx.counters.duplicates.increment();
                return self.acknowledge_again(origin, (session, stream), envelope, seq);
            }
            Seen::Different => {
                let message = "this id was used for another message: give each message an id of its own";
                return self.refuse_place(origin, &refusal_of(envelope, ErrorCode::EnvelopeIdReused, message, "/id"));
            }
        }
        if let Some((code, message)) = self.storage.log_refuses(&self.cx, self.level_of(session), envelope) {
            return self.refuse_place(origin, &refusal_of(envelope, code, message, ""));
        }
        if !self.takes(io, origin.place, now) {
            return self.refuse_place(origin, &refusal_of(envelope, ErrorCode::LimitBackpressure, TOO_MUCH, ""));
        }
        let seq = self.append(stream, (hash, epoch), origin, envelope, &audiences, id_hash, content, now);
        let used = match member {
            Some(member) => self.home.sessions.members.get_mut(member).map(|member| &mut **member.used.get_or_insert_default()),
            None => Some(&mut self.home.posted),
        };
        if let Some(used) = used {
            used.remember(id_hash, low(content), seq, now.mono_ms(), limits);
        }
        self.conclude(origin, (session, stream), envelope, seq, audiences.recorded());
    }

    /// Appends a message to the log: assigns its place in the order, and makes the only copy of its bytes.
    #[expect(clippy::too_many_arguments, reason = "the fields of a record")]
    pub(in crate::shard) fn append(
        &mut self,
        stream: StreamKey,
        (session, epoch): (u64, u32),
        origin: &Origin<'_>,
        envelope: &Envelope<'_>,
        audiences: &Audiences,
        id: u64,
        content: u128,
        now: Tick,
    ) -> u64 {
        self.trim(stream);
        let seq = self.home.streams.get(stream).map_or(1, |stream| stream.index.head() + 1);
        let header = Header { kind: Kind::Message, session, seq, epoch, ts_ms: now.wall_ms, sender: origin.client, id, content };
        let mut tail = AddedBuf::default();
        self.cx.splice(&mut tail, Some(seq), origin.client_id, envelope, now);
        let (head, head_bytes) = frame_head(envelope.object.len() + tail.as_bytes().len(), Opcode::Text, true, false);
        let put =
            self.storage.log.append(&header, audiences.recorded(), &[&head[..head_bytes], envelope.object, tail.as_bytes()]);
        self.storage.ages.note(put.at, now.wall_ms, self.cx.age_step_ms());
        if let Some(stream) = self.home.streams.get_mut(stream) {
            stream.index.push(Entry::new(put, audiences.audience(), origin.client));
        }
        self.cx.counters.log_appends.increment();
        self.cx.counters.routed.increment();
        self.stats.routed_in_turn += 1;
        seq
    }

    /// Marks a new record's audience dirty (everyone, if `targets` is empty), and its mirrors.
    pub(in crate::shard) fn note_appended(&mut self, session: SessionKey, stream: StreamKey, seq: u64, targets: &[u64]) {
        if let Some(entry) = self.home.sessions.sessions.get(session)
            && !entry.mirrors.is_empty()
            && !self.links.mirrored.contains(&session)
        {
            self.links.mirrored.push(session);
        }
        if targets.is_empty() {
            return self.home.note_broadcast(stream, seq);
        }
        let shard = self.cx.shard_number();
        let mut places = std::mem::take(&mut self.out.places);
        for target in targets {
            match self.home.sessions.member(session, *target) {
                Some(member) => places.extend(self.home.place_of(member)),
                None => places
                    .extend(self.home.sessions.group(session, *target).iter().filter_map(|member| self.home.place_of(*member))),
            }
        }
        for place in places.drain(..).filter(|place| place.shard == shard) {
            self.wake_reader(place, stream, seq);
        }
        self.out.places = places;
    }

    /// Wakes a reader for a record. A parked reader's cursor jumps to it, past records that were not for it.
    pub(in crate::shard) fn wake_reader(&mut self, place: Place, stream: StreamKey, seq: u64) {
        let first = self.home.streams.get(stream).map_or(seq, |stream| stream.unwoken_from(seq));
        let Some(attachment) = self.connections.get_mut(place.conn).and_then(|conn| conn.attachment_mut(place.attachment)) else {
            return;
        };
        if std::mem::take(&mut attachment.idle) {
            attachment.cursor = attachment.cursor.max(first - 1);
        }
        self.connections.mark(place.conn);
    }

    pub(in crate::shard) fn acknowledge(&mut self, origin: &Origin<'_>, envelope: &Envelope<'_>, seq: u64, is_duplicate: bool) {
        if !origin.acks {
            return;
        }
        self.cx.counters.acknowledged.increment();
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        self.reply_to(origin.place, AT_ONCE, |out| crate::protocol::ack(out, head, seq, is_duplicate));
    }

    /// Delivers an ephemeral message to readers that are connected and keep up, with no place in the order.
    pub(in crate::shard) fn pass<I: Io>(
        &mut self,
        io: &mut I,
        origin: &Origin<'_>,
        stream: StreamKey,
        envelope: &Envelope<'_>,
        audiences: &Audiences,
        now: Tick,
    ) {
        self.cx.counters.ephemeral.increment();
        let mut tail = AddedBuf::default();
        self.cx.splice(&mut tail, None, origin.client_id, envelope, now);
        let (head, head_bytes) = frame_head(envelope.object.len() + tail.as_bytes().len(), Opcode::Text, true, false);
        let mut frame = self.cx.buffers.take();
        for part in [&head[..head_bytes], envelope.object, tail.as_bytes()] {
            frame.extend_from_slice(part);
        }
        self.pass_here(stream, origin.client, audiences.recorded(), &frame);
        let hash = self.home.streams.get(stream).map_or(0, |stream| stream.hash);
        let session = self.home.sessions.find(hash);
        let mirror = |core: &Self, number: usize| {
            core.home.sessions.sessions.get(session?)?.mirrors.get(number).map(|mirror| usize::from(mirror.shard))
        };
        let mut number = 0;
        while let Some(shard) = mirror(self, number) {
            number += 1;
            if !self.links.takes_data(&self.cx, shard) {
                self.cx.counters.dropped(DropReason::EphemeralLaneFull, 1);
                continue;
            }
            let mut bytes = self.lane_buffer(shard);
            for target in audiences.recorded() {
                bytes.extend_from_slice(&target.to_le_bytes());
            }
            let targets = u32::try_from(audiences.recorded().len()).unwrap_or(0);
            bytes.extend_from_slice(&frame);
            let passing = Passing { session: hash, sender: origin.client, targets, bytes };
            self.links.push_data(&self.cx, io, shard, LaneMessage::Passing(passing));
        }
        self.cx.buffers.give(frame);
    }

    /// Delivers an ephemeral frame to the readers of a stream on this shard; an empty `targets` means everyone.
    pub(in crate::shard) fn pass_here(&mut self, stream: StreamKey, sender: u64, targets: &[u64], frame: &[u8]) {
        let Some(entry) = self.home.streams.get(stream) else { return };
        let head = entry.head();
        let readers = std::mem::take(&mut self.out.readers);
        let mut readers = crate::shard::outbound::flush::reuse(readers);
        readers.extend_from_slice(&entry.readers);
        for reader in &readers {
            let Some(conn) = self.connections.get(reader.conn) else { continue };
            let Some(attachment) = conn.attachment(reader.attachment) else { continue };
            let entitlements = &attachment.entitlements;
            let own = entitlements.client == sender && !entitlements.echo;
            let meant = if own {
                targets.contains(&entitlements.client)
            } else {
                targets.is_empty() || targets.iter().any(|target| entitlements.named(*target, head + 1))
            };
            if !meant {
                continue;
            }
            let behind = conn.flags.blocked || conn.queued_bytes() > self.cx.snapshot.settings.limits.reply_queue_bytes;
            if behind {
                self.cx.counters.dropped(DropReason::EphemeralSlow, 1);
                continue;
            }
            let mut copy = self.cx.buffers.take();
            copy.extend_from_slice(frame);
            let place = self.place_here(reader.conn, reader.attachment);
            self.connections.put_ordered(&mut self.cx, place, head, Waiting::Passing(copy));
        }
        readers.clear();
        self.out.readers = readers;
    }

    /// Sends a refusal to the sender, wherever it is.
    pub(in crate::shard) fn refuse_place(&mut self, origin: &Origin<'_>, refusal: &Refusal) {
        self.cx.counters.refused.increment();
        let frame = Some(origin.number).filter(|number| *number > 0);
        self.reply_to(origin.place, AT_ONCE, |out| crate::protocol::error(out, &Failure::of(refusal, frame)));
    }
}

pub(in crate::shard) fn refusal_of(
    envelope: &Envelope<'_>,
    code: ErrorCode,
    message: impl Into<std::borrow::Cow<'static, str>>,
    pointer: &'static str,
) -> Refusal {
    Refusal {
        id: envelope.id.into(),
        session_id: envelope.session_id.into(),
        code,
        message: message.into(),
        pointer: pointer.into(),
        retry_after_ms: code.retryable().then_some(RETRY_AFTER_MS),
    }
}

fn no_such_member(envelope: &Envelope<'_>, kind: &str, name: &str) -> Refusal {
    let message = format!("{kind} '{name}' was never in this session");
    refusal_of(envelope, ErrorCode::RouteNoSuchMember, message, "/to")
}

impl Connections {
    pub(in crate::shard) fn not_attached(&mut self, cx: &mut Context, id: ConnId, envelope: &Envelope<'_>) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        let message = "this connection is not attached to the session: send rw.attach first";
        self.refuse_with(cx, id, head, ErrorCode::SessionNotAttached, message, Some("/session_id"));
    }

    /// Refuses a message because a lane had no room, which `offer` has counted.
    pub(in crate::shard) fn busy(&mut self, cx: &mut Context, id: ConnId, envelope: &Envelope<'_>) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        self.refuse_with(cx, id, head, ErrorCode::LimitBackpressure, TOO_MUCH, None);
    }
}

impl Home {
    /// Resolves the addresses of a message; all of them or none.
    fn resolve(&self, session: SessionKey, envelope: &Envelope<'_>, audiences: &mut Audiences) -> Result<(), Refusal> {
        for address in envelope.to.iter() {
            match address {
                Address::Session => audiences.all = true,
                Address::Client(name) => {
                    let target = self.sessions.target(Target::Client, name);
                    if self.sessions.member(session, target).is_none() {
                        return Err(no_such_member(envelope, "client", name));
                    }
                    audiences.push(target);
                }
                Address::User(name) => {
                    let target = self.sessions.target(Target::User, name);
                    if self.sessions.group(session, target).is_empty() {
                        return Err(no_such_member(envelope, "user", name));
                    }
                    audiences.push(target);
                }
                Address::Room(name) => audiences.push(self.sessions.target(Target::Room, name)),
                Address::Role(name) => audiences.push(self.sessions.target(Target::Role, name)),
                Address::Intent(name) => {
                    let message = format!("no agent is registered for the intent '{name}'");
                    return Err(refusal_of(envelope, ErrorCode::RouteNoAgent, message, "/to"));
                }
                // Stands alone by the envelope's rules, and was handled before.
                Address::Channel(_) => {}
            }
        }
        Ok(())
    }

    fn place_of(&self, member: MemberKey) -> Option<Place> {
        self.sessions.members.get(member)?.place
    }

    /// Notes a record for everyone: the stream's readers are marked when the turn sends.
    pub(in crate::shard) fn note_broadcast(&mut self, key: StreamKey, seq: u64) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.broadcast_from == 0 {
            stream.broadcast_from = seq;
        }
        if !std::mem::replace(&mut stream.dirty, true) {
            self.dirty_streams.push(key);
        }
    }
}

impl Context {
    pub(in crate::shard) fn dedupe_limits(&self) -> DedupeLimits {
        let session = &self.snapshot.settings.session;
        DedupeLimits { ids_max: session.dedupe_ids, window_ms: session.dedupe_ms }
    }

    pub(in crate::shard) fn content_hash(&self, envelope: &Envelope<'_>, audiences: &Audiences) -> u128 {
        let mut targets = [0_u8; 8 * crate::limits::ADDRESSES_MAX + 1];
        let mut len = 1;
        targets[0] = u8::from(audiences.all);
        for target in audiences.list() {
            targets[len..len + 8].copy_from_slice(&target.to_le_bytes());
            len += 8;
        }
        self.key.hash128(&[envelope.kind.as_bytes(), &targets[..len], envelope.payload])
    }

    fn splice(&mut self, tail: &mut AddedBuf, seq: Option<u64>, from: &str, envelope: &Envelope<'_>, now: Tick) {
        if envelope.traceparent.is_some() {
            return added(tail, seq, from, now.wall_ms, None);
        }
        let [first, second, span] = [self.next_random(), self.next_random(), self.next_random()];
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&first.to_le_bytes());
        trace_id[8..].copy_from_slice(&second.to_le_bytes());
        let traceparent = make_traceparent(trace_id, span.to_le_bytes());
        added(tail, seq, from, now.wall_ms, Some(traceparent.as_str()));
    }
}
