//! From a log to a shard's state: every record once, in the order of the log, then what a new start means for it.

use super::core::{Core, Timer};
use super::durable::Disk;
use super::keeping::Kept;
use crate::ids::{HashKey, Map};
use crate::log::{
    Appended, Audience, Entry, Geometry, HEADER_BYTES, Header, Kind, Log, MemberState, Position, Receipt, Record, SessionState,
};
use crate::session::{Dedupe, DedupeLimits, Member, MemberKey, SessionKey, Stay, Stream};
use crate::time::Tick;

/// What was found of a shard's log on disk.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The segments, in order, with when each was begun (Unix ms).
    pub segments: Vec<(u64, u64)>,
    /// The chain value of the last record.
    pub chain: u32,
    /// The end was whole: the process stopped in good order.
    pub clean: bool,
}

/// What recovery came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub sessions: usize,
    pub members: usize,
    pub messages: u64,
    /// Messages of sessions that the log does not name: their state was lost.
    pub orphans: u64,
}

/// Which records a reading of the log takes. All state comes first: what files before had of it was written again behind messages that
/// need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    State,
    Messages,
}

/// A recovery under way.
#[derive(Debug)]
pub struct Replay {
    pub pass: Pass,
    pub outcome: Recovered,
    /// Where sessions were last forgotten: messages before are an earlier session's of the same id.
    gone: Map<u64, Position>,
    /// Where sessions were last purged: of their messages before only the ids count.
    purged: Map<u64, Position>,
}

impl Replay {
    /// One that begins; the map is keyed with `key`.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        Self { pass: Pass::State, outcome: Recovered::default(), gone: Map::with_hasher(key), purged: Map::with_hasher(key) }
    }
}

impl Core {
    /// Gives this shard a log on disk, which goes on in a new segment behind what was found.
    pub fn take_disk(&mut self, geometry: Geometry, found: &Found) {
        let next = found.segments.last().map_or(0, |(number, _)| number + 1);
        let oldest = found.segments.first().map_or(0, |(number, _)| *number);
        let begin = Position(next * geometry.segment_bytes);
        let memory_bytes = self.snapshot.settings.log.memory_bytes;
        self.log = Log::on_disk(memory_bytes, geometry, next, found.chain, Position(oldest * geometry.segment_bytes));
        let mut disk = Disk::new(begin);
        disk.kept.extend(found.segments.iter().map(|(number, _)| Kept { number: *number }));
        self.counters.log_segments.set(found.segments.len() as u64);
        self.disk = Some(disk);
    }

    /// Takes one record of the log, in order. The whole log is read twice, once for each [`Pass`].
    pub fn replay(&mut self, replay: &mut Replay, at: Position, record: &Record<'_>) {
        let header = &record.header;
        let found = self.sessions.find(header.session);
        if replay.pass == Pass::Messages {
            let forgotten = replay.gone.get(&header.session).is_some_and(|gone| at < *gone);
            match found {
                _ if header.kind != Kind::Message || forgotten => {}
                Some(session) => {
                    if replay.purged.get(&header.session).is_some_and(|purged| at < *purged) {
                        return self.replay_id(session, header);
                    }
                    replay.outcome.messages += 1;
                    self.replay_message(session, at, record);
                }
                None => replay.outcome.orphans += 1,
            }
            return;
        }
        match (header.kind, found) {
            (Kind::Session, _) => {
                if let Ok(state) = SessionState::decode(record.body) {
                    self.replay_session(header.session, at, &state);
                }
            }
            (Kind::Member, Some(session)) => {
                if let Ok(state) = MemberState::decode(record.body) {
                    self.replay_member(session, header.sender, &state);
                }
            }
            (Kind::MemberGone, Some(session)) => {
                if let Some(member) = self.sessions.member(session, header.sender) {
                    self.sessions.remove_member(member);
                }
            }
            (Kind::Receipt, Some(session)) => {
                let member = self.sessions.member(session, header.sender);
                if let (Some(member), Ok(receipt)) =
                    (member.and_then(|key| self.sessions.members.get_mut(key)), Receipt::decode(record.body))
                {
                    member.received_seq = member.received_seq.max(receipt.received_seq);
                }
            }
            (Kind::SessionGone, _) => {
                replay.gone.insert(header.session, at);
                if let Some(session) = found {
                    self.forget_session(session);
                }
            }
            (Kind::Purge, _) => {
                replay.purged.insert(header.session, at);
                let stream = found.and_then(|session| self.sessions.sessions.get(session)).map(|session| session.stream);
                if let Some(stream) = stream.and_then(|stream| self.streams.get_mut(stream)) {
                    stream.index.restart(header.seq.max(stream.index.head()) + 1);
                }
            }
            (Kind::Message | Kind::Mark, _) | (Kind::Member | Kind::MemberGone | Kind::Receipt, None) => {}
        }
    }

    fn replay_session(&mut self, hash: u64, at: Position, state: &SessionState<'_>) {
        let key = match self.sessions.find(hash) {
            Some(key) => key,
            None => {
                let stream = self.streams.insert(Stream::new(state.session_id, hash, None, 1));
                let key = self.sessions.create(hash, stream, 1, state.session_id.starts_with("channel:"));
                self.set_level(key);
                key
            }
        };
        let Some(session) = self.sessions.sessions.get_mut(key) else { return };
        // Where retention has dropped all messages the order goes on here.
        if let Some(stream) = self.streams.get_mut(session.stream) {
            stream.index.restart(state.head.max(stream.index.head()) + 1);
        }
        session.kept_at = at;
        if let Some((current, past)) = state.epochs.split_last() {
            session.epoch = current.name;
            session.past_epochs = past.iter().map(|epoch| (epoch.name, epoch.last_seq.unwrap_or(0))).collect();
        }
    }

