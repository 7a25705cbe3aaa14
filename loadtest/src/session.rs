//! A client of the gateway: hello, welcome, and the state for resuming. On a bare server joining is just connecting, so that the
//! same scenario drives both.

use crate::clock::now_ns;
use crate::dialect::{self, Incoming};
use crate::engine::connection::{Connection, Ended, Endpoint, Inbox};
use crate::engine::stats::{Stats, Timing};
use crate::stamp::Template;
use crate::target::Target;
use crate::token::Minter;
use crate::wire;
use serde_json::{Value, json};
use std::rc::Rc;

/// How clients join: made once a run, shared by the workers.
#[derive(Clone)]
pub struct Access {
    endpoint: Endpoint,
    minter: Option<Minter>,
    /// On the bare relay a session is the path that its two members connect to.
    pairs: bool,
    /// Distinguishes this run's names from another's on the same gateway.
    run: u64,
}

/// A client, and the session that it joins.
pub struct Member<'a> {
    pub client: &'a str,
    pub session: &'a str,
    pub rooms: &'a [&'a str],
    pub resume: Option<&'a Position>,
    pub receive_bytes: usize,
    pub socket_buffer_bytes: Option<usize>,
}

/// A client's position in its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub epoch: String,
    pub seq: u64,
}

/// A member that has joined.
pub struct Joined {
    pub connection: Rc<Connection>,
    pub inbox: Inbox,
    /// The position before the first message that it will get; empty on a bare server.
    pub position: Position,
    pub recovered: bool,
    /// The client must discard messages above this.
    pub rewound_to: Option<u64>,
}

impl Access {
    pub fn new(target: &Target) -> Self {
        Self { endpoint: target.session_endpoint(), minter: target.minter.clone(), pairs: target.pairs, run: now_ns() }
    }

    pub fn speaks_envelopes(&self) -> bool {
        self.minter.is_some()
    }

    /// Returns `true` if messages are acknowledged; other bare servers acknowledge nothing.
    pub fn acknowledges(&self) -> bool {
        self.speaks_envelopes() || self.pairs
    }

    /// A session's name in this run.
    pub fn session(&self, number: usize) -> String {
        format!("load.{:x}.{number}", self.run)
    }

    /// A channel's name in this run.
    pub fn channel(&self) -> String {
        format!("channel:load.{:x}", self.run)
    }

    /// A message of a member, ready to be stamped. `to` is JSON, or empty for the session.
    pub fn message(&self, session: &str, to: &str, payload_bytes: usize, mask: [u8; 4]) -> Template {
        if self.speaks_envelopes() {
            dialect::envelope_message(session, to, payload_bytes, mask)
        } else {
            dialect::bare_message(payload_bytes, mask)
        }
    }

    /// Reads a received frame.
    pub fn read(&self, payload: &[u8]) -> Incoming {
        if self.speaks_envelopes() { dialect::read_envelope(payload) } else { dialect::read_bare(payload) }
    }

    /// Connects, sends hello, waits for the welcome. The time from the connect on is booked as [`Timing::Connect`].
    pub async fn join(&self, stats: &Rc<Stats>, member: Member<'_>, number: usize) -> Result<Joined, String> {
        let started_ns = now_ns();
        let explain = |ended: Ended| format!("{} could not join {}: {ended}", member.client, member.session);
        // Signed before the connect: the time booked is the gateway's.
        let token = match &self.minter {
            Some(minter) => minter.mint(member.client, &["load.*", "channel:load.*"], number)?,
            None => String::new(),
        };
        let pair = self.pairs.then(|| Endpoint { path: format!("/pair/{}", member.session), ..self.endpoint.clone() });
        let endpoint = pair.as_ref().unwrap_or(&self.endpoint);
        let opened = Connection::open(endpoint, stats, member.receive_bytes, member.socket_buffer_bytes).await;
        let (connection, mut inbox) = opened.map_err(explain)?;
        let (mut position, mut recovered, mut rewound_to) = (Position::default(), true, None);
        if self.speaks_envelopes() {
            connection.queue_frame(wire::TEXT, hello(&member, &token).as_bytes());
            connection.flush();
            let welcome = inbox.message(&connection).await.map_err(explain)?;
            (position, recovered, rewound_to) = read_welcome(&welcome).map_err(|why| format!("{}: {why}", member.client))?;
        }
        stats.time(Timing::Connect, started_ns, now_ns());
        Ok(Joined { connection, inbox, position, recovered, rewound_to })
    }
}

fn hello(member: &Member<'_>, token: &str) -> String {
    let mut payload = json!({ "client_id": member.client, "auth_token": token, "create": true });
    if !member.rooms.is_empty() {
        payload["rooms"] = json!(member.rooms);
    }
    if let Some(position) = member.resume {
        payload["resume"] = json!({ "epoch": position.epoch, "seq": position.seq });
    }
    json!({ "type": "rw.hello", "id": "hello", "session_id": member.session, "payload": payload }).to_string()
}

fn read_welcome(text: &[u8]) -> Result<(Position, bool, Option<u64>), String> {
    let shown = || String::from_utf8_lossy(&text[..text.len().min(400)]).into_owned();
    let welcome: Value =
        serde_json::from_slice(text).map_err(|error| format!("the answer to the hello is no JSON ({error}): {}", shown()))?;
    if welcome["type"] != "rw.welcome" {
        return Err(format!("expected rw.welcome, got {}", shown()));
    }
    let payload = &welcome["payload"];
    match (payload["epoch"].as_str(), payload["start_seq"].as_u64()) {
        // The message that it starts with is yet to come: the position is the one before.
        (Some(epoch), Some(start_seq)) => {
            let position = Position { epoch: epoch.into(), seq: start_seq.saturating_sub(1) };
            Ok((position, payload["recovered"].as_bool().unwrap_or(true), payload["rewound_to"].as_u64()))
        }
        _ => Err(format!("a welcome without epoch or start_seq: {}", shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_has_what_the_contract_asks_for() {
        let position = Position { epoch: "9f2c".into(), seq: 7 };
        let member = Member {
            client: "a",
            session: "load.1",
            rooms: &["r"],
            resume: Some(&position),
            receive_bytes: 0,
            socket_buffer_bytes: None,
        };
        let hello: Value = serde_json::from_str(&hello(&member, "token")).unwrap();
        assert_eq!((&hello["type"], &hello["session_id"]), (&json!("rw.hello"), &json!("load.1")));
        assert_eq!(hello["payload"]["resume"], json!({ "epoch": "9f2c", "seq": 7 }));
        assert_eq!((&hello["payload"]["rooms"], &hello["payload"]["auth_token"]), (&json!(["r"]), &json!("token")));
    }

    #[test]
    fn a_welcome_is_read_and_a_refusal_is_shown() {
        let welcome = br#"{"type":"rw.welcome","id":"hello","session_id":"s","payload":{"epoch":"e","seq":9,"start_seq":4,"recovered":false,"rewound_to":3}}"#;
        assert_eq!(read_welcome(welcome).unwrap(), (Position { epoch: "e".into(), seq: 3 }, false, Some(3)));
        let refused = read_welcome(br#"{"type":"rw.error","payload":{"code":"auth.expired"}}"#).unwrap_err();
        assert!(refused.contains("auth.expired"), "{refused}");
    }
}
