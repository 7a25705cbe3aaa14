//! The claims of a token whose signature is good, judged in a fixed order.

use super::grant::{is_name, is_pattern, subject_allowed};
use super::{AuthError, Grant, GrantParts};
use crate::limits::{
    TOKEN_ID_BYTES_MAX, TOKEN_LIFETIME_S_MAX, TOKEN_METHODS_MAX, TOKEN_ROLES_MAX, TOKEN_SCOPE_BYTES_MAX, TOKEN_SESSIONS_MAX,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The end of the year 9999: what lies beyond is no date but a mistake in units.
const NUMERIC_DATE_MAX: u64 = 253_402_300_799;

/// The operator's requirements on tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPolicy {
    /// `iss` must be this.
    pub issuer: Option<Box<str>>,
    /// `aud` must contain this. If not set, a token that has an `aud` is refused (RFC 7519 4.1.3).
    pub audience: Option<Box<str>>,
    /// Tolerated difference between clocks, in seconds.
    pub leeway_s: u64,
    /// The longest lifetime, `exp` less `iat`, in seconds.
    pub lifetime_s_max: u64,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self { issuer: None, audience: None, leeway_s: 30, lifetime_s_max: TOKEN_LIFETIME_S_MAX }
    }
}

/// The claims as received. A known claim that occurs twice fails to parse; `null` is a value, and a wrong one.
#[derive(Deserialize)]
pub struct Claims {
    #[serde(default, deserialize_with = "given")]
    sub: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    sid: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    roles: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    scope: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    exp: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    nbf: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    iat: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    iss: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    aud: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    jti: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    amr: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    auth_time: Option<Value>,
}

/// Keeps `null` apart from absent, which `Option` alone would not.
pub(super) fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Reads a JSON object; serde alone would take an array of the fields' values too.
pub(super) fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    json.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(json).ok()).flatten()
}

impl Claims {
    /// Reads the claims' JSON, for fuzzing: [`super::KeySet::verify`] has them read once their signature is good.
    ///
    /// # Errors
    /// [`AuthError::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, AuthError> {
        object(json).ok_or(AuthError::Malformed("its claims must be a JSON object with each claim once"))
    }

    /// Judges the claims at `now_s`, Unix seconds.
    ///
    /// # Errors
    /// The first claim that does not do, times first.
    pub fn grant(&self, policy: &TokenPolicy, now_s: u64) -> Result<Grant, AuthError> {
        let (expires_at_s, issued_at_s) = self.judge_times(policy, now_s)?;
        self.judge_origin(policy)?;
        let subject = required_text(self.sub.as_ref(), "sub", "it must be there: a string that names the user")?;
        let sessions = names(self.sid.as_ref(), "sid", SESSIONS_PROBLEM)?;
        let roles = names(self.roles.as_ref(), "roles", ROLES_PROBLEM)?;
        let methods = names(self.amr.as_ref(), "amr", METHODS_PROBLEM)?;
        let scope = optional_text(self.scope.as_ref(), "scope", SCOPE_PROBLEM)?.unwrap_or_default();
        let token_id = optional_text(self.jti.as_ref(), "jti", TOKEN_ID_PROBLEM)?;
        let auth_time_s = self.auth_time.as_ref().map(|value| date(value, "auth_time", f64::floor)).transpose()?;
        Grant::new(&GrantParts {
            subject,
            sessions: &sessions,
            roles: &roles,
            scope,
            methods: &methods,
            token_id,
            expires_at_s,
            issued_at_s,
            auth_time_s,
        })
    }

    fn judge_times(&self, policy: &TokenPolicy, now_s: u64) -> Result<(u64, Option<u64>), AuthError> {
        let exp =
            self.exp.as_ref().ok_or(AuthError::Claims { claim: "exp", problem: "it must be there: when the token ends" })?;
        // A fraction of a second is rounded against the token.
        let expires_at_s = date(exp, "exp", f64::floor)?;
        let not_before_s = self.nbf.as_ref().map(|value| date(value, "nbf", f64::ceil)).transpose()?;
        let issued_at_s = self.iat.as_ref().map(|value| date(value, "iat", f64::floor)).transpose()?;

        if now_s >= expires_at_s.saturating_add(policy.leeway_s) {
            return Err(AuthError::Expired { ago_s: now_s.saturating_sub(expires_at_s) });
        }
        for (claim, from_s) in [("nbf", not_before_s), ("iat", issued_at_s)] {
            if let Some(from_s) = from_s
                && from_s > now_s.saturating_add(policy.leeway_s)
            {
                return Err(AuthError::NotYetValid { claim, in_s: from_s.saturating_sub(now_s) });
            }
        }
        if expires_at_s.saturating_sub(issued_at_s.unwrap_or(now_s)) > policy.lifetime_s_max {
            let problem = "the token lives longer than this gateway allows, 24 h by default: issue shorter ones and refresh";
            return Err(AuthError::Claims { claim: "exp", problem });
        }
        Ok((expires_at_s, issued_at_s))
    }

    fn judge_origin(&self, policy: &TokenPolicy) -> Result<(), AuthError> {
        if let Some(issuer) = &policy.issuer
            && self.iss.as_ref().and_then(Value::as_str) != Some(&**issuer)
        {
            return Err(AuthError::Issuer);
        }
        match (&policy.audience, &self.aud) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(AuthError::Audience("it has one, so [auth] audience must name this gateway's")),
            (Some(_), None) => Err(AuthError::Audience("it must be there and hold the configured [auth] audience")),
            (Some(audience), Some(Value::String(one))) if **audience == **one => Ok(()),
            (Some(audience), Some(Value::Array(many)))
                if many.iter().all(Value::is_string) && many.iter().any(|one| one.as_str() == Some(audience)) =>
            {
                Ok(())
            }
            (Some(_), Some(_)) => Err(AuthError::Audience("it must be or hold the configured [auth] audience")),
        }
    }
}

