//! The state of one connection on its shard, from accept to close.

use super::leaving::Leaving;
use super::rate::Bucket;
use crate::auth::Grant;
use crate::buffers::Buffers;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::net::http::HeadReader;
use crate::net::proxy::ProxyReader;
use crate::net::tls::TlsConnection;
use crate::session::{Entitlements, MemberKey, StreamKey};
use crate::shard::across::mesh::AttachRequest;
use crate::shard::counters::LimitReached;
use crate::ws::decoder::Decoder;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// The phase of a connection.
#[derive(Debug)]
pub enum Phase {
    /// Waiting for a PROXY protocol header.
    Proxy(Box<ProxyReader>),
    /// Waiting for the HTTP request.
    Head(Box<HeadReader>),
    /// Waiting for the hello.
    Hello,
    /// The hello is accepted; the socket changes shards once the kernel holds no read of it.
    HandingOver(Box<Handover>),
    /// In its session.
    Open,
    /// On `/v1/echo`.
    Echo,
    /// The close frame (or the HTTP answer) is queued; data that still arrives is dropped.
    Closing(Closing),
}

/// The end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    pub reason: CloseReason,
    /// When it began.
    pub since_ms: u64,
    /// `true` if the peer has closed its side too, or cannot.
    pub peer_done: bool,
    /// `true` if our side of the stream is ended.
    pub finished: bool,
}

/// A queued reply, by kind.
#[derive(Debug)]
pub enum Waiting {
    Frame(Vec<u8>),
    /// A message of the gateway that answers nothing.
    Event(Vec<u8>),
    /// Presence data of a member. Newer data of the same member replaces it.
    Data {
        of: MemberKey,
        frame: Vec<u8>,
    },
    /// A pong. Its text is written when it is known what has been delivered.
    Pong(String),
    /// An ephemeral message: dropped instead of sent if the reader is behind.
    Passing(Vec<u8>),
    /// A page of history.
    History(Vec<u8>),
    /// The reply that ends the attachment.
    Detached(Vec<u8>),
}

/// The state of a page of history; an attachment has one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paging {
    #[default]
    None,
    /// Requested, or waiting for its place.
    Asked,
    /// In the queue.
    Leaving,
}

impl Waiting {
    /// The bytes that its buffer holds, and those it has room for.
    const fn sizes(&self) -> (usize, usize) {
        match self {
            Self::Frame(frame)
            | Self::Event(frame)
            | Self::Data { frame, .. }
            | Self::Passing(frame)
            | Self::History(frame)
            | Self::Detached(frame) => (frame.len(), frame.capacity()),
            Self::Pong(id) => (id.len(), id.capacity()),
        }
    }

    /// Bytes counted for it until it is sent.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.sizes().0
    }

    /// Memory of its buffer.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.sizes().1
    }

    /// Shrinks its buffer to what it needs, if it may wait for long.
    pub fn fit(&mut self, buffers: &mut Buffers) {
        match self {
            Self::Frame(frame)
            | Self::Event(frame)
            | Self::Data { frame, .. }
            | Self::Passing(frame)
            | Self::History(frame)
            | Self::Detached(frame) => fit(frame, 0, FIT_BYTES_MIN, buffers),
            Self::Pong(id) => id.shrink_to_fit(),
        }
    }

    /// The buffer that it is in.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Frame(frame)
            | Self::Event(frame)
            | Self::Data { frame, .. }
            | Self::Passing(frame)
            | Self::History(frame)
            | Self::Detached(frame) => frame,
            Self::Pong(id) => id.into_bytes(),
        }
    }
}

/// A reply with a place in the order: it is sent after everything up to `after`.
#[derive(Debug)]
pub struct Ordered {
    pub after: u64,
    pub what: Waiting,
}

impl Ordered {
    /// Memory counted for it: its buffer's, and that of its own entry, twice, because a grown queue has room for as many again.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.what.memory_bytes() + 2 * size_of::<Self>()
    }
}

/// Moves a buffer's content from `start` on into one of exactly that size, unless that saves little.
fn fit(buffer: &mut Vec<u8>, start: usize, least: usize, buffers: &mut Buffers) {
    let bytes = buffer.len() - start;
    if buffer.capacity() > bytes + bytes / 8 + least {
        let mut exact = Vec::with_capacity(bytes);
        exact.extend_from_slice(&buffer[start..]);
        buffers.give(std::mem::replace(buffer, exact));
    }
}

