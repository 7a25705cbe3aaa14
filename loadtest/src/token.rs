//! Tokens for the harness's clients: HS256, one a client.

use crate::clock::unix_s;
use base64::Engine as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// Signs tokens that the gateway under test accepts.
#[derive(Clone)]
pub struct Minter {
    key: EncodingKey,
    pub kid: String,
    pub issuer: String,
    pub audience: String,
    secret: Vec<u8>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    sid: &'a [&'a str],
    roles: &'a [&'a str],
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
}

impl Minter {
    /// A fresh secret.
    pub fn random() -> Result<Self, String> {
        let mut secret = vec![0; 48];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| "the system gave no random bytes for a key".to_owned())?;
        Ok(Self::with_secret(secret, "load".into(), "ringway-loadtest".into(), "ringway".into()))
    }

    fn with_secret(secret: Vec<u8>, kid: String, issuer: String, audience: String) -> Self {
        Self { key: EncodingKey::from_secret(&secret), kid, issuer, audience, secret }
    }

    /// The key of a running gateway, from its JWK file.
    pub fn from_jwk(text: &str, issuer: &str, audience: &str) -> Result<Self, String> {
        let jwk: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("the key file is no JSON: {error}"))?;
        if jwk["kty"] != "oct" {
            return Err(format!("the key file holds kty {}; the harness signs HS256, which is kty \"oct\"", jwk["kty"]));
        }
        let secret = jwk["k"].as_str().and_then(|k| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(k).ok());
        let secret = secret.ok_or("the key file's k is no unpadded base64url")?;
        Ok(Self::with_secret(secret, jwk["kid"].as_str().unwrap_or("load").into(), issuer.into(), audience.into()))
    }

    /// The key file for the gateway.
    pub fn jwk(&self) -> String {
        let k = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&self.secret);
        serde_json::json!({ "kty": "oct", "k": k, "alg": "HS256", "kid": self.kid }).to_string()
    }

    /// A token of one hour for a client that may be in the sessions `sid`.
    pub fn mint(&self, sub: &str, sid: &[&str], number: usize) -> Result<String, String> {
        let now = unix_s();
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::HS256) };
        let claims = Claims {
            sub,
            sid,
            roles: &["load"],
            iss: &self.issuer,
            aud: &self.audience,
            iat: now,
            nbf: now.saturating_sub(1),
            exp: now + 3600,
            jti: format!("{sub}-{number}-{now}"),
        };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|error| format!("signing a token failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_through_its_file_and_signs_the_same() {
        let minter = Minter::random().unwrap();
        let again = Minter::from_jwk(&minter.jwk(), &minter.issuer, &minter.audience).unwrap();
        assert_eq!((again.secret.len(), again.kid.as_str()), (48, "load"));
        let token = minter.mint("load-1", &["load.*"], 1).unwrap();
        let mut checks = jsonwebtoken::Validation::new(Algorithm::HS256);
        checks.set_audience(&["ringway"]);
        checks.set_issuer(&["ringway-loadtest"]);
        let key = jsonwebtoken::DecodingKey::from_secret(&again.secret);
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &checks).unwrap().claims;
        assert_eq!((claims["sub"].as_str(), claims["sid"][0].as_str()), (Some("load-1"), Some("load.*")));
    }

    #[test]
    fn a_key_of_another_kind_is_named() {
        let error = Minter::from_jwk("{\"kty\":\"OKP\"}", "i", "a").err().unwrap();
        assert!(error.contains("OKP") && error.contains("oct"), "{error}");
    }
}
