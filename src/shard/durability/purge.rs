//! Purges a session's messages: removes them from the log's memory and from its files, while the session goes on.
//!
//! First a mark in the shard's directory makes the next start finish the purge if this process does not; then a record of the
//! purge, synced, stands for all messages before it. Only then are messages removed: from the session's index, from memory here
//! and at its mirrors, and from each file.

use super::disk::libc_errno::ENOENT;
use crate::buffers::wipe;
use crate::io::{Io, PurgeStep};
use crate::log::Position;
use crate::session::{PresenceChange, SessionKey};
use crate::shard::across::mesh::LaneMessage;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::DropReason;
use crate::shard::durability::Storage;
use crate::shard::port::{PurgeReply, Purged};
use crate::time::Tick;

/// Purges that may wait on a shard, and requests that may wait for the answer of one.
const PURGES_MAX: usize = 16;
const WAITING_MAX: usize = 16;
/// Time for which emptied buffers are wiped after a purge: those on their way to other shards have come back by then.
const WIPES_MS: u64 = 10_000;
/// Stands for a time that is not known yet.
const WIPES_FROM_NOW: u64 = 1;
/// Chunks of memory that one turn examines.
const CHUNKS_PER_TURN: usize = 4;

/// The result of a step of the purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Purging {
    Rests,
    /// There is more to do at once.
    Busy,
    /// A full lane holds it back.
    LaneFull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The purge was requested; nothing is done.
    Asked,
    /// The disk is doing a step.
    Steps,
    /// Begun: the next start would finish it.
    Begun,
    /// The record of the purge is appended.
    Recorded,
    /// The record is durable: the index, mirrors and this memory are being cleaned.
    Memory,
    Segments,
}

/// The purge of one session.
#[derive(Debug)]
pub(in crate::shard) struct Purge {
    session: u64,
    replies: Vec<PurgeReply>,
    stage: Stage,
    /// The last seq that is purged.
    seq: u64,
    /// Start and end of the record of the purge.
    at: Position,
    end: Position,
    /// The next chunk of memory to examine.
    chunk: Option<Position>,
    /// Shards whose mirrors have not been told.
    untold: Vec<u16>,
    /// Segments still to be cleaned.
    segments: Vec<u64>,
    done: Purged,
}

impl Core {
    /// Handles control's request to purge a session.
    pub(in crate::shard) fn ask_purge(&mut self, session_id: &str, reply: PurgeReply) {
        if self.cx.key.home_shard(session_id, self.links.mesh.shards()) != self.cx.shard {
            return drop(reply.send(Ok(None)));
        }
        let session = self.cx.session_hash(session_id);
        let refused = |reply: PurgeReply, why: &str| drop(reply.send(Err(why.to_owned())));
        // A purge that was requested and has not begun covers this request too.
        let asked = self.storage.purges.iter_mut().find(|purge| purge.session == session && purge.stage == Stage::Asked);
        if let Some(purge) = asked.filter(|purge| purge.replies.len() < WAITING_MAX) {
            return purge.replies.push(reply);
        }
        if self.storage.disk.as_ref().is_some_and(|disk| disk.failed.is_some() || disk.sync_failed.is_some()) {
            return refused(reply, "the log's disk has failed: look at it, restart the gateway, then purge");
        }
        if self.storage.purges.len() >= PURGES_MAX {
            return refused(reply, "too many purges are queued on this shard: try again later");
        }
        self.storage.purges.push_back(Purge {
            session,
            replies: vec![reply],
            stage: Stage::Asked,
            seq: 0,
            at: Position(0),
            end: Position(0),
            chunk: None,
            untold: Vec::new(),
            segments: Vec::new(),
            done: Purged::default(),
        });
    }

