//! The log's room: what is refused without it, what goes on all the same, and how there is some again.

use super::client::{Casting, What};
use super::disk::Crash;
use super::facts::{ends_and_knows_the_same, everybody, join, leave_room, rooms, set_mood, unlimited};
use super::scenarios::{all_in, count, finish, say, slow_down, stage_on_disk};
use super::world::World;
use crate::config::{Durability, Settings};
use crate::limits::CHUNK_BYTES;
use serde_json::{Value, json};

/// Nothing but `log.max_bytes` bounds what is written: six files.
pub(super) fn capped(settings: &mut Settings) {
    unlimited(settings);
    settings.log.max_bytes = 6 * CHUNK_BYTES as u64;
    settings.session.history_messages = 1_000_000;
}

/// Bob writes until not even something short has room.
pub(super) fn fill_to_the_brim(world: &mut World) {
    for bytes in [60_000, 100] {
        for _ in 0..10 {
            (0..20).for_each(|_| world.message_to(1, "s.0", &Value::Null, bytes, false));
            assert!(world.run_until(10_000, all_in));
        }
    }
}

/// Bob speaks, and nothing of it is refused.
#[track_caller]
fn takes_messages_behind(world: &mut World, head: u64) {
    let refused = count(world, 1, "limit.disk");
    say(world, 1, 3);
    assert!(world.run_until(5_000, all_in));
    assert_eq!((count(world, 1, "limit.disk"), world.bounds("s.0").1), (refused, head + 3));
}

/// Another client, without roles, that comes soon.
fn cast(world: &mut World, sub: &str, home: &str) {
    let (echo, acks, hostile, slow) = (false, true, false, false);
    world.cast(&Casting { sub, tab: "", roles: &[], home, echo, acks, hostile, slow });
}

/// A log at its cap whose files hold nothing but state: what makes room has room for it.
#[test]
fn a_log_at_its_cap_makes_room_when_retention_lets_it() {
    for durability in [Durability::Memory, Durability::Written, Durability::Synced] {
        at_its_cap(durability);
    }
}

fn at_its_cap(durability: Durability) {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
        capped(settings);
        settings.log.durability = durability;
        settings.log.retention_age_s = 30;
        settings.session.dedupe_ms = 1_000;
    });
    for room in 0..100 {
        join(&mut world, 0, &format!("{room:03}-{}", "r".repeat(124)));
    }
    assert!(world.run_until(10_000, all_in));
    fill_to_the_brim(&mut world);
    let full = count(&world, 1, "limit.disk");
    assert!(full > 0, "never full");
    // Nobody gets in between with what is no message either.
    for _ in 0..100 {
        for _ in 0..5 {
            join(&mut world, 0, "den");
            leave_room(&mut world, 0, "den");
            set_mood(&mut world, 0, json!("x".repeat(1_000)));
            world.command(0, "rw.received", "s.0", json!({"seq": 1}), What::Silent);
        }
        assert!(world.run_until(10_000, all_in));
    }
    assert!(count(&world, 0, "limit.disk") > 0);
    assert!(world.seats[0].counters.log_segments.get() <= 6);
    let head = world.bounds("s.0").1;
    world.run_for(40_000);
    world.end_link(0, true);
    assert!(world.run_until(20_000, all_in));
    takes_messages_behind(&mut world, head);
    assert_eq!(rooms(&world, "ana").len(), 100);
    ends_and_knows_the_same(&mut world);
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

