//! The end of a process and its next start over the same disks: what must be there again, and what clients go on from.

use super::client::DOUBT_NS;
use super::disk::{Crash, Disk, DiskFaults};
use super::oracle::Survived;
use super::world::{Seat, World};
use crate::config::Durability;
use crate::ids::HashKey;
use crate::shard::across::mesh::Mesh;
use crate::shard::connections::admission::Admission;
use crate::shard::inspect::Known;
use crate::shard::port::PortMessage;
use crate::shard::recovery::open::{Identity, ReadError, go_on, read_log};
use crate::time::Tick;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long after a crash clients come back, at most.
const BACK_WITHIN_NS: u64 = 100_000_000;
/// How long a drain and a stop may take.
const STOP_MS: u64 = 20_000;
/// A disk that takes longer to answer may be left with something unwritten by a stop, which waits 5 s for it.
const SLOW_DISK_US: u64 = 1_000_000;

/// Where each message of each session stands in its shard's log, as the shard has it.
type Entries = BTreeMap<String, BTreeMap<u64, u64>>;

/// Reads a seat's disk into its core, as a start of the gateway does.
pub fn recover(seat: &mut Seat, key: HashKey, shard: usize, segment_bytes: u64, clean: bool, now: Tick) -> Result<(), String> {
    let told = |error: ReadError| match error {
        ReadError::Io(number, error) => format!("segment {number}: {error}"),
        ReadError::Scan(error) => error.to_string(),
    };
    seat.engine.disk.finish_purges(u16::try_from(shard).unwrap()).map_err(told)?;
    let identity = Identity { shard: u16::try_from(shard).unwrap(), generation: 1, segment_bytes, key };
    let mut indexes = Vec::new();
    let keep = |number, bytes: &[u8]| {
        indexes.push((number, bytes.to_vec()));
        Ok(())
    };
    let reading = read_log(&mut seat.core, &mut seat.engine.disk.segments(), &identity, keep).map_err(told)?;
    indexes.iter().for_each(|(number, bytes)| seat.engine.disk.keep_index(*number, bytes));
    seat.engine.disk.trim(reading.scanned.last.map(|last| (last.number, last.valid_bytes)));
    let clean = clean && reading.scanned.torn.is_none();
    go_on(&mut seat.core, reading, clean, now);
    seat.engine.accepting = !seat.core.recovery_pending();
    Ok(())
}

impl World {
    /// Returns `true` if acknowledged messages outlive such an end.
    fn outlives(&self, crash: Crash) -> bool {
        match self.snapshot.settings.log.durability {
            Durability::Memory => false,
            Durability::Written => crash == Crash::Kill,
            Durability::Synced => true,
        }
    }

    /// The process ends between two instructions, and is started again.
    pub fn crash(&mut self, crash: Crash) {
        self.hear_of_purges();
        match crash {
            Crash::Kill => self.kills += 1,
            Crash::PowerCut => self.power_cuts += 1,
        }
        self.trace(&[10, self.now_ns, u64::from(crash == Crash::PowerCut)]);
        self.tell_story(|| format!("{crash:?}"));
        self.cut_links();
        let acknowledged = self.outlives(crash);
        let delivered = acknowledged && !self.snapshot.settings.log.early_delivery;
        let mut lossy = false;
        let before = self.seats.iter().map(entries).collect();
        for seat in &mut self.seats {
            lossy |= seat.engine.disk.crash(&mut self.random, crash);
        }
        self.lossy_cuts += u64::from(lossy);
        let clean = vec![false; self.seats.len()];
        self.start_again(before, &clean, acknowledged, delivered);
    }

