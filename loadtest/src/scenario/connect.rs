//! `connect`: a storm of connections, and `idle`: their cost when they do nothing.

use super::{Measured, Reader, check_open_files, common_figures, leave, make_all, plan};
use crate::clock::now_ns;
use crate::engine::connection::Next;
use crate::engine::run::{Context, pause_ms, run};
use crate::ledger::Loss;
use crate::measure;
use crate::options::Options;
use crate::report::Figure;
use crate::session::{Access, Joined, Member};
use crate::target::Target;
use std::rc::Rc;

/// A client that stays idle, in a session of its own.
async fn stand(
    context: &Context,
    access: &Rc<Access>,
    numbers: impl Iterator<Item = usize>,
    at_once: usize,
) -> Result<Vec<Reader>, String> {
    let stats = Rc::clone(&context.stats);
    let joined: Vec<Joined> = make_all(numbers, at_once, |number| {
        let (access, stats) = (Rc::clone(access), Rc::clone(&stats));
        async move {
            let (client, session) = (format!("idle-{number}"), access.session(number));
            let member = Member {
                client: &client,
                session: &session,
                rooms: &[],
                resume: None,
                receive_bytes: 1024,
                socket_buffer_bytes: None,
            };
            let joined = access.join(&stats, member, number).await?;
            stats.completed.add(1);
            Ok::<_, String>(joined)
        }
    })
    .await?;
    Ok(joined.into_iter().map(|joined| Reader::start(context, joined.connection, joined.inbox, |_| Next::Go, || {})).collect())
}

/// Opens `connections` as fast as possible, `concurrency` under way at once.
pub fn measure_connect(label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    let connections = options.connections.unwrap_or(10_000);
    check_open_files(connections)?;
    let access = Access::new(target);
    let mut plan = plan(label, target, options);
    plan.warmup_ms = 0;
    plan.duration_ms = 120_000;
    let run = run(&plan, |context| {
        let access = Rc::new(access.clone());
        async move {
            context.ready().await;
            let started_ns = now_ns();
            let readers = stand(&context, &access, context.share(connections), options.concurrency.max(1)).await;
            let ended_ns = now_ns();
            context.done_early();
            let readers = readers?;
            context.finish(0, || false).await;
            leave(readers).await;
            Ok((started_ns, ended_ns))
        }
    })?;
    let started_ns = run.results.iter().map(|(started_ns, _)| *started_ns).min().unwrap_or(0);
    let ended_ns = run.results.iter().map(|(_, ended_ns)| *ended_ns).max().unwrap_or(0);
    let completed = run.last.completed;
    let void = run.generator_busy() > crate::engine::run::BUSY_MAX;
    let mut measured = common_figures(run, "handshake", "handshakes", Loss::default());
    // The coordinator looks every 10 ms; the workers know when they finished.
    let rate = completed as f64 * 1e9 / ended_ns.saturating_sub(started_ns).max(1) as f64;
    measured.figures[0] = Figure::higher("handshakes a second".into(), "/s", rate).void_if(void);
    Ok(measured)
}

/// Memory at several sizes, and whether it grows linearly.
pub fn measure_idle(label: &str, target: &Target, options: &Options) -> Result<Measured, String> {
    let Some(pid) = target.pid else { return Err("idle reads the server's memory: give --spawn, or --pid with --url".into()) };
    let mut sizes = if options.sizes.is_empty() { vec![1000, 2500, 5000, 7500, 10_000] } else { options.sizes.clone() };
    sizes.sort_unstable();
    sizes.dedup();
    check_open_files(sizes.last().copied().unwrap_or(0))?;
    let access = Access::new(target);
    let mut plan = plan(label, target, options);
    plan.cores.truncate(1);
    plan.warmup_ms = 0;
    plan.duration_ms = 600_000;
    let settle_ms = (options.duration_s * 1e3).clamp(500.0, 60_000.0) / sizes.len() as f64;
    let run = run(&plan, |context| {
        let (access, sizes) = (Rc::new(access.clone()), sizes.clone());
        async move {
            context.ready().await;
            // A few connections, again and again: memory shared by all (receive buffers, the allocator's pages) is touched before
            // the first reading, and not booked as a connection's.
            for _ in 0..80 {
                leave(stand(&context, &access, 0..64, 64).await?).await;
            }
            let mut points = vec![(0, memory(pid, settle_ms).await?)];
            let mut readers: Vec<Reader> = Vec::new();
            for size in sizes {
                readers.extend(stand(&context, &access, readers.len()..size, 64).await?);
                points.push((size, memory(pid, settle_ms).await?));
            }
            context.done_early();
            context.finish(0, || false).await;
            leave(readers).await;
            Ok(points)
        }
    })?;
    let points = run.results.first().cloned().unwrap_or_default();
    let mut measured = common_figures(run, "connection", "connections", Loss::default());
    measured.figures = memory_figures(&points);
    Ok(measured)
}

