//! RFC 6455 framing, the client's half and the little the floor servers need of the other. Shares no code with the gateway,
//! so that a mistake made there is not made here too.

use base64::Engine as _;
use std::fmt;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A violation of RFC 6455 by the peer, or a feature that this harness does not support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(pub String);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WireError {}

/// A frame's head: where its payload lies and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub fin: bool,
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    /// Bytes of the head, the mask included.
    pub head_bytes: usize,
    pub payload_bytes: usize,
}

/// Reads a frame's head; `None` if it is incomplete.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WireError(format!("a frame with reserved bits set (first byte {first:#04x}); no extension was negotiated")));
    }
    let (length_bytes, payload_bytes) = match second & 0x7f {
        126 => match rest {
            [a, b, ..] => (2, u64::from(u16::from_be_bytes([*a, *b]))),
            _ => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (8, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        short => (0, u64::from(short)),
    };
    let Some(payload_bytes) = usize::try_from(payload_bytes).ok().filter(|bytes| *bytes <= 64 << 20) else {
        return Err(WireError(format!("a frame of {payload_bytes} bytes; the harness takes up to 64 MiB")));
    };
    let masked = second & 0x80 != 0;
    let mask = if masked {
        let Some(key) = rest[length_bytes..].first_chunk::<4>() else { return Ok(None) };
        Some(*key)
    } else {
        None
    };
    let head_bytes = 2 + length_bytes + if masked { 4 } else { 0 };
    Ok(Some(Head { fin: first & 0x80 != 0, opcode: first & 0x0f, mask, head_bytes, payload_bytes }))
}

/// Bytes of an unmasked head for a payload of this size.
pub const fn unmasked_head_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Writes an unmasked head into `out`, which is exactly [`unmasked_head_bytes`] long.
#[expect(clippy::cast_possible_truncation, reason = "each arm is chosen by the size that fits")]
pub fn write_unmasked_head(out: &mut [u8], first: u8, payload_bytes: usize) {
    out[0] = first;
    match out.len() {
        2 => out[1] = payload_bytes as u8,
        4 => {
            out[1] = 126;
            out[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out[1] = 127;
            out[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// XORs the payload with its key, which starts at the payload's first byte.
pub fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Some(word) = chunk.first_chunk_mut::<8>() {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

/// Appends a masked frame, final, to `out`. Returns where its payload starts.
pub fn push_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8], key: [u8; 4]) -> usize {
    let start = out.len();
    let head = unmasked_head_bytes(payload.len());
    out.resize(start + head, 0);
    write_unmasked_head(&mut out[start..], 0x80 | opcode, payload.len());
    out[start + 1] |= 0x80;
    out.extend_from_slice(&key);
    let at = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[at..], key);
    at
}

/// The value of `Sec-WebSocket-Accept` for a key (RFC 6455, 4.2.2).
pub fn accept_value(key: &str) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(context.finish())
}

/// The upgrade request. `key` is the `Sec-WebSocket-Key`.
pub fn upgrade_request(host: &str, path: &str, key: &str, subprotocol: Option<&str>) -> Vec<u8> {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    );
    if let Some(name) = subprotocol {
        request.push_str("Sec-WebSocket-Protocol: ");
        request.push_str(name);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// Where the HTTP head ends, its empty line included.
pub fn http_head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// A header's value in an HTTP head, trimmed.
pub fn http_header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Checks a server's answer to the upgrade (RFC 6455, 4.1).
pub fn check_upgrade(head: &[u8], key: &str) -> Result<(), WireError> {
    let head = std::str::from_utf8(head).map_err(|_| WireError("the answer to the upgrade is not text".into()))?;
    let status = head.lines().next().unwrap_or("");
    if !status.starts_with("HTTP/1.1 101") {
        return Err(WireError(format!("the server refused the upgrade: {status:?}; expected HTTP/1.1 101")));
    }
    let expected = accept_value(key);
    match http_header(head, "sec-websocket-accept") {
        Some(value) if value == expected => Ok(()),
        other => Err(WireError(format!("Sec-WebSocket-Accept is {other:?}; expected {expected:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_value_of_the_rfc() {
        assert_eq!(accept_value("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_of_every_length_class_come_back() {
        for size in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 70_001] {
            let payload: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            let mut out = b"before".to_vec();
            let at = push_masked(&mut out, BINARY, &payload, [1, 2, 3, 250]);
            let frame = &mut out[6..];
            let head = parse_head(frame).unwrap().unwrap();
            assert_eq!((head.fin, head.opcode, head.mask, head.payload_bytes), (true, BINARY, Some([1, 2, 3, 250]), size));
            assert_eq!(head.head_bytes + 6, at);
            assert!(size < 4 || frame[head.head_bytes..] != payload[..], "the payload must be masked on the wire");
            apply_mask(&mut frame[head.head_bytes..], [1, 2, 3, 250]);
            assert_eq!(&frame[head.head_bytes..], &payload[..]);
        }
    }

    #[test]
    fn a_head_cut_anywhere_is_incomplete() {
        for size in [5, 300, 70_000] {
            let mut out = Vec::new();
            push_masked(&mut out, TEXT, &vec![b'x'; size], [9, 8, 7, 6]);
            let head = parse_head(&out).unwrap().unwrap();
            for cut in 0..head.head_bytes {
                assert_eq!(parse_head(&out[..cut]).unwrap(), None, "cut at {cut} of {}", head.head_bytes);
            }
        }
    }

    #[test]
    fn reserved_bits_and_giants_are_refused() {
        assert!(parse_head(&[0xc1, 0]).unwrap_err().0.contains("reserved"));
        assert!(parse_head(&[0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0]).unwrap_err().0.contains("64 MiB"));
    }

    #[test]
    fn an_upgrade_is_checked_for_status_and_accept() {
        let good = "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept:  s3pPLMBiTxaQ9kYGzzhZRbK+xOo= \r\n\r\n";
        check_upgrade(good.as_bytes(), "dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        assert!(check_upgrade(good.as_bytes(), "AAAAIHNhbXBsZSBub25jZQ==").unwrap_err().0.contains("Accept"));
        let refused = check_upgrade(b"HTTP/1.1 403 Forbidden\r\n\r\n", "x").unwrap_err();
        assert!(refused.0.contains("403"), "{refused}");
    }
}
