//! permessage-deflate (RFC 7692) without context takeover in either direction: one codec a shard serves all connections.

use crate::close::CloseReason;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Below this a payload is not worth compressing.
pub const PAYLOAD_BYTES_MIN: usize = 1024;
/// Bits of the largest window of deflate, the default of both sides (RFC 7692 7.1.2).
pub const WINDOW_BITS_MAX: u8 = 15;
const WINDOW_BITS_MIN: u8 = 8;
const EXTENSION: &str = "permessage-deflate";
/// The flush that senders strip (RFC 7692 7.2.1).
const FLUSH: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// The stripped flush, and a final empty block: only a complete stream ends exactly here.
const FLUSH_AND_END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];
const INFLATE_BYTES_MIN: usize = 1024;
/// Largest growth of a few bytes by deflating: block headers and the flush.
const PIECE_ADDED_BYTES_MAX: usize = 64;

/// The negotiated parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The largest window that the client can inflate with, for [`Deflater::deflate`]. Data deflated for a larger one must not be
    /// sent to it.
    pub server_window_bits: u8,
    asked_for_window: bool,
}

impl Negotiated {
    /// The value of `Sec-WebSocket-Extensions` in the answer. A window that was asked for is confirmed (RFC 7692 7.1.2.1).
    #[must_use]
    pub fn header_value(&self) -> String {
        let takeover = "server_no_context_takeover; client_no_context_takeover";
        if self.asked_for_window {
            format!("{EXTENSION}; {takeover}; server_max_window_bits={}", self.server_window_bits)
        } else {
            format!("{EXTENSION}; {takeover}")
        }
    }
}

/// An extension header that RFC 6455 section 9.1 has no reading for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Sec-WebSocket-Extensions is malformed at byte {at} of line {line}; it must be a list like: permessage-deflate; \
     client_max_window_bits"
)]
pub struct MalformedExtensions {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 0.
    pub at: usize,
}

/// The first offer of permessage-deflate that can be accepted. Other extensions, and offers with parameters that RFC 7692 section
/// 7.1 forbids or that are unknown, are declined; all are if deflate is not `enabled`, but the header is judged in any case.
/// Linear in the bytes of the lines.
///
/// # Errors
/// If the header is no list of extensions at all.
pub fn negotiate(lines: &[&str], enabled: bool) -> Result<Option<Negotiated>, MalformedExtensions> {
    let mut agreed = None;
    for (index, line) in lines.iter().enumerate() {
        let mut scanner = Scanner { text: line, at: 0 };
        while let Some(offer) = scanner.offer().map_err(|at| MalformedExtensions { line: index + 1, at })? {
            agreed = agreed.or(offer);
        }
    }
    Ok(agreed.filter(|_| enabled))
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    /// The next extension of the line: `Some(None)` is a declined one. The error is the byte at which the line is malformed.
    fn offer(&mut self) -> Result<Option<Option<Negotiated>>, usize> {
        // RFC 9110 5.6.1: empty elements of a list are ignored.
        while self.skip(b',') {}
        if self.at == self.text.len() {
            return Ok(None);
        }
        let mut terms = Terms { acceptable: self.token()? == EXTENSION, ..Terms::default() };
        while self.skip(b';') {
            let name = self.token()?;
            let value = if self.skip(b'=') { Some(self.value()?) } else { None };
            terms.take(name, value);
        }
        if self.at < self.text.len() && !self.skip(b',') {
            return Err(self.at);
        }
        Ok(Some(terms.agree()))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn skip(&mut self, sign: u8) -> bool {
        self.skip_spaces();
        let there = self.peek() == Some(sign);
        self.at += usize::from(there);
        there
    }

    fn token(&mut self) -> Result<&'t str, usize> {
        self.skip_spaces();
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
            self.at += 1;
        }
        if start == self.at { Err(start) } else { Ok(&self.text[start..self.at]) }
    }

    /// A token, or a quoted string with its quotes, so that the latter equals no accepted value.
    fn value(&mut self) -> Result<&'t str, usize> {
        if !self.skip(b'"') {
            return self.token();
        }
        let start = self.at - 1;
        loop {
            match self.peek() {
                None => return Err(self.at),
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at).ok_or(start)
    }
}

