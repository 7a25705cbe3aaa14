//! Records that are not yet durable, and the answers that wait for them: how much there may be, and how much there is.

use super::awaiting::{COMMAND, Queue, Waiting};
use super::disk::{Disk, Fence, PENDING_BYTES_MAX, RECORD_BYTES_MORE_MAX};
use crate::config::Durability;
use crate::log::{Level, Position};
use crate::protocol::{Envelope, ErrorCode};
use crate::session::{Place, SessionKey, StreamKey};
use crate::shard::context::Context;
use crate::shard::counters::LimitReached;
use crate::shard::durability::Storage;
use crate::shard::home::facts::HeldCommand;

impl Storage {
    /// The level of sessions without one of their own.
    pub(in crate::shard) fn default_level(&self, cx: &Context) -> Level {
        match cx.snapshot.settings.log.durability {
            _ if self.disk.is_none() => Level::Memory,
            Durability::Memory => Level::Memory,
            Durability::Written => Level::Written,
            Durability::Synced => Level::Synced,
        }
    }

    /// The refusal to send if the log takes no more messages of a level now; `None` if it does.
    pub(in crate::shard) fn log_refuses(
        &self,
        cx: &Context,
        level: Level,
        envelope: &Envelope<'_>,
    ) -> Option<(ErrorCode, &'static str)> {
        self.log_refuses_record(cx, level, envelope.object.len() + RECORD_BYTES_MORE_MAX)
    }

    /// Returns `true` if the disk has failed for this level.
    pub(in crate::shard) fn log_has_failed(&self, level: Level) -> bool {
        self.disk.as_ref().is_some_and(|disk| {
            level != Level::Memory && disk.failed.is_some() || level == Level::Synced && disk.sync_failed.is_some()
        })
    }

    /// The refusal to send if the log takes no record of this size and level now; `None` if it does.
    pub(in crate::shard) fn log_refuses_record(
        &self,
        cx: &Context,
        level: Level,
        bytes: usize,
    ) -> Option<(ErrorCode, &'static str)> {
        let disk = self.disk.as_ref()?;
        if self.log_has_failed(level) {
            return Some((
                ErrorCode::LimitDisk,
                "the log's disk has failed: the operator must look at it and restart the gateway",
            ));
        }
        if self.has_no_room(disk, level, bytes) {
            cx.counters.limit_reached(LimitReached::Disk);
            return Some((
                ErrorCode::LimitDisk,
                "the log has no room: its disk is full, or at log.max_bytes or log.reserve_bytes; what needs no log goes on",
            ));
        }
        if self.pending_to(level) < PENDING_BYTES_MAX {
            return None;
        }
        if disk.full.is_some() || disk.failed.is_some() || disk.sync_failed.is_some() {
            return Some((
                ErrorCode::LimitDisk,
                "the log's disk is full or has failed: what needs no log goes on, this message was not taken",
            ));
        }
        cx.counters.limit_reached(LimitReached::LogPending);
        Some((ErrorCode::LimitBackpressure, "the log's disk is too slow at the moment: send it again after retry_after_ms"))
    }

    /// Bytes of the log that are not yet durable at the default level.
    pub(in crate::shard) fn pending_bytes(&self, cx: &Context) -> u64 {
        self.pending_to(self.default_level(cx))
    }

    /// Bytes of the log that are not yet durable at this level. Those of the lowest level are not waited for, but memory holds
    /// them as well.
    pub(in crate::shard) fn pending_to(&self, level: Level) -> u64 {
        let durable = match (&self.disk, level) {
            (None, _) => return 0,
            (Some(disk), Level::Synced) => disk.synced_to,
            (Some(_), Level::Memory | Level::Written) => self.log.written(),
        };
        self.log.end().0.saturating_sub(durable.0)
    }

