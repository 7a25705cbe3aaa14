//! Results of the attacks: one table, as text, Markdown or JSON.

use super::stage::Counts;
use super::{Attack, Felt, Outcome, memory};
use crate::options::HostileOptions;
use crate::report::Spread;
use crate::report::table::columns;
use serde::Serialize;
use std::fmt::Write as _;

/// The results of one kind of innocents under one attack, over all pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub attack: String,
    pub what: String,
    /// The kind of innocents that the p99 is of.
    pub innocents: String,
    pub pairs: usize,
    pub attacked_p99_us: Option<Spread>,
    pub beside_sink_p99_us: Option<Spread>,
    /// Over the pairs.
    pub ratio: Option<Spread>,
    /// The maximum of all runs under attack.
    pub rss_mib: f64,
    pub rss_bound_mib: f64,
    pub buffers_mib: f64,
    pub buffers_bound_mib: f64,
    /// The attackers' actions per second.
    pub attack_per_s: Option<Spread>,
    pub sink_attack_per_s: Option<Spread>,
    pub errors: Counts,
    /// The gateway's answers to attackers.
    pub attackers_told: Counts,
    /// Bounds that were not kept; times are no bounds.
    pub failures: Vec<String>,
}

const MIB: f64 = 1_048_576.0;

fn p99_us(felt: &Felt) -> Option<f64> {
    (!felt.latency.is_empty()).then(|| felt.latency.value_at_quantile(0.99) as f64 / 1e3)
}

fn add(into: &mut Counts, from: &Counts) {
    for (name, count) in from {
        *into.entry(name.clone()).or_default() += count;
    }
}

/// The rows of one attack: one for each kind of innocents.
pub fn rows(attack: &Attack, on_gateway: &[Outcome], on_sink: &[Outcome]) -> Vec<Row> {
    let kinds: Vec<&'static str> = on_gateway.first().map_or_else(Vec::new, |run| run.felt.iter().map(|(who, _)| *who).collect());
    let of = |runs: &[Outcome], who: &str| -> Vec<Option<f64>> {
        runs.iter().map(|run| run.felt.iter().find(|(kind, _)| *kind == who).and_then(|(_, felt)| p99_us(felt))).collect()
    };
    let failures = failures(attack, on_gateway, on_sink);
    let most = |value: &dyn Fn(&Outcome) -> f64| on_gateway.iter().map(value).fold(0.0, f64::max);
    let mut told = Counts::new();
    on_gateway.iter().for_each(|run| add(&mut told, &run.told));
    let row = |(place, who): (usize, &&'static str)| {
        let (attacked, beside) = (of(on_gateway, who), of(on_sink, who));
        let ratios = attacked.iter().zip(&beside).filter_map(|(attacked, beside)| Some((*attacked)? / (*beside)?));
        let mut errors = Counts::new();
        for run in on_gateway {
            run.felt.iter().filter(|(kind, _)| kind == who).for_each(|(_, felt)| add(&mut errors, &felt.errors));
        }
        Row {
            attack: attack.name.into(),
            what: attack.what.into(),
            innocents: (*who).into(),
            pairs: on_gateway.len(),
            ratio: Spread::of(ratios),
            attacked_p99_us: Spread::of(attacked.iter().flatten().copied()),
            beside_sink_p99_us: Spread::of(beside.iter().flatten().copied()),
            rss_mib: most(&|run| run.rss_bytes as f64 / MIB),
            rss_bound_mib: most(&|run| memory::bound_bytes(run.empty_bytes, &run.held, attack.memberships) as f64 / MIB),
            buffers_mib: most(&|run| run.held.buffers / MIB),
            buffers_bound_mib: memory::SHARD_MEMORY_BYTES as f64 / MIB,
            attack_per_s: Spread::of(on_gateway.iter().map(|run| run.done_per_s)),
            sink_attack_per_s: Spread::of(on_sink.iter().map(|run| run.done_per_s)),
            errors,
            attackers_told: told.clone(),
            // An attack's failures are listed once.
            failures: if place == 0 { failures.clone() } else { Vec::new() },
        }
    };
    kinds.iter().enumerate().map(row).collect()
}

