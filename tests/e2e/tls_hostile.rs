//! TLS by hand: a ClientHello in as many pieces as possible works, an interrupted one ends its connection, and nobody else
//! notices. Deadlines are far away unless the test says otherwise: connections end because of their input.

use crate::gateway::{Gateway, PATIENCE};
use crate::raw::{Raw, UPGRADE, text};
use crate::token::token;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
/// An alert, close_notify, in the clear (RFC 8446 6).
const CLOSE_NOTIFY: &[u8] = b"\x15\x03\x03\x00\x02\x01\x00";

fn data(name: &str) -> String {
    format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn start(more: &[(&str, &str)]) -> Gateway {
    let (certificate, key) = (format!("{:?}", data("localhost.cert.pem")), format!("{:?}", data("localhost.key.pem")));
    let far = [("limits.tls_handshake_ms", "600000"), ("limits.handshake_ms", "600000")];
    Gateway::start(&[&far, &[("tls.certificate", &*certificate), ("tls.key", &*key)], more].concat())
}

pub struct Tls {
    pub tls: ClientConnection,
    pub stream: TcpStream,
    plain: Vec<u8>,
}

impl Tls {
    pub fn connect(gateway: &Gateway, version: &'static SupportedProtocolVersion) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(data("localhost.cert.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        Self { tls, stream: Raw::connect(gateway.address).stream, plain: Vec::new() }
    }

    /// The bytes that TLS wants to send now.
    fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// Reads until the plaintext holds this.
    fn until(&mut self, wanted: &str) {
        let mut bytes = [0; 4096];
        while !self.plain.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            match rustls::Stream::new(&mut self.tls, &mut self.stream).read(&mut bytes) {
                Ok(count) if count > 0 => self.plain.extend_from_slice(&bytes[..count]),
                other => panic!("{other:?} instead of {wanted:?}: {:?}", String::from_utf8_lossy(&self.plain)),
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        rustls::Stream::new(&mut self.tls, &mut self.stream).write_all(bytes).unwrap();
    }

    /// From the end of the ClientHello to a session.
    fn enter(&mut self, client: &str) {
        self.send(UPGRADE.as_bytes());
        self.until("\r\n\r\n");
        let payload = json!({"client_id": client, "auth_token": token(client)});
        self.send(&text(&json!({"type": "rw.hello", "id": "1", "session_id": "s", "payload": payload}).to_string()));
        self.until("rw.welcome");
    }

    /// Reads to the end of the socket, whatever comes; it must end by itself.
    fn ends(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it does not end within {PATIENCE:?}"),
                Err(_) => return,
            }
        }
    }
}

