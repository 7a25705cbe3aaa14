//! Situations that chance finds seldom, one test each.

use super::client::{Casting, Phase, What};
use super::disk::DiskFaults;
use super::net::Faults;
use super::tokens::{token, token_id};
use super::world::{Features, Plan, World};
use crate::auth::{Revocation, Revocations};
use crate::close::CloseReason;
use crate::config::{Durability, Settings};
use crate::limits::CHUNK_BYTES;
use crate::shard::counters::LimitReached;
use crate::shard::inbound::contained::faults;
use crate::shard::port::{PortMessage, Snapshot};
use serde_json::{Value, json};
use std::sync::Arc;

/// A quiet world whose clients do only what the test says.
pub(super) fn stage(shards: usize, history_messages: usize, subs: &[&str]) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.session.history_messages = history_messages;
    stage_with(Features::default(), settings, shards, subs)
}

fn stage_with(features: Features, settings: Settings, shards: usize, subs: &[&str]) -> World {
    let disk = DiskFaults::default();
    let mut world = World::new(7, &Plan { features, shards, lane_depth: 8, faults: Faults::NONE, disk, settings });
    world.settling = true;
    for sub in subs {
        let roles = &["agent"];
        let casting = Casting { sub, tab: "", roles, home: "s.0", echo: false, acks: true, hostile: false, slow: false };
        world.cast(&casting);
    }
    assert!(world.run_until(5_000, all_in));
    world
}

/// The same with the log on disks that take `delay_us` for each answer, or up to it.
pub(super) fn stage_on_disk(shards: usize, delay_us: u64, subs: &[&str], change: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.log.dir = Some("/of/the/simulation".into());
    settings.log.segment_bytes = CHUNK_BYTES as u64;
    change(&mut settings);
    let disk = DiskFaults { delay_us, ..DiskFaults::default() };
    let plan = Plan { features: Features::default(), shards, lane_depth: 8, faults: Faults::NONE, disk, settings };
    let mut world = World::new(7, &plan);
    world.settling = true;
    for sub in subs {
        let roles = &["agent"];
        let casting = Casting { sub, tab: "", roles, home: "s.0", echo: false, acks: true, hostile: false, slow: false };
        world.cast(&casting);
    }
    assert!(world.run_until(10_000, all_in));
    world
}

/// Disks take so long from now on.
pub(super) fn slow_down(world: &mut World, delay_us: u64) {
    world.seats.iter_mut().for_each(|seat| seat.engine.disk.faults.delay_us = delay_us);
}

pub(super) fn count(world: &World, client: usize, kind: &str) -> u64 {
    world.clients[client].answers.get(kind).copied().unwrap_or(0)
}

pub(super) fn all_in(world: &World) -> bool {
    world.clients.iter().all(|client| client.is_open() && client.waiting().is_empty()) && world.caught_up()
}

pub(super) fn say(world: &mut World, client: usize, count: usize) {
    (0..count).for_each(|_| world.message_to(client, "s.0", &Value::Null, 50, false));
    world.run_for(200);
}

pub(super) fn finish(world: &mut World) {
    world.claim_heads();
    world.oracle.finish();
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

#[test]
fn a_client_that_was_away_gets_what_it_missed_from_whatever_shard_takes_it() {
    for shards in 1..=3 {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        say(&mut world, 0, 5);
        world.end_link(1, true);
        say(&mut world, 0, 7);
        assert!(world.run_until(5_000, all_in));
        world.run_for(100);
        assert_eq!(world.clients[1].held.get("s.0"), Some(&12));
        finish(&mut world);
    }
}

#[test]
fn what_retention_dropped_is_told_as_a_gap() {
    let mut world = stage(2, 4, &["ana", "bob"]);
    say(&mut world, 0, 2);
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 2_000);
    say(&mut world, 0, 20);
    assert!(world.run_until(10_000, all_in));
    world.run_for(100);
    assert_eq!(world.clients[1].answers.get("rw.gap"), Some(&1));
    assert_eq!(world.clients[1].held.get("s.0"), Some(&22));
    finish(&mut world);
}

