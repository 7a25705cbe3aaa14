//! The data to send to a connection now: its queue, then the records after its cursors, in the order of each session.

use super::flush::{Outbound, Piece, Source, has_more};
use super::replies::enqueue;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::Io;
use crate::limits::{SEND_BYTES_MAX, SEND_PARTS_MAX};
use crate::log::{Audience, Entry, HEADER_BYTES, Position};
use crate::protocol::Head;
use crate::session::{Place, StreamKey};
use crate::shard::connections::conn::{Conn, Paging, Phase, Slot, Waiting};
use crate::shard::core::Core;
use crate::shard::inbound::contained::contained;
use crate::ws::Opcode;
use crate::ws::deflate::Deflater;
use crate::ws::encoder::{OpenFrame, frame};

/// Records that a reader may skip in one plan; the rest follow in the next.
const SCAN_MAX: usize = 4096;
/// Ordered replies queued in one plan.
const ORDERED_PER_PLAN_MAX: usize = 64;
/// Capacity for such replies that an attachment keeps.
const ORDERED_KEPT_MAX: usize = 64;

/// The state of planning one attachment.
struct Scan {
    /// The last place examined.
    cursor: u64,
    /// The place that it must not pass: the head, or the place of a waiting reply.
    limit: u64,
    /// `true` if frames were noted: the cursor moves when they are booked.
    collected: bool,
    bytes: usize,
    seen: usize,
}

impl Core {
    /// Notes the data to send to a connection now.
    pub(in crate::shard) fn plan<I: Io>(&mut self, io: &mut I, id: ConnId, out: &mut Outbound) {
        let Some(mut conn) = self.connections.table.get_mut(id.index as usize).and_then(Option::take) else { return };
        conn.flags.dirty &= conn.id != id;
        // Nothing is sent after the end of our side. A peer in its TLS handshake may say more, to which TLS has an answer still.
        let finished = matches!(&conn.phase, Phase::Closing(closing) if closing.finished);
        if conn.id != id || conn.flags.blocked || finished {
            self.connections.table[id.index as usize] = Some(conn);
            return;
        }
        let first = out.pieces.len();
        if matches!(conn.phase, Phase::Open) {
            for number in 0..conn.slots.len() {
                self.plan_attachment(&mut conn, number, out, first);
            }
        }
        let queued = conn.queue.len() - conn.queue_at as usize;
        if queued > 0 {
            // Planned last, sent first: queueing ordered replies has made it longer.
            let bytes = u32::try_from(queued).unwrap_or(u32::MAX);
            let piece = Piece { source: Source::Queue, bytes, attachment: 0, seq: 0, upto: 0, frames: conn.queued_frames };
            out.pieces.insert(first, piece);
        }
        let sealed = conn.tls.is_none() || self.encrypt(&mut conn, out, first);
        if !sealed {
            self.connections.table[id.index as usize] = Some(conn);
            self.on_tls_panic(id);
            return self.connections.doom(id, CloseReason::Internal);
        }
        let more = out.pieces.len() == first && has_more(&conn, self);
        self.connections.table[id.index as usize] = Some(conn);
        if more {
            // The scan's budget is used up; the rest follows after the others.
            self.connections.mark(id);
        } else if out.pieces.len() == first {
            self.after_flush(io, id);
        }
    }

    /// Replaces the pieces of a TLS connection by their ciphertext; cursors move when encrypted. Remaining plaintext is found
    /// when the ciphertext has been sent. Returns `false` if TLS panicked, which is contained as in `inbound/frames.rs`, because before
    /// it writes it reads kept bytes of the peer.
    fn encrypt(&mut self, conn: &mut Conn, out: &mut Outbound, first: usize) -> bool {
        let mut pieces = std::mem::take(&mut out.pieces);
        if let Some(tls) = &mut conn.tls {
            tls.lend(&mut self.cx.buffers);
        }
        let mut left = false;
        for piece in &pieces[first..] {
            let Some(tls) = &mut conn.tls else { break };
            let plain = match piece.source {
                Source::Queue => &conn.queue[conn.queue_at as usize..],
                _ => self.slice_of(conn.id, piece, out),
            };
            let Ok(taken) = contained(|| tls.encrypt(&[plain])) else {
                pieces.truncate(first);
                out.pieces = pieces;
                return false;
            };
            self.book(conn, piece, taken, out);
            if taken < piece.bytes as usize {
                left = true;
                break;
            }
        }
        pieces.truncate(first);
        out.pieces = pieces;
        let done = !left && conn.queue.is_empty();
        let Some(tls) = &mut conn.tls else { return true };
        if done && std::mem::take(&mut conn.flags.close_notify) && contained(|| tls.close()).is_err() {
            return false;
        }
        tls.reclaim(&mut self.cx.buffers);
        let bytes = u32::try_from(tls.pending().len()).unwrap_or(u32::MAX);
        if bytes > 0 {
            out.pieces.push(Piece { source: Source::Tls, bytes, attachment: 0, seq: 0, upto: 0, frames: 0 });
        }
        true
    }

