//! `reconnect` and `soak`: sessions of two whose connections are cut, all at once or a few all the time, and resume. The sender
//! sends again what was not acknowledged, under the same ids; the reader says how far it was. Nothing may be missing, come
//! twice or out of order.

use super::{Measured, check_open_files, common_figures, plan};
use crate::clock::now_ns;
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
use tokio::task::JoinHandle;

/// How connections come to their end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cuts {
    /// Everyone at once, so often, evenly over the window.
    Storms(usize),
    /// So many a second, one after the other.
    Churn(f64),
}

/// Messages a sender holds that are not acknowledged; well inside the gateway's window of 1,000 ids.
const UNACKED_MAX: usize = 400;
/// Attempts to come back before a client is given up.
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
    /// Where it is; `None` before its first welcome.
    position: RefCell<Option<Position>>,
    unacked: RefCell<VecDeque<Stamp>>,
    template: RefCell<Option<Template>>,
    sent: Cell<u64>,
    ledger: RefCell<Ledger>,
    cut_at_ns: Cell<u64>,
    caught_up: Cell<bool>,
    stopping: Cell<bool>,
    given_up: Cell<bool>,
}

impl Link {
    fn new(number: usize, sends: bool, access: &Rc<Access>, stats: &Rc<Stats>, payload_bytes: usize) -> Rc<Self> {
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

    /// A new message, sent now or, without a connection, with the next one.
    fn send(&self, intended_ns: u64) {
        if self.unacked.borrow().len() >= UNACKED_MAX {
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
                    // Spread, or all would come again in the same instant.
                    pause_ms(20 + u64::from(self.number % 80)).await;
                }
            }
        }
    }

    /// One connection from hello to end. Errors: it never came to stand.
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
            let seq = position.as_ref().map_or(joined.position.seq, |position| position.seq);
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
        self.stats.open.add(1);
        let ended = inbox.run(&connection, |_, payload| self.take(payload), || {}).await;
        *self.connection.borrow_mut() = None;
        self.stats.open.take(1);
        match ended {
            Err(Ended::Protocol(error)) => self.stats.problem(|| format!("{}: {error}", self.client)),
            Err(ended) if !connection.is_leaving() => self.stats.problem(|| format!("{} was cut off: {ended}", self.client)),
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

    fn moved_to(&self, payload: &[u8]) {
        if let (Some(seq), Some(position)) = (dialect::seq_of(payload), self.position.borrow_mut().as_mut()) {
            position.seq = position.seq.max(seq);
        }
    }
}

/// Runs it once. Defaults: 1,000 connections, five messages a second a session.
pub fn measure(cuts: Cuts, label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    if !target.speaks_envelopes() {
        return Err("resuming needs the gateway: give --spawn, or --url with --key".into());
    }
    let connections = options.connections.unwrap_or(1000);
    check_open_files(connections)?;
    let pairs = connections / 2;
    let rate = options.rate.unwrap_or(5.0 * pairs as f64);
    let access = Access::new(target);
    let plan = plan(label, target, options);
    let run = run(&plan, |context| work(context, access.clone(), options, pairs, rate, cuts))?;
    let mut loss = Loss::default();
    run.results.iter().for_each(|(worker, _)| loss.add(worker));
    let cut: u64 = run.results.iter().map(|(_, cut)| cut).sum();
    let growth = growth_mib_per_hour(&run.samples.iter().map(|s| (s.at_ns, s.server_rss_bytes)).collect::<Vec<_>>());
    let mut measured = common_figures(run, "message", "messages", loss);
    measured.figures.push(Figure::neutral("connections cut", "", cut as f64));
    if let (Cuts::Churn(_), Some(growth)) = (cuts, growth) {
        measured.figures.push(Figure::lower("server RSS growth".into(), "MiB/h", growth));
    }
    Ok(measured)
}

async fn work(
    context: Context,
    access: Access,
    options: &Options,
    pairs: usize,
    rate: f64,
    cuts: Cuts,
) -> Result<(Loss, u64), String> {
    let access = Rc::new(access);
    let mut links = Vec::new();
    for pair in context.share(pairs) {
        // The reader first: what is sent before it is known is not for it.
        for sends in [false, true] {
            links.push(Link::new(pair, sends, &access, &context.stats, options.payload_bytes));
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
    let cutting = tokio_uring::spawn(cut_off(links.clone(), cuts, context.window_start_ns(), end_ns, context.workers));
    if !senders.is_empty() {
        let mine = rate * senders.len() as f64 / pairs as f64;
        let pacer = Rc::new(Pacer::new(begin_ns, end_ns, mine));
        let sending = pacer.keep(options.quantum_us * 1000, |message, due_ns| {
            senders[usize::try_from(message % senders.len() as u64).unwrap_or(0)].send(due_ns);
        });
        sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))?;
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
        loss.book(&pair[0].ledger.borrow(), sent);
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

/// Memory of the last quarter against that of the second one: the first is warm-up.
fn growth_mib_per_hour(samples: &[(u64, Option<u64>)]) -> Option<f64> {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        return None;
    }
    let mean = |part: &[(u64, Option<u64>)]| {
        let rss = part.iter().map(|(_, rss)| rss.map(|rss| rss as f64)).sum::<Option<f64>>()? / part.len() as f64;
        Some((part.iter().map(|(at_ns, _)| *at_ns as f64).sum::<f64>() / part.len() as f64, rss))
    };
    let (early, late) = (mean(&samples[quarter..2 * quarter])?, mean(&samples[samples.len() - quarter..])?);
    Some((late.1 - early.1) / f64::from(1 << 20) / ((late.0 - early.0) / 3.6e12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_slope_after_warm_up() {
        let mib = 1_u64 << 20;
        let second = 1_000_000_000;
        let steady: Vec<_> = (0..100).map(|at| (at * second, Some(if at < 20 { at * mib } else { 20 * mib }))).collect();
        assert!(growth_mib_per_hour(&steady).unwrap().abs() < 40.0);
        let leaking: Vec<_> = (0..100).map(|at| (at * second, Some(at * mib))).collect();
        assert!((growth_mib_per_hour(&leaking).unwrap() - 3600.0).abs() < 1.0);
        assert_eq!(growth_mib_per_hour(&[(0, None); 8]), None);
    }
}
