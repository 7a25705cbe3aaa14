//! The command line.

use crate::floor;
use clap::{Args, FromArgMatches as _, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Load harness for Ringway and any other WebSocket echo server.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Two results, written with --json, side by side; as the command `compare`.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], required = true)]
    pub compare: Vec<PathBuf>,
}

#[derive(Subcommand)]
pub enum Command {
    /// A storm of connections: handshakes per second, and their cost.
    Connect(Options),
    /// Memory of idle connections, at several sizes.
    Idle(Options),
    /// Every message comes back to its sender.
    Echo(Options),
    /// Sessions of two: one receive, one delivery, one ack a message.
    Relay(Options),
    /// A single sender, many readers in one session.
    Fanout(Options),
    /// A single session, many rooms: each member sends to its room.
    Rooms(Options),
    /// A sender outside, many readers of a channel.
    Channel(Options),
    /// Fan-out with a hundredth of the readers stalled, and the effect on the others.
    Slow(Options),
    /// All clients lose the connection at once and resume: nothing may be lost or come twice.
    Reconnect(Options),
    /// The gateway is killed again and again, and started on the same log: acknowledged messages may not be missing or come
    /// twice.
    Crash(Options),
    /// Relay for long, with connections that come and go: memory and open files must not grow.
    Soak(Options),
    /// A session larger than the gateway's memory: one reader catches up on it, from the start and from the middle in turns,
    /// while others are at the tail; compared with the same load without it.
    History(Options),
    /// Many sessions whose members have left: memory per session, and with --durability the start over their log.
    Sessions(Options),
    /// About five seconds of echo, relay, fanout and reconnect, small: for continuous integration.
    Smoke(Options),
    /// Attacks on a gateway beside innocent clients: their latencies, compared with the same attack on a bare sink.
    Hostile(HostileOptions),
    /// The bare servers: the machine's limit.
    Floor(FloorOptions),
    /// The server that `hostile` attacks in place of the gateway.
    #[command(hide = true)]
    Sink {
        #[arg(long, value_name = "ADDRESS")]
        serve: SocketAddr,
    },
    /// Two results side by side.
    Compare {
        /// A result written with --json.
        before: PathBuf,
        /// Another result.
        after: PathBuf,
    },
}

/// Durability that the acknowledgements of a started gateway promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    Memory,
    Written,
    Synced,
}

impl Durability {
    /// The name in the gateway's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Written => "written",
            Self::Synced => "synced",
        }
    }
}

#[derive(Args, Clone)]
pub struct HostileOptions {
    /// The attacks by name, e.g. `a1 b7-tls`; without a name all of them.
    #[arg(value_name = "ATTACK")]
    pub attacks: Vec<String>,
    /// The `ringway` to attack, with its default limits unless an attack says otherwise.
    #[arg(long, value_name = "PATH")]
    pub spawn: PathBuf,
    /// The gateway's `server.engine` (ring, monoio, epoll); default: the best that works on this machine.
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// Runs of each attack, each a pair: on the gateway, and on a sink beside it, in turns.
    #[arg(long, default_value_t = 5)]
    pub pairs: usize,
    /// Duration of the measured part of a run, in seconds.
    #[arg(long, short = 'd', default_value_t = 8.0)]
    pub seconds: f64,
    /// Duration of the attack before it is measured, in seconds; default: a quarter of --seconds, a second at most.
    #[arg(long)]
    pub warmup_s: Option<f64>,
    /// Messages per second of the innocents, in all.
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    /// Bytes of their payload.
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// The core of the gateway and of the sink.
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,
    /// The core of innocents and attackers; attackers run only while the innocents there sleep.
    #[arg(long, default_value_t = 1)]
    pub load_core: usize,
    /// Pin nothing; attackers and innocents then have equal rights to a core.
    #[arg(long)]
    pub no_pin: bool,
    /// Print the table as Markdown.
    #[arg(long)]
    pub markdown: bool,
    /// Write the table as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print nothing while it runs.
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct FloorOptions {
    #[arg(value_enum)]
    pub kind: floor::Kind,
    /// Only serve, at this address, until ended; without it the floor is measured.
    #[arg(long, value_name = "ADDRESS")]
    pub serve: Option<SocketAddr>,
    /// With --serve: bytes of a receive buffer.
    #[arg(long, default_value_t = 2048)]
    pub buffer_bytes: u32,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args, Clone)]
