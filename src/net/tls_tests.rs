//! TLS in memory against rustls' own client: any pieces, the bounds, and the attacks H4 to H6, H21 and H22 of the catalogue.

use super::*;
use proptest::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, SignatureScheme,
    SupportedProtocolVersion,
};
use std::io::{Read, Write};

const CERTIFICATE: &[u8] = include_bytes!("../../tests/data/tls/localhost.cert.pem");
const KEY: &[u8] = include_bytes!("../../tests/data/tls/localhost.key.pem");
const OTHER_KEY: &[u8] = include_bytes!("../../tests/data/tls/other.key.pem");

/// Accepts the one certificate of the tests, whatever the date, and checks that the server holds its key.
#[derive(Debug)]
struct Pinned;

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(*end_entity, CertificateDer::from_pem_slice(CERTIFICATE).unwrap());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &default_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client_with(version: &'static SupportedProtocolVersion, alpn: &[&str]) -> ClientConnection {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

fn server() -> TlsConnection {
    TlsServer::new(CERTIFICATE, KEY).unwrap().accept().unwrap()
}

fn client_output(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Hands the server's pending ciphertext to the client.
fn to_client(server: &mut TlsConnection, client: &mut ClientConnection) -> Result<(), rustls::Error> {
    let mut bytes = server.pending();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
    }
    server.sent(server.pending().len());
    Ok(())
}

/// Receives in pieces of at most `piece` bytes.
fn receive(server: &mut TlsConnection, mut bytes: Vec<u8>, piece: usize, plain: &mut Vec<u8>) -> Result<bool, TlsError> {
    let mut closed = false;
    for part in bytes.chunks_mut(piece) {
        let mut at = 0;
        loop {
            let received = server.receive(&mut part[at..], plain, 1000)?;
            at += received.consumed;
            closed |= received.closed;
            if !received.more {
                break;
            }
        }
        assert_eq!(at, part.len());
    }
    Ok(closed)
}

fn shake_hands(server: &mut TlsConnection, client: &mut ClientConnection, piece: usize) {
    let mut plain = Vec::new();
    for _ in 0..10 {
        receive(server, client_output(client), piece, &mut plain).unwrap();
        to_client(server, client).unwrap();
        if !server.handshaking() && !client.is_handshaking() && !client.wants_write() {
            assert!(plain.is_empty());
            return;
        }
    }
    panic!("the handshake does not end");
}

fn client_plain(client: &mut ClientConnection) -> Vec<u8> {
    let mut plain = vec![0; 1 << 20];
    let mut length = 0;
    while let Ok(count @ 1..) = client.reader().read(&mut plain[length..]) {
        length += count;
    }
    plain.truncate(length);
    plain
}

#[test]
fn both_versions_talk_in_any_pieces() {
    for (version, expected) in [(&version::TLS13, ProtocolVersion::TLSv1_3), (&version::TLS12, ProtocolVersion::TLSv1_2)] {
        for piece in [1, 3, 17, 1000, 100_000] {
            let (mut server, mut client) = (server(), client_with(version, &["http/1.1"]));
            shake_hands(&mut server, &mut client, piece);
            assert_eq!(client.protocol_version(), Some(expected));
            assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));

            let message: Vec<u8> = (0..50_000_u32).map(|index| index.to_le_bytes()[0]).collect();
            client.writer().write_all(&message).unwrap();
            let mut plain = Vec::new();
            assert!(!receive(&mut server, client_output(&mut client), piece, &mut plain).unwrap());
            assert!(plain == message, "{piece}");
            server.reclaim(&mut Buffers::new(0, 0, 0));
            assert!(server.incoming.capacity() == 0 && server.pending.capacity() == 0, "idle, it owns no buffer");

            assert_eq!(server.encrypt(&[b"hello ", b"", &message[..3000], b"end"]), 3009);
            to_client(&mut server, &mut client).unwrap();
            let back = client_plain(&mut client);
            assert!(back.starts_with(b"hello ") && back.ends_with(b"end") && back[6..3006] == message[..3000]);
        }
    }
}

