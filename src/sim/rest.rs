//! Endings of a world, and what must hold of it, when its time of chance is over: rest, drain, stop.

use super::client::What;
use super::crash::entries;
use super::draw::roomy;
use super::net::Faults;
use super::random::Random;
use super::tokens::token_id;
use super::visitors::Visitor;
use super::world::World;
use crate::auth::{Revocation, Revocations};
use crate::config::{Limits, Session, Settings};
use crate::shard::counters::DropReason;
use crate::shard::port::{CONNECTIONS_PAGE_MAX, ConnectionState, PortMessage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The longest time, of the world's, that it may take to come to rest without faults.
const SETTLE_MS: u64 = 120_000;
/// From a connection's last moment in a drain to its end: what it is answered first, and its close handshake.
const DEPART_MS: u64 = 10_000;
/// The longest grace of a member, and the time to ask of it.
const LOST_NS: u64 = 30_000_000_000;
/// Longer than any fault keeps a shard from answering its operator.
const ANSWERED_MS: u64 = 100;
/// Records that go bad for a client, and one more.
const ROTTEN_MAX: u64 = 12;
/// A page of members.
const ROSTER_LIMIT: usize = 3;

/// Members that a client was told of.
#[derive(Debug, Default)]
pub struct Roster {
    pub members: Vec<Value>,
    pub whole: bool,
}

impl Roster {
    /// The same roster with one member more, or without it if it is there: a wrong list.
    pub fn toggled(mut self, member: &Value) -> Self {
        let before = self.members.len();
        self.members.retain(|other| other["client_id"] != member["client_id"]);
        if self.members.len() == before {
            self.members.push(member.clone());
        }
        self
    }
}

/// Faults stop; all must come to rest, and everybody must have everything.
pub fn settle(world: &mut World) {
    world.settling = true;
    world.faults = Faults::NONE;
    // Everybody is let in now.
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        lift(&mut settings);
        snapshot.settings = Arc::new(settings);
    });
    for client in 0..world.clients.len() {
        if world.clients[client].hostile() {
            world.end_link(client, true);
        } else if let Some(link) = &world.clients[client].link {
            world.net.sockets[link.pipe.socket].capacity = 1 << 20;
        }
    }
    let rested = world.run_until(SETTLE_MS, |world| {
        world.clients.iter().all(|client| client.hostile() || client.is_open() && !client.waits())
            && world.caught_up()
            && !world.visitors.iter().any(Visitor::waits)
    });
    if !rested && world.oracle.violations.is_empty() {
        let waiting: Vec<String> = world
            .clients
            .iter()
            .filter(|client| !client.hostile() && (!client.is_open() || !client.waiting().is_empty()))
            .map(|client| format!("{} open {} waits {:?}", client.id, client.is_open(), client.waiting()))
            .collect();
        world.oracle.wrong(format!("no rest after {SETTLE_MS} ms: {waiting:?}"));
        return;
    }
    // Pings in every session: what comes before their answers is all there was.
    for client in 0..world.clients.len() {
        let Some(link) = &world.clients[client].link else { continue };
        let sessions: Vec<String> = link.views.keys().cloned().collect();
        for session in sessions {
            let acked_max = 0;
            world.command(client, "rw.ping", &session, serde_json::json!({}), What::Ping { acked_max });
        }
    }
    // Long enough for abandoned connections to be missed, and their members too.
    world.run_for(90_000);
    world.claim_heads();
    for check in [check_rest, World::check_purges, check_members, check_peers] {
        // A world in which something is wrong stands still.
        if world.oracle.violations.is_empty() {
            check(world);
        }
    }
}

/// Lifts what may keep anybody out, or closes who is slow; rates and queues stay as they were drawn.
fn lift(settings: &mut Settings) {
    let (drawn, usual) = (settings.limits, Session::default());
    settings.limits = Limits {
        messages_per_second: drawn.messages_per_second,
        messages_burst: drawn.messages_burst,
        bytes_per_second: if drawn.bytes_per_second == 0 { 0 } else { Limits::default().bytes_per_second },
        reply_queue_bytes: drawn.reply_queue_bytes,
        max_attached_sessions: drawn.max_attached_sessions,
        ..roomy()
    };
    (settings.session.heartbeat_ms, settings.session.heartbeat_timeout_ms) = (usual.heartbeat_ms, usual.heartbeat_timeout_ms);
}

