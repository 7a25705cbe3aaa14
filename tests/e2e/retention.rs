//! Retention of sessions, each by its own bounds (protocol.md section 5), and a log without room, which refuses new messages and
//! keeps the old ones (OPERATING.md, "The log on disk").

use crate::client::{Client, Hello, code, payloads};
use crate::gateway::Gateway;
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Messages of this take 16 places of a chunk.
const LONG: usize = 60_000;

/// The oldest seq that a newcomer is told, and the messages that it gets.
pub async fn retained(gateway: &Gateway, session: &str) -> (u64, Vec<Value>) {
    let mut client = Client::enter(gateway, Hello::new(session, "newcomer").with("start", json!("oldest"))).await;
    let oldest = client.welcome["oldest_seq"].as_u64().unwrap();
    let messages = client.settle().await;
    let seqs: Vec<u64> =
        messages.iter().filter(|message| message["type"] == "chat").map(|it| it["seq"].as_u64().unwrap()).collect();
    // Messages dropped between the welcome and the replay are reported.
    let gone = messages.iter().find(|message| message["type"] == "rw.gap" && message["payload"]["from"] == oldest);
    let first = gone.map_or(oldest, |gap| gap["payload"]["to"].as_u64().unwrap() + 1);
    assert_eq!(seqs.first().copied(), (!seqs.is_empty()).then_some(first), "the first there is");
    client.close().await;
    let messages: Vec<Value> = messages.into_iter().filter(|message| message["type"] == "chat").collect();
    (oldest, payloads(&messages))
}

/// The gap that a reader at `seq` is told of.
async fn gap_from(gateway: &Gateway, epoch: &Value, seq: u64) -> Value {
    let resume = json!({"epoch": epoch, "seq": seq});
    let mut client = Client::enter(gateway, Hello::new("s", "behind").with("resume", resume)).await;
    assert_eq!(client.welcome["recovered"], false, "{}", client.welcome);
    client.take("rw.gap").await["payload"].clone()
}

#[tokio::test]
async fn a_session_retains_so_many_bytes_and_takes_none_of_anothers() {
    let log = LogFolder::new();
    let settings = [("log.retention_bytes", "200000"), ("log.retention_messages", "1000000")];
    let mut gateway = log.start(&settings);
    let mut quiet = Client::join(&gateway, "quiet", "ana").await;
    quiet.publish("session", "kept").await;
    let mut noisy = Client::join(&gateway, "s", "ben").await;
    let epoch = noisy.welcome["epoch"].clone();
    let noise = "x".repeat(LONG);
    for _ in 0..70 {
        noisy.publish("session", noise.as_str()).await;
    }
    for _ in 0..2 {
        // A record has 60,000 bytes and some: three fit.
        let (oldest, payloads) = retained(&gateway, "s").await;
        assert_eq!((oldest, payloads.len()), (68, 3));
        assert_eq!(gap_from(&gateway, &epoch, 10).await, json!({"from": 11, "to": 67}));
        assert_eq!(retained(&gateway, "quiet").await, (1, vec![json!("kept")]));
        stop(&mut gateway);
        gateway = gateway.again();
    }
}