    /// Everybody is told to go, the process ends in good order, and is started again.
    pub fn stop_and_start(&mut self) {
        self.draining = true;
        for shard in 0..self.seats.len() {
            self.tell(shard, PortMessage::Drain { window_ms: 100, restart: true });
        }
        self.run_for(1_000);
        (0..self.seats.len()).for_each(|shard| self.tell(shard, PortMessage::Stop));
        if !self.run_until(STOP_MS, |world| world.seats.iter().all(|seat| seat.stopped)) {
            return self.oracle.wrong("the process does not stop".to_owned());
        }
        self.trace(&[11, self.now_ns]);
        self.tell_story(|| "the process ended in good order".to_owned());
        self.cut_links();
        // A disk that is full or has failed is not waited for, and one that is so slow not for long enough.
        let clean: Vec<bool> = self.seats.iter().map(|seat| seat.core.log_is_whole()).collect();
        let excused =
            self.seats.iter().map(|seat| seat.core.log_refuses_all() || seat.engine.disk.faults.delay_us > SLOW_DISK_US);
        if let Some(shard) = excused.zip(&clean).position(|(excused, clean)| !excused && !clean) {
            return self.oracle.wrong(format!("not all was on disk when shard {shard} ended"));
        }
        let before = self.seats.iter().map(entries).collect();
        let known: Vec<_> = self.seats.iter().map(|seat| seat.core.members_known()).collect();
        for seat in &mut self.seats {
            seat.engine.disk.crash(&mut self.random, Crash::Kill);
        }
        let acknowledged = self.outlives(Crash::Kill);
        self.start_again(before, &clean, acknowledged, acknowledged && !self.snapshot.settings.log.early_delivery);
        for (shard, known) in known.into_iter().enumerate().filter(|(shard, _)| clean[*shard]) {
            self.same_members(shard, known);
        }
        self.draining = false;
    }

    /// A start knows of the members of a shard what the process before knew at its end.
    pub fn same_members(&mut self, shard: usize, known: BTreeMap<(String, String), Known>) {
        let mut found = self.seats[shard].core.members_known();
        for (who, before) in known {
            let Some(after) = found.remove(&who) else {
                // A channel's reader is forgotten soon.
                if !who.0.starts_with("channel:") {
                    self.oracle.wrong(format!("{who:?} is not known after the start: {before:?}"));
                }
                continue;
            };
            let oldest = before.oldest.max(after.oldest);
            let (before, after) = (before.since(oldest), after.since(oldest));
            if before != after {
                self.oracle.wrong(format!("{who:?} was {before:?} and is after the start {after:?}"));
            }
        }
        if let Some(who) = found.keys().next() {
            self.oracle.wrong(format!("{who:?} is known after the start, and was not before"));
        }
    }

    /// Clients read what had come to them, or a part, and find their connections ended.
    fn cut_links(&mut self) {
        for c in 0..self.clients.len() {
            let Some(link) = &self.clients[c].link else { continue };
            let socket = link.pipe.socket;
            let arrived = self.random.index(self.net.sockets[socket].to_client.len() + 1);
            self.net.sockets[socket].to_client.truncate(arrived);
            while self.clients[c].link.is_some() && !self.net.sockets[socket].to_client.is_empty() {
                self.read(c);
            }
            if self.clients[c].link.is_some() {
                self.end_link(c, false);
            }
            self.clients[c].away_until = self.now_ns + DOUBT_NS + self.random.below(BACK_WITHIN_NS);
        }
        self.visitors.iter_mut().for_each(super::visitors::Visitor::cut_off);
        for socket in self.net.sockets.iter_mut().filter(|socket| !socket.server_closed) {
            (socket.server_closed, socket.closed_ns) = (true, self.now_ns);
        }
    }