    /// Notes the data of one of a connection's sessions.
    fn plan_attachment(&mut self, conn: &mut Conn, number: usize, out: &mut Outbound, first: usize) {
        let Some(attachment) = conn.slots.get_mut(number).and_then(Slot::attached_mut) else { return };
        // The attachment's last reply is queued: later records are no longer for it.
        if self.connections.left.iter().any(|place| place.conn == conn.id && usize::from(place.attachment) == number) {
            return;
        }
        let (stream, mut let_out) = (attachment.stream, 0);
        if attachment.idle
            && let Some(stream) = self.home.streams.get(stream)
        {
            // Parked: no record since then was for it, whether or not retention has dropped it by now.
            attachment.cursor = attachment.cursor.max(stream.unwoken_from(stream.head() + 1) - 1);
        }
        let mut scan = Scan { cursor: attachment.cursor, limit: 0, collected: false, bytes: 0, seen: 0 };
        if out.trimmed != Some(stream) {
            out.trimmed = Some(stream);
            self.trim(stream);
        }
        loop {
            let Some(attachment) = conn.slots.get(number).and_then(Slot::attached) else { return };
            let waits_at = attachment.ordered.front().map(|ordered| ordered.after);
            if waits_at.is_some_and(|after| after <= scan.cursor) {
                // Everything before this reply has been sent once the frames noted so far have.
                if scan.collected || let_out >= ORDERED_PER_PLAN_MAX {
                    break;
                }
                let_out += 1;
                let last = attachment.ordered.front().is_some_and(|ordered| matches!(ordered.what, Waiting::Detached(_)));
                self.let_out(conn, number, scan.cursor);
                if last {
                    break;
                }
                continue;
            }
            let Some((oldest, head)) = self.home.streams.get(stream).map(|stream| (stream.index.first(), stream.head())) else {
                return;
            };
            scan.limit = waits_at.map_or(head, |after| after.min(head));
            if scan.cursor >= scan.limit {
                break;
            }
            if scan.cursor + 1 < oldest {
                if scan.collected || !self.skip_dropped(conn, number, oldest, &mut scan) {
                    break;
                }
                continue;
            }
            if !self.collect(conn, number, out, first, &mut scan) {
                break;
            }
        }
        let head = self.home.streams.get(stream).map_or(0, |stream| stream.head());
        if let Some(attachment) = conn.slots.get_mut(number).and_then(Slot::attached_mut) {
            if !scan.collected {
                attachment.cursor = attachment.cursor.max(scan.cursor);
            }
            let waits = scan.collected || attachment.pulling || attachment.detaching || !attachment.ordered.is_empty();
            attachment.idle = !waits && attachment.cursor >= head;
        }
    }

