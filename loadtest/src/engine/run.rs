//! A run: worker threads with a tokio-uring runtime each, and the coordinator that opens and closes the measured window and
//! samples the server in it.

use super::affinity;
use super::stats::{Counters, Series, Stats, Timing, Window};
use crate::clock::{now_ns, sleep_ms};
use crate::measure::{self, Cpu};
use crate::scrape::LogWork;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub label: String,
    /// The core of each worker.
    pub cores: Vec<Option<usize>>,
    /// An additional worker; if a core is named, it runs only while the other threads there sleep. It makes load and measures
    /// nothing, so that its share is not the generator's.
    pub aside: Option<Option<usize>>,
    pub warmup_ms: u64,
    pub duration_ms: u64,
    /// The server, for CPU and memory.
    pub pid: Option<u32>,
    /// The server's admin listener, if the work of its log in the window is wanted.
    pub admin: Option<SocketAddr>,
    /// `true` to count its open files too, which takes a while if there are many.
    pub open_files: bool,
    pub progress: bool,
}

/// The parameters of each worker's body.
pub struct Context {
    pub worker: usize,
    /// The worker aside is not counted.
    pub workers: usize,
    pub is_aside: bool,
    pub stats: Rc<Stats>,
    gate: Arc<Gate>,
    window: Arc<Window>,
}

#[derive(Default)]
struct Gate {
    ready: AtomicU32,
    done: AtomicU32,
    /// Workers that have finished before the window's time is over.
    early: AtomicU32,
    over: AtomicBool,
    begin_ns: AtomicU64,
}

impl Context {
    /// Reports that this worker's connections are up, and waits for the start. Returns when the load begins and ends.
    pub async fn ready(&self) -> (u64, u64) {
        self.gate.ready.fetch_add(1, Ordering::SeqCst);
        while self.gate.begin_ns.load(Ordering::SeqCst) == 0 {
            pause_ms(1).await;
        }
        (self.gate.begin_ns.load(Ordering::SeqCst), self.window.end_ns.load(Ordering::SeqCst))
    }

    /// When the measured window begins.
    pub fn window_start_ns(&self) -> u64 {
        self.window.start_ns.load(Ordering::SeqCst)
    }

    /// Reports that this worker has finished: the window ends once all have.
    pub fn done_early(&self) {
        self.gate.early.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns `true` if the window is over, or another worker has given up.
    pub fn is_over(&self) -> bool {
        self.gate.over.load(Ordering::SeqCst)
    }

    /// Waits for the end of the window, then until nothing is `pending`, at most `drain_ms`.
    pub async fn finish(&self, drain_ms: u64, pending: impl Fn() -> bool) {
        let end_ns = self.window.end_ns.load(Ordering::SeqCst);
        while now_ns() < end_ns && !self.gate.over.load(Ordering::SeqCst) {
            pause_ms((end_ns.saturating_sub(now_ns()) / 1_000_000).clamp(1, 20)).await;
        }
        // The coordinator's last sample comes first: what follows is no part of the window.
        while !self.gate.over.load(Ordering::SeqCst) {
            pause_ms(1).await;
        }
        let deadline_ns = now_ns() + drain_ms * 1_000_000;
        while pending() && now_ns() < deadline_ns {
            pause_ms(1).await;
        }
    }

    /// The part of `count` things that is this worker's: every `workers`-th.
    pub fn share(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        (self.worker..count).step_by(self.workers)
    }
}

/// Lets others run for this long.
pub async fn pause_ms(ms: u64) {
    tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
}

/// Counters at one moment, summed over the workers.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub at_ns: u64,
    pub completed: u64,
    pub delivered_bytes: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub failed: u64,
    pub open: u64,
    pub server_cpu: Option<Cpu>,
    pub server_rss_bytes: Option<u64>,
    pub server_open_files: Option<u64>,
    pub worker_cpu: Vec<Cpu>,
    pub aside_cpu: Option<Cpu>,
}

/// The result of a run.
pub struct Run<T> {
    /// From the window's start to its end.
    pub samples: Vec<Sample>,
    /// After the drain.
    pub last: Sample,
    pub series: Vec<(Timing, Series)>,
    pub problems: Vec<String>,
    /// By worker; the worker aside comes last.
    pub results: Vec<T>,
    /// The work of the server's log in the window, if the plan asks for it.
    pub log: Option<LogWork>,
}

struct Outcome<T> {
    series: Vec<(Timing, Series)>,
    problems: Vec<String>,
    result: Result<T, String>,
}

/// A generator above this share of its core measures itself.
pub const BUSY_MAX: f64 = 0.90;

impl<T> Run<T> {
    /// Seconds of the window.
    pub fn seconds(&self) -> f64 {
        (self.end().at_ns - self.start().at_ns) as f64 / 1e9
    }

    pub fn start(&self) -> &Sample {
        self.samples.first().expect("a run has a sample at its start")
    }

