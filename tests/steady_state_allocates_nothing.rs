//! Once windows, pools and logs are full, a message goes through the shards, from its bytes to its readers' sockets, without one
//! allocation.

#[path = "support/counting.rs"]
mod counting;
#[path = "../benches/support/mod.rs"]
mod support;

use counting::allocations;
use ringway::config::Settings;
use ringway::ids::ConnId;
use support::{Message, Stage, at_home};

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

/// A warmed-up sender: `readers` receive all its messages, all are acknowledged, and nothing is allocated.
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

/// Load is not always even: a reader takes a part, waits, and catches up.
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

#[test]
fn receipts() {
    let mut stage = Stage::new(small);
    let sender = stage.join("sender", "s-42", &[]);
    let reader = stage.join("reader", "s-42", &[]);
    let mut message = Message::new("s-42", r#""session""#, TEXT_BYTES);
    let receipt = |seq| {
        support::masked(format!(r#"{{"type":"rw.received","id":"r","session_id":"s-42","payload":{{"seq":{seq}}}}}"#).as_bytes())
    };
    let mut receipts: Vec<Vec<u8>> = (1..=WARM_MESSAGES + MESSAGES).map(receipt).collect();
    let mut round = |stage: &mut Stage, receipts: &mut [Vec<u8>]| {
        for receipt in receipts {
            stage.publish(sender, &mut message, 1);
            stage.settle();
            stage.receive(reader, receipt);
            stage.settle();
        }
    };
    let (warm, counted) = receipts.split_at_mut(usize::try_from(WARM_MESSAGES).expect("few"));
    round(&mut stage, warm);
    let out = stage.counters.messages_out.get();
    let count = allocations(|| round(&mut stage, counted));
    assert_eq!(stage.counters.messages_out.get(), out + 2 * MESSAGES, "an ack and a delivery each");
    assert_eq!((count, stage.counters.refused.get()), (0, 0));
}

/// A message of another kind, or one that comes in two reads, to a reader in `session`.
fn check_kind(message: &mut Message, session: &str, split: bool) {
    let mut stage = Stage::new(|settings| {
        small(settings);
        // A channel's window is bounded by time long before it is by number.
        settings.session.dedupe_ms = 1_000;
    });
    stage.step_ns = 1_000_000;
    let sender = stage.join("sender", "s-42", &[]);
    let reader = stage.join("reader", session, &[]);
    let mut bytes = Vec::with_capacity(4096);
    let mut round = |stage: &mut Stage, count: u64| {
        for _ in 0..count {
            bytes.clear();
            message.write(&mut bytes);
            let cut = if split { bytes.len() / 3 } else { 0 };
            let (first, rest) = bytes.split_at_mut(cut);
            stage.receive(sender, first);
            stage.settle();
            stage.receive(sender, rest);
            stage.settle();
        }
    };
    round(&mut stage, WARM_MESSAGES);
    let sent = stage.sent_bytes(reader);
    let count = allocations(|| round(&mut stage, MESSAGES));
    assert!(stage.sent_bytes(reader) - sent > MESSAGES * TEXT_BYTES as u64, "the reader has all");
    assert_eq!((count, stage.closed()), (0, 0));
}

#[test]
fn a_message_in_two_reads() {
    check_kind(&mut Message::new("s-42", r#""session""#, TEXT_BYTES), "s-42", true);
}

#[test]
fn ephemeral() {
    check_kind(&mut Message::new("s-42", r#""session","ephemeral":true"#, TEXT_BYTES), "s-42", false);
}

#[test]
fn channel() {
    check_kind(&mut Message::new("s-42", r#""channel:news""#, TEXT_BYTES), "channel:news", false);
}

/// Messages of `sender` on one shard, in bursts; both shards' turns.
fn run_pair([here, there]: &mut [Stage; 2], sender: ConnId, message: &mut Message, messages: u64, burst: usize) {
    for _ in 0..messages / burst as u64 {
        here.publish(sender, message, burst);
        here.settle_with(std::slice::from_mut(there));
    }
}

/// A sender and a reader on one shard, in a session that is at home on the other, where it has a reader too.
fn check_relay(to: &str, burst: usize, text_bytes: usize, acks: bool) {
    let mut stages = Stage::pair(small);
    let session = at_home("s-", 1);
    for stage in &mut stages {
        stage.step_ns = 1_000_000;
    }
    let [here, there] = &mut stages;
    let local = at_home("local-", 0);
    let (sender, reader) = (here.join_with("sender", &local, &[], "", acks), here.join("reader", &local, &[]));
    for conn in [sender, reader] {
        here.attach(std::slice::from_mut(there), conn, &session);
    }
    let resident = there.join("at-home", &session, &[]);
    let mut message = Message::new(&session, to, text_bytes);
    run_pair(&mut stages, sender, &mut message, WARM_MESSAGES, burst);
    let sent = |stages: &[Stage; 2]| (stages[0].sent_bytes(reader), stages[1].sent_bytes(resident));
    let (acked, before) = (stages[1].counters.acknowledged.get(), sent(&stages));
    let count = allocations(|| run_pair(&mut stages, sender, &mut message, MESSAGES, burst));
    let after = sent(&stages);
    let text = MESSAGES * text_bytes as u64;
    assert!(after.0 - before.0 > text && after.1 - before.1 > text, "both readers have all, through the mirror and at home");
    assert_eq!(stages[1].counters.acknowledged.get() - acked, if acks { MESSAGES } else { 0 });
    assert_eq!((stages[0].counters.gaps.get(), stages[0].closed() + stages[1].closed()), (0, 0));
    assert_eq!(count, 0, "{MESSAGES} messages of {text_bytes} bytes to {to} in bursts of {burst}");
}

#[test]
fn a_session_at_home_on_another_shard() {
    check_relay(r#""session""#, 1, TEXT_BYTES, true);
}

#[test]
fn a_session_at_home_on_another_shard_in_bursts() {
    check_relay(r#""session""#, 16, TEXT_BYTES, true);
}

/// Without acks nothing but the emptied buffers goes the other way.
#[test]
fn one_way_to_another_shard() {
    check_relay(r#""session""#, 1, TEXT_BYTES, false);
    check_relay(r#""session""#, 16, 8 * TEXT_BYTES, false);
}

#[test]
fn ephemeral_on_another_shard() {
    check_relay(r#""session","ephemeral":true"#, 16, TEXT_BYTES, false);
}

/// A post from outside its channel, which is at home on another shard than the poster. Its reader is there.
#[test]
fn a_post_to_a_channel_on_another_shard() {
    let mut stages = Stage::pair(|settings| {
        small(settings);
        settings.session.dedupe_ms = 1_000;
    });
    for stage in &mut stages {
        stage.step_ns = 1_000_000;
    }
    let (local, channel) = (at_home("local-", 0), at_home("channel:news-", 1));
    let [here, there] = &mut stages;
    let sender = here.join("sender", &local, &[]);
    let reader = there.join("reader", &channel, &[]);
    let mut message = Message::new(&local, &format!("\"{channel}\""), TEXT_BYTES);
    run_pair(&mut stages, sender, &mut message, WARM_MESSAGES, 4);
    let sent = stages[1].sent_bytes(reader);
    let count = allocations(|| run_pair(&mut stages, sender, &mut message, MESSAGES, 4));
    assert!(stages[1].sent_bytes(reader) - sent > MESSAGES * TEXT_BYTES as u64, "the reader has all");
    assert_eq!((count, stages[0].closed(), stages[0].counters.refused.get()), (0, 0, 0));
}

/// Pings of an attachment whose session is at home here, or on another shard.
fn check_pings(shard: usize) {
    const PING: &str = r#"{"type":"rw.ping","id":"a-ping-with-an-id-of-some-length","session_id":"SESSION","payload":{}}"#;
    let mut stages = Stage::pair(small);
    let session = at_home("s-", shard);
    let [here, there] = &mut stages;
    let conn = here.join("client", &at_home("local-", 0), &[]);
    here.attach(std::slice::from_mut(there), conn, &session);
    let ping = support::masked(PING.replace("SESSION", &session).as_bytes());
    let mut bytes = ping.clone();
    let mut round = |[here, there]: &mut [Stage; 2], count: u64| {
        for _ in 0..count {
            bytes.copy_from_slice(&ping);
            here.receive(conn, &mut bytes);
            here.settle_with(std::slice::from_mut(there));
        }
    };
    round(&mut stages, WARM_MESSAGES);
    let out = stages[0].counters.messages_out.get();
    let count = allocations(|| round(&mut stages, MESSAGES));
    assert_eq!(stages[0].counters.messages_out.get() - out, MESSAGES, "a pong each");
    assert_eq!(count, 0);
}

#[test]
fn pings() {
    check_pings(0);
    check_pings(1);
}

#[test]
fn deflated_for_many() {
    const READERS: u64 = 10;
    let mut stage = Stage::new(|settings| {
        small(settings);
        settings.deflate.enabled = true;
    });
    stage.step_ns = 1_000_000;
    let sender = stage.join("sender", "s-42", &[]);
    let headers = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    for number in 0..READERS {
        stage.join_with(&format!("reader-{number}"), "s-42", &[], headers, true);
    }
    let mut message = Message::new("s-42", r#""session""#, 2 * TEXT_BYTES);
    run(&mut stage, sender, &mut message, WARM_MESSAGES, 4);
    let (delivered, out) = (stage.counters.delivered.get(), stage.counters.bytes_out.get());
    let count = allocations(|| run(&mut stage, sender, &mut message, MESSAGES, 4));
    assert_eq!(stage.counters.delivered.get(), delivered + MESSAGES * READERS);
    assert!(stage.counters.bytes_out.get() - out < MESSAGES * READERS * TEXT_BYTES as u64, "it went out deflated");
    assert_eq!(count, 0);
}