/// Memory of a reply below which a copy is not worth it.
const FIT_BYTES_MIN: usize = 64;
/// Memory of a queue below which a copy, with an allocation, is not worth it: a reader that is behind for a moment costs none.
const FIT_QUEUE_BYTES_MIN: usize = 2048;

/// A connection's part in a session: a cursor over the session's stream, and what it may see there.
#[derive(Debug)]
pub struct Attachment {
    pub stream: StreamKey,
    pub member: MemberKey,
    /// The last place that was sent or skipped.
    pub cursor: u64,
    /// The last `seq` that was for this client.
    pub delivered_seq: u64,
    /// `true` if the cursor is at the head and nothing waits. Each record for the reader wakes it.
    pub idle: bool,
    /// `true` while a page is asked of the home.
    pub pulling: bool,
    pub paging: Paging,
    /// `true` after a detach: earlier requests are still answered, in order, and then the attachment ends.
    pub detaching: bool,
    /// See [`crate::session::Place`].
    pub ticket: u32,
    /// This attachment's index among the stream's readers.
    pub reader: u32,
    pub entitlements: Entitlements,
    pub ordered: VecDeque<Ordered>,
}

/// An attachment, or one that its home has not answered yet.
#[derive(Debug, Default)]
pub enum Slot {
    #[default]
    Free,
    Asked(Box<AttachRequest>),
    Attached(Attachment),
}

impl Slot {
    /// The attachment; `None` before it exists.
    #[must_use]
    pub fn attached(&self) -> Option<&Attachment> {
        match self {
            Self::Attached(attachment) => Some(attachment),
            Self::Free | Self::Asked(_) => None,
        }
    }

    /// The attachment; `None` before it exists.
    pub fn attached_mut(&mut self) -> Option<&mut Attachment> {
        match self {
            Self::Attached(attachment) => Some(attachment),
            Self::Free | Self::Asked(_) => None,
        }
    }
}

/// A connection's slots by number. The first, which is all that most connections have, is stored in the connection itself.
#[derive(Debug)]
pub struct Slots {
    first: Slot,
    more: Vec<Slot>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { first: Slot::Free, more: Vec::new() }
    }
}

impl Slots {
    /// The slot of a number.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&Slot> {
        if number == 0 { Some(&self.first) } else { self.more.get(number - 1) }
    }

    /// The slot of a number.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut Slot> {
        if number == 0 { Some(&mut self.first) } else { self.more.get_mut(number - 1) }
    }

    /// The number of slots, free ones included.
    #[must_use]
    pub const fn len(&self) -> usize {
        1 + self.more.len()
    }

    /// Always `false`: the first slot always exists.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// All, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        std::iter::once(&mut self.first).chain(&mut self.more)
    }

    /// A free slot's number; a new one if all are taken.
    pub fn free(&mut self) -> usize {
        if let Some(number) = self.iter().position(|slot| matches!(slot, Slot::Free)) {
            return number;
        }
        self.more.push(Slot::Free);
        self.more.len()
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Conn {
    pub id: ConnId,
    /// The number in its connection id; unique on its node.
    pub serial: u64,
    /// The client's address: the peer's, or the one that a trusted proxy reports.
    pub peer: IpAddr,
    pub phase: Phase,
    pub decoder: Decoder,
    pub tls: Option<Box<TlsConnection>>,
    pub grant: Option<Box<Grant>>,
    pub client_id: Box<str>,
    pub slots: Slots,
    /// The ticket of its next attachment.
    pub next_ticket: u32,
    /// The query's `session_id`, kept until the hello.
    pub expected_session: Option<Box<Box<str>>>,
    /// Frames that are sent before anything else, from `queue_at` on.
    pub queue: Vec<u8>,
    pub queue_at: u32,
    /// Replies in `queue` and in the attachments.
    pub queued_frames: u32,
    /// Bytes waiting in the attachments' ordered replies.
    pub ordered_bytes: u32,
    pub messages: Bucket,
    pub bytes: Bucket,
    pub controls: Bucket,
    /// Counts of misbehaviour; most connections have none.
    pub abuse: Option<Box<Abuse>>,
    pub accepted_ms: u64,
    pub last_heard_ms: u64,
    /// When the ping under way was sent; 0 if there is none.
    pub pinged_ms: u64,
    /// When the earliest timer is to fire.
    pub timer_ms: u64,
    /// Since when a message is unfinished; 0 if none is.
    pub unfinished_ms: u64,
    /// The stall window: its start (0: not stalled) and the bytes taken in it.
    pub stalled_ms: u64,
    pub stalled_taken: u32,
    /// Since when it is not read because of backpressure; 0 if it is read.
    pub paused_ms: u64,
    /// The episode of backpressure in which it was held last; 0 if never.
    pub held_in: u32,
    pub messages_in: u64,
    pub messages_out: u64,
    pub flags: Flags,
    /// The owner of its half-open place, while it has one.
    pub half_open_owner: u64,
    /// The bound that it exceeds since the accept. The client is told, unless that would cost others something.
    pub refused: Option<LimitReached>,
    /// The shard that accepted it; with `serial`, the connection id.
    pub origin_shard: u16,
    /// Bits of the window that its client inflates with.
    pub window_bits: u8,
    /// The code of the client's close frame, to be echoed.
    pub answer_code: Option<Option<u16>>,
    /// `true` if the client closed on its own.
    pub clean: bool,
    /// `Some` if it ends once everything it sent is answered.
    pub leaving: Option<Box<Leaving>>,
}

/// The marks against a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abuse {
    pub refusals: Bucket,
    /// Since when it is above its rate; 0 if it is not.
    pub over_rate_ms: u64,
    /// When it was last refused for that.
    pub last_over_rate_ms: u64,
}

