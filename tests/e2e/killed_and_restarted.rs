//! The log on disk (protocol.md section 5, "Acknowledgement", "Resume"): acknowledged messages outlive the process, and so do
//! sessions and members.

use crate::client::{Client, Hello, payloads};
use crate::gateway::{Gateway, folder, run};
use crate::token::token_with;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ROUNDS: u64 = 5;
/// Messages that each sends in a round, more than are acknowledged when the gateway is killed.
const MESSAGES: u64 = 60;

/// A directory for a log, gone with the test.
pub struct LogFolder(pub PathBuf);

impl LogFolder {
    pub fn new() -> Self {
        Self(folder())
    }

    /// A log that version 1 wrote: `ours`, and sessions and a room whose names have become reserved.
    pub fn of_version_1() -> Self {
        let log = Self::new();
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/log-own-names");
        let (from, to) = (kept.join("1/shard-0"), log.0.join("log/1/shard-0"));
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(kept.join("format"), log.0.join("log/format")).unwrap();
        for name in ["clean", "0000000000000000.seg"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        log
    }

    pub fn start(&self, settings: &[(&str, &str)]) -> Gateway {
        self.with(settings, Gateway::start)
    }

    /// Calls `work` with the settings of a gateway with this log.
    pub fn with<T>(&self, settings: &[(&str, &str)], what: impl FnOnce(&[(&str, &str)]) -> T) -> T {
        let path = format!("{:?}", self.0.join("log"));
        let mut all = vec![
            ("log.dir", path.as_str()),
            ("log.segment_bytes", "2097152"),
            ("limits.messages_per_second", "0"),
            ("limits.bytes_per_second", "0"),
        ];
        all.extend(settings);
        what(&all)
    }

    /// When the first shard's segments that are in use were begun, by their headers (Unix ms).
    fn segments_begun_ms(&self) -> Vec<u64> {
        let files = std::fs::read_dir(self.0.join("log/1/shard-0")).unwrap().map(|entry| entry.unwrap().path());
        let heads = files.map(|path| std::fs::read(path).unwrap()).filter(|bytes| bytes.starts_with(b"RWSEG"));
        heads.map(|bytes| u64::from_le_bytes(bytes[32..40].try_into().unwrap())).collect()
    }
}

impl Drop for LogFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends it with SIGTERM, in good order.
pub fn stop(gateway: &mut Gateway) {
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().code(), Some(0), "{:#?}", gateway.log());
}

/// A side of a conversation, through all its connections.
struct Talker {
    name: &'static str,
    epoch: Value,
    seq: u64,
    said: u64,
    /// The `seq` of each number that was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    /// The other's numbers as they came, each with its `seq`.
    heard: Vec<(u64, u64)>,
}

impl Talker {
    fn new(name: &'static str) -> Self {
        Self { name, epoch: Value::Null, seq: 0, said: 0, acknowledged: BTreeMap::new(), heard: Vec::new() }
    }

    fn id(&self, number: u64) -> String {
        format!("{}:{number}", self.name)
    }

    async fn say(&self, client: &mut Client, number: u64) {
        client.send(&json!({"type": "chat", "id": self.id(number), "session_id": "s", "payload": number})).await;
    }

