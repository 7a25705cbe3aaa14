//! Tokens made by hand, good and bad: a JWT (RFC 7519) is two JSON objects and a signature over them.

use super::gateway::{KEY_ID, SECRET};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "a token is good for a time that the wall clock tells")]
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A signature with HS256 over what was signed.
pub fn signature(signed: &str, secret: &[u8]) -> String {
    base64(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes()))
}

/// A token of any header and claims, signed with HS256 whatever the header says.
pub fn forged(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", base64(header), base64(claims));
    format!("{signed}.{}", signature(&signed, secret))
}

pub fn header() -> Value {
    json!({"alg": "HS256", "typ": "JWT", "kid": KEY_ID})
}

/// Good claims, for every session, with `changes` over them; `null` takes a claim away.
pub fn claims(subject: &str, changes: &Value) -> Value {
    let now = now_s();
    let mut claims = json!({"sub": subject, "sid": ["*"], "iat": now, "nbf": now, "exp": now + 600});
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A well-signed token.
pub fn token_with(subject: &str, changes: &Value) -> String {
    forged(&header().to_string(), &claims(subject, changes).to_string(), SECRET)
}

/// A good token for every session.
pub fn token(subject: &str) -> String {
    token_with(subject, &json!({}))
}
