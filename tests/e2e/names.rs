//! Every name that the wire takes is reachable by every tool, while the gateway runs and when it has stopped.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, run};
use crate::killed_and_restarted::{LogFolder, stop};
use crate::token::token_with;
use serde_json::{Value, json};

/// Names of sessions that a command line, a path or a URL could misread.
fn sessions() -> Vec<String> {
    let odd = [
        "-",
        "--",
        "-x",
        "--help",
        "-h",
        "--admin",
        "--session=s",
        "--jsonl",
        ".",
        "..",
        "...",
        ":",
        "::",
        "a:b",
        "channel:-n",
        "_",
        "hash:0123456789abcdef",
        "hash:",
        "0",
        "1e400",
        "null",
    ];
    odd.iter()
        .filter(|name| !name.contains('='))
        .map(|name| (*name).to_owned())
        .chain(["-".repeat(128), "x".repeat(128)])
        .collect()
}

#[track_caller]
fn good(words: &[&str]) -> String {
    let (exit, stdout, stderr) = run(words);
    assert_eq!((exit, &*stderr), (0, ""), "{words:?}: {stdout}");
    stdout
}

/// Reads each session by each tool that reads.
fn read_all(folder: &str) {
    let listed = good(&["log", "ls", folder]);
    for session in sessions() {
        let said = format!("\"said in {session}\"");
        assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(&session)), "{session}: {listed}");
        for words in [
            &["log", "cat", folder, "--", &session][..],
            &["log", "cat", "--", folder, &session],
            &["replay", folder, "--", &session],
        ] {
            assert!(good(words).contains(&said), "{words:?}");
        }
        for words in [
            &["log", "export", folder, "--jsonl", &format!("--session={session}")][..],
            &["log", "export", folder, &format!("--session={session}"), "--jsonl"],
        ] {
            let exported = good(words);
            assert_eq!(exported.matches("\"said in ").count(), 1, "{words:?}: {exported}");
            assert!(exported.contains(&said), "{words:?}: {exported}");
        }
    }
    // Without any sign before it, where it isn't called like an option.
    for session in ["-", "-x", "..", "hash:0123456789abcdef", &"-".repeat(128)] {
        let said = format!("\"said in {session}\"");
        assert!(good(&["log", "cat", folder, session]).contains(&said), "{session}");
        assert!(good(&["replay", folder, session, "--speed", "1000"]).contains(&said), "{session}");
        assert!(good(&["log", "export", folder, "--session", session, "--jsonl"]).contains(&said), "{session}");
    }
}

async fn speak(gateway: &Gateway, client_id: &str) {
    for session in sessions() {
        let mut client = Client::join(gateway, &session, client_id).await;
        client.publish("session", format!("said in {session}")).await;
        client.close().await;
    }
}

#[tokio::test]
async fn every_session_is_reached_by_its_name() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[("server.shards", "2")]);
    let folder = log.0.join("log");
    let folder = folder.to_str().unwrap();
    speak(&gateway, "ana").await;
    read_all(folder);

    // Half of them are purged while it runs, the other half after it; nothing else is deleted.
    let admin = format!("http://{}", gateway.admin);
    let (live, stopped): (Vec<_>, Vec<_>) = sessions().into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    for (_, session) in &live {
        let told = good(&["log", "purge", folder, "--admin", &admin, "--", session]);
        assert_eq!(told, format!("session {session}: 1 messages were purged\n"));
    }
    for session in ["hash=0123456789abcdef", "a b", ""] {
        let (exit, _, stderr) = run(&["log", "purge", folder, session, "--admin", &admin]);
        assert!(exit == 1 && stderr.contains("session_id is no session's name"), "{session}: {stderr}");
    }
    stop(&mut gateway);
    for (_, session) in &stopped {
        let told = good(&["log", "purge", folder, "--", session]);
        assert!(told.starts_with(&format!("session {session}: 1 messages were purged\n")), "{told}");
    }
    let verified = good(&["log", "verify", folder]);
    assert!(verified.contains(&format!("of which {} are purged", sessions().len())), "{verified}");
    gateway = gateway.again();
    speak(&gateway, "ben").await;
    stop(&mut gateway);
    read_all(folder);
}

#[tokio::test]
async fn every_user_client_and_token_is_revoked_by_its_name() {
    let gateway = Gateway::start(&[]);
    let admin = format!("http://{}", gateway.admin);
    let token = |words: &[&str]| good(&[&["token"], words, &["--admin", &admin]].concat());
    let names =
        ["-ana", "--sub", "--lift", "a%2Fb", "%", "a&b=c+d#e?f", "..", "*", "'", "a;b", "{}", "rw-1", "~!@$^()_[]|:,.<>`"];
    for name in names {
        let jti = format!("{name}\"\\/");
        let client_id = format!("{name}/-tab");
        let hello = Hello::new("s", &client_id).with("auth_token", token_with(name, &json!({"jti": jti})));
        for (option, value) in [("--sub", name), ("--client", &client_id), ("--jti", &jti)] {
            let mut client = Client::enter(&gateway, hello.clone()).await;
            assert_eq!(token(&["revoke", option, value]), "revoked; 1 connection closed\n", "{option} {value}");
            assert_eq!(client.closed().await.0, Some(4401), "{option} {value}");
            let list: Value = serde_json::from_str(&token(&["revocations", "--json"])).unwrap();
            assert!(list["revocations"][0].as_object().unwrap().values().any(|named| named == value), "{value}: {list}");
            assert_eq!(token(&["revoke", &format!("{option}={value}"), "--lift"]), "lifted\n", "{option} {value}");
        }
    }
}

#[test]
fn tokens_are_made_for_every_name() {
    let folder = crate::gateway::folder();
    let key = folder.join("-k.jwk.json");
    good(&["key", "new", "--alg", "hs256", "--kid", "-k", "--out", key.to_str().unwrap()]);
    let token = good(&[
        "token",
        "new",
        "--key",
        key.to_str().unwrap(),
        "--kid",
        "-k",
        "--sub",
        "-ana",
        "--sid",
        "-s",
        "--sid",
        "--sub",
        "--role",
        "-r",
        "--scope",
        "-s",
        "--issuer",
        "-i",
        "--audience",
        "-a",
    ]);
    let granted = good(&["token", "verify", "--key", key.to_str().unwrap(), "--issuer", "-i", "--audience", "-a", token.trim()]);
    assert!(["-ana", "-s", "--sub", "-r"].iter().all(|name| granted.contains(&format!("\"{name}\""))), "{granted}");
    std::fs::remove_dir_all(folder).unwrap();
}
