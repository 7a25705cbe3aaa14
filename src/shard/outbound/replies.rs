//! Replies on their way into a connection's queue, at once or in their place in the order, and their bounds.

use crate::buffers::Buffers;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::session::Place;
use crate::shard::across::links::Links;
use crate::shard::across::mesh::LaneMessage;
use crate::shard::connections::conn::{Conn, Ordered, Phase, Waiting};
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached, ShardCounters};
use crate::ws::encoder::OpenFrame;
use crate::ws::{Opcode, encoder};

/// The place of a reply that may overtake everything.
pub(in crate::shard) const AT_ONCE: u64 = u64::MAX;
/// Messages waiting for a lane above which replies are dropped with their connection.
const REPLIES_WAITING_MAX: usize = 16_384;
/// Memory of a shard's messages waiting for lanes above which the same happens.
const REPLIES_WAITING_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A queue above this many times the reply limit (plus a page of history) ends its connection.
const HARD_QUEUE_FACTOR: usize = 8;

/// Appends the output of `write` as one text frame.
pub(in crate::shard) fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let open = OpenFrame::begin(out);
    write(out);
    open.finish(Opcode::Text, out);
}

/// Writes to a connection's queue, and counts the memory that this takes.
pub(in crate::shard) fn enqueue(
    conn: &mut Conn,
    buffers: &mut Buffers,
    counters: &ShardCounters,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let before = conn.queue.capacity();
    buffers.lend(&mut conn.queue);
    write(&mut conn.queue);
    let after = conn.queue.capacity();
    if after > before {
        counters.buffer_bytes.add((after - before) as u64);
    }
}

impl Core {
    /// Sends a reply to a client, wherever it is, in its place in the order or [`AT_ONCE`].
    pub(in crate::shard) fn reply_to(&mut self, to: Place, after: u64, write: impl FnOnce(&mut Vec<u8>)) {
        if to.shard == self.cx.shard_number() {
            if after == AT_ONCE {
                return self.connections.reply_now(&mut self.cx, to.conn, write);
            }
            return self.connections.reply_after(&mut self.cx, to, after, write);
        }
        let mut bytes = self.buffer_for(to);
        let open = OpenFrame::begin(&mut bytes);
        write(&mut bytes);
        open.finish(Opcode::Text, &mut bytes);
        self.send_reply(to, LaneMessage::Reply { to, after, frame: bytes });
    }

    /// Sends a finished frame to a client, wherever it is, at once.
    pub(in crate::shard) fn send_finished(&mut self, to: Place, frame: &[u8]) {
        if to.shard == self.cx.shard_number() {
            return self.connections.queue_frame(&mut self.cx, to.conn, frame);
        }
        let mut bytes = self.cx.buffers.take();
        bytes.extend_from_slice(frame);
        self.send_reply(to, LaneMessage::Reply { to, after: AT_ONCE, frame: bytes });
    }

    /// Queues a reply to a client elsewhere, to be sent at the end of the turn.
    pub(in crate::shard) fn send_reply(&mut self, to: Place, message: LaneMessage) {
        let shard = usize::from(to.shard);
        let bytes = message.bytes() as u64;
        let over = if self.links.backlog[shard].len() >= REPLIES_WAITING_MAX
            || self.cx.counters.lane_backlog_bytes.get() + bytes > REPLIES_WAITING_BYTES_MAX
        {
            LimitReached::LaneReplies
        } else if self.cx.counters.buffer_bytes.get() + bytes > self.connections.buffers_bytes_max {
            LimitReached::ShardMemory
        } else {
            return self.links.wait_for_lane(&self.cx, shard, message);
        };
        self.cx.counters.limit_reached(over);
        self.cx.counters.dropped(DropReason::ReplyQueueFull, 1);
        // A reply without a place in a session's order would reach a connection that has left the session, too.
        let is_for_all = matches!(message, LaneMessage::Reply { after: AT_ONCE, .. });
        let to = if is_for_all { Place::whole(to.shard, to.conn) } else { to };
        if self.links.evicted[shard].insert(to, ()).is_none() {
            self.links.wait_for_lane(&self.cx, shard, LaneMessage::Evict { to });
        }
    }
}