/// Every bound that was not kept, once each.
fn failures(attack: &Attack, on_gateway: &[Outcome], on_sink: &[Outcome]) -> Vec<String> {
    let mut failures = Vec::new();
    let mut fail = |text: String| {
        if !failures.contains(&text) {
            failures.push(text);
        }
    };
    for (runs, place) in [(on_gateway, ""), (on_sink, " (while the sink was attacked)")] {
        let (mut errors, mut owed) = (Counts::new(), Counts::new());
        for run in runs {
            run.felt.iter().for_each(|(who, felt)| {
                felt.errors.iter().for_each(|(error, count)| {
                    *errors.entry(format!("innocents, {who}: {error}")).or_default() += count;
                });
            });
            add(&mut owed, &run.owed);
            if let Some(dead) = &run.dead {
                fail(format!("{dead}{place}"));
            }
            if run.felt.iter().any(|(_, felt)| felt.latency.is_empty()) {
                fail(format!("innocents got nothing done in a run{place}"));
            }
        }
        for (error, count) in errors.iter().chain(&owed) {
            fail(format!("{error}, {count} times{place}"));
        }
    }
    for run in on_gateway {
        let bound = memory::bound_bytes(run.empty_bytes, &run.held, attack.memberships);
        if run.rss_bytes > bound {
            let (rss, bound) = (run.rss_bytes as f64 / MIB, bound as f64 / MIB);
            fail(format!("memory: {rss:.0} MiB resident, where the manual's formula gives {bound:.0} MiB"));
        }
        if run.held.buffers > memory::SHARD_MEMORY_BYTES as f64 {
            let bound = memory::SHARD_MEMORY_BYTES as f64 / MIB;
            fail(format!(
                "memory: {:.1} MiB of buffers, above limits.shard_memory_bytes, {bound:.0} MiB",
                run.held.buffers / MIB
            ));
        }
    }
    failures
}

fn spread(spread: Option<&Spread>, runs: usize, digits: usize) -> String {
    match spread {
        None => "-".into(),
        Some(spread) if runs > 1 => {
            format!("{:.digits$} ({:.digits$} to {:.digits$})", spread.median, spread.low, spread.high)
        }
        Some(spread) => format!("{:.digits$}", spread.median),
    }
}

fn counts(counts: &Counts) -> String {
    let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name} × {count}")).collect();
    if each.is_empty() { "none".into() } else { each.join("; ") }
}

const HEAD: [&str; 8] = [
    "attack",
    "innocents",
    "p99 under attack, us",
    "p99 beside the sink, us",
    "ratio",
    "RSS of bound, MiB",
    "buffers of bound, MiB",
    "attack/s, gateway and sink",
];

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.attack.clone(),
        row.innocents.clone(),
        spread(row.attacked_p99_us.as_ref(), row.pairs, 0),
        spread(row.beside_sink_p99_us.as_ref(), row.pairs, 0),
        spread(row.ratio.as_ref(), row.pairs, 2),
        format!("{:.0} of {:.0}", row.rss_mib, row.rss_bound_mib),
        format!("{:.1} of {:.0}", row.buffers_mib, row.buffers_bound_mib),
        format!("{}, {}", spread(row.attack_per_s.as_ref(), 1, 0), spread(row.sink_attack_per_s.as_ref(), 1, 0)),
    ]
}

/// For a terminal.
pub fn text(rows: &[Row], options: &HostileOptions) -> String {
    let mut out = format!(
        "hostile: {} s, {} messages a second of {} B, {}\n{}; {} pair{}\n\n",
        options.seconds,
        options.rate,
        options.payload_bytes,
        options
            .engine
            .as_deref()
            .map_or_else(|| "the engine that the machine lets run".into(), |engine| format!("engine {engine}")),
        crate::measure::host(),
        options.pairs.max(1),
        if options.pairs > 1 { "s, median (lowest to highest)" } else { "" }
    );
    let head = HEAD.iter().map(|name| (*name).to_owned()).collect();
    let body: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    out.push_str(&columns(&body));
    out.push('\n');
    let mut last = "";
    for row in rows {
        if row.attack != last {
            let _ = writeln!(out, "{}: {}\n    attackers were told: {}", row.attack, row.what, counts(&row.attackers_told));
        }
        last = &row.attack;
        for failure in &row.failures {
            let _ = writeln!(out, "    FAILED: {failure}");
        }
    }
    let kept = rows.iter().all(|row| row.failures.is_empty());
    let _ = writeln!(out, "{}", if kept { "ok: every bound that is no time was kept" } else { "FAILED" });
    out
}

