//! `echo`: every message comes back to its sender. Any echo server will do.

use super::{DRAIN_MS, Measured, Reader, check_open_files, common_figures, leave, make_all, plan};
use crate::clock::now_ns;
use crate::dialect;
use crate::engine::connection::{Connection, Ended, Next};
use crate::engine::pacer::Pacer;
use crate::engine::run::{Context, run};
use crate::engine::stats::{Stats, Timing};
use crate::ledger::{Ledger, Loss};
use crate::options::Options;
use crate::stamp::{BYTES, Stamp, Template};
use crate::target::Target;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

struct Client {
    number: u32,
    connection: Rc<Connection>,
    stats: Rc<Stats>,
    template: RefCell<Template>,
    /// The payload that must come back, apart from its mark.
    rest: Vec<u8>,
    sent: Cell<u64>,
    ledger: RefCell<Ledger>,
}

impl Client {
    fn send(&self, intended_ns: u64) {
        let number = self.sent.get();
        self.sent.set(number + 1);
        self.connection.queue(self.template.borrow_mut().stamped(Stamp { sender: self.number, number, intended_ns }));
    }

    fn receive(&self, payload: &[u8], now_ns: u64) {
        match Stamp::read(payload) {
            Some(stamp) if stamp.sender == self.number && payload[BYTES..] == self.rest[..] => {
                self.ledger.borrow_mut().receive(stamp.number);
                self.stats.time(Timing::Message, stamp.intended_ns, now_ns);
                self.stats.completed.add(1);
                self.stats.delivered_bytes.add(payload.len() as u64);
            }
            _ => self.stats.problem(|| format!("an echo of {} bytes is not what was sent", payload.len())),
        }
    }

    fn waiting(&self) -> bool {
        self.ledger.borrow().received < self.sent.get()
    }
}

/// Runs the scenario once.
pub fn measure(label: &str, target: &Target, options: &Options, payload_bytes: usize) -> Result<Measured, String> {
    let connections = options.connections.unwrap_or(1000);
    check_open_files(connections)?;
    if payload_bytes < BYTES {
        return Err(format!("echo needs --payload-bytes of at least {BYTES}: every message bears a mark of that size"));
    }
    let endpoint = target.echo_endpoint();
    let plan = plan(label, target, options);
    let run = run(&plan, |context| {
        let endpoint = endpoint.clone();
        async move {
            let mine = context.share(connections);
            let stats = Rc::clone(&context.stats);
            let receive_bytes = ((payload_bytes + 14) * options.in_flight.max(options.burst)).clamp(2048, 64 << 10);
            let opened = make_all(mine, 64, |number| {
                let (endpoint, stats) = (endpoint.clone(), Rc::clone(&stats));
                async move {
                    let opened = Connection::open(&endpoint, &stats, receive_bytes, None).await;
                    opened.map(|opened| (number, opened)).map_err(|ended: Ended| format!("connection {number}: {ended}"))
                }
            })
            .await?;
            let closed_loop = options.rate.is_none();
            let mut clients = Vec::new();
            let mut readers = Vec::new();
            for (number, (connection, inbox)) in opened {
                let client = Rc::new(Client {
                    number: u32::try_from(number).unwrap_or(u32::MAX),
                    template: RefCell::new(dialect::bare_message(payload_bytes, connection.mask())),
                    connection: Rc::clone(&connection),
                    stats: Rc::clone(&stats),
                    rest: dialect::bare_payload(payload_bytes)[BYTES..].to_vec(),
                    sent: Cell::new(0),
                    ledger: RefCell::default(),
                });
                clients.push(Rc::clone(&client));
                let now = Rc::new(Cell::new(0));
                let (in_receive, sender) = (Rc::clone(&now), Rc::clone(&client));
                let handler = move |payload: &[u8]| {
                    if in_receive.get() == 0 {
                        in_receive.set(now_ns());
                    }
                    client.receive(payload, in_receive.get());
                    if closed_loop && client.stats.sending() {
                        client.send(now_ns());
                    }
                    Next::Go
                };
                let after = move || {
                    now.set(0);
                    sender.connection.flush();
                };
                readers.push(Reader::start(&context, connection, inbox, handler, after));
            }
            drive(&context, &clients, options).await?;
            context.finish(DRAIN_MS, || clients.iter().any(|client| client.waiting())).await;
            leave(readers).await;
            let mut loss = Loss::default();
            for client in &clients {
                loss.sent += client.sent.get();
                loss.book(&client.ledger.borrow(), client.sent.get());
            }
            Ok(loss)
        }
    })?;
    let mut loss = Loss::default();
    run.results.iter().for_each(|worker| loss.add(worker));
    Ok(common_figures(run, "message", "messages", loss))
}

/// Starts the closed loop, or keeps the schedule to its end.
async fn drive(context: &Context, clients: &[Rc<Client>], options: &Options) -> Result<(), String> {
    let (begin_ns, end_ns) = context.ready().await;
    if clients.is_empty() {
        return Ok(());
    }
    let Some(rate) = options.rate else {
        for client in clients {
            for _ in 0..options.in_flight.max(1) {
                client.send(now_ns());
            }
            client.connection.flush();
        }
        return Ok(());
    };
    let pacer = Rc::new(Pacer::new(begin_ns, end_ns, rate / context.workers as f64));
    let count = clients.len() as u64;
    let sending = pacer.keep(options.quantum_us * 1000, |message, due_ns| {
        context.stats.time(Timing::SentLate, due_ns, now_ns());
        let client = &clients[usize::try_from(message % count).unwrap_or(0)];
        client.send(due_ns);
        client.connection.flush();
    });
    sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))
}
