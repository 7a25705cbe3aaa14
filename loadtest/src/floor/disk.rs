//! The disk alone: a file made as the gateway makes a segment of its log, to which batches as large as the gateway's are
//! appended, each with one write, and made durable (fdatasync) before the next. Without a server, a socket or a queue.
#![allow(unsafe_code)]

use crate::clock::now_ns;
use crate::engine::stats::Series;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The gateway's default `log.segment_bytes`.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Zeros written at a time where the file system can't preallocate.
const ZEROS_BYTES: usize = 1 << 20;

/// Time between two messages.
const ARRIVAL_NS: usize = 20_000;

/// The times of the syncs that began in the window.
pub struct Syncs {
    pub series: Series,
    /// The times that messages arriving at a steady rate would wait in a log that does nothing else: for the rest of the batch
    /// under way, and for the next one, which they are in. A slow sync counts here once for each message that meets it, among the
    /// syncs once.
    pub waits: Series,
    /// From the window's start to the end of the last sync.
    pub seconds: f64,
}

/// Appends and syncs, one batch after the other, until `end_ns`; batches that begin before `start_ns` are warming up. The files
/// are below `folder`, which exists.
pub fn sync_again_and_again(folder: &Path, batch_bytes: usize, start_ns: u64, end_ns: u64) -> io::Result<Syncs> {
    let batch: Vec<u8> = (0..batch_bytes.max(1)).map(|at| b'a' + (at % 26) as u8).collect();
    let mut segments = Segments::new(folder, SEGMENT_BYTES.max(batch.len() as u64))?;
    let (mut series, mut waits) = (Series::default(), Series::default());
    let mut batch_ns = now_ns();
    loop {
        let before_ns = std::mem::replace(&mut batch_ns, now_ns());
        segments.append(&batch)?;
        let began_ns = now_ns();
        if began_ns >= end_ns {
            return Ok(Syncs { series, waits, seconds: (began_ns.saturating_sub(start_ns)) as f64 / 1e9 });
        }
        segments.file.sync_data()?;
        let synced_ns = now_ns();
        series.record(start_ns, end_ns, began_ns, synced_ns);
        for arrived_ns in (before_ns..batch_ns).step_by(ARRIVAL_NS) {
            waits.record(start_ns, end_ns, arrived_ns, synced_ns);
        }
    }
}

/// The file that is being filled; each is deleted when the next exists.
struct Segments {
    folder: PathBuf,
    bytes: u64,
    file: File,
    path: PathBuf,
    at: u64,
    made: u64,
}

impl Segments {
    fn new(folder: &Path, bytes: u64) -> io::Result<Self> {
        let path = folder.join("segment-0");
        Ok(Self { folder: folder.into(), bytes, file: prepare(&path, bytes)?, path, at: 0, made: 1 })
    }

    /// A write, into the next file if this one has no room.
    fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        if self.at + batch.len() as u64 > self.bytes {
            let path = self.folder.join(format!("segment-{}", self.made));
            self.file = prepare(&path, self.bytes)?;
            std::fs::remove_file(std::mem::replace(&mut self.path, path))?;
            (self.at, self.made) = (0, self.made + 1);
        }
        self.file.write_all_at(batch, self.at)?;
        self.at += batch.len() as u64;
        Ok(())
    }
}

/// A file of zeros that has its blocks, durable with its name.
fn prepare(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: takes no pointers, and the descriptor is open as long as `file`.
    while unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0 {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                write_zeros(&file, bytes)?;
                break;
            }
            _ => return Err(error),
        }
    }
    file.sync_all()?;
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    Ok(file)
}

fn write_zeros(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut at = 0;
    while at < bytes {
        let piece = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::TemporaryFolder;

    #[test]
    fn batches_stand_one_behind_the_other_in_a_file_that_has_its_size_before() {
        let folder = TemporaryFolder::new("test-batches").unwrap();
        let mut segments = Segments::new(folder.path(), 100_000).unwrap();
        assert_eq!(segments.file.metadata().unwrap().len(), 100_000);
        for batch in [b"abc".as_slice(), b"defg"] {
            segments.append(batch).unwrap();
        }
        let text = std::fs::read(&segments.path).unwrap();
        assert_eq!((&text[..9], text.len()), (b"abcdefg\0\0".as_slice(), 100_000));
        segments.append(&[b'x'; 99_993]).unwrap();
        assert_eq!((segments.at, segments.made), (100_000, 1), "what fits to the byte is no reason for another");
        segments.append(b"yz").unwrap();
        assert_eq!(&std::fs::read(&segments.path).unwrap()[..3], b"yz\0");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the full one is gone");
    }

    #[test]
    fn zeros_fill_a_file_where_blocks_cannot_be_asked_for() {
        let folder = TemporaryFolder::new("test-zeros").unwrap();
        let file = OpenOptions::new().write(true).create_new(true).open(folder.path().join("zeros")).unwrap();
        let bytes = ZEROS_BYTES as u64 * 2 + 5;
        write_zeros(&file, bytes).unwrap();
        assert_eq!(file.metadata().unwrap().len(), bytes);
    }

    #[test]
    fn only_the_window_counts() {
        let folder = TemporaryFolder::new("test-window").unwrap();
        let now = now_ns();
        let syncs = sync_again_and_again(folder.path(), 100, now + 20_000_000, now + 60_000_000).unwrap();
        assert!(syncs.seconds >= 0.04 && syncs.series.steps.keys().all(|step| *step == 0));
        let (syncs, waits) = (syncs.series.whole, syncs.waits.whole);
        assert!(waits.len() >= syncs.len() && waits.max() > syncs.max() && waits.max() <= 3 * syncs.max() + 10_000_000);
        // All is before the window.
        let folder = TemporaryFolder::new("test-before").unwrap();
        let now = now_ns();
        let syncs = sync_again_and_again(folder.path(), 100, now + 10_000_000, now + 10_000_000).unwrap();
        assert_eq!(syncs.series.whole.len(), 0);
    }
}
