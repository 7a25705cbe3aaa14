//! Shards over an engine in memory: what a message costs the gateway without a kernel, a network or a clock.
//!
//! Clients come in the real way: an HTTP upgrade, a hello with a signed token, a welcome. Sends are counted by connection, not copied.
//! Time moves only when told, by one step a turn.
#![allow(dead_code, reason = "each bench and test uses its part")]

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringway::auth::{KeyAlgorithm, KeyMaterial, KeySet};
use ringway::config::Settings;
use ringway::ids::{ConnId, HashKey};
use ringway::io::chunk::Chunk;
use ringway::io::{Event, Io, Next, PurgeStep, Read, RingStats, Send, Sent, Shard};
use ringway::shard::across::mesh::Mesh;
use ringway::shard::connections::admission::Admission;
use ringway::shard::core::{Core, CoreOptions};
use ringway::shard::counters::{SharedCounters, shared_counters};
use ringway::shard::port::{Bell, Port, Snapshot, port};
use ringway::time::Tick;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

const KEY: HashKey = HashKey([0x5A; 16]);
const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";
const EPOCH_WALL_MS: u64 = 1_790_000_000_000;
const TOKEN_LIFETIME_S: u64 = 80_000;
const DAY_MS: u64 = 86_400_000;
/// The upgrade (RFC 6455 section 4.1).
const REQUEST: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ringway.v1\r\n\r\n";
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
/// Turns after which a shard that still asks for more is stuck.
const TURNS_MAX: usize = 10_000;

/// The engine's state of one socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    pub mode: Read,
    /// Bytes that it takes until it is full.
    pub room: usize,
    pub sent_bytes: u64,
    pub wants_write: bool,
    pub closed: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct MemoryIo {
    pub sockets: Vec<Socket>,
    /// All that is sent, while it is kept.
    pub kept: Option<Vec<u8>>,
    pub sends: u64,
    /// Bytes written to disk: counted, not kept.
    pub written_bytes: u64,
    /// Answers of the disk for the shard's next turn; nothing fails, and there is nothing to read.
    pub answers: VecDeque<Event<'static>>,
    pub now: Tick,
}

impl MemoryIo {
    fn socket(&mut self, conn: ConnId) -> &mut Socket {
        &mut self.sockets[conn.index as usize]
    }
}

