//! Client frames to server frames, in place: a server's head is four bytes shorter, so the answer fits where the frame lay.

use crate::wire::{self, Head, WireError};

/// What a stretch of received bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Turned {
    /// The server frames, back to back, in the same buffer.
    pub out: std::ops::Range<usize>,
    /// Where the bytes begin that are not a whole frame yet.
    pub rest_at: usize,
    /// The peer sent a close frame: its echo is the last of `out`.
    pub closing: bool,
}

/// What to do with control frames: an echo answers all in their order, a fan-out answers none of them to the others.
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

/// Turns the whole frames of `bytes` (unmasked on the way) into server frames. With [`Take::Control`] `bytes` must be a copy: what
/// is not taken is overwritten too.
pub fn turn(bytes: &mut [u8], take: Take) -> Result<Turned, WireError> {
    let (mut at, mut out_start, mut out_end, mut closing) = (0, 0, 0, false);
    while !closing {
        let Some(head) = wire::parse_head(&bytes[at..])? else { break };
        let Some(key) = head.mask else { return Err(WireError("an unmasked client frame".into())) };
        let payload_at = at + head.head_bytes;
        let end = payload_at + head.payload_bytes;
        if end > bytes.len() {
            break;
        }
        if wanted(take, &head) {
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
            closing = head.opcode == wire::CLOSE;
        }
        at = end;
    }
    Ok(Turned { out: out_start..out_end, rest_at: at, closing })
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn an_unmasked_client_frame_is_an_error() {
        assert!(turn(&mut [0x81, 0x01, b'x'], Take::All).is_err());
    }
}
