//! A log that version 1 wrote, under a gateway that writes version 2 (docs/log-format.md): it is read, goes on, and is read again; the tools
//! read both.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, run};
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::{Value, json};

/// The tools' view of the log: its number of records, and the kinds of the session's.
fn tools(log: &LogFolder) -> (u64, Vec<String>) {
    let path = log.0.join("log");
    let path = path.to_str().unwrap();
    let (exit, verified, error) = run(&["log", "verify", path]);
    assert!(exit == 0 && verified.starts_with("OK: "), "{verified}{error}");
    let records = verified.split(", ").nth(1).and_then(|part| part.split(' ').next()).unwrap().parse().unwrap();
    let (exit, shown, error) = run(&["log", "cat", path, "ours"]);
    assert!(exit == 0 && shown.contains("in ours"), "{shown}{error}");
    let (exit, exported, error) = run(&["log", "export", path, "--jsonl"]);
    assert_eq!((exit, exported.lines().count() as u64), (0, records), "{error}");
    let lines: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let session = lines.iter().find(|line| line["state"]["session_id"] == "ours").unwrap()["session"].clone();
    let kinds = lines.iter().filter(|line| line["session"] == session).map(|line| line["kind"].as_str().unwrap().to_owned());
    (records, kinds.collect())
}

/// The members of the session, as one of them is told.
async fn told(client: &mut Client) -> Value {
    let page = client.command("rw.members", json!({})).await;
    let members = page["payload"]["members"].as_array().unwrap().iter();
    json!(members.map(|member| json!([member["client_id"], member["data"]])).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_log_of_version_1_goes_on_as_one_of_version_2() {
    let log = LogFolder::of_version_1();
    let format = |name: &str| std::fs::read_to_string(log.0.join("log").join(name)).unwrap();
    let before = format("format");
    assert!(before.contains("version = 1\n"), "{before}");
    let (first, _) = tools(&log);

    let gateway = log.start(&[]);
    assert_eq!((format("format").contains("version = 2\n"), format("format.v1") == before), (true, true));
    let mut ben = Client::enter(&gateway, Hello::new("ours", "ben").with("start", "oldest")).await;
    assert_eq!(ben.heard().await, ["in ours"]);
    let mut cleo = Client::join(&gateway, "ours", "cleo").await;
    for room in ["ops", "den"] {
        assert_eq!(ben.command("rw.join", json!({"room": room})).await["type"], "rw.joined");
    }
    cleo.publish("room:ops", "for ops").await;
    assert_eq!(ben.command("rw.leave", json!({"room": "den"})).await["type"], "rw.left");
    assert_eq!(ben.command("rw.presence.set", json!({"data": 7})).await["type"], "rw.presence.ok");
    let last = cleo.publish("session", "on").await;
    let mut gateway: Gateway = gateway;
    gateway.kill();
    let (second, kinds) = tools(&log);
    for kind in ["member", "joined", "left", "presence"] {
        assert!(kinds.iter().any(|other| other == kind), "{kind} of {kinds:?}");
    }
    assert!(second > first);

    // Killed, and then stopped in good order.
    for ends_well in [false, true] {
        gateway = gateway.again();
        let mut ben = Client::enter(&gateway, Hello::new("ours", "ben").with("start", "oldest")).await;
        assert_eq!(ben.welcome["rooms"], json!(["ops"]), "{}", ben.welcome);
        assert_eq!(ben.heard().await, ["in ours", "for ops", "on"]);
        let members = told(&mut ben).await;
        assert!(members.as_array().unwrap().contains(&json!(["ben", 7])), "{members}");
        assert_eq!(ben.welcome["seq"], last);
        if ends_well {
            stop(&mut gateway);
        } else {
            gateway.kill();
        }
        let (records, kinds) = tools(&log);
        assert!(records > second && (ends_well || kinds.iter().any(|kind| kind == "epoch")), "{kinds:?}");
        assert_eq!(format("format.v1"), before);
    }
}
