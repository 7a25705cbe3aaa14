//! The handshake (protocol.md section 4): the first frame is a hello, and the welcome tells the client its position.

use crate::client::{Client, Hello, code, tcp, upgrade};
use crate::gateway::Gateway;
use crate::token::{now_s, token_with};
use serde_json::json;

#[tokio::test]
async fn the_welcome_has_every_key_of_the_contract() {
    let gateway = Gateway::start(&[("server.node", r#""n7""#)]);
    let token = token_with("ana", &json!({"roles": ["agent", "lead"], "exp": now_s() + 840}));
    let hello = Hello::new("s-42", "ana/tab-7").with("auth_token", token).with("rooms", json!(["ops"]));
    let ana = Client::enter(&gateway, hello).await;
    let welcome = &ana.welcome;
    assert_eq!(welcome["client_id"], "ana/tab-7");
    assert!(welcome["connection_id"].as_str().unwrap().starts_with("c-"), "{welcome}");
    assert_eq!((&welcome["node"], &welcome["created"], &welcome["recovered"]), (&json!("n7"), &json!(true), &json!(true)));
    assert_eq!((&welcome["seq"], &welcome["start_seq"], &welcome["oldest_seq"]), (&json!(0), &json!(1), &json!(1)));
    assert_eq!((&welcome["rooms"], &welcome["roles"]), (&json!(["ops"]), &json!(["agent", "lead"])));
    assert_eq!(welcome["rewound_to"], json!(null));
    assert_eq!(welcome["features"], json!([]));
    assert_eq!(welcome["pending"], json!({"approvals": [], "handoffs": [], "steps": []}));
    assert_eq!(welcome["heartbeat_ms"], 25_000);
    assert_eq!(
        welcome["limits"],
        json!({"max_message_bytes": 65_536, "messages_per_second": 200, "dedupe_ids": 1_000, "max_attached_sessions": 64})
    );
    assert!((830_000..=840_000).contains(&welcome["token_expires_in_ms"].as_u64().unwrap()), "{welcome}");
    assert!(welcome["now"].as_u64().unwrap().abs_diff(now_s() * 1000) < 60_000, "{welcome}");
    assert!(!welcome["epoch"].as_str().unwrap().is_empty() && welcome["version"].is_string(), "{welcome}");

    let ben = Client::join(&gateway, "s-42", "ben").await;
    assert_eq!((&ben.welcome["created"], &ben.welcome["epoch"]), (&json!(false), &welcome["epoch"]));
    assert_ne!(ben.welcome["connection_id"], welcome["connection_id"]);
}

#[tokio::test]
async fn a_client_without_a_subprotocol_gets_v1_and_unknown_ones_are_refused() {
    let gateway = Gateway::start(&[]);
    for (headers, status, echoed) in [
        ("", 101, false),
        ("Sec-WebSocket-Protocol: ringway.v1\r\n", 101, true),
        ("Sec-WebSocket-Protocol: chat, ringway.v1\r\n", 101, true),
        ("Sec-WebSocket-Protocol: chat\r\n", 400, false),
        ("Sec-WebSocket-Protocol:\r\n", 101, false),
        ("Sec-WebSocket-Protocol: , \r\n", 101, false),
    ] {
        let (_, got, head) = upgrade(tcp(gateway.address).await, "/v1/ws", headers).await;
        assert_eq!(got, status, "{headers}: {head}");
        assert_eq!(head.contains("Sec-WebSocket-Protocol: ringway.v1"), echoed, "{headers}: {head}");
    }
    let (_, status, _) = upgrade(tcp(gateway.address).await, "/v1/echo", "").await;
    assert_eq!(status, 404, "the echo is off by default");
}

#[tokio::test]
async fn nothing_else_is_accepted_before_the_welcome() {
    let gateway = Gateway::start(&[]);
    let mut early = Client::connect(&gateway).await;
    early.send(&json!({"type": "chat", "id": "1", "session_id": "s", "payload": 1})).await;
    assert_eq!(early.refused().await, (Some(4400), "session.expected_hello".to_owned()));
    let mut twice = Client::join(&gateway, "s", "ana").await;
    let answer = twice.command("rw.hello", json!({"client_id": "ana", "auth_token": "x"})).await;
    assert_eq!(code(&answer), "session.second_hello");
    assert_eq!(twice.heard().await, [0; 0].map(serde_json::Value::from), "the connection stays open");
}

#[tokio::test]
async fn create_false_refuses_an_unknown_session() {
    let gateway = Gateway::start(&[]);
    let mut ana = Client::connect(&gateway).await;
    ana.hello(&Hello::new("s-1", "ana").with("create", false)).await;
    assert_eq!(ana.refused().await, (Some(4403), "session.unknown".to_owned()));
    let _holder = Client::join(&gateway, "s-1", "ben").await;
    let ana = Client::enter(&gateway, Hello::new("s-1", "ana").with("create", false)).await;
    assert_eq!(ana.welcome["created"], false);
}

#[tokio::test]
async fn the_querys_session_must_be_the_hellos() {
    let gateway = Gateway::start(&[]);
    let connect = async |path: &str| {
        let (stream, status, _) = upgrade(tcp(gateway.address).await, path, "").await;
        assert_eq!(status, 101);
        Client::over(stream)
    };
    let good = connect("/v1/ws?session_id=s%2D42").await.greet(Hello::new("s-42", "ana")).await;
    assert_eq!(good.welcome["client_id"], "ana");
    let mut bad = connect("/v1/ws?session_id=s-43").await;
    bad.hello(&Hello::new("s-42", "ana")).await;
    let (close, error) = bad.refused().await;
    assert_eq!((close, &*error), (Some(4400), "session.query_mismatch"));
}

#[tokio::test]
async fn tokens_bound_who_and_where() {
    let gateway = Gateway::start(&[]);
    let team = token_with("ana", &json!({"sid": ["team-7.*", "channel:news.*"]}));
    for (session, client_id, close, error) in [
        ("team-8.x", "ana", 4403, "auth.forbidden_session"),
        ("team-7", "ana", 4403, "auth.forbidden_session"),
        ("team-7.a", "ben", 4403, "auth.client_id"),
        ("team-7.a", "ana2", 4403, "auth.client_id"),
        ("team-7.a", "ana/", 4400, "envelope.invalid"),
    ] {
        let mut client = Client::connect(&gateway).await;
        client.hello(&Hello::new(session, client_id).with("auth_token", team.clone())).await;
        let (got, got_error) = client.refused().await;
        if client_id == "ana/" {
            assert!(matches!(got, Some(4400 | 4403)), "{got:?} {got_error}");
        } else {
            assert_eq!((got, &*got_error), (Some(close), error), "{session} {client_id}");
        }
    }
    Client::enter(&gateway, Hello::new("team-7.a", "ana/phone").with("auth_token", team.clone())).await.close().await;
    Client::enter(&gateway, Hello::new("channel:news.eu", "ana").with("auth_token", team)).await.close().await;
}

#[tokio::test]
async fn no_hello_in_time_is_4408() {
    let gateway = Gateway::start(&[("limits.handshake_ms", "200")]);
    let mut silent = Client::connect(&gateway).await;
    let (close, _) = silent.closed().await;
    assert_eq!(close, Some(4408));
}
