//! Identifiers shared by the stages, and the keyed hash that names things without their text.
//!
//! May import nothing of the crate. Pure.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::{BuildHasher, Hasher};

/// A socket on one shard, from accept to close. The generation makes a reused slot a different connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub index: u32,
    pub generation: u32,
}

impl ConnId {
    /// The id packed in 64 bits, as it travels through a ring's `user_data`.
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The reverse of [`ConnId::pack`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what pack put there")]
    pub const fn unpack(packed: u64) -> Self {
        Self { index: packed as u32, generation: (packed >> 32) as u32 }
    }
}

/// Returns `true` if a session's or a channel's id is reserved for the gateway (protocol.md section 3): no client may enter such
/// a session. A reserved name alone makes no session the gateway's.
#[must_use]
pub fn is_own_session(session_id: &str) -> bool {
    session_id.strip_prefix("channel:").unwrap_or(session_id).starts_with("rw.")
}

/// Returns `true` if a room's name is reserved for the gateway.
#[must_use]
pub fn is_own_room(room: &str) -> bool {
    room.starts_with("rw:")
}

/// The key of every hash over text that clients choose. Random per process; fixed in the simulator and in benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl HashKey {
    /// SipHash-1-3 with 128 bits (Aumasson and Bernstein 2012) of length-prefixed parts, so that no two lists of parts
    /// share an input.
    #[must_use]
    pub fn hash128(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        for part in parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }

    /// The low 64 bits of [`HashKey::hash128`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    pub fn hash64(&self, parts: &[&[u8]]) -> u64 {
        self.hash128(parts) as u64
    }

    /// The home shard of a session among `shards` (at least 1).
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below shards")]
    pub fn home_shard(&self, session_id: &str, shards: usize) -> usize {
        (self.hash64(&[b"home", session_id.as_bytes()]) % shards.max(1) as u64) as usize
    }
}

impl BuildHasher for HashKey {
    type Hasher = siphasher::sip::SipHasher13;

    fn build_hasher(&self) -> Self::Hasher {
        siphasher::sip::SipHasher13::new_with_key(&self.0)
    }
}

/// A map whose keys an attacker may choose. Its order is never used to produce output.
pub type Map<K, V> = hashbrown::HashMap<K, V, HashKey>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conn_id_survives_packing() {
        let id = ConnId { index: 7, generation: u32::MAX };
        assert_eq!(ConnId::unpack(id.pack()), id);
    }

    #[test]
    fn parts_are_length_prefixed() {
        let key = HashKey([3; 16]);
        assert_ne!(key.hash128(&[b"ab", b"c"]), key.hash128(&[b"a", b"bc"]));
    }
}
