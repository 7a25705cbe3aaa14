//! The log and its disk: writes and syncs, what waits for them, room, retention, and reading back.
//!
//! `disk` has one write in flight and shares syncs; `awaiting` and `pending` hold acks until their record is durable; `space` bounds
//! how far clients may fill the log; `state_records`, `compaction`, `indexing` and `purge` keep its files; `read_back` and `history`
//! read them, and `read_errors` knows what the disk does not read.

pub(in crate::shard) mod awaiting;
pub(in crate::shard) mod compaction;
pub(in crate::shard) mod disk;
#[cfg(test)]
pub(in crate::shard) mod disk_tests;
pub(in crate::shard) mod history;
pub(in crate::shard) mod indexing;
pub(in crate::shard) mod pending;
pub(in crate::shard) mod purge;
pub(in crate::shard) mod read_back;
pub(in crate::shard) mod read_errors;
pub(in crate::shard) mod space;
pub(in crate::shard) mod state_records;

use crate::ids::{HashKey, Map};
use crate::log::{AgeClock, Ages, Log};
use disk::{Disk, READ_TAGS};
use history::Histories;
use purge::Purge;
use read_back::{Places, Reading};
use read_errors::Unreadable;
use std::collections::VecDeque;
use std::rc::Rc;

/// The shard's log, in memory and on its disk.
pub struct Storage {
    pub(in crate::shard) log: Log,
    /// Send times of the log's positions.
    pub(in crate::shard) ages: Ages,
    pub(in crate::shard) age_clock: AgeClock,
    pub(in crate::shard) age_due_ms: u64,
    /// The log's disk; `None` for a log in memory.
    pub(in crate::shard) disk: Option<Disk>,
    /// Reads in flight, by tag.
    pub(in crate::shard) jobs: Map<u64, Reading>,
    pub(in crate::shard) next_read: u64,
    /// Parts of index files that were read most recently, newest first.
    pub(in crate::shard) places: VecDeque<Rc<Places>>,
    /// Requested pages of history.
    pub(in crate::shard) histories: Histories,
    /// Places of the log that the disk cannot read.
    pub(in crate::shard) unreadable: Unreadable,
    /// Sessions that are being purged, one at a time.
    pub(in crate::shard) purges: VecDeque<Purge>,
    /// Until when emptied buffers are wiped: [`u64::MAX`] during a purge, 0 if there was none lately.
    pub(in crate::shard) wipes_until_ms: u64,
}

impl Storage {
    pub(in crate::shard) fn new(key: HashKey, memory_bytes: usize) -> Self {
        Self {
            log: Log::new(memory_bytes),
            ages: Ages::default(),
            age_clock: AgeClock::default(),
            age_due_ms: 0,
            disk: None,
            jobs: Map::with_hasher(key),
            next_read: READ_TAGS,
            places: VecDeque::new(),
            histories: Histories::new(key),
            unreadable: Unreadable::default(),
            purges: VecDeque::new(),
            wipes_until_ms: 0,
        }
    }
}