/// A `NumericDate` (RFC 7519 section 2): seconds, fractions allowed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "checked to be in range"
)]
fn date(value: &Value, claim: &'static str, round: fn(f64) -> f64) -> Result<u64, AuthError> {
    let seconds = match value {
        Value::Number(number) => match number.as_u64() {
            Some(seconds) => Some(seconds),
            None => number.as_f64().filter(|real| (0.0..=NUMERIC_DATE_MAX as f64).contains(real)).map(|real| round(real) as u64),
        },
        _ => None,
    };
    let problem = "it must be a number: Unix seconds from 0 to the end of the year 9999";
    seconds.filter(|seconds| *seconds <= NUMERIC_DATE_MAX).ok_or(AuthError::Claims { claim, problem })
}

fn required_text<'a>(value: Option<&'a Value>, claim: &'static str, problem: &'static str) -> Result<&'a str, AuthError> {
    value.and_then(Value::as_str).ok_or(AuthError::Claims { claim, problem })
}

fn optional_text<'a>(value: Option<&'a Value>, claim: &'static str, problem: &'static str) -> Result<Option<&'a str>, AuthError> {
    value.map(|value| required_text(Some(value), claim, problem)).transpose()
}

/// A string, or a list of strings; absent is empty.
fn names<'a>(value: Option<&'a Value>, claim: &'static str, problem: &'static str) -> Result<Vec<&'a str>, AuthError> {
    let refused = AuthError::Claims { claim, problem };
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(many)) => many.iter().map(|one| one.as_str().ok_or(refused)).collect(),
        Some(_) => Err(refused),
    }
}

const SESSIONS_PROBLEM: &str =
    "it must be there: a session or a list of 1 to 64, each 1 to 128 of [A-Za-z0-9_.:-], the last character may be `*`";
const ROLES_PROBLEM: &str = "it must be a role or a list of up to 32, each 1 to 128 of [A-Za-z0-9_.:-]";
const METHODS_PROBLEM: &str = "it must be a list of up to 16 names, each 1 to 128 of [A-Za-z0-9_.:-]";
const SCOPE_PROBLEM: &str =
    "it must be a string of up to 1024 bytes: printable ASCII without quote and backslash, divided by spaces";
const TOKEN_ID_PROBLEM: &str = "it must be a string of 1 to 128 printable ASCII characters without space";

