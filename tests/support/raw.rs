//! WebSocket by hand over a blocking socket: any bytes, in any pieces, and whatever comes back.

use super::gateway::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const UPGRADE: &str = "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A masked frame with this first byte (FIN, RSV, opcode).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(first, payload.len() as u64);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of a masked frame, the mask included.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..=125 => head.push(0x80 | length as u8),
        126..=0xffff => {
            head.push(0xfe);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(0xff);
            head.extend(length.to_be_bytes());
        }
    }
    head.extend(MASK);
    head
}

pub fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes())
}

/// A frame of the gateway's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// FIN, RSV and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Received {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// Sends. Returns `false` if the peer no longer takes it.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads the head of an HTTP answer.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                let head = std::mem::replace(&mut self.buffer, rest);
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill(), "the connection ended in the head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Upgrades, and returns the answer's head.
    pub fn upgrade(&mut self, request: &str) -> String {
        assert!(self.send(request.as_bytes()));
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        head
    }

    /// Reads more bytes. Returns `false` at the end. Panics if nothing comes for too long.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the gateway neither answers nor ends; so far: {:?}", String::from_utf8_lossy(&self.buffer))
            }
            Err(_) => false,
        }
    }

    /// The next frame; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Received> {
        loop {
            if let Some((received, used)) = parse(&self.buffer) {
                self.buffer.drain(..used);
                return Some(received);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next text frame's JSON.
    pub fn json(&mut self) -> serde_json::Value {
        loop {
            let received = self.next().expect("a text frame before the end");
            match received.first & 0x0f {
                1 => return serde_json::from_slice(&received.payload).unwrap(),
                9 | 10 => {}
                other => panic!("opcode {other}: {:?}", String::from_utf8_lossy(&received.payload)),
            }
        }
    }

    /// Reads to the end of the stream: the code of the close frame, if one came, the texts before it, and when the end came.
    pub fn end(&mut self) -> (Option<u16>, Vec<String>, Instant) {
        let (mut code, mut texts) = (None, Vec::new());
        while let Some(received) = self.next() {
            match received.first & 0x0f {
                8 => {
                    code = Some(received.payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]])));
                }
                1 => texts.push(received.text().to_owned()),
                _ => {}
            }
        }
        (code, texts, Instant::now())
    }

    /// Everything to the end of the stream, as bytes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }
}

pub fn parse(bytes: &[u8]) -> Option<(Received, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert!(second & 0x80 == 0, "a server's frame is not masked (RFC 6455 5.1)");
    let (length, start) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize, 10),
        short => (usize::from(short), 2),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    Some((Received { first, payload }, start + length))
}

/// Sleeps: a pause in what is sent.
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
