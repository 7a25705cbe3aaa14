//! The comparison for a `synced` log: the disk's own fdatasync, under the same figure names as a run of the gateway, so that they
//! have ratios to it.

use super::{Measured, latency_figures, log_figures, milliseconds};
use crate::clock::now_ns;
use crate::engine::affinity;
use crate::floor::disk::{Syncs, sync_again_and_again};
use crate::options::Options;
use crate::scrape::LogWork;
use crate::target::TemporaryFolder;

/// Syncs batches of this size for as long as the gateway is measured, on its core, in a folder beside its log's.
pub fn measure(batch_bytes: usize, options: &Options) -> Result<Measured, String> {
    let folder = TemporaryFolder::new("disk")?;
    let core = (!options.no_pin).then_some(options.server_core);
    let start_ns = now_ns() + milliseconds(options.warmup_s) * 1_000_000;
    let end_ns = start_ns + milliseconds(options.duration_s).max(100) * 1_000_000;
    // A thread of its own: the caller keeps its core.
    let syncing = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            core.map_or(Ok(()), affinity::pin_this_thread)?;
            sync_again_and_again(folder.path(), batch_bytes, start_ns, end_ns)
        });
        syncing.join().map_err(|_| "the disk's thread panicked; its message is above".to_owned())
    })?;
    let syncs = syncing.map_err(|error| format!("the disk below {} failed: {error}", folder.path().display()))?;
    Ok(measured(syncs, batch_bytes))
}

fn measured(syncs: Syncs, batch_bytes: usize) -> Measured {
    let count = syncs.series.whole.len() as f64;
    let work =
        LogWork { syncs: count, written_bytes: count * batch_bytes as f64, sync_s: syncs.series.whole.mean() * count / 1e9 };
    let mut figures: Vec<_> = latency_figures("latency", &syncs.series).chain(latency_figures("ack", &syncs.waits)).collect();
    figures.extend(log_figures(&work, syncs.seconds));
    Measured { figures, series: vec![("fdatasync".into(), syncs.series), ("wait".into(), syncs.waits)], ..Measured::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::Series;

    #[test]
    fn a_sync_is_the_floor_of_a_delivery_and_a_wait_that_of_an_ack() {
        let (mut series, mut waits) = (Series::default(), Series::default());
        for sync in 1..=100_u64 {
            series.record(0, u64::MAX, 0, sync * 1_000_000);
            waits.record(0, u64::MAX, 0, sync * 2_000_000);
        }
        let run = measured(Syncs { series, waits, seconds: 2.0 }, 5_000);
        let value = |name: &str| run.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value.round());
        let us = ["latency p50", "latency p99", "ack p90"].map(value);
        assert!([50_000.0, 99_000.0, 180_000.0].iter().zip(us).all(|(us, is)| (is.unwrap() - us).abs() < us / 500.0), "{us:?}");
        assert_eq!(["log syncs a second", "bytes a log sync"].map(value), [Some(50.0), Some(5_000.0)]);
        assert!((value("log sync, mean").unwrap() - 50_500.0).abs() < 100.0);
        assert!((value("a sync under way").unwrap() - 252.5).abs() < 1.0, "100 of them, 5.05 s in 2 s");
    }
}
