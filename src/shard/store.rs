//! A shard's log found on disk: read whole, cut where it is torn, and turned into the shard's state. Runs on the shard's thread before
//! anybody is let in.

use super::core::Core;
use super::recover::{Found, Pass, Recovered, Replay};
use crate::ids::HashKey;
use crate::io::directory::{Directory, SegmentFile, cut, segments, sync_directory, take_clean};
use crate::limits::CHUNK_BYTES;
use crate::log::{
    Geometry, Position, Record, SEGMENT_HEADER_BYTES, ScanError, Scanned, Scanner, SegmentHeader, segment_name, segment_number,
};
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

/// What makes a log a shard's own: what its segments' headers must say.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub shard: u16,
    pub generation: u32,
    /// The size of segments to come, where none is there.
    pub segment_bytes: u64,
    pub key: HashKey,
}

/// One segment of a log that is read, a file or bytes in memory.
#[derive(Debug)]
pub struct Segment<R> {
    pub number: u64,
    pub reader: R,
}

/// Why a log could not be read.
#[derive(Debug)]
pub enum ReadError {
    Io(u64, std::io::Error),
    Scan(ScanError),
}

impl ReadError {
    /// One line: what is wrong with the log in this directory.
    pub(super) fn told(&self, path: &Path) -> String {
        match self {
            Self::Io(number, error) => format!("log.dir: {}: {error}", path.join(segment_name(*number)).display()),
            Self::Scan(error) => damage(path, error),
        }
    }
}

/// A log that was read whole.
#[derive(Debug)]
pub struct Reading {
    pub geometry: Geometry,
    pub scanned: Scanned,
    /// The segments that were begun, by number, with when that was (Unix ms).
    begun: Vec<(u64, u64)>,
    outcome: Recovered,
}

/// Reads a shard's log into its core.
///
/// # Errors
/// One line: the file, the place in it and what is wrong, or what the file system answered.
pub fn recover(core: &mut Core, directory: &Directory, shard: usize, segment_bytes: u64, now: Tick) -> Result<Store, String> {
    let path = directory.make_shard(shard)?;
    let mut files = segments(&path, segment_number)?;
    let identity = Identity {
        shard: u16::try_from(shard).unwrap_or(u16::MAX),
        generation: directory.generation,
        segment_bytes,
        key: HashKey(directory.key),
    };
    let mut sources: Vec<Segment<&File>> = files.iter().map(|file| Segment { number: file.number, reader: &file.file }).collect();
    let reading = read_log(core, &mut sources, &identity).map_err(|error| error.told(&path))?;
    if let Some(torn) = &reading.scanned.torn {
        tracing::warn!(
            shard,
            segment = segment_name(torn.segment),
            offset = torn.offset,
            bytes = torn.bytes,
            reason = %torn.reason,
            "the log's torn end was cut: nothing in it had been synced"
        );
    }
    let last = reading.scanned.last.as_ref().map(|last| (last.number, last.valid_bytes));
    trim_files(&path, &mut files, last).map_err(|error| format!("log.dir: {}: {error}", path.display()))?;
    let clean = take_clean(&path)? && reading.scanned.torn.is_none();
    let (size, records) = (reading.geometry.segment_bytes, reading.scanned.records);
    let outcome = go_on(core, reading, clean, now);
    if records > 0 {
        tracing::info!(
            shard,
            records,
            messages = outcome.messages,
            sessions = outcome.sessions,
            members = outcome.members,
            orphans = outcome.orphans,
            clean,
            "the log was recovered"
        );
    }
    let segments = files.into_iter().map(|segment| (segment.number, segment.file)).collect();
    Ok(Store { directory: path, segment_bytes: size, segments })
}

/// Reads all of a log's segments, in the order of their numbers, into a core. What is torn is left out; the caller cuts it before
/// [`go_on`].
///
/// # Errors
/// What could not be read, or is damaged.
pub fn read_log<R: Read + Seek>(core: &mut Core, segments: &mut [Segment<R>], identity: &Identity) -> Result<Reading, ReadError> {
    let mut replay = Replay::new(identity.key);
    let mut begun = Vec::new();
    // The segments keep the size they were made with.
    let mut size = identity.segment_bytes;
    for segment in segments.iter_mut() {
        if let Some(header) = header_of(&mut segment.reader).map_err(|error| ReadError::Io(segment.number, error))? {
            size = header.segment_bytes;
            begun.push((segment.number, header.created_ms));
        }
    }
    let geometry = Geometry { segment_bytes: size, shard: identity.shard, generation: identity.generation };
    core.take_disk(geometry, &Found::default());
    scan(segments, identity, |at, record| core.replay(&mut replay, at, record))?;
    replay.pass = Pass::Messages;
    let scanned = scan(segments, identity, |at, record| core.replay(&mut replay, at, record))?;
    Ok(Reading { geometry, scanned, begun, outcome: replay.outcome })
}

/// The log goes on behind what was read of it. Segments behind the last good one are gone.
pub fn go_on(core: &mut Core, reading: Reading, clean: bool, now: Tick) -> Recovered {
    let Reading { geometry, scanned, begun, mut outcome } = reading;
    let last = scanned.last.map(|last| last.number);
    let segments = begun.into_iter().filter(|(number, _)| last.is_some_and(|last| *number <= last)).collect();
    core.take_disk(geometry, &Found { segments, chain: scanned.chain, clean });
    core.finish_recovery(clean, now, &mut outcome);
    outcome
}

/// Reads a shard's segments from their beginning, and shows each record.
pub(super) fn scan<R: Read + Seek>(
    segments: &mut [Segment<R>],
    identity: &Identity,
    mut each: impl FnMut(Position, &Record<'_>),
) -> Result<Scanned, ReadError> {
    let mut scanner = Scanner::new(identity.shard, identity.generation);
    let mut chunk = vec![0; CHUNK_BYTES];
    for segment in segments {
        let told = |error: std::io::Error| ReadError::Io(segment.number, error);
        segment.reader.rewind().map_err(told)?;
        scanner.segment(segment.number).map_err(ReadError::Scan)?;
        loop {
            let filled = read_up_to(&mut segment.reader, &mut chunk).map_err(told)?;
            scanner.chunk(&chunk[..filled], &mut each).map_err(ReadError::Scan)?;
            if filled < CHUNK_BYTES {
                break;
            }
        }
    }
    scanner.finish().map_err(ReadError::Scan)
}

fn damage(path: &Path, error: &ScanError) -> String {
    format!(
        "log.dir: {}: {error}; `ringway log verify` shows more, `ringway log repair --quarantine` sets the damaged part aside",
        path.display()
    )
}

/// A file's header, where it has one that reads; what is wrong with it the scan tells.
pub(super) fn header_of(segment: &mut (impl Read + Seek)) -> std::io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    segment.rewind()?;
    let filled = read_up_to(segment, &mut bytes)?;
    Ok(bytes.get(..filled).and_then(|bytes| SegmentHeader::decode(bytes).ok()))
}

pub(super) fn read_up_to(file: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
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
pub(crate) fn trim_files(path: &Path, files: &mut Vec<SegmentFile>, last: Option<(u64, u64)>) -> std::io::Result<()> {
    let kept = files.iter().position(|file| last.is_none_or(|(number, _)| file.number > number)).unwrap_or(files.len());
    for gone in files.drain(kept..) {
        std::fs::remove_file(&gone.path)?;
    }
    if let (Some(file), Some((_, valid_bytes))) = (files.last(), last) {
        cut(&file.file, valid_bytes)?;
    }
    sync_directory(path)
}
