//! `/v1/purge`: removes a session's messages from the log, for good.
//!
//! As with revocations, any user who can connect to the machine's loopback may purge; pages of a browser may not.

use super::http::{Shared, json, problem};
use super::revocations::json_body;
use crate::auth::is_name;
use crate::shard::port::PortMessage;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Time for which a request waits for the purge, which reads whole files. The purge goes on after that.
const PATIENCE: Duration = Duration::from_secs(25);

/// The session to purge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    pub session_id: String,
}

pub(super) async fn purge(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let PurgeRequest { session_id } = match json_body(&headers, body, "purge") {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    if !is_name(&session_id) {
        let detail = "session_id is no session's name: 1 to 128 of A-Z a-z 0-9 _ . : -";
        return problem(StatusCode::BAD_REQUEST, detail);
    }
    for port in &shared.ports {
        let (reply, answer) = oneshot::channel();
        if port.send(PortMessage::Purge { session_id: session_id.clone(), reply }).is_err() {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "a shard does not take messages from control: try again");
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(Ok(Some(purged)))) => return json(&purged),
            // The session's home is another shard.
            Ok(Ok(Ok(None))) => {}
            Ok(Ok(Err(detail))) => return problem(StatusCode::INSUFFICIENT_STORAGE, &detail),
            Ok(Err(_)) => {
                return problem(StatusCode::SERVICE_UNAVAILABLE, "the gateway has ended: its next start completes the purge");
            }
            Err(_) => {
                return problem(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the purge is not finished and goes on: repeat the request to learn when it is",
                );
            }
        }
    }
    problem(StatusCode::SERVICE_UNAVAILABLE, "no shard answered that it has this session: try again")
}