#[test]
fn what_was_asked_before_a_detach_is_answered_before_it() {
    for session in ["s.1", "s.2", "s.3"] {
        let mut world = stage(2, 10_000, &["ana"]);
        world.command(0, "rw.attach", session, json!({}), What::Attach { asked: Vec::new(), resume: None });
        assert!(world.run_until(2_000, all_in));
        world.message_to(0, session, &Value::Null, 10, false);
        world.command(0, "rw.ping", session, json!({}), What::Ping { acked_max: 0 });
        world.command(0, "rw.history", session, json!({}), What::Other("rw.history_end"));
        world.command(0, "rw.detach", session, json!({}), What::Other("rw.detached"));
        assert!(world.run_until(2_000, all_in), "{:?}", world.clients[0].waiting());
        for (kind, count) in [("rw.ack", 1), ("rw.pong", 1), ("rw.history_end", 1), ("rw.detached", 1), ("rw.error", 0)] {
            assert_eq!(world.clients[0].answers.get(kind).copied().unwrap_or(0), count, "{session}: {kind}");
        }
        finish(&mut world);
    }
}

/// The decoder's calls for some messages, one by one, and the parser's.
#[test]
fn a_panic_while_decoding_ends_that_connection_and_no_other() {
    for (result, calls) in [("Item", 1), ("Item", 2), ("Item", 3), ("Item", 4), ("Item", 5), ("Envelope", 1), ("Envelope", 2)] {
        let mut world = stage(1, 10_000, &["ana", "bob", "cleo"]);
        say(&mut world, 0, 3);
        let before = world.bounds("s.0").1;
        faults::panic_in(result, calls);
        say(&mut world, 0, 3);
        let case = format!("{result} {calls}");
        assert!(!faults::pending(), "{case}: the call did not come");

        let counters = world.seats[0].counters.clone();
        assert_eq!(counters.panics.get(), 1, "{case}");
        let told: Vec<String> = std::mem::take(&mut world.oracle.violations);
        assert_eq!(told, [format!("{} was closed with Some(1011)", world.clients[0].id)], "{case}");
        let routed = world.bounds("s.0").1 - before;
        assert!(result != "Envelope" || routed == u64::from(calls) - 1, "{case}: {routed} routed");
        // The remaining clients continue, with the shard's one parser and its one pool of buffers; the closed client comes back
        // and misses nothing.
        say(&mut world, 1, 5);
        assert!(world.run_until(60_000, all_in), "{case}");
        say(&mut world, 0, 5);
        say(&mut world, 1, 1);
        let ended: Vec<CloseReason> =
            CloseReason::ALL.iter().copied().filter(|reason| counters.closed_count(*reason) > 0).collect();
        assert_eq!((ended, counters.closed_count(CloseReason::Internal)), (vec![CloseReason::Internal], 1), "{case}");
        let head = world.bounds("s.0").1;
        [0, 2].into_iter().for_each(|client| assert_eq!(world.clients[client].held.get("s.0"), Some(&head), "{case}"));
        assert_eq!(counters.panics.get(), 1);
        finish(&mut world);
    }
}

/// A single shard that ended connections for these reasons, and had `panics` panics.
fn ends(world: &World, panics: u64) -> Vec<CloseReason> {
    let counters = &world.seats[0].counters;
    assert_eq!(counters.panics.get(), panics);
    CloseReason::ALL.iter().copied().filter(|reason| counters.closed_count(*reason) > 0).collect()
}

