//! Send times of log positions, kept as spans rather than per record, for retention by age.

use super::chunks::Position;
use std::collections::VecDeque;

/// Spans that are kept; above this, neighbours are merged.
const SPANS_MAX: usize = 8192;

/// Adjacent messages of about the same age.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Position,
    /// When its first and its newest message were sent, Unix ms.
    first_ms: u64,
    youngest_ms: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Ages {
    /// Ordered by position. Times mostly grow along; they do not if a clock was set, or if old messages were written again.
    spans: VecDeque<Span>,
    cutoff_ms: u64,
    /// Messages before `aged_to` are too old, those from `mixed_to` on are not; between them a span decides.
    aged_to: Position,
    mixed_to: Position,
}

impl Ages {
    /// Notes that a message appended at `at` was sent at `sent_ms`. Messages whose times are less than `step_ms` apart share a
    /// span.
    pub fn note(&mut self, at: Position, sent_ms: u64, step_ms: u64) {
        if let Some(span) = self.spans.back_mut()
            && sent_ms.abs_diff(span.first_ms) < step_ms
        {
            span.youngest_ms = span.youngest_ms.max(sent_ms);
            return;
        }
        if self.spans.len() >= SPANS_MAX {
            self.halve();
        }
        self.spans.push_back(Span { from: at, first_ms: sent_ms, youngest_ms: sent_ms });
    }

    /// Merges pairs of neighbours; each pair is as young as its younger half.
    fn halve(&mut self) {
        let halved = self.spans.make_contiguous().chunks(2).map(|pair| {
            let youngest_ms = pair.iter().map(|span| span.youngest_ms).max().unwrap_or(0);
            Span { youngest_ms, ..pair[0] }
        });
        self.spans = halved.collect();
        self.age(self.cutoff_ms);
    }

    /// Makes messages sent before `cutoff_ms` too old.
    pub fn age(&mut self, cutoff_ms: u64) {
        self.cutoff_ms = cutoff_ms;
        let is_old = |span: &Span| span.youngest_ms < cutoff_ms;
        while self.spans.len() > 1 && self.spans.front().is_some_and(is_old) {
            self.spans.pop_front();
        }
        let first = self.spans.front().copied();
        let end = Position(u64::MAX);
        if first.is_some_and(|first| is_old(&first)) {
            // A single span is left: messages appended behind it begin another one.
            (self.aged_to, self.mixed_to) = (first.map_or(end, |first| first.from), end);
            return;
        }
        self.aged_to = first.map_or(self.aged_to, |first| first.from);
        let last_old = self.spans.iter().rposition(is_old);
        let behind = last_old.and_then(|last| self.spans.get(last + 1)).map(|span| span.from);
        self.mixed_to = last_old.map_or(self.aged_to, |_| behind.unwrap_or(end));
    }

    /// When the newest message was sent; `None` if there is no message.
    #[must_use]
    pub fn newest_ms(&self) -> Option<u64> {
        self.spans.iter().map(|span| span.youngest_ms).max()
    }

    /// Returns `true` if the messages at these positions become too old at the same time.
    #[must_use]
    pub fn together(&self, one: Position, other: Position) -> bool {
        let next = self.spans.partition_point(|span| span.from <= one.min(other));
        self.spans.get(next).is_none_or(|next| one.max(other) < next.from)
    }

    /// No message from this position on is too old.
    #[must_use]
    pub fn end(&self) -> Position {
        self.aged_to.max(self.mixed_to)
    }

    /// Returns `true` if the message at that position is too old. The answer may be up to `step_ms` late.
    #[must_use]
    pub fn is_aged(&self, at: Position) -> bool {
        if at < self.aged_to || at >= self.mixed_to {
            return at < self.aged_to;
        }
        let behind = self.spans.partition_point(|span| span.from <= at);
        behind.checked_sub(1).and_then(|index| self.spans.get(index)).is_some_and(|span| span.youngest_ms < self.cutoff_ms)
    }
}

/// A wall clock that goes forward by more than this between two looks was set.
const STEP_MIN_MS: u64 = 10_000;
/// How long a clock that was set forward must stay there before messages age by it: an operator who set it wrong has this time to
/// notice.
const DOUBT_MS: u64 = 3_600_000;

/// The wall clock by which messages age. A step forward would drop retained messages at once, so it counts only if it lasts.
#[derive(Debug, Default)]
pub struct AgeClock {
    /// The monotonic and the wall clock when they were last believed.
    believed: Option<(u64, u64)>,
    /// Since when the wall clock is ahead, on the monotonic one; `None` if it is not.
    ahead_since_ms: Option<u64>,
}

