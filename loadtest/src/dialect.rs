//! Messages over the WebSocket: bare frames (the floor, any echo server) or the gateway's envelopes.

use crate::stamp::{self, Stamp, Template};
use crate::wire;

/// A frame from the server, as far as a load generator cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    Message(Stamp),
    /// `rw.ack`, or the bare relay's ack, of a message of ours.
    Ack(Stamp),
    /// `rw.error`.
    Error,
    /// Any other `rw.` frame.
    Control,
    /// Not of this dialect.
    Unknown,
}

const TYPE: &[u8] = b"\"type\":\"";
const ID: &[u8] = b"\"id\":\"";
const SEQ: &[u8] = b"\"seq\":";
/// Upper bound of the bytes that the gateway adds to a message: `seq`, `from`, `ts`, `traceparent`.
const ADDED_BYTES_MAX: usize = 512;

fn after<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = bytes.get(1..).and_then(|rest| rest.strip_prefix(key)) {
        return Some(rest);
    }
    // By hand, from quote to quote: most bytes are no quote, and this runs once or twice a message.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'"') {
        rest = &rest[at..];
        if let Some(found) = rest.strip_prefix(key) {
            return Some(found);
        }
        rest = &rest[1..];
    }
    None
}

/// Reads a frame of the gateway without parsing JSON: the keys were written by the gateway or by this harness, and neither writes
/// spaces.
pub fn read_envelope(payload: &[u8]) -> Incoming {
    let Some(kind) = after(payload, TYPE) else { return Incoming::Unknown };
    let stamp = || after(payload, ID).and_then(Stamp::read);
    if let Some(command) = kind.strip_prefix(b"rw.") {
        if command.starts_with(b"ack\"") {
            return stamp().map_or(Incoming::Control, Incoming::Ack);
        }
        if command.starts_with(b"error\"") {
            return Incoming::Error;
        }
        return Incoming::Control;
    }
    stamp().map_or(Incoming::Unknown, Incoming::Message)
}

/// Returns `true` for a frame of this type.
pub fn is_type(payload: &[u8], kind: &[u8]) -> bool {
    after(payload, TYPE).and_then(|rest| rest.strip_prefix(kind)).is_some_and(|rest| rest.first() == Some(&b'"'))
}

/// The code of an `rw.error`.
pub fn code_of(payload: &[u8]) -> Option<&str> {
    text_of(payload, b"\"code\":\"")
}

/// A string of a frame written by the gateway or the harness, up to its quote, without handling escapes. `key` is written as in
/// the frame: quoted, followed by the colon and the quote.
pub fn text_of<'a>(payload: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let rest = after(payload, key)?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Beginning of an ack of the bare relay, followed by its message's mark. No mark begins so: k is no hexadecimal digit.
pub const BARE_ACK: &[u8] = b"ack";
/// Bytes of such an ack, padded to about an `rw.ack` of a message of this harness.
pub const BARE_ACK_BYTES: usize = 120;

/// Reads a bare frame: of a message the mark comes first.
pub fn read_bare(payload: &[u8]) -> Incoming {
    match payload.strip_prefix(BARE_ACK) {
        Some(marked) => Stamp::read(marked).map_or(Incoming::Unknown, Incoming::Ack),
        None => Stamp::read(payload).map_or(Incoming::Unknown, Incoming::Message),
    }
}

/// The `seq` of a frame of the gateway's own.
pub fn seq_of(payload: &[u8]) -> Option<u64> {
    number(after(payload, SEQ)?)
}

/// The `seq` of a delivered message, which the gateway adds behind the sender's text: only the end is read.
pub fn seq_at_end_of(payload: &[u8]) -> Option<u64> {
    let end = &payload[payload.len().saturating_sub(ADDED_BYTES_MAX)..];
    let at = end.windows(SEQ.len()).rposition(|bytes| bytes == SEQ)?;
    number(&end[at + SEQ.len()..])
}

