//! Heartbeats (protocol.md section 1): an idle connection is pinged, and dropped if it stays silent; any byte counts as life.

use crate::client::Client;
use crate::gateway::Gateway;
use crate::raw::{Raw, frame, text};
use crate::token::token;
use serde_json::json;
use std::time::{Duration, Instant};

const FAST: [(&str, &str); 2] = [("session.heartbeat_ms", "200"), ("session.heartbeat_timeout_ms", "300")];

fn hello() -> String {
    json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": {"client_id": "ana", "auth_token": token("ana")}})
        .to_string()
}

#[test]
fn who_stays_silent_is_dropped_with_4504() {
    let gateway = Gateway::start(&FAST);
    let mut raw = Raw::connect(gateway.address);
    raw.upgrade(crate::raw::UPGRADE);
    raw.send(&text(&hello()));
    let began = Instant::now();
    let mut pinged = None;
    let code = loop {
        let received = raw.next().expect("a close frame");
        match received.first & 0x0f {
            9 => pinged = Some(began.elapsed()),
            8 => break u16::from_be_bytes(received.payload[..2].try_into().unwrap()),
            _ => {}
        }
    };
    assert_eq!(code, 4504);
    assert_eq!(gateway.metric("ringway_limits_reached_total", "heartbeat_time"), 1);
    let pinged = pinged.expect("a ping before the end");
    assert!(pinged >= Duration::from_millis(150) && began.elapsed() >= pinged + Duration::from_millis(250), "{pinged:?}");
}

#[test]
fn pings_are_answered_and_any_byte_is_life() {
    let gateway = Gateway::start(&FAST);
    let mut raw = Raw::connect(gateway.address);
    raw.upgrade(crate::raw::UPGRADE);
    raw.send(&text(&hello()));
    raw.send(&frame(0x89, b"are you there"));
    let mut answered = false;
    let began = Instant::now();
    let mut pings = 0;
    while began.elapsed() < Duration::from_millis(1_500) {
        let received = raw.next().expect("it lives");
        match received.first & 0x0f {
            10 => answered = received.payload == b"are you there",
            // No pong: a message does as well.
            9 => {
                pings += 1;
                raw.send(&text(r#"{"type":"rw.ping","id":"p","session_id":"s","payload":{}}"#));
            }
            8 => panic!("closed although it talks"),
            _ => {}
        }
    }
    assert!(answered && pings >= 3, "{pings} pings");
}

#[tokio::test]
async fn a_client_whose_library_answers_pings_stays() {
    let gateway = Gateway::start(&FAST);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    ana.settle().await;
}
