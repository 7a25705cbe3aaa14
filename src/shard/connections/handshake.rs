//! From the request to the welcome: the HTTP upgrade, the hello, and the handover to the session's home.

use super::conn::{Conn, Handover, Phase};
use crate::auth::AuthError;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::{Io, Read};
use crate::limits::TOKEN_BYTES_MAX;
use crate::net::http::{Progress, Request};
use crate::net::probe::{Check, Probe, probe, write_answer};
use crate::net::refusal::HttpRefusal;
use crate::net::upgrade::{Endpoint, upgrade};
use crate::protocol::{Attach, Command, Envelope, ErrorCode, Head, Refusal, Start};
use crate::session::{Place, Wanted};
use crate::shard::across::mesh::{AttachRequest, LaneMessage};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::outbound::replies::enqueue;
use crate::shard::timers::Timer;
use crate::time::Tick;
use crate::ws::deflate::negotiate;

impl Core {
    pub(in crate::shard) fn on_head_bytes<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &[u8], now: Tick) -> usize {
        let Some(conn) = self.connections.get_mut(id) else { return bytes.len() };
        let Phase::Head(reader) = &mut conn.phase else { return 0 };
        match reader.push(bytes) {
            Progress::More => bytes.len(),
            Progress::Done { consumed } => {
                let Phase::Head(reader) = std::mem::replace(&mut conn.phase, Phase::Hello) else { return consumed };
                let judged = self.on_head(io, id, reader.head(), now);
                if matches!(judged, Ok(None)) {
                    return consumed;
                }
                if let Some(conn) = self.connections.get_mut(id) {
                    conn.phase = Phase::Head(reader);
                }
                match judged {
                    Ok(Some(probe)) => self.answer_probe(io, id, probe, now),
                    Ok(None) => {}
                    Err(refusal) => self.answer_http(io, id, &refusal, now),
                }
                bytes.len()
            }
            Progress::Refused(refusal) => {
                self.answer_http(io, id, &refusal, now);
                bytes.len()
            }
        }
    }

    /// Judges a request: answers the upgrade, or answers a probe and closes.
    fn on_head<I: Io>(&mut self, io: &mut I, id: ConnId, head: &[u8], now: Tick) -> Result<Option<Probe>, HttpRefusal> {
        let snapshot = std::sync::Arc::clone(&self.cx.snapshot);
        let request = Request::parse_any_version(head)?;
        self.learn_address(io, id, &request, now);
        let refused = self.connections.get(id).and_then(|conn| conn.refused);
        // A full node, or a busy one, is no reason to restart it, so its probes are answered. The limits of an address hold for
        // its probes too.
        let may_probe = matches!(refused, None | Some(LimitReached::Connections | LimitReached::HandshakesPerShard));
        if let Some(probe) = probe(&request).filter(|_| may_probe && snapshot.settings.server.health) {
            return Ok(Some(probe));
        }
        if self.life.draining {
            return Err(HttpRefusal::unavailable("this node is draining; another one takes new connections", 1));
        }
        if let Some(limit) = refused {
            return Err(super::accept::refusal(limit));
        }
        request.refuse_http_1_0()?;
        let upgrade = upgrade(&request, &snapshot.upgrade)?;
        let agreed = negotiate(&upgrade.extensions, snapshot.settings.deflate.enabled)
            .map_err(|error| HttpRefusal::bad_request(error.to_string()))?;
        let extensions = agreed.map(|agreed| agreed.header_value());
        let Some(conn) = self.connections.get_mut(id) else {
            return Ok(None);
        };
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| upgrade.write_accept(extensions.as_deref(), queue));
        if let Some(agreed) = agreed {
            conn.flags.deflate = true;
            conn.window_bits = agreed.server_window_bits;
        }
        conn.expected_session = upgrade.session_id.map(|session_id| Box::new(session_id.into()));
        if upgrade.endpoint == Endpoint::Echo {
            conn.phase = Phase::Echo;
            self.not_half_open(id);
            // Read as a stream: an echo connection never changes shards.
            self.connections.echo_opened.push(id);
        }
        self.connections.mark(id);
        Ok(None)
    }

    fn answer_probe<I: Io>(&mut self, io: &mut I, id: ConnId, probe: Probe, now: Tick) {
        self.cx.counters.probes.increment();
        let health = &self.cx.snapshot.health;
        let (well, word) = match probe.check {
            Check::Health => health.alive(),
            Check::Ready if self.life.draining => (false, "draining"),
            Check::Ready => health.ready(),
        };
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.flags.forgettable = true;
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| write_answer(probe, well, word, queue));
        self.close(io, id, CloseReason::HttpAnswered, now);
    }

    pub(in crate::shard) fn answer_http<I: Io>(&mut self, io: &mut I, id: ConnId, refusal: &HttpRefusal, now: Tick) {
        self.cx.counters.http_refused.increment();
        if refusal.is_over_bound() {
            self.cx.counters.limit_reached(LimitReached::RequestHead);
        }
        let turned_away = self.connections.get(id).is_some_and(|conn| conn.refused.is_some());
        if !turned_away || self.connections.says_more(now) {
            tracing::info!(connection_id = %self.connection_id(id), status = refusal.status(), detail = refusal.detail(), "refused");
        }
        let Some(conn) = self.connections.get_mut(id) else { return };
        enqueue(conn, &mut self.cx.buffers, &self.cx.counters, |queue| refusal.write(queue));
        self.close(io, id, CloseReason::HttpAnswered, now);
    }

    /// Handles the first message, which must be a good hello.
    pub(in crate::shard) fn on_hello<I: Io>(&mut self, io: &mut I, id: ConnId, envelope: &Envelope<'_>, now: Tick) {
        let head = Head { id: envelope.id, session_id: envelope.session_id };
        if envelope.kind != "rw.hello" {
            self.connections.refuse_with(
                &mut self.cx,
                id,
                head,
                ErrorCode::SessionExpectedHello,
                "the first message must be rw.hello",
                Some("/type"),
            );
            return self.close(io, id, CloseReason::HelloExpected, now);
        }
        let Some(mut commands) = self.codec.commands.take() else { return };
        match commands.parse(envelope) {
            Ok(Command::Hello(hello)) => match self.verify_hello(id, envelope, hello.client_id, hello.auth_token, now) {
                Ok(grant) => {
                    let place = self.place_here(id, 0);
                    let request = self.cx.attach_request(envelope, &hello.attach, place, hello.client_id, &grant, true);
                    if let Some(conn) = self.connections.get_mut(id) {
                        conn.flags.acks = hello.acks;
                        conn.client_id = hello.client_id.into();
                        conn.grant = Some(Box::new(grant));
                    }
                    self.go_home(io, id, request, now);
                }
                Err((refusal, reason)) => {
                    self.cx.counters.auth_refused.increment();
                    let code = refusal.code.as_str();
                    tracing::info!(connection_id = %self.connection_id(id), code, "hello refused: {}", refusal.message);
                    self.connections.refuse(&mut self.cx, id, &refusal);
                    self.close(io, id, reason, now);
                }
            },
            Ok(_) => {}
            Err(refusal) => {
                let no_token = &*refusal.pointer == "/payload/auth_token";
                if no_token {
                    self.cx.counters.auth_refused.increment();
                }
                self.connections.refuse(&mut self.cx, id, &refusal);
                self.close(io, id, if no_token { CloseReason::Auth } else { CloseReason::HelloExpected }, now);
            }
        }
        self.codec.commands = Some(commands);
    }

    fn verify_hello(
        &self,
        id: ConnId,
        envelope: &Envelope<'_>,
        client_id: &str,
        token: &str,
        now: Tick,
    ) -> Result<crate::auth::Grant, (Refusal, CloseReason)> {
        let refusal = |code: ErrorCode, message: String, pointer: &'static str| Refusal {
            id: envelope.id.into(),
            session_id: envelope.session_id.into(),
            code,
            message: message.into(),
            pointer: pointer.into(),
            retry_after_ms: None,
        };
        let refused = |error: AuthError, pointer| (refusal(auth_code(&error), error.to_string(), pointer), error.close_reason());
        let expected = self.connections.get(id).and_then(|conn| conn.expected_session.as_ref()).map(|expected| &***expected);
        if expected.is_some_and(|expected| expected != envelope.session_id) {
            let message = "the query's session_id is not the hello's: make them equal, or leave the query out".to_owned();
            return Err((refusal(ErrorCode::SessionQueryMismatch, message, "/session_id"), CloseReason::HelloExpected));
        }
        let grant = self.cx.verify_token(token, client_id, now).map_err(|error| refused(error, "/payload/auth_token"))?;
        crate::auth::client_id_allowed(client_id, grant.subject()).map_err(|error| refused(error, "/payload/client_id"))?;
        grant.require_session(envelope.session_id).map_err(|error| refused(error, "/session_id"))?;
        Ok(grant)
    }

    /// Attaches a verified connection to its first session: here, or by a handover to that session's home.
    fn go_home<I: Io>(&mut self, io: &mut I, id: ConnId, request: AttachRequest, now: Tick) {
        let per_user = self.cx.snapshot.settings.limits.connections_per_user;
        let Some(conn) = self.connections.get_mut(id) else { return };
        let Some(grant) = &conn.grant else { return };
        if !self.admission.enter_user(grant.subject(), per_user) {
            self.cx.counters.limit_reached(LimitReached::ConnectionsPerUser);
            let head = Head { id: &request.command_id, session_id: &request.session_id };
            let message = format!("this user has {per_user} connections already (limits.connections_per_user): close one first");
            self.connections.refuse_with(&mut self.cx, id, head, ErrorCode::LimitConnections, &message, None);
            return self.close(io, id, CloseReason::Overloaded, now);
        }
        conn.flags.user_counted = true;
        let home = self.cx.key.home_shard(&request.session_id, self.links.mesh.shards());
        if home == self.cx.shard {
            return self.open(io, id, request, now);
        }
        let accepted_by = u16::try_from(self.cx.shard).unwrap_or(u16::MAX);
        let Some(grant) = conn.grant.take() else { return };
        conn.phase = Phase::HandingOver(Box::new(Handover {
            fd: None,
            serial: conn.serial,
            peer: conn.peer,
            accepted_ms: conn.accepted_ms,
            deflate: conn.flags.deflate,
            window_bits: conn.window_bits,
            acks: conn.flags.acks,
            user_counted: true,
            admitted: conn.flags.admitted,
            messages_in: conn.messages_in,
            tls: None,
            grant,
            request,
            rest: Vec::new(),
            ended: false,
            unsent: Vec::new(),
            node_shard: accepted_by,
        }));
        // The 101 is sent in this turn; then nothing of the socket is left here.
        io.read(id, Read::Off);
    }

    /// Handles that the kernel holds no read of a socket any more: a pending handover takes place.
    pub(in crate::shard) fn on_quiet<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(conn) = self.connections.get(id) else { return };
        if !matches!(conn.phase, Phase::HandingOver(_)) || conn.flags.blocked {
            return;
        }
        let Phase::HandingOver(handover) = &conn.phase else { return };
        let home = self.cx.key.home_shard(&handover.request.session_id, self.links.mesh.shards());
        if self.links.hears_no_more(home) {
            self.cx.counters.limit_reached(LimitReached::Lane);
            return self.refuse_handover(io, id, now);
        }
        // Data that is still queued (the 101, if the socket was full) goes with it.
        self.not_half_open(id);
        let Some(mut conn) = self.connections.table.get_mut(id.index as usize).and_then(Option::take) else { return };
        self.connections.count -= 1;
        let Phase::HandingOver(mut handover) = std::mem::replace(&mut conn.phase, Phase::Hello) else { return };
        handover.tls = conn.tls.take();
        handover.ended = conn.flags.ended;
        self.cx.counters.buffer_bytes.subtract(conn.queue.capacity() as u64);
        handover.unsent = conn.queue.split_off(conn.queue_at as usize);
        let Some(fd) = io.detach(id) else { return };
        handover.fd = Some(fd);
        self.links.send_lane(&self.cx, io, home, LaneMessage::Handover(handover));
        self.cx.counters.handed_over.increment();
    }

    /// Closes the connection because the home takes no more sockets now: the client is told to come back (1013).
    fn refuse_handover<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(conn) = self.connections.get_mut(id) else { return };
        if let Phase::HandingOver(handover) = std::mem::replace(&mut conn.phase, Phase::Hello) {
            conn.grant = Some(handover.grant);
        }
        self.close(io, id, CloseReason::HandoverRefused, now);
    }

    /// Takes over a socket that another shard accepted for a session at home here.
    pub(in crate::shard) fn on_handover<I: Io>(&mut self, io: &mut I, mut handover: Box<Handover>, now: Tick) {
        let Some(fd) = handover.fd.take() else { return };
        let Ok(id) = io.adopt(fd) else {
            self.cx.counters.limit_reached(LimitReached::Connections);
            self.cx.counters.closed(CloseReason::HandoverRefused);
            return self.uncount(&handover);
        };
        self.cx.counters.taken_over.increment();
        let mut conn = Conn::new(id, handover.serial, handover.peer, Phase::Hello, handover.accepted_ms);
        conn.origin_shard = handover.node_shard;
        conn.flags.deflate = handover.deflate;
        conn.window_bits = handover.window_bits;
        conn.flags.acks = handover.acks;
        conn.flags.user_counted = handover.user_counted;
        conn.flags.admitted = handover.admitted;
        conn.flags.on_node = true;
        conn.flags.known = true;
        conn.flags.secured = handover.tls.is_some();
        conn.last_heard_ms = now.mono_ms();
        conn.messages_in = handover.messages_in;
        conn.tls = handover.tls.take();
        conn.client_id = handover.request.client_id.clone();
        conn.grant = Some(handover.grant);
        conn.queue = std::mem::take(&mut handover.unsent);
        self.cx.counters.buffer_bytes.add(conn.queue.capacity() as u64);
        self.connections.insert(conn);
        let mut request = handover.request;
        request.place = self.place_here(id, 0);
        // Revocations, and changes of this shard, that happened while the socket was between two shards are checked now.
        let revoked = self.connections.get(id).and_then(|conn| {
            let grant = conn.grant.as_deref()?;
            self.cx.snapshot.revocations.check(grant, &conn.client_id).err()
        });
        if let Some(error) = revoked {
            let head = Head { id: &request.command_id, session_id: &request.session_id };
            self.connections.refuse_token(&mut self.cx, id, head, &error);
            return self.close(io, id, error.close_reason(), now);
        }
        if self.life.stopping || self.life.draining {
            let reason = if self.life.stopping { CloseReason::Shutdown } else { CloseReason::Draining };
            return self.close(io, id, reason, now);
        }
        self.open(io, id, request, now);
        if !handover.rest.is_empty() {
            self.on_plain(io, id, &mut handover.rest, now);
        }
        if handover.ended {
            self.on_ended(io, id, None, now);
        }
    }

    /// Uncounts a connection that ended between two shards.
    pub(in crate::shard) fn uncount(&self, handover: &Handover) {
        self.admission.leave_node();
        self.admission.leave_user(handover.grant.subject());
        if handover.admitted {
            self.admission.leave_address(handover.peer);
        }
    }

    /// Attaches a connection to its first session, at home here, and welcomes it.
    fn open<I: Io>(&mut self, io: &mut I, id: ConnId, request: AttachRequest, now: Tick) {
        self.not_half_open(id);
        let outcome = self.attach_home(io, &request, now);
        match outcome {
            Ok(answer) => {
                let Some(conn) = self.connections.get_mut(id) else { return };
                conn.phase = Phase::Open;
                self.cx.counters.welcomed.increment();
                self.install(&request, answer, now);
                io.read(id, Read::Stream);
                self.set_timer(id, now);
            }
            Err(refusal) => {
                self.connections.refuse(&mut self.cx, id, &refusal);
                let reason = match refusal.code {
                    ErrorCode::SessionUnknown => CloseReason::Forbidden,
                    _ => CloseReason::Overloaded,
                };
                self.close(io, id, reason, now);
            }
        }
    }

    /// Schedules the connection's earliest deadline, unless an earlier timer is set.
    pub(in crate::shard) fn set_timer(&mut self, id: ConnId, now: Tick) {
        let due_ms = self.next_deadline_ms(id, now);
        let Some(conn) = self.connections.get_mut(id) else { return };
        if due_ms < conn.timer_ms {
            conn.timer_ms = due_ms;
            self.timers.wheel.schedule(due_ms, Timer::Conn(id));
        }
    }
}

