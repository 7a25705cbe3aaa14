//! A client's end of a connection: bytes to a socket and from it, through TLS where the world speaks it.

use super::net::Net;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

/// The world's certificate. Its signatures have one length, so that chance in TLS changes no trace.
pub const CERTIFICATE: &[u8] = include_bytes!("../../tests/data/tls/ed25519.cert.pem");
pub const KEY: &[u8] = include_bytes!("../../tests/data/tls/ed25519.key.pem");
/// Bytes the server's side may have unread.
pub const TO_SERVER_MAX: usize = 32 * 1024;

/// Takes any certificate whose key the server holds.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
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

fn secure() -> Box<ClientConnection> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
        let builder = builder.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
        Arc::new(builder.with_no_client_auth())
    });
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("gateway.test").unwrap()).unwrap();
    tls.set_buffer_limit(None);
    Box::new(tls)
}

/// Moves the first `count` bytes of a queue to the end of another, or of a vector: whole slices, not byte by byte.
pub fn shift<T: for<'a> Extend<&'a u8>>(from: &mut VecDeque<u8>, to: &mut T, count: usize) {
    let (front, back) = from.as_slices();
    let first = count.min(front.len());
    to.extend(&front[..first]);
    to.extend(&back[..count - first]);
    from.drain(..count);
}

/// The first `count` bytes of a queue, taken off it.
pub fn take(from: &mut VecDeque<u8>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    shift(from, &mut bytes, count);
    bytes
}

/// See the module's text.
#[derive(Debug)]
pub struct Pipe {
    pub socket: usize,
    /// Bytes that the client has to send, before TLS.
    pub tx: VecDeque<u8>,
    /// Bytes that it received, after TLS.
    pub rx: Vec<u8>,
    /// Bytes sent before everything that TLS covers: a PROXY header.
    ahead: VecDeque<u8>,
    tls: Option<Box<ClientConnection>>,
    /// `true` if its direction ends behind the bytes to be sent.
    pub ends: bool,
    cipher: VecDeque<u8>,
}

impl Pipe {
    pub fn new(socket: usize, tls: bool) -> Self {
        let tls = tls.then(secure);
        let (tx, ahead, cipher) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { socket, tx, rx: Vec::new(), ahead, tls, ends: false, cipher }
    }

    /// Has so much more to say.
    pub fn say(&mut self, bytes: Vec<u8>) {
        if self.tx.is_empty() && self.tx.capacity() < bytes.len() {
            self.tx = bytes.into();
        } else {
            self.tx.extend(bytes);
        }
    }

    /// Whether it could send.
    pub fn wants_push(&self, net: &Net) -> bool {
        let handshake = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let some = handshake
            || self.ends && !net.sockets[self.socket].client_fin
            || !self.tx.is_empty()
            || !self.cipher.is_empty()
            || !self.ahead.is_empty();
        some && net.sockets[self.socket].to_server.len() < TO_SERVER_MAX
    }

    /// Sends a part of what there is; whether that was anything.
    pub fn push(&mut self, net: &mut Net, random: u64) -> bool {
        let socket = &mut net.sockets[self.socket];
        if socket.client_fin || socket.client_reset {
            self.tx.clear();
            self.cipher.clear();
            self.ahead.clear();
            return false;
        }
        if let Some(tls) = &mut self.tls {
            let (front, back) = self.tx.as_slices();
            [front, back].iter().for_each(|part| tls.writer().write_all(part).unwrap());
            self.tx.clear();
            while tls.wants_write() {
                tls.write_tls(&mut self.cipher).unwrap();
            }
        }
        let from = match (&self.tls, self.ahead.is_empty()) {
            (_, false) => &mut self.ahead,
            (Some(_), true) => &mut self.cipher,
            (None, true) => &mut self.tx,
        };
        let most = from.len().min(TO_SERVER_MAX.saturating_sub(socket.to_server.len()));
        if most == 0 {
            return self.end(net);
        }
        let count = match random % 4 {
            0 => 1,
            1 => 1 + usize::try_from(random >> 8).unwrap() % most,
            _ => most,
        };
        shift(from, &mut socket.to_server, count);
        self.end(net);
        true
    }

    /// Ends the direction where that is wanted and all is sent; whether it did.
    fn end(&mut self, net: &mut Net) -> bool {
        let ends = self.ends && self.tx.is_empty() && self.cipher.is_empty() && self.ahead.is_empty();
        net.sockets[self.socket].client_fin |= ends;
        ends
    }

    /// Takes up to `most` bytes off the socket.
    pub fn pull(&mut self, net: &mut Net, most: usize) -> Result<(), String> {
        let arrived = &mut net.sockets[self.socket].to_client;
        let Some(tls) = &mut self.tls else {
            shift(arrived, &mut self.rx, most);
            return Ok(());
        };
        let bytes = take(arrived, most);
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).map_err(|error| error.to_string())?;
            tls.process_new_packets().map_err(|error| error.to_string())?;
            let mut plain = [0; 4096];
            while let Ok(count @ 1..) = tls.reader().read(&mut plain) {
                self.rx.extend(&plain[..count]);
            }
        }
        Ok(())
    }

    pub fn without_tls(self) -> Self {
        Self { tls: None, ..self }
    }

    /// Says who is behind the proxy that this connection comes through.
    pub fn put_ahead(&mut self, header: &[u8]) {
        self.ahead.extend(header);
    }
}
