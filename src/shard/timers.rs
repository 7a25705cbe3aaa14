//! The shard's timers: the wheel, and the clock of its turns.

use super::connections::deadlines::Anew;
use super::wheel::Wheel;
use crate::ids::ConnId;
use crate::session::MemberKey;

/// Timers that fire in one turn.
pub(super) const TIMERS_PER_TURN_MAX: usize = 1024;

/// Timers on the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Conn(ConnId),
    Member(MemberKey),
}

/// Deadlines, and the time as the turns have seen it.
#[derive(Debug)]
pub struct Timers {
    pub(super) wheel: Wheel<Timer>,
    /// The timers that fire in this turn; a reused buffer.
    pub(super) fired: Vec<Timer>,
    /// When the next turn is due; `u64::MAX` if nothing is.
    pub(super) turn_due_ms: u64,
    /// When the last standstill ended; 0 if there was none. See `connections/deadlines.rs`.
    pub(super) awake_since_ms: u64,
    /// How far connections and members have been re-examined after a change of settings.
    pub(super) anew: Option<Anew>,
}

impl Default for Timers {
    fn default() -> Self {
        let fired = Vec::with_capacity(TIMERS_PER_TURN_MAX);
        Self { wheel: Wheel::default(), fired, turn_due_ms: u64::MAX, awake_since_ms: 0, anew: None }
    }
}
