//! The native engine: one io_uring, one thread, one shard.
//!
//! SINGLE_ISSUER + DEFER_TASKRUN, multishot accept, multishot receive into provided buffers, sends that never wait. One enter a
//! turn when loaded: the enter that submits a turn's sends also runs the task work that brings the next events.
#![allow(unsafe_code)] // submission queue entries name memory by pointer; the SAFETY comments carry the argument

use super::buffers::{self, BufferRing};
use super::{ConnId, Event, Io, Next, Read, RingStats, Send, Sent, Shard};
use crate::time::Tick;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Completions handled before the shard gets its turn.
const EVENTS_PER_TURN_MAX: usize = 4096;
/// How long accepting rests after EMFILE, ENFILE, ENOBUFS or ENOMEM.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Tries of one enter that the kernel answers with EBUSY, EAGAIN or EINTR.
const ENTER_TRIES_MAX: usize = 10_000;
/// Buffers one connection may fill between two turns before it is read one receive at a time.
const BUFFERS_PER_TURN_MAX: u8 = 33;

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
}

const fn tag(op: Op, conn: ConnId) -> u64 {
    (op as u64) << OP_SHIFT | ((conn.generation & GENERATION_MASK) as u64) << 32 | conn.index as u64
}

const fn plain(op: Op, value: u32) -> u64 {
    tag(op, ConnId { index: value, generation: 0 })
}

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

/// A socket's place in the table.
#[derive(Clone, Copy)]
struct Slot {
    fd: RawFd,
    generation: u32,
    mode: Read,
    /// A receive is in the kernel.
    receiving: bool,
    /// That receive is being cancelled.
    cancelling: bool,
    /// A poll for POLLOUT is in the kernel.
    polling: bool,
    /// The shard has let go; the socket is closed when nothing of it is in the kernel.
    closing: bool,
    /// The shard waits for Quiet.
    quiet_owed: bool,
    /// It flooded: read it one receive at a time until one comes short.
    single: bool,
    /// Buffers filled since the last turn.
    buffers: u8,
}

const FREE: RawFd = -1;

/// The rings of all shards, by which they wake each other. Filled as each starts; complete after the start barrier.
#[derive(Debug)]
pub struct Bells {
    rings: Box<[AtomicI32]>,
}

impl Bells {
    /// For so many shards.
    #[must_use]
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self { rings: (0..shards).map(|_| AtomicI32::new(-1)).collect() })
    }
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// This shard's place among [`Bells`].
    pub shard: usize,
    /// Sockets at most.
    pub connections_max: usize,
    /// Receive buffers (a power of two).
    pub buffers: u16,
    /// Bytes of one.
    pub buffer_bytes: u32,
    /// How long to poll before sleeping, in microseconds.
    pub spin_us: u64,
}

/// The engine. See the module's text.
pub struct Ring {
    // Declared first: dropped before the buffers the kernel may still write to.
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
    eventfd: Arc<OwnedFd>,
    eventfd_value: Box<u64>,
    messages: Vec<libc::msghdr>,
    slices: Vec<libc::iovec>,
    started: Instant,
    stats: RingStats,
}

