//! Room in the log: creates its files ahead, and bounds how far clients may fill it; a part is reserved for the work that frees
//! space (rewritten state, compaction, purges). Computed once a turn, so that single records are checked only near the end.

use super::disk::{Disk, PENDING_BYTES_MAX, RETRY_MS, libc_errno};
use super::state_records::Kept;
use crate::io::{BELOW_RESERVE, Io};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::log::Level;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::durability::Storage;
use crate::time::Tick;

/// The shard's share of `log.max_bytes`, divided by this and at least half a file, is reserved for the work that frees space. So
/// is such a part of the last file if the disk has no room for another.
const RESERVE_PART: u64 = 16;
/// More than one turn appends, since no more than [`PENDING_BYTES_MAX`] may wait.
const NEAR_BYTES: u64 = 2 * PENDING_BYTES_MAX;

/// How far clients may fill the log, as positions; `u64::MAX` if nothing bounds it.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Room {
    /// The bound by the shard's share of `log.max_bytes`.
    share_end: u64,
    /// The bound by that, and by the files that could be made, for records that must be on disk.
    end: u64,
    /// `true` if a record may have no room.
    pub(in crate::shard) is_near_end: bool,
    /// `true` while messages are refused by `log.max_bytes`, long ones first.
    pub(in crate::shard) is_capped: bool,
}

impl Room {
    pub(in crate::shard) const ENDLESS: Self = Self { share_end: u64::MAX, end: u64::MAX, is_near_end: false, is_capped: false };
}

impl Core {
    /// Files allowed by the shard's share of `log.max_bytes`.
    pub(in crate::shard) fn files_allowed(&self) -> u64 {
        let (max_bytes, geometry) = (self.cx.snapshot.settings.log.max_bytes, self.storage.log.geometry());
        let share = max_bytes / self.links.mesh.shards() as u64;
        geometry.filter(|_| max_bytes > 0).map_or(u64::MAX, |geometry| share / geometry.segment_bytes)
    }

    /// Computes how far clients may fill the log now: files came or went, or could not be made.
    pub(in crate::shard) fn note_room(&mut self) {
        let (Some(geometry), end, allowed) = (self.storage.log.geometry(), self.storage.log.end().0, self.files_allowed()) else {
            return;
        };
        let segment_bytes = geometry.segment_bytes;
        let Some(disk) = &mut self.storage.disk else { return };
        let share_end = if allowed == u64::MAX {
            u64::MAX
        } else {
            // Before the first file exists, the next bytes will be written to it, however many wait.
            let next = || self.storage.log.written().0 / segment_bytes;
            let (first, share) = (disk.kept.front().map_or_else(next, |kept| kept.number), allowed * segment_bytes);
            // The file being written is never deleted: if it is the only one, nothing can free space.
            let reserve = if allowed < 2 { 0 } else { (share / RESERVE_PART).max(segment_bytes / 2) };
            first * segment_bytes + share - reserve
        };
        let files_end = match disk.ready {
            _ if !disk.starved || disk.full.is_none() => u64::MAX,
            None => 0,
            Some(ready) => (ready + 1) * segment_bytes - segment_bytes / RESERVE_PART,
        };
        let room = Room {
            share_end,
            end: share_end.min(files_end),
            is_near_end: share_end.min(files_end).saturating_sub(end) < NEAR_BYTES,
            is_capped: share_end.saturating_sub(end) < 2 * MESSAGE_BYTES_MAX as u64,
        };
        let was_capped = std::mem::replace(&mut disk.room, room).is_capped;
        if room.is_capped && !was_capped {
            tracing::error!(
                shard = self.cx.shard,
                "the log has its share of log.max_bytes: durable messages are refused until retention lets files go"
            );
            self.cx.counters.limit_reached(LimitReached::LogBytes);
        }
    }

    /// Requests the next segment before it is needed.
    pub(in crate::shard) fn make_segment<I: Io>(&mut self, io: &mut I, now: Tick) {
        let (end, Some(geometry)) = (self.storage.log.end(), self.storage.log.geometry()) else { return };
        self.note_room();
        let (allowed, has_purges) = (self.files_allowed(), !self.storage.purges.is_empty());
        let Some(disk) = &mut self.storage.disk else { return };
        if disk.preparing.is_some() || now.mono_ms() < disk.segment_due_ms || disk.failed.is_some() {
            return;
        }
        let tail = end.0 / geometry.segment_bytes;
        let next = match disk.ready {
            None => self.storage.log.written().0 / geometry.segment_bytes,
            // The next one is requested once the current is half full.
            Some(ready) if tail > ready || (tail == ready && end.0 % geometry.segment_bytes > geometry.segment_bytes / 2) => {
                ready + 1
            }
            Some(_) => return,
        };
        // A start may find as many files as the share allows: what frees space, and a purge, have one to be written to.
        let may_go_beyond = disk.ready.is_none() && (disk.makes_room() || has_purges);
        if disk.kept.len() as u64 >= allowed && !may_go_beyond {
            disk.starved = true;
            disk.full = disk.full.or(Some(libc_errno::ENOSPC));
            disk.segment_due_ms = now.mono_ms() + RETRY_MS;
            self.cx.counters.limit_reached(LimitReached::LogBytes);
            return self.note_room();
        }
        disk.preparing = Some(next);
        io.prepare_segment(next);
    }

    pub(in crate::shard) fn on_segment_ready(&mut self, number: u64, result: Result<(), i32>, now: Tick) {
        self.storage.take_segment(&self.cx, number, result, now);
        self.note_room();
    }
}

impl Storage {
    /// Returns `true` if a client's record of this size has no room. A record that nobody waits for is accepted beyond the last
    /// file, as long as there is memory for it.
    pub(in crate::shard) fn has_no_room(&self, disk: &Disk, level: Level, bytes: usize) -> bool {
        let room = &disk.room;
        room.is_near_end && {
            let end = if level == Level::Memory { room.share_end } else { room.end };
            self.log.end().0.saturating_add(bytes as u64) > end
        }
    }

    fn take_segment(&mut self, cx: &Context, number: u64, result: Result<(), i32>, now: Tick) {
        let Some(disk) = &mut self.disk else { return };
        disk.preparing = None;
        match result {
            Ok(()) => {
                disk.ready = Some(number);
                disk.starved = false;
                disk.kept.push_back(Kept { number, begun_ms: now.wall_ms });
                disk.full = None;
                cx.counters.log_segments.add(1);
            }
            Err(errno) => {
                disk.starved = true;
                let is_new = disk.full.replace(errno).is_none();
                disk.segment_due_ms = now.mono_ms() + RETRY_MS;
                if errno == BELOW_RESERVE {
                    cx.counters.limit_reached(LimitReached::LogReserve);
                    if is_new {
                        tracing::error!(
                            shard = cx.shard,
                            "another file of the log would use what log.reserve_bytes keeps free: durable messages are refused until there is room"
                        );
                    }
                    return;
                }
                cx.counters.limit_reached(LimitReached::Disk);
                if is_new {
                    let error = std::io::Error::from_raw_os_error(errno);
                    tracing::error!(shard = cx.shard, segment = number, %error, "a segment of the log could not be made; trying again each second");
                }
            }
        }
    }
}
