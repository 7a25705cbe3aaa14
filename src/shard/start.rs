//! From settings to running shards: bind listeners, pin threads, make rings, and accept nobody before all are up.

use super::across::mesh::{Mesh, SHARDS_MAX};
use super::connections::admission::Admission;
use super::core::{Core, CoreOptions};
use super::counters::shared_counters;
use super::listeners;
use super::port::{Bell, Port, PortReceiver, Snapshot, port};
use super::recovery::open::{Store, index_of, recover, settle};
use super::recovery::purge_files::{finish_purges, purge_part};
use super::recovery::replay::OUT_OF_REACH_NAMED;
use super::recovery::reshard::{Wanted, resize};
use crate::config::Settings;
use crate::ids::HashKey;
use crate::io::Io as _;
use crate::io::directory::{Directory, leave_clean};
use crate::io::files::{self, FilesHandle, OfLog};
use crate::io::portable::{self, Driver, Portable};
use crate::io::probe::Engine;
use crate::io::ring::{self, Bells, Ring};
use crate::io::segments::Disk;
use crate::limits::CHUNK_BYTES;
use crate::time::Tick;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::JoinHandle;

/// Connections above the node's limit that wait for their refusal.
pub(crate) const REFUSED_MAX: usize = 256;
const _: () = assert!(crate::limits::TURNED_AWAY_MAX < REFUSED_MAX);
/// Receive buffers of a shard, 4 MiB in all. Each read takes one, so their number bounds the reads of a turn; a long message
/// takes several.
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: u32 = 4 * 1024;

const OUT_OF_REACH: &str = "sessions of the log have names that are the gateway's own since (rw. and more): no client comes into them any \
     more; `ringway log cat` reads them, retention or `ringway log purge` takes their messages";

/// The number of a shard's sessions with reserved names, and the first of these names.
type OutOfReach = (usize, Vec<Box<str>>);

/// Running shards.
#[derive(Debug)]
pub struct Running {
    /// The address for clients.
    pub address: SocketAddr,
    /// The ports, in the order of the shards.
    pub ports: Vec<Port>,
    pub threads: Vec<JoinHandle<()>>,
}

/// Rings a shard from control's thread.
#[derive(Debug)]
struct EventBell(Arc<OwnedFd>);

