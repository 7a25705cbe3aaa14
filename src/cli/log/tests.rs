//! The tools over the golden log, over logs that were made, and over those that were broken afterwards.

use super::directory::{Directory, Halt};
use super::{Out, export, purge, repair, survey};
use crate::ids::HashKey;
use crate::io::files::{begin_purge, purges};
use crate::limits::CHUNK_BYTES;
use crate::log::made::{Made, header};
use crate::log::{HEADER_BYTES, Header, Kind, MemberState, SessionState, segment_name};
use crate::shard::recovery::purge_files::finish_purges;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const KEY: HashKey = HashKey([7; 16]);

/// A log's directory, deleted with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn of(logs: &[&Made]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringway-log-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Self(std::env::temp_dir().join(name));
        std::fs::create_dir(&folder.0).unwrap();
        let key: String = KEY.0.iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(folder.0.join("format"), format!("version = 1\ngeneration = 1\nshards = 1\nkey = \"{key}\"\n")).unwrap();
        for log in logs {
            for (number, bytes) in &log.files {
                let file = folder.file(log, *number);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, bytes).unwrap();
            }
        }
        folder
    }

    fn file(&self, log: &Made, number: u64) -> PathBuf {
        self.0.join(format!("{}/shard-{}", log.generation, log.shard)).join(segment_name(number))
    }

    fn flip(&self, log: &Made, number: u64, offset: usize) {
        let file = self.file(log, number);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[offset] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
}

