//! A shard and its disk without an engine: requests to the disk are held until the test answers.

use super::disk::PENDING_BYTES_MAX;
use crate::config::Settings;
use crate::ids::{ConnId, HashKey};
use crate::io::{Chunk, Event, Io, PurgeStep, Read, RingStats, Send, Sent, Shard};
use crate::log::{
    EpochState, Geometry, Header, Kind, Level, MemberState, Position, SEGMENT_VERSION, SegmentHeader, SessionState, StateError,
    read_record, write_record,
};
use crate::protocol::{ErrorCode, Parser};
use crate::session::{DedupeLimits, NOBODY, Place, Seen, Target};
use crate::shard::across::mesh::Mesh;
use crate::shard::connections::admission::Admission;
use crate::shard::core::{Core, CoreOptions};
use crate::shard::counters::{LimitReached, shared_counters};
use crate::shard::inbound::publish::Origin;
use crate::shard::port::{Bell, Snapshot, port};
use crate::shard::recovery::replay::{Found, Recovered, Replay};
use crate::time::Tick;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

const KEY: HashKey = HashKey([3; 16]);
const HOUR_MS: u64 = 3_600_000;
const WALL_MS: u64 = 1_800_000_000_000;

fn at(mono_ms: u64) -> Tick {
    Tick { mono_ns: mono_ms * 1_000_000, wall_ms: WALL_MS + mono_ms }
}

/// The requests that are not answered yet.
#[derive(Debug, Default)]
pub(in crate::shard) struct Held {
    writes: Vec<u64>,
    syncs: Vec<u64>,
    prepared: Vec<u64>,
    purges: Vec<PurgeStep>,
    accepting: bool,
}

