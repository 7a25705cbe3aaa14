//! Links to the other shards: the lanes, what waits for them, and the sessions mirrored from and to them.

use super::mesh::{LaneMessage, Mesh, Page, Spoken};
use crate::ids::{HashKey, Map};
use crate::io::Io;
use crate::log::Log;
use crate::session::{MemberKey, Place, SessionKey, StreamKey};
use crate::shard::context::Context;
use std::collections::VecDeque;
use std::sync::Arc;

/// See the module's text.
pub struct Links {
    pub(in crate::shard) mesh: Arc<Mesh>,
    /// Messages that found a lane full, by shard.
    pub(in crate::shard) backlog: Vec<VecDeque<LaneMessage>>,
    /// Connections with an `Evict` already queued for this lane, so that each is evicted once.
    pub(in crate::shard) evicted: Vec<Map<Place, ()>>,
    pub(in crate::shard) spoken: Spoken,
    /// Sessions with records for their mirrors.
    pub(in crate::shard) mirrored: Vec<SessionKey>,
    /// Streams of sessions at home elsewhere, by the session's hash.
    pub(in crate::shard) mirrors: Map<u64, StreamKey>,
    pub(in crate::shard) mirror_log: Log,
    /// Pulls to send for readers behind their mirror: `(attachment, member, cursor)`.
    pub(in crate::shard) pulls: Vec<(Place, MemberKey, u64)>,
    /// Pages for the next pulls.
    #[expect(clippy::vec_box, reason = "the boxes are what is kept: they cross the lanes")]
    pub(in crate::shard) pages: Vec<Box<Page>>,
    /// Frame number, on its own connection, and ack preference of the forwarded message being handled.
    pub(in crate::shard) forwarded: (u64, bool),
    /// The shard whose lane is being read.
    pub(in crate::shard) reading_from: Option<u16>,
}

impl Links {
    pub(in crate::shard) fn new(mesh: Arc<Mesh>, key: HashKey, memory_bytes: usize) -> Self {
        let shards = mesh.shards();
        Self {
            backlog: (0..shards).map(|_| VecDeque::new()).collect(),
            evicted: (0..shards).map(|_| Map::with_hasher(key)).collect(),
            spoken: Spoken::default(),
            mirrored: Vec::new(),
            mirrors: Map::with_hasher(key),
            mirror_log: Log::new(memory_bytes),
            pulls: Vec::new(),
            pages: Vec::new(),
            forwarded: (0, true),
            reading_from: None,
            mesh,
        }
    }

    /// Sends a lane message that must not be lost.
    pub(in crate::shard) fn send_control<I: Io>(&mut self, cx: &Context, io: &mut I, shard: u16, message: LaneMessage) {
        self.send_lane(cx, io, usize::from(shard), message);
    }
}
