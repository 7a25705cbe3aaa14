//! A connection before WebSocket: who it is from (PROXY protocol, trusted proxies), and the HTTP/1.1 head that asks for the upgrade.
//!
//! May import the vocabulary (`limits`). Pure: bytes in, a verdict out.
//!
//! Invariants:
//! - Each byte is scanned once as it arrives and parsed once when the head is whole; any split of the bytes gives the same verdict.
//! - Every refusal is a complete HTTP response that closes, so that a second request on the connection is never handled.
//! - What a client says of its own address counts only where the peer is a configured proxy.

pub mod http;
pub mod origin;
pub mod probe;
pub mod proxy;
pub mod refusal;
pub mod tls;
pub mod upgrade;
