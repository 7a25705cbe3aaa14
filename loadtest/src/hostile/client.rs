//! A client by hand, on sockets of the standard library: attackers do things that no well-behaved client would, and come from
//! addresses of their own.

use crate::clock::{now_ns, sleep_ms};
use crate::dialect;
use crate::wire;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Time after which a server counts as not answering.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that may wait for a server that does not read, before an attacker stops sending.
const BACKLOG_BYTES_MAX: usize = 256 << 10;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x11, 0x22, 0x44, 0x88];

/// The server's address, and the client's.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    pub address: SocketAddr,
    /// An address of the loopback; the gateway counts connections by it.
    pub from: Ipv4Addr,
    /// SO_RCVBUF, for a slow reader.
    pub receive_buffer_bytes: Option<usize>,
}

impl Door {
    pub fn new(address: SocketAddr, from: Ipv4Addr) -> Self {
        Self { address, from, receive_buffer_bytes: None }
    }

    /// A bound socket whose close leaves nothing behind: a waiting port could not be used again for a minute.
    pub fn socket(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((self.from, 0)).into())?;
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(socket)
    }

    /// A connected socket whose reads and writes wait [`PATIENCE`] at most.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let socket = self.socket()?;
        socket.connect_timeout(&self.address.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// The client's identity, and its session.
#[derive(Clone, Debug)]
pub struct Hello {
    pub client: String,
    pub token: String,
    pub session: String,
    pub rooms: Vec<String>,
}

impl Hello {
    fn text(&self) -> String {
        let payload = json!({ "client_id": self.client, "auth_token": self.token, "create": true, "rooms": self.rooms });
        json!({ "type": "rw.hello", "id": "hello", "session_id": self.session, "payload": payload }).to_string()
    }
}

/// From the connected socket to the welcome, with a pause between the upgrade and the hello. Returns the bytes received after the
/// welcome. Errors: the refusal, as `http 429`, `limit.members`, `closed 4408`.
pub fn enter(stream: &mut (impl Read + Write), hello: &Hello, pause: Duration) -> Result<Vec<u8>, String> {
    let request = wire::upgrade_request("127.0.0.1", "/v1/ws", KEY, Some("ringway.v1"));
    stream.write_all(&request).map_err(|error| lost(&error))?;
    let mut inbox = Vec::new();
    let head = loop {
        receive(stream, &mut inbox)?;
        if let Some(end) = wire::http_head_end(&inbox) {
            break inbox.drain(..end).collect::<Vec<u8>>();
        }
    };
    wire::check_upgrade(&head, KEY).map_err(|error| refusal(&head).unwrap_or(error.0))?;
    sleep_ms(u64::try_from(pause.as_millis()).unwrap_or(0));
    let mut frame = Vec::new();
    wire::push_masked(&mut frame, wire::TEXT, hello.text().as_bytes(), MASK);
    stream.write_all(&frame).map_err(|error| lost(&error))?;
    loop {
        while let Some((opcode, payload)) = next_frame(&mut inbox)? {
            match opcode {
                wire::TEXT if dialect::is_type(&payload, b"rw.welcome") => return Ok(inbox),
                wire::TEXT => {
                    let shown = || format!("no welcome but {:?}", String::from_utf8_lossy(&payload[..payload.len().min(80)]));
                    return Err(dialect::code_of(&payload).map_or_else(shown, str::to_owned));
                }
                wire::CLOSE => return Err(closed(&payload)),
                _ => {}
            }
        }
        receive(stream, &mut inbox)?;
    }
}

/// `http 429` of a head that is no 101.
fn refusal(head: &[u8]) -> Option<String> {
    let status = std::str::from_utf8(head).ok()?.split(' ').nth(1)?;
    (status != "101").then(|| format!("http {status}"))
}

fn closed(payload: &[u8]) -> String {
    payload.first_chunk::<2>().map_or_else(|| "closed".into(), |code| format!("closed {}", u16::from_be_bytes(*code)))
}

fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in 5 s".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => "cut off".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

/// A blocking read.
fn receive(stream: &mut impl Read, inbox: &mut Vec<u8>) -> Result<(), String> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => Err("cut off".into()),
        Ok(count) => {
            inbox.extend_from_slice(&bytes[..count]);
            Ok(())
        }
        Err(error) => Err(lost(&error)),
    }
}

