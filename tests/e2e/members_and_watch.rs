//! `rw.members` and `rw.watch` (protocol.md section 6).

use crate::client::{Client, Hello};
use crate::gateway::Gateway;
use crate::token::token_with;
use serde_json::{Value, json};

fn names(answer: &Value) -> Vec<&str> {
    answer["payload"]["members"].as_array().unwrap().iter().map(|member| member["client_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn members_come_in_pages_with_their_roles_and_states() {
    let gateway = Gateway::start(&[]);
    let token = token_with("a0", &json!({"roles": ["lead"]}));
    let mut first = Client::enter(&gateway, Hello::new("s", "a0").with("auth_token", token)).await;
    let mut others = Vec::new();
    for number in 1..7 {
        others.push(Client::join(&gateway, "s", &format!("a{number}")).await);
    }
    others.pop().unwrap().vanish().await;
    gateway.until_metric("ringway_members_present", "", |present| present == 6);
    let mut seen = Vec::new();
    let mut after = Value::Null;
    loop {
        let mut payload = json!({"limit": 3});
        if !after.is_null() {
            payload["after"] = after.clone();
        }
        let page = first.command("rw.members", payload).await;
        assert_eq!(page["type"], "rw.members", "{page}");
        assert!(names(&page).len() <= 3);
        seen.extend(page["payload"]["members"].as_array().unwrap().clone());
        after = page["payload"]["next"].clone();
        if after.is_null() {
            break;
        }
    }
    let found: Vec<&str> = seen.iter().map(|member| member["client_id"].as_str().unwrap()).collect();
    assert_eq!(found, ["a0", "a1", "a2", "a3", "a4", "a5", "a6"]);
    assert_eq!((&seen[0]["roles"], &seen[0]["state"]), (&json!(["lead"]), &json!("online")));
    assert_eq!(seen[6]["state"], "lost");
    assert!(seen[0]["since_at"].as_u64().unwrap() > 1_600_000_000_000);
}

#[tokio::test]
async fn a_rooms_watch_tells_of_that_room() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::enter(&gateway, Hello::new("s", "ana").with("rooms", json!(["ops"]))).await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let watching = ana.command("rw.watch", json!({"presence": true, "room": "ops"})).await;
    assert_eq!(names(&watching), ["ana"], "{watching}");
    assert_eq!((&watching["payload"]["seq"], &watching["payload"]["next"]), (&json!(0), &json!(null)));
    ben.command("rw.join", json!({"room": "other"})).await;
    ben.command("rw.join", json!({"room": "ops"})).await;
    let told = ana.take("rw.presence").await;
    assert_eq!(told["payload"], json!({"client_id": "ben", "event": "join", "room": "ops"}), "{told}");
    let page = ana.command("rw.members", json!({"room": "ops"})).await;
    assert_eq!(names(&page), ["ana", "ben"]);
    ben.command("rw.leave", json!({"room": "ops"})).await;
    let told = ana.take("rw.presence").await;
    assert_eq!((&told["payload"]["event"], &told["payload"]["room"]), (&json!("leave"), &json!("ops")));
    assert_eq!(ana.command("rw.watch", json!({"presence": false, "room": "ops"})).await["type"], "rw.watching");
    ben.command("rw.join", json!({"room": "ops"})).await;
    assert!(ana.settle().await.is_empty(), "it watches no more");
}

#[tokio::test]
async fn a_client_watches_as_many_rooms_as_it_may_be_in() {
    let gateway = Gateway::start(&[("limits.rooms_per_client", "2")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    // The session, two rooms, and one of them again.
    for payload in [json!({}), json!({"room": "a"}), json!({"room": "b"}), json!({"room": "a"}), json!({})] {
        let answer = ana.command("rw.watch", payload.clone()).await;
        assert_eq!(answer["type"], "rw.watching", "{payload}: {answer}");
    }
    let answer = ana.command("rw.watch", json!({"room": "c"})).await;
    assert_eq!(crate::client::code(&answer), "limit.rooms", "{answer}");
    assert_eq!(gateway.metric("ringway_limits_reached_total", "rooms_per_client"), 1);
    let mut ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(ben.command("rw.watch", json!({"room": "c"})).await["type"], "rw.watching", "each client has its own");
    assert_eq!(ana.command("rw.watch", json!({"presence": false, "room": "a"})).await["type"], "rw.watching");
    assert_eq!(ana.command("rw.watch", json!({"room": "c"})).await["type"], "rw.watching");
}
