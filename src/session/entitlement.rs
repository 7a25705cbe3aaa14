//! The audience of a record, and who may see it (protocol.md sections 3 and 6).

use crate::few::Few;
use crate::ids::HashKey;
use crate::limits::{ENDED_STAYS_PER_MEMBER_MAX, ENDED_STAYS_PER_ROOM_MAX};
use crate::log::{Audience, Entry};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kind of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Target {
    Client = 1,
    User = 2,
    Room = 3,
    Role = 4,
}

impl Target {
    /// The hash by which records and readers know an address. Equal names of different kinds differ.
    #[must_use]
    pub fn hash(self, key: &HashKey, name: &str) -> u64 {
        // 0 stands for the gateway as a sender and never names anybody.
        key.hash64(&[&[self as u8], name.as_bytes()]).max(1)
    }
}

/// Stands for no room: [`Target::hash`] never returns it.
const FORGOTTEN: u64 = 0;

/// A time in a room, as places in the order: from `from` to `to`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    pub room: u64,
    pub from: u64,
    /// `u64::MAX` while the member is in the room.
    pub to: u64,
}

/// The rights of one reader of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    pub client: u64,
    pub user: u64,
    pub roles: Arc<[u64]>,
    pub stays: Few<Stay>,
    /// Records up to here are hidden (`history = "from_join"`); 0 if none is.
    pub hidden_to: u64,
    /// `true` if the reader's own messages come back to it.
    pub echo: bool,
}

impl Entitlements {
    /// Returns `true` if an address of a record at `seq` names this reader.
    #[must_use]
    pub fn named(&self, target: u64, seq: u64) -> bool {
        target == self.client
            || target == self.user
            || self.roles.contains(&target)
            || self.stays.iter().any(|stay| stay.room == target && stay.from <= seq && seq <= stay.to)
    }

