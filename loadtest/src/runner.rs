//! From a command line to a result: the runs, their order, and their targets.

use crate::floor;
use crate::options::{Durability, Options};
use crate::report::{Figure, Report, Runs};
use crate::scenario::deliver::{self, Shape};
use crate::scenario::{Measured, connect, disk, echo, history, reconnect, sessions};
use crate::target::Target;
use std::path::Path;

/// A scenario with a single target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scenario {
    Connect,
    Idle,
    Echo,
    Relay,
    Fanout,
    Rooms,
    Channel,
    Slow,
    Reconnect,
    Crash,
    Soak,
    History,
    Sessions,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Idle => "idle",
            Self::Echo => "echo",
            Self::Relay => "relay",
            Self::Fanout => "fanout",
            Self::Rooms => "rooms",
            Self::Channel => "channel",
            Self::Slow => "slow",
            Self::Reconnect => "reconnect",
            Self::Crash => "crash",
            Self::Soak => "soak",
            Self::History => "history",
            Self::Sessions => "sessions",
        }
    }

    /// The bare server that bounds it, if one does. Errors: one was asked for that does not.
    fn floor(self, asked_for: Option<floor::Kind>) -> Result<Option<floor::Kind>, String> {
        match (self, asked_for) {
            (Self::Relay, Some(kind @ (floor::Kind::Echo | floor::Kind::Relay))) => Ok(Some(kind)),
            (_, Some(kind)) => Err(format!(
                "--floor-kind {} does not go with {}: only relay has a choice, and it is echo or relay",
                kind.name(),
                self.name()
            )),
            (Self::Connect | Self::Idle | Self::Echo | Self::Relay, None) => Ok(Some(floor::Kind::Echo)),
            (Self::Fanout | Self::Channel, None) => Ok(Some(floor::Kind::Fanout)),
            (Self::Rooms | Self::Slow | Self::Reconnect | Self::Crash | Self::Soak | Self::History | Self::Sessions, None) => {
                Ok(None)
            }
        }
    }

    /// The comparison measured in turns with it, if any. Errors: one was asked for that bounds nothing of it.
    fn beside(self, options: &Options) -> Result<Option<Beside>, String> {
        if !options.with_disk {
            let floor = self.floor(options.floor_kind)?;
            return Ok(floor.filter(|_| options.with_floor).map(Beside::Bare));
        }
        if !matches!(self, Self::Relay | Self::Fanout | Self::Rooms | Self::Channel) {
            let name = self.name();
            return Err(format!(
                "--with-disk does not go with {name}: it bounds the latency of relay, fanout, rooms and channel"
            ));
        }
        if options.durability != Some(Durability::Synced) {
            return Err("--with-disk is the floor of a log that waits for the disk: give --durability synced".into());
        }
        Ok(Some(Beside::Disk))
    }

    fn measure(self, label: &str, target: &Target, options: &Options, payload_bytes: usize) -> Result<Measured, String> {
        match self {
            Self::Connect => connect::measure_connect(label, target, options),
            Self::Idle => connect::measure_idle(label, target, options),
            Self::Echo => echo::measure(label, target, options, payload_bytes),
            Self::Relay => deliver::measure(Shape::Relay, label, target, options, payload_bytes, 0),
            Self::Fanout | Self::Slow => deliver::measure(Shape::Fanout, label, target, options, payload_bytes, 0),
            Self::Rooms => deliver::measure(Shape::Rooms, label, target, options, payload_bytes, 0),
            Self::Channel => deliver::measure(Shape::Channel, label, target, options, payload_bytes, 0),
            Self::Reconnect => reconnect::measure(reconnect::Cuts::Storms(options.storms), label, target, options),
            Self::Crash => {
                let kills = reconnect::Cuts::Kills { rounds: options.rounds, seed: options.seed };
                reconnect::measure(kills, label, target, options)
            }
            Self::History => history::measure(true, label, target, options),
            Self::Sessions => sessions::measure(label, target, options),
            Self::Soak => reconnect::measure(reconnect::Cuts::Churn(options.churn_per_s), label, target, options),
        }
    }

    /// The same load on the floor: on the echo floor a relay's message is one echo, in as many connections as there are senders.
    fn measure_floor(self, kind: floor::Kind, options: &Options, payload_bytes: usize) -> Result<Measured, String> {
        let label = format!("{} floor", self.name());
        let mut options = options.clone();
        let as_echo = self == Self::Relay && kind == floor::Kind::Echo;
        if as_echo {
            options.connections = Some(options.connections.unwrap_or(2000) / 2);
        }
        let target = Target::floor(kind, payload_bytes, &options)?;
        match self {
            _ if as_echo => echo::measure(&label, &target, &options, payload_bytes),
            Self::Channel => Self::Fanout.measure(&label, &target, &options, payload_bytes),
            _ => self.measure(&label, &target, &options, payload_bytes),
        }
    }
}