/// For a document: the table, and what each attack is.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = format!("| {} | innocents' errors | bounds |\n|{}\n", HEAD.join(" | "), " --- |".repeat(HEAD.len() + 2));
    let failed = |attack: &str| rows.iter().filter(|row| row.attack == attack).any(|row| !row.failures.is_empty());
    for row in rows {
        let bounds = if failed(&row.attack) { "**missed**" } else { "kept" };
        let _ = writeln!(out, "| {} | {} | {bounds} |", cells(row).join(" | "), counts(&row.errors));
    }
    out.push('\n');
    let mut last = "";
    for row in rows {
        if row.attack != last {
            let _ =
                writeln!(out, "- **{}**: {}. The attackers were told: {}.", row.attack, row.what, counts(&row.attackers_told));
        }
        last = &row.attack;
        for failure in &row.failures {
            let _ = writeln!(out, "  - missed: {failure}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::histogram;
    use crate::hostile::{PLAIN, memory::Held};

    fn outcome(p99_us: u64, errors: &[(&str, u64)]) -> Outcome {
        let mut latency = histogram();
        latency.saturating_record(p99_us * 1000);
        let errors = errors.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Outcome {
            felt: vec![("messages", Felt { latency, errors })],
            empty_bytes: 20 << 20,
            rss_bytes: 40 << 20,
            held: Held::default(),
            done_per_s: 1900.0,
            told: Counts::from([("limit.rate".to_owned(), 7)]),
            owed: Counts::new(),
            dead: None,
        }
    }

    const ATTACK: Attack = Attack { name: "a1", what: "joins and leaves", ..PLAIN };

    #[test]
    fn a_ratio_is_of_pairs_and_is_no_bound() {
        let (on_gateway, on_sink) =
            ([outcome(100, &[]), outcome(900, &[]), outcome(100, &[])], [100, 100, 50].map(|p99| outcome(p99, &[])));
        let rows = rows(&ATTACK, &on_gateway, &on_sink);
        let ratio = rows[0].ratio.unwrap();
        assert!(rows.len() == 1 && (ratio.median - 2.0).abs() < 0.01 && (ratio.high - 9.0).abs() < 0.05, "{ratio:?}");
        assert!(rows[0].failures.is_empty(), "{:?}", rows[0].failures);
        let text = markdown(&rows);
        assert!(text.contains("| a1 | messages | 100 (100 to 90") && text.contains("| 2.00 (1.00 to 8.9"), "{text}");
        assert!(text.contains("| kept |") && text.contains("limit.rate × 21"), "{text}");
        let widths: Vec<usize> = text.lines().take(3).map(|line| line.matches('|').count()).collect();
        assert_eq!(widths, [11, 11, 11]);
    }

    #[test]
    fn each_bound_that_is_no_time_fails() {
        let good = || vec![outcome(100, &[])];
        let failing = |run: Outcome| failures(&ATTACK, &[run], &good());
        assert!(failures(&ATTACK, &good(), &good()).is_empty());
        for (run, wanted) in [
            (outcome(100, &[("limit.members", 3)]), "innocents, messages: limit.members, 3 times"),
            (Outcome { rss_bytes: 900 << 20, ..outcome(100, &[]) }, "900 MiB resident"),
            (Outcome { held: Held { buffers: 99e6, ..Held::default() }, ..outcome(100, &[]) }, "above limits.shard_memory_bytes"),
            (Outcome { dead: Some("it ended with signal 6".into()), ..outcome(100, &[]) }, "signal 6"),
            (
                Outcome { owed: Counts::from([("rw.ping: no answer".to_owned(), 1)]), ..outcome(100, &[]) },
                "rw.ping: no answer, 1 times",
            ),
            (
                Outcome { felt: vec![("messages", Felt { latency: histogram(), errors: Counts::new() })], ..outcome(100, &[]) },
                "nothing done",
            ),
        ] {
            let failures = failing(run);
            assert!(failures.len() == 1 && failures[0].contains(wanted), "{failures:?}");
        }
        let beside = failures(&ATTACK, &good(), &[outcome(100, &[("http 503", 1)])]);
        assert!(beside[0].contains("http 503") && beside[0].contains("sink"), "{beside:?}");
    }
}