fn number(digits: &[u8]) -> Option<u64> {
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// A bare message: the mark, padded to `payload_bytes`.
pub fn bare_message(payload_bytes: usize, mask: [u8; 4]) -> Template {
    Template::new(wire::TEXT, &bare_payload(payload_bytes), 0, mask)
}

/// The bytes of a bare message, its mark still zeroes.
pub fn bare_payload(payload_bytes: usize) -> Vec<u8> {
    let mut payload = vec![b'0'; stamp::BYTES];
    payload.extend((0..payload_bytes.saturating_sub(stamp::BYTES)).map(|at| b'a' + (at % 26) as u8));
    payload
}

/// An application's message to the gateway; `payload_bytes` counts the JSON value of `payload`. `to` is JSON, or empty.
pub fn envelope_text(session_id: &str, to: &str, payload_bytes: usize) -> String {
    let data: String = (0..payload_bytes.saturating_sub(2)).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    let to = if to.is_empty() { String::new() } else { format!("\"to\":{to},") };
    format!(
        "{{\"type\":\"load.message\",\"id\":\"{}\",\"session_id\":\"{session_id}\",{to}\"payload\":\"{data}\"}}",
        "0".repeat(stamp::BYTES)
    )
}

/// The frame of [`envelope_text`].
pub fn envelope_message(session_id: &str, to: &str, payload_bytes: usize, mask: [u8; 4]) -> Template {
    let text = envelope_text(session_id, to, payload_bytes);
    let stamp_at = text.len() - after(text.as_bytes(), ID).map_or(0, <[u8]>::len);
    Template::new(wire::TEXT, text.as_bytes(), stamp_at, mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { sender: 3, number: 5, intended_ns: 7 };

    fn id() -> String {
        String::from_utf8(STAMP.write().to_vec()).unwrap()
    }

    #[test]
    fn frames_of_the_gateway_are_told_apart_whatever_the_order_of_keys() {
        let id = id();
        let delivered = format!(
            "{{\"seq\":41,\"from\":\"a\",\"session_id\":\"s\",\"id\":\"{id}\",\"type\":\"load.message\",\"payload\":\"x\"}}"
        );
        assert_eq!(read_envelope(delivered.as_bytes()), Incoming::Message(STAMP));
        assert_eq!(seq_of(delivered.as_bytes()), Some(41));
        let ack = format!("{{\"type\":\"rw.ack\",\"id\":\"{id}\",\"session_id\":\"s\",\"payload\":{{\"seq\":41}}}}");
        assert_eq!(read_envelope(ack.as_bytes()), Incoming::Ack(STAMP));
        assert_eq!(read_envelope(b"{\"type\":\"rw.error\",\"id\":\"\"}"), Incoming::Error);
        assert_eq!(read_envelope(b"{\"type\":\"rw.goaway\",\"id\":\"g\"}"), Incoming::Control);
        assert_eq!(read_envelope(b"hello"), Incoming::Unknown);
        assert!(
            is_type(b"{\"type\":\"rw.caught_up\"}", b"rw.caught_up") && !is_type(b"{\"type\":\"rw.caught\"}", b"rw.caught_up")
        );
    }

    #[test]
    fn an_errors_code_is_read() {
        let error =
            b"{\"type\":\"rw.error\",\"id\":\"7\",\"session_id\":\"s\",\"payload\":{\"code\":\"limit.rate\",\"message\":\"m\"}}";
        assert_eq!((code_of(error), text_of(error, b"\"id\":\"")), (Some("limit.rate"), Some("7")));
        assert_eq!((code_of(b"{\"type\":\"rw.error\"}"), code_of(b"\"code\":\"cut")), (None, None));
    }

    #[test]
    fn a_messages_seq_is_found_at_its_end_whatever_it_carries() {
        let text = envelope_text("load.1", "", 4096);
        let added = |seq: u64| format!("{},\"seq\":{seq},\"from\":\"writer\",\"ts\":1764450000000}}", &text[..text.len() - 1]);
        assert_eq!(seq_at_end_of(added(7).as_bytes()), Some(7));
        assert_eq!(seq_at_end_of(added(u64::MAX).as_bytes()), Some(u64::MAX));
        assert_eq!(seq_at_end_of(b"{\"seq\":1,\"seq\":2}"), Some(2), "the sender's own comes first");
        assert_eq!((seq_at_end_of(text.as_bytes()), seq_at_end_of(b"\"seq\":"), seq_at_end_of(b"")), (None, None, None));
    }

    #[test]
    fn an_envelope_is_json_with_a_payload_of_the_size_asked_for() {
        let text = envelope_text("load.1", "\"room:r\"", 128);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["payload"].to_string().len(), 128);
        assert_eq!((value["to"].as_str(), value["id"].as_str().map(str::len)), (Some("room:r"), Some(36)));
        let mut template = envelope_message("load.1", "", 64, [1, 2, 3, 4]);
        let mut frame = template.stamped(STAMP).to_vec();
        let head = wire::parse_head(&frame).unwrap().unwrap();
        wire::apply_mask(&mut frame[head.head_bytes..], [1, 2, 3, 4]);
        assert_eq!(read_envelope(&frame[head.head_bytes..]), Incoming::Message(STAMP));
    }

    #[test]
    fn a_bare_message_has_its_size_and_its_mark_first() {
        assert_eq!(bare_payload(128).len(), 128);
        assert_eq!(read_bare(&bare_payload(36)), Incoming::Message(Stamp { sender: 0, number: 0, intended_ns: 0 }));
        assert_eq!(read_bare(b"{\"type\""), Incoming::Unknown);
    }

    #[test]
    fn a_bare_ack_is_told_from_a_message_and_is_as_long_as_the_gateways() {
        let ack = [BARE_ACK, &STAMP.write(), b"   "].concat();
        assert_eq!(read_bare(&ack), Incoming::Ack(STAMP));
        assert_eq!(read_bare(&ack[..BARE_ACK.len() + stamp::BYTES - 1]), Incoming::Unknown);
        assert_eq!(read_bare(&ack[BARE_ACK.len()..]), Incoming::Message(STAMP));
        let session = format!("load.{:x}.{}", 1_000_000_000_u64, 500);
        let gateways =
            format!("{{\"type\":\"rw.ack\",\"id\":\"{}\",\"session_id\":\"{session}\",\"payload\":{{\"seq\":10000}}}}", id());
        assert!(BARE_ACK_BYTES.abs_diff(gateways.len()) <= 8, "{} bytes: {gateways}", gateways.len());
    }
}
