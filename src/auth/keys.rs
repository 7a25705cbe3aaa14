//! The keys that tokens are verified with. The one file that knows `jsonwebtoken`.

use super::claims::{Claims, given};
use super::{AuthError, Grant, TokenPolicy};
use crate::limits::{HMAC_SECRET_BYTES_MIN, KEY_ID_BYTES_MAX, KEYS_MAX, RSA_BITS_MIN, TOKEN_BYTES_MAX};
use crate::time::Tick;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

/// A key's algorithm; each key has one (RFC 8725 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyAlgorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// HMAC with SHA-256.
    Hs256,
}

impl KeyAlgorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::EdDsa, Self::Es256, Self::Rs256, Self::Hs256];

    /// The name as JWT's `alg` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Hs256 => "HS256",
        }
    }

    /// The algorithm of this name, case ignored: for the configuration and the command line, never for tokens.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    const fn library(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es256 => Algorithm::ES256,
            Self::Rs256 => Algorithm::RS256,
            Self::Hs256 => Algorithm::HS256,
        }
    }
}

/// An entry of `[[auth.keys]]` with its file read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyMaterial {
    /// `kid`.
    pub key_id: String,
    /// `alg`.
    pub algorithm: KeyAlgorithm,
    /// The file's content: a PEM public key or a JWK; for HS256 a JWK or the secret itself.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KeyMaterial {{ {:?}, {}, .. }}", self.key_id, self.algorithm.name())
    }
}

/// A key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {key_id:?} ({}): {problem}", .algorithm.name())]
pub struct KeyError {
    /// The configured `kid`.
    pub key_id: String,
    /// The configured `alg`.
    pub algorithm: KeyAlgorithm,
    /// The mistake, and how to correct it.
    pub problem: KeyProblem,
}

/// A mistake with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// Characters that a key id may not have.
    #[error("a kid is 1 to 64 of [A-Za-z0-9._-]")]
    KeyId,
    /// Two keys with the same id.
    #[error("another key has the same kid: give each its own, the old and the new one of a rotation too")]
    Duplicate,
    /// More than [`KEYS_MAX`].
    #[error("at most {KEYS_MAX} keys are taken: remove those no token is signed with any more")]
    TooMany,
    /// A private key where the public one belongs.
    #[error(
        "the file holds a private key: keep that with the issuer, and give the gateway the public one (`-----BEGIN PUBLIC KEY-----`)"
    )]
    Private,
    /// A certificate.
    #[error("the file holds a certificate: take its key out with `openssl x509 -pubkey -noout -in FILE`")]
    Certificate,
    /// A set of keys.
    #[error("the file holds a JWK set: put each key into a file and a [[auth.keys]] of its own")]
    JwkSet,
    /// Neither PEM nor JWK.
    #[error("the file is neither a PEM public key (`-----BEGIN PUBLIC KEY-----`) nor a JWK (`{{\"kty\":…}}`)")]
    Unreadable,
    /// PEM, but not a key of the algorithm.
    #[error(
        "the file holds no public key of this algorithm, or a broken one: check `alg`, or make a pair with `ringway key new --alg {0}`"
    )]
    NotOfAlgorithm(&'static str),
    /// JSON that is no JWK of the algorithm.
    #[error("the JWK is not one of this algorithm: {0}")]
    Jwk(&'static str),
    /// The file names another kid.
    #[error("the file itself says another kid: configure that one")]
    OtherKeyId,
    /// An asymmetric key as a secret.
    #[error(
        "the file holds a PEM key: HS256 takes a JWK (`{{\"kty\":\"oct\",\"k\":…}}`) or the secret itself, which nobody else may know"
    )]
    PemAsSecret,
    /// A short secret.
    #[error(
        "the secret has {bytes} bytes, it needs {HMAC_SECRET_BYTES_MIN} random ones: make one with `ringway key new --alg hs256`"
    )]
    WeakSecret {
        /// Bytes of the secret.
        bytes: usize,
    },
    /// A short modulus.
    #[error("the RSA key has {bits} bits, it needs {RSA_BITS_MIN} to 8192: make one with `ringway key new --alg rs256`")]
    WeakRsa {
        /// Bits of the modulus.
        bits: u32,
    },
}

struct Key {
    key_id: Box<str>,
    algorithm: KeyAlgorithm,
    decoding: DecodingKey,
}

