//! A connection that its peer, or a drain, ends while something is unanswered: everything accepted from it is answered first, in
//! the usual order, within `limits.close_ms`. Then it closes as any other.
//!
//! Answers come from the log's disk here, from other shards (whose disks they may wait for), and behind places in the order. If
//! none is due, the connection closes at once.

use super::conn::{Attachment, Conn, Paging, Phase, Slot, Waiting};
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::{Io, Read};
use crate::session::Place;
use crate::shard::across::mesh::LaneMessage;
use crate::shard::connections::table::Connections;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::durability::Storage;
use crate::shard::durability::disk::Fence;
use crate::time::Tick;

/// Leaving connections that one turn examines.
const LOOKED_AT_PER_TURN: usize = 1024;
/// Time after which the others are examined.
const NEXT_LOOK_NS: u64 = 1_000_000;
/// Connections of other shards that wait for answers from this shard's disk; above this they close at once.
const FENCES_MAX: usize = 65_536;

/// The state of a connection that ends once everything is answered.
#[derive(Debug)]
pub struct Leaving {
    reason: CloseReason,
    /// When the end began.
    pub(in crate::shard) since_ms: u64,
    fence: Fence,
    /// Number of shards that have not yet confirmed that all messages sent to them are answered.
    shards: u16,
}

impl Core {
    /// Ends a connection once everything accepted from it is answered. Nothing more is accepted.
    pub(in crate::shard) fn end<I: Io>(&mut self, io: &mut I, id: ConnId, reason: CloseReason, now: Tick) {
        let Some(conn) = self.connections.get(id) else { return };
        if conn.leaving.is_some() {
            return;
        }
        self.flush_all_answers(io, id, now);
        let fence = self.storage.fence();
        let Some(conn) = self.connections.get(id) else { return };
        let homes = self.homes_of(conn);
        if !matches!(conn.phase, Phase::Open) || homes.is_empty() && self.storage.is_answered(conn, fence) {
            return self.close(io, id, reason, now);
        }
        let shards = u16::try_from(homes.len()).unwrap_or(u16::MAX);
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.leaving = Some(Box::new(Leaving { reason, since_ms: now.mono_ms(), fence, shards }));
        (conn.paused_ms, conn.unfinished_ms, conn.flags.held) = (0, 0, false);
        if !conn.flags.ended {
            io.read(id, Read::Stream);
        }
        self.connections.leaving.push_back(id);
        self.set_timer(id, now);
        for home in homes {
            let to = Place::whole(self.cx.shard_number(), id);
            self.links.send_control(&self.cx, io, home, LaneMessage::Fence { to });
        }
    }

