//! A shard's log found on disk: read whole, cut if it is torn, and turned into the shard's state. Runs on the shard's thread
//! before anybody is accepted.

use super::replay::{Found, Recovered, Replay};
use crate::ids::HashKey;
use crate::io::directory::{Directory, SegmentFile, cut, segments, sync_directory, take_clean};
use crate::io::files::{Indexed, drop_index, index_in_memory, index_path, put_index, stage_index};
use crate::limits::CHUNK_BYTES;
use crate::log::{
    Geometry, IndexScan, Position, Record, SEGMENT_HEADER_BYTES, ScanError, Scanned, Scanner, SegmentHeader, index_number,
    segment_name, segment_number,
};
use crate::shard::core::Core;
use crate::time::Tick;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A shard's disk, ready for its engine.
#[derive(Debug)]
pub struct Store {
    /// The directory for new segments.
    pub directory: PathBuf,
    pub segment_bytes: u64,
    /// The existing segments, by number.
    pub segments: Vec<(u64, File)>,
    /// Their indexes.
    pub indexes: Vec<(u64, File)>,
}

/// The identity that a log's segment headers must have to be this shard's.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub shard: u16,
    pub generation: u32,
    /// The size of new segments, if there are none yet.
    pub segment_bytes: u64,
    pub key: HashKey,
}

/// A segment of a log that is read, a file or bytes in memory.
#[derive(Debug)]
pub struct Segment<R> {
    pub number: u64,
    pub reader: R,
}

/// The reason why a log could not be read.
#[derive(Debug)]
pub enum ReadError {
    Io(u64, std::io::Error),
    Scan(ScanError),
}

impl ReadError {
    /// The fault of the log in this directory, in one line.
    pub(in crate::shard) fn told(&self, path: &Path) -> String {
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
    /// The segments that were begun, by number, with the time of that (Unix ms).
    begun: Vec<(u64, u64)>,
    outcome: Recovered,
}

/// The indexes of a log that is read: existing ones, or new ones staged beside their places until everything was found good.
#[derive(Debug)]
struct Indexes {
    path: PathBuf,
    /// By their segments' numbers, and whether each is staged.
    files: Vec<(u64, File, bool)>,
}

impl Indexes {
    /// Ensures a segment's index with these bytes: keeps the existing file if it has them, else makes a new one.
    fn keep(&mut self, number: u64, bytes: &[u8]) -> std::io::Result<()> {
        let path = index_path(&self.path, number);
        if let Ok(mut file) = File::open(&path) {
            let mut found = Vec::with_capacity(bytes.len());
            let read = Read::by_ref(&mut file).take(bytes.len() as u64 + 1).read_to_end(&mut found);
            if read.is_ok() && found == bytes {
                self.files.push((number, file, false));
                return Ok(());
            }
            tracing::warn!(path = %path.display(), "a segment's index does not match its segment: it is remade");
        }
        let staged = stage_index(&path, bytes).map(|file| (number, file, true)).or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "a segment's index could not be written: it is held in memory");
            index_in_memory(bytes).map(|file| (number, file, false))
        });
        self.files.push(staged?);
        Ok(())
    }

    /// The indexes of the remaining segments, each moved to its place.
    fn settle(mut self, segments: &[SegmentFile]) -> Vec<(u64, File)> {
        let mut kept = Vec::new();
        for (number, file, is_staged) in std::mem::take(&mut self.files) {
            let path = index_path(&self.path, number);
            if !segments.iter().any(|segment| segment.number == number) {
                drop_index(&path);
                continue;
            }
            if is_staged && let Err(error) = put_index(&path) {
                // The file stays open without its name.
                tracing::warn!(path = %path.display(), %error, "a segment's index could not be put in its place: the next start makes it");
            }
            kept.push((number, file));
        }
        kept
    }
}

impl Drop for Indexes {
    fn drop(&mut self) {
        for (number, ..) in self.files.iter().filter(|(.., is_staged)| *is_staged) {
            drop_index(&index_path(&self.path, *number));
        }
    }
}

/// A shard's log that was read whole into its core, in a directory in which nothing has changed yet.
#[derive(Debug)]
pub struct Unsettled {
    shard: usize,
    files: Vec<SegmentFile>,
    indexes: Indexes,
    reading: Reading,
}

