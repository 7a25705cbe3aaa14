//! `/v1/revocations`: add, lift and list revocations.
//!
//! The listener asks for no credentials: any user who can connect to the machine's loopback may revoke. Pages of a browser may
//! not, even those of the loopback: a body must say that it is JSON and DELETE is no simple method, so a browser asks first
//! (Fetch, CORS-preflight), and nothing here answers that.

use super::http::{ANSWER, Shared, json, problem, single};
use crate::auth::{AuthError, Revocation, Revocations, client_id_allowed, subject_allowed, token_id_allowed};
use crate::shard::port::Snapshot;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Revocations in one answer unless `?limit=` says otherwise, and at most.
const SHOWN: usize = 1_000;
const SHOWN_MAX: usize = 10_000;
/// The end of the year 9999, as for tokens: what lies beyond is a mistake in units.
const UNTIL_S_MAX: u64 = 253_402_300_799;

/// Requests that found the list full. The control thread is its one writer.
static REFUSED_FULL: AtomicU64 = AtomicU64::new(0);

pub(super) fn refused_full() -> u64 {
    REFUSED_FULL.load(Ordering::Relaxed)
}

/// A revocation to add or lift, and an entry of the list. Exactly one of `jti`, `client_id` and `sub` is set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationRequest {
    /// A single token, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// A client of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// A user, with all clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Unix seconds; tokens with an earlier `iat`, or none, are refused. Absent: all issued up to now. Not with `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before_s: Option<u64>,
    /// Unix seconds at which the entry may be forgotten. Absent: when every token that it refuses has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_s: Option<u64>,
}

/// The answer to a revocation: it is in force on every shard but those that did not answer.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Connections that it closed.
    pub connections_closed: usize,
    /// Shards that did not answer in time; they apply the revocation at their next turn.
    pub unanswered_shards: Vec<usize>,
}

/// The answer of `GET /v1/revocations`.
#[derive(Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    pub revocations: Vec<RevocationRequest>,
    /// `true` if there are more than were asked for.
    pub truncated: bool,
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
}

#[expect(clippy::disallowed_methods, reason = "control hands times in; it must have them from somewhere")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl RevocationRequest {
    /// The entry, with absent fields filled in so that no token refused by it outlives it.
    fn entry(self, snapshot: &Snapshot, now_s: u64) -> Result<Revocation, String> {
        let policy = &snapshot.tokens;
        // A token issued at T, by a clock that may be ahead, is valid until T plus its lifetime plus the leeway at most.
        let outlived_s = |issued_before_s: u64| issued_before_s.saturating_add(policy.lifetime_s_max + policy.leeway_s);
        let issued_before_s = self.issued_before_s.unwrap_or(now_s + 1);
        let until_s = match (self.until_s, &self.jti) {
            (Some(until_s), _) => until_s,
            (None, Some(_)) => outlived_s(now_s + policy.leeway_s + 1),
            (None, None) => outlived_s(issued_before_s.max(now_s)),
        };
        for (name, value) in [("issued_before_s", issued_before_s), ("until_s", until_s)] {
            if value > UNTIL_S_MAX {
                return Err(format!("{name} must be Unix seconds, not milliseconds, up to the end of the year 9999"));
            }
        }
        if until_s <= now_s {
            return Err(format!("until_s must be later than now, {now_s}: else there is nothing to refuse"));
        }
        let claims = |error: AuthError| error.to_string();
        match (self.jti, self.client_id, self.sub) {
            (Some(token_id), None, None) => {
                if self.issued_before_s.is_some() {
                    return Err("issued_before_s goes with client_id or sub: a jti names one token".to_owned());
                }
                token_id_allowed(&token_id).map_err(claims)?;
                Ok(Revocation::Token { token_id: token_id.into(), until_s })
            }
            (None, Some(client_id), None) => {
                let subject = client_id.split('/').next().unwrap_or_default();
                subject_allowed(subject).map_err(claims)?;
                client_id_allowed(&client_id, subject).map_err(claims)?;
                Ok(Revocation::Client { client_id: client_id.into(), not_before_s: issued_before_s, until_s })
            }
            (None, None, Some(subject)) => {
                subject_allowed(&subject).map_err(claims)?;
                Ok(Revocation::Subject { subject: subject.into(), not_before_s: issued_before_s, until_s })
            }
            _ => Err("exactly one of jti (a token's id), client_id and sub (a user) must be there".to_owned()),
        }
    }

    fn shown(entry: &Revocation) -> Self {
        match entry {
            Revocation::Token { token_id, until_s } => {
                Self { jti: Some(token_id.to_string()), until_s: Some(*until_s), ..Self::default() }
            }
            Revocation::Client { client_id, not_before_s, until_s } => Self {
                client_id: Some(client_id.to_string()),
                issued_before_s: Some(*not_before_s),
                until_s: Some(*until_s),
                ..Self::default()
            },
            Revocation::Subject { subject, not_before_s, until_s } => Self {
                sub: Some(subject.to_string()),
                issued_before_s: Some(*not_before_s),
                until_s: Some(*until_s),
                ..Self::default()
            },
        }
    }
}

/// Puts a list in force and waits until the shards apply it, for a bounded time.
async fn publish(shared: &Arc<Shared>, snapshot: &Snapshot, revocations: Revocations) -> Revoked {
    let answers = shared.publish(&Arc::new(Snapshot { revocations: Arc::new(revocations), ..snapshot.clone() }));
    let until = tokio::time::Instant::now() + ANSWER;
    let mut revoked = Revoked::default();
    for (shard, answer) in answers {
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(closed)) => revoked.connections_closed += closed,
            _ => revoked.unanswered_shards.push(shard),
        }
    }
    revoked
}

