//! The request head, stricter than RFC 9112 requires: whatever two parsers could read in two ways is refused.

use super::refusal::{HttpRefusal, quoted};
use crate::limits::{REQUEST_HEAD_BYTES_MAX, REQUEST_HEADERS_MAX, REQUEST_LINE_BYTES_MAX};

/// Reads until the head must be complete: a client that sends a byte at a time is refused.
pub const HEAD_READS_MAX: u32 = 64;

/// The result of a push of bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes were taken; the head is not complete.
    More,
    /// The head is complete. It ends after `consumed` of the pushed bytes; the bytes behind it are not the head's.
    Done { consumed: usize },
    /// The answer to send before closing the connection.
    Refused(HttpRefusal),
}

/// Gathers a request head from any pieces. Every byte is examined once.
#[derive(Debug, Default)]
pub struct HeadReader {
    head: Vec<u8>,
    previous: u8,
    line_bytes: usize,
    lines: usize,
    reads: u32,
}

impl HeadReader {
    #[must_use]
    pub const fn new() -> Self {
        Self { head: Vec::new(), previous: 0, line_bytes: 0, lines: 0, reads: 0 }
    }

    /// Takes the bytes of one read.
    pub fn push(&mut self, bytes: &[u8]) -> Progress {
        self.reads += 1;
        for (index, &byte) in bytes.iter().enumerate() {
            if self.head.len() + index >= REQUEST_HEAD_BYTES_MAX {
                return Progress::Refused(HttpRefusal::over_bound(
                    431,
                    format!("the request head is longer than {REQUEST_HEAD_BYTES_MAX} bytes"),
                ));
            }
            match self.scan(byte) {
                Ok(false) => {}
                Ok(true) => {
                    self.head.extend_from_slice(&bytes[..=index]);
                    return Progress::Done { consumed: index + 1 };
                }
                Err(refusal) => return Progress::Refused(refusal),
            }
        }
        if self.reads >= HEAD_READS_MAX {
            let detail = format!("the request head was not complete after {HEAD_READS_MAX} reads; send it in one piece");
            return Progress::Refused(HttpRefusal::over_bound(400, detail));
        }
        self.head.extend_from_slice(bytes);
        Progress::More
    }

    /// The head so far; complete after [`Progress::Done`].
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.head.capacity()
    }

    /// Examines a byte. Returns `true` at the last byte of the blank line.
    fn scan(&mut self, byte: u8) -> Result<bool, HttpRefusal> {
        let previous = std::mem::replace(&mut self.previous, byte);
        if (previous == b'\r') != (byte == b'\n') {
            return Err(HttpRefusal::bad_request("a line of the request head does not end with CR LF; both are needed"));
        }
        if byte == b'\n' {
            let blank = self.line_bytes == 0;
            if blank && self.lines == 0 {
                return Err(HttpRefusal::bad_request("the request begins with an empty line; it must begin with its method"));
            }
            self.lines += 1;
            self.line_bytes = 0;
            return Ok(blank);
        }
        if byte == b'\r' {
            return Ok(false);
        }
        if self.lines == 0 && self.line_bytes == 0 && !byte.is_ascii_uppercase() {
            let hint = if byte == 0x16 { "; this looks like TLS on a port that speaks plain HTTP" } else { "" };
            return Err(HttpRefusal::bad_request(format!("the request does not begin with an HTTP method{hint}")));
        }
        if byte < 0x20 && byte != b'\t' || byte == 0x7f {
            return Err(HttpRefusal::bad_request(format!("the request head holds the control character {byte:#04x}")));
        }
        if self.line_bytes == 0 && self.lines > 0 {
            if byte == b' ' || byte == b'\t' {
                return Err(HttpRefusal::bad_request(
                    "a header line begins with white space (obsolete line folding); write each header on one line",
                ));
            }
            if self.lines > REQUEST_HEADERS_MAX {
                return Err(HttpRefusal::over_bound(431, format!("the request has more than {REQUEST_HEADERS_MAX} headers")));
            }
        }
        self.line_bytes += 1;
        if self.lines == 0 && self.line_bytes > REQUEST_LINE_BYTES_MAX {
            return Err(HttpRefusal::over_bound(414, format!("the request line is longer than {REQUEST_LINE_BYTES_MAX} bytes")));
        }
        Ok(false)
    }
}

/// A complete head, parsed. Its texts are slices of the head's bytes.
#[derive(Debug)]
pub struct Request<'h> {
    method: &'h str,
    target: &'h str,
    headers: [httparse::Header<'h>; REQUEST_HEADERS_MAX],
    header_count: usize,
    http_1_0: bool,
}

impl<'h> Request<'h> {
    /// Parses the head that [`HeadReader`] gathered.
    ///
    /// # Errors
    /// 400 for anything that is not an HTTP/1.1 request head, 431 for too many headers.
    pub fn parse(head: &'h [u8]) -> Result<Self, HttpRefusal> {
        let request = Self::parse_any_version(head)?;
        request.refuse_http_1_0()?;
        Ok(request)
    }

