//! Scans of logs that are whole, cut, torn, flipped and damaged, and of those that earlier versions wrote.

use super::facts::{Joined, Left, NextEpoch, Roles, Stays, Went, decode_presence};
use super::made::{FIRST, Made, Put, frame, header, scan};
use super::record::{read_record, write_record_as};
use super::scan::{BadReason, Damage, LastSegment, Proof, ScanError, Scanned, Scanner, SeqRange};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentError, SegmentHeader, segment_name};
use super::state::{EpochState, Mark, MemberState, Receipt, SessionState, StayState, decode_empty};
use super::{HEADER_BYTES, Header, Kind, Position, RecordError};
use crate::limits::CHUNK_BYTES;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn whole(scanned: Result<Scanned, ScanError>) -> Scanned {
    let scanned = scanned.unwrap();
    assert_eq!(scanned.torn, None);
    scanned
}

fn damage(scanned: Result<Scanned, ScanError>) -> Damage {
    match scanned {
        Err(ScanError::Damaged(damage)) => *damage,
        other => panic!("{other:?}"),
    }
}

/// Three segments: one of two chunks, the first chunk full; all but the last record is synced.
fn three_segments() -> Made {
    let mut made = Made::new(1, 2, 2 * CHUNK_BYTES, 4);
    let big = "x".repeat(CHUNK_BYTES / 5);
    for seq in 1..=7 {
        made.message(11, seq, &big);
    }
    made.mark();
    made.begin(5);
    for seq in 8..=20 {
        made.message(11 + seq % 2, seq, "a message");
    }
    made.mark();
    made.begin(6);
    for seq in 21..=24 {
        made.message(11, seq, "another");
    }
    made.mark();
    made
}

#[test]
fn a_whole_log_reads_back() {
    let mut made = three_segments();
    assert_eq!(made.files.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [4, 5, 6]);
    let (seen, scanned) = made.scan();
    assert_eq!(seen, made.puts);
    let scanned = whole(scanned);
    assert_eq!((scanned.first, scanned.segment_bytes), (Some(4), Some(2 * CHUNK_BYTES as u64)));
    let valid_bytes = made.files[2].1.len() as u64;
    assert_eq!(scanned.last, Some(LastSegment { number: 6, valid_bytes }));
    assert_eq!((scanned.end, scanned.records), (Position(made.end()), made.puts.len() as u64));
    assert_eq!(scanned.synced_to, made.puts.last().unwrap().at, "the last mark says what was before it");
    // The next segment continues from the chain that the scan returns.
    made.begin(7);
    made.message(11, 25, "after a start");
    assert_eq!(SegmentHeader::decode(&made.files[3].1).unwrap().chain_before, scanned.chain);
    let (seen, scanned) = made.scan();
    assert_eq!((seen.len(), whole(scanned).last.unwrap().number), (made.puts.len(), 7));
}

#[test]
fn zeros_at_the_end_are_no_records_and_a_file_that_was_not_begun_is_none() {
    let made = three_segments();
    let plain = whole(made.scan().1);
    let mut files = made.files;
    for (_, bytes) in &mut files {
        bytes.resize(2 * CHUNK_BYTES, 0);
    }
    assert_eq!(whole(scan(1, 2, &files).1), plain);
    for unbegun in [vec![], vec![0; 10], vec![0; 2 * CHUNK_BYTES]] {
        let files = [&files[..], &[(7, unbegun.clone()), (8, unbegun)]].concat();
        assert_eq!(whole(scan(1, 2, &files).1), Scanned { unwritten: Some(7), ..plain });
    }
    let nothing = whole(scan(1, 2, &[]).1);
    assert_eq!((nothing.first, nothing.last, nothing.unwritten, nothing.end), (None, None, None, Position(0)));
    assert_eq!(whole(scan(1, 2, &[(0, vec![])]).1).unwritten, Some(0));
}

#[test]
fn what_follows_a_file_that_was_not_begun_damages_it() {
    let mut made = three_segments();
    made.files[1].1.fill(0);
    let found = damage(made.scan().1);
    assert_eq!((found.segment, found.offset), (5, 0));
    assert_eq!(found.reason, BadReason::Header(SegmentError::Unwritten));
    assert!(matches!(found.proof, Proof::Synced(_)), "segment 6 has a mark: {found:?}");
    made.files[2].1.truncate(SEGMENT_HEADER_BYTES);
    assert_eq!(damage(made.scan().1).proof, Proof::Followed(6));
    made.files[2].1.truncate(SEGMENT_HEADER_BYTES - 1);
    let torn = made.scan().1.unwrap().torn.unwrap();
    assert_eq!((torn.segment, torn.offset, torn.bytes), (5, 0, 63), "neither was begun: what is there is cut");
}

