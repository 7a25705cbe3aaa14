//! A session's index against a plain list of the numbers held.

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
    Run { first_seq, segment, count, entries_at: 64, bytes: 3 * count, last_offset: 0 }
}

fn sink(index: &mut Index, segment: u32, runs: &[Run]) {
    let begin = u64::from(segment) * SEGMENT;
    index.sink(segment, (Position(begin), Position(begin + SEGMENT)), runs, |_, _| true);
}

/// Every number held, and its segment.
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
    assert_eq!(index.trim_bytes(1, 1), 0, "the newest stays");
    index.trim(bound(100), 0);
    assert_eq!((index.first(), index.head()), (6, 5), "an empty index still knows its head");
    assert!(index.is_empty() && !index.holds_before(bound(5000)));
    assert_eq!(index.trim(bound(100), 1), 0);
}

#[test]
fn the_oldest_go_by_their_bytes() {
    let mut index = Index::starting_at(1);
    (0..5).for_each(|at| index.push(entry(at * 10)));
    assert_eq!(index.trim_bytes(15, 1), 0);
    assert_eq!(index.trim_bytes(14, 1), 1);
    assert_eq!((index.first(), index.trim_bytes(6, 1), index.first()), (2, 2, 4));
    index.restart(9);
    index.push(entry(70));
    index.push(entry(80));
    assert_eq!((index.trim_bytes(6, 1), index.first()), (0, 9), "bytes count from the restart on");
}

#[test]
fn runs_go_by_their_average_bytes_and_never_the_newest() {
    let mut index = Index::starting_at(1);
    index.put_runs(&[Run { bytes: 1000, ..run(1, 10, 0) }, Run { bytes: 500, ..run(11, 10, 1) }]);
    assert_eq!(index.trim_bytes(1500, 1), 0);
    assert_eq!(index.trim_bytes(1301, 1), 2, "a part of a run goes by the average of its records");
    assert_eq!((index.first(), index.trim_bytes(499, 1), index.first()), (3, 9, 12));
    index.push(entry(2000));
    assert_eq!((index.trim_bytes(0, 3), index.first(), index.head()), (7, 19, 21));
    assert_eq!((index.trim_bytes(0, 0), index.is_empty()), (3, true));
}

#[test]
fn the_oldest_go_by_where_they_stand_and_a_run_as_its_last_does() {
    let mut index = Index::starting_at(1);
    index.put_runs(&[Run { last_offset: 300, ..run(1, 3, 0) }, Run { last_offset: 500, ..run(4, 3, 1) }]);
    (0..3).for_each(|number| index.push(entry(2000 + 100 * number)));
    assert!(index.relocate(2, entry(2500)));
    let before = |at: u64| move |position: Position| position < Position(at);
    assert_eq!(index.trim_while(SEGMENT, 0, before(300)), 0, "its last is not gone");
    assert_eq!((index.trim_while(SEGMENT, 0, before(2000)), index.first()), (1, 2), "a younger copy stops it");
    assert_eq!((index.trim_while(SEGMENT, 0, before(2501)), index.first(), index.head()), (8, 10, 9));
}

#[test]
fn a_run_is_held_in_parts_whose_places_are_together() {
    let mut index = Index::starting_at(1);
    (0..8).for_each(|number| index.push(entry(number * 100)));
    let segment = (Position(0), Position(SEGMENT));
    let together = |one: Position, other: Position| one.0 / 300 == other.0 / 300;
    let part = |first_seq, count, last_offset| Run {
        entries_at: 64 + 12 * (u32::try_from(first_seq).unwrap() - 1),
        last_offset,
        ..run(first_seq, count, 0)
    };
    for _ in 0..2 {
        index.sink(0, segment, &[run(1, 8, 0)], together);
        assert_eq!(index.runs(), [part(1, 3, 200), part(4, 3, 500), part(7, 2, 700)]);
    }
}

