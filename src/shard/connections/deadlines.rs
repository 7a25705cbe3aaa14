//! The timeouts of a connection: one deadline on the wheel, the earliest of all that it has.
//!
//! A deadline is computed from when something began and the current settings, each time that it is checked. After a change of
//! settings everything that waits is checked again ([`Core::look_anew`]).

use super::conn::{Conn, Phase};
use crate::close::CloseReason;
use crate::config::Settings;
use crate::ids::ConnId;
use crate::io::Io;
use crate::net::refusal::HttpRefusal;
use crate::protocol::Head;
use crate::session::MemberKey;
use crate::shard::connections::table::Connections;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::LimitReached;
use crate::shard::outbound::replies::enqueue;
use crate::shard::timers::Timer;
use crate::shard::timers::Timers;
use crate::time::Tick;
use crate::ws::encoder;

/// How late a turn must be to count as a standstill: only a stopped process or a suspended machine delays a shard for so long.
const STANDSTILL_MS: u64 = 1_000;

/// Time until a connection that is not read from is checked again if nothing else happens.
const PAUSED_LOOK_MS: u64 = 1_000;

/// Connections, and members, that one turn checks again.
const LOOKED_AT_PER_TURN: usize = 4096;

/// How far the shard is with checking everything again: indexes in the tables of connections and members.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::shard) struct Anew {
    conns: usize,
    members: usize,
}

impl Core {
    /// After a change of settings, checks timers that may now be due sooner. Returns `true` while there are more.
    pub(in crate::shard) fn look_anew(&mut self, now: Tick) -> bool {
        let Some(mut anew) = self.timers.anew.take() else { return false };
        for _ in 0..LOOKED_AT_PER_TURN {
            if let Some(id) = self.connections.table.get(anew.conns).and_then(Option::as_ref).map(|conn| conn.id) {
                self.set_timer(id, now);
            }
            if let Some((key, _)) = self.home.sessions.members.at(anew.members) {
                self.set_member_timer(key);
            }
            (anew.conns, anew.members) = (anew.conns + 1, anew.members + 1);
        }
        let more = anew.conns < self.connections.table.len() || anew.members < self.home.sessions.members.places();
        self.timers.anew = more.then_some(anew);
        more
    }

    /// Schedules the next timeout of a member that is away, unless an earlier timer is set.
    pub(in crate::shard) fn set_member_timer(&mut self, key: MemberKey) {
        let Some(due_ms) = self.home.member_due_ms(&self.cx, key) else { return };
        let Some(member) = self.home.sessions.members.get_mut(key) else { return };
        let [first, second] = member.timers_ms;
        if due_ms < first {
            member.timers_ms = [due_ms, first.min(second)];
            self.timers.wheel.schedule(due_ms, Timer::Member(key));
        }
    }

    /// The earliest deadline of a connection, in monotonic milliseconds.
    pub(in crate::shard) fn next_deadline_ms(&self, id: ConnId, now: Tick) -> u64 {
        let Some(conn) = self.connections.get(id) else { return u64::MAX };
        let but_for_token_ms = self.timers.deadline_but_for_token_ms(&self.cx, conn, now);
        if matches!(conn.phase, Phase::Open) && conn.leaving.is_none() {
            return but_for_token_ms.min(token_ms(conn, &self.cx.snapshot.settings, now));
        }
        but_for_token_ms
    }

