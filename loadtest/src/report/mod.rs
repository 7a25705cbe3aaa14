//! The results of runs, and how they are shown: a table, JSON, one HTML page, two results side by side.

pub mod compare;
pub mod html;
pub mod table;

use crate::engine::stats::Series;
use crate::ledger::Loss;
use crate::scenario::{HELD_UP, Measured};
use serde::{Deserialize, Serialize};

/// A figure of one run.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub value: f64,
    /// `true` if the generator was too busy for the figure to count.
    pub void: bool,
    pub better: Better,
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
    Neither,
}

impl Figure {
    pub fn lower(name: String, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value, void: false, better: Better::Lower }
    }

    pub fn higher(name: String, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value, void: false, better: Better::Higher }
    }

    pub fn neutral(name: &str, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, value, void: false, better: Better::Neither }
    }

    #[must_use]
    pub fn void_if(self, void: bool) -> Self {
        Self { void, ..self }
    }
}

/// The course of a run, step by step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timeline {
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub at_s: f64,
    pub rate: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub rss_mib: Option<f64>,
    pub cpu_percent: Option<f64>,
}

/// The median of some runs, and their range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, low, high })
    }
}

/// A figure over all runs, and against the floor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub unit: String,
    pub better: Better,
    /// `true` if the generator was more than 90 % busy, in at least one run.
    pub void: bool,
    pub value: Spread,
    pub floor: Option<Spread>,
    /// The median of the pairs' ratios, not the ratio of medians: drifts over the minutes affect both runs of a pair.
    pub ratio: Option<Spread>,
}

/// A percentile curve: (quantile, microseconds).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamedTimeline {
    pub name: String,
    pub timeline: Timeline,
}

/// A result: what `--json` writes and `--compare` reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub tool: String,
    pub unix_s: u64,
    pub host: String,
    pub scenario: String,
    pub settings: Vec<(String, String)>,
    pub runs: usize,
    /// The meaning of the rows' `floor`: the floor, or the same load without the scenario's addition.
    pub beside: String,
    pub rows: Vec<Row>,
    pub curves: Vec<Curve>,
    pub timelines: Vec<NamedTimeline>,
    pub loss: Loss,
    pub problems: Vec<String>,
    pub notes: Vec<String>,
    pub passed: bool,
}

/// The runs of one kind of server, in their order.
pub struct Runs<'a> {
    pub name: &'a str,
    pub runs: &'a [Measured],
}

impl Report {
    /// Combines runs, and the floor's runs beside them, into one result.
    pub fn new(scenario: &str, settings: Vec<(String, String)>, main: &Runs<'_>, floor: &Runs<'_>) -> Self {
        let mut loss = Loss::default();
        let mut problems = Vec::new();
        for (name, run) in [main, floor].iter().flat_map(|runs| runs.runs.iter().map(|run| (runs.name, run))) {
            loss.add(&run.loss);
            problems.extend(run.problems.iter().map(|problem| format!("{name}: {problem}")));
        }
        problems.truncate(40);
        let mut notes = Vec::new();
        let rows = rows(main.runs, floor.runs);
        let held_up = rows.iter().filter(|row| row.name == HELD_UP).flat_map(|row| [Some(row.value), row.floor]).flatten();
        if held_up.map(|held_up| held_up.high).fold(0.0, f64::max) > 3.0 {
            notes.push(
                "other load held these cores up: rates and latencies are that load's too, and CPU figures suffer in the caches"
                    .into(),
            );
        }
        let mut curves = Vec::new();
        let mut timelines = Vec::new();
        for runs in [main, floor] {
            curves.extend(curves_of(runs));
            if let Some(last) = runs.runs.last() {
                timelines.push(NamedTimeline { name: runs.name.into(), timeline: last.timeline.clone() });
            }
        }
        Self {
            tool: format!("ringway-loadtest {}", env!("CARGO_PKG_VERSION")),
            unix_s: crate::clock::unix_s(),
            host: crate::measure::host(),
            scenario: scenario.into(),
            settings,
            runs: main.runs.len(),
            beside: floor.name.into(),
            rows,
            curves,
            timelines,
            passed: loss.clean(),
            loss,
            problems,
            notes,
        }
    }
}

fn values<'a>(runs: &'a [Measured], name: &'a str) -> impl Iterator<Item = Option<&'a Figure>> + 'a {
    runs.iter().map(move |run| run.figures.iter().find(|figure| figure.name == name))
}