// mimalloc's next size class is 640: an idle connection must fit in 2 KiB in all.
const _: () = assert!(size_of::<Conn>() <= 512);

/// Facts of a connection, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
pub struct Flags {
    /// Counted among the half-open ones.
    pub half_open: bool,
    /// Counted among its address's half-open ones.
    pub address_half_open: bool,
    /// Counted in the address table.
    pub admitted: bool,
    /// Counted in the user table.
    pub user_counted: bool,
    /// Counted among the node's connections.
    pub on_node: bool,
    /// The client's address is known and was judged.
    pub known: bool,
    /// Turned away: nobody will ask about it once it is gone.
    pub forgettable: bool,
    pub deflate: bool,
    pub acks: bool,
    /// The socket was full; waiting for Writable.
    pub blocked: bool,
    /// In the list of connections with something to send.
    pub dirty: bool,
    /// The peer's end of stream has arrived. Our side may go on.
    pub ended: bool,
    /// Nothing can be sent to it any more.
    pub broken: bool,
    /// Something was sent to another shard that no current attachment shows: a post to a channel, or to a session it has left.
    pub spoke_elsewhere: bool,
    /// The client was warned of its token's end.
    pub expiry_told: bool,
    /// Goaway was sent.
    pub told_to_go: bool,
    /// A pong is in the queue.
    pub pong_queued: bool,
    /// TLS's handshake is done.
    pub secured: bool,
    /// Not read from because its session cannot take more.
    pub held: bool,
    /// TLS is to be closed when everything is sent.
    pub close_notify: bool,
}

/// A socket on its way to its home shard, with all that is known of it.
#[derive(Debug)]
pub struct Handover {
    pub fd: Option<OwnedFd>,
    pub serial: u64,
    pub peer: IpAddr,
    pub accepted_ms: u64,
    pub deflate: bool,
    pub acks: bool,
    pub user_counted: bool,
    pub admitted: bool,
    pub messages_in: u64,
    pub tls: Option<Box<TlsConnection>>,
    pub grant: Box<Grant>,
    pub request: AttachRequest,
    /// Bytes received after the hello, still masked.
    pub rest: Vec<u8>,
    /// `true` if the end of its stream has been received, behind them.
    pub ended: bool,
    /// Bytes that the socket has not taken yet.
    pub unsent: Vec<u8>,
    /// The shard that accepted it: a part of its connection id.
    pub node_shard: u16,
    pub window_bits: u8,
}

