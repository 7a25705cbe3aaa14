//! `ringway key new`, `ringway token new` and `ringway token verify`: a small issuer for first steps and tests.
//!
//! The functions that take a path read or write it; all others work on text. None of them prints.

use crate::auth::claims::Claims;
use crate::auth::{AuthError, KeyAlgorithm, KeyError, KeyMaterial, KeyProblem, KeySet, TokenPolicy};
use crate::limits::HMAC_SECRET_BYTES_MIN;
use crate::time::Tick;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use aws_lc_rs::{error::Unspecified, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Base64 characters a line of PEM (RFC 7468 section 2).
const PEM_LINE_CHARACTERS: usize = 64;
/// A key file is never larger: RSA of 8192 bits takes about 6 KiB.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// An error, for the terminal.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {error}", .path.display())]
    File {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A file that exists already.
    #[error("{} is there already and is not overwritten: choose another --out or --kid, or move it away", .0.display())]
    Exists(PathBuf),
    /// A file too large for a key.
    #[error("{} is larger than 64 KiB, which no key is", .0.display())]
    TooLarge(PathBuf),
    /// A bad `--kid`.
    #[error("--kid takes 1 to 64 of [A-Za-z0-9._-]")]
    KeyId,
    /// A bad `--ttl`.
    #[error("--ttl takes a number and s, m, h or d, as in 90s, 15m, 1h")]
    Ttl,
    /// A public key where the private one is needed.
    #[error("the file holds a public key: signing needs the private one, which `ringway key new` wrote beside it")]
    PublicToSign,
    /// A private key of another kind or form.
    #[error(
        "the file holds no key that can sign: it takes a PEM `-----BEGIN PRIVATE KEY-----` (PKCS#8; convert with `openssl pkcs8 -topk8 -nocrypt`) of Ed25519, P-256 or RSA from 2048 bits, a JWK with \"kty\":\"oct\", or a secret of 32 bytes or more"
    )]
    NotASigningKey,
    /// A key that cannot verify.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A token that is refused, or one that would be.
    #[error("{} ({})", .0, .0.code())]
    Token(#[from] AuthError),
    /// The cryptographic library failed.
    #[error("the cryptographic library failed; is the system's random source available?")]
    Crypto,
}

impl From<Unspecified> for KeysError {
    fn from(_: Unspecified) -> Self {
        Self::Crypto
    }
}

enum Pair {
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
    Hs256(Vec<u8>),
}

/// A key that signs tokens.
pub struct SigningKey {
    key_id: Option<String>,
    pair: Pair,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey {{ {:?}, {}, .. }}", self.key_id, self.algorithm().name())
    }
}

/// The contents of a token to be made.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// `sub`.
    pub subject: String,
    /// `sid`: session ids, or prefixes before a `*`.
    pub sessions: Vec<String>,
    /// `roles`.
    pub roles: Vec<String>,
    /// Seconds from `iat` to `exp`.
    pub ttl_s: u64,
    /// `iss`.
    pub issuer: Option<String>,
    /// `aud`.
    pub audience: Option<String>,
    /// `scope`.
    pub scope: Option<String>,
}

