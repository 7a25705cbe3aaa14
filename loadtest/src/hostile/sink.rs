//! The sink: a server that accepts connections and all their messages, and sends only the answers that an attacker waits for.
//! Attacked in place of the gateway it costs the attackers as much, so that the difference for the innocents is the gateway's own
//! doing.

use crate::dialect;
use crate::wire;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio_uring::net::{TcpListener, TcpStream};

const RECEIVE_BYTES: usize = 16 << 10;

/// Serves until it fails.
pub fn serve(listen: SocketAddr) -> io::Error {
    tokio_uring::start(async move {
        let listener = match TcpListener::bind(listen) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        loop {
            // No descriptors for more: existing connections will close.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            tokio_uring::spawn(take_all(Rc::new(stream)));
        }
    })
}

async fn take_all(stream: Rc<TcpStream>) {
    let mut connection = Connection::default();
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        let Ok(count) = result else { return };
        if count == 0 {
            return;
        }
        let mut answers = Vec::new();
        let goes_on = connection.take(&buffer[..count], &mut answers);
        if buffer.capacity() < RECEIVE_BYTES {
            buffer.reserve(RECEIVE_BYTES);
        }
        if (!answers.is_empty() && stream.write_all(answers).await.0.is_err()) || !goes_on {
            return;
        }
    }
}

/// The received bytes of one connection that are not handled yet.
#[derive(Default)]
struct Connection {
    inbox: Vec<u8>,
    upgraded: bool,
}

impl Connection {
    /// Takes bytes. Returns `true` if the connection continues.
    fn take(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> bool {
        self.inbox.extend_from_slice(bytes);
        if !self.upgraded {
            let Some(end) = wire::http_head_end(&self.inbox) else { return self.inbox.len() < 64 << 10 };
            let head = String::from_utf8_lossy(&self.inbox[..end]).into_owned();
            let Some(key) = wire::http_header(&head, "sec-websocket-key") else { return false };
            let accept = wire::accept_value(key);
            answers.extend_from_slice(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                )
                .as_bytes(),
            );
            self.inbox.drain(..end);
            self.upgraded = true;
        }
        let mut at = 0;
        let goes_on = loop {
            let rest = &mut self.inbox[at..];
            let head = match wire::parse_head(rest) {
                Ok(Some(head)) if rest.len() >= head.head_bytes + head.payload_bytes => head,
                Ok(_) => break true,
                Err(_) => break false,
            };
            let end = head.head_bytes + head.payload_bytes;
            let payload = &mut rest[head.head_bytes..end];
            if let Some(mask) = head.mask {
                wire::apply_mask(payload, mask);
            }
            match head.opcode {
                wire::TEXT => answer(payload, answers),
                wire::PING => frame(wire::PONG, payload, answers),
                wire::CLOSE => {
                    frame(wire::CLOSE, payload, answers);
                    break false;
                }
                _ => {}
            }
            at += end;
        };
        self.inbox.drain(..at);
        goes_on
    }
}

/// The gateway's answers, by command: type, and payload as JSON.
const ANSWERS: [(&str, &[(&str, &str)]); 12] = [
    ("rw.hello", &[("rw.welcome", "{\"epoch\":\"0\",\"seq\":0,\"start_seq\":1}")]),
    ("rw.attach", &[("rw.attached", "{\"epoch\":\"0\",\"seq\":0,\"start_seq\":1}")]),
    ("rw.detach", &[("rw.detached", "{}")]),
    ("rw.join", &[("rw.joined", "{\"seq\":1}")]),
    ("rw.leave", &[("rw.left", "{}")]),
    ("rw.members", &[("rw.members", "{\"members\":[],\"next\":null}")]),
    ("rw.watch", &[("rw.watching", "{\"members\":[],\"seq\":1,\"next\":null}")]),
    ("rw.presence.set", &[("rw.presence.ok", "{}")]),
    ("rw.history", &[("rw.history_begin", "{\"count\":0}"), ("rw.history_end", "{\"more\":false,\"oldest_seq\":1}")]),
    ("rw.refresh", &[("rw.refreshed", "{\"token_expires_in_ms\":3600000}")]),
    ("rw.ping", &[("rw.pong", "{\"seq\":0,\"delivered_seq\":0}")]),
    ("rw.received", &[]),
];

