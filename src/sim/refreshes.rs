//! New tokens in place of old ones, where sessions are lost to them or none is left.

use super::client::What;
use super::oracle::{Begin, Oracle};
use super::scenarios::{all_in, count, stage};
use super::tokens::token_for;
use super::world::World;
use serde_json::{Value, json};

/// A token for these sessions in place of the one in force.
fn refresh(world: &mut World, client: usize, sessions: &[&str]) {
    let auth_token = token_for(&world.clients[client], sessions, world.now().wall_s(), 600);
    world.command(client, "rw.refresh", "s.0", json!({"auth_token": auth_token}), What::Other("rw.refreshed"));
}

fn attach(world: &mut World, client: usize, session: &str) {
    world.command(client, "rw.attach", session, json!({}), What::Attach { asked: Vec::new(), resume: None });
}

/// A session at home with the first client's, or elsewhere.
fn another(world: &World, is_there: bool) -> String {
    let mut names = (1..).map(|number| format!("s.{number}"));
    names.find(|name| (world.home(name) == world.home("s.0")) == is_there).unwrap()
}

/// Replies wait in a session when it is lost: what they came to is waited for no more.
#[test]
fn a_refresh_that_loses_a_session_where_replies_wait_leaves_a_connection_that_is_read() {
    let asked = "i".repeat(100);
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        world.configure(|snapshot| {
            let mut settings = (*snapshot.settings).clone();
            (settings.limits.reply_queue_bytes, settings.limits.messages_per_second) = (4_096, 0);
            snapshot.settings = std::sync::Arc::new(settings);
        });
        for round in 0..25 {
            let session = another(&world, shards == 1 || round % 2 == 0);
            attach(&mut world, 0, &session);
            assert!(
                world.run_until(2_000, |world| world.clients[0]
                    .link
                    .as_ref()
                    .is_some_and(|link| link.views.contains_key(&session)))
            );
            world.message_to(1, "s.0", &Value::Null, 10, false);
            for number in 0..45 {
                let id = format!("{round}.{number}.{asked}");
                let text = json!({"type": "rw.ping", "id": id, "session_id": session, "payload": {}}).to_string();
                world.send(0, &id, &session, What::Other("rw.pong"), &text);
            }
            refresh(&mut world, 0, &["s.0"]);
            world.run_for(100);
            world.link(0).views.remove(&session);
            let (refreshed, pongs) = (count(&world, 0, "rw.refreshed"), count(&world, 0, "rw.pong"));
            refresh(&mut world, 0, &["s.*"]);
            world.command(0, "rw.ping", "s.0", json!({}), What::Ping { acked_max: 0 });
            world.run_for(100);
            let answered = (count(&world, 0, "rw.refreshed") - refreshed, count(&world, 0, "rw.pong") - pongs);
            assert_eq!(world.oracle.violations, Vec::<String>::new(), "{shards}: {round}");
            assert_eq!(answered, (1, 1), "{shards}: {round}");
        }
        assert!(world.clients[0].is_open() && world.clients[0].closes.is_empty());
    }
}

#[test]
fn who_has_detached_from_everything_and_refreshes_stays() {
    for shards in [1, 2] {
        let mut world = stage(shards, 10_000, &["ana", "bob"]);
        // Together with the detach, which is answered all the same, and when that is over.
        for sessions in [["s.5"], ["s.*"], ["s.5"], ["s.*"]] {
            if world.link(0).views.contains_key("s.0") {
                world.command(0, "rw.detach", "s.0", json!({}), What::Other("rw.detached"));
            }
            refresh(&mut world, 0, &sessions);
            assert!(world.run_until(2_000, |world| world.clients[0].waiting().is_empty()), "{:?}", world.clients[0].waiting());
            world.run_for(200);
            assert!(world.clients[0].is_open() && world.clients[0].closes.is_empty(), "{sessions:?}");
        }
        assert_eq!((count(&world, 0, "rw.detached"), count(&world, 0, "rw.refreshed")), (1, 4));
        attach(&mut world, 0, "s.0");
        assert!(world.run_until(2_000, all_in));
        world.message_to(1, "s.0", &Value::Null, 10, false);
        world.run_for(200);
        assert_eq!(world.clients[0].held.get("s.0"), Some(&1));
        // Of those it is in the next covers none.
        refresh(&mut world, 0, &["s.5"]);
        world.run_for(1_000);
        assert_eq!(world.link(0).close_code, Some(4403));
        assert_eq!(std::mem::take(&mut world.oracle.violations), ["ana was closed with Some(4403)"]);
    }
}

/// The oracle's objections to a page of history of three messages, the second for a role only: requested at `asked_ns`, while the
/// role came (asked for at 15, known at 20) and, if it is `lost`, went again (at 25, at 30).
fn objections(asked_ns: u64, lost: bool, shown: &[u64]) -> Vec<String> {
    let mut oracle = Oracle::default();
    oracle.person("ana", "ana");
    let begin = Begin {
        client: "ana",
        session: "s.0",
        echo: false,
        start_seq: 1,
        seq: 0,
        epoch: "e",
        rooms: Vec::new(),
        asked: Vec::new(),
        asked_ns: 0,
        roles: Vec::new(),
        is_kept: true,
    };
    let view = oracle.begin(&begin, 0, 0);
    let to = |seq: u64| if seq == 2 { "role:medic" } else { "session" };
    (1..=3).for_each(|seq| oracle.ack("bob", "s.0", &format!("m.{seq}"), &[to(seq).to_owned()], seq));
    let changes = [(15, 20, vec!["medic".to_owned()]), (25, 30, Vec::new())];
    for (changed_ns, known_ns, roles) in &changes[..1 + usize::from(lost)] {
        oracle.now_ns = *changed_ns;
        oracle.roles_asked(view, roles);
        oracle.now_ns = *known_ns;
        oracle.roles_settled(view, 3, roles);
    }
    let frame = |seq: &u64| {
        let envelope = json!({"seq": seq, "from": "bob", "id": format!("m.{seq}"), "to": to(*seq), "ts": 1, "traceparent": "t"});
        (envelope.clone(), envelope.to_string().into_bytes())
    };
    let page: Vec<_> = shown.iter().map(frame).collect();
    oracle.history(view, &page, 1, asked_ns);
    oracle.violations
}

/// A page of history goes by the roles of a moment between its request and its arrival: of a role that changes meanwhile, by either.
#[test]
fn the_oracle_judges_a_page_by_the_roles_that_were_in_force_since_it_was_asked_for() {
    let (all, without) = ([1, 2, 3], [1, 3]);
    for (asked_ns, lost, shown, objects) in [
        (10, false, &without[..], false),
        (10, false, &all, false),
        (22, false, &without, true),
        (22, false, &all, false),
        (22, true, &without, false),
        (22, true, &all, false),
        (32, true, &without, false),
        (32, true, &all, true),
    ] {
        let said = objections(asked_ns, lost, shown);
        assert_eq!(said.len(), usize::from(objects), "asked for at {asked_ns}, lost {lost}, shown {shown:?}: {said:?}");
    }
}
