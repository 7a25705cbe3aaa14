//! Connections that are in no session: `/v1/echo`, and those that come through the proxy with a header that is none.

use super::pipe::Pipe;
use super::wire::{self, BROKEN_PROXY_HEADERS};
use super::world::World;
use crate::close::CloseReason;
use crate::config::Limits;
use std::collections::VecDeque;

/// Messages on their way through the echo.
const UNDER_WAY_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    Echo,
    /// Nothing but the end may answer it.
    BrokenProxyHeader,
    /// Says nothing, or nothing behind its upgrade: it is ended when the time for a hello is over.
    Silent,
    /// Sends what is no request for a WebSocket: it is refused, and ended.
    BadRequest,
    /// The same at once again, again and again.
    Storm,
    /// Says what is no TLS where TLS is spoken: nothing but an alert may answer it.
    BrokenTls,
    /// Begins a TLS handshake and says no more: it is ended when the time for that is over.
    StalledTls,
}

/// Bytes that begin like no handshake of TLS, or end like none.
const BROKEN_TLS: [&[u8]; 4] = [
    b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n",
    // A ClientHello that is shorter than it says of itself.
    b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\x03\x03\x00\x00",
    b"\x17\x03\x03\x00\x03abc",
    b"\x16\x03\x01\xFF\xFF",
];
/// The head of a TLS record, and the first bytes of a ClientHello in it.
const BEGUN_TLS: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01";
/// The beginning of a status line (RFC 9112 section 4).
const HTTP: &str = "HTTP/1.1 ";
/// A TLS record's kind that says what was wrong (RFC 8446 section 6).
const ALERT: u8 = 0x15;

/// Requests that are refused whatever else holds.
const BAD_REQUESTS: [&[u8]; 9] = [
    b"POST /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\nHost: a\n\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    b"GET /v1/ws HTTP/2.0\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"GET /v1/ws?session_id=%00 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
];
/// A line of a request's head that is longer than any head may be.
const LONG_HEAD_BYTES: usize = 20_000;

#[derive(Debug)]
struct Visit {
    pipe: Pipe,
    upgraded: bool,
    deflate: bool,
    refused: bool,
    closing: bool,
    /// The messages that are to come back: opcode, deflated, payload.
    under_way: VecDeque<(u8, bool, Vec<u8>)>,
}

#[derive(Debug)]
pub struct Visitor {
    errand: Errand,
    visit: Option<Visit>,
    next_ns: u64,
    /// Messages that came back; connections that ended as they should.
    pub done: u64,
}

impl Visitor {
    pub const fn new(errand: Errand, next_ns: u64) -> Self {
        Self { errand, visit: None, next_ns, done: 0 }
    }

    /// The process that it talked to is gone.
    pub fn cut_off(&mut self) {
        self.visit = None;
    }

    /// Returns `true` if it waits for something.
    pub fn waits(&self) -> bool {
        self.visit.as_ref().is_some_and(|visit| match self.errand {
            Errand::Echo => !visit.under_way.is_empty(),
            Errand::BrokenProxyHeader | Errand::Silent | Errand::BadRequest => true,
            Errand::Storm | Errand::BrokenTls | Errand::StalledTls => true,
        })
    }
}

/// Whether bytes are the beginning of an HTTP answer: of a whole one, or of one that is cut since it was not taken within `limits.close_ms`.
fn begins_an_answer(bytes: &str, may_be_cut: bool) -> bool {
    bytes.starts_with(HTTP) || may_be_cut && HTTP.starts_with(bytes)
}

#[test]
fn a_cut_answer_is_none_where_there_is_time_for_a_whole_one() {
    let judged = |bytes| [true, false].map(|may_be_cut| begins_an_answer(bytes, may_be_cut));
    assert_eq!(["HTTP/1.1 400", "HTT", "XTT"].map(judged), [[true, true], [true, false], [false, false]]);
}

