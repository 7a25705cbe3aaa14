//! Index files: made, read, flipped, cut.

use super::*;
use crate::log::made::{Made, frame, header};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A fault in bytes that should be an index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexError {
    Short { have: usize, need: usize },
    Magic,
    Version(u16),
    Checksum,
    Contradiction,
}

/// The header and the runs at the beginning of an index file.
#[derive(Clone, Copy, Debug)]
struct IndexDirectory<'a> {
    number: u64,
    entries: u32,
    segment: u32,
    runs: &'a [u8],
}

impl<'a> IndexDirectory<'a> {
    /// Reads the beginning of an index file, up to its entries.
    fn read(bytes: &'a [u8]) -> Result<Self, IndexError> {
        let Some(header) = bytes.get(..INDEX_HEADER_BYTES) else {
            return Err(IndexError::Short { have: bytes.len(), need: INDEX_HEADER_BYTES });
        };
        if header[..8] != MAGIC {
            return Err(IndexError::Magic);
        }
        if crc32c::crc32c(&header[..60]) != u32::from_le_bytes(get(header, 60)) {
            return Err(IndexError::Checksum);
        }
        let version = u16::from_le_bytes(get(header, 8));
        if version != INDEX_VERSION {
            return Err(IndexError::Version(version));
        }
        let (runs, entries) = (u32::from_le_bytes(get(header, 32)) as usize, u32::from_le_bytes(get(header, 36)));
        let need = INDEX_HEADER_BYTES + runs * RUN_BYTES;
        let Some(runs) = bytes.get(INDEX_HEADER_BYTES..need) else { return Err(IndexError::Short { have: bytes.len(), need }) };
        if crc32c::crc32c(runs) != u32::from_le_bytes(get(header, 44)) {
            return Err(IndexError::Checksum);
        }
        let number = u64::from_le_bytes(get(header, 16));
        let segment = u32::try_from(number).map_err(|_| IndexError::Contradiction)?;
        let directory = Self { number, entries, segment, runs };
        directory.agrees(need).then_some(directory).ok_or(IndexError::Contradiction)
    }

    /// Returns `true` if the runs are in order and their entries follow each other to the file's end.
    fn agrees(&self, directory_bytes: usize) -> bool {
        let (mut entries_at, mut before) = (directory_bytes as u64, None::<(u64, u64)>);
        for SessionRun { session, run } in self.runs() {
            let ends = run.first_seq.checked_add(run.count.into());
            if run.count == 0 || u64::from(run.entries_at) != entries_at || ends.is_none() {
                return false;
            }
            if before.is_some_and(|before| before >= (session, run.first_seq)) {
                return false;
            }
            before = Some((session, run.end_seq() - 1));
            entries_at += u64::from(run.count) * ENTRY_BYTES as u64;
        }
        entries_at == directory_bytes as u64 + u64::from(self.entries) * ENTRY_BYTES as u64
    }

    /// The runs, by session and seq.
    fn runs(&self) -> impl Iterator<Item = SessionRun> + use<'a> {
        let segment = self.segment;
        self.runs.as_chunks().0.iter().map(move |bytes| run_of(bytes, segment))
    }

    /// Bytes of the whole file.
    const fn file_bytes(&self) -> u64 {
        (INDEX_HEADER_BYTES + self.runs.len()) as u64 + self.entries as u64 * ENTRY_BYTES as u64
    }
}

/// Checks everything in an index file that can be checked without its segment: all but the places that entries name.
fn check_index(bytes: &[u8]) -> Result<IndexDirectory<'_>, IndexError> {
    let directory = IndexDirectory::read(bytes)?;
    let need = usize::try_from(directory.file_bytes()).unwrap_or(usize::MAX);
    if bytes.len() < need {
        return Err(IndexError::Short { have: bytes.len(), need });
    }
    if bytes.len() > need {
        return Err(IndexError::Contradiction);
    }
    Ok(directory)
}

