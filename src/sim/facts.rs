//! Facts and gauges in the log, beside messages: each costs about its own bytes, follows a message's path, is as durable as its
//! answer says, and is the same after a start as before.

use super::client::{ROOMS, What};
use super::disk::{Crash, DiskFaults};
use super::scenarios::{all_in, count, finish, say, slow_down, stage_on_disk};
use super::world::World;
use crate::config::{Durability, Settings};
use crate::limits::{ANSWERS_WAITING_MAX, CHUNK_BYTES, ENDED_STAYS_PER_MEMBER_MAX, ENDED_STAYS_PER_ROOM_MAX};
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::inspect::Known;
use serde_json::{Value, json};

pub(super) fn unlimited(settings: &mut Settings) {
    (settings.limits.messages_per_second, settings.limits.bytes_per_second) = (0, 0);
    settings.limits.presence_per_second = 0;
}

pub(super) fn join(world: &mut World, client: usize, room: &str) {
    let (me, head) = (world.clients[client].id.clone(), world.bounds("s.0").1);
    world.oracle.joining(&me, "s.0", room, head);
    world.command(client, "rw.join", "s.0", json!({"room": room}), What::Join(room.to_owned()));
}

pub(super) fn leave_room(world: &mut World, client: usize, room: &str) {
    let (me, head, number) = (world.clients[client].id.clone(), world.bounds("s.0").1, world.clients[client].counter + 1);
    world.oracle.leaving(&me, "s.0", room, head, number);
    world.command(client, "rw.leave", "s.0", json!({"room": room}), What::Leave(room.to_owned(), number));
}

pub(super) fn set_mood(world: &mut World, client: usize, data: Value) {
    world.command(client, "rw.presence.set", "s.0", json!({"data": data}), What::Other("rw.presence.ok"));
}

fn known(world: &World, client: &str) -> Known {
    world.seats[world.home("s.0")].core.members_known()[&("s.0".to_owned(), client.to_owned())].clone()
}

/// The rooms of [`known`] but those that a hello has named.
pub(super) fn rooms(world: &World, client: &str) -> Vec<String> {
    known(world, client).rooms.into_iter().filter(|room| !ROOMS.contains(&&**room)).collect()
}

/// Stays that have ended.
fn ended(world: &World, client: &str) -> usize {
    known(world, client).stays.iter().filter(|(room, _, to)| *room != 0 && *to != u64::MAX).count()
}

fn now_s(world: &World) -> u64 {
    world.now_ns / 1_000_000_000
}

fn written(world: &World) -> u64 {
    world.seats.iter().map(|seat| seat.counters.log_written_bytes.get()).sum()
}

/// Bytes that a client sent, their frames' heads not counted.
fn asked_bytes(kind: &str, payload: &Value, times: u64) -> u64 {
    times * json!({"type": kind, "id": "12345.rw.kind", "session_id": "s.0", "payload": payload}).to_string().len() as u64
}

pub(super) fn everybody(world: &World) -> Vec<std::collections::BTreeMap<(String, String), Known>> {
    world.seats.iter().map(|seat| seat.core.members_known()).collect()
}

/// The process ends when everything appended is on disk, and its next start knows what this one knew.
pub(super) fn ends_and_knows_the_same(world: &mut World) {
    world.run_for(3_000);
    let before = everybody(world);
    world.crash(Crash::Kill);
    for (shard, known) in before.into_iter().enumerate() {
        world.same_members(shard, known);
    }
    assert!(world.run_until(60_000, all_in), "{:?}", world.clients[0].waiting());
}

#[test]
fn a_room_entered_and_left_fifty_thousand_times_costs_what_it_says() {
    let (durability, rounds) = (Durability::Synced, 50_000);
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
        unlimited(settings);
        settings.log.durability = durability;
    });
    say(&mut world, 1, 3);
    let before = written(&world);
    for round in 0..rounds {
        world.command(0, "rw.join", "s.0", json!({"room": "den"}), What::Other("rw.joined"));
        world.command(0, "rw.leave", "s.0", json!({"room": "den"}), What::Other("rw.left"));
        if round % 100 == 99 {
            assert!(world.run_until(60_000, all_in), "{round}: {:?}", world.oracle.violations);
            // The client's actions are over: none of them is examined again.
            world.link(0).sent.clear();
        }
    }
    assert_eq!((count(&world, 0, "rw.joined"), count(&world, 0, "rw.left")), (rounds, rounds));
    let asked =
        asked_bytes("rw.join", &json!({"room": "den"}), rounds) + asked_bytes("rw.leave", &json!({"room": "den"}), rounds);
    assert!(written(&world) - before <= 4 * asked, "{} bytes for {asked}", written(&world) - before);
    assert_eq!(ended(&world, "ana"), 0);
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
    let records = world.seats[0].counters.log_state_records.get();
    ends_and_knows_the_same(&mut world);
    assert!(records >= 2 * rounds && world.seats[0].counters.log_state_records.get() < 10, "the start writes little");
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

