//! The table on standard output.

use super::{Report, Row, Spread};
use std::fmt::Write as _;

/// A number with its significant digits.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100_000.0 {
        let digits = format!("{value:.0}");
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at) % 3 == 0 && !out.ends_with('-') {
                out.push(',');
            }
            out.push(digit);
        }
        out
    } else if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn spread(spread: &Spread, runs: usize) -> String {
    if runs > 1 {
        format!("{} ({} to {})", number(spread.median), number(spread.low), number(spread.high))
    } else {
        number(spread.median)
    }
}

/// Aligns columns, the first to the left.
pub fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(own) => *own = width.max(*own),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            let _ = if column == 0 { write!(line, "{cell}{gap}") } else { write!(line, "   {gap}{cell}") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn cells(row: &Row, runs: usize, with_floor: bool) -> Vec<String> {
    let void = if row.void { "void" } else { "" };
    let mut cells = vec![row.name.clone(), format!("{} {}", spread(&row.value, runs), row.unit).trim_end().to_owned()];
    if with_floor {
        cells.push(row.floor.as_ref().map_or_else(|| "-".into(), |floor| spread(floor, runs)));
        cells.push(row.ratio.as_ref().map_or_else(|| "-".into(), |ratio| format!("{} x", spread(ratio, runs))));
    }
    cells.push(void.into());
    cells
}

/// The whole result as text.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let settings: Vec<String> = report.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let _ = writeln!(out, "{}: {}", report.scenario, settings.join(", "));
    let _ = writeln!(
        out,
        "{}; {} run{}\n",
        report.host,
        report.runs,
        if report.runs == 1 { "" } else { "s, median (lowest to highest)" }
    );
    let with_floor = report.rows.iter().any(|row| row.floor.is_some());
    let mut head = vec!["".to_owned(), "measured".into()];
    if with_floor {
        head.extend([report.beside.clone(), "ratio".into()]);
    }
    let rows: Vec<Vec<String>> =
        std::iter::once(head).chain(report.rows.iter().map(|row| cells(row, report.runs, with_floor))).collect();
    out.push_str(&columns(&rows));
    if report.rows.iter().any(|row| row.void) {
        let _ = writeln!(out, "void: the generator was more than 90 % busy; add --workers and --load-core, or take a --rate");
    }
    let loss = &report.loss;
    let _ = writeln!(
        out,
        "\nsent {}, delivered {}; unanswered {}, lost {}, duplicate {}, out of order {}, errors {}",
        loss.sent, loss.delivered, loss.unanswered, loss.lost, loss.duplicates, loss.out_of_order, loss.errors
    );
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for problem in &report.problems {
        let _ = writeln!(out, "problem: {problem}");
    }
    let _ = writeln!(out, "{}", if report.passed { "ok" } else { "FAILED" });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_they_are_worth() {
        assert_eq!(
            [1_234_567.0, 54_321.4, 99.94, 1.234, -123_456.0].map(number),
            ["1,234,567", "54321", "99.9", "1.23", "-123,456"]
        );
    }

    #[test]
    fn a_table_names_ratio_void_and_loss() {
        let text = render(&super::super::tests::report());
        assert!(text.contains("1.10 (1.00 to 2.00) x"), "{text}");
        assert!(text.contains("void") && text.contains("lost 0") && text.trim_end().ends_with("ok"), "{text}");
    }
}
