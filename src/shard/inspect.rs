//! Invariants of a shard after every turn, for the simulator and the fuzz of states.

use super::across::mesh::{Class, LaneMessage};
use super::connections::conn::{Attachment, Conn, Paging, Phase, Slot};
use super::core::Core;
use crate::close::CloseReason;
use crate::ids::{ConnId, Map};
use crate::limits::{ENDED_STAYS_PER_MEMBER_MAX, ENDED_STAYS_PER_ROOM_MAX, ROOMS_PER_CLIENT_MAX, TURNED_AWAY_MAX};
use crate::log::Held;
use crate::session::{Entitlements, Target};
use crate::time::Tick;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

/// A shard's knowledge of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub oldest: u64,
    /// Room, first and last `seq` of each stay.
    pub stays: Vec<(u64, u64, u64)>,
    pub rooms: Vec<String>,
    pub roles: Vec<String>,
    pub presence: Option<String>,
    pub received_seq: u64,
}

impl Known {
    /// The same knowledge, without everything before `oldest`.
    #[must_use]
    pub fn since(mut self, oldest: u64) -> Self {
        self.oldest = oldest;
        self.stays.retain(|(_, _, to)| *to >= oldest);
        self.stays.iter_mut().for_each(|(_, from, _)| *from = oldest.max(*from));
        self.stays.sort_unstable();
        self
    }
}

/// Sessions with a shard.
type Pairs = BTreeSet<(u64, u16)>;
/// Shard, connection, attachment.
type Spots = BTreeSet<(u16, ConnId, u16)>;

/// `true` if shards inspect themselves after each turn, on any engine.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Makes every shard of this process inspect itself after each turn from now on.
pub fn watch_all() {
    WATCHED.store(true, Ordering::Relaxed);
}

impl Core {
    /// Panics with the violated invariant, if the shard is watched.
    pub(super) fn look_at_itself(&self, resting: bool, now: Tick) {
        if WATCHED.load(Ordering::Relaxed)
            && let Err(what) = self.inspect(resting, now)
        {
            panic!("shard {}: {what}", self.cx.shard);
        }
    }

