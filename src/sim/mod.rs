//! The simulator: the third engine. Real shards, clients and a network of queues, one thread, virtual time, one seed.
//!
//! May import everything; nothing imports it but `states`, which takes its chance and its wire. Invariant: the same seed gives the same trace, twice. `oracle` and `wire` share no code
//! with the gateway.
//!
//! `RINGWAY_SEED=0x.. cargo test --profile sim --lib sim::seed -- --nocapture` runs one seed; where it fails, its world is made smaller
//! while it still fails, and what concerns the reader that misses something is told in order (`shrink`, `story`).
//! `RINGWAY_SIM_SECONDS=N` runs new seeds for so long, `RINGWAY_SIM_SEEDS=N` so many, on all cores, and prints what they reached.

mod actions;
mod answers;
mod bounds;
mod client;
mod compaction;
mod cover;
mod crash;
mod crashes;
mod disk;
mod disk_faults;
mod door;
mod draw;
mod ends;
mod facts;
mod histories;
mod mallory;
mod net;
mod oracle;
mod pipe;
mod presence;
mod purges;
pub(crate) mod random;
mod refreshes;
mod refusals;
mod reloads;
mod rest;
mod room;
mod runs;
mod scenarios;
mod seen;
mod shrink;
mod story;
mod tokens;
mod visitors;
pub(crate) mod wire;
mod world;

use crate::shard::inbound::contained::faults;
use crate::shard::port::PortMessage;
use client::Sabotage;
use cover::Cover;
use disk::Crash;
use draw::Draw;
use random::Random;
use shrink::{Event, Trim};
use story::{Story, Subjects};
use world::World;

/// How long clients are busy.
const ACTIVE_MS: u64 = 2_000;

/// Which world, and what of it happens.
#[derive(Clone, Debug)]
struct Spec {
    seed: u64,
    draw: Draw,
    active_ms: u64,
    sabotage: Option<Sabotage>,
    /// Parts of it that are left out.
    trim: Trim,
    /// The subjects of the timeline, if one is kept.
    about: Option<Subjects>,
}

impl Spec {
    fn new(seed: u64, draw: Draw) -> Self {
        Self { seed, draw, active_ms: ACTIVE_MS, sabotage: None, trim: Trim::default(), about: None }
    }
}

/// The result of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    violations: Vec<String>,
    delivered: u64,
    acked: u64,
    kills: u64,
    power_cuts: u64,
    lossy_cuts: u64,
    farewells: u64,
    steps: u64,
    /// Duration in the world's own time.
    lasted_ms: u64,
    cover: Cover,
    timeline: Vec<String>,
    /// Ids of the clients in the cast, and how many were drawn.
    clients: Vec<String>,
    cast: usize,
    plan: String,
}

fn run(spec: &Spec) -> Outcome {
    let mut random = Random::new(spec.seed);
    let mut plan = draw::plan(&mut random, spec.draw);
    spec.trim.simplify(&mut plan);
    let mut world = World::new(random.next() ^ spec.trim.variation, &plan);
    world.sabotage = spec.sabotage;
    world.story = spec.about.clone().map(Story::new);
    let cast = draw::populate(&mut world, &mut random, spec.draw, &spec.trim);
    let step_ms = spec.active_ms / 4;
    let drains = random.percent(15) && spec.sabotage.is_none() && spec.trim.allows(Event::Drain);
    let ends = plan.settings.log.dir.is_some() && random.percent(60) && spec.trim.allows(Event::Crash);
    let purges_percent = random.pick(&[0, 0, 0, 30, 70]);
    for quarter in 0..4 {
        let left_ms = spec.trim.active_ms_max.saturating_sub(quarter * step_ms);
        if left_ms == 0 {
            break;
        }
        world.run_for(step_ms.min(left_ms));
        if left_ms < step_ms {
            break;
        }
        if random.percent(purges_percent) {
            let session = random.pick(&["s.0", "s.0", "s.1", "s.2", "channel:c.0"]);
            // The process may end in the middle of it.
            let wait_ms = random.pick(&[0, 2, 10, 50]);
            if spec.trim.allows(Event::Purge) {
                world.purge(session);
                world.run_for(wait_ms);
            }
        }
        if world.features.asked {
            rest::ask(&mut world, &mut random);
        }
        if ends && random.percent(50) {
            match random.below(8) {
                0 if spec.sabotage.is_none() => world.stop_and_start(),
                1..=4 => world.crash(Crash::PowerCut),
                _ => world.crash(Crash::Kill),
            }
        }
        happen(&mut world, &mut random, quarter, spec);
    }
    let end = if world.features.odd && random.percent(20) {
        End::Stop
    } else if drains {
        End::Drain
    } else {
        End::Rest
    };
    Outcome { cast, plan: format!("{:?} {:?} {:?}", plan.features, plan.faults, plan.disk), ..conclude(world, &mut random, end) }
}

