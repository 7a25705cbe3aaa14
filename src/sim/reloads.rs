//! A reload changes what was scheduled under the settings before it: a shorter time ends at the latest by the new one, a longer one not
//! before it. Every timed setting that a reload takes has its case here, or looks at the settings when something comes.

use super::client::{Casting, What};
use super::disk::DiskFaults;
use super::net::Faults;
use super::scenarios::{all_in, finish, slow_down, stage_on_disk};
use super::world::{Features, Plan, World};
use crate::close::CloseReason;
use crate::config::{Durability, SECTIONS, Settings};
use crate::limits::CHUNK_BYTES;
use crate::shard::counters::LimitReached;
use crate::shard::port::PortMessage;
use serde_json::{Value, json};
use std::sync::Arc;

const DAY_MS: u64 = 86_400_000;

/// A setting that gives something a time.
struct Case {
    name: &'static str,
    set: fn(&mut Settings, u64),
    /// The time of `set` in milliseconds.
    unit_ms: u64,
    /// From the start of the world to what the time counts from: something is begun then.
    base_ms: u64,
    begin: fn(&mut World),
    /// How often it has come to an end.
    ends: fn(&World) -> u64,
    /// Percentage by which the end is spread; and how late it is noticed.
    spread: u64,
    late_ms: u64,
}

fn reached(world: &World, limit: LimitReached) -> u64 {
    world.seats[0].counters.limit_count(limit)
}

fn closed(world: &World, reason: CloseReason) -> u64 {
    world.seats[0].counters.closed_count(reason)
}

fn told(world: &World, client: usize, kind: &str) -> u64 {
    world.clients[client].answers.get(kind).copied().unwrap_or(0)
}

/// Ana is heard no more, and hears nothing: her socket stays.
fn vanish(world: &mut World) {
    world.clients[0].link = None;
    let now = world.now();
    world.clients[0].stay_away_ms(&now, 1 << 40);
}

fn leave(world: &mut World, client: usize) {
    world.end_link(client, true);
    let now = world.now();
    world.clients[client].stay_away_ms(&now, 1 << 40);
}

/// A connection that says this and nothing more.
fn strange(world: &mut World, said: &[u8]) {
    let (pipe, _) = world.connect_bare(100_000, 0);
    world.net.sockets[pipe.socket].to_server.extend(said);
}

