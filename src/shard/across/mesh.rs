//! Communication between shards: bounded queues between each ordered pair, and a door that tells which shards have sent
//! something.
//!
//! There are two queues a pair, by the cost of a loss. On `data` a full queue only delays: records wait in the log. On `control`
//! nothing may be lost: messages without room wait in the sender's bounded backlog. Clients' own messages are on `control` too,
//! in order with their connection's coming and going, while that is less than half full; else they are answered with
//! `limit.backpressure`.
//!
//! A message put on `control` before one on `data` is handled before it: a reply comes before the records that follow its place.
//!
//! A message's bytes travel in a buffer of its sender, and the emptied buffer is returned: a mirror's with its credit, a page's
//! with the next pull, all others through the lane's `returned`. So a shard that only sends finds its buffers again, and one that
//! only receives accumulates none.

use crate::session::{Entitlements, MemberKey, Place};
use crate::shard::connections::conn::Handover;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

#[cfg(feature = "loom")]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(feature = "loom"))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shards at most: one bit each in a door's mask.
pub const SHARDS_MAX: usize = 256;
const WORDS: usize = SHARDS_MAX / 64;
/// Messages that all lanes into one shard hold together; each has an equal share.
pub const LANE_MESSAGES: usize = 8192;
const LANE_MESSAGES_MIN: usize = 64;
/// Memory of the messages in all lanes into one shard above which their senders wait; each lane has an equal share.
const LANE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The smallest share: no less than a page of history.
const LANE_BYTES_MIN: usize = 2 * 1024 * 1024;
/// Smaller messages are not counted in a lane's memory.
const WEIGHED_BYTES_MIN: usize = 4 * 1024;
/// Memory of the emptied buffers that wait for one shard, from all others together; each lane has an equal share.
pub const RETURNED_BYTES_MAX: usize = 8 * 1024 * 1024;
const RETURNED_LANE_BYTES_MIN: usize = 128 * 1024;
/// The largest buffer returned: a page's is not kept for messages that need a hundredth of it.
const RETURNED_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// The request of a client to attach; owned, since it may cross shards.
#[derive(Debug)]
pub struct AttachRequest {
    pub place: Place,
    pub command_id: Box<str>,
    pub session_id: Box<str>,
    /// Keyed hash of `session_id`.
    pub session: u64,
    pub client_id: Box<str>,
    pub subject_bytes: u16,
    pub roles: Box<[Box<str>]>,
    pub resume: Option<(Box<str>, u64)>,
    pub wanted: crate::session::Wanted,
    pub rooms: Vec<Box<str>>,
    pub create: bool,
    pub echo: bool,
    /// `true` if it came as a hello: the answer is a welcome.
    pub hello: bool,
}

/// The home's answer to an attach.
#[derive(Debug)]
pub struct AttachAnswer {
    pub member: MemberKey,
    pub created: bool,
    pub epoch: u64,
    pub head: u64,
    pub cursor: u64,
    pub recovered: bool,
    pub rewound_to: Option<u64>,
    pub oldest_seq: u64,
    pub rooms: Vec<Box<str>>,
    pub entitlements: Entitlements,
    /// The first record that the home will send to the asking shard's mirror.
    pub mirror_from: u64,
}

/// A refusal that crosses shards: the finished frame of an `rw.error`.
pub type RefusalFrame = Vec<u8>;

/// A batch of a mirrored session's records: for each its length (u32), the offset of its frame (u32), its bytes.
#[derive(Debug)]
pub struct Batch {
    pub session: u64,
    pub first_seq: u64,
    pub count: u32,
    pub records: Vec<u8>,
}

/// A page of frames for one reader that its shard's mirror can't serve. It arrives at the home empty, with the pull.
#[derive(Debug, Default)]
pub struct Page {
    /// The cursor for which it was requested.
    pub after: u64,
    pub frames: Vec<u8>,
    /// Each frame's `seq`, and the offset of its end.
    pub ends: Vec<(u64, u32)>,
    /// The reader's cursor after it.
    pub cursor: u64,
    /// The range that was no longer available, before the page.
    pub gap: Option<(u64, u64)>,
}

/// An ephemeral message on its way to a mirror's readers.
#[derive(Debug)]
pub struct Passing {
    pub session: u64,
    pub sender: u64,
    /// The number of targets; 0: everyone.
    pub targets: u32,
    /// The targets, eight bytes each, then the frame.
    pub bytes: Vec<u8>,
}

