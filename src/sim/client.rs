//! Clients: what they send, how they read, and what they tell the oracle of it.

use super::oracle::{Begin, addresses};
use super::wire::{self, ServerFrame};
use super::world::{World, token};
use crate::time::Tick;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

pub const ROOMS: [&str; 3] = ["ops", "dev", "lab"];
pub const ROLES: [&str; 2] = ["agent", "lead"];
/// Bytes the server's side may have unread.
const TO_SERVER_MAX: usize = 32 * 1024;
/// A client that broke its connection comes back no sooner: by then what it had sent is handled or lost.
const DOUBT_NS: u64 = 150_000_000;
/// Messages remembered to be sent again.
const PAST_MAX: usize = 40;

/// Frames of history, read and as they came.
type Page = Vec<(Value, Vec<u8>)>;

/// How a client's account is spoilt on purpose, at its n-th delivered message.
#[derive(Clone, Copy, Debug)]
pub enum Sabotage {
    Drop(u64),
    Repeat(u64),
    Change(u64),
}

#[derive(Clone, Debug)]
pub struct Past {
    session: String,
    id: String,
    text: String,
    to: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum What {
    Message {
        target: String,
        to: Vec<String>,
    },
    Ephemeral,
    Join(String),
    Leave(String, u64),
    Ping {
        acked_max: u64,
    },
    Attach {
        asked: Vec<String>,
        resume: Option<u64>,
    },
    Other(&'static str),
    /// Not answered, or only by an error.
    Silent,
    /// An error is due.
    Bad,
}

#[derive(Debug)]
struct Sent {
    id: String,
    session: String,
    what: What,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Http,
    Hello,
    Open,
    Closing,
    /// By an HTTP answer.
    Refused,
}

#[derive(Debug)]
pub struct Link {
    pub socket: usize,
    tx: VecDeque<u8>,
    rx: Vec<u8>,
    pub phase: Phase,
    /// In the order of the connection's inbound messages, the first is number 1.
    sent: Vec<Sent>,
    pub views: BTreeMap<String, usize>,
    pages: BTreeMap<String, (u64, Page)>,
    acked: BTreeMap<String, u64>,
    hello_rooms: Vec<String>,
    hello_resume: Option<u64>,
    next_action: u64,
    next_read: u64,
    /// Reads nothing until then.
    stalled_until: u64,
    pub close_code: Option<u16>,
}

#[derive(Debug)]
pub struct Client {
    pub id: String,
    sub: String,
    roles: Vec<String>,
    home: String,
    echo: bool,
    acks: bool,
    hostile: bool,
    slow: bool,
    /// The last position held of each session.
    pub held: BTreeMap<String, u64>,
    epochs: BTreeMap<String, String>,
    past: VecDeque<Past>,
    unacked: Vec<Past>,
    pub link: Option<Link>,
    away_until: u64,
    counter: u64,
    last_text: String,
    pub closes: BTreeMap<u16, u64>,
    pub answers: BTreeMap<String, u64>,
}

pub struct Casting<'a> {
    pub sub: &'a str,
    pub tab: &'a str,
    pub roles: &'a [&'a str],
    pub home: &'a str,
    pub echo: bool,
    pub acks: bool,
    pub hostile: bool,
    pub slow: bool,
}

impl Client {
    pub const fn hostile(&self) -> bool {
        self.hostile
    }

    pub fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.phase == Phase::Open)
    }

    /// Comes back no sooner than that.
    pub const fn stay_away_ms(&mut self, now: &Tick, ms: u64) {
        self.away_until = now.mono_ns + ms * 1_000_000;
    }

    /// What it waits for an answer to.
    pub fn waiting(&self) -> Vec<String> {
        let sent = self.link.iter().flat_map(|link| &link.sent);
        sent.filter(|sent| !sent.answered && due_an_answer(&sent.what, self.acks))
            .map(|sent| format!("{} {} {:?}", sent.session, sent.id, sent.what))
            .collect()
    }
}

fn due_an_answer(what: &What, acks: bool) -> bool {
    match what {
        What::Silent | What::Ephemeral => false,
        What::Message { .. } => acks,
        _ => true,
    }
}

