//! Events that watchers get about others, however slowly they read, and their cost.

use super::client::{Casting, What};
use super::scenarios::{all_in, count, finish, say, stage};
use super::world::World;
use crate::close::CloseReason;
use crate::shard::counters::{DropReason, LimitReached};
use serde_json::{Value, json};

fn come(world: &mut World, sub: &str, home: &str) -> usize {
    let casting = Casting { sub, tab: "", roles: &["agent"], home, echo: false, acks: true, hostile: false, slow: false };
    let client = world.cast(&casting);
    let now = world.now();
    world.clients[client].stay_away_ms(&now, 0);
    assert!(world.run_until(5_000, |world| world.clients[client].is_open()));
    client
}

fn unlimited(world: &mut World) {
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        (settings.limits.presence_per_second, settings.limits.messages_per_second) = (0, 0);
        settings.session.presence_grace_ms = 100;
        // Nobody is closed for being slow, or silent.
        (settings.limits.stall_ms, settings.session.heartbeat_timeout_ms) = (3_600_000, 3_600_000);
        snapshot.settings = std::sync::Arc::new(settings);
    });
}

/// A client that watches s.0 from a connection whose own session has the same home, or is on the other shard.
fn watcher(world: &mut World, sub: &str, is_far: bool) -> usize {
    let home = world.home("s.0");
    let own = (1..).map(|number| format!("s.{number}")).find(|session| (world.home(session) != home) == is_far).unwrap();
    let client = come(world, sub, &own);
    world.command(client, "rw.attach", "s.0", json!({"start": "head"}), What::Attach { asked: Vec::new(), resume: None });
    assert!(world.run_until(5_000, all_in));
    world.command(client, "rw.watch", "s.0", json!({"presence": true}), What::Other("rw.watching"));
    assert!(world.run_until(5_000, all_in));
    client
}

/// This many watchers; if there are two shards, every second one on the other.
fn many_watchers(world: &mut World, count: usize) -> Vec<usize> {
    let shards = world.seats.len();
    (0..count).map(|number| watcher(world, &format!("w{number}"), shards == 2 && number % 2 == 1)).collect()
}

fn tell(world: &mut World, client: usize, data: &Value) {
    world.command(client, "rw.presence.set", "s.0", json!({"data": data}), What::Other("rw.presence.ok"));
    world.pass_us(5_000);
}

/// The client takes nothing from now on, and its socket is full.
fn stall(world: &mut World, client: usize, sender: usize) {
    world.link(client).stalled_until = u64::MAX;
    (0..8).for_each(|_| say(world, sender, 100));
}

fn go_on(world: &mut World, client: usize) {
    let link = world.link(client);
    (link.stalled_until, link.next_read) = (0, 0);
}

fn sum(world: &World, count: impl Fn(&crate::shard::counters::ShardCounters) -> u64) -> u64 {
    world.seats.iter().map(|seat| count(&seat.counters)).sum()
}

#[test]
fn a_slow_watcher_misses_nothing_but_what_became_old_meanwhile() {
    for (shards, is_far) in [(1, false), (2, false), (2, true)] {
        let mut world = stage(shards, 10_000, &["ana", "cleo"]);
        unlimited(&mut world);
        world.run_for(10);
        let bob = watcher(&mut world, "bob", is_far);
        tell(&mut world, 1, &json!("cleo here"));
        assert!(world.run_until(1_000, |world| world.clients[bob].told.len() == 1));
        stall(&mut world, bob, 0);
        let frames = |world: &World| sum(world, |counters| counters.buffer_bytes.get());
        tell(&mut world, 1, &json!("cleo before"));
        (100..200).for_each(|number| tell(&mut world, 0, &json!([number, "x".repeat(500)])));
        let few = frames(&world);
        (200..300).for_each(|number| tell(&mut world, 0, &json!([number, "x".repeat(500)])));
        assert_eq!(frames(&world), few, "as much as before waits");
        // Cleo goes, and comes back.
        world.end_link(1, true);
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 1_000);
        world.run_for(500);
        tell(&mut world, 0, &json!("between"));
        assert!(world.run_until(5_000, |world| world.clients[1].is_open()));
        world.run_for(50);
        tell(&mut world, 1, &json!("cleo after"));
        (0..3).for_each(|number| tell(&mut world, 0, &json!(number)));
        go_on(&mut world, bob);
        assert!(world.run_until(60_000, |world| world.clients[bob].told.last().is_some_and(|told| told["data"] == 2)));
        let told: Vec<String> = world.clients[bob]
            .told
            .iter()
            .map(|told| {
                let word = if told["event"] == "data" { told["data"].to_string() } else { told["event"].to_string() };
                format!("{}: {word}", told["client_id"]).replace('"', "")
            })
            .collect();
        // Cleo's word from before waited when a newer one came, behind her leaving and coming.
        let mut last = told.clone();
        last.retain(|line| !line.starts_with("ana: ["));
        let went = if told.iter().any(|line| line == "cleo: leave") { "cleo: leave" } else { "cleo: lost" };
        let expected = ["cleo: cleo here", went, "cleo: join", "cleo: cleo after", "ana: 2"];
        assert_eq!(last, expected, "{shards} {is_far}");
        let outdated = sum(&world, |counters| counters.dropped_count(DropReason::PresenceOutdated));
        assert_eq!(outdated as usize + told.len(), 1 + 1 + 200 + 2 + 1 + 1 + 3, "{shards} {is_far}: {told:?}");
        assert_eq!((world.clients[bob].closes.len(), world.oracle.violations.len()), (0, 0), "{:?}", world.oracle.violations);
        finish(&mut world);
    }
}

