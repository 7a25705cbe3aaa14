//! `reconnect`, `soak` and `crash`: sessions of two whose connections are cut, all at once or a few all the time, or whose
//! gateway is killed and started again, and which resume. The sender sends messages that were not acknowledged again, under the
//! same ids; the reader says how far it was. Nothing may be missing, come twice or out of order.

use super::{Measured, check_open_files, common_figures, plan};
use crate::clock::{now_ns, sleep_ms};
use crate::dialect::{self, Incoming};
use crate::engine::connection::{Connection, Ended, Next};
use crate::engine::pacer::Pacer;
use crate::engine::run::{Context, pause_ms, run};
use crate::engine::stats::{Stats, Timing};
use crate::ledger::{Ledger, Loss};
use crate::options::Options;
use crate::report::Figure;
use crate::session::{Access, Member, Position};
use crate::stamp::{Stamp, Template};
use crate::target::Target;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinHandle;

/// How connections are ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cuts {
    /// All at once, this many times, evenly over the window.
    Storms(usize),
    /// This many a second, one after the other.
    Churn(f64),
    /// The gateway is killed this many times, at moments from the seed, and started again on the same log.
    Kills { rounds: usize, seed: u64 },
}

/// Longest life of a restarted gateway before it is killed once more.
const LIFE_MS_MAX: u64 = 400;
/// Longest time of a round; the run ends when the last one has.
const ROUND_MS_MAX: u64 = 15_000;
/// Deliveries whose places a reader knows, in case it is told to discard some.
const PLACES_MAX: usize = 4096;

/// The state of the kills: shared by the workers and the thread that kills.
#[derive(Default)]
struct Kills {
    begun: AtomicBool,
    over: AtomicBool,
}

impl Kills {
    /// Kills the gateway once the load has begun. Returns how long it was away each time, in nanoseconds.
    fn run(&self, target: &Target, rounds: usize, seed: u64) -> Result<Vec<u64>, String> {
        let mut random = seed;
        let kill = |_| {
            sleep_ms(1 + splitmix(&mut random) % LIFE_MS_MAX);
            target.kill_and_restart()
        };
        while !self.begun.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
            sleep_ms(1);
        }
        let rounds = if self.over.load(Ordering::SeqCst) { 0 } else { rounds };
        (0..rounds).map(kill).collect()
    }
}

/// The next number of a seed (SplitMix64).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Messages that a sender holds unacknowledged; well inside the gateway's window of 1,000 ids.
const UNACKED_MAX: usize = 400;
/// The same if the gateway is killed: all of them are resent at once, and the gateway lets 16 MiB wait for its disk.
const UNACKED_OVER_KILLS_MAX: usize = 40;
/// Attempts to reconnect before a client is given up.
const ATTEMPTS_MAX: usize = 200;
/// A storm's messages may take longer to settle than a window's.
const DRAIN_MS: u64 = 15_000;
const RECEIVE_BYTES: usize = 8192;

/// A client through all its connections.
struct Link {
    number: u32,
    client: String,
    session: String,
    sends: bool,
    payload_bytes: usize,
    access: Rc<Access>,
    stats: Rc<Stats>,
    connection: RefCell<Option<Rc<Connection>>>,
    /// Position in the session; `None` before its first welcome.
    position: RefCell<Option<Position>>,
    unacked: RefCell<VecDeque<Stamp>>,
    template: RefCell<Option<Template>>,
    sent: Cell<u64>,
    ledger: RefCell<Ledger>,
    /// `true` if the gateway is killed: connections end by themselves.
    killed: bool,
    /// Places of the last deliveries in the order: `seq` and number. Kept if the gateway is killed.
    places: RefCell<VecDeque<(u64, u64)>>,
    cut_at_ns: Cell<u64>,
    caught_up: Cell<bool>,
    stopping: Cell<bool>,
    given_up: Cell<bool>,
}

