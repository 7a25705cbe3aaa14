//! The bodies of the records that are no messages: states of sessions and members, and how far the log is synced.
//!
//! All integers are little-endian; a text is a u16 of bytes and UTF-8; docs/log-format.md has every field. A state has exactly
//! one encoding: bytes left over, unknown or out of range are an error.

use super::record::get;
use crate::limits::EPOCHS_PER_SESSION_MAX;

/// The bits of a member's flags.
const PRESENT: u8 = 1;
const TOLD_LOST: u8 = 2;
const STAYS_FOLLOW: u8 = 4;
/// The length that stands for no presence data.
const NONE: u32 = u32::MAX;
/// `last_seq` of the current epoch.
const GOES_ON: u64 = u64::MAX;

/// A fault in a body, or in a state that should become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("{field}: the body ends at byte {at}, {need} more are needed")]
    Short { field: &'static str, at: usize, need: usize },
    #[error("{field}: the text at byte {at} is not UTF-8")]
    Text { field: &'static str, at: usize },
    #[error("{field}: {value} at byte {at} is not possible")]
    Value { field: &'static str, at: usize, value: u64 },
    #[error("{0} bytes follow the last field")]
    Rest(usize),
    #[error("{field}: {have} are more than the {max} that fit")]
    TooMany { field: &'static str, have: usize, max: usize },
}

/// Body of [`super::Kind::Mark`]: everything below this position was synced when the record was written. The position is the end
/// of a record, at most the mark's own position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub synced_to: u64,
}

/// Body of [`super::Kind::Receipt`]: the last `rw.received` of the header's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub received_seq: u64,
}

/// An epoch of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochState {
    pub name: u64,
    /// The last seq of it that survived; `None` for the current epoch.
    pub last_seq: Option<u64>,
}

/// Body of [`super::Kind::Session`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState<'a> {
    pub session_id: &'a str,
    /// The last seq that was assigned.
    pub head: u64,
    /// The first seq that is still held.
    pub oldest: u64,
    /// At most [`EPOCHS_PER_SESSION_MAX`], oldest first.
    pub epochs: Vec<EpochState>,
}

/// A member's stay in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StayState<'a> {
    /// The room's name; empty for a stay that has ended, for which the hash is enough.
    pub room: &'a str,
    /// Keyed hash of the room's address; 0 stands for forgotten stays, of any room.
    pub hash: u64,
    /// The first and last seq of the stay.
    pub from: u64,
    pub to: u64,
}

/// Body of [`super::Kind::Member`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberState<'a> {
    pub client_id: &'a str,
    /// Length of the prefix of `client_id` that is the token's `sub`.
    pub subject_bytes: u16,
    /// Keyed hash of the user's address.
    pub user: u64,
    /// `true` if the member was attached when this was written.
    pub present: bool,
    /// `true` if others have been told that it is gone.
    pub told_lost: bool,
    /// `true` if its stays are in the [`super::Stays`] right behind it: they replace all known stays when the last of them is
    /// read. Since version 2 no stays are in this record.
    pub stays_follow: bool,
    /// When the member first came, Unix ms.
    pub since_ms: u64,
    /// The durable cursor.
    pub received_seq: u64,
    /// The last seq that is hidden from the member.
    pub hidden_to: u64,
    /// Since when it is away, Unix ms; 0 while present.
    pub away_since_ms: u64,
    pub roles: Vec<&'a str>,
    pub stays: Vec<StayState<'a>>,
    /// The presence data, raw JSON.
    pub presence: Option<&'a str>,
}

/// Reads fields one after the other.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) const fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The offset of the next field.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    const fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], StateError> {
        if len > self.left() {
            return Err(StateError::Short { field, at: self.bytes.len(), need: len - self.left() });
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, StateError> {
        Ok(self.take(field, 1)?[0])
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(get(self.take(field, 2)?, 0)))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(get(self.take(field, 4)?, 0)))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(get(self.take(field, 8)?, 0)))
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, StateError> {
        let len = usize::from(self.u16(field)?);
        self.text_of(field, len)
    }

    fn text_of(&mut self, field: &'static str, len: usize) -> Result<&'a str, StateError> {
        let at = self.at;
        std::str::from_utf8(self.take(field, len)?).map_err(|_| StateError::Text { field, at })
    }

    /// An empty list with room for `count` items, as far as the remaining bytes could hold that many.
    pub(super) fn list<T>(&self, count: usize, bytes_min: usize) -> Vec<T> {
        Vec::with_capacity(count.min(self.left() / bytes_min))
    }

    pub(super) const fn end(&self) -> Result<(), StateError> {
        if self.left() > 0 { Err(StateError::Rest(self.left())) } else { Ok(()) }
    }
}

pub(super) fn count<N: TryFrom<usize>>(field: &'static str, have: usize, max: usize) -> Result<N, StateError> {
    let too_many = StateError::TooMany { field, have, max };
    if have > max { Err(too_many) } else { N::try_from(have).map_err(|_| too_many) }
}

