//! Worlds whose process ends again and again, and the ends are counted: what was acknowledged is there after each, once and in order.

use super::disk::Crash;
use super::draw::{Draw, plan, populate, put_on_disk};
use super::random::Random;
use super::shrink::Trim;
use super::world::World;
use super::{End, Outcome, conclude, guard};
use crate::config::Durability;

/// Ends of one world's process. Few, so that many worlds are tried.
const ENDS: u64 = 8;
/// From one end to the next, at most: clients are back for a part of it.
const BETWEEN_MS: u64 = 700;

/// A world whose log is kept at a level, and whose process ends in one way. `lies`: the percentage of its syncs that are not done.
fn world_of_ends(seed: u64, durability: Durability, crash: Crash, lies: u64) -> Outcome {
    let mut random = Random::new(seed);
    let mut plan = plan(&mut random, Draw::First);
    put_on_disk(&mut plan.settings, &mut random, &[durability]);
    plan.disk.lies = lies;
    let mut world = World::new(random.next(), &plan);
    populate(&mut world, &mut random, Draw::First, &Trim::default());
    for _ in 0..ENDS {
        world.run_for(random.between(BETWEEN_MS / 3, BETWEEN_MS));
        world.crash(crash);
    }
    conclude(world, &mut random, End::Rest)
}

/// Runs worlds until their processes have ended so often.
fn until(wanted: u64, durability: Durability, crash: Crash) -> Outcome {
    let mut sum = Outcome::default();
    for seed in 0..wanted.div_ceil(ENDS) {
        let outcome = guard(move || world_of_ends(seed, durability, crash, 0));
        sum.violations.extend(outcome.violations.iter().map(|what| format!("world {seed}: {what}")));
        sum.kills += outcome.kills;
        sum.power_cuts += outcome.power_cuts;
        sum.lossy_cuts += outcome.lossy_cuts;
        sum.acked += outcome.acked;
        sum.delivered += outcome.delivered;
    }
    eprintln!(
        "{durability:?}: {} power cuts, {} of them took what was not synced, {} kills; {} acknowledged, {} delivered, {} wrong",
        sum.power_cuts,
        sum.lossy_cuts,
        sum.kills,
        sum.acked,
        sum.delivered,
        sum.violations.len()
    );
    assert_eq!(sum.violations, Vec::<String>::new());
    assert!(sum.acked > 10 * wanted && sum.delivered > sum.acked, "worlds without life");
    sum
}

#[test]
fn two_hundred_power_cuts_lose_repeat_and_reorder_nothing_synced() {
    let sum = until(200, Durability::Synced, Crash::PowerCut);
    assert!(sum.power_cuts >= 200, "{}", sum.power_cuts);
    // Power that goes while all is synced proves nothing.
    assert!(sum.lossy_cuts > sum.power_cuts / 4, "{} of {}", sum.lossy_cuts, sum.power_cuts);
}

#[test]
fn a_hundred_kills_lose_repeat_and_reorder_nothing_written() {
    let sum = until(100, Durability::Written, Crash::Kill);
    assert!(sum.kills >= 100, "{}", sum.kills);
}

#[test]
fn the_oracle_objects_to_a_disk_that_does_not_sync() {
    let objected = (0..6).filter(|seed| !world_of_ends(*seed, Durability::Synced, Crash::PowerCut, 100).violations.is_empty());
    assert!(objected.count() >= 4);
}
