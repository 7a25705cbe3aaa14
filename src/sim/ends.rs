//! Ends that seeds came to, in a scenario of its own each: readers that waited for ever, were closed again and again, or were held
//! to a time in which the gateway itself stood still; what comes to a shard that has stopped; and lists of a room's members and last words
//! as the oracle judges them.

use super::bounds::pass;
use super::client::{Casting, Phase, What};
use super::rest::shut_down;
use super::scenarios::{all_in, count, fill, finish, say, slow_down, stage, stage_on_disk};
use super::tokens::token_for;
use super::world::World;
use crate::close::CloseReason;
use crate::shard::counters::LimitReached;
use crate::shard::port::PortMessage;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::sync::Arc;

/// Longer than any client that does not read is left alone in these scenarios.
const LONG_NS: u64 = 3_600_000_000_000;

fn attach(world: &mut World, client: usize, session: &str, rooms: &[&str]) {
    let asked = rooms.iter().map(|room| (*room).to_owned()).collect();
    world.command(client, "rw.attach", session, json!({"rooms": rooms, "start": "head"}), What::Attach { asked, resume: None });
}

fn come(world: &mut World, sub: &str, home: &str) -> usize {
    world.cast(&Casting { sub, tab: "", roles: &[], home, echo: false, acks: true, hostile: false, slow: false })
}

/// The client reads nothing, and its socket takes so few bytes that the next frame is cut.
fn stuff(world: &mut World, client: usize) {
    let until_ns = world.now_ns + LONG_NS;
    let socket = world.link(client).pipe.socket;
    world.link(client).stalled_until = until_ns;
    world.net.sockets[socket].capacity = 10;
}

fn loosen(world: &mut World, client: usize) {
    let socket = world.link(client).pipe.socket;
    world.link(client).stalled_until = 0;
    world.net.sockets[socket].capacity = 100_000;
}

fn closed(world: &World, reasons: &[CloseReason]) -> u64 {
    let of = |reason: &CloseReason| world.seats.iter().map(|seat| seat.counters.closed_count(*reason)).sum::<u64>();
    reasons.iter().map(of).sum()
}

#[test]
fn a_channel_that_nobody_is_in_stays_until_who_left_it_has_read_the_last_answer() {
    let mut world = stage(1, 10_000, &["ana", "eve"]);
    world.end_link(1, true);
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        settings.session.presence_grace_ms = 200;
        snapshot.settings = Arc::new(settings);
    });
    attach(&mut world, 0, "channel:c.0", &[]);
    pass(&mut world, 1, 1_000);
    stuff(&mut world, 0);
    world.command(0, "rw.ping", "s.0", json!({}), What::Ping { acked_max: 0 });
    pass(&mut world, 1, 100);
    world.command(0, "rw.detach", "channel:c.0", json!({}), What::Other("rw.detached"));
    // Long enough for the member to be forgotten, and for a channel without messages that has none.
    pass(&mut world, 1, 5_000);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
    let sessions = |world: &World| world.seats[0].counters.sessions.get();
    assert_eq!((world.seats[0].counters.members.get(), sessions(&world), count(&world, 0, "rw.detached")), (2, 2, 0));
    loosen(&mut world, 0);
    assert!(world.run_until(5_000, all_in));
    // A session is looked at in some turn.
    say(&mut world, 0, 1);
    say(&mut world, 0, 1);
    assert_eq!((count(&world, 0, "rw.detached"), sessions(&world)), (1, 1));
    finish(&mut world);
}

/// Sessions at home on one shard, and bob's is on the other.
fn sessions_elsewhere(world: &World) -> Vec<String> {
    let there = world.home("s.0");
    (1..).map(|number| format!("s.{number}")).filter(|session| world.home(session) != there).take(3).collect()
}

/// Bob reads sessions through mirrors, whose shard stands still while ana, at home there, says so much in each: first `before` messages in
/// those behind the first, then six in the first.
fn behind(mut world: World, sessions: &[String], before: usize) -> World {
    let there = world.home("s.0");
    let ana = come(&mut world, "ana", &sessions[0]);
    assert!(world.run_until(5_000, |world| world.clients[ana].is_open()));
    for session in sessions {
        attach(&mut world, 0, session, &[]);
        if *session != sessions[0] {
            attach(&mut world, ana, session, &[]);
        }
    }
    assert!(world.run_until(5_000, all_in));
    world.message_to(ana, &sessions[0], &Value::Null, 50, false);
    world.run_for(1_000);
    assert_eq!(world.clients[0].held[&sessions[0]], 1);
    world.seats[there].paused_until = world.now_ns + LONG_NS;
    let others = sessions[1..].iter().map(|session| (session, before));
    for (session, messages) in others.chain([(&sessions[0], 6)]) {
        for _ in 0..messages {
            let head = world.bounds(session).1 + 1;
            world.message_to(ana, session, &Value::Null, 50, false);
            assert!(world.run_until(1_000, |world| world.bounds(session).1 == head));
            world.run_for(10);
        }
    }
    assert_eq!(world.clients[0].held[&sessions[0]], 1);
    world
}

