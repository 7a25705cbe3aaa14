//! Sockets that are two queues of bytes, and the engine of one shard over them.
//!
//! Each socket has a real descriptor (one end of a pair), so that what the shard drops is seen to be dropped.

use super::disk::Disk;
use super::random::Random;
use crate::ids::ConnId;
use crate::io::chunk::Chunk;
use crate::io::{Io, PurgeStep, Read, RingStats, Send, Sent};
use crate::time::Tick;
use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

/// Faults of sockets, bells and lanes, while they are on.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Percent of sends that take less than there is room for.
    pub short_sends: u64,
    /// Percent of shard runs without a cause.
    pub spurious: u64,
    /// The longest delay of a bell, a Quiet or a Writable, in microseconds.
    pub delay_us: u64,
    /// Percent of steps in which a shard stands still for a while.
    pub pauses: u64,
    /// Percent of accepts for which the process has no descriptor left: the connection waits in the backlog.
    pub accept_failures: u64,
    /// Percent of sockets for which the engine's table is full.
    pub full_tables: u64,
}

impl Faults {
    pub const NONE: Self = Self { short_sends: 0, spurious: 0, delay_us: 0, pauses: 0, accept_failures: 0, full_tables: 0 };
}

/// A TCP connection.
#[derive(Debug)]
pub struct Socket {
    pub to_server: VecDeque<u8>,
    pub to_client: VecDeque<u8>,
    /// Bytes that the server's side holds for a client that does not read.
    pub capacity: usize,
    /// The client has ended its direction.
    pub client_fin: bool,
    /// The client has reset the connection.
    pub client_reset: bool,
    /// The server has ended its direction.
    pub server_fin: bool,
    /// The server's descriptor is closed.
    pub server_closed: bool,
    /// An engine's table holds the server's descriptor: it is closed by that engine, or given up.
    held: bool,
    /// When that was; `u64::MAX` before.
    pub closed_ns: u64,
    pub opened_ns: u64,
    /// The client's own address, whoever brings it.
    pub address: IpAddr,
    /// `true` if the connection had its 101.
    pub let_in: bool,
    /// The client whose hello was sent on it, and whether that was welcomed.
    pub user: String,
    pub welcomed: bool,
    /// The other end of its descriptor, until that is known to be closed.
    peer: Option<UnixStream>,
}

/// All sockets of a world.
#[derive(Debug, Default)]
pub struct Net {
    pub sockets: Vec<Socket>,
    by_fd: BTreeMap<RawFd, usize>,
    /// Sockets whose descriptors no engine's table held when they were looked at.
    loose: Vec<usize>,
    pub now_ns: u64,
}

impl Net {
    /// A new connection: the socket and the server's end.
    pub fn connect(&mut self, capacity: usize, address: IpAddr) -> (usize, OwnedFd) {
        let (server, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let fd = OwnedFd::from(server);
        let socket = self.sockets.len();
        self.by_fd.insert(fd.as_raw_fd(), socket);
        self.loose.push(socket);
        self.sockets.push(Socket {
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            capacity,
            client_fin: false,
            client_reset: false,
            server_fin: false,
            server_closed: false,
            held: false,
            closed_ns: u64::MAX,
            opened_ns: self.now_ns,
            address,
            let_in: false,
            user: String::new(),
            welcomed: false,
            peer: Some(peer),
        });
        (socket, fd)
    }

    /// How many other connections of a kind the server may have held since this one began.
    pub fn others(&self, mine: usize, alike: impl Fn(&Socket) -> bool) -> usize {
        let since_ns = self.sockets[mine].opened_ns;
        let others = self.sockets.iter().enumerate().filter(|(at, socket)| *at != mine && socket.closed_ns >= since_ns);
        others.filter(|(_, socket)| alike(socket)).count()
    }

    /// Sees which descriptors were dropped outside the engines (a handover that was refused).
    pub fn notice_dropped(&mut self) {
        let Self { sockets, loose, now_ns, .. } = self;
        loose.retain(|at| {
            let socket = &mut sockets[*at];
            if !socket.held
                && !socket.server_closed
                && matches!(socket.peer.as_mut().map(|peer| peer.read(&mut [0; 8])), Some(Ok(0)))
            {
                socket.server_closed = true;
                socket.closed_ns = *now_ns;
            }
            if socket.server_closed {
                socket.peer = None;
            }
            !socket.held && !socket.server_closed
        });
    }
}

#[derive(Debug)]
pub struct Slot {
    pub generation: u32,
    pub socket: usize,
    pub fd: Option<OwnedFd>,
    pub mode: Read,
    /// When the shard is told that its socket is quiet.
    pub quiet_ns: Option<u64>,
    /// When it may be told that the socket takes bytes, if asked.
    pub writable_ns: Option<u64>,
    pub ended_told: bool,
}

/// The engine of one shard.
#[derive(Debug)]
pub struct Engine {
    pub slots: Vec<Slot>,
    free: Vec<usize>,
    pub backlog: VecDeque<(OwnedFd, SocketAddr)>,
    pub accepting: bool,
    pub disk: Disk,
    connections_max: usize,
}

impl Engine {
    pub fn new(connections_max: usize, disk: Disk) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), backlog: VecDeque::new(), accepting: true, disk, connections_max }
    }

    pub fn id(&self, index: usize) -> ConnId {
        ConnId { index: u32::try_from(index).unwrap(), generation: self.slots[index].generation }
    }

    fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slots.get_mut(conn.index as usize).filter(|slot| slot.generation == conn.generation && slot.fd.is_some())
    }

    fn release(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.slot(conn)?;
        let fd = slot.fd.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.index as usize);
        Some(fd)
    }

    pub fn open(&self) -> usize {
        self.slots.iter().filter(|slot| slot.fd.is_some()).count()
    }
}