impl Ring {
    /// Sets up the ring on the thread that will run it, and enters it among the bells.
    ///
    /// # Errors
    /// What `io_uring_setup` or a registration answered.
    #[expect(clippy::disallowed_methods, reason = "the engine is where time comes from")]
    pub fn new(options: Options, listener: Option<TcpListener>, bells: Arc<Bells>, eventfd: Arc<OwnedFd>) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(16_384);
        if options.spin_us > 0 {
            builder.setup_taskrun_flag();
        }
        let ring: IoUring = builder.build(1024)?;
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
            eventfd,
            eventfd_value: Box::new(0),
            messages: Vec::with_capacity(crate::limits::SENDS_PER_TURN_MAX),
            slices: Vec::with_capacity(crate::limits::SENDS_PER_TURN_MAX * 2),
            started: Instant::now(),
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
            let idle = self.backlog.is_empty() && self.quiet.is_empty();
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
            if self.slot(conn).is_some_and(|slot| slot.quiet_owed && !slot.closing) {
                self.slots[conn.index as usize].quiet_owed = false;
                shard.event(self, Event::Quiet { conn }, now);
            }
        }
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
                shard.event(self, Event::Bell, now);
            }
            Some(Op::BellIn) => shard.event(self, Event::Bell, now),
            Some(Op::BellOut) => {
                if completion.result < 0 {
                    self.bells_failed.push(conn.index as usize);
                }
            }
            // A cancel's own answer says nothing that the cancelled receive's does not; sends are reaped in send_batch.
            Some(Op::Cancel | Op::Send) | None => {}
        }
    }

    fn on_received<S: Shard>(&mut self, shard: &mut S, conn: ConnId, completion: Completion, now: Tick) {
        let buffer = io_uring::cqueue::buffer_select(completion.flags);
        let more = io_uring::cqueue::more(completion.flags);
        let Some(slot) = self.slot_mut(conn) else {
            // Unreachable while slots outlive their operations; a buffer is never lost all the same.
            if let Some(id) = buffer {
                self.buffers.put_back(id);
            }
            return;
        };
        if !more {
            slot.receiving = false;
            slot.cancelling = false;
        }
        let conn = ConnId { index: conn.index, generation: slot.generation };
        let (closing, mode) = (slot.closing, slot.mode);
        if let Some(id) = buffer {
            let len = usize::try_from(completion.result).unwrap_or(0);
            if !closing && len > 0 {
                self.charge(conn, len);
                if mode == Read::Once {
                    self.slots[conn.index as usize].mode = Read::Off;
                }
                // SAFETY: the completion has just given us this id; it is put back below, after the slice's last use.
                let bytes = unsafe { self.buffers.bytes(id, len) };
                shard.event(self, Event::Received { conn, bytes }, now);
            }
            self.buffers.put_back(id);
        }
        let Some(slot) = self.slot(conn) else { return };
        if slot.closing {
            self.finish_close(conn);
            return;
        }
        let ended = match completion.result {
            0 => Some(None),
            result if result < 0 && !matches!(-result, libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {
                Some(Some(io::Error::from_raw_os_error(-result)))
            }
            _ => None,
        };
        if completion.result == -libc::ENOBUFS {
            self.stats.buffers_exhausted += 1;
        }
        if let Some(error) = ended {
            self.slots[conn.index as usize].mode = Read::Off;
            shard.event(self, Event::Ended { conn, error }, now);
        }
        if !more {
            self.after_receive(conn);
        }
    }

    /// No receive of this connection is in the kernel now: arm the next, or say that it is quiet.
    fn after_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot(conn) else { return };
        if slot.closing {
            self.finish_close(conn);
        } else if slot.mode != Read::Off && !slot.receiving {
            self.rearm.push(conn);
        } else if slot.quiet_owed {
            self.quiet.push_back(conn);
        }
    }

    /// Counts a filled buffer; a connection that fills too many between two turns is read singly until a receive comes short.
    fn charge(&mut self, conn: ConnId, len: usize) {
        let slot = &mut self.slots[conn.index as usize];
        slot.buffers = slot.buffers.saturating_add(1);
        if slot.buffers == 1 {
            self.flooded.push(conn.index);
        }
        if slot.single && len < self.options.buffer_bytes as usize {
            slot.single = false;
        } else if !slot.single && slot.buffers > BUFFERS_PER_TURN_MAX {
            slot.single = true;
            self.stats.flooding += 1;
            self.cancel_receive(conn);
        }
    }

    fn on_accepted<S: Shard>(&mut self, shard: &mut S, completion: Completion, now: Tick) {
        if !io_uring::cqueue::more(completion.flags) {
            self.accepting = false;
        }
        if completion.result < 0 {
            let errno = -completion.result;
            if errno != libc::ECANCELED {
                self.stats.accepts_failed += 1;
                if matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) {
                    self.accept_rests_until_ns = now.mono_ns + u64::try_from(ACCEPT_REST.as_nanos()).unwrap_or(u64::MAX);
                }
                shard.event(self, Event::AcceptFailed(io::Error::from_raw_os_error(errno)), now);
            }
            return;
        }
        // SAFETY: a successful accept hands us a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
        let Some(peer) = peer_of(fd.as_fd()) else { return };
        if let Ok(conn) = self.adopt(fd) {
            shard.event(self, Event::Accepted { conn, peer }, now);
        } else {
            self.stats.accepts_failed += 1;
            shard.event(self, Event::AcceptFailed(io::Error::from(io::ErrorKind::QuotaExceeded)), now);
        }
    }

    /// What the engine owes between two turns: receives and the accept to arm again, bells to ring again.
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
        while let Some(shard) = self.bells_failed.pop() {
            self.stats.bells_retried += 1;
            self.ring_bell(shard);
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
        let until = [at_ns, rests].into_iter().flatten().min();
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

    /// Polls for completions for `spin_us`; true if any came.
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
            // SAFETY: every queued entry names either memory of this struct that outlives the operation (the eventfd's value, the
            // provided buffers) or slices lent to send_batch, which returns only after all its sends completed.
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

    /// Copies what has completed to the backlog, so that the kernel's queue never fills.
    fn reap(&mut self) {
        for entry in self.ring.completion() {
            self.backlog.push_back(Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() });
        }
    }

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

    fn slot(&self, conn: ConnId) -> Option<&Slot> {
        self.slots
            .get(conn.index as usize)
            .filter(|slot| slot.fd != FREE && (slot.generation ^ conn.generation) & GENERATION_MASK == 0)
    }

    fn slot_mut(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slots
            .get_mut(conn.index as usize)
            .filter(|slot| slot.fd != FREE && (slot.generation ^ conn.generation) & GENERATION_MASK == 0)
    }

    fn arm_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        slot.receiving = true;
        let fd = types::Fd(slot.fd);
        let once = slot.mode == Read::Once || slot.single;
        let entry = if once {
            opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(buffers::GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(fd, buffers::GROUP).build()
        };
        self.push(&entry.user_data(tag(Op::Receive, conn)));
    }

    fn cancel_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.receiving && !slot.cancelling {
            slot.cancelling = true;
            let entry = opcode::AsyncCancel::new(tag(Op::Receive, conn)).build().user_data(plain(Op::Cancel, 0));
            self.push(&entry);
        }
    }

    fn arm_accept(&mut self) {
        if let Some(listener) = &self.listener {
            let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
            self.accepting = true;
            self.push(&entry.user_data(plain(Op::Accept, 0)));
        }
    }

    fn arm_eventfd(&mut self) {
        let value: *mut u64 = &raw mut *self.eventfd_value;
        let entry = opcode::Read::new(types::Fd(self.eventfd.as_raw_fd()), value.cast(), 8).build();
        self.push(&entry.user_data(plain(Op::Eventfd, 0)));
    }

    /// Closes the socket if nothing of it is in the kernel any more.
    fn finish_close(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.receiving || slot.polling {
            return;
        }
        let fd = slot.fd;
        slot.fd = FREE;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.index);
        // SAFETY: the slot owned this descriptor and has just given it up; no operation on it is in the kernel.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
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
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.options.connections_max => {
                let Ok(index) = u32::try_from(self.slots.len()) else { return Err(fd) };
                self.slots.push(Slot {
                    fd: FREE,
                    generation: 1,
                    mode: Read::Off,
                    receiving: false,
                    cancelling: false,
                    polling: false,
                    closing: false,
                    quiet_owed: false,
                    single: false,
                    buffers: 0,
                });
                index
            }
            None => return Err(fd),
        };
        let slot = &mut self.slots[index as usize];
        *slot = Slot {
            fd: std::os::fd::IntoRawFd::into_raw_fd(fd),
            generation: slot.generation,
            mode: Read::Off,
            receiving: false,
            cancelling: false,
            polling: false,
            closing: false,
            quiet_owed: false,
            single: false,
            buffers: slot.buffers,
        };
        Ok(ConnId { index, generation: slot.generation })
    }

    fn read(&mut self, conn: ConnId, mode: Read) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.closing {
            return;
        }
        slot.mode = mode;
        let receiving = slot.receiving;
        match mode {
            Read::Off => {
                slot.quiet_owed = true;
                if receiving {
                    self.cancel_receive(conn);
                } else {
                    self.quiet.push_back(conn);
                }
            }
            Read::Once | Read::Stream => {
                slot.quiet_owed = false;
                if !receiving {
                    self.arm_receive(conn);
                }
            }
        }
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.slot_mut(conn)?;
        assert!(!slot.receiving && !slot.polling, "detach of a socket that the kernel still works on");
        let fd = slot.fd;
        slot.fd = FREE;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.index);
        // SAFETY: the slot owned this descriptor and has just given it up.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn finish(&mut self, conn: ConnId) {
        if let Some(slot) = self.slot(conn) {
            // SAFETY: the slot owns the descriptor, which is open.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            // A socket the peer has reset is shut down already.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.closing {
            return;
        }
        slot.closing = true;
        slot.mode = Read::Off;
        if slot.receiving || slot.polling {
            // SAFETY: the slot owns the descriptor, which is open.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            // Ends what is in the kernel: a receive completes with 0, a poll with POLLHUP.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        } else {
            self.finish_close(conn);
        }
    }

    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
        out.resize(batch.len(), Sent::Failed(libc::EBADF));
        self.slices.clear();
        self.messages.clear();
        for send in batch.iter().filter(|send| send.parts.len() > 1) {
            self.slices.extend(
                send.parts.iter().map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
            );
            // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iovlen = send.parts.len();
            self.messages.push(message);
        }
        // Only now do the vectors keep still.
        let mut first = 0;
        for message in &mut self.messages {
            let len = message.msg_iovlen;
            message.msg_iov = self.slices[first..first + len].as_mut_ptr();
            first += len;
        }
        // DONTWAIT ends each send while it is submitted. With WAITALL a short one counts as failed, so that successes need no
        // completion: the kernel posts, and this code reads, only what went otherwise.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut scattered = 0;
        for (index, send) in batch.iter().enumerate() {
            let fd = self.slot(send.conn).filter(|slot| !slot.closing).map(|slot| types::Fd(slot.fd));
            let many = send.parts.len() > 1;
            let message = scattered;
            scattered += usize::from(many);
            let (Some(fd), Ok(number)) = (fd, u32::try_from(index)) else { continue };
            let entry = if many {
                opcode::SendMsg::new(fd, &raw const self.messages[message]).flags(flags.cast_unsigned()).build()
            } else {
                let part = send.parts.first().copied().unwrap_or_default();
                let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
                opcode::Send::new(fd, part.as_ptr(), len).flags(flags).build()
            };
            out[index] = Sent::Bytes(send.parts.iter().map(|part| part.len()).sum());
            self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(plain(Op::Send, number)));
        }
        self.collect_sends(out);
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

    fn ring_bell(&mut self, shard: usize) {
        let Some(target) = self.bells.rings.get(shard) else { return };
        let fd = target.load(Ordering::Acquire);
        let Ok(number) = u32::try_from(shard) else { return };
        if fd < 0 {
            self.bells_failed.push(shard);
            return;
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

impl Ring {
    /// Submits the queued sends and fetches the results of those that did not take everything. MSG_DONTWAIT completes each while it
    /// is submitted, so that the kernel is done with the callers' memory on return.
    fn collect_sends(&mut self, out: &mut [Sent]) {
        if let Err(error) = self.enter(0) {
            panic!("io_uring_enter failed for good: {error}");
        }
        let backlog = &mut self.backlog;
        // Sends that a full queue pushed out early may have been reaped with other completions.
        backlog.retain(|completion| !settle(completion, out));
        for entry in self.ring.completion() {
            let completion = Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() };
            if !settle(&completion, out) {
                backlog.push_back(completion);
            }
        }
    }
}

/// Writes a send's result to its place; false if it is no send.
fn settle(completion: &Completion, out: &mut [Sent]) -> bool {
    let (op, conn) = untag(completion.user_data);
    if op != Some(Op::Send) {
        return false;
    }
    if let Some(place) = out.get_mut(conn.index as usize) {
        *place = match usize::try_from(completion.result) {
            Ok(bytes) => Sent::Bytes(bytes),
            Err(_) if completion.result == -libc::EAGAIN => Sent::Bytes(0),
            Err(_) => Sent::Failed(-completion.result),
        };
    }
    true
}

fn peer_of(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    // Fails when the peer has reset already: such a socket is of no use.
    let address = rustix::net::getpeername(fd).ok().flatten()?;
    SocketAddr::try_from(address).ok()
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.bells.rings[self.options.shard].store(-1, Ordering::Release);
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

/// A listener of its own for each shard: SO_REUSEPORT spreads accepts over them; what accepted sockets inherit is set once here.
///
/// # Errors
/// What `bind` or `listen` answered; EADDRINUSE is for the caller to retry (a killed ring frees its port late).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    set_not_sent_lowat(&socket, crate::limits::NOT_SENT_LOWAT_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn set_not_sent_lowat(socket: &socket2::Socket, bytes: u32) -> io::Result<()> {
    // SAFETY: the option takes an int, whose address and size are given; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
