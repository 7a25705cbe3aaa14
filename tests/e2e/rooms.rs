//! Rooms (protocol.md section 6): joins and leaves have their places in the order.

use crate::client::{Client, Hello, code, payloads};
use crate::gateway::Gateway;
use crate::history::page;
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

#[tokio::test]
async fn what_came_while_it_was_out_is_not_its_own_until_it_asks_for_it_by_a_hello() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let position = ben.position(0);
    ben.command("rw.join", json!({"room": "ops"})).await;
    ana.publish("room:ops", "in").await;
    ben.command("rw.leave", json!({"room": "ops"})).await;
    ana.publish("room:ops", "out").await;
    ana.publish(json!(["room:ops", "room:other"]), "out of both").await;
    let read = async |client: &mut Client| {
        let (all, _) = page(client, json!({})).await;
        let (room, _) = page(client, json!({"room": "ops", "after": 0})).await;
        (payloads(&all), payloads(&room))
    };
    assert_eq!(ben.heard().await, ["in"], "live");
    assert_eq!(read(&mut ben).await, (vec![json!("in")], vec![json!("in")]), "in history");
    ben.close().await;
    for start in [("resume", position.clone()), ("start", json!("oldest"))] {
        let mut ben = Client::enter(&gateway, Hello::new("s", "ben").with(start.0, start.1.clone())).await;
        assert_eq!(ben.heard().await, ["in"], "{start:?}");
        ben.close().await;
    }
    // A join has its place: what came before it stays unread.
    let mut ben = Client::enter(&gateway, Hello::new("s", "ben").with("resume", position.clone())).await;
    ben.command("rw.join", json!({"room": "ops"})).await;
    ana.publish("room:ops", "in again").await;
    assert_eq!(ben.heard().await, ["in", "in again"]);
    let both = vec![json!("in"), json!("in again")];
    assert_eq!(read(&mut ben).await, (both.clone(), both.clone()));
    ben.close().await;
    // But rooms are no secret from who is in the session: a room that a hello names counts from the first message of its replay.
    for client in ["ben", "stranger"] {
        if client == "ben" {
            let mut ben = Client::enter(&gateway, Hello::new("s", "ben")).await;
            ben.command("rw.leave", json!({"room": "ops"})).await;
            ben.close().await;
        }
        let hello = Hello::new("s", client).with("rooms", json!(["ops"])).with("start", "oldest");
        let mut reader = Client::enter(&gateway, hello).await;
        let all = ["in", "out", "out of both", "in again"].map(|text| json!(text)).to_vec();
        assert_eq!(reader.heard().await, all, "{client}");
        assert_eq!(read(&mut reader).await, (all.clone(), all), "{client}");
        reader.close().await;
    }
}