    pub fn end(&self) -> &Sample {
        self.samples.last().expect("a run has a sample at its end")
    }

    /// The difference of a counter over the window.
    pub fn over(&self, counter: impl Fn(&Sample) -> u64) -> u64 {
        counter(self.end()).saturating_sub(counter(self.start()))
    }

    /// The server's time on the CPU in the window.
    pub fn server_cpu(&self) -> Option<Cpu> {
        Some(self.end().server_cpu?.since(self.start().server_cpu?))
    }

    /// The busiest worker's share of its core.
    pub fn generator_busy(&self) -> f64 {
        self.shares().map(|cpu| cpu.on_ns as f64).fold(0.0, f64::max) / self.wall_ns()
    }

    /// The share of the window in which the worker aside was running, or waiting for its core.
    pub fn aside_busy(&self) -> Option<f64> {
        let cpu = self.end().aside_cpu?.since(self.start().aside_cpu?);
        Some((cpu.on_ns + cpu.waiting_ns) as f64 / self.wall_ns())
    }

    /// The share of the window in which a worker or the server was ready to run and others had its core.
    pub fn held_up(&self) -> f64 {
        let server = self.server_cpu().map_or(0, |cpu| cpu.waiting_ns) as f64;
        self.shares().map(|cpu| cpu.waiting_ns as f64).fold(server, f64::max) / self.wall_ns()
    }

    fn wall_ns(&self) -> f64 {
        (self.end().at_ns - self.start().at_ns).max(1) as f64
    }

    fn shares(&self) -> impl Iterator<Item = Cpu> {
        let pairs = self.end().worker_cpu.iter().zip(&self.start().worker_cpu);
        pairs.map(|(end, start)| end.since(*start))
    }

    /// A worker's series, merged.
    pub fn timing(&self, timing: Timing) -> Option<&Series> {
        self.series.iter().find(|(which, _)| *which == timing).map(|(_, series)| series)
    }
}

/// Runs `body` on each worker. Errors: a worker that could not set up its load, in words.
pub fn run<T, F, Fut>(plan: &Plan, body: F) -> Result<Run<T>, String>
where
    T: Send,
    F: Fn(Context) -> Fut + Sync,
    Fut: Future<Output = Result<T, String>>,
{
    let workers = plan.cores.len();
    let cores: Vec<Option<usize>> = plan.cores.iter().copied().chain(plan.aside).collect();
    let gate = Arc::new(Gate::default());
    let window = Arc::new(Window::default());
    let counters: Vec<Arc<Counters>> = cores.iter().map(|_| Arc::default()).collect();
    let threads: Vec<AtomicI32> = cores.iter().map(|_| AtomicI32::new(0)).collect();
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for (worker, core) in cores.iter().copied().enumerate() {
            let (gate, window, counters, thread, body) =
                (Arc::clone(&gate), Arc::clone(&window), Arc::clone(&counters[worker]), &threads[worker], &body);
            handles.push(scope.spawn(move || {
                thread.store(affinity::thread_id(), Ordering::SeqCst);
                let outcome = work(
                    Context {
                        worker,
                        workers,
                        is_aside: worker == workers,
                        stats: Stats::new(counters, Arc::clone(&window)),
                        gate: Arc::clone(&gate),
                        window,
                    },
                    core,
                    body,
                );
                gate.done.fetch_add(1, Ordering::SeqCst);
                outcome
            }));
        }
        let sample = |memory: bool| sample(plan, &counters, &threads, memory);
        let (samples, log) = coordinate(plan, &gate, &window, sample);
        let (last, series, problems, results) = (Sample::default(), Vec::new(), Vec::new(), Vec::new());
        let mut run = Run { samples, last, series, problems, results, log: None };
        let mut failure = None;
        for handle in handles {
            let outcome = handle.join().map_err(|_| "a worker panicked; its message is above".to_owned())?;
            for (timing, series) in outcome.series {
                match run.series.iter_mut().find(|(which, _)| *which == timing) {
                    Some((_, own)) => own.merge(&series),
                    None => run.series.push((timing, series)),
                }
            }
            run.problems.extend(outcome.problems);
            match outcome.result {
                Ok(result) => run.results.push(result),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        run.log = log?;
        run.last = sample_after(plan, &counters);
        Ok(run)
    })
}

fn work<T, F, Fut>(context: Context, core: Option<usize>, body: &F) -> Outcome<T>
where
    F: Fn(Context) -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let stats = Rc::clone(&context.stats);
    let place = core.map_or(Ok(()), affinity::pin_this_thread);
    // Pinned, it shares its core with workers that must not wait for it; else also with other programs, which may take all.
    let gives_way = context.is_aside && core.is_some();
    let place = if gives_way { place.and_then(|()| affinity::run_when_idle()) } else { place };
    let result = place.map_err(|error| error.to_string()).and_then(|()| {
        // No DEFER_TASKRUN: tokio-uring sleeps in epoll, where deferred completions would never come.
        let mut ring = tokio_uring::uring_builder();
        ring.setup_coop_taskrun().setup_taskrun_flag().setup_cqsize(32_768);
        tokio_uring::builder().entries(4096).uring_builder(&ring).start(body(context))
    });
    let (series, problems) = stats.take();
    Outcome { series, problems, result }
}

