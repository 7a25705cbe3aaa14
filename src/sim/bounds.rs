//! Bounds that take long, many or much to reach, one test each: whatever exceeds them is refused, held or ended, and counted.

use super::client::{Casting, What};
use super::disk::DiskFaults;
use super::net::Faults;
use super::world::{Features, Plan, World};
use crate::close::CloseReason;
use crate::config::{Durability, Settings};
use crate::limits::CHUNK_BYTES;
use crate::shard::counters::LimitReached;
use serde_json::{Value, json};

/// A single shard, whose clients do only what the test says.
fn stage(clients: &[(&str, &str)], change: impl FnOnce(&mut Settings)) -> World {
    stage_on(1, clients, change)
}

fn stage_on(shards: usize, clients: &[(&str, &str)], change: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    change(&mut settings);
    let (features, disk) = (Features::default(), DiskFaults { delay_us: 100, ..DiskFaults::default() });
    let mut world = World::new(7, &Plan { features, shards, lane_depth: 8, faults: Faults::NONE, disk, settings });
    world.settling = true;
    clients.iter().for_each(|(sub, home)| come(&mut world, sub, home, false));
    assert!(world.run_until(5_000, |world| world.clients.iter().all(super::client::Client::is_open)));
    world
}

fn come(world: &mut World, sub: &str, home: &str, slow: bool) {
    world.cast(&Casting { sub, tab: "", roles: &["agent"], home, echo: false, acks: true, hostile: false, slow });
}

fn reached(world: &World, limit: LimitReached) -> u64 {
    world.seats[0].counters.limit_count(limit)
}

fn ended(world: &World, reason: CloseReason) -> u64 {
    world.seats[0].counters.closed_count(reason)
}

fn answers(world: &World, client: usize, kind: &str) -> u64 {
    world.clients[client].answers.get(kind).copied().unwrap_or(0)
}

/// The client leaves, and comes back no sooner than in `ms`.
fn leave(world: &mut World, client: usize, ms: u64) {
    world.end_link(client, true);
    let now = world.now();
    world.clients[client].stay_away_ms(&now, ms);
}

/// Lets exactly this much time pass, even if nothing happens in it. A client that is `gone` would be back then.
pub(super) fn pass(world: &mut World, gone: usize, ms: u64) {
    let now = world.now();
    world.clients[gone].stay_away_ms(&now, ms);
    world.run_for(ms);
}

#[test]
fn a_connection_ends_with_its_lifetime() {
    let mut world = stage(&[("ana", "s.0")], |settings| settings.limits.connection_lifetime_s = 60);
    world.run_for(53_000);
    assert_eq!((reached(&world, LimitReached::ConnectionLifetime), ended(&world, CloseReason::Draining)), (0, 0));
    // Unannounced, which is what the oracle says of it.
    world.run_for(14_000);
    assert_eq!(reached(&world, LimitReached::ConnectionLifetime), 1);
    let violations = std::mem::take(&mut world.oracle.violations);
    assert!(violations.iter().all(|violation| violation.contains("1012")), "{violations:?}");
    world.run_for(1_000);
    assert_eq!(ended(&world, CloseReason::Draining), 1);
}

#[test]
fn a_session_takes_so_many_members_and_a_shard_so_many_sessions() {
    let mut world = stage(&[("ana", "s.0"), ("bob", "s.0")], |settings| {
        settings.limits.members_per_session = 2;
        settings.limits.sessions_per_shard = 1;
    });
    for (sub, home, limit, code) in [
        ("cleo", "s.0", LimitReached::MembersPerSession, "limit.members"),
        ("dan", "s.1", LimitReached::SessionsPerShard, "limit.sessions"),
    ] {
        come(&mut world, sub, home, false);
        let last = world.clients.len() - 1;
        assert!(world.run_until(5_000, |world| answers(world, last, code) > 0), "{code}");
        assert!(reached(&world, limit) > 0, "{code}");
        leave(&mut world, last, 1_000_000);
        world.run_for(1_000);
    }
    assert!(ended(&world, CloseReason::Overloaded) > 0);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
    assert_eq!((world.seats[0].counters.members.get(), world.seats[0].counters.sessions.get()), (2, 1));
}

