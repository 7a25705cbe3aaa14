//! `ringway log repair --quarantine`: moves damaged records, and everything behind them in that shard, to DIR/quarantine. Nothing
//! is deleted. The indexes of those segments are moved too.
//!
//! The rest of the damaged segment is copied and synced before that file is cut, and later files are moved first, from the last
//! on. So, whenever the repair is interrupted, every byte is in the log or in the quarantine, and running it again continues.

use super::Out;
use super::directory::{Directory, Halt, Outcome, Progress, SegmentFile, Shard, at, describe, ranges, unnamed};
use crate::cli::{CliError, now_s};
use crate::control::escape::text as plain;
use crate::io::files::index_path;
use crate::io::own::check_owner;
use crate::log::{Kind, LastSegment, ScanError, SessionState, index_name};
use crate::shard::recovery::purge_files::append_purges;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const LOCK_BYTES_MAX: u64 = 256;

/// The work for one shard.
#[derive(Debug)]
struct Plan<'a> {
    shard: &'a Shard,
    /// The damage, and the sessions that it affects.
    lines: Vec<String>,
    /// The segment that is cut, and the bytes that it keeps.
    cut: Option<(SegmentFile, u64)>,
    /// Segments that are moved whole.
    go: Vec<SegmentFile>,
}

pub(super) fn repair(directory: &Directory, dry_run: bool, out: &mut Out<'_>) -> Result<(), Halt> {
    let _lock = lock(directory, dry_run)?;
    let (mut last_seqs, mut ids) = (BTreeMap::new(), BTreeMap::new());
    let outcomes = directory.read(|_, _, record| {
        let header = record.header;
        match header.kind {
            Kind::Message => drop(last_seqs.insert(header.session, header.seq)),
            Kind::Session => {
                if let Ok(state) = SessionState::decode(record.body) {
                    ids.insert(header.session, plain(state.session_id));
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let mut plans = Vec::new();
    for (shard, outcome) in &outcomes {
        match outcome {
            Outcome::Whole(scanned) => {
                if let Some(torn) = scanned.torn {
                    let bytes = torn.bytes;
                    out.line(&format!("{}: a torn end of {bytes} bytes stays: the next start cuts it", shard.path.display()))?;
                }
            }
            Outcome::Broken { error, last } => {
                let mut plan = plan(shard, error, *last)?;
                if let ScanError::Damaged(damage) = error {
                    let name = |session| ids.get(&session).cloned().unwrap_or_else(|| unnamed(session));
                    plan.lines.extend(ranges(damage, |session| last_seqs.get(&session).copied(), name));
                }
                plans.push(plan);
            }
        }
    }
    if plans.is_empty() {
        return out.line("nothing is damaged");
    }
    let report = report(&plans);
    if dry_run {
        out.line(report.trim_end())?;
        return out.line("dry run: nothing was moved");
    }
    let folder = quarantine(directory)?;
    write_synced(&folder.join("report.txt"), report.as_bytes())?;
    for plan in &plans {
        carry_out(plan, &folder)?;
        record_purges(directory, plan.shard, out)?;
    }
    out.line(report.trim_end())?;
    out.line(&format!("moved to {}", folder.display()))
}

/// Holds the directory's lock, so that no gateway starts meanwhile. A dry run creates no lock file.
///
/// # Errors
/// If another process has the lock, or the directory belongs to another user: the gateway could not open the files made in it.
pub(super) fn lock(directory: &Directory, dry_run: bool) -> Result<Option<File>, CliError> {
    if !dry_run {
        check_owner(&directory.path).map_err(CliError)?;
    }
    let path = directory.path.join("lock");
    let mut file = match OpenOptions::new().read(true).write(!dry_run).create(!dry_run).truncate(false).open(&path) {
        Ok(file) => file,
        Err(error) if dry_run && error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&path, &error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Without the text the error is the same, only shorter.
            let _ = Read::by_ref(&mut file).take(LOCK_BYTES_MAX).read_to_string(&mut holder);
            let holder = plain(holder.trim());
            let holder = if holder.is_empty() { String::new() } else { format!(" ({holder})") };
            Err(at(&directory.path, &format!("in use by a process that holds {}{holder}: stop it first", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(at(&path, &error)),
    }
}

/// The end of the good part of a shard's log, and what follows it.
fn plan<'a>(shard: &'a Shard, error: &ScanError, last: Option<LastSegment>) -> Result<Plan<'a>, CliError> {
    let (segment, keep) = match error {
        ScanError::Damaged(damage) => (damage.segment, damage.valid_bytes),
        ScanError::TooLong { segment, .. } => {
            (*segment, last.filter(|last| last.number == *segment).map_or(0, |last| last.valid_bytes))
        }
        ScanError::Header { segment, .. } | ScanError::Foreign { segment, .. } => (*segment, 0),
        ScanError::Missing { found, .. } => (*found, 0),
        // Nothing is moved: their purge is recorded again.
        ScanError::Purged { .. } => (u64::MAX, 0),
        // The names in a folder differ and are sorted, and files are read in whole parts.
        ScanError::Order { .. } | ScanError::Part { .. } => return Err(CliError(describe(shard, error))),
    };
    let mut plan = Plan { shard, lines: vec![describe(shard, error)], cut: None, go: Vec::new() };
    for file in shard.segments()? {
        if file.number == segment && keep > 0 {
            // A segment whose end is missing is good up to there; only the segments behind it are moved.
            plan.cut = (file.bytes > keep).then_some((file, keep));
        } else if file.number >= segment {
            plan.go.push(file);
        }
    }
    Ok(plan)
}

/// The record of a purge may be among the moved ones. It is written again, or purged messages would count as damage.
fn record_purges(directory: &Directory, shard: &Shard, out: &mut Out<'_>) -> Result<(), Halt> {
    let outcome = shard.read(&mut Progress::new(directory)?, |_, _| Ok(()))?;
    let Outcome::Broken { error: ScanError::Purged { uncovered, scanned }, .. } = outcome else { return Ok(()) };
    let purged: Vec<(u64, u64)> = uncovered.iter().map(|each| (each.session, each.last_seq)).collect();
    append_purges(&shard.path, (shard.shard, shard.generation), &scanned, &purged, now_s() * 1000).map_err(CliError)?;
    out.line(&format!("{}: the purge of {} sessions is recorded again", shard.path.display(), purged.len()))
}

fn report(plans: &[Plan<'_>]) -> String {
    let mut text = String::new();
    for plan in plans {
        for line in &plan.lines {
            text.push_str(&format!("{line}\n"));
        }
        if plan.cut.is_some() || !plan.go.is_empty() {
            text.push_str("  moved to quarantine, and out of the log, good records in it included:\n");
        }
        if let Some((file, keep)) = &plan.cut {
            let bytes = file.bytes.saturating_sub(*keep);
            text.push_str(&format!("  {}: {bytes} bytes from offset {keep}\n", file.path.display()));
        }
        for file in &plan.go {
            text.push_str(&format!("  {}: {} bytes, the whole file\n", file.path.display(), file.bytes));
        }
    }
    text
}

/// A new folder for this repair.
fn quarantine(directory: &Directory) -> Result<PathBuf, CliError> {
    let all = directory.path.join("quarantine");
    std::fs::create_dir_all(&all).map_err(|error| at(&all, &error))?;
    let now = now_s();
    for count in 0..1000 {
        let folder = all.join(format!("{now}-{count}"));
        match std::fs::create_dir(&folder) {
            Ok(()) => {
                sync_folder(&all)?;
                sync_folder(&directory.path)?;
                return Ok(folder);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&folder, &error)),
        }
    }
    Err(at(&all, &"a thousand repairs in this second"))
}

fn carry_out(plan: &Plan<'_>, folder: &Path) -> Result<(), CliError> {
    let generation = folder.join(plan.shard.generation.to_string());
    let to = generation.join(format!("shard-{}", plan.shard.shard));
    std::fs::create_dir_all(&to).map_err(|error| at(&to, &error))?;
    let target = |file: &SegmentFile, end: &str| to.join(format!("{}{end}", crate::log::segment_name(file.number)));
    if let Some((file, keep)) = &plan.cut {
        copy_rest(&file.path, *keep, &target(file, &format!(".from-{keep}")))?;
    }
    for each in [&to, &generation, folder] {
        sync_folder(each)?;
    }
    // The remaining log did not end in good order; without this file the next start opens new epochs, which tell the clients.
    match std::fs::remove_file(plan.shard.path.join("clean")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&plan.shard.path, &error)),
        _ => sync_folder(&plan.shard.path)?,
    }
    // Index files name records that are moved. The next start makes another one for the segment that is cut.
    for file in plan.go.iter().chain(plan.cut.as_ref().map(|(file, _)| file)) {
        let index = index_path(&plan.shard.path, file.number);
        match std::fs::rename(&index, to.join(index_name(file.number))) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&index, &error)),
            _ => {}
        }
    }
    for file in plan.go.iter().rev() {
        std::fs::rename(&file.path, target(file, "")).map_err(|error| at(&file.path, &error))?;
        sync_folder(&to)?;
        sync_folder(&plan.shard.path)?;
    }
    if let Some((file, keep)) = &plan.cut {
        let open = OpenOptions::new().write(true).open(&file.path);
        open.and_then(|open| open.set_len(*keep).and_then(|()| open.sync_all())).map_err(|error| at(&file.path, &error))?;
    }
    Ok(())
}

fn copy_rest(from: &Path, offset: u64, to: &Path) -> Result<(), CliError> {
    let mut source = File::open(from).map_err(|error| at(from, &error))?;
    source.seek(SeekFrom::Start(offset)).map_err(|error| at(from, &error))?;
    let mut copy = OpenOptions::new().write(true).create_new(true).open(to).map_err(|error| at(to, &error))?;
    std::io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all()).map_err(|error| at(to, &error))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all())).map_err(|error| at(path, &error))
}

fn sync_folder(path: &Path) -> Result<(), CliError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| at(path, &error))
}