/// The output of a command, and its error.
fn tool(path: &Path, run: impl FnOnce(&Directory, &mut Out<'_>) -> Result<(), Halt>) -> (String, String) {
    tool_on(false, path, run)
}

fn tool_on(is_terminal: bool, path: &Path, run: impl FnOnce(&Directory, &mut Out<'_>) -> Result<(), Halt>) -> (String, String) {
    let mut text = Vec::new();
    let done = run(&Directory::open(path).unwrap(), &mut Out { to: Box::new(&mut text), is_terminal });
    let error = match done {
        Ok(()) => String::new(),
        Err(Halt::Failed(error)) => error.0,
        Err(Halt::Enough) => panic!("the vector took all"),
    };
    (String::from_utf8(text).unwrap(), error)
}

fn verify(path: &Path) -> (String, String) {
    tool(path, survey::verify)
}

fn hash(session: &str) -> u64 {
    KEY.hash64(&[b"session", session.as_bytes()])
}

fn envelope(seq: u64) -> String {
    format!(r#"{{"type":"chat","id":"m-{seq}","seq":{seq}}}"#)
}

/// Session s-1 with seqs 1 to 9 in three segments, s-2 with 1 and 2 in the first; all synced.
fn made() -> Made {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    for session in ["s-1", "s-2"] {
        made.session(hash(session), &SessionState { session_id: session, head: 0, oldest: 1, epochs: vec![] });
    }
    for seq in 1..=9 {
        if seq % 3 == 1 && seq > 1 {
            made.begin(seq / 3);
        }
        made.message(hash("s-1"), seq, &envelope(seq));
        if seq < 3 {
            made.message(hash("s-2"), seq, &envelope(seq));
        }
        made.mark();
    }
    made
}

fn offset_of(made: &Made, session: &str, seq: u64) -> (u64, usize) {
    let put = made.puts.iter().find(|put| put.header.session == hash(session) && put.header.seq == seq).unwrap();
    (put.at / CHUNK_BYTES as u64, usize::try_from(put.at % CHUNK_BYTES as u64).unwrap())
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/log")
}

#[test]
fn the_golden_log_is_whole_and_every_record_is_exported() {
    assert_eq!(verify(&golden()), ("OK: 1 shards, 14 records, 7 messages\n".to_owned(), String::new()));
    let (text, error) = tool(&golden(), |directory, out| export::export(directory, None, out));
    assert_eq!(error, "");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    let messages = ["message"; 5];
    let behind = ["mark", "message", "receipt", "member_gone", "mark", "message", "session_gone"];
    assert_eq!(kinds, [&["session", "member"][..], &messages, &behind].concat());
    assert_eq!(lines[0]["state"]["epochs"][1], serde_json::json!({ "name": "0000000000000047", "last_seq": null }));
    assert_eq!((&lines[1]["state"]["subject"], &lines[1]["sender"]), (&"ana".into(), &"0000000000000099".into()));
    assert_eq!((&lines[4]["envelope"]["seq"], &lines[4]["addresses"][1]), (&6.into(), &"0000000000000016".into()));
    assert_eq!(lines[7]["state"]["synced_to"], lines[7]["position"]);
    assert_eq!(lines[9]["state"]["received_seq"], 9);
    let (one, _) = tool(&golden(), |directory, out| export::export(directory, Some("hash=000000000000abcd"), out));
    assert_eq!(one.lines().count(), 2);
    let (list, _) = tool(&golden(), survey::ls);
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "the session that is gone is not listed: {list}");
    assert_eq!(rows[1][..6], ["s-42", "1", "0", "4", "9", "6"]);
    assert_eq!(rows[1][7], "0", "its member has gone");
}

#[test]
fn of_the_golden_log_of_version_2_every_record_is_exported() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/log2");
    let verified = verify(&golden);
    assert_eq!(verified, ("OK: 1 shards, 24 records, 5 messages, of which 4 are purged\n".to_owned(), String::new()));
    let (text, error) = tool(&golden, |directory, out| export::export(directory, None, out));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &*error), (24, ""));
    let state = |kind: &str| &lines.iter().rfind(|line| line["kind"] == kind).unwrap()["state"];
    assert_eq!(*state("joined"), serde_json::json!({ "room": "kitchen", "from": 1 }));
    assert_eq!(*state("left"), serde_json::json!({ "room": "kitchen", "to": 4 }));
    assert_eq!(*state("went"), serde_json::json!({ "told_lost": true, "since_ms": 1_790_000_000_500_u64 }));
    assert_eq!((state("came"), &state("roles")["roles"][1]), (&Value::Null, &"lead".into()));
    assert_eq!(state("presence")["presence"], r#"{"mood":"calm"}"#);
    assert_eq!((&state("stays")["left"], &state("stays")["stays"][0]["room"]), (&0.into(), &"porch".into()));
    assert_eq!(*state("epoch"), serde_json::json!({ "name": "0000000000000048", "last_seq": 4 }));
    let (shown, _) = tool(&golden, |directory, out| export::cat(directory, "hash=1122334455667788", out));
    assert!(shown.contains("joined") && shown.contains("kitchen"), "{shown}");
}

