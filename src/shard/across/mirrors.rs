//! Between shards: messages received over the lanes, messages sent over them, and the mirrors of sessions whose home is another
//! shard.

use super::mesh::{Batch, Class, LANE_MESSAGES, LaneMessage, Page, Passing};
use crate::buffers::wipe;
use crate::close::CloseReason;
use crate::io::Io;
use crate::limits::ADDRESSES_MAX;
use crate::log::{Audience, Entry, HEADER_BYTES};
use crate::session::{MemberKey, Place, SessionKey, StreamKey};
use crate::shard::across::links::Links;
use crate::shard::connections::conn::Waiting;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::outbound::replies::AT_ONCE;
use crate::time::Tick;

/// Lane messages handled in one turn, for each sending shard.
const MESSAGES_PER_TURN_MAX: usize = 1024;
/// Bytes of records in a mirror batch.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Messages waiting for a full control lane above which no socket is handed to that shard.
const BACKLOG_MAX: usize = 4096;
/// Pages kept for later pulls.
const PAGES_KEPT_MAX: usize = 8;

impl Core {
    /// Handles messages from other shards. Returns `true` if some are left.
    pub(in crate::shard) fn drain_lanes<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        let mut spoken = self.links.spoken;
        self.links.mesh.door(self.cx.shard).take(&mut spoken.0);
        self.links.spoken = super::mesh::Spoken::default();
        while let Some(from) = spoken.pop() {
            self.links.reading_from = u16::try_from(from).ok();
            let mut budget = MESSAGES_PER_TURN_MAX;
            self.drain_control(io, from, &mut budget, now);
            while budget > 0 {
                let Some(message) = self.links.mesh.pop(from, self.cx.shard, Class::Data) else { break };
                budget -= 1;
                self.cx.counters.lane_in.increment();
                // Control messages sent before these records are handled before them, over the budget too.
                let mut all = LANE_MESSAGES;
                self.drain_control(io, from, &mut all, now);
                self.on_lane(io, message, now);
            }
            if budget == 0 {
                self.links.spoken.insert(from);
            }
        }
        self.links.reading_from = None;
        !self.links.spoken.is_empty()
    }

    fn drain_control<I: Io>(&mut self, io: &mut I, from: usize, budget: &mut usize, now: Tick) {
        while *budget > 0 {
            let Some(message) = self.links.mesh.pop(from, self.cx.shard, Class::Control) else { break };
            *budget -= 1;
            self.cx.counters.lane_in.increment();
            self.on_lane(io, message, now);
        }
    }

    fn on_lane<I: Io>(&mut self, io: &mut I, message: LaneMessage, now: Tick) {
        match message {
            LaneMessage::Handover(handover) => self.on_handover(io, handover, now),
            LaneMessage::Attach(request) => self.on_attach(io, &request, now),
            LaneMessage::Attached { place, session, outcome } => self.on_attached(io, place, session, *outcome, now),
            LaneMessage::Detach { member, place, clean, leave } => self.on_detach(member, place, clean, leave, now),
            LaneMessage::Unmirror { session, shard } => {
                if let Some(session) = self.home.sessions.find(session).and_then(|key| self.home.sessions.sessions.get_mut(key)) {
                    session.mirrors.retain(|mirror| mirror.shard != shard);
                }
            }
            LaneMessage::Forward { member, place, number, acks, text } => {
                self.links.forwarded = (number, acks);
                self.on_forward(io, member, place, text, now);
            }
            LaneMessage::Post(post) => {
                self.on_post(io, &post, now);
                self.links.give_back_heard(&mut self.cx, post.bytes);
            }
            LaneMessage::Reply { to, after, frame } => {
                if after == AT_ONCE {
                    self.connections.queue_frame(&mut self.cx, to.conn, &frame);
                    self.links.give_back_heard(&mut self.cx, frame);
                } else {
                    self.connections.put_ordered(&mut self.cx, to, after, Waiting::Frame(frame));
                }
            }
            LaneMessage::Data { to, after, of, frame } => self.put_data(to, after, of, frame),
            LaneMessage::History { to, after, frame } => {
                self.connections.put_ordered(&mut self.cx, to, after, Waiting::History(frame));
            }
            LaneMessage::Detached { to, after, frame } => {
                self.connections.put_ordered(&mut self.cx, to, after, Waiting::Detached(frame));
            }
            LaneMessage::Pong { to, after, id } => self.connections.put_ordered(&mut self.cx, to, after, Waiting::Pong(id)),
            LaneMessage::Entitle { to, entitlements } => self.connections.entitle(to, *entitlements),
            LaneMessage::Roles { member, place, roles } => {
                if self.home.sessions.members.get(member).is_some_and(|member| member.place == Some(place)) {
                    self.give_roles(member, &roles, now);
                    self.publish_entitlements(io, member);
                }
            }
            LaneMessage::Evict { to } => {
                if to.is_whole() || self.connections.attachment_at(to).is_some() {
                    self.connections.doom(to.conn, CloseReason::TooSlow);
                }
            }
            LaneMessage::Replaced { to } => self.on_replaced(io, to, now),
            LaneMessage::Records(batch) => self.on_records(io, batch),
            LaneMessage::Credit { session, shard, buffer } => {
                self.cx.buffers.give(buffer);
                self.on_credit(session, shard);
            }
            LaneMessage::Pull { member, place, after, page } => self.page_for(io, place, member, after, page),
            LaneMessage::Page { to, page } => {
                self.on_page(to, &page);
                self.links.keep_page(page);
            }
            LaneMessage::Passing(passing) => self.on_passing(passing),
            LaneMessage::Purge { session } => self.purge_mirror(session),
            LaneMessage::Flush { member, place } => self.flush_answers(member, place, now),
            LaneMessage::Fence { to } => self.on_fence(io, to),
            LaneMessage::Fenced { to } => self.connections.on_fenced(to),
        }
    }

    fn on_passing(&mut self, passing: Passing) {
        if let Some(stream) = self.links.mirrors.get(&passing.session).copied()
            && let Some((list, frame)) = passing.bytes.split_at_checked(passing.targets as usize * 8)
        {
            let mut targets = [0; ADDRESSES_MAX];
            let count = (passing.targets as usize).min(ADDRESSES_MAX);
            for (target, bytes) in targets.iter_mut().zip(list.as_chunks().0) {
                *target = u64::from_le_bytes(*bytes);
            }
            self.pass_here(stream, passing.sender, &targets[..count], frame);
        }
        self.links.give_back_heard(&mut self.cx, passing.bytes);
    }

    /// A buffer for a message to another shard: one returned from there, or else one of the pool.
    pub(in crate::shard) fn lane_buffer(&mut self, to: usize) -> Vec<u8> {
        let Some(mut buffer) = self.links.mesh.take_back(self.cx.shard, to) else { return self.cx.buffers.take() };
        if self.storage.wipes_until_ms > 0 {
            wipe(&mut buffer);
        }
        buffer
    }

    /// A buffer for a reply to a client, wherever it is.
    pub(in crate::shard) fn buffer_for(&mut self, to: Place) -> Vec<u8> {
        if to.shard == self.cx.shard_number() { self.cx.buffers.take() } else { self.lane_buffer(usize::from(to.shard)) }
    }

    fn on_detach(&mut self, member: MemberKey, place: Place, clean: bool, leave: bool, now: Tick) {
        self.storage.forget_history(&mut self.cx, place);
        self.member_left(member, place, clean, leave, now);
    }

    fn on_forward<I: Io>(&mut self, io: &mut I, member: MemberKey, place: Place, text: Vec<u8>, now: Tick) {
        let Some(mut parser) = self.codec.parser.take() else { return };
        // The text was parsed and found valid on the shard where it arrived.
        if let Ok(envelope) = parser.parse(&text) {
            match crate::protocol::command_kind(envelope.kind) {
                crate::protocol::Kind::Application => self.publish(io, place, member, &envelope, now),
                _ => self.command_at_home(io, place, member, &envelope, now),
            }
        }
        self.codec.parser = Some(parser);
        self.links.give_back_heard(&mut self.cx, text);
    }

    /// Sends mirrors the appended records, as far as their credits and the lanes allow. Returns `true` if a full lane holds some
    /// back.
    pub(in crate::shard) fn push_mirrors<I: Io>(&mut self, io: &mut I) -> bool {
        let mut sessions = std::mem::take(&mut self.links.mirrored);
        sessions.retain(|session| self.push_session(io, *session));
        self.links.mirrored = sessions;
        !self.links.mirrored.is_empty()
    }

    /// Asks homes for the records that readers lack.
    pub(in crate::shard) fn send_pulls<I: Io>(&mut self, io: &mut I) {
        let mut pulls = std::mem::take(&mut self.links.pulls);
        for (place, member, after) in pulls.drain(..) {
            let Some(stream) = self.connections.attachment_at(place).map(|attachment| attachment.stream) else { continue };
            let page = self.links.pages.pop().unwrap_or_default();
            match self.home.streams.get(stream).map(|stream| stream.home) {
                Some(Some(home)) => self.links.send_control(&self.cx, io, home, LaneMessage::Pull { member, place, after, page }),
                Some(None) => self.page_for(io, place, member, after, page),
                None => self.links.keep_page(page),
            }
        }
        self.links.pulls = pulls;
    }

    /// Sends one session's mirrors the records they lack. Returns `false` if none lacks any, or all wait for credit.
    fn push_session<I: Io>(&mut self, io: &mut I, key: SessionKey) -> bool {
        let Some(session) = self.home.sessions.sessions.get(key) else { return false };
        let (hash, stream_key) = (session.hash, session.stream);
        let mut again = false;
        for number in 0..session.mirrors.len() {
            while let Some(mirror) = self.home.sessions.sessions.get(key).and_then(|session| session.mirrors.get(number)).copied()
            {
                let Some(stream) = self.home.streams.get(stream_key) else { return false };
                let mut from = mirror.next_seq.max(stream.index.dense_first());
                // Records that have left memory are not sent: readers there ask for pages.
                while stream.index.get(from).is_some_and(|entry| entry.at < self.storage.log.resident()) {
                    from += 1;
                }
                // If all records that it lacks are gone, an empty batch tells it so: its readers ask for a page, and are told of
                // the gap.
                if mirror.credits == 0 || from > stream.head() && mirror.next_seq > stream.head() {
                    break;
                }
                let from = from.min(stream.head() + 1);
                if !self.links.takes_data(&self.cx, usize::from(mirror.shard)) {
                    again = true;
                    break;
                }
                let batch = self.batch_of(stream_key, hash, from);
                let count = u64::from(batch.count);
                self.links.push_data(&self.cx, io, usize::from(mirror.shard), LaneMessage::Records(batch));
                if let Some(mirror) = self.home.sessions.sessions.get_mut(key).and_then(|session| session.mirrors.get_mut(number))
                {
                    mirror.next_seq = from + count;
                    mirror.credits -= 1;
                }
            }
        }
        again
    }

    fn batch_of(&mut self, stream: StreamKey, session: u64, from: u64) -> Batch {
        let mut records = self.cx.buffers.take();
        let mut count = 0;
        if let Some(stream) = self.home.streams.get(stream) {
            for seq in from..=stream.head() {
                let Some(entry) = stream.index.get(seq) else { break };
                if count > 0 && records.len() + 8 + entry.record_bytes() as usize > BATCH_BYTES_MAX {
                    break;
                }
                records.extend_from_slice(&entry.record_bytes().to_le_bytes());
                records.extend_from_slice(&entry.frame_at.to_le_bytes());
                records.extend_from_slice(self.storage.log.bytes(entry.at, 0, entry.record_bytes()));
                count += 1;
            }
        }
        Batch { session, first_seq: from, count, records }
    }

    /// Handles records for a mirror here.
    fn on_records<I: Io>(&mut self, io: &mut I, batch: Batch) {
        let Some(key) = self.links.mirrors.get(&batch.session).copied() else {
            self.cx.counters.dropped(DropReason::LaneStale, 1);
            return;
        };
        let Some(stream) = self.home.streams.get_mut(key) else { return };
        let home = stream.home;
        if stream.opening || batch.first_seq != stream.head() + 1 {
            // The mirror's first records, or those after a hole: readers behind them ask the home for pages.
            stream.opening = false;
            let old_head = stream.head();
            stream.index.restart(batch.first_seq);
            self.unrest_readers(key, old_head);
        }
        let Some(stream) = self.home.streams.get_mut(key) else { return };
        let mut rest = &batch.records[..];
        while let Some((lengths, behind)) = rest.split_first_chunk::<8>() {
            let word = |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
            let (bytes, frame_at) = (word(0) as usize, word(4) as usize);
            let Some((record, behind)) = behind.split_at_checked(bytes) else { break };
            rest = behind;
            let put = self.links.mirror_log.append_copy(record, frame_at);
            let audience = Audience::of_record(record.get(HEADER_BYTES..frame_at).unwrap_or_default());
            stream.index.push(Entry::new(put, audience, sender_of(record)));
        }
        self.trim(key);
        self.home.note_broadcast(key, batch.first_seq);
        if let Some(home) = home {
            let mut buffer = batch.records;
            buffer.clear();
            let credit = LaneMessage::Credit { session: batch.session, shard: self.cx.shard_number(), buffer };
            self.links.send_control(&self.cx, io, home, credit);
        }
    }

    /// Un-parks readers after a hole in the mirror, so that they request the missing records instead of skipping them. They
    /// continue from where they were, which is before records shortly before the hole for which they have not been woken yet.
    fn unrest_readers(&mut self, key: StreamKey, old_head: u64) {
        let Some(stream) = self.home.streams.get(key) else { return };
        let (readers, reached) = (stream.readers.clone(), stream.unwoken_from(old_head + 1) - 1);
        for reader in readers {
            if let Some(attachment) =
                self.connections.get_mut(reader.conn).and_then(|conn| conn.attachment_mut(reader.attachment))
                && std::mem::take(&mut attachment.idle)
            {
                attachment.cursor = attachment.cursor.max(reached);
            }
        }
    }

    fn on_credit(&mut self, session: u64, shard: u16) {
        let Some(key) = self.home.sessions.find(session) else { return };
        if let Some(mirror) = self
            .home
            .sessions
            .sessions
            .get_mut(key)
            .and_then(|session| session.mirrors.iter_mut().find(|mirror| mirror.shard == shard))
        {
            mirror.credits = (mirror.credits + 1).min(crate::shard::home::attach::MIRROR_CREDITS);
            if !self.links.mirrored.contains(&key) {
                self.links.mirrored.push(key);
            }
        }
    }

    pub(in crate::shard) fn on_page(&mut self, to: Place, page: &Page) {
        let Some(attachment) = self.connections.attachment_at(to) else { return };
        let stream = attachment.stream;
        if !std::mem::take(&mut attachment.pulling) {
            return;
        }
        if attachment.cursor != page.after {
            // The reader was told of a gap while the page was read, and asks again from behind it.
            return self.connections.mark(to.conn);
        }
        // A reply that waits for a place within the page is sent there; records behind it are requested again.
        let waits_at = attachment.ordered.front().map_or(u64::MAX, |ordered| ordered.after.max(page.after));
        let gap_to = page.gap.map_or(0, |(_, to)| to);
        let cut = waits_at.max(gap_to);
        let count = page.ends.iter().take_while(|(seq, _)| *seq <= cut).count();
        attachment.cursor = page.cursor.min(cut);
        let mut bytes = 0;
        if let Some((seq, end)) = count.checked_sub(1).and_then(|last| page.ends.get(last)) {
            attachment.delivered_seq = *seq;
            bytes = *end as usize;
        }
        if let Some((from, upto)) = page.gap {
            self.cx.counters.gaps.increment();
            let id = self.cx.event_id();
            let session_id = self.home.streams.get(stream).map_or_else(Box::default, |stream| stream.session_id.clone());
            let head = crate::protocol::Head { id: &id, session_id: &session_id };
            self.connections.reply_now(&mut self.cx, to.conn, |out| crate::protocol::gap(out, head, from, upto));
        }
        self.cx.counters.delivered.add(count as u64);
        if let Some(conn) = self.connections.get_mut(to.conn) {
            conn.messages_out += count as u64;
        }
        if bytes == 0 {
            self.connections.mark(to.conn);
        } else {
            self.connections.queue_frame(&mut self.cx, to.conn, &page.frames[..bytes]);
        }
    }

    /// Puts a client's message in the control lane, where it stays in order with its connection's other actions; the message is
    /// written once there is room for it. Returns `false` if the lane is half full, or messages before it wait.
    pub(in crate::shard) fn offer<I: Io>(&mut self, io: &mut I, to: usize, write: impl FnOnce(Vec<u8>) -> LaneMessage) -> bool {
        if !self.links.backlog[to].is_empty() || !self.links.mesh.has_room(self.cx.shard, to, Class::Control) {
            self.cx.counters.lane_full.increment();
            self.cx.counters.limit_reached(LimitReached::Lane);
            return false;
        }
        let message = write(self.lane_buffer(to));
        self.links.send_lane(&self.cx, io, to, message);
        true
    }
}

