//! The connections of a shard.

use super::conn::Conn;
use super::half_open::HalfOpen;
use super::rate::Bucket;
use crate::close::CloseReason;
use crate::ids::{ConnId, HashKey};
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
}
