//! The way out alone: messages published before are sent, from cursors over the log.

#[path = "support/mod.rs"]
mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringway::ids::ConnId;
use std::cell::RefCell;
use support::{Message, Stage};

const TEXT_BYTES: usize = 128;
const BEHIND: usize = 1_000;
const READERS: usize = 1_000;

/// A reader whose socket was full while a thousand messages came is writable again.
fn catch_up(criterion: &mut Criterion) {
    let mut stage = Stage::new(|_| {});
    let sender = stage.join("sender", "s-42", &[]);
    let reader = stage.join("reader", "s-42", &[]);
    let message = Message::new("s-42", r#""session""#, TEXT_BYTES);
    let world = RefCell::new((stage, message));
    let fall_behind = || {
        let (stage, message) = &mut *world.borrow_mut();
        stage.block(reader);
        for _ in 0..BEHIND {
            stage.publish(sender, message, 1);
            stage.settle();
        }
        stage.counters.delivered.get()
    };
    let recover = |_| {
        let (stage, _) = &mut *world.borrow_mut();
        stage.unblock(reader, usize::MAX);
        stage.settle();
    };
    let before = fall_behind();
    recover(before);
    // The frame that met the full socket was not taken, so all of them count now.
    assert_eq!(world.borrow().0.counters.delivered.get() - before, BEHIND as u64, "the reader has caught up");
    let mut group = criterion.benchmark_group("flush/catch_up");
    group.throughput(Throughput::Elements(BEHIND as u64));
    group.bench_function("1,000 messages", |bencher| bencher.iter_batched(fall_behind, recover, BatchSize::PerIteration));
    group.finish();
}

/// A turn's new messages to a thousand readers that keep up: one frame read from the log, several gathered once for all.
fn fan_out(criterion: &mut Criterion) {
    let mut stage = Stage::new(|_| {});
    let sender = stage.join("sender", "s-42", &[]);
    let readers: Vec<ConnId> = (0..READERS).map(|number| stage.join(&format!("reader-{number}"), "s-42", &[])).collect();
    let message = Message::new("s-42", r#""session""#, TEXT_BYTES);
    let world = RefCell::new((stage, message));
    let mut group = criterion.benchmark_group("flush/1,000 readers");
    for (name, burst) in [("one frame", 1), ("16 frames", 16)] {
        let publish = || {
            let (stage, message) = &mut *world.borrow_mut();
            stage.publish(sender, message, burst);
        };
        let send = |()| world.borrow_mut().0.settle();
        let before = world.borrow().0.counters.delivered.get();
        publish();
        send(());
        assert_eq!(world.borrow().0.counters.delivered.get() - before, (burst * readers.len()) as u64, "all readers have all");
        group.throughput(Throughput::Elements((burst * readers.len()) as u64));
        group.bench_function(name, |bencher| bencher.iter_batched(publish, send, BatchSize::PerIteration));
    }
    group.finish();
}

criterion_group!(benches, catch_up, fan_out);
criterion_main!(benches);
