//! The gateway's own messages (protocol.md sections 4 to 6), each a complete JSON text appended to a vector.
//!
//! The head's id is one of the gateway's own, except for `rw.history_begin` and `rw.history_end`, which answer a command.

use super::replies::Head;
use super::write::Payload;

/// `rw.auth.expiring`.
pub fn auth_expiring(out: &mut Vec<u8>, head: Head<'_>, expires_in_ms: u64) {
    let mut payload = Payload::begin(out, "rw.auth.expiring", head.id, head.session_id);
    payload.number("expires_in_ms", expires_in_ms);
    payload.end();
}

/// `rw.goaway`.
pub fn goaway(out: &mut Vec<u8>, head: Head<'_>, reconnect_within_ms: u64, restart: bool) {
    let mut payload = Payload::begin(out, "rw.goaway", head.id, head.session_id);
    payload.number("reconnect_within_ms", reconnect_within_ms);
    payload.boolean("restart", restart);
    payload.end();
}

/// `rw.caught_up`: the replay is over, and `seq` is a position to resume from.
pub fn caught_up(out: &mut Vec<u8>, head: Head<'_>, seq: u64) {
    let mut payload = Payload::begin(out, "rw.caught_up", head.id, head.session_id);
    payload.number("seq", seq);
    payload.end();
}

/// `rw.gap`: the messages that this reader missed because they are no longer available, both ends included.
pub fn gap(out: &mut Vec<u8>, head: Head<'_>, from: u64, to: u64) {
    let mut payload = Payload::begin(out, "rw.gap", head.id, head.session_id);
    payload.number("from", from);
    payload.number("to", to);
    payload.end();
}

/// `rw.history_begin`: `count` messages follow with nothing live in between.
pub fn history_begin(out: &mut Vec<u8>, head: Head<'_>, count: u64) {
    let mut payload = Payload::begin(out, "rw.history_begin", head.id, head.session_id);
    payload.number("count", count);
    payload.end();
}

/// `rw.history_end`; `next_seq` is the `before` (or `after`) of the next page, `None` if there is no more.
pub fn history_end(out: &mut Vec<u8>, head: Head<'_>, next_seq: Option<u64>, oldest_seq: u64) {
    let mut payload = Payload::begin(out, "rw.history_end", head.id, head.session_id);
    payload.boolean("more", next_seq.is_some());
    payload.number_or_null("next_seq", next_seq);
    payload.number("oldest_seq", oldest_seq);
    payload.end();
}

/// A change of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceEvent<'a> {
    Join,
    /// Left on purpose.
    Leave,
    /// Disconnected for longer than the grace.
    Lost,
    /// Set its data: raw JSON.
    Data(&'a [u8]),
}

/// `rw.presence`, of the session or of one room.
pub fn presence(out: &mut Vec<u8>, head: Head<'_>, client_id: &str, event: PresenceEvent<'_>, room: Option<&str>) {
    let mut payload = Payload::begin(out, "rw.presence", head.id, head.session_id);
    payload.string("client_id", client_id);
    payload.string(
        "event",
        match event {
            PresenceEvent::Join => "join",
            PresenceEvent::Leave => "leave",
            PresenceEvent::Lost => "lost",
            PresenceEvent::Data(_) => "data",
        },
    );
    if let Some(room) = room {
        payload.string("room", room);
    }
    if let PresenceEvent::Data(data) = event {
        payload.raw("data", data);
    }
    payload.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HEAD: Head<'_> = Head { id: "e-1", session_id: "s-42" };

    fn check(kind: &str, payload: Value, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        let expected = json!({"type": kind, "id": "e-1", "session_id": "s-42", "payload": payload});
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn events_have_the_contracts_keys() {
        check("rw.auth.expiring", json!({"expires_in_ms": 60_000}), |out| auth_expiring(out, HEAD, 60_000));
        let away = json!({"reconnect_within_ms": 5, "restart": true});
        check("rw.goaway", away, |out| goaway(out, HEAD, 5, true));
        check("rw.caught_up", json!({"seq": 4}), |out| caught_up(out, HEAD, 4));
        check("rw.gap", json!({"from": 2, "to": 8}), |out| gap(out, HEAD, 2, 8));
        check("rw.history_begin", json!({"count": 3}), |out| history_begin(out, HEAD, 3));
        check("rw.history_end", json!({"more": false, "next_seq": null, "oldest_seq": 1}), |out| history_end(out, HEAD, None, 1));
        check("rw.history_end", json!({"more": true, "next_seq": 9, "oldest_seq": 1}), |out| history_end(out, HEAD, Some(9), 1));
        for (event, text) in [(PresenceEvent::Join, "join"), (PresenceEvent::Leave, "leave"), (PresenceEvent::Lost, "lost")] {
            check("rw.presence", json!({"client_id": "a", "event": text, "room": "r"}), |out| {
                presence(out, HEAD, "a", event, Some("r"));
            });
        }
        check("rw.presence", json!({"client_id": "a", "event": "data", "data": [1]}), |out| {
            presence(out, HEAD, "a", PresenceEvent::Data(b"[1]"), None);
        });
    }
}
