//! `/metrics`: the shards' counters as Prometheus text, format 0.0.4.
//!
//! Labels are the shard's number and reasons from our own enums, never a client's text.

use super::EngineLabels;
use super::health::Health;
use super::logging;
use crate::close::CloseReason;
use crate::shard::counters::{DropReason, LimitReached, METRICS, MetricInfo, MetricKind, RECORD, ShardCounters};
use crate::shard::histogram::Histogram;
use crate::shard::port::Port;
use std::fmt::Write;

/// A family beside [`METRICS`], as `/metrics` and the operating manual describe it.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    pub help: &'static str,
    /// The operator's response.
    pub advice: &'static str,
}

const CLOSES: Family = Family {
    name: "ringway_closes_total",
    kind: "counter",
    help: "Ended connections by reason.",
    advice: "too_slow, heartbeat_lost: networks or readers; rate, envelope_abuse: a client misbehaves; internal: a bug.",
};
const DROPS: Family = Family {
    name: "ringway_drops_total",
    kind: "counter",
    help: "Data thrown away without an error to anybody, by reason.",
    advice: "ephemeral_slow is normal with slow readers; ephemeral_lane_full: a shard lags; log_memory: raise log.memory_bytes.",
};
const LIMITS: Family = Family {
    name: "ringway_limits_reached_total",
    kind: "counter",
    help: "Times that a bound refused, delayed or closed something, by bound.",
    advice: "Each bound names its setting; the log line names client and setting. Raise it, or find the client.",
};
const ROUTING: Family = Family {
    name: "ringway_routing_seconds",
    kind: "histogram",
    help: "Duration of the turn that routed a message, once for each message: from reading the events that had arrived to the end of its sends.",
    advice: "p99 rises with turn_seconds: a shard is full; spread sessions or add shards.",
};
const TURN: Family = Family {
    name: "ringway_turn_seconds",
    kind: "histogram",
    help: "Duration of a turn: from the end of one wait to the start of the next.",
    advice: "Above 10 ms: one turn does too much; look at fan-outs and at the machine.",
};
const LOG_WRITE: Family = Family {
    name: "ringway_log_write_seconds",
    kind: "histogram",
    help: "Duration of a write of the log.",
    advice: "Rises: the disk is busy or out of cache. Acknowledgements of `written` wait for these writes.",
};
const LOG_SYNC: Family = Family {
    name: "ringway_log_sync_seconds",
    kind: "histogram",
    help: "Duration of a sync of the log.",
    advice: "Rises: look at the disk. Acknowledgements of `synced` wait for one or two syncs.",
};
const LOG_BATCH: Family = Family {
    name: "ringway_log_batch_bytes",
    kind: "histogram",
    help: "Bytes of a write of the log: all that was appended since the previous write began.",
    advice: "Grows with the load. Small at a high load: the disk is faster than the senders.",
};
const LOG_BATCH_RECORDS: Family = Family {
    name: "ringway_log_batch_records",
    kind: "histogram",
    help: "Records of a write of the log, the gateway's own included.",
    advice: "Near 1 at a high load: the disk is faster than the senders, or there are few of them.",
};
const STUCK: Family = Family {
    name: "ringway_shard_stuck",
    kind: "gauge",
    help: "1 if the shard has not turned for 5 s.",
    advice: "Take a stack trace of the thread, then restart the process.",
};
const READY: Family = Family {
    name: "ringway_ready",
    kind: "gauge",
    help: "1 if /readyz answers ready.",
    advice: "0 without a drain: /readyz gives the reason.",
};
const BUILD: Family =
    Family { name: "ringway_build_info", kind: "gauge", help: "1, with the version.", advice: "Tells which version runs where." };
const ENGINE: Family = Family {
    name: "ringway_engine_info",
    kind: "gauge",
    help: "1, with the engine that runs the shards and its driver.",
    advice: "monoio or epoll where ring is expected: this machine refuses io_uring; `ringway doctor` says why.",
};
const LOG_DROPS: Family = Family {
    name: "ringway_log_lines_dropped_total",
    kind: "counter",
    help: "Log lines thrown away because the reader of stderr was too slow.",
    advice: "Not zero: the log is incomplete; make its reader faster or raise diagnostics.log_level.",
};
const REVOCATIONS: Family = Family {
    name: "ringway_revocations",
    kind: "gauge",
    help: "Revocations that the node remembers.",
    advice: "At 100,000 no more fit: rotate the signing key instead, which revokes all its tokens.",
};
const REVOCATIONS_REFUSED: Family = Family {
    name: "ringway_revocations_refused_total",
    kind: "counter",
    help: "Revocations refused because the list was full.",
    advice: "Not zero: a token or user that was to be revoked still gets in; rotate the signing key.",
};
const ADMIN_CUT: Family = Family {
    name: "ringway_admin_connections_cut_total",
    kind: "counter",
    help: "Connections to the admin listener that were cut off because 64 others were open.",
    advice: "Not zero: a process on this machine opens connections and asks nothing; find it with `ss -tnp`.",
};
const CPU: Family = Family {
    name: "process_cpu_seconds_total",
    kind: "counter",
    help: "On-CPU time of the process's threads.",
    advice: "Divide its rate by that of ringway_messages_out_total for the cost of a message.",
};
const RSS: Family = Family {
    name: "process_resident_memory_bytes",
    kind: "gauge",
    help: "Resident memory of the process.",
    advice: "Compare with shards x (limits.shard_memory_bytes + log.memory_bytes) and 2 KiB a connection.",
};
const FILES: Family = Family {
    name: "process_open_fds",
    kind: "gauge",
    help: "Open file descriptors of the process.",
    advice: "Near the limit: raise nofile; `ringway doctor` names the value.",
};

