//! The opening handshake (RFC 6455 section 4.2): a request head to an upgrade, or to the refusal that says what would be right.

use super::http::{Request, elements, is_token};
use super::origin::{OriginPolicy, split_authority};
use super::refusal::{HttpRefusal, quoted};
use crate::limits::NAME_BYTES_MAX;
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The subprotocol (protocol.md section 1).
pub const SUBPROTOCOL: &str = "ringway.v1";
/// Bytes of `Sec-WebSocket-Protocol`, and of `Sec-WebSocket-Extensions`, in all their lines.
pub const LIST_HEADER_BYTES_MAX: usize = 1024;
/// The GUID of `Sec-WebSocket-Accept` (RFC 6455 section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a SHA-1 digest in base64.
const ACCEPT_BYTES: usize = 28;

/// The WebSocket endpoints of the public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/ws`
    Ringway,
    /// `/v1/echo`
    Echo,
}

/// The rules by which an upgrade is judged.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub origins: OriginPolicy,
    /// `true` if `/v1/echo` exists.
    pub echo: bool,
}

/// A request that may become a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'h> {
    pub endpoint: Endpoint,
    /// `Some` if the client offered the subprotocol: only then it is in the answer (RFC 6455 4.2.2).
    pub subprotocol: Option<&'static str>,
    /// The lines of `Sec-WebSocket-Extensions`, for the negotiation of extensions.
    pub extensions: Vec<&'h str>,
    /// `?session_id=`, a valid session name.
    pub session_id: Option<String>,
    accept: [u8; ACCEPT_BYTES],
}

/// Judges a request.
///
/// # Errors
/// The answer to send before closing.
pub fn upgrade<'h>(request: &Request<'h>, policy: &Policy) -> Result<Upgrade<'h>, HttpRefusal> {
    if request.method() != "GET" {
        let detail = format!("the method is {}; a WebSocket is opened with GET", quoted(request.method().as_bytes()));
        return Err(HttpRefusal::new(405, detail).with_header("Allow", "GET"));
    }
    request.refuse_body()?;
    let (host, path, query) = host_path_query(request)?;
    let endpoint = match path {
        "/v1/ws" => Endpoint::Ringway,
        "/v1/echo" if policy.echo => Endpoint::Echo,
        "/v1/echo" => {
            return Err(HttpRefusal::new(404, "/v1/echo is off; diagnostics.echo turns it on"));
        }
        _ => return Err(HttpRefusal::new(404, "there is nothing at this path; the gateway is at /v1/ws")),
    };
    policy.origins.check(request.single("Origin")?, host)?;
    if !request.has_token("Upgrade", "websocket") || !request.has_token("Connection", "upgrade") {
        let detail = "this is a WebSocket endpoint; send \"Upgrade: websocket\" and \"Connection: Upgrade\"";
        return Err(HttpRefusal::new(426, detail).with_header("Upgrade", "websocket"));
    }
    if request.single("Sec-WebSocket-Version")? != Some(b"13") {
        let detail = "Sec-WebSocket-Version is missing or not 13, the version of RFC 6455";
        return Err(HttpRefusal::new(426, detail).with_header("Sec-WebSocket-Version", "13"));
    }
    let accept = accept(request)?;
    let subprotocol = subprotocol(&request.list("Sec-WebSocket-Protocol", LIST_HEADER_BYTES_MAX)?)?;
    let extensions = request.list("Sec-WebSocket-Extensions", LIST_HEADER_BYTES_MAX)?;
    let session_id = session_id(query)?;
    Ok(Upgrade { endpoint, subprotocol, extensions, session_id, accept })
}

