//! The way out: the data for each dirty connection, one send for it, and booking the bytes that the socket took.
//!
//! There are three passes, with one enter of the kernel for all of a turn's sends: sends in small blocks with work in between
//! would wake a reader that has drained its sockets again and again. *Plan* (mutable): moves cursors past records that are not
//! for the reader, queues ordered replies, and notes pieces. *Send* (shared): turns pieces into slices of the queue and the log.
//! *Settle* (mutable): books the bytes taken.

use crate::buffers::wipe;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::{Io, Read, Send, Sent};
use crate::limits::{SEND_BYTES_MAX, SENDS_PER_TURN_MAX};
use crate::log::{Audience, Entry, Log};
use crate::session::{Place, Reader, StreamKey};
use crate::shard::connections::conn::{Conn, Paging, Phase, Slot};
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::ShardCounters;
use crate::time::Tick;
use hashbrown::HashTable;
use std::collections::VecDeque;

/// Readers of a stream from which on a turn's frames are gathered once for all of them.
const SHARED_READERS_MIN: usize = 8;
/// Bytes of gathered frames that may wait for readers of a later turn.
const SHARED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The source of one part of a send.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) enum Source {
    /// The connection's queue.
    Queue,
    /// The frame of a single record.
    Frame { mirror: bool, entry: Entry },
    /// All frames of a shared batch.
    Shared { batch: u32 },
    /// A frame deflated in this flush.
    Deflated { start: u32 },
    /// Ciphertext.
    Tls,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Piece {
    pub(in crate::shard) source: Source,
    pub(in crate::shard) bytes: u32,
    pub(in crate::shard) attachment: u16,
    /// The last `seq` of the piece that is for the reader, and its cursor after the piece.
    pub(in crate::shard) seq: u64,
    pub(in crate::shard) upto: u64,
    pub(in crate::shard) frames: u32,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    conn: ConnId,
    first: u32,
    count: u32,
}

/// A stream's new frames, gathered once for its many readers.
#[derive(Debug)]
pub(in crate::shard) struct Batch {
    pub(in crate::shard) stream: StreamKey,
    pub(in crate::shard) from: u64,
    pub(in crate::shard) to: u64,
    pub(in crate::shard) start: u32,
    pub(in crate::shard) bytes: u32,
    /// Ends of its frames, as a range of `ends`.
    pub(in crate::shard) first_end: u32,
    pub(in crate::shard) senders: Senders,
}

/// The senders of a batch's frames, who may not get it whole.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct Senders {
    pub(in crate::shard) list: [u64; 8],
    pub(in crate::shard) len: usize,
}

/// A stream whose readers are being woken, as many in one turn as it may send to.
#[derive(Clone, Copy, Debug)]
struct Waking {
    stream: StreamKey,
    /// The next reader, and the end of the range, unless the list ends before.
    next: usize,
    end: usize,
    /// Readers still to be woken after that, from the first on.
    rest: usize,
}

/// The buffers of the way out, kept between turns.
#[derive(Default)]
pub(in crate::shard) struct Outbound {
    pub(in crate::shard) pieces: Vec<Piece>,
    /// The stream that was last trimmed for a reader. Nothing is appended between the plans of a block: its other readers find it
    /// trimmed.
    pub(in crate::shard) trimmed: Option<StreamKey>,
    plans: Vec<Plan>,
    parts: Vec<&'static [u8]>,
    sends: Vec<Send<'static>>,
    results: Vec<Sent>,
    shared: Vec<u8>,
    ends: Vec<u32>,
    pub(in crate::shard) batches: Vec<Batch>,
    pub(in crate::shard) compressed: Vec<u8>,
    pub(in crate::shard) deflated: Vec<u8>,
    pub(in crate::shard) deflated_at: HashTable<(u64, u32, u32)>,
    waking: VecDeque<Waking>,
    pub(in crate::shard) readers: Vec<Reader>,
    pub(in crate::shard) places: Vec<Place>,
}

/// The memory of an emptied vector, for elements of another lifetime. Collecting an empty vector in place keeps its allocation.
pub(in crate::shard) fn reuse<A, B>(mut from: Vec<A>) -> Vec<B> {
    from.clear();
    from.into_iter().map_while(|_| None).collect()
}

impl Outbound {
    /// Drops the frames gathered for many readers: they read the records that still exist.
    pub(in crate::shard) fn forget_gathered(&mut self) {
        self.batches.clear();
        self.ends.clear();
        for buffer in [&mut self.shared, &mut self.compressed, &mut self.deflated] {
            wipe(buffer);
        }
        self.deflated_at.clear();
    }

    /// The frames gathered for many readers, plain and deflated.
    #[cfg(test)]
    pub(in crate::shard) fn memory(&self) -> impl Iterator<Item = &[u8]> {
        [&self.shared, &self.compressed, &self.deflated].into_iter().map(|buffer| &**buffer)
    }
}