impl World {
    pub fn cast(&mut self, casting: &Casting<'_>) -> usize {
        let id = if casting.tab.is_empty() { casting.sub.to_owned() } else { format!("{}/{}", casting.sub, casting.tab) };
        let roles: Vec<String> = casting.roles.iter().map(|role| (*role).to_owned()).collect();
        if !casting.hostile {
            self.oracle.person(&id, casting.sub, roles.clone());
        }
        let away_until = self.now_ns + self.random.below(300_000_000);
        self.clients.push(Client {
            id,
            sub: casting.sub.to_owned(),
            roles,
            home: casting.home.to_owned(),
            echo: casting.echo,
            acks: casting.acks,
            hostile: casting.hostile,
            slow: casting.slow,
            held: BTreeMap::new(),
            epochs: BTreeMap::new(),
            past: VecDeque::new(),
            unacked: Vec::new(),
            link: None,
            away_until,
            counter: 0,
            last_text: String::new(),
            closes: BTreeMap::new(),
            answers: BTreeMap::new(),
        });
        self.clients.len() - 1
    }

    pub fn client_due(&self, client: &Client) -> Option<u64> {
        let Some(link) = &client.link else {
            return (!(self.settling && client.hostile)).then_some(client.away_until);
        };
        let socket = &self.net.sockets[link.socket];
        let reads = !socket.to_client.is_empty() || socket.server_fin || socket.server_closed;
        let read = reads.then_some(link.next_read.max(link.stalled_until));
        let writes = !link.tx.is_empty() && socket.to_server.len() < TO_SERVER_MAX;
        let write = writes.then_some(self.now_ns + 100_000);
        let act = (!self.settling && link.phase == Phase::Open || client.hostile).then_some(link.next_action);
        [read, write, act].into_iter().flatten().min()
    }

    /// Lets a client do what is due; whether it did anything.
    pub fn client_step(&mut self, c: usize) -> bool {
        let now = self.now_ns;
        if self.clients[c].link.is_none() {
            if now < self.clients[c].away_until || self.settling && self.clients[c].hostile {
                return false;
            }
            self.open_link(c);
            return true;
        }
        let mut did = self.push(c);
        let Some(link) = &self.clients[c].link else { return did };
        if now >= link.next_read.max(link.stalled_until) {
            did |= self.read(c);
        }
        let Some(link) = &self.clients[c].link else { return true };
        let acts = link.phase == Phase::Open && !self.settling || self.clients[c].hostile;
        if acts && now >= link.next_action {
            did = true;
            if self.clients[c].hostile { self.act_hostile(c) } else { self.act(c) }
        }
        did
    }

    fn link(&mut self, c: usize) -> &mut Link {
        self.clients[c].link.as_mut().expect("a client acts on a link")
    }

    fn open_link(&mut self, c: usize) {
        let capacity = if self.clients[c].slow { self.random.between(300, 3000) } else { self.random.between(2_000, 200_000) };
        let shard = self.random.index(self.seats.len());
        let socket = self.connect(usize::try_from(capacity).unwrap(), shard);
        let next_action = self.now_ns + self.random.below(20_000_000);
        let mut tx = VecDeque::new();
        tx.extend(wire::REQUEST);
        self.clients[c].link = Some(Link {
            socket,
            tx,
            rx: Vec::new(),
            phase: Phase::Http,
            sent: Vec::new(),
            views: BTreeMap::new(),
            pages: BTreeMap::new(),
            acked: BTreeMap::new(),
            hello_rooms: Vec::new(),
            hello_resume: None,
            next_action,
            next_read: 0,
            stalled_until: 0,
            close_code: None,
        });
        if self.random.percent(30) {
            // It does not wait for the 101.
            self.hello(c);
        }
    }

    pub fn hello(&mut self, c: usize) {
        let now_s = self.now().wall_s();
        let lifetime_s = if self.settling { 3600 } else { self.random.between(20, 600) };
        let client = &self.clients[c];
        let (session, id) = (client.home.clone(), client.id.clone());
        let auth_token = token(&client.sub, &["s.*", "channel:c.*"], &client.roles, now_s, lifetime_s);
        let (echo, acks) = (client.echo, client.acks);
        let mut payload = json!({"client_id": id, "auth_token": auth_token, "echo": echo, "acks": acks});
        let (rooms, resume) = self.start_keys(c, &session, &mut payload);
        let text = json!({"type": "rw.hello", "id": "hello", "session_id": session, "payload": payload}).to_string();
        let link = self.link(c);
        (link.hello_rooms, link.hello_resume) = (rooms, resume);
        self.send(c, "hello", &session, What::Other("rw.welcome"), &text);
    }

