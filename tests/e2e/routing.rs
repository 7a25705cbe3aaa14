//! Addresses (protocol.md section 3): the receivers of a message.

use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use crate::token::token_with;
use serde_json::json;

async fn with_role(gateway: &Gateway, client_id: &str, role: &str) -> Client {
    let token = token_with(client_id, &json!({"roles": [role]}));
    Client::enter(gateway, Hello::new("s", client_id).with("auth_token", token)).await
}

#[tokio::test]
async fn each_address_reaches_its_own() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana/phone").await;
    let mut laptop = Client::join(&gateway, "s", "ana/laptop").await;
    let mut ben = with_role(&gateway, "ben", "agent").await;
    let mut cleo = with_role(&gateway, "cleo", "guest").await;
    assert_eq!(ben.command("rw.join", json!({"room": "ops"})).await["type"], "rw.joined");

    for (to, payload) in [
        (json!(null), "default"),
        (json!("session"), "session"),
        (json!("client:ana/laptop"), "client"),
        (json!("user:ana"), "user"),
        (json!("room:ops"), "room"),
        (json!("role:guest"), "role"),
        (json!(["client:cleo", "room:ops"]), "several"),
        (json!(["role:agent", "user:ben"]), "once"),
        (json!("room:nobody"), "nobody"),
        (json!("role:nobody"), "nobody"),
    ] {
        ana.publish(to, payload).await;
    }
    assert_eq!(laptop.heard().await, ["default", "session", "client", "user"]);
    assert_eq!(ben.heard().await, ["default", "session", "room", "several", "once"]);
    assert_eq!(cleo.heard().await, ["default", "session", "role", "several"]);
    assert!(ana.heard().await.iter().all(|payload| payload == "user"), "not its own to the session");
}

#[tokio::test]
async fn what_is_delivered_is_the_envelope_with_its_additions() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let payload = r#"{"b":1.50,"a":["\u00e9\/"],"__proto__":{}}"#;
    let meta = r#"{"x":true}"#;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    ana.send_text(&format!(
        r#"{{"type":"tool.call","id":"m-1","session_id":"s","to":"client:ben","reply_to":"m-0","traceparent":"{traceparent}","meta":{meta},"payload":{payload}}}"#
    ))
    .await;
    let ack = ana.answer("m-1").await;
    assert_eq!(ack["payload"]["seq"], 1);
    ana.say("client:ben", json!({"after": true})).await;
    let delivered = ben.next().await;
    for (key, value) in [
        ("type", json!("tool.call")),
        ("id", json!("m-1")),
        ("session_id", json!("s")),
        ("to", json!("client:ben")),
        ("reply_to", json!("m-0")),
        ("traceparent", json!(traceparent)),
        ("meta", json!({"x": true})),
        ("seq", json!(1)),
        ("from", json!("ana")),
    ] {
        assert_eq!(delivered[key], value, "{key}: {delivered}");
    }
    assert!(delivered["ts"].is_u64());
    let made = ben.next().await["traceparent"].as_str().unwrap().to_owned();
    assert!(made.len() == 55 && made.starts_with("00-"), "{made}");
}

#[tokio::test]
async fn echo_delivers_its_own_in_the_order() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::enter(&gateway, Hello::new("s", "ana").with("echo", true)).await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    for number in 0..5 {
        ana.publish("session", number).await;
        ben.publish("session", number + 100).await;
    }
    assert_eq!(ana.heard().await, [0, 100, 1, 101, 2, 102, 3, 103, 4, 104]);
    assert_eq!(ben.heard().await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn nobody_of_that_name_is_an_error_that_says_so() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    for (to, error, part) in [
        (json!("client:zoe"), "route.no_such_member", "zoe"),
        (json!("user:zoe"), "route.no_such_member", "zoe"),
        (json!(["client:ben", "client:zoe"]), "route.no_such_member", "zoe"),
        (json!("intent:book"), "route.no_agent", "book"),
        (json!(["channel:a", "session"]), "envelope.invalid", "channel"),
        (json!(["intent:a", "session"]), "envelope.invalid", "intent"),
        (json!("nobody"), "envelope.invalid", ""),
        (json!([]), "envelope.invalid", ""),
    ] {
        let id = ana.say(to.clone(), "lost").await;
        let answer = ana.answer(&id).await;
        assert_eq!(code(&answer), error, "{to}");
        assert!(answer["payload"]["message"].as_str().unwrap().contains(part), "{answer}");
        assert!(answer["payload"]["details"]["frame"].as_u64().unwrap() >= 2, "{answer}");
    }
    assert!(ben.heard().await.is_empty(), "all of a message's addresses or none");
    let other = ana.fresh_id();
    ana.send(&json!({"type": "chat", "id": other, "session_id": "elsewhere", "payload": 1})).await;
    assert_eq!(code(&ana.answer(&other).await), "session.not_attached");
}

#[tokio::test]
async fn the_order_is_one_for_all() {
    let gateway = Gateway::start(&[("limits.messages_per_second", "0")]);
    let mut readers = Vec::new();
    for name in ["r1", "r2", "r3"] {
        readers.push(Client::join(&gateway, "s", name).await);
    }
    let mut writers = Vec::new();
    for name in ["w1", "w2"] {
        writers.push(Client::join(&gateway, "s", name).await);
    }
    for number in 0..200 {
        for writer in &mut writers {
            writer.say("session", number).await;
        }
    }
    for writer in &mut writers {
        writer.settle().await;
    }
    let mut orders = Vec::new();
    for reader in &mut readers {
        let heard = reader.settle().await;
        assert_eq!(heard.len(), 400);
        orders.push(heard.iter().map(|message| (message["seq"].as_u64().unwrap(), message["id"].clone())).collect::<Vec<_>>());
    }
    assert!(orders[0].windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(orders.iter().all(|order| *order == orders[0]));
}