impl Io for Held {
    fn accept(&mut self, on: bool) {
        self.accepting = on;
    }
    fn adopt(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        Err(fd)
    }
    fn read(&mut self, _conn: ConnId, _mode: Read) {}
    fn detach(&mut self, _conn: ConnId) -> Option<OwnedFd> {
        None
    }
    fn finish(&mut self, _conn: ConnId) {}
    fn close(&mut self, _conn: ConnId) {}
    fn send_batch(&mut self, _batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
    }
    fn want_write(&mut self, _conn: ConnId) {}
    fn write(&mut self, _segment: u64, _at: u64, _chunk: Rc<Chunk>, _part: Range<usize>, tag: u64) {
        self.writes.push(tag);
    }
    fn sync(&mut self, _segment: u64, tag: u64) {
        self.syncs.push(tag);
    }
    fn read_back(&mut self, _segment: u64, _at: u64, _len: usize, _tag: u64) {}
    fn read_index(&mut self, _segment: u64, _at: u64, _len: usize, _tag: u64) {}
    fn index_segment(&mut self, _number: u64) {}
    fn prepare_segment(&mut self, number: u64) {
        self.prepared.push(number);
    }
    fn delete_segment(&mut self, _number: u64) {}
    fn purge(&mut self, _session: u64, step: PurgeStep) {
        self.purges.push(step);
    }
    fn ring_bell(&mut self, _shard: usize) {}
    fn clock(&self) -> Tick {
        at(0)
    }
    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

#[derive(Debug)]
struct Silent;

impl Bell for Silent {
    fn ring(&self) {}
}

/// Shard 0 of `shards`; the others do nothing.
pub(in crate::shard) fn one_of(shards: usize, settings: &str) -> Core {
    let counters = shared_counters();
    let (_, receiver) = port(0, Arc::new(Silent), Arc::clone(&counters));
    let settings = Arc::new(Settings::parse(settings, []).unwrap());
    Core::new(CoreOptions {
        shard: 0,
        key: KEY,
        mesh: Mesh::new(shards),
        admission: Arc::new(Admission::new(KEY)),
        counters,
        port: receiver,
        snapshot: Arc::new(Snapshot { settings, ..Snapshot::default() }),
        seed: 5,
    })
}

pub(in crate::shard) fn core(settings: &str) -> Core {
    let mut core = one_of(1, settings);
    core.storage.take_disk(&core.cx, Geometry { segment_bytes: 2 << 20, shard: 0, generation: 1 }, &Found::default());
    core
}

/// Answers all requests to the disk, in as many rounds as it takes.
fn settle(core: &mut Core, io: &mut Held, now: Tick) {
    for _ in 0..20 {
        core.turn(io, now);
        for number in std::mem::take(&mut io.prepared) {
            core.event(io, Event::SegmentReady { number, result: Ok(()) }, now);
        }
        for tag in std::mem::take(&mut io.writes) {
            core.event(io, Event::Written { tag, result: Ok(()) }, now);
        }
        for tag in std::mem::take(&mut io.syncs) {
            core.event(io, Event::Synced { tag, result: Ok(()) }, now);
        }
    }
}

fn publish(core: &mut Core, io: &mut Held, session_id: &str, id: &str, now: Tick) {
    let text = format!(r#"{{"type":"chat","id":"{id}","session_id":"{session_id}","payload":1}}"#);
    let mut parser = Parser::default();
    let envelope = parser.parse(text.as_bytes()).unwrap();
    let place = Place { shard: 0, attachment: 0, ticket: 9, conn: ConnId { index: 0, generation: 1 } };
    let client = core.home.sessions.target(Target::Client, "ana");
    let origin = Origin { place, client_id: "ana", client, acks: true, number: 1 };
    let hash = core.cx.session_hash(session_id);
    core.publish_post(io, &origin, 3, (hash, session_id), &envelope, now);
}

#[test]
fn sessions_of_every_level_live_on_one_shard() {
    let (mut core, mut io) = (core("[log]\ndir = \"unused\"\n"), Held::default());
    settle(&mut core, &mut io, at(1));
    for (id, level) in [("m", Level::Memory), ("w", Level::Written), ("s", Level::Synced)] {
        let hash = core.cx.session_hash(id);
        let session = core.make_session(id, hash, NOBODY, at(0));
        assert_eq!(core.home.sessions.sessions.get(session).unwrap().level, Level::Written, "the default of log.durability");
        core.home.sessions.sessions.get_mut(session).unwrap().level = level;
    }
    for id in ["s", "w", "m"] {
        publish(&mut core, &mut io, id, "1", at(2));
    }
    let shown = |core: &Core| {
        ["m", "w", "s"].map(|id| {
            let session = core.home.sessions.find(core.cx.session_hash(id)).unwrap();
            core.home.streams.get(core.home.sessions.sessions.get(session).unwrap().stream).unwrap().head()
        })
    };
    assert_eq!((core.cx.counters.acknowledged.get(), shown(&core)), (1, [1, 0, 0]), "memory waits for nothing");
    core.turn(&mut io, at(3));
    assert_eq!(io.writes.len(), 1, "all of them in one write");
    let tag = io.writes.pop().unwrap();
    core.event(&mut io, Event::Written { tag, result: Ok(()) }, at(4));
    assert_eq!((core.cx.counters.acknowledged.get(), shown(&core)), (2, [1, 1, 0]));
    // A repeat is acknowledged when its first was, and not before.
    publish(&mut core, &mut io, "w", "1", at(4));
    publish(&mut core, &mut io, "s", "1", at(4));
    assert_eq!(core.cx.counters.acknowledged.get(), 3);
    let tag = io.syncs.pop().expect("somebody waits for it");
    core.event(&mut io, Event::Synced { tag, result: Ok(()) }, at(5));
    assert_eq!((core.cx.counters.acknowledged.get(), shown(&core)), (5, [1, 1, 1]));
}

#[test]
fn what_nobody_waits_for_is_bounded_too() {
    let (mut core, mut io) = (core("[log]\ndir = \"unused\"\ndurability = \"memory\"\n"), Held::default());
    for number in 0..600_000 {
        publish(&mut core, &mut io, "m", &number.to_string(), at(0));
        if core.cx.counters.refused.get() > 0 {
            break;
        }
    }
    // Nothing was ever written.
    assert_eq!(core.cx.counters.refused.get(), 1);
    let held = core.storage.log.resident_bytes();
    assert!((8 << 20..18 << 20).contains(&held), "{held}");
}

fn record(kind: Kind, session: u64, sender: u64, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), StateError>) -> Vec<u8> {
    let (mut body, mut record) = (Vec::new(), Vec::new());
    encode(&mut body).unwrap();
    let header = Header { kind, session, seq: 0, epoch: 0, ts_ms: WALL_MS, sender, id: 0, content: 0 };
    write_record(&mut record, &header, &[], &body, 0);
    record
}

/// The state of a member that is present, or has been away for so long before the start.
fn member_state(core: &Core, away_ms: u64, present: bool) -> MemberState<'static> {
    MemberState {
        client_id: "ana",
        subject_bytes: 3,
        user: core.home.sessions.target(Target::User, "ana"),
        present,
        told_lost: false,
        stays_follow: false,
        since_ms: 1,
        received_seq: 0,
        hidden_to: 0,
        away_since_ms: if present { 0 } else { WALL_MS - away_ms },
        roles: Vec::new(),
        stays: Vec::new(),
        presence: None,
    }
}