/// The comparison that takes turns with a scenario.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Bare(floor::Kind),
    Disk,
}

/// Runs a scenario as often as asked, in pairs with the floor where wanted.
pub fn scenario(scenario: Scenario, options: &Options) -> Result<Report, String> {
    let with = scenario.beside(options)?;
    match scenario {
        Scenario::Slow => return slow(options),
        Scenario::History => return history(options),
        _ => {}
    }
    let crash;
    let options = if scenario == Scenario::Crash {
        if options.spawn.is_none() {
            return Err("crash kills the gateway and starts it again: give --spawn PATH_TO_RINGWAY".into());
        }
        let durability = Some(options.durability.unwrap_or(Durability::Written));
        crash = Options { durability, connections: Some(options.connections.unwrap_or(100)), ..options.clone() };
        &crash
    } else {
        options
    };
    let (mut main, mut beside) = (Vec::new(), Vec::new());
    for pair in 0..options.pairs.max(1) {
        // The first run shows how large a delivered envelope, or a batch of the log, is, which the floor then sends or writes;
        // after that they alternate which goes first, so that a drift affects both alike.
        let floor_first = pair % 2 == 1;
        for turn in [!floor_first, floor_first] {
            if turn {
                let label = format!("{} {}/{}", scenario.name(), pair + 1, options.pairs.max(1));
                main.push(scenario.measure(&label, &Target::of(options)?, options, options.payload_bytes)?);
                continue;
            }
            match with {
                Some(Beside::Bare(kind)) => {
                    beside.push(scenario.measure_floor(kind, options, floor_bytes(kind, options, &main))?);
                }
                Some(Beside::Disk) => beside.push(disk::measure(batch_bytes(options, &main)?, options)?),
                None => {}
            }
        }
    }
    let mut report = Report::new(
        scenario.name(),
        settings(scenario, options),
        &Runs { name: target_name(options), runs: &main },
        &Runs { name: if with == Some(Beside::Disk) { "disk" } else { "floor" }, runs: &beside },
    );
    report.notes.extend(match with {
        Some(Beside::Bare(kind)) => {
            Some(format!("the floor is the bare {kind:?} server with messages of {} bytes", floor_bytes(kind, options, &main)))
        }
        Some(Beside::Disk) => Some(format!("the disk is one fdatasync after the other below {}", std::env::temp_dir().display())),
        None if options.with_floor => Some(format!("{} has no floor", scenario.name())),
        None => None,
    });
    Ok(report)
}

/// Bytes of the disk's writes: what a sync of the gateway's last run made durable.
fn batch_bytes(options: &Options, main: &[Measured]) -> Result<usize, String> {
    let asked_for = options.disk_batch_bytes.and_then(|bytes| usize::try_from(bytes).ok());
    asked_for.or_else(|| main.last()?.sync_bytes).ok_or_else(|| {
        "the gateway synced nothing while it was measured: give a higher --rate, a longer -d, or --disk-batch-bytes".into()
    })
}

