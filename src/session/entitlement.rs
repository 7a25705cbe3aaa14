//! Whom a record is for, and who may see it (protocol.md sections 3 and 6).

use crate::few::Few;
use crate::ids::HashKey;
use crate::log::{Audience, Entry};
use std::sync::Arc;

/// What an address names.
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

/// A time in a room, as places in the order: from `from` to `to`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    pub room: u64,
    pub from: u64,
    /// `u64::MAX` while it lasts.
    pub to: u64,
}

/// What one reader of a session may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    pub client: u64,
    pub user: u64,
    pub roles: Arc<[u64]>,
    pub stays: Few<Stay>,
    /// Nothing up to here is seen (`history = "from_join"`); 0 where all is.
    pub hidden_to: u64,
    /// Its own messages come back to it.
    pub echo: bool,
}

impl Entitlements {
    /// Whether one address of a record at `seq` names this reader.
    #[must_use]
    pub fn named(&self, target: u64, seq: u64) -> bool {
        target == self.client
            || target == self.user
            || self.roles.contains(&target)
            || self.stays.iter().any(|stay| stay.room == target && stay.from <= seq && seq <= stay.to)
    }

    /// Whether a record is delivered to this reader, live and on resume. `addresses` gives a record's list where the entry
    /// says [`Audience::Many`].
    #[must_use]
    pub fn delivers<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        if seq <= self.hidden_to {
            return false;
        }
        if entry.sender == self.client && !self.echo {
            // Without echo its own come back only where it named itself.
            return match entry.audience {
                Audience::One(target) => target == self.client,
                Audience::All => false,
                Audience::Many => targets(addresses()).any(|target| target == self.client),
            };
        }
        self.reaches(entry, seq, addresses)
    }

    /// Whether a record shows in this reader's history: what is delivered to it, and what it sent itself.
    #[must_use]
    pub fn shows<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        seq > self.hidden_to && (entry.sender == self.client || self.reaches(entry, seq, addresses))
    }

    fn reaches<'a>(&self, entry: &Entry, seq: u64, addresses: impl FnOnce() -> &'a [u8]) -> bool {
        match entry.audience {
            Audience::All => true,
            Audience::One(target) => self.named(target, seq),
            Audience::Many => targets(addresses()).any(|target| self.named(target, seq)),
        }
    }

    /// Enters a room at a place in the order; false if it is there already.
    pub fn enter(&mut self, room: u64, from: u64) -> bool {
        if self.stays.iter().any(|stay| stay.room == room && stay.to == u64::MAX) {
            return false;
        }
        self.stays.push(Stay { room, from, to: u64::MAX });
        true
    }

    /// Leaves a room at a place in the order: what came up to `to` is still its own. False if it is not there.
    pub fn leave(&mut self, room: u64, to: u64) -> bool {
        match self.stays.iter_mut().find(|stay| stay.room == room && stay.to == u64::MAX) {
            Some(stay) => {
                stay.to = to;
                true
            }
            None => false,
        }
    }

    /// Forgets stays that ended before the oldest record still held, and all but the newest `stays_max` ended ones.
    pub fn prune(&mut self, oldest_seq: u64, stays_max: usize) {
        self.stays.retain(|stay| stay.to >= oldest_seq);
        let ended = self.stays.iter().filter(|stay| stay.to != u64::MAX).count();
        let mut excess = ended.saturating_sub(stays_max);
        self.stays.retain(|stay| {
            let goes = excess > 0 && stay.to != u64::MAX;
            excess -= usize::from(goes);
            !goes
        });
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
        assert!(reader.leave(ROOM, 7));
        assert!(!reader.leave(ROOM, 7), "already gone");
        let seen: Vec<u64> = (1..10).filter(|seq| reader.delivers(&message, *seq, none)).collect();
        assert_eq!(seen, [5, 6, 7]);
        reader.prune(8, 10);
        assert!(reader.stays.is_empty());
    }

    #[test]
    fn a_list_names_by_any_of_its_addresses() {
        let list = [OTHER.to_le_bytes(), ROLE.to_le_bytes()].concat();
        assert!(me().delivers(&entry(Audience::Many, OTHER), 1, || &list));
        assert!(!me().delivers(&entry(Audience::Many, OTHER), 1, || &list[..8]));
    }

    #[test]
    fn what_came_before_the_first_join_can_be_hidden() {
        let reader = Entitlements { hidden_to: 3, ..me() };
        let none = || &[][..];
        assert!(!reader.delivers(&entry(Audience::All, OTHER), 3, none) && !reader.shows(&entry(Audience::All, ME), 3, none));
        assert!(reader.delivers(&entry(Audience::All, OTHER), 4, none));
    }

    #[test]
    fn pruning_keeps_the_newest_ended_stays() {
        let mut reader = me();
        for seq in 1..=5 {
            reader.enter(ROOM, seq * 2);
            reader.leave(ROOM, seq * 2 + 1);
        }
        reader.enter(ROOM, 20);
        reader.prune(0, 2);
        assert_eq!(reader.stays.iter().map(|stay| stay.from).collect::<Vec<_>>(), [8, 10, 20]);
    }
}
