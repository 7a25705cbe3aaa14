//! The client behind a proxy: trusted networks, the PROXY protocol (HAProxy's `proxy-protocol.txt`, versions 1 and 2), and the
//! header that a proxy adds.

use super::http::elements;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header accepted: version 2 with its addresses and room for extensions (specification section 2.2).
pub const PROXY_HEADER_BYTES_MAX: usize = 536;
/// The longest line of version 1, its CR LF included (section 2.1).
const V1_BYTES_MAX: usize = 107;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;
/// Hops of a header that are examined: more proxies than anyone has.
const HOPS_MAX: usize = 32;

/// The client's address: the peer's own. If the peer is trusted: the rightmost hop of the header that is not trusted. A hop that
/// is no address ends the walk, since everything left of it may be forged.
///
/// `values` are the lines of the configured header (`X-Forwarded-For`, say) in the order sent.
#[must_use]
pub fn client_ip<'v>(
    peer: IpAddr,
    values: impl DoubleEndedIterator<Item = &'v [u8]>,
    trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let hops = values.rev().flat_map(|value| elements(value).rev());
    for hop in hops.take(HOPS_MAX) {
        if !trusted(nearest) {
            break;
        }
        let Some(address) = hop_address(hop) else { break };
        nearest = address.to_canonical();
    }
    nearest
}

/// An address, with a port or brackets as some proxies write it.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(with_port) = text.parse::<SocketAddr>() {
        return Some(with_port.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// The result of a push of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProgress {
    /// All bytes were taken; the header is not complete.
    More,
    /// The header is complete after `consumed` of the pushed bytes. `source` is `None` if the proxy speaks for itself (health
    /// checks) or does not know: then the peer is the client.
    Done { consumed: usize, source: Option<SocketAddr> },
    /// The connection must be closed without an answer (section 2).
    Refused(ProxyError),
}

/// The reason why a PROXY header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection does not begin with a PROXY protocol header, which server.proxy_protocol asks of this peer")]
    Missing,
    #[error("the PROXY protocol header of version 1 is malformed; it must be: PROXY TCP4|TCP6|UNKNOWN source target port port")]
    Malformed,
    #[error("the PROXY protocol header has the unknown version or command byte {0:#04x}; 0x20 and 0x21 are known")]
    VersionOrCommand(u8),
    #[error("the PROXY protocol header has the unknown address family byte {0:#04x}")]
    Family(u8),
    #[error("the PROXY protocol header has {0} bytes of addresses, too few for its family")]
    TooShort(usize),
    #[error("the PROXY protocol header is longer than {max} bytes", max = PROXY_HEADER_BYTES_MAX)]
    TooLong,
}

/// Gathers a PROXY header from any pieces.
#[derive(Debug, Default)]
pub struct ProxyReader {
    header: Vec<u8>,
}

impl ProxyReader {
    #[must_use]
    pub const fn new() -> Self {
        Self { header: Vec::new() }
    }

    /// Takes the bytes of one read. The header is bounded, so each byte is judged as it comes.
    pub fn push(&mut self, bytes: &[u8]) -> ProxyProgress {
        for (index, &byte) in bytes.iter().enumerate() {
            self.header.push(byte);
            match parse(&self.header) {
                Ok(None) => {}
                Ok(Some(source)) => return ProxyProgress::Done { consumed: index + 1, source },
                Err(error) => return ProxyProgress::Refused(error),
            }
        }
        ProxyProgress::More
    }
}

/// Parses the header so far. Called with one byte more each time; constant work except for the last byte.
fn parse(header: &[u8]) -> Result<Option<Option<SocketAddr>>, ProxyError> {
    let v1 = b"PROXY ";
    if header.starts_with(v1) {
        return parse_v1(header);
    }
    let known = header.len().min(V2_SIGNATURE.len());
    if header[..known] == V2_SIGNATURE[..known] {
        return parse_v2(header);
    }
    if v1.starts_with(header) { Ok(None) } else { Err(ProxyError::Missing) }
}

