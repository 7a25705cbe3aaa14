//! The client's side of the wire, independent of the gateway's code: requests, masked frames, a parser of the server's frames.

use super::random::Random;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};

/// A WebSocket frame of the server, or the end of the HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerFrame {
    pub opcode: u8,
    /// RSV1: the payload is deflated.
    pub deflated: bool,
    pub payload: Vec<u8>,
}

/// The longest head of a masked frame.
const HEAD_BYTES_MAX: usize = 14;

thread_local! {
    /// The clients' codec, begun anew for each message: to make one takes longer than most messages do.
    static COMPRESS: RefCell<Compress> = RefCell::new(Compress::new(Compression::fast(), false));
}

/// Offers of permessage-deflate, as clients make them.
pub const OFFERS: [&str; 3] = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "x-unknown, permessage-deflate; server_max_window_bits=9; client_no_context_takeover",
];

/// The upgrade (RFC 6455 section 4.1).
pub fn request(path: &str, offer: Option<&str>) -> String {
    let offer = offer.map_or_else(String::new, |offer| format!("Sec-WebSocket-Extensions: {offer}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ringway.v1\r\n{offer}\r\n"
    )
}

/// A PROXY header (HAProxy's `proxy-protocol.txt`) that says who the client is, of either version.
pub fn proxy_header(source: SocketAddr, random: &mut Random) -> Vec<u8> {
    let port = source.port();
    let binary = random.percent(50);
    match (source.ip(), binary) {
        (IpAddr::V4(address), false) => format!("PROXY TCP4 {address} 10.0.0.1 {port} 443\r\n").into_bytes(),
        (IpAddr::V6(address), false) => format!("PROXY TCP6 {address} 2001:db8::1 {port} 443\r\n").into_bytes(),
        (address, true) => {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
            let mut addresses = match address {
                IpAddr::V4(address) => [address.octets(), [10, 0, 0, 1]].concat(),
                IpAddr::V6(address) => [address.octets(), [9; 16]].concat(),
            };
            header.push(if address.is_ipv4() { 0x11 } else { 0x21 });
            addresses.extend(port.to_be_bytes());
            addresses.extend(443_u16.to_be_bytes());
            // An extension (section 2.2), to be skipped.
            addresses.extend(if random.percent(30) { &[0x04, 0, 2, 7, 7][..] } else { &[] });
            header.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
            header.extend(addresses);
            header
        }
    }
}

/// Bytes that no proxy may send before a request, whatever follows.
pub const BROKEN_PROXY_HEADERS: [&[u8]; 6] = [
    b"GET /v1/ws HTTP/1.1\r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 70000 443\r\n",
    b"PROXY TCP4 192.0.2.1 10.0.0.1 1 443 more\r\n",
    b"PROXY TCP6 192.0.2.1 10.0.0.1 1 443\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\x01\x02\x03\x04",
];

/// A deflated message's payload (RFC 7692 section 7.2.1).
pub fn deflate(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() * 2 + 64);
    COMPRESS.with_borrow_mut(|codec| {
        codec.reset();
        codec.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    });
    assert!(out.ends_with(&[0, 0, 0xFF, 0xFF]));
    out.truncate(out.len() - 4);
    out
}

/// The message of a deflated payload (section 7.2.2).
pub fn inflate(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut codec = Decompress::new(false);
    let mut input = payload.to_vec();
    input.extend([0, 0, 0xFF, 0xFF]);
    let mut out = Vec::new();
    while (codec.total_in() as usize) < input.len() {
        let (before, from) = (codec.total_in(), codec.total_in() as usize);
        out.reserve(64 * 1024);
        codec.decompress_vec(&input[from..], &mut out, FlushDecompress::Sync).map_err(|error| error.to_string())?;
        if codec.total_in() == before && out.capacity() > out.len() {
            return Err(format!("{} bytes of a deflated message end in nothing", payload.len()));
        }
    }
    Ok(out)
}

fn one_frame(out: &mut Vec<u8>, head: u8, payload: &[u8], random: &mut Random) {
    out.reserve(payload.len() + HEAD_BYTES_MAX);
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
    // By as much at once as the compiler finds good.
    let (from, mask): (_, [u8; 32]) = (out.len(), std::array::from_fn(|at| mask[at % 4]));
    out.extend(payload);
    for part in out[from..].chunks_mut(mask.len()) {
        part.iter_mut().zip(&mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// A masked message in random fragments, deflated first.
pub fn deflated_message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], random: &mut Random) {
    fragments(out, 0x40 | opcode, &deflate(payload), random);
}

/// A masked message in random fragments.
pub fn message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], random: &mut Random) {
    fragments(out, opcode, payload, random);
}

fn fragments(out: &mut Vec<u8>, opcode: u8, payload: &[u8], random: &mut Random) {
    if opcode & 0x0F >= 8 || random.percent(80) {
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

/// The frame at a place, which moves behind it; `Err` where the bytes are no server's frame.
pub fn next_frame(bytes: &[u8], at: &mut usize) -> Result<Option<ServerFrame>, String> {
    let bytes = &bytes[*at..];
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0xB0 != 0x80 || second & 0x80 != 0 {
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
    let Some(payload) = bytes.get(head..head + len) else { return Ok(None) };
    let payload = payload.to_vec();
    *at += head + len;
    Ok(Some(ServerFrame { opcode: first & 0x0F, deflated: first & 0x40 != 0, payload }))
}