pub(super) fn put_text(out: &mut Vec<u8>, field: &'static str, text: &str) -> Result<(), StateError> {
    let len: u16 = count(field, text.len(), usize::from(u16::MAX))?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

pub(super) fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

impl<'a> StayState<'a> {
    /// Appends the stay to a list.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        put_text(out, "room", self.room)?;
        put_u64s(out, &[self.hash, self.from, self.to]);
        Ok(())
    }

    /// Reads a stay from a list.
    pub(super) fn read(fields: &mut Fields<'a>) -> Result<Self, StateError> {
        let room = fields.text("room")?;
        Ok(Self { room, hash: fields.u64("room hash")?, from: fields.u64("stay from")?, to: fields.u64("stay to")? })
    }
}

impl Mark {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64s(out, &[self.synced_to]);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// If it does not have 8 bytes.
    pub fn decode(body: &[u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let mark = Self { synced_to: fields.u64("synced_to")? };
        fields.end()?;
        Ok(mark)
    }
}

impl Receipt {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64s(out, &[self.received_seq]);
    }

    /// Reads a body.
    ///
    /// # Errors
    /// If it does not have 8 bytes.
    pub fn decode(body: &[u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let receipt = Self { received_seq: fields.u64("received_seq")? };
        fields.end()?;
        Ok(receipt)
    }
}

/// Checks the body of a kind that has none: [`super::Kind::MemberGone`], [`super::Kind::SessionGone`].
///
/// # Errors
/// If there is a body.
pub const fn decode_empty(body: &[u8]) -> Result<(), StateError> {
    Fields::of(body).end()
}

impl<'a> SessionState<'a> {
    /// Appends the body.
    ///
    /// # Errors
    /// If a text or a list is longer than its length field, or there are more epochs than a session keeps; `out` then holds a
    /// part.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        put_text(out, "session_id", self.session_id)?;
        put_u64s(out, &[self.head, self.oldest]);
        out.push(count("epochs", self.epochs.len(), EPOCHS_PER_SESSION_MAX)?);
        for epoch in &self.epochs {
            put_u64s(out, &[epoch.name, epoch.last_seq.unwrap_or(GOES_ON)]);
        }
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let session_id = fields.text("session_id")?;
        let (head, oldest) = (fields.u64("head")?, fields.u64("oldest")?);
        let (at, have) = (fields.at, fields.u8("epochs")?);
        if usize::from(have) > EPOCHS_PER_SESSION_MAX {
            return Err(StateError::Value { field: "epochs", at, value: have.into() });
        }
        let mut epochs = fields.list(have.into(), 16);
        for _ in 0..have {
            let (name, last) = (fields.u64("epoch name")?, fields.u64("epoch last seq")?);
            epochs.push(EpochState { name, last_seq: (last != GOES_ON).then_some(last) });
        }
        fields.end()?;
        Ok(Self { session_id, head, oldest, epochs })
    }
}

