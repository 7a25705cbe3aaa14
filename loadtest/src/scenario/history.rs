//! `history`: a session that is larger than the gateway's memory, with readers at the tail under a live load, and one reader that
//! catches up on it: from the start and from the middle in turns. Nothing may be missing, come twice or out of order, wherever a
//! reader begins.
//!
//! The far reader has a thread of its own that gives way to the others' at once: these are to wait for the server, not for each
//! other.

use super::{DRAIN_MS, Measured, Reader, check_open_files, common_figures, leave, make_all, plan};
use crate::clock::{now_ns, sleep_ns};
use crate::dialect::{self, Incoming};
use crate::engine::connection::{Connection, Ended, Next};
use crate::engine::pacer::Pacer;
use crate::engine::run::{BUSY_MAX, Context, pause_ms, run};
use crate::engine::stats::{Stats, Timing};
use crate::ledger::{Ledger, Loss};
use crate::options::Options;
use crate::report::{Figure, Spread};
use crate::session::{Access, Joined, Member, Position};
use crate::stamp::{Stamp, Template};
use crate::target::Target;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages per second of the live load, if there is no `--rate`.
pub const RATE: f64 = 500.0;
const TAIL_READERS: usize = 20;
/// Senders in the stamps: of the history, and of the live load.
const WRITER: u32 = 0;
const LIVE: u32 = 1;
/// Bytes of payloads that the history's writer has under way, well inside what the gateway lets wait for its disk.
const WRITING_BYTES_MAX: usize = 4 << 20;
const RECEIVE_BYTES: usize = 256 << 10;
/// Receive size of the far reader: a thread gives its core away after a receive, not in it, and this one takes about 10 us.
const FAR_RECEIVE_BYTES: usize = 64 << 10;
/// Shorter sleeps cost more than they are worth.
const PAUSE_NS_MIN: u64 = 100_000;
/// Longest time for catching up once.
const LAP_MS_MAX: u64 = 120_000;

/// The session before the load begins, and the places at which the far reader may start.
struct Begin {
    messages: u64,
    start: Position,
    /// Behind the first half: the position, and the number of the next message.
    middle: (Position, u64),
}

/// A lap of the far reader, from its start to `rw.caught_up`.
struct Lap {
    from_start: bool,
    bytes: u64,
    seconds: f64,
}

/// Holds the far reader to a rate.
#[derive(Clone, Copy)]
struct Pace {
    began_ns: u64,
    bytes_per_second: f64,
}

impl Pace {
    /// How long to wait after so many bytes.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration of a run, above 0")]
    fn pause_ns(self, bytes: u64, now_ns: u64) -> Option<u64> {
        let due_ns = (bytes as f64 / self.bytes_per_second * 1e9) as u64;
        Some(due_ns.saturating_sub(now_ns.saturating_sub(self.began_ns))).filter(|pause_ns| *pause_ns >= PAUSE_NS_MIN)
    }
}

/// State that the workers share.
#[derive(Default)]
struct Shared {
    begin: OnceLock<Begin>,
    /// Live messages.
    sent: AtomicU64,
}

/// The parameters with which each of them joins the session.
struct Party {
    access: Access,
    stats: Rc<Stats>,
    session: String,
    payload_bytes: usize,
}

/// Runs the scenario once, with the far reader or without it.
pub fn measure(far: bool, label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    if !target.speaks_envelopes() {
        return Err("a history needs the gateway: give --spawn, or --url with --key".into());
    }
    let readers = options.connections.unwrap_or(TAIL_READERS);
    check_open_files(readers + 3)?;
    let (access, shared) = (Access::new(target), Shared::default());
    let mut plan = plan(label, target, options);
    plan.aside = far.then(|| if options.no_pin { None } else { options.load_core.last().copied() });
    let run = run(&plan, |context| work(context, access.clone(), &shared, options, readers))?;
    let mut loss = Loss::default();
    run.results.iter().for_each(|(worker, _)| loss.add(worker));
    let laps: Vec<&Lap> = run.results.iter().flat_map(|(_, laps)| laps).collect();
    let far_busy = run.aside_busy().unwrap_or(0.0);
    let mut figures = Vec::new();
    for (from_start, name) in [(true, "catch-up from the start"), (false, "catch-up from the middle")] {
        let rates = laps.iter().filter(|lap| lap.from_start == from_start).map(|lap| lap.bytes as f64 / 1e6 / lap.seconds);
        if let Some(rate) = Spread::of(rates) {
            figures.push(Figure::higher(name.into(), "MB/s", rate.median).void_if(far_busy > BUSY_MAX));
        }
    }
    if far {
        figures.push(Figure::neutral("times caught up", "", laps.len() as f64));
        figures.push(Figure::neutral("far reader busy", "%", far_busy * 100.0));
    }
    let mut measured = common_figures(run, "delivery", "deliveries", loss);
    measured.figures.extend(figures);
    Ok(measured)
}