    /// Parses the head that [`HeadReader`] gathered, of HTTP/1.0 too: probes are sent in it.
    ///
    /// # Errors
    /// As [`Request::parse`].
    pub fn parse_any_version(head: &'h [u8]) -> Result<Self, HttpRefusal> {
        let mut headers = [httparse::EMPTY_HEADER; REQUEST_HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        let status = parsed.parse(head).map_err(refused_by_parser)?;
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(HttpRefusal::bad_request("the request head is not complete"));
        };
        if status.is_partial() {
            return Err(HttpRefusal::bad_request("the request head is not complete"));
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HttpRefusal::bad_request("the request target holds characters that must be percent-encoded"));
        }
        let header_count = parsed.headers.len();
        Ok(Self { method, target, headers, header_count, http_1_0: version == 0 })
    }

    /// Refuses HTTP/1.0, which has no upgrade.
    ///
    /// # Errors
    /// 400.
    pub fn refuse_http_1_0(&self) -> Result<(), HttpRefusal> {
        if self.http_1_0 {
            return Err(HttpRefusal::bad_request("the request is HTTP/1.0; WebSocket needs HTTP/1.1 (RFC 6455 section 4.1)"));
        }
        Ok(())
    }

    /// Returns `true` for HTTP/1.0, which needs no `Host`.
    #[must_use]
    pub const fn is_http_1_0(&self) -> bool {
        self.http_1_0
    }

    #[must_use]
    pub fn method(&self) -> &'h str {
        self.method
    }

    /// The target as sent. It may hold anything that a client put into its query: never log it whole.
    #[must_use]
    pub fn target(&self) -> &'h str {
        self.target
    }

    /// The values of a header, in the order sent; the name's case is ignored.
    pub fn values<'r>(&'r self, name: &'r str) -> impl DoubleEndedIterator<Item = &'h [u8]> + 'r {
        self.headers[..self.header_count]
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of a header that may occur once; `None` if it was not sent.
    ///
    /// # Errors
    /// 400 if it was sent twice.
    pub fn single(&self, name: &'static str) -> Result<Option<&'h [u8]>, HttpRefusal> {
        let mut values = self.values(name);
        let first = values.next();
        if values.next().is_some() {
            return Err(HttpRefusal::bad_request(format!("the header {name} was sent more than once; send it once")));
        }
        Ok(first)
    }

    /// Returns `true` if a comma-separated header contains a token, case ignored (RFC 9110 section 5.6.1).
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name).flat_map(elements).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The values of a list header as text, bounded so that their parsing is bounded too.
    ///
    /// # Errors
    /// 400 above `bytes_max` in all, or for bytes that are not ASCII.
    pub fn list(&self, name: &'static str, bytes_max: usize) -> Result<Vec<&'h str>, HttpRefusal> {
        let mut total_bytes = 0;
        self.values(name)
            .map(|value| {
                total_bytes += value.len();
                if total_bytes > bytes_max {
                    return Err(HttpRefusal::bad_request(format!("the header {name} is longer than {bytes_max} bytes")));
                }
                let text = std::str::from_utf8(value).ok().filter(|text| text.is_ascii());
                text.ok_or_else(|| HttpRefusal::bad_request(format!("the header {name} is not ASCII")))
            })
            .collect()
    }

    /// Refuses a request that announces a body, in any form: what follows an upgrade is WebSocket.
    ///
    /// # Errors
    /// 400.
    pub fn refuse_body(&self) -> Result<(), HttpRefusal> {
        if self.values("transfer-encoding").next().is_some() {
            return Err(HttpRefusal::bad_request("Transfer-Encoding was sent; an upgrade request has no body"));
        }
        match self.single("Content-Length")? {
            None | Some(b"0") => Ok(()),
            Some(value) => Err(HttpRefusal::bad_request(format!(
                "Content-Length is {}; an upgrade request has no body (0, or no such header)",
                quoted(value)
            ))),
        }
    }
}

