//! Control's bounded access to a shard: requests, answers, and the queue between them.
//!
//! May import the vocabulary, `config` and `counters`. Invariant: nothing here waits. A full queue returns the message to
//! control, which tries later or reports the shard as stuck; a shard whose answer nobody receives counts it and goes on.

use super::counters::SharedCounters;
use crate::auth::{KeySet, Revocations, TokenPolicy};
use crate::close::CloseReason;
use crate::config::Settings;
use crate::net::tls::TlsServer;
use crate::net::upgrade::Policy as UpgradePolicy;
use crossbeam::queue::ArrayQueue;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::oneshot;

/// Messages that may wait in one port. Control sends about one a second, and a page request for each page it shows.
pub const PORT_DEPTH_MAX: usize = 64;
/// Connections in one page: as many as a shard may report within one turn.
pub const CONNECTIONS_PAGE_MAX: usize = 250;
/// Sessions reported for one connection.
pub const SESSIONS_SHOWN_MAX: usize = 64;
/// Closed connections that a shard remembers.
pub const CLOSED_KEPT_MAX: usize = 1_000;
/// Time for which it remembers them.
pub const CLOSED_KEPT_MS: u64 = 600_000;

/// The state that control publishes to the shards: immutable, replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// The keys that tokens are verified with.
    pub keys: Arc<KeySet>,
    /// Requirements on tokens.
    pub tokens: TokenPolicy,
    /// Tokens, clients and users that are no longer admitted.
    pub revocations: Arc<Revocations>,
    /// The rules by which an upgrade is judged.
    pub upgrade: UpgradePolicy,
    /// `None` if TLS is off.
    pub tls: Option<TlsServer>,
    /// The health of the whole node. The only part that changes in place: it is the same in each snapshot of a process.
    pub health: Arc<NodeHealth>,
}

/// The node's health, as control last saw it, for probes on the clients' port.
#[derive(Debug, Default)]
pub struct NodeHealth {
    alive: AtomicU8,
    ready: AtomicU8,
}

/// The answer of `/healthz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alive {
    Ok,
    /// A log has failed: a restart by itself mends no disk.
    Degraded,
    /// A shard does not turn.
    Stuck,
}

/// The answer of `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ready {
    /// Not every shard has answered its first internal publish.
    Starting,
    Ready,
    /// A shard's internal publish does not come back.
    Late,
    Draining,
}

impl NodeHealth {
    /// Sets both; by control, whenever they change.
    pub fn set(&self, alive: Alive, ready: Ready) {
        self.alive.store(alive as u8, Ordering::Relaxed);
        self.ready.store(ready as u8, Ordering::Relaxed);
    }

    /// Returns whether the process is to go on, and the word for it.
    #[must_use]
    pub fn alive(&self) -> (bool, &'static str) {
        match self.alive.load(Ordering::Relaxed) {
            0 => (true, "ok"),
            1 => (true, "degraded"),
            _ => (false, "stuck"),
        }
    }

    /// Returns whether traffic may come, and the word for it.
    #[must_use]
    pub fn ready(&self) -> (bool, &'static str) {
        match self.ready.load(Ordering::Relaxed) {
            0 => (false, "starting"),
            1 => (true, "ready"),
            2 => (false, "late"),
            _ => (false, "draining"),
        }
    }
}

/// A message from control to a shard.
#[derive(Debug)]
pub enum PortMessage {
    /// Puts these settings, keys and revocations in force; answered, if a reply is asked for, with the number of connections that
    /// were ended because their tokens are revoked.
    Configure { snapshot: Arc<Snapshot>, reply: Option<oneshot::Sender<usize>> },
    /// Stop accepting; tell clients to go away (`rw.goaway`) and close them (1012) over the window.
    Drain { window_ms: u64, restart: bool },
    /// Close everything and return from the loop.
    Stop,
    /// An internal publish: answered after it came back through the shard's own path.
    Probe { reply: oneshot::Sender<()> },
    /// A page of connections from this position on (0 at first, then [`ConnectionPage::next`]), in the order of the shard's
    /// table; closed ones come last.
    ListConnections { from: u64, limit: usize, reply: oneshot::Sender<ConnectionPage> },
    /// Purge a session: no byte of its messages so far remains. Answered when that is so; with `None` if it is not at home there.
    Purge { session_id: String, reply: PurgeReply },
    /// Show a connection, by its id; `None` if this shard does not know it.
    ShowConnection { connection_id: String, reply: oneshot::Sender<Option<ConnectionInfo>> },
    /// Name the tables that are not empty.
    #[cfg(test)]
    WhatIsLeft { reply: oneshot::Sender<Vec<String>> },
}