#[test]
fn a_torn_tail_is_cut_where_it_begins() {
    let mut made = three_segments();
    let synced = made.clone();
    made.message(11, 25, "the last one, never synced");
    made.message(12, 26, "nor this");
    let [first, last] = &made.puts[made.puts.len() - 2..] else { unreachable!() };
    let offset = |put: &Put| put.at % (2 * CHUNK_BYTES as u64);
    let good = |files: &[(u64, Vec<u8>)], at: &Put, bytes: u64| {
        let (seen, scanned) = scan(1, 2, files);
        let scanned = scanned.unwrap();
        let torn = scanned.torn.unwrap();
        assert_eq!((torn.segment, torn.offset, torn.bytes), (6, offset(at), bytes), "{torn:?}");
        assert_eq!(scanned.last.unwrap().valid_bytes, torn.offset);
        assert_eq!(seen, made.puts[..seen.len()], "what is shown is a prefix");
        assert_eq!(scanned.end.0, seen.last().unwrap().end());
        assert_eq!(seen.last().unwrap().end(), at.at);
        torn
    };
    let len = made.files[2].1.len() as u64;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = made.files.clone();
        change(&mut files[2].1);
        files
    };
    #[expect(clippy::cast_possible_truncation, reason = "offsets in a file of a test")]
    let at = |put: &Put| offset(put) as usize;
    let (first_at, last_at) = (at(first), at(last));
    // Inside the header, inside the body, one byte short, with and without zeros behind.
    for cut in [last_at + 1, last_at + 50, last_at + HEADER_BYTES + 1] {
        let short = changed(&|bytes| bytes.truncate(cut));
        let used = short[2].1.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        let torn = good(&short, last, used - offset(last));
        assert!(matches!(torn.reason, BadReason::Record(RecordError::Short { .. })), "{torn:?}");
        good(&changed(&|bytes| bytes[cut..].fill(0)), last, used - offset(last));
    }
    // Zeros that were not written yet, in the header and in the body, in place of the data.
    assert_eq!(good(&changed(&|bytes| bytes[last_at..last_at + 8].fill(0)), last, len - offset(last)).reason, BadReason::NotZero);
    let body = good(&changed(&|bytes| bytes[last_at + HEADER_BYTES..][..4].fill(0)), last, len - offset(last));
    assert_eq!((body.reason, body.record), (RecordError::Body.into(), Some((12, 26))));
    // The earlier of two, the later whole.
    good(&changed(&|bytes| bytes[first_at + 5] ^= 1), first, len - offset(first));
    good(&changed(&|bytes| bytes[first_at + 20] ^= 1), first, len - offset(first));
    // Garbage, near and far.
    let end = Put { at: made.end(), ..last.clone() };
    good(&changed(&|bytes| bytes.extend([0xa5; 300])), &end, 300);
    let far = changed(&|bytes| {
        bytes.resize(CHUNK_BYTES + 77, 0);
        bytes.push(9);
    });
    assert_eq!(good(&far, &end, CHUNK_BYTES as u64 + 78 - len).reason, BadReason::NotZero);
    // A hole of a whole chunk: nothing may follow it.
    let mut holed = synced;
    holed.files[2].1.resize(CHUNK_BYTES, 0);
    holed.files[2].1.resize(2 * CHUNK_BYTES, 7);
    assert_eq!(holed.scan().1.unwrap().torn.unwrap().bytes, 2 * CHUNK_BYTES as u64 - offset(first));
    holed.begin(7);
    assert_eq!(damage(holed.scan().1).proof, Proof::Followed(7), "the last segment is the only one that may be torn");
    let torn_header = holed.files[3].1[..40].to_vec();
    holed.files[3].1 = torn_header;
    assert_eq!(holed.scan().1.unwrap().torn.unwrap().segment, 6, "a header that was torn is no later segment");
}

