//! The gateway's answers to commands (protocol.md sections 4 to 7), each a complete JSON text appended to a vector.

use super::errors::{ErrorCode, Refusal};
use super::write::Payload;

/// Whose answer it is: the command's id and session. Events bear an id of the gateway's own here.
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
    /// What was wrong with what, and what would be right. Never a token.
    pub message: &'a str,
    pub retry_after_ms: Option<u64>,
    /// JSON pointer (RFC 6901) into the offender.
    pub pointer: Option<&'a str>,
    /// The offender's number among the connection's inbound messages, from 1.
    pub frame: Option<u64>,
}

impl<'a> Failure<'a> {
    /// What a refusal says of the connection's inbound message number `frame`.
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

/// `rw.ack`; `is_duplicate` where the first one's `seq` is repeated (section 5).
pub fn ack(out: &mut Vec<u8>, head: Head<'_>, seq: u64, is_duplicate: bool) {
    let mut payload = Payload::begin(out, "rw.ack", head.id, head.session_id);
    payload.number("seq", seq);
    if is_duplicate {
        payload.boolean("duplicate", true);
    }
    payload.end();
}

/// Where a client stands in a session: the welcome's session keys, and the whole of `rw.attached` (section 4).
#[derive(Clone, Copy, Debug)]
pub struct SessionStart<'a> {
    /// The session didn't exist before.
    pub created: bool,
    pub epoch: &'a str,
    /// The session's head.
    pub seq: u64,
    /// The first `seq` that is delivered from here on.
    pub start_seq: u64,
    /// Nothing between the position asked for and `start_seq` is lost.
    pub recovered: bool,
    /// The client discards what it holds above.
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

/// What the welcome promises of limits. 0 is no limit.
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
    /// Those of the hello's that the gateway has.
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

/// `rw.refreshed`, with what the new token has left.
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

/// Whether a member is there.
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

/// One of `rw.members` (section 6).
#[derive(Clone, Copy, Debug)]
pub struct Member<'a, R> {
    pub client_id: &'a str,
    pub roles: &'a [R],
    /// Unix milliseconds.
    pub since_at: u64,
    pub state: MemberState,
    /// Raw JSON; `null` where there is none.
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

/// `rw.members`; `next` is the `after` of the next page, none where this is the last.
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

/// `rw.watching`: the first page, as of `seq`, from which on `rw.presence` tells the changes.
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
