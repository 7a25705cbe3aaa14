//! The protocol stage: a message read, extended and acknowledged.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringway::protocol::{AddedBuf, CommandParser, Head, Parser, ack, added, make_traceparent};
use std::hint::black_box;

/// An envelope with a payload of about `payload_bytes` of chat text.
fn message(payload_bytes: usize) -> Vec<u8> {
    let text = "The quick brown fox jumps. ".repeat(payload_bytes / 27 + 1);
    format!(
        r#"{{"type":"chat.message","id":"0192f3c1-7b2a-7c3d-9e4f-5a6b7c8d9e0f","session_id":"s-42","to":"session","payload":{{"text":"{}"}}}}"#,
        &text[..payload_bytes - 11]
    )
    .into_bytes()
}

/// The same size as many small values: the dearest shape for the structural walk.
fn dense(payload_bytes: usize) -> Vec<u8> {
    let row = r#"{"id":17,"tags":["a","b"],"on":true},"#;
    let rows = row.repeat(payload_bytes / row.len());
    format!(
        r#"{{"type":"chat.message","id":"0192f3c1-7b2a-7c3d-9e4f-5a6b7c8d9e0f","session_id":"s-42","payload":[{}]}}"#,
        rows.trim_end_matches(',')
    )
    .into_bytes()
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope/parse");
    let mut parser = Parser::default();
    for (name, text) in [
        ("128 B", message(128)),
        ("1 KiB", message(1024)),
        ("16 KiB", message(16 * 1024)),
        ("1 KiB dense", dense(1024)),
        ("16 KiB dense", dense(16 * 1024)),
    ] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| parser.parse(black_box(&text)).expect("a good envelope").payload.len());
        });
    }
    group.finish();
}

/// The part of [`parse`] that simd-json takes, with its buffers reused alike: the rest is ours.
fn validate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope/validate_alone");
    let mut buffers = simd_json::Buffers::with_max_depth(1024, 64);
    let (mut scratch, mut kept) = (Vec::new(), simd_json::Tape(Vec::new()));
    for (name, text) in [("128 B", message(128)), ("16 KiB", message(16 * 1024)), ("16 KiB dense", dense(16 * 1024))] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                scratch.clear();
                scratch.extend_from_slice(black_box(&text));
                scratch.resize(text.len() + simd_json::INPUT_PADDING, b' ');
                let mut tape = std::mem::replace(&mut kept, simd_json::Tape(Vec::new())).reset();
                simd_json::fill_tape_padded(&mut scratch, text.len(), &mut buffers, &mut tape).expect("good JSON");
                kept = tape.reset();
            });
        });
    }
    group.finish();
}

fn command(criterion: &mut Criterion) {
    let text = br#"{"type":"rw.received","id":"17","session_id":"s-42","payload":{"seq":1041}}"#;
    let (mut parser, mut commands) = (Parser::default(), CommandParser::default());
    criterion.bench_function("envelope/received", |bencher| {
        bencher.iter(|| {
            let envelope = parser.parse(black_box(text)).expect("a good envelope");
            black_box(commands.parse(&envelope).expect("a good command"));
        });
    });
}

fn splice(criterion: &mut Criterion) {
    let mut scratch = AddedBuf::default();
    let traceparent = make_traceparent([7; 16], [7; 8]);
    criterion.bench_function("envelope/splice", |bencher| {
        bencher.iter(|| {
            let traceparent = Some(traceparent.as_str());
            added(&mut scratch, black_box(Some(1_041)), black_box("ana/tab-7"), black_box(1_790_000_000_000), traceparent);
            black_box(scratch.as_bytes().len())
        });
    });
}

fn acknowledge(criterion: &mut Criterion) {
    let head = Head { id: "0192f3c1-7b2a-7c3d-9e4f-5a6b7c8d9e0f", session_id: "s-42" };
    criterion.bench_function("envelope/ack", |bencher| {
        bencher.iter_batched_ref(
            || Vec::with_capacity(256),
            |out| ack(out, black_box(head), black_box(1_041), false),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, parse, validate, command, splice, acknowledge);
criterion_main!(benches);