    /// Takes what came: acknowledgements and the other's messages.
    fn absorb(&mut self, messages: &[Value]) {
        for message in messages {
            if message["type"] == "rw.ack" {
                let number = message["id"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
                let seq = message["payload"]["seq"].as_u64().unwrap();
                let first = self.acknowledged.insert(number, seq);
                assert!(
                    first.is_none_or(|first| first == seq && message["payload"]["duplicate"] == true),
                    "{first:?}: {message}"
                );
            } else if message["type"] == "chat" {
                let seq = message["seq"].as_u64().unwrap();
                assert!(seq > self.seq, "{} is behind {}: {message}", seq, self.seq);
                self.seq = seq;
                self.heard.push((message["payload"].as_u64().unwrap(), seq));
            } else {
                assert_eq!(message["type"], "rw.goaway", "{message}");
            }
        }
    }

    /// Resumes, and resends messages that were not acknowledged, and the last that was.
    async fn enter(&mut self, gateway: &Gateway) -> Client {
        let mut hello = Hello::new("s", self.name);
        if !self.epoch.is_null() {
            hello = hello.with("resume", json!({"epoch": self.epoch, "seq": self.seq}));
        }
        let mut client = Client::enter(gateway, hello).await;
        if !self.epoch.is_null() {
            assert_ne!(client.welcome["epoch"], self.epoch, "an unclean end begins a new epoch");
            assert_eq!(
                (&client.welcome["recovered"], &client.welcome["rewound_to"]),
                (&json!(true), &Value::Null),
                "{}",
                client.welcome
            );
        }
        self.epoch = client.welcome["epoch"].clone();
        if let Some((number, seq)) = self.acknowledged.last_key_value() {
            self.say(&mut client, *number).await;
            let ack = client.answer(&self.id(*number)).await;
            assert_eq!(ack["payload"], json!({"seq": seq, "duplicate": true}), "{ack}");
        }
        for number in (0..self.said).filter(|number| !self.acknowledged.contains_key(number)) {
            self.say(&mut client, number).await;
        }
        client
    }
}

async fn kill_rounds(settings: &[(&str, &str)]) {
    let log = LogFolder::new();
    let mut gateway = log.start(settings);
    let (mut ana, mut ben) = (Talker::new("ana"), Talker::new("ben"));
    for round in 0..ROUNDS {
        let (mut to_ana, mut to_ben) = (ana.enter(&gateway).await, ben.enter(&gateway).await);
        for _ in 0..MESSAGES {
            for (talker, client) in [(&mut ana, &mut to_ana), (&mut ben, &mut to_ben)] {
                talker.say(client, talker.said).await;
                talker.said += 1;
            }
        }
        // Somewhere in the middle: later in each round.
        let number = ana.said - MESSAGES + round * MESSAGES / ROUNDS;
        let ack = to_ana.answer(&ana.id(number)).await;
        ana.absorb(&[ack]);
        gateway.kill();
        ana.absorb(&to_ana.rest().await);
        ben.absorb(&to_ben.rest().await);
        gateway = gateway.again();
    }
    let (mut to_ana, mut to_ben) = (ana.enter(&gateway).await, ben.enter(&gateway).await);
    // The first pong comes behind all of the own messages, the second behind all of the other's.
    for _ in 0..2 {
        ana.absorb(&to_ana.settle().await);
        ben.absorb(&to_ben.settle().await);
    }
    for (speaker, hearer) in [(&ana, &ben), (&ben, &ana)] {
        let numbers: Vec<u64> = hearer.heard.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..speaker.said).collect::<Vec<u64>>(), "{} heard all, once and in order", hearer.name);
        let said: Vec<(u64, u64)> = speaker.acknowledged.iter().map(|(number, seq)| (*number, *seq)).collect();
        assert_eq!(said, hearer.heard, "each at the place that its acknowledgement named");
    }
    for name in ["write_seconds", "sync_seconds", "batch_bytes", "batch_records"] {
        gateway.until_metric(&format!("ringway_log_{name}_count"), "", |count| count > 0);
    }
    let written_bytes = gateway.metric("ringway_log_written_bytes_total", "");
    assert!(gateway.metric("ringway_log_batch_bytes_sum", "") >= written_bytes, "each write's bytes are counted");
    let own = gateway.metric("ringway_log_appends_total", "") + gateway.metric("ringway_log_state_records_total", "");
    // Marks are among them.
    gateway.until_metric("ringway_log_batch_records_sum", "", |records| records >= own);
    let reads = gateway.metric("ringway_log_reads_total", "");
    let mut cleo = Client::enter(&gateway, Hello::new("s", "cleo").with("start", json!("oldest"))).await;
    cleo.settle().await;
    assert!(gateway.metric("ringway_log_reads_total", "") > reads, "what is in earlier files is read from disk");
    assert_eq!(gateway.metric("ringway_log_chunks", ""), 1, "in memory is what was appended since the start");
    let earlier_files = log.segments_begun_ms().len() as u64 - 1;
    assert!(gateway.metric("ringway_log_bytes", "") > earlier_files * 1024 * 1024, "held is what is in the files");
    // The tools agree, on the directory of a gateway that runs.
    let verified =
        std::process::Command::new(env!("CARGO_BIN_EXE_ringway")).args(["log", "verify"]).arg(log.0.join("log")).output();
    let verified = verified.unwrap();
    assert!(verified.status.success() && verified.stdout.starts_with(b"OK"), "{verified:?}");
    let begun = log.segments_begun_ms();
    assert!(begun.len() > 1 && begun.iter().all(|ms| *ms > 1_600_000_000_000), "their ages let files go: {begun:?}");
}

