//! The header and name of a segment. All integers are little-endian.
//!
//! ```text
//!  0  8 bytes  magic "RWSEG\0\0\1"        32  u64  created, Unix ms
//!  8  u16      version (2)                40  u32  chain of the last record before this segment; 0 for the first
//! 10  u16      shard                      44  16 bytes, 0
//! 12  u32      generation                 60  u32  CRC32C of bytes 0 to 60; the first record's chain goes on from it
//! 16  u64      number                     64  the first record
//! 24  u64      segment bytes
//! ```
//!
//! Segment n holds the positions from n × segment bytes on; a position's place in the file is its remainder.

use super::chunks::Position;
use super::record::{get, put};
use crate::limits::CHUNK_BYTES;

/// The version that this code writes; it reads all from 1 on.
pub const SEGMENT_VERSION: u16 = 2;
/// Bytes of a segment's header; its first record starts there.
pub const SEGMENT_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"RWSEG\0\0\x01";

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// [`SEGMENT_VERSION`], or an earlier one.
    pub version: u16,
    pub shard: u16,
    pub generation: u32,
    /// The segment's number within its shard and generation, from 0.
    pub number: u64,
    /// Positions a segment covers: a multiple of [`CHUNK_BYTES`], the same for all of a generation.
    pub segment_bytes: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// The chain value of the last record before this segment; 0 if there was none.
    pub chain_before: u32,
}

/// A fault in bytes that should be a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("the segment's header is cut short: {0} bytes of {SEGMENT_HEADER_BYTES}")]
    Short(usize),
    #[error("the segment's header was never written: its bytes are 0")]
    Unwritten,
    #[error("this is no segment: its first 8 bytes are not those that a segment begins with")]
    Magic,
    #[error("segment version {0} is not one this gateway reads (it reads 1 to {SEGMENT_VERSION})")]
    Version(u16),
    #[error("the segment's header does not match its checksum")]
    Checksum,
    #[error("the segment's header has other bytes than 0 where 0 must be (44 to 60)")]
    NotZero,
    #[error("segments of {0} bytes: must be a multiple of {CHUNK_BYTES} and not 0")]
    SegmentBytes(u64),
    #[error("segment number {0} lies beyond the last position")]
    Number(u64),
}

impl SegmentError {
    /// Returns `true` if an unfinished write may leave this, unless something else proves otherwise.
    #[must_use]
    pub const fn may_be_torn(self) -> bool {
        matches!(self, Self::Short(_) | Self::Unwritten | Self::Checksum)
    }
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, self.version.to_le_bytes());
        put(&mut bytes, 10, self.shard.to_le_bytes());
        put(&mut bytes, 12, self.generation.to_le_bytes());
        put(&mut bytes, 16, self.number.to_le_bytes());
        put(&mut bytes, 24, self.segment_bytes.to_le_bytes());
        put(&mut bytes, 32, self.created_ms.to_le_bytes());
        put(&mut bytes, 40, self.chain_before.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        put(&mut bytes, 60, crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// See [`SegmentError`]. Another version is distinguished from a torn write even if the checksum does not match, since that
    /// may be elsewhere there: such a file is never cut.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentError> {
        let Some(bytes) = bytes.get(..SEGMENT_HEADER_BYTES) else { return Err(SegmentError::Short(bytes.len())) };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(SegmentError::Unwritten);
        }
        // A torn write leaves the beginning, and 0 behind it.
        if bytes[..8].iter().zip(MAGIC).any(|(byte, right)| *byte != right && *byte != 0) {
            return Err(SegmentError::Magic);
        }
        let version = u16::from_le_bytes(get(bytes, 8));
        if version > SEGMENT_VERSION {
            return Err(SegmentError::Version(version));
        }
        if crc32c::crc32c(&bytes[..60]) != u32::from_le_bytes(get(bytes, 60)) {
            return Err(SegmentError::Checksum);
        }
        if bytes[..8] != MAGIC {
            return Err(SegmentError::Magic);
        }
        if version == 0 {
            return Err(SegmentError::Version(version));
        }
        if bytes[44..60].iter().any(|byte| *byte != 0) {
            return Err(SegmentError::NotZero);
        }
        let header = Self {
            version,
            shard: u16::from_le_bytes(get(bytes, 10)),
            generation: u32::from_le_bytes(get(bytes, 12)),
            number: u64::from_le_bytes(get(bytes, 16)),
            segment_bytes: u64::from_le_bytes(get(bytes, 24)),
            created_ms: u64::from_le_bytes(get(bytes, 32)),
            chain_before: u32::from_le_bytes(get(bytes, 40)),
        };
        if header.segment_bytes == 0 || !header.segment_bytes.is_multiple_of(CHUNK_BYTES as u64) {
            return Err(SegmentError::SegmentBytes(header.segment_bytes));
        }
        if header.number.checked_add(1).and_then(|next| next.checked_mul(header.segment_bytes)).is_none() {
            return Err(SegmentError::Number(header.number));
        }
        Ok(header)
    }

    /// The value from which the chain of the segment's first record continues.
    #[must_use]
    pub fn chain_start(&self) -> u32 {
        u32::from_le_bytes(get(&self.encode(), 60))
    }

    /// The position of the segment's first byte, which is the header's.
    #[must_use]
    pub const fn start(&self) -> Position {
        Position(self.number * self.segment_bytes)
    }
}