impl Link {
    fn new(
        number: usize,
        (sends, killed): (bool, bool),
        access: &Rc<Access>,
        stats: &Rc<Stats>,
        payload_bytes: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            number: u32::try_from(number).unwrap_or(u32::MAX),
            client: format!("{}-{number}", if sends { "sender" } else { "reader" }),
            session: access.session(number),
            sends,
            payload_bytes,
            access: Rc::clone(access),
            stats: Rc::clone(stats),
            connection: RefCell::default(),
            position: RefCell::default(),
            unacked: RefCell::default(),
            template: RefCell::default(),
            sent: Cell::new(0),
            ledger: RefCell::default(),
            killed,
            places: RefCell::default(),
            cut_at_ns: Cell::new(0),
            caught_up: Cell::new(false),
            stopping: Cell::new(false),
            given_up: Cell::new(false),
        })
    }

    fn up(&self) -> bool {
        self.connection.borrow().is_some()
    }

    fn cut(&self) {
        if let Some(connection) = self.connection.borrow().as_ref() {
            self.cut_at_ns.set(now_ns());
            connection.cut();
        }
    }

    fn stop(&self) {
        self.stopping.set(true);
        if let Some(connection) = self.connection.borrow().as_ref() {
            connection.cut();
        }
    }

    /// Sends a new message now or, without a connection, with the next one.
    fn send(&self, intended_ns: u64) {
        if self.unacked.borrow().len() >= if self.killed { UNACKED_OVER_KILLS_MAX } else { UNACKED_MAX } {
            return;
        }
        let stamp = Stamp { sender: self.number, number: self.sent.get(), intended_ns };
        self.sent.set(stamp.number + 1);
        self.unacked.borrow_mut().push_back(stamp);
        if let (Some(connection), Some(template)) = (self.connection.borrow().as_ref(), self.template.borrow_mut().as_mut()) {
            connection.queue(template.stamped(stamp));
            connection.flush();
        }
    }

    /// Keeps the client connected until it is stopped.
    async fn live(self: Rc<Self>) {
        let mut failures = 0;
        while !self.stopping.get() {
            match self.connect_once().await {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures += 1;
                    if failures == ATTEMPTS_MAX || self.position.borrow().is_none() {
                        self.stats.problem(|| format!("given up: {why}"));
                        self.given_up.set(true);
                        return;
                    }
                    // Spread, or all would reconnect in the same instant.
                    pause_ms(20 + u64::from(self.number % 80)).await;
                }
            }
        }
    }

    /// A connection from hello to end. Errors: it was never established.
    async fn connect_once(self: &Rc<Self>) -> Result<(), String> {
        let resume = self.position.borrow().clone();
        let member = Member {
            client: &self.client,
            session: &self.session,
            rooms: &[],
            resume: resume.as_ref(),
            receive_bytes: RECEIVE_BYTES,
            socket_buffer_bytes: None,
        };
        let joined = self.access.join(&self.stats, member, self.number as usize).await?;
        if resume.is_some() && !joined.recovered {
            self.stats.problem(|| format!("{} was told that not all could be recovered", self.client));
        }
        {
            let mut position = self.position.borrow_mut();
            let own = position.as_ref().map_or(joined.position.seq, |position| position.seq);
            let seq = joined.rewound_to.map_or(own, |seq| own.min(seq));
            self.discard_above(seq);
            *position = Some(Position { epoch: joined.position.epoch.clone(), seq });
        }
        self.caught_up.set(false);
        let connection = joined.connection;
        let mut inbox = joined.inbox;
        if self.sends {
            let mut template = self.access.message(&self.session, "", self.payload_bytes, connection.mask());
            for stamp in self.unacked.borrow().iter() {
                connection.queue(template.stamped(*stamp));
            }
            *self.template.borrow_mut() = Some(template);
            connection.flush();
        }
        *self.connection.borrow_mut() = Some(Rc::clone(&connection));
        // Stopped while it joined: `stop` found no connection to cut.
        if self.stopping.get() {
            connection.cut();
        }
        self.stats.open.add(1);
        let ended = inbox.run(&connection, |_, payload| self.take(payload), || {}).await;
        *self.connection.borrow_mut() = None;
        self.stats.open.take(1);
        match ended {
            Err(Ended::Protocol(error)) => self.stats.problem(|| format!("{}: {error}", self.client)),
            Err(ended) if !connection.is_leaving() && !self.killed => {
                self.stats.problem(|| format!("{} was cut off: {ended}", self.client));
            }
            _ => {}
        }
        Ok(())
    }

    fn take(&self, payload: &[u8]) -> Next {
        match self.access.read(payload) {
            Incoming::Message(stamp) => {
                if stamp.sender != self.number || self.sends {
                    self.stats.problem(|| format!("{} got a message of sender {}", self.client, stamp.sender));
                }
                self.ledger.borrow_mut().receive(stamp.number);
                self.moved_to(payload);
                if self.killed
                    && let Some(seq) = dialect::seq_of(payload)
                {
                    let mut places = self.places.borrow_mut();
                    if places.len() == PLACES_MAX {
                        places.pop_front();
                    }
                    places.push_back((seq, stamp.number));
                }
                self.stats.completed.add(1);
                self.stats.delivered_bytes.add(payload.len() as u64);
                self.stats.time(Timing::Message, stamp.intended_ns, now_ns());
            }
            Incoming::Ack(stamp) => {
                let mut unacked = self.unacked.borrow_mut();
                // Nearly always the oldest.
                if let Some(at) = unacked.iter().position(|own| own.number == stamp.number) {
                    unacked.remove(at);
                    self.stats.time(Timing::Ack, stamp.intended_ns, now_ns());
                }
            }
            Incoming::Control => {
                if dialect::is_type(payload, b"rw.caught_up") && !self.caught_up.replace(true) {
                    self.moved_to(payload);
                    if self.cut_at_ns.get() > 0 {
                        self.stats.time(Timing::Resume, self.cut_at_ns.get(), now_ns());
                    }
                }
            }
            Incoming::Error | Incoming::Unknown => {
                self.stats
                    .problem(|| format!("the server said: {}", String::from_utf8_lossy(&payload[..payload.len().min(300)])));
            }
        }
        Next::Go
    }

    /// Takes back deliveries above a place in the order: the gateway has lost them, and their sender sends them again.
    fn discard_above(&self, seq: u64) {
        let mut places = self.places.borrow_mut();
        let kept = places.partition_point(|(place, _)| *place <= seq);
        if let Some((_, first)) = places.get(kept).copied() {
            self.ledger.borrow_mut().rewind(first, (places.len() - kept) as u64);
            places.truncate(kept);
        }
    }

    fn moved_to(&self, payload: &[u8]) {
        if let (Some(seq), Some(position)) = (dialect::seq_of(payload), self.position.borrow_mut().as_mut()) {
            position.seq = position.seq.max(seq);
        }
    }
}

