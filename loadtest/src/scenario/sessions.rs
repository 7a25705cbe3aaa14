//! `sessions`: many sessions of few messages whose members have left: the cost of each in the gateway's memory, and, if it keeps
//! a log on disk, the duration of a start over that log and the memory afterwards.

use super::{Measured, check_open_files, common_figures, make_all, plan};
use crate::clock::{now_ns, sleep_ms};
use crate::dialect::Incoming;
use crate::engine::connection::Next;
use crate::engine::run::{Context, run};
use crate::engine::stats::Stats;
use crate::ledger::Loss;
use crate::measure::{peak_rss_bytes, rss_exact_bytes};
use crate::options::Options;
use crate::report::Figure;
use crate::session::{Access, Joined, Member, Position};
use crate::stamp::Stamp;
use crate::target::Target;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Number of sessions, if there is no `--connections`.
const SESSIONS: usize = 10_000;
const AT_ONCE: usize = 64;
const RECEIVE_BYTES: usize = 8192;
/// Bytes of payloads that all sessions being made have under way together, well inside what the gateway lets wait for its disk.
const WRITING_BYTES_MAX: usize = 4 << 20;
/// The gateway's default `log.memory_bytes`, and the payloads it is filled with.
const LOG_MEMORY_BYTES: u64 = 64 << 20;
const FILLER_BYTES: usize = 16 << 10;
/// Time for freed memory to be given back, and for work behind the last message to finish.
const SETTLE_MS: u64 = 3_000;
/// Longest time of a start.
const START_NS_MAX: u64 = 60_000_000_000;

/// The parameters of each session.
#[derive(Clone)]
struct Maker {
    access: Rc<Access>,
    stats: Rc<Stats>,
    messages: u64,
    payload_bytes: usize,
}

impl Maker {
    async fn join(&self, number: usize, resume: Option<&Position>) -> Result<Joined, String> {
        let session = self.access.session(number);
        let member = Member {
            client: &format!("writer-{number}"),
            session: &session,
            rooms: &[],
            resume,
            receive_bytes: RECEIVE_BYTES,
            socket_buffer_bytes: None,
        };
        self.access.join(&self.stats, member, number).await
    }

    /// Makes a session with its messages, whose only member leaves. Returns its position.
    async fn make(self, number: usize) -> Result<Position, String> {
        let Joined { connection, mut inbox, position, .. } = self.join(number, None).await?;
        let in_flight = (WRITING_BYTES_MAX / AT_ONCE / self.payload_bytes.max(1)).clamp(1, 500) as u64;
        let mut template = self.access.message(&self.access.session(number), "", self.payload_bytes, connection.mask());
        let (sent, acked, refused) = (Cell::new(0), Cell::new(0), RefCell::new(None));
        let mut send = || {
            while sent.get() < self.messages.min(acked.get() + in_flight) {
                connection.queue(template.stamped(Stamp { sender: 0, number: sent.get(), intended_ns: 0 }));
                sent.set(sent.get() + 1);
            }
            connection.flush();
        };
        send();
        let take = |payload: &[u8]| {
            match self.access.read(payload) {
                Incoming::Ack(_) => acked.set(acked.get() + 1),
                Incoming::Control => {}
                _ => *refused.borrow_mut() = Some(String::from_utf8_lossy(&payload[..payload.len().min(300)]).into_owned()),
            }
            if acked.get() == self.messages || refused.borrow().is_some() { Next::Stop } else { Next::Go }
        };
        if self.messages > 0 {
            let ended = inbox.run(&connection, |_, payload| take(payload), send).await;
            if let Some(refused) = refused.take() {
                return Err(format!("session {number} could not be made, the server said: {refused}"));
            }
            ended.map_err(|ended| format!("session {number} could not be made: {ended}"))?;
        }
        connection.cut();
        self.stats.completed.add(1);
        Ok(Position { seq: position.seq + self.messages, ..position })
    }
}

/// Values read from the gateway.
#[derive(Clone, Default)]
struct Readings {
    empty_bytes: u64,
    live_bytes: u64,
    started: Option<Started>,
}

/// The result of a start over the log.
#[derive(Clone)]
struct Started {
    log_bytes: u64,
    /// From the process's start to the first welcome.
    took_ns: u64,
    bytes: u64,
    peak_bytes: u64,
}