impl Io for MemoryIo {
    fn accept(&mut self, _on: bool) {}

    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        Err(fd)
    }

    fn read(&mut self, conn: ConnId, mode: Read) {
        self.socket(conn).mode = mode;
    }

    fn detach(&mut self, _conn: ConnId) -> Option<OwnedFd> {
        None
    }

    fn finish(&mut self, _conn: ConnId) {}

    fn close(&mut self, conn: ConnId) {
        self.socket(conn).closed = true;
    }

    fn send_batch(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
        self.sends += batch.len() as u64;
        for send in batch {
            let total: usize = send.parts.iter().map(|part| part.len()).sum();
            let socket = &mut self.sockets[send.conn.index as usize];
            let taken = total.min(socket.room);
            if socket.room != usize::MAX {
                socket.room -= taken;
            }
            socket.sent_bytes += taken as u64;
            if let Some(kept) = &mut self.kept {
                kept.extend(send.parts.iter().flat_map(|part| part.iter()).take(taken));
            }
            out.push(Sent::Bytes(taken));
        }
    }

    fn want_write(&mut self, conn: ConnId) {
        self.socket(conn).wants_write = true;
    }

    fn write(&mut self, _segment: u64, _at: u64, _chunk: Rc<Chunk>, part: Range<usize>, tag: u64) {
        self.written_bytes += part.len() as u64;
        self.answers.push_back(Event::Written { tag, result: Ok(()) });
    }

    fn sync(&mut self, _segment: u64, tag: u64) {
        self.answers.push_back(Event::Synced { tag, result: Ok(()) });
    }

    fn read_back(&mut self, _segment: u64, _at: u64, _len: usize, tag: u64) {
        self.answers.push_back(Event::ReadBack { tag, result: Ok(&[]) });
    }

    fn read_index(&mut self, _segment: u64, _at: u64, _len: usize, tag: u64) {
        self.answers.push_back(Event::ReadBack { tag, result: Ok(&[]) });
    }

    fn index_segment(&mut self, number: u64) {
        self.answers.push_back(Event::SegmentIndexed { number, result: Err(95), unsaved: None });
    }

    fn prepare_segment(&mut self, number: u64) {
        self.answers.push_back(Event::SegmentReady { number, result: Ok(()) });
    }

    fn delete_segment(&mut self, number: u64) {
        self.answers.push_back(Event::SegmentGone { number, result: Ok(()) });
    }

    fn purge(&mut self, _session: u64, step: PurgeStep) {
        self.answers.push_back(Event::Purged { step, result: Ok(0) });
    }

    fn ring_bell(&mut self, _shard: usize) {}

    fn clock(&self) -> Tick {
        self.now
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

struct NoBell;

impl Bell for NoBell {
    fn ring(&self) {}
}

/// A shard, alone in its process, and its clients.
pub struct Stage {
    pub core: Core,
    pub io: MemoryIo,
    pub counters: SharedCounters,
    /// Nanoseconds by which a turn moves the clocks.
    pub step_ns: u64,
    scratch: Vec<u8>,
    _port: Port,
}

/// An HS256 token (RFC 7519) for every session.
fn token(subject: &str) -> String {
    let now_s = EPOCH_WALL_MS / 1000;
    let header = serde_json::json!({ "alg": "HS256", "typ": "JWT", "kid": "k" });
    let claims = serde_json::json!({ "sub": subject, "sid": ["*"], "iat": now_s, "exp": now_s + TOKEN_LIFETIME_S });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Settings without limits that would end a client which is busier, or more idle, than a real one.
fn unlimited() -> Settings {
    let mut settings = Settings::default();
    settings.server.max_connections = 100_000;
    settings.limits.messages_per_second = 0;
    settings.limits.bytes_per_second = 0;
    settings.limits.connections_per_ip = 0;
    settings.limits.connections_per_user = 0;
    settings.limits.handshakes_per_ip_per_second = 0;
    settings.limits.handshakes_per_second = 0;
    settings.limits.half_open_per_ip = 0;
    settings.limits.connection_lifetime_s = 0;
    settings.session.heartbeat_ms = DAY_MS;
    settings
}

impl Stage {
    /// A shard without clients, whose settings are the defaults without rates, changed by `adjust`.
    pub fn new(adjust: impl FnOnce(&mut Settings)) -> Self {
        Self::on(&Mesh::new(1), 0, adjust)
    }

    /// Two shards of one process.
    pub fn pair(adjust: impl Fn(&mut Settings)) -> [Self; 2] {
        let mesh = Mesh::new(2);
        [0, 1].map(|shard| Self::on(&mesh, shard, &adjust))
    }

    fn on(mesh: &Arc<Mesh>, shard: usize, adjust: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = unlimited();
        adjust(&mut settings);
        let key = KEY;
        let material = KeyMaterial { key_id: "k".to_owned(), algorithm: KeyAlgorithm::Hs256, bytes: SECRET.to_vec() };
        let keys = KeySet::new(&[material]).expect("a good key");
        let snapshot = Arc::new(Snapshot { settings: Arc::new(settings), keys: Arc::new(keys), ..Snapshot::default() });
        let counters = shared_counters();
        let (door, receiver) = port(shard, Arc::new(NoBell), Arc::clone(&counters));
        let core = Core::new(CoreOptions {
            shard,
            key,
            mesh: Arc::clone(mesh),
            admission: Arc::new(Admission::new(key)),
            counters: Arc::clone(&counters),
            port: receiver,
            snapshot,
            seed: 7,
        });
        let now = Tick { mono_ns: 1_000_000, wall_ms: EPOCH_WALL_MS };
        let io = MemoryIo { sockets: Vec::new(), kept: None, sends: 0, written_bytes: 0, answers: VecDeque::new(), now };
        Self { core, io, counters, step_ns: 10_000, scratch: Vec::with_capacity(256 * 1024), _port: door }
    }

    /// A client in a session, from its accept to its welcome.
    pub fn join(&mut self, client: &str, session: &str, rooms: &[&str]) -> ConnId {
        self.join_with(client, session, rooms, "", true)
    }

    /// Does the same with more header lines in the request; `acks`: whether the client wants its messages acknowledged.
    pub fn join_with(&mut self, client: &str, session: &str, rooms: &[&str], headers: &str, acks: bool) -> ConnId {
        let index = u32::try_from(self.io.sockets.len()).expect("few sockets");
        let conn = ConnId { index, generation: 1 };
        let socket = Socket { mode: Read::Off, room: usize::MAX, sent_bytes: 0, wants_write: false, closed: false };
        self.io.sockets.push(socket);
        self.io.kept = Some(Vec::new());
        let peer = std::net::SocketAddr::from(([10, 0, 0, 1], 4000));
        let now = self.io.now;
        self.core.event(&mut self.io, Event::Accepted { conn, peer }, now);
        let (head, end) = REQUEST.split_at(REQUEST.len() - 2);
        self.receive(conn, &mut [head, headers.as_bytes(), end].concat());
        self.settle();
        let hello = serde_json::json!({
            "type": "rw.hello", "id": "hello", "session_id": session,
            "payload": { "client_id": client, "auth_token": token(client), "rooms": rooms, "acks": acks },
        });
        self.receive(conn, &mut masked(hello.to_string().as_bytes()));
        self.settle();
        let answer = self.io.kept.take().unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 101 ") && text.contains("\"rw.welcome\""), "{client} was not let in: {text}");
        assert!(self.io.sockets[index as usize].mode == Read::Stream, "{client} is read");
        conn
    }

    /// Attaches a client to another session, whichever shard is its home; `others` are the shards besides this one.
    pub fn attach(&mut self, others: &mut [Self], conn: ConnId, session: &str) {
        self.io.kept = Some(Vec::new());
        let attach = serde_json::json!({ "type": "rw.attach", "id": "attach", "session_id": session, "payload": {} });
        self.receive(conn, &mut masked(attach.to_string().as_bytes()));
        self.settle_with(others);
        let answer = self.io.kept.take().unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("\"rw.attached\""), "not let into {session}: {text}");
    }

    /// Bytes from a client.
    pub fn receive(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let now = self.io.now;
        self.core.event(&mut self.io, Event::Received { conn, bytes }, now);
    }

    /// Turns until the shard has nothing left to do at once.
    pub fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if !self.turn() {
                return;
            }
        }
        panic!("{TURNS_MAX} turns, and the shard still wants another");
    }

    /// Makes a turn. Returns `true` if the shard wants another at once.
    pub fn turn(&mut self) -> bool {
        self.io.now.mono_ns += self.step_ns;
        self.io.now.wall_ms = EPOCH_WALL_MS + self.io.now.mono_ns / 1_000_000;
        let now = self.io.now;
        for _ in 0..self.io.answers.len() {
            let Some(answer) = self.io.answers.pop_front() else { break };
            self.core.event(&mut self.io, answer, now);
        }
        self.core.turn(&mut self.io, now) == Next::Again
    }

    /// Makes turns of all shards until none has anything left to do at once.
    pub fn settle_with(&mut self, others: &mut [Self]) {
        for _ in 0..TURNS_MAX {
            self.settle();
            others.iter_mut().for_each(Self::settle);
            let mut quiet = self.sleeps();
            for other in &mut *others {
                quiet &= other.sleeps();
            }
            if quiet {
                return;
            }
        }
        panic!("{TURNS_MAX} rounds, and the shards still talk");
    }

    /// Returns `true` if no other shard has sent anything to this one.
    fn sleeps(&mut self) -> bool {
        let sleeps = self.core.before_sleep();
        self.core.after_sleep();
        sleeps
    }

    /// Delivers one read of a client with this many new messages.
    pub fn publish(&mut self, conn: ConnId, message: &mut Message, count: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        for _ in 0..count {
            message.write(&mut scratch);
        }
        self.receive(conn, &mut scratch);
        self.scratch = scratch;
    }

    /// Makes a socket take nothing any more.
    pub fn block(&mut self, conn: ConnId) {
        self.io.socket(conn).room = 0;
    }

    /// Makes a socket take `room` bytes more; the shard is told if it has asked.
    pub fn unblock(&mut self, conn: ConnId, room: usize) {
        let now = self.io.now;
        let socket = self.io.socket(conn);
        socket.room = room;
        if std::mem::take(&mut socket.wants_write) {
            self.core.event(&mut self.io, Event::Writable { conn }, now);
        }
    }

    /// Bytes that a client has been sent.
    pub fn sent_bytes(&self, conn: ConnId) -> u64 {
        self.io.sockets[conn.index as usize].sent_bytes
    }

    /// Connections that the shard has closed.
    pub fn closed(&self) -> usize {
        self.io.sockets.iter().filter(|socket| socket.closed).count()
    }
}

