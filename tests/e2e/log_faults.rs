//! Faults under a log (OPERATING.md, "When something goes wrong"): each has its answer, and loses no acknowledged message. A disk
//! that is full is in retention.rs, a sync that fails on a file system of its own in tests/power_cut.

use crate::client::{Client, Hello, code};
use crate::gateway::{Gateway, can_refuse, run, run_command};
use crate::killed_and_restarted::{LogFolder, stop};
use crate::retention::retained;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LONG: usize = 60_000;
/// A limit in bytes that no file of the log fits in.
const SMALL: &str = "1048576:unlimited";

/// Sends numbers, with much padding, from `first` on until one is refused. Returns those that were acknowledged, and the refused
/// one, which may have been on its way to the disk when that failed.
async fn say_until_refused(gateway: &Gateway, first: u64) -> (Vec<u64>, u64) {
    let mut ana = Client::join(gateway, "s", &format!("ana-{first}")).await;
    let started = Instant::now();
    let mut taken = Vec::new();
    loop {
        let number = first + taken.len() as u64;
        let id = ana.say("session", json!([number, "x".repeat(LONG)])).await;
        let answer = ana.answer(&id).await;
        if answer["type"] != "rw.ack" {
            assert_eq!(code(&answer), "limit.disk", "{answer}");
            assert!(answer["payload"]["retry_after_ms"].is_u64(), "{answer}");
            ana.close().await;
            return (taken, number);
        }
        taken.push(number);
        assert!(started.elapsed() < Duration::from_secs(15), "{} were taken, none refused", taken.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends some that are acknowledged.
async fn say(gateway: &Gateway, numbers: std::ops::Range<u64>) -> Vec<u64> {
    let mut ana = Client::join(gateway, "s", &format!("ana-{}", numbers.start)).await;
    for number in numbers.clone() {
        ana.publish("session", json!([number, "x".repeat(LONG)])).await;
    }
    ana.close().await;
    numbers.collect()
}

/// The numbers that a newcomer gets.
async fn held(gateway: &Gateway) -> Vec<u64> {
    retained(gateway, "s").await.1.iter().map(|payload| payload[0].as_u64().unwrap()).collect()
}

/// Work that goes on while the log takes nothing: reading, and messages that need no log.
async fn all_else_goes_on(gateway: &Gateway, taken: &[u64]) {
    assert_eq!(held(gateway).await, taken);
    let (mut ana, mut ben) = (Client::join(gateway, "s", "ana").await, Client::join(gateway, "s", "ben").await);
    ana.send(&json!({"type": "chat", "id": "e", "session_id": "s", "payload": "passing", "ephemeral": true})).await;
    assert_eq!(ben.take("chat").await["payload"], "passing");
    ana.close().await;
    ben.close().await;
}

/// The log has failed for good, and the node says so.
fn has_failed(gateway: &Gateway) {
    assert_eq!(gateway.metric("ringway_log_failed", ""), 1);
    let (status, health) = gateway.admin("/healthz");
    assert!(status == 200 && health.starts_with("degraded: the log of shard 0 "), "{status} {health}");
}

fn verified(log: &LogFolder) {
    let (code, stdout, stderr) = run(&["log", "verify", log.0.join("log").to_str().unwrap()]);
    assert!(code == 0 && stdout.contains("OK"), "{stdout}{stderr}");
}

/// Returns `true` if this host has a command, and permits this use.
fn can(words: &[&str]) -> bool {
    let can = Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: this host refuses {words:?}");
    }
    can
}

fn limit_files(gateway: &Gateway, limit: &str) {
    let pid = gateway.pid().to_string();
    assert!(can(&["prlimit", "--pid", &pid, &format!("--fsize={limit}")]));
}

#[tokio::test]
async fn files_that_may_not_be_so_large_are_refused_and_made_when_they_may() {
    if !can(&["prlimit", &format!("--fsize={SMALL}"), "true"]) {
        return;
    }
    let log = LogFolder::new();
    let under = ["prlimit", &format!("--fsize={SMALL}")].map(str::to_owned);
    let mut gateway = log.with(&[], |settings| Gateway::start_under(&under, settings));
    assert_eq!(say_until_refused(&gateway, 0).await, (vec![], 0));
    assert_eq!((gateway.metric("ringway_log_full", ""), gateway.metric("ringway_log_failed", "")), (1, 0));
    let told = gateway.logged("why", |line| line["message"].as_str().is_some_and(|text| text.contains("could not be made")));
    assert!(told["error"].as_str().unwrap().contains("File too large"), "{told}");
    all_else_goes_on(&gateway, &[]).await;
    limit_files(&gateway, "unlimited:unlimited");
    gateway.until_metric("ringway_log_full", "", |full| full == 0);
    let taken = say(&gateway, 0..5).await;
    gateway.kill();
    // Again with no room for another file: what is there is read.
    let gateway = gateway.again();
    assert_eq!(say_until_refused(&gateway, 5).await, (vec![], 5));
    all_else_goes_on(&gateway, &taken).await;
}

#[tokio::test]
async fn a_log_is_not_written_again_for_other_shards_where_its_files_may_not_be_so_large() {
    if !can(&["prlimit", &format!("--fsize={SMALL}"), "true"]) {
        return;
    }
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    let taken = say(&gateway, 0..5).await;
    gateway.kill();
    let two = [("server.shards", "2")];
    let config = log.with(&two, crate::gateway::config);
    std::fs::write(gateway.folder.join("ringway.toml"), config).unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--fsize=65536", env!("CARGO_BIN_EXE_ringway"), "serve", "--config"]);
    let (code, _, stderr) = run_command(command.arg(gateway.folder.join("ringway.toml")));
    assert!(code == 1 && stderr.contains("log.dir: ") && stderr.contains("File too large"), "{code} {stderr}");
    assert_eq!(held(&gateway.again()).await, taken);
}

/// The error of a start with a gateway's configuration that is refused.
fn refused(gateway: &Gateway) -> String {
    let (code, _, stderr) = run(&["serve", "--config", gateway.folder.join("ringway.toml").to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    stderr
}

#[tokio::test]
async fn what_is_in_a_directory_that_is_no_logs_or_not_its_own_stays() {
    use std::os::unix::fs::PermissionsExt as _;
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    stop(&mut gateway);
    std::fs::remove_dir_all(log.0.join("log")).unwrap();
    let photo = log.0.join("log/2019/summer.jpg");
    std::fs::create_dir_all(photo.parent().unwrap()).unwrap();
    std::fs::write(&photo, "a photo").unwrap();
    let error = refused(&gateway);
    assert!(error.contains("is no log's directory") && error.contains("it has 2019"), "{error}");
    assert_eq!(std::fs::read(&photo).unwrap(), b"a photo");
    std::fs::remove_dir_all(log.0.join("log")).unwrap();
    let mut gateway = gateway.again();
    let taken = say(&gateway, 0..3).await;
    stop(&mut gateway);
    let (format, away) = (log.0.join("log/format"), log.0.join("format"));
    std::fs::rename(&format, &away).unwrap();
    let error = refused(&gateway);
    assert!(error.contains("has a log (") && error.contains("restore `format`"), "{error}");
    std::fs::rename(&away, &format).unwrap();
    std::fs::set_permissions(log.0.join("log"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = refused(&gateway);
    assert!(error.contains("(mode 0777): `chmod go-w "), "{error}");
    std::fs::set_permissions(log.0.join("log"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(held(&gateway.again()).await, taken);
}

/// After a restart acknowledged messages are there, once and in order; perhaps also the one refused when the disk failed. And the
/// gateway goes on.
async fn goes_on(gateway: &Gateway, mut taken: Vec<u64>, refused: u64) {
    for round in 0..2 {
        let held: Vec<u64> = held(gateway).await.into_iter().filter(|number| *number != refused).collect();
        assert_eq!(held, taken, "round {round}, and perhaps {refused}");
        taken.extend(say(gateway, 1000 + 2 * round..1002 + 2 * round).await);
    }
}

/// The disk fails in the middle: no more messages are accepted, everything else goes on, and after a restart all acknowledged
/// ones are there.
async fn fails_for_good(log: &LogFolder, mut gateway: Gateway, mut taken: Vec<u64>) {
    let (more, refused) = say_until_refused(&gateway, taken.len() as u64).await;
    taken.extend(more);
    has_failed(&gateway);
    all_else_goes_on(&gateway, &taken).await;
    gateway.kill();
    let gateway = log.start(&[]);
    goes_on(&gateway, taken, refused).await;
    verified(log);
}

#[tokio::test]
async fn a_write_beyond_the_largest_file_fails_the_log_and_loses_nothing() {
    let log = LogFolder::new();
    let gateway = log.start(&[]);
    let taken = say(&gateway, 0..3).await;
    limit_files(&gateway, "400000:unlimited");
    fails_for_good(&log, gateway, taken).await;
}

/// A gateway on the engine that writes with system calls of its own, to which a tracer answers with an error.
async fn with_errors(call: &str, from: u32, durability: &str) {
    if !can_refuse() {
        eprintln!("skipped: strace is not here or may not trace");
        return;
    }
    let log = LogFolder::new();
    let inject = format!("inject={call}:error=EIO:when={from}+");
    let trace = format!("trace={call}");
    let under = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject].map(str::to_owned);
    let settings = [("server.engine", r#""epoll""#), ("log.durability", durability)];
    let gateway = log.with(&settings, |settings| Gateway::start_under(&under, settings));
    fails_for_good(&log, gateway, Vec::new()).await;
}

#[tokio::test]
async fn a_sync_that_fails_fails_the_log_and_loses_nothing() {
    with_errors("fdatasync", 6, r#""synced""#).await;
}

#[tokio::test]
async fn a_write_that_fails_fails_the_log_and_loses_nothing() {
    with_errors("pwrite64", 6, r#""written""#).await;
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_refused_and_stays_as_it_is() {
    let namespaces = ["unshare", "--user", "--map-root-user", "--mount"];
    if !can(&[&namespaces[..], &["true"]].concat()) {
        return;
    }
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    let taken = say(&gateway, 0..3).await;
    gateway.kill();
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" serve --config "$3""#;
    let mut command = Command::new("unshare");
    command.args(&namespaces[1..]).args(["sh", "-c", script, "sh"]).arg(log.0.join("log"));
    command.arg(env!("CARGO_BIN_EXE_ringway")).arg(gateway.folder.join("ringway.toml"));
    let (code, _, stderr) = run_command(&mut command);
    assert!(code == 1 && stderr.contains("log.dir: ") && stderr.contains("Read-only file system"), "{code} {stderr}");
    assert_eq!(held(&gateway.again()).await, taken);
}

/// The lines of the manual that save the files of a log that was deleted.
fn rescue() -> String {
    let manual = include_str!("../../docs/OPERATING.md");
    let lines =
        manual.lines().skip_while(|line| !line.starts_with("    for open in /proc/")).take_while(|line| line.starts_with("    "));
    let script: Vec<&str> = lines.map(|line| &line[4..]).collect();
    assert!(script.last() == Some(&"done"), "{script:?}");
    script.join("\n")
}

/// A part of the log is deleted under the gateway; it notices, and everything can be saved as the manual says.
async fn is_deleted(delete: impl Fn(&Path)) {
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    let mut taken = say(&gateway, 0..3).await;
    delete(&log.0.join("log"));
    let (more, refused) = say_until_refused(&gateway, 3).await;
    taken.extend(more);
    gateway.logged("the loss", |line| line["message"].as_str().is_some_and(|text| text.contains("deleted while it is in use")));
    has_failed(&gateway);
    all_else_goes_on(&gateway, &taken).await;
    let folder = std::fs::canonicalize(&log.0).unwrap().join("log");
    let mut shell = Command::new("sh");
    shell.args(["-c", &rescue()]).env("PID", gateway.pid().to_string()).env("DIR", &folder);
    let (code, _, stderr) = run_command(&mut shell);
    assert!(code == 0 && stderr.is_empty(), "{code} {stderr}");
    // As a start would otherwise find it.
    verified(&log);
    gateway.kill();
    let gateway = gateway.again();
    goes_on(&gateway, taken, refused).await;
}

#[tokio::test]
async fn a_log_that_is_deleted_under_the_gateway_is_missed_and_can_be_saved() {
    is_deleted(|log| std::fs::remove_dir_all(log).unwrap()).await;
}

#[tokio::test]
async fn a_file_that_is_deleted_under_the_gateway_is_missed_and_can_be_saved() {
    is_deleted(|log| std::fs::remove_file(segment(log, 0)).unwrap()).await;
}

fn segment(log: &Path, number: u64) -> PathBuf {
    log.join(format!("1/shard-0/{number:016x}.seg"))
}

#[tokio::test]
async fn a_start_over_a_file_that_is_missing_names_it_and_a_repair_goes_on() {
    let log = LogFolder::new();
    let mut gateway = log.start(&[]);
    // Each file has room for 34.
    let taken = say(&gateway, 0..110).await;
    gateway.kill();
    let (folder, missing) = (log.0.join("log"), segment(&log.0.join("log"), 1));
    std::fs::remove_file(&missing).unwrap();
    let (code, _, stderr) = run(&["serve", "--config", gateway.folder.join("ringway.toml").to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("0000000000000001.seg is missing") && stderr.contains("ringway log repair"), "{stderr}");
    let (code, _, stderr) = run(&["log", "repair", folder.to_str().unwrap(), "--quarantine"]);
    assert_eq!(code, 0, "{stderr}");
    let gateway = gateway.again();
    let left = held(&gateway).await;
    assert!((20..40).contains(&left.len()) && taken.starts_with(&left), "{left:?}");
    // A reader from before is told how far its session goes now.
    let resume = json!({"epoch": "0000000000000001", "seq": 100});
    let client = Client::enter(&gateway, Hello::new("s", "reader").with("resume", resume)).await;
    assert_eq!(client.welcome["seq"], json!(left.len()), "{}", client.welcome);
    assert!(!client.welcome["rewound_to"].is_null(), "{}", client.welcome);
}

#[tokio::test]
async fn a_start_over_a_log_whose_oldest_or_newest_file_is_missing_says_so() {
    for number in [0, 3] {
        let log = LogFolder::new();
        let mut gateway = log.start(&[]);
        say(&gateway, 0..110).await;
        let reader = Client::join(&gateway, "s", "reader").await;
        let epoch = reader.welcome["epoch"].clone();
        reader.close().await;
        // The sign of an end in good order is not believed over an end that is another one.
        stop(&mut gateway);
        std::fs::remove_file(segment(&log.0.join("log"), number)).unwrap();
        let (code, _, stderr) = run(&["log", "verify", log.0.join("log").to_str().unwrap()]);
        assert_eq!(code, i32::from(number == 0), "{stderr}");
        assert!(number > 0 || stderr.contains("no record names it"), "{stderr}");
        let mut again = gateway.again();
        if number == 0 {
            again.logged("it", |line| line["message"].as_str().is_some_and(|text| text.contains("an older file was deleted")));
        } else {
            let resume = json!({"epoch": epoch, "seq": 110});
            let client = Client::enter(&again, Hello::new("s", "reader").with("resume", resume)).await;
            let left = client.welcome["seq"].as_u64().unwrap();
            assert!((90..110).contains(&left) && client.welcome["rewound_to"] == json!(left), "{}", client.welcome);
            assert_ne!(client.welcome["epoch"], epoch);
        }
    }
}