/// A message in each stay and between two, so that each is one of its own.
fn come_and_go(world: &mut World, rooms: &[String], rounds: usize) {
    for round in 0..rounds {
        let room = &rooms[round % rooms.len()];
        join(world, 0, room);
        assert!(world.run_until(5_000, all_in));
        world.message_to(1, "s.0", &json!(format!("room:{room}")), 10, false);
        world.run_for(5);
        assert!(world.run_until(5_000, all_in));
        leave_room(world, 0, room);
        assert!(world.run_until(5_000, all_in));
        world.message_to(1, "s.0", &json!(format!("room:{room}")), 10, false);
        world.run_for(5);
        assert!(world.run_until(5_000, all_in));
    }
}

#[test]
fn stays_are_bounded_and_what_is_forgotten_is_counted_told_and_leaks_nothing() {
    let mut world = stage_on_disk(1, 10, &["ana", "bob"], unlimited);
    let rooms = ["den".to_owned()];
    let held = world.clients[0].held["s.0"];
    let epoch = world.clients[0].epochs["s.0"].clone();
    let rounds = ENDED_STAYS_PER_ROOM_MAX + 8;
    come_and_go(&mut world, &rooms, rounds);
    let counters = world.seats[0].counters.clone();
    assert_eq!(counters.dropped_count(DropReason::StayForgotten), 8);
    assert_eq!(counters.limit_count(LimitReached::EndedStays), 8);
    assert_eq!(ended(&world, "ana"), ENDED_STAYS_PER_ROOM_MAX);
    finish(&mut world);
    // Over a start they are the same. Who goes on from before what was forgotten is told that not all is there; who goes on from behind
    // it has all.
    for (from, recovered) in [(held, false), (4 * 8 / 2 + 2, true)] {
        ends_and_knows_the_same(&mut world);
        world.end_link(0, true);
        // Of the first eight stays the oracle knows nothing any more.
        world.clients[0].held.insert("s.0".to_owned(), from);
        world.clients[0].epochs.insert("s.0".to_owned(), epoch.clone());
        let before = world.clients[0].answers.get("recovered").copied().unwrap_or(0);
        world.oracle.forget_stays("ana", "s.0", "den", 8);
        assert!(world.run_until(20_000, all_in));
        let told = world.clients[0].answers.get("recovered").copied().unwrap_or(0) - before;
        assert_eq!(told > 0, recovered, "from {from}");
        world.run_for(1_000);
        finish(&mut world);
    }
}

#[test]
fn stays_in_many_rooms_are_bounded_too() {
    let mut world = stage_on_disk(1, 10, &["ana", "bob"], unlimited);
    let rooms: Vec<String> = (0..40).map(|room| format!("room-{room}")).collect();
    come_and_go(&mut world, &rooms, ENDED_STAYS_PER_MEMBER_MAX + 20);
    let forgotten = world.seats[0].counters.dropped_count(DropReason::StayForgotten);
    assert_eq!((ended(&world, "ana"), forgotten), (ENDED_STAYS_PER_MEMBER_MAX, 20));
    finish(&mut world);
    ends_and_knows_the_same(&mut world);
}

#[test]
fn stays_that_nothing_retained_needs_go_without_an_attach() {
    let mut world = stage_on_disk(1, 10, &["ana", "bob"], |settings| {
        unlimited(settings);
        settings.session.history_messages = 10;
    });
    come_and_go(&mut world, &["den".to_owned(), "nook".to_owned()], 20);
    say(&mut world, 1, 20);
    world.run_for(2_000);
    assert_eq!(ended(&world, "ana"), 0);
}

