//! The way in: bytes to frames to a decision.
//!
//! `frames` reads what a socket brought; `commands` and `publish` decide what a message is; `channel_posts` are messages for a channel
//! from outside it; `backpressure` slows senders down. `contained` ends a connection whose bytes made the gateway panic.

pub(in crate::shard) mod backpressure;
pub(in crate::shard) mod channel_posts;
pub(in crate::shard) mod codec;
pub(in crate::shard) mod commands;
pub mod contained;
pub mod frames;
pub(in crate::shard) mod publish;
