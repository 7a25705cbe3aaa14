//! A shard's counters. Written by that shard's thread alone, read by control at any time.
//!
//! May import the vocabulary and `histogram`. Invariant: one writer. A counter is a relaxed load and a relaxed store, never a
//! locked instruction, so that counting costs as little as with a plain integer; two writers would lose counts.

use crate::close::CloseReason;
use crossbeam::utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::Histogram;

/// The value for one record in a histogram of records: its lowest bound, so that one is told from two.
pub const RECORD: u64 = 1024;

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Cell64(AtomicU64);

impl Cell64 {
    /// Adds. By the owner's thread only.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds one. By the owner's thread only.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes away, not below zero. By the owner's thread only.
    pub fn subtract(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_sub(count), Ordering::Relaxed);
    }

    /// Sets. By the owner's thread only.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Reads. By any thread.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A labelled family: an enum whose variants each have a counter.
macro_rules! reasons {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant),+ }

        impl $name {
            /// All, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// The number of variants.
            pub const COUNT: usize = Self::ALL.len();

            /// The label in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// The event that is counted, one line.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// The reason why data was thrown away without anybody being told on the wire.
    DropReason {
        /// An ephemeral message, because its reader was behind.
        EphemeralSlow = "ephemeral_slow",
        /// An ephemeral message, because the lane to its shard was full.
        EphemeralLaneFull = "ephemeral_lane_full",
        /// A reply, because its client's reply queue was full; the connection is closed.
        ReplyQueueFull = "reply_queue_full",
        /// Presence data not yet sent to a watcher, because the member had set newer data.
        PresenceOutdated = "presence_outdated",
        /// A WebSocket pong, because an earlier one was still waiting to be sent.
        PongPending = "pong_pending",
        /// Bytes that arrived after the connection had ended.
        AfterClose = "after_close",
        /// A lane message, because its connection or session was gone.
        LaneStale = "lane_stale",
        /// A reply to control, because nobody waited for it any longer.
        PortReplyUnwanted = "port_reply_unwanted",
        /// A receipt or cursor, because its member was gone.
        ReceiptStale = "receipt_stale",
        /// Messages removed from a session's history by its count (log.retention_messages, session.history_messages).
        HistoryMessages = "history_messages",
        /// Messages removed from a session's history because the log's memory was full.
        LogMemory = "log_memory",
        /// Messages removed from a session's history because they were older than log.retention_age_s.
        LogAge = "log_age",
        /// Messages removed from a session's history by log.retention_bytes.
        LogBytes = "log_bytes",
        /// Messages removed from a session's history by a purge.
        Purged = "purged",
        /// A record of the log that is damaged on disk; its readers got rw.gap.
        LogDamaged = "log_damaged",
        /// A message that the disk could not read for seconds (EIO), counted for each of its readers; they got rw.gap. A later
        /// read may succeed.
        LogUnreadable = "log_unreadable",
        /// A member's stay in a room, forgotten while messages of it may still be retained. On resume the member gets
        /// `recovered:false`.
        StayForgotten = "stay_forgotten",
        /// The record of a closed connection, removed before its ten minutes because of newer ones.
        ClosedRecord = "closed_record",
    }
}

