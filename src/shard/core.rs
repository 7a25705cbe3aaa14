//! The shard: all state of one thread, and the order of a turn.
//!
//! Events are handled as they come; a turn then drains the lanes and the port, fires timers, and sends. Nothing here waits, reads a
//! clock or touches a socket but through [`Io`].

use super::across::mesh::{LaneMessage, Mesh, Page, Spoken};
use super::connections::admission::Admission;
use super::connections::conn::{Attachment, Conn, Phase};
use super::connections::half_open::HalfOpen;
use super::counters::{LimitReached, SharedCounters};
use super::durability::disk::{Disk, Fence, READ_TAGS};
use super::durability::history::Histories;
use super::durability::purge::{Purge, Purging};
use super::durability::read_back::{Places, Reading};
use super::durability::read_errors::Unreadable;
use super::inbound::backpressure::Pressure;
use super::outbound::flush::Outbound;
use super::port::{ClosedConnections, PortReceiver, Snapshot};
use super::wheel::Wheel;
use crate::buffers::Buffers;
use crate::close::CloseReason;
use crate::ids::{ConnId, HashKey, Map};
use crate::io::{Event, Io, Next, Read, RingStats, Shard};
use crate::limits::SEND_BYTES_MAX;
use crate::log::{AgeClock, Ages, Log, Position};
use crate::protocol::{CommandParser, Parser};
use crate::session::{Dedupe, MemberKey, Place, SessionKey, Sessions, Stream, StreamKey};
use crate::slots::Slots;
use crate::time::Tick;
use crate::ws::deflate::{Deflater, Inflater};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Time for which a stop waits for the disk to take the appended records.
const STOP_DISK_MS: u64 = 5000;
/// Timers that fire in one turn.
const TIMERS_PER_TURN_MAX: usize = 1024;
/// Sessions that one sweep examines, and the interval between sweeps, for records that left the log's memory and for sessions to
/// forget.
const SWEEP_SESSIONS: usize = 256;
const SWEEP_EVERY_MS: u64 = 20;
/// Time after which a shard checks again whether a full lane has room. Its receiver is awake and drains a lane within a turn.
const LANE_FULL_WAIT_NS: u64 = 100_000;
/// Buffers that the pool keeps, the largest one kept, and all their bytes together. A vector that grows to hold a message, a
/// batch for a mirror or waiting ciphertext has at most twice the memory it needs.
const POOL_BUFFERS: usize = 8192;
const POOL_BUFFER_BYTES: usize = 2 * SEND_BYTES_MAX;
const POOL_BYTES: usize = 16 * 1024 * 1024;

/// Timers on the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Conn(ConnId),
    Member(MemberKey),
}

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

