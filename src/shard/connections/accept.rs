//! Admission of connections: each is judged as soon as its address is known. A connection over a bound takes nothing from others:
//! no half-open place, no place of the node's, no share of the shard's handshakes, no TLS.

use super::conn::{Conn, Phase};
use super::rate::Rate;
use crate::close::CloseReason;
use crate::ids::ConnId;
use crate::io::{Io, Read};
use crate::limits::{HALF_OPEN_RESERVE_PERCENT, TURNED_AWAY_LINES_PER_SECOND, TURNED_AWAY_MAX};
use crate::net::http::{HeadReader, Request};
use crate::net::proxy::{ProxyProgress, ProxyReader, client_ip};
use crate::net::refusal::HttpRefusal;
use crate::shard::across::links::Links;
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::time::Tick;
use std::net::{IpAddr, SocketAddr};

impl Core {
    pub(in crate::shard) fn on_accepted<I: Io>(&mut self, io: &mut I, id: ConnId, peer: SocketAddr, now: Tick) {
        self.cx.counters.accepted.increment();
        let snapshot = std::sync::Arc::clone(&self.cx.snapshot);
        let server = &snapshot.settings.server;
        let phase = if server.proxy_protocol && self.cx.trusts(peer.ip()) {
            Phase::Proxy(Box::new(ProxyReader::new()))
        } else {
            Phase::Head(Box::new(HeadReader::new()))
        };
        let serial = self.connections.next_serial;
        self.connections.next_serial += 1;
        let mut conn = Conn::new(id, serial, peer.ip().to_canonical(), phase, now.mono_ms());
        conn.flags.on_node = self.admission.enter_node(server.max_connections);
        if !conn.flags.on_node {
            self.admission.leave_node();
            self.cx.counters.limit_reached(LimitReached::Connections);
            conn.refused = Some(LimitReached::Connections);
        }
        self.connections.insert(conn);
        self.meet(io, id, now);
        let Some(conn) = self.connections.get_mut(id) else { return };
        if let Some(tls) = &snapshot.tls {
            match tls.accept() {
                Ok(tls) => conn.tls = Some(Box::new(tls)),
                Err(error) => {
                    tracing::error!(%error, "TLS can't be set up for a connection");
                    return self.close(io, id, CloseReason::Tls, now);
                }
            }
        }
        io.read(id, Read::Once);
        self.set_timer(id, now);
    }

