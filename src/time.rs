//! Time as the core sees it: a value handed in with every call, never a clock it could read.
//!
//! May import nothing. Pure.

/// The two clocks at the start of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick {
    /// Nanoseconds of a monotonic clock whose zero is the start of the process. Timers run on this one.
    pub mono_ns: u64,
    /// Unix milliseconds. Tokens and the `ts` of an envelope are judged by this one.
    pub wall_ms: u64,
}

impl Tick {
    /// The monotonic clock in whole milliseconds.
    #[must_use]
    pub const fn mono_ms(self) -> u64 {
        self.mono_ns / 1_000_000
    }

    /// The wall clock in whole seconds, the unit of JWT's `NumericDate` (RFC 7519 section 2).
    #[must_use]
    pub const fn wall_s(self) -> u64 {
        self.wall_ms / 1_000
    }
}
