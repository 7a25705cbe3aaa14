//! The surroundings that a shard lends to each of its parts: its number, the settings, its counters, its buffers, randomness.

use super::across::mesh::RefusalFrame;
use super::connections::conn::{Conn, Ordered};
use super::counters::SharedCounters;
use super::port::Snapshot;
use crate::buffers::Buffers;
use crate::ids::HashKey;
use crate::limits::SEND_BYTES_MAX;
use crate::protocol::{Failure, Refusal};
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;
use std::collections::VecDeque;
use std::sync::Arc;

/// Buffers that the pool keeps, the largest one kept, and all their bytes together. A vector that grows to hold a message, a
/// batch for a mirror or waiting ciphertext has at most twice the memory it needs.
const POOL_BUFFERS: usize = 8192;
const POOL_BUFFER_BYTES: usize = 2 * SEND_BYTES_MAX;
const POOL_BYTES: usize = 16 * 1024 * 1024;

/// See the module's text.
pub struct Context {
    /// This shard's number.
    pub(super) shard: usize,
    /// The process's key for names. The same on all shards.
    pub(super) key: HashKey,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) counters: SharedCounters,
    pub(super) buffers: Buffers,
    random: u64,
    /// The next id of an event that the gateway itself sends.
    pub(super) random_id: u64,
}

impl Context {
    pub(super) fn new(shard: usize, key: HashKey, snapshot: Arc<Snapshot>, counters: SharedCounters, seed: u64) -> Self {
        let buffers = Buffers::new(POOL_BUFFERS, POOL_BUFFER_BYTES, POOL_BYTES);
        Self { shard, key, snapshot, counters, buffers, random: seed, random_id: seed }
    }

    /// Not for secrets: SplitMix64 (Steele, Lea and Flood 2014), seeded by the kernel, for trace ids, jitter and epochs.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The hash by which shards know a session.
    pub(in crate::shard) fn session_hash(&self, session_id: &str) -> u64 {
        self.key.hash64(&[b"session", session_id.as_bytes()])
    }

    /// This shard's number, as places have it.
    #[expect(clippy::cast_possible_truncation, reason = "shards are at most 256")]
    pub(in crate::shard) const fn shard_number(&self) -> u16 {
        self.shard as u16
    }

    /// The frame of a refusal, which is counted.
    pub(in crate::shard) fn error_frame(&mut self, refusal: &Refusal) -> RefusalFrame {
        self.counters.refused.increment();
        let mut frame = self.buffers.take();
        let open = OpenFrame::begin(&mut frame);
        crate::protocol::error(&mut frame, &Failure::of(refusal, None));
        open.finish(Opcode::Text, &mut frame);
        frame
    }

    /// Drops replies that are sent no more: their buffers go back to the pool.
    pub(in crate::shard) fn forget_ordered(&mut self, ordered: VecDeque<Ordered>) {
        for ordered in ordered {
            self.counters.buffer_bytes.subtract(ordered.memory_bytes() as u64);
            self.buffers.give(ordered.what.into_buffer());
        }
    }

    /// An id for an event of the gateway's own.
    pub(in crate::shard) fn event_id(&mut self) -> String {
        format!("rw-{:016x}", self.next_random())
    }

    /// The name of a connection: by the shard that accepted it.
    pub(in crate::shard) fn name_of(&self, conn: &Conn) -> String {
        let shard = if conn.origin_shard == u16::MAX { self.shard_number() } else { conn.origin_shard };
        format!("c-{shard}-{}", conn.serial)
    }
}