    /// Continues the first purge.
    pub(in crate::shard) fn purge_on<I: Io>(&mut self, io: &mut I, now: Tick) -> Purging {
        let Some(mut purge) = self.storage.purges.pop_front() else { return Purging::Rests };
        let came_to = match purge.stage {
            Stage::Steps => Purging::Rests,
            Stage::Asked if self.storage.disk.is_some() => {
                self.storage.purge_step(io, &mut purge, PurgeStep::Begin);
                Purging::Rests
            }
            Stage::Asked | Stage::Begun => {
                self.record_purge(&mut purge, now);
                Purging::Busy
            }
            Stage::Recorded => match &self.storage.disk {
                Some(disk) if disk.failed.is_some() || disk.sync_failed.is_some() => {
                    self.storage.end_purge(
                        &self.cx,
                        purge,
                        Err("the log's disk has failed: the next start completes the purge".to_owned()),
                    );
                    return Purging::Busy;
                }
                Some(disk) if disk.synced_to < purge.end => {
                    // The record of the purge waits for room, for an unknown time.
                    if disk.full.is_some() || disk.starved {
                        const FULL: &str =
                            "the log has no room for the record of the purge: make room; the purge then continues by itself";
                        purge.replies.drain(..).for_each(|reply| drop(reply.send(Err(FULL.to_owned()))));
                    }
                    Purging::Rests
                }
                _ => {
                    self.forget_purged(&mut purge);
                    Purging::Busy
                }
            },
            Stage::Memory => self.clean_memory(io, &mut purge),
            Stage::Segments => {
                let Some(geometry) = self.storage.log.geometry() else {
                    let done = purge.done;
                    self.storage.end_purge(&self.cx, purge, Ok(done));
                    return Purging::Busy;
                };
                let step = purge.segments.pop().map_or(PurgeStep::End, |number| {
                    let end = purge.at.0.saturating_sub(number * geometry.segment_bytes).min(geometry.segment_bytes);
                    PurgeStep::Segment { number, end }
                });
                self.storage.purge_step(io, &mut purge, step);
                Purging::Rests
            }
        };
        self.storage.purges.push_front(purge);
        came_to
    }

    /// Appends the record that stands for all messages before it.
    fn record_purge(&mut self, purge: &mut Purge, now: Tick) {
        let key = self.home.sessions.find(purge.session);
        let session = key.and_then(|key| self.home.sessions.sessions.get(key));
        let epoch = session.map_or(0, |session| session.epoch_number);
        let stream = session.and_then(|session| self.home.streams.get(session.stream));
        purge.seq = stream.map_or(0, |stream| stream.index.head());
        if let Some(key) = key {
            self.purge_presence(key, now);
        }
        purge.at = self.storage.log.end();
        if self.storage.disk.is_some() {
            purge.at = self.storage.keep_purge(&self.cx, (purge.session, epoch), purge.seq, now);
        }
        purge.end = self.storage.log.end();
        if let Some(disk) = &mut self.storage.disk {
            disk.sync_for = purge.end;
        }
        purge.stage = Stage::Recorded;
    }

    /// Purges the members' presence data too. States of version 1 contain it: they are rewritten without it before the purge that
    /// removes them.
    fn purge_presence(&mut self, key: SessionKey, now: Tick) {
        let members = self.home.sessions.sessions.get(key).map(|session| session.members.clone()).unwrap_or_default();
        for member in members {
            let Some(data) = self.home.sessions.members.get_mut(member).and_then(|member| member.presence.take()) else {
                continue;
            };
            wipe(&mut data.into_string().into_bytes());
            self.tell_presence(member, PresenceChange::Data, None);
            self.finish_telling(member);
            self.keep_bare(member, now);
        }
    }

    /// Removes purged messages from the index: no reader gets them from now on.
    fn forget_purged(&mut self, purge: &mut Purge) {
        let stream =
            self.home.sessions.find(purge.session).and_then(|key| self.home.sessions.sessions.get(key)).map(|entry| entry.stream);
        if let Some(stream) = stream.and_then(|stream| self.home.streams.get_mut(stream)) {
            let cut = stream.index.forget_to(purge.seq);
            self.cx.counters.dropped(DropReason::Purged, cut);
        }
        self.wipe_buffers();
        self.storage.wipes_until_ms = u64::MAX;
        purge.chunk = Some(self.storage.log.resident());
        let here = self.cx.shard_number();
        let shards = u16::try_from(self.links.mesh.shards()).unwrap_or(u16::MAX);
        purge.untold = (0..shards).filter(|shard| *shard != here).collect();
        if let (Some(disk), Some(geometry)) = (&self.storage.disk, self.storage.log.geometry()) {
            let last = purge.at.0 / geometry.segment_bytes;
            purge.segments = disk.kept.iter().map(|kept| kept.number).filter(|number| *number <= last).rev().collect();
        }
        purge.stage = Stage::Memory;
    }