#[tokio::test]
async fn nothing_written_is_lost_or_repeated_over_kills() {
    kill_rounds(&[("log.durability", r#""written""#)]).await;
}

#[tokio::test]
async fn nothing_synced_is_lost_or_repeated_over_kills() {
    kill_rounds(&[("log.durability", r#""synced""#)]).await;
}

/// A session with a room, data, a receipt and a role, ended in one way, and what is left of it.
async fn outlives(end: impl Fn(&mut Gateway), keeps_epoch: bool) {
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let lead = token_with("cleo", &json!({"roles": ["lead"]}));
    let cleo = Client::enter(&gateway, Hello::new("s", "cleo").with("auth_token", lead)).await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(ben.command("rw.join", json!({"room": "ops"})).await["type"], "rw.joined");
    assert_eq!(ben.command("rw.join", json!({"room": "left"})).await["type"], "rw.joined");
    assert_eq!(ben.command("rw.presence.set", json!({"data": {"typing": true}})).await["type"], "rw.presence.ok");
    for number in 1..=4 {
        ana.publish("session", number).await;
    }
    ana.publish("room:left", "in time").await;
    ana.publish("role:lead", "for the lead").await;
    assert_eq!(ben.command("rw.leave", json!({"room": "left"})).await["type"], "rw.left");
    ana.publish("room:left", "too late").await;
    ana.publish("room:ops", "for the room").await;
    ben.send(&json!({"type": "rw.received", "id": "r", "session_id": "s", "payload": {"seq": 2}})).await;
    // A receipt is kept within a second; behind it in the log: once this is acknowledged, that is written too.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let last = ben.publish("client:ana", "last").await;
    let (epoch, position) = (ana.welcome["epoch"].clone(), cleo.position(4));
    end(&mut gateway);
    let mut gateway = gateway.again();

    let mut ana = Client::join(&gateway, "s", "ana").await;
    assert_eq!(ana.welcome["epoch"] == epoch, keeps_epoch, "{epoch}: {}", ana.welcome);
    assert_eq!((&ana.welcome["seq"], &ana.welcome["created"]), (&json!(last), &json!(false)), "{}", ana.welcome);
    let page = ana.command("rw.members", json!({})).await;
    let members: Vec<[&Value; 3]> = page["payload"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| [&member["client_id"], &member["roles"], &member["data"]])
        .collect();
    assert_eq!(json!(members), json!([["ana", [], null], ["ben", [], {"typing": true}], ["cleo", ["lead"], null]]), "{page}");
    let page = ana.command("rw.members", json!({"room": "ops"})).await;
    assert_eq!(page["payload"]["members"][0]["client_id"], "ben", "{page}");

    let mut ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!((&ben.welcome["start_seq"], &ben.welcome["rooms"]), (&json!(3), &json!(["ops"])), "{}", ben.welcome);
    assert_eq!(payloads(&ben.settle().await), [json!(3), json!(4), json!("in time"), json!("for the room")]);
    let mut cleo = Client::enter(&gateway, Hello::new("s", "cleo").with("resume", position)).await;
    // The new token has no roles: messages for the lead are no longer for it.
    assert_eq!(cleo.heard().await, [] as [Value; 0]);
    // A newcomer: this client's ids start anew, and those of the others are remembered.
    let mut dan = Client::join(&gateway, "s", "dan").await;
    dan.publish("room:ops", "still there").await;
    dan.publish("room:left", "still gone").await;
    assert_eq!(ben.heard().await, ["still there"]);
    // Numbers go on where they ended.
    assert_eq!(dan.publish("session", "on").await, last + 3);
    gateway.kill();
}

#[tokio::test]
async fn sessions_and_members_outlive_a_kill() {
    outlives(Gateway::kill, false).await;
}

#[tokio::test]
async fn a_clean_stop_keeps_the_epoch() {
    outlives(stop, true).await;
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let log = LogFolder::new();
    let gateway = log.start(&[]);
    let (code, _, stderr) = run(&["serve", "--config", gateway.folder.join("ringway.toml").to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    let holder = format!("is in use by another process (pid {})", gateway.pid());
    assert!(stderr.contains("log.dir: ") && stderr.contains(&holder), "{stderr}");
    assert!(!stderr.contains("panic"), "{stderr}");
}

#[tokio::test]
async fn a_format_of_another_version_is_refused() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    stop(&mut gateway);
    let path = log.0.join("log/format");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("version = 2\n"), "{text}");
    std::fs::write(&path, text.replace("version = 2\n", "version = 3\n")).unwrap();
    let (code, _, stderr) = run(&["serve", "--config", gateway.folder.join("ringway.toml").to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("log/format: version 3; this gateway reads versions 1 to 2"), "{stderr}");
}

#[tokio::test]
async fn a_quiet_session_outlives_the_files_before_its_messages() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "1"), ("session.history_messages", "5")]);
    let mut quiet = Client::join(&gateway, "quiet", "ana").await;
    let mut noisy = Client::join(&gateway, "noisy", "ben").await;
    let noise = "x".repeat(60_000);
    // The quiet session's state is in the first file, its messages in the second.
    for _ in 0..40 {
        noisy.publish("session", noise.as_str()).await;
    }
    let said = quiet.publish("session", "kept").await;
    for _ in 0..80 {
        noisy.publish("session", noise.as_str()).await;
    }
    let first = log.0.join("log/1/shard-0/0000000000000000.seg");
    for _ in 0..200 {
        if !first.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!first.exists(), "nothing in it is retained");
    // Acknowledged behind the state that was written again.
    noisy.publish("session", "last").await;
    gateway.kill();
    let gateway = gateway.again();
    let mut cleo = Client::enter(&gateway, Hello::new("quiet", "cleo").with("start", json!("oldest"))).await;
    assert_eq!((&cleo.welcome["seq"], &cleo.welcome["oldest_seq"]), (&json!(said), &json!(said)), "{}", cleo.welcome);
    assert_eq!(payloads(&cleo.settle().await), [json!("kept")]);
    let page = cleo.command("rw.members", json!({})).await;
    assert_eq!(page["payload"]["members"][0]["client_id"], "ana", "{page}");
}
