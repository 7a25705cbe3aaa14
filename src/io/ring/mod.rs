//! The native engine: one io_uring, one thread, one shard.
//!
//! SINGLE_ISSUER + DEFER_TASKRUN, multishot accept, multishot receive into provided buffers, sends that never wait. One enter a
//! turn when loaded: the enter that submits a turn's sends also runs the task work that brings the next events.
#![allow(unsafe_code)] // submission queue entries name memory by pointer; the SAFETY comments carry the argument

mod disk;
#[cfg(test)]
mod disk_tests;
mod listen;
mod receive;
mod send;
mod slots;
#[cfg(test)]
mod tests;

pub(in crate::io) use disk::ignore_file_size_signal;
pub use listen::{could_listen_alone, listen};

use crate::io::buffers::BufferRing;
use crate::io::chunk::Chunk;
use crate::io::segments::Disk;
use crate::io::{ConnId, Event, Io, Next, PurgeStep, Read, RingStats, Send, Sent, Shard};
use crate::time::Tick;
use disk::Operations;
use io_uring::{IoUring, opcode, squeue, types};
use slots::{FREE, Slot};
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Completions handled before the shard gets its turn.
const EVENTS_PER_TURN_MAX: usize = 4096;
/// Entries of the submission queue: a turn's sends and the requests that it arms fit in, or leave in two enters.
const SUBMISSIONS: u32 = 2048;
/// Attempts of one enter that the kernel answers with EBUSY, EAGAIN or EINTR.
const ENTER_TRIES_MAX: usize = 10_000;

/// Time before a bell that failed is rung again.
const BELL_REST_NS: u64 = 1_000_000;
/// In place of a ring's descriptor among [`Bells`], until the ring exists.
const NOT_YET: i32 = -1;
const GONE: i32 = -2;

const OP_SHIFT: u32 = 60;
const GENERATION_MASK: u32 = (1 << 28) - 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Op {
    Receive = 1,
    Accept = 2,
    Writable = 3,
    Send = 4,
    Eventfd = 5,
    BellIn = 6,
    BellOut = 7,
    Cancel = 8,
    Disk = 9,
}

#[inline]
const fn tag(op: Op, conn: ConnId) -> u64 {
    (op as u64) << OP_SHIFT | ((conn.generation & GENERATION_MASK) as u64) << 32 | conn.index as u64
}

#[inline]
const fn plain(op: Op, value: u32) -> u64 {
    tag(op, ConnId { index: value, generation: 0 })
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "unpacks what tag packed")]
fn untag(user_data: u64) -> (Option<Op>, ConnId) {
    let op = match user_data >> OP_SHIFT {
        1 => Some(Op::Receive),
        2 => Some(Op::Accept),
        3 => Some(Op::Writable),
        4 => Some(Op::Send),
        5 => Some(Op::Eventfd),
        6 => Some(Op::BellIn),
        7 => Some(Op::BellOut),
        8 => Some(Op::Cancel),
        9 => Some(Op::Disk),
        _ => None,
    };
    (op, ConnId { index: user_data as u32, generation: (user_data >> 32) as u32 & GENERATION_MASK })
}

#[derive(Clone, Copy)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// The rings of all shards, by which they wake each other. Filled as each starts; complete after the start barrier.
#[derive(Debug)]
pub struct Bells {
    rings: Box<[AtomicI32]>,
}

impl Bells {
    /// For `shards` shards.
    #[must_use]
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self { rings: (0..shards).map(|_| AtomicI32::new(NOT_YET)).collect() })
    }
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// This shard's index among [`Bells`].
    pub shard: usize,
    /// Sockets at most.
    pub connections_max: usize,
    /// Receive buffers (a power of two).
    pub buffers: u16,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// How long to poll before sleeping, in microseconds.
    pub spin_us: u64,
}

/// The engine. See the module's text.
pub struct Ring {
    // Declared first: dropped before the buffers and the eventfd's value. With DEFER_TASKRUN the kernel writes to either only while
    // this thread is in an enter, and there is none after this.
    ring: IoUring,
    buffers: BufferRing,
    options: Options,
    listener: Option<TcpListener>,
    accept_wanted: bool,
    accepting: bool,
    accept_rests_until_ns: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    rearm: Vec<ConnId>,
    flooded: Vec<u32>,
    quiet: VecDeque<ConnId>,
    backlog: VecDeque<Completion>,
    bells: Arc<Bells>,
    bells_failed: Vec<usize>,
    bells_rest_until_ns: u64,
    eventfd: Arc<OwnedFd>,
    eventfd_value: Box<u64>,
    messages: Vec<libc::msghdr>,
    slices: Vec<libc::iovec>,
    started: Instant,
    disk: Operations,
    stats: RingStats,
}

