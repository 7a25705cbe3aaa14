//! History that is on disk alone (protocol.md section 5, "Resume", and section 6): resume and `rw.history` are the same as from
//! memory, whatever happens to the index files; damaged messages are a gap and nothing else is.

use crate::client::{Client, Hello};
use crate::gateway::{Gateway, run};
use crate::history::page;
use crate::killed_and_restarted::{LogFolder, stop};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Messages of each session: with their padding about 16 MiB of log, in files of 2 MiB, of which 8 MiB stay in memory.
const MESSAGES: u64 = 400;
const PADDING: usize = 20_000;

const SETTINGS: [(&str, &str); 4] = [
    ("server.shards", "1"),
    ("log.memory_bytes", "8388608"),
    ("session.history_messages", "100000"),
    ("limits.reply_queue_bytes", "4194304"),
];

/// Two sessions with alternating messages. Every fifth message of `one` is for ben alone, every seventh for ben and a room that
/// nobody is in.
async fn fill(gateway: &Gateway) {
    let mut one = Client::join(gateway, "one", "ana").await;
    let mut two = Client::join(gateway, "two", "ana").await;
    Client::join(gateway, "one", "ben").await.close().await;
    let padding = "x".repeat(PADDING);
    for number in 1..=MESSAGES {
        let to = match number {
            _ if number % 5 == 0 => json!("client:ben"),
            _ if number % 7 == 0 => json!(["room:empty", "client:ben"]),
            _ => json!("session"),
        };
        one.say(to, format!("one-{number}-{padding}")).await;
        two.say("session", format!("two-{number}-{padding}")).await;
        if number % 20 == 0 {
            one.settle().await;
            two.settle().await;
        }
    }
}

/// The numbers of a session's messages, which are their places in the order too.
fn numbers(messages: &[Value]) -> Vec<u64> {
    let numbers = messages.iter().filter(|message| message["type"] == "chat").map(|message| {
        let number = message["payload"].as_str().unwrap().split('-').nth(1).unwrap().parse().unwrap();
        assert_eq!(message["seq"], number, "a message came at another's place");
        number
    });
    numbers.collect()
}

/// The messages of the session `one` that a client of that name may see, from the beginning.
async fn resumed(gateway: &Gateway, client_id: &str) -> Vec<Value> {
    let mut client = Client::enter(gateway, Hello::new("one", client_id).with("start", "oldest")).await;
    let messages = client.settle().await;
    client.close().await;
    messages
}

fn visible(client_id: &str) -> Vec<u64> {
    (1..=MESSAGES).filter(|number| client_id == "ben" || (!number.is_multiple_of(5) && !number.is_multiple_of(7))).collect()
}

/// All of the history, page by page, in both directions.
async fn paged(gateway: &Gateway, client_id: &str) -> [Vec<u64>; 2] {
    let mut client = Client::enter(gateway, Hello::new("one", client_id).with("start", "head")).await;
    let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
    let mut more = true;
    while more {
        let after = forwards.last().copied().unwrap_or(0);
        let (messages, end) = page(&mut client, json!({"after": after, "limit": 90})).await;
        forwards.extend(numbers(&messages));
        assert_eq!(end["oldest_seq"], 1, "{end}");
        more = end["more"] == true;
    }
    more = true;
    while more {
        let before = backwards.first().copied().unwrap_or(MESSAGES + 1);
        let (messages, end) = page(&mut client, json!({"before": before, "limit": 90})).await;
        backwards.splice(0..0, numbers(&messages));
        more = end["more"] == true;
    }
    client.close().await;
    [forwards, backwards]
}

async fn check(gateway: &Gateway) {
    for client_id in ["ben", "cleo"] {
        assert_eq!(numbers(&resumed(gateway, client_id).await), visible(client_id), "{client_id}");
        assert_eq!(paged(gateway, client_id).await, [visible(client_id), visible(client_id)], "{client_id}");
    }
    // Ana sees in history what she sent.
    assert_eq!(paged(gateway, "ana").await[0], visible("ben"));
}

/// The first shard's files of that kind, in order.
fn files(log: &LogFolder, kind: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log.0.join("log/1/shard-0")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|extension| extension == kind)).collect();
    files.sort();
    files
}

/// Changes one byte of a file in place.
fn flip(path: &PathBuf, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn find(bytes: &[u8], text: &str) -> Option<u64> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).map(|at| at as u64)
}

#[tokio::test]
async fn cold_history_is_read_whatever_becomes_of_its_indexes() {
    let log = LogFolder::new();
    let mut gateway = log.start(&SETTINGS);
    fill(&gateway).await;
    gateway.until_metric("ringway_log_indexed_total", "", |indexed| indexed >= 2);
    check(&gateway).await;
    stop(&mut gateway);

    // A start indexes what was not yet.
    let mut gateway = gateway.again();
    check(&gateway).await;
    stop(&mut gateway);
    let made: Vec<(PathBuf, Vec<u8>)> =
        files(&log, "idx").into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(made.len() >= 7, "{}", made.len());

    // Deleted, damaged, cut, another's, half written, and of a segment that is gone.
    std::fs::remove_file(&made[0].0).unwrap();
    flip(&made[1].0, made[1].1.len() as u64 / 2);
    std::fs::write(&made[2].0, &made[2].1[..100]).unwrap();
    std::fs::write(&made[3].0, &made[4].1).unwrap();
    let strays = ["0000000000000003.idx.new", "00000000000000ff.idx"].map(|name| made[0].0.with_file_name(name));
    strays.iter().for_each(|path| std::fs::write(path, b"half").unwrap());
    let gateway = gateway.again();
    for (path, bytes) in &made {
        assert!(std::fs::read(path).unwrap() == *bytes, "{} is made again as it was", path.display());
    }
    assert!(strays.iter().all(|path| !path.exists()));
    check(&gateway).await;
}

