//! Situations that chance finds seldom, one test each.

use super::client::{Casting, What};
use super::net::Faults;
use super::world::{Features, Plan, World};
use crate::config::Settings;
use serde_json::{Value, json};

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
