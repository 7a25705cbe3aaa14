//! The simulator: the third engine. Real shards, clients and a network of queues, one thread, virtual time, one seed.
//!
//! May import everything; nothing imports it. Invariant: the same seed gives the same trace, twice. `oracle` and `wire` share no code
//! with the gateway.
//!
//! A failing seed prints the line that runs it alone: `RINGWAY_SEED=0x.. cargo test --profile sim --lib sim::seed -- --nocapture`.
//! `RINGWAY_SIM_SECONDS=N cargo test --profile sim --lib sim::seed -- --nocapture` runs new seeds for so long.

mod actions;
mod answers;
mod bounds;
mod client;
mod compaction;
mod crash;
mod crashes;
mod disk;
mod disk_faults;
mod net;
mod oracle;
mod pipe;
mod purges;
mod random;
mod rest;
mod scenarios;
mod seen;
mod visitors;
mod wire;
mod world;

use crate::config::{Durability, Server, Settings};
use crate::limits::CHUNK_BYTES;
use crate::shard::port::PortMessage;
use client::{Casting, ROLES, Sabotage};
use disk::{Crash, DiskFaults};
use net::Faults;
use random::Random;
use visitors::{Errand, Visitor};
use world::{Features, Plan, World};

/// Seeds of every test run.
const SEEDS: u64 = 200;
/// Seeds that found something once.
const FOUND: [u64; 5] =
    [0x18ec_b712_c1a6_87c9, 0x18ec_b712_c1a6_a081, 0x18ec_b712_c1a6_ac85, 0x18ec_b712_c1a6_b053, 0x18ec_b712_c1a6_841a];
/// How long clients are busy.
const ACTIVE_MS: u64 = 2_000;

/// Settings as an operator writes them, of whom proxies are trusted.
fn trust(settings: Settings, network: &str) -> Settings {
    let text = format!("[server]\ntrusted_proxies = [\"{network}\"]\n");
    let trusted_proxies = Settings::parse(&text, []).unwrap().server.trusted_proxies;
    Settings { server: Server { trusted_proxies, ..settings.server }, ..settings }
}

/// What a seed makes of the world.
fn plan(random: &mut Random) -> Plan {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.limits.messages_per_second = random.pick(&[0, 0, 0, 20]);
    settings.limits.messages_burst = 20;
    settings.limits.rate_abuse_ms = 0;
    settings.limits.connections_per_user = random.pick(&[0, 0, 0, 1, 2]);
    settings.limits.connections_per_ip = random.pick(&[0, 0, 0, 2, 3]);
    settings.limits.half_open_per_ip = 0;
    settings.limits.handshakes_per_ip_per_second = 0;
    settings.deflate.enabled = random.percent(30);
    settings.deflate.min_bytes = 64;
    settings.limits.handshakes_per_second = 0;
    settings.limits.reply_queue_bytes = random.pick(&[65_536, 65_536, 8_192]);
    settings.limits.max_attached_sessions = random.pick(&[64, 2]);
    settings.limits.stall_bytes_per_second = 16;
    settings.session.history_messages = random.pick(&[10_000, 10_000, 60, 12]);
    settings.session.presence_grace_ms = random.pick(&[15_000, 200]);
    settings.server.max_connections = random.pick(&[10_000, 10_000, 10]);
    let on_disk = random.percent(45);
    if on_disk {
        let levels = [Durability::Written, Durability::Written, Durability::Synced, Durability::Synced, Durability::Memory];
        put_on_disk(&mut settings, random, &levels);
    }
    let features = Features {
        proxied: random.percent(20),
        tls: random.percent(8),
        addresses: if settings.limits.connections_per_ip > 0 { 3 } else { 0 },
        crowd: random.percent(4),
        long: random.percent(if on_disk { 30 } else { 10 }),
    };
    if features.proxied {
        settings.server.proxy_protocol = true;
        settings = trust(settings, "172.16.0.0/12");
    }
    if features.crowd {
        settings.server.max_connections = 10_000;
    }
    if features.long {
        settings.limits.bytes_per_second = 0;
    }
    let faults = Faults {
        short_sends: random.pick(&[0, 5, 40]),
        spurious: random.pick(&[0, 0, 20]),
        delay_us: random.pick(&[0, 500, 5_000]),
        pauses: random.pick(&[0, 0, 2]),
    };
    let percent = if random.percent(25) { 3 } else { 0 };
    let disk = DiskFaults {
        delay_us: random.pick(&[0, 300, 3_000, 30_000]),
        full: random.pick(&[0, percent, 10 * percent]),
        write_errors: random.pick(&[0, 0, percent / 2]),
        sync_errors: random.pick(&[0, 0, percent / 2]),
        read_errors: random.pick(&[0, percent]),
        short_reads: random.pick(&[0, percent]),
        flips: 0,
        index_flips: random.pick(&[0, 0, percent]),
        lies: 0,
    };
    Plan {
        features,
        shards: usize::try_from(random.between(1, 3)).unwrap(),
        lane_depth: random.pick(&[2, 8, 64, 1024]),
        faults,
        disk,
        settings,
    }
}

