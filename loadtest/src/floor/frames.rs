//! Client frames to server frames, in place: a server's head is four bytes shorter, so the answer fits where the frame lay.

use crate::dialect::{BARE_ACK, BARE_ACK_BYTES};
use crate::stamp;
use crate::wire::{self, Head, WireError};

/// The result of turning a stretch of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Turned {
    /// The server frames, back to back, in the same buffer.
    pub out: std::ops::Range<usize>,
    /// The beginning of an incomplete frame's bytes.
    pub rest_at: usize,
    /// `true` if the peer sent a close frame, after which nothing counts; if control frames are taken, its echo is the last of
    /// `out`.
    pub closing: bool,
}

/// The treatment of control frames: an echo answers all in their order, a fan-out passes none of them to the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Take {
    All,
    Data,
    Control,
}

fn wanted(take: Take, head: &Head) -> bool {
    match take {
        Take::All => head.opcode != wire::PONG,
        Take::Data => head.opcode < 8,
        Take::Control => head.opcode == wire::PING || head.opcode == wire::CLOSE,
    }
}

/// Turns the whole frames of `bytes` (unmasked on the way) into server frames. With [`Take::Control`] `bytes` must be a copy:
/// skipped bytes are overwritten too.
pub fn turn(bytes: &mut [u8], take: Take) -> Result<Turned, WireError> {
    turn_where(bytes, |head, _, _| wanted(take, head))
}

/// As [`turn`] with [`Take::Data`]; appends the sender's answers to `answers`, in the frames' order: an ack of each message, a
/// pong, the echo of a close. A message too short for a mark and a continuation have no ack.
pub fn relay(bytes: &mut [u8], answers: &mut Vec<u8>) -> Result<Turned, WireError> {
    turn_where(bytes, |head, payload, key| {
        match head.opcode {
            wire::TEXT | wire::BINARY => {
                if let Some(mark) = payload.first_chunk() {
                    push_ack(answers, *mark, key);
                }
            }
            wire::PING => push_unmasked(answers, wire::PONG, payload, key),
            wire::CLOSE => push_unmasked(answers, wire::CLOSE, payload, key),
            _ => {}
        }
        wanted(Take::Data, head)
    })
}

/// The mark is the payload's first bytes, still masked.
fn push_ack(answers: &mut Vec<u8>, mut mark: [u8; stamp::BYTES], key: [u8; 4]) {
    const FILLED: [u8; BARE_ACK_BYTES] = [b' '; BARE_ACK_BYTES];
    wire::apply_mask(&mut mark, key);
    let at = push_head(answers, wire::TEXT, BARE_ACK_BYTES);
    answers.extend_from_slice(&FILLED);
    let (ack, rest) = answers[at..].split_at_mut(BARE_ACK.len());
    ack.copy_from_slice(BARE_ACK);
    rest[..stamp::BYTES].copy_from_slice(&mark);
}

fn push_unmasked(answers: &mut Vec<u8>, opcode: u8, masked: &[u8], key: [u8; 4]) {
    let at = push_head(answers, opcode, masked.len());
    answers.extend_from_slice(masked);
    wire::apply_mask(&mut answers[at..], key);
}

/// Appends the head of a final frame. Returns where its payload goes.
fn push_head(answers: &mut Vec<u8>, opcode: u8, payload_bytes: usize) -> usize {
    let start = answers.len();
    let end = start + wire::unmasked_head_bytes(payload_bytes);
    answers.resize(end, 0);
    wire::write_unmasked_head(&mut answers[start..], 0x80 | opcode, payload_bytes);
    end
}

