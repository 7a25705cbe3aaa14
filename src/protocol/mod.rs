//! The wire text of `ringway.v1` (protocol.md sections 2 to 7): inbound bytes to typed values, typed values to outbound bytes.
//!
//! The only folder that knows the text. May import the vocabulary (`ids limits time close`), simd-json and itoa. Pure.
//!
//! Invariants:
//! - A message is validated whole before anything of it is used; what is forwarded are the sender's own bytes, untouched.
//! - [`Parser::parse`], [`added`] and every writer of `replies` and `events` allocate nothing once their buffers have grown to
//!   the largest message seen, which the caller bounds by [`crate::limits::MESSAGE_BYTES_MAX`]. Refusals are cold and do allocate.
//! - Nothing here prints a token: [`Hello`] and [`Refresh`] hide it in `Debug`, and no message of an error quotes a value.

#[cfg(test)]
mod attacks;
mod commands;
mod envelope;
mod errors;
mod events;
#[cfg(test)]
mod model;
mod names;
mod replies;
mod scan;
mod splice;
mod write;

pub use commands::{
    Attach, Command, CommandKind, CommandParser, Hello, History, HistoryFrom, Kind, Members, Refresh, Resume, Start, Watch,
    command_kind,
};
pub use envelope::{Address, Addresses, Envelope, ParseError, Parser, To};
pub use errors::{ErrorCode, Refusal};
pub use events::{PresenceEvent, auth_expiring, caught_up, gap, goaway, history_begin, history_end, presence};
pub use names::{is_client_id, is_message_id, is_name, is_subject, is_traceparent, is_type};
pub use replies::{
    Failure, Head, Limits, Member, MemberState, SessionStart, Welcome, ack, attached, detached, error, joined, left, members,
    pong, presence_ok, refreshed, watching, welcome,
};
pub use splice::{AddedBuf, Traceparent, added, make_traceparent, rewritten};