pub struct Options {
    /// Start this `ringway` with a configuration of the harness's own, and stop it afterwards.
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    pub spawn: Option<PathBuf>,
    /// With --spawn: the gateway keeps its log in a temporary directory and acknowledges messages at this durability; without it
    /// the log is in memory only (crash, history: written).
    #[arg(long, value_enum, requires = "spawn")]
    pub durability: Option<Durability>,
    /// With --spawn: the gateway's `server.engine` (ring, monoio, epoll); default: the best that works on this machine.
    #[arg(long, value_name = "ENGINE", requires = "spawn")]
    pub engine: Option<String>,
    /// A server that runs already, e.g. ws://127.0.0.1:8080/v1/ws; for `echo` any echo server.
    #[arg(long)]
    pub url: Option<String>,
    /// The process id of that server, for CPU and memory.
    #[arg(long)]
    pub pid: Option<u32>,
    /// With --url: the gateway's HS256 key as a JWK file.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// With --key: the issuer the gateway expects.
    #[arg(long, default_value = "ringway-loadtest")]
    pub issuer: String,
    /// With --key: the audience the gateway expects.
    #[arg(long, default_value = "ringway")]
    pub audience: String,
    /// The core of a started server.
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,
    /// The cores of the workers.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub load_core: Vec<usize>,
    /// Threads that make load, spread over the load cores.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Pin nothing.
    #[arg(long)]
    pub no_pin: bool,
    /// Connections in all (relay, reconnect, soak: two a session; fanout, channel, slow, history: readers; sessions: sessions). Each scenario has its default.
    #[arg(long, short = 'c')]
    pub connections: Option<usize>,
    /// The payload: a bare message's bytes, or the JSON value of an envelope's `payload`.
    #[arg(long, default_value_t = 128)]
    pub payload_bytes: usize,
    /// Closed loop: messages (fanout: bursts) on their way a sender.
    #[arg(long, default_value_t = 1)]
    pub in_flight: usize,
    /// Messages a sender sends at once.
    #[arg(long, default_value_t = 1)]
    pub burst: usize,
    /// Messages per second in all, on a fixed schedule; default: a closed loop.
    #[arg(long)]
    pub rate: Option<f64>,
    /// With --rate: the least sleep of the schedule, in microseconds.
    #[arg(long, default_value_t = 20)]
    pub quantum_us: u64,
    #[arg(long, default_value_t = 2.0)]
    pub warmup_s: f64,
    #[arg(long, short = 'd', default_value_t = 5.0)]
    pub duration_s: f64,
    /// Runs; with --with-floor each is a pair, gateway and floor in turns, and the ratio is the median of the pairs'.
    #[arg(long, default_value_t = 1)]
    pub pairs: usize,
    /// Measure the floor in the same run, and print ratios to it.
    #[arg(long)]
    pub with_floor: bool,
    /// relay, with --with-floor: the bare server beside it: echo (one receive, one send a message; what the target is stated
    /// against; default), or relay (one receive, a send to the other, an ack to the sender).
    #[arg(long, value_enum, requires = "with_floor")]
    pub floor_kind: Option<floor::Kind>,
    /// relay, fanout, rooms, channel with --durability synced: in turns with the gateway, the disk alone: batches as large as the
    /// gateway's, appended to a file made as its log's and synced (fdatasync) one after the other; latencies have a ratio to it.
    #[arg(long, requires_all = ["durability", "rate"], conflicts_with = "with_floor")]
    pub with_disk: bool,
    /// With --with-disk: bytes of a batch; default: the bytes of one sync of the gateway's in the run before, from its metrics.
    #[arg(long, requires = "with_disk", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub disk_batch_bytes: Option<u64>,
    /// Bytes of the floor's messages; default: --payload-bytes where the floor is the echo, else the size of a delivered envelope.
    #[arg(long)]
    pub floor_bytes: Option<usize>,
    /// idle: connections at which memory is read.
    #[arg(long, value_delimiter = ',')]
    pub sizes: Vec<usize>,
    /// rooms: members of a room.
    #[arg(long, default_value_t = 10)]
    pub room_size: usize,
    /// connect: handshakes under way at once.
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// reconnect: number of times that all clients are cut off.
    #[arg(long, default_value_t = 3)]
    pub storms: usize,
    /// crash: number of times that the gateway is killed.
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// crash: seed for the moments of the kills.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// soak: connections cut off per second.
    #[arg(long, default_value_t = 10.0)]
    pub churn_per_s: f64,
    /// slow: percent of the readers that are stalled. The warm-up is long enough for the gateway to have to wait for them.
    #[arg(long, default_value_t = 1.0)]
    pub stalled_percent: f64,
    /// history: bytes of payloads in the session before the load begins.
    #[arg(long, default_value_t = 256 << 20)]
    pub history_bytes: u64,
    /// history: megabytes per second that the far reader takes at most; default: as much as it can.
    #[arg(long, value_name = "MB")]
    pub catch_up_mb_per_second: Option<f64>,
    /// sessions: messages in each.
    #[arg(long, default_value_t = 1)]
    pub session_messages: u64,
    /// A started gateway keeps all messages of a session.
    #[arg(skip)]
    pub keep_all: bool,
    /// A started gateway has its default limits.
    #[arg(skip)]
    pub default_limits: bool,
    /// The environment of a started gateway: `RINGWAY_SECTION__KEY`.
    #[arg(skip)]
    pub environment: Vec<(String, String)>,
    /// Write the result as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the result as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show no progress bar.
    #[arg(long)]
    pub quiet: bool,
}

impl Options {
    /// The options' values if the command line is empty.
    pub fn defaults() -> Self {
        let matches = Self::augment_args(clap::Command::new("defaults")).get_matches_from(["defaults"]);
        Self::from_arg_matches(&matches).expect("every option has a default or may be absent")
    }
}
