//! Pages of history that many ask for at once, that need long, and whose askers are gone.

use super::client::{Casting, What};
use super::scenarios::{all_in, count, fill, finish, say, slow_down, stage, stage_on_disk};
use super::world::World;
use crate::config::Settings;
use serde_json::{Value, json};

fn come(world: &mut World, sub: &str, tab: &str) -> usize {
    let casting = Casting { sub, tab, roles: &["agent"], home: "s.0", echo: false, acks: true, hostile: false, slow: false };
    let client = world.cast(&casting);
    let now = world.now();
    world.clients[client].stay_away_ms(&now, 0);
    assert!(world.run_until(5_000, |world| world.clients[client].is_open()));
    client
}

fn ask(world: &mut World, client: usize, payload: Value) {
    world.command(client, "rw.history", "s.0", payload, What::Other("rw.history_end"));
}

fn looks(world: &World) -> u64 {
    world.seats.iter().map(|seat| seat.counters.history_looks.get()).sum()
}

/// A page that is asked for and came: its numbers and its end.
fn page(world: &mut World, client: usize, payload: Value) -> (Vec<u64>, Value) {
    let before = world.clients[client].pages.len();
    ask(world, client, payload);
    assert!(world.run_until(5_000, |world| world.clients[client].pages.len() > before), "{:?}", world.oracle.violations);
    world.clients[client].pages.last().cloned().unwrap()
}

/// In tests a page looks at 120 messages, a turn at 96.
#[test]
fn a_page_that_looks_at_too_much_ends_there_and_says_where_the_next_goes_on() {
    const MESSAGES: u64 = 700;
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        for number in 1..=MESSAGES {
            let to = if number % 200 == 7 { json!("room:rare") } else { Value::Null };
            world.message_to(0, "s.0", &to, 10, false);
            if number % 50 == 0 {
                world.run_for(100);
            }
        }
        world.run_for(500);
        assert_eq!(world.bounds("s.0").1, MESSAGES);
        for key in ["before", "after"] {
            for (room, expected) in
                [(Some("rare"), vec![7, 207, 407, 607]), (Some("none"), vec![]), (None, (1..=MESSAGES).collect())]
            {
                let (mut at, mut found, mut pages, mut empty) =
                    (json!(if key == "after" { 0 } else { MESSAGES + 1 }), Vec::new(), 0, 0);
                loop {
                    let mut payload = json!({key: at, "limit": 1000});
                    if let Some(room) = room {
                        payload["room"] = json!(room);
                    }
                    // Ana sees what she sent herself.
                    let (seqs, end) = page(&mut world, 0, payload);
                    (pages, empty) = (pages + 1, empty + usize::from(seqs.is_empty()));
                    if key == "after" {
                        found.extend(seqs);
                    } else {
                        found.splice(0..0, seqs).for_each(drop);
                    }
                    assert_eq!(end["more"].as_bool(), Some(end["next_seq"].is_u64()), "{end}");
                    if end["next_seq"].is_null() {
                        break;
                    }
                    assert!(at.as_u64() != end["next_seq"].as_u64() && pages < 20, "{end}");
                    at = end["next_seq"].clone();
                }
                let case = format!("{shards} {key} {room:?}: {pages} pages, {empty} of them empty");
                assert_eq!(found, expected, "{case}");
                // Pages in the other direction skip the numbers that were examined in vain.
                if key == "before" || room.is_none() {
                    assert_eq!((pages, empty), (6, if room.is_none() { 0 } else { 6 - expected.len() }), "{case}");
                }
                assert!(pages <= 6, "{case}");
            }
        }
        // Where it ends for its length, it goes on likewise.
        let (seqs, end) = page(&mut world, 0, json!({"limit": 3}));
        assert_eq!((seqs, &end["next_seq"]), (vec![698, 699, 700], &json!(698)));
        finish(&mut world);
    }
}