/// The receiver of a purge's result: what was purged, `None` if the session is not at home, or why it failed.
pub type PurgeReply = oneshot::Sender<Result<Option<Purged>, String>>;

/// The result of a purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Messages that were removed from the log's files.
    pub messages: u64,
}

/// A page of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPage {
    /// At most [`CONNECTIONS_PAGE_MAX`].
    pub connections: Vec<ConnectionInfo>,
    /// The beginning of the next page, behind that of this one; `None` after the last.
    pub next: Option<u64>,
}

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// TLS handshake.
    Tls,
    /// Waiting for the HTTP request.
    Http,
    /// Waiting for the hello.
    Hello,
    /// Being handed to its home shard.
    Handover,
    /// In its session.
    Open,
    /// On `/v1/echo`.
    Echo,
    /// In the close handshake.
    Closing,
    /// Gone.
    Closed,
}

/// A session of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session_id: String,
    /// The session's head, as far as this shard knows it.
    pub head_seq: u64,
    /// The last place up to which this connection was sent.
    pub cursor_seq: u64,
    /// `true` if it is read through a mirror, since its home is another shard.
    pub mirrored: bool,
}

impl SessionInfo {
    /// The number of places in the order that it is behind.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.head_seq.saturating_sub(self.cursor_seq)
    }
}

/// A connection, as an operator sees it. Holds no token and no payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    pub connection_id: String,
    pub shard: usize,
    pub peer: IpAddr,
    /// Empty before the hello.
    pub client_id: String,
    pub state: ConnectionState,
    /// At most [`SESSIONS_SHOWN_MAX`].
    pub sessions: Vec<SessionInfo>,
    /// Bytes of replies and partial messages that this process holds for it.
    pub buffered_bytes: u64,
    /// Time since the accept; for a closed one, until its end.
    pub age_ms: u64,
    /// Time since it last sent anything; for a closed one, since its end.
    pub idle_ms: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    /// [`CloseReason::label`], once closed.
    pub close_reason: Option<String>,
    /// The close code that was sent or received, once closed.
    pub close_code: Option<u16>,
}

/// The connections that ended in the last ten minutes, oldest first; bounded.
#[derive(Debug, Default)]
pub struct ClosedConnections {
    kept: VecDeque<(u64, ConnectionInfo)>,
}

impl ClosedConnections {
    /// Remembers a connection that ends now. Returns how many were removed before their time (0 or 1), to be counted.
    pub fn remember(&mut self, mut info: ConnectionInfo, reason: CloseReason, now_ms: u64) -> u64 {
        self.forget_old(now_ms);
        let mut pushed_out = 0;
        if self.kept.len() >= CLOSED_KEPT_MAX {
            self.kept.pop_front();
            pushed_out = 1;
        }
        info.state = ConnectionState::Closed;
        info.close_reason = Some(reason.label().to_owned());
        info.close_code = reason.code();
        info.buffered_bytes = 0;
        self.kept.push_back((now_ms, info));
        pushed_out
    }

    /// Forgets connections closed more than ten minutes ago.
    pub fn forget_old(&mut self, now_ms: u64) {
        while self.kept.front().is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) >= CLOSED_KEPT_MS) {
            self.kept.pop_front();
        }
    }

    /// The number of remembered connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Returns `true` if none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The remembered connections, oldest first, with the time since their end.
    pub fn iter(&self, now_ms: u64) -> impl Iterator<Item = ConnectionInfo> + '_ {
        self.kept.iter().map(move |(at_ms, info)| ConnectionInfo { idle_ms: now_ms.saturating_sub(*at_ms), ..info.clone() })
    }

    /// A remembered connection, by its id.
    #[must_use]
    pub fn find(&self, connection_id: &str, now_ms: u64) -> Option<ConnectionInfo> {
        let (at_ms, info) = self.kept.iter().rev().find(|(_, info)| info.connection_id == connection_id)?;
        Some(ConnectionInfo { idle_ms: now_ms.saturating_sub(*at_ms), ..info.clone() })
    }
}

/// Wakes a shard; an eventfd in the engine, a flag in tests.
pub trait Bell: Send + Sync {
    /// Rings. Never blocks; ringing twice is ringing once.
    fn ring(&self);
}

/// The port had no room; here is the message again.
#[derive(Debug, thiserror::Error)]
#[error("the port of shard {shard} is full: the shard does not take its messages")]
pub struct PortFull {
    pub shard: usize,
    pub message: PortMessage,
}