/// `is_taken` gets each whole frame once, its payload still masked with the key.
fn turn_where(bytes: &mut [u8], mut is_taken: impl FnMut(&Head, &[u8], [u8; 4]) -> bool) -> Result<Turned, WireError> {
    let (mut at, mut out_start, mut out_end, mut closing) = (0, 0, 0, false);
    while !closing {
        let Some(head) = wire::parse_head(&bytes[at..])? else { break };
        let Some(key) = head.mask else { return Err(WireError("an unmasked client frame".into())) };
        let payload_at = at + head.head_bytes;
        let end = payload_at + head.payload_bytes;
        if end > bytes.len() {
            break;
        }
        if is_taken(&head, &bytes[payload_at..end], key) {
            wire::apply_mask(&mut bytes[payload_at..end], key);
            let opcode = if head.opcode == wire::PING { wire::PONG } else { head.opcode };
            let out_head = wire::unmasked_head_bytes(head.payload_bytes);
            if out_start == out_end {
                out_start = payload_at - out_head;
                out_end = out_start;
            } else if out_end + out_head != payload_at {
                bytes.copy_within(payload_at..end, out_end + out_head);
            }
            let first = if head.fin { 0x80 | opcode } else { opcode };
            wire::write_unmasked_head(&mut bytes[out_end..out_end + out_head], first, head.payload_bytes);
            out_end += out_head + head.payload_bytes;
        }
        closing = head.opcode == wire::CLOSE;
        at = end;
    }
    Ok(Turned { out: out_start..out_end, rest_at: at, closing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Incoming, read_bare};
    use crate::stamp::Stamp;
    use crate::wire::{BINARY, CLOSE, PING, TEXT, push_masked};

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; wire::unmasked_head_bytes(payload.len())];
        wire::write_unmasked_head(&mut out, first, payload.len());
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn frames_are_turned_in_place_and_back_to_back() {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (opcode, size) in [(TEXT, 3), (BINARY, 200), (TEXT, 0), (BINARY, 70_000), (TEXT, 125)] {
            let payload = vec![b'a' + opcode; size];
            push_masked(&mut bytes, opcode, &payload, [5, 6, 7, 8]);
            expected.extend(server_frame(0x80 | opcode, &payload));
        }
        let whole = bytes.len();
        bytes.extend_from_slice(&[0x81, 0x85, 1]);
        let turned = turn(&mut bytes, Take::All).unwrap();
        assert_eq!((turned.rest_at, turned.closing), (whole, false));
        assert_eq!(&bytes[turned.out], &expected[..]);
    }

    #[test]
    fn control_frames_are_answered_or_left_out() {
        let mut bytes = Vec::new();
        push_masked(&mut bytes, TEXT, b"one", [1, 1, 1, 1]);
        push_masked(&mut bytes, PING, b"p", [2, 2, 2, 2]);
        push_masked(&mut bytes, TEXT, b"two", [3, 3, 3, 3]);
        push_masked(&mut bytes, CLOSE, &[3, 232], [4, 4, 4, 4]);
        let (mut all, mut control) = (bytes.clone(), bytes.clone());
        let data = turn(&mut bytes, Take::Data).unwrap();
        assert_eq!(&bytes[data.out], &[server_frame(0x81, b"one"), server_frame(0x81, b"two")].concat()[..]);
        let turned = turn(&mut control, Take::Control).unwrap();
        assert!(turned.closing);
        assert_eq!(&control[turned.out], &[server_frame(0x8a, b"p"), server_frame(0x88, &[3, 232])].concat()[..]);
        let turned = turn(&mut all, Take::All).unwrap();
        let expected =
            [server_frame(0x81, b"one"), server_frame(0x8a, b"p"), server_frame(0x81, b"two"), server_frame(0x88, &[3, 232])];
        assert_eq!(&all[turned.out], &expected.concat()[..]);
    }

    #[test]
    fn a_relay_has_the_data_for_the_peer_and_answers_for_the_sender_in_order() {
        let mark = Stamp { sender: 7, number: 8, intended_ns: 9 };
        let message = [&mark.write()[..], b" and more"].concat();
        let mut bytes = Vec::new();
        push_masked(&mut bytes, TEXT, &message, [1, 2, 3, 4]);
        push_masked(&mut bytes, PING, b"p", [9, 2, 2, 2]);
        push_masked(&mut bytes, TEXT, b"too short for a mark", [3, 3, 3, 3]);
        push_masked(&mut bytes, BINARY, &mark.write(), [8, 7, 6, 5]);
        let cut_at = bytes.len();
        push_masked(&mut bytes, BINARY, &message, [8, 7, 6, 5]);
        bytes.pop();
        let mut answers = b"before".to_vec();
        let turned = relay(&mut bytes, &mut answers).unwrap();
        let expected =
            [server_frame(0x81, &message), server_frame(0x81, b"too short for a mark"), server_frame(0x82, &mark.write())];
        assert_eq!((&bytes[turned.out], turned.rest_at, turned.closing), (&expected.concat()[..], cut_at, false));
        let mut ack = [&b"ack"[..], &mark.write()].concat();
        ack.resize(BARE_ACK_BYTES, b' ');
        assert_eq!(read_bare(&ack), Incoming::Ack(mark));
        let expected = [b"before".to_vec(), server_frame(0x81, &ack), server_frame(0x8a, b"p"), server_frame(0x81, &ack)];
        assert_eq!(answers, expected.concat());
    }

    #[test]
    fn nothing_after_a_close_is_relayed() {
        let mut bytes = Vec::new();
        push_masked(&mut bytes, TEXT, b"before", [1, 1, 1, 1]);
        push_masked(&mut bytes, CLOSE, &[3, 232], [4, 4, 4, 4]);
        push_masked(&mut bytes, TEXT, b"after", [1, 1, 1, 1]);
        let mut answers = Vec::new();
        let turned = relay(&mut bytes, &mut answers).unwrap();
        assert!(turned.closing);
        assert_eq!((&bytes[turned.out], answers), (&server_frame(0x81, b"before")[..], server_frame(0x88, &[3, 232])));
    }

    #[test]
    fn an_unmasked_client_frame_is_an_error() {
        assert!(turn(&mut [0x81, 0x01, b'x'], Take::All).is_err());
    }
}