fn parse_v1(header: &[u8]) -> Result<Option<Option<SocketAddr>>, ProxyError> {
    let Some(line) = header.strip_suffix(b"\r\n") else {
        let over = header.len() >= V1_BYTES_MAX || header.ends_with(b"\n");
        return if over { Err(ProxyError::Malformed) } else { Ok(None) };
    };
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Malformed)?;
    let mut parts = line.split(' ').skip(1);
    let mut part = || parts.next().ok_or(ProxyError::Malformed);
    let family = part()?;
    if family == "UNKNOWN" {
        return Ok(Some(None));
    }
    let (source, target) = (part()?, part()?);
    let (source_port, target_port) = (port(part()?)?, port(part()?)?);
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| ProxyError::Malformed),
        "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| ProxyError::Malformed),
        _ => Err(ProxyError::Malformed),
    };
    let (source, _) = (SocketAddr::new(address(source)?, source_port), SocketAddr::new(address(target)?, target_port));
    if parts.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    Ok(Some(Some(source)))
}

fn port(text: &str) -> Result<u16, ProxyError> {
    let plain = text == "0" || text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).ok_or(ProxyError::Malformed)
}

fn parse_v2(header: &[u8]) -> Result<Option<Option<SocketAddr>>, ProxyError> {
    let Some(&version_command) = header.get(12) else { return Ok(None) };
    if !matches!(version_command, 0x20 | 0x21) {
        return Err(ProxyError::VersionOrCommand(version_command));
    }
    let Some(&family) = header.get(13) else { return Ok(None) };
    let Some(length) = header.get(14..16).and_then(<[u8]>::first_chunk::<2>) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if V2_FIXED_BYTES + length > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    if header.len() < V2_FIXED_BYTES + length {
        return Ok(None);
    }
    if version_command == 0x20 {
        return Ok(Some(None));
    }
    let addresses = &header[V2_FIXED_BYTES..];
    let too_short = ProxyError::TooShort(length);
    let port_at = |at: usize| addresses.get(at..).and_then(<[u8]>::first_chunk::<2>).map(|port| u16::from_be_bytes(*port));
    match family {
        // TCP over IPv4: two addresses of 4 bytes, two ports.
        0x11 if length >= 12 => {
            let source = addresses.first_chunk::<4>().ok_or(too_short)?;
            Ok(Some(Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port_at(8).ok_or(too_short)?))))
        }
        // TCP over IPv6: two addresses of 16 bytes, two ports.
        0x21 if length >= 36 => {
            let source = addresses.first_chunk::<16>().ok_or(too_short)?;
            Ok(Some(Some(SocketAddr::new(Ipv6Addr::from(*source).into(), port_at(32).ok_or(too_short)?))))
        }
        0x11 | 0x21 => Err(too_short),
        // Unspecified, and Unix sockets: no IP address identifies the client.
        0x00 | 0x31 => Ok(Some(None)),
        other => Err(ProxyError::Family(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> ProxyProgress {
        let mut reader = ProxyReader::new();
        let mut before = 0;
        for piece in pieces {
            match reader.push(piece) {
                ProxyProgress::More => before += piece.len(),
                ProxyProgress::Done { consumed, source } => return ProxyProgress::Done { consumed: before + consumed, source },
                refused @ ProxyProgress::Refused(_) => return refused,
            }
        }
        ProxyProgress::More
    }

    /// The verdict on a header with bytes of the protocol behind it, pushed whole and byte by byte.
    fn judge(header: &[u8]) -> ProxyProgress {
        let stream = [header, b"GET"].concat();
        let whole = read([&stream[..]]);
        assert_eq!(read(stream.chunks(1)), whole);
        whole
    }

    fn v2(version_command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend_from_slice(&[version_command, family]);
        header.extend_from_slice(&u16::try_from(addresses.len()).unwrap().to_be_bytes());
        header.extend_from_slice(addresses);
        header
    }

    fn done(header: &[u8], source: Option<&str>) {
        let source = source.map(|text| text.parse().unwrap());
        assert_eq!(judge(header), ProxyProgress::Done { consumed: header.len(), source }, "{}", header.escape_ascii());
    }

    #[test]
    fn version_1() {
        done(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Some("192.0.2.1:56324"));
        done(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", Some("[2001:db8::1]:1"));
        done(b"PROXY UNKNOWN\r\n", None);
        done(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None);
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat();
        let bad: [&[u8]; 11] = [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 9\r\n",
            b"PROXY TCP4 2001:db8::1 198.51.100.1 56324 443\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.256 198.51.100.1 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 01 443\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 443\r\n",
            &long,
        ];
        for header in bad {
            assert_eq!(judge(header), ProxyProgress::Refused(ProxyError::Malformed), "{}", header.escape_ascii());
        }
        assert_eq!(judge(b"PROXX"), ProxyProgress::Refused(ProxyError::Missing));
        assert_eq!(judge(b"GET / HTTP/1.1\r\n"), ProxyProgress::Refused(ProxyError::Missing));
        assert_eq!(read([&b"PROX"[..]]), ProxyProgress::More);
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 1, 0xbb];
        done(&v2(0x21, 0x11, &v4), Some("192.0.2.1:56324"));
        done(&v2(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat()), Some("192.0.2.1:56324"));
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 7;
        done(&v2(0x21, 0x21, &v6), Some("[::1]:7"));
        done(&v2(0x20, 0x00, &[]), None);
        done(&v2(0x20, 0x11, &v4), None);
        done(&v2(0x21, 0x00, &[1, 2, 3]), None);
        done(&v2(0x21, 0x31, &[0; 216]), None);
        done(&v2(0x21, 0x00, &[0; 520]), None);
        let bad = [
            (v2(0x21, 0x00, &[0; 521]), ProxyError::TooLong),
            (v2(0x21, 0x00, &[0; 65_535]), ProxyError::TooLong),
            (v2(0x21, 0x11, &v4[..11]), ProxyError::TooShort(11)),
            (v2(0x21, 0x21, &v4), ProxyError::TooShort(12)),
            (v2(0x11, 0x11, &v4), ProxyError::VersionOrCommand(0x11)),
            (v2(0x22, 0x11, &v4), ProxyError::VersionOrCommand(0x22)),
            (v2(0x21, 0x12, &v4), ProxyError::Family(0x12)),
        ];
        for (header, error) in bad {
            assert_eq!(judge(&header), ProxyProgress::Refused(error));
        }
        assert_eq!(judge(b"\r\n\r\n\0\r\nQUIT\r"), ProxyProgress::Refused(ProxyError::Missing));
    }

    #[test]
    fn h23_the_header_counts_only_from_a_trusted_peer() {
        let trusted = |address: IpAddr| matches!(address, IpAddr::V4(address) if address.octets()[0] == 10);
        let client = |peer: &str, lines: &[&str]| {
            client_ip(peer.parse().unwrap(), lines.iter().map(|line| line.as_bytes()), trusted).to_string()
        };
        assert_eq!(client("203.0.113.9", &["192.0.2.1"]), "203.0.113.9", "not a proxy of ours");
        assert_eq!(client("10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("::ffff:10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 192.0.2.1"]), "192.0.2.1", "what the client itself sent is left of it");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 192.0.2.1 , 10.0.0.2"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["6.6.6.6", "192.0.2.1", "10.0.0.2"]), "192.0.2.1", "over several lines");
        assert_eq!(client("10.0.0.1", &["192.0.2.1:5000"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:5000"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 192.0.2.1,, 10.0.0.2 ,", "", " , "]),
            "192.0.2.1",
            "empty elements say nothing"
        );
        assert_eq!(client("10.0.0.1", &["192.0.2.1, junk"]), "10.0.0.1", "nothing behind a bad hop is believed");
        assert_eq!(client("10.0.0.1", &["192.0.2.1, junk, 10.0.0.3"]), "10.0.0.3");
        assert_eq!(client("10.0.0.1", &["10.0.0.5, 10.0.0.4"]), "10.0.0.5", "inside all the way");
        assert_eq!(client("10.0.0.1", &[&vec!["10.0.0.4"; 1000].join(",")]), "10.0.0.4", "bounded");
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_alike_in_any_pieces(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 1.2.3.4 ", &V2_SIGNATURE[..], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"]),
            tail in prop::collection::vec(any::<u8>(), 0..140), piece in 1usize..50,
        ) {
            let bytes = [start, &tail].concat();
            prop_assert_eq!(read(bytes.chunks(piece)), read([&bytes[..]]));
        }
    }
}
