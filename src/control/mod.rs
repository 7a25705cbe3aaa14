//! The control thread: the admin listener, metrics, health, signals, reload and drain, on a tokio runtime of its own.
//!
//! May import the vocabulary, `config`, `auth` (what revocations are) and `shard::{port, counters}`; sees shards through their ports only.
//!
//! Invariants: the data plane goes on without this thread; a shard that does not answer is reported and never waited for
//! without a bound, nor is a client, a file (`reloading`) or a reader of stderr (`logging`); the admin listener is loopback only, takes a
//! bounded number of connections, each for a bounded time, and answers probes whoever holds them.

pub mod escape;
mod health;
mod http;
mod listener;
pub mod logging;
mod metrics;
mod purges;
mod reloading;
mod revocations;
mod run;
mod socket;
#[cfg(test)]
mod tests;

pub use health::{Health, READY_TICKS_MAX, STUCK_TICKS};
pub use http::{ConnectionList, host_is_loopback};
pub use metrics::{FAMILIES, Family, docs_markdown as metrics_markdown};
pub use purges::PurgeRequest;
pub use revocations::{RevocationList, RevocationRequest, Revoked};

use crate::config::Change;
use crate::shard::port::{Port, Snapshot};
use run::Runner;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Reads configuration and keys again. The error is one line that says what is wrong; the old ones then stay in force.
pub type Reload = Box<dyn FnMut() -> Result<Reloaded, String> + Send>;

/// The result of a reload.
#[derive(Debug)]
pub struct Reloaded {
    /// The differences from the settings that the process started with or last took, those that need a restart included.
    pub changes: Vec<Change>,
    /// The snapshot to put in force.
    pub snapshot: Arc<Snapshot>,
}

/// The engine under the shards, as `/metrics` names it.
#[derive(Clone, Copy, Debug)]
pub struct EngineLabels {
    pub engine: &'static str,
    pub driver: &'static str,
}

/// Options for control.
pub struct ControlOptions {
    /// The engine that runs the shards.
    pub engine: EngineLabels,
    /// `[admin] listen`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `[admin] socket`; `None` for no socket.
    pub socket: Option<PathBuf>,
    /// The snapshot in force at the start.
    pub snapshot: Arc<Snapshot>,
    /// The function that SIGHUP calls; `None` if there is nothing to read again.
    pub reload: Option<Reload>,
    /// `true` if control handles SIGTERM, SIGINT and SIGHUP.
    pub signals: bool,
    /// Interval between looks at the shards: 1 s, except in tests.
    pub tick: Duration,
}

/// Why control could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address is not loopback.
    #[error(
        "admin.listen = \"{0}\" is no loopback address; the admin listener asks for no credentials, so use 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// The address cannot be bound.
    #[error("admin.listen = \"{address}\" cannot be listened on: {source}; is another gateway running? choose a free port")]
    Bind { address: SocketAddr, source: std::io::Error },
    /// The socket cannot be made.
    #[error("admin.socket = {path:?} cannot be listened on: {source}")]
    Socket { path: PathBuf, source: std::io::Error },
    /// The runtime, a signal handler or the thread failed.
    #[error("the control thread cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// A command to the control thread, by a signal or by the process itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Drain and end; a second one stops at once.
    Drain,
    /// Read the configuration again.
    Reload,
    /// End at once.
    Stop,
}

/// How control ended. The shards have been told to stop in every case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every connection was gone before the end of the grace.
    Drained,
    /// The grace ended with this many connections left.
    GraceOver(u64),
    /// A stop at once was asked for.
    Stopped,
    /// These shards did not take the order to stop.
    Stuck(Vec<usize>),
}

/// Control, built but not yet running: the address is taken, so that shards can be started in between.
#[derive(Debug)]
pub struct Control {
    handle: ControlHandle,
    go: mpsc::SyncSender<Vec<Port>>,
}

/// A running control thread.
#[derive(Debug)]
pub struct ControlHandle {
    address: SocketAddr,
    commands: tokio::sync::mpsc::Sender<Command>,
    outcome: mpsc::Receiver<Outcome>,
    thread: std::thread::JoinHandle<()>,
}

impl Control {
    /// Does everything that can fail: binds, takes the signals, makes the runtime and the thread, which waits.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn build(options: ControlOptions) -> Result<Self, ControlError> {
        if !options.listen.ip().to_canonical().is_loopback() {
            return Err(ControlError::NotLoopback(options.listen));
        }
        let bound = TcpListener::bind(options.listen).map_err(|source| ControlError::Bind { address: options.listen, source })?;
        bound.set_nonblocking(true)?;
        let address = bound.local_addr()?;
        let socket = match &options.socket {
            Some(path) => Some(socket::listen(path).map_err(|source| ControlError::Socket { path: path.clone(), source })?),
            None => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, inbox) = tokio::sync::mpsc::channel(16);
        let (socket, socket_file) = socket.unzip();
        let (runner, listeners) = {
            let _inside = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(bound)?;
            let socket = socket.map(tokio::net::UnixListener::from_std).transpose()?;
            (Runner::new(options, inbox)?, (listener, socket))
        };
        let (go, wait_for_go) = mpsc::sync_channel(1);
        let (tell, outcome) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            // Control was dropped before the shards started: nothing to run.
            let Ok(ports) = wait_for_go.recv() else { return };
            let ended = runtime.block_on(runner.run(listeners, ports));
            drop(socket_file);
            // If nobody waits for the outcome, nobody is told.
            let _ = tell.send(ended);
        })?;
        Ok(Self { handle: ControlHandle { address, commands, outcome, thread }, go })
    }

    /// Lets control run, over all shards in order. Cannot fail.
    #[must_use]
    pub fn spawn(self, ports: Vec<Port>) -> ControlHandle {
        // The thread waits for exactly this message and the channel has room for it.
        let _ = self.go.send(ports);
        self.handle
    }
}

impl ControlHandle {
    /// The address of the admin listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a command, as a signal would. Returns `false` if the thread has ended or has 16 commands waiting.
    pub fn ask(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Waits until the process is to end; the shards have been told by then.
    #[must_use]
    pub fn wait(self) -> Outcome {
        let outcome = self.outcome.recv();
        let joined = self.thread.join();
        match (outcome, joined) {
            (Ok(outcome), Ok(())) => outcome,
            // Without control there is nobody to drain or to answer for health: the caller ends the process.
            _ => Outcome::Stopped,
        }
    }
}

/// See [`Control::build`] and [`Control::spawn`].
///
/// # Errors
/// See [`ControlError`].
pub fn spawn(options: ControlOptions, ports: Vec<Port>) -> Result<ControlHandle, ControlError> {
    Ok(Control::build(options)?.spawn(ports))
}
