//! The way out, one page: what each dirty connection is to be sent, one send for it, and what the socket took of that.
//!
//! Three passes a block of connections. *Plan* (mutable): moves cursors past what is not for the reader, lets ordered replies out, and
//! notes pieces. *Send* (shared): turns pieces into slices of the queue and the log. *Settle* (mutable): books what was taken.

use super::conn::{Conn, Phase, Waiting};
use super::core::Core;
use super::counters::{DropReason, LimitReached};
use super::lanes::LaneMessage;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::{Io, Read, Send, Sent};
use crate::limits::{SEND_BYTES_MAX, SEND_PARTS_MAX};
use crate::log::{Audience, Entry, Log, Position};
use crate::protocol::Head;
use crate::session::{Place, Reader, StreamKey};
use crate::time::Tick;
use crate::ws::encoder::{OpenFrame, frame};
use crate::ws::{Opcode, encoder};
use hashbrown::HashTable;

/// Readers of a stream from which on a turn's frames are gathered once for all of them.
const SHARED_READERS_MIN: usize = 8;
/// Connections planned before the block is sent.
const BLOCK: usize = 128;
/// Records a reader may skip in one plan: the rest next time.
const SCAN_MAX: usize = 4096;
/// Ordered replies let out in one plan.
const ORDERED_PER_PLAN_MAX: usize = 64;
/// A queue above this many times the reply limit (and a page of history) ends its connection.
const HARD_QUEUE_FACTOR: usize = 8;

/// What one part of a send is.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The connection's queue.
    Queue,
    /// One record's frame.
    Frame { mirror: bool, entry: Entry },
    /// All frames of a shared batch.
    Shared { batch: u32 },
    /// A frame deflated in this flush.
    Deflated { start: u32 },
    /// Ciphertext.
    Tls,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    source: Source,
    bytes: u32,
    attachment: u16,
    /// The last `seq` of the piece that is for the reader, and where its cursor stands after it.
    seq: u64,
    upto: u64,
    frames: u32,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    conn: ConnId,
    first: u32,
    count: u32,
}

/// A stream's new frames, gathered once for its many readers.
#[derive(Debug)]
struct Batch {
    stream: StreamKey,
    from: u64,
    to: u64,
    start: u32,
    bytes: u32,
    /// Ends of its frames, as places among `ends`.
    first_end: u32,
    senders: Senders,
}

/// Who sent the frames of a batch: they do not get it whole.
#[derive(Clone, Copy, Debug, Default)]
struct Senders {
    list: [u64; 8],
    len: usize,
}

/// The buffers of the way out, kept between turns.
#[derive(Default)]
pub(super) struct Outbound {
    pieces: Vec<Piece>,
    plans: Vec<Plan>,
    parts: Vec<&'static [u8]>,
    sends: Vec<Send<'static>>,
    results: Vec<Sent>,
    shared: Vec<u8>,
    ends: Vec<u32>,
    batches: Vec<Batch>,
    deflated: Vec<u8>,
    deflated_at: HashTable<(u64, u32, u32)>,
    pub(super) readers: Vec<Reader>,
    pub(super) places: Vec<Place>,
}

/// An emptied vector's memory for elements of another lifetime. Collecting an empty vector in place keeps its allocation.
pub(super) fn reuse<A, B>(mut from: Vec<A>) -> Vec<B> {
    from.clear();
    from.into_iter().map_while(|_| None).collect()
}

impl Core {
    /// Queues a text for a connection at once, before anything that waits for its place.
    pub(super) fn reply_now(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        if conn.id != id || matches!(conn.phase, Phase::Closing(_)) {
            return;
        }
        if conn.queue.capacity() == 0 {
            conn.queue = self.buffers.take();
        }
        let before = conn.queue.len();
        let open = OpenFrame::begin(&mut conn.queue);
        write(&mut conn.queue);
        open.finish(Opcode::Text, &mut conn.queue);
        conn.queued_frames += 1;
        self.counters.buffer_bytes.add((conn.queue.len() - before) as u64);
        self.check_budget(id);
        self.mark(id);
    }

