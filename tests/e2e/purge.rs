//! A purged session's messages are gone from the log, while it goes on (OPERATING.md, "Purge a session").

use crate::client::{Client, Hello, code, payloads};
use crate::gateway::{Gateway, run};
use crate::history::page;
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::json;
use std::path::Path;

/// Returns `true` if a text occurs in any file below.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        std::fs::read(path).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes())
    })
}

fn purge(log: &LogFolder, gateway: Option<&Gateway>) -> (i32, String, String) {
    let folder = log.0.join("log");
    let admin = gateway.map(|gateway| format!("http://{}", gateway.admin));
    let mut words = vec!["log", "purge", folder.to_str().unwrap(), "s"];
    words.extend(admin.iter().flat_map(|admin| ["--admin", admin]));
    run(&words)
}

fn verified(log: &LogFolder) -> String {
    let (code, out, error) = run(&["log", "verify", log.0.join("log").to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{error}");
    out
}

/// The view of a reader that had received up to the fifth of forty messages which are purged.
async fn finds_a_gap(gateway: &Gateway, position: serde_json::Value, later: &[&str]) {
    let mut ben = Client::enter(gateway, Hello::new("s", "ben").with("resume", position)).await;
    assert_eq!((&ben.welcome["recovered"], &ben.welcome["oldest_seq"]), (&json!(false), &json!(41)), "{}", ben.welcome);
    assert_eq!(ben.take("rw.gap").await["payload"], json!({"from": 6, "to": 40}));
    assert_eq!(payloads(&ben.settle().await), later);
    let (messages, end) = page(&mut ben, json!({"after": 0})).await;
    assert_eq!((payloads(&messages), &end["oldest_seq"]), (later.iter().map(|text| json!(text)).collect(), &json!(41)), "{end}");
    ben.close().await;
}

#[tokio::test]
async fn no_byte_of_a_purged_session_stays_and_it_goes_on() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "2"), ("log.memory_bytes", "8388608")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut other = Client::join(&gateway, "other", "ana/other").await;
    // The other reader's shard mirrors the session.
    let mut readers = Vec::new();
    for (home, name) in [("a", "cleo"), ("b", "dan"), ("c", "eve")] {
        let mut reader = Client::join(&gateway, home, name).await;
        assert_eq!(reader.command_in("s", "rw.attach", json!({})).await["type"], "rw.attached");
        readers.push(reader);
    }
    let ben = Client::join(&gateway, "s", "ben").await;
    let position = ben.position(5);
    ben.vanish().await;
    let secret = "a secret of ours ".repeat(3_600);
    for number in 0..40 {
        ana.publish("session", secret.as_str()).await;
        if number % 10 == 0 {
            other.publish("session", "a secret of theirs").await;
        }
    }
    for reader in &mut readers {
        assert_eq!(reader.heard_in("s").await.len(), 40);
    }
    let folder = log.0.join("log");
    assert!(holds(&folder, "a secret of ours") && holds(&folder, "a secret of theirs"));
    let (exit, _, error) = purge(&log, None);
    assert!(exit == 1 && error.contains("in use by a process"), "{error}");
    let (exit, out, error) = purge(&log, Some(&gateway));
    assert_eq!((exit, &*out), (0, "session s: 40 messages were purged\n"), "{error}");
    assert!(!holds(&folder, "a secret of ours") && holds(&folder, "a secret of theirs"));
    assert_eq!(gateway.metric("ringway_drops_total", "reason=\"purged\""), 40);

    finds_a_gap(&gateway, position.clone(), &[]).await;
    assert_eq!(ana.publish("session", "on").await, 41);
    for reader in &mut readers {
        assert_eq!(reader.heard_in("s").await, ["on"], "who had all before goes on without a gap");
    }
    assert_eq!(other.publish("session", "theirs").await, 5);
    finds_a_gap(&gateway, position.clone(), &["on"]).await;
    // An id that was purged was used all the same.
    let repeat = json!({"type": "chat", "id": "ana-1", "session_id": "s", "payload": "else"});
    ana.send(&repeat).await;
    let answer = ana.answer("ana-1").await;
    assert_eq!(code(&answer), "envelope.id_reused", "{answer}");
    for end in [Gateway::kill, stop] {
        end(&mut gateway);
        assert!(verified(&log).starts_with("OK: "));
        gateway = gateway.again();
        let mut ana = Client::join(&gateway, "s", "ana").await;
        assert_eq!(ana.command("rw.members", json!({})).await["type"], "rw.members");
        finds_a_gap(&gateway, position.clone(), &["on"]).await;
    }
    assert!(!holds(&folder, "a secret of ours"));
}

