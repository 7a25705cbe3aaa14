//! The log's files: writes, syncs and reads in the ring.

use super::Ring;
use crate::io::chunk::Chunk;
use crate::io::{Event, Shard};
use crate::time::Tick;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

#[derive(Default)]
pub(super) struct Operations {
    /// What is known without the kernel, to be told with the next events.
    pub(super) answers: VecDeque<Event<'static>>,
}

impl Ring {
    pub(super) fn tell_disk_answers<S: Shard>(&mut self, shard: &mut S, now: Tick) {
        for _ in 0..self.disk.answers.len() {
            let Some(answer) = self.disk.answers.pop_front() else { break };
            shard.event(self, answer, now);
        }
    }

    pub(super) fn start_write(&mut self, _segment: u64, _at: u64, _chunk: Rc<Chunk>, _part: Range<usize>, tag: u64) {
        self.disk.answers.push_back(Event::Written { tag, result: Err(libc::ENODEV) });
    }

    pub(super) fn start_sync(&mut self, _segment: u64, tag: u64) {
        self.disk.answers.push_back(Event::Synced { tag, result: Err(libc::ENODEV) });
    }

    pub(super) fn start_read_back(&mut self, _segment: u64, _at: u64, _len: usize, tag: u64) {
        self.disk.answers.push_back(Event::ReadBack { tag, result: Err(libc::ENODEV) });
    }

    pub(super) fn start_prepare(&mut self, number: u64) {
        self.disk.answers.push_back(Event::SegmentReady { number, result: Err(libc::ENODEV) });
    }

    pub(super) fn start_delete(&mut self, number: u64) {
        self.disk.answers.push_back(Event::SegmentGone { number, result: Err(libc::ENODEV) });
    }
}
