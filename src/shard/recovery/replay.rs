//! From a log to a shard's state: every record once, in the order of the log, then the consequences of a new start.

use crate::ids::{HashKey, Map, is_own_room, is_own_session};
use crate::log::{
    Geometry, Header, IndexBuilder, IndexFile, Joined, Kind, Left, Log, MemberState, NextEpoch, Position, Receipt, Record, Roles,
    Run, SegmentHeader, SessionRun, SessionState, StateError, StayState, Stays, Went, decode_presence, directory_runs,
};
use crate::session::{Dedupe, DedupeLimits, Fact, Member, MemberKey, NOBODY, SessionKey, Stay, Stream};
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::durability::Storage;
use crate::shard::durability::disk::Disk;
use crate::shard::durability::indexing::Indexing;
use crate::shard::durability::state_records::Kept;
use crate::shard::home::Home;
use crate::shard::inbound::publish::POSTED_IDS_MAX;
use crate::time::Tick;

/// Sessions with reserved names that a shard lists.
pub(in crate::shard) const OUT_OF_REACH_NAMED: usize = 3;

/// A shard's log as found on disk.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The segments, in order, with the time each was begun (Unix ms).
    pub segments: Vec<(u64, u64)>,
    /// The chain value of the last record.
    pub chain: u32,
    /// `true` if the end was clean: the process stopped in good order.
    pub clean: bool,
}

/// The result of a recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub sessions: usize,
    pub members: usize,
    pub messages: u64,
    /// Messages of sessions that the log does not name: those sessions' state was lost.
    pub orphans: u64,
}

/// The messages of one session.
#[derive(Debug)]
struct Messages {
    /// Runs in the order of the log.
    runs: Vec<Run>,
    /// The newest number; a message that is not above it is a copy.
    head: u64,
    /// The ids used last, by their senders.
    used: Map<u64, Dedupe>,
}

/// A recovery under way: one pass over the log, in order. Data of a session is gathered by its hash, since its own record may
/// come later: earlier files had it, and their state was rewritten before they were deleted.
#[derive(Debug)]
pub struct Replay {
    key: HashKey,
    sessions: Map<u64, Messages>,
    /// Ids posted to known channels, which share one window.
    posted: Dedupe,
    segment: IndexBuilder,
    /// The time of the last record (Unix ms).
    last_ms: u64,
    /// The member whose state is being read in parts.
    building: Option<Building>,
}

/// A member's state, and the stays read so far.
#[derive(Debug)]
struct Building {
    session: u64,
    client: u64,
    /// The position of its state.
    at: Position,
    state: Vec<u8>,
    parts: Vec<Vec<u8>>,
    is_whole: bool,
}

impl Building {
    /// Begins a member's state; `None` if it does not read.
    fn new(header: &Header, at: Position, state: &[u8]) -> Option<Self> {
        let is_whole = !MemberState::decode(state).ok()?.stays_follow;
        Some(Self { session: header.session, client: header.sender, at, state: state.to_vec(), parts: Vec::new(), is_whole })
    }

    /// Adds a part; one that does not read is left out.
    fn add(&mut self, part: &[u8]) {
        let Ok(read) = Stays::decode(part) else { return };
        self.is_whole = read.left == 0;
        self.parts.push(part.to_vec());
    }
}

impl Replay {
    /// A recovery that begins; its maps are keyed with `key`.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            sessions: Map::with_hasher(key),
            posted: Dedupe::default(),
            segment: IndexBuilder::default(),
            last_ms: 0,
            building: None,
        }
    }

    fn of(&mut self, session: u64) -> &mut Messages {
        let key = self.key;
        self.sessions.entry(session).or_insert_with(|| Messages { runs: Vec::new(), head: 0, used: Map::with_hasher(key) })
    }
}