/// Checks what must hold across shards when nothing is under way.
fn check_rest(world: &mut World) {
    let (mut mirrored, mut fed, mut placed, mut attached) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut open, mut ended, mut accepted) = (0, 0, 0);
    for seat in &world.seats {
        let (here, there) = seat.core.mirror_pairs();
        mirrored.extend(here);
        fed.extend(there);
        let (members, attachments) = seat.core.places();
        placed.extend(members);
        attached.extend(attachments);
        open += seat.core.open_connections() as u64;
        ended += seat.core.ended_connections();
        accepted += seat.counters.accepted.get();
    }
    let mut complaints = Vec::new();
    if mirrored != fed {
        complaints.push(format!("mirrors {mirrored:?}, fed {fed:?}"));
    }
    if placed != attached {
        complaints.push(format!("members are at {placed:?}, attachments {attached:?}"));
    }
    if open + ended != accepted {
        complaints.push(format!("{accepted} accepted, {open} open, {ended} ended"));
    }
    complaints.into_iter().for_each(|complaint| world.oracle.wrong(complaint));
}

/// Shards are stopped while the others go on, take connections and hand them over.
pub fn stop_one_by_one(world: &mut World, random: &mut Random) {
    world.stopping = true;
    for shard in 0..world.seats.len() {
        world.tell(shard, PortMessage::Stop);
        world.run_for(random.pick(&[0, 1, 5, 100]));
    }
}

/// An operator asks a shard for its connections, for one of them, and for a sign of life; now and then the asker is gone before that is
/// answered.
pub fn ask(world: &mut World, random: &mut Random) {
    let shard = random.index(world.seats.len());
    let (reply, mut page) = oneshot::channel();
    let limit = 1 + random.index(CONNECTIONS_PAGE_MAX);
    world.tell(shard, PortMessage::ListConnections { from: 0, limit, reply });
    if random.percent(50) {
        drop(page);
        let (reply, _) = oneshot::channel();
        return world.tell(shard, PortMessage::Probe { reply });
    }
    world.run_for(ANSWERED_MS);
    let Ok(page) = page.try_recv() else { return world.oracle.wrong("no list of connections came".to_owned()) };
    if page.connections.len() > limit {
        world.oracle.wrong(format!("{} connections were told, and {limit} asked for", page.connections.len()));
    }
    let Some(first) = page.connections.iter().find(|info| info.state == ConnectionState::Open) else { return };
    let pushed_out = |world: &World| world.seats[shard].counters.dropped_count(DropReason::ClosedRecord);
    let pushed_out_before = pushed_out(world);
    let (reply, mut one) = oneshot::channel();
    world.tell(shard, PortMessage::ShowConnection { connection_id: first.connection_id.clone(), reply });
    world.run_for(ANSWERED_MS);
    // A closed connection is remembered as well, until newer ones push it out.
    if one.try_recv().is_ok_and(|one| one.is_none()) && pushed_out(world) == pushed_out_before {
        world.oracle.wrong(format!("{} was told and is not known", first.connection_id));
    }
}

/// Records that somebody has still to read go bad on disk: damaged for good, or not to be read.
pub fn rot(world: &mut World, random: &mut Random) {
    if !world.purges.is_empty() {
        // A purge reads what it cleans.
        return;
    }
    for c in 0..world.clients.len() {
        let held: Vec<(String, u64)> = world.clients[c].held.iter().map(|(session, held)| (session.clone(), *held)).collect();
        if held.is_empty() {
            continue;
        }
        let (session, held) = random.pick(&held);
        let home = world.home(&session);
        let places = entries(&world.seats[home]).remove(&session).unwrap_or_default();
        for _ in 0..random.below(ROTTEN_MAX) {
            let (seq, is_damaged) = (held + random.between(1, 20), random.percent(50));
            if let Some(at) = places.get(&seq) {
                world.seats[home].engine.disk.spoil(*at, is_damaged);
                world.tell_story(|| format!("{seq} of {session} at {at} goes bad on disk, damaged {is_damaged}"));
                world.oracle.unreadable.insert((session.clone(), seq));
            }
        }
    }
}