    /// Queues a finished frame.
    pub(super) fn queue_frame(&mut self, id: ConnId, frame: &[u8]) {
        let Some(conn) = self.conns.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        if conn.id != id || matches!(conn.phase, Phase::Closing(_)) {
            return;
        }
        if conn.queue.capacity() == 0 {
            conn.queue = self.buffers.take();
        }
        conn.queue.extend_from_slice(frame);
        conn.queued_frames += 1;
        self.counters.buffer_bytes.add(frame.len() as u64);
        self.check_budget(id);
        self.mark(id);
    }

    pub(super) fn queue_pong(&mut self, id: ConnId, payload: &[u8]) {
        let Some(conn) = self.conns.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        // RFC 6455 5.5.3: one answer, to the newest, is enough where several wait; for a peer that does not read there is only one.
        if conn.flags.blocked && std::mem::replace(&mut conn.flags.pong_queued, true) {
            self.counters.dropped(DropReason::PongPending, 1);
            return;
        }
        if conn.queue.capacity() == 0 {
            conn.queue = self.buffers.take();
        }
        let before = conn.queue.len();
        encoder::pong(payload, &mut conn.queue);
        self.counters.buffer_bytes.add((conn.queue.len() - before) as u64);
        self.mark(id);
    }

    /// A reply in its place in the order of one of a connection's sessions.
    pub(super) fn reply_after(&mut self, id: ConnId, attachment: u16, after: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.buffers.take();
        let open = OpenFrame::begin(&mut bytes);
        write(&mut bytes);
        open.finish(Opcode::Text, &mut bytes);
        self.put_ordered(id, attachment, after, Waiting::Frame(bytes));
    }

    /// A reply to wherever a client is; `after` 0: at once.
    pub(super) fn reply_to(&mut self, to: Place, after: u64, write: impl FnOnce(&mut Vec<u8>)) {
        if to.shard == self.shard_number() {
            if after == 0 {
                return self.reply_now(to.conn, write);
            }
            return self.reply_after(to.conn, to.attachment, after, write);
        }
        let mut bytes = self.buffers.take();
        let open = OpenFrame::begin(&mut bytes);
        write(&mut bytes);
        open.finish(Opcode::Text, &mut bytes);
        self.lane_backlog[usize::from(to.shard)].push_back(LaneMessage::Reply { to, after, frame: bytes });
    }

    /// Ends a connection that lets too much wait, and holds the shard to its memory.
    pub(super) fn check_budget(&mut self, id: ConnId) {
        let limits = &self.snapshot.settings.limits;
        let hard = limits.reply_queue_bytes * HARD_QUEUE_FACTOR + crate::limits::HISTORY_PAGE_BYTES_MAX;
        let (memory, frames_max) = (limits.shard_memory_bytes, limits.reply_queue_frames * HARD_QUEUE_FACTOR);
        let Some(conn) = self.conn(id) else { return };
        if matches!(conn.phase, Phase::Echo) {
            return;
        }
        if conn.queued_bytes() > hard || conn.queued_frames as usize > frames_max {
            self.counters.limit_reached(LimitReached::ReplyQueue);
            self.counters.dropped(DropReason::ReplyQueueFull, 1);
            self.doom(id, CloseReason::TooSlow);
        } else if self.counters.buffer_bytes.get() > memory as u64 {
            self.counters.limit_reached(LimitReached::ShardMemory);
            self.doom(id, CloseReason::TooSlow);
        }
    }