const CASES: &[Case] = &[
    Case {
        name: "limits.unfinished_message_ms",
        set: |settings, value| settings.limits.unfinished_message_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| world.link(0).pipe.tx.extend([0x01_u8, 0x80, 0, 0, 0, 0]),
        ends: |world| reached(world, LimitReached::UnfinishedMessage),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "limits.handshake_ms",
        set: |settings, value| settings.limits.handshake_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| strange(world, b"GET "),
        ends: |world| reached(world, LimitReached::HandshakeTime),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "limits.tls_handshake_ms",
        set: |settings, value| settings.limits.tls_handshake_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| strange(world, b""),
        ends: |world| reached(world, LimitReached::TlsHandshakeTime),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "limits.close_ms",
        set: |settings, value| settings.limits.close_ms = value,
        unit_ms: 1,
        base_ms: 0,
        // A client that is closed (4409) sends nothing to it.
        begin: |world| {
            vanish(world);
            let now = world.now();
            world.clients[0].stay_away_ms(&now, 0);
            assert!(world.run_until(3_000, |world| world.clients[0].is_open()));
        },
        ends: |world| reached(world, LimitReached::CloseTime),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "limits.backpressure_hold_ms",
        set: |settings, value| settings.limits.backpressure_hold_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| {
            world.seats[0].engine.disk.faults.delay_us = 1_000_000_000_000;
            (0..150).for_each(|_| world.message_to(0, "s.0", &Value::Null, 60_000, false));
            assert!(world.run_until(3_000, |world| reached(world, LimitReached::Hold) == 1));
        },
        ends: |world| told(world, 0, "limit.backpressure").min(1),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "limits.connection_lifetime_s",
        set: |settings, value| settings.limits.connection_lifetime_s = value,
        unit_ms: 1_000,
        base_ms: 0,
        begin: |_| {},
        // Both have come at about the same time.
        ends: |world| reached(world, LimitReached::ConnectionLifetime).min(1),
        spread: 10,
        late_ms: 2_000,
    },
    Case {
        name: "limits.stall_ms",
        set: |settings, value| settings.limits.stall_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| {
            let socket = world.link(0).pipe.socket;
            world.net.sockets[socket].capacity = 1_000;
            world.link(0).stalled_until = u64::MAX;
            (0..10).for_each(|_| world.message_to(1, "s.0", &Value::Null, 1_000, false));
        },
        ends: |world| reached(world, LimitReached::Stall),
        spread: 0,
        late_ms: 100,
    },
    Case {
        name: "session.heartbeat_ms",
        set: |settings, value| {
            settings.session.heartbeat_ms = value;
            settings.session.heartbeat_timeout_ms = 100;
        },
        unit_ms: 1,
        base_ms: 0,
        begin: vanish,
        ends: |world| reached(world, LimitReached::HeartbeatTime),
        spread: 10,
        late_ms: 300,
    },
    Case {
        name: "session.heartbeat_timeout_ms",
        set: |settings, value| {
            settings.session.heartbeat_ms = 1_000;
            settings.session.heartbeat_timeout_ms = value;
        },
        unit_ms: 1,
        base_ms: 900,
        begin: vanish,
        ends: |world| reached(world, LimitReached::HeartbeatTime),
        spread: 0,
        late_ms: 400,
    },
    Case {
        name: "session.presence_grace_ms",
        set: |settings, value| settings.session.presence_grace_ms = value,
        unit_ms: 1,
        base_ms: 0,
        begin: |world| {
            world.command(1, "rw.watch", "s.0", json!({"presence": true}), What::Other("rw.watching"));
            pass(world, 100);
            leave(world, 0);
        },
        ends: |world| told(world, 1, "rw.presence"),
        spread: 0,
        late_ms: 300,
    },
    Case {
        name: "session.member_unseen_ms",
        set: |settings, value| {
            settings.session.presence_grace_ms = 500;
            settings.session.member_unseen_ms = value;
        },
        unit_ms: 1,
        base_ms: 0,
        begin: |world| leave(world, 0),
        ends: |world| 2 - world.seats[0].counters.members.get(),
        spread: 0,
        late_ms: 300,
    },
    Case {
        name: "session.idle_ms",
        set: |settings, value| {
            settings.session.presence_grace_ms = 0;
            settings.session.member_unseen_ms = 1_000;
            settings.session.idle_ms = value;
        },
        unit_ms: 1,
        base_ms: 1_000,
        begin: |world| {
            world.command(1, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
            pass(world, 100);
            world.message_to(1, "s.1", &Value::Null, 10, false);
            world.command(1, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
        },
        ends: |world| 2 - world.seats[0].counters.sessions.get(),
        spread: 0,
        late_ms: 500,
    },
    Case {
        name: "session.token_expiry_grace_ms",
        set: |settings, value| settings.session.token_expiry_grace_ms = value,
        unit_ms: 1,
        // The life of a token.
        base_ms: 3_600_000,
        begin: vanish,
        ends: |world| closed(world, CloseReason::Auth).min(1),
        spread: 0,
        late_ms: 6_000,
    },
    Case {
        name: "log.retention_age_s",
        set: |settings, value| settings.log.retention_age_s = value,
        unit_ms: 1_000,
        base_ms: 0,
        begin: |world| world.message_to(0, "s.0", &Value::Null, 10, false),
        ends: |world| world.bounds("s.0").0.saturating_sub(1).min(1),
        spread: 0,
        late_ms: 3_500,
    },
];

/// A message, a handshake or a drain that comes is judged by the settings of that moment; nothing waits. And one that ends earlier the
/// longer it is: below.
const ELSEWHERE: [&str; 9] = [
    "limits.rate_abuse_ms",
    "limits.bad_envelopes_window_ms",
    "session.dedupe_ms",
    "session.token_expiry_warning_ms",
    "auth.leeway_s",
    "auth.lifetime_s_max",
    "drain.not_ready_ms",
    "drain.window_ms",
    "drain.grace_ms",
];

/// So much time goes by and no more; control asks after the shard.
fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(50) {
        let last = world.clients.len() - 1;
        let now = world.now();
        world.clients[last].stay_away_ms(&now, ms.min(50));
        world.run_for(ms.min(50));
        let (reply, _) = tokio::sync::oneshot::channel();
        world.tell(0, PortMessage::Probe { reply });
    }
}

/// The same in long steps, in which nobody asks.
fn far(world: &mut World, ms: u64) {
    let (last, now) = (world.clients.len() - 1, world.now());
    world.clients[last].stay_away_ms(&now, ms);
    world.run_for(ms);
}

fn world_of(case: &str, set: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.limits.messages_per_second = 0;
    settings.limits.bytes_per_second = 0;
    (settings.session.heartbeat_ms, settings.session.heartbeat_timeout_ms) = (DAY_MS, DAY_MS);
    settings.session.token_expiry_warning_ms = 0;
    if case == "limits.backpressure_hold_ms" {
        settings.log.dir = Some("/of/the/simulation".into());
        settings.log.segment_bytes = 64 * CHUNK_BYTES as u64;
    }
    set(&mut settings);
    let features = Features { tls: case == "limits.tls_handshake_ms", ..Features::default() };
    let disk = DiskFaults { delay_us: 100, ..DiskFaults::default() };
    let mut world = World::new(7, &Plan { features, shards: 1, lane_depth: 8, faults: Faults::NONE, disk, settings });
    world.settling = true;
    for sub in ["ana", "bob", "clock"] {
        let client =
            world.cast(&Casting { sub, tab: "", roles: &[], home: "s.0", echo: false, acks: true, hostile: false, slow: false });
        let now = world.now();
        world.clients[client].stay_away_ms(&now, if sub == "clock" { 1 << 40 } else { 0 });
    }
    assert!(
        world.run_until(5_000, |world| world.clients[..2].iter().all(super::client::Client::is_open)),
        "{case}: {:?}",
        world.oracle.violations
    );
    world
}

/// When it ends that begins under one value and has another in force a second later, counted from its base; and what it was at last.
fn ends_after(case: &Case, (one, other): (u64, u64)) -> (u64, World) {
    let mut world = world_of(case.name, |settings| (case.set)(settings, one));
    (case.begin)(&mut world);
    let began_ms = world.now().mono_ms() + case.base_ms;
    let coarse = case.base_ms > 100_000;
    if coarse {
        far(&mut world, case.base_ms - 5_000);
        pass(&mut world, 5_000);
    }
    while world.now().mono_ms() < began_ms + 1_000 {
        pass(&mut world, 50);
    }
    assert_eq!((case.ends)(&world), 0, "{}: too soon", case.name);
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        (case.set)(&mut settings, other);
        snapshot.settings = Arc::new(settings);
    });
    let most_ms = 3 * one.max(other) * case.unit_ms;
    while (case.ends)(&world) == 0 && world.now().mono_ms() < began_ms + most_ms && world.oracle.violations.is_empty() {
        pass(&mut world, 50);
    }
    (world.now().mono_ms() - began_ms, world)
}