    /// Judges a connection, if its address is known by now, and gives it a half-open place or turns it away.
    fn meet<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let Some(conn) = self.connections.get(id) else { return };
        let by_header = !self.cx.snapshot.settings.server.client_ip_header.0.is_empty();
        let awaited = matches!(conn.phase, Phase::Proxy(_)) || by_header && self.cx.trusts(conn.peer);
        if !awaited {
            self.admit(id, now);
        }
        let Some(conn) = self.connections.get(id) else { return };
        match conn.refused {
            Some(limit) => self.turn_away(io, id, limit, now),
            None => self.enter_half_open(io, id, now),
        }
    }

    /// Counts a connection for its address, and then for the shard; `refused` is the bound that it exceeds.
    fn admit(&mut self, id: ConnId, now: Tick) {
        let limits = self.cx.snapshot.settings.limits;
        let rate = Rate { per_second: limits.handshakes_per_ip_per_second, burst: limits.handshakes_per_ip_burst };
        let shake = Rate { per_second: limits.handshakes_per_second, burst: limits.handshakes_per_second.max(1) * 2 };
        let Some(conn) = self.connections.table.get_mut(id.index as usize).and_then(Option::as_deref_mut) else { return };
        let peer = conn.peer;
        conn.flags.known = true;
        let over = if self.admission.handshake(peer, rate, now.mono_ns).is_err() {
            Some(LimitReached::HandshakesPerIp)
        } else if !self.admission.enter_half_open(peer, limits.half_open_per_ip) {
            Some(LimitReached::HalfOpenPerIp)
        } else if !self.admission.enter_address(peer, limits.connections_per_ip) {
            self.admission.leave_half_open(peer);
            Some(LimitReached::ConnectionsPerIp)
        } else {
            conn.flags.address_half_open = true;
            conn.flags.admitted = true;
            // A connection that is refused in any case takes nothing of the shard's rate of handshakes.
            let over = conn.refused.is_none() && self.connections.shaking.take(shake, 1, now.mono_ns).is_err();
            over.then_some(LimitReached::HandshakesPerShard)
        };
        if let Some(limit) = over {
            self.cx.counters.limit_reached(limit);
            conn.refused = Some(limit);
        }
    }

    /// Turns away a connection over a bound. Without TLS it is told why when its request is complete, if newer ones do not push
    /// it out first: it holds none of the places that others want. With TLS it is closed, since the handshake would be work for
    /// nothing, unless the node is full.
    fn turn_away<I: Io>(&mut self, io: &mut I, id: ConnId, limit: LimitReached, now: Tick) {
        self.connections.no_more_half_open(id);
        let Some(conn) = self.connections.get_mut(id) else { return };
        conn.flags.forgettable = true;
        if std::mem::take(&mut conn.flags.on_node) {
            self.admission.leave_node();
        }
        let unheard = self.cx.snapshot.tls.is_some() && !conn.flags.secured && limit != LimitReached::Connections;
        if unheard {
            let peer = conn.peer;
            if self.connections.says_more(now) {
                tracing::info!(%peer, limit = limit.label(), "closed without an answer");
            }
            return self.close(io, id, CloseReason::Shed, now);
        }
        while self.connections.turned_away.len() >= TURNED_AWAY_MAX {
            let Some(oldest) = self.connections.turned_away.pop_front() else { break };
            match self.connections.get(oldest).map(|conn| matches!(conn.phase, Phase::Closing(_))) {
                None => continue,
                Some(true) => self.drop_conn(io, oldest, now),
                Some(false) => self.close(io, oldest, CloseReason::Shed, now),
            }
            self.cx.counters.limit_reached(LimitReached::TurnedAway);
        }
        self.connections.turned_away.push_back(id);
    }

    /// Takes a half-open place, counted by the address if that is known.
    fn enter_half_open<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        self.connections.no_more_half_open(id);
        let Some(conn) = self.connections.get_mut(id) else { return };
        let owner = if conn.flags.known { self.admission.address(conn.peer) } else { self.admission.stranger(conn.serial) };
        conn.half_open_owner = owner;
        conn.flags.half_open = true;
        let serial = conn.serial;
        self.connections.half_open.enter(owner, serial, id);
        let cap = self.links.half_open_cap(&self.cx);
        let full = self.connections.half_open.len() > cap - cap * HALF_OPEN_RESERVE_PERCENT / 100;
        if full && self.connections.half_open.of(owner) > 1 {
            self.evict_half_open(io, now);
        }
        self.fit_half_open(io, now);
    }

    /// Closes half-open connections until they are within the bound.
    pub(in crate::shard) fn fit_half_open<I: Io>(&mut self, io: &mut I, now: Tick) {
        while self.connections.half_open.len() > self.links.half_open_cap(&self.cx) {
            self.evict_half_open(io, now);
        }
    }

    fn evict_half_open<I: Io>(&mut self, io: &mut I, now: Tick) {
        let Some(id) = self.connections.half_open.pop() else { return };
        if let Some(conn) = self.connections.get_mut(id) {
            conn.flags.half_open = false;
        }
        self.cx.counters.limit_reached(LimitReached::HalfOpen);
        self.close(io, id, CloseReason::Shed, now);
    }

    /// Ends the half-open state of a connection, which is welcomed, goes to another shard, or ends: neither the shard nor its
    /// address counts it as half open any more.
    pub(in crate::shard) fn not_half_open(&mut self, id: ConnId) {
        self.connections.no_more_half_open(id);
        let Some(conn) = self.connections.get_mut(id) else { return };
        if std::mem::take(&mut conn.flags.address_half_open) {
            self.admission.leave_half_open(conn.peer);
        }
    }

    /// Uncounts a connection that is no longer in the table.
    pub(in crate::shard) fn leave_admission(&mut self, conn: &mut Conn) {
        if std::mem::take(&mut conn.flags.on_node) {
            self.admission.leave_node();
        }
        if std::mem::take(&mut conn.flags.half_open) {
            self.connections.half_open.leave(conn.half_open_owner, conn.serial);
        }
        if std::mem::take(&mut conn.flags.address_half_open) {
            self.admission.leave_half_open(conn.peer);
        }
        if std::mem::take(&mut conn.flags.admitted) {
            self.admission.leave_address(conn.peer);
        }
        if std::mem::take(&mut conn.flags.user_counted)
            && let Some(grant) = &conn.grant
        {
            self.admission.leave_user(grant.subject());
        }
    }

    pub(in crate::shard) fn on_proxy_bytes<I: Io>(&mut self, io: &mut I, id: ConnId, bytes: &[u8], now: Tick) -> usize {
        let Some(conn) = self.connections.get_mut(id) else { return bytes.len() };
        let Phase::Proxy(reader) = &mut conn.phase else { return 0 };
        match reader.push(bytes) {
            ProxyProgress::More => bytes.len(),
            ProxyProgress::Done { consumed, source } => {
                if let Some(source) = source {
                    conn.peer = source.ip().to_canonical();
                }
                conn.phase = Phase::Head(Box::new(HeadReader::new()));
                self.meet(io, id, now);
                consumed
            }
            ProxyProgress::Refused(error) => {
                tracing::info!(connection_id = %self.connection_id(id), %error, "closed without an answer");
                self.close(io, id, CloseReason::Shed, now);
                bytes.len()
            }
        }
    }

    /// Takes the client's address from a trusted proxy. If the connection was not judged before, it is judged now.
    pub(in crate::shard) fn learn_address<I: Io>(&mut self, io: &mut I, id: ConnId, request: &Request<'_>, now: Tick) {
        let snapshot = std::sync::Arc::clone(&self.cx.snapshot);
        let Some(conn) = self.connections.get(id) else { return };
        if conn.flags.known {
            return;
        }
        let client =
            client_ip(conn.peer, request.values(&snapshot.settings.server.client_ip_header.0), |peer| self.cx.trusts(peer));
        if let Some(conn) = self.connections.get_mut(id) {
            conn.peer = client;
        }
        self.admit(id, now);
        let Some(conn) = self.connections.get(id) else { return };
        match conn.refused {
            // The node was full, and the client is told that.
            Some(_) if conn.flags.forgettable => {}
            Some(limit) => self.turn_away(io, id, limit, now),
            None => self.enter_half_open(io, id, now),
        }
    }
}

