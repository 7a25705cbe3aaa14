//! Readers in situations that chance finds seldom: a test each for the gateway, and for the oracle, which must see what is missing.

use super::bounds::pass;
use super::client::{Casting, Sabotage, What};
use super::scenarios::{all_in, count, finish, say, stage};
use super::world::World;
use serde_json::{Value, json};

fn attach(world: &mut World, client: usize, session: &str, rooms: &[&str], start: &str) {
    let asked = rooms.iter().map(|room| (*room).to_owned()).collect();
    let payload = json!({"rooms": rooms, "start": start});
    world.command(client, "rw.attach", session, payload, What::Attach { asked, resume: None });
}

/// Memory holds four messages. Bob reads through a mirror, and ana sends where the session is at home: the world, the session, ana, and the mirror's shard.
fn mirrored() -> (World, String, usize, usize) {
    let mut world = stage(2, 4, &["bob"]);
    let there = world.home("s.0");
    let session: String = (1..).map(|number| format!("s.{number}")).find(|session| world.home(session) != there).unwrap();
    let ana = world.cast(&Casting {
        sub: "ana",
        tab: "",
        roles: &[],
        home: &session,
        echo: false,
        acks: true,
        hostile: false,
        slow: false,
    });
    attach(&mut world, 0, &session, &[], "head");
    assert!(world.run_until(5_000, all_in));
    (world, session, ana, there)
}

/// The oracle finds that something is missing where the next message is kept from whoever it comes to, and nothing wrong where not.
fn judge(mut world: World, spoilt: bool) {
    if !spoilt {
        return finish(&mut world);
    }
    world.claim_heads();
    world.oracle.finish();
    let violations = &world.oracle.violations;
    assert!(violations.len() == 1 && violations[0].contains("is missing"), "{violations:?}");
}

fn spoil_next(world: &mut World, spoilt: bool) {
    world.sabotage = spoilt.then_some(Sabotage::Drop(world.oracle.delivered));
}

#[test]
fn a_hole_in_a_mirror_takes_nothing_from_readers_that_are_still_to_be_woken_for_what_is_before_it() {
    let (mut world, session, ana, there) = mirrored();
    let session = &*session;
    world.message_to(ana, session, &Value::Null, 50, false);
    world.run_for(100);
    assert_eq!(world.clients[0].held[session], 1);
    // The mirror's shard has no turn meanwhile: what two turns of the home appended comes to it at once, and of the second retention kept
    // a part.
    let home = world.home(session);
    for messages in [1, 10] {
        (0..messages).for_each(|_| world.message_to(ana, session, &Value::Null, 50, false));
        let now_ns = world.now_ns;
        (world.seats[home].paused_until, world.seats[there].paused_until) = (now_ns + 5_000_000, now_ns + 50_000_000);
        let head = world.bounds(session).1 + messages;
        assert!(world.run_until(20, |world| world.bounds(session).1 == head));
    }
    assert!(world.seats[there].paused_until > world.now_ns);
    assert!(world.run_until(5_000, all_in));
    world.run_for(100);
    assert_eq!((world.clients[0].held[session], count(&world, 0, "rw.gap")), (12, 1));
    finish(&mut world);
}

#[test]
fn a_room_that_is_left_before_the_answer_to_the_attach_is_read_is_left() {
    for spoilt in [false, true] {
        let mut world = stage(1, 10_000, &["ana", "bob", "eve"]);
        attach(&mut world, 0, "s.1", &[], "head");
        assert!(world.run_until(5_000, all_in));
        world.end_link(2, true);
        world.link(1).stalled_until = world.now_ns + 500_000_000;
        attach(&mut world, 1, "s.1", &["dev"], "head");
        pass(&mut world, 2, 50);
        world.message_to(0, "s.1", &json!("room:dev"), 10, false);
        pass(&mut world, 2, 50);
        world.leave_room(1, "s.1", "dev");
        pass(&mut world, 2, 50);
        for _ in 0..3 {
            world.message_to(0, "s.1", &json!("room:dev"), 10, false);
        }
        pass(&mut world, 2, 50);
        assert_eq!((world.bounds("s.1").1, count(&world, 1, "rw.attached")), (4, 0));
        spoil_next(&mut world, spoilt);
        assert!(world.run_until(5_000, all_in));
        world.command(1, "rw.history", "s.1", json!({}), What::Other("rw.history_end"));
        assert!(world.run_until(5_000, all_in));
        assert_eq!((count(&world, 1, "rw.left"), count(&world, 1, "rw.history_end")), (1, 1));
        judge(world, spoilt);
    }
}

#[test]
fn a_join_that_is_repeated_says_nothing_of_attachments_before_the_first() {
    for spoilt in [false, true] {
        let mut world = stage(1, 10_000, &["ana", "bob"]);
        (0..2).for_each(|client| attach(&mut world, client, "s.1", &[], "head"));
        assert!(world.run_until(5_000, all_in));
        for to in ["room:dev", "session"] {
            world.message_to(0, "s.1", &json!(to), 10, false);
        }
        world.run_for(100);
        assert_eq!(world.clients[1].held["s.1"], 2);
        world.command(1, "rw.detach", "s.1", json!({}), What::Other("rw.detached"));
        assert!(world.run_until(5_000, all_in));
        // An attach is lost on its way, and the next one is taken.
        attach(&mut world, 1, "s.1", &["dev"], "head");
        world.end_link(1, true);
        assert!(world.run_until(5_000, all_in));
        attach(&mut world, 1, "s.1", &["dev"], "oldest");
        assert!(world.run_until(5_000, all_in));
        world.enter_room(1, "s.1", "dev");
        assert!(world.run_until(5_000, all_in));
        world.message_to(0, "s.1", &json!("room:dev"), 10, false);
        spoil_next(&mut world, spoilt);
        assert!(world.run_until(5_000, all_in));
        world.run_for(100);
        assert_eq!((count(&world, 1, "rw.joined"), world.bounds("s.1").1), (1, 3));
        judge(world, spoilt);
    }
}

#[test]
fn a_reader_at_rest_is_told_of_no_gap_where_retention_drops_what_was_not_for_it() {
    let mut world = stage(1, 4, &["ana", "bob"]);
    say(&mut world, 0, 1);
    for _ in 0..10 {
        world.message_to(0, "s.0", &json!("client:ana"), 10, false);
    }
    assert!(world.run_until(5_000, all_in));
    world.command(1, "rw.ping", "s.0", json!({}), What::Ping { acked_max: 0 });
    assert!(world.run_until(5_000, all_in));
    assert_eq!((world.bounds("s.0"), count(&world, 1, "rw.gap")), ((8, 11), 0));
    say(&mut world, 0, 1);
    assert_eq!((world.clients[1].held["s.0"], count(&world, 1, "rw.gap")), (12, 0));
    finish(&mut world);
}
