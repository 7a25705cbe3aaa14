//! Requests of control to a shard, and the shard's answers.

use super::connections::conn::{Phase, Slot};
use super::core::Core;
use super::counters::DropReason;
use super::port::{
    CONNECTIONS_PAGE_MAX, ConnectionInfo, ConnectionPage, ConnectionState, PortMessage, SESSIONS_SHOWN_MAX, SessionInfo, Snapshot,
};
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::Io;
use crate::protocol::Head;
use crate::shard::connections::table::Connections;
use crate::time::Tick;

impl Core {
    pub(super) fn take_port<I: Io>(&mut self, io: &mut I, now: Tick) {
        while let Some(message) = self.port.pop() {
            let unwanted = match message {
                PortMessage::Configure { snapshot, reply } => {
                    let before = std::mem::replace(&mut self.cx.snapshot, snapshot);
                    self.follow_settings(io, &before, now);
                    #[cfg(test)]
                    self.widen();
                    let ended = self.end_revoked(io, now);
                    reply.is_some_and(|reply| reply.send(ended).is_err())
                }
                PortMessage::Drain { window_ms, restart } => {
                    self.drain(io, window_ms, restart, now);
                    false
                }
                PortMessage::Stop => {
                    self.stop(io, now);
                    false
                }
                PortMessage::Probe { reply } => reply.send(()).is_err(),
                PortMessage::Purge { session_id, reply } => {
                    self.ask_purge(&session_id, reply);
                    false
                }
                PortMessage::ListConnections { from, limit, reply } => reply.send(self.list(from, limit, now)).is_err(),
                PortMessage::ShowConnection { connection_id, reply } => reply.send(self.show(&connection_id, now)).is_err(),
                #[cfg(test)]
                PortMessage::WhatIsLeft { reply } => reply.send(self.what_is_left()).is_err(),
            };
            if unwanted {
                self.cx.counters.dropped(DropReason::PortReplyUnwanted, 1);
            }
        }
    }

    /// Re-examines waiting connections and members by the settings in force now.
    fn follow_settings<I: Io>(&mut self, io: &mut I, before: &Snapshot, now: Tick) {
        let (before, after) = (&before.settings, &self.cx.snapshot.settings);
        if before.limits != after.limits || before.session != after.session {
            self.timers.anew = Some(super::connections::deadlines::Anew::default());
            self.fit_half_open(io, now);
        }
    }

    /// Tells all clients to go, and closes each connection at its own moment of the window.
    fn drain<I: Io>(&mut self, io: &mut I, window_ms: u64, restart: bool, now: Tick) {
        self.life.draining = true;
        io.accept(false);
        for id in self.connections.ids_where(|_| true) {
            let Some(conn) = self.connections.get_mut(id) else { continue };
            match conn.phase {
                Phase::Open if !std::mem::replace(&mut conn.flags.told_to_go, true) => {
                    let session_id = self.first_session(id);
                    let event = self.cx.event_id();
                    let head = Head { id: &event, session_id: &session_id };
                    self.connections.reply_now(&mut self.cx, id, |out| crate::protocol::goaway(out, head, window_ms, restart));
                    let share = self.cx.next_random() % window_ms.max(1);
                    self.connections.departures.push((now.mono_ms() + share, id));
                }
                Phase::Open | Phase::Closing(_) => {}
                _ => self.close(io, id, CloseReason::Draining, now),
            }
        }
        self.connections.departures.sort_unstable_by_key(|(at_ms, _)| std::cmp::Reverse(*at_ms));
    }

    /// Closes the connections whose moment has come. Returns when the next one's comes.
    pub(super) fn depart<I: Io>(&mut self, io: &mut I, now: Tick) -> Option<u64> {
        while let Some((at_ms, id)) = self.connections.departures.last().copied() {
            if at_ms > now.mono_ms() {
                return Some(at_ms);
            }
            self.connections.departures.pop();
            self.end(io, id, CloseReason::Draining, now);
        }
        None
    }