#[test]
fn a_new_segment_whose_header_was_torn_is_cut_whole() {
    let mut made = three_segments();
    let before = whole(made.scan().1);
    made.begin(7);
    made.message(11, 25, "lost with its header");
    let len = made.files[3].1.len();
    made.files[3].1[..64].fill(0);
    let scanned = made.scan().1.unwrap();
    let torn = scanned.torn.unwrap();
    assert_eq!((torn.segment, torn.offset, torn.bytes), (7, 0, len as u64));
    assert_eq!((scanned.last, scanned.end, scanned.chain), (before.last, before.end, before.chain));
    // A mark in it proves that it had been synced.
    let mut made = three_segments();
    made.begin(7);
    made.message(11, 25, "synced");
    made.mark();
    made.files[3].1[33] ^= 1;
    let found = damage(made.scan().1);
    assert_eq!((found.segment, found.offset, found.reason), (7, 0, SegmentError::Checksum.into()));
}

#[test]
fn a_damaged_middle_is_proven_by_a_mark_and_says_what_is_hit() {
    let mut made = Made::new(0, 1, 2 * CHUNK_BYTES, 0);
    for seq in 1..=9 {
        made.message(11 + seq % 3, seq.div_ceil(3), "text");
    }
    let hit = made.puts[4].clone();
    assert_eq!((hit.header.session, hit.header.seq), (13, 2));
    let plain = made.clone();
    made.mark();
    #[expect(clippy::cast_possible_truncation, reason = "offsets in a file of a test")]
    let at = hit.at as usize;
    for (byte, reason, record) in [
        (at + HEADER_BYTES + 3, BadReason::Record(RecordError::Body), Some((13, 2))),
        (at + 20, RecordError::Chain.into(), None),
        (at + 5, RecordError::Lengths.into(), None),
        (at, RecordError::Version(18).into(), None),
        (at + 2, RecordError::Kind(17).into(), None),
        (at + 84, RecordError::NotZero(84).into(), None),
    ] {
        let mut files = made.files.clone();
        files[0].1[byte] ^= 16;
        let (seen, scanned) = scan(0, 1, &files);
        assert_eq!(seen, made.puts[..4], "all before it is shown");
        let found = damage(scanned);
        assert_eq!((found.segment, found.offset, found.valid_bytes), (0, hit.at, hit.at));
        assert_eq!((found.reason, found.record), (reason, record));
        assert_eq!(found.proof, Proof::Synced(plain.end()));
        let last_good = |session| seen.iter().rev().find(|put| put.header.session == session).map(|put| put.header.seq);
        assert_eq!(found.ranges(last_good), [SeqRange { session: 13, last_good: Some(1), next_good: Some(3) }]);
        let text = found.to_string();
        assert!(text.starts_with(&format!("0000000000000000.seg: offset {}: ", hit.at)), "{text}");
        // Without the mark nothing proves that it had been synced.
        let mut files = plain.files.clone();
        files[0].1[byte] ^= 16;
        assert_eq!(scan(0, 1, &files).1.unwrap().torn.unwrap().offset, hit.at);
        // A mark that was true before the record and proves nothing about it.
        let mut early = Made::new(0, 1, 2 * CHUNK_BYTES, 0);
        early.message(11, 1, "text");
        early.mark();
        let end = early.end();
        early.message(11, 2, "text");
        *early.files[0].1.last_mut().unwrap() ^= 1;
        assert_eq!(early.scan().1.unwrap().torn.unwrap().offset, end);
    }
}

#[test]
fn a_session_that_ends_in_the_damage_is_named_where_its_header_holds() {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    made.message(11, 1, "text");
    made.message(12, 1, "text");
    *made.files[0].1.last_mut().unwrap() ^= 1;
    made.mark();
    let found = damage(made.scan().1);
    assert_eq!(found.ranges(|_| None), [SeqRange { session: 12, last_good: None, next_good: None }]);
}

#[test]
fn a_chunk_lost_at_its_end_is_damage_once_it_was_synced() {
    let made = three_segments();
    // The first chunk of segment 4 loses its last record, as if that page had never been written; the chunk after is whole.
    let lost = made.puts.iter().rfind(|put| put.end() <= (8 + 1) * CHUNK_BYTES as u64).unwrap();
    let mut files = made.files.clone();
    #[expect(clippy::cast_possible_truncation, reason = "offsets in a file of a test")]
    let from = (lost.at % (2 * CHUNK_BYTES as u64)) as usize;
    files[0].1[from..CHUNK_BYTES].fill(0);
    let found = damage(scan(1, 2, &files).1);
    assert_eq!((found.offset, found.valid_bytes), (CHUNK_BYTES as u64, from as u64));
    assert_eq!(found.reason, RecordError::Chain.into());
}

