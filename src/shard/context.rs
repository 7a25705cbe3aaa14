//! The surroundings that a shard lends to each of its parts: its number, the settings, its counters, its buffers, randomness.

use super::counters::SharedCounters;
use super::port::Snapshot;
use crate::buffers::Buffers;
use crate::ids::HashKey;
use crate::limits::SEND_BYTES_MAX;
use std::sync::Arc;

/// Buffers that the pool keeps, the largest one kept, and all their bytes together. A vector that grows to hold a message, a
/// batch for a mirror or waiting ciphertext has at most twice the memory it needs.
const POOL_BUFFERS: usize = 8192;
const POOL_BUFFER_BYTES: usize = 2 * SEND_BYTES_MAX;
const POOL_BYTES: usize = 16 * 1024 * 1024;

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
}