    /// Writes its members' presence data, so that those commands are answered, or refuses them.
    fn flush_all_answers<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(conn) = self.connections.get(id).filter(|_| self.storage.disk.is_some()) else { return };
        let home = |attachment: &Attachment| self.home.streams.get(attachment.stream).and_then(|stream| stream.home);
        let attached: Vec<_> = conn.attachments().map(|(number, each)| (number, each.member, home(each))).collect();
        for (number, member, home) in attached {
            let place = self.place_here(id, number);
            match home {
                None => self.flush_answers(member, place, now),
                Some(home) => self.links.send_control(&self.cx, io, home, LaneMessage::Flush { member, place }),
            }
        }
    }

    /// Other shards that may still have an answer for the connection.
    fn homes_of(&self, conn: &Conn) -> Vec<u16> {
        let here = self.cx.shard_number();
        if conn.flags.spoke_elsewhere {
            return (0..u16::try_from(self.links.mesh.shards()).unwrap_or(u16::MAX)).filter(|shard| *shard != here).collect();
        }
        let mut homes: Vec<u16> =
            conn.attachments().filter_map(|(_, attachment)| self.home.streams.get(attachment.stream)?.home).collect();
        homes.sort_unstable();
        homes.dedup();
        homes
    }

    /// Closes the connections that are answered. Returns when the next look is due, if any is left.
    pub(in crate::shard) fn end_leaving<I: Io>(&mut self, io: &mut I, now: Tick) -> Option<u64> {
        self.pass_fences(io);
        for _ in 0..self.connections.leaving.len().min(LOOKED_AT_PER_TURN) {
            let Some(id) = self.connections.leaving.pop_front() else { break };
            let Some(conn) = self.connections.get(id).filter(|conn| conn.leaving.is_some()) else { continue };
            match self.storage.has_left(conn) {
                Some(reason) => self.close(io, id, reason, now),
                None => self.connections.leaving.push_back(id),
            }
        }
        (self.connections.leaving.len() > LOOKED_AT_PER_TURN).then_some(now.mono_ns + NEXT_LOOK_NS)
    }

    /// Closes a connection whose time is over before it was answered.
    pub(in crate::shard) fn stop_leaving<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(reason) = self.connections.get(id).and_then(|conn| conn.leaving.as_deref()).map(|leaving| leaving.reason) else {
            return;
        };
        self.cx.counters.limit_reached(LimitReached::CloseTime);
        self.close(io, id, reason, now);
    }

    /// Handles that a connection on another shard ends: it is told when everything that it sent here is answered.
    pub(in crate::shard) fn on_fence<I: Io>(&mut self, io: &mut I, to: Place) {
        let fence = self.storage.fence();
        if self.connections.fences.len() >= FENCES_MAX {
            self.cx.counters.limit_reached(LimitReached::Fences);
            return self.links.send_control(&self.cx, io, to.shard, LaneMessage::Fenced { to });
        }
        self.connections.fences.push_back((to, fence));
    }

    /// Confirms fences whose answers have been sent; they pass in the order in which they were requested.
    fn pass_fences<I: Io>(&mut self, io: &mut I) {
        while let Some((to, fence)) = self.connections.fences.front().copied() {
            if !self.storage.is_past(fence) {
                return;
            }
            self.connections.fences.pop_front();
            self.links.send_control(&self.cx, io, to.shard, LaneMessage::Fenced { to });
        }
    }
}

impl Storage {
    /// Returns `true` if no answer is due any more except from other shards.
    fn is_answered(&self, conn: &Conn, fence: Fence) -> bool {
        let waits = |slot: &Slot| match slot {
            Slot::Free => false,
            Slot::Asked(_) => true,
            Slot::Attached(attachment) => {
                let answers = attachment
                    .ordered
                    .iter()
                    .any(|ordered| !matches!(ordered.what, Waiting::Event(_) | Waiting::Data { .. } | Waiting::Passing(_)));
                attachment.detaching || attachment.paging == Paging::Asked || answers
            }
        };
        self.is_past(fence) && !conn.slots.iter().any(waits)
    }

    /// The reason with which a connection may close now, if everything is answered.
    pub(in crate::shard) fn has_left(&self, conn: &Conn) -> Option<CloseReason> {
        let leaving = conn.leaving.as_deref()?;
        (leaving.shards == 0 && self.is_answered(conn, leaving.fence)).then_some(leaving.reason)
    }
}

impl Connections {
    pub(in crate::shard) fn on_fenced(&mut self, to: Place) {
        if let Some(leaving) = self.get_mut(to.conn).and_then(|conn| conn.leaving.as_deref_mut()) {
            leaving.shards = leaving.shards.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::durability::disk_tests::{Held, one_of};

    #[test]
    fn those_elsewhere_that_wait_for_their_answers_are_bounded() {
        let (mut core, mut io) = (one_of(2, ""), Held::default());
        for number in 0..=FENCES_MAX {
            let conn = ConnId { index: u32::try_from(number).unwrap(), generation: 1 };
            core.on_fence(&mut io, Place { shard: 1, attachment: 0, ticket: 1, conn });
        }
        assert_eq!((core.connections.fences.len(), core.cx.counters.limit_count(LimitReached::Fences)), (FENCES_MAX, 1));
    }
}
