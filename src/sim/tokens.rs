//! Clients' tokens.

use super::client::Client;
use super::world::SECRET;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The id of a client's token.
pub fn token_id(client: &Client) -> String {
    format!("{}.{}", client.id, client.token_number)
}

/// An HS256 token (RFC 7519).
pub fn token(client: &Client, now_s: u64, lifetime_s: u64) -> String {
    token_for(client, &["s.*", "channel:c.*"], now_s, lifetime_s)
}

/// A token for these sessions.
pub fn token_for(client: &Client, sessions: &[&str], now_s: u64, lifetime_s: u64) -> String {
    let header = serde_json::json!({ "alg": "HS256", "typ": "JWT", "kid": "k" });
    let mut claims = serde_json::json!({ "sub": client.sub, "sid": sessions, "roles": client.roles, "iat": now_s,
        "exp": now_s + lifetime_s, "jti": token_id(client) });
    if let Some(issuer) = client.issuer {
        claims["iss"] = serde_json::json!(issuer);
    }
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}
