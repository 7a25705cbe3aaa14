//! A fuzz of states: real shards on every engine that this machine lets run, in this process, with clients over real sockets that do at
//! random what clients, attackers and operators do, and a look at each shard after each of its turns (`shard/inspect.rs`).
//!
//! May import everything; nothing imports it. Invariants: no panic, no connection that outlives its end, and when all have gone, every
//! table is empty again. Order and delivery are the simulator's (`sim`), which repeats; threads do not.
//!
//! `RINGWAY_STATES_SECONDS=N cargo test --profile sim --lib states:: -- --nocapture` runs for so long, with the seed of the clock or
//! `RINGWAY_STATES_SEED`. A round's seed gives its settings and what each client asks for, not when.

#![expect(clippy::disallowed_methods, reason = "clients and operators, on threads of their own")]

mod bots;
mod node;

use crate::io::probe::{Engine, probe};
use crate::shard::inbound::contained::faults;
use crate::sim::random::Random;
use bots::Bots;
use node::{Node, Plan};
use std::time::{Duration, Instant};

/// How long `cargo test` takes for it.
const SECONDS: u64 = 6;
const ROUND: Duration = Duration::from_millis(1_200);
const CLIENTS: usize = 10;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let digits = text.trim_start_matches("0x");
    u64::from_str_radix(digits, if digits.len() < text.len() { 16 } else { 10 }).ok()
}

/// Engines that run here; `RINGWAY_STATES_ENGINE` names one of them (ring, monoio, epoll).
fn engines() -> Vec<Engine> {
    let named = std::env::var("RINGWAY_STATES_ENGINE").ok();
    let all = [Engine::Ring, Engine::MonoioUring, Engine::MonoioEpoll];
    let wanted = |engine: &Engine| named.as_ref().is_none_or(|name| name == label(*engine)) && probe(*engine).is_ok();
    all.into_iter().filter(wanted).collect()
}

const fn label(engine: Engine) -> &'static str {
    match engine {
        Engine::Ring => "ring",
        Engine::MonoioUring => "monoio",
        Engine::MonoioEpoll => "epoll",
    }
}

/// A round: a start, clients, changes of everything that may change while it runs, their end, and the shutdown. Returns what was
/// wrong.
fn round(engine: Engine, seed: u64) -> Result<Vec<String>, String> {
    let mut random = Random::new(seed);
    let plan = Plan::draw(&mut random);
    let mut wrong = Vec::new();
    // A log is opened again by as many shards or others.
    for _ in 0..if plan.on_disk() { 2 } else { 1 } {
        let mut node = Node::start(&plan, engine, &mut random)?;
        let bots = Bots::start(node.address(), CLIENTS, &mut random);
        let until = Instant::now() + ROUND;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(random.below(60)));
            node.disturb(&mut random);
        }
        wrong.extend(bots.stop());
        wrong.extend(node.come_to_rest());
        wrong.extend(node.stop());
    }
    Ok(wrong)
}

#[test]
fn whatever_clients_and_operators_do_ends_and_leaves_nothing() {
    let seconds = number("RINGWAY_STATES_SECONDS");
    let mut seed = number("RINGWAY_STATES_SEED").unwrap_or_else(|| {
        std::time::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or_default())
    });
    let engines = engines();
    assert!(!engines.is_empty(), "no engine runs here");
    crate::shard::inspect::watch_all();
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds < engines.len() || began.elapsed() < Duration::from_secs(seconds.unwrap_or(SECONDS)) {
        let engine = engines[rounds % engines.len()];
        let name = label(engine);
        // A shard that panics ends the process: the line says with which seed it began.
        eprintln!("RINGWAY_STATES_SEED={seed:#x} RINGWAY_STATES_ENGINE={name}");
        let mut wrong = round(engine, seed).unwrap_or_else(|error| vec![error]);
        if faults::unplanned_anywhere() > 0 {
            wrong.push("a panic in reading one connection's bytes, which closed it: see above".to_owned());
        }
        assert!(wrong.is_empty(), "seed {seed:#x} on {name}: {wrong:#?}");
        (rounds, seed) = (rounds + 1, seed.wrapping_add(1));
    }
    let (welcomes, envelopes) = bots::read_so_far();
    eprintln!("{rounds} rounds in {:.0} s, {welcomes} welcomes, {envelopes} other envelopes", began.elapsed().as_secs_f64());
    assert!(welcomes > rounds as u64 && envelopes > 20 * rounds as u64, "a world without life");
}
