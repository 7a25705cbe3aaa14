//! SIGHUP: keys, limits and origins change in place; a file with a mistake changes nothing.

use crate::client::{Client, Hello, code, tcp, upgrade};
use crate::gateway::{Gateway, config, folder};
use crate::token::{claims, forged};
use rustix::process::Signal;
use serde_json::{Value, json};

fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap_or("")
}

#[tokio::test]
async fn limits_origins_and_keys_change_without_a_restart() {
    let mut gateway = Gateway::start(&[]);
    let mut ana = Client::join(&gateway, "s", "ana").await;
    let origin = "Origin: https://app.example\r\n";
    assert_eq!(upgrade(tcp(gateway.address).await, "/v1/ws", origin).await.1, 403);

    let secret = [b'n'; 40];
    std::fs::write(gateway.folder.join("new-secret"), secret).unwrap();
    let mut text = config(&[
        ("limits.messages_per_second", "1"),
        ("limits.messages_burst", "1"),
        ("server.allowed_origins", r#"["https://app.example"]"#),
        ("server.node", r#""n9""#),
    ]);
    text.push_str("[[auth.keys]]\nkid = \"new\"\nalg = \"HS256\"\nfile = \"new-secret\"\n");
    gateway.reload_text(&text);
    gateway.logged("that it reloaded", |line| message(line).starts_with("reloaded"));
    let changed = gateway.log().join("\n");
    assert!(changed.contains("limits.messages_per_second") && changed.contains("in force now"), "{changed}");
    assert!(changed.contains("server.node") && changed.contains("needs a restart"), "{changed}");

    // In force within a second; a probe on every shard would tell, a client does as well.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while upgrade(tcp(gateway.address).await, "/v1/ws", origin).await.1 != 101 {
        assert!(std::time::Instant::now() < deadline, "the origin is still refused");
    }
    for number in 0..5 {
        ana.say("session", number).await;
    }
    assert_eq!(code(&ana.take("rw.error").await), "limit.rate", "of a connection that was there before, too");
    let token = forged(r#"{"alg":"HS256","kid":"new"}"#, &claims("ben", &json!({})).to_string(), &secret);
    let ben = Client::enter(&gateway, Hello::new("s", "ben").with("auth_token", token)).await;
    assert_eq!(ben.welcome["node"], "n1", "what needs a restart stays");
    assert_eq!(ben.welcome["limits"]["messages_per_second"], 1);
}

/// A pipe that nobody writes to, in place of what a reload reads, is refused; nothing waits for it, nor does the end.
#[test]
fn a_pipe_in_place_of_a_file_holds_up_nothing() {
    let files = folder();
    let (certificate, key) = (files.join("cert.pem"), files.join("key.pem"));
    for (file, name) in [(&certificate, "localhost.cert.pem"), (&key, "localhost.key.pem")] {
        std::fs::copy(format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR")), file).unwrap();
    }
    let mut gateway = Gateway::start(&[("tls.certificate", &format!("{certificate:?}")), ("tls.key", &format!("{key:?}"))]);
    for file in [gateway.folder.join("secret"), certificate, key, gateway.folder.join("ringway.toml")] {
        let held = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        gateway.signal(Signal::HUP);
        let name = file.file_name().unwrap().to_str().unwrap();
        let line = gateway.logged("the refusal", |line| {
            message(line).starts_with("reload refused") && line["error"].as_str().unwrap().contains(name)
        });
        assert!(line["error"].as_str().unwrap().contains("no regular file"), "{line}");
        assert_eq!(gateway.admin("/healthz").0, 200);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, held).unwrap();
    }
    gateway.signal(Signal::HUP);
    gateway.logged("that it reloaded", |line| message(line).starts_with("reloaded"));
    gateway.signal(Signal::TERM);
    assert!(gateway.ended().success());
    std::fs::remove_dir_all(files).unwrap();
}

#[tokio::test]
async fn a_bad_file_keeps_the_old() {
    let mut gateway = Gateway::start(&[("limits.max_message_bytes", "2048")]);
    gateway.reload_text("[limits]\nmax_message_bites = 4096\n");
    let line = gateway.logged("the refusal", |line| message(line).starts_with("reload refused"));
    assert!(line["error"].as_str().unwrap().contains("max_message_bytes"), "it names the nearest setting: {line}");
    let ana = Client::join(&gateway, "s", "ana").await;
    assert_eq!(ana.welcome["limits"]["max_message_bytes"], 2048);
    std::fs::write(gateway.folder.join("secret"), "short").unwrap();
    gateway.reload(&[("limits.max_message_bytes", "4096")]);
    let line = gateway.logged("the key's refusal", |line| {
        message(line).starts_with("reload refused") && line["error"].as_str().unwrap().contains("32")
    });
    assert!(!line.to_string().contains("short\\n"), "{line}");
    Client::join(&gateway, "s", "ben").await.close().await;
}