impl Core {
    /// Sends to up to `sends_max` dirty connections. Returns `true` if some are left.
    pub(in crate::shard) fn flush<I: Io>(&mut self, io: &mut I, now: Tick, sends_max: usize) -> bool {
        self.begin_waking();
        // At least one round, in which streams without readers are finished.
        let mut left = sends_max.min(self.connections.dirty.len() + self.asleep()).max(1);
        let mut sent = 0;
        while left > 0 {
            let most = left.min(SENDS_PER_TURN_MAX);
            self.wake_some(most.saturating_sub(self.connections.dirty.len()));
            let block = most.min(self.connections.dirty.len());
            if block == 0 {
                break;
            }
            left -= block;
            sent += block;
            self.send_block(io, now, block);
        }
        let waiting = self.connections.dirty.len() + self.asleep();
        self.pressure.sent(sent, waiting, now);
        let more = waiting > 0 || !self.out.waking.is_empty();
        // The remaining readers find the batches again, unless these have grown too large meanwhile.
        if !more || self.out.shared.len() > SHARED_BYTES_MAX {
            self.out.batches.clear();
            self.out.shared.clear();
            self.out.ends.clear();
        }
        self.out.deflated.clear();
        self.out.deflated_at.clear();
        more
    }

    /// Queues streams with new records for everyone for waking, and gathers frames if many will read the same ones.
    fn begin_waking(&mut self) {
        while let Some(key) = self.home.dirty_streams.pop() {
            let Some(stream) = self.home.streams.get_mut(key) else { continue };
            stream.dirty = false;
            let from = std::mem::take(&mut stream.broadcast_from);
            let many = stream.readers.len() >= SHARED_READERS_MIN && stream.head() > from;
            if stream.waking_from == 0 {
                stream.waking_from = from;
                self.out.waking.push_back(Waking { stream: key, next: 0, end: usize::MAX, rest: 0 });
            } else if let Some(waking) = self.out.waking.iter_mut().find(|waking| waking.stream == key) {
                // Some readers were woken for an earlier record: all are woken once more, those first that were not, for
                // everything since that record.
                (waking.end, waking.rest) = (usize::MAX, waking.next);
            }
            if many {
                self.gather(key, from);
            }
        }
    }

    /// Readers still to be woken.
    fn asleep(&self) -> usize {
        let left = |waking: &Waking| {
            let readers = self.home.streams.get(waking.stream).map_or(0, |stream| stream.readers.len());
            waking.end.min(readers).saturating_sub(waking.next) + waking.rest.min(readers)
        };
        self.out.waking.iter().map(left).sum()
    }