/// A session id that begins with `prefix` and whose home is this one of two shards.
pub fn at_home(prefix: &str, shard: usize) -> String {
    let ids = (0..).map(|number| format!("{prefix}{number}"));
    ids.into_iter().find(|id| KEY.home_shard(id, 2) == shard).expect("one in two is")
}

/// A client's frame (RFC 6455 section 5.2): text, final, masked.
pub fn masked(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        len @ 0..=125 => frame.push(0x80 | u8::try_from(len).expect("at most 125")),
        len => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).expect("a message of up to 64 KiB").to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(text.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A message that is sent again and again, each time with a new id, without allocating.
pub struct Message {
    frame: Vec<u8>,
    /// Offsets of the id's digits in the frame, and in the text.
    id_at: usize,
    text_at: usize,
    number: u64,
}

const ID_DIGITS: usize = 12;

impl Message {
    /// A message to `to` (JSON) with `text_bytes` of text.
    pub fn new(session: &str, to: &str, text_bytes: usize) -> Self {
        let text = "The quick brown fox jumps. ".repeat(text_bytes / 27 + 1);
        let head = r#"{"type":"chat.message","id":"m-"#;
        let digits = "0".repeat(ID_DIGITS);
        let object =
            format!(r#"{head}{digits}","session_id":"{session}","to":{to},"payload":{{"text":"{}"}}}}"#, &text[..text_bytes]);
        let frame = masked(object.as_bytes());
        let text_at = frame.len() - object.len();
        Self { frame, id_at: text_at + head.len(), text_at, number: 0 }
    }

    /// Numbers that follow `number`, for a sender that has used others already.
    pub const fn start_at(&mut self, number: u64) {
        self.number = number;
    }

    /// Appends the frame of the next message.
    pub fn write(&mut self, out: &mut Vec<u8>) {
        self.number += 1;
        let start = out.len();
        out.extend_from_slice(&self.frame);
        let mut rest = self.number;
        for place in (self.id_at..self.id_at + ID_DIGITS).rev() {
            let digit = b'0' + u8::try_from(rest % 10).expect("a digit");
            out[start + place] = digit ^ MASK[(place - self.text_at) % 4];
            rest /= 10;
        }
    }
}