reasons! {
    /// A bound that was reached and refused, delayed or closed something. Every bound has one.
    LimitReached {
        /// 16 MiB of messages waiting for the log's disk.
        LogPending = "log_pending",
        /// Senders not read from because their session could not take more.
        Hold = "hold",
        /// Turns in which work had waited too long to be sent; backpressure began.
        UnsentAge = "unsent_age",
        /// The log's disk is full: a file of the log could not be made or written.
        Disk = "disk",
        /// log.max_bytes. A shard's files have its share.
        LogBytes = "log_bytes",
        /// log.reserve_bytes. Another file of the log would use space that must stay free.
        LogReserve = "log_reserve",
        /// Reads of the log waiting for the disk.
        LogReads = "log_reads",
        /// limits.max_message_bytes.
        MessageBytes = "message_bytes",
        /// limits.max_fragments.
        Fragments = "fragments",
        /// limits.unfinished_message_ms.
        UnfinishedMessage = "unfinished_message",
        /// Depth of a message's JSON (64).
        JsonDepth = "json_depth",
        /// limits.messages_per_second.
        MessageRate = "message_rate",
        /// limits.bytes_per_second.
        ByteRate = "byte_rate",
        /// limits.rate_abuse_ms.
        RateAbuse = "rate_abuse",
        /// limits.bad_envelopes.
        BadEnvelopes = "bad_envelopes",
        /// limits.control_frames_per_second.
        ControlFrameRate = "control_frame_rate",
        /// server.max_connections.
        Connections = "connections",
        /// limits.connections_per_ip.
        ConnectionsPerIp = "connections_per_ip",
        /// limits.connections_per_user.
        ConnectionsPerUser = "connections_per_user",
        /// limits.handshakes_per_ip_per_second.
        HandshakesPerIp = "handshakes_per_ip",
        /// limits.handshakes_per_second.
        HandshakesPerShard = "handshakes_per_shard",
        /// limits.half_open_percent.
        HalfOpen = "half_open",
        /// limits.half_open_per_ip.
        HalfOpenPerIp = "half_open_per_ip",
        /// Connections waiting for their refusal (64 a shard); the oldest was closed without an answer.
        TurnedAway = "turned_away",
        /// limits.handshake_ms.
        HandshakeTime = "handshake_time",
        /// limits.tls_handshake_ms.
        TlsHandshakeTime = "tls_handshake_time",
        /// limits.close_ms.
        CloseTime = "close_time",
        /// Connections that ended while answers from another shard's disk were due; over the bound they closed at once.
        Fences = "fences",
        /// Size of the HTTP request line or head, count of its headers, or reads until it was complete.
        RequestHead = "request_head",
        /// Size of a token.
        TokenBytes = "token_bytes",
        /// limits.reply_queue_bytes or limits.reply_queue_frames.
        ReplyQueue = "reply_queue",
        /// limits.shard_memory_bytes.
        ShardMemory = "shard_memory",
        /// limits.max_attached_sessions.
        AttachedSessions = "attached_sessions",
        /// limits.members_per_session.
        MembersPerSession = "members_per_session",
        /// limits.members_per_user, if all of the user's members are connected.
        MembersPerUser = "members_per_user",
        /// limits.rooms_per_client.
        RoomsPerClient = "rooms_per_client",
        /// Stays in rooms that one member has left and that retained messages still need; the oldest was forgotten.
        EndedStays = "ended_stays",
        /// Presence updates of one member waiting for the log, which records one a second.
        PresenceAnswers = "presence_answers",
        /// limits.presence_per_second.
        PresenceRate = "presence_rate",
        /// limits.sessions_per_shard.
        SessionsPerShard = "sessions_per_shard",
        /// limits.sessions_per_user.
        SessionsPerUser = "sessions_per_user",
        /// limits.connection_lifetime_s.
        ConnectionLifetime = "connection_lifetime",
        /// limits.stall_bytes_per_second over limits.stall_ms.
        Stall = "stall",
        /// limits.reply_queue_bytes. The connection was not read from until it had taken its replies.
        Backpressure = "backpressure",
        /// session.heartbeat_timeout_ms.
        HeartbeatTime = "heartbeat_time",
        /// History requests under way: one of an attachment, 16 of a user, 4,096 of all.
        HistoryBusy = "history_busy",
        /// Messages examined, or bytes read from disk, for one page of history; the page ended there and the next one continues.
        HistoryLooks = "history_looks",
        /// Room in the lanes between shards.
        Lane = "lane",
        /// Replies waiting for a lane, by count or bytes; their connections were closed.
        LaneReplies = "lane_replies",
        /// File descriptors of the process.
        OpenFiles = "open_files",
    }
}