/// How a world's time of chance ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Faults stop, and all comes to rest.
    Rest,
    /// The node is drained.
    Drain,
    /// The shards are stopped one after the other, whatever is under way.
    Stop,
}

/// Time leaps, settings are read again, tokens are revoked.
fn happen(world: &mut World, random: &mut Random, quarter: u64, spec: &Spec) {
    match random.below(6) {
        0 => {
            let leap_ms = random.pick(&[0, 5_000, 40_000]);
            if spec.trim.allows(Event::WallLeap) {
                world.tell_story(|| format!("the wall clock leaps {leap_ms} ms ahead"));
                world.wall_shift_ms += leap_ms;
            }
        }
        1 if spec.trim.allows(Event::Reload) => {
            world.tell_story(|| "a reload".to_owned());
            let snapshot = world.snapshot.clone();
            (0..world.seats.len()).for_each(|shard| {
                world.tell(shard, PortMessage::Configure { snapshot: snapshot.clone(), reply: None });
            });
        }
        2 if quarter == 1 && spec.trim.allows(Event::Standstill) => {
            world.tell_story(|| "everything stands still for 30 s".to_owned());
            world.now_ns += 30_000_000_000;
        }
        3 | 4 if spec.trim.allows(Event::Revoke) => rest::revoke(world, random),
        _ => {}
    }
}

/// Brings a world to its end: faults stop, it comes to rest, is drained or stopped, and must satisfy what holds then.
fn conclude(mut world: World, random: &mut Random, end: End) -> Outcome {
    let (kills, power_cuts) = (world.kills, world.power_cuts);
    world.tell_story(|| "faults end, and all comes to rest".to_owned());
    world.mend_disks();
    if world.features.rots && end == End::Rest {
        rest::rot(&mut world, random);
    }
    match end {
        End::Rest => rest::settle(&mut world),
        End::Drain => rest::drain(&mut world, random),
        End::Stop => rest::stop_one_by_one(&mut world, random),
    }
    if world.oracle.violations.is_empty() {
        world.oracle.finish();
    }
    if world.oracle.violations.is_empty() {
        rest::shut_down(&mut world);
    }
    if faults::take_unplanned() > 0 {
        world.oracle.wrong("a panic in reading one connection's bytes closed it: see standard error".to_owned());
    }
    world.count_cover();
    Outcome {
        trace: world.trace,
        steps: world.steps,
        lasted_ms: world.now_ns / 1_000_000,
        cover: std::mem::take(&mut world.cover),
        timeline: world.end_story(),
        clients: world.clients.iter().map(|client| client.id.clone()).collect(),
        cast: world.clients.len(),
        plan: String::new(),
        violations: std::mem::take(&mut world.oracle.violations),
        delivered: world.oracle.delivered,
        acked: world.oracle.acked,
        kills,
        power_cuts,
        lossy_cuts: world.lossy_cuts,
        farewells: world.farewells,
    }
}

/// Runs a world; a panic is among what is wrong with it.
fn judge(spec: &Spec) -> Outcome {
    guard(|| run(spec))
}

fn guard(run: impl FnOnce() -> Outcome) -> Outcome {
    let panicked = |cause: Box<dyn std::any::Any + Send>| {
        let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
        Outcome { violations: vec![format!("panic: {}", text.unwrap_or("no text"))], ..Outcome::default() }
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(panicked)
}

/// Named by hand: one seed, or new ones; see `runs`.
#[test]
fn seed() {
    runs::by_hand();
}