fn made() -> Made {
    let mut made = Made::new(1, 2, 4 * CHUNK_BYTES, 6);
    for seq in 5..10 {
        made.message(11, seq, "one");
        made.message(7, seq * 2, "with holes");
    }
    made.mark();
    made.message(11, 10, &"long ".repeat(CHUNK_BYTES / 6));
    made.message(11, 11, &"long ".repeat(CHUNK_BYTES / 6));
    // A copy from an earlier segment.
    made.message(11, 1, "old");
    made
}

fn scanned(bytes: &[u8]) -> IndexFile {
    let mut scan = IndexScan::default();
    bytes.chunks(CHUNK_BYTES).for_each(|chunk| scan.chunk(chunk));
    scan.finish().unwrap()
}

/// The content of an index file: session, seq, place.
fn all(bytes: &[u8]) -> Vec<(u64, u64, (u32, u32))> {
    let mut all = Vec::new();
    for SessionRun { session, run } in check_index(bytes).unwrap().runs() {
        let entries = &bytes[run.entries_at as usize..][..run.count as usize * ENTRY_BYTES];
        let located = read_entries(entries).map(Option::unwrap).map(|at| (at.offset, at.bytes));
        all.extend(located.zip(run.first_seq..).map(|(at, seq)| (session, seq, at)));
    }
    all
}

fn messages(made: &Made, number: usize) -> Vec<(u64, u64, (u32, u32))> {
    let begin = made.files[number].0 * 4 * CHUNK_BYTES as u64;
    let mut all: Vec<_> = made
        .puts
        .iter()
        .filter(|put| put.header.kind == Kind::Message)
        .map(|put| {
            let (offset, bytes) = (u32::try_from(put.at - begin).unwrap(), u32::try_from(put.end() - put.at).unwrap());
            (put.header.session, put.header.seq, (offset, bytes))
        })
        .collect();
    all.sort_by_key(|(session, seq, _)| (*session, *seq));
    all
}

#[test]
fn every_message_is_found_by_session_and_seq() {
    let made = made();
    let file = scanned(&made.files[0].1);
    assert_eq!(all(&file.bytes), messages(&made, 0));
    let directory = IndexDirectory::read(&file.bytes[..file.directory_bytes]).unwrap();
    assert_eq!((directory.number, directory.entries, directory.file_bytes()), (6, 13, file.bytes.len() as u64));
    let runs: Vec<SessionRun> = directory.runs().collect();
    let shape: Vec<_> = runs.iter().map(|one| (one.session, one.run.first_seq, one.run.count)).collect();
    assert_eq!(shape, [(7, 10, 1), (7, 12, 1), (7, 14, 1), (7, 16, 1), (7, 18, 1), (11, 1, 1), (11, 5, 7)]);
    assert!(runs.iter().all(|one| one.run.segment == 6));
    assert_eq!(directory_runs(&file.bytes[..file.directory_bytes], 0).collect::<Vec<_>>(), runs);
    assert_eq!(directory_runs(&file.bytes[..file.directory_bytes], 5).collect::<Vec<_>>(), runs[5..]);
    let bytes = |one: &SessionRun| {
        let of = |session, seq| session == one.session && (one.run.first_seq..one.run.end_seq()).contains(&seq);
        messages(&made, 0).iter().filter(|(session, seq, _)| of(*session, *seq)).map(|(.., at)| at.1).sum::<u32>()
    };
    assert!(runs.iter().all(|one| one.run.bytes == bytes(one)), "a run knows how long its records are together");
}

