//! `ringway serve`, and the life of the process: raise limits, build control, start the shards, let control run, end them all.

use super::CliError;
use super::check::{Checked, LoadedTls, Mistaken, check, load_tls};
use super::engine::{Choice, choose};
use crate::auth::{KeyMaterial, KeySet, TokenPolicy};
use crate::config::{Change, Engine as Wanted, Settings};
use crate::control::logging;
use crate::control::{Control, ControlOptions, EngineLabels, Outcome, Reload, Reloaded};
use crate::io::probe::Engine;
use crate::net::origin::OriginPolicy;
use crate::net::tls::TlsServer;
use crate::net::upgrade::Policy;
use crate::shard::port::{Port, PortMessage, Snapshot};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Number of looks at the threads of stopping shards before the process ends without them.
const JOIN_LOOKS: u32 = 100;
const JOIN_LOOK: Duration = Duration::from_millis(20);

/// Everything that a process is to run.
pub struct Node {
    pub settings: Settings,
    pub keys: Vec<KeyMaterial>,
    /// `true` if pages of the loopback and `null` may connect too (protocol.md section 1).
    pub dev: bool,
    /// `None` if TLS is off.
    pub tls: Option<TlsServer>,
    /// The function that SIGHUP calls.
    pub reload: Option<Reload>,
    /// The engine that runs the shards.
    pub engine: Choice,
}

/// Running shards.
#[derive(Debug)]
pub struct Shards {
    /// The address for clients.
    pub address: SocketAddr,
    /// The ports, in the order of the shards.
    pub ports: Vec<Port>,
    pub threads: Vec<JoinHandle<()>>,
}

/// Starts so many shards, with a snapshot, on an engine.
pub type StartShards = fn(usize, &Arc<Snapshot>, Engine) -> Result<Shards, String>;

/// Runs the shards on a kernel.
pub(super) const START_SHARDS: StartShards = |count, snapshot, engine| {
    let running = crate::shard::start::start(count, snapshot, engine)?;
    Ok(Shards { address: running.address, ports: running.ports, threads: running.threads })
};

/// The snapshot for the shards: keys parsed, policies made, TLS files read.
fn snapshot(settings: Arc<Settings>, keys: &[KeyMaterial], tls: Option<TlsServer>, dev: bool) -> Result<Arc<Snapshot>, CliError> {
    let keys = KeySet::new(keys).map_err(|error| CliError(error.to_string()))?;
    let origins: Vec<String> = settings.server.allowed_origins.iter().map(|origin| origin.0.clone()).collect();
    let origins = OriginPolicy::new(origins, dev);
    let set = |text: &str| (!text.is_empty()).then(|| text.into());
    Ok(Arc::new(Snapshot {
        keys: Arc::new(keys),
        tokens: TokenPolicy {
            issuer: set(&settings.auth.issuer),
            audience: set(&settings.auth.audience),
            leeway_s: settings.auth.leeway_s,
            lifetime_s_max: settings.auth.lifetime_s_max,
        },
        revocations: Arc::default(),
        upgrade: Policy { origins, echo: settings.diagnostics.echo },
        tls,
        settings,
        health: Arc::default(),
    }))
}

pub(super) fn serve(file: &Path) -> Result<(), CliError> {
    let Checked { mut settings, keys, tls } = check(file, None)?;
    let engine = choose(settings.server.engine)?;
    let log = logging::start(settings.diagnostics.log_format, settings.diagnostics.log_level)?;
    let asked_for = settings.server.max_connections;
    if may_fit(&settings, engine.engine)
        && let Some(needed) = fit_open_files(&mut settings, engine.engine)
    {
        tracing::warn!(
            asked_for,
            max_connections = settings.server.max_connections,
            "server.max_connections is lowered to what this process may have open files for, since its engine takes two for each: raise \
             nofile to {needed} (systemd: LimitNOFILE={needed}; shell: ulimit -Hn {needed}) to have all of them"
        );
    }
    let shards = shard_count(&settings);
    if settings.is_log_too_small(shards) {
        tracing::warn!(
            shards,
            "log.max_bytes leaves each shard fewer than two files: when they are full, retention can let none go, and durable messages are \
             refused. Raise it to {} or more, or lower log.segment_bytes",
            settings.log_bytes_advised(shards)
        );
    }
    let reload = reloader(file.to_owned(), asked_for, settings.clone(), keys.clone(), tls.clone());
    let node = Node { settings, keys, tls: tls.map(|tls| tls.server), dev: false, reload: Some(reload), engine };
    let ended = run(node, START_SHARDS, |address, admin| {
        tracing::info!(%address, %admin, version = env!("CARGO_PKG_VERSION"), "serving");
    });
    log.flush();
    ended
}

