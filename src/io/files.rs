//! The thread that makes and deletes the log's files, for all shards: each of these calls may take as long as the disk likes.
//!
//! A shard asks through its [`FilesHandle`]. The answer waits there, and the thread writes to the shard's eventfd.

use super::watch::{Known, Watch};
use super::{BELOW_RESERVE, PurgeStep};
use crate::buffers::wipe;
use crate::limits::{CHUNK_BYTES, SEGMENT_REQUESTS_MAX};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstatvfs, memfd_create};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Zeros written at a time where the file system can't preallocate.
const ZEROS_BYTES: usize = 64 * 1024;
/// Interval between checks that the files still have their names.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum What {
    /// Make the file, of this many bytes, if more than the reserve stays free.
    Prepare(u64),
    /// Make the index of the file's records.
    Index(Arc<File>),
    /// Delete the file and its index. Its open descriptors are closed on this thread, since the last close of a deleted file
    /// frees its blocks.
    Delete(Vec<Arc<File>>),
    /// Report if somebody else deletes these files; not answered.
    Watch(Vec<(u64, Known)>),
    /// A step of a session's purge, on this file if the step is about a segment.
    Purge { session: u64, step: PurgeStep, file: Option<Arc<File>> },
}

/// Functions of the log that the thread calls on a segment's content, which the engine does not know.
#[derive(Clone, Copy, Debug)]
pub struct OfLog {
    pub indexer: Indexer,
    pub purger: Purger,
}

/// Removes a session's messages from a part of a segment, of which only the first so many bytes are considered; the part may be
/// the segment's first. Reports which bytes have changed, and whether they belonged to a message.
pub type Purger = fn(&mut [u8], usize, u64, bool, &mut dyn FnMut(Range<usize>, bool)) -> io::Result<()>;

/// A segment's index, made from the segment's bytes.
#[derive(Debug)]
pub struct Indexed {
    /// The index file.
    pub bytes: Vec<u8>,
    /// Length of the index directory: the prefix of `bytes` that is sent to the shard.
    pub directory_bytes: usize,
}

/// Makes an index of a segment's bytes.
pub type Indexer = fn(&mut dyn Read) -> io::Result<Indexed>;

#[derive(Debug)]
struct Request {
    shard: usize,
    number: u64,
    path: PathBuf,
    what: What,
}

/// The result of a request; errors are errnos.
#[derive(Debug)]
pub(super) enum Answer {
    Ready {
        number: u64,
        result: Result<File, i32>,
    },
    Gone {
        number: u64,
        result: Result<(), i32>,
    },
    /// The index, open, and its beginning.
    Indexed {
        number: u64,
        result: Result<(File, Vec<u8>), i32>,
        unsaved: Option<i32>,
    },
    /// Somebody else has deleted a file. Sent once, without a request.
    Lost {
        number: u64,
    },
    Purged {
        step: PurgeStep,
        result: Result<u64, i32>,
    },
}

/// A shard's handle on the thread. [`SEGMENT_REQUESTS_MAX`] requests are under way at a time; others wait here, one or two a
/// segment.
#[derive(Debug)]
pub struct FilesHandle {
    shard: usize,
    requests: SyncSender<Request>,
    answers: Receiver<Answer>,
    asked: usize,
    waiting: VecDeque<Request>,
}

impl FilesHandle {
    pub(super) fn prepare(&mut self, number: u64, path: PathBuf, segment_bytes: u64) {
        self.ask(Request { shard: self.shard, number, path, what: What::Prepare(segment_bytes) });
    }

    pub(super) fn index(&mut self, number: u64, path: PathBuf, file: Arc<File>) {
        self.ask(Request { shard: self.shard, number, path, what: What::Index(file) });
    }

    pub(super) fn delete(&mut self, number: u64, path: PathBuf, open: Vec<Arc<File>>) {
        self.ask(Request { shard: self.shard, number, path, what: What::Delete(open) });
    }