#[test]
fn what_does_not_read_is_passed_over_and_the_rest_is_found() {
    let made = made();
    let whole = messages(&made, 0);
    for (at, lost) in [(40, None), (made.puts[3].at, Some(3)), (made.puts[3].at + 100, Some(3))] {
        let mut bytes = made.files[0].1.clone();
        let at = usize::try_from(at % (4 * CHUNK_BYTES as u64)).unwrap();
        bytes[at] ^= 4;
        let mut scan = IndexScan::default();
        bytes.chunks(CHUNK_BYTES).for_each(|chunk| scan.chunk(chunk));
        match lost.map(|lost: usize| &made.puts[lost].header) {
            None => assert_eq!(scan.finish(), None, "a segment's header says whose it is"),
            Some(lost) => {
                let found = all(&scan.finish().unwrap().bytes);
                let left: Vec<_> =
                    whole.iter().filter(|(session, seq, _)| (*session, *seq) != (lost.session, lost.seq)).copied().collect();
                assert_eq!(found, left);
            }
        }
    }
}

/// Two in succession: whatever is damaged of the first, the second is known for what it is.
#[test]
fn a_record_behind_one_that_does_not_read_is_found_if_it_reads() {
    const HEAD: u64 = 20;
    const STATED: u64 = 80;
    const BODY: u64 = 100;
    let made = made();
    let whole = messages(&made, 0);
    for (first, second) in [(HEAD, Some(HEAD)), (HEAD, Some(STATED)), (BODY, Some(HEAD)), (STATED, Some(HEAD)), (STATED, None)] {
        let mut bytes = made.files[0].1.clone();
        let mut lost = Vec::new();
        for (put, place) in made.puts[3..].iter().zip([Some(first), second]) {
            let Some(place) = place else { continue };
            bytes[usize::try_from((put.at + place) % (4 * CHUNK_BYTES as u64)).unwrap()] ^= 4;
            lost.push((put.header.session, put.header.seq));
        }
        let left: Vec<_> = whole.iter().filter(|(session, seq, _)| !lost.contains(&(*session, *seq))).copied().collect();
        assert_eq!(all(&scanned(&bytes).bytes), left, "{first} {second:?}");
    }
}

#[test]
fn of_a_forgotten_session_only_the_later_one_of_its_id_is_found() {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    (1..6).for_each(|seq| _ = made.message(11, seq, "of the first"));
    made.message(12, 1, "another's");
    made.put(&header(Kind::SessionGone, 11, 5), &[], &[]);
    (1..3).for_each(|seq| _ = made.message(11, seq, "of the second"));
    made.message(12, 2, "another's");
    let found = all(&scanned(&made.files[0].1).bytes);
    assert_eq!(found.iter().map(|(session, seq, _)| (*session, *seq)).collect::<Vec<_>>(), [(11, 1), (11, 2), (12, 1), (12, 2)]);
    assert!(u64::from(found[0].2.0) > made.puts[6].at);
}

#[test]
fn of_two_copies_in_a_segment_the_later_is_found() {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 0);
    made.message(11, 1, "first");
    let later = made.message(11, 1, "first");
    let found = all(&scanned(&made.files[0].1).bytes);
    assert_eq!(found.len(), 1);
    assert_eq!(u64::from(found[0].2.0), later);
}

#[test]
fn every_flipped_bit_of_a_file_is_found() {
    let mut made = Made::new(0, 1, CHUNK_BYTES, 3);
    (1..4).for_each(|seq| _ = made.message(11, seq, "x"));
    let segment = &made.files[0].1;
    let file = scanned(segment).bytes;
    let reads = |bytes: &[u8]| {
        let run = check_index(bytes).ok()?.runs().next()?.run;
        let mut located = read_entries(&bytes[run.entries_at as usize..]).zip(run.first_seq..);
        located.all(|(at, seq)| at.is_some_and(|at| read(segment, at, 11, seq))).then_some(())
    };
    assert_eq!(reads(&file), Some(()));
    for bit in 0..8 * file.len() {
        let mut bytes = file.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(reads(&bytes), None, "bit {bit}");
    }
    for len in 0..file.len() {
        assert!(check_index(&file[..len]).is_err(), "{len} bytes of it");
    }
    assert_eq!(check_index(&[&file[..], &[0]].concat()).unwrap_err(), IndexError::Contradiction);
}

