//! RFC 6455 and RFC 7692 as bytes: frames in, frames out, nothing of HTTP and nothing of what a message means.
//!
//! May import the vocabulary (`buffers`, `close`, `limits`). Pure: bytes are lent, buffers come from a pool that is handed in.
//!
//! Invariants:
//! - Any split of the same bytes gives the same items, and the same error at the same place.
//! - Nothing is allocated from a declared length; a refusal by size is decided from the frame's head.
//! - A connection between messages owns no buffer and no codec: the pool and the codecs are the shard's.

pub mod decoder;
pub mod deflate;
pub mod encoder;
pub mod utf8;

/// The frame opcodes of RFC 6455 section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}
