//! Resume (protocol.md section 5): missed messages come in order, then `rw.caught_up`, then new ones.

use crate::client::{Client, Hello};
use crate::gateway::Gateway;
use serde_json::{Value, json};

/// Says hello and returns the client with what came up to `rw.caught_up`.
async fn enter(gateway: &Gateway, hello: Hello) -> (Client, Vec<Value>) {
    let mut client = Client::connect(gateway).await;
    client.hello(&hello).await;
    let welcome = client.next().await;
    assert_eq!(welcome["type"], "rw.welcome", "{welcome}");
    client.welcome = welcome["payload"].clone();
    let mut replay = Vec::new();
    loop {
        let message = client.next().await;
        if message["type"] == "rw.caught_up" {
            assert_eq!(message["payload"]["seq"], client.welcome["seq"], "{message}");
            return (client, replay);
        }
        replay.push(message["payload"].clone());
    }
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_over_a_lost_connection() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let ben = Client::join(&gateway, "s", "ben").await;
    let position = ben.position(0);
    ana.publish("session", 1).await;
    ben.vanish().await;
    for number in 2..=5 {
        ana.publish("client:ben", number).await;
    }
    ana.publish("role:other", "not his").await;
    let (mut ben, replay) = enter(&gateway, Hello::new("s", "ben").with("resume", position)).await;
    assert_eq!(replay, [1, 2, 3, 4, 5], "the lines for one who is away wait in the log");
    assert_eq!((&ben.welcome["recovered"], &ben.welcome["start_seq"]), (&json!(true), &json!(1)));
    ana.publish("session", 6).await;
    assert_eq!(ben.heard().await, [6]);
}

#[tokio::test]
async fn where_it_starts_without_a_resume() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 1..=10 {
        ana.publish("session", number).await;
    }
    for (start, expected) in [
        (json!("cursor"), vec![]),
        (json!("head"), vec![]),
        (json!("oldest"), (1..=10).collect()),
        (json!({"last": 3}), vec![8, 9, 10]),
        (json!({"last": 50}), (1..=10).collect::<Vec<i32>>()),
    ] {
        let (ben, replay) = enter(&gateway, Hello::new("s", "ben").with("start", start.clone())).await;
        assert_eq!(replay, expected, "{start}");
        ben.close().await;
    }
}

#[tokio::test]
async fn what_retention_dropped_is_told() {
    let gateway = Gateway::start(&[("session.history_messages", "5")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let ben = Client::join(&gateway, "s", "ben").await;
    let position = ben.position(2);
    ben.vanish().await;
    for number in 1..=20 {
        ana.publish("session", number).await;
    }
    let (ben, replay) = enter(&gateway, Hello::new("s", "ben").with("resume", position)).await;
    assert_eq!((&ben.welcome["recovered"], &ben.welcome["oldest_seq"]), (&json!(false), &json!(16)), "{}", ben.welcome);
    assert_eq!(replay, [json!({"from": 3, "to": 15}), json!(16), json!(17), json!(18), json!(19), json!(20)]);
}

#[tokio::test]
async fn an_unknown_epoch_and_a_future_place_do_not_recover_in_silence() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for number in 1..=3 {
        ana.publish("session", number).await;
    }
    let epoch = ana.welcome["epoch"].clone();
    let (ahead, replay) = enter(&gateway, Hello::new("s", "ben").with("resume", json!({"epoch": epoch, "seq": 1000}))).await;
    assert_eq!((&ahead.welcome["rewound_to"], &ahead.welcome["start_seq"]), (&json!(3), &json!(4)), "{}", ahead.welcome);
    assert!(replay.is_empty());
    for (held, rewound_to) in [(2, json!(0)), (0, Value::Null)] {
        let resume = json!({"epoch": "00ff", "seq": held});
        let (lost, replay) = enter(&gateway, Hello::new("s", "cleo").with("resume", resume)).await;
        let told = (&lost.welcome["recovered"], &lost.welcome["rewound_to"], &lost.welcome["start_seq"]);
        assert_eq!(told, (&json!(false), &rewound_to, &json!(1)), "{}", lost.welcome);
        assert_eq!(replay, [1, 2, 3]);
    }
}

#[tokio::test]
async fn a_long_replay_comes_whole_before_what_is_new() {
    let gateway = Gateway::start(&[("limits.messages_per_second", "0"), ("limits.bytes_per_second", "0")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let filler = "x".repeat(2_000);
    for number in 0..500 {
        ana.say("session", json!([number, filler])).await;
    }
    ana.settle().await;
    let (mut ben, replay) = enter(&gateway, Hello::new("s", "ben").with("start", "oldest")).await;
    assert_eq!(replay.len(), 500);
    assert!(replay.iter().enumerate().all(|(number, payload)| payload[0] == number));
    ana.publish("session", "new").await;
    assert_eq!(ben.heard().await, ["new"]);
}
