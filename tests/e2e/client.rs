//! A client of the wire protocol that shares no code with the gateway: fastwebsockets over tokio.

use crate::gateway::{Gateway, PATIENCE};
use crate::token::token;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketWrite, after_handshake_split};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

enum Incoming {
    Text(Value),
    Close(Option<u16>, String),
    /// The end of the stream, after a close or without one.
    Ended,
}

type Writer = Arc<Mutex<WebSocketWrite<WriteHalf<Box<dyn Stream>>>>>;

/// The contents of a hello.
#[derive(Clone)]
pub struct Hello {
    pub session: String,
    pub payload: Value,
}

impl Hello {
    /// A client of a user, with a token for every session.
    pub fn new(session: &str, client_id: &str) -> Self {
        let subject = client_id.split('/').next().unwrap();
        Self { session: session.to_owned(), payload: json!({"client_id": client_id, "auth_token": token(subject)}) }
    }

    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.payload[key] = value.into();
        self
    }
}

pub struct Client {
    incoming: mpsc::UnboundedReceiver<Incoming>,
    aside: VecDeque<Value>,
    write: Writer,
    reader: JoinHandle<()>,
    pub session: String,
    /// The welcome's payload.
    pub welcome: Value,
    serial: u64,
    /// The WebSocket pings that the gateway sent are answered.
    name: String,
}

/// Opens a stream and asks for an upgrade: the stream behind the head, the status, and the head.
pub async fn upgrade(mut stream: Box<dyn Stream>, path: &str, headers: &str) -> (Box<dyn Stream>, u16, String) {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("an answer to the upgrade in time");
        head.push(byte.expect("an answer to the upgrade"));
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (stream, status, head)
}

pub async fn tcp(address: SocketAddr) -> Box<dyn Stream> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Box::new(stream)
}

async fn read(half: tokio::io::ReadHalf<Box<dyn Stream>>, write: Writer, sink: mpsc::UnboundedSender<Incoming>) {
    let (mut read, _) = after_handshake_split(half, tokio::io::sink(), Role::Client);
    loop {
        let mut answer = |frame: Frame<'_>| {
            let (write, opcode, payload) = (Arc::clone(&write), frame.opcode, frame.payload.to_vec());
            async move { write.lock().await.write_frame(Frame::new(true, opcode, None, Payload::Owned(payload))).await }
        };
        let incoming = match read.read_frame::<_, WebSocketError>(&mut answer).await {
            Ok(frame) => match frame.opcode {
                OpCode::Text => {
                    Incoming::Text(serde_json::from_slice(&frame.payload).expect("every text the gateway sends is JSON"))
                }
                OpCode::Close => {
                    let code = frame.payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
                    let reason = frame.payload.get(2..).unwrap_or_default();
                    Incoming::Close(code, String::from_utf8_lossy(reason).into_owned())
                }
                OpCode::Ping | OpCode::Pong => continue,
                other => panic!("the gateway sent a frame with opcode {other:?}"),
            },
            Err(_) => Incoming::Ended,
        };
        let ended = matches!(incoming, Incoming::Ended);
        if sink.send(incoming).is_err() || ended {
            return;
        }
    }
}

impl Client {
    /// A connection that has been upgraded and has sent nothing.
    pub async fn connect(gateway: &Gateway) -> Self {
        let (stream, status, head) =
            upgrade(tcp(gateway.address).await, "/v1/ws", "Sec-WebSocket-Protocol: ringway.v1\r\n").await;
        assert_eq!(status, 101, "{head}");
        assert!(head.contains("Sec-WebSocket-Protocol: ringway.v1\r\n"), "{head}");
        Self::over(stream)
    }

