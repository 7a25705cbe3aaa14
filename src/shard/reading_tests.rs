//! What readers of the log on disk may hold while they wait.

use super::*;
use crate::ids::ConnId;
use crate::shard::disk_tests::{Held, core};
use crate::slots::Key;

fn place(index: usize) -> Place {
    let index = u32::try_from(index).unwrap();
    Place { shard: 0, attachment: 0, ticket: 1, conn: ConnId { index, generation: 1 } }
}

fn history(index: usize) -> Box<HistoryPage> {
    Box::new(HistoryPage {
        place: place(index),
        member: Key::unpack(1),
        stream: Key::unpack(1),
        id: "h".into(),
        room: None,
        limit: 10,
        after: 1,
        low: 1,
        high: 9,
        ascending: true,
        at: 5,
        more: false,
        frames: Vec::with_capacity(HISTORY_PAGE_BYTES_MAX),
        ends: Vec::new(),
        reading: false,
        detached: None,
    })
}

const RUN: Run = Run { segment: 0, first_seq: 1, count: 9, entries_at: 0, bytes: 900, last_offset: 800 };

#[test]
fn pages_that_wait_for_a_disk_that_does_not_answer_hold_bounded_memory() {
    let (mut core, mut io) = (core("[log]\ndir = \"unused\"\n"), Held::default());
    let mut gone = 0;
    for index in 0..HISTORIES_MAX + READS_MAX + 10 {
        let step = core.read_history(&mut io, 5, Want::Places(RUN), &Hand::default(), history(index));
        gone += usize::from(matches!(step, Step::Gone(_)));
    }
    assert_eq!((core.histories, core.jobs.len(), core.histories_waiting.len()), (HISTORIES_MAX, HISTORIES_MAX, READS_MAX));
    assert_eq!((gone, core.counters.limit_count(LimitReached::LogReads)), (10, 10));
    assert!(core.histories_waiting.iter().all(|page| page.frames.capacity() == 0 && page.at == page.low));
    for index in 0..READS_MAX {
        let page = Box::new(Page { frames: Vec::with_capacity(SEND_BYTES_MAX), ..Page::default() });
        let job = Job::Page { place: place(index), member: Key::unpack(1), after: 4, page };
        core.read_for(&mut io, (Key::unpack(1), 5), Want::Places(RUN), &Hand::default(), job);
    }
    assert_eq!(core.jobs.len(), READS_MAX);
    let bytes: usize = core
        .jobs
        .values()
        .map(|reading| match &reading.job {
            Job::Page { page, .. } => page.frames.capacity(),
            Job::History(page) => page.frames.capacity(),
            Job::Copy(_) => 0,
        })
        .sum();
    assert!(bytes <= HISTORIES_MAX * HISTORY_PAGE_BYTES_MAX + PAGES_WARM_MAX * SEND_BYTES_MAX, "{bytes}");
}