    /// Returns `true` if a record is delivered to this reader, live and on resume. `addresses` gives a record's list if the entry
    /// says [`Audience::Many`].
    #[must_use]
    pub fn delivers<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        if seq <= self.hidden_to {
            return false;
        }
        if entry.sender == self.client && !self.echo {
            // Without echo, a reader's own messages come back only if it named itself.
            return match entry.audience {
                Audience::One(target) => target == self.client,
                Audience::All => false,
                Audience::Many(_) => targets(addresses()).any(|target| target == self.client),
            };
        }
        self.reaches(entry, seq, addresses)
    }

    /// Returns `true` if a record shows in this reader's history: messages delivered to it, and those it sent itself.
    #[must_use]
    pub fn shows<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        seq > self.hidden_to && (entry.sender == self.client || self.reaches(entry, seq, addresses))
    }

    fn reaches<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        match entry.audience {
            Audience::All => true,
            Audience::One(target) => self.named(target, seq),
            Audience::Many(_) => targets(addresses()).any(|target| self.named(target, seq)),
        }
    }

    /// Enters a room at a place in the order. Returns `false` if the member is in it already.
    pub fn enter(&mut self, room: u64, from: u64) -> bool {
        if self.stays.iter().any(|stay| stay.room == room && stay.to == u64::MAX) {
            return false;
        }
        self.stays.push(Stay { room, from, to: u64::MAX });
        true
    }

    /// Leaves a room at a place in the order: messages up to `to` are still the member's own. A stay without messages is dropped.
    /// Returns how many older stays were forgotten for it; `None` if the member is not in the room.
    pub fn leave(&mut self, room: u64, to: u64) -> Option<u64> {
        let stay = self.stays.iter_mut().find(|stay| stay.room == room && stay.to == u64::MAX)?;
        stay.to = to;
        let is_empty = stay.from > to;
        if is_empty {
            self.stays.retain(|stay| stay.room != room || stay.from <= stay.to);
            return Some(0);
        }
        let (mut in_room, mut in_all) = (0, 0);
        for stay in self.stays.iter().filter(|stay| stay.has_ended()) {
            in_room += usize::from(stay.room == room);
            in_all += 1;
        }
        let is_over = in_room > ENDED_STAYS_PER_ROOM_MAX || in_all > ENDED_STAYS_PER_MEMBER_MAX;
        Some(if is_over { self.forget_oldest() } else { 0 })
    }

    /// Holds the ended stays to their bounds: the oldest are forgotten, and a stay that names no room (`FORGOTTEN`) keeps the
    /// seq up to which there were such. Returns how many were forgotten.
    pub fn forget_oldest(&mut self) -> u64 {
        let mut ended: Vec<Stay> = self.stays.iter().filter(|stay| stay.has_ended()).copied().collect();
        ended.sort_by_key(|stay| std::cmp::Reverse((stay.to, stay.from)));
        let (mut kept, mut in_rooms) = (0, BTreeMap::new());
        let mut forgotten = self.forgotten_to();
        let mut gone = Vec::new();
        for stay in ended {
            let in_room = in_rooms.entry(stay.room).or_insert(0);
            if kept < ENDED_STAYS_PER_MEMBER_MAX && *in_room < ENDED_STAYS_PER_ROOM_MAX {
                (kept, *in_room) = (kept + 1, *in_room + 1);
            } else {
                forgotten = forgotten.max(stay.to);
                gone.push((stay.room, stay.from, stay.to));
            }
        }
        gone.sort_unstable();
        self.stays.retain(|stay| stay.room != FORGOTTEN && gone.binary_search(&(stay.room, stay.from, stay.to)).is_err());
        if forgotten > 0 {
            self.stays.push(Stay { room: FORGOTTEN, from: 0, to: forgotten });
        }
        gone.len() as u64
    }

    /// The last seq of forgotten stays whose records may still be held; 0 if there are none.
    #[must_use]
    pub fn forgotten_to(&self) -> u64 {
        self.stays.iter().filter(|stay| stay.room == FORGOTTEN).map(|stay| stay.to).max().unwrap_or(0)
    }

    /// Returns `true` if [`Entitlements::prune`] has anything to do.
    #[must_use]
    pub fn has_ended_stays(&self) -> bool {
        self.stays.iter().any(|stay| stay.to != u64::MAX)
    }

    /// Forgets stays that ended before the oldest record still held.
    pub fn prune(&mut self, oldest_seq: u64) {
        self.stays.retain(|stay| stay.to >= oldest_seq);
    }
}

impl Stay {
    /// Returns `true` if the stay in a room has ended. The entry for forgotten stays does not count.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.to != u64::MAX && self.room != FORGOTTEN
    }
}

