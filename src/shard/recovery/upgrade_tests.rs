//! Logs that an earlier version wrote, and those of this version in which a member's records are in several files, as a start
//! reads them.

use super::open::{Identity, Segment, read_log, recover, settle};
use crate::ids::HashKey;
use crate::io::directory::Directory;
use crate::limits::{CHUNK_BYTES, ENDED_STAYS_PER_MEMBER_MAX, ENDED_STAYS_PER_ROOM_MAX};
use crate::log::made::{Made, header};
use crate::log::{Header, Joined, Kind, Left, MemberState, Receipt, SessionState, StateError, StayState, Stays};
use crate::session::{Member, Target};
use crate::shard::core::Core;
use crate::shard::durability::disk_tests::one_of;
use crate::time::Tick;
use std::io::Cursor;
use std::path::Path;

const SESSION: u64 = 77;
const NOW: Tick = Tick { mono_ns: 1_000_000, wall_ms: 1_800_000_000_000 };

/// The hash of the client's address.
fn client() -> u64 {
    Target::Client.hash(&HashKey([3; 16]), "ana")
}

fn state<'a>(stays: Vec<StayState<'a>>, stays_follow: bool) -> MemberState<'a> {
    MemberState {
        client_id: "ana",
        subject_bytes: 3,
        user: 5,
        present: false,
        told_lost: true,
        stays_follow,
        since_ms: 1,
        received_seq: 2,
        hidden_to: 0,
        away_since_ms: 7,
        roles: vec!["agent"],
        stays,
        presence: Some("1"),
    }
}

fn put(log: &mut Made, kind: Kind, encode: impl FnOnce(&mut Vec<u8>) -> Result<(), StateError>) {
    let mut body = Vec::new();
    encode(&mut body).unwrap();
    log.put(&Header { sender: client(), ..header(kind, SESSION, 9) }, &[], &body);
}

fn session(log: &mut Made) {
    log.session(SESSION, &SessionState { session_id: "s", head: 9, oldest: 1, epochs: vec![] });
}

fn read(log: &Made) -> Core {
    let mut core = one_of(1, "[log]\ndir = \"unused\"\n");
    let identity = Identity { shard: 0, generation: 1, segment_bytes: CHUNK_BYTES as u64, key: HashKey([3; 16]) };
    let files = log.files.iter().map(|(number, bytes)| Segment { number: *number, reader: Cursor::new(&bytes[..]) });
    read_log(&mut core, &mut files.collect::<Vec<_>>(), &identity, |_, _| Ok(())).unwrap();
    core
}

fn member(core: &Core) -> &Member {
    let key = core.home.sessions.member(core.home.sessions.find(SESSION).unwrap(), client()).unwrap();
    core.home.sessions.members.get(key).unwrap()
}

/// First and last seq of the stays that have ended, and the rooms that the client is in.
fn stays(core: &Core) -> (Vec<(u64, u64)>, Vec<String>) {
    let member = member(core);
    let ended = member.entitlements.stays.iter().filter(|stay| stay.has_ended());
    (ended.map(|stay| (stay.from, stay.to)).collect(), member.rooms.iter().map(ToString::to_string).collect())
}

const fn ended(from: u64) -> StayState<'static> {
    StayState { room: "", hash: 9, from, to: from }
}

const fn open(room: &str) -> StayState<'_> {
    StayState { room, hash: 1, from: 3, to: u64::MAX }
}

#[test]
fn a_whole_state_of_version_1_replaces_the_one_before_and_facts_go_on_from_it() {
    let mut log = Made::of_version(1, 0, 1, CHUNK_BYTES, 0);
    session(&mut log);
    put(&mut log, Kind::Member, |out| state(vec![open("ops"), open("dev"), ended(1)], false).encode(out));
    put(&mut log, Kind::Receipt, |out| {
        Receipt { received_seq: 6 }.encode(out);
        Ok(())
    });
    put(&mut log, Kind::Member, |out| state(vec![open("dev"), ended(4)], false).encode(out));
    let core = read(&log);
    assert_eq!(stays(&core), (vec![(4, 4)], vec!["dev".to_owned()]));
    assert_eq!((member(&core).received_seq, member(&core).presence.as_deref()), (6, Some("1")));
    // As the log of an upgraded gateway continues: in a segment of its own.
    let mut log = log.of_version_from_now(2);
    log.begin(1);
    put(&mut log, Kind::Joined, |out| Joined { room: "lab", from: 8 }.encode(out));
    put(&mut log, Kind::Left, |out| Left { room: "dev", to: 9 }.encode(out));
    let core = read(&log);
    assert_eq!(stays(&core), (vec![(4, 4), (3, 9)], vec!["lab".to_owned()]));
    let room = core.home.sessions.target(Target::Room, "lab");
    assert!(member(&core).entitlements.named(room, 8) && !member(&core).entitlements.named(room, 7));
}