impl Bell for EventBell {
    fn ring(&self) {
        // Full (2^64 - 2 unread rings) is as good as rung.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

struct Seat {
    number: usize,
    listener: TcpListener,
    receiver: PortReceiver,
    core: Option<usize>,
}

/// The parts of a shard's engine, on the shard's thread.
struct Parts {
    engine: Engine,
    shard: usize,
    connections_max: usize,
    spin_us: u64,
    bells: Arc<Bells>,
    eventfds: Arc<[Arc<OwnedFd>]>,
}

/// An engine that is set up.
enum Ready {
    Ring(Box<Ring>),
    Portable(Box<Portable>),
}

/// Synchronises the shards' reads: nothing in the log's directory is changed before all shards have read theirs, nor if one could
/// not.
struct Reads {
    all_done: Barrier,
    one_failed: AtomicBool,
}

impl Parts {
    /// Recovers the shard's log into `core`, if there is one, and sets up the engine over it; `None` if another shard's log does
    /// not read.
    fn recover(
        self,
        core: &mut Core,
        log: Option<(&Directory, FilesHandle)>,
        segment_bytes: u64,
        reads: &Reads,
        listener: TcpListener,
    ) -> Result<Option<Ready>, String> {
        let found = match log {
            Some((directory, files)) => {
                recover(core, directory, self.shard, segment_bytes).map(|unsettled| Some((unsettled, files)))
            }
            None => Ok(None),
        };
        reads.one_failed.fetch_or(found.is_err(), Ordering::SeqCst);
        reads.all_done.wait();
        let found = found?;
        if reads.one_failed.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let disk = match found {
            Some((unsettled, files)) => {
                let Store { directory, segment_bytes, segments, indexes } = settle(core, unsettled, now())?;
                Some(Disk { directory, segment_bytes, segments, indexes, files })
            }
            None => None,
        };
        self.set_up(listener, disk).map(Some)
    }

    fn set_up(self, listener: TcpListener, disk: Option<Disk>) -> Result<Ready, String> {
        let Self { engine, shard, connections_max, spin_us, bells, eventfds } = self;
        let listener = Some(listener);
        let driver = match engine {
            Engine::Ring => {
                let options = ring::Options { shard, connections_max, buffers: BUFFERS, buffer_bytes: BUFFER_BYTES, spin_us };
                let ring = Ring::new(options, listener, bells, Arc::clone(&eventfds[shard]), disk);
                return ring.map(|ring| Ready::Ring(Box::new(ring))).map_err(|error| format!("io_uring: {error}"));
            }
            Engine::MonoioUring => Driver::Uring,
            Engine::MonoioEpoll => Driver::Epoll,
        };
        let options = portable::Options { shard, connections_max, spin_us, driver };
        let portable = Portable::new(options, listener, eventfds, disk);
        portable.map(|portable| Ready::Portable(Box::new(portable))).map_err(|error| format!("{engine}: {error}"))
    }
}

impl Ready {
    /// Runs the shard to its end, and returns it.
    fn run(&mut self, mut core: Core) -> io::Result<Core> {
        let accepts = !core.recovery_pending();
        match self {
            Self::Ring(ring) => {
                ring.accept(accepts);
                ring.run(&mut core).map(|()| core)
            }
            Self::Portable(portable) => {
                portable.edge().accept(accepts);
                portable.run(core)
            }
        }
    }
}

/// Starts `count` shards on an engine.
///
/// # Errors
/// An error of one line: what could not be bound or set up.
pub fn start(count: usize, snapshot: &Arc<Snapshot>, engine: Engine) -> Result<Running, String> {
    let settings = &snapshot.settings;
    if !(1..=SHARDS_MAX).contains(&count) {
        return Err(format!("server.shards: {count} shards; 1 to {SHARDS_MAX} are possible"));
    }
    let mut secret = [0; 16 + 8];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| "no random bytes from the operating system".to_owned())?;
    let mut key = HashKey(secret[..16].try_into().unwrap_or_default());
    let seed = u64::from_le_bytes(secret[16..].try_into().unwrap_or_default());
    let directory = open_log(settings, count, key)?;
    if let Some(directory) = &directory {
        key = HashKey(directory.key);
    }
    let (mesh, bells) = (Mesh::new(count), Bells::new(count));
    let admission = Arc::new(Admission::new(key));
    let cores = if settings.server.pin { own_cores() } else { Vec::new() };
    let (address, listeners) = listeners::bind(&settings.server, count)?;
    let (mut seats, mut ports, mut knocks) = (Vec::new(), Vec::new(), Vec::new());
    for (number, listener) in listeners.into_iter().enumerate() {
        // The ring's read of it waits in the kernel; monoio's waits for readiness first, and must not block.
        let flags = if engine == Engine::Ring { EventfdFlags::CLOEXEC } else { EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK };
        let eventfd = eventfd(0, flags).map_err(|error| format!("eventfd: {error}"))?;
        let eventfd = Arc::new(eventfd);
        let bell = Arc::new(EventBell(Arc::clone(&eventfd)));
        let counters = shared_counters();
        let (door, receiver) = port(number, bell, counters);
        ports.push(door);
        knocks.push(Arc::clone(&eventfd));
        seats.push(Seat { number, listener, receiver, core: cores.get(number % cores.len().max(1)).copied() });
    }
    let eventfds: Arc<[Arc<OwnedFd>]> = knocks.clone().into();
    let mut handles = Vec::new();
    if directory.is_some() {
        (_, handles) = files::start(knocks, settings.log.reserve_bytes, OfLog { indexer: index_of, purger: purge_part })
            .map_err(|error| format!("a thread for the log's files: {error}"))?;
        handles.reverse();
    }
    let barrier = Arc::new(Barrier::new(count + 1));
    let reads = Arc::new(Reads { all_done: Barrier::new(count), one_failed: AtomicBool::new(false) });
    let (tell, told) = mpsc::channel::<Result<OutOfReach, String>>();
    let mut threads = Vec::new();
    for seat in seats {
        let parts = Parts {
            engine,
            shard: seat.number,
            // The node's limit is counted by `admission`; one shard may hold all of these, and those that wait for a refusal.
            connections_max: settings.server.max_connections + REFUSED_MAX,
            spin_us: settings.server.spin_us,
            bells: Arc::clone(&bells),
            eventfds: Arc::clone(&eventfds),
        };
        let counters = Arc::clone(ports[seat.number].counters());
        let (mesh, admission) = (Arc::clone(&mesh), Arc::clone(&admission));
        let (snapshot, barrier, tell) = (Arc::clone(snapshot), Arc::clone(&barrier), tell.clone());
        let (directory, segment_bytes, files) = (directory.clone(), segment_bytes(settings), handles.pop());
        let reads = Arc::clone(&reads);
        let run = move || {
            pin(seat.core);
            let seed = seed ^ (seat.number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let port = seat.receiver;
            let mut core = Core::new(CoreOptions { shard: seat.number, key, mesh, admission, counters, port, snapshot, seed });
            let log = directory.as_deref().zip(files);
            let ready = parts.recover(&mut core, log, segment_bytes, &reads, seat.listener);
            let outcome = ready.as_ref().map(|_| core.home.sessions_out_of_reach()).map_err(Clone::clone);
            // The starter is gone only if another shard failed first.
            let _ = tell.send(outcome);
            // A bell rung for a ring that is not up yet would be lost: all wait for all.
            barrier.wait();
            let Ok(Some(mut ready)) = ready else { return };
            let core = match ready.run(core) {
                Ok(core) => core,
                Err(error) => {
                    tracing::error!(shard = seat.number, %error, "the engine failed for good; the process ends and restarts clean");
                    std::process::abort();
                }
            };
            if let Some(directory) = directory.filter(|_| core.log_is_whole()) {
                // Without the mark the next start begins new epochs, no worse.
                let _ = leave_clean(&directory.shard(seat.number), core.storage.log_chain());
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("shard-{}", seat.number))
            .spawn(move || {
                // A panic outside decoding means that the shard's state can't be trusted: crash, restart, let clients resume.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                    std::process::abort();
                }
            })
            .map_err(|error| format!("a thread for shard {}: {error}", threads.len()))?;
        threads.push(thread);
    }
    drop(tell);
    let outcomes: Vec<Result<OutOfReach, String>> = told.iter().take(count).collect();
    barrier.wait();
    let (mut out_of_reach, mut named) = (0, Vec::new());
    for outcome in outcomes {
        let (count, first) = outcome?;
        out_of_reach += count;
        named.extend(first);
        named.truncate(OUT_OF_REACH_NAMED);
    }
    if out_of_reach > 0 {
        let names = named.join(", ");
        tracing::warn!(sessions = out_of_reach, names, "{OUT_OF_REACH}");
    }
    Ok(Running { address, ports, threads })
}

/// The log's directory, if a log is wanted; a new one gets `fresh_key`.
fn open_log(settings: &Settings, shards: usize, fresh_key: HashKey) -> Result<Option<Arc<Directory>>, String> {
    let Some(root) = &settings.log.dir else { return Ok(None) };
    let mut directory = Directory::open(root, shards, fresh_key.0)?;
    for shard in 0..directory.shards {
        finish_purges(&directory.shard(shard), shard, directory.generation)?;
    }
    resize(
        &mut directory,
        &Wanted {
            shards,
            segment_bytes: segment_bytes(settings),
            reserve_bytes: settings.log.reserve_bytes,
            dedupe_ms: settings.session.dedupe_ms,
        },
        now(),
    )?;
    Ok(Some(Arc::new(directory)))
}

/// A segment is a whole number of chunks.
const fn segment_bytes(settings: &Settings) -> u64 {
    settings.log.segment_bytes / CHUNK_BYTES as u64 * CHUNK_BYTES as u64
}

/// The clocks before any ring has started its own.
#[expect(clippy::disallowed_methods, reason = "before any shard runs")]
fn now() -> Tick {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Tick { mono_ns: 0, wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}

/// The cores this process may run on, in order.
fn own_cores() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(|_| Vec::new(), |set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Pins this thread. If the core was taken away meanwhile, the thread stays unpinned, which is slower but correct.
fn pin(core: Option<usize>) {
    let Some(core) = core else { return };
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "a shard could not be pinned to its core");
    }
}