#[test]
fn a_panic_while_inflating_ends_that_connection_and_no_other() {
    for calls in 1..=3 {
        let mut settings = Settings::default();
        settings.log.memory_bytes = 0;
        settings.deflate.enabled = true;
        let mut world = stage_with(Features::default(), settings, 1, &["ana", "bob", "cleo"]);
        // Some connections agree on deflate, and half of their messages come deflated.
        let offers = (0..3).find(|client| world.clients[*client].link.as_ref().is_some_and(|link| link.deflate)).unwrap();
        let others: Vec<usize> = (0..3).filter(|client| *client != offers).collect();
        faults::panic_in("Result<(),", calls);
        say(&mut world, offers, 12);
        assert!(!faults::pending(), "{calls}: the call did not come");
        let told: Vec<String> = std::mem::take(&mut world.oracle.violations);
        assert_eq!(told, [format!("{} was closed with Some(1011)", world.clients[offers].id)], "{calls}");
        // The shard's one codec goes on, for those who stayed and for who comes back.
        assert!(world.run_until(60_000, all_in), "{calls}");
        [0, 1, 2, offers].into_iter().for_each(|client| say(&mut world, client, 12));
        assert_eq!(ends(&world, 1), [CloseReason::Internal], "{calls}");
        assert_eq!(world.seats[0].counters.closed_count(CloseReason::Internal), 1, "{calls}");
        let head = world.bounds("s.0").1;
        others.iter().for_each(|client| assert_eq!(world.clients[*client].held.get("s.0"), Some(&head), "{calls}"));
        finish(&mut world);
    }
}

/// Panics in reading ciphertext, and in writing it, for which TLS may read kept bytes of the peer.
#[test]
fn a_panic_in_tls_drops_that_connection_and_no_other() {
    for (result, calls) in [("Received", 1), ("Received", 2), ("Received", 4), ("usize", 1), ("usize", 2), ("usize", 3)] {
        let case = format!("{result} {calls}");
        let features = Features { tls: true, ..Features::default() };
        let mut settings = Settings::default();
        settings.log.memory_bytes = 0;
        let mut world = stage_with(features, settings, 1, &["ana", "bob", "cleo"]);
        say(&mut world, 0, 3);
        let closes = |world: &World| world.clients.iter().flat_map(|client| client.closes.values()).copied().sum::<u64>();
        faults::panic_in(result, calls);
        for _ in 0..3 {
            say(&mut world, 0, 3);
            assert!(world.run_until(60_000, all_in), "{case}");
        }
        assert!(!faults::pending(), "{case}: the call did not come");
        // Nobody was told anything: there is no ciphertext to tell it in. The client came back and misses nothing.
        assert_eq!((ends(&world, 1), closes(&world)), (vec![CloseReason::Internal], 0), "{case}");
        assert_eq!(world.seats[0].counters.closed_count(CloseReason::Internal), 1, "{case}");
        (0..3).for_each(|client| say(&mut world, client, 3));
        assert!(world.run_until(5_000, all_in), "{case}");
        say(&mut world, 1, 1);
        let head = world.bounds("s.0").1;
        [0, 2].into_iter().for_each(|client| assert_eq!(world.clients[client].held.get("s.0"), Some(&head), "{case}"));
        assert_eq!(ends(&world, 1), [CloseReason::Internal], "{case}");
        finish(&mut world);
    }
}

