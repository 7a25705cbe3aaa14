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

/// In place of an errno, if a new segment would use space that must stay free; above all errnos of the kernel.
pub const BELOW_RESERVE: i32 = 4096;

/// An event that the engine reports to a shard.
#[derive(Debug)]
pub enum Event<'a> {
    /// A socket was accepted. Nothing is read from it until [`Io::read`] asks.
    Accepted { conn: ConnId, peer: SocketAddr },
    /// An accept failed. The engine pauses accepting by itself on EMFILE and its kin.
    AcceptFailed(std::io::Error),
    /// Bytes arrived, lent for the call: unmasked and decoded in place, only a partial frame is kept.
    Received { conn: ConnId, bytes: &'a mut [u8] },
    /// The peer's end of stream (`None`) or a socket error. Nothing more is received.
    Ended { conn: ConnId, error: Option<std::io::Error> },
    /// The kernel holds no read any more: the answer to `read(conn, Read::Off)`.
    Quiet { conn: ConnId },
    /// A socket takes bytes again, the answer to [`Io::want_write`].
    Writable { conn: ConnId },
    /// Another shard or control has put something into a lane or the port.
    Bell,
    /// The answer to [`Io::write`]: all of the part was accepted by the kernel, or an errno (and an unknown piece of it was).
    Written { tag: u64, result: Result<(), i32> },
    /// The answer to [`Io::sync`]. After an errno the state of everything written since the previous sync is unknown.
    Synced { tag: u64, result: Result<(), i32> },
    /// The answer to [`Io::read_back`] and [`Io::read_index`], lent for the call: the bytes asked for, fewer at the end of the
    /// file; or an errno.
    ReadBack { tag: u64, result: Result<&'a [u8], i32> },
    /// The answer to [`Io::prepare_segment`]: the segment can be written, or an errno (or [`BELOW_RESERVE`]) and no file of this
    /// number was left behind.
    SegmentReady { number: u64, result: Result<(), i32> },
    /// The answer to [`Io::delete_segment`].
    SegmentGone { number: u64, result: Result<(), i32> },
    /// The answer to [`Io::index_segment`]: the beginning of the index, which can be read from now on, or an errno (an earlier
    /// index stays). `unsaved` is the errno if the index could not be written: it is in memory then, until the process ends.
    SegmentIndexed { number: u64, result: Result<Vec<u8>, i32>, unsaved: Option<i32> },
    /// Somebody else has deleted a segment's file: bytes written to it are lost when the process ends. Reported once.
    SegmentLost { number: u64 },
    /// The answer to [`Io::purge`]: the number of messages removed, or an errno.
    Purged { step: PurgeStep, result: Result<u64, i32> },
}

/// A step of removing a session's messages from the segments: the begin, then each segment, then the end. If the process ends
/// before the last step, the next start finishes the purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeStep {
    Begin,
    /// Removes from the first `end` bytes of a segment's file.
    Segment {
        number: u64,
        end: u64,
    },
    End,
}

/// The mode in which a connection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// No reads; answered by [`Event::Quiet`] once the kernel holds no read of it (at once, if there was none).
    Off,
    /// A single receive, then [`Read::Off`] without a Quiet. Used until the welcome, so that a socket can change shards. Straight
    /// after `Stream`, bytes that the kernel had received already are reported as well.
    Once,
    /// Reads until told otherwise.
    Stream,
}

/// A send of a batch: up to [`crate::limits::SEND_PARTS_MAX`] slices that leave as one.
#[derive(Clone, Copy, Debug)]
pub struct Send<'a> {
    pub conn: ConnId,
    pub parts: &'a [&'a [u8]],
}

/// The result of one send, in the order of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Bytes taken: all of them, or fewer (then the socket is full, ask with [`Io::want_write`]). 0 is EAGAIN.
    Bytes(usize),
    /// The socket is dead; an errno.
    Failed(i32),
}

