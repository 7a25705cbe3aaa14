//! TLS over bytes in memory (rustls, sans-IO): ciphertext in, plaintext out, and the reverse into a bounded buffer.
//!
//! TLS 1.2 (ECDHE with AEAD) and 1.3, ALPN `http/1.1` only, no 0-RTT, no renegotiation, no client certificates, and no
//! resumption: its caches are locks that all shards share, and its tickets read a clock. Randomness is the one thing that
//! rustls takes for itself. Buffers are lent for a call; a connection without a partial record or unsent ciphertext has none after it.
//! rustls itself allocates one vector for each record: what it encrypts into (`PrefixedPayload`), what it copies plaintext to
//! (`take_received_plaintext`).

use crate::buffers::Buffers;
use crate::limits::{TLS_PENDING_BYTES_MAX, TLS_RECORD_BYTES_MAX};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, ServerConnectionData, UnbufferedServerConnection};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, WriteTraffic};
use rustls::{InconsistentKeys, ServerConfig, version};
use std::fmt;
use std::sync::Arc;

/// Largest plaintext of one record (RFC 8446 5.1).
const FRAGMENT_BYTES_MAX: usize = 16 * 1024;
/// Bytes that a record adds: header, explicit nonce, content type, tag; at most 29 (RFC 5288 with TLS 1.2).
const RECORD_OVERHEAD_BYTES: usize = 32;
/// Parts below half of this are gathered into one record, which costs a copy and saves an encryption.
const GATHER_BYTES: usize = 4 * 1024;
/// Alerts and key updates may go beyond the bound on pending ciphertext by this much.
const CONTROL_RESERVE_BYTES: usize = 1024;
/// Steps from any state to the one in which it may write: an answer to encode, to transmit, the peer's close.
const WRITE_STEPS_MAX: usize = 8;

/// A certificate or key that cannot be used. The text says what the file should hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsConfigError {
    /// No certificate in the file.
    #[error(
        "the certificate file holds no certificate: it needs PEM blocks `-----BEGIN CERTIFICATE-----`, the server's own first"
    )]
    NoCertificate,
    /// A block that is no PEM, or no X.509 certificate.
    #[error("certificate {index} of the certificate file is broken: export the chain again as PEM")]
    BadCertificate {
        /// The block's place in the file, from 1.
        index: usize,
    },
    /// No key in the file.
    #[error("the key file holds no private key: it needs one PEM block `-----BEGIN PRIVATE KEY-----` (PKCS#8, PKCS#1 or SEC 1)")]
    NoKey,
    /// An encrypted key.
    #[error("the private key is encrypted: decrypt it with `openssl pkcs8 -in FILE -out PLAIN` and guard the file with its mode")]
    EncryptedKey,
    /// A key that the library does not support.
    #[error(
        "the private key is broken or of a kind that is not supported: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    BadKey,
    /// A certificate and a key that do not match.
    #[error(
        "the private key does not belong to the first certificate of the certificate file: put the server's own certificate first"
    )]
    Mismatch,
}

/// The reason why a TLS connection ends. An alert for the peer, if there is one to send, is in [`TlsConnection::pending`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// The peer violated the protocol, or asks for a feature that is not offered.
    #[error("TLS failed: {0}")]
    Protocol(#[from] rustls::Error),
    /// A record or handshake message over the bound.
    #[error("TLS failed: an unfinished handshake message is larger than {TLS_RECORD_BYTES_MAX} bytes")]
    TooLarge,
    /// The peer makes the gateway write and does not read.
    #[error("TLS failed: the peer asks for answers and does not take them")]
    NotTaken,
    /// The connection had failed before.
    #[error("TLS failed before")]
    AlreadyFailed,
}

/// No enabled feature needs the time: it would date tickets, stored sessions and client certificates.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::ZERO))
    }
}

/// A certificate chain with its key, ready for connections. Immutable: a reload makes a new one, connections keep theirs.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsServer").finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Reads the text of the certificate file and of the key file.
    ///
    /// # Errors
    /// The mistake, and which of the two files has it.
    pub fn new(certificates_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsConfigError> {
        let certified = CertifiedKey::new(chain_of(certificates_pem)?, key_of(key_pem)?);
        let provider = default_provider();
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsConfigError::Mismatch,
            rustls::Error::InconsistentKeys(_) => TlsConfigError::BadKey,
            _ => TlsConfigError::BadCertificate { index: 1 },
        })?;
        let mut config = ServerConfig::builder_with_details(Arc::new(provider), Arc::new(NoClock))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .expect("the default provider has suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config) })
    }

    /// The state of a newly accepted socket.
    ///
    /// # Errors
    /// [`TlsError::Protocol`] if the operating system gives no random bytes.
    pub fn accept(&self) -> Result<TlsConnection, TlsError> {
        Ok(TlsConnection {
            connection: UnbufferedServerConnection::new(Arc::clone(&self.config))?,
            incoming: Vec::new(),
            pending: Vec::new(),
            pending_sent: 0,
            peer_closed: false,
            close_queued: false,
            failed: false,
        })
    }
}

