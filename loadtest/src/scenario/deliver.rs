//! The scenarios in which one client's message reaches others: `relay`, `fanout`, `rooms`, `channel`, and `slow`'s load.
//!
//! They are one engine over groups. A group has senders and receivers; a message of a sender is done when it is acknowledged and
//! all receivers of the group have it. A closed loop keeps a number of bursts on their way a sender.

use super::{DRAIN_MS, Measured, Reader, check_open_files, common_figures, leave, make_all, plan};
use crate::clock::now_ns;
use crate::dialect::Incoming;
use crate::engine::connection::{Connection, Next};
use crate::engine::pacer::Pacer;
use crate::engine::run::{Context, run};
use crate::engine::stats::{Stats, Timing};
use crate::ledger::{Ledger, Loss};
use crate::options::Options;
use crate::session::{Access, Joined, Member};
use crate::stamp::{BYTES, Stamp, Template};
use crate::target::Target;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// The senders and receivers of the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Many sessions of two.
    Relay,
    /// A single sender, `connections` readers, one session.
    Fanout,
    /// As `Fanout`, the readers in a channel and the sender outside it.
    Channel,
    /// A single session; every member sends to its room.
    Rooms,
}

/// A connection of the scenario.
#[derive(Clone, Debug)]
struct Seat {
    client: String,
    session: String,
    rooms: Vec<String>,
    /// JSON, or empty for the session.
    to: String,
    group: usize,
    /// Index among its group's senders.
    sends_as: Option<usize>,
    receives: bool,
    /// Joined, and never read from.
    stalled: bool,
}

/// A sender's state that all workers see.
#[derive(Default)]
struct Progress {
    delivered: AtomicU64,
    moved: Notify,
}

struct Group {
    first_sender: u32,
    /// Number of receivers of each message of a sender.
    fan: u64,
    senders: Vec<Progress>,
}

struct Layout {
    seats: Vec<Seat>,
    groups: Vec<Group>,
}

impl Layout {
    fn new(shape: Shape, access: &Access, options: &Options, connections: usize, stalled: usize) -> Self {
        let mut seats = Vec::new();
        let seat = |client: String, session: String| Seat {
            client,
            session,
            rooms: Vec::new(),
            to: String::new(),
            group: 0,
            sends_as: None,
            receives: true,
            stalled: false,
        };
        match shape {
            Shape::Relay => {
                for pair in 0..connections / 2 {
                    let session = access.session(pair);
                    seats.push(Seat { group: pair, ..seat(format!("reader-{pair}"), session.clone()) });
                    seats.push(Seat {
                        group: pair,
                        sends_as: Some(0),
                        receives: false,
                        ..seat(format!("sender-{pair}"), session)
                    });
                }
            }
            Shape::Fanout | Shape::Channel => {
                let readers = if shape == Shape::Channel { access.channel() } else { access.session(0) };
                for reader in 0..connections {
                    seats.push(Seat {
                        receives: reader >= stalled,
                        stalled: reader < stalled,
                        ..seat(format!("reader-{reader}"), readers.clone())
                    });
                }
                let to = if shape == Shape::Channel { format!("\"{readers}\"") } else { String::new() };
                seats.push(Seat { to, sends_as: Some(0), receives: false, ..seat("sender".into(), access.session(0)) });
            }
            Shape::Rooms => {
                let size = options.room_size.max(2);
                for member in 0..connections / size * size {
                    let room = format!("room-{}", member / size);
                    let (to, group) = (format!("\"room:{room}\""), member / size);
                    let client = format!("member-{member}");
                    seats.push(Seat {
                        rooms: vec![room],
                        to,
                        group,
                        sends_as: Some(member % size),
                        ..seat(client, access.session(0))
                    });
                }
            }
        }
        let count = seats.iter().map(|seat| seat.group + 1).max().unwrap_or(0);
        let (mut senders, mut receivers, mut own) = (vec![0; count], vec![0; count], vec![0; count]);
        for seat in &seats {
            senders[seat.group] += usize::from(seat.sends_as.is_some());
            receivers[seat.group] += u64::from(seat.receives);
            own[seat.group] = own[seat.group].max(u64::from(seat.receives && seat.sends_as.is_some()));
        }
        let mut first_sender = 0;
        let mut groups = Vec::new();
        for group in 0..count {
            let progress = (0..senders[group]).map(|_| Progress::default()).collect();
            // Nobody gets their own message back.
            groups.push(Group { first_sender, fan: receivers[group] - own[group], senders: progress });
            first_sender += u32::try_from(senders[group]).unwrap_or(u32::MAX);
        }
        Self { seats, groups }
    }
}

