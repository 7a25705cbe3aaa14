//! Slow readers (protocol.md section 5): a reader that stops costs its bounded buffer, is closed in the end, and slows nobody.

use crate::client::{Client, Hello, upgrade};
use crate::gateway::{Gateway, PATIENCE};
use crate::token::token;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

const MESSAGES: usize = 1_500;

#[tokio::test]
async fn one_that_stops_reading_is_closed_and_the_others_hear_everything() {
    let gateway = Gateway::start(&[
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
        ("limits.stall_ms", "700"),
        ("limits.close_ms", "300"),
        ("log.memory_bytes", "8388608"),
    ]);
    // A small receive buffer, so that the kernel does not swallow all.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(gateway.address).await.unwrap();
    let (mut stalled, status, _) = upgrade(Box::new(stream), "/v1/ws", "").await;
    assert_eq!(status, 101);
    let hello = json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": {"client_id": "stalled", "auth_token": token("stalled")}});
    tokio::io::AsyncWriteExt::write_all(&mut stalled, &crate::raw::text(&hello.to_string())).await.unwrap();
    gateway.until_metric("ringway_welcomed_total", "", |welcomed| welcomed == 1);

    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let before = gateway.rss_bytes();
    let filler = "x".repeat(8_000);
    for number in 0..MESSAGES {
        ana.say("session", json!([number, filler])).await;
        if number % 50 == 49 {
            // Bounds what is on its way, so that the healthy reader never falls behind the log's 8 MiB.
            ana.settle().await;
            for expected in number - 49..=number {
                assert_eq!(ben.take("chat").await["payload"][0], expected);
            }
        }
    }
    let grown = gateway.rss_bytes().saturating_sub(before);
    assert!(grown < 24 * 1024 * 1024, "12 MB were sent; the log holds 8 MiB, the process grew by {grown}");
    gateway.until_metric("ringway_closes_total", "too_slow", |closes| closes == 1);
    assert_eq!(ben.heard().await.len(), 0);
    ana.publish("session", "on it goes").await;
    assert_eq!(ben.heard().await, ["on it goes"]);

    // Data already on its way can still be read, and then the end comes: the connection does not hang.
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stalled.read_to_end(&mut bytes)).await.expect("the socket ends");
    // The client may come back and resume; messages that retention dropped are reported.
    let hello = Hello::new("s", "stalled").with("resume", ana.position(0));
    let back = Client::enter(&gateway, hello).await;
    assert_eq!(back.welcome["recovered"], false, "12 MB do not fit 8 MiB: {}", back.welcome);
}

#[tokio::test]
async fn a_reader_behind_retention_gets_a_gap_and_goes_on() {
    let gateway = Gateway::start(&[
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
        ("session.history_messages", "100"),
    ]);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(gateway.address).await.unwrap();
    let (mut slow, status, _) = upgrade(Box::new(stream), "/v1/ws", "").await;
    assert_eq!(status, 101);
    let hello =
        json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": {"client_id": "slow", "auth_token": token("slow")}});
    tokio::io::AsyncWriteExt::write_all(&mut slow, &crate::raw::text(&hello.to_string())).await.unwrap();
    gateway.until_metric("ringway_welcomed_total", "", |welcomed| welcomed == 1);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 0..600 {
        ana.say("session", json!([number, "x".repeat(8_000)])).await;
    }
    ana.settle().await;
    // Now it reads again: every message once and in order, but for what the gaps name.
    let mut slow = Client::over(slow);
    slow.session = "s".to_owned();
    let (mut next, mut gaps) = (1, 0);
    for message in slow.settle().await {
        match message["type"].as_str().unwrap() {
            "chat" => {
                assert_eq!((&message["seq"], &message["payload"][0]), (&json!(next), &json!(next - 1)));
                next += 1;
            }
            "rw.gap" => {
                assert_eq!(message["payload"]["from"], next, "{message}");
                next = message["payload"]["to"].as_u64().unwrap() + 1;
                gaps += 1;
            }
            _ => {}
        }
    }
    assert_eq!(next, 601);
    assert!(gaps > 0, "600 messages of 8 KB were read by one who had stopped, and 100 are kept");
}
