//! A refused command leaves a shard's tables as they were, whatever refused it and wherever the session is at home.

use super::client::{Casting, What};
use super::scenarios::{count, stage, stage_on_disk};
use super::world::World;
use crate::config::Limits;
use serde_json::{Value, json};
use std::sync::Arc;

type Change = fn(&mut Limits);

const NOTHING: Change = |_| {};

fn limits(world: &mut World, change: impl FnOnce(&mut Limits)) {
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        change(&mut settings.limits);
        snapshot.settings = Arc::new(settings);
    });
}

fn tallies(world: &World) -> Vec<(usize, &'static str, u64)> {
    let of = |(shard, seat): (usize, &super::world::Seat)| {
        seat.core.tally().into_iter().map(|(what, count)| (shard, what, count)).collect::<Vec<_>>()
    };
    world.seats.iter().enumerate().flat_map(of).collect()
}

/// A command of ana's under other limits is refused with this code, and changes nothing.
fn refused(world: &mut World, code: &str, change: fn(&mut Limits), envelope: &Value) {
    let before = world.snapshot.settings.limits;
    limits(world, change);
    world.run_for(20);
    let (tally, told) = (tallies(world), count(world, 0, code));
    let (id, session) = (envelope["id"].as_str().unwrap().to_owned(), envelope["session_id"].as_str().unwrap().to_owned());
    world.send(0, &id, &session, What::Bad, &envelope.to_string());
    world.run_for(100);
    assert_eq!(count(world, 0, code), told + 1, "{envelope}: {:?}", world.clients[0].answers);
    let changed: Vec<_> = tallies(world).into_iter().zip(&tally).filter(|(now, before)| now != *before).collect();
    assert_eq!(changed, [], "{envelope}, which was refused with {code}");
    assert_eq!(world.oracle.violations, Vec::<String>::new(), "{envelope}");
    limits(world, |limits| *limits = before);
}

fn command(kind: &str, session: &str, payload: Value) -> Value {
    let id: String = format!("{kind}{payload}").chars().filter(char::is_ascii_alphanumeric).take(60).collect();
    json!({"type": kind, "id": id, "session_id": session, "payload": payload})
}

fn message(id: &str, session: &str, to: &str) -> Value {
    json!({"type": "chat", "id": id, "session_id": session, "to": to, "payload": 1})
}

fn attach(world: &mut World, client: usize, session: &str) {
    world.command(client, "rw.attach", session, json!({}), What::Attach { asked: Vec::new(), resume: None });
    world.run_for(100);
    assert!(world.clients[client].waiting().is_empty());
}

fn come(world: &mut World, sub: &str, tab: &str) -> usize {
    let casting = Casting { sub, tab, roles: &["agent"], home: "s.0", echo: false, acks: true, hostile: false, slow: false };
    let client = world.cast(&casting);
    assert!(world.run_until(5_000, |world| world.clients[client].is_open()));
    client
}

/// Session ids at home together, where the first client's home is or on the other shard.
fn names(world: &World, is_there: bool, prefix: &str) -> Vec<String> {
    let names = (1..).map(|number| format!("{prefix}{number}"));
    names.filter(|name| (world.home(name) == world.home("s.0")) == is_there).take(6).collect()
}

