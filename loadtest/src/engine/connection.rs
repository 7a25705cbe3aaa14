//! A client connection: upgrade, masked sends, frames in.
#![allow(unsafe_code)]

use super::stats::Stats;
use crate::wire::{self, WireError};
use base64::Engine as _;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// The reason why a connection ended.
#[derive(Debug)]
pub enum Ended {
    Io(io::Error),
    Protocol(WireError),
    /// The peer's close frame: its code (1005 if there was none) and reason.
    Closed(u16, String),
    /// The stream ended without a close frame.
    Eof,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the socket failed: {error}"),
            Self::Protocol(error) => write!(f, "protocol error: {error}"),
            Self::Closed(code, reason) => write!(f, "the server closed with {code} {reason:?}"),
            Self::Eof => f.write_str("the stream ended without a close frame"),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Protocol(error)
    }
}

/// Bytes that may wait for a server that does not read.
const BACKLOG_BYTES_MAX: usize = 32 << 20;

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// For the `Host` header.
    pub host: String,
    pub path: String,
    pub subprotocol: Option<String>,
}

/// The sending half; shared by all senders on this connection.
pub struct Connection {
    stream: TcpStream,
    fd: RawFd,
    mask: [u8; 4],
    out: RefCell<Vec<u8>>,
    blocked: Cell<bool>,
    gone: Cell<bool>,
    leaving: Cell<bool>,
    stats: Rc<Stats>,
}

/// The receiving half.
pub struct Inbox {
    buffer: Vec<u8>,
    at: usize,
    assembled: Vec<u8>,
    assembling: Option<u8>,
}

/// A handler's wish for the next message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Go,
    Stop,
}

impl Connection {
    /// Connects and upgrades. `receive_buffer_bytes` is what one receive may take; `socket_buffer_bytes` sets SO_RCVBUF.
    pub async fn open(
        endpoint: &Endpoint,
        stats: &Rc<Stats>,
        receive_buffer_bytes: usize,
        socket_buffer_bytes: Option<usize>,
    ) -> Result<(Rc<Self>, Inbox), Ended> {
        let stream = connect(endpoint.address, socket_buffer_bytes).await?;
        stream.set_nodelay(true)?;
        let fd = stream.as_raw_fd();
        let mut random = [0_u8; 20];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let (mask, nonce) = random.split_at(4);
        let key = base64::engine::general_purpose::STANDARD.encode(nonce);
        // No zero byte: every payload byte changes on the wire, so that a server which forgets to unmask is found out.
        let mask = [mask[0] | 1, mask[1] | 2, mask[2] | 4, mask[3] | 8];
        let connection = Rc::new(Self {
            stream,
            fd,
            mask,
            out: RefCell::default(),
            blocked: Cell::new(false),
            gone: Cell::new(false),
            leaving: Cell::new(false),
            stats: Rc::clone(stats),
        });
        connection.out.borrow_mut().extend_from_slice(&wire::upgrade_request(
            &endpoint.host,
            &endpoint.path,
            &key,
            endpoint.subprotocol.as_deref(),
        ));
        connection.flush();
        let mut inbox =
            Inbox { buffer: Vec::with_capacity(receive_buffer_bytes.max(1024)), at: 0, assembled: Vec::new(), assembling: None };
        let head_end = loop {
            inbox.fill(&connection).await?;
            if let Some(end) = wire::http_head_end(&inbox.buffer) {
                break end;
            }
            if inbox.buffer.len() > 64 << 10 {
                return Err(WireError("an HTTP head above 64 KiB".into()).into());
            }
        };
        wire::check_upgrade(&inbox.buffer[..head_end], &key)?;
        inbox.at = head_end;
        Ok((connection, inbox))
    }

    /// This connection's masking key.
    pub fn mask(&self) -> [u8; 4] {
        self.mask
    }

    /// Queues whole frames; [`Connection::flush`] sends them.
    pub fn queue(&self, frames: &[u8]) {
        self.out.borrow_mut().extend_from_slice(frames);
    }

    /// Queues one frame.
    pub fn queue_frame(&self, opcode: u8, payload: &[u8]) {
        wire::push_masked(&mut self.out.borrow_mut(), opcode, payload, self.mask);
    }

