//! Everything accepted from a client is answered before its connection ends (protocol.md section 1), however the client ends it:
//! by a close frame, by the end of its stream, or by both at once.

use crate::attach_detach::homes;
use crate::client::{Client, Stream, tcp, upgrade};
use crate::gateway::{Gateway, PATIENCE};
use crate::killed_and_restarted::LogFolder;
use crate::raw::{frame, parse, text};
use crate::tls;
use crate::token::token;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ROUNDS: usize = 10;

#[derive(Clone, Copy, Debug)]
enum Last {
    /// A close frame and the end of the stream right behind it.
    Both,
    Close,
    End,
}

/// The gateway's texts to the end of its stream, and the code of its close frame.
async fn rest(stream: &mut Box<dyn Stream>, mut bytes: Vec<u8>) -> (Vec<Value>, Option<u16>) {
    let (mut texts, mut code) = (Vec::new(), None);
    loop {
        while let Some((received, used)) = parse(&bytes) {
            bytes.drain(..used);
            assert_eq!(code, None, "nothing comes behind the close frame: {received:?}");
            match received.first & 0x0f {
                1 => texts.push(serde_json::from_slice(&received.payload).unwrap()),
                8 => code = Some(u16::from_be_bytes([received.payload[0], received.payload[1]])),
                _ => {}
            }
        }
        let mut more = [0; 4096];
        match tokio::time::timeout(PATIENCE, stream.read(&mut more)).await.expect("an end in time") {
            Ok(0) => return (texts, code),
            Ok(count) => bytes.extend(&more[..count]),
            Err(error) => panic!("the connection broke: {error}; {texts:?}"),
        }
    }
}

/// Reads to a text of this type.
async fn until(stream: &mut Box<dyn Stream>, kind: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        while let Some((received, used)) = parse(&bytes) {
            bytes.drain(..used);
            if received.first == 0x81 && serde_json::from_slice::<Value>(&received.payload).unwrap()["type"] == kind {
                return bytes;
            }
        }
        let mut more = [0; 4096];
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut more)).await.expect("an answer in time").unwrap();
        assert!(count > 0, "the connection ended before {kind}");
        bytes.extend(&more[..count]);
    }
}

fn envelope(kind: &str, id: &str, session: &str, payload: &Value) -> String {
    json!({"type": kind, "id": id, "session_id": session, "payload": payload}).to_string()
}

/// Commands of every kind of answer, to a session at home here and one elsewhere, each with its answer's type.
fn commands(here: &str, there: &str) -> (Vec<u8>, Vec<(&'static str, &'static str)>) {
    let post = json!({"type": "chat", "id": "post", "session_id": here, "to": "channel:far", "payload": 1});
    let post_near = json!({"type": "chat", "id": "post-near", "session_id": here, "to": "channel:near", "payload": 1});
    let mut bytes = Vec::new();
    for message in [
        envelope("chat", "one", here, &json!("first")),
        envelope("rw.history", "history", here, &json!({"limit": 5})),
        envelope("chat", "two", there, &json!("second")),
        envelope("rw.join", "join", there, &json!({"room": "ops"})),
        post.to_string(),
        post_near.to_string(),
        envelope("rw.history", "history-there", there, &json!({"limit": 5})),
        envelope("rw.ping", "ping", there, &json!({})),
        envelope("rw.nonsense", "bad", here, &json!({})),
        envelope("chat", "three", here, &json!("third")),
        envelope("rw.ping", "ping-here", here, &json!({})),
        envelope("chat", "four", there, &json!("fourth")),
        envelope("rw.detach", "detach", there, &json!({})),
    ] {
        bytes.extend(text(&message));
    }
    let answers = [
        ("one", "rw.ack"),
        ("history", "rw.history_end"),
        ("two", "rw.ack"),
        ("join", "rw.joined"),
        ("post", "rw.ack"),
        ("post-near", "rw.ack"),
        ("history-there", "rw.history_end"),
        ("ping", "rw.pong"),
        ("bad", "rw.error"),
        ("three", "rw.ack"),
        ("ping-here", "rw.pong"),
        ("four", "rw.ack"),
        ("detach", "rw.detached"),
    ];
    (bytes, answers.to_vec())
}

async fn say(stream: &mut Box<dyn Stream>, mut bytes: Vec<u8>, last: Last) {
    if matches!(last, Last::Both | Last::Close) {
        bytes.extend(frame(0x88, &1000_u16.to_be_bytes()));
    }
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    if matches!(last, Last::Both | Last::End) {
        stream.shutdown().await.unwrap();
    }
}

