//! Channels (protocol.md section 3): sessions for many readers, on all shards, posted to from outside.

use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use crate::token::token_with;
use serde_json::json;

#[tokio::test]
async fn a_post_reaches_the_readers_of_all_shards_once_and_in_order() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    // Each reader's first session spreads them over the shards; the channel is attached.
    let mut readers = Vec::new();
    for number in 0..8 {
        let mut reader = Client::join(&gateway, &format!("home-{number}"), &format!("reader{number}")).await;
        let attached = reader.command_in("channel:news", "rw.attach", json!({})).await;
        assert_eq!(attached["type"], "rw.attached", "{attached}");
        readers.push(reader);
    }
    readers.push(Client::join(&gateway, "channel:news", "direct").await);
    let mut poster = Client::join(&gateway, "poster-home", "poster").await;
    let mut seqs = Vec::new();
    for number in 0..20 {
        seqs.push(poster.publish("channel:news", number).await);
    }
    assert_eq!(seqs, (1..=20).collect::<Vec<u64>>());
    for reader in &mut readers {
        for number in 0..20 {
            let message = reader.take("chat").await;
            assert_eq!((&message["payload"], &message["seq"]), (&json!(number), &json!(number + 1)), "{message}");
            assert_eq!((&message["session_id"], &message["from"]), (&json!("channel:news"), &json!("poster")));
        }
        assert!(reader.heard().await.is_empty());
    }
    assert!(poster.heard().await.is_empty());
    assert!(gateway.metric("ringway_mirrors", "") >= 1, "one of the shards mirrors the channel");
}

#[tokio::test]
async fn a_post_is_idempotent_and_needs_the_tokens_leave() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let mut reader = Client::join(&gateway, "channel:a", "reader").await;
    let token = token_with("poster", &json!({"sid": ["p", "channel:a"]}));
    let mut poster = Client::enter(&gateway, Hello::new("p", "poster").with("auth_token", token)).await;
    let message = json!({"type": "chat", "id": "post-1", "session_id": "p", "to": "channel:a", "payload": "once"});
    poster.send(&message).await;
    let first = poster.answer("post-1").await;
    poster.send(&message).await;
    let second = poster.answer("post-1").await;
    assert_eq!(first["payload"]["seq"], second["payload"]["seq"]);
    assert_eq!(second["payload"]["duplicate"], true);
    let id = poster.say("channel:b", 1).await;
    assert_eq!(code(&poster.answer(&id).await), "auth.forbidden_session");
    assert_eq!(reader.heard().await, ["once"]);
}
