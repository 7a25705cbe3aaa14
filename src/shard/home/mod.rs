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
