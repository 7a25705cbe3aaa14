//! The work of the control thread: looks after the shards, answers, reloads, drains.

use super::http::{Shared, router};
use super::listener::{Capped, Seat};
use super::reloading::Reloads;
use super::{Command, ControlOptions, EngineLabels, Outcome, Reloaded};
use crate::shard::port::{Port, PortMessage, Snapshot};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Interval at which a drain checks whether all connections are gone, and a full port is tried again.
const LOOK: Duration = Duration::from_millis(50);
/// Checks in a row that must find no connection: a connection that changes shards is on neither for a turn.
const EMPTY_LOOKS: u32 = 3;
/// Time for which an order to stop is sent again to a full port.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Runner {
    snapshot: Arc<Snapshot>,
    engine: EngineLabels,
    reloads: Reloads,
    inbox: Inbox,
    tick: Duration,
}

/// Commands, by signal or by the process itself.
struct Inbox {
    commands: mpsc::Receiver<Command>,
    /// The handle is gone: no more commands will come.
    closed: bool,
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

async fn caught(signal: &mut Option<Signal>) {
    let alive = match signal {
        Some(signal) => signal.recv().await.is_some(),
        None => false,
    };
    if !alive {
        std::future::pending::<()>().await;
    }
}

impl Inbox {
    /// The next command. Cancel-safe: nothing is lost if the future is dropped.
    async fn next(&mut self) -> Command {
        loop {
            tokio::select! {
                command = self.commands.recv(), if !self.closed => match command {
                    Some(command) => return command,
                    None => self.closed = true,
                },
                () = caught(&mut self.terminate) => return Command::Drain,
                () = caught(&mut self.interrupt) => return Command::Drain,
                () = caught(&mut self.hang_up) => return Command::Reload,
            }
        }
    }
}

impl Runner {
    /// Takes the signals. Must run within the runtime.
    pub(super) fn new(options: ControlOptions, commands: mpsc::Receiver<Command>) -> std::io::Result<Self> {
        let take = |kind| if options.signals { signal(kind).map(Some) } else { Ok(None) };
        let inbox = Inbox {
            commands,
            closed: false,
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            hang_up: take(SignalKind::hangup())?,
        };
        let reloads = Reloads::new(options.reload)?;
        Ok(Self { snapshot: options.snapshot, engine: options.engine, reloads, inbox, tick: options.tick })
    }

    pub(super) async fn run(mut self, listeners: (TcpListener, Option<UnixListener>), ports: Vec<Port>) -> Outcome {
        let shared = Arc::new(Shared::new(ports, Arc::clone(&self.snapshot), self.engine));
        let app = router(Arc::clone(&shared));
        // Ends with the runtime; serve itself never returns.
        let app = app.into_make_service_with_connect_info::<Seat>();
        let (listener, socket) = listeners;
        if let Some(socket) = socket {
            let app = app.clone();
            tokio::spawn(async move { axum::serve(Capped::new(socket), app).await });
        }
        tokio::spawn(async move { axum::serve(Capped::new(listener), app).await });
        tokio::spawn(look_after(Arc::clone(&shared), self.tick));
        loop {
            tokio::select! {
                command = self.inbox.next() => match command {
                    Command::Drain => return self.drain(&shared).await,
                    Command::Stop => return stop(&shared, Outcome::Stopped).await,
                    Command::Reload => self.reloads.begin(),
                },
                reloaded = self.reloads.done() => match reloaded {
                    Ok(reloaded) => put_in_force(&shared, &reloaded),
                    Err(error) => tracing::error!(%error, "reload refused; the configuration in force stays as it was"),
                },
            }
        }
    }