#[test]
fn what_waits_is_bounded_and_a_prefix_is_taken() {
    for version in [&version::TLS13, &version::TLS12] {
        let (mut server, mut client) = (server(), client_with(version, &[]));
        assert_eq!(server.encrypt(&[b"too early"]), 0);
        shake_hands(&mut server, &mut client, 100_000);
        let message: Vec<u8> = (0..300_000_u32).map(|index| index.to_le_bytes()[1]).collect();
        let parts: Vec<&[u8]> = message.chunks(777).collect();
        let mut sent = 0;
        let mut got = Vec::new();
        while sent < message.len() {
            let first = sent / 777;
            let mut rest = vec![&parts[first][sent % 777..]];
            rest.extend(&parts[first + 1..]);
            let taken = server.encrypt(&rest);
            assert!(taken > 0 && server.pending().len() <= TLS_PENDING_BYTES_MAX);
            if sent + taken < message.len() {
                assert!(server.pending().len() > TLS_PENDING_BYTES_MAX - 4 * GATHER_BYTES, "{}", server.pending().len());
            }
            sent += taken;
            // Taken by the socket in two parts, the second after more was added.
            let half = server.pending().len() / 2;
            let mut bytes = server.pending()[..half].to_vec();
            server.sent(half);
            sent += server.encrypt(&[&message[sent..message.len().min(sent + 10)]]);
            bytes.extend_from_slice(server.pending());
            server.sent(server.pending().len());
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                client.process_new_packets().unwrap();
                got.extend(client_plain(&mut client));
            }
        }
        assert!(got == message);
        server.reclaim(&mut Buffers::new(0, 0, 0));
        assert_eq!(server.pending.capacity(), 0);
        let full = vec![0; 1 << 20];
        assert!(server.encrypt(&[&full]) >= TLS_PENDING_BYTES_MAX - 5 * RECORD_OVERHEAD_BYTES);
        assert_eq!((server.encrypt(&[b"x"]), server.room()), (0, 0));
    }
}

#[test]
fn the_limit_stops_between_records() {
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    for _ in 0..5 {
        client.writer().write_all(&[7; 100]).unwrap();
    }
    let mut bytes = client_output(&mut client);
    let mut plain = Vec::new();
    let first = server.receive(&mut bytes, &mut plain, 150).unwrap();
    assert_eq!((plain.len(), first.more), (200, true));
    let second = server.receive(&mut bytes[first.consumed..], &mut plain, 10_000).unwrap();
    assert_eq!((plain.len(), second.more, first.consumed + second.consumed), (500, false, bytes.len()));
}

#[test]
fn close_notify_goes_both_ways() {
    for version in [&version::TLS13, &version::TLS12] {
        let (mut server, mut client) = (server(), client_with(version, &[]));
        shake_hands(&mut server, &mut client, 100_000);
        client.writer().write_all(b"last words").unwrap();
        client.send_close_notify();
        let mut bytes = client_output(&mut client);
        bytes.extend(b"whatever follows is ignored");
        let mut plain = Vec::new();
        assert!(receive(&mut server, bytes, 100_000, &mut plain).unwrap());
        assert_eq!(plain, b"last words");
        assert_eq!(server.encrypt(&[b"answer"]), 6);
        server.close();
        server.close();
        assert_eq!(server.encrypt(&[b"too late"]), 0);
        to_client(&mut server, &mut client).unwrap();
        assert_eq!(client_plain(&mut client), b"answer");
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        assert_eq!(server.receive(&mut [0; 10], &mut plain, 10), Ok(Received { consumed: 10, more: false, closed: true }));
    }
}

/// H5: a ClientHello in many records. H4 is a deadline of the caller; a single byte leaves a single byte in memory.
#[test]
fn h4_h5_a_fragmented_client_hello() {
    for fragment in [1, 2, 50] {
        let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
        let hello = client_output(&mut client);
        let records: Vec<u8> = hello[5..]
            .chunks(fragment)
            .flat_map(|part| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()][..], part].concat())
            .collect();
        let mut plain = Vec::new();
        receive(&mut server, records, 7, &mut plain).unwrap();
        to_client(&mut server, &mut client).unwrap();
        shake_hands(&mut server, &mut client, 100_000);
    }
    let mut server = server();
    let mut plain = Vec::new();
    assert_eq!(server.receive(&mut [22], &mut plain, 100), Ok(Received { consumed: 1, ..Received::default() }));
    assert_eq!((server.incoming.len(), server.pending().len(), server.handshaking()), (1, 0, true));
}

