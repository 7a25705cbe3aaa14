//! From shard to shard: a message through a lane, with the door's knock and the reader's look at which shards have sent
//! something.

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::shard::across::mesh::{Batch, Class, LaneMessage, Mesh, Spoken};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks without success after which a waiting thread lets others run: the machine may have fewer cores than threads.
const LOOKS: u32 = 10_000;

/// Not counted to the lane's bytes.
const SMALL_BYTES: usize = 256;
/// Counted: two shared additions a hop more.
const WEIGHED_BYTES: usize = 16 * 1024;

fn message(records: Vec<u8>) -> LaneMessage {
    LaneMessage::Records(Batch { session: 42, first_seq: 1, count: 1, records })
}

fn records(message: Option<LaneMessage>) -> Vec<u8> {
    match message {
        Some(LaneMessage::Records(Batch { records, .. })) => records,
        other => unreachable!("records were put in, and {other:?} came out"),
    }
}

/// Takes a message that `from` has put into the lane to `to`, if its knock is visible.
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
    for (name, bytes) in [("lane/hop on one thread", SMALL_BYTES), ("lane/hop on one thread, weighed", WEIGHED_BYTES)] {
        let mut kept = Some(message(vec![7; bytes]));
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                put(&mesh, 0, 1, kept.take().expect("it came back"));
                kept = take(&mesh, 0, 1);
            });
        });
    }
    // As shards do it: the sender fills a returned buffer, the receiver empties it and returns it.
    let bytes = [7; SMALL_BYTES];
    mesh.give_back(0, 1, Vec::with_capacity(SMALL_BYTES)).expect("one buffer has room");
    criterion.bench_function("lane/hop on one thread, and the buffer back", |bencher| {
        bencher.iter(|| {
            let mut buffer = mesh.take_back(0, 1).expect("it came back");
            buffer.extend_from_slice(&bytes);
            put(&mesh, 0, 1, message(buffer));
            mesh.give_back(0, 1, records(take(&mesh, 0, 1))).expect("one buffer has room");
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
    let mut kept = Some(message(vec![7; SMALL_BYTES]));
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
