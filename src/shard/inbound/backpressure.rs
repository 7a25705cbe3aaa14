//! Backpressure on senders whose session cannot take more (protocol.md section 5): a connection with one session is not read from
//! for a while, one with several is told at once.
//!
//! There are two causes: bytes that wait for the disk, and work that waits to be sent. Messages that a held connection had sent
//! already are accepted all the same, up to the log's own bound.

use crate::ids::ConnId;
use crate::io::{Io, Read};
use crate::limits::UNSENT_AGE_MS_MAX;
use crate::session::Place;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::durability::disk::PENDING_BYTES_MAX;
use crate::time::Tick;
use std::collections::VecDeque;

/// Backpressure starts when this many bytes wait for the disk, and ends below the second value.
pub(in crate::shard) const HOLDS_AT_BYTES: u64 = PENDING_BYTES_MAX / 2;
const EASES_AT_BYTES: u64 = PENDING_BYTES_MAX / 4;

/// The load of a shard.
#[derive(Debug, Default)]
pub(in crate::shard) struct Pressure {
    on: bool,
    /// Counts the episodes of backpressure, from 1.
    episode: u32,
    /// Held connections with the time since when (monotonic ms), in this order.
    held: VecDeque<(ConnId, u64)>,
    /// Connections that had data to send when the count began and have not had their turn; since when.
    unsent: Option<(usize, u64)>,
}

impl Pressure {
    pub(in crate::shard) const fn is_on(&self) -> bool {
        self.on
    }

    fn come_on(&mut self) {
        if !self.on {
            self.on = true;
            self.episode = self.episode.wrapping_add(1).max(1);
        }
    }

    /// Books a round of sends: `count` connections had their turn, `left` still wait.
    pub(in crate::shard) fn sent(&mut self, count: usize, left: usize, now: Tick) {
        self.unsent = match self.unsent {
            Some((before, since_ms)) if before > count => Some((before - count, since_ms)),
            _ => (left > 0).then_some((left, now.mono_ms())),
        };
    }

    fn is_late(&self, now: Tick) -> bool {
        self.unsent.is_some_and(|(_, since_ms)| now.mono_ms() >= since_ms + UNSENT_AGE_MS_MAX)
    }
}

impl Core {
    /// Returns `true` if the message may be accepted. Under backpressure a connection with one session is held, once an episode:
    /// its message, and those that it had sent already, are still accepted, and reading from it pauses.
    pub(in crate::shard) fn takes<I: Io>(&mut self, io: &mut I, place: Place, now: Tick) -> bool {
        if self.storage.pending_bytes(&self.cx) >= HOLDS_AT_BYTES {
            self.pressure.come_on();
        }
        if !self.pressure.on {
            return true;
        }
        let (episode, hold_ms) = (self.pressure.episode, self.cx.snapshot.settings.limits.backpressure_hold_ms);
        if place.shard != self.cx.shard_number() || hold_ms == 0 {
            return false;
        }
        let Some(conn) = self.connections.get_mut(place.conn) else { return false };
        if conn.flags.held {
            return true;
        }
        if conn.held_in == episode || conn.attachments().count() != 1 {
            return false;
        }
        conn.flags.held = true;
        conn.held_in = episode;
        if conn.paused_ms == 0 {
            conn.paused_ms = now.mono_ms().max(1);
            io.read(place.conn, Read::Off);
            self.set_timer(place.conn, now);
        }
        self.pressure.held.push_back((place.conn, now.mono_ms()));
        self.cx.counters.limit_reached(LimitReached::Hold);
        true
    }

    /// Reads again from connections that were held for long enough, or from all once the backpressure has ended. Returns when the
    /// next is due.
    pub(in crate::shard) fn release_held<I: Io>(&mut self, io: &mut I, now: Tick) -> Option<u64> {
        if self.pressure.is_late(now) {
            self.pressure.come_on();
            self.cx.counters.limit_reached(LimitReached::UnsentAge);
        } else if self.pressure.on && self.storage.pending_bytes(&self.cx) < EASES_AT_BYTES {
            self.pressure.on = false;
        }
        let hold_ms = self.cx.snapshot.settings.limits.backpressure_hold_ms;
        while let Some((id, since_ms)) = self.pressure.held.front().copied() {
            if self.pressure.on && now.mono_ms() < since_ms + hold_ms {
                return Some(since_ms + hold_ms);
            }
            self.pressure.held.pop_front();
            if let Some(conn) = self.connections.get_mut(id).filter(|conn| conn.flags.held) {
                conn.flags.held = false;
                self.read_again(io, id);
            }
        }
        None
    }

    /// Reads again from a connection, once no reason against it is left.
    pub(in crate::shard) fn read_again<I: Io>(&mut self, io: &mut I, id: ConnId) {
        let resume_below = self.cx.snapshot.settings.limits.reply_queue_bytes / 2;
        let Some(conn) = self.connections.get_mut(id) else { return };
        if conn.paused_ms == 0 || conn.flags.held || !conn.is_open() || conn.queued_bytes() > resume_below {
            return;
        }
        conn.paused_ms = 0;
        // A ping whose answer could not be read is sent again, and an unfinished message gets its full time once more.
        conn.pinged_ms = 0;
        let now = io.clock();
        if conn.unfinished_ms > 0 {
            conn.unfinished_ms = now.mono_ms().max(1);
        }
        io.read(id, Read::Stream);
        self.set_timer(id, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Tick {
        Tick { mono_ns: mono_ms * 1_000_000, wall_ms: 0 }
    }

    #[test]
    fn work_is_late_when_what_waited_first_has_not_been_sent_in_time() {
        let mut pressure = Pressure::default();
        pressure.sent(1024, 5000, at(10));
        pressure.sent(4000, 9000, at(10 + UNSENT_AGE_MS_MAX - 1));
        assert!(!pressure.is_late(at(10 + UNSENT_AGE_MS_MAX - 1)));
        assert!(pressure.is_late(at(10 + UNSENT_AGE_MS_MAX)), "1,000 of the first 5,000 still wait");
        // The last of them have had their turn: the count begins again with those that came after.
        pressure.sent(1000, 9000, at(10 + UNSENT_AGE_MS_MAX));
        assert!(!pressure.is_late(at(9 + 2 * UNSENT_AGE_MS_MAX)));
        pressure.sent(9000, 0, at(9 + 2 * UNSENT_AGE_MS_MAX));
        assert!(!pressure.is_late(at(u64::MAX / 2_000_000)), "nothing waits");
    }

    #[test]
    fn each_time_it_comes_on_is_an_episode_of_its_own() {
        let mut pressure = Pressure::default();
        pressure.come_on();
        pressure.come_on();
        assert_eq!(pressure.episode, 1);
        pressure.on = false;
        pressure.come_on();
        assert_eq!(pressure.episode, 2);
    }
}
