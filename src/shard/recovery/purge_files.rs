//! Purges a session's messages from a shard's files while no gateway has them open: finishes an interrupted purge, and purges for
//! the tools.

use super::open::{ReadError, Segment, scan, trim_files};
use super::reshard::NewLog;
use crate::io::directory::{SegmentFile, segments};
use crate::io::files::{begin_purge, end_purge, purge_file, purges};
use crate::log::{
    Geometry, Header, Kind, Log, Mark, MemberState, Position, Record, ScanError, Scanned, Scanner, purge, segment_number,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::Path;

/// The log's [`purge`], for the engine's thread of files.
///
/// # Errors
/// Bytes that do not read as a record, without an errno.
pub fn purge_part(
    bytes: &mut [u8],
    end: usize,
    session: u64,
    is_first: bool,
    each: &mut dyn FnMut(Range<usize>, bool),
) -> io::Result<()> {
    purge_all_but(&BTreeSet::new(), bytes, end, session, is_first, each)
}

/// Purges all but the states of the members for which `keeps` is true.
fn purge_all_but(
    keeps: &BTreeSet<u64>,
    bytes: &mut [u8],
    end: usize,
    session: u64,
    is_first: bool,
    each: &mut dyn FnMut(Range<usize>, bool),
) -> io::Result<()> {
    let purged = purge(bytes, end, session, is_first, &|member| keeps.contains(&member), each);
    purged.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A member's state without its presence data, and later facts about it, each with its original header.
type BareState = Vec<(Header, Vec<u8>)>;

/// The members of sessions, by session and member, as of the end of a log; `Some` for those that have presence data.
#[derive(Debug, Default)]
struct Members(BTreeMap<(u64, u64), Option<BareState>>);

impl Members {
    /// Notes the next record of the log.
    fn note(&mut self, record: &Record<'_>) {
        let Header { kind, session, sender, .. } = record.header;
        match kind {
            Kind::Member if !record.purged => {
                let state = MemberState::decode(record.body).ok().filter(|state| state.presence.is_some());
                let bare = state.and_then(|state| {
                    let mut body = Vec::new();
                    MemberState { presence: None, ..state }.encode(&mut body).ok()?;
                    Some(vec![(record.header, body)])
                });
                self.0.insert((session, sender), bare);
            }
            // Version 2 has presence data in records of their own, which are purged. Other records behind a state of version 1
            // are rewritten with it.
            Kind::Stays | Kind::Joined | Kind::Left | Kind::Came | Kind::Went | Kind::Roles | Kind::Receipt => {
                if let Some(Some(state)) = self.0.get_mut(&(session, sender)) {
                    state.push((record.header, record.body.to_vec()));
                }
            }
            Kind::MemberGone => drop(self.0.remove(&(session, sender))),
            Kind::SessionGone => self.0.retain(|(of, _), _| *of != session),
            _ => {}
        }
    }

    /// The members of a session, by the hash of each.
    fn of(&self, session: u64) -> BTreeSet<u64> {
        let members = self.0.range((session, 0)..=(session, u64::MAX));
        members.filter(|(_, state)| state.is_some()).map(|((_, member), _)| *member).collect()
    }
}

/// The place of the record of a session's purge.
#[derive(Clone, Debug)]
pub struct Found {
    pub at: Position,
    /// Members whose state was not rewritten before it without their presence data: an earlier version's purge leaves them.
    pub keeps: BTreeSet<u64>,
}

/// Finds the last record of each session's purge in a log whose purge may have stopped half way, and the size of its segments.
///
/// # Errors
/// A file that could not be read, or is damaged.
pub fn find_purges<R: Read + Seek>(
    log: &mut [Segment<R>],
    (shard, generation): (u16, u32),
    sessions: &[u64],
) -> Result<(u64, BTreeMap<u64, Found>), ReadError> {
    let (mut found, mut members) = (Vec::new(), Members::default());
    let scanner = Scanner::new(shard, generation).with_half_purged(sessions.to_vec());
    let scanned = scan(scanner, log, |at, record| {
        let session = record.header.session;
        if !sessions.contains(&session) {
            return;
        }
        members.note(record);
        if record.header.kind == Kind::Purge {
            found.push((session, Found { at, keeps: members.of(session) }));
        }
    });
    let (scanned, whole_to) = match scanned {
        Ok(scanned) => (scanned, u64::MAX),
        // A body that does not read and has no purge behind it was torn, not purged: nothing from there on had been synced.
        Err(ReadError::Scan(ScanError::Purged { uncovered, scanned })) => {
            let size = scanned.segment_bytes.unwrap_or(0);
            let first = uncovered.iter().map(|each| each.segment * size + each.offset).min();
            (*scanned, first.unwrap_or(u64::MAX))
        }
        Err(error) => return Err(error),
    };
    let before = found.into_iter().filter(|(_, found)| found.at.0 < whole_to).collect();
    Ok((scanned.segment_bytes.unwrap_or(0), before))
}

/// Finishes the purges that were begun in a shard's directory and recorded in the log. Returns how many messages were purged.
///
/// # Errors
/// An error of one line: what could not be read or written.
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
        // Without a record of the purge, nothing has been removed.
        if let Some(Found { at, keeps }) = found.get(&session) {
            for file in &files {
                let end = at.0.saturating_sub(file.number * size).min(size);
                let purger = |bytes: &mut [u8], end, session, is_first, each: &mut dyn FnMut(Range<usize>, bool)| {
                    purge_all_but(keeps, bytes, end, session, is_first, each)
                };
                messages += purge_file(&file.file, session, end, purger).map_err(told)?;
            }
        }
        end_purge(path, session).map_err(told)?;
    }
    tracing::info!(path = %path.display(), messages, "purges that were begun have been finished");
    Ok(messages)
}

