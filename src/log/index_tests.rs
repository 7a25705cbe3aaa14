//! A session's index against a plain list of what is held.

use super::*;
use crate::log::{INDEX_HEADER_BYTES, RUN_BYTES};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Positions of a segment in these tests.
const SEGMENT: u64 = 1000;

fn entry(at: u64) -> Entry {
    Entry { at: Position(at), frame_at: 1, frame_bytes: 2, audience: Audience::All, sender: 0 }
}

fn bound(at: u64) -> Retained {
    Retained { at: Position(at), segment: u32::try_from(at / SEGMENT).unwrap() }
}

fn run(first_seq: u64, count: u32, segment: u32) -> Run {
    Run { first_seq, segment, count, entries_at: 64, bytes: 3 * count }
}

fn sink(index: &mut Index, segment: u32, runs: &[Run]) {
    let begin = u64::from(segment) * SEGMENT;
    index.sink(segment, Position(begin), Position(begin + SEGMENT), runs);
}

/// Every number that is held, and the segment it is in.
fn held(index: &Index) -> Vec<(u64, u64)> {
    let segment = |seq| match index.find(seq) {
        Held::Entry(entry) => Some((seq, entry.at.0 / SEGMENT)),
        Held::Cold(run) => Some((seq, run.segment.into())),
        Held::Nothing { .. } => None,
    };
    (1..=index.head() + 1).filter_map(segment).collect()
}

#[test]
fn numbers_go_on_when_the_front_is_trimmed() {
    let mut index = Index::starting_at(1);
    (0..5).for_each(|at| index.push(entry(at * 10)));
    assert_eq!((index.first(), index.head()), (1, 5));
    assert_eq!(index.trim(bound(20), 0), 2);
    assert_eq!((index.first(), index.head()), (3, 5));
    assert_eq!(index.get(2), None);
    assert_eq!(index.get(3), Some(&entry(20)));
    assert_eq!(index.trim(bound(0), 1), 2);
    assert_eq!((index.first(), index.head()), (5, 5));
    index.trim(bound(100), 0);
    assert_eq!((index.first(), index.head()), (6, 5), "an empty index still knows its head");
    assert!(index.is_empty() && !index.holds_before(bound(5000)));
    assert_eq!(index.trim(bound(100), 1), 0);
}

#[test]
fn a_segment_that_is_sunk_leaves_one_run() {
    let mut index = Index::starting_at(1);
    (0..6).for_each(|number| index.push(entry(700 + number * 100)));
    sink(&mut index, 0, &[run(1, 3, 0)]);
    assert_eq!(index.runs(), [Run { bytes: 9, ..run(1, 3, 0) }]);
    assert_eq!((index.first(), index.dense_first(), index.head()), (1, 4, 6));
    assert_eq!(index.find(2), Held::Cold(index.runs()[0]));
    assert_eq!(index.find(4), Held::Entry(&entry(1000)));
    assert!(index.holds_before(bound(1000)) && !index.holds_before(bound(999)));
    assert_eq!(index.trim(bound(0), 4), 2, "a run is cut as entries are");
    assert_eq!(index.runs(), [Run { first_seq: 3, count: 1, entries_at: 64 + 24, bytes: 3, segment: 0 }]);
    assert_eq!(index.trim(bound(1000), 0), 1);
    assert_eq!((index.first(), index.runs().len()), (4, 0));
}

#[test]
fn what_the_file_does_not_name_is_a_hole() {
    let mut index = Index::starting_at(1);
    (0..8).for_each(|number| index.push(entry(number * 100)));
    index.push(entry(1000));
    sink(&mut index, 0, &[run(2, 2, 0), run(6, 2, 0)]);
    assert_eq!(held(&index), [(2, 0), (3, 0), (6, 0), (7, 0), (9, 1)]);
    assert_eq!(index.find(1), Held::Nothing { before: 0, next: 2 });
    assert_eq!(index.find(4), Held::Nothing { before: 3, next: 6 });
    assert_eq!(index.find(8), Held::Nothing { before: 7, next: 9 });
    assert_eq!(index.find(10), Held::Nothing { before: 9, next: 10 });
    assert_eq!(index.first(), 2);
}

