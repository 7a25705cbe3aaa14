//! When what stands where in a log was appended, as sparse marks: what a session's retention by age needs, without a time a record.

use super::chunks::Position;
use std::collections::VecDeque;

/// Marks that are kept; above, every second one goes, and those to come lie twice as far apart.
const MARKS_MAX: usize = 1024;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Ages {
    /// Positions and times, both growing: what was appended before the position is no younger than the time.
    marks: VecDeque<(Position, u64)>,
    /// What lies before is known to be too old.
    aged_to: Position,
    /// How far apart marks lie at least, where that is more than what is asked for.
    step_ms: u64,
}

impl Ages {
    /// Something is appended at `at` at that time (Unix ms). Kept where the last mark is older by `step_ms`. A clock that was set back
    /// counts as standing still, so that nothing goes too early.
    pub fn note(&mut self, at: Position, at_ms: u64, step_ms: u64) {
        if let Some((last, last_ms)) = self.marks.back()
            && (at_ms < last_ms + step_ms.max(self.step_ms) || at <= *last)
        {
            return;
        }
        if self.marks.len() >= MARKS_MAX {
            self.step_ms = 2 * step_ms.max(self.step_ms);
            let mut odd = false;
            self.marks.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.marks.push_back((at, at_ms));
    }

    /// Forgets what is older than `cutoff_ms`; everything before the position it gives is. What is behind may be older still, by as
    /// much as two marks lie apart.
    pub fn age(&mut self, cutoff_ms: u64) -> Position {
        while let Some((at, _)) = self.marks.front().copied().filter(|(_, at_ms)| *at_ms <= cutoff_ms) {
            self.aged_to = at;
            self.marks.pop_front();
        }
        if self.marks.len() < MARKS_MAX / 4 {
            self.step_ms = 0;
        }
        self.aged_to
    }

    /// What [`Ages::age`] gave last.
    #[must_use]
    pub const fn aged_to(&self) -> Position {
        self.aged_to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_a_mark_that_is_too_old_is_too_old() {
        let mut ages = Ages::default();
        for (at, at_ms) in [(100, 1_000), (150, 1_009), (200, 1_010), (300, 1_020)] {
            ages.note(Position(at), at_ms, 10);
        }
        assert_eq!(ages.age(999), Position(0));
        assert_eq!(ages.age(1_000), Position(100), "what stands at 100 is 1000 old and may be younger behind");
        assert_eq!(ages.age(1_019), Position(200), "150 came too soon after 100 for a mark");
        assert_eq!(ages.age(5_000), Position(300));
        assert_eq!((ages.age(0), ages.aged_to()), (Position(300), Position(300)), "what was too old stays so");
    }

    #[test]
    fn a_clock_that_was_set_back_ages_nothing_early() {
        let mut ages = Ages::default();
        for (at, at_ms) in [(100, 9_000), (200, 1_000), (300, 9_010)] {
            ages.note(Position(at), at_ms, 10);
        }
        assert_eq!(ages.age(8_999), Position(0));
        assert_eq!(ages.age(9_000), Position(100));
    }

    #[test]
    fn marks_are_bounded_and_grow_coarser() {
        let mut ages = Ages::default();
        for at in 1..=100_000 {
            ages.note(Position(at), at, 1);
        }
        assert!(ages.marks.len() <= MARKS_MAX);
        let aged = ages.age(50_000);
        assert!(aged <= Position(50_000) && aged > Position(49_000), "{aged:?}");
    }
}