/// The bounds of every part of a grant.
pub(super) fn check_parts(parts: &GrantParts<'_>) -> Result<(), AuthError> {
    let refused = |claim, problem| Err(AuthError::Claims { claim, problem });
    subject_allowed(parts.subject)?;
    if !(1..=TOKEN_SESSIONS_MAX).contains(&parts.sessions.len()) || !parts.sessions.iter().all(|one| is_pattern(one)) {
        return refused("sid", SESSIONS_PROBLEM);
    }
    if parts.roles.len() > TOKEN_ROLES_MAX || !parts.roles.iter().all(|one| is_name(one)) {
        return refused("roles", ROLES_PROBLEM);
    }
    if parts.methods.len() > TOKEN_METHODS_MAX || !parts.methods.iter().all(|one| is_name(one)) {
        return refused("amr", METHODS_PROBLEM);
    }
    // RFC 6749 3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ).
    let in_scope = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if parts.scope.len() > TOKEN_SCOPE_BYTES_MAX || !parts.scope.bytes().all(in_scope) {
        return refused("scope", SCOPE_PROBLEM);
    }
    parts.token_id.map_or(Ok(()), token_id_allowed)
}

/// Checks that a `jti` is allowed.
///
/// # Errors
/// [`AuthError::Claims`] on `jti`.
pub fn token_id_allowed(token_id: &str) -> Result<(), AuthError> {
    if !(1..=TOKEN_ID_BYTES_MAX).contains(&token_id.len()) || !token_id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(AuthError::Claims { claim: "jti", problem: TOKEN_ID_PROBLEM });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_S: u64 = 1_000_000;

    fn judge(json: &str) -> Result<Grant, AuthError> {
        Claims::parse(json.as_bytes())?.grant(&TokenPolicy::default(), NOW_S)
    }

    #[test]
    fn fractions_are_rounded_against_the_token() {
        let grant = judge(r#"{"sub":"a","sid":"s","exp":1000100.9,"iat":999999.9,"auth_time":5.0}"#).unwrap();
        assert_eq!((grant.expires_at_s(), grant.issued_at_s(), grant.auth_time_s()), (1_000_100, Some(999_999), Some(5)));
        let late = judge(r#"{"sub":"a","sid":"s","exp":1000100,"nbf":1000030.1}"#);
        assert_eq!(late, Err(AuthError::NotYetValid { claim: "nbf", in_s: 31 }));
    }

    #[test]
    fn the_leeway_is_on_both_sides_and_no_wider() {
        assert!(judge(r#"{"sub":"a","sid":"s","exp":999971}"#).is_ok());
        assert_eq!(judge(r#"{"sub":"a","sid":"s","exp":999970}"#), Err(AuthError::Expired { ago_s: 30 }));
        assert!(judge(r#"{"sub":"a","sid":"s","exp":1000100,"nbf":1000030}"#).is_ok());
        assert!(judge(r#"{"sub":"a","sid":"s","exp":1000100,"nbf":1000031}"#).is_err());
    }

    #[test]
    fn lists_have_their_bounds() {
        let list = |count: usize| vec!["\"x\""; count].join(",");
        for (claim, most) in [("sid", 64), ("roles", 32), ("amr", 16)] {
            for (count, good) in [(most, true), (most + 1, false)] {
                let sid = if claim == "sid" { "" } else { r#""sid":"s","# };
                let json = format!(r#"{{"sub":"a",{sid}"exp":1000100,"{claim}":[{}]}}"#, list(count));
                assert_eq!(judge(&json).is_ok(), good, "{claim} {count}");
            }
        }
    }

    #[test]
    fn nothing_secret_is_repeated() {
        for json in [
            r#"{"sub":"CANARY /","sid":"s","exp":1000100}"#,
            r#"{"sub":"a","sid":"CANARY /","exp":1000100}"#,
            r#"{"sub":"a","sid":"s","exp":"CANARY"}"#,
            r#"{"sub":"a","sid":"s","exp":1000100,"jti":"CANARY /"}"#,
            r#"{"sub":"a","sid":"s","exp":1000100,"scope":["CANARY"]}"#,
            r#"{"CANARY"#,
        ] {
            let error = judge(json).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(claims) = Claims::parse(&bytes) {
                let _ = claims.grant(&TokenPolicy::default(), NOW_S);
            }
        }

        #[test]
        fn any_number_as_a_date(number in any::<f64>(), now_s in any::<u64>()) {
            let json = format!(r#"{{"sub":"a","sid":"s","exp":{number:e},"iat":{number:e}}}"#);
            if let Ok(grant) = Claims::parse(json.as_bytes()).and_then(|claims| claims.grant(&TokenPolicy::default(), now_s)) {
                prop_assert!(grant.expires_at_s().saturating_add(30) > now_s);
            }
        }
    }
}