    /// Tables that are not empty but should be when everybody has gone and everything is forgotten.
    pub fn what_is_left(&self) -> Vec<String> {
        let waiting = self.links.backlog.iter().map(VecDeque::len).sum();
        let evicted = self.links.evicted.iter().map(Map::len).sum();
        let [of_node, addresses, half_open, users] = self.admission.still_counted();
        [
            ("connections", self.connections.count),
            ("half-open connections", self.connections.half_open.len()),
            ("connections to be ended", self.connections.doomed.len()),
            ("connections that end when they are answered", self.connections.leaving.len()),
            ("connections elsewhere that wait for an answer", self.connections.fences.len()),
            ("departures", self.connections.departures.len()),
            ("members", self.home.sessions.members.len()),
            ("sessions", self.home.sessions.sessions.len()),
            ("streams", self.home.streams.len()),
            ("mirrors", self.links.mirrors.len()),
            ("reads", self.storage.jobs.len()),
            ("pages of history", self.storage.histories.left()),
            ("purges", self.storage.purges.len()),
            ("pulls", self.links.pulls.len()),
            ("messages that wait for lanes", waiting),
            ("evictions", evicted),
            ("bytes that wait", usize::try_from(self.cx.counters.buffer_bytes.get()).unwrap_or(usize::MAX)),
            ("addresses that are counted", addresses),
            ("half-open connections that are counted", half_open),
            ("users that are counted", users),
            ("connections of the node", of_node),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect()
    }

    /// The oldest and the newest `seq` of a session at home here.
    pub fn session_bounds(&self, session_id: &str) -> Option<(u64, u64)> {
        self.session_bounds_of(self.home.sessions.find(self.cx.session_hash(session_id))?)
    }

    /// The oldest and the newest `seq` of a session.
    pub fn session_bounds_of(&self, key: crate::session::SessionKey) -> Option<(u64, u64)> {
        let stream = self.home.streams.get(self.home.sessions.sessions.get(key)?.stream)?;
        Some((stream.index.first(), stream.head()))
    }

    /// The newest `seq` of a session at home here, whether or not it may be seen yet.
    pub fn appended_head(&self, session_id: &str) -> u64 {
        let session =
            self.home.sessions.find(self.cx.session_hash(session_id)).and_then(|key| self.home.sessions.sessions.get(key));
        session.and_then(|session| self.home.streams.get(session.stream)).map_or(0, |stream| stream.index.head())
    }

    /// Returns `true` if the log lacks a value of a client in a session at home here: the log took nothing then.
    pub fn owes_member(&self, session_id: &str, client_id: &str) -> bool {
        let session = self.home.sessions.find(self.cx.session_hash(session_id));
        let client = self.home.sessions.target(Target::Client, client_id);
        let member = session.and_then(|session| self.home.sessions.member(session, client));
        member
            .and_then(|member| self.home.sessions.members.get(member))
            .is_some_and(|member| member.owed & super::home::gauges::WHOLE != 0)
    }

    /// Returns `true` if a session at home here knows an epoch, the current or an older one.
    pub fn knows_epoch(&self, session_id: &str, epoch: &str) -> bool {
        let session =
            self.home.sessions.find(self.cx.session_hash(session_id)).and_then(|key| self.home.sessions.sessions.get(key));
        let names = |session: &crate::session::Session| {
            let past = session.past_epochs.iter().map(|(name, _)| *name);
            past.chain([session.epoch]).any(|name| super::home::attach::epoch_name(name) == epoch)
        };
        session.is_some_and(names)
    }

    /// Memory of data that waits, and of the log.
    pub fn memory_held(&self) -> u64 {
        self.storage.held_bytes(&self.cx) + self.storage.log.resident_bytes() as u64
    }

    /// The memory of the logs, buffers that are kept for the next use, and what members said of themselves.
    pub fn memory(&self) -> impl Iterator<Item = &[u8]> {
        let logs = self.storage.log.memory().chain(self.links.mirror_log.memory());
        let pages = self.links.pages.iter().map(|page| &*page.frames);
        let said = self.home.sessions.members.iter().filter_map(|(_, member)| Some(member.presence.as_deref()?.as_bytes()));
        logs.chain(self.cx.buffers.memory()).chain(self.out.memory()).chain(pages).chain(said)
    }

    /// Returns `true` if a text stands in [`Core::memory`].
    pub fn memory_holds(&self, text: &[u8]) -> bool {
        self.memory().any(|memory| memchr::memmem::find(memory, text).is_some())
    }

    /// Returns `true` if the log's disk is full or has failed.
    pub fn log_refuses_all(&self) -> bool {
        self.storage
            .disk
            .as_ref()
            .is_some_and(|disk| disk.room.is_capped || disk.full.is_some() || disk.failed.is_some() || disk.sync_failed.is_some())
    }

    /// The log position of each message of the sessions at home here; `located` resolves an entry of a segment's index.
    pub fn log_entries(&self, located: impl Fn(u64, u64) -> Option<u64>) -> BTreeMap<String, BTreeMap<u64, u64>> {
        let place = |stream: &crate::session::Stream, seq: u64| match stream.index.find(seq) {
            Held::Entry(entry) => Some((seq, entry.at.0)),
            Held::Cold(run) => {
                let at = located(run.segment.into(), run.part(seq, seq + 1).entries_at.into());
                Some((seq, at.expect("a run's segment has an index that names its messages")))
            }
            Held::Nothing { .. } => None,
        };
        let streams = self.home.streams.iter().map(|(_, stream)| stream).filter(|stream| stream.home.is_none());
        let entries = |stream: &crate::session::Stream| {
            (stream.index.first()..=stream.index.head()).filter_map(|seq| place(stream, seq)).collect()
        };
        streams.map(|stream| (stream.session_id.to_string(), entries(stream))).collect()
    }

    /// Returns `true` if a connection is no longer here, or the gateway has begun to close it.
    pub fn has_closed(&self, id: ConnId) -> bool {
        self.connections.get(id).is_none_or(|conn| matches!(conn.phase, Phase::Closing(_)))
    }

    /// Forgets messages on their way to this shard, or waiting here for a lane, because it has stopped: they are lost with the
    /// process. Connections among them are uncounted; returns how many there were.
    pub fn forget_undelivered(&mut self) -> usize {
        let mut undelivered: Vec<LaneMessage> = self.links.backlog.iter_mut().flat_map(std::mem::take).collect();
        for from in 0..self.links.mesh.shards() {
            // Sockets change shards on the control queue.
            undelivered.extend(std::iter::from_fn(|| self.links.mesh.pop(from, self.cx.shard, Class::Control)));
        }
        let handovers = undelivered.iter().filter_map(|message| match message {
            LaneMessage::Handover(handover) => Some(handover),
            _ => None,
        });
        handovers.map(|handover| self.uncount(handover)).count()
    }

    /// Connections in the table.
    pub const fn open_connections(&self) -> usize {
        self.connections.count
    }

    /// Connections that ended here.
    pub fn ended_connections(&self) -> u64 {
        CloseReason::ALL.iter().map(|reason| self.cx.counters.closed_count(*reason)).sum()
    }

    /// Connections that ended and are still remembered.
    pub fn remembered(&self) -> usize {
        self.connections.closed.len()
    }

    /// Sessions that this shard mirrors, and the mirrors that it feeds, as (session, shard that mirrors).
    pub fn mirror_pairs(&self) -> (Pairs, Pairs) {
        let here = self.cx.shard_number();
        let mirrored =
            self.home.streams.iter().filter(|(_, stream)| stream.home.is_some()).map(|(_, stream)| (stream.hash, here));
        let fed = self
            .home
            .sessions
            .sessions
            .iter()
            .flat_map(|(_, session)| session.mirrors.iter().map(|mirror| (session.hash, mirror.shard)).collect::<Vec<_>>());
        (mirrored.collect(), fed.collect())
    }

    /// Attached members, as their home has it, and attachments here: (shard, connection, attachment).
    pub fn places(&self) -> (Spots, Spots) {
        let members = self.home.sessions.members.iter().filter_map(|(_, member)| member.place);
        let here = self.cx.shard_number();
        let attached = self
            .connections
            .table
            .iter()
            .flatten()
            .flat_map(|conn| conn.attachments().map(|(number, _)| (here, conn.id, number)).collect::<Vec<_>>());
        (members.map(|place| (place.shard, place.conn, place.attachment)).collect(), attached.collect())
    }

    /// The state of a client in a session as the shard has it, each value with its name: the member, if the session is at home
    /// here, and its attachments here. Rooms and roles are given by these names.
    pub fn sight(&self, client_id: &str, session_id: &str, (rooms, roles): (&[&str], &[&str])) -> Vec<(String, String)> {
        let hash = self.cx.session_hash(session_id);
        let named = |target: Target, hash: u64, names: &[&str]| {
            names.iter().find(|name| target.hash(&self.cx.key, name) == hash).map_or("?", |name| *name).to_owned()
        };
        let told = |entitlements: &Entitlements| {
            let stays: Vec<String> = entitlements
                .stays
                .iter()
                .map(|stay| match stay.to {
                    u64::MAX => format!("{} from {}", named(Target::Room, stay.room, rooms), stay.from),
                    to => format!("{} from {} to {to}", named(Target::Room, stay.room, rooms), stay.from),
                })
                .collect();
            let roles: Vec<String> = entitlements.roles.iter().map(|role| named(Target::Role, *role, roles)).collect();
            format!("stays {stays:?}, roles {roles:?}")
        };
        let mut sights = Vec::new();
        let session = self.home.sessions.find(hash);
        let client = Target::Client.hash(&self.cx.key, client_id);
        let member = session.and_then(|session| self.home.sessions.member(session, client));
        if let Some(member) = member.and_then(|member| self.home.sessions.members.get(member)) {
            let place = member.place.map(|place| format!("shard {} attachment {}", place.shard, place.attachment));
            let received = member.received_seq;
            sights.push(("member".to_owned(), format!("{}, received {received}, at {place:?}", told(&member.entitlements))));
        }
        for conn in self.connections.table.iter().flatten().filter(|conn| &*conn.client_id == client_id) {
            let (blocked, dirty, queued) = (conn.flags.blocked, conn.flags.dirty, !conn.queue.is_empty());
            sights.push((
                self.cx.name_of(conn),
                format!(
                    "phase {:?}, blocked {blocked}, dirty {dirty}, frames wait {queued}",
                    std::mem::discriminant(&conn.phase)
                ),
            ));
            for (number, attachment) in conn.attachments() {
                let Some(stream) = self.home.streams.get(attachment.stream).filter(|stream| stream.hash == hash) else {
                    continue;
                };
                let Attachment { cursor, delivered_seq, idle, pulling, detaching, ordered, entitlements, .. } = attachment;
                let (head, replies, told) = (stream.head(), ordered.len(), told(entitlements));
                sights.push((
                    format!("{} attachment {number}", self.cx.name_of(conn)),
                    format!(
                        "cursor {cursor} of {head}, delivered {delivered_seq}, idle {idle}, pulling {pulling}, detaching {detaching}, \
{replies} replies wait, {told}"
                    ),
                ));
            }
        }
        sights
    }

    /// Deadlines on the wheel.
    pub fn deadlines(&self) -> usize {
        self.timers.wheel.len()
    }

    /// Checks the shard's invariants at `now`. `resting`: it has asked for no further turn.
    ///
    /// # Errors
    /// The invariant that does not hold.
    pub fn inspect(&self, resting: bool, now: Tick) -> Result<(), String> {
        let count = self.connections.table.iter().flatten().count();
        ensure!(count == self.connections.count, "{count} connections, counted {}", self.connections.count);
        let half_open = self.connections.table.iter().flatten().filter(|conn| conn.flags.half_open);
        let (half_open, astray) = (half_open.clone().count(), half_open.filter(|conn| conn.refused.is_some()).count());
        ensure!(
            half_open == self.connections.half_open.len(),
            "{half_open} half-open connections, counted {}",
            self.connections.half_open.len()
        );
        ensure!(half_open <= self.links.half_open_cap(&self.cx), "{half_open} half-open connections");
        ensure!(astray == 0, "{astray} that are turned away have a half-open place");
        ensure!(self.connections.turned_away.len() <= TURNED_AWAY_MAX, "{} turned away", self.connections.turned_away.len());
        let mut dirty: BTreeMap<ConnId, usize> = BTreeMap::new();
        self.connections.dirty.iter().for_each(|id| *dirty.entry(*id).or_default() += 1);
        let mut queued = 0;
        for conn in self.connections.table.iter().flatten() {
            queued += conn.memory_bytes() as u64;
            self.inspect_conn(conn, dirty.get(&conn.id).copied().unwrap_or_default(), resting)
                .and_then(|()| self.inspect_timer(conn, now))
                .map_err(|what| format!("{} ({}, {:?}): {what}", self.cx.name_of(conn), conn.client_id, conn.flags))?;
        }
        let (counted, lanes_counted) = (self.cx.counters.buffer_bytes.get(), self.cx.counters.lane_backlog_bytes.get());
        let lanes: u64 = self.links.backlog.iter().flatten().map(|message| message.bytes() as u64).sum();
        ensure!(lanes_counted == lanes, "{lanes} bytes wait for lanes, counted {lanes_counted}");
        ensure!(counted == queued + lanes, "{queued} bytes wait for connections and {lanes} for lanes, counted {counted}");
        self.inspect_members()?;
        self.inspect_tables()?;
        self.inspect_histories(resting)?;
        self.inspect_tellings(resting)?;
        for (key, member) in self.home.sessions.members.iter().filter(|_| self.timers.anew.is_none()) {
            let due_ms = self.home.member_due_ms(&self.cx, key).unwrap_or(u64::MAX);
            let [first, _] = member.timers_ms;
            // A member whose removal the log has no room for is tried again.
            let due_ms = if due_ms <= now.mono_ms() { now.mono_ms() + super::home::members::GONE_RETRY_MS } else { due_ms };
            ensure!(first <= due_ms, "{} is looked at at {first}, due at {due_ms}", member.client_id);
        }
        for (key, stream) in self.home.streams.iter() {
            for (place, reader) in stream.readers.iter().enumerate() {
                let attachment = self.connections.get(reader.conn).and_then(|conn| conn.attachment(reader.attachment));
                ensure!(
                    attachment.is_some_and(|attachment| attachment.stream == key && attachment.reader as usize == place),
                    "reader {place} of {} is not attached: {reader:?}",
                    stream.session_id
                );
            }
            ensure!(
                stream.home.is_none() || self.links.mirrors.get(&stream.hash) == Some(&key),
                "the mirror of {} is not to be found",
                stream.session_id
            );
        }
        Ok(())
    }

    /// State kept for members is bounded, and the counts of commands that wait for the log are right.
    fn inspect_members(&self) -> Result<(), String> {
        let mut held = 0;
        for (_, member) in self.home.sessions.members.iter() {
            let (client, stays) = (&member.client_id, &member.entitlements.stays);
            let ended: Vec<u64> = stays.iter().filter(|stay| stay.has_ended()).map(|stay| stay.room).collect();
            ensure!(ended.len() <= ENDED_STAYS_PER_MEMBER_MAX, "{client}: {} stays that have ended", ended.len());
            for room in &ended {
                let of_room = ended.iter().filter(|other| *other == room).count();
                ensure!(of_room <= ENDED_STAYS_PER_ROOM_MAX, "{client}: {of_room} ended stays in one room");
            }
            let open = stays.iter().filter(|stay| stay.to == u64::MAX).count();
            ensure!(open == member.rooms.len() && open <= ROOMS_PER_CLIENT_MAX, "{client}: {open} stays, {:?}", member.rooms);
            ensure!(stays.len() <= open + ended.len() + 1, "{client}: {stays:?}");
            let Some(underway) = &member.underway else { continue };
            ensure!(underway.held > 0 || !underway.answers.is_empty(), "{client}: {underway:?} waits for nothing");
            held += underway.held as usize;
        }
        let commands = self.storage.held_commands();
        ensure!(commands.iter().all(|(waiting, known)| waiting == known), "commands that wait: {commands:?}");
        let waiting: usize = commands.iter().map(|(waiting, _)| waiting).sum();
        // An answer may wait for a member that is forgotten.
        ensure!(held <= waiting, "{held} commands of members wait, {waiting} in all");
        self.inspect_owed()
    }

    /// The knowledge of each member, by session and client, and the oldest `seq` that its session holds.
    pub fn members_known(&self) -> BTreeMap<(String, String), Known> {
        let known = |member: &crate::session::Member| {
            let stream = self.home.streams.get(self.home.sessions.sessions.get(member.session)?.stream)?;
            let mut rooms: Vec<String> = member.rooms.iter().map(ToString::to_string).collect();
            rooms.sort_unstable();
            let roles = member.roles.iter().map(ToString::to_string).collect();
            let known = Known {
                oldest: stream.index.first(),
                stays: member.entitlements.stays.iter().map(|stay| (stay.room, stay.from, stay.to)).collect(),
                rooms,
                roles,
                presence: member.presence.as_deref().map(ToOwned::to_owned),
                received_seq: member.received_seq,
            };
            Some(((stream.session_id.to_string(), member.client_id.to_string()), known))
        };
        self.home.sessions.members.iter().filter_map(|(_, member)| known(member)).collect()
    }

    /// Takes the bounds of a new snapshot into [`Core::widest`].
    pub(super) fn widen(&mut self) {
        let limits = self.cx.snapshot.settings.limits;
        let widest = &mut self.widest;
        let is_unbounded = widest.sessions_per_user == 0 || limits.sessions_per_user == 0;
        widest.sessions_per_user = if is_unbounded { 0 } else { widest.sessions_per_user.max(limits.sessions_per_user) };
        widest.sessions_per_shard = widest.sessions_per_shard.max(limits.sessions_per_shard);
        widest.members_per_session = widest.members_per_session.max(limits.members_per_session);
        widest.members_per_user = widest.members_per_user.max(limits.members_per_user);
        widest.rooms_per_client = widest.rooms_per_client.max(limits.rooms_per_client);
    }

    /// The counts of sessions and members match their tables, and are within their bounds, whatever created the entries.
    fn inspect_tables(&self) -> Result<(), String> {
        self.home.sessions.inspect()?;
        let (made, made_max) = (self.home.sessions.made_most(), self.widest.sessions_per_user);
        ensure!(made_max == 0 || made <= made_max, "a user made {made} sessions, above {made_max}");
        let (members_max, rooms_max) = (self.widest.members_per_session, self.widest.rooms_per_client);
        let own_max = super::home::allowances::own_members_max(self.widest.members_per_user, members_max);
        for (key, session) in self.home.sessions.sessions.iter().filter(|(_, session)| !session.channel) {
            ensure!(session.members.len() <= members_max, "a session of {} members", session.members.len());
            for member in session.members.iter().filter_map(|member| self.home.sessions.members.get(*member)) {
                let own = self.home.sessions.group(key, member.entitlements.user).len();
                ensure!(own <= own_max, "{} is {own} members of a session, above {own_max}", member.subject());
            }
            for watcher in session.watchers.iter() {
                let of_one = session.watchers.iter().filter(|other| other.member == watcher.member);
                ensure!(of_one.count() <= 1 + rooms_max, "a member has more than {rooms_max} watches");
            }
        }
        for (_, member) in self.home.sessions.members.iter() {
            let rooms = member.rooms.len();
            ensure!(rooms <= rooms_max, "{} is in {rooms} rooms", member.client_id);
        }
        Ok(())
    }

    /// A connection's timer is set no later than its next deadline. Its token ends by a clock that may be set.
    fn inspect_timer(&self, conn: &Conn, now: Tick) -> Result<(), String> {
        let due_ms = self.timers.deadline_but_for_token_ms(&self.cx, conn, now);
        ensure!(self.timers.anew.is_some() || conn.timer_ms <= due_ms, "it is looked at at {}, due at {due_ms}", conn.timer_ms);
        Ok(())
    }

    /// Sizes of the shard's tables, which a refused command must not change.
    pub fn tally(&self) -> Vec<(&'static str, u64)> {
        let members = || self.home.sessions.members.iter().map(|(_, member)| member);
        let sessions = || self.home.sessions.sessions.iter().map(|(_, session)| session);
        let slots = || self.connections.table.iter().flatten().flat_map(|conn| conn.slots.iter());
        let attachments = || slots().filter_map(Slot::attached);
        let count = |count: usize| count as u64;
        vec![
            ("sessions", count(self.home.sessions.sessions.len())),
            ("sessions of the user that made most", count(self.home.sessions.made_most())),
            ("streams", count(self.home.streams.iter().count())),
            ("mirrors", count(self.links.mirrors.len())),
            ("mirrors fed", count(sessions().map(|session| session.mirrors.len()).sum())),
            ("members", count(self.home.sessions.members.len())),
            ("members there", count(members().filter(|member| member.place.is_some()).count())),
            ("rooms", count(members().map(|member| member.rooms.len()).sum())),
            ("stays", count(members().map(|member| member.entitlements.stays.len()).sum())),
            ("roles", count(members().map(|member| member.roles.len()).sum())),
            ("data", count(members().filter_map(|member| member.presence.as_ref()).map(|data| data.len()).sum())),
            ("receipts", members().map(|member| member.received_seq).sum()),
            ("watches", count(sessions().map(|session| session.watchers.len()).sum())),
            ("ids", count(members().filter_map(|member| member.used.as_ref()).map(|used| used.len()).sum::<usize>())),
            ("ids of posts", count(self.home.posted.len())),
            ("the log's end", self.storage.log.end().0),
            ("attachments", count(attachments().count())),
            ("attachments asked for", count(slots().filter(|slot| matches!(slot, Slot::Asked(_))).count())),
            ("attachments leaving", count(attachments().filter(|attachment| attachment.detaching).count())),
            ("pages of history", count(attachments().filter(|attachment| attachment.paging != Paging::None).count())),
            ("what waits", count(attachments().map(|attachment| attachment.ordered.len()).sum())),
        ]
    }

    fn inspect_conn(&self, conn: &Conn, dirty: usize, resting: bool) -> Result<(), String> {
        ensure!(dirty == usize::from(conn.flags.dirty), "{dirty} times among the dirty ones");
        ensure!(!(conn.flags.dirty && conn.flags.blocked), "dirty and blocked");
        let open = matches!(conn.phase, Phase::Open);
        let revoked =
            conn.grant.as_deref().is_some_and(|grant| self.cx.snapshot.revocations.check(grant, &conn.client_id).is_err());
        ensure!(!(open && revoked), "its token is revoked");
        ensure!(!(open && self.life.draining && !conn.flags.told_to_go), "it was not told to go");
        let (mut ordered, mut ordered_frames) = (0, 0);
        for (number, slot) in conn.slots.iter().enumerate() {
            let Slot::Attached(attachment) = slot else { continue };
            ordered += attachment.ordered.iter().map(|ordered| ordered.what.bytes()).sum::<usize>();
            ordered_frames += attachment.ordered.len();
            let Some(stream) = self.home.streams.get(attachment.stream) else {
                return Err(format!("attachment {number} has no stream"));
            };
            ensure!(
                stream.readers.get(attachment.reader as usize).is_some_and(|reader| reader.conn == conn.id),
                "attachment {number} is not among the readers of {}",
                stream.session_id
            );
            let rests = resting && matches!(conn.phase, Phase::Open) && !conn.flags.blocked && !conn.flags.dirty;
            // The last reply of a detaching attachment may wait for a page of history: records that arrive meanwhile do not wake
            // it.
            let leaving = attachment.detaching && attachment.ordered.is_empty();
            if !rests || attachment.pulling || leaving {
                continue;
            }
            let log = if stream.home.is_some() { &self.links.mirror_log } else { &self.storage.log };
            let from = (attachment.cursor + 1).max(stream.index.first());
            let missed = (from..=stream.head()).find(|seq| {
                stream.index.get(*seq).is_some_and(|entry| {
                    attachment.entitlements.delivers(entry, *seq, || {
                        let head = crate::log::HEADER_BYTES as u32;
                        log.bytes(entry.at, head, entry.frame_at - head)
                    })
                })
            });
            if let Some(seq) = missed {
                return Err(format!(
                    "at rest at {} (idle {}) before {seq} of {}",
                    attachment.cursor, attachment.idle, stream.session_id
                ));
            }
            if let Some(first) = attachment.ordered.front() {
                ensure!(
                    stream.home.is_some() && first.after > stream.head(),
                    "a reply waits for {} at {} of {}, head {}",
                    first.after,
                    attachment.cursor,
                    stream.session_id,
                    stream.head()
                );
            }
        }
        ensure!(ordered == conn.ordered_bytes as usize, "{ordered} ordered bytes, counted {}", conn.ordered_bytes);
        let frames = conn.queued_frames as usize;
        let counts = if conn.queue.is_empty() { frames == ordered_frames } else { frames >= ordered_frames };
        ensure!(counts || matches!(conn.phase, Phase::Closing(_)), "{ordered_frames} replies wait in order, counted {frames}");
        let limits = &self.cx.snapshot.settings.limits;
        // Nothing would resume reading from it.
        let stuck = conn.paused_ms > 0 && !conn.flags.held && !conn.flags.blocked && !conn.flags.dirty;
        ensure!(
            !(resting && stuck && conn.is_open() && conn.queued_bytes() <= limits.reply_queue_bytes / 2),
            "it is read no more"
        );
        let most =
            limits.reply_queue_bytes * 8 + 2 * crate::limits::HISTORY_PAGE_BYTES_MAX + 2 * crate::limits::MESSAGE_BYTES_MAX;
        ensure!(conn.queued_bytes() <= most, "{} bytes wait, above {most}", conn.queued_bytes());
        let sendable = !conn.queue.is_empty() && !conn.flags.blocked && !conn.flags.dirty;
        ensure!(!resting || !sendable, "{} bytes wait and nothing sends them", conn.queue.len());
        Ok(())
    }
}