#[test]
fn sessions_are_found_by_name_and_shown_in_order() {
    let mut log = made();
    // Copied forward, as compaction does: behind what is newer, and twice.
    log.begin(3);
    log.message(hash("s-1"), 2, &envelope(2));
    let folder = Folder::of(&[&log]);
    let (text, error) = tool(&folder.0, |directory, out| export::cat(directory, "s-2", out));
    assert_eq!(error, "");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains(r#"session      {"epochs":[]"#) && lines[2].ends_with(&envelope(2)), "{text}");
    let replayed = |speed| tool(&folder.0, |directory, out| export::replay(directory, "s-1", speed, out));
    let all = (1..=9).map(|seq| envelope(seq) + "\n").collect::<String>();
    assert_eq!(replayed(None), (all.clone(), String::new()));
    assert_eq!(replayed(Some(1000.0)), (all, String::new()));
    for run in [export::cat, |directory: &Directory, name: &str, out: &mut Out<'_>| export::replay(directory, name, None, out)] {
        let (text, error) = tool(&folder.0, |directory, out| run(directory, "s-3", out));
        assert!(text.is_empty() && error.starts_with("session s-3: the log holds no record of it"), "{error}");
    }
    let (text, error) = tool(&folder.0, survey::stat);
    assert_eq!(error, "");
    assert!(text.contains("sessions 2, records by kind: message 12, mark 9, session 2,"), "{text}");
    assert!(text.lines().nth(1).unwrap().ends_with("whole"), "{text}");
    assert!(verify(&folder.0).1.is_empty(), "a copy is no hole");
}

#[test]
fn what_was_logged_steers_no_terminal_and_is_exported_as_it_was_sent() {
    use crate::control::escape::steers;
    let steering: String =
        (0x7f..0x2100).filter_map(char::from_u32).filter(|character| steers(*character)).chain("äé🙂".chars()).collect();
    let sent = format!("{{\r\t\"type\":\"chat\",\"payload\":\"{steering}\\u001b[2J\"}}");
    let mut log = made();
    log.message(hash("s-1"), 10, &sent);
    let presence = serde_json::to_string(&steering).unwrap();
    let member = MemberState { client_id: "ana", subject_bytes: 3, presence: Some(&presence), ..MemberState::default() };
    let mut body = Vec::new();
    member.encode(&mut body).unwrap();
    log.put(&header(Kind::Member, hash("s-1"), 10), &[], &body);
    let folder = Folder::of(&[&log]);
    let cat = |directory: &Directory, out: &mut Out<'_>| export::cat(directory, "s-1", out);
    let replay = |directory: &Directory, out: &mut Out<'_>| export::replay(directory, "s-1", None, out);
    let jsonl = |directory: &Directory, out: &mut Out<'_>| export::export(directory, Some("s-1"), out);
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    for is_terminal in [true, false] {
        let (text, error) = tool_on(is_terminal, &folder.0, cat);
        assert!(error.is_empty() && !text.replace('\n', "").contains(steers) && text.contains("äé🙂"), "{text}{error}");
        assert_eq!(value(text.lines().rev().nth(1).unwrap().split_once("message").unwrap().1), value(&sent));
        for run in [&replay as &dyn Fn(&Directory, &mut Out<'_>) -> Result<(), Halt>, &jsonl] {
            let (text, error) = tool_on(is_terminal, &folder.0, run);
            assert_eq!(error, "");
            assert_eq!(text.replace('\n', "").contains(steers), !is_terminal, "{text}");
            assert!(!is_terminal || text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
        }
        let (replayed, _) = tool_on(is_terminal, &folder.0, replay);
        let last = replayed.strip_suffix('\n').unwrap().rsplit('\n').next().unwrap();
        assert_eq!(value(last), value(&sent));
        assert!(is_terminal || last == sent, "piped, it is what was sent");
        let (exported, _) = tool_on(is_terminal, &folder.0, jsonl);
        let lines: Vec<Value> = exported.lines().map(value).collect();
        assert_eq!(lines[lines.len() - 2]["envelope"], value(&sent));
        assert_eq!(lines[lines.len() - 1]["state"]["presence"], presence.as_str());
    }
}

#[test]
fn what_is_no_log_is_refused_with_its_reason() {
    let folder = Folder::of(&[]);
    let error = |text: Option<&str>| {
        match text {
            Some(text) => std::fs::write(folder.0.join("format"), text).unwrap(),
            None => std::fs::remove_file(folder.0.join("format")).unwrap(),
        }
        Directory::open(&folder.0).unwrap_err().0
    };
    assert!(error(Some("version = 3\n")).ends_with("format: version = 3: this command reads versions 1 to 2"));
    assert!(error(Some("version = 1\nkey = \"abc\"\n")).ends_with("format: key: must be 32 hexadecimal digits"));
    assert!(error(Some("version = \n")).contains("/format: "));
    assert!(error(None).ends_with("is no log's directory: it must hold a file `format`"));
}

#[test]
fn a_hole_in_a_session_is_a_problem_unless_it_let_go_of_it() {
    let mut log = made();
    log.message(hash("s-1"), 12, &envelope(12));
    log.message(hash("s-2"), 9, &envelope(9));
    log.session(hash("s-2"), &SessionState { session_id: "s-2", head: 9, oldest: 9, epochs: vec![] });
    let folder = Folder::of(&[&log]);
    assert_eq!(
        verify(&folder.0),
        (String::new(), "session s-1: seq 10 to 11 are not in the log, though later ones are".to_owned())
    );
}

#[test]
fn what_writes_to_a_log_wants_its_directory_to_be_its_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let log = made();
    let folder = Folder::of(&[&log]);
    folder.flip(&log, 1, 300);
    std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    for run in [
        |directory: &Directory, out: &mut Out<'_>| repair::repair(directory, false, out),
        |directory: &Directory, out: &mut Out<'_>| purge::purge(directory, "s-1", out),
    ] {
        let (text, error) = tool(&folder.0, run);
        assert!(text.is_empty() && error.contains("(mode 0777): `chmod go-w "), "{text}{error}");
        assert!(!folder.0.join("lock").exists() && !folder.0.join("quarantine").exists());
    }
    assert!(tool(&folder.0, |directory, out| repair::repair(directory, true, out)).0.contains("nothing was moved"));
}

#[test]
fn a_torn_end_is_told_and_stays() {
    let mut log = made();
    let (end, from) = (log.files[2].1.len(), log.end());
    log.message(hash("s-1"), 10, &envelope(10));
    log.files[2].1.truncate(end + 100);
    let folder = Folder::of(&[&log]);
    let (text, error) = verify(&folder.0);
    assert_eq!(error, "");
    assert_eq!(from % CHUNK_BYTES as u64, end as u64);
    assert!(text.contains(&format!("0000000000000002.seg: offset {end}: a torn end of 100 bytes")), "{text}");
    assert!(text.ends_with("OK: 1 shards, 22 records, 11 messages\n"), "{text}");
    let (text, _) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert!(text.contains("a torn end of 100 bytes stays") && text.ends_with("nothing is damaged\n"), "{text}");
    assert_eq!(std::fs::read(folder.file(&log, 2)).unwrap(), log.files[2].1);
}

#[test]
fn damage_is_named_with_file_offset_and_seqs_by_every_tool() {
    let log = made();
    let folder = Folder::of(&[&log]);
    let (segment, offset) = offset_of(&log, "s-1", 5);
    folder.flip(&log, segment, offset + HEADER_BYTES + 4);
    let place =
        format!("{}: offset {offset}: the record's body does not match its checksum", folder.file(&log, segment).display());
    let hit = "session s-1: seq 5 to 5 may be lost";
    for run in [survey::verify, survey::ls, survey::stat] {
        let (_, error) = tool(&folder.0, run);
        assert!(error.starts_with(&place) && error.lines().nth(1) == Some(hit), "{error}");
    }
    let (text, error) = tool(&folder.0, |directory, out| export::export(directory, None, out));
    assert!(error.starts_with(&place), "{error}");
    let seqs: Vec<Value> = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone()).collect();
    assert!(seqs.contains(&4.into()) && !seqs.contains(&5.into()), "each record before it, once");
    assert_eq!(seqs.iter().filter(|seq| **seq == 4).count(), 1);
}

/// Every file below a folder with its bytes, by its path there.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                folders.push(entry);
            } else {
                let name = entry.strip_prefix(path).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read(&entry).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_repair_moves_what_is_behind_the_damage_and_keeps_every_byte() {
    let log = made();
    let other = Made::new(1, 1, CHUNK_BYTES, 0);
    let folder = Folder::of(&[&log, &other]);
    let (segment, offset) = offset_of(&log, "s-1", 5);
    folder.flip(&log, segment, offset + 20);
    std::fs::write(folder.0.join("lock"), "").unwrap();
    let sign = folder.file(&log, 0).with_file_name("clean");
    std::fs::write(&sign, "1\n").unwrap();
    let index = |number: u64| folder.file(&log, number).with_extension("idx");
    (0..3).for_each(|number| std::fs::write(index(number), format!("index {number}")).unwrap());
    let before = files(&folder.0);
    let damaged = std::fs::read(folder.file(&log, segment)).unwrap();

    let (text, error) = tool(&folder.0, |directory, out| repair::repair(directory, true, out));
    assert!(error.is_empty() && text.ends_with("dry run: nothing was moved\n"), "{text}{error}");
    assert_eq!(files(&folder.0), before);
    let holder = std::fs::File::open(folder.0.join("lock")).unwrap();
    holder.lock().unwrap();
    for dry_run in [false, true] {
        let (_, error) = tool(&folder.0, |directory, out| repair::repair(directory, dry_run, out));
        assert!(error.contains("in use by a process"), "{error}");
    }
    assert_eq!(files(&folder.0), before);
    drop(holder);

    let (text, error) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert_eq!(error, "");
    assert!(text.contains("session s-1: seq 5 to 5 may be lost"), "{text}");
    assert!(!sign.exists(), "what is left did not end in good order");
    let after = files(&folder.0);
    let quarantined: Vec<&(String, Vec<u8>)> = after.iter().filter(|(name, _)| name.starts_with("quarantine/")).collect();
    let named = |end: &str| &quarantined.iter().find(|(name, _)| name.ends_with(end)).unwrap().1;
    assert_eq!(quarantined.len(), 5, "{quarantined:?}");
    assert_eq!(*named(&format!("/1/shard-0/0000000000000001.seg.from-{offset}")), damaged[offset..]);
    assert_eq!(*named("/1/shard-0/0000000000000002.seg"), log.files[2].1);
    for number in 1..3 {
        assert_eq!(*named(&format!("/1/shard-0/000000000000000{number}.idx")), format!("index {number}").into_bytes());
        assert!(!index(number).exists());
    }
    assert!(index(0).exists());
    let report = String::from_utf8(named("/report.txt").clone()).unwrap();
    assert!(text.starts_with(report.trim_end()) && report.contains("bytes, the whole file"), "{report}");
    assert_eq!(std::fs::read(folder.file(&log, segment)).unwrap(), damaged[..offset]);
    assert_eq!(verify(&folder.0), ("OK: 2 shards, 12 records, 6 messages\n".to_owned(), String::new()));
    let (text, _) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert_eq!(text, "nothing is damaged\n");
}

#[test]
fn a_segment_that_is_missing_or_anothers_goes_with_all_behind_it() {
    let log = made();
    let folder = Folder::of(&[&log]);
    std::fs::rename(folder.file(&log, 1), folder.0.join("taken")).unwrap();
    let (_, error) = verify(&folder.0);
    assert!(
        error.ends_with("0000000000000001.seg is missing: 0000000000000000.seg is followed by 0000000000000002.seg"),
        "{error}"
    );
    let (_, error) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert_eq!(error, "");
    assert!(!folder.file(&log, 2).exists() && verify(&folder.0).0.starts_with("OK: 1 shards, 10 records"));

    let foreign = Made::new(3, 1, CHUNK_BYTES, 1);
    std::fs::write(folder.file(&log, 1), &foreign.files[0].1).unwrap();
    assert!(verify(&folder.0).1.ends_with("0000000000000001.seg: its header says shard 3, 0 is right"));
    let (_, error) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert_eq!(error, "");
    assert!(!folder.file(&log, 1).exists() && verify(&folder.0).1.is_empty());
    assert!(files(&folder.0.join("quarantine")).iter().any(|(_, bytes)| *bytes == foreign.files[0].1));
}

/// Returns `true` if any file below contains the text.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        std::fs::read(path).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes())
    })
}

