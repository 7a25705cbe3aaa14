//! The floor's loop: one `io_uring_enter` a turn submits the turn's sends and waits for what comes next.
//!
//! Every send is MSG_DONTWAIT, so it is over when the enter returns, and only one that fell short posts a completion: MSG_WAITALL
//! makes a short count a failure, and successes are skipped. So the same enter may sleep, and still wakes at once for a short
//! send. (Waiting for as many completions as sends and one more would sleep on a short send's rest until somebody else spoke.)
//! What a short send leaves is kept and goes out when the socket is writable.
#![allow(unsafe_code)]

use super::Kind;
use super::buffers::{Buffers, GROUP};
use super::frames::{self, Take};
use super::pairs::{Pair, Pairs};
use crate::wire;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A bare server's bound on what it keeps for one reader.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// Bytes of all receive buffers together.
const BUFFERS_BYTES: u32 = 8 << 20;

const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const POLL: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;

/// A socket. Small, because `idle` reads the floor's memory a connection from it.
#[expect(clippy::box_collection, reason = "16 bytes less a connection for what most never have")]
#[derive(Default)]
struct Connection {
    fd: RawFd,
    /// The pair, for the relay.
    pair: Option<Pair>,
    live: bool,
    upgraded: bool,
    receiving: bool,
    sending: bool,
    polling: bool,
    closing: bool,
    /// Received bytes of an incomplete frame (or HTTP head).
    partial: Option<Box<Vec<u8>>>,
    /// To be sent once the socket is free.
    pending: Option<Box<Vec<u8>>>,
}

const _: () = assert!(size_of::<Connection>() == 32);

/// A send of the turn: its connection, and its bytes, which stay in place until its completion is read.
#[derive(Clone, Copy)]
struct Sent {
    connection: u32,
    start: *const u8,
    bytes: usize,
}

/// The output of a turn, and its receivers: a fan-out's frames, for all but their senders; a relay's answers, each for its
/// connection.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    parts: Vec<(u32, std::ops::Range<usize>)>,
}

pub struct Server {
    // Dropped before the buffers: fields drop in order.
    ring: IoUring,
    buffers: Buffers,
    listener: OwnedFd,
    kind: Kind,
    accepting: bool,
    connections: Vec<Connection>,
    free: Vec<u32>,
    /// Closed in this turn: free once the turn's batch, which may name them, is sent.
    freed: Vec<u32>,
    pairs: Pairs,
    completions: Vec<(u64, i32, u32)>,
    sent: Vec<Sent>,
    sent_before: Vec<Sent>,
    /// Connections whose bytes, or whose end, wait for a send of the same turn to be over.
    deferred: Vec<u32>,
    lent: Vec<u16>,
    lent_before: Vec<u16>,
    owned: Vec<Vec<u8>>,
    owned_before: Vec<Vec<u8>>,
    rearm: Vec<u32>,
    batch: Batch,
    batch_before: Batch,
}

impl Server {
    pub fn new(kind: Kind, listen: SocketAddr, buffer_bytes: u32) -> io::Result<(Self, SocketAddr)> {
        let listener = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        // Inherited by accepted sockets: no setsockopt a connection.
        listener.set_tcp_nodelay(true)?;
        listener.bind(&listen.into())?;
        listener.listen(4096)?;
        let bound = listener.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the listener has no inet address"))?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(65_536)
            .build(32_768)?;
        let each_bytes = buffer_bytes.clamp(1024, 1 << 20).next_power_of_two();
        let count = (BUFFERS_BYTES / each_bytes).clamp(64, 4096).next_power_of_two();
        let buffers = Buffers::register(&ring, u16::try_from(count).unwrap_or(4096), each_bytes)?;
        let server = Self {
            ring,
            buffers,
            listener: listener.into(),
            kind,
            accepting: false,
            connections: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            pairs: Pairs::new(),
            completions: Vec::new(),
            sent: Vec::new(),
            sent_before: Vec::new(),
            deferred: Vec::new(),
            lent: Vec::new(),
            lent_before: Vec::new(),
            owned: Vec::new(),
            owned_before: Vec::new(),
            rearm: Vec::new(),
            batch: Batch::default(),
            batch_before: Batch::default(),
        };
        Ok((server, bound))
    }

    /// Serves. Returns why it stopped.
    pub fn run(&mut self) -> io::Error {
        self.accept();
        loop {
            // Deferred work waits for nothing but the sends that this very enter makes.
            match self.ring.submit_and_wait(usize::from(self.deferred.is_empty())) {
                Ok(_) => self.turn(),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return error,
            }
        }
    }