/// Runs the scenario once. Defaults: 1,000 connections, five messages per second and session.
pub fn measure(cuts: Cuts, label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    if !target.speaks_envelopes() {
        return Err("resuming needs the gateway: give --spawn, or --url with --key".into());
    }
    let connections = options.connections.unwrap_or(1000);
    check_open_files(connections)?;
    let pairs = connections / 2;
    let a_pair = if matches!(cuts, Cuts::Kills { .. }) { 100.0 } else { 5.0 };
    let rate = options.rate.unwrap_or(a_pair * pairs as f64);
    let access = Access::new(target);
    let mut plan = plan(label, target, options);
    plan.open_files = matches!(cuts, Cuts::Churn(_));
    let kills = Kills::default();
    if let Cuts::Kills { rounds, .. } = cuts {
        // Each round is another process. The last one ends the window.
        (plan.pid, plan.warmup_ms) = (None, 0);
        plan.duration_ms = ROUND_MS_MAX * (rounds as u64 + 1);
    }
    let (run, away_ns) = std::thread::scope(|scope| {
        let kills = &kills;
        let killing = match cuts {
            Cuts::Kills { rounds, seed } => Some(scope.spawn(move || {
                let away_ns = kills.run(target, rounds, seed);
                kills.over.store(true, Ordering::SeqCst);
                away_ns
            })),
            _ => None,
        };
        let run = run(&plan, |context| work(context, access.clone(), options, pairs, rate, (cuts, kills)));
        // If no worker came so far, nobody waits for kills.
        kills.over.store(true, Ordering::SeqCst);
        let away_ns = killing.map_or(Ok(Ok(Vec::new())), std::thread::ScopedJoinHandle::join);
        (run, away_ns.unwrap_or_else(|_| Err("the thread that kills the gateway panicked; its message is above".into())))
    });
    let (run, away_ns) = (run?, away_ns?);
    let mut loss = Loss::default();
    run.results.iter().for_each(|(worker, _)| loss.add(worker));
    let cut: u64 = run.results.iter().map(|(_, cut)| cut).sum();
    let rss: Vec<_> = run.samples.iter().map(|sample| (sample.at_ns, sample.server_rss_bytes)).collect();
    let files: Vec<_> = run.samples.iter().map(|sample| (sample.at_ns, sample.server_open_files)).collect();
    let most_files = files.iter().filter_map(|(_, files)| *files).max();
    let mut measured = common_figures(run, "message", "messages", loss);
    if let Some(longest_ns) = away_ns.iter().max() {
        let loss = &measured.loss;
        let acknowledged = loss.sent - loss.unanswered;
        measured.figures.push(Figure::neutral("rounds", "", away_ns.len() as f64));
        measured.figures.push(Figure::neutral("acknowledged", "", acknowledged as f64));
        measured.figures.push(Figure::neutral("longest from kill to start", "ms", *longest_ns as f64 / 1e6));
    } else {
        measured.figures.push(Figure::neutral("connections cut", "", cut as f64));
    }
    if matches!(cuts, Cuts::Churn(_)) {
        if let Some(growth) = growth_per_hour(&rss) {
            measured.figures.push(Figure::lower("server RSS growth".into(), "MiB/h", growth / f64::from(1 << 20)));
        }
        if let (Some(growth), Some(most)) = (growth_per_hour(&files), most_files) {
            measured.figures.push(Figure::neutral("server open files, most", "", most as f64));
            measured.figures.push(Figure::lower("server open files, growth".into(), "/h", growth));
        }
    }
    Ok(measured)
}

