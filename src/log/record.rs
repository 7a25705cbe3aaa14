//! The layout of a record, byte by byte. All integers are little-endian.
//!
//! ```text
//!  0  u16  version (2)              36  u16  addresses (n)
//!  2  u8   kind (see [`Kind`])      38  u16  key id, 0 = clear (reserved for encryption at rest)
//!  3  u8   flags, 0                 40  u64  ts, Unix ms
//!  4  u32  record length            48  u64  sender, keyed hash of the client; 0 = the gateway
//!  8  u32  body length              56  u64  keyed hash of (client, id)
//! 12  u32  CRC32C of the body       64  u128 keyed hash of (type, to, payload)
//! 16  u64  keyed hash of session    80  u32  chain: CRC32C of the previous record's chain and bytes 0 to 80 and the addresses
//! 24  u64  seq                      84  u32  0
//! 32  u32  epoch                    88  n × u64 addresses (none: the whole session), then the body
//! ```
//!
//! Of a message that was purged, and of a member's state with presence data, the body is zeros and the bytes 84 to 88 are "GONE"; all
//! else is as it was written.
//!
//! A message's body is one WebSocket frame; those of the other kinds are in `state.rs` and `facts.rs`. Records of version 1 are read too: they
//! have kinds 1 to 8, of which a Member is a member's whole state. What must be 0 is checked to be 0, so that every
//! bit of a record is covered by a check. docs/log-format.md is the whole format. The chain covers headers, which hold their body's CRC, and never a body: a purge may zero bodies and the chain still holds.

use super::state::MemberState;

/// The version that this code writes; it reads all from 1 on.
pub const VERSION: u16 = 2;
/// The last kind that version 1 has.
const VERSION_1_KIND_MAX: u8 = Kind::Purge as u8;
/// Bytes of a header before its addresses.
pub const HEADER_BYTES: usize = 88;
/// Offset, not covered by the chain, at which a purged message is marked, and the mark.
const PURGED_AT: usize = 84;
const PURGED: [u8; 4] = *b"GONE";

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message; its body is the outgoing frame.
    Message = 1,
    /// How far the log is synced ([`super::Mark`]); belongs to no session.
    Mark = 2,
    /// A session's state ([`super::SessionState`]).
    Session = 3,
    /// A member's state ([`super::MemberState`]): of a new member, or repeated before the file that has it is deleted.
    Member = 4,
    /// The end of a membership. No body.
    MemberGone = 5,
    /// A member's durable cursor ([`super::Receipt`]).
    Receipt = 6,
    /// The end of a session, which was forgotten. No body.
    SessionGone = 7,
    /// All messages of the session before this record, and its members' presence data, are purged. No body.
    Purge = 8,
    /// A member's entry into a room ([`super::Joined`]).
    Joined = 9,
    /// A member's departure from a room ([`super::Left`]).
    Left = 10,
    /// A member is attached again. No body.
    Came = 11,
    /// A member is away ([`super::Went`]).
    Went = 12,
    /// A member's roles ([`super::Roles`]).
    Roles = 13,
    /// A member's presence data (`rw.presence.set`): raw JSON.
    Presence = 14,
    /// A part of a member's stays in rooms, repeated ([`super::Stays`]).
    Stays = 15,
    /// A session's next epoch ([`super::NextEpoch`]).
    Epoch = 16,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Message,
        Self::Mark,
        Self::Session,
        Self::Member,
        Self::MemberGone,
        Self::Receipt,
        Self::SessionGone,
        Self::Purge,
        Self::Joined,
        Self::Left,
        Self::Came,
        Self::Went,
        Self::Roles,
        Self::Presence,
        Self::Stays,
        Self::Epoch,
    ];

    /// The name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Mark => "mark",
            Self::Session => "session",
            Self::Member => "member",
            Self::MemberGone => "member_gone",
            Self::Receipt => "receipt",
            Self::SessionGone => "session_gone",
            Self::Purge => "purge",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Came => "came",
            Self::Went => "went",
            Self::Roles => "roles",
            Self::Presence => "presence",
            Self::Stays => "stays",
            Self::Epoch => "epoch",
        }
    }

    /// The kind of that number; `None` if there is none.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Keyed hash of the session's id.
    pub session: u64,
    pub seq: u64,
    /// The number of the session's epoch, from 0.
    pub epoch: u32,
    /// Unix milliseconds.
    pub ts_ms: u64,
    /// Keyed hash of the sender's client id; 0 for the gateway.
    pub sender: u64,
    /// Keyed hash of (client, id).
    pub id: u64,
    /// Keyed hash of (type, to, payload).
    pub content: u128,
}

