//! The log and its disk: writes and syncs, what waits for them, room, retention, and reading back.
//!
//! `disk` has one write in flight and shares syncs; `awaiting` holds acks until their record is durable; `space` bounds how far clients
//! may fill the log; `state_records`, `compaction`, `indexing` and `purge` keep its files; `read_back` and `history` read them, and
//! `read_errors` knows what the disk does not read.

pub(in crate::shard) mod awaiting;
pub(in crate::shard) mod compaction;
pub(in crate::shard) mod disk;
#[cfg(test)]
pub(in crate::shard) mod disk_tests;
pub(in crate::shard) mod history;
pub(in crate::shard) mod indexing;
pub(in crate::shard) mod purge;
pub(in crate::shard) mod read_back;
pub(in crate::shard) mod read_errors;
pub(in crate::shard) mod space;
pub(in crate::shard) mod state_records;
