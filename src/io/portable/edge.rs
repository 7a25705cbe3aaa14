//! The shard's interface to the world: the socket table, sends, bells and the log's files.

use super::Options;
use super::disk::Threads;
use crate::io::chunk::Chunk;
use crate::io::segments::Disk;
use crate::io::{ConnId, Io, PurgeStep, Read, RingStats, Send, Sent};
use crate::limits::SEND_PARTS_MAX;
use crate::time::Tick;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Pause of accepting after a failure that is not a single connection's: EMFILE, ENFILE, ENOBUFS, ENOMEM and others.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes that one connection may bring between two turns, before the others have had theirs.
const RECEIVE_BYTES_PER_TURN_MAX: usize = 128 * 1024;
/// Receives of all connections together before the shard gets its turn.
const RECEIVES_PER_TURN_MAX: usize = 4096;

/// A socket's place in the table.
struct Slot {
    /// `None` if the place is free.
    fd: Option<OwnedFd>,
    generation: u32,
    mode: Read,
    /// `true` while the shard waits for Quiet.
    quiet_owed: bool,
    /// `true` while the shard waits for Writable.
    write_wanted: bool,
    /// `true` while the task runs; it will look here again before it waits.
    task_runs: bool,
    /// The waker of the task.
    waker: Option<Waker>,
    /// Number of a turn, and bytes received in it.
    received: (u64, usize),
}

/// The events that a connection's task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// The result of a receive.
#[derive(Debug)]
pub(super) enum Got {
    /// Bytes received; the socket may have more.
    Bytes(usize),
    /// Bytes received, and the socket is empty now.
    Last(usize),
    /// The end of the stream, or an error.
    End(Option<io::Error>),
    /// Nothing, for now.
    Nothing,
    /// The shard does not read the connection.
    Unwanted,
    /// The connection has had its share of this turn.
    TooMuch,
}

/// See the module's text.
pub struct Edge {
    pub(super) options: Options,
    pub(super) listener: Option<TcpListener>,
    accept_wanted: bool,
    accept_rests_until_ns: u64,
    accept_waker: Option<Waker>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Sockets that have no task yet, each with a duplicate of its descriptor for the task to watch.
    newcomers: Vec<(ConnId, OwnedFd)>,
    quiet: VecDeque<ConnId>,
    bells: Arc<[Arc<OwnedFd>]>,
    bell_waker: Option<Waker>,
    /// `true` if this shard's own bell was rung and not heard yet.
    rung: bool,
    /// Tasks to be woken when the bell is heard.
    again: Vec<Waker>,
    turn_waker: Option<Waker>,
    turn_number: u64,
    /// The clocks at the first event since the last turn.
    now: Option<Tick>,
    /// Receives since the last turn.
    receives: usize,
    tasks: usize,
    ending: bool,
    started: Instant,
    pub(super) disk: Threads,
    pub(super) stats: RingStats,
}