/// Control's end.
#[derive(Clone)]
pub struct Port {
    shard: usize,
    queue: Arc<ArrayQueue<PortMessage>>,
    bell: Arc<dyn Bell>,
    counters: SharedCounters,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Port").field("shard", &self.shard).field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

/// The shard's end.
#[derive(Debug)]
pub struct PortReceiver {
    queue: Arc<ArrayQueue<PortMessage>>,
}

/// A port to shard number `shard`, whose counters control will read.
#[must_use]
pub fn port(shard: usize, bell: Arc<dyn Bell>, counters: SharedCounters) -> (Port, PortReceiver) {
    let queue = Arc::new(ArrayQueue::new(PORT_DEPTH_MAX));
    (Port { shard, queue: Arc::clone(&queue), bell, counters }, PortReceiver { queue })
}

impl Port {
    /// The shard's number.
    #[must_use]
    pub const fn shard(&self) -> usize {
        self.shard
    }

    /// The shard's counters.
    #[must_use]
    pub fn counters(&self) -> &SharedCounters {
        &self.counters
    }

    /// Puts a message in and rings.
    ///
    /// # Errors
    /// The message, if the port is full. The bell has rung all the same.
    pub fn send(&self, message: PortMessage) -> Result<(), Box<PortFull>> {
        let pushed = self.queue.push(message);
        // The push comes before the ring, so that the shard that wakes finds it.
        self.bell.ring();
        pushed.map_err(|message| Box::new(PortFull { shard: self.shard, message }))
    }
}

impl PortReceiver {
    /// The next message.
    #[must_use]
    pub fn pop(&self) -> Option<PortMessage> {
        self.queue.pop()
    }

    /// Returns `true` if nothing waits: check again after the sleep was announced.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::counters::shared_counters;
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct CountingBell(AtomicUsize);
    impl Bell for CountingBell {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn info(number: usize) -> ConnectionInfo {
        ConnectionInfo {
            connection_id: format!("c-{number}"),
            shard: 0,
            peer: [127, 0, 0, 1].into(),
            client_id: "ana".into(),
            state: ConnectionState::Open,
            sessions: vec![SessionInfo { session_id: "s".into(), head_seq: 9, cursor_seq: 4, mirrored: false }],
            buffered_bytes: 7,
            age_ms: 50,
            idle_ms: 3,
            messages_in: 1,
            messages_out: 2,
            close_reason: None,
            close_code: None,
        }
    }

    #[test]
    fn a_full_port_gives_the_message_back_and_rings() {
        let bell = Arc::new(CountingBell::default());
        let (port, receiver) = port(3, bell.clone(), shared_counters());
        for _ in 0..PORT_DEPTH_MAX {
            port.send(PortMessage::Stop).unwrap();
        }
        let full = port.send(PortMessage::Drain { window_ms: 5, restart: false }).unwrap_err();
        assert_eq!(full.shard, 3);
        assert!(matches!(full.message, PortMessage::Drain { window_ms: 5, .. }));
        assert_eq!(bell.0.load(Ordering::SeqCst), PORT_DEPTH_MAX + 1);
        assert!(matches!(receiver.pop(), Some(PortMessage::Stop)));
        assert!(port.send(PortMessage::Stop).is_ok());
    }

    #[test]
    fn closed_connections_are_kept_for_their_time_and_bounded() {
        let mut closed = ClosedConnections::default();
        assert_eq!(closed.remember(info(0), CloseReason::TooSlow, 1_000), 0);
        let found = closed.find("c-0", 4_000).unwrap();
        assert_eq!((found.state, found.idle_ms, found.close_code), (ConnectionState::Closed, 3_000, Some(4508)));
        assert_eq!(found.close_reason.as_deref(), Some("too_slow"));
        assert_eq!(found.sessions[0].lag(), 5);
        closed.forget_old(1_000 + CLOSED_KEPT_MS - 1);
        assert_eq!(closed.len(), 1);
        closed.forget_old(1_000 + CLOSED_KEPT_MS);
        assert!(closed.is_empty());
        for number in 0..CLOSED_KEPT_MAX {
            assert_eq!(closed.remember(info(number), CloseReason::Ended, 0), 0);
        }
        assert_eq!(closed.remember(info(CLOSED_KEPT_MAX), CloseReason::Ended, 0), 1);
        assert_eq!(closed.len(), CLOSED_KEPT_MAX);
        assert!(closed.find("c-0", 0).is_none());
        assert_eq!(closed.iter(5).count(), CLOSED_KEPT_MAX);
    }
}
