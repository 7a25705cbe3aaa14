//! Purges: by seeds, which the oracle judges, and in tests; and data that a crash takes before it was durable.

use super::client::What;
use super::disk::Crash;
use super::room::{capped, fill_to_the_brim};
use super::scenarios::{all_in, count, finish, say, slow_down, stage_on_disk};
use super::world::World;
use crate::config::Durability;
use crate::shard::port::{PortMessage, Purged};
use memchr::memmem::Finder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// A purge that is not known to be done.
#[derive(Debug)]
pub struct Asked {
    pub session: String,
    /// The last `seq` that was there then: it and all before go.
    last: u64,
    /// The purge was answered with an error: the next start may finish it.
    failed: bool,
    answer: oneshot::Receiver<Result<Option<Purged>, String>>,
}

/// Texts that are looked for at the end.
const TEXTS_MAX: usize = 20;
/// Of what they begin with, so many bytes are looked for.
const BEGINNING_BYTES_MAX: usize = 32;

impl World {
    /// Has a session purged.
    pub fn purge(&mut self, session: &str) {
        let (reply, answer) = oneshot::channel();
        let (home, last) = (self.home(session), self.appended(session));
        self.tell_story(|| format!("a purge of {session} up to {last} is asked for"));
        self.purges.push(Asked { session: session.to_owned(), last, failed: false, answer });
        self.doubt_moods(session);
        self.tell(home, PortMessage::Purge { session_id: session.into(), reply });
    }

    /// Tells the oracle of the purges that were answered.
    pub fn hear_of_purges(&mut self) {
        for mut asked in std::mem::take(&mut self.purges) {
            if asked.failed {
                self.purges.push(asked);
                continue;
            }
            match asked.answer.try_recv() {
                Err(TryRecvError::Empty) => self.purges.push(asked),
                Err(TryRecvError::Closed) => {}
                Ok(Err(_)) => self.purges.push(Asked { failed: true, ..asked }),
                Ok(Ok(Some(_))) => {
                    self.trace(&[12, asked.last]);
                    self.tell_story(|| format!("the purge of {} is done", asked.session));
                    self.doubt_moods(&asked.session);
                    self.oracle.purged(&asked.session, asked.last);
                }
                Ok(Ok(None)) => self.oracle.wrong(format!("{} is not at home where it was to be purged", asked.session)),
            }
        }
    }

    /// Presence data that clients have set in a session so far may be purged, or not.
    fn doubt_moods(&mut self, session: &str) {
        for client in &mut self.clients {
            if let Some((_, heard)) = client.moods.get_mut(session) {
                *heard = false;
            }
            client.moods_in_doubt.insert(session.to_owned(), client.counter);
        }
    }

    /// Returns `true` if presence data in a session with this number was certainly not purged.
    pub fn mood_stays(&self, c: usize, session: &str, mood: u64) -> bool {
        let doubted = self.clients[c].moods_in_doubt.get(session);
        doubted.is_none_or(|counter| mood > *counter) && !self.purges.iter().any(|asked| asked.session == session)
    }

    /// Purged data is nowhere, now that nothing is under way.
    pub fn check_purges(&mut self) {
        if let Some(asked) = self.purges.iter().find(|asked| !asked.failed) {
            let complaint = format!("the purge of {} was not answered", asked.session);
            return self.oracle.wrong(complaint);
        }
        let purged: Vec<(String, &[u8])> = self.oracle.purged_texts().into_iter().rev().take(TEXTS_MAX).collect();
        let texts: Vec<&[u8]> = purged.iter().map(|(_, text)| *text).collect();
        let mut complaints = Vec::new();
        for (shard, seat) in self.seats.iter().enumerate() {
            let on_disk: BTreeSet<usize> = seat.engine.disk.contents().flat_map(|bytes| found_in(bytes, &texts)).collect();
            let in_memory: BTreeSet<usize> = seat.core.memory().flat_map(|bytes| found_in(bytes, &texts)).collect();
            for at in on_disk.union(&in_memory) {
                let (what, on_disk, in_memory) = (&purged[*at].0, on_disk.contains(at), in_memory.contains(at));
                complaints.push(format!("{what} was purged, and shard {shard} has it: disk {on_disk}, memory {in_memory}"));
            }
        }
        complaints.into_iter().for_each(|complaint| self.oracle.wrong(complaint));
    }
}