pub fn shut_down(world: &mut World) {
    for shard in 0..world.seats.len() {
        world.tell(shard, PortMessage::Stop);
    }
    world.run_until(20_000, |world| world.seats.iter().all(|seat| seat.stopped));
    let left: Vec<usize> = world.seats.iter().map(|seat| seat.engine.open()).collect();
    if world.seats.iter().any(|seat| !seat.stopped) || left.iter().any(|open| *open > 0) {
        world.oracle.wrong(format!("after the stop sockets are left: {left:?}"));
    }
    // A shard that stops first is handed connections by those that have not: they end with the process.
    let undelivered: usize = world.seats.iter_mut().map(|seat| seat.core.forget_undelivered()).sum();
    if undelivered > 0 && !world.stopping {
        world.oracle.wrong(format!("{undelivered} connections were on their way when all was at rest"));
    }
    let counted = world.admission.still_counted();
    if counted != [0; 4] {
        world.oracle.wrong(format!("after the stop connections, addresses, half-open ones and users are counted: {counted:?}"));
    }
}

/// A client's token, or all that its user has, are good no more.
pub fn revoke(world: &mut World, random: &mut Random) {
    let c = random.index(world.clients.len());
    let (token_id, subject) = (token_id(&world.clients[c]), world.clients[c].sub.clone());
    let now_s = world.now().wall_s();
    if random.percent(50) {
        world.revoked.insert(token_id, now_s);
    } else {
        world.revoked_users.insert(subject, now_s);
    }
    let until_s = now_s + 1_000_000;
    let tokens = world.revoked.keys().map(|id| Revocation::Token { token_id: id.as_str().into(), until_s });
    let users = world.revoked_users.iter().map(|(subject, not_before_s)| Revocation::Subject {
        subject: subject.as_str().into(),
        not_before_s: *not_before_s,
        until_s,
    });
    let revocations = Arc::new(Revocations::new(tokens.chain(users), now_s).unwrap());
    world.configure(|snapshot| snapshot.revocations = revocations);
}

/// The node goes away: everybody is told, and closed within the window.
pub fn drain(world: &mut World, random: &mut Random) {
    world.draining = true;
    let window_ms = random.pick(&[0, 300, 3_000]);
    for shard in 0..world.seats.len() {
        world.tell(shard, PortMessage::Drain { window_ms, restart: random.percent(50) });
        // Some are told while others still hand connections to them.
        world.run_for(random.pick(&[0, 0, 5]));
    }
    world.run_for(window_ms + DEPART_MS);
    let open: Vec<usize> = world.seats.iter().map(|seat| seat.core.open_connections()).collect();
    if world.oracle.violations.is_empty() && open.iter().any(|open| *open > 0) {
        world.oracle.wrong(format!("{open:?} connections are left by a drain over {window_ms} ms"));
    }
}

/// Everybody behind the proxy is known by its own address.
fn check_peers(world: &mut World) {
    let mut pages = Vec::new();
    for shard in 0..world.seats.len() {
        let (reply, page) = oneshot::channel();
        world.tell(shard, PortMessage::ListConnections { from: 0, limit: CONNECTIONS_PAGE_MAX, reply });
        pages.push(page);
    }
    world.run_for(1_000);
    let mut told = BTreeMap::new();
    for mut page in pages {
        let Ok(page) = page.try_recv() else { return world.oracle.wrong("no list of connections came".to_owned()) };
        let open = page.connections.into_iter().filter(|info| info.state == ConnectionState::Open);
        told.extend(open.map(|info| (info.client_id, info.peer)));
    }
    for client in 0..world.clients.len() {
        let Some(link) = world.clients[client].link.as_ref().filter(|_| world.clients[client].is_open()) else { continue };
        let (id, address) = (&world.clients[client].id, world.net.sockets[link.pipe.socket].address);
        if told.get(id) != Some(&address) {
            let complaint = format!("{id} comes from {address}, and is known by {:?}", told.get(id));
            world.oracle.wrong(complaint);
        }
    }
}