#[test]
fn ended_stays_of_version_1_are_held_to_their_bounds() {
    let mut log = Made::of_version(1, 0, 1, CHUNK_BYTES, 0);
    session(&mut log);
    let many = (0..30_000).map(|seq| StayState { hash: 9 + seq % 50, ..ended(seq) }).collect();
    put(&mut log, Kind::Member, |out| state(many, false).encode(out));
    let core = read(&log);
    assert_eq!(stays(&core).0.len(), ENDED_STAYS_PER_MEMBER_MAX);
    assert_eq!(member(&core).entitlements.forgotten_to(), 30_000 - ENDED_STAYS_PER_MEMBER_MAX as u64 - 1);
    let mut log = Made::of_version(1, 0, 1, CHUNK_BYTES, 0);
    session(&mut log);
    put(&mut log, Kind::Member, |out| state((0..2_000).map(ended).collect(), false).encode(out));
    assert_eq!(stays(&read(&log)).0.len(), ENDED_STAYS_PER_ROOM_MAX);
}

fn part(log: &mut Made, left: u16, stays: Vec<StayState<'_>>) {
    put(log, Kind::Stays, |out| Stays { left, stays }.encode(out));
}

#[test]
fn a_state_that_is_written_again_counts_when_all_of_it_was() {
    let mut log = Made::new(0, 1, CHUNK_BYTES, 0);
    session(&mut log);
    put(&mut log, Kind::Member, |out| state(vec![], false).encode(out));
    put(&mut log, Kind::Joined, |out| Joined { room: "ops", from: 4 }.encode(out));
    let (before, kept_at) = (stays(&read(&log)), member(&read(&log)).kept_at);
    assert_eq!(before, (vec![], vec!["ops".to_owned()]));
    put(&mut log, Kind::Member, |out| state(vec![], true).encode(out));
    part(&mut log, 1, vec![ended(2)]);
    let torn = read(&log);
    assert_eq!((stays(&torn), member(&torn).kept_at), (before, kept_at), "the process ended before the last was written");
    // Another record of the member, or of another one, does not count as a part.
    put(&mut log, Kind::Joined, |out| Joined { room: "lab", from: 5 }.encode(out));
    put(&mut log, Kind::Member, |out| state(vec![], true).encode(out));
    part(&mut log, 1, vec![ended(2)]);
    part(&mut log, 0, vec![StayState { room: "dev", hash: 1, from: 4, to: u64::MAX }]);
    let whole = read(&log);
    assert_eq!(stays(&whole), (vec![(2, 2)], vec!["dev".to_owned()]));
    assert!(member(&whole).kept_at > kept_at);
}

#[test]
fn where_the_files_before_are_gone_a_member_is_what_was_written_again() {
    let mut log = Made::new(0, 1, CHUNK_BYTES, 3);
    // Facts about a member that is not named yet are repeated behind the record that names it.
    put(&mut log, Kind::Joined, |out| Joined { room: "ops", from: 4 }.encode(out));
    session(&mut log);
    put(&mut log, Kind::Joined, |out| Joined { room: "ops", from: 4 }.encode(out));
    put(&mut log, Kind::Member, |out| state(vec![], true).encode(out));
    part(&mut log, 1, vec![ended(2)]);
    let torn = read(&log);
    assert_eq!(torn.home.sessions.member(torn.home.sessions.find(SESSION).unwrap(), client()), None);
    // The next time all of its stays were read.
    put(&mut log, Kind::Member, |out| state(vec![], true).encode(out));
    part(&mut log, 1, vec![ended(2)]);
    part(&mut log, 0, vec![open("ops"), open("dev")]);
    put(&mut log, Kind::Left, |out| Left { room: "dev", to: 9 }.encode(out));
    let core = read(&log);
    assert_eq!(stays(&core), (vec![(2, 2), (3, 9)], vec!["ops".to_owned()]));
    assert!(member(&core).kept_at.0 > 0);
}

#[test]
fn a_part_that_follows_no_state_is_nobodys() {
    let mut log = Made::new(0, 1, CHUNK_BYTES, 0);
    session(&mut log);
    put(&mut log, Kind::Member, |out| state(vec![], false).encode(out));
    part(&mut log, 0, vec![open("ops")]);
    assert_eq!(stays(&read(&log)), (vec![], vec![]));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn the_golden_directory_of_version_1_is_read_and_goes_on_as_one_of_version_2() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/log");
    let folder = std::env::temp_dir().join(format!("ringway-upgrade-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    copy(&golden, &folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let before = text("format");
    for start in 0..3 {
        let directory = Directory::open(&folder, 1, [0; 16]).unwrap();
        assert_eq!((directory.shards, directory.generation, directory.key[15]), (1, 1, 15));
        assert!(text("format").contains("version = 2\n") && text("format").contains("000102030405"), "{}", text("format"));
        assert_eq!(text("format.v1"), before, "start {start}");
        let mut core = one_of(1, "[log]\ndir = \"unused\"\n");
        let unsettled = recover(&mut core, &directory, 0, CHUNK_BYTES as u64).unwrap();
        settle(&mut core, unsettled, NOW).unwrap();
        let session = core.home.sessions.find(0x1122_3344_5566_7788).unwrap();
        assert_eq!(core.session_bounds_of(session), Some((4, 9)), "start {start}");
        let epochs = core.home.sessions.sessions.get(session).unwrap().past_epochs.len();
        assert_eq!(epochs, 2, "each of these starts reads what the first did: nothing was written");
    }
    for number in 0..2 {
        let name = format!("1/shard-0/{}", crate::log::segment_name(number));
        assert!(std::fs::read(folder.join(&name)).unwrap() == std::fs::read(golden.join(&name)).unwrap(), "{name}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
