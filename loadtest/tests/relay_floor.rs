//! The bare relay server, tested frame by frame with inputs that the harness's own clients never send.
#![allow(clippy::unwrap_used)]

#[path = "../src/wire.rs"]
#[allow(dead_code)]
mod wire;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MASK: [u8; 4] = [1, 2, 4, 8];
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

struct Floor {
    child: Child,
    address: SocketAddr,
}

impl Floor {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway-loadtest"));
        command.args(["floor", "relay", "--serve", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim().strip_prefix("floor Relay listens on ").unwrap_or_else(|| panic!("{said:?}")).parse().unwrap();
        Self { child, address }
    }

    /// The client, or the answer's status line.
    fn open(&self, path: &str) -> Result<Client, String> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&wire::upgrade_request("x", path, KEY, None)).unwrap();
        let mut head = Vec::new();
        while wire::http_head_end(&head).is_none() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        match wire::check_upgrade(&head, KEY) {
            Ok(()) => Ok(Client { stream }),
            Err(_) => Err(String::from_utf8(head).unwrap().lines().next().unwrap().to_owned()),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client {
    stream: TcpStream,
}

impl Client {
    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = Vec::new();
        wire::push_masked(&mut frame, opcode, payload, MASK);
        self.stream.write_all(&frame).unwrap();
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(head) = wire::parse_head(&bytes).unwrap() {
                break head;
            }
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        };
        assert!(head.fin && head.mask.is_none());
        let mut payload = vec![0; head.payload_bytes];
        self.stream.read_exact(&mut payload).unwrap();
        (head.opcode, payload)
    }

    fn is_acknowledged(&mut self, message: &[u8]) {
        let (opcode, ack) = self.read();
        assert_eq!((opcode, ack.len()), (wire::TEXT, 120), "{}", String::from_utf8_lossy(&ack));
        assert_eq!((&ack[..3], &ack[3..39]), (&b"ack"[..], &message[..36]));
    }
}

/// A message: its mark, and so many bytes more.
fn message(number: usize, more: usize) -> Vec<u8> {
    let mut message = format!("{number:036x}").into_bytes();
    message.resize(36 + more, b'm');
    message
}

#[test]
fn a_pair_reaches_each_other_and_nobody_else() {
    let floor = Floor::start();
    let mut clients = ["/pair/a", "/pair/b", "/pair/a", "/pair/b"].map(|path| floor.open(path).unwrap());
    for (number, (from, to)) in [(0, 2), (1, 3), (2, 0), (3, 1), (0, 2)].into_iter().enumerate() {
        let sent = message(number, number * 100);
        clients[from].send(wire::BINARY, &sent);
        clients[from].is_acknowledged(&sent);
        // Had another's message come here, it would be read first.
        assert_eq!(clients[to].read(), (wire::BINARY, sent));
    }
    clients[0].send(wire::PING, b"there?");
    assert_eq!(clients[0].read(), (wire::PONG, b"there?".to_vec()));
}

#[test]
fn a_third_is_refused_until_a_place_is_free() {
    let floor = Floor::start();
    assert_eq!(floor.open("/").err().as_deref(), Some("HTTP/1.1 404 Not Found"));
    let mut stays = floor.open("/pair/a").unwrap();
    let goes = floor.open("/pair/a").unwrap();
    assert_eq!(floor.open("/pair/a").err().as_deref(), Some("HTTP/1.1 409 Conflict"));
    drop(goes);
    // The end of the peer is noticed after a while; a message to nobody is acknowledged and dropped.
    let mut next = (0..1000).find_map(|number| {
        let lost = message(number, 10);
        stays.send(wire::TEXT, &lost);
        stays.is_acknowledged(&lost);
        floor.open("/pair/a").ok()
    });
    let next = next.as_mut().unwrap();
    let sent = message(5000, 10);
    stays.send(wire::TEXT, &sent);
    stays.is_acknowledged(&sent);
    assert_eq!(next.read(), (wire::TEXT, sent));
}

#[test]
fn a_peer_that_does_not_read_gets_all_of_it_later_and_holds_nobody_up() {
    const MESSAGES: usize = 200;
    let floor = Floor::start();
    let mut reader = floor.open("/pair/a").unwrap();
    let mut sender = floor.open("/pair/a").unwrap();
    // 20 MB: more than the sockets between them hold, and each frame is cut by many receives.
    for number in 0..MESSAGES {
        let sent = message(number, 100_000);
        sender.send(wire::TEXT, &sent);
        sender.is_acknowledged(&sent);
    }
    for number in 0..MESSAGES {
        assert!(reader.read() == (wire::TEXT, message(number, 100_000)), "message {number} is not what was sent");
    }
}

#[test]
fn a_frame_may_come_byte_by_byte_and_many_at_once() {
    let floor = Floor::start();
    let mut reader = floor.open("/pair/a").unwrap();
    let mut sender = floor.open("/pair/a").unwrap();
    let mut frames = Vec::new();
    for number in 0..300 {
        wire::push_masked(&mut frames, wire::TEXT, &message(number, number), MASK);
    }
    let (slowly, at_once) = frames.split_at(100);
    for byte in slowly {
        sender.stream.write_all(&[*byte]).unwrap();
    }
    sender.stream.write_all(at_once).unwrap();
    for number in 0..300 {
        assert_eq!(reader.read(), (wire::TEXT, message(number, number)));
        sender.is_acknowledged(&message(number, number));
    }
}

#[test]
fn a_close_is_answered_after_the_acks_and_the_peer_stays() {
    let floor = Floor::start();
    let mut stays = floor.open("/pair/a").unwrap();
    let mut leaves = floor.open("/pair/a").unwrap();
    let mut frames = Vec::new();
    wire::push_masked(&mut frames, wire::TEXT, &message(1, 0), MASK);
    wire::push_masked(&mut frames, wire::CLOSE, &[3, 232], MASK);
    leaves.stream.write_all(&frames).unwrap();
    leaves.is_acknowledged(&message(1, 0));
    assert_eq!(leaves.read(), (wire::CLOSE, vec![3, 232]));
    assert_eq!(leaves.stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(stays.read(), (wire::TEXT, message(1, 0)));
    stays.send(wire::PING, b"");
    assert_eq!(stays.read(), (wire::PONG, Vec::new()));
}