fn tab<'a>(tab: &'a str, home: &'a str) -> Casting<'a> {
    Casting { sub: "ana", tab, roles: &["agent"], home, echo: false, acks: true, hostile: false, slow: false }
}

/// A client attaches to its session, or is refused with this code.
fn enter(world: &mut World, casting: &Casting<'_>, code: Option<&str>) -> usize {
    let client = world.cast(casting);
    let now = world.now();
    world.clients[client].stay_away_ms(&now, 0);
    let is_done = |world: &World| match code {
        Some(code) => answers(world, client, code) > 0,
        None => world.clients[client].is_open(),
    };
    assert!(world.run_until(5_000, is_done), "{code:?}: {:?}", world.clients[client].answers);
    client
}

#[test]
fn a_users_own_member_that_is_away_for_longest_gives_way_and_comes_back_as_a_newcomer() {
    for (own_max, members_max) in [(3, 10_000), (32, 12)] {
        let mut world = stage(&[("ana", "s.0"), ("bob", "s.0"), ("cleo", "s.0")], |settings| {
            settings.limits.members_per_user = own_max;
            settings.limits.members_per_session = members_max;
            settings.session.presence_grace_ms = 60_000;
        });
        leave(&mut world, 2, 0);
        world.command(1, "rw.watch", "s.0", json!({"presence": true}), What::Other("rw.watching"));
        let first = enter(&mut world, &tab("1", "s.0"), None);
        let second = enter(&mut world, &tab("2", "s.0"), None);
        world.command(first, "rw.join", "s.0", json!({"room": "x"}), What::Other("rw.joined"));
        pass(&mut world, 2, 50);
        for gone in [first, second] {
            leave(&mut world, gone, 1_000_000);
            pass(&mut world, 2, 300);
        }
        let told = answers(&world, 1, "rw.presence");
        let members = |world: &World| world.seats[0].counters.members.get();
        assert_eq!(members(&world), 5);
        let third = enter(&mut world, &tab("3", "s.0"), None);
        pass(&mut world, 2, 100);
        assert_eq!((members(&world), reached(&world, LimitReached::MembersPerUser)), (5, 0));
        assert_eq!(answers(&world, 1, "rw.presence") - told, 2, "one is lost, one joins");
        for (to, kind) in [("client:ana/1", "route.no_such_member"), ("client:ana/2", "rw.ack")] {
            world.message_to(1, "s.0", &json!(to), 10, false);
            pass(&mut world, 2, 100);
            assert_eq!(answers(&world, 1, kind), 1, "{to}");
        }
        // The removed member's state is forgotten: its room too, which its welcome would name. The next oldest gives way for it.
        world.oracle.forgotten("ana/1", "s.0");
        let now = world.now();
        world.clients[first].stay_away_ms(&now, 0);
        assert!(world.run_until(5_000, |world| world.clients[first].is_open()));
        assert_eq!(members(&world), 5);
        world.message_to(1, "s.0", &json!("client:ana/2"), 10, false);
        pass(&mut world, 2, 100);
        assert_eq!(answers(&world, 1, "route.no_such_member"), 2);
        // All of its members are connected: one more is refused, and another user's is not.
        let refused = enter(&mut world, &tab("4", "s.0"), Some("limit.members"));
        leave(&mut world, refused, 1_000_000);
        assert!(world.clients[third].is_open() && world.clients[first].is_open());
        assert_eq!((members(&world), reached(&world, LimitReached::MembersPerUser)), (5, 1));
        come(&mut world, "dan", "s.0", false);
        assert!(world.run_until(5_000, |world| members(world) == 6));
        assert_eq!(world.oracle.violations, Vec::<String>::new());
    }
}