    /// Starts the process again. `acknowledged` and `delivered`: such messages had to survive, even if the end was not clean.
    fn start_again(&mut self, before: Vec<Entries>, clean: &[bool], acknowledged: bool, delivered: bool) {
        let sessions = self.oracle.sessions();
        self.oracle.has_restarted = true;
        self.hear_of_purges();
        let under_way: Vec<String> = std::mem::take(&mut self.purges).into_iter().map(|asked| asked.session).collect();
        let disks: Vec<Disk> = self.seats.iter_mut().map(|seat| std::mem::take(&mut seat.engine.disk)).collect();
        let segment_bytes = self.snapshot.settings.log.segment_bytes;
        let mesh = Mesh::with_depth(disks.len(), self.lane_depth);
        self.admission = Arc::new(Admission::new(self.key));
        self.bells = vec![None; disks.len()];
        self.now_ns += self.random.between(1_000_000, 50_000_000);
        let now = self.now();
        self.seats.iter().for_each(|seat| seat.count_cover(&mut self.cover));
        self.seats.clear();
        for (shard, disk) in disks.into_iter().enumerate() {
            let seed = self.random.next();
            let mut seat = Seat::new(shard, self.key, (&mesh, &self.admission), &self.snapshot, seed, disk);
            if let Err(what) = recover(&mut seat, self.key, shard, segment_bytes, clean[shard], now) {
                self.oracle.wrong(format!("shard {shard} does not recover: {what}"));
            }
            let after = entries(&seat);
            if let Some(what) = not_a_prefix(&before[shard], &after, &under_way) {
                self.oracle.wrong(format!("shard {shard}: what was recovered is no prefix of what was appended: {what}"));
            }
            self.seats.push(seat);
        }
        for session in sessions {
            let (first, head) = self.bounds(&session);
            let clean = clean[self.home(&session)];
            let (acknowledged, delivered) = (acknowledged || clean, delivered || clean);
            self.cover.add("epoch", if clean { "kept_by_a_start" } else { "begun_by_a_start" }, 1);
            self.oracle.restarted(&session, Survived { first, head, clean, acknowledged, delivered });
        }
        for client in &mut self.clients {
            client.been_in.values_mut().for_each(|sure| *sure = false);
            // The answered value is on disk, or a newer one.
            if !acknowledged {
                client.moods.values_mut().for_each(|(_, heard)| *heard = false);
            }
        }
        self.rosters.clear();
        self.tell_story(|| "the process is started again".to_owned());
        self.tell_looks();
    }

    /// Disks do no wrong from now on; a process whose disk has failed is started again, as its operator must.
    pub fn mend_disks(&mut self) {
        let failed = self.seats.iter().any(|seat| seat.engine.disk.failed);
        for seat in &mut self.seats {
            seat.engine.disk.faults = DiskFaults::default();
        }
        if failed {
            self.crash(Crash::Kill);
        }
    }
}

pub fn entries(seat: &Seat) -> Entries {
    seat.core.log_entries(|segment, entry_at| seat.engine.disk.located(segment, entry_at))
}

/// The contradiction between `after` and a prefix of `before`, by places of the log. Missing messages of sessions that were being
/// purged are none.
fn not_a_prefix(before: &Entries, after: &Entries, purged: &[String]) -> Option<String> {
    for (session, entries) in after {
        let Some(known) = before.get(session) else { continue };
        let oldest = known.keys().next().copied().unwrap_or(u64::MAX);
        for (seq, at) in entries.iter().filter(|(seq, _)| **seq >= oldest) {
            if known.get(seq) != Some(at) {
                return Some(format!("{session}: {seq} is at {at}, and was at {:?}", known.get(seq)));
            }
        }
    }
    let end = after.values().flat_map(|entries| entries.values()).max().copied()?;
    for (session, entries) in before {
        let first = after.get(session).and_then(|after| after.keys().next().copied()).unwrap_or(u64::MAX);
        let from = if purged.contains(session) { first } else { 0 };
        for (seq, at) in entries.iter().filter(|(seq, at)| **seq >= from && **at <= end) {
            if after.get(session).and_then(|after| after.get(seq)) != Some(at) {
                return Some(format!("{session}: {seq} at {at} is missing, and what is at {end} is there"));
            }
        }
    }
    None
}
