//! A session's messages taken out of a shard's files while no gateway has them open: what a purge that was interrupted left undone, and
//! a purge by the tools.

use super::store::{ReadError, Segment, scan, trim_files};
use crate::io::directory::{SegmentFile, segments, sync_directory};
use crate::io::files::{begin_purge, end_purge, purge_file, purges, segment_path};
use crate::log::{
    Header, Kind, Mark, Position, SEGMENT_HEADER_BYTES, ScanError, Scanned, Scanner, SegmentHeader, purge, segment_number,
    write_record,
};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The log's [`purge`], for the engine's thread of files.
///
/// # Errors
/// What does not read as a record, without an errno.
pub fn purge_part(
    bytes: &mut [u8],
    end: usize,
    session: u64,
    is_first: bool,
    each: &mut dyn FnMut(Range<usize>),
) -> io::Result<()> {
    purge(bytes, end, session, is_first, each).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Finds the last record of each session's purge in a log whose purge may have stopped half way, and the size of its segments.
///
/// # Errors
/// What could not be read, or is damaged.
pub fn find_purges<R: Read + Seek>(
    log: &mut [Segment<R>],
    (shard, generation): (u16, u32),
    sessions: &[u64],
) -> Result<(u64, BTreeMap<u64, Position>), ReadError> {
    let mut found = Vec::new();
    let scanner = Scanner::new(shard, generation).with_half_purged(sessions.to_vec());
    let scanned = scan(scanner, log, |at, record| {
        if record.header.kind == Kind::Purge && sessions.contains(&record.header.session) {
            found.push((record.header.session, at));
        }
    });
    let (scanned, whole_to) = match scanned {
        Ok(scanned) => (scanned, u64::MAX),
        // A body that does not read and has no purge behind it was not purged, but torn: nothing from there on had been synced.
        Err(ReadError::Scan(ScanError::Purged { uncovered, scanned })) => {
            let size = scanned.segment_bytes.unwrap_or(0);
            let first = uncovered.iter().map(|each| each.segment * size + each.offset).min();
            (*scanned, first.unwrap_or(u64::MAX))
        }
        Err(error) => return Err(error),
    };
    let before = found.into_iter().filter(|(_, at)| at.0 < whole_to).collect();
    Ok((scanned.segment_bytes.unwrap_or(0), before))
}

/// Finishes the purges that were begun in a shard's directory, where their record has come into the log; how many messages went.
///
/// # Errors
/// One line: what could not be read or written.
pub fn finish_purges(path: &Path, shard: usize, generation: u32) -> Result<u64, String> {
    let told = |error: io::Error| format!("log.dir: {}: {error}", path.display());
    let sessions = purges(path).map_err(told)?;
    if sessions.is_empty() {
        return Ok(0);
    }
    let files = segments(path, segment_number)?;
    let mut log: Vec<Segment<&File>> = files.iter().map(|file| Segment { number: file.number, reader: &file.file }).collect();
    let shard = u16::try_from(shard).unwrap_or(u16::MAX);
    let (size, found) = find_purges(&mut log, (shard, generation), &sessions).map_err(|error| error.told(path))?;
    let mut messages = 0;
    for session in sessions {
        // Where its record is not there, nothing has been taken out.
        if let Some(at) = found.get(&session) {
            for file in &files {
                let end = at.0.saturating_sub(file.number * size).min(size);
                messages += purge_file(&file.file, session, end, purge_part).map_err(told)?;
            }
        }
        end_purge(path, session).map_err(told)?;
    }
    tracing::info!(path = %path.display(), messages, "purges that were begun have been finished");
    Ok(messages)
}

/// Appends the records of sessions' purges to a log that nobody has open, in a segment of their own, durably. Each is a session and its
/// last seq. A torn end is cut, as by a start.
///
/// # Errors
/// One line: what could not be written.
pub fn append_purges(
    path: &Path,
    (shard, generation): (u16, u32),
    scanned: &Scanned,
    purged: &[(u64, u64)],
    now_ms: u64,
) -> Result<(), String> {
    let told = |error: io::Error| format!("log.dir: {}: {error}", path.display());
    let (Some(last), Some(segment_bytes)) = (scanned.last, scanned.segment_bytes) else { return Ok(()) };
    let mut files: Vec<SegmentFile> = segments(path, segment_number)?;
    trim_files(path, &mut files, Some((last.number, last.valid_bytes))).map_err(told)?;
    let number = last.number + 1;
    let begin = number * segment_bytes;
    let segment = SegmentHeader { shard, generation, number, segment_bytes, created_ms: now_ms, chain_before: scanned.chain };
    let mut bytes = segment.encode().to_vec();
    debug_assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
    let header = |kind, session, seq| Header { kind, session, seq, epoch: 0, ts_ms: now_ms, sender: 0, id: 0, content: 0 };
    let mut chain = segment.chain_start();
    for (session, seq) in purged {
        chain = write_record(&mut bytes, &header(Kind::Purge, *session, *seq), &[], &[], chain);
    }
    let (records, mut mark) = (bytes.len(), Vec::new());
    Mark { synced_to: begin + records as u64 }.encode(&mut mark);
    write_record(&mut bytes, &header(Kind::Mark, 0, 0), &[], &mark, chain);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(segment_path(path, number))?;
        file.write_all(&bytes[..records])?;
        file.sync_all()?;
        sync_directory(path)?;
        // Only now is it true.
        file.write_all(&bytes[records..])?;
        file.sync_all()
    };
    write().map_err(told)
}

/// Purges a session in a log that nobody has open and that was read whole. How many messages went.
///
/// # Errors
/// One line: what could not be written; the next start, or another call, goes on.
pub fn purge_files(
    path: &Path,
    (shard, generation): (u16, u32),
    scanned: &Scanned,
    (session, last_seq): (u64, u64),
    now_ms: u64,
) -> Result<u64, String> {
    begin_purge(path, session).map_err(|error| format!("log.dir: {}: {error}", path.display()))?;
    append_purges(path, (shard, generation), scanned, &[(session, last_seq)], now_ms)?;
    finish_purges(path, usize::from(shard), generation)
}