/// Reads a shard's log into its core, and changes nothing.
///
/// # Errors
/// An error of one line: the file, the place in it and what is wrong, or what the file system answered.
pub fn recover(core: &mut Core, directory: &Directory, shard: usize, segment_bytes: u64) -> Result<Unsettled, String> {
    let path = directory.make_shard(shard)?;
    let files = segments(&path, segment_number)?;
    let identity = Identity {
        shard: u16::try_from(shard).unwrap_or(u16::MAX),
        generation: directory.generation,
        segment_bytes,
        key: HashKey(directory.key),
    };
    let mut sources: Vec<Segment<&File>> = files.iter().map(|file| Segment { number: file.number, reader: &file.file }).collect();
    let mut indexes = Indexes { path, files: Vec::new() };
    let read = read_log(core, &mut sources, &identity, |number, bytes| indexes.keep(number, bytes));
    let reading = read.map_err(|error| error.told(&indexes.path))?;
    Ok(Unsettled { shard, files, indexes, reading })
}

/// Continues the log that was read: its files are cut and tidied.
///
/// # Errors
/// An error of one line: the file system's error.
pub fn settle(core: &mut Core, unsettled: Unsettled, now: Tick) -> Result<Store, String> {
    let Unsettled { shard, mut files, indexes, reading } = unsettled;
    let path = indexes.path.clone();
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
    let indexes = indexes.settle(&files);
    remove_stale(&path, &indexes).map_err(|error| format!("log.dir: {}: {error}", path.display()))?;
    let clean = take_clean(&path)? == Some(reading.scanned.chain) && reading.scanned.torn.is_none();
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
    if outcome.orphans > 0 {
        tracing::error!(
            shard,
            messages = outcome.orphans,
            "messages of unknown sessions are not served, and are deleted with their files: an older file was deleted"
        );
    }
    let segments = files.into_iter().map(|segment| (segment.number, segment.file)).collect();
    Ok(Store { directory: path, segment_bytes: size, segments, indexes })
}

/// Reads all of a log's segments, once and in the order of their numbers, into a core. A torn end is left out; the caller cuts it
/// before [`go_on`]. `keep_index` is given each segment's index file, which its readers will need.
///
/// # Errors
/// A segment that could not be read, or is damaged.
pub fn read_log<R: Read + Seek>(
    core: &mut Core,
    segments: &mut [Segment<R>],
    identity: &Identity,
    mut keep_index: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> Result<Reading, ReadError> {
    let mut replay = Replay::new(identity.key);
    let (mut begun, mut headers) = (Vec::new(), Vec::new());
    // The segments keep the size they were made with.
    let mut size = identity.segment_bytes;
    for segment in segments.iter_mut() {
        let header = header_of(&mut segment.reader).map_err(|error| ReadError::Io(segment.number, error))?;
        headers.push(header);
        if let Some(header) = header {
            size = header.segment_bytes;
            begun.push((segment.number, header.created_ms));
        }
    }
    let geometry = Geometry { segment_bytes: size, shard: identity.shard, generation: identity.generation };
    core.storage.take_disk(&core.cx, geometry, &Found::default());
    let mut scanner = Scanner::new(identity.shard, identity.generation);
    let mut chunk = vec![0; CHUNK_BYTES];
    for (segment, header) in segments.iter_mut().zip(headers) {
        scan_one(&mut scanner, segment, &mut chunk, |at, record| core.replay(&mut replay, at, at.0 % size, record))?;
        if let Some(header) = header {
            let told = |error: std::io::Error| ReadError::Io(segment.number, error);
            let index = core
                .storage
                .close_segment(&core.cx, &mut replay, &header)
                .ok_or_else(|| told(std::io::ErrorKind::Unsupported.into()))?;
            keep_index(segment.number, &index.bytes).map_err(told)?;
        }
    }
    let scanned = scanner.finish().map_err(ReadError::Scan)?;
    let outcome = core.home.settle_replay(&core.cx, replay);
    Ok(Reading { geometry, scanned, begun, outcome })
}

/// Makes a segment's index from its bytes.
///
/// # Errors
/// The reader's error; `InvalidData` if the bytes are no segment.
pub fn index_of(reader: &mut dyn Read) -> std::io::Result<Indexed> {
    let (mut scan, mut chunk) = (IndexScan::default(), vec![0; CHUNK_BYTES]);
    loop {
        let filled = read_up_to(reader, &mut chunk)?;
        scan.chunk(&chunk[..filled]);
        if filled < CHUNK_BYTES {
            break;
        }
    }
    let file = scan.finish().ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Indexed { bytes: file.bytes, directory_bytes: file.directory_bytes })
}