/// A core that recovered a member that had been away for so long before the start.
fn with_member_away(away_ms: u64, present: bool) -> (Core, u64, u64) {
    let mut core = core("[log]\ndir = \"unused\"\n[session]\nmember_unseen_ms = 86400000\npresence_grace_ms = 15000\n");
    let (session, client) = (core.cx.session_hash("s"), core.home.sessions.target(Target::Client, "ana"));
    let state = SessionState { session_id: "s", head: 0, oldest: 1, epochs: Vec::new() };
    let member = member_state(&core, away_ms, present);
    let mut replay = Replay::new(KEY);
    for bytes in [
        record(Kind::Session, session, 0, |out| state.encode(out)),
        record(Kind::Member, session, client, |out| member.encode(out)),
    ] {
        core.replay(&mut replay, Position(64), 64, &read_record(&bytes, None).unwrap());
    }
    core.finish_recovery(true, at(0), &mut Recovered::default());
    (core, session, client)
}

#[test]
fn a_member_unseen_is_let_go_by_the_time_before_the_start_too() {
    let (mut core, session, client) = with_member_away(23 * HOUR_MS, false);
    let mut io = Held::default();
    let is_there = |core: &Core| {
        core.home.sessions.find(session).is_some_and(|session| core.home.sessions.member(session, client).is_some())
    };
    for mono_ms in [0, 20_000, HOUR_MS - 1000] {
        core.turn(&mut io, at(mono_ms));
        assert!(is_there(&core), "{mono_ms}");
    }
    core.turn(&mut io, at(HOUR_MS + 1000));
    assert!(!is_there(&core));
}

