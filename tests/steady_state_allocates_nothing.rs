//! Once windows, pools and logs are full, a message goes through the shard, from its bytes to its readers' sockets, without one
//! allocation.

#[path = "support/counting.rs"]
mod counting;
#[path = "../benches/support/mod.rs"]
mod support;

use counting::allocations;
use ringway::config::Settings;
use ringway::ids::ConnId;
use support::{Message, Stage};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Enough of 1 KiB each to fill the smallest log twice and the tables of the id windows for good.
const WARM_MESSAGES: u64 = 4_000;
/// Enough to bring chunks, windows and the sweep around again.
const MESSAGES: u64 = 3_200;
const TEXT_BYTES: usize = 1_000;

fn small(settings: &mut Settings) {
    settings.log.memory_bytes = 0;
    settings.session.history_messages = 500;
}

/// Publishes `messages` in bursts, a turn each.
fn run(stage: &mut Stage, sender: ConnId, message: &mut Message, messages: u64, burst: usize) {
    for _ in 0..messages / burst as u64 {
        stage.publish(sender, message, burst);
        stage.settle();
    }
}

/// A warmed-up sender: `readers` are delivered all it sends, it is acknowledged all, and nothing is allocated.
fn check(readers: usize, to: &str, burst: usize) {
    let mut stage = Stage::new(small);
    stage.step_ns = 1_000_000;
    let sender = stage.join("sender", "s-42", &[]);
    let others: Vec<ConnId> = (0..readers).map(|number| stage.join(&format!("reader-{number}"), "s-42", &["ops"])).collect();
    let mut message = Message::new("s-42", to, TEXT_BYTES);
    run(&mut stage, sender, &mut message, WARM_MESSAGES, burst);
    let counts = |stage: &Stage| (stage.counters.delivered.get(), stage.counters.acknowledged.get());
    let (delivered, acknowledged) = counts(&stage);
    let sent: Vec<u64> = others.iter().map(|reader| stage.sent_bytes(*reader)).collect();
    let count = allocations(|| run(&mut stage, sender, &mut message, MESSAGES, burst));
    assert_eq!(counts(&stage), (delivered + MESSAGES * readers as u64, acknowledged + MESSAGES));
    for (reader, before) in others.iter().zip(sent) {
        assert!(stage.sent_bytes(*reader) - before > MESSAGES * TEXT_BYTES as u64, "every reader has the text of every message");
    }
    assert_eq!(stage.closed(), 0);
    assert_eq!(count, 0, "{MESSAGES} messages to {readers} readers at {to} in bursts of {burst}");
}

#[test]
fn a_session_of_two() {
    check(1, r#""session""#, 1);
    check(1, r#""client:reader-0""#, 1);
    check(1, r#"["client:reader-0","room:ops"]"#, 1);
}

#[test]
fn a_session_of_two_in_bursts() {
    check(1, r#""session""#, 16);
}

#[test]
fn one_to_a_hundred() {
    check(100, r#""session""#, 1);
    check(100, r#""room:ops""#, 1);
}

#[test]
fn one_to_a_hundred_in_bursts() {
    check(100, r#""session""#, 16);
}

/// The world is not always even: a reader that takes a part, waits, and catches up.
#[test]
fn a_reader_that_falls_behind_and_catches_up() {
    let mut stage = Stage::new(small);
    stage.step_ns = 1_000_000;
    let sender = stage.join("sender", "s-42", &[]);
    let reader = stage.join("reader", "s-42", &[]);
    let mut message = Message::new("s-42", r#""session""#, TEXT_BYTES);
    let mut rounds = |stage: &mut Stage, count: u64| {
        for round in 0..count {
            stage.unblock(reader, usize::try_from(round % 40).expect("small") * 100);
            run(stage, sender, &mut message, 40, 1);
            stage.unblock(reader, usize::MAX);
            stage.settle();
        }
    };
    rounds(&mut stage, WARM_MESSAGES / 40);
    let (delivered, short) = (stage.counters.delivered.get(), stage.counters.sends_short.get());
    let count = allocations(|| rounds(&mut stage, MESSAGES / 40));
    assert_eq!(stage.counters.delivered.get(), delivered + MESSAGES);
    assert!(stage.counters.sends_short.get() >= short + MESSAGES / 40, "sends were cut short");
    assert_eq!(stage.counters.gaps.get() + stage.closed() as u64, 0);
    assert_eq!(count, 0);
}