/// The JSON object of a request's body; `what` describes it for the error.
pub(super) fn json_body<T: serde::de::DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    what: &str,
) -> Result<T, Box<Response>> {
    let kind = single(headers, header::CONTENT_TYPE).ok().flatten().unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let detail = "the body must be JSON with Content-Type: application/json";
        return Err(Box::new(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)));
    }
    let body = body.map_err(|rejection| {
        let detail = format!("the body is too large or was cut off: a {what} is one JSON object");
        Box::new(problem(rejection.status(), &detail))
    })?;
    let wrong = |error| Box::new(problem(StatusCode::BAD_REQUEST, &format!("the body is no {what}: {error}")));
    serde_json::from_slice(&body).map_err(wrong)
}

pub(super) async fn add(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    let request: RevocationRequest = match json_body(&headers, body, "revocation") {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    let (snapshot, now_s) = (shared.snapshot(), now_s());
    let entry = match request.entry(&snapshot, now_s) {
        Ok(entry) => entry,
        Err(detail) => return problem(StatusCode::BAD_REQUEST, &detail),
    };
    match snapshot.revocations.with(entry.clone(), now_s) {
        Ok(revocations) => {
            let revoked = publish(&shared, &snapshot, revocations).await;
            tracing::info!(?entry, connections_closed = revoked.connections_closed, "revoked");
            json(&revoked)
        }
        Err(full) => {
            REFUSED_FULL.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%full, "revocation refused");
            problem(StatusCode::INSUFFICIENT_STORAGE, &full.to_string())
        }
    }
}

pub(super) async fn lift(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<RevocationRequest>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(RevocationRequest { jti, client_id, sub, issued_before_s: None, until_s: None })) = query else {
        return problem(StatusCode::BAD_REQUEST, "what to lift stands in the query: ?jti=, ?client_id= or ?sub=, nothing else");
    };
    let snapshot = shared.snapshot();
    let target = RevocationRequest { jti, client_id, sub, ..RevocationRequest::default() };
    let target = match target.entry(&snapshot, now_s()) {
        Ok(target) => target,
        Err(detail) => return problem(StatusCode::BAD_REQUEST, &detail),
    };
    let Some(revocations) = snapshot.revocations.without(&target) else {
        return problem(StatusCode::NOT_FOUND, "nothing of that name is revoked; `ringway token revocations` lists what is");
    };
    let revoked = publish(&shared, &snapshot, revocations).await;
    tracing::info!(?target, "revocation lifted");
    json(&revoked)
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let wanted = query.map_or(0, |Query(ListQuery { limit })| limit.unwrap_or(SHOWN));
    if !(1..=SHOWN_MAX).contains(&wanted) {
        return problem(StatusCode::BAD_REQUEST, &format!("limit must be a whole number from 1 to {SHOWN_MAX}"));
    }
    let _turn = shared.turn().await;
    let snapshot = shared.snapshot();
    let revocations = snapshot.revocations.iter().take(wanted).map(RevocationRequest::shown).collect();
    json(&RevocationList { revocations, truncated: snapshot.revocations.len() > wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_000_000;

    fn entry(json: &str) -> Result<Revocation, String> {
        let request: RevocationRequest = serde_json::from_str(json).map_err(|error| error.to_string())?;
        request.entry(&Snapshot::default(), NOW_S)
    }

    /// The default policy: tokens live 86,400 s, clocks differ by 30 s.
    #[test]
    fn an_entry_outlives_every_token_that_it_refuses() {
        let until_s = NOW_S + 1 + 86_400 + 30;
        assert_eq!(entry(r#"{"jti":"t"}"#), Ok(Revocation::Token { token_id: "t".into(), until_s: until_s + 30 }));
        let subject = |not_before_s, until_s| Ok(Revocation::Subject { subject: "ana".into(), not_before_s, until_s });
        assert_eq!(entry(r#"{"sub":"ana"}"#), subject(NOW_S + 1, until_s));
        assert_eq!(entry(r#"{"sub":"ana","issued_before_s":1000500}"#), subject(1_000_500, 1_086_930));
        assert_eq!(entry(r#"{"sub":"ana","issued_before_s":7,"until_s":1000001}"#), subject(7, NOW_S + 1));
        let client = Revocation::Client { client_id: "ana/tab".into(), not_before_s: NOW_S + 1, until_s };
        assert_eq!(entry(r#"{"client_id":"ana/tab"}"#), Ok(client));
    }

    #[test]
    fn mistakes_are_named() {
        for (json, part) in [
            ("{}", "exactly one of"),
            (r#"{"jti":"t","sub":"ana"}"#, "exactly one of"),
            (r#"{"jti":"t","issued_before_s":5}"#, "issued_before_s goes with"),
            (r#"{"jti":""}"#, "jti"),
            (r#"{"sub":"a b"}"#, "sub"),
            (r#"{"client_id":"ana/"}"#, "client_id"),
            (r#"{"sub":"ana","until_s":1000000}"#, "later than now, 1000000"),
            (r#"{"sub":"ana","until_s":1790000000000}"#, "not milliseconds"),
            (r#"{"user":"ana"}"#, "unknown field `user`"),
        ] {
            let error = entry(json).map(|_| ()).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
