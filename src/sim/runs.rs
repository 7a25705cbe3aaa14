//! Worlds by their seeds: the ones of every test run, those that found something once, one by name, or new ones for as long as wanted.

use super::client::Sabotage;
use super::cover::Sum;
use super::draw::Draw;
use super::shrink::{kind_of, shrink};
use super::story::Subjects;
use super::{Outcome, Spec, judge};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Seeds of every test run.
const SEEDS: u64 = 200;
/// How long a failing world is made smaller, unless `RINGWAY_SHRINK_SECONDS` says otherwise.
const SHRINK_S: u64 = 60;
/// New seeds that are drawn up at once.
const BATCH: u64 = 4096;

/// Worlds that failed once, of [`Draw::First`]. What each found has a scenario of its own too.
const FOUND: [u64; 16] = [
    0x18ec_b712_c1a6_87c9,
    0x18ec_b712_c1a6_a081,
    0x18ec_b712_c1a6_ac85,
    0x18ec_b712_c1a6_b053,
    0x18ec_b712_c1a6_841a,
    0x18ec_b712_c1a6_9cbd,
    0x18ec_b712_c1a6_be73,
    0x18ec_b712_c1a6_974a,
    0x18ec_b712_c1a6_9e84,
    0x18ec_b712_c1a6_bccc,
    0x18ec_b712_c1a6_83d9,
    0x18ec_b712_c1a6_8689,
    0x18ec_b712_c1a6_aac2,
    0x18ec_b712_c1a6_9fe8,
    0x18ec_b712_c1a6_a82b,
    0x18ec_b712_c1a6_ac3f,
];

/// Worlds of [`Draw::Wide`] that failed once. When its draws change, the same seeds make other worlds.
const FOUND_WIDE: [u64; 12] = [
    0x7b_9e78, 0x89_6aa1, 0x89_7862, 0x89_827a, 0x89_a516, 0x89_f5f0, 0x8a_0d0c, 0x90_f9ed, 0x91_ed55, 0xa8_21d5, 0xb7_28bd,
    0xc6_b99f,
];

