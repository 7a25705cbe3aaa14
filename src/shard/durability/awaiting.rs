//! Acks and answers that wait for the disk, in the order of the log, one queue for each level of durability.

use crate::limits::NAME_BYTES_MAX;
use crate::log::Position;
use crate::session::{Move, Place, SessionKey, StreamKey, Underway};
use crate::shard::home::facts::HeldCommand;
use std::collections::VecDeque;

/// An ack or a command that waits for the log to be durable up to `end`.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Waiting {
    pub(in crate::shard) end: Position,
    pub(in crate::shard) session: SessionKey,
    pub(in crate::shard) stream: StreamKey,
    /// The record to show when it is durable; 0 for an ack alone.
    pub(in crate::shard) seq: u64,
    pub(in crate::shard) to: Place,
    pub(in crate::shard) ack_bytes: u32,
}

/// Most memory of a waiting command besides its answer: a member that had nothing under way, and a room's name.
const COMMAND_BYTES: usize = size_of::<HeldCommand>() + size_of::<Underway>() + size_of::<Move>() + NAME_BYTES_MAX;
/// In place of a stream: the next entry of the queue's commands waits here.
pub(in crate::shard) const COMMAND: u64 = u64::MAX;

impl Waiting {
    pub(in crate::shard) fn is_command(&self) -> bool {
        self.stream == StreamKey::unpack(COMMAND)
    }
}

/// The queue for one level of durability, in the order of the log.
#[derive(Debug, Default)]
pub(in crate::shard) struct Queue {
    pub(in crate::shard) waiting: VecDeque<Waiting>,
    /// Details of the entries that are commands.
    pub(in crate::shard) commands: VecDeque<HeldCommand>,
    pub(in crate::shard) acks: Vec<u8>,
    /// Offset of the first ack.
    pub(in crate::shard) at: usize,
}

impl Queue {
    /// Memory of the queue.
    pub(in crate::shard) fn bytes(&self) -> u64 {
        let waiting = self.waiting.len() * size_of::<Waiting>() + self.commands.len() * COMMAND_BYTES;
        (self.acks.len() - self.at + waiting) as u64
    }

    pub(in crate::shard) fn last_end(&self) -> Option<Position> {
        self.waiting.back().map(|waiting| waiting.end)
    }

    /// The next entry that `limit` releases, and the place of its ack.
    pub(in crate::shard) fn next(&mut self, limit: Position) -> Option<(Waiting, std::ops::Range<usize>)> {
        let waiting = *self.waiting.front().filter(|waiting| waiting.end <= limit)?;
        self.waiting.pop_front();
        let ack = self.at..self.at + waiting.ack_bytes as usize;
        self.at = ack.end;
        Some((waiting, ack))
    }

    /// Compacts the ack buffer once the released prefix is more than half of it.
    pub(in crate::shard) fn tidy(&mut self) {
        if self.at == self.acks.len() {
            self.acks.clear();
            self.at = 0;
        } else if self.at > self.acks.len() / 2 {
            self.acks.drain(..self.at);
            self.at = 0;
        }
    }
}
