//! The way in: bytes, frames, messages; and the end of a connection.

use super::contained::contained;
use crate::auth::AuthError;
use crate::close::CloseReason;
use crate::config::Limits;
use crate::ids::ConnId;
use crate::io::{Io, Read};
use crate::limits::{ECHO_FRAGMENTS_MAX, ECHO_MESSAGE_BYTES_MAX};
use crate::protocol::{ErrorCode, Failure, Head, Kind, ParseError, Refusal, command_kind};
use crate::shard::connections::conn::{Closing, Phase};
use crate::shard::connections::handshake::auth_code;
use crate::shard::connections::rate::Rate;
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::outbound::replies::enqueue;
use crate::time::Tick;
use crate::ws::decoder::{Item, Limits as FrameLimits, Payload};
use crate::ws::deflate::Inflater;
use crate::ws::{Opcode, encoder};

/// Plaintext that one call takes from TLS before it is handled.
const PLAIN_BYTES: usize = 64 * 1024;

impl Core {
    pub(in crate::shard) fn on_received<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &mut [u8], now: Tick) {
        self.cx.counters.bytes_in.add(bytes.len() as u64);
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.last_heard_ms = now.mono_ms();
        let was_pinged = std::mem::take(&mut conn.pinged_ms) > 0;
        let (is_secured, ahead) = (conn.tls.is_some(), matches!(conn.phase, Phase::Proxy(_)));
        if was_pinged {
            // The next ping may be due before this one's answer was.
            self.set_timer(id, now);
        }
        if is_secured {
            // A proxy names the client before TLS begins (proxy-protocol.txt section 2).
            let consumed = if ahead { self.on_proxy_bytes(io, id, bytes, now) } else { 0 };
            self.on_ciphertext(io, id, &mut bytes[consumed..], now);
        } else {
            self.on_plain(io, id, bytes, now);
        }
        if self.connections.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Proxy(_) | Phase::Head(_) | Phase::Hello)) {
            io.read(id, Read::Once);
        }
    }

    fn on_ciphertext<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &mut [u8], now: Tick) {
        let mut rest = bytes;
        loop {
            let mut plain = std::mem::take(&mut self.codec.plain);
            plain.clear();
            let conn = self.connections.get_mut(id);
            let Some(tls) = conn.and_then(|conn| conn.tls.as_mut()) else {
                self.codec.plain = plain;
                break;
            };
            tls.lend(&mut self.cx.buffers);
            // Contained as the decoder is: ciphertext belongs to one connection, and so does the state that reads it.
            let Ok(received) = contained(|| tls.receive(rest, &mut plain, PLAIN_BYTES)) else {
                self.codec.plain = plain;
                self.on_tls_panic(id);
                break self.close(io, id, CloseReason::Internal, now);
            };
            tls.reclaim(&mut self.cx.buffers);
            let secured = !tls.handshaking();
            let wants_send = !tls.pending().is_empty();
            if let Some(conn) = self.connections.get_mut(id)
                && secured
                && !conn.flags.secured
            {
                conn.flags.secured = true;
                conn.accepted_ms = now.mono_ms();
                self.set_timer(id, now);
            }
            if wants_send {
                self.connections.mark(id);
            }
            match received {
                Ok(received) => {
                    self.on_plain(io, id, &mut plain, now);
                    self.codec.plain = plain;
                    rest = &mut rest[received.consumed..];
                    if received.closed {
                        self.on_ended(io, id, None, now);
                    }
                    if !received.more {
                        break;
                    }
                }
                Err(error) => {
                    tracing::debug!(connection_id = %self.connection_id(id), %error, "TLS failed");
                    self.codec.plain = plain;
                    self.close(io, id, CloseReason::Tls, now);
                    break;
                }
            }
        }
    }

    pub(in crate::shard) fn on_plain<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &mut [u8], now: Tick) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(conn) = self.connections.get_mut(id) else { return };
            if conn.leaving.is_some() {
                // RFC 6455 5.5.1: nothing may follow the peer's close frame, and later bytes are dropped.
                return self.cx.counters.dropped(DropReason::AfterClose, 1);
            }
            let consumed = match &mut conn.phase {
                Phase::Proxy(_) => self.on_proxy_bytes(io, id, rest, now),
                Phase::Head(_) => self.on_head_bytes(io, id, rest, now),
                Phase::HandingOver(handover) => {
                    handover.rest.extend_from_slice(rest);
                    return;
                }
                Phase::Closing(_) => return self.on_closing_bytes(io, id, rest),
                Phase::Hello | Phase::Open | Phase::Echo => return self.on_frames(io, id, rest, now),
            };
            rest = &mut rest[consumed..];
        }
    }

    /// The decoder's limits for an endpoint.
    fn frame_limits(limits: &Limits, echo: bool, deflate: bool) -> FrameLimits {
        if echo {
            let (message_bytes_max, fragments_max) = (ECHO_MESSAGE_BYTES_MAX, ECHO_FRAGMENTS_MAX);
            return FrameLimits { message_bytes_max, fragments_max, utf8: true, deflate, binary: true };
        }
        // The JSON parser checks UTF-8, of the whole message and only once.
        FrameLimits {
            message_bytes_max: limits.max_message_bytes,
            fragments_max: limits.max_fragments,
            utf8: false,
            deflate,
            binary: false,
        }
    }

    fn on_frames<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &mut [u8], now: Tick) {
        let mut rest = bytes;
        loop {
            let Some(conn) = self.connections.get_mut(id) else { return };
            if conn.id != id {
                return;
            }
            if !conn.speaks_frames() || conn.leaving.is_some() {
                return self.on_plain(io, id, rest, now);
            }
            let echo = matches!(conn.phase, Phase::Echo);
            let limits = Self::frame_limits(&self.cx.snapshot.settings.limits, echo, conn.flags.deflate);
            let (decoder, buffers) = (&mut conn.decoder, &mut self.cx.buffers);
            // A panic is contained where one connection's bytes are read, and nowhere else: these belong to this connection
            // alone.
            let item = contained(|| decoder.next(&mut rest, &limits, buffers));
            match item {
                Ok(Ok(Some(item))) => self.on_item(io, id, item, now),
                Ok(Ok(None)) => break,
                Ok(Err(reason)) => return self.close(io, id, reason, now),
                Err(_) => return self.on_decode_panic(io, id, now),
            }
        }
        self.after_frames(io, id, now);
    }

    fn on_decode_panic<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        self.cx.counters.panics.increment();
        tracing::error!(connection_id = %self.connection_id(id), "a panic while decoding this connection's bytes: the connection is closed");
        self.close(io, id, CloseReason::Internal, now);
    }

    /// Handles a panic in TLS. It leaves a state that must not be used again, not even for the ciphertext of a close frame: the
    /// state is removed, nothing more is sent, and the caller ends the connection, which drops it.
    pub(in crate::shard) fn on_tls_panic(&mut self, id: ConnId) {
        self.cx.counters.panics.increment();
        tracing::error!(connection_id = %self.connection_id(id), "a panic in this connection's TLS: the connection is closed");
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.tls = None;
        conn.flags.broken = true;
        conn.flags.blocked = true;
    }

    /// Follows up on one read: the timer of an unfinished message, and backpressure.
    fn after_frames<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let reply_queue_bytes = self.cx.snapshot.settings.limits.reply_queue_bytes;
        let Some(conn) = self.connections.get_mut(id) else { return };
        let unfinished = conn.decoder.unfinished();
        let began = unfinished && conn.unfinished_ms == 0;
        conn.unfinished_ms = match (unfinished, conn.unfinished_ms) {
            (false, _) => 0,
            (true, 0) => now.mono_ms().max(1),
            (true, since) => since,
        };
        let pauses =
            conn.queued_bytes() > reply_queue_bytes && conn.paused_ms == 0 && matches!(conn.phase, Phase::Open | Phase::Echo);
        if pauses {
            conn.paused_ms = now.mono_ms().max(1);
            io.read(id, Read::Off);
            self.cx.counters.limit_reached(LimitReached::Backpressure);
        }
        if began || pauses {
            self.set_timer(id, now);
        }
    }

    fn on_item<I: Io>(&mut self, io: &mut I, id: ConnId, item: Item<'_>, now: Tick) {
        match item {
            Item::Message { text, compressed, payload } => self.on_message(io, id, text, compressed, payload, now),
            Item::Ping(payload) => {
                if self.control_frame_allowed(io, id, now) {
                    self.connections.queue_pong(&mut self.cx, id, &payload);
                }
                payload.recycle(&mut self.cx.buffers);
            }
            Item::Pong(payload) => {
                self.control_frame_allowed(io, id, now);
                payload.recycle(&mut self.cx.buffers);
            }
            Item::Close { code, reason } => {
                reason.recycle(&mut self.cx.buffers);
                self.on_close_frame(io, id, code, now);
            }
        }
    }

    fn control_frame_allowed<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) -> bool {
        let limits = self.cx.snapshot.settings.limits;
        let rate = Rate { per_second: limits.control_frames_per_second, burst: limits.control_frames_burst };
        let Some(conn) = self.connections.get_mut(id) else { return false };
        // Conformance suites send bursts of pings on purpose.
        if matches!(conn.phase, Phase::Echo) || conn.controls.take(rate, 1, now.mono_ns).is_ok() {
            return true;
        }
        self.cx.counters.limit_reached(LimitReached::ControlFrameRate);
        self.close(io, id, CloseReason::ControlFlood, now);
        false
    }

    fn on_message<I: Io>(&mut self, io: &mut I, id: ConnId, text: bool, compressed: bool, payload: Payload<'_>, now: Tick) {
        if compressed {
            let echo = self.connections.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Echo));
            if !echo && let Some(wait_ms) = self.inflates_no_more(id, now) {
                payload.recycle(&mut self.cx.buffers);
                // The message was not parsed, so it has no id: the refusal identifies it by its number.
                return self.refuse_rate(io, id, Head { id: "", session_id: "" }, wait_ms, now);
            }
            let bytes_max = if echo { ECHO_MESSAGE_BYTES_MAX } else { self.cx.snapshot.settings.limits.max_message_bytes };
            let mut inflated = std::mem::take(&mut self.codec.inflated);
            // Contained as the decoder is; the codec that a panic left is not used for the next message.
            let Ok(outcome) = contained(|| self.codec.inflater.inflate(&payload, bytes_max, &mut inflated)) else {
                self.codec.inflater = Inflater::new();
                payload.recycle(&mut self.cx.buffers);
                return self.on_decode_panic(io, id, now);
            };
            self.cx.counters.inflated_bytes.add(inflated.len() as u64);
            match outcome {
                Ok(()) if echo && text && std::str::from_utf8(&inflated).is_err() => {
                    self.close(io, id, CloseReason::NotUtf8, now);
                }
                Ok(()) => self.on_payload(io, id, text, true, &inflated, now),
                Err(reason) => self.close(io, id, reason, now),
            }
            inflated.clear();
            inflated.shrink_to(POOL_INFLATED_BYTES);
            self.codec.inflated = inflated;
        } else {
            self.on_payload(io, id, text, false, &payload, now);
        }
        payload.recycle(&mut self.cx.buffers);
    }

    fn on_payload<I: Io>(&mut self, io: &mut I, id: ConnId, text: bool, compressed: bool, payload: &[u8], now: Tick) {
        self.cx.counters.messages_in.increment();
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.messages_in += 1;
        if matches!(conn.phase, Phase::Echo) {
            return self.echo(id, text, compressed, payload);
        }
        let over_rate = self.over_rate(id, payload.len(), compressed, now);
        let Some(mut parser) = self.codec.parser.take() else { return };
        // Contained as the decoder is: the text belongs to this connection alone.
        let reader = &mut *parser;
        let parsed = contained(move || reader.parse(payload));
        match (parsed, over_rate) {
            (Ok(Ok(envelope)), Some(wait_ms)) => {
                let head = Head { id: envelope.id, session_id: envelope.session_id };
                self.refuse_rate(io, id, head, wait_ms, now);
            }
            (Ok(Err(ParseError::Refused(refusal))), Some(wait_ms)) => {
                let head = Head { id: &refusal.id, session_id: &refusal.session_id };
                self.refuse_rate(io, id, head, wait_ms, now);
            }
            (Ok(Ok(envelope)), None) => {
                let hello = self.connections.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Hello));
                if hello {
                    self.on_hello(io, id, &envelope, now);
                } else {
                    match command_kind(envelope.kind) {
                        Kind::Application => self.route(io, id, &envelope, payload, now),
                        _ => self.on_command(io, id, &envelope, payload, now),
                    }
                }
            }
            (Ok(Err(ParseError::Fatal(reason))), _) => self.close(io, id, reason, now),
            (Ok(Err(ParseError::Refused(refusal))), None) => self.on_bad_envelope(io, id, &refusal, now),
            (Err(_), _) => {
                *parser = crate::protocol::Parser::default();
                self.on_decode_panic(io, id, now);
            }
        }
        self.codec.parser = Some(parser);
    }

    fn on_bad_envelope<I: Io>(&mut self, io: &mut I, id: ConnId, refusal: &Refusal, now: Tick) {
        if self.connections.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Hello)) {
            self.connections.refuse(&mut self.cx, id, refusal);
            return self.close(io, id, CloseReason::HelloExpected, now);
        }
        self.connections.refuse(&mut self.cx, id, refusal);
        let limits = self.cx.snapshot.settings.limits;
        let window_s = (limits.bad_envelopes_window_ms / 1000).max(1);
        let (count, now_ns) = (u64::from(limits.bad_envelopes), now.mono_ns);
        let Some(conn) = self.connections.get_mut(id) else { return };
        // `count` in a window, as a bucket of that size which refills over the window. The count itself closes the connection, so
        // one less may stay.
        let rate = Rate { per_second: count.div_ceil(window_s), burst: count.saturating_sub(1).max(1) };
        if count > 0 && conn.abuse.get_or_insert_default().refusals.take(rate, 1, now_ns).is_err() {
            self.cx.counters.limit_reached(LimitReached::BadEnvelopes);
            self.close(io, id, CloseReason::EnvelopeAbuse, now);
        }
    }

    /// Counts a message against the connection's rates. Returns the milliseconds until there is room, if it is over one of them.
    fn over_rate(&mut self, id: ConnId, bytes: usize, inflated: bool, now: Tick) -> Option<u64> {
        let limits = &self.cx.snapshot.settings.limits;
        let messages = Rate { per_second: limits.messages_per_second, burst: limits.messages_burst };
        let byte_rate = self.cx.byte_rate();
        let conn = self.connections.get_mut(id)?;
        let over_messages = conn.messages.take(messages, 1, now.mono_ns).err();
        if inflated {
            // The work is done, even if the message is refused now.
            conn.bytes.charge(byte_rate, bytes as u64, now.mono_ns);
        }
        let (limit, wait_ms) = match over_messages {
            Some(wait_ms) => (LimitReached::MessageRate, wait_ms),
            None if inflated => return None,
            None => (LimitReached::ByteRate, conn.bytes.take(byte_rate, bytes as u64, now.mono_ns).err()?),
        };
        self.connections.note_over_rate(&self.cx, id, limit, now);
        Some(wait_ms)
    }

    /// A few bytes may inflate to a thousand times as many. Earlier inflated bytes must be paid for first, else nothing is
    /// inflated: returns the milliseconds to wait.
    fn inflates_no_more(&mut self, id: ConnId, now: Tick) -> Option<u64> {
        let byte_rate = self.cx.byte_rate();
        let conn = self.connections.get_mut(id)?;
        let wait_ms = conn.bytes.wait(byte_rate, now.mono_ns)?;
        conn.messages_in += 1;
        self.cx.counters.messages_in.increment();
        self.connections.note_over_rate(&self.cx, id, LimitReached::ByteRate, now);
        Some(wait_ms)
    }

    /// Answers a message over its rate; a connection that continues is closed.
    fn refuse_rate<I: Io>(&mut self, io: &mut I, id: ConnId, head: Head<'_>, wait_ms: u64, now: Tick) {
        let abuse_ms = self.cx.snapshot.settings.limits.rate_abuse_ms;
        let message =
            "this connection sends more than its rate: wait, then send it again (limits.messages_per_second, bytes_per_second)";
        self.connections.refuse(
            &mut self.cx,
            id,
            &Refusal {
                id: head.id.into(),
                session_id: head.session_id.into(),
                code: ErrorCode::LimitRate,
                message: message.into(),
                pointer: "".into(),
                retry_after_ms: Some(wait_ms),
            },
        );
        let since_ms = self.connections.get(id).and_then(|conn| conn.abuse.as_ref()).map_or(u64::MAX, |abuse| abuse.over_rate_ms);
        let over_ms = now.mono_ms().saturating_sub(since_ms);
        if abuse_ms > 0 && over_ms >= abuse_ms {
            self.cx.counters.limit_reached(LimitReached::RateAbuse);
            self.close(io, id, CloseReason::Rate, now);
        }
    }

    /// Echoes a message. A compressed one is sent back compressed, whatever its size and gain: conformance suites check both
    /// ways.
    fn echo(&mut self, id: ConnId, text: bool, compressed: bool, payload: &[u8]) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        let opcode = if text { Opcode::Text } else { Opcode::Binary };
        let mut deflated = if compressed { self.cx.buffers.take() } else { Vec::new() };
        let is_deflated = compressed && self.codec.deflater.deflate_whatever(payload, conn.window_bits, &mut deflated);
        let bytes = if is_deflated { &deflated } else { payload };
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| encoder::frame(opcode, is_deflated, bytes, queue));
        self.cx.buffers.give(deflated);
        conn.queued_frames += 1;
        self.connections.mark(id);
    }

    fn on_close_frame<I: Io>(&mut self, io: &mut I, id: ConnId, code: Option<u16>, now: Tick) {
        // RFC 6455 5.5.1: the answer echoes the code.
        if let Some(conn) = self.connections.get_mut(id) {
            conn.answer_code = Some(code);
            conn.clean = matches!(code, None | Some(1000));
        }
        self.end(io, id, CloseReason::ClientClosed, now);
    }

    /// Ends a connection: its members are detached, the close frame is queued, and data that still arrives is dropped until the
    /// peer has closed too or the time is over.
    pub(in crate::shard) fn close<I: Io>(&mut self, io: &mut I, id: ConnId, reason: CloseReason, now: Tick) {
        let close_ms = self.cx.snapshot.settings.limits.close_ms;
        let Some(conn) = self.connections.get_mut(id) else { return };
        if matches!(conn.phase, Phase::Closing(_)) {
            // Broken while it closed, or everything is sent on either side: nothing is waited for.
            if conn.flags.broken || conn.flags.ended && conn.has_sent_all() {
                self.drop_conn(io, id, now);
            }
            return;
        }
        let framed = conn.speaks_frames();
        let answer = conn.answer_code.take();
        let peer_done = conn.flags.ended || answer.is_some() || !framed;
        // Another reason that ends it during the wait for answers has a code of its own.
        let answer = answer.filter(|_| reason == CloseReason::ClientClosed);
        // For a connection that was answered first, the time began before; its close frame is sent all the same.
        let least_ms = (now.mono_ms() + 1).saturating_sub(close_ms);
        let began = conn.leaving.take().map(|leaving| leaving.since_ms.max(least_ms));
        let since_ms = began.unwrap_or_else(|| now.mono_ms());
        let before = std::mem::replace(&mut conn.phase, Phase::Closing(Closing { reason, since_ms, peer_done, finished: false }));
        conn.paused_ms = 0;
        conn.unfinished_ms = 0;
        if let Some(limit) = LimitReached::behind(reason) {
            self.cx.counters.limit_reached(limit);
        }
        tracing::debug!(connection_id = %self.connection_id(id), reason = reason.label(), "closing");
        self.not_half_open(id);
        self.leave_all(io, id, now);
        let Some(conn) = self.connections.get_mut(id) else { return };
        let silent = conn.flags.broken || matches!(reason, CloseReason::Shed | CloseReason::SocketError);
        match before {
            // The user is counted by the grant.
            Phase::HandingOver(handover) => conn.grant = Some(handover.grant),
            Phase::Proxy(_) => {}
            Phase::Head(_) if reason != CloseReason::HttpAnswered => {}
            // RFC 6455 7.1.5: without a close frame from the peer there is none to answer.
            _ if silent || reason == CloseReason::Ended => {}
            Phase::Hello | Phase::Open | Phase::Echo => {
                let code = match answer {
                    Some(code) => code,
                    None => reason.code(),
                };
                let label = if answer.is_some() { "" } else { reason.label() };
                enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| encoder::close_frame(code, label, queue));
            }
            Phase::Head(_) | Phase::Closing(_) => {}
        }
        conn.decoder.release(&mut self.cx.buffers);
        // RFC 8446 6.1: a peer that still reads learns that nothing was cut off.
        conn.flags.close_notify = conn.tls.is_some() && !silent && (conn.flags.secured || !conn.flags.ended);
        let tls_failed = matches!(reason, CloseReason::Tls);
        let nothing_left = conn.queue.is_empty() && conn.tls.as_ref().is_none_or(|tls| tls.pending().is_empty());
        if silent || conn.flags.ended && conn.has_sent_all() || tls_failed && nothing_left {
            return self.drop_conn(io, id, now);
        }
        if !conn.flags.ended {
            io.read(id, Read::Stream);
        }
        self.connections.mark(id);
        self.set_timer(id, now);
    }

    /// Handles bytes after our close frame: only the peer's own close frame matters.
    fn on_closing_bytes<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &mut [u8]) {
        self.cx.counters.dropped(DropReason::AfterClose, 1);
        let Some(conn) = self.connections.get_mut(id) else { return };
        let limits = Self::frame_limits(&self.cx.snapshot.settings.limits, false, conn.flags.deflate);
        let Phase::Closing(closing) = &mut conn.phase else { return };
        let (mut rest, decoder, buffers) = (bytes, &mut conn.decoder, &mut self.cx.buffers);
        let mut done = closing.peer_done;
        while !done {
            match contained(|| decoder.next(&mut rest, &limits, buffers)) {
                Ok(Ok(Some(Item::Message { payload, .. } | Item::Ping(payload) | Item::Pong(payload)))) => {
                    payload.recycle(buffers);
                }
                Ok(Ok(None)) => break,
                // The peer sends its close frame, or bytes that are no WebSocket any more: it is done.
                Ok(Ok(Some(Item::Close { .. })) | Err(_)) | Err(_) => done = true,
            }
        }
        done |= decoder.over();
        if done && !closing.peer_done {
            closing.peer_done = true;
            let flushed = conn.queue.is_empty() && conn.tls.as_ref().is_none_or(|tls| tls.pending().is_empty());
            if flushed && !closing.finished {
                closing.finished = true;
                io.finish(id);
            }
        }
    }

    pub(in crate::shard) fn on_ended<I: Io>(&mut self, io: &mut I, id: ConnId, error: Option<&std::io::Error>, now: Tick) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        if error.is_some() {
            conn.flags.broken = true;
            return match conn.phase {
                Phase::Closing(_) => self.drop_conn(io, id, now),
                _ => self.close(io, id, CloseReason::SocketError, now),
            };
        }
        conn.flags.ended = true;
        let sent_all = conn.has_sent_all();
        match &mut conn.phase {
            // RFC 9293 3.6: the peer may still read, and is sent what was queued.
            Phase::Closing(closing) if !sent_all && !closing.finished => closing.peer_done = true,
            Phase::Closing(_) => self.drop_conn(io, id, now),
            Phase::HandingOver(_) => {}
            _ => self.end(io, id, CloseReason::Ended, now),
        }
    }

    /// Removes a connection and closes its socket.
    pub(in crate::shard) fn drop_conn<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let reason = match self.connections.get(id) {
            Some(conn) => match conn.phase {
                Phase::Closing(closing) => closing.reason,
                _ => CloseReason::Shutdown,
            },
            None => return,
        };
        if !matches!(self.connections.get(id).map(|conn| &conn.phase), Some(Phase::Closing(_))) {
            self.leave_all(io, id, now);
        }
        let info = self.describe(id, now);
        let Some(mut conn) = self.connections.table.get_mut(id.index as usize).and_then(Option::take) else { return };
        self.connections.count -= 1;
        self.cx.counters.closed(reason);
        self.cx.counters.buffer_bytes.subtract(conn.memory_bytes() as u64);
        if let Some(info) = info.filter(|_| !conn.flags.forgettable) {
            let pushed_out = self.connections.closed.remember(info, reason, now.mono_ms());
            self.cx.counters.dropped(DropReason::ClosedRecord, pushed_out);
        }
        self.leave_admission(&mut conn);
        self.cx.buffers.give(std::mem::take(&mut conn.queue));
        conn.decoder.release(&mut self.cx.buffers);
        io.close(id);
    }
}