fn sender_of(record: &[u8]) -> u64 {
    record.get(48..56).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Links {
    /// Keeps an emptied page for a later pull.
    pub(in crate::shard) fn keep_page(&mut self, mut page: Box<Page>) {
        // Pages are few: wipe this one, so that no old frame stays.
        page.frames.fill(0);
        if self.pages.len() < PAGES_KEPT_MAX {
            self.pages.push(page);
        }
    }

    /// Returns the emptied buffer of a message to the shard that sent it; if there is no room, to the pool.
    pub(in crate::shard) fn give_back(&mut self, cx: &mut Context, from: u16, buffer: Vec<u8>) {
        if let Err(buffer) = self.mesh.give_back(usize::from(from), cx.shard, buffer) {
            cx.buffers.give(buffer);
        }
    }

    /// Returns the buffer of a message from the shard whose lane is being read.
    fn give_back_heard(&mut self, cx: &mut Context, buffer: Vec<u8>) {
        match self.reading_from {
            Some(from) => self.give_back(cx, from, buffer),
            None => cx.buffers.give(buffer),
        }
    }

    /// Returns `true` if the data lane has room, and no replies wait: these go first, since they come before the records that
    /// follow. This shard is the only sender in the lane, so the room stays.
    pub(in crate::shard) fn takes_data(&self, cx: &Context, to: usize) -> bool {
        let takes = self.backlog[to].is_empty() && self.mesh.has_room(cx.shard, to, Class::Data);
        if !takes {
            cx.counters.lane_full.increment();
        }
        takes
    }

    /// Puts records, or an ephemeral message, in the data lane, which has room ([`Self::takes_data`]).
    pub(in crate::shard) fn push_data<I: Io>(&mut self, cx: &Context, io: &mut I, to: usize, message: LaneMessage) {
        let pushed = self.push_lane(cx, io, to, Class::Data, message);
        debug_assert!(pushed.is_ok(), "nobody else fills this lane");
    }

    /// Returns `true` if the backlog to `shard` is too long to hand a connection over.
    pub(in crate::shard) fn hears_no_more(&self, shard: usize) -> bool {
        self.backlog[shard].len() >= BACKLOG_MAX
    }

    /// Puts a message that must not be lost in a lane, now or when there is room.
    pub(in crate::shard) fn send_lane<I: Io>(&mut self, cx: &Context, io: &mut I, to: usize, message: LaneMessage) {
        if !self.backlog[to].is_empty() {
            self.wait_for_lane(cx, to, message);
        } else if let Err(message) = self.push_lane(cx, io, to, Class::Control, message) {
            self.wait_for_lane(cx, to, message);
        }
    }

    fn push_lane<I: Io>(
        &self,
        cx: &Context,
        io: &mut I,
        to: usize,
        class: Class,
        message: LaneMessage,
    ) -> Result<(), LaneMessage> {
        match self.mesh.push(cx.shard, to, class, message) {
            Ok(ring) => {
                cx.counters.lane_out.increment();
                if ring {
                    cx.counters.bells.increment();
                    io.ring_bell(to);
                }
                Ok(())
            }
            Err(message) => {
                cx.counters.lane_full.increment();
                Err(message)
            }
        }
    }

    /// Sends messages that waited for full lanes. Returns `true` if some still wait.
    pub(in crate::shard) fn push_backlog<I: Io>(&mut self, cx: &Context, io: &mut I) -> bool {
        let mut waits = false;
        for to in 0..self.backlog.len() {
            while let Some(message) = self.backlog[to].pop_front() {
                let bytes = message.bytes() as u64;
                if let Err(message) = self.push_lane(cx, io, to, Class::Control, message) {
                    self.backlog[to].push_front(message);
                    waits = true;
                    break;
                }
                cx.counters.lane_backlog_bytes.subtract(bytes);
                cx.counters.buffer_bytes.subtract(bytes);
            }
            if self.backlog[to].is_empty() {
                self.evicted[to].clear();
            }
        }
        waits
    }
}
