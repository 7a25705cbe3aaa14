//! The attack table of frames, and the promise that a split changes nothing.

use super::*;
use crate::ws::{Opcode, encoder};
use proptest::prelude::*;

const LIMITS: Limits = Limits { message_bytes_max: 1000, fragments_max: 4, utf8: true, deflate: false, binary: true };

/// An item without its lifetime, for comparing.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Message { text: bool, compressed: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
    Error(CloseReason),
}

/// A client frame; `first` is the whole first byte.
fn client_frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let (mut head, head_bytes) = encoder::frame_head(payload.len(), Opcode::Continuation, false, false);
    head[0] = first;
    head[1] |= 0x80;
    let mut out = head[..head_bytes].to_vec();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
    out
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, payload, [0x12, 0x34, 0x56, 0x78])
}

fn feed(decoder: &mut Decoder, bytes: &[u8], limits: &Limits, buffers: &mut Buffers, seen: &mut Vec<Seen>) {
    let mut bytes = bytes.to_vec();
    let mut rest = bytes.as_mut_slice();
    loop {
        match decoder.next(&mut rest, limits, buffers) {
            Ok(None) => break,
            Ok(Some(Item::Message { text, compressed, payload })) => {
                seen.push(Seen::Message { text, compressed, payload: payload.to_vec() });
                payload.recycle(buffers);
            }
            Ok(Some(Item::Ping(payload))) => {
                seen.push(Seen::Ping(payload.to_vec()));
                payload.recycle(buffers);
            }
            Ok(Some(Item::Pong(payload))) => {
                seen.push(Seen::Pong(payload.to_vec()));
                payload.recycle(buffers);
            }
            Ok(Some(Item::Close { code, reason })) => {
                seen.push(Seen::Close(code, reason.to_vec()));
                reason.recycle(buffers);
            }
            Err(reason) => {
                seen.push(Seen::Error(reason));
                break;
            }
        }
    }
    assert!(rest.is_empty() || matches!(seen.last(), Some(Seen::Error(_))), "bytes were left");
}

fn decode_pieces<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, limits: &Limits) -> Vec<Seen> {
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24), Vec::new());
    for piece in pieces {
        feed(&mut decoder, piece, limits, &mut buffers, &mut seen);
    }
    seen
}

fn decode(bytes: &[u8], limits: &Limits) -> Vec<Seen> {
    let whole = decode_pieces([bytes], limits);
    assert_eq!(decode_pieces(bytes.chunks(1), limits), whole, "one byte at a time");
    for at in 0..bytes.len().min(200) {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(decode_pieces([head, tail], limits), whole, "split at {at}");
    }
    whole
}

fn text(payload: &[u8]) -> Seen {
    Seen::Message { text: true, compressed: false, payload: payload.to_vec() }
}

fn refused(reason: CloseReason) -> Vec<Seen> {
    vec![Seen::Error(reason)]
}

#[test]
fn the_state_is_small() {
    assert!(size_of::<Decoder>() <= 64, "{}", size_of::<Decoder>());
}

#[test]
fn f1_f2_f3_f5_heads_that_the_rfc_forbids() {
    let mut unmasked = Vec::new();
    encoder::frame(Opcode::Text, false, b"hi", &mut unmasked);
    assert_eq!(decode(&unmasked, &LIMITS), refused(CloseReason::ProtocolError), "F1");
    for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc9] {
        assert_eq!(decode(&masked(first, b"hi"), &LIMITS), refused(CloseReason::ProtocolError), "F2 {first:02x}");
    }
    for opcode in (3..=7).chain(0xb..=0xf) {
        assert_eq!(decode(&masked(0x80 | opcode, b""), &LIMITS), refused(CloseReason::ProtocolError), "F2 {opcode:x}");
    }
    let lengths: [(u64, CloseReason); 7] = [
        (u64::MAX, CloseReason::ProtocolError),
        (1 << 63, CloseReason::ProtocolError),
        (u64::MAX >> 1, CloseReason::MessageTooBig),
        (1 << 32, CloseReason::MessageTooBig),
        (u64::from(u32::MAX), CloseReason::MessageTooBig),
        (0xffff, CloseReason::ProtocolError),
        (5, CloseReason::ProtocolError),
    ];
    for (length, reason) in lengths {
        let mut frame = vec![0x82, 0xff];
        frame.extend_from_slice(&length.to_be_bytes());
        assert_eq!(decode(&frame, &LIMITS), refused(reason), "F3 {length}");
    }
    assert_eq!(decode(&[0x82, 0xfe, 0, 125], &LIMITS), refused(CloseReason::ProtocolError), "F3 not minimal");
    for opcode in [8, 9, 10] {
        assert_eq!(decode(&[0x80 | opcode, 0xfe, 0, 126], &LIMITS), refused(CloseReason::ProtocolError), "F5 length");
        assert_eq!(decode(&[0x80 | opcode, 0xff], &LIMITS), refused(CloseReason::ProtocolError), "F5 length");
        assert_eq!(decode(&[opcode, 0x80], &LIMITS), refused(CloseReason::ProtocolError), "F5 fragmented");
    }
}

