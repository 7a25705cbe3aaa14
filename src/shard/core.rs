//! The shard: all state of one thread, and the order of a turn.
//!
//! Events are handled as they come; a turn then drains the lanes and the port, fires timers, and sends. Nothing here waits, reads a
//! clock or touches a socket but through [`Io`].

use super::across::links::Links;
use super::across::mesh::Mesh;
use super::connections::admission::Admission;
use super::connections::table::Connections;
use super::context::Context;
use super::counters::{LimitReached, SharedCounters};
use super::durability::Storage;
use super::durability::purge::Purging;
use super::durability::state_records::on_segment_gone;
use super::home::{Home, SWEPT_AT_ONCE};
use super::inbound::backpressure::Pressure;
use super::inbound::codec::Codec;
use super::outbound::flush::Outbound;
use super::port::{PortReceiver, Snapshot};
use super::timers::{TIMERS_PER_TURN_MAX, Timer, Timers};
use crate::close::CloseReason;
use crate::ids::{ConnId, HashKey};
use crate::io::{Event, Io, Next, RingStats, Shard};
use crate::log::Position;
use crate::session::Place;
use crate::time::Tick;
use std::sync::Arc;

/// Time for which a stop waits for the disk to take the appended records.
const STOP_DISK_MS: u64 = 5000;
/// Interval between sweeps, for records that left the log's memory and for sessions to forget.
const SWEEP_EVERY_MS: u64 = 20;
/// Time after which a shard checks again whether a full lane has room. Its receiver is awake and drains a lane within a turn.
const LANE_FULL_WAIT_NS: u64 = 100_000;

/// Parameters of a shard.
#[derive(Debug)]
pub struct CoreOptions {
    /// This shard's number.
    pub shard: usize,
    /// The process's key for names. The same on all shards.
    pub key: HashKey,
    pub mesh: Arc<Mesh>,
    pub admission: Arc<Admission>,
    pub counters: SharedCounters,
    pub port: PortReceiver,
    pub snapshot: Arc<Snapshot>,
    /// Seeds ids and trace ids.
    pub seed: u64,
}

/// The parts of a shard. Each owns its state; work on several of them is [`Core`]'s.
pub struct Core {
    pub(super) cx: Context,
    pub(super) connections: Connections,
    pub(super) home: Home,
    pub(super) storage: Storage,
    pub(super) links: Links,
    pub(super) codec: Codec,
    pub(super) out: Outbound,
    pub(super) pressure: Pressure,
    pub(super) timers: Timers,
    pub(super) admission: Arc<Admission>,
    pub(super) port: PortReceiver,
    pub(super) life: Life,
    pub(super) stats: TurnStats,
    /// The widest bounds that have been in force, for [`Core::inspect`]: entries made under them may still exist.
    #[cfg(test)]
    pub(super) widest: crate::config::Limits,
}

/// The phases of a shard's life.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) draining: bool,
    pub(super) stopping: bool,
    /// When a stop ends without waiting for the disk any longer.
    stop_until_ms: u64,
    /// `true` if control has put something into the port.
    bell: bool,
}

/// Figures of a turn, for the counters at its end.
#[derive(Debug, Default)]
pub(super) struct TurnStats {
    /// The engine's counters as last published.
    ring_seen: RingStats,
    /// Messages taken since the turn began, for the routing histogram.
    pub(super) routed_in_turn: u64,
}

impl Core {
    /// A shard without connections.
    #[must_use]
    pub fn new(options: CoreOptions) -> Self {
        let settings = &options.snapshot.settings;
        Self {
            connections: Connections::new(options.key, settings.limits.shard_memory_bytes as u64),
            home: Home::new(options.key),
            storage: Storage::new(options.key, settings.log.memory_bytes),
            links: Links::new(options.mesh, options.key, settings.log.memory_bytes / 4),
            codec: Codec::default(),
            out: Outbound::default(),
            pressure: Pressure::default(),
            timers: Timers::default(),
            admission: options.admission,
            port: options.port,
            life: Life { draining: false, stopping: false, stop_until_ms: 0, bell: true },
            stats: TurnStats::default(),
            #[cfg(test)]
            widest: settings.limits,
            cx: Context::new(options.shard, options.key, options.snapshot, options.counters, options.seed),
        }
    }

