//! Idempotency: which ids a client has used in a session, and for what (protocol.md section 5).
//!
//! One table a shard, keyed by a 64-bit keyed hash of (session, client, id), which nobody outside can steer into collisions; content is
//! compared by 128 bits. Each member holds its own keys in order, so that the window is the client's own.

use hashbrown::HashTable;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Used {
    key: u64,
    seq: u64,
    content: u128,
    at_ms: u64,
}

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not used within the window.
    New,
    /// Used for the same content, at this place.
    Same { seq: u64 },
    /// Used for something else.
    Different,
}

/// See the module's text.
#[derive(Debug)]
pub struct Dedupe {
    used: HashTable<Used>,
    ids_max: usize,
    window_ms: u64,
}

impl Dedupe {
    /// A window of `ids_max` ids a member and `window_ms`.
    #[must_use]
    pub const fn new(ids_max: usize, window_ms: u64) -> Self {
        Self { used: HashTable::new(), ids_max, window_ms }
    }

    /// Sets the window anew; ids already held leave by the new one.
    pub const fn set_window(&mut self, ids_max: usize, window_ms: u64) {
        self.ids_max = ids_max;
        self.window_ms = window_ms;
    }

    /// Ids held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// What is known of an id at `now_ms` (monotonic).
    #[must_use]
    pub fn look_up(&self, key: u64, content: u128, now_ms: u64) -> Seen {
        match self.used.find(key, |used| used.key == key) {
            Some(used) if now_ms.saturating_sub(used.at_ms) >= self.window_ms => Seen::New,
            Some(used) if used.content == content => Seen::Same { seq: used.seq },
            Some(_) => Seen::Different,
            None => Seen::New,
        }
    }

    /// Remembers an id; the member's oldest ones leave.
    pub fn remember(&mut self, recent: &mut VecDeque<u64>, key: u64, content: u128, seq: u64, now_ms: u64) {
        if self.ids_max == 0 {
            return;
        }
        while recent.len() >= self.ids_max || recent.front().is_some_and(|oldest| self.expired(*oldest, now_ms)) {
            let Some(oldest) = recent.pop_front() else { break };
            self.forget(oldest);
        }
        self.forget(key);
        self.used.insert_unique(key, Used { key, seq, content, at_ms: now_ms }, |used| used.key);
        recent.push_back(key);
    }

    /// Forgets all ids of a member that is let go.
    pub fn forget_all(&mut self, recent: &mut VecDeque<u64>) {
        for key in recent.drain(..) {
            self.forget(key);
        }
    }

    fn expired(&self, key: u64, now_ms: u64) -> bool {
        self.used.find(key, |used| used.key == key).is_none_or(|used| now_ms.saturating_sub(used.at_ms) >= self.window_ms)
    }

    fn forget(&mut self, key: u64) {
        if let Ok(entry) = self.used.find_entry(key, |used| used.key == key) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_known_the_different_is_told() {
        let (mut dedupe, mut recent) = (Dedupe::new(10, 1000), VecDeque::new());
        assert_eq!(dedupe.look_up(1, 7, 0), Seen::New);
        dedupe.remember(&mut recent, 1, 7, 42, 0);
        assert_eq!(dedupe.look_up(1, 7, 999), Seen::Same { seq: 42 });
        assert_eq!(dedupe.look_up(1, 8, 999), Seen::Different);
        assert_eq!(dedupe.look_up(1, 7, 1000), Seen::New, "the window is over");
    }

    #[test]
    fn the_window_is_bounded_by_count_and_by_time() {
        let (mut dedupe, mut recent) = (Dedupe::new(3, 1000), VecDeque::new());
        for key in 1..=5 {
            dedupe.remember(&mut recent, key, 0, key, 0);
        }
        assert_eq!((dedupe.len(), recent.len()), (3, 3));
        assert_eq!(dedupe.look_up(2, 0, 0), Seen::New);
        assert_eq!(dedupe.look_up(3, 0, 0), Seen::Same { seq: 3 });
        dedupe.remember(&mut recent, 6, 0, 6, 2000);
        assert_eq!((dedupe.len(), recent.len()), (1, 1), "all others were too old");
        dedupe.forget_all(&mut recent);
        assert!(dedupe.is_empty() && recent.is_empty());
    }

    #[test]
    fn an_id_reused_after_its_window_is_one_entry() {
        let (mut dedupe, mut recent) = (Dedupe::new(10, 1000), VecDeque::new());
        dedupe.remember(&mut recent, 1, 7, 1, 0);
        dedupe.remember(&mut recent, 1, 9, 2, 5000);
        assert_eq!((dedupe.len(), recent.len()), (1, 1));
        assert_eq!(dedupe.look_up(1, 9, 5000), Seen::Same { seq: 2 });
    }
}