    /// Adds existing files to those whose deletion is reported.
    pub(super) fn watch(&mut self, files: Vec<(u64, Known)>) {
        // There is room for it, see `start`.
        let _ = self.requests.try_send(Request { shard: self.shard, number: 0, path: PathBuf::new(), what: What::Watch(files) });
    }

    /// `directory` is the shard's.
    pub(super) fn purge(&mut self, session: u64, step: PurgeStep, directory: PathBuf, file: Option<Arc<File>>) {
        self.ask(Request { shard: self.shard, number: 0, path: directory, what: What::Purge { session, step, file } });
    }

    fn ask(&mut self, request: Request) {
        if self.asked < SEGMENT_REQUESTS_MAX {
            self.asked += 1;
            // There is room for as many requests as all shards may make. The thread ends after its handles, or takes the process
            // with it.
            let _ = self.requests.try_send(request);
        } else {
            self.waiting.push_back(request);
        }
    }

    /// The next answer; `None` if there is none yet.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        if let Answer::Lost { .. } = answer {
            return Some(answer);
        }
        self.asked -= 1;
        if let Some(request) = self.waiting.pop_front() {
            self.ask(request);
        }
        Some(answer)
    }
}

/// Starts the thread for shards with these eventfds, in their order. It ends when all handles are gone and all requests are done.
/// No file is made that would leave less than `reserve_bytes` of its file system free.
///
/// # Errors
/// The thread could not be made.
pub fn start(knocks: Vec<Arc<OwnedFd>>, reserve_bytes: u64, log: OfLog) -> io::Result<(JoinHandle<()>, Vec<FilesHandle>)> {
    // Two extra places for each shard: its files at the start, and the report of a loss.
    let (requests, requested) = sync_channel::<Request>(knocks.len() * (SEGMENT_REQUESTS_MAX + 1));
    let (mut doors, mut handles) = (Vec::new(), Vec::new());
    for (shard, knock) in knocks.into_iter().enumerate() {
        let (answer, answers) = sync_channel(SEGMENT_REQUESTS_MAX + 1);
        doors.push((answer, knock));
        handles.push(FilesHandle { shard, requests: requests.clone(), answers, asked: 0, waiting: VecDeque::new() });
    }
    let run = move || {
        let mut watch = Watch::new(doors.len());
        let tell = |shard: usize, what: Answer| {
            let (answer, knock) = &doors[shard];
            // Never full: a shard asks for no more than it has places. A shard that has ended wants no answer.
            if answer.send(what).is_ok() {
                // Full (2^64 - 2 unread knocks) is as good as knocked.
                let _ = rustix::io::write(&**knock, &1_u64.to_ne_bytes());
            }
        };
        loop {
            match requested.recv_timeout(LOOK_EVERY) {
                Ok(request) => {
                    let shard = request.shard;
                    if let Some(answer) = handle(request, reserve_bytes, log, &mut watch) {
                        tell(shard, answer);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for (shard, number) in watch.look() {
                tell(shard, Answer::Lost { number });
            }
        }
    };
    let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || {
        // Shards would wait for their answers for ever: crash, restart, recover.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            std::process::abort();
        }
    })?;
    Ok((thread, handles))
}

/// A segment's file in its shard's directory.
#[must_use]
pub fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.seg"))
}

/// A segment's index file, beside the segment.
#[must_use]
pub fn index_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.idx"))
}

/// Writes a segment's index beside its place `path`; [`put_index`] moves it there, [`drop_index`] removes it.
///
/// # Errors
/// The file system's error; no file is left then.
pub fn stage_index(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(staged(path))?;
        file.write_all(bytes)?;
        Ok(file)
    };
    write().inspect_err(|_| drop_index(path))
}

/// Moves a staged index to its place, whole. Not synced: a start compares it with its segment, and makes it again if a power cut
/// damaged it.
///
/// # Errors
/// The file system's error; an earlier index stays.
pub fn put_index(path: &Path) -> io::Result<()> {
    std::fs::rename(staged(path), path).inspect_err(|_| drop_index(path))
}

