//! A gateway's shards in this process, and what its operator does to them.

use crate::auth::{KeyAlgorithm, KeyMaterial, KeySet, Revocation, Revocations};
use crate::config::{Durability, HistoryView, Settings};
use crate::io::probe::Engine;
use crate::net::upgrade::Policy;
use crate::shard::port::{PortMessage, Snapshot};
use crate::shard::start::{Running, start};
use crate::sim::random::Random;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

pub(super) const SECRET: &[u8; 32] = b"states: a secret of thirty-two b";
/// When all have gone, how long tables may take to be empty.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Settings to begin with, and whether there is a disk.
#[derive(Debug)]
pub(super) struct Plan {
    settings: Settings,
    folder: Option<PathBuf>,
}

impl Plan {
    pub(super) fn draw(random: &mut Random) -> Self {
        static FOLDERS: AtomicU64 = AtomicU64::new(0);
        let mut settings = Settings::default();
        settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        settings.server.max_connections = 64;
        settings.server.pin = false;
        settings.diagnostics.echo = true;
        settings.log.durability = random.pick(&[Durability::Memory, Durability::Written, Durability::Synced]);
        settings.log.segment_bytes = 2 << 20;
        settings.log.memory_bytes = 8 << 20;
        let folder = (random.below(2) == 0).then(|| {
            let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
            std::env::temp_dir().join(format!("ringway-states-{}-{number}", std::process::id()))
        });
        settings.log.dir.clone_from(&folder);
        Self { settings, folder }
    }