/// The keys that are good now. Old and new ones of a rotation are two entries. Immutable: a reload makes a new set.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// Names keys and algorithms, never material.
impl fmt::Debug for KeySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.keys().map(|(key_id, algorithm)| (key_id, algorithm.name()))).finish()
    }
}

impl KeySet {
    /// Builds a set.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn new(materials: &[KeyMaterial]) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::with_capacity(materials.len().min(KEYS_MAX));
        for material in materials {
            let error = |problem| KeyError { key_id: shown(&material.key_id), algorithm: material.algorithm, problem };
            if !is_key_id(&material.key_id) {
                return Err(error(KeyProblem::KeyId));
            }
            if keys.iter().any(|key| *key.key_id == *material.key_id) {
                return Err(error(KeyProblem::Duplicate));
            }
            if keys.len() == KEYS_MAX {
                return Err(error(KeyProblem::TooMany));
            }
            keys.push(Key {
                key_id: material.key_id.as_str().into(),
                algorithm: material.algorithm,
                decoding: decoding_key(material).map_err(error)?,
            });
        }
        Ok(Self { keys })
    }

    /// The ids and algorithms, in the order they were given.
    pub fn keys(&self) -> impl Iterator<Item = (&str, KeyAlgorithm)> {
        self.keys.iter().map(|key| (&*key.key_id, key.algorithm))
    }

    /// Verifies a token and judges its claims at `now`. Nothing is fetched: `jku`, `x5u`, `x5c` and `jwk` are ignored.
    ///
    /// # Errors
    /// Why not, see [`AuthError`].
    pub fn verify(&self, token: &str, policy: &TokenPolicy, now: Tick) -> Result<Grant, AuthError> {
        self.verified_claims(token)?.grant(policy, now.wall_s())
    }

    fn verified_claims(&self, token: &str) -> Result<Claims, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Malformed("it is larger than 8 KiB"));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AuthError::Malformed("it must have three parts, divided by dots"));
        };
        let key = self.key_of(&Header::parse(header)?)?;
        let message = &token.as_bytes()[..header.len() + 1 + payload.len()];
        // The signature alone is the library's to check. Its `decode` reads a clock, forgives missing claims, and parses header
        // and claims again: parameters that are to be ignored could fail there.
        match jsonwebtoken::crypto::verify(signature, message, &key.decoding, key.algorithm.library()) {
            Ok(true) => Claims::parse(&part(payload)?),
            Ok(false) => Err(AuthError::Signature),
            Err(error) if matches!(error.kind(), ErrorKind::Base64(_)) => Err(NOT_BASE64URL),
            Err(_) => Err(AuthError::Signature),
        }
    }

    fn key_of(&self, header: &Header) -> Result<&Key, AuthError> {
        let key = match (&header.kid, self.keys.as_slice()) {
            (None, [only]) => only,
            (None, []) => return Err(AuthError::UnknownKey("it has no keys at all, see [[auth.keys]]")),
            (None, _) => return Err(AuthError::UnknownKey("there are several, so the header must have one")),
            (Some(Value::String(key_id)), keys) if is_key_id(key_id) => keys
                .iter()
                .find(|key| *key.key_id == **key_id)
                .ok_or(AuthError::UnknownKey("use one of [[auth.keys]], or add the issuer's new key there"))?,
            (Some(_), _) => return Err(AuthError::UnknownKey("a kid is a string of 1 to 64 of [A-Za-z0-9._-]")),
        };
        if header.alg.as_ref().and_then(Value::as_str) != Some(key.algorithm.name()) {
            return Err(AuthError::Algorithm { expected: key.algorithm.name() });
        }
        Ok(key)
    }
}

/// The header's members that are used. A member that occurs twice, or JSON that is no object, fails to parse.
#[derive(Deserialize)]
struct Header {
    #[serde(default, deserialize_with = "given")]
    alg: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    kid: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    crit: Option<Value>,
}

impl Header {
    fn parse(encoded: &str) -> Result<Self, AuthError> {
        let header: Self = super::claims::object(&part(encoded)?)
            .ok_or(AuthError::Malformed("its header must be a JSON object with each parameter once"))?;
        if header.crit.is_some() {
            // RFC 7515 4.1.11: what is critical and not understood makes the token invalid; none is understood here.
            return Err(AuthError::Malformed("its header has `crit`, and no critical extension is understood"));
        }
        Ok(header)
    }
}

const NOT_BASE64URL: AuthError = AuthError::Malformed("its parts must be base64url without padding (RFC 7515)");