    /// Returns `true` until the records that recovery appended are durable; no connection is accepted before.
    #[must_use]
    pub fn recovery_pending(&self) -> bool {
        self.storage.recovery_pending()
    }

    /// Reads of the disk that are under way for pages of history.
    #[cfg(test)]
    pub fn reads_for_histories(&self) -> usize {
        self.storage.reads_for_histories()
    }

    /// The place of an attachment here.
    pub(super) fn place_here(&self, conn: ConnId, attachment: u16) -> Place {
        let ticket =
            self.connections.get(conn).and_then(|conn| conn.attachment(attachment)).map_or(0, |attachment| attachment.ticket);
        Place { shard: self.cx.shard_number(), attachment, ticket, conn }
    }

    fn end_doomed<I: Io>(&mut self, io: &mut I, now: Tick) {
        while let Some((id, reason)) = self.connections.doomed.pop() {
            self.close(io, id, reason, now);
        }
    }

    fn fire_timers<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        let mut fired = std::mem::take(&mut self.timers.fired);
        let more = self.timers.wheel.poll(now.mono_ms(), TIMERS_PER_TURN_MAX, &mut fired);
        self.cx.counters.timers.add(fired.len() as u64);
        for timer in fired.drain(..) {
            match timer {
                Timer::Conn(id) => self.on_conn_timer(io, id, now),
                Timer::Member(member) => self.on_member_timer(member, now),
            }
        }
        self.timers.fired = fired;
        more
    }

    /// Examines a few sessions: records that left the log's memory leave their index, and an empty session is forgotten.
    fn sweep(&mut self, now: Tick) {
        if now.mono_ms() < self.home.sweep_due_ms {
            return;
        }
        self.home.sweep_due_ms = now.mono_ms() + SWEEP_EVERY_MS;
        self.home.sweep_members();
        self.wipe_no_more(now);
        let idle_ms = self.cx.snapshot.settings.session.idle_ms;
        let places = self.home.sessions.sessions.places();
        for _ in 0..SWEPT_AT_ONCE.min(places) {
            self.home.sweep_at = (self.home.sweep_at + 1) % places;
            let Some((key, session)) = self.home.sessions.sessions.at(self.home.sweep_at) else { continue };
            let (stream, no_members) = (session.stream, session.members.is_empty() && session.mirrors.is_empty());
            // A reader whose member is forgotten may still wait for answers to requests it made before it left.
            let empty = no_members && self.home.streams.get(stream).is_none_or(|stream| stream.readers.is_empty());
            self.trim(stream);
            let Some(session) = self.home.sessions.sessions.get_mut(key) else { continue };
            if !empty {
                session.empty_since_ms = 0;
                continue;
            }
            if session.empty_since_ms == 0 {
                session.empty_since_ms = now.mono_ms().max(1);
            }
            let is_kept = session.kept_at > Position(0);
            let idle = now.mono_ms().saturating_sub(session.empty_since_ms) >= idle_ms;
            // If anything was ever said, the session stays, so that its order goes on even though retention has dropped all of
            // it.
            let bare = self.home.streams.get(stream).is_some_and(|stream| stream.index.head() == 0);
            if (idle || bare)
                && (!is_kept || !self.storage.log_is_behind(&self.cx))
                && let Some(session) = self.home.sessions.remove(key)
            {
                self.home.streams.remove(stream);
                if is_kept {
                    self.storage.keep_session_gone(&self.cx, (session.hash, session.epoch_number), now);
                }
                self.cx.counters.sessions.set(self.home.sessions.sessions.len() as u64);
            }
        }
    }

    fn publish_counters<I: Io>(&mut self, io: &I, started: Tick) {
        let counters = &self.cx.counters;
        counters.turns.increment();
        counters.connections.set(self.connections.count as u64);
        counters.connections_half_open.set(self.connections.half_open.len() as u64);
        counters.members.set(self.home.sessions.members.len() as u64);
        counters.log_chunks.set((self.storage.log.resident_bytes() / crate::limits::CHUNK_BYTES) as u64);
        counters.log_bytes.set(self.storage.log.end().0.saturating_sub(self.storage.log.oldest().0));
        counters
            .log_full
            .set(u64::from(self.storage.disk.as_ref().is_some_and(|disk| disk.room.is_capped || disk.full.is_some())));
        counters.mirrors.set(self.links.mirrors.len() as u64);
        counters.mirror_bytes.set(self.links.mirror_log.resident_bytes() as u64);
        let stats = io.stats();
        if stats != self.stats.ring_seen {
            counters.ring_no_buffers.set(stats.buffers_exhausted);
            counters.ring_overflows.set(stats.overflows);
            counters.ring_rearms.set(stats.rearmed);
            counters.accept_failures.set(stats.accepts_failed);
            counters.ring_short_writes.set(stats.short_writes);
            counters.log_reads_waited.set(stats.read_backs_waited);
            self.stats.ring_seen = stats;
        }
        let took_ns = io.clock().mono_ns.saturating_sub(started.mono_ns);
        counters.turn_ns.record(took_ns);
        if self.stats.routed_in_turn > 0 {
            counters.routing_ns.record_many(took_ns, self.stats.routed_in_turn);
            self.stats.routed_in_turn = 0;
        }
    }

    /// Ends the shard: everyone is told, then the loop returns.
    pub(super) fn stop<I: Io>(&mut self, io: &mut I, now: Tick) {
        io.accept(false);
        let ids: Vec<ConnId> = self.connections.table.iter().flatten().map(|conn| conn.id).collect();
        for id in &ids {
            self.close(io, *id, CloseReason::Shutdown, now);
        }
        self.flush(io, now, usize::MAX);
        for id in ids {
            self.drop_conn(io, id, now);
        }
        self.life.stopping = true;
        self.life.stop_until_ms = now.mono_ms() + STOP_DISK_MS;
    }

    /// Drops connections that other shards handed over before they heard of the stop; this turn's flush has told them.
    fn drop_late<I: Io>(&mut self, io: &mut I, now: Tick) {
        if self.connections.count == 0 {
            return;
        }
        let ids: Vec<ConnId> = self.connections.table.iter().flatten().map(|conn| conn.id).collect();
        for id in ids {
            self.drop_conn(io, id, now);
        }
    }
}