impl SigningKey {
    /// Makes a key. Without an id it gets `ALG-` and eight random hexadecimal digits.
    ///
    /// # Errors
    /// [`KeysError::KeyId`], [`KeysError::Crypto`].
    pub fn generate(algorithm: KeyAlgorithm, key_id: Option<&str>) -> Result<Self, KeysError> {
        let key_id = match key_id {
            Some(key_id) => key_id.to_owned(),
            None => format!("{}-{}", algorithm.name().to_ascii_lowercase(), random_hex::<4>()?),
        };
        if !crate::auth::is_key_id(&key_id) {
            return Err(KeysError::KeyId);
        }
        let pair = match algorithm {
            KeyAlgorithm::EdDsa => Pair::EdDsa(Ed25519KeyPair::generate()?),
            KeyAlgorithm::Es256 => Pair::Es256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?),
            KeyAlgorithm::Rs256 => Pair::Rs256(RsaKeyPair::generate(KeySize::Rsa2048)?),
            KeyAlgorithm::Hs256 => {
                let mut secret = vec![0; HMAC_SECRET_BYTES_MIN];
                rand::fill(&mut secret)?;
                Pair::Hs256(secret)
            }
        };
        Ok(Self { key_id: Some(key_id), pair })
    }

    /// Reads the contents of a private key file. The id is the given one, else the file's own, else none.
    ///
    /// # Errors
    /// [`KeysError::PublicToSign`], [`KeysError::NotASigningKey`], [`KeysError::KeyId`].
    pub fn parse(bytes: &[u8], key_id: Option<&str>) -> Result<Self, KeysError> {
        let (own_key_id, pair) = if let Some((preamble, rest)) = split_pem(bytes) {
            if rest.starts_with("-----BEGIN PUBLIC KEY-----") || rest.starts_with("-----BEGIN RSA PUBLIC KEY-----") {
                return Err(KeysError::PublicToSign);
            }
            let der = pem_body(rest, "PRIVATE KEY").ok_or(KeysError::NotASigningKey)?;
            (crate::auth::preamble_key_id(preamble).map(str::to_owned), pair_of(&der).ok_or(KeysError::NotASigningKey)?)
        } else if bytes.trim_ascii_start().starts_with(b"{") {
            let text = std::str::from_utf8(bytes).map_err(|_| KeysError::NotASigningKey)?;
            let jwk = crate::auth::Jwk::parse(text).map_err(|_| KeysError::NotASigningKey)?;
            if jwk.alg.as_deref().is_some_and(|algorithm| algorithm != "HS256") {
                return Err(KeysError::NotASigningKey);
            }
            let secret = jwk.secret().map_err(|_| KeysError::NotASigningKey)?;
            (jwk.kid, Pair::Hs256(secret))
        } else {
            (None, Pair::Hs256(crate::auth::raw_secret(bytes).to_vec()))
        };
        if matches!(&pair, Pair::Hs256(secret) if secret.len() < HMAC_SECRET_BYTES_MIN) {
            return Err(KeysError::NotASigningKey);
        }
        let key_id = key_id.map(str::to_owned).or(own_key_id);
        if key_id.as_ref().is_some_and(|key_id| !crate::auth::is_key_id(key_id)) {
            return Err(KeysError::KeyId);
        }
        Ok(Self { key_id, pair })
    }

    /// The key's algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> KeyAlgorithm {
        match self.pair {
            Pair::EdDsa(_) => KeyAlgorithm::EdDsa,
            Pair::Es256(_) => KeyAlgorithm::Es256,
            Pair::Rs256(_) => KeyAlgorithm::Rs256,
            Pair::Hs256(_) => KeyAlgorithm::Hs256,
        }
    }

    /// The key's id; `None` if it has none.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// The text of the private file: PEM (PKCS#8), after a line with the id; for HS256 a JWK.
    ///
    /// # Errors
    /// [`KeysError::Crypto`].
    pub fn private_text(&self) -> Result<String, KeysError> {
        match &self.pair {
            Pair::EdDsa(pair) => Ok(self.pem("PRIVATE KEY", pair.to_pkcs8v1()?.as_ref())),
            Pair::Es256(pair) => Ok(self.pem("PRIVATE KEY", pair.to_pkcs8v1()?.as_ref())),
            Pair::Rs256(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der()?;
                Ok(self.pem("PRIVATE KEY", der.as_ref()))
            }
            Pair::Hs256(secret) => {
                let mut jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret), "alg": "HS256"});
                if let Some(key_id) = &self.key_id {
                    jwk["kid"] = json!(key_id);
                }
                Ok(format!("{jwk}\n"))
            }
        }
    }

    /// The contents of the gateway's file: the public key as PEM (SPKI), after a line with the id; for HS256 the same JWK.
    ///
    /// # Errors
    /// [`KeysError::Crypto`].
    pub fn public_text(&self) -> Result<String, KeysError> {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::EdDsa(pair) => pair.public_key().as_der()?,
            Pair::Es256(pair) => pair.public_key().as_der()?,
            Pair::Rs256(pair) => pair.public_key().as_der()?,
            Pair::Hs256(_) => return self.private_text(),
        };
        Ok(self.pem("PUBLIC KEY", der.as_ref()))
    }

    /// The key as a [`KeySet`] takes it, without a file in between (`ringway dev`). A key without an id is called `key`.
    ///
    /// # Errors
    /// [`KeysError::Crypto`].
    pub fn material(&self) -> Result<KeyMaterial, KeysError> {
        let key_id = self.key_id.clone().unwrap_or_else(|| "key".to_owned());
        Ok(KeyMaterial { key_id, algorithm: self.algorithm(), bytes: self.public_text()?.into_bytes() })
    }

    /// Signs a token that is valid from `now_s`, Unix seconds. A token that no gateway would accept is refused.
    ///
    /// # Errors
    /// [`KeysError::Token`] with the wrong claim, [`KeysError::Crypto`].
    pub fn token(&self, request: &TokenRequest, now_s: u64) -> Result<String, KeysError> {
        let mut claims = Map::new();
        claims.insert("sub".into(), json!(request.subject));
        claims.insert("sid".into(), json!(request.sessions));
        claims.insert("iat".into(), json!(now_s));
        claims.insert("exp".into(), json!(now_s.saturating_add(request.ttl_s)));
        claims.insert("jti".into(), json!(random_hex::<16>()?));
        if !request.roles.is_empty() {
            claims.insert("roles".into(), json!(request.roles));
        }
        for (name, value) in [("iss", &request.issuer), ("aud", &request.audience), ("scope", &request.scope)] {
            if let Some(value) = value {
                claims.insert(name.into(), json!(value));
            }
        }
        let claims = Value::Object(claims).to_string();
        let policy = TokenPolicy { audience: request.audience.as_deref().map(Into::into), leeway_s: 0, ..TokenPolicy::default() };
        Claims::parse(claims.as_bytes())?.grant(&policy, now_s)?;

        let mut header = json!({"typ": "JWT", "alg": self.algorithm().name()});
        if let Some(key_id) = &self.key_id {
            header["kid"] = json!(key_id);
        }
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeysError> {
        let random = SystemRandom::new();
        Ok(match &self.pair {
            Pair::EdDsa(pair) => pair.try_sign(message)?.as_ref().to_vec(),
            Pair::Es256(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Pair::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
            Pair::Hs256(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
        })
    }

    fn pem(&self, label: &str, der: &[u8]) -> String {
        let mut text = self.key_id.as_ref().map_or_else(String::new, |key_id| format!("kid: {key_id}\n"));
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        let base64 = STANDARD.encode(der);
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(PEM_LINE_CHARACTERS));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str(&format!("-----END {label}-----\n"));
        text
    }
}

/// Seconds of `90s`, `15m`, `1h`, `1d`.
///
/// # Errors
/// [`KeysError::Ttl`].
pub fn ttl_s(text: &str) -> Result<u64, KeysError> {
    let unit_s = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 60 * 60,
        Some(b'd') => 24 * 60 * 60,
        _ => return Err(KeysError::Ttl),
    };
    let number = &text[..text.len() - 1];
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(KeysError::Ttl);
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s)).ok_or(KeysError::Ttl)
}