impl Conn {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(id: ConnId, serial: u64, peer: IpAddr, phase: Phase, now_ms: u64) -> Self {
        Self {
            id,
            serial,
            peer,
            phase,
            decoder: Decoder::new(),
            tls: None,
            grant: None,
            client_id: Box::default(),
            slots: Slots::default(),
            next_ticket: 1,
            expected_session: None,
            queue: Vec::new(),
            queue_at: 0,
            queued_frames: 0,
            ordered_bytes: 0,
            messages: Bucket::default(),
            bytes: Bucket::default(),
            controls: Bucket::default(),
            abuse: None,
            accepted_ms: now_ms,
            last_heard_ms: now_ms,
            pinged_ms: 0,
            timer_ms: u64::MAX,
            unfinished_ms: 0,
            stalled_ms: 0,
            stalled_taken: 0,
            paused_ms: 0,
            held_in: 0,
            messages_in: 0,
            messages_out: 0,
            flags: Flags { acks: true, ..Flags::default() },
            half_open_owner: 0,
            refused: None,
            origin_shard: u16::MAX,
            window_bits: 15,
            answer_code: None,
            clean: false,
            leaving: None,
        }
    }

    /// Bytes waiting to be sent to it, without the records that its cursors have still to read.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.len() - self.queue_at as usize + self.ordered_bytes as usize
    }

    /// Memory of the data waiting to be sent to it.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let ordered = self.attachments().flat_map(|(_, attachment)| &attachment.ordered);
        self.queue.capacity() + ordered.map(Ordered::memory_bytes).sum::<usize>()
    }

    /// Shrinks the buffers of waiting data, because the client takes nothing now.
    pub fn fit(&mut self, buffers: &mut Buffers) {
        if self.queue.capacity() > FIT_QUEUE_BYTES_MIN {
            let before = self.queue.len();
            fit(&mut self.queue, self.queue_at as usize, FIT_QUEUE_BYTES_MIN, buffers);
            self.queue_at -= u32::try_from(before - self.queue.len()).unwrap_or(u32::MAX);
        }
        for attachment in self.slots.iter_mut().filter_map(Slot::attached_mut) {
            attachment.ordered.iter_mut().for_each(|ordered| ordered.what.fit(buffers));
        }
    }

    /// The attachment with this number.
    #[must_use]
    pub fn attachment(&self, attachment: u16) -> Option<&Attachment> {
        self.slots.get(usize::from(attachment)).and_then(Slot::attached)
    }

    /// The attachment with this number.
    pub fn attachment_mut(&mut self, attachment: u16) -> Option<&mut Attachment> {
        self.slots.get_mut(usize::from(attachment)).and_then(Slot::attached_mut)
    }

    /// Removes an attachment, and subtracts the replies that waited in it. Its number is free.
    pub fn take_attachment(&mut self, attachment: u16) -> Option<Attachment> {
        let slot = self.slots.get_mut(usize::from(attachment))?;
        slot.attached()?;
        let Slot::Attached(taken) = std::mem::take(slot) else { return None };
        let waiting: usize = taken.ordered.iter().map(|ordered| ordered.what.bytes()).sum();
        self.ordered_bytes = self.ordered_bytes.saturating_sub(u32::try_from(waiting).unwrap_or(u32::MAX));
        self.queued_frames = self.queued_frames.saturating_sub(u32::try_from(taken.ordered.len()).unwrap_or(u32::MAX));
        Some(taken)
    }

    /// The attachments with their numbers.
    pub fn attachments(&self) -> impl Iterator<Item = (u16, &Attachment)> {
        self.slots.iter().enumerate().filter_map(|(number, slot)| Some((u16::try_from(number).ok()?, slot.attached()?)))
    }

    /// Returns `true` if it is past its handshake and not closing.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Echo)
    }

    /// Returns `true` if frames of the protocol may be written to it.
    #[must_use]
    pub const fn speaks_frames(&self) -> bool {
        matches!(self.phase, Phase::Hello | Phase::Open | Phase::Echo)
    }

    /// Returns `true` if nothing waits to be sent to it, apart from records that its cursors have still to read.
    #[must_use]
    pub fn has_sent_all(&self) -> bool {
        self.queue.is_empty() && !self.flags.close_notify && self.tls.as_ref().is_none_or(|tls| tls.pending().is_empty())
    }
}
