//! A single request to the admin listener of a running gateway.

use super::CliError;
use crate::control::escape;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A status and a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// The address of a listener.
#[derive(Debug, PartialEq, Eq)]
enum Place<'u> {
    /// The `host:port` of an `http://host:port` URL.
    Authority(&'u str),
    /// A Unix socket: `unix:PATH`, or a path with a `/` in it.
    Socket(&'u Path),
}

fn place(url: &str) -> Result<Place<'_>, CliError> {
    let path = url.strip_prefix("unix:").or_else(|| (url.contains('/') && !url.contains("://")).then_some(url));
    match path {
        Some(path) if !path.is_empty() => Ok(Place::Socket(Path::new(path))),
        _ => authority(url).map(Place::Authority),
    }
}

fn authority(url: &str) -> Result<&str, CliError> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let rest = scheme.eq_ignore_ascii_case("http").then(|| rest.strip_suffix('/').unwrap_or(rest));
    let fits = |rest: &&str| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'@' && byte != b'?')
    };
    rest.filter(fits).ok_or_else(|| {
        CliError(format!(
            "{url:?} is no URL of an admin listener; it looks like http://127.0.0.1:9090, or unix:/run/ringway/admin.sock"
        ))
    })
}

/// Percent-encodes all but unreserved characters (RFC 3986 2.3), so that an id is one path segment.
pub(super) fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Gets `path` from the listener at `url`.
pub(super) fn get(url: &str, path: &str) -> Result<Answer, CliError> {
    request(url, "GET", path, None)
}

/// The body of a successful answer; else the error that the gateway gave.
pub(super) fn good(answer: Answer) -> Result<String, CliError> {
    if answer.status == 200 {
        return Ok(answer.body);
    }
    let detail =
        serde_json::from_str::<Value>(&answer.body).ok().and_then(|value| Some(value.get("detail")?.as_str()?.to_owned()));
    Err(CliError(escape::text(&detail.unwrap_or_else(|| format!("the gateway answered with HTTP {}", answer.status)))))
}

/// The JSON of a successful answer.
pub(super) fn decode<T: serde::de::DeserializeOwned>(body: &str) -> Result<T, CliError> {
    serde_json::from_str(body)
        .map_err(|error| CliError(format!("the gateway's answer is of another version than this command: {error}")))
}

/// Sends one request, with a body of JSON where there is one.
pub(super) fn request(url: &str, method: &str, path: &str, json: Option<&str>) -> Result<Answer, CliError> {
    let wrong = |error: std::io::Error| {
        CliError(format!("{url}: {error}; is the gateway running, and is this its admin.listen or admin.socket?"))
    };
    match place(url)? {
        Place::Authority(host) => {
            let stream = connect(url, host)?;
            stream.set_read_timeout(Some(SILENCE)).map_err(wrong)?;
            stream.set_write_timeout(Some(SILENCE)).map_err(wrong)?;
            exchange(stream, url, host, (method, path, json))
        }
        Place::Socket(socket) => {
            let stream = connect_unix(socket).map_err(wrong)?;
            stream.set_read_timeout(Some(SILENCE)).map_err(wrong)?;
            stream.set_write_timeout(Some(SILENCE)).map_err(wrong)?;
            exchange(stream, url, "localhost", (method, path, json))
        }
    }
}

/// Connects to a Unix socket. If its queue is full, waits no longer than for a port.
fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(CONNECT))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

fn connect(url: &str, host: &str) -> Result<TcpStream, CliError> {
    let target = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let wrong =
        |error: std::io::Error| CliError(format!("{url}: {error}; is the gateway running, and is this its admin.listen?"));
    let address = target.to_socket_addrs().map_err(wrong)?.next();
    let address = address.ok_or_else(|| CliError(format!("{url}: the name has no address")))?;
    TcpStream::connect_timeout(&address, CONNECT).map_err(wrong)
}

fn exchange(
    mut stream: impl Read + Write,
    url: &str,
    host: &str,
    (method, path, json): (&str, &str, Option<&str>),
) -> Result<Answer, CliError> {
    let wrong = |error: std::io::Error| CliError(format!("{url}: {error}"));
    let content =
        json.map_or_else(String::new, |json| format!("Content-Type: application/json\r\nContent-Length: {}\r\n", json.len()));
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nConnection: close\r\n{content}\r\n");
    stream.write_all((head + json.unwrap_or_default()).as_bytes()).map_err(wrong)?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).map_err(wrong)?;
    parse(&bytes).ok_or_else(|| CliError(format!("{url} answers, but not as the admin listener of a gateway does")))
}

/// A complete answer with a length.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).ok()? else { return None };
    let status = response.code?;
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"))?;
    let length: usize = std::str::from_utf8(length.value).ok()?.parse().ok()?;
    let body = bytes.get(head..)?;
    (body.len() == length).then_some(())?;
    Some(Answer { status, body: String::from_utf8(body.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(authority("http://127.0.0.1:9090"), Ok("127.0.0.1:9090"));
        assert_eq!(authority("HTTP://[::1]:9090/"), Ok("[::1]:9090"));
        for bad in ["127.0.0.1:9090", "https://a", "http://", "http://a/b", "http://a b", "http://a\r\nX: y", "http://u@h"] {
            assert!(authority(bad).is_err(), "{bad}");
        }
        for (url, path) in [("unix:/run/a.sock", "/run/a.sock"), ("unix:a.sock", "a.sock"), ("/run/a", "/run/a"), ("./a", "./a")]
        {
            assert_eq!(place(url), Ok(Place::Socket(Path::new(path))), "{url}");
        }
        assert_eq!(place("http://[::1]:9090/"), Ok(Place::Authority("[::1]:9090")));
        for bad in ["unix:", "https://a/b", "127.0.0.1:9090", ""] {
            assert!(place(bad).is_err(), "{bad}");
        }
        assert_eq!(segment("c-1/../x y"), "c-1%2F..%2Fx%20y");
    }

    #[test]
    fn answers() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(parse(whole), Some(Answer { status: 200, body: "ok".into() }));
        for bad in [&whole[..whole.len() - 1], b"HTTP/1.1 200 OK\r\n\r\nok", b"SSH-2.0-x\r\n", b""] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_gateways_words() {
        let answer = Answer { status: 404, body: "{\"detail\":\"no shard knows it\"}".into() };
        assert_eq!(good(answer).unwrap_err().0, "no shard knows it");
        assert!(good(Answer { status: 500, body: String::new() }).unwrap_err().0.contains("500"));
    }

    #[test]
    fn nobody_there_is_one_line() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = get(&format!("http://{free}"), "/healthz").unwrap_err().0;
        assert!(error.contains("is the gateway running") && error.lines().count() == 1, "{error}");
    }
}