/// The refusal for a client over a bound.
pub(in crate::shard) fn refusal(limit: LimitReached) -> HttpRefusal {
    match limit {
        LimitReached::Connections => {
            HttpRefusal::unavailable("this node has as many connections as it may (server.max_connections)", 5)
        }
        LimitReached::HandshakesPerIp => HttpRefusal::too_many_requests(
            "this address opens connections too fast: wait, then connect again (limits.handshakes_per_ip_per_second)",
            1,
        ),
        LimitReached::HalfOpenPerIp => HttpRefusal::too_many_requests(
            "this address has too many connections that have not said hello: finish those first (limits.half_open_per_ip)",
            1,
        ),
        LimitReached::ConnectionsPerIp => HttpRefusal::too_many_requests(
            "this address has too many connections: close one first (limits.connections_per_ip)",
            1,
        ),
        _ => HttpRefusal::unavailable("this node gets more handshakes per second than it may (limits.handshakes_per_second)", 1),
    }
}

impl Connections {
    /// Returns `true` if another log line may report a connection that was turned away: a flood of them is counted, not logged.
    pub(in crate::shard) fn says_more(&mut self, now: Tick) -> bool {
        let rate = Rate { per_second: TURNED_AWAY_LINES_PER_SECOND, burst: TURNED_AWAY_LINES_PER_SECOND };
        self.door_lines.take(rate, 1, now.mono_ns).is_ok()
    }

    fn no_more_half_open(&mut self, id: ConnId) {
        let Some(conn) = self.get_mut(id) else { return };
        let (owner, serial) = (conn.half_open_owner, conn.serial);
        if std::mem::take(&mut conn.flags.half_open) {
            self.half_open.leave(owner, serial);
        }
    }
}

impl Links {
    /// Half-open connections that this shard may have.
    pub(in crate::shard) fn half_open_cap(&self, cx: &Context) -> usize {
        let settings = &cx.snapshot.settings;
        let share = settings.server.max_connections * settings.limits.half_open_percent as usize / 100;
        (share / self.mesh.shards()).max(1)
    }
}

impl Context {
    fn trusts(&self, address: IpAddr) -> bool {
        self.snapshot.settings.server.trusted_proxies.iter().any(|network| network.contains(address))
    }
}