    /// Where a client starts, and the rooms it names.
    fn start_keys(&mut self, c: usize, session: &str, payload: &mut Value) -> (Vec<String>, Option<u64>) {
        let mut rooms = Vec::new();
        if session.starts_with("s.") && self.random.percent(40) {
            rooms.push(self.random.pick(&ROOMS).to_owned());
            payload["rooms"] = json!(rooms);
        }
        let client = &self.clients[c];
        let held = client.held.get(session).copied().zip(client.epochs.get(session).cloned());
        let mut resume = None;
        match held {
            Some((seq, epoch)) if self.settling || self.random.percent(85) => {
                payload["resume"] = json!({"epoch": epoch, "seq": seq});
                resume = Some(seq);
            }
            _ => {
                let start = [json!("cursor"), json!("head"), json!("oldest"), json!({"last": 5})];
                payload["start"] = self.random.pick(&start);
            }
        }
        (rooms, resume)
    }

    fn send(&mut self, c: usize, id: &str, session: &str, what: What, text: &str) {
        let mut out = Vec::new();
        wire::message(&mut out, 1, text.as_bytes(), &mut self.random);
        let link = self.link(c);
        link.tx.extend(out);
        link.sent.push(Sent { id: id.to_owned(), session: session.to_owned(), what, answered: false });
    }

    fn push(&mut self, c: usize) -> bool {
        let random = self.random.next();
        let link = self.clients[c].link.as_mut().expect("a client pushes on a link");
        let socket = &mut self.net.sockets[link.socket];
        if socket.client_fin || socket.client_reset {
            link.tx.clear();
            return false;
        }
        let most = link.tx.len().min(TO_SERVER_MAX.saturating_sub(socket.to_server.len()));
        if most == 0 {
            return false;
        }
        let count = match random % 4 {
            0 => 1,
            1 => 1 + usize::try_from(random >> 8).unwrap() % most,
            _ => most,
        };
        socket.to_server.extend(link.tx.drain(..count));
        true
    }

    fn read(&mut self, c: usize) -> bool {
        let (now, random, slow) = (self.now_ns, self.random.next(), self.clients[c].slow && !self.settling);
        let link = self.clients[c].link.as_mut().expect("a client reads on a link");
        let socket = &mut self.net.sockets[link.socket];
        if socket.to_client.is_empty() {
            if socket.server_fin || socket.server_closed {
                self.end_link(c, false);
                return true;
            }
            return false;
        }
        let most = if slow { 600 } else { 64 * 1024 };
        let most = socket.to_client.len().min(most);
        let count = if random % 3 == 0 { 1 + usize::try_from(random >> 8).unwrap() % most } else { most };
        link.rx.extend(socket.to_client.drain(..count));
        link.next_read = now + if slow { 5_000_000 + random % 30_000_000 } else { random % 2_000_000 };
        self.trace(&[6, c as u64, count as u64]);
        if link_phase(self, c) == Some(Phase::Http) {
            let link = self.link(c);
            let Some(end) = link.rx.windows(4).position(|window| window == b"\r\n\r\n") else { return true };
            let head = String::from_utf8_lossy(&link.rx[..end]).into_owned();
            link.rx.drain(..end + 4);
            if head.starts_with("HTTP/1.1 101") {
                link.phase = Phase::Hello;
                if link.sent.is_empty() {
                    self.hello(c);
                }
            } else {
                let busy = ["503", "429", "408"].iter().any(|status| head.contains(status));
                if !busy && !self.clients[c].hostile {
                    self.oracle.wrong(format!("{}: the upgrade was answered {head}", self.clients[c].id));
                }
                self.link(c).phase = Phase::Refused;
                return true;
            }
        }
        while let Some(link) = &mut self.clients[c].link
            && link.phase != Phase::Refused
        {
            match wire::next_frame(&mut link.rx) {
                Ok(Some(frame)) => self.on_frame(c, &frame),
                Ok(None) => break,
                Err(what) => {
                    let rx = String::from_utf8_lossy(&link.rx[..link.rx.len().min(700)]).into_owned();
                    let complaint = format!("{}: {what}; after {:?}: {rx}", self.clients[c].id, self.clients[c].last_text);
                    self.oracle.wrong(complaint);
                    break;
                }
            }
        }
        true
    }