/// The wire code of a token's refusal.
pub(in crate::shard) fn auth_code(error: &AuthError) -> ErrorCode {
    ErrorCode::ALL.iter().copied().find(|code| code.as_str() == error.code()).unwrap_or(ErrorCode::AuthMalformed)
}

impl Context {
    /// Judges a token by the keys, the policy and the revocations in force.
    pub(in crate::shard) fn verify_token(
        &self,
        token: &str,
        client_id: &str,
        now: Tick,
    ) -> Result<crate::auth::Grant, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            self.counters.limit_reached(LimitReached::TokenBytes);
        }
        let grant = self.snapshot.keys.verify(token, &self.snapshot.tokens, now)?;
        self.snapshot.revocations.check(&grant, client_id)?;
        Ok(grant)
    }

    /// The request to a session's home to attach a client.
    pub(in crate::shard) fn attach_request(
        &self,
        envelope: &Envelope<'_>,
        attach: &Attach<'_>,
        place: Place,
        client_id: &str,
        grant: &crate::auth::Grant,
        hello: bool,
    ) -> AttachRequest {
        AttachRequest {
            place,
            command_id: envelope.id.into(),
            session_id: envelope.session_id.into(),
            session: self.session_hash(envelope.session_id),
            client_id: client_id.into(),
            subject_bytes: u16::try_from(grant.subject().len()).unwrap_or(u16::MAX),
            roles: grant.roles().map(Into::into).collect(),
            resume: attach.resume.map(|resume| (resume.epoch.into(), resume.seq)),
            wanted: match attach.start {
                Start::Cursor => Wanted::Cursor,
                Start::Head => Wanted::Head,
                Start::Oldest => Wanted::Oldest,
                Start::Last(count) => Wanted::Last(count),
            },
            rooms: attach.rooms.iter().map(|room| (*room).into()).collect(),
            create: attach.create,
            echo: attach.echo,
            hello,
        }
    }
}
