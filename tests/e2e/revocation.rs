//! Revocations: a revoked client is closed with 4401 on every shard and cannot come back; nobody else notices.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, http, run};
use crate::token::{now_s, token_with};
use serde_json::{Value, json};

fn hello(session: &str, client_id: &str, claims: &Value) -> Hello {
    let subject = client_id.split('/').next().unwrap();
    Hello::new(session, client_id).with("auth_token", token_with(subject, claims))
}

/// Runs `ringway token …` on this gateway; what it prints.
#[track_caller]
fn token(gateway: &Gateway, arguments: &[&str]) -> String {
    let admin = format!("http://{}", gateway.admin);
    let (exit, stdout, stderr) = run(&[&["token"], arguments, &["--admin", &admin]].concat());
    assert_eq!((exit, &*stderr), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

async fn let_in(gateway: &Gateway, hello: &Hello) -> Client {
    Client::enter(gateway, hello.clone()).await
}

async fn kept_out(gateway: &Gateway, hello: &Hello) {
    let mut client = Client::connect(gateway).await;
    client.hello(hello).await;
    assert_eq!(client.refused().await, (Some(4401), "auth.revoked".to_owned()));
}

#[tokio::test]
async fn a_revoked_user_is_closed_on_every_shard_and_cannot_come_back() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let old = json!({"iat": now_s() - 100});
    // Sessions with homes on both shards.
    let mut closed = Vec::new();
    for number in 0..8 {
        closed.push(let_in(&gateway, &hello(&format!("s-{number}"), &format!("ana/{number}"), &old)).await);
    }
    let mut ben = let_in(&gateway, &hello("s-0", "ben", &old)).await;

    assert_eq!(token(&gateway, &["revoke", "--sub", "ana"]), "revoked; 8 connections closed\n");
    for mut client in closed {
        assert_eq!(client.closed().await.0, Some(4401));
    }
    for number in 0..8 {
        kept_out(&gateway, &hello(&format!("s-{number}"), "ana/other", &old)).await;
    }
    ben.publish("session", "unharmed").await;
    let_in(&gateway, &hello("s-1", "ben/2", &old)).await.close().await;
    // A token issued after the revocation, whose clock may be some seconds ahead.
    let_in(&gateway, &hello("s-0", "ana", &json!({"iat": now_s() + 5}))).await.close().await;

    // An old token is no way back into a connection either.
    let mut ana = let_in(&gateway, &hello("s-0", "ana", &json!({"iat": now_s() + 5}))).await;
    let answer = ana.command("rw.refresh", json!({"auth_token": token_with("ana", &old)})).await;
    assert_eq!(answer["payload"]["code"], "auth.revoked", "{answer}");

    assert_eq!(token(&gateway, &["revoke", "--sub", "ana", "--lift"]), "lifted\n");
    let_in(&gateway, &hello("s-0", "ana/back", &old)).await.close().await;
}

#[tokio::test]
async fn one_token_or_one_client_leaves_the_users_others() {
    let mut gateway = Gateway::start(&[]);
    // Issued before the revocation also where a second passes between the two.
    let issued_s = now_s() - 100;
    let (first, second) = (json!({"jti": "t-1", "iat": issued_s}), json!({"jti": "t-2", "iat": issued_s}));
    let mut lost = let_in(&gateway, &hello("s", "ana/lost", &first)).await;
    let mut kept = let_in(&gateway, &hello("s", "ana/kept", &second)).await;
    assert_eq!(token(&gateway, &["revoke", "--jti", "t-1"]), "revoked; 1 connection closed\n");
    assert_eq!(lost.closed().await.0, Some(4401));
    kept_out(&gateway, &hello("s", "ana/lost", &first)).await;
    kept_out(&gateway, &hello("s", "ana/another", &first)).await;
    kept.settle().await;

    assert_eq!(token(&gateway, &["revoke", "--client", "ana/kept", "--keep", "1h"]), "revoked; 1 connection closed\n");
    assert_eq!(kept.closed().await.0, Some(4401));
    kept_out(&gateway, &hello("s", "ana/kept", &second)).await;
    let_in(&gateway, &hello("s", "ana/third", &second)).await.close().await;

    // The files are read again; revocations stay.
    gateway.reload(&[]);
    gateway.logged("that it reloaded", |line| line["message"].as_str().unwrap().starts_with("reloaded"));
    let listed: Value = serde_json::from_str(&token(&gateway, &["revocations", "--json"])).unwrap();
    assert_eq!(listed["revocations"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!((&listed["revocations"][0]["jti"], &listed["revocations"][1]["client_id"]), (&"t-1".into(), &"ana/kept".into()));
    kept_out(&gateway, &hello("s", "ana/lost", &first)).await;
    assert!(gateway.admin("/metrics").1.contains("\nringway_revocations 2\n"));
    assert!(!gateway.log().join("\n").contains("t-1"), "a token's id stays out of the log");
}

#[tokio::test]
async fn the_listener_takes_revocations_as_json_of_this_machine_only() {
    let gateway = Gateway::start(&[]);
    let post = |headers: &str, body: &str| {
        let length = body.len();
        let head = format!("POST /v1/revocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n");
        let (status, _, body) = http(gateway.admin, &(head + body));
        (status, body)
    };
    let json_type = "Content-Type: application/json\r\n";
    assert_eq!(post("Content-Type: text/plain\r\n", r#"{"sub":"ana"}"#).0, 415, "what a page may send without asking");
    assert_eq!(post(&format!("{json_type}Origin: https://evil.example\r\n"), r#"{"sub":"ana"}"#).0, 403);
    for body in ["", "[]", "{}", r#"{"sub":"ana","jti":"t"}"#, r#"{"sub":"a b"}"#, r#"{"sub":"ana","issued_befor_s":1}"#] {
        let (status, answer) = post(json_type, body);
        assert!(status == 400 && serde_json::from_str::<Value>(&answer).unwrap()["detail"].is_string(), "{body}: {answer}");
    }
    assert_eq!(post(json_type, &format!(r#"{{"sub":"{}"}}"#, "a".repeat(20_000))).0, 413);
    let delete =
        |query: &str| http(gateway.admin, &format!("DELETE /v1/revocations{query} HTTP/1.1\r\nHost: localhost\r\n\r\n")).0;
    assert_eq!((delete(""), delete("?sub=ana&jti=t"), delete("?sub=ana")), (400, 400, 404));
    assert_eq!(gateway.admin("/v1/revocations"), (200, r#"{"revocations":[],"truncated":false}"#.to_owned()));
    let admin = format!("http://{}", gateway.admin);
    let (exit, _, stderr) = run(&["token", "revoke", "--sub", "ana", "--lift", "--admin", &admin]);
    assert!(exit == 1 && stderr.contains("nothing of that name is revoked"), "{stderr}");
}