/// The numbers of the texts that stand in some memory: it is looked through once, for what all of them begin with.
fn found_in(memory: &[u8], texts: &[&[u8]]) -> Vec<usize> {
    let Some((first, others)) = texts.split_first() else { return Vec::new() };
    let shared = others.iter().fold(first.len().min(BEGINNING_BYTES_MAX), |shared, text| {
        first[..shared].iter().zip(*text).take_while(|(one, other)| one == other).count()
    });
    let finder = Finder::new(&first[..shared]);
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(at) = memory.get(from..).and_then(|rest| finder.find(rest)) {
        let rest = &memory[from + at..];
        found.extend((0..texts.len()).filter(|number| rest.starts_with(texts[*number])));
        from += at + 1;
    }
    found
}

#[test]
fn each_text_that_stands_in_memory_is_found() {
    let texts: [&[u8]; 4] = [b"{{one}", b"{{other}", b"{{{third}", b"{{on"];
    assert_eq!(found_in(b"..{{{other}..{{{third}.{{one", &texts), [1, 2, 3]);
    assert_eq!(found_in(b"{{{one}", &texts[..1]), [0]);
    assert_eq!(found_in(b"{{{one", &texts[..2]), [0; 0]);
    assert_eq!(found_in(b"one other", &[b"other", b"one"]), [1, 0]);
    assert_eq!((found_in(b"", &texts), found_in(b"{{one}", &[])), (vec![], vec![]));
}

#[test]
fn an_epoch_that_went_with_a_crash_was_of_nobody_who_held_a_message() {
    let (mut unknown, mut known) = (0, 0);
    for (durability, crash) in [(Durability::Written, Crash::Kill), (Durability::Synced, Crash::PowerCut)] {
        for after_ms in (0..60).map(|step| step * 5) {
            let mut world = stage_on_disk(1, 0, &["ana", "bob"], |settings| settings.log.durability = durability);
            slow_down(&mut world, 200_000);
            for _ in 0..after_ms {
                world.random.next();
            }
            for client in 0..2 {
                let attach = What::Attach { asked: Vec::new(), resume: None };
                world.command(client, "rw.attach", "s.9", json!({}), attach);
            }
            let told = |world: &World| world.clients.iter().all(|client| client.epochs.contains_key("s.9"));
            assert!(world.run_until(1_000, told), "{after_ms}");
            let told = world.clients[1].epochs["s.9"].clone();
            world.message_to(0, "s.9", &Value::Null, 10, false);
            world.run_for(after_ms);
            world.crash(crash);
            let held = world.clients[1].held["s.9"];
            assert!(world.run_until(10_000, all_in));
            world.command(1, "rw.attach", "s.9", json!({"resume": {"epoch": told, "seq": held}}), {
                What::Attach { asked: Vec::new(), resume: Some((told.clone(), held)) }
            });
            assert!(world.run_until(10_000, all_in));
            // The oracle has looked at what it was told.
            if world.seats[0].core.knows_epoch("s.9", &told) {
                known += 1;
            } else {
                unknown += 1;
                assert_eq!(held, 0, "{after_ms}");
            }
            finish(&mut world);
        }
    }
    assert!(unknown > 5 && known > 5, "{unknown} unknown, {known} known");
}