/// All is answered, up to the head, within seconds; so many gaps were told.
fn catch_up(world: &mut World, session: &str) -> u64 {
    let there = world.home("s.0");
    world.seats[there].paused_until = 0;
    world.run_for(1_000);
    world.command(0, "rw.ping", session, json!({}), What::Ping { acked_max: 0 });
    assert!(world.run_until(5_000, all_in), "{:?}", world.clients[0].waiting());
    assert_eq!(world.clients[0].held[session], 7);
    count(world, 0, "rw.gap")
}

#[test]
fn a_mirror_hears_of_messages_that_were_all_purged_before_it_was_sent_them() {
    let world = stage(2, 10_000, &["bob"]);
    let sessions = sessions_elsewhere(&world);
    // The lane is full of what was said before.
    let mut world = behind(world, &sessions, 6);
    world.purge(&sessions[0]);
    world.run_for(100);
    assert_eq!(world.bounds(&sessions[0]), (8, 7));
    assert_eq!(catch_up(&mut world, &sessions[0]), 1);
    finish(&mut world);
}

#[test]
fn a_mirror_hears_of_messages_that_had_all_left_memory_before_it_was_sent_them() {
    let world = stage_on_disk(2, 300, &["bob"], |_| {});
    let sessions = sessions_elsewhere(&world);
    let (session, flood) = (sessions[0].clone(), sessions[1].clone());
    let mut world = behind(world, &sessions[..1], 0);
    // The messages that fill the home's memory are sent in another session of it.
    let dan = come(&mut world, "dan", &flood);
    assert!(world.run_until(5_000, |world| world.clients[dan].is_open()));
    for _ in 0..80 {
        world.message_to(dan, &flood, &Value::Null, 60_000, false);
        world.run_for(80);
    }
    assert_eq!(world.bounds(&session), (1, 7));
    let reads = |world: &World| world.seats[world.home(&session)].counters.log_reads.get();
    assert_eq!(reads(&world), 0);
    assert_eq!(catch_up(&mut world, &session), 0);
    assert!(reads(&world) > 0, "what was not sent is read from disk");
    finish(&mut world);
}

/// The bits that flip are those by which a place in an index leads to another file, to one that is written, or to none.
#[test]
fn a_damaged_index_that_names_a_place_outside_of_its_file_keeps_nobody_from_what_is_there() {
    for shards in [1, 2] {
        for bit in [0x01, 0x08, 0x40] {
            let case = format!("{shards} shards, bit {bit:#x}");
            let mut world = stage_on_disk(shards, 300, &["ana", "bob"], |_| {});
            say(&mut world, 0, 1);
            world.end_link(1, true);
            let now = world.now();
            world.clients[1].stay_away_ms(&now, 10_000_000);
            fill(&mut world, 60);
            let home = world.home("s.0");
            let entries = RefCell::new(Vec::new());
            let seat = &world.seats[home];
            seat.core.log_entries(|segment, entry_at| {
                entries.borrow_mut().push((segment, entry_at));
                seat.engine.disk.located(segment, entry_at)
            });
            let entries = entries.into_inner();
            assert!(entries.len() > 30, "{case}: {} are cold", entries.len());
            for (segment, entry_at) in entries.iter().skip(3).step_by(7) {
                // The highest byte of the place.
                world.seats[home].engine.disk.damage_index(*segment, *entry_at + 3, bit);
            }
            let now = world.now();
            world.clients[1].stay_away_ms(&now, 0);
            assert!(world.run_until(30_000, |world| all_in(world) && world.clients[1].held["s.0"] == 61), "{case}");
            assert_eq!((count(&world, 1, "rw.gap"), closed(&world, &[CloseReason::TooSlow])), (0, 0), "{case}");
            assert!(world.seats[home].engine.disk.damaged_indexes() == 0, "{case}: not made anew");
            finish(&mut world);
        }
    }
}