/// Removes a staged index. If this fails, the next start removes it.
pub fn drop_index(path: &Path) {
    let _ = std::fs::remove_file(staged(path));
}

pub(super) fn staged(path: &Path) -> PathBuf {
    path.with_extension("idx.new")
}

/// Puts a segment's index in its place, whole or not at all.
fn write_index(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let file = stage_index(path, bytes)?;
    put_index(path).map(|()| file)
}

/// Reads a file from its beginning, independent of the position of other readers.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// An index in memory, for one that could not be written to its place. Reads of the log go on, and the next start makes the index
/// again.
///
/// # Errors
/// Not enough memory.
pub fn index_in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("index", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

fn index(number: u64, path: &Path, file: &File, reserve_bytes: u64, indexer: Indexer) -> Answer {
    let mut unsaved = None;
    let made = indexer(&mut FromStart { file, at: 0 }).and_then(|Indexed { mut bytes, directory_bytes }| {
        let room = keeps_free(path, bytes.len() as u64, reserve_bytes);
        let written = room
            .and_then(|()| write_index(&path.with_extension("idx"), &bytes).map_err(|error| errno(&error)))
            .or_else(|errno| {
                unsaved = Some(errno);
                index_in_memory(&bytes)
            })?;
        bytes.truncate(directory_bytes);
        bytes.shrink_to_fit();
        Ok((written, bytes))
    });
    Answer::Indexed { number, result: made.map_err(|error| errno(&error)), unsaved }
}

fn handle(request: Request, reserve_bytes: u64, log: OfLog, watch: &mut Watch) -> Option<Answer> {
    let Request { shard, number, path, what } = request;
    Some(match what {
        What::Prepare(bytes) => {
            let room = keeps_free(&path, bytes, reserve_bytes);
            let result = room.and_then(|()| prepare(&path, bytes).map_err(|error| errno(&error)));
            if let Ok(file) = &result {
                watch.add(shard, number, &path, file);
            }
            Answer::Ready { number, result }
        }
        What::Index(file) => index(number, &path, &file, reserve_bytes, log.indexer),
        What::Delete(open) => {
            watch.forget(shard, number);
            Answer::Gone { number, result: delete(&path, open).map_err(|error| errno(&error)) }
        }
        What::Watch(files) => {
            watch.add_all(shard, files);
            return None;
        }
        What::Purge { session, step, file } => {
            let done = match (step, file) {
                (PurgeStep::Begin, _) => begin_purge(&path, session).map(|()| 0),
                (PurgeStep::End, _) => end_purge(&path, session).map(|()| 0),
                (PurgeStep::Segment { number, end }, Some(file)) => {
                    purge_file(&file, session, end, log.purger).inspect(|messages| {
                        // The index names removed messages. Readers that have it open go on; the next start makes it again.
                        if *messages > 0 {
                            let _ = std::fs::remove_file(index_path(&path, number));
                        }
                    })
                }
                (PurgeStep::Segment { .. }, None) => Err(Errno::NOENT.into()),
            };
            Answer::Purged { step, result: done.map_err(|error| errno(&error)) }
        }
    })
}

/// A file that exists in a shard's directory while the session is purged.
pub(super) fn purge_path(directory: &Path, session: u64) -> PathBuf {
    directory.join(format!("{session:016x}.purge"))
}

/// Makes the next start finish the purge of a session if this process does not.
///
/// # Errors
/// The file system's error.
pub fn begin_purge(directory: &Path, session: u64) -> io::Result<()> {
    let path = purge_path(directory, session);
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    sync_directory_of(&path)
}

/// Ends the purge of a session.
///
/// # Errors
/// The file system's error.
pub fn end_purge(directory: &Path, session: u64) -> io::Result<()> {
    let path = purge_path(directory, session);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_directory_of(&path)),
    }
}