/// `ringway key new`: writes the private file (mode 0600) and, for an asymmetric key, the public one beside it. `out` is a
/// directory, then the files are named after the key's id, or the private file. Returns what to print: the `[[auth.keys]]` to
/// paste.
///
/// # Errors
/// [`KeysError`]; nothing is overwritten.
pub fn key_new(algorithm: KeyAlgorithm, key_id: Option<&str>, out: &Path) -> Result<String, KeysError> {
    let key = SigningKey::generate(algorithm, key_id)?;
    let name = key.key_id().unwrap_or_default();
    let symmetric = algorithm == KeyAlgorithm::Hs256;
    let (private_path, public_path) = if out.is_dir() {
        let private = if symmetric { format!("{name}.jwk.json") } else { format!("{name}.key.pem") };
        (out.join(private), out.join(format!("{name}.pub.pem")))
    } else {
        (out.to_owned(), out.with_extension("pub.pem"))
    };
    let mut said = String::new();
    let gateway_path = if symmetric {
        write_new(&private_path, &key.private_text()?, 0o600)?;
        said.push_str(&format!("secret key:  {} (the issuer and the gateway hold it, nobody else)\n", private_path.display()));
        private_path
    } else {
        if private_path == public_path || public_path.exists() {
            return Err(KeysError::Exists(public_path));
        }
        write_new(&private_path, &key.private_text()?, 0o600)?;
        if let Err(error) = key.public_text().and_then(|text| write_new(&public_path, &text, 0o644)) {
            // A private file without its public one would stop the next attempt.
            let _keeps_the_first_error = std::fs::remove_file(&private_path);
            return Err(error);
        }
        said.push_str(&format!(
            "private key: {} (for the issuer of tokens; the gateway does not need it)\n",
            private_path.display()
        ));
        said.push_str(&format!("public key:  {}\n", public_path.display()));
        public_path
    };
    let gateway_path = std::path::absolute(&gateway_path).unwrap_or(gateway_path);
    // A JSON string is a basic string of TOML.
    let (kid, file) = (json!(name), json!(gateway_path.to_string_lossy()));
    said.push_str(&format!(
        "\nFor the gateway's configuration:\n\n[[auth.keys]]\nkid = {kid}\nalg = \"{}\"\nfile = {file}\n",
        algorithm.name()
    ));
    Ok(said)
}