fn floor_bytes(kind: floor::Kind, options: &Options, main: &[Measured]) -> usize {
    let delivered = main.first().and_then(|run| run.delivered_bytes).filter(|_| kind != floor::Kind::Echo);
    options.floor_bytes.or(delivered).unwrap_or(options.payload_bytes)
}

/// The floor by itself.
pub fn floor(kind: floor::Kind, options: &Options) -> Result<Report, String> {
    if options.with_disk {
        return Err("--with-disk goes with a gateway, not with a bare server, which has no log".into());
    }
    if options.floor_kind.is_some() {
        return Err(format!("--floor-kind does not go with floor {}, which names its own: only relay has a choice", kind.name()));
    }
    let scenario = match kind {
        floor::Kind::Echo => Scenario::Echo,
        floor::Kind::Relay => Scenario::Relay,
        floor::Kind::Fanout => Scenario::Fanout,
    };
    let bytes = options.floor_bytes.unwrap_or(options.payload_bytes);
    let runs: Result<Vec<_>, String> = (0..options.pairs.max(1)).map(|_| scenario.measure_floor(kind, options, bytes)).collect();
    let name = format!("floor {}", scenario.name());
    Ok(Report::new(&name, settings(scenario, options), &Runs { name: "floor", runs: &runs? }, &Runs { name: "floor", runs: &[] }))
}

/// Bytes that a reader that takes nothing receives before the gateway notices: what the gateway leaves unsent in a socket (128
/// KiB), and a receive buffer.
const STALLING_BYTES: f64 = 192.0 * 1024.0;

/// Seconds of sending after which the gateway waits for a reader that takes nothing.
fn stalling_s(options: &Options, rate: f64) -> f64 {
    let seconds = STALLING_BYTES / (rate * options.payload_bytes.max(1) as f64);
    (seconds * 10.0).ceil() / 10.0
}

/// Fan-out without and with stalled readers, in turns.
fn slow(options: &Options) -> Result<Report, String> {
    let rate = options.rate.unwrap_or(50.0);
    let warmup_s = options.warmup_s.max(stalling_s(options, rate));
    let options = Options { rate: Some(rate), warmup_s, ..options.clone() };
    let readers = options.connections.unwrap_or(1000);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the readers, bounded here")]
    let stalled = (readers as f64 * options.stalled_percent.clamp(0.0, 50.0) / 100.0).ceil() as usize;
    let (with, without) = in_turns(&options, |stalls, target| {
        if stalls {
            let label = format!("{stalled} stalled");
            deliver::measure(Shape::Fanout, &label, target, &options, options.payload_bytes, stalled)
        } else {
            // As many reading clients, in both.
            let same = Options { connections: Some(readers - stalled), ..options.clone() };
            deliver::measure(Shape::Fanout, "none stalled", target, &same, options.payload_bytes, 0)
        }
    })?;
    let mut settings = settings(Scenario::Slow, &options);
    settings.push(("stalled readers".into(), stalled.to_string()));
    let (with, without) = (Runs { name: "with stalled", runs: &with }, Runs { name: "without", runs: &without });
    Ok(Report::new("slow", settings, &with, &without))
}

/// Readers at the tail, without and with one that catches up, in turns.
fn history(options: &Options) -> Result<Report, String> {
    if options.catch_up_mb_per_second.is_some_and(|megabytes| megabytes.is_nan() || megabytes <= 0.0) {
        return Err("--catch-up-mb-per-second is to be above 0".into());
    }
    let mut options = Options { keep_all: true, rate: Some(options.rate.unwrap_or(history::RATE)), ..options.clone() };
    if options.spawn.is_some() {
        options.durability = Some(options.durability.unwrap_or(Durability::Written));
    }
    let (with, without) = in_turns(&options, |far, target| {
        history::measure(far, if far { "one catches up" } else { "none catches up" }, target, &options)
    })?;
    let mut settings = settings(Scenario::History, &options);
    settings.push(("history".into(), format!("{} MiB", options.history_bytes >> 20)));
    if let Some(megabytes) = options.catch_up_mb_per_second {
        settings.push(("catch-up at most".into(), format!("{megabytes} MB/s")));
    }
    let (with, without) = (Runs { name: "one catches up", runs: &with }, Runs { name: "without", runs: &without });
    Ok(Report::new("history", settings, &with, &without))
}