/// A client in both sessions sends its last messages over a stream that has been upgraded.
async fn answered(mut stream: Box<dyn Stream>, [here, there]: &[String; 2], name: &str, last: Last) {
    let hello = json!({"client_id": name, "auth_token": token(name)});
    stream.write_all(&text(&envelope("rw.hello", "hello", here, &hello))).await.unwrap();
    until(&mut stream, "rw.caught_up").await;
    stream.write_all(&text(&envelope("rw.attach", "attach", there, &json!({})))).await.unwrap();
    let bytes = until(&mut stream, "rw.caught_up").await;
    let (words, answers) = commands(here, there);
    say(&mut stream, words, last).await;
    let began = Instant::now();
    let (texts, code) = rest(&mut stream, bytes).await;
    for (id, kind) in answers {
        let count = texts.iter().filter(|text| text["id"] == id && text["type"] == kind).count();
        assert_eq!(count, 1, "{name} {last:?}: {id} wants {kind}: {texts:#?}");
    }
    assert_eq!(code, if matches!(last, Last::End) { None } else { Some(1000) }, "{name} {last:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "all was answered and it did not close");
}

#[tokio::test]
async fn what_was_taken_is_answered_before_the_end() {
    for durability in ["written", "synced", "memory"] {
        let log = LogFolder::new();
        let durability = format!("{durability:?}");
        let gateway = log.start(&[("server.shards", "2"), ("log.durability", &durability), ("limits.connections_per_user", "0")]);
        let [here, there] = homes(&gateway).await;
        for round in 0..ROUNDS {
            for last in [Last::Both, Last::Close, Last::End] {
                let (stream, status, _) = upgrade(tcp(gateway.address).await, "/v1/ws", "").await;
                assert_eq!(status, 101);
                answered(stream, &[here.clone(), there.clone()], &format!("c-{round}-{last:?}"), last).await;
            }
        }
        gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    }
}

#[tokio::test]
async fn what_was_taken_is_answered_before_the_end_over_tls() {
    let log = LogFolder::new();
    let path = format!("{:?}", log.0.join("log"));
    let gateway = tls::start("2", &[("log.dir", &path), ("limits.connections_per_user", "0"), ("log.segment_bytes", "2097152")]);
    let sessions = ["s-0".to_owned(), "s-1".to_owned()];
    for round in 0..ROUNDS {
        for last in [Last::Both, Last::Close, Last::End] {
            let connector = tls::client(&[tls::ALL[round % 2]], &["http/1.1"]);
            let (stream, _) = tls::connect(&gateway, &connector).await.unwrap();
            let (stream, status, _) = upgrade(stream, "/v1/ws", "").await;
            assert_eq!(status, 101);
            answered(stream, &sessions, &format!("c-{round}-{last:?}"), last).await;
        }
    }
}

/// A client that waits for nothing: its hello, its messages and its end in one piece, also if the connection changes shards
/// meanwhile.
#[tokio::test]
async fn all_at_once_is_answered_too() {
    let log = LogFolder::new();
    let gateway = log.start(&[("server.shards", "2")]);
    let sessions = homes(&gateway).await;
    for round in 0..ROUNDS {
        for (last, session) in [Last::Both, Last::Close, Last::End].into_iter().zip(sessions.iter().cycle().skip(round)) {
            let (mut stream, status, _) = upgrade(tcp(gateway.address).await, "/v1/ws", "").await;
            assert_eq!(status, 101);
            let name = format!("once-{round}-{last:?}");
            let hello = json!({"client_id": name, "auth_token": token(&name)});
            let mut words = text(&envelope("rw.hello", "hello", session, &hello));
            words.extend(text(&envelope("chat", "m", session, &json!("at once"))));
            say(&mut stream, words, last).await;
            let (texts, code) = rest(&mut stream, Vec::new()).await;
            for (id, kind) in [("hello", "rw.welcome"), ("m", "rw.ack")] {
                assert!(texts.iter().any(|text| text["id"] == id && text["type"] == kind), "{name}: {id}: {texts:#?}");
            }
            assert_eq!(code, if matches!(last, Last::End) { None } else { Some(1000) }, "{name}");
        }
    }
}

#[tokio::test]
async fn what_ends_without_a_word_is_answered_on_the_other_roads_too() {
    let gateway = Gateway::start(&[("diagnostics.echo", "true")]);
    for _ in 0..ROUNDS {
        let (mut stream, status, _) = upgrade(tcp(gateway.address).await, "/v1/echo", "").await;
        assert_eq!(status, 101);
        say(&mut stream, frame(0x81, b"\"back\""), Last::End).await;
        assert_eq!(rest(&mut stream, Vec::new()).await, (vec![json!("back")], None));
        // HTTP: a request and the end of the stream (as of `nc -N`).
        let mut stream = tcp(gateway.address).await;
        stream.write_all(b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_waited_for_no_longer_than_a_close_may_take() {
    let gateway =
        Gateway::start(&[("limits.close_ms", "300"), ("limits.messages_per_second", "0"), ("limits.bytes_per_second", "0")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let (mut stream, ..) = upgrade(tcp(gateway.address).await, "/v1/ws", "").await;
    let hello = json!({"client_id": "ben", "auth_token": token("ben")});
    stream.write_all(&text(&envelope("rw.hello", "hello", "s", &hello))).await.unwrap();
    until(&mut stream, "rw.caught_up").await;
    // More than the sockets hold: Ben's pong has its place behind it.
    for number in 0..400 {
        ana.say("session", format!("{number}-{}", "x".repeat(30_000))).await;
        if number % 20 == 0 {
            ana.settle().await;
        }
    }
    ana.settle().await;
    say(&mut stream, text(&envelope("rw.ping", "ping", "s", &json!({}))), Last::Close).await;
    gateway.until_metric("ringway_limits_reached_total", "limit=\"close_time\"", |reached| reached >= 1);
    gateway.until_metric("ringway_connections", "", |connections| connections == 1);
}