/// Many files of one client's records: they go, as nothing in them is retained, and what they told is written again.
#[test]
fn a_file_goes_whose_facts_are_the_state_of_somebody() {
    for (durability, crash) in [(Durability::Written, Crash::Kill), (Durability::Synced, Crash::PowerCut)] {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
            unlimited(settings);
            settings.log.durability = durability;
            settings.session.history_messages = 5;
            settings.session.dedupe_ms = 1_000;
        });
        for room in 0..120 {
            let name = format!("{room:03}-{}", "r".repeat(124));
            join(&mut world, 0, &name);
        }
        assert!(world.run_until(10_000, all_in));
        for _ in 0..80 {
            world.message_to(1, "s.0", &Value::Null, 60_000, false);
            world.run_for(50);
        }
        world.run_for(10_000);
        let files = world.seats[0].counters.log_segments.get();
        assert!(files <= 4, "{files} files");
        let before = everybody(&world);
        assert_eq!(rooms(&world, "ana").len(), 120);
        world.crash(crash);
        before.into_iter().enumerate().for_each(|(shard, known)| world.same_members(shard, known));
        assert!(world.run_until(60_000, all_in));
        world.run_for(1_000);
        finish(&mut world);
    }
}

#[test]
fn what_a_member_tells_of_itself_costs_a_record_a_second_and_the_newest_is_kept() {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], unlimited);
    world.run_for(2_000);
    let (before, records) = (written(&world), world.seats[0].counters.log_state_records.get());
    let began_s = now_s(&world);
    for burst in 0..20_u64 {
        (0..20).for_each(|round| set_mood(&mut world, 0, json!(20 * burst + round)));
        world.run_for(20);
    }
    assert!(world.run_until(5_000, all_in));
    let kept = world.seats[0].counters.log_state_records.get() - records;
    let (done, refused) = (count(&world, 0, "rw.presence.ok"), count(&world, 0, "limit.backpressure"));
    assert_eq!(done + refused, 400);
    assert!(kept <= now_s(&world) - began_s + 2, "{kept} records in {} s", now_s(&world) - began_s);
    assert!(done >= 2 * ANSWERS_WAITING_MAX as u64 && refused > 0, "{done} done, {refused} refused");
    assert_eq!(world.seats[0].counters.limit_count(LimitReached::PresenceAnswers), refused);
    assert!(written(&world) - before < 200 * (kept + now_s(&world) - began_s + 2));
    set_mood(&mut world, 0, json!("the last"));
    assert!(world.run_until(5_000, all_in));
    world.crash(Crash::Kill);
    assert_eq!(known(&world, "ana").presence.as_deref(), Some("\"the last\""));
    assert!(world.run_until(20_000, all_in));
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

#[test]
fn receipts_cost_a_record_a_second_and_the_last_is_kept() {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], unlimited);
    let began_s = now_s(&world);
    for round in 0..200 {
        world.message_to(1, "s.0", &Value::Null, 50, false);
        if round % 10 == 9 {
            assert!(world.run_until(5_000, all_in));
        }
        let seq = world.bounds("s.0").1;
        world.command(0, "rw.received", "s.0", json!({"seq": seq}), What::Silent);
    }
    assert!(world.run_until(5_000, all_in));
    let seq = world.bounds("s.0").1;
    world.command(0, "rw.received", "s.0", json!({"seq": seq}), What::Silent);
    world.run_for(50);
    let records = world.seats[0].counters.log_state_records.get();
    assert!(records < 12 + now_s(&world) - began_s, "{records} in {} s", now_s(&world) - began_s);
    world.run_for(2_000);
    world.crash(Crash::Kill);
    assert_eq!(known(&world, "ana").received_seq, 200);
    assert!(world.run_until(20_000, all_in));
    finish(&mut world);
}

