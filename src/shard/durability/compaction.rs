//! Compaction: copies what the oldest file of the log still holds to the tail, so that the file can be deleted (decision 0016).
//!
//! Goes session by session, using the file's index, so that dead records are not read. Each step copies a little and then waits;
//! no step is made while the log or its readers are behind.

use super::disk::PENDING_BYTES_MAX;
use super::read_back::{Hand, Job, Look};
use crate::io::Io;
use crate::limits::{CHUNK_BYTES, READ_BACKS_MAX, SEND_BYTES_MAX};
use crate::log::{Entry, read_record};
use crate::session::StreamKey;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::DropReason;
use crate::shard::durability::Storage;
use crate::shard::home::Home;
use crate::time::Tick;

/// Bytes copied in one step, and the time that other work then has before the next.
pub(in crate::shard) const STEP_BYTES: usize = SEND_BYTES_MAX;
const STEP_MS: u64 = 2;
/// Pause while the log is behind, and after a failed read.
const BUSY_MS: u64 = 50;
const RETRY_MS: u64 = 60_000;
/// Bytes waiting for the disk, and reads under way, above which compaction pauses.
pub(in crate::shard) const PENDING_BYTES: u64 = PENDING_BYTES_MAX / 8;
const READS: usize = READ_BACKS_MAX;
/// Files needed before compaction starts, unless they use most of their share of `log.max_bytes`.
const FILES_MIN: usize = 4;
/// Sessions that one compaction copies from; the next look finds those left over.
pub(in crate::shard) const SESSIONS_MAX: usize = 4096;

/// A compaction under way.
#[derive(Debug, Default)]
pub(in crate::shard) struct Compaction {
    /// The file's number.
    segment: u32,
    /// Streams whose messages in the file are still to be copied.
    left: Vec<StreamKey>,
    /// `true` while a message is being read.
    reading: bool,
    step_bytes: usize,
    due_ms: u64,
    /// `true` if a read failed: the compaction is retried later.
    failed: bool,
    rests_until_ms: u64,
}

impl Compaction {
    pub(in crate::shard) const fn is_under_way(&self) -> bool {
        self.reading || !self.left.is_empty()
    }
}

impl Core {
    /// Begins to copy the messages that the oldest file, of number `segment`, holds of these streams, if enough of the log is
    /// dead.
    pub(in crate::shard) fn begin_compaction(&mut self, segment: u64, holders: Vec<StreamKey>, retained_bytes: u64, now: Tick) {
        let Some(geometry) = self.storage.log.geometry() else { return };
        let session = &self.cx.snapshot.settings.session;
        let share = self.files_allowed().checked_mul(geometry.segment_bytes);
        let held = self.storage.log.end().0.saturating_sub(segment * geometry.segment_bytes);
        let dead = held.saturating_sub(retained_bytes);
        let Some(disk) = &mut self.storage.disk else { return };
        // The file after the next was created when the oldest had been full for long.
        let Some(later) = disk.kept.get(2) else { return };
        let pressed = share.is_some_and(|share| held.saturating_mul(4) >= share.saturating_mul(3));
        let worth = dead.saturating_mul(if pressed { 4 } else { 2 }) >= held;
        let past_windows = later.begun_ms.saturating_add(session.dedupe_ms) < now.wall_ms;
        let indexed = disk.indexing.is_indexed(segment);
        if std::mem::take(&mut disk.compaction.failed) {
            disk.compaction.rests_until_ms = now.mono_ms() + RETRY_MS;
        }
        let rested = now.mono_ms() >= disk.compaction.rests_until_ms;
        if worth
            && (pressed || disk.kept.len() >= FILES_MIN)
            && past_windows
            && indexed
            && rested
            && let Ok(segment) = u32::try_from(segment)
        {
            disk.compaction.segment = segment;
            disk.compaction.left = holders;
        }
    }

    /// Makes the next step, if it is due.
    pub(in crate::shard) fn compact<I: Io>(&mut self, io: &mut I, now: Tick) {
        let may = self.may_compact();
        let Some(compaction) = self.storage.disk.as_mut().map(|disk| &mut disk.compaction) else { return };
        if compaction.reading || now.mono_ms() < compaction.due_ms {
            return;
        }
        let Some(stream) = compaction.left.last().copied() else { return };
        if !may {
            compaction.due_ms = now.mono_ms() + BUSY_MS;
            return;
        }
        compaction.reading = true;
        self.copy(io, stream, &Hand::default());
    }

