//! The gateway's answers to commands (protocol.md sections 4 to 7), each a complete JSON text appended to a vector.

use super::errors::{ErrorCode, Refusal};
use super::write::Payload;

/// The id and session of the command that is answered. Events have an id of the gateway's own here.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub id: &'a str,
    pub session_id: &'a str,
}

/// `rw.error` (section 7).
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub head: Head<'a>,
    pub code: ErrorCode,
    /// The mistake, and how to correct it. Never a token.
    pub message: &'a str,
    pub retry_after_ms: Option<u64>,
    /// JSON pointer (RFC 6901) into the offender.
    pub pointer: Option<&'a str>,
    /// The offender's number among the connection's inbound messages, from 1.
    pub frame: Option<u64>,
}

impl<'a> Failure<'a> {
    /// The refusal of the connection's inbound message number `frame`.
    #[must_use]
    pub fn of(refusal: &'a Refusal, frame: Option<u64>) -> Self {
        Self {
            head: Head { id: &refusal.id, session_id: &refusal.session_id },
            code: refusal.code,
            message: &refusal.message,
            retry_after_ms: refusal.retry_after_ms,
            pointer: Some(&refusal.pointer),
            frame,
        }
    }
}

/// `rw.error`.
pub fn error(out: &mut Vec<u8>, failure: &Failure<'_>) {
    let mut payload = Payload::begin(out, "rw.error", failure.head.id, failure.head.session_id);
    payload.string("code", failure.code.as_str());
    payload.string("message", failure.message);
    payload.boolean("retryable", failure.code.retryable());
    payload.number_or_null("retry_after_ms", failure.retry_after_ms);
    payload.object("details", |details| {
        if let Some(pointer) = failure.pointer {
            details.string("pointer", pointer);
        }
        if let Some(frame) = failure.frame {
            details.number("frame", frame);
        }
    });
    payload.end();
}

/// `rw.ack`; `is_duplicate` if the first one's `seq` is repeated (section 5).
pub fn ack(out: &mut Vec<u8>, head: Head<'_>, seq: u64, is_duplicate: bool) {
    let mut payload = Payload::begin(out, "rw.ack", head.id, head.session_id);
    payload.number("seq", seq);
    if is_duplicate {
        payload.boolean("duplicate", true);
    }
    payload.end();
}

/// A client's position in a session: the welcome's session keys, and the whole of `rw.attached` (section 4).
#[derive(Clone, Copy, Debug)]
pub struct SessionStart<'a> {
    /// `true` if the session did not exist before.
    pub created: bool,
    pub epoch: &'a str,
    /// The session's head.
    pub seq: u64,
    /// The first `seq` that is delivered from here on.
    pub start_seq: u64,
    /// `true` if nothing between the position asked for and `start_seq` is lost.
    pub recovered: bool,
    /// The client discards all messages that it holds above this.
    pub rewound_to: Option<u64>,
    pub oldest_seq: u64,
    pub rooms: &'a [&'a str],
    pub roles: &'a [&'a str],
}

impl SessionStart<'_> {
    fn write(&self, payload: &mut Payload<'_>) {
        payload.boolean("created", self.created);
        payload.string("epoch", self.epoch);
        payload.number("seq", self.seq);
        payload.number("start_seq", self.start_seq);
        payload.boolean("recovered", self.recovered);
        payload.number_or_null("rewound_to", self.rewound_to);
        payload.number("oldest_seq", self.oldest_seq);
        payload.strings("rooms", self.rooms);
        payload.strings("roles", self.roles);
        // The governed plane fills these; clients written today may rely on the keys.
        payload.raw("pending", b"{\"approvals\":[],\"handoffs\":[],\"steps\":[]}");
    }
}

/// The limits that the welcome states. 0 is no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_message_bytes: u64,
    pub messages_per_second: u64,
    pub dedupe_ids: u64,
    pub max_attached_sessions: u64,
}