/// Checks a certificate file by itself.
///
/// # Errors
/// [`TlsConfigError::NoCertificate`], [`TlsConfigError::BadCertificate`].
pub fn check_certificates(certificates_pem: &[u8]) -> Result<(), TlsConfigError> {
    chain_of(certificates_pem).map(|_| ())
}

/// Checks a key file by itself.
///
/// # Errors
/// [`TlsConfigError::NoKey`], [`TlsConfigError::EncryptedKey`], [`TlsConfigError::BadKey`].
pub fn check_key(key_pem: &[u8]) -> Result<(), TlsConfigError> {
    key_of(key_pem).map(|_| ())
}

fn chain_of(certificates_pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let mut chain = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(certificates_pem).enumerate() {
        chain.push(certificate.map_err(|_| TlsConfigError::BadCertificate { index: index + 1 })?);
    }
    if chain.is_empty() { Err(TlsConfigError::NoCertificate) } else { Ok(chain) }
}

fn key_of(key_pem: &[u8]) -> Result<Arc<dyn SigningKey>, TlsConfigError> {
    let holds = |mark: &[u8]| key_pem.windows(mark.len()).any(|window| window == mark);
    if holds(ENCRYPTED_MARK) || holds(ENCRYPTED_MARK_OLD) {
        return Err(TlsConfigError::EncryptedKey);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsConfigError::NoKey)?;
    default_provider().key_provider.load_private_key(key).map_err(|_| TlsConfigError::BadKey)
}

const ENCRYPTED_MARK: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
const ENCRYPTED_MARK_OLD: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// The result of [`TlsConnection::receive`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the ciphertext that were processed; the rest must be given again.
    pub consumed: usize,
    /// `true` if it stopped at the limit: call again, with the rest of the ciphertext or with nothing.
    pub more: bool,
    /// `true` if the peer sent close_notify: nothing more comes from it.
    pub closed: bool,
}

/// The TLS state of one socket. It may move to another thread, as its socket may.
pub struct TlsConnection {
    connection: UnbufferedServerConnection,
    /// A partial record, or a handshake message of which some records have arrived.
    incoming: Vec<u8>,
    pending: Vec<u8>,
    pending_sent: usize,
    peer_closed: bool,
    close_queued: bool,
    failed: bool,
}

const _: () = {
    const fn crosses_threads<T: Send>() {}
    crosses_threads::<TlsConnection>();
};

impl fmt::Debug for TlsConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TlsConnection")
            .field("handshaking", &self.handshaking())
            .field("incoming_bytes", &self.incoming.len())
            .field("pending_bytes", &self.pending().len())
            .finish_non_exhaustive()
    }
}

struct Step {
    discard: usize,
    full: bool,
}