/// `ringway token new`: a token signed with the key of a file. `key_id` replaces the file's own.
///
/// # Errors
/// [`KeysError`].
pub fn token_new(key_path: &Path, key_id: Option<&str>, request: &TokenRequest, now_s: u64) -> Result<String, KeysError> {
    SigningKey::parse(&read(key_path)?, key_id)?.token(request, now_s)
}

/// `ringway token verify`: the claims as JSON, if the token is valid at `now` by the key of a file, public or private.
///
/// # Errors
/// [`KeysError::Token`] says why not.
pub fn token_verify(key_path: &Path, token: &str, policy: &TokenPolicy, now: Tick) -> Result<String, KeysError> {
    verify_with(&read(key_path)?, token, policy, now)
}

/// [`token_verify`] with the file's contents.
///
/// # Errors
/// [`KeysError::Token`] says why not.
pub fn verify_with(key: &[u8], token: &str, policy: &TokenPolicy, now: Tick) -> Result<String, KeysError> {
    verifying_keys(key, token)?.verify(token, policy, now)?;
    let claims = json_part(token, 1).ok_or(AuthError::Malformed("its claims must be JSON"))?;
    Ok(format!("{claims:#}"))
}

/// The only key of the file. A file without an id accepts any id that the token names.
fn verifying_keys(key: &[u8], token: &str) -> Result<KeySet, KeysError> {
    let token_key_id = || {
        let key_id = json_part(token, 0).and_then(|header| header["kid"].as_str().map(str::to_owned));
        key_id.filter(|key_id| crate::auth::is_key_id(key_id)).unwrap_or_else(|| "key".to_owned())
    };
    let public = match SigningKey::parse(key, None) {
        Ok(mut signing) => {
            signing.key_id.get_or_insert_with(token_key_id);
            return Ok(KeySet::new(&[signing.material()?])?);
        }
        Err(error @ KeysError::KeyId) => return Err(error),
        Err(_) => key,
    };
    let own = std::str::from_utf8(public).ok().and_then(|text| match split_pem(public) {
        Some((preamble, _)) => crate::auth::preamble_key_id(preamble).map(str::to_owned),
        None => crate::auth::Jwk::parse(text).ok().and_then(|jwk| jwk.kid),
    });
    let key_id = own.unwrap_or_else(token_key_id);
    let material = |algorithm| KeyMaterial { key_id: key_id.clone(), algorithm, bytes: public.to_vec() };
    // The file's contents decide which algorithm it is for; the token's `alg` only helps to explain an error.
    let named = json_part(token, 0).and_then(|header| header["alg"].as_str().and_then(KeyAlgorithm::from_name));
    let explained = named.unwrap_or(KeyAlgorithm::EdDsa);
    let fits = KeyAlgorithm::ALL.into_iter().find_map(|algorithm| KeySet::new(&[material(algorithm)]).ok());
    match fits {
        Some(keys) => Ok(keys),
        None => Ok(KeySet::new(&[material(explained)])?),
    }
}