#[test]
fn a_refused_command_leaves_the_tables_as_they_were() {
    for (shards, is_there) in [(1, true), (2, true), (2, false)] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        let sessions = names(&world, is_there, "s.");
        let [mine, full, own, past, new] = [0, 1, 2, 3, 4].map(|at| sessions[at].as_str());
        let channel = format!("channel:{}", &names(&world, is_there, "channel:c.")[0]["channel:".len()..]);
        let tab = come(&mut world, "ana", "1");
        for (client, session) in [(0, mine), (0, past), (1, full), (tab, own)] {
            attach(&mut world, client, session);
        }
        world.command(0, "rw.join", mine, json!({"room": "a"}), What::Other("rw.joined"));
        world.command(0, "rw.watch", mine, json!({"room": "a"}), What::Other("rw.watching"));
        world.command(0, "rw.detach", past, json!({}), What::Other("rw.detached"));
        let used = message("used", mine, "session");
        world.send(0, "used", mine, What::Message { target: mine.to_owned(), to: vec!["session".to_owned()] }, &used.to_string());
        world.run_for(200);

        let rooms = json!({"rooms": ["a", "b", "c"]});
        let attaches: [(&str, Change, &str, Value); 13] = [
            ("session.unknown", NOTHING, new, json!({"create": false})),
            ("limit.sessions", |limits| limits.sessions_per_shard = 1, new, json!({})),
            ("limit.sessions", |limits| limits.sessions_per_user = 1, new, json!({})),
            ("limit.members", |limits| limits.members_per_session = 1, full, json!({})),
            ("limit.members", |limits| limits.members_per_user = 1, own, json!({})),
            ("limit.rooms", |limits| limits.rooms_per_client = 2, new, rooms.clone()),
            ("limit.rooms", |limits| limits.rooms_per_client = 2, full, rooms.clone()),
            ("limit.rooms", |limits| limits.rooms_per_client = 2, past, rooms),
            ("limit.attached", |limits| limits.max_attached_sessions = 1, new, json!({})),
            ("session.already_attached", NOTHING, mine, json!({})),
            ("auth.forbidden_session", NOTHING, "x.1", json!({})),
            ("envelope.invalid", NOTHING, new, json!({"start": 5})),
            ("envelope.invalid", NOTHING, new, json!({"rooms": [""]})),
        ];
        for (code, change, session, payload) in attaches {
            refused(&mut world, code, change, &command("rw.attach", session, payload));
        }
        let one_room: fn(&mut Limits) = |limits| limits.rooms_per_client = 1;
        let commands: [(&str, Change, &str, Value); 17] = [
            ("session.second_hello", NOTHING, "rw.hello", json!({})),
            ("auth.malformed", NOTHING, "rw.refresh", json!({"auth_token": "x"})),
            ("auth.missing", NOTHING, "rw.refresh", json!({})),
            ("limit.rooms", one_room, "rw.join", json!({"room": "b"})),
            ("envelope.invalid", NOTHING, "rw.join", json!({"room": ""})),
            ("envelope.invalid", NOTHING, "rw.leave", json!({})),
            ("envelope.invalid", NOTHING, "rw.members", json!({"limit": 0})),
            ("limit.rooms", one_room, "rw.watch", json!({"room": "b"})),
            ("envelope.invalid", NOTHING, "rw.watch", json!({"presence": 1})),
            ("envelope.invalid", NOTHING, "rw.presence.set", json!({})),
            ("envelope.invalid", NOTHING, "rw.presence.set", json!({"data": "x".repeat(1_100)})),
            ("envelope.invalid", NOTHING, "rw.history", json!({"before": 1, "after": 1})),
            ("envelope.invalid", NOTHING, "rw.history", json!({"limit": 0})),
            ("envelope.invalid", NOTHING, "rw.received", json!({"seq": -1})),
            ("envelope.unknown_type", NOTHING, "rw.nonsense", json!({})),
            ("envelope.unknown_type", NOTHING, "rw.run.cancel", json!({})),
            ("envelope.unknown_type", NOTHING, "rw.nonsense", json!({"more": 1})),
        ];
        for (code, change, kind, payload) in commands {
            refused(&mut world, code, change, &command(kind, mine, payload));
        }
        for kind in ["rw.join", "rw.detach", "rw.history", "rw.received", "rw.watch", "rw.presence.set"] {
            let payload = json!({"room": "b", "seq": 1, "data": 1});
            refused(&mut world, "session.not_attached", NOTHING, &command(kind, past, payload));
        }
        let messages: [(&str, Change, Value); 8] = [
            ("route.no_such_member", NOTHING, message("1", mine, "client:nobody")),
            ("route.no_such_member", NOTHING, message("2", mine, "user:nobody")),
            ("route.no_agent", NOTHING, message("3", mine, "intent:x")),
            ("session.not_attached", NOTHING, message("4", past, "session")),
            ("envelope.id_reused", NOTHING, message("used", mine, "user:ana")),
            ("auth.forbidden_session", NOTHING, message("5", mine, "channel:x")),
            ("limit.sessions", |limits| limits.sessions_per_shard = 1, message("6", mine, &channel)),
            ("limit.sessions", |limits| limits.sessions_per_user = 1, message("7", mine, &channel)),
        ];
        for (code, change, envelope) in messages {
            refused(&mut world, code, change, &envelope);
        }
        // A watch that is there already stays under a limit that it would not come in by.
        world.command(0, "rw.watch", mine, json!({"room": "b"}), What::Other("rw.watching"));
        world.run_for(100);
        limits(&mut world, one_room);
        let watching = count(&world, 0, "rw.watching");
        let tally = tallies(&world);
        world.command(0, "rw.watch", mine, json!({"room": "a"}), What::Other("rw.watching"));
        world.run_for(100);
        assert_eq!((count(&world, 0, "rw.watching"), tallies(&world) == tally), (watching + 1, true));
    }
}

/// The last thing that is looked at: whether the log takes it.
#[test]
fn what_the_log_refuses_leaves_the_tables_as_they_were() {
    let mut world = stage_on_disk(1, 300, &["ana", "bob"], |_| {});
    world.run_for(1_000);
    world.seats[0].engine.disk.faults.write_errors = 100;
    world.message_to(1, "s.0", &Value::Null, 10, false);
    world.run_for(2_000);
    for (id, to) in [("1", "session"), ("2", "channel:c.1"), ("3", "channel:c.2")] {
        refused(&mut world, "limit.disk", NOTHING, &message(id, "s.0", to));
    }
}
