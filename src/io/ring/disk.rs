//! The log's files: writes, syncs and reads in the ring; making and deleting on the files thread.
#![allow(unsafe_code)] // the disposition of one signal is not in the safe crates; the SAFETY comment carries the argument

use super::{Completion, Op, Ring, plain, untag};
use crate::io::chunk::Chunk;
use crate::io::segments::{Disk, Segments};
use crate::io::{Event, Shard};
use crate::limits::READ_BACKS_MAX;
use crate::time::Tick;
use io_uring::{opcode, types};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Times one operation is submitted again after EINTR or EAGAIN.
const TRIES_MAX: u8 = 16;
/// Time for which an engine that ends waits for operations under way.
const END_WAIT: Duration = Duration::from_secs(5);

enum Kind {
    /// A write. The chunk is held so that it is neither freed nor used again while the kernel reads it.
    Write {
        chunk: Rc<Chunk>,
        part: Range<usize>,
    },
    Sync,
    /// A read, of which the first `done` bytes of `len` are there.
    Read {
        buffer: Vec<u8>,
        done: usize,
        len: usize,
    },
}

struct Operation {
    segment: u64,
    tag: u64,
    /// Keeps the file open: the index may be made again meanwhile.
    file: Arc<File>,
    /// The file's offset at which to go on.
    at: u64,
    tries: u8,
    kind: Kind,
}

/// The engine's state of its disk.
#[derive(Default)]
pub(super) struct Operations {
    pub(super) segments: Segments,
    /// Operations in the kernel, by the number that their completions bear.
    in_flight: Vec<Option<Operation>>,
    free: Vec<u32>,
    reads: usize,
    reads_waiting: VecDeque<Operation>,
    /// Buffers of finished reads; with those in flight, [`READ_BACKS_MAX`] at most.
    spare: Vec<Vec<u8>>,
}

impl Operations {
    pub(super) fn new(disk: Option<Disk>) -> Self {
        if disk.is_some() {
            ignore_file_size_signal();
        }
        Self { segments: Segments::new(disk), ..Self::default() }
    }

    fn take(&mut self, number: u32) -> Option<Operation> {
        let operation = self.in_flight.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(operation)
    }

    /// Removes the operations whose completions have arrived.
    pub(super) fn settle(&mut self, completions: &mut VecDeque<Completion>) {
        completions.retain(|completion| {
            let (op, index) = untag(completion.user_data);
            op != Some(Op::Disk) || self.take(index.index).is_none()
        });
    }

    #[cfg(test)]
    pub(super) fn spare_buffers(&self) -> usize {
        self.spare.len()
    }

    /// Zeros the buffers that wait for the next read.
    pub(super) fn wipe_spare(&mut self) {
        self.spare.iter_mut().for_each(|buffer| buffer.fill(0));
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len()
    }

    /// Leaks the memory of operations that are still in the kernel. Unlike a receive, which fills its buffer while this thread is
    /// in an enter, an operation on a file is done by a worker of the kernel, which may read a chunk or fill a buffer at any time
    /// until it is over, and nobody is left to be told when. So the memory is never used again. The file can be closed: the
    /// kernel holds its own reference.
    pub(super) fn leak_in_flight(&mut self) {
        for operation in self.in_flight.drain(..).flatten() {
            match operation.kind {
                Kind::Write { chunk, .. } => std::mem::forget(chunk),
                Kind::Read { buffer, .. } => std::mem::forget(buffer),
                Kind::Sync => {}
            }
        }
        self.free.clear();
    }
}

impl Ring {
    pub(super) fn start_write(&mut self, segment: u64, at: u64, chunk: Rc<Chunk>, part: Range<usize>, tag: u64) {
        assert!(part.end <= chunk.len(), "a write of bytes to {} of a chunk that holds {}", part.end, chunk.len());
        match self.disk.segments.enter_write(segment, at, part.len()) {
            Ok(file) => self.submit(Operation { segment, tag, file, at, tries: 0, kind: Kind::Write { chunk, part } }),
            Err(errno) => self.disk.segments.answers.push_back(Event::Written { tag, result: Err(errno) }),
        }
    }

    pub(super) fn start_sync(&mut self, segment: u64, tag: u64) {
        match self.disk.segments.enter_write(segment, 0, 0) {
            Ok(file) => self.submit(Operation { segment, tag, file, at: 0, tries: 0, kind: Kind::Sync }),
            Err(errno) => self.disk.segments.answers.push_back(Event::Synced { tag, result: Err(errno) }),
        }
    }

    pub(super) fn start_read_back(&mut self, segment: u64, of_index: bool, at: u64, len: usize, tag: u64) {
        let file = match self.disk.segments.enter_read(segment, of_index, at, len) {
            Ok(file) => file,
            Err(errno) => return self.disk.segments.answers.push_back(Event::ReadBack { tag, result: Err(errno) }),
        };
        let kind = Kind::Read { buffer: Vec::new(), done: 0, len };
        let operation = Operation { segment, tag, file, at, tries: 0, kind };
        if self.disk.reads < READ_BACKS_MAX {
            self.submit_read(operation);
        } else {
            self.stats.read_backs_waited += 1;
            self.disk.reads_waiting.push_back(operation);
        }
    }

