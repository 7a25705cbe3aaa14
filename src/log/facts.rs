//! The bodies of records that each hold one fact about a member or a session, and of those that repeat a member's stays in parts.
//! Small, and bounded by construction: a client's action costs a record of about its own length.
//!
//! Encoding and errors as in `state.rs`; docs/log-format.md has every field.

use super::record::HEADER_BYTES;
use super::segment::SEGMENT_HEADER_BYTES;
use super::state::{Fields, StateError, StayState, count, put_text, put_u64s};
use crate::limits::{
    ADDRESSES_MAX, CHUNK_BYTES, CLIENT_TAIL_BYTES_MAX, ENVELOPE_ADDED_BYTES_MAX, EPOCHS_PER_SESSION_MAX, MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX, PRESENCE_DATA_BYTES_MAX, STATE_RECORD_BYTES_MAX, STAYS_PER_RECORD_MAX, SUBJECT_BYTES_MAX, TOKEN_ROLES_MAX,
};

/// The only flag of [`Went`].
const TOLD: u8 = 1;

/// Body of [`super::Kind::Joined`]: the header's sender is in a room from a place in the order on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    pub room: &'a str,
    /// The first seq of the stay.
    pub from: u64,
}

/// Body of [`super::Kind::Left`]: the header's sender is in a room up to a place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left<'a> {
    pub room: &'a str,
    /// The last seq of the stay.
    pub to: u64,
}

/// Body of [`super::Kind::Went`]: the header's sender is not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Went {
    /// `true` if others were told that it is gone.
    pub told_lost: bool,
    /// Since when it is away, Unix ms.
    pub since_ms: u64,
}

/// Body of [`super::Kind::Roles`]: the new roles of the header's sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles<'a> {
    pub roles: Vec<&'a str>,
}

/// Body of [`super::Kind::Stays`]: stays of the header's sender, announced by its Member record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stays<'a> {
    /// Number of Stays records that follow this one: the last has 0.
    pub left: u16,
    /// At most [`STAYS_PER_RECORD_MAX`].
    pub stays: Vec<StayState<'a>>,
}

/// Body of [`super::Kind::Epoch`]: the epoch with the header's number begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextEpoch {
    pub name: u64,
    /// The last seq of the previous epoch that survived.
    pub last_seq: u64,
}

// A record of state is bounded by the limits on client data, however often a client acts: none reaches a chunk's length.
const CLIENT_BYTES: usize = 2 + SUBJECT_BYTES_MAX + 1 + CLIENT_TAIL_BYTES_MAX;
const NAME_BYTES: usize = 2 + NAME_BYTES_MAX;
const ROLES_BYTES: usize = 2 + TOKEN_ROLES_MAX * NAME_BYTES;
const MEMBER_BYTES: usize = CLIENT_BYTES + 2 + 8 + 1 + 4 * 8 + ROLES_BYTES + 2 + 4 + PRESENCE_DATA_BYTES_MAX;
const STAYS_BYTES: usize = 2 + 2 + STAYS_PER_RECORD_MAX * (NAME_BYTES + 3 * 8);
const SESSION_BYTES: usize = NAME_BYTES + 2 * 8 + 1 + EPOCHS_PER_SESSION_MAX * 16;
const _: () = assert!(HEADER_BYTES + MEMBER_BYTES <= STATE_RECORD_BYTES_MAX);
const _: () = assert!(HEADER_BYTES + STAYS_BYTES <= STATE_RECORD_BYTES_MAX);
const _: () = assert!(HEADER_BYTES + SESSION_BYTES <= STATE_RECORD_BYTES_MAX);
const _: () = assert!(HEADER_BYTES + NAME_BYTES + 8 <= STATE_RECORD_BYTES_MAX);
// State records and messages fit a chunk, so no client can violate the assertion in `Log::append`.
const _: () = assert!(STATE_RECORD_BYTES_MAX <= CHUNK_BYTES - SEGMENT_HEADER_BYTES);
const _: () = assert!(
    HEADER_BYTES + 8 * ADDRESSES_MAX + 10 + MESSAGE_BYTES_MAX + NAME_BYTES_MAX + ENVELOPE_ADDED_BYTES_MAX
        <= CHUNK_BYTES - SEGMENT_HEADER_BYTES
);

impl<'a> Joined<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// If the name is longer than its length field.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        put_text(out, "room", self.room)?;
        put_u64s(out, &[self.from]);
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let joined = Self { room: fields.text("room")?, from: fields.u64("stay from")? };
        fields.end()?;
        Ok(joined)
    }
}

impl<'a> Left<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// If the name is longer than its length field.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        put_text(out, "room", self.room)?;
        put_u64s(out, &[self.to]);
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let left = Self { room: fields.text("room")?, to: fields.u64("stay to")? };
        fields.end()?;
        Ok(left)
    }
}

impl Went {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(if self.told_lost { TOLD } else { 0 });
        put_u64s(out, &[self.since_ms]);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &[u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let flags = fields.u8("flags")?;
        if flags & !TOLD != 0 {
            return Err(StateError::Value { field: "flags", at: 0, value: flags.into() });
        }
        let went = Self { told_lost: flags & TOLD != 0, since_ms: fields.u64("since_ms")? };
        fields.end()?;
        Ok(went)
    }
}