/// A segment's file name: its number as 16 hexadecimal digits, and `.seg`.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

/// The number in a segment's file name; `None` if the name is no segment's.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        version: SEGMENT_VERSION,
        shard: 3,
        generation: 2,
        number: 7,
        segment_bytes: 64 * 1024 * 1024,
        created_ms: 1_790_000_000_000,
        chain_before: 0xdead_beef,
    };

    #[test]
    fn a_header_reads_back_and_every_flipped_bit_is_found() {
        let bytes = HEADER.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(HEADER));
        for bit in 0..8 * SEGMENT_HEADER_BYTES {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn each_mistake_has_its_error() {
        let sealed = |change: &dyn Fn(&mut [u8; SEGMENT_HEADER_BYTES])| {
            let mut bytes = HEADER.encode();
            change(&mut bytes);
            let crc = crc32c::crc32c(&bytes[..60]);
            put(&mut bytes, 60, crc.to_le_bytes());
            SegmentHeader::decode(&bytes).unwrap_err()
        };
        assert_eq!(SegmentHeader::decode(&HEADER.encode()[..63]), Err(SegmentError::Short(63)));
        assert_eq!(SegmentHeader::decode(&[0; 64]), Err(SegmentError::Unwritten));
        assert_eq!(sealed(&|bytes| bytes[0] = b'X'), SegmentError::Magic);
        assert_eq!(sealed(&|bytes| bytes[0] = 0), SegmentError::Magic);
        assert_eq!(sealed(&|bytes| bytes[8] = 3), SegmentError::Version(3));
        assert_eq!(sealed(&|bytes| bytes[8] = 0), SegmentError::Version(0));
        assert_eq!(sealed(&|bytes| bytes[50] = 1), SegmentError::NotZero);
        assert_eq!(sealed(&|bytes| put(bytes, 24, 0u64.to_le_bytes())), SegmentError::SegmentBytes(0));
        assert_eq!(sealed(&|bytes| put(bytes, 24, 4096u64.to_le_bytes())), SegmentError::SegmentBytes(4096));
        assert_eq!(sealed(&|bytes| put(bytes, 16, u64::MAX.to_le_bytes())), SegmentError::Number(u64::MAX));
        let mut torn = HEADER.encode();
        torn[20..].fill(0);
        assert_eq!(SegmentHeader::decode(&torn), Err(SegmentError::Checksum), "half a header is torn, not another version");
        torn[8] = 9;
        assert_eq!(
            SegmentHeader::decode(&torn),
            Err(SegmentError::Version(9)),
            "a later version is never taken for a torn header"
        );
    }

    #[test]
    fn names_have_sixteen_digits() {
        assert_eq!(segment_name(0x2a), "000000000000002a.seg");
        assert_eq!(segment_number("000000000000002a.seg"), Some(0x2a));
        assert_eq!(segment_number("ffffffffffffffff.seg"), Some(u64::MAX));
        for name in
            ["2a.seg", "000000000000002A.seg", "000000000000002a", "000000000000002a.seg~", "+00000000000002a.seg", ".seg"]
        {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
