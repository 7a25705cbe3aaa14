//! A member: a client in a session. It outlives its connections, until it leaves or is unseen for too long.

use super::dedupe::Dedupe;
use super::entitlement::Entitlements;
use super::facts::Underway;
use super::table::SessionKey;
use crate::few::Few;
use crate::ids::ConnId;
use crate::log::Position;
use crate::slots::Key;
use std::rc::Rc;

/// A member's place on its session's home shard.
pub type MemberKey = Key<Member>;

/// Where a member's connection is: its shard, the socket there, and the attachment on that connection. Numbers are used again, tickets
/// are not: what is still under way to an attachment never reaches the next one of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub shard: u16,
    pub attachment: u16,
    pub ticket: u32,
    pub conn: ConnId,
}

impl Place {
    /// The connection itself, whatever it is attached to: where what belongs to none of its sessions goes.
    #[must_use]
    pub const fn whole(shard: u16, conn: ConnId) -> Self {
        Self { shard, attachment: u16::MAX, ticket: 0, conn }
    }

    /// Whether a connection itself is meant, and none of its attachments.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.attachment == u16::MAX
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Member {
    pub session: SessionKey,
    pub client_id: Box<str>,
    /// Bytes of `client_id` that are the token's `sub`.
    pub subject_bytes: u16,
    /// The names behind `entitlements.roles`, for others to see.
    pub roles: Rc<[Box<str>]>,
    /// The rooms it is in now, by name; their stays are in `entitlements`.
    pub rooms: Few<Box<str>>,
    pub entitlements: Entitlements,
    /// Where it is attached, if it is.
    pub place: Option<Place>,
    /// Its durable cursor: the last `rw.received`.
    pub received_seq: u64,
    /// The ids it used lately.
    pub used: Option<Box<Dedupe>>,
    /// Raw JSON of `rw.presence.set`.
    pub presence: Option<Box<str>>,
    /// The rate at which it sets that: see the shard's bucket.
    pub presence_empty_ns: u64,
    /// How far others are told of that.
    pub telling: Telling,
    /// When it came (Unix ms).
    pub since_ms: u64,
    /// Since when it is away, on the monotonic clock; 0 while attached.
    pub away_since_ms: u64,
    /// How long it had been away when the process began, which is where that clock begins.
    pub away_before_ms: u64,
    /// Others have been told that it is gone.
    pub told_lost: bool,
    /// Of what the log keeps of it, what is newer than there: bits that its shard knows.
    pub owed: u8,
    /// What of it waits for the log.
    pub underway: Option<Box<Underway>>,
    /// Where the log last kept its state whole.
    pub kept_at: Position,
    /// When the earliest timer is to fire, and the next; `u64::MAX` where none is. Few deadlines, however often it goes.
    pub timers_ms: [u64; 2],
}

/// How far others are told what a member told of itself last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Telling {
    #[default]
    Done,
    /// Nobody has been told.
    Waits,
    Begun,
    /// Some have been told what is old by now: all once more.
    Again,
}

impl Member {
    /// How long it has been away; 0 while attached.
    #[must_use]
    pub const fn away_ms(&self, now_ms: u64) -> u64 {
        if self.away_since_ms == 0 { 0 } else { now_ms.saturating_sub(self.away_since_ms).saturating_add(self.away_before_ms) }
    }

    /// The user behind it: the token's `sub`.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.client_id.get(..usize::from(self.subject_bytes)).unwrap_or(&self.client_id)
    }
}
