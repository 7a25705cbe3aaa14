//! The admin listener (protocol.md section 8): health, readiness, metrics and the connections; and the contents of the log.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, PATIENCE, http, run};
use crate::token::token;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

fn until_ready(gateway: &Gateway) {
    let deadline = Instant::now() + PATIENCE;
    while gateway.admin("/readyz").0 != 200 {
        assert!(Instant::now() < deadline, "never ready: {}", gateway.admin("/readyz").1);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn healthy_and_ready_and_loopback_only() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    until_ready(&gateway);
    assert_eq!(gateway.admin("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(gateway.admin("/nothing").0, 404);
    let (status, _, _) = http(gateway.admin, "GET /metrics HTTP/1.1\r\nHost: rebound.example\r\n\r\n");
    assert_eq!(status, 421);
    let foreign = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n";
    assert_eq!(http(gateway.admin, foreign).0, 403);
    assert_eq!(http(gateway.admin, "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").0, 405);
}

/// Every line of the exposition: a comment, or a name with labels and a number.
#[tokio::test]
async fn the_metrics_parse_and_count() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let mut ben = Client::join(&gateway, "s", "ben").await;
    for number in 0..5 {
        ana.publish("session", number).await;
    }
    ben.settle().await;
    let (status, text) = gateway.admin("/metrics");
    assert_eq!(status, 200);
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            assert!(comment.starts_with("HELP ") || comment.starts_with("TYPE "), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let metric = name.split('{').next().unwrap();
        assert!(metric.starts_with("ringway_") || metric.starts_with("process_"), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| metric.strip_suffix(part)).unwrap_or(metric);
        assert!([metric, family].iter().any(|name| text.contains(&format!("# HELP {name} "))), "{line}");
        assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0) || value == "+Inf", "{line}");
        samples += 1;
    }
    assert!(samples > 100, "{samples}");
    assert_eq!(gateway.metric("ringway_routed_total", ""), 5);
    assert_eq!(gateway.metric("ringway_delivered_total", ""), 5);
    assert_eq!(gateway.metric("ringway_acknowledged_total", ""), 5);
    assert_eq!(gateway.metric("ringway_members_present", ""), 2);
    assert_eq!(gateway.metric("ringway_connections", ""), 2);
    assert!(!text.contains("ana"), "no label is a client's text");
}

#[tokio::test]
async fn connections_are_listed_and_shown_with_why_they_closed() {
    let gateway = Gateway::start(&[("server.shards", "2")]);
    let ana = Client::join(&gateway, "s-1", "ana/tab").await;
    let ben = Client::join(&gateway, "s-2", "ben").await;
    let id = ana.welcome["connection_id"].as_str().unwrap().to_owned();
    let admin = format!("http://{}", gateway.admin);
    let (exit, stdout, stderr) = run(&["conn", "ls", "--admin", &admin]);
    assert_eq!((exit, &*stderr), (0, ""), "{stdout}");
    assert!(stdout.contains("ana/tab") && stdout.contains("ben") && stdout.contains(&id), "{stdout}");
    let (exit, stdout, stderr) = run(&["conn", "show", &id, "--admin", &admin, "--json"]);
    assert_eq!(exit, 0, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&shown["client_id"], &shown["state"]), (&json!("ana/tab"), &json!("open")), "{shown}");
    assert_eq!(shown["sessions"][0]["session_id"], "s-1", "{shown}");
    ben.vanish().await;
    ana.close().await;
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    let (exit, stdout, _) = run(&["conn", "show", &id, "--admin", &admin, "--json"]);
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &shown["close_reason"], &shown["state"]), (0, &json!("client_closed"), &json!("closed")), "{shown}");
    let (exit, stdout, stderr) = run(&["conn", "show", "c-9-999", "--admin", &admin]);
    assert_eq!((exit, stdout.lines().count(), stderr.lines().count()), (1, 0, 1), "{stderr}");
}