    fn turn(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        std::mem::swap(&mut self.sent, &mut self.sent_before);
        std::mem::swap(&mut self.lent, &mut self.lent_before);
        std::mem::swap(&mut self.owned, &mut self.owned_before);
        std::mem::swap(&mut self.batch, &mut self.batch_before);
        self.batch.bytes.clear();
        self.batch.parts.clear();
        self.settle_sends(&completions);
        for (user_data, result, flags) in completions.drain(..) {
            let index = (user_data & u64::from(u32::MAX)) as u32;
            match user_data & KIND {
                ACCEPT => self.on_accept(result, flags),
                RECEIVE => self.on_receive(index, result, flags),
                POLL => self.on_writable(index),
                _ => {}
            }
        }
        self.completions = completions;
        if !self.batch.parts.is_empty() {
            if self.kind == Kind::Relay { self.answer() } else { self.fan_out() }
        }
        self.free.append(&mut self.freed);
        // The sends of the previous turn are over, so the kernel reads nothing of theirs any more.
        self.sent_before.clear();
        self.owned_before.clear();
        for id in self.lent_before.drain(..) {
            self.buffers.give(id);
        }
        self.buffers.publish();
        while let Some(index) = self.rearm.pop() {
            self.receive(index);
        }
    }

    /// Settles the sends of the previous turn: those that fell short have a completion, all others are done.
    fn settle_sends(&mut self, completions: &[(u64, i32, u32)]) {
        for (user_data, result, _) in completions.iter().filter(|(user_data, ..)| user_data & KIND == SEND) {
            self.on_short((user_data & u64::from(u32::MAX)) as usize, *result);
        }
        for slot in 0..self.sent_before.len() {
            let Sent { connection: index, bytes, .. } = self.sent_before[slot];
            if bytes > 0 {
                let connection = &mut self.connections[index as usize];
                connection.sending = false;
                if connection.closing && connection.pending.is_none() {
                    self.cut(index);
                }
            }
        }
        for index in std::mem::take(&mut self.deferred) {
            self.flush(index);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what an entry points to (provided buffers, the turn's batch and owned vectors) outlives its completion:
        // all of it is kept until the completions of the next turn are read.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // A full queue goes out early; its completions wait in the ring. An error here is met again by `run`.
            let _ = self.ring.submit();
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(&entry.user_data(ACCEPT));
        self.accepting = true;
    }

    fn on_accept(&mut self, result: i32, flags: u32) {
        if result >= 0 {
            let fresh = Connection { fd: result, live: true, ..Connection::default() };
            let index = if let Some(index) = self.free.pop() {
                self.connections[index as usize] = fresh;
                index
            } else {
                self.connections.push(fresh);
                u32::try_from(self.connections.len() - 1).expect("the kernel has fewer sockets than 2^32")
            };
            self.receive(index);
        }
        if !cqueue::more(flags) {
            self.accepting = false;
            // Out of descriptors: the next socket that is closed starts it again.
            if result >= 0 || !matches!(-result, libc::EMFILE | libc::ENFILE) {
                self.accept();
            }
        }
    }

    fn receive(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        connection.receiving = true;
        let entry = opcode::RecvMulti::new(types::Fd(connection.fd), GROUP).build();
        self.push(&entry.user_data(RECEIVE | u64::from(index)));
    }

    fn on_receive(&mut self, index: u32, result: i32, flags: u32) {
        if result > 0
            && let (Some(id), Ok(filled)) = (cqueue::buffer_select(flags), usize::try_from(result))
        {
            self.on_bytes(index, id, filled);
        }
        if !cqueue::more(flags) {
            self.connections[index as usize].receiving = false;
            if result > 0 || result == -libc::ENOBUFS {
                self.rearm.push(index);
            } else {
                self.connections[index as usize].closing = true;
                self.release(index);
            }
        }
    }

    fn on_bytes(&mut self, index: u32, id: u16, filled: usize) {
        let connection = &mut self.connections[index as usize];
        if connection.closing {
            self.lent.push(id);
            return;
        }
        let bytes = self.buffers.filled(id, filled);
        if connection.upgraded && connection.partial.is_none() && self.kind != Kind::Fanout {
            let answers_at = self.batch.bytes.len();
            let turned = match self.kind {
                Kind::Relay => frames::relay(bytes, &mut self.batch.bytes),
                _ => frames::turn(bytes, Take::All),
            };
            match turned {
                Ok(turned) => {
                    if turned.rest_at < bytes.len() {
                        connection.partial = Some(Box::new(bytes[turned.rest_at..].to_vec()));
                    }
                    connection.closing = turned.closing;
                    let out = &bytes[turned.out];
                    let (start, length) = (out.as_ptr(), out.len());
                    self.lent.push(id);
                    if let Some(to) = self.bound_for(index, answers_at)
                        && length > 0
                    {
                        self.send(to, start, length);
                    }
                }
                Err(_) => {
                    self.lent.push(id);
                    self.cut(index);
                }
            }
            return;
        }
        let mut gathered = connection.partial.take().map_or_else(Vec::new, |partial| *partial);
        gathered.extend_from_slice(bytes);
        self.lent.push(id);
        self.on_gathered(index, gathered);
    }

    /// The receiver of an echo's or a relay's frames of `index`; books the relay's answers to it, those from `answers_at` on.
    fn bound_for(&mut self, index: u32, answers_at: usize) -> Option<u32> {
        if self.kind != Kind::Relay {
            return Some(index);
        }
        let answers = answers_at..self.batch.bytes.len();
        if !answers.is_empty() {
            self.batch.parts.push((index, answers));
        }
        let peer = self.pairs.peer(self.connections[index as usize].pair?, index)?;
        // Nothing follows a close frame, and a connection that was cut takes nothing.
        (!self.connections[peer as usize].closing).then_some(peer)
    }

    /// The path for all but whole frames of an echo or a relay: the upgrade, cut frames, and the fan-out's few senders.
    fn on_gathered(&mut self, index: u32, mut gathered: Vec<u8>) {
        if !self.connections[index as usize].upgraded {
            let Some(end) = wire::http_head_end(&gathered) else {
                self.connections[index as usize].partial = Some(Box::new(gathered));
                return;
            };
            self.upgrade(index, &gathered[..end]);
            gathered.drain(..end);
            if gathered.is_empty() || self.connections[index as usize].closing {
                return;
            }
        }
        let rest_at = match self.kind {
            Kind::Echo | Kind::Relay => {
                let answers_at = self.batch.bytes.len();
                let turned = match self.kind {
                    Kind::Relay => frames::relay(&mut gathered, &mut self.batch.bytes),
                    _ => frames::turn(&mut gathered, Take::All),
                };
                let Ok(turned) = turned else { return self.cut(index) };
                self.connections[index as usize].closing = turned.closing;
                if let Some(to) = self.bound_for(index, answers_at)
                    && !turned.out.is_empty()
                {
                    self.send_owned(to, gathered[turned.out].to_vec());
                }
                turned.rest_at
            }
            Kind::Fanout => {
                let mut copy = gathered.clone();
                match (frames::turn(&mut copy, Take::Control), frames::turn(&mut gathered, Take::Data)) {
                    (Ok(control), Ok(data)) => {
                        self.connections[index as usize].closing = control.closing;
                        if !control.out.is_empty() {
                            self.send_owned(index, copy[control.out].to_vec());
                        }
                        if !data.out.is_empty() {
                            let start = self.batch.bytes.len();
                            self.batch.bytes.extend_from_slice(&gathered[data.out]);
                            self.batch.parts.push((index, start..self.batch.bytes.len()));
                        }
                        data.rest_at
                    }
                    _ => return self.cut(index),
                }
            }
        };
        if rest_at < gathered.len() {
            gathered.drain(..rest_at);
            self.connections[index as usize].partial = Some(Box::new(gathered));
        }
    }

    /// Answers an upgrade request; a refused connection is closing.
    fn upgrade(&mut self, index: u32, head: &[u8]) {
        let head = std::str::from_utf8(head).unwrap_or_default();
        let Some(key) = wire::http_header(head, "sec-websocket-key") else { return self.cut(index) };
        let connection = &mut self.connections[index as usize];
        if self.kind == Kind::Relay {
            match self.pairs.join(head, index) {
                Ok(pair) => connection.pair = Some(pair),
                Err(refused) => {
                    connection.closing = true;
                    let status = refused.status();
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    return self.send_owned(index, answer.into_bytes());
                }
            }
        }
        connection.upgraded = true;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            wire::accept_value(key)
        );
        self.send_owned(index, answer.into_bytes());
    }

    /// A single send for each receive: the acks of its messages, its pongs, and the echo of its close.
    fn answer(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        for (index, part) in &batch.parts {
            // Also if it is closing, since the echo of its close is one of these.
            if self.connections[*index as usize].live {
                let answers = &batch.bytes[part.clone()];
                self.send(*index, answers.as_ptr(), answers.len());
            }
        }
        self.batch = batch;
    }

    /// A single send a reader: all of the turn's frames, except a sender's own.
    fn fan_out(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let (start, bytes) = (batch.bytes.as_ptr(), batch.bytes.len());
        for index in 0..u32::try_from(self.connections.len()).expect("the kernel has fewer sockets than 2^32") {
            let connection = &self.connections[index as usize];
            if !connection.live
                || !connection.upgraded
                || connection.closing
                || batch.parts.iter().any(|(sender, _)| *sender == index)
            {
                continue;
            }
            self.send(index, start, bytes);
        }
        let mut senders: Vec<u32> = batch.parts.iter().map(|(sender, _)| *sender).collect();
        senders.sort_unstable();
        senders.dedup();
        for index in senders {
            let others = batch.parts.iter().filter(|(sender, _)| *sender != index);
            let bytes = others.flat_map(|(_, part)| &batch.bytes[part.clone()]).copied().collect::<Vec<u8>>();
            let connection = &self.connections[index as usize];
            if !bytes.is_empty() && connection.live && !connection.closing {
                self.send_owned(index, bytes);
            }
        }
        self.batch = batch;
    }

    fn send_owned(&mut self, index: u32, bytes: Vec<u8>) {
        let (start, length) = (bytes.as_ptr(), bytes.len());
        self.owned.push(bytes);
        self.send(index, start, length);
    }

    /// Sends bytes that stay in place until the next turn's completions are read; keeps a copy if the socket is not free.
    fn send(&mut self, index: u32, start: *const u8, bytes: usize) {
        let connection = &mut self.connections[index as usize];
        if connection.sending || connection.polling {
            // SAFETY: the caller's bytes are alive for the turn.
            let bytes = unsafe { std::slice::from_raw_parts(start, bytes) };
            let pending = connection.pending.get_or_insert_default();
            pending.extend_from_slice(bytes);
            if pending.len() > PENDING_BYTES_MAX {
                self.cut(index);
            } else if connection.sending {
                self.deferred.push(index);
            }
            return;
        }
        connection.sending = true;
        if connection.closing {
            // The last bytes of the connection: nothing else may ever wake the loop to end it.
            self.deferred.push(index);
        }
        let slot = self.sent.len() as u64;
        let entry = opcode::Send::new(types::Fd(connection.fd), start, u32::try_from(bytes).unwrap_or(u32::MAX))
            .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.sent.push(Sent { connection: index, start, bytes });
        self.push(&entry.user_data(SEND | slot));
    }

    fn on_short(&mut self, slot: usize, result: i32) {
        let Sent { connection: index, start, bytes } = self.sent_before[slot];
        self.sent_before[slot].bytes = 0;
        let connection = &mut self.connections[index as usize];
        connection.sending = false;
        let taken = match usize::try_from(result) {
            Ok(taken) => taken.min(bytes),
            Err(_) if result == -libc::EAGAIN => 0,
            Err(_) => {
                connection.pending = None;
                self.cut(index);
                return;
            }
        };
        // SAFETY: the bytes of the turn before are kept until its sends are settled.
        let mut rest = unsafe { std::slice::from_raw_parts(start.add(taken), bytes - taken) }.to_vec();
        if let Some(later) = connection.pending.take() {
            rest.extend_from_slice(&later);
        }
        connection.pending = Some(Box::new(rest));
        connection.polling = true;
        let events = u32::try_from(libc::POLLOUT).expect("a positive constant");
        let entry = opcode::PollAdd::new(types::Fd(connection.fd), events).build();
        self.push(&entry.user_data(POLL | u64::from(index)));
    }

    fn on_writable(&mut self, index: u32) {
        self.connections[index as usize].polling = false;
        self.flush(index);
    }

    fn flush(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.sending || connection.polling {
            return;
        }
        if let Some(pending) = connection.pending.take() {
            self.send_owned(index, *pending);
        } else if connection.closing {
            self.cut(index);
        }
    }

    /// Ends a connection; the receive that is under way reports it.
    fn cut(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.live {
            return;
        }
        connection.closing = true;
        // SAFETY: the descriptor is this connection's until `release` closes it.
        unsafe { libc::shutdown(connection.fd, libc::SHUT_RDWR) };
        self.release(index);
    }

    /// Closes the socket once nothing of it is in the kernel.
    fn release(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.live || connection.receiving || connection.sending || connection.polling || self.rearm.contains(&index) {
            return;
        }
        // SAFETY: no operation names this descriptor any more, and `live` makes this the only close of it.
        unsafe { libc::close(connection.fd) };
        if let Some(pair) = connection.pair {
            self.pairs.leave(pair, index);
        }
        *connection = Connection::default();
        self.freed.push(index);
        if !self.accepting {
            self.accept();
        }
    }
}