/// Samples from the window's start to its end, and what the log did between them, or why that is not known.
type Watched = (Vec<Sample>, Result<Option<LogWork>, String>);

fn coordinate(plan: &Plan, gate: &Gate, window: &Window, sample: impl Fn(bool) -> Sample) -> Watched {
    let workers = u32::try_from(plan.cores.len() + usize::from(plan.aside.is_some())).unwrap_or(u32::MAX);
    let bar = progress(plan);
    while gate.ready.load(Ordering::SeqCst) < workers {
        if gate.done.load(Ordering::SeqCst) > 0 {
            // A worker gave up: let the others go.
            window.end_ns.store(0, Ordering::SeqCst);
            window.start_ns.store(0, Ordering::SeqCst);
            gate.begin_ns.store(1, Ordering::SeqCst);
            gate.over.store(true, Ordering::SeqCst);
            return (vec![sample(true)], Ok(None));
        }
        bar.set_message(format!("{}: {} open", plan.label, sample(false).open));
        sleep_ms(2);
    }
    let begin_ns = now_ns() + 2_000_000;
    let start_ns = begin_ns + plan.warmup_ms * 1_000_000;
    let end_ns = start_ns + plan.duration_ms * 1_000_000;
    window.start_ns.store(start_ns, Ordering::SeqCst);
    window.end_ns.store(end_ns, Ordering::SeqCst);
    gate.begin_ns.store(begin_ns, Ordering::SeqCst);
    bar.set_message(format!("{}: warming up", plan.label));
    let ended = || gate.early.load(Ordering::SeqCst) >= workers || gate.done.load(Ordering::SeqCst) >= workers;
    sleep_until(start_ns, &ended);
    let log_before = plan.admin.map(LogWork::read);
    let mut samples = vec![sample(true)];
    let mut at_ns = start_ns;
    while at_ns < end_ns && !ended() {
        at_ns = (at_ns + super::stats::STEP_NS).min(end_ns);
        sleep_until(at_ns, &ended);
        let next = sample(true);
        let last = samples.last().unwrap_or(&next);
        let rate = (next.completed - last.completed) as f64 * 1e9 / (next.at_ns - last.at_ns).max(1) as f64;
        bar.set_position((at_ns - start_ns) / 1_000_000);
        bar.set_message(format!("{}: {rate:.0}/s", plan.label));
        samples.push(next);
    }
    let log_after = plan.admin.map(LogWork::read);
    gate.over.store(true, Ordering::SeqCst);
    bar.finish_and_clear();
    let log = log_before.zip(log_after).map(|(before, after)| Ok(after?.since(&before?)));
    (samples, log.transpose())
}

fn sleep_until(at_ns: u64, ended: &impl Fn() -> bool) {
    while !ended() {
        let left_ms = at_ns.saturating_sub(now_ns()).div_ceil(1_000_000);
        if left_ms == 0 {
            return;
        }
        sleep_ms(left_ms.min(10));
    }
}

fn sample(plan: &Plan, counters: &[Arc<Counters>], threads: &[AtomicI32], memory: bool) -> Sample {
    let cpu = |thread: &AtomicI32| measure::thread_cpu(thread.load(Ordering::SeqCst)).unwrap_or_default();
    let sum = |counter: &dyn Fn(&Counters) -> u64| counters.iter().map(|counters| counter(counters)).sum();
    Sample {
        at_ns: now_ns(),
        completed: sum(&|c| c.completed.get()),
        delivered_bytes: sum(&|c| c.delivered_bytes.get()),
        bytes_in: sum(&|c| c.bytes_in.get()),
        bytes_out: sum(&|c| c.bytes_out.get()),
        failed: sum(&|c| c.failed.get()),
        open: sum(&|c| c.open.get()),
        server_cpu: plan.pid.filter(|_| memory).and_then(measure::process_cpu),
        server_rss_bytes: plan.pid.filter(|_| memory).and_then(measure::rss_bytes),
        server_open_files: plan.pid.filter(|_| memory && plan.open_files).and_then(measure::open_files),
        worker_cpu: threads.iter().take(plan.cores.len()).map(cpu).collect(),
        aside_cpu: plan.aside.and_then(|_| threads.last()).map(cpu),
    }
}

fn sample_after(plan: &Plan, counters: &[Arc<Counters>]) -> Sample {
    sample(plan, counters, &[], true)
}

fn progress(plan: &Plan) -> indicatif::ProgressBar {
    if !plan.progress {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:30} {pos:>6}/{len} ms  {msg}");
    let bar = indicatif::ProgressBar::new(plan.duration_ms);
    bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
}