#[test]
fn a_segment_that_ends_too_early_is_damage() {
    let made = three_segments();
    let last = made.puts.iter().rfind(|put| put.at < 6 * 2 * CHUNK_BYTES as u64).unwrap();
    let mut files = made.files.clone();
    #[expect(clippy::cast_possible_truncation, reason = "offsets in a file of a test")]
    files[1].1.truncate((last.at % (2 * CHUNK_BYTES as u64)) as usize);
    let found = damage(scan(1, 2, &files).1);
    assert_eq!((found.segment, found.reason), (5, BadReason::CutShort));
    assert_eq!(found.offset, files[1].1.len() as u64);
}

#[test]
fn segments_come_once_in_order_and_are_this_shards() {
    let made = three_segments();
    let [a, b, c] = [0, 1, 2].map(|index| made.files[index].clone());
    let error = |files: &[(u64, Vec<u8>)]| scan(1, 2, files).1.unwrap_err();
    assert_eq!(error(&[a.clone(), c.clone()]), ScanError::Missing { after: 4, found: 6 });
    assert_eq!(error(&[a.clone(), a.clone()]), ScanError::Order { after: 4, found: 4 });
    assert_eq!(error(&[b.clone(), a.clone()]), ScanError::Order { after: 5, found: 4 });
    let foreign = |segment, field, found, expected| ScanError::Foreign { segment, field, found, expected };
    assert_eq!(error(&[(5, a.1.clone())]), foreign(5, "number", 4, 5));
    assert_eq!(scan(2, 2, std::slice::from_ref(&a)).1, Err(foreign(4, "shard", 1, 2)));
    assert_eq!(scan(1, 3, std::slice::from_ref(&a)).1, Err(foreign(4, "generation", 2, 3)));
    let other = SegmentHeader { segment_bytes: CHUNK_BYTES as u64, ..SegmentHeader::decode(&b.1).unwrap() };
    assert_eq!(error(&[a.clone(), (5, other.encode().to_vec())]), foreign(5, "segment bytes", 1 << 20, 2 << 20));
    let mut magic = a.clone();
    magic.1[0] = b'X';
    assert_eq!(error(&[magic]), ScanError::Header { segment: 4, error: SegmentError::Magic });
    let mut long = c;
    long.1.resize(2 * CHUNK_BYTES + 1, 0);
    assert_eq!(error(&[long]), ScanError::TooLong { segment: 6, segment_bytes: 2 * CHUNK_BYTES as u64 });
    assert_eq!(
        error(&[a.clone(), (6, b.1)]).to_string(),
        "0000000000000005.seg is missing: 0000000000000004.seg is followed by 0000000000000006.seg"
    );
    let mut scanner = Scanner::new(1, 2);
    scanner.segment(4).unwrap();
    scanner.chunk(&a.1[..100], |_, _| {}).unwrap();
    let part = scanner.chunk(&a.1[100..200], |_, _| {});
    assert_eq!(part, Err(ScanError::Part { segment: 4, offset: 100, bytes: 100 }));
}

#[test]
fn a_mark_that_says_too_much_is_not_believed() {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    let mut body = Vec::new();
    Mark { synced_to: FIRST + 1 }.encode(&mut body);
    made.put(&header(Kind::Mark, 0, 0), &[], &body);
    let torn = made.scan().1.unwrap().torn.unwrap();
    assert_eq!(torn.reason, BadReason::MarkAhead { synced_to: FIRST + 1 });
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    made.put(&header(Kind::Mark, 0, 0), &[], b"no");
    assert!(matches!(made.scan().1.unwrap().torn.unwrap().reason, BadReason::MarkBody(_)));
}