/// Resident memory once it has settled, and CPU while idle, in nanoseconds per second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded to a minute by the caller")]
async fn memory(pid: u32, settle_ms: f64) -> Result<(u64, f64), String> {
    pause_ms(300).await;
    let gone = || "the server ended while its memory was read".to_owned();
    let (before, at_ns) = (measure::process_cpu(pid).ok_or_else(gone)?, now_ns());
    pause_ms(settle_ms.max(200.0) as u64).await;
    let used = measure::process_cpu(pid).ok_or_else(gone)?.since(before);
    let cpu = used.on_ns as f64 * 1e9 / (now_ns() - at_ns) as f64;
    Ok((measure::rss_exact_bytes(pid).ok_or_else(gone)?, cpu))
}

/// A least-squares line through the sizes above zero.
fn memory_figures(points: &[(usize, (u64, f64))]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let grown: Vec<(f64, f64)> =
        points.iter().filter(|(size, _)| *size > 0).map(|(size, (rss, _))| (*size as f64, *rss as f64)).collect();
    let count = grown.len().max(1) as f64;
    let (mean_x, mean_y) = (grown.iter().map(|p| p.0).sum::<f64>() / count, grown.iter().map(|p| p.1).sum::<f64>() / count);
    let spread: f64 = grown.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    if spread > 0.0 {
        let slope = grown.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / spread;
        figures.push(Figure::lower("RSS a connection (slope)".into(), "B", slope));
        let off = grown.iter().map(|p| (p.1 - mean_y - slope * (p.0 - mean_x)).abs()).fold(0.0, f64::max);
        let grown_by =
            slope * (grown.iter().map(|p| p.0).fold(0.0, f64::max) - grown.iter().map(|p| p.0).fold(f64::MAX, f64::min));
        figures.push(Figure::neutral("farthest from the line", "%", off * 100.0 / grown_by.abs().max(1.0)));
    }
    let base = points.first().map_or(0, |(_, (rss, _))| *rss);
    figures.push(Figure::lower("RSS with none".into(), "MiB", base as f64 / f64::from(1 << 20)));
    for (size, (rss, cpu)) in points.iter().filter(|(size, _)| *size > 0) {
        figures.push(Figure::lower(format!("RSS a connection at {size}"), "B", rss.saturating_sub(base) as f64 / *size as f64));
        figures.push(Figure::neutral(&format!("CPU of {size} idle"), "%", cpu / 1e7));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_has_its_slope_and_no_distance() {
        let points: Vec<_> = [0, 1000, 2000, 4000].iter().map(|size| (*size, (1_000_000 + 1500 * *size as u64, 0.0))).collect();
        let figures = memory_figures(&points);
        assert!((figures[0].value - 1500.0).abs() < 0.01, "{}", figures[0].value);
        assert!(figures[1].value < 0.01);
        assert!((figures[3].value - 1500.0).abs() < 0.01);
    }

    #[test]
    fn a_bent_line_is_seen() {
        let points = [(0, (0, 0.0)), (1000, (1_000_000, 0.0)), (2000, (2_000_000, 0.0)), (3000, (9_000_000, 0.0))];
        assert!(memory_figures(&points)[1].value > 10.0);
    }
}