#[test]
fn a_purge_that_failed_is_finished_by_the_next_start() {
    let mut world = stage_on_disk(1, 0, &["ana"], |_| {});
    world.command(0, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
    say(&mut world, 0, 3);
    world.message_to(0, "s.1", &Value::Null, 50, false);
    assert!(world.run_until(5_000, all_in));
    world.seats[0].engine.disk.faults.sync_errors = 100;
    world.purge("s.0");
    world.run_for(2_000);
    assert!(world.purges[0].failed);
    assert_eq!(world.bounds("s.0"), (1, 3), "its record is not durable");
    world.mend_disks();
    assert!(world.run_until(20_000, all_in));
    assert_eq!((world.kills, world.bounds("s.0")), (1, (4, 3)));
    finish(&mut world);
}

/// Text that each message of the session contains.
const OF_SESSION: &[u8] = b"\"session_id\":\"s.0\"";

/// Two clients, of which one is away since the fifth of forty messages, and the home of their session, where it is now purged.
fn purging(delay_us: u64) -> (World, usize, oneshot::Receiver<Result<Option<Purged>, String>>) {
    let mut world = stage_on_disk(2, 0, &["ana", "bob"], |settings| settings.log.durability = Durability::Synced);
    say(&mut world, 0, 5);
    assert!(world.run_until(5_000, all_in));
    world.end_link(1, true);
    let now = world.now();
    world.clients[1].stay_away_ms(&now, 300_000);
    for _ in 0..35 {
        world.message_to(0, "s.0", &Value::Null, 50_000, false);
        world.run_for(20);
    }
    let home = world.home("s.0");
    assert!(world.run_until(10_000, |world| world.clients[0].waiting().is_empty()));
    assert!(world.seats[home].engine.disk.holds(OF_SESSION) && world.seats[home].core.memory_holds(OF_SESSION));
    slow_down(&mut world, delay_us);
    let (reply, answer) = oneshot::channel();
    world.tell(home, PortMessage::Purge { session_id: "s.0".into(), reply });
    (world, home, answer)
}

#[test]
fn a_purge_leaves_nothing_and_is_told_as_a_gap() {
    let (mut world, home, mut answer) = purging(0);
    let mut purged = None;
    assert!(world.run_until(10_000, |_| {
        purged = purged.take().or_else(|| answer.try_recv().ok());
        purged.is_some()
    }));
    assert_eq!(purged, Some(Ok(Some(Purged { messages: 40 }))));
    for seat in &world.seats {
        assert!(!seat.engine.disk.holds(OF_SESSION) && !seat.core.memory_holds(OF_SESSION));
    }
    assert_eq!(world.bounds("s.0"), (41, 40));
    say(&mut world, 0, 3);
    assert!(world.run_until(500_000, all_in));
    world.run_for(100);
    assert_eq!((world.clients[1].answers.get("rw.gap"), world.clients[1].held.get("s.0")), (Some(&1), Some(&43)));
    world.crash(Crash::PowerCut);
    assert!(world.run_until(100_000, all_in));
    assert_eq!(world.bounds("s.0"), (41, 43));
    assert!(world.seats[home].engine.disk.holds(OF_SESSION), "what came later stays");
    finish(&mut world);
}

const SAID: &[u8] = b"something of myself";

/// The data of the members of a session as a client is told it, by their names.
fn said(world: &mut World, c: usize) -> Vec<(String, Value)> {
    world.rosters.clear();
    world.ask_members(c, "s.0", None, &Value::Null);
    assert!(world.run_until(10_000, |world| world.rosters.values().all(|roster| roster.whole)));
    let rosters = std::mem::take(&mut world.rosters);
    let members = rosters.into_values().flat_map(|roster| roster.members);
    members.map(|member| (member["client_id"].as_str().unwrap().to_owned(), member["data"].clone())).collect()
}

#[test]
fn a_purge_takes_what_members_said_of_themselves_wherever_it_is_interrupted() {
    let (mut undone, mut done) = (0, 0);
    for (crash, after_ms) in
        [Crash::Kill, Crash::PowerCut].into_iter().flat_map(|crash| (0..30).map(move |step| (crash, step * 10)))
    {
        let mut world = stage_on_disk(2, 0, &["ana", "bob"], |settings| settings.log.durability = Durability::Synced);
        for client in 0..2 {
            let data = format!("{}, {client}", String::from_utf8_lossy(SAID));
            for data in [json!(data), json!([data])] {
                world.command(client, "rw.presence.set", "s.0", json!({"data": data}), What::Other("rw.presence.ok"));
            }
        }
        say(&mut world, 0, 3);
        assert!(world.run_until(5_000, all_in));
        let home = world.home("s.0");
        assert!(world.seats[home].engine.disk.holds(SAID) && world.seats[home].core.memory_holds(SAID));
        slow_down(&mut world, 50_000);
        world.purge("s.0");
        for _ in 0..after_ms {
            world.random.next();
        }
        world.run_for(after_ms);
        let answered = world.purges.is_empty();
        if answered {
            let holds = world.seats.iter().any(|seat| seat.engine.disk.holds(SAID) || seat.core.memory_holds(SAID));
            assert!(!holds, "{after_ms}");
        }
        world.crash(crash);
        assert!(world.run_until(10_000, all_in), "{after_ms}");
        let said = said(&mut world, 0);
        let names: Vec<&str> = said.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["ana", "bob"], "{after_ms}: a purge takes no member");
        let left = said.iter().filter(|(_, data)| !data.is_null()).count();
        let holds = world.seats[home].engine.disk.holds(SAID);
        assert!(!(answered && (holds || left > 0)), "{after_ms}");
        assert!(left == 0 || holds, "{after_ms}");
        undone += u32::from(left > 0);
        done += u32::from(!holds);
        finish(&mut world);
    }
    assert!(undone > 5 && done > 5, "{undone} not begun, {done} done");
}

