//! A worker's counts and times. Counters are read by the coordinator while the worker runs; histograms are handed over at the
//! end.

use crate::clock::now_ns;
use hdrhistogram::Histogram;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: each counter has one writing thread.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The reverse of [`Counter::add`].
    pub fn take(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A worker's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// The scenario's unit of work, completed: echoes, deliveries, handshakes.
    pub completed: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Bytes of delivered messages, frame heads excluded.
    pub delivered_bytes: Counter,
    /// Errors and connections lost.
    pub failed: Counter,
    /// Connections that are up.
    pub open: Counter,
}

/// The window that is measured, by the time a message was meant to be sent. Both in nanoseconds of [`now_ns`].
#[derive(Debug)]
pub struct Window {
    pub start_ns: AtomicU64,
    pub end_ns: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self { start_ns: AtomicU64::new(u64::MAX), end_ns: AtomicU64::new(u64::MAX) }
    }
}

/// Width of the timeline's steps.
pub const STEP_NS: u64 = 250_000_000;

/// A latency series of one worker: the whole window, and step by step.
#[derive(Clone)]
pub struct Series {
    pub whole: Histogram<u64>,
    pub steps: BTreeMap<u64, Histogram<u64>>,
}

/// Up to two minutes, three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("constant bounds that the library accepts")
}

impl Default for Series {
    fn default() -> Self {
        Self { whole: histogram(), steps: BTreeMap::new() }
    }
}

impl Series {
    /// Books a latency from the intended time on, if that is in the window. A late send counts from when it was due, so that a
    /// stalled server cannot hide the messages it kept from being sent.
    pub fn record(&mut self, window_start_ns: u64, window_end_ns: u64, intended_ns: u64, done_ns: u64) {
        if intended_ns < window_start_ns || intended_ns >= window_end_ns {
            return;
        }
        let latency_ns = done_ns.saturating_sub(intended_ns);
        self.whole.saturating_record(latency_ns);
        let step = (intended_ns - window_start_ns) / STEP_NS;
        let step = self.steps.entry(step).or_insert_with(|| {
            Histogram::new_with_bounds(1_000, 120_000_000_000, 2).expect("constant bounds that the library accepts")
        });
        step.saturating_record(latency_ns);
    }

    /// Adds another worker's series, or another run's.
    pub fn merge(&mut self, other: &Self) {
        self.whole += &other.whole;
        for (step, histogram) in &other.steps {
            match self.steps.entry(*step) {
                std::collections::btree_map::Entry::Occupied(mut own) => *own.get_mut() += histogram,
                std::collections::btree_map::Entry::Vacant(own) => {
                    own.insert(histogram.clone());
                }
            }
        }
    }
}

/// The kinds of latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timing {
    /// Sent to back at the sender (echo), or sent to received (delivery).
    Message,
    /// Sent to acknowledged.
    Ack,
    /// Connect to welcome.
    Connect,
    /// Connect to all missed messages received.
    Resume,
    /// Due to sent: the generator's own share of the latency at a fixed rate.
    SentLate,
}

pub const TIMINGS: [(Timing, &str); 5] = [
    (Timing::Message, "message"),
    (Timing::Ack, "ack"),
    (Timing::Connect, "connect"),
    (Timing::Resume, "resume"),
    (Timing::SentLate, "sent late"),
];

/// A worker's books.
pub struct Stats {
    counters: Arc<Counters>,
    window: Arc<Window>,
    series: [RefCell<Series>; TIMINGS.len()],
    problems: RefCell<Vec<String>>,
}

impl std::ops::Deref for Stats {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

impl Stats {
    pub fn new(counters: Arc<Counters>, window: Arc<Window>) -> Rc<Self> {
        Rc::new(Self { counters, window, series: Default::default(), problems: RefCell::default() })
    }

    /// Books a latency that ends now.
    pub fn time(&self, timing: Timing, intended_ns: u64, done_ns: u64) {
        let start_ns = self.window.start_ns.load(Ordering::Relaxed);
        let end_ns = self.window.end_ns.load(Ordering::Relaxed);
        self.series[timing as usize].borrow_mut().record(start_ns, end_ns, intended_ns, done_ns);
    }

    /// Returns `true` while messages may be begun.
    pub fn sending(&self) -> bool {
        now_ns() < self.window.end_ns.load(Ordering::Relaxed)
    }

    /// Notes a problem; the first ones are printed.
    pub fn problem(&self, text: impl FnOnce() -> String) {
        self.failed.add(1);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < 20 {
            problems.push(text());
        }
    }

    /// The results for the coordinator at the end.
    pub fn take(&self) -> (Vec<(Timing, Series)>, Vec<String>) {
        let series = TIMINGS.iter().map(|(timing, _)| (*timing, self.series[*timing as usize].take()));
        (series.filter(|(_, series)| !series.whole.is_empty()).collect(), self.problems.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_send_counts_from_its_intended_time() {
        // A server that stalls for 100 ms under 1,000 messages a second: each of the 100 held up was due at its own time.
        let mut series = Series::default();
        for message in 0..1_000_u64 {
            let intended_ns = message * 1_000_000;
            let done_ns = if (200..300).contains(&message) { 300_000_000 } else { intended_ns + 50_000 };
            series.record(0, u64::MAX, intended_ns, done_ns);
        }
        assert_eq!(series.whole.len(), 1_000);
        // Uncorrected, one message in a thousand would show the stall; corrected, p95 is half of it.
        let p95_ms = series.whole.value_at_quantile(0.95) / 1_000_000;
        assert!((45..=55).contains(&p95_ms), "p95 is {p95_ms} ms");
        assert!((99..=101).contains(&(series.whole.max() / 1_000_000)));
    }

    #[test]
    fn the_window_is_by_intended_time() {
        let mut series = Series::default();
        series.record(100, 200, 99, 150);
        series.record(100, 200, 100, 5_000);
        series.record(100, 200, 199, 900_000);
        series.record(100, 200, 200, 210);
        assert_eq!(series.whole.len(), 2);
    }

    #[test]
    fn merging_keeps_every_value_and_step() {
        let (mut a, mut b) = (Series::default(), Series::default());
        a.record(0, u64::MAX, 0, 10_000);
        b.record(0, u64::MAX, 0, 20_000);
        b.record(0, u64::MAX, STEP_NS * 3, STEP_NS * 3 + 30_000);
        a.merge(&b);
        assert_eq!(a.whole.len(), 3);
        assert_eq!(a.steps.keys().copied().collect::<Vec<_>>(), [0, 3]);
    }
}