/// The sessions of a shard's directory whose purge has begun and not ended.
///
/// # Errors
/// The file system's error.
pub fn purges(directory: &Path) -> io::Result<Vec<u64>> {
    let mut sessions = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sessions),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".purge")).filter(|digits| digits.len() == 16);
        let session = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        sessions.extend(session.filter(|session| purge_path(directory, *session).file_name() == Some(&name)));
    }
    Ok(sessions)
}

/// Removes a session's messages from the first `end` bytes of a segment's file, durably. Returns how many there were.
///
/// # Errors
/// The file system's error; without an errno if the file does not read as a segment.
pub fn purge_file(
    file: &File,
    session: u64,
    end: u64,
    purger: impl Fn(&mut [u8], usize, u64, bool, &mut dyn FnMut(Range<usize>, bool)) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut buffer, mut changed, mut messages) = (vec![0; CHUNK_BYTES], Vec::new(), 0);
    let (mut at, mut records) = (0, 0_u64);
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut buffer[filled..wanted], at + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let purged =
            purger(&mut buffer[..filled], filled, session, at == 0, &mut |range, is_message| changed.push((range, is_message)));
        for (range, is_message) in changed.drain(..) {
            (records, messages) = (records + 1, messages + u64::from(is_message));
            // Only these bytes: others of the part may be written meanwhile.
            file.write_all_at(&buffer[range.clone()], at + range.start as u64)?;
        }
        purged?;
        if filled < CHUNK_BYTES {
            break;
        }
        at += CHUNK_BYTES as u64;
    }
    wipe(&mut buffer);
    if records > 0 {
        file.sync_data()?;
    }
    Ok(messages)
}

fn errno(error: &io::Error) -> i32 {
    // There is no errno if a write takes nothing, or a segment does not read.
    error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
}

/// Returns `true` if `reserve_bytes` of the file system stay free when a file of `bytes` is made in it.
fn keeps_free(path: &Path, bytes: u64, reserve_bytes: u64) -> Result<(), i32> {
    if reserve_bytes == 0 {
        return Ok(());
    }
    let free = free_bytes(path.parent().unwrap_or_else(|| Path::new("."))).map_err(|error| errno(&error))?;
    if free >= bytes.saturating_add(reserve_bytes) { Ok(()) } else { Err(BELOW_RESERVE) }
}

/// Bytes that this process may still use on a directory's file system.
///
/// # Errors
/// The file system's error.
pub fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = fstatvfs(File::open(directory)?)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes a file of `bytes` zeros, and its name, durable. An existing file of this name is left alone; a file that could not be
/// completed is removed.
fn prepare(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let made = fill(&file, bytes, |file| fallocate(file, FallocateFlags::empty(), 0, bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory_of(path));
    if let Err(error) = made {
        drop(file);
        // If even this fails, the first error says why.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// Allocates a file's blocks, so that a full disk shows now and not in a write.
fn fill(file: &File, bytes: u64, preallocate: impl Fn(&File) -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match preallocate(file) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeros(file, bytes),
            result => return result.map_err(io::Error::from),
        }
    }
}

fn write_zeros(mut file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut left = bytes;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all(&zeros[..piece])?;
        left -= piece as u64;
    }
    Ok(())
}