/// The actions of a shard on the outside world. All calls return at once.
pub trait Io {
    /// Starts or stops accepting.
    fn accept(&mut self, on: bool);
    /// Adopts a socket accepted elsewhere (a handover).
    ///
    /// # Errors
    /// The socket itself, if the engine's table is full.
    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd>;
    /// Sets how a connection is read. See [`Read`].
    fn read(&mut self, conn: ConnId, mode: Read);
    /// Gives a socket to another shard; only after [`Event::Quiet`] and with no [`Io::want_write`] outstanding.
    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd>;
    /// Ends our side of the stream after all bytes sent so far (FIN); reading goes on.
    fn finish(&mut self, conn: ConnId);
    /// Shuts the socket down and frees the id; no event for it follows.
    fn close(&mut self, conn: ConnId);
    /// Sends without blocking. All is done on return; `out` is cleared and holds one result a send.
    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>);
    /// Asks for one [`Event::Writable`].
    fn want_write(&mut self, conn: ConnId);
    /// Writes `part` of the bytes appended to `chunk` at the offset `at` of a segment; answered by [`Event::Written`]. The chunk
    /// is held until then. The engine completes a short write. Two writes at once may be done in either order.
    ///
    /// This call and the seven below are for shards that have a disk; without one each is answered with ENODEV.
    fn write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64);
    /// Makes durable all bytes of a segment whose writes were answered before (fdatasync); answered by [`Event::Synced`].
    fn sync(&mut self, segment: u64, tag: u64);
    /// Reads up to `len` bytes ([`crate::limits::READ_BACK_BYTES_MAX`]) at the offset `at` of a segment; answered by
    /// [`Event::ReadBack`]. [`crate::limits::READ_BACKS_MAX`] reads are done at a time, others wait their turn.
    fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64);
    /// Reads a segment's index file in the same way.
    fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64);
    /// Makes the index file of a segment that is no longer written, off this thread; answered by [`Event::SegmentIndexed`]. One
    /// request at a time for each number.
    fn index_segment(&mut self, number: u64);
    /// Makes the file of a new segment at its full size, of zeros, durably and off this thread; answered by
    /// [`Event::SegmentReady`]. One request at a time for each number.
    fn prepare_segment(&mut self, number: u64);
    /// Deletes a segment's file, and its index, once the kernel uses neither, off this thread; answered by
    /// [`Event::SegmentGone`]. Later requests for the segment get ENOENT.
    fn delete_segment(&mut self, number: u64);
    /// Does a step of purging a session (by its hash), durably and off this thread; answered by [`Event::Purged`]. The bytes of a
    /// segment's step must have been synced.
    fn purge(&mut self, session: u64, step: PurgeStep);
    /// Wakes another shard.
    fn ring_bell(&mut self, shard: usize);
    /// The clocks now, for measuring the length of a turn. Decisions use the tick that the turn was given.
    fn clock(&self) -> Tick;
    /// The engine's counts since its start.
    fn stats(&self) -> RingStats;
}

/// Counts of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Receives that ended because no buffer was free.
    pub buffers_exhausted: u64,
    /// Receives armed again.
    pub rearmed: u64,
    /// Completions that the kernel had to keep aside because the queue was full.
    pub overflows: u64,
    /// Bells that failed and were rung again.
    pub bells_retried: u64,
    /// Connections switched to single reads because they flooded.
    pub flooding: u64,
    /// Accepts that failed.
    pub accepts_failed: u64,
    /// Writes to disk of which the kernel took only a part, and that the engine completed.
    pub short_writes: u64,
    /// Reads from disk that waited because [`crate::limits::READ_BACKS_MAX`] were under way.
    pub read_backs_waited: u64,
}

/// When the engine must call [`Shard::turn`] again if nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once: a bounded turn has left work over. Events are taken in before.
    Again,
    /// At this time of [`Tick::mono_ns`] at the latest.
    At(u64),
    /// Only when something happens.
    Idle,
    /// Never: the shard has ended and the engine returns.
    Stop,
}

/// The code that an engine runs.
pub trait Shard {
    /// Handles an event.
    fn event<I: Io>(&mut self, io: &mut I, event: Event<'_>, now: Tick);
    /// All events were reported: decide, append, send.
    fn turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next;
    /// Announces sleep, right before the engine waits. Returns `true` if the shard may sleep, `false` if something came in
    /// meanwhile.
    fn before_sleep(&mut self) -> bool {
        true
    }
    /// The sleep is over.
    fn after_sleep(&mut self) {}
}