impl Upgrade<'_> {
    /// Appends the 101. `extensions`: the negotiated ones, as the header's value.
    pub fn write_accept(&self, extensions: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(&self.accept);
        for (name, value) in [("Sec-WebSocket-Protocol", self.subprotocol), ("Sec-WebSocket-Extensions", extensions)] {
            if let Some(value) = value {
                for part in ["\r\n", name, ": ", value] {
                    out.extend_from_slice(part.as_bytes());
                }
            }
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The host, path and query of the request (RFC 9112 section 3.2). `Host` must occur exactly once and be well formed. A target in
/// absolute form names the host itself; then the value of `Host` is ignored.
fn host_path_query<'h>(request: &Request<'h>) -> Result<(&'h str, &'h str, &'h str), HttpRefusal> {
    let Some(bytes) = request.single("Host")? else {
        return Err(HttpRefusal::bad_request("the header Host is missing"));
    };
    let header = std::str::from_utf8(bytes).ok().filter(|host| split_authority(host).is_some());
    let header = header.ok_or_else(|| {
        HttpRefusal::bad_request(format!("Host is {}; it must be a host name or address, and a port", quoted(bytes)))
    })?;
    let target = request.target();
    let (host, from_path) = if target.starts_with('/') {
        (header, target)
    } else {
        let of_ours = |scheme: &str| ["http", "https", "ws", "wss"].iter().any(|ours| scheme.eq_ignore_ascii_case(ours));
        let after = target.split_once("://").filter(|(scheme, _)| of_ours(scheme)).map_or("", |(_, after)| after);
        let (authority, from_path) = after.split_at(after.find(['/', '?']).unwrap_or(after.len()));
        if split_authority(authority).is_none() {
            let detail = "the request target is neither a path nor a URL with a host name or address, and a port";
            return Err(HttpRefusal::bad_request(detail));
        }
        (authority, from_path)
    };
    let (path, query) = from_path.split_once('?').unwrap_or((from_path, ""));
    Ok((host, path, query))
}

/// The value of `Sec-WebSocket-Accept` (RFC 6455 4.2.2, step 5.4).
fn accept(request: &Request<'_>) -> Result<[u8; ACCEPT_BYTES], HttpRefusal> {
    let key = request.single("Sec-WebSocket-Key")?.unwrap_or_default();
    if key.len() != 24 || !STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) {
        return Err(HttpRefusal::bad_request("Sec-WebSocket-Key is missing or not the base64 of 16 bytes"));
    }
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(ACCEPT_GUID);
    let mut accept = [0; ACCEPT_BYTES];
    let written = STANDARD.encode_slice(sha1.finish(), &mut accept).expect("20 bytes are 28 in base64");
    assert_eq!(written, ACCEPT_BYTES, "20 bytes are 28 in base64");
    Ok(accept)
}

fn subprotocol(lines: &[&str]) -> Result<Option<&'static str>, HttpRefusal> {
    let (mut offers, mut offers_ours) = (false, false);
    for name in lines.iter().flat_map(|line| elements(line.as_bytes())) {
        if !is_token(name) {
            let detail =
                format!("Sec-WebSocket-Protocol holds {}, which is no name of a subprotocol (RFC 6455 4.1)", quoted(name));
            return Err(HttpRefusal::bad_request(detail));
        }
        offers = true;
        offers_ours |= name == SUBPROTOCOL.as_bytes();
    }
    if offers && !offers_ours {
        let detail =
            format!("Sec-WebSocket-Protocol offers nothing that is spoken here; offer {SUBPROTOCOL}, or send no such header");
        return Err(HttpRefusal::bad_request(detail));
    }
    Ok(offers_ours.then_some(SUBPROTOCOL))
}

/// `session_id` of the query, percent-decoded (RFC 3986 section 2.1).
fn session_id(query: &str) -> Result<Option<String>, HttpRefusal> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| decoded(key).as_deref() == Some("session_id")).map(|(_, value)| value);
    let Some(encoded) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HttpRefusal::bad_request("the query names session_id more than once"));
    }
    // The value is not quoted: a query is never put where it could be logged.
    let refused = || {
        let detail = format!("the query's session_id is no session's name: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 _ . : -");
        HttpRefusal::bad_request(detail)
    };
    let name = decoded(encoded).filter(|name| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-'))
    });
    name.map(Some).ok_or_else(refused)
}