/// The client knows nothing of `next_seq`: it goes by the numbers that it was shown, and asks once more if a page showed none.
#[test]
fn a_client_that_pages_by_what_it_saw_comes_to_the_end() {
    const MESSAGES: u64 = 700;
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        for number in 1..=MESSAGES {
            let to = if number % 300 == 7 { json!("room:rare") } else { Value::Null };
            world.message_to(0, "s.0", &to, 10, false);
            if number % 50 == 0 {
                world.run_for(100);
            }
        }
        world.run_for(500);
        let rooms = [("rare", vec![7, 307, 607]), ("none", Vec::new())];
        // With a place to begin at, and from the newest on; both rooms in turns.
        for first in [json!({"after": 0}), json!({"before": MESSAGES + 1}), json!({})] {
            let mut paging = rooms.clone().map(|(room, expected)| (room, expected, first.clone(), Vec::new(), 0, true));
            while paging.iter().any(|(.., goes_on)| *goes_on) {
                for (room, _, wanted, found, pages, goes_on) in paging.iter_mut().filter(|(.., goes_on)| *goes_on) {
                    wanted["room"] = json!(room);
                    let (seqs, end) = page(&mut world, 0, wanted.clone());
                    (*pages, *goes_on) = (*pages + 1, end["more"] == true);
                    assert!(*pages < 20, "{shards} {wanted} {end}");
                    let ascends = first["after"].is_u64();
                    if let Some(seq) = if ascends { seqs.last() } else { seqs.first() } {
                        wanted[if ascends { "after" } else { "before" }] = json!(seq);
                    }
                    found.extend(seqs);
                }
            }
            for (room, expected, wanted, mut found, ..) in paging {
                found.sort_unstable();
                assert_eq!(found, expected, "{shards} {room} {wanted}");
            }
        }
        // Messages that arrive after a fruitless page are found all the same.
        ask(&mut world, 0, json!({"room": "none"}));
        world.message_to(0, "s.0", &json!("room:none"), 10, false);
        assert!(world.run_until(5_000, all_in));
        assert_eq!(page(&mut world, 0, json!({"room": "none"})).0, vec![MESSAGES + 1]);
        finish(&mut world);
    }
}

#[test]
fn whoever_asks_much_keeps_nobody_waiting() {
    let mut world = stage(1, 10_000, &["ana", "bob", "cleo", "dan"]);
    (0..6).for_each(|_| say(&mut world, 0, 50));
    // Each of these looks at more than a turn takes, one after the other of each user's.
    let tabs: Vec<String> = (1..=8).map(|number| number.to_string()).collect();
    let others: Vec<usize> =
        tabs.iter().flat_map(|tab| ["bob", "cleo"].map(|sub| (sub, tab))).map(|(sub, tab)| come(&mut world, sub, tab)).collect();
    let before = looks(&world);
    others.iter().for_each(|client| ask(&mut world, *client, json!({"room": "none", "limit": 1000})));
    assert!(world.run_until(1_000, |world| looks(world) > before));
    ask(&mut world, 3, json!({"limit": 1}));
    // The page is put together in the turn in which it is requested: the others have a step each before, and no whole page.
    let mut waits = false;
    assert!(world.run_until(1_000, |world| {
        waits |= world.seats[0].core.waits_for_history("dan");
        count(world, 3, "rw.history_end") == 1
    }));
    assert!(!waits);
    let answered = |world: &World| others.iter().map(|client| count(world, *client, "rw.history_end")).sum::<u64>();
    assert!(answered(&world) <= 8, "{} were answered before", answered(&world));
    assert!(world.run_until(5_000, all_in));
    assert_eq!((answered(&world), looks(&world) - before), (16, 16 * 120 + 2));
    finish(&mut world);
}

/// Gone without a word, that is; a close waits for what was asked, up to `limits.close_ms`. sim/refreshes.rs has one that is refreshed
/// away.
#[test]
fn a_page_whose_asker_is_gone_is_looked_at_no_more() {
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        (0..6).for_each(|_| say(&mut world, 0, 50));
        for round in 0..10 {
            let before = looks(&world);
            ask(&mut world, 1, json!({"room": "none"}));
            assert!(world.run_until(1_000, |world| looks(world) > before));
            world.end_link(1, true);
            assert!(world.run_until(10_000, |world| world.clients[1].link.is_none()));
            world.run_for(50);
            assert!(looks(&world) - before <= 96, "{round}: {}", looks(&world) - before);
            assert!(world.run_until(5_000, |world| world.clients[1].is_open()));
        }
        finish(&mut world);
    }
}

#[test]
fn a_page_that_the_disk_reads_for_one_who_is_gone_is_dropped_and_the_next_of_its_user_comes() {
    for shards in [1, 2] {
        let mut world = stage_on_disk(shards, 300, &["ana", "bob"], |_| {});
        let tab = come(&mut world, "bob", "1");
        fill(&mut world, 60);
        assert!(world.run_until(2_000, all_in));
        slow_down(&mut world, 100_000);
        ask(&mut world, 1, json!({"after": 0, "limit": 50}));
        world.run_for(5);
        ask(&mut world, tab, json!({"after": 0, "limit": 2}));
        world.run_for(5);
        world.end_link(1, true);
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 100_000);
        assert!(world.run_until(5_000, |world| count(world, tab, "rw.history_end") == 1), "{shards}");
        assert_eq!(count(&world, 1, "rw.history_end"), 0);
        slow_down(&mut world, 300);
        let now = world.now();
        world.clients[1].stay_away_ms(&now, 0);
        assert!(world.run_until(60_000, all_in));
        finish(&mut world);
    }
}