/// The same load with an addition and without it, alternating which goes first, and the effect on the others.
fn in_turns(
    options: &Options,
    measure: impl Fn(bool, &Target) -> Result<Measured, String>,
) -> Result<(Vec<Measured>, Vec<Measured>), String> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..options.pairs.max(1) {
        for turn in [pair % 2 == 0, pair % 2 == 1] {
            let measured = measure(turn, &Target::of(options)?)?;
            if turn { &mut with } else { &mut without }.push(measured);
        }
    }
    for (with, without) in with.iter_mut().zip(&without) {
        let value = |run: &Measured, name: &str| {
            run.figures.iter().find(|figure| figure.name == name).map(|figure| (figure.value, figure.void))
        };
        let mut more = Vec::new();
        if let (Some((with, a)), Some((without, b))) = (value(with, "latency p99"), value(without, "latency p99")) {
            more.push(Figure::lower("others' p99, change".into(), "%", (with - without) * 100.0 / without).void_if(a || b));
        }
        if let (Some((with, _)), Some((without, _))) = (value(with, "server RSS"), value(without, "server RSS")) {
            more.push(Figure::lower("server RSS, more".into(), "MiB", with - without));
        }
        with.figures.extend(more);
    }
    Ok((with, without))
}

/// All scenarios that must not lose messages, small and short: for continuous integration.
pub fn smoke(options: &Options) -> Result<Vec<Report>, String> {
    let small = |connections: usize, duration_s: f64, rate: Option<f64>, burst: usize| Options {
        connections: Some(connections),
        duration_s,
        warmup_s: 0.1,
        rate,
        burst,
        pairs: 1,
        with_floor: false,
        no_pin: true,
        storms: 2,
        ..options.clone()
    };
    [
        (Scenario::Echo, small(50, 0.5, None, 1)),
        (Scenario::Relay, small(50, 0.5, None, 1)),
        (Scenario::Fanout, small(50, 0.5, None, 4)),
        (Scenario::Reconnect, small(50, 1.5, Some(500.0), 1)),
    ]
    .iter()
    .map(|(which, options)| scenario(*which, options))
    .collect()
}

fn target_name(options: &Options) -> &'static str {
    if options.spawn.is_some() || options.key.is_some() { "gateway" } else { "server" }
}

fn settings(scenario: Scenario, options: &Options) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    if let Some(connections) = options.connections {
        set("connections", connections.to_string());
    }
    set("payload", format!("{} B", options.payload_bytes));
    match options.rate {
        Some(rate) => set("rate", format!("{rate}/s")),
        None => set("in flight", options.in_flight.to_string()),
    }
    if options.burst > 1 {
        set("burst", options.burst.to_string());
    }
    match scenario {
        Scenario::Rooms => set("room size", options.room_size.to_string()),
        Scenario::Connect => set("concurrency", options.concurrency.to_string()),
        Scenario::Reconnect => set("storms", options.storms.to_string()),
        Scenario::Crash => set("seed", options.seed.to_string()),
        Scenario::Sessions => set("messages a session", options.session_messages.to_string()),
        Scenario::Soak => set("cut", format!("{}/s", options.churn_per_s)),
        _ => {}
    }
    if let Some(engine) = &options.engine {
        set("engine", engine.clone());
    }
    if let Some(durability) = options.durability {
        set("durability", durability.name().to_owned());
    }
    if !matches!(scenario, Scenario::Crash | Scenario::Sessions) {
        set("duration", format!("{} s", options.duration_s));
        set("warm-up", format!("{} s", options.warmup_s));
    }
    let cores: Vec<String> = options.load_core.iter().map(ToString::to_string).collect();
    let pinned = if options.no_pin {
        "nothing pinned".into()
    } else {
        format!("server core {}, load core {}", options.server_core, cores.join(","))
    };
    set("workers", format!("{} ({pinned})", options.workers));
    settings
}

