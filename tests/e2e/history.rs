//! `rw.history` (protocol.md section 6): the messages that a member may see, ascending, with nothing live in between.

use crate::client::{Client, Hello};
use crate::gateway::Gateway;
use serde_json::{Value, json};

/// A page: the messages and the end.
pub async fn page(client: &mut Client, payload: Value) -> (Vec<Value>, Value) {
    let id = client.fresh_id();
    let session = client.session.clone();
    client.send(&json!({"type": "rw.history", "id": id, "session_id": session, "payload": payload})).await;
    let begin = client.take("rw.history_begin").await;
    assert_eq!(begin["id"], *id);
    let mut messages = Vec::new();
    for _ in 0..begin["payload"]["count"].as_u64().unwrap() {
        let message = client.next().await;
        assert!(message["seq"].is_u64(), "only messages in between: {message}");
        messages.push(message);
    }
    let end = client.next().await;
    assert_eq!((&end["type"], &end["id"]), (&json!("rw.history_end"), &json!(id)), "{end}");
    (messages, end["payload"].clone())
}

fn payloads(messages: &[Value]) -> Vec<i64> {
    messages.iter().map(|message| message["payload"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn pages_forwards_and_backwards() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 1..=10 {
        ana.publish("session", number).await;
    }
    let mut ben = Client::join(&gateway, "s", "ben").await;
    for (wanted, expected, more) in [
        (json!({}), (1..=10).collect::<Vec<_>>(), false),
        (json!({"limit": 3}), vec![8, 9, 10], true),
        (json!({"before": 4, "limit": 2}), vec![2, 3], true),
        (json!({"before": 3}), vec![1, 2], false),
        (json!({"after": 0, "limit": 3}), vec![1, 2, 3], true),
        (json!({"after": 8}), vec![9, 10], false),
        (json!({"after": 10}), vec![], false),
    ] {
        let (messages, end) = page(&mut ben, wanted.clone()).await;
        assert_eq!(payloads(&messages), expected, "{wanted}");
        assert_eq!((&end["more"], &end["oldest_seq"]), (&json!(more), &json!(1)), "{wanted}");
        let next_seq = if wanted["after"].is_u64() { expected.last() } else { expected.first() };
        assert_eq!(end["next_seq"], json!(next_seq.filter(|_| more)), "{wanted}");
    }
    assert_eq!(ana.command("rw.history", json!({"before": 3, "after": 1})).await["type"], "rw.error");
    assert_eq!(ana.command("rw.history", json!({"limit": 1001})).await["type"], "rw.error");
}

#[tokio::test]
async fn one_sees_in_history_what_one_could_see_live_and_what_one_sent() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let mut cleo = Client::join(&gateway, "s", "cleo").await;
    ana.publish("session", 1).await;
    ana.publish("client:ben", 2).await;
    ana.publish("room:ops", 3).await;
    ben.command("rw.join", json!({"room": "ops"})).await;
    ana.publish("room:ops", 4).await;
    ben.command("rw.leave", json!({"room": "ops"})).await;
    ana.publish("room:ops", 5).await;
    ben.settle().await;
    cleo.settle().await;
    assert_eq!(payloads(&page(&mut ben, json!({})).await.0), [1, 2, 4]);
    assert_eq!(payloads(&page(&mut cleo, json!({})).await.0), [1]);
    assert_eq!(payloads(&page(&mut ana, json!({})).await.0), [1, 2, 3, 4, 5], "what it sent itself");
    assert_eq!(payloads(&page(&mut ben, json!({"room": "ops"})).await.0), [4]);
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_stays_whole_while_others_talk() {
    let gateway = Gateway::start(&[("limits.messages_per_second", "0"), ("limits.bytes_per_second", "0")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 0..60 {
        ana.say("session", json!([number, "x".repeat(30_000)])).await;
    }
    ana.settle().await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let id = ben.fresh_id();
    ben.send(&json!({"type": "rw.history", "id": id, "session_id": "s", "payload": {"after": 0, "limit": 1000}})).await;
    for number in 100..150 {
        ana.say("session", number).await;
    }
    ana.settle().await;
    // Two connections have no order between them: some of what was said after the request may be taken before it.
    let mut live = Vec::new();
    let begin = loop {
        let message = ben.next().await;
        if message["type"] == "rw.history_begin" {
            break message;
        }
        live.push(message["payload"].clone());
    };
    let count = begin["payload"]["count"].as_u64().unwrap();
    assert!((30..=35).contains(&count), "1 MiB of 30 KB messages: {count}");
    for number in 0..count {
        // The page itself holds nothing live, so that its messages are the next in line.
        let message = ben.next().await;
        assert_eq!(message["payload"][0], number, "{}", message["seq"]);
    }
    assert_eq!(ben.next().await["payload"]["more"], true);
    live.append(&mut ben.heard().await);
    assert_eq!(live, (100..150).collect::<Vec<_>>());
}

#[tokio::test]
async fn from_join_hides_what_came_before() {
    let gateway = Gateway::start(&[("session.history", r#""from_join""#)]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    ana.publish("session", 1).await;
    let mut ben = Client::enter(&gateway, Hello::new("s", "ben").with("start", "oldest")).await;
    ana.publish("session", 2).await;
    assert_eq!(ben.heard().await, [2]);
    assert_eq!(payloads(&page(&mut ben, json!({})).await.0), [2]);
}
