//! A histogram of durations, or of bytes, in a fixed number of atomics: two buckets to each doubling.
//!
//! May import nothing of the crate. One writer, any number of readers, no allocation, a bounded error: a value is known to a
//! third of itself or better.

use std::sync::atomic::{AtomicU64, Ordering};

/// The lowest bound is 2^10 ns, about a microsecond: smaller values do not matter.
const FIRST_OCTAVE: u32 = 10;
/// The highest finite bound is 2^34 ns, about 17 s: a slower shard is stuck.
const LAST_OCTAVE: u32 = 34;
/// Finite buckets: bounds 2^n and 1.5 x 2^n.
const BOUNDED: usize = ((LAST_OCTAVE - FIRST_OCTAVE) * 2 + 1) as usize;
/// All buckets, with one for values above the last bound.
const BUCKETS: usize = BOUNDED + 1;

/// See the head of the file.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

/// A histogram's values at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramReading {
    /// The upper bound of each bucket in nanoseconds, inclusive (`u64::MAX` for the last), and the number of values in it and no
    /// lower one.
    pub buckets: Vec<(u64, u64)>,
    pub sum_ns: u64,
}

impl HistogramReading {
    /// The number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// The inclusive upper bound of a bucket.
const fn bound_ns(index: usize) -> u64 {
    if index >= BOUNDED {
        return u64::MAX;
    }
    let octave = FIRST_OCTAVE + (index / 2) as u32;
    let base = 1 << octave;
    if index.is_multiple_of(2) { base } else { base + base / 2 }
}

/// The lowest bucket whose bound is not below the value.
const fn index_of(value_ns: u64) -> usize {
    if value_ns <= 1 << FIRST_OCTAVE {
        return 0;
    }
    // Bounds are inclusive: one less has its top bit in the octave below the bound.
    let below = value_ns - 1;
    let octave = below.ilog2();
    if octave >= LAST_OCTAVE {
        return BOUNDED;
    }
    let upper_half = (below >> (octave - 1)) & 1;
    ((octave - FIRST_OCTAVE) * 2 + 1 + upper_half as u32) as usize
}

impl Histogram {
    /// Counts a duration. By the owner's thread only.
    pub fn record(&self, value_ns: u64) {
        self.record_many(value_ns, 1);
    }

    /// Counts a duration `count` times. By the owner's thread only.
    pub fn record_many(&self, value_ns: u64, count: u64) {
        let bucket = &self.buckets[index_of(value_ns)];
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        let sum = self.sum_ns.load(Ordering::Relaxed).wrapping_add(value_ns.wrapping_mul(count));
        self.sum_ns.store(sum, Ordering::Relaxed);
    }

    /// Reads. By any thread; a value recorded meanwhile may be in the sum and not in its bucket.
    #[must_use]
    pub fn read(&self) -> HistogramReading {
        let buckets = self.buckets.iter().enumerate().map(|(index, bucket)| (bound_ns(index), bucket.load(Ordering::Relaxed)));
        HistogramReading { buckets: buckets.collect(), sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_rise() {
        for index in 1..BUCKETS {
            assert!(bound_ns(index) > bound_ns(index - 1), "{index}");
        }
        assert_eq!(bound_ns(0), 1024);
        assert_eq!(bound_ns(1), 1536);
        assert_eq!(bound_ns(BOUNDED - 1), 1 << LAST_OCTAVE);
    }

    #[test]
    fn what_is_recorded_is_read() {
        let histogram = Histogram::default();
        for value in [0, 1024, 1025, 1536, 1537, u64::MAX / 4] {
            histogram.record(value);
        }
        histogram.record_many(2_000_000, 10);
        let reading = histogram.read();
        assert_eq!(reading.count(), 16);
        assert_eq!(reading.buckets[0], (1024, 2));
        assert_eq!(reading.buckets[1], (1536, 2));
        assert_eq!(reading.buckets[2], (2048, 1));
        assert_eq!(reading.buckets[BUCKETS - 1], (u64::MAX, 1));
        assert_eq!(reading.sum_ns, 1024 + 1025 + 1536 + 1537 + u64::MAX / 4 + 20_000_000);
    }

    proptest! {
        #[test]
        fn a_value_lies_within_its_bucket(value in any::<u64>(), small in 0u64..1 << 36) {
            for value in [value, small] {
                let index = index_of(value);
                prop_assert!(value <= bound_ns(index));
                prop_assert!(index == 0 || value > bound_ns(index - 1));
            }
        }
    }
}
