//! A self-contained page: the table, the percentile curves, the timeline. No script, no outside resource.

use super::table::number;
use super::{Report, Row, Spread, Step};
use std::fmt::Write as _;

const STYLE: &str = "
:root{--bg:#fff;--fg:#1a1d21;--dim:#667;--line:#d9dde3;--card:#f6f7f9;--a:#2563c9;--b:#c2571a;--c:#2b8a57;--d:#8a3fb0;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8eb;--dim:#98a1ab;--line:#30363d;--card:#1c2024;--a:#6ea8ff;--b:#f0955a;--c:#5fc58e;--d:#c48be6;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:980px;margin:0 auto;padding:32px 20px}h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:32px 0 8px}
.dim{color:var(--dim);font-size:13px;margin:2px 0}.bad{color:var(--bad);font-weight:600}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:500;font-size:13px}td small{color:var(--dim)}
svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:6px}svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:1}.c0{stroke:var(--a)}.c1{stroke:var(--b)}.c2{stroke:var(--c)}.c3{stroke:var(--d)}.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.key{display:inline-block;width:18px;height:3px;vertical-align:middle;margin:0 6px 0 14px}.k0{background:var(--a)}.k1{background:var(--b)}.k2{background:var(--c)}.k3{background:var(--d)}
";

const WIDTH: f64 = 940.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 34.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A chart's scales and what was drawn so far.
struct Chart {
    svg: String,
    x: Scale,
    y: Scale,
}

#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        let part = |value: f64| if self.logarithmic { value.max(self.low).ln() } else { value };
        let width = part(self.high) - part(self.low);
        if width <= 0.0 { 0.0 } else { ((part(value) - part(self.low)) / width).clamp(0.0, 1.0) }
    }
}