/// See the module's text.
pub struct Core {
    pub(super) shard: usize,
    pub(super) key: HashKey,
    pub(super) mesh: Arc<Mesh>,
    pub(super) admission: Arc<Admission>,
    pub(super) counters: SharedCounters,
    pub(super) port: PortReceiver,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) conns: Vec<Option<Box<Conn>>>,
    pub(super) half_open: HalfOpen,
    /// Connections over a bound that have not been told, or not gone; the ids may be stale.
    pub(super) turned_away: VecDeque<ConnId>,
    /// Rate limit of log lines about them.
    pub(super) door_lines: super::connections::rate::Bucket,
    pub(super) conns_count: usize,
    pub(super) closed: ClosedConnections,
    /// Connections to end before the turn does: found in code that has no [`Io`].
    pub(super) doomed: Vec<(ConnId, CloseReason)>,
    pub(super) streams: Slots<Stream>,
    pub(super) mirrors: Map<u64, StreamKey>,
    pub(super) sessions: Sessions,
    pub(super) log: Log,
    pub(super) mirror_log: Log,
    /// Send times of the log's positions.
    pub(super) ages: Ages,
    pub(super) age_clock: AgeClock,
    pub(super) age_due_ms: u64,
    pub(super) parser: Option<Box<Parser>>,
    pub(super) commands: Option<Box<CommandParser>>,
    pub(super) buffers: Buffers,
    pub(super) inflater: Inflater,
    pub(super) deflater: Deflater,
    pub(super) inflated: Vec<u8>,
    pub(super) plain: Vec<u8>,
    pub(super) wheel: Wheel<Timer>,
    fired: Vec<Timer>,
    pub(super) dirty: VecDeque<ConnId>,
    pub(super) dirty_streams: Vec<StreamKey>,
    pub(super) out: Outbound,
    pub(super) lane_backlog: Vec<VecDeque<LaneMessage>>,
    /// Connections with an `Evict` already queued for this lane, so that each is evicted once.
    pub(super) evicted: Vec<Map<Place, ()>>,
    pub(super) spoken: Spoken,
    pub(super) mirrored: Vec<SessionKey>,
    pub(super) shaking: super::connections::rate::Bucket,
    pub(super) next_serial: u64,
    random: u64,
    sweep_at: usize,
    sweep_due_ms: u64,
    /// The index in the members' table that is swept next.
    sweep_member_at: usize,
    /// The part of `limits.shard_memory_bytes` for connections; the rest is for data that waits for the disk.
    pub(super) buffers_bytes_max: u64,
    /// When the next turn is due; `u64::MAX` if nothing is.
    pub(super) turn_due_ms: u64,
    /// When its last standstill ended; 0 if there was none. See `connections/deadlines.rs`.
    pub(super) awake_since_ms: u64,
    ring_seen: RingStats,
    /// Messages taken since the turn began, for the routing histogram.
    pub(super) routed_in_turn: u64,
    /// Frame number, on its own connection, and ack preference of the forwarded message being handled.
    pub(super) forwarded: (u64, bool),
    /// The shard whose lane is being read.
    pub(super) reading_from: Option<u16>,
    /// Pulls to send for readers behind their mirror: `(attachment, member, cursor)`.
    pub(super) pulls: Vec<(Place, MemberKey, u64)>,
    /// Pages for the next pulls.
    #[expect(clippy::vec_box, reason = "the boxes are what is kept: they cross the lanes")]
    pub(super) pages: Vec<Box<Page>>,
    /// Attachments whose last reply is sent; freed at the end of the turn.
    pub(super) left: Vec<Place>,
    /// Connections that opened `/v1/echo` while their head was read.
    pub(super) pressure: Pressure,
    pub(super) echo_opened: Vec<ConnId>,
    /// Ids of posts to channels from outside, in one shared window.
    pub(super) posted: Dedupe,
    /// The session id of the channel being posted to; a reused buffer.
    pub(super) channel_id: String,
    /// Drain schedule, `(close_at_ms, connection)`, latest first.
    pub(super) departures: Vec<(u64, ConnId)>,
    /// Connections that end once everything they sent is answered.
    pub(super) leaving: VecDeque<ConnId>,
    /// Connections of other shards that wait for this shard's answers.
    pub(super) fences: VecDeque<(Place, Fence)>,
    pub(super) random_id: u64,
    /// The log's disk; `None` for a log in memory.
    pub(super) disk: Option<Disk>,
    /// Reads in flight, by tag.
    pub(super) jobs: Map<u64, Reading>,
    /// Parts of index files that were read most recently, newest first.
    pub(super) places: VecDeque<Rc<Places>>,
    /// Requested pages of history.
    pub(super) histories: Histories,
    /// Members of whom watchers are being told.
    pub(super) tellings: super::home::presence::Tellings,
    pub(super) next_read: u64,
    /// Places of the log that the disk cannot read.
    pub(super) unreadable: Unreadable,
    /// Sessions that are being purged, one at a time.
    pub(super) purges: VecDeque<Purge>,
    /// Until when emptied buffers are wiped: [`u64::MAX`] during a purge, 0 if there was none lately.
    pub(super) wipes_until_ms: u64,
    /// Scratch for a record's addresses.
    pub(super) targets: Vec<u64>,
    /// How far connections and members have been re-examined after a change of settings.
    pub(super) anew: Option<super::connections::deadlines::Anew>,
    pub(super) draining: bool,
    pub(super) stopping: bool,
    /// When a stop ends without waiting for the disk any longer.
    stop_until_ms: u64,
    bell: bool,
    /// The widest bounds that have been in force, for [`Core::inspect`]: entries made under them may still exist.
    #[cfg(test)]
    pub(super) widest: crate::config::Limits,
}

