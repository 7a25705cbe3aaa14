//! When what stands where in a log was sent, as spans of positions: what a session's retention by age needs, without a time a record.

use super::chunks::Position;
use std::collections::VecDeque;

/// Spans that are kept; above, two become one.
const SPANS_MAX: usize = 8192;

/// Messages that stand next to each other and are about as old.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Position,
    /// When its first and its youngest message were sent, Unix ms.
    first_ms: u64,
    youngest_ms: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Ages {
    /// By position. Times mostly grow along; not where a clock was set, or where old messages were written again.
    spans: VecDeque<Span>,
    cutoff_ms: u64,
    /// Everything before is too old, and nothing from `mixed_to` on; in between a span decides.
    aged_to: Position,
    mixed_to: Position,
}

impl Ages {
    /// A message is appended at `at` that was sent at that time. Those whose times are less than `step_ms` apart share a span.
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

    /// Two neighbours become one, which is as young as the younger of them.
    fn halve(&mut self) {
        let halved = self.spans.make_contiguous().chunks(2).map(|pair| {
            let youngest_ms = pair.iter().map(|span| span.youngest_ms).max().unwrap_or(0);
            Span { youngest_ms, ..pair[0] }
        });
        self.spans = halved.collect();
        self.age(self.cutoff_ms);
    }

    /// What was sent before `cutoff_ms` is too old from now on.
    pub fn age(&mut self, cutoff_ms: u64) {
        self.cutoff_ms = cutoff_ms;
        let is_old = |span: &Span| span.youngest_ms < cutoff_ms;
        while self.spans.len() > 1 && self.spans.front().is_some_and(is_old) {
            self.spans.pop_front();
        }
        let first = self.spans.front().copied();
        let end = Position(u64::MAX);
        if first.is_some_and(|first| is_old(&first)) {
            // It alone is left, and what is appended behind it begins another one.
            (self.aged_to, self.mixed_to) = (first.map_or(end, |first| first.from), end);
            return;
        }
        self.aged_to = first.map_or(self.aged_to, |first| first.from);
        let last_old = self.spans.iter().rposition(is_old);
        let behind = last_old.and_then(|last| self.spans.get(last + 1)).map(|span| span.from);
        self.mixed_to = last_old.map_or(self.aged_to, |_| behind.unwrap_or(end));
    }

    /// Whether the messages at these positions are too old at the same time.
    #[must_use]
    pub fn together(&self, one: Position, other: Position) -> bool {
        let next = self.spans.partition_point(|span| span.from <= one.min(other));
        self.spans.get(next).is_none_or(|next| one.max(other) < next.from)
    }

    /// Whether the message at that position is too old. It may be so up to a `step_ms` late.
    #[must_use]
    pub fn is_aged(&self, at: Position) -> bool {
        if at < self.aged_to || at >= self.mixed_to {
            return at < self.aged_to;
        }
        let behind = self.spans.partition_point(|span| span.from <= at);
        behind.checked_sub(1).and_then(|index| self.spans.get(index)).is_some_and(|span| span.youngest_ms < self.cutoff_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
