//! Cold history: segments that are no longer written and have left memory get an index file, and their entries leave the
//! sessions' own indexes. Files are made off this thread; their content is applied in slices, so that no turn is long.

use super::disk::Disk;
use super::read_back::Job;
use super::read_errors::Place;
use crate::io::Io;
use crate::log::{Position, SessionRun, directory_runs};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::durability::Storage;
use crate::time::Tick;
use std::collections::BTreeMap;

/// Runs that one turn applies.
const RUNS_PER_TURN: usize = 2048;
/// Time until a failed file is tried again, and the time in which a file is remade at most a few times: a bit of the file may
/// flip each time, but after that the segment counts as damaged.
const RETRY_MS: u64 = 60_000;
const REMAKES_MAX: u32 = 4;

/// How far a shard's segments are indexed.
#[derive(Debug, Default)]
pub(in crate::shard) struct Indexing {
    /// All segments before this one have their files.
    next: u64,
    asked: Option<u64>,
    rests_until_ms: u64,
    /// The file whose runs are being applied: its segment, its beginning, and how many runs are applied.
    taking: Option<(u64, Vec<u8>, usize)>,
    /// Files found damaged, to be remade; and for each, since when and how often it was.
    again: Vec<u64>,
    remade: BTreeMap<u64, (u64, u32)>,
    /// Files that were replaced by a remade one whose runs are applied.
    replaced: u64,
    /// Reads that wait for an index file.
    waiting: Vec<(u64, Job)>,
}

impl Indexing {
    /// All segments before `next` are indexed.
    pub(in crate::shard) fn from(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    pub(in crate::shard) const fn is_indexed(&self, number: u64) -> bool {
        number < self.next
    }

    /// Returns `true` while a segment's file is being made, or its runs are being applied.
    fn is_under_way(&self, number: u64) -> bool {
        self.asked == Some(number) || self.taking.as_ref().is_some_and(|(taking, ..)| *taking == number)
    }

    pub(in crate::shard) const fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The reads that wait for an index file.
    #[cfg(test)]
    pub(in crate::shard) fn waiting_jobs(&self) -> impl Iterator<Item = &Job> {
        self.waiting.iter().map(|(_, job)| job)
    }

    fn take_waiting(&mut self, number: u64) -> Vec<Job> {
        let (taken, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(segment, _)| *segment == number);
        self.waiting = waiting;
        let taken: Vec<(u64, Job)> = taken;
        taken.into_iter().map(|(_, job)| job).collect()
    }
}

impl Core {
    /// Starts the index of the next segment, and applies finished ones. Returns `true` if there is more to apply.
    pub(in crate::shard) fn index_segments<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        if self.storage.disk.as_ref().is_some_and(|disk| disk.indexing.taking.is_some()) {
            return self.take_runs(io);
        }
        let (resident, Some(geometry)) = (self.storage.log.resident(), self.storage.log.geometry()) else { return false };
        let Some(disk) = &mut self.storage.disk else { return false };
        let indexing = &mut disk.indexing;
        if indexing.asked.is_some() {
            return false;
        }
        let number = match indexing.again.pop() {
            Some(number) => number,
            None => {
                let Some(next) = disk.kept.iter().map(|kept| kept.number).find(|number| *number >= indexing.next) else {
                    return false;
                };
                indexing.next = next;
                // Records in memory, or that may still be written, are read there.
                let end = Position((next + 1) * geometry.segment_bytes);
                if end > resident || end > disk.synced_to || now.mono_ms() < indexing.rests_until_ms {
                    return false;
                }
                next
            }
        };
        indexing.asked = Some(number);
        io.index_segment(number);
        false
    }

    pub(in crate::shard) fn on_segment_indexed<I: Io>(
        &mut self,
        io: &mut I,
        number: u64,
        result: Result<Vec<u8>, i32>,
        unsaved: Option<i32>,
        now: Tick,
    ) {
        let Some(disk) = &mut self.storage.disk else { return };
        disk.indexing.asked = None;
        if let Some(errno) = unsaved {
            self.cx.counters.log_index_failures.increment();
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(
                shard = self.cx.shard,
                segment = number,
                %error,
                "a segment's index could not be written: it is held in memory until the next start makes it again"
            );
        }
        match result {
            Ok(directory) => {
                self.cx.counters.log_indexed.increment();
                disk.indexing.taking = Some((number, directory, 0));
                self.storage.places.retain(|places| u64::from(places.segment) != number);
            }
            Err(errno) => {
                self.cx.counters.log_index_failures.increment();
                disk.indexing.rests_until_ms = now.mono_ms() + RETRY_MS;
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::warn!(
                    shard = self.cx.shard,
                    segment = number,
                    %error,
                    "a segment could not be indexed: its messages stay in memory's index, and it is tried again in a minute"
                );
                let waiting = disk.indexing.take_waiting(number);
                if let Ok(segment) = u32::try_from(number) {
                    self.on_unread(io, Place::Index(segment), errno, waiting, now);
                }
            }
        }
    }