    /// Marks the next `count` readers dirty. A stream that is not finished continues after the others.
    fn wake_some(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(mut waking) = self.out.waking.pop_front() else { return };
            let Some(stream) = self.home.streams.get_mut(waking.stream) else { continue };
            let from = stream.waking_from;
            let end = waking.end.min(stream.readers.len());
            let upto = end.min(waking.next + left);
            let mut readers: Vec<Reader> = reuse(std::mem::take(&mut self.out.readers));
            readers.extend_from_slice(stream.readers.get(waking.next..upto).unwrap_or_default());
            waking.next = upto;
            if upto == end {
                (waking.next, waking.end, waking.rest) = (0, waking.rest, 0);
            }
            if waking.next == waking.end {
                stream.waking_from = 0;
            } else if left > readers.len() {
                self.out.waking.push_front(waking);
            } else {
                self.out.waking.push_back(waking);
            }
            left -= readers.len();
            for reader in readers.drain(..) {
                self.connections.wake(reader, from);
            }
            self.out.readers = readers;
        }
    }

    fn gather(&mut self, key: StreamKey, from: u64) {
        let Some(stream) = self.home.streams.get(key) else { return };
        let log = if stream.home.is_some() { &self.links.mirror_log } else { &self.storage.log };
        let out = &mut self.out;
        let (start, first_end) = (out.shared.len(), out.ends.len());
        let mut senders = Senders::default();
        let mut to = from - 1;
        for seq in from..=stream.head() {
            let Some(entry) = stream.index.get(seq) else { break };
            if entry.at < log.resident() {
                break;
            }
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
        // A single frame is read straight from the log.
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
        out.trimmed = None;
        out.plans.clear();
        for _ in 0..count {
            let Some(id) = self.connections.dirty.pop_front() else { break };
            let first = out.pieces.len();
            self.plan(io, id, &mut out);
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
        self.cx.counters.sends.add(sends.len() as u64);
        let (sends, parts) = (reuse(sends), reuse(parts));
        out.sends = sends;
        out.parts = parts;
        out.results = results;
    }

    pub(in crate::shard) fn slice_of<'a>(&'a self, id: ConnId, piece: &Piece, out: &'a Outbound) -> &'a [u8] {
        match piece.source {
            Source::Queue => self.connections.get(id).map_or(&[], |conn| &conn.queue[conn.queue_at as usize..]),
            Source::Tls => self.connections.get(id).and_then(|conn| conn.tls.as_ref()).map_or(&[], |tls| tls.pending()),
            Source::Frame { mirror, entry } => self.log_of(mirror).bytes(entry.at, entry.frame_at, entry.frame_bytes),
            Source::Shared { batch } => {
                let batch = &out.batches[batch as usize];
                &out.shared[batch.start as usize..(batch.start + batch.bytes) as usize]
            }
            Source::Deflated { start } => &out.deflated[start as usize..start as usize + piece.bytes as usize],
        }
    }

    pub(in crate::shard) const fn log_of(&self, mirror: bool) -> &Log {
        if mirror { &self.links.mirror_log } else { &self.storage.log }
    }

    /// Books the bytes of a plan that the socket took.
    fn settle<I: Io>(&mut self, io: &mut I, id: ConnId, pieces: &[Piece], sent: Sent, out: &Outbound, now: Tick) {
        let taken = match sent {
            Sent::Bytes(bytes) => bytes,
            Sent::Failed(errno) => {
                tracing::debug!(connection_id = %self.connection_id(id), errno, "send failed");
                // The end of stream may be on its way too; whichever comes first decides.
                if let Some(conn) = self.connections.get_mut(id) {
                    conn.flags.broken = true;
                }
                if self.connections.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Closing(_))) {
                    self.drop_conn(io, id, now);
                } else {
                    self.connections.doom(id, CloseReason::SocketError);
                }
                return;
            }
        };
        let Some(mut conn) = self.connections.table.get_mut(id.index as usize).and_then(Option::take) else { return };
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
        self.cx.counters.bytes_out.add(taken as u64);
        let short = taken < expected;
        if short {
            conn.flags.blocked = true;
            self.cx.counters.sends_short.increment();
            io.want_write(id);
            self.cx.fit(&mut conn);
            if conn.stalled_ms == 0 {
                conn.stalled_ms = now.mono_ms().max(1);
                conn.stalled_taken = 0;
            }
        } else {
            conn.stalled_ms = 0;
        }
        conn.stalled_taken = conn.stalled_taken.saturating_add(u32::try_from(taken).unwrap_or(u32::MAX));
        let more = !short && has_more(&conn, self);
        self.connections.table[id.index as usize] = Some(conn);
        if short {
            self.set_timer(id, now);
        } else if more {
            self.connections.mark(id);
        } else {
            self.rest(id);
            self.after_flush(io, id);
        }
    }

    /// Parks the readers of a connection whose cursors are at their heads, because everything is sent.
    fn rest(&mut self, id: ConnId) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        for slot in conn.slots.iter_mut() {
            if let Some(attachment) = slot.attached_mut() {
                attachment.idle = !attachment.detaching
                    && attachment.ordered.is_empty()
                    && !attachment.pulling
                    && self.home.streams.get(attachment.stream).is_some_and(|stream| attachment.cursor >= stream.head());
            }
        }
    }

    /// Books `part` bytes of a piece as taken. The rest of a frame that was cut is kept in the queue.
    pub(in crate::shard) fn book(&mut self, conn: &mut Conn, piece: &Piece, part: usize, out: &Outbound) {
        if part == 0 {
            return;
        }
        let whole = part == piece.bytes as usize;
        match piece.source {
            Source::Queue => {
                conn.queue_at += u32::try_from(part).unwrap_or(u32::MAX);
                if conn.queue_at as usize == conn.queue.len() {
                    conn.messages_out += u64::from(piece.frames);
                    self.cx.counters.messages_out.add(u64::from(piece.frames));
                    let mut ordered = 0;
                    for attachment in conn.slots.iter_mut().filter_map(Slot::attached_mut) {
                        ordered += attachment.ordered.len();
                        if attachment.paging == Paging::Leaving {
                            attachment.paging = Paging::None;
                        }
                    }
                    conn.queued_frames = u32::try_from(ordered).unwrap_or(u32::MAX);
                    conn.queue_at = 0;
                    self.cx.counters.buffer_bytes.subtract(conn.queue.capacity() as u64);
                    self.cx.buffers.give(std::mem::take(&mut conn.queue));
                }
            }
            Source::Tls => {
                if let Some(tls) = &mut conn.tls {
                    tls.sent(part);
                    tls.reclaim(&mut self.cx.buffers);
                }
            }
            Source::Frame { .. } | Source::Deflated { .. } => {
                self.cx.delivered(conn, piece, piece.seq, piece.upto, 1);
                if !whole {
                    let mut kept = self.cx.buffers.take();
                    kept.extend_from_slice(&self.slice_of(conn.id, piece, out)[part..]);
                    keep(conn, &self.cx.counters, kept);
                }
            }
            Source::Shared { batch } if whole => {
                let batch = &out.batches[batch as usize];
                self.cx.delivered(conn, piece, batch.to, batch.to, u64::from(piece.frames));
            }
            Source::Shared { batch } => {
                let batch = &out.batches[batch as usize];
                let ends = &out.ends[batch.first_end as usize..batch.first_end as usize + piece.frames as usize];
                let frames = ends.iter().take_while(|end| **end as usize <= part).count();
                let (start, bytes) = (batch.start as usize, batch.bytes as usize);
                // A frame that was cut counts as delivered: its rest is queued.
                let cut = ends.get(frames).copied().map_or(bytes, |end| end as usize);
                let begun = frames > 0 && ends[frames - 1] as usize == part;
                let count = if begun { frames } else { frames + 1 };
                let seq = batch.from + count as u64 - 1;
                self.cx.delivered(conn, piece, seq, seq, count as u64);
                if !begun {
                    let mut kept = self.cx.buffers.take();
                    kept.extend_from_slice(&out.shared[start + part..start + cut]);
                    keep(conn, &self.cx.counters, kept);
                }
            }
        }
    }

    /// Follows up when nothing waits for this connection any more: reading continues, a close continues.
    pub(in crate::shard) fn after_flush<I: Io>(&mut self, io: &mut I, id: ConnId) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        // The next data for it may be long in coming, from a disk or another shard.
        conn.stalled_ms = 0;
        match &mut conn.phase {
            // The peer has closed first: nobody waits for it.
            Phase::Closing(closing) if conn.flags.ended => {
                let reason = closing.reason;
                self.connections.doom(id, reason);
            }
            Phase::Closing(closing) => {
                let ends = closing.peer_done && !closing.finished;
                closing.finished |= ends;
                if ends {
                    io.finish(id);
                }
            }
            // A handover waits for its 101 to be sent: the engine is asked again whether the socket is quiet.
            Phase::HandingOver(_) if !conn.flags.blocked => io.read(id, Read::Off),
            Phase::Open | Phase::Echo if conn.paused_ms > 0 => self.read_again(io, id),
            Phase::Open if conn.leaving.is_some() => {
                if let Some(reason) = self.connections.get(id).and_then(|conn| self.storage.has_left(conn)) {
                    self.connections.doom(id, reason);
                }
            }
            _ => {}
        }
    }
}