impl Core {
    /// Takes one record of the log, in order; `offset` is its place in its segment's file.
    pub fn replay(&mut self, replay: &mut Replay, at: Position, offset: u64, record: &Record<'_>) {
        let header = &record.header;
        replay.segment.note(u32::try_from(offset).unwrap_or(u32::MAX), record);
        replay.last_ms = header.ts_ms;
        let found = self.home.sessions.find(header.session);
        match (header.kind, found) {
            (Kind::Session, _) => {
                if let Ok(state) = SessionState::decode(record.body) {
                    self.replay_session((header.session, header.epoch), at, &state);
                }
            }
            (Kind::Member, Some(session)) if !record.purged => {
                replay.building = Building::new(header, at, record.body);
                self.home.build_member(replay, session);
            }
            (Kind::Stays, Some(session)) => {
                if let Some(building) = &mut replay.building
                    && (building.session, building.client) == (header.session, header.sender)
                {
                    building.add(record.body);
                    self.home.build_member(replay, session);
                }
            }
            (Kind::Presence, Some(session)) if record.purged => {
                let member = self.home.sessions.member(session, header.sender);
                if let Some(member) = member.and_then(|member| self.home.sessions.members.get_mut(member)) {
                    member.presence = None;
                }
            }
            (
                Kind::Joined | Kind::Left | Kind::Came | Kind::Went | Kind::Roles | Kind::Presence | Kind::Receipt,
                Some(session),
            ) => {
                if let Some(member) = self.home.sessions.member(session, header.sender) {
                    // A record that does not read is ignored; `ringway log verify` reports it.
                    let _ = self.home.replay_fact(member, header.kind, record.body);
                }
            }
            (Kind::Epoch, Some(session)) => {
                if let (Some(session), Ok(next)) = (self.home.sessions.sessions.get_mut(session), NextEpoch::decode(record.body))
                {
                    session.begin_epoch(next.name, header.epoch, next.last_seq);
                }
            }
            (Kind::MemberGone, Some(session)) => {
                if let Some(member) = self.home.sessions.member(session, header.sender) {
                    self.home.sessions.remove_member(member);
                }
                // Ids posted to a channel belong to its shard, and outlive its readers.
                let channel = self.home.sessions.sessions.get(session).is_some_and(|session| session.channel);
                if !channel && let Some(messages) = replay.sessions.get_mut(&header.session) {
                    messages.used.remove(&header.sender);
                }
            }
            (Kind::SessionGone, _) => {
                // Messages before this are an earlier session's of the same id.
                replay.sessions.remove(&header.session);
                if let Some(session) = found {
                    self.home.forget_session(session);
                }
            }
            (Kind::Purge, _) => {
                let stream = found.and_then(|session| self.home.sessions.sessions.get(session)).map(|session| session.stream);
                if let Some(stream) = stream.and_then(|stream| self.home.streams.get_mut(stream)) {
                    stream.index.go_on_at(header.seq + 1);
                }
            }
            (Kind::Message, _) => {
                // A purged message keeps its id, so that a resend is still recognised as a duplicate.
                if !record.purged {
                    self.storage.ages.note(at, header.ts_ms, self.cx.age_step_ms());
                }
                let settings = &self.cx.snapshot.settings.session;
                // A session that is not known yet may be a channel; if it is not, its windows are cut when everything is read.
                let channel = found.and_then(|key| self.home.sessions.sessions.get(key)).map(|session| session.channel);
                let ids_max = if channel == Some(false) { settings.dedupe_ids } else { POSTED_IDS_MAX };
                let limits = DedupeLimits { ids_max, window_ms: settings.dedupe_ms };
                let messages = replay.of(header.session);
                if header.seq <= messages.head {
                    return;
                }
                messages.head = header.seq;
                let used = match channel {
                    Some(true) => &mut replay.posted,
                    _ => messages.used.entry(header.sender).or_default(),
                };
                used.remember(header.id, crate::shard::inbound::publish::low(header.content), header.seq, header.ts_ms, limits);
            }
            // Records of a session that is not named yet are repeated behind the record that names it.
            (_, None) | (Kind::Mark | Kind::Member, _) => {}
        }
    }

    fn replay_session(&mut self, (hash, epoch_number): (u64, u32), at: Position, state: &SessionState<'_>) {
        let key = match self.home.sessions.find(hash) {
            Some(key) => key,
            None => {
                let stream = self.home.streams.insert(Stream::new(state.session_id, hash, None, 1));
                let key = self.home.sessions.create(hash, stream, 1, state.session_id.starts_with("channel:"), NOBODY);
                self.set_level(key);
                key
            }
        };
        let Some(session) = self.home.sessions.sessions.get_mut(key) else { return };
        // If retention has dropped all messages, the order goes on here.
        if let Some(stream) = self.home.streams.get_mut(session.stream) {
            stream.index.go_on_at(state.head + 1);
        }
        session.kept_at = at;
        if let Some((current, past)) = state.epochs.split_last() {
            session.epoch = current.name;
            // Old records have no number: then the known epochs are counted.
            session.epoch_number = epoch_number.max(u32::try_from(past.len()).unwrap_or(0));
            session.past_epochs = past.iter().map(|epoch| (epoch.name, epoch.last_seq.unwrap_or(0))).collect();
        }
    }

