//! Posts: messages for a channel from outside it, whichever shard is its home.

use super::publish::{Audiences, Origin, POSTED_IDS_MAX, TOO_MUCH, low, refusal_of};
use crate::ids::ConnId;
use crate::io::Io;
use crate::limits::STATE_RECORD_BYTES_MAX;
use crate::protocol::{Address, Envelope, ErrorCode, Head, Refusal, To, rewritten};
use crate::session::{DedupeLimits, NOBODY, Place, Seen, SessionKey, StreamKey, Target};
use crate::shard::across::mesh::{ChannelPost, LaneMessage};
use crate::shard::core::Core;
use crate::shard::durability::disk::RECORD_BYTES_MORE_MAX;
use crate::shard::home::Home;
use crate::time::Tick;

impl Core {
    /// Handles a message for a channel from outside it: it is published in the channel's session, whichever shard is its home.
    pub(in crate::shard) fn post<I: Io>(
        &mut self,
        io: &mut I,
        id: ConnId,
        name: &str,
        envelope: &Envelope<'_>,
        text: &[u8],
        now: Tick,
    ) {
        let session_id = self.home.channel_named(name);
        self.post_into(io, id, &session_id, envelope, text, now);
        self.home.channel_id = session_id;
    }

    /// Handles a post from another shard to a channel at home here.
    pub(in crate::shard) fn on_post<I: Io>(&mut self, io: &mut I, post: &ChannelPost, now: Tick) {
        let Some((text, client_id)) = post.bytes.split_at_checked(post.text_bytes as usize) else { return };
        let Ok(client_id) = std::str::from_utf8(client_id) else { return };
        let Some(mut parser) = self.codec.parser.take() else { return };
        // The text was parsed and found valid on the shard where it arrived.
        if let Ok(envelope) = parser.parse(text)
            && let To::One(Address::Channel(name)) = envelope.to
        {
            let client = self.home.sessions.target(Target::Client, client_id);
            let origin = Origin { place: post.from, client_id, client, acks: post.acks, number: post.frame_number };
            let session_id = self.home.channel_named(name);
            let session = self.cx.session_hash(&session_id);
            self.publish_post(io, &origin, post.subject_bytes, (session, &session_id), &envelope, now);
            self.home.channel_id = session_id;
        }
        self.codec.parser = Some(parser);
    }

    fn post_into<I: Io>(&mut self, io: &mut I, id: ConnId, session_id: &str, envelope: &Envelope<'_>, text: &[u8], now: Tick) {
        if self.attachment_of(id, envelope.session_id).is_none() {
            return self.connections.not_attached(&mut self.cx, id, envelope);
        }
        let Some(conn) = self.connections.get(id) else { return };
        if conn.grant.as_ref().is_none_or(|grant| !grant.covers(session_id)) {
            let head = Head { id: envelope.id, session_id: envelope.session_id };
            let message = format!(
                "the token's sid does not cover '{session_id}' (and none covers a channel named rw. and more, the gateway's own)"
            );
            return self.connections.refuse_with(&mut self.cx, id, head, ErrorCode::AuthForbiddenSession, &message, Some("/to"));
        }
        let (acks, number) = (conn.flags.acks, conn.messages_in);
        let subject_bytes = conn.grant.as_ref().map_or(0, |grant| grant.subject().len());
        let subject_bytes = u16::try_from(subject_bytes).unwrap_or(u16::MAX);
        let from = Place::whole(self.cx.shard_number(), id);
        let session = self.cx.session_hash(session_id);
        let home = self.cx.key.home_shard(session_id, self.links.mesh.shards());
        let here = home == self.cx.shard;
        let Some(conn) = self.connections.get_mut(id) else { return };
        let client_id = std::mem::take(&mut conn.client_id);
        if !here {
            let offered = self.offer(io, home, |mut buffer| {
                buffer.extend_from_slice(text);
                buffer.extend_from_slice(client_id.as_bytes());
                let text_bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
                LaneMessage::Post(ChannelPost { from, acks, bytes: buffer, text_bytes, subject_bytes, frame_number: number })
            });
            if let Some(conn) = self.connections.get_mut(id) {
                conn.client_id = client_id;
                conn.flags.spoke_elsewhere = true;
            }
            if !offered {
                self.connections.busy(&mut self.cx, id, envelope);
            }
            return;
        }
        let client = self.home.sessions.target(Target::Client, &client_id);
        let origin = Origin { place: from, client_id: &client_id, client, acks, number };
        self.publish_post(io, &origin, subject_bytes, (session, session_id), envelope, now);
        if let Some(conn) = self.connections.get_mut(id) {
            conn.client_id = client_id;
        }
    }

