//! The memory that the gateway may hold, by docs/OPERATING.md, "Plan memory", and the memory it held.

use crate::clock::sleep_ms;
use crate::scrape;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;
/// Less than the default, so that unbounded memory does not hide below a distant bound.
pub const SHARD_MEMORY_BYTES: u64 = 64 * MIB;
pub const LOG_MEMORY_BYTES: u64 = 16 * MIB;
const RECEIVE_BUFFERS_BYTES: u64 = 4 * MIB;
const EMPTIED_BUFFERS_BYTES: u64 = 28 * MIB;
/// Pages of history that are put together, 1 MiB each.
const HISTORY_PAGES_BYTES: u64 = 32 * MIB;
/// "What connections, members and sessions take for themselves": the manual's figure for the first, docs/BENCHMARKS.md's for a session;
/// of a member its entry, its presence data, and 32 B for each of the ids that its window remembers by default.
const CONNECTION_BYTES: u64 = 2 << 10;
const SESSION_BYTES: u64 = 1 << 10;
const MEMBER_BYTES: u64 = (2 << 10) + 32 * 1000;
/// A member's place in a room: its name, at most 128 B, for the member and for the room, and an entry each.
const MEMBERSHIP_BYTES: u64 = 512;
/// Ids of messages to channels: one window a shard of 65,536.
const CHANNEL_IDS_BYTES: u64 = 2 * MIB;

/// The maximum of each value that a gateway reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    pub connections: f64,
    pub sessions: f64,
    pub members: f64,
    /// The memory that counts to `limits.shard_memory_bytes`.
    pub buffers: f64,
}

impl Held {
    /// The values in an answer to `GET /metrics`; `None` if it is no such answer.
    fn of(answer: &str) -> Option<Self> {
        let sum = |name| scrape::sum(answer, name);
        Some(Self {
            connections: sum("ringway_connections")?,
            sessions: sum("ringway_sessions")?,
            members: sum("ringway_members")?,
            // Data waiting for the disk is reported apart from data for clients, and not by every version.
            buffers: sum("ringway_buffer_bytes")? + sum("ringway_disk_held_bytes").unwrap_or(0.0),
        })
    }

    fn most(self, other: Self) -> Self {
        Self {
            connections: self.connections.max(other.connections),
            sessions: self.sessions.max(other.sessions),
            members: self.members.max(other.members),
            buffers: self.buffers.max(other.buffers),
        }
    }

    /// Asks four times a second until told to stop. A gateway that fails to answer once is asked again: its health is judged
    /// elsewhere.
    pub fn watch(admin: SocketAddr, stop: &AtomicBool) -> Self {
        let mut most = Self::default();
        loop {
            let last = stop.load(Ordering::SeqCst);
            if let Some(held) = scrape::get(admin, "/metrics").ok().as_deref().and_then(Self::of) {
                most = most.most(held);
            }
            if last {
                return most;
            }
            for _ in 0..25 {
                if !stop.load(Ordering::SeqCst) {
                    sleep_ms(10);
                }
            }
        }
    }
}

/// The manual's bound in bytes for a gateway of one shard that had `empty_bytes` before any client came.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of what there was, 0 or above")]
pub fn bound_bytes(empty_bytes: u64, held: &Held, memberships: u64) -> u64 {
    let shard = SHARD_MEMORY_BYTES
        + LOG_MEMORY_BYTES / 4 * 5
        + RECEIVE_BUFFERS_BYTES
        + EMPTIED_BUFFERS_BYTES
        + HISTORY_PAGES_BYTES
        + CHANNEL_IDS_BYTES;
    empty_bytes
        + shard
        + held.connections as u64 * CONNECTION_BYTES
        + held.sessions as u64 * SESSION_BYTES
        + held.members as u64 * MEMBER_BYTES
        + memberships * MEMBERSHIP_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_manuals() {
        let manual = include_str!("../../../docs/OPERATING.md").replace('\n', " ");
        for term in [
            "`limits.shard_memory_bytes` + 1.25 × `log.memory_bytes` + 4 MiB of receive buffers",
            "28 MiB of emptied buffers",
            "1 MiB for each of up to 32 pages of history",
        ] {
            assert!(manual.contains(term), "docs/OPERATING.md says otherwise of {term:?}: what is computed here must follow it");
        }
        let empty = Held::default();
        assert_eq!(bound_bytes(20 * MIB, &empty, 0), (20 + 64 + 20 + 4 + 28 + 32 + 2) * MIB);
        let held = Held { connections: 10.0, sessions: 5.0, members: 2.0, buffers: 1e9 };
        assert_eq!(bound_bytes(0, &held, 3) - bound_bytes(0, &empty, 0), 10 * 2048 + 5 * 1024 + 2 * 34_048 + 3 * 512);
    }

    #[test]
    fn metrics_of_every_version_are_read() {
        let text = "HTTP/1.1 200 OK\r\n\r\nringway_connections{shard=\"0\"} 3\nringway_connections_half_open{shard=\"0\"} 9\n\
            ringway_sessions{shard=\"0\"} 2\nringway_members{shard=\"0\"} 4\nringway_members_present{shard=\"0\"} 7\n\
            ringway_buffer_bytes{shard=\"0\"} 100\n";
        let held = Held { connections: 3.0, sessions: 2.0, members: 4.0, buffers: 100.0 };
        assert_eq!(Held::of(text), Some(held));
        let later = format!("{text}ringway_disk_held_bytes{{shard=\"0\"}} 50\n");
        assert_eq!(Held::of(&later).unwrap().buffers, 150.0);
        assert_eq!(Held::of("HTTP/1.1 503 no\r\n\r\n"), None);
        assert_eq!(held.most(Held { members: 9.0, ..Held::default() }), Held { members: 9.0, ..held });
    }
}