    pub(super) fn on_writable(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id) {
            conn.flags.blocked = false;
            conn.flags.pong_queued = false;
            self.mark(id);
        }
    }

    /// Sends to up to `sends_max` dirty connections; true if some are left.
    pub(super) fn flush<I: Io>(&mut self, io: &mut I, now: Tick, sends_max: usize) -> bool {
        self.gather_batches();
        let mut left = sends_max.min(self.dirty.len());
        while left > 0 {
            let block = left.min(BLOCK);
            left -= block;
            self.send_block(io, now, block);
        }
        // Those left over read the log itself next time.
        self.out.batches.clear();
        self.out.deflated.clear();
        self.out.deflated_at.clear();
        self.out.shared.clear();
        self.out.ends.clear();
        !self.dirty.is_empty()
    }

    /// Marks the readers of streams with new records for everyone, and gathers frames where many will read the same ones.
    fn gather_batches(&mut self) {
        while let Some(key) = self.dirty_streams.pop() {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.dirty = false;
            let from = std::mem::take(&mut stream.broadcast_from);
            let readers = std::mem::take(&mut self.out.readers);
            let mut readers = reuse(readers);
            readers.extend_from_slice(&stream.readers);
            if readers.len() >= SHARED_READERS_MIN && stream.index.head() > from {
                self.gather(key, from);
            }
            for reader in readers.drain(..) {
                let Some(conn) = self.conns.get_mut(reader.conn.index as usize).and_then(Option::as_deref_mut) else { continue };
                if conn.id != reader.conn {
                    continue;
                }
                if let Some(attachment) = conn.attachment_mut(reader.attachment)
                    && std::mem::take(&mut attachment.idle)
                {
                    attachment.cursor = attachment.cursor.max(from - 1);
                }
                if !conn.flags.dirty && !conn.flags.blocked {
                    conn.flags.dirty = true;
                    self.dirty.push_back(reader.conn);
                }
            }
            self.out.readers = readers;
        }
    }

    fn gather(&mut self, key: StreamKey, from: u64) {
        let Some(stream) = self.streams.get(key) else { return };
        let log = if stream.home.is_some() { &self.mirror_log } else { &self.log };
        let out = &mut self.out;
        let (start, first_end) = (out.shared.len(), out.ends.len());
        let mut senders = Senders::default();
        let mut to = from - 1;
        for seq in from..=stream.index.head() {
            let Some(entry) = stream.index.get(seq) else { break };
            let known = senders.list[..senders.len].contains(&entry.sender);
            let room = out.shared.len() - start + entry.frame_bytes as usize <= SEND_BYTES_MAX;
            if entry.audience != Audience::All || !room || (!known && senders.len == senders.list.len()) {
                break;
            }
            if !known {
                senders.list[senders.len] = entry.sender;
                senders.len += 1;
            }
            out.shared.extend_from_slice(log.bytes(entry.at, entry.frame_at, entry.frame_bytes));
            out.ends.push(u32::try_from(out.shared.len() - start).unwrap_or(u32::MAX));
            to = seq;
        }
        // One frame is read straight from the log.
        if to <= from {
            out.shared.truncate(start);
            out.ends.truncate(first_end);
            return;
        }
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        out.batches.push(Batch {
            stream: key,
            from,
            to,
            start: place(start),
            bytes: place(out.shared.len() - start),
            first_end: place(first_end),
            senders,
        });
    }

    fn send_block<I: Io>(&mut self, io: &mut I, now: Tick, count: usize) {
        let mut out = std::mem::take(&mut self.out);
        out.pieces.clear();
        out.plans.clear();
        for _ in 0..count {
            let Some(id) = self.dirty.pop_front() else { break };
            let first = out.pieces.len();
            self.plan(io, id, &mut out, now);
            let planned = out.pieces.len() - first;
            if planned > 0 {
                let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
                out.plans.push(Plan { conn: id, first: place(first), count: place(planned) });
            }
        }
        self.send_planned(io, &mut out);
        let results = std::mem::take(&mut out.results);
        for (plan, sent) in out.plans.iter().zip(&results) {
            let (first, count) = (plan.first as usize, plan.count as usize);
            self.settle(io, plan.conn, &out.pieces[first..first + count], *sent, &out, now);
        }
        out.results = results;
        self.out = out;
    }

    fn send_planned<I: Io>(&self, io: &mut I, out: &mut Outbound) {
        let mut parts: Vec<&[u8]> = reuse(std::mem::take(&mut out.parts));
        let mut sends: Vec<Send<'_>> = reuse(std::mem::take(&mut out.sends));
        let mut results = std::mem::take(&mut out.results);
        for plan in &out.plans {
            let (first, count) = (plan.first as usize, plan.count as usize);
            for piece in &out.pieces[first..first + count] {
                parts.push(self.slice_of(plan.conn, piece, out));
            }
        }
        sends.extend(out.plans.iter().map(|plan| {
            let (first, count) = (plan.first as usize, plan.count as usize);
            Send { conn: plan.conn, parts: &parts[first..first + count] }
        }));
        io.send_batch(&sends, &mut results);
        self.counters.sends.add(sends.len() as u64);
        let (sends, parts) = (reuse(sends), reuse(parts));
        out.sends = sends;
        out.parts = parts;
        out.results = results;
    }

    fn slice_of<'a>(&'a self, id: ConnId, piece: &Piece, out: &'a Outbound) -> &'a [u8] {
        match piece.source {
            Source::Queue => self.conn(id).map_or(&[], |conn| &conn.queue[conn.queue_at as usize..]),
            Source::Tls => self.conn(id).and_then(|conn| conn.tls.as_ref()).map_or(&[], |tls| tls.pending()),
            Source::Frame { mirror, entry } => self.log_of(mirror).bytes(entry.at, entry.frame_at, entry.frame_bytes),
            Source::Shared { batch } => {
                let batch = &out.batches[batch as usize];
                &out.shared[batch.start as usize..(batch.start + batch.bytes) as usize]
            }
            Source::Deflated { start } => &out.deflated[start as usize..start as usize + piece.bytes as usize],
        }
    }

    const fn log_of(&self, mirror: bool) -> &Log {
        if mirror { &self.mirror_log } else { &self.log }
    }

    /// Notes what a connection is to be sent now.
    fn plan<I: Io>(&mut self, io: &mut I, id: ConnId, out: &mut Outbound, now: Tick) {
        let Some(mut conn) = self.conns.get_mut(id.index as usize).and_then(Option::take) else { return };
        if conn.id != id || conn.flags.blocked {
            conn.flags.dirty = false;
            self.conns[id.index as usize] = Some(conn);
            return;
        }
        conn.flags.dirty = false;
        let first = out.pieces.len();
        if matches!(conn.phase, Phase::Open) {
            for number in 0..conn.slots.len() {
                self.plan_attachment(&mut conn, number, out, first);
            }
        }
        let queued = conn.queue.len() - conn.queue_at as usize;
        if queued > 0 {
            // Planned last, sent first: letting ordered replies out has grown it.
            let bytes = u32::try_from(queued).unwrap_or(u32::MAX);
            let piece = Piece { source: Source::Queue, bytes, attachment: 0, seq: 0, upto: 0, frames: conn.queued_frames };
            out.pieces.insert(first, piece);
        }
        let dirty_again = conn.tls.is_some() && self.encrypt(&mut conn, out, first);
        self.conns[id.index as usize] = Some(conn);
        if out.pieces.len() == first {
            if self.conn(id).is_some_and(|conn| has_more(conn, self)) {
                // The scan's budget is used up; the rest comes after the others.
                self.mark(id);
            } else {
                self.after_flush(io, id, now);
            }
        } else if dirty_again {
            self.mark(id);
        }
    }

    /// Replaces the pieces of a TLS connection by their ciphertext; cursors move when encrypted. True if plaintext is left.
    fn encrypt(&mut self, conn: &mut Conn, out: &mut Outbound, first: usize) -> bool {
        let pieces: Vec<Piece> = out.pieces.drain(first..).collect();
        let mut left = false;
        for piece in &pieces {
            let source: Vec<u8> = match piece.source {
                Source::Queue => conn.queue[conn.queue_at as usize..].to_vec(),
                _ => self.slice_of(conn.id, piece, out).to_vec(),
            };
            let Some(tls) = &mut conn.tls else { break };
            let taken = tls.encrypt(&[&source]);
            self.book(conn, piece, taken, out);
            if taken < source.len() {
                left = true;
                break;
            }
        }
        if let Some(tls) = &mut conn.tls {
            if !left && conn.flags.close_notify && conn.queue.is_empty() {
                conn.flags.close_notify = false;
                tls.close();
            }
            let bytes = u32::try_from(tls.pending().len()).unwrap_or(u32::MAX);
            if bytes > 0 {
                out.pieces.push(Piece { source: Source::Tls, bytes, attachment: 0, seq: 0, upto: 0, frames: 0 });
            }
        }
        left
    }

    /// Notes what one of a connection's sessions has for it.
    fn plan_attachment(&mut self, conn: &mut Conn, number: usize, out: &mut Outbound, first: usize) {
        if let Some(attachment) = conn.slots.get(number).and_then(super::conn::Slot::attached) {
            self.trim(attachment.stream);
        }
        let Some(attachment) = conn.slots.get_mut(number).and_then(super::conn::Slot::attached_mut) else { return };
        let stream_key = attachment.stream;
        let Some(stream) = self.streams.get(stream_key) else { return };
        let mirror = stream.home.is_some();
        let log = if mirror { &self.mirror_log } else { &self.log };
        let Some(number) = u16::try_from(number).ok() else { return };
        let mut let_out = 0;
        let mut scanned = 0;
        let mut collected = false;
        let mut cursor = attachment.cursor;
        loop {
            let head = stream.index.head();
            // A reply in its place: everything before it has gone, so it goes next.
            let waits_at = attachment.ordered.front().map(|ordered| ordered.after);
            if let Some(after) = waits_at
                && cursor >= after
            {
                if collected {
                    break;
                }
                attachment.cursor = cursor;
                let_out += 1;
                if let_out > ORDERED_PER_PLAN_MAX {
                    break;
                }
                if let Some(ordered) = attachment.ordered.pop_front() {
                    let seq = head.max(cursor);
                    let session_id = &stream.session_id;
                    let delivered_seq = attachment.delivered_seq;
                    if conn.queue.capacity() == 0 {
                        conn.queue = self.buffers.take();
                    }
                    let bytes = match ordered.what {
                        Waiting::Frame(bytes) | Waiting::Passing(bytes) => {
                            conn.queue.extend_from_slice(&bytes);
                            let len = bytes.len();
                            self.buffers.give(bytes);
                            len
                        }
                        Waiting::Pong(id) => {
                            let before = conn.queue.len();
                            let open = OpenFrame::begin(&mut conn.queue);
                            crate::protocol::pong(&mut conn.queue, Head { id: &id, session_id }, seq, delivered_seq);
                            open.finish(Opcode::Text, &mut conn.queue);
                            self.counters.buffer_bytes.add((conn.queue.len() - before) as u64);
                            self.counters.buffer_bytes.subtract(id.len() as u64);
                            id.len()
                        }
                    };
                    conn.ordered_bytes = conn.ordered_bytes.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
                }
                continue;
            }
            if cursor >= head {
                break;
            }
            let full = out.pieces.len() - first + 1 >= SEND_PARTS_MAX || scanned >= SCAN_MAX;
            let bytes: usize = if collected { out.pieces[first..].iter().map(|piece| piece.bytes as usize).sum() } else { 0 };
            if full || bytes >= SEND_BYTES_MAX {
                break;
            }
            let next = cursor + 1;
            if next < stream.index.first() {
                if collected {
                    break;
                }
                attachment.cursor = cursor;
                if mirror {
                    if !attachment.pulling {
                        attachment.pulling = true;
                        self.pulls.push((
                            Place { shard: self.shard_number(), attachment: number, conn: conn.id },
                            attachment.member,
                            cursor,
                        ));
                    }
                    break;
                }
                let to = stream.index.first() - 1;
                cursor =
                    write_gap(conn, &mut self.buffers, &self.counters, number, &stream.session_id, cursor, to, self.random_id);
                self.random_id = self.random_id.wrapping_add(1);
                let Some(again) = conn.attachment_mut(number) else { return };
                again.cursor = cursor;
                return self.plan_attachment(conn, usize::from(number), out, first);
            }
            if let Some(batch) = self.batch_for(out, stream_key, next, attachment.entitlements.client)
                && waits_at.is_none_or(|after| after >= out.batches[batch].to)
                && !conn.flags.deflate
                && attachment.entitlements.hidden_to < next
            {
                let found = &out.batches[batch];
                let frames = u32::try_from(found.to - found.from + 1).unwrap_or(u32::MAX);
                let piece = Piece {
                    source: Source::Shared { batch: u32::try_from(batch).unwrap_or(u32::MAX) },
                    bytes: found.bytes,
                    attachment: number,
                    seq: found.to,
                    upto: found.to,
                    frames,
                };
                cursor = found.to;
                out.pieces.push(piece);
                collected = true;
                continue;
            }
            let Some(entry) = stream.index.get(next).copied() else { break };
            scanned += 1;
            let addresses =
                || log.bytes(entry.at, crate::log::HEADER_BYTES as u32, entry.frame_at - crate::log::HEADER_BYTES as u32);
            if attachment.entitlements.delivers(&entry, next, addresses) {
                let mut piece = Piece {
                    source: Source::Frame { mirror, entry },
                    bytes: entry.frame_bytes,
                    attachment: number,
                    seq: next,
                    upto: next,
                    frames: 1,
                };
                if conn.flags.deflate {
                    let plain = log.bytes(entry.at, entry.frame_at, entry.frame_bytes);
                    if let Some((start, bytes)) = deflated(
                        out,
                        &mut self.deflater,
                        entry.at,
                        mirror,
                        plain,
                        conn.window_bits,
                        self.snapshot.settings.deflate.min_bytes,
                    ) {
                        piece.source = Source::Deflated { start };
                        piece.bytes = bytes;
                    }
                }
                out.pieces.push(piece);
                collected = true;
            } else if collected {
                if let Some(last) = out.pieces.last_mut() {
                    last.upto = next;
                }
            } else {
                attachment.cursor = next;
            }
            cursor = next;
        }
        attachment.idle =
            !collected && attachment.ordered.is_empty() && attachment.cursor >= stream.index.head() && !attachment.pulling;
    }

    fn batch_for(&self, out: &Outbound, stream: StreamKey, next: u64, client: u64) -> Option<usize> {
        out.batches.iter().position(|batch| {
            batch.stream == stream && batch.from == next && !batch.senders.list[..batch.senders.len].contains(&client)
        })
    }

    /// Books what a socket took of its plan.
    fn settle<I: Io>(&mut self, io: &mut I, id: ConnId, pieces: &[Piece], sent: Sent, out: &Outbound, now: Tick) {
        let taken = match sent {
            Sent::Bytes(bytes) => bytes,
            Sent::Failed(errno) => {
                tracing::debug!(connection_id = %self.connection_id(id), errno, "send failed");
                // The end of stream may be on its way too; whichever comes first tells.
                if let Some(conn) = self.conn_mut(id) {
                    conn.flags.ended = true;
                }
                if self.conn(id).is_some_and(|conn| matches!(conn.phase, Phase::Closing(_))) {
                    self.drop_conn(io, id, now);
                } else {
                    self.doom(id, CloseReason::SocketError);
                }
                return;
            }
        };
        let Some(mut conn) = self.conns.get_mut(id.index as usize).and_then(Option::take) else { return };
        let expected: usize = pieces.iter().map(|piece| piece.bytes as usize).sum();
        let mut left = taken;
        for piece in pieces {
            let part = left.min(piece.bytes as usize);
            self.book(&mut conn, piece, part, out);
            left -= part;
            if part < piece.bytes as usize {
                break;
            }
        }
        self.counters.bytes_out.add(taken as u64);
        let short = taken < expected;
        if short {
            conn.flags.blocked = true;
            self.counters.sends_short.increment();
            io.want_write(id);
            if conn.stalled_ms == 0 {
                conn.stalled_ms = now.mono_ms().max(1);
                conn.stalled_taken = 0;
            }
        } else {
            conn.stalled_ms = 0;
        }
        conn.stalled_taken += taken as u64;
        let more = !short && has_more(&conn, self);
        self.conns[id.index as usize] = Some(conn);
        if short {
            self.set_timer(id, now);
        } else if more {
            self.mark(id);
        } else {
            self.rest(id);
            self.after_flush(io, id, now);
        }
    }

    /// Everything is sent: cursors at their heads are at rest.
    fn rest(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        for slot in &mut conn.slots {
            if let Some(attachment) = slot.attached_mut() {
                attachment.idle = attachment.ordered.is_empty()
                    && !attachment.pulling
                    && self.streams.get(attachment.stream).is_some_and(|stream| attachment.cursor >= stream.index.head());
            }
        }
    }

    /// Books `part` bytes of a piece as taken. A frame that was cut keeps its rest in the queue.
    fn book(&mut self, conn: &mut Conn, piece: &Piece, part: usize, out: &Outbound) {
        if part == 0 {
            return;
        }
        let whole = part == piece.bytes as usize;
        match piece.source {
            Source::Queue => {
                self.counters.buffer_bytes.subtract(part as u64);
                conn.queue_at += u32::try_from(part).unwrap_or(u32::MAX);
                if conn.queue_at as usize == conn.queue.len() {
                    conn.messages_out += u64::from(piece.frames);
                    self.counters.messages_out.add(u64::from(piece.frames));
                    conn.queued_frames = u32::try_from(
                        conn.slots
                            .iter()
                            .filter_map(|slot| slot.attached())
                            .map(|attachment| attachment.ordered.len())
                            .sum::<usize>(),
                    )
                    .unwrap_or(u32::MAX);
                    conn.queue_at = 0;
                    self.buffers.give(std::mem::take(&mut conn.queue));
                }
            }
            Source::Tls => {
                if let Some(tls) = &mut conn.tls {
                    tls.sent(part);
                }
            }
            Source::Frame { .. } | Source::Deflated { .. } => {
                self.delivered(conn, piece, piece.seq, piece.upto, 1);
                if !whole {
                    if conn.queue.capacity() == 0 {
                        conn.queue = self.buffers.take();
                    }
                    let rest = &self.slice_of(conn.id, piece, out)[part..];
                    conn.queue.extend_from_slice(rest);
                    self.counters.buffer_bytes.add(rest.len() as u64);
                }
            }
            Source::Shared { batch } if whole => {
                let batch = &out.batches[batch as usize];
                self.delivered(conn, piece, batch.to, batch.to, u64::from(piece.frames));
            }
            Source::Shared { batch } => {
                let batch = &out.batches[batch as usize];
                let ends = &out.ends[batch.first_end as usize..batch.first_end as usize + piece.frames as usize];
                let frames = ends.iter().take_while(|end| **end as usize <= part).count();
                let (start, bytes) = (batch.start as usize, batch.bytes as usize);
                // The frame that was cut counts as delivered: its rest is committed.
                let cut = ends.get(frames).copied().map_or(bytes, |end| end as usize);
                let begun = frames > 0 && ends[frames - 1] as usize == part;
                let count = if begun { frames } else { frames + 1 };
                let seq = batch.from + count as u64 - 1;
                self.delivered(conn, piece, seq, seq, count as u64);
                if !begun {
                    let rest = &out.shared[start + part..start + cut];
                    keep(conn, &mut self.buffers, rest);
                    self.counters.buffer_bytes.add(rest.len() as u64);
                }
            }
        }
    }

    fn delivered(&self, conn: &mut Conn, piece: &Piece, seq: u64, upto: u64, frames: u64) {
        conn.messages_out += frames;
        self.counters.delivered.add(frames);
        self.counters.messages_out.add(frames);
        if let Some(attachment) = conn.attachment_mut(piece.attachment) {
            attachment.delivered_seq = seq;
            attachment.cursor = upto;
        }
    }

    /// Nothing waits for this connection any more: reading goes on, a close goes on.
    fn after_flush<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let resume_below = self.snapshot.settings.limits.reply_queue_bytes / 2;
        let Some(conn) = self.conn_mut(id) else { return };
        match &mut conn.phase {
            Phase::Closing(closing) => {
                if closing.peer_done && !std::mem::replace(&mut closing.finished, true) {
                    io.finish(id);
                }
            }
            Phase::HandingOver(_) if !conn.flags.blocked => self.on_quiet_after_flush(io, id, now),
            Phase::Open | Phase::Echo => {
                if conn.paused_ms > 0 && conn.queued_bytes() <= resume_below {
                    conn.paused_ms = 0;
                    io.read(id, Read::Stream);
                }
            }
            _ => {}
        }
    }

    /// A handover waits for its 101 to be sent; ask the engine once more whether the socket is quiet.
    fn on_quiet_after_flush<I: Io>(&mut self, io: &mut I, id: ConnId, _now: Tick) {
        io.read(id, Read::Off);
    }
}

