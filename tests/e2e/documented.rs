//! The examples of docs/protocol.md, played against the gateway: every line that a client sends there, and every line that it gets.
//!
//! A block of the manual whose fence says `text exchange` is a talk of clients; settings of the gateway may follow, as in
//! `text exchange session.history_messages=2`. A block that says `text http clients` or `text http admin` is a request with its
//! answer. The manual's `…` stands for any text, or for more keys; keys of [`VARYING`] have another value each time.

use crate::gateway::Gateway;
use crate::raw::{Raw, UPGRADE, frame, text};
use crate::token::token_with;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Shutdown;

const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md");
/// Numbers that depend on the clock.
const VARYING: [&str; 5] = ["ts", "now", "since_at", "token_expires_in_ms", "retry_after_ms"];
/// The key that stands for all keys that an example leaves out.
const MORE: &str = "…";

/// A block of the manual between fences.
struct Block {
    /// The number of the section.
    section: u32,
    /// The line of the manual, from 1, at which the fence stands.
    line: usize,
    /// The words behind the fence.
    fence: Vec<String>,
    lines: Vec<String>,
}

fn blocks() -> Vec<Block> {
    let (mut found, mut section) = (Vec::new(), 0);
    let mut open: Option<Block> = None;
    let manual = std::fs::read_to_string(MANUAL).unwrap();
    for (line, text) in (1..).zip(manual.lines()) {
        match (&mut open, text.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.lines.push(text.to_owned()),
            (None, Some(fence)) => {
                let fence = fence.split_whitespace().map(str::to_owned).collect();
                open = Some(Block { section, line, fence, lines: Vec::new() });
            }
            (None, None) => {
                if let Some(number) = text.strip_prefix("## ").and_then(|title| title.split('.').next()) {
                    section = number.parse().unwrap_or(section);
                }
            }
        }
    }
    assert!(open.is_none(), "the last fence of the manual is open");
    found
}

fn is_kind(block: &Block, kind: &str) -> bool {
    block.fence.get(1).is_some_and(|word| word == kind)
}

/// A line of an exchange: the client, `true` if the client sends it, and the text.
fn steps(block: &Block) -> Vec<(String, bool, String)> {
    let mut steps: Vec<(String, bool, String)> = Vec::new();
    for line in &block.lines {
        if let Some(more) = line.strip_prefix("      ") {
            steps.last_mut().unwrap().2.push_str(more);
            continue;
        }
        let (head, text) = line.split_once(' ').unwrap_or_else(|| panic!("no line of an exchange: {line:?}"));
        let sends = head.ends_with('>');
        assert!(sends || head.ends_with('<'), "no line of an exchange: {line:?}");
        steps.push((head[..head.len() - 1].to_owned(), sends, text.to_owned()));
    }
    steps
}