/// The text percent-decoded; `None` if it is no encoding of ASCII.
fn decoded(encoded: &str) -> Option<String> {
    let mut bytes = encoded.bytes();
    let mut text = String::new();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
            u8::try_from(digit()? << 4 | digit()?).ok()?
        } else {
            byte
        };
        byte.is_ascii().then(|| text.push(char::from(byte)))?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::{HeadReader, Progress};

    const GOOD: [(&str, &str); 5] = [
        ("Host", "gateway.example"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    /// The good request with headers replaced (`Some`), left out (`None`) or added.
    fn head(line: &str, changes: &[(&str, Option<&str>)]) -> Vec<u8> {
        let mut text = format!("{line}\r\n");
        for (name, value) in GOOD {
            if !changes.iter().any(|(changed, _)| *changed == name) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        for (name, value) in changes {
            if let Some(value) = value {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn policy() -> Policy {
        Policy { origins: OriginPolicy::new(vec!["https://app.example".to_owned()], false), echo: true }
    }

    fn status_of(head: &[u8]) -> u16 {
        let mut reader = HeadReader::new();
        assert_eq!(reader.push(head), Progress::Done { consumed: head.len() });
        match Request::parse(reader.head()).and_then(|request| upgrade(&request, &policy()).map(|_| ())) {
            Ok(()) => 101,
            Err(refusal) => refusal.status(),
        }
    }

    fn status(line: &str, changes: &[(&str, Option<&str>)]) -> u16 {
        status_of(&head(line, changes))
    }

    fn with(changes: &[(&str, Option<&str>)]) -> u16 {
        status("GET /v1/ws HTTP/1.1", changes)
    }

    #[test]
    fn the_rfcs_own_example_is_accepted() {
        let head = head("GET /v1/ws?session_id=s%2D42&x=1 HTTP/1.1", &[("Sec-WebSocket-Protocol", Some("chat, ringway.v1"))]);
        let request = Request::parse(&head).unwrap();
        let upgrade = upgrade(&request, &policy()).unwrap();
        assert_eq!((upgrade.endpoint, upgrade.session_id.as_deref()), (Endpoint::Ringway, Some("s-42")));
        let mut out = Vec::new();
        upgrade.write_accept(Some("permessage-deflate"), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: ringway.v1\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        );
    }

    #[test]
    fn what_browsers_and_proxies_vary_is_accepted() {
        assert_eq!(with(&[]), 101);
        assert_eq!(with(&[("Upgrade", Some("WebSocket"))]), 101);
        assert_eq!(with(&[("Connection", Some("keep-alive, upgrade"))]), 101);
        assert_eq!(with(&[("Upgrade", Some("foo, websocket")), ("Connection", None), ("connection", Some("UPGRADE"))]), 101);
        assert_eq!(with(&[("Host", Some("gateway.example:8080"))]), 101);
        assert_eq!(with(&[("Host", Some("[::1]:8080"))]), 101);
        assert_eq!(with(&[("Origin", Some("https://app.example"))]), 101);
        assert_eq!(with(&[("Host", Some("gateway.example:"))]), 101, "a port may be empty (RFC 3986 3.2.3)");
        assert_eq!(with(&[("Upgrade", Some(", websocket,")), ("Connection", Some(",,Upgrade , "))]), 101, "empty elements");
        assert_eq!(status("GET /v1/echo HTTP/1.1", &[]), 101);
    }

    #[test]
    fn wrong_methods_paths_and_hosts() {
        assert_eq!(status("POST /v1/ws HTTP/1.1", &[]), 405);
        assert_eq!(status("CONNECT gateway.example:443 HTTP/1.1", &[]), 405);
        for path in ["/", "/v1/ws/", "/v1/WS", "/v1/ws2", "//v1/ws", "/v1/%77s", "/v1/../v1/ws"] {
            assert_eq!(status(&format!("GET {path} HTTP/1.1"), &[]), 404, "{path}");
        }
        assert_eq!(status("GET * HTTP/1.1", &[]), 400);
        for host in [None, Some(""), Some("a b"), Some("a/b"), Some("user@a"), Some("a:port"), Some("[::1"), Some("a, b")] {
            assert_eq!(with(&[("Host", host)]), 400, "{host:?}");
        }
        assert_eq!(with(&[("host", Some("gateway.example"))]), 400, "two Host headers");
        assert_eq!(with(&[("Content-Length", Some("4"))]), 400);
        let head = head("GET /v1/echo HTTP/1.1", &[]);
        let refusal = upgrade(&Request::parse(&head).unwrap(), &Policy::default()).unwrap_err();
        assert_eq!(refusal.status(), 404);
        assert!(refusal.detail().contains("diagnostics.echo"));
    }

    /// RFC 9112 section 3.2.2: the target names the host, in a scheme of any case (RFC 3986 3.1).
    #[test]
    fn a_target_in_absolute_form_goes_before_host() {
        for target in [
            "http://gateway.example/v1/ws",
            "WS://a/v1/ws",
            "Wss://a:1/v1/ws?session_id=s",
            "HTTPS://[::1]:8443/v1/ws",
            "http://other.example:/v1/ws",
        ] {
            assert_eq!(status(&format!("GET {target} HTTP/1.1"), &[]), 101, "{target}");
        }
        for target in [
            "ftp://a/v1/ws",
            "ws:///v1/ws",
            "ws://user@a/v1/ws",
            "ws://a:x/v1/ws",
            "ws://a b/v1/ws",
            "a/v1/ws",
            "ws:/v1/ws",
            "a:1",
        ] {
            assert_eq!(status(&format!("GET {target} HTTP/1.1"), &[]), 400, "{target}");
        }
        assert_eq!(status("GET ws://a HTTP/1.1", &[]), 404);
        assert_eq!(status("GET ws://a?session_id=/v1/ws HTTP/1.1", &[]), 404);
        assert_eq!(status("GET ws://a/v1/ws HTTP/1.1", &[("Host", None)]), 400, "RFC 9112 3.2 asks for it all the same");
        assert_eq!(status("GET ws://a/v1/ws HTTP/1.1", &[("Host", Some("a b"))]), 400);
        let own_host = |line: &str, origin: &str| {
            let head = head(line, &[("Origin", Some(origin))]);
            upgrade(&Request::parse(&head).unwrap(), &Policy::default()).map(|_| ()).map_err(|refusal| refusal.status())
        };
        assert_eq!(own_host("GET ws://a.example/v1/ws HTTP/1.1", "https://a.example"), Ok(()));
        assert_eq!(own_host("GET ws://a.example/v1/ws HTTP/1.1", "https://gateway.example"), Err(403));
    }

    #[test]
    fn h7_foreign_origins() {
        for origin in
            ["https://evil.example", "null", "https://app.example.evil.com", "https://app.example:444", "https://APP.example"]
        {
            assert_eq!(with(&[("Origin", Some(origin))]), 403, "{origin}");
        }
        assert_eq!(with(&[("Origin", Some("https://app.example")), ("origin", Some("https://evil.example"))]), 400);
    }

    #[test]
    fn h10_versions() {
        for version in [None, Some("12"), Some("8"), Some("013"), Some("13, 8"), Some("")] {
            assert_eq!(with(&[("Sec-WebSocket-Version", version)]), 426, "{version:?}");
        }
        let head = head("GET /v1/ws HTTP/1.1", &[("Sec-WebSocket-Version", Some("12"))]);
        let mut out = Vec::new();
        upgrade(&Request::parse(&head).unwrap(), &policy()).unwrap_err().write(&mut out);
        let answer = String::from_utf8(out).unwrap();
        assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n") && answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(with(&[("Upgrade", None)]), 426);
        assert_eq!(with(&[("Connection", Some("keep-alive"))]), 426);
    }

    #[test]
    fn h11_a_second_request_stays_outside_the_head() {
        let first = head("GET /nothing HTTP/1.1", &[]);
        let mut reader = HeadReader::new();
        let both = [&first[..], b"GET /v1/ws HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(reader.push(&both), Progress::Done { consumed: first.len() });
        assert_eq!(status_of(&first), 404);
    }

    #[test]
    fn h15_keys() {
        let bad = [
            None,
            Some(""),
            Some("AAAAAAAAAAAAAAAAAAAA"),
            Some("AAAAAAAAAAAAAAAAAAAAAAA="),
            Some("dGhlIHNhbXBsZSBub25jZQ"),
            Some("dGhlIHNhbXBsZSBub25jZQ=\t="),
            Some("!!!!!!!!!!!!!!!!!!!!!!=="),
            Some("AAAAAAAAAAAAAAAAAAAAAAAA"),
        ];
        for key in bad {
            assert_eq!(with(&[("Sec-WebSocket-Key", key)]), 400, "{key:?}");
        }
        assert_eq!(with(&[("sec-websocket-key", Some(GOOD[4].1))]), 400, "two keys");
    }

    #[test]
    fn h16_long_extension_headers() {
        let many = "; a".repeat(340);
        assert_eq!(with(&[("Sec-WebSocket-Extensions", Some(&format!("x{many}")))]), 101);
        assert_eq!(with(&[("Sec-WebSocket-Extensions", Some(&format!("x{many}{many}")))]), 400);
        assert_eq!(with(&[("Sec-WebSocket-Extensions", Some("constructor"))]), 101, "not ours to know");
    }

    #[test]
    fn h17_subprotocols() {
        assert_eq!(with(&[("Sec-WebSocket-Protocol", Some("ringway.v1"))]), 101);
        assert_eq!(with(&[("Sec-WebSocket-Protocol", Some("chat")), ("sec-websocket-protocol", Some("ringway.v1"))]), 101);
        assert_eq!(with(&[("Sec-WebSocket-Protocol", Some(",chat,, ringway.v1 ,"))]), 101);
        for protocol in
            ["ringway.v2", "chat", "RINGWAY.V1", ",chat", "ringway.v1 x", "ringway.v1, a b", "a/b, ringway.v1", "\"ringway.v1\""]
        {
            assert_eq!(with(&[("Sec-WebSocket-Protocol", Some(protocol))]), 400, "{protocol}");
        }
        // React Native and older Deno send such a header for a client that offers nothing.
        for nothing in ["", " ", ",", " , ,", "\t"] {
            let head = head("GET /v1/ws HTTP/1.1", &[("Sec-WebSocket-Protocol", Some(nothing))]);
            assert_eq!(upgrade(&Request::parse(&head).unwrap(), &policy()).unwrap().subprotocol, None, "{nothing:?}");
        }
        let spaces = format!("b{}x", " ".repeat(1100));
        assert_eq!(with(&[("Sec-WebSocket-Protocol", Some(&spaces))]), 400);
        let request = head("GET /v1/ws HTTP/1.1", &[]);
        assert_eq!(upgrade(&Request::parse(&request).unwrap(), &policy()).unwrap().subprotocol, None);
    }

    #[test]
    fn h19_the_querys_session_id() {
        let session = |query: &str| {
            let head = head(&format!("GET /v1/ws?{query} HTTP/1.1"), &[]);
            let request = Request::parse(&head).unwrap();
            upgrade(&request, &policy()).map(|upgrade| upgrade.session_id).map_err(|refusal| {
                assert!(!refusal.to_string().contains("secret"), "a query is never quoted");
                refusal.status()
            })
        };
        assert_eq!(session(""), Ok(None));
        assert_eq!(session("a=b&session_idx=1"), Ok(None));
        assert_eq!(session("session_id=channel%3anews.A_1-2"), Ok(Some("channel:news.A_1-2".to_owned())));
        assert_eq!(session(&format!("session_id={}", "a".repeat(128))).unwrap().unwrap().len(), 128);
        assert_eq!(session("x=%zz&%73ession%5Fid=s"), Ok(Some("s".to_owned())), "a load balancer reads it so too");
        let long = format!("session_id={}", "a".repeat(129));
        for query in [
            "session_id",
            "session_id=",
            "session_id=a=b",
            "session_id=secret%",
            "session_id=%4",
            "session_id=%zz",
            "session_id=a+b",
            "session_id=%00",
            "session_id=%ff",
            &long,
        ] {
            assert_eq!(session(query), Err(400), "{query}");
        }
        assert_eq!(session("session_id=a&session_id=a"), Err(400));
        assert_eq!(session("session_id=a&session%5fid=b"), Err(400));
    }
}
