//! The log's files: threads of the shard's own write, sync and read them, one call at a time each, since any call may block for
//! as long as the disk likes.
//!
//! A chunk belongs to the shard's thread. Bytes to be written are copied into buffers, which come back with the answers.

use crate::buffers::wipe;
use crate::io::ring::ignore_file_size_signal;
use crate::io::segments::{Disk, Segments};
use crate::io::{Event, RingStats};
use crate::limits::{DISK_REQUESTS_MAX, READ_BACKS_MAX};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Times one call is made again after EINTR or EAGAIN.
const TRIES_MAX: u8 = 16;
/// Time for which an engine that ends waits for operations under way.
const END_WAIT: Duration = Duration::from_secs(5);
/// Write buffers kept for reuse. A shard has one write under way, except in turns that go from chunk to chunk.
const WRITE_BUFFERS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Sync,
    Read,
}

const KINDS: [(Kind, &str); 3] = [(Kind::Write, "write"), (Kind::Sync, "sync"), (Kind::Read, "read")];

/// An operation for a thread, and afterwards its result.
#[derive(Debug)]
struct Operation {
    kind: Kind,
    segment: u64,
    tag: u64,
    at: u64,
    file: Arc<File>,
    /// The bytes to write, or room for those read. A read that waits has no buffer yet.
    buffer: Vec<u8>,
    len: usize,
    /// Bytes written or read so far.
    done: usize,
    short_writes: u64,
    result: Result<(), i32>,
}

/// An answer to the shard.
#[derive(Debug)]
pub(super) enum Answer {
    Known(Event<'static>),
    Written { tag: u64, result: Result<(), i32> },
    Synced { tag: u64, result: Result<(), i32> },
    Read { tag: u64, result: Result<(), i32>, buffer: Vec<u8>, len: usize },
}

impl Answer {
    pub(super) fn event(&mut self) -> Event<'_> {
        match self {
            Self::Known(event) => std::mem::replace(event, Event::Bell),
            Self::Written { tag, result } => Event::Written { tag: *tag, result: *result },
            Self::Synced { tag, result } => Event::Synced { tag: *tag, result: *result },
            Self::Read { tag, result, buffer, len } => Event::ReadBack { tag: *tag, result: result.map(|()| &buffer[..*len]) },
        }
    }
}

/// A thread, and the operations that wait for it.
#[derive(Debug)]
struct Lane {
    requests: SyncSender<Operation>,
    asked: usize,
    asked_max: usize,
    waiting: VecDeque<Operation>,
}

/// The threads, and their operations.
#[derive(Debug, Default)]
pub(super) struct Threads {
    pub(super) segments: Segments,
    /// Writes, syncs, reads; empty without a disk.
    lanes: Vec<Lane>,
    done: Option<Receiver<Operation>>,
    answers: VecDeque<Answer>,
    write_buffers: Vec<Vec<u8>>,
    read_buffers: Vec<Vec<u8>>,
}

