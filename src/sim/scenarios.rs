//! Situations that chance finds seldom, one test each.

use super::client::{Casting, What};
use super::net::Faults;
use super::world::{Features, Plan, World};
use crate::auth::{Revocation, Revocations};
use crate::config::Settings;
use crate::shard::port::PortMessage;
use serde_json::{Value, json};
use std::sync::Arc;

/// A quiet world whose clients do only what the test says.
fn stage(shards: usize, history_messages: usize, subs: &[&str]) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.session.history_messages = history_messages;
    let mut world = World::new(7, &Plan { features: Features::default(), shards, lane_depth: 8, faults: Faults::NONE, settings });
    world.settling = true;
    for sub in subs {
        let roles = &["agent"];
        let casting = Casting { sub, tab: "", roles, home: "s.0", echo: false, acks: true, hostile: false, slow: false };
        world.cast(&casting);
    }
    assert!(world.run_until(5_000, all_in));
    world
}

fn all_in(world: &World) -> bool {
    world.clients.iter().all(|client| client.is_open() && client.waiting().is_empty()) && world.caught_up()
}

fn say(world: &mut World, client: usize, count: usize) {
    (0..count).for_each(|_| world.message_to(client, "s.0", &Value::Null, 50, false));
    world.run_for(200);
}

fn finish(world: &mut World) {
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

/// A world of two shards in which a connection is on its way to its session for `steps`, and what `then` happens to it.
fn under_way(steps: usize, then: impl FnOnce(&mut World)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    let plan = Plan { features: Features::default(), shards: 2, lane_depth: 8, faults: Faults::NONE, settings };
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