impl Core {
    /// A shard without connections.
    #[must_use]
    pub fn new(options: CoreOptions) -> Self {
        let settings = &options.snapshot.settings;
        let shards = options.mesh.shards();
        Self {
            shard: options.shard,
            key: options.key,
            conns: Vec::new(),
            half_open: HalfOpen::new(options.key),
            turned_away: VecDeque::new(),
            door_lines: super::connections::rate::Bucket::default(),
            conns_count: 0,
            closed: ClosedConnections::default(),
            doomed: Vec::new(),
            streams: Slots::default(),
            mirrors: Map::with_hasher(options.key),
            sessions: Sessions::new(options.key),
            log: Log::new(settings.log.memory_bytes),
            mirror_log: Log::new(settings.log.memory_bytes / 4),
            ages: Ages::default(),
            age_clock: AgeClock::default(),
            age_due_ms: 0,
            parser: Some(Box::default()),
            commands: Some(Box::default()),
            buffers: Buffers::new(POOL_BUFFERS, POOL_BUFFER_BYTES, POOL_BYTES),
            inflater: Inflater::new(),
            deflater: Deflater::new(),
            inflated: Vec::new(),
            plain: Vec::new(),
            wheel: Wheel::default(),
            fired: Vec::with_capacity(TIMERS_PER_TURN_MAX),
            dirty: VecDeque::new(),
            dirty_streams: Vec::new(),
            out: Outbound::default(),
            lane_backlog: (0..shards).map(|_| VecDeque::new()).collect(),
            evicted: (0..shards).map(|_| Map::with_hasher(options.key)).collect(),
            spoken: Spoken::default(),
            mirrored: Vec::new(),
            shaking: super::connections::rate::Bucket::default(),
            next_serial: 1,
            random: options.seed,
            sweep_at: 0,
            sweep_due_ms: 0,
            sweep_member_at: 0,
            buffers_bytes_max: settings.limits.shard_memory_bytes as u64,
            turn_due_ms: u64::MAX,
            awake_since_ms: 0,
            ring_seen: RingStats::default(),
            routed_in_turn: 0,
            forwarded: (0, true),
            reading_from: None,
            pulls: Vec::new(),
            pages: Vec::new(),
            left: Vec::new(),
            pressure: Pressure::default(),
            echo_opened: Vec::new(),
            posted: Dedupe::default(),
            channel_id: String::new(),
            departures: Vec::new(),
            leaving: VecDeque::new(),
            fences: VecDeque::new(),
            random_id: options.seed,
            disk: None,
            jobs: Map::with_hasher(options.key),
            places: VecDeque::new(),
            histories: Histories::new(options.key),
            tellings: super::home::presence::Tellings::default(),
            next_read: READ_TAGS,
            unreadable: Unreadable::default(),
            purges: VecDeque::new(),
            wipes_until_ms: 0,
            targets: Vec::new(),
            anew: None,
            draining: false,
            stopping: false,
            stop_until_ms: 0,
            bell: true,
            #[cfg(test)]
            widest: settings.limits,
            mesh: options.mesh,
            admission: options.admission,
            counters: options.counters,
            port: options.port,
            snapshot: options.snapshot,
        }
    }