async fn work(
    context: Context,
    access: Access,
    shared: &Shared,
    options: &Options,
    readers: usize,
) -> Result<(Loss, Vec<Lap>), String> {
    let (session, stats, payload_bytes) = (access.session(0), Rc::clone(&context.stats), options.payload_bytes);
    let party = Rc::new(Party { access, stats, session, payload_bytes });
    if context.is_aside {
        return far_reader(&context, &party, shared, options).await;
    }
    let mut loss = Loss::default();
    if context.worker == 0 {
        let begin = party.write_history(options.history_bytes).await?;
        loss.sent += begin.messages;
        let _ = shared.begin.set(begin);
    }
    shared.begin(&context).await?;
    let joined = make_all(context.share(readers), 64, |number| {
        let party = Rc::clone(&party);
        async move { party.join(&format!("tail-{number}"), number + 2, None, RECEIVE_BYTES).await }
    })
    .await?;
    let mut tails = Vec::new();
    let mut open = Vec::new();
    for joined in joined {
        let (party, ledger) = (Rc::clone(&party), Rc::new(RefCell::new(Ledger::default())));
        tails.push(Rc::clone(&ledger));
        let take = move |payload: &[u8]| party.take_at_tail(&ledger, payload);
        open.push(Reader::start(&context, joined.connection, joined.inbox, take, || {}));
    }
    let sender = if context.worker == 0 { Some(party.sender(&context, &mut open).await?) } else { None };
    let (begin_ns, end_ns) = context.ready().await;
    if let Some(sender) = &sender {
        let pacer = Rc::new(Pacer::new(begin_ns, end_ns, options.rate.unwrap_or(RATE)));
        let sending = pacer.keep(options.quantum_us * 1000, |_, due_ns| {
            context.stats.time(Timing::SentLate, due_ns, now_ns());
            sender.send(due_ns);
            shared.sent.store(sender.sent.get(), Ordering::Release);
        });
        sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))?;
    }
    let unanswered = || sender.as_ref().map_or(0, |sender| sender.sent.get() - sender.acked.get());
    let sent = || shared.sent.load(Ordering::Acquire);
    context.finish(DRAIN_MS, || unanswered() > 0 || tails.iter().any(|tail| tail.borrow().received < sent())).await;
    leave(open).await;
    if sender.is_some() {
        loss.sent += sent();
        loss.unanswered += unanswered();
    }
    tails.iter().for_each(|tail| loss.book(&tail.borrow(), sent()));
    Ok((loss, Vec::new()))
}

/// While the load lasts: catches up from one of the places and from the other in turns.
async fn far_reader(context: &Context, party: &Party, shared: &Shared, options: &Options) -> Result<(Loss, Vec<Lap>), String> {
    let begin = shared.begin(context).await?;
    // Each with the number of its first message.
    let places = [(begin.start.clone(), 0), begin.middle.clone()];
    context.ready().await;
    while now_ns() < context.window_start_ns() {
        pause_ms(1).await;
    }
    let bytes_per_second = options.catch_up_mb_per_second.map(|megabytes| megabytes * 1e6);
    let (mut laps, mut loss) = (Vec::new(), Loss::default());
    for (from, first) in places.iter().cycle() {
        if !party.stats.sending() {
            break;
        }
        laps.push(party.catch_up(from, *first, begin.messages, bytes_per_second, &mut loss).await?);
    }
    context.finish(0, || false).await;
    Ok((loss, laps))
}

