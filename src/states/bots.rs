//! Clients on threads of their own: well-behaved, careless and hostile ones.

use super::node::{SECRET, now_s};
use crate::sim::random::Random;
use crate::sim::wire;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SESSIONS: [&str; 5] = ["s.0", "s.1", "s.2", "channel:c.0", "channel:c.1"];
const ROOMS: [&str; 4] = ["ops", "dev", "lab", "a-room-with-a-name-that-is-rather-long"];
const ROLES: [&str; 2] = ["agent", "lead"];
/// How long a read waits.
const READ: Duration = Duration::from_millis(2);
/// How long after a client's last word its connection may still be there: `limits.close_ms` is a second at most.
const END_MAX: Duration = Duration::from_secs(8);

/// Welcomes and other envelopes that clients have read, in all.
static WELCOMES: AtomicU64 = AtomicU64::new(0);
static ENVELOPES: AtomicU64 = AtomicU64::new(0);

/// How many welcomes, and how many other envelopes clients have read so far.
pub(super) fn read_so_far() -> (u64, u64) {
    (WELCOMES.load(Ordering::Relaxed), ENVELOPES.load(Ordering::Relaxed))
}

/// Clients that run until they are stopped.
pub(super) struct Bots {
    stop: Arc<AtomicBool>,
    wrong: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Bots {
    pub(super) fn start(address: SocketAddr, count: usize, random: &mut Random) -> Self {
        let (stop, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let threads = (0..count)
            .map(|_| {
                let (stop, wrong, mut random) = (Arc::clone(&stop), Arc::clone(&wrong), Random::new(random.next()));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(mut bot) = Bot::connect(address, Random::new(random.next())) else { continue };
                        if let Err(what) = bot.live(&stop) {
                            wrong.lock().expect("nobody panics with it").push(what);
                        }
                    }
                })
            })
            .collect();
        Self { stop, wrong, threads }
    }

    /// Has them leave; what was wrong.
    pub(super) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        let mut wrong = std::mem::take(&mut *self.wrong.lock().expect("nobody panics with it"));
        wrong.extend((panicked > 0).then(|| format!("{panicked} clients panicked")));
        wrong
    }
}

/// A connection.
struct Bot {
    random: Random,
    socket: TcpStream,
    user: u64,
    /// The session of its hello, of which it says the most.
    home: &'static str,
    ids: u64,
    received: Vec<u8>,
    /// `true` on `/v1/echo`, which returns any text. Twenty random bytes may begin a frame that the next messages continue.
    echoes: bool,
    upgraded: bool,
    /// Nothing more comes.
    ended: bool,
}

impl Bot {
    fn connect(address: SocketAddr, mut random: Random) -> Option<Self> {
        let socket = TcpStream::connect(address).ok()?;
        socket.set_nodelay(true).ok()?;
        socket.set_read_timeout(Some(READ)).ok()?;
        // Whoever is not read from is not waited for.
        socket.set_write_timeout(Some(Duration::from_millis(20))).ok()?;
        let (user, home) = (random.below(4), random.pick(&SESSIONS));
        Some(Self { random, socket, user, home, ids: 0, received: Vec::new(), echoes: false, upgraded: false, ended: false })
    }

    fn live(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let begin = self.beginning();
        self.send(&begin);
        if self.random.percent(10) {
            // The client never says more, or leaves at once.
            std::thread::sleep(Duration::from_millis(self.random.below(100)));
            return self.leave();
        }
        let (steps, reads) = (self.random.below(60), self.random.percent(85));
        for _ in 0..steps {
            if stop.load(Ordering::Relaxed) || self.ended {
                break;
            }
            let mut said = Vec::new();
            for _ in 0..=self.random.below(6) {
                self.say(&mut said);
            }
            self.send(&said);
            if reads {
                self.read()?;
            }
        }
        self.leave()
    }