/// The handshake messages of whole records, in records of `bytes` at most (RFC 8446 5.1).
fn in_records_of(bytes: usize, records: &[u8]) -> Vec<Vec<u8>> {
    let mut handshake = Vec::new();
    let mut rest = records;
    while let Some((head, body)) = rest.split_at_checked(5) {
        assert_eq!(head[0], 0x16, "a handshake record");
        let (body, more) = body.split_at(usize::from(u16::from_be_bytes([head[3], head[4]])));
        handshake.extend_from_slice(body);
        rest = more;
    }
    let record = |part: &[u8]| [&[0x16, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
    handshake.chunks(bytes).map(record).collect()
}

fn unharmed(gateway: &Gateway) {
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    assert_eq!(gateway.metric("ringway_panics_total", ""), 0);
    let mut good = Tls::connect(gateway, VERSIONS[0]);
    good.enter("good");
}

/// H5.
#[test]
fn a_client_hello_in_many_records_and_segments_is_one_client_hello() {
    let gateway = start(&[]);
    for version in VERSIONS {
        for (record_bytes, segment_bytes) in [(1, 6), (1, 1), (7, 5), (100, 1), (64, usize::MAX), (1, usize::MAX)] {
            let mut client = Tls::connect(&gateway, version);
            let records = in_records_of(record_bytes, &client.records()).concat();
            for segment in records.chunks(segment_bytes.min(records.len())) {
                client.stream.write_all(segment).unwrap();
            }
            client.enter("ana");
        }
    }
    gateway.until_metric("ringway_welcomed_total", "", |welcomed| welcomed == 12);
    unharmed(&gateway);
}

/// H5: each byte is progress, the deadline is the whole handshake's.
#[test]
fn a_client_hello_that_comes_too_slowly_is_dropped() {
    let gateway = start(&[("limits.tls_handshake_ms", "500")]);
    let mut client = Tls::connect(&gateway, VERSIONS[0]);
    let records = in_records_of(1, &client.records());
    for record in &records[..records.len() - 1] {
        crate::raw::pause(25);
        if client.stream.write_all(record).is_err() {
            break;
        }
    }
    client.ends();
    assert_eq!(gateway.metric("ringway_limits_reached_total", "tls_handshake_time\""), 1);
    unharmed(&gateway);
}

/// The ClientHello of a refused connection is not even read.
#[test]
fn who_is_over_its_addresss_limit_gets_no_handshake() {
    let gateway = start(&[("limits.half_open_per_ip", "3")]);
    let mut clients: Vec<Tls> = (0..20).map(|_| Tls::connect(&gateway, VERSIONS[0])).collect();
    let (mut answered, mut held) = (0, Vec::new());
    for mut client in clients.drain(..) {
        let hello = client.records();
        let sent = client.stream.write_all(&hello).is_ok();
        if sent && client.stream.read_exact(&mut [0; 1]).is_ok() {
            answered += 1;
            held.push(client);
        }
    }
    assert_eq!(answered, 3);
    assert_eq!(gateway.metric("ringway_limits_reached_total", "half_open_per_ip\""), 17);
    assert_eq!(gateway.metric("ringway_closes_total", "reason=\"shed\""), 17);
    drop(held);
    unharmed(&gateway);
}

/// H6. The alert is unsigned, so that TLS may ignore it (RFC 8446 6.1): then the handshake's deadline ends the connection, and
/// the shard sleeps until then.
#[test]
fn a_close_notify_before_its_time_ends_the_connection_and_spins_nothing() {
    let gateway = start(&[("limits.tls_handshake_ms", "500")]);
    let turns = gateway.metric("ringway_turns_total", "");
    for version in VERSIONS {
        let whole = Tls::connect(&gateway, version).records();
        let half = in_records_of(whole.len() / 2, &whole).swap_remove(0);
        // In place of the ClientHello; in the middle of it; in one segment with it; behind it.
        for bytes in [CLOSE_NOTIFY.to_vec(), [&half, CLOSE_NOTIFY].concat(), [&whole, CLOSE_NOTIFY].concat()] {
            let mut client = Tls::connect(&gateway, version);
            client.stream.write_all(&bytes).unwrap();
            client.ends();
        }
        let mut client = Tls::connect(&gateway, version);
        client.stream.write_all(&whole).unwrap();
        client.stream.read_exact(&mut [0; 1]).unwrap();
        client.stream.write_all(CLOSE_NOTIFY).unwrap();
        client.ends();
    }
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    let turned = gateway.metric("ringway_turns_total", "") - turns;
    assert!(turned < 1_000, "{turned} turns for ten connections that say nothing more");
    unharmed(&gateway);
}

/// A cut stream (no close_notify) and a cut record are an end, and the cut part is not taken for a message.
#[test]
fn a_truncated_stream_is_an_end_and_half_a_record_is_nothing() {
    let gateway = start(&[]);
    for version in VERSIONS {
        let mut client = Tls::connect(&gateway, version);
        client.enter("ana");
        let message = |id: &str| text(&json!({"type": "chat", "id": id, "session_id": "s", "payload": 1}).to_string());
        // Whole: taken. All but its last byte: nothing.
        client.tls.writer().write_all(&message(&format!("whole-{version:?}"))).unwrap();
        let whole = client.records();
        client.stream.write_all(&whole).unwrap();
        client.until("rw.ack");
        client.tls.writer().write_all(&message(&format!("cut-{version:?}"))).unwrap();
        let cut = client.records();
        client.stream.write_all(&cut[..cut.len() - 1]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.ends();

        // In the middle of the handshake.
        let mut client = Tls::connect(&gateway, version);
        let hello = client.records();
        client.stream.write_all(&hello[..hello.len() / 2]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.ends();

        // A close_notify where a close frame belongs: the end of what it says.
        let mut client = Tls::connect(&gateway, version);
        client.enter("ben");
        client.tls.send_close_notify();
        let goodbye = client.records();
        client.stream.write_all(&goodbye).unwrap();
        client.ends();
    }
    assert_eq!(gateway.metric("ringway_routed_total", ""), 2, "the whole ones");
    unharmed(&gateway);
}
