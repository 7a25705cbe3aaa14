//! The life of a token (protocol.md section 4): warned of, refreshed, expired, and the connection that replaces another.

use crate::attach_detach::homes;
use crate::client::{Client, Hello, code};
use crate::gateway::Gateway;
use crate::token::{now_s, token, token_with};
use serde_json::json;

const SHORT: [(&str, &str); 3] =
    [("session.token_expiry_warning_ms", "1500"), ("session.token_expiry_grace_ms", "300"), ("auth.leeway_s", "0")];

#[tokio::test]
async fn the_end_is_warned_of_and_comes_with_4401() {
    let gateway = Gateway::start(&SHORT);
    let hello = Hello::new("s", "ana").with("auth_token", token_with("ana", &json!({"exp": now_s() + 2})));
    let mut ana = Client::enter(&gateway, hello).await;
    let warning = ana.take("rw.auth.expiring").await;
    assert!(warning["payload"]["expires_in_ms"].as_u64().unwrap() <= 1_500, "{warning}");
    let (close, reason) = ana.closed().await;
    assert_eq!((close, &*reason), (Some(4401), "auth"));
}

#[tokio::test]
async fn a_refresh_goes_on_in_place() {
    let gateway = Gateway::start(&SHORT);
    let hello = Hello::new("s", "ana").with("auth_token", token_with("ana", &json!({"exp": now_s() + 2})));
    let mut ana = Client::enter(&gateway, hello).await;
    ana.take("rw.auth.expiring").await;
    for (bad, error) in [
        (token("ben"), "auth.client_id"),
        (token_with("ana", &json!({"exp": now_s() - 5})), "auth.expired"),
        ("rubbish".to_owned(), "auth.malformed"),
    ] {
        let answer = ana.command("rw.refresh", json!({"auth_token": bad})).await;
        assert_eq!(code(&answer), error, "a refused refresh is an error and no end");
    }
    let good = token_with("ana", &json!({"exp": now_s() + 600, "roles": ["lead"]}));
    let refreshed = ana.command("rw.refresh", json!({"auth_token": good})).await;
    assert_eq!(refreshed["type"], "rw.refreshed", "{refreshed}");
    assert!(refreshed["payload"]["token_expires_in_ms"].as_u64().unwrap() > 590_000, "{refreshed}");
    // The new claims are in force at once.
    let mut ben = Client::join(&gateway, "s", "ben").await;
    ben.publish("role:lead", "to the lead").await;
    assert_eq!(ana.heard().await, ["to the lead"]);
    tokio::time::sleep(std::time::Duration::from_millis(2_400)).await;
    ana.settle().await;
}

#[tokio::test]
async fn a_refresh_that_covers_the_session_no_more_ends_it() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let [near, far] = homes(&gateway).await;
    let mut ana = Client::join(&gateway, &near, "ana").await;
    assert_eq!(ana.command_in(&far, "rw.attach", json!({})).await["type"], "rw.attached");
    ana.take("rw.caught_up").await;
    let narrower = token_with("ana", &json!({"sid": [near]}));
    assert_eq!(ana.command("rw.refresh", json!({"auth_token": narrower})).await["type"], "rw.refreshed");
    assert_eq!(ana.take("rw.detached").await["session_id"], *far);
    let none = token_with("ana", &json!({"sid": ["elsewhere"]}));
    ana.command("rw.refresh", json!({"auth_token": none})).await;
    assert_eq!(ana.closed().await.0, Some(4403));
}

#[tokio::test]
async fn the_same_client_again_replaces_the_first_with_4409() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let [near, far] = homes(&gateway).await;
    for session in [&near, &far] {
        let mut first = Client::join(&gateway, session, "ana").await;
        let mut second = Client::join(&gateway, session, "ana").await;
        assert_eq!(first.closed().await.0, Some(4409));
        let mut tab = Client::join(&gateway, session, "ana/tab").await;
        tab.publish("client:ana", "still here").await;
        assert_eq!(second.heard().await, ["still here"], "another client of the user replaces nobody");
    }
    // Over an attachment from the other shard too.
    let mut first = Client::join(&gateway, &near, "ben").await;
    let mut second = Client::join(&gateway, &far, "ben").await;
    assert_eq!(second.command_in(&near, "rw.attach", json!({})).await["type"], "rw.attached");
    assert_eq!(first.closed().await.0, Some(4409));
}
