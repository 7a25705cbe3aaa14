//! Any bytes as a client's frames: in any pieces they give the same items, and no more memory than arrived.
//!
//! The first byte chooses what the endpoint accepts, the second the size of the pieces; the rest is the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::close::CloseReason;
use ringway::buffers::Buffers;
use ringway::ws::decoder::{Decoder, Item, Limits};
use ringway::ws::deflate::Inflater;

const MESSAGE_BYTES_MAX: usize = 4096;

#[derive(Debug, PartialEq)]
enum Seen {
    Message { text: bool, compressed: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Error(CloseReason),
}

fn decode(stream: &[u8], piece_bytes: usize, limits: &Limits) -> Vec<Seen> {
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(2, 8192, 1 << 24), Vec::new());
    for piece in stream.chunks(piece_bytes) {
        let mut piece = piece.to_vec();
        let mut rest = piece.as_mut_slice();
        loop {
            let (item, payload) = match decoder.next(&mut rest, limits, &mut buffers) {
                Ok(None) => break,
                Ok(Some(Item::Message { text, compressed, payload })) => {
                    (Seen::Message { text, compressed, payload: payload.to_vec() }, payload)
                }
                Ok(Some(Item::Ping(payload))) => (Seen::Ping(payload.to_vec()), payload),
                Ok(Some(Item::Pong(payload))) => (Seen::Pong(payload.to_vec()), payload),
                Ok(Some(Item::Close { code, reason })) => (Seen::Close(code, reason.to_vec()), reason),
                Err(reason) => {
                    seen.push(Seen::Error(reason));
                    return seen;
                }
            };
            seen.push(item);
            payload.recycle(&mut buffers);
        }
        assert!(rest.is_empty(), "bytes were left");
        assert!(decoder.buffered_bytes() <= 8192, "more memory than the limits allow");
    }
    seen
}

fuzz_target!(|input: &[u8]| {
    let [flags, piece, stream @ ..] = input else { return };
    let limits = Limits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        fragments_max: 8,
        utf8: flags & 1 != 0,
        deflate: flags & 2 != 0,
        binary: flags & 4 != 0,
    };
    let whole = decode(stream, stream.len().max(1), &limits);
    assert_eq!(decode(stream, 1, &limits), whole, "one byte at a time");
    assert_eq!(decode(stream, usize::from(*piece).max(1), &limits), whole, "in pieces");

    let (mut inflater, mut plain) = (Inflater::new(), Vec::new());
    for item in &whole {
        match item {
            Seen::Message { compressed: true, payload, .. } => {
                if inflater.inflate(payload, MESSAGE_BYTES_MAX, &mut plain).is_ok() {
                    assert!(plain.len() <= MESSAGE_BYTES_MAX, "the limit counts what came out");
                }
            }
            Seen::Message { text, payload, .. } => {
                assert!(payload.len() <= MESSAGE_BYTES_MAX);
                assert!(!(*text && limits.utf8) || std::str::from_utf8(payload).is_ok(), "text that is no UTF-8");
            }
            Seen::Ping(payload) | Seen::Pong(payload) => assert!(payload.len() <= 125),
            Seen::Close(_, reason) => assert!(reason.len() <= 123 && std::str::from_utf8(reason).is_ok()),
            Seen::Error(reason) => assert!(reason.code().is_some(), "a protocol error has a close code"),
        }
    }
});
