//! The one clock: monotonic nanoseconds since the harness started, the same for all its threads.

use std::sync::LazyLock;
use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a load harness measures time; this is the one place that reads it")]
fn instant() -> Instant {
    Instant::now()
}

static BASE: LazyLock<Instant> = LazyLock::new(instant);

/// Nanoseconds since the harness first asked.
pub fn now_ns() -> u64 {
    u64::try_from(instant().saturating_duration_since(*BASE).as_nanos()).unwrap_or(u64::MAX)
}

/// Unix time in seconds.
#[expect(clippy::disallowed_methods, reason = "a load harness measures time; this is the one place that reads it")]
pub fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Blocks the calling thread: for the coordinator, and for a worker with a single connection.
#[expect(clippy::disallowed_methods, reason = "who calls it has nothing else to do")]
pub fn sleep_ns(ns: u64) {
    std::thread::sleep(std::time::Duration::from_nanos(ns));
}

/// As [`sleep_ns`].
pub fn sleep_ms(ms: u64) {
    sleep_ns(ms * 1_000_000);
}