#[tokio::test]
async fn an_index_that_is_damaged_under_the_gateway_is_made_anew() {
    let log = LogFolder::new();
    let mut gateway = log.start(&SETTINGS);
    fill(&gateway).await;
    stop(&mut gateway);
    let mut gateway = gateway.again();
    let indexes = files(&log, "idx");
    let before = std::fs::read(&indexes[1]).unwrap();
    // Every entry of the second file, and the third is gone under us, which harms nobody who has it open.
    for at in (before.len() as u64 / 2..before.len() as u64).step_by(4) {
        flip(&indexes[1], at);
    }
    std::fs::remove_file(&indexes[2]).unwrap();
    check(&gateway).await;
    gateway.logged("that the index is made anew", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("index is missing or damaged"))
    });
    assert!(std::fs::read(&indexes[1]).unwrap() == before);
    assert_eq!(gateway.metric("ringway_drops_total", "log_damaged"), 0);
}

#[tokio::test]
async fn a_damaged_record_is_a_gap_and_its_neighbours_are_read() {
    let log = LogFolder::new();
    let mut gateway = log.start(&SETTINGS);
    fill(&gateway).await;
    stop(&mut gateway);
    let gateway = gateway.again();
    let segment = &files(&log, "seg")[1];
    let bytes = std::fs::read(segment).unwrap();
    // A message of the session that everybody sees has its text damaged, another its sender.
    let is_for_all = |number: &u64| !number.is_multiple_of(5) && !number.is_multiple_of(7);
    let at = |number: u64| find(&bytes, &format!("one-{number}-"));
    let within: Vec<u64> = (1..=MESSAGES).filter(|number| at(*number).is_some()).collect();
    let lost: Vec<u64> = within[3..].iter().copied().filter(is_for_all).step_by(7).take(2).collect();
    flip(segment, at(lost[0]).unwrap() + 500);
    let record = find(&bytes, &format!(r#""payload":"one-{}-"#, lost[1])).unwrap();
    let head = (0..record).rev().find(|at| bytes[*at as usize..].starts_with(&[2, 0, 1, 0])).unwrap();
    flip(segment, head + 50);
    let messages = resumed(&gateway, "ben").await;
    let left: Vec<u64> = visible("ben").into_iter().filter(|number| !lost.contains(number)).collect();
    assert_eq!(numbers(&messages), left);
    let gaps: Vec<&Value> = messages.iter().filter(|message| message["type"] == "rw.gap").map(|gap| &gap["payload"]).collect();
    let told: Vec<u64> = gaps.iter().map(|gap| gap["from"].as_u64().unwrap()).collect();
    assert_eq!(told, lost, "{gaps:?}");
    assert!(gaps.iter().all(|gap| gap["from"] == gap["to"]), "{gaps:?}");
    assert_eq!(paged(&gateway, "ben").await, [left.clone(), left]);
}

/// Every file below a folder but the lock, with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "lock") {
                found.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_start_over_damage_changes_nothing_in_any_shards_directory() {
    let log = LogFolder::new();
    let mut settings = SETTINGS;
    settings[0] = ("server.shards", "2");
    let mut gateway = log.start(&settings);
    fill(&gateway).await;
    for _ in 0..2 {
        // Both shards have files behind their first.
        for number in 0..8 {
            let mut client = Client::join(&gateway, &format!("s-{number}"), "ana").await;
            client.publish("session", number).await;
            client.close().await;
        }
        stop(&mut gateway);
        gateway = gateway.again();
    }
    stop(&mut gateway);
    for shard in 0..2 {
        let folder = log.0.join(format!("log/1/shard-{shard}"));
        let segment = folder.join("0000000000000000.seg");
        let at = find(&std::fs::read(&segment).unwrap(), r#""session_id":""#).unwrap();
        flip(&segment, at);
        // Files that a start would remake or remove.
        for shard in 0..2 {
            let folder = log.0.join(format!("log/1/shard-{shard}"));
            std::fs::write(folder.join("0000000000000000.idx"), b"half").unwrap();
            std::fs::write(folder.join("00000000000000ff.idx"), b"of nothing").unwrap();
        }
        let before = contents(&log.0);
        assert!(before.keys().filter(|path| path.ends_with("clean")).count() == 2);
        let (code, _, stderr) = run(&["serve", "--config", gateway.folder.join("ringway.toml").to_str().unwrap()]);
        assert!(code == 1 && stderr.contains(&format!("shard-{shard}: 0000000000000000.seg: offset ")), "{code} {stderr}");
        assert!(contents(&log.0) == before, "{shard}: {:?} was {:?}", contents(&log.0).keys(), before.keys());
        flip(&segment, at);
    }
    let gateway = gateway.again();
    // Ana sees in history what she sent, and everybody what is for all.
    assert_eq!(paged(&gateway, "ben").await, [visible("ben"), visible("ben")]);
    assert!(contents(&log.0).values().all(|bytes| bytes != b"half" && bytes != b"of nothing"));
}