async fn work(
    context: Context,
    access: Access,
    options: &Options,
    pairs: usize,
    rate: f64,
    (cuts, kills): (Cuts, &Kills),
) -> Result<(Loss, u64), String> {
    let access = Rc::new(access);
    let mut links = Vec::new();
    for pair in context.share(pairs) {
        // The reader first: messages sent before it is known are not for it.
        for sends in [false, true] {
            links.push(Link::new(
                pair,
                (sends, matches!(cuts, Cuts::Kills { .. })),
                &access,
                &context.stats,
                options.payload_bytes,
            ));
        }
    }
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for some in links.chunks(64) {
        tasks.extend(some.iter().map(|link| tokio_uring::spawn(Rc::clone(link).live())));
        while !some.iter().all(|link| link.up()) {
            if some.iter().any(|link| link.given_up.get()) {
                return Err(context.stats.take().1.join("; "));
            }
            pause_ms(1).await;
        }
    }
    let senders: Vec<Rc<Link>> = links.iter().filter(|link| link.sends).cloned().collect();
    let (begin_ns, end_ns) = context.ready().await;
    kills.begun.store(true, Ordering::SeqCst);
    let cutting = tokio_uring::spawn(cut_off(links.clone(), cuts, context.window_start_ns(), end_ns, context.workers));
    if !senders.is_empty() {
        let mine = rate * senders.len() as f64 / pairs as f64;
        let pacer = Rc::new(Pacer::new(begin_ns, end_ns, mine));
        let mut send = |message: u64, due_ns: u64| {
            senders[usize::try_from(message % senders.len() as u64).unwrap_or(0)].send(due_ns);
        };
        if matches!(cuts, Cuts::Kills { .. }) {
            while !kills.over.load(Ordering::SeqCst) {
                pacer.pump(now_ns(), &mut send);
                pause_ms(1).await;
            }
        } else {
            let sending = pacer.keep(options.quantum_us * 1000, send);
            sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))?;
        }
    }
    if matches!(cuts, Cuts::Kills { .. }) {
        context.done_early();
    }
    let cut = cutting.await.map_err(|error| format!("the cutting task failed: {error}"))?;
    let behind =
        |pair: &[Rc<Link>]| !pair[1].unacked.borrow().is_empty() || pair[0].ledger.borrow().received < pair[1].sent.get();
    context.finish(DRAIN_MS, || links.chunks(2).any(behind)).await;
    links.iter().for_each(|link| link.stop());
    for task in tasks {
        let _ = task.await;
    }
    let mut loss = Loss::default();
    for pair in links.chunks(2) {
        let sent = pair[1].sent.get();
        loss.sent += sent;
        loss.unanswered += pair[1].unacked.borrow().len() as u64;
        let ledger = pair[0].ledger.borrow();
        loss.book(&ledger, sent);
        // Messages that were never acknowledged were never promised.
        loss.lost -= pair[1].unacked.borrow().iter().filter(|stamp| ledger.is_missing(stamp.number)).count() as u64;
    }
    Ok((loss, cut))
}