    /// Applies a slice of an index file's runs to their sessions' indexes.
    fn take_runs<I: Io>(&mut self, io: &mut I) -> bool {
        let Some(geometry) = self.storage.log.geometry() else { return false };
        let Some((number, directory, mut taken)) = self.storage.disk.as_mut().and_then(|disk| disk.indexing.taking.take()) else {
            return false;
        };
        let (begin, end) = (Position(number * geometry.segment_bytes), Position((number + 1) * geometry.segment_bytes));
        let mut left = directory_runs(&directory, taken).peekable();
        let no_limit = self.cx.snapshot.settings.log.retention_age_s == 0;
        let (mut runs, mut seen) = (Vec::new(), 0);
        while (seen < RUNS_PER_TURN || !runs.is_empty())
            && let Some(SessionRun { session, run }) = left.next()
        {
            seen += 1;
            runs.push(run);
            // All of a session's runs are applied at once.
            if left.peek().is_some_and(|next| next.session == session) {
                continue;
            }
            taken += runs.len();
            if let Some(key) = self.home.sessions.find(session)
                && let Some(stream) = self.home.sessions.sessions.get(key).map(|session| session.stream)
                && let Some(stream) = self.home.streams.get_mut(stream)
            {
                let together = |one, other| no_limit || self.storage.ages.together(one, other);
                stream.index.sink(run.segment, (begin, end), &runs, together);
            }
            runs.clear();
        }
        let more = left.peek().is_some();
        drop(left);
        let Some(disk) = &mut self.storage.disk else { return false };
        if more {
            disk.indexing.taking = Some((number, directory, taken));
            return true;
        }
        disk.indexing.replaced += u64::from(disk.indexing.is_indexed(number));
        disk.indexing.next = disk.indexing.next.max(number + 1);
        self.serve_waiting(io, number);
        true
    }

    /// Goes on with a job whose read of an index found another file: once the runs of that file are known.
    pub(in crate::shard) fn read_replaced<I: Io>(&mut self, io: &mut I, segment: u32, job: Job) {
        if self.storage.disk.as_ref().is_some_and(|disk| disk.indexing.is_under_way(segment.into())) {
            self.storage.wait_for_index(&self.cx, segment, job);
        } else {
            self.go_on_with(io, job);
        }
    }

    fn serve_waiting<I: Io>(&mut self, io: &mut I, number: u64) {
        let Some(disk) = &mut self.storage.disk else { return };
        let served = disk.indexing.take_waiting(number);
        if !served.is_empty() {
            let now_ms = io.clock().mono_ms();
            disk.indexing.remade.retain(|_, (since_ms, _)| now_ms.saturating_sub(*since_ms) < RETRY_MS);
            disk.indexing.remade.entry(number).or_insert((now_ms, 0)).1 += 1;
        }
        for job in served {
            self.go_on_with(io, job);
        }
    }
}

impl Storage {
    /// Returns `true` if a file with a damaged place was remade often lately: then the segment is damaged.
    pub(in crate::shard) fn was_remade(&self, segment: u32) -> bool {
        let times = |disk: &Disk| disk.indexing.remade.get(&segment.into()).map_or(0, |(_, times)| *times);
        self.disk.as_ref().is_none_or(|disk| times(disk) >= REMAKES_MAX)
    }

    /// Index files that were replaced so far.
    pub(in crate::shard) fn replaced_indexes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.indexing.replaced)
    }

    /// Returns `true` if a read of a segment's index, begun after `replaced` files had been replaced, may have found another file than
    /// the one whose runs are known: entries stand elsewhere in it if a record has become damaged.
    pub(in crate::shard) fn is_replaced(&self, segment: u32, replaced: u64) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.indexing.replaced != replaced || disk.indexing.is_under_way(segment.into()))
    }

    /// Makes a read wait until a segment's index, which is missing or damaged, is remade.
    pub(in crate::shard) fn wait_for_index(&mut self, cx: &Context, segment: u32, job: Job) {
        let number = u64::from(segment);
        let Some(disk) = &mut self.disk else { return };
        let indexing = &mut disk.indexing;
        if !indexing.is_under_way(number) && !indexing.again.contains(&number) {
            tracing::warn!(shard = cx.shard, segment = number, "a segment's index is missing or damaged: it is remade");
            indexing.again.push(number);
        }
        indexing.waiting.push((number, job));
    }
}