fn part(encoded: &str) -> Result<Vec<u8>, AuthError> {
    URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NOT_BASE64URL)
}

/// 1 to 64 of `[A-Za-z0-9._-]`.
pub(crate) fn is_key_id(key_id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=KEY_ID_BYTES_MAX).contains(&key_id.len()) && key_id.bytes().all(plain)
}

fn shown(key_id: &str) -> String {
    key_id.chars().take(KEY_ID_BYTES_MAX).collect()
}

fn decoding_key(material: &KeyMaterial) -> Result<DecodingKey, KeyProblem> {
    if material.algorithm == KeyAlgorithm::Hs256 {
        return secret(material);
    }
    let text = std::str::from_utf8(&material.bytes).map_err(|_| KeyProblem::Unreadable)?;
    if text.trim_start().starts_with('{') {
        return public_jwk(text, material);
    }
    if text.contains("PRIVATE KEY-----") {
        return Err(KeyProblem::Private);
    }
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(KeyProblem::Certificate);
    }
    let Some((preamble, _)) = text.split_once("-----BEGIN ") else { return Err(KeyProblem::Unreadable) };
    if preamble_key_id(preamble).is_some_and(|key_id| key_id != material.key_id) {
        return Err(KeyProblem::OtherKeyId);
    }
    let not_of_algorithm = KeyProblem::NotOfAlgorithm(material.algorithm.name());
    let key = match material.algorithm {
        KeyAlgorithm::EdDsa => DecodingKey::from_ed_pem(&material.bytes),
        KeyAlgorithm::Es256 => DecodingKey::from_ec_pem(&material.bytes),
        KeyAlgorithm::Rs256 => DecodingKey::from_rsa_pem(&material.bytes),
        KeyAlgorithm::Hs256 => return Err(not_of_algorithm),
    }
    .map_err(|_| not_of_algorithm)?;
    let raw = key.try_get_as_bytes().map_err(|_| not_of_algorithm)?;
    check_public(material.algorithm, raw)?;
    Ok(key)
}

/// The library accepts any bytes as a key and fails at the first token, so the point or modulus is checked here, once.
fn check_public(algorithm: KeyAlgorithm, raw: &[u8]) -> Result<(), KeyProblem> {
    let not_of_algorithm = KeyProblem::NotOfAlgorithm(algorithm.name());
    let parsed = match algorithm {
        KeyAlgorithm::EdDsa if raw.len() == 32 => UnparsedPublicKey::new(&ED25519, raw).parse(),
        // Uncompressed points only: 65 bytes (SEC 1, 2.3.3).
        KeyAlgorithm::Es256 if raw.len() == 65 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, raw).parse(),
        KeyAlgorithm::Rs256 => {
            let bits = RsaParameters::public_modulus_len(raw).map_err(|_| not_of_algorithm)?;
            check_rsa_bits(bits)?;
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, raw).parse()
        }
        KeyAlgorithm::EdDsa | KeyAlgorithm::Es256 | KeyAlgorithm::Hs256 => return Err(not_of_algorithm),
    };
    parsed.map(|_| ()).map_err(|_| not_of_algorithm)
}

const fn check_rsa_bits(bits: u32) -> Result<(), KeyProblem> {
    if bits < RSA_BITS_MIN || bits > 8192 { Err(KeyProblem::WeakRsa { bits }) } else { Ok(()) }
}

/// A line `kid: …` before the PEM block, where `ringway key new` writes it (RFC 7468 section 2 allows text there).
pub(crate) fn preamble_key_id(preamble: &str) -> Option<&str> {
    preamble.lines().find_map(|line| line.strip_prefix("kid:")).map(str::trim)
}

/// The members of a JWK (RFC 7517, 7518 section 6, 8037) that matter here.
#[derive(Deserialize)]
pub(crate) struct Jwk {
    kty: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
    d: Option<serde::de::IgnoredAny>,
    pub(crate) alg: Option<String>,
    pub(crate) kid: Option<String>,
    keys: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    pub(crate) fn parse(text: &str) -> Result<Self, KeyProblem> {
        let jwk: Self = serde_json::from_str(text).map_err(|_| KeyProblem::Jwk("it is no JSON object of strings, each once"))?;
        if jwk.keys.is_some() {
            return Err(KeyProblem::JwkSet);
        }
        Ok(jwk)
    }