#[test]
fn of_a_message_that_was_purged_the_id_is_left() {
    let mut core = core("[log]\ndir = \"unused\"\n");
    let (session, client) = (core.cx.session_hash("s"), core.home.sessions.target(Target::Client, "ana"));
    let state = SessionState { session_id: "s", head: 0, oldest: 1, epochs: Vec::new() };
    let member = member_state(&core, 0, true);
    let message =
        |seq| Header { kind: Kind::Message, session, seq, epoch: 0, ts_ms: WALL_MS, sender: client, id: 70 + seq, content: 5 };
    let purge = Header { kind: Kind::Purge, sender: 0, id: 0, content: 0, ..message(2) };
    let mut records = vec![
        record(Kind::Session, session, 0, |out| state.encode(out)),
        record(Kind::Member, session, client, |out| member.encode(out)),
    ];
    for header in [message(1), message(2), purge, message(3)] {
        let mut bytes = Vec::new();
        write_record(&mut bytes, &header, &[], if header.kind == Kind::Message { b"body" } else { b"" }, 0);
        records.push(bytes);
    }
    let (mut replay, mut offset) = (Replay::new(KEY), 64);
    for (place, bytes) in records.iter_mut().enumerate() {
        if place < 4 {
            crate::log::purge(bytes, usize::MAX, session, false, &|_| false, &mut |_, _| {}).unwrap();
        }
        core.replay(&mut replay, Position(offset), offset, &read_record(bytes, Some(0)).unwrap());
        offset += bytes.len() as u64;
    }
    let (version, segment_bytes) = (SEGMENT_VERSION, 2 << 20);
    let segment = SegmentHeader { version, shard: 0, generation: 1, number: 0, segment_bytes, created_ms: 0, chain_before: 0 };
    core.storage.close_segment(&core.cx, &mut replay, &segment).unwrap();
    core.home.settle_replay(&core.cx, replay);
    assert_eq!(core.session_bounds("s"), Some((3, 3)));
    let member = core.home.sessions.member(core.home.sessions.find(session).unwrap(), client).unwrap();
    let used = core.home.sessions.members.get(member).unwrap().used.as_ref().unwrap();
    let limits = DedupeLimits { ids_max: 10, window_ms: 1000 };
    assert_eq!([1, 2, 3].map(|seq| used.look_up(70 + seq, 5, 0, limits)), [1, 2, 3].map(|seq| Seen::Same { seq }));
}

#[test]
fn what_a_reader_posted_to_a_channel_stays_known_when_the_reader_is_gone() {
    let state = SessionState { session_id: "channel:c", head: 0, oldest: 1, epochs: Vec::new() };
    // If retention has dropped the record that named the channel, one behind the messages names it.
    for named_first in [true, false] {
        let mut core = core("[log]\ndir = \"unused\"\n");
        let (channel, client) = (core.cx.session_hash("channel:c"), core.home.sessions.target(Target::Client, "ana"));
        let member = member_state(&core, 0, true);
        let post =
            Header { kind: Kind::Message, session: channel, seq: 1, epoch: 0, ts_ms: WALL_MS, sender: client, id: 7, content: 5 };
        let mut message = Vec::new();
        write_record(&mut message, &post, &[], b"body", 0);
        let mut records = vec![message, record(Kind::Session, channel, 0, |out| state.encode(out))];
        if named_first {
            records.reverse();
        }
        records.push(record(Kind::Member, channel, client, |out| member.encode(out)));
        records.push(record(Kind::MemberGone, channel, client, |_| Ok(())));
        let mut replay = Replay::new(KEY);
        for bytes in &records {
            core.replay(&mut replay, Position(64), 64, &read_record(bytes, None).unwrap());
        }
        core.home.settle_replay(&core.cx, replay);
        let limits = DedupeLimits { ids_max: 10, window_ms: 1000 };
        assert_eq!(core.home.posted.look_up(7, 5, 0, limits), Seen::Same { seq: 1 }, "named first: {named_first}");
    }
}

#[test]
fn a_session_whose_members_are_gone_is_not_forgotten_with_the_first_turn_after_a_start() {
    let mut core = core("[log]\ndir = \"unused\"\n[session]\nidle_ms = 2000\n");
    let session = core.cx.session_hash("s");
    let state = SessionState { session_id: "s", head: 9, oldest: 10, epochs: Vec::new() };
    let bytes = record(Kind::Session, session, 0, |out| state.encode(out));
    core.replay(&mut Replay::new(KEY), Position(64), 64, &read_record(&bytes, None).unwrap());
    core.finish_recovery(true, at(0), &mut Recovered::default());
    for (mono_ms, is_there) in [(0, true), (1_000, true), (3_500, false)] {
        core.turn(&mut Held::default(), at(mono_ms));
        assert_eq!(core.home.sessions.find(session).is_some(), is_there, "{mono_ms}");
    }
}