/// Whether a connection that took everything has more to be sent.
fn has_more(conn: &Conn, core: &Core) -> bool {
    if !conn.queue.is_empty() || conn.tls.as_ref().is_some_and(|tls| !tls.pending().is_empty()) {
        return true;
    }
    if !matches!(conn.phase, Phase::Open) {
        return false;
    }
    conn.attachments().any(|(_, attachment)| {
        let head = core.streams.get(attachment.stream).map_or(0, |stream| stream.index.head());
        // A reply whose place a mirror has not reached yet waits for the mirror.
        let let_out = attachment.ordered.front().is_some_and(|ordered| ordered.after <= attachment.cursor);
        !attachment.pulling && (let_out || attachment.cursor < head)
    })
}

/// Commits the rest of a frame that was cut: it goes before everything else.
fn keep(conn: &mut Conn, buffers: &mut crate::ws::buffers::Buffers, rest: &[u8]) {
    if conn.queue.capacity() == 0 {
        conn.queue = buffers.take();
    }
    debug_assert!(conn.queue.is_empty(), "the queue goes out before any frame");
    conn.queue.extend_from_slice(rest);
}

/// Tells a reader what retention dropped before it got there; its cursor after that.
#[expect(clippy::too_many_arguments, reason = "borrowed piecewise from the shard")]
fn write_gap(
    conn: &mut Conn,
    buffers: &mut crate::ws::buffers::Buffers,
    counters: &super::counters::SharedCounters,
    _number: u16,
    session_id: &str,
    cursor: u64,
    to: u64,
    random_id: u64,
) -> u64 {
    counters.gaps.increment();
    let id = format!("rw-gap-{random_id:x}");
    let before = conn.queue.len();
    if conn.queue.capacity() == 0 {
        conn.queue = buffers.take();
    }
    let open = OpenFrame::begin(&mut conn.queue);
    crate::protocol::gap(&mut conn.queue, Head { id: &id, session_id }, cursor + 1, to);
    open.finish(Opcode::Text, &mut conn.queue);
    conn.queued_frames += 1;
    counters.buffer_bytes.add((conn.queue.len() - before) as u64);
    to
}

/// A frame's deflated form, made once a flush; `None` where it is not worth it.
fn deflated(
    out: &mut Outbound,
    deflater: &mut crate::ws::deflate::Deflater,
    at: Position,
    mirror: bool,
    plain: &[u8],
    window_bits: u8,
    min_bytes: usize,
) -> Option<(u32, u32)> {
    // A server frame's head is 2, 4 or 10 bytes, by its second byte.
    let head_bytes = match plain.get(1)? {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let payload = plain.get(head_bytes..)?;
    if payload.len() < min_bytes {
        return None;
    }
    let key = at.0 << 9 | u64::from(window_bits) << 1 | u64::from(mirror);
    if let Some((_, start, bytes)) = out.deflated_at.find(key, |(other, _, _)| *other == key) {
        return (*bytes > 0).then_some((*start, *bytes));
    }
    let start = out.deflated.len();
    let mut compressed = Vec::new();
    if deflater.deflate(payload, window_bits, &mut compressed) {
        frame(Opcode::Text, true, &compressed, &mut out.deflated);
    }
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    let found = (place(start), place(out.deflated.len() - start));
    out.deflated_at.insert_unique(key, (key, found.0, found.1), |(key, _, _)| *key);
    (found.1 > 0).then_some(found)
}