#[test]
fn f3_a_declared_length_allocates_nothing() {
    let limits = Limits { message_bytes_max: 16 << 20, ..LIMITS };
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24), Vec::new());
    let mut frame = masked(0x82, &vec![0; 1 << 20]);
    frame.truncate(100);
    feed(&mut decoder, &frame, &limits, &mut buffers, &mut seen);
    assert!(seen.is_empty() && decoder.unfinished());
    assert!(decoder.buffered_bytes() <= ASSEMBLY_BYTES_MIN, "{}", decoder.buffered_bytes());
}

#[test]
fn f6_continuations_without_a_start_and_starts_within_a_message() {
    assert_eq!(decode(&masked(0x80, b"x"), &LIMITS), refused(CloseReason::ProtocolError));
    assert_eq!(decode(&[masked(0x01, b"x"), masked(0x81, b"y")].concat(), &LIMITS), refused(CloseReason::ProtocolError));
    assert_eq!(decode(&[masked(0x01, b"x"), masked(0x82, b"y")].concat(), &LIMITS), refused(CloseReason::ProtocolError));
    let after_message = [masked(0x81, b"x"), masked(0x80, b"y")].concat();
    assert_eq!(decode(&after_message, &LIMITS), [text(b"x"), Seen::Error(CloseReason::ProtocolError)]);
}

#[test]
fn f7_fragments_are_counted_empty_ones_too() {
    let mut four = masked(0x01, b"");
    four.extend([masked(0x00, b""), masked(0x00, b"ab"), masked(0x80, b"c")].concat());
    assert_eq!(decode(&four, &LIMITS), [text(b"abc")]);
    let mut five = masked(0x01, b"a");
    five.extend([masked(0x00, b""), masked(0x00, b""), masked(0x00, b""), masked(0x80, b"")].concat());
    assert_eq!(decode(&five, &LIMITS), refused(CloseReason::TooManyFragments));
}

#[test]
fn f9_empty_messages_own_nothing() {
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24), Vec::new());
    feed(&mut decoder, &masked(0x81, b"").repeat(1000), &LIMITS, &mut buffers, &mut seen);
    assert_eq!(seen, vec![text(b""); 1000]);
    assert_eq!(decoder.buffered_bytes() + buffers.held_bytes(), 0);
    assert!(!decoder.unfinished());
}

#[test]
fn control_frames_come_between_fragments() {
    let bytes = [masked(0x01, b"one "), masked(0x89, b"ping"), masked(0x00, b"two "), masked(0x8a, b""), masked(0x80, b"three")];
    assert_eq!(decode(&bytes.concat(), &LIMITS), [Seen::Ping(b"ping".to_vec()), Seen::Pong(vec![]), text(b"one two three")]);
}

/// A connection may be closed in the middle of anything; its peer's close frame is read all the same.
#[test]
fn a_message_that_is_given_up_takes_no_control_frame_along() {
    let close = masked(0x88, b"\x03\xe8bye");
    for begun in [&b""[..], b"one "] {
        let mut bytes = if begun.is_empty() { Vec::new() } else { masked(0x01, begun) };
        let before = bytes.len();
        bytes.extend_from_slice(&close);
        for cut in 0..=bytes.len() {
            let (mut decoder, mut buffers) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24));
            let (mut first, mut second) = (bytes[..cut].to_vec(), bytes[cut..].to_vec());
            let mut rest = &mut first[..];
            let early = decoder.next(&mut rest, &LIMITS, &mut buffers).unwrap().is_some();
            decoder.release(&mut buffers);
            assert!(decoder.assembly.capacity() <= close.len(), "the message's memory is given back");
            if early {
                assert_eq!(cut, bytes.len());
                continue;
            }
            let mut rest = &mut second[..];
            let item = decoder.next(&mut rest, &LIMITS, &mut buffers);
            let Ok(Some(Item::Close { code, reason })) = item else { panic!("cut at {cut} of {before} and a close: {item:?}") };
            assert_eq!((code, &*reason), (Some(1000), &b"bye"[..]));
        }
    }
}

