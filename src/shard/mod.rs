//! The composer: one pinned thread that runs the pure stages over an engine.
//!
//! `port` is control's bounded door to a shard, `counters` what a shard tells of itself. Nothing outside this folder reaches a
//! shard in any other way.

pub mod counters;
pub mod histogram;
pub mod port;
