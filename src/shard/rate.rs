//! Rates by the generic cell rate algorithm (ITU-T I.371): one number a bucket, no timer.
//!
//! May import nothing of the crate. Pure.

/// What a bucket allows. `per_second` 0 allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    /// Units at once after a rest.
    pub burst: u64,
}

/// One bucket: the time (ns) at which it will be empty again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(pub u64);

impl Bucket {
    /// Takes `units`, or says how many milliseconds to wait.
    ///
    /// # Errors
    /// The wait, at least 1 ms; nothing is taken.
    pub fn take(&mut self, rate: Rate, units: u64, now_ns: u64) -> Result<(), u64> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let cost =
            |units: u64| (u128::from(units) * 1_000_000_000 / u128::from(rate.per_second)).min(u128::from(u64::MAX / 4)) as u64;
        let empty_at = self.0.max(now_ns);
        // A single taking above the burst is allowed on an empty bucket: else it could never pass.
        let full = now_ns + cost(rate.burst.max(units));
        let after = empty_at + cost(units);
        if after <= full {
            self.0 = after;
            return Ok(());
        }
        Err((after - full).div_ceil(1_000_000).max(1))
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
    fn zero_is_no_limit() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(Rate { per_second: 0, burst: 0 }, u64::MAX, 0), Ok(()));
    }
}