/// Returns `true` if the message of that session and seq is at the entry's place.
fn read(segment: &[u8], at: Located, session: u64, seq: u64) -> bool {
    let bytes = segment.get(at.offset as usize..).and_then(|rest| rest.get(..at.bytes as usize)).unwrap_or_default();
    at.read(bytes, session, seq).is_some()
}

#[test]
fn an_entry_gives_its_message_whole_or_nothing() {
    let made = Made::every_kind();
    let segment = &made.files[0].1;
    let run = check_index(&scanned(segment).bytes).unwrap().runs().next().unwrap();
    let at = read_entries(&scanned(segment).bytes[run.run.entries_at as usize..]).nth(2).unwrap().unwrap();
    let (session, seq) = (run.session, run.run.first_seq + 2);
    assert!(read(segment, at, session, seq));
    assert!(!read(segment, at, session, seq + 1) && !read(segment, at, session + 1, seq));
    let (from, to) = (at.offset as usize, (at.offset + at.bytes) as usize);
    for bit in 8 * from..8 * to {
        let mut flipped = segment.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!read(&flipped, at, session, seq), "bit {bit}");
    }
    assert_eq!(read_entries(&[1; 30]).count(), 2, "what is cut is no entry");
    assert_eq!(read_entries(&[0xff; ENTRY_BYTES]).collect::<Vec<_>>(), [None]);
}

#[test]
fn an_empty_segment_has_an_empty_index() {
    let made = Made::new(0, 1, CHUNK_BYTES, 3);
    let file = scanned(&made.files[0].1);
    assert_eq!((file.bytes.len(), file.directory_bytes), (INDEX_HEADER_BYTES, INDEX_HEADER_BYTES));
    assert_eq!(check_index(&file.bytes).unwrap().runs().count(), 0);
}

#[test]
fn names_have_sixteen_digits() {
    assert_eq!(index_name(0x2a), "000000000000002a.idx");
    assert_eq!(index_number("000000000000002a.idx"), Some(0x2a));
    for name in ["2a.idx", "000000000000002A.idx", "000000000000002a.seg", "000000000000002a.idx.new"] {
        assert_eq!(index_number(name), None, "{name}");
    }
}

#[test]
fn a_part_of_a_run_is_within_it() {
    let run = Run { first_seq: 10, segment: 1, count: 10, entries_at: 100, bytes: 1000, last_offset: 7 };
    assert_eq!(run.part(12, 15), Run { first_seq: 12, segment: 1, count: 3, entries_at: 124, bytes: 300, last_offset: 7 });
    assert_eq!((run.part(0, 100), run.part(0, 5).count, run.part(20, 30).count), (run, 0, 0));
}

#[test]
fn a_run_is_split_between_neighbours_that_are_not_together() {
    let made = made();
    let file = scanned(&made.files[0].1);
    let run = check_index(&file.bytes).unwrap().runs().last().unwrap().run;
    let entries = &file.bytes[run.entries_at as usize..];
    let offsets: Vec<u32> = read_entries(entries).map(|at| at.unwrap().offset).collect();
    assert_eq!(run.last_offset, offsets[6]);
    assert_eq!(run.split(entries, |_, _| true).collect::<Vec<_>>(), [run]);
    let parts: Vec<Run> = run.split(entries, |one, other| (one, other) != (offsets[1], offsets[2])).collect();
    assert_eq!(parts.iter().map(|part| (part.first_seq, part.count)).collect::<Vec<_>>(), [(5, 2), (7, 5)]);
    assert_eq!(parts.iter().map(|part| part.last_offset).collect::<Vec<_>>(), [offsets[1], offsets[6]]);
    assert_eq!(parts.iter().map(|part| part.bytes).sum::<u32>(), run.bytes);
    assert_eq!(parts[1].entries_at, run.entries_at + 2 * 12);
}

fn golden(number: u64) -> PathBuf {
    golden_of("log", number)
}

