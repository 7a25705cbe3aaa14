//! Server frames: unmasked, with the shortest length form (RFC 6455 section 5.2).

use super::Opcode;
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

/// The longest head of a server frame: two bytes and a 64-bit length.
pub const FRAME_HEAD_BYTES_MAX: usize = 10;
/// A close frame's reason: the control payload less the code (RFC 6455 5.5.1).
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;
/// Length of the head of most replies (126 bytes to 64 KiB), reserved before the payload is known.
const HEAD_BYTES_GUESS: usize = 4;

/// The head of a frame with `payload_bytes` of payload, and its length within the array.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "each arm is guarded by its range")]
pub const fn frame_head(payload_bytes: usize, opcode: Opcode, fin: bool, rsv1: bool) -> ([u8; FRAME_HEAD_BYTES_MAX], usize) {
    let mut head = [0; FRAME_HEAD_BYTES_MAX];
    head[0] = opcode as u8 | (fin as u8) << 7 | (rsv1 as u8) << 6;
    if payload_bytes <= 125 {
        head[1] = payload_bytes as u8;
        (head, 2)
    } else if payload_bytes <= 0xffff {
        head[1] = 126;
        head[2] = (payload_bytes >> 8) as u8;
        head[3] = payload_bytes as u8;
        (head, 4)
    } else {
        head[1] = 127;
        let length = (payload_bytes as u64).to_be_bytes();
        let mut index = 0;
        while index < 8 {
            head[2 + index] = length[index];
            index += 1;
        }
        (head, 10)
    }
}

/// Appends a whole frame.
pub fn frame(opcode: Opcode, rsv1: bool, payload: &[u8], out: &mut Vec<u8>) {
    let (head, head_bytes) = frame_head(payload.len(), opcode, true, rsv1);
    out.reserve(head_bytes + payload.len());
    out.extend_from_slice(&head[..head_bytes]);
    out.extend_from_slice(payload);
}

/// Appends a close frame. A reason over 123 bytes is cut at a character (RFC 6455 5.5.1).
pub fn close_frame(code: Option<u16>, reason: &str, out: &mut Vec<u8>) {
    let Some(code) = code else { return frame(Opcode::Close, false, &[], out) };
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let (head, head_bytes) = frame_head(2 + reason.len(), Opcode::Close, true, false);
    out.extend_from_slice(&head[..head_bytes]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason);
}

/// Appends a ping. A payload over 125 bytes is cut: control frames hold no more (RFC 6455 5.5).
pub fn ping(payload: &[u8], out: &mut Vec<u8>) {
    frame(Opcode::Ping, false, &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)], out);
}

/// Appends a pong. Its payload is the ping's (RFC 6455 5.5.3), which the decoder bounds; a longer one is cut.
pub fn pong(payload: &[u8], out: &mut Vec<u8>) {
    frame(Opcode::Pong, false, &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)], out);
}

/// A frame whose payload is written straight into the output, before its length is known.
#[derive(Debug)]
#[must_use = "the frame has no head until it is finished"]
pub struct OpenFrame {
    start: usize,
}

impl OpenFrame {
    /// Begins a frame at the end of `out`; bytes appended from here on are its payload.
    pub fn begin(out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES_GUESS]);
        Self { start }
    }

    /// Writes the head. The payload moves only where it is below 126 bytes or above 64 KiB.
    pub fn finish(self, opcode: Opcode, out: &mut Vec<u8>) {
        let payload_at = self.start + HEAD_BYTES_GUESS;
        let (head, head_bytes) = frame_head(out.len() - payload_at, opcode, true, false);
        if head_bytes == HEAD_BYTES_GUESS {
            out[self.start..payload_at].copy_from_slice(&head[..HEAD_BYTES_GUESS]);
        } else {
            out.splice(self.start..payload_at, head[..head_bytes].iter().copied());
        }
    }

    /// Removes everything since [`OpenFrame::begin`].
    pub fn abandon(self, out: &mut Vec<u8>) {
        out.truncate(self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_shortest_form() {
        let table: [(usize, &[u8]); 6] = [
            (0, &[0x81, 0]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xff, 0xff]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (16 << 20, &[0x81, 127, 0, 0, 0, 0, 1, 0, 0, 0]),
        ];
        for (payload_bytes, expected) in table {
            let (head, head_bytes) = frame_head(payload_bytes, Opcode::Text, true, false);
            assert_eq!(&head[..head_bytes], expected, "{payload_bytes}");
        }
        assert_eq!(frame_head(1, Opcode::Binary, false, true).0[0], 0x42);
    }

    #[test]
    fn an_open_frame_equals_a_whole_one() {
        for payload_bytes in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..payload_bytes).map(|index| (index % 251) as u8).collect();
            let mut whole = b"before".to_vec();
            frame(Opcode::Text, false, &payload, &mut whole);
            let mut open = b"before".to_vec();
            let begun = OpenFrame::begin(&mut open);
            open.extend_from_slice(&payload);
            begun.finish(Opcode::Text, &mut open);
            assert!(whole == open, "{payload_bytes}");
        }
    }

    #[test]
    fn an_abandoned_frame_leaves_nothing() {
        let mut out = b"before".to_vec();
        let begun = OpenFrame::begin(&mut out);
        out.extend_from_slice(b"half a reply");
        begun.abandon(&mut out);
        assert_eq!(out, b"before");
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        close_frame(Some(1008), &"é".repeat(100), &mut out);
        assert_eq!(out[1] as usize, out.len() - 2);
        assert!(out.len() - 2 <= CONTROL_PAYLOAD_BYTES_MAX);
        assert_eq!(std::str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));
    }

    #[test]
    fn control_frames_never_exceed_their_limit() {
        let mut out = Vec::new();
        ping(&[7; 200], &mut out);
        pong(&[7; 200], &mut out);
        assert_eq!(out.len(), 2 * (2 + CONTROL_PAYLOAD_BYTES_MAX));
        out.clear();
        close_frame(None, "ignored: there is no code to go with it", &mut out);
        assert_eq!(out, [0x88, 0]);
    }
}
