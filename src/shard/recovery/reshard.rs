//! Changes the number of shards, or the size of segments, of a directory that has a log: every record is rewritten into a new
//! generation's logs, each at its session's new home, and then the new generation is put in force as a whole. Runs before any
//! shard does.
//!
//! Until `format` names the new generation, nothing of the old one has changed; from then on the old one only needs to be
//! deleted. So a start that was interrupted anywhere is repeated by the next one, or was done.

use super::open::{Identity, Segment, header_of, scan};
use crate::ids::{HashKey, Map};
use crate::io::directory::{Directory, SegmentFile, is_clean, leave_clean, segments, sync_directory};
use crate::io::files::{free_bytes, segment_path};
use crate::log::{Geometry, Header, Kind, Log, Mark, Position, Record, Scanner, SessionState, segment_number};
use crate::time::Tick;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The wanted layout of the directory.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Wanted {
    pub(in crate::shard) shards: usize,
    pub(in crate::shard) segment_bytes: u64,
    /// Bytes of the file system that must stay free.
    pub(in crate::shard) reserve_bytes: u64,
    /// Time for which a message id counts.
    pub(in crate::shard) dedupe_ms: u64,
}

/// The steps of a change, for tests that interrupt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begun,
    Record,
    Written,
    Signed,
    InForce,
}

/// The log of one shard in the old generation.
struct Old {
    path: PathBuf,
    identity: Identity,
    files: Vec<SegmentFile>,
}

/// A log whose new segments are written as it is filled.
pub(in crate::shard) struct NewLog {
    path: PathBuf,
    pub(in crate::shard) log: Log,
    /// The segment that is being written.
    file: Option<(u64, File)>,
}

/// The sessions, by the records of all shards.
struct Known {
    /// The home of each existing session, by its hash.
    homes: Map<u64, usize>,
    /// The place where each hash was last forgotten: earlier records belong to an earlier session of the same id.
    gone: Map<u64, Position>,
    /// The place where each was last purged: of its earlier messages only ids are carried over.
    purged: Map<u64, Position>,
    /// The time of the newest record, and the time before it for which ids count.
    last_ms: u64,
    dedupe_ms: u64,
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("log.dir: {}: {error}", path.display())
}

/// Brings the directory into the wanted layout; does nothing if it has it.
///
/// # Errors
/// An error of one line: the obstacle.
pub(in crate::shard) fn resize(directory: &mut Directory, wanted: &Wanted, now: Tick) -> Result<(), String> {
    resize_by(directory, wanted, now, &mut |_| Ok(()))
}

fn resize_by(
    directory: &mut Directory,
    wanted: &Wanted,
    now: Tick,
    step: &mut impl FnMut(Step) -> Result<(), String>,
) -> Result<(), String> {
    let mut olds = open_old(directory)?;
    let mut size = None;
    for old in &olds {
        for file in &old.files {
            let header = header_of(&mut &file.file).map_err(|error| told(&file.path, &error))?;
            size = size.or_else(|| header.map(|header| header.segment_bytes));
        }
    }
    if directory.shards == wanted.shards && size.is_none_or(|size| size == wanted.segment_bytes) {
        return Ok(());
    }
    let (from, to) = (directory.shards, wanted.shards);
    tracing::info!(
        from,
        to,
        segment_bytes = wanted.segment_bytes,
        "the log is written again for another number of shards or size of segments"
    );
    has_room(directory, &olds, wanted)?;
    let mut known = Known::new(HashKey(directory.key), wanted.dedupe_ms);
    let mut whole = true;
    for old in &mut olds {
        let scanned = read(old, |at, record| known.note(at, record, &HashKey(directory.key), wanted.shards))?;
        whole &= scanned && (is_clean(&old.path) || old.files.is_empty());
    }
    let generation = directory.generation + 1;
    let mut news = Vec::new();
    for shard in 0..wanted.shards {
        let path = directory.make_shard_of(generation, shard)?;
        let number = u16::try_from(shard).unwrap_or(u16::MAX);
        let geometry = Geometry { segment_bytes: wanted.segment_bytes, shard: number, generation };
        let mut log = Log::on_disk(0, geometry, 0, 0, Position(0));
        log.tick(now.wall_ms);
        news.push(NewLog::new(path, log));
    }
    step(Step::Begun)?;
    let (mut records, mut orphans) = (0_u64, 0_u64);
    for old in &mut olds {
        let mut failed = Ok(());
        read(old, |at, record| {
            if failed.is_err() {
                return;
            }
            failed = match known.home(at, record) {
                Some(home) => {
                    records += 1;
                    step(Step::Record).and_then(|()| news[home].append(record))
                }
                None => {
                    orphans += u64::from(record.header.kind == Kind::Message && !known.gone.contains_key(&record.header.session));
                    Ok(())
                }
            };
        })?;
        failed?;
    }
    for new in &mut news {
        new.finish(now)?;
    }
    step(Step::Written)?;
    if whole {
        // Nothing is lost on the way: sessions keep their epochs.
        for new in &news {
            leave_clean(&new.path, new.log.chain()).map_err(|error| told(&new.path, &error))?;
        }
    }
    step(Step::Signed)?;
    directory.succeed(wanted.shards)?;
    step(Step::InForce)?;
    tracing::info!(records, orphans, clean = whole, "the log was written again; the old one is deleted");
    Ok(())
}