#[test]
fn a_file_made_anew_moves_its_runs_and_gives_back_nothing() {
    let mut index = Index::starting_at(1);
    (0..9).for_each(|number| index.push(entry(number * 100)));
    index.push(entry(1000));
    sink(&mut index, 0, &[run(1, 9, 0)]);
    index.trim(bound(0), 8);
    sink(&mut index, 0, &[Run { entries_at: 640, ..run(1, 5, 0) }, Run { entries_at: 900, ..run(7, 3, 0) }]);
    assert_eq!(held(&index), [(3, 0), (4, 0), (5, 0), (7, 0), (8, 0), (9, 0), (10, 1)]);
    assert_eq!(index.runs()[0].entries_at, 640 + 2 * 12);
}

#[test]
fn copies_at_the_tail_keep_their_numbers() {
    let mut index = Index::starting_at(1);
    (0..4).for_each(|number| index.push(entry(number * 100)));
    (0..3).for_each(|number| index.push(entry(1000 + number * 100)));
    sink(&mut index, 0, &[run(1, 4, 0)]);
    assert!(!index.relocate(5, entry(1400)), "an entry is not a run's");
    assert!(index.relocate(2, entry(1500)) && index.relocate(1, entry(1600)) && !index.relocate(1, entry(1700)));
    assert_eq!(held(&index), [(1, 1), (2, 1), (3, 0), (4, 0), (5, 1), (6, 1), (7, 1)]);
    assert_eq!((index.get(1), index.get(2)), (Some(&entry(1600)), Some(&entry(1500))));
    assert!(index.holds_before(bound(1000)));
    assert!(index.relocate(3, entry(1800)) && index.relocate(4, entry(1900)));
    assert!(!index.holds_before(bound(1000)), "nothing is left in the first segment");
    sink(&mut index, 1, &[run(1, 7, 1)]);
    assert_eq!(index.runs().len(), 1);
    assert_eq!(held(&index).len(), 7);
}

#[test]
fn of_two_copies_found_the_later_counts() {
    let mut index = Index::starting_at(1);
    index.go_on_at(4);
    index.put_runs(&[run(4, 6, 0), run(10, 5, 1), run(6, 2, 2), run(1, 1, 3)]);
    assert_eq!(
        held(&index),
        [(1, 3), (4, 0), (5, 0), (6, 2), (7, 2), (8, 0), (9, 0), (10, 1), (11, 1), (12, 1), (13, 1), (14, 1)]
    );
    assert_eq!((index.first(), index.head(), index.dense_first()), (1, 14, 15));
    index.push(entry(4000));
    assert_eq!(index.head(), 15);
    assert_eq!(index.trim(bound(2000), 0), 4 + 5);
    assert_eq!(held(&index), [(1, 3), (6, 2), (7, 2), (15, 4)], "what stands before is gone wherever its numbers are");
}

#[test]
fn a_quiet_session_takes_little_memory() {
    let mut index = Index::starting_at(1);
    index.push(entry(0));
    assert_eq!(index.dense.capacity(), 1);
    (1..1000).for_each(|number| index.push(entry(number)));
    sink(&mut index, 0, &[run(1, 1000, 0)]);
    assert_eq!((index.dense.capacity(), index.runs.capacity()), (0, 1));
    const { assert!(size_of::<Index>() <= 112 && size_of::<Entry>() <= 40 && RUN_BYTES + INDEX_HEADER_BYTES == 96) };
}