impl Chart {
    fn new(label: &str, x: Scale, y: Scale) -> Self {
        let label = escape(label);
        Self { svg: format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">"), x, y }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT);
        (across, HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM))
    }

    fn mark_x(&mut self, value: f64, label: &str) {
        let (x, _) = self.at(value, self.y.low);
        let bottom = HEIGHT - BOTTOM;
        let _ = write!(self.svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>");
        let _ = write!(self.svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 18.0, escape(label));
    }

    fn mark_y(&mut self, value: f64, label: &str) {
        let (_, y) = self.at(self.x.low, value);
        let _ = write!(self.svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
        let _ = write!(self.svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, y + 4.0, escape(label));
    }

    fn curve(&mut self, color: usize, points: impl Iterator<Item = (f64, f64)>) {
        let path: Vec<String> = points.map(|(x, y)| self.at(x, y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(self.svg, "<polyline class=\"curve c{}\" points=\"{}\"/>", color % 4, path.join(" "));
    }

    fn end(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

/// The comparison (floor or load without) has the second colour in every chart.
fn colors<'a>(report: &'a Report, names: impl Iterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut own = [0, 2, 3].into_iter().cycle();
    names.map(|name| (if name.starts_with(&report.beside) { 1 } else { own.next().unwrap_or(0) }, name)).collect()
}

/// The next round number whose quarters are easy to read.
fn round_up(value: f64) -> f64 {
    let magnitude = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0].map(|step| step * magnitude).into_iter().find(|round| *round >= value).unwrap_or(10.0 * magnitude)
}

fn legend(names: &[(usize, &str)]) -> String {
    let keys: Vec<String> =
        names.iter().map(|(color, name)| format!("<span class=\"key k{color}\"></span>{}", escape(name))).collect();
    format!("<p class=\"dim\">{}</p>", keys.join(""))
}

/// A microsecond figure with a fitting unit.
fn time(us: f64) -> String {
    if us >= 1e6 {
        format!("{} s", number(us / 1e6))
    } else if us >= 1e3 {
        format!("{} ms", number(us / 1e3))
    } else {
        format!("{} us", number(us))
    }
}

/// Latency over the percentile, with the way to 100 % stretched: each nine has as much room as the one before.
fn percentiles(report: &Report) -> Option<String> {
    let all = || report.curves.iter().flat_map(|curve| &curve.points);
    let stretched = |quantile: f64| 1.0 / (1.0 - quantile).max(1e-9);
    let low = all().map(|(_, us)| *us).fold(f64::MAX, f64::min).max(0.1);
    let high = all().map(|(_, us)| *us).fold(0.0, f64::max);
    if high <= 0.0 {
        return None;
    }
    let last = all().map(|(quantile, _)| stretched(*quantile)).fold(10.0, f64::max);
    let x = Scale { low: 1.0, high: last, logarithmic: true };
    let mut chart = Chart::new("latency by percentile", x, Scale { low, high: high.max(low * 1.5), logarithmic: true });
    for (quantile, label) in [
        (0.0, "0 %"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
    ] {
        if stretched(quantile) <= last {
            chart.mark_x(stretched(quantile), label);
        }
    }
    let mut mark = 10_f64.powf(low.log10().floor());
    while mark <= high {
        for step in [1.0, 2.0, 5.0] {
            if (low..=high).contains(&(mark * step)) {
                chart.mark_y(mark * step, &time(mark * step));
            }
        }
        mark *= 10.0;
    }
    let names = colors(report, report.curves.iter().map(|curve| curve.name.as_str()));
    for (curve, (color, _)) in report.curves.iter().zip(&names) {
        chart.curve(*color, curve.points.iter().map(|(quantile, us)| (stretched(*quantile), *us)));
    }
    Some(format!("<h2>Latency by percentile</h2>{}{}", legend(&names), chart.end()))
}

fn timeline(report: &Report, title: &str, value: impl Fn(&Step) -> Option<f64>, label: impl Fn(f64) -> String) -> Option<String> {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = report
        .timelines
        .iter()
        .map(|named| {
            (named.name.as_str(), named.timeline.steps.iter().filter_map(|step| Some((step.at_s, value(step)?))).collect())
        })
        .filter(|(_, points): &(&str, Vec<_>)| points.len() > 1)
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let high = all().map(|(_, value)| *value).fold(0.0, f64::max);
    if high <= 0.0 {
        return None;
    }
    let high = round_up(high);
    let last = all().map(|(at, _)| *at).fold(0.0, f64::max);
    let mut chart =
        Chart::new(title, Scale { low: 0.0, high: last, logarithmic: false }, Scale { low: 0.0, high, logarithmic: false });
    for part in 0..=4 {
        let (x, y) = (last * f64::from(part) / 4.0, high * f64::from(part) / 4.0);
        chart.mark_x(x, &format!("{} s", number(x)));
        chart.mark_y(y, &label(y));
    }
    let names = colors(report, lines.iter().map(|(name, _)| *name));
    for ((_, points), (color, _)) in lines.iter().zip(&names) {
        chart.curve(*color, points.iter().copied());
    }
    Some(format!("<h2>{}</h2>{}{}", escape(title), legend(&names), chart.end()))
}

fn cell(spread: Option<&Spread>, unit: &str, runs: usize) -> String {
    let Some(spread) = spread else { return "<td>-</td>".into() };
    let range =
        if runs > 1 { format!(" <small>{} to {}</small>", number(spread.low), number(spread.high)) } else { String::new() };
    format!("<td>{} {}{range}</td>", number(spread.median), escape(unit))
}

fn row(row: &Row, runs: usize, with_floor: bool) -> String {
    let void = if row.void { " <span class=\"bad\">void</span>" } else { "" };
    let mut out = format!("<tr><td>{}{void}</td>{}", escape(&row.name), cell(Some(&row.value), &row.unit, runs));
    if with_floor {
        out.push_str(&cell(row.floor.as_ref(), &row.unit, runs));
        out.push_str(&cell(row.ratio.as_ref(), "\u{d7}", runs));
    }
    out.push_str("</tr>");
    out
}

/// The page.
pub fn render(report: &Report) -> String {
    let settings: Vec<String> = report.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let with_floor = report.rows.iter().any(|row| row.floor.is_some());
    let head = if with_floor { format!("<th>{}</th><th>ratio</th>", escape(&report.beside)) } else { String::new() };
    let rows: String = report.rows.iter().map(|one| row(one, report.runs, with_floor)).collect();
    let loss = &report.loss;
    let verdict = if report.passed { "Nothing lost, nothing twice." } else { "<span class=\"bad\">Failed.</span>" };
    let charts = [
        percentiles(report),
        timeline(report, "Rate", |step| Some(step.rate), |value| format!("{}/s", number(value))),
        timeline(report, "Latency p99", |step| step.p99_us, time),
        timeline(report, "Server CPU", |step| step.cpu_percent, |value| format!("{} %", number(value))),
        timeline(report, "Server RSS", |step| step.rss_mib, |value| format!("{} MiB", number(value))),
    ];
    let remarks: String =
        report.notes.iter().chain(&report.problems).map(|text| format!("<p class=\"dim\">{}</p>", escape(text))).collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title><style>{STYLE}</style></head><body><main>\
         <h1>{title}</h1><p class=\"dim\">{settings}</p><p class=\"dim\">{host}; {runs} runs; {tool}; Unix time {unix_s}</p>\
         <h2>Figures</h2><div class=\"wide\"><table><tr><th></th><th>measured</th>{head}</tr>{rows}</table></div>\
         <p>{verdict} Sent {sent}, delivered {delivered}; unanswered {unanswered}, lost {lost}, duplicate {duplicates}, out of order \
         {out_of_order}, errors {errors}.</p>{remarks}{charts}</main></body></html>\n",
        title = escape(&format!("ringway load: {}", report.scenario)),
        settings = escape(&settings.join(", ")),
        host = escape(&report.host),
        runs = report.runs,
        tool = escape(&report.tool),
        unix_s = report.unix_s,
        sent = loss.sent,
        delivered = loss.delivered,
        unanswered = loss.unanswered,
        lost = loss.lost,
        duplicates = loss.duplicates,
        out_of_order = loss.out_of_order,
        errors = loss.errors,
        charts = charts.into_iter().flatten().collect::<String>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = render(&report());
        for outside in ["http:", "https:", "//", "<link", "<script", "src=", "url(", "@import"] {
            assert!(!page.contains(outside), "the page contains {outside}");
        }
        assert!(page.contains("prefers-color-scheme:dark") && page.matches("<svg").count() >= 3);
    }

    #[test]
    fn what_a_user_typed_is_escaped() {
        let page = render(&report());
        assert!(page.contains("&lt;b&gt;&amp;") && !page.contains("<b>&"));
    }

    #[test]
    fn a_scale_ends_at_a_round_number() {
        assert_eq!([139_786.0, 2.0, 5.0, 61.0, 97.0].map(round_up), [200_000.0, 2.0, 6.0, 80.0, 100.0]);
    }

    #[test]
    fn points_stay_inside_the_chart() {
        let page = render(&report());
        for polyline in page.split("points=\"").skip(1) {
            let points = polyline.split('"').next().unwrap();
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH).contains(&x) && (TOP..=HEIGHT).contains(&y), "{point}");
            }
        }
    }
}
