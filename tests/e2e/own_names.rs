//! Reserved names (protocol.md sections 3 and 6): no client enters sessions, channels and rooms with them, whatever its token
//! says; those that an earlier version let clients make can be read by the tools only.

use crate::client::{Client, Hello, code};
use crate::gateway::{Gateway, run};
use crate::killed_and_restarted::LogFolder;
use crate::token::token_with;
use serde_json::json;

const OWN: [&str; 3] = ["rw.audit", "channel:rw.news", "rw."];

#[tokio::test]
async fn no_token_covers_a_session_or_channel_of_the_gateways_own() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    for sid in [json!(["*"]), json!(["rw.*", "channel:rw.*", "channel:*"]), json!(OWN)] {
        let token = token_with("ana", &json!({ "sid": sid }));
        for session in OWN {
            let mut client = Client::connect(&gateway).await;
            client.hello(&Hello::new(session, "ana").with("auth_token", token.clone())).await;
            assert_eq!(client.refused().await, (Some(4403), "auth.forbidden_session".to_owned()), "{session} {sid}");
        }
    }
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for session in OWN {
        for create in [true, false] {
            let answer = ana.command_in(session, "rw.attach", json!({ "create": create })).await;
            assert_eq!(
                (code(&answer), &answer["payload"]["details"]["pointer"]),
                ("auth.forbidden_session", &json!("/session_id"))
            );
        }
        let id = ana.fresh_id();
        ana.send(&json!({"type": "chat", "id": id, "session_id": session, "payload": 1})).await;
        assert_eq!(code(&ana.answer(&id).await), "session.not_attached");
    }
    let id = ana.say("channel:rw.news", 1).await;
    let answer = ana.answer(&id).await;
    assert_eq!((code(&answer), &answer["payload"]["details"]["pointer"]), ("auth.forbidden_session", &json!("/to")));
    assert_eq!(gateway.metric("ringway_sessions", ""), 1, "none was made");
    // Names that only look like them are the application's.
    for session in ["rw", "rw:x", "x.rw.y", "channel:rwx"] {
        assert_eq!(ana.command_in(session, "rw.attach", json!({})).await["type"], "rw.attached", "{session}");
    }
}

#[tokio::test]
async fn no_client_names_a_room_of_the_gateways_own() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    for (command, payload, pointer) in [
        ("rw.join", json!({"room": "rw:ops"}), "/payload/room"),
        ("rw.members", json!({"room": "rw:ops"}), "/payload/room"),
        ("rw.watch", json!({"presence": true, "room": "rw:ops"}), "/payload/room"),
        ("rw.history", json!({"room": "rw:ops"}), "/payload/room"),
    ] {
        let answer = ana.command(command, payload).await;
        assert_eq!((code(&answer), &answer["payload"]["details"]["pointer"]), ("envelope.invalid", &json!(pointer)), "{command}");
    }
    let answer = ana.command_in("t", "rw.attach", json!({"rooms": ["ops", "rw:ops"]})).await;
    assert_eq!((code(&answer), &answer["payload"]["details"]["pointer"]), ("envelope.invalid", &json!("/payload/rooms/1")));
    for (to, pointer) in [(json!("room:rw:ops"), "/to"), (json!(["session", "room:rw:ops"]), "/to/1")] {
        let id = ana.say(to, 1).await;
        let answer = ana.answer(&id).await;
        assert_eq!((code(&answer), &answer["payload"]["details"]["pointer"]), ("envelope.invalid", &json!(pointer)));
    }
    let mut ben = Client::connect(&gateway).await;
    ben.hello(&Hello::new("s", "ben").with("rooms", json!(["rw:ops"]))).await;
    assert_eq!(ben.refused().await, (Some(4400), "envelope.invalid".to_owned()));
    assert_eq!(ana.command("rw.join", json!({"room": "rw.ops"})).await["type"], "rw.joined");
}

#[tokio::test]
async fn sessions_of_such_names_in_a_log_are_named_and_read_by_the_tools_only() {
    let log = LogFolder::of_version_1();
    let mut gateway = log.start(&[]);
    let told = gateway.logged("which sessions", |line| line["sessions"] == 2 && line["level"] == "WARN");
    let names: Vec<&str> = told["names"].as_str().unwrap().split(", ").collect();
    assert!(names.len() == 2 && names.contains(&"rw.audit") && names.contains(&"channel:rw.news"), "{told}");
    let mut ana = Client::enter(&gateway, Hello::new("ours", "ana").with("start", "oldest")).await;
    assert_eq!(ana.welcome["rooms"], json!([]), "a room of the gateway's own is left");
    assert_eq!(ana.heard().await, Vec::<serde_json::Value>::new(), "its own message does not come back");
    ana.close().await;
    let mut ben = Client::enter(&gateway, Hello::new("ours", "ben").with("start", "oldest")).await;
    assert_eq!(ben.heard().await, ["in ours"]);
    for session in ["rw.audit", "channel:rw.news"] {
        let answer = ben.command_in(session, "rw.attach", json!({})).await;
        assert_eq!(code(&answer), "auth.forbidden_session");
        let (exit, text, error) = run(&["log", "cat", log.0.join("log").to_str().unwrap(), session]);
        assert!(exit == 0 && text.contains(&format!("in {session}")), "{text}{error}");
    }
}
