//! Time goes on for members while no gateway runs (protocol.md section 5, "What a restart keeps").

use crate::client::Client;
use crate::gateway::Gateway;
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn event(message: &Value) -> (&str, &str) {
    (message["payload"]["client_id"].as_str().unwrap(), message["payload"]["event"].as_str().unwrap())
}

async fn watching(gateway: &Gateway) -> Client {
    let mut ana = Client::join(gateway, "s", "ana").await;
    assert_eq!(ana.command("rw.watch", json!({"presence": true})).await["type"], "rw.watching");
    ana
}

async fn members(client: &mut Client) -> Vec<String> {
    let page = client.command("rw.members", json!({})).await;
    let members = page["payload"]["members"].as_array().unwrap();
    members.iter().map(|member| member["client_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_member_unseen_is_let_go_though_the_gateway_was_not_there() {
    const UNSEEN_MS: u64 = 6_000;
    let log = LogFolder::new();
    let unseen_ms = UNSEEN_MS.to_string();
    let mut gateway = log.start(&[("session.member_unseen_ms", &unseen_ms), ("session.presence_grace_ms", "100")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    Client::join(&gateway, "s", "ben").await.close().await;
    gateway.until_metric("ringway_members_present", "", |present| present == 1);
    assert_eq!(members(&mut ana).await, ["ana", "ben"]);
    // Else the session would be forgotten with its members.
    ana.publish("session", "on").await;
    stop(&mut gateway);
    tokio::time::sleep(Duration::from_millis(UNSEEN_MS)).await;
    let started = Instant::now();
    gateway = gateway.again();
    let mut ana = Client::join(&gateway, "s", "ana").await;
    assert_eq!((&ana.welcome["created"], &ana.welcome["seq"]), (&json!(false), &json!(1)), "{}", ana.welcome);
    while members(&mut ana).await != ["ana"] {
        // If its time began anew this would take twice as long.
        assert!(started.elapsed() < Duration::from_millis(UNSEEN_MS / 2), "the time before the start counts");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_return_within_the_grace_is_no_event_over_a_start() {
    let log = LogFolder::new();
    for end in [Gateway::kill, stop] {
        let mut gateway = log.start(&[("session.presence_grace_ms", "60000")]);
        let mut ana = watching(&gateway).await;
        let ben = Client::join(&gateway, "s", "ben").await;
        ana.take("rw.presence").await;
        ben.vanish().await;
        gateway.until_metric("ringway_members_present", "", |present| present == 1);
        // Behind it in the log: once this is acknowledged, that is written too.
        ana.publish("session", "on").await;
        end(&mut gateway);
        gateway = gateway.again();
        let mut ana = watching(&gateway).await;
        let ben = Client::join(&gateway, "s", "ben").await;
        assert!(ana.settle().await.iter().all(|message| message["type"] != "rw.presence"), "it was never away");
        ben.close().await;
        assert_eq!(event(&ana.take("rw.presence").await), ("ben", "leave"));
        stop(&mut gateway);
    }
}

#[tokio::test]
async fn who_was_told_lost_joins_anew_and_who_was_there_is_lost_after_its_grace() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("session.presence_grace_ms", "100")]);
    let mut ana = watching(&gateway).await;
    let ben = Client::join(&gateway, "s", "ben").await;
    ana.take("rw.presence").await;
    ben.vanish().await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "lost"));
    let _cleo = Client::join(&gateway, "s", "cleo").await;
    ana.publish("session", "on").await;
    gateway.kill();
    gateway = log.with(&[("session.presence_grace_ms", "5000")], |settings| gateway.again_with(settings));
    let mut ana = watching(&gateway).await;
    let _ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(event(&ana.take("rw.presence").await), ("ben", "join"), "it was told lost before");
    assert_eq!(
        event(&ana.take("rw.presence").await),
        ("cleo", "lost"),
        "it was there when the gateway ended, and has not come back"
    );
}

#[tokio::test]
async fn a_post_is_idempotent_over_a_start() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "2")]);
    let message =
        |payload: &str| json!({"type": "chat", "id": "post-1", "session_id": "p", "to": "channel:a", "payload": payload});
    let mut reader = Client::join(&gateway, "channel:a", "reader").await;
    let mut poster = Client::join(&gateway, "p", "poster").await;
    poster.send(&message("once")).await;
    let first = poster.answer("post-1").await;
    assert_eq!(reader.heard().await, ["once"]);
    for end in [Gateway::kill, stop] {
        end(&mut gateway);
        gateway = gateway.again();
        let mut reader = Client::join(&gateway, "channel:a", "reader").await;
        let mut poster = Client::join(&gateway, "p", "poster").await;
        poster.send(&message("once")).await;
        let again = poster.answer("post-1").await;
        assert_eq!(again["payload"], json!({"seq": first["payload"]["seq"], "duplicate": true}), "{again}");
        poster.send(&message("other")).await;
        assert_eq!(crate::client::code(&poster.answer("post-1").await), "envelope.id_reused");
        assert_eq!(reader.heard().await, [] as [Value; 0]);
    }
}