#[test]
fn a_panic_in_the_tls_of_a_connection_that_closes_drops_it_at_once() {
    // The close_notify behind our close frame; the client's answer to that frame.
    for (result, reading) in [("()", false), ("Received", true)] {
        let features = Features { tls: true, ..Features::default() };
        let mut settings = Settings::default();
        settings.log.memory_bytes = 0;
        let mut world = stage_with(features, settings, 1, &["ana", "bob"]);
        let (now_s, until_s) = (world.now().wall_s(), u64::MAX);
        let token = Revocation::Token { token_id: "ana.0".into(), until_s };
        world.revoked.insert("ana.0".to_owned(), now_s);
        if !reading {
            faults::panic_in(result, 1);
        }
        world.configure(|snapshot| snapshot.revocations = Arc::new(Revocations::new([token], now_s).unwrap()));
        let closing = |world: &World| world.seats[0].counters.closed_count(CloseReason::Auth) > 0;
        if reading {
            assert!(world.run_until(1_000, |world| world.clients[0].link.as_ref().is_none_or(|link| link.close_code.is_some())));
            assert!(!closing(&world), "the connection waits for the client's close frame");
            faults::panic_in(result, 1);
        }
        // Long before the time is over that a close may take.
        assert!(world.run_until(1_000, closing), "{result}");
        assert!(!faults::pending(), "{result}: the call did not come");
        assert_eq!(ends(&world, 1), [CloseReason::Auth], "{result}");
    }
}

#[test]
fn nothing_is_sent_behind_the_end_of_a_connection_that_was_closed_in_its_tls_handshake() {
    let mut shaking = 0;
    for steps in 0..30 {
        let mut settings = Settings::default();
        settings.log.memory_bytes = 0;
        let mut world = stage_with(Features { tls: true, ..Features::default() }, settings, 1, &["ana"]);
        world.end_link(0, true);
        assert!(world.run_until(1_000, |world| world.clients[0].link.is_some()));
        (0..steps).for_each(|_| _ = world.step());
        shaking += usize::from(world.clients[0].link.as_ref().is_some_and(|link| link.phase == Phase::Http));
        // A drain ends it, whose client shakes hands on.
        world.draining = true;
        world.tell(0, PortMessage::Drain { window_ms: 0, restart: false });
        world.run_for(2_000);
        assert_eq!(world.oracle.violations, Vec::<String>::new(), "after {steps} steps");
        assert_eq!(world.seats[0].core.open_connections(), 0, "after {steps} steps");
    }
    assert!(shaking > 5, "{shaking}");
}

#[test]
fn a_full_lane_is_told_as_backpressure_and_loses_nothing_that_was_taken() {
    const SENT: usize = 40;
    let mut world = stage(2, 10_000, &["ana", "bob"]);
    // A session at home on the shard where these two are not.
    let session = (1..).map(|number| format!("s.{number}")).find(|session| world.home(session) != world.home("s.0")).unwrap();
    for client in 0..2 {
        world.command(client, "rw.attach", &session, json!({}), What::Attach { asked: Vec::new(), resume: None });
    }
    assert!(world.run_until(2_000, all_in));

    // More than half of the lane at once: its home has no turn in between.
    (0..SENT).for_each(|_| world.message_to(0, &session, &Value::Null, 50, false));
    assert!(world.run_until(5_000, all_in));
    let count = |world: &World, kind: &str| world.clients[0].answers.get(kind).copied().unwrap_or(0);
    let (taken, refused) = (count(&world, "rw.ack"), count(&world, "limit.backpressure"));
    assert!(taken > 0 && refused > 0 && taken + refused == SENT as u64, "{taken} taken, {refused} refused");
    let counters = world.seats[world.home("s.0")].counters.clone();
    assert_eq!(counters.limit_count(LimitReached::Lane), refused, "each is counted, once");
    assert_eq!(counters.lane_full.get(), refused);
    assert_eq!(world.bounds(&session).1, taken, "what was refused is in no order");

    // The backpressure was short: the next message is accepted.
    world.message_to(0, &session, &Value::Null, 50, false);
    assert!(world.run_until(5_000, all_in));
    world.run_for(100);
    assert_eq!((count(&world, "rw.ack"), count(&world, "limit.backpressure")), (taken + 1, refused));
    assert_eq!(world.clients[1].held.get(&session), Some(&(taken + 1)));
    finish(&mut world);
}

