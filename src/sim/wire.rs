//! The client's side of the wire, independent of the gateway's code: requests, masked frames, a parser of the server's frames.

use super::random::Random;

/// A WebSocket frame of the server, or the end of the HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerFrame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// The upgrade (RFC 6455 section 4.1).
pub const REQUEST: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ringway.v1\r\n\r\n";

fn one_frame(out: &mut Vec<u8>, head: u8, payload: &[u8], random: &mut Random) {
    out.push(head);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | u8::try_from(len).unwrap()),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    let mask = random.next().to_le_bytes();
    out.extend(&mask[..4]);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
}

/// A masked message in random fragments, with a ping between two of them now and then.
pub fn message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], random: &mut Random) {
    if opcode >= 8 || random.percent(80) {
        return one_frame(out, 0x80 | opcode, payload, random);
    }
    let pieces = random.between(2, 5);
    let mut rest = payload;
    for piece in 0..pieces {
        let last = piece + 1 == pieces;
        let take = if last { rest.len() } else { random.index(rest.len() + 1) };
        let head = if piece == 0 { opcode } else { 0 } | if last { 0x80 } else { 0 };
        one_frame(out, head, &rest[..take], random);
        rest = &rest[take..];
    }
}

/// Takes one frame off the front; `Err` where the bytes are no server's frame.
pub fn next_frame(bytes: &mut Vec<u8>) -> Result<Option<ServerFrame>, String> {
    let [first, second, ..] = bytes[..] else { return Ok(None) };
    if first & 0xF0 != 0x80 || second & 0x80 != 0 {
        return Err(format!("a frame begins with {first:02x} {second:02x}"));
    }
    let (head, len) = match second {
        126 => match bytes.get(2..4) {
            Some(len) => (4, usize::from(u16::from_be_bytes([len[0], len[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some(len) => (10, usize::try_from(u64::from_be_bytes(len.try_into().unwrap())).unwrap()),
            None => return Ok(None),
        },
        len => (2, usize::from(len)),
    };
    if len > 4 * 1024 * 1024 {
        return Err(format!("a frame of {len} bytes"));
    }
    if bytes.len() < head + len {
        return Ok(None);
    }
    let payload = bytes[head..head + len].to_vec();
    bytes.drain(..head + len);
    Ok(Some(ServerFrame { opcode: first & 0x0F, payload }))
}