#[tokio::test]
async fn a_stopped_directory_is_purged_and_started_again() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let ben = Client::join(&gateway, "s", "ben").await;
    let position = ben.position(5);
    ben.vanish().await;
    let secret = "a secret of ours ".repeat(3_600);
    for _ in 0..40 {
        ana.publish("session", secret.as_str()).await;
    }
    gateway.kill();
    let (exit, out, error) = purge(&log, None);
    assert_eq!((exit, &*out), (0, "session s: 40 messages were purged\n"), "{error}");
    assert!(!holds(&log.0.join("log"), "a secret of ours"));
    assert!(verified(&log).contains("of which 40 are purged"));
    for shards in ["1", "2"] {
        gateway = log.with(&[("server.shards", shards)], |settings| gateway.again_with(settings));
        finds_a_gap(&gateway, position.clone(), &[]).await;
        stop(&mut gateway);
    }
    gateway = gateway.again();
    // Another client: the ids of the purged messages may be known still.
    let mut cleo = Client::join(&gateway, "s", "cleo").await;
    assert_eq!(cleo.publish("session", "on").await, 41, "the order goes on, also where nothing is left of it");
}

#[tokio::test]
async fn what_members_said_of_themselves_goes_along_and_the_members_stay() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "2"), ("log.durability", "\"synced\"")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    ben.command("rw.join", json!({"room": "ops"})).await;
    for data in ["a secret of an hour ago", "a secret of today"] {
        assert_eq!(ben.command("rw.presence.set", json!({ "data": data })).await["type"], "rw.presence.ok");
    }
    ana.command("rw.watch", json!({"presence": true})).await;
    ana.publish("session", "a secret of all").await;
    let folder = log.0.join("log");
    assert!(holds(&folder, "a secret of an hour ago") && holds(&folder, "a secret of today"));
    let (exit, out, error) = purge(&log, Some(&gateway));
    assert_eq!((exit, &*out), (0, "session s: 1 messages were purged\n"), "{error}");
    assert!(!holds(&folder, "a secret of"));
    let told = ana.take("rw.presence").await["payload"].clone();
    assert_eq!((&told["client_id"], &told["event"], &told["data"]), (&json!("ben"), &json!("data"), &json!(null)));
    let data = async |client: &mut Client| {
        let members = client.command("rw.members", json!({})).await["payload"]["members"].clone();
        members.as_array().unwrap().iter().map(|member| (member["client_id"].clone(), member["data"].clone())).collect::<Vec<_>>()
    };
    let both = vec![(json!("ana"), json!(null)), (json!("ben"), json!(null))];
    assert_eq!(data(&mut ana).await, both);
    // Said again it is there, over a start too; and a purge of the files that stand still takes it.
    ben.command("rw.presence.set", json!({"data": "a secret of later"})).await;
    ana.close().await;
    stop(&mut gateway);
    let mut gateway = gateway.again();
    let mut ana = Client::join(&gateway, "s", "ana").await;
    assert_eq!(data(&mut ana).await[1].1, "a secret of later");
    ana.close().await;
    stop(&mut gateway);
    let (exit, out, error) = purge(&log, None);
    assert_eq!((exit, &*out), (0, "session s: 0 messages were purged\n"), "{error}");
    assert!(!holds(&folder, "a secret of"));
    assert!(verified(&log).contains("OK"));
    let gateway = gateway.again();
    let mut ana = Client::join(&gateway, "s", "ana").await;
    assert_eq!(data(&mut ana).await, both);
    let ben = Client::join(&gateway, "s", "ben").await;
    assert_eq!(ben.welcome["rooms"], json!(["ops"]), "a member stays what it was");
}