fn delete(path: &Path, open: Vec<Arc<File>>) -> io::Result<()> {
    std::fs::remove_file(path)?;
    // Often there is no index; one that stays behind is removed by the next start.
    let _ = std::fs::remove_file(path.with_extension("idx"));
    drop(open);
    sync_directory_of(path)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// For tests: an index is a file's length, as text, and the sum of its bytes; a purge removes capital letters, each of which
/// counts as a message.
#[cfg(test)]
pub(super) const fn lengths() -> OfLog {
    OfLog { indexer: length_and_sum, purger: purge_capitals }
}

#[cfg(test)]
#[expect(clippy::unnecessary_wraps, reason = "a purger")]
fn purge_capitals(
    bytes: &mut [u8],
    end: usize,
    _session: u64,
    _is_first: bool,
    each: &mut dyn FnMut(Range<usize>, bool),
) -> io::Result<()> {
    for at in (0..end).filter(|at| bytes[*at].is_ascii_uppercase()).collect::<Vec<_>>() {
        bytes[at] = b'-';
        each(at..at + 1, true);
    }
    Ok(())
}

#[cfg(test)]
fn length_and_sum(file: &mut dyn Read) -> io::Result<Indexed> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let length = bytes.len().to_string();
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    Ok(Indexed { bytes: format!("{length}{sum}").into(), directory_bytes: length.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("ringway-files-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn where_nothing_can_be_preallocated_zeros_are_written() {
        let directory = directory("zeros");
        let path = segment_path(&directory, 0x1f);
        assert!(path.ends_with("000000000000001f.seg"));
        let bytes = 3 * ZEROS_BYTES as u64 + 5;
        let mut file = File::create_new(&path).unwrap();
        let tries = std::cell::Cell::new(0);
        let refuse = |_: &File| {
            tries.set(tries.get() + 1);
            Err(if tries.get() == 1 { Errno::INTR } else { Errno::OPNOTSUPP })
        };
        fill(&file, bytes, refuse).unwrap();
        assert_eq!(tries.get(), 2, "interrupted, and tried again");
        file = File::open(&path).unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read.len() as u64 == bytes && read.iter().all(|byte| *byte == 0));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_there_already_is_left_alone() {
        let directory = directory("there");
        let path = segment_path(&directory, 1);
        std::fs::write(&path, b"records").unwrap();
        assert_eq!(prepare(&path, 4096).unwrap_err().raw_os_error(), Some(Errno::EXIST.raw_os_error()));
        assert_eq!(std::fs::read(&path).unwrap(), b"records");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_must_stay_free_is_left_free() {
        let directory = directory("reserve");
        let prepare = |reserve_bytes| {
            let path = segment_path(&directory, 1);
            let request = Request { shard: 0, number: 1, path: path.clone(), what: What::Prepare(4096) };
            let Some(Answer::Ready { result, .. }) = handle(request, reserve_bytes, lengths(), &mut Watch::new(1)) else {
                panic!("asked for a file")
            };
            (result.map(drop), path.exists())
        };
        assert_eq!(prepare(1 << 60), (Err(BELOW_RESERVE), false));
        assert_eq!(prepare(1), (Ok(()), true));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn an_index_that_finds_no_room_is_held_in_memory() {
        let directory = directory("unsaved");
        let path = segment_path(&directory, 1);
        let file = Arc::new(prepare(&path, 4096).unwrap());
        let index = |reserve_bytes| {
            let request = Request { shard: 0, number: 1, path: path.clone(), what: What::Index(Arc::clone(&file)) };
            let Some(Answer::Indexed { result: Ok((file, head)), unsaved, .. }) =
                handle(request, reserve_bytes, lengths(), &mut Watch::new(1))
            else {
                panic!("asked for an index");
            };
            let mut bytes = [0; 5];
            file.read_exact_at(&mut bytes, 0).unwrap();
            (head, bytes, unsaved, index_path(&directory, 1).exists())
        };
        assert_eq!(index(1 << 60), (b"4096".to_vec(), *b"40960", Some(BELOW_RESERVE), false));
        assert_eq!(index(1), (b"4096".to_vec(), *b"40960", None, true));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_could_not_be_made_whole_is_removed() {
        let directory = directory("whole");
        let path = segment_path(&directory, 1);
        // Longer than any file may be.
        let error = prepare(&path, 1 << 62).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error()));
        assert!(!path.exists());
        let gone = prepare(&directory.join("nowhere").join("1.seg"), 4096).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(Errno::NOENT.raw_os_error()));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