#[test]
fn a_purge_that_is_interrupted_anywhere_is_done_or_not_begun() {
    let (mut undone, mut done) = (0, 0);
    for (crash, after_ms) in
        [Crash::Kill, Crash::PowerCut].into_iter().flat_map(|crash| (0..50).map(move |step| (crash, step * 7)))
    {
        let (mut world, home, _answer) = purging(50_000);
        for _ in 0..after_ms {
            world.random.next();
        }
        world.run_for(after_ms);
        world.crash(crash);
        if world.seats[home].engine.disk.holds(OF_SESSION) {
            undone += 1;
            assert_eq!(world.bounds("s.0"), (1, 40), "{after_ms}");
        } else {
            done += 1;
            assert_eq!(world.bounds("s.0"), (41, 40), "{after_ms}");
        }
        assert!(world.run_until(10_000, |world| world.clients[0].is_open()), "{after_ms}");
        say(&mut world, 0, 1);
        assert!(world.run_until(500_000, all_in), "{after_ms}");
        finish(&mut world);
    }
    assert!(undone > 5 && done > 5, "{undone} not begun, {done} done");
}

/// The files are as many as there may be: the purge's record has one to be written to, start after start.
#[test]
fn a_purge_is_done_in_a_log_that_a_start_found_at_its_cap() {
    let mut world = stage_on_disk(1, 100, &["ana", "bob"], capped);
    world.command(1, "rw.attach", "s.1", json!({}), What::Attach { asked: Vec::new(), resume: None });
    assert!(world.run_until(5_000, all_in));
    fill_to_the_brim(&mut world);
    assert!(count(&world, 1, "limit.disk") > 0, "never full");
    for session in ["s.1", "s.1", "s.0"] {
        world.crash(Crash::Kill);
        assert!(world.run_until(5_000, all_in));
        // The asker may be told that there is no room; it goes on by itself.
        world.purge(session);
        world.run_for(3_000);
        world.purges.clear();
        world.purge(session);
        assert!(world.run_until(1_000, |world| world.purges.is_empty()), "{session}");
    }
    world.run_for(20_000);
    world.check_purges();
    say(&mut world, 0, 1);
    assert!(world.run_until(5_000, all_in));
    finish(&mut world);
}