/// The elements of a list header's line, from either end. Empty ones are ignored (RFC 9110 section 5.6.1.2).
pub(super) fn elements(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Returns `true` for a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn refused_by_parser(error: httparse::Error) -> HttpRefusal {
    HttpRefusal::bad_request(match error {
        httparse::Error::HeaderName => {
            "a header name is malformed: letters, digits and the signs of RFC 9110 section 5.6.2, then a colon without a space before it"
        }
        httparse::Error::HeaderValue => "a header value holds a control character",
        httparse::Error::NewLine => "a line of the request head does not end with CR LF",
        httparse::Error::Token => "the request line is malformed; it must be: GET /v1/ws HTTP/1.1",
        httparse::Error::Version => "the request is not HTTP/1.1, the only version spoken here",
        httparse::Error::TooManyHeaders => {
            return HttpRefusal::over_bound(431, format!("the request has more than {REQUEST_HEADERS_MAX} headers"));
        }
        httparse::Error::Status => "the request line is malformed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &[u8] = b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n";

    /// The verdict over the whole stream: the head's length, or the status of the refusal.
    fn verdict<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Option<Result<usize, u16>> {
        let mut reader = HeadReader::new();
        let mut before = 0;
        for piece in pieces {
            match reader.push(piece) {
                Progress::More => before += piece.len(),
                Progress::Done { consumed } => {
                    assert_eq!(reader.head().len(), before + consumed);
                    return Some(Request::parse(reader.head()).map(|_| before + consumed).map_err(|refusal| refusal.status()));
                }
                Progress::Refused(refusal) => return Some(Err(refusal.status())),
            }
        }
        None
    }

    #[test]
    fn a_head_ends_at_its_blank_line() {
        let mut bytes = GOOD.to_vec();
        bytes.extend_from_slice(b"\x81\x80next");
        assert_eq!(verdict([&bytes[..]]), Some(Ok(GOOD.len())));
        assert_eq!(verdict([&GOOD[..GOOD.len() - 1]]), None);
    }

    #[test]
    fn h1_h2_limits() {
        let headers = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count)).into_bytes();
        assert!(matches!(verdict([&headers(100)[..]]), Some(Ok(_))));
        assert_eq!(verdict([&headers(101)[..]]), Some(Err(431)));
        assert_eq!(verdict([&headers(2000)[..]]), Some(Err(431)));
        let one_header = |bytes: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(bytes)).into_bytes();
        let fits = REQUEST_HEAD_BYTES_MAX - one_header(0).len();
        assert!(matches!(verdict([&one_header(fits)[..]]), Some(Ok(REQUEST_HEAD_BYTES_MAX))));
        assert_eq!(verdict([&one_header(fits + 1)[..]]), Some(Err(431)));
        assert_eq!(verdict(one_header(10 << 20).chunks(1000)), Some(Err(431)));
        let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(bytes)).into_bytes();
        let fits = REQUEST_LINE_BYTES_MAX - "GET / HTTP/1.1".len();
        assert!(matches!(verdict([&line(fits)[..]]), Some(Ok(_))));
        assert_eq!(verdict([&line(fits + 1)[..]]), Some(Err(414)));
        assert_eq!(verdict([&vec![b'A'; 9000][..]]), Some(Err(414)), "before the line ends");
    }

    #[test]
    fn h2_a_head_in_too_many_reads_is_refused() {
        let bytes = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(100)).into_bytes();
        assert_eq!(verdict(bytes.chunks(1)), Some(Err(400)));
        assert!(matches!(verdict(bytes.chunks(bytes.len().div_ceil(64))), Some(Ok(_))));
    }

    #[test]
    fn h13_what_two_parsers_read_in_two_ways_is_refused() {
        let heads: [&[u8]; 16] = [
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\tfolded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        ];
        for head in heads {
            assert_eq!(verdict([head]), Some(Err(400)), "{}", head.escape_ascii());
            assert_eq!(verdict(head.chunks(1)), Some(Err(400)), "{} bytewise", head.escape_ascii());
        }
    }

    #[test]
    fn h13_announced_bodies_are_refused() {
        let bad = [
            "Content-Length: 5",
            "Content-Length: 0\r\nContent-Length: 0",
            "Content-Length: 0\r\nContent-Length: 5",
            "Content-Length: +0",
            "Content-Length: 0x5",
            "Content-Length: 00",
            "Content-Length: 0, 0",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: ",
        ];
        for header in bad {
            let head = format!("GET / HTTP/1.1\r\n{header}\r\n\r\n");
            let request = Request::parse(head.as_bytes()).unwrap();
            assert_eq!(request.refuse_body().map_err(|refusal| refusal.status()), Err(400), "{header}");
        }
        let request = Request::parse(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(request.refuse_body(), Ok(()));
    }

    #[test]
    fn h21_other_protocols_are_refused_at_once() {
        assert_eq!(verdict([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]]), Some(Err(400)));
        assert_eq!(verdict([&b"\x16\x03\x01"[..]]), Some(Err(400)), "TLS on a plain port");
        assert_eq!(verdict([&b"GET / HTTP/1.0\r\n\r\n"[..]]), Some(Err(400)));
        assert_eq!(verdict([&b"GET / HTTP/1.9\r\n\r\n"[..]]), Some(Err(400)));
        assert_eq!(verdict([&b"GET /\r\n\r\n"[..]]), Some(Err(400)), "HTTP/0.9");
        assert_eq!(verdict([&b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n\r\n"[..]]), Some(Err(400)), "H23");
    }

    fn any_head() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"GET / HTTP/1.1"[..],
            b"\r\n",
            b"\r\n",
            b"\r\n",
            b"Host: a",
            b"X: y",
            b" ",
            b"\t",
            b":",
            b"\n",
            b"\r",
            b"\0",
            b"a",
            b"\xff",
            b"\r\n\r\n",
        ]);
        prop_oneof![
            prop::collection::vec(piece, 0..16).prop_map(|pieces| [&b"GET / HTTP/1.1\r\n"[..], &pieces.concat()].concat()),
            prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_verdict(bytes in any_head(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10)) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(verdict(pieces), verdict([&bytes[..]]));
        }
    }
}