/// A hello that never ends: refused at the bound, not gathered without end.
#[test]
fn an_endless_client_hello_is_refused() {
    let mut server = server();
    let mut plain = Vec::new();
    let mut refused = None;
    let mut first = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    first.resize(5 + 0x4000, 0);
    for _ in 0..10 {
        let mut record = first.clone();
        match server.receive(&mut record, &mut plain, 1000) {
            Ok(_) => assert!(server.incoming.len() <= TLS_RECORD_BYTES_MAX),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        first[5..9].fill(0);
    }
    assert!(refused.is_some());
    assert_eq!(server.receive(&mut [0], &mut plain, 1000), Err(TlsError::AlreadyFailed));
}

/// H6: close_notify, or any other alert, right after the ClientHello ends the connection without a spin.
#[test]
fn h6_an_alert_right_after_the_client_hello() {
    for version in [&version::TLS13, &version::TLS12] {
        for alert in [[1, 0], [1, 90], [2, 40]] {
            let mut bytes = client_output(&mut client_with(version, &[]));
            bytes.extend([21, 3, 3, 0, 2, alert[0], alert[1]]);
            let (mut server, mut plain) = (server(), Vec::new());
            let told = receive(&mut server, bytes, 100_000, &mut plain);
            // An unsigned warning may be ignored (RFC 8446 6.1 says so of user_canceled): then the call has ended, the peer's end
            // of stream or the deadline ends the rest, and many of them are an error.
            if told == Ok(false) {
                assert_eq!(alert[0], 1);
                let many = [21, 3, 3, 0, 2, alert[0], alert[1]].repeat(20);
                assert!(receive(&mut server, many, 100_000, &mut plain).is_err());
            }
            assert!(plain.is_empty() && server.handshaking());
        }
    }
}

/// H21: h2 alone is refused with its alert; with http/1.1 beside it, http/1.1 is chosen.
#[test]
fn h21_only_http_1_1_is_spoken() {
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &["h2"]));
    let refused = receive(&mut server, client_output(&mut client), 100_000, &mut Vec::new());
    assert_eq!(refused, Err(TlsError::Protocol(rustls::Error::NoApplicationProtocol)));
    let told = to_client(&mut server, &mut client);
    assert_eq!(told, Err(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)));

    let (mut server, mut client) = (self::server(), client_with(&version::TLS13, &["h2", "http/1.1"]));
    shake_hands(&mut server, &mut client, 100_000);
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
}

/// H22: a ClientHello of TLS 1.1, a CBC suite alone, and no session tickets to resume with 0-RTT.
#[test]
fn h22_old_versions_and_suites_are_refused() {
    let hello = |version: [u8; 2], suite: [u8; 2]| {
        let mut body = vec![version[0], version[1]];
        body.extend([5; 32]);
        body.push(0);
        body.extend([0, 2, suite[0], suite[1], 1, 0]);
        let length = u8::try_from(body.len()).unwrap();
        [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
    };
    for (version, suite) in [([3, 1], [0xc0, 0x2b]), ([3, 2], [0xc0, 0x2b]), ([3, 3], [0, 0x2f]), ([3, 3], [0xc0, 0x13])] {
        let mut server = server();
        let refused = receive(&mut server, hello(version, suite), 100_000, &mut Vec::new());
        assert!(matches!(refused, Err(TlsError::Protocol(_))), "{refused:?}");
        assert_eq!(server.pending()[..2], [21, 3], "an alert");
    }
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    assert_eq!(client.tls13_tickets_received(), 0);
    assert_eq!(TlsServer::new(CERTIFICATE, KEY).unwrap().config.max_early_data_size, 0);
}

#[test]
fn a_changed_record_ends_the_connection_with_an_alert() {
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    client.writer().write_all(b"hello").unwrap();
    let mut bytes = client_output(&mut client);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let mut plain = Vec::new();
    assert_eq!(receive(&mut server, bytes, 100_000, &mut plain), Err(TlsError::Protocol(rustls::Error::DecryptError)));
    assert!(plain.is_empty() && server.encrypt(&[b"x"]) == 0);
    let told = to_client(&mut server, &mut client);
    assert_eq!(told, Err(rustls::Error::AlertReceived(AlertDescription::BadRecordMac)));
}

#[test]
fn key_updates_are_followed() {
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    for round in 0..20 {
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"ping").unwrap();
        let mut plain = Vec::new();
        receive(&mut server, client_output(&mut client), 100_000, &mut plain).unwrap();
        assert_eq!(plain, b"ping", "{round}");
        assert_eq!(server.encrypt(&[b"pong"]), 4);
        to_client(&mut server, &mut client).unwrap();
        assert_eq!(client_plain(&mut client), b"pong");
    }
}