/// Answers an envelope, an application's message with an ack. An envelope that does not begin with `type`, `id` and `session_id`
/// gets no answer.
fn answer(payload: &[u8], answers: &mut Vec<u8>) {
    let text = |key: &[u8]| dialect::text_of(payload, key);
    let (Some(kind), Some(id)) = (text(b"\"type\":\""), text(b"\"id\":\"")) else { return };
    let session = text(b"\"session_id\":\"").unwrap_or_default();
    let ack: &[(&str, &str)] = &[("rw.ack", "{\"seq\":1}")];
    let known = ANSWERS.iter().find(|(command, _)| *command == kind);
    for (kind, payload) in known.map_or(ack, |(_, answers)| answers) {
        let text = format!("{{\"type\":\"{kind}\",\"id\":\"{id}\",\"session_id\":\"{session}\",\"payload\":{payload}}}");
        frame(wire::TEXT, text.as_bytes(), answers);
    }
}

fn frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + wire::unmasked_head_bytes(payload.len()), 0);
    wire::write_unmasked_head(&mut out[at..], 0x80 | opcode, payload.len());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn upgraded() -> Connection {
        let mut connection = Connection::default();
        let mut answers = Vec::new();
        assert!(connection.take(&wire::upgrade_request("h", "/v1/ws", KEY, Some("ringway.v1")), &mut answers));
        wire::check_upgrade(&answers, KEY).unwrap();
        connection
    }

    fn said(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        wire::push_masked(&mut out, wire::TEXT, text.as_bytes(), [1, 2, 3, 4]);
        out
    }

    fn types(mut answers: &[u8]) -> Vec<String> {
        let mut types = Vec::new();
        while let Some(head) = wire::parse_head(answers).unwrap() {
            let (payload, rest) = answers[head.head_bytes..].split_at(head.payload_bytes);
            let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
            assert_eq!((&value["id"], &value["session_id"]), (&"m-7".into(), &"s".into()), "{value}");
            types.push(value["type"].as_str().unwrap().to_owned());
            answers = rest;
        }
        types
    }

    #[test]
    fn every_command_has_the_answer_that_is_waited_for() {
        for (command, wanted) in [
            ("rw.hello", &["rw.welcome"][..]),
            ("rw.history", &["rw.history_begin", "rw.history_end"]),
            ("rw.ping", &["rw.pong"]),
            ("rw.received", &[]),
            ("app.post", &["rw.ack"]),
        ] {
            let mut answers = Vec::new();
            let text = format!("{{\"type\":\"{command}\",\"id\":\"m-7\",\"session_id\":\"s\",\"payload\":{{}}}}");
            assert!(upgraded().take(&said(&text), &mut answers));
            assert_eq!(types(&answers), wanted, "{command}");
        }
    }

    #[test]
    fn bytes_may_come_one_at_a_time_or_all_at_once() {
        let text = "{\"type\":\"rw.join\",\"id\":\"m-7\",\"session_id\":\"s\",\"payload\":{\"room\":\"r\"}}";
        let whole = [said(text), said(text), said(text)].concat();
        let (mut together, mut apart) = (Vec::new(), Vec::new());
        let mut connection = upgraded();
        assert!(connection.take(&whole, &mut together) && connection.inbox.is_empty());
        let mut connection = upgraded();
        assert!(whole.iter().all(|byte| connection.take(&[*byte], &mut apart)));
        assert_eq!((types(&together).len(), together == apart), (3, true));
    }

    #[test]
    fn a_close_frame_is_answered_and_ends_it_and_what_is_no_upgrade_too() {
        let mut close = Vec::new();
        wire::push_masked(&mut close, wire::CLOSE, &1000_u16.to_be_bytes(), [1, 2, 3, 4]);
        let mut answers = Vec::new();
        assert!(!upgraded().take(&close, &mut answers));
        assert_eq!(answers, [0x88, 2, 3, 0xe8]);
        assert!(!Connection::default().take(b"GET / HTTP/1.1\r\n\r\n", &mut answers));
        assert!(Connection::default().take(b"GET / HT", &mut answers));
    }
}
