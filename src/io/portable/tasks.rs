//! The tasks, and their shared state: each waits for one descriptor, and calls the shard when the descriptor is ready.

use super::edge::{Edge, Got};
use super::{After, Driver};
use crate::io::{ConnId, Event, Next, Shard};
use monoio::net::UnixStream;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Size of the one buffer for all receives. A receive that does not fill it leaves nothing in the socket.
const RECEIVE_BYTES: usize = 16 * 1024;
/// Connections accepted before other tasks run.
const ACCEPTS_MAX: usize = 64;
/// A turn that is due within this is waited for without sleeping: monoio's timers count milliseconds.
const TURN_SOON_NS: u64 = 100_000;

/// The shard and its engine. Borrowed between two awaits, never across one.
pub(super) struct World<S>(pub(super) RefCell<Inner<S>>);

pub(super) struct Inner<S> {
    pub(super) shard: S,
    pub(super) edge: Edge,
    buffer: Box<[u8]>,
    /// `true` if the shard has announced sleep.
    asleep: bool,
    /// `true` if something happened since the last turn.
    stirred: bool,
    spin_until_ns: u64,
}

/// How a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// The socket was empty.
    All,
    /// The shard wants no more of it.
    Some,
    /// The connection has had its share of the turn; its task is woken for the next one.
    Share,
}

/// A descriptor that monoio watches.
struct Watch {
    /// Used only to wait until it is ready, which works for any descriptor.
    stream: UnixStream,
    driver: Driver,
}

impl Watch {
    fn new(fd: OwnedFd, driver: Driver) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        Ok(Self { stream: UnixStream::from_std(stream)?, driver })
    }

    /// Waits until the descriptor is readable; returns at once if it is already. Cancel-safe: nothing is lost if the future is
    /// dropped.
    async fn readable(&self) -> io::Result<()> {
        // The epoll driver remembers readiness until a look at the descriptor says otherwise. One look is enough: a later report
        // is new.
        match self.driver {
            Driver::Uring => self.stream.readable(false).await,
            Driver::Epoll => match first_look(self.stream.readable(false)).await {
                Some(result) => result,
                None => self.stream.readable(true).await,
            },
        }
    }

    /// See [`Watch::readable`].
    async fn writable(&self) -> io::Result<()> {
        match self.driver {
            Driver::Uring => self.stream.writable(false).await,
            Driver::Epoll => match first_look(self.stream.writable(false)).await {
                Some(result) => result,
                None => self.stream.writable(true).await,
            },
        }
    }
}

/// The result of polling a future once; `None` if it is pending.
async fn first_look<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

impl<S: Shard + 'static> World<S> {
    /// Starts the tasks of a run.
    pub(super) fn start(world: &Rc<Self>) -> io::Result<()> {
        Self::with(world, |inner| {
            let edge = &mut inner.edge;
            edge.begin()?;
            let driver = edge.options.driver;
            let bell = Watch::new(edge.bell().try_clone()?, driver)?;
            let listener = edge.listener.as_ref().map(|listener| Watch::new(listener.try_clone()?.into(), driver)).transpose()?;
            edge.task_begins();
            monoio::spawn(hearing(Rc::clone(world), bell));
            if let Some(listener) = listener {
                edge.task_begins();
                monoio::spawn(accepting(Rc::clone(world), listener));
            }
            Ok(())
        })
    }

    /// Calls `act` with the shard and its engine, and starts the tasks of new sockets.
    pub(super) fn with<R>(world: &Rc<Self>, act: impl FnOnce(&mut Inner<S>) -> R) -> R {
        let mut inner = world.0.borrow_mut();
        let result = act(&mut inner);
        while let Some((conn, watched)) = inner.edge.newcomer() {
            inner.edge.task_begins();
            monoio::spawn(connection(Rc::clone(world), conn, watched));
        }
        result
    }
}