    /// The connection is over, or (`reset`) the client breaks it.
    pub fn end_link(&mut self, c: usize, reset: bool) {
        self.leave_in_doubt(c);
        let Some(link) = self.clients[c].link.take() else { return };
        let socket = &mut self.net.sockets[link.socket];
        if reset {
            socket.client_reset = true;
            socket.to_client.clear();
            socket.to_server.clear();
        } else {
            socket.client_fin = true;
        }
        self.trace(&[7, c as u64, u64::from(link.close_code.unwrap_or(0))]);
        if let Some(code) = link.close_code {
            *self.clients[c].closes.entry(code).or_default() += 1;
        }
        let most = if self.settling { 200_000_000 } else { self.random.pick(&[5_000_000, 100_000_000, 3_000_000_000]) };
        self.clients[c].away_until = self.now_ns + DOUBT_NS + self.random.below(most);
    }

    /// What was asked and not answered may have been done.
    fn leave_in_doubt(&mut self, c: usize) {
        let Some(link) = &self.clients[c].link else { return };
        let asked = link.sent.iter().filter(|sent| !sent.answered).filter_map(|sent| match &sent.what {
            What::Attach { asked, .. } => Some((sent.session.clone(), asked.clone())),
            What::Other("rw.welcome") => Some((sent.session.clone(), link.hello_rooms.clone())),
            _ => None,
        });
        let asked: Vec<(String, Vec<String>)> = asked.collect();
        let me = self.clients[c].id.clone();
        for (session, rooms) in asked {
            rooms.iter().for_each(|room| self.oracle.joining(&me, &session, room, 0));
        }
    }

    fn on_frame(&mut self, c: usize, frame: &ServerFrame) {
        self.trace(&[8, c as u64, frame.opcode.into(), frame.payload.len() as u64]);
        self.clients[c].last_text = String::from_utf8_lossy(&frame.payload).chars().take(300).collect();
        match frame.opcode {
            1 => match serde_json::from_slice::<Value>(&frame.payload) {
                Ok(envelope) => self.on_text(c, &envelope, &frame.payload),
                Err(error) => self.oracle.wrong(format!("a text that is no JSON: {error}")),
            },
            8 => {
                let code = frame.payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let mut out = Vec::new();
                wire::message(&mut out, 8, frame.payload.get(..2).unwrap_or_default(), &mut self.random);
                let link = self.link(c);
                link.close_code = code;
                if link.phase != Phase::Closing {
                    link.tx.extend(out);
                }
                link.phase = Phase::Closing;
                if !self.clients[c].hostile && matches!(code, Some(1002 | 1003 | 1007 | 1009 | 1011 | 4400 | 4403)) {
                    self.oracle.wrong(format!("{} was closed with {code:?}", self.clients[c].id));
                }
            }
            9 => {
                let mut out = Vec::new();
                wire::message(&mut out, 10, &frame.payload, &mut self.random);
                self.link(c).tx.extend(out);
            }
            10 => {}
            other => self.oracle.wrong(format!("a frame of opcode {other}")),
        }
    }

    fn on_text(&mut self, c: usize, envelope: &Value, text: &[u8]) {
        if self.clients[c].hostile {
            return;
        }
        let kind = envelope["type"].as_str().unwrap_or_default().to_owned();
        let session = envelope["session_id"].as_str().unwrap_or_default().to_owned();
        if !kind.starts_with("rw.") {
            return self.on_message(c, &session, envelope, text);
        }
        *self.clients[c].answers.entry(kind.clone()).or_default() += 1;
        let payload = &envelope["payload"];
        match kind.as_str() {
            "rw.caught_up" | "rw.gap" | "rw.presence" | "rw.history_begin" | "rw.history_end" => {
                self.on_event(c, &kind, &session, envelope);
            }
            "rw.auth.expiring" if self.random.percent(80) => self.refresh(c),
            "rw.auth.expiring" => {}
            "rw.goaway" => {}
            "rw.error" if envelope["id"] == "" => self.on_answer(c, &kind, &session, envelope),
            _ if envelope["id"].as_str().is_some_and(|id| id.starts_with("rw-")) => {}
            _ => self.on_answer(c, &kind, &session, envelope),
        }
        if kind == "rw.welcome" {
            let link = self.link(c);
            link.phase = if link.phase == Phase::Closing { Phase::Closing } else { Phase::Open };
            if payload["client_id"] != json!(self.clients[c].id) {
                self.oracle.wrong(format!("a welcome for {}", payload["client_id"]));
            }
            self.send_again(c);
        }
    }