/// Half a record, or a handshake message of which one record has arrived: meanwhile the server writes and closes.
#[test]
fn what_is_kept_does_not_disturb_writing() {
    let (mut server, mut client) = (server(), client_with(&version::TLS12, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    client.writer().write_all(b"x").unwrap();
    let mut record = client_output(&mut client);
    let half = record.split_off(9);
    let mut plain = Vec::new();
    receive(&mut server, record, 100, &mut plain).unwrap();
    assert_eq!(server.encrypt(&[b"between"]), 7);
    receive(&mut server, half, 100, &mut plain).unwrap();
    assert_eq!(plain, b"x");

    let mut server = self::server();
    receive(&mut server, vec![22, 3, 1, 0, 3, 1, 0, 0], 100, &mut plain).unwrap();
    assert_eq!(server.encrypt(&[b"early"]), 0);
    server.close();
    assert!(server.pending().is_empty());
}

#[test]
fn it_goes_on_in_another_thread() {
    let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
    shake_hands(&mut server, &mut client, 100_000);
    client.writer().write_all(b"moved").unwrap();
    let mut bytes = client_output(&mut client);
    let rest = bytes.split_off(10);
    let mut plain = Vec::new();
    receive(&mut server, bytes, 100, &mut plain).unwrap();
    let plain = std::thread::spawn(move || {
        receive(&mut server, rest, 100, &mut plain).unwrap();
        plain
    })
    .join()
    .unwrap();
    assert_eq!(plain, b"moved");
}

#[test]
fn files_that_do_not_do_are_named() {
    let refused = |certificate: &[u8], key: &[u8]| TlsServer::new(certificate, key).map(|_| ()).unwrap_err();
    let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes();
    assert_eq!(refused(b"", KEY), TlsConfigError::NoCertificate);
    assert_eq!(refused(KEY, KEY), TlsConfigError::NoCertificate);
    assert_eq!(refused(&pem("CERTIFICATE", "AAAA"), KEY), TlsConfigError::BadCertificate { index: 1 });
    let second = [CERTIFICATE, &pem("CERTIFICATE", "!!!")].concat();
    assert_eq!(refused(&second, KEY), TlsConfigError::BadCertificate { index: 2 });
    assert_eq!(refused(CERTIFICATE, b""), TlsConfigError::NoKey);
    assert_eq!(refused(CERTIFICATE, CERTIFICATE), TlsConfigError::NoKey);
    assert_eq!(refused(CERTIFICATE, &pem("PRIVATE KEY", "AAAA")), TlsConfigError::BadKey);
    assert_eq!(refused(CERTIFICATE, &pem("ENCRYPTED PRIVATE KEY", "AAAA")), TlsConfigError::EncryptedKey);
    assert_eq!(refused(CERTIFICATE, OTHER_KEY), TlsConfigError::Mismatch);
    assert!(!format!("{:?}", TlsServer::new(CERTIFICATE, KEY).unwrap()).contains("key"));
}

proptest! {
    /// Garbage, and garbage after a good start, ends in an error or waits for more; it never panics or grows without bound.
    #[test]
    fn any_bytes_end_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..2000), start in 0..3_usize, piece in 1..500_usize) {
        let (mut server, mut client) = (server(), client_with(&version::TLS13, &[]));
        let mut plain = Vec::new();
        match start {
            1 => { receive(&mut server, client_output(&mut client), 100_000, &mut plain).unwrap(); }
            2 => shake_hands(&mut server, &mut client, 100_000),
            _ => {}
        }
        let mut typed = bytes;
        if typed.len() > 5 {
            // Half of the time the bytes look like a record.
            if typed[5] & 1 == 0 {
                typed[0] = 20 + (typed[0] & 3);
                typed[1] = 3;
                typed[2] = 3;
                typed[3] = 0;
            }
        }
        let _ = receive(&mut server, typed, piece, &mut plain);
        prop_assert!(plain.is_empty());
        prop_assert!(server.incoming.len() <= TLS_RECORD_BYTES_MAX);
        prop_assert!(server.pending().len() <= TLS_PENDING_BYTES_MAX + 2 * CONTROL_RESERVE_BYTES);
    }
}
