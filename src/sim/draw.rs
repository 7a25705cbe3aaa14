//! Draws of a seed: the features of its world, its settings, its faults, and who is in it.

use super::client::{Casting, ROLES};
use super::disk::DiskFaults;
use super::mallory::MALLORY;
use super::net::Faults;
use super::random::Random;
use super::shrink::Trim;
use super::visitors::{Errand, Visitor};
use super::world::{Features, Plan, World};
use crate::config::{Durability, Limits, Server, Settings};
use crate::limits::CHUNK_BYTES;

/// Sets of worlds that a seed may name one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Worlds of the first seeds, so that those that failed once are the same today.
    First,
    /// All there is.
    Wide,
}

/// Settings as an operator writes them, of whom proxies are trusted.
pub fn trust(settings: Settings, network: &str) -> Settings {
    let text = format!("[server]\ntrusted_proxies = [\"{network}\"]\n");
    let trusted_proxies = Settings::parse(&text, []).unwrap().server.trusted_proxies;
    Settings { server: Server { trusted_proxies, ..settings.server }, ..settings }
}

/// Settings, features and faults of a seed's world.
pub fn plan(random: &mut Random, draw: Draw) -> Plan {
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
        ..Features::default()
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
        ..Faults::NONE
    };
    let percent = if random.percent(25) { 3 } else { 0 };
    let disk = DiskFaults {
        delay_us: random.pick(&[0, 300, 3_000, 30_000]),
        full: random.pick(&[0, percent, 10 * percent]),
        write_errors: random.pick(&[0, 0, percent / 2]),
        sync_errors: random.pick(&[0, 0, percent / 2]),
        read_errors: random.pick(&[0, percent]),
        short_reads: random.pick(&[0, percent]),
        index_flips: random.pick(&[0, 0, percent]),
        ..DiskFaults::default()
    };
    let shards = usize::try_from(random.between(1, 3)).unwrap();
    let mut plan = Plan { features, shards, lane_depth: random.pick(&[2, 8, 64, 1024]), faults, disk, settings };
    if draw == Draw::Wide {
        widen(&mut plan, random);
    }
    plan
}

/// The log is on disk, at one of these levels.
pub fn put_on_disk(settings: &mut Settings, random: &mut Random, levels: &[Durability]) {
    settings.log.dir = Some("/of/the/simulation".into());
    settings.log.durability = random.pick(levels);
    settings.log.early_delivery = random.percent(20);
    settings.log.segment_bytes = random.pick(&[1, 1, 2]) * CHUNK_BYTES as u64;
}

/// Settings that are seldom as they are here, each drawn by itself, so that rare pairs meet.
const SELDOM: [fn(&mut Plan, &mut Random); 27] = [
    |plan, _| (plan.settings.limits.rate_abuse_ms, plan.settings.limits.messages_per_second) = (200, 20),
    |plan, _| plan.settings.limits.bytes_per_second = 20_000,
    |plan, _| plan.settings.limits.handshakes_per_second = 5,
    |plan, _| {
        let limits = &mut plan.settings.limits;
        (limits.handshakes_per_ip_per_second, limits.handshakes_per_ip_burst) = (2, 3);
        plan.features.addresses = 3;
    },
    |plan, _| (plan.settings.limits.half_open_per_ip, plan.features.addresses) = (1, 3),
    |plan, _| (plan.settings.limits.handshake_ms, plan.settings.limits.tls_handshake_ms) = (100, 100),
    |plan, _| plan.settings.limits.half_open_percent = 1,
    |plan, _| plan.settings.limits.unfinished_message_ms = 100,
    |plan, _| plan.settings.limits.rooms_per_client = 1,
    |plan, _| plan.settings.limits.members_per_session = 3,
    |plan, _| (plan.settings.limits.presence_per_second, plan.settings.limits.presence_burst) = (100, 100),
    |plan, _| plan.settings.limits.sessions_per_shard = 2,
    |plan, _| plan.settings.limits.sessions_per_user = 1,
    |plan, _| plan.settings.limits.connection_lifetime_s = 1,
    |plan, _| plan.settings.limits.reply_queue_frames = 16,
    |plan, _| plan.settings.limits.shard_memory_bytes = 30_000,
    |plan, _| (plan.settings.limits.stall_ms, plan.settings.limits.stall_bytes_per_second) = (300, 100_000),
    |plan, _| plan.settings.limits.close_ms = 10,
    |plan, random| plan.settings.limits.backpressure_hold_ms = random.pick(&[0, 50]),
    |plan, _| (plan.settings.session.heartbeat_ms, plan.settings.session.heartbeat_timeout_ms) = (200, 100),
    |plan, _| plan.settings.log.retention_age_s = 1,
    |plan, random| plan.settings.log.retention_bytes = random.pick(&[1_024, 20_000]),
    |plan, _| plan.features.odd = true,
    |plan, _| plan.features.issuer = true,
    |plan, _| plan.features.asked = true,
    |plan, _| plan.faults.accept_failures = 20,
    |plan, _| plan.faults.full_tables = 5,
];

