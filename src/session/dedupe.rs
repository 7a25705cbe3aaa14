//! Idempotency: the ids that a client has used in a session, and for which content (protocol.md section 5).
//!
//! Each member has a window of its own, so that no client's ids push out another's and growing one window moves no other. Every
//! message touches its sender's window, which is in no cache any more when there are many senders: the cost is the number of
//! cache lines touched. So the entries are a ring in which the newest replaces the oldest, and the table that finds them holds
//! enough of each entry that a new id is told from all others without a look at the ring, and that an entry can be removed
//! without one. Ids are known by a 64-bit keyed hash, which nobody outside can steer into collisions, and by 36 bits of a hash of
//! their content.

use crate::limits::DEDUPE_IDS_MAX;

/// The bounds of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupeLimits {
    pub ids_max: usize,
    pub window_ms: u64,
}

/// The result of looking an id up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not used within the window.
    New,
    /// Used for the same content; `seq` is that message's.
    Same { seq: u64 },
    /// Used for other content.
    Different,
}

/// An entry: the id's key; its `seq` (48 bits) over 16 bits of the content; the time (44 bits, in ms) over 20 more of the
/// content. An array, so that a new ring's memory is untouched until it is used.
type Used = [u64; 3];

const SEQ_BITS: u32 = 48;
const TIME_BITS: u32 = 44;

const fn pack(key: u64, content: u64, seq: u64, at_ms: u64) -> Used {
    let seq_rest = 64 - SEQ_BITS;
    let time_rest = 64 - TIME_BITS;
    let (upper, lower) = (content >> SEQ_BITS, content & ((1 << time_rest) - 1));
    [key, seq << seq_rest | upper, at_ms << time_rest | lower]
}

const fn seq_of(used: &Used) -> u64 {
    used[1] >> (64 - SEQ_BITS)
}

const fn at_ms_of(used: &Used) -> u64 {
    used[2] >> (64 - TIME_BITS)
}

fn same_content(used: &Used, content: u64) -> bool {
    pack(used[0], content, seq_of(used), at_ms_of(used)) == *used
}

/// A slot of the table: 0 if empty; else the entry's place in the ring plus 1 (20 bits), the distance from the slot where its key
/// belongs (6 bits), and a tag of its key (6 bits).
type Slot = u32;

const PLACE_BITS: u32 = 20;
const DISTANCE_MAX: u32 = 63;
const _: () = assert!(DEDUPE_IDS_MAX < 1 << PLACE_BITS);

const fn slot(place: u32, distance: u32, key: u64) -> Slot {
    (place + 1) | distance << PLACE_BITS | ((key >> 58) as u32) << 26
}

const fn place_of(slot: Slot) -> usize {
    ((slot & ((1 << PLACE_BITS) - 1)) - 1) as usize
}

const fn distance_of(slot: Slot) -> u32 {
    slot >> PLACE_BITS & DISTANCE_MAX
}

/// The slots of a table of `len` that a key may have, each with its distance from the first.
fn places(key: u64, len: usize) -> impl Iterator<Item = (u32, usize)> {
    (0..=DISTANCE_MAX).map(move |distance| (distance, (key as usize).wrapping_add(distance as usize) & (len - 1)))
}

/// The table doubles if a key finds no slot within [`DISTANCE_MAX`], which with half a million hashed keys happens once if at
/// all. It grows to this many slots an entry; beyond that the id is not found again.
const SLOTS_A_USE_MAX: usize = 16;

/// Up to this many entries a linear scan replaces the table.
const UNTABLED_MAX: usize = 8;

/// See the module's text. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct Dedupe {
    ring: Box<[Used]>,
    /// Slots for all entries, by linear probing, at most half full; empty if the ring is small.
    slots: Box<[Slot]>,
    /// The oldest entry's place in the ring.
    oldest: u32,
    len: u32,
}

impl Dedupe {
    /// The number of ids held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns `true` if no id is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place in the ring of an entry, counted from the oldest.
    const fn place(&self, index: usize) -> usize {
        let place = self.oldest as usize + index;
        if place < self.ring.len() { place } else { place - self.ring.len() }
    }

    fn uses(&self) -> impl Iterator<Item = &Used> {
        (0..self.len()).map(|index| &self.ring[self.place(index)])
    }