    fn clean_memory<I: Io>(&mut self, io: &mut I, purge: &mut Purge) -> Purging {
        while let Some(shard) = purge.untold.last().copied() {
            // In order with the records, which it must not overtake.
            if !self.links.takes_data(&self.cx, usize::from(shard)) {
                return Purging::LaneFull;
            }
            self.links.push_data(&self.cx, io, usize::from(shard), LaneMessage::Purge { session: purge.session });
            purge.untold.pop();
        }
        for _ in 0..CHUNKS_PER_TURN {
            match purge.chunk {
                Some(from) => purge.chunk = self.storage.log.purge(purge.session, purge.at, from),
                None => {
                    self.wipe_buffers();
                    purge.stage = Stage::Segments;
                    break;
                }
            }
        }
        Purging::Busy
    }

    /// Wipes purged data from the shard's buffers; from now on emptied buffers are wiped.
    fn wipe_buffers(&mut self) {
        self.out.forget_gathered();
        self.cx.buffers.wipe(true);
        for buffer in [&mut self.codec.inflated, &mut self.codec.plain] {
            wipe(buffer);
        }
        for shard in 0..self.links.mesh.shards() {
            while let Some(buffer) = self.links.mesh.take_back(self.cx.shard, shard) {
                self.cx.buffers.give(buffer);
            }
        }
    }

    /// Ends the wiping of buffers a while after the last purge.
    pub(in crate::shard) fn wipe_no_more(&mut self, now: Tick) {
        match self.storage.wipes_until_ms {
            WIPES_FROM_NOW => self.storage.wipes_until_ms = now.mono_ms() + WIPES_MS,
            // Readers have the time anew after a standstill, as for all else.
            until_ms if until_ms > 0 && until_ms.max(self.timers.awake_since_ms.saturating_add(WIPES_MS)) <= now.mono_ms() => {
                self.storage.wipes_until_ms = 0;
                self.cx.buffers.wipe(false);
            }
            _ => {}
        }
    }

    /// Removes the messages of a purged session from its mirror here. Readers get later records from its home.
    pub(in crate::shard) fn purge_mirror(&mut self, session: u64) {
        if let Some(stream) = self.links.mirrors.get(&session).and_then(|key| self.home.streams.get_mut(*key)) {
            let head = stream.index.head();
            stream.index.forget_to(head);
        }
        self.wipe_buffers();
        self.storage.wipes_until_ms = self.storage.wipes_until_ms.max(WIPES_FROM_NOW);
        let mut from = Some(self.links.mirror_log.resident());
        while let Some(chunk) = from {
            from = self.links.mirror_log.purge(session, self.links.mirror_log.end(), chunk);
        }
    }
}

impl Storage {
    fn purge_step<I: Io>(&self, io: &mut I, purge: &mut Purge, step: PurgeStep) {
        debug_assert!(self.disk.is_some(), "a log in memory has no files");
        purge.stage = Stage::Steps;
        io.purge(purge.session, step);
    }

    /// Handles a step that the disk has done.
    pub(in crate::shard) fn on_purged(&mut self, cx: &Context, step: PurgeStep, result: Result<u64, i32>) {
        let Some(mut purge) = self.purges.pop_front() else { return };
        match (step, result) {
            (PurgeStep::Begin, Ok(_)) => purge.stage = Stage::Begun,
            (PurgeStep::Segment { .. }, Ok(messages)) => {
                purge.done.messages += messages;
                purge.stage = Stage::Segments;
            }
            // Retention has deleted the segment first.
            (PurgeStep::Segment { .. }, Err(ENOENT)) => purge.stage = Stage::Segments,
            (PurgeStep::End, Ok(_)) => {
                let done = purge.done;
                tracing::info!(shard = cx.shard, messages = done.messages, "a session was purged");
                return self.end_purge(cx, purge, Ok(done));
            }
            (_, Err(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::error!(shard = cx.shard, ?step, %error, "the purge of a session failed; the next start completes it");
                return self.end_purge(cx, purge, Err(format!("the log's files: {error}: purge it again")));
            }
        }
        self.purges.push_front(purge);
    }

    fn end_purge(&mut self, cx: &Context, purge: Purge, outcome: Result<Purged, String>) {
        if self.wipes_until_ms == u64::MAX {
            self.wipes_until_ms = WIPES_FROM_NOW;
        }
        for reply in purge.replies {
            if reply.send(outcome.clone().map(Some)).is_err() {
                cx.counters.dropped(DropReason::PortReplyUnwanted, 1);
            }
        }
    }
}