/// The watcher's shard takes nothing for a while, and a lane holds little.
#[test]
fn what_waits_for_a_full_lane_of_one_who_tells_much_of_itself_is_its_newest() {
    let mut world = stage(2, 10_000, &["ana"]);
    unlimited(&mut world);
    world.run_for(10);
    let bob = watcher(&mut world, "bob", true);
    let there = 1 - world.home("s.0");
    world.seats[there].paused_until = u64::MAX;
    for number in 0..300 {
        tell(&mut world, 0, &json!([number, "x".repeat(500)]));
    }
    let home = &world.seats[1 - there].counters;
    assert!(home.lane_backlog_bytes.get() < 10_000, "{} bytes wait", home.lane_backlog_bytes.get());
    world.seats[there].paused_until = 0;
    assert!(world.run_until(5_000, |world| world.clients[bob].told.last().is_some_and(|told| told["data"][0] == 299)));
    let told = world.clients[bob].told.len();
    assert!(told < 20, "{told} told");
    finish(&mut world);
}

#[test]
fn one_who_tells_much_of_itself_costs_slow_watchers_neither_memory_nor_their_connections() {
    const WATCHERS: usize = 40;
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana"]);
        unlimited(&mut world);
        world.run_for(10);
        let watchers = many_watchers(&mut world, WATCHERS);
        watchers.iter().for_each(|client| world.link(*client).stalled_until = u64::MAX);
        (0..8).for_each(|_| say(&mut world, 0, 100));
        let before = sum(&world, |counters| counters.buffer_bytes.get());
        for number in 0..700 {
            tell(&mut world, 0, &json!([number, "x".repeat(900)]));
        }
        // A frame of some 1,060 bytes each, and its place.
        let grown = sum(&world, |counters| counters.buffer_bytes.get()).saturating_sub(before);
        assert!(grown <= WATCHERS as u64 * 1_300, "{shards}: {grown} bytes for {WATCHERS} watchers");
        assert_eq!(sum(&world, |counters| counters.closed_count(CloseReason::TooSlow)), 0);
        watchers.iter().for_each(|client| go_on(&mut world, *client));
        let has_last = |client: &usize, world: &World| world.clients[*client].told.iter().any(|told| told["data"][0] == 699);
        assert!(world.run_until(60_000, |world| watchers.iter().all(|client| has_last(client, world))), "{shards}");
        finish(&mut world);
    }
}

/// In tests a turn tells four watchers.
#[test]
fn many_watchers_are_told_in_many_turns_and_of_whoever_goes_before_its_going() {
    const WATCHERS: usize = 30;
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana"]);
        unlimited(&mut world);
        world.run_for(10);
        let watchers = many_watchers(&mut world, WATCHERS);
        let home = world.home("s.0");
        let told = |world: &World| {
            let all = watchers.iter().flat_map(|client| &world.clients[*client].told);
            all.filter(|told| told["event"] == "data").count()
        };
        let seen = |world: &World| {
            let counters = &world.seats[home].counters;
            (counters.turns.get(), counters.sends.get() + counters.lane_out.get())
        };
        let (mut last, mut most) = (seen(&world), 0);
        world.command(0, "rw.presence.set", "s.0", json!({"data": 1}), What::Other("rw.presence.ok"));
        assert!(world.run_until(5_000, |world| {
            let (turns, sent) = seen(world);
            assert!(turns - last.0 <= 1);
            most = most.max(sent - last.1);
            last = (turns, sent);
            told(world) == WATCHERS
        }));
        assert!(most <= 6, "{shards}: {most} sends in one turn");
        // Newer data by the time that some are told of it: nobody's last is the older one, and few are told twice.
        for number in 2..10 {
            world.command(0, "rw.presence.set", "s.0", json!({"data": number}), What::Other("rw.presence.ok"));
        }
        let has_last = |world: &World, data: u64| {
            watchers.iter().all(|client| world.clients[*client].told.last().is_some_and(|told| told["data"] == data))
        };
        assert!(world.run_until(5_000, |world| has_last(world, 9)), "{shards}");
        world.run_for(50);
        assert!(has_last(&world, 9) && told(&world) <= WATCHERS * 9, "{shards}: {} told", told(&world));
        // A member leaves in the same write: all others are told its data before.
        let goes = watchers[0];
        world.command(goes, "rw.presence.set", "s.0", json!({"data": "bye"}), What::Other("rw.presence.ok"));
        world.command(goes, "rw.detach", "s.0", json!({}), What::Other("rw.detached"));
        world.run_for(100);
        for client in &watchers[1..] {
            let told = &world.clients[*client].told;
            let words: Vec<_> = told[told.len() - 2..].iter().map(|told| (&told["event"], &told["data"])).collect();
            assert_eq!(words, [(&json!("data"), &json!("bye")), (&json!("leave"), &Value::Null)], "{shards}");
        }
        finish(&mut world);
    }
}

