//! Client frames to messages (RFC 6455 section 5): resumable at every byte, unmasked in the bytes that were received.
//!
//! A message that is whole in the received bytes is returned in place. Otherwise the parts are gathered in a pooled buffer and
//! returned whole; the receiver gives the buffer back.

use super::utf8;
use crate::buffers::Buffers;
use crate::close::CloseReason;
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;
use std::ops::{Deref, DerefMut};

/// The longest head of a client frame: two bytes, a 64-bit length, a mask.
const HEAD_BYTES_MAX: usize = 14;
/// The first allocation of an assembly buffer; it doubles from here as bytes arrive.
const ASSEMBLY_BYTES_MIN: usize = 512;

/// The limits of an endpoint. The same for all its connections, so they are lent for each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A message's payload after reassembly, at most `u32::MAX`. A compressed message may be as long on the wire as
    /// deflate makes incompressible data of this length; the exact bound is then the inflater's.
    pub message_bytes_max: usize,
    /// Data frames of one message, empty ones included; at least 1.
    pub fragments_max: u32,
    /// `true` if uncompressed text is checked as it arrives. `false` if the parser behind checks it anyway.
    pub utf8: bool,
    /// `true` if permessage-deflate was negotiated: RSV1 may be set on the first frame of a message (RFC 7692 section 6).
    pub deflate: bool,
    /// `true` if binary messages are accepted at all.
    pub binary: bool,
}

impl Limits {
    fn wire_bytes_max(&self, compressed: bool) -> u64 {
        let message = self.message_bytes_max.min(u32::MAX as usize) as u64;
        // Stored blocks cost 5 bytes each; deflate at a low memory level opens one every 4 KiB, and a flush adds its own.
        if compressed { (message + message / 256 + 64).min(u64::from(u32::MAX)) } else { message }
    }
}

/// Unmasked bytes, either inside the received ones or gathered in a buffer of the pool.
#[derive(Debug)]
pub enum Payload<'b> {
    InPlace(&'b mut [u8]),
    /// A pooled buffer; give it back with [`Payload::recycle`].
    Assembled(Vec<u8>),
}

impl Payload<'_> {
    /// Gives the buffer, if there is one, back to the pool.
    pub fn recycle(self, buffers: &mut Buffers) {
        if let Self::Assembled(buffer) = self {
            buffers.give(buffer);
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::InPlace(bytes) => bytes,
            Self::Assembled(bytes) => bytes,
        }
    }
}

impl DerefMut for Payload<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::InPlace(bytes) => bytes,
            Self::Assembled(bytes) => bytes,
        }
    }
}

