//! Facts about a member, in order: the one place where a fact changes a member, live and when a log is read.
//!
//! A fact that waits for its record is under way. Later decisions take it into account; visibility follows only the facts that
//! were applied.

use super::entitlement::Target;
use super::member::{Member, MemberKey, Place};
use super::table::Sessions;
use crate::log::Position;
use std::collections::VecDeque;

/// A fact about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// The member entered a room, whose messages are its own from this seq on.
    Joined {
        room: &'a str,
        from: u64,
    },
    /// The member left a room, whose messages are its own up to this seq.
    Left {
        room: &'a str,
        to: u64,
    },
    Roles(&'a [Box<str>]),
    /// New presence data, raw JSON.
    Presence(&'a str),
    Received(u64),
}

/// The result of applying a fact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// `true` if the member has changed.
    pub changed: bool,
    /// Stays that were forgotten, though records of them may be held.
    pub forgotten: u64,
}

/// An entry into a room, or a departure, whose record is not yet as durable as its session asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub room: Box<str>,
    /// The first seq of the stay that begins, or the last of the one that ends.
    pub seq: u64,
    pub joins: bool,
    /// The end of the record in the log.
    pub end: Position,
}

/// An `rw.presence.set` that waits for a record with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub to: Place,
    pub id: Box<str>,
    /// The message's number on its connection.
    pub number: u64,
}

/// A member's facts and commands that wait for the log.
#[derive(Debug, Default)]
pub struct Underway {
    /// Moves, in the order of the log.
    pub moves: VecDeque<Move>,
    /// The number of its commands that wait for an appended record.
    pub held: u32,
    /// Answers that wait for a record of its presence data.
    pub answers: Vec<Answer>,
}

impl Underway {
    fn is_over(&self) -> bool {
        self.moves.is_empty() && self.held == 0 && self.answers.is_empty()
    }
}

impl Member {
    /// The member's [`Underway`], created if there is none.
    pub fn underway_mut(&mut self) -> &mut Underway {
        self.underway.get_or_insert_default()
    }

    /// Frees the memory of finished waits.
    pub fn tidy(&mut self) {
        if self.underway.as_ref().is_some_and(|underway| underway.is_over()) {
            self.underway = None;
        }
    }

    /// Returns `true` if a command of the member waits for the log.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.underway.is_some()
    }
}

impl Sessions {
    /// The first seq of a member's current stay in a room, facts under way included; `None` if it is not there.
    #[must_use]
    pub fn stay(&self, key: MemberKey, room: &str) -> Option<u64> {
        let member = self.members.get(key)?;
        let last = member.underway.as_ref().and_then(|underway| underway.moves.iter().rfind(|each| *each.room == *room));
        if let Some(last) = last {
            return last.joins.then_some(last.seq);
        }
        let target = self.target(Target::Room, room);
        member.entitlements.stays.iter().find(|stay| stay.room == target && stay.to == u64::MAX).map(|stay| stay.from)
    }

    /// The number of rooms that a member is in, facts under way included.
    #[must_use]
    pub fn rooms_of(&self, key: MemberKey) -> usize {
        let Some(member) = self.members.get(key) else { return 0 };
        let moves = member.underway.iter().flat_map(|underway| &underway.moves);
        // Each move was decided after those before it: an entry only from outside, a departure only from inside.
        moves.fold(member.rooms.len(), |rooms, each| if each.joins { rooms + 1 } else { rooms.saturating_sub(1) })
    }

    /// Applies a fact.
    pub fn apply(&mut self, key: MemberKey, fact: Fact<'_>) -> Applied {
        match fact {
            Fact::Joined { room, from } => Applied { changed: self.enter_room(key, room, from), forgotten: 0 },
            Fact::Left { room, to } => match self.leave_room(key, room, to) {
                Some(forgotten) => Applied { changed: true, forgotten },
                None => Applied::default(),
            },
            Fact::Roles(roles) => Applied { changed: self.set_roles(key, roles), forgotten: 0 },
            Fact::Presence(data) => {
                let Some(member) = self.members.get_mut(key) else { return Applied::default() };
                member.presence = Some(data.into());
                Applied { changed: true, forgotten: 0 }
            }
            Fact::Received(seq) => {
                let Some(member) = self.members.get_mut(key).filter(|member| member.received_seq < seq) else {
                    return Applied::default();
                };
                member.received_seq = seq;
                Applied { changed: true, forgotten: 0 }
            }
        }
    }

    /// Applies the next of a member's moves whose record ends at `limit` at the latest; `None` if there is none.
    pub fn settle_move(&mut self, key: MemberKey, limit: Position) -> Option<(Move, Applied)> {
        let underway = self.members.get_mut(key)?.underway.as_mut()?;
        if underway.moves.front()?.end > limit {
            return None;
        }
        let next = underway.moves.pop_front()?;
        let fact = if next.joins {
            Fact::Joined { room: &next.room, from: next.seq }
        } else {
            Fact::Left { room: &next.room, to: next.seq }
        };
        let applied = self.apply(key, fact);
        Some((next, applied))
    }
}