/// `rw.welcome` (section 4).
#[derive(Clone, Copy, Debug)]
pub struct Welcome<'a> {
    pub client_id: &'a str,
    pub connection_id: &'a str,
    pub node: &'a str,
    pub session: SessionStart<'a>,
    /// Unix milliseconds.
    pub now_ms: u64,
    pub token_expires_in_ms: u64,
    pub heartbeat_ms: u64,
    /// The hello's features that the gateway has.
    pub features: &'a [&'a str],
    pub version: &'a str,
    pub limits: Limits,
}

/// `rw.welcome`.
pub fn welcome(out: &mut Vec<u8>, head: Head<'_>, welcome: &Welcome<'_>) {
    let mut payload = Payload::begin(out, "rw.welcome", head.id, head.session_id);
    payload.string("client_id", welcome.client_id);
    payload.string("connection_id", welcome.connection_id);
    payload.string("node", welcome.node);
    welcome.session.write(&mut payload);
    payload.number("now", welcome.now_ms);
    payload.number("token_expires_in_ms", welcome.token_expires_in_ms);
    payload.number("heartbeat_ms", welcome.heartbeat_ms);
    payload.strings("features", welcome.features);
    payload.string("version", welcome.version);
    payload.object("limits", |limits| {
        limits.number("max_message_bytes", welcome.limits.max_message_bytes);
        limits.number("messages_per_second", welcome.limits.messages_per_second);
        limits.number("dedupe_ids", welcome.limits.dedupe_ids);
        limits.number("max_attached_sessions", welcome.limits.max_attached_sessions);
    });
    payload.end();
}

/// `rw.attached`.
pub fn attached(out: &mut Vec<u8>, head: Head<'_>, start: &SessionStart<'_>) {
    let mut payload = Payload::begin(out, "rw.attached", head.id, head.session_id);
    start.write(&mut payload);
    payload.end();
}

/// `rw.detached`.
pub fn detached(out: &mut Vec<u8>, head: Head<'_>) {
    Payload::begin(out, "rw.detached", head.id, head.session_id).end();
}

/// `rw.pong`: the session's head, and the last `seq` that was for this client (section 1).
pub fn pong(out: &mut Vec<u8>, head: Head<'_>, seq: u64, delivered_seq: u64) {
    let mut payload = Payload::begin(out, "rw.pong", head.id, head.session_id);
    payload.number("seq", seq);
    payload.number("delivered_seq", delivered_seq);
    payload.end();
}

/// `rw.refreshed`, with the new token's remaining time.
pub fn refreshed(out: &mut Vec<u8>, head: Head<'_>, token_expires_in_ms: u64) {
    let mut payload = Payload::begin(out, "rw.refreshed", head.id, head.session_id);
    payload.number("token_expires_in_ms", token_expires_in_ms);
    payload.end();
}

/// `rw.joined`, with the join's place in the order.
pub fn joined(out: &mut Vec<u8>, head: Head<'_>, room: &str, seq: u64) {
    let mut payload = Payload::begin(out, "rw.joined", head.id, head.session_id);
    payload.string("room", room);
    payload.number("seq", seq);
    payload.end();
}

/// `rw.left`.
pub fn left(out: &mut Vec<u8>, head: Head<'_>, room: &str) {
    let mut payload = Payload::begin(out, "rw.left", head.id, head.session_id);
    payload.string("room", room);
    payload.end();
}

/// The presence of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Connected.
    Online,
    /// Disconnected, within the grace.
    Lost,
    /// A member without a connection.
    Away,
}

impl MemberState {
    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Lost => "lost",
            Self::Away => "away",
        }
    }
}

/// An entry of `rw.members` (section 6).
#[derive(Debug)]
pub struct Member<'a, R> {
    pub client_id: &'a str,
    pub roles: &'a [R],
    /// Unix milliseconds.
    pub since_at: u64,
    pub state: MemberState,
    /// Raw JSON; `None` is written as `null`.
    pub data: Option<&'a [u8]>,
}

fn write_members<'a, R: AsRef<str> + 'a>(payload: &mut Payload<'_>, members: impl Iterator<Item = Member<'a, R>>) {
    payload.objects("members", members, |object, member| {
        object.string("client_id", member.client_id);
        object.strings("roles", member.roles);
        object.number("since_at", member.since_at);
        object.string("state", member.state.as_str());
        object.raw("data", member.data.unwrap_or(b"null"));
    });
}