/// The log is on disk, at one of these levels.
fn put_on_disk(settings: &mut Settings, random: &mut Random, levels: &[Durability]) {
    settings.log.dir = Some("/of/the/simulation".into());
    settings.log.durability = random.pick(levels);
    settings.log.early_delivery = random.percent(20);
    settings.log.segment_bytes = random.pick(&[1, 1, 2]) * CHUNK_BYTES as u64;
}

fn populate(world: &mut World, random: &mut Random) {
    if world.features.crowd {
        crowd(world, random);
    }
    let errands = [(20, Errand::Echo), (if world.features.proxied { 60 } else { 0 }, Errand::BrokenProxyHeader)];
    for (percent, errand) in errands {
        if random.percent(percent) {
            world.visitors.push(Visitor::new(errand, random.below(500_000_000)));
        }
    }
    for user in 0..random.between(2, 4) {
        for tab in 0..random.between(1, 2) {
            let roles: Vec<&str> = ROLES.iter().copied().filter(|_| random.percent(50)).collect();
            let home = random.pick(&["s.0", "s.1", "s.2", "s.0", "channel:c.0"]);
            let sub = format!("u{user}");
            let tab = if tab == 0 { String::new() } else { format!("t{tab}") };
            world.cast(&Casting {
                sub: &sub,
                tab: &tab,
                roles: &roles,
                home,
                echo: random.percent(20),
                acks: random.percent(90),
                hostile: false,
                slow: random.percent(25),
            });
        }
    }
    if random.percent(40) {
        let casting =
            Casting { sub: "eve", tab: "", roles: &[], home: "s.0", echo: false, acks: true, hostile: true, slow: false };
        world.cast(&casting);
    }
}

/// Enough clients for a stream's frames to be gathered for all of them.
fn crowd(world: &mut World, random: &mut Random) {
    for number in 0..random.between(10, 16) {
        let sub = format!("crowd{number}");
        let roles = &ROLES[..usize::from(random.percent(20))];
        // Those from elsewhere read `s.0` through a mirror.
        let home = random.pick(&["s.0", "s.0", "s.1"]);
        let (echo, slow) = (random.percent(10), random.percent(10));
        world.cast(&Casting { sub: &sub, tab: "", roles, home, echo, acks: true, hostile: false, slow });
    }
}

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    violations: Vec<String>,
    delivered: u64,
    acked: u64,
    kills: u64,
    power_cuts: u64,
    lossy_cuts: u64,
}

fn run(seed: u64, active_ms: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut random = Random::new(seed);
    let plan = plan(&mut random);
    let mut world = World::new(random.next(), &plan);
    world.sabotage = sabotage;
    populate(&mut world, &mut random);
    let step_ms = active_ms / 4;
    let drains = random.percent(15) && sabotage.is_none();
    let ends = plan.settings.log.dir.is_some() && random.percent(60);
    let purges_percent = random.pick(&[0, 0, 0, 30, 70]);
    for quarter in 0..4 {
        world.run_for(step_ms);
        if random.percent(purges_percent) {
            let session = random.pick(&["s.0", "s.0", "s.1", "s.2", "channel:c.0"]);
            world.purge(session);
            // The process may end in the middle of it.
            world.run_for(random.pick(&[0, 2, 10, 50]));
        }
        if ends && random.percent(50) {
            match random.below(8) {
                0 if sabotage.is_none() => world.stop_and_start(),
                1..=4 => world.crash(Crash::PowerCut),
                _ => world.crash(Crash::Kill),
            }
        }
        match random.below(6) {
            0 => world.wall_shift_ms += random.pick(&[0, 5_000, 40_000]),
            1 => {
                let snapshot = world.snapshot.clone();
                (0..plan.shards).for_each(|shard| {
                    world.tell(shard, PortMessage::Configure { snapshot: snapshot.clone(), reply: None });
                });
            }
            2 if quarter == 1 => world.now_ns += 30_000_000_000,
            3 | 4 => rest::revoke(&mut world, &mut random),
            _ => {}
        }
    }
    conclude(world, &mut random, drains)
}