#[test]
fn what_waits_under_a_setting_goes_by_the_one_that_a_reload_brings() {
    for case in CASES {
        // Some have bounds of their own.
        let (short, long) = if case.name == "limits.connection_lifetime_s" {
            (60, 400)
        } else if case.unit_ms > 1 {
            (10, 60)
        } else {
            (4_000, 20_000)
        };
        for (one, other) in [(long, short), (short, long)] {
            let (after_ms, world) = ends_after(case, (one, other));
            let (from, to) = (other * (100 - case.spread) / 100 * case.unit_ms, other * (100 + case.spread) / 100 * case.unit_ms);
            let ended = (case.ends)(&world);
            let wrong = &world.oracle.violations;
            assert!(ended == 1, "{} from {one} to {other}: {ended} ended; {wrong:?}", case.name);
            assert!(
                (from..=to + case.late_ms).contains(&after_ms),
                "{} from {one} to {other}: ended after {after_ms} ms",
                case.name
            );
            assert!(wrong.iter().all(|wrong| wrong.contains("closed with 1012")), "{}: {wrong:?}", case.name);
        }
    }
}

/// A record that is shown early is behind hidden ones, and is shown with them.
#[test]
fn early_delivery_that_a_reload_brings_shows_what_follows_a_hidden_message() {
    let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| settings.log.durability = Durability::Synced);
    let heard = |world: &World| world.clients[1].held.get("s.0").copied().unwrap_or(0);
    let before = heard(&world);
    slow_down(&mut world, 200_000);
    world.message_to(0, "s.0", &Value::Null, 10, false);
    world.run_for(5);
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        settings.log.early_delivery = true;
        snapshot.settings = Arc::new(settings);
    });
    for _ in 0..3 {
        world.message_to(0, "s.0", &Value::Null, 10, false);
        world.run_for(5);
    }
    assert_eq!(heard(&world), before, "nothing is on disk yet");
    assert!(world.run_until(10_000, all_in));
    world.run_for(1_000);
    assert_eq!(heard(&world), before + 4);
    finish(&mut world);
}

/// The longer the warning, the sooner it comes.
#[test]
fn a_token_is_warned_of_by_the_setting_that_a_reload_brings() {
    for (one, other) in [(60_000, 3_580_000), (3_580_000, 60_000)] {
        let mut world = world_of("", |settings| settings.session.token_expiry_warning_ms = one);
        let began_ms = world.now().mono_ms();
        pass(&mut world, 2_000);
        world.configure(|snapshot| {
            let mut settings = (*snapshot.settings).clone();
            settings.session.token_expiry_warning_ms = other;
            snapshot.settings = Arc::new(settings);
        });
        let warned = |world: &World| told(world, 0, "rw.auth.expiring");
        if other < one {
            far(&mut world, 3_500_000);
        }
        assert_eq!(warned(&world), 0, "{one} {other}");
        while warned(&world) == 0 && world.now().mono_ms() < began_ms + 3_700_000 {
            pass(&mut world, 1_000);
        }
        let after_ms = world.now().mono_ms() - began_ms;
        assert!((3_600_000 - other - 5_000..3_600_000 - other + 5_000).contains(&after_ms), "{one} {other}: after {after_ms} ms");
    }
}

#[test]
fn every_timed_setting_that_a_reload_takes_is_looked_at() {
    let timed = SECTIONS.iter().flat_map(|section| section.keys).filter(|key| key.live && matches!(key.unit, "ms" | "s"));
    let mut timed: Vec<String> = timed.map(crate::config::Key::path).collect();
    let mut covered: Vec<String> = CASES.iter().map(|case| case.name).chain(ELSEWHERE).map(str::to_owned).collect();
    timed.sort_unstable();
    covered.sort_unstable();
    assert_eq!(timed, covered);
}
