//! The admin listener's sockets: a bounded number at a time, each for a bounded time. A silent connection keeps nobody out: if
//! all places are taken, the oldest connection that has not sent its request is closed, or else the oldest of those that have.

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Sleep};

/// Connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Of these, connections that have not sent their whole request.
const UNASKED_MAX: usize = CONNECTIONS_MAX / 2;
/// From the accept to the end of the request, its body included.
const REQUEST: Duration = Duration::from_secs(5);
/// A connection's whole life: one request and its answer.
const LIFETIME: Duration = Duration::from_secs(30);

/// Connections whose place was taken. The control thread is its one writer.
static CUT: AtomicU64 = AtomicU64::new(0);

pub(super) fn connections_cut() -> u64 {
    CUT.load(Ordering::Relaxed)
}

/// A listener with a cap.
pub(super) struct Capped<L> {
    inner: L,
    guests: VecDeque<Guest>,
}

struct Guest {
    seat: Seat,
    /// Closed when the connection is gone.
    cut: oneshot::Sender<()>,
}

/// A connection, as its requests see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seat {
    asked: Arc<AtomicBool>,
    cut: Arc<Notify>,
}

impl Seat {
    /// Notes that the request is complete.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until the connection is to be cut off.
    pub(super) async fn lost(&self) {
        self.cut.notified().await;
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Capped<L>>> for Seat {
    fn connect_info(stream: IncomingStream<'_, Capped<L>>) -> Self {
        stream.remote_addr().clone()
    }
}

impl<L> Capped<L> {
    pub(super) const fn new(inner: L) -> Self {
        Self { inner, guests: VecDeque::new() }
    }

    fn make_room(&mut self) {
        self.guests.retain(|guest| !guest.cut.is_closed());
        while self.guests.len() >= CONNECTIONS_MAX {
            let unasked = self.guests.iter().filter(|guest| !guest.seat.has_asked()).count();
            let goes = self.guests.iter().position(|guest| guest.seat.has_asked() != (unasked >= UNASKED_MAX));
            let Some(guest) = goes.and_then(|at| self.guests.remove(at)) else { break };
            guest.seat.cut.notify_one();
            // A guest that has gone by itself needs no signal.
            let _ = guest.cut.send(());
            CUT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<L: Listener> Listener for Capped<L> {
    type Io = Timed<L::Io>;
    type Addr = Seat;

    async fn accept(&mut self) -> (Timed<L::Io>, Seat) {
        let (stream, _) = self.inner.accept().await;
        self.make_room();
        let (cut, lost) = oneshot::channel();
        let (seat, now) = (Seat::default(), Instant::now());
        self.guests.push_back(Guest { seat: seat.clone(), cut });
        let deadline = Box::pin(tokio::time::sleep_until(now + REQUEST));
        (Timed { stream, deadline, last: now + LIFETIME, lost, is_lost: false, seat: seat.clone() }, seat)
    }

    fn local_addr(&self) -> io::Result<Seat> {
        Ok(Seat::default())
    }
}

/// A socket that fails once its time is over, or its place was taken.
pub(super) struct Timed<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    /// The deadline of a connection that has sent its request.
    last: Instant,
    lost: oneshot::Receiver<()>,
    is_lost: bool,
    seat: Seat,
}

impl<S> Timed<S> {
    fn over(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_lost = self.is_lost || Pin::new(&mut self.lost).poll(context).is_ready();
        if self.is_lost {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        while self.deadline.as_mut().poll(context).is_ready() {
            if !self.seat.has_asked() || self.deadline.deadline() >= self.last {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let last = self.last;
            self.deadline.as_mut().reset(last);
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.over(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