/// Returns `true` if a connection that took everything has more to be sent.
pub(in crate::shard) fn has_more(conn: &Conn, core: &Core) -> bool {
    if let Some(tls) = &conn.tls {
        if !tls.pending().is_empty() {
            return true;
        }
        if tls.handshaking() {
            return false;
        }
    }
    if !conn.queue.is_empty() {
        return true;
    }
    if !matches!(conn.phase, Phase::Open) {
        return false;
    }
    conn.attachments().any(|(_, attachment)| {
        let head = core.home.streams.get(attachment.stream).map_or(0, |stream| stream.head());
        // A reply whose place a mirror has not reached yet waits for the mirror.
        let let_out = attachment.ordered.front().is_some_and(|ordered| ordered.after <= attachment.cursor);
        !attachment.pulling && (let_out || attachment.cursor < head)
    })
}

/// Queues the unsent tail of a partially sent frame; it must precede all other output.
fn keep(conn: &mut Conn, counters: &ShardCounters, rest: Vec<u8>) {
    debug_assert!(conn.queue.capacity() == 0, "the queue goes out before any frame");
    counters.buffer_bytes.add(rest.capacity() as u64);
    conn.queue = rest;
}

impl Connections {
    pub(in crate::shard) fn on_writable(&mut self, id: ConnId) {
        if let Some(conn) = self.get_mut(id) {
            conn.flags.blocked = false;
            conn.flags.pong_queued = false;
            self.mark(id);
        }
    }

    /// Marks a reader dirty for the records from `from` on. A parked reader's cursor jumps to `from`: nothing before it was
    /// addressed to this reader.
    pub(in crate::shard) fn wake(&mut self, reader: Reader, from: u64) {
        let Some(conn) = self.table.get_mut(reader.conn.index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        if conn.id != reader.conn {
            return;
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
}

impl Context {
    /// Shrinks the buffers of a connection that takes nothing now.
    fn fit(&mut self, conn: &mut Conn) {
        let before = conn.memory_bytes();
        conn.fit(&mut self.buffers);
        self.counters.buffer_bytes.subtract((before - conn.memory_bytes()) as u64);
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
}