/// What a test does to an index.
#[derive(Clone, Debug)]
enum Step {
    /// Appends so many messages, each so many positions long.
    Push(u64, u64),
    /// The oldest segment that has no file is given one; the numbers that are `lost` do not read.
    Sink {
        lost: Option<u64>,
    },
    /// Copies some of the oldest messages to the tail.
    Copy(u64),
    TrimTo(u64),
    TrimCount(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..9u64, 40..400u64).prop_map(|(count, each)| Step::Push(count, each)),
        4 => proptest::option::weighted(0.2, 0..60u64).prop_map(|lost| Step::Sink { lost }),
        2 => (1..6u64).prop_map(Step::Copy),
        1 => (0..4u64).prop_map(Step::TrimTo),
        1 => (1..30usize).prop_map(Step::TrimCount),
    ]
}

proptest! {
    /// The index holds what a list of (number, position) holds, whatever is appended, sunk, copied and trimmed.
    #[test]
    fn it_agrees_with_a_list(steps in proptest::collection::vec(step(), 1..60)) {
        let mut index = Index::starting_at(1);
        let mut list = BTreeMap::<u64, u64>::new();
        let (mut head, mut end, mut sunk) = (0, 0, 0_u64);
        for step in steps {
            match step {
                Step::Push(count, each) => {
                    for _ in 0..count {
                        head += 1;
                        list.insert(head, end);
                        index.push(entry(end));
                        end += each;
                    }
                }
                Step::Sink { lost } if (sunk + 1) * SEGMENT <= end => {
                    if let Some(lost) = lost {
                        list.retain(|seq, at| *seq != lost || *at / SEGMENT != sunk);
                    }
                    let segment = u32::try_from(sunk).unwrap();
                    let mut runs = Vec::<Run>::new();
                    for seq in list.iter().filter(|(_, at)| **at / SEGMENT == sunk).map(|(seq, _)| *seq) {
                        match runs.last_mut().filter(|run| run.end_seq() == seq) {
                            Some(run) => run.count += 1,
                            None => runs.push(run(seq, 1, segment)),
                        }
                    }
                    sink(&mut index, segment, &runs);
                    sunk += 1;
                }
                Step::Copy(count) => {
                    // Of the segments that are indexed.
                    let old: Vec<u64> = list.iter().filter(|(_, at)| **at / SEGMENT < sunk).map(|(seq, _)| *seq).take(count as usize).collect();
                    for seq in old {
                        prop_assert!(index.relocate(seq, entry(end)));
                        list.insert(seq, end);
                        end += 50;
                    }
                }
                Step::TrimTo(segment) => {
                    let at = segment.min(end / SEGMENT) * SEGMENT;
                    let before = list.len();
                    list.retain(|_, place| *place >= at);
                    prop_assert_eq!(index.trim(bound(at), 0), (before - list.len()) as u64);
                }
                Step::TrimCount(max) => {
                    let before = list.len();
                    list.retain(|seq, _| seq + max as u64 > head);
                    prop_assert_eq!(index.trim(bound(0), max), (before - list.len()) as u64);
                }
                Step::Sink { .. } => {}
            }
            let wanted: Vec<(u64, u64)> = list.iter().map(|(seq, at)| (*seq, at / SEGMENT)).collect();
            prop_assert_eq!(held(&index), wanted);
            prop_assert_eq!(index.head(), head);
            prop_assert_eq!(index.first(), list.keys().next().copied().unwrap_or(head + 1));
            prop_assert_eq!(index.is_empty(), list.is_empty());
            let oldest = list.values().min().copied().unwrap_or(u64::MAX);
            for segment in 0..=end / SEGMENT {
                prop_assert_eq!(index.holds_before(bound(segment * SEGMENT)), oldest < segment * SEGMENT);
            }
            for seq in 1..=head {
                if let Held::Nothing { before, next } = index.find(seq) {
                    prop_assert_eq!(before, list.range(..seq).next_back().map_or(0, |(seq, _)| *seq));
                    prop_assert_eq!(next, list.range(seq..).next().map_or(head + 1, |(seq, _)| *seq));
                }
            }
        }
    }
}
