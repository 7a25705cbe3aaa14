//! With lent buffers TLS allocates nothing of its own: rustls makes one vector for each record, in either direction.

#[path = "support/counting.rs"]
mod counting;

use counting::allocations;
use ringway::buffers::Buffers;
use ringway::net::tls::{TlsConnection, TlsServer};
use std::io::{Read, Write};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const CERTIFICATE: &[u8] = include_bytes!("data/tls/localhost.cert.pem");
const KEY: &[u8] = include_bytes!("data/tls/localhost.key.pem");
const MESSAGE: [u8; 1_000] = [7; 1_000];
const MESSAGES: u64 = 500;

fn client(version: &'static SupportedProtocolVersion) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version the provider has")
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").expect("a name")).expect("a client")
}

/// The bytes that the client has to send.
fn output(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory takes all");
    }
    bytes
}

/// Hands the client what waits for it.
fn deliver(server: &mut TlsConnection, client: &mut ClientConnection) {
    let mut bytes = server.pending();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory gives all");
        client.process_new_packets().expect("good TLS");
    }
    server.sent(server.pending().len());
}

/// Receives as a shard does: lends buffers, receives in two pieces, so that a record waits for its rest, and takes the buffers
/// back.
fn receive(server: &mut TlsConnection, buffers: &mut Buffers, bytes: &mut [u8], plain: &mut Vec<u8>) {
    let (first, second) = bytes.split_at_mut(bytes.len() / 2);
    for part in [first, second] {
        server.lend(buffers);
        let received = server.receive(part, plain, usize::MAX).expect("good TLS");
        assert_eq!((received.consumed, received.more), (part.len(), false));
        server.reclaim(buffers);
    }
}

fn check(version: &'static SupportedProtocolVersion) {
    let mut server = TlsServer::new(CERTIFICATE, KEY).expect("a pair").accept().expect("random bytes");
    let (mut client, mut buffers) = (client(version), Buffers::new(8, 1 << 20, 1 << 20));
    let mut plain = Vec::with_capacity(64 * 1024);
    while server.handshaking() || client.is_handshaking() || client.wants_write() {
        receive(&mut server, &mut buffers, &mut output(&mut client), &mut plain);
        deliver(&mut server, &mut client);
    }
    let (mut encrypted, mut decrypted, mut got) = (0, 0, [0; 2 * MESSAGE.len()]);
    for number in 0..2 * MESSAGES {
        client.writer().write_all(&MESSAGE).expect("room");
        let mut bytes = output(&mut client);
        plain.clear();
        let inward = allocations(|| receive(&mut server, &mut buffers, &mut bytes, &mut plain));
        assert!(plain == MESSAGE);
        let outward = allocations(|| {
            server.lend(&mut buffers);
            assert_eq!(server.encrypt(&[&MESSAGE]), MESSAGE.len());
        });
        deliver(&mut server, &mut client);
        let afterwards = allocations(|| server.reclaim(&mut buffers));
        assert_eq!(client.reader().read(&mut got).expect("plaintext"), MESSAGE.len());
        if number >= MESSAGES {
            (encrypted, decrypted) = (encrypted + outward + afterwards, decrypted + inward);
        }
    }
    assert_eq!((encrypted, decrypted), (MESSAGES, MESSAGES), "for {MESSAGES} records each way");
}

#[test]
fn with_either_version() {
    check(&version::TLS13);
    check(&version::TLS12);
}