fn rows(main: &[Measured], floor: &[Measured]) -> Vec<Row> {
    let Some(first) = main.first() else { return Vec::new() };
    let row = |figure: &Figure| {
        let name = figure.name.as_str();
        let value = Spread::of(values(main, name).flatten().map(|figure| figure.value))?;
        let beside = Spread::of(values(floor, name).flatten().map(|figure| figure.value));
        let pairs = values(main, name).zip(values(floor, name)).filter_map(|(main, floor)| Some(main?.value / floor?.value));
        let ratio = if figure.better == Better::Neither { None } else { Spread::of(pairs) };
        let void = values(main, name).chain(values(floor, name)).flatten().any(|figure| figure.void);
        Some(Row { name: name.into(), unit: figure.unit.into(), better: figure.better, void, value, floor: beside, ratio })
    };
    first.figures.iter().filter_map(row).collect()
}

fn curves_of(runs: &Runs<'_>) -> Vec<Curve> {
    let mut merged: Vec<(String, Series)> = Vec::new();
    for (name, series) in runs.runs.iter().flat_map(|run| &run.series) {
        match merged.iter_mut().find(|(own, _)| own == name) {
            Some((_, own)) => own.merge(series),
            None => merged.push((name.clone(), series.clone())),
        }
    }
    merged.iter().map(|(name, series)| Curve { name: format!("{} {name}", runs.name), points: points(series) }).collect()
}

fn points(series: &Series) -> Vec<(f64, f64)> {
    let steps = series.whole.iter_quantiles(6);
    steps
        .map(|step| (step.quantile_iterated_to(), step.value_iterated_to() as f64 / 1e3))
        .filter(|(quantile, _)| *quantile < 1.0)
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn run_with(cpu: f64, p99: f64, void: bool) -> Measured {
        let mut series = Series::default();
        for latency in 1..=1000_u64 {
            series.record(0, u64::MAX, 0, latency * 1000);
        }
        let step = Step { at_s: 0.25, rate: 10.0, p50_us: Some(1.0), p99_us: Some(2.0), rss_mib: Some(3.0), cpu_percent: None };
        Measured {
            figures: vec![
                Figure::lower("server CPU a message".into(), "ns", cpu),
                Figure::lower("latency p99".into(), "us", p99).void_if(void),
                Figure::neutral("generator busy", "%", 50.0),
            ],
            series: vec![("message".into(), series)],
            timeline: Timeline { steps: vec![step.clone(), Step { at_s: 0.5, ..step }] },
            ..Measured::default()
        }
    }

    pub fn report() -> Report {
        let main = [run_with(200.0, 10.0, false), run_with(330.0, 20.0, true), run_with(100.0, 30.0, false)];
        let floor = [run_with(100.0, 10.0, false), run_with(300.0, 10.0, false), run_with(100.0, 10.0, false)];
        let settings = vec![("connections".into(), "3".into()), ("payload".into(), "<b>&".into())];
        Report::new("echo", settings, &Runs { name: "gateway", runs: &main }, &Runs { name: "floor", runs: &floor })
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let report = report();
        let row = &report.rows[0];
        // Pairs: 2.0, 1.1, 1.0; the ratio of medians would be 2.0.
        assert_eq!((row.value.median, row.floor.unwrap().median), (200.0, 100.0));
        assert!((row.ratio.unwrap().median - 1.1).abs() < 1e-9, "{:?}", row.ratio);
        assert_eq!((row.ratio.unwrap().low, row.ratio.unwrap().high), (1.0, 2.0));
        assert!(report.passed);
    }

    #[test]
    fn one_void_run_voids_its_figure_only() {
        let report = report();
        assert_eq!(report.rows.iter().map(|row| row.void).collect::<Vec<_>>(), [false, true, false]);
        assert!(report.rows[2].ratio.is_none(), "how busy the generator was is no result");
    }

    #[test]
    fn a_curve_rises_and_ends_before_one() {
        let report = report();
        let points = &report.curves[0].points;
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(points.last().unwrap().0 < 1.0 && points.last().unwrap().1 > 990.0);
    }

    #[test]
    fn a_loss_fails_the_result() {
        let mut run = run_with(1.0, 1.0, false);
        run.loss.lost = 1;
        let report =
            Report::new("relay", Vec::new(), &Runs { name: "gateway", runs: &[run] }, &Runs { name: "floor", runs: &[] });
        assert!(!report.passed);
        assert!(report.rows[0].ratio.is_none() && report.rows[0].floor.is_none());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Spread::of([]).is_none());
    }
}
