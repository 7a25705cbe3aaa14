//! Every fixed bound, related to the others by const assertions. What an operator may set is in `config`, with its default here.
//!
//! May import nothing. Pure. Numbers that the contract names cite it.

/// A message's bytes, after reassembly and inflation (protocol.md section 2).
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Fragments of one message, empty ones counted (section 2).
pub const FRAGMENTS_MAX: u32 = 64;
/// An unfinished message may take this long (section 2).
pub const MESSAGE_UNFINISHED_MS_MAX: u64 = 10_000;
/// `/v1/echo` takes conformance suites: Autobahn's 9.* send 16 MiB.
pub const ECHO_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// `/v1/echo`: fragments of one message.
pub const ECHO_FRAGMENTS_MAX: u32 = 65_536;
/// JSON nesting of an envelope, the envelope's own object counted (section 2).
pub const JSON_DEPTH_MAX: u32 = 64;
/// `type` (section 2).
pub const TYPE_BYTES_MAX: usize = 64;
/// `id`, and `reply_to` (section 2).
pub const MESSAGE_ID_BYTES_MAX: usize = 128;
/// `session_id`, rooms, roles, intents and channels (sections 2 and 6).
pub const NAME_BYTES_MAX: usize = 128;
/// `client_id` is `sub`, or `sub/` and a tail (section 4).
pub const CLIENT_TAIL_BYTES_MAX: usize = 64;
/// A token's `sub`.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// `meta` (section 2).
pub const META_BYTES_MAX: usize = 2 * 1024;
/// `traceparent` (section 2): 55 in version 00, and room for what a later version appends.
pub const TRACEPARENT_BYTES_MAX: usize = 128;
/// Addresses in `to` (section 2).
pub const ADDRESSES_MAX: usize = 32;
/// Rooms a client may be in (section 6).
pub const ROOMS_PER_CLIENT_MAX: usize = 128;
/// Ids of a client in a session's idempotency window (section 5), however it is configured; and of a shard's posts to channels.
pub const DEDUPE_IDS_MAX: usize = 1_000_000;
/// Presence data (section 6).
pub const PRESENCE_DATA_BYTES_MAX: usize = 1024;
/// Members of a session (section 3).
pub const MEMBERS_PER_SESSION_MAX: usize = 10_000;
/// A page of `rw.members` (section 6).
pub const MEMBERS_PAGE_MAX: usize = 500;
/// A page of `rw.members` that names no limit.
pub const MEMBERS_PAGE_DEFAULT: usize = 100;
/// A page of `rw.history` that names no limit.
pub const HISTORY_PAGE_DEFAULT: usize = 100;
/// Features a hello may name (section 4).
pub const FEATURES_MAX: usize = 64;
/// A page of `rw.history`, in messages and bytes (section 6).
pub const HISTORY_PAGE_MAX: usize = 1_000;
/// See [`HISTORY_PAGE_MAX`].
pub const HISTORY_PAGE_BYTES_MAX: usize = 1024 * 1024;
/// A token's bytes (architecture.md section 4).
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// A token's life, `exp` less `iat`, where nothing else is configured (references 5).
pub const TOKEN_LIFETIME_S_MAX: u64 = 24 * 60 * 60;
/// Patterns in a token's `sid`.
pub const TOKEN_SESSIONS_MAX: usize = 64;
/// Names in a token's `roles`.
pub const TOKEN_ROLES_MAX: usize = 32;
/// Methods in a token's `amr` (RFC 8176).
pub const TOKEN_METHODS_MAX: usize = 16;
/// A token's `scope`.
pub const TOKEN_SCOPE_BYTES_MAX: usize = 1024;
/// A token's `jti`.
pub const TOKEN_ID_BYTES_MAX: usize = 128;
/// A key's id, `kid`.
pub const KEY_ID_BYTES_MAX: usize = 64;
/// Keys that are good at the same time.
pub const KEYS_MAX: usize = 64;
/// An HMAC secret (RFC 7518 3.2: as long as the hash).
pub const HMAC_SECRET_BYTES_MIN: usize = 32;
/// An RSA modulus, in bits (RFC 7518 3.3).
pub const RSA_BITS_MIN: u32 = 2048;
/// Revoked tokens and users that a node remembers.
pub const REVOCATIONS_MAX: usize = 100_000;
/// The largest TLS record (RFC 5246 6.2.3: 2^14 and 2,048 of expansion, after a header of 5).
pub const TLS_RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2048;
/// Ciphertext that waits for a socket.
pub const TLS_PENDING_BYTES_MAX: usize = 64 * 1024;
/// A control frame's payload (RFC 6455 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// The HTTP request line, the whole head, and its headers (references 5).
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// See [`REQUEST_LINE_BYTES_MAX`].
pub const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// See [`REQUEST_LINE_BYTES_MAX`].
pub const REQUEST_HEADERS_MAX: usize = 100;
/// Epochs a session remembers (architecture.md section 8).
pub const EPOCHS_PER_SESSION_MAX: usize = 16;
/// A record of the log that is no message: a state, a fact, a part of a member's stays.
pub const STATE_RECORD_BYTES_MAX: usize = 24 * 1024;
/// Stays in rooms that one such record holds.
pub const STAYS_PER_RECORD_MAX: usize = 128;
/// Stays that have ended, of one member in one room, and in all: those that messages which are retained need. Above it the oldest is forgotten.
pub const ENDED_STAYS_PER_ROOM_MAX: usize = 32;
/// See [`ENDED_STAYS_PER_ROOM_MAX`].
pub const ENDED_STAYS_PER_MEMBER_MAX: usize = 256;
/// Answers to `rw.presence.set` of one member that wait for a record.
pub const ANSWERS_WAITING_MAX: usize = 16;
/// A chunk of the log in memory. A record never spans two.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes one read of the log on disk may ask for.
pub const READ_BACK_BYTES_MAX: usize = CHUNK_BYTES;
/// Reads of the log on disk that a shard has in the kernel; their buffers are kept, so this bounds their memory too.
pub const READ_BACKS_MAX: usize = 16;
/// Writes, and syncs, that a shard has with the threads of the portable engine; others wait.
pub const DISK_REQUESTS_MAX: usize = 16;
/// Segments of a shard being made or deleted at a time.
pub const SEGMENT_REQUESTS_MAX: usize = 16;
/// Sends a turn makes before it lets events in again (architecture.md section 6).
pub const SENDS_PER_TURN_MAX: usize = 1024;
/// How long what is to be sent may wait for its turn before senders are held (architecture.md section 6).
pub const UNSENT_AGE_MS_MAX: u64 = 500;
/// Frames one send may take from the log, in bytes.
pub const SEND_BYTES_MAX: usize = 128 * 1024;
/// Slices one scattered send may name.
pub const SEND_PARTS_MAX: usize = 16;
/// TCP_NOTSENT_LOWAT: unsent bytes the kernel may hold for one socket (architecture.md section 5).
pub const NOT_SENT_LOWAT_BYTES: u32 = 128 * 1024;

/// Of a shard's places for connections without a welcome, those that only an address without any there may take, in percent.
pub const HALF_OPEN_RESERVE_PERCENT: usize = 25;
/// Connections of a shard that are over a bound and are still there to be told so; the oldest goes for the next.
pub const TURNED_AWAY_MAX: usize = 64;
/// Log lines of a shard, a second, about connections that it turns away.
pub const TURNED_AWAY_LINES_PER_SECOND: u64 = 10;

/// What the gateway adds to an envelope: `seq`, `from`, `ts`, `traceparent` and their punctuation.
pub const ENVELOPE_ADDED_BYTES_MAX: usize = 40 + (SUBJECT_BYTES_MAX + 1 + CLIENT_TAIL_BYTES_MAX + 12) + 32 + 80;

// A record with its header and addresses fits a chunk many times over, so that a chunk is never mostly slack.
const _: () = assert!(CHUNK_BYTES >= 8 * (MESSAGE_BYTES_MAX + ENVELOPE_ADDED_BYTES_MAX + 1024));
// One send can always take at least one whole frame.
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