    fn begin(&mut self, c: usize, session: &str, payload: &Value, asked: Vec<String>, resume: Option<u64>) {
        let names = |key: &str| -> Vec<String> {
            payload[key].as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let (epoch, start_seq) = (payload["epoch"].as_str().unwrap_or_default(), payload["start_seq"].as_u64().unwrap_or(0));
        let client = &self.clients[c];
        let (id, echo) = (client.id.clone(), client.echo);
        let seq = payload["seq"].as_u64().unwrap_or(0);
        if let Some(held) = resume
            && (start_seq != held + 1 || payload["rewound_to"] != Value::Null)
        {
            self.oracle.wrong(format!("{id} resumes after {held} and starts at {start_seq}: {payload}"));
        }
        let begin = Begin { client: &id, session, echo, start_seq, seq, epoch, rooms: names("rooms"), asked };
        let head = self.bounds(session).1;
        let view = self.oracle.begin(&begin, head);
        self.clients[c].epochs.insert(session.to_owned(), epoch.to_owned());
        self.clients[c].held.insert(session.to_owned(), start_seq - 1);
        if self.link(c).views.insert(session.to_owned(), view).is_some() {
            self.oracle.wrong(format!("{id} is attached to {session} twice"));
        }
    }

    fn view(&mut self, c: usize, session: &str, what: &str) -> Option<usize> {
        let view = self.link(c).views.get(session).copied();
        if view.is_none() {
            self.oracle.wrong(format!("{}: {what} of {session}, where it is not attached", self.clients[c].id));
        }
        view
    }

    fn hold(&mut self, c: usize, session: &str, view: usize) {
        let position = self.oracle.view(view).position;
        self.clients[c].held.insert(session.to_owned(), position);
    }

    fn on_message(&mut self, c: usize, session: &str, envelope: &Value, text: &[u8]) {
        let Some(view) = self.view(c, session, "a message") else { return };
        if let Some((count, page)) = self.link(c).pages.get_mut(session) {
            page.push((envelope.clone(), text.to_vec()));
            if page.len() as u64 > *count || !envelope["seq"].is_u64() {
                self.oracle.wrong(format!("{}: something live within a page of history", self.clients[c].id));
            }
            return;
        }
        if !envelope["seq"].is_u64() {
            let head = self.bounds(session).1;
            return self.oracle.passing(view, envelope, head);
        }
        let number = self.oracle.delivered;
        match self.sabotage {
            Some(Sabotage::Drop(at)) if at == number => {
                self.oracle.delivered += 1;
                return;
            }
            Some(Sabotage::Repeat(at)) if at == number => self.oracle.message(view, envelope, text),
            Some(Sabotage::Change(at)) if at == number => {
                self.oracle.message(view, envelope, text);
                let mut text = text.to_vec();
                text.push(b' ');
                self.oracle.message(view, envelope, &text);
            }
            _ => {}
        }
        self.oracle.message(view, envelope, text);
        self.hold(c, session, view);
    }

    fn on_event(&mut self, c: usize, kind: &str, session: &str, envelope: &Value) {
        let payload = &envelope["payload"];
        let number = |key: &str| payload[key].as_u64().unwrap_or(u64::MAX);
        let Some(view) = self.view(c, session, kind) else { return };
        match kind {
            "rw.caught_up" => self.oracle.caught_up(view, number("seq")),
            "rw.gap" => {
                let first = self.bounds(session).0;
                self.oracle.gap(view, number("from"), number("to"), first);
            }
            "rw.history_begin" => {
                let before = self.link(c).pages.insert(session.to_owned(), (number("count"), Vec::new()));
                before.into_iter().for_each(|_| self.oracle.wrong("two pages of history at once".to_owned()));
            }
            "rw.history_end" => {
                match self.link(c).pages.remove(session) {
                    Some((count, page)) => {
                        if page.len() as u64 != count {
                            self.oracle.wrong(format!("a page of {count} has {}", page.len()));
                        }
                        self.oracle.history(view, &page, number("oldest_seq"));
                    }
                    None => self.oracle.wrong("rw.history_end without a begin".to_owned()),
                }
                self.on_answer(c, kind, session, envelope);
            }
            _ => {}
        }
        self.hold(c, session, view);
    }

    fn on_answer(&mut self, c: usize, kind: &str, session: &str, envelope: &Value) {
        let (id, payload) = (envelope["id"].as_str().unwrap_or_default(), &envelope["payload"]);
        let frame = payload["details"]["frame"].as_u64().filter(|_| kind == "rw.error");
        let link = self.clients[c].link.as_mut().expect("an answer comes on a link");
        let by_number = frame.and_then(|frame| usize::try_from(frame).ok()).filter(|frame| *frame > 0);
        let found = match by_number {
            Some(number) => link.sent.get(number - 1).filter(|sent| id.is_empty() || sent.id == id).map(|_| number - 1),
            None => link.sent.iter().position(|sent| sent.id == id && !sent.answered),
        };
        let Some(at) = found.filter(|at| !link.sent[*at].answered) else {
            let complaint = format!("{}: an answer to nothing: {envelope}", self.clients[c].id);
            return self.oracle.wrong(complaint);
        };
        let sent = &mut link.sent[at];
        sent.answered = true;
        let (what, asked_of) = (sent.what.clone(), sent.session.clone());
        if kind == "rw.error" {
            return self.on_error(c, &what, envelope);
        }
        let me = self.clients[c].id.clone();
        let fits = match &what {
            What::Message { .. } => kind == "rw.ack",
            What::Join(_) => kind == "rw.joined",
            What::Leave(..) => kind == "rw.left",
            What::Ping { .. } => kind == "rw.pong",
            What::Attach { .. } => kind == "rw.attached",
            What::Other(expected) => kind == *expected,
            What::Ephemeral | What::Silent | What::Bad => false,
        };
        if !fits || session != asked_of {
            return self.oracle.wrong(format!("{me}: {what:?} was answered with {envelope}"));
        }
        let seq = payload["seq"].as_u64().unwrap_or(0);
        match what {
            What::Message { target, to } => {
                let link = self.link(c);
                let acked = link.acked.entry(target.clone()).or_default();
                *acked = (*acked).max(seq);
                self.clients[c].unacked.retain(|past| past.id != id);
                self.oracle.ack(&me, &target, id, &to, seq);
            }
            What::Join(room) => {
                self.oracle.joined(&me, session, &room, seq);
            }
            What::Leave(room, number) => {
                let head = self.bounds(session).1;
                self.oracle.left(&me, session, &room, head, number);
            }
            What::Ping { acked_max } => {
                if let Some(view) = self.view(c, session, kind) {
                    self.oracle.pong(view, seq, payload["delivered_seq"].as_u64().unwrap_or(0), acked_max);
                    self.hold(c, session, view);
                }
            }
            What::Attach { asked, resume } => self.begin(c, session, payload, asked, resume),
            What::Other("rw.welcome") => {
                let (asked, resume) = (self.link(c).hello_rooms.clone(), self.link(c).hello_resume);
                self.begin(c, session, payload, asked, resume);
            }
            What::Other("rw.detached") => {
                self.link(c).views.remove(session);
            }
            What::Other("rw.watching") => {
                if let Some(view) = self.view(c, session, kind) {
                    self.oracle.placed(view, seq, kind);
                    self.hold(c, session, view);
                }
            }
            _ => {}
        }
    }

    fn on_error(&mut self, c: usize, what: &What, envelope: &Value) {
        let code = envelope["payload"]["code"].as_str().unwrap_or_default();
        *self.clients[c].answers.entry(code.to_owned()).or_default() += 1;
        let fits = code == "limit.rate"
            || match what {
                What::Bad => true,
                What::Message { .. } | What::Ephemeral => {
                    matches!(code, "limit.backpressure" | "limit.rate" | "route.no_such_member" | "session.not_attached")
                }
                What::Other("rw.history_end") => {
                    matches!(code, "limit.history_busy" | "limit.backpressure" | "session.not_attached")
                }
                What::Other("rw.welcome") => code.starts_with("limit."),
                _ => matches!(
                    code,
                    "limit.backpressure" | "limit.rate" | "session.not_attached" | "session.already_attached" | "limit.attached"
                ),
            };
        if !fits {
            let complaint = format!("{}: {what:?} was refused: {envelope}", self.clients[c].id);
            self.oracle.wrong(complaint);
        }
    }

    /// What was not acknowledged before the reconnect is sent once more, with the same id.
    fn send_again(&mut self, c: usize) {
        for past in std::mem::take(&mut self.clients[c].unacked) {
            if self.random.percent(70) && past.session == self.clients[c].home {
                self.send_past(c, &past);
            }
        }
    }

    fn send_past(&mut self, c: usize, past: &Past) {
        let target = match past.to.first().map(|to| to.strip_prefix("channel:")) {
            Some(Some(name)) => format!("channel:{name}"),
            _ => past.session.clone(),
        };
        self.clients[c].unacked.push(past.clone());
        self.send(c, &past.id, &past.session, What::Message { target, to: past.to.clone() }, &past.text);
    }

    fn refresh(&mut self, c: usize) {
        let client = &self.clients[c];
        let (home, now_s) = (client.home.clone(), self.now().wall_s());
        let auth_token = token(&client.sub, &["s.*", "channel:c.*"], &client.roles, now_s, 600);
        self.command(c, "rw.refresh", &home, json!({"auth_token": auth_token}), What::Other("rw.refreshed"));
    }

    /// A command, or a message, with a new id.
    pub fn command(&mut self, c: usize, kind: &str, session: &str, payload: Value, what: What) {
        self.clients[c].counter += 1;
        let id = format!("{}.{}", self.clients[c].counter, kind);
        let text = json!({"type": kind, "id": id, "session_id": session, "payload": payload}).to_string();
        self.send(c, &id, session, what, &text);
    }

    pub fn message_to(&mut self, c: usize, session: &str, to: &Value, bytes: usize, ephemeral: bool) {
        self.clients[c].counter += 1;
        let id = format!("m{}", self.clients[c].counter);
        let mut envelope = json!({"type": "chat", "id": id, "session_id": session, "payload": "x".repeat(bytes)});
        if !to.is_null() {
            envelope["to"] = to.clone();
        }
        if ephemeral {
            envelope["ephemeral"] = json!(true);
        }
        let to = addresses(&envelope);
        let past = Past { session: session.to_owned(), id: id.clone(), text: envelope.to_string(), to };
        if ephemeral {
            return self.send(c, &id, session, What::Ephemeral, &past.text);
        }
        let client = &mut self.clients[c];
        client.past.push_back(past.clone());
        if client.past.len() > PAST_MAX {
            client.past.pop_front();
        }
        self.send_past(c, &past);
    }

    fn random_to(&mut self) -> Value {
        let client = self.random.index(self.clients.len());
        let (id, sub) = (self.clients[client].id.clone(), self.clients[client].sub.clone());
        let (room, role) = (self.random.pick(&ROOMS), self.random.pick(&ROLES));
        match self.random.below(10) {
            0..=3 => Value::Null,
            4 => json!(format!("client:{id}")),
            5 => json!(format!("user:{sub}")),
            6 => json!(format!("room:{room}")),
            7 => json!(format!("role:{role}")),
            8 => json!([format!("room:{room}"), format!("role:{role}"), format!("client:{id}")]),
            _ => json!(["session", format!("room:{room}")]),
        }
    }

    fn act(&mut self, c: usize) {
        let pause = self.random.pick(&[1_000_000, 20_000_000, 60_000_000]);
        let next_action = self.now_ns + self.random.below(pause);
        self.link(c).next_action = next_action;
        let attached: Vec<String> = self.link(c).views.keys().cloned().collect();
        if attached.is_empty() {
            return;
        }
        let session = self.random.pick(&attached);
        let me = self.clients[c].id.clone();
        let plain = session.starts_with("s.");
        match self.random.below(100) {
            0..=39 => {
                let burst = self.random.pick(&[1, 1, 1, 8]);
                let bytes = self.random.pick(&[3, 30, 300, 3000]);
                let to = if plain { self.random_to() } else { Value::Null };
                for _ in 0..burst {
                    self.message_to(c, &session, &to, bytes, false);
                }
            }
            40..=43 => self.message_to(c, &session, &json!("channel:c.0"), 40, false),
            44..=47 => {
                let to = if plain { self.random_to() } else { Value::Null };
                self.message_to(c, &session, &to, 20, true);
            }
            48..=53 => {
                let past: Vec<Past> = self.clients[c].past.iter().cloned().collect();
                if !past.is_empty() {
                    let past = self.random.pick(&past);
                    if attached.contains(&past.session) && past.session.starts_with("s.") {
                        self.send_past(c, &past);
                    }
                }
            }
            54..=58 if plain => {
                let (room, head) = (self.random.pick(&ROOMS), self.bounds(&session).1);
                self.oracle.joining(&me, &session, room, head);
                self.command(c, "rw.join", &session, json!({"room": room}), What::Join(room.to_owned()));
            }
            59..=62 if plain => {
                let (room, head) = (self.random.pick(&ROOMS), self.bounds(&session).1);
                let number = self.clients[c].counter + 1;
                self.oracle.leaving(&me, &session, room, head, number);
                self.command(c, "rw.leave", &session, json!({"room": room}), What::Leave(room.to_owned(), number));
            }
            63..=68 => {
                let session = self.random.pick(&["s.0", "s.1", "s.2", "channel:c.0"]).to_owned();
                let mut payload = json!({"echo": self.clients[c].echo});
                let (asked, resume) = self.start_keys(c, &session, &mut payload);
                self.command(c, "rw.attach", &session, payload, What::Attach { asked, resume });
            }
            69..=71 if session != self.clients[c].home => {
                self.command(c, "rw.detach", &session, json!({}), What::Other("rw.detached"));
            }
            72..=76 => {
                let limit = self.random.between(1, 50);
                let mut payload = json!({"limit": limit});
                let at = self.random.between(1, self.bounds(&session).1 + 1);
                match self.random.below(3) {
                    0 => payload["before"] = json!(at),
                    1 => payload["after"] = json!(at),
                    _ => {}
                }
                self.command(c, "rw.history", &session, payload, What::Other("rw.history_end"));
            }
            77..=80 => {
                let acked_max = self.link(c).acked.get(&session).copied().unwrap_or(0);
                self.command(c, "rw.ping", &session, json!({}), What::Ping { acked_max });
            }
            81..=83 => {
                let seq = self.clients[c].held.get(&session).copied().unwrap_or(0);
                self.command(c, "rw.received", &session, json!({"seq": seq}), What::Silent);
            }
            84 => self.command(c, "rw.members", &session, json!({"limit": 2}), What::Other("rw.members")),
            85..=86 if plain => {
                self.command(c, "rw.watch", &session, json!({"presence": true}), What::Other("rw.watching"));
            }
            87 => self.command(c, "rw.presence.set", &session, json!({"data": {"mood": "calm"}}), What::Other("rw.presence.ok")),
            88 => self.refresh(c),
            89 => self.command(c, "rw.nonsense", &session, json!({}), What::Bad),
            90 => self.command(c, "chat", "s.nowhere", json!({}), What::Bad),
            91 => self.command(c, "rw.attach", "x.forbidden", json!({}), What::Bad),
            92 => {
                let mut out = Vec::new();
                wire::message(&mut out, 9, b"anybody?", &mut self.random);
                self.link(c).tx.extend(out);
            }
            93..=94 => self.link(c).stalled_until = self.now_ns + 400_000_000,
            95 => self.leave(c),
            96 => self.end_link(c, true),
            97 => {
                // It vanishes: nobody reads, nobody ends the old connection.
                self.leave_in_doubt(c);
                if let Some(gone) = self.clients[c].link.take() {
                    self.net.sockets[gone.socket].to_server.clear();
                }
                self.clients[c].away_until = self.now_ns + DOUBT_NS + self.random.below(100_000_000);
            }
            _ => {}
        }
    }

    /// Closes by a close frame, with what was sent before still on its way.
    fn leave(&mut self, c: usize) {
        let mut out = Vec::new();
        wire::message(&mut out, 8, &1000_u16.to_be_bytes(), &mut self.random);
        let link = self.link(c);
        link.tx.extend(out);
        link.phase = Phase::Closing;
    }

    fn act_hostile(&mut self, c: usize) {
        let next_action = self.now_ns + self.random.below(300_000_000);
        self.link(c).next_action = next_action;
        let mut out = Vec::new();
        match self.random.below(14) {
            0 => out.extend(b"\x81\x05hello"),
            1 => wire::message(&mut out, 1, b"{\"type\":\"\xFF\"}", &mut self.random),
            2 => out.extend([0x81, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4]),
            3 => (0..60).for_each(|_| wire::message(&mut out, 9, b"flood", &mut self.random)),
            4 => wire::message(&mut out, 1, b"{\"type\":", &mut self.random),
            5 => wire::message(&mut out, 1, "[".repeat(3000).as_bytes(), &mut self.random),
            6 => wire::message(&mut out, 2, b"binary", &mut self.random),
            7 => out.extend((0..200).map(|_| self.random.next().to_le_bytes()[0])),
            8 => wire::message(&mut out, 8, &[3], &mut self.random),
            9 => wire::message(
                &mut out,
                1,
                b"{\"type\":\"chat\",\"id\":\"1\",\"session_id\":\"s.0\",\"payload\":1}",
                &mut self.random,
            ),
            10 => out.extend([0x01, 0x80, 0, 0, 0, 0]),
            11 => (0..30).for_each(|_| wire::message(&mut out, 1, b"{}", &mut self.random)),
            12 => return self.end_link(c, true),
            _ => return self.end_link(c, false),
        }
        if self.random.percent(30) && self.link(c).sent.is_empty() {
            self.hello(c);
        }
        self.link(c).tx.extend(out);
    }
}

fn link_phase(world: &World, c: usize) -> Option<Phase> {
    world.clients[c].link.as_ref().map(|link| link.phase)
}