#[test]
fn a_channel_takes_any_number_of_readers_of_a_user_and_keeps_few_that_are_away() {
    let mut world = stage(&[("bob", "s.0")], |settings| {
        settings.limits.members_per_user = 2;
        settings.session.presence_grace_ms = 3_600_000;
    });
    let tabs: Vec<String> = (1..=9).map(|number| number.to_string()).collect();
    let readers: Vec<usize> = tabs.iter().map(|name| enter(&mut world, &tab(name, "channel:c.0"), None)).collect();
    assert_eq!(world.seats[0].counters.members.get(), 10);
    readers.iter().for_each(|reader| leave(&mut world, *reader, 1_000_000));
    world.run_for(300);
    for number in 10..16 {
        let reader = enter(&mut world, &tab(&number.to_string(), "channel:c.0"), None);
        leave(&mut world, reader, 1_000_000);
        world.run_for(100);
    }
    assert_eq!(world.seats[0].counters.members.get(), 10, "for each that comes one that is away goes");
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

/// The oracle knows what a page of history has to show.
#[test]
fn what_rooms_had_that_were_left_is_seen_in_history_however_few_one_may_be_in() {
    let mut world = stage(&[("ana", "s.0"), ("bob", "s.0")], |settings| settings.limits.rooms_per_client = 2);
    for number in 0..6 {
        let room = format!("r{number}");
        let (join, leave) = (What::Join(room.clone()), What::Leave(room.clone(), number));
        let named = json!({"room": room});
        world.oracle.joining("ana", "s.0", &room, number);
        world.command(0, "rw.join", "s.0", named.clone(), join);
        world.run_for(20);
        world.message_to(1, "s.0", &json!(format!("room:r{number}")), 10, false);
        world.run_for(20);
        world.oracle.leaving("ana", "s.0", &room, number + 1, number);
        world.command(0, "rw.leave", "s.0", named, leave);
        world.run_for(20);
    }
    assert_eq!((answers(&world, 0, "rw.joined"), answers(&world, 0, "rw.left")), (6, 6));
    world.command(0, "rw.history", "s.0", json!({}), What::Other("rw.history_end"));
    world.run_for(100);
    let found: Vec<u64> = world.clients[0].pages.iter().flat_map(|(seqs, _)| seqs.clone()).collect();
    assert_eq!(found, [1, 2, 3, 4, 5, 6]);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

/// Checked at every step: shard/inspect.rs.
#[test]
fn who_joins_and_leaves_rooms_again_and_again_is_remembered_in_as_many_as_anybody_may_be_in() {
    let mut world = stage(&[("ana", "s.0")], |settings| {
        settings.limits.rooms_per_client = 4;
        settings.limits.messages_per_second = 0;
    });
    for number in 0..200 {
        let room = json!({"room": format!("r{}", number % 7)});
        world.command(0, "rw.join", "s.0", room.clone(), What::Other("rw.joined"));
        world.message_to(0, "s.0", &Value::Null, 10, false);
        world.command(0, "rw.leave", "s.0", room, What::Other("rw.left"));
        world.run_for(20);
    }
    assert_eq!((answers(&world, 0, "rw.joined"), answers(&world, 0, "rw.left")), (200, 200));
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

#[test]
fn a_user_makes_so_many_sessions_and_others_make_theirs() {
    let mut world = stage(&[("ana", "s.0")], |settings| settings.limits.sessions_per_user = 1);
    let another =
        |tab| Casting { sub: "ana", tab, roles: &[], home: "s.1", echo: false, acks: true, hostile: false, slow: false };
    world.cast(&another("2"));
    let last = world.clients.len() - 1;
    assert!(world.run_until(5_000, |world| answers(world, last, "limit.sessions") > 0));
    leave(&mut world, last, 1_000_000);
    world.run_for(1_000);
    assert!(reached(&world, LimitReached::SessionsPerUser) > 0 && ended(&world, CloseReason::Overloaded) > 0);
    // A session that exists already may be entered, and another user may make one.
    come(&mut world, "bob", "s.1", false);
    world.cast(&another("3"));
    assert!(world.run_until(5_000, |world| world.seats[0].counters.members.get() == 3));
    assert_eq!((world.oracle.violations.len(), world.seats[0].counters.sessions.get()), (0, 2));
}

/// A session is made by a post to a channel as well, and counts to who posted, whichever shard that is on.
#[test]
fn a_session_made_by_a_post_counts_to_who_posts_until_it_is_gone() {
    for shards in [1, 2] {
        let mut world = stage_on(shards, &[("ana", "s.0"), ("bob", "s.0"), ("cleo", "s.0")], |settings| {
            settings.limits.sessions_per_user = 3;
            settings.session.idle_ms = 2_000;
        });
        // Of one shard: where there are two, of the one where its connection is not.
        let elsewhere = |world: &World, name: &String| shards == 1 || world.home(name) != world.home("s.0");
        let channels: Vec<String> =
            (0..).map(|number| format!("channel:c.{number}")).filter(|name| elsewhere(&world, name)).take(7).collect();
        let made_before = u64::from(shards == 1);
        let home = world.home(&channels[0]);
        leave(&mut world, 2, 500);
        for channel in &channels[..4] {
            world.message_to(0, "s.0", &json!(channel), 10, false);
        }
        world.message_to(0, "s.0", &json!(channels[5]), 10, true);
        pass(&mut world, 2, 500);
        let taken = 3 - made_before;
        assert_eq!((answers(&world, 0, "rw.ack"), answers(&world, 0, "limit.sessions")), (taken, 4 - taken));
        let sessions = |world: &World| world.seats[home].counters.sessions.get();
        assert_eq!(sessions(&world), 3, "nor does one nobody hears make a session");
        assert_eq!(world.seats[home].counters.limit_count(LimitReached::SessionsPerUser), 4 - taken);
        // Others post where it did and where nobody did; what it made is given back with the session.
        world.message_to(1, "s.0", &json!(channels[0]), 10, false);
        world.message_to(1, "s.0", &json!(channels[4]), 10, false);
        pass(&mut world, 2, 500);
        assert_eq!((answers(&world, 1, "rw.ack"), sessions(&world)), (2, 4));
        for _ in 0..10 {
            world.configure(|_| {});
            pass(&mut world, 2, 500);
        }
        assert_eq!(sessions(&world), made_before);
        world.message_to(0, "s.0", &json!(channels[6]), 10, false);
        pass(&mut world, 2, 500);
        assert_eq!((answers(&world, 0, "rw.ack"), answers(&world, 0, "limit.sessions")), (taken + 1, 4 - taken));
        assert_eq!(world.oracle.violations, Vec::<String>::new());
    }
}

#[test]
fn a_member_unseen_and_a_session_that_is_empty_are_forgotten_in_time_and_no_sooner() {
    for (unseen_ms, idle_ms, left) in [(4_000, 4_000, (0, 0)), (4_000, 3_600_000, (0, 1)), (3_600_000, 4_000, (1, 1))] {
        let mut world = stage(&[("ana", "s.0")], |settings| {
            settings.session.presence_grace_ms = 500;
            settings.session.member_unseen_ms = unseen_ms;
            settings.session.idle_ms = idle_ms;
        });
        world.message_to(0, "s.0", &Value::Null, 50, false);
        world.run_for(500);
        leave(&mut world, 0, 3_000);
        let counted = |world: &World| (world.seats[0].counters.members.get(), world.seats[0].counters.sessions.get());
        pass(&mut world, 0, 3_000);
        assert_eq!(counted(&world), (1, 1), "{unseen_ms} {idle_ms}");
        for _ in 0..20 {
            // Whatever control asks of a shard is a turn.
            world.configure(|_| {});
            pass(&mut world, 0, 500);
        }
        assert_eq!(counted(&world), left, "{unseen_ms} {idle_ms}");
    }
}

/// A deadline is never cancelled, and the one of an unseen member is a day ahead.
#[test]
fn a_member_that_comes_and_goes_keeps_one_deadline_and_is_forgotten_after_its_last_absence() {
    for unseen_ms in [86_400_000, 6_000] {
        let mut world = stage(&[("ana", "s.0")], |settings| {
            settings.session.presence_grace_ms = 500;
            settings.session.member_unseen_ms = unseen_ms;
        });
        for _ in 0..50 {
            leave(&mut world, 0, 3_000);
            pass(&mut world, 0, 3_000);
            assert!(world.run_until(5_000, |world| world.clients[0].is_open()));
        }
        leave(&mut world, 0, 5_000);
        pass(&mut world, 0, 5_000);
        assert_eq!(world.seats[0].counters.members.get(), 1, "the deadline of the absence before is none");
        // The connections had deadlines too; by now they are over.
        for _ in 0..60 {
            pass(&mut world, 0, 1_000);
        }
        let left = (world.seats[0].counters.members.get(), world.seats[0].core.deadlines());
        assert_eq!(left, if unseen_ms > 60_000 { (1, 1) } else { (0, 0) });
        assert_eq!(world.oracle.violations, Vec::<String>::new());
    }
}

/// A client that reads nothing and asks for much: too many replies, or too many bytes of a shard's buffers.
#[test]
fn replies_that_nobody_takes_are_bounded_by_their_number_and_by_the_shards_memory() {
    for (frames, memory, limit) in [(16, 1 << 30, LimitReached::ReplyQueue), (65_536, 10_000, LimitReached::ShardMemory)] {
        let mut world = stage(&[("ana", "s.0")], |settings| {
            settings.limits.messages_per_second = 0;
            settings.limits.reply_queue_frames = frames;
            settings.limits.shard_memory_bytes = memory;
        });
        come(&mut world, "bob", "s.0", true);
        assert!(world.run_until(5_000, |world| world.clients[1].is_open()));
        world.run_for(500);
        world.link(1).stalled_until = u64::MAX;
        for _ in 0..300 {
            world.message_to(1, "s.0", &json!("client:nobody"), 50, false);
        }
        world.run_for(10_000);
        assert!(reached(&world, limit) > 0, "{limit:?}");
        assert_eq!(ended(&world, CloseReason::TooSlow), 1, "{limit:?}");
        assert!(world.clients[0].is_open(), "{limit:?}");
    }
}

/// Nobody is held if the operator sets it so; with a hold: sim/scenarios.rs.
#[test]
fn a_sender_is_told_at_once_that_its_session_can_take_no_more_where_there_is_no_hold() {
    let mut world = stage(&[("ana", "s.0"), ("bob", "s.0")], |settings| {
        settings.log.dir = Some("/of/the/simulation".into());
        settings.log.segment_bytes = 64 * CHUNK_BYTES as u64;
        settings.limits.messages_per_second = 0;
        settings.limits.bytes_per_second = 0;
        settings.limits.backpressure_hold_ms = 0;
    });
    leave(&mut world, 1, 0);
    world.seats[0].engine.disk.faults.delay_us = 20_000_000;
    let mut sent = 0;
    while answers(&world, 0, "limit.backpressure") == 0 {
        assert!(sent < 300, "18 MB were taken, and none was written");
        world.message_to(0, "s.0", &Value::Null, 60_000, false);
        pass(&mut world, 1, 20);
        sent += 1;
    }
    assert!(sent * 60_000 > 8_000_000, "after {sent} messages");
    world.message_to(0, "s.0", &Value::Null, 50, false);
    pass(&mut world, 1, 100);
    assert_eq!((answers(&world, 0, "limit.backpressure"), reached(&world, LimitReached::Hold)), (2, 0));
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

/// A disk that fails for good answers nothing any more: the shard refuses the waiting messages and later ones, repeats too.
#[test]
fn what_waits_for_a_disk_that_fails_is_answered_once() {
    const SENT: u64 = 20;
    for durability in [Durability::Written, Durability::Synced] {
        for (write_errors, sync_errors) in [(100, 0), (0, 100)] {
            let mut world = stage(&[("ana", "s.0"), ("bob", "s.0")], |settings| {
                settings.log.dir = Some("/of/the/simulation".into());
                settings.log.segment_bytes = 64 * CHUNK_BYTES as u64;
                settings.log.durability = durability;
            });
            leave(&mut world, 1, 0);
            let faults = &mut world.seats[0].engine.disk.faults;
            (faults.delay_us, faults.write_errors, faults.sync_errors) = (500_000, write_errors, sync_errors);
            (0..SENT).for_each(|_| world.message_to(0, "s.0", &Value::Null, 50, false));
            pass(&mut world, 1, 5_000);
            let case = format!("{durability:?} {write_errors} {sync_errors}: {:?}", world.clients[0].answers);
            assert_eq!(world.clients[0].waiting(), Vec::<String>::new(), "{case}");
            let hopeless = write_errors > 0 || durability == Durability::Synced;
            // Messages on their way to the disk before it failed may be in the log.
            let told = answers(&world, 0, "limit.disk");
            assert_eq!((told + answers(&world, 0, "rw.ack"), told > SENT / 2), (SENT, hopeless), "{case}");
            let past = world.clients[0].past.back().cloned().unwrap();
            for _ in 0..3 {
                world.send_past(0, &past);
            }
            pass(&mut world, 1, 2_000);
            assert_eq!(world.clients[0].waiting(), Vec::<String>::new(), "{case}");
            assert_eq!(answers(&world, 0, "limit.disk") - told, if hopeless { 3 } else { 0 }, "{case}");
            assert_eq!(world.oracle.violations, Vec::<String>::new(), "{case}");
        }
    }
}

/// Checked at every step: shard/inspect.rs.
#[test]
fn a_slow_handshake_keeps_no_places_of_those_that_got_through() {
    let mut world = stage(&[("ana", "s.0")], |settings| {
        settings.limits.handshake_ms = 3_600_000;
        settings.limits.half_open_percent = 50;
        settings.server.max_connections = 8;
    });
    let _silent = world.connect_bare(1_000, 0);
    for round in 0..20 {
        world.end_link(0, true);
        assert!(world.run_until(5_000, |world| world.clients[0].is_open()), "{round}");
    }
    assert_eq!(world.oracle.violations, Vec::<String>::new());
    assert_eq!(world.seats[0].counters.connections_half_open.get(), 1);
}

#[test]
fn a_message_that_waits_for_the_disk_does_not_age_away_before_anybody_has_seen_it() {
    let mut world = stage(&[("ana", "s.0"), ("bob", "s.0")], |settings| {
        settings.log.dir = Some("/of/the/simulation".into());
        settings.log.segment_bytes = 2 * CHUNK_BYTES as u64;
        settings.log.retention_age_s = 1;
    });
    world.seats[0].engine.disk.faults.delay_us = 8_000_000;
    (0..20).for_each(|_| world.message_to(0, "s.0", &Value::Null, 50, false));
    world.run_for(4_000);
    assert!(world.appended("s.0") == 20 && world.bounds("s.0").1 < 20);
    assert!(world.run_until(60_000, |world| world.clients[0].waiting().is_empty()));
    world.run_for(100);
    assert_eq!(world.clients[1].held["s.0"], 20);
    world.claim_heads();
    world.oracle.finish();
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}