impl Edge {
    #[expect(clippy::disallowed_methods, reason = "the engine is where time comes from")]
    pub(super) fn new(
        options: Options,
        listener: Option<TcpListener>,
        bells: Arc<[Arc<OwnedFd>]>,
        disk: Option<Disk>,
    ) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let disk = Threads::start(options.shard, disk, &bells[options.shard])?;
        Ok(Self {
            options,
            listener,
            accept_wanted: false,
            accept_rests_until_ns: 0,
            accept_waker: None,
            slots: Vec::new(),
            free: Vec::new(),
            newcomers: Vec::new(),
            quiet: VecDeque::new(),
            bells,
            bell_waker: None,
            rung: false,
            again: Vec::new(),
            turn_waker: None,
            turn_number: 0,
            now: None,
            receives: 0,
            tasks: 0,
            ending: false,
            started: Instant::now(),
            disk,
            stats: RingStats::default(),
        })
    }

    pub(super) const fn started(&self) -> Instant {
        self.started
    }

    #[expect(clippy::disallowed_methods, reason = "the engine is where time comes from")]
    #[expect(clippy::cast_possible_truncation, reason = "584 years of nanoseconds, 584 million years of milliseconds")]
    fn read_clocks(&self) -> Tick {
        Tick {
            mono_ns: self.started.elapsed().as_nanos() as u64,
            wall_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        }
    }

    /// The clocks at the first event since the last turn: one tick for all events, and for the turn.
    pub(super) fn now(&mut self) -> Tick {
        *self.now.insert(self.now.unwrap_or_else(|| self.read_clocks()))
    }

    // Turns.

    /// Begins a run: its tasks are counted from here on, and sockets of an earlier run need new ones.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.ending = false;
        self.turn_waker = None;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let conn = ConnId { index: u32::try_from(index).unwrap_or(u32::MAX), generation: slot.generation };
            if let Some(fd) = &slot.fd
                && !self.newcomers.iter().any(|(newcomer, _)| *newcomer == conn)
            {
                let watched = fd.try_clone()?;
                self.newcomers.push((conn, watched));
            }
        }
        Ok(())
    }

    /// The next socket that needs a task.
    pub(super) fn newcomer(&mut self) -> Option<(ConnId, OwnedFd)> {
        self.newcomers.pop()
    }

    pub(super) const fn task_begins(&mut self) {
        self.tasks += 1;
    }

    pub(super) fn task_ends(&mut self) {
        self.tasks -= 1;
        self.wake_turn();
    }

    /// Returns `true` if no task is left. If there are some, the main future is polled when the next one ends.
    pub(super) fn tasks_are_over(&mut self, cx: &Context<'_>) -> bool {
        self.turn_waker = Some(cx.waker().clone());
        self.tasks == 0
    }

    /// Begins a turn: all that the tasks reported came before it.
    pub(super) fn turn_begins(&mut self, cx: &Context<'_>) {
        if self.turn_waker.is_none() {
            self.turn_waker = Some(cx.waker().clone());
        }
        self.turn_number += 1;
        self.receives = 0;
    }

    pub(super) const fn turn_ends(&mut self) {
        self.now = None;
    }

    pub(super) fn wake_turn(&self) {
        if let Some(waker) = &self.turn_waker {
            waker.wake_by_ref();
        }
    }

    /// Ends the tasks, because the shard has ended.
    pub(super) fn end(&mut self) {
        self.ending = true;
        self.newcomers.clear();
        let mut wakers = std::mem::take(&mut self.again);
        wakers.extend(self.accept_waker.take().into_iter().chain(self.bell_waker.take()));
        wakers.extend(self.slots.iter_mut().filter_map(|slot| slot.waker.take()));
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) const fn is_ending(&self) -> bool {
        self.ending
    }

    // Bells.

    /// The descriptor of this shard's bell.
    pub(super) fn bell(&self) -> &Arc<OwnedFd> {
        &self.bells[self.options.shard]
    }

    /// Notes that the bell's task waits.
    pub(super) fn bell_waits(&mut self, cx: &Context<'_>) {
        self.bell_waker.get_or_insert_with(|| cx.waker().clone());
    }

    /// Has the shard called again after the kernel was asked, by ringing its own bell.
    pub(super) fn come_again(&mut self) {
        if !std::mem::replace(&mut self.rung, true) {
            ring(self.bell());
        }
    }

    /// Clears the bell and wakes those who waited for it. Returns `true` if somebody else has rung it.
    pub(super) fn bell_heard(&mut self) -> bool {
        let mut sound = [0; 8];
        // If it is empty, this does not block: the eventfd is non-blocking.
        let _ = rustix::io::read(self.bell(), &mut sound);
        let own = u64::from(std::mem::take(&mut self.rung));
        self.again.drain(..).for_each(Waker::wake);
        self.disk.take_answers(&mut self.stats);
        u64::from_ne_bytes(sound) > own
    }

    /// The next Quiet that the shard is owed; the kernel need not be asked for it.
    pub(super) fn quiet(&mut self) -> Option<ConnId> {
        loop {
            let conn = self.quiet.pop_front()?;
            // The connection may have been read again since it was put here.
            if let Some(slot) = self.slot_mut(conn)
                && std::mem::take(&mut slot.quiet_owed)
            {
                return Some(conn);
            }
        }
    }

    /// Returns `true` if an event is due that no task will bring.
    pub(super) fn owes(&self) -> bool {
        !self.quiet.is_empty() || self.disk.owes()
    }

    // Accepting.

    /// Returns `true` if the accepting task is to wait for connections; else the task is woken when it is to.
    pub(super) fn accepts(&mut self, cx: &Context<'_>) -> bool {
        self.accept_waker.get_or_insert_with(|| cx.waker().clone());
        let now = self.now();
        self.accept_wanted && now.mono_ns >= self.accept_rests_until_ns
    }

    /// Accepts a connection; `None` if none waits.
    pub(super) fn accept_one(&mut self) -> Option<Result<(ConnId, SocketAddr), io::Error>> {
        let failed = match self.listener.as_ref()?.accept() {
            Ok((socket, peer)) => match self.add_socket(socket.into()) {
                Ok(conn) => return Some(Ok((conn, peer))),
                Err((_, error)) => error,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => error,
        };
        self.stats.accepts_failed += 1;
        // A connection that went before it was accepted is no reason to pause, and a full table makes no accept fail; any other
        // error would come again at once.
        let passing = [Errno::CONNABORTED, Errno::PROTO, Errno::INTR].map(Errno::raw_os_error);
        if failed.raw_os_error().is_some_and(|errno| !passing.contains(&errno)) {
            self.accept_rests_until_ns = self.now().mono_ns + u64::try_from(ACCEPT_REST.as_nanos()).unwrap_or(u64::MAX);
        }
        Some(Err(failed))
    }

    /// The time at which accepting goes on; `None` if it does not pause.
    pub(super) fn accept_rests(&mut self, now: Tick) -> Option<u64> {
        if !self.accept_wanted || self.accept_rests_until_ns == 0 {
            return None;
        }
        if now.mono_ns < self.accept_rests_until_ns {
            return Some(self.accept_rests_until_ns);
        }
        self.accept_rests_until_ns = 0;
        self.wake_acceptor();
        None
    }

    fn wake_acceptor(&self) {
        if let Some(waker) = &self.accept_waker {
            waker.wake_by_ref();
        }
    }

    /// Lets the accepting task go on after the kernel was asked.
    pub(super) fn accept_again(&mut self) {
        self.again.extend(self.accept_waker.clone());
        self.come_again();
    }

    fn add_socket(&mut self, fd: OwnedFd) -> Result<ConnId, (OwnedFd, io::Error)> {
        let index = match self.free.last() {
            Some(index) => *index,
            None if self.slots.len() < self.options.connections_max => u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
            None => return Err((fd, io::Error::from(io::ErrorKind::QuotaExceeded))),
        };
        let watched = match fd.try_clone() {
            Ok(watched) => watched,
            Err(error) => return Err((fd, error)),
        };
        if self.free.pop().is_none() {
            self.slots.push(Slot::new(1));
        }
        let slot = &mut self.slots[index as usize];
        *slot = Slot { fd: Some(fd), ..Slot::new(slot.generation) };
        let conn = ConnId { index, generation: slot.generation };
        self.newcomers.push((conn, watched));
        Ok(conn)
    }

    // Connections.

    fn slot(&self, conn: ConnId) -> Option<&Slot> {
        self.slots.get(conn.index as usize).filter(|slot| slot.fd.is_some() && slot.generation == conn.generation)
    }

    fn slot_mut(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slots.get_mut(conn.index as usize).filter(|slot| slot.fd.is_some() && slot.generation == conn.generation)
    }

    /// The events that a connection's task is to wait for; `None` if it is to end. The task counts as running from here on.
    pub(super) fn wants(&mut self, conn: ConnId, cx: &Context<'_>) -> Option<Wants> {
        if self.ending {
            return None;
        }
        let slot = self.slot_mut(conn)?;
        slot.task_runs = true;
        slot.waker.get_or_insert_with(|| cx.waker().clone());
        Some(Wants { read: slot.mode != Read::Off, write: slot.write_wanted })
    }

    /// Notes that a connection's task waits now: from here on it is woken for changes.
    pub(super) fn task_waits(&mut self, conn: ConnId) {
        if let Some(slot) = self.slot_mut(conn) {
            slot.task_runs = false;
        }
    }

    /// Receives once, as the connection's mode and its share of the turn allow.
    pub(super) fn receive(&mut self, conn: ConnId, buffer: &mut [u8]) -> Got {
        let (turn, receives) = (self.turn_number, self.receives);
        let Some(slot) = self.slot_mut(conn).filter(|slot| slot.mode != Read::Off) else { return Got::Unwanted };
        if slot.received.0 != turn {
            slot.received = (turn, 0);
        }
        if slot.received.1 >= RECEIVE_BYTES_PER_TURN_MAX || receives >= RECEIVES_PER_TURN_MAX {
            let waker = slot.waker.clone();
            self.again.extend(waker);
            self.stats.flooding += 1;
            self.come_again();
            return Got::TooMuch;
        }
        let Some(fd) = &slot.fd else { return Got::Unwanted };
        let got = loop {
            match rustix::net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => break Got::End(None),
                Ok((bytes, _)) if bytes < buffer.len() => break Got::Last(bytes),
                Ok((bytes, _)) => break Got::Bytes(bytes),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Got::Nothing,
                Err(errno) => break Got::End(Some(errno.into())),
            }
        };
        match got {
            Got::Bytes(bytes) | Got::Last(bytes) => {
                slot.received.1 += bytes;
                if slot.mode == Read::Once {
                    slot.mode = Read::Off;
                }
            }
            Got::End(_) => slot.mode = Read::Off,
            Got::Nothing | Got::Unwanted | Got::TooMuch => {}
        }
        self.receives += 1;
        got
    }

    /// Notes that a socket takes bytes again. Returns `true` if the shard waits for that.
    pub(super) fn takes_bytes(&mut self, conn: ConnId) -> bool {
        self.slot_mut(conn).is_some_and(|slot| std::mem::take(&mut slot.write_wanted))
    }

    /// Ends the reading of a socket that cannot be watched.
    pub(super) fn unwatched(&mut self, conn: ConnId) -> bool {
        self.slot_mut(conn).is_some_and(|slot| {
            slot.mode = Read::Off;
            true
        })
    }

    /// Frees a place. The connection's task ends.
    fn release(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.slot_mut(conn)?;
        let fd = slot.fd.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        let waker = slot.waker.take().filter(|_| !slot.task_runs);
        self.free.push(conn.index);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(fd)
    }

    /// Waits until no operation on a file is under way, for some seconds at most.
    pub(super) fn finish_disk(&mut self) {
        self.disk.finish(&mut self.stats);
    }

    #[cfg(test)]
    pub(super) fn sockets(&self) -> usize {
        self.slots.iter().filter(|slot| slot.fd.is_some()).count()
    }
}