impl<S: Shard + 'static> Inner<S> {
    pub(super) fn new(shard: S, edge: Edge) -> Self {
        let buffer = vec![0; RECEIVE_BYTES].into_boxed_slice();
        Self { shard, edge, buffer, asleep: false, stirred: false, spin_until_ns: 0 }
    }

    fn tell(&mut self, event: Event<'_>) {
        let now = self.edge.now();
        self.wake_up();
        self.shard.event(&mut self.edge, event, now);
        self.edge.wake_turn();
    }

    fn wake_up(&mut self) {
        self.stirred = true;
        if std::mem::take(&mut self.asleep) {
            self.shard.after_sleep();
        }
    }

    /// Reports the events that no task brings, then makes the shard's turn.
    pub(super) fn turn(&mut self, cx: &Context<'_>) -> After {
        let stirred = std::mem::take(&mut self.stirred);
        let now = self.edge.now();
        self.edge.turn_begins(cx);
        self.wake_up();
        while let Some(conn) = self.edge.quiet() {
            self.shard.event(&mut self.edge, Event::Quiet { conn }, now);
        }
        for _ in 0..self.edge.disk.answers_waiting() {
            let Some(mut answer) = self.edge.disk.answer() else { break };
            self.shard.event(&mut self.edge, answer.event(), now);
            self.edge.disk.put_back(answer);
        }
        let next = self.shard.turn(&mut self.edge, now);
        self.edge.turn_ends();
        let at_ns = match next {
            Next::Stop => {
                self.edge.end();
                return After::Over;
            }
            Next::Again => return self.again(),
            Next::At(at_ns) => Some(at_ns),
            Next::Idle => None,
        };
        let due_ns = at_ns.into_iter().chain(self.edge.accept_rests(now)).min();
        if self.edge.owes() || due_ns.is_some_and(|due_ns| due_ns <= now.mono_ns + TURN_SOON_NS) {
            return self.again();
        }
        if stirred {
            self.spin_until_ns = now.mono_ns + self.edge.options.spin_us * 1_000;
        }
        if now.mono_ns < self.spin_until_ns {
            return self.again();
        }
        if !self.shard.before_sleep() {
            self.shard.after_sleep();
            return self.again();
        }
        self.asleep = true;
        self.stirred = false;
        due_ns.map_or(After::Idle, After::At)
    }

    fn again(&mut self) -> After {
        self.stirred = false;
        self.edge.come_again();
        After::Again
    }

    /// Receives from the socket, within its share of the turn.
    fn receive(&mut self, conn: ConnId) -> Received {
        loop {
            let got = self.edge.receive(conn, &mut self.buffer);
            match got {
                Got::Bytes(len) | Got::Last(len) => {
                    // The shard acts through `edge` while it reads from here.
                    let mut buffer = std::mem::take(&mut self.buffer);
                    self.tell(Event::Received { conn, bytes: &mut buffer[..len] });
                    self.buffer = buffer;
                    if matches!(got, Got::Last(_)) {
                        return Received::All;
                    }
                }
                Got::End(error) => {
                    self.tell(Event::Ended { conn, error });
                    return Received::All;
                }
                Got::Nothing => return Received::All,
                Got::Unwanted => return Received::Some,
                Got::TooMuch => return Received::Share,
            }
        }
    }

    /// Accepts waiting connections. Returns `true` if it stopped before the last.
    fn accept(&mut self, cx: &Context<'_>) -> bool {
        for _ in 0..ACCEPTS_MAX {
            if !self.edge.accepts(cx) {
                return false;
            }
            match self.edge.accept_one() {
                Some(Ok((conn, peer))) => self.tell(Event::Accepted { conn, peer }),
                Some(Err(error)) => self.tell(Event::AcceptFailed(error)),
                None => return false,
            }
        }
        self.edge.accept_again();
        true
    }
}

