//! A log whose disk, or clock, does wrong: what the gateway does then is in docs/OPERATING.md, "When something goes wrong". Whatever it
//! is, what was acknowledged is there after a restart, once and in order.

use super::client::What;
use super::crash::entries;
use super::disk::{Crash, DiskFaults};
use super::scenarios::{all_in, count, fill, finish, say, stage_on_disk};
use super::world::World;
use crate::config::Durability;
use crate::limits::CHUNK_BYTES;
use crate::shard::counters::DropReason;
use serde_json::json;

fn set_faults(world: &mut World, faults: DiskFaults) {
    world.seats.iter_mut().for_each(|seat| seat.engine.disk.faults = faults);
}

/// Three are acknowledged; then the disk does wrong, and three more are said twice over.
fn strike(durability: Durability, faults: DiskFaults) -> World {
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], |settings| settings.log.durability = durability);
    say(&mut world, 0, 3);
    assert!(world.run_until(5_000, all_in));
    assert_eq!(count(&world, 0, "rw.ack"), 3);
    set_faults(&mut world, faults);
    for _ in 0..2 {
        say(&mut world, 0, 3);
        world.run_for(2_000);
    }
    world
}

/// Restarts on a mended disk: acknowledged messages are there, and the others are sent again.
fn restart(mut world: World, crash: Crash) {
    set_faults(&mut world, DiskFaults::default());
    world.crash(crash);
    assert!(world.run_until(20_000, all_in), "{:?}", world.clients[0].waiting());
    say(&mut world, 0, 1);
    assert!(world.run_until(5_000, all_in));
    world.run_for(1_000);
    finish(&mut world);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_as_synced_and_nothing_is_lost() {
    for crash in [Crash::Kill, Crash::PowerCut] {
        let world = strike(Durability::Synced, DiskFaults { sync_errors: 100, ..DiskFaults::default() });
        assert_eq!(count(&world, 0, "rw.ack"), 3, "what the failed sync covered is not believed");
        assert!(count(&world, 0, "limit.disk") >= 3, "what comes after it is refused");
        assert_eq!((world.seats[0].counters.log_failed.get(), world.clients[1].held.get("s.0")), (1, Some(&3)));
        restart(world, crash);
    }
}

#[test]
fn after_a_failed_sync_what_need_not_be_synced_goes_on() {
    let world = strike(Durability::Written, DiskFaults { sync_errors: 100, ..DiskFaults::default() });
    assert_eq!((count(&world, 0, "rw.ack"), count(&world, 0, "limit.disk")), (9, 0));
    assert_eq!(world.seats[0].counters.log_failed.get(), 1);
    restart(world, Crash::Kill);
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_and_nothing_is_lost() {
    for durability in [Durability::Written, Durability::Synced] {
        let world = strike(durability, DiskFaults { write_errors: 100, ..DiskFaults::default() });
        assert_eq!(count(&world, 0, "rw.ack"), 3, "{durability:?}");
        assert!(count(&world, 0, "limit.disk") >= 3, "{durability:?}");
        assert_eq!((world.seats[0].counters.log_failed.get(), world.clients[1].held.get("s.0")), (1, Some(&3)));
        restart(world, Crash::Kill);
    }
}

#[test]
fn a_disk_that_was_full_is_written_again_without_a_restart() {
    for durability in [Durability::Written, Durability::Synced] {
        let mut world = strike(durability, DiskFaults { full: 100, ..DiskFaults::default() });
        assert_eq!((count(&world, 0, "rw.ack"), world.seats[0].counters.log_failed.get()), (3, 0), "{durability:?}");
        set_faults(&mut world, DiskFaults::default());
        assert!(world.run_until(5_000, all_in));
        world.run_for(1_000);
        assert_eq!(world.clients[1].held.get("s.0"), Some(&count(&world, 0, "rw.ack")), "{durability:?}");
        finish(&mut world);
        restart(world, Crash::Kill);
    }
}

const RETENTION_MS: u64 = 30_000;

/// Bob is away, and two messages for him are acknowledged.
fn awaited(wall_shift_ms: u64) -> World {
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], |settings| settings.log.retention_age_s = RETENTION_MS / 1000);
    world.wall_shift_ms = wall_shift_ms;
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 10_000_000);
    say(&mut world, 0, 2);
    assert!(world.run_until(1_000, |world| count(world, 0, "rw.ack") == 2));
    world
}

fn come_back(world: &mut World) {
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 0);
    assert!(world.run_until(10_000, all_in));
    world.run_for(1_000);
}

#[test]
fn a_clock_that_is_set_forward_drops_nothing_over_a_restart_too() {
    let mut world = awaited(0);
    world.wall_shift_ms += RETENTION_MS + 10_000;
    world.run_for(5_000);
    world.crash(Crash::Kill);
    world.run_for(5_000);
    assert_eq!(world.bounds("s.0"), (1, 2));
    come_back(&mut world);
    assert_eq!((world.clients[1].held.get("s.0"), count(&world, 1, "rw.gap")), (Some(&2), 0));
    say(&mut world, 0, 1);
    assert!(world.run_until(5_000, all_in));
    world.run_for(1_000);
    finish(&mut world);
}

#[test]
fn a_clock_that_is_set_back_drops_nothing_and_the_order_goes_on() {
    let mut world = awaited(3_600_000);
    world.wall_shift_ms = 0;
    say(&mut world, 0, 1);
    world.run_for(2_000);
    world.crash(Crash::Kill);
    come_back(&mut world);
    assert_eq!((world.clients[1].held.get("s.0"), count(&world, 1, "rw.gap")), (Some(&3), 0));
    say(&mut world, 0, 1);
    assert!(world.run_until(5_000, all_in));
    world.run_for(1_000);
    assert_eq!(world.bounds("s.0"), (1, 4));
    finish(&mut world);
}

