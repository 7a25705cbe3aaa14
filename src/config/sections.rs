//! Every setting, once: its section, name, type, default, unit, range, whether a reload takes it, and what it does.

use super::value::{Allowed, HeaderName, NodeName, Origin, Raw, Value};
use super::{Durability, Engine, HistoryView, KeyAlgorithm, LogFormat, LogLevel, Network};
use crate::limits::{
    DEDUPE_IDS_MAX, FRAGMENTS_MAX, MEMBERS_PER_SESSION_MAX, MESSAGE_BYTES_MAX, MESSAGE_UNFINISHED_MS_MAX, ROOMS_PER_CLIENT_MAX,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// One setting, as the reference tells of it.
#[derive(Debug)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    /// What it does, one line.
    pub doc: &'static str,
    /// The unit; empty where it has none.
    pub unit: &'static str,
    /// A reload (SIGHUP) takes it; else it needs a restart.
    pub live: bool,
    /// The default as TOML.
    pub default: fn() -> String,
    /// What it may be.
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
    /// Where clients connect and what runs.
    [server] Server: Clone {
        /// Address and port for clients.
        listen: SocketAddr = loopback(8080), "", Allowed::Any, restart;
        /// Listens where other gateways of the same user do too, that say so as well. Only for a change of processes: the kernel spreads
        /// new connections over them, and clients of one session that come to two gateways never meet.
        listen_shared: bool = false, "", Allowed::Any, restart;
        /// The name of this node, told to clients in the welcome.
        node: NodeName = NodeName("n1".to_owned()), "", Allowed::Any, restart;
        /// Shards, one thread each; 0: one per core.
        shards: usize = 0, "", Allowed::AutoOr(1, 256), restart;
        /// Pins each shard's thread to its core.
        pin: bool = true, "", Allowed::Any, restart;
        /// What runs the shards: ring, on io_uring of kernel 6.1 or later; monoio, on io_uring of 5.6 or else on epoll; epoll, which is
        /// monoio without io_uring; auto: the best of these that works.
        engine: Engine = Engine::Auto, "", Allowed::Any, restart;
        /// How long an idle shard polls before it sleeps. 0: not at all; 50 halves latency at part load and burns the core.
        spin_us: u64 = 0, "us", Allowed::Range(0, 10_000), restart;
        /// Origins of browser pages that may connect. Empty: pages of the request's own host; "*": any page.
        allowed_origins: Vec<Origin> = Vec::new(), "", Allowed::Any, live;
        /// Connections of the whole node. The process needs as many open files (twice as many with monoio), 512 more, and one for each
        /// file of the log.
        max_connections: usize = 10_000, "", Allowed::Range(1, 10_000_000), restart;
        /// Peers whose word on the client's address is believed (client_ip_header, proxy_protocol).
        trusted_proxies: Vec<Network> = Vec::new(), "", Allowed::Any, live;
        /// The header in which trusted proxies name the client's address; the last entry that is no trusted proxy counts.
        client_ip_header: HeaderName = HeaderName::default(), "", Allowed::Any, live;
        /// Answers GET /healthz and /readyz on this port too, for balancers and supervisors on other machines.
        health: bool = true, "", Allowed::Any, live;
        /// Trusted proxies begin each connection with a PROXY protocol header (version 1 or 2).
        proxy_protocol: bool = false, "", Allowed::Any, restart;
    }

    /// TLS for clients: both files, or neither for plain TCP.
    [tls] Tls: Clone {
        /// The certificate chain, PEM, the leaf first. A reload reads the file again, for new connections.
        certificate: Option<PathBuf> = None, "", Allowed::Any, restart;
        /// The private key of the leaf, PEM. A reload reads the file again, for new connections.
        key: Option<PathBuf> = None, "", Allowed::Any, restart;
    }

    /// What SIGTERM does.
    [drain] Drain: Clone Copy {
        /// How long /readyz says no before clients are told, so that load balancers look away first.
        not_ready_ms: u64 = 0, "ms", Allowed::Range(0, 600_000), live;
        /// The time over which clients are asked to spread their return.
        window_ms: u64 = 10_000, "ms", Allowed::Range(0, 600_000), live;
        /// From the end of not_ready_ms to the end of the process, whoever is still there.
        grace_ms: u64 = 30_000, "ms", Allowed::Range(1, 3_600_000), live;
    }

    /// The operator's listener: /healthz, /readyz, /metrics, /v1/connections, /v1/revocations, /v1/purge.
    [admin] Admin: Clone {
        /// Address and port; a loopback address only, since this listener asks for no credentials.
        listen: SocketAddr = loopback(9090), "", Allowed::Any, restart;
        /// The path of a Unix socket that answers the same, beside that port: to this process's user alone, for its mode is 0600.
        socket: Option<PathBuf> = None, "", Allowed::Any, restart;
    }

    /// What a token must be. The keys stand in [[auth.keys]].
    [auth] Auth: Clone {
        /// The `iss` a token must have; empty: any.
        issuer: String = String::new(), "", Allowed::Any, live;
        /// The `aud` a token must have among its own; empty: a token with an `aud` is refused, since it was made for somebody else.
        audience: String = String::new(), "", Allowed::Any, live;
        /// How far clocks may differ.
        leeway_s: u64 = 10, "s", Allowed::Range(0, 300), live;
        /// The longest time from a token's `iat` to its `exp`.
        lifetime_s_max: u64 = 86_400, "s", Allowed::Range(1, 31_622_400), live;
    }

    /// What one client, one address, one shard may take. 0 means no limit where the table says so.
    [limits] Limits: Clone Copy {
        /// A message after reassembly and inflation. The hello with its token counts too.
        max_message_bytes: usize = MESSAGE_BYTES_MAX, "bytes", Allowed::Range(1024, MESSAGE_BYTES_MAX as u64), live;
        /// Fragments of one message, empty ones counted.
        max_fragments: u32 = FRAGMENTS_MAX, "", Allowed::Range(1, 65_536), live;
        /// How long a message may stay unfinished.
        unfinished_message_ms: u64 = MESSAGE_UNFINISHED_MS_MAX, "ms", TIME_MS, live;
        /// Messages of one connection a second.
        messages_per_second: u64 = 200, "/s", RATE, live;
        /// Messages of one connection at once, before messages_per_second rules.
        messages_burst: u64 = 400, "", Allowed::Range(1, RATE_MAX), live;
        /// Message bytes of one connection a second, counted after inflation; the burst is one second's worth, at least one message.
        bytes_per_second: u64 = 1_048_576, "bytes/s", RATE, live;
        /// Times a second that a member may tell others of itself (`rw.presence.set`).
        presence_per_second: u64 = 2, "/s", RATE, live;
        /// Such times at once, before presence_per_second rules.
        presence_burst: u64 = 10, "", Allowed::Range(1, RATE_MAX), live;
        /// How long a client may stay above its rate before it is closed (4429).
        rate_abuse_ms: u64 = 10_000, "ms", TIME_OR_NONE_MS, live;
        /// Refused envelopes within bad_envelopes_window_ms that close a connection (4400).
        bad_envelopes: u32 = 10, "", Allowed::OffOr(1, 1_000_000), live;
        /// See bad_envelopes.
        bad_envelopes_window_ms: u64 = 10_000, "ms", TIME_MS, live;
        /// WebSocket control frames of one connection a second.
        control_frames_per_second: u64 = 10, "/s", RATE, live;
        /// Control frames at once, before control_frames_per_second rules.
        control_frames_burst: u64 = 20, "", Allowed::Range(1, RATE_MAX), live;
        /// Connections from one address (IPv6: one /64).
        connections_per_ip: usize = 200, "", COUNT, live;
        /// Connections of one user (a token's `sub`).
        connections_per_user: usize = 10, "", COUNT, live;
        /// New connections from one address a second.
        handshakes_per_ip_per_second: u64 = 20, "/s", RATE, live;
        /// New connections from one address at once, before handshakes_per_ip_per_second rules.
        handshakes_per_ip_burst: u64 = 50, "", Allowed::Range(1, RATE_MAX), live;
        /// New connections a shard takes a second.
        handshakes_per_second: u64 = 500, "/s", RATE, live;
        /// Connections without a welcome yet, as a share of max_connections. Above it the oldest of the address that has the most gives way;
        /// a quarter of the places is for addresses that have none there.
        half_open_percent: u32 = 10, "%", Allowed::Range(1, 100), live;
        /// Connections without a welcome yet from one address.
        half_open_per_ip: usize = 32, "", COUNT, live;
        /// From accept (TLS: from the end of its handshake) to the hello.
        handshake_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// The TLS handshake.
        tls_handshake_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// The close handshake; then the socket is closed.
        close_ms: u64 = 5_000, "ms", TIME_MS, live;
        /// Bytes of replies waiting for one client.
        reply_queue_bytes: usize = 65_536, "bytes", Allowed::Range(4_096, 16_777_216), live;
        /// Replies waiting for one client.
        reply_queue_frames: usize = 1_024, "", Allowed::Range(16, 65_536), live;
        /// How long a sender whose session can't take more is not read from before it is told so (0: told at once).
        backpressure_hold_ms: u64 = 2_000, "ms", Allowed::Range(0, 60_000), live;
        /// Memory of what waits to be sent to a shard's connections (replies, presence, ephemeral messages), and of what waits for the disk.
        shard_memory_bytes: usize = 268_435_456, "bytes", Allowed::Range(16_777_216, 1_099_511_627_776), live;
        /// Sessions one connection may be attached to, the hello's counted.
        max_attached_sessions: usize = 64, "", Allowed::Range(1, 4_096), live;
        /// Members of one session; for more readers use a channel.
        members_per_session: usize = MEMBERS_PER_SESSION_MAX, "", Allowed::Range(1, MEMBERS_PER_SESSION_MAX as u64), live;
        /// Members of one session that one user (a token's `sub`) may be, a quarter of members_per_session at most (but two). For one more the user's
        /// own that is away for longest gives way, as if it had been unseen for member_unseen_ms.
        members_per_user: usize = 32, "", Allowed::Range(1, MEMBERS_PER_SESSION_MAX as u64), live;
        /// Rooms of a session one client may be in, and as many that it may watch.
        rooms_per_client: usize = ROOMS_PER_CLIENT_MAX, "", Allowed::Range(1, ROOMS_PER_CLIENT_MAX as u64), live;
        /// Sessions at home on one shard.
        sessions_per_shard: usize = 100_000, "", Allowed::Range(1, COUNT_MAX), live;
        /// Sessions at home on one shard that one user (a token's `sub`) made, by attaching or by posting to a channel, and that are still
        /// there; what was made before a restart does not count.
        sessions_per_user: usize = 10_000, "", COUNT, live;
        /// The life of a connection (± 10 %); then it is closed with 1012 and comes back.
        connection_lifetime_s: u64 = 86_400, "s", Allowed::OffOr(60, 31_622_400), live;
        /// How long a reader may take less than stall_bytes_per_second with data waiting (4508).
        stall_ms: u64 = 10_000, "ms", TIME_MS, live;
        /// See stall_ms.
        stall_bytes_per_second: u64 = 1_024, "bytes/s", Allowed::Range(1, RATE_MAX), live;
    }

    /// How sessions behave.
    [session] Session: Clone Copy {
        /// An idle connection is pinged after this (± 10 %).
        heartbeat_ms: u64 = 25_000, "ms", Allowed::Range(100, DAY_MS), live;
        /// A pinged connection that stays silent for this long is dropped (4504).
        heartbeat_timeout_ms: u64 = 10_000, "ms", Allowed::Range(100, DAY_MS), live;
        /// A member that comes back within this was never away.
        presence_grace_ms: u64 = 15_000, "ms", Allowed::Range(0, DAY_MS), live;
        /// A member unseen for this long is no member any more.
        member_unseen_ms: u64 = DAY_MS, "ms", Allowed::Range(1_000, 30 * DAY_MS), live;
        /// A session without members or connections is forgotten after this.
        idle_ms: u64 = DAY_MS, "ms", Allowed::Range(1_000, 30 * DAY_MS), live;
        /// Message ids remembered for each client of a session, against repeats.
        dedupe_ids: usize = 1_000, "", Allowed::Range(1, DEDUPE_IDS_MAX as u64), live;
        /// How long a message id is remembered.
        dedupe_ms: u64 = 600_000, "ms", TIME_MS, live;
        /// What of a session a newcomer may read: all that is retained, or what came after its first join.
        history: HistoryView = HistoryView::Full, "", Allowed::Any, live;
        /// Messages a session retains.
        history_messages: usize = 10_000, "", Allowed::Range(1, COUNT_MAX), live;
        /// How long before its token's end a client is warned (rw.auth.expiring).
        token_expiry_warning_ms: u64 = 60_000, "ms", Allowed::Range(0, DAY_MS), live;
        /// How long after its token's end a client may still bring a new one; then 4401.
        token_expiry_grace_ms: u64 = 25_000, "ms", Allowed::Range(0, DAY_MS), live;
    }

    /// The message log: in memory, and where `dir` is set on disk.
    [log] Log: Clone {
        /// Bytes of messages a shard holds in memory. Without `dir` the oldest go first; with it they are read back from disk.
        memory_bytes: usize = 67_108_864, "bytes", Allowed::Range(8_388_608, 1_099_511_627_776), restart;
        /// Where the log is kept on disk; not set: in memory alone, and gone with the process.
        dir: Option<PathBuf> = None, "", Allowed::Any, restart;
        /// What an acknowledgement promises, where there is a `dir`: nothing beyond memory, that the message survives the process
        /// (written), or a power cut too (synced).
        durability: Durability = Durability::Written, "", Allowed::Any, restart;
        /// Delivers messages before they are durable; acknowledgements still wait.
        early_delivery: bool = false, "", Allowed::Any, live;
        /// Bytes of one file of the log, rounded down to whole MiB; with another value the next start writes the log again.
        segment_bytes: u64 = 67_108_864, "bytes", Allowed::Range(2_097_152, 4_294_967_296), restart;
        /// How long a session retains a message, in memory too; up to 1/256 of it longer, but a second at least.
        retention_age_s: u64 = 604_800, "s", Allowed::OffOr(1, 3_153_600_000), live;
        /// Messages a session retains; 0: session.history_messages.
        retention_messages: usize = 0, "", Allowed::AutoOr(1, COUNT_MAX), live;
        /// Bytes of messages a session retains, each with its record's header; the newest one stays in any case.
        retention_bytes: u64 = 0, "bytes", Allowed::OffOr(1_024, 1_125_899_906_842_624), live;
        /// Bytes of the directory, above which durable messages are refused; each shard has an equal share of it, of which a sixteenth, half a
        /// file at least, is for what makes room.
        max_bytes: u64 = 0, "bytes", Allowed::OffOr(16_777_216, 1_125_899_906_842_624), live;
        /// Bytes of the directory's file system that stay free: the log takes no new file that would use them, and durable messages
        /// are refused when the file before it is full.
        reserve_bytes: u64 = 0, "bytes", Allowed::OffOr(1_048_576, 1_125_899_906_842_624), restart;
    }

    /// permessage-deflate (RFC 7692), without context takeover.
    [deflate] Deflate: Clone Copy {
        /// Agrees to compression where a client offers it.
        enabled: bool = false, "", Allowed::Any, live;
        /// The smallest message that is compressed.
        min_bytes: usize = 1_024, "bytes", Allowed::Range(64, MESSAGE_BYTES_MAX as u64), live;
    }

    /// For finding out.
    [diagnostics] Diagnostics: Clone Copy {
        /// Opens /v1/echo, which asks for no token: for conformance suites and load baselines, not for the Internet.
        echo: bool = false, "", Allowed::Any, restart;
        /// How log lines look.
        log_format: LogFormat = LogFormat::Human, "", Allowed::Any, restart;
        /// The least important log line that is written.
        log_level: LogLevel = LogLevel::Info, "", Allowed::Any, restart;
    }
}