impl TlsConnection {
    /// Returns `true` until application data can flow.
    #[must_use]
    pub fn handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes ciphertext, in place, and adds plaintext to `plain`: whole records, until `limit` bytes or more were added (up
    /// to [`TLS_RECORD_BYTES_MAX`] more). Answers of the handshake go to [`TlsConnection::pending`].
    ///
    /// # Errors
    /// The connection is over; send what is pending, an alert, and close.
    pub fn receive(&mut self, ciphertext: &mut [u8], plain: &mut Vec<u8>, limit: usize) -> Result<Received, TlsError> {
        if self.failed {
            return Err(TlsError::AlreadyFailed);
        }
        self.compact();
        let result = self.receive_all(ciphertext, plain, plain.len().saturating_add(limit.max(1)));
        if result.is_err() {
            self.failed = true;
            self.incoming = Vec::new();
        }
        result
    }

    fn receive_all(&mut self, ciphertext: &mut [u8], plain: &mut Vec<u8>, plain_bytes: usize) -> Result<Received, TlsError> {
        let mut consumed = 0;
        loop {
            if self.peer_closed {
                // Bytes after a close_notify must be ignored (RFC 8446 6.1).
                self.incoming.clear();
                return Ok(Received { consumed: ciphertext.len(), more: false, closed: true });
            }
            if plain.len() >= plain_bytes {
                return Ok(Received { consumed, more: consumed < ciphertext.len(), closed: false });
            }
            let rest = &mut ciphertext[consumed..];
            if self.incoming.is_empty() {
                let step = self.process(rest, plain, plain_bytes)?;
                consumed += step.discard;
                if !step.full && !self.peer_closed {
                    self.keep(&ciphertext[consumed..])?;
                    return Ok(Received { consumed: ciphertext.len(), more: false, closed: false });
                }
                continue;
            }
            let taken = TLS_RECORD_BYTES_MAX.saturating_sub(self.incoming.len()).min(rest.len());
            let mut incoming = std::mem::take(&mut self.incoming);
            incoming.extend_from_slice(&rest[..taken]);
            consumed += taken;
            // Without the limit: the kept bytes must hold no whole record, and they are few.
            let step = self.process(&mut incoming, plain, usize::MAX)?;
            incoming.drain(..step.discard);
            self.incoming = incoming;
            if self.peer_closed {
                continue;
            }
            if consumed == ciphertext.len() {
                return Ok(Received { consumed, more: false, closed: false });
            }
            if step.discard == 0 {
                return Err(TlsError::TooLarge);
            }
        }
    }

    fn keep(&mut self, partial: &[u8]) -> Result<(), TlsError> {
        if partial.len() > TLS_RECORD_BYTES_MAX {
            return Err(TlsError::TooLarge);
        }
        self.incoming.extend_from_slice(partial);
        Ok(())
    }

    /// Runs the state machine over a buffer until it wants more bytes, or enough plaintext has come.
    fn process(&mut self, buffer: &mut [u8], plain: &mut Vec<u8>, plain_bytes: usize) -> Result<Step, TlsError> {
        let mut discard = 0;
        loop {
            if plain.len() >= plain_bytes {
                return Ok(Step { discard, full: true });
            }
            let status = self.connection.process_tls_records(&mut buffer[discard..]);
            let mut done = status.discard;
            let mut wants_more = false;
            let state = match status.state {
                Ok(state) => state,
                Err(error) => {
                    queue_alert(&mut self.connection, &mut buffer[discard + done..], &mut self.pending);
                    return Err(error.into());
                }
            };
            match state {
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record?;
                        plain.extend_from_slice(record.payload);
                        done += record.discard;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, &mut self.pending, TLS_PENDING_BYTES_MAX + CONTROL_RESERVE_BYTES)?;
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.peer_closed = true;
                    wants_more = true;
                }
                // The handshake waits, or traffic flows and no whole record is left. Early data is never accepted.
                _ => wants_more = true,
            }
            discard += done;
            if wants_more {
                return Ok(Step { discard, full: false });
            }
        }
    }

    /// Encrypts a prefix of the parts, in order, as far as there is room. Returns the bytes of plaintext taken. They count as
    /// sent from then on: encrypted bytes must go out, in this order.
    pub fn encrypt(&mut self, plaintext: &[&[u8]]) -> usize {
        if self.failed || self.close_queued || self.handshaking() {
            return 0;
        }
        self.compact();
        let mut accepted = 0;
        let mut gathered = [0; GATHER_BYTES];
        let mut used = 0;
        for part in plaintext {
            if used > 0 && used + part.len() > GATHER_BYTES {
                let taken = self.seal(&gathered[..used]);
                accepted += taken;
                if taken < used {
                    return accepted;
                }
                used = 0;
            }
            if part.len() < GATHER_BYTES / 2 {
                gathered[used..used + part.len()].copy_from_slice(part);
                used += part.len();
                continue;
            }
            if used > 0 {
                let taken = self.seal(&gathered[..used]);
                accepted += taken;
                if taken < used {
                    return accepted;
                }
                used = 0;
            }
            let taken = self.seal(part);
            accepted += taken;
            if taken < part.len() {
                return accepted;
            }
        }
        accepted + self.seal(&gathered[..used])
    }

    /// Ciphertext that waits for the socket.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.pending[self.pending_sent..]
    }

    /// The socket took `bytes` of [`TlsConnection::pending`].
    pub fn sent(&mut self, bytes: usize) {
        self.pending_sent = (self.pending_sent + bytes).min(self.pending.len());
        if self.pending_sent == self.pending.len() {
            self.pending.clear();
            self.pending_sent = 0;
        }
    }

    /// Lends the connection buffers, before it receives or encrypts. Without them it allocates.
    pub fn lend(&mut self, buffers: &mut Buffers) {
        buffers.lend(&mut self.incoming);
        buffers.lend(&mut self.pending);
    }

    /// Takes back the buffers that are empty.
    pub fn reclaim(&mut self, buffers: &mut Buffers) {
        for buffer in [&mut self.incoming, &mut self.pending] {
            if buffer.is_empty() {
                buffers.give(std::mem::take(buffer));
            }
        }
    }

    /// Bytes of plaintext for which [`TlsConnection::encrypt`] has room.
    #[must_use]
    pub fn room(&self) -> usize {
        TLS_PENDING_BYTES_MAX.saturating_sub(self.pending().len() + RECORD_OVERHEAD_BYTES)
    }

    /// Queues a close_notify behind what is pending; nothing is encrypted after it. During the handshake there is none to send.
    pub fn close(&mut self) {
        if self.close_queued || self.failed {
            return;
        }
        self.close_queued = true;
        self.compact();
        with_write(&mut self.connection, &mut self.incoming, &mut self.pending, |traffic, pending| {
            grow(pending, RECORD_OVERHEAD_BYTES * 2, |room| traffic.queue_close_notify(room))
        });
    }

    /// Moves the unsent bytes to the front, so that the bound counts them alone.
    fn compact(&mut self) {
        if self.pending_sent > 0 {
            self.pending.drain(..self.pending_sent);
            self.pending_sent = 0;
        }
    }

    /// Encrypts a prefix of the bytes into records.
    fn seal(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let mut taken = 0;
        with_write(&mut self.connection, &mut self.incoming, &mut self.pending, |traffic, pending| {
            while taken < bytes.len() {
                let room = TLS_PENDING_BYTES_MAX.saturating_sub(pending.len() + RECORD_OVERHEAD_BYTES);
                let fragment = (bytes.len() - taken).min(FRAGMENT_BYTES_MAX).min(room);
                let part = &bytes[taken..taken + fragment];
                if fragment == 0 || !grow(pending, fragment + RECORD_OVERHEAD_BYTES, |room| traffic.encrypt(part, room)) {
                    return false;
                }
                taken += fragment;
            }
            true
        });
        taken
    }
}

