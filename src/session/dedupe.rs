//! Idempotency: which ids a client has used in a session, and for what (protocol.md section 5).
//!
//! A window each member of its own, so that no client's ids push out another's and growing one window moves no other: the uses in
//! order, and a table of their places. Ids are known by a 64-bit keyed hash, which nobody outside can steer into collisions, and by 64
//! bits of what they were used for.

use hashbrown::HashTable;
use std::collections::VecDeque;

/// The bounds of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupeLimits {
    pub ids_max: usize,
    pub window_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    key: u64,
    content: u64,
    seq: u64,
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

/// See the module's text. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct Dedupe {
    uses: VecDeque<Used>,
    /// Places in the order of use, counted from the window's beginning of time (wrapping), by their ids' keys.
    places: HashTable<u32>,
    /// The place of the oldest use.
    first: u32,
    /// When that was, here so that remembering touches only the newest use.
    oldest_ms: u64,
}

impl Dedupe {
    /// Ids held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.uses.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    fn find(&self, key: u64) -> Option<&Used> {
        let (uses, first) = (&self.uses, self.first);
        let place = self.places.find(key, |place| use_at(uses, first, *place).is_some_and(|used| used.key == key))?;
        use_at(uses, first, *place)
    }

    /// What is known of an id at `now_ms` (monotonic).
    #[must_use]
    pub fn look_up(&self, key: u64, content: u64, now_ms: u64, limits: DedupeLimits) -> Seen {
        match self.find(key) {
            Some(used) if now_ms.saturating_sub(used.at_ms) >= limits.window_ms => Seen::New,
            Some(used) if used.content == content => Seen::Same { seq: used.seq },
            Some(_) => Seen::Different,
            None => Seen::New,
        }
    }

    /// Remembers an id that [`Dedupe::look_up`] called new; the oldest ones leave.
    pub fn remember(&mut self, key: u64, content: u64, seq: u64, now_ms: u64, limits: DedupeLimits) {
        if limits.ids_max == 0 {
            return;
        }
        while !self.uses.is_empty()
            && (self.uses.len() >= limits.ids_max || now_ms.saturating_sub(self.oldest_ms) >= limits.window_ms)
        {
            self.forget_oldest();
        }
        if self.uses.is_empty() {
            self.oldest_ms = now_ms;
        }
        self.make_room();
        let place = self.first.wrapping_add(u32::try_from(self.uses.len()).unwrap_or(u32::MAX));
        self.uses.push_back(Used { key, content, seq, at_ms: now_ms });
        let (uses, first) = (&self.uses, self.first);
        self.places.insert_unique(key, place, |place| use_at(uses, first, *place).map_or(0, |used| used.key));
    }

    /// Keeps the table at most half full: then what removals leave behind is cleared in place, and a full window never moves again.
    fn make_room(&mut self) {
        let (len, buckets) = (self.places.len(), self.places.num_buckets());
        // What hashbrown fills of its buckets before it moves or clears.
        let holds = if buckets < 8 { buckets.saturating_sub(1) } else { buckets / 8 * 7 };
        if (len + 1) * 2 > holds {
            let (uses, first) = (&self.uses, self.first);
            let more = self.places.capacity() - len + 1;
            self.places.reserve(more, |place| use_at(uses, first, *place).map_or(0, |used| used.key));
        }
    }

    /// After a start: what was used before `oldest_ms` is forgotten, and all but the last `ids_max`; the rest counts as used now, and no
    /// more memory is held than that needs.
    pub fn begin_again(&mut self, oldest_ms: u64, ids_max: usize) {
        while !self.uses.is_empty() && (self.oldest_ms < oldest_ms || self.uses.len() > ids_max) {
            self.forget_oldest();
        }
        self.oldest_ms = 0;
        self.uses.iter_mut().for_each(|used| used.at_ms = 0);
        self.uses.shrink_to_fit();
        let (uses, first) = (&self.uses, self.first);
        self.places.shrink_to_fit(|place| use_at(uses, first, *place).map_or(0, |used| used.key));
    }

    /// Takes in another window's uses.
    pub fn take_in(&mut self, other: &Self, limits: DedupeLimits) {
        for used in &other.uses {
            self.remember(used.key, used.content, used.seq, used.at_ms, limits);
        }
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.uses.front().map(|oldest| oldest.key) else { return };
        let place = self.first;
        if let Ok(entry) = self.places.find_entry(oldest, |other| *other == place) {
            entry.remove();
        }
        self.uses.pop_front();
        self.first = self.first.wrapping_add(1);
        self.oldest_ms = self.uses.front().map_or(0, |oldest| oldest.at_ms);
    }
}