    /// A connection; `None` if its id is stale.
    pub(super) fn conn(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(id.index as usize)?.as_deref().filter(|conn| conn.id == id)
    }

    /// A connection; `None` if its id is stale.
    pub(super) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.index as usize)?.as_deref_mut().filter(|conn| conn.id == id)
    }

    /// The attachment of a place; `None` if the place is free or has another ticket.
    pub(super) fn attachment_at(&mut self, place: Place) -> Option<&mut Attachment> {
        self.conn_mut(place.conn)?.attachment_mut(place.attachment).filter(|attachment| attachment.ticket == place.ticket)
    }

    /// The place of an attachment here.
    pub(super) fn place_here(&self, conn: ConnId, attachment: u16) -> Place {
        let ticket = self.conn(conn).and_then(|conn| conn.attachment(attachment)).map_or(0, |attachment| attachment.ticket);
        Place { shard: self.shard_number(), attachment, ticket, conn }
    }

    pub(super) fn put_conn(&mut self, conn: Conn) {
        let index = conn.id.index as usize;
        if self.conns.len() <= index {
            self.conns.resize_with(index + 1, || None);
        }
        self.conns[index] = Some(Box::new(conn));
        self.conns_count += 1;
    }

    /// Not for secrets: SplitMix64 (Steele, Lea and Flood 2014), seeded by the kernel, for trace ids, jitter and epochs.
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Adds a connection to those that have something to send.
    pub(super) fn mark(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        if conn.id == id && !conn.flags.dirty && !conn.flags.blocked {
            conn.flags.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Ends a connection before this turn does.
    pub(super) fn doom(&mut self, id: ConnId, reason: CloseReason) {
        self.doomed.push((id, reason));
    }

    fn end_doomed<I: Io>(&mut self, io: &mut I, now: Tick) {
        while let Some((id, reason)) = self.doomed.pop() {
            self.close(io, id, reason, now);
        }
    }

    fn fire_timers<I: Io>(&mut self, io: &mut I, now: Tick) -> bool {
        let mut fired = std::mem::take(&mut self.fired);
        let more = self.wheel.poll(now.mono_ms(), TIMERS_PER_TURN_MAX, &mut fired);
        self.counters.timers.add(fired.len() as u64);
        for timer in fired.drain(..) {
            match timer {
                Timer::Conn(id) => self.on_conn_timer(io, id, now),
                Timer::Member(member) => self.on_member_timer(member, now),
            }
        }
        self.fired = fired;
        more
    }

    /// Examines a few sessions: records that left the log's memory leave their index, and an empty session is forgotten.
    fn sweep(&mut self, now: Tick) {
        if now.mono_ms() < self.sweep_due_ms {
            return;
        }
        self.sweep_due_ms = now.mono_ms() + SWEEP_EVERY_MS;
        self.sweep_members();
        self.wipe_no_more(now);
        let idle_ms = self.snapshot.settings.session.idle_ms;
        let places = self.sessions.sessions.places();
        for _ in 0..SWEEP_SESSIONS.min(places) {
            self.sweep_at = (self.sweep_at + 1) % places;
            let Some((key, session)) = self.sessions.sessions.at(self.sweep_at) else { continue };
            let (stream, no_members) = (session.stream, session.members.is_empty() && session.mirrors.is_empty());
            // A reader whose member is forgotten may still wait for answers to requests it made before it left.
            let empty = no_members && self.streams.get(stream).is_none_or(|stream| stream.readers.is_empty());
            self.trim(stream);
            let Some(session) = self.sessions.sessions.get_mut(key) else { continue };
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
            let bare = self.streams.get(stream).is_some_and(|stream| stream.index.head() == 0);
            if (idle || bare)
                && (!is_kept || !self.log_is_behind())
                && let Some(session) = self.sessions.remove(key)
            {
                self.streams.remove(stream);
                if is_kept {
                    self.keep_session_gone((session.hash, session.epoch_number), now);
                }
                self.counters.sessions.set(self.sessions.sessions.len() as u64);
            }
        }
    }

    /// Examines a few members: stays in rooms of which no message is retained any more are forgotten.
    fn sweep_members(&mut self) {
        let places = self.sessions.members.places();
        for _ in 0..SWEEP_SESSIONS.min(places) {
            self.sweep_member_at = (self.sweep_member_at + 1) % places;
            let Some((key, member)) = self.sessions.members.at(self.sweep_member_at) else { continue };
            if !member.entitlements.has_ended_stays() {
                continue;
            }
            let session = self.sessions.sessions.get(member.session);
            let Some(stream) = session.and_then(|session| self.streams.get(session.stream)) else { continue };
            let oldest = stream.index.first();
            if let Some(member) = self.sessions.members.get_mut(key) {
                member.entitlements.prune(oldest);
            }
        }
    }

    fn publish_counters<I: Io>(&mut self, io: &I, started: Tick) {
        let counters = &self.counters;
        counters.turns.increment();
        counters.connections.set(self.conns_count as u64);
        counters.connections_half_open.set(self.half_open.len() as u64);
        counters.members.set(self.sessions.members.len() as u64);
        counters.log_chunks.set((self.log.resident_bytes() / crate::limits::CHUNK_BYTES) as u64);
        counters.log_bytes.set(self.log.end().0.saturating_sub(self.log.oldest().0));
        counters.log_full.set(u64::from(self.disk.as_ref().is_some_and(|disk| disk.room.is_capped || disk.full.is_some())));
        counters.mirrors.set(self.mirrors.len() as u64);
        counters.mirror_bytes.set(self.mirror_log.resident_bytes() as u64);
        let stats = io.stats();
        if stats != self.ring_seen {
            counters.ring_no_buffers.set(stats.buffers_exhausted);
            counters.ring_overflows.set(stats.overflows);
            counters.ring_rearms.set(stats.rearmed);
            counters.accept_failures.set(stats.accepts_failed);
            counters.ring_short_writes.set(stats.short_writes);
            counters.log_reads_waited.set(stats.read_backs_waited);
            self.ring_seen = stats;
        }
        let took_ns = io.clock().mono_ns.saturating_sub(started.mono_ns);
        counters.turn_ns.record(took_ns);
        if self.routed_in_turn > 0 {
            counters.routing_ns.record_many(took_ns, self.routed_in_turn);
            self.routed_in_turn = 0;
        }
    }

    /// Ends the shard: everyone is told, then the loop returns.
    pub(super) fn stop<I: Io>(&mut self, io: &mut I, now: Tick) {
        io.accept(false);
        let ids: Vec<ConnId> = self.conns.iter().flatten().map(|conn| conn.id).collect();
        for id in &ids {
            self.close(io, *id, CloseReason::Shutdown, now);
        }
        self.flush(io, now, usize::MAX);
        for id in ids {
            self.drop_conn(io, id, now);
        }
        self.stopping = true;
        self.stop_until_ms = now.mono_ms() + STOP_DISK_MS;
    }

    /// Drops connections that other shards handed over before they heard of the stop; this turn's flush has told them.
    fn drop_late<I: Io>(&mut self, io: &mut I, now: Tick) {
        if self.conns_count == 0 {
            return;
        }
        let ids: Vec<ConnId> = self.conns.iter().flatten().map(|conn| conn.id).collect();
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
                    self.counters.limit_reached(LimitReached::Connections);
                } else {
                    self.counters.limit_reached(LimitReached::OpenFiles);
                }
                tracing::warn!(shard = self.shard, %error, "accept failed; see `ringway doctor` on open files and server.max_connections");
            }
            Event::Received { conn, bytes } => self.on_received(io, conn, bytes, now),
            Event::Ended { conn, error } => self.on_ended(io, conn, error.as_ref(), now),
            Event::Quiet { conn } => self.on_quiet(io, conn, now),
            Event::Writable { conn } => self.on_writable(conn),
            Event::Bell => self.bell = true,
            Event::Written { result, .. } => self.on_written(io, result, now),
            Event::Synced { result, .. } => self.on_synced(io, result, now),
            Event::ReadBack { tag, result } => self.on_read_back(io, tag, result, now),
            Event::SegmentReady { number, result } => self.on_segment_ready(number, result, now),
            Event::SegmentGone { number, result } => self.on_segment_gone(number, result),
            Event::Purged { step, result } => self.on_purged(step, result),
            Event::SegmentIndexed { number, result, unsaved } => self.on_segment_indexed(io, number, result, unsaved, now),
            Event::SegmentLost { number } => self.on_segment_lost(number, now),
        }
    }

    fn turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next {
        self.notice_standstill(now);
        self.note_memory();
        let next = self.take_turn(io, now);
        #[cfg(test)]
        self.look_at_itself(!matches!(next, Next::Again), now);
        self.turn_due_ms = match next {
            Next::Again => now.mono_ms(),
            Next::At(at_ns) => at_ns / 1_000_000,
            Next::Idle | Next::Stop => u64::MAX,
        };
        next
    }

    fn before_sleep(&mut self) -> bool {
        self.mesh.door(self.shard).sleep()
    }

    fn after_sleep(&mut self) {
        self.mesh.door(self.shard).wake();
    }
}

