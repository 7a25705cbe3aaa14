//! The shard's append-only log: what to write and what was read, not the writing.
//!
//! Every logged message is one record: a header, its addresses, then the complete outgoing WebSocket frame. Records live in chunks
//! of [`crate::limits::CHUNK_BYTES`]; a session's [`Index`] says where its sequence numbers stand, and a reader is a position in that index.
//! A mirror of another shard's session is the same index over a second [`Log`] of the shard. Of what lies in files that are written no
//! more the index knows only which of them hold which numbers; the places are in a file beside each ([`IndexFile`]).
//!
//! On disk a shard's log is a sequence of segments, each a header and then the same bytes as the chunks; [`Scanner`] reads them back.
//! docs/log-format.md is the format, byte by byte.
//!
//! May import the vocabulary only. Pure.
//!
//! Invariants: a record never spans chunks; positions only grow; a chunk that is dropped takes whole records with it; an index entry whose
//! position lies before [`Log::oldest`] is dead and is trimmed before it is read.

mod ages;
mod chunks;
mod facts;
mod index;
#[cfg(test)]
pub(crate) mod made;
mod record;
mod scan;
#[cfg(test)]
mod scan_tests;
mod segment;
mod segment_index;
mod state;

pub use ages::{AgeClock, Ages};
pub use chunks::{Appended, Geometry, Log, Position, Retained, Unwritten};
pub use facts::{Joined, Left, NextEpoch, Roles, Stays, Went, decode_presence};
pub use index::{Audience, Entry, Held, Index};
pub use record::{HEADER_BYTES, Header, Kind, Record, RecordError, VERSION, purge, read_record, write_record};
pub use scan::{
    BadReason, Damage, LastSegment, Proof, SESSIONS_AFTER_MAX, ScanError, Scanned, Scanner, SeqRange, Torn, Uncovered,
};
pub use segment::{SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentError, SegmentHeader, segment_name, segment_number};
pub use segment_index::{
    ENTRY_BYTES, INDEX_HEADER_BYTES, INDEX_VERSION, IndexBuilder, IndexFile, IndexScan, Located, RUN_BYTES, Run, SessionRun,
    directory_runs, index_name, index_number, read_entries,
};
pub use state::{EpochState, Mark, MemberState, Receipt, SessionState, StateError, StayState, decode_empty};

/// The failure that an acknowledged message of a session survives (protocol.md section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// None: the message is in memory.
    #[default]
    Memory,
    /// The death of the process.
    Written,
    /// A power cut.
    Synced,
}
