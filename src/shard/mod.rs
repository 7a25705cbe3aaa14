//! The composer: one pinned thread that runs the pure stages over an engine.
//!
//! `inbound` is the whole way in, `outbound` the whole way out, `core` the shard between them. `port` is control's bounded access
//! to a shard, `counters` the shard's metrics. Nothing outside this folder reaches a shard in any other way.
//!
//! May import every stage, the vocabulary, `config` and `io` (the interface; `start` alone names an engine).
//!
//! Invariants: a session's state is touched by its home shard only; a turn is bounded; every queue is bounded, and data that did
//! not fit is counted with its reason.

mod admin;
pub mod admission;
mod allowances;
mod attach;
mod awaiting;
mod commands;
mod compacting;
pub mod conn;
pub mod contained;
pub mod core;
pub mod counters;
#[cfg(test)]
mod disk_tests;
mod door;
mod durable;
mod facts;
mod gauges;
mod half_open;
mod handshake;
pub mod histogram;
mod histories;
mod holding;
pub mod inbound;
mod indexing;
#[cfg(test)]
pub(crate) mod inspect;
mod keeping;
pub mod lanes;
mod leaving;
mod listeners;
mod members;
mod mirrors;
mod outbound;
mod plan;
pub mod port;
mod posts;
mod presence;
mod publish;
pub mod purge_files;
mod purging;
pub mod rate;
mod reading;
pub mod recover;
mod replies;
mod resize;
mod room;
pub mod start;
pub mod store;
mod timers;
mod unreadable;
#[cfg(test)]
mod upgrade_tests;
pub mod wheel;