/// Waits for one socket, until the shard has closed or detached it.
async fn connection<S: Shard + 'static>(world: Rc<World<S>>, conn: ConnId, watched: OwnedFd) {
    let driver = world.0.borrow().edge.options.driver;
    match Watch::new(watched, driver) {
        Ok(watch) => watch_connection(&world, conn, &watch).await,
        Err(error) => World::with(&world, |inner| {
            if inner.edge.unwatched(conn) {
                inner.tell(Event::Ended { conn, error: Some(error) });
            }
        }),
    }
    world.0.borrow_mut().edge.task_ends();
}

async fn watch_connection<S: Shard + 'static>(world: &Rc<World<S>>, conn: ConnId, watch: &Watch) {
    let (mut readable, mut writable) = (pin!(None), pin!(None));
    // `true` if there may be bytes that no poll will report again.
    let mut unread = false;
    poll_fn(|cx| {
        loop {
            let Some(wants) = world.0.borrow_mut().edge.wants(conn, cx) else { return Poll::Ready(()) };
            if wants.write {
                if writable.is_none() {
                    writable.set(Some(watch.writable()));
                }
                let polled = writable.as_mut().as_pin_mut().map(|future| future.poll(cx));
                if matches!(polled, Some(Poll::Ready(_))) {
                    // If the wait itself failed, the next send says why.
                    writable.set(None);
                    World::with(world, |inner| {
                        if inner.edge.takes_bytes(conn) {
                            inner.tell(Event::Writable { conn });
                        }
                    });
                    continue;
                }
            }
            if wants.read {
                if !unread {
                    if readable.is_none() {
                        readable.set(Some(watch.readable()));
                    }
                    let polled = readable.as_mut().as_pin_mut().map(|future| future.poll(cx));
                    if matches!(polled, Some(Poll::Ready(_))) {
                        readable.set(None);
                        unread = true;
                    }
                }
                if unread {
                    // If the wait itself failed, the receive says why, or finds nothing.
                    let received = World::with(world, |inner| inner.receive(conn));
                    unread = received != Received::All;
                    if received != Received::Share {
                        continue;
                    }
                }
            }
            world.0.borrow_mut().edge.task_waits(conn);
            return Poll::Pending;
        }
    })
    .await;
}

/// Waits for connections while the shard accepts them.
async fn accepting<S: Shard + 'static>(world: Rc<World<S>>, watch: Watch) {
    let mut readable = pin!(None);
    poll_fn(|cx| {
        loop {
            {
                let edge = &mut world.0.borrow_mut().edge;
                if edge.is_ending() {
                    return Poll::Ready(());
                }
                if !edge.accepts(cx) {
                    return Poll::Pending;
                }
            }
            if readable.is_none() {
                readable.set(Some(watch.readable()));
            }
            match readable.as_mut().as_pin_mut().map(|future| future.poll(cx)) {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(_)) | None => readable.set(None),
            }
            if World::with(&world, |inner| inner.accept(cx)) {
                return Poll::Pending;
            }
        }
    })
    .await;
    world.0.borrow_mut().edge.task_ends();
}

/// Waits for the bell, rung by other shards, control, the threads of the log, or this shard itself.
async fn hearing<S: Shard + 'static>(world: Rc<World<S>>, watch: Watch) {
    let mut readable = pin!(None);
    poll_fn(|cx| {
        loop {
            {
                let edge = &mut world.0.borrow_mut().edge;
                if edge.is_ending() {
                    return Poll::Ready(());
                }
                edge.bell_waits(cx);
            }
            if readable.is_none() {
                readable.set(Some(watch.readable()));
            }
            match readable.as_mut().as_pin_mut().map(|future| future.poll(cx)) {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(_)) | None => readable.set(None),
            }
            World::with(&world, |inner| {
                if inner.edge.bell_heard() {
                    inner.tell(Event::Bell);
                }
                inner.edge.wake_turn();
            });
        }
    })
    .await;
    world.0.borrow_mut().edge.task_ends();
}