impl Connections {
    /// Queues a text for a connection at once, before everything that waits for its place.
    pub(in crate::shard) fn reply_now(&mut self, cx: &mut Context, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.get_mut(id) else { return };
        if conn.id != id || matches!(conn.phase, Phase::Closing(_)) {
            return;
        }
        enqueue(conn, &mut cx.buffers, &cx.counters, |queue| {
            let open = OpenFrame::begin(queue);
            write(queue);
            open.finish(Opcode::Text, queue);
        });
        conn.queued_frames += 1;
        self.check_budget(cx, id);
        self.mark(id);
    }

    /// Queues a finished frame.
    pub(in crate::shard) fn queue_frame(&mut self, cx: &mut Context, id: ConnId, frame: &[u8]) {
        let Some(conn) = self.get_mut(id) else { return };
        if conn.id != id || matches!(conn.phase, Phase::Closing(_)) {
            return;
        }
        enqueue(conn, &mut cx.buffers, &cx.counters, |queue| queue.extend_from_slice(frame));
        conn.queued_frames += 1;
        self.check_budget(cx, id);
        self.mark(id);
    }

    pub(in crate::shard) fn queue_pong(&mut self, cx: &mut Context, id: ConnId, payload: &[u8]) {
        let Some(conn) = self.get_mut(id) else { return };
        // RFC 6455 5.5.3: one pong, to the newest ping, is enough if several wait; for a peer that does not read there is only
        // one.
        if conn.flags.blocked && std::mem::replace(&mut conn.flags.pong_queued, true) {
            cx.counters.dropped(DropReason::PongPending, 1);
            return;
        }
        enqueue(conn, &mut cx.buffers, &cx.counters, |queue| encoder::pong(payload, queue));
        self.mark(id);
    }

    /// Queues a reply in its place in the order of one of a connection's sessions.
    pub(in crate::shard) fn reply_after(&mut self, cx: &mut Context, to: Place, after: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = cx.buffers.take();
        let open = OpenFrame::begin(&mut bytes);
        write(&mut bytes);
        open.finish(Opcode::Text, &mut bytes);
        self.put_ordered(cx, to, after, Waiting::Frame(bytes));
    }

    /// Queues an event, which answers nothing, in the same way.
    pub(in crate::shard) fn event_after(&mut self, cx: &mut Context, to: Place, after: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = cx.buffers.take();
        let open = OpenFrame::begin(&mut bytes);
        write(&mut bytes);
        open.finish(Opcode::Text, &mut bytes);
        self.put_ordered(cx, to, after, Waiting::Event(bytes));
    }

    /// Ends a connection that lets too much wait, and keeps the shard within its memory.
    pub(in crate::shard) fn check_budget(&mut self, cx: &Context, id: ConnId) {
        let limits = &cx.snapshot.settings.limits;
        let hard = limits.reply_queue_bytes * HARD_QUEUE_FACTOR + crate::limits::HISTORY_PAGE_BYTES_MAX;
        let frames_max = limits.reply_queue_frames * HARD_QUEUE_FACTOR;
        let Some(conn) = self.get(id) else { return };
        if matches!(conn.phase, Phase::Echo) {
            return;
        }
        if conn.queued_bytes() > hard || conn.queued_frames as usize > frames_max {
            cx.counters.limit_reached(LimitReached::ReplyQueue);
            cx.counters.dropped(DropReason::ReplyQueueFull, 1);
            self.doom(id, CloseReason::TooSlow);
        } else if cx.counters.buffer_bytes.get() > self.buffers_bytes_max {
            cx.counters.limit_reached(LimitReached::ShardMemory);
            self.doom(id, CloseReason::TooSlow);
        }
    }

    /// Puts an ordered reply into an attachment, or straight into the queue if that is caught up.
    pub(in crate::shard) fn put_ordered(&mut self, cx: &mut Context, to: Place, after: u64, mut what: Waiting) {
        let id = to.conn;
        let Some(conn) = self.get_mut(id).filter(|conn| conn.id == id) else {
            return;
        };
        let (is_blocked, ordered) = (conn.flags.blocked, conn.attachment_mut(to.attachment));
        let Some(attachment) = ordered.filter(|attachment| attachment.ticket == to.ticket) else { return };
        if is_blocked || attachment.pulling {
            what.fit(&mut cx.buffers);
        }
        let bytes = what.bytes();
        let ordered = Ordered { after, what };
        cx.counters.buffer_bytes.add(ordered.memory_bytes() as u64);
        attachment.ordered.push_back(ordered);
        conn.ordered_bytes += u32::try_from(bytes).unwrap_or(u32::MAX);
        conn.queued_frames += 1;
        self.check_budget(cx, id);
        self.mark(id);
    }
}