    /// Sends the queued frames; bytes that the socket does not take are sent when it does.
    pub fn flush(self: &Rc<Self>) {
        let mut out = self.out.borrow_mut();
        if out.is_empty() || self.gone.get() {
            return;
        }
        if self.blocked.get() {
            if out.len() > BACKLOG_BYTES_MAX {
                self.stats.problem(|| "a connection's server has stopped reading; 32 MiB wait for it".into());
                self.gone.set(true);
                out.clear();
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
            }
            return;
        }
        // SAFETY: the descriptor is open as long as `stream` is, and the slice is valid for its length.
        let sent = unsafe { libc::send(self.fd, out.as_ptr().cast(), out.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        let sent = match usize::try_from(sent) {
            Ok(sent) => sent,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::WouldBlock {
                    // The receive under way meets the same end and reports it.
                    self.gone.set(true);
                    out.clear();
                    return;
                }
                0
            }
        };
        self.stats.bytes_out.add(sent as u64);
        if sent == out.len() {
            out.clear();
            return;
        }
        out.drain(..sent);
        self.blocked.set(true);
        let this = Rc::clone(self);
        tokio_uring::spawn(async move { this.flush_blocked().await });
    }

    async fn flush_blocked(self: Rc<Self>) {
        while !self.out.borrow().is_empty() {
            let bytes = self.out.take();
            let length = bytes.len() as u64;
            if self.stream.write_all(bytes).await.0.is_err() {
                self.gone.set(true);
                self.out.borrow_mut().clear();
                break;
            }
            self.stats.bytes_out.add(length);
        }
        self.blocked.set(false);
    }

    /// Ends the connection without a close frame, as a lost network would; the receive under way ends with it.
    pub fn cut(&self) {
        self.leaving.set(true);
        self.gone.set(true);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Returns `true` if the harness itself ended the connection.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }
}

async fn connect(address: SocketAddr, socket_buffer_bytes: Option<usize>) -> io::Result<TcpStream> {
    let Some(bytes) = socket_buffer_bytes else { return TcpStream::connect(address).await };
    // A receive buffer below the default must be set before the connect, which tokio-uring offers no place for.
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_recv_buffer_size(bytes)?;
    socket.connect(&address.into())?;
    // SAFETY: the descriptor was just released by its owner.
    Ok(unsafe { TcpStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(socket)) })
}

impl Inbox {
    /// A receive.
    async fn fill(&mut self, connection: &Connection) -> Result<(), Ended> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
        } else if self.at > 0 {
            self.buffer.drain(..self.at);
        }
        self.at = 0;
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve(self.buffer.len());
        }
        let filled = self.buffer.len();
        let (result, slice) = connection.stream.read(std::mem::take(&mut self.buffer).slice(filled..)).await;
        self.buffer = slice.into_inner();
        let taken = result?;
        if taken == 0 {
            return Err(Ended::Eof);
        }
        connection.stats.bytes_in.add(taken as u64);
        Ok(())
    }

    /// Passes every data message to `handler` until it says stop or the connection ends; `after` runs once a receive, after its
    /// messages, to send their consequences. Pings are answered.
    pub async fn run(
        &mut self,
        connection: &Rc<Connection>,
        mut handler: impl FnMut(u8, &[u8]) -> Next,
        mut after: impl FnMut(),
    ) -> Result<(), Ended> {
        loop {
            let mut next = Next::Go;
            while next == Next::Go {
                let Some(head) = wire::parse_head(&self.buffer[self.at..])? else { break };
                let start = self.at + head.head_bytes;
                let end = start + head.payload_bytes;
                if end > self.buffer.len() {
                    break;
                }
                if head.mask.is_some() {
                    return Err(WireError("a masked frame from a server".into()).into());
                }
                self.at = end;
                let payload = &self.buffer[start..end];
                next = match head.opcode {
                    wire::TEXT | wire::BINARY if head.fin && self.assembling.is_none() => handler(head.opcode, payload),
                    wire::TEXT | wire::BINARY | 0 => {
                        if (head.opcode == 0) != self.assembling.is_some() {
                            return Err(WireError("a continuation without a start, or a start inside a message".into()).into());
                        }
                        let opcode = *self.assembling.get_or_insert(head.opcode);
                        self.assembled.extend_from_slice(payload);
                        if head.fin {
                            self.assembling = None;
                            let message = std::mem::take(&mut self.assembled);
                            handler(opcode, &message)
                        } else {
                            Next::Go
                        }
                    }
                    wire::PING => {
                        connection.queue_frame(wire::PONG, payload);
                        connection.flush();
                        Next::Go
                    }
                    wire::PONG => Next::Go,
                    wire::CLOSE => {
                        let code = payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
                        let reason = payload.get(2..).map(|reason| String::from_utf8_lossy(reason).into_owned());
                        connection.queue_frame(wire::CLOSE, payload);
                        connection.flush();
                        return Err(Ended::Closed(code, reason.unwrap_or_default()));
                    }
                    other => return Err(WireError(format!("a frame with the unknown opcode {other}")).into()),
                };
            }
            after();
            if next == Next::Stop {
                return Ok(());
            }
            self.fill(connection).await?;
        }
    }

    /// The next data message, for code that is not on the hot path (handshakes).
    pub async fn message(&mut self, connection: &Rc<Connection>) -> Result<Vec<u8>, Ended> {
        let mut found = Vec::new();
        self.run(
            connection,
            |_, payload| {
                found.extend_from_slice(payload);
                Next::Stop
            },
            || {},
        )
        .await?;
        Ok(found)
    }
}