#[test]
fn a_standstill_ends_no_connection_whatever_it_was_about() {
    let reasons = [
        CloseReason::HeartbeatLost,
        CloseReason::MessageTooSlow,
        CloseReason::TooSlow,
        CloseReason::HandshakeTooLate,
        CloseReason::HttpAnswered,
    ];
    // Before there is nothing left to do: then time would go on to what is due next.
    for steps in 0..8 {
        let (ana, bob, cleo, eve) = (0, 1, 2, 3);
        let mut world = stage(1, 10_000, &["ana", "bob", "cleo", "eve"]);
        world.end_link(eve, true);
        world.clients[eve].away_until = LONG_NS;
        // Ana was sent a ping, and has not read it.
        world.link(ana).stalled_until = LONG_NS;
        let socket = world.link(ana).pipe.socket;
        assert!(world.run_until(30_000, |world| !world.net.sockets[socket].to_client.is_empty()));
        // Bob's message has come in part, cleo takes nothing, and dan shakes hands.
        world.command(bob, "rw.ping", "s.0", json!({}), What::Ping { acked_max: 0 });
        let rest = world.link(bob).pipe.tx.split_off(20);
        world.link(bob).stalled_until = LONG_NS;
        stuff(&mut world, cleo);
        world.message_to(ana, "s.0", &Value::Null, 500, false);
        pass(&mut world, eve, 50);
        let dan = come(&mut world, "dan", "s.0");
        world.clients[dan].away_until = 0;
        (0..steps).for_each(|_| _ = world.step());
        let shakes = world.clients[dan].link.as_ref().is_none_or(|link| link.phase != Phase::Open);
        assert!(shakes || steps > 3, "{steps}");
        world.now_ns += 30_000_000_000;
        pass(&mut world, eve, 300);
        assert_eq!((closed(&world, &reasons), world.seats[0].counters.standstills.get()), (0, 1), "{steps}");
        world.link(bob).pipe.tx.extend(rest);
        [ana, bob].into_iter().for_each(|client| world.link(client).stalled_until = 0);
        loosen(&mut world, cleo);
        assert!(world.run_until(5_000, all_in), "{steps}");
        world.run_for(1_000);
        assert_eq!((closed(&world, &reasons), world.clients[cleo].held["s.0"]), (0, 1), "{steps}");
        finish(&mut world);
    }
}

/// The stall time is over before the gateway sends it more, by less than makes a standstill.
#[test]
fn who_took_all_that_it_was_sent_is_not_slow_before_it_is_sent_more() {
    let stall = |world: &mut World| {
        let socket = world.link(1).pipe.socket;
        world.net.sockets[socket].capacity = 2_000;
        world.link(1).stalled_until = LONG_NS;
        (0..3).for_each(|_| world.message_to(0, "s.0", &Value::Null, 3_000, false));
        pass(world, 2, 200);
        assert_eq!(world.net.sockets[socket].to_client.len(), 2_000);
        pass(world, 2, 8_000);
        socket
    };
    for takes in [true, false] {
        let mut world = stage(1, 10_000, &["ana", "bob", "eve"]);
        world.end_link(2, true);
        let socket = stall(&mut world);
        if takes {
            world.link(1).stalled_until = 0;
            while !world.net.sockets[socket].to_client.is_empty() {
                world.read(1);
            }
        }
        world.now_ns += 2_400_000_000;
        // A close is counted when it is over, for which who takes nothing is given its time.
        pass(&mut world, 2, if takes { 1_000 } else { 10_000 });
        let stood_still = world.seats[0].counters.standstills.get();
        assert_eq!((closed(&world, &[CloseReason::TooSlow]), stood_still), (u64::from(!takes), 0), "takes {takes}");
        if takes {
            assert_eq!(world.clients[1].held["s.0"], 3);
            finish(&mut world);
        }
    }
}

