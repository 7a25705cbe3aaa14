//! The text that the gateway adds to a forwarded envelope (protocol.md section 2), without touching the sender's bytes.

use super::envelope::{Envelope, To};
use super::write::{inside, string};
use crate::limits::ENVELOPE_ADDED_BYTES_MAX;

/// A fixed buffer for [`added`]: on the stack, so that the frame's length is known before the one copy into the log.
#[derive(Clone)]
pub struct AddedBuf {
    bytes: [u8; ENVELOPE_ADDED_BYTES_MAX],
    len: usize,
}

impl Default for AddedBuf {
    fn default() -> Self {
        Self { bytes: [0; ENVELOPE_ADDED_BYTES_MAX], len: 0 }
    }
}

impl AddedBuf {
    /// The bytes written last.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }
}

/// Writes `,"seq":..,"from":"..","ts":..,"traceparent":".."}` into `scratch`, replacing its content: the end of the envelope
/// whose beginning is [`super::Envelope::object`]. `seq` is absent on messages that are not logged; `traceparent` is passed only
/// if the sender gave none. `from` and `traceparent` are written unescaped: their charsets ([`super::is_client_id`],
/// [`super::Traceparent`]) have nothing to escape.
///
/// # Panics
/// If `from` is longer than a client id may be, which no verified grant yields.
#[inline]
pub fn added(scratch: &mut AddedBuf, seq: Option<u64>, from: &str, ts_ms: u64, traceparent: Option<&str>) {
    let mut digits = itoa::Buffer::new();
    scratch.len = 0;
    if let Some(seq) = seq {
        scratch.push(b",\"seq\":");
        scratch.push(digits.format(seq).as_bytes());
    }
    scratch.push(b",\"from\":\"");
    scratch.push(from.as_bytes());
    scratch.push(b"\",\"ts\":");
    scratch.push(digits.format(ts_ms).as_bytes());
    if let Some(traceparent) = traceparent {
        scratch.push(b",\"traceparent\":\"");
        scratch.push(traceparent.as_bytes());
        scratch.push(b"\"");
    }
    scratch.push(b"}");
}

/// Writes an envelope from its fields, with another session id, up to but excluding the final `}`: for a message that goes into
/// another session.
pub fn rewritten(envelope: &Envelope<'_>, session_id: &str, out: &mut Vec<u8>) {
    let mut member = |key: &str, write: &dyn Fn(&mut Vec<u8>)| {
        out.extend_from_slice(if out.is_empty() { b"{" } else { b"," });
        string(out, key);
        out.push(b':');
        write(out);
    };
    member("type", &|out| string(out, envelope.kind));
    member("id", &|out| string(out, envelope.id));
    member("session_id", &|out| string(out, session_id));
    member("payload", &|out| out.extend_from_slice(envelope.payload));
    if let To::One(address) = envelope.to {
        let (kind, name) = address.parts();
        member("to", &|out| {
            out.push(b'"');
            for part in [kind, ":", name] {
                inside(out, part);
            }
            out.push(b'"');
        });
    }
    for (key, value) in [("reply_to", envelope.reply_to), ("traceparent", envelope.traceparent)] {
        if let Some(value) = value {
            member(key, &|out| string(out, value));
        }
    }
    if let Some(meta) = envelope.meta {
        member("meta", &|out| out.extend_from_slice(meta));
    }
    if envelope.ephemeral {
        member("ephemeral", &|out| out.extend_from_slice(b"true"));
    }
}

/// A traceparent of the gateway's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Traceparent([u8; 55]);

impl Traceparent {
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of ASCII hex and dashes only")
    }
}

impl std::fmt::Debug for Traceparent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A version 00 traceparent of random ids (W3C Trace Context 3.2). All-zero ids are invalid there, so their last bit is set. The
/// flags are 00: the gateway records no span, and asks nobody to.
#[must_use]
pub fn make_traceparent(mut trace_id: [u8; 16], mut span_id: [u8; 8]) -> Traceparent {
    if trace_id == [0; 16] {
        trace_id[15] = 1;
    }
    if span_id == [0; 8] {
        span_id[7] = 1;
    }
    let mut text = *b"00-................................-................-00";
    hex(&trace_id, &mut text[3..35]);
    hex(&span_id, &mut text[36..52]);
    Traceparent(text)
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CLIENT_TAIL_BYTES_MAX, SUBJECT_BYTES_MAX};
    use crate::protocol::{Parser, is_traceparent};

    #[test]
    fn the_longest_parts_fit() {
        let from = "f".repeat(SUBJECT_BYTES_MAX + 1 + CLIENT_TAIL_BYTES_MAX);
        let traceparent = make_traceparent([255; 16], [255; 8]);
        let mut scratch = AddedBuf::default();
        added(&mut scratch, Some(u64::MAX), &from, u64::MAX, Some(traceparent.as_str()));
        assert!(scratch.as_bytes().len() <= ENVELOPE_ADDED_BYTES_MAX);
    }

    #[test]
    fn object_and_added_are_one_json_object() {
        let text = br#"  { "type":"chat", "id":"1","session_id":"s","payload":{"a":[1,2]}  }  "#;
        let mut parser = Parser::default();
        let envelope = parser.parse(text).unwrap();
        let mut scratch = AddedBuf::default();
        for (seq, traceparent) in [(Some(7), None), (None, Some(make_traceparent([1; 16], [2; 8])))] {
            added(&mut scratch, seq, "ana/tab-7", 1_790_000_000_000, traceparent.as_ref().map(Traceparent::as_str));
            let whole = [envelope.object, scratch.as_bytes()].concat();
            let value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
            assert_eq!(value["seq"].as_u64(), seq);
            assert_eq!(value["from"], "ana/tab-7");
            assert_eq!(value["ts"], 1_790_000_000_000_u64);
            assert_eq!(value["payload"]["a"][1], 2);
            assert_eq!(value["traceparent"].as_str(), traceparent.as_ref().map(Traceparent::as_str));
        }
    }

    #[test]
    fn made_traceparents_are_valid() {
        for (trace_id, span_id) in [([0; 16], [0; 8]), ([0xab; 16], [0x0f; 8])] {
            assert!(is_traceparent(make_traceparent(trace_id, span_id).as_str()));
        }
        assert_eq!(make_traceparent([0xab; 16], [0x0f; 8]).as_str(), "00-abababababababababababababababab-0f0f0f0f0f0f0f0f-00");
    }
}