    /// An entry's place in the ring.
    fn find(&self, key: u64) -> Option<usize> {
        if self.slots.is_empty() {
            return (0..self.len()).map(|index| self.place(index)).find(|place| self.ring[*place][0] == key);
        }
        for (distance, at) in places(key, self.slots.len()) {
            let found = self.slots[at];
            if found == 0 {
                return None;
            }
            // An entry with the same distance and tag: the id, or one in 64 of those that belong to the same slot.
            if found >> PLACE_BITS == slot(0, distance, key) >> PLACE_BITS && self.ring[place_of(found)][0] == key {
                return Some(place_of(found));
            }
        }
        None
    }

    /// Looks up an id at `now_ms` (monotonic).
    #[must_use]
    pub fn look_up(&self, key: u64, content: u64, now_ms: u64, limits: DedupeLimits) -> Seen {
        match self.find(key).map(|place| &self.ring[place]) {
            Some(used) if now_ms.saturating_sub(at_ms_of(used)) >= limits.window_ms => Seen::New,
            Some(used) if same_content(used, content) => Seen::Same { seq: seq_of(used) },
            Some(_) => Seen::Different,
            None => Seen::New,
        }
    }

    fn oldest_ms(&self) -> u64 {
        self.ring.get(self.oldest as usize).map_or(0, at_ms_of)
    }

    /// Remembers an id that [`Dedupe::look_up`] called new; the oldest ones are dropped.
    pub fn remember(&mut self, key: u64, content: u64, seq: u64, now_ms: u64, limits: DedupeLimits) {
        self.put(pack(key, content, seq, now_ms), limits);
    }

    fn put(&mut self, used: Used, limits: DedupeLimits) {
        let (key, now_ms) = (used[0], at_ms_of(&used));
        let ids_max = limits.ids_max.min(DEDUPE_IDS_MAX);
        if ids_max == 0 {
            return;
        }
        while self.len > 0 && (self.len() >= ids_max || now_ms.saturating_sub(self.oldest_ms()) >= limits.window_ms) {
            self.forget_oldest();
        }
        // If clocks stepped before a start, or windows are merged, a key may be here already. It is never stored twice, so that
        // no key fills its neighbourhood.
        if let Some(place) = self.find(key) {
            self.ring[place] = used;
            return;
        }
        if self.len() == self.ring.len() {
            // Many clients send one message, and then nothing for long.
            let room = if self.ring.is_empty() { 1 } else { (self.len() * 2).max(UNTABLED_MAX) };
            self.resize(room.min(ids_max));
        }
        let place = self.place(self.len());
        self.ring[place] = used;
        self.len += 1;
        if !self.slots.is_empty() && !self.insert(key, place) && !self.is_widest() {
            self.retable(self.slots.len() * 2);
        }
    }

    /// Gives the ring another size, the oldest entry first, and the table a matching one.
    fn resize(&mut self, room: usize) {
        let mut ring = vec![Used::default(); room].into_boxed_slice();
        self.uses().zip(&mut ring).for_each(|(used, to)| *to = *used);
        self.ring = ring;
        self.oldest = 0;
        if room > UNTABLED_MAX {
            self.retable((room * 2).next_power_of_two());
        } else {
            self.slots = Box::default();
        }
    }

    const fn is_widest(&self) -> bool {
        self.slots.len() >= self.ring.len() * SLOTS_A_USE_MAX
    }

    /// Rebuilds the table with at least `size` slots.
    fn retable(&mut self, mut size: usize) {
        loop {
            self.slots = vec![0; size].into_boxed_slice();
            let mut fits = true;
            for index in 0..self.len() {
                let place = self.place(index);
                fits &= self.insert(self.ring[place][0], place);
            }
            if fits || self.is_widest() {
                return;
            }
            size *= 2;
        }
    }

    /// Puts an entry into the table. Returns `false` if all slots near enough are taken.
    fn insert(&mut self, key: u64, place: usize) -> bool {
        for (distance, at) in places(key, self.slots.len()) {
            if self.slots[at] == 0 {
                self.slots[at] = slot(place as u32, distance, key);
                return true;
            }
        }
        false
    }