/// A fault in bytes that should be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record is cut short: {have} bytes of {need}")]
    Short { have: usize, need: usize },
    #[error("record version {0} is not one this gateway reads (it reads 1 to {VERSION})")]
    Version(u16),
    #[error("record kind {0} is unknown")]
    Kind(u8),
    #[error("the record's lengths contradict each other")]
    Lengths,
    #[error("the record's bytes at {0} must be 0")]
    NotZero(usize),
    #[error("the record's body does not match its checksum")]
    Body,
    #[error("the record does not continue the chain")]
    Chain,
    #[error("the record was purged, which only the chain can prove")]
    Purged,
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

pub(super) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

/// The chain value of a header (with its addresses) after `previous`.
fn chain(previous: u32, head: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(previous, &head[..80]);
    crc32c::crc32c_append(crc, &head[HEADER_BYTES..])
}

impl Header {
    /// Writes header and addresses before a body that is at the end of `record` already. Returns the new chain value. `record` is
    /// header, addresses and body in full.
    pub(super) fn seal(&self, record: &mut [u8], addresses: &[u64], previous_chain: u32) -> u32 {
        self.seal_as(VERSION, record, addresses, previous_chain)
    }

    /// Seals a record of an earlier version.
    #[expect(clippy::cast_possible_truncation, reason = "a record is smaller than a chunk (limits.rs), addresses are at most 32")]
    fn seal_as(&self, version: u16, record: &mut [u8], addresses: &[u64], previous_chain: u32) -> u32 {
        let head_bytes = HEADER_BYTES + 8 * addresses.len();
        let (length, body_crc) = (record.len(), crc32c::crc32c(&record[head_bytes..]));
        put(record, 0, version.to_le_bytes());
        put(record, 2, [self.kind as u8]);
        put(record, 3, [0]);
        put(record, 4, (length as u32).to_le_bytes());
        put(record, 8, ((length - head_bytes) as u32).to_le_bytes());
        put(record, 12, body_crc.to_le_bytes());
        put(record, 16, self.session.to_le_bytes());
        put(record, 24, self.seq.to_le_bytes());
        put(record, 32, self.epoch.to_le_bytes());
        put(record, 36, (addresses.len() as u16).to_le_bytes());
        put(record, 38, [0; 2]);
        put(record, 40, self.ts_ms.to_le_bytes());
        put(record, 48, self.sender.to_le_bytes());
        put(record, 56, self.id.to_le_bytes());
        put(record, 64, self.content.to_le_bytes());
        for (index, address) in addresses.iter().enumerate() {
            put(record, HEADER_BYTES + 8 * index, address.to_le_bytes());
        }
        let value = chain(previous_chain, &record[..head_bytes]);
        put(record, 80, value.to_le_bytes());
        put(record, 84, [0; 4]);
        value
    }
}

/// A record as read: its header, its addresses (8 bytes each, little-endian), its body, its chain value and its whole length.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// 1, or [`VERSION`].
    pub version: u16,
    pub header: Header,
    /// All bytes before the body.
    pub head: &'a [u8],
    pub addresses: &'a [u8],
    pub body: &'a [u8],
    pub chain: u32,
    pub length: usize,
    /// `true` if the record was purged: its body is zeros.
    pub purged: bool,
}

/// Reads the record at the start of `bytes`, checks its body's CRC and, where `previous_chain` is given, its place in the chain.
///
/// # Errors
/// See [`RecordError`].
pub fn read_record(bytes: &[u8], previous_chain: Option<u32>) -> Result<Record<'_>, RecordError> {
    if bytes.len() < HEADER_BYTES {
        return Err(RecordError::Short { have: bytes.len(), need: HEADER_BYTES });
    }
    let (kind, head_bytes, length) = shape(bytes)?;
    let purged = says_purged(kind, bytes)?;
    if bytes.len() < length {
        return Err(RecordError::Short { have: bytes.len(), need: length });
    }
    let body = &bytes[head_bytes..length];
    if purged {
        if body.iter().any(|byte| *byte != 0) {
            return Err(RecordError::Body);
        }
        // Nothing but the chain says that the header is right.
        previous_chain.ok_or(RecordError::Purged)?;
    } else if crc32c::crc32c(body) != u32::from_le_bytes(get(bytes, 12)) {
        return Err(RecordError::Body);
    }
    let stated = u32::from_le_bytes(get(bytes, 80));
    if previous_chain.is_some_and(|previous| chain(previous, &bytes[..head_bytes]) != stated) {
        return Err(RecordError::Chain);
    }
    let header = header(kind, bytes);
    let (head, addresses) = (&bytes[..head_bytes], &bytes[HEADER_BYTES..head_bytes]);
    Ok(Record { version: version_of(bytes), header, head, addresses, body, chain: stated, length, purged })
}

