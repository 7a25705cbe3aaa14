//! Places of the log that the disk cannot read. Each is tried for a while, then its messages are a gap for readers there, and
//! after a minute it is tried again. Nothing is forgotten because of it: once the disk reads again, all messages are back.

use super::read_back::Job;
use crate::io::Io;
use crate::log::{Position, segment_name};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::durability::Storage;
use crate::time::Tick;
use std::collections::VecDeque;

/// Times a place is tried at least, over which time, and how far apart, before it counts as unreadable.
const TRIES: u32 = 5;
const TRIED_FOR_MS: u64 = 5_000;
const RETRY_MS: u64 = 500;
/// Time for which a place is remembered after its last failure.
const REMEMBERED_MS: u64 = 60_000;
/// Places remembered; with as many being tried, a reader is closed instead.
const PLACES_MAX: usize = 256;

/// The target of a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Place {
    Record {
        at: Position,
        bytes: usize,
    },
    /// Several records, and the bytes between them.
    Stretch {
        at: Position,
        bytes: usize,
    },
    /// The index file of this segment, and the segment to remake it from.
    Index(u32),
}

impl Place {
    fn overlaps(&self, from: u64, to: u64) -> bool {
        match *self {
            Self::Record { at, bytes } | Self::Stretch { at, bytes } => at.0 < to && from < at.0 + bytes as u64,
            Self::Index(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    place: Place,
    tries: u32,
    /// Of a stretch: when it first failed without a success since.
    since_ms: u64,
    last_ms: u64,
    given_up: bool,
}

/// The next step after a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Examine it again at once: closer, or because it has failed for long already.
    Now {
        is_first: bool,
    },
    Later {
        is_first: bool,
    },
    GiveUp,
    /// There are too many such places.
    Full,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(in crate::shard) struct Unreadable {
    failing: Vec<Failing>,
    /// Reads to be repeated: when, and the tag under which they wait. In the order of their times.
    waiting: VecDeque<(u64, u64)>,
}

impl Unreadable {
    /// Returns `true` if a record at this place counts as unreadable.
    pub(in crate::shard) fn has_record(&self, at: Position, bytes: u32) -> bool {
        let place = Place::Record { at, bytes: bytes as usize };
        self.failing.iter().any(|failing| failing.given_up && failing.place == place)
    }

    /// Returns `true` if a segment's index counts as unreadable.
    pub(in crate::shard) fn has_index(&self, segment: u32) -> bool {
        self.failing.iter().any(|failing| failing.given_up && failing.place == Place::Index(segment))
    }

    /// Returns `true` if a read between two positions failed lately: records there are read one by one.
    pub(in crate::shard) fn is_near(&self, from: u64, to: u64) -> bool {
        self.failing.iter().any(|failing| failing.place.overlaps(from, to))
    }

    /// Notes bytes that were read.
    pub(in crate::shard) fn worked(&mut self, at: Position, bytes: usize, now: Tick) {
        if self.failing.is_empty() {
            return;
        }
        let (from, to) = (at.0, at.0 + bytes as u64);
        self.failing.retain_mut(|failing| match failing.place {
            place @ Place::Stretch { .. } if place.overlaps(from, to) => {
                failing.since_ms = now.mono_ms();
                true
            }
            Place::Record { at, bytes } => at.0 < from || at.0 + bytes as u64 > to,
            Place::Stretch { .. } | Place::Index(_) => true,
        });
    }

    /// Notes that a segment's index was read.
    pub(in crate::shard) fn index_worked(&mut self, segment: u32) {
        self.failing.retain(|failing| failing.place != Place::Index(segment));
    }

    fn failed(&mut self, place: Place, now: Tick) -> Verdict {
        let now_ms = now.mono_ms();
        let mut since_ms = now_ms;
        if let Place::Record { at, bytes } = place {
            for failing in &mut self.failing {
                if matches!(failing.place, Place::Stretch { .. }) && failing.place.overlaps(at.0, at.0 + bytes as u64) {
                    failing.last_ms = now_ms;
                    since_ms = since_ms.min(failing.since_ms);
                }
            }
        }
        let known = self.failing.iter().position(|failing| failing.place == place);
        let known = match known {
            Some(known) => known,
            None if self.failing.len() >= PLACES_MAX => {
                let may_go = |failing: &Failing| failing.given_up || matches!(failing.place, Place::Stretch { .. });
                let Some(oldest) = self.failing.iter().position(may_go) else { return Verdict::Full };
                self.failing.remove(oldest);
                return self.failed(place, now);
            }
            None => {
                self.failing.push(Failing { place, tries: 0, since_ms, last_ms: now_ms, given_up: false });
                self.failing.len() - 1
            }
        };
        let failing = &mut self.failing[known];
        if !failing.given_up && now_ms.saturating_sub(failing.last_ms) > TRIED_FOR_MS {
            // Nobody has tried it for long: earlier failures say little about now.
            (failing.tries, failing.since_ms) = (0, now_ms);
        }
        (failing.tries, failing.last_ms) = (failing.tries.saturating_add(1), now_ms);
        let long = now_ms.saturating_sub(failing.since_ms) >= TRIED_FOR_MS;
        match place {
            Place::Stretch { .. } => Verdict::Now { is_first: failing.tries == 1 },
            _ if failing.given_up => Verdict::Now { is_first: false },
            _ if long && failing.tries >= TRIES => {
                failing.given_up = true;
                Verdict::GiveUp
            }
            _ if long => Verdict::Now { is_first: false },
            _ => Verdict::Later { is_first: failing.tries == 1 },
        }
    }

    /// When the next read is repeated.
    pub(in crate::shard) fn due_ms(&self) -> Option<u64> {
        self.waiting.front().map(|(due_ms, _)| *due_ms)
    }
}

impl Core {
    /// Handles a failed read that these jobs wait for.
    pub(in crate::shard) fn on_unread<I: Io>(&mut self, io: &mut I, place: Place, errno: i32, jobs: Vec<Job>, now: Tick) {
        // A compaction is begun again later, and drops nothing that may be readable then.
        let (copies, jobs): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| matches!(job, Job::Copy(_)));
        if let Some(copy) = copies.into_iter().next() {
            self.storage.tell_unread(
                &self.cx,
                place,
                errno,
                "the log could not be read: compaction of the file is tried again later",
            );
            self.abandon(copy);
        }
        if jobs.is_empty() {
            return;
        }
        let verdict = self.storage.unreadable.failed(place, now);
        match verdict {
            Verdict::Full => {
                self.cx.counters.limit_reached(LimitReached::LogReads);
                self.storage.tell_unread(
                    &self.cx,
                    place,
                    errno,
                    "the log could not be read in too many places: affected readers are closed",
                );
            }
            Verdict::GiveUp => self.storage.tell_unread(
                &self.cx,
                place,
                errno,
                "the log could not be read for seconds: affected readers receive rw.gap; it is tried again in a minute",
            ),
            Verdict::Now { is_first: true } | Verdict::Later { is_first: true } => {
                self.storage.tell_unread(&self.cx, place, errno, "the log could not be read: it is tried again");
            }
            Verdict::Now { is_first: false } | Verdict::Later { is_first: false } => {}
        }
        for job in jobs {
            match verdict {
                Verdict::Full => self.abandon(job),
                Verdict::Now { .. } | Verdict::GiveUp => self.go_on_with(io, job),
                Verdict::Later { .. } => {
                    let tag = self.storage.hold(job);
                    self.storage.unreadable.waiting.push_back((now.mono_ms() + RETRY_MS, tag));
                }
            }
        }
    }

    /// Repeats the failed reads that are due, and forgets places without a failure for long.
    pub(in crate::shard) fn try_unread_again<I: Io>(&mut self, io: &mut I, now: Tick) {
        let now_ms = now.mono_ms();
        if !self.storage.unreadable.failing.is_empty() {
            self.storage.unreadable.failing.retain(|failing| now_ms.saturating_sub(failing.last_ms) < REMEMBERED_MS);
        }
        while let Some((_, tag)) = self.storage.unreadable.waiting.pop_front_if(|(due_ms, _)| *due_ms <= now_ms) {
            if let Some(job) = self.storage.take_held(tag) {
                self.go_on_with(io, job);
            }
        }
    }
}

impl Storage {
    fn tell_unread(&self, cx: &Context, place: Place, errno: i32, what: &'static str) {
        let error = std::io::Error::from_raw_os_error(errno);
        let segment_bytes = self.log.geometry().map_or(u64::MAX, |geometry| geometry.segment_bytes);
        let (file, offset, bytes) = match place {
            Place::Record { at, bytes } | Place::Stretch { at, bytes } => {
                (segment_name(at.0 / segment_bytes), at.0 % segment_bytes, bytes)
            }
            Place::Index(segment) => (crate::log::index_name(segment.into()), 0, 0),
        };
        tracing::error!(shard = cx.shard, file, offset, bytes, %error, "{what}");
    }
}
