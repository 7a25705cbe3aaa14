//! Every fixed bound, related to the others by const assertions. Bounds that an operator may set are in `config`, with their
//! defaults here.
//!
//! May import nothing. Pure. Sections are those of docs/protocol.md.

/// A message's bytes, after reassembly and inflation (protocol.md section 2).
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Fragments of one message, empty ones included (section 2).
pub const FRAGMENTS_MAX: u32 = 64;
/// Longest time for an unfinished message (section 2).
pub const MESSAGE_UNFINISHED_MS_MAX: u64 = 10_000;
/// `/v1/echo`: largest message, for conformance suites. Autobahn's 9.* send 16 MiB.
pub const ECHO_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// `/v1/echo`: fragments of one message.
pub const ECHO_FRAGMENTS_MAX: u32 = 65_536;
/// JSON nesting of an envelope, the envelope's own object included (section 2).
pub const JSON_DEPTH_MAX: u32 = 64;
/// Bytes of `type` (section 2).
pub const TYPE_BYTES_MAX: usize = 64;
/// Bytes of `id`, and of `reply_to` (section 2).
pub const MESSAGE_ID_BYTES_MAX: usize = 128;
/// Bytes of `session_id`, and of names of rooms, roles, intents and channels (sections 2 and 6).
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a `client_id`'s tail; a `client_id` is `sub`, or `sub/` and a tail (section 4).
pub const CLIENT_TAIL_BYTES_MAX: usize = 64;
/// Bytes of a token's `sub`.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Bytes of `meta` (section 2).
pub const META_BYTES_MAX: usize = 2 * 1024;
/// Bytes of `traceparent` (section 2): 55 in version 00, and room for a later version's additions.
pub const TRACEPARENT_BYTES_MAX: usize = 128;
/// Addresses in `to` (section 2).
pub const ADDRESSES_MAX: usize = 32;
/// Rooms a client may be in (section 6).
pub const ROOMS_PER_CLIENT_MAX: usize = 128;
/// Ids of a client in a session's idempotency window (section 5), whatever the settings say; and ids of a shard's posts to
/// channels.
pub const DEDUPE_IDS_MAX: usize = 1_000_000;
/// Bytes of presence data (section 6).
pub const PRESENCE_DATA_BYTES_MAX: usize = 1024;
/// Members of a session (section 3).
pub const MEMBERS_PER_SESSION_MAX: usize = 10_000;
/// Members on a page of `rw.members` (section 6).
pub const MEMBERS_PAGE_MAX: usize = 500;
/// Members on a page of `rw.members` if no limit is named.
pub const MEMBERS_PAGE_DEFAULT: usize = 100;
/// Messages on a page of `rw.history` if no limit is named.
pub const HISTORY_PAGE_DEFAULT: usize = 100;
/// Features a hello may name (section 4).
pub const FEATURES_MAX: usize = 64;
/// Messages, and bytes, on a page of `rw.history` (section 6).
pub const HISTORY_PAGE_MAX: usize = 1_000;
/// See [`HISTORY_PAGE_MAX`].
pub const HISTORY_PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// A token's lifetime, `exp` less `iat`, if nothing else is configured.
pub const TOKEN_LIFETIME_S_MAX: u64 = 24 * 60 * 60;
/// Patterns in a token's `sid`.
pub const TOKEN_SESSIONS_MAX: usize = 64;
/// Names in a token's `roles`.
pub const TOKEN_ROLES_MAX: usize = 32;
/// Methods in a token's `amr` (RFC 8176).
pub const TOKEN_METHODS_MAX: usize = 16;
/// Bytes of a token's `scope`.
pub const TOKEN_SCOPE_BYTES_MAX: usize = 1024;
/// Bytes of a token's `jti`.
pub const TOKEN_ID_BYTES_MAX: usize = 128;
/// Bytes of a key's id, `kid`.
pub const KEY_ID_BYTES_MAX: usize = 64;
/// Keys that are valid at the same time.
pub const KEYS_MAX: usize = 64;
/// Bytes of an HMAC secret, at least (RFC 7518 3.2: as long as the hash).
pub const HMAC_SECRET_BYTES_MIN: usize = 32;
/// Bits of an RSA modulus, at least (RFC 7518 3.3).
pub const RSA_BITS_MIN: u32 = 2048;
/// Revoked tokens and users that a node remembers.
pub const REVOCATIONS_MAX: usize = 100_000;
/// The largest TLS record (RFC 5246 6.2.3: 2^14 and 2,048 of expansion, after a header of 5).
pub const TLS_RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2048;
/// Bytes of ciphertext that wait for a socket.
pub const TLS_PENDING_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a control frame's payload (RFC 6455 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// Bytes of the HTTP request line, bytes of the whole head, and its count of headers.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// See [`REQUEST_LINE_BYTES_MAX`].
pub const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// See [`REQUEST_LINE_BYTES_MAX`].
pub const REQUEST_HEADERS_MAX: usize = 100;
/// Epochs that a session remembers.
pub const EPOCHS_PER_SESSION_MAX: usize = 16;
/// Bytes of a record of the log that is no message: a state, a fact, a part of a member's stays.
pub const STATE_RECORD_BYTES_MAX: usize = 24 * 1024;
/// Stays in rooms that one such record holds.
pub const STAYS_PER_RECORD_MAX: usize = 128;
/// Stays of one member that have ended and that retained messages still need: in one room, and in all. Above this the oldest is
/// forgotten.
pub const ENDED_STAYS_PER_ROOM_MAX: usize = 32;
/// See [`ENDED_STAYS_PER_ROOM_MAX`].
pub const ENDED_STAYS_PER_MEMBER_MAX: usize = 256;
/// Answers to `rw.presence.set` of one member that may wait for a record.
pub const ANSWERS_WAITING_MAX: usize = 16;
/// A chunk of the log in memory. A record never spans two.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes one read of the log on disk may ask for.
pub const READ_BACK_BYTES_MAX: usize = CHUNK_BYTES;
/// Reads of the log on disk that a shard has under way; their buffers are kept, so this bounds their memory too.
pub const READ_BACKS_MAX: usize = 16;
/// Writes, and syncs, that a shard has given to the threads of the portable engine; others wait.
pub const DISK_REQUESTS_MAX: usize = 16;
/// Segments of a shard being made or deleted at a time.
pub const SEGMENT_REQUESTS_MAX: usize = 16;
/// Sends of a turn before it lets events in again.
pub const SENDS_PER_TURN_MAX: usize = 1024;
/// Longest time for which unsent data may wait for its turn before senders are held.
pub const UNSENT_AGE_MS_MAX: u64 = 500;
/// Bytes of frames that one send may take from the log.
pub const SEND_BYTES_MAX: usize = 128 * 1024;
/// Slices of one scattered send.
pub const SEND_PARTS_MAX: usize = 16;
/// TCP_NOTSENT_LOWAT: unsent bytes that the kernel may hold for one socket.
pub const NOT_SENT_LOWAT_BYTES: u32 = 128 * 1024;

