//! Another number of shards over the same log (OPERATING.md, "The log on disk"): sessions, members and messages stay.

use crate::client::{Client, Hello, payloads};
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::{Value, json};

const SESSIONS: usize = 8;

/// The state that must be the same before and after.
async fn seen(gateway: &crate::gateway::Gateway, session: &str) -> Value {
    let mut cleo = Client::enter(gateway, Hello::new(session, "cleo").with("start", json!("oldest"))).await;
    let messages: Vec<Value> = cleo
        .settle()
        .await
        .iter()
        .filter(|it| it["type"] == "chat")
        .map(|it| json!([it["seq"], it["from"], it["payload"]]))
        .collect();
    let id = cleo.fresh_id();
    cleo.send(&json!({"type": "rw.history", "id": id, "session_id": session, "payload": {}})).await;
    cleo.take("rw.history_end").await;
    let history = cleo.heard().await;
    let page = cleo.command("rw.members", json!({"room": "ops"})).await;
    let in_room: Vec<Value> =
        page["payload"]["members"].as_array().unwrap().iter().map(|it| json!([it["client_id"], it["data"]])).collect();
    let seen = json!([cleo.welcome["epoch"], cleo.welcome["oldest_seq"], messages, history, in_room]);
    cleo.close().await;
    seen
}

#[tokio::test]
async fn sessions_stay_whole_on_one_two_four_and_one_shard() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "1")]);
    let names: Vec<String> = (0..SESSIONS).map(|number| format!("s-{number}")).collect();
    let (mut positions, mut befores) = (Vec::new(), Vec::new());
    for name in &names {
        let mut ana = Client::join(&gateway, name, "ana").await;
        let mut ben = Client::join(&gateway, name, "ben").await;
        assert_eq!(ben.command("rw.join", json!({"room": "ops"})).await["type"], "rw.joined");
        assert_eq!(ben.command("rw.presence.set", json!({"data": {"at": name}})).await["type"], "rw.presence.ok");
        for number in 1..=5 {
            ana.send(&json!({"type": "chat", "id": format!("id-{number}"), "session_id": name, "payload": number})).await;
            ana.answer(&format!("id-{number}")).await;
        }
        ana.publish("room:ops", "for the room").await;
        ana.publish("session", "x".repeat(60_000)).await;
        positions.push(ben.position(3));
        befores.push(seen(&gateway, name).await);
    }
    for (round, shards) in ["2", "4", "1"].into_iter().enumerate() {
        stop(&mut gateway);
        gateway = log.with(&[("server.shards", shards)], |settings| gateway.again_with(settings));
        for ((name, position), before) in names.iter().zip(&positions).zip(&befores) {
            assert_eq!(seen(&gateway, name).await, *before, "{shards} shards");
            // Resumes where it was, in its room.
            let mut ben = Client::enter(&gateway, Hello::new(name, "ben").with("resume", position.clone())).await;
            assert_eq!((&ben.welcome["recovered"], &ben.welcome["rooms"]), (&json!(true), &json!(["ops"])), "{}", ben.welcome);
            let heard = payloads(&ben.settle().await);
            assert_eq!(heard[..3], [json!(4), json!(5), json!("for the room")], "{shards} shards");
            // Repeats are known.
            let mut ana = Client::join(&gateway, name, "ana").await;
            ana.send(&json!({"type": "chat", "id": "id-2", "session_id": name, "payload": 2})).await;
            assert_eq!(ana.answer("id-2").await["payload"], json!({"seq": 2, "duplicate": true}));
        }
        let generations: Vec<String> = std::fs::read_dir(log.0.join("log"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.parse::<u32>().is_ok())
            .collect();
        assert_eq!(generations, [(round + 2).to_string()]);
    }
    // On one shard again, and with new messages.
    let mut dan = Client::join(&gateway, "s-0", "dan").await;
    assert_eq!(dan.publish("session", "on").await, 8);
    stop(&mut gateway);
    let verified =
        std::process::Command::new(env!("CARGO_BIN_EXE_ringway")).args(["log", "verify"]).arg(log.0.join("log")).output();
    let verified = verified.unwrap();
    assert!(verified.status.success() && verified.stdout.starts_with(b"OK: 1 shards"), "{verified:?}");
}
