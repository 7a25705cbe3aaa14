//! The tools that read and write messages, with their scratch memory. Each is lent for a call.

use crate::protocol::{CommandParser, Parser};
use crate::ws::deflate::{Deflater, Inflater};

/// See the module's text.
pub struct Codec {
    pub(in crate::shard) parser: Option<Box<Parser>>,
    pub(in crate::shard) commands: Option<Box<CommandParser>>,
    pub(in crate::shard) inflater: Inflater,
    pub(in crate::shard) deflater: Deflater,
    /// An inflated message.
    pub(in crate::shard) inflated: Vec<u8>,
    /// Decrypted bytes.
    pub(in crate::shard) plain: Vec<u8>,
    /// Scratch for a record's addresses.
    pub(in crate::shard) targets: Vec<u64>,
}

impl Default for Codec {
    fn default() -> Self {
        Self {
            parser: Some(Box::default()),
            commands: Some(Box::default()),
            inflater: Inflater::new(),
            deflater: Deflater::new(),
            inflated: Vec::new(),
            plain: Vec::new(),
            targets: Vec::new(),
        }
    }
}
