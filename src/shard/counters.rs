//! What a shard counts. Written by that shard's thread alone, read by control whenever it likes.
//!
//! May import the vocabulary and `histogram`. Invariant: one writer. A counter is a relaxed load and a relaxed store, never a
//! locked instruction, so that counting costs what it costs on a plain integer; two writers would lose counts.

use crate::close::CloseReason;
use crossbeam::utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::Histogram;

/// What one record counts in a histogram of records: its lowest bound, so that one is told from two.
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
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// What it counts, one line.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// Why something was thrown away that nobody was told of on the wire.
    DropReason {
        /// An ephemeral message for a reader that is behind.
        EphemeralSlow = "ephemeral_slow",
        /// An ephemeral message for a shard whose lane is full.
        EphemeralLaneFull = "ephemeral_lane_full",
        /// A reply for a client whose reply queue is full; the connection is closed.
        ReplyQueueFull = "reply_queue_full",
        /// Presence data that a watcher had not been sent yet when its member told something newer.
        PresenceOutdated = "presence_outdated",
        /// A WebSocket pong while one was still waiting to be sent.
        PongPending = "pong_pending",
        /// Bytes that came after a connection's end.
        AfterClose = "after_close",
        /// A lane message for a connection or session that was gone.
        LaneStale = "lane_stale",
        /// A reply to control that nobody waited for any more.
        PortReplyUnwanted = "port_reply_unwanted",
        /// A receipt or cursor of a member that was gone.
        ReceiptStale = "receipt_stale",
        /// Messages cut from a session's history by its count.
        HistoryMessages = "history_messages",
        /// Messages cut from a session's history since the log's memory was full.
        LogMemory = "log_memory",
        /// Messages cut from a session's history since they were older than log.retention_age_s.
        LogAge = "log_age",
        /// Messages cut from a session's history by log.retention_bytes.
        LogBytes = "log_bytes",
        /// Messages cut from a session's history by a purge.
        Purged = "purged",
        /// A record of the log that did not read back whole from disk; its readers were told of the gap.
        LogDamaged = "log_damaged",
        /// A message that the disk has not read for seconds (EIO), for each of its readers, who were told of the gap; it may be read later.
        LogUnreadable = "log_unreadable",
        /// A member's stay in a room that was forgotten though messages of it may be retained: it comes back with `recovered:false`.
        StayForgotten = "stay_forgotten",
        /// The record of a closed connection, pushed out before its ten minutes.
        ClosedRecord = "closed_record",
    }
}

