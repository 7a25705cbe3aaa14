//! Bounds on the memory that readers of the log on disk hold while they wait.

use super::*;
use crate::ids::ConnId;
use crate::shard::durability::disk_tests::{Held, core};
use crate::slots::Key;

fn place(index: usize) -> Place {
    let index = u32::try_from(index).unwrap();
    Place { shard: 0, attachment: 0, ticket: 1, conn: ConnId { index, generation: 1 } }
}

const RUN: Run = Run { segment: 0, first_seq: 1, count: 9, entries_at: 0, bytes: 900, last_offset: 800 };

#[test]
fn readers_that_wait_for_a_disk_that_does_not_answer_hold_bounded_memory() {
    let (mut core, mut io) = (core("[log]\ndir = \"unused\"\n"), Held::default());
    for index in 0..READS_MAX + 10 {
        let page = Box::new(Page { frames: Vec::with_capacity(SEND_BYTES_MAX), ..Page::default() });
        let job = Job::Page { place: place(index), member: Key::unpack(1), after: 4, page };
        core.read_for(&mut io, (Key::unpack(1), 5), Want::Places(RUN), &Hand::default(), job);
    }
    assert_eq!((core.storage.jobs.len(), core.cx.counters.limit_count(LimitReached::LogReads)), (READS_MAX, 10));
    let bytes: usize = core
        .storage
        .jobs
        .values()
        .map(|reading| match &reading.job {
            Job::Page { page, .. } => page.frames.capacity(),
            Job::History(_) | Job::Copy(_) => 0,
        })
        .sum();
    assert!(bytes <= PAGES_WARM_MAX * SEND_BYTES_MAX, "{bytes}");
}