#[test]
fn f12_bad_utf8_is_refused_within_the_frame() {
    let bad: [&[u8]; 8] =
        [b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok\xff", b"\xe0\x9f\xbf", b"\xf8\x88", b"\xc3\x28"];
    for payload in bad {
        assert_eq!(decode(&masked(0x81, payload), &LIMITS), refused(CloseReason::NotUtf8), "{payload:02x?}");
    }
    let crab = "🦀".as_bytes();
    for cut in 1..4 {
        let whole = [masked(0x01, &crab[..cut]), masked(0x80, &crab[cut..])].concat();
        assert_eq!(decode(&whole, &LIMITS), [text(crab)]);
        assert_eq!(decode(&masked(0x81, &crab[..cut]), &LIMITS), refused(CloseReason::NotUtf8), "cut at the message's end");
        let broken = [masked(0x01, &crab[..cut]), masked(0x80, b"a")].concat();
        assert_eq!(decode(&broken, &LIMITS), refused(CloseReason::NotUtf8), "broken over fragments");
    }
    let mut early = masked(0x81, b"\xff rest that never comes");
    early.truncate(7);
    assert_eq!(decode(&early, &LIMITS), refused(CloseReason::NotUtf8), "before the frame is whole");
    assert_eq!(decode(&masked(0x82, b"\xff"), &LIMITS).len(), 1);
    let unchecked = Limits { utf8: false, ..LIMITS };
    assert_eq!(decode(&masked(0x81, b"\xff"), &unchecked), [text(b"\xff")], "left to the parser behind");
}

#[test]
fn f13_close_bodies() {
    let body = |code: u16, reason: &[u8]| [&code.to_be_bytes()[..], reason].concat();
    assert_eq!(decode(&masked(0x88, b""), &LIMITS), [Seen::Close(None, vec![])]);
    assert_eq!(decode(&masked(0x88, b"\x03"), &LIMITS), refused(CloseReason::ProtocolError));
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
        let expected = [Seen::Close(Some(code), b"bye".to_vec())];
        assert_eq!(decode(&masked(0x88, &body(code, b"bye")), &LIMITS), expected, "{code}");
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(decode(&masked(0x88, &body(code, b"")), &LIMITS), refused(CloseReason::ProtocolError), "{code}");
    }
    assert_eq!(decode(&masked(0x88, &body(1000, b"\xc3\x28")), &LIMITS), refused(CloseReason::NotUtf8));
    assert_eq!(decode(&masked(0x88, &body(1000, b"\xc3")), &LIMITS), refused(CloseReason::NotUtf8), "cut");
}

#[test]
fn f14_nothing_comes_after_a_close_or_an_error() {
    let bytes = [masked(0x88, b""), masked(0x81, b"late"), masked(0x89, b"late")].concat();
    assert_eq!(decode(&bytes, &LIMITS), [Seen::Close(None, vec![])]);
    let bytes = [masked(0x83, b""), masked(0x81, b"late")].concat();
    assert_eq!(decode(&bytes, &LIMITS), refused(CloseReason::ProtocolError));
}

#[test]
fn f17_the_limit_is_exact_in_one_frame_and_in_fragments() {
    let (fits, over) = (vec![b'a'; 1000], vec![b'a'; 1001]);
    assert_eq!(decode(&masked(0x81, &fits), &LIMITS), [text(&fits)]);
    assert_eq!(decode(&masked(0x81, &over), &LIMITS), refused(CloseReason::MessageTooBig));
    let two = |tail: &[u8]| [masked(0x01, &fits[..600]), masked(0x80, tail)].concat();
    assert_eq!(decode(&two(&fits[600..]), &LIMITS), [text(&fits)]);
    assert_eq!(decode(&two(&over[600..]), &LIMITS), refused(CloseReason::MessageTooBig));
    let head_only = &masked(0x81, &over)[..4];
    assert_eq!(decode(head_only, &LIMITS), refused(CloseReason::MessageTooBig), "decided from the head");
}

#[test]
fn c7_rsv1_only_on_a_messages_first_frame() {
    let limits = Limits { deflate: true, ..LIMITS };
    let bytes = [masked(0x41, b"\xff"), masked(0x80, b"\xfe")].concat();
    assert_eq!(decode(&bytes, &limits), [Seen::Message { text: true, compressed: true, payload: vec![0xff, 0xfe] }]);
    let then_plain = [masked(0xc1, b"z"), masked(0x81, b"p")].concat();
    assert_eq!(decode(&then_plain, &limits)[1], text(b"p"), "the flag does not outlive its message");
    assert_eq!(decode(&[masked(0x41, b"a"), masked(0xc0, b"b")].concat(), &limits), refused(CloseReason::ProtocolError));
    assert_eq!(decode(&masked(0xc9, b""), &limits), refused(CloseReason::ProtocolError));
    assert_eq!(decode(&masked(0xa1, b""), &limits), refused(CloseReason::ProtocolError));
}

#[test]
fn binary_is_refused_at_its_first_byte_where_it_is_not_spoken() {
    let limits = Limits { binary: false, ..LIMITS };
    assert_eq!(decode(&[0x82], &limits), refused(CloseReason::BinaryFrame));
    assert_eq!(decode(&masked(0x81, b"text"), &limits), [text(b"text")]);
}