/// A user with ten connections, each in 120 rooms of long names, sets presence data as fast as it may.
#[test]
fn a_flood_of_what_one_user_tells_of_itself_does_not_keep_others_from_the_log() {
    let mut world = stage_on_disk(1, 100, &["bob"], |settings| {
        unlimited(settings);
        settings.log.max_bytes = 16 * CHUNK_BYTES as u64;
        settings.session.history_messages = 20;
        settings.session.dedupe_ms = 1_000;
    });
    let tabs = ["", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    for tab in tabs {
        world.cast(&super::client::Casting {
            sub: "eve",
            tab,
            roles: &[],
            home: "s.0",
            echo: false,
            acks: true,
            hostile: false,
            slow: false,
        });
    }
    assert!(world.run_until(10_000, all_in));
    for client in 1..=tabs.len() {
        for room in 0..120 {
            join(&mut world, client, &format!("{room:03}-{}", "r".repeat(124)));
        }
        assert!(world.run_until(10_000, all_in), "{:?}", world.oracle.violations);
    }
    let before = written(&world);
    for round in 0..1_000_u64 {
        for client in 1..=tabs.len() {
            set_mood(&mut world, client, json!(round));
        }
        if round % 50 == 0 {
            world.message_to(0, "s.0", &Value::Null, 50, false);
        }
        world.run_for(5);
        if round % 100 == 99 {
            assert!(world.run_until(10_000, all_in));
        }
    }
    assert_eq!((count(&world, 0, "rw.ack"), count(&world, 0, "limit.disk")), (20, 0));
    let asked = asked_bytes("rw.presence.set", &json!({"data": 100}), 10_000);
    assert!(written(&world) - before < asked, "{} for {asked}", written(&world) - before);
    assert!(world.seats[0].counters.log_segments.get() <= 4);
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

/// Each thing that a client may ask for again and again, and what the log is written for it.
#[test]
fn the_log_is_written_at_most_four_times_what_a_client_sends() {
    type Ask = fn(&mut World, u64);
    let asks: [(&str, Ask); 5] = [
        ("join and leave", |world, _| {
            join(world, 0, "o");
            leave_room(world, 0, "o");
        }),
        ("join and leave, long names", |world, round| {
            let room = format!("{:03}{}", round % 100, "r".repeat(125));
            join(world, 0, &room);
            leave_room(world, 0, &room);
        }),
        ("presence", |world, round| set_mood(world, 0, json!("x".repeat(1_000 + usize::try_from(round % 10).unwrap())))),
        ("receipts", |world, _| {
            let seq = world.bounds("s.0").1;
            world.command(0, "rw.received", "s.0", json!({"seq": seq}), What::Silent);
        }),
        ("attach and detach", |world, _| {
            let attach = What::Attach { asked: Vec::new(), resume: None };
            world.command(0, "rw.attach", "s.1", json!({}), attach);
            assert!(world.run_until(5_000, all_in));
            world.command(0, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
        }),
    ];
    for (name, ask) in asks {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], unlimited);
        for room in 0..100 {
            join(&mut world, 0, &format!("{room:03}-{}", "q".repeat(124)));
        }
        assert!(world.run_until(10_000, all_in));
        ask(&mut world, 0);
        world.run_for(3_000);
        let (before, sent_before) = (written(&world), world.seats[0].counters.bytes_in.get());
        for round in 1..=400 {
            ask(&mut world, round);
            assert!(world.run_until(5_000, all_in), "{name}");
        }
        world.run_for(3_000);
        let (wrote, sent) = (written(&world) - before, world.seats[0].counters.bytes_in.get() - sent_before);
        assert!(wrote <= 4 * sent, "{name}: {wrote} bytes written for {sent}");
        assert!(world.oracle.violations.is_empty(), "{name}: {:?}", world.oracle.violations);
    }
}

#[test]
fn a_join_on_a_disk_that_fails_is_told_so_and_is_none() {
    for durability in [Durability::Written, Durability::Synced] {
        for faults in [
            DiskFaults { write_errors: 100, ..DiskFaults::default() },
            DiskFaults { sync_errors: 100, ..DiskFaults::default() },
            DiskFaults { full: 100, ..DiskFaults::default() },
        ] {
            let fails = faults.full == 0 && (durability == Durability::Synced || faults.write_errors > 0);
            let mut world = stage_on_disk(1, 300, &["ana", "bob"], |settings| settings.log.durability = durability);
            world.command(1, "rw.watch", "s.0", json!({"presence": true, "room": "den"}), What::Other("rw.watching"));
            say(&mut world, 1, 2);
            assert!(world.run_until(5_000, all_in));
            world.seats[0].engine.disk.faults = faults;
            join(&mut world, 0, "den");
            world.run_for(2_000);
            if fails {
                assert_eq!((count(&world, 0, "limit.disk"), count(&world, 0, "rw.joined")), (1, 0), "{durability:?} {faults:?}");
                // As one that comes behind the failure.
                join(&mut world, 0, "nook");
                leave_room(&mut world, 0, "attic");
                set_mood(&mut world, 0, json!(1));
                assert!(world.run_until(5_000, all_in));
                assert!(count(&world, 0, "limit.disk") >= 3);
            } else if faults.full > 0 {
                assert_eq!(count(&world, 0, "rw.joined"), 0, "it waits for room");
            }
            let is_in = faults.sync_errors > 0 && !fails;
            assert_eq!(rooms(&world, "ana"), if is_in { vec!["den"] } else { vec![] }, "{durability:?} {faults:?}");
            assert_eq!(count(&world, 1, "rw.presence"), u64::from(is_in), "{durability:?} {faults:?}: nobody was told");
            world.seats[0].engine.disk.faults = DiskFaults::default();
            if fails {
                world.crash(Crash::Kill);
            }
            assert!(world.run_until(20_000, all_in), "{:?}", world.clients[0].waiting());
            join(&mut world, 0, "den");
            assert!(world.run_until(20_000, all_in));
            assert_eq!(rooms(&world, "ana"), vec!["den"]);
            world.run_for(1_000);
            finish(&mut world);
        }
    }
}

#[test]
fn a_confirmed_join_outlives_what_its_session_asks() {
    for (durability, crash) in [(Durability::Written, Crash::Kill), (Durability::Synced, Crash::PowerCut)] {
        for delay_us in [0, 3_000, 200_000] {
            let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| settings.log.durability = durability);
            slow_down(&mut world, delay_us);
            for (round, room) in ["den", "nook", "attic"].iter().enumerate() {
                join(&mut world, 0, room);
                join(&mut world, 0, "twice");
                leave_room(&mut world, 0, "twice");
                // As soon as it is answered.
                let done = round as u64 + 1;
                assert!(world.run_until(20_000, |world| count(world, 0, "rw.left") == done));
                world.crash(crash);
                let rooms = rooms(&world, "ana");
                assert!(rooms.contains(&(*room).to_owned()) && !rooms.contains(&"twice".to_owned()), "{rooms:?}");
                assert!(world.run_until(20_000, all_in));
            }
            finish(&mut world);
        }
    }
}