#[test]
fn ten_thousand_flipped_bits_are_all_found() {
    let made = three_segments();
    // Each file's zeros are flipped too; the long one less often than its share, because each of its rounds reads a whole chunk.
    let mut files = made.files;
    for (_, bytes) in &mut files {
        bytes.resize(bytes.len() + 4096, 0);
    }
    let synced = whole(scan(1, 2, &files).1).synced_to;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for round in 0..10_000 {
        let file = if round % 40 == 0 { 0 } else { 1 + round % 2 };
        let bit = random(8 * files[file].1.len());
        files[file].1[bit / 8] ^= 1 << (bit % 8);
        // Segments before the flipped one read as before; another test shows that.
        let (_, scanned) = scan(1, 2, &files[file..]);
        let position = files[file].0 * 2 * CHUNK_BYTES as u64 + (bit / 8) as u64;
        match scanned {
            Ok(scanned) => {
                let torn = scanned.torn.unwrap_or_else(|| panic!("round {round}: bit {bit} of file {file} was not found"));
                assert!(position >= synced && torn.segment == files[file].0, "round {round}: bit {bit} of file {file}: {torn:?}");
            }
            Err(ScanError::Damaged(damage)) => {
                assert_eq!(damage.segment, files[file].0, "round {round}");
                assert!(damage.offset <= bit as u64 / 8, "round {round}: bit {bit} of file {file}: {damage}");
            }
            Err(_) => assert!(bit < 8 * SEGMENT_HEADER_BYTES, "round {round}: bit {bit} of file {file}"),
        }
        files[file].1[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_truncation_leaves_a_prefix_with_all_before_the_cut(
        sizes in proptest::collection::vec(0usize..300, 1..30), begins in 0usize..30, cut in any::<prop::sample::Index>(), zeros: bool,
    ) {
        let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
        for (index, size) in sizes.iter().enumerate() {
            if index == begins {
                made.begin(1);
            }
            made.message(11, 1 + index as u64, &"m".repeat(*size));
            if size % 5 == 0 {
                made.mark();
            }
        }
        let mut files = made.files.clone();
        let (number, bytes) = files.last_mut().unwrap();
        let cut = cut.index(bytes.len() + 1);
        let start = *number * CHUNK_BYTES as u64;
        let cut_off = bytes.split_off(cut);
        // Zeros that were cut off and came back as zeros are not lost.
        let back = if zeros { cut_off.iter().take_while(|byte| **byte == 0).count() } else { 0 };
        let intact = (cut + back) as u64;
        if zeros {
            bytes.resize(CHUNK_BYTES, 0);
        }
        let kept = made.puts.iter().filter(|put| put.end() <= start + intact).count();
        let header_kept = intact >= FIRST;
        let (seen, scanned) = scan(0, 1, &files);
        prop_assert_eq!(&seen, &made.puts[..kept]);
        let scanned = scanned.unwrap();
        let header_end = if header_kept { start + FIRST } else { FIRST * u64::from(start > 0) };
        let end = made.puts[..kept].last().map_or(header_end, |last| last.end().max(header_end));
        prop_assert_eq!(scanned.end.0, end);
        if let Some(torn) = scanned.torn {
            prop_assert!(torn.offset <= cut as u64 && torn.bytes <= cut as u64 - torn.offset);
        } else if !zeros && header_kept {
            prop_assert_eq!(end, start + cut as u64, "whole only where a record ended");
        }
    }

    #[test]
    fn any_bytes_behind_a_log_never_take_away_from_it(garbage in proptest::collection::vec(any::<u8>(), 1..400), gap in 0usize..3) {
        let mut made = Made::new(0, 1, 4 * CHUNK_BYTES, 0);
        made.message(11, 1, "one");
        made.mark();
        let mut files = made.files.clone();
        if gap > 0 {
            files[0].1.resize(gap * CHUNK_BYTES, 0);
        }
        files[0].1.extend_from_slice(&garbage);
        let (seen, scanned) = scan(0, 1, &files);
        prop_assert_eq!(seen, made.puts);
        let torn = scanned.unwrap().torn;
        prop_assert_eq!(torn.is_none(), garbage.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_was_purged_reads_where_a_record_says_so_and_nothing_else_is_taken_for_it() {
    let made = Made::purged();
    let session = made.puts[0].header.session;
    let (seen, scanned) = made.scan();
    assert_eq!((whole(scanned).records, seen.len()), (17, made.puts.len()));
    for (seen, put) in seen.iter().zip(&made.puts) {
        let is_purged = put.header.kind == Kind::Message && put.header.session == session && put.header.seq < 10;
        let body = if is_purged { vec![0; put.body.len()] } else { put.body.clone() };
        assert_eq!(seen, &Put { body, ..put.clone() });
    }
    // Without its record.
    let mut bare = Made::every_kind();
    bare.purge(session, u64::MAX);
    let error = bare.scan().1.unwrap_err();
    let ScanError::Purged { uncovered, scanned } = &error else { panic!("{error}") };
    assert_eq!((uncovered.len(), uncovered[0].session, uncovered[0].last_seq, scanned.records), (1, session, 9, 14));
    assert!(error.to_string().starts_with("0000000000000000.seg: offset "), "{error}");
    // Behind the record, or in another session's name.
    let mut late = made.clone();
    late.purge(session, u64::MAX);
    assert!(matches!(late.scan().1, Err(ScanError::Purged { uncovered, .. }) if uncovered[0].last_seq == 10));
    let mut other = made.clone();
    other.purge(0xabcd, u64::MAX);
    assert!(matches!(other.scan().1, Err(ScanError::Purged { uncovered, .. }) if uncovered[0].session == 0xabcd));
    // Zeros alone are damage, and so is a purged body that has anything in it.
    let first = usize::try_from(made.puts[2].at).unwrap();
    let body = first + HEADER_BYTES;
    for (place, byte) in [(first + 84..body, 0), (body..body + 1, b'x')] {
        let mut files = made.files.clone();
        files[0].1[place].fill(byte);
        let error = scan(0, 1, &files).1.unwrap_err();
        assert!(matches!(&error, ScanError::Damaged(damage) if damage.offset == first as u64), "{error}");
    }
}

#[test]
fn of_members_those_states_are_purged_that_have_presence_data() {
    let mut made = Made::every_kind();
    let (session, member) = (made.puts[0].header.session, made.puts[1].header.sender);
    let bare = {
        let state = MemberState::decode(&made.puts[1].body).unwrap();
        let mut body = Vec::new();
        MemberState { presence: None, ..state }.encode(&mut body).unwrap();
        body
    };
    made.put(&Header { sender: member, ..header(Kind::Member, session, 9) }, &[], &bare);
    made.put(&header(Kind::Purge, session, 9), &[], &[]);
    let end = made.puts.last().unwrap().at;
    let (mut kept, mut others) = (made.clone(), made.clone());
    made.purge_all_but(session, end, &|_| false);
    let (seen, scanned) = made.scan();
    whole(scanned);
    let members: Vec<&Put> = seen.iter().filter(|put| put.header.kind == Kind::Member).collect();
    assert_eq!((&members[0].body, &members[1].body), (&vec![0; made.puts[1].body.len()], &bare));
    let holds = |made: &Made| made.files.iter().any(|(_, bytes)| bytes.windows(4).any(|bytes| bytes == b"busy"));
    assert!(!holds(&made));
    kept.purge_all_but(session, end, &|other| other == member);
    others.purge_all_but(session ^ 1, end, &|_| false);
    assert!(holds(&kept) && holds(&others));
    whole(kept.scan().1);
    // Half of the purge done, for readers that finish it.
    let (done, first) = (made.files[0].1.clone(), usize::try_from(made.puts[1].at).unwrap());
    for half in [84, 86, HEADER_BYTES, HEADER_BYTES + 3] {
        for (before, behind) in [(&others, &made), (&made, &others)] {
            let mut bytes = done.clone();
            bytes[first..first + half].copy_from_slice(&before.files[0].1[first..first + half]);
            let end = first + HEADER_BYTES + bare.len();
            bytes[first + half..end].copy_from_slice(&behind.files[0].1[first + half..end]);
            let mut scanner = Scanner::new(0, 1).with_half_purged(vec![session]);
            let mut seen = 0;
            for (number, bytes) in [(0, &bytes), (1, &made.files[1].1)] {
                scanner.segment(number).unwrap();
                scanner.chunk(bytes, |_, _| seen += 1).unwrap();
            }
            scanner.finish().unwrap();
            assert_eq!(seen, made.puts.len(), "{half}");
            crate::log::purge(&mut bytes, usize::MAX, session, true, &|_| false, &mut |_, _| {}).unwrap();
            assert!(bytes == done, "{half}");
        }
    }
}

#[test]
fn a_purge_that_stopped_half_way_reads_for_those_who_finish_it() {
    let made = Made::purged();
    let (session, first) = (made.puts[0].header.session, usize::try_from(made.puts[2].at).unwrap());
    let clean = Made::every_kind();
    let body = first + HEADER_BYTES;
    for half in [84, 86, HEADER_BYTES, HEADER_BYTES + 3] {
        // Earlier messages are untouched and later ones purged; and the other way round.
        for (done, undone) in [(&made, &clean), (&clean, &made)] {
            let mut bytes = made.files[0].1.clone();
            bytes[first..first + half].copy_from_slice(&undone.files[0].1[first..first + half]);
            bytes[first + half..body + 9].copy_from_slice(&done.files[0].1[first + half..body + 9]);
            let mut scanner = Scanner::new(0, 1).with_half_purged(vec![session]);
            let mut seen = 0;
            for (number, bytes) in [(0, &bytes), (1, &made.files[1].1)] {
                scanner.segment(number).unwrap();
                scanner.chunk(bytes, |_, _| seen += 1).unwrap();
            }
            scanner.finish().unwrap();
            assert_eq!(seen, made.puts.len(), "{half}");
            crate::log::purge(&mut bytes, usize::MAX, session, true, &|_| true, &mut |_, _| {}).unwrap();
            assert!(bytes == made.files[0].1);
        }
    }
}

fn golden(number: u64) -> PathBuf {
    golden_of("log", number)
}

fn golden_of(log: &str, number: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(log).join("1/shard-0").join(segment_name(number))
}

#[test]
fn a_golden_purged_log_reads_and_is_what_is_written() {
    let made = Made::purged();
    if std::env::var_os("RINGWAY_WRITE_GOLDEN").is_some() {
        for (number, bytes) in &made.files {
            std::fs::create_dir_all(golden_of("purged", *number).parent().unwrap()).unwrap();
            std::fs::write(golden_of("purged", *number), bytes).unwrap();
        }
    }
    let read = |number| (number, std::fs::read(golden_of("purged", number)).unwrap());
    let files: Vec<(u64, Vec<u8>)> = (0..2).map(read).collect();
    assert!(files == made.files, "the purge gives other bytes than tests/data/purged holds");
    let (seen, scanned) = scan(0, 1, &files);
    whole(scanned);
    let (purge, first) = (&seen[14], usize::try_from(seen[2].at).unwrap());
    assert_eq!((purge.header.kind as u8, purge.header.session, purge.header.seq), (8, 0x1122_3344_5566_7788, 9));
    assert_eq!((&files[0].1[first + 84..first + 88], &purge.body), (&b"GONE"[..], &Vec::new()));
    assert!(seen[2].body.iter().all(|byte| *byte == 0) && seen[2].body.len() == made.puts[2].body.len());
}

/// Logs that were written once must be readable for ever, and the same state must always give the same bytes. If this fails, the
/// format has changed: a new version is needed, and code that still reads this one.
#[test]
fn golden_files_read_and_are_what_is_written() {
    let made = Made::every_kind();
    if std::env::var_os("RINGWAY_WRITE_GOLDEN").is_some() {
        for (number, bytes) in &made.files {
            std::fs::create_dir_all(golden(*number).parent().unwrap()).unwrap();
            std::fs::write(golden(*number), bytes).unwrap();
        }
    }
    let files: Vec<(u64, Vec<u8>)> = (0..2).map(|number| (number, std::fs::read(golden(number)).unwrap())).collect();
    assert!(files == made.files, "the encoder gives other bytes than tests/data/log holds");
    let (seen, scanned) = scan(0, 1, &files);
    let scanned = whole(scanned);
    assert_eq!((scanned.records, scanned.first, scanned.last.unwrap().number), (14, Some(0), 1));
    assert_eq!(seen.iter().map(|put| put.header.kind as u8).collect::<Vec<_>>(), [3, 4, 1, 1, 1, 1, 1, 2, 1, 6, 5, 2, 1, 7]);

    // The fields, spelled out without the encoder.
    let head = SegmentHeader::decode(&files[1].1).unwrap();
    assert_eq!((head.shard, head.generation, head.number, head.segment_bytes), (0, 1, 1, 1 << 20));
    assert_eq!(head.created_ms, 1_790_000_000_001);
    let session = SessionState::decode(&seen[0].body).unwrap();
    let epochs = vec![EpochState { name: 70, last_seq: Some(3) }, EpochState { name: 71, last_seq: None }];
    assert_eq!(session, SessionState { session_id: "s-42", head: 3, oldest: 1, epochs });
    let member = MemberState::decode(&seen[1].body).unwrap();
    assert_eq!((member.client_id, member.subject(), member.user), ("ana/laptop", "ana", 0x77));
    assert_eq!((member.present, member.told_lost, member.away_since_ms), (true, false, 0));
    assert_eq!((member.since_ms, member.received_seq, member.hidden_to), (1_790_000_000_001, 2, 1));
    assert_eq!((member.roles, member.presence), (vec!["agent", "reviewer"], Some(r#"{"mood":"busy"}"#)));
    assert_eq!(
        member.stays,
        [StayState { room: "kitchen", hash: 0x88, from: 2, to: u64::MAX }, StayState { room: "", hash: 0x89, from: 1, to: 2 }]
    );
    assert_eq!((seen[1].header.sender, seen[1].header.seq, seen[1].header.session), (0x99, 3, 0x1122_3344_5566_7788));
    let message = &seen[4];
    assert_eq!((message.header.seq, message.header.epoch, message.header.ts_ms), (6, 1, 1_790_000_000_006));
    assert_eq!((message.header.sender, message.header.id, message.header.content), (5, 6, 6 << 70));
    assert_eq!(message.addresses, [21, 22]);
    assert_eq!(message.body, frame(r#"{"type":"chat","id":"m-6","seq":6,"ts":1790000000006}"#));
    assert_eq!(Mark::decode(&seen[7].body).unwrap().synced_to, seen[7].at);
    assert_eq!(Receipt::decode(&seen[9].body).unwrap().received_seq, 9);
    assert_eq!((decode_empty(&seen[10].body), decode_empty(&seen[13].body)), (Ok(()), Ok(())));
    assert_eq!((seen[13].header.session, seen[13].header.kind), (0xabcd, Kind::SessionGone));
}

/// The same for version 2, which grows until it is frozen: kinds may be added behind the existing ones, which stay as they are.
#[test]
fn golden_files_of_version_2_read_and_are_what_is_written() {
    let made = Made::every_kind_of_2();
    if std::env::var_os("RINGWAY_WRITE_GOLDEN").is_some() {
        for (number, bytes) in &made.files {
            std::fs::create_dir_all(golden_of("log2", *number).parent().unwrap()).unwrap();
            std::fs::write(golden_of("log2", *number), bytes).unwrap();
        }
    }
    let files: Vec<(u64, Vec<u8>)> = (0..2).map(|number| (number, std::fs::read(golden_of("log2", number)).unwrap())).collect();
    assert!(files == made.files, "the encoder gives other bytes than tests/data/log2 holds");
    let (seen, scanned) = scan(0, 1, &files);
    assert_eq!(whole(scanned).records, 24);
    let kinds: Vec<u8> = seen.iter().map(|put| put.header.kind as u8).collect();
    assert_eq!(kinds, [3, 4, 9, 13, 14, 1, 1, 1, 1, 2, 10, 6, 12, 11, 16, 4, 15, 15, 2, 8, 14, 1, 5, 7]);
    assert!(Kind::ALL.iter().all(|kind| kinds.contains(&(*kind as u8))), "a kind that no file has");

    // The fields, spelled out without the encoder.
    let head = SegmentHeader::decode(&files[1].1).unwrap();
    assert_eq!((head.version, head.number, &files[1].1[8..10]), (2, 1, &[2, 0][..]));
    assert_eq!(files[0].1[64..66], [2, 0], "a record's version");
    let member = MemberState::decode(&seen[15].body).unwrap();
    assert_eq!((member.stays_follow, member.present, member.received_seq), (true, true, 3));
    assert_eq!(seen[15].body[2 + 10 + 2 + 8], 1 | 4, "its flags");
    assert_eq!(seen[2].body, b"\x07\0kitchen\x01\0\0\0\0\0\0\0");
    assert_eq!(Joined::decode(&seen[2].body), Ok(Joined { room: "kitchen", from: 1 }));
    assert_eq!(Roles::decode(&seen[3].body).unwrap().roles, ["agent", "lead"]);
    assert_eq!(decode_presence(&seen[20].body), Ok(r#"{"mood":"calm"}"#));
    assert!(seen[4].body.iter().all(|byte| *byte == 0), "purged");
    assert_eq!(Left::decode(&seen[10].body), Ok(Left { room: "kitchen", to: 4 }));
    assert_eq!(Went::decode(&seen[12].body), Ok(Went { told_lost: true, since_ms: 1_790_000_000_500 }));
    assert_eq!((decode_empty(&seen[13].body), seen[13].header.sender), (Ok(()), 0x99));
    assert_eq!(NextEpoch::decode(&seen[14].body), Ok(NextEpoch { name: 72, last_seq: 4 }));
    assert_eq!(seen[14].header.epoch, 2);
    let parts: Vec<Stays<'_>> = seen[16..18].iter().map(|put| Stays::decode(&put.body).unwrap()).collect();
    assert_eq!((parts[0].left, parts[1].left, parts[0].stays.len()), (1, 0, 2));
    assert_eq!(parts[1].stays, [StayState { room: "porch", hash: 0x8a, from: 3, to: u64::MAX }]);
}

#[test]
fn a_record_of_version_1_has_no_kind_of_version_2() {
    let mut file = Vec::new();
    write_record_as(1, &mut file, &header(Kind::Joined, 1, 1), &[], &[], 0);
    assert_eq!(read_record(&file, Some(0)).unwrap_err(), RecordError::Kind(9));
    file.clear();
    write_record_as(2, &mut file, &header(Kind::Came, 1, 1), &[], &[], 0);
    assert_eq!(read_record(&file, Some(0)).unwrap().version, 2);
}