impl Ring {
    /// Sets up the ring on the thread that will run it, and enters it among the bells.
    ///
    /// # Errors
    /// What `io_uring_setup` or a registration answered.
    #[expect(clippy::disallowed_methods, reason = "the engine is where time comes from")]
    pub fn new(
        options: Options,
        listener: Option<TcpListener>,
        bells: Arc<Bells>,
        eventfd: Arc<OwnedFd>,
        disk: Option<Disk>,
    ) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(16_384);
        if options.spin_us > 0 {
            builder.setup_taskrun_flag();
        }
        let ring: IoUring = builder.build(SUBMISSIONS)?;
        let buffers = BufferRing::register(&ring.submitter(), options.buffers, options.buffer_bytes)?;
        bells.rings[options.shard].store(ring.as_raw_fd(), Ordering::Release);
        let mut engine = Self {
            ring,
            buffers,
            options,
            listener,
            accept_wanted: false,
            accepting: false,
            accept_rests_until_ns: 0,
            slots: Vec::new(),
            free: Vec::new(),
            rearm: Vec::new(),
            flooded: Vec::new(),
            quiet: VecDeque::new(),
            backlog: VecDeque::with_capacity(1024),
            bells,
            bells_failed: Vec::new(),
            bells_rest_until_ns: 0,
            eventfd,
            eventfd_value: Box::new(0),
            messages: Vec::with_capacity(crate::limits::SENDS_PER_TURN_MAX),
            slices: Vec::with_capacity(crate::limits::SENDS_PER_TURN_MAX * 2),
            started: Instant::now(),
            disk: Operations::new(disk),
            stats: RingStats::default(),
        };
        engine.arm_eventfd();
        Ok(engine)
    }

    /// The two clocks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the engine is where time comes from")]
    #[expect(clippy::cast_possible_truncation, reason = "584 years of nanoseconds, 584 million years of milliseconds")]
    pub fn now(&self) -> Tick {
        Tick {
            mono_ns: self.started.elapsed().as_nanos() as u64,
            wall_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        }
    }

    /// Runs the shard until it answers [`Next::Stop`].
    ///
    /// # Errors
    /// An enter that failed in a way no retry mends.
    pub fn run<S: Shard>(&mut self, shard: &mut S) -> io::Result<()> {
        loop {
            let now = self.now();
            self.take_events(shard, now);
            let next = shard.turn(self, now);
            self.between_turns(now);
            self.reap();
            let idle = self.backlog.is_empty() && self.quiet.is_empty() && self.disk.segments.answers.is_empty();
            match next {
                Next::Stop => return Ok(()),
                Next::Again => self.enter(0)?,
                Next::At(_) | Next::Idle if !idle => {
                    if !self.ring.submission().is_empty() {
                        self.enter(0)?;
                    }
                }
                Next::At(at_ns) => self.sleep(shard, Some(at_ns))?,
                Next::Idle => self.sleep(shard, None)?,
            }
            self.reap();
        }
    }

    fn take_events<S: Shard>(&mut self, shard: &mut S, now: Tick) {
        for _ in 0..EVENTS_PER_TURN_MAX {
            let Some(completion) = self.backlog.pop_front() else { break };
            self.dispatch(shard, completion, now);
        }
        while let Some(conn) = self.quiet.pop_front() {
            // The connection may have been armed again since it was put here: then the end of that receive says Quiet.
            if self.slot(conn).is_some_and(|slot| slot.quiet_owed && !slot.closing && !slot.receiving) {
                self.slots[conn.index as usize].quiet_owed = false;
                shard.event(self, Event::Quiet { conn }, now);
            }
        }
        self.tell_disk_answers(shard, now);
    }

    fn dispatch<S: Shard>(&mut self, shard: &mut S, completion: Completion, now: Tick) {
        let (op, conn) = untag(completion.user_data);
        match op {
            Some(Op::Receive) => self.on_received(shard, conn, completion, now),
            Some(Op::Accept) => self.on_accepted(shard, completion, now),
            Some(Op::Writable) => {
                let Some(slot) = self.slot_mut(conn) else { return };
                slot.polling = false;
                if slot.closing {
                    self.finish_close(conn);
                } else {
                    let conn = ConnId { index: conn.index, generation: self.slots[conn.index as usize].generation };
                    shard.event(self, Event::Writable { conn }, now);
                }
            }
            Some(Op::Eventfd) => {
                self.arm_eventfd();
                self.disk.segments.take_files_answers();
                shard.event(self, Event::Bell, now);
            }
            Some(Op::BellIn) => shard.event(self, Event::Bell, now),
            Some(Op::BellOut) => {
                if completion.result < 0 {
                    self.ring_later(conn.index as usize);
                }
            }
            Some(Op::Disk) => self.on_disk(shard, conn.index, completion, now),
            // A cancel's own answer adds nothing to the cancelled receive's; sends are reaped in send_batch.
            Some(Op::Cancel | Op::Send) | None => {}
        }
    }

    /// Does the engine's own work between two turns: arms receives and the accept again, rings failed bells again.
    fn between_turns(&mut self, now: Tick) {
        while let Some(index) = self.flooded.pop() {
            self.slots[index as usize].buffers = 0;
        }
        while let Some(conn) = self.rearm.pop() {
            if self.slot(conn).is_some_and(|slot| !slot.closing && slot.mode != Read::Off && !slot.receiving) {
                self.stats.rearmed += 1;
                self.arm_receive(conn);
            }
        }
        if self.accept_wanted && !self.accepting && now.mono_ns >= self.accept_rests_until_ns {
            self.arm_accept();
        }
        if !self.bells_failed.is_empty() && now.mono_ns >= self.bells_rest_until_ns {
            for shard in std::mem::take(&mut self.bells_failed) {
                self.stats.bells_retried += 1;
                self.ring_bell(shard);
            }
        }
        if self.ring.submission().cq_overflow() {
            self.stats.overflows += 1;
        }
    }

    fn sleep<S: Shard>(&mut self, shard: &mut S, at_ns: Option<u64>) -> io::Result<()> {
        if self.options.spin_us > 0 && self.spin()? {
            return Ok(());
        }
        if !shard.before_sleep() {
            shard.after_sleep();
            return self.enter(0);
        }
        let now_ns = self.now().mono_ns;
        let rests = (self.accept_wanted && !self.accepting).then_some(self.accept_rests_until_ns);
        let bells = (!self.bells_failed.is_empty()).then_some(self.bells_rest_until_ns);
        let until = [at_ns, rests, bells].into_iter().flatten().min();
        let result = match until {
            Some(until) if until <= now_ns => self.enter(0),
            Some(until) => {
                let timeout = types::Timespec::from(Duration::from_nanos(until - now_ns));
                let arguments = types::SubmitArgs::new().timespec(&timeout);
                match self.ring.submitter().submit_with_args(1, &arguments) {
                    Ok(_) => Ok(()),
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => Ok(()),
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            None => self.enter(1),
        };
        shard.after_sleep();
        result
    }

    /// Polls for completions for `spin_us`. Returns `true` if any came.
    fn spin(&mut self) -> io::Result<bool> {
        self.enter(0)?;
        let until = self.now().mono_ns + self.options.spin_us * 1_000;
        loop {
            if self.ring.submission().taskrun() {
                self.enter(0)?;
            }
            self.reap();
            if !self.backlog.is_empty() {
                return Ok(true);
            }
            if self.now().mono_ns >= until {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Submits what is queued, runs pending task work, and waits for `want` completions.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        const GETEVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        for _ in 0..ENTER_TRIES_MAX {
            let queued = u32::try_from(self.ring.submission().len()).unwrap_or(u32::MAX);
            // SAFETY: every queued entry names memory of this struct that outlives the operation (the eventfd's value, the provided
            // buffers), or slices lent to send_batch, which returns only after all its sends completed, or a chunk or buffer that the
            // table of disk operations holds until the completion is taken, and leaks where it is not.
            match unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, GETEVENTS, None) } {
                Ok(submitted) if submitted >= queued as usize => return Ok(()),
                Ok(_) => self.reap(),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) if want > 0 => return Ok(()),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => self.reap(),
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "io_uring_enter stayed busy"))
    }

    /// Copies the completions to the backlog, so that the kernel's queue never fills.
    fn reap(&mut self) {
        for entry in self.ring.completion() {
            self.backlog.push_back(Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() });
        }
    }

    /// Remembers a bell that could not be rung. It is rung again later: its target may take a while to start or to end.
    fn ring_later(&mut self, shard: usize) {
        if self.bells_failed.is_empty() {
            self.bells_rest_until_ns = self.now().mono_ns + BELL_REST_NS;
        }
        if !self.bells_failed.contains(&shard) {
            self.bells_failed.push(shard);
        }
    }

    #[inline]
    fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..ENTER_TRIES_MAX {
            // SAFETY: see `enter`; the callers build entries only from such memory.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            if self.enter(0).is_err() {
                break;
            }
        }
        // The kernel takes no submission any more: nothing can be served on this shard.
        panic!("the submission queue stays full");
    }

    fn arm_eventfd(&mut self) {
        let value: *mut u64 = &raw mut *self.eventfd_value;
        let entry = opcode::Read::new(types::Fd(self.eventfd.as_raw_fd()), value.cast(), 8).build();
        self.push(&entry.user_data(plain(Op::Eventfd, 0)));
    }
}

