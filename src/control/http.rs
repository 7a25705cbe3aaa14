//! The admin listener's answers: health, readiness, metrics, connections, revocations (which can be changed), and purges.

use super::health::Health;
use super::listener::Seat;
use super::{EngineLabels, metrics, purges, revocations};
use crate::shard::port::{Alive, CONNECTIONS_PAGE_MAX, ConnectionInfo, Port, PortMessage, Snapshot};
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// Time for a shard to answer; then it is listed as unanswered.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// Largest request body. A revocation is far smaller.
const REQUEST_BODY_BYTES_MAX: usize = 16 * 1024;
/// Connections in one answer unless `?limit=` says otherwise, and at most.
const CONNECTIONS_SHOWN: usize = 1_000;
const CONNECTIONS_SHOWN_MAX: usize = 10_000;
/// Long answers (thousands of lines) that are made at the same time.
const LONG_ANSWERS_MAX: usize = 2;
/// Interval between attempts on a full port.
const LOOK: Duration = Duration::from_millis(50);
const CONNECTION_ID_BYTES_MAX: usize = 128;

/// The data behind the answers.
pub(super) struct Shared {
    pub(super) ports: Vec<Port>,
    pub(super) engine: EngineLabels,
    pub(super) health: Mutex<Health>,
    /// Limits how many long answers are made at a time; probes are answered in between.
    long: Semaphore,
    /// The snapshot in force, and the shards that could not be told yet.
    published: Mutex<Published>,
}

struct Published {
    snapshot: Arc<Snapshot>,
    behind: Vec<usize>,
}

impl Shared {
    pub(super) fn new(ports: Vec<Port>, snapshot: Arc<Snapshot>, engine: EngineLabels) -> Self {
        let health = Mutex::new(Health::new(ports.len()));
        let long = Semaphore::new(LONG_ANSWERS_MAX);
        Self { ports, engine, health, long, published: Mutex::new(Published { snapshot, behind: Vec::new() }) }
    }

    /// Waits for permission to make a long answer.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.long.acquire().await.ok()
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The snapshot in force.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published().snapshot)
    }

    /// Puts a snapshot in force. Each shard's answer comes by its receiver. A shard whose port is full is told as soon as it has
    /// room, and its receiver never answers. No shard gets an older snapshot after a newer one.
    pub(super) fn publish(self: &Arc<Self>, snapshot: &Arc<Snapshot>) -> Vec<(usize, oneshot::Receiver<usize>)> {
        let mut published = self.published();
        published.snapshot = Arc::clone(snapshot);
        let mut answers = Vec::new();
        for port in &self.ports {
            let (reply, answer) = oneshot::channel();
            let message = PortMessage::Configure { snapshot: Arc::clone(snapshot), reply: Some(reply) };
            if port.send(message).is_err() && !published.behind.contains(&port.shard()) {
                published.behind.push(port.shard());
                tokio::spawn(catch_up(Arc::clone(self), port.clone()));
            }
            answers.push((port.shard(), answer));
        }
        answers
    }

    /// Shards whose log has failed.
    fn failed_logs(&self) -> Vec<usize> {
        self.ports.iter().filter(|port| port.counters().log_failed.get() > 0).map(Port::shard).collect()
    }

    /// Tells the shards the current answers of `/healthz` and `/readyz`.
    pub(super) fn tell_health(&self) {
        let (stuck, ready) = {
            let health = self.health();
            (!health.stuck().is_empty(), health.readiness())
        };
        let alive = match () {
            () if stuck => Alive::Stuck,
            () if !self.failed_logs().is_empty() => Alive::Degraded,
            () => Alive::Ok,
        };
        self.published().snapshot.health.set(alive, ready);
    }

    /// A poisoned lock would still hold good values: everything runs on one thread and no holder can panic.
    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The answer of `/v1/connections`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionList {
    pub connections: Vec<ConnectionInfo>,
    /// `true` if there are more than were asked for.
    pub truncated: bool,
    /// Shards that did not answer in time.
    pub unanswered_shards: Vec<usize>,
}

#[derive(Deserialize)]
struct ListQuery {
    limit: Option<usize>,
}