    fn forget_oldest(&mut self) {
        let place = self.oldest as usize;
        let key = self.ring[place][0];
        self.oldest = self.place(1) as u32;
        self.len -= 1;
        if self.slots.is_empty() {
            return;
        }
        let mask = self.slots.len() - 1;
        let is_it = |at: &usize| self.slots[*at] != 0 && place_of(self.slots[*at]) == place;
        let Some(mut hole) = places(key, self.slots.len()).map(|(_, at)| at).find(is_it) else { return };
        // Entries behind the removed one move up as far as they belong, so that no search stops at an empty slot before them.
        let mut behind = 1;
        loop {
            let next = self.slots[(hole + behind as usize) & mask];
            if next == 0 {
                break;
            }
            if distance_of(next) >= behind {
                self.slots[hole] = next - (behind << PLACE_BITS);
                hole = (hole + behind as usize) & mask;
                behind = 0;
            }
            behind += 1;
        }
        self.slots[hole] = 0;
    }

    /// After a start: forgets ids used before `oldest_ms` and all but the last `ids_max`. The rest counts as used now, and no
    /// more memory is held than needed.
    pub fn begin_again(&mut self, oldest_ms: u64, ids_max: usize) {
        while self.len > 0 && (self.oldest_ms() < oldest_ms || self.len() > ids_max) {
            self.forget_oldest();
        }
        self.resize(self.len());
        self.ring.iter_mut().for_each(|used| used[2] &= !(u64::MAX << (64 - TIME_BITS)));
    }

