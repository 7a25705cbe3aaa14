//! The WebSocket stage: decoding client frames in place, encoding server frames, unmasking alone.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringway::buffers::Buffers;
use ringway::limits::{FRAGMENTS_MAX, MESSAGE_BYTES_MAX};
use ringway::ws::Opcode;
use ringway::ws::decoder::{Decoder, Item, Limits};
use ringway::ws::encoder::{self, OpenFrame};
use std::hint::black_box;

const SIZES: [usize; 3] = [128, 1024, 16 * 1024];
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
const GATEWAY: Limits =
    Limits { message_bytes_max: MESSAGE_BYTES_MAX, fragments_max: FRAGMENTS_MAX, utf8: false, deflate: false, binary: false };

/// ASCII, as an envelope is.
fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| b'a' + (index % 26) as u8).collect()
}

fn client_frame(payload: &[u8]) -> Vec<u8> {
    let (mut head, head_bytes) = encoder::frame_head(payload.len(), Opcode::Text, true, false);
    head[1] |= 0x80;
    let mut out = head[..head_bytes].to_vec();
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn drain(decoder: &mut Decoder, bytes: &mut [u8], limits: &Limits, buffers: &mut Buffers) -> usize {
    let mut rest = bytes;
    let mut total = 0;
    while let Some(item) = decoder.next(&mut rest, limits, buffers).expect("the frames are well formed") {
        if let Item::Message { payload, .. } = item {
            total += black_box(&payload).len();
            payload.recycle(buffers);
        }
    }
    total
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames/decode");
    for bytes in SIZES {
        let frame = client_frame(&payload(bytes));
        group.throughput(Throughput::Bytes(bytes as u64));
        let checked = Limits { utf8: true, ..GATEWAY };
        for (name, limits) in [("whole", GATEWAY), ("whole_utf8", checked)] {
            let (mut decoder, mut buffers) = (Decoder::new(), Buffers::new(4, 1 << 20, 1 << 24));
            group.bench_function(format!("{name}/{bytes}"), |bencher| {
                bencher.iter_batched_ref(
                    || frame.clone(),
                    |frame| drain(&mut decoder, frame, &limits, &mut buffers),
                    BatchSize::SmallInput,
                );
            });
        }
        let (mut decoder, mut buffers) = (Decoder::new(), Buffers::new(4, 1 << 20, 1 << 24));
        group.bench_function(format!("split_in_two/{bytes}"), |bencher| {
            bencher.iter_batched_ref(
                || frame.clone(),
                |frame| {
                    let (head, tail) = frame.split_at_mut(bytes / 2);
                    drain(&mut decoder, head, &GATEWAY, &mut buffers) + drain(&mut decoder, tail, &GATEWAY, &mut buffers)
                },
                BatchSize::SmallInput,
            );
        });
    }
    let batch = client_frame(&payload(128)).repeat(16);
    group.throughput(Throughput::Elements(16));
    let (mut decoder, mut buffers) = (Decoder::new(), Buffers::new(4, 1 << 20, 1 << 24));
    group.bench_function("16_frames_in_a_read/128", |bencher| {
        bencher.iter_batched_ref(
            || batch.clone(),
            |batch| drain(&mut decoder, batch, &GATEWAY, &mut buffers),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames/encode");
    for bytes in SIZES {
        let payload = payload(bytes);
        let mut out = Vec::with_capacity(bytes + 16);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("known_length/{bytes}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encoder::frame(Opcode::Text, false, black_box(&payload), &mut out);
            });
        });
        group.bench_function(format!("open/{bytes}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                let frame = OpenFrame::begin(&mut out);
                out.extend_from_slice(black_box(&payload));
                frame.finish(Opcode::Text, &mut out);
            });
        });
    }
    group.finish();
}

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames/unmask");
    for bytes in SIZES {
        let mut payload = payload(bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes}"), |bencher| {
            bencher.iter(|| fastwebsockets::unmask(black_box(&mut payload), black_box(MASK)));
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode, unmask);
criterion_main!(benches);
