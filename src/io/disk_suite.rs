//! Tests that are the same for the disks of both engines, and what they need.

use super::chunk::Chunk;
use super::{Event, Io, PurgeStep, files};
use crate::limits::{CHUNK_BYTES, READ_BACK_BYTES_MAX};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) const SEGMENT_BYTES: u64 = 4 * CHUNK_BYTES as u64;

/// A directory, deleted with the test.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-disk-{name}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An owned copy of an event about the disk.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Written(u64, Result<(), i32>),
    Synced(u64, Result<(), i32>),
    Read(u64, Result<Vec<u8>, i32>),
    Ready(u64, Result<(), i32>),
    Gone(u64, Result<(), i32>),
    Purged(Result<u64, i32>),
    Indexed(u64, Result<Vec<u8>, i32>, Option<i32>),
}

pub(super) fn told(event: Event<'_>) -> Option<Told> {
    Some(match event {
        Event::Written { tag, result } => Told::Written(tag, result),
        Event::Synced { tag, result } => Told::Synced(tag, result),
        Event::ReadBack { tag, result } => Told::Read(tag, result.map(<[u8]>::to_vec)),
        Event::SegmentReady { number, result } => Told::Ready(number, result),
        Event::SegmentGone { number, result } => Told::Gone(number, result),
        Event::Purged { result, .. } => Told::Purged(result),
        Event::SegmentIndexed { number, result, unsaved } => Told::Indexed(number, result, unsaved),
        _ => return None,
    })
}

pub(super) fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

pub(super) fn filled(bytes: &[u8]) -> Rc<Chunk> {
    let chunk = Chunk::new(CHUNK_BYTES);
    chunk.append(bytes);
    chunk
}

/// An engine that runs a test shard.
pub(super) trait Player {
    /// Calls `first`, then waits for `count` answers.
    fn answers(&mut self, count: usize, first: impl FnOnce(&mut dyn Io) + 'static) -> Vec<Told>;
}

/// A session's purge, step by step, with the state that a start would find after each.
pub(super) fn purge_steps(engine: &mut impl Player, directory: &Path) {
    assert_eq!(engine.answers(1, |io| io.prepare_segment(3)), [Told::Ready(3, Ok(()))]);
    let path = files::segment_path(directory, 3);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (at, byte) in [(5, b"A"), (CHUNK_BYTES, b"B"), (65 + CHUNK_BYTES, b"C"), (66 + CHUNK_BYTES, b"Z")] {
        std::os::unix::fs::FileExt::write_all_at(&file, byte, at as u64).unwrap();
    }

    let steps = [
        PurgeStep::Begin,
        PurgeStep::Segment { number: 3, end: 66 + CHUNK_BYTES as u64 },
        PurgeStep::Segment { number: 4, end: SEGMENT_BYTES },
    ];
    let expected = [Ok(0), Ok(3), Err(libc::ENOENT)];
    for (step, expected) in steps.into_iter().zip(expected) {
        assert_eq!(engine.answers(1, move |io| io.purge(0xab, step)), [Told::Purged(expected)], "{step:?}");
        assert_eq!(files::purges(directory).unwrap(), [0xab], "a start in between would go on with it");
    }
    assert_eq!(engine.answers(1, |io| io.purge(0xab, PurgeStep::End)), [Told::Purged(Ok(0))]);
    assert_eq!(files::purges(directory).unwrap(), [] as [u64; 0]);
    let read = std::fs::read(&path).unwrap();
    let found: Vec<(usize, u8)> = read.iter().copied().enumerate().filter(|(_, byte)| *byte != 0).collect();
    assert_eq!(found, [(5, b'-'), (CHUNK_BYTES, b'-'), (65 + CHUNK_BYTES, b'-'), (66 + CHUNK_BYTES, b'Z')]);
}

/// A segment's index: made, read, made again when it can't be written, deleted with its segment.
pub(super) fn index_steps(engine: &mut impl Player, directory: &Path) {
    engine.answers(1, |io| io.prepare_segment(2));
    let chunk = filled(&pattern(0, 1000));
    engine.answers(1, move |io| io.write(2, 0, chunk, 0..1000, 1));
    let heard = engine.answers(2, |io| {
        io.read_index(2, 0, 10, 3);
        io.index_segment(7);
    });
    assert_eq!(heard, [Told::Read(3, Err(libc::ENOENT)), Told::Indexed(7, Err(libc::ENOENT), None)]);

    let sum: u64 = pattern(0, 1000).iter().map(|byte| u64::from(*byte)).sum();
    let heard = engine.answers(1, |io| io.index_segment(2));
    let length = SEGMENT_BYTES.to_string();
    assert_eq!(heard, [Told::Indexed(2, Ok(length.clone().into()), None)], "its beginning is told");
    let path = files::index_path(directory, 2);
    assert_eq!(std::fs::read(&path).unwrap(), format!("{length}{sum}").into_bytes());
    let digits = length.len() as u64;
    let heard = engine.answers(2, move |io| {
        io.read_index(2, digits, 100, 4);
        io.read_index(2, 0, READ_BACK_BYTES_MAX + 1, 5);
    });
    assert!(heard.contains(&Told::Read(4, Ok(sum.to_string().into()))) && heard.contains(&Told::Read(5, Err(libc::EINVAL))));

    // The index cannot be written: it is made in memory and can be read; reads under way keep the old file.
    std::fs::create_dir(path.with_extension("idx.new")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let heard = engine.answers(3, |io| {
        io.index_segment(2);
        (0..2).for_each(|tag| io.read_index(2, 0, 3, tag));
    });
    assert!(heard.contains(&Told::Indexed(2, Ok(length.clone().into()), Some(libc::EISDIR))), "{heard:?}");
    assert!(heard.contains(&Told::Read(0, Ok(length.as_bytes()[..3].into()))), "{heard:?}");
    assert!(!path.exists());
    std::fs::remove_dir(path.with_extension("idx.new")).unwrap();
    engine.answers(1, |io| io.index_segment(2));
    assert!(path.exists());
    assert_eq!(engine.answers(1, |io| io.delete_segment(2)), [Told::Gone(2, Ok(()))]);
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0, "nothing is left of it");
}