/// The function that SIGHUP calls: reads the file, the environment, the key files and the files of `[tls]` again. `asked_for` is
/// the `server.max_connections` of the file; the start may have lowered it.
fn reloader(
    file: PathBuf,
    asked_for: usize,
    mut settings: Settings,
    mut keys: Vec<KeyMaterial>,
    mut tls: Option<LoadedTls>,
) -> Reload {
    let connections_max = settings.server.max_connections;
    Box::new(move || {
        let one_line = |mistaken: Mistaken| mistaken.lines.join("; ");
        let Checked { settings: mut new, keys: new_keys, tls: mut new_tls } = check(&file, Some(&settings)).map_err(one_line)?;
        if new.server.max_connections == asked_for {
            // The value that the start settled on.
            new.server.max_connections = connections_max;
        }
        if new.tls != settings.tls {
            // The paths in force: other paths need a restart.
            let (loaded, mistakes) = load_tls(&settings, file.parent().unwrap_or_else(|| Path::new("")));
            if !mistakes.is_empty() {
                return Err(mistakes.into_iter().map(|(_, message)| message).collect::<Vec<_>>().join("; "));
            }
            new_tls = loaded;
        }
        let server = new_tls.as_ref().map(|tls| tls.server.clone());
        let mut reloaded = reload_from(&settings, &keys, &new, &new_keys, server).map_err(|error| error.0)?;
        if new_tls.as_ref().map(|tls| &tls.certificate_pem) != tls.as_ref().map(|tls| &tls.certificate_pem) {
            reloaded.changes.push(new_content("tls.certificate, its file".to_owned()));
        }
        settings = (*reloaded.snapshot.settings).clone();
        (keys, tls) = (new_keys, new_tls);
        Ok(reloaded)
    })
}

fn new_content(key: String) -> Change {
    Change { key, from: "its old content".to_owned(), to: "its new content".to_owned(), live: true }
}

fn reload_from(
    old: &Settings,
    old_keys: &[KeyMaterial],
    new: &Settings,
    new_keys: &[KeyMaterial],
    tls: Option<TlsServer>,
) -> Result<Reloaded, CliError> {
    let mut changes = new.diff(old);
    for key in new_keys {
        let same_id = old_keys.iter().find(|old| old.key_id == key.key_id);
        if same_id.is_some_and(|old| old.bytes != key.bytes) {
            changes.push(new_content(format!("auth.keys {:?}, its file", key.key_id)));
        }
    }
    Ok(Reloaded { changes, snapshot: snapshot(Arc::new(new.reloaded_over(old)), new_keys, tls, false)? })
}

/// The shards to run: as configured, else one per core.
pub(crate) fn shard_count(settings: &Settings) -> usize {
    match settings.server.shards {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256),
        count => count,
    }
}

/// Files of an existing log. Files that cannot be read are reported when the log is opened.
pub(crate) fn segments_there(settings: &Settings) -> u64 {
    settings.log.dir.as_ref().map_or(0, |root| crate::io::directory::count_segments(root))
}

/// Returns `true` if a start may lower `server.max_connections`: the engine was left to the gateway, and the one that works needs
/// two files for each connection.
pub(crate) fn may_fit(settings: &Settings, engine: Engine) -> bool {
    settings.server.engine == Wanted::Auto && engine.files_per_connection() > 1
}

/// The connections that fit into `maximum` open files; `None` if all of `server.max_connections` fit, or none do.
pub(crate) fn connections_fitting(settings: &Settings, per_connection: u64, segments: u64, maximum: u64) -> Option<usize> {
    let most = settings.server.max_connections;
    let reserve = settings.files_needed(shard_count(settings), per_connection, segments) - most as u64 * per_connection;
    let room = usize::try_from(maximum.saturating_sub(reserve) / per_connection).unwrap_or(usize::MAX);
    (1..most).contains(&room).then_some(room)
}