/// The record at the start of `bytes` if its kind can be purged and it continues the chain, whatever its body is: its purge may
/// have stopped half way.
pub(super) fn read_half_purged(bytes: &[u8], previous_chain: u32) -> Option<Record<'_>> {
    let (kind, head_bytes, length) = shape(bytes.get(..HEADER_BYTES)?).ok()?;
    let (head, body) = (bytes.get(..head_bytes)?, bytes.get(head_bytes..length)?);
    let value = chain(previous_chain, head);
    (is_purgeable(kind) && value == u32::from_le_bytes(get(bytes, 80))).then(|| Record {
        version: version_of(bytes),
        header: header(kind, bytes),
        head,
        addresses: &head[HEADER_BYTES..],
        body,
        chain: value,
        length,
        purged: true,
    })
}

/// Returns `true` for kinds that a purge removes: messages and presence data.
const fn is_purgeable(kind: Kind) -> bool {
    matches!(kind, Kind::Message | Kind::Member | Kind::Presence)
}

/// Returns `true` if a record is marked as purged.
fn says_purged(kind: Kind, bytes: &[u8]) -> Result<bool, RecordError> {
    match get(bytes, PURGED_AT) {
        [0, 0, 0, 0] => Ok(false),
        PURGED if is_purgeable(kind) => Ok(true),
        _ => Err(RecordError::NotZero(PURGED_AT)),
    }
}

/// Zeros the bodies of a session's messages before `end`, and of its members' states with presence data, in a part of a segment
/// that begins with a record or with the segment's header. Reports which bytes have changed, and whether they belonged to a
/// message. Before the purge is recorded, those members' states must have been written again, without the data; `keeps` returns
/// `true` (by the hash of the member) if that was not done.
///
/// # Errors
/// A record that does not read; the bytes behind it were not examined.
pub fn purge(
    bytes: &mut [u8],
    end: usize,
    session: u64,
    is_first: bool,
    keeps: &dyn Fn(u64) -> bool,
    each: &mut dyn FnMut(std::ops::Range<usize>, bool),
) -> Result<(), RecordError> {
    let end = end.min(bytes.len());
    let mut at = if is_first { super::segment::SEGMENT_HEADER_BYTES } else { 0 };
    while at < end && bytes[at..end].iter().take(2).any(|byte| *byte != 0) {
        let left = &mut bytes[at..];
        let short = |have| RecordError::Short { have, need: HEADER_BYTES };
        let (kind, head_bytes, length) = shape(left.get(..HEADER_BYTES).ok_or_else(|| short(left.len()))?)?;
        let record = left.get_mut(..length).ok_or_else(|| short(length))?;
        let of_session = u64::from_le_bytes(get(record, 16)) == session;
        let is_purged = get(record, PURGED_AT) == PURGED;
        let is_done = is_purged && record[head_bytes..].iter().all(|byte| *byte == 0);
        // A record that does not read may be half purged already.
        let goes = of_session
            && !is_done
            && match kind {
                Kind::Message | Kind::Presence => true,
                Kind::Member if keeps(u64::from_le_bytes(get(record, 48))) => false,
                Kind::Member => {
                    let body = &record[head_bytes..];
                    let is_whole = !is_purged && crc32c::crc32c(body) == u32::from_le_bytes(get(record, 12));
                    !is_whole || MemberState::decode(body).is_ok_and(|member| member.presence.is_some())
                }
                _ => false,
            };
        if goes {
            put(record, PURGED_AT, PURGED);
            record[head_bytes..].fill(0);
            each(at + PURGED_AT..at + length, kind == Kind::Message);
        }
        at += length;
    }
    Ok(())
}