impl Links {
    /// Queues a message behind those that wait for a lane.
    pub(in crate::shard) fn wait_for_lane(&mut self, cx: &Context, to: usize, message: LaneMessage) {
        let bytes = message.bytes() as u64;
        cx.counters.lane_backlog_bytes.add(bytes);
        cx.counters.buffer_bytes.add(bytes);
        self.backlog[to].push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_shard_that_does_not_turn_is_bounded() {
        let mut core = crate::shard::durability::disk_tests::one_of(2, "");
        let place = |index| Place { shard: 1, attachment: 0, ticket: 1, conn: ConnId { index, generation: 1 } };
        for number in 0..2 * REPLIES_WAITING_MAX {
            core.reply_to(place(u32::try_from(number % 3).unwrap()), AT_ONCE, |out| out.push(b'x'));
        }
        let ends = core.links.backlog[1].iter().filter(|message| matches!(message, LaneMessage::Evict { .. })).count();
        assert_eq!((core.links.backlog[1].len(), ends), (REPLIES_WAITING_MAX + 3, 3), "each of the three is ended once");
        assert_eq!(core.cx.counters.dropped_count(DropReason::ReplyQueueFull), REPLIES_WAITING_MAX as u64);
        assert_eq!(core.cx.counters.limit_count(LimitReached::LaneReplies), REPLIES_WAITING_MAX as u64);
    }

    #[test]
    fn what_waits_for_lanes_is_bounded_in_bytes_and_counted() {
        const PAGE_BYTES: usize = 1 << 20;
        let place = |shard, index| Place { shard, attachment: 0, ticket: 1, conn: ConnId { index, generation: 1 } };
        let page = |to| LaneMessage::History { to, after: 1, frame: Vec::with_capacity(PAGE_BYTES) };
        for (settings, limit, most) in [
            ("", LimitReached::LaneReplies, REPLIES_WAITING_BYTES_MAX),
            ("[limits]\nshard_memory_bytes = 33554432", LimitReached::ShardMemory, 32 << 20),
        ] {
            let mut core = crate::shard::durability::disk_tests::one_of(3, settings);
            for index in 0..100 {
                let to = place(1 + u16::try_from(index % 2).unwrap(), index);
                core.send_reply(to, page(to));
            }
            let pages = |core: &Core| {
                core.links.backlog.iter().flatten().filter(|message| matches!(message, LaneMessage::History { .. })).count()
                    as u64
            };
            assert_eq!(pages(&core), most / PAGE_BYTES as u64, "those of all shards together");
            assert_eq!((core.cx.counters.lane_backlog_bytes.get(), core.cx.counters.buffer_bytes.get()), (most, most));
            assert_eq!(core.cx.counters.limit_count(limit), 100 - pages(&core));
            let now = crate::time::Tick::default();
            assert!(core.inspect(false, now).is_ok(), "{:?}", core.inspect(false, now));
            // The lanes take a part of them, and the others as they are emptied.
            let (mut io, mut taken) = (crate::shard::durability::disk_tests::Held::default(), 0);
            let mut rounds = 0;
            while core.links.push_backlog(&core.cx, &mut io) {
                rounds += 1;
                for shard in 1..3 {
                    while let Some(message) = core.links.mesh.pop(0, shard, crate::shard::across::mesh::Class::Control) {
                        taken += u64::from(matches!(message, LaneMessage::History { .. }));
                    }
                }
            }
            assert!(rounds == u32::from(most > 42 << 20) && taken >= rounds.into(), "{rounds} rounds, {taken} taken");
            assert_eq!((core.cx.counters.lane_backlog_bytes.get(), core.cx.counters.buffer_bytes.get()), (0, 0));
        }
    }
}