/// Lowers `server.max_connections` to the number that this process may have open files for. Returns the files that were needed,
/// if it was lowered.
pub(crate) fn fit_open_files(settings: &mut Settings, engine: Engine) -> Option<u64> {
    let (per_connection, there) = (engine.files_per_connection(), segments_there(settings));
    let maximum = getrlimit(Resource::Nofile).maximum?;
    let fitting = connections_fitting(settings, per_connection, there, maximum)?;
    let needed = settings.files_needed(shard_count(settings), per_connection, there);
    settings.server.max_connections = fitting;
    Some(needed)
}

/// Raises the soft limit of open files to what is needed.
fn raise_open_files(needed: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < needed) {
        return Err(format!(
            "open files: server.max_connections and the log's files need {needed}, but this process may have {maximum}: raise nofile \
             (systemd: LimitNOFILE={needed}; shell: ulimit -Hn {needed}), lower server.max_connections, or give the log fewer files \
             (log.segment_bytes, log.max_bytes)"
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
        .map_err(|error| format!("open files: the limit cannot be raised to {needed}: {error}"))
}

/// Runs a node until it has ended: by a signal, drained or not. Announces where clients connect, and the admin listener.
///
/// # Errors
/// An error of one line: what could not be started, or which shards did not stop.
pub fn run(node: Node, start: StartShards, announce: impl FnOnce(SocketAddr, SocketAddr)) -> Result<(), CliError> {
    // With huge pages an idle gateway's memory is mostly unused, 2 MiB at a time, and nothing is faster (docs/BENCHMARKS.md). A
    // failure is no reason not to serve.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let count = shard_count(&node.settings);
    let choice = node.engine;
    let engine = choice.engine;
    raise_open_files(node.settings.files_needed(count, engine.files_per_connection(), segments_there(&node.settings)))?;
    let snapshot = snapshot(Arc::new(node.settings), &node.keys, node.tls, node.dev)?;
    let control = Control::build(ControlOptions {
        listen: snapshot.settings.admin.listen,
        socket: snapshot.settings.admin.socket.clone(),
        snapshot: Arc::clone(&snapshot),
        reload: node.reload,
        signals: true,
        tick: Duration::from_secs(1),
        engine: EngineLabels { engine: engine.name(), driver: engine.driver() },
    })
    .map_err(|error| CliError(error.to_string()))?;
    let shards = start(count, &snapshot, engine)?;
    choice.log();
    let handle = control.spawn(shards.ports.clone());
    announce(shards.address, handle.address());
    let outcome = handle.wait();
    let stopped = join(shards);
    match &outcome {
        Outcome::Drained => tracing::info!("drained: all connections have gone"),
        Outcome::GraceOver(left) => tracing::warn!(left, "the grace is over; the remaining connections were closed"),
        Outcome::Stopped => tracing::warn!("stopped at once"),
        Outcome::Stuck(shards) => tracing::error!(?shards, "these shards did not take the order to stop"),
    }
    if stopped.is_empty() { Ok(()) } else { Err(CliError(format!("shards did not stop in time: {stopped:?}"))) }
}

/// Waits for the shards, but not for ever. Returns the shards that did not end.
fn join(shards: Shards) -> Vec<usize> {
    // The order is repeated for ports that were full the first time.
    for port in &shards.ports {
        drop(port.send(PortMessage::Stop));
    }
    for _ in 0..JOIN_LOOKS {
        if shards.threads.iter().all(JoinHandle::is_finished) {
            break;
        }
        std::thread::park_timeout(JOIN_LOOK);
    }
    let left: Vec<usize> =
        shards.threads.iter().enumerate().filter(|(_, thread)| !thread.is_finished()).map(|(index, _)| index).collect();
    for thread in shards.threads {
        if thread.is_finished() {
            // A panic in a shard aborts the process; there is nothing in the result.
            drop(thread.join());
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::KeyAlgorithm;
    use crate::config::Server;
    use crate::shard::counters::shared_counters;
    use crate::shard::port::{Bell, PortReceiver, port};
    use rustix::process::{Signal, getpid, kill_process};

    fn key(bytes: &[u8]) -> KeyMaterial {
        KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Hs256, bytes: bytes.repeat(32) }
    }

    #[test]
    fn a_reload_tells_of_settings_and_key_contents() {
        let old = Settings::default();
        let new = Settings::parse("[server]\nshards = 3\n[limits]\nmessages_burst = 9", []).unwrap();
        let reloaded = reload_from(&old, &[key(b"a")], &new, &[key(b"b")], None).unwrap();
        let told: Vec<(&str, bool)> = reloaded.changes.iter().map(|change| (change.key.as_str(), change.live)).collect();
        assert_eq!(told, [("server.shards", false), ("limits.messages_burst", true), ("auth.keys \"k\", its file", true)]);
        assert_eq!(reloaded.snapshot.settings.server.shards, 0);
        assert_eq!(reloaded.snapshot.settings.limits.messages_burst, 9);
        assert!(reload_from(&old, &[key(b"a")], &old, &[key(b"a")], None).unwrap().changes.is_empty());
    }

    #[test]
    fn more_files_than_allowed_are_refused_with_the_settings() {
        let Some(maximum) = getrlimit(Resource::Nofile).maximum else { return };
        let error = raise_open_files(maximum + 1).unwrap_err();
        assert!(error.contains("server.max_connections") && error.contains("LimitNOFILE"), "{error}");
    }

    #[test]
    fn connections_are_fitted_into_the_files_there_are() {
        let settings = Settings::parse("[server]\nshards = 1\nmax_connections = 1000", []).unwrap();
        let needed = settings.files_needed(1, 2, 0);
        for (maximum, fitting) in [
            (needed, None),
            (needed - 1, Some(999)),
            (needed - 2, Some(999)),
            (needed - 3, Some(998)),
            (needed - 1_998, Some(1)),
            (needed - 1_999, None),
            (0, None),
        ] {
            assert_eq!(connections_fitting(&settings, 2, 0, maximum), fitting, "{maximum}");
            let fitted = Settings {
                server: Server { max_connections: fitting.unwrap_or(1), ..settings.server.clone() },
                ..settings.clone()
            };
            assert!(fitting.is_none() || fitted.files_needed(1, 2, 0) <= maximum);
        }
        for (engine, wanted, may) in
            [(Engine::MonoioEpoll, "auto", true), (Engine::MonoioEpoll, "epoll", false), (Engine::Ring, "auto", false)]
        {
            let settings = Settings::parse(&format!("[server]\nengine = {wanted:?}"), []).unwrap();
            assert_eq!(may_fit(&settings, engine), may, "{engine} {wanted}");
        }
    }

    #[test]
    fn a_node_whose_shards_do_not_start_says_so() {
        let settings = Settings::parse("[admin]\nlisten = \"127.0.0.1:0\"\n[server]\nmax_connections = 10", []).unwrap();
        let node = Node { settings, keys: Vec::new(), tls: None, dev: true, reload: None, engine: ring() };
        let error = run(node, |_, _, _| Err("no ring".to_owned()), |_, _| panic!("announced")).unwrap_err();
        assert_eq!(error.0, "no ring");
    }

    fn ring() -> Choice {
        Choice { engine: Engine::Ring, why: String::new(), fallen_back: false }
    }

    struct Unpark(std::thread::Thread);
    impl Bell for Unpark {
        fn ring(&self) {
            self.0.unpark();
        }
    }

    /// A shard without sockets, which turns when it is rung and ends when it is told to.
    fn one_shard(count: usize, _: &Arc<Snapshot>, _: Engine) -> Result<Shards, String> {
        assert_eq!(count, 1);
        let (give, take) = std::sync::mpsc::channel::<PortReceiver>();
        let thread = std::thread::spawn(move || {
            let receiver = take.recv().unwrap();
            loop {
                match receiver.pop() {
                    Some(PortMessage::Stop) => return,
                    Some(PortMessage::Probe { reply }) => drop(reply.send(())),
                    Some(_) => {}
                    None => std::thread::park(),
                }
            }
        });
        let (door, receiver) = port(0, Arc::new(Unpark(thread.thread().clone())), shared_counters());
        give.send(receiver).unwrap();
        Ok(Shards { address: "127.0.0.1:1".parse().unwrap(), ports: vec![door], threads: vec![thread] })
    }

    /// The one test that signals this process: its handlers are in place before the first signal is sent.
    #[test]
    fn hup_reloads_and_term_drains() {
        let settings =
            Settings::parse("[admin]\nlisten = \"127.0.0.1:0\"\n[server]\nmax_connections = 10\nshards = 1", []).unwrap();
        let signal = |signal| kill_process(getpid(), signal).unwrap();
        let reload: Reload = Box::new(move || {
            signal(Signal::TERM);
            Err("told to".to_owned())
        });
        let node = Node { settings, keys: Vec::new(), tls: None, dev: false, reload: Some(reload), engine: ring() };
        assert_eq!(run(node, one_shard, |_, _| signal(Signal::HUP)), Ok(()));
    }
}
