//! Why a connection ended, and the one road from a reason to the wire (protocol.md section 7).
//!
//! May import nothing of the crate. Pure. No other file knows a close code.

/// Every reason for which the gateway ends a connection, or for which it ended by itself. The order is the order of the
/// counters in `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The client closed with a close frame.
    ClientClosed,
    /// The peer's end of the stream, without a close frame.
    Ended,
    /// The socket failed (reset, timed out).
    SocketError,
    /// HTTP was answered (a refusal, or not a WebSocket): the connection ends without a WebSocket close.
    HttpAnswered,
    /// The half-open cap evicted the connection, or the accept was over a cap: no answer.
    Shed,
    /// TLS failed.
    Tls,
    /// Drain: 1012.
    Draining,
    /// The shard or the node has no room: 1013.
    Overloaded,
    /// A panic while the connection's bytes were decoded: 1011. A panic in TLS drops the connection without a frame.
    Internal,
    /// A frame that RFC 6455 forbids: 1002.
    ProtocolError,
    /// A binary frame on `/v1/ws`: 1003.
    BinaryFrame,
    /// Text that is no UTF-8: 1007.
    NotUtf8,
    /// A message that is no JSON: 1007.
    NotJson,
    /// JSON nested deeper than the limit: 1007.
    TooDeep,
    /// Compressed data that does not inflate: 1007.
    BadDeflate,
    /// A message over the size limit: 1009.
    MessageTooBig,
    /// More fragments than the limit: 1009.
    TooManyFragments,
    /// A message unfinished for too long: 1008.
    MessageTooSlow,
    /// More control frames than the limit: 1008.
    ControlFlood,
    /// Too many refused envelopes in a short time: 4400.
    EnvelopeAbuse,
    /// A first message that is no good hello: 4400.
    HelloExpected,
    /// A missing, bad, expired or revoked token: 4401.
    Auth,
    /// A good token, not for this session: 4403.
    Forbidden,
    /// No hello in time: 4408.
    HandshakeTooLate,
    /// The same client connected again: 4409.
    Replaced,
    /// Over its rate for too long: 4429.
    Rate,
    /// Silent after a ping: 4504.
    HeartbeatLost,
    /// Took too little for too long with data waiting: 4508.
    TooSlow,
    /// The session's home could not take the connection (handover refused): 1013.
    HandoverRefused,
    /// The process ends.
    Shutdown,
}

impl CloseReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 30] = [
        Self::ClientClosed,
        Self::Ended,
        Self::SocketError,
        Self::HttpAnswered,
        Self::Shed,
        Self::Tls,
        Self::Draining,
        Self::Overloaded,
        Self::Internal,
        Self::ProtocolError,
        Self::BinaryFrame,
        Self::NotUtf8,
        Self::NotJson,
        Self::TooDeep,
        Self::BadDeflate,
        Self::MessageTooBig,
        Self::TooManyFragments,
        Self::MessageTooSlow,
        Self::ControlFlood,
        Self::EnvelopeAbuse,
        Self::HelloExpected,
        Self::Auth,
        Self::Forbidden,
        Self::HandshakeTooLate,
        Self::Replaced,
        Self::Rate,
        Self::HeartbeatLost,
        Self::TooSlow,
        Self::HandoverRefused,
        Self::Shutdown,
    ];

    /// The close code on the wire; `None` if the connection ends without a close frame.
    #[must_use]
    pub const fn code(self) -> Option<u16> {
        Some(match self {
            Self::ClientClosed => 1000,
            Self::Ended | Self::SocketError | Self::HttpAnswered | Self::Shed | Self::Tls => return None,
            Self::Draining => 1012,
            Self::Shutdown => 1001,
            Self::Overloaded | Self::HandoverRefused => 1013,
            Self::Internal => 1011,
            Self::ProtocolError => 1002,
            Self::BinaryFrame => 1003,
            Self::NotUtf8 | Self::NotJson | Self::TooDeep | Self::BadDeflate => 1007,
            Self::MessageTooBig | Self::TooManyFragments => 1009,
            Self::MessageTooSlow | Self::ControlFlood => 1008,
            Self::EnvelopeAbuse | Self::HelloExpected => 4400,
            Self::Auth => 4401,
            Self::Forbidden => 4403,
            Self::HandshakeTooLate => 4408,
            Self::Replaced => 4409,
            Self::Rate => 4429,
            Self::HeartbeatLost => 4504,
            Self::TooSlow => 4508,
        })
    }

    /// The label in metrics and logs, and the reason text of the close frame (RFC 6455 5.5.1: at most 123 bytes).
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::Ended => "ended",
            Self::SocketError => "socket_error",
            Self::HttpAnswered => "http_answered",
            Self::Shed => "shed",
            Self::Tls => "tls",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
            Self::ProtocolError => "protocol_error",
            Self::BinaryFrame => "binary_frame",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::TooDeep => "too_deep",
            Self::BadDeflate => "bad_deflate",
            Self::MessageTooBig => "message_too_big",
            Self::TooManyFragments => "too_many_fragments",
            Self::MessageTooSlow => "message_too_slow",
            Self::ControlFlood => "control_flood",
            Self::EnvelopeAbuse => "envelope_abuse",
            Self::HelloExpected => "hello_expected",
            Self::Auth => "auth",
            Self::Forbidden => "forbidden",
            Self::HandshakeTooLate => "handshake_too_late",
            Self::Replaced => "replaced",
            Self::Rate => "rate",
            Self::HeartbeatLost => "heartbeat_lost",
            Self::TooSlow => "too_slow",
            Self::HandoverRefused => "handover_refused",
            Self::Shutdown => "shutdown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole_and_in_order() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{}", reason.label());
        }
    }

    #[test]
    fn codes_may_be_sent() {
        for reason in CloseReason::ALL {
            if let Some(code) = reason.code() {
                assert!(matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999), "{code}");
            }
            assert!(reason.label().len() <= 123);
        }
    }
}
