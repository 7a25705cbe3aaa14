//! The shard's append-only log: what to write and what was read, not the writing.
//!
//! Every logged message is one record: a header, its addresses, then the complete outgoing WebSocket frame. Records live in chunks
//! of [`crate::limits::CHUNK_BYTES`]; a session's [`Index`] says where its sequence numbers stand, and a reader is a position in that index.
//! A mirror of another shard's session is the same index over a second [`Log`] of the shard.
//!
//! May import the vocabulary only. Pure.
//!
//! Invariants: a record never spans chunks; positions only grow; a chunk that is dropped takes whole records with it; an index entry whose
//! position lies before [`Log::oldest`] is dead and is trimmed before it is read.

mod chunks;
mod index;
mod record;

pub use chunks::{Appended, Log, Position};
pub use index::{Audience, Entry, Index};
pub use record::{HEADER_BYTES, Header, Kind, RecordError, VERSION, read_record};