    fn list(&mut self, from: u64, limit: usize, now: Tick) -> ConnectionPage {
        self.connections.closed.forget_old(now.mono_ms());
        let limit = limit.clamp(1, CONNECTIONS_PAGE_MAX);
        let table = self.connections.table.len() as u64;
        let mut page = ConnectionPage::default();
        let mut at = from;
        while at < table && page.connections.len() < limit {
            let id = self
                .connections
                .table
                .get(usize::try_from(at).unwrap_or(usize::MAX))
                .and_then(Option::as_ref)
                .map(|conn| conn.id);
            page.connections.extend(id.and_then(|id| self.describe(id, now)));
            at += 1;
        }
        let closed = usize::try_from(at.saturating_sub(table)).unwrap_or(usize::MAX);
        if at >= table {
            let room = limit - page.connections.len();
            page.connections.extend(self.connections.closed.iter(now.mono_ms()).skip(closed).take(room));
            at = table + (closed + room).min(self.connections.closed.len()) as u64;
        }
        page.next = (at < table + self.connections.closed.len() as u64).then_some(at);
        page
    }

    fn show(&self, connection_id: &str, now: Tick) -> Option<ConnectionInfo> {
        let open = self.connections.table.iter().flatten().find(|conn| self.cx.name_of(conn) == connection_id);
        open.and_then(|conn| self.describe(conn.id, now)).or_else(|| self.connections.closed.find(connection_id, now.mono_ms()))
    }

    pub(super) fn describe(&self, id: ConnId, now: Tick) -> Option<ConnectionInfo> {
        let conn = self.connections.get(id)?;
        let sessions = conn.slots.iter().filter_map(Slot::attached).take(SESSIONS_SHOWN_MAX).filter_map(|attachment| {
            let stream = self.home.streams.get(attachment.stream)?;
            Some(SessionInfo {
                session_id: stream.session_id.to_string(),
                head_seq: stream.head(),
                cursor_seq: if attachment.idle { stream.head() } else { attachment.cursor },
                mirrored: stream.home.is_some(),
            })
        });
        Some(ConnectionInfo {
            connection_id: self.cx.name_of(conn),
            shard: self.cx.shard,
            peer: conn.peer,
            client_id: conn.client_id.to_string(),
            state: match conn.phase {
                Phase::Proxy(_) | Phase::Head(_) if conn.tls.is_some() && !conn.flags.secured => ConnectionState::Tls,
                Phase::Proxy(_) | Phase::Head(_) => ConnectionState::Http,
                Phase::Hello => ConnectionState::Hello,
                Phase::HandingOver(_) => ConnectionState::Handover,
                Phase::Open => ConnectionState::Open,
                Phase::Echo => ConnectionState::Echo,
                Phase::Closing(_) => ConnectionState::Closing,
            },
            sessions: sessions.collect(),
            buffered_bytes: (conn.queued_bytes() + conn.decoder.buffered_bytes()) as u64,
            age_ms: now.mono_ms().saturating_sub(conn.accepted_ms),
            idle_ms: now.mono_ms().saturating_sub(conn.last_heard_ms),
            messages_in: conn.messages_in,
            messages_out: conn.messages_out,
            close_reason: None,
            close_code: None,
        })
    }

    /// Ends connections whose token the new snapshot revokes. Returns how many.
    fn end_revoked<I: Io>(&mut self, io: &mut I, now: Tick) -> usize {
        let revocations = &self.cx.snapshot.revocations;
        if revocations.is_empty() {
            return 0;
        }
        let ids = self.connections.ids_where(|conn| {
            !matches!(conn.phase, Phase::Closing(_))
                && conn.grant.as_ref().is_some_and(|grant| revocations.check(grant, &conn.client_id).is_err())
        });
        for id in &ids {
            tracing::info!(connection_id = %self.connection_id(*id), "its token was revoked: closing");
            self.close(io, *id, CloseReason::Auth, now);
        }
        ids.len()
    }
}

impl Connections {
    fn ids_where(&self, wanted: impl Fn(&super::connections::conn::Conn) -> bool) -> Vec<ConnId> {
        self.table.iter().flatten().filter(|conn| wanted(conn)).map(|conn| conn.id).collect()
    }
}