/// The same of worlds whose log is on disk.
const SELDOM_ON_DISK: [fn(&mut Plan); 5] = [
    |plan| plan.settings.log.max_bytes = (plan.shards as u64) * 3 * plan.settings.log.segment_bytes,
    |plan| {
        plan.disk.delay_us = 400_000;
        plan.features.long = true;
        plan.settings.limits.bytes_per_second = 0;
    },
    // So slow that what waits for it comes to its bound.
    |plan| {
        plan.disk.delay_us = 3_000_000;
        plan.features.long = true;
        (plan.settings.limits.bytes_per_second, plan.settings.limits.messages_per_second) = (0, 0);
    },
    |plan| plan.disk.reserve = 20,
    |plan| {
        plan.features.rots = true;
        plan.features.long = true;
        plan.settings.limits.bytes_per_second = 0;
    },
];

/// Draws from [`SELDOM`]: nothing of it in some worlds, a few of it in most, much in some.
fn widen(plan: &mut Plan, random: &mut Random) {
    let rarely = random.pick(&[0, 5, 5, 15, 30]);
    for change in SELDOM {
        if random.percent(rarely) {
            change(plan, random);
        }
    }
    for change in SELDOM_ON_DISK {
        if plan.settings.log.dir.is_some() && random.percent(rarely) {
            change(plan);
        }
    }
}

/// Limits that keep nobody out and close nobody for being slow.
pub fn roomy() -> Limits {
    Limits {
        messages_per_second: 0,
        rate_abuse_ms: 0,
        handshakes_per_second: 0,
        handshakes_per_ip_per_second: 0,
        half_open_per_ip: 0,
        connections_per_ip: 0,
        connections_per_user: 0,
        stall_bytes_per_second: 16,
        ..Limits::default()
    }
}

/// Clients that come into a world: all that are drawn but those that are left out.
struct Cast<'a> {
    world: &'a mut World,
    trim: &'a Trim,
    drawn: usize,
}

impl Cast<'_> {
    fn add(&mut self, casting: &Casting<'_>) {
        if !self.trim.without.contains(&self.drawn) {
            self.world.cast(casting);
        }
        self.drawn += 1;
    }
}

/// Visitors that come again at once, so that a shard has more ended connections than it remembers.
const STORM: u64 = 16;

/// Casts who is in a world; how many were drawn, those included that stay away.
pub fn populate(world: &mut World, random: &mut Random, draw: Draw, trim: &Trim) -> usize {
    let errands = [(20, Errand::Echo), (if world.features.proxied { 60 } else { 0 }, Errand::BrokenProxyHeader)];
    let is_crowd = world.features.crowd;
    let mut cast = Cast { world, trim, drawn: 0 };
    if is_crowd {
        crowd(&mut cast, random);
    }
    for (percent, errand) in errands {
        if random.percent(percent) {
            cast.world.visitors.push(Visitor::new(errand, random.below(500_000_000)));
        }
    }
    for user in 0..random.between(2, 4) {
        for tab in 0..random.between(1, 2) {
            let roles: Vec<&str> = ROLES.iter().copied().filter(|_| random.percent(50)).collect();
            let home = random.pick(&["s.0", "s.1", "s.2", "s.0", "channel:c.0"]);
            let sub = format!("u{user}");
            let tab = if tab == 0 { String::new() } else { format!("t{tab}") };
            cast.add(&Casting {
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
    let hostile = |sub| Casting { sub, tab: "", roles: &[], home: "s.0", echo: false, acks: true, hostile: true, slow: false };
    if random.percent(40) {
        cast.add(&hostile("eve"));
    }
    if draw == Draw::Wide {
        if random.percent(20) {
            cast.add(&hostile(MALLORY));
        }
        for errand in [Errand::Silent, Errand::BadRequest] {
            if random.percent(15) {
                cast.world.visitors.push(Visitor::new(errand, random.below(500_000_000)));
            }
        }
        for errand in [Errand::BrokenTls, Errand::StalledTls] {
            if cast.world.features.tls && random.percent(40) {
                cast.world.visitors.push(Visitor::new(errand, random.below(500_000_000)));
            }
        }
        if random.below(500) == 0 {
            (0..STORM).for_each(|_| cast.world.visitors.push(Visitor::new(Errand::Storm, random.below(100_000_000))));
        }
    }
    cast.drawn
}

/// Enough clients for a stream's frames to be gathered for all of them.
fn crowd(cast: &mut Cast<'_>, random: &mut Random) {
    for number in 0..random.between(10, 16) {
        let sub = format!("crowd{number}");
        let roles = &ROLES[..usize::from(random.percent(20))];
        // Readers connected elsewhere read `s.0` through a mirror.
        let home = random.pick(&["s.0", "s.0", "s.1"]);
        let (echo, slow) = (random.percent(10), random.percent(10));
        cast.add(&Casting { sub: &sub, tab: "", roles, home, echo, acks: true, hostile: false, slow });
    }
}