/// All families beside the plain counters, in the order of `/metrics`.
pub static FAMILIES: &[Family] = &[
    CLOSES,
    DROPS,
    LIMITS,
    ROUTING,
    TURN,
    LOG_WRITE,
    LOG_SYNC,
    LOG_BATCH,
    LOG_BATCH_RECORDS,
    STUCK,
    READY,
    BUILD,
    ENGINE,
    LOG_DROPS,
    REVOCATIONS,
    REVOCATIONS_REFUSED,
    ADMIN_CUT,
    CPU,
    RSS,
    FILES,
];

/// The name of a plain counter in `/metrics`.
#[must_use]
pub fn full_name(metric: &MetricInfo) -> String {
    match metric.kind {
        MetricKind::Counter => format!("ringway_{}_total", metric.name),
        MetricKind::Gauge => format!("ringway_{}", metric.name),
    }
}

/// The whole text. Writing to a string cannot fail, so the results are ignored.
pub(super) fn text(ports: &[Port], health: &Health, revocations: usize, labels: EngineLabels) -> String {
    let mut out = String::with_capacity(16 * 1024 * (ports.len() + 1));
    let shards: Vec<(usize, &ShardCounters)> = ports.iter().map(|port| (port.shard(), &***port.counters())).collect();
    let values: Vec<Vec<u64>> = shards.iter().map(|(_, counters)| counters.values().collect()).collect();
    for (index, metric) in METRICS.iter().enumerate() {
        let kind = if metric.kind == MetricKind::Counter { "counter" } else { "gauge" };
        let name = full_name(metric);
        head(&mut out, &name, kind, metric.help.trim());
        for ((shard, _), values) in shards.iter().zip(&values) {
            let _ = writeln!(out, "{name}{{shard=\"{shard}\"}} {}", values[index]);
        }
    }
    family(&mut out, &CLOSES);
    for (shard, counters) in &shards {
        for reason in CloseReason::ALL {
            labelled(&mut out, &CLOSES, *shard, "reason", reason.label(), counters.closed_count(reason));
        }
    }
    family(&mut out, &DROPS);
    for (shard, counters) in &shards {
        for reason in DropReason::ALL {
            labelled(&mut out, &DROPS, *shard, "reason", reason.label(), counters.dropped_count(*reason));
        }
    }
    family(&mut out, &LIMITS);
    for (shard, counters) in &shards {
        for limit in LimitReached::ALL {
            labelled(&mut out, &LIMITS, *shard, "limit", limit.label(), counters.limit_count(*limit));
        }
    }
    histogram(&mut out, &ROUTING, shards.iter().map(|(shard, counters)| (*shard, &counters.routing_ns)), seconds);
    histogram(&mut out, &TURN, shards.iter().map(|(shard, counters)| (*shard, &counters.turn_ns)), seconds);
    histogram(&mut out, &LOG_WRITE, shards.iter().map(|(shard, counters)| (*shard, &counters.log_write_ns)), seconds);
    histogram(&mut out, &LOG_SYNC, shards.iter().map(|(shard, counters)| (*shard, &counters.log_sync_ns)), seconds);
    histogram(&mut out, &LOG_BATCH, shards.iter().map(|(shard, counters)| (*shard, &counters.log_batch_bytes)), |bytes| bytes);
    histogram(
        &mut out,
        &LOG_BATCH_RECORDS,
        shards.iter().map(|(shard, counters)| (*shard, &counters.log_batch_records)),
        records,
    );
    family(&mut out, &STUCK);
    let stuck = health.stuck();
    for (shard, _) in &shards {
        let _ = writeln!(out, "{}{{shard=\"{shard}\"}} {}", STUCK.name, u8::from(stuck.contains(shard)));
    }
    family(&mut out, &READY);
    let _ = writeln!(out, "{} {}", READY.name, u8::from(health.ready().is_ok()));
    family(&mut out, &BUILD);
    let _ = writeln!(out, "{}{{version=\"{}\"}} 1", BUILD.name, env!("CARGO_PKG_VERSION"));
    family(&mut out, &ENGINE);
    let _ = writeln!(out, "{}{{engine=\"{}\",driver=\"{}\"}} 1", ENGINE.name, labels.engine, labels.driver);
    family(&mut out, &LOG_DROPS);
    let _ = writeln!(out, "{} {}", LOG_DROPS.name, logging::lines_dropped());
    family(&mut out, &REVOCATIONS);
    let _ = writeln!(out, "{} {revocations}", REVOCATIONS.name);
    family(&mut out, &REVOCATIONS_REFUSED);
    let _ = writeln!(out, "{} {}", REVOCATIONS_REFUSED.name, super::revocations::refused_full());
    family(&mut out, &ADMIN_CUT);
    let _ = writeln!(out, "{} {}", ADMIN_CUT.name, super::listener::connections_cut());
    process(&mut out);
    out
}