/// Queues the alert that rustls has ready after an error, perhaps behind a flight. Ready output comes before rustls looks at the
/// input; asked once too often it would find the same error again.
fn queue_alert(connection: &mut UnbufferedServerConnection, buffer: &mut [u8], pending: &mut Vec<u8>) {
    while connection.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(buffer).state else { return };
        if encode(&mut data, pending, TLS_PENDING_BYTES_MAX + 2 * CONTROL_RESERVE_BYTES).is_err() {
            // Without room for the alert, the peer sees only the end of the stream.
            return;
        }
    }
}

/// Brings the connection to a state in which it may write, and lets it. rustls remembers places in the kept input, and panics if
/// it is called without that input, for example after one record of a handshake message.
fn with_write(
    connection: &mut UnbufferedServerConnection,
    incoming: &mut Vec<u8>,
    pending: &mut Vec<u8>,
    write: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut Vec<u8>) -> bool,
) -> bool {
    for _ in 0..WRITE_STEPS_MAX {
        let status = connection.process_tls_records(incoming);
        let discard = status.discard;
        match status.state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let written = write(&mut traffic, pending);
                incoming.drain(..discard);
                return written;
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if encode(&mut data, pending, TLS_PENDING_BYTES_MAX + CONTROL_RESERVE_BYTES).is_err() {
                    return false;
                }
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(ConnectionState::PeerClosed) => {}
            Ok(_) | Err(_) => return false,
        }
        incoming.drain(..discard);
    }
    false
}

/// Adds the bytes that `fill` writes into `bytes_max` fresh bytes at the end, or into as many as it says it needs.
fn grow(pending: &mut Vec<u8>, bytes_max: usize, mut fill: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>) -> bool {
    let start = pending.len();
    let mut room = bytes_max;
    for _ in 0..2 {
        pending.resize(start + room, 0);
        match fill(&mut pending[start..]) {
            Ok(written) => {
                pending.truncate(start + written);
                return true;
            }
            // A key update precedes the record with which it is due.
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size <= bytes_max + CONTROL_RESERVE_BYTES =>
            {
                room = required_size;
            }
            Err(_) => break,
        }
    }
    pending.truncate(start);
    false
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, pending: &mut Vec<u8>, bytes_max: usize) -> Result<(), TlsError> {
    let start = pending.len();
    // Called with no room, it says how much it needs.
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) else { return Ok(()) };
    if start + required_size > bytes_max {
        return Err(TlsError::NotTaken);
    }
    pending.resize(start + required_size, 0);
    let written = data.encode(&mut pending[start..]).unwrap_or(0);
    pending.truncate(start + written);
    Ok(())
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
