//! The portable engine: the same shard on monoio, whose io_uring driver runs from kernel 5.6 and whose epoll driver runs where
//! io_uring is refused.
//!
//! The main future is the turn; around it one task a connection, one that accepts and one that hears the bell (`tasks`). A
//! connection's task waits for readiness without a buffer, receives without blocking into the one buffer of the thread, and calls
//! the shard. Sends are system calls that do not block (`edge`); the log's files are left to threads (`disk`).
//!
//! Invariants: no receive and no accept is ever in the kernel, only polls, and a poll that is dropped loses nothing. No task wakes
//! itself, since monoio would run it before it asks the kernel: what must run again rings this shard's own bell. monoio owns what it
//! watches and lends nothing of it, so it is given a duplicate of each descriptor: two a connection, and no `unsafe`.
#![forbid(unsafe_code)]

#[cfg(test)]
mod descriptor_tests;
mod disk;
#[cfg(test)]
mod disk_tests;
mod edge;
mod tasks;
#[cfg(test)]
mod tests;

pub use edge::Edge;

use crate::io::Shard;
use crate::io::segments::Disk;
use io_uring_06::IoUring;
use monoio::time::{Instant, TimeDriver, sleep_until};
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tasks::{Inner, World};

/// Entries of the submission queue. A poll takes one; when they are used up monoio submits at once.
const SUBMISSIONS: u32 = 4096;
/// Entries of the completion queue, at least and at most (IORING_MAX_CQ_ENTRIES).
const COMPLETIONS_MIN: usize = 16_384;
const COMPLETIONS_MAX: usize = 65_536;
/// Time for the polls of an ended engine to leave the kernel.
const CANCEL_WAIT: Duration = Duration::from_millis(1);

/// The mechanism by which monoio waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Uring,
    Epoll,
}

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// This shard's index among the bells.
    pub shard: usize,
    /// Sockets at most.
    pub connections_max: usize,
    /// How long to poll before sleeping, in microseconds.
    pub spin_us: u64,
    pub driver: Driver,
}

/// The engine. See the module's text.
pub struct Portable {
    runtime: FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>,
    /// `None` while the engine runs.
    edge: Option<Edge>,
}

impl Portable {
    /// Sets monoio up on the thread that will run it. `bells` are the shards' eventfds, in order; a write to one wakes its shard.
    ///
    /// # Errors
    /// What `io_uring_setup` or `epoll_create` answered, or that a thread for the log could not be made.
    pub fn new(
        options: Options,
        listener: Option<TcpListener>,
        bells: Arc<[Arc<OwnedFd>]>,
        disk: Option<Disk>,
    ) -> io::Result<Self> {
        let runtime = match options.driver {
            Driver::Uring => uring(options.connections_max)?,
            Driver::Epoll => RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.into(),
        };
        Ok(Self { runtime, edge: Some(Edge::new(options, listener, bells, disk)?) })
    }

    /// The shard's interface to the world, for work before the run.
    ///
    /// # Panics
    /// Not between two runs.
    pub const fn edge(&mut self) -> &mut Edge {
        self.edge.as_mut().expect("it comes back from every run")
    }

    /// Runs the shard until it answers [`crate::io::Next::Stop`], and returns it.
    ///
    /// # Errors
    /// The error of watching the bell or the listener.
    ///
    /// # Panics
    /// If the shard does; monoio does not catch it, and its other tasks are lost with it.
    pub fn run<S: Shard + 'static>(&mut self, shard: S) -> io::Result<S> {
        let edge = self.edge.take().expect("it comes back from every run");
        let world = Rc::new(World(RefCell::new(Inner::new(shard, edge))));
        let ended = self.runtime.block_on(turns(&world));
        let inner = Rc::into_inner(world).expect("all tasks have ended").0.into_inner();
        self.edge = Some(inner.edge);
        ended.map(|()| inner.shard)
    }
}

impl Drop for Portable {
    fn drop(&mut self) {
        if let Some(edge) = &mut self.edge
            && !std::thread::panicking()
        {
            edge.finish_disk();
        }
    }
}

/// A ring with as many of the flags as the kernel has: without them it is 128 % dearer at part load. Not DEFER_TASKRUN: monoio
/// enters without waiting in ways that would never run deferred work.
fn uring(connections_max: usize) -> io::Result<FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>> {
    // Two polls a connection at most. The queue holds them all, because old kernels answer an overflow with EBUSY.
    let completions = (2 * connections_max).next_power_of_two().clamp(COMPLETIONS_MIN, COMPLETIONS_MAX);
    let completions = u32::try_from(completions).expect("bounded by a constant");
    let mut refused = None;
    for flags in [2, 1, 0] {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions);
        if flags >= 1 {
            builder.setup_coop_taskrun(); // 5.19
        }
        if flags >= 2 {
            builder.setup_single_issuer(); // 6.0
        }
        let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(builder).with_entries(SUBMISSIONS);
        match builder.enable_timer().build() {
            Ok(runtime) => return Ok(runtime.into()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::Error::from(io::ErrorKind::Unsupported)))
}

/// The main future: a turn whenever something happened or is due, until the shard and all tasks have ended.
async fn turns<S: Shard + 'static>(world: &Rc<World<S>>) -> io::Result<()> {
    let origin = world.0.borrow().edge.started();
    let mut timer = Timer { sleep: pin!(sleep_until(Instant::from_std(origin))), armed_ns: None, origin };
    let mut over = false;
    World::start(world)?;
    poll_fn(|cx| {
        if !over {
            match World::with(world, |inner| inner.turn(cx)) {
                After::Again => {}
                After::At(due_ns) => {
                    if timer.arm(cx, due_ns) {
                        world.0.borrow_mut().edge.come_again();
                    }
                }
                After::Idle => {}
                After::Over => over = true,
            }
        }
        if over && world.0.borrow_mut().edge.tasks_are_over(cx) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    // Two waits: in the first the polls are cancelled, in the second their descriptors are closed.
    monoio::time::sleep(CANCEL_WAIT).await;
    monoio::time::sleep(CANCEL_WAIT).await;
    Ok(())
}

/// The next step after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Another turn; the bell that brings it has been rung.
    Again,
    /// Another turn at this time of the engine's clock at the latest.
    At(u64),
    Idle,
    /// The shard has ended.
    Over,
}

struct Timer<'a> {
    sleep: Pin<&'a mut monoio::time::Sleep>,
    /// The time of a wake that is under way. One that is no longer needed is not cancelled: it costs a turn.
    armed_ns: Option<u64>,
    origin: std::time::Instant,
}

impl Timer<'_> {
    /// Has the main future polled again at a time of the engine's clock. Returns `true` if that time is over.
    fn arm(&mut self, cx: &mut Context<'_>, due_ns: u64) -> bool {
        if self.armed_ns != Some(due_ns) {
            self.sleep.as_mut().reset(Instant::from_std(self.origin) + Duration::from_nanos(due_ns));
            self.armed_ns = Some(due_ns);
        }
        let over = self.sleep.as_mut().poll(cx).is_ready();
        if over {
            self.armed_ns = None;
        }
        over
    }
}