struct Sender {
    number: u32,
    place: usize,
    layout: Arc<Layout>,
    group: usize,
    connection: Rc<Connection>,
    stats: Rc<Stats>,
    template: RefCell<Template>,
    burst: u64,
    in_flight: u64,
    /// `true` if the server acknowledges messages.
    acks: bool,
    closed_loop: bool,
    sent: Cell<u64>,
    acked: Cell<u64>,
    started: Cell<bool>,
}

impl Sender {
    fn done(&self) -> u64 {
        let group = &self.layout.groups[self.group];
        let delivered = group.senders[self.place].delivered.load(Ordering::Acquire).checked_div(group.fan).unwrap_or(u64::MAX);
        if self.acks { delivered.min(self.acked.get()) } else { delivered }
    }

    fn send_burst(&self, intended_ns: u64) {
        for _ in 0..self.burst {
            let number = self.sent.get();
            self.sent.set(number + 1);
            self.connection.queue(self.template.borrow_mut().stamped(Stamp { sender: self.number, number, intended_ns }));
        }
        self.connection.flush();
    }

    /// In a closed loop: sends the messages that may be under way now.
    fn kick(&self) {
        while self.closed_loop
            && self.started.get()
            && self.sent.get() + self.burst <= self.done().saturating_add(self.in_flight * self.burst)
            && self.stats.sending()
        {
            self.send_burst(now_ns());
        }
    }

    fn waiting(&self) -> bool {
        self.done() < self.sent.get()
    }
}

/// Senders of a group that run on this worker, by their index.
type LocalSenders = Rc<RefCell<Vec<Option<Rc<Sender>>>>>;

struct Receiver {
    access: Rc<Access>,
    layout: Arc<Layout>,
    stats: Rc<Stats>,
    group: usize,
    locals: LocalSenders,
    own: Option<Rc<Sender>>,
    ledgers: RefCell<Vec<Ledger>>,
    now: Cell<u64>,
    touched: RefCell<Vec<usize>>,
}

impl Receiver {
    fn take(&self, payload: &[u8]) -> Next {
        if self.now.get() == 0 {
            self.now.set(now_ns());
        }
        let now_ns = self.now.get();
        match self.access.read(payload) {
            Incoming::Message(stamp) => self.message(stamp, payload, now_ns),
            Incoming::Ack(stamp) => {
                if let Some(own) = &self.own
                    && own.number == stamp.sender
                {
                    own.acked.set(own.acked.get() + 1);
                    self.stats.time(Timing::Ack, stamp.intended_ns, now_ns);
                }
            }
            Incoming::Control => {}
            Incoming::Error | Incoming::Unknown => {
                self.stats
                    .problem(|| format!("the server said: {}", String::from_utf8_lossy(&payload[..payload.len().min(300)])));
            }
        }
        Next::Go
    }

    fn message(&self, stamp: Stamp, payload: &[u8], now_ns: u64) {
        let group = &self.layout.groups[self.group];
        let place = stamp.sender.wrapping_sub(group.first_sender) as usize;
        let Some(progress) = group.senders.get(place) else {
            self.stats.problem(|| format!("a message of sender {} reached a group it was not for", stamp.sender));
            return;
        };
        self.ledgers.borrow_mut()[place].receive(stamp.number);
        self.stats.time(Timing::Message, stamp.intended_ns, now_ns);
        self.stats.completed.add(1);
        self.stats.delivered_bytes.add(payload.len() as u64);
        progress.delivered.fetch_add(1, Ordering::AcqRel);
        let mut touched = self.touched.borrow_mut();
        if !touched.contains(&place) {
            touched.push(place);
        }
    }

    /// After a receive: notifies the senders whose messages have arrived.
    fn after(&self) {
        self.now.set(0);
        let mut touched = self.touched.take();
        for place in touched.drain(..) {
            match self.locals.borrow().get(place) {
                Some(Some(sender)) => sender.kick(),
                _ => self.layout.groups[self.group].senders[place].moved.notify_one(),
            }
        }
        self.touched.replace(touched);
        if let Some(own) = &self.own {
            own.kick();
        }
    }
}