/// By a detach or by a close; the member of a channel is forgotten a moment after that.
#[test]
fn a_page_of_a_channel_is_answered_also_where_its_member_is_forgotten_before() {
    for (shards, closes) in [(1, false), (2, false), (1, true), (2, true)] {
        let change = |settings: &mut Settings| settings.session.presence_grace_ms = 100;
        let mut world = stage_on_disk(shards, 300, &["ana", "bob"], change);
        for _ in 0..60 {
            world.message_to(0, "s.0", &json!("channel:c.0"), 60_000, false);
            world.run_for(80);
        }
        world.command(1, "rw.attach", "channel:c.0", json!({"start": "head"}), What::Attach { asked: Vec::new(), resume: None });
        assert!(world.run_until(2_000, all_in));
        slow_down(&mut world, 400_000);
        world.command(1, "rw.history", "channel:c.0", json!({"after": 0, "limit": 50}), What::Other("rw.history_end"));
        if closes {
            world.leave(1);
        } else {
            world.command(1, "rw.detach", "channel:c.0", json!({}), What::Other("rw.detached"));
        }
        assert!(world.run_until(5_000, |world| count(world, 1, "rw.history_end") == 1), "{shards} {closes}");
        let (_, end) = world.clients[1].pages.last().unwrap();
        assert_eq!(end["more"], true, "{shards} {closes}");
        slow_down(&mut world, 300);
        assert!(world.run_until(60_000, all_in));
        assert_eq!(count(&world, 1, "rw.detached"), u64::from(!closes));
        finish(&mut world);
    }
}

#[test]
fn what_is_not_there_is_looked_for_once() {
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        (0..2).for_each(|_| say(&mut world, 0, 50));
        assert!(world.run_until(2_000, all_in));
        let before = looks(&world);
        assert_eq!(page(&mut world, 1, json!({"room": "none"})).1["more"], false);
        assert_eq!(looks(&world) - before, 100);
        for payload in [json!({"room": "none"}), json!({"room": "none", "after": 0}), json!({"room": "none", "before": 60})] {
            assert_eq!(page(&mut world, 1, payload).1["more"], false);
        }
        assert_eq!(looks(&world) - before, 100, "{shards}");
        // But for what has come since.
        world.message_to(0, "s.0", &json!("room:none"), 10, false);
        assert!(world.run_until(5_000, all_in));
        page(&mut world, 1, json!({"room": "none"}));
        assert_eq!(looks(&world) - before, 101, "{shards}");
        finish(&mut world);
    }
}

#[test]
fn few_reads_for_pages_are_under_way_together_and_all_that_wait_come_to_theirs() {
    let mut world = stage_on_disk(1, 300, &["ana"], |_| {});
    fill(&mut world, 60);
    let others: Vec<usize> = (0..12).map(|number| come(&mut world, &format!("reader{number}"), "1")).collect();
    assert!(world.run_until(60_000, all_in));
    slow_down(&mut world, 50_000);
    others.iter().for_each(|client| ask(&mut world, *client, json!({"after": 0, "limit": 50})));
    let mut most = 0;
    assert!(world.run_until(60_000, |world| {
        most = most.max(world.seats[0].core.reads_for_histories());
        others.iter().all(|client| count(world, *client, "rw.history_end") == 1)
    }));
    assert_eq!(most, 4);
    finish(&mut world);
}

#[test]
fn a_user_may_ask_for_so_many_pages_at_once() {
    let mut world = stage_on_disk(1, 300, &["ana"], |settings| settings.limits.connections_per_user = 0);
    fill(&mut world, 60);
    let tabs: Vec<usize> = (1..=18).map(|number| come(&mut world, "bob", &number.to_string())).collect();
    assert!(world.run_until(60_000, all_in));
    slow_down(&mut world, 100_000);
    tabs.iter().for_each(|client| ask(&mut world, *client, json!({"after": 0, "limit": 1})));
    assert!(world.run_until(60_000, all_in));
    let answers = |kind| tabs.iter().map(|client| count(&world, *client, kind)).sum::<u64>();
    let told: Vec<_> = tabs.iter().map(|client| (&world.clients[*client].answers, &world.clients[*client].closes)).collect();
    assert_eq!((answers("rw.history_end"), answers("limit.history_busy")), (16, 2), "{told:?}");
    // Whoever was refused may ask again.
    for client in tabs {
        ask(&mut world, client, json!({"after": 0, "limit": 1}));
        assert!(world.run_until(60_000, all_in));
    }
    assert_eq!(world.clients.iter().map(|client| client.pages.len()).sum::<usize>(), 16 + 18);
    finish(&mut world);
}