/// A client of each session asks for its members.
fn check_members(world: &mut World) {
    let mut asked = BTreeSet::new();
    for client in 0..world.clients.len() {
        let Some(link) = &world.clients[client].link else { continue };
        let sessions: Vec<String> = link.views.keys().filter(|session| session.starts_with("s.")).cloned().collect();
        for session in sessions.into_iter().filter(|session| asked.insert(session.clone())) {
            world.ask_members(client, &session, None, &Value::Null);
            world.ask_members(client, &session, Some("ops"), &Value::Null);
        }
    }
    world.run_for(10_000);
    for ((client, session, room), roster) in std::mem::take(&mut world.rosters) {
        let stayed = world.clients[client].link.as_ref().is_some_and(|link| link.views.contains_key(&session));
        if !stayed {
            continue;
        }
        let complaint = world.wrong_in(&session, room.as_deref(), &roster);
        if let Some(complaint) = complaint {
            let who = world.clients[client].id.clone();
            world.oracle.wrong(format!("{who} in {session}: members of {room:?}: {complaint}; {:?}", roster.members));
        }
    }
}

impl World {
    pub fn ask_members(&mut self, c: usize, session: &str, room: Option<&str>, after: &Value) {
        let mut payload = json!({"limit": ROSTER_LIMIT});
        if let Some(room) = room {
            payload["room"] = json!(room);
        }
        if !after.is_null() {
            payload["after"] = after.clone();
        }
        self.rosters.entry((c, session.to_owned(), room.map(str::to_owned))).or_default();
        self.command(c, "rw.members", session, payload, What::Roster(room.map(str::to_owned)));
    }

    /// A page of members came.
    pub fn on_roster(&mut self, c: usize, session: &str, room: Option<String>, payload: &Value) {
        let page: Vec<Value> = payload["members"].as_array().cloned().unwrap_or_default();
        let (count, last) = (page.len(), page.last().map_or(Value::Null, |member| member["client_id"].clone()));
        let roster = self.rosters.entry((c, session.to_owned(), room.clone())).or_default();
        roster.members.extend(page);
        if payload["next"].is_null() {
            roster.whole = true;
        } else if payload["next"] != last || count != ROSTER_LIMIT {
            self.oracle.wrong(format!("a page of {count} members goes on after {}: {payload}", payload["next"]));
        } else {
            self.ask_members(c, session, room.as_deref(), &last);
        }
    }

    /// The mistakes in a list of members, when nothing is under way.
    pub fn wrong_in(&self, session: &str, room: Option<&str>, roster: &Roster) -> Option<String> {
        if !roster.whole {
            return Some("the list did not end".to_owned());
        }
        let names: Vec<&str> = roster.members.iter().filter_map(|member| member["client_id"].as_str()).collect();
        if !names.is_sorted_by(|a, b| a < b) {
            return Some("not in order".to_owned());
        }
        if let Some(stranger) = names.iter().find(|name| !self.clients.iter().any(|client| client.id == **name)) {
            return Some(format!("{stranger} is nobody"));
        }
        for client in self.clients.iter().filter(|client| !client.hostile()) {
            let member = roster.members.iter().find(|member| member["client_id"] == json!(client.id));
            let attached = client.link.as_ref().is_some_and(|link| link.views.contains_key(session));
            let been_in = client.been_in.get(session);
            let (must, may) = match room {
                None => (been_in == Some(&true), been_in.is_some()),
                Some(room) => self.oracle.is_in_room(&client.id, session, room),
            };
            let Some(member) = member else {
                if must {
                    return Some(format!("{} is missing", client.id));
                }
                continue;
            };
            if !may {
                return Some(format!("{} was never there", client.id));
            }
            // Within the grace it is neither here nor gone.
            let lost = member["state"] == "lost" && self.now_ns < client.left_ns + LOST_NS;
            if member["state"] != json!(if attached { "online" } else { "away" }) && !lost {
                return Some(format!("{} attached {attached}", client.id));
            }
            if attached && member["roles"] != json!(client.roles) {
                return Some(format!("{} has the roles {:?}", client.id, client.roles));
            }
            let mood = match client.moods.get(session) {
                None => Some(Value::Null),
                Some((mood, heard)) => heard.then(|| json!(mood)),
            };
            if mood.is_some_and(|mood| member["data"] != mood) {
                return Some(format!("{} said {:?} of itself", client.id, client.moods.get(session)));
            }
        }
        None
    }

    /// Returns `true` if a client's token may have been revoked.
    pub fn is_revoked(&self, c: usize) -> bool {
        let client = &self.clients[c];
        self.revoked.contains_key(&token_id(client)) || self.revoked_users.contains_key(&client.sub)
    }
}
