//! The shard's timer wheel: coarse deadlines, no cancelling. An owner whose deadline moved ignores the stale firing.
//!
//! May import nothing of the crate. Pure.

/// A slot of the wheel, in milliseconds: how late a deadline may fire.
pub const SLOT_MS: u64 = 16;
const SLOTS: usize = 4096;
const WORDS: usize = SLOTS / 64;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    due_ms: u64,
    key: T,
    next: u32,
}

/// Deadlines in milliseconds of the monotonic clock, each with a key. Deadlines beyond the horizon of a minute go round again.
#[derive(Debug)]
pub struct Wheel<T> {
    heads: Box<[u32]>,
    filled: [u64; WORDS],
    entries: Vec<Entry<T>>,
    free: u32,
    /// The first slot not yet polled, counted from the beginning of time.
    at: u64,
    len: usize,
}

impl<T: Copy> Default for Wheel<T> {
    fn default() -> Self {
        Self { heads: vec![NONE; SLOTS].into(), filled: [0; WORDS], entries: Vec::new(), free: NONE, at: 0, len: 0 }
    }
}

impl<T: Copy> Wheel<T> {
    /// The number of deadlines.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if there is no deadline.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a deadline. It fires at the first poll at or after it, at most [`SLOT_MS`] late.
    pub fn schedule(&mut self, due_ms: u64, key: T) {
        let place = if self.free == NONE {
            self.entries.push(Entry { due_ms, key, next: NONE });
            u32::try_from(self.entries.len() - 1).expect("a shard has far fewer than 2^32 deadlines")
        } else {
            let place = self.free;
            self.free = self.entries[place as usize].next;
            self.entries[place as usize] = Entry { due_ms, key, next: NONE };
            place
        };
        self.len += 1;
        self.link(place);
    }

    fn link(&mut self, place: u32) {
        let wanted = self.entries[place as usize].due_ms.div_ceil(SLOT_MS);
        let slot = slot_index(wanted.clamp(self.at, self.at + SLOTS as u64 - 1));
        self.entries[place as usize].next = self.heads[slot];
        self.heads[slot] = place;
        self.filled[slot / 64] |= 1 << (slot % 64);
    }

    /// Takes the deadlines that are due, up to `budget` keys. Returns `true` if more are due now.
    pub fn poll(&mut self, now_ms: u64, budget: usize, out: &mut Vec<T>) -> bool {
        let until = now_ms / SLOT_MS;
        let mut taken = 0;
        while self.at <= until {
            if self.len == 0 {
                self.at = until + 1;
                break;
            }
            let slot = slot_index(self.at);
            let mut place = self.heads[slot];
            self.heads[slot] = NONE;
            self.filled[slot / 64] &= !(1 << (slot % 64));
            let mut later = NONE;
            while place != NONE {
                let Entry { due_ms, key, next } = self.entries[place as usize];
                if due_ms > now_ms || taken >= budget {
                    self.entries[place as usize].next = later;
                    later = place;
                } else {
                    taken += 1;
                    out.push(key);
                    self.entries[place as usize].next = self.free;
                    self.free = place;
                    self.len -= 1;
                }
                place = next;
            }
            let full = taken >= budget && later != NONE;
            if !full {
                self.at += 1;
            }
            while later != NONE {
                let next = self.entries[later as usize].next;
                self.link(later);
                later = next;
            }
            if full {
                return true;
            }
        }
        false
    }

    /// When to poll next, in milliseconds; `None` if there is no deadline.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let start = slot_index(self.at);
        let (word, bit) = (start / 64, start % 64);
        for step in 0..=WORDS {
            let index = (word + step) % WORDS;
            let mask = match step {
                0 => u64::MAX << bit,
                WORDS => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let filled = self.filled[index] & mask;
            if filled != 0 {
                let slot = index * 64 + filled.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some((self.at + ahead as u64) * SLOT_MS);
            }
        }
        None
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder below SLOTS")]
const fn slot_index(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn deadlines_beyond_the_horizon_go_round() {
        let mut wheel = Wheel::default();
        wheel.schedule(200_000, 1);
        let mut out = Vec::new();
        let mut polls = 0;
        while out.is_empty() {
            let next = wheel.next_ms().unwrap();
            wheel.poll(next, 10, &mut out);
            polls += 1;
            assert!(polls < 10);
        }
        assert_eq!((out, wheel.len(), wheel.next_ms()), (vec![1], 0, None));
    }

    #[test]
    fn a_budget_leaves_the_rest_due() {
        let mut wheel = Wheel::default();
        (0..10).for_each(|key| wheel.schedule(5, key));
        let mut out = Vec::new();
        assert!(wheel.poll(100, 4, &mut out));
        assert!(wheel.poll(100, 4, &mut out));
        assert!(!wheel.poll(100, 4, &mut out));
        out.sort_unstable();
        assert_eq!(out, (0..10).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn each_fires_once_in_time_and_never_early(dues in proptest::collection::vec(0u64..300_000, 1..60)) {
            let mut wheel = Wheel::default();
            for (key, due) in dues.iter().enumerate() {
                wheel.schedule(*due, key);
            }
            let mut fired = vec![false; dues.len()];
            let mut now = 0;
            while let Some(next) = wheel.next_ms() {
                prop_assert!(next >= now);
                now = next.max(now + 1);
                let mut out = Vec::new();
                while wheel.poll(now, 3, &mut out) {}
                for key in out {
                    prop_assert!(dues[key] <= now && now < dues[key] + 2 * SLOT_MS + 1, "due {} fired {now}", dues[key]);
                    prop_assert!(!std::mem::replace(&mut fired[key], true));
                }
            }
            prop_assert!(fired.iter().all(|fired| *fired));
        }
    }
}
