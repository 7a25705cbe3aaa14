//! Two results side by side.

use super::table::{columns, number};
use super::{Better, Report, Row};
use std::fmt::Write as _;

/// The change of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    /// The ranges of the runs overlap, or there is one run only and it changed by less than a tenth.
    Same,
    Untold,
}

fn verdict(before: &Row, after: &Row, runs: usize) -> Verdict {
    if before.void || after.void || before.better == Better::Neither {
        return Verdict::Untold;
    }
    let (a, b) = (before.value, after.value);
    let apart = if runs > 1 { a.high < b.low || b.high < a.low } else { (b.median - a.median).abs() > 0.1 * a.median.abs() };
    match (apart, (b.median < a.median) == (before.better == Better::Lower)) {
        (false, _) => Verdict::Same,
        (true, true) => Verdict::Better,
        (true, false) => Verdict::Worse,
    }
}

/// A table of the changes; figures that only one of them has are left out and named.
pub fn render(before: &Report, after: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} ({} runs) against {} ({} runs)", before.scenario, before.runs, after.scenario, after.runs);
    for (name, value) in &before.settings {
        match after.settings.iter().find(|(own, _)| own == name) {
            Some((_, own)) if own == value => {}
            Some((_, own)) => {
                let _ = writeln!(out, "setting differs: {name} {value} before, {own} after");
            }
            None => {
                let _ = writeln!(out, "setting differs: {name} {value} before, none after");
            }
        }
    }
    let runs = before.runs.min(after.runs);
    let mut rows = vec![["", "before", "after", "change", ""].map(String::from).to_vec()];
    for row in &before.rows {
        let Some(other) = after.rows.iter().find(|other| other.name == row.name) else {
            let _ = writeln!(out, "only before: {}", row.name);
            continue;
        };
        let (a, b) = (row.value.median, other.value.median);
        let change = if a == 0.0 { "-".into() } else { format!("{:+.1} %", (b - a) * 100.0 / a) };
        let verdict = match verdict(row, other, runs) {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Same => "same",
            Verdict::Untold => "",
        };
        rows.push(vec![
            row.name.clone(),
            format!("{} {}", number(a), row.unit),
            format!("{} {}", number(b), other.unit),
            change,
            verdict.into(),
        ]);
        if let (Some(a), Some(b)) = (&row.ratio, &other.ratio) {
            let change = format!("{:+.1} %", (b.median - a.median) * 100.0 / a.median);
            rows.push(vec![
                "  its ratio to the floor".into(),
                format!("{} x", number(a.median)),
                format!("{} x", number(b.median)),
                change,
                "".into(),
            ]);
        }
    }
    out.push_str(&columns(&rows));
    for (name, report) in [("before", before), ("after", after)] {
        if !report.passed {
            let _ = writeln!(out, "{name} FAILED: {:?}", report.loss);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Runs, tests::run_with};

    fn report(cpus: &[f64]) -> Report {
        let runs: Vec<_> = cpus.iter().map(|cpu| run_with(*cpu, 10.0, false)).collect();
        Report::new(
            "echo",
            vec![("c".into(), cpus.len().to_string())],
            &Runs { name: "gateway", runs: &runs },
            &Runs { name: "floor", runs: &[] },
        )
    }

    #[test]
    fn a_change_beyond_the_spread_is_told_from_noise() {
        let text = render(&report(&[100.0, 110.0, 105.0]), &report(&[150.0, 160.0, 155.0]));
        assert!(text.contains("+47.6 %") && text.contains("WORSE"), "{text}");
        let text = render(&report(&[150.0, 160.0]), &report(&[100.0, 110.0]));
        assert!(text.contains("better") && !text.contains("WORSE"), "{text}");
        let text = render(&report(&[100.0, 110.0]), &report(&[105.0, 120.0]));
        assert!(text.contains("same") && !text.contains("WORSE") && !text.contains("better"), "{text}");
    }

    #[test]
    fn differing_settings_are_named() {
        let text = render(&report(&[1.0]), &report(&[1.0, 1.0]));
        assert!(text.contains("setting differs: c 1 before, 2 after"), "{text}");
    }

    #[test]
    fn a_result_survives_its_file() {
        let report = report(&[1.0, 2.0]);
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!((again.rows.len(), again.rows[0].value, again.loss), (report.rows.len(), report.rows[0].value, report.loss));
    }
}