/// A log of three segments in which two sessions speak in turn, and one ends.
fn of_two(last_is_synced: bool) -> Made {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    for id in ["mine", "yours"] {
        made.session(hash(id), &SessionState { session_id: id, head: 0, oldest: 1, epochs: Vec::new() });
    }
    for seq in 1..=10 {
        for id in ["mine", "yours"] {
            made.message(hash(id), seq, &format!("of {id}: {}", "word ".repeat(25_000)));
        }
    }
    if last_is_synced {
        made.mark();
    }
    assert_eq!(made.files.len(), 3);
    made
}

#[test]
fn a_purge_leaves_the_others_and_no_byte_of_its_own() {
    let made = of_two(true);
    let folder = Folder::of(&[&made]);
    let run = |session: &'static str| tool(&folder.0, move |directory, out| purge::purge(directory, session, out));
    assert_eq!(run("nobody").1, "session nobody: the log holds no record of it");
    assert_eq!(run("mine"), ("session mine: 10 messages were purged\n".to_owned(), String::new()));
    assert!(!holds(&folder.0, "of mine") && holds(&folder.0, "of yours"));
    let told = "OK: 1 shards, 25 records, 20 messages, of which 10 are purged\n";
    assert_eq!(verify(&folder.0), (told.to_owned(), String::new()));
    assert_eq!(run("mine").0, "session mine: 0 messages were purged\n", "there is nothing left, and no second record of it");
    assert_eq!(verify(&folder.0).0, told);
    let (text, _) = tool(&folder.0, |directory, out| export::cat(directory, "mine", out));
    assert_eq!((text.matches("(purged)").count(), text.matches(" purge").count()), (10, 1), "{text}");
    let (text, _) = tool(&folder.0, |directory, out| export::export(directory, Some("mine"), out));
    assert_eq!(text.matches("\"purged\":true").count(), 10, "{text}");
    let (_, error) = tool(&folder.0, |directory, out| export::replay(directory, "mine", None, out));
    assert!(error.contains("the log holds no record of it"), "{error}");
}

