//! From shard to shard: a message through a lane, with the door's knock and the reader's look at who has spoken.

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::shard::lanes::{Batch, Class, LaneMessage, Mesh, Spoken};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks without success after which a waiting thread lets others run: the machine may have fewer cores than threads.
const LOOKS: u32 = 10_000;

fn message() -> LaneMessage {
    LaneMessage::Records(Batch { session: 42, first_seq: 1, count: 1, records: vec![7; 256] })
}

/// Takes a message that `from` has put into the lane to `to`, if its knock is seen.
fn take(mesh: &Mesh, from: usize, to: usize) -> Option<LaneMessage> {
    let mut spoken = Spoken::default();
    mesh.door(to).take(&mut spoken.0);
    let shard = spoken.pop()?;
    debug_assert_eq!(shard, from, "only one speaks");
    mesh.pop(shard, to, Class::Data)
}

fn put(mesh: &Mesh, from: usize, to: usize, message: LaneMessage) {
    black_box(mesh.push(from, to, Class::Data, message).expect("one message in a lane leaves room"));
}

/// Waits for a message; `None` once `stop` says so.
fn wait(mesh: &Mesh, from: usize, to: usize, stop: &AtomicBool) -> Option<LaneMessage> {
    let mut looks = 0;
    loop {
        if let Some(message) = take(mesh, from, to) {
            return Some(message);
        }
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        looks += 1;
        if looks % LOOKS == 0 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

fn one_thread(criterion: &mut Criterion) {
    let mesh = Mesh::new(2);
    let mut kept = Some(message());
    criterion.bench_function("lane/hop on one thread", |bencher| {
        bencher.iter(|| {
            put(&mesh, 0, 1, kept.take().expect("it came back"));
            kept = take(&mesh, 0, 1);
        });
    });
}

/// There and back between two threads that spin: two hops, and the cache lines that change cores for them.
fn two_threads(criterion: &mut Criterion) {
    let mesh = Mesh::new(2);
    let stop = Arc::new(AtomicBool::new(false));
    let other = {
        let (mesh, stop) = (Arc::clone(&mesh), Arc::clone(&stop));
        std::thread::spawn(move || {
            while let Some(message) = wait(&mesh, 0, 1, &stop) {
                put(&mesh, 1, 0, message);
            }
        })
    };
    let mut kept = Some(message());
    criterion.bench_function("lane/there and back, two threads", |bencher| {
        bencher.iter(|| {
            put(&mesh, 0, 1, kept.take().expect("it came back"));
            kept = wait(&mesh, 1, 0, &stop);
        });
    });
    stop.store(true, Ordering::Relaxed);
    other.join().expect("the other thread ends well");
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