/// A message for a channel from outside it.
#[derive(Debug)]
pub struct ChannelPost {
    pub from: Place,
    pub acks: bool,
    /// The text, which names the channel, followed by the sender's client id.
    pub bytes: Vec<u8>,
    pub text_bytes: u32,
    /// Length of the prefix of the client id that is the token's `sub`.
    pub subject_bytes: u16,
    pub frame_number: u64,
}

/// A message from one shard to another. Large variants are boxed: a queue's slot is one cache line.
#[derive(Debug)]
pub enum LaneMessage {
    /// A socket whose first session is at home there.
    Handover(Box<Handover>),
    /// A connection here asks to attach to a session there.
    Attach(Box<AttachRequest>),
    /// The answer: the attachment, or the error to send.
    Attached { place: Place, session: u64, outcome: Box<Result<AttachAnswer, RefusalFrame>> },
    /// A connection here has left a session there. `clean`: on purpose.
    Detach { member: MemberKey, place: Place, clean: bool, leave: bool },
    /// A session is no longer read here.
    Unmirror { session: u64, shard: u16 },
    /// A client's message or command for a session there; `number` counts the connection's inbound messages.
    Forward { member: MemberKey, place: Place, number: u64, acks: bool, text: Vec<u8> },
    /// A message for a channel there.
    Post(ChannelPost),
    /// A frame for a connection there, in its place in the order or at once.
    Reply { to: Place, after: u64, frame: Vec<u8> },
    /// Presence data of a member, for a watcher there, in its place in the order.
    Data { to: Place, after: u64, of: MemberKey, frame: Vec<u8> },
    /// A page of history, in its place in the order.
    History { to: Place, after: u64, frame: Vec<u8> },
    /// The last reply of an attachment.
    Detached { to: Place, after: u64, frame: Vec<u8> },
    /// Answers to this connection had no room: it must be closed.
    Evict { to: Place },
    /// The answer to a ping; completed on the shard that knows the delivered seq.
    Pong { to: Place, after: u64, id: String },
    /// A member's entitlements have changed.
    Entitle { to: Place, entitlements: Box<Entitlements> },
    /// A member has new roles (its token was refreshed).
    Roles { member: MemberKey, place: Place, roles: Box<[Box<str>]> },
    /// The attachment has been taken over by another connection.
    Replaced { to: Place },
    /// Records for a mirror.
    Records(Batch),
    /// A mirror has appended a batch; its buffer comes back for reuse.
    Credit { session: u64, shard: u16, buffer: Vec<u8> },
    /// A reader is behind the mirror's records: the page is to be filled.
    Pull { member: MemberKey, place: Place, after: u64, page: Box<Page> },
    /// The filled page.
    Page { to: Place, page: Box<Page> },
    /// An ephemeral message.
    Passing(Passing),
    /// A session's messages so far are purged. Comes after their records.
    Purge { session: u64 },
    /// The connection of a member ends: its presence data is logged and answered now.
    Flush { member: MemberKey, place: Place },
    /// A connection that has sent messages there ends: it waits until they are answered.
    Fence { to: Place },
    /// The answer to a fence: they are.
    Fenced { to: Place },
}

const _: () = assert!(size_of::<LaneMessage>() <= 64);

impl LaneMessage {
    /// Memory of the bytes it carries; 0 for small variants.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Handover(handover) => handover.rest.capacity() + handover.unsent.capacity(),
            Self::Forward { text: bytes, .. }
            | Self::Post(ChannelPost { bytes, .. })
            | Self::Reply { frame: bytes, .. }
            | Self::Data { frame: bytes, .. }
            | Self::History { frame: bytes, .. }
            | Self::Detached { frame: bytes, .. }
            | Self::Records(Batch { records: bytes, .. })
            | Self::Passing(Passing { bytes, .. })
            | Self::Credit { buffer: bytes, .. } => bytes.capacity(),
            Self::Pull { page, .. } | Self::Page { page, .. } => {
                page.frames.capacity() + page.ends.capacity() * size_of::<(u64, u32)>()
            }
            Self::Attach(_)
            | Self::Attached { .. }
            | Self::Detach { .. }
            | Self::Unmirror { .. }
            | Self::Purge { .. }
            | Self::Evict { .. }
            | Self::Pong { .. }
            | Self::Entitle { .. }
            | Self::Roles { .. }
            | Self::Flush { .. }
            | Self::Fence { .. }
            | Self::Fenced { .. }
            | Self::Replaced { .. } => 0,
        }
    }

    /// The bytes of it that a lane counts: most messages are small, and are bounded by the lane's places.
    fn weight(&self) -> usize {
        let bytes = self.bytes();
        if bytes < WEIGHED_BYTES_MIN { 0 } else { bytes }
    }
}