reasons! {
    /// A bound that was reached and refused, delayed or closed something. Every bound has one.
    LimitReached {
        /// Bytes that wait for the log's disk.
        LogPending = "log_pending",
        /// Senders that are not read from because their session can't take more.
        Hold = "hold",
        /// Turns in which work had waited too long to be sent; senders are pushed back.
        UnsentAge = "unsent_age",
        /// The log's disk is full: a file of the log could not be made or written.
        Disk = "disk",
        /// log.max_bytes. A shard's files have its share.
        LogBytes = "log_bytes",
        /// log.reserve_bytes. Another file of the log would use what must stay free.
        LogReserve = "log_reserve",
        /// Reads of the log that wait for the disk.
        LogReads = "log_reads",
        /// limits.max_message_bytes.
        MessageBytes = "message_bytes",
        /// limits.max_fragments.
        Fragments = "fragments",
        /// limits.unfinished_message_ms.
        UnfinishedMessage = "unfinished_message",
        /// The depth of JSON.
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
        /// Connections over a bound that wait to be told so: the oldest is closed untold.
        TurnedAway = "turned_away",
        /// limits.handshake_ms.
        HandshakeTime = "handshake_time",
        /// limits.tls_handshake_ms.
        TlsHandshakeTime = "tls_handshake_time",
        /// limits.close_ms.
        CloseTime = "close_time",
        /// Connections that end and whose answers another shard's disk is waited for; they go at once.
        Fences = "fences",
        /// The bytes of the HTTP request line or head, the count of its headers, or the reads it took.
        RequestHead = "request_head",
        /// The bytes of a token.
        TokenBytes = "token_bytes",
        /// limits.reply_queue_bytes or limits.reply_queue_frames.
        ReplyQueue = "reply_queue",
        /// limits.shard_memory_bytes.
        ShardMemory = "shard_memory",
        /// limits.max_attached_sessions.
        AttachedSessions = "attached_sessions",
        /// limits.members_per_session.
        MembersPerSession = "members_per_session",
        /// limits.members_per_user, where all of the user's are connected.
        MembersPerUser = "members_per_user",
        /// limits.rooms_per_client.
        RoomsPerClient = "rooms_per_client",
        /// Stays in rooms that have ended, of one member, which retained messages need: the oldest is forgotten.
        EndedStays = "ended_stays",
        /// What a member tells of itself, more often than the log keeps it.
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
        /// limits.reply_queue_bytes, by which a connection is not read from until it has taken its replies.
        Backpressure = "backpressure",
        /// session.heartbeat_timeout_ms.
        HeartbeatTime = "heartbeat_time",
        /// One history request of an attachment at a time, 16 of a user, 4,096 of all.
        HistoryBusy = "history_busy",
        /// What one page of history looks at, or reads from disk; it ends there, and another one goes on.
        HistoryLooks = "history_looks",
        /// The lanes between shards.
        Lane = "lane",
        /// Replies that wait for a lane, or their bytes; their connections are closed.
        LaneReplies = "lane_replies",
        /// The file descriptors of the process.
        OpenFiles = "open_files",
    }
}

