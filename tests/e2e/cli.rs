//! The command line: its output, its exit codes, and its messages about mistakes.

use crate::gateway::{Gateway, PATIENCE, SECRET, config, folder, run, run_command};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn a_wrong_configuration_is_one_line_for_each_mistake() {
    let folder = folder();
    let file = folder.join("ringway.toml");
    let path = file.to_str().unwrap();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    std::fs::write(&file, config(&[])).unwrap();
    assert_eq!(run(&["config", "check", path]), (0, "OK\n".to_owned(), String::new()));
    for (text, parts) in [
        ("[server]\nlissten = \"127.0.0.1:1\"\n", &["line 2", "server.lissten", "listen"][..]),
        ("[limits]\nmax_message_bytes = 10\nmessages_burst = \"a\"\n", &["line 2", "line 3", "1024"][..]),
        ("[server\n", &["line 1"][..]),
        ("", &["auth.keys"][..]),
        ("[[auth.keys]]\nkid = \"a\"\nalg = \"HS256\"\nfile = \"nowhere\"\n", &["nowhere"][..]),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in [&["config", "check", path][..], &["serve", "--config", path]] {
            let (exit, stdout, stderr) = run(command);
            assert_eq!((exit, &*stdout), (1, ""), "{text}: {stderr}");
            assert!(parts.iter().all(|part| stderr.contains(part)), "{text}: {stderr}");
            assert!(stderr.lines().all(|line| line.starts_with("ringway: ")), "{stderr}");
        }
    }
    let (exit, _, stderr) = run(&["serve", "--config", "/nowhere/ringway.toml"]);
    assert!(exit == 1 && stderr.contains("/nowhere/ringway.toml") && stderr.lines().count() == 1, "{stderr}");
    std::fs::write(&file, config(&[])).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let (exit, _, stderr) = run_command(serve.args(["serve", "--config", path]).env("RINGWAY_LIMITS__MESSAGES_BURST", "many"));
    assert!(exit == 1 && stderr.contains("RINGWAY_LIMITS__MESSAGES_BURST"), "{stderr}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Settings over a good configuration, or other text in its key; how the line with the mistake begins, and the message.
type Mistake = (Vec<(&'static str, &'static str)>, &'static str, &'static str);

/// Mistakes that only a check beyond the text's form finds.
fn mistakes() -> Vec<Mistake> {
    let tls = |certificate, key| vec![("tls.certificate", certificate), ("tls.key", key)];
    vec![
        (
            vec![("server.allowed_origins", r#"["https://a.example:443"]"#)],
            "allowed_origins",
            "browsers leave the scheme's own port out",
        ),
        (
            vec![("server.allowed_origins", r#"["https://a.example:99999"]"#)],
            "allowed_origins",
            "its port \"99999\" is no number",
        ),
        (vec![("server.allowed_origins", r#"["https://a.example/"]"#)], "allowed_origins", "a slash at the end counts"),
        (vec![("server.listen", r#""192.0.2.1:8080""#)], "listen = \"192", "192.0.2.1 is no address of this machine"),
        (
            vec![("server.listen", r#""0.0.0.0:9090""#), ("admin.listen", r#""127.0.0.1:9090""#)],
            "listen = \"127",
            "lies in server.listen",
        ),
        (tls(r#""nowhere.pem""#, r#""key.pem""#), "certificate = ", "nowhere.pem: No such file"),
        (tls(r#""certificate.pem""#, r#""nowhere.pem""#), "key = ", "nowhere.pem: No such file"),
        (tls(r#""empty""#, r#""key.pem""#), "certificate = ", "holds no certificate"),
        (tls(r#""certificate.pem""#, r#""empty""#), "key = ", "holds no private key"),
        (tls(r#""certificate.pem""#, r#""other.pem""#), "key = ", "does not belong to the first certificate"),
        (vec![("log.dir", r#""/dev/null""#)], "dir = ", "/dev/null is no directory"),
        (vec![("log.dir", r#""/dev/null/log""#)], "dir = ", "log.dir: /dev/null/log: Not a directory"),
        (vec![("file = \"secret\"", "file = \"empty\"")], "file = ", "the secret has 0 bytes"),
        (vec![("file = \"secret\"", "file = \"nowhere\"")], "file = ", "nowhere: No such file"),
        (vec![("alg = \"HS256\"", "alg = \"ES256\"")], "file = ", "neither a PEM public key"),
        (vec![("file = \"secret\"", "file = \"key.pem\"")], "file = ", "HS256 takes a JWK"),
        (vec![("kid = \"test\"", "kid = \"a b\"")], "kid = ", "must be 1 to 64 letters"),
        (vec![("kid = \"test\"", "kid = \"test\"\nkid = \"b\"")], "kid = \"b\"", "not TOML: duplicate key \"kid\""),
    ]
}

/// The text with a mistake in it, and the line of the mistake.
fn mistaken(changes: &[(&str, &str)], at: &str) -> (String, String) {
    let (settings, texts): (Vec<_>, Vec<_>) = changes.iter().copied().partition(|(name, _)| !name.contains(' '));
    let text = texts.iter().fold(config(&settings), |text, (from, to)| text.replace(from, to));
    let line = 1 + text.lines().position(|line| line.starts_with(at)).unwrap();
    (text, format!("line {line}: "))
}

/// A folder with the files that the mistakes name.
fn files_of_mistakes() -> std::path::PathBuf {
    let folder = folder();
    let data = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls"));
    for (name, from) in
        [("certificate.pem", "localhost.cert.pem"), ("key.pem", "localhost.key.pem"), ("other.pem", "other.key.pem")]
    {
        std::fs::copy(data.join(from), folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    std::fs::write(folder.join("empty"), "").unwrap();
    folder
}

#[test]
fn what_a_start_refuses_is_found_by_the_check_and_by_the_doctor_in_the_same_words() {
    let folder = files_of_mistakes();
    let file = folder.join("ringway.toml");
    let path = file.to_str().unwrap();
    for (changes, at, what) in mistakes() {
        let (text, line) = mistaken(&changes, at);
        std::fs::write(&file, text).unwrap();
        let (exit, stdout, checked) = run(&["config", "check", path]);
        assert_eq!((exit, &*stdout), (1, ""), "{changes:?}: {checked}");
        assert_eq!(checked.lines().count(), 1, "{changes:?}: {checked}");
        assert!(checked.starts_with(&format!("ringway: {path}: {line}")) && checked.contains(what), "{changes:?}: {checked}");
        assert_eq!(run(&["serve", "--config", path]), (1, String::new(), checked.clone()), "{changes:?}");
        let (exit, told, _) = run(&["doctor", "--config", path]);
        let line = checked.trim_end().strip_prefix("ringway: ").unwrap();
        assert!(
            exit == 1 && told.contains(&format!("BLOCKING  {line}\n")) && told.contains("the engine is "),
            "{changes:?}: {told}"
        );
    }
    std::fs::write(&file, config(&[("tls.certificate", "\"certificate.pem\""), ("tls.key", "\"key.pem\"")])).unwrap();
    assert_eq!(run(&["config", "check", path]), (0, "OK\n".to_owned(), String::new()));
    assert!(run(&["doctor", "--config", path]).1.contains(&format!("ok        {path} has no mistake\n")));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_reload_is_refused_for_what_a_start_refuses() {
    let mut gateway = Gateway::start(&[]);
    let folder = files_of_mistakes();
    for name in ["certificate.pem", "key.pem", "other.pem", "empty"] {
        std::fs::copy(folder.join(name), gateway.folder.join(name)).unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
    for (changes, at, what) in mistakes() {
        let (text, line) = mistaken(&changes, at);
        let before = gateway.log().len();
        gateway.reload_text(&text);
        let told = |log: &[String]| {
            let refused = |line: &&String| line.contains("reload refused") || line.contains("reloaded settings");
            log[before..].iter().find(refused).cloned()
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        let told = loop {
            if let Some(told) = told(&gateway.log()) {
                break told;
            }
            assert!(std::time::Instant::now() < deadline, "{changes:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let error = serde_json::from_str::<Value>(&told).unwrap()["error"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(error.contains(&line) && error.contains(what), "{changes:?}: {told}");
    }
    gateway.reload(&[("limits.messages_burst", "7")]);
    gateway.logged("the good one", |line| line["message"] == "reloaded settings and keys" && line["live"] == 1);
}

/// The error message has no reader and no room.
#[test]
fn a_mistake_ends_a_process_whose_stderr_is_full() {
    let (_reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'x'; 65_536]).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let mut child = serve.args(["serve", "--config", "/nowhere/ringway.toml"]).stderr(writer).spawn().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    assert_eq!(status.and_then(|status| status.code()), Some(1));
}

#[test]
fn defaults_are_a_configuration_and_docs_are_markdown() {
    let (exit, defaults, _) = run(&["config", "defaults"]);
    assert!(exit == 0 && defaults.contains("[limits]") && defaults.contains("max_message_bytes = 65536"), "{defaults}");
    let (exit, docs, _) = run(&["config", "docs"]);
    assert!(exit == 0 && docs.contains("| `max_message_bytes` |"), "{docs}");
    assert_eq!(run(&["nonsense"]).0, 2);
}

#[test]
fn an_occupied_port_is_one_line() {
    let gateway = Gateway::start(&[]);
    let folder = folder();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    std::fs::write(folder.join("ringway.toml"), config(&[("admin.listen", &format!("\"{}\"", gateway.admin))])).unwrap();
    let (exit, _, stderr) = run(&["serve", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(exit, 1);
    assert!(stderr.lines().count() == 1 && stderr.contains(&gateway.admin.to_string()), "{stderr}");
}

#[test]
fn keys_sign_tokens_that_the_gateway_takes() {
    let folder = folder();
    for algorithm in ["eddsa", "es256", "rs256", "hs256"] {
        let place = folder.join(algorithm);
        std::fs::create_dir_all(&place).unwrap();
        let (exit, stdout, stderr) =
            run(&["key", "new", "--alg", algorithm, "--kid", algorithm, "--out", place.to_str().unwrap()]);
        assert_eq!(exit, 0, "{algorithm}: {stdout}{stderr}");
        let files: Vec<_> = std::fs::read_dir(&place).unwrap().map(|file| file.unwrap().path()).collect();
        let private = files.iter().find(|file| !file.to_str().unwrap().contains("pub")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(private).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "{algorithm}: a private key is its owner's");
        let (exit, token, stderr) = run(&[
            "token",
            "new",
            "--key",
            private.to_str().unwrap(),
            "--sub",
            "ana",
            "--sid",
            "s",
            "--role",
            "agent",
            "--ttl",
            "15m",
        ]);
        assert_eq!(exit, 0, "{algorithm}: {stderr}");
        let token = token.trim();
        assert_eq!(token.matches('.').count(), 2, "{algorithm}");
        for key in &files {
            let (exit, granted, stderr) = run(&["token", "verify", "--key", key.to_str().unwrap(), token]);
            assert_eq!(exit, 0, "{algorithm} {key:?}: {stderr}");
            assert!(granted.contains("ana") && granted.contains("agent"), "{granted}");
        }
        let mut forged = token.to_owned();
        forged.replace_range(forged.len() - 6..forged.len() - 2, "AAAA");
        let (exit, _, stderr) = run(&["token", "verify", "--key", private.to_str().unwrap(), &forged]);
        assert!(exit == 1 && !stderr.contains(&forged), "{algorithm}: {stderr}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_doctor_says_whether_it_can_run() {
    let (exit, stdout, stderr) = run(&["doctor"]);
    assert!(stdout.contains("io_uring") && stdout.contains("kernel"), "{stdout}{stderr}");
    assert_eq!(exit == 1, stdout.contains("BLOCKING"), "{stdout}");
    let folder = folder();
    std::fs::write(folder.join("ringway.toml"), config(&[("server.max_connections", "10000000")])).unwrap();
    let (exit, stdout, _) = run(&["doctor", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    assert!(exit == 1 && stdout.contains("BLOCKING") && stdout.contains("max_connections"), "{stdout}");
}

#[test]
fn dev_prints_a_url_a_token_and_lines_to_paste_that_work() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sink, lines) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            sink.send(line).unwrap();
        }
    });
    let mut text = Vec::new();
    while !text.iter().any(|line: &String| line.contains("Ctrl-C")) {
        text.push(lines.recv_timeout(PATIENCE).unwrap());
    }
    let url = text.iter().find_map(|line| line.trim().strip_prefix("url")).unwrap().trim().to_owned();
    assert!(text.iter().any(|line| line.contains("NOT for the Internet")), "{text:#?}");
    let address = url.strip_prefix("ws://").unwrap().strip_suffix("/v1/ws").unwrap().parse().unwrap();
    let admin = text.iter().find_map(|line| line.trim().strip_prefix("admin")).unwrap().trim();
    assert!(!admin.contains(":0/"), "{admin}");
    // The two hellos to paste are accepted, and their clients receive each other's messages.
    let hellos: Vec<&str> =
        text.iter().filter_map(|line| Some(&line[line.find(r#"{"type":"rw.hello""#)?..=line.rfind('}')?])).collect();
    assert_eq!(hellos.len(), 2, "{text:#?}");
    let mut clients: Vec<crate::raw::Raw> = hellos
        .iter()
        .map(|hello| {
            let mut raw = crate::raw::Raw::connect(address);
            raw.upgrade(crate::raw::UPGRADE);
            raw.send(&crate::raw::text(hello));
            assert_eq!(raw.json()["type"], "rw.welcome");
            assert_eq!(raw.json()["type"], "rw.caught_up");
            raw
        })
        .collect();
    clients[0].send(&crate::raw::text(r#"{"type":"chat","id":"m-1","session_id":"s-42","payload":"hello from ana"}"#));
    assert_eq!(clients[0].json()["type"], "rw.ack");
    let heard: Value = clients[1].json();
    assert_eq!((&heard["payload"], &heard["from"]), (&"hello from ana".into(), &"dev/ana".into()));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}

#[test]
fn the_log_on_disk_is_read_by_its_tools() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/log");
    assert_eq!(run(&["log", "verify", golden]), (0, "OK: 1 shards, 14 records, 7 messages\n".to_owned(), String::new()));
    let (exit, replayed, _) = run(&["replay", golden, "hash=1122334455667788"]);
    let seqs: Vec<u64> =
        replayed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect();
    assert_eq!((exit, seqs), (0, vec![4, 5, 6, 7, 8, 9]));
    let (exit, exported, _) = run(&["log", "export", golden, "--jsonl"]);
    assert_eq!((exit, exported.lines().count()), (0, 14));
    assert!(exported.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{exported}");
    let (exit, stdout, stderr) = run(&["log", "verify", concat!(env!("CARGO_MANIFEST_DIR"), "/tests")]);
    assert_eq!((exit, &*stdout, stderr.lines().count()), (1, "", 1));
    assert!(stderr.starts_with("ringway: ") && stderr.contains("it must hold a file `format`"), "{stderr}");
}
