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

/// The place of a member's connection: its shard, the socket there, and the attachment on that connection. Attachment numbers are
/// used again, tickets are not: data still under way to an attachment never reaches the next one of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub shard: u16,
    pub attachment: u16,
    pub ticket: u32,
    pub conn: ConnId,
}

impl Place {
    /// The connection itself, for data that belongs to none of its sessions.
    #[must_use]
    pub const fn whole(shard: u16, conn: ConnId) -> Self {
        Self { shard, attachment: u16::MAX, ticket: 0, conn }
    }

    /// Returns `true` if the place is a connection itself, and none of its attachments.
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
    /// Length of the prefix of `client_id` that is the token's `sub`.
    pub subject_bytes: u16,
    /// The names behind `entitlements.roles`, for others to see.
    pub roles: Rc<[Box<str>]>,
    /// Names of the rooms that it is in now; their stays are in `entitlements`.
    pub rooms: Few<Box<str>>,
    pub entitlements: Entitlements,
    /// The attached connection; `None` while away.
    pub place: Option<Place>,
    /// The durable cursor: the last `rw.received`.
    pub received_seq: u64,
    /// The message ids used lately.
    pub used: Option<Box<Dedupe>>,
    /// Raw JSON of `rw.presence.set`.
    pub presence: Option<Box<str>>,
    /// State of the rate limit on `rw.presence.set`: see the shard's bucket.
    pub presence_empty_ns: u64,
    /// How far others have been told of `presence`.
    pub telling: Telling,
    /// Time of the first attach (Unix ms).
    pub since_ms: u64,
    /// Since when the member is away, on the monotonic clock; 0 while attached.
    pub away_since_ms: u64,
    /// How long it had been away when the process began, which is where that clock begins.
    pub away_before_ms: u64,
    /// `true` if others have been told that it is gone.
    pub told_lost: bool,
    /// Bits, defined by the shard, for the values that are newer than the log's.
    pub owed: u8,
    /// Facts and commands that wait for the log.
    pub underway: Option<Box<Underway>>,
    /// The position of the log's last whole record of the member's state.
    pub kept_at: Position,
    /// When the two earliest timers fire; `u64::MAX` for none. Bounds the timers of a member that comes and goes often.
    pub timers_ms: [u64; 2],
}

/// How far others have been told of a member's presence data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Telling {
    #[default]
    Done,
    /// Nobody has been told.
    Waits,
    Begun,
    /// Some have been told data that is outdated: all must be told again.
    Again,
}

impl Member {
    /// How long it has been away; 0 while attached.
    #[must_use]
    pub const fn away_ms(&self, now_ms: u64) -> u64 {
        if self.away_since_ms == 0 { 0 } else { now_ms.saturating_sub(self.away_since_ms).saturating_add(self.away_before_ms) }
    }

    /// The member's user: the token's `sub`.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.client_id.get(..usize::from(self.subject_bytes)).unwrap_or(&self.client_id)
    }
}
