//! Receipts (protocol.md section 5): `rw.received` moves the client's durable cursor, and is not answered.

use crate::client::{Client, Hello, payloads};
use crate::gateway::Gateway;
use serde_json::json;

async fn receive(client: &mut Client, seq: u64) {
    let (id, session) = (client.fresh_id(), client.session.clone());
    client.send(&json!({"type": "rw.received", "id": id, "session_id": session, "payload": {"seq": seq}})).await;
}

#[tokio::test]
async fn a_client_without_a_memory_goes_on_behind_its_receipt() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    for number in 1..=5 {
        ana.publish("session", number).await;
    }
    assert_eq!(ben.heard().await, [1, 2, 3, 4, 5]);
    receive(&mut ben, 2).await;
    receive(&mut ben, 1).await;
    receive(&mut ben, 999).await;
    assert!(ben.settle().await.is_empty(), "receipts are not answered");
    ben.vanish().await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(ben.welcome["start_seq"], 3, "{}", ben.welcome);
    assert_eq!(payloads(&ben.settle().await), [3, 4, 5]);
    ben.close().await;
    let ben = Client::enter(&gateway, Hello::new("s", "ben").with("start", "head")).await;
    assert_eq!(ben.welcome["start_seq"], 6);
}