impl<'a> Roles<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// If a list or a name is longer than its length field.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        let roles: u16 = count("roles", self.roles.len(), usize::from(u16::MAX))?;
        out.extend_from_slice(&roles.to_le_bytes());
        self.roles.iter().try_for_each(|role| put_text(out, "role", role))
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let have = fields.u16("roles")?;
        let mut roles = fields.list(have.into(), 2);
        for _ in 0..have {
            roles.push(fields.text("role")?);
        }
        fields.end()?;
        Ok(Self { roles })
    }
}

impl<'a> Stays<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// If there are more stays than a record holds, or a name is longer than its length field.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        let stays: u16 = count("stays", self.stays.len(), STAYS_PER_RECORD_MAX)?;
        out.extend_from_slice(&self.left.to_le_bytes());
        out.extend_from_slice(&stays.to_le_bytes());
        self.stays.iter().try_for_each(|stay| stay.put(out))
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let left = fields.u16("records left")?;
        let (at, have) = (fields.at(), fields.u16("stays")?);
        if usize::from(have) > STAYS_PER_RECORD_MAX {
            return Err(StateError::Value { field: "stays", at, value: have.into() });
        }
        let mut stays = fields.list(have.into(), 26);
        for _ in 0..have {
            stays.push(StayState::read(&mut fields)?);
        }
        fields.end()?;
        Ok(Self { left, stays })
    }
}

impl NextEpoch {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64s(out, &[self.name, self.last_seq]);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// If it does not have 16 bytes.
    pub fn decode(body: &[u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let epoch = Self { name: fields.u64("epoch name")?, last_seq: fields.u64("epoch last seq")? };
        fields.end()?;
        Ok(epoch)
    }
}

/// Reads the body of a [`super::Kind::Presence`]: a member's presence data, raw JSON.
///
/// # Errors
/// If it is not UTF-8.
pub fn decode_presence(body: &[u8]) -> Result<&str, StateError> {
    std::str::from_utf8(body).map_err(|_| StateError::Text { field: "presence", at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), StateError>) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out).unwrap();
        out
    }

    fn stays(count: usize) -> Stays<'static> {
        let stay = |from: u64| StayState { room: if from == 1 { "ops" } else { "" }, hash: 7, from, to: from + 1 };
        Stays { left: 2, stays: (1..=count as u64).map(stay).collect() }
    }

    #[test]
    fn facts_read_back() {
        let joined = Joined { room: "zoë", from: 4 };
        assert_eq!(Joined::decode(&bytes_of(|out| joined.encode(out))), Ok(joined));
        let left = Left { room: "ops", to: 4 };
        assert_eq!(Left::decode(&bytes_of(|out| left.encode(out))), Ok(left));
        for went in [Went { told_lost: true, since_ms: 5 }, Went { told_lost: false, since_ms: u64::MAX }] {
            let bytes = bytes_of(|out| {
                went.encode(out);
                Ok(())
            });
            assert_eq!(Went::decode(&bytes), Ok(went));
        }
        for roles in [vec![], vec!["agent", "lead"]] {
            let roles = Roles { roles };
            assert_eq!(Roles::decode(&bytes_of(|out| roles.encode(out))), Ok(roles));
        }
        for count in [0, 1, STAYS_PER_RECORD_MAX] {
            assert_eq!(Stays::decode(&bytes_of(|out| stays(count).encode(out))), Ok(stays(count)));
        }
        let epoch = NextEpoch { name: 3, last_seq: 8 };
        let bytes = bytes_of(|out| {
            epoch.encode(out);
            Ok(())
        });
        assert_eq!(NextEpoch::decode(&bytes), Ok(epoch));
        assert_eq!(decode_presence(b"{}"), Ok("{}"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let too_many = stays(STAYS_PER_RECORD_MAX + 1).encode(&mut Vec::new());
        assert!(matches!(too_many, Err(StateError::TooMany { field: "stays", .. })), "{too_many:?}");
        let mut many = bytes_of(|out| stays(1).encode(out));
        many[2..4].copy_from_slice(&(STAYS_PER_RECORD_MAX as u16 + 1).to_le_bytes());
        assert!(matches!(Stays::decode(&many), Err(StateError::Value { field: "stays", at: 2, .. })));
        assert_eq!(Went::decode(&[2; 9]), Err(StateError::Value { field: "flags", at: 0, value: 2 }));
        assert_eq!(NextEpoch::decode(&[0; 17]), Err(StateError::Rest(1)));
        assert!(decode_presence(&[0xff]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_fact_of_those_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let mut near = bytes_of(|out| stays(2).encode(out));
            let place = at.index(near.len());
            near[place] = byte;
            for bytes in [&bytes, &near] {
                if let Ok(fact) = Joined::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| fact.encode(out)), bytes);
                }
                if let Ok(fact) = Left::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| fact.encode(out)), bytes);
                }
                if let Ok(fact) = Roles::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| fact.encode(out)), bytes);
                }
                if let Ok(fact) = Stays::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| fact.encode(out)), bytes);
                }
            }
        }
    }
}
