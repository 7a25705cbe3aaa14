//! Logs made in memory exactly as the gateway writes them, for tests of their readers.

use super::chunks::Position;
use super::facts::{Joined, Left, NextEpoch, Roles, Stays, Went};
use super::record::{HEADER_BYTES, Header, Kind, VERSION, purge, write_record_as};
use super::scan::{ScanError, Scanned, Scanner};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::state::{EpochState, Mark, MemberState, Receipt, SessionState, StateError, StayState};
use crate::limits::CHUNK_BYTES;

/// A record that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) at: u64,
    pub(crate) header: Header,
    pub(crate) addresses: Vec<u64>,
    pub(crate) body: Vec<u8>,
}

impl Put {
    pub(crate) fn end(&self) -> u64 {
        self.at + (HEADER_BYTES + 8 * self.addresses.len() + self.body.len()) as u64
    }
}

/// The log of one shard.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) shard: u16,
    pub(crate) generation: u32,
    segment_bytes: u64,
    /// The version of the segments and records that follow.
    version: u16,
    /// Number and bytes of each file, without the zeros at its end.
    pub(crate) files: Vec<(u64, Vec<u8>)>,
    pub(crate) puts: Vec<Put>,
    chain: u32,
    running: u32,
}

impl Made {
    /// A log whose first segment has that number.
    pub(crate) fn new(shard: u16, generation: u32, segment_bytes: usize, number: u64) -> Self {
        Self::of_version(VERSION, shard, generation, segment_bytes, number)
    }

    /// The same log, as a gateway of an earlier version wrote it.
    pub(crate) fn of_version(version: u16, shard: u16, generation: u32, segment_bytes: usize, number: u64) -> Self {
        let segment_bytes = segment_bytes as u64;
        let mut made = Self { shard, generation, segment_bytes, version, files: vec![], puts: vec![], chain: 0, running: 0 };
        made.begin(number);
        made
    }

    /// Later records have that version.
    pub(crate) fn of_version_from_now(self, version: u16) -> Self {
        Self { version, ..self }
    }

    /// Goes on in the segment of that number.
    pub(crate) fn begin(&mut self, number: u64) {
        let (shard, generation, segment_bytes) = (self.shard, self.generation, self.segment_bytes);
        let created_ms = 1_790_000_000_000 + number;
        let (version, chain_before) = (self.version, self.chain);
        let header = SegmentHeader { version, shard, generation, number, segment_bytes, created_ms, chain_before };
        self.running = header.chain_start();
        self.files.push((number, header.encode().to_vec()));
    }

    /// The end of the last record.
    pub(crate) fn end(&self) -> u64 {
        let (number, bytes) = self.files.last().unwrap();
        number * self.segment_bytes + bytes.len() as u64
    }

    pub(crate) fn put(&mut self, header: &Header, addresses: &[u64], body: &[u8]) -> u64 {
        let need = HEADER_BYTES + 8 * addresses.len() + body.len();
        let (number, bytes) = self.files.last_mut().unwrap();
        let number = *number;
        if bytes.len() % CHUNK_BYTES + need > CHUNK_BYTES || bytes.len().is_multiple_of(CHUNK_BYTES) {
            let next = bytes.len().next_multiple_of(CHUNK_BYTES);
            if next as u64 == self.segment_bytes {
                self.begin(number + 1);
            } else {
                bytes.resize(next, 0);
            }
        }
        let (number, bytes) = self.files.last_mut().unwrap();
        let at = *number * self.segment_bytes + bytes.len() as u64;
        self.running = write_record_as(self.version, bytes, header, addresses, body, self.running);
        self.chain = self.running;
        self.puts.push(Put { at, header: *header, addresses: addresses.to_vec(), body: body.to_vec() });
        at
    }

    /// A message of `text` in a frame.
    pub(crate) fn message(&mut self, session: u64, seq: u64, text: &str) -> u64 {
        let header = Header { id: seq, content: u128::from(seq) << 70, sender: 5, ..header(Kind::Message, session, seq) };
        self.put(&header, if seq.is_multiple_of(3) { &[21, 22] } else { &[] }, &frame(text))
    }

    /// Appends a mark that everything so far is synced.
    pub(crate) fn mark(&mut self) -> u64 {
        let mut body = Vec::new();
        Mark { synced_to: self.end() }.encode(&mut body);
        self.put(&header(Kind::Mark, 0, 0), &[], &body)
    }

    pub(crate) fn session(&mut self, session: u64, state: &SessionState<'_>) {
        let mut body = Vec::new();
        state.encode(&mut body).unwrap();
        self.put(&header(Kind::Session, session, state.head), &[], &body);
    }

