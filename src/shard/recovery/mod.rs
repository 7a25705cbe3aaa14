//! A log before a shard runs, or while none does: read, replayed, changed in its number of shards, purged.
//!
//! `open` reads what is on disk; `replay` makes a shard's state of it; `reshard` writes it again for another number of shards;
//! `purge_files` takes a session's messages out of files that nobody has open.

pub mod open;
pub mod purge_files;
pub mod replay;
pub(in crate::shard) mod reshard;
#[cfg(test)]
mod upgrade_tests;