/// The queues of one ordered pair.
#[derive(Debug)]
pub struct Lane {
    pub control: ArrayQueue<LaneMessage>,
    pub data: ArrayQueue<LaneMessage>,
    returned: Returned,
    /// Memory of the messages in both queues, counted before they are put in. Only the sender adds.
    bytes: AtomicUsize,
}

impl Lane {
    fn queue(&self, class: Class) -> &ArrayQueue<LaneMessage> {
        match class {
            Class::Control => &self.control,
            Class::Data => &self.data,
        }
    }
}

/// Emptied buffers that a lane's receiver returns to its sender. Nobody is woken for them.
#[derive(Debug)]
struct Returned {
    buffers: ArrayQueue<Vec<u8>>,
    /// Memory of `buffers`, counted before they are put in. Only the receiver adds, so the bound holds.
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Returned {
    fn put(&self, buffer: Vec<u8>) -> Result<(), Vec<u8>> {
        let bytes = buffer.capacity();
        if bytes == 0 || bytes > RETURNED_BUFFER_BYTES_MAX || self.bytes.load(Ordering::Relaxed) + bytes > self.bytes_max {
            return Err(buffer);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.buffers.push(buffer).inspect_err(|_| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    fn take(&self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        Some(buffer)
    }
}

/// Tells a shard which others have sent it something, and tells the senders whether it sleeps.
///
/// Every write of the flag reads it too (a swap, which costs as much as a sequentially consistent store): so each write has its
/// place among the others, and the result of a knock at an earlier sleep is never read at a later one.
#[derive(Debug)]
pub struct Door {
    asleep: AtomicBool,
    spoken: [AtomicU64; WORDS],
}

impl Default for Door {
    fn default() -> Self {
        Self { asleep: AtomicBool::new(false), spoken: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// loom treats a sequentially consistent access as an acquiring and releasing one; under it a fence adds the rest.
#[inline]
fn in_total_order() {
    #[cfg(feature = "loom")]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

impl Door {
    /// Notes that `shard` has put something in its lane. Returns `true` if the door's owner sleeps: ring its bell.
    ///
    /// The bit is set before the flag is read and the owner sets its flag before it reads the bits, both sequentially consistent:
    /// at least one of the two sees the other.
    #[must_use]
    pub fn knock(&self, shard: usize) -> bool {
        self.spoken[shard / 64].fetch_or(1 << (shard % 64), Ordering::SeqCst);
        in_total_order();
        self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst)
    }

    /// Announces sleep. Returns `false` if a message has arrived meanwhile.
    #[must_use]
    pub fn sleep(&self) -> bool {
        self.asleep.swap(true, Ordering::SeqCst);
        in_total_order();
        if self.spoken.iter().any(|word| word.load(Ordering::SeqCst) != 0) {
            self.wake();
            return false;
        }
        true
    }

    /// Notes that the owner is awake.
    pub fn wake(&self) {
        self.asleep.swap(false, Ordering::SeqCst);
    }

    /// Moves the bits of all shards that have sent something since the last call into `mask`.
    pub fn take(&self, mask: &mut [u64; WORDS]) {
        for (word, mask) in self.spoken.iter().zip(mask) {
            if word.load(Ordering::Relaxed) != 0 {
                *mask |= word.swap(0, Ordering::SeqCst);
            }
        }
    }
}

/// All lanes and doors of a process.
#[derive(Debug)]
pub struct Mesh {
    /// `lanes[from * shards + to]`.
    lanes: Vec<Lane>,
    doors: Vec<CachePadded<Door>>,
    shards: usize,
    /// Bytes in a lane above which it takes nothing more.
    lane_bytes_max: usize,
}

/// The queues of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Control,
    Data,
}

impl Mesh {
    /// The mesh of `shards` shards, 1 to [`SHARDS_MAX`].
    #[must_use]
    pub fn new(shards: usize) -> Arc<Self> {
        assert!((1..=SHARDS_MAX).contains(&shards), "1 to {SHARDS_MAX} shards");
        Self::with_depth(shards, (LANE_MESSAGES / shards).max(LANE_MESSAGES_MIN))
    }

    /// A mesh with lanes of another depth: tests fill short ones sooner.
    #[must_use]
    pub fn with_depth(shards: usize, depth: usize) -> Arc<Self> {
        let bytes_max = (RETURNED_BYTES_MAX / shards).max(RETURNED_LANE_BYTES_MIN);
        let lanes = (0..shards * shards)
            .map(|lane| {
                // A shard sends nothing to itself.
                let depth = if lane / shards == lane % shards { 1 } else { depth };
                let returned = Returned { buffers: ArrayQueue::new(depth), bytes: AtomicUsize::new(0), bytes_max };
                let bytes = AtomicUsize::new(0);
                Lane { control: ArrayQueue::new(depth), data: ArrayQueue::new(depth), returned, bytes }
            })
            .collect();
        let doors = (0..shards).map(|_| CachePadded::new(Door::default())).collect();
        Arc::new(Self { lanes, doors, shards, lane_bytes_max: (LANE_BYTES_MAX / shards).max(LANE_BYTES_MIN) })
    }

    /// The number of shards.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.shards
    }

    /// A shard's door.
    #[must_use]
    pub fn door(&self, shard: usize) -> &Door {
        &self.doors[shard]
    }

    /// Puts a message in a lane. Returns `true` if the caller must ring the receiver's bell.
    ///
    /// # Errors
    /// The message, if the queue is full, or its lane holds as many bytes as it may.
    pub fn push(&self, from: usize, to: usize, class: Class, message: LaneMessage) -> Result<bool, LaneMessage> {
        let lane = self.lane(from, to);
        if self.is_laden(lane) {
            return Err(message);
        }
        let weight = message.weight();
        if weight > 0 {
            lane.bytes.fetch_add(weight, Ordering::Relaxed);
        }
        lane.queue(class).push(message).inspect_err(|_| {
            lane.bytes.fetch_sub(weight, Ordering::Relaxed);
        })?;
        Ok(self.doors[to].knock(from))
    }

    /// Returns `true` if a lane has room. Clients' requests may use less than half of `control`.
    #[must_use]
    pub fn has_room(&self, from: usize, to: usize, class: Class) -> bool {
        let lane = self.lane(from, to);
        let queue = lane.queue(class);
        let places = match class {
            Class::Control => queue.len() * 2 < queue.capacity(),
            Class::Data => !queue.is_full(),
        };
        places && !self.is_laden(lane)
    }

    fn is_laden(&self, lane: &Lane) -> bool {
        lane.bytes.load(Ordering::Relaxed) >= self.lane_bytes_max
    }

    /// Takes the next message from a lane.
    #[must_use]
    pub fn pop(&self, from: usize, to: usize, class: Class) -> Option<LaneMessage> {
        let lane = self.lane(from, to);
        let message = lane.queue(class).pop()?;
        let weight = message.weight();
        if weight > 0 {
            lane.bytes.fetch_sub(weight, Ordering::Relaxed);
        }
        Some(message)
    }

    /// Returns the emptied buffer of a message that `from` sent to `to` to `from`.
    ///
    /// # Errors
    /// The buffer, if enough buffers wait there already, or it is too large, or has no memory.
    pub fn give_back(&self, from: usize, to: usize, mut buffer: Vec<u8>) -> Result<(), Vec<u8>> {
        buffer.clear();
        self.lane(from, to).returned.put(buffer)
    }

    /// An empty buffer returned by `to`, for the next message of `from` to it.
    #[must_use]
    pub fn take_back(&self, from: usize, to: usize) -> Option<Vec<u8>> {
        self.lane(from, to).returned.take()
    }

    fn lane(&self, from: usize, to: usize) -> &Lane {
        &self.lanes[from * self.shards + to]
    }
}

/// Shards that have something to read: a copy of a door's mask that its owner works off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spoken(pub [u64; WORDS]);

impl Spoken {
    /// Returns `true` if no shard is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Removes the lowest shard and returns it.
    pub fn pop(&mut self) -> Option<usize> {
        let word = self.0.iter().position(|word| *word != 0)?;
        let bit = self.0[word].trailing_zeros() as usize;
        self.0[word] &= self.0[word] - 1;
        Some(word * 64 + bit)
    }

    /// Adds a shard (again).
    pub fn insert(&mut self, shard: usize) {
        self.0[shard / 64] |= 1 << (shard % 64);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn a_knock_rings_a_sleeper_once() {
        let door = Door::default();
        assert!(!door.knock(3), "awake");
        assert!(!door.sleep(), "somebody had spoken");
        let mut spoken = Spoken::default();
        door.take(&mut spoken.0);
        assert_eq!((spoken.pop(), spoken.pop()), (Some(3), None));
        assert!(door.sleep());
        assert!(door.knock(255) && !door.knock(255), "one bell is enough");
        door.take(&mut spoken.0);
        assert_eq!(spoken.pop(), Some(255));
    }

    #[test]
    fn a_full_lane_gives_the_message_back() {
        let mesh = Mesh::new(2);
        let message = || LaneMessage::Unmirror { session: 1, shard: 0 };
        let mut pushed = 0;
        while mesh.push(0, 1, Class::Data, message()).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed, LANE_MESSAGES / 2);
        assert!(mesh.push(0, 1, Class::Control, message()).is_ok(), "control has a queue of its own");
        assert!(mesh.pop(0, 1, Class::Data).is_some() && mesh.push(0, 1, Class::Data, message()).is_ok());
        assert!(mesh.pop(1, 0, Class::Data).is_none());
    }

    #[test]
    fn a_lane_holds_so_many_bytes() {
        let mesh = Mesh::new(2);
        let place = Place { shard: 1, attachment: 0, ticket: 1, conn: crate::ids::ConnId { index: 0, generation: 1 } };
        let page = || LaneMessage::History { to: place, after: 1, frame: Vec::with_capacity(1 << 20) };
        let mut pages = 0;
        while mesh.has_room(0, 1, Class::Control) && mesh.push(0, 1, Class::Control, page()).is_ok() {
            pages += 1;
        }
        assert_eq!(pages, LANE_BYTES_MAX / 2 / (1 << 20), "half of the bytes is this lane's");
        let small = || LaneMessage::Evict { to: place };
        for class in [Class::Control, Class::Data] {
            assert!(!mesh.has_room(0, 1, class) && mesh.push(0, 1, class, small()).is_err(), "in order behind what waits");
            assert!(mesh.has_room(1, 0, class), "each lane has its own");
        }
        assert!(mesh.pop(0, 1, Class::Control).is_some() && mesh.push(0, 1, Class::Data, small()).is_ok());
        // A message that found its queue full is not counted.
        let mesh = Mesh::with_depth(2, 2);
        for _ in 0..100 {
            let _ = mesh.push(0, 1, Class::Control, page());
        }
        assert!(mesh.has_room(0, 1, Class::Data) && mesh.lane(0, 1).bytes.load(Ordering::Relaxed) == 2 << 20);
    }

    #[test]
    fn buffers_come_back_empty_and_bounded() {
        let mesh = Mesh::new(2);
        assert!(mesh.give_back(0, 1, b"a message".to_vec()).is_ok());
        assert!(mesh.take_back(1, 0).is_none(), "it is the sender's");
        assert!(mesh.take_back(0, 1).is_some_and(|buffer| buffer.is_empty() && buffer.capacity() >= 9));
        assert!(mesh.give_back(0, 1, Vec::new()).is_err(), "nothing to keep");
        let large = RETURNED_BUFFER_BYTES_MAX;
        assert!(mesh.give_back(0, 1, Vec::with_capacity(large + 1)).is_err(), "too large to be kept");
        let mut kept = 0;
        while mesh.give_back(0, 1, Vec::with_capacity(large)).is_ok() {
            kept += 1;
        }
        assert_eq!(kept, RETURNED_BYTES_MAX / 2 / large, "half of the bytes is this lane's");
        assert!(mesh.take_back(0, 1).is_some() && mesh.give_back(0, 1, Vec::with_capacity(large)).is_ok());
        while mesh.take_back(0, 1).is_some() {}
        let small = (0..LANE_MESSAGES).take_while(|_| mesh.give_back(0, 1, Vec::with_capacity(1)).is_ok()).count();
        assert_eq!(small, LANE_MESSAGES / 2, "and as many buffers as messages fit the lane");
    }
}

#[cfg(all(test, feature = "loom"))]
#[path = "mesh_model.rs"]
mod model;
