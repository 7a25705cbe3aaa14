//! The connections of a shard.

use super::conn::{Attachment, Conn, Phase};
use super::half_open::HalfOpen;
use super::rate::Bucket;
use crate::close::CloseReason;
use crate::ids::{ConnId, HashKey};
use crate::io::{Io, Read};
use crate::session::Place;
use crate::shard::durability::disk::Fence;
use crate::shard::port::ClosedConnections;
use std::collections::VecDeque;

/// Connections, from accept to the last answer.
pub struct Connections {
    /// By the index of their id.
    pub(in crate::shard) table: Vec<Option<Box<Conn>>>,
    pub(in crate::shard) count: usize,
    pub(in crate::shard) next_serial: u64,
    pub(in crate::shard) half_open: HalfOpen,
    /// The shard's share of `limits.handshakes_per_second`.
    pub(in crate::shard) shaking: Bucket,
    /// Connections over a bound that have not been told, or not gone; the ids may be stale.
    pub(in crate::shard) turned_away: VecDeque<ConnId>,
    /// Rate limit of log lines about them.
    pub(in crate::shard) door_lines: Bucket,
    /// Connections that opened `/v1/echo` while their head was read.
    pub(in crate::shard) echo_opened: Vec<ConnId>,
    /// Connections with something to send.
    pub(in crate::shard) dirty: VecDeque<ConnId>,
    /// Connections to end before the turn does: found in code that has no [`crate::io::Io`].
    pub(in crate::shard) doomed: Vec<(ConnId, CloseReason)>,
    /// Drain schedule, `(close_at_ms, connection)`, latest first.
    pub(in crate::shard) departures: Vec<(u64, ConnId)>,
    /// Connections that end once everything they sent is answered.
    pub(in crate::shard) leaving: VecDeque<ConnId>,
    /// Connections of other shards that wait for this shard's answers.
    pub(in crate::shard) fences: VecDeque<(Place, Fence)>,
    /// Attachments whose last reply is sent; freed at the end of the turn.
    pub(in crate::shard) left: Vec<Place>,
    /// The last connections that ended, for the operator.
    pub(in crate::shard) closed: ClosedConnections,
    /// The part of `limits.shard_memory_bytes` for connections; the rest is for data that waits for the disk.
    pub(in crate::shard) buffers_bytes_max: u64,
}

impl Connections {
    pub(in crate::shard) fn new(key: HashKey, buffers_bytes_max: u64) -> Self {
        Self {
            table: Vec::new(),
            count: 0,
            next_serial: 1,
            half_open: HalfOpen::new(key),
            shaking: Bucket::default(),
            turned_away: VecDeque::new(),
            door_lines: Bucket::default(),
            echo_opened: Vec::new(),
            dirty: VecDeque::new(),
            doomed: Vec::new(),
            departures: Vec::new(),
            leaving: VecDeque::new(),
            fences: VecDeque::new(),
            left: Vec::new(),
            closed: ClosedConnections::default(),
            buffers_bytes_max,
        }
    }

    /// A connection; `None` if its id is stale.
    pub(in crate::shard) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.table.get(id.index as usize)?.as_deref().filter(|conn| conn.id == id)
    }

    /// A connection; `None` if its id is stale.
    pub(in crate::shard) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.table.get_mut(id.index as usize)?.as_deref_mut().filter(|conn| conn.id == id)
    }

    /// The attachment of a place; `None` if the place is free or has another ticket.
    pub(in crate::shard) fn attachment_at(&mut self, place: Place) -> Option<&mut Attachment> {
        self.get_mut(place.conn)?.attachment_mut(place.attachment).filter(|attachment| attachment.ticket == place.ticket)
    }

    /// Adds a connection, at the index of its id.
    pub(in crate::shard) fn insert(&mut self, conn: Conn) {
        let index = conn.id.index as usize;
        if self.table.len() <= index {
            self.table.resize_with(index + 1, || None);
        }
        self.table[index] = Some(Box::new(conn));
        self.count += 1;
    }

    /// Adds a connection to those that have something to send.
    pub(in crate::shard) fn mark(&mut self, id: ConnId) {
        let Some(conn) = self.get_mut(id) else { return };
        if !conn.flags.dirty && !conn.flags.blocked {
            conn.flags.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Ends a connection before this turn does.
    pub(in crate::shard) fn doom(&mut self, id: ConnId, reason: CloseReason) {
        self.doomed.push((id, reason));
    }

    /// Resumes reading a connection, in the mode of its phase.
    pub(in crate::shard) fn read_on<I: Io>(&self, io: &mut I, id: ConnId) {
        let Some(conn) = self.get(id) else { return };
        let mode = match conn.phase {
            Phase::Proxy(_) | Phase::Head(_) | Phase::Hello => Read::Once,
            Phase::Open | Phase::Echo | Phase::Closing(_) => Read::Stream,
            Phase::HandingOver(_) => return,
        };
        io.read(id, mode);
    }

    /// Notes that answers from another shard may still be due for this connection.
    pub(in crate::shard) fn note_spoke_elsewhere(&mut self, id: ConnId) {
        if let Some(conn) = self.get_mut(id) {
            conn.flags.spoke_elsewhere = true;
        }
    }
}