/// Takes a whole frame from the front.
fn next_frame(inbox: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, String> {
    let Some(head) = wire::parse_head(inbox).map_err(|error| error.0)? else { return Ok(None) };
    let end = head.head_bytes + head.payload_bytes;
    if inbox.len() < end {
        return Ok(None);
    }
    let payload = inbox[head.head_bytes..end].to_vec();
    inbox.drain(..end);
    Ok(Some((head.opcode, payload)))
}

/// A member for whom neither a read nor a write waits.
pub struct Link {
    stream: TcpStream,
    out: Vec<u8>,
    inbox: Vec<u8>,
}

impl Link {
    /// Connects and joins.
    pub fn open(door: &Door, hello: &Hello) -> Result<Self, String> {
        let mut stream = door.connect().map_err(|error| lost(&error))?;
        let inbox = enter(&mut stream, hello, Duration::ZERO)?;
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        Ok(Self { stream, out: Vec::new(), inbox })
    }

    /// Returns `true` while earlier messages still wait for the server: more would only be held here.
    pub fn is_backed_up(&self) -> bool {
        self.out.len() > BACKLOG_BYTES_MAX
    }

    /// Queues an envelope, which [`Link::push`] sends.
    pub fn say(&mut self, text: &str) {
        if !self.is_backed_up() {
            wire::push_masked(&mut self.out, wire::TEXT, text.as_bytes(), MASK);
        }
    }

    /// Queues a close frame.
    pub fn say_close(&mut self) {
        wire::push_masked(&mut self.out, wire::CLOSE, &1000_u16.to_be_bytes(), MASK);
    }

    /// Sends as much as the socket takes, in one write if it takes all.
    pub fn push(&mut self) -> Result<(), String> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(())
    }

    /// Reads what has arrived, at most `bytes_max`, and passes on whole text messages.
    pub fn take(&mut self, bytes_max: usize, mut each: impl FnMut(&[u8])) -> Result<(), String> {
        let mut bytes = [0; 16 << 10];
        let mut left = bytes_max;
        while left > 0 {
            let room = bytes.len().min(left);
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => return Err("cut off".into()),
                Ok(count) => {
                    self.inbox.extend_from_slice(&bytes[..count]);
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(lost(&error)),
            }
            while let Some((opcode, payload)) = next_frame(&mut self.inbox)? {
                match opcode {
                    wire::TEXT => each(&payload),
                    wire::PING => {
                        wire::push_masked(&mut self.out, wire::PONG, &payload, MASK);
                    }
                    wire::CLOSE => return Err(closed(&payload)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Waits for a message of one of these types. Errors: the connection's end, or none in [`PATIENCE`].
    pub fn wait_for(&mut self, kinds: &[&[u8]]) -> Result<(), String> {
        let deadline_ns = now_ns() + u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        let mut came = false;
        while !came {
            self.push()?;
            self.take(usize::MAX, |message| came |= kinds.iter().any(|kind| dialect::is_type(message, kind)))?;
            if now_ns() > deadline_ns {
                return Err("no answer in 5 s".into());
            }
            if !came {
                sleep_ms(1);
            }
        }
        Ok(())
    }
}

/// Returns `true` if the server ended a silent connection; its bytes are not read.
pub fn is_ended(socket: &Socket) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    match SockRef::from(socket).peek(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::NotConnected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's side that was written before, and the bytes that the client sent.
    struct Script {
        said: Vec<u8>,
        answers: io::Cursor<Vec<u8>>,
    }

    impl Read for Script {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.answers.read(bytes)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.said.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; wire::unmasked_head_bytes(payload.len())];
        wire::write_unmasked_head(&mut out, 0x80 | opcode, payload.len());
        out.extend_from_slice(payload);
        out
    }

    fn entering(answers: &[&[u8]]) -> (Result<Vec<u8>, String>, Vec<u8>) {
        let mut script = Script { said: Vec::new(), answers: io::Cursor::new(answers.concat()) };
        let hello = Hello { client: "ana".into(), token: "t".into(), session: "s".into(), rooms: Vec::new() };
        (enter(&mut script, &hello, Duration::ZERO), script.said)
    }

    #[test]
    fn who_is_let_in_keeps_what_came_behind_the_welcome_and_who_is_not_is_told_why() {
        let upgraded = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\r\n", wire::accept_value(KEY));
        let welcome = frame(wire::TEXT, b"{\"type\":\"rw.welcome\",\"id\":\"hello\"}");
        let next = frame(wire::TEXT, b"{\"type\":\"rw.caught_up\"}");
        let (entered, said) = entering(&[upgraded.as_bytes(), &welcome, &next]);
        assert_eq!(entered.unwrap(), next);
        let mut hello = said[wire::http_head_end(&said).unwrap()..].to_vec();
        let head = wire::parse_head(&hello).unwrap().unwrap();
        wire::apply_mask(&mut hello[head.head_bytes..], head.mask.unwrap());
        assert!(dialect::is_type(&hello[head.head_bytes..], b"rw.hello"), "{:?}", String::from_utf8_lossy(&hello));
        let error = frame(wire::TEXT, b"{\"type\":\"rw.error\",\"payload\":{\"code\":\"limit.members\"}}");
        for (answers, why) in [
            (vec![upgraded.as_bytes(), &error[..]], "limit.members"),
            (vec![upgraded.as_bytes(), &frame(wire::CLOSE, &4408_u16.to_be_bytes())], "closed 4408"),
            (vec![upgraded.as_bytes()], "cut off"),
            (vec![&b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\n"[..]], "http 429"),
            (vec![], "cut off"),
        ] {
            assert_eq!(entering(&answers).0.unwrap_err(), why);
        }
    }
}