/// Neither shard has it to close while it is in a lane.
#[test]
fn who_is_revoked_between_two_shards_is_refused_where_it_arrives() {
    let mut world = stage(2, 10_000, &["bob"]);
    let sum = |world: &World, which: fn(&World, usize) -> u64| (0..2).map(|shard| which(world, shard)).sum::<u64>();
    let handed = |world: &World| sum(world, |world, shard| world.seats[shard].counters.handed_over.get());
    let taken = |world: &World| sum(world, |world, shard| world.seats[shard].counters.taken_over.get());
    let welcomed = |world: &World| sum(world, |world, shard| world.seats[shard].counters.welcomed.get());
    // Some come by the other shard, and of those some are still in its lane when a step ends.
    let caught = (0..200).find_map(|number| {
        let sub = format!("ana{number}");
        let roles = &["agent"];
        let casting = Casting { sub: &sub, tab: "", roles, home: "s.0", echo: false, acks: true, hostile: false, slow: false };
        let client = world.cast(&casting);
        assert!(world.run_until(5_000, |world| world.clients[client].is_open() || handed(world) > taken(world)));
        (handed(&world) > taken(&world)).then_some(sub)
    });
    let before = welcomed(&world);
    let revoked = Revocation::Subject { subject: caught.unwrap().into(), not_before_s: u64::MAX, until_s: u64::MAX };
    let revocations = Arc::new(Revocations::new([revoked], 0).unwrap());
    let snapshot = Arc::new(Snapshot { revocations, ..(*world.snapshot).clone() });
    for shard in 0..2 {
        world.tell(shard, PortMessage::Configure { snapshot: Arc::clone(&snapshot), reply: None });
    }
    world.run_for(500);
    assert_eq!((handed(&world) - taken(&world), welcomed(&world)), (0, before));
    let [refused] = &world.oracle.violations[..] else { panic!("{:?}", world.oracle.violations) };
    assert!(refused.contains("auth.revoked"), "{refused}");
}

/// A world of two shards in which a connection is on its way to its session for `steps`, and what `then` happens to it.
fn under_way(steps: usize, then: impl FnOnce(&mut World)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    let plan = Plan {
        features: Features::default(),
        shards: 2,
        lane_depth: 8,
        faults: Faults::NONE,
        disk: DiskFaults::default(),
        settings,
    };
    let mut world = World::new(7, &plan);
    world.settling = true;
    for (sub, home) in [("ana", "s.0"), ("bob", "s.1"), ("eve", "s.2"), ("dan", "s.3")] {
        let casting = Casting { sub, tab: "", roles: &[], home, echo: false, acks: true, hostile: false, slow: false };
        let client = world.cast(&casting);
        let now = world.now();
        world.clients[client].stay_away_ms(&now, 0);
    }
    (0..steps).for_each(|_| assert!(world.step()));
    then(&mut world);
    world.run_for(10_000);
    world
}

#[test]
fn a_connection_on_its_way_to_its_session_goes_with_a_drain() {
    for steps in 0..60 {
        let world = under_way(steps, |world| {
            world.draining = true;
            (0..2).for_each(|shard| world.tell(shard, PortMessage::Drain { window_ms: 100, restart: false }));
        });
        assert_eq!(world.oracle.violations, Vec::<String>::new(), "after {steps} steps");
        assert!(world.seats.iter().all(|seat| seat.core.open_connections() == 0), "after {steps} steps");
    }
}

#[test]
fn a_token_revoked_on_its_way_to_its_session_opens_nothing() {
    for steps in 0..60 {
        let world = under_way(steps, |world| {
            let until_s = u64::MAX;
            let tokens = ["ana.0", "bob.0", "eve.0", "dan.0"].map(|id| Revocation::Token { token_id: id.into(), until_s });
            let now_s = world.now().wall_s();
            world.revoked.extend(["ana.0", "bob.0", "eve.0", "dan.0"].map(|id| (id.to_owned(), now_s)));
            world.configure(|snapshot| snapshot.revocations = Arc::new(Revocations::new(tokens, now_s).unwrap()));
        });
        assert_eq!(world.oracle.violations, Vec::<String>::new(), "after {steps} steps");
        assert!(world.clients.iter().all(|client| client.is_open() && client.token_number > 0), "after {steps} steps");
    }
}