impl Shared {
    /// Waits for the history.
    async fn begin(&self, context: &Context) -> Result<&Begin, String> {
        loop {
            if let Some(begin) = self.begin.get() {
                return Ok(begin);
            }
            if context.is_over() {
                return Err("the worker that writes the history gave up".into());
            }
            pause_ms(1).await;
        }
    }
}

impl Party {
    async fn join(&self, client: &str, number: usize, resume: Option<&Position>, receive_bytes: usize) -> Result<Joined, String> {
        let member = Member { client, session: &self.session, rooms: &[], resume, receive_bytes, socket_buffer_bytes: None };
        self.access.join(&self.stats, member, number).await
    }

    /// Makes the far reader a member, and then the session long.
    async fn write_history(&self, bytes: u64) -> Result<Begin, String> {
        // From before the first message on: messages sent before a client is known are not for it.
        let far = self.join("far", 0, None, FAR_RECEIVE_BYTES).await?;
        far.connection.cut();
        let messages = (bytes / self.payload_bytes.max(1) as u64).max(2);
        let in_flight = (WRITING_BYTES_MAX / self.payload_bytes.max(1)).clamp(1, 1000) as u64;
        let Joined { connection, mut inbox, .. } = self.join("writer", 1, None, RECEIVE_BYTES).await?;
        let mut template = self.access.message(&self.session, "", self.payload_bytes, connection.mask());
        let (acked, sent, middle) = (Cell::new(0), Cell::new(0), Cell::new(None));
        let refused = RefCell::new(None);
        let mut send = || {
            while sent.get() < messages.min(acked.get() + in_flight) {
                connection.queue(template.stamped(Stamp { sender: WRITER, number: sent.get(), intended_ns: 0 }));
                sent.set(sent.get() + 1);
            }
            connection.flush();
        };
        send();
        let take = |payload: &[u8]| {
            match self.access.read(payload) {
                Incoming::Ack(stamp) => {
                    acked.set(acked.get() + 1);
                    if stamp.number + 1 == messages / 2 {
                        middle.set(dialect::seq_of(payload));
                    }
                }
                Incoming::Control => {}
                _ => *refused.borrow_mut() = Some(shown(payload)),
            }
            if acked.get() == messages || refused.borrow().is_some() { Next::Stop } else { Next::Go }
        };
        let ended = inbox.run(&connection, |_, payload| take(payload), send).await;
        if let Some(refused) = refused.take() {
            return Err(format!("the history could not be written, the server said: {refused}"));
        }
        ended.map_err(|ended| format!("the history could not be written: {ended}"))?;
        connection.cut();
        let seq = middle.get().ok_or("an acknowledgement without a seq")?;
        let middle = (Position { epoch: far.position.epoch.clone(), seq }, messages / 2);
        Ok(Begin { messages, start: far.position, middle })
    }

    async fn sender(self: &Rc<Self>, context: &Context, open: &mut Vec<Reader>) -> Result<Rc<Sender>, String> {
        let joined = self.join("sender", 1, None, RECEIVE_BYTES).await?;
        let template = self.access.message(&self.session, "", self.payload_bytes, joined.connection.mask());
        let sender = Rc::new(Sender {
            connection: Rc::clone(&joined.connection),
            template: RefCell::new(template),
            sent: Cell::new(0),
            acked: Cell::new(0),
        });
        let (party, own) = (Rc::clone(self), Rc::clone(&sender));
        let take = move |payload: &[u8]| {
            match party.access.read(payload) {
                Incoming::Ack(stamp) => {
                    own.acked.set(own.acked.get() + 1);
                    party.stats.time(Timing::Ack, stamp.intended_ns, now_ns());
                }
                Incoming::Control => {}
                _ => party.stats.problem(|| format!("the server said: {}", shown(payload))),
            }
            Next::Go
        };
        open.push(Reader::start(context, joined.connection, joined.inbox, take, || {}));
        Ok(sender)
    }

    fn take_at_tail(&self, ledger: &RefCell<Ledger>, payload: &[u8]) -> Next {
        match self.access.read(payload) {
            Incoming::Message(stamp) if stamp.sender == LIVE => {
                ledger.borrow_mut().receive(stamp.number);
                self.stats.time(Timing::Message, stamp.intended_ns, now_ns());
                self.stats.completed.add(1);
                self.stats.delivered_bytes.add(payload.len() as u64);
            }
            Incoming::Control if !dialect::is_type(payload, b"rw.gap") => {}
            _ => self.stats.problem(|| format!("a reader at the tail got: {}", shown(payload))),
        }
        Next::Go
    }