impl LimitReached {
    /// The bound whose violation ends a connection for this reason; `None` if it is none. Other bounds are counted where they are
    /// checked.
    #[must_use]
    pub const fn behind(reason: CloseReason) -> Option<Self> {
        match reason {
            CloseReason::MessageTooBig => Some(Self::MessageBytes),
            CloseReason::TooManyFragments => Some(Self::Fragments),
            CloseReason::TooDeep => Some(Self::JsonDepth),
            _ => None,
        }
    }
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A metric as `/metrics` and the operating manual describe it.
#[derive(Debug)]
pub struct MetricInfo {
    /// The name without the prefix `ringway_` and a counter's suffix `_total`.
    pub name: &'static str,
    pub kind: MetricKind,
    /// The quantity counted.
    pub help: &'static str,
    /// The operator's response.
    pub advice: &'static str,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ident, $advice:literal;)+) => {
        /// All counters of one shard.
        #[derive(Debug)]
        pub struct ShardCounters {
            $( $(#[doc = $doc])+ pub $field: Cell64, )+
            /// Why connections ended.
            closes: [Cell64; CloseReason::ALL.len()],
            /// Data thrown away, by reason.
            drops: [Cell64; DropReason::COUNT],
            /// Bounds that were reached.
            limits: [Cell64; LimitReached::COUNT],
            /// Duration of the turn that routed a message, once for each message, in nanoseconds: from reading the events that
            /// had arrived to the end of its sends. A message that waits for the log's disk is sent by a later turn.
            pub routing_ns: Histogram,
            /// Duration of a turn, from the end of a wait to the start of the next, in nanoseconds.
            pub turn_ns: Histogram,
            /// Duration of a write of the log, in nanoseconds.
            pub log_write_ns: Histogram,
            /// Duration of a sync of the log, in nanoseconds.
            pub log_sync_ns: Histogram,
            /// Bytes of a write of the log.
            pub log_batch_bytes: Histogram,
            /// Records of a write of the log, in units of [`RECORD`].
            pub log_batch_records: Histogram,
        }

        impl Default for ShardCounters {
            fn default() -> Self {
                Self {
                    $($field: Cell64::default(),)+
                    closes: std::array::from_fn(|_| Cell64::default()),
                    drops: std::array::from_fn(|_| Cell64::default()),
                    limits: std::array::from_fn(|_| Cell64::default()),
                    routing_ns: Histogram::default(),
                    turn_ns: Histogram::default(),
                    log_write_ns: Histogram::default(),
                    log_sync_ns: Histogram::default(),
                    log_batch_bytes: Histogram::default(),
                    log_batch_records: Histogram::default(),
                }
            }
        }

        /// The plain counters of a shard.
        pub static METRICS: &[MetricInfo] = &[$(
            MetricInfo {
                name: stringify!($field),
                kind: MetricKind::$kind,
                help: concat!($($doc),+),
                advice: $advice,
            }
        ),+];

        impl ShardCounters {
            /// The plain counters, in the order of [`METRICS`].
            pub fn values(&self) -> impl Iterator<Item = u64> + '_ {
                [$(&self.$field),+].into_iter().map(Cell64::get)
            }
        }
    };
}

counters! {
    /// Turns of the loop. A shard without any for 5 s is stuck.
    turns: Counter, "Flat on one shard while others grow: that shard is stuck; /healthz names it. Take a stack trace, then restart.";
    /// Turns that began a second late or more, because the process was stopped, its machine suspended or its core busy with
    /// something else.
    standstills: Counter, "Grows: something stops the process, or its machine has too few cores. Timeouts of clients start anew after it.";
    /// Connections open now.
    connections: Gauge, "Compare with server.max_connections.";
    /// Connections without a welcome yet.
    connections_half_open: Gauge, "High for minutes: slow clients or a flood; compare with limits.half_open_percent.";
    /// Connections accepted.
    accepted: Counter, "A jump is a reconnect storm; look at closes for its cause.";
    /// Accepts that failed.
    accept_failures: Counter, "Grows: open files or memory are used up; raise nofile, see `ringway doctor`.";
    /// Connections handed to their session's home shard.
    handed_over: Counter, "About (shards - 1) / shards of accepted is usual.";
    /// Connections received from the shard that accepted them.
    taken_over: Counter, "The sum over shards follows handed_over.";
    /// Welcomes sent.
    welcomed: Counter, "Far below accepted: clients fail the handshake; look at refusals and closes.";
    /// Sessions whose home is this shard.
    sessions: Gauge, "Compare with limits.sessions_per_shard.";
    /// Members of all sessions whose home is this shard, also those away.
    members: Gauge, "Grows without end: members never leave; lower session.member_unseen_ms.";
    /// Members with a connection.
    members_present: Gauge, "A sudden fall: a network path is lost.";
    /// Messages received from clients.
    messages_in: Counter, "The incoming load.";
    /// Frames sent to clients, replies included.
    messages_out: Counter, "The outgoing load.";
    /// Messages delivered, counted once for each receiver.
    delivered: Counter, "delivered / routed is the fan-out.";
    /// Messages accepted into a session.
    routed: Counter, "Falls while messages_in does not: messages are refused; look at refused.";
    /// Messages acknowledged.
    acknowledged: Counter, "Follows routed.";
    /// Repeated messages, answered with the `seq` of the first.
    duplicates: Counter, "Many: clients resend too early, or acknowledgements are slow.";
    /// Messages delivered on resume.
    replayed: Counter, "A jump follows a reconnect storm.";
    /// Ephemeral messages accepted.
    ephemeral: Counter, "Compare with drops{reason=\"ephemeral_slow\"}.";
    /// Messages and commands answered with an error.
    refused: Counter, "Rises after a client release: the new version breaks the protocol; the log names the error code.";
    /// Gaps reported (rw.gap) to readers that fell behind retention.
    gaps: Counter, "Readers fall behind retention; raise session.history_messages, and log.memory_bytes if the log is in memory.";
    /// Bytes received from clients.
    bytes_in: Counter, "Incoming traffic.";
    /// Bytes of clients' compressed messages after decompression.
    inflated_bytes: Counter, "Many times bytes_in: clients send deflate bombs. limits.bytes_per_second bounds these bytes for each connection.";
    /// Bytes sent to clients.
    bytes_out: Counter, "Outgoing traffic.";
    /// Handshakes refused because of their token.
    auth_refused: Counter, "Rises: a key was changed, a clock is wrong, or somebody guesses tokens.";
    /// Requests for /healthz and /readyz answered on the clients' port.
    probes: Counter, "Flat although a load balancer should ask here: it does not reach this port, or exceeds the limits of its address; see limits_reached.";
    /// HTTP requests answered with an error instead of an upgrade.
    http_refused: Counter, "Rises: clients use a wrong path or origin; the log names the setting which would allow it.";
    /// Send calls made.
    sends: Counter, "messages_out / sends is the number of frames in one send.";
    /// Sends of which the kernel took only a part, or nothing.
    sends_short: Counter, "A high share of sends: clients read slowly, or their networks are slow.";
    /// Receives for which the ring had no buffer.
    ring_no_buffers: Counter, "Steady growth: a few clients send floods; see byte_rate in limits_reached.";
    /// Overflows of the ring's completion queue.
    ring_overflows: Counter, "Not zero: turns are too long; look at turn_seconds.";
    /// Multishot requests that the kernel ended and the gateway started again.
    ring_rearms: Counter, "Follows ring_no_buffers.";
    /// Writes of the log of which the kernel took only a part; the rest was written after.
    ring_short_writes: Counter, "Not zero: the disk is nearly full, or a signal interrupted the write.";
    /// Reads of the log that had to wait for other reads.
    log_reads_waited: Counter, "A high share of log_reads: many readers are far behind, or the disk is slow.";
    /// Chunks (1 MiB) of the log in memory.
    log_chunks: Gauge, "Multiply by 1 MiB for its memory; at log.memory_bytes the oldest go first.";
    /// Bytes from the oldest record of the log, in memory or on disk, to its end. A file that ends early counts in full.
    log_bytes: Gauge, "In memory: at most log.memory_bytes. On disk: bounded by log.retention_* and log.max_bytes.";
    /// Records appended to the log.
    log_appends: Counter, "Follows routed.";
    /// Records of the log that are no messages: sessions, members, receipts.
    log_state_records: Counter, "A high share of log_appends: clients connect and leave, or send receipts, very often.";
    /// Writes of the log. Each takes all that a turn has appended.
    log_writes: Counter, "log_appends / log_writes is the number of records in one write.";
    /// Bytes written to the log's files.
    log_written_bytes: Counter, "Compare with the disk's rated endurance.";
    /// Syncs of the log's files.
    log_syncs: Counter, "log_appends / log_syncs is the number of records that share a sync.";
    /// Bytes of messages copied out of the log's oldest files so that these could be deleted.
    log_compacted_bytes: Counter, "A high share of log_written_bytes: some sessions retain messages for long, beside many that do not.";
    /// Reads of the log's files, for readers that are behind the log in memory.
    log_reads: Counter, "Many: raise log.memory_bytes.";
    /// Messages examined for pages of history.
    history_looks: Counter, "Many times log_appends: clients page through long sessions, or ask for rooms with few messages.";
    /// Segments of the log indexed since the start.
    log_indexed: Counter, "Grows as segments become cold: an indexed segment takes little memory.";
    /// Index files that could not be made or written. The index of that segment stays in memory.
    log_index_failures: Counter, "Not zero: check whether the log's disk is full or failing.";
    /// Files of the log.
    log_segments: Gauge, "Compare with log.max_bytes / log.segment_bytes.";
    /// 1 while durable messages are refused for lack of space: the disk is full, or log.max_bytes or log.reserve_bytes is
    /// reached.
    log_full: Gauge, "Make room, or change log.retention_*, log.max_bytes; the gateway checks again each second.";
    /// 1 after a write or sync of the log has failed for good.
    log_failed: Gauge, "Look at the disk and restart: recovery keeps what was acknowledged.";
    /// Memory of data waiting to be sent to connections (replies, presence, ephemeral messages) and over lanes.
    buffer_bytes: Gauge, "Compare with limits.shard_memory_bytes.";
    /// Memory of data waiting for the disk: answers to commands, members' state to be written, and the log beyond
    /// log.memory_bytes.
    disk_held_bytes: Gauge, "Part of limits.shard_memory_bytes. Not near zero: the disk is too slow, or full.";
    /// Mirrors: sessions whose home is another shard, copied here for local readers.
    mirrors: Gauge, "Many: clients attach to sessions on many shards.";
    /// Memory of the mirrors.
    mirror_bytes: Gauge, "Bounded by a quarter of log.memory_bytes.";
    /// Messages sent over lanes to other shards.
    lane_out: Counter, "Near zero is good: sessions stay on one core.";
    /// Messages received over lanes.
    lane_in: Counter, "The sum over all shards follows lane_out.";
    /// Attempts to send that found a lane full.
    lane_full: Counter, "Not zero: one shard is slower than the others; look at its turn_seconds.";
    /// Memory of messages waiting for full lanes; part of buffer_bytes.
    lane_backlog_bytes: Gauge, "Not zero for long: another shard is slow or stuck; look at its turn_seconds.";
    /// Wake-ups of other shards.
    bells: Counter, "lane_out / bells is the number of lane messages for each wake-up.";
    /// Timers that fired.
    timers: Counter, "About connections / heartbeat_ms when idle.";
    /// Panics while a connection's bytes were decoded. Each ends that connection only.
    panics: Counter, "Not zero: a bug; the log has the connection. Report it.";
}

impl ShardCounters {
    /// Counts the end of a connection.
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].increment();
    }

    /// Counts `count` drops.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        self.drops[reason as usize].add(count);
    }

    /// Counts that a bound was reached.
    pub fn limit_reached(&self, limit: LimitReached) {
        self.limits[limit as usize].increment();
    }

    /// The number of connections that ended for this reason.
    #[must_use]
    pub fn closed_count(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize].get()
    }

    /// The number of drops for this reason.
    #[must_use]
    pub fn dropped_count(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// How often this bound was reached.
    #[must_use]
    pub fn limit_count(&self, limit: LimitReached) -> u64 {
        self.limits[limit as usize].get()
    }
}