#[test]
fn what_the_log_dropped_is_told_as_a_gap_and_nothing_else_is_missing() {
    let mut world = stage(2, 10_000, &["ana", "bob"]);
    say(&mut world, 0, 3);
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 10_000_000);
    // Two chunks of a mebibyte are all there is.
    for _ in 0..60 {
        world.message_to(0, "s.0", &Value::Null, 60_000, false);
        world.run_for(80);
    }
    let (oldest, head) = world.bounds("s.0");
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 0);
    assert!(oldest > 4 && head == 63, "{oldest} to {head}");
    assert!(world.run_until(10_000, all_in));
    world.run_for(1_000);
    assert_eq!(world.clients[1].answers.get("rw.gap"), Some(&1));
    assert_eq!(world.clients[1].held.get("s.0"), Some(&head));
    finish(&mut world);
}

#[test]
fn who_detaches_behind_a_page_that_the_disk_reads_misses_nothing_of_what_comes_meanwhile() {
    let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| settings.log.early_delivery = true);
    for client in 0..2 {
        world.command(client, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
    }
    for _ in 0..80 {
        world.message_to(1, "s.1", &Value::Null, 50_000, false);
        world.run_for(20);
    }
    assert!(world.run_until(10_000, all_in));
    slow_down(&mut world, 300_000);
    world.command(0, "rw.history", "s.1", json!({"after": 0, "limit": 1}), What::Other("rw.history_end"));
    world.command(0, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
    world.run_for(5);
    for to in [json!("user:ana"), Value::Null] {
        world.message_to(1, "s.1", &to, 50, false);
        world.run_for(5);
    }
    assert_eq!(count(&world, 0, "rw.history_end"), 0, "the disk is slow");
    assert!(world.run_until(10_000, all_in));
    assert_eq!((count(&world, 0, "rw.history_end"), count(&world, 0, "rw.detached")), (1, 1));
    finish(&mut world);
}

#[test]
fn what_is_asked_behind_a_refused_token_goes_by_the_roles_of_the_old_one() {
    let mut world = stage(1, 10_000, &["ana", "bob"]);
    let attach = || What::Attach { asked: Vec::new(), resume: None };
    world.command(1, "rw.attach", "s.1", json!({}), attach());
    assert!(world.run_until(2_000, all_in));
    let now_s = world.now().wall_s();
    world.clients[0].token_number += 1;
    let revoked = token_id(&world.clients[0]);
    world.revoked.insert(revoked.clone(), now_s);
    let revocation = Revocation::Token { token_id: revoked.into(), until_s: u64::MAX };
    world.configure(|snapshot| snapshot.revocations = Arc::new(Revocations::new([revocation], now_s).unwrap()));
    world.run_for(10);
    let before = world.clients[0].roles.clone();
    world.change_roles(0, vec!["lead".to_owned()]);
    let auth_token = token(&world.clients[0], now_s, 600);
    world.command(0, "rw.refresh", "s.0", json!({"auth_token": auth_token}), What::Roles(before));
    world.now_ns += 1_000;
    world.command(0, "rw.attach", "s.1", json!({}), attach());
    assert!(world.run_until(2_000, all_in));
    for to in ["role:agent", "role:lead"] {
        world.message_to(1, "s.1", &json!(to), 10, false);
    }
    assert!(world.run_until(2_000, all_in));
    world.run_for(100);
    assert_eq!((count(&world, 0, "auth.revoked"), world.clients[0].closes.len()), (1, 0));
    finish(&mut world);
}

#[test]
fn a_channel_that_retention_emptied_goes_on_in_its_order() {
    let mut world = stage(1, 10_000, &["ana"]);
    world.message_to(0, "s.0", &json!("channel:c.0"), 10, false);
    world.run_for(100);
    let head = world.bounds("channel:c.0").1;
    for _ in 0..60 {
        world.message_to(0, "s.0", &Value::Null, 60_000, false);
        world.run_for(80);
    }
    world.run_for(1_000);
    assert_eq!(world.bounds("channel:c.0"), (head + 1, head), "nothing is held, and the order stands");
}

#[test]
fn a_message_that_waits_for_the_disk_is_not_dropped_before_its_reader_is_woken() {
    for durability in [Durability::Written, Durability::Synced] {
        let mut world = stage_on_disk(2, 300, &["ana", "bob", "cleo"], |settings| {
            settings.session.history_messages = 4;
            settings.log.durability = durability;
        });
        say(&mut world, 0, 1);
        slow_down(&mut world, 400_000);
        // The first goes to the disk alone; the others wait for that, more of them than the session retains.
        let to = json!(["client:bob", "client:cleo"]);
        (0..20).for_each(|_| world.message_to(0, "s.0", &to, 50, false));
        assert!(world.run_until(5_000, all_in));
        world.run_for(1_000);
        finish(&mut world);
        let (oldest, head) = world.bounds("s.0");
        assert_eq!((oldest, head), (18, 21), "what was seen is held to the session's bound");
        assert_eq!(
            [1, 2].map(|client| count(&world, client, "rw.gap")),
            [1, 1],
            "what was dropped when it might be seen is told"
        );
        assert_eq!([1, 2].map(|client| world.clients[client].held.get("s.0").copied()), [Some(21); 2]);
    }
}

#[test]
fn a_repeat_is_not_acknowledged_before_its_first_is_durable_even_where_retention_has_dropped_that() {
    let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| {
        settings.session.history_messages = 4;
        settings.log.early_delivery = true;
    });
    say(&mut world, 0, 1);
    slow_down(&mut world, 60_000_000);
    let acked = count(&world, 0, "rw.ack");
    (0..20).for_each(|_| world.message_to(0, "s.0", &Value::Null, 50, false));
    world.run_for(50);
    assert_eq!(world.clients[1].held.get("s.0"), Some(&21), "delivered early");
    assert!(world.bounds("s.0").0 > 2, "the first of them is retained no longer");
    let first = world.clients[0].past[1].clone();
    world.send_past(0, &first);
    world.run_for(50);
    assert_eq!(count(&world, 0, "rw.ack"), acked, "nothing is written yet");
    assert!(world.run_until(200_000, all_in));
    assert_eq!(count(&world, 0, "rw.ack"), acked + 21);
    finish(&mut world);
}