    /// Merges another window's entries into this one.
    pub fn take_in(&mut self, other: &Self, limits: DedupeLimits) {
        other.uses().for_each(|used| self.put(*used, limits));
    }
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
        (7..=UNTABLED_MAX as u64 + 7).for_each(|key| dedupe.remember(key, 0, key, 2000, LIMITS));
        assert_eq!((dedupe.len(), tabled(&dedupe)), (10, 10));
        dedupe.remember(1, 0, 1, 4000, LIMITS);
        assert_eq!((dedupe.len(), tabled(&dedupe)), (1, 1), "all others were too old");
        assert_eq!(dedupe.look_up(1, 0, 4999, LIMITS), Seen::Same { seq: 1 });
        dedupe.remember(2, 0, 2, 5000, LIMITS);
        assert_eq!(dedupe.len(), 1, "the time of the oldest is that of the only one");
    }

    #[test]
    fn a_new_beginning_keeps_the_newest_and_little_memory() {
        let mut dedupe = Dedupe::default();
        let many = DedupeLimits { ids_max: 1000, ..LIMITS };
        (0..100).for_each(|key| dedupe.remember(key, 0, key, 500 + key, many));
        dedupe.begin_again(550, 40);
        assert_eq!((dedupe.len(), dedupe.ring.len()), (40, 40));
        assert_eq!(dedupe.look_up(59, 0, 0, many), Seen::New);
        assert!((60..100).all(|key| dedupe.look_up(key, 0, 999, many) == Seen::Same { seq: key }));
        dedupe.begin_again(0, 5);
        assert!(dedupe.slots.is_empty() && dedupe.ring.len() == 5);
        assert_eq!((dedupe.look_up(94, 0, 0, many), dedupe.look_up(95, 0, 0, many)), (Seen::New, Seen::Same { seq: 95 }));
        dedupe.remember(7, 0, 7, 10, many);
        assert_eq!(dedupe.look_up(7, 0, 10, many), Seen::Same { seq: 7 });
        const { assert!(size_of::<Dedupe>() <= 40) };
    }

    #[test]
    fn an_id_reused_after_its_window_is_the_newer_one() {
        let mut dedupe = Dedupe::default();
        dedupe.remember(1, 7, 1, 0, LIMITS);
        dedupe.remember(1, 9, 2, 5000, LIMITS);
        assert_eq!(dedupe.len(), 1);
        assert_eq!(dedupe.look_up(1, 9, 5000, LIMITS), Seen::Same { seq: 2 });
    }

    /// Spreads keys as hashes are spread.
    fn spread(key: u64) -> u64 {
        let mixed = (key ^ (key >> 3)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn tabled(dedupe: &Dedupe) -> usize {
        dedupe.slots.iter().filter(|slot| **slot != 0).count()
    }

    #[test]
    fn a_full_window_holds_what_it_says_in_memory_that_does_not_grow() {
        for ids_max in [1, 8, 9, 400, 500, 1000] {
            let mut dedupe = Dedupe::default();
            let limits = DedupeLimits { ids_max, ..LIMITS };
            (0..ids_max as u64).for_each(|key| dedupe.remember(spread(key), 0, key, 0, limits));
            let before = (dedupe.ring.len(), dedupe.slots.len());
            assert!(before.0 == ids_max && before.1 < ids_max * 4 + 1, "{before:?} for {ids_max}");
            for key in ids_max as u64..20 * ids_max as u64 + 1_000 {
                dedupe.remember(spread(key), 0, key, 0, limits);
                assert_eq!((dedupe.ring.len(), dedupe.slots.len()), before, "after {key} of {ids_max}");
                assert_eq!(dedupe.look_up(spread(key - ids_max as u64), 0, 0, limits), Seen::New);
                let oldest = key + 1 - ids_max as u64;
                assert_eq!(dedupe.look_up(spread(oldest), 0, 0, limits), Seen::Same { seq: oldest });
            }
            assert!(dedupe.slots.is_empty() || tabled(&dedupe) == ids_max);
        }
    }

    #[test]
    fn the_largest_window_finds_each_of_its_ids() {
        let mut dedupe = Dedupe::default();
        let limits = DedupeLimits { ids_max: DEDUPE_IDS_MAX, ..LIMITS };
        let count = if cfg!(miri) { 1_000 } else { DEDUPE_IDS_MAX as u64 };
        (0..count + 10).for_each(|key| dedupe.remember(spread(key), key, key, 0, limits));
        assert!(
            (count - 100..count + 10)
                .chain(10..110)
                .all(|key| dedupe.look_up(spread(key), key, 0, limits) == Seen::Same { seq: key })
        );
    }

    #[test]
    fn keys_that_are_no_hashes_take_no_memory_without_end() {
        let mut dedupe = Dedupe::default();
        let limits = DedupeLimits { ids_max: 1_000, ..LIMITS };
        (0..2_000).for_each(|key| dedupe.remember(key << 32, 0, key, 0, limits));
        assert!(dedupe.len() == 1_000 && dedupe.slots.len() <= 32_768);
        assert_eq!(dedupe.look_up(1 << 32, 0, 0, limits), Seen::New);
        let mut one = Dedupe::default();
        (0..2_000).for_each(|seq| one.remember(7, 0, seq, 0, limits));
        assert_eq!((one.len(), one.look_up(7, 0, 0, limits)), (1, Seen::Same { seq: 1_999 }));
    }

    #[test]
    fn a_use_keeps_what_it_is_given() {
        let (seq, at_ms) = ((1 << 48) - 1, (1 << 44) - 1);
        let all = pack(u64::MAX, u64::MAX, seq, at_ms);
        assert_eq!((seq_of(&all), at_ms_of(&all), same_content(&all, u64::MAX)), (seq, at_ms, true));
        assert!(!same_content(&all, u64::MAX ^ 1) && !same_content(&all, u64::MAX ^ 1 << 63));
        let none = pack(0, 0, seq, at_ms);
        assert!(same_content(&none, 0) && seq_of(&none) == seq && at_ms_of(&none) == at_ms);
    }

    proptest! {
        // Few slots where the keys belong, and tags that are alike.
        #[test]
        fn it_agrees_with_a_list(uses in proptest::collection::vec((0_u64..160, 0_u64..30), 0..600), ids_max in 1_usize..60) {
            let limits = DedupeLimits { ids_max, window_ms: 500 };
            let mut dedupe = Dedupe::default();
            let mut list: Vec<(u64, u64, u64)> = Vec::new();
            let mut now_ms = 0;
            for (seq, (number, later_ms)) in uses.iter().enumerate() {
                now_ms += later_ms;
                let (seq, key) = (seq as u64, number & 7 | (number >> 3 & 3) << 58 | (number >> 5) << 20);
                let known = list.iter().find(|(other, _, at_ms)| *other == key && now_ms - at_ms < 500).map(|(_, seq, _)| *seq);
                prop_assert_eq!(dedupe.look_up(key, 5, now_ms, limits), known.map_or(Seen::New, |seq| Seen::Same { seq }));
                if known.is_none() {
                    dedupe.remember(key, 5, seq, now_ms, limits);
                    list.retain(|(_, _, at_ms)| now_ms - at_ms < 500);
                    list.push((key, seq, now_ms));
                    if list.len() > ids_max {
                        list.remove(0);
                    }
                }
                prop_assert_eq!(dedupe.len(), list.len());
                prop_assert!(dedupe.slots.is_empty() || tabled(&dedupe) == list.len());
            }
        }
    }
}
