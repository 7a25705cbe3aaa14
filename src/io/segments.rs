//! A shard's segments as its engine keeps them: open files, the operations under way on each, and the work of the files thread.

use super::files::{Answer, FilesHandle, segment_path};
use super::watch::Known;
use super::{Event, PurgeStep};
use crate::limits::READ_BACK_BYTES_MAX;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// The place of a shard's log.
#[derive(Debug)]
pub struct Disk {
    /// The shard's own directory.
    pub directory: PathBuf,
    /// The size of each segment's file.
    pub segment_bytes: u64,
    /// Existing segments, by number; open for reading, or for writing too.
    pub segments: Vec<(u64, File)>,
    /// Their indexes, if they have one.
    pub indexes: Vec<(u64, File)>,
    /// The handle from [`crate::io::files::start`], for the same eventfd that the engine has.
    pub files: FilesHandle,
}

#[derive(Debug)]
struct Place {
    directory: PathBuf,
    segment_bytes: u64,
    files: FilesHandle,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    index: Option<Arc<File>>,
    /// Operations accepted and not yet answered.
    operations: usize,
    /// `true` if the segment is to be deleted once `operations` is 0.
    doomed: bool,
}

impl Segment {
    fn new(file: File) -> Self {
        Self { file: Arc::new(file), index: None, operations: 0, doomed: false }
    }
}

/// The table. Without a [`Disk`] it answers everything with ENODEV.
#[derive(Debug, Default)]
pub(super) struct Segments {
    place: Option<Place>,
    open: BTreeMap<u64, Segment>,
    /// Answers that need no disk, to be reported with the next events.
    pub(super) answers: VecDeque<Event<'static>>,
}

impl Segments {
    pub(super) fn new(disk: Option<Disk>) -> Self {
        let Some(Disk { directory, segment_bytes, segments, indexes, mut files }) = disk else { return Self::default() };
        let known = |(number, file): &(u64, File)| Some((*number, Known::of(segment_path(&directory, *number), file)?));
        files.watch(segments.iter().filter_map(known).collect());
        let mut open: BTreeMap<u64, Segment> = segments.into_iter().map(|(number, file)| (number, Segment::new(file))).collect();
        for (number, file) in indexes {
            if let Some(segment) = open.get_mut(&number) {
                segment.index = Some(Arc::new(file));
            }
        }
        Self { place: Some(Place { directory, segment_bytes, files }), open, answers: VecDeque::new() }
    }

    /// Counts a write or sync of a segment in, which keeps the segment until it is counted out. Returns the segment's file.
    pub(super) fn enter_write(&mut self, number: u64, at: u64, len: usize) -> Result<Arc<File>, i32> {
        self.enter(number, at, len).map(|segment| Arc::clone(&segment.file))
    }

    fn enter(&mut self, number: u64, at: u64, len: usize) -> Result<&Segment, i32> {
        let Some(place) = &self.place else { return Err(libc::ENODEV) };
        let Some(segment) = self.open.get_mut(&number).filter(|segment| !segment.doomed) else { return Err(libc::ENOENT) };
        if at.checked_add(len as u64).is_none_or(|end| end > place.segment_bytes) {
            return Err(libc::EFBIG);
        }
        segment.operations += 1;
        Ok(segment)
    }

    /// Counts in a read of a segment or of its index. It may ask beyond the end, where there is nothing to read.
    pub(super) fn enter_read(&mut self, number: u64, of_index: bool, at: u64, len: usize) -> Result<Arc<File>, i32> {
        if len > READ_BACK_BYTES_MAX {
            return Err(libc::EINVAL);
        }
        if of_index && self.open.get(&number).is_some_and(|segment| segment.index.is_none()) {
            return Err(libc::ENOENT);
        }
        let segment = self.enter(number, if of_index { 0 } else { at }, 0)?;
        Ok(Arc::clone(segment.index.as_ref().filter(|_| of_index).unwrap_or(&segment.file)))
    }

    /// Counts an operation out. A segment that waited for this to be deleted is deleted.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(segment) = self.open.get_mut(&number) {
            segment.operations -= 1;
            self.delete_if_over(number);
        }
    }

    fn delete_if_over(&mut self, number: u64) {
        if self.open.get(&number).is_some_and(|segment| segment.doomed && segment.operations == 0) {
            let segment = self.open.remove(&number);
            let open = segment.into_iter().flat_map(|segment| [Some(segment.file), segment.index]).flatten().collect();
            if let Some(place) = &mut self.place {
                place.files.delete(number, segment_path(&place.directory, number), open);
            }
        }
    }

    pub(super) fn prepare(&mut self, number: u64) {
        let Self { place, open, answers } = self;
        match place {
            None => answers.push_back(Event::SegmentReady { number, result: Err(libc::ENODEV) }),
            Some(_) if open.contains_key(&number) => {
                answers.push_back(Event::SegmentReady { number, result: Err(libc::EEXIST) });
            }
            Some(place) => place.files.prepare(number, segment_path(&place.directory, number), place.segment_bytes),
        }
    }

    pub(super) fn index(&mut self, number: u64) {
        let Self { place, open, answers } = self;
        let errno = match (place, open.get(&number).filter(|segment| !segment.doomed)) {
            (None, _) => libc::ENODEV,
            (Some(_), None) => libc::ENOENT,
            (Some(place), Some(segment)) => {
                return place.files.index(number, segment_path(&place.directory, number), Arc::clone(&segment.file));
            }
        };
        answers.push_back(Event::SegmentIndexed { number, result: Err(errno), unsaved: None });
    }

    pub(super) fn delete(&mut self, number: u64) {
        let errno = match self.open.get_mut(&number) {
            _ if self.place.is_none() => libc::ENODEV,
            Some(segment) if !segment.doomed => {
                segment.doomed = true;
                return self.delete_if_over(number);
            }
            _ => libc::ENOENT,
        };
        self.answers.push_back(Event::SegmentGone { number, result: Err(errno) });
    }

    pub(super) fn purge(&mut self, session: u64, step: PurgeStep) {
        let Self { place, open, answers } = self;
        let Some(place) = place else { return answers.push_back(Event::Purged { step, result: Err(libc::ENODEV) }) };
        let file = match step {
            PurgeStep::Segment { number, .. } => open.get(&number).map(|segment| Arc::clone(&segment.file)),
            PurgeStep::Begin | PurgeStep::End => None,
        };
        place.files.purge(session, step, place.directory.clone(), file);
    }

    /// Takes the files thread's answers, if the knock was from it.
    pub(super) fn take_files_answers(&mut self) {
        let Self { place: Some(place), open, answers } = self else { return };
        while let Some(answer) = place.files.answer() {
            answers.push_back(match answer {
                Answer::Ready { number, result } => {
                    Event::SegmentReady { number, result: result.map(|file| drop(open.insert(number, Segment::new(file)))) }
                }
                Answer::Gone { number, result } => Event::SegmentGone { number, result },
                Answer::Purged { step, result } => Event::Purged { step, result },
                Answer::Indexed { number, result, unsaved } => {
                    let result = result.map(|(file, directory)| {
                        // Reads under way hold the previous index open themselves.
                        if let Some(segment) = open.get_mut(&number) {
                            segment.index = Some(Arc::new(file));
                        }
                        directory
                    });
                    Event::SegmentIndexed { number, result, unsaved }
                }
                Answer::Lost { number } => Event::SegmentLost { number },
            });
        }
    }
}
