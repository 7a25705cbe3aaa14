//! Rooms (protocol.md section 6): joins and leaves have their places in the order.

use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use serde_json::json;

#[tokio::test]
async fn a_room_is_heard_from_the_join_to_the_leave() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    ana.publish("room:ops", "before").await;
    let joined = ben.command("rw.join", json!({"room": "ops"})).await;
    assert_eq!((&joined["type"], &joined["payload"]), (&json!("rw.joined"), &json!({"room": "ops", "seq": 1})));
    ana.publish("room:ops", "within").await;
    assert_eq!(ben.command("rw.join", json!({"room": "ops"})).await["payload"]["seq"], 1, "a repeat is answered like the first");
    assert_eq!(ben.heard().await, ["within"]);
    assert_eq!(ben.command("rw.leave", json!({"room": "ops"})).await["type"], "rw.left");
    ana.publish("room:ops", "after").await;
    assert!(ben.heard().await.is_empty());
}

#[tokio::test]
async fn membership_outlives_the_connection_and_rooms_of_the_hello_count_for_the_replay() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let ben = Client::enter(&gateway, Hello::new("s", "ben").with("rooms", json!(["ops"]))).await;
    assert_eq!(ben.welcome["rooms"], json!(["ops"]));
    let position = ben.position(0);
    ben.vanish().await;
    ana.publish("room:ops", "while away").await;
    ana.publish("room:other", "not his").await;
    let mut ben = Client::enter(&gateway, Hello::new("s", "ben").with("resume", position)).await;
    assert_eq!(ben.welcome["rooms"], json!(["ops"]), "{}", ben.welcome);
    assert_eq!(ben.heard().await, ["while away"]);
}

#[tokio::test]
async fn the_cap_on_rooms_holds_and_names_must_be_names() {
    let gateway = Gateway::start(&[("limits.rooms_per_client", "3")]);
    let mut ana = Client::enter(&gateway, Hello::new("s", "ana").with("rooms", json!(["a", "b"]))).await;
    assert_eq!(ana.command("rw.join", json!({"room": "c"})).await["type"], "rw.joined");
    assert_eq!(code(&ana.command("rw.join", json!({"room": "d"})).await), "limit.rooms");
    assert_eq!(ana.command("rw.leave", json!({"room": "a"})).await["type"], "rw.left");
    assert_eq!(ana.command("rw.join", json!({"room": "d"})).await["type"], "rw.joined");
    for bad in [json!({"room": ""}), json!({"room": "a b"}), json!({"room": "*"}), json!({"room": "r".repeat(129)}), json!({})] {
        assert_eq!(code(&ana.command("rw.join", bad.clone()).await), "envelope.invalid", "{bad}");
    }
}
