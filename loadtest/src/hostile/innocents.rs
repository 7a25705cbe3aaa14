//! Innocent clients: pairs that talk at a moderate rate, newcomers, and probes of the gateway's health. Their latencies are the
//! cost of an attack.

use super::client::{self, Door, Hello};
use super::stage::{Counts, Stage, count};
use crate::clock::{now_ns, sleep_ms, sleep_ns};
use crate::dialect::{self, Incoming};
use crate::engine::connection::Next;
use crate::engine::pacer::Pacer;
use crate::engine::run::{Context, Plan, run};
use crate::engine::stats::{Timing, histogram};
use crate::options::HostileOptions;
use crate::scenario::{DRAIN_MS, Reader, leave};
use crate::scrape;
use crate::session::{Access, Member};
use crate::stamp::Stamp;
use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Pairs that talk.
const PAIRS: usize = 4;
/// Newcomers are these in turns, so that a session of few members has room for all of them.
const NEWCOMERS: u64 = 40;
const NEWCOMER_EVERY_MS: u64 = 100;
const PROBE_EVERY_MS: u64 = 50;

/// The latencies and errors of one kind of innocents.
#[derive(Clone)]
pub struct Felt {
    pub latency: Histogram<u64>,
    /// Refusals, errors by code, ends by reason, and missing messages.
    pub errors: Counts,
}

/// Pairs in sessions of their own: one sends to a room, the other is in it. Begins the attack, and sets the window.
pub fn talk(access: &Access, stage: &Stage, plan: &Plan, options: &HostileOptions) -> Result<Felt, String> {
    let errors = Mutex::new(Counts::new());
    let run = run(plan, |context| {
        let (access, errors) = (access.clone(), &errors);
        async move { pairs(context, &access, stage, options, errors).await }
    })?;
    let mut errors = errors.into_inner().map_err(|_| "a worker panicked; its message is above".to_owned())?;
    for problem in run.problems {
        *errors.entry(problem).or_default() += 1;
    }
    let latency = run.series.into_iter().find(|(timing, _)| *timing == Timing::Message);
    Ok(Felt { latency: latency.map_or_else(histogram, |(_, series)| series.whole), errors })
}

async fn pairs(
    context: Context,
    access: &Access,
    stage: &Stage,
    options: &HostileOptions,
    errors: &Mutex<Counts>,
) -> Result<(), String> {
    // Tasks that outlive no run may not borrow from it: their counts are handed over at the end.
    let told = Rc::new(RefCell::new(Vec::<String>::new()));
    let (received, acked) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
    let (mut readers, mut senders) = (Vec::new(), Vec::new());
    for number in 0..PAIRS * 2 {
        let session = access.session(number / 2);
        let (client, sends) = (format!("innocent-{number}"), number % 2 == 1);
        let rooms: &[&str] = if sends { &[] } else { &["r"] };
        let member =
            Member { client: &client, session: &session, rooms, resume: None, receive_bytes: 4096, socket_buffer_bytes: None };
        let joined = access.join(&context.stats, member, number).await?;
        if sends {
            let template = access.message(&session, "\"room:r\"", options.payload_bytes, joined.connection.mask());
            senders.push((Rc::clone(&joined.connection), RefCell::new(template), Cell::new(0)));
        }
        let (stats, told, received, acked) =
            (Rc::clone(&context.stats), Rc::clone(&told), Rc::clone(&received), Rc::clone(&acked));
        let handler = move |payload: &[u8]| {
            match dialect::read_envelope(payload) {
                Incoming::Message(stamp) => {
                    received.set(received.get() + 1);
                    stats.time(Timing::Message, stamp.intended_ns, now_ns());
                }
                Incoming::Ack(_) => acked.set(acked.get() + 1),
                Incoming::Error => told.borrow_mut().push(dialect::code_of(payload).unwrap_or("an error without a code").into()),
                Incoming::Control | Incoming::Unknown => {}
            }
            Next::Go
        };
        readers.push(Reader::start(&context, joined.connection, joined.inbox, handler, || {}));
    }
    let (begin_ns, end_ns) = context.ready().await;
    stage.begin(context.window_start_ns(), end_ns);
    let sent = Rc::new(Cell::new(0_u64));
    let pacer = Rc::new(Pacer::new(begin_ns, end_ns, options.rate.max(1.0)));
    let sending = pacer.keep(20_000, |message, intended_ns| {
        let sender = usize::try_from(message).unwrap_or(0) % senders.len();
        let (connection, template, number) = &senders[sender];
        let stamp = Stamp { sender: u32::try_from(sender).unwrap_or(0), number: number.get(), intended_ns };
        number.set(number.get() + 1);
        sent.set(sent.get() + 1);
        connection.queue(template.borrow_mut().stamped(stamp));
        connection.flush();
    });
    sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))?;
    context.finish(DRAIN_MS, || received.get() < sent.get() || acked.get() < sent.get()).await;
    leave(readers).await;
    for code in told.borrow().iter() {
        count(errors, code);
    }
    for (what, came) in [("a message that did not come", &received), ("an acknowledgement that did not come", &acked)] {
        (came.get()..sent.get()).for_each(|_| count(errors, what));
    }
    Ok(())
}