    /// Publishes a post at its channel's home. The delivered message has the channel's session id.
    pub(in crate::shard) fn publish_post<I: Io>(
        &mut self,
        io: &mut I,
        origin: &Origin<'_>,
        subject_bytes: u16,
        (hash, session_id): (u64, &str),
        envelope: &Envelope<'_>,
        now: Tick,
    ) {
        let known = self.home.sessions.find(hash);
        let audiences = Audiences::everybody();
        let mut object = self.cx.buffers.take();
        rewritten(envelope, session_id, &mut object);
        let moved = Envelope { object: &object, ..*envelope };
        if envelope.ephemeral {
            // Without a session nobody is in the channel.
            if let Some(stream) = known.and_then(|key| self.home.sessions.sessions.get(key)).map(|session| session.stream) {
                self.pass(io, origin, stream, &moved, &audiences, now);
            }
            return self.cx.buffers.give(object);
        }
        let id_hash = self.cx.key.hash64(&[&hash.to_le_bytes(), &origin.client.to_le_bytes(), envelope.id.as_bytes()]);
        let content = self.cx.content_hash(envelope, &audiences);
        let limits = DedupeLimits { ids_max: POSTED_IDS_MAX, ..self.cx.dedupe_limits() };
        match self.home.posted.look_up(id_hash, low(content), now.mono_ms(), limits) {
            Seen::New => match self.channel_for(io, origin, subject_bytes, (hash, session_id), envelope, now) {
                Ok((session, stream, epoch)) => {
                    let seq = self.append(stream, (hash, epoch), origin, &moved, &audiences, id_hash, content, now);
                    self.home.posted.remember(id_hash, low(content), seq, now.mono_ms(), limits);
                    self.conclude(origin, (session, stream), envelope, seq, audiences.recorded());
                }
                Err(refusal) => self.refuse_place(origin, &refusal),
            },
            Seen::Same { seq } => {
                self.cx.counters.duplicates.increment();
                let stream = known.and_then(|key| Some((key, self.home.sessions.sessions.get(key)?.stream)));
                match stream {
                    Some(of) => self.acknowledge_again(origin, of, envelope, seq),
                    // The session is gone with the message, long after it was durable.
                    None => self.acknowledge(origin, envelope, seq, true),
                }
            }
            Seen::Different => {
                let message = "this id was used for another message: give each message an id of its own";
                self.refuse_place(origin, &refusal_of(envelope, ErrorCode::EnvelopeIdReused, message, "/id"));
            }
        }
        self.cx.buffers.give(object);
    }

    /// The session of a channel that takes a post, with its stream and its epoch's number. It is created if it is new and then
    /// counts to the poster; the post is refused only for lack of room for it.
    fn channel_for<I: Io>(
        &mut self,
        io: &mut I,
        origin: &Origin<'_>,
        subject_bytes: u16,
        (hash, session_id): (u64, &str),
        envelope: &Envelope<'_>,
        now: Tick,
    ) -> Result<(SessionKey, StreamKey, u32), Refusal> {
        let known = self.home.sessions.find(hash);
        let subject = origin.client_id.get(..usize::from(subject_bytes)).unwrap_or(origin.client_id);
        let maker = if known.is_none() { self.home.sessions.target(Target::User, subject) } else { NOBODY };
        if known.is_none() {
            self.home.room_for_session(&self.cx, maker).map_err(|(code, message)| refusal_of(envelope, code, message, "/to"))?;
        }
        let level = known.map_or_else(|| self.storage.default_level(&self.cx), |session| self.level_of(session));
        let more = if known.is_none() { STATE_RECORD_BYTES_MAX } else { 0 };
        if let Some((code, message)) =
            self.storage.log_refuses_record(&self.cx, level, envelope.object.len() + RECORD_BYTES_MORE_MAX + more)
        {
            return Err(refusal_of(envelope, code, message, ""));
        }
        if !self.takes(io, origin.place, now) {
            return Err(refusal_of(envelope, ErrorCode::LimitBackpressure, TOO_MUCH, ""));
        }
        if let Some((code, message)) = known.and_then(|session| self.name_session(session, envelope, now)) {
            return Err(refusal_of(envelope, code, message, ""));
        }
        let session = known.unwrap_or_else(|| {
            let made = self.make_session(session_id, hash, maker, now);
            // The channel's name is in the log before its first message although the log is behind: room for both was checked.
            self.keep_session_first(made, now);
            made
        });
        let entry = self.home.sessions.sessions.get(session).map(|entry| (session, entry.stream, entry.epoch_number));
        entry.ok_or_else(|| refusal_of(envelope, ErrorCode::InternalUnavailable, "the channel is gone: try again", "/to"))
    }
}

impl Home {
    /// The session id of a channel, in the memory of `channel_id`.
    fn channel_named(&mut self, name: &str) -> String {
        let mut session_id = std::mem::take(&mut self.channel_id);
        session_id.clear();
        session_id.push_str("channel:");
        session_id.push_str(name);
        session_id
    }
}
