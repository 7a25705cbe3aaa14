//! Presence: who is told that members come and go. A drop within the grace is no event (protocol.md section 6).

use super::member::MemberKey;

/// A change that watchers are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    Join,
    Leave,
    Lost,
    Data,
}

/// A member that watches the session, or one room of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    pub member: MemberKey,
    pub room: Option<Box<str>>,
}

impl Watcher {
    /// Returns `true` if the watcher is told of a change: of the whole session (`room` is `None`), or in a room.
    #[must_use]
    pub fn is_told(&self, room: Option<&str>) -> bool {
        self.room.as_deref() == room
    }
}