    /// Moves the next ordered reply of an attachment to the queue, which is sent before any frame.
    fn let_out(&mut self, conn: &mut Conn, number: usize, cursor: u64) {
        let shard = self.cx.shard_number();
        let Some(attachment) = conn.slots.get_mut(number).and_then(Slot::attached_mut) else { return };
        let Some(mut ordered) = attachment.ordered.pop_front() else { return };
        if matches!(ordered.what, Waiting::History(_)) {
            attachment.paging = Paging::Leaving;
        }
        if matches!(ordered.what, Waiting::Detached(_)) {
            let attachment_number = u16::try_from(number).unwrap_or(u16::MAX);
            self.connections.left.push(Place { shard, attachment: attachment_number, ticket: attachment.ticket, conn: conn.id });
        }
        let (waited, kept) = (ordered.what.bytes(), attachment.ordered.len());
        if attachment.ordered.capacity() > ORDERED_KEPT_MAX && kept < attachment.ordered.capacity() / 4 {
            attachment.ordered.shrink_to(2 * kept);
        }
        self.cx.counters.buffer_bytes.subtract(ordered.memory_bytes() as u64);
        let (stream, delivered_seq) = (attachment.stream, attachment.delivered_seq);
        let Some(stream) = self.home.streams.get(stream) else { return };
        let waited_bytes = u32::try_from(waited).unwrap_or(u32::MAX);
        if conn.queue.capacity() == 0
            && stream.home.is_none()
            && let Waiting::History(page) = &mut ordered.what
        {
            // As large as a page: not copied if nothing is queued before it.
            conn.queue = std::mem::take(page);
            conn.ordered_bytes = conn.ordered_bytes.saturating_sub(waited_bytes);
            self.cx.counters.buffer_bytes.add(conn.queue.capacity() as u64);
            return;
        }
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| match &ordered.what {
            Waiting::Frame(bytes)
            | Waiting::Event(bytes)
            | Waiting::Data { frame: bytes, .. }
            | Waiting::Passing(bytes)
            | Waiting::History(bytes)
            | Waiting::Detached(bytes) => queue.extend_from_slice(bytes),
            Waiting::Pong(id) => {
                let head = Head { id, session_id: &stream.session_id };
                let open = OpenFrame::begin(queue);
                crate::protocol::pong(queue, head, ordered.after.max(cursor), delivered_seq);
                open.finish(Opcode::Text, queue);
            }
        });
        // A reply was written at the session's home; an ephemeral message was copied here.
        match stream.home {
            Some(home) if !matches!(ordered.what, Waiting::Passing(_)) => {
                self.links.give_back(&mut self.cx, home, ordered.what.into_buffer());
            }
            _ => self.cx.buffers.give(ordered.what.into_buffer()),
        }
        conn.ordered_bytes = conn.ordered_bytes.saturating_sub(waited_bytes);
    }

    /// Handles a cursor before the oldest held record. On a mirror, requests a page from the home and returns `false` (wait); at
    /// the home, queues `rw.gap` and returns `true`.
    fn skip_dropped(&mut self, conn: &mut Conn, number: usize, oldest: u64, scan: &mut Scan) -> bool {
        let shard = self.cx.shard_number();
        let Some(attachment) = conn.slots.get_mut(number).and_then(Slot::attached_mut) else { return false };
        let Some(stream) = self.home.streams.get(attachment.stream) else { return false };
        if stream.home.is_some() {
            attachment.cursor = scan.cursor;
            if !std::mem::replace(&mut attachment.pulling, true) {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                let place = Place { shard, attachment: number, ticket: attachment.ticket, conn: conn.id };
                self.links.pulls.push((place, attachment.member, scan.cursor));
            }
            return false;
        }
        let (from, to) = (scan.cursor + 1, oldest - 1);
        attachment.cursor = to;
        scan.cursor = to;
        self.cx.random_id = self.cx.random_id.wrapping_add(1);
        let id = format!("rw-gap-{:x}", self.cx.random_id);
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| {
            let open = OpenFrame::begin(queue);
            crate::protocol::gap(queue, Head { id: &id, session_id: &stream.session_id }, from, to);
            open.finish(Opcode::Text, queue);
        });
        conn.queued_frames += 1;
        self.cx.counters.gaps.increment();
        true
    }

    /// Notes frames up to the scan's limit. Returns `false` if this plan takes no more.
    fn collect(&mut self, conn: &mut Conn, number: usize, out: &mut Outbound, first: usize, scan: &mut Scan) -> bool {
        let Some(attachment) = conn.slots.get_mut(number).and_then(Slot::attached_mut) else { return false };
        let Some(stream) = self.home.streams.get(attachment.stream) else { return false };
        let (mirror, shard) = (stream.home.is_some(), self.cx.shard_number());
        let log = if mirror { &self.links.mirror_log } else { &self.storage.log };
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        let header = u32::try_from(HEADER_BYTES).unwrap_or(0);
        while scan.cursor < scan.limit {
            if out.pieces.len() - first + 1 >= SEND_PARTS_MAX || scan.seen >= SCAN_MAX || scan.bytes >= SEND_BYTES_MAX {
                return false;
            }
            let next = scan.cursor + 1;
            if !conn.flags.deflate
                && attachment.entitlements.hidden_to < next
                && let Some(batch) = batch_for(out, attachment.stream, next, scan.limit, attachment.entitlements.client)
            {
                let found = &out.batches[batch];
                let (to, bytes) = (found.to, found.bytes);
                let frames = u32::try_from(to - found.from + 1).unwrap_or(u32::MAX);
                let source = Source::Shared { batch: u32::try_from(batch).unwrap_or(u32::MAX) };
                out.pieces.push(Piece { source, bytes, attachment: number, seq: to, upto: to, frames });
                scan.cursor = to;
                scan.bytes += bytes as usize;
                scan.collected = true;
                continue;
            }
            let entry = stream.index.get(next).copied();
            scan.seen += 1;
            if entry.is_none_or(|entry| entry.at < log.resident()) {
                // On disk alone. What is not for the reader is passed all the same, but a list has to be read, or what there is no entry of.
                let unseen = |entry: &Entry| {
                    !matches!(entry.audience, Audience::Many(_)) && !attachment.entitlements.delivers(entry, next, || &[])
                };
                if !entry.as_ref().is_some_and(unseen) {
                    if !scan.collected && !std::mem::replace(&mut attachment.pulling, true) {
                        attachment.cursor = scan.cursor;
                        let place = Place { shard, attachment: number, ticket: attachment.ticket, conn: conn.id };
                        self.links.pulls.push((place, attachment.member, scan.cursor));
                    }
                    return false;
                }
                if scan.collected
                    && let Some(last) = out.pieces.last_mut()
                {
                    last.upto = next;
                }
                scan.cursor = next;
                continue;
            }
            let Some(entry) = entry else { return false };
            if attachment.entitlements.delivers(&entry, next, || log.bytes(entry.at, header, entry.frame_at - header)) {
                let mut piece = frame_piece(mirror, entry, number, next);
                if conn.flags.deflate {
                    let plain = log.bytes(entry.at, entry.frame_at, entry.frame_bytes);
                    let min_bytes = self.cx.snapshot.settings.deflate.min_bytes;
                    let key = deflate_key(entry.at, conn.window_bits, mirror);
                    if let Some((start, bytes)) = deflated(out, &mut self.codec.deflater, key, plain, conn.window_bits, min_bytes)
                    {
                        piece.source = Source::Deflated { start };
                        piece.bytes = bytes;
                    }
                }
                scan.bytes += piece.bytes as usize;
                scan.collected = true;
                out.pieces.push(piece);
            } else if scan.collected
                && let Some(last) = out.pieces.last_mut()
            {
                last.upto = next;
            }
            scan.cursor = next;
        }
        true
    }
}