    pub(in crate::shard) fn on_conn_timer<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let now_ms = now.mono_ms();
        let Some(conn) = self.connections.get_mut(id) else { return };
        if conn.timer_ms > now_ms {
            // The deadline that this timer was set for has moved.
            return;
        }
        conn.timer_ms = u64::MAX;
        let snapshot = std::sync::Arc::clone(&self.cx.snapshot);
        let settings = &*snapshot.settings;
        let Some(conn) = self.connections.get(id) else { return };
        match &conn.phase {
            Phase::Closing(closing) => {
                if close_ms(closing.since_ms, settings, self.timers.awake_since_ms) <= now_ms {
                    self.cx.counters.limit_reached(LimitReached::CloseTime);
                    return self.drop_conn(io, id, now);
                }
            }
            Phase::Proxy(_) | Phase::Head(_) | Phase::Hello | Phase::HandingOver(_) => {
                if handshake_deadline_ms(conn, settings, self.timers.awake_since_ms) <= now_ms {
                    return self.handshake_over(io, id, now);
                }
            }
            Phase::Open if let Some(leaving) = &conn.leaving => {
                if close_ms(leaving.since_ms, settings, self.timers.awake_since_ms) <= now_ms {
                    return self.stop_leaving(io, id, now);
                }
            }
            Phase::Open | Phase::Echo => {
                if let Some(reason) = self.overdue(id, settings, now) {
                    if reason == CloseReason::Draining {
                        return self.end(io, id, reason, now);
                    }
                    return self.close(io, id, reason, now);
                }
                self.remind(id, settings, now);
                self.read_again(io, id);
            }
        }
        self.set_timer(id, now);
    }

    fn handshake_over<I: Io>(&mut self, io: &mut I, id: ConnId, now: Tick) {
        let limits = self.cx.snapshot.settings.limits;
        let Some(conn) = self.connections.get(id) else { return };
        let securing = conn.tls.is_some() && !conn.flags.secured;
        let in_head = matches!(conn.phase, Phase::Head(_));
        if securing {
            self.cx.counters.limit_reached(LimitReached::TlsHandshakeTime);
            return self.close(io, id, CloseReason::Shed, now);
        }
        self.cx.counters.limit_reached(LimitReached::HandshakeTime);
        if in_head {
            return self.answer_http(io, id, &HttpRefusal::timed_out(limits.handshake_ms), now);
        }
        self.close(io, id, CloseReason::HandshakeTooLate, now);
    }

    /// The reason to end an open connection whose deadline has passed; `None` if there is none.
    fn overdue(&self, id: ConnId, settings: &Settings, now: Tick) -> Option<CloseReason> {
        let conn = self.connections.get(id)?;
        let now_ms = now.mono_ms();
        let open = matches!(conn.phase, Phase::Open);
        if unfinished_ms(conn, settings, self.timers.awake_since_ms) <= now_ms {
            self.cx.counters.limit_reached(LimitReached::UnfinishedMessage);
            return Some(CloseReason::MessageTooSlow);
        }
        // A peer whose socket takes bytes again is sent its data at the end of this turn or of a later one: that delay is the
        // shard's.
        if conn.flags.blocked && stall_ms(conn, settings, self.timers.awake_since_ms) <= now_ms {
            let wanted = settings.limits.stall_bytes_per_second * settings.limits.stall_ms / 1000;
            // Counted up to u32::MAX, which is enough for any bound.
            if u64::from(conn.stalled_taken) < wanted.min(u32::MAX.into()) {
                self.cx.counters.limit_reached(LimitReached::Stall);
                return Some(CloseReason::TooSlow);
            }
        }
        // While the connection is not read from, its heartbeat waits.
        if conn.pinged_ms > 0 && conn.paused_ms == 0 && heartbeat_ms(conn, settings, self.timers.awake_since_ms) <= now_ms {
            self.cx.counters.limit_reached(LimitReached::HeartbeatTime);
            return Some(CloseReason::HeartbeatLost);
        }
        if open && token_left_ms(conn, now) <= -ms(settings.session.token_expiry_grace_ms) {
            return Some(CloseReason::Auth);
        }
        if open && lifetime_ms(conn, settings) <= now_ms {
            self.cx.counters.limit_reached(LimitReached::ConnectionLifetime);
            return Some(CloseReason::Draining);
        }
        None
    }

    /// Pings, warns of the token's expiry, and begins the next stall window.
    fn remind(&mut self, id: ConnId, settings: &Settings, now: Tick) {
        let (now_ms, awake_ms) = (now.mono_ms(), self.timers.awake_since_ms);
        let Some(conn) = self.connections.get_mut(id) else { return };
        if stall_ms(conn, settings, awake_ms) <= now_ms {
            conn.stalled_ms = now_ms.max(1);
            conn.stalled_taken = 0;
        }
        if conn.pinged_ms == 0 && heartbeat_ms(conn, settings, awake_ms) <= now_ms {
            conn.pinged_ms = now_ms.max(1);
            if !conn.flags.blocked {
                self.connections.ping(&mut self.cx, id);
            }
        }
        let Some(conn) = self.connections.get_mut(id) else { return };
        if !matches!(conn.phase, Phase::Open) || conn.flags.expiry_told {
            return;
        }
        let left_ms = token_left_ms(conn, now);
        if left_ms > ms(settings.session.token_expiry_warning_ms) {
            return;
        }
        conn.flags.expiry_told = true;
        let session_id = self.first_session(id);
        let event = self.cx.event_id();
        let head = Head { id: &event, session_id: &session_id };
        self.connections
            .reply_now(&mut self.cx, id, |out| crate::protocol::auth_expiring(out, head, u64::try_from(left_ms).unwrap_or(0)));
    }
}

fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The deadline of a connection that ends since `since_ms`, whether answered first or not.
fn close_ms(since_ms: u64, settings: &Settings, awake_ms: u64) -> u64 {
    since_ms.max(awake_ms) + settings.limits.close_ms
}

fn handshake_deadline_ms(conn: &Conn, settings: &Settings, awake_ms: u64) -> u64 {
    let securing = conn.tls.is_some() && !conn.flags.secured;
    conn.accepted_ms.max(awake_ms) + if securing { settings.limits.tls_handshake_ms } else { settings.limits.handshake_ms }
}