    fn may_compact(&self) -> bool {
        let (Some(disk), Some(geometry)) = (&self.storage.disk, self.storage.log.geometry()) else { return false };
        let (segment, offset) =
            (self.storage.log.end().0 / geometry.segment_bytes, self.storage.log.end().0 % geometry.segment_bytes);
        // If the disk is full, the rest of the current file can still be used.
        let has_place = disk.full.is_none()
            || disk.ready.is_some_and(|ready| segment < ready)
            || disk.ready == Some(segment) && offset + 2 * CHUNK_BYTES as u64 <= geometry.segment_bytes;
        !self.life.stopping
            && has_place
            // A copy behind a purge's record would outlive the purge.
            && self.storage.purges.is_empty()
            && disk.failed.is_none()
            && disk.sync_failed.is_none()
            && !self.pressure.is_on()
            && self.storage.pending_bytes(&self.cx) < PENDING_BYTES
            && self.storage.jobs.len() < READS
    }

    /// Copies a stream's messages that are in memory, and starts the read of the next one.
    pub(in crate::shard) fn copy<I: Io>(&mut self, io: &mut I, key: StreamKey, hand: &Hand<'_>) {
        let Some(segment) = self.storage.disk.as_ref().map(|disk| disk.compaction.segment) else { return };
        let mut record = self.cx.buffers.take();
        let mut copied_bytes = 0;
        let is_done = loop {
            let Some(stream) = self.home.streams.get(key) else { break true };
            let Some(run) = stream.index.runs().iter().find(|run| run.segment == segment) else { break true };
            if copied_bytes >= STEP_BYTES || !self.storage.purges.is_empty() {
                break false;
            }
            let seq = run.first_seq;
            match self.look(key, stream, seq, hand) {
                Look::Record(entry, bytes) => {
                    record.clear();
                    record.extend_from_slice(bytes);
                    copied_bytes += record.len();
                    self.append_again(key, seq, entry, &record);
                }
                Look::Want(_) if copied_bytes > 0 => break false,
                Look::Want(want) => {
                    self.cx.buffers.give(record);
                    return self.read_for(io, (key, seq), want, hand, Job::Copy(key));
                }
                // Readers may be told of a gap, but retained messages are not dropped for an unreadable place.
                Look::Unreadable { .. } => {
                    self.cx.buffers.give(record);
                    return self.storage.abandon_compaction();
                }
                Look::Damaged(_) | Look::Nothing { .. } => self.home.forget_damaged(&self.cx, key, seq, segment),
            }
        };
        self.cx.buffers.give(record);
        let (now_ms, end) = (io.clock().mono_ms(), self.storage.log.end());
        let Some(disk) = &mut self.storage.disk else { return };
        let compaction = &mut disk.compaction;
        compaction.reading = false;
        compaction.step_bytes += copied_bytes;
        if is_done {
            compaction.left.pop();
        }
        if compaction.step_bytes >= STEP_BYTES {
            compaction.step_bytes = 0;
            compaction.due_ms = now_ms + STEP_MS;
        }
        if compaction.left.is_empty() {
            disk.rewritten_to = end;
            disk.look_due_ms = now_ms;
        }
    }

    /// Appends a record unchanged; its place is there from now on.
    fn append_again(&mut self, key: StreamKey, seq: u64, entry: Entry, bytes: &[u8]) {
        // The record was read whole.
        let Ok(record) = read_record(bytes, None) else { return };
        let mut addresses = std::mem::take(&mut self.codec.targets);
        addresses.clear();
        addresses.extend(record.addresses.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes)));
        let put = self.storage.log.append(&record.header, &addresses, &[record.body]);
        self.codec.targets = addresses;
        self.storage.ages.note(put.at, record.header.ts_ms, self.cx.age_step_ms());
        self.cx.counters.log_compacted_bytes.add(bytes.len() as u64);
        if let Some(stream) = self.home.streams.get_mut(key) {
            stream.index.relocate(seq, Entry::new(put, entry.audience, entry.sender));
        }
    }
}

impl Storage {
    /// When the next step is due.
    pub(in crate::shard) fn compaction_due_ms(&self) -> Option<u64> {
        let compaction = &self.disk.as_ref()?.compaction;
        (!compaction.reading && !compaction.left.is_empty()).then_some(compaction.due_ms)
    }

    /// Stops the compaction; it is retried after `RETRY_MS`.
    pub(in crate::shard) fn abandon_compaction(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.compaction = Compaction { failed: true, ..Compaction::default() };
        }
    }
}

impl Home {
    /// Removes a damaged record from the index; readers see a gap, now and after a restart.
    fn forget_damaged(&mut self, cx: &Context, key: StreamKey, seq: u64, segment: u32) {
        cx.counters.dropped(DropReason::LogDamaged, 1);
        tracing::error!(shard = cx.shard, segment, seq, "a record of the log is damaged on disk");
        if let Some(stream) = self.streams.get_mut(key) {
            stream.index.forget(seq);
        }
    }
}