impl LimitReached {
    /// The bound on what is read that ends a connection for this, where it is one; others are counted where they are looked at.
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

/// What kind a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A metric as `/metrics` and the operating manual tell of it.
#[derive(Debug)]
pub struct MetricInfo {
    /// Without the `ringway_` before it, and a counter's `_total` after it.
    pub name: &'static str,
    pub kind: MetricKind,
    /// What it counts.
    pub help: &'static str,
    /// What an operator does about it.
    pub advice: &'static str,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ident, $advice:literal;)+) => {
        /// All that one shard counts.
        #[derive(Debug)]
        pub struct ShardCounters {
            $( $(#[doc = $doc])+ pub $field: Cell64, )+
            /// Why connections ended.
            closes: [Cell64; CloseReason::ALL.len()],
            /// What was thrown away.
            drops: [Cell64; DropReason::COUNT],
            /// Bounds that were reached.
            limits: [Cell64; LimitReached::COUNT],
            /// Each routed message's turn, from the taking in of what had arrived to the end of its sends, in nanoseconds. A message that
            /// waits for the log's disk is sent by a later one.
            pub routing_ns: Histogram,
            /// From the end of a wait to the start of the next, in nanoseconds.
            pub turn_ns: Histogram,
            /// From the start of a write of the log to its answer, in nanoseconds.
            pub log_write_ns: Histogram,
            /// The same of a sync.
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
    /// Turns of the loop; a shard without any for 5 s is stuck.
    turns: Counter, "Flat on one shard while others move: that shard is stuck; /healthz names it. Take a stack trace, then restart.";
    /// Turns that came a second late or more: the process was stopped, its machine suspended, or its core taken away.
    standstills: Counter, "Grows: something stops the process, or its machine has too few cores. Clients were not held to their time meanwhile.";
    /// Connections now.
    connections: Gauge, "Compare with server.max_connections.";
    /// Connections without a welcome yet.
    connections_half_open: Gauge, "High for minutes: slow clients or a flood; see limits.half_open_percent.";
    /// Connections accepted.
    accepted: Counter, "A jump is a reconnect storm; look at closes for its cause.";
    /// Accepts that failed.
    accept_failures: Counter, "Grows: open files or memory are used up; raise nofile, see `ringway doctor`.";
    /// Connections given to their session's home shard.
    handed_over: Counter, "About (shards - 1) / shards of accepted is usual.";
    /// Connections taken over from the shard that accepted them.
    taken_over: Counter, "The sum over shards follows handed_over.";
    /// Welcomes sent.
    welcomed: Counter, "Far below accepted: clients fail the handshake; look at refusals and closes.";
    /// Sessions at home here.
    sessions: Gauge, "Compare with limits.sessions_per_shard.";
    /// Members of all sessions at home here, away ones counted.
    members: Gauge, "Grows without end: members never leave; see session.member_unseen_ms.";
    /// Members with a connection.
    members_present: Gauge, "Falls at once: a network path is gone.";
    /// Messages received from clients.
    messages_in: Counter, "The load that comes in.";
    /// Frames sent to clients, replies counted.
    messages_out: Counter, "The load that goes out.";
    /// Messages delivered, one for each receiver.
    delivered: Counter, "delivered / routed is the fan-out.";
    /// Messages taken into a session.
    routed: Counter, "Falls while messages_in does not: messages are refused; look at refused.";
    /// Messages acknowledged.
    acknowledged: Counter, "Follows routed.";
    /// Repeated messages answered with the first one's place.
    duplicates: Counter, "Many: clients repeat too early, or answers are slow.";
    /// Messages delivered again on resume.
    replayed: Counter, "A jump follows a reconnect storm.";
    /// Ephemeral messages taken.
    ephemeral: Counter, "Compare with drops{reason=\"ephemeral_slow\"}.";
    /// Messages and commands answered with an error.
    refused: Counter, "Rises after a client release: it sends what the contract forbids; the log names the code.";
    /// Gaps told to readers behind the retention.
    gaps: Counter, "Readers are slower than the log's memory; raise log.memory_bytes or session.history_messages.";
    /// Bytes received from clients.
    bytes_in: Counter, "Traffic that comes in.";
    /// Bytes that compressed messages of clients inflated to.
    inflated_bytes: Counter, "Many times bytes_in: deflate bombs; each connection is held to limits.bytes_per_second of it.";
    /// Bytes sent to clients.
    bytes_out: Counter, "Traffic that goes out.";
    /// Handshakes refused for their token.
    auth_refused: Counter, "Rises: an expired key, a clock that is wrong, or somebody guesses.";
    /// Requests for /healthz and /readyz on the clients' port that were answered.
    probes: Counter, "Flat where a balancer is to look here: it does not, or is over its address's limits; see limits_reached.";
    /// HTTP requests answered with an error instead of an upgrade.
    http_refused: Counter, "Rises: a wrong path or origin; the log names the setting which would allow it.";
    /// Send calls made.
    sends: Counter, "messages_out / sends is how many frames share a send.";
    /// Sends of which the kernel took a part or nothing.
    sends_short: Counter, "A high share of sends: readers or their networks are slow.";
    /// Receives for which the ring had no buffer.
    ring_no_buffers: Counter, "Steady growth: a few clients flood; see byte_rate in limits_reached.";
    /// Overflows of the ring's completion queue.
    ring_overflows: Counter, "Not zero: turns are too long; look at turn_seconds.";
    /// Multishot requests that the kernel ended and the ring started again.
    ring_rearms: Counter, "Follows ring_no_buffers.";
    /// Writes of the log that the kernel took a part of, and that were carried on.
    ring_short_writes: Counter, "Not zero: the disk is nearly full, or a signal came in between.";
    /// Reads of the log that waited for others to end.
    log_reads_waited: Counter, "A high share of log_reads: many readers are far behind, or the disk is slow.";
    /// Chunks of the log that are in memory.
    log_chunks: Gauge, "Multiply by 1 MiB for its memory; at log.memory_bytes the oldest go first.";
    /// Bytes from the oldest that the log holds, in memory or on disk, to its end; a file that ends early counts whole.
    log_bytes: Gauge, "A log in memory has log.memory_bytes at most; for one on disk see log.retention_*, log.max_bytes.";
    /// Records appended to the log.
    log_appends: Counter, "Follows routed.";
    /// Records of the gateway's own in the log: sessions, members, receipts.
    log_state_records: Counter, "Many against log_appends: clients come and go, or send receipts, a lot.";
    /// Writes of the log: each takes what a turn has appended.
    log_writes: Counter, "log_appends over this is how many records share a write.";
    /// Bytes written to the log's files.
    log_written_bytes: Counter, "Against log.max_bytes and the disk's life.";
    /// Syncs of the log's files.
    log_syncs: Counter, "Messages over this is how many share a sync.";
    /// Bytes of messages copied out of the log's oldest files, so that these could go.
    log_compacted_bytes: Counter, "Against log_written_bytes: much is retained for long beside much that is not.";
    /// Reads of the log's files, for readers behind what is in memory.
    log_reads: Counter, "Many: raise log.memory_bytes.";
    /// Messages that were looked at for pages of history.
    history_looks: Counter, "Many against log_appends: clients page through long sessions, or ask for rooms with few messages.";
    /// Segments of the log that were indexed since the start.
    log_indexed: Counter, "With log_segments: cold segments of which memory holds only which messages are in them.";
    /// Indexes of segments that could not be made or written; their messages stay in memory's index, or the index in memory.
    log_index_failures: Counter, "Any: is the log's disk full, or failing?";
    /// Files of the log.
    log_segments: Gauge, "Against log.max_bytes over log.segment_bytes.";
    /// 1 while durable messages have no room: the disk is full, or log.max_bytes or log.reserve_bytes is reached.
    log_full: Gauge, "Make room, or change log.retention_*, log.max_bytes; it is looked at again each second.";
    /// 1 after a write or sync of the log failed for good.
    log_failed: Gauge, "Look at the disk and restart: recovery keeps what was acknowledged.";
    /// Memory of what waits to be sent to connections (replies, presence, ephemeral messages), and for lanes.
    buffer_bytes: Gauge, "Compare with limits.shard_memory_bytes.";
    /// Memory that waits for the disk: answers to commands, what of members is to be written, and the log beyond log.memory_bytes.
    disk_held_bytes: Gauge, "Counts to limits.shard_memory_bytes. Not near zero: the disk is behind, or has no room.";
    /// Sessions at home elsewhere that are mirrored here.
    mirrors: Gauge, "Many: clients attach sessions all over the shards.";
    /// Bytes of the mirrors.
    mirror_bytes: Gauge, "Memory of mirrors.";
    /// Messages sent over the lanes to other shards.
    lane_out: Counter, "Near zero is good: sessions stay on one core.";
    /// Messages taken from the lanes.
    lane_in: Counter, "Over all shards it follows lane_out.";
    /// Pushes that found a lane full.
    lane_full: Counter, "Not zero: a shard lags behind the others; look at its turn_seconds.";
    /// Memory of the messages that wait for full lanes; a part of buffer_bytes.
    lane_backlog_bytes: Gauge, "Not zero for long: another shard does not turn; look at its turn_seconds.";
    /// Wake-ups of other shards.
    bells: Counter, "Compare with lane_out: how many lane messages share a wake.";
    /// Timers that fired.
    timers: Counter, "About connections / heartbeat_ms when idle.";
    /// Panics while a connection's bytes were decoded.
    panics: Counter, "Not zero: a bug; the log has the connection. Report it.";
}

impl ShardCounters {
    /// A connection ended.
    pub fn closed(&self, reason: CloseReason) {
        self.closes[reason as usize].increment();
    }

    /// So many things were thrown away.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        self.drops[reason as usize].add(count);
    }

    /// A bound was reached.
    pub fn limit_reached(&self, limit: LimitReached) {
        self.limits[limit as usize].increment();
    }

    /// How many connections ended for this.
    #[must_use]
    pub fn closed_count(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize].get()
    }

    /// How much was thrown away for this.
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
