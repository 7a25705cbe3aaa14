//! Inputs of hostile clients, as a table over raw sockets: the bytes, in pieces if that matters, the HTTP status or close code
//! that answers them, and how long the connection may live on. Deadlines are configured short; the codes are the wire protocol's
//! (section 7). The ids group the rows: H the HTTP upgrade, F frames, J the envelope, W tokens, U the ring, C compression.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test process of its own, not the gateway")]
#![allow(dead_code, reason = "the support files serve several test binaries")]

#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/token.rs"]
mod token;

use flate2::{Compress, Compression, FlushCompress};
use gateway::{Gateway, SECRET};
use raw::{Raw, UPGRADE, frame, head, pause, text};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use token::{base64, claims, forged, header, now_s, token, token_with};

/// The deadlines of the gateway under attack.
const SHORT_MS: u64 = 700;
/// How long a connection may live after its attack: the longest of the short deadlines, the close handshake's, and a margin for a
/// busy machine.
const WITHIN_MS: u64 = 3_000;
const MESSAGE_BYTES: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The bytes are the first on the connection.
    Tcp,
    /// Behind the upgrade, before the hello.
    Upgraded,
    /// Behind the welcome, in the session `attack`.
    Open,
}

#[derive(Clone, Debug, PartialEq)]
enum Expect {
    /// An HTTP answer, then the end.
    Http(u16),
    /// As `Http`, one of two.
    HttpEither(u16, u16),
    /// An upgrade: the input is good, or harmless.
    Accepted,
    /// A close code, then the end.
    Close(u16),
    /// `rw.error` with this code, then a close code, then the end.
    Refused(&'static str, u16),
    /// `rw.error` with this code; the connection stays open.
    Error(&'static str),
    /// `rw.ack`; the connection stays open.
    Ack,
    /// The end without a byte.
    Dropped,
}

struct Attack {
    id: &'static str,
    what: String,
    stage: Stage,
    /// Each with the pause before it.
    pieces: Vec<(u64, Vec<u8>)>,
    expect: Expect,
}

fn attack(id: &'static str, what: impl Into<String>, stage: Stage, bytes: impl Into<Vec<u8>>, expect: Expect) -> Attack {
    Attack { id, what: what.into(), stage, pieces: vec![(0, bytes.into())], expect }
}

/// The upgrade with lines replaced, added, or (`-Name`) left out.
fn request(line: &str, changes: &[&str]) -> Vec<u8> {
    let good = UPGRADE.trim_end().split("\r\n").skip(1);
    let named = |change: &str, header: &str| {
        let name = change.trim_start_matches('-').split(':').next().unwrap();
        header.split(':').next().unwrap().eq_ignore_ascii_case(name)
    };
    let kept = good.filter(|header| !changes.iter().any(|change| named(change, header)));
    let added = changes.iter().filter(|change| !change.starts_with('-')).copied();
    let lines: Vec<&str> = std::iter::once(line).chain(kept).chain(added).collect();
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

fn get(changes: &[&str]) -> Vec<u8> {
    request("GET /v1/ws HTTP/1.1", changes)
}

/// Headers that are lists: a malformed one is refused even if the feature is off, an empty one is ignored.
fn list_attacks() -> Vec<Attack> {
    use Expect::{Accepted, Http};
    let mut rows = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, expect| rows.push(attack(id, what, Stage::Tcp, bytes, expect));
    for (what, value, expect) in [
        ("constructor", "constructor".to_owned(), Accepted),
        ("an unknown one with parameters", "x; a=1; b=\"2\"".to_owned(), Accepted),
        ("nothing", " , ,".to_owned(), Accepted),
        ("no list, where deflate is off", "permessage-deflate; =".to_owned(), Http(400)),
        ("an open quote, where deflate is off", "x; a=\"".to_owned(), Http(400)),
        ("2,000 parameters", format!("permessage-deflate{}", "; a=1".repeat(2_000)), Http(400)),
        ("10,000 parameters, more than a head holds", format!("permessage-deflate{}", "; a=1".repeat(10_000)), Http(431)),
    ] {
        add("H16", what, get(&[&format!("Sec-WebSocket-Extensions: {value}")]), expect);
    }
    add("H17", "8,000 spaces", get(&[&format!("Sec-WebSocket-Protocol: b{}x", " ".repeat(8_000))]), Http(400));
    add("H17", "32,000 spaces", get(&[&format!("Sec-WebSocket-Protocol: b{}x", " ".repeat(32_000))]), Http(431));
    for nothing in ["", " ", ","] {
        add("H17", "a client that offers nothing", get(&[&format!("Sec-WebSocket-Protocol: {nothing}")]), Accepted);
    }
    add("H17", "what is no token", get(&["Sec-WebSocket-Protocol: ringway.v1, a b"]), Http(400));
    add("H17", "unknown ones only", get(&["Sec-WebSocket-Protocol: chat, soap"]), Http(400));
    rows
}

fn http_attacks() -> Vec<Attack> {
    use Expect::{Accepted, Http, HttpEither};
    let mut rows = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, expect| rows.push(attack(id, what, Stage::Tcp, bytes, expect));
    let many: Vec<String> = (0..2_000).map(|number| format!("X-{number}: 1")).collect();
    add("H1", "2,000 headers", get(&many.iter().map(String::as_str).collect::<Vec<_>>()), Http(431));
    add("H2", "one header of 10 MiB", get(&[&format!("X: {}", "x".repeat(10 << 20))]), Http(431));
    add("H2", "a request line of 9 KiB", request(&format!("GET /{} HTTP/1.1", "x".repeat(9_000)), &[]), Http(414));
    for (what, origin, expect) in [
        ("foreign", "https://evil.example", Http(403)),
        ("null", "null", Http(403)),
        ("look-alike", "http://localhost.evil.example", Http(403)),
        ("with user", "http://localhost@evil.example", Http(403)),
        ("rubbish", "http://[", Http(403)),
        ("own", "http://localhost", Accepted),
    ] {
        add("H7", what, get(&[&format!("Origin: {origin}")]), expect);
    }
    add("H7", "two origins", get(&["Origin: http://localhost", "Origin: https://evil.example"]), Http(400));
    add("H8", "no Host", get(&["-Host"]), Http(400));
    add("H8", "two Hosts", get(&["Host: localhost", "Host: evil.example"]), Http(400));
    add("H8", "a Host that is none", get(&["Host: a b/c"]), Http(400));
    add(
        "H8",
        "another host in the target, which goes before Host",
        request("GET WS://other.example/v1/ws HTTP/1.1", &[]),
        Accepted,
    );
    add("H8", "a target that is no path and no URL", request("GET ws:/v1/ws HTTP/1.1", &[]), Http(400));
    for (what, line) in
        [("12", "Sec-WebSocket-Version: 12"), ("missing", "-Sec-WebSocket-Version"), ("13, 8", "Sec-WebSocket-Version: 13, 8")]
    {
        add("H10", what, get(&[line]), Http(426));
    }
    add("H10", "no Upgrade", get(&["-Upgrade"]), Http(426));
    add("H10", "no Connection: Upgrade", get(&["Connection: keep-alive"]), Http(426));
    let second = [get(&["Sec-WebSocket-Version: 12"]), get(&[])].concat();
    add("H11", "a good request behind a refused one", second, Http(426));
    add("H11", "another path", request("GET / HTTP/1.1", &[]), Http(404));
    add("H11", "path tricks", request("GET /v1/../v1/ws HTTP/1.1", &[]), Http(404));
    add("H11", "another method", request("POST /v1/ws HTTP/1.1", &[]), Http(405));
    for (what, lines) in [
        ("a body", vec!["Content-Length: 5"]),
        ("chunked", vec!["Transfer-Encoding: chunked"]),
        ("both", vec!["Content-Length: 5", "Transfer-Encoding: chunked"]),
        ("two lengths", vec!["Content-Length: 0", "Content-Length: 5"]),
        ("+5", vec!["Content-Length: +5"]),
        ("0x5", vec!["Content-Length: 0x5"]),
        ("a space before the colon", vec!["X-A : 1"]),
        ("obs-fold", vec!["X-A: 1\r\n  2"]),
        ("a header without a colon", vec!["nonsense"]),
        ("a control character", vec!["X-A: \u{1}"]),
    ] {
        add("H13", what, get(&lines), Http(400));
    }
    let bare = String::from_utf8(get(&[])).unwrap().replace("\r\n", "\n").into_bytes();
    add("H13", "bare line feeds", bare, Http(400));
    add("H13", "HTTP/1.0", request("GET /v1/ws HTTP/1.0", &[]), Http(400));
    for (what, line) in [
        ("missing", "-Sec-WebSocket-Key"),
        ("15 bytes", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA"),
        ("17 bytes", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA="),
        ("not base64", "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="),
    ] {
        add("H15", what, get(&[line]), Http(400));
    }
    let two = ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="];
    add("H15", "two keys", get(&two), Http(400));
    add("H19", "a token in the query is of no use and no harm", request("GET /v1/ws?token=abc HTTP/1.1", &[]), Accepted);
    add("H21", "the HTTP/2 preface in clear", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Http(400));
    add("H22", "TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), Http(400));
    add(
        "H23",
        "a PROXY header from a peer that is not trusted",
        [b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), get(&[])].concat(),
        Http(400),
    );
    let slow = UPGRADE.bytes().take(40).map(|byte| (100, vec![byte])).collect();
    rows.push(Attack { id: "H3", what: "a byte each 100 ms".into(), stage: Stage::Tcp, pieces: slow, expect: Http(408) });
    let single =
        [UPGRADE.trim_end().as_bytes(), b"\r\nX: ", &[b'x'; 17_000]].concat().into_iter().map(|byte| (0, vec![byte])).collect();
    rows.push(Attack {
        id: "H2",
        what: "17 KB in pieces of one byte".into(),
        stage: Stage::Tcp,
        pieces: single,
        // Too many reads; a server that started slowly finds more bytes in each, and too many of them.
        expect: HttpEither(400, 431),
    });
    rows.push(attack("H3", "not a byte", Stage::Tcp, "", Http(408)));
    rows.push(attack("H3", "an upgrade and no hello", Stage::Upgraded, "", Expect::Close(4408)));
    rows
}

/// The head of a masked frame with its length in 64 bits, whatever it is.
fn long_head(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first, 0xff];
    bytes.extend(length.to_be_bytes());
    bytes.extend([1, 2, 3, 4]);
    bytes
}

/// A message to the session of exactly so many bytes.
fn message_of(bytes: usize) -> String {
    let empty = r#"{"type":"chat","id":"m","session_id":"attack","payload":""}"#;
    empty.replace("\"\"}", &format!("\"{}\"}}", "x".repeat(bytes - empty.len())))
}

fn in_pieces(message: &[u8], pieces: usize) -> Vec<u8> {
    let size = message.len().div_ceil(pieces);
    let last = message.len().div_ceil(size) - 1;
    let first = |number: usize| if number == 0 { 0x01 } else { 0x00 } | if number == last { 0x80 } else { 0 };
    message.chunks(size).enumerate().flat_map(|(number, chunk)| frame(first(number), chunk)).collect()
}

fn frame_attacks() -> Vec<Attack> {
    use Expect::{Ack, Close};
    use Stage::{Open, Upgraded};
    let mut rows = Vec::new();
    let mut add = |id, what: String, stage, bytes: Vec<u8>, expect| rows.push(attack(id, what, stage, bytes, expect));
    for stage in [Upgraded, Open] {
        add("F1", format!("unmasked, {stage:?}"), stage, b"\x81\x02{}".to_vec(), Close(1002));
        add("F2", format!("binary, {stage:?}"), stage, frame(0x82, b"{}"), Close(1003));
        add("F3", format!("2^63 - 1 bytes, {stage:?}"), stage, long_head(0x81, u64::MAX >> 1), Close(1009));
    }
    for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc9, 0xc8] {
        add("F2", format!("reserved bits {first:#x}"), Open, frame(first, b"{}"), Close(1002));
    }
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        add("F2", format!("opcode {opcode}"), Open, frame(0x80 | opcode, b""), Close(1002));
    }
    for (what, length, code) in [
        ("2^64 - 1", u64::MAX, 1002),
        ("2^63", 1 << 63, 1002),
        ("2^32", 1 << 32, 1009),
        ("limit + 1", MESSAGE_BYTES as u64 + 1, 1009),
        ("5 in 64 bits", 5, 1002),
        ("65,535 in 64 bits", 65_535, 1002),
    ] {
        add("F3", format!("length {what}"), Open, long_head(0x81, length), Close(code));
    }
    add("F3", "5 in 16 bits".into(), Open, b"\x81\xfe\x00\x05\x01\x02\x03\x04".to_vec(), Close(1002));
    add(
        "F3",
        "2^63 - 1 in a continuation".into(),
        Open,
        [frame(0x01, b"{"), long_head(0x80, u64::MAX >> 1)].concat(),
        Close(1009),
    );
    add("F5", "a ping of 126 bytes".into(), Open, frame(0x89, &[0; 126]), Close(1002));
    add("F5", "a close of 126 bytes".into(), Open, frame(0x88, &[0; 126]), Close(1002));
    add("F5", "a fragmented ping".into(), Open, frame(0x09, b""), Close(1002));
    add("F6", "a continuation of nothing".into(), Open, frame(0x80, b"{}"), Close(1002));
    add("F6", "a new message inside one".into(), Open, [frame(0x01, b"{"), frame(0x81, b"}")].concat(), Close(1002));
    add("F7", "65 fragments".into(), Open, [frame(0x01, b"{"), frame(0x00, b" ").repeat(64)].concat(), Close(1009));
    add("F7", "65 empty fragments".into(), Open, [frame(0x01, b""), frame(0x00, b"").repeat(64)].concat(), Close(1009));
    add("F7", "64 fragments".into(), Open, in_pieces(message_of(6_400).as_bytes(), 64), Ack);
    add("F9", "empty messages".into(), Open, text("").repeat(1_000), Close(1007));
    add("F10", "a flood of pings".into(), Open, frame(0x89, b"x").repeat(1_000), Close(1008));
    add("F10", "a flood of pongs".into(), Open, frame(0x8a, b"x").repeat(1_000), Close(1008));
    for bad in
        [&b"\x80"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe0\x80\xaf", b"\xff", b"\xc3"]
    {
        let message = [&br#"{"type":"chat","id":"m","session_id":"attack","payload":""#[..], bad, b"\"}"].concat();
        add("F12", format!("{} in a string", bad.escape_ascii()), Open, frame(0x81, &message), Close(1007));
        add("F12", format!("{} in fragments", bad.escape_ascii()), Open, in_pieces(&message, 40), Close(1007));
    }
    add("F12", "cut at the message's end".into(), Open, frame(0x81, b"{\"a\":\"\xf0\x9f"), Close(1007));
    add("F13", "a close of one byte".into(), Open, frame(0x88, b"\x03"), Close(1002));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        add("F13", format!("close code {code}"), Open, frame(0x88, &code.to_be_bytes()), Close(1002));
    }
    add("F13", "a reason that is no UTF-8".into(), Open, frame(0x88, b"\x03\xe8\xff"), Close(1007));
    for code in [1000_u16, 1001, 3000, 4999] {
        let close = frame(0x88, &code.to_be_bytes());
        add("F14", format!("{code}, then more"), Open, [close, text(&message_of(200)).repeat(50)].concat(), Close(code));
    }
    let (fits, more) = (message_of(MESSAGE_BYTES), message_of(MESSAGE_BYTES + 1));
    add("F17", "the limit".into(), Open, text(&fits), Ack);
    add("F17", "the limit in fragments".into(), Open, in_pieces(fits.as_bytes(), 60), Ack);
    add("F17", "over the limit".into(), Open, text(&more), Close(1009));
    add("F17", "over the limit in fragments".into(), Open, in_pieces(more.as_bytes(), 60), Close(1009));
    let mut dripping = vec![(0, head(0x81, 60_000))];
    dripping.extend((0..12).map(|_| (100, b"x".to_vec())));
    rows.push(Attack { id: "F19", what: "a byte each 100 ms".into(), stage: Open, pieces: dripping, expect: Close(1008) });
    rows.push(attack("F19", "half a frame's head", Open, &b"\x81"[..], Close(1008)));
    rows.push(attack("F19", "a fragment and no end", Open, frame(0x01, b"{"), Close(1008)));
    rows
}

fn envelope_attacks() -> Vec<Attack> {
    use Expect::{Ack, Close, Error};
    let mut rows = Vec::new();
    let mut add = |id, what: &str, message: String, expect| rows.push(attack(id, what, Stage::Open, text(&message), expect));
    let payload = |payload: &str| format!(r#"{{"type":"chat","id":"m","session_id":"attack","payload":{payload}}}"#);
    add("J1", "30,000 arrays deep", payload(&("[".repeat(30_000) + &"]".repeat(30_000))), Close(1007));
    add("J1", "64 levels", payload(&("[".repeat(64) + &"]".repeat(64))), Close(1007));
    add("J1", "63 levels and the envelope", payload(&("[".repeat(63) + &"]".repeat(63))), Ack);
    add("J1", "30,000 objects deep, unfinished", payload(&"{\"a\":".repeat(10_000)), Close(1007));
    let twice = r#"{"type":"chat","id":"m","id":"n","session_id":"attack","payload":1}"#;
    add("J2", "a key twice", twice.into(), Error("envelope.invalid"));
    add("J2", "a key twice, once escaped", twice.replacen("\"id\"", r#""\u0069d""#, 1), Error("envelope.invalid"));
    add("J2", "a key twice in the payload is the application's", payload(r#"{"a":1,"a":2}"#), Ack);
    for (what, string) in [("lone high", r"\ud800"), ("lone low", r"\udc00"), ("swapped", r"\udc00\ud800"), ("half", r"\ud83")] {
        add("J3", what, payload(&format!("\"{string}\"")), Close(1007));
    }
    add("J5", "a raw NUL", payload("\"\0\""), Close(1007));
    add("J5", "a raw 0x1f", payload("\"\u{1f}\""), Close(1007));
    add("J5", "a byte order mark", "\u{feff}".to_owned() + &payload("1"), Close(1007));
    for number in ["18446744073709551616", "-0", "0.99999999999999999999999", "1e300"] {
        add("J7", number, payload(number), Ack);
    }
    for (what, json) in [
        ("NaN", "NaN"),
        ("Infinity", "-Infinity"),
        ("a comment", "1/**/"),
        ("single quotes", "'a'"),
        ("a leading zero", "01"),
        ("a trailing comma", "[1,]"),
        ("hex", "0x10"),
        ("a plus", "+1"),
        ("a bare dot", "1."),
        ("rubbish behind", "1}x"),
        ("no value", ""),
        ("a word cut short", "tru"),
    ] {
        add("J9", what, payload(json), Close(1007));
    }
    add("J10", "64 KB of quotes", payload(&"\"".repeat(60_000)), Close(1007));
    add("J10", "64 KB of backslashes", payload(&format!("\"{}", "\\".repeat(60_000))), Close(1007));
    let keys: Vec<String> = (0..5_000).map(|number| format!("\"k{number}\":1")).collect();
    add("J10", "5,000 keys in the payload", payload(&format!("{{{}}}", keys.join(","))), Ack);
    let outside = format!(r#"{{"type":"chat","id":"m","session_id":"attack","payload":1,{}}}"#, keys[..4_000].join(","));
    add("J10", "4,000 keys of the envelope", outside, Error("envelope.invalid"));
    add("J11", "__proto__", payload(r#"{"__proto__":{"admin":true},"constructor":1}"#), Ack);
    for (what, message, error) in [
        ("an array", "[]".to_owned(), "envelope.invalid"),
        ("a string", "\"rw.hello\"".to_owned(), "envelope.invalid"),
        ("no id", r#"{"type":"chat","session_id":"attack","payload":1}"#.to_owned(), "envelope.invalid"),
        ("no payload", r#"{"type":"chat","id":"m","session_id":"attack"}"#.to_owned(), "envelope.invalid"),
        ("an id with a space", payload("1").replace("\"m\"", "\"m m\""), "envelope.invalid"),
        ("an id of 129", payload("1").replace("\"m\"", &format!("\"{}\"", "m".repeat(129))), "envelope.invalid"),
        ("a number for an id", payload("1").replace("\"m\"", "1"), "envelope.invalid"),
        ("a type in capitals", payload("1").replace("chat", "Chat"), "envelope.invalid"),
        ("the gateway's own keys", payload("1,\"from\":\"rw\",\"seq\":1"), "envelope.invalid"),
        ("a malformed traceparent", payload("1,\"traceparent\":\"00-0-0-0\""), "envelope.invalid"),
        ("meta over 2 KiB", payload(&format!("1,\"meta\":{{\"a\":\"{}\"}}", "x".repeat(2_100))), "envelope.invalid"),
        ("33 addresses", payload("1,\"to\":[").replace('}', "") + &["\"user:a\""; 33].join(",") + "]}", "envelope.invalid"),
        ("an address with a wildcard", payload("1,\"to\":\"room:*\""), "envelope.invalid"),
        ("a type of the gateway's", payload("{}").replace("chat", "rw.welcome"), "envelope.unknown_type"),
        ("another session", payload("1").replace("attack", "other"), "session.not_attached"),
        ("a reserved type", payload("{}").replace("chat", "rw.stream.open"), "envelope.unknown_type"),
        ("a command without its payload", payload("1").replace("chat", "rw.join"), "envelope.invalid"),
    ] {
        add("J12", what, message, Error(error));
    }
    rows
}

fn hello(client_id: &str, token: &str) -> String {
    json!({"type": "rw.hello", "id": "h", "session_id": "attack", "payload": {"client_id": client_id, "auth_token": token}})
        .to_string()
}

fn token_attacks() -> Vec<Attack> {
    let mut rows = Vec::new();
    let mut add = |id, what: String, token: String, error, close| {
        rows.push(attack(id, what, Stage::Upgraded, text(&hello("ana", &token)), Expect::Refused(error, close)));
    };
    let good = claims("ana", &json!({})).to_string();
    let with = |changes: Value| {
        let mut head = header();
        for (name, value) in changes.as_object().unwrap() {
            head[name] = value.clone();
        }
        forged(&head.to_string(), &good, SECRET)
    };
    for algorithm in ["none", "None", "NONE", "nOnE", "", "HS512", "HS384", "RS256", "ES256", "EdDSA"] {
        let head = json!({"alg": algorithm, "kid": "test"}).to_string();
        let unsigned = format!("{}.{}.", base64(&head), base64(&good));
        add("W1", format!("{algorithm:?} without a signature"), unsigned, "auth.", 4401);
        add("W2", format!("{algorithm:?} signed with HS256"), forged(&head, &good, SECRET), "auth.", 4401);
    }
    add("W1", "no alg".into(), forged(r#"{"kid":"test"}"#, &good, SECRET), "auth.", 4401);
    add("W1", "alg twice".into(), forged(r#"{"alg":"HS256","alg":"none","kid":"test"}"#, &good, SECRET), "auth.malformed", 4401);
    add(
        "W3",
        "another secret".into(),
        forged(&header().to_string(), &good, b"another secret of forty characters......"),
        "auth.signature",
        4401,
    );
    let now = now_s();
    for (id, what, changes, error) in [
        ("W4", "expired 30 s ago", json!({"exp": now - 30}), "auth.expired"),
        ("W5", "no exp", json!({"exp": null}), "auth.claims"),
        ("W5", "exp a string", json!({"exp": "soon"}), "auth.claims"),
        ("W5", "exp 1e30", json!({"exp": 1e30}), "auth.claims"),
        ("W5", "exp negative", json!({"exp": -1}), "auth.claims"),
        ("W5", "exp in ten years", json!({"exp": now + 315_360_000}), "auth.claims"),
        ("W6", "nbf in the future", json!({"nbf": now + 3_600}), "auth.not_yet_valid"),
        ("W7", "nbf a string", json!({"nbf": "0"}), "auth.claims"),
        ("W7", "iat in the future", json!({"iat": now + 3_600}), "auth.not_yet_valid"),
        ("W9", "an aud, made for somebody else", json!({"aud": "other"}), "auth.audience"),
        ("W9", "no sub", json!({"sub": null}), "auth.claims"),
        ("W9", "sub a number", json!({"sub": 1}), "auth.claims"),
        ("W9", "no sid", json!({"sid": null}), "auth.claims"),
        ("W9", "sid an object", json!({"sid": {}}), "auth.claims"),
    ] {
        add(id, what.to_owned(), token_with("ana", &changes), error, 4401);
    }
    for (what, kid) in [
        ("a path", "../../etc/passwd".to_owned()),
        ("SQL", "' OR 1=1 --".to_owned()),
        ("5 KB", "k".repeat(5_000)),
        ("unknown", "other".to_owned()),
        ("empty", String::new()),
    ] {
        add("W12", format!("kid: {what}"), with(json!({"kid": kid})), "auth.", 4401);
    }
    let crit = with(json!({"crit": ["b64"], "b64": false}));
    add("W13", "crit".into(), crit, "auth.malformed", 4401);
    let token = token("ana");
    let (signed, signature) = token.rsplit_once('.').unwrap();
    for (what, bad) in [
        ("two parts", signed.to_owned()),
        ("four parts", format!("{token}.x")),
        ("empty parts", "..".to_owned()),
        ("nothing", String::new()),
        ("padding", format!("{token}=")),
        ("a line end", format!("{token}\n")),
        ("a space", format!(" {token}")),
        ("no signature", format!("{signed}.")),
        ("a signature cut short", format!("{signed}.{}", &signature[..20])),
        ("not base64url", format!("{signed}.{}", signature.replace(|letter: char| letter.is_ascii_digit(), "+") + "+")),
        ("over 8 KiB", format!("{token}.{}", "x".repeat(9_000))),
        ("a header 2,000 deep", forged(&("[".repeat(2_000) + &"]".repeat(2_000)), &good, SECRET)),
    ] {
        add("W18", what.into(), bad, "auth.", 4401);
    }
    add("W19", "another user's session".into(), token_with("ana", &json!({"sid": ["other"]})), "auth.forbidden_session", 4403);
    add("W19", "another user's token".into(), token_with("ben", &json!({})), "auth.client_id", 4403);
    // Claims and headers that must be ignored are: no URL of a token is fetched, the key is the configured one.
    let jku = with(json!({"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/", "jwk": {"kty": "oct", "k": "AAAA"}}));
    rows.push(attack("W13", "jku, x5u and jwk", Stage::Upgraded, text(&hello("ana", &jku)), Expect::Accepted));
    rows
}

fn start(more: &[(&str, &str)]) -> Gateway {
    let short = SHORT_MS.to_string();
    let mut settings = vec![
        ("limits.handshake_ms", &*short),
        ("limits.tls_handshake_ms", &*short),
        ("limits.unfinished_message_ms", &*short),
        ("limits.close_ms", "300"),
        ("server.max_connections", "2000"),
    ];
    settings.extend(more);
    Gateway::start(&settings)
}

/// Runs one row. Returns what was wrong.
fn run(gateway: &Gateway, number: usize, row: &Attack) -> Result<(), String> {
    let mut raw = Raw::connect(gateway.address);
    let began = Instant::now();
    if row.stage != Stage::Tcp {
        raw.upgrade(UPGRADE);
    }
    if row.stage == Stage::Open {
        let client = format!("attacker{number}");
        raw.send(&text(&hello(&client, &token(&client))));
        let welcome = [raw.json(), raw.json()];
        if welcome[0]["type"] != "rw.welcome" || welcome[1]["type"] != "rw.caught_up" {
            return Err(format!("no welcome: {welcome:?}"));
        }
    }
    for (wait_ms, bytes) in &row.pieces {
        if *wait_ms > 0 {
            pause(*wait_ms);
        }
        // The gateway does not read all bytes of an input that it refuses early.
        if !raw.send(bytes) {
            break;
        }
    }
    let pauses: u64 = row.pieces.iter().map(|(wait_ms, _)| wait_ms).sum();
    let wrong = |got: String| if got.is_empty() { Ok(()) } else { Err(format!("expected {:?}, got {got}", row.expect)) };
    let verdict = match &row.expect {
        Expect::Http(status) | Expect::HttpEither(status, _) => {
            let or = if let Expect::HttpEither(_, or) = &row.expect { or } else { status };
            let answer = String::from_utf8_lossy(&raw.rest()).into_owned();
            let answers = answer.matches("Connection: close").count();
            let good = answers == 1 && [status, or].iter().any(|status| answer.starts_with(&format!("HTTP/1.1 {status} ")));
            wrong(if good { String::new() } else { answer })
        }
        Expect::Dropped => wrong(String::from_utf8_lossy(&raw.rest()).into_owned()),
        Expect::Accepted if row.stage == Stage::Tcp => {
            let head = raw.head();
            wrong(if head.starts_with("HTTP/1.1 101 ") { String::new() } else { head })
        }
        Expect::Accepted => {
            let answer = raw.json();
            wrong(if answer["type"] == "rw.welcome" { String::new() } else { answer.to_string() })
        }
        Expect::Ack => {
            let answer = reply(&mut raw);
            wrong(if answer["type"] == "rw.ack" { String::new() } else { answer.to_string() }).and_then(|()| still_open(&mut raw))
        }
        Expect::Error(code) => {
            let answer = reply(&mut raw);
            let good = answer["type"] == "rw.error" && answer["payload"]["code"] == *code;
            wrong(if good { String::new() } else { answer.to_string() }).and_then(|()| still_open(&mut raw))
        }
        Expect::Close(code) => {
            let (got, texts, _) = raw.end();
            wrong(if got == Some(*code) { String::new() } else { format!("{got:?} after {texts:?}") })
        }
        Expect::Refused(code, close) => {
            let (got, texts, _) = raw.end();
            let error: Value = texts.last().map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
            let good = got == Some(*close) && error["payload"]["code"].as_str().is_some_and(|got| got.starts_with(code));
            // No answer tells a secret: not the token, nor a part of it.
            let leak = row.pieces[0].1.len() > 200 && error.to_string().len() > 1_000;
            wrong(if good && !leak { String::new() } else { format!("{got:?} after {texts:?}") })
        }
    };
    let took = began.elapsed();
    let open = matches!(row.expect, Expect::Accepted | Expect::Ack | Expect::Error(_));
    if !open && took > Duration::from_millis(WITHIN_MS + pauses) {
        return Err(format!("it took {took:?}"));
    }
    verdict
}

/// The gateway's next answer; messages of the other rows to the session are skipped.
fn reply(raw: &mut Raw) -> Value {
    loop {
        let message = raw.json();
        if message["type"].as_str().is_some_and(|kind| kind.starts_with("rw.")) {
            return message;
        }
    }
}

/// The connection still answers.
fn still_open(raw: &mut Raw) -> Result<(), String> {
    raw.send(&text(r#"{"type":"rw.ping","id":"still","session_id":"attack","payload":{}}"#));
    let answer = reply(raw);
    if answer["type"] == "rw.pong" { Ok(()) } else { Err(format!("not open any more: {answer}")) }
}

fn run_all(gateway: &Gateway, rows: &[Attack]) {
    let next = AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(row) = rows.get(number) else { return };
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(gateway, number, row)));
                    let outcome = outcome.unwrap_or_else(|panic| {
                        Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".to_owned()))
                    });
                    if let Err(problem) = outcome {
                        let problem: String = problem.chars().take(600).collect();
                        failures.lock().unwrap().push(format!("{} {}: {problem}", row.id, row.what));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), rows.len(), failures.join("\n"));
}

/// After all attacks the gateway is as before: nobody is left, nothing leaks, clients are served, nothing panicked.
fn unharmed(gateway: &Gateway, files_before: usize) {
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    let deadline = Instant::now() + Duration::from_secs(5);
    while gateway.open_files() > files_before {
        assert!(Instant::now() < deadline, "{files_before} files were open, now {:?}", gateway.list_open_files());
        pause(20);
    }
    assert_eq!(gateway.metric("ringway_panics_total", ""), 0);
    let mut raw = Raw::connect(gateway.address);
    raw.upgrade(UPGRADE);
    raw.send(&text(&hello("good", &token("good"))));
    assert_eq!(raw.json()["type"], "rw.welcome");
}

/// Bounds that a table's rows reached are counted, each at least this often.
fn counted(gateway: &Gateway, limits: &[(&str, u64)]) {
    for (limit, least) in limits {
        let count = gateway.metric("ringway_limits_reached_total", &format!("limit=\"{limit}\""));
        assert!(count >= *least, "{limit}: counted {count} times, reached {least} times at least");
    }
}

/// Open files once every shard runs, before any client.
fn files(gateway: &Gateway) -> usize {
    let deadline = Instant::now() + Duration::from_secs(5);
    while gateway.admin("/readyz").0 != 200 {
        assert!(Instant::now() < deadline, "{:?}", gateway.admin("/readyz"));
        pause(20);
    }
    gateway.open_files()
}

#[test]
fn the_http_upgrade() {
    let (gateway, mut rows) = (start(&[]), http_attacks());
    rows.extend(list_attacks());
    let before = files(&gateway);
    assert_eq!(rows.len(), 63, "rows are added here too, so that none is lost unseen");
    run_all(&gateway, &rows);
    counted(&gateway, &[("request_head", 6), ("handshake_time", 3)]);
    unharmed(&gateway, before);
}

#[test]
fn frames() {
    let (gateway, rows) = (start(&[]), frame_attacks());
    let before = files(&gateway);
    assert_eq!(rows.len(), 81);
    run_all(&gateway, &rows);
    let limits = [("message_bytes", 7), ("fragments", 2), ("control_frame_rate", 2), ("unfinished_message", 3)];
    counted(&gateway, &limits);
    unharmed(&gateway, before);
}

#[test]
fn envelopes() {
    let (gateway, rows) = (start(&[]), envelope_attacks());
    let before = files(&gateway);
    assert_eq!(rows.len(), 52);
    run_all(&gateway, &rows);
    counted(&gateway, &[("json_depth", 3)]);
    unharmed(&gateway, before);
}

#[test]
fn tokens() {
    let (gateway, rows) = (start(&[]), token_attacks());
    let before = files(&gateway);
    assert_eq!(rows.len(), 58);
    run_all(&gateway, &rows);
    counted(&gateway, &[("token_bytes", 1)]);
    let refused = rows.iter().filter(|row| matches!(row.expect, Expect::Refused(..))).count();
    assert_eq!(gateway.metric("ringway_auth_refused_total", ""), refused as u64);
    unharmed(&gateway, before);
    let log = gateway.log().join("\n");
    assert!(!log.contains("eyJ"), "the beginning of a token is in the log");
}

#[test]
fn extensions_where_deflate_is_on() {
    let gateway = start(&[("deflate.enabled", "true")]);
    let before = files(&gateway);
    // An offer with an invalid parameter is declined (RFC 7692 section 7.1); a header that is no list of extensions is refused.
    for (value, status, agreed) in [
        ("permessage-deflate", 101, true),
        ("permessage-deflate; server_max_window_bits=\"10\"", 101, false),
        ("x-other, permessage-deflate", 101, true),
        ("permessage-deflate; constructor, permessage-deflate", 101, true),
        ("permessage-deflate; server_max_window_bits=7", 101, false),
        ("permessage-deflate; server_max_window_bits=16", 101, false),
        ("permessage-deflate; server_max_window_bits=08", 101, false),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", 101, false),
        ("permessage-deflate; constructor", 101, false),
        ("permessage-deflate; =", 400, false),
        ("permessage-deflate; a=\"", 400, false),
    ] {
        let mut raw = Raw::connect(gateway.address);
        raw.send(&get(&[&format!("Sec-WebSocket-Extensions: {value}")]));
        let head = raw.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{value}: {head}");
        assert_eq!(head.contains("Sec-WebSocket-Extensions: permessage-deflate"), agreed, "{value}: {head}");
    }
    unharmed(&gateway, before);
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 1024);
    Compress::new(Compression::best(), false).compress_vec(data, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

/// C1, C2 and C4: data that inflates to many times its size.
#[test]
fn deflate_bombs() {
    const BYTES_PER_SECOND: u64 = 200_000;
    let (rate, abuse_ms) = (BYTES_PER_SECOND.to_string(), SHORT_MS.to_string());
    let gateway = start(&[
        ("deflate.enabled", "true"),
        ("limits.bytes_per_second", &rate),
        ("limits.messages_per_second", "0"),
        ("limits.rate_abuse_ms", &abuse_ms),
    ]);
    let before = files(&gateway);
    let inflated = || gateway.metric("ringway_inflated_bytes_total", "");
    let offer = UPGRADE.strip_suffix("\r\n").unwrap().to_owned() + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let large = frame(0xc1, &deflated(&vec![b' '; 8 << 20]));
    assert!(large.len() < MESSAGE_BYTES, "its frame alone is within the limit: {}", large.len());
    let empty_blocks = frame(0xc1, &b"\x00\x00\x00\xff\xff".repeat(10_000));
    for (what, bytes, code) in [("C1 before the hello", large, 1009), ("C4 empty blocks", empty_blocks, 1007)] {
        let mut raw = Raw::connect(gateway.address);
        raw.upgrade(&offer);
        let began = Instant::now();
        raw.send(&bytes);
        let (got, texts, ended) = raw.end();
        assert_eq!(got, Some(code), "{what}: {texts:?}");
        assert!(ended.duration_since(began) < Duration::from_millis(WITHIN_MS), "{what}");
        assert!(inflated() <= MESSAGE_BYTES as u64 + 1, "{what}: {}", inflated());
    }
    // C2: each is within the limit, and good. The first ones are taken.
    let small = frame(0xc1, &deflated(message_of(MESSAGE_BYTES).as_bytes()));
    assert!(small.len() < 400, "{}", small.len());
    let (mut raw, already) = (Raw::connect(gateway.address), inflated());
    raw.upgrade(&offer);
    raw.send(&text(&hello("bomber", &token("bomber"))));
    assert_eq!(raw.json()["type"], "rw.welcome");
    let (mut sender, began) = (raw.stream.try_clone().unwrap(), Instant::now());
    let bombs = std::thread::spawn(move || {
        let mut sent = 0;
        while sender.write_all(&small.repeat(20)).is_ok() && began.elapsed() < Duration::from_millis(10 * WITHIN_MS) {
            sent += 20;
            pause(10);
        }
        sent
    });
    let (code, texts, ended) = raw.end();
    let (took, sent) = (ended.duration_since(began), bombs.join().unwrap());
    assert_eq!(code, Some(4429), "{:?}", texts.last());
    assert!(took > Duration::from_millis(SHORT_MS) && took < Duration::from_millis(WITHIN_MS), "{took:?}");
    let answers: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let acks = answers.iter().filter(|answer| answer["type"] == "rw.ack").count() as u64;
    assert!(acks >= BYTES_PER_SECOND / MESSAGE_BYTES as u64, "{acks} acks");
    let last = answers.last().unwrap();
    assert_eq!((&last["payload"]["code"], &last["id"]), (&json!("limit.rate"), &json!("")), "{last}");
    let frame_number = last["payload"]["details"]["frame"].as_u64().unwrap();
    assert!(frame_number > acks && frame_number <= sent + 20, "the number tells which was refused: {last}");
    let (came_to, all) = (inflated() - already, frame_number * MESSAGE_BYTES as u64);
    let paid = BYTES_PER_SECOND * (took.as_millis() as u64 + 1_000) / 1_000 + MESSAGE_BYTES as u64;
    assert!(came_to <= paid && all > 2 * paid, "{came_to} bytes inflated, {paid} within the rate, {all} sent");
    counted(&gateway, &[("byte_rate", 10), ("rate_abuse", 1), ("message_bytes", 1)]);
    unharmed(&gateway, before);
}

/// H4, H22: bytes that are no TLS, or TLS that never ends. H5 and H6 need a client that speaks it: e2e/tls_hostile.rs.
#[test]
fn tls_handshakes() {
    let data = |name: &str| format!("\"{}/tests/data/tls/{name}\"", env!("CARGO_MANIFEST_DIR"));
    let gateway = start(&[("tls.certificate", &data("localhost.cert.pem")), ("tls.key", &data("localhost.key.pem"))]);
    let before = files(&gateway);
    let slow = (0..20).map(|_| (100, b"\x16".to_vec())).collect();
    let rows = [
        attack("H4", "not a byte", Stage::Tcp, "", Expect::Dropped),
        attack("H4", "a record's head only", Stage::Tcp, &b"\x16\x03\x01\x02\x00"[..], Expect::Dropped),
        Attack { id: "H4", what: "0x16 each 100 ms".into(), stage: Stage::Tcp, pieces: slow, expect: Expect::Dropped },
    ];
    for (number, row) in rows[..2].iter().enumerate() {
        run(&gateway, number, row).unwrap();
    }
    // Bytes that are no TLS are answered with an alert at most, never with HTTP, and the connection ends.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x00\x00\x02\x01\x00",
        b"\x15\x03\x03\x00\x02\x01\x00",
        b"\x17\x03\x03\xff\xff",
        &[0; 4_000],
    ] {
        let mut raw = Raw::connect(gateway.address);
        let began = Instant::now();
        raw.send(bytes);
        let answer = raw.rest();
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
        assert!(began.elapsed() < Duration::from_millis(WITHIN_MS), "{:?}", began.elapsed());
    }
    let mut raw = Raw::connect(gateway.address);
    let began = Instant::now();
    for (wait_ms, bytes) in &rows[2].pieces {
        pause(*wait_ms);
        if !raw.send(bytes) {
            break;
        }
    }
    assert!(raw.rest().first().is_none_or(|first| *first == 0x15));
    assert!(began.elapsed() < Duration::from_millis(WITHIN_MS + 2_000));
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    assert!(gateway.open_files() <= before + 1);
}

/// H20: connections without a byte: the oldest give way, normal clients get in.
#[test]
fn half_open_floods() {
    let gateway = start(&[("server.max_connections", "200"), ("limits.handshake_ms", "60000")]);
    let mut silent: Vec<Raw> = (0..100).map(|_| Raw::connect(gateway.address)).collect();
    gateway.until_metric("ringway_accepted_total", "", |accepted| accepted == 100);
    gateway.until_metric("ringway_connections_half_open", "", |half_open| half_open <= 20);
    assert!(silent[0].rest().is_empty(), "the oldest is dropped without an answer");
    let mut raw = Raw::connect(gateway.address);
    raw.upgrade(UPGRADE);
    raw.send(&text(&hello("good", &token("good"))));
    assert_eq!(raw.json()["type"], "rw.welcome");
    assert!(gateway.metric("ringway_limits_reached_total", "half_open\"") >= 80);
}

/// F15 and F16: a peer's behaviour at the end, or in place of it.
#[test]
fn ends() {
    let gateway = start(&[]);
    let before = files(&gateway);
    let open = |client: &str| {
        let mut raw = Raw::connect(gateway.address);
        raw.upgrade(UPGRADE);
        raw.send(&text(&hello(client, &token(client))));
        assert_eq!(raw.json()["type"], "rw.welcome");
        raw
    };
    // Endless data behind the gateway's close.
    let mut raw = open("endless");
    let began = Instant::now();
    raw.send(&frame(0x82, b""));
    while raw.send(&[0x55; 16_000]) {
        assert!(began.elapsed() < Duration::from_millis(WITHIN_MS), "it goes on reading");
    }
    // A FIN without a close, a FIN in the middle of a frame, a reset.
    for bytes in [&b""[..], b"\x81\xfe\x40"] {
        let mut raw = open("fin");
        let began = Instant::now();
        raw.send(bytes);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (_, _, ended) = raw.end();
        assert!(ended.duration_since(began) < Duration::from_millis(WITHIN_MS), "{:?}", ended.duration_since(began));
    }
    let raw = open("reset");
    socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(raw);
    unharmed(&gateway, before);
}

/// U4, U5 and U6: thousands of connections that come and go leave no file, no connection and no shard behind.
#[test]
fn connections_that_come_and_go_leave_nothing() {
    let gateway = start(&[("server.shards", "2"), ("limits.handshakes_per_second", "0")]);
    let before = files(&gateway);
    for round in 0..300 {
        let mut raws: Vec<Raw> = (0..4).map(|_| Raw::connect(gateway.address)).collect();
        for (number, raw) in raws.iter_mut().enumerate() {
            match (round + number) % 4 {
                0 => {}
                1 => drop(raw.send(b"GET /v1")),
                2 => drop(raw.send(UPGRADE.as_bytes())),
                _ => drop(raw.send(&[UPGRADE.as_bytes(), &text(&hello("ana", &token("ana")))].concat())),
            }
            if number % 2 == 0 {
                socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }
    unharmed(&gateway, before);
    assert_eq!(gateway.admin("/healthz").0, 200);
}
