//! Instructions a message: the real shard over an engine in memory, with a seed, a clock and messages that are the same each time.
//!
//!     .ci/instructions BEFORE [AFTER]                  counts them in two commits, under valgrind's callgrind
//!     cargo bench --bench instructions [-- CASE]       runs the cases without valgrind: that they run, and how long they take
//!
//! Callgrind counts while [`counted_instructions`] runs, and nothing else: not the warm-up, nor the making of messages.
//! docs/BENCHMARKS.md says what that leaves out.

#[path = "support/mod.rs"]
mod support;

use ringway::ids::ConnId;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;
use support::{Message, Stage};

const TEXT_BYTES: usize = 128;
const SESSION: &str = "s-42";
const TO_ALL: &str = r#""session""#;
/// Enough messages to fill the smallest log that a configuration may have, and to reuse its oldest chunks.
const LOG_FILL_MESSAGES: usize = 40_000;
const LOG_MEMORY_BYTES: usize = 8 * 1024 * 1024;
/// Fewer than a sender has sent before anything is counted: from then on each new message drops an old one.
const HISTORY_MESSAGES: usize = 2_000;
/// Enough for the sender's id window to be full for good, and its table to have its final size.
const WINDOW_FILL_MESSAGES: usize = 4_096;
const _: () = assert!(HISTORY_MESSAGES < WINDOW_FILL_MESSAGES);
const WARM_BURST: usize = 16;

struct Case {
    name: &'static str,
    readers: usize,
    /// Messages that one read holds: a turn each.
    burst: usize,
    messages: usize,
}

/// Several chunks of the log each in `relay`, so that a chunk's beginning and end count with their share. `.ci/instructions` has
/// their names too.
const CASES: [Case; 4] = [
    Case { name: "relay/1", readers: 1, burst: 1, messages: 16_384 },
    Case { name: "relay/16", readers: 1, burst: 16, messages: 16_384 },
    Case { name: "fanout/1", readers: 1_000, burst: 1, messages: 1_024 },
    Case { name: "fanout/16", readers: 1_000, burst: 16, messages: 4_096 },
];

/// The counted part: all of a shard's work for these reads, and the little that the engine in memory does. Callgrind finds the
/// place by its name, so this has to stay a function of its own, without closures, whose names would contain it too.
#[inline(never)]
fn counted_instructions(stage: &mut Stage, sender: ConnId, bytes: &mut [u8], read_bytes: usize) {
    for read in bytes.chunks_exact_mut(read_bytes) {
        stage.receive(sender, read);
        stage.settle();
    }
    black_box(stage);
}

/// `count` frames, one after the other, and the length of one.
fn frames(message: &mut Message, count: usize) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    for _ in 0..count {
        message.write(&mut bytes);
    }
    let frame_bytes = bytes.len() / count;
    (bytes, frame_bytes)
}

fn warm_up(stage: &mut Stage, sender: ConnId, message: &mut Message, messages: usize, burst: usize) {
    for _ in 0..messages / burst {
        stage.publish(sender, message, burst);
        stage.settle();
    }
}

/// Runs a case once. Returns the nanoseconds of the counted part.
fn run(case: &Case) -> u128 {
    let mut stage = Stage::new(|settings| {
        settings.log.memory_bytes = LOG_MEMORY_BYTES;
        settings.session.history_messages = HISTORY_MESSAGES;
    });
    // The log is filled by other clients: with a thousand readers each message would take a thousand times as long.
    let filler = stage.join("filler", "s-filler", &[]);
    warm_up(&mut stage, filler, &mut Message::new("s-filler", TO_ALL, TEXT_BYTES), LOG_FILL_MESSAGES, WARM_BURST);

    let sender = stage.join("sender", SESSION, &[]);
    for number in 0..case.readers {
        stage.join(&format!("reader-{number}"), SESSION, &[]);
    }
    let mut message = Message::new(SESSION, TO_ALL, TEXT_BYTES);
    warm_up(&mut stage, sender, &mut message, WINDOW_FILL_MESSAGES, WARM_BURST);
    warm_up(&mut stage, sender, &mut message, 64 * case.burst, case.burst);

    let (mut bytes, frame_bytes) = frames(&mut message, case.messages);
    let counts = |stage: &Stage| (stage.counters.acknowledged.get(), stage.counters.delivered.get());
    let (acknowledged, delivered) = counts(&stage);
    #[allow(clippy::disallowed_methods, reason = "how long a run took; the shard's clock is the stage's")]
    let now = Instant::now;
    let began = now();
    counted_instructions(&mut stage, sender, &mut bytes, frame_bytes * case.burst);
    let took_ns = began.elapsed().as_nanos();
    let (messages, deliveries) = (case.messages as u64, (case.messages * case.readers) as u64);
    assert_eq!(counts(&stage), (acknowledged + messages, delivered + deliveries), "{}: each message reached everyone", case.name);
    assert_eq!(stage.counters.duplicates.get() + stage.counters.refused.get() + stage.closed() as u64, 0, "{}", case.name);
    took_ns
}

/// Runs the named case, those whose names contain the argument, or all. `.ci/instructions` reads a case and its messages from the
/// output.
fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let exact = CASES.iter().any(|case| case.name == wanted);
    let mut out = std::io::stdout().lock();
    let mut say = |line: &str| writeln!(out, "{line}").expect("standard output takes it");
    for case in CASES.iter().filter(|case| if exact { case.name == wanted } else { case.name.contains(&wanted) }) {
        let ns = run(case) / case.messages as u128;
        say(&format!("{:<10} {:>6} messages {ns:>9} ns a message", case.name, case.messages));
    }
    if wanted.is_empty() {
        say("Nanoseconds of one run, to see that it runs. Instructions: .ci/instructions BEFORE [AFTER] (docs/BENCHMARKS.md)");
    }
}
