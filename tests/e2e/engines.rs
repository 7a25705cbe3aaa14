//! Every engine runs the same gateway: over each, sessions on two shards, handovers, channels, a large message, a reader that stops, a
//! log that outlives a kill, and a drain. `RINGWAY_TEST_ENGINE` runs all of these tests over one engine.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, folder, run};
use rustix::process::Signal;
use serde_json::json;

/// `server.engine`, and what `/metrics` calls it.
const ENGINES: [(&str, &str); 3] = [
    ("ring", r#"engine="ring",driver="io_uring""#),
    ("monoio", r#"engine="monoio",driver="io_uring""#),
    ("epoll", r#"engine="monoio",driver="epoll""#),
];

/// Returns `true` if an engine works on this machine: without io_uring one of the three does.
fn runs(engine: &str) -> bool {
    let folder = folder();
    std::fs::write(folder.join("ringway.toml"), format!("[server]\nengine = \"{engine}\"\n")).unwrap();
    let (_, said, _) = run(&["doctor", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    let wanted = if engine == "ring" { "the engine is ring: " } else { "the engine is monoio on " };
    said.contains(wanted) && (engine == "epoll" || !said.contains("monoio on epoll"))
}

async fn converses(engine: &str, labels: &str) {
    let folder = folder();
    let (engine, log) = (format!("{engine:?}"), format!("{:?}", folder.join("log")));
    let settings = [
        ("server.engine", engine.as_str()),
        ("server.shards", "2"),
        ("log.dir", log.as_str()),
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
    ];
    // Whatever engine the run is for: this test is about all of them.
    let mut gateway = Gateway::start_under(&[], &settings);
    assert_eq!(gateway.metric("ringway_engine_info", labels), 1);

    // Eight sessions are at home on both shards, wherever their members were accepted.
    let mut pairs = Vec::new();
    for number in 0..8 {
        let session = format!("s{number}");
        let ana = Client::join(&gateway, &session, &format!("ana{number}")).await;
        pairs.push((ana, Client::join(&gateway, &session, &format!("ben{number}")).await));
    }
    for (ana, ben) in &mut pairs {
        let large = "x".repeat(50_000);
        ana.publish("session", large.clone()).await;
        for number in 1..=20 {
            ana.say("session", number).await;
        }
        assert_eq!(ben.take("chat").await["payload"], large);
        for number in 1..=20 {
            assert_eq!(ben.take("chat").await["payload"], number);
        }
        ana.settle().await;
    }

    // A channel crosses the shards.
    for (ana, _) in &mut pairs {
        let attached = ana.command_in("channel:news", "rw.attach", json!({})).await;
        assert_eq!(attached["type"], "rw.attached", "{attached}");
    }
    pairs[0].1.publish("channel:news", "to all").await;
    for (ana, _) in &mut pairs {
        assert_eq!(ana.take("chat").await["payload"], "to all");
    }

    // A reader that stops has what it missed afterwards, in order: sends come short meanwhile.
    let piece = "y".repeat(30_000);
    let (ana, ben) = &mut pairs[1];
    for _ in 0..200 {
        ana.say("session", piece.clone()).await;
    }
    for _ in 0..200 {
        assert_eq!(ben.take("chat").await["payload"], piece);
    }
    ana.settle().await;

    // Acknowledged messages outlive a kill.
    let positions: Vec<_> = pairs.iter().map(|(_, ben)| ben.position(21)).collect();
    for (ana, _) in &mut pairs {
        ana.publish("session", "last words").await;
    }
    drop(pairs);
    gateway.kill();
    let mut gateway = gateway.again();
    for (number, position) in positions.into_iter().enumerate() {
        let hello = Hello::new(&format!("s{number}"), &format!("ben{number}")).with("resume", position);
        let mut ben = Client::enter(&gateway, hello).await;
        let heard = ben.heard().await;
        assert_eq!(heard.last().unwrap(), "last words", "session {number}");
        assert_eq!(heard.len(), if number == 1 { 201 } else { 1 }, "session {number}");
    }

    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().code(), Some(0), "{:#?}", gateway.log());
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_conversation_goes_the_same_way_over_every_engine() {
    let mut over = 0;
    for (engine, labels) in ENGINES {
        if runs(engine) {
            converses(engine, labels).await;
            over += 1;
        } else {
            eprintln!("skipped: this machine does not let {engine} run");
        }
    }
    assert!(over > 0);
}

#[test]
fn an_engine_that_does_not_exist_is_refused_with_those_that_do() {
    let folder = folder();
    std::fs::write(folder.join("ringway.toml"), "[server]\nengine = \"tokio\"\n").unwrap();
    let (exit, _, said) = run(&["serve", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    assert!(exit == 1 && said.contains(r#"one of "auto", "ring", "monoio", "epoll""#), "{said}");
}