impl Shard for Core {
    fn event<I: Io>(&mut self, io: &mut I, event: Event<'_>, now: Tick) {
        match event {
            Event::Accepted { conn, peer } => self.on_accepted(io, conn, peer, now),
            Event::AcceptFailed(error) => {
                if matches!(error.kind(), std::io::ErrorKind::QuotaExceeded) {
                    self.cx.counters.limit_reached(LimitReached::Connections);
                } else {
                    self.cx.counters.limit_reached(LimitReached::OpenFiles);
                }
                tracing::warn!(shard = self.cx.shard, %error, "accept failed; see `ringway doctor` on open files and server.max_connections");
            }
            Event::Received { conn, bytes } => self.on_received(io, conn, bytes, now),
            Event::Ended { conn, error } => self.on_ended(io, conn, error.as_ref(), now),
            Event::Quiet { conn } => self.on_quiet(io, conn, now),
            Event::Writable { conn } => self.connections.on_writable(conn),
            Event::Bell => self.life.bell = true,
            Event::Written { result, .. } => self.on_written(io, result, now),
            Event::Synced { result, .. } => self.on_synced(io, result, now),
            Event::ReadBack { tag, result } => self.on_read_back(io, tag, result, now),
            Event::SegmentReady { number, result } => self.on_segment_ready(number, result, now),
            Event::SegmentGone { number, result } => on_segment_gone(&self.cx, number, result),
            Event::Purged { step, result } => self.storage.on_purged(&self.cx, step, result),
            Event::SegmentIndexed { number, result, unsaved } => self.on_segment_indexed(io, number, result, unsaved, now),
            Event::SegmentLost { number } => self.on_segment_lost(number, now),
        }
    }

