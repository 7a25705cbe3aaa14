//! Ephemeral messages (protocol.md section 2): neither logged, sequenced, replayed nor acknowledged.

use crate::attach_detach::homes;
use crate::client::{Client, Hello};
use crate::gateway::Gateway;
use serde_json::{Value, json};

fn typing(session: &str, id: &str, to: &str) -> Value {
    json!({"type": "typing", "id": id, "session_id": session, "to": to, "ephemeral": true, "payload": id})
}

#[tokio::test]
async fn it_reaches_who_is_there_and_leaves_no_trace() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let [near, far] = homes(&gateway).await;
    let mut ana = Client::join(&gateway, &near, "ana").await;
    let mut ben = Client::join(&gateway, &near, "ben").await;
    let mut guest = Client::join(&gateway, &far, "guest").await;
    assert_eq!(guest.command_in(&near, "rw.attach", json!({})).await["type"], "rw.attached");
    ana.publish("session", "logged").await;
    ana.send(&typing(&near, "e-1", "session")).await;
    ana.send(&typing(&near, "e-2", "client:ben")).await;
    assert!(ana.settle().await.is_empty(), "no ack");
    let heard = ben.settle().await;
    assert_eq!(heard.iter().map(|message| &message["payload"]).collect::<Vec<_>>(), ["logged", "e-1", "e-2"]);
    assert!(heard[1].get("seq").is_none() && heard[1]["from"] == "ana" && heard[1]["ts"].is_u64(), "{}", heard[1]);
    assert_eq!(guest.take("typing").await["payload"], "e-1", "mirrors pass it on");
    ben.close().await;
    let mut ben = Client::enter(&gateway, Hello::new(&near, "ben").with("start", "oldest")).await;
    let again = ben.settle().await;
    assert_eq!(again.iter().map(|message| &message["payload"]).collect::<Vec<_>>(), ["logged"]);
    assert_eq!(ana.publish("session", "next").await, 2, "it took no place in the order");
}