/// Whoever comes to a log that takes nothing is let in, to read; and the log has it when it takes something again.
#[test]
fn who_comes_to_a_log_without_room_is_let_in_and_kept_once_there_is_some() {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
        capped(settings);
        settings.log.retention_age_s = 30;
        settings.session.dedupe_ms = 60_000;
    });
    fill_to_the_brim(&mut world);
    assert!(count(&world, 1, "limit.disk") > 0, "never full");
    let records = world.seats[0].counters.log_state_records.get();
    for _ in 0..20 {
        world.end_link(0, true);
        assert!(world.run_until(20_000, |world| world.clients[0].is_open()));
    }
    for (sub, home) in [("cleo", "s.0"), ("dan", "s.9")] {
        cast(&mut world, sub, home);
    }
    assert!(world.run_until(5_000, |world| world.clients.iter().all(super::client::Client::is_open)));
    assert_eq!(world.seats[0].counters.log_state_records.get(), records, "nothing of it comes into the log");
    // Nor is a room that the log does not know of confirmed.
    let asked = vec!["attic".to_owned()];
    world.command(2, "rw.attach", "s.1", json!({"rooms": ["attic"]}), What::Attach { asked, resume: None });
    world.command(2, "rw.join", "s.1", json!({"room": "attic"}), What::Other("rw.joined"));
    assert!(world.run_until(5_000, |world| count(world, 2, "rw.attached") + count(world, 2, "limit.disk") == 2));
    world.message_to(3, "s.9", &Value::Null, 60_000, false);
    join(&mut world, 2, "den");
    assert!(world.run_until(5_000, |world| count(world, 3, "limit.disk") + count(world, 2, "limit.disk") == 3));
    world.run_for(45_000);
    world.end_link(0, true);
    assert!(world.run_until(20_000, all_in));
    join(&mut world, 2, "den");
    world.message_to(3, "s.9", &Value::Null, 60_000, false);
    assert!(world.run_until(10_000, all_in));
    let before = everybody(&world);
    world.crash(Crash::Kill);
    before.into_iter().enumerate().for_each(|(shard, known)| world.same_members(shard, known));
    assert!(world.run_until(20_000, all_in));
    world.run_for(1_000);
    assert_eq!(rooms(&world, "cleo"), ["den"]);
    // A repeat is recognised.
    let head = world.bounds("s.9").1;
    let past = world.clients[3].past.back().unwrap().clone();
    world.send_past(3, &past);
    assert!(world.run_until(10_000, all_in));
    assert_eq!((world.bounds("s.9").1, head > 0), (head, true));
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

/// Members' values that the log has no room for are lost by a stop as by a crash: the epochs tell.
#[test]
fn a_stop_over_a_log_without_room_is_not_one_in_good_order() {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], capped);
    fill_to_the_brim(&mut world);
    cast(&mut world, "cleo", "s.0");
    assert!(world.run_until(5_000, |world| world.clients[2].is_open()));
    world.stop_and_start();
    assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
}

/// The files are as many as there may be when it starts: what makes room has a file all the same.
#[test]
fn a_log_that_was_at_its_cap_when_it_ended_makes_room_after_the_start() {
    for (durability, ends) in [
        (Durability::Written, World::stop_and_start as fn(&mut World)),
        (Durability::Synced, |world| world.crash(Crash::Kill)),
        (Durability::Memory, |world| world.crash(Crash::PowerCut)),
    ] {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
            capped(settings);
            settings.log.durability = durability;
            settings.log.retention_age_s = 30;
            settings.session.dedupe_ms = 1_000;
        });
        fill_to_the_brim(&mut world);
        assert!(count(&world, 1, "limit.disk") > 0, "{durability:?}: never full");
        // Whoever starts it again and again has no more files.
        for _ in 0..3 {
            ends(&mut world);
            assert!(world.run_until(5_000, all_in), "{durability:?}");
            assert_eq!(world.seats[0].counters.log_segments.get(), 6, "{durability:?}");
        }
        let head = world.bounds("s.0").1;
        world.run_for(40_000);
        assert!(world.run_until(20_000, all_in), "{durability:?}");
        takes_messages_behind(&mut world, head);
        assert!(world.seats[0].counters.log_segments.get() <= 6, "{durability:?}");
        finish(&mut world);
    }
}

