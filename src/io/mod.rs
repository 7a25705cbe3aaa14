//! The kernel's edge: the interface between a shard and the engine that runs it.
//!
//! An engine owns the event loop. It calls [`Shard::event`] for everything that happened and then [`Shard::turn`] once; the shard
//! acts through [`Io`]. Three engines fit: `ring` (io_uring, the default), `portable` (monoio: on io_uring, or on epoll where that is refused) and the simulator's.
//!
//! May import the vocabulary only. `unsafe` lives in this folder and nowhere else.
//!
//! Invariants: the kernel holds no pointer into core memory after a turn, but for chunks of the log that are pinned while they are
//! written; what is in the kernel is never forgotten (cancelled and reaped, or its socket shut down); an idle connection owns no
//! buffer here.

mod buffers;
pub mod chunk;
pub mod claim;
pub mod directory;
#[cfg(test)]
mod disk_suite;
pub mod files;
pub mod own;
pub mod portable;
pub mod probe;
pub mod ring;
pub mod segments;
mod watch;

pub use crate::ids::ConnId;
use crate::time::Tick;
pub use chunk::Chunk;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Stands for an errno where a new segment would use what must stay free of the file system; above all that the kernel gives.
pub const BELOW_RESERVE: i32 = 4096;

/// What the engine tells a shard.
#[derive(Debug)]
pub enum Event<'a> {
    /// A socket was accepted. Nothing is read from it until [`Io::read`] asks.
    Accepted { conn: ConnId, peer: SocketAddr },
    /// An accept failed; the engine backs off by itself on EMFILE and its kin.
    AcceptFailed(std::io::Error),
    /// Bytes arrived, lent for the call: unmasked and decoded in place, only a partial frame is kept.
    Received { conn: ConnId, bytes: &'a mut [u8] },
    /// The peer's end of stream (`None`) or a socket error. Nothing more is received.
    Ended { conn: ConnId, error: Option<std::io::Error> },
    /// No read is in the kernel any more, the answer to `read(conn, Read::Off)`.
    Quiet { conn: ConnId },
    /// A socket takes bytes again, the answer to [`Io::want_write`].
    Writable { conn: ConnId },
    /// Somebody rang: a lane or the port has something.
    Bell,
    /// The answer to [`Io::write`]: all of the part is in the kernel's hands, or an errno (and an unknown piece of it).
    Written { tag: u64, result: Result<(), i32> },
    /// The answer to [`Io::sync`], or an errno: then nothing is known of what was written since the sync before.
    Synced { tag: u64, result: Result<(), i32> },
    /// The answer to [`Io::read_back`] and [`Io::read_index`], lent for the call: as many bytes as were asked for, fewer at the end of the file; or an errno.
    ReadBack { tag: u64, result: Result<&'a [u8], i32> },
    /// The answer to [`Io::prepare_segment`]: it can be written, or an errno (or [`BELOW_RESERVE`]) and no file of this number was
    /// left behind.
    SegmentReady { number: u64, result: Result<(), i32> },
    /// The answer to [`Io::delete_segment`].
    SegmentGone { number: u64, result: Result<(), i32> },
    /// The answer to [`Io::index_segment`]: the beginning of the index, which can be read from now on, or an errno (one there was before
    /// stays). `unsaved` is the errno where it could not be written: it is in memory then, until the process ends.
    SegmentIndexed { number: u64, result: Result<Vec<u8>, i32>, unsaved: Option<i32> },
    /// Somebody else has deleted a segment's file: what is written to it is gone with the process. Told once.
    SegmentLost { number: u64 },
    /// The answer to [`Io::purge`]: messages that were taken out, or an errno.
    Purged { step: PurgeStep, result: Result<u64, i32> },
}

/// A step of taking a session's messages out of the segments: first that it begins, then each segment, then that it has ended. Until
/// the last one is done the next start finishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeStep {
    Begin,
    /// What stands in the first `end` bytes of its file.
    Segment {
        number: u64,
        end: u64,
    },
    End,
}

/// How a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Not at all; answered by [`Event::Quiet`] once the kernel holds no read of it (at once, where there was none).
    Off,
    /// One receive, then [`Read::Off`] without a Quiet. Used until the welcome, so that a socket can change shards. Straight after
    /// `Stream`, what the kernel had received already is told as well.
    Once,
    /// Until told otherwise.
    Stream,
}

/// One send of a batch: up to [`crate::limits::SEND_PARTS_MAX`] slices that leave as one.
#[derive(Clone, Copy, Debug)]
pub struct Send<'a> {
    pub conn: ConnId,
    pub parts: &'a [&'a [u8]],
}

