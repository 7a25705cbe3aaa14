//! Rates (protocol.md section 5): above its rate a client is told when to try again, and closed if it continues.

use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use fastwebsockets::{Frame, Payload};
use serde_json::json;

#[tokio::test]
async fn above_the_rate_is_limit_rate_with_a_time_to_wait() {
    let gateway = Gateway::start(&[("limits.messages_per_second", "5"), ("limits.messages_burst", "10")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 0..30 {
        ana.say("session", number).await;
    }
    let answer = ana.take("rw.error").await;
    assert_eq!((code(&answer), &answer["payload"]["retryable"]), ("limit.rate", &json!(true)), "{answer}");
    let wait = answer["payload"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_000).contains(&wait), "{answer}");
    // The refused message can be told from the others.
    assert_eq!(answer["id"], "ana-10", "the first over the burst, of which the hello took one: {answer}");
    tokio::time::sleep(std::time::Duration::from_millis(wait + 50)).await;
    assert!(gateway.metric("ringway_limits_reached_total", "message_rate") >= 15);
}

#[tokio::test]
async fn bytes_have_a_rate_too() {
    let gateway = Gateway::start(&[("limits.bytes_per_second", "70000")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for _ in 0..3 {
        ana.say("session", "x".repeat(40_000)).await;
    }
    assert_eq!(code(&ana.take("rw.error").await), "limit.rate");
    assert!(gateway.metric("ringway_limits_reached_total", "\"byte_rate\"") >= 1);
}

#[tokio::test]
async fn who_goes_on_is_closed_with_4429() {
    let gateway =
        Gateway::start(&[("limits.messages_per_second", "5"), ("limits.messages_burst", "5"), ("limits.rate_abuse_ms", "500")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let flood = async {
        // Until it is closed: sending fails then.
        for number in 0..2_000 {
            let message = json!({"type": "chat", "id": format!("m-{number}"), "session_id": "s", "payload": number}).to_string();
            if ana.send_frame(Frame::text(Payload::Borrowed(message.as_bytes()))).await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    flood.await;
    assert_eq!(ana.closed().await.0, Some(4429));
    assert_eq!(gateway.metric("ringway_limits_reached_total", "rate_abuse"), 1);
    Client::join(&gateway, "s", "ana").await.close().await;
}

#[tokio::test]
async fn connections_of_an_address_and_of_a_user_are_capped() {
    let gateway = Gateway::start(&[("limits.connections_per_user", "2")]);
    let _held = [Client::join(&gateway, "s", "ana/1").await, Client::join(&gateway, "s", "ana/2").await];
    let mut third = Client::connect(&gateway).await;
    third.hello(&Hello::new("s", "ana/3")).await;
    let (close, error) = third.refused().await;
    assert_eq!((close, &*error), (Some(1013), "limit.connections"));
    drop(gateway);

    let gateway = Gateway::start(&[("limits.connections_per_ip", "2")]);
    let held = [Client::join(&gateway, "s", "ana").await, Client::join(&gateway, "s", "ben").await];
    let (_, status, head) = crate::client::upgrade(crate::client::tcp(gateway.address).await, "/v1/ws", "").await;
    assert_eq!(status, 429, "{head}");
    assert!(head.contains("Retry-After: "), "{head}");
    for client in held {
        client.close().await;
    }
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    Client::join(&gateway, "s", "ana").await.close().await;
}

#[tokio::test]
async fn a_sender_that_never_reads_its_answers_is_not_read_from_and_stays_bounded() {
    let gateway = Gateway::start(&[
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
        ("limits.stall_ms", "1500"),
        ("limits.close_ms", "300"),
        ("limits.bad_envelopes", "0"),
    ]);
    let mut raw = crate::raw::Raw::connect(gateway.address);
    raw.upgrade(crate::raw::UPGRADE);
    let token = crate::token::token("ana");
    raw.send(&crate::raw::text(
        &json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": {"client_id": "ana", "auth_token": token}})
            .to_string(),
    ));
    raw.json();
    let before = gateway.rss_bytes();
    raw.stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    // Each asks for an answer that is larger than itself; none is read.
    let burst: Vec<u8> = (0..1_000)
        .flat_map(|number| {
            let (id, long) = (format!("m-{number}"), "x".repeat(100));
            crate::raw::text(
                &json!({"type": "chat", "id": id, "session_id": "s", "to": format!("client:{long}"), "payload": 1}).to_string(),
            )
        })
        .collect();
    let mut refused = false;
    for _ in 0..200 {
        if !raw.send(&burst) {
            refused = true;
            break;
        }
    }
    assert!(refused, "40 MB of messages were taken from one who reads no answer");
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 16 * 1024 * 1024, "{grown}");
    gateway.until_metric("ringway_closes_total", "too_slow", |closes| closes == 1);
    assert_eq!(gateway.metric("ringway_limits_reached_total", "\"stall\""), 1);
    assert!(gateway.metric("ringway_limits_reached_total", "\"backpressure\"") >= 1);
    Client::join(&gateway, "s", "ben").await.close().await;
}