/// The messages waiting for it are purged, and the replacement comes from a shard that has no turn.
#[test]
fn who_waits_for_the_gateway_itself_is_not_slow() {
    let (bob, eve) = (0, 1);
    let mut world = stage(2, 10_000, &["bob", "eve"]);
    let session = sessions_elsewhere(&world).remove(0);
    let (home, ana) = (world.home(&session), come(&mut world, "ana", &session));
    attach(&mut world, bob, &session, &[]);
    assert!(world.run_until(5_000, all_in));
    world.end_link(eve, true);
    let socket = world.link(bob).pipe.socket;
    world.link(bob).stalled_until = LONG_NS;
    for number in 1..=2 {
        world.message_to(ana, &session, &Value::Null, 50, false);
        pass(&mut world, eve, 100);
        // Of the second his socket takes nothing.
        let held = world.net.sockets[socket].to_client.len();
        assert_eq!((world.bounds(&session).1, world.net.sockets[socket].capacity == held), (number, number == 2));
        world.net.sockets[socket].capacity = held;
    }
    world.purge(&session);
    pass(&mut world, eve, 100);
    assert_eq!(world.bounds(&session), (3, 2));
    world.seats[home].paused_until = world.now_ns + LONG_NS;
    loosen(&mut world, bob);
    pass(&mut world, eve, 15_000);
    assert_eq!((world.clients[bob].held[&session], closed(&world, &[CloseReason::TooSlow])), (1, 0));
    world.seats[home].paused_until = 0;
    assert!(world.run_until(10_000, |world| all_in(world) && world.clients[bob].held[&session] == 2));
    assert_eq!((count(&world, bob, "rw.gap"), closed(&world, &[CloseReason::TooSlow])), (1, 0));
    finish(&mut world);
}