    /// Finishes the recovery: members are away from now on, and after an unclean end every session begins a new epoch.
    pub fn finish_recovery(&mut self, clean: bool, now: Tick, outcome: &mut Recovered) {
        // The records below may begin a segment, whose time of creation decides when the files before it may be deleted.
        self.storage.log.tick(now.wall_ms);
        self.home.sessions.shrink();
        let members: Vec<MemberKey> = self.home.sessions.members.iter().map(|(key, _)| key).collect();
        for key in members {
            let Some(member) = self.home.sessions.members.get_mut(key) else { continue };
            let away_ms = if member.away_since_ms == 0 { 0 } else { now.wall_ms.saturating_sub(member.away_since_ms) };
            (member.away_since_ms, member.away_before_ms) = (now.mono_ms().max(1), away_ms);
            self.set_member_timer(key);
        }
        let sessions: Vec<SessionKey> = self.home.sessions.sessions.iter().map(|(key, _)| key).collect();
        outcome.sessions = sessions.len();
        outcome.members = self.home.sessions.members.len();
        for key in sessions {
            let fresh = self.cx.next_random().max(1);
            let Some(session) = self.home.sessions.sessions.get_mut(key) else { continue };
            let head = self.home.streams.get(session.stream).map_or(0, |stream| stream.index.head());
            if !clean {
                session.begin_epoch(fresh, session.epoch_number.saturating_add(1), head);
                self.keep_epoch(key, head, now);
            }
        }
        let end = self.storage.log.end();
        if let Some(disk) = &mut self.storage.disk {
            disk.opens_at = (self.storage.log.written() < end).then_some(end);
        }
        self.cx.counters.sessions.set(outcome.sessions as u64);
        self.cx.counters.members.set(outcome.members as u64);
    }
}

impl Storage {
    /// Gives this shard a log on disk, which continues in a new segment behind the existing ones.
    pub fn take_disk(&mut self, cx: &Context, geometry: Geometry, found: &Found) {
        let next = found.segments.last().map_or(0, |(number, _)| number + 1);
        let oldest = found.segments.first().map_or(0, |(number, _)| *number);
        let begin = Position(next * geometry.segment_bytes);
        let memory_bytes = cx.snapshot.settings.log.memory_bytes;
        self.log = Log::on_disk(memory_bytes, geometry, next, found.chain, Position(oldest * geometry.segment_bytes));
        let mut disk = Disk::new(begin);
        disk.indexing = Indexing::from(next);
        disk.kept.extend(found.segments.iter().map(|(number, begun_ms)| Kept { number: *number, begun_ms: *begun_ms }));
        cx.counters.log_segments.set(found.segments.len() as u64);
        self.disk = Some(disk);
    }

    /// Notes that all of a segment was read. Returns its index, of which the runs are kept; `None` if its number is beyond what
    /// an index can name.
    pub fn close_segment(&self, cx: &Context, replay: &mut Replay, header: &SegmentHeader) -> Option<IndexFile> {
        let file = replay.segment.finish(header)?;
        let begin = header.number * header.segment_bytes;
        let at = |offset: u32| Position(begin + u64::from(offset));
        let whole = self.age_together(cx, Position(begin), Position(begin + header.segment_bytes));
        for SessionRun { session, run } in directory_runs(&file.bytes[..file.directory_bytes], 0) {
            let runs = &mut replay.of(session).runs;
            if whole {
                runs.push(run);
            } else {
                let entries = file.bytes.get(run.entries_at as usize..).unwrap_or_default();
                runs.extend(run.split(entries, |one, other| self.age_together(cx, at(one), at(other))));
            }
        }
        Some(file)
    }
}

impl Home {
    /// Gives the gathered data to the sessions and members that exist at the end of the log.
    pub fn settle_replay(&mut self, cx: &Context, mut replay: Replay) -> Recovered {
        let mut outcome = Recovered::default();
        let settings = cx.snapshot.settings.session;
        let oldest_ms = replay.last_ms.saturating_sub(settings.dedupe_ms);
        let mut posted = Vec::new();
        for (key, session) in self.sessions.sessions.iter() {
            let Some(messages) = replay.sessions.remove(&session.hash) else { continue };
            let Some(stream) = self.streams.get_mut(session.stream) else { continue };
            stream.index.put_runs(&messages.runs);
            outcome.messages += stream.index.runs().iter().map(|run| u64::from(run.count)).sum::<u64>();
            for (sender, mut used) in messages.used {
                if session.channel {
                    posted.push(used);
                    continue;
                }
                used.begin_again(oldest_ms, settings.dedupe_ids);
                if let Some(member) = self.sessions.member(key, sender).and_then(|member| self.sessions.members.get_mut(member))
                    && !used.is_empty()
                {
                    member.used = Some(Box::new(used));
                }
            }
        }
        // Messages of a channel before the record that names it come before later ones.
        posted.push(replay.posted);
        let limits = DedupeLimits { ids_max: POSTED_IDS_MAX, window_ms: settings.dedupe_ms };
        for mut used in posted {
            used.begin_again(oldest_ms, POSTED_IDS_MAX);
            self.posted.take_in(&used, limits);
        }
        let runs = replay.sessions.values().flat_map(|messages| &messages.runs);
        outcome.orphans = runs.map(|run| u64::from(run.count)).sum();
        outcome
    }

