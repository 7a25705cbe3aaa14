//! More sessions on one connection (protocol.md section 4), at home on the connection's shard and on another.

use crate::client::{Client, Hello, code, payloads};
use crate::gateway::Gateway;
use crate::token::token_with;
use serde_json::{Value, json};

/// The names of sessions at home on shard 0 and on shard 1.
pub async fn homes(gateway: &Gateway) -> [String; 2] {
    let mut found = [None, None];
    for number in 0..64 {
        let session = format!("home-{number}");
        let probe = Client::join(gateway, &session, "probe").await;
        let id = probe.welcome["connection_id"].as_str().unwrap().to_owned();
        let (status, body) = gateway.admin(&format!("/v1/connections/{id}"));
        assert_eq!(status, 200, "{body}");
        let shard = serde_json::from_str::<Value>(&body).unwrap()["shard"].as_u64().unwrap() as usize;
        probe.close().await;
        found[shard] = Some(session);
        if let [Some(first), Some(second)] = &found {
            return [first.clone(), second.clone()];
        }
    }
    panic!("64 sessions on one shard of two: {found:?}");
}

#[tokio::test]
async fn a_connection_is_in_sessions_of_both_shards_until_it_detaches() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let [near, far] = homes(&gateway).await;
    let mut agent = Client::join(&gateway, &near, "agent").await;
    let mut ana = Client::join(&gateway, &far, "ana").await;
    ana.publish("session", "before").await;

    let attached = agent.command_in(&far, "rw.attach", json!({"start": "oldest"})).await;
    assert_eq!(attached["type"], "rw.attached", "{attached}");
    let start = &attached["payload"];
    assert_eq!((&start["created"], &start["seq"], &start["start_seq"]), (&json!(false), &json!(1), &json!(1)), "{start}");
    assert_eq!(start["epoch"], ana.welcome["epoch"]);
    assert_eq!(agent.take("chat").await["payload"], "before");
    let caught_up = agent.take("rw.caught_up").await;
    assert_eq!((&caught_up["session_id"], &caught_up["payload"]["seq"]), (&json!(far), &json!(1)));

    ana.publish("client:agent", "to you").await;
    ana.publish("session", "to all").await;
    let heard = [agent.take("chat").await, agent.take("chat").await];
    assert_eq!(payloads(&heard), ["to you", "to all"]);
    assert!(heard.iter().all(|message| message["session_id"] == *far));

    // In the other direction: forwarded to its home, acknowledged from there.
    for number in 0..10 {
        let id = agent.fresh_id();
        agent.send(&json!({"type": "chat", "id": id, "session_id": far, "payload": number})).await;
        let ack = agent.answer(&id).await;
        assert_eq!((&ack["type"], &ack["payload"]["seq"]), (&json!("rw.ack"), &json!(4 + number)), "{ack}");
    }
    assert_eq!(ana.heard().await, (0..10).collect::<Vec<_>>());

    let members = agent.command_in(&far, "rw.members", json!({})).await;
    let names: Vec<&Value> =
        members["payload"]["members"].as_array().unwrap().iter().map(|member| &member["client_id"]).collect();
    assert!(names.contains(&&json!("agent")) && names.contains(&&json!("ana")), "{members}");
    let pong = agent.command_in(&far, "rw.ping", json!({})).await;
    assert_eq!((&pong["payload"]["seq"], &pong["payload"]["delivered_seq"]), (&json!(13), &json!(3)), "{pong}");

    assert_eq!(agent.command_in(&far, "rw.detach", json!({})).await["type"], "rw.detached");
    ana.publish("session", "behind its back").await;
    let id = agent.fresh_id();
    agent.send(&json!({"type": "chat", "id": id, "session_id": far, "payload": 1})).await;
    assert_eq!(code(&agent.answer(&id).await), "session.not_attached");
    assert!(agent.heard().await.is_empty());
    gateway.until_metric("ringway_mirrors", "", |mirrors| mirrors == 0);
}

#[tokio::test]
async fn attach_resumes_and_is_refused_like_a_hello() {
    let gateway = Gateway::start(&[("server.shards", "2"), ("limits.max_attached_sessions", "3")]);
    let [near, far] = homes(&gateway).await;
    let mut ana = Client::join(&gateway, &far, "ana").await;
    let token = token_with("agent", &json!({"sid": [near, far, "extra.*"]}));
    let mut agent = Client::enter(&gateway, Hello::new(&near, "agent").with("auth_token", token)).await;
    assert_eq!(agent.command_in(&far, "rw.attach", json!({})).await["type"], "rw.attached");
    assert_eq!(code(&agent.command_in(&far, "rw.attach", json!({})).await), "session.already_attached");
    assert_eq!(code(&agent.command_in("other", "rw.attach", json!({})).await), "auth.forbidden_session");
    assert_eq!(code(&agent.command_in("extra.0", "rw.attach", json!({"create": false})).await), "session.unknown");
    assert_eq!(agent.command_in("extra.1", "rw.attach", json!({})).await["type"], "rw.attached");
    assert_eq!(code(&agent.command_in("extra.2", "rw.attach", json!({})).await), "limit.attached");

    assert_eq!(agent.command_in(&far, "rw.detach", json!({})).await["type"], "rw.detached");
    for number in 1..=5 {
        ana.publish("session", number).await;
    }
    let resume = json!({"epoch": ana.welcome["epoch"], "seq": 2});
    agent.settle().await;
    assert_eq!(agent.command_in(&far, "rw.attach", json!({"resume": resume})).await["payload"]["start_seq"], 3);
    let replay = [agent.take("chat").await, agent.take("chat").await, agent.take("chat").await];
    assert_eq!(payloads(&replay), [3, 4, 5]);
    assert_eq!(agent.take("rw.caught_up").await["payload"]["seq"], 5);
}
