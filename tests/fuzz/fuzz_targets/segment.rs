//! Any bytes as segments of the log, and as the bodies of its records: no panic, what is shown is in order, and what is read as a
//! state is written as the same bytes.
//!
//! The first byte chooses how many segments follow and whether checksums are made right where a record seems to start.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::limits::CHUNK_BYTES;
use ringway::log::{
    Header, Joined, Kind, Left, Mark, MemberState, Receipt, Roles, SEGMENT_VERSION, ScanError, Scanner, SegmentHeader, SessionState, StateError,
    Stays, decode_empty, write_record,
};

fn states(body: &[u8]) {
    let same = |encode: &dyn Fn(&mut Vec<u8>) -> Result<(), StateError>| {
        let mut out = Vec::new();
        encode(&mut out).expect("what was read fits");
        assert_eq!(out, body);
    };
    if let Ok(session) = SessionState::decode(body) {
        same(&|out| session.encode(out));
    }
    if let Ok(member) = MemberState::decode(body) {
        assert!(member.client_id.starts_with(member.subject()));
        same(&|out| member.encode(out));
    }
    if let Ok(joined) = Joined::decode(body) {
        same(&|out| joined.encode(out));
    }
    if let Ok(left) = Left::decode(body) {
        same(&|out| left.encode(out));
    }
    if let Ok(roles) = Roles::decode(body) {
        same(&|out| roles.encode(out));
    }
    if let Ok(stays) = Stays::decode(body) {
        same(&|out| stays.encode(out));
    }
    if let Ok(mark) = Mark::decode(body) {
        same(&|out| {
            mark.encode(out);
            Ok(())
        });
        assert!(Receipt::decode(body).is_ok());
    }
    assert_eq!(decode_empty(body).is_ok(), body.is_empty());
}

/// Good records of the data's pieces, each its length, its kind and its body, then the rest as it is.
fn made(mut data: &[u8], header: &SegmentHeader) -> Vec<u8> {
    let (mut file, mut chain) = (header.encode().to_vec(), header.chain_start());
    while let [len @ 1..=200, kind, rest @ ..] = data
        && let Some(kind) = Kind::from_number(*kind)
        && let Some((body, rest)) = rest.split_at_checked(usize::from(*len))
    {
        let seq = file.len() as u64;
        let header = Header { kind, session: 1, seq, epoch: 0, ts_ms: 0, sender: 0, id: 0, content: 0 };
        chain = write_record(&mut file, &header, &[], body, chain);
        data = rest;
    }
    file.extend_from_slice(data);
    file
}

fuzz_target!(|data: &[u8]| {
    let [choice, data @ ..] = data else { return };
    states(data);
    let pieces = usize::from(choice & 3) + 1;
    let mut scanner = Scanner::new(0, 1);
    let (mut end, mut shown) = (0, 0_u64);
    for (number, piece) in data.chunks(data.len().div_ceil(pieces).max(1)).enumerate() {
        let number = number as u64;
        let header =
            SegmentHeader { version: SEGMENT_VERSION, shard: 0, generation: 1, number, segment_bytes: CHUNK_BYTES as u64, created_ms: 0, chain_before: 0 };
        let file = if choice & 4 == 0 { piece.to_vec() } else { made(piece, &header) };
        let mut feed = || {
            scanner.segment(number)?;
            file.chunks(CHUNK_BYTES).try_for_each(|chunk| {
                scanner.chunk(chunk, |at, record| {
                    assert!(at.0 >= end && at.0 / CHUNK_BYTES as u64 == number);
                    end = at.0 + record.length as u64;
                    shown += 1;
                    states(record.body);
                })
            })
        };
        if feed().is_err() {
            return;
        }
    }
    match scanner.finish() {
        Ok(scanned) => {
            assert_eq!(scanned.records, shown);
            assert!(scanned.end.0 >= end && scanned.synced_to <= scanned.end.0);
            assert!(scanned.torn.is_none_or(|torn| torn.bytes <= data.len() as u64 * 2 + 100_000));
        }
        Err(ScanError::Damaged(damage)) => assert!(damage.valid_bytes <= damage.offset && !damage.to_string().is_empty()),
        Err(error) => panic!("only damage is told at the end: {error}"),
    }
});