impl World {
    pub fn visitor_due(&self, visitor: &Visitor) -> Option<u64> {
        let acts = (!self.settling && !self.draining).then_some(visitor.next_ns);
        let Some(visit) = &visitor.visit else { return acts };
        let socket = &self.net.sockets[visit.pipe.socket];
        let moves = !socket.to_client.is_empty() || socket.server_fin || socket.server_closed || visit.pipe.wants_push(&self.net);
        [moves.then_some(self.now_ns + 100_000), acts].into_iter().flatten().min()
    }

    /// Lets a visitor do what is due. Returns whether it did anything.
    pub fn visitor_step(&mut self, v: usize) -> bool {
        let due = self.now_ns >= self.visitors[v].next_ns && !self.settling && !self.draining;
        let Some(mut visit) = self.visitors[v].visit.take() else {
            if due {
                self.open_visit(v);
            }
            return due;
        };
        let mut did = visit.pipe.push(&mut self.net, self.random.next());
        let socket = &self.net.sockets[visit.pipe.socket];
        let (readable, ended) = (socket.to_client.len(), socket.server_fin || socket.server_closed);
        if readable > 0 {
            did = true;
            let most = 1 + self.random.index(readable);
            if let Err(what) = visit.pipe.pull(&mut self.net, most) {
                self.oracle.wrong(format!("a visitor: TLS: {what}"));
            }
            self.take_in(v, &mut visit);
        } else if ended {
            self.net.sockets[visit.pipe.socket].client_fin = true;
            let refusal = String::from_utf8_lossy(&visit.pipe.rx[..visit.pipe.rx.len().min(12)]).into_owned();
            let asks_badly = matches!(self.visitors[v].errand, Errand::BadRequest | Errand::Storm);
            let may_be_cut = self.drawn.limits.close_ms < Limits::default().close_ms;
            if asks_badly && !visit.pipe.rx.is_empty() && !begins_an_answer(&refusal, may_be_cut) {
                self.oracle.wrong(format!("a bad request was answered with {refusal}"));
            }
            let odd = !visit.under_way.is_empty() && !visit.closing && !self.draining && !self.stopping;
            if odd {
                self.oracle.wrong(format!("{} messages did not come back from the echo", visit.under_way.len()));
            }
            self.visitors[v].done += u64::from(self.visitors[v].errand != Errand::Echo);
            let pause_ns = if self.visitors[v].errand == Errand::Storm { 1 } else { 400_000_000 };
            self.visitors[v].next_ns = self.now_ns + self.random.below(pause_ns);
            return true;
        }
        if due {
            did = true;
            self.act_visit(v, &mut visit);
        }
        self.visitors[v].visit = Some(visit);
        did
    }

    fn open_visit(&mut self, v: usize) {
        let shard = self.random.index(self.seats.len());
        let capacity = usize::try_from(self.random.between(1_000, 50_000)).unwrap();
        let pipe = match self.visitors[v].errand {
            Errand::Echo => {
                let mut pipe = self.connect(capacity, shard);
                let offer = self.random.percent(50).then(|| self.random.pick(&wire::OFFERS));
                pipe.tx.extend(wire::request("/v1/echo", offer).bytes());
                pipe
            }
            Errand::BrokenProxyHeader => {
                let (mut pipe, _) = self.connect_bare(capacity, shard);
                let header = self.random.pick(&BROKEN_PROXY_HEADERS);
                pipe.put_ahead(header);
                pipe
            }
            Errand::Silent => {
                let mut pipe = self.connect(capacity, shard);
                match self.random.below(3) {
                    0 => {}
                    1 => pipe.tx.extend(b"GET /v1/ws HTT"),
                    _ => pipe.tx.extend(wire::request("/v1/ws", None).bytes()),
                }
                pipe
            }
            Errand::BrokenTls | Errand::StalledTls => {
                let mut pipe = self.connect_plain(capacity, shard);
                let told = if self.visitors[v].errand == Errand::BrokenTls { self.random.pick(&BROKEN_TLS) } else { BEGUN_TLS };
                pipe.tx.extend(told);
                pipe
            }
            Errand::Storm => {
                let mut pipe = self.connect(capacity, shard);
                pipe.tx.extend(BAD_REQUESTS[0]);
                pipe
            }
            Errand::BadRequest => {
                let mut pipe = self.connect(capacity, shard);
                if self.random.percent(20) {
                    pipe.tx.extend(b"GET /v1/ws HTTP/1.1\r\nHost: ");
                    pipe.tx.extend(std::iter::repeat_n(b'a', LONG_HEAD_BYTES));
                } else {
                    pipe.tx.extend(self.random.pick(&BAD_REQUESTS));
                }
                pipe
            }
        };
        self.visitors[v].next_ns = self.now_ns + self.random.below(50_000_000);
        let (upgraded, deflate, refused, closing) = (false, false, false, false);
        self.visitors[v].visit = Some(Visit { pipe, upgraded, deflate, refused, closing, under_way: VecDeque::new() });
    }

