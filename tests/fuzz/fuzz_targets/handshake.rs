//! Any bytes as what comes before WebSocket: the PROXY header, the request head, the upgrade, the extensions.
//!
//! The first byte chooses the policy and whether a PROXY header comes first, the second the size of the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::net::http::{HEAD_READS_MAX, HeadReader, Progress, Request};
use ringway::net::origin::OriginPolicy;
use ringway::net::proxy::{ProxyProgress, ProxyReader, client_ip};
use ringway::net::upgrade::{Policy, upgrade};
use ringway::ws::deflate::negotiate;
use std::net::{IpAddr, Ipv4Addr};

/// The answer and where the head ended, or `None` where more is needed.
fn judge(stream: &[u8], piece_bytes: usize, policy: &Policy) -> Option<(Vec<u8>, usize)> {
    let mut reader = HeadReader::new();
    let mut answer = Vec::new();
    let mut before = 0;
    for piece in stream.chunks(piece_bytes) {
        match reader.push(piece) {
            Progress::More => before += piece.len(),
            Progress::Done { consumed } => {
                assert!(consumed > 0 && consumed <= piece.len());
                assert_eq!(reader.head(), &stream[..before + consumed]);
                match Request::parse(reader.head()).and_then(|request| accept(&request, policy, &mut answer)) {
                    Ok(()) => {}
                    Err(refusal) => refusal.write(&mut answer),
                }
                return Some((answer, before + consumed));
            }
            Progress::Refused(refusal) => {
                refusal.write(&mut answer);
                return Some((answer, 0));
            }
        }
    }
    None
}

fn accept(request: &Request<'_>, policy: &Policy, answer: &mut Vec<u8>) -> Result<(), ringway::net::refusal::HttpRefusal> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let _ = client_ip(loopback, request.values("x-forwarded-for"), |address| address.is_loopback());
    let upgrade = upgrade(request, policy)?;
    let extensions = negotiate(&upgrade.extensions, true).ok().flatten().map(|agreed| agreed.header_value());
    upgrade.write_accept(extensions.as_deref(), answer);
    Ok(())
}

fn proxy(stream: &[u8], piece_bytes: usize) -> ProxyProgress {
    let mut reader = ProxyReader::new();
    let mut before = 0;
    for piece in stream.chunks(piece_bytes) {
        match reader.push(piece) {
            ProxyProgress::More => before += piece.len(),
            ProxyProgress::Done { consumed, source } => return ProxyProgress::Done { consumed: before + consumed, source },
            refused @ ProxyProgress::Refused(_) => return refused,
        }
    }
    ProxyProgress::More
}

fuzz_target!(|input: &[u8]| {
    let [flags, piece, stream @ ..] = input else { return };
    let mut stream = stream;
    let piece_bytes = usize::from(*piece).max(1);
    if flags & 1 != 0 {
        let whole = proxy(stream, stream.len().max(1));
        assert_eq!(proxy(stream, piece_bytes), whole);
        let ProxyProgress::Done { consumed, .. } = whole else { return };
        stream = &stream[consumed..];
    }
    let policy =
        Policy { origins: OriginPolicy::new(Vec::new(), flags & 2 != 0), echo: flags & 4 != 0 };
    let whole = judge(stream, stream.len().max(1), &policy);
    // Fewer pieces than the reads that are allowed: beyond that the verdict is the number of reads.
    let least_bytes = stream.len() / (HEAD_READS_MAX as usize - 1) + 1;
    assert_eq!(judge(stream, piece_bytes.max(least_bytes), &policy), whole);
    if let Some((answer, _)) = whole {
        assert!(answer.starts_with(b"HTTP/1.1 "));
        assert!(answer.windows(4).any(|four| four == b"\r\n\r\n"), "the answer is not whole");
    }
});