/// A shard's counters on cache lines of their own, shared with control.
pub type SharedCounters = Arc<CachePadded<ShardCounters>>;

/// New counters at zero.
#[must_use]
pub fn shared_counters() -> SharedCounters {
    Arc::new(CachePadded::new(ShardCounters::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_in_order() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        for (index, limit) in LimitReached::ALL.iter().enumerate() {
            assert_eq!(*limit as usize, index);
        }
        let mut labels: Vec<&str> = LimitReached::ALL.iter().map(|limit| limit.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), LimitReached::COUNT);
    }

    #[test]
    fn limits_name_settings_that_exist() {
        let known: Vec<String> =
            crate::config::SECTIONS.iter().flat_map(|section| section.keys).map(crate::config::Key::path).collect();
        for limit in LimitReached::ALL {
            for word in limit.about().split_whitespace().map(|word| word.trim_end_matches(['.', ','])) {
                if word.contains('.') {
                    assert!(known.iter().any(|path| path == word), "{word}");
                }
            }
        }
    }

    #[test]
    fn counts_reach_the_reader() {
        let counters = shared_counters();
        counters.closed(CloseReason::TooSlow);
        counters.dropped(DropReason::EphemeralSlow, 3);
        counters.limit_reached(LimitReached::Stall);
        counters.connections.add(2);
        counters.connections.subtract(5);
        counters.turns.increment();
        assert_eq!(counters.closed_count(CloseReason::TooSlow), 1);
        assert_eq!(counters.dropped_count(DropReason::EphemeralSlow), 3);
        assert_eq!(counters.limit_count(LimitReached::Stall), 1);
        assert_eq!(counters.connections.get(), 0);
        assert_eq!(counters.values().count(), METRICS.len());
        assert_eq!(counters.values().next(), Some(1));
    }
}