    fn take_in(&mut self, v: usize, visit: &mut Visit) {
        if self.visitors[v].errand == Errand::BrokenProxyHeader {
            let told = String::from_utf8_lossy(&visit.pipe.rx).into_owned();
            return self.oracle.wrong(format!("a broken PROXY header was answered: {told}"));
        }
        if matches!(self.visitors[v].errand, Errand::BrokenTls | Errand::StalledTls) && visit.pipe.rx.first() != Some(&ALERT) {
            return self.oracle.wrong(format!("what is no TLS was answered with {:?}", visit.pipe.rx));
        }
        if self.visitors[v].errand == Errand::BadRequest && visit.pipe.rx.starts_with(b"HTTP/1.1 101") {
            self.oracle.wrong("a bad request was upgraded".to_owned());
        }
        if self.visitors[v].errand != Errand::Echo {
            return;
        }
        if !visit.upgraded && !visit.refused {
            let Some(end) = visit.pipe.rx.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            let head = String::from_utf8_lossy(&visit.pipe.rx[..end]).into_owned();
            visit.pipe.rx.drain(..end + 4);
            visit.deflate = head.contains("permessage-deflate");
            visit.upgraded = head.starts_with("HTTP/1.1 101");
            visit.refused = !visit.upgraded;
            self.net.sockets[visit.pipe.socket].let_in = visit.upgraded;
            let busy = ["503", "408", "429"].iter().any(|status| head.contains(status));
            if visit.refused && !busy {
                self.oracle.wrong(format!("the upgrade of /v1/echo was answered {head}"));
            }
        }
        let mut at = 0;
        while visit.upgraded {
            match wire::next_frame(&visit.pipe.rx, &mut at) {
                Ok(Some(frame)) => self.on_echo(v, visit, frame.opcode, frame.deflated, &frame.payload),
                Ok(None) => break,
                Err(what) => return self.oracle.wrong(format!("/v1/echo: {what}")),
            }
        }
        visit.pipe.rx.drain(..at);
    }

    fn on_echo(&mut self, v: usize, visit: &mut Visit, opcode: u8, deflated: bool, payload: &[u8]) {
        let mut out = Vec::new();
        match opcode {
            8 => {
                wire::message(&mut out, 8, payload.get(..2).unwrap_or_default(), &mut self.random);
                let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let hurried = self.hurries && matches!(code, Some(1008 | 4504 | 4508));
                if !visit.closing && !hurried && !matches!(code, Some(1001 | 1012)) {
                    self.oracle.wrong(format!("/v1/echo was closed with {code:?}"));
                }
                visit.closing = true;
            }
            9 => wire::message(&mut out, 10, payload, &mut self.random),
            10 => {}
            _ => {
                let plain = if deflated { wire::inflate(payload) } else { Ok(payload.to_vec()) };
                let sent = visit.under_way.pop_front();
                self.visitors[v].done += 1;
                if plain.as_ref().ok() != sent.as_ref().map(|(_, _, text)| text)
                    || sent.as_ref().map(|(kind, packed, _)| (*kind, *packed)) != Some((opcode, deflated))
                {
                    let told = plain.map(|plain| plain.len());
                    self.oracle.wrong(format!("/v1/echo: {opcode} deflated {deflated} {told:?} came back for {sent:?}"));
                }
            }
        }
        visit.pipe.tx.extend(out);
    }