/// The value ± 10 %, by the connection's number, so that connections accepted together do not ping together.
const fn jittered(value: u64, serial: u64) -> u64 {
    let spread = value / 10;
    value - spread + (serial.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % (2 * spread + 1)
}

fn heartbeat_ms(conn: &Conn, settings: &Settings, awake_ms: u64) -> u64 {
    if conn.pinged_ms > 0 {
        return conn.pinged_ms.max(awake_ms) + settings.session.heartbeat_timeout_ms;
    }
    conn.last_heard_ms + jittered(settings.session.heartbeat_ms, conn.serial)
}

fn stall_ms(conn: &Conn, settings: &Settings, awake_ms: u64) -> u64 {
    if conn.stalled_ms == 0 { u64::MAX } else { conn.stalled_ms.max(awake_ms) + settings.limits.stall_ms }
}

const fn paused_ms(conn: &Conn, now: Tick) -> u64 {
    if conn.paused_ms == 0 { u64::MAX } else { now.mono_ms() + PAUSED_LOOK_MS }
}

fn unfinished_ms(conn: &Conn, settings: &Settings, awake_ms: u64) -> u64 {
    // While the connection is not read from, its message can't be finished.
    if conn.unfinished_ms == 0 || conn.paused_ms > 0 {
        u64::MAX
    } else {
        conn.unfinished_ms.max(awake_ms) + settings.limits.unfinished_message_ms
    }
}

const fn lifetime_ms(conn: &Conn, settings: &Settings) -> u64 {
    match settings.limits.connection_lifetime_s {
        0 => u64::MAX,
        lifetime_s => conn.accepted_ms + jittered(lifetime_s * 1000, conn.serial),
    }
}

/// Milliseconds until the token expires; negative after that. On the wall clock, so that a clock that was set is noticed.
fn token_left_ms(conn: &Conn, now: Tick) -> i64 {
    conn.grant.as_ref().map_or(i64::MAX, |grant| ms(grant.expires_at_s().saturating_mul(1000)) - ms(now.wall_ms))
}

/// When the token must be checked: to warn, then to close.
fn token_ms(conn: &Conn, settings: &Settings, now: Tick) -> u64 {
    let left_ms = token_left_ms(conn, now);
    if left_ms == i64::MAX {
        return u64::MAX;
    }
    let until_ms = if conn.flags.expiry_told {
        left_ms + ms(settings.session.token_expiry_grace_ms)
    } else {
        left_ms - ms(settings.session.token_expiry_warning_ms)
    };
    now.mono_ms() + u64::try_from(until_ms).unwrap_or(0)
}

impl Timers {
    /// Notices a standstill of the shard: it could not see what its peers did meanwhile, so their timeouts start anew.
    pub(in crate::shard) fn notice_standstill(&mut self, cx: &Context, now: Tick) {
        if self.turn_due_ms.saturating_add(STANDSTILL_MS) <= now.mono_ms() {
            self.awake_since_ms = now.mono_ms();
            cx.counters.standstills.increment();
        }
    }

    pub(in crate::shard) fn deadline_but_for_token_ms(&self, cx: &Context, conn: &Conn, now: Tick) -> u64 {
        let (settings, awake_ms) = (&cx.snapshot.settings, self.awake_since_ms);
        let of_any = || {
            let patience_ms = stall_ms(conn, settings, awake_ms).min(unfinished_ms(conn, settings, awake_ms));
            heartbeat_ms(conn, settings, awake_ms).min(patience_ms).min(paused_ms(conn, now))
        };
        match &conn.phase {
            Phase::Closing(closing) => close_ms(closing.since_ms, settings, awake_ms),
            Phase::Proxy(_) | Phase::Head(_) | Phase::Hello | Phase::HandingOver(_) => {
                handshake_deadline_ms(conn, settings, awake_ms)
            }
            Phase::Echo => of_any(),
            Phase::Open if let Some(leaving) = &conn.leaving => close_ms(leaving.since_ms, settings, awake_ms),
            Phase::Open => of_any().min(lifetime_ms(conn, settings)),
        }
    }
}

impl Connections {
    fn ping(&mut self, cx: &mut Context, id: ConnId) {
        let Some(conn) = self.get_mut(id) else { return };
        enqueue(conn, &mut cx.buffers, &cx.counters, |queue| encoder::ping(&[], queue));
        self.mark(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth_and_spreads() {
        let values: Vec<u64> = (0..1000).map(|serial| jittered(25_000, serial)).collect();
        assert!(values.iter().all(|value| (22_500..=27_500).contains(value)));
        assert!(values.iter().any(|value| *value < 23_500) && values.iter().any(|value| *value > 26_500));
        assert_eq!(jittered(5, 3), 5, "too short to spread");
    }
}
