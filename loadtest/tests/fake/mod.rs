//! A gateway in miniature, for testing the harness: sessions in memory, acks, delivery to the others, resume, duplicates
//! recognised by their id. It can be told to break a promise.

use crate::wire;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The promise that it breaks, every so many messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Acknowledged and not delivered.
    Lose(u64),
    /// Delivered twice.
    Repeat(u64),
    /// Delivered and not acknowledged.
    Withhold(u64),
    /// Left out when a client catches up.
    Skip(usize),
    /// A repeated id is taken for a new message.
    ForgetIds,
}

struct Logged {
    from: String,
    id: String,
    to: String,
    text: String,
}

#[derive(Default)]
struct Session {
    log: Vec<Logged>,
    members: BTreeMap<String, (u64, Vec<String>, TcpStream)>,
}

type Sessions = Arc<Mutex<BTreeMap<String, Session>>>;

pub struct Gateway {
    pub address: SocketAddr,
    stopping: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Gateway {
    pub fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let accepting = std::thread::spawn(move || {
            let (sessions, connections, messages) = (Sessions::default(), AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (sessions, number, messages) =
                    (Arc::clone(&sessions), connections.fetch_add(1, Ordering::SeqCst), Arc::clone(&messages));
                // Ends with its client's socket.
                std::thread::spawn(move || serve(stream, &sessions, number, fault, &messages));
            }
        });
        Self { address, stopping, accepting: Some(accepting) }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn send(stream: &mut TcpStream, text: &str) {
    let mut frame = vec![0; wire::unmasked_head_bytes(text.len())];
    wire::write_unmasked_head(&mut frame, 0x81, text.len());
    frame.extend_from_slice(text.as_bytes());
    let _ = stream.write_all(&frame);
}

struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Frames {
    fn fill(&mut self) -> Option<()> {
        let mut chunk = [0; 4096];
        let taken = self.stream.read(&mut chunk).ok().filter(|taken| *taken > 0)?;
        self.buffer.extend_from_slice(&chunk[..taken]);
        Some(())
    }

    fn text(&mut self) -> Option<String> {
        loop {
            if let Some(head) = wire::parse_head(&self.buffer).ok()? {
                let end = head.head_bytes + head.payload_bytes;
                if self.buffer.len() >= end {
                    let mut frame: Vec<u8> = self.buffer.drain(..end).collect();
                    wire::apply_mask(&mut frame[head.head_bytes..], head.mask?);
                    return String::from_utf8(frame.split_off(head.head_bytes)).ok();
                }
            }
            self.fill()?;
        }
    }
}

fn serve(stream: TcpStream, sessions: &Sessions, number: u64, fault: Fault, messages: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut own = stream.try_clone().ok()?;
    let mut frames = Frames { stream, buffer: Vec::new() };
    let end = loop {
        if let Some(end) = wire::http_head_end(&frames.buffer) {
            break end;
        }
        frames.fill()?;
    };
    let head: Vec<u8> = frames.buffer.drain(..end).collect();
    let key = wire::accept_value(wire::http_header(std::str::from_utf8(&head).ok()?, "sec-websocket-key")?);
    write!(
        own,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
    )
    .ok()?;
    let hello: Value = serde_json::from_str(&frames.text()?).ok()?;
    let (client, home) = (hello["payload"]["client_id"].as_str()?.to_owned(), hello["session_id"].as_str()?.to_owned());
    if hello["type"] != "rw.hello" || hello["payload"]["auth_token"].as_str()?.split('.').count() != 3 {
        send(&mut own, r#"{"type":"rw.error","id":"","payload":{"code":"auth.missing"}}"#);
        return None;
    }
    let skipped = if let Fault::Skip(every) = fault { every } else { usize::MAX };
    welcome(&mut own, sessions, number, (&client, &home), &hello, skipped);
    while let Some(text) = frames.text() {
        message(&mut own, sessions, &client, &text, fault, messages);
    }
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let members = &mut sessions.get_mut(&home)?.members;
    if members.get(&client).is_some_and(|(holder, ..)| *holder == number) {
        members.remove(&client);
    }
    Some(())
}

fn welcome(own: &mut TcpStream, sessions: &Sessions, number: u64, (client, home): (&str, &str), hello: &Value, skipped: usize) {
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let session = sessions.entry(home.to_owned()).or_default();
    let head = session.log.len() as u64;
    let start = hello["payload"]["resume"]["seq"].as_u64().unwrap_or(head);
    let payload = json!({ "client_id": client, "epoch": "e1", "seq": head, "start_seq": start + 1, "recovered": true });
    send(own, &json!({ "type": "rw.welcome", "id": hello["id"], "session_id": home, "payload": payload }).to_string());
    let rooms: Vec<String> = hello["payload"]["rooms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|room| room.as_str().map(|room| format!("room:{room}")))
        .collect();
    for (place, logged) in session.log.iter().enumerate().skip(usize::try_from(start).unwrap()) {
        if (place + 1).is_multiple_of(skipped) {
            continue;
        }
        if logged.from != client && (logged.to.is_empty() || rooms.contains(&logged.to)) {
            send(own, &logged.text);
        }
    }
    send(own, &json!({ "type": "rw.caught_up", "id": "c", "session_id": home, "payload": { "seq": head } }).to_string());
    session.members.insert(client.to_owned(), (number, rooms, own.try_clone().unwrap()));
}

fn message(own: &mut TcpStream, sessions: &Sessions, client: &str, text: &str, fault: Fault, messages: &AtomicU64) {
    let Ok(envelope) = serde_json::from_str::<Value>(text) else { return };
    let id = envelope["id"].as_str().unwrap_or("").to_owned();
    let to = envelope["to"].as_str().unwrap_or("").to_owned();
    let name = if to.starts_with("channel:") { to.clone() } else { envelope["session_id"].as_str().unwrap_or("").to_owned() };
    let to = if to.starts_with("channel:") { String::new() } else { to };
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let session = sessions.entry(name).or_default();
    let known = session.log.iter().position(|logged| logged.id == id && logged.from == client);
    let ack = |seq: usize| json!({ "type": "rw.ack", "id": id, "session_id": "s", "payload": { "seq": seq } }).to_string();
    if let Some(known) = known.filter(|_| fault != Fault::ForgetIds) {
        send(own, &ack(known + 1));
        return;
    }
    let seq = session.log.len() + 1;
    let text = format!("{{\"seq\":{seq},\"from\":\"{client}\",\"ts\":1,{}", &text[1..]);
    let count = messages.fetch_add(1, Ordering::SeqCst) + 1;
    for (name, (_, rooms, stream)) in &mut session.members {
        if name == client || !(to.is_empty() || rooms.contains(&to)) {
            continue;
        }
        match fault {
            Fault::Lose(every) if count.is_multiple_of(every) => {}
            Fault::Repeat(every) if count.is_multiple_of(every) => {
                send(stream, &text);
                send(stream, &text);
            }
            _ => send(stream, &text),
        }
    }
    session.log.push(Logged { from: client.to_owned(), id: id.clone(), to, text });
    drop(sessions);
    if fault == Fault::ForgetIds {
        // Late, so that whenever a client is cut off some are not acknowledged.
        #[allow(clippy::disallowed_methods, reason = "this client's own thread")]
        std::thread::sleep(Duration::from_millis(1));
    }
    if !matches!(fault, Fault::Withhold(every) if count.is_multiple_of(every)) {
        send(own, &ack(seq));
    }
}