impl<'a> MemberState<'a> {
    /// The member's user: the token's `sub`.
    #[must_use]
    pub fn subject(&self) -> &'a str {
        self.client_id.get(..usize::from(self.subject_bytes)).unwrap_or(self.client_id)
    }

    /// Appends the body.
    ///
    /// # Errors
    /// If a text or a list is longer than its length field, or `subject_bytes` is no place in `client_id`; `out` then holds a
    /// part.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        self.check_subject(out.len())?;
        put_text(out, "client_id", self.client_id)?;
        out.extend_from_slice(&self.subject_bytes.to_le_bytes());
        put_u64s(out, &[self.user]);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        out.push(flag(self.present, PRESENT) | flag(self.told_lost, TOLD_LOST) | flag(self.stays_follow, STAYS_FOLLOW));
        put_u64s(out, &[self.since_ms, self.received_seq, self.hidden_to, self.away_since_ms]);
        let roles: u16 = count("roles", self.roles.len(), usize::from(u16::MAX))?;
        out.extend_from_slice(&roles.to_le_bytes());
        for role in &self.roles {
            put_text(out, "role", role)?;
        }
        let stays: u16 = count("stays", self.stays.len(), usize::from(u16::MAX))?;
        out.extend_from_slice(&stays.to_le_bytes());
        for stay in &self.stays {
            stay.put(out)?;
        }
        let presence = self.presence.unwrap_or_default();
        let len = match self.presence {
            Some(text) => count("presence", text.len(), NONE as usize - 1)?,
            None => NONE,
        };
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(presence.as_bytes());
        Ok(())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, StateError> {
        let mut fields = Fields::of(body);
        let client_id = fields.text("client_id")?;
        let (subject_at, subject_bytes) = (fields.at, fields.u16("subject_bytes")?);
        let user = fields.u64("user")?;
        let (at, flags) = (fields.at, fields.u8("flags")?);
        if flags & !(PRESENT | TOLD_LOST | STAYS_FOLLOW) != 0 {
            return Err(StateError::Value { field: "flags", at, value: flags.into() });
        }
        let mut member = Self {
            client_id,
            subject_bytes,
            user,
            present: flags & PRESENT != 0,
            told_lost: flags & TOLD_LOST != 0,
            stays_follow: flags & STAYS_FOLLOW != 0,
            since_ms: fields.u64("since_ms")?,
            received_seq: fields.u64("received_seq")?,
            hidden_to: fields.u64("hidden_to")?,
            away_since_ms: fields.u64("away_since_ms")?,
            roles: Vec::new(),
            stays: Vec::new(),
            presence: None,
        };
        member.check_subject(subject_at)?;
        let roles = fields.u16("roles")?;
        member.roles = fields.list(roles.into(), 2);
        for _ in 0..roles {
            member.roles.push(fields.text("role")?);
        }
        let stays = fields.u16("stays")?;
        member.stays = fields.list(stays.into(), 26);
        for _ in 0..stays {
            member.stays.push(StayState::read(&mut fields)?);
        }
        let presence = fields.u32("presence")?;
        if presence != NONE {
            member.presence = Some(fields.text_of("presence", presence as usize)?);
        }
        fields.end()?;
        Ok(member)
    }

    fn check_subject(&self, at: usize) -> Result<(), StateError> {
        match self.client_id.get(..usize::from(self.subject_bytes)) {
            Some(_) => Ok(()),
            None => Err(StateError::Value { field: "subject_bytes", at, value: self.subject_bytes.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member() -> MemberState<'static> {
        MemberState {
            client_id: "zoë/laptop",
            subject_bytes: 4,
            user: 77,
            present: false,
            told_lost: true,
            stays_follow: true,
            since_ms: 1_790_000_000_000,
            received_seq: 12,
            hidden_to: 3,
            away_since_ms: 1_790_000_100_000,
            roles: vec!["agent", ""],
            stays: vec![
                StayState { room: "kitchen", hash: 5, from: 4, to: u64::MAX },
                StayState { room: "", hash: 6, from: 1, to: 2 },
            ],
            presence: Some("{\"mood\":\"ok\"}"),
        }
    }

    fn session(epochs: usize) -> SessionState<'static> {
        let epoch = |name| EpochState { name, last_seq: (name as usize + 1 < epochs).then_some(name * 10) };
        SessionState { session_id: "s-42", head: 900, oldest: 3, epochs: (0..epochs as u64).map(epoch).collect() }
    }

    fn bytes_of(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), StateError>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn states_read_back() {
        for member in [member(), MemberState { presence: None, roles: vec![], stays: vec![], ..member() }] {
            assert_eq!(MemberState::decode(&bytes_of(|out| member.encode(out))), Ok(member));
        }
        assert_eq!(member().subject(), "zoë");
        for epochs in [0, 1, EPOCHS_PER_SESSION_MAX] {
            let state = session(epochs);
            assert_eq!(SessionState::decode(&bytes_of(|out| state.encode(out))), Ok(state));
        }
        let mut bytes = Vec::new();
        Mark { synced_to: 8 }.encode(&mut bytes);
        assert_eq!(Mark::decode(&bytes), Ok(Mark { synced_to: 8 }));
        assert_eq!(Receipt::decode(&bytes), Ok(Receipt { received_seq: 8 }));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = bytes_of(|out| member().encode(out));
        for cut in 0..good.len() {
            assert!(matches!(MemberState::decode(&good[..cut]), Err(StateError::Short { .. })), "cut at {cut}");
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            MemberState::decode(&bytes).unwrap_err()
        };
        assert_eq!(MemberState::decode(&[&*good, b"x"].concat()), Err(StateError::Rest(1)));
        assert_eq!(changed(13, 3), StateError::Value { field: "subject_bytes", at: 13, value: 3 }, "inside a letter");
        assert_eq!(changed(14, 1), StateError::Value { field: "subject_bytes", at: 13, value: 260 });
        assert_eq!(changed(23, 8), StateError::Value { field: "flags", at: 23, value: 8 });
        assert_eq!(changed(2, 0xff), StateError::Text { field: "client_id", at: 2 });
        assert_eq!(decode_empty(&[1]), Err(StateError::Rest(1)));
        assert_eq!(Mark::decode(&[0; 9]), Err(StateError::Rest(1)));
        let mut many = bytes_of(|out| session(0).encode(out));
        *many.last_mut().unwrap() = 17;
        assert_eq!(SessionState::decode(&many), Err(StateError::Value { field: "epochs", at: 22, value: 17 }));
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let long = "x".repeat(65_536);
        let too_long = MemberState { client_id: &long, ..member() }.encode(&mut Vec::new());
        assert_eq!(too_long, Err(StateError::TooMany { field: "client_id", have: 65_536, max: 65_535 }));
        let epochs = session(EPOCHS_PER_SESSION_MAX + 1).encode(&mut Vec::new());
        assert_eq!(epochs, Err(StateError::TooMany { field: "epochs", have: 17, max: 16 }));
        assert!(MemberState { subject_bytes: 3, ..member() }.encode(&mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_state_of_those_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let mut near = bytes_of(|out| member().encode(out));
            let place = at.index(near.len());
            near[place] = byte;
            for bytes in [&bytes, &near] {
                if let Ok(member) = MemberState::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| member.encode(out)), bytes);
                }
                if let Ok(session) = SessionState::decode(bytes) {
                    prop_assert_eq!(&bytes_of(|out| session.encode(out)), bytes);
                }
            }
        }
    }
}