/// Percentage of a shard's places for connections without a welcome that only an address without any there may take.
pub const HALF_OPEN_RESERVE_PERCENT: usize = 25;
/// Connections of a shard that are over a bound and wait for their refusal; a further one closes the oldest.
pub const TURNED_AWAY_MAX: usize = 64;
/// Log lines of a shard, per second, about connections that it turns away.
pub const TURNED_AWAY_LINES_PER_SECOND: u64 = 10;

/// Bytes that the gateway adds to an envelope: `seq`, `from`, `ts`, `traceparent` and their punctuation.
pub const ENVELOPE_ADDED_BYTES_MAX: usize = 40 + (SUBJECT_BYTES_MAX + 1 + CLIENT_TAIL_BYTES_MAX + 12) + 32 + 80;

// A record with its header and addresses fits a chunk many times over, so that a chunk is never mostly slack.
const _: () = assert!(CHUNK_BYTES >= 8 * (MESSAGE_BYTES_MAX + ENVELOPE_ADDED_BYTES_MAX + 1024));
// A send can always take at least one whole frame.
const _: () = assert!(SEND_BYTES_MAX >= MESSAGE_BYTES_MAX + ENVELOPE_ADDED_BYTES_MAX + 10);
// A history page holds at least one message of the largest size.
const _: () = assert!(HISTORY_PAGE_BYTES_MAX > MESSAGE_BYTES_MAX + ENVELOPE_ADDED_BYTES_MAX);
// A request line is part of the head.
const _: () = assert!(REQUEST_LINE_BYTES_MAX < REQUEST_HEAD_BYTES_MAX);
// Whatever a token may name fits the 16-bit places of a grant.
const _: () = assert!(TOKEN_BYTES_MAX < u16::MAX as usize);
// A whole record, encrypted, always fits an empty buffer.
const _: () = assert!(TLS_PENDING_BYTES_MAX >= 2 * TLS_RECORD_BYTES_MAX);
// The hello carries a token.
const _: () = assert!(TOKEN_BYTES_MAX + 4096 < MESSAGE_BYTES_MAX);