/// The engine while its shard runs.
pub struct SimIo<'a> {
    pub engine: &'a mut Engine,
    pub net: &'a mut Net,
    pub random: &'a mut Random,
    pub bells: &'a mut [Option<u64>],
    pub faults: Faults,
    pub now: Tick,
    /// Contract violations of the shard towards its engine.
    pub wrong: &'a mut Vec<String>,
}

impl SimIo<'_> {
    fn later(&mut self) -> u64 {
        self.now.mono_ns + self.random.below(self.faults.delay_us * 1000 + 1)
    }

    fn send(&mut self, send: &Send<'_>) -> Sent {
        let Some(socket) = self.engine.slot(send.conn).map(|slot| slot.socket) else { return Sent::Failed(libc::EBADF) };
        let total: usize = send.parts.iter().map(|part| part.len()).sum();
        if send.parts.len() > crate::limits::SEND_PARTS_MAX {
            self.wrong.push(format!("a send of {} parts", send.parts.len()));
        }
        if total == 0 {
            self.wrong.push("an empty send".to_owned());
        }
        let short = self.random.percent(self.faults.short_sends);
        let state = &mut self.net.sockets[socket];
        if state.client_reset || state.server_fin {
            if state.server_fin {
                self.wrong.push("a send after finish".to_owned());
            }
            return Sent::Failed(libc::ECONNRESET);
        }
        let room = state.capacity.saturating_sub(state.to_client.len());
        let mut left = total.min(room);
        if short {
            left = self.random.index(left + 1);
        }
        let taken = left;
        for part in send.parts {
            let count = left.min(part.len());
            state.to_client.extend(&part[..count]);
            left -= count;
        }
        Sent::Bytes(taken)
    }
}

impl Io for SimIo<'_> {
    fn accept(&mut self, on: bool) {
        self.engine.accepting = on;
    }

    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        let is_full = self.faults.full_tables > 0 && self.random.percent(self.faults.full_tables);
        if is_full || self.engine.open() >= self.engine.connections_max {
            return Err(fd);
        }
        let socket = self.net.by_fd[&fd.as_raw_fd()];
        self.net.sockets[socket].held = true;
        let index = self.engine.free.pop().unwrap_or(self.engine.slots.len());
        let generation = self.engine.slots.get(index).map_or(1, |slot| slot.generation);
        let slot =
            Slot { generation, socket, fd: Some(fd), mode: Read::Off, quiet_ns: None, writable_ns: None, ended_told: false };
        if index == self.engine.slots.len() {
            self.engine.slots.push(slot);
        } else {
            self.engine.slots[index] = slot;
        }
        Ok(self.engine.id(index))
    }

    fn read(&mut self, conn: ConnId, mode: Read) {
        let at = self.later();
        let Some(slot) = self.engine.slot(conn) else { return };
        slot.mode = mode;
        slot.quiet_ns = (mode == Read::Off).then_some(at);
    }

    fn detach(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.engine.slot(conn)?;
        if slot.mode != Read::Off || slot.quiet_ns.is_some() || slot.writable_ns.is_some() {
            self.wrong.push("detach of a socket that the engine still works on".to_owned());
        }
        let socket = slot.socket;
        self.net.sockets[socket].held = false;
        self.net.loose.push(socket);
        self.engine.release(conn)
    }

    fn finish(&mut self, conn: ConnId) {
        if let Some(socket) = self.engine.slot(conn).map(|slot| slot.socket) {
            self.net.sockets[socket].server_fin = true;
        }
    }

    fn close(&mut self, conn: ConnId) {
        let Some(socket) = self.engine.slot(conn).map(|slot| slot.socket) else { return };
        drop(self.engine.release(conn));
        let state = &mut self.net.sockets[socket];
        state.server_closed = true;
        state.peer = None;
        state.closed_ns = self.now.mono_ns;
        // Unread input makes the kernel reset the connection, which may cost the client what was on its way.
        if !state.to_server.is_empty() && self.random.percent(50) {
            state.to_client.clear();
        }
    }

    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
        for send in batch {
            let sent = self.send(send);
            out.push(sent);
        }
    }

    fn want_write(&mut self, conn: ConnId) {
        let at = self.later();
        if let Some(slot) = self.engine.slot(conn) {
            slot.writable_ns.get_or_insert(at);
        }
    }

    fn write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64) {
        self.engine.disk.ask_write(self.random, self.now.mono_ns, (segment, at), &chunk.bytes()[part], tag);
    }

    fn sync(&mut self, segment: u64, tag: u64) {
        self.engine.disk.ask_sync(self.random, self.now.mono_ns, segment, tag);
    }

    fn read_back(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.engine.disk.ask_read(self.random, self.now.mono_ns, (segment, at), len, tag);
    }

    fn read_index(&mut self, segment: u64, at: u64, len: usize, tag: u64) {
        self.engine.disk.ask_read_index(self.random, self.now.mono_ns, (segment, at), len, tag);
    }

    fn index_segment(&mut self, number: u64) {
        self.engine.disk.ask_index(self.random, self.now.mono_ns, number);
    }

    fn prepare_segment(&mut self, number: u64) {
        self.engine.disk.ask_prepare(self.random, self.now.mono_ns, number);
    }

    fn delete_segment(&mut self, number: u64) {
        self.engine.disk.ask_delete(self.random, self.now.mono_ns, number);
    }

    fn purge(&mut self, session: u64, step: PurgeStep) {
        self.engine.disk.ask_purge(self.random, self.now.mono_ns, session, step);
    }

    fn ring_bell(&mut self, shard: usize) {
        let at = self.later();
        self.bells[shard].get_or_insert(at);
    }

    fn clock(&self) -> Tick {
        self.now
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}