    pub(super) const fn on_disk(&self) -> bool {
        self.folder.is_some()
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// All that a reload may change: times from a few milliseconds up, small limits and none.
fn change(settings: &mut Settings, random: &mut Random) {
    let (limits, session) = (&mut settings.limits, &mut settings.session);
    limits.handshakes_per_ip_per_second = random.pick(&[0, 0, 50]);
    limits.handshakes_per_second = random.pick(&[0, 0, 100]);
    limits.connections_per_ip = random.pick(&[0, 5, 200]);
    limits.connections_per_user = random.pick(&[0, 1, 3]);
    limits.half_open_per_ip = random.pick(&[0, 2, 32]);
    limits.half_open_percent = random.pick(&[2, 10, 100]);
    limits.handshake_ms = random.pick(&[20, 300, 5_000]);
    limits.close_ms = random.pick(&[10, 200, 1_000]);
    limits.messages_per_second = random.pick(&[0, 20, 200]);
    limits.messages_burst = random.pick(&[5, 400]);
    limits.bytes_per_second = random.pick(&[0, 20_000, 1_000_000]);
    limits.rate_abuse_ms = random.pick(&[0, 50, 10_000]);
    limits.bad_envelopes = random.pick(&[0, 3, 10]);
    limits.unfinished_message_ms = random.pick(&[30, 10_000]);
    limits.reply_queue_bytes = random.pick(&[4_096, 65_536]);
    limits.reply_queue_frames = random.pick(&[16, 1_024]);
    limits.backpressure_hold_ms = random.pick(&[0, 30, 2_000]);
    limits.shard_memory_bytes = random.pick(&[20_000, 16 << 20, 256 << 20]);
    limits.max_attached_sessions = random.pick(&[1, 3, 64]);
    limits.members_per_session = random.pick(&[2, 5, 1_000]);
    limits.rooms_per_client = random.pick(&[1, 3, 100]);
    limits.sessions_per_shard = random.pick(&[2, 10, 1_000]);
    limits.sessions_per_user = random.pick(&[0, 1, 5]);
    limits.connection_lifetime_s = random.pick(&[0, 1, 86_400]);
    limits.stall_ms = random.pick(&[20, 500, 10_000]);
    session.heartbeat_ms = random.pick(&[50, 300, 25_000]);
    session.heartbeat_timeout_ms = random.pick(&[30, 300, 10_000]);
    session.presence_grace_ms = random.pick(&[0, 30, 500]);
    session.member_unseen_ms = random.pick(&[50, 300, 10_000]);
    session.idle_ms = random.pick(&[20, 300, 10_000]);
    session.dedupe_ids = random.pick(&[1, 10, 1_000]);
    session.dedupe_ms = random.pick(&[20, 600_000]);
    session.history = random.pick(&[HistoryView::Full, HistoryView::FromJoin]);
    session.history_messages = random.pick(&[1, 20, 10_000]);
    session.token_expiry_warning_ms = random.pick(&[0, 900, 60_000]);
    session.token_expiry_grace_ms = random.pick(&[0, 100, 25_000]);
    settings.log.retention_age_s = random.pick(&[0, 1, 600]);
    settings.log.retention_messages = random.pick(&[0, 1, 50]);
    settings.log.retention_bytes = random.pick(&[0, 1_024, 100_000]);
    settings.log.max_bytes = random.pick(&[0, 16 << 20]);
    settings.log.early_delivery = random.below(2) == 0;
    settings.deflate.enabled = random.below(2) == 0;
}

/// Times after which everything that nobody holds on to is forgotten.
fn hurry(settings: &mut Settings) {
    let (limits, session) = (&mut settings.limits, &mut settings.session);
    (limits.handshake_ms, limits.close_ms) = (100, 100);
    (session.heartbeat_ms, session.heartbeat_timeout_ms) = (100, 100);
    (session.presence_grace_ms, session.member_unseen_ms, session.idle_ms) = (0, 50, 20);
    settings.log.retention_age_s = 1;
    settings.log.max_bytes = 0;
}

/// Shards that run.
pub(super) struct Node {
    running: Running,
    snapshot: Arc<Snapshot>,
}

impl Node {
    pub(super) fn start(plan: &Plan, engine: Engine, random: &mut Random) -> Result<Self, String> {
        let material = KeyMaterial { key_id: "k".to_owned(), algorithm: KeyAlgorithm::Hs256, bytes: SECRET.to_vec() };
        let mut settings = plan.settings.clone();
        change(&mut settings, random);
        let snapshot = Arc::new(Snapshot {
            settings: Arc::new(settings),
            keys: Arc::new(KeySet::new(&[material]).map_err(|error| error.to_string())?),
            upgrade: Policy { echo: true, ..Policy::default() },
            ..Snapshot::default()
        });
        let shards = random.index(3) + 2;
        Ok(Self { running: start(shards, &snapshot, engine)?, snapshot })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.running.address
    }

    fn tell(&self, shard: usize, message: PortMessage) {
        // Where the door is full the operator asks in vain.
        drop(self.running.ports[shard].send(message));
    }

    fn configure(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = (*self.snapshot).clone();
        change(&mut snapshot);
        self.snapshot = Arc::new(snapshot);
        for port in &self.running.ports {
            let message = || PortMessage::Configure { snapshot: Arc::clone(&self.snapshot), reply: None };
            while port.send(message()).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Does one thing that an operator does.
    pub(super) fn disturb(&mut self, random: &mut Random) {
        match random.below(8) {
            0..=3 => {
                let mut settings = (*self.snapshot.settings).clone();
                change(&mut settings, random);
                self.configure(|snapshot| snapshot.settings = Arc::new(settings));
            }
            4 => {
                let subject: Box<str> = format!("u{}", random.below(4)).into();
                let revocation = Revocation::Subject { subject, not_before_s: now_s() - 10, until_s: now_s() + 60 };
                let revoked = Revocations::new((random.below(2) == 0).then_some(revocation), now_s());
                let revoked = Arc::new(revoked.expect("one fits"));
                self.configure(|snapshot| snapshot.revocations = revoked);
            }
            5 => {
                let session_id = random.pick(&["s.0", "s.1", "s.2", "channel:c.0"]).to_owned();
                for shard in 0..self.running.ports.len() {
                    let (reply, _) = oneshot::channel();
                    self.tell(shard, PortMessage::Purge { session_id: session_id.clone(), reply });
                }
            }
            _ => {
                let (reply, _) = oneshot::channel();
                let shard = random.index(self.running.ports.len());
                self.tell(shard, PortMessage::ListConnections { from: random.below(20), limit: 10, reply });
            }
        }
    }

    /// Waits until every table of every shard is empty; what is left where one is not.
    pub(super) fn come_to_rest(&mut self) -> Vec<String> {
        let mut settings = (*self.snapshot.settings).clone();
        hurry(&mut settings);
        self.configure(|snapshot| snapshot.settings = Arc::new(settings));
        let until = Instant::now() + PATIENCE;
        loop {
            let left: Vec<String> = (0..self.running.ports.len()).flat_map(|shard| self.left(shard)).collect();
            if left.is_empty() || Instant::now() > until {
                return left;
            }
            std::thread::sleep(LOOK);
        }
    }

    fn left(&self, shard: usize) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        self.tell(shard, PortMessage::WhatIsLeft { reply });
        let left = answer.blocking_recv().unwrap_or_else(|_| vec!["no answer".to_owned()]);
        left.into_iter().map(|what| format!("shard {shard}: {what}")).collect()
    }

    /// Ends the shards; those that do not.
    pub(super) fn stop(self) -> Vec<String> {
        for shard in 0..self.running.ports.len() {
            self.tell(shard, PortMessage::Stop);
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && !self.running.threads.iter().all(std::thread::JoinHandle::is_finished) {
            std::thread::sleep(LOOK);
        }
        let running = self.running.threads.iter().enumerate().filter(|(_, thread)| !thread.is_finished());
        running.map(|(shard, _)| format!("shard {shard} does not stop")).collect()
    }
}

pub(super) fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}