    /// Drains: not ready; then goaway and 1012 over the window; then, when all connections have gone or the grace is over, stop.
    /// A second command to drain or stop stops at once; a reload meanwhile is ignored.
    async fn drain(mut self, shared: &Shared) -> Outcome {
        let settings = shared.snapshot().settings.drain;
        shared.health().drain();
        shared.tell_health();
        tracing::info!(
            not_ready_ms = settings.not_ready_ms,
            window_ms = settings.window_ms,
            grace_ms = settings.grace_ms,
            "draining"
        );
        let drained = async {
            sleep(Duration::from_millis(settings.not_ready_ms)).await;
            let until = Instant::now() + Duration::from_millis(settings.grace_ms);
            for port in &shared.ports {
                // Clients are told to reconnect: the load balancer or this node's successor takes them.
                let message = PortMessage::Drain { window_ms: settings.window_ms, restart: true };
                tokio::spawn(deliver(port.clone(), message, until));
            }
            emptied(&shared.ports, until).await
        };
        let outcome = tokio::select! {
            left = drained => if left == 0 { Outcome::Drained } else { Outcome::GraceOver(left) },
            () = asked_again(&mut self.inbox) => Outcome::Stopped,
        };
        stop(shared, outcome).await
    }
}

/// Puts the result of a reload in force.
fn put_in_force(shared: &Arc<Shared>, reloaded: &Reloaded) {
    for change in &reloaded.changes {
        let (setting, from, to) = (&change.key, &change.from, &change.to);
        if change.live {
            tracing::info!(%setting, %from, %to, "reload: in force now");
        } else {
            tracing::warn!(%setting, %from, %to, "reload: needs a restart; the old value stays in force");
        }
    }
    let live = reloaded.changes.iter().filter(|change| change.live).count();
    tracing::info!(live, restart = reloaded.changes.len() - live, "reloaded settings and keys");
    // The files do not contain the revocations and the node's health.
    let mut snapshot = (*reloaded.snapshot).clone();
    snapshot.revocations = Arc::clone(&shared.snapshot().revocations);
    snapshot.health = Arc::clone(&shared.snapshot().health);
    let answers = shared.publish(&Arc::new(snapshot));
    // The answers must be received, or the shards would count them as unwanted.
    tokio::spawn(async move {
        for (_, answer) in answers {
            let _ = answer.await;
        }
    });
}

async fn stop(shared: &Shared, outcome: Outcome) -> Outcome {
    shared.health().drain();
    shared.tell_health();
    let until = Instant::now() + STOP_PATIENCE;
    let mut stuck = Vec::new();
    for port in &shared.ports {
        if !deliver(port.clone(), PortMessage::Stop, until).await {
            stuck.push(port.shard());
        }
    }
    if stuck.is_empty() { outcome } else { Outcome::Stuck(stuck) }
}

async fn asked_again(inbox: &mut Inbox) {
    loop {
        match inbox.next().await {
            Command::Drain | Command::Stop => return tracing::warn!("second request to stop: stopping at once"),
            Command::Reload => tracing::warn!("reload asked for while draining; nothing changed"),
        }
    }
}

/// Puts a message into a port, trying again while it is full. Returns `false` if it was not taken in time.
async fn deliver(port: Port, mut message: PortMessage, until: Instant) -> bool {
    loop {
        match port.send(message) {
            Ok(()) => return true,
            Err(full) if Instant::now() < until => message = full.message,
            Err(full) => {
                tracing::error!(shard = full.shard, "the shard does not take its messages; it is stuck");
                return false;
            }
        }
        sleep(LOOK).await;
    }
}

/// Waits until no shard has a connection, or until the deadline. Returns how many are left.
async fn emptied(ports: &[Port], until: Instant) -> u64 {
    let mut empty = 0;
    loop {
        sleep(LOOK).await;
        let left: u64 = ports.iter().map(|port| port.counters().connections.get()).sum();
        empty = if left == 0 { empty + 1 } else { 0 };
        if empty >= EMPTY_LOOKS || Instant::now() >= until {
            return left;
        }
    }
}

/// At every tick: has each shard turned, and does an internal publish come back? The probe wakes an idle shard, so that it
/// turns.
async fn look_after(shared: Arc<Shared>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known_stuck = Vec::new();
    loop {
        ticks.tick().await;
        for (index, port) in shared.ports.iter().enumerate() {
            if shared.health().tick(index, port.counters().turns.get()) {
                let (reply, answer) = oneshot::channel();
                if port.send(PortMessage::Probe { reply }).is_err() {
                    shared.health().probed(index, false);
                    continue;
                }
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let came_back = answer.await.is_ok();
                    shared.health().probed(index, came_back);
                    shared.tell_health();
                });
            }
        }
        shared.tell_health();
        let stuck = shared.health().stuck();
        for shard in stuck.iter().filter(|shard| !known_stuck.contains(*shard)) {
            tracing::error!(shard, "has not turned for 5 s");
        }
        for shard in known_stuck.iter().filter(|shard| !stuck.contains(*shard)) {
            tracing::warn!(shard, "turns again");
        }
        known_stuck = stuck;
    }
}