#[test]
fn whole_messages_stay_in_place_and_split_ones_come_from_the_pool() {
    let (mut decoder, mut buffers) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24));
    let mut bytes = masked(0x81, b"whole");
    let mut rest = bytes.as_mut_slice();
    let item = decoder.next(&mut rest, &LIMITS, &mut buffers).unwrap();
    assert!(matches!(item, Some(Item::Message { payload: Payload::InPlace(_), .. })));

    let mut bytes = masked(0x81, &[b'a'; 600]);
    let (head, tail) = bytes.split_at_mut(300);
    for round in 0..2 {
        let (mut head, mut tail) = (head.to_vec(), tail.to_vec());
        assert_eq!(decoder.next(&mut head.as_mut_slice(), &LIMITS, &mut buffers), Ok(None));
        let held = decoder.buffered_bytes();
        assert!(if round == 0 { held == ASSEMBLY_BYTES_MIN } else { held >= 600 }, "the second round reuses the buffer");
        let item = decoder.next(&mut tail.as_mut_slice(), &LIMITS, &mut buffers).unwrap();
        let Some(Item::Message { payload: payload @ Payload::Assembled(_), .. }) = item else { panic!("{item:?}") };
        assert_eq!(&*payload, [b'a'; 600]);
        payload.recycle(&mut buffers);
        assert_eq!(decoder.buffered_bytes(), 0);
    }
}

#[test]
fn growth_stays_below_what_may_arrive() {
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24), Vec::new());
    let frame = masked(0x81, &[b'a'; 1000]);
    for piece in frame[..frame.len() - 1].chunks(7) {
        feed(&mut decoder, piece, &LIMITS, &mut buffers, &mut seen);
        assert!(decoder.buffered_bytes() <= LIMITS.message_bytes_max + CONTROL_PAYLOAD_BYTES_MAX);
    }
    assert!(seen.is_empty());
}

#[test]
fn unfinished_follows_every_byte() {
    let frames = [masked(0x01, b"ab"), masked(0x80, b"c")].concat();
    let (mut decoder, mut buffers, mut seen) = (Decoder::new(), Buffers::new(4, 4096, 1 << 24), Vec::new());
    assert!(!decoder.unfinished());
    for (index, byte) in frames.iter().enumerate() {
        feed(&mut decoder, &[*byte], &LIMITS, &mut buffers, &mut seen);
        assert_eq!(decoder.unfinished(), index + 1 < frames.len(), "after byte {index}");
    }
}

#[derive(Clone, Debug)]
enum Sent {
    Frame { first: u8, payload: Vec<u8>, mask: [u8; 4] },
    Raw(Vec<u8>),
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81u8, 0x01, 0x00, 0x80, 0x82, 0x89, 0x8a, 0x02, 0xc1, 0x41]),
        1 => Just(0x88u8),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => "\\PC{0,40}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..140),
        1 => prop::collection::vec(Just(b'x'), 0..600),
    ];
    prop_oneof![
        20 => (first, payload, any::<[u8; 4]>()).prop_map(|(first, payload, mask)| Sent::Frame { first, payload, mask }),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Sent::Raw),
    ]
}

fn pieces<'b>(bytes: &'b [u8], cuts: &[prop::sample::Index]) -> Vec<&'b [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_items(
        sent in prop::collection::vec(any_sent(), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        utf8: bool, deflate: bool, binary: bool,
    ) {
        let limits = Limits { utf8, deflate, binary, ..LIMITS };
        let bytes: Vec<u8> = sent.iter().flat_map(|sent| match sent {
            Sent::Frame { first, payload, mask } => client_frame(*first, payload, *mask),
            Sent::Raw(bytes) => bytes.clone(),
        }).collect();
        let whole = decode_pieces([&bytes[..]], &limits);
        prop_assert_eq!(&decode_pieces(pieces(&bytes, &cuts), &limits), &whole);
        prop_assert_eq!(&decode_pieces(bytes.chunks(1), &limits), &whole);
    }

    #[test]
    fn what_is_sent_is_what_is_seen(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5),
        ping in prop::collection::vec(any::<u8>(), 0..=125),
        mask: [u8; 4],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut bytes = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let first = if index == 0 { 0x02 } else { 0x00 } | if index + 1 == parts.len() { 0x80 } else { 0 };
            bytes.extend(client_frame(first, part, mask));
            if index + 1 < parts.len() {
                bytes.extend(client_frame(0x89, &ping, mask));
            }
        }
        let mut expected = vec![Seen::Ping(ping); parts.len() - 1];
        expected.push(Seen::Message { text: false, compressed: false, payload: parts.concat() });
        prop_assert_eq!(decode_pieces(pieces(&bytes, &cuts), &LIMITS), expected);
    }
}
