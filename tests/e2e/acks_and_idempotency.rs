//! Acknowledgement and idempotency (protocol.md section 5).

use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use serde_json::json;

#[tokio::test]
async fn a_repeat_is_acknowledged_and_not_delivered_again() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let message = |payload: i32, to: &str| json!({"type": "chat", "id": "m-1", "session_id": "s", "to": to, "payload": payload});
    ana.send(&message(7, "session")).await;
    let first = ana.answer("m-1").await;
    assert_eq!(first["payload"], json!({"seq": 1}));
    ana.send(&message(7, "session")).await;
    assert_eq!(ana.answer("m-1").await["payload"], json!({"seq": 1, "duplicate": true}));
    for changed in [message(8, "session"), message(7, "client:ben"), {
        let mut other = message(7, "session");
        other["type"] = json!("note");
        other
    }] {
        ana.send(&changed).await;
        assert_eq!(code(&ana.answer("m-1").await), "envelope.id_reused", "{changed}");
    }
    // The key is the client's and the session's own.
    ben.send(&message(9, "session")).await;
    assert_eq!(ben.answer("m-1").await["payload"], json!({"seq": 2}));
    assert_eq!(ben.heard().await, [7]);
    assert_eq!(ana.heard().await, [9]);

    // Over a reconnect too: the purpose of the key.
    ana.vanish().await;
    let mut ana = Client::join(&gateway, "s", "ana").await;
    ana.send(&message(7, "session")).await;
    assert_eq!(ana.answer("m-1").await["payload"], json!({"seq": 1, "duplicate": true}));
}

#[tokio::test]
async fn the_window_is_the_last_ids_of_the_client() {
    let gateway = Gateway::start(&[("session.dedupe_ids", "3")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for id in ["a", "b", "c", "d", "a", "d"] {
        ana.send(&json!({"type": "chat", "id": id, "session_id": "s", "payload": id})).await;
    }
    ana.settle_acks(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("a", 5), ("d", 4)]).await;
}

impl Client {
    async fn settle_acks(&mut self, expected: &[(&str, u64)]) {
        for (id, seq) in expected {
            let ack = self.next().await;
            assert_eq!((&ack["type"], &ack["id"], &ack["payload"]["seq"]), (&json!("rw.ack"), &json!(id), &json!(seq)), "{ack}");
        }
    }
}

#[tokio::test]
async fn acks_off_leaves_the_errors() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::enter(&gateway, Hello::new("s", "ana").with("acks", false)).await;
    ana.say("session", 1).await;
    let bad = ana.say("client:nobody", 2).await;
    assert_eq!(code(&ana.answer(&bad).await), "route.no_such_member");
    assert!(ana.settle().await.is_empty(), "no ack");
}

#[tokio::test]
async fn refused_envelopes_are_named_and_ten_close_the_connection() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    ana.send_text(r#"{"type":"chat","id":"x","session_id":"s","payload":1,"extra":1}"#).await;
    let answer = ana.answer("x").await;
    assert_eq!((code(&answer), &answer["payload"]["details"]["pointer"]), ("envelope.invalid", &json!("/extra")), "{answer}");
    for _ in 0..8 {
        ana.send_text("[]").await;
        let answer = ana.answer("").await;
        assert_eq!(code(&answer), "envelope.invalid");
    }
    ana.send_text("[]").await;
    assert_eq!(ana.refused().await, (Some(4400), "envelope.invalid".to_owned()));
    assert_eq!(gateway.metric("ringway_limits_reached_total", "bad_envelopes"), 1);
}