/// The wait that a refusal for lack of room asks for, in milliseconds.
pub(in crate::shard) const RETRY_AFTER_MS: u64 = 500;
/// Largest buffer of an inflated message that is kept.
const POOL_INFLATED_BYTES: usize = 128 * 1024;

impl Connections {
    fn note_over_rate(&mut self, cx: &Context, id: ConnId, limit: LimitReached, now: Tick) {
        cx.counters.limit_reached(limit);
        let now_ms = now.mono_ms().max(1);
        let Some(conn) = self.get_mut(id) else { return };
        let abuse = conn.abuse.get_or_insert_default();
        if abuse.over_rate_ms == 0 || now_ms.saturating_sub(abuse.last_over_rate_ms) > 1_000 {
            abuse.over_rate_ms = now_ms;
        }
        abuse.last_over_rate_ms = now_ms;
    }

    /// Queues an `rw.error` for a message of this connection.
    pub(in crate::shard) fn refuse(&mut self, cx: &mut Context, id: ConnId, refusal: &Refusal) {
        cx.counters.refused.increment();
        let frame = self.get(id).map(|conn| conn.messages_in);
        self.reply_now(cx, id, |out| crate::protocol::error(out, &Failure::of(refusal, frame)));
    }

    /// Queues an `rw.error` for a token, and counts it.
    pub(in crate::shard) fn refuse_token(&mut self, cx: &mut Context, id: ConnId, head: Head<'_>, error: &AuthError) {
        cx.counters.auth_refused.increment();
        self.refuse_with(cx, id, head, auth_code(error), &error.to_string(), Some("/payload/auth_token"));
    }

    /// Queues an `rw.error` with a short text.
    pub(in crate::shard) fn refuse_with(
        &mut self,
        cx: &mut Context,
        id: ConnId,
        head: Head<'_>,
        code: ErrorCode,
        message: &str,
        pointer: Option<&str>,
    ) {
        cx.counters.refused.increment();
        let frame = self.get(id).map(|conn| conn.messages_in);
        let retry_after_ms = code.retryable().then_some(RETRY_AFTER_MS);
        self.reply_now(cx, id, |out| {
            crate::protocol::error(out, &Failure { head, code, message, retry_after_ms, pointer, frame });
        });
    }
}

impl Context {
    fn byte_rate(&self) -> Rate {
        let limits = &self.snapshot.settings.limits;
        Rate { per_second: limits.bytes_per_second, burst: limits.bytes_per_second.max(limits.max_message_bytes as u64) }
    }
}