    /// Builds a member from its state, with all of its stays, once the last of them was read.
    fn build_member(&mut self, replay: &mut Replay, session: SessionKey) {
        let Some(building) = replay.building.take_if(|building| building.is_whole) else { return };
        let Ok(state) = MemberState::decode(&building.state) else { return };
        let parts: Vec<Stays<'_>> = building.parts.iter().filter_map(|part| Stays::decode(part).ok()).collect();
        let stays = state.stays.iter().chain(parts.iter().flat_map(|part| &part.stays));
        self.replay_member(session, &building, &state, &stays.copied().collect::<Vec<_>>());
    }

    fn replay_member(&mut self, session: SessionKey, building: &Building, state: &MemberState<'_>, stays: &[StayState<'_>]) {
        let roles: Box<[Box<str>]> = state.roles.iter().map(|role| (*role).into()).collect();
        let subject = state.client_id.get(..usize::from(state.subject_bytes)).unwrap_or(state.client_id);
        let before = self.sessions.member(session, building.client).and_then(|key| self.sessions.remove_member(key));
        let before = before.map(|before| (before.received_seq, before.used, before.presence));
        let (received_seq, used, presence) = before.unwrap_or_default();
        let mut entitlements = self.sessions.entitle(state.client_id, subject, &roles, state.hidden_to);
        let ended = stays.iter().filter(|stay| stay.to != u64::MAX);
        entitlements.stays = ended.map(|stay| Stay { room: stay.hash, from: stay.from, to: stay.to }).collect();
        // Version 1 had no bound.
        entitlements.forget_oldest();
        let (roles, _) = self.sessions.share_roles(&roles);
        let member = self.sessions.add_member(Member {
            session,
            client_id: state.client_id.into(),
            subject_bytes: state.subject_bytes,
            roles,
            rooms: crate::few::Few::default(),
            entitlements,
            place: None,
            received_seq: state.received_seq.max(received_seq),
            used,
            // Since version 2 in records of their own, which may be before or behind.
            presence: state.presence.map(Into::into).or(presence),
            presence_empty_ns: 0,
            telling: crate::session::Telling::default(),
            since_ms: state.since_ms,
            // Interpreted when everything is read: away since then (Unix ms), or attached when the process ended (0).
            away_since_ms: if state.present { 0 } else { state.away_since_ms.max(1) },
            away_before_ms: 0,
            told_lost: state.told_lost,
            owed: 0,
            underway: None,
            kept_at: building.at,
            timers_ms: [u64::MAX; 2],
        });
        // Rooms whose names have become reserved are left.
        for stay in stays.iter().filter(|stay| stay.to == u64::MAX && !is_own_room(stay.room)) {
            self.sessions.enter_room(member, stay.room, stay.from);
        }
    }

    /// Applies a fact about a member.
    fn replay_fact(&mut self, key: MemberKey, kind: Kind, body: &[u8]) -> Result<(), StateError> {
        match kind {
            Kind::Joined => {
                let Joined { room, from } = Joined::decode(body)?;
                self.sessions.apply(key, Fact::Joined { room, from });
            }
            Kind::Left => {
                let Left { room, to } = Left::decode(body)?;
                self.sessions.apply(key, Fact::Left { room, to });
            }
            Kind::Receipt => drop(self.sessions.apply(key, Fact::Received(Receipt::decode(body)?.received_seq))),
            Kind::Presence => drop(self.sessions.apply(key, Fact::Presence(decode_presence(body)?))),
            Kind::Roles => {
                let roles: Vec<Box<str>> = Roles::decode(body)?.roles.into_iter().map(Into::into).collect();
                self.sessions.apply(key, Fact::Roles(&roles));
            }
            Kind::Came => {
                if let Some(member) = self.sessions.members.get_mut(key) {
                    (member.away_since_ms, member.told_lost) = (0, false);
                }
            }
            Kind::Went => {
                let went = Went::decode(body)?;
                if let Some(member) = self.sessions.members.get_mut(key) {
                    (member.away_since_ms, member.told_lost) = (went.since_ms.max(1), went.told_lost);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_session(&mut self, key: SessionKey) {
        let members = self.sessions.sessions.get(key).map(|session| session.members.clone()).unwrap_or_default();
        for member in members {
            self.sessions.remove_member(member);
        }
        if let Some(session) = self.sessions.remove(key) {
            self.streams.remove(session.stream);
        }
    }

    /// The sessions of an earlier version's log that have reserved names, which no client can enter any more: their count, and
    /// the first few.
    #[must_use]
    pub fn sessions_out_of_reach(&self) -> (usize, Vec<Box<str>>) {
        let ids = || self.streams.iter().map(|(_, stream)| &stream.session_id).filter(|id| is_own_session(id));
        (ids().count(), ids().take(OUT_OF_REACH_NAMED).cloned().collect())
    }
}