    /// A client over a stream that has been upgraded.
    pub fn over(stream: Box<dyn Stream>) -> Self {
        let (read_half, write_half) = split(stream);
        let (_, write) = after_handshake_split(tokio::io::empty(), write_half, Role::Client);
        let write = Arc::new(Mutex::new(write));
        let (sink, incoming) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(read_half, Arc::clone(&write), sink));
        Self {
            incoming,
            aside: VecDeque::new(),
            write,
            reader,
            session: String::new(),
            welcome: Value::Null,
            serial: 0,
            name: String::new(),
        }
    }

    /// Connects and sends hello; returns after `rw.caught_up`, with replayed messages set aside to be read.
    pub async fn join(gateway: &Gateway, session: &str, client_id: &str) -> Self {
        Self::enter(gateway, Hello::new(session, client_id)).await
    }

    pub async fn enter(gateway: &Gateway, hello: Hello) -> Self {
        Self::connect(gateway).await.greet(hello).await
    }

    /// Sends hello and waits for the welcome and the end of the replay.
    pub async fn greet(mut self, hello: Hello) -> Self {
        self.hello(&hello).await;
        let welcome = self.next().await;
        assert_eq!(welcome["type"], "rw.welcome", "{welcome}");
        self.welcome = welcome["payload"].clone();
        self.take("rw.caught_up").await;
        self
    }

    /// Sends the hello only.
    pub async fn hello(&mut self, hello: &Hello) {
        self.session.clone_from(&hello.session);
        hello.payload["client_id"].as_str().unwrap_or("").clone_into(&mut self.name);
        self.send(&json!({"type": "rw.hello", "id": "hello", "session_id": hello.session, "payload": hello.payload})).await;
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Frame::text(Payload::Borrowed(text.as_bytes()))).await.unwrap();
    }

    pub async fn send_frame(&mut self, frame: Frame<'_>) -> Result<(), WebSocketError> {
        let mut write = self.write.lock().await;
        // The write half's frames live as long as itself; a copy does.
        let owned = Frame::new(frame.fin, frame.opcode, None, Payload::Owned(frame.payload.to_vec()));
        write.write_frame(owned).await?;
        write.flush().await
    }

    /// An id that this client has not used.
    pub fn fresh_id(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.name.replace('/', "-"), self.serial)
    }

    /// Sends an application's message to an address (`null`: the session) and returns its id.
    pub async fn say(&mut self, to: impl Into<Value>, payload: impl Into<Value>) -> String {
        let id = self.fresh_id();
        let to = to.into();
        let mut message = json!({"type": "chat", "id": id, "session_id": self.session, "payload": payload.into()});
        if !to.is_null() {
            message["to"] = to;
        }
        self.send(&message).await;
        id
    }

    /// The same, acknowledged; returns the `seq`.
    pub async fn publish(&mut self, to: impl Into<Value>, payload: impl Into<Value>) -> u64 {
        let id = self.say(to, payload).await;
        let ack = self.answer(&id).await;
        assert_eq!(ack["type"], "rw.ack", "{ack}");
        ack["payload"]["seq"].as_u64().unwrap()
    }

    /// Sends a command to the hello's session and returns its one final answer.
    pub async fn command(&mut self, kind: &str, payload: Value) -> Value {
        let session = self.session.clone();
        self.command_in(&session, kind, payload).await
    }

    pub async fn command_in(&mut self, session: &str, kind: &str, payload: Value) -> Value {
        let id = self.fresh_id();
        self.send(&json!({"type": kind, "id": id, "session_id": session, "payload": payload})).await;
        self.answer(&id).await
    }

    /// Waits for the gateway's answer to this id; earlier messages are set aside.
    pub async fn answer(&mut self, id: &str) -> Value {
        let is_answer = |message: &Value| {
            message["id"] == id
                && message["type"].as_str().is_some_and(|kind| kind.starts_with("rw.") && kind != "rw.history_begin")
        };
        self.pick(&format!("an answer to {id}"), is_answer).await
    }

    /// Waits for a message of this type; earlier messages are set aside.
    pub async fn take(&mut self, kind: &str) -> Value {
        self.pick(kind, |message| message["type"] == kind).await
    }

    async fn pick(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(place) = self.aside.iter().position(&wanted) {
            return self.aside.remove(place).unwrap();
        }
        loop {
            let message = self.arrival(what).await;
            if wanted(&message) {
                return message;
            }
            self.aside.push_back(message);
        }
    }

    /// The next message, those set aside first.
    pub async fn next(&mut self) -> Value {
        match self.aside.pop_front() {
            Some(message) => message,
            None => self.arrival("a message").await,
        }
    }

    async fn arrival(&mut self, what: &str) -> Value {
        match timeout(PATIENCE, self.incoming.recv()).await {
            Ok(Some(Incoming::Text(message))) => message,
            Ok(Some(Incoming::Close(code, reason))) => {
                panic!("{}: closed with {code:?} ({reason}) instead of {what}; aside: {:#?}", self.name, self.aside)
            }
            Ok(Some(Incoming::Ended) | None) => panic!("{}: ended instead of {what}; aside: {:#?}", self.name, self.aside),
            Err(_) => panic!("{}: {what} does not come; aside: {:#?}", self.name, self.aside),
        }
    }

    /// All messages sent to this client in its session up to now: a ping's answer comes in order with messages.
    pub async fn settle(&mut self) -> Vec<Value> {
        self.settle_in(&self.session.clone()).await
    }

    /// The same of another session that it is attached to.
    async fn settle_in(&mut self, session: &str) -> Vec<Value> {
        let pong = self.command_in(session, "rw.ping", json!({})).await;
        assert_eq!(pong["type"], "rw.pong", "{pong}");
        self.aside.drain(..).collect()
    }

    /// The payloads of the application's messages up to now, in order.
    pub async fn heard(&mut self) -> Vec<Value> {
        self.heard_in(&self.session.clone()).await
    }

    /// The same of another session that it is attached to.
    pub async fn heard_in(&mut self, session: &str) -> Vec<Value> {
        let heard = self.settle_in(session).await;
        heard.iter().filter(|message| message["type"] == "chat").map(|message| message["payload"].clone()).collect()
    }

    /// Waits for the close frame and the end of the stream; texts before it are set aside.
    pub async fn closed(&mut self) -> (Option<u16>, String) {
        let mut close = None;
        loop {
            match timeout(PATIENCE, self.incoming.recv()).await {
                Ok(Some(Incoming::Text(message))) => self.aside.push_back(message),
                Ok(Some(Incoming::Close(code, reason))) => close = Some((code, reason)),
                Ok(Some(Incoming::Ended) | None) => return close.unwrap_or_else(|| (None, "no close frame".to_owned())),
                Err(_) => panic!("{}: the connection does not end; close: {close:?}, aside: {:#?}", self.name, self.aside),
            }
        }
    }

    /// All that still comes up to the end of the stream, with what was set aside before it.
    pub async fn rest(mut self) -> Vec<Value> {
        self.closed().await;
        self.aside.drain(..).collect()
    }

    /// The close code, and the code of the last `rw.error` before it.
    pub async fn refused(&mut self) -> (Option<u16>, String) {
        let (code, _) = self.closed().await;
        let error = self.aside.iter().rfind(|message| message["type"] == "rw.error");
        (code, error.map_or("", |error| error["payload"]["code"].as_str().unwrap()).to_owned())
    }

    /// Closes with 1000 and waits for the end.
    pub async fn close(mut self) {
        self.send_frame(Frame::close(1000, b"")).await.unwrap();
        let (code, _) = self.closed().await;
        assert_eq!(code, Some(1000));
    }

    /// Ends the connection without a close frame, as a lost network does.
    pub async fn vanish(self) {
        self.reader.abort();
        let _ = self.reader.await;
    }

    /// The `rw.resume` of this epoch and a `seq`.
    pub fn position(&self, seq: u64) -> Value {
        json!({"epoch": self.welcome["epoch"], "seq": seq})
    }
}

/// The code of an `rw.error`.
#[track_caller]
pub fn code(message: &Value) -> &str {
    assert_eq!(message["type"], "rw.error", "{message}");
    message["payload"]["code"].as_str().unwrap()
}

/// The payloads of messages.
pub fn payloads(messages: &[Value]) -> Vec<Value> {
    messages.iter().map(|message| message["payload"].clone()).collect()
}