#[test]
fn a_members_grace_goes_on_over_a_start_and_begins_with_it_where_it_was_there() {
    for (present, away_ms, lost_ms) in [(false, 10_000, 5_000), (true, 0, 15_000)] {
        let (mut core, session, client) = with_member_away(away_ms, present);
        let mut io = Held::default();
        let lost = |core: &Core| {
            let member = core.home.sessions.member(core.home.sessions.find(session).unwrap(), client).unwrap();
            core.home.sessions.members.get(member).unwrap().told_lost
        };
        core.turn(&mut io, at(lost_ms - 100));
        assert!(!lost(&core));
        core.turn(&mut io, at(lost_ms + 100));
        assert!(lost(&core), "{present}");
    }
}

#[test]
fn a_record_bears_the_number_of_its_sessions_epoch() {
    let epoch_at = |core: &Core, at: Position| u32::from_le_bytes(core.storage.log.bytes(at, 32, 4).try_into().unwrap());
    // The newest Session record's number and epochs, and whether the end was clean; the number that goes on.
    for (said, named, clean, number) in [
        (None, 0, false, 0),
        (Some(0), 1, true, 0),
        (Some(0), 1, false, 1),
        (Some(0), 3, false, 3),
        (Some(40), 16, false, 41),
        (Some(40), 16, true, 40),
    ] {
        let (mut core, mut io) = (core("[log]\ndir = \"unused\"\n"), Held::default());
        let session = core.cx.session_hash("s");
        if let Some(epoch) = said {
            let epochs = (1..=named).map(|name| EpochState { name, last_seq: (name < named).then_some(0) }).collect();
            let (mut body, mut bytes) = (Vec::new(), Vec::new());
            SessionState { session_id: "s", head: 0, oldest: 1, epochs }.encode(&mut body).unwrap();
            let header = Header { kind: Kind::Session, session, seq: 0, epoch, ts_ms: 1, sender: 0, id: 0, content: 0 };
            write_record(&mut bytes, &header, &[], &body, 0);
            core.replay(&mut Replay::new(KEY), Position(64), 64, &read_record(&bytes, None).unwrap());
            core.finish_recovery(clean, at(0), &mut Recovered::default());
        }
        publish(&mut core, &mut io, "s", "1", at(2));
        let key = core.home.sessions.find(session).unwrap();
        let (kept_at, stream) = core.home.sessions.sessions.get(key).map(|entry| (entry.kept_at, entry.stream)).unwrap();
        let message_at = core.home.streams.get(stream).unwrap().index.get(1).unwrap().at;
        assert_eq!(epoch_at(&core, message_at), number, "{said:?} {named} {clean}");
        if !clean {
            assert_eq!(epoch_at(&core, kept_at), number, "{said:?} {named}");
        }
    }
}

#[test]
fn a_log_whose_disk_is_behind_takes_no_record_above_its_bound() {
    let core = &mut core("");
    let header = Header { kind: Kind::Message, session: 1, seq: 1, epoch: 0, ts_ms: WALL_MS, sender: 1, id: 1, content: 1 };
    let body = vec![b'x'; 1_000_000];
    let refused = |core: &Core| core.storage.log_refuses_record(&core.cx, Level::Written, 100).map(|(code, _)| code);
    while core.storage.pending_bytes(&core.cx) < PENDING_BYTES_MAX {
        assert_eq!(refused(core), None);
        core.storage.log.append(&header, &[], &[&body]);
    }
    assert_eq!(refused(core), Some(ErrorCode::LimitBackpressure));
    assert_eq!(core.cx.counters.limit_count(LimitReached::LogPending), 1);
    // Records of the memory level count too: they are held in memory until they are written.
    assert_eq!(
        core.storage.log_refuses_record(&core.cx, Level::Memory, 100).map(|(code, _)| code),
        Some(ErrorCode::LimitBackpressure)
    );
}