/// A line's JSON, with the key [`MORE`] where it says that there are more keys.
fn documented(text: &str) -> Value {
    let whole = text.replace(",…}", &format!(",\"{MORE}\":0}}"));
    serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Compares a line of the manual with the gateway's; returns the first difference. `epochs` takes the manual's epochs to the
/// gateway's.
fn differs(wanted: &Value, got: &Value, epochs: &mut BTreeMap<String, String>) -> Option<String> {
    let difference = || Some(format!("the manual has {wanted}, the gateway {got}"));
    match (wanted, got) {
        (Value::Object(wanted), Value::Object(got)) => differing_keys(wanted, got, epochs),
        (Value::Array(wanted), Value::Array(got)) if wanted.len() == got.len() => {
            wanted.iter().zip(got).find_map(|(wanted, got)| differs(wanted, got, epochs))
        }
        (Value::String(wanted), Value::String(got)) => match wanted.split_once('…') {
            Some((begin, end)) => (!(got.starts_with(begin) && got.ends_with(end))).then(difference)?,
            None => (wanted != got).then(difference)?,
        },
        _ => (wanted != got).then(difference)?,
    }
}

fn differing_keys(
    wanted: &Map<String, Value>,
    got: &Map<String, Value>,
    epochs: &mut BTreeMap<String, String>,
) -> Option<String> {
    let unknown = got.keys().find(|key| !wanted.contains_key(*key));
    if let Some(key) = unknown.filter(|_| !wanted.contains_key(MORE)) {
        return Some(format!("the manual lacks the key {key:?}"));
    }
    wanted.iter().filter(|(key, _)| *key != MORE).find_map(|(key, wanted)| {
        let Some(got) = got.get(key) else { return Some(format!("the gateway has no key {key:?}")) };
        if let ("epoch", Some(wanted), Some(got)) = (&**key, wanted.as_str(), got.as_str()) {
            let known = epochs.entry(wanted.to_owned()).or_insert_with(|| got.to_owned());
            return (known != got || got.len() != wanted.len()).then(|| format!("another epoch than before: {got}"));
        }
        if VARYING.contains(&&**key) && wanted.is_u64() && got.is_u64() {
            return None;
        }
        differs(wanted, got, epochs).map(|difference| format!("{key}: {difference}"))
    })
}

/// Puts a token in place of each `<JWT sub=… sid=… roles=…>`; lists are split at commas.
fn with_tokens(text: &str) -> String {
    let mut parts = text.split("<JWT ");
    let mut whole = parts.next().unwrap().to_owned();
    for part in parts {
        let (claims, rest) = part.split_once('>').unwrap();
        let claims: BTreeMap<&str, &str> = claims.split(' ').map(|claim| claim.split_once('=').unwrap()).collect();
        let list = |claim: &str| claims.get(claim).map(|names| names.split(',').collect::<Vec<_>>());
        let token = token_with(claims["sub"], &json!({"sid": list("sid"), "roles": list("roles").unwrap_or_default()}));
        whole += &token;
        whole += rest;
    }
    whole
}

/// The clients of an exchange.
struct Play {
    gateway: Gateway,
    clients: BTreeMap<String, Raw>,
    epochs: BTreeMap<String, String>,
}

impl Play {
    fn client(&mut self, name: &str) -> &mut Raw {
        let address = self.gateway.address;
        self.clients.entry(name.to_owned()).or_insert_with(|| {
            let mut client = Raw::connect(address);
            client.upgrade(UPGRADE);
            client
        })
    }

    /// Says the hello that an example leaves out.
    fn enter(&mut self, name: &str) {
        let payload = json!({"client_id": name, "auth_token": token_with(name, &json!({}))});
        let hello = json!({"type": "rw.hello", "id": "1", "session_id": "s-42", "payload": payload});
        let client = self.client(name);
        client.send(&text(&hello.to_string()));
        assert_eq!(client.json()["type"], "rw.welcome");
        assert_eq!(client.json()["type"], "rw.caught_up");
    }

    fn sends(&mut self, name: &str, line: &str) {
        match line {
            "(SIGTERM)" => self.gateway.signal(rustix::process::Signal::TERM),
            "(loses its connection)" => {
                let before = self.gateway.metric("ringway_closes_total", "");
                self.clients.remove(name).unwrap().stream.shutdown(Shutdown::Both).unwrap();
                self.gateway.until_metric("ringway_closes_total", "", |count| count > before);
            }
            "(binary frame)" => assert!(self.client(name).send(&frame(0x82, b"\x00"))),
            _ => {
                let line = self.epochs.iter().fold(with_tokens(line), |line, (wanted, got)| line.replace(wanted, got));
                assert!(self.client(name).send(&text(&line)), "the gateway no longer takes {line}");
            }
        }
    }

    /// Reads a client's next line, and compares it.
    fn gets(&mut self, name: &str, line: &str) -> Result<(), String> {
        let client = self.clients.get_mut(name).unwrap();
        if let Some(close) = line.strip_prefix("(close ").and_then(|close| close.strip_suffix(')')) {
            let (code, reason) = close.split_once(' ').unwrap();
            let frame = client.next().ok_or("ended without a close frame")?;
            let wanted = [&code.parse::<u16>().unwrap().to_be_bytes(), reason.as_bytes()].concat();
            self.clients.remove(name);
            return if frame.payload == wanted { Ok(()) } else { Err(format!("the gateway sent {frame:?}")) };
        }
        let got = client.next().ok_or("the connection ended")?;
        let got: Value = serde_json::from_slice(&got.payload).map_err(|error| format!("{error}: {got:?}"))?;
        match differs(&documented(line), &got, &mut self.epochs) {
            None => Ok(()),
            Some(difference) => Err(format!("{difference}\n  in {got}")),
        }
    }

    /// Fails if clients got lines that the example does not show. A ping's answer comes behind all of them.
    fn is_told_whole(&mut self, sessions: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, client) in &mut self.clients {
            let session = sessions.get(name).map_or("s-42", |session| session);
            client.send(&text(&json!({"type": "rw.ping", "id": "last", "session_id": session, "payload": {}}).to_string()));
            let got = client.json();
            if got["id"] != "last" {
                return Err(format!("{name} also gets {got}"));
            }
        }
        Ok(())
    }
}

