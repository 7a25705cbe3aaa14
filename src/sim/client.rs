//! Clients: who they are, their connections, and the bytes on them.

use super::pipe::Pipe;
use super::tokens::{token, token_id};
use super::wire::{self, ServerFrame};
use super::world::{ISSUER, World};
use crate::time::Tick;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

pub const ROOMS: [&str; 3] = ["ops", "dev", "lab"];
pub const ROLES: [&str; 2] = ["agent", "lead"];
/// A client that broke its connection comes back no sooner than this: by then everything it had sent is handled or lost.
pub const DOUBT_NS: u64 = 150_000_000;
/// Of what a client read last, so much is kept to be told.
const LAST_READ_BYTES_MAX: usize = 300;
/// Messages remembered to be sent again.
pub const PAST_MAX: usize = 40;

/// Frames of history, read and as they came.
pub type Page = Vec<(Value, Vec<u8>)>;

/// How a client's account is spoilt on purpose, at its n-th delivered message.
#[derive(Clone, Copy, Debug)]
pub enum Sabotage {
    Drop(u64),
    Repeat(u64),
    Change(u64),
}

#[derive(Clone, Debug)]
pub struct Past {
    pub session: String,
    pub id: String,
    pub text: Rc<str>,
    pub to: Vec<String>,
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
        resume: Option<(String, u64)>,
    },
    Other(&'static str),
    /// Not answered, or only by an error.
    Silent,
    /// Another message under an id that is taken: refused, if nothing else stands against it.
    Reused,
    /// An error is due.
    Bad,
    /// A new token, with other roles than before (those).
    Roles(Vec<String>),
    Mood(u64),
    /// A page of `rw.members`, of a room or of all.
    Roster(Option<String>),
}

#[derive(Debug)]
pub struct Sent {
    pub id: String,
    pub session: String,
    pub what: What,
    pub roles: Vec<String>,
    pub sent_ns: u64,
    pub answered: bool,
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
    pub pipe: Pipe,
    pub phase: Phase,
    /// permessage-deflate was agreed on.
    pub deflate: bool,
    /// `true` if it was told to go (`rw.goaway`).
    pub told_to_go: bool,
    /// The token of its hello: its id, and when it was issued.
    pub token: (String, u64),
    /// In the order of the connection's inbound messages, the first is number 1.
    pub sent: Vec<Sent>,
    pub views: BTreeMap<String, usize>,
    pub pages: BTreeMap<String, (u64, Page)>,
    pub acked: BTreeMap<String, u64>,
    /// Ids of messages that were acknowledged on it.
    pub taken: BTreeSet<String>,
    pub hello_rooms: Vec<String>,
    pub hello_resume: Option<(String, u64)>,
    pub next_action: u64,
    pub next_read: u64,
    /// Reads nothing until then.
    pub stalled_until: u64,
    pub close_code: Option<u16>,
    pub farewell: Option<Farewell>,
}

/// A client has said its last word, and reads on.
#[derive(Clone, Copy, Debug)]
pub struct Farewell {
    at_ns: u64,
    /// The time that the gateway had for it then.
    close_ms: u64,
    /// By a close frame, with this code.
    code: Option<u16>,
    /// The process ended so often before.
    ends: u64,
}

#[derive(Debug)]
pub struct Client {
    pub id: String,
    pub sub: String,
    pub roles: Vec<String>,
    pub home: String,
    pub echo: bool,
    pub acks: bool,
    pub hostile: bool,
    pub slow: bool,
    /// The issuer of its tokens, if they name one.
    pub issuer: Option<&'static str>,
    /// The number of its tokens: a token with a lower number is revoked.
    pub token_number: u64,
    /// When its last connection ended.
    pub left_ns: u64,
    /// The latest presence data that it set in each session, and whether that is known to have been received.
    pub moods: BTreeMap<String, (u64, bool)>,
    /// By session: the number up to which such data may have been purged.
    pub moods_in_doubt: BTreeMap<String, u64>,
    /// Sessions it was in, and those it may have been in.
    pub been_in: BTreeMap<String, bool>,
    /// The extensions offered with its upgrade.
    pub offer: Option<&'static str>,
    /// The last position held of each session.
    pub held: BTreeMap<String, u64>,
    pub epochs: BTreeMap<String, String>,
    pub past: VecDeque<Past>,
    pub unacked: Vec<Past>,
    pub link: Option<Link>,
    pub away_until: u64,
    pub counter: u64,
    /// The beginning of what it read last.
    pub last_read: Vec<u8>,
    pub closes: BTreeMap<u16, u64>,
    pub answers: BTreeMap<String, u64>,
    /// Numbers of each received page of history, and its end's payload.
    pub pages: Vec<(Vec<u64>, Value)>,
    /// Events about others (`rw.presence`), and the reasons of refusals, as received.
    pub told: Vec<Value>,
    pub refusals: Vec<Value>,
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