/// One of `[[auth.keys]]`. The file is read by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKey {
    /// The key id that a token's header names.
    pub kid: String,
    pub alg: KeyAlgorithm,
    /// PEM of the public key, or the base64 secret of an HS256 key.
    pub file: PathBuf,
}

impl Tls {
    /// The certificate and its key, where TLS is on.
    #[must_use]
    pub fn files(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.certificate.as_ref().zip(self.key.as_ref())
    }
}

impl Settings {
    /// Open files the process needs for `shards` shards on an engine that takes so many a connection: connections, and a reserve for
    /// rings, bells, listeners, the admin listener and connections that are being refused; and the log's files, which all stay open:
    /// `there` are, and as many come as `log.max_bytes` allows (where it allows any number, a quarter more).
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

    /// Whether `log.max_bytes` leaves each of `shards` shards fewer than two files: the one that is written is never let go, so that
    /// retention can make no room.
    #[must_use]
    pub const fn is_log_too_small(&self, shards: usize) -> bool {
        let log = &self.log;
        log.dir.is_some() && log.max_bytes > 0 && log.max_bytes / (shards as u64) < 2 * log.segment_bytes
    }

    /// The smallest `log.max_bytes` with which every shard has files to let go: four each.
    #[must_use]
    pub const fn log_bytes_advised(&self, shards: usize) -> u64 {
        4 * self.log.segment_bytes * shards as u64
    }
}
