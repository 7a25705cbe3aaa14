//! The attacks on tokens as tables, signed with keys made in the test. The names W1 to W23 are those of the attack
//! catalogue: forged, malformed, expired and over-broad tokens, and what must become of each.

use super::{AuthError, Grant, KeyAlgorithm, KeyMaterial, KeyProblem, KeySet, Revocation, Revocations, TokenPolicy};
use crate::time::Tick;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use std::sync::LazyLock;

const NOW_S: u64 = 1_790_000_000;
const NOW: Tick = Tick { mono_ns: 5, wall_ms: NOW_S * 1000 };
const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

struct Pairs {
    ed: Ed25519KeyPair,
    ec: EcdsaKeyPair,
    rsa: RsaKeyPair,
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(|| Pairs {
    ed: Ed25519KeyPair::generate().unwrap(),
    ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
});

fn pem(der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der)).into_bytes()
}

fn public_pem(algorithm: KeyAlgorithm) -> Vec<u8> {
    let der: PublicKeyX509Der<'_> = match algorithm {
        KeyAlgorithm::EdDsa => PAIRS.ed.public_key().as_der().unwrap(),
        KeyAlgorithm::Es256 => PAIRS.ec.public_key().as_der().unwrap(),
        KeyAlgorithm::Rs256 => PAIRS.rsa.public_key().as_der().unwrap(),
        KeyAlgorithm::Hs256 => return SECRET.to_vec(),
    };
    pem(der.as_ref())
}

fn sign(algorithm: KeyAlgorithm, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    match algorithm {
        KeyAlgorithm::EdDsa => PAIRS.ed.sign(message).as_ref().to_vec(),
        KeyAlgorithm::Es256 => PAIRS.ec.sign(&random, message).unwrap().as_ref().to_vec(),
        KeyAlgorithm::Rs256 => {
            let mut signature = vec![0; PAIRS.rsa.public_modulus_len()];
            PAIRS.rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
            signature
        }
        KeyAlgorithm::Hs256 => hmac_sign(SECRET, message),
    }
}

fn hmac_sign(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

fn token(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn material(key_id: &str, algorithm: KeyAlgorithm) -> KeyMaterial {
    KeyMaterial { key_id: key_id.to_owned(), algorithm, bytes: public_pem(algorithm) }
}

fn key_id(algorithm: KeyAlgorithm) -> &'static str {
    match algorithm {
        KeyAlgorithm::EdDsa => "ed",
        KeyAlgorithm::Es256 => "ec",
        KeyAlgorithm::Rs256 => "rs",
        KeyAlgorithm::Hs256 => "hs",
    }
}

fn all_keys() -> KeySet {
    KeySet::new(&KeyAlgorithm::ALL.map(|algorithm| material(key_id(algorithm), algorithm))).unwrap()
}

fn only(algorithm: KeyAlgorithm) -> KeySet {
    KeySet::new(&[material("only", algorithm)]).unwrap()
}

fn good_claims() -> String {
    format!(r#"{{"sub":"ana","sid":["s-1","team.*"],"roles":["agent"],"exp":{},"iat":{NOW_S},"jti":"t1"}}"#, NOW_S + 900)
}

/// Signed with the HMAC key, the fastest: what is tested with it does not depend on the algorithm.
fn hs(claims: &str) -> String {
    token(r#"{"alg":"HS256"}"#, claims, |message| sign(KeyAlgorithm::Hs256, message))
}

fn verdict(keys: &KeySet, token: &str, policy: &TokenPolicy) -> Result<Grant, &'static str> {
    let verdict = keys.verify(token, policy, NOW);
    if let Err(error) = &verdict {
        let said = format!("{error} {error:?}");
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!said.contains(part), "the token is repeated: {said}");
        }
    }
    verdict.map_err(|error| error.code())
}