/// The epoch that a start begins has no room: whoever comes to a session in it is told at the next one, and of no other.
#[test]
fn an_epoch_that_a_full_log_does_not_hold_is_not_known_after_the_next_start() {
    for is_full in [true, false] {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], capped);
        for _ in 0..3 {
            world.message_to(0, "s.0", &json!("channel:c.0"), 40, false);
        }
        assert!(world.run_until(5_000, all_in));
        if is_full {
            fill_to_the_brim(&mut world);
        }
        world.crash(Crash::Kill);
        assert!(world.run_until(5_000, all_in));
        world.command(0, "rw.attach", "channel:c.0", json!({}), What::Attach { asked: Vec::new(), resume: None });
        assert!(world.run_until(5_000, all_in));
        let epoch = world.clients[0].epochs["channel:c.0"].clone();
        if !is_full {
            // Of what is said in it the log is sure to know.
            world.message_to(0, "s.0", &json!("channel:c.0"), 40, false);
            assert!(world.run_until(5_000, all_in));
        }
        world.crash(Crash::Kill);
        let is_sure = world.oracle.resumes("channel:c.0", &epoch, 3, "another").1;
        assert_eq!(is_sure, !is_full);
        assert!(world.run_until(20_000, all_in));
        let resume = Some((epoch.clone(), 3));
        let asked = json!({"resume": {"epoch": epoch, "seq": 3}});
        world.command(0, "rw.attach", "channel:c.0", asked, What::Attach { asked: Vec::new(), resume });
        assert!(world.run_until(5_000, all_in));
        finish(&mut world);
    }
}

/// A channel is forgotten and made anew. A crash takes both, or the second, or neither: whoever was in the first one is told rightly.
#[test]
fn a_session_whose_forgetting_a_crash_takes_is_known_to_whom_it_was_told() {
    let known = (0..8).filter(|chance| is_known_after_a_crash(*chance)).count();
    assert!((1..8).contains(&known), "{known} of 8");
}

fn is_known_after_a_crash(chance: usize) -> bool {
    let change = |settings: &mut Settings| settings.session.presence_grace_ms = 2_000;
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], change);
    let attach = |world: &mut World, client: usize, resume: Option<(String, u64)>| {
        let asked = resume.as_ref().map_or_else(|| json!({}), |(epoch, seq)| json!({"resume": {"epoch": epoch, "seq": seq}}));
        world.command(client, "rw.attach", "channel:c.0", asked, What::Attach { asked: Vec::new(), resume });
        assert!(world.run_until(5_000, all_in));
        world.clients[client].epochs["channel:c.0"].clone()
    };
    let first = attach(&mut world, 0, None);
    world.run_for(1_000);
    slow_down(&mut world, 10_000_000);
    world.command(0, "rw.detach", "channel:c.0", json!({}), What::Other("rw.detached"));
    // A session is looked at in some turn.
    assert!(world.run_until(10_000, |world| world.seats[0].counters.sessions.get() == 1));
    assert_ne!(attach(&mut world, 1, None), first);
    // Writes under way are done up to a random place.
    (0..chance).for_each(|_| _ = world.random.next());
    world.crash(Crash::Kill);
    slow_down(&mut world, 300);
    assert!(world.run_until(20_000, all_in));
    let recovered = count(&world, 0, "recovered");
    attach(&mut world, 0, Some((first, 0)));
    let is_known = count(&world, 0, "recovered") > recovered;
    finish(&mut world);
    is_known
}

/// Messages come before the first file is there, more than the files that there may be have room for.
#[test]
fn a_log_takes_no_more_before_its_first_file_than_its_share() {
    let mut world = stage_on_disk(1, 2_000_000, &["ana", "bob"], |settings| {
        unlimited(settings);
        settings.log.max_bytes = 4 * CHUNK_BYTES as u64;
        settings.session.history_messages = 1_000_000;
    });
    assert_eq!(world.seats[0].counters.log_segments.get(), 0, "the first file is there");
    (0..100).for_each(|_| world.message_to(1, "s.0", &Value::Null, 60_000, false));
    world.run_for(500);
    slow_down(&mut world, 100);
    assert!(world.run_until(20_000, all_in), "{:?}", world.clients[1].waiting().len());
    assert!(count(&world, 1, "limit.disk") > 0);
    world.run_for(5_000);
    finish(&mut world);
}