    fn submit_read(&mut self, mut operation: Operation) {
        self.disk.reads += 1;
        if let Kind::Read { buffer, len, .. } = &mut operation.kind {
            *buffer = self.disk.spare.pop().unwrap_or_default();
            if buffer.len() < *len {
                buffer.resize(*len, 0);
            }
        }
        self.submit(operation);
    }

    fn submit(&mut self, operation: Operation) {
        let number = self.disk.free.pop().unwrap_or_else(|| {
            self.disk.in_flight.push(None);
            u32::try_from(self.disk.in_flight.len() - 1).expect("each operation takes far more than a byte of memory")
        });
        self.disk.in_flight[number as usize] = Some(operation);
        self.push_operation(number);
    }

    /// Queues the rest of an operation.
    fn push_operation(&mut self, number: u32) {
        let Some(operation) = &mut self.disk.in_flight[number as usize] else { return };
        let fd = types::Fd(operation.file.as_raw_fd());
        let bytes = |len| u32::try_from(len).expect("chunks and reads are below 4 GiB");
        // The memory and the file named here belong to the operation, which stays in the table until its completion is taken.
        let entry = match &mut operation.kind {
            Kind::Write { chunk, part } => {
                let part = &chunk.bytes()[part.clone()];
                opcode::Write::new(fd, part.as_ptr(), bytes(part.len())).offset(operation.at).build()
            }
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Read { buffer, done, len } => {
                let rest = &mut buffer[*done..*len];
                opcode::Read::new(fd, rest.as_mut_ptr(), bytes(rest.len())).offset(operation.at).build()
            }
        };
        self.push(&entry.user_data(plain(Op::Disk, number)));
    }

    pub(super) fn on_disk<S: Shard>(&mut self, shard: &mut S, number: u32, completion: Completion, now: Tick) {
        let Some(Some(operation)) = self.disk.in_flight.get_mut(number as usize) else { return };
        let taken = usize::try_from(completion.result).map_err(|_| -completion.result);
        let again = match (&mut operation.kind, taken) {
            (_, Err(libc::EINTR | libc::EAGAIN)) if operation.tries < TRIES_MAX => {
                operation.tries += 1;
                true
            }
            (Kind::Write { part, .. }, Ok(bytes)) => {
                part.start += bytes;
                let short = bytes > 0 && part.start < part.end;
                self.stats.short_writes += u64::from(short);
                short
            }
            (Kind::Read { done, len, .. }, Ok(bytes)) => {
                *done += bytes;
                bytes > 0 && *done < *len
            }
            _ => false,
        };
        if again {
            operation.at += taken.unwrap_or(0) as u64;
            return self.push_operation(number);
        }
        let Some(Operation { segment, tag, file, kind, .. }) = self.disk.take(number) else { return };
        // A deleted file is closed for good on the files thread.
        drop(file);
        self.disk.segments.leave(segment);
        let result = taken.map(drop);
        match kind {
            Kind::Write { chunk, part } => {
                // No bytes and no error: files do not do that, and it must not be retried for ever.
                let result = if result.is_ok() && part.start < part.end { Err(libc::EIO) } else { result };
                drop(chunk);
                shard.event(self, Event::Written { tag, result }, now);
            }
            Kind::Sync => shard.event(self, Event::Synced { tag, result }, now),
            Kind::Read { buffer, done, .. } => {
                shard.event(self, Event::ReadBack { tag, result: result.map(|()| &buffer[..done]) }, now);
                self.disk.spare.push(buffer);
                self.disk.reads -= 1;
                if let Some(operation) = self.disk.reads_waiting.pop_front() {
                    self.submit_read(operation);
                }
            }
        }
    }

    pub(super) fn tell_disk_answers<S: Shard>(&mut self, shard: &mut S, now: Tick) {
        for _ in 0..self.disk.segments.answers.len() {
            let Some(answer) = self.disk.segments.answers.pop_front() else { break };
            shard.event(self, answer, now);
        }
    }

    /// Waits until no operation on a file is in the kernel, for [`END_WAIT`] at most.
    pub(super) fn finish_disk(&mut self) {
        let until_ns = self.now().mono_ns + u64::try_from(END_WAIT.as_nanos()).unwrap_or(u64::MAX);
        loop {
            self.reap();
            self.disk.settle(&mut self.backlog);
            let now_ns = self.now().mono_ns;
            if self.disk.is_idle() || now_ns >= until_ns {
                return;
            }
            let timeout = types::Timespec::from(Duration::from_nanos(until_ns - now_ns));
            let waited = self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout));
            let passing = |errno| matches!(errno, libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN);
            if waited.is_err_and(|error| !error.raw_os_error().is_some_and(passing)) {
                return;
            }
        }
    }
}

/// Ignores SIGXFSZ. A write that would grow a file beyond RLIMIT_FSIZE is answered with EFBIG, and with this signal, which by
/// default ends the process.
pub(in crate::io) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours, and nothing here relies on this one.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
