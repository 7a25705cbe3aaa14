//! The composer: one pinned thread that runs the pure stages over an engine.
//!
//! `core` is the shard's state and the order of a turn. Around it: `connections` (who is connected), `inbound` (bytes to a decision),
//! `home` (a session where it is at home), `outbound` (what leaves), `durability` (the log and its disk), `recovery` (a log before a
//! shard runs), `across` (other shards). `port` is control's bounded access to a shard, `counters` the shard's metrics. Nothing outside
//! this folder reaches a shard in any other way.
//!
//! May import every stage, the vocabulary, `config` and `io` (the interface; `start` alone names an engine).
//!
//! Invariants: a session's state is touched by its home shard only; a turn is bounded; every queue is bounded, and data that did
//! not fit is counted with its reason.

pub mod across;
mod admin;
pub mod connections;
pub(crate) mod context;
pub mod core;
pub mod counters;
pub mod durability;
pub mod histogram;
pub mod home;
pub mod inbound;
#[cfg(test)]
pub(crate) mod inspect;
mod listeners;
pub mod outbound;
pub mod port;
pub mod recovery;
pub mod start;
pub(crate) mod timers;
pub mod wheel;