/// Runs the scenario once.
pub fn measure(label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    if !target.speaks_envelopes() {
        return Err("sessions are the gateway's: give --spawn, or --url with --key and --pid".into());
    }
    let sessions = options.connections.unwrap_or(SESSIONS);
    check_open_files(AT_ONCE)?;
    let access = Access::new(target);
    let mut plan = plan(label, target, options);
    plan.cores.truncate(1);
    // A start is another process.
    (plan.pid, plan.warmup_ms, plan.duration_ms) = (None, 0, 3_600_000);
    let run = run(&plan, |context| work(context, access.clone(), target, options, sessions))?;
    let readings = run.results.first().cloned().unwrap_or_default();
    let mut measured = common_figures(run, "session", "sessions", Loss::default());
    measured.figures = figures(&readings, sessions);
    Ok(measured)
}

async fn work(context: Context, access: Access, target: &Target, options: &Options, sessions: usize) -> Result<Readings, String> {
    let maker = Maker {
        access: Rc::new(access),
        stats: Rc::clone(&context.stats),
        messages: options.session_messages,
        payload_bytes: options.payload_bytes,
    };
    context.ready().await;
    let rss =
        || target.pid().and_then(rss_exact_bytes).ok_or("the server's memory can't be read: give --spawn, or --pid with --url");
    // The log's memory is as large however many sessions there are: it is filled first, by a session that does not count.
    let filler = Maker { messages: LOG_MEMORY_BYTES / FILLER_BYTES as u64, payload_bytes: FILLER_BYTES, ..maker.clone() };
    filler.clone().make(sessions).await?;
    sleep_ms(SETTLE_MS);
    let empty_bytes = rss()?;
    let made = make_all(0..sessions, AT_ONCE, |number| maker.clone().make(number)).await?;
    sleep_ms(SETTLE_MS);
    let mut readings = Readings { empty_bytes, live_bytes: rss()?, started: None };
    if options.durability.is_some() {
        let log_bytes = target.log_bytes();
        let began_ns = now_ns();
        target.kill_and_restart()?;
        // While the kernel still holds the killed process's socket, a connection made to it is reset.
        let joined = loop {
            match maker.join(0, made.first()).await {
                Err(why) if now_ns() - began_ns > START_NS_MAX => return Err(why),
                Err(_) => sleep_ms(1),
                Ok(joined) => break joined,
            }
        };
        let took_ns = now_ns() - began_ns;
        if !joined.recovered {
            context.stats.problem(|| "not all could be recovered".into());
        }
        joined.connection.cut();
        let peak_bytes = target.pid().and_then(peak_rss_bytes).unwrap_or(0);
        // As at the reading without sessions: the log's memory is full, and the allocator was used since the start's own memory
        // was freed.
        sleep_ms(SETTLE_MS);
        filler.make(sessions + 1).await?;
        sleep_ms(SETTLE_MS);
        readings.started = Some(Started { log_bytes, took_ns, bytes: rss()?, peak_bytes });
    }
    context.done_early();
    context.finish(0, || false).await;
    Ok(readings)
}

fn figures(readings: &Readings, sessions: usize) -> Vec<Figure> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let each = |bytes: u64| bytes.saturating_sub(readings.empty_bytes) as f64 / sessions.max(1) as f64;
    let mut figures = vec![
        Figure::neutral("RSS with none, the log's memory full", "MiB", mib(readings.empty_bytes)),
        Figure::lower("RSS".into(), "MiB", mib(readings.live_bytes)),
        Figure::lower("RSS a session".into(), "B", each(readings.live_bytes)),
    ];
    if let Some(started) = &readings.started {
        figures.push(Figure::neutral("log on disk", "MiB", mib(started.log_bytes)));
        figures.push(Figure::lower("from kill to the first welcome".into(), "ms", started.took_ns as f64 / 1e6));
        figures.push(Figure::lower("RSS after the start".into(), "MiB", mib(started.bytes)));
        figures.push(Figure::lower("RSS a session after the start".into(), "B", each(started.bytes)));
        figures.push(Figure::neutral("highest RSS in the start", "MiB", mib(started.peak_bytes)));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_costs_what_is_above_an_empty_gateway() {
        let started = Started { log_bytes: 1 << 30, took_ns: 2_000_000_000, bytes: 3_000_000, peak_bytes: 0 };
        let readings = Readings { empty_bytes: 1_000_000, live_bytes: 2_000_000, started: Some(started) };
        let value = |name: &str| figures(&readings, 1000).iter().find(|figure| figure.name == name).unwrap().value;
        assert!((value("RSS a session") - 1000.0).abs() < 0.01);
        assert!((value("RSS a session after the start") - 2000.0).abs() < 0.01);
        assert!((value("from kill to the first welcome") - 2000.0).abs() < 0.01);
        assert!((value("log on disk") - 1024.0).abs() < 0.01);
        let live = Readings { started: None, ..readings.clone() };
        assert_eq!(figures(&live, 1000).len(), 3, "without a log there is no start");
    }
}