/// A join shown early is not answered earlier when it is repeated.
#[test]
fn a_join_that_is_repeated_is_not_answered_before_the_first_is_durable() {
    let mut world = stage_on_disk(1, 0, &["ana"], |settings| settings.log.early_delivery = true);
    slow_down(&mut world, 200_000);
    join(&mut world, 0, "den");
    world.run_for(5);
    join(&mut world, 0, "den");
    assert!(world.run_until(20_000, |world| count(world, 0, "rw.joined") > 0));
    world.crash(Crash::Kill);
    assert_eq!(rooms(&world, "ana"), ["den"]);
}

/// A welcome waits for no disk, and the answer to a join of the room that it names does.
#[test]
fn a_join_of_a_room_that_a_hello_named_is_not_answered_before_that_is_durable() {
    for (durability, crash) in [(Durability::Written, Crash::Kill), (Durability::Synced, Crash::PowerCut)] {
        let mut world = stage_on_disk(1, 0, &["ana"], |settings| settings.log.durability = durability);
        slow_down(&mut world, 200_000);
        let asked = vec!["den".to_owned()];
        world.command(0, "rw.attach", "s.1", json!({"rooms": ["den"]}), What::Attach { asked, resume: None });
        assert!(world.run_until(1_000, |world| count(world, 0, "rw.attached") == 1));
        world.command(0, "rw.join", "s.1", json!({"room": "den"}), What::Other("rw.joined"));
        assert!(world.run_until(20_000, |world| count(world, 0, "rw.joined") == 1));
        world.crash(crash);
        let known = world.seats[0].core.members_known();
        assert_eq!(known[&("s.1".to_owned(), "ana".to_owned())].rooms, ["den"], "{crash:?}");
    }
}

