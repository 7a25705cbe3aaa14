//! permessage-deflate (RFC 7692): where enabled, and only where it was agreed on; without context takeover.

use crate::gateway::Gateway;
use crate::raw::{Raw, Received, frame, text};
use crate::token::token;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
const ON: [(&str, &str); 2] = [("deflate.enabled", "true"), ("deflate.min_bytes", "1024")];

fn upgrade(gateway: &Gateway, offer: bool) -> (Raw, String) {
    let mut raw = Raw::connect(gateway.address);
    let request =
        if offer { crate::raw::UPGRADE.strip_suffix("\r\n").unwrap().to_owned() + OFFER } else { crate::raw::UPGRADE.to_owned() };
    let head = raw.upgrade(&request);
    (raw, head)
}

fn join(gateway: &Gateway, client_id: &str, offer: bool) -> Raw {
    let (mut raw, head) = upgrade(gateway, offer);
    assert_eq!(head.contains("permessage-deflate"), offer, "{head}");
    let hello = json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": {"client_id": client_id, "auth_token": token(client_id)}});
    raw.send(&text(&hello.to_string()));
    let welcome = message(&mut raw).0;
    assert_eq!(welcome["type"], "rw.welcome", "{welcome}");
    assert_eq!(message(&mut raw).0["type"], "rw.caught_up");
    raw
}

/// A message inflated on its own: no window of an earlier one is needed (`server_no_context_takeover`).
fn inflate(received: &Received) -> Vec<u8> {
    let mut data = received.payload.clone();
    data.extend([0, 0, 0xff, 0xff]);
    let mut out = Vec::with_capacity(1 << 20);
    Decompress::new(false).decompress_vec(&data, &mut out, FlushDecompress::Sync).unwrap();
    out
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 1024);
    Compress::new(Compression::default(), false).compress_vec(data, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

/// The next text message, and whether it was compressed.
fn message(raw: &mut Raw) -> (Value, bool) {
    let received = raw.next().expect("a message");
    match received.first {
        0x81 => (serde_json::from_slice(&received.payload).unwrap(), false),
        0xc1 => (serde_json::from_slice(&inflate(&received)).unwrap(), true),
        other => panic!("first byte {other:#x}: {:?}", String::from_utf8_lossy(&received.payload)),
    }
}

#[test]
fn a_broadcast_comes_compressed_to_who_agreed_and_plain_to_who_did_not() {
    let gateway = Gateway::start(&ON);
    let mut readers: Vec<Raw> = (0..12).map(|number| join(&gateway, &format!("r{number}"), number % 2 == 0)).collect();
    let mut ana = join(&gateway, "ana", true);
    let long = "ringway ".repeat(2_000);
    for (number, payload) in [json!(long), json!("short"), json!(long)].into_iter().enumerate() {
        let sent = json!({"type": "chat", "id": format!("m-{number}"), "session_id": "s", "payload": payload}).to_string();
        // Compressed by the client if that is worth it, as the gateway does.
        let bytes = if sent.len() > 1024 { frame(0xc1, &deflate(sent.as_bytes())) } else { text(&sent) };
        ana.send(&bytes);
        assert_eq!(message(&mut ana).0["payload"]["seq"], number + 1);
        for (reader, raw) in readers.iter_mut().enumerate() {
            let (received, compressed) = message(raw);
            assert_eq!(received["payload"], payload);
            assert_eq!(compressed, reader % 2 == 0 && number != 1, "reader {reader}, message {number}");
        }
    }
}

#[test]
fn it_is_off_by_default_and_not_forced_on_anybody() {
    let gateway = Gateway::start(&[]);
    let (mut raw, head) = upgrade(&gateway, true);
    assert!(!head.contains("Sec-WebSocket-Extensions"), "{head}");
    raw.send(&frame(0xc1, &deflate(b"{}")));
    assert_eq!(raw.end().0, Some(1002), "RSV1 without an agreement");
}

#[test]
fn a_bomb_ends_at_the_limit_and_rubbish_at_once() {
    let gateway = Gateway::start(&ON);
    let before = gateway.rss_bytes();
    for (bytes, code) in
        [(deflate(&vec![b' '; 50 << 20]), 1009), (b"\xff\xff\xff\xff rubbish".to_vec(), 1007), (deflate(b"\xff\xfe"), 1007)]
    {
        let (mut raw, _) = upgrade(&gateway, true);
        raw.send(&frame(0xc1, &bytes[..bytes.len().min(60_000)]));
        assert_eq!(raw.end().0, Some(code), "{} bytes", bytes.len());
    }
    assert!(gateway.rss_bytes().saturating_sub(before) < 16 << 20);
    // RSV1 belongs to a message's first frame only, never to a control frame.
    for bytes in [frame(0xc9, b""), [frame(0x41, &deflate(b"{}")), frame(0xc0, b"")].concat()] {
        let (mut raw, _) = upgrade(&gateway, true);
        raw.send(&bytes);
        assert_eq!(raw.end().0, Some(1002));
    }
}
