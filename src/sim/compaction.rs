//! Files of the log that are mostly dead, beside a session that keeps a few old messages in each.

use super::client::{Casting, What};
use super::crash::entries;
use super::disk::{Crash, DiskFaults};
use super::net::Faults;
use super::world::{Features, Plan, World};
use crate::config::{Durability, Settings};
use crate::limits::CHUNK_BYTES;
use crate::shard::counters::DropReason;
use serde_json::{Value, json};

const AGE_MS: u64 = 3_600_000;

fn stage(durability: Durability) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.log.dir = Some("/of/the/simulation".into());
    settings.log.segment_bytes = CHUNK_BYTES as u64;
    settings.log.durability = durability;
    settings.log.retention_age_s = AGE_MS / 1000;
    settings.session.history_messages = 20;
    settings.session.dedupe_ms = 1_000;
    settings.limits.bytes_per_second = 0;
    let (features, disk) = (Features::default(), DiskFaults { delay_us: 100, ..DiskFaults::default() });
    let mut world = World::new(7, &Plan { features, shards: 1, lane_depth: 8, faults: Faults::NONE, disk, settings });
    world.settling = true;
    for (sub, home) in [("ana", "s.0"), ("bob", "s.keep")] {
        world.cast(&Casting { sub, tab: "", roles: &["agent"], home, echo: false, acks: true, hostile: false, slow: false });
    }
    assert!(world.run_until(10_000, all_in));
    world
}

fn all_in(world: &World) -> bool {
    world.clients.iter().all(|client| client.is_open() && client.waiting().is_empty()) && world.caught_up()
}

/// So many files' worth of a session that keeps no more than one, with time between.
fn chatter(world: &mut World, files: usize) {
    for _ in 0..17 * files {
        world.message_to(0, "s.0", &Value::Null, 60_000, false);
        world.run_for(150);
    }
    world.run_for(3_000);
    assert!(world.run_until(10_000, all_in));
}

fn files(world: &World) -> u64 {
    world.seats[0].counters.log_segments.get()
}

fn keep_one(world: &mut World) {
    world.message_to(1, "s.keep", &Value::Null, 50, false);
    world.run_for(50);
}

/// All that the quiet session keeps is there, in its order.
fn look_back(world: &mut World, messages: u64) {
    let before = world.clients[1].answers.get("rw.history_end").copied().unwrap_or(0);
    world.command(1, "rw.history", "s.keep", json!({"after": 0, "limit": 50}), What::Other("rw.history_end"));
    assert!(world.run_until(10_000, all_in));
    assert_eq!(world.clients[1].answers.get("rw.history_end"), Some(&(before + 1)));
    assert_eq!(world.bounds("s.keep"), (1, messages));
}

fn finish(world: &mut World) {
    world.claim_heads();
    world.oracle.finish();
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

#[test]
fn a_session_that_keeps_a_little_in_each_file_holds_on_to_few_of_them() {
    for (durability, crash) in [(Durability::Written, Crash::Kill), (Durability::Synced, Crash::PowerCut)] {
        let mut world = stage(durability);
        for kept in 1..=12 {
            keep_one(&mut world);
            chatter(&mut world, 2);
            if kept == 6 {
                world.crash(crash);
                assert!(world.run_until(60_000, all_in));
            }
        }
        assert!(files(&world) <= 8, "{} files hold what fits into two", files(&world));
        assert!(world.seats[0].counters.log_compacted_bytes.get() > 0);
        look_back(&mut world, 12);
        world.crash(crash);
        assert!(world.run_until(60_000, all_in));
        look_back(&mut world, 12);
        finish(&mut world);
    }
}

#[test]
fn what_was_copied_is_as_old_as_it_was() {
    let mut world = stage(Durability::Written);
    keep_one(&mut world);
    world.run_for(AGE_MS / 2);
    chatter(&mut world, 12);
    let copied = world.seats[0].counters.log_compacted_bytes.get();
    assert!(copied > 0);
    assert_eq!(world.bounds("s.keep"), (1, 1));
    world.run_for(AGE_MS / 2 + AGE_MS / 64);
    chatter(&mut world, 1);
    assert_eq!(world.bounds("s.keep"), (2, 1), "its copy is younger than half of the age");
    finish(&mut world);
}

#[test]
fn a_crash_while_it_is_copied_neither_loses_nor_doubles() {
    for step_ms in 0..12 {
        let mut world = stage(Durability::Synced);
        for _ in 0..5 {
            keep_one(&mut world);
        }
        chatter(&mut world, 3);
        // Near where the first file is copied and let go.
        for _ in 0..40 {
            world.message_to(0, "s.0", &Value::Null, 60_000, false);
            world.run_for(100 + step_ms);
            if world.seats[0].counters.log_compacted_bytes.get() > 0 {
                break;
            }
        }
        world.run_for(step_ms * 40);
        world.crash(Crash::PowerCut);
        assert!(world.run_until(60_000, all_in));
        look_back(&mut world, 5);
        chatter(&mut world, 4);
        look_back(&mut world, 5);
        finish(&mut world);
    }
}

#[test]
fn what_the_disk_does_not_read_is_neither_copied_nor_dropped() {
    let mut world = stage(Durability::Written);
    keep_one(&mut world);
    let at = usize::try_from(entries(&world.seats[0])["s.keep"][&1]).unwrap();
    world.seats[0].engine.disk.bad.push((0, at..at + 1));
    world.oracle.unreadable.insert(("s.keep".to_owned(), 1));
    chatter(&mut world, 6);
    // A reader has given it up.
    look_back(&mut world, 1);
    assert_eq!(world.seats[0].counters.dropped_count(DropReason::LogUnreadable), 1);
    for _ in 0..3 {
        chatter(&mut world, 6);
        look_back(&mut world, 1);
    }
    assert_eq!(world.seats[0].counters.log_compacted_bytes.get(), 0);
    world.seats[0].engine.disk.bad.clear();
    world.oracle.unreadable.clear();
    world.run_for(61_000);
    chatter(&mut world, 6);
    assert!(world.seats[0].counters.log_compacted_bytes.get() > 0);
    look_back(&mut world, 1);
    finish(&mut world);
}