    /// A session with every kind of record of version 1, two segments of it.
    pub(crate) fn every_kind() -> Self {
        let mut made = Self::of_version(1, 0, 1, CHUNK_BYTES, 0);
        let (session, client) = (0x1122_3344_5566_7788, 0x99);
        let epochs = vec![EpochState { name: 70, last_seq: Some(3) }, EpochState { name: 71, last_seq: None }];
        made.session(session, &SessionState { session_id: "s-42", head: 3, oldest: 1, epochs });
        let member = MemberState {
            client_id: "ana/laptop",
            subject_bytes: 3,
            user: 0x77,
            present: true,
            told_lost: false,
            stays_follow: false,
            since_ms: 1_790_000_000_001,
            received_seq: 2,
            hidden_to: 1,
            away_since_ms: 0,
            roles: vec!["agent", "reviewer"],
            stays: vec![
                StayState { room: "kitchen", hash: 0x88, from: 2, to: u64::MAX },
                StayState { room: "", hash: 0x89, from: 1, to: 2 },
            ],
            presence: Some(r#"{"mood":"busy"}"#),
        };
        let of_member = |kind, seq| Header { sender: client, ..header(kind, session, seq) };
        let mut body = Vec::new();
        member.encode(&mut body).unwrap();
        made.put(&of_member(Kind::Member, 3), &[], &body);
        for seq in 4..9 {
            made.message(
                session,
                seq,
                &format!(r#"{{"type":"chat","id":"m-{seq}","seq":{seq},"ts":{}}}"#, 1_790_000_000_000 + seq),
            );
        }
        made.mark();
        made.begin(1);
        made.message(session, 9, &format!(r#"{{"type":"chat","id":"m-9","payload":"{}","seq":9}}"#, "long ".repeat(40)));
        body.clear();
        Receipt { received_seq: 9 }.encode(&mut body);
        made.put(&of_member(Kind::Receipt, 9), &[], &body);
        made.put(&of_member(Kind::MemberGone, 9), &[], &[]);
        made.mark();
        made.message(0xabcd, 1, r#"{"type":"chat","id":"x","seq":1}"#);
        made.put(&header(Kind::SessionGone, 0xabcd, 1), &[], &[]);
        made
    }

    /// A session with every kind of record of version 2, two segments of it.
    pub(crate) fn every_kind_of_2() -> Self {
        let mut made = Self::new(0, 1, CHUNK_BYTES, 0);
        let (session, client) = (0x1122_3344_5566_7788, 0x99);
        let epochs = vec![EpochState { name: 71, last_seq: None }];
        made.session(session, &SessionState { session_id: "s-42", head: 0, oldest: 1, epochs });
        let mut put = |kind, seq, body: &[u8]| made.put(&Header { sender: client, ..header(kind, session, seq) }, &[], body);
        put(Kind::Member, 0, &encoded(|out| member_of_2(false).encode(out)));
        put(Kind::Joined, 0, &encoded(|out| Joined { room: "kitchen", from: 1 }.encode(out)));
        put(Kind::Roles, 0, &encoded(|out| Roles { roles: vec!["agent", "lead"] }.encode(out)));
        put(Kind::Presence, 0, br#"{"mood":"cross"}"#);
        for seq in 1..5 {
            made.message(session, seq, &format!(r#"{{"type":"chat","id":"m-{seq}","seq":{seq}}}"#));
        }
        made.mark();
        let mut put = |kind, seq, body: &[u8]| made.put(&Header { sender: client, ..header(kind, session, seq) }, &[], body);
        put(Kind::Left, 4, &encoded(|out| Left { room: "kitchen", to: 4 }.encode(out)));
        put(Kind::Receipt, 3, &3_u64.to_le_bytes());
        put(
            Kind::Went,
            4,
            &encoded(|out| {
                Went { told_lost: true, since_ms: 1_790_000_000_500 }.encode(out);
                Ok(())
            }),
        );
        put(Kind::Came, 4, &[]);
        made.begin(1);
        let next = encoded(|out| {
            NextEpoch { name: 72, last_seq: 4 }.encode(out);
            Ok(())
        });
        made.put(&Header { epoch: 2, ..header(Kind::Epoch, session, 4) }, &[], &next);
        let mut put = |kind, seq, body: &[u8]| made.put(&Header { sender: client, ..header(kind, session, seq) }, &[], body);
        put(Kind::Member, 4, &encoded(|out| member_of_2(true).encode(out)));
        let stay = |room, hash, from, to| StayState { room, hash, from, to };
        let stays = [vec![stay("", 0x88, 1, 4), stay("", 0, 0, 2)], vec![stay("porch", 0x8a, 3, u64::MAX)]];
        for (left, stays) in [1, 0].into_iter().zip(stays) {
            put(Kind::Stays, 4, &encoded(|out| Stays { left, stays }.encode(out)));
        }
        made.mark();
        made.put(&header(Kind::Purge, session, 4), &[], &[]);
        made.purge(session, made.end());
        made.put(&Header { sender: client, ..header(Kind::Presence, session, 4) }, &[], br#"{"mood":"calm"}"#);
        made.message(session, 5, r#"{"type":"chat","id":"m-5","seq":5}"#);
        made.put(&Header { sender: 0x9a, ..header(Kind::MemberGone, session, 5) }, &[], &[]);
        made.put(&header(Kind::SessionGone, 0xabcd, 1), &[], &[]);
        made
    }

    /// [`Made::every_kind`], after which its first session was purged.
    pub(crate) fn purged() -> Self {
        let mut made = Self::every_kind();
        let session = 0x1122_3344_5566_7788;
        made.put(&header(Kind::Purge, session, 9), &[], &[]);
        made.mark();
        made.message(session, 10, r#"{"type":"chat","id":"m-10","seq":10}"#);
        made.purge(session, made.puts[made.puts.len() - 3].at);
        made
    }

    /// Removes a session's messages before a position from the files, as the first version did: members' states stay.
    pub(crate) fn purge(&mut self, session: u64, end: u64) {
        self.purge_all_but(session, end, &|_| true);
    }

    /// Removes the purgeable records of a session before a position from the files.
    pub(crate) fn purge_all_but(&mut self, session: u64, end: u64, keeps: &dyn Fn(u64) -> bool) {
        for (number, bytes) in &mut self.files {
            let end = end.saturating_sub(*number * self.segment_bytes);
            for (index, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
                let end = usize::try_from(end).unwrap().saturating_sub(index * CHUNK_BYTES);
                purge(chunk, end, session, index == 0, keeps, &mut |_, _| {}).unwrap();
            }
        }
    }

    /// Scans the files and returns the records shown.
    pub(crate) fn scan(&self) -> (Vec<Put>, Result<Scanned, ScanError>) {
        scan(self.shard, self.generation, &self.files)
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), StateError>) -> Vec<u8> {
    let mut body = Vec::new();
    encode(&mut body).unwrap();
    body
}

/// A member as version 2 writes it: new, or again with its stays behind it.
fn member_of_2(stays_follow: bool) -> MemberState<'static> {
    MemberState {
        client_id: "ana/laptop",
        subject_bytes: 3,
        user: 0x77,
        present: true,
        told_lost: false,
        stays_follow,
        since_ms: 1_790_000_000_001,
        received_seq: if stays_follow { 3 } else { 0 },
        hidden_to: 0,
        away_since_ms: 0,
        roles: vec!["agent"],
        stays: vec![],
        presence: None,
    }
}

pub(crate) fn header(kind: Kind, session: u64, seq: u64) -> Header {
    Header { kind, session, seq, epoch: 1, ts_ms: 1_790_000_000_000 + seq, sender: 0, id: 0, content: 0 }
}

/// A text frame as a server sends it.
pub(crate) fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        len @ 0..126 => frame.push(u8::try_from(len).unwrap()),
        len @ 126..65_536 => frame.extend([&[126][..], &u16::try_from(len).unwrap().to_be_bytes()].concat()),
        len => frame.extend([&[127][..], &(len as u64).to_be_bytes()].concat()),
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Scans files, and returns the records shown before the end.
pub(crate) fn scan(shard: u16, generation: u32, files: &[(u64, Vec<u8>)]) -> (Vec<Put>, Result<Scanned, ScanError>) {
    let (mut scanner, mut seen) = (Scanner::new(shard, generation), Vec::new());
    let mut feed = || {
        for (number, bytes) in files {
            scanner.segment(*number)?;
            for chunk in bytes.chunks(CHUNK_BYTES) {
                scanner.chunk(chunk, |at: Position, record| {
                    let addresses = record.addresses.chunks(8).map(|address| u64::from_le_bytes(address.try_into().unwrap()));
                    let (header, body) = (record.header, record.body.to_vec());
                    seen.push(Put { at: at.0, header, addresses: addresses.collect(), body });
                })?;
            }
        }
        Ok(())
    };
    let fed = feed();
    (seen, fed.and_then(|()| scanner.finish()))
}

/// Where a log's first record starts.
pub(crate) const FIRST: u64 = SEGMENT_HEADER_BYTES as u64;