fn open_old(directory: &Directory) -> Result<Vec<Old>, String> {
    let mut olds = Vec::new();
    for shard in 0..directory.shards {
        let path = directory.shard(shard);
        let files = segments(&path, segment_number)?;
        let identity = Identity {
            shard: u16::try_from(shard).unwrap_or(u16::MAX),
            generation: directory.generation,
            segment_bytes: 0,
            key: HashKey(directory.key),
        };
        olds.push(Old { path, identity, files });
    }
    Ok(olds)
}

/// Reads a whole log. Returns `true` if its end is whole.
fn read(old: &mut Old, each: impl FnMut(Position, &Record<'_>)) -> Result<bool, String> {
    let mut sources: Vec<Segment<&File>> =
        old.files.iter().map(|file| Segment { number: file.number, reader: &file.file }).collect();
    let scanner = Scanner::new(old.identity.shard, old.identity.generation);
    let scanned = scan(scanner, &mut sources, each).map_err(|error| error.told(&old.path))?;
    Ok(scanned.torn.is_none())
}

/// Refuses if the two generations would not fit beside each other.
fn has_room(directory: &Directory, olds: &[Old], wanted: &Wanted) -> Result<(), String> {
    let mut need = wanted.reserve_bytes;
    for file in olds.iter().flat_map(|old| &old.files) {
        need = need.saturating_add(file.file.metadata().map_err(|error| told(&file.path, &error))?.len());
    }
    let root = directory.root();
    let free = free_bytes(root).map_err(|error| told(root, &error))?;
    if free >= need {
        return Ok(());
    }
    Err(format!(
        "log.dir: {}: the log must be written again for {} shards and segments of {} bytes, which needs {need} free bytes (log.reserve_bytes \
         counted) and there are {free}: make room, or go back to server.shards = {} and the segment_bytes of before",
        root.display(),
        wanted.shards,
        wanted.segment_bytes,
        directory.shards
    ))
}

impl Known {
    fn new(key: HashKey, dedupe_ms: u64) -> Self {
        let (homes, gone, purged) = (Map::with_hasher(key), Map::with_hasher(key), Map::with_hasher(key));
        Self { homes, gone, purged, last_ms: 0, dedupe_ms }
    }

    fn note(&mut self, at: Position, record: &Record<'_>, key: &HashKey, shards: usize) {
        let session = record.header.session;
        self.last_ms = self.last_ms.max(record.header.ts_ms);
        match record.header.kind {
            Kind::Session => {
                if let Ok(state) = SessionState::decode(record.body) {
                    self.homes.insert(session, key.home_shard(state.session_id, shards));
                }
            }
            Kind::SessionGone => {
                self.homes.remove(&session);
                self.gone.insert(session, at);
            }
            Kind::Purge => drop(self.purged.insert(session, at)),
            _ => {}
        }
    }

    /// The new shard of a record; `None` if it is dropped.
    fn home(&self, at: Position, record: &Record<'_>) -> Option<usize> {
        // Marks name positions in the old log.
        if record.header.kind == Kind::Mark || self.gone.get(&record.header.session).is_some_and(|gone| at <= *gone) {
            return None;
        }
        // A purged state of a member was rewritten before the purge, and its presence data is gone.
        if matches!(record.header.kind, Kind::Member | Kind::Presence) && record.purged {
            return None;
        }
        let is_purged = self.purged.get(&record.header.session).is_some_and(|purged| at < *purged);
        let counts = record.purged && record.header.ts_ms >= self.last_ms.saturating_sub(self.dedupe_ms);
        if record.header.kind == Kind::Message && is_purged && !counts {
            return None;
        }
        self.homes.get(&record.header.session).copied()
    }
}

impl NewLog {
    /// `log` continues, in new segments in this directory.
    pub(in crate::shard) const fn new(path: PathBuf, log: Log) -> Self {
        Self { path, log, file: None }
    }

    /// Appends a record without addresses.
    pub(in crate::shard) fn put(&mut self, header: &Header, body: &[u8]) -> Result<(), String> {
        let chunks = self.log.resident_bytes();
        self.log.append(header, &[], &[body]);
        if self.log.resident_bytes() > chunks { self.write() } else { Ok(()) }
    }

    fn append(&mut self, record: &Record<'_>) -> Result<(), String> {
        let addresses: Vec<u64> =
            record.addresses.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes)).collect();
        let chunks = self.log.resident_bytes();
        if record.purged {
            self.log.append_purged(&record.header, &addresses);
        } else {
            self.log.append(&record.header, &addresses, &[record.body]);
        }
        // Whenever a chunk is full, the bytes before it are written to its file.
        if self.log.resident_bytes() > chunks { self.write() } else { Ok(()) }
    }

    pub(in crate::shard) fn write(&mut self) -> Result<(), String> {
        while let Some(part) = self.log.unwritten() {
            let path = segment_path(&self.path, part.segment);
            let mut write = || {
                if self.file.as_ref().is_none_or(|(number, _)| *number != part.segment) {
                    if let Some((_, file)) = self.file.take() {
                        file.sync_all()?;
                    }
                    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                    self.file = Some((part.segment, file));
                }
                let Some((_, file)) = &mut self.file else { return Ok(()) };
                file.seek(SeekFrom::Start(part.at))?;
                file.write_all(&part.chunk.bytes()[part.part.clone()])
            };
            write().map_err(|error| told(&path, &error))?;
            self.log.wrote(part.end);
        }
        Ok(())
    }

    /// Finishes the log: all of it is durable, which its last record states.
    fn finish(&mut self, now: Tick) -> Result<(), String> {
        let end = self.log.end();
        if end > Position(0) {
            let header =
                Header { kind: Kind::Mark, session: 0, seq: 0, epoch: 0, ts_ms: now.wall_ms, sender: 0, id: 0, content: 0 };
            let mut body = Vec::new();
            Mark { synced_to: end.0 }.encode(&mut body);
            self.log.append(&header, &[], &[&body]);
        }
        self.write()?;
        self.sync()
    }

    /// Makes the written data durable, and the segments' names.
    pub(in crate::shard) fn sync(&self) -> Result<(), String> {
        let sync = || {
            if let Some((_, file)) = &self.file {
                file.sync_all()?;
            }
            sync_directory(&self.path)
        };
        sync().map_err(|error| told(&self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BYTES;
    use crate::log::made::{Made, header};
    use crate::log::{EpochState, segment_name};
    use std::collections::BTreeMap;

    const KEY: HashKey = HashKey([7; 16]);
    const NOW: Tick = Tick { mono_ns: 0, wall_ms: 1_800_000_000_000 };

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn wanted(shards: usize) -> Wanted {
        Wanted { shards, segment_bytes: 2 * CHUNK_BYTES as u64, reserve_bytes: 0, dedupe_ms: 2 }
    }

    /// A directory of two shards with some sessions, one of which was forgotten and made again.
    fn make(name: &str) -> Folder {
        let folder = Folder(std::env::temp_dir().join(format!("ringway-resize-{name}-{}", std::process::id())));
        let _ = std::fs::remove_dir_all(&folder.0);
        let directory = Directory::open(&folder.0, 2, KEY.0).unwrap();
        let mut logs: Vec<Made> = (0..2).map(|shard| Made::new(shard, 1, CHUNK_BYTES, 5)).collect();
        for number in 0..6 {
            let id = format!("s-{number}");
            let session = KEY.hash64(&[b"session", id.as_bytes()]);
            let log = &mut logs[KEY.home_shard(&id, 2)];
            let epochs = vec![EpochState { name: 70 + number, last_seq: None }];
            let state = SessionState { session_id: &id, head: 0, oldest: 1, epochs };
            log.session(session, &state);
            log.message(session, 1, "first");
            log.mark();
            if number == 3 {
                log.put(&header(Kind::SessionGone, session, 0), &[], &[]);
                log.session(session, &state);
            }
            for seq in 1..=2 + number {
                // Some messages of 300 KB, so that there are chunks and segments.
                log.message(session, seq + u64::from(number != 3), &"x".repeat(if seq % 2 == 0 { 300_000 } else { 9 }));
            }
            log.put(&header(Kind::MemberGone, session, 2), &[], &[]);
        }
        for log in logs {
            let path = directory.make_shard(usize::from(log.shard)).unwrap();
            for (number, bytes) in &log.files {
                std::fs::write(path.join(segment_name(*number)), bytes).unwrap();
            }
            leave_clean(&path, 0).unwrap();
        }
        folder
    }

    type Records = BTreeMap<u64, Vec<(Header, Vec<u8>, Vec<u8>)>>;

    /// The records of each session in a directory, each at its home.
    fn contents(directory: &Directory) -> Records {
        let mut known = Known::new(KEY, 2);
        let mut olds = open_old(directory).unwrap();
        for old in &mut olds {
            assert!(read(old, |at, record| known.note(at, record, &KEY, directory.shards)).unwrap());
        }
        let mut records = Records::new();
        for (shard, old) in olds.iter_mut().enumerate() {
            let each = |at: Position, record: &Record<'_>| {
                if let Some(home) = known.home(at, record) {
                    assert_eq!(home, shard);
                    let of_session = records.entry(record.header.session).or_default();
                    of_session.push((record.header, record.addresses.to_vec(), record.body.to_vec()));
                }
            };
            read(old, each).unwrap();
        }
        records
    }

    fn clean(directory: &Directory) -> Vec<bool> {
        (0..directory.shards).map(|shard| is_clean(&directory.shard(shard))).collect()
    }

    #[test]
    fn every_record_comes_along_to_any_number_of_shards() {
        let folder = make("all");
        let mut directory = Directory::open(&folder.0, 9, [0; 16]).unwrap();
        let before = contents(&directory);
        assert_eq!(before.values().map(Vec::len).sum::<usize>(), 44);
        for shards in [3, 1, 4, 1] {
            resize(&mut directory, &wanted(shards), NOW).unwrap();
            assert_eq!((directory.shards, clean(&directory)), (shards, vec![true; shards]));
            assert_eq!(contents(&directory), before);
        }
        assert_eq!(directory.generation, 5);
        let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "format, lock and one generation: {left:?}");
        resize(&mut directory, &wanted(1), NOW).unwrap();
        assert_eq!(directory.generation, 5, "nothing to be done");
        let larger = Wanted { segment_bytes: 8 * CHUNK_BYTES as u64, ..wanted(1) };
        resize(&mut directory, &larger, NOW).unwrap();
        assert_eq!((directory.generation, contents(&directory)), (6, before));
    }

    #[test]
    fn a_change_that_ends_anywhere_leaves_one_generation_whole() {
        let (mut interrupted, mut in_force) = (0, 0);
        for stop_at in 0.. {
            let folder = make("stops");
            let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
            let before = contents(&directory);
            let (mut steps, mut last) = (0, None);
            let done = resize_by(&mut directory, &wanted(3), NOW, &mut |step| {
                last = Some(step);
                steps += 1;
                if steps > stop_at { Err("stopped".to_owned()) } else { Ok(()) }
            });
            drop(directory);
            let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
            assert_eq!(contents(&directory), before, "stopped at {last:?}");
            let is_new = last == Some(Step::InForce);
            assert_eq!((directory.generation, directory.shards), if is_new { (2, 3) } else { (1, 2) }, "stopped at {last:?}");
            resize(&mut directory, &wanted(3), NOW).unwrap();
            assert_eq!((contents(&directory), clean(&directory)), (before, vec![true; 3]), "stopped at {last:?}");
            assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 3);
            interrupted += u32::from(done.is_err());
            in_force += u32::from(done.is_err() && is_new);
            if done.is_ok() {
                break;
            }
        }
        assert_eq!((interrupted, in_force), (44 + 4, 1));
    }

    #[test]
    fn of_purged_messages_the_ids_come_along_while_they_count() {
        let folder = make("purged");
        let (session, mut log) = (KEY.hash64(&[b"session", b"p"]), Made::new(0, 1, CHUNK_BYTES, 0));
        let epochs = vec![EpochState { name: 70, last_seq: None }];
        log.session(session, &SessionState { session_id: "p", head: 0, oldest: 1, epochs });
        for seq in 1..=4 {
            log.message(session, seq, "purged");
        }
        let end = log.put(&header(Kind::Purge, session, 4), &[], &[]);
        log.message(session, 5, "kept");
        log.purge(session, end);
        for shard in 0..2 {
            std::fs::remove_dir_all(folder.0.join(format!("1/shard-{shard}"))).unwrap();
        }
        let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
        std::fs::write(directory.make_shard(0).unwrap().join(segment_name(0)), &log.files[0].1).unwrap();
        resize(&mut directory, &wanted(1), NOW).unwrap();
        let mut found = Vec::new();
        let each = |_: Position, record: &Record<'_>| {
            let Header { kind, seq, id, .. } = record.header;
            found.push((kind, seq, id, record.purged, record.body.is_empty()));
        };
        // The log reads whole: a message that is gone has its purge behind it.
        assert!(read(&mut open_old(&directory).unwrap()[0], each).unwrap());
        found.retain(|(kind, ..)| matches!(kind, Kind::Message | Kind::Purge));
        let gone = |seq: u64| (Kind::Message, seq, seq, true, true);
        assert_eq!(found, [gone(3), gone(4), (Kind::Purge, 4, 0, false, true), (Kind::Message, 5, 5, false, false)]);
    }

    #[test]
    fn what_was_not_ended_in_good_order_is_not_after_it_either() {
        let folder = make("unclean");
        std::fs::remove_file(folder.0.join("1/shard-1/clean")).unwrap();
        let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
        resize(&mut directory, &wanted(1), NOW).unwrap();
        assert_eq!(clean(&directory), [false]);
    }

    #[test]
    fn where_there_is_no_room_for_both_nothing_changes() {
        let folder = make("room");
        let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
        let error = resize(&mut directory, &Wanted { reserve_bytes: 1 << 60, ..wanted(1) }, NOW).unwrap_err();
        assert!(error.contains("must be written again for 1 shards") && error.contains("server.shards = 2"), "{error}");
        assert_eq!((directory.generation, directory.shards), (1, 2));
    }

    #[test]
    fn damage_stops_it_and_is_told() {
        let folder = make("damage");
        let path = folder.0.join("1/shard-0").join(segment_name(5));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[300] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut directory = Directory::open(&folder.0, 2, [0; 16]).unwrap();
        let error = resize(&mut directory, &wanted(1), NOW).unwrap_err();
        assert!(error.contains("0000000000000005.seg") && error.contains("log repair"), "{error}");
        assert_eq!((directory.generation, std::fs::read_dir(&folder.0).unwrap().count()), (1, 3), "nothing was begun");
    }
}