/// The parameters of one offer so far.
#[derive(Default)]
struct Terms {
    acceptable: bool,
    server_no_takeover: bool,
    client_no_takeover: bool,
    client_window: bool,
    server_window_bits: Option<u8>,
}

impl Terms {
    fn take(&mut self, name: &str, value: Option<&str>) {
        let bits = value.and_then(window_bits);
        let legal = match name {
            "server_no_context_takeover" => value.is_none() && !std::mem::replace(&mut self.server_no_takeover, true),
            "client_no_context_takeover" => value.is_none() && !std::mem::replace(&mut self.client_no_takeover, true),
            "client_max_window_bits" => (value.is_none() || bits.is_some()) && !std::mem::replace(&mut self.client_window, true),
            "server_max_window_bits" => bits.is_some() && std::mem::replace(&mut self.server_window_bits, bits).is_none(),
            _ => false,
        };
        self.acceptable &= legal;
    }

    fn agree(self) -> Option<Negotiated> {
        self.acceptable.then(|| Negotiated {
            server_window_bits: self.server_window_bits.unwrap_or(WINDOW_BITS_MAX),
            asked_for_window: self.server_window_bits.is_some(),
        })
    }
}

/// Parses 8 to 15 without leading zeros (RFC 7692 7.1.2.1).
fn window_bits(text: &str) -> Option<u8> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|bits| plain && (WINDOW_BITS_MIN..=WINDOW_BITS_MAX).contains(bits))
}

/// Inflates messages, one after the other; a shard has one.
#[derive(Debug)]
pub struct Inflater {
    codec: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    #[must_use]
    pub fn new() -> Self {
        Self { codec: Decompress::new(false) }
    }

    /// Inflates a whole message into `out`, which is cleared first. Stops with the first byte over `message_bytes_max`.
    ///
    /// # Errors
    /// [`CloseReason::MessageTooBig`], or [`CloseReason::BadDeflate`] for a stream that is damaged or cut.
    pub fn inflate(&mut self, compressed: &[u8], message_bytes_max: usize, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        out.clear();
        self.codec.reset(false);
        if let Some(after_end) = self.feed(compressed, message_bytes_max, out)? {
            // RFC 7692 7.2.3.4: a sender that ends its stream adds one byte, for the flush to be read behind it.
            return if after_end == [0] { Ok(()) } else { Err(CloseReason::BadDeflate) };
        }
        match self.feed(&FLUSH_AND_END, message_bytes_max, out)? {
            Some([]) => Ok(()),
            _ => Err(CloseReason::BadDeflate),
        }
    }

    /// Inflates a part of the input. Returns the rest of the input behind the stream's end, or `None` if the stream goes on.
    fn feed<'i>(&mut self, mut input: &'i [u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<Option<&'i [u8]>, CloseReason> {
        loop {
            if out.len() == out.capacity() {
                let step = out.len().max(INFLATE_BYTES_MIN).min(bytes_max.saturating_add(1) - out.len());
                out.reserve_exact(step);
            }
            let (taken_before, made_before) = (self.codec.total_in(), out.len());
            let status = self.codec.decompress_vec(input, out, FlushDecompress::None).map_err(|_| CloseReason::BadDeflate)?;
            if out.len() > bytes_max {
                return Err(CloseReason::MessageTooBig);
            }
            let taken = usize::try_from(self.codec.total_in() - taken_before).map_err(|_| CloseReason::BadDeflate)?;
            input = input.get(taken..).ok_or(CloseReason::BadDeflate)?;
            if status == Status::StreamEnd {
                return Ok(Some(input));
            }
            if out.len() < out.capacity() {
                if input.is_empty() {
                    return Ok(None);
                }
                if taken == 0 && out.len() == made_before {
                    return Err(CloseReason::BadDeflate);
                }
            }
        }
    }
}