/// Appends the records of sessions' purges to a log that nobody has open, in segments of their own, durably; before them the
/// states of members that have presence data, without it. Each purge is a session and its last seq. A torn end is cut, as by a
/// start.
///
/// # Errors
/// An error of one line: what could not be written.
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
    let mut members = Members::default();
    let mut log: Vec<Segment<&File>> = files.iter().map(|file| Segment { number: file.number, reader: &file.file }).collect();
    let whole = scan(Scanner::new(shard, generation), &mut log, |_, record| {
        if purged.iter().any(|(session, _)| *session == record.header.session) {
            members.note(record);
        }
    });
    match whole {
        // Purged messages without a record of their purge are the reason for this call.
        Ok(_) | Err(ReadError::Scan(ScanError::Purged { .. })) => {}
        Err(error) => return Err(error.told(path)),
    }
    let geometry = Geometry { segment_bytes, shard, generation };
    let mut new = NewLog::new(path.to_owned(), Log::on_disk(0, geometry, last.number + 1, scanned.chain, Position(0)));
    new.log.tick(now_ms);
    for (header, body) in members.0.into_values().flatten().flatten() {
        new.put(&Header { ts_ms: now_ms, ..header }, &body)?;
    }
    let header = |kind, session, seq| Header { kind, session, seq, epoch: 0, ts_ms: now_ms, sender: 0, id: 0, content: 0 };
    for (session, seq) in purged {
        new.put(&header(Kind::Purge, *session, *seq), &[])?;
    }
    new.write()?;
    new.sync()?;
    // The mark is true only now.
    let mut mark = Vec::new();
    Mark { synced_to: new.log.end().0 }.encode(&mut mark);
    new.put(&header(Kind::Mark, 0, 0), &mark)?;
    new.write()?;
    new.sync()
}

/// Purges a session in a log that nobody has open and that was read whole. Returns how many messages were purged.
///
/// # Errors
/// An error of one line: what could not be written; the next start, or another call, continues.
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