fn use_at(uses: &VecDeque<Used>, first: u32, place: u32) -> Option<&Used> {
    uses.get(place.wrapping_sub(first) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: DedupeLimits = DedupeLimits { ids_max: 10, window_ms: 1000 };

    #[test]
    fn the_same_is_known_the_different_is_told() {
        let mut dedupe = Dedupe::default();
        assert_eq!(dedupe.look_up(1, 7, 0, LIMITS), Seen::New);
        dedupe.remember(1, 7, 42, 0, LIMITS);
        assert_eq!(dedupe.look_up(1, 7, 999, LIMITS), Seen::Same { seq: 42 });
        assert_eq!(dedupe.look_up(1, 8, 999, LIMITS), Seen::Different);
        assert_eq!(dedupe.look_up(1, 7, 1000, LIMITS), Seen::New, "the window is over");
    }

    #[test]
    fn the_window_is_bounded_by_count_and_by_time() {
        let mut dedupe = Dedupe::default();
        let three = DedupeLimits { ids_max: 3, ..LIMITS };
        (1..=5).for_each(|key| dedupe.remember(key, 0, key, 0, three));
        assert_eq!(dedupe.len(), 3);
        assert_eq!(dedupe.look_up(2, 0, 0, three), Seen::New);
        assert_eq!(dedupe.look_up(3, 0, 0, three), Seen::Same { seq: 3 });
        dedupe.remember(6, 0, 6, 2000, three);
        assert_eq!(dedupe.len(), 1, "all others were too old");
        assert_eq!(dedupe.places.len(), 1);
    }

    #[test]
    fn an_id_reused_after_its_window_is_the_newer_one() {
        let mut dedupe = Dedupe::default();
        dedupe.remember(1, 7, 1, 0, LIMITS);
        dedupe.remember(1, 9, 2, 5000, LIMITS);
        assert_eq!(dedupe.len(), 1);
        assert_eq!(dedupe.look_up(1, 9, 5000, LIMITS), Seen::Same { seq: 2 });
    }

    #[test]
    fn a_full_window_keeps_its_table() {
        for ids_max in [1, 10, 400, 448, 500, 896, 1000] {
            let mut dedupe = Dedupe::default();
            let limits = DedupeLimits { ids_max, ..LIMITS };
            // Spread as hashes are.
            let remember = |dedupe: &mut Dedupe, key: u64| {
                let mixed = (key ^ (key >> 3)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                dedupe.remember(mixed ^ (mixed >> 31), 0, key, 0, limits);
            };
            (0..ids_max as u64).for_each(|key| remember(&mut dedupe, key));
            let buckets = dedupe.places.num_buckets();
            for key in ids_max as u64..20 * ids_max as u64 + 1_000 {
                remember(&mut dedupe, key);
                assert_eq!((dedupe.places.num_buckets(), dedupe.len()), (buckets, ids_max), "after {key} of {ids_max}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list(keys in proptest::collection::vec(0u64..40, 0..400), start in any::<u32>()) {
            let mut dedupe = Dedupe { first: start, ..Dedupe::default() };
            let mut list: Vec<(u64, u64)> = Vec::new();
            for (seq, key) in keys.iter().enumerate() {
                let seq = seq as u64;
                let known = list.iter().find(|(other, _)| other == key).map(|(_, seq)| *seq);
                let expected = known.map_or(Seen::New, |seq| Seen::Same { seq });
                prop_assert_eq!(dedupe.look_up(*key, 5, seq, LIMITS), expected);
                if known.is_none() {
                    dedupe.remember(*key, 5, seq, seq, LIMITS);
                    list.push((*key, seq));
                    if list.len() > LIMITS.ids_max {
                        list.remove(0);
                    }
                }
                prop_assert_eq!(dedupe.len(), dedupe.places.len());
            }
        }
    }
}