/// The addresses of a record's list.
fn targets(list: &[u8]) -> impl Iterator<Item = u64> {
    list.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Position;

    const ME: u64 = 100;
    const OTHER: u64 = 200;
    const ROOM: u64 = 300;
    const ROLE: u64 = 400;

    fn entry(audience: Audience, sender: u64) -> Entry {
        Entry { at: Position(0), frame_at: 0, frame_bytes: 0, audience, sender }
    }

    fn me() -> Entitlements {
        Entitlements { client: ME, user: 101, roles: Arc::new([ROLE]), ..Entitlements::default() }
    }

    #[test]
    fn own_messages_come_back_only_when_asked_for_or_addressed() {
        let none = || &[][..];
        let mut reader = me();
        assert!(!reader.delivers(&entry(Audience::All, ME), 1, none));
        assert!(reader.delivers(&entry(Audience::One(ME), ME), 1, none), "a message to oneself");
        assert!(reader.shows(&entry(Audience::All, ME), 1, none), "history holds what it sent itself");
        reader.echo = true;
        assert!(reader.delivers(&entry(Audience::All, ME), 1, none));
        assert!(reader.delivers(&entry(Audience::All, OTHER), 1, none));
    }

    #[test]
    fn a_room_is_seen_from_the_join_to_the_leave() {
        let none = || &[][..];
        let mut reader = me();
        let message = entry(Audience::One(ROOM), OTHER);
        assert!(!reader.delivers(&message, 4, none));
        assert!(reader.enter(ROOM, 5));
        assert!(!reader.enter(ROOM, 6), "already there");
        assert_eq!(reader.leave(ROOM, 7), Some(0));
        assert_eq!(reader.leave(ROOM, 7), None, "already gone");
        let seen: Vec<u64> = (1..10).filter(|seq| reader.delivers(&message, *seq, none)).collect();
        assert_eq!(seen, [5, 6, 7]);
        reader.prune(8);
        assert!(reader.stays.is_empty());
    }

    #[test]
    fn a_list_names_by_any_of_its_addresses() {
        let list = [OTHER.to_le_bytes(), ROLE.to_le_bytes()].concat();
        assert!(me().delivers(&entry(Audience::of_record(&list), OTHER), 1, || &list));
        assert!(!me().delivers(&entry(Audience::of_record(&list), OTHER), 1, || &list[..8]));
    }

    #[test]
    fn what_came_before_the_first_join_can_be_hidden() {
        let reader = Entitlements { hidden_to: 3, ..me() };
        let none = || &[][..];
        assert!(!reader.delivers(&entry(Audience::All, OTHER), 3, none) && !reader.shows(&entry(Audience::All, ME), 3, none));
        assert!(reader.delivers(&entry(Audience::All, OTHER), 4, none));
    }

    #[test]
    fn a_stay_in_which_nothing_came_leaves_nothing_behind() {
        let mut reader = me();
        for _ in 0..50_000 {
            assert!(reader.enter(ROOM, 5));
            assert_eq!(reader.leave(ROOM, 4), Some(0));
        }
        assert!(reader.stays.is_empty());
    }

    #[test]
    fn ended_stays_are_bounded_and_the_oldest_is_forgotten_and_told() {
        let none = || &[][..];
        let mut reader = me();
        let (mut forgotten, rooms) = (0, 20);
        // Each room in turn, one message in each stay.
        for seq in 1..=2000 {
            reader.enter(ROOM + seq % rooms, seq);
            forgotten += reader.leave(ROOM + seq % rooms, seq).unwrap();
            let (ended, of_room) = reader.stays.iter().fold((0, 0), |(ended, of_room), stay| {
                (ended + usize::from(stay.has_ended()), of_room + usize::from(stay.has_ended() && stay.room == ROOM))
            });
            assert!(ended <= ENDED_STAYS_PER_MEMBER_MAX && of_room <= ENDED_STAYS_PER_ROOM_MAX);
        }
        assert_eq!((forgotten, reader.forgotten_to()), (2000 - 256, 2000 - 256));
        for seq in 1..=2000 {
            let message = entry(Audience::One(ROOM + seq % rooms), OTHER);
            assert_eq!(reader.delivers(&message, seq, none), seq > 2000 - 256, "{seq}");
            assert!(!reader.delivers(&message, seq + 1, none), "nothing of the time between two stays");
        }
        reader.prune(2000 - 255);
        assert_eq!((reader.stays.len(), reader.forgotten_to()), (256, 0));
        for seq in 3000..3100 {
            reader.enter(ROOM, seq);
            reader.leave(ROOM, seq);
        }
        assert_eq!(reader.stays.iter().filter(|stay| stay.room == ROOM).count(), ENDED_STAYS_PER_ROOM_MAX);
        assert_eq!(reader.forgotten_to(), 3100 - 33);
    }

    #[test]
    fn what_was_pruned_earlier_makes_no_difference_to_what_is_kept() {
        let (mut live, mut replayed) = (me(), me());
        for seq in 1..=1000 {
            for reader in [&mut live, &mut replayed] {
                reader.enter(ROOM + seq % 9, seq);
                reader.leave(ROOM + seq % 9, seq);
            }
            live.prune(seq.saturating_sub(200));
        }
        for reader in [&mut live, &mut replayed] {
            reader.prune(800);
            reader.stays.sort_unstable_by_key(|stay| (stay.from, stay.room));
        }
        assert_eq!(live, replayed);
    }
}