    fn check_names(&self, material: &KeyMaterial) -> Result<(), KeyProblem> {
        if self.kid.as_ref().is_some_and(|key_id| *key_id != material.key_id) {
            return Err(KeyProblem::OtherKeyId);
        }
        if self.alg.as_ref().is_some_and(|algorithm| algorithm != material.algorithm.name()) {
            return Err(KeyProblem::Jwk("its `alg` is another: configure that one"));
        }
        Ok(())
    }

    /// The secret of `{"kty":"oct","k":…}`.
    pub(crate) fn secret(&self) -> Result<Vec<u8>, KeyProblem> {
        let problem = KeyProblem::Jwk("it must be {\"kty\":\"oct\",\"k\":BASE64URL,…}");
        match (self.kty.as_deref(), &self.k) {
            (Some("oct"), Some(secret)) => URL_SAFE_NO_PAD.decode(secret).map_err(|_| problem),
            _ => Err(problem),
        }
    }
}

fn public_jwk(text: &str, material: &KeyMaterial) -> Result<DecodingKey, KeyProblem> {
    let jwk = Jwk::parse(text)?;
    jwk.check_names(material)?;
    if jwk.d.is_some() {
        return Err(KeyProblem::Private);
    }
    let bytes = |member: &Option<String>, problem| match member {
        Some(text) => URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyProblem::Jwk(problem)),
        None => Err(KeyProblem::Jwk(problem)),
    };
    match (material.algorithm, jwk.kty.as_deref(), jwk.crv.as_deref()) {
        (KeyAlgorithm::EdDsa, Some("OKP"), Some("Ed25519")) => {
            let raw = bytes(&jwk.x, "`x` must be the public key in base64url")?;
            check_public(material.algorithm, &raw)?;
            Ok(DecodingKey::from_ed_der(&raw))
        }
        (KeyAlgorithm::Es256, Some("EC"), Some("P-256")) => {
            let problem = "`x` and `y` must be 32 bytes each in base64url";
            let mut raw = vec![4];
            for member in [&jwk.x, &jwk.y] {
                raw.extend(bytes(member, problem)?);
            }
            check_public(material.algorithm, &raw)?;
            Ok(DecodingKey::from_ec_der(&raw))
        }
        (KeyAlgorithm::Rs256, Some("RSA"), _) => {
            let problem = "`n` and `e` must be numbers in base64url";
            let (n, e) = (bytes(&jwk.n, problem)?, bytes(&jwk.e, problem)?);
            let leading_zeros = n.first().map_or(0, |byte| byte.leading_zeros());
            check_rsa_bits(u32::try_from(n.len() * 8).unwrap_or(u32::MAX).saturating_sub(leading_zeros))?;
            let components = PublicKeyComponents { n: n.as_slice(), e: e.as_slice() };
            components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| KeyProblem::Jwk(problem))?;
            Ok(DecodingKey::from_rsa_raw_components(&n, &e))
        }
        (KeyAlgorithm::EdDsa, ..) => Err(KeyProblem::Jwk("it must be {\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":…}")),
        (KeyAlgorithm::Es256, ..) => Err(KeyProblem::Jwk("it must be {\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":…,\"y\":…}")),
        (KeyAlgorithm::Rs256, ..) => Err(KeyProblem::Jwk("it must be {\"kty\":\"RSA\",\"n\":…,\"e\":…}")),
        (KeyAlgorithm::Hs256, ..) => Err(KeyProblem::Jwk("it must be {\"kty\":\"oct\",\"k\":…}")),
    }
}

fn secret(material: &KeyMaterial) -> Result<DecodingKey, KeyProblem> {
    let bytes = material.bytes.as_slice();
    let secret = if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Err(KeyProblem::PemAsSecret);
    } else if bytes.trim_ascii_start().starts_with(b"{") {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyProblem::Unreadable)?;
        let jwk = Jwk::parse(text)?;
        jwk.check_names(material)?;
        jwk.secret()?
    } else {
        raw_secret(bytes).to_vec()
    };
    if secret.len() < HMAC_SECRET_BYTES_MIN {
        return Err(KeyProblem::WeakSecret { bytes: secret.len() });
    }
    Ok(DecodingKey::from_secret(&secret))
}

/// The secret in a file that holds nothing else. An editor's line end after text is not part of it; any byte of a binary
/// secret is.
pub(crate) fn raw_secret(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").map_or(bytes, |rest| rest.strip_suffix(b"\r").unwrap_or(rest));
    if line.iter().all(|byte| matches!(byte, b' '..=b'~')) { line } else { bytes }
}