/// A post makes its channel while more than a little waits for the disk: what it was answered is true of a start, too.
#[test]
fn a_channel_that_a_post_makes_is_named_to_a_log_that_is_behind() {
    for durability in [Durability::Memory, Durability::Written, Durability::Synced] {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
            unlimited(settings);
            settings.log.durability = durability;
        });
        slow_down(&mut world, 10_000_000);
        (0..200).for_each(|_| world.message_to(1, "s.0", &Value::Null, 60_000, false));
        world.run_for(1_900);
        world.message_to(0, "s.0", &json!("channel:c.0"), 40, false);
        world.run_for(20);
        assert_eq!(world.appended("channel:c.0"), 1, "{durability:?}: it was not taken");
        slow_down(&mut world, 100);
        assert!(world.run_until(30_000, all_in), "{durability:?}: {:?}", world.clients[0].waiting());
        // The write under way is over.
        world.run_for(12_000);
        world.crash(Crash::Kill);
        assert_eq!(world.bounds("channel:c.0").1, 1, "{durability:?}");
        assert!(world.oracle.violations.is_empty(), "{durability:?}: {:?}", world.oracle.violations);
    }
}

/// A log that takes nothing at all: it is bounded what waits for it, and nothing that was answered is lost.
#[test]
fn while_the_log_takes_nothing_what_waits_for_it_is_bounded() {
    for durability in [Durability::Written, Durability::Memory] {
        let mut world = stage_on_disk(1, 100, &["ana", "bob"], |settings| {
            unlimited(settings);
            settings.log.durability = durability;
            settings.limits.connection_lifetime_s = 0;
        });
        slow_down(&mut world, 360_000_000_000);
        let memory = |world: &World| world.seats[0].core.memory_held();
        let before = memory(&world);
        for _ in 0..120 {
            for round in 0..25 {
                let room = format!("{round}-{}", "r".repeat(120));
                world.command(0, "rw.join", "s.0", json!({"room": room}), What::Other("rw.joined"));
                world.command(0, "rw.leave", "s.0", json!({"room": room}), What::Other("rw.left"));
                world.command(0, "rw.presence.set", "s.0", json!({"data": "x".repeat(1_000)}), What::Other("rw.presence.ok"));
                world.command(0, "rw.received", "s.0", json!({"seq": round}), What::Silent);
            }
            (0..300).for_each(|_| _ = world.step());
        }
        let held = memory(&world) - before;
        assert!(held < 24 << 20, "{durability:?}: {held} bytes wait");
        assert!(world.oracle.violations.is_empty(), "{:?}", world.oracle.violations);
    }
}

/// A client that came before there was room is known to the log with its first accepted message: after a start, too.
#[test]
fn who_speaks_to_a_log_that_did_not_know_of_it_is_known_from_then_on() {
    let mut world = stage_on_disk(1, 2_000_000, &["ana"], |settings| settings.log.durability = Durability::Memory);
    let asked = vec!["den".to_owned()];
    world.seats[0].engine.disk.faults.full = 100;
    world.run_for(2_500);
    slow_down(&mut world, 100);
    world.command(0, "rw.attach", "s.1", json!({"rooms": ["den"]}), What::Attach { asked, resume: None });
    assert!(world.run_until(1_000, |world| count(world, 0, "rw.attached") == 1));
    world.message_to(0, "s.1", &Value::Null, 10, false);
    world.run_for(10);
    world.seats[0].engine.disk.faults.full = 0;
    assert!(world.run_until(10_000, all_in));
    world.run_for(3_000);
    world.crash(Crash::Kill);
    let known = world.seats[0].core.members_known();
    assert_eq!(known[&("s.1".to_owned(), "ana".to_owned())].rooms, ["den"]);
}
