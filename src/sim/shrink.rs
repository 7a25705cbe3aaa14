//! A failing world made smaller while it fails in the same way: less time, fewer events, faults, features and clients.

use super::client::Sabotage;
use super::draw::roomy;
use super::runs::first_of;
use super::world::Plan;
use super::{Outcome, Spec};
use crate::config::Session;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Events that a world as a whole meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Drain,
    Crash,
    Purge,
    WallLeap,
    Reload,
    Standstill,
    Revoke,
}

const EVENTS: [Event; 7] =
    [Event::Drain, Event::Crash, Event::Purge, Event::WallLeap, Event::Reload, Event::Standstill, Event::Revoke];

type Simplification = (&'static str, fn(&mut Plan));

/// Parts of a plan that may be left out, by name.
const SIMPLER: [Simplification; 21] = [
    ("proxy", |plan| {
        plan.features.proxied = false;
        plan.settings.server.proxy_protocol = false;
    }),
    ("tls", |plan| plan.features.tls = false),
    ("deflate", |plan| plan.settings.deflate.enabled = false),
    ("crowd", |plan| plan.features.crowd = false),
    ("long", |plan| plan.features.long = false),
    ("odd", |plan| plan.features.odd = false),
    ("issuer", |plan| plan.features.issuer = false),
    ("asked", |plan| plan.features.asked = false),
    ("rots", |plan| plan.features.rots = false),
    ("accept_failures", |plan| plan.faults.accept_failures = 0),
    ("full_tables", |plan| plan.faults.full_tables = 0),
    ("pauses", |plan| plan.faults.pauses = 0),
    ("short_sends", |plan| plan.faults.short_sends = 0),
    ("spurious", |plan| plan.faults.spurious = 0),
    ("delays", |plan| plan.faults.delay_us = 0),
    ("disk_faults", |plan| plan.disk = super::disk::DiskFaults { delay_us: plan.disk.delay_us, ..Default::default() }),
    ("disk_delay", |plan| plan.disk.delay_us = 0),
    ("disk", |plan| plan.settings.log.dir = None),
    ("shallow_lanes", |plan| plan.lane_depth = 1024),
    ("shards", |plan| plan.shards = 1),
    ("limits", |plan| (plan.settings.session, plan.settings.limits) = (Session::default(), roomy())),
];

/// Variations of chance that are tried for each thing left out: another world of the same kind.
const VARIATIONS: u64 = 32;

/// Parts of a world that are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Changes the world's chance and nothing else; 0: as its seed has it.
    pub variation: u64,
    pub active_ms_max: u64,
    /// Clients that never come, by their number in the cast.
    pub without: BTreeSet<usize>,
    simpler: BTreeSet<usize>,
    not: BTreeSet<Event>,
}

impl Default for Trim {
    fn default() -> Self {
        Self { variation: 0, active_ms_max: u64::MAX, without: BTreeSet::new(), simpler: BTreeSet::new(), not: BTreeSet::new() }
    }
}

impl fmt::Display for Trim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let simpler: Vec<&str> = self.simpler.iter().map(|at| SIMPLER[*at].0).collect();
        let until = if self.active_ms_max == u64::MAX { String::new() } else { format!(" for {} ms", self.active_ms_max) };
        write!(
            out,
            "variation {}, clients act{until}; left out: clients {:?}, settings and faults {simpler:?}, events {:?}",
            self.variation, self.without, self.not
        )
    }
}

impl Trim {
    pub fn allows(&self, event: Event) -> bool {
        !self.not.contains(&event)
    }

    pub fn simplify(&self, plan: &mut Plan) {
        self.simpler.iter().for_each(|at| (SIMPLER[*at].1)(plan));
    }

    /// All that leaves out one thing more.
    fn further(&self, active_ms: u64, clients: usize) -> Vec<Self> {
        let mut more = Vec::new();
        for part in [2, 4, 6, 7] {
            more.push(Self { active_ms_max: self.active_ms_max.min(active_ms) * part / 8, ..self.clone() });
        }
        for at in (0..SIMPLER.len()).filter(|at| !self.simpler.contains(at)) {
            let mut trim = self.clone();
            trim.simpler.insert(at);
            more.push(trim);
        }
        for event in EVENTS.into_iter().filter(|event| self.allows(*event)) {
            let mut trim = self.clone();
            trim.not.insert(event);
            more.push(trim);
        }
        let leavable = if self.without.len() + 1 < clients { 0..clients } else { 0..0 };
        for client in leavable.filter(|client| !self.without.contains(client)) {
            let mut trim = self.clone();
            trim.without.insert(client);
            more.push(trim);
        }
        more
    }
}

/// The words of a complaint that do not depend on names and numbers: complaints of one kind have them in common.
pub fn kind_of(complaint: &str) -> String {
    let head = complaint.split(['[', '{', ';', '"']).next().unwrap_or_default();
    let words = head.split(|letter: char| !letter.is_ascii_alphanumeric());
    let plain = words.filter(|word| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_lowercase()));
    plain.take(8).collect::<Vec<_>>().join(" ")
}

/// The smallest world found within that time that fails as this one does.
pub fn shrink(spec: &Spec, outcome: Outcome, within: Duration) -> (Spec, Outcome) {
    #[expect(clippy::disallowed_methods, reason = "how long to look is the caller's time, not the world's")]
    let began = std::time::Instant::now();
    let kind = kind_of(&outcome.violations[0]);
    let (mut best, mut outcome) = (spec.clone(), outcome);
    let mut improved = true;
    while improved {
        improved = false;
        for trim in best.trim.further(spec.active_ms, outcome.cast) {
            if began.elapsed() > within {
                return (best, outcome);
            }
            let tries = [best.trim.variation].into_iter().chain(1..VARIATIONS);
            let specs: Vec<Spec> =
                tries.map(|variation| Spec { trim: Trim { variation, ..trim.clone() }, ..spec.clone() }).collect();
            let fails = |tried: &Outcome| tried.violations.first().is_some_and(|first| kind_of(first) == kind);
            if let Some((smaller, its)) = first_of(&specs, fails) {
                (best, outcome, improved) = (smaller, its, true);
            }
        }
    }
    (best, outcome)
}

#[test]
fn a_failing_world_is_made_smaller_and_fails_in_the_same_way() {
    let spec = (0..20).map(|seed| Spec { sabotage: Some(Sabotage::Repeat(40)), ..Spec::new(seed, super::draw::Draw::First) });
    let (spec, outcome) = spec
        .map(|spec| (super::judge(&spec), spec))
        .find_map(|(outcome, spec)| {
            outcome.violations.first().is_some_and(|first| first.contains(" after ")).then_some((spec, outcome))
        })
        .expect("a repeated message is objected to in some world");
    let kind = kind_of(&outcome.violations[0]);
    let (small, outcome) = shrink(&spec, outcome, Duration::from_secs(20));
    assert_eq!(kind_of(&outcome.violations[0]), kind);
    assert_ne!(small.trim, spec.trim, "nothing of it could be left out");
    assert_eq!(super::judge(&small).violations, outcome.violations);
}
