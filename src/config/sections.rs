//! Every setting, once: section, name, type, default, unit, range, whether a reload applies it, and its effect.

use super::value::{Allowed, HeaderName, NodeName, Origin, Raw, Value};
use super::{Durability, Engine, HistoryView, KeyAlgorithm, LogFormat, LogLevel, Network};
use crate::limits::{
    DEDUPE_IDS_MAX, FRAGMENTS_MAX, MEMBERS_PER_SESSION_MAX, MESSAGE_BYTES_MAX, MESSAGE_UNFINISHED_MS_MAX, ROOMS_PER_CLIENT_MAX,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A setting, as the reference describes it.
#[derive(Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    /// The effect of the setting, one line.
    pub doc: &'static str,
    /// The unit; empty if there is none.
    pub unit: &'static str,
    /// `true` if a reload (SIGHUP) applies it, `false` if it needs a restart.
    pub live: bool,
    /// The default as TOML.
    pub default: fn() -> String,
    /// The values allowed, as text.
    pub takes: fn() -> String,
}

impl Key {
    /// `section.name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// A `[section]`.
#[derive(Debug)]
pub struct Section {
    pub name: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
}

macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        [$section:ident] $struct:ident: $($derive:ident)* {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $unit:literal, $allowed:expr, $live:ident; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, PartialEq, Eq, $($derive),*)]
            pub struct $struct { $( $(#[doc = $doc])+ pub $field: $type, )+ }

            impl Default for $struct {
                fn default() -> Self {
                    Self { $($field: $default),+ }
                }
            }
        )+

        /// The whole configuration, valid.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Settings {
            $( $(#[doc = $about])+ pub $section: $struct, )+
            /// The `[[auth.keys]]`, in the order of the file.
            pub auth_keys: Vec<AuthKey>,
        }

        /// All sections in the order of the reference.
        pub static SECTIONS: &[Section] = &[$(
            Section {
                name: stringify!($section),
                doc: concat!($($about),+),
                keys: &[$(
                    Key {
                        section: stringify!($section),
                        name: stringify!($field),
                        doc: concat!($($doc),+),
                        unit: $unit,
                        live: sections!(@live $live),
                        default: || { let value: $type = $default; value.write() },
                        takes: || <$type as Value>::kind($allowed),
                    }
                ),+],
            }
        ),+];

        impl Settings {
            /// Sets one value. The error says what would be right; `None` where there is no such key.
            pub(super) fn set(&mut self, section: &str, name: &str, raw: &Raw) -> Option<Result<(), String>> {
                $($(
                    if section == stringify!($section) && name == stringify!($field) {
                        return Some(<$type as Value>::read(raw, $allowed).map(|value| self.$section.$field = value));
                    }
                )+)+
                None
            }

            /// Every value as TOML, in the order of [`SECTIONS`] and its keys.
            pub(super) fn written(&self) -> Vec<String> {
                vec![$($( self.$section.$field.write() ),+),+]
            }
        }
    };
    (@live live) => { true };
    (@live restart) => { false };
}

const DAY_MS: u64 = 86_400_000;
const RATE_MAX: u64 = 1_000_000_000;
const COUNT_MAX: u64 = 100_000_000;
const TIME_MS: Allowed = Allowed::Range(1, 30 * DAY_MS);
const TIME_OR_NONE_MS: Allowed = Allowed::OffOr(1, 30 * DAY_MS);
const RATE: Allowed = Allowed::OffOr(1, RATE_MAX);
const COUNT: Allowed = Allowed::OffOr(1, COUNT_MAX);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A limit as a bound to compare with: 0, which means no limit, becomes the largest number.
#[must_use]
pub const fn cap(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

sections! {
    /// Addresses for clients, and the threads that serve them.
    [server] Server: Clone {
        /// Address and port for clients.
        listen: SocketAddr = loopback(8080), "", Allowed::Any, restart;
        /// Allows other gateways of the same user, which must set this too, to listen on the same address. Use it only while one
        /// process replaces another: the kernel spreads new connections over both, and clients of one session that reach
        /// different gateways never meet.
        listen_shared: bool = false, "", Allowed::Any, restart;
        /// The name of this node, sent to clients in the welcome.
        node: NodeName = NodeName("n1".to_owned()), "", Allowed::Any, restart;
        /// Shards, one thread each; 0: one per core.
        shards: usize = 0, "", Allowed::AutoOr(1, 256), restart;
        /// Pins each shard's thread to its core.
        pin: bool = true, "", Allowed::Any, restart;
        /// The engine that runs the shards. ring: io_uring, kernel 6.1 or later. monoio: io_uring of kernel 5.6 or later, else
        /// epoll. epoll: monoio without io_uring. auto: the best of these that works.
        engine: Engine = Engine::Auto, "", Allowed::Any, restart;
        /// Time for which an idle shard polls before it sleeps. 0: none. 50 halves latency at part load and keeps the core busy.
        spin_us: u64 = 0, "us", Allowed::Range(0, 10_000), restart;
        /// Origins of browser pages that may connect. Empty: pages of the request's own host; "*": any page.
        allowed_origins: Vec<Origin> = Vec::new(), "", Allowed::Any, live;
        /// Connections of the whole node. The process needs this many open files (twice as many with monoio), 512 more, and one
        /// for each file of the log.
        max_connections: usize = 10_000, "", Allowed::Range(1, 10_000_000), restart;
        /// Proxies trusted to report the client's address (see client_ip_header, proxy_protocol).
        trusted_proxies: Vec<Network> = Vec::new(), "", Allowed::Any, live;
        /// The header in which trusted proxies report the client's address. The last address in it that is no trusted proxy
        /// counts.
        client_ip_header: HeaderName = HeaderName::default(), "", Allowed::Any, live;
        /// Answers GET /healthz and /readyz on the clients' port too, for load balancers and supervisors on other machines.
        health: bool = true, "", Allowed::Any, live;
        /// Expects a PROXY protocol header (version 1 or 2) at the start of each connection from a trusted proxy.
        proxy_protocol: bool = false, "", Allowed::Any, restart;
    }

    /// TLS for clients: both files, or neither for plain TCP.
    [tls] Tls: Clone {
        /// The certificate chain, PEM, the leaf first. A reload reads the file again, for new connections.
        certificate: Option<PathBuf> = None, "", Allowed::Any, restart;
        /// The private key of the leaf, PEM. A reload reads the file again, for new connections.
        key: Option<PathBuf> = None, "", Allowed::Any, restart;
    }

    /// The drain that SIGTERM begins.
    [drain] Drain: Clone Copy {
        /// Time for which /readyz already answers "not ready" before clients are told of the drain, so that load balancers stop
        /// sending new ones.
        not_ready_ms: u64 = 0, "ms", Allowed::Range(0, 600_000), live;
        /// Time over which clients are asked to spread their reconnects.
        window_ms: u64 = 10_000, "ms", Allowed::Range(0, 600_000), live;
        /// Time from the end of not_ready_ms until the process exits, even if clients are still connected.
        grace_ms: u64 = 30_000, "ms", Allowed::Range(1, 3_600_000), live;
    }

    /// The operator's listener: /healthz, /readyz, /metrics, /v1/connections, /v1/revocations, /v1/purge.
    [admin] Admin: Clone {
        /// Address and port; a loopback address only, since this listener asks for no credentials.
        listen: SocketAddr = loopback(9090), "", Allowed::Any, restart;
        /// The path of a Unix socket that serves the same requests as the port. Its mode is 0600: only the user that runs the
        /// gateway can use it.
        socket: Option<PathBuf> = None, "", Allowed::Any, restart;
    }

    /// Requirements on tokens. The keys are in [[auth.keys]].
    [auth] Auth: Clone {
        /// The `iss` that a token must have; empty: any.
        issuer: String = String::new(), "", Allowed::Any, live;
        /// The `aud` that a token must name, alone or among others. Empty: a token with an `aud` is refused, since it was issued
        /// for another service.
        audience: String = String::new(), "", Allowed::Any, live;
        /// Largest accepted difference between the issuer's clock and this machine's.
        leeway_s: u64 = 10, "s", Allowed::Range(0, 300), live;
        /// Longest time allowed from a token's `iat` to its `exp`.
        lifetime_s_max: u64 = 86_400, "s", Allowed::Range(1, 31_622_400), live;
    }

    /// Bounds for one client, one address, one shard. 0 means no limit where the table says so.
    [limits] Limits: Clone Copy {
        /// Largest message, after reassembly and decompression. The hello with its token counts too.
        max_message_bytes: usize = MESSAGE_BYTES_MAX, "bytes", Allowed::Range(1024, MESSAGE_BYTES_MAX as u64), live;
        /// Fragments of one message, empty ones included.
        max_fragments: u32 = FRAGMENTS_MAX, "", Allowed::Range(1, 65_536), live;
        /// Longest time from a message's first fragment to its last.
        unfinished_message_ms: u64 = MESSAGE_UNFINISHED_MS_MAX, "ms", TIME_MS, live;
        /// Messages per second of one connection.
        messages_per_second: u64 = 200, "/s", RATE, live;
        /// Messages that one connection may send at once, before messages_per_second applies.
        messages_burst: u64 = 400, "", Allowed::Range(1, RATE_MAX), live;
        /// Message bytes per second of one connection, counted after decompression. The burst is one second's worth, at least one
        /// message.
        bytes_per_second: u64 = 1_048_576, "bytes/s", RATE, live;
        /// Presence updates (`rw.presence.set`) per second of one member.
        presence_per_second: u64 = 2, "/s", RATE, live;
        /// Presence updates that one member may send at once, before presence_per_second applies.
        presence_burst: u64 = 10, "", Allowed::Range(1, RATE_MAX), live;
        /// Time after which a client that stays above its rate is disconnected (4429).
        rate_abuse_ms: u64 = 10_000, "ms", TIME_OR_NONE_MS, live;
        /// Refused envelopes within bad_envelopes_window_ms after which a connection is closed (4400).
        bad_envelopes: u32 = 10, "", Allowed::OffOr(1, 1_000_000), live;
        /// Time over which bad_envelopes are counted.
        bad_envelopes_window_ms: u64 = 10_000, "ms", TIME_MS, live;
        /// WebSocket control frames per second of one connection.
        control_frames_per_second: u64 = 10, "/s", RATE, live;
        /// Control frames that one connection may send at once, before control_frames_per_second applies.
        control_frames_burst: u64 = 20, "", Allowed::Range(1, RATE_MAX), live;
        /// Connections from one address (IPv6: one /64).
        connections_per_ip: usize = 200, "", COUNT, live;
        /// Connections of one user (a token's `sub`).
        connections_per_user: usize = 10, "", COUNT, live;
        /// New connections per second from one address.
        handshakes_per_ip_per_second: u64 = 20, "/s", RATE, live;
        /// New connections that one address may open at once, before handshakes_per_ip_per_second applies.
        handshakes_per_ip_burst: u64 = 50, "", Allowed::Range(1, RATE_MAX), live;
        /// New connections per second accepted by one shard.
        handshakes_per_second: u64 = 500, "/s", RATE, live;
        /// Connections without a welcome yet, as a share of max_connections. Above this, the address with the most of them loses
        /// its oldest. A quarter of the places is reserved for addresses that have none.
        half_open_percent: u32 = 10, "%", Allowed::Range(1, 100), live;
        /// Connections without a welcome yet from one address.
        half_open_per_ip: usize = 32, "", COUNT, live;
        /// Time from accept (TLS: from the end of the TLS handshake) to the hello.
        handshake_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// Time for the TLS handshake.
        tls_handshake_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// Time for the close handshake; after it the socket is closed.
        close_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// Bytes of replies that may wait for one client.
        reply_queue_bytes: usize = 65_536, "bytes", Allowed::Range(4_096, 16_777_216), live;
        /// Replies that may wait for one client.
        reply_queue_frames: usize = 1_024, "", Allowed::Range(16, 65_536), live;
        /// Time for which the gateway stops reading from a sender whose session cannot take more, before it answers
        /// limit.backpressure. 0: it answers at once.
        backpressure_hold_ms: u64 = 2_000, "ms", Allowed::Range(0, 60_000), live;
        /// Memory of one shard for data waiting to be sent to connections (replies, presence, ephemeral messages) and for data
        /// waiting for the disk.
        shard_memory_bytes: usize = 268_435_456, "bytes", Allowed::Range(16_777_216, 1_099_511_627_776), live;
        /// Sessions that one connection may be attached to, the hello's included.
        max_attached_sessions: usize = 64, "", Allowed::Range(1, 4_096), live;
        /// Members of one session; for more readers use a channel.
        members_per_session: usize = MEMBERS_PER_SESSION_MAX, "", Allowed::Range(1, MEMBERS_PER_SESSION_MAX as u64), live;
        /// Members of one session that belong to one user (a token's `sub`), at most a quarter of members_per_session (but at
        /// least two). Above this, the user's member that has been away longest is removed, as if member_unseen_ms had passed.
        members_per_user: usize = 32, "", Allowed::Range(1, MEMBERS_PER_SESSION_MAX as u64), live;
        /// Rooms of a session that one client may be in. It may watch as many besides.
        rooms_per_client: usize = ROOMS_PER_CLIENT_MAX, "", Allowed::Range(1, ROOMS_PER_CLIENT_MAX as u64), live;
        /// Sessions whose home is one shard.
        sessions_per_shard: usize = 100_000, "", Allowed::Range(1, COUNT_MAX), live;
        /// Sessions on one shard that one user (a token's `sub`) created, by attaching or by posting to a channel, and that still
        /// exist. Sessions created before a restart do not count.
        sessions_per_user: usize = 10_000, "", COUNT, live;
        /// Lifetime of a connection (± 10 %); then it is closed with 1012 and the client reconnects.
        connection_lifetime_s: u64 = 86_400, "s", Allowed::OffOr(60, 31_622_400), live;
        /// Time for which a reader with data waiting may take less than stall_bytes_per_second, before it is closed (4508).
        stall_ms: u64 = 10_000, "ms", TIME_MS, live;
        /// Slowest rate at which a reader may take waiting data for longer than stall_ms.
        stall_bytes_per_second: u64 = 1_024, "bytes/s", Allowed::Range(1, RATE_MAX), live;
    }

    /// Sessions: heartbeats, presence, repeats, history.
    [session] Session: Clone Copy {
        /// Time after which an idle connection is pinged (± 10 %).
        heartbeat_ms: u64 = 25_000, "ms", Allowed::Range(100, DAY_MS), live;
        /// Time after which a pinged connection that stays silent is dropped (4504).
        heartbeat_timeout_ms: u64 = 10_000, "ms", Allowed::Range(100, DAY_MS), live;
        /// Time within which a member that lost its connection may reconnect without being reported as away.
        presence_grace_ms: u64 = 15_000, "ms", Allowed::Range(0, DAY_MS), live;
        /// Time after which a member without a connection is removed from its session.
        member_unseen_ms: u64 = DAY_MS, "ms", Allowed::Range(1_000, 30 * DAY_MS), live;
        /// Time after which a session without members and connections is forgotten.
        idle_ms: u64 = DAY_MS, "ms", Allowed::Range(1_000, 30 * DAY_MS), live;
        /// Message ids remembered for each client of a session, so that a repeated message is recognised.
        dedupe_ids: usize = 1_000, "", Allowed::Range(1, DEDUPE_IDS_MAX as u64), live;
        /// Time for which a message id is remembered.
        dedupe_ms: u64 = 600_000, "ms", TIME_MS, live;
        /// Messages that a newcomer may read: all that are retained, or those after its first join.
        history: HistoryView = HistoryView::Full, "", Allowed::Any, live;
        /// Messages that a session retains.
        history_messages: usize = 10_000, "", Allowed::Range(1, COUNT_MAX), live;
        /// Time before the token's expiry at which a client is warned (rw.auth.expiring).
        token_expiry_warning_ms: u64 = 60_000, "ms", Allowed::Range(0, DAY_MS), live;
        /// Time after the token's expiry within which a client may still bring a new one; then it is closed (4401).
        token_expiry_grace_ms: u64 = 25_000, "ms", Allowed::Range(0, DAY_MS), live;
    }

    /// The message log: in memory, and on disk if `dir` is set.
    [log] Log: Clone {
        /// Bytes of messages that a shard holds in memory. Beyond this the oldest leave memory: without `dir` they are lost, with
        /// it they are read back from disk.
        memory_bytes: usize = 67_108_864, "bytes", Allowed::Range(8_388_608, 1_099_511_627_776), restart;
        /// Directory of the log on disk. Not set: the log is in memory only and is lost when the process ends.
        dir: Option<PathBuf> = None, "", Allowed::Any, restart;
        /// Durability that an acknowledgement promises if `dir` is set. memory: none. written: the message survives the death of
        /// the process. synced: it survives a power cut too.
        durability: Durability = Durability::Written, "", Allowed::Any, restart;
        /// Delivers messages before they are durable; acknowledgements still wait.
        early_delivery: bool = false, "", Allowed::Any, live;
        /// Size of one file of the log, rounded down to whole MiB. If the value has changed, the next start rewrites the log.
        segment_bytes: u64 = 67_108_864, "bytes", Allowed::Range(2_097_152, 4_294_967_296), restart;
        /// Age up to which a session retains a message, also without `dir`. A message may stay up to 1/256 of this longer, at
        /// least a second.
        retention_age_s: u64 = 604_800, "s", Allowed::OffOr(1, 3_153_600_000), live;
        /// Messages a session retains; 0: session.history_messages.
        retention_messages: usize = 0, "", Allowed::AutoOr(1, COUNT_MAX), live;
        /// Bytes of messages, record headers included, that a session retains. The newest message always stays.
        retention_bytes: u64 = 0, "bytes", Allowed::OffOr(1_024, 1_125_899_906_842_624), live;
        /// Size of the log's directory above which durable messages are refused. Each shard has an equal share; a sixteenth of
        /// it, at least half a file, is reserved for the work that frees space. If a start finds the share used up, that work, or
        /// a purge, may add one file more.
        max_bytes: u64 = 0, "bytes", Allowed::OffOr(16_777_216, 1_125_899_906_842_624), live;
        /// Space that stays free on the file system of the log. A new file that would use it is not created, and durable messages
        /// are refused once the current file is full.
        reserve_bytes: u64 = 0, "bytes", Allowed::OffOr(1_048_576, 1_125_899_906_842_624), restart;
    }

    /// permessage-deflate (RFC 7692), without context takeover.
    [deflate] Deflate: Clone Copy {
        /// Accepts compression if a client offers it.
        enabled: bool = false, "", Allowed::Any, live;
        /// Smallest message that is compressed.
        min_bytes: usize = 1_024, "bytes", Allowed::Range(64, MESSAGE_BYTES_MAX as u64), live;
    }

    /// Diagnostics: log lines and test endpoints.
    [diagnostics] Diagnostics: Clone Copy {
        /// Opens /v1/echo, which asks for no token. For conformance suites and load baselines only, not for the Internet.
        echo: bool = false, "", Allowed::Any, restart;
        /// Format of the log lines.
        log_format: LogFormat = LogFormat::Human, "", Allowed::Any, restart;
        /// Least severe level of log lines that are written.
        log_level: LogLevel = LogLevel::Info, "", Allowed::Any, restart;
    }
}

/// An entry of `[[auth.keys]]`. The caller reads the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKey {
    /// The key id that a token's header names.
    pub kid: String,
    pub alg: KeyAlgorithm,
    /// PEM of the public key, or the base64 secret of an HS256 key.
    pub file: PathBuf,
}

impl Tls {
    /// The certificate and its key, if TLS is on.
    #[must_use]
    pub fn files(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.certificate.as_ref().zip(self.key.as_ref())
    }
}

impl Settings {
    /// Open files that the process needs. Connections: `per_connection` files each, and a reserve for those being refused.
    /// Shards: rings, bells and listeners. The log's files, which all stay open: `there` exist already, and `log.max_bytes`
    /// allows so many (without a bound: a quarter more).
    #[must_use]
    pub fn files_needed(&self, shards: usize, per_connection: u64, there: u64) -> u64 {
        let others = self.server.max_connections as u64 * per_connection + 256 + 256 * per_connection + 8 * shards as u64;
        let segments = match self.log.max_bytes {
            _ if self.log.dir.is_none() => 0,
            0 => there + there / 4 + 64 * shards as u64,
            max_bytes => (max_bytes / self.log.segment_bytes + shards as u64).max(there),
        };
        others + segments
    }

    /// Returns `true` if `log.max_bytes` leaves each of `shards` shards fewer than two files. The file being written is never
    /// deleted, so retention could free no space.
    #[must_use]
    pub const fn is_log_too_small(&self, shards: usize) -> bool {
        let log = &self.log;
        log.dir.is_some() && log.max_bytes > 0 && log.max_bytes / (shards as u64) < 2 * log.segment_bytes
    }

    /// The smallest `log.max_bytes` with which every shard has files that can be deleted: four each.
    #[must_use]
    pub const fn log_bytes_advised(&self, shards: usize) -> u64 {
        4 * self.log.segment_bytes * shards as u64
    }
}