/// Two payloads are equal if their bytes are, wherever these are stored.
impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// An item that the client sent.
#[derive(Debug, PartialEq)]
pub enum Item<'b> {
    /// A whole message. If `compressed`, it must be inflated first, and then checked for UTF-8 if the endpoint asks for it.
    Message {
        text: bool,
        compressed: bool,
        payload: Payload<'b>,
    },
    /// A ping, to be answered by a pong with the same payload, of at most 125 bytes.
    Ping(Payload<'b>),
    Pong(Payload<'b>),
    /// The last item: later bytes are dropped. The reason is UTF-8 of at most 123 bytes, empty without a code.
    Close {
        code: Option<u16>,
        reason: Payload<'b>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Data,
    Control,
    /// After a close frame or an error.
    Over,
}

/// The state between two reads.
#[derive(Debug)]
pub struct Decoder {
    /// The message so far; behind it, while a control frame is under way, that frame's payload so far.
    assembly: Vec<u8>,
    frame_left: u32,
    /// Data frames of the message so far; 0 between messages.
    fragments: u32,
    /// The mask, rotated so that its first byte belongs to the next byte of payload.
    mask: [u8; 4],
    utf8: utf8::Incremental,
    /// An incomplete head.
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    opcode: u8,
    control_bytes: u8,
    phase: Phase,
    fin: bool,
    text: bool,
    compressed: bool,
}

const _: () = assert!(size_of::<Decoder>() <= 64);

struct Head {
    opcode: u8,
    fin: bool,
    rsv1: bool,
    payload_bytes: u32,
    mask: [u8; 4],
    head_bytes: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            assembly: Vec::new(),
            frame_left: 0,
            fragments: 0,
            mask: [0; 4],
            utf8: utf8::Incremental::new(),
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            opcode: 0,
            control_bytes: 0,
            phase: Phase::Head,
            fin: false,
            text: false,
            compressed: false,
        }
    }

    /// The next item in `rest`, which moves on behind it. `None`: all of `rest` was taken and more is needed.
    ///
    /// # Errors
    /// The reason to close with. All bytes after an error or a close frame are dropped.
    pub fn next<'b>(
        &mut self,
        rest: &mut &'b mut [u8],
        limits: &Limits,
        buffers: &mut Buffers,
    ) -> Result<Option<Item<'b>>, CloseReason> {
        let item = self.advance(rest, limits, buffers);
        if !matches!(item, Ok(None | Some(Item::Message { .. } | Item::Ping(_) | Item::Pong(_)))) {
            self.phase = Phase::Over;
            *rest = &mut [];
            self.release(buffers);
        }
        item
    }

    /// Returns `true` if a frame or a message has begun and not ended: its time limit runs.
    #[must_use]
    pub fn unfinished(&self) -> bool {
        match self.phase {
            Phase::Head => self.head_bytes > 0 || self.fragments > 0,
            Phase::Data | Phase::Control => true,
            Phase::Over => false,
        }
    }

    /// Returns `true` if a close frame or an error has ended the stream of items.
    #[must_use]
    pub fn over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Memory held for an unfinished message, in bytes.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.assembly.capacity()
    }

    /// Returns the buffer of an unfinished message to the pool, for a connection that ends. The payload of a control frame under
    /// way stays, so that a peer's close frame is understood.
    pub fn release(&mut self, buffers: &mut Buffers) {
        let under_way = if self.phase == Phase::Control { usize::from(self.control_bytes) } else { 0 };
        let control = self.assembly[self.assembly.len() - under_way..].to_vec();
        buffers.give(std::mem::replace(&mut self.assembly, control));
    }

    fn advance<'b>(
        &mut self,
        rest: &mut &'b mut [u8],
        limits: &Limits,
        buffers: &mut Buffers,
    ) -> Result<Option<Item<'b>>, CloseReason> {
        loop {
            if self.phase == Phase::Over {
                *rest = &mut [];
                return Ok(None);
            }
            if self.phase == Phase::Head {
                let Some(head) = self.take_head(rest, limits)? else { return Ok(None) };
                self.begin_frame(&head);
            }
            let here = self.take_payload(rest);
            if self.phase == Phase::Control {
                return self.control(here, limits, buffers);
            }
            if self.text && limits.utf8 && !self.compressed && !self.utf8.push(here) {
                return Err(CloseReason::NotUtf8);
            }
            let frame_ends = self.frame_left == 0;
            let message_ends = frame_ends && self.fin;
            if message_ends && !self.utf8.is_complete() {
                return Err(CloseReason::NotUtf8);
            }
            if message_ends && self.assembly.is_empty() {
                return Ok(Some(self.message(Payload::InPlace(here))));
            }
            self.append(here, limits, buffers);
            if !frame_ends {
                return Ok(None);
            }
            if message_ends {
                let payload = Payload::Assembled(std::mem::take(&mut self.assembly));
                return Ok(Some(self.message(payload)));
            }
            self.phase = Phase::Head;
        }
    }

    fn take_head(&mut self, rest: &mut &mut [u8], limits: &Limits) -> Result<Option<Head>, CloseReason> {
        if self.head_bytes == 0 {
            if let Some(head) = self.parse_head(rest, limits)? {
                *rest = &mut std::mem::take(rest)[head.head_bytes..];
                return Ok(Some(head));
            }
            self.head[..rest.len()].copy_from_slice(rest);
            #[expect(clippy::cast_possible_truncation, reason = "an unfinished head is below HEAD_BYTES_MAX")]
            let held = rest.len() as u8;
            self.head_bytes = held;
            *rest = &mut [];
            return Ok(None);
        }
        while let Some((byte, tail)) = std::mem::take(rest).split_first_mut() {
            *rest = tail;
            self.head[usize::from(self.head_bytes)] = *byte;
            self.head_bytes += 1;
            if let Some(head) = self.parse_head(&self.head[..usize::from(self.head_bytes)], limits)? {
                self.head_bytes = 0;
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// Parses a frame's head. Every check is made as soon as the bytes it needs are there, in their order: that is why any split
    /// of the bytes meets the same error.
    fn parse_head(&self, bytes: &[u8], limits: &Limits) -> Result<Option<Head>, CloseReason> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = first & 0x0f;
        let fin = first & 0x80 != 0;
        let rsv1 = first & 0x40 != 0;
        let control = opcode & 0x08 != 0;
        let in_message = self.fragments > 0;
        if first & 0x30 != 0 || rsv1 && !(limits.deflate && matches!(opcode, 1 | 2)) {
            return Err(CloseReason::ProtocolError);
        }
        match opcode {
            0 if in_message => {}
            1 if !in_message => {}
            2 if !in_message && limits.binary => {}
            2 if !in_message => return Err(CloseReason::BinaryFrame),
            8..=10 if fin => {}
            _ => return Err(CloseReason::ProtocolError),
        }
        if !control && self.fragments >= limits.fragments_max {
            return Err(CloseReason::TooManyFragments);
        }

        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short = second & 0x7f;
        if second & 0x80 == 0 || control && usize::from(short) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(CloseReason::ProtocolError);
        }
        let (length, mask_at) = match short {
            126 => {
                let Some(&long) = bytes.get(2..).and_then(<[u8]>::first_chunk::<2>) else { return Ok(None) };
                (u64::from(u16::from_be_bytes(long)), 4)
            }
            127 => {
                let Some(&long) = bytes.get(2..).and_then(<[u8]>::first_chunk::<8>) else { return Ok(None) };
                (u64::from_be_bytes(long), 10)
            }
            short => (u64::from(short), 2),
        };
        // RFC 6455 5.2: the minimal number of bytes, and a 64-bit length whose first bit is 0.
        if short == 126 && length < 126 || short == 127 && (length <= 0xffff || length >> 63 != 0) {
            return Err(CloseReason::ProtocolError);
        }
        if !control {
            let compressed = if in_message { self.compressed } else { rsv1 };
            let message_bytes = (self.assembly.len() as u64).checked_add(length);
            if message_bytes.is_none_or(|bytes| bytes > limits.wire_bytes_max(compressed)) {
                return Err(CloseReason::MessageTooBig);
            }
        }

        let Some(&mask) = bytes.get(mask_at..).and_then(<[u8]>::first_chunk::<4>) else { return Ok(None) };
        // Above, a control frame is bounded by 125 and a message by u32::MAX.
        let payload_bytes = u32::try_from(length).map_err(|_| CloseReason::MessageTooBig)?;
        Ok(Some(Head { opcode, fin, rsv1, payload_bytes, mask, head_bytes: mask_at + 4 }))
    }

    fn begin_frame(&mut self, head: &Head) {
        self.opcode = head.opcode;
        self.frame_left = head.payload_bytes;
        self.mask = head.mask;
        if head.opcode & 0x08 != 0 {
            self.phase = Phase::Control;
            self.control_bytes = 0;
            return;
        }
        self.phase = Phase::Data;
        self.fin = head.fin;
        if self.fragments == 0 {
            self.text = head.opcode == 1;
            self.compressed = head.rsv1;
        }
        self.fragments += 1;
    }

    /// The available part of the frame's payload, unmasked in place.
    fn take_payload<'b>(&mut self, rest: &mut &'b mut [u8]) -> &'b mut [u8] {
        let taken = rest.len().min(self.frame_left as usize);
        let (here, after) = std::mem::take(rest).split_at_mut(taken);
        *rest = after;
        fastwebsockets::unmask(here, self.mask);
        self.mask.rotate_left(taken % 4);
        #[expect(clippy::cast_possible_truncation, reason = "at most frame_left")]
        let taken = taken as u32;
        self.frame_left -= taken;
        here
    }

    fn message<'b>(&mut self, payload: Payload<'b>) -> Item<'b> {
        self.phase = Phase::Head;
        self.fragments = 0;
        Item::Message { text: self.text, compressed: self.compressed, payload }
    }

    fn control<'b>(
        &mut self,
        here: &'b mut [u8],
        limits: &Limits,
        buffers: &mut Buffers,
    ) -> Result<Option<Item<'b>>, CloseReason> {
        let payload = if self.frame_left == 0 && self.control_bytes == 0 {
            Payload::InPlace(here)
        } else {
            self.append(here, limits, buffers);
            #[expect(clippy::cast_possible_truncation, reason = "a control frame has at most 125 bytes")]
            let added = here.len() as u8;
            self.control_bytes += added;
            if self.frame_left > 0 {
                return Ok(None);
            }
            Payload::Assembled(self.take_control(buffers))
        };
        self.phase = Phase::Head;
        match self.opcode {
            9 => Ok(Some(Item::Ping(payload))),
            10 => Ok(Some(Item::Pong(payload))),
            _ => close(payload).map(Some),
        }
    }

    /// The control payload from behind the message that it interrupted.
    fn take_control(&mut self, buffers: &mut Buffers) -> Vec<u8> {
        let message_bytes = self.assembly.len() - usize::from(self.control_bytes);
        if message_bytes == 0 {
            return std::mem::take(&mut self.assembly);
        }
        let mut control = buffers.take();
        control.extend_from_slice(&self.assembly[message_bytes..]);
        self.assembly.truncate(message_bytes);
        control
    }

    fn append(&mut self, bytes: &[u8], limits: &Limits, buffers: &mut Buffers) {
        if bytes.is_empty() {
            return;
        }
        buffers.lend(&mut self.assembly);
        let needed = self.assembly.len() + bytes.len();
        if needed > self.assembly.capacity() {
            // Doubling from what arrived: the length a head declares allocates nothing. Never beyond what may arrive.
            let ceiling = limits.wire_bytes_max(self.compressed) as usize + CONTROL_PAYLOAD_BYTES_MAX;
            let doubled = (self.assembly.capacity() * 2).max(ASSEMBLY_BYTES_MIN).min(ceiling);
            self.assembly.reserve_exact(needed.max(doubled) - self.assembly.len());
        }
        self.assembly.extend_from_slice(bytes);
    }
}

/// A close frame's body (RFC 6455 5.5.1 and 7.4).
fn close(payload: Payload<'_>) -> Result<Item<'_>, CloseReason> {
    let code = match *payload {
        [] => return Ok(Item::Close { code: None, reason: payload }),
        [_] => return Err(CloseReason::ProtocolError),
        [high, low, ..] => u16::from_be_bytes([high, low]),
    };
    // 1004 is reserved, 1005, 1006 and 1015 never travel, 1016 to 2999 are unassigned.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseReason::ProtocolError);
    }
    if std::str::from_utf8(&payload[2..]).is_err() {
        return Err(CloseReason::NotUtf8);
    }
    let reason = match payload {
        Payload::InPlace(bytes) => Payload::InPlace(&mut bytes[2..]),
        Payload::Assembled(mut bytes) => {
            bytes.drain(..2);
            Payload::Assembled(bytes)
        }
    };
    Ok(Item::Close { code: Some(code), reason })
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