#[tokio::test]
async fn a_session_retains_so_many_messages_on_disk() {
    let log = LogFolder::new();
    let gateway = log.start(&[("log.retention_messages", "4"), ("session.history_messages", "2")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let epoch = ana.welcome["epoch"].clone();
    for number in 1..=9 {
        ana.publish("session", number).await;
    }
    // The limit for logs in memory alone is not the one in force.
    assert_eq!(retained(&gateway, "s").await, (6, [6, 7, 8, 9].map(Value::from).to_vec()));
    assert_eq!(gap_from(&gateway, &epoch, 1).await, json!({"from": 2, "to": 5}));
}

#[tokio::test]
async fn a_message_goes_by_its_own_age_and_not_by_its_files() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("log.retention_age_s", "4")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    ana.publish("session", "old").await;
    let published = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    ana.publish("session", "young").await;
    assert_eq!(retained(&gateway, "s").await.0, 1, "after {:?}", published.elapsed());
    // The age counts from the message's arrival, over a start.
    gateway.kill();
    gateway = gateway.again();
    let mut oldest = 1;
    while oldest == 1 {
        assert!(published.elapsed() < Duration::from_secs(30), "it stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
        oldest = retained(&gateway, "s").await.0;
    }
    assert!(published.elapsed() >= Duration::from_secs(4), "went after {:?}", published.elapsed());
    assert_eq!(gateway.metric("ringway_drops_total", "log_age"), 1, "the younger one stayed when the older one went");
}

/// Fills the log until it has no room, and sees that all else goes on. `make_room` makes room.
async fn fills_and_goes_on(gateway: &Gateway, limit: &str, make_room: impl Fn(&Gateway)) {
    let mut ana = Client::join(gateway, "s", "ana").await;
    let mut ben = Client::join(gateway, "s", "ben").await;
    let noise = "x".repeat(LONG);
    let mut taken = 0;
    let refusal = loop {
        let id = ana.say("session", noise.as_str()).await;
        let answer = ana.answer(&id).await;
        if answer["type"] != "rw.ack" {
            break answer;
        }
        taken += 1;
        assert!(taken < 5_000, "never full");
    };
    assert_eq!(code(&refusal), "limit.disk", "{refusal}");
    assert!(refusal["payload"]["retry_after_ms"].is_u64(), "{refusal}");
    assert_eq!(gateway.metric("ringway_log_full", ""), 1);
    assert!(gateway.metric("ringway_limits_reached_total", &format!("limit=\"{limit}\"")) > 0, "{limit}");
    // Accepted messages are there, and work that needs no log goes on.
    assert_eq!(ben.heard().await.len(), taken);
    ana.send(&json!({"type": "chat", "id": "e", "session_id": "s", "payload": "passing", "ephemeral": true})).await;
    assert_eq!(ben.take("chat").await["payload"], "passing");
    assert_eq!(retained(gateway, "s").await.1.len(), taken);
    make_room(gateway);
    gateway.until_metric("ringway_log_full", "", |full| full == 0);
    ana.publish("session", "again").await;
    assert_eq!(ben.heard().await, ["again"]);
}

#[tokio::test]
async fn a_directory_at_its_cap_refuses_what_is_new_and_goes_on_without_a_restart() {
    let log = LogFolder::new();
    let settings = [("log.max_bytes", "16777216"), ("session.history_messages", "1000000")];
    let gateway = log.start(&settings);
    fills_and_goes_on(&gateway, "log_bytes", |gateway| {
        log.with(&[("log.max_bytes", "16777216"), ("log.retention_messages", "1")], |new| gateway.reload(new));
    })
    .await;
    let bytes: u64 =
        std::fs::read_dir(log.0.join("log/1/shard-0")).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 16_777_216, "{bytes}");
}

async fn a_small_disk(limit: &str, reserve: &[(&str, &str)]) {
    let log = LogFolder::new();
    let mut settings = vec![
        ("log.segment_bytes", "2097152"),
        ("session.history_messages", "1000000"),
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
    ];
    settings.extend(reserve);
    let Some(gateway) = Gateway::start_on_small_disk(&log.0, 25_165_824, 8_388_608, &settings) else {
        eprintln!("skipped: this host lets nobody mount");
        return;
    };
    let path = log.0.join("filler");
    let filler: &Path = &path;
    fills_and_goes_on(&gateway, limit, |gateway| std::fs::remove_file(gateway.inside(filler)).unwrap()).await;
}

#[tokio::test]
async fn what_must_stay_free_of_the_file_system_stays_free() {
    a_small_disk("log_reserve", &[("log.reserve_bytes", "8388608")]).await;
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_goes_on_without_a_restart() {
    a_small_disk("disk", &[]).await;
}