    fn turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next {
        self.timers.notice_standstill(&self.cx, now);
        self.note_memory();
        let next = self.take_turn(io, now);
        #[cfg(test)]
        self.look_at_itself(!matches!(next, Next::Again), now);
        self.timers.turn_due_ms = match next {
            Next::Again => now.mono_ms(),
            Next::At(at_ns) => at_ns / 1_000_000,
            Next::Idle | Next::Stop => u64::MAX,
        };
        next
    }

    fn before_sleep(&mut self) -> bool {
        self.links.mesh.door(self.cx.shard).sleep()
    }

    fn after_sleep(&mut self) {
        self.links.mesh.door(self.cx.shard).wake();
    }
}

impl Core {
    fn take_turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next {
        if self.life.bell {
            self.life.bell = false;
            self.take_port(io, now);
        }
        let mut busy = self.drain_lanes(io, now);
        busy |= self.look_anew(now);
        busy |= self.fire_timers(io, now);
        self.try_unread_again(io, now);
        self.storage.age_log(&self.cx, now);
        self.sweep(now);
        while let Some(id) = self.connections.echo_opened.pop() {
            self.connections.read_on(io, id);
            self.set_timer(id, now);
        }
        busy |= self.serve_histories(io);
        let (has_more_to_tell, told_lane_full) = self.serve_tellings();
        busy |= has_more_to_tell;
        let held_ms = self.release_held(io, now);
        let departure_ms = self.depart(io, now);
        // A connection whose answer found no room is closed for that reason, and not as one that was answered.
        self.end_doomed(io, now);
        let leaving_ns = self.end_leaving(io, now);
        // Replies first: they come before the records that follow their places.
        self.links.push_backlog(&self.cx, io);
        let mut lane_full = self.push_mirrors(io) | told_lane_full;
        busy |= self.write_all_owed(now);
        busy |= self.let_files_go(io, now);
        self.compact(io, now);
        match self.purge_on(io, now) {
            Purging::Rests => {}
            Purging::Busy => busy = true,
            Purging::LaneFull => lane_full = true,
        }
        self.write_log(io, now);
        busy |= self.flush(io, now, crate::limits::SENDS_PER_TURN_MAX);
        self.end_doomed(io, now);
        if self.life.stopping {
            self.drop_late(io, now);
        }
        self.free_left(io);
        self.send_pulls(io);
        busy |= self.index_segments(io, now);
        lane_full |= self.links.push_backlog(&self.cx, io);
        self.publish_counters(io, now);
        if self.life.stopping && (self.log_settled() || now.mono_ms() >= self.life.stop_until_ms) {
            return Next::Stop;
        }
        // Connections closed after the flush have a close frame to send.
        if busy || !self.connections.doomed.is_empty() || !self.connections.dirty.is_empty() {
            return Next::Again;
        }
        let timer_ns = self.timers.wheel.next_ms().map(|due_ms| due_ms * 1_000_000);
        let departure_ns = departure_ms.into_iter().chain(held_ms).min().map(|at_ms| at_ms * 1_000_000);
        let disk_ns =
            self.storage.disk_due_ms().map(|due_ms| if self.life.stopping { now.mono_ms() + 1 } else { due_ms } * 1_000_000);
        let copy_ns = self.storage.compaction_due_ms().map(|due_ms| due_ms * 1_000_000);
        let again_ns = self.storage.unreadable.due_ms().map(|due_ms| due_ms * 1_000_000);
        let lane_ns = lane_full.then_some(now.mono_ns + LANE_FULL_WAIT_NS);
        [timer_ns, departure_ns, lane_ns, disk_ns, copy_ns, again_ns, leaving_ns]
            .into_iter()
            .flatten()
            .min()
            .map_or(Next::Idle, Next::At)
    }
}
