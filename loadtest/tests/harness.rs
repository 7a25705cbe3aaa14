//! The harness as its users run it: against its own floor, and against a gateway in miniature that keeps or breaks its promises.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../src/wire.rs"]
#[allow(dead_code)]
mod wire;

use fake::{Fault, Gateway};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn harness(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway-loadtest")).args(arguments).output().unwrap()
}

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringway-loadtest-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(Path::new(path)).unwrap()).unwrap()
}

const SHORT: [&str; 6] = ["--no-pin", "--quiet", "--warmup-s", "0.1", "--duration-s", "0.4"];

fn on_floor(name: &str, arguments: &[&str]) -> Value {
    let folder = Folder::new(name);
    let file = folder.file("result.json");
    let output = harness(&[&["floor"], arguments, &SHORT, &["--json", &file]].concat());
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    json(&file)
}

fn on_gateway(name: &str, fault: Fault, scenario: &[&str]) -> (Option<i32>, Value) {
    let folder = Folder::new(name);
    let (file, key) = (folder.file("result.json"), folder.file("key.jwk"));
    std::fs::write(&key, r#"{"kty":"oct","alg":"HS256","kid":"k","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}"#).unwrap();
    let gateway = Gateway::start(fault);
    let url = format!("ws://{}/v1/ws", gateway.address);
    let output = harness(&[scenario, &SHORT, &["--url", &url, "--key", &key, "--json", &file]].concat());
    assert!(Path::new(&file).exists(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), json(&file))
}

fn figure(result: &Value, name: &str) -> f64 {
    let row = result["rows"].as_array().unwrap().iter().find(|row| row["name"] == name);
    row.unwrap_or_else(|| panic!("no figure {name:?} in {result}"))["value"]["median"].as_f64().unwrap()
}

#[test]
fn the_echo_floor_returns_every_size_whole() {
    // Smaller than a receive buffer, cut by it, and larger than a socket's.
    for size in ["36", "128", "5000", "300000"] {
        let result = on_floor(&format!("echo-{size}"), &["echo", "-c", "8", "--payload-bytes", size, "--in-flight", "3"]);
        assert!(result["loss"]["sent"].as_u64().unwrap() >= 24, "{}", result["loss"]);
        assert_eq!(result["passed"], true);
    }
}

#[test]
fn the_echo_floor_keeps_a_fixed_rate_over_two_workers() {
    let result = on_floor("rate", &["echo", "-c", "10", "--rate", "500", "--workers", "2"]);
    // All messages due in warm-up and window are sent, however late.
    let sent = result["loss"]["sent"].as_u64().unwrap();
    assert!((248..=252).contains(&sent), "{sent}");
    assert!(figure(&result, "server CPU a message") > 0.0);
}

#[test]
fn the_relay_floor_delivers_and_acknowledges_every_size_whole() {
    for size in ["36", "128", "5000", "300000"] {
        let arguments = ["relay", "-c", "12", "--payload-bytes", size, "--in-flight", "3", "--workers", "2"];
        let result = on_floor(&format!("relay-{size}"), &arguments);
        let loss = &result["loss"];
        assert!(loss["sent"].as_u64().unwrap() >= 18 && loss["delivered"] == loss["sent"], "{loss}");
        // The acks came: without them `unanswered` would count, and nothing would be timed.
        assert!(loss["unanswered"] == 0 && figure(&result, "ack p50") > 0.0, "{loss}");
    }
    let result = on_floor("relay-rate", &["relay", "-c", "4", "--rate", "300"]);
    assert!(figure(&result, "sent late p50") > 0.0);
}

#[test]
fn a_relay_is_read_against_the_floor_that_is_asked_for() {
    let relay = ["relay", "-c", "4", "--with-floor"];
    let (code, result) = on_gateway("relay-beside-echo", Fault::None, &relay);
    let note = |result: &Value| result["notes"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let beside = |result: &Value, name: &str| {
        result["rows"].as_array().unwrap().iter().any(|row| row["name"] == name && !row["floor"].is_null())
    };
    assert!(code == Some(0) && beside(&result, "latency p50") && !beside(&result, "ack p50"), "an echo has no acks");
    assert_eq!(note(&result), "the floor is the bare Echo server with messages of 128 bytes");
    let (code, result) = on_gateway("relay-beside-relay", Fault::None, &[&relay[..], &["--floor-kind", "relay"]].concat());
    assert!(code == Some(0) && beside(&result, "latency p50") && beside(&result, "ack p50"), "{}", result["loss"]);
    let said = note(&result);
    let bytes =
        said.strip_prefix("the floor is the bare Relay server with messages of ").and_then(|rest| rest.strip_suffix(" bytes"));
    let bytes: usize = bytes.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    assert!((200..400).contains(&bytes), "a payload of 128 bytes, in its envelope: {bytes}");
}

#[test]
fn a_choice_of_floor_is_relays_alone() {
    let url = ["--url", "ws://127.0.0.1:1/", "--with-floor", "--floor-kind"];
    for (arguments, kind) in [
        (&["echo"][..], "relay"),
        (&["fanout"], "fanout"),
        (&["slow"], "echo"),
        (&["history"], "echo"),
        (&["smoke"], "relay"),
        (&["relay"], "fanout"),
        (&["floor", "relay"], "relay"),
    ] {
        let output = harness(&[arguments, &url, &[kind]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(2) && said.contains("--floor-kind") && said.contains("relay"),
            "{arguments:?}: {said}"
        );
    }
    let output = harness(&["relay", "--url", "ws://127.0.0.1:1/", "--floor-kind", "relay"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("--with-floor"));
}

#[test]
fn the_fanout_floor_reaches_every_other_in_order() {
    let result = on_floor("fanout", &["fanout", "-c", "20", "--burst", "16", "--workers", "2"]);
    let loss = &result["loss"];
    assert_eq!(loss["delivered"].as_u64().unwrap(), loss["sent"].as_u64().unwrap() * 20);
    assert!(loss["sent"].as_u64().unwrap() >= 16);
}

#[test]
fn a_gateway_that_keeps_its_promises_passes_everywhere() {
    for scenario in [
        &["relay", "-c", "10", "--in-flight", "2"][..],
        &["relay", "-c", "10", "--rate", "300"],
        &["fanout", "-c", "8", "--burst", "4"],
        &["channel", "-c", "8"],
        &["rooms", "-c", "9", "--room-size", "3", "--rate", "200"],
        &["reconnect", "-c", "10", "--rate", "300", "--storms", "2"],
        &["soak", "-c", "10", "--rate", "300", "--churn-per-s", "20"],
        &["connect", "-c", "30"],
        &["slow", "-c", "20", "--stalled-percent", "10", "--payload-bytes", "8192"],
        HISTORY,
    ] {
        let (code, result) = on_gateway(&format!("good-{}-{}", scenario[0], scenario.len()), Fault::None, scenario);
        assert_eq!(code, Some(0), "{scenario:?}: {} {}", result["loss"], result["problems"]);
        if scenario[0] != "connect" {
            assert!(result["loss"]["delivered"].as_u64().unwrap() > 0, "{scenario:?}");
        }
    }
}

const HISTORY: &[&str] = &["history", "-c", "4", "--rate", "300", "--history-bytes", "40000"];

#[test]
fn a_reader_catches_up_from_the_start_and_from_the_middle() {
    let (code, result) = on_gateway("history", Fault::None, &[HISTORY, &["--workers", "2"]].concat());
    assert_eq!(code, Some(0), "{} {}", result["loss"], result["problems"]);
    // 312 messages were there before, twice; one was live.
    assert!(result["loss"]["sent"].as_u64().unwrap() > 624, "{}", result["loss"]);
    let laps = figure(&result, "times caught up");
    assert!(laps >= 2.0, "{laps}");
    for place in ["start", "middle"] {
        assert!(figure(&result, &format!("catch-up from the {place}")) > 0.0);
    }
    let beside = |name: &str| result["rows"].as_array().unwrap().iter().any(|row| row["name"] == name && !row["floor"].is_null());
    assert!(beside("latency p99") && !beside("times caught up"), "the same load runs without the far reader");
}

#[test]
fn a_far_reader_takes_no_more_than_it_is_told() {
    let (code, result) = on_gateway("history-at-a-rate", Fault::None, &[HISTORY, &["--catch-up-mb-per-second", "2"]].concat());
    assert_eq!(code, Some(0), "{} {}", result["loss"], result["problems"]);
    let rate = figure(&result, "catch-up from the start");
    assert!(rate > 0.0 && rate < 2.1, "{rate} MB/s");
}

#[test]
fn sessions_are_made_and_the_servers_memory_is_read() {
    let pid = std::process::id().to_string();
    let sessions = ["sessions", "-c", "100", "--session-messages", "3", "--pid", &pid];
    let (code, result) = on_gateway("sessions", Fault::None, &sessions);
    assert_eq!(code, Some(0), "{} {}", result["loss"], result["problems"]);
    assert!(figure(&result, "RSS") > 1.0);
}

#[test]
fn a_storm_cuts_everyone_and_everyone_catches_up() {
    let (code, result) = on_gateway("storm", Fault::None, &["reconnect", "-c", "10", "--rate", "300", "--storms", "2"]);
    assert_eq!(code, Some(0), "{} {}", result["loss"], result["problems"]);
    // The first storm cuts all ten; the second those that a busy machine has let come back.
    let cut = figure(&result, "connections cut");
    assert!(cut > 10.0 && cut <= 20.0, "{cut} of 20");
    assert!(figure(&result, "resume p50") > 0.0);
}

#[test]
fn every_broken_promise_is_found() {
    for (fault, scenario, field) in [
        (Fault::Lose(20), &["relay", "-c", "4", "--rate", "300"][..], "lost"),
        (Fault::Repeat(20), &["relay", "-c", "4", "--rate", "300"], "duplicates"),
        (Fault::Withhold(20), &["relay", "-c", "4", "--rate", "300"], "unanswered"),
        (Fault::Skip(20), HISTORY, "lost"),
        (Fault::Repeat(20), HISTORY, "duplicates"),
        (Fault::Lose(20), &["fanout", "-c", "4", "--rate", "300"], "lost"),
        (Fault::Repeat(20), &["rooms", "-c", "6", "--room-size", "3", "--rate", "300"], "duplicates"),
    ] {
        let (code, result) = on_gateway(&format!("bad-{fault:?}-{}", scenario[0]), fault, scenario);
        assert_eq!(code, Some(1), "{fault:?} {scenario:?}: {}", result["loss"]);
        assert!(result["loss"][field].as_u64().unwrap() > 0, "{fault:?} {scenario:?}: {}", result["loss"]);
    }
}

#[test]
fn ids_forgotten_over_a_storm_are_found() {
    // Every message is in flight when the storm comes, so that some are sent again.
    let scenario = ["reconnect", "-c", "20", "--rate", "20000", "--storms", "6"];
    let (code, result) = on_gateway("ids", Fault::ForgetIds, &scenario);
    assert_eq!(code, Some(1), "{}", result["loss"]);
    assert!(result["loss"]["duplicates"].as_u64().unwrap() > 0, "{}", result["loss"]);
}

#[test]
fn two_results_are_compared_and_a_page_is_written() {
    let folder = Folder::new("compare");
    let (a, b, page) = (folder.file("a.json"), folder.file("b.json"), folder.file("page.html"));
    for file in [&a, &b] {
        let output = harness(&[&["floor", "echo", "-c", "4", "--html", &page, "--json", file][..], &SHORT].concat());
        assert!(output.status.success());
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
    let output = harness(&["compare", &a, &b]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("server CPU a message") && text.contains('%'), "{text}");
    let option = harness(&["--compare", &a, &b]);
    assert!(option.status.success() && String::from_utf8(option.stdout).unwrap() == text, "the option is the command");
    for wrong in [&["--compare", &a][..], &["--compare", &a, &b, &a], &["--compare", &a, &b, "echo"], &[]] {
        let output = harness(wrong);
        assert!(output.status.code() == Some(2) && !output.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn what_cannot_be_loaded_is_said() {
    let output = harness(&["echo"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--spawn") && said.contains("--url"), "{said}");
    let output = harness(&["crash", "--url", "ws://127.0.0.1:1/"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--spawn"), "{said}");
    let output = harness(&["echo", "--spawn", "/does/not/exist", "--no-pin"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("/does/not/exist"));
    let output = harness(&["echo", "--spawn", "/bin/false", "--no-pin"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("ended before it listened"));
}