impl Core {
    fn take_turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next {
        if self.bell {
            self.bell = false;
            self.take_port(io, now);
        }
        let mut busy = self.drain_lanes(io, now);
        busy |= self.look_anew(now);
        busy |= self.fire_timers(io, now);
        self.try_unread_again(io, now);
        self.age_log(now);
        self.sweep(now);
        while let Some(id) = self.echo_opened.pop() {
            self.read_on(io, id);
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
        self.push_backlog(io);
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
        if self.stopping {
            self.drop_late(io, now);
        }
        self.free_left(io);
        self.send_pulls(io);
        busy |= self.index_segments(io, now);
        lane_full |= self.push_backlog(io);
        self.publish_counters(io, now);
        if self.stopping && (self.log_settled() || now.mono_ms() >= self.stop_until_ms) {
            return Next::Stop;
        }
        // Connections closed after the flush have a close frame to send.
        if busy || !self.doomed.is_empty() || !self.dirty.is_empty() {
            return Next::Again;
        }
        let timer_ns = self.wheel.next_ms().map(|due_ms| due_ms * 1_000_000);
        let departure_ns = departure_ms.into_iter().chain(held_ms).min().map(|at_ms| at_ms * 1_000_000);
        let disk_ns = self.disk_due_ms().map(|due_ms| if self.stopping { now.mono_ms() + 1 } else { due_ms } * 1_000_000);
        let copy_ns = self.compaction_due_ms().map(|due_ms| due_ms * 1_000_000);
        let again_ns = self.unreadable.due_ms().map(|due_ms| due_ms * 1_000_000);
        let lane_ns = lane_full.then_some(now.mono_ns + LANE_FULL_WAIT_NS);
        [timer_ns, departure_ns, lane_ns, disk_ns, copy_ns, again_ns, leaving_ns]
            .into_iter()
            .flatten()
            .min()
            .map_or(Next::Idle, Next::At)
    }
}

impl Core {
    /// Resumes reading a connection, in the mode of its phase.
    pub(super) fn read_on<I: Io>(&self, io: &mut I, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let mode = match conn.phase {
            Phase::Proxy(_) | Phase::Head(_) | Phase::Hello => Read::Once,
            Phase::Open | Phase::Echo | Phase::Closing(_) => Read::Stream,
            Phase::HandingOver(_) => return,
        };
        io.read(id, mode);
    }
}
