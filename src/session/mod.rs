//! Sessions, their members, and what a reader may see: state and rules, no wire text and no sockets.
//!
//! May import the vocabulary and `log` (the types of a position and an entry). Pure.
//!
//! Invariants: a session's state is touched by its home shard only; a member outlives its connections; what a reader sees depends on
//! the order and on its entitlements, never on how far behind it reads.

mod dedupe;
mod entitlement;
mod facts;
mod member;
mod presence;
mod resume;
mod stream;
mod table;

pub use dedupe::{Dedupe, DedupeLimits, Seen};
pub use entitlement::{Entitlements, Stay, Target};
pub use facts::{Answer, Applied, Fact, Move, Underway};
pub use member::{Member, MemberKey, Place, Telling};
pub use presence::{PresenceChange, Watcher};
pub use resume::{Start, StartRequest, Wanted, start};
pub use stream::{Reader, Stream, StreamKey};
pub use table::{MirrorOut, NOBODY, Session, SessionKey, Sessions};