    fn act_visit(&mut self, v: usize, visit: &mut Visit) {
        self.visitors[v].next_ns = self.now_ns + self.random.below(60_000_000);
        if !visit.upgraded || visit.closing || visit.under_way.len() >= UNDER_WAY_MAX {
            return;
        }
        let mut out = Vec::new();
        match self.random.below(20) {
            0 => {
                wire::message(&mut out, 8, &1000_u16.to_be_bytes(), &mut self.random);
                visit.closing = true;
            }
            1 => wire::message(&mut out, 9, b"anybody?", &mut self.random),
            _ => {
                let bytes = self.random.pick(&[0, 1, 125, 126, 4_000, 66_000]);
                let opcode = self.random.pick(&[1, 2]);
                let mark = self.random.next();
                let payload: Vec<u8> = format!("{mark}").bytes().cycle().take(bytes).collect();
                let deflated = visit.deflate && self.random.percent(50);
                if deflated {
                    wire::deflated_message(&mut out, opcode, &payload, &mut self.random);
                } else {
                    wire::message(&mut out, opcode, &payload, &mut self.random);
                }
                // Nothing has no deflated form that it would gain by.
                visit.under_way.push_back((opcode, deflated && bytes > 0, payload));
            }
        }
        visit.pipe.tx.extend(out);
    }
}

#[test]
fn a_standstill_of_the_gateway_ends_no_connection() {
    let mut late = 0;
    let sends = |world: &World| {
        let visit = world.visitors[0].visit.as_ref();
        visit.is_some_and(|visit| !visit.under_way.is_empty() && visit.pipe.wants_push(&world.net))
    };
    for draws in 0..80 {
        let mut world = super::scenarios::stage(1, 10_000, &["ana"]);
        world.settling = false;
        (0..draws).for_each(|_| _ = world.random.next());
        world.visitors.push(Visitor::new(Errand::Echo, 0));
        assert!(world.run_until(5_000, sends), "{draws}");
        // Some of it has been read by then.
        (0..3).for_each(|_| _ = world.step());
        let counted = |world: &World| {
            let counters = &world.seats[0].counters;
            let reasons = [CloseReason::MessageTooSlow, CloseReason::TooSlow, CloseReason::HeartbeatLost];
            (counters.standstills.get(), reasons.map(|reason| counters.closed_count(reason)))
        };
        world.now_ns += 30_000_000_000;
        world.run_for(300);
        assert_eq!(world.oracle.violations, Vec::<String>::new(), "{draws}");
        let (standstills, closed) = counted(&world);
        assert_eq!(closed, [0; 3], "{draws}");
        late += standstills;
    }
    assert!(late >= 60, "{late}");
}

#[test]
fn an_echo_that_is_read_too_slowly_is_closed_where_the_gateway_did_not_stand_still() {
    let mut world = super::scenarios::stage(1, 10_000, &["ana"]);
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        (settings.limits.stall_ms, settings.limits.stall_bytes_per_second) = (500, 1_000_000);
        snapshot.settings = std::sync::Arc::new(settings);
    });
    (world.settling, world.hurries) = (false, true);
    world.visitors.push(Visitor::new(Errand::Echo, 0));
    let sends = |world: &World| world.visitors[0].visit.as_ref().is_some_and(|visit| !visit.under_way.is_empty());
    assert!(world.run_until(5_000, sends));
    let socket = world.visitors[0].visit.as_ref().unwrap().pipe.socket;
    world.net.sockets[socket].capacity = 10;
    world.run_for(20_000);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
    let counters = &world.seats[0].counters;
    assert_eq!(counters.standstills.get(), 0);
    assert!(counters.closed_count(CloseReason::TooSlow) > 0);
}