/// The reference of all metrics, and of the reasons they are counted by, as Markdown.
#[must_use]
pub fn docs_markdown() -> String {
    let mut out = String::from("| metric | kind | counts | what to do |\n| --- | --- | --- | --- |\n");
    for metric in METRICS {
        let kind = if metric.kind == MetricKind::Counter { "counter" } else { "gauge" };
        let _ = writeln!(out, "| `{}` | {kind} | {} | {} |", full_name(metric), metric.help.trim(), metric.advice);
    }
    for family in FAMILIES {
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", family.name, family.kind, family.help, family.advice);
    }
    let _ = write!(out, "\n### `{}` by reason\n\n| reason | close code |\n| --- | --- |\n", CLOSES.name);
    for reason in CloseReason::ALL {
        let code = reason.code().map_or_else(|| "none".to_owned(), |code| code.to_string());
        let _ = writeln!(out, "| `{}` | {code} |", reason.label());
    }
    let _ = write!(out, "\n### `{}` by reason\n\n| reason | what |\n| --- | --- |\n", DROPS.name);
    for reason in DropReason::ALL {
        let _ = writeln!(out, "| `{}` | {} |", reason.label(), reason.about().trim());
    }
    let _ = write!(out, "\n### `{}` by limit\n\n| limit | the bound |\n| --- | --- |\n", LIMITS.name);
    for limit in LimitReached::ALL {
        let _ = writeln!(out, "| `{}` | {} |", limit.label(), limit.about().trim());
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn family(out: &mut String, family: &Family) {
    head(out, family.name, family.kind, family.help);
}

fn labelled(out: &mut String, family: &Family, shard: usize, label: &str, value: &str, count: u64) {
    let _ = writeln!(out, "{}{{shard=\"{shard}\",{label}=\"{value}\"}} {count}", family.name);
}

#[expect(clippy::cast_precision_loss, reason = "seconds in metrics are floating point")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "records of a write fit in a chunk")]
fn records(units: u64) -> f64 {
    units as f64 / RECORD as f64
}

fn histogram<'a, T: std::fmt::Display>(
    out: &mut String,
    of: &Family,
    shards: impl Iterator<Item = (usize, &'a Histogram)>,
    in_unit: impl Fn(u64) -> T,
) {
    family(out, of);
    let name = of.name;
    for (shard, histogram) in shards {
        let reading = histogram.read();
        let mut cumulative = 0;
        for (bound_ns, count) in &reading.buckets {
            cumulative += count;
            if *bound_ns == u64::MAX {
                let _ = writeln!(out, "{name}_bucket{{shard=\"{shard}\",le=\"+Inf\"}} {cumulative}");
            } else {
                let _ = writeln!(out, "{name}_bucket{{shard=\"{shard}\",le=\"{}\"}} {cumulative}", in_unit(*bound_ns));
            }
        }
        let _ = writeln!(out, "{name}_sum{{shard=\"{shard}\"}} {}", in_unit(reading.sum_ns));
        let _ = writeln!(out, "{name}_count{{shard=\"{shard}\"}} {cumulative}");
    }
}

/// Writes the process's values from /proc. A family is left out if /proc does not have it.
fn process(out: &mut String) {
    if let Some(nanoseconds) = cpu_ns() {
        family(out, &CPU);
        let _ = writeln!(out, "{} {}", CPU.name, seconds(nanoseconds));
    }
    if let Some(bytes) = resident_bytes() {
        family(out, &RSS);
        let _ = writeln!(out, "{} {bytes}", RSS.name);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        family(out, &FILES);
        // The listing itself holds one descriptor open.
        let _ = writeln!(out, "{} {}", FILES.name, entries.count().saturating_sub(1));
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn cpu_ns() -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(entry.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|field| field.parse::<u64>().ok())?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::counters::shared_counters;
    use crate::shard::port::{Bell, port};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    struct NoBell;
    impl Bell for NoBell {
        fn ring(&self) {}
    }

    /// Reads the text as a scraper does: strictly, name and labels to value, with a HELP and TYPE before each family.
    fn read(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut families: BTreeMap<String, String> = BTreeMap::new();
        let mut helped = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                helped = rest.split_once(' ').unwrap().0.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(helped, name, "TYPE without its HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
                let kind = families.get(name).or_else(|| families.get(base)).unwrap_or_else(|| panic!("no TYPE for {name}"));
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
                assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
            }
        }
        samples
    }

    /// Puts a generated part between its markers.
    fn with_part(manual: &str, name: &str, part: &str) -> String {
        let (begin, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = manual.split_once(&begin).expect("the manual has the marker");
        let (_, after) = rest.split_once(&end).expect("the manual has the end marker");
        format!("{before}{begin}\n{}\n{end}{after}", part.trim_end().to_owned() + "\n")
    }

    #[test]
    fn the_operating_manual_is_up_to_date() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/REFERENCE.md");
        let manual = std::fs::read_to_string(&file).unwrap();
        let settings = with_part(&manual, "settings", &crate::config::docs_markdown());
        let wanted = with_part(&settings, "metrics", &docs_markdown());
        if std::env::var_os("RINGWAY_WRITE_DOCS").is_some() {
            std::fs::write(&file, &wanted).unwrap();
            return;
        }
        assert!(manual == wanted, "docs/REFERENCE.md is behind the code: RINGWAY_WRITE_DOCS=1 cargo test --lib operating_manual");
    }

    #[test]
    fn the_text_is_whole_and_true() {
        let ports: Vec<Port> = (0..2).map(|shard| port(shard, Arc::new(NoBell), shared_counters()).0).collect();
        let counters = ports[1].counters();
        counters.messages_in.add(7);
        counters.closed(CloseReason::TooSlow);
        counters.dropped(DropReason::LaneStale, 2);
        counters.limit_reached(LimitReached::MessageRate);
        counters.routing_ns.record(1_500);
        counters.routing_ns.record(3_000_000);
        counters.log_batch_records.record(RECORD);
        counters.log_batch_records.record(3 * RECORD);
        let text = text(&ports, &Health::new(2), 0, EngineLabels { engine: "monoio", driver: "epoll" });
        assert!(text.contains("\nringway_engine_info{engine=\"monoio\",driver=\"epoll\"} 1\n"), "{text}");
        let samples = read(&text);
        assert_eq!(samples["ringway_messages_in_total{shard=\"1\"}"], 7.0);
        assert_eq!(samples["ringway_messages_in_total{shard=\"0\"}"], 0.0);
        assert_eq!(samples["ringway_closes_total{shard=\"1\",reason=\"too_slow\"}"], 1.0);
        assert_eq!(samples["ringway_drops_total{shard=\"1\",reason=\"lane_stale\"}"], 2.0);
        assert_eq!(samples["ringway_limits_reached_total{shard=\"1\",limit=\"message_rate\"}"], 1.0);
        assert_eq!(samples["ringway_routing_seconds_bucket{shard=\"1\",le=\"0.000001024\"}"], 0.0);
        assert_eq!(samples["ringway_routing_seconds_bucket{shard=\"1\",le=\"0.000001536\"}"], 1.0);
        assert_eq!(samples["ringway_routing_seconds_bucket{shard=\"1\",le=\"+Inf\"}"], 2.0);
        assert_eq!(samples["ringway_routing_seconds_count{shard=\"1\"}"], 2.0);
        assert!((samples["ringway_routing_seconds_sum{shard=\"1\"}"] - 0.003_001_5).abs() < 1e-12);
        assert_eq!(samples["ringway_log_batch_records_bucket{shard=\"1\",le=\"1\"}"], 1.0);
        assert_eq!(samples["ringway_log_batch_records_bucket{shard=\"1\",le=\"2\"}"], 1.0);
        assert_eq!(samples["ringway_log_batch_records_bucket{shard=\"1\",le=\"3\"}"], 2.0);
        assert_eq!(samples["ringway_log_batch_records_sum{shard=\"1\"}"], 4.0);
        assert_eq!(samples["ringway_ready"], 0.0);
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(samples[name] > 0.0, "{name}");
        }
        for family in FAMILIES {
            assert!(text.contains(&format!("# TYPE {} {}\n", family.name, family.kind)), "{}", family.name);
        }
        for metric in METRICS {
            assert!(samples.contains_key(&format!("{}{{shard=\"0\"}}", full_name(metric))), "{}", metric.name);
        }
    }
}