/// Parameters of newcomers during the attack.
#[derive(Clone, Copy)]
pub struct Newcomers {
    /// The session that they join; each joins one of its own if there is none.
    pub session: Option<&'static str>,
    /// Their pause between the upgrade and the hello.
    pub hesitate_ms: u64,
}

/// Newcomers, ten a second, each with a connection of its own. The time from the connect to the welcome is booked, without their
/// own pause.
pub fn come(stage: &Stage, gateway: SocketAddr, tls: Option<&Arc<ClientConfig>>, newcomers: Newcomers) -> Felt {
    let felt = Mutex::new(Felt { latency: histogram(), errors: Counts::new() });
    std::thread::scope(|scope| {
        every(stage, NEWCOMER_EVERY_MS, |number, began_ns| {
            let felt = &felt;
            scope.spawn(move || {
                let entered = enter(stage, gateway, tls, newcomers, number);
                let took_ns = (now_ns() - began_ns).saturating_sub(newcomers.hesitate_ms * 1_000_000);
                book(felt, entered, took_ns);
            });
        });
    });
    felt.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn enter(
    stage: &Stage,
    gateway: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    newcomers: Newcomers,
    number: u64,
) -> Result<(), String> {
    let client = format!("newcomer-{}", number % NEWCOMERS);
    let token = stage.token(&client, usize::try_from(number).unwrap_or(0))?;
    let session = newcomers.session.map_or_else(|| format!("newcomers.{number}"), str::to_owned);
    let hello = Hello { client, token, session, rooms: Vec::new() };
    let hesitation = Duration::from_millis(newcomers.hesitate_ms);
    let stream = Door::new(gateway, Ipv4Addr::LOCALHOST).connect().map_err(|error| format!("no connection: {error}"))?;
    let Some(config) = tls else {
        let mut stream = stream;
        return client::enter(&mut stream, &hello, hesitation).map(|_| ());
    };
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let session = ClientConnection::new(Arc::clone(config), name).map_err(|error| error.to_string())?;
    client::enter(&mut StreamOwned::new(session, stream), &hello, hesitation).map(|_| ())
}

/// Asks for `/healthz` twenty times a second, each time over a connection of its own.
pub fn probe(stage: &Stage, admin: SocketAddr) -> Felt {
    let felt = Mutex::new(Felt { latency: histogram(), errors: Counts::new() });
    every(stage, PROBE_EVERY_MS, |_, began_ns| {
        let answer = scrape::get(admin, "/healthz").map_err(|error| format!("/healthz: {}", error.kind()));
        let good = answer.and_then(|answer| {
            let status = answer.lines().next().unwrap_or_default().to_owned();
            if status.split(' ').nth(1) == Some("200") { Ok(()) } else { Err(format!("/healthz: {status:?}")) }
        });
        book(&felt, good, now_ns() - began_ns);
    });
    felt.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Calls at fixed times of the window, with the intended time.
fn every(stage: &Stage, every_ms: u64, mut call: impl FnMut(u64, u64)) {
    stage.wait_for_beginning();
    let (start_ns, end_ns) = stage.window();
    let mut number = 0;
    let mut due_ns = start_ns;
    while due_ns < end_ns && !stage.is_over() {
        let now = now_ns();
        if now < due_ns {
            sleep_ns((due_ns - now).min(20_000_000));
            continue;
        }
        call(number, due_ns);
        number += 1;
        due_ns += every_ms * 1_000_000;
    }
    while now_ns() < end_ns && !stage.is_over() {
        sleep_ms(1);
    }
}

fn book(felt: &Mutex<Felt>, outcome: Result<(), String>, took_ns: u64) {
    let Ok(mut felt) = felt.lock() else { return };
    match outcome {
        Ok(()) => felt.latency.saturating_record(took_ns),
        Err(why) => *felt.errors.entry(why).or_default() += 1,
    }
}