    async fn catch_up(
        &self,
        from: &Position,
        first: u64,
        messages: u64,
        bytes_per_second: Option<f64>,
        loss: &mut Loss,
    ) -> Result<Lap, String> {
        let began_ns = now_ns();
        let pace = bytes_per_second.map(|bytes_per_second| Pace { began_ns, bytes_per_second });
        let Joined { connection, mut inbox, recovered, .. } = self.join("far", 0, Some(from), FAR_RECEIVE_BYTES).await?;
        if !recovered {
            self.stats.problem(|| "the far reader was told that not all could be recovered".into());
        }
        let over = Rc::new(Cell::new(false));
        let (watched, ended) = (Rc::clone(&connection), Rc::clone(&over));
        let watch = tokio_uring::spawn(async move {
            while !ended.get() && now_ns() < began_ns + LAP_MS_MAX * 1_000_000 {
                pause_ms(20).await;
            }
            watched.cut();
        });
        let (mut history, mut live) = (Ledger::starting_at(first), Ledger::default());
        let (bytes, mut last_seq, mut head) = (Cell::new(0), from.seq, None);
        let mut take = |payload: &[u8]| {
            bytes.set(bytes.get() + payload.len() as u64);
            match self.access.read(payload) {
                Incoming::Message(stamp) => {
                    if stamp.sender == WRITER { &mut history } else { &mut live }.receive(stamp.number);
                    last_seq = dialect::seq_at_end_of(payload).unwrap_or(0);
                }
                Incoming::Control if dialect::is_type(payload, b"rw.caught_up") => {
                    head = dialect::seq_of(payload);
                    return Next::Stop;
                }
                Incoming::Control if !dialect::is_type(payload, b"rw.gap") => {}
                _ => self.stats.problem(|| format!("the far reader got: {}", shown(payload))),
            }
            Next::Go
        };
        // The thread has nothing else to do.
        let keep_pace = || {
            if let Some(pause_ns) = pace.and_then(|pace| pace.pause_ns(bytes.get(), now_ns())) {
                sleep_ns(pause_ns);
            }
        };
        let ran = inbox.run(&connection, |_, payload| take(payload), keep_pace).await;
        let seconds = (now_ns() - began_ns) as f64 / 1e9;
        over.set(true);
        watch.await.map_err(|error| format!("the far reader's watch failed: {error}"))?;
        match ran {
            Ok(()) if head == Some(last_seq) => {}
            Ok(()) => self.stats.problem(|| format!("caught up to {head:?} with {last_seq} as the last message")),
            Err(Ended::Eof) => return Err(format!("the far reader did not catch up within {} s", LAP_MS_MAX / 1000)),
            Err(ended) => return Err(format!("the far reader was cut off: {ended}")),
        }
        loss.book(&history, messages);
        loss.book(&live, 0);
        loss.lost += live.holes();
        Ok(Lap { from_start: first == 0, bytes: bytes.get(), seconds })
    }
}

struct Sender {
    connection: Rc<Connection>,
    template: RefCell<Template>,
    sent: Cell<u64>,
    acked: Cell<u64>,
}

impl Sender {
    fn send(&self, intended_ns: u64) {
        let stamp = Stamp { sender: LIVE, number: self.sent.get(), intended_ns };
        self.sent.set(stamp.number + 1);
        self.connection.queue(self.template.borrow_mut().stamped(stamp));
        self.connection.flush();
    }
}

fn shown(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.len().min(300)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_waits_for_what_is_ahead_of_it_and_for_nothing_behind() {
        let pace = Pace { began_ns: 1_000_000, bytes_per_second: 600e6 };
        // 600 kB are a millisecond.
        assert_eq!(pace.pause_ns(600_000, 1_000_000), Some(1_000_000));
        assert_eq!(pace.pause_ns(600_000, 1_700_000), Some(300_000));
        assert_eq!(pace.pause_ns(600_000, 1_950_000), None, "too short to be worth it");
        assert_eq!(pace.pause_ns(600_000, 9_000_000), None);
    }
}
