//! The reasons to refuse a token, and their codes on the wire.

use crate::close::CloseReason;

/// A refusal. The text says what would be right and never repeats bytes of the token, of a key or of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token, or an empty one.
    #[error("there is no token: the hello's payload needs `auth_token`, a signed JWT")]
    Missing,
    /// Not a JWS in compact form (RFC 7515 7.1), or JSON of the wrong shape.
    #[error("the token is no signed JWT: {0}")]
    Malformed(&'static str),
    /// The token has expired (RFC 7519 4.1.4).
    #[error("the token expired {ago_s} s ago: get a new one")]
    Expired {
        /// Seconds since `exp`, without the leeway.
        ago_s: u64,
    },
    /// `nbf` or `iat` is in the future, beyond the leeway.
    #[error("the token's `{claim}` is {in_s} s in the future: wait, or set the clock of whoever issues it")]
    NotYetValid {
        /// `nbf` or `iat`.
        claim: &'static str,
        /// Seconds until then.
        in_s: u64,
    },
    /// The signature is not that of the key the token names.
    #[error("the token's signature does not verify with the key it names: sign it with that key, and send it unchanged")]
    Signature,
    /// `kid` names no key here, or is absent where there are several.
    #[error("the token's `kid` names no key of this gateway: {0}")]
    UnknownKey(&'static str),
    /// `alg` is not the one its key is for (RFC 8725 3.1).
    #[error("the token's `alg` is not the one of its key: it must be {expected}")]
    Algorithm {
        /// The key's algorithm.
        expected: &'static str,
    },
    /// `iss` is absent, or is not the configured one.
    #[error("the token's `iss` is not the configured [auth] issuer")]
    Issuer,
    /// `aud` is absent or does not hold the configured one.
    #[error("the token's `aud` does not fit: {0}")]
    Audience(&'static str),
    /// A claim is absent, ill-typed or out of its bounds.
    #[error("the token's `{claim}` is not valid: {problem}")]
    Claims {
        /// The claim's name.
        claim: &'static str,
        /// The accepted values.
        problem: &'static str,
    },
    /// The token or its user was revoked.
    #[error("the token was revoked: get a new one")]
    Revoked,
    /// A good token that does not cover the session.
    #[error("the token's `sid` does not cover this session (and none covers one that is named rw. and more, the gateway's own)")]
    ForbiddenSession,
    /// The `client_id` is not the user's.
    #[error("the client_id must be the token's `sub`, or `sub/` and 1 to 64 of [A-Za-z0-9_-]")]
    ClientId,
}

impl AuthError {
    /// The code of each refusal, for tables and metrics.
    pub const CODES: [&'static str; 13] = [
        "auth.missing",
        "auth.malformed",
        "auth.expired",
        "auth.not_yet_valid",
        "auth.signature",
        "auth.unknown_key",
        "auth.algorithm",
        "auth.issuer",
        "auth.audience",
        "auth.claims",
        "auth.revoked",
        "auth.forbidden_session",
        "auth.client_id",
    ];

    /// The stable code of `rw.error` (protocol.md section 7).
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing => "auth.missing",
            Self::Malformed(_) => "auth.malformed",
            Self::Expired { .. } => "auth.expired",
            Self::NotYetValid { .. } => "auth.not_yet_valid",
            Self::Signature => "auth.signature",
            Self::UnknownKey(_) => "auth.unknown_key",
            Self::Algorithm { .. } => "auth.algorithm",
            Self::Issuer => "auth.issuer",
            Self::Audience(_) => "auth.audience",
            Self::Claims { .. } => "auth.claims",
            Self::Revoked => "auth.revoked",
            Self::ForbiddenSession => "auth.forbidden_session",
            Self::ClientId => "auth.client_id",
        }
    }

    /// The close reason: 4403 if the token is good but does not permit this, else 4401.
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::ForbiddenSession | Self::ClientId => CloseReason::Forbidden,
            Self::Missing
            | Self::Malformed(_)
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::Signature
            | Self::UnknownKey(_)
            | Self::Algorithm { .. }
            | Self::Issuer
            | Self::Audience(_)
            | Self::Claims { .. }
            | Self::Revoked => CloseReason::Auth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_code_and_close() {
        let all = [
            AuthError::Missing,
            AuthError::Malformed("x"),
            AuthError::Expired { ago_s: 1 },
            AuthError::NotYetValid { claim: "nbf", in_s: 1 },
            AuthError::Signature,
            AuthError::UnknownKey("x"),
            AuthError::Algorithm { expected: "EdDSA" },
            AuthError::Issuer,
            AuthError::Audience("x"),
            AuthError::Claims { claim: "sub", problem: "x" },
            AuthError::Revoked,
            AuthError::ForbiddenSession,
            AuthError::ClientId,
        ];
        assert_eq!(all.map(|error| error.code()), AuthError::CODES);
        for error in all {
            let code = error.close_reason().code();
            let forbidden = matches!(error.code(), "auth.forbidden_session" | "auth.client_id");
            assert_eq!(code, Some(if forbidden { 4403 } else { 4401 }), "{error}");
        }
    }
}