fn frame_piece(mirror: bool, entry: Entry, attachment: u16, seq: u64) -> Piece {
    Piece { source: Source::Frame { mirror, entry }, bytes: entry.frame_bytes, attachment, seq, upto: seq, frames: 1 }
}

/// The shared batch that begins with a reader's next record, if the reader may have all of it.
fn batch_for(out: &Outbound, stream: StreamKey, next: u64, limit: u64, client: u64) -> Option<usize> {
    out.batches.iter().position(|batch| {
        batch.stream == stream
            && batch.from == next
            && batch.to <= limit
            && !batch.senders.list[..batch.senders.len].contains(&client)
    })
}

/// The key of a deflated frame within a flush.
const fn deflate_key(at: Position, window_bits: u8, mirror: bool) -> u64 {
    at.0 << 9 | (window_bits as u64) << 1 | mirror as u64
}

/// A frame's deflated form, made once a flush; `None` if it is not worth it.
fn deflated(
    out: &mut Outbound,
    deflater: &mut Deflater,
    key: u64,
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
    if let Some((_, start, bytes)) = out.deflated_at.find(key, |(other, _, _)| *other == key) {
        return (*bytes > 0).then_some((*start, *bytes));
    }
    let start = out.deflated.len();
    out.compressed.clear();
    if deflater.deflate(payload, window_bits, &mut out.compressed) {
        frame(Opcode::Text, true, &out.compressed, &mut out.deflated);
    }
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    let found = (place(start), place(out.deflated.len() - start));
    out.deflated_at.insert_unique(key, (key, found.0, found.1), |(key, _, _)| *key);
    (found.1 > 0).then_some(found)
}