impl Slot {
    const fn new(generation: u32) -> Self {
        Self {
            fd: None,
            generation,
            mode: Read::Off,
            quiet_owed: false,
            write_wanted: false,
            task_runs: false,
            waker: None,
            received: (0, 0),
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.as_ref().filter(|_| !self.task_runs) {
            waker.wake_by_ref();
        }
    }

    fn send(&self, parts: &[&[u8]]) -> Sent {
        let Some(fd) = &self.fd else { return Sent::Failed(Errno::BADF.raw_os_error()) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let sent = match parts {
                [] => return Sent::Bytes(0),
                [part] => rustix::net::send(fd, part, flags),
                parts => {
                    let mut slices = [IoSlice::new(&[]); SEND_PARTS_MAX];
                    for (slice, part) in slices.iter_mut().zip(parts) {
                        *slice = IoSlice::new(part);
                    }
                    let slices = &slices[..parts.len().min(SEND_PARTS_MAX)];
                    rustix::net::sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), flags)
                }
            };
            return match sent {
                Ok(bytes) => Sent::Bytes(bytes),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Sent::Bytes(0),
                Err(errno) => Sent::Failed(errno.raw_os_error()),
            };
        }
    }
}

fn ring(bell: &OwnedFd) {
    // Full (2^64 - 2 unread rings) is as good as rung.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

impl Io for Edge {
    fn accept(&mut self, on: bool) {
        self.accept_wanted = on;
        if on {
            self.wake_acceptor();
        }
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        self.add_socket(fd).map_err(|(fd, _)| fd)
    }

    fn read(&mut self, conn: ConnId, mode: Read) {
        let Some(slot) = self.slot_mut(conn) else { return };
        slot.mode = mode;
        slot.quiet_owed = mode == Read::Off;
        if mode == Read::Off {
            // No receive is ever in the kernel.
            self.quiet.push_back(conn);
        } else {
            slot.wake();
        }
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        self.release(conn)
    }

    fn finish(&mut self, conn: ConnId) {
        if let Some(fd) = self.slot(conn).and_then(|slot| slot.fd.as_ref()) {
            // A socket the peer has reset is shut down already.
            let _ = rustix::net::shutdown(fd, Shutdown::Write);
        }
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(fd) = self.release(conn) {
            // The duplicate is closed when the task has run. The shutdown tells the peer at once, and ends a poll of it.
            let _ = rustix::net::shutdown(&fd, Shutdown::Both);
        }
    }

    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
        out.extend(
            batch
                .iter()
                .map(|send| self.slot(send.conn).map_or(Sent::Failed(Errno::BADF.raw_os_error()), |slot| slot.send(send.parts))),
        );
    }

    fn want_write(&mut self, conn: ConnId) {
        if let Some(slot) = self.slot_mut(conn) {
            slot.write_wanted = true;
            slot.wake();
        }
    }

    fn write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64) {
        self.disk.write(segment, at, &chunk.bytes()[part], tag);
    }

    fn sync(&mut self, segment: u64, tag: u64) {
        self.disk.sync(segment, tag);
    }

    fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.disk.read_back((segment, false), at, len, tag, &mut self.stats);
    }

    fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.disk.read_back((segment, true), at, len, tag, &mut self.stats);
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
        if let Some(bell) = self.bells.get(shard) {
            ring(bell);
        }
    }

    fn clock(&self) -> Tick {
        self.read_clocks()
    }

    fn stats(&self) -> RingStats {
        self.stats
    }
}
