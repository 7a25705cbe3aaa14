//! The scenarios. Each takes a target and options, runs once, and returns figures, latencies, a timeline and the losses.

pub mod connect;
pub mod deliver;
pub mod disk;
pub mod echo;
pub mod history;
pub mod reconnect;
pub mod sessions;

use crate::engine::connection::{Connection, Ended, Inbox, Next};
use crate::engine::run::{BUSY_MAX, Context, Plan, Run};
use crate::engine::stats::{STEP_NS, Series, TIMINGS, Timing};
use crate::ledger::Loss;
use crate::options::Options;
use crate::report::{Figure, Step, Timeline};
use crate::scrape::LogWork;
use crate::target::Target;
use std::future::Future;
use std::io::IsTerminal as _;
use std::rc::Rc;
use tokio::task::JoinHandle;

/// Time after the window's end before missing messages count as lost.
pub const DRAIN_MS: u64 = 5_000;

/// The figure for other load on the machine.
pub const HELD_UP: &str = "held up by others";

/// A run of a scenario.
#[derive(Default)]
pub struct Measured {
    pub figures: Vec<Figure>,
    pub series: Vec<(String, Series)>,
    pub timeline: Timeline,
    pub loss: Loss,
    pub problems: Vec<String>,
    /// The mean size of a delivered message, for a floor that sends as many bytes.
    pub delivered_bytes: Option<usize>,
    /// Mean bytes that a sync of the gateway's log made durable, if that was asked for and it synced.
    pub sync_bytes: Option<usize>,
}

