//! A message through the whole shard: bytes in, parse, place in the order, log, cursors, sends; sessions of several sizes.

#[path = "support/mod.rs"]
mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Message, Stage};

const TEXT_BYTES: usize = 128;

/// A session of this many members, the sender among them; a tenth of the others, at least one, is in the room.
fn routing(criterion: &mut Criterion) {
    for members in [2_usize, 100, 10_000] {
        let mut stage = Stage::new(|_| {});
        let sender = stage.join("sender", "s-42", &[]);
        let others = members - 1;
        let listeners = (others / 10).max(1);
        for number in 0..others {
            let rooms: &[&str] = if number < listeners { &["ops"] } else { &[] };
            stage.join(&format!("reader-{number}"), "s-42", rooms);
        }
        let mut group = criterion.benchmark_group(format!("routing/{members} members"));
        for (kind, (name, to, receivers)) in (0..).zip([
            ("to session", r#""session""#, others),
            ("to client", r#""client:reader-0""#, 1),
            ("to room", r#""room:ops""#, listeners),
        ]) {
            let mut message = Message::new("s-42", to, TEXT_BYTES);
            // A sender's ids are its own over all its messages.
            message.start_at(kind * 100_000_000_000);
            let before = stage.counters.delivered.get();
            stage.publish(sender, &mut message, 1);
            stage.settle();
            assert_eq!(stage.counters.delivered.get() - before, receivers as u64, "{name} of {members}");
            group.throughput(Throughput::Elements(receivers as u64));
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    stage.publish(sender, &mut message, 1);
                    stage.settle();
                });
            });
        }
        group.finish();
        assert_eq!(stage.counters.duplicates.get() + stage.counters.refused.get() + stage.closed() as u64, 0, "all was routed");
    }
}

criterion_group!(benches, routing);
criterion_main!(benches);