    /// The upgrade and the hello in one, or something else.
    fn beginning(&mut self) -> Vec<u8> {
        let offer = self.random.percent(30).then(|| self.random.pick(&wire::OFFERS));
        self.echoes = self.random.percent(10);
        let path = if self.echoes { "/v1/echo" } else { "/v1/ws" };
        let mut out = wire::request(path, offer).into_bytes();
        match self.random.below(20) {
            0 => return b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            1 => out.truncate(self.random.index(out.len())),
            2 => return (0..self.random.below(300)).map(|_| self.random.next().to_le_bytes()[0]).collect(),
            _ => {
                let tab = self.random.below(4);
                let payload = json!({"client_id": format!("u{}/{tab}", self.user), "auth_token": self.token(),
                    "rooms": self.some_rooms(), "echo": self.random.percent(30), "acks": self.random.percent(80),
                    "start": self.random.pick(&["cursor", "oldest", "head"])});
                self.text(&mut out, "rw.hello", &Value::Null, payload);
            }
        }
        out
    }

    fn token(&mut self) -> String {
        let sid = match self.random.below(4) {
            0 => json!(["s.0"]),
            1 => json!(["s.1", "channel:c.0"]),
            _ => json!(["s.*", "channel:c.*"]),
        };
        let roles: Vec<&str> = ROLES.into_iter().filter(|_| self.random.percent(50)).collect();
        // Every tenth token has expired already.
        let (now, life) = (now_s(), self.random.pick(&[0, 1, 2, 60, 60, 60, 600, 600, 600, 600]));
        let claims = json!({"sub": format!("u{}", self.user), "sid": sid, "roles": roles, "iat": now - 20, "exp": now + life});
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": "k"});
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let key = if self.random.percent(95) { &SECRET[..] } else { b"another one" };
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    fn some_rooms(&mut self) -> Vec<&'static str> {
        ROOMS.into_iter().filter(|_| self.random.percent(20)).collect()
    }

    /// Writes an envelope, masked.
    fn text(&mut self, out: &mut Vec<u8>, kind: &str, to: &Value, payload: Value) {
        // Some ids come again.
        self.ids += self.random.below(8).min(1);
        let session = if kind == "rw.hello" || self.random.percent(70) { self.home } else { self.random.pick(&SESSIONS) };
        let mut envelope = json!({"type": kind, "id": format!("m{}", self.ids), "session_id": session, "payload": payload});
        if !to.is_null() {
            envelope["to"] = to.clone();
        }
        if kind == "chat" && self.random.percent(15) {
            envelope["ephemeral"] = json!(true);
        }
        wire::message(out, 1, envelope.to_string().as_bytes(), &mut self.random);
    }

    /// Says one thing.
    fn say(&mut self, out: &mut Vec<u8>) {
        match self.random.below(40) {
            36 => return wire::message(out, 9, b"there?", &mut self.random),
            37 => return wire::message(out, 10, b"", &mut self.random),
            38 if self.random.percent(30) => return wire::message(out, 1, b"{\"type\":", &mut self.random),
            39 if self.random.percent(30) => return out.extend((0..20).map(|_| self.random.next().to_le_bytes()[0])),
            _ => {}
        }
        let to = self.somebody();
        let (kind, payload) = self.command();
        self.text(out, kind, if kind == "chat" { &to } else { &Value::Null }, payload);
    }

    fn somebody(&mut self) -> Value {
        let room = self.random.pick(&ROOMS);
        match self.random.below(8) {
            0 => json!(format!("room:{room}")),
            1 => json!(format!("role:{}", self.random.pick(&ROLES))),
            2 => json!(format!("client:u{}/0", self.random.below(4))),
            3 => json!(format!("user:u{}", self.random.below(4))),
            4 => json!(self.random.pick(&["channel:c.0", "channel:c.1"])),
            5 => json!([format!("room:{room}"), "role:agent"]),
            _ => Value::Null,
        }
    }