/// Deflates messages, one after the other; a shard has one.
#[derive(Debug)]
pub struct Deflater {
    codec: Compress,
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Deflater {
    /// Level 1: the others cost several times more for a few percent.
    #[must_use]
    pub fn new() -> Self {
        Self { codec: Compress::new(Compression::fast(), false) }
    }

    /// Appends the message's compressed form, for a frame with RSV1 set. Returns `false`, and appends nothing, if that would be
    /// no smaller: send the message as it is. Never use it for a secret beside text of somebody else's choice (RFC 7692 section
    /// 8).
    #[must_use]
    pub fn deflate(&mut self, payload: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let smaller = self.deflate_whatever(payload, window_bits, out) && out.len() - start < payload.len();
        if !smaller {
            out.truncate(start);
        }
        smaller
    }

    /// Appends the compressed form even if it is larger. Returns `false`, and appends nothing, if the message is empty.
    #[must_use]
    pub fn deflate_whatever(&mut self, payload: &[u8], window_bits: u8, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        // The codec's window is fixed at 32 KiB. A stream that forgets what came before every 2^n bytes refers back no further; a full
        // flush makes it do so in half the time of a reset, which clears 300 KiB.
        let (piece_bytes, flush) = if window_bits < WINDOW_BITS_MAX {
            (1 << window_bits.max(WINDOW_BITS_MIN), FlushCompress::Full)
        } else {
            (usize::MAX, FlushCompress::Sync)
        };
        self.codec.reset();
        let done = payload.chunks(piece_bytes).all(|piece| self.deflate_piece(piece, flush, out));
        let flushed = done && out[start..].ends_with(&FLUSH);
        out.truncate(if flushed { out.len() - FLUSH.len() } else { start });
        flushed
    }

    fn deflate_piece(&mut self, mut piece: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> bool {
        // A call that begins with output still inside the codec gives that out and no more: the flush is the next call's.
        let mut drained = true;
        loop {
            // Room for what does not compress, and no more: all that is given is cleared first.
            let from = out.len();
            out.resize(from + piece.len() + piece.len() / 8 + PIECE_ADDED_BYTES_MAX, 0);
            let (taken_before, made_before) = (self.codec.total_in(), self.codec.total_out());
            let status = self.codec.compress(piece, &mut out[from..], flush);
            let made = usize::try_from(self.codec.total_out() - made_before).unwrap_or(usize::MAX);
            let room_left = made < out.len() - from;
            out.truncate(from.saturating_add(made));
            if status.is_err() {
                return false;
            }
            let taken = usize::try_from(self.codec.total_in() - taken_before).unwrap_or(usize::MAX);
            let Some(rest) = piece.get(taken..) else { return false };
            piece = rest;
            if piece.is_empty() && room_left && drained {
                return true;
            }
            drained = room_left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agreed(line: &str) -> Option<String> {
        negotiate(&[line], true).unwrap().map(|agreed| agreed.header_value())
    }

    #[test]
    fn offers_that_are_honoured() {
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=15 ; client_no_context_takeover;server_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "foo; bar=\"a, b; c\\\"d\", , permessage-deflate",
            "permessage-deflate; server_max_window_bits=7, permessage-deflate",
            "permessage-deflate; unknown, permessage-deflate; client_max_window_bits",
        ] {
            assert_eq!(agreed(offer).as_deref(), Some(plain), "{offer}");
        }
        for bits in 8..=15 {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            assert_eq!(agreed(&offer), Some(format!("{plain}; server_max_window_bits={bits}")));
            assert_eq!(negotiate(&[&offer], true).unwrap().unwrap().server_window_bits, bits);
        }
        assert_eq!(negotiate(&["foo", "permessage-deflate"], true).unwrap().map(|agreed| agreed.server_window_bits), Some(15));
    }

    #[test]
    fn h16_offers_that_are_declined() {
        for parameter in [
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=\"10\"",
            "server_max_window_bits=10; server_max_window_bits=10",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=015",
            "client_max_window_bits; client_max_window_bits",
            "client_no_context_takeover=1",
            "client_no_context_takeover; client_no_context_takeover",
            "server_no_context_takeover; server_no_context_takeover",
            "constructor",
            "__proto__=1",
        ] {
            assert_eq!(agreed(&format!("permessage-deflate; {parameter}")), None, "{parameter}");
        }
        assert_eq!(agreed("constructor"), None);
        assert_eq!(agreed(""), None);
        assert_eq!(agreed(" , ,"), None);
        assert_eq!(agreed(&format!("permessage-deflate{}", "; a".repeat(10_000))), None);
    }

    #[test]
    fn h16_what_is_no_list_of_extensions() {
        for (line, at) in [
            (";", 0),
            ("permessage-deflate;", 19),
            ("permessage-deflate;;a", 19),
            ("permessage-deflate; =5", 20),
            ("permessage-deflate; a=", 22),
            ("permessage-deflate; a=\"open", 27),
            ("permessage-deflate; a=\"open\\", 28),
            ("permessage-deflate a", 19),
            ("a=b", 1),
            ("\"permessage-deflate\"", 0),
            ("é", 0),
            ("a; b=\"é", 8),
        ] {
            let error = negotiate(&["ok", line], true).unwrap_err();
            assert_eq!((error.line, error.at.min(line.len())), (2, at), "{line}");
            assert_eq!(negotiate(&["ok", line], false), Err(error), "{line}: judged where deflate is off too");
        }
        assert_eq!(negotiate(&["permessage-deflate", "", " , x; a=1,"], false), Ok(None));
        assert!(negotiate(&["a; b=\"\\é"], true).is_err());
    }

    fn deflated(payload: &[u8], window_bits: u8) -> Vec<u8> {
        let mut out = b"head".to_vec();
        assert!(Deflater::new().deflate(payload, window_bits, &mut out));
        out.split_off(4)
    }

    /// For any room that the output begins with, and any place of the stream at which it is full.
    #[test]
    fn the_flush_is_never_lost() {
        let mut noise = 1_u64;
        let payload: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(100_000)
        .collect();
        let mut deflater = Deflater::new();
        for bytes in (1_000..100_000).step_by(997) {
            for room in [0, 300, bytes, bytes + 20, bytes + 40] {
                let mut out = Vec::with_capacity(room);
                assert!(deflater.deflate_whatever(&payload[..bytes], 15, &mut out), "{bytes} bytes into {room}");
                assert_eq!(inflated(&out, bytes).as_deref(), Ok(&payload[..bytes]));
            }
        }
    }

    fn inflated(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, CloseReason> {
        let mut out = b"left over".to_vec();
        Inflater::new().inflate(compressed, bytes_max, &mut out).map(|()| out)
    }

    #[test]
    fn the_rfcs_own_examples_inflate() {
        // RFC 7692 7.2.3.1, 7.2.3.3 (stored), 7.2.3.4 (final block), 7.2.3.5 (two blocks), 7.2.3.6 (empty).
        let hello: [&[u8]; 4] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for compressed in hello {
            assert_eq!(inflated(compressed, 5).unwrap(), b"Hello", "{compressed:02x?}");
            assert_eq!(inflated(compressed, 4), Err(CloseReason::MessageTooBig), "{compressed:02x?}");
        }
        assert_eq!(inflated(&[0x00], 0).unwrap(), b"");
    }

    #[test]
    fn c1_a_bomb_stops_at_the_limit() {
        let bomb = deflated(&vec![0; 16 << 20], 15);
        assert!(bomb.len() < 100_000);
        let mut out = Vec::new();
        assert_eq!(Inflater::new().inflate(&bomb, 65_536, &mut out), Err(CloseReason::MessageTooBig));
        assert!(out.len() <= 65_537 && out.capacity() < 2 * 65_537, "{} of {}", out.len(), out.capacity());
        let exact = deflated(&vec![7; 65_536], 15);
        assert_eq!(inflated(&exact, 65_536).unwrap(), vec![7; 65_536]);
        assert_eq!(inflated(&exact, 65_535), Err(CloseReason::MessageTooBig));
    }

    #[test]
    fn c4_damaged_streams_are_refused() {
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(50);
        let compressed = deflated(text.as_bytes(), 15);
        for cut in 0..compressed.len() - 1 {
            assert_eq!(inflated(&compressed[..cut], 1 << 20), Err(CloseReason::BadDeflate), "cut at {cut}");
        }
        assert_eq!(inflated(&[], 100), Err(CloseReason::BadDeflate));
        assert_eq!(inflated(&[0xff; 20], 100), Err(CloseReason::BadDeflate), "reserved block type");
        assert_eq!(inflated(&[0x00, 0x01, 0x00, 0x00, 0x00, 0x41], 100), Err(CloseReason::BadDeflate), "stored length");
        assert_eq!(inflated(&[0x03, 0x00, 0x00, 0x00], 100), Err(CloseReason::BadDeflate), "data behind the end");
        let empty_blocks = [0x00, 0x00, 0x00, 0xff, 0xff].repeat(13_000);
        assert_eq!(inflated(&[&empty_blocks[..], &[0x00]].concat(), 100).unwrap(), b"");
    }

    #[test]
    fn one_codec_serves_message_after_message() {
        let (mut deflater, mut inflater, mut plain) = (Deflater::new(), Inflater::new(), Vec::new());
        assert_eq!(inflater.inflate(&[0xff; 9], 100, &mut plain), Err(CloseReason::BadDeflate));
        let mut forms = Vec::new();
        for _ in 0..3 {
            let mut out = Vec::new();
            assert!(deflater.deflate(&b"abc".repeat(1000), 15, &mut out));
            inflater.inflate(&out, 3000, &mut plain).unwrap();
            assert_eq!(plain, b"abc".repeat(1000));
            forms.push(out);
        }
        assert!(forms.iter().all(|form| *form == forms[0]), "no context is taken over");
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let mut state = 1u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(5000)
        .collect();
        let mut out = b"head".to_vec();
        assert!(!Deflater::new().deflate(&noise, 15, &mut out));
        assert_eq!(out, b"head");
    }

    #[test]
    fn a_small_window_is_never_reached_behind() {
        // Equal halves further apart than the window: the second may not refer to the first.
        let half: Vec<u8> = (0..2048u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f).collect();
        let payload = half.repeat(2);
        let (small, large) = (deflated(&payload, 8), deflated(&payload, 15));
        assert!(large.len() < small.len() * 3 / 4, "{} {}", large.len(), small.len());
        assert_eq!(inflated(&small, 4096).unwrap(), payload);
    }

    proptest! {
        #[test]
        fn round_trips(word in prop::collection::vec(any::<u8>(), 1..50), times in 40usize..400, bits in 8u8..=15) {
            let payload = word.repeat(times);
            let mut out = Vec::new();
            if Deflater::new().deflate(&payload, bits, &mut out) {
                prop_assert!(out.len() < payload.len());
                prop_assert_eq!(inflated(&out, payload.len()).unwrap(), payload);
            }
        }

        #[test]
        fn with_a_small_window_each_piece_is_as_if_nothing_came_before(
            word in prop::collection::vec(any::<u8>(), 1..50),
            times in 40usize..3_000,
            bits in 8u8..15,
        ) {
            let (payload, mut deflater, mut out) = (word.repeat(times), Deflater::new(), Vec::new());
            for _ in 0..2 {
                out.clear();
                prop_assert!(deflater.deflate_whatever(&payload, bits, &mut out));
            }
            let alone = |piece: &[u8]| {
                let mut out = Vec::new();
                assert!(Deflater::new().deflate_whatever(piece, WINDOW_BITS_MAX, &mut out));
                out
            };
            let pieces: Vec<Vec<u8>> = payload.chunks(1 << bits).map(alone).collect();
            prop_assert_eq!(out, pieces.join(&FLUSH[..]));
        }

        #[test]
        fn any_bytes_end_within_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(plain) = inflated(&bytes, 1000) {
                prop_assert!(plain.len() <= 1000);
            }
        }

        #[test]
        fn any_header_is_judged(line in "[ -~]{0,60}", offer in "(permessage-deflate|[;=, \"a1]|server_max_window_bits){0,12}") {
            let _ = negotiate(&[&line, &offer], true);
        }
    }
}