/// Tells a shard the newest snapshot, whenever its port has room again.
async fn catch_up(shared: Arc<Shared>, port: Port) {
    tracing::error!(
        shard = port.shard(),
        "the shard does not take messages from control; it gets the new settings and revocations when it does"
    );
    loop {
        tokio::time::sleep(LOOK).await;
        let mut published = shared.published();
        let message = PortMessage::Configure { snapshot: Arc::clone(&published.snapshot), reply: None };
        if port.send(message).is_ok() {
            published.behind.retain(|shard| *shard != port.shard());
            return;
        }
    }
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/v1/connections", get(list))
        .route("/v1/connections/{id}", get(show))
        .route("/v1/revocations", get(revocations::list).post(revocations::add).delete(revocations::lift))
        .route("/v1/purge", post(purges::purge))
        .layer(DefaultBodyLimit::max(REQUEST_BODY_BYTES_MAX))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "there is /healthz, /readyz, /metrics, /v1/connections, /v1/revocations and /v1/purge")
        })
        .layer(from_fn(guard))
        .with_state(shared)
}

/// Returns `true` if a host and a port (RFC 3986 3.2.2 and 3.2.3, where a port may be empty) name this machine's loopback. A page
/// of another name that resolves here (DNS rebinding) sends its own name.
#[must_use]
pub fn host_is_loopback(host: &str) -> bool {
    let (is_loopback, after) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, after))) => {
            (address.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback()), after)
        }
        Some(None) => return false,
        None => {
            let (name, after) = host.split_at(host.find(':').unwrap_or(host.len()));
            let is_address = name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
            (is_address || name.eq_ignore_ascii_case("localhost"), after)
        }
    };
    let port_fits = |port: &str| port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    is_loopback && (after.is_empty() || after.strip_prefix(':').is_some_and(port_fits))
}

/// The value of a header that may occur once: `Ok(None)` if it was not sent, an error if it was sent twice or is no text.
pub(super) fn single(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// The reason to refuse a request before it is handled; `None` if there is none. A target in absolute form names the host, and
/// `Host` is then ignored (RFC 9112 3.2.2).
fn refusal(target: &Uri, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let header = single(headers, header::HOST).ok().flatten();
    let asked_for = header.map(|header| target.authority().map_or(header, Authority::as_str));
    if !asked_for.is_some_and(host_is_loopback) {
        return Some((StatusCode::MISDIRECTED_REQUEST, "the Host must be localhost or a loopback address, and stand once"));
    }
    let page_is_ours = match single(headers, header::ORIGIN) {
        Ok(None) => true,
        Ok(Some(origin)) => origin.split_once("://").is_some_and(|(_, host)| host_is_loopback(host)),
        Err(()) => false,
    };
    (!page_is_ours).then_some((StatusCode::FORBIDDEN, "the Origin must be a page of this machine's loopback, and stand once"))
}

async fn guard(ConnectInfo(seat): ConnectInfo<Seat>, request: Request, next: Next) -> Response {
    let answer = async {
        if let Some((status, detail)) = refusal(request.uri(), request.headers()) {
            return problem(status, detail);
        }
        // The body is read here, within the request's time: if it is not complete by then, the connection ends.
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, REQUEST_BODY_BYTES_MAX).await;
        seat.ask();
        match body {
            Ok(body) => next.run(Request::from_parts(head, body.into())).await,
            Err(_) => {
                let detail =
                    format!("the body is larger than {REQUEST_BODY_BYTES_MAX} bytes, or was cut off: it is one JSON object");
                problem(StatusCode::PAYLOAD_TOO_LARGE, &detail)
            }
        }
    };
    let mut response = tokio::select! {
        response = answer => response,
        () = seat.lost() => problem(StatusCode::SERVICE_UNAVAILABLE, "too many long answers are being made: try again"),
    };
    let headers = response.headers_mut();
    // A connection serves one request, because the listener bounds a connection's whole life.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A problem document (RFC 9457).
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = serde_json::json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    let named = |shards: &[usize]| shards.iter().map(|shard| format!("shard {shard}")).collect::<Vec<_>>().join(", ");
    let stuck = shared.health().stuck();
    if !stuck.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{} has not turned for 5 s\n", named(&stuck))).into_response();
    }
    // Alive, although the log has failed: a restart by itself mends no disk, and would end the work that goes on without it.
    let failed = shared.failed_logs();
    if !failed.is_empty() {
        return format!("degraded: the log of {} has failed; look at the disk, then restart\n", named(&failed)).into_response();
    }
    "ok\n".into_response()
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let ready = shared.health().ready();
    match ready {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    let _turn = shared.turn().await;
    let health = shared.health().clone();
    let text = metrics::text(&shared.ports, &health, shared.snapshot().revocations.len(), shared.engine);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Asks a shard and waits for its answer, at most [`ANSWER`].
async fn ask<T>(port: &Port, message: impl FnOnce(oneshot::Sender<T>) -> PortMessage) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    port.send(message(reply)).ok()?;
    tokio::time::timeout(ANSWER, answer).await.ok()?.ok()
}