/// Removes indexes of segments that are gone, and leftovers of an interrupted write. Files with other names are not part of the
/// log.
fn remove_stale(path: &Path, indexes: &[(u64, File)]) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let known = |number| indexes.iter().any(|(kept, _)| *kept == number);
        let is_staged = name.strip_suffix(".new").and_then(index_number).is_some();
        if is_staged || index_number(&name).is_some_and(|number| !known(number)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Continues the log behind the part that was read. Segments behind the last good one are gone.
pub fn go_on(core: &mut Core, reading: Reading, clean: bool, now: Tick) -> Recovered {
    let Reading { geometry, scanned, begun, mut outcome } = reading;
    let last = scanned.last.map(|last| last.number);
    let segments = begun.into_iter().filter(|(number, _)| last.is_some_and(|last| *number <= last)).collect();
    core.storage.take_disk(&core.cx, geometry, &Found { segments, chain: scanned.chain, clean });
    core.finish_recovery(clean, now, &mut outcome);
    outcome
}

/// Reads a shard's segments from their beginning, and shows each record.
pub(in crate::shard) fn scan<R: Read + Seek>(
    mut scanner: Scanner,
    segments: &mut [Segment<R>],
    mut each: impl FnMut(Position, &Record<'_>),
) -> Result<Scanned, ReadError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for segment in segments {
        scan_one(&mut scanner, segment, &mut chunk, &mut each)?;
    }
    scanner.finish().map_err(ReadError::Scan)
}

/// Reads the next segment, a chunk of memory at a time.
fn scan_one<R: Read + Seek>(
    scanner: &mut Scanner,
    segment: &mut Segment<R>,
    chunk: &mut [u8],
    mut each: impl FnMut(Position, &Record<'_>),
) -> Result<(), ReadError> {
    let told = |error: std::io::Error| ReadError::Io(segment.number, error);
    segment.reader.rewind().map_err(told)?;
    scanner.segment(segment.number).map_err(ReadError::Scan)?;
    loop {
        let filled = read_up_to(&mut segment.reader, chunk).map_err(told)?;
        scanner.chunk(&chunk[..filled], &mut each).map_err(ReadError::Scan)?;
        if filled < chunk.len() {
            return Ok(());
        }
    }
}

fn damage(path: &Path, error: &ScanError) -> String {
    // A shard's directory is DIR/<generation>/shard-<i>.
    let root = path.ancestors().nth(2).unwrap_or(path).display();
    format!(
        "log.dir: {}: {error}; `ringway log verify {root}` shows more, `ringway log repair {root} --quarantine` sets aside what is damaged \
         and all behind it",
        path.display()
    )
}

/// A file's header, if it is readable; the scan reports what is wrong with it.
pub(in crate::shard) fn header_of(segment: &mut (impl Read + Seek)) -> std::io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    segment.rewind()?;
    let filled = read_up_to(segment, &mut bytes)?;
    Ok(bytes.get(..filled).and_then(|bytes| SegmentHeader::decode(bytes).ok()))
}

fn read_up_to(file: &mut (impl Read + ?Sized), into: &mut [u8]) -> std::io::Result<usize> {
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

/// Cuts the last file to its good part, and deletes those behind it: they were made ahead and never begun, or torn off.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_indexes_that_nobody_needs_are_removed() {
        let path = std::env::temp_dir().join(format!("ringway-stale-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let foreign = ["notes.idx", "notes.idx.new", "000000000000000A.idx.new", "000000000000000a.seg"];
        for name in foreign.iter().chain(&["000000000000000a.idx", "000000000000000b.idx", "000000000000000b.idx.new"]) {
            std::fs::write(path.join(name), "").unwrap();
        }
        remove_stale(&path, &[(0xa, File::open(path.join("000000000000000a.idx")).unwrap())]).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(
            left,
            ["000000000000000A.idx.new", "000000000000000a.idx", "000000000000000a.seg", "notes.idx", "notes.idx.new"]
        );
    }
}
