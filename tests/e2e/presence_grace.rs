//! Presence (protocol.md section 6): a drop within the grace is no event.

use crate::client::Client;
use crate::gateway::Gateway;
use serde_json::{Value, json};

async fn watching(gateway: &Gateway) -> Client {
    let mut ana = Client::join(gateway, "s", "ana").await;
    assert_eq!(ana.command("rw.watch", json!({"presence": true})).await["type"], "rw.watching");
    ana
}

fn event(message: &Value) -> (&str, &str) {
    (message["payload"]["client_id"].as_str().unwrap(), message["payload"]["event"].as_str().unwrap())
}

#[tokio::test]
async fn a_return_within_the_grace_is_no_event() {
    let gateway = Gateway::start(&[("session.presence_grace_ms", "10000")]);
    let mut ana = watching(&gateway).await;
    let ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "join"));
    ben.vanish().await;
    gateway.until_metric("ringway_members_present", "", |present| present == 1);
    let ben = Client::join(&gateway, "s", "ben").await;
    assert!(ana.settle().await.is_empty(), "no event");
    ben.close().await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "leave"), "a clean close does not wait");
}

#[tokio::test]
async fn who_stays_away_is_lost_and_joins_anew() {
    let gateway = Gateway::start(&[("session.presence_grace_ms", "100")]);
    let mut ana = watching(&gateway).await;
    let ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "join"));
    ben.vanish().await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "lost"));
    let _ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "join"));
}

#[tokio::test]
async fn presence_data_is_told_and_bounded() {
    let gateway = Gateway::start(&[]);
    let mut ana = watching(&gateway).await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "join"));
    assert_eq!(ben.command("rw.presence.set", json!({"data": {"typing": true}})).await["type"], "rw.presence.ok");
    let told = ana.take("rw.presence").await;
    assert_eq!((event(&told), &told["payload"]["data"]), (("ben", "data"), &json!({"typing": true})));
    let too_much = ben.command("rw.presence.set", json!({"data": "x".repeat(2_000)})).await;
    assert_eq!(too_much["type"], "rw.error", "{too_much}");
    let members = ana.command("rw.members", json!({})).await;
    assert_eq!(members["payload"]["members"][1]["data"], json!({"typing": true}), "{members}");
}

#[tokio::test]
async fn who_tells_of_itself_too_often_is_told_when_it_may_again() {
    let gateway = Gateway::start(&[("limits.presence_per_second", "1"), ("limits.presence_burst", "3")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 0..3 {
        assert_eq!(ana.command("rw.presence.set", json!({"data": number})).await["type"], "rw.presence.ok");
    }
    let refused = ana.command("rw.presence.set", json!({"data": 3})).await;
    assert_eq!((&refused["type"], &refused["payload"]["code"]), (&json!("rw.error"), &json!("limit.rate")), "{refused}");
    let wait_ms = refused["payload"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_000).contains(&wait_ms) && refused["payload"]["retryable"] == true, "{refused}");
    tokio::time::sleep(std::time::Duration::from_millis(wait_ms + 5)).await;
    assert_eq!(ana.command("rw.presence.set", json!({"data": 4})).await["type"], "rw.presence.ok");
}