    /// Returns `true` if it waits for an answer.
    pub fn waits(&self) -> bool {
        self.link.iter().flat_map(|link| &link.sent).any(|sent| !sent.answered && due_an_answer(&sent.what, self.acks))
    }

    /// The requests whose answers it waits for.
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
            self.oracle.person(&id, casting.sub);
        }
        let away_until = self.now_ns + self.random.below(300_000_000);
        let offer = if self.snapshot.settings.deflate.enabled { Some(self.random.pick(&wire::OFFERS)) } else { None };
        let offer = offer.filter(|_| self.random.percent(70));
        self.clients.push(Client {
            id,
            sub: casting.sub.to_owned(),
            roles,
            home: casting.home.to_owned(),
            echo: casting.echo,
            acks: casting.acks,
            hostile: casting.hostile,
            slow: casting.slow,
            issuer: self.features.issuer.then_some(ISSUER),
            token_number: 0,
            left_ns: 0,
            moods: BTreeMap::new(),
            moods_in_doubt: BTreeMap::new(),
            been_in: BTreeMap::new(),
            offer,
            held: BTreeMap::new(),
            epochs: BTreeMap::new(),
            past: VecDeque::new(),
            unacked: Vec::new(),
            link: None,
            away_until,
            counter: 0,
            last_read: Vec::new(),
            closes: BTreeMap::new(),
            answers: BTreeMap::new(),
            pages: Vec::new(),
            told: Vec::new(),
            refusals: Vec::new(),
        });
        self.clients.len() - 1
    }

    pub fn client_due(&self, client: &Client) -> Option<u64> {
        let Some(link) = &client.link else {
            return (!(self.settling && client.hostile || self.draining)).then_some(client.away_until);
        };
        let socket = &self.net.sockets[link.pipe.socket];
        let reads = !socket.to_client.is_empty() || socket.server_fin || socket.server_closed;
        let read = reads.then_some(link.next_read.max(link.stalled_until));
        let write = link.pipe.wants_push(&self.net).then_some(self.now_ns + 100_000);
        let act = (!self.settling && link.phase == Phase::Open || client.hostile).then_some(link.next_action);
        [read, write, act].into_iter().flatten().min()
    }

    /// Lets a client do what is due. Returns whether it did anything.
    pub fn client_step(&mut self, c: usize) -> bool {
        let now = self.now_ns;
        if self.clients[c].link.is_none() {
            if now < self.clients[c].away_until || self.settling && self.clients[c].hostile || self.draining {
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

    pub fn link(&mut self, c: usize) -> &mut Link {
        self.clients[c].link.as_mut().expect("a client acts on a link")
    }

    pub fn open_link(&mut self, c: usize) {
        let capacity = if self.clients[c].slow { self.random.between(300, 3000) } else { self.random.between(2_000, 200_000) };
        let shard = self.random.index(self.seats.len());
        let mut pipe = self.connect(usize::try_from(capacity).unwrap(), shard);
        let next_action = self.now_ns + self.random.below(20_000_000);
        self.tell_of(c, || format!("connects to shard {shard}, takes {capacity} bytes at once"));
        let target = self.target(c);
        pipe.tx.extend(wire::request(&target, self.clients[c].offer).bytes());
        self.clients[c].link = Some(Link {
            pipe,
            phase: Phase::Http,
            deflate: false,
            told_to_go: false,
            token: (String::new(), 0),
            sent: Vec::new(),
            views: BTreeMap::new(),
            pages: BTreeMap::new(),
            acked: BTreeMap::new(),
            taken: BTreeSet::new(),
            hello_rooms: Vec::new(),
            hello_resume: None,
            next_action,
            next_read: 0,
            stalled_until: 0,
            close_code: None,
            farewell: None,
        });
        if self.random.percent(30) {
            // The hello does not wait for the 101.
            self.hello(c);
        }
    }

    /// The target that a client requests: now and then with the session in its query, for a load balancer.
    fn target(&mut self, c: usize) -> String {
        if !self.features.odd || self.random.percent(60) {
            return "/v1/ws".to_owned();
        }
        let named = if self.clients[c].hostile && self.random.percent(50) { "s.other" } else { &self.clients[c].home };
        format!("/v1/ws?session_id={named}")
    }

    pub fn hello(&mut self, c: usize) {
        let now_s = self.now().wall_s();
        let lifetime_s = if self.settling { 3600 } else { self.random.between(20, 600) };
        let client = &self.clients[c];
        let (session, id) = (client.home.clone(), client.id.clone());
        let auth_token = token(client, now_s, lifetime_s);
        let sub = client.sub.clone();
        let token = (token_id(client), now_s);
        let (echo, acks) = (client.echo, client.acks);
        let mut payload = json!({"client_id": id, "auth_token": auth_token, "echo": echo, "acks": acks});
        let (rooms, resume) = self.start_keys(c, &session, &mut payload);
        let text = json!({"type": "rw.hello", "id": "hello", "session_id": session, "payload": payload}).to_string();
        let link = self.link(c);
        (link.hello_rooms, link.hello_resume, link.token) = (rooms, resume, token);
        let socket = link.pipe.socket;
        self.net.sockets[socket].user = sub;
        self.send(c, "hello", &session, What::Other("rw.welcome"), &text);
    }

    /// Where a client starts, and the rooms it names.
    pub fn start_keys(&mut self, c: usize, session: &str, payload: &mut Value) -> (Vec<String>, Option<(String, u64)>) {
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
                resume = Some((epoch, seq));
            }
            _ => {
                let start = [json!("cursor"), json!("head"), json!("oldest"), json!({"last": 5})];
                payload["start"] = self.random.pick(&start);
            }
        }
        (rooms, resume)
    }

    pub fn send(&mut self, c: usize, id: &str, session: &str, what: What, text: &str) {
        if matches!(what, What::Attach { .. } | What::Other("rw.welcome")) {
            self.clients[c].been_in.entry(session.to_owned()).or_insert(false);
        }
        let mut out = Vec::new();
        if self.link(c).deflate && self.random.percent(50) {
            wire::deflated_message(&mut out, 1, text.as_bytes(), &mut self.random);
        } else {
            wire::message(&mut out, 1, text.as_bytes(), &mut self.random);
        }
        self.tell_sent(c, id, session, &what);
        let (sent_ns, roles) = (self.now_ns, self.clients[c].roles.clone());
        let link = self.link(c);
        link.pipe.say(out);
        link.sent.push(Sent { id: id.to_owned(), session: session.to_owned(), what, roles, sent_ns, answered: false });
    }

    pub fn push(&mut self, c: usize) -> bool {
        let random = self.random.next();
        let link = self.clients[c].link.as_mut().expect("a client pushes on a link");
        link.pipe.push(&mut self.net, random)
    }

    pub fn read(&mut self, c: usize) -> bool {
        let (now, random, slow) = (self.now_ns, self.random.next(), self.clients[c].slow && !self.settling);
        let link = self.clients[c].link.as_mut().expect("a client reads on a link");
        let socket = &mut self.net.sockets[link.pipe.socket];
        if socket.to_client.is_empty() {
            if socket.server_fin || socket.server_closed {
                self.judge_farewell(c);
                self.end_link(c, false);
                return true;
            }
            return false;
        }
        let most = if slow { 600 } else { 64 * 1024 };
        let most = socket.to_client.len().min(most);
        let count = if random % 3 == 0 { 1 + usize::try_from(random >> 8).unwrap() % most } else { most };
        let pulled = link.pipe.pull(&mut self.net, count);
        link.next_read = now + if slow { 5_000_000 + random % 30_000_000 } else { random % 2_000_000 };
        if let Err(what) = pulled {
            self.oracle.wrong(format!("{}: TLS: {what}", self.clients[c].id));
        }
        self.trace(&[6, c as u64, count as u64]);
        if link_phase(self, c) == Some(Phase::Http) {
            let link = self.link(c);
            let Some(end) = link.pipe.rx.windows(4).position(|window| window == b"\r\n\r\n") else { return true };
            let head = String::from_utf8_lossy(&link.pipe.rx[..end]).into_owned();
            link.pipe.rx.drain(..end + 4);
            if head.starts_with("HTTP/1.1 101") {
                link.phase = Phase::Hello;
                link.deflate = head.contains("permessage-deflate");
                let socket = link.pipe.socket;
                self.net.sockets[socket].let_in = true;
                if self.link(c).sent.is_empty() {
                    self.hello(c);
                }
            } else {
                self.judge_refusal(c, &head);
                self.link(c).phase = Phase::Refused;
                return true;
            }
        }
        let mut at = 0;
        while let Some(link) = &self.clients[c].link
            && link.phase != Phase::Refused
        {
            match wire::next_frame(&link.pipe.rx, &mut at) {
                Ok(Some(frame)) => self.on_frame(c, frame),
                Ok(None) => break,
                Err(what) => {
                    let rx = &link.pipe.rx[at..];
                    let rx = String::from_utf8_lossy(&rx[..rx.len().min(700)]).into_owned();
                    let last = String::from_utf8_lossy(&self.clients[c].last_read);
                    let complaint = format!("{}: {what}; after {last:?}: {rx}", self.clients[c].id);
                    self.oracle.wrong(complaint);
                    break;
                }
            }
        }
        if let Some(link) = &mut self.clients[c].link {
            link.pipe.rx.drain(..at);
        }
        true
    }

    /// The connection is over, or (`reset`) the client breaks it.
    pub fn end_link(&mut self, c: usize, reset: bool) {
        self.leave_in_doubt(c);
        let Some(link) = self.clients[c].link.take() else { return };
        self.clients[c].left_ns = self.now_ns;
        let socket = &mut self.net.sockets[link.pipe.socket];
        if reset {
            socket.client_reset = true;
            socket.to_client.clear();
            socket.to_server.clear();
        } else {
            socket.client_fin = true;
        }
        self.trace(&[7, c as u64, u64::from(link.close_code.unwrap_or(0))]);
        let (code, until_ms) = (link.close_code, self.clients[c].away_until / 1_000_000);
        self.tell_of(c, || {
            format!("{} (close code {code:?}, away until {until_ms} ms)", if reset { "resets" } else { "is gone" })
        });
        if let Some(code) = link.close_code {
            *self.clients[c].closes.entry(code).or_default() += 1;
        }
        let most = if self.settling { 200_000_000 } else { self.random.pick(&[5_000_000, 100_000_000, 3_000_000_000]) };
        self.clients[c].away_until = self.now_ns + DOUBT_NS + self.random.below(most);
    }

    /// Returns `true` if the gateway has begun to close a client's connection, or has closed it.
    fn is_closed(&self, c: usize) -> bool {
        let Some(link) = &self.clients[c].link else { return true };
        let socket = link.pipe.socket;
        self.net.sockets[socket].server_closed
            || self.seats.iter().any(|seat| {
                let held = seat.engine.slots.iter().position(|slot| slot.socket == socket && slot.fd.is_some());
                held.is_some_and(|index| seat.core.has_closed(seat.engine.id(index)))
            })
    }

    /// A client says its last word: nothing more is sent, and what was is to be answered, unless the gateway has closed before; whoever
    /// reads too slowly does not hear of that.
    pub fn bid_farewell(&mut self, c: usize, code: Option<u16>) {
        if self.is_closed(c) {
            self.link(c).phase = Phase::Closing;
            return;
        }
        let close_ms = self.snapshot.settings.limits.close_ms;
        let farewell = Farewell { at_ns: self.now_ns, close_ms, code, ends: self.kills + self.power_cuts };
        let link = self.link(c);
        link.phase = Phase::Closing;
        link.farewell = Some(farewell);
    }

    /// The gateway has ended a connection on which the client had said its last word: all that came before it was answered.
    fn judge_farewell(&mut self, c: usize) {
        let Some(link) = &self.clients[c].link else { return };
        let Some(farewell) = link.farewell else { return };
        let close_ms = farewell.close_ms.min(self.snapshot.settings.limits.close_ms);
        // Counted in whole milliseconds of the clock, as the gateway does.
        let late = self.now_ns / 1_000_000 - farewell.at_ns / 1_000_000 >= close_ms;
        // Ended by the gateway for a reason of its own, or with the process.
        let own = link.close_code.is_some() && link.close_code != farewell.code;
        if late || own || self.kills + self.power_cuts != farewell.ends || self.draining || self.stopping {
            return;
        }
        let (code, waiting) = (link.close_code, self.clients[c].waiting());
        self.farewells += 1;
        if code != farewell.code || !waiting.is_empty() {
            let after_ms = (self.now_ns - farewell.at_ns) / 1_000_000;
            self.oracle.wrong(format!(
                "{} ended with {:?}, was answered with {code:?} after {after_ms} ms, and waits for {waiting:?}",
                self.clients[c].id, farewell.code
            ));
        }
    }

    /// Requests without an answer may have been carried out.
    pub fn leave_in_doubt(&mut self, c: usize) {
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

    /// An HTTP answer that is no 101.
    fn judge_refusal(&mut self, c: usize, head: &str) {
        let socket = self.link(c).pipe.socket;
        let address = self.net.sockets[socket].address;
        let per_ip = self.caps.per_ip;
        let limits = &self.drawn.limits;
        let throttled = limits.half_open_per_ip > 0 || limits.handshakes_per_ip_per_second > 0;
        let busy = ["503", "408"].iter().any(|status| head.contains(status))
            || head.contains("429") && throttled
            || head.contains("429") && per_ip > 0 && self.net.others(socket, |other| other.address == address) >= per_ip;
        *self.clients[c].answers.entry(head.chars().skip(9).take(3).collect()).or_default() += 1;
        if !busy && !self.clients[c].hostile {
            self.oracle.wrong(format!("{}: the upgrade was answered {head}", self.clients[c].id));
        }
    }

    /// The message in a frame: what was deflated had to be long enough, and the client had to agree to it.
    fn unpack(&mut self, c: usize, frame: ServerFrame) -> Option<ServerFrame> {
        if !frame.deflated {
            return Some(frame);
        }
        let agreed = self.link(c).deflate && frame.opcode == 1;
        match wire::inflate(&frame.payload) {
            Ok(payload) if agreed && payload.len() >= self.snapshot.settings.deflate.min_bytes => {
                self.inflated += 1;
                return Some(ServerFrame { payload, deflated: false, ..frame });
            }
            outcome => {
                let what = outcome.map(|payload| payload.len());
                self.oracle.wrong(format!("{}: a deflated frame (agreed {agreed}): {what:?}", self.clients[c].id));
            }
        }
        None
    }

    pub fn on_frame(&mut self, c: usize, frame: ServerFrame) {
        self.trace(&[8, c as u64, frame.opcode.into(), frame.payload.len() as u64]);
        let Some(frame) = self.unpack(c, frame) else { return };
        let last_read = &mut self.clients[c].last_read;
        last_read.clear();
        last_read.extend(&frame.payload[..frame.payload.len().min(LAST_READ_BYTES_MAX)]);
        match frame.opcode {
            1 => match serde_json::from_slice::<Value>(&frame.payload) {
                Ok(envelope) => self.on_text(c, &envelope, &frame.payload),
                Err(error) => self.oracle.wrong(format!("a text that is no JSON: {error}")),
            },
            8 => {
                let code = frame.payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let mut out = Vec::new();
                wire::message(&mut out, 8, frame.payload.get(..2).unwrap_or_default(), &mut self.random);
                // A connection's own end is not announced.
                let lives_long = self.drawn.limits.connection_lifetime_s >= 60;
                let unforeseen = code == Some(1012)
                    && lives_long
                    && (!self.draining || self.link(c).phase == Phase::Open && !self.link(c).told_to_go);
                self.tell_of(c, || format!("reads a close frame: {code:?}"));
                if unforeseen && !self.clients[c].hostile {
                    self.oracle.wrong(format!("{} was closed with 1012 and had not been told to go", self.clients[c].id));
                }
                if code == Some(4401) && self.random.percent(50) {
                    self.clients[c].token_number += 1;
                }
                let link = self.link(c);
                link.close_code = code;
                if link.phase != Phase::Closing {
                    link.pipe.tx.extend(out);
                }
                link.phase = Phase::Closing;
                if !self.clients[c].hostile && matches!(code, Some(1002 | 1003 | 1007 | 1009 | 1011 | 4400 | 4403)) {
                    self.oracle.wrong(format!("{} was closed with {code:?}", self.clients[c].id));
                }
            }
            9 => {
                let mut out = Vec::new();
                wire::message(&mut out, 10, &frame.payload, &mut self.random);
                self.link(c).pipe.tx.extend(out);
            }
            10 => {}
            other => self.oracle.wrong(format!("a frame of opcode {other}")),
        }
    }
}

fn link_phase(world: &World, c: usize) -> Option<Phase> {
    world.clients[c].link.as_ref().map(|link| link.phase)
}
