//! The way out: what a connection is sent, and when.
//!
//! `replies` and records wait in order; `plan` chooses what goes next; `flush` sends it and books what the socket took.

pub(in crate::shard) mod flush;
pub(in crate::shard) mod plan;
pub(in crate::shard) mod replies;