async fn cut_off(links: Vec<Rc<Link>>, cuts: Cuts, start_ns: u64, end_ns: u64, workers: usize) -> u64 {
    let mut cut = 0;
    let wait_until = async |at_ns: u64| {
        while now_ns() < at_ns {
            pause_ms((at_ns.saturating_sub(now_ns()) / 1_000_000).clamp(1, 50)).await;
        }
    };
    match cuts {
        // Another thread's.
        Cuts::Kills { .. } => {}
        Cuts::Storms(storms) => {
            for storm in 1..=storms as u64 {
                wait_until(start_ns + (end_ns - start_ns) * storm / (storms as u64 + 1)).await;
                for link in links.iter().filter(|link| link.up()) {
                    link.cut();
                    cut += 1;
                }
            }
        }
        Cuts::Churn(per_second) => {
            let pacer = Pacer::new(start_ns, end_ns, (per_second / workers as f64).max(0.001));
            // Any fixed stride that shares no factor with the count visits all of them.
            while !links.is_empty() && now_ns() < end_ns {
                pacer.pump(now_ns(), |number, _| {
                    let link = &links[usize::try_from(number.wrapping_mul(7919) % links.len() as u64).unwrap_or(0)];
                    if link.up() {
                        link.cut();
                        cut += 1;
                    }
                });
                pause_ms(5).await;
            }
        }
    }
    cut
}

/// A server's growth: its last quarter against the second one, because the first is warm-up.
fn growth_per_hour(samples: &[(u64, Option<u64>)]) -> Option<f64> {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        return None;
    }
    let mean = |part: &[(u64, Option<u64>)]| {
        let value = part.iter().map(|(_, value)| value.map(|value| value as f64)).sum::<Option<f64>>()? / part.len() as f64;
        Some((part.iter().map(|(at_ns, _)| *at_ns as f64).sum::<f64>() / part.len() as f64, value))
    };
    let (early, late) = (mean(&samples[quarter..2 * quarter])?, mean(&samples[samples.len() - quarter..])?);
    Some((late.1 - early.1) / ((late.0 - early.0) / 3.6e12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_slope_after_warm_up() {
        let second = 1_000_000_000;
        let steady: Vec<_> = (0..100).map(|at| (at * second, Some(at.min(20)))).collect();
        assert!(growth_per_hour(&steady).unwrap().abs() < 40.0);
        let leaking: Vec<_> = (0..100).map(|at| (at * second, Some(at))).collect();
        assert!((growth_per_hour(&leaking).unwrap() - 3600.0).abs() < 1.0);
        assert_eq!(growth_per_hour(&[(0, None); 8]), None);
    }
}
