//! Facts that happen to a member, one after the other: the one place where a fact changes a member, live and when a log is read.
//!
//! A fact that waits for its record is under way: what is decided next goes by it, what is seen goes by what was applied.

use super::entitlement::Target;
use super::member::{Member, MemberKey, Place};
use super::table::Sessions;
use crate::log::Position;
use std::collections::VecDeque;

/// Something that has happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// A coming into a room, whose messages are the member's from this seq on.
    Joined {
        room: &'a str,
        from: u64,
    },
    /// A going from a room, whose messages are the member's up to this seq.
    Left {
        room: &'a str,
        to: u64,
    },
    Roles(&'a [Box<str>]),
    /// What it tells of itself, raw JSON.
    Presence(&'a str),
    Received(u64),
}

/// What a fact came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The member is another than before.
    pub changed: bool,
    /// Stays that were forgotten for it, though records of them may be held.
    pub forgotten: u64,
}

/// A coming into a room or a going whose record is not as durable yet as its session asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub room: Box<str>,
    /// The first seq of the stay that begins, or the last of the one that ends.
    pub seq: u64,
    pub joins: bool,
    /// Where its record ends.
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

/// What of a member waits for the log.
#[derive(Debug, Default)]
pub struct Underway {
    /// In the order of the log.
    pub moves: VecDeque<Move>,
    /// Those of its commands that wait for a record which is appended.
    pub held: u32,
    /// Those that wait for a record of what it tells of itself.
    pub answers: Vec<Answer>,
}

impl Underway {
    fn is_over(&self) -> bool {
        self.moves.is_empty() && self.held == 0 && self.answers.is_empty()
    }
}

impl Member {
    /// What of it waits for the log, made where there is nothing.
    pub fn underway_mut(&mut self) -> &mut Underway {
        self.underway.get_or_insert_default()
    }

    /// Gives back the memory of what is over.
    pub fn tidy(&mut self) {
        if self.underway.as_ref().is_some_and(|underway| underway.is_over()) {
            self.underway = None;
        }
    }

    /// Whether a command of it waits for the log.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.underway.is_some()
    }
}

impl Sessions {
    /// The first seq of a member's stay in a room, by all that is decided; `None` where it is not there.
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

    /// The rooms that a member is in, by all that is decided.
    #[must_use]
    pub fn rooms_of(&self, key: MemberKey) -> usize {
        let Some(member) = self.members.get(key) else { return 0 };
        let moves = member.underway.iter().flat_map(|underway| &underway.moves);
        // Each is decided by those before: a coming where it was not, a going where it was.
        moves.fold(member.rooms.len(), |rooms, each| if each.joins { rooms + 1 } else { rooms.saturating_sub(1) })
    }

    /// A fact is so.
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

    /// Applies the next of a member's moves whose record ends at `limit` at the latest; `None` where there is none.
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