    fn command(&mut self) -> (&'static str, Value) {
        let room = self.random.pick(&ROOMS);
        let perhaps = self.random.percent(50).then_some(room);
        match self.random.below(36) {
            0..=11 => ("chat", json!("x".repeat(self.random.pick(&[1, 100, 100, 3_000, 40_000])))),
            12..=14 => ("rw.join", json!({"room": room})),
            15..=17 => ("rw.leave", json!({"room": room})),
            18..=19 => ("rw.members", json!({"room": perhaps, "limit": 1 + self.random.below(5)})),
            20..=21 => ("rw.watch", json!({"presence": self.random.percent(60), "room": perhaps})),
            22..=24 => ("rw.presence.set", json!({"data": "y".repeat(self.random.pick(&[1, 200]))})),
            25..=27 => {
                let mut payload = json!({"limit": 1 + self.random.below(50), "room": perhaps});
                payload[self.random.pick(&["before", "after"])] = json!(self.random.below(40));
                ("rw.history", payload)
            }
            28..=29 => ("rw.received", json!({"seq": self.random.below(30)})),
            30 => ("rw.ping", json!({})),
            31..=33 => {
                let resume = self.random.percent(40).then(|| json!({"epoch": "0123456789abcdef", "seq": self.random.below(50)}));
                ("rw.attach", json!({"rooms": self.some_rooms(), "resume": resume, "echo": self.random.percent(20)}))
            }
            34 => ("rw.detach", json!({})),
            _ if self.random.percent(20) => ("rw.unknown", json!({"z": 1})),
            _ => ("rw.refresh", json!({"auth_token": self.token()})),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let whole = if self.random.percent(10) { self.random.index(bytes.len() + 1) } else { bytes.len() };
        // Cut off in the middle where it takes no more: the rest is another message to the gateway.
        let _ = self.socket.write_all(&bytes[..whole]);
        if whole < bytes.len() {
            std::thread::sleep(Duration::from_millis(self.random.below(50)));
            let _ = self.socket.write_all(&bytes[whole..]);
        }
    }

    /// Takes in what has come.
    fn read(&mut self) -> Result<(), String> {
        let mut bytes = [0; 16_384];
        match self.socket.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => self.ended = true,
        }
        if !self.upgraded {
            let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(()) };
            if !self.received.starts_with(b"HTTP/1.1 101") {
                self.received.clear();
                return Ok(());
            }
            self.received.drain(..end + 4);
            self.upgraded = true;
        }
        let mut at = 0;
        while let Some(frame) = wire::next_frame(&self.received, &mut at)? {
            let text = if frame.deflated { wire::inflate(&frame.payload)? } else { frame.payload };
            if frame.opcode == 1 && !text.is_empty() {
                let value = serde_json::from_slice::<Value>(&text).unwrap_or_default();
                let Some(kind) = value["type"].as_str().or_else(|| self.echoes.then_some("an echo")) else {
                    return Err(format!("no envelope: {}", String::from_utf8_lossy(&text)));
                };
                if kind == "rw.welcome" { &WELCOMES } else { &ENVELOPES }.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.received.drain(..at);
        Ok(())
    }

    /// Ends it, one way or the other. Who says so and reads on is ended by the gateway in its time.
    fn leave(&mut self) -> Result<(), String> {
        match self.random.below(5) {
            0 => return Ok(()),
            1 => {
                let _ = set_socket_linger(&self.socket, Some(Duration::ZERO));
                return Ok(());
            }
            2 => drop(self.socket.shutdown(Shutdown::Write)),
            way => {
                let mut out = Vec::new();
                wire::message(&mut out, 8, &1000_u16.to_be_bytes(), &mut self.random);
                self.send(&out);
                if way == 3 {
                    drop(self.socket.shutdown(Shutdown::Write));
                }
            }
        }
        let until = Instant::now() + END_MAX;
        while !self.ended {
            if Instant::now() > until {
                return Err(format!("u{}: its connection outlives its end", self.user));
            }
            self.read()?;
        }
        Ok(())
    }
}