/// The plan according to the options.
pub fn plan(label: &str, target: &Target, options: &Options) -> Plan {
    let workers = options.workers.max(1);
    let cores = (0..workers).map(|worker| {
        if options.no_pin { None } else { options.load_core.get(worker % options.load_core.len().max(1)).copied() }
    });
    Plan {
        label: label.into(),
        cores: cores.collect(),
        aside: None,
        warmup_ms: milliseconds(options.warmup_s),
        duration_ms: milliseconds(options.duration_s).max(100),
        pid: target.pid,
        admin: target.admin.filter(|_| options.with_disk),
        open_files: false,
        progress: !options.quiet && std::io::stderr().is_terminal(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration on the command line, bounded here")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds.clamp(0.0, 1e6) * 1e3) as u64
}

/// Fails early if the process may not open as many sockets.
pub fn check_open_files(connections: usize) -> Result<(), String> {
    let limit = crate::engine::affinity::raise_open_files();
    if connections as u64 + 100 > limit {
        return Err(format!(
            "{connections} connections need more open files than the limit of {limit}; raise it (ulimit -n) or take fewer"
        ));
    }
    Ok(())
}

/// Makes things, `at_once` at a time: opens a worker's connections without a storm.
pub async fn make_all<T, E, F, Fut>(numbers: impl Iterator<Item = usize>, at_once: usize, make: F) -> Result<Vec<T>, E>
where
    T: 'static,
    E: 'static + From<String>,
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<T, E>> + 'static,
{
    let mut made = Vec::new();
    let mut numbers = numbers.peekable();
    while numbers.peek().is_some() {
        let tasks: Vec<JoinHandle<Result<T, E>>> =
            numbers.by_ref().take(at_once).map(|number| tokio_uring::spawn(make(number))).collect();
        for task in tasks {
            made.push(task.await.map_err(|error| E::from(format!("a connection's task failed: {error}")))??);
        }
    }
    Ok(made)
}

/// A connection whose messages are being taken by a task of its own.
pub struct Reader {
    pub connection: Rc<Connection>,
    task: JoinHandle<()>,
}

impl Reader {
    /// Starts the task. A connection that ends by itself is a problem, unless `expected`.
    pub fn start(
        context: &Context,
        connection: Rc<Connection>,
        mut inbox: Inbox,
        mut handler: impl FnMut(&[u8]) -> Next + 'static,
        after: impl FnMut() + 'static,
    ) -> Self {
        let stats = Rc::clone(&context.stats);
        stats.open.add(1);
        let reading = Rc::clone(&connection);
        let task = tokio_uring::spawn(async move {
            match inbox.run(&reading, |_, payload| handler(payload), after).await {
                Ok(()) | Err(Ended::Closed(1000, _)) => {}
                Err(_) if reading.is_leaving() => {}
                Err(ended) => stats.problem(|| format!("a connection was lost: {ended}")),
            }
        });
        Self { connection, task }
    }
}

/// Ends all connections and waits for their tasks: the runtime may only end when the kernel holds nothing of it.
pub async fn leave(readers: Vec<Reader>) {
    for reader in &readers {
        reader.connection.cut();
    }
    for reader in readers {
        let _ = reader.task.await;
    }
}

/// The figures that every scenario has: rate, CPU a message, memory, latencies, and how busy the generator was.
pub fn common_figures<T>(run: Run<T>, noun: &str, plural: &str, loss: Loss) -> Measured {
    let busy = run.generator_busy();
    let void = busy > BUSY_MAX;
    let completed = run.over(|sample| sample.completed);
    let mut figures = vec![Figure::higher(format!("{plural} a second"), "/s", completed as f64 / run.seconds()).void_if(void)];
    if let Some(cpu_ns) = run.server_cpu().map(|cpu| cpu.on_ns)
        && completed > 0
    {
        figures.push(Figure::lower(format!("server CPU a {noun}"), "ns", cpu_ns as f64 / completed as f64));
        figures.push(Figure::neutral("server CPU", "%", cpu_ns as f64 / run.seconds() / 1e7));
    }
    for (timing, name) in TIMINGS {
        let Some(series) = run.timing(timing) else { continue };
        let name = if timing == Timing::Message { "latency" } else { name };
        figures.extend(latency_figures(name, series).map(|figure| figure.void_if(void)));
    }
    if let Some(rss) = run.end().server_rss_bytes {
        figures.push(Figure::lower("server RSS".into(), "MiB", rss as f64 / f64::from(1 << 20)));
    }
    if completed > 0 {
        for (name, bytes) in [("received", run.over(|sample| sample.bytes_in)), ("sent", run.over(|sample| sample.bytes_out))] {
            figures.push(Figure::neutral(&format!("bytes {name} a {noun}"), "B", bytes as f64 / completed as f64));
        }
    }
    if let Some(log) = &run.log {
        figures.extend(log_figures(log, run.seconds()));
    }
    figures.push(Figure::neutral("generator busy", "%", busy * 100.0));
    figures.push(Figure::neutral(HELD_UP, "%", run.held_up() * 100.0));
    let delivered = run.last.delivered_bytes.checked_div(run.last.completed);
    let mut loss = loss;
    loss.errors += run.last.failed;
    Measured {
        figures,
        timeline: timeline(&run),
        loss,
        delivered_bytes: delivered.and_then(|bytes| usize::try_from(bytes).ok()),
        sync_bytes: run.log.and_then(|log| log.bytes_a_sync()).map(whole_bytes),
        problems: run.problems,
        series: run.series.into_iter().map(|(timing, series)| (TIMINGS[timing as usize].1.to_owned(), series)).collect(),
    }
}

/// The percentiles of a series.
fn latency_figures(name: &str, series: &Series) -> impl Iterator<Item = Figure> {
    let quantiles = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"), (1.0, "max")];
    quantiles.into_iter().map(move |(quantile, label)| {
        Figure::lower(format!("{name} {label}"), "us", series.whole.value_at_quantile(quantile) as f64 / 1e3)
    })
}

/// The work of a log in the window. The size of its batches and the number of its syncs follow from the load, and are no result.
fn log_figures(log: &LogWork, seconds: f64) -> Vec<Figure> {
    let mut figures = vec![Figure::neutral("log syncs a second", "/s", log.syncs / seconds)];
    if let Some(bytes) = log.bytes_a_sync() {
        figures.push(Figure::neutral("bytes a log sync", "B", bytes));
        figures.push(Figure::lower("log sync, mean".into(), "us", log.sync_s * 1e6 / log.syncs));
        figures.push(Figure::neutral("a sync under way", "%", log.sync_s * 100.0 / seconds));
    }
    figures
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of what is there, 0 or above")]
fn whole_bytes(bytes: f64) -> usize {
    bytes.round() as usize
}

fn timeline<T>(run: &Run<T>) -> Timeline {
    let series = run.timing(Timing::Message).or_else(|| run.series.first().map(|(_, series)| series));
    let steps = run.samples.windows(2).map(|pair| {
        let seconds = (pair[1].at_ns - pair[0].at_ns).max(1) as f64 / 1e9;
        let step = (pair[0].at_ns.saturating_sub(run.start().at_ns) + STEP_NS / 2) / STEP_NS;
        let latency = series.and_then(|series| series.steps.get(&step));
        Step {
            at_s: (pair[1].at_ns - run.start().at_ns) as f64 / 1e9,
            rate: (pair[1].completed - pair[0].completed) as f64 / seconds,
            p50_us: latency.map(|latency| latency.value_at_quantile(0.5) as f64 / 1e3),
            p99_us: latency.map(|latency| latency.value_at_quantile(0.99) as f64 / 1e3),
            rss_mib: pair[1].server_rss_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)),
            cpu_percent: pair[1]
                .server_cpu
                .zip(pair[0].server_cpu)
                .map(|(end, start)| end.since(start).on_ns as f64 / seconds / 1e7),
        }
    });
    Timeline { steps: steps.collect() }
}
