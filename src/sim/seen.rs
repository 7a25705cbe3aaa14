//! Who sees what, in situations that chance finds seldom: a test each for the gateway, and for what the oracle makes of them.

use super::client::{Casting, What};
use super::scenarios::{all_in, count, finish, stage};
use super::world::World;
use serde_json::{Value, json};

fn attach(world: &mut World, client: usize, session: &str, rooms: &[&str], start: &str) {
    let asked = rooms.iter().map(|room| (*room).to_owned()).collect();
    let payload = json!({"rooms": rooms, "start": start});
    world.command(client, "rw.attach", session, payload, What::Attach { asked, resume: None });
}

#[test]
fn a_hole_in_a_mirror_takes_nothing_from_readers_that_are_still_to_be_woken_for_what_is_before_it() {
    let mut world = stage(2, 4, &["bob"]);
    let there = world.home("s.0");
    let session = &*(1..).map(|number| format!("s.{number}")).find(|session| world.home(session) != there).unwrap();
    let ana = world.cast(&Casting {
        sub: "ana",
        tab: "",
        roles: &[],
        home: session,
        echo: false,
        acks: true,
        hostile: false,
        slow: false,
    });
    attach(&mut world, 0, session, &[], "head");
    assert!(world.run_until(5_000, all_in));
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