/// Messages of which some have left memory, that bob has not seen. Their disk does not read these.
fn unread(shards: usize, numbers: &[u64]) -> World {
    let mut world = stage_on_disk(shards, 300, &["ana", "bob"], |_| {});
    say(&mut world, 0, 1);
    assert!(world.run_until(5_000, all_in));
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 10_000_000);
    fill(&mut world, 60);
    assert!(world.run_until(5_000, |world| world.clients[0].waiting().is_empty()));
    let home = world.home("s.0");
    let places = entries(&world.seats[home])["s.0"].clone();
    for number in numbers {
        let (segment, offset) = (places[number] / CHUNK_BYTES as u64, usize::try_from(places[number]).unwrap() % CHUNK_BYTES);
        world.seats[home].engine.disk.bad.push((segment, offset + 30_000..offset + 30_512));
        world.oracle.unreadable.insert(("s.0".to_owned(), *number));
    }
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 0);
    world
}

/// The numbers of a page of history from the beginning, as bob gets it.
fn look_back(world: &mut World) {
    let before = count(world, 1, "rw.history_end");
    world.command(1, "rw.history", "s.0", json!({"after": 0, "limit": 15}), What::Other("rw.history_end"));
    assert!(world.run_until(60_000, all_in));
    assert_eq!(count(world, 1, "rw.history_end"), before + 1);
}

#[test]
fn what_the_disk_never_reads_is_a_gap_and_all_around_it_is_read() {
    for shards in [1, 2] {
        let mut world = unread(shards, &[5, 9, 10]);
        assert!(world.run_until(60_000, all_in), "{shards}");
        world.run_for(1_000);
        assert_eq!((world.clients[1].held.get("s.0"), count(&world, 1, "rw.gap")), (Some(&61), 3), "{shards}");
        assert_eq!(world.clients[1].closes.get(&4508), None, "{shards}");
        let home = world.home("s.0");
        let lost = |world: &World| world.seats[home].counters.dropped_count(DropReason::LogUnreadable);
        assert_eq!(lost(&world), 3, "{shards}");
        // A later reader does not wait for a place that has been given up.
        let (reads, began_ns) = (world.seats[home].counters.log_reads.get(), world.now_ns);
        look_back(&mut world);
        assert!(world.now_ns - began_ns < 1_000_000_000 && lost(&world) == 6, "{shards}");
        assert!(world.seats[home].counters.log_reads.get() - reads < 30, "{shards}");
        // Nothing was forgotten: a disk that reads again gives all.
        world.seats[home].engine.disk.bad.clear();
        world.oracle.unreadable.clear();
        world.run_for(61_000);
        look_back(&mut world);
        assert_eq!(lost(&world), 6, "{shards}");
        finish(&mut world);
    }
}

#[test]
fn what_the_disk_does_not_read_for_seconds_is_waited_for() {
    for shards in [1, 2] {
        let mut world = unread(shards, &[5, 9, 10]);
        world.run_for(3_000);
        assert_ne!(world.clients[1].held.get("s.0"), Some(&61), "{shards}");
        let home = world.home("s.0");
        world.seats[home].engine.disk.bad.clear();
        world.oracle.unreadable.clear();
        assert!(world.run_until(60_000, all_in), "{shards}");
        world.run_for(1_000);
        assert_eq!((world.clients[1].held.get("s.0"), count(&world, 1, "rw.gap")), (Some(&61), 0), "{shards}");
        assert_eq!(world.clients[1].closes.get(&4508), None, "{shards}");
        finish(&mut world);
    }
}

#[test]
fn a_disk_that_reads_nothing_at_all_is_a_gap_up_to_what_is_in_memory() {
    for shards in [1, 2] {
        let mut world = unread(shards, &[]);
        world.oracle.unreadable.extend((2..=61).map(|seq| ("s.0".to_owned(), seq)));
        set_faults(&mut world, DiskFaults { read_errors: 100, ..DiskFaults::default() });
        let came_before = world.clients[1].held.get("s.0").copied().unwrap_or(0);
        assert!(world.run_until(120_000, |world| all_in(world) && world.clients[1].held.get("s.0") == Some(&61)), "{shards}");
        assert_eq!((came_before, world.clients[1].closes.get(&4508)), (1, None), "{shards}");
        assert!(count(&world, 1, "rw.gap") > 0, "{shards}");
        set_faults(&mut world, DiskFaults::default());
        world.oracle.unreadable.clear();
        world.run_for(61_000);
        look_back(&mut world);
        finish(&mut world);
    }
}

/// A file without an index: only the shard's memory says which addresses the record must have.
#[test]
fn a_list_of_addresses_that_goes_bad_on_disk_is_a_gap_for_whom_it_named() {
    for shards in [1, 2] {
        let mut world =
            stage_on_disk(shards, 300, &["ana", "bob"], |settings| settings.log.segment_bytes = 8 * CHUNK_BYTES as u64);
        world.end_link(1, true);
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 1_000_000);
        world.message_to(0, "s.0", &json!(["room:dev", "role:agent"]), 60_000, false);
        fill(&mut world, 60);
        let home = world.home("s.0");
        let at = entries(&world.seats[home])["s.0"][&1];
        world.seats[home].engine.disk.spoil(at, true);
        world.oracle.unreadable.insert(("s.0".to_owned(), 1));
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 0);
        assert!(world.run_until(60_000, all_in), "{shards}");
        world.run_for(1_000);
        assert_eq!((world.clients[1].held.get("s.0"), count(&world, 1, "rw.gap")), (Some(&61), 1), "{shards}");
        finish(&mut world);
    }
}
