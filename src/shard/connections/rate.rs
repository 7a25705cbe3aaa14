//! Rates by the generic cell rate algorithm (ITU-T I.371): one number a bucket, no timer.
//!
//! May import nothing of the crate. Pure.

/// The rate of a bucket. `per_second` 0 allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    /// Units that may be taken at once after a rest.
    pub burst: u64,
}

impl Rate {
    /// The time that `units` take.
    fn cost_ns(self, units: u64) -> u64 {
        if self.per_second == 0 {
            return 0;
        }
        (u128::from(units) * 1_000_000_000 / u128::from(self.per_second)).min(u128::from(u64::MAX / 4)) as u64
    }
}

/// A bucket: the time (ns) at which it will be empty again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(pub u64);

impl Bucket {
    /// Takes `units`.
    ///
    /// # Errors
    /// The milliseconds to wait, at least 1; nothing is taken.
    pub fn take(&mut self, rate: Rate, units: u64, now_ns: u64) -> Result<(), u64> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let empty_at = self.0.max(now_ns);
        // A single amount above the burst is allowed on an empty bucket: else it could never pass.
        let full = now_ns + rate.cost_ns(rate.burst.max(units));
        let after = empty_at + rate.cost_ns(units);
        if after <= full {
            self.0 = after;
            return Ok(());
        }
        Err((after - full).div_ceil(1_000_000).max(1))
    }

    /// The milliseconds until there is room for one unit; `None` if there is room now.
    #[must_use]
    pub fn wait(&self, rate: Rate, now_ns: u64) -> Option<u64> {
        Self(self.0).take(rate, 1, now_ns).err()
    }

    /// Takes `units` whether there is room or not: later takers wait for what exceeds the burst.
    pub fn charge(&mut self, rate: Rate, units: u64, now_ns: u64) {
        self.0 = self.0.max(now_ns).saturating_add(rate.cost_ns(units));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };
    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert_eq!(bucket.take(RATE, 1, 0), Ok(()));
        }
        assert_eq!(bucket.take(RATE, 1, 0), Err(100));
        assert_eq!(bucket.take(RATE, 1, 99 * MS), Err(1));
        assert_eq!(bucket.take(RATE, 1, 100 * MS), Ok(()));
        assert_eq!(bucket.take(RATE, 1, 100 * MS), Err(100));
    }

    #[test]
    fn more_than_a_burst_passes_an_empty_bucket_and_is_paid_for() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(RATE, 20, 0), Ok(()));
        assert_eq!(bucket.take(RATE, 1, 0), Err(1800));
    }

    #[test]
    fn what_is_charged_is_paid_for_whether_there_was_room_or_not() {
        let mut bucket = Bucket::default();
        for _ in 0..2 {
            assert_eq!(bucket.wait(RATE, 0), None);
            bucket.charge(RATE, 2, 0);
        }
        assert_eq!((bucket.wait(RATE, 0), bucket.take(RATE, 1, 0)), (Some(200), Err(200)));
        assert_eq!((bucket.wait(RATE, 200 * MS), bucket.wait(RATE, 199 * MS)), (None, Some(1)));
        bucket.charge(Rate { per_second: 0, burst: 0 }, u64::MAX, 0);
        assert_eq!(bucket.wait(RATE, 0), Some(200), "no rate costs nothing");
    }

    #[test]
    fn zero_is_no_limit() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(Rate { per_second: 0, burst: 0 }, u64::MAX, 0), Ok(()));
    }
}