impl Io for Ring {
    fn accept(&mut self, on: bool) {
        self.accept_wanted = on;
        if !on && self.accepting {
            let entry = opcode::AsyncCancel::new(plain(Op::Accept, 0)).build().user_data(plain(Op::Cancel, 0));
            self.push(&entry);
        }
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        self.add_socket(fd)
    }

    fn read(&mut self, conn: ConnId, mode: Read) {
        self.set_read(conn, mode);
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        self.give_up(conn)
    }

    fn finish(&mut self, conn: ConnId) {
        self.finish_sending(conn);
    }

    fn close(&mut self, conn: ConnId) {
        self.close_socket(conn);
    }

    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        self.send_all(batch, out);
    }

    fn want_write(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.polling || slot.closing {
            return;
        }
        slot.polling = true;
        let events = u32::try_from(libc::POLLOUT).unwrap_or(4);
        let entry = opcode::PollAdd::new(types::Fd(slot.fd), events).build().user_data(tag(Op::Writable, conn));
        self.push(&entry);
    }

    fn write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64) {
        self.start_write(segment, at, chunk, part, tag);
    }

    fn sync(&mut self, segment: u64, tag: u64) {
        self.start_sync(segment, tag);
    }

    fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.start_read_back(segment, false, at, len, tag);
    }

    fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.start_read_back(segment, true, at, len, tag);
    }

    fn index_segment(&mut self, number: u64) {
        self.disk.segments.index(number);
    }

    fn prepare_segment(&mut self, number: u64) {
        self.disk.segments.prepare(number);
    }

    fn delete_segment(&mut self, number: u64) {
        self.disk.segments.delete(number);
    }

    fn purge(&mut self, session: u64, step: PurgeStep) {
        // Old bytes must not stay in any buffer: after a purge nobody knows where they were.
        self.disk.wipe_spare();
        self.disk.segments.purge(session, step);
    }

    fn ring_bell(&mut self, shard: usize) {
        let Some(target) = self.bells.rings.get(shard) else { return };
        let fd = target.load(Ordering::Acquire);
        let Ok(number) = u32::try_from(shard) else { return };
        match fd {
            GONE => return,
            NOT_YET => return self.ring_later(shard),
            _ => {}
        }
        let entry = opcode::MsgRingData::new(types::Fd(fd), 0, plain(Op::BellIn, 0), None).build();
        self.push(&entry.user_data(plain(Op::BellOut, number)));
    }

    fn clock(&self) -> Tick {
        self.now()
    }

    fn stats(&self) -> RingStats {
        self.stats
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.bells.rings[self.options.shard].store(GONE, Ordering::Release);
        // Ends all operations in the kernel, so that the port and the sockets are free at once and not when the kernel gets to
        // it. After a panic nothing is entered any more: the queue may name memory that is gone.
        if !std::thread::panicking() {
            self.finish_disk();
            let timeout = types::Timespec::from(Duration::from_millis(100));
            let _ = self.ring.submitter().register_sync_cancel(Some(timeout), types::CancelBuilder::any());
            let _ = self.enter(0);
        }
        self.reap();
        self.disk.settle(&mut self.backlog);
        self.disk.leak_in_flight();
        for completion in self.backlog.drain(..) {
            if untag(completion.user_data).0 == Some(Op::Accept) && completion.result >= 0 {
                // SAFETY: a successful accept handed us this descriptor; it was told to nobody.
                drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            }
        }
        for slot in self.slots.drain(..) {
            if slot.fd != FREE {
                // SAFETY: the slot owns the descriptor. Operations still in the kernel hold their own reference to the file and name
                // only the provided buffers, which outlive the ring.
                drop(unsafe { OwnedFd::from_raw_fd(slot.fd) });
            }
        }
        self.buffers.release(&self.ring.submitter());
    }
}
