//! The composer: one pinned thread that runs the pure stages over an engine.
//!
//! `inbound` is the whole way in, `outbound` the whole way out, `core` the shard between them. `port` is control's bounded door to
//! a shard, `counters` what a shard tells of itself. Nothing outside this folder reaches a shard in any other way.
//!
//! May import every stage, the vocabulary, `config` and `io` (the interface; `start` alone names an engine).
//!
//! Invariants: a session's state is touched by its home shard only; a turn is bounded; every queue is bounded, and what did not fit is
//! counted with its reason.

pub mod admission;
pub mod counters;
pub mod histogram;
pub mod lanes;
pub mod port;
pub mod rate;
pub mod wheel;
