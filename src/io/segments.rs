//! A shard's segments as its engine keeps them: the files that are open, what is under way on each, and what is made and deleted on
//! the files thread.

use super::files::{Answer, FilesHandle, segment_path};
use super::{Event, PurgeStep};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a shard keeps its log.
#[derive(Debug)]
pub struct Disk {
    /// The shard's own.
    pub directory: PathBuf,
    /// The size of each segment's file.
    pub segment_bytes: u64,
    /// Segments that are there already, by number; open for reading, or for writing too.
    pub segments: Vec<(u64, File)>,
    /// From [`crate::io::files::start`], which was given the eventfd that the engine is given.
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
    /// Operations accepted and not yet answered.
    operations: usize,
    /// To be deleted when there are none.
    doomed: bool,
}

impl Segment {
    fn new(file: File) -> Self {
        Self { file: Arc::new(file), operations: 0, doomed: false }
    }
}

/// The table. Without a [`Disk`] it answers everything with ENODEV.
#[derive(Debug, Default)]
pub(super) struct Segments {
    place: Option<Place>,
    open: BTreeMap<u64, Segment>,
    /// What is known without the disk, to be told with the next events.
    pub(super) answers: VecDeque<Event<'static>>,
}

impl Segments {
    pub(super) fn new(disk: Option<Disk>) -> Self {
        let Some(Disk { directory, segment_bytes, segments, files }) = disk else { return Self::default() };
        let open = segments.into_iter().map(|(number, file)| (number, Segment::new(file))).collect();
        Self { place: Some(Place { directory, segment_bytes, files }), open, answers: VecDeque::new() }
    }

    /// Counts an operation on a segment in, which keeps the segment until it is counted out.
    pub(super) fn enter(&mut self, number: u64, at: u64, len: usize) -> Result<(), i32> {
        let Some(place) = &self.place else { return Err(libc::ENODEV) };
        let Some(segment) = self.open.get_mut(&number).filter(|segment| !segment.doomed) else { return Err(libc::ENOENT) };
        if at.checked_add(len as u64).is_none_or(|end| end > place.segment_bytes) {
            return Err(libc::EFBIG);
        }
        segment.operations += 1;
        Ok(())
    }

    /// Counts it out; a segment that waited for it to be deleted is.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(segment) = self.open.get_mut(&number) {
            segment.operations -= 1;
            self.delete_if_over(number);
        }
    }

    /// The file of a segment.
    pub(super) fn file(&self, number: u64) -> Option<&Arc<File>> {
        self.open.get(&number).map(|segment| &segment.file)
    }

    fn delete_if_over(&mut self, number: u64) {
        if self.open.get(&number).is_some_and(|segment| segment.doomed && segment.operations == 0) {
            let file = self.open.remove(&number).and_then(|segment| Arc::into_inner(segment.file));
            if let Some(place) = &mut self.place {
                place.files.delete(number, segment_path(&place.directory, number), file);
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

    /// Somebody knocked, perhaps the files thread.
    pub(super) fn take_files_answers(&mut self) {
        let Self { place: Some(place), open, answers } = self else { return };
        while let Some(answer) = place.files.answer() {
            answers.push_back(match answer {
                Answer::Ready { number, result } => {
                    Event::SegmentReady { number, result: result.map(|file| drop(open.insert(number, Segment::new(file)))) }
                }
                Answer::Gone { number, result } => Event::SegmentGone { number, result },
                Answer::Purged { step, result } => Event::Purged { step, result },
            });
        }
    }
}