fn write_next(payload: &mut Payload<'_>, next: Option<&str>) {
    match next {
        Some(client_id) => payload.string("next", client_id),
        None => payload.raw("next", b"null"),
    }
}

/// `rw.members`; `next` is the `after` of the next page, `None` if this is the last.
pub fn members<'a, R: AsRef<str> + 'a>(
    out: &mut Vec<u8>,
    head: Head<'_>,
    members: impl Iterator<Item = Member<'a, R>>,
    next: Option<&str>,
) {
    let mut payload = Payload::begin(out, "rw.members", head.id, head.session_id);
    write_members(&mut payload, members);
    write_next(&mut payload, next);
    payload.end();
}

/// `rw.watching`: the first page, as of `seq`; changes after it come in `rw.presence`.
pub fn watching<'a, R: AsRef<str> + 'a>(
    out: &mut Vec<u8>,
    head: Head<'_>,
    members: impl Iterator<Item = Member<'a, R>>,
    seq: u64,
    next: Option<&str>,
) {
    let mut payload = Payload::begin(out, "rw.watching", head.id, head.session_id);
    write_members(&mut payload, members);
    payload.number("seq", seq);
    write_next(&mut payload, next);
    payload.end();
}

/// `rw.presence.ok`.
pub fn presence_ok(out: &mut Vec<u8>, head: Head<'_>) {
    Payload::begin(out, "rw.presence.ok", head.id, head.session_id).end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HEAD: Head<'_> = Head { id: "m\"\\1", session_id: "s-42" };

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = b"before".to_vec();
        write(&mut out);
        serde_json::from_slice(out.strip_prefix(b"before").unwrap()).unwrap()
    }

    fn whole(kind: &str, payload: Value) -> Value {
        json!({"type": kind, "id": HEAD.id, "session_id": HEAD.session_id, "payload": payload})
    }

    #[test]
    fn the_ack_is_the_contracts_text() {
        let mut out = Vec::new();
        ack(&mut out, Head { id: "m-7", session_id: "s" }, 5, false);
        assert_eq!(out, br#"{"type":"rw.ack","id":"m-7","session_id":"s","payload":{"seq":5}}"#);
        let duplicate = written(|out| ack(out, HEAD, u64::MAX, true));
        assert_eq!(duplicate, whole("rw.ack", json!({"seq": u64::MAX, "duplicate": true})));
    }

    #[test]
    fn an_error_has_all_keys_of_section_7() {
        let message = "a \"quote\", a \\, a \u{0}\u{1f}\n\t\u{7f} and \u{2028} é 🦀";
        let failure = Failure {
            head: HEAD,
            code: ErrorCode::LimitRate,
            message,
            retry_after_ms: Some(250),
            pointer: Some("/to/1"),
            frame: Some(17),
        };
        let payload = json!({"code": "limit.rate", "message": message, "retryable": true, "retry_after_ms": 250,
            "details": {"pointer": "/to/1", "frame": 17}});
        assert_eq!(written(|out| error(out, &failure)), whole("rw.error", payload));
        let bare = Failure { code: ErrorCode::PolicyDenied, retry_after_ms: None, pointer: None, frame: None, ..failure };
        let payload =
            json!({"code": "policy.denied", "message": message, "retryable": false, "retry_after_ms": null, "details": {}});
        assert_eq!(written(|out| error(out, &bare)), whole("rw.error", payload));
        let refusal = Refusal {
            id: HEAD.id.into(),
            session_id: HEAD.session_id.into(),
            code: ErrorCode::EnvelopeInvalid,
            message: "m".into(),
            pointer: "".into(),
            retry_after_ms: None,
        };
        let payload = json!({"code": "envelope.invalid", "message": "m", "retryable": false, "retry_after_ms": null,
            "details": {"pointer": "", "frame": 1}});
        assert_eq!(written(|out| error(out, &Failure::of(&refusal, Some(1)))), whole("rw.error", payload));
    }

    #[test]
    fn the_welcome_has_all_keys_of_section_4() {
        let session = SessionStart {
            created: false,
            epoch: "9f2c",
            seq: 1050,
            start_seq: 1042,
            recovered: true,
            rewound_to: None,
            oldest_seq: 1,
            rooms: &["ops", "b"],
            roles: &["agent"],
        };
        let full = Welcome {
            client_id: "ana/tab-7",
            connection_id: "c-1",
            node: "n1",
            session,
            now_ms: 1_790_000_000_000,
            token_expires_in_ms: 840_000,
            heartbeat_ms: 25_000,
            features: &[],
            version: "0.1.0",
            limits: Limits { max_message_bytes: 65_536, messages_per_second: 200, dedupe_ids: 1000, max_attached_sessions: 64 },
        };
        let pending = json!({"approvals": [], "handoffs": [], "steps": []});
        let payload = json!({"client_id": "ana/tab-7", "connection_id": "c-1", "node": "n1", "created": false, "epoch": "9f2c",
            "seq": 1050, "start_seq": 1042, "recovered": true, "rewound_to": null, "oldest_seq": 1, "rooms": ["ops", "b"],
            "roles": ["agent"], "now": 1_790_000_000_000_u64, "token_expires_in_ms": 840_000, "heartbeat_ms": 25_000,
            "pending": pending, "features": [], "version": "0.1.0", "limits": {"max_message_bytes": 65_536,
            "messages_per_second": 200, "dedupe_ids": 1000, "max_attached_sessions": 64}});
        assert_eq!(written(|out| welcome(out, HEAD, &full)), whole("rw.welcome", payload));
        let start = SessionStart { created: true, recovered: false, rewound_to: Some(9), rooms: &[], ..session };
        let payload = json!({"created": true, "epoch": "9f2c", "seq": 1050, "start_seq": 1042, "recovered": false, "rewound_to": 9,
            "oldest_seq": 1, "rooms": [], "roles": ["agent"], "pending": pending});
        assert_eq!(written(|out| attached(out, HEAD, &start)), whole("rw.attached", payload));
    }

    #[test]
    fn the_small_replies() {
        assert_eq!(written(|out| detached(out, HEAD)), whole("rw.detached", json!({})));
        assert_eq!(written(|out| pong(out, HEAD, 9, 7)), whole("rw.pong", json!({"seq": 9, "delivered_seq": 7})));
        assert_eq!(written(|out| refreshed(out, HEAD, 5)), whole("rw.refreshed", json!({"token_expires_in_ms": 5})));
        assert_eq!(written(|out| joined(out, HEAD, "ops", 3)), whole("rw.joined", json!({"room": "ops", "seq": 3})));
        assert_eq!(written(|out| left(out, HEAD, "ops")), whole("rw.left", json!({"room": "ops"})));
        assert_eq!(written(|out| presence_ok(out, HEAD)), whole("rw.presence.ok", json!({})));
    }

    #[test]
    fn member_lists() {
        let roles = ["agent".to_owned(), "ops".to_owned()];
        let list = || {
            [
                Member { client_id: "a", roles: &roles, since_at: 5, state: MemberState::Online, data: Some(br#"{"x":1}"#) },
                Member { client_id: "b", roles: &roles[..0], since_at: 6, state: MemberState::Away, data: None },
            ]
            .into_iter()
        };
        let expected = json!([
            {"client_id": "a", "roles": ["agent", "ops"], "since_at": 5, "state": "online", "data": {"x": 1}},
            {"client_id": "b", "roles": [], "since_at": 6, "state": "away", "data": null},
        ]);
        let page = written(|out| members(out, HEAD, list(), Some("b")));
        assert_eq!(page, whole("rw.members", json!({"members": expected, "next": "b"})));
        let first = written(|out| watching(out, HEAD, list(), 12, None));
        assert_eq!(first, whole("rw.watching", json!({"members": expected, "seq": 12, "next": null})));
        let none = written(|out| members::<String>(out, HEAD, std::iter::empty(), None));
        assert_eq!(none, whole("rw.members", json!({"members": [], "next": null})));
    }
}