/// Writes what the options ask for.
pub fn write_files(report: &Report, options: &Options) -> Result<(), String> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(report).map_err(|error| format!("the result does not fit JSON: {error}"))?;
        write(path, text)?;
    }
    if let Some(path) = &options.html {
        write(path, crate::report::html::render(report))?;
    }
    Ok(())
}

/// Reads a result that `--json` wrote.
pub fn read(path: &Path) -> Result<Report, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{} is no result of this harness: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser as _;

    fn options(arguments: &str) -> Result<Options, String> {
        let all = ["ringway-loadtest", "relay", "--spawn", "x"].into_iter().chain(arguments.split_ascii_whitespace());
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Some(Command::Relay(options)) => Ok(options),
            _ => Err("relay was asked for".into()),
        }
    }

    #[test]
    fn the_disk_bounds_what_waits_for_it_and_nothing_else() {
        let synced = options("--durability synced --rate 1000 --with-disk").unwrap();
        assert_eq!(Scenario::Relay.beside(&synced), Ok(Some(Beside::Disk)));
        assert!(Scenario::Echo.beside(&synced).unwrap_err().contains("echo"));
        let written = options("--durability written --rate 1000 --with-disk").unwrap();
        assert!(Scenario::Relay.beside(&written).unwrap_err().contains("--durability synced"));
        for wrong in ["--durability synced --with-disk", "--rate 1 --with-disk", "--disk-batch-bytes 9"] {
            assert!(options(wrong).is_err(), "{wrong}");
        }
        assert!(options("--durability synced --rate 1 --with-disk --with-floor").is_err(), "a result has one floor");
        assert!(floor(floor::Kind::Echo, &synced).unwrap_err().contains("no log"));
        let plain = options("--durability synced --with-floor").unwrap();
        assert_eq!(Scenario::Relay.beside(&plain), Ok(Some(Beside::Bare(floor::Kind::Echo))));
        assert_eq!(Scenario::Relay.beside(&options("--durability synced").unwrap()), Ok(None));
    }

    #[test]
    fn the_disks_batches_are_as_large_as_the_gateways_last_unless_they_are_given() {
        let derived = options("--durability synced --rate 1000 --with-disk").unwrap();
        let given = options("--durability synced --rate 1000 --with-disk --disk-batch-bytes 4096").unwrap();
        let run = |sync_bytes| Measured { sync_bytes, ..Measured::default() };
        let runs = [run(Some(10_000)), run(Some(20_000))];
        assert_eq!(batch_bytes(&derived, &runs), Ok(20_000));
        assert_eq!(batch_bytes(&given, &runs), Ok(4096));
        assert!(batch_bytes(&derived, &[run(None)]).unwrap_err().contains("synced nothing"));
    }

    #[test]
    fn a_slow_reader_stalls_before_it_is_measured() {
        let small = options("--payload-bytes 128").unwrap();
        assert!((stalling_s(&small, 50.0) - 30.8).abs() < 1e-9);
        let large = options("--payload-bytes 4096").unwrap();
        assert!((stalling_s(&large, 50.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_far_reader_has_a_rate_above_0_or_none() {
        for wrong in ["0", "NaN"] {
            let options = options(&format!("--catch-up-mb-per-second {wrong}")).unwrap();
            assert!(history(&options).unwrap_err().contains("above 0"), "{wrong}");
        }
    }
}