/// The results of a worker.
#[derive(Default)]
struct Books {
    sent: Vec<(u32, u64, u64)>,
    ledgers: Vec<(u32, Ledger)>,
}

/// Runs a shape once. `stalled` readers of a fan-out join and are never read from.
pub fn measure(
    shape: Shape,
    label: &str,
    target: &Target,
    options: &Options,
    payload_bytes: usize,
    stalled: usize,
) -> Result<Measured, String> {
    let connections = options.connections.unwrap_or(if shape == Shape::Relay { 2000 } else { 1000 });
    check_open_files(connections + 1)?;
    if !target.speaks_envelopes() && payload_bytes < BYTES {
        return Err(format!("a bare server needs --payload-bytes of at least {BYTES}: every message bears a mark of that size"));
    }
    let access = Access::new(target);
    let layout = Arc::new(Layout::new(shape, &access, options, connections, stalled));
    let plan = plan(label, target, options);
    let run = run(&plan, |context| work(context, access.clone(), Arc::clone(&layout), options, payload_bytes))?;
    let mut loss = Loss::default();
    let mut sent_of = std::collections::BTreeMap::new();
    for (number, sent, acked) in run.results.iter().flat_map(|books| &books.sent) {
        loss.sent += sent;
        if access.acknowledges() {
            loss.unanswered += sent.saturating_sub(*acked);
        }
        sent_of.insert(*number, *sent);
    }
    for (number, ledger) in run.results.iter().flat_map(|books| &books.ledgers) {
        loss.book(ledger, sent_of.get(number).copied().unwrap_or(0));
    }
    let (noun, plural) = if shape == Shape::Relay { ("message", "messages") } else { ("delivery", "deliveries") };
    Ok(common_figures(run, noun, plural, loss))
}

async fn work(
    context: Context,
    access: Access,
    layout: Arc<Layout>,
    options: &Options,
    payload_bytes: usize,
) -> Result<Books, String> {
    let stats = Rc::clone(&context.stats);
    let access = Rc::new(access);
    // Whole groups to a worker, if there are several; else the members are spread.
    let by_group = layout.groups.len() > 1;
    let mine = (0..layout.seats.len()).filter(|seat| {
        let key = if by_group { layout.seats[*seat].group } else { *seat };
        key % context.workers == context.worker
    });
    let receive_bytes = ((payload_bytes + 512) * options.burst * options.in_flight).clamp(2048, 64 << 10);
    let joined = make_all(mine, 64, |seat| {
        let (access, layout, stats) = (Rc::clone(&access), Arc::clone(&layout), Rc::clone(&stats));
        async move {
            let place = &layout.seats[seat];
            let rooms: Vec<&str> = place.rooms.iter().map(String::as_str).collect();
            let socket_buffer_bytes = place.stalled.then_some(4096);
            let member = Member {
                client: &place.client,
                session: &place.session,
                rooms: &rooms,
                resume: None,
                receive_bytes,
                socket_buffer_bytes,
            };
            access.join(&stats, member, seat).await.map(|joined| (seat, joined))
        }
    })
    .await?;
    let mut worker = Worker {
        context: &context,
        access,
        layout: &layout,
        options,
        payload_bytes,
        locals: Vec::new(),
        receivers: Vec::new(),
        senders: Vec::new(),
        readers: Vec::new(),
        stalled: Vec::new(),
    };
    worker.locals.extend(layout.groups.iter().map(|group| Rc::new(RefCell::new(vec![None; group.senders.len()]))));
    for (seat, joined) in joined {
        worker.place(seat, joined);
    }
    worker.drive().await?;
    context.finish(DRAIN_MS, || worker.senders.iter().any(|sender| sender.waiting())).await;
    Ok(worker.leave().await)
}

struct Worker<'a> {
    context: &'a Context,
    access: Rc<Access>,
    layout: &'a Arc<Layout>,
    options: &'a Options,
    payload_bytes: usize,
    locals: Vec<LocalSenders>,
    receivers: Vec<(usize, Rc<Receiver>)>,
    senders: Vec<Rc<Sender>>,
    readers: Vec<Reader>,
    stalled: Vec<Joined>,
}