impl AgeClock {
    /// The time by which to judge ages; and by how much the wall clock was set forward, if that is noticed now. `newest_ms` is
    /// when the newest message was sent: at the first look it stands for the clock's last good value, and nothing is reported,
    /// since the process may have been away for long.
    pub fn at(&mut self, mono_ms: u64, wall_ms: u64, newest_ms: Option<u64>) -> (u64, Option<u64>) {
        let is_first = self.believed.is_none();
        let (mono, wall) = self.believed.unwrap_or_else(|| (mono_ms, newest_ms.unwrap_or(wall_ms)));
        self.believed = Some((mono, wall));
        let expected_ms = wall + mono_ms.saturating_sub(mono);
        let lasted = self.ahead_since_ms.is_some_and(|since_ms| mono_ms.saturating_sub(since_ms) >= DOUBT_MS);
        if wall_ms <= expected_ms.saturating_add(STEP_MIN_MS) || lasted {
            self.believed = Some((mono_ms, wall_ms));
            self.ahead_since_ms = None;
            return (wall_ms, None);
        }
        let is_new = self.ahead_since_ms.is_none() && !is_first;
        self.ahead_since_ms.get_or_insert(mono_ms);
        (expected_ms, is_new.then_some(wall_ms - expected_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_clock_that_is_set_forward_is_believed_when_it_stays_there() {
        let mut clock = AgeClock::default();
        let day_ms = 86_400_000;
        assert_eq!(clock.at(0, day_ms, None), (day_ms, None));
        assert_eq!(clock.at(1_000, day_ms + 1_900, None), (day_ms + 1_900, None), "it may run a little fast");
        assert_eq!(clock.at(2_000, 2 * day_ms, None), (day_ms + 2_900, Some(day_ms - 2_900)));
        assert_eq!(clock.at(3_000, 2 * day_ms + 1_000, None), (day_ms + 3_900, None), "told once");
        assert_eq!(clock.at(4_000, day_ms + 4_900, None), (day_ms + 4_900, None), "and set right again");
        assert_eq!(clock.at(5_000, 2 * day_ms, None).0, day_ms + 5_900);
        assert_eq!(clock.at(5_000 + DOUBT_MS - 1, 2 * day_ms + DOUBT_MS, None).0, day_ms + 5_899 + DOUBT_MS);
        assert_eq!(clock.at(5_000 + DOUBT_MS, 2 * day_ms + DOUBT_MS, None), (2 * day_ms + DOUBT_MS, None), "it lasts");
    }

    #[test]
    fn a_clock_that_is_set_back_is_believed_at_once() {
        let mut clock = AgeClock::default();
        clock.at(0, 5_000_000, None);
        assert_eq!(clock.at(1_000, 2_000, None), (2_000, None));
    }

    #[test]
    fn at_a_start_the_newest_message_says_what_time_it_was() {
        assert_eq!(AgeClock::default().at(0, 90_000_000, Some(1_000)), (1_000, None));
        assert_eq!(AgeClock::default().at(0, 5_000, Some(1_000)), (5_000, None));
        assert_eq!(AgeClock::default().at(0, 5_000, Some(70_000)), (5_000, None));
    }

    fn ages(noted: &[(u64, u64)]) -> Ages {
        let mut ages = Ages::default();
        for (at, sent_ms) in noted {
            ages.note(Position(*at), *sent_ms, 10);
        }
        ages
    }

    #[test]
    fn a_message_ages_with_the_youngest_of_its_span() {
        let mut ages = ages(&[(100, 1_000), (150, 1_009), (200, 1_010), (300, 1_020)]);
        let aged = |ages: &mut Ages, cutoff_ms| {
            ages.age(cutoff_ms);
            [100, 150, 200, 300].map(|at| ages.is_aged(Position(at)))
        };
        assert_eq!(aged(&mut ages, 1_009), [false; 4]);
        assert_eq!(aged(&mut ages, 1_010), [true, true, false, false]);
        assert_eq!(aged(&mut ages, 1_021), [true; 4]);
        ages.note(Position(400), 1_050, 10);
        assert!(!ages.is_aged(Position(400)), "what comes later is none of the old ones");
        ages.age(1_022);
        assert_eq!((ages.is_aged(Position(399)), ages.is_aged(Position(400))), (true, false));
    }

    #[test]
    fn messages_of_one_span_go_together() {
        let ages = ages(&[(100, 1_000), (150, 1_009), (200, 1_010), (300, 1_020)]);
        let together = |one, other| ages.together(Position(one), Position(other));
        assert!(together(100, 150) && together(199, 100) && together(300, 1 << 40));
        assert!(!together(150, 200) && !together(300, 299) && !together(100, 300));
    }

    #[test]
    fn spans_are_bounded_and_grow_coarser() {
        let mut ages = Ages::default();
        for at in 1..=100_000 {
            ages.note(Position(at), at, 1);
        }
        assert!(ages.spans.len() <= SPANS_MAX);
        ages.age(100_001);
        assert!(ages.is_aged(Position(100_000)));
    }

    proptest! {
        #[test]
        fn nothing_young_is_aged_and_all_that_is_older_by_a_step_is(
            times in proptest::collection::vec(0_u64..2_000, 1..200), cutoffs in proptest::collection::vec(0_u64..2_100, 1..4),
        ) {
            let noted: Vec<(u64, u64)> = times.iter().enumerate().map(|(at, sent_ms)| (at as u64 * 7, *sent_ms)).collect();
            let mut ages = ages(&noted);
            let mut cutoffs = cutoffs;
            cutoffs.sort_unstable();
            for cutoff_ms in cutoffs {
                ages.age(cutoff_ms);
                for (at, sent_ms) in &noted {
                    let aged = ages.is_aged(Position(*at));
                    prop_assert!(!aged || *sent_ms < cutoff_ms, "{} at {} before {}", sent_ms, at, cutoff_ms);
                    prop_assert!(aged || sent_ms + 20 >= cutoff_ms, "{} at {} stays at {}", sent_ms, at, cutoff_ms);
                }
            }
        }
    }
}