#[test]
fn a_segment_that_is_sunk_leaves_one_run() {
    let mut index = Index::starting_at(1);
    (0..6).for_each(|number| index.push(entry(700 + number * 100)));
    sink(&mut index, 0, &[run(1, 3, 0)]);
    assert_eq!(index.runs(), [Run { bytes: 9, last_offset: 900, ..run(1, 3, 0) }]);
    assert_eq!((index.first(), index.dense_first(), index.head()), (1, 4, 6));
    assert_eq!(index.find(2), Held::Cold(index.runs()[0]));
    assert_eq!(index.find(4), Held::Entry(&entry(1000)));
    assert!(index.holds_before(bound(1000)) && !index.holds_before(bound(999)));
    assert_eq!(index.trim(bound(0), 4), 2, "a run is cut as entries are");
    assert_eq!(index.runs(), [Run { first_seq: 3, count: 1, entries_at: 64 + 24, bytes: 3, segment: 0, last_offset: 900 }]);
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
    const { assert!(size_of::<Index>() <= 104 && size_of::<Entry>() <= 40 && RUN_BYTES + INDEX_HEADER_BYTES == 96) };
}

/// A test's step on an index.
#[derive(Clone, Debug)]
enum Step {
    /// Appends so many messages, each so many positions long.
    Push(u64, u64),
    /// Gives the oldest segment without an index file one; the `lost` numbers cannot be read.
    Sink {
        lost: Option<u64>,
    },
    /// Copies some of the oldest messages to the tail.
    Copy(u64),
    TrimTo(u64),
    TrimCount(usize),
    TrimAged(u64),
    TrimBytes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..9u64, 40..400u64).prop_map(|(count, each)| Step::Push(count, each)),
        4 => proptest::option::weighted(0.2, 0..60u64).prop_map(|lost| Step::Sink { lost }),
        2 => (1..6u64).prop_map(Step::Copy),
        1 => (0..4u64).prop_map(Step::TrimTo),
        1 => (1..30usize).prop_map(Step::TrimCount),
        1 => (0..4u64).prop_map(Step::TrimAged),
        1 => (0..100u64).prop_map(Step::TrimBytes),
    ]
}

proptest! {
    /// The index agrees with a list of (number, position) after any appends, sinks, copies and trims.
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
                Step::TrimAged(segment) => {
                    let at = segment.min(end / SEGMENT) * SEGMENT;
                    let before = list.len();
                    while list.first_key_value().is_some_and(|(_, place)| *place < at) {
                        list.pop_first();
                    }
                    prop_assert!(index.may_hold_before(bound(at)) || before == list.len());
                    prop_assert_eq!(index.trim_while(SEGMENT, 0, |place| place.0 < at), (before - list.len()) as u64);
                }
                Step::TrimBytes(max) => {
                    // All records of these tests have three bytes.
                    let before = list.len();
                    while list.len() as u64 * 3 > max && list.first_key_value().is_some_and(|(seq, _)| *seq + 2 <= head) {
                        list.pop_first();
                    }
                    prop_assert_eq!(index.trim_bytes(max, 2), (before - list.len()) as u64);
                }
                Step::Sink { .. } => {}
            }
            let dense: u64 = index.dense.iter().map(|entry| u64::from(entry.record_bytes())).sum();
            prop_assert_eq!(index.bytes, dense + index.cold_bytes());
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

#[test]
fn an_audience_is_the_same_of_addresses_and_of_the_record_that_bears_them() {
    let addresses = [7, 9, 7_u64 << 40];
    for count in 0..=addresses.len() {
        let bytes: Vec<u8> = addresses[..count].iter().flat_map(|address| address.to_le_bytes()).collect();
        assert_eq!(Audience::of(&addresses[..count]), Audience::of_record(&bytes), "{count}");
    }
    assert_ne!(Audience::of(&[7, 9]), Audience::of(&[9, 7]), "a list is compared as it stands");
}