impl Threads {
    /// Starts the threads if there is a disk. They end when this value is dropped and all operations are done.
    pub(super) fn start(shard: usize, disk: Option<Disk>, bell: &Arc<OwnedFd>) -> io::Result<Self> {
        if disk.is_none() {
            return Ok(Self::default());
        }
        ignore_file_size_signal();
        // A place for each operation that the threads may have.
        let (answer, done) = sync_channel(2 * DISK_REQUESTS_MAX + READ_BACKS_MAX);
        let mut lanes = Vec::new();
        for (kind, name) in KINDS {
            let asked_max = if kind == Kind::Read { READ_BACKS_MAX } else { DISK_REQUESTS_MAX };
            let (requests, requested) = sync_channel(asked_max);
            let (answer, bell) = (answer.clone(), Arc::clone(bell));
            std::thread::Builder::new().name(format!("{name}-{shard}")).spawn(move || {
                // The shard would wait for its answers for ever: crash, restart, recover.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&requested, &answer, &bell))).is_err() {
                    std::process::abort();
                }
            })?;
            lanes.push(Lane { requests, asked: 0, asked_max, waiting: VecDeque::new() });
        }
        Ok(Self { segments: Segments::new(disk), lanes, done: Some(done), ..Self::default() })
    }

    pub(super) fn write(&mut self, segment: u64, at: u64, bytes: &[u8], tag: u64) {
        match self.segments.enter_write(segment, at, bytes.len()) {
            Ok(file) => {
                let mut buffer = self.write_buffers.pop().unwrap_or_default();
                buffer.clear();
                buffer.extend_from_slice(bytes);
                self.ask(Kind::Write, (segment, file), at, buffer, bytes.len(), tag);
            }
            Err(errno) => self.answers.push_back(Answer::Written { tag, result: Err(errno) }),
        }
    }

    pub(super) fn sync(&mut self, segment: u64, tag: u64) {
        match self.segments.enter_write(segment, 0, 0) {
            Ok(file) => {
                self.ask(Kind::Sync, (segment, file), 0, Vec::new(), 0, tag);
            }
            Err(errno) => self.answers.push_back(Answer::Synced { tag, result: Err(errno) }),
        }
    }

    /// Reads from a segment, or from its index.
    pub(super) fn read_back(&mut self, (segment, of_index): (u64, bool), at: u64, len: usize, tag: u64, stats: &mut RingStats) {
        match self.segments.enter_read(segment, of_index, at, len) {
            Ok(file) => {
                let waits = self.ask(Kind::Read, (segment, file), at, Vec::new(), len, tag);
                stats.read_backs_waited += u64::from(waits);
            }
            Err(errno) => {
                self.answers.push_back(Answer::Read { tag, result: Err(errno), buffer: Vec::new(), len: 0 });
            }
        }
    }

    /// Gives a counted operation to its thread. Returns `true` if it has to wait.
    fn ask(&mut self, kind: Kind, (segment, file): (u64, Arc<File>), at: u64, buffer: Vec<u8>, len: usize, tag: u64) -> bool {
        let operation = Operation { kind, segment, tag, at, file, buffer, len, done: 0, short_writes: 0, result: Ok(()) };
        let lane = &mut self.lanes[kind as usize];
        let waits = lane.asked >= lane.asked_max;
        if waits {
            lane.waiting.push_back(operation);
        } else {
            self.hand_over(operation);
        }
        waits
    }

    fn hand_over(&mut self, mut operation: Operation) {
        if operation.kind == Kind::Read {
            operation.buffer = self.read_buffers.pop().unwrap_or_default();
            operation.buffer.resize(operation.len, 0);
        }
        let lane = &mut self.lanes[operation.kind as usize];
        lane.asked += 1;
        // There is room for as many as may be asked. The thread ends after this, or takes the process with it.
        let _ = lane.requests.try_send(operation);
    }

    /// Takes the finished operations.
    pub(super) fn take_answers(&mut self, stats: &mut RingStats) {
        while let Some(operation) = self.done.as_ref().and_then(|done| done.try_recv().ok()) {
            self.settle(operation, stats);
        }
        self.segments.take_files_answers();
    }

    fn settle(&mut self, operation: Operation, stats: &mut RingStats) {
        let Operation { kind, segment, tag, file, buffer, done, short_writes, result, .. } = operation;
        drop(file);
        let lane = &mut self.lanes[kind as usize];
        lane.asked -= 1;
        if let Some(next) = lane.waiting.pop_front() {
            self.hand_over(next);
        }
        self.segments.leave(segment);
        stats.short_writes += short_writes;
        self.answers.push_back(match kind {
            Kind::Write => {
                if self.write_buffers.len() < WRITE_BUFFERS_MAX {
                    self.write_buffers.push(buffer);
                }
                Answer::Written { tag, result }
            }
            Kind::Sync => Answer::Synced { tag, result },
            Kind::Read => Answer::Read { tag, result, buffer, len: done },
        });
    }

    /// Returns `true` if there is an answer for the shard.
    pub(super) fn owes(&self) -> bool {
        self.answers_waiting() > 0
    }

    pub(super) fn answers_waiting(&self) -> usize {
        self.answers.len() + self.segments.answers.len()
    }

    /// The next answer. Its buffer comes back with [`Threads::put_back`].
    pub(super) fn answer(&mut self) -> Option<Answer> {
        self.answers.pop_front().or_else(|| self.segments.answers.pop_front().map(Answer::Known))
    }

    pub(super) fn put_back(&mut self, answer: Answer) {
        if let Answer::Read { buffer, .. } = answer
            && self.read_buffers.len() < READ_BACKS_MAX
        {
            self.read_buffers.push(buffer);
        }
    }

    #[cfg(test)]
    pub(super) fn spare_buffers(&self) -> usize {
        self.read_buffers.len()
    }

    /// Zeros the buffers that wait for the next read or write.
    pub(super) fn wipe_spare(&mut self) {
        self.read_buffers.iter_mut().chain(&mut self.write_buffers).for_each(wipe);
    }

    /// Waits until nothing is under way, for [`END_WAIT`] at most.
    #[expect(clippy::disallowed_methods, reason = "the end of an engine is not the shard's time")]
    pub(super) fn finish(&mut self, stats: &mut RingStats) {
        let until = Instant::now() + END_WAIT;
        while self.lanes.iter().any(|lane| lane.asked > 0) {
            let left = until.saturating_duration_since(Instant::now());
            let Some(Ok(operation)) = self.done.as_ref().map(|done| done.recv_timeout(left)) else { return };
            self.settle(operation, stats);
        }
    }
}

/// The loop of a thread.
fn work(requested: &Receiver<Operation>, answer: &SyncSender<Operation>, bell: &OwnedFd) {
    for mut operation in requested {
        operation.result = operation.run();
        // A shard that has ended wants no answer.
        if answer.send(operation).is_ok() {
            // Full (2^64 - 2 unread rings) is as good as rung.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }
}

impl Operation {
    fn run(&mut self) -> Result<(), i32> {
        let mut tries = 0;
        loop {
            let done = match self.kind {
                Kind::Sync => self.file.sync_data().map(|()| 0),
                Kind::Write => self.file.write_at(&self.buffer[self.done..], self.at),
                Kind::Read => self.file.read_at(&mut self.buffer[self.done..], self.at),
            };
            match done {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) && tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EIO)),
                Ok(0) => {
                    // No bytes and no error: files do not do that, and it must not be retried for ever.
                    return if self.kind == Kind::Write && self.done < self.len { Err(libc::EIO) } else { Ok(()) };
                }
                Ok(bytes) => {
                    self.done += bytes;
                    self.at += bytes as u64;
                    if self.done == self.len {
                        return Ok(());
                    }
                    self.short_writes += u64::from(self.kind == Kind::Write);
                }
            }
        }
    }
}