fn play(block: &Block) -> Result<(), String> {
    let steps = steps(block);
    let settings: Vec<(&str, &str)> = block.fence[2..].iter().map(|setting| setting.split_once('=').unwrap()).collect();
    let mut play = Play { gateway: Gateway::start(&settings), clients: BTreeMap::new(), epochs: BTreeMap::new() };
    let mut sessions = BTreeMap::new();
    for (index, (name, _, line)) in steps.iter().enumerate() {
        let is_first = steps[..index].iter().all(|(earlier, ..)| earlier != name);
        if is_first && line.contains("\"rw.hello\"") {
            sessions.insert(name.clone(), documented(line)["session_id"].as_str().unwrap().to_owned());
        } else if is_first && name != "gateway" {
            play.enter(name);
        }
    }
    for (name, sends, line) in &steps {
        if *sends {
            play.sends(name, line);
        } else {
            play.gets(name, line).map_err(|difference| format!("{name}< {line}\n  {difference}"))?;
        }
    }
    play.is_told_whole(&sessions)
}

/// Sends a request of the manual, and compares the answer's lines.
fn ask(block: &Block) -> Result<(), String> {
    let gateway = Gateway::start(&[]);
    let address = if block.fence[2] == "admin" { gateway.admin } else { gateway.address };
    let side = |mark: &str| -> (Vec<&str>, Vec<&str>) {
        let lines: Vec<&str> = block.lines.iter().filter_map(|line| line.strip_prefix(mark)).map(str::trim).collect();
        let end = lines.iter().position(|line| line.is_empty()).expect("an empty line behind the head");
        (lines[..end].to_vec(), lines[end + 1..].to_vec())
    };
    let ((head, body), (wanted_head, wanted_body)) = (side(">"), side("<"));
    let mut connection = Raw::connect(address);
    let mut request = String::new();
    for line in head {
        write!(request, "{line}\r\n").unwrap();
    }
    connection.send(format!("{request}\r\n{}", body.concat()).as_bytes());
    let got_head = connection.head();
    let missing = wanted_head.iter().find(|line| **line != MORE && !got_head.split("\r\n").any(|got| got == **line));
    if let Some(line) = missing {
        return Err(format!("the gateway's answer lacks {line:?}: {got_head}"));
    }
    let lines = got_head.trim_end().split("\r\n").count();
    if !wanted_head.contains(&MORE) && lines != wanted_head.len() {
        return Err(format!("the manual leaves out lines of {got_head}"));
    }
    if wanted_body.is_empty() {
        return Ok(());
    }
    let (wanted, got) = (wanted_body.concat(), String::from_utf8(connection.rest()).unwrap());
    if !wanted.starts_with('{') {
        return if got.trim_end() == wanted { Ok(()) } else { Err(format!("the gateway's body is {got:?}")) };
    }
    let got: Value = serde_json::from_str(&got).map_err(|error| format!("{error}: {got:?}"))?;
    differs(&documented(&wanted), &got, &mut BTreeMap::new()).map_or(Ok(()), Err)
}

#[test]
fn every_example_of_the_manual_is_what_the_gateway_does() {
    let mut wrong = Vec::new();
    for block in blocks() {
        let told = if is_kind(&block, "exchange") {
            play(&block)
        } else if is_kind(&block, "http") {
            ask(&block)
        } else {
            Err("this block is no example that the test can play".to_owned())
        };
        if let Err(difference) = told {
            wrong.push(format!("docs/protocol.md:{}: {difference}", block.line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_section_of_the_manual_has_an_example() {
    let blocks = blocks();
    for section in 1..=8 {
        assert!(blocks.iter().any(|block| block.section == section), "section {section} of docs/protocol.md shows no exchange");
    }
    assert!(blocks.len() > 15, "{} blocks were found", blocks.len());
}

#[test]
fn another_answer_than_the_manuals_is_found() {
    let differs = |wanted: &str, got: &str| differs(&documented(wanted), &documented(got), &mut BTreeMap::new()).is_some();
    assert!(!differs(r#"{"id":"rw-…","ts":1,"payload":{"seq":1}}"#, r#"{"id":"rw-0a","ts":2,"payload":{"seq":1}}"#));
    assert!(!differs(r#"{"id":"1",…}"#, r#"{"id":"1","seq":7}"#));
    assert!(differs(r#"{"id":"1"}"#, r#"{"id":"1","seq":7}"#), "a key too many");
    assert!(differs(r#"{"id":"1","seq":7}"#, r#"{"id":"1"}"#), "a key too few");
    assert!(differs(r#"{"payload":{"seq":1}}"#, r#"{"payload":{"seq":2}}"#), "another number");
    assert!(differs(r#"{"id":"rw-…"}"#, r#"{"id":"m-1"}"#), "another text");
    assert!(differs(r#"{"to":["a"]}"#, r#"{"to":["a","b"]}"#), "a longer list");
    assert!(differs(r#"{"e":{"epoch":"0a"},"f":{"epoch":"0a"}}"#, r#"{"e":{"epoch":"1b"},"f":{"epoch":"2c"}}"#), "two epochs");
}