/// Requests sent without waiting are decided one after the other.
#[test]
fn comings_and_goings_that_wait_for_the_disk_are_decided_in_their_order() {
    for shards in [1, 2] {
        let mut world = stage_on_disk(shards, 0, &["ana", "bob"], |settings| {
            unlimited(settings);
            settings.limits.rooms_per_client = 4;
        });
        slow_down(&mut world, 50_000);
        for _ in 0..3 {
            join(&mut world, 0, "den");
            leave_room(&mut world, 0, "den");
        }
        join(&mut world, 0, "nook");
        join(&mut world, 0, "nook");
        join(&mut world, 0, "attic");
        let more = 2 - known(&world, "ana").rooms.len();
        for number in 0..3 {
            let what = if number < more { What::Other("rw.joined") } else { What::Bad };
            world.command(0, "rw.join", "s.0", json!({"room": format!("more-{number}")}), what);
        }
        world.message_to(1, "s.0", &json!("room:dev"), 10, false);
        world.run_for(1);
        assert_eq!(count(&world, 0, "rw.joined"), 0, "nothing is on disk yet");
        assert!(world.run_until(20_000, all_in));
        assert_eq!(
            (count(&world, 0, "rw.joined"), count(&world, 0, "rw.left"), count(&world, 0, "limit.rooms")),
            (6 + more as u64, 3, 3 - more as u64)
        );
        assert_eq!(known(&world, "ana").rooms.len(), 4);
        // The requests are answered before the member is out.
        leave_room(&mut world, 0, "nook");
        world.command(0, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
        assert!(world.run_until(20_000, all_in));
        world.command(0, "rw.join", "s.1", json!({"room": "den"}), What::Other("rw.joined"));
        world.command(0, "rw.presence.set", "s.1", json!({"data": 1}), What::Other("rw.presence.ok"));
        world.command(0, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
        assert!(world.run_until(20_000, all_in), "{:?}", world.clients[0].waiting());
        assert_eq!((count(&world, 0, "rw.detached"), count(&world, 0, "rw.presence.ok")), (1, 1));
        world.run_for(1_000);
        finish(&mut world);
    }
}

/// Two of three wait for the end of their second, in sessions here and on the other shard, when the client says its last word.
#[test]
fn what_a_client_told_of_itself_is_answered_before_its_end() {
    for shards in [1, 2] {
        let mut world = stage_on_disk(shards, 100, &["ana", "bob"], unlimited);
        let there = world.home("s.0");
        let others = (1..).map(|number| format!("s.{number}"));
        let others = others.filter(|session| shards == 1 || world.home(session) != there).take(3);
        let sessions: Vec<String> = std::iter::once("s.0".to_owned()).chain(others).collect();
        for session in &sessions[1..] {
            world.command(0, "rw.attach", session, json!({}), What::Attach { asked: Vec::new(), resume: None });
        }
        assert!(world.run_until(5_000, all_in));
        world.run_for(2_000);
        for round in 0..3 {
            for session in &sessions {
                world.command(0, "rw.presence.set", session, json!({"data": round}), What::Other("rw.presence.ok"));
            }
        }
        world.leave(0);
        assert!(world.run_until(900, |world| world.clients[0].link.is_none()), "not before its time");
        // The lane to the other shard is shallow: what it does not take is refused at once.
        let refused = count(&world, 0, "limit.backpressure");
        assert_eq!(count(&world, 0, "rw.presence.ok") + refused, 12, "{refused} refused");
        assert!(if shards == 1 { refused == 0 } else { refused < 9 }, "{refused} refused");
        assert_eq!(world.oracle.violations, Vec::<String>::new());
        assert!(world.run_until(20_000, all_in));
        finish(&mut world);
    }
}

/// A departure takes effect when its client attaches again, before the disk has what was said in the room until then.
#[test]
fn who_left_a_room_and_came_again_is_woken_for_what_was_said_before() {
    for (shards, durability) in [(1, Durability::Written), (1, Durability::Synced), (2, Durability::Written)] {
        let mut world = stage_on_disk(shards, 300, &["ana", "bob"], |settings| settings.log.durability = durability);
        join(&mut world, 1, "den");
        assert!(world.run_until(5_000, all_in));
        slow_down(&mut world, 400_000);
        (0..3).for_each(|_| world.message_to(0, "s.0", &json!("room:den"), 10, false));
        world.run_for(20);
        leave_room(&mut world, 1, "den");
        world.run_for(20);
        world.end_link(1, true);
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 0);
        assert!(world.run_until(100, |world| world.clients[1].is_open()), "{durability:?}: the disk was waited for");
        assert!(world.run_until(20_000, all_in), "{durability:?}");
        // A later message for everyone wakes it as well, and would have it skip those before.
        say(&mut world, 0, 1);
        assert!(world.run_until(20_000, all_in), "{durability:?}");
        world.run_for(1_000);
        finish(&mut world);
    }
}
