//! The HTTP answers that end a connection before it becomes a WebSocket.

use serde::Serialize;
use std::fmt;

/// Client text quoted in a refusal is cut at this many characters.
const QUOTED_CHARS_MAX: usize = 128;

/// A refusal: the mistake, and how to correct it. Written as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRefusal {
    status: u16,
    detail: String,
    header: Option<(&'static str, &'static str)>,
    retry_after_s: Option<u32>,
    over_bound: bool,
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
}

impl HttpRefusal {
    /// A refusal with this status (one that [`HttpRefusal::title`] knows) and a detail for the client's author.
    #[must_use]
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), header: None, retry_after_s: None, over_bound: false }
    }

    /// 400: the request violates RFC 9112 or RFC 6455 section 4.1.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(400, detail)
    }

    /// The request head is over one of its bounds.
    #[must_use]
    pub fn over_bound(status: u16, detail: impl Into<String>) -> Self {
        Self { over_bound: true, ..Self::new(status, detail) }
    }

    /// 408: the head did not come in time.
    #[must_use]
    pub fn timed_out(head_ms_max: u64) -> Self {
        Self::new(408, format!("the request head was not complete {head_ms_max} ms after the connection was accepted"))
    }

    /// 429: this client has too many connections or handshakes already.
    #[must_use]
    pub fn too_many_requests(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(429, detail) }
    }

    /// 503: the gateway has no room.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(503, detail) }
    }

    /// The refusal with one more header.
    #[must_use]
    pub fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// Returns `true` if a bound of the request head is the reason.
    #[must_use]
    pub fn is_over_bound(&self) -> bool {
        self.over_bound
    }

    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The detail, safe to log: no control characters, no query.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status's name (RFC 9110 section 15), which is the title of a problem without a type of its own (RFC 9457 4.2.1).
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self.status {
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            414 => "URI Too Long",
            421 => "Misdirected Request",
            426 => "Upgrade Required",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Refused",
        }
    }

    /// Appends the whole response.
    pub fn write(&self, out: &mut Vec<u8>) {
        let problem = Problem { kind: "about:blank", title: self.title(), status: self.status, detail: &self.detail };
        let body = serde_json::to_vec(&problem).expect("strings and a number always serialize");
        // RFC 9110 7.8: an Upgrade header must be named in Connection.
        let connection = if self.header.is_some_and(|(name, _)| name == "Upgrade") { "close, Upgrade" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nConnection: {connection}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\n",
            self.status,
            self.title(),
            body.len()
        );
        if let Some((name, value)) = self.header {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(retry_after_s) = self.retry_after_s {
            head.push_str(&format!("Retry-After: {retry_after_s}\r\n"));
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&body);
    }
}

impl fmt::Display for HttpRefusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}", self.status, self.title(), self.detail)
    }
}

impl std::error::Error for HttpRefusal {}

/// A client's bytes as text without line breaks and control characters.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut text: String = bytes
        .iter()
        .take(QUOTED_CHARS_MAX)
        .map(|&byte| if (0x20..0x7f).contains(&byte) && byte != b'"' { char::from(byte) } else { '?' })
        .collect();
    if bytes.len() > QUOTED_CHARS_MAX {
        text.push('…');
    }
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_response() {
        let mut out = Vec::new();
        HttpRefusal::unavailable("no room \"here\"", 7).write(&mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/problem+json\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(head.ends_with("\r\nRetry-After: 7"));
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["detail"], "no room \"here\"");
        assert_eq!(problem["status"], 503);
        assert_eq!(problem["title"], "Service Unavailable");
    }

    #[test]
    fn quoted_text_is_short_and_printable() {
        assert_eq!(quoted(b"a\r\n\x1b[1m\"\xff"), "\"a???[1m??\"");
        assert!(quoted(&[b'a'; 1000]).chars().count() <= QUOTED_CHARS_MAX + 3);
    }
}