impl Worker<'_> {
    fn place(&mut self, seat: usize, joined: Joined) {
        let place = &self.layout.seats[seat];
        if place.stalled {
            self.stalled.push(joined);
            return;
        }
        let group = &self.layout.groups[place.group];
        let own = place.sends_as.map(|sends_as| {
            Rc::new(Sender {
                number: group.first_sender + u32::try_from(sends_as).unwrap_or(u32::MAX),
                place: sends_as,
                layout: Arc::clone(self.layout),
                group: place.group,
                connection: Rc::clone(&joined.connection),
                stats: Rc::clone(&self.context.stats),
                template: RefCell::new(self.access.message(
                    &place.session,
                    &place.to,
                    self.payload_bytes,
                    joined.connection.mask(),
                )),
                burst: self.options.burst.max(1) as u64,
                in_flight: self.options.in_flight.max(1) as u64,
                acks: self.access.acknowledges(),
                closed_loop: self.options.rate.is_none(),
                sent: Cell::new(0),
                acked: Cell::new(0),
                started: Cell::new(false),
            })
        });
        if let (Some(own), Some(sends_as)) = (&own, place.sends_as) {
            self.locals[place.group].borrow_mut()[sends_as] = Some(Rc::clone(own));
            self.senders.push(Rc::clone(own));
        }
        let receiver = Rc::new(Receiver {
            access: Rc::clone(&self.access),
            layout: Arc::clone(self.layout),
            stats: Rc::clone(&self.context.stats),
            group: place.group,
            locals: Rc::clone(&self.locals[place.group]),
            own,
            ledgers: RefCell::new(vec![Ledger::default(); group.senders.len()]),
            now: Cell::new(0),
            touched: RefCell::default(),
        });
        self.receivers.push((seat, Rc::clone(&receiver)));
        let after = Rc::clone(&receiver);
        let handler = move |payload: &[u8]| receiver.take(payload);
        self.readers.push(Reader::start(self.context, joined.connection, joined.inbox, handler, move || after.after()));
    }

    async fn drive(&self) -> Result<(), String> {
        let (begin_ns, end_ns) = self.context.ready().await;
        for sender in &self.senders {
            sender.started.set(true);
            sender.kick();
        }
        if self.context.workers > 1 && self.layout.groups.len() == 1 {
            for sender in self.senders.iter().cloned() {
                tokio_uring::spawn(async move {
                    loop {
                        sender.layout.groups[sender.group].senders[sender.place].moved.notified().await;
                        sender.kick();
                    }
                });
            }
        }
        let Some(rate) = self.options.rate else { return Ok(()) };
        if self.senders.is_empty() {
            return Ok(());
        }
        // The rate is for all senders; this worker has its part of them.
        let all: usize = self.layout.groups.iter().map(|group| group.senders.len()).sum();
        let mine = rate * self.senders.len() as f64 / all as f64 / self.options.burst.max(1) as f64;
        let pacer = Rc::new(Pacer::new(begin_ns, end_ns, mine));
        let count = self.senders.len() as u64;
        let sending = pacer.keep(self.options.quantum_us * 1000, |message, due_ns| {
            self.context.stats.time(Timing::SentLate, due_ns, now_ns());
            self.senders[usize::try_from(message % count).unwrap_or(0)].send_burst(due_ns);
        });
        sending.await.map_err(|error| format!("the schedule's timer failed: {error}"))
    }

    async fn leave(self) -> Books {
        leave(self.readers).await;
        for joined in &self.stalled {
            joined.connection.cut();
        }
        let mut books = Books { sent: Vec::new(), ledgers: Vec::new() };
        books.sent.extend(self.senders.iter().map(|sender| (sender.number, sender.sent.get(), sender.acked.get())));
        for (seat, receiver) in &self.receivers {
            let place = &self.layout.seats[*seat];
            let first = self.layout.groups[place.group].first_sender;
            for (index, ledger) in receiver.ledgers.borrow().iter().enumerate() {
                if place.receives && place.sends_as != Some(index) {
                    books.ledgers.push((first + u32::try_from(index).unwrap_or(u32::MAX), ledger.clone()));
                } else if ledger.received > 0 {
                    self.context
                        .stats
                        .problem(|| format!("{} was delivered {} of its own messages", place.client, ledger.received));
                }
            }
        }
        books
    }
}