fn golden_of(log: &str, number: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(log).join("1/shard-0").join(index_name(number))
}

/// Indexes that were written once must be readable for ever, and a segment's index is always the same bytes: a start compares
/// them.
#[test]
fn golden_files_read_and_are_what_is_written() {
    for (number, segment) in Made::every_kind().files {
        let made = scanned(&segment).bytes;
        if std::env::var_os("RINGWAY_WRITE_GOLDEN").is_some() {
            std::fs::write(golden(number), &made).unwrap();
        }
        assert!(std::fs::read(golden(number)).unwrap() == made, "the encoder gives other bytes than tests/data/log holds");
    }
    for (number, segment) in Made::every_kind_of_2().files {
        let made = scanned(&segment).bytes;
        if std::env::var_os("RINGWAY_WRITE_GOLDEN").is_some() {
            std::fs::write(golden_of("log2", number), &made).unwrap();
        }
        assert!(std::fs::read(golden_of("log2", number)).unwrap() == made, "other bytes than tests/data/log2 holds");
    }
    // The fields, spelled out without the encoder.
    let bytes = std::fs::read(golden(0)).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((&bytes[..8], &bytes[8..12]), (&b"RWIDX\0\0\x01"[..], &[1, 0, 0, 0][..]));
    assert_eq!((word(12), word(16), word(24), word(32), word(36)), (1, 0, 1 << 20, 1, 5));
    assert_eq!(bytes[64..72], 0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!((word(72), word(80), word(84)), (4, 5, 96));
    assert_eq!(word(92), word(96 + 4 * 12), "where the last is");
    assert_eq!(bytes.len(), 64 + 32 + 5 * 12);
}

proptest! {
    /// Messages that a builder noted are found, whatever their order; the segment's own bytes give the same file.
    #[test]
    fn a_scan_and_a_builder_agree(messages in proptest::collection::vec((1..5u64, 1..30u64, 0..300usize), 0..60)) {
        let mut made = Made::new(0, 1, 4 * CHUNK_BYTES, 2);
        let mut builder = IndexBuilder::default();
        let mut list = BTreeMap::new();
        for (session, seq, len) in messages {
            let body = frame(&"x".repeat(len));
            let at = made.put(&header(Kind::Message, session, seq), &[], &body);
            let offset = u32::try_from(at % (4 * CHUNK_BYTES as u64)).unwrap();
            builder.note(offset, &read_record(&made.files[0].1[offset as usize..], None).unwrap());
            list.insert((session, seq), (offset, 88 + body.len() as u32));
        }
        let header = SegmentHeader::decode(&made.files[0].1).unwrap();
        let file = builder.finish(&header).unwrap();
        let wanted: Vec<_> = list.iter().map(|((session, seq), at)| (*session, *seq, *at)).collect();
        prop_assert_eq!(all(&file.bytes), wanted);
        prop_assert_eq!(&scanned(&made.files[0].1), &file);
        prop_assert_eq!(builder.finish(&header).unwrap().bytes.len(), INDEX_HEADER_BYTES, "nothing is left over");
    }

    /// Any bytes are read without harm.
    #[test]
    fn any_bytes_are_refused_or_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), sealed in any::<bool>()) {
        if sealed && bytes.len() >= 64 {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..10].copy_from_slice(&[1, 0]);
            let runs = (bytes.len() - 64) / 40 % 4;
            put(&mut bytes, 32, (runs as u32).to_le_bytes());
            let crc = crc32c::crc32c(&bytes[64..(64 + runs * RUN_BYTES).min(400)]);
            put(&mut bytes, 44, crc.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..60]);
            put(&mut bytes, 60, crc.to_le_bytes());
        }
        let _ = check_index(&bytes);
        let _ = read_entries(&bytes).flatten().filter(|at| at.read(&bytes, 1, 1).is_some()).count();
        let mut scan = IndexScan::default();
        scan.chunk(&bytes);
        let _ = scan.finish();
    }
}
