//! A session where it is at home: its members, what they decide, and what others are told of it.
//!
//! `attach` and `members` are a member's life; `facts` and `gauges` what the log is told of it; `presence` what watchers are told;
//! `allowances` bounds what one user may create.

pub(in crate::shard) mod allowances;
pub(in crate::shard) mod attach;
pub(in crate::shard) mod facts;
pub(in crate::shard) mod gauges;
pub(in crate::shard) mod members;
pub(in crate::shard) mod presence;

use crate::ids::HashKey;
use crate::session::{Dedupe, Sessions, Stream, StreamKey};
use crate::slots::Slots;

/// Sessions, or members, that one sweep examines.
pub(in crate::shard) const SWEPT_AT_ONCE: usize = 256;

/// Sessions and members, and the streams that readers here follow: of sessions at home, and of mirrors.
pub struct Home {
    pub(in crate::shard) sessions: Sessions,
    pub(in crate::shard) streams: Slots<Stream>,
    /// Streams with records that not all of their readers were woken for.
    pub(in crate::shard) dirty_streams: Vec<StreamKey>,
    /// Ids of posts to channels from outside, in one shared window.
    pub(in crate::shard) posted: Dedupe,
    /// The session id of the channel being posted to; a reused buffer.
    pub(in crate::shard) channel_id: String,
    /// Members of whom watchers are being told.
    pub(in crate::shard) tellings: presence::Tellings,
    /// Indexes in the tables of sessions and members that are swept next, and when.
    pub(in crate::shard) sweep_at: usize,
    pub(in crate::shard) sweep_member_at: usize,
    pub(in crate::shard) sweep_due_ms: u64,
}

impl Home {
    pub(in crate::shard) fn new(key: HashKey) -> Self {
        Self {
            sessions: Sessions::new(key),
            streams: Slots::default(),
            dirty_streams: Vec::new(),
            posted: Dedupe::default(),
            channel_id: String::new(),
            tellings: presence::Tellings::default(),
            sweep_at: 0,
            sweep_member_at: 0,
            sweep_due_ms: 0,
        }
    }

    /// Examines a few members: stays in rooms of which no message is retained any more are forgotten.
    pub(in crate::shard) fn sweep_members(&mut self) {
        let places = self.sessions.members.places();
        for _ in 0..SWEPT_AT_ONCE.min(places) {
            self.sweep_member_at = (self.sweep_member_at + 1) % places;
            let Some((key, member)) = self.sessions.members.at(self.sweep_member_at) else { continue };
            if !member.entitlements.has_ended_stays() {
                continue;
            }
            let session = self.sessions.sessions.get(member.session);
            let Some(stream) = session.and_then(|session| self.streams.get(session.stream)) else { continue };
            let oldest = stream.index.first();
            if let Some(member) = self.sessions.members.get_mut(key) {
                member.entitlements.prune(oldest);
            }
        }
    }
}