#[test]
fn a_sender_with_one_session_is_held_before_it_is_told_and_one_with_several_is_told_at_once() {
    let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| {
        settings.log.segment_bytes = 16 * CHUNK_BYTES as u64;
        settings.limits.bytes_per_second = 0;
    });
    let hold_ms = Settings::default().limits.backpressure_hold_ms;
    world.command(1, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
    assert!(world.run_until(2_000, all_in));
    let counters = world.seats[0].counters.clone();

    // More than may wait for a disk that has stopped.
    slow_down(&mut world, 20_000_000);
    (0..150).for_each(|_| world.message_to(0, "s.0", &Value::Null, 60_000, false));
    assert!(world.run_until(5_000, |_| counters.limit_count(LimitReached::Hold) == 1));
    let held_at_ms = world.now().mono_ms();
    world.message_to(1, "s.0", &Value::Null, 50, false);
    assert!(world.run_until(hold_ms, |world| count(world, 1, "limit.backpressure") == 1), "its other session would wait as well");

    assert!(world.run_until(2 * hold_ms, |world| count(world, 0, "limit.backpressure") > 0));
    let told_after_ms = world.now().mono_ms() - held_at_ms;
    assert!(told_after_ms >= hold_ms, "it was told after {told_after_ms} ms");
    world.message_to(0, "s.0", &Value::Null, 50, false);
    world.run_for(50);
    let refused = count(&world, 0, "limit.backpressure");
    assert!((2..100).contains(&refused), "{refused}: what came after the hold, which is once an episode");

    slow_down(&mut world, 0);
    assert!(world.run_until(60_000, all_in));
    say(&mut world, 0, 1);
    assert_eq!(count(&world, 0, "limit.backpressure"), refused);
    assert_eq!(count(&world, 0, "rw.ack"), 152 - refused);
    assert_eq!(counters.limit_count(LimitReached::Hold), 1);
    finish(&mut world);
}

