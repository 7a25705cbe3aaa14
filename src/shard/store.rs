//! A shard's log found on disk: read whole, cut where it is torn, and turned into the shard's state. Runs on the shard's thread before
//! anybody is let in.

use super::core::Core;
use super::recover::{Found, Pass, Replay};
use crate::ids::HashKey;
use crate::io::directory::{Directory, SegmentFile, cut, segments, sync_directory, take_clean};
use crate::limits::CHUNK_BYTES;
use crate::log::{Geometry, SEGMENT_HEADER_BYTES, ScanError, Scanned, Scanner, SegmentHeader, segment_name, segment_number};
use crate::time::Tick;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A shard's disk, ready for its engine.
#[derive(Debug)]
pub struct Store {
    /// Where new segments are made.
    pub directory: PathBuf,
    pub segment_bytes: u64,
    /// What is there already, by number.
    pub segments: Vec<(u64, File)>,
}

/// Reads a shard's log into its core.
///
/// # Errors
/// One line: the file, the place in it and what is wrong, or what the file system answered.
pub fn recover(core: &mut Core, directory: &Directory, shard: usize, segment_bytes: u64, now: Tick) -> Result<Store, String> {
    let path = directory.make_shard(shard)?;
    let mut files = segments(&path, segment_number)?;
    let shard_number = u16::try_from(shard).unwrap_or(u16::MAX);
    let mut replay = Replay::new(HashKey(directory.key));
    let mut begun = Vec::new();
    // The segments keep the size they were made with.
    let mut size = segment_bytes;
    for segment in &mut files {
        if let Some(header) = header_of(segment).map_err(|error| format!("log.dir: {}: {error}", segment.path.display()))? {
            size = header.segment_bytes;
            begun.push((segment.number, header.created_ms));
        }
    }
    core.take_disk(Geometry { segment_bytes: size, shard: shard_number, generation: directory.generation }, &Found::default());
    scan(core, &path, &mut files, (shard_number, directory.generation), &mut replay)?;
    replay.pass = Pass::Messages;
    let scanned = scan(core, &path, &mut files, (shard_number, directory.generation), &mut replay)?;
    let mut outcome = replay.outcome;
    if let Some(torn) = &scanned.torn {
        tracing::warn!(
            shard,
            segment = segment_name(torn.segment),
            offset = torn.offset,
            bytes = torn.bytes,
            reason = %torn.reason,
            "the log's torn end was cut: nothing in it had been synced"
        );
    }
    let last = scanned.last.as_ref().map(|last| (last.number, last.valid_bytes));
    trim_files(&path, &mut files, last).map_err(|error| format!("log.dir: {}: {error}", path.display()))?;
    begun.retain(|(number, _)| files.iter().any(|file| file.number == *number));
    let clean = take_clean(&path)? && scanned.torn.is_none();
    let found = Found { segments: begun, chain: scanned.chain, clean };
    core.take_disk(Geometry { segment_bytes: size, shard: shard_number, generation: directory.generation }, &found);
    core.finish_recovery(found.clean, now, &mut outcome);
    if scanned.records > 0 {
        tracing::info!(
            shard,
            records = scanned.records,
            messages = outcome.messages,
            sessions = outcome.sessions,
            members = outcome.members,
            orphans = outcome.orphans,
            clean = found.clean,
            "the log was recovered"
        );
    }
    let segments = files.into_iter().map(|segment| (segment.number, segment.file)).collect();
    Ok(Store { directory: path, segment_bytes: size, segments })
}

/// Reads a shard's segments from their beginning, each record to the core.
fn scan(
    core: &mut Core,
    path: &Path,
    files: &mut [SegmentFile],
    (shard, generation): (u16, u32),
    replay: &mut Replay,
) -> Result<Scanned, String> {
    let mut scanner = Scanner::new(shard, generation);
    let mut chunk = vec![0; CHUNK_BYTES];
    for segment in files {
        let told = |error: std::io::Error| format!("log.dir: {}: {error}", segment.path.display());
        segment.file.rewind().map_err(told)?;
        scanner.segment(segment.number).map_err(|error| damage(path, &error))?;
        loop {
            let filled = read_up_to(&mut segment.file, &mut chunk).map_err(told)?;
            scanner
                .chunk(&chunk[..filled], |at, record| core.replay(replay, at, record))
                .map_err(|error| damage(path, &error))?;
            if filled < CHUNK_BYTES {
                break;
            }
        }
    }
    scanner.finish().map_err(|error| damage(path, &error))
}

fn damage(path: &Path, error: &ScanError) -> String {
    format!(
        "log.dir: {}: {error}; `ringway log verify` shows more, `ringway log repair --quarantine` sets the damaged part aside",
        path.display()
    )
}

/// A file's header, where it has one that reads; what is wrong with it the scan tells.
fn header_of(segment: &mut SegmentFile) -> std::io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let filled = read_up_to(&mut segment.file, &mut bytes)?;
    segment.file.rewind()?;
    Ok(bytes.get(..filled).and_then(|bytes| SegmentHeader::decode(bytes).ok()))
}

fn read_up_to(file: &mut File, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Cuts the last file to what is good in it, and lets those behind it go: they were made ahead and never begun, or torn off.
fn trim_files(path: &Path, files: &mut Vec<SegmentFile>, last: Option<(u64, u64)>) -> std::io::Result<()> {
    let kept = files.iter().position(|file| last.is_none_or(|(number, _)| file.number > number)).unwrap_or(files.len());
    for gone in files.drain(kept..) {
        std::fs::remove_file(&gone.path)?;
    }
    if let (Some(file), Some((_, valid_bytes))) = (files.last(), last) {
        cut(&file.file, valid_bytes)?;
    }
    sync_directory(path)
}