fn json_part(token: &str, index: usize) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(index)?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn pair_of(pkcs8: &[u8]) -> Option<Pair> {
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8(pkcs8) {
        return Some(Pair::EdDsa(pair));
    }
    if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8) {
        return Some(Pair::Es256(pair));
    }
    RsaKeyPair::from_pkcs8(pkcs8).ok().map(Pair::Rs256)
}

/// The text before the first PEM block, and the rest.
fn split_pem(bytes: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let start = text.find("-----BEGIN ")?;
    Some(text.split_at(start))
}

fn pem_body(text: &str, label: &str) -> Option<Vec<u8>> {
    let body = text.strip_prefix(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = body.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

fn random_hex<const BYTES: usize>() -> Result<String, KeysError> {
    let mut bytes = [0; BYTES];
    rand::fill(&mut bytes)?;
    let mut text = String::with_capacity(2 * BYTES);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    let failed = |error| KeysError::File { action: "read", path: path.to_owned(), error };
    if std::fs::metadata(path).map_err(failed)?.len() > KEY_FILE_BYTES_MAX {
        return Err(KeysError::TooLarge(path.to_owned()));
    }
    std::fs::read(path).map_err(failed)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists(path.to_owned()),
        _ => KeysError::File { action: "write", path: path.to_owned(), error },
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// The problem of a key, for callers that look only at that.
impl KeysError {
    /// The problem; `None` if the error is not about the key.
    #[must_use]
    pub const fn key_problem(&self) -> Option<KeyProblem> {
        match self {
            Self::Key(error) => Some(error.problem),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW_S: u64 = 1_790_000_000;
    const NOW: Tick = Tick { mono_ns: 0, wall_ms: NOW_S * 1000 };

    fn request() -> TokenRequest {
        TokenRequest {
            subject: "ana".into(),
            sessions: vec!["s-1".into(), "team.*".into()],
            roles: vec!["agent".into()],
            ttl_s: 3600,
            ..TokenRequest::default()
        }
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringway-keys-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn all_algorithms_go_round_through_text() {
        for algorithm in KeyAlgorithm::ALL {
            let key = SigningKey::generate(algorithm, Some("k1")).unwrap();
            let again = SigningKey::parse(key.private_text().unwrap().as_bytes(), None).unwrap();
            assert_eq!((again.algorithm(), again.key_id()), (algorithm, Some("k1")));
            let token = again.token(&request(), NOW_S).unwrap();

            let public = key.public_text().unwrap().into_bytes();
            let keys = KeySet::new(&[KeyMaterial { key_id: "k1".into(), algorithm, bytes: public.clone() }]).unwrap();
            let grant = keys.verify(&token, &TokenPolicy::default(), NOW).unwrap();
            assert_eq!((grant.subject(), grant.expires_at_s(), grant.issued_at_s()), ("ana", NOW_S + 3600, Some(NOW_S)));
            assert!(grant.covers("team.7") && grant.has_role("agent") && grant.token_id().is_some_and(|id| id.len() == 32));
            assert!(KeySet::new(&[key.material().unwrap()]).unwrap().verify(&token, &TokenPolicy::default(), NOW).is_ok());

            for file in [public, key.private_text().unwrap().into_bytes()] {
                let said = verify_with(&file, &token, &TokenPolicy::default(), NOW).unwrap();
                let claims: Value = serde_json::from_str(&said).unwrap();
                assert_eq!((&claims["sub"], &claims["sid"]), (&json!("ana"), &json!(["s-1", "team.*"])));
                let late = Tick { mono_ns: 0, wall_ms: (NOW_S + 7200) * 1000 };
                let refused = verify_with(&file, &token, &TokenPolicy::default(), late).unwrap_err().to_string();
                assert!(refused.contains("expired 3600 s ago") && refused.contains("auth.expired"), "{refused}");
            }
            let other = SigningKey::generate(algorithm, Some("k1")).unwrap().public_text().unwrap();
            let refused = verify_with(other.as_bytes(), &token, &TokenPolicy::default(), NOW).unwrap_err();
            assert!(matches!(refused, KeysError::Token(AuthError::Signature)), "{refused}");
            assert!(!format!("{key:?}").contains("BEGIN"));
        }
    }

    #[test]
    fn ids_come_from_the_file_or_the_command_line() {
        let key = SigningKey::generate(KeyAlgorithm::EdDsa, None).unwrap();
        assert!(key.key_id().unwrap().starts_with("eddsa-"));
        let private = key.private_text().unwrap();
        let bare = &private[private.find("-----BEGIN").unwrap()..];
        assert_eq!(SigningKey::parse(bare.as_bytes(), None).unwrap().key_id(), None);
        let named = SigningKey::parse(bare.as_bytes(), Some("mine")).unwrap();
        let token = named.token(&request(), NOW_S).unwrap();
        assert_eq!(json_part(&token, 0).unwrap()["kid"], "mine");
        // A file without an id matches the token's id; a file with another id does not.
        assert!(verify_with(bare.as_bytes(), &token, &TokenPolicy::default(), NOW).is_ok());
        let refused = verify_with(private.as_bytes(), &token, &TokenPolicy::default(), NOW).unwrap_err();
        assert!(matches!(refused, KeysError::Token(AuthError::UnknownKey(_))), "{refused}");
        assert!(matches!(SigningKey::generate(KeyAlgorithm::Hs256, Some("a/b")), Err(KeysError::KeyId)));
    }

    #[test]
    fn what_no_gateway_takes_is_not_signed() {
        let key = SigningKey::generate(KeyAlgorithm::Hs256, None).unwrap();
        let refused = |request: TokenRequest| key.token(&request, NOW_S).unwrap_err().to_string();
        assert!(refused(TokenRequest { subject: "rw".into(), ..request() }).contains("`sub`"));
        assert!(refused(TokenRequest { sessions: vec![], ..request() }).contains("`sid`"));
        assert!(refused(TokenRequest { roles: vec!["a b".into()], ..request() }).contains("`roles`"));
        assert!(refused(TokenRequest { ttl_s: 86_401, ..request() }).contains("24 h"));
        assert!(refused(TokenRequest { ttl_s: 0, ..request() }).contains("expired"));
        let full =
            TokenRequest { issuer: Some("me".into()), audience: Some("rt".into()), scope: Some("a b".into()), ..request() };
        let token = key.token(&full, NOW_S).unwrap();
        let policy = TokenPolicy { issuer: Some("me".into()), audience: Some("rt".into()), ..TokenPolicy::default() };
        let private = key.private_text().unwrap();
        assert!(verify_with(private.as_bytes(), &token, &policy, NOW).is_ok());
        let refused = verify_with(private.as_bytes(), &token, &TokenPolicy::default(), NOW).unwrap_err();
        assert!(matches!(refused, KeysError::Token(AuthError::Audience(_))), "{refused}");
    }

    #[test]
    fn files_that_cannot_sign_are_named() {
        let refused = |bytes: &[u8]| SigningKey::parse(bytes, None).unwrap_err();
        let public = SigningKey::generate(KeyAlgorithm::Es256, None).unwrap().public_text().unwrap();
        assert!(matches!(refused(public.as_bytes()), KeysError::PublicToSign));
        for bytes in [
            &b""[..],
            b"short",
            b"{}",
            br#"{"kty":"oct","k":"AAAA"}"#,
            b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----",
        ] {
            assert!(matches!(refused(bytes), KeysError::NotASigningKey), "{bytes:?}");
        }
        let raw = SigningKey::parse(b"0123456789abcdef0123456789abcdef\n", None).unwrap();
        assert_eq!(raw.algorithm(), KeyAlgorithm::Hs256);
        let token = raw.token(&request(), NOW_S).unwrap();
        assert!(verify_with(b"0123456789abcdef0123456789abcdef", &token, &TokenPolicy::default(), NOW).is_ok());
        let broken = verify_with(b"-----BEGIN PUBLIC KEY-----\nAAAA\n", &token, &TokenPolicy::default(), NOW).unwrap_err();
        assert!(broken.key_problem().is_some(), "{broken}");
    }

    #[test]
    fn key_new_writes_what_the_others_read() {
        let directory = directory("new");
        for algorithm in KeyAlgorithm::ALL {
            let kid = algorithm.name().to_ascii_lowercase();
            let said = key_new(algorithm, Some(&kid), &directory).unwrap();
            let symmetric = algorithm == KeyAlgorithm::Hs256;
            let private = directory.join(if symmetric { format!("{kid}.jwk.json") } else { format!("{kid}.key.pem") });
            assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);

            let config: toml::Table = said[said.find("[[auth.keys]]").unwrap()..].parse().unwrap();
            let entry = &config["auth"]["keys"][0];
            assert_eq!((entry["kid"].as_str(), entry["alg"].as_str()), (Some(kid.as_str()), Some(algorithm.name())));
            let file = entry["file"].as_str().unwrap();
            let keys =
                KeySet::new(&[KeyMaterial { key_id: kid.clone(), algorithm, bytes: std::fs::read(file).unwrap() }]).unwrap();
            let token = token_new(&private, None, &request(), NOW_S).unwrap();
            assert!(keys.verify(&token, &TokenPolicy::default(), NOW).is_ok());
            assert!(token_verify(Path::new(file), &token, &TokenPolicy::default(), NOW).is_ok());

            let before = std::fs::read(&private).unwrap();
            assert!(matches!(key_new(algorithm, Some(&kid), &directory), Err(KeysError::Exists(_))));
            assert_eq!(std::fs::read(&private).unwrap(), before, "not overwritten");
            let secret_line = String::from_utf8(before).unwrap().lines().nth(2).unwrap_or("{\"").to_owned();
            assert!(!said.contains(&secret_line), "no key is printed");
        }
        let file = directory.join("own.pem");
        key_new(KeyAlgorithm::EdDsa, None, &file).unwrap();
        assert!(file.exists() && directory.join("own.pub.pem").exists());
        let missing = key_new(KeyAlgorithm::EdDsa, None, &directory.join("no/such/file")).unwrap_err().to_string();
        assert!(missing.contains("cannot write") && missing.contains("no/such/file"), "{missing}");
        let unread = token_verify(&directory.join("none"), "", &TokenPolicy::default(), NOW).unwrap_err().to_string();
        assert!(unread.contains("cannot read"), "{unread}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn ttls() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("1d", 86_400), ("0s", 0)] {
            assert_eq!(ttl_s(text).unwrap(), seconds);
        }
        for bad in ["", "h", "1", "1.5h", "-1h", "1w", "+1h", "1hh", "99999999999999999999s", "999999999999999999d", "1é"] {
            assert!(matches!(ttl_s(bad), Err(KeysError::Ttl)), "{bad}");
        }
    }
}