/// The whole admin interface over a socket that nobody else may open, and which outlives no gateway, killed or not.
#[tokio::test]
async fn the_same_over_a_unix_socket() {
    let place = crate::gateway::folder();
    let socket = place.join("admin.sock");
    let (setting, log) = (format!("{socket:?}"), format!("{:?}", place.join("log")));
    let settings = [("admin.socket", &*setting), ("log.dir", &*log)];
    let gateway = Gateway::start(&settings);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let mut ana = Client::join(&gateway, "s-1", "ana").await;
    ana.publish("session", 1).await;
    let admin = format!("unix:{}", socket.display());
    for admin in [&*admin, socket.to_str().unwrap()] {
        let (exit, stdout, stderr) = run(&["conn", "ls", "--admin", admin]);
        assert!(exit == 0 && stdout.contains("ana"), "{stdout} {stderr}");
    }
    let (exit, stdout, stderr) = run(&["log", "purge", place.join("log").to_str().unwrap(), "s-1", "--admin", &admin]);
    assert!(exit == 0 && stdout.contains("1 messages were purged"), "{stdout} {stderr}");
    let (exit, stdout, stderr) = run(&["token", "revoke", "--sub", "ana", "--admin", &admin]);
    assert_eq!((exit, &*stdout), (0, "revoked; 1 connection closed\n"), "{stderr}");
    let (exit, stdout, _) = run(&["token", "revocations", "--admin", &admin]);
    assert!(exit == 0 && stdout.contains("ana"), "{stdout}");

    // Taken, it is nobody else's.
    let second = crate::gateway::folder();
    std::fs::write(second.join("secret"), crate::gateway::SECRET).unwrap();
    std::fs::write(second.join("ringway.toml"), crate::gateway::config(&settings[..1])).unwrap();
    let (exit, _, stderr) = run(&["serve", "--config", second.join("ringway.toml").to_str().unwrap()]);
    assert!(exit == 1 && stderr.contains("another gateway listens there") && stderr.lines().count() == 1, "{stderr}");

    let mut gateway = gateway;
    gateway.kill();
    assert!(socket.exists(), "a killed gateway leaves it");
    let (exit, _, stderr) = run(&["conn", "ls", "--admin", &admin]);
    assert!(exit == 1 && stderr.contains("is the gateway running"), "{stderr}");
    let mut gateway = gateway.again();
    assert_eq!(run(&["conn", "ls", "--admin", &admin]).0, 0);
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.ended().success());
    assert!(!socket.exists(), "one that ends by itself does not");
    for folder in [place, second] {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Such a flood held each probe for 30 s, so that a supervisor restarted the gateway.
#[test]
fn a_flood_of_silent_connections_holds_up_no_probe() {
    let gateway = Gateway::start(&[]);
    until_ready(&gateway);
    let silent: Vec<_> = (0..300).map(|_| crate::raw::Raw::connect(gateway.admin)).collect();
    let began = Instant::now();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.admin(path).0, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(silent);
}

#[tokio::test]
async fn the_log_names_connections_and_settings_and_holds_no_token_or_payload() {
    let mut gateway = Gateway::start(&[("diagnostics.log_level", r#""trace""#)]);
    let token = token("ana");
    let mut ana = Client::enter(&gateway, Hello::new("s", "ana").with("auth_token", token.clone())).await;
    ana.publish("session", "a secret payload").await;
    let mut bad = Client::connect(&gateway).await;
    bad.hello(&Hello::new("s", "ana").with("auth_token", format!("{token}x"))).await;
    assert_eq!(bad.refused().await.0, Some(4401));
    let line = gateway.logged("the refusal", |line| line["message"].as_str().is_some_and(|text| text.contains("hello refused")));
    assert!(line["connection_id"].as_str().unwrap().starts_with("c-"), "{line}");
    let query = "/v1/ws?auth_token=canary-in-the-query";
    let (_, status, _) =
        crate::client::upgrade(crate::client::tcp(gateway.address).await, query, "Origin: https://evil.example\r\n").await;
    assert_eq!(status, 403);
    gateway.logged("the origin's setting", |line| line.to_string().contains("server.allowed_origins"));
    ana.close().await;
    let log = gateway.log().join("\n");
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "one JSON object a line: {log}");
    for secret in [&token[..], token.rsplit_once('.').unwrap().1, "a secret payload", "canary-in-the-query"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