/// The result of one send, in the order of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// So many bytes were taken: all of them, or fewer (then the socket is full, ask with [`Io::want_write`]). 0 is EAGAIN.
    Bytes(usize),
    /// The socket is dead; an errno.
    Failed(i32),
}

/// What a shard may do to the world. All calls return at once.
pub trait Io {
    /// Starts or stops accepting.
    fn accept(&mut self, on: bool);
    /// Takes over a socket accepted elsewhere (a handover). Returned if there is no room.
    ///
    /// # Errors
    /// The socket itself, where the engine's table is full.
    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd>;
    /// Sets how a connection is read. See [`Read`].
    fn read(&mut self, conn: ConnId, mode: Read);
    /// Gives up a socket to another shard; only after [`Event::Quiet`] and with no [`Io::want_write`] outstanding.
    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd>;
    /// Ends our side of the stream after all that was sent (FIN); reading goes on.
    fn finish(&mut self, conn: ConnId);
    /// Shuts the socket down and frees the id; no event for it follows.
    fn close(&mut self, conn: ConnId);
    /// Sends without blocking. All is done on return; `out` is cleared and holds one result a send.
    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>);
    /// Asks for one [`Event::Writable`].
    fn want_write(&mut self, conn: ConnId);
    /// Writes `part` of what was appended to `chunk` at the offset `at` of a segment; answered by [`Event::Written`]. The chunk is
    /// held until then. A short write is carried on by the engine. Two writes at once may be done in either order.
    ///
    /// This call and the seven below are for shards that have a disk; where there is none each is answered with ENODEV.
    fn write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64);
    /// Makes durable what of a segment was written by writes that were answered before (fdatasync); answered by [`Event::Synced`].
    fn sync(&mut self, segment: u64, tag: u64);
    /// Reads up to `len` bytes ([`crate::limits::READ_BACK_BYTES_MAX`]) at the offset `at` of a segment; answered by
    /// [`Event::ReadBack`]. [`crate::limits::READ_BACKS_MAX`] are done at a time, others wait their turn.
    fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64);
    /// The same of a segment's index file.
    fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64);
    /// Makes the index file of a segment that is written no more, off this thread; answered by [`Event::SegmentIndexed`]. Once a number
    /// until it is answered.
    fn index_segment(&mut self, number: u64);
    /// Makes the file of a new segment at its full size, of zeros, durably and off this thread; answered by
    /// [`Event::SegmentReady`]. Once a number until it is answered.
    fn prepare_segment(&mut self, number: u64);
    /// Deletes a segment's file, and its index, once nothing of it is in the kernel, off this thread; answered by [`Event::SegmentGone`]. What asks
    /// for the segment from now on gets ENOENT.
    fn delete_segment(&mut self, number: u64);
    /// Does a step of purging a session (by its hash), durably and off this thread; answered by [`Event::Purged`]. What a segment's step
    /// covers must have been synced.
    fn purge(&mut self, session: u64, step: PurgeStep);
    /// Wakes another shard.
    fn ring_bell(&mut self, shard: usize);
    /// The clocks now, for measuring how long a turn took; what a turn decides by is the tick it was given.
    fn clock(&self) -> Tick;
    /// What the engine has counted since its start.
    fn stats(&self) -> RingStats;
}

/// What an engine counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Receives that ended because no buffer was free.
    pub buffers_exhausted: u64,
    /// Receives armed again.
    pub rearmed: u64,
    /// Completions the kernel had to keep aside.
    pub overflows: u64,
    /// Bells that failed and were rung again.
    pub bells_retried: u64,
    /// Connections put on single reads for flooding.
    pub flooding: u64,
    /// Accepts that failed.
    pub accepts_failed: u64,
    /// Writes to disk that the kernel took a part of, and that were carried on.
    pub short_writes: u64,
    /// Reads from disk that waited because [`crate::limits::READ_BACKS_MAX`] were on their way.
    pub read_backs_waited: u64,
}

/// When the engine shall call [`Shard::turn`] again if nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: work is left over from a bounded turn. Events are taken in before.
    Again,
    /// At this time of [`Tick::mono_ns`] at the latest.
    At(u64),
    /// Only when something happens.
    Idle,
    /// Never: the shard has ended, the engine returns.
    Stop,
}

/// What an engine runs.
pub trait Shard {
    /// Something happened.
    fn event<I: Io>(&mut self, io: &mut I, event: Event<'_>, now: Tick);
    /// All that had happened was told: decide, append, send.
    fn turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next;
    /// Announces sleep: true if it may sleep, false if something came in meanwhile. Called right before the engine waits.
    fn before_sleep(&mut self) -> bool {
        true
    }
    /// The sleep is over.
    fn after_sleep(&mut self) {}
}