/// Ana asks for the list of a room that bob named on attaching; he left it by a message that he sent before he had read the answer to
/// the attach, or (`before`) before the attach itself.
#[test]
fn a_rooms_list_is_judged_by_the_leaves_that_came_after_what_an_attach_found() {
    for before in [false, true] {
        let mut world = stage(1, 10_000, &["ana", "bob"]);
        for client in 0..2 {
            attach(&mut world, client, "s.1", &["dev"]);
        }
        assert!(world.run_until(5_000, all_in));
        world.command(1, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
        assert!(world.run_until(5_000, all_in));
        world.link(1).stalled_until = world.now_ns + 500_000_000;
        if before {
            // Refused, since he is not attached.
            world.leave_room(1, "s.1", "dev");
        }
        world.now_ns += 1_000;
        attach(&mut world, 1, "s.1", &["dev"]);
        world.now_ns += 1_000;
        if !before {
            world.leave_room(1, "s.1", "dev");
        }
        assert!(world.run_until(5_000, all_in));
        world.ask_members(0, "s.1", Some("dev"), &Value::Null);
        assert!(world.run_until(5_000, all_in));
        let roster = world.rosters.remove(&(0, "s.1".to_owned(), Some("dev".to_owned()))).unwrap();
        assert_eq!(world.wrong_in("s.1", Some("dev"), &roster), None, "{before}");
        let spoilt = roster.toggled(&json!({"client_id": "bob", "roles": ["agent"], "state": "online", "data": null}));
        let complaint = world.wrong_in("s.1", Some("dev"), &spoilt);
        assert_eq!(complaint.as_deref(), Some(if before { "bob is missing" } else { "bob was never there" }));
        assert_eq!(world.oracle.violations, Vec::<String>::new());
    }
}

/// The answer to a post comes from the channel's home, whose shard has no memory for it.
#[test]
fn who_is_not_answered_for_want_of_memory_on_another_shard_is_closed() {
    let mut world = stage(2, 10_000, &["ana"]);
    let there = world.home("s.0");
    let channel = (0..).map(|number| format!("channel:c.{number}")).find(|channel| world.home(channel) != there).unwrap();
    let hold_to = |world: &mut World, bytes| {
        world.configure(|snapshot| {
            let mut settings = (*snapshot.settings).clone();
            settings.limits.shard_memory_bytes = bytes;
            snapshot.settings = Arc::new(settings);
        });
    };
    hold_to(&mut world, 1);
    world.run_for(100);
    world.message_to(0, "s.0", &json!(channel), 50, false);
    assert!(world.run_until(1_000, |world| closed(world, &[CloseReason::TooSlow]) == 1));
    hold_to(&mut world, 64 << 20);
    assert!(world.run_until(10_000, all_in), "{:?}", world.clients[0].waiting());
    finish(&mut world);
}

/// Ana's new token covers no session that she is in: she is closed (4403), and does not read of it.
fn lose_all(world: &mut World) {
    stuff(world, 0);
    let auth_token = token_for(&world.clients[0], &["s.5"], world.now().wall_s(), 600);
    world.command(0, "rw.refresh", "s.0", json!({"auth_token": auth_token}), What::Other("rw.refreshed"));
    world.run_for(50);
    assert!(world.link(0).close_code.is_none());
}

#[test]
fn a_standstill_leaves_a_connection_the_time_for_its_end() {
    let mut world = stage(1, 10_000, &["ana"]);
    lose_all(&mut world);
    world.now_ns += 30_000_000_000;
    loosen(&mut world, 0);
    world.run_for(300);
    let late = world.seats[0].counters.limit_count(LimitReached::CloseTime);
    let told = world.clients[0].link.as_ref().and_then(|link| link.close_code);
    assert_eq!((told, late), (Some(4403), 0));
    assert_eq!(std::mem::take(&mut world.oracle.violations), ["ana was closed with Some(4403)"]);
}

/// Replies of an ending connection that wait for their place in the order, or for the disk, are sent after the standstill too.
#[test]
fn a_standstill_leaves_the_time_for_what_was_sent_before_a_close_frame() {
    let mut world = stage_on_disk(1, 300, &["ana"], |_| {});
    slow_down(&mut world, 200_000);
    let acks = count(&world, 0, "rw.ack");
    world.message_to(0, "s.0", &Value::Null, 50, false);
    world.leave(0);
    world.run_for(3);
    world.now_ns += 30_000_000_000;
    assert!(world.run_until(2_000, |world| world.clients[0].link.is_none()));
    let late = world.seats[0].counters.limit_count(LimitReached::CloseTime);
    assert_eq!((count(&world, 0, "rw.ack") - acks, world.clients[0].closes.get(&1000), late), (1, Some(&1), 0));
}

/// Closed before for a reason that she did not come to read, ana is owed nothing for what she says then; otherwise she is.
#[test]
fn a_last_word_is_judged_where_the_gateway_had_not_closed_before() {
    for is_closed in [true, false] {
        let mut world = stage(1, 10_000, &["ana"]);
        world.configure(|snapshot| {
            let mut settings = (*snapshot.settings).clone();
            settings.limits.close_ms = 10;
            snapshot.settings = Arc::new(settings);
        });
        if is_closed {
            lose_all(&mut world);
            loosen(&mut world, 0);
        }
        world.command(0, "rw.ping", "s.0", json!({}), What::Ping { acked_max: 0 });
        world.leave(0);
        assert!(world.run_until(1_000, |world| world.clients[0].link.is_none()));
        let answered = (count(&world, 0, "rw.pong"), world.farewells, world.clients[0].closes.len());
        assert_eq!(answered, if is_closed { (0, 0, 0) } else { (1, 1, 1) });
        assert_eq!(world.oracle.violations, Vec::<String>::new());
    }
}

/// Bob comes to one shard, and his session is at home on another, which is told to stop before it has heard of him.
fn hand_to_stopped(world: &mut World, is_slow: bool) -> usize {
    let session = sessions_elsewhere(world).remove(0);
    let there = world.home(&session);
    if is_slow {
        let ana = come(world, "ana", &session);
        assert!(world.run_until(5_000, all_in));
        slow_down(world, 1_000_000);
        world.message_to(ana, &session, &Value::Null, 50, false);
        world.run_for(20);
    }
    world.stopping = true;
    world.tell(there, PortMessage::Stop);
    world.run_for(20);
    assert_eq!(world.seats[there].stopped, !is_slow);
    let before = world.seats.iter().map(|seat| seat.counters.handed_over.get()).sum::<u64>();
    let bob = come(world, "bob", &session);
    world.clients[bob].away_until = 0;
    while world.seats.iter().map(|seat| seat.counters.handed_over.get()).sum::<u64>() == before {
        assert!(world.run_until(5_000, |world| world.clients[bob].link.is_some()));
        world.run_for(5);
    }
    bob
}

#[test]
fn a_connection_on_its_way_to_a_shard_that_has_stopped_ends_with_the_process() {
    let mut world = stage(2, 10_000, &["eve"]);
    let bob = hand_to_stopped(&mut world, false);
    world.run_for(100);
    assert!(!world.clients[bob].is_open());
    assert_eq!(world.admission.connections(), 2);
    shut_down(&mut world);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

#[test]
fn who_is_handed_to_a_shard_that_stops_is_told_so() {
    let mut world = stage_on_disk(2, 300, &["eve"], |_| {});
    let bob = hand_to_stopped(&mut world, true);
    assert!(world.run_until(500, |world| world.clients[bob].closes.contains_key(&1001)));
    assert_eq!((count(&world, bob, "rw.welcome"), closed(&world, &[CloseReason::Shutdown])), (0, 2));
    shut_down(&mut world);
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}