    /// The commands that wait for the disk, by level: count and bytes.
    #[cfg(test)]
    pub(in crate::shard) fn held_commands(&self) -> [(usize, usize); 2] {
        let count = |queue: &Queue| (queue.waiting.iter().filter(|waiting| waiting.is_command()).count(), queue.commands.len());
        self.disk.as_ref().map_or([(0, 0); 2], |disk| [count(&disk.written), count(&disk.synced)])
    }

    /// Keeps a command's answer until everything before `end` is durable at this level.
    pub(in crate::shard) fn hold_command(
        &mut self,
        held: HeldCommand,
        level: Level,
        to: Place,
        end: Position,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(disk) = &mut self.disk else { return };
        let queue = if level == Level::Synced { &mut disk.synced } else { &mut disk.written };
        let before = queue.acks.len();
        crate::shard::outbound::replies::framed(&mut queue.acks, write);
        let ack_bytes = u32::try_from(queue.acks.len() - before).unwrap_or(u32::MAX);
        let (session, stream) = (SessionKey::unpack(COMMAND), StreamKey::unpack(COMMAND));
        queue.waiting.push_back(Waiting { end, session, stream, seq: 0, to, ack_bytes });
        queue.commands.push_back(held);
    }

    /// The end of the last entry that waits for this level: a new entry there is in order.
    pub(in crate::shard) fn last_held(&self, level: Level) -> Position {
        let end = self.log.end();
        let Some(disk) = &self.disk else { return end };
        let queue = if level == Level::Synced { &disk.synced } else { &disk.written };
        queue.last_end().unwrap_or(end)
    }

    /// Memory of data that waits: to be sent, for lanes, and for the disk.
    pub(in crate::shard) fn held_bytes(&self, cx: &Context) -> u64 {
        cx.counters.buffer_bytes.get() + self.disk_held_bytes()
    }

    /// The part of it that waits for the disk: answers, members' values, and the log beyond `log.memory_bytes`.
    pub(super) fn disk_held_bytes(&self) -> u64 {
        let Some(disk) = &self.disk else { return 0 };
        disk.written.bytes() + disk.synced.bytes() + disk.owed.bytes() + self.log.excess_bytes() as u64
    }

    /// The end of everything that waits for the disk now.
    pub(in crate::shard) fn fence(&self) -> Fence {
        let end = |queue: fn(&Disk) -> &Queue| self.disk.as_ref().and_then(|disk| queue(disk).last_end()).unwrap_or(Position(0));
        Fence { written: end(|disk| &disk.written), synced: end(|disk| &disk.synced) }
    }

    /// Returns `true` if everything that waited at the fence has been released.
    pub(in crate::shard) fn is_past(&self, fence: Fence) -> bool {
        let is_gone = |queue: &Queue, end: Position| queue.waiting.front().is_none_or(|first| first.end > end);
        self.disk.as_ref().is_none_or(|disk| is_gone(&disk.written, fence.written) && is_gone(&disk.synced, fence.synced))
    }

    /// Returns `true` until the records that recovery appended are durable; no connection is accepted before.
    #[must_use]
    pub fn recovery_pending(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.opens_at.is_some())
    }

    /// When the disk must be checked again, on the monotonic clock.
    pub(in crate::shard) fn disk_due_ms(&self) -> Option<u64> {
        let disk = self.disk.as_ref()?;
        // Operations under way will be answered, and failed ones are not tried again.
        if disk.failed.is_some() || disk.sync_failed.is_some() || disk.syncing.is_some() {
            return disk.owed.due_ms();
        }
        let unsynced = disk.synced_to < self.log.written();
        let waiting = self.log.unwritten().filter(|_| disk.writing.is_none() && disk.preparing.is_none());
        let retry_ms = waiting.map(|part| {
            let homeless = disk.ready.is_none_or(|ready| part.segment > ready);
            disk.rests_until_ms.max(if homeless { disk.segment_due_ms } else { 1 })
        });
        retry_ms.into_iter().chain(unsynced.then_some(disk.sync_due_ms)).chain(disk.owed.due_ms()).min()
    }
}