/// What a world came to: faults stop, it comes to rest or is drained, and must hold what it holds then.
fn conclude(mut world: World, random: &mut Random, drains: bool) -> Outcome {
    let busy = world.steps;
    let (kills, power_cuts) = (world.kills, world.power_cuts);
    world.mend_disks();
    if drains {
        rest::drain(&mut world, random);
    } else {
        rest::settle(&mut world);
    }
    if std::env::var("RINGWAY_SEED").is_ok() {
        eprintln!("{busy} steps, {} to rest, {} ms of its time", world.steps - busy, world.now_ns / 1_000_000);
    }
    if world.oracle.violations.is_empty() {
        world.oracle.finish();
    }
    if world.oracle.violations.is_empty() {
        rest::shut_down(&mut world);
    }
    Outcome {
        trace: world.trace,
        violations: std::mem::take(&mut world.oracle.violations),
        delivered: world.oracle.delivered,
        acked: world.oracle.acked,
        kills,
        power_cuts,
        lossy_cuts: world.lossy_cuts,
    }
}

/// What a run came to, a panic included in what is wrong with it.
fn judge(run: impl FnOnce() -> Outcome + std::panic::UnwindSafe) -> Outcome {
    let panicked = |_| Outcome { violations: vec!["panic".to_owned()], ..Outcome::default() };
    std::panic::catch_unwind(run).unwrap_or_else(panicked)
}

fn check(seed: u64) -> Outcome {
    let outcome = judge(|| run(seed, ACTIVE_MS, None));
    complain(seed, &outcome);
    outcome
}

fn complain(seed: u64, outcome: &Outcome) {
    assert!(
        outcome.violations.is_empty(),
        "seed {seed:#x}: {:#?}\nRINGWAY_SEED={seed:#x} cargo test --profile sim --lib sim::seed -- --nocapture",
        outcome.violations
    );
}

#[test]
fn seed() {
    if let Ok(text) = std::env::var("RINGWAY_SEED") {
        let digits = text.trim_start_matches("0x");
        let seed = u64::from_str_radix(digits, if digits.len() < text.len() { 16 } else { 10 }).unwrap();
        check(seed);
        return;
    }
    let Some(seconds) = std::env::var("RINGWAY_SIM_SECONDS").ok().and_then(|text| text.parse::<u64>().ok()) else { return };
    #[expect(clippy::disallowed_methods, reason = "how long to run is the caller's time, not the world's")]
    let (started, mut seed) = (std::time::Instant::now(), std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    let (mut seeds, mut delivered, mut failed) = (0, 0, 0);
    while started.elapsed().as_secs() < seconds {
        let outcome = std::panic::catch_unwind(|| check(seed));
        failed += u64::from(outcome.is_err());
        delivered += outcome.map_or(0, |outcome| outcome.delivered);
        seeds += 1;
        seed = seed.wrapping_add(1);
    }
    eprintln!("{seeds} seeds, {failed} failed, {delivered} messages delivered");
    assert_eq!(failed, 0);
}

#[test]
fn two_hundred_seeds() {
    let (mut delivered, mut acked) = (0, 0);
    let seeds: Vec<u64> = (0..SEEDS).chain(FOUND).collect();
    let outcomes: Vec<Outcome> = seeds.iter().map(|seed| judge(|| run(*seed, ACTIVE_MS, None))).collect();
    let failed: Vec<String> = seeds
        .iter()
        .zip(&outcomes)
        .filter_map(|(seed, outcome)| Some(format!("{seed:#x}: {}", outcome.violations.first()?)))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} seeds failed; run one with RINGWAY_SEED:\n{}",
        failed.len(),
        seeds.len(),
        failed.join("\n")
    );
    for outcome in outcomes {
        delivered += outcome.delivered;
        acked += outcome.acked;
    }
    assert!(delivered > 10 * SEEDS && acked > 10 * SEEDS, "{delivered} delivered, {acked} acknowledged: a world without life");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 42] {
        assert_eq!(run(seed, 1_500, None), run(seed, 1_500, None));
    }
}

#[test]
fn the_oracle_objects_to_a_planted_fault() {
    for sabotage in [Sabotage::Drop(40), Sabotage::Repeat(40), Sabotage::Change(40)] {
        let objected = (0..8).filter(|seed| !run(*seed, 1_500, Some(sabotage)).violations.is_empty()).count();
        assert!(objected >= 5, "{sabotage:?}: {objected} of 8");
    }
}