#[test]
fn good_tokens_of_all_four_algorithms() {
    let keys = all_keys();
    for algorithm in KeyAlgorithm::ALL {
        let header = format!(r#"{{"typ":"JWT","alg":"{}","kid":"{}"}}"#, algorithm.name(), key_id(algorithm));
        let grant =
            verdict(&keys, &token(&header, &good_claims(), |message| sign(algorithm, message)), &TokenPolicy::default()).unwrap();
        assert_eq!((grant.subject(), grant.token_id(), grant.expires_at_s()), ("ana", Some("t1"), NOW_S + 900));
        assert!(grant.covers("team.x") && grant.covers("s-1") && !grant.covers("s-2") && grant.has_role("agent"));
    }
}

/// W1: every spelling of no algorithm, with no signature, a wrong and a good one.
#[test]
fn w1_no_algorithm() {
    for (keys, key) in KeyAlgorithm::ALL.map(|algorithm| (only(algorithm), algorithm)) {
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"None"}"#,
            r#"{"alg":"NONE"}"#,
            r#"{"alg":"nOnE"}"#,
            r#"{"alg":""}"#,
            r#"{"alg":null}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"hs256"}"#,
            r"{}",
        ] {
            for signature in [Vec::new(), vec![0; 32]] {
                let forged = token(header, &good_claims(), |_| signature.clone());
                assert_eq!(verdict(&keys, &forged, &TokenPolicy::default()), Err("auth.algorithm"), "{header} {key:?}");
            }
            let signed = token(header, &good_claims(), |message| sign(key, message));
            assert_eq!(verdict(&keys, &signed, &TokenPolicy::default()), Err("auth.algorithm"), "{header} {key:?}");
        }
    }
}