#[test]
fn a_member_may_tell_of_itself_so_often_and_is_told_when_again() {
    for (shards, is_far) in [(1, false), (2, true)] {
        let mut world = stage(shards, 10_000, &["bob"]);
        let ana = watcher(&mut world, "ana", is_far);
        let set = |world: &mut World, number: u64| {
            world.command(ana, "rw.presence.set", "s.0", json!({"data": number}), What::Other("rw.presence.ok"));
            world.pass_us(1_000);
        };
        (0..13).for_each(|number| set(&mut world, number));
        assert!(world.run_until(1_000, |world| world.clients[ana].waiting().is_empty()));
        assert_eq!((count(&world, ana, "rw.presence.ok"), count(&world, ana, "limit.rate")), (10, 3), "{shards}");
        let refusal = world.clients[ana].refusals.last().cloned().unwrap();
        let wait_ms = refusal["retry_after_ms"].as_u64().unwrap();
        assert!((450..=490).contains(&wait_ms) && refusal["retryable"] == true, "{refusal}");
        assert!(refusal["message"].as_str().unwrap().contains("limits.presence_per_second"), "{refusal}");
        assert_eq!(sum(&world, |counters| counters.limit_count(LimitReached::PresenceRate)), 3);
        // By then it may, and neither sooner nor twice.
        world.pass_us((wait_ms - 100) * 1_000);
        set(&mut world, 20);
        world.pass_us(101_000);
        (21..23).for_each(|number| set(&mut world, number));
        world.pass_us(50_000);
        assert_eq!((count(&world, ana, "rw.presence.ok"), count(&world, ana, "limit.rate")), (11, 5), "{shards}");
        // A new connection has what the member has left.
        world.end_link(ana, true);
        let now = world.now();
        world.clients[ana].stay_away_ms(&now, 0);
        assert!(world.run_until(5_000, |world| world.clients[ana].is_open()));
        world.command(ana, "rw.attach", "s.0", json!({"start": "head"}), What::Attach { asked: Vec::new(), resume: None });
        let is_answered = |world: &World| world.clients[ana].waiting().is_empty();
        assert!(world.run_until(5_000, is_answered));
        (30..42).for_each(|number| set(&mut world, number));
        assert!(world.run_until(1_000, is_answered));
        let more = count(&world, ana, "rw.presence.ok") - 11;
        assert!(more < 8, "{shards}: {more}");
        finish(&mut world);
    }
}

/// Counted memory is that of the buffers, which shard/inspect.rs adds up after each turn.
#[test]
fn what_waits_for_slow_watchers_stays_within_the_memory_of_a_shard() {
    const MEMORY_BYTES: usize = 400_000;
    const WATCHERS: usize = 30;
    let mut world = stage(1, 10_000, &["ana"]);
    unlimited(&mut world);
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        settings.limits.shard_memory_bytes = MEMORY_BYTES;
        snapshot.settings = std::sync::Arc::new(settings);
    });
    world.hurries = true;
    let watchers: Vec<usize> = (0..WATCHERS).map(|number| watcher(&mut world, &format!("w{number}"), false)).collect();
    let members: Vec<usize> = (0..20).map(|number| come(&mut world, &format!("m{number}"), "s.0")).collect();
    watchers.iter().for_each(|client| world.link(*client).stalled_until = u64::MAX);
    (0..8).for_each(|_| say(&mut world, 0, 100));
    let mut most = 0;
    for round in 0..3 {
        for member in &members {
            if world.clients[*member].is_open() {
                tell(&mut world, *member, &json!([round, "x".repeat(1_000)]));
            }
            most = most.max(world.seats[0].counters.buffer_bytes.get());
        }
    }
    let closed = world.seats[0].counters.closed_count(CloseReason::TooSlow);
    assert!(closed > 0 && closed < WATCHERS as u64, "{closed} were closed");
    // The connection of a reply over the bound is ended, in the same turn; close frames come on top.
    assert!((MEMORY_BYTES as u64 * 9 / 10..MEMORY_BYTES as u64 + 10_000).contains(&most), "{most}");
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}