    fn replay_message(&mut self, session: SessionKey, at: Position, record: &Record<'_>) {
        let header = &record.header;
        self.ages.note(at, header.ts_ms, self.age_step_ms());
        let Some(stream) = self.sessions.sessions.get(session).map(|entry| entry.stream) else { return };
        let Some(stream) = self.streams.get_mut(stream) else { return };
        if stream.index.is_empty() || header.seq > stream.index.head() + 1 {
            // The first that is left, or behind a hole: files before it are gone.
            stream.index.restart(header.seq);
        } else if header.seq <= stream.index.head() {
            return;
        }
        let audience = match record.addresses {
            [] => Audience::All,
            list => match <[u8; 8]>::try_from(list) {
                Ok(one) => Audience::One(u64::from_le_bytes(one)),
                Err(_) => Audience::Many,
            },
        };
        let narrow = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let frame_at = HEADER_BYTES + record.addresses.len();
        let put = Appended { at, frame_at: narrow(frame_at), frame_bytes: narrow(record.body.len()) };
        stream.index.push(Entry::new(put, audience, header.sender));
        self.replay_id(session, header);
    }

    /// A message's id was used; also that of one that was purged, whose repeat is none.
    fn replay_id(&mut self, session: SessionKey, header: &Header) {
        let channel = self.sessions.sessions.get(session).is_some_and(|session| session.channel);
        let settings = &self.snapshot.settings.session;
        let limits = DedupeLimits { ids_max: settings.dedupe_ids, window_ms: settings.dedupe_ms };
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what windows hold")]
        let content = header.content as u64;
        // Uses count from the start on, which makes windows longer, never shorter.
        if channel {
            self.posted.remember(
                header.id,
                content,
                header.seq,
                0,
                DedupeLimits { ids_max: super::publish::POSTED_IDS_MAX, ..limits },
            );
        } else if let Some(member) =
            self.sessions.member(session, header.sender).and_then(|key| self.sessions.members.get_mut(key))
        {
            let used: &mut Dedupe = member.used.get_or_insert_default();
            used.remember(header.id, content, header.seq, 0, limits);
        }
    }

    fn replay_member(&mut self, session: SessionKey, client: u64, state: &MemberState<'_>) {
        let roles: Box<[Box<str>]> = state.roles.iter().map(|role| (*role).into()).collect();
        let subject = state.client_id.get(..usize::from(state.subject_bytes)).unwrap_or(state.client_id);
        let before = self.sessions.member(session, client).and_then(|key| self.sessions.remove_member(key));
        let mut entitlements = self.sessions.entitle(state.client_id, subject, &roles, state.hidden_to);
        entitlements.stays = state
            .stays
            .iter()
            .filter(|stay| stay.to != u64::MAX)
            .map(|stay| Stay { room: stay.hash, from: stay.from, to: stay.to })
            .collect();
        let member = self.sessions.add_member(Member {
            session,
            client_id: state.client_id.into(),
            subject_bytes: state.subject_bytes,
            roles,
            rooms: Vec::new(),
            entitlements,
            place: None,
            received_seq: state.received_seq.max(before.as_ref().map_or(0, |before| before.received_seq)),
            used: before.and_then(|before| before.used),
            presence: state.presence.map(Into::into),
            since_ms: state.since_ms,
            // Told apart when all is read: away since then (Unix ms), or there when the process ended (0).
            away_since_ms: if state.present { 0 } else { state.away_since_ms.max(1) },
            away_before_ms: 0,
            told_lost: state.told_lost,
            unseen_due_ms: 0,
        });
        for stay in state.stays.iter().filter(|stay| stay.to == u64::MAX) {
            self.sessions.enter_room(member, stay.room, stay.from);
        }
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

    /// All is read: members are away from now on, and after an end that was not clean every session begins a new epoch.
    pub fn finish_recovery(&mut self, clean: bool, now: Tick, outcome: &mut Recovered) {
        // The records below may begin a segment, whose age is what lets the files before it go.
        self.log.tick(now.wall_ms);
        let grace_ms = self.snapshot.settings.session.presence_grace_ms;
        let members: Vec<MemberKey> = self.sessions.members.iter().map(|(key, _)| key).collect();
        for key in members {
            let Some(member) = self.sessions.members.get_mut(key) else { continue };
            let away_ms = if member.away_since_ms == 0 { 0 } else { now.wall_ms.saturating_sub(member.away_since_ms) };
            (member.away_since_ms, member.away_before_ms) = (now.mono_ms().max(1), away_ms);
            self.wheel.schedule(now.mono_ms() + grace_ms.saturating_sub(away_ms), Timer::Member(key));
        }
        let sessions: Vec<SessionKey> = self.sessions.sessions.iter().map(|(key, _)| key).collect();
        outcome.sessions = sessions.len();
        outcome.members = self.sessions.members.len();
        for key in sessions {
            let fresh = self.next_random().max(1);
            let Some(session) = self.sessions.sessions.get_mut(key) else { continue };
            let head = self.streams.get(session.stream).map_or(0, |stream| stream.index.head());
            if !clean {
                session.past_epochs.push((session.epoch, head));
                let excess = (session.past_epochs.len() + 1).saturating_sub(crate::limits::EPOCHS_PER_SESSION_MAX);
                session.past_epochs.drain(..excess);
                session.epoch = fresh;
                // With its members: what a session's record says is kept is all that it needs.
                self.keep_whole(key, now);
            }
        }
        let end = self.log.end();
        if let Some(disk) = &mut self.disk {
            disk.opens_at = (self.log.written() < end).then_some(end);
        }
        self.counters.sessions.set(outcome.sessions as u64);
        self.counters.members.set(outcome.members as u64);
    }
}