/// W2: the algorithm of another key, or another hash. W3: an asymmetric public key as the HMAC secret.
#[test]
fn w2_w3_the_wrong_algorithm() {
    for configured in KeyAlgorithm::ALL {
        let keys = only(configured);
        for named in ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA", "ES256K"] {
            if named == configured.name() {
                continue;
            }
            let signer = KeyAlgorithm::from_name(named).unwrap_or(configured);
            let forged = token(&format!(r#"{{"alg":"{named}"}}"#), &good_claims(), |message| sign(signer, message));
            assert_eq!(verdict(&keys, &forged, &TokenPolicy::default()), Err("auth.algorithm"), "{named} for {configured:?}");
        }
        if configured != KeyAlgorithm::Hs256 {
            let pem = public_pem(configured);
            let confused = token(r#"{"alg":"HS256"}"#, &good_claims(), |message| hmac_sign(&pem, message));
            assert_eq!(verdict(&keys, &confused, &TokenPolicy::default()), Err("auth.algorithm"));
            // Under the right name the same bytes are no signature.
            let header = format!(r#"{{"alg":"{}"}}"#, configured.name());
            let confused = token(&header, &good_claims(), |message| hmac_sign(&pem, message));
            assert_eq!(verdict(&keys, &confused, &TokenPolicy::default()), Err("auth.signature"));
        }
    }
}

#[test]
fn signatures_of_others_and_changed_tokens() {
    for algorithm in KeyAlgorithm::ALL {
        let keys = only(algorithm);
        let header = format!(r#"{{"alg":"{}"}}"#, algorithm.name());
        let good = token(&header, &good_claims(), |message| sign(algorithm, message));
        assert!(keys.verify(&good, &TokenPolicy::default(), NOW).is_ok());
        let [head, _, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
        let other = URL_SAFE_NO_PAD.encode(good_claims().replace("ana", "bob"));
        let empty = token(&header, &good_claims(), |_| Vec::new());
        let flipped = token(&header, &good_claims(), |message| {
            let mut bytes = sign(algorithm, message);
            bytes[7] ^= 1;
            bytes
        });
        let short = token(&header, &good_claims(), |message| sign(algorithm, message)[1..].to_vec());
        for forged in [format!("{head}.{other}.{signature}"), empty, flipped, short] {
            assert_eq!(verdict(&keys, &forged, &TokenPolicy::default()), Err("auth.signature"), "{algorithm:?}");
        }
    }
    let other_secret = token(r#"{"alg":"HS256"}"#, &good_claims(), |message| hmac_sign(&[7; 32], message));
    assert_eq!(verdict(&only(KeyAlgorithm::Hs256), &other_secret, &TokenPolicy::default()), Err("auth.signature"));
    let other_pair = Ed25519KeyPair::generate().unwrap();
    let other_key = token(r#"{"alg":"EdDSA"}"#, &good_claims(), |message| other_pair.sign(message).as_ref().to_vec());
    assert_eq!(verdict(&only(KeyAlgorithm::EdDsa), &other_key, &TokenPolicy::default()), Err("auth.signature"));
}

/// W4 to W8, W11: times. `{now}`, `{past}` and the rest are filled in.
#[test]
fn w4_to_w8_times() {
    let keys = only(KeyAlgorithm::Hs256);
    let at = |offset: i64| (i64::try_from(NOW_S).unwrap() + offset).to_string();
    let day = 24 * 3600;
    let table: Vec<(String, Result<(), &str>)> = vec![
        (format!(r#""exp":{}"#, at(900)), Ok(())),
        (format!(r#""exp":{}.5"#, at(900)), Ok(())),
        (format!(r#""exp":{}"#, at(-29)), Ok(())),
        (format!(r#""exp":{}"#, at(-30)), Err("auth.expired")),
        (format!(r#""exp":{}"#, at(-3600)), Err("auth.expired")),
        (r#""exp":0"#.into(), Err("auth.expired")),
        (r#""roles":[]"#.into(), Err("auth.claims")),
        (r#""exp":null"#.into(), Err("auth.claims")),
        (format!(r#""exp":"{}""#, at(900)), Err("auth.claims")),
        (r#""exp":1e30"#.into(), Err("auth.claims")),
        (r#""exp":1e18"#.into(), Err("auth.claims")),
        (r#""exp":1000000000000000000"#.into(), Err("auth.claims")),
        (r#""exp":18446744073709551616"#.into(), Err("auth.claims")),
        (r#""exp":1e999"#.into(), Err("auth.malformed")),
        (r#""exp":-1"#.into(), Err("auth.claims")),
        (r#""exp":-0.5"#.into(), Err("auth.claims")),
        (r#""exp":[1]"#.into(), Err("auth.claims")),
        (r#""exp":true"#.into(), Err("auth.claims")),
        (r#""exp":NaN"#.into(), Err("auth.malformed")),
        (format!(r#""exp":{0},"exp":{0}"#, at(900)), Err("auth.malformed")),
        (format!(r#""exp":{},"\u0065xp":{}"#, at(900), at(901)), Err("auth.malformed")),
        (format!(r#""exp":{}"#, at(day)), Ok(())),
        (format!(r#""exp":{}"#, at(day + 1)), Err("auth.claims")),
        (format!(r#""exp":{},"iat":{}"#, at(900), at(900 - day)), Ok(())),
        (format!(r#""exp":{},"iat":{}"#, at(900), at(899 - day)), Err("auth.claims")),
        (format!(r#""exp":{},"iat":{}"#, at(900), at(30)), Ok(())),
        (format!(r#""exp":{},"iat":{}"#, at(900), at(31)), Err("auth.not_yet_valid")),
        (format!(r#""exp":{},"iat":null"#, at(900)), Err("auth.claims")),
        (format!(r#""exp":{},"iat":"0""#, at(900)), Err("auth.claims")),
        (format!(r#""exp":{},"nbf":{}"#, at(900), at(30)), Ok(())),
        (format!(r#""exp":{},"nbf":{}"#, at(900), at(31)), Err("auth.not_yet_valid")),
        (format!(r#""exp":{},"nbf":{}"#, at(900), at(3600)), Err("auth.not_yet_valid")),
        (format!(r#""exp":{},"nbf":"{}""#, at(900), at(-5)), Err("auth.claims")),
        (format!(r#""exp":{},"nbf":null"#, at(900)), Err("auth.claims")),
        (format!(r#""exp":{},"nbf":-1"#, at(900)), Err("auth.claims")),
        (format!(r#""exp":{},"auth_time":"x""#, at(900)), Err("auth.claims")),
    ];
    for (times, expected) in table {
        let claims = format!(r#"{{"sub":"ana","sid":"s-1",{times}}}"#);
        assert_eq!(verdict(&keys, &hs(&claims), &TokenPolicy::default()).map(|_| ()), expected, "{claims}");
    }
}

/// W9: audience. W10: issuer.
#[test]
fn w9_w10_audience_and_issuer() {
    let keys = only(KeyAlgorithm::Hs256);
    let asked = TokenPolicy { issuer: Some("https://id.example".into()), audience: Some("rt".into()), ..TokenPolicy::default() };
    let open = TokenPolicy::default();
    let iss = r#""iss":"https://id.example""#;
    let table = [
        (&asked, format!(r#"{iss},"aud":"rt""#), Ok(())),
        (&asked, format!(r#"{iss},"aud":["x","rt"]"#), Ok(())),
        (&asked, format!(r#"{iss},"aud":"other""#), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":["x"]"#), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":[]"#), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":["rt",7]"#), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":{{"rt":1}}"#), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":null"#), Err("auth.audience")),
        (&asked, iss.to_owned(), Err("auth.audience")),
        (&asked, format!(r#"{iss},"aud":"rt","aud":"other""#), Err("auth.malformed")),
        (&asked, r#""aud":"rt""#.to_owned(), Err("auth.issuer")),
        (&asked, r#""aud":"rt","iss":"https://id.example.evil""#.to_owned(), Err("auth.issuer")),
        (&asked, r#""aud":"rt","iss":["https://id.example"]"#.to_owned(), Err("auth.issuer")),
        (&asked, r#""aud":"rt","iss":null"#.to_owned(), Err("auth.issuer")),
        (&asked, format!(r#"{iss},"iss":"x","aud":"rt""#), Err("auth.malformed")),
        (&open, iss.to_owned(), Ok(())),
        (&open, r#""aud":"rt""#.to_owned(), Err("auth.audience")),
    ];
    for (policy, origin, expected) in table {
        let claims = format!(r#"{{"sub":"ana","sid":"s-1","exp":{},{origin}}}"#, NOW_S + 900);
        assert_eq!(verdict(&keys, &hs(&claims), policy).map(|_| ()), expected, "{claims}");
    }
}

/// Claims about identity: `sub`, `sid`, roles and the rest.
#[test]
fn who_and_where() {
    let keys = only(KeyAlgorithm::Hs256);
    for (claims, expected) in [
        (r#""sub":"ana","sid":"s""#, Ok(())),
        (r#""sub":"ana","sid":["*"],"roles":"agent","scope":"a b","amr":["pwd"],"unknown":{"x":[1]}"#, Ok(())),
        (r#""sid":"s""#, Err("auth.claims")),
        (r#""sub":"","sid":"s""#, Err("auth.claims")),
        (r#""sub":null,"sid":"s""#, Err("auth.claims")),
        (r#""sub":7,"sid":"s""#, Err("auth.claims")),
        (r#""sub":"rw","sid":"s""#, Err("auth.claims")),
        (r#""sub":"ana/tab","sid":"s""#, Err("auth.claims")),
        (r#""sub":"a\"b","sid":"s""#, Err("auth.claims")),
        (r#""sub":"a\nb","sid":"s""#, Err("auth.claims")),
        (r#""sub":"ana","sub":"bob","sid":"s""#, Err("auth.malformed")),
        (r#""sub":"ana""#, Err("auth.claims")),
        (r#""sub":"ana","sid":[]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"""#, Err("auth.claims")),
        (r#""sub":"ana","sid":["s",7]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":["a*b"]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":["s\nt"]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","sid":"*""#, Err("auth.malformed")),
        (r#""sub":"ana","sid":"s","roles":["a b"]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","roles":{"a":1}"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","roles":null"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","scope":["a"]"#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","scope":"a\u0000""#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","jti":"""#, Err("auth.claims")),
        (r#""sub":"ana","sid":"s","jti":5"#, Err("auth.claims")),
    ] {
        let claims = format!(r#"{{{claims},"exp":{}}}"#, NOW_S + 900);
        assert_eq!(verdict(&keys, &hs(&claims), &TokenPolicy::default()).map(|_| ()), expected, "{claims}");
    }
    for claims in ["", "[]", "7", "null", "{", "{} {}", "{\"sub\":\"\u{1}\"}", "{\"exp\":01}"] {
        assert_eq!(verdict(&keys, &hs(claims), &TokenPolicy::default()), Err("auth.malformed"), "{claims}");
    }
    let not_utf8 = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
        URL_SAFE_NO_PAD.encode(b"{\"sub\":\"\xff\",\"sid\":\"s\"}")
    );
    let signature = URL_SAFE_NO_PAD.encode(sign(KeyAlgorithm::Hs256, not_utf8.as_bytes()));
    assert_eq!(verdict(&keys, &format!("{not_utf8}.{signature}"), &TokenPolicy::default()), Err("auth.malformed"));
}

/// W12: key ids. W13: keys that a token brings along. Critical extensions.
#[test]
fn w12_w13_headers() {
    let keys = all_keys();
    let long = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(2_000));
    let brought = format!(r#"{{"alg":"HS256","kid":"hs","jwk":{{"kty":"oct","k":"{}"}}}}"#, URL_SAFE_NO_PAD.encode([7; 32]));
    for (header, expected) in [
        (r#"{"alg":"HS256","kid":"hs"}"#, Ok(())),
        (r#"{"alg":"HS256","kid":"hs","typ":"at+jwt","cty":"x","other":[1]}"#, Ok(())),
        (r#"{"alg":"HS256"}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":null}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":7}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":""}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"HS"}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"hs "}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"h"}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"../../etc/passwd"}"#, Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"' OR 1=1 --"}"#, Err("auth.unknown_key")),
        (long.as_str(), Err("auth.unknown_key")),
        (r#"{"alg":"HS256","kid":"ed"}"#, Err("auth.algorithm")),
        (r#"{"alg":"HS256","kid":"rs"}"#, Err("auth.algorithm")),
        (r#"{"alg":"HS256","kid":"hs","kid":"ed"}"#, Err("auth.malformed")),
        (r#"{"alg":"none","alg":"HS256","kid":"hs"}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","\u0061lg":"none","kid":"hs"}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","kid":"hs","crit":["exp"]}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","kid":"hs","crit":["b64"],"b64":false}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","kid":"hs","crit":[]}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","kid":"hs","crit":null}"#, Err("auth.malformed")),
        (r#"{"alg":"HS256","kid":"hs","jku":"http://127.0.0.1:1/k"}"#, Ok(())),
        (r#"{"alg":"HS256","kid":"hs","x5u":"file:///etc/passwd","x5c":["AAAA"]}"#, Ok(())),
        (brought.as_str(), Ok(())),
        (r#"["HS256"]"#, Err("auth.malformed")),
        ("", Err("auth.malformed")),
    ] {
        let signed = token(header, &good_claims(), |message| sign(KeyAlgorithm::Hs256, message));
        assert_eq!(verdict(&keys, &signed, &TokenPolicy::default()).map(|_| ()), expected, "{header}");
    }
    // The key it brings is not the key it is verified with.
    let by_its_own = token(&brought, &good_claims(), |message| hmac_sign(&[7; 32], message));
    assert_eq!(verdict(&keys, &by_its_own, &TokenPolicy::default()), Err("auth.signature"));
    assert_eq!(verdict(&KeySet::default(), &hs(&good_claims()), &TokenPolicy::default()), Err("auth.unknown_key"));
}

/// W18: shapes.
#[test]
fn w18_shapes() {
    let keys = only(KeyAlgorithm::Hs256);
    let good = hs(&good_claims());
    let [head, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let deep_header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","x":{}"#, "[".repeat(2_500)));
    let deep = format!("{deep_header}.{body}.{signature}");
    let closed = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(2_000), "]".repeat(2_000));
    let deep_claims = format!(r#"{{"sub":"ana","sid":{}{},"exp":{}}}"#, "[".repeat(2_000), "]".repeat(2_000), NOW_S + 900);
    let padded = URL_SAFE.encode(r#"{"alg":"HS256"} "#);
    assert!(padded.ends_with('='));
    let standard = format!("{head}.{body}+/");
    let standard = format!("{standard}.{}", URL_SAFE_NO_PAD.encode(sign(KeyAlgorithm::Hs256, standard.as_bytes())));
    for bad in [
        "a".to_owned(),
        "a.b".to_owned(),
        "a.b.c".to_owned(),
        "a.b.c.d".to_owned(),
        "..".to_owned(),
        ".".to_owned(),
        format!("{head}.{body}"),
        format!("{head}.{body}.{signature}."),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{good}="),
        format!("{padded}.{body}.{signature}"),
        format!("Bearer {good}"),
        standard,
        deep,
        hs(&deep_claims),
        "é.ü.ö".to_owned(),
        "\0".to_owned(),
        "x".repeat(8 * 1024 + 1),
        hs(&format!(r#"{{"sub":"ana","x":"{}"}}"#, "y".repeat(7_000))),
    ] {
        assert_eq!(verdict(&keys, &bad, &TokenPolicy::default()), Err("auth.malformed"), "{}", &bad[..bad.len().min(60)]);
    }
    assert_eq!(verdict(&keys, "", &TokenPolicy::default()), Err("auth.missing"));
    // Ignored claims are skipped without recursion, however deep they are.
    let skipped = token(&closed, &good_claims(), |message| sign(KeyAlgorithm::Hs256, message));
    assert!(verdict(&keys, &skipped, &TokenPolicy::default()).is_ok());
    // Just below the limit it is read, and quickly enough to be part of a unit test.
    let large = hs(&format!(r#"{{"sub":"ana","sid":"s","exp":{},"x":"{}"}}"#, NOW_S + 9, "y".repeat(6_020)));
    assert!(large.len() > 8_000 && verdict(&keys, &large, &TokenPolicy::default()).is_ok());
}

/// W15, W22 and rotation: what a set of keys refuses, by name.
#[test]
fn w15_w22_keys() {
    let problem = |materials: &[KeyMaterial]| KeySet::new(materials).map(|_| ()).map_err(|error| error.problem);
    let hs_of = |bytes: &[u8]| [KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Hs256, bytes: bytes.to_vec() }];
    let of = |algorithm, bytes: &[u8]| [KeyMaterial { key_id: "k".into(), algorithm, bytes: bytes.to_vec() }];

    assert_eq!(problem(&hs_of(&[7; 31])), Err(KeyProblem::WeakSecret { bytes: 31 }));
    assert_eq!(problem(&hs_of(b"")), Err(KeyProblem::WeakSecret { bytes: 0 }));
    assert_eq!(problem(&hs_of(b"0123456789abcdef0123456789abcde\n")), Err(KeyProblem::WeakSecret { bytes: 31 }));
    assert_eq!(problem(&hs_of(&[7; 32])), Ok(()));
    assert_eq!(problem(&hs_of(&public_pem(KeyAlgorithm::Rs256))), Err(KeyProblem::PemAsSecret));
    let jwk = |secret: &[u8], more: &str| format!(r#"{{"kty":"oct","k":"{}"{more}}}"#, URL_SAFE_NO_PAD.encode(secret));
    assert_eq!(problem(&hs_of(jwk(&[7; 32], r#","alg":"HS256","kid":"k""#).as_bytes())), Ok(()));
    assert_eq!(problem(&hs_of(jwk(&[7; 31], "").as_bytes())), Err(KeyProblem::WeakSecret { bytes: 31 }));
    assert_eq!(problem(&hs_of(jwk(&[7; 32], r#","kid":"other""#).as_bytes())), Err(KeyProblem::OtherKeyId));
    assert!(matches!(problem(&hs_of(jwk(&[7; 32], r#","alg":"HS512""#).as_bytes())), Err(KeyProblem::Jwk(_))));
    assert_eq!(problem(&hs_of(br#"{"keys":[]}"#)), Err(KeyProblem::JwkSet));

    for algorithm in [KeyAlgorithm::EdDsa, KeyAlgorithm::Es256, KeyAlgorithm::Rs256] {
        assert_eq!(problem(&of(algorithm, &public_pem(algorithm))), Ok(()));
        for other in KeyAlgorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let refused = problem(&of(algorithm, &public_pem(other)));
            assert!(matches!(refused, Err(KeyProblem::NotOfAlgorithm(_) | KeyProblem::Unreadable)), "{refused:?}");
        }
        assert_eq!(
            problem(&of(algorithm, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----")),
            Err(KeyProblem::Private)
        );
        assert_eq!(problem(&of(algorithm, b"-----BEGIN CERTIFICATE-----\nAAAA\n")), Err(KeyProblem::Certificate));
        assert_eq!(problem(&of(algorithm, b"\xff\xfe")), Err(KeyProblem::Unreadable));
        assert_eq!(problem(&of(algorithm, b"hello")), Err(KeyProblem::Unreadable));
        let mut other_id = b"kid: other\n".to_vec();
        other_id.extend(public_pem(algorithm));
        assert_eq!(problem(&of(algorithm, &other_id)), Err(KeyProblem::OtherKeyId));
        let truncated = &public_pem(algorithm)[..60];
        assert!(matches!(problem(&of(algorithm, truncated)), Err(KeyProblem::NotOfAlgorithm(_))));
    }
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let der: PublicKeyX509Der<'_> = p384.public_key().as_der().unwrap();
    assert!(matches!(problem(&of(KeyAlgorithm::Es256, &pem(der.as_ref()))), Err(KeyProblem::NotOfAlgorithm(_))));

    let pair = [material("k", KeyAlgorithm::EdDsa), material("k", KeyAlgorithm::Es256)];
    assert_eq!(problem(&pair), Err(KeyProblem::Duplicate));
    for bad in ["", "a b", "../k", &"k".repeat(65), "k\n"] {
        assert_eq!(problem(&[material(bad, KeyAlgorithm::Hs256)]), Err(KeyProblem::KeyId), "{bad}");
    }
    let many: Vec<_> = (0..65).map(|index| material(&format!("k{index}"), KeyAlgorithm::Hs256)).collect();
    assert_eq!((problem(&many), problem(&many[..64])), (Err(KeyProblem::TooMany), Ok(())));
    let named = KeySet::new(&hs_of(b"CANARY")).unwrap_err().to_string();
    assert!(named.contains("\"k\"") && named.contains("HS256") && !named.contains("CANARY"), "{named}");
}

/// RSA keys below 2048 bits, in both forms.
#[test]
fn short_rsa_keys_are_refused() {
    // A modulus of 1024 bits, with its highest bit set; no key pair is needed to be refused.
    let mut modulus = vec![0xff; 128];
    modulus[0] = 0x80;
    let n = URL_SAFE_NO_PAD.encode(&modulus);
    let jwk = format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#);
    let refused = KeySet::new(&[KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Rs256, bytes: jwk.into_bytes() }]);
    assert_eq!(refused.unwrap_err().problem, KeyProblem::WeakRsa { bits: 1024 });

    // RSAPublicKey (RFC 8017 A.1.1) of the same number: SEQUENCE { INTEGER n, INTEGER 65537 }.
    let mut der = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
    der.extend(&modulus);
    der.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", STANDARD.encode(der));
    let refused = KeySet::new(&[KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Rs256, bytes: pem.into_bytes() }]);
    assert_eq!(refused.unwrap_err().problem, KeyProblem::WeakRsa { bits: 1024 });
}

#[test]
fn public_keys_as_jwk_verify_too() {
    let [ed, ec] = [PAIRS.ed.public_key().as_ref().to_vec(), PAIRS.ec.public_key().as_ref().to_vec()];
    let (n, e) = (PAIRS.rsa.public_key().modulus(), PAIRS.rsa.public_key().exponent());
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    for (algorithm, jwk) in [
        (KeyAlgorithm::EdDsa, format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}","use":"sig"}}"#, text(&ed))),
        (KeyAlgorithm::Es256, format!(r#"{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}"#, text(&ec[1..33]), text(&ec[33..]))),
        (
            KeyAlgorithm::Rs256,
            format!(
                r#"{{"kty":"RSA","n":"{}","e":"{}","alg":"RS256"}}"#,
                text(n.big_endian_without_leading_zero()),
                text(e.big_endian_without_leading_zero())
            ),
        ),
    ] {
        let private = jwk.replacen('{', r#"{"d":"AAAA","#, 1);
        let of = |bytes: String| KeyMaterial { key_id: "k".into(), algorithm, bytes: bytes.into_bytes() };
        assert_eq!(KeySet::new(&[of(private)]).unwrap_err().problem, KeyProblem::Private);
        let keys = KeySet::new(&[of(jwk.clone())]).unwrap();
        let header = format!(r#"{{"alg":"{}","kid":"k"}}"#, algorithm.name());
        let signed = token(&header, &good_claims(), |message| sign(algorithm, message));
        assert!(keys.verify(&signed, &TokenPolicy::default(), NOW).is_ok(), "{jwk}");
        let off_curve = jwk.replace(&text(&ec[33..]), &text(&[1; 32]));
        if algorithm == KeyAlgorithm::Es256 {
            assert!(matches!(KeySet::new(&[of(off_curve)]).unwrap_err().problem, KeyProblem::NotOfAlgorithm(_)));
        }
        let wrong = KeyMaterial { algorithm: KeyAlgorithm::Hs256, ..of(jwk) };
        assert!(matches!(KeySet::new(&[wrong]).unwrap_err().problem, KeyProblem::Jwk(_)));
    }
}

/// P29: during a rotation both keys are good, after it the old one is not.
#[test]
fn rotation() {
    let mut other = [0; 48];
    rand::fill(&mut other).unwrap();
    let new = KeyMaterial { key_id: "new".into(), algorithm: KeyAlgorithm::Hs256, bytes: other.to_vec() };
    let old = material("old", KeyAlgorithm::Hs256);
    let by_old = token(r#"{"alg":"HS256","kid":"old"}"#, &good_claims(), |message| hmac_sign(SECRET, message));
    let by_new = token(r#"{"alg":"HS256","kid":"new"}"#, &good_claims(), |message| hmac_sign(&other, message));
    let crossed = token(r#"{"alg":"HS256","kid":"new"}"#, &good_claims(), |message| hmac_sign(SECRET, message));
    let both = KeySet::new(&[old, new.clone()]).unwrap();
    let after = KeySet::new(&[new]).unwrap();
    for (keys, token, expected) in [
        (&both, &by_old, Ok(())),
        (&both, &by_new, Ok(())),
        (&both, &crossed, Err("auth.signature")),
        (&after, &by_new, Ok(())),
        (&after, &by_old, Err("auth.unknown_key")),
    ] {
        assert_eq!(verdict(keys, token, &TokenPolicy::default()).map(|_| ()), expected);
    }
    let debug = format!("{both:?}");
    assert!(debug.contains("old") && debug.contains("HS256") && !debug.contains("0123456789"), "{debug}");
    assert!(!format!("{:?}", material("k", KeyAlgorithm::Hs256)).contains("48"), "no byte of the secret");
}

/// W20: revoked. W19 is `client_id_allowed`. W23: the clock jumps; the verdict follows the time it is given.
#[test]
fn w20_w23_revocation_and_the_clock() {
    let keys = only(KeyAlgorithm::Hs256);
    let signed = hs(&good_claims());
    let grant = keys.verify(&signed, &TokenPolicy::default(), NOW).unwrap();
    let revoked = |entry| Revocations::new([entry], NOW_S).unwrap().check(&grant, "ana");
    assert_eq!(revoked(Revocation::Token { token_id: "t1".into(), until_s: NOW_S + 1000 }), Err(AuthError::Revoked));
    let subject = |not_before_s| Revocation::Subject { subject: "ana".into(), not_before_s, until_s: NOW_S + 90_000 };
    assert_eq!(revoked(subject(NOW_S + 1)), Err(AuthError::Revoked));
    assert_eq!(revoked(subject(NOW_S)), Ok(()));

    let at = |wall_s: u64| keys.verify(&signed, &TokenPolicy::default(), Tick { mono_ns: 5, wall_ms: wall_s * 1000 });
    assert_eq!(at(NOW_S + 3600).map_err(|error| error.code()), Err("auth.expired"));
    assert_eq!(at(NOW_S - 3600).map_err(|error| error.code()), Err("auth.not_yet_valid"));
    assert_eq!(at(0).map_err(|error| error.code()), Err("auth.not_yet_valid"));
    assert_eq!(at(u64::MAX / 1000).map_err(|error| error.code()), Err("auth.expired"));
    assert!(at(NOW_S).is_ok());
}
