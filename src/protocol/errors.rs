//! The codes of `rw.error` in one table (protocol.md section 7), and a refusal on its way to the wire.

use std::borrow::Cow;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $retryable:literal;)*) => {
        /// Every code of `rw.error`. Stable: clients match on the text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// All codes, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The text on the wire, `area.reason`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns `true` if the same message, unchanged, may succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }
        }
    };
}

codes! {
    /// No object, an unknown or duplicate key, a missing or ill-typed one, or a command's payload out of its bounds.
    EnvelopeInvalid = "envelope.invalid", false;
    /// The id was used before, with other content.
    EnvelopeIdReused = "envelope.id_reused", false;
    /// An `rw.` type that this version does not support.
    EnvelopeUnknownType = "envelope.unknown_type", false;
    /// No token.
    AuthMissing = "auth.missing", false;
    /// A token that is no JWT, or too long.
    AuthMalformed = "auth.malformed", false;
    /// The token's `exp` is in the past.
    AuthExpired = "auth.expired", false;
    /// The token's `nbf` is in the future.
    AuthNotYetValid = "auth.not_yet_valid", true;
    /// The token's signature does not verify.
    AuthSignature = "auth.signature", false;
    /// The token's `kid` names no key.
    AuthUnknownKey = "auth.unknown_key", false;
    /// The token's `alg` is not the key's.
    AuthAlgorithm = "auth.algorithm", false;
    /// The token's `iss` is not the configured one.
    AuthIssuer = "auth.issuer", false;
    /// The token's `aud` is not the configured one.
    AuthAudience = "auth.audience", false;
    /// A claim is missing or ill-typed.
    AuthClaims = "auth.claims", false;
    /// The token, client or user was revoked.
    AuthRevoked = "auth.revoked", false;
    /// A good token whose `sid` doesn't cover the session.
    AuthForbiddenSession = "auth.forbidden_session", false;
    /// The client id isn't the token's `sub`, nor `sub/` and a tail.
    AuthClientId = "auth.client_id", false;
    /// A policy says no.
    PolicyDenied = "policy.denied", false;
    /// More messages or bytes than the client's rate, or more presence data than the member's.
    LimitRate = "limit.rate", true;
    /// The session cannot take more messages now.
    LimitBackpressure = "limit.backpressure", true;
    /// An attachment's earlier history request is not answered yet; or the user, or all users, have too many pages waiting.
    LimitHistoryBusy = "limit.history_busy", true;
    /// Too many rooms, joined or watched.
    LimitRooms = "limit.rooms", false;
    /// The session is full.
    LimitMembers = "limit.members", true;
    /// The shard holds as many sessions as it may, or the user has created as many as it may.
    LimitSessions = "limit.sessions", true;
    /// Too many sessions on one connection.
    LimitAttached = "limit.attached", false;
    /// The user has too many connections.
    LimitConnections = "limit.connections", true;
    /// The session's own, smaller limit of a message's bytes.
    LimitMessageBytes = "limit.message_bytes", false;
    /// The log's directory is at its cap.
    LimitDisk = "limit.disk", true;
    /// The addressed client or user was never in the session.
    RouteNoSuchMember = "route.no_such_member", false;
    /// No agent is registered for the intent.
    RouteNoAgent = "route.no_agent", true;
    /// No such session, and `create` is false.
    SessionUnknown = "session.unknown", false;
    /// The connection isn't attached to the message's session.
    SessionNotAttached = "session.not_attached", false;
    /// The connection is attached to that session already.
    SessionAlreadyAttached = "session.already_attached", false;
    /// The query's `session_id` isn't the hello's.
    SessionQueryMismatch = "session.query_mismatch", false;
    /// The first message was not `rw.hello`.
    SessionExpectedHello = "session.expected_hello", false;
    /// A second `rw.hello` on a connection.
    SessionSecondHello = "session.second_hello", false;
    /// A part of the gateway is not available now.
    InternalUnavailable = "internal.unavailable", true;
}

/// The reason why an envelope or a command was refused. Owned, since it outlives the text; allocation is fine, since ten in 10 s
/// end the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The offender's id; "" if it could not be read.
    pub id: Box<str>,
    /// The offender's session; "" if it could not be read.
    pub session_id: Box<str>,
    pub code: ErrorCode,
    /// The mistake, and how to correct it.
    pub message: Cow<'static, str>,
    /// JSON pointer (RFC 6901) into the offender; "" is the whole.
    pub pointer: Cow<'static, str>,
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// Returns `true` if the same message, unchanged, may succeed later.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        self.code.retryable()
    }
}

/// A refusal before the message's id is known: the result of the checks.
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    pub(super) pointer: Cow<'static, str>,
    pub(super) message: Cow<'static, str>,
}

impl Fault {
    #[cold]
    pub(super) fn new(pointer: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: ErrorCode::EnvelopeInvalid, pointer: pointer.into(), message: message.into() }
    }

    pub(super) fn coded(self, code: ErrorCode) -> Self {
        Self { code, ..self }
    }

    #[cold]
    pub(super) fn of(self, id: &str, session_id: &str) -> Box<Refusal> {
        Box::new(Refusal {
            id: id.into(),
            session_id: session_id.into(),
            code: self.code,
            message: self.message,
            pointer: self.pointer,
            retry_after_ms: None,
        })
    }
}

/// A key that the client chose, cut to a bound and escaped for a JSON pointer (RFC 6901 section 3).
pub(super) fn pointer_to(key: &str) -> String {
    format!("/{}", shortened(key).replace('~', "~0").replace('/', "~1"))
}

/// At most 64 bytes of a key that the client chose, for messages.
pub(super) fn shortened(key: &str) -> &str {
    &key[..key.floor_char_boundary(64)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_area_and_reason_and_unique() {
        let areas = ["envelope", "auth", "policy", "limit", "route", "session", "internal"];
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, index);
            let (area, reason) = code.as_str().split_once('.').unwrap();
            assert!(areas.contains(&area) && !reason.is_empty(), "{}", code.as_str());
            assert_eq!(ErrorCode::ALL.iter().filter(|other| other.as_str() == code.as_str()).count(), 1);
        }
        assert!(ErrorCode::LimitRate.retryable() && !ErrorCode::EnvelopeInvalid.retryable());
    }

    #[test]
    fn pointers_are_escaped_and_bounded() {
        assert_eq!(pointer_to("a/b~c"), "/a~1b~0c");
        assert_eq!(pointer_to(&"é".repeat(1000)).len(), 65);
    }
}