async fn list(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let wanted = match query {
        Ok(Query(ListQuery { limit })) => limit.unwrap_or(CONNECTIONS_SHOWN),
        Err(_) => 0,
    };
    if !(1..=CONNECTIONS_SHOWN_MAX).contains(&wanted) {
        return problem(StatusCode::BAD_REQUEST, &format!("limit must be a whole number from 1 to {CONNECTIONS_SHOWN_MAX}"));
    }
    let _turn = shared.turn().await;
    let mut found = ConnectionList::default();
    for port in &shared.ports {
        let mut from = Some(0);
        while let Some(position) = from {
            let room = wanted - found.connections.len();
            if room == 0 {
                found.truncated = true;
                break;
            }
            let limit = room.min(CONNECTIONS_PAGE_MAX);
            let Some(page) = ask(port, |reply| PortMessage::ListConnections { from: position, limit, reply }).await else {
                found.unanswered_shards.push(port.shard());
                break;
            };
            found.connections.extend(page.connections.into_iter().take(room));
            // A shard that makes no progress would be asked for ever.
            from = page.next.filter(|next| *next > position);
        }
    }
    json(&found)
}

async fn show(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    if id.is_empty() || id.len() > CONNECTION_ID_BYTES_MAX {
        return problem(StatusCode::BAD_REQUEST, "a connection id has 1 to 128 bytes");
    }
    let mut unanswered = Vec::new();
    for port in &shared.ports {
        match ask(port, |reply| PortMessage::ShowConnection { connection_id: id.clone(), reply }).await {
            Some(Some(info)) => return json(&info),
            Some(None) => {}
            None => unanswered.push(port.shard().to_string()),
        }
    }
    if unanswered.is_empty() {
        problem(StatusCode::NOT_FOUND, "no shard knows this connection; closed ones are kept for 10 minutes")
    } else {
        problem(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("not found, but these shards did not answer: {}", unanswered.join(", ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_the_loopback_and_no_others() {
        for good in [
            "localhost",
            "LOCALHOST:9090",
            "127.0.0.1",
            "127.0.0.1:9090",
            "127.9.9.9",
            "[::1]",
            "[::1]:9090",
            "[::ffff:127.0.0.1]",
            "127.0.0.1:",
            "[::1]:",
        ] {
            assert!(host_is_loopback(good), "{good}");
        }
        for bad in [
            "",
            ":9090",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:99999",
            "127.0.0.1:+9090",
            "[127.0.0.1]",
            "[localhost]:9090",
            "10.0.0.1",
            "[::1",
            "[::1]x",
            "::1",
            "0.0.0.0",
            "localhost:9090:1",
            "[::2]:1",
            "localhost@evil.example",
        ] {
            assert!(!host_is_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn foreign_pages_are_refused() {
        let asked = |target: &str, pairs: &[(header::HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, value.parse().unwrap());
            }
            refusal(&target.parse().unwrap(), &headers).map(|(status, _)| status.as_u16())
        };
        let check = |pairs: &[(header::HeaderName, &str)]| asked("/healthz", pairs);
        assert_eq!(check(&[(header::HOST, "localhost:1")]), None);
        assert_eq!(check(&[(header::HOST, "localhost:1"), (header::ORIGIN, "http://127.0.0.1:3000")]), None);
        assert_eq!(check(&[]), Some(421));
        assert_eq!(check(&[(header::HOST, "rebound.example")]), Some(421));
        assert_eq!(check(&[(header::HOST, "localhost"), (header::HOST, "localhost")]), Some(421));
        assert_eq!(check(&[(header::HOST, "localhost"), (header::ORIGIN, "https://evil.example")]), Some(403));
        assert_eq!(check(&[(header::HOST, "localhost"), (header::ORIGIN, "null")]), Some(403));
        let two = [(header::HOST, "localhost"), (header::ORIGIN, "http://localhost"), (header::ORIGIN, "https://evil.example")];
        assert_eq!(check(&two), Some(403));
        // The target goes before Host, which must be there all the same.
        assert_eq!(asked("HTTP://LOCALHOST:9090/healthz", &[(header::HOST, "rebound.example")]), None);
        assert_eq!(asked("http://rebound.example/healthz", &[(header::HOST, "localhost")]), Some(421));
        assert_eq!(asked("http://user@localhost/healthz", &[(header::HOST, "localhost")]), Some(421));
        assert_eq!(asked("http://localhost/healthz", &[]), Some(421));
    }
}