/// Writes more than the log's memory holds, so that reads go to the disk.
pub(super) fn fill(world: &mut World, messages: usize) {
    for _ in 0..messages {
        world.message_to(0, "s.0", &Value::Null, 60_000, false);
        world.run_for(80);
    }
}

#[test]
fn history_that_is_being_read_from_disk_is_answered_before_a_detach() {
    for shards in [1, 2] {
        let mut world = stage_on_disk(shards, 300, &["ana", "bob"], |_| {});
        world.command(1, "rw.attach", "s.9", json!({}), What::Attach { asked: Vec::new(), resume: None });
        fill(&mut world, 60);
        assert!(world.run_until(2_000, all_in));
        slow_down(&mut world, 100_000);
        world.command(1, "rw.history", "s.0", json!({"after": 0, "limit": 5}), What::Other("rw.history_end"));
        world.command(1, "rw.detach", "s.0", json!({}), What::Other("rw.detached"));
        assert!(world.run_until(5_000, all_in), "{:?}", world.clients[1].waiting());
        assert_eq!(["rw.history_end", "rw.detached", "rw.error"].map(|kind| count(&world, 1, kind)), [1, 1, 0]);
        finish(&mut world);
    }
}

#[test]
fn a_reader_that_reads_from_disk_what_retention_drops_meanwhile_goes_on_behind_the_gap() {
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], |settings| settings.session.history_messages = 50);
    say(&mut world, 0, 1);
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 10_000_000);
    fill(&mut world, 60);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 0);
    // A page takes longer than it takes to drop what is on it.
    slow_down(&mut world, 20_000_000);
    fill(&mut world, 60);
    slow_down(&mut world, 300);
    // A read that was slow may still be under way.
    assert!(world.run_until(60_000, |world| all_in(world) && world.clients[1].held.get("s.0") == Some(&121)));
    world.run_for(1_000);
    assert!(count(&world, 1, "rw.gap") > 1);
    finish(&mut world);
}

#[test]
fn a_page_of_history_names_the_oldest_that_is_left_when_it_is_sent() {
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], |settings| {
        settings.session.history_messages = 50;
        settings.log.durability = Durability::Memory;
    });
    fill(&mut world, 60);
    assert!(world.run_until(5_000, all_in));
    let reads = |world: &World| world.seats[0].counters.log_reads.get();
    let before = reads(&world);
    slow_down(&mut world, 15_000_000);
    world.command(1, "rw.history", "s.0", json!({"after": 0, "limit": 15}), What::Other("rw.history_end"));
    // A part of the page is read, and what comes next on it is dropped before that is.
    assert!(world.run_until(20_000, |world| reads(world) == before + 2));
    (0..12).for_each(|_| world.message_to(0, "s.0", &Value::Null, 60_000, false));
    assert!(world.run_until(5_000, |world| world.bounds("s.0").0 == 23));
    assert_eq!(count(&world, 1, "rw.history_end"), 0);
    slow_down(&mut world, 300);
    assert!(world.run_until(60_000, all_in));
    world.run_for(1_000);
    assert_eq!(count(&world, 1, "rw.history_end"), 1);
    finish(&mut world);
}