/// Kind, bytes before the body and whole length of a record, whether or not it was purged. `bytes` holds a header at least.
fn shape(bytes: &[u8]) -> Result<(Kind, usize, usize), RecordError> {
    let version = version_of(bytes);
    if !(1..=VERSION).contains(&version) {
        return Err(RecordError::Version(version));
    }
    let is_known = version > 1 || bytes[2] <= VERSION_1_KIND_MAX;
    let kind = Kind::from_number(bytes[2]).filter(|_| is_known).ok_or(RecordError::Kind(bytes[2]))?;
    let length = u32::from_le_bytes(get(bytes, 4)) as usize;
    let body_bytes = u32::from_le_bytes(get(bytes, 8)) as usize;
    let head_bytes = HEADER_BYTES + 8 * usize::from(u16::from_le_bytes(get(bytes, 36)));
    if head_bytes.checked_add(body_bytes) != Some(length) {
        return Err(RecordError::Lengths);
    }
    for (at, len) in [(3, 1), (38, 2)] {
        if bytes[at..at + len].iter().any(|byte| *byte != 0) {
            return Err(RecordError::NotZero(at));
        }
    }
    Ok((kind, head_bytes, length))
}

fn version_of(bytes: &[u8]) -> u16 {
    u16::from_le_bytes(get(bytes, 0))
}

fn header(kind: Kind, bytes: &[u8]) -> Header {
    Header {
        kind,
        session: u64::from_le_bytes(get(bytes, 16)),
        seq: u64::from_le_bytes(get(bytes, 24)),
        epoch: u32::from_le_bytes(get(bytes, 32)),
        ts_ms: u64::from_le_bytes(get(bytes, 40)),
        sender: u64::from_le_bytes(get(bytes, 48)),
        id: u64::from_le_bytes(get(bytes, 56)),
        content: u128::from_le_bytes(get(bytes, 64)),
    }
}

/// The header at the start of `bytes` if it continues the chain, whatever its body is: identifies a damaged record.
pub(super) fn header_in_chain(bytes: &[u8], previous_chain: u32) -> Option<Header> {
    let (kind, head_bytes, _) = shape(bytes.get(..HEADER_BYTES)?).ok()?;
    says_purged(kind, bytes).ok()?;
    let head = bytes.get(..head_bytes)?;
    (chain(previous_chain, head) == u32::from_le_bytes(get(bytes, 80))).then(|| header(kind, bytes))
}

/// Behind a record that does not read: its length, where that is sure, and the chain values that the next one may continue. Either the
/// value that it states is damaged, or the head that another value comes of.
pub(super) fn behind_damaged(bytes: &[u8], previous_chain: u32) -> Option<(usize, [u32; 2])> {
    let (_, head_bytes, length) = shape(bytes.get(..HEADER_BYTES)?).ok()?;
    let (head, body) = (bytes.get(..head_bytes)?, bytes.get(head_bytes..length)?);
    let (stated, found) = (u32::from_le_bytes(get(bytes, 80)), chain(previous_chain, head));
    let is_sure = stated == found || crc32c::crc32c(body) == u32::from_le_bytes(get(bytes, 12));
    is_sure.then_some((length, [stated, found]))
}

/// The length that the record at the start of `bytes` states, right or wrong.
pub(super) fn stated_length(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= HEADER_BYTES).then(|| u32::from_le_bytes(get(bytes, 4)) as usize)
}

/// Appends a whole record to `out` and returns the new chain value. For files that are not made by a shard, which uses
/// [`super::Log::append`].
pub fn write_record(out: &mut Vec<u8>, header: &Header, addresses: &[u64], body: &[u8], previous_chain: u32) -> u32 {
    let start = out.len();
    out.resize(start + HEADER_BYTES + 8 * addresses.len(), 0);
    out.extend_from_slice(body);
    header.seal(&mut out[start..], addresses, previous_chain)
}

/// [`write_record`] as an earlier version wrote it, for tests that read its files.
#[cfg(test)]
pub(super) fn write_record_as(
    version: u16,
    out: &mut Vec<u8>,
    header: &Header,
    addresses: &[u64],
    body: &[u8],
    previous_chain: u32,
) -> u32 {
    let start = out.len();
    out.resize(start + HEADER_BYTES + 8 * addresses.len(), 0);
    out.extend_from_slice(body);
    header.seal_as(version, &mut out[start..], addresses, previous_chain)
}
