//! Accepting, and the options that accepted sockets inherit.
#![allow(unsafe_code)] // accept hands over a descriptor by number; one option is not in the safe crates; the SAFETY comments carry the argument

use super::{Completion, Op, Ring, plain};
use crate::io::{Event, Io, Shard};
use crate::time::Tick;
use io_uring::{opcode, types};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Pause of accepting after a failure that is not a single connection's: EMFILE, ENFILE, ENOBUFS, ENOMEM and others.
const ACCEPT_REST: Duration = Duration::from_millis(100);

impl Ring {
    pub(super) fn on_accepted<S: Shard>(&mut self, shard: &mut S, completion: Completion, now: Tick) {
        if !io_uring::cqueue::more(completion.flags) {
            self.accepting = false;
        }
        if completion.result < 0 {
            let errno = -completion.result;
            if errno != libc::ECANCELED {
                self.stats.accepts_failed += 1;
                // A connection that went before it was accepted is no reason to pause; any other error would come again at once.
                if !matches!(errno, libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EAGAIN) {
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

    pub(super) fn arm_accept(&mut self) {
        if let Some(listener) = &self.listener {
            let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
            self.accepting = true;
            self.push(&entry.user_data(plain(Op::Accept, 0)));
        }
    }
}

fn peer_of(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    // Fails when the peer has reset already: such a socket is of no use.
    let address = rustix::net::getpeername(fd).ok().flatten()?;
    SocketAddr::try_from(address).ok()
}

/// Makes a listener for one shard: SO_REUSEPORT spreads accepts over the shards' listeners. Options that accepted sockets inherit
/// are set here, once.
///
/// # Errors
/// The error of `bind` or `listen`.
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

/// Checks that a listener that shares with nobody could have this address: as `bind` sees it, wildcard addresses and both
/// families together. Connections left of a process that has ended (TIME_WAIT) do not count.
///
/// # Errors
/// The error of `socket` or `bind`: EADDRINUSE if another process listens, EADDRNOTAVAIL if the address is not this machine's.
pub fn could_listen_alone(address: SocketAddr) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
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