/// Does something for each item, on all cores; `done` ends it early.
fn on_all_cores<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    done: impl Fn(&R) -> bool + Sync,
) -> Vec<(usize, R)> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
            scope.spawn(|| {
                while let Some((at, item)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
                {
                    let outcome = work(item);
                    if done(&outcome) {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    outcomes.lock().unwrap().push((at, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes
}

/// Finds a world that comes to what is wanted, if any does.
pub fn first_of(specs: &[Spec], wanted: impl Fn(&Outcome) -> bool + Sync) -> Option<(Spec, Outcome)> {
    let outcomes = on_all_cores(specs, judge, &wanted);
    outcomes.into_iter().find(|(_, outcome)| wanted(outcome)).map(|(at, outcome)| (specs[at].clone(), outcome))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let digits = text.trim_start_matches("0x");
    Some(u64::from_str_radix(digits, if digits.len() < text.len() { 16 } else { 10 }).unwrap())
}

/// The line that runs a world alone.
fn again(spec: &Spec) -> String {
    let draw = if spec.draw == Draw::First { " RINGWAY_SIM_DRAW=first" } else { "" };
    format!("RINGWAY_SEED={:#x}{draw} cargo test --profile sim --lib sim::seed -- --nocapture", spec.seed)
}

/// Runs one world, and tells how it fails if it does.
fn explain(spec: &Spec) {
    let outcome = judge(spec);
    eprintln!("{} steps, {} ms of its time, {} delivered", outcome.steps, outcome.lasted_ms, outcome.delivered);
    let Some(complaint) = outcome.violations.first().cloned() else { return };
    eprintln!("{complaint}\nthe world is made smaller …");
    let within = Duration::from_secs(number("RINGWAY_SHRINK_SECONDS").unwrap_or(SHRINK_S));
    let (small, outcome) = shrink(spec, outcome, within);
    let subjects = Subjects::of(&outcome.violations[0], &outcome.clients);
    let told = judge(&Spec { about: Some(subjects), ..small.clone() });
    told.timeline.iter().for_each(|line| eprintln!("{line}"));
    eprintln!("\nleft: {}\n{}", small.trim, outcome.plan);
    panic!("seed {:#x}: {:#?}", spec.seed, outcome.violations);
}

/// Runs a world, and tells at once if it fails.
fn told(spec: &Spec) -> Outcome {
    let outcome = judge(spec);
    if let Some(complaint) = outcome.violations.first() {
        eprintln!("{}\n    {complaint:.600}", again(spec));
    }
    outcome
}

/// Runs the worlds that `RINGWAY_SEED`, `RINGWAY_SIM_SECONDS` or `RINGWAY_SIM_SEEDS` ask for; `RINGWAY_SIM_FROM` names the first of new seeds, and
/// `RINGWAY_SIM_DRAW=first` what they draw from. Into the file `RINGWAY_SIM_TRACES` come the hashes of their traces: a change of the code that
/// changes no behaviour leaves them as they were.
pub fn by_hand() {
    let draw = if std::env::var("RINGWAY_SIM_DRAW").is_ok_and(|draw| draw == "first") { Draw::First } else { Draw::Wide };
    if let Some(seed) = number("RINGWAY_SEED") {
        return explain(&Spec::new(seed, draw));
    }
    let (seconds, wanted) = (number("RINGWAY_SIM_SECONDS"), number("RINGWAY_SIM_SEEDS"));
    if seconds.is_none() && wanted.is_none() {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "how long to run is the caller's time, not the world's")]
    let (began, fresh) = (std::time::Instant::now(), std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    let first = number("RINGWAY_SIM_FROM").unwrap_or(fresh);
    let (mut seeds, mut delivered, mut sum, mut failed, mut traces) = (0, 0, Sum::default(), Vec::new(), String::new());
    let is_over = || seconds.is_some_and(|seconds| began.elapsed().as_secs() >= seconds);
    while !is_over() && wanted.is_none_or(|wanted| seeds < wanted) {
        let count = BATCH.min(wanted.map_or(BATCH, |wanted| wanted - seeds));
        let specs: Vec<Spec> = (0..count).map(|at| Spec::new(first.wrapping_add(seeds + at), draw)).collect();
        let outcomes = on_all_cores(&specs, told, |_| is_over());
        seeds += outcomes.len() as u64;
        for (at, outcome) in outcomes {
            traces.push_str(&format!("{:#x} {:016x}\n", specs[at].seed, outcome.trace));
            delivered += outcome.delivered;
            sum.add(&outcome.cover);
            failed.extend(outcome.violations.first().map(|complaint| kind_of(complaint)));
        }
    }
    if let Ok(file) = std::env::var("RINGWAY_SIM_TRACES") {
        std::fs::write(file, traces).unwrap();
    }
    eprintln!("{}\nnever reached: {:?}", sum.table(), sum.never());
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{seeds} seeds in {seconds:.0} s, {} failed, {delivered} messages delivered", failed.len());
    assert_eq!(failed, Vec::<String>::new());
}

fn all_pass(specs: &[Spec]) -> Vec<Outcome> {
    let outcomes = on_all_cores(specs, judge, |_| false);
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|(at, outcome)| Some(format!("{}\n    {:.600}", again(&specs[*at]), outcome.violations.first()?)))
        .collect();
    assert!(failed.is_empty(), "{} of {} seeds failed:\n{}", failed.len(), specs.len(), failed.join("\n"));
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn two_hundred_seeds() {
    let outcomes = all_pass(&(0..SEEDS).map(|seed| Spec::new(seed, Draw::Wide)).collect::<Vec<_>>());
    let total = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let (delivered, acked) = (total(|outcome| outcome.delivered), total(|outcome| outcome.acked));
    let farewells = total(|outcome| outcome.farewells);
    assert!(farewells > SEEDS, "{farewells} connections were ended by their clients");
    assert!(delivered > 10 * SEEDS && acked > 10 * SEEDS, "{delivered} delivered, {acked} acknowledged: a world without life");
}

#[test]
fn worlds_that_failed_once() {
    let first = FOUND.map(|seed| Spec::new(seed, Draw::First));
    let wide = FOUND_WIDE.map(|seed| Spec::new(seed, Draw::Wide));
    all_pass(&[&first[..], &wide[..]].concat());
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 42] {
        for draw in [Draw::First, Draw::Wide] {
            let spec = Spec { active_ms: 1_500, ..Spec::new(seed, draw) };
            assert_eq!(judge(&spec), judge(&spec));
        }
    }
}

#[test]
fn the_oracle_objects_to_a_planted_fault() {
    for sabotage in [Sabotage::Drop(40), Sabotage::Repeat(40), Sabotage::Change(40)] {
        let specs: Vec<Spec> =
            (0..8).map(|seed| Spec { active_ms: 1_500, sabotage: Some(sabotage), ..Spec::new(seed, Draw::First) }).collect();
        let objected =
            on_all_cores(&specs, judge, |_| false).iter().filter(|(_, outcome)| !outcome.violations.is_empty()).count();
        assert!(objected >= 5, "{sabotage:?}: {objected} of 8");
    }
}