fn member(log: &mut Made, session: &str, client_id: &str, presence: Option<&str>) {
    let state =
        MemberState { client_id, subject_bytes: 3, received_seq: 7, roles: vec!["agent"], presence, ..MemberState::default() };
    let mut body = Vec::new();
    state.encode(&mut body).unwrap();
    let sender = KEY.hash64(&[client_id.as_bytes()]);
    log.put(&Header { sender, ..header(Kind::Member, hash(session), 10) }, &[], &body);
}

/// The members of a session as its last records have them.
fn members(folder: &Folder, session: &str) -> BTreeMap<String, Value> {
    let (text, error) = tool(&folder.0, |directory, out| export::export(directory, Some(session), out));
    assert_eq!(error, "");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let states = lines.filter(|line| line["kind"] == "member" && line["purged"] != true).map(|line| line["state"].clone());
    states.map(|state| (state["client_id"].as_str().unwrap().to_owned(), state)).collect()
}

#[test]
fn a_purge_takes_what_members_said_of_themselves_and_leaves_the_members() {
    let mut log = of_two(true);
    for (client_id, presence) in [("ana", Some(r#""busy, of mine""#)), ("ben", None), ("ana", Some(r#""away, of mine""#))] {
        member(&mut log, "mine", client_id, presence);
    }
    // More than a chunk of them.
    let names: Vec<String> = (0..3000).map(|number| format!("cleo/{number}-{}", "x".repeat(300))).collect();
    for name in &names {
        member(&mut log, "mine", name, Some(r#""of mine too""#));
    }
    member(&mut log, "yours", "ana", Some(r#""of yours, ana""#));
    log.mark();
    let folder = Folder::of(&[&log]);
    assert_eq!(members(&folder, "mine")["ana"]["presence"], r#""away, of mine""#);
    let run = || tool(&folder.0, |directory, out| purge::purge(directory, "mine", out));
    assert_eq!(run(), ("session mine: 10 messages were purged\n".to_owned(), String::new()));
    assert!(!holds(&folder.0, "of mine") && holds(&folder.0, "of yours, ana"));
    let (text, error) = verify(&folder.0);
    assert!(error.is_empty() && text.ends_with("20 messages, of which 10 are purged\n"), "{text}{error}");
    let left = members(&folder, "mine");
    assert_eq!(left.len(), 3002);
    for state in left.values() {
        assert_eq!((&state["presence"], &state["received_seq"], &state["roles"][0]), (&Value::Null, &7.into(), &"agent".into()));
    }
    assert_eq!(run().0, "session mine: 0 messages were purged\n");
    assert_eq!(verify(&folder.0).0, text, "and no second record of it");
}

/// A state of version 1 has the data within: it is written again without, and what happened to the member since behind it.
#[test]
fn a_purge_over_a_log_of_both_versions_leaves_members_as_they_are() {
    let mut log = Made::of_version(1, 0, 1, 2 * CHUNK_BYTES, 0);
    let id = |session_id| SessionState { session_id, head: 0, oldest: 1, epochs: vec![] };
    log.session(hash("mine"), &id("mine"));
    for client_id in ["ana", "ben"] {
        member(&mut log, "mine", client_id, Some(r#""busy, of mine""#));
    }
    log.message(hash("mine"), 1, "of mine");
    let mut log = log.of_version_from_now(2);
    log.begin(1);
    let fact = |log: &mut Made, kind, body: &[u8]| {
        log.put(&Header { sender: KEY.hash64(&[b"ana"]), ..header(kind, hash("mine"), 1) }, &[], body);
    };
    let joined = b"\x03\0ops\x02\0\0\0\0\0\0\0";
    fact(&mut log, Kind::Joined, joined);
    fact(&mut log, Kind::Presence, br#""away, of mine""#);
    fact(&mut log, Kind::Receipt, &9_u64.to_le_bytes());
    log.mark();
    let folder = Folder::of(&[&log]);
    assert!(tool(&folder.0, |directory, out| purge::purge(directory, "mine", out)).1.is_empty());
    assert!(!holds(&folder.0, "of mine") && verify(&folder.0).1.is_empty());
    assert_eq!(members(&folder, "mine").len(), 2);
    let (text, _) = tool(&folder.0, |directory, out| export::export(directory, Some("mine"), out));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = |kind: &str| lines.iter().rposition(|line| line["kind"] == kind && line["purged"] != true);
    let bare = lines.iter().rposition(|line| line["kind"] == "member" && line["state"]["client_id"] == "ana");
    assert!(bare < last("joined") && bare < last("receipt") && last("receipt") < last("purge"), "{text}");
    assert_eq!((last("presence"), lines.iter().filter(|line| line["kind"] == "joined").count()), (None, 2));
}

#[test]
fn a_purge_of_an_earlier_version_that_is_finished_loses_no_member() {
    let mut log = of_two(true);
    member(&mut log, "mine", "ana", Some(r#""busy, of mine""#));
    member(&mut log, "mine", "ben", Some(r#""gone since, of mine""#));
    member(&mut log, "mine", "ben", None);
    log.put(&header(Kind::Purge, hash("mine"), 10), &[], &[]);
    log.mark();
    let folder = Folder::of(&[&log]);
    let shard = folder.file(&log, 0).parent().unwrap().to_owned();
    begin_purge(&shard, hash("mine")).unwrap();
    assert_eq!(finish_purges(&shard, 0, 1), Ok(10));
    assert!(holds(&folder.0, "busy, of mine") && !holds(&folder.0, "gone since, of mine"));
    assert_eq!(members(&folder, "mine").len(), 2);
    assert!(verify(&folder.0).1.is_empty());
    // A second purge removes the rest.
    assert!(tool(&folder.0, |directory, out| purge::purge(directory, "mine", out)).1.is_empty());
    assert!(!holds(&folder.0, "of mine") && verify(&folder.0).1.is_empty());
    assert_eq!(members(&folder, "mine")["ana"]["presence"], Value::Null);
}

#[test]
fn a_purge_goes_on_over_a_torn_end_and_where_another_one_stopped() {
    let made = of_two(false);
    let folder = Folder::of(&[&made]);
    let last = made.puts.last().unwrap();
    let (number, offset) = (last.at / CHUNK_BYTES as u64, usize::try_from(last.at % CHUNK_BYTES as u64).unwrap());
    folder.flip(&made, number, offset + HEADER_BYTES);
    let run = |session: &'static str| tool(&folder.0, move |directory, out| purge::purge(directory, session, out));
    assert_eq!(run("yours").0, "session yours: 9 messages were purged\n", "the torn one is cut");
    assert!(verify(&folder.0).0.starts_with("OK: ") && !holds(&folder.0, "of yours"));
    // Half of the message is still there, and so is the sign that a purge was begun.
    let (clean, path) = (&made.files[0].1, folder.file(&made, 0));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = clean.windows(8).position(|bytes| bytes == b"of yours").unwrap();
    bytes[at + 1000..at + 3000].copy_from_slice(&clean[at + 1000..at + 3000]);
    std::fs::write(&path, bytes).unwrap();
    assert!(verify(&folder.0).1.contains("does not match its checksum"));
    begin_purge(path.parent().unwrap(), hash("yours")).unwrap();
    assert_eq!(run("yours").0, "session yours: 1 messages were purged\n");
    assert!(verify(&folder.0).0.starts_with("OK: "));
    // A purge that was begun and not recorded is taken back.
    begin_purge(path.parent().unwrap(), hash("mine")).unwrap();
    assert_eq!(finish_purges(path.parent().unwrap(), 0, 1), Ok(0));
    assert!(holds(&folder.0, "of mine") && verify(&folder.0).0.starts_with("OK: "));
}

#[test]
fn a_repair_records_a_purge_again_whose_record_it_moved() {
    let made = of_two(true);
    let folder = Folder::of(&[&made]);
    tool(&folder.0, |directory, out| purge::purge(directory, "mine", out));
    // The second segment is damaged, and the record of the purge is in the fourth.
    folder.flip(&made, 1, 70);
    let (text, error) = tool(&folder.0, |directory, out| repair::repair(directory, false, out));
    assert!(error.is_empty() && text.contains("the purge of 1 sessions is recorded again"), "{text}{error}");
    let (text, error) = verify(&folder.0);
    assert!(text.starts_with("OK: ") && text.contains("are purged"), "{text}{error}");
}

#[test]
fn a_torn_message_of_a_session_whose_purge_was_only_signed_is_torn_and_nothing_is_purged_for_it() {
    for flipped in ["a-2", "b-2"] {
        let mut log = Made::new(0, 1, CHUNK_BYTES, 0);
        for id in ["a", "b"] {
            log.session(hash(id), &SessionState { session_id: id, head: 0, oldest: 1, epochs: Vec::new() });
        }
        log.message(hash("b"), 1, "b-1");
        log.mark();
        log.message(hash("a"), 1, "a-1");
        log.message(hash("a"), 2, "a-2");
        log.message(hash("b"), 2, "b-2");
        // The record reached the disk by chance, without a sync.
        log.put(&header(Kind::Purge, hash("b"), 2), &[], &[]);
        let folder = Folder::of(&[&log]);
        let path = folder.file(&log, 0).parent().unwrap().to_owned();
        let at = log.files[0].1.windows(3).position(|bytes| bytes == flipped.as_bytes()).unwrap();
        folder.flip(&log, 0, at);
        let torn = std::fs::read(folder.file(&log, 0)).unwrap();
        ["a", "b"].into_iter().for_each(|id| begin_purge(&path, hash(id)).unwrap());
        // Nothing is known of b's own message: the record of its purge is there, and the purge is finished.
        let purged = if flipped == "a-2" { 0 } else { 2 };
        assert_eq!(finish_purges(&path, 0, 1), Ok(purged), "{flipped}");
        assert!(purges(&path).unwrap().is_empty());
        assert_eq!(std::fs::read(folder.file(&log, 0)).unwrap() == torn, flipped == "a-2");
        let (text, error) = verify(&folder.0);
        assert!(error.is_empty() && text.contains("a torn end") == (flipped == "a-2"), "{flipped}: {text}{error}");
    }
}
